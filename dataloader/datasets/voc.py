"""Pascal VOC 2012, with and without the annotations of SBD."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from base.base_dataset import BaseDataset, Sample
from dataloader.datasets.files import all_present, below, read_list
from utils.classes import ClassTable
from utils.errors import DataError, Fault, MissingData, Problem
from utils.registry import DATASETS


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class VOC(BaseDataset):
    """Photographs with 20 kinds of objects and background: 1,464 train, 1,449 val; 10,582 train_aug.

    `data_dir` is the folder that holds `VOCdevkit` or `VOC2012`, or `VOC2012` itself. The `_aug` splits need what
    SBD's annotations were converted to: a folder `SegmentationClassAug` and lists such as
    `ImageSets/Segmentation/train_aug.txt`, whose lines are bare ids or an image and a label.
    `python prepare.py download VOCAug` makes both.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012; Hariharan et al. 2011, "Semantic contours from inverse
    detectors" for SBD.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "trainval", "val", "train_aug", "trainval_aug", "val_aug")
    mean: ClassVar[tuple[float, ...]] = (0.45734706, 0.43338275, 0.40058118)
    std: ClassVar[tuple[float, ...]] = (0.23965294, 0.23532275, 0.2398498)

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        return ClassTable.read(Path(__file__).parent / "classes" / "voc.csv")

    @property
    def sources(self) -> frozenset[str]:
        """VOC's own train and val, and what SBD adds to train."""
        own = {name for name in ("train", "val") if name in self.split}
        return frozenset(own | {"SBD"} if "train" in own and self.split.endswith("_aug") else own)

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        folders = [root / "VOCdevkit" / "VOC2012", root / "VOC2012", root]
        home = next((folder for folder in folders if (folder / "JPEGImages").is_dir()), None)
        if home is None:
            what = f"neither {folders[0]} nor {folders[2]} holds a folder JPEGImages"
            fix = "Set data_dir to where VOCtrainval_11-May-2012.tar was unpacked"
            raise MissingData(Problem(Fault.OTHER, "data_dir", what, fix))
        path = home / "ImageSets" / "Segmentation" / f"{split}.txt"
        augmented = split.endswith("_aug")
        if augmented and not path.is_file():
            fix = (
                f"Put the list there, and SBD's labels into {home}/SegmentationClassAug (train_aug is SBD's train and "
                f"val with VOC's train, less VOC's val; `prepare.py download VOCAug` makes both), or use split "
                f"'{split.removesuffix('_aug')}'"
            )
            raise MissingData(Problem(Fault.OTHER, "data_dir", f"there is no {path}", fix))
        labels = "SegmentationClassAug" if augmented else "SegmentationClass"
        samples = []
        for number, line in read_list(path):
            where, entries = f"{path}, line {number}", line.split()
            if len(entries) == 1:
                entries = [f"JPEGImages/{line}.jpg", f"{labels}/{line}.png"]
            if len(entries) != 2:
                what = f"{len(entries)} entries"
                raise DataError(Problem(Fault.OTHER, where, what, "Give an id, or an image and a label"))
            image, label = (below(home, entry, where) for entry in entries)
            samples.append(Sample(image.stem, image, label))
        return all_present(samples, path, self.problems)
