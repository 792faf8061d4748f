"""What labels hold: the pixels of each class, and how well a guess that never sees an image would do.

A few hundred labels are read before training, so that what would stop a run after hours stops it after seconds. There
are three sources, the cheapest first: what `prepare.py check` or an earlier start remembered (`count_classes`), a
sample (`check_samples`), and all labels (`class_pixels`). The guess gives a figure that any network must beat.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from base.base_dataset import DatasetView, Examples
from dataloader.scan import class_pixels_of, default_cache, examine, has_files, remembered_values
from utils.classes import IGNORE, count_values
from utils.errors import DataError
from utils.metrics import ConfusionMatrix
from utils.reproducibility import stream
from utils.shards import is_packed, read_bytes

SAMPLES = 200  # labels to read
DRAWN = 20  # labels to draw where they are generated: no file of theirs can be wrong
IMAGES = 8  # of them, those whose image is read too
GRID = (90, 120)  # resolution of the location prior, height and width


@dataclass(frozen=True)
class DataCheck:
    """What is known of labels.

    Args:
        labels: Number of labels read.
        pixels: Pixels of each class in them, (C,) int64.
        void: Pixels of void in them.
        unsure: Pixels that have one of several classes.
    """

    labels: int
    pixels: np.ndarray
    void: int
    unsure: int = 0

    def __add__(self, other: DataCheck) -> DataCheck:
        unsure = self.unsure + other.unsure
        return DataCheck(self.labels + other.labels, self.pixels + other.pixels, self.void + other.void, unsure)

    def describe(self, names: Sequence[str]) -> str:
        """Say it in a sentence, with the classes that did not occur."""
        total = max(int(self.pixels.sum()) + self.void + self.unsure, 1)
        absent = [name for name, count in zip(names, self.pixels, strict=True) if not count]
        text = f"{self.labels} labels read, {self.void / total:.1%} void"
        if self.unsure:
            text += f", {self.unsure / total:.1%} one of several classes"
        return f"{text}, never seen: {', '.join(absent)}" if absent else text


def count_labels(labels: Iterable[np.ndarray], num_classes: int) -> DataCheck:
    """Count the pixels of each class in labels (H, W) uint8 of training ids."""
    counts, read = np.zeros(256, np.int64), 0
    for label in labels:
        counts += count_values(label)
        read += 1
    return DataCheck(read, counts[:num_classes], int(counts[IGNORE]), int(counts[num_classes:IGNORE].sum()))


def count_classes(view: Examples) -> DataCheck | None:
    """Return the pixels of each class in all labels of `view`, as `prepare.py check` counted them; None unless it did.

    Raises:
        DataError: It found an example that cannot be used, and that is still so.
    """
    total: DataCheck | None = None
    counts = [_count_classes(each) for each in view.views]
    for count in counts:
        if count is None:
            return None
        total = count if total is None else total + count
    return total


def _count_classes(view: DatasetView) -> DataCheck | None:
    dataset = view.dataset
    found = remembered_values(dataset, [int(index) for index in view.indices], default_cache())
    if found is None:
        return None
    if view.on_bad_sample == "stop" and not found.usable.all():
        dataset.read(int(view.indices[int(found.usable.argmin())]))
        return None  # nothing is wrong with it any more
    pixels, void = class_pixels_of(dataset, found.pixels)
    return DataCheck(int(found.readable.sum()), pixels, void, int(found.pixels.sum() - pixels.sum()) - void)


def look_at(view: Examples) -> DataCheck:
    """Return what is known of all labels of `view` or, where nothing is, what some of them say.

    Raises:
        DataError: One cannot be used.
    """
    return count_classes(view) or check_samples(view)


def class_pixels(view: Examples, num_workers: int = 0) -> list[int]:
    """Count the labelled pixels of each class over all labels of `view`; of files, they are remembered.

    Raises:
        DataError: One cannot be used.
    """
    counted = count_classes(view)
    if counted is None:
        for each in view.views:
            if has_files(each.dataset) and count_classes(each) is None:
                examine(each.dataset, name="labels", images=False, num_workers=num_workers, cache=default_cache())
        counted = count_classes(view) or count_labels(view.labels(), len(view.classes))
    return [int(count) for count in counted.pixels]


def some_indices(length: int, seed: int, count: int = SAMPLES) -> np.ndarray:
    """Draw up to `count` indices, ascending; the same ones however often this is done."""
    chosen: np.ndarray = stream(seed, "split", 1).permutation(length)[:count]
    return np.sort(chosen)


def check_samples(view: Examples, *, everything: bool = False) -> DataCheck:
    """Read some labels of `view` and the image of a few, or `everything`.

    Raises:
        DataError: One cannot be used; it names the file and what would help.
    """
    return count_labels(_labels_to_check(view, everything), len(view.classes))


def _labels_to_check(view: Examples, everything: bool) -> Iterator[np.ndarray]:
    count = SAMPLES if any(has_files(each.dataset) for each in view.views) else DRAWN
    chosen = np.arange(len(view)) if everything else some_indices(len(view), view.seed, count)
    for number, index in enumerate(chosen):
        try:
            yield view.original(index).label if everything or number < IMAGES else view.label(index)
        except DataError:
            if everything or view.on_bad_sample == "stop":
                raise


def largest_image(view: Examples) -> tuple[int, int]:
    """Return height and width of the image of `view` with the most pixels, as its file says.

    Of kinds that Pillow does not know, up to `SAMPLES` are read; of generated images, one.
    """
    largest = (0, 0)
    for each in view.views:
        left = SAMPLES if has_files(each.dataset) else 1
        for index in each.indices:
            size = _size_in_file(each.dataset.samples[index].image)
            if size is None and left:
                left -= 1
                size = _size_by_reading(each, int(index))
            largest = max(largest, size or (0, 0), key=math.prod)
    return largest


def _size_in_file(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(read_bytes(path)) if is_packed(path) else path) as image:
            return image.height, image.width
    except (OSError, ValueError, DataError, Image.DecompressionBombError):  # no file, or none of Pillow's kinds
        return None


def _size_by_reading(view: DatasetView, index: int) -> tuple[int, int] | None:
    try:
        height, width = view.dataset.read(index).label.shape
    except DataError:
        if view.on_bad_sample == "stop":
            raise
        return None
    return height, width


def location_prior(train: Examples, val: Examples) -> float:
    """Measure the mean IoU on `val` of always guessing the class that was most frequent at that pixel in `train`.

    Up to `SAMPLES` labels of each are read and resized to `GRID`; both count only as far as they are annotated.
    """
    names, num_classes = train.classes.names, len(train.classes)
    votes = np.zeros((num_classes, *GRID), np.int64)
    for label in _small_labels(train):
        votes += label == np.arange(num_classes)[:, None, None]
    guess = torch.from_numpy(votes.argmax(axis=0).astype(np.uint8))[None]
    matrix = ConfusionMatrix(num_classes, names, train.classes.ignored_classes)
    for label in _small_labels(val):
        matrix.update(guess, torch.from_numpy(label)[None])
    return matrix.results().get("Mean_IoU", 0.0)


def _small_labels(view: Examples) -> Iterator[np.ndarray]:
    for label in view.labels(some_indices(len(view), view.seed).tolist()):
        yield cv2.resize(label, GRID[::-1], interpolation=cv2.INTER_NEAREST)
