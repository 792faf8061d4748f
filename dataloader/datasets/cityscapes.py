"""Cityscapes: fine and coarse annotations of German streets."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.datasets.files import all_present, below, first_folder, image_files, pair, read_list
from utils.classes import IGNORE, ClassTable
from utils.errors import ConfigError, DataError, Fault, Problem
from utils.images import read_label
from utils.registry import DATASETS

IMAGE = "_leftImg8bit"
# Raw ids that no one trains on: the void category, and classes too rare. 255 is how license plates (-1) are stored.
VOID_IDS = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, IGNORE)


@DATASETS.register("Cityscapes")
@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class CityScapes(BaseDataset):
    """Street scenes, 2048x1024, 19 classes: 2,975 train, 500 val, 1,525 test; 19,998 train_extra, coarse only.

    `data_dir` holds ``leftImg8bit/`` and ``gtFine/`` or ``gtCoarse/``, as all archives unpacked in one place give, or
    each of them in a folder named like its archive. Where there are lists ``{train,val,test}Images.txt`` and
    ``...Labels.txt`` of files below `data_dir`, they say which images a split of the fine annotations has.
    The labels of the test split are all void.

    Source: Cordts et al. 2016, https://arxiv.org/abs/1604.01685; ids from cityscapesScripts.

    Args:
        mode: Exact annotations, or coarse polygons.
    """

    mode: Literal["fine", "coarse"] = "fine"

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test", "train_extra")
    unlabelled: ClassVar[tuple[str, ...]] = ("test",)
    mean: ClassVar[tuple[float, ...]] = (0.28689529, 0.32513294, 0.28389176)
    std: ClassVar[tuple[float, ...]] = (0.17613647, 0.18099176, 0.17772235)

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        mode, split = options.get("mode", "fine"), options.get("split")
        if (mode, split) in (("fine", "train_extra"), ("coarse", "test")):
            other = '"mode": "coarse"' if mode == "fine" else '"mode": "fine"'
            raise ConfigError(f"split: there are no {mode} annotations of '{split}'. Set {other}, or use train or val.")
        return ClassTable.read(Path(__file__).parent / "classes" / "cityscapes.csv", VOID_IDS)

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        lists = [root / f"{split}{kind}.txt" for kind in ("Images", "Labels")]
        present = [path for path in lists if path.is_file()]
        if self.mode == "fine" and present:
            if len(present) == 1:
                fix = f"Give {lists[0].name} and {lists[1].name}, or neither"
                raise DataError(Problem(Fault.OTHER, present[0], "stands alone", fix))
            return self._listed(root, *lists)
        kind, archive = ("gtFine", "gtFine_trainvaltest") if self.mode == "fine" else ("gtCoarse", "gtCoarse")
        zipped = "leftImg8bit_trainextra" if split == "train_extra" else "leftImg8bit_trainvaltest"
        images = first_folder(root / "leftImg8bit" / split, root / zipped / "leftImg8bit" / split)
        labels = first_folder(root / kind / split, root / archive / kind / split)
        return pair(_by_city(images, IMAGE), _by_city(labels, f"_{kind}_labelIds"), self.problems)

    def _listed(self, root: Path, images: Path, labels: Path) -> list[Sample]:
        image_of, label_of = _by_frame(root, images), _by_frame(root, labels)
        # Lists of others name labelTrainIds, which only a script of Cityscapes makes; labelIds say the same.
        label_of = {key: _raw_label(file) for key, file in label_of.items()}
        return all_present(pair(image_of, label_of, self.problems), labels, self.problems)

    def read_raw(self, path: Path) -> np.ndarray:
        """Read raw ids from a label file, (H, W) uint8, also from one that holds training ids."""
        values = read_label(path)
        if not path.stem.endswith("_labelTrainIds"):
            return values
        if (values[values != IGNORE] > 18).any():
            what = "holds more than training ids 0..18 and 255"
            raise DataError(Problem(Fault.OTHER, path, what, "Use the file of labelIds"))
        raw: np.ndarray = self._raw_of_train_id[values]
        return raw

    @cached_property
    def _raw_of_train_id(self) -> np.ndarray:
        table = np.zeros(256, np.uint8)  # 0 is void
        table[:19] = [ids[0] for ids in self.base_classes().raw_ids]
        return table


def _by_city(folder: Path, ending: str) -> dict[str, Path]:
    """Find the files of all cities in `folder`, by name without `ending`."""
    files: dict[str, Path] = {}
    for city in sorted(path for path in folder.iterdir() if path.is_dir()):
        files |= image_files(city, remove=ending)
    return files


def _by_frame(root: Path, path: Path) -> dict[str, Path]:
    """Read the files below `root` that the list `path` names, by their frame."""
    files = [below(root, line, f"{path}, line {number}") for number, line in read_list(path)]
    return {frame_of(file): file for file in files}


def frame_of(file: Path) -> str:
    """Return city, sequence and frame, which image and label have in common: ``aachen_000000_000019``."""
    return re.split("_leftImg8bit|_gtFine|_gtCoarse", file.stem)[0]


def _raw_label(file: Path) -> Path:
    """Return the labelIds that lie beside a file of labelTrainIds, or the file itself."""
    other = file.with_name(file.name.replace("_labelTrainIds", "_labelIds"))
    return other if other.is_file() else file
