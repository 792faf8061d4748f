"""ADE20K, as the MIT Scene Parsing Benchmark has it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from base.base_dataset import BaseDataset, Sample
from dataloader.datasets.files import first_folder, image_files, pair
from utils.classes import ClassTable
from utils.registry import DATASETS


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class ADE20K(BaseDataset):
    """Indoor and outdoor scenes with 150 classes: 20,210 training, 2,000 validation.

    Expects ``images/{training,validation}/`` and ``annotations/...`` in `data_dir` or in its folder
    ``ADEChallengeData2016``. Value k of a label is class k - 1, and 0 is void. The skyscraper's color differs from
    the published one, which is the road's too, by 1.

    Source: Zhou et al. 2017, "Scene parsing through ADE20K dataset"; http://sceneparsing.csail.mit.edu.

    Args:
        include_other: Make value 0, all that has no class, the first of 151 classes instead of void.
    """

    include_other: bool = False

    reading_options: ClassVar[tuple[str, ...]] = ("label_map", "include_other")
    splits: ClassVar[tuple[str, ...]] = ("training", "validation")
    mean: ClassVar[tuple[float, ...]] = (0.48897059, 0.46548275, 0.4294)
    std: ClassVar[tuple[float, ...]] = (0.22861765, 0.22948039, 0.24054667)

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        # 255 is not void: it occurs only in labels that were shifted by 1 beforehand, which would train as nonsense.
        table = ClassTable.read(Path(__file__).parent / "classes" / "ade20k.csv", void_ids=(0,))
        if not options.get("include_other"):
            return table
        return replace(
            table,
            names=("other", *table.names),
            colors=((0, 0, 0), *table.colors),
            raw_ids=((0,), *table.raw_ids),
            void_ids=(),
        )

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        home = first_folder(root / "ADEChallengeData2016" / "images", root / "images").parent
        return pair(image_files(home / "images" / split), image_files(home / "annotations" / split), self.problems)
