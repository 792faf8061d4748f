"""COCO-Stuff: COCO's photographs with things and stuff."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from base.base_dataset import BaseDataset, Sample
from dataloader.datasets.files import all_present, below, first_folder, image_files, pair, read_list
from utils.classes import IGNORE, ClassTable
from utils.errors import ConfigError, DataError, Fault, Problem
from utils.images import read_label_values
from utils.registry import DATASETS
from utils.shards import read_bytes

SPLITS = {"CocoStuff164k": ("train2017", "val2017"), "CocoStuff10k": ("train", "test", "all")}
# Categories, by COCO's ids, that were named before annotation and never used.
UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class COCO(BaseDataset):
    """Photographs with 80 kinds of things and 91 of stuff: 118,287 train2017, 5,000 val2017; 10k: 9,000 and 1,000.

    CocoStuff164k expects ``images/SPLIT/`` and ``annotations/SPLIT/`` (or ``stuffthingmaps/SPLIT/``) in `data_dir`;
    CocoStuff10k ``imageLists/SPLIT.txt``, ``images/`` and ``annotations/`` with .mat files, which need scipy. The
    size of 513x513 that others warp the 10k images to is ``"resize": {"size": [513, 513]}``.

    Source: Caesar et al. 2018, https://arxiv.org/abs/1612.03716.

    Args:
        partition: Which of the two datasets.
        label_set: 171 classes, as papers report, or all 182 ids, 11 of which never occur.
    """

    partition: Literal["CocoStuff164k", "CocoStuff10k"] = "CocoStuff164k"
    label_set: Literal[171, 182] = 171

    reading_options: ClassVar[tuple[str, ...]] = ("label_map", "label_set")
    splits: ClassVar[tuple[str, ...]] = (*SPLITS["CocoStuff164k"], *SPLITS["CocoStuff10k"])
    mean: ClassVar[tuple[float, ...]] = (0.43931922, 0.41310471, 0.37480941)
    std: ClassVar[tuple[float, ...]] = (0.24272706, 0.23649098, 0.23429529)

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        partition, split = options.get("partition", "CocoStuff164k"), options.get("split")
        if split in cls.splits and split not in SPLITS[partition]:
            shown = ", ".join(SPLITS[partition])
            raise ConfigError(f"split: {partition} has no '{split}'. Use one of {shown}, or the other partition.")
        table = ClassTable.read(Path(__file__).parent / "classes" / "cocostuff.csv")
        if options.get("label_set", 171) == 182:
            return table
        kept = [i for i, (raw,) in enumerate(table.raw_ids) if raw + 1 not in UNUSED_IDS]
        return replace(
            table,
            names=tuple(table.names[i] for i in kept),
            colors=tuple(table.colors[i] for i in kept),
            raw_ids=tuple(table.raw_ids[i] for i in kept),
        )

    @property
    def sources(self) -> frozenset[str]:
        """The split, or train and test of "all"."""
        return frozenset({"train", "test"} if self.split == "all" else {self.split})

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        if self.partition == "CocoStuff164k":
            labels = first_folder(root / "annotations" / split, root / "stuffthingmaps" / split)
            return pair(image_files(root / "images" / split), image_files(labels), self.problems)
        path = first_folder(root / "imageLists") / f"{split}.txt"
        samples = []
        for number, name in read_list(path):
            where = f"{path}, line {number}"
            image = below(root, f"images/{name}.jpg", where)
            samples.append(Sample(name, image, below(root, f"annotations/{name}.mat", where)))
        return all_present(samples, path, self.problems)

    def read_raw(self, path: Path) -> np.ndarray:
        """Read COCO's ids less 1, and 255 for void, (H, W) uint8, whatever type a file stores them in."""
        if path.suffix == ".mat":
            values = read_mat(path, "S").astype(np.int64) - 1  # before unsigned 0 would become 255 or 65535
        else:
            values = read_label_values(path)
            if values.dtype == np.uint8:
                return values
        values = np.where((values == -1) | (values == 2**16 - 1), IGNORE, values)
        wrong = values[(values < 0) | (values > IGNORE)]
        if wrong.size:
            what = f"holds {wrong[0]}, which is no id of COCO-Stuff"
            raise DataError(Problem(Fault.OTHER, path, what, "Get the file again"))
        return values.astype(np.uint8)


def read_mat(path: Path, *names: str) -> np.ndarray:
    """Read the matrix (H, W) in a MATLAB file that `names` lead to, through structures.

    Raises:
        DataError: scipy is not installed, or the file has no such matrix.
    """
    try:
        from scipy.io import loadmat
    except ImportError:
        what = "reading .mat files needs scipy"
        raise DataError(Problem(Fault.MISSING_PACKAGE, path, what, "Install it: `pip install scipy`")) from None
    try:
        value = loadmat(io.BytesIO(read_bytes(path)), variable_names=names[:1])[names[0]]
        for name in names[1:]:
            value = value[name][0, 0]  # a structure is a matrix of structures
    except Exception as error:  # scipy raises whatever a damaged file makes it stumble over
        what = f"no readable '{'.'.join(names)}' in it ({type(error).__name__})"
        raise DataError(Problem(Fault.OTHER, path, what, "Get the file again")) from None
    return np.asarray(value)
