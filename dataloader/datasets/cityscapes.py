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
from utils.errors import ConfigError, DataError
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
                raise DataError(f"{present[0]}: stands alone. Give {lists[0].name} and {lists[1].name}, or neither.")
            return self._listed(root, *lists)
        kind, archive = ("gtFine", "gtFine_trainvaltest") if self.mode == "fine" else ("gtCoarse", "gtCoarse")
        zipped = "leftImg8bit_trainextra" if split == "train_extra" else "leftImg8bit_trainvaltest"
        images = first_folder(root / "leftImg8bit" / split, root / zipped / "leftImg8bit" / split)
        labels = first_folder(root / kind / split, root / archive / kind / split)
        return pair(_by_city(images, IMAGE), _by_city(labels, f"_{kind}_labelIds"))

    def _listed(self, root: Path, images: Path, labels: Path) -> list[Sample]:
        found: list[dict[str, Path]] = []
        for path in (images, labels):
            files = [below(root, line, f"{path}, line {number}") for number, line in read_list(path)]
            found.append({frame_of(file): file for file in files})
        # Lists of others name labelTrainIds, which only a script of Cityscapes makes; labelIds say the same.
        found[1] = {key: _raw_label(file) for key, file in found[1].items()}
        return all_present(pair(*found), labels)

    def read_raw(self, path: Path) -> np.ndarray:
        """Raw ids in a label file, (H, W) uint8, also from one that holds training ids."""
        values = read_label(path)
        if not path.stem.endswith("_labelTrainIds"):
            return values
        if (values[values != IGNORE] > 18).any():
            raise DataError(f"{path}: holds more than training ids 0..18 and 255. Use the file of labelIds.")
        return self._raw_of_train_id[values]

    @cached_property
    def _raw_of_train_id(self) -> np.ndarray:
        table = np.zeros(256, np.uint8)  # 0 is void
        table[:19] = [ids[0] for ids in self.base_classes().raw_ids]
        return table


def _by_city(folder: Path, ending: str) -> dict[str, Path]:
    """Files of all cities in `folder`, by name without `ending`."""
    cities = sorted(path for path in folder.iterdir() if path.is_dir())
    return {key: file for city in cities for key, file in image_files(city, remove=ending).items()}


def frame_of(file: Path) -> str:
    """City, sequence and frame, which image and label have in common: ``aachen_000000_000019``."""
    return re.split("_leftImg8bit|_gtFine|_gtCoarse", file.stem)[0]


def _raw_label(file: Path) -> Path:
    """The labelIds that lie beside a file of labelTrainIds, or the file itself."""
    other = file.with_name(file.name.replace("_labelTrainIds", "_labelIds"))
    return other if other.is_file() else file
