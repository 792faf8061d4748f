"""A quick look at the data before training; the thorough one is a command of its own.

It reads a few hundred labels, so that what would stop a run after hours stops it after seconds, and finds out what
a guess that never looks at the image would score: a figure that any network must beat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import cv2
import numpy as np
from PIL import Image

from base.base_dataset import DatasetView, Examples
from dataloader.scan import count_labels, default_cache, examine, has_files, remembered
from utils.classes import IGNORE
from utils.errors import DataError
from utils.reproducibility import stream


def count_classes(view: Examples) -> DataCheck | None:
    """Pixels of each class in all labels of `view`, as `prepare.py check` counted them; None unless it did.

    Raises:
        DataError: It found an example that cannot be used, and that is still so.
    """
    counts = [_count_classes(part) for part in view.views]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return DataCheck(*(sum(numbers) for numbers in zip(*map(astuple, known), strict=True)))


def _count_classes(view: DatasetView) -> DataCheck | None:
    records = remembered(view.dataset, [int(index) for index in view.indices], default_cache())
    if records is None:
        return None
    pixels, void, unusable = count_labels(view.dataset, records)
    if view.on_bad_sample == "stop" and unusable:
        view.dataset.read(unusable[0])
        return None  # nothing is wrong with it any more
    return DataCheck(len(records) - len(unusable), pixels, void)


def look_at(view: Examples) -> DataCheck:
    """What is known of all labels of `view` or, where nothing is, what some of them say.

    Raises:
        DataError: One cannot be used.
    """
    return count_classes(view) or check_samples(view)


def class_pixels(view: Examples, num_workers: int = 0) -> list[int]:
    """Labelled pixels of each class, counted over all labels of `view`; of files, they are remembered.

    Raises:
        DataError: One cannot be used.
    """
    for part in view.views:
        if has_files(part.dataset) and count_classes(part) is None:
            examine(part.dataset, name="labels", images=False, num_workers=num_workers, cache=default_cache())
    if (known := count_classes(view)) is not None:
        return known.pixels.tolist()
    counts = np.zeros(256, np.int64)
    for label in view.labels():
        counts += np.bincount(label.ravel(), minlength=256)
    return counts[: len(view.classes)].tolist()


SAMPLES = 200  # labels to read

GRID = (90, 120)  # resolution of the location prior


@dataclass(frozen=True)
class DataCheck:
    """What a look at some labels found.

    Args:
        labels: Number of labels read.
        pixels: Pixels of each class in them, (C,).
        void: Pixels of void in them.
    """

    labels: int
    pixels: np.ndarray
    void: int

    def describe(self, names: Sequence[str]) -> str:
        """In a sentence, with the classes that did not occur."""
        total = max(int(self.pixels.sum()) + self.void, 1)
        absent = [name for name, count in zip(names, self.pixels, strict=True) if not count]
        text = f"{self.labels} labels read, {self.void / total:.1%} void"
        return f"{text}, never seen: {', '.join(absent)}" if absent else text


def some_indices(length: int, seed: int) -> np.ndarray:
    """Up to `SAMPLES` indices, drawn without regard to how often this is done."""
    return np.sort(stream(seed, "split", 1).permutation(length)[:SAMPLES])


def check_samples(view: Examples, *, everything: bool = False) -> DataCheck:
    """Read some labels of `view` and the image of a few, or `everything`.

    Raises:
        DataError: One cannot be used; it names the file and what would help.
    """
    num_classes, counts, read = len(view.classes), np.zeros(256, np.int64), 0
    chosen = np.arange(len(view)) if everything else some_indices(len(view), view.seed)
    for number, index in enumerate(chosen):
        try:
            label = view.original(index).label if everything or number < 8 else view.label(index)
        except DataError:
            if everything or view.on_bad_sample == "stop":
                raise
            continue
        counts += np.bincount(label.ravel(), minlength=256)
        read += 1
    return DataCheck(read, counts[:num_classes], int(counts[IGNORE]))


def largest_image(view: Examples) -> tuple[int, int]:
    """Height and width of the image of `view` with the most pixels, as its file says; no image is decoded."""
    largest = (0, 0)
    for part in view.views:
        for index in part.indices:
            try:
                with Image.open(part.dataset.samples[index].image) as image:
                    largest = max(largest, (image.height, image.width), key=math.prod)
            except (OSError, ValueError, Image.DecompressionBombError):  # not a file, or none of Pillow's kinds
                height, width = part.dataset.read(index).label.shape
                largest = max(largest, (height, width), key=math.prod)
                break
    return largest


def location_prior(train: Examples, val: Examples) -> float:
    """Mean IoU on `val` of always guessing the class that was most frequent at that place in `train`.

    Measured on up to `SAMPLES` labels of each, resized to `GRID`; both only as far as labels are annotated.
    """
    num_classes = len(train.classes)
    votes = np.zeros((num_classes, *GRID), np.int64)
    for label in _small_labels(train):
        votes += label == np.arange(num_classes)[:, None, None]
    prior = votes.argmax(axis=0)
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for label in _small_labels(val):
        labelled = label < num_classes
        pairs = label[labelled].astype(np.int64) * num_classes + prior[labelled]
        matrix += np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    hits = matrix.diagonal()
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - hits
    return float((hits[union > 0] / union[union > 0]).mean()) if union.any() else 0.0


def _small_labels(view: Examples) -> Iterator[np.ndarray]:
    for label in view.labels(some_indices(len(view), view.seed).tolist()):
        yield cv2.resize(label, GRID[::-1], interpolation=cv2.INTER_NEAREST)
