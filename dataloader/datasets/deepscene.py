"""DeepScene's Freiburg Forest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.datasets.files import color_labels, first_folder, image_files, pair, refuse_label_map
from utils.classes import ClassTable
from utils.registry import DATASETS


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class DeepScene(BaseDataset):
    """Forest paths, 7 classes: 230 training, 136 validation. Masks are drawn in colors; unknown colors are void.

    Expects ``train/{rgb,GT_color}/`` and ``test/{rgb,GT_color}/`` in `data_dir` or in its folder
    ``freiburg_forest_annotated``. One of the classes is called void: ``"ignore_index": 0`` leaves it out.

    Source: Valada et al. 2016, "Deep multispectral semantic scene understanding of forested environments using
    multimodal fusion"; http://deepscene.cs.uni-freiburg.de.
    """

    raw_labels: bool = field(init=False, repr=False, default=False)

    splits: ClassVar[tuple[str, ...]] = ("training", "validation")

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        refuse_label_map(options)
        return ClassTable.read(Path(__file__).parent / "classes" / "deepscene.csv")

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        name = {"training": "train", "validation": "test"}[split]
        home = first_folder(root / "freiburg_forest_annotated" / name, root / name)
        return pair(_by_key(home / "rgb"), _by_key(home / "GT_color"), self.problems)

    def read_label(self, index: int) -> np.ndarray:
        """The label of example `index`, (H, W) uint8: training ids, or 255 for void."""
        return color_labels(self.samples[index].label, self.classes)[0]

    def unknown_pixels(self, index: int) -> int:
        """Pixels of label `index` whose color is no class's."""
        return int(color_labels(self.samples[index].label, self.classes)[1].sum())


def _by_key(folder: Path) -> dict[str, Path]:
    """Find the images in `folder` by what names of an image and of its mask have in common, in any edition."""
    return {name.removesuffix("_mask").removesuffix("_Clipped"): file for name, file in image_files(folder).items()}
