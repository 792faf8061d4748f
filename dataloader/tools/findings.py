"""What the doctor is given, a split and what was read of it, and what it gives: findings."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from base.base_dataloader import MOST_SKIPPED
from base.base_dataset import BaseDataset
from dataloader.scan import Record, class_pixels_of, sum_values
from dataloader.transforms.chain import ChainOptions
from utils.classes import ClassTable
from utils.errors import Problem

SHOWN = 5  # files that a finding names


@dataclass(frozen=True)
class Finding:
    """Something wrong with a dataset.

    Args:
        kind: What it is, in two words.
        where: Split, or splits.
        what: What was found, in a sentence without its full stop.
        fix: The line of a config, or else the deed, that fixes it.
        files: Where; at most `SHOWN` are printed.
    """

    kind: str
    where: str
    what: str
    fix: str
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Write it for people to read."""
        shown = ", ".join(self.files[:SHOWN]) + (", ..." if len(self.files) > SHOWN else "")
        named = f": {shown}" if self.files else ""
        return [f"{self.where}: {self.kind}: {self.what}{named}", f"    fix: {self.fix}"]


@dataclass
class Examined:
    """A split and what was read of it.

    Args:
        split: Its name.
        dataset: Whose it is.
        records: From `scan.examine`.
        unpaired: Files without counterpart.
        training: Whether it is what is trained on.
        crop: Height and width that images are cropped to without being resized before; None if not known.
        batch_size: Images per step; None if not known.
        held_out: How many of the examples are not trained on.
        validated: Keys of those that are held out; empty where that is not known.
        skips: Whether the loader skips some files that cannot be used.
        sources: What it is put together from, where splits may share images by design; empty: they may not.
        joined: Others that are trained on together with it.
        chains: How a config prepares images to train on, and those to validate on; None if not known.
    """

    split: str
    dataset: BaseDataset
    records: Mapping[str, Record]
    unpaired: Sequence[Problem] = ()
    training: bool = True
    crop: tuple[int, int] | None = None
    batch_size: int | None = None
    held_out: int = 0
    validated: frozenset[str] = frozenset()
    skips: bool = False
    sources: frozenset[str] = frozenset()
    joined: Sequence[Examined] = ()
    chains: tuple[ChainOptions, ChainOptions] | None = None

    @property
    def classes(self) -> ClassTable:
        """The dataset's classes."""
        return self.dataset.classes

    @property
    def unusable(self) -> int:
        """How many examples cannot be used."""
        return sum(bool(record.problems) for record in self.records.values())

    @property
    def are_few(self) -> bool:
        """Whether a loader may skip all examples that cannot be used."""
        return self.unusable <= max(1, int(MOST_SKIPPED * len(self.records)))

    def values(self) -> np.ndarray:
        """Add up the pixels of each value of the labels, (256,)."""
        return sum_values(self.records.values())

    def pixels(self) -> tuple[np.ndarray, int]:
        """Add up the labelled pixels of each class, (C,), and those of void."""
        return class_pixels_of(self.dataset, self.values())

    def keys(self, condition: Callable[[Record], bool]) -> tuple[str, ...]:
        """Return the keys of the records that a condition holds for."""
        return tuple(key for key, record in self.records.items() if condition(record))

    def showing(self, values: Collection[int]) -> tuple[str, ...]:
        """Return the keys of the labels that hold one of `values`."""
        wanted = set(map(str, values))
        return self.keys(lambda record: not wanted.isdisjoint(record.values))

    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Compute mean and standard deviation of the channels over all pixels of the images, 0 to 1."""
        seen = [record for record in self.records.values() if record.mean is not None]
        if not seen:
            return None
        weights = np.array([record.pixels for record in seen], np.float64)
        mean = np.average([record.mean for record in seen], axis=0, weights=weights)
        square = np.average([record.square for record in seen], axis=0, weights=weights)
        return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()
