"""Labels that a model contradicts: suspicious regions, ranked.

Looked at are two kinds of regions: objects of the label, connected pixels of one class, for most of which the model
says other classes; and connected pixels of one label for which it says one other class. A region counts by the mean of
-log p of its label, times sqrt(depth / 4) of its deepest pixel: contours are drawn and predicted a little beside each
other. This product was chosen among a dozen by errors that were planted, see benchmarks/label_errors.py.

Source: Northcutt et al. 2021, Confident learning, https://arxiv.org/abs/1911.00068, "normalized and self-confidence"
rankings, and Lad and Mueller 2023, https://arxiv.org/abs/2307.05080, for segmentation; here for single regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from utils.epoch_figures import PredictedBatch
from utils.losses.strips import cross_entropies

SMALLEST = 20  # pixels of a region
NARROWEST = 1.5  # pixels from the middle of a region to its edge
THICK = 4.0  # such pixels at which that mean counts once; it is multiplied by sqrt(depth / 4), without a limit
MOST_OF_IMAGE = 50  # regions that are kept of one image
SUSPICIOUS = 2.0  # score from which on a region is a finding: of that thickness, e^-2 = 14 % for the label
WHOLE = 0.7  # share of an object that a region has to cover for the object to be meant


class Box(NamedTuple):
    """Rows and columns that a region lies in, ends excluded."""

    top: int
    left: int
    bottom: int
    right: int


@dataclass(frozen=True)
class Suspect:
    """A region of a label that is contradicted.

    Args:
        key: Name of the image.
        given: Class in the label.
        predicted: Class that the model says for most of it.
        kind: "class" if an object has another class; "missing" if most of an object is not in the label; "outline" for
            parts of objects.
        box: Where it is.
        pixels: Its size.
        score: How suspicious it is: the mean of -log p of the label times sqrt(depth / 4), where depth is the pixels
            from its middle to its edge. Thin regions count less, thick ones more.
    """

    key: str
    given: int
    predicted: int
    kind: str
    box: Box
    pixels: int
    score: float


class Region(NamedTuple):
    """A connected region of a label map.

    Args:
        box: Where it is.
        inside: Its pixels in the box, bool.
        depth: Distance of each of them to the nearest pixel outside, in pixels.
    """

    box: Box
    inside: np.ndarray
    depth: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """The box, to cut it out of a map."""
        return slice(self.box.top, self.box.bottom), slice(self.box.left, self.box.right)

    @property
    def core(self) -> np.ndarray:
        """The pixels that are at least half as deep as the deepest, bool."""
        return np.asarray(self.depth >= self.depth.max() / 2)

    @property
    def pixels(self) -> int:
        """Its size."""
        return int(np.count_nonzero(self.inside))


class Objects(NamedTuple):
    """The connected objects of a class in a label map.

    Args:
        numbers: Which object each pixel is of, from 1, (H, W).
        areas: Pixels of each, by its number.
    """

    numbers: np.ndarray
    areas: np.ndarray


class SuspectFinder:
    """Find suspicious regions, image by image; listens to `evaluate`.

    Args:
        num_classes: Classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.found: list[Suspect] = []

    def listen(self, batch: PredictedBatch) -> None:
        """Look at a batch."""
        labels = batch.labels.masked_fill(batch.labels >= self.num_classes, 255)
        losses = cross_entropies(batch.logits, labels).float().cpu().numpy()
        for index, key in enumerate(batch.keys):
            self.add(key, labels[index].cpu().numpy(), batch.predicted[index].cpu().numpy(), losses[index])

    def add(self, key: str, label: np.ndarray, predicted: np.ndarray, losses: np.ndarray) -> None:
        """Look at an image: label and prediction (H, W) uint8, and -log p of the label (H, W) float32."""
        found = [
            *objects_of_another_class(key, label, predicted, losses, self.num_classes),
            *parts_of_another_class(key, label, predicted, losses, self.num_classes),
        ]
        self.found += sorted(found, key=lambda each: -each.score)[:MOST_OF_IMAGE]

    def ranking(self) -> list[Suspect]:
        """Give all regions, most suspicious first."""
        return sorted(self.found, key=lambda each: (-each.score, each.key, each.box))


def regions(mask: np.ndarray) -> Iterator[Region]:
    """Give the connected regions of a mask (H, W) bool that are neither small nor thin."""
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for number in range(1, count):
        left, top, width, height, pixels = stats[number].tolist()
        if pixels < SMALLEST:
            continue
        box = Box(top, left, top + height, left + width)
        inside = numbers[box.top : box.bottom, box.left : box.right] == number
        depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        if depth.max() >= NARROWEST:
            yield Region(box, inside, depth)


def score(region: Region, losses: np.ndarray) -> float:
    """Return how suspicious a region is, by -log p of the label (H, W)."""
    thickness = float(region.depth.max()) / THICK
    return math.sqrt(thickness) * float(losses[region.window][region.inside].mean())


def objects_of_another_class(
    key: str, label: np.ndarray, predicted: np.ndarray, losses: np.ndarray, num_classes: int
) -> Iterator[Suspect]:
    """Find objects of the label for most of whose core the model says other classes."""
    for given in np.unique(label[label < num_classes]).tolist():
        for region in regions(label == given):
            counts = np.bincount(predicted[region.window][region.core], minlength=num_classes)
            agreed = counts[given]
            counts[given] = 0
            if agreed < counts.sum():
                other = int(counts.argmax())
                yield Suspect(key, given, other, "class", region.box, region.pixels, score(region, losses))


def parts_of_another_class(
    key: str, label: np.ndarray, predicted: np.ndarray, losses: np.ndarray, num_classes: int
) -> Iterator[Suspect]:
    """Find pixels of one label for which the model says one other class, unless they are an object of the label."""
    wrong = (label < num_classes) & (label != predicted)
    pairs = label.astype(np.int32) * 256 + predicted
    objects: dict[tuple[str, int], Objects] = {}  # of each class in the label and in the prediction
    for pair in np.unique(pairs[wrong]).tolist():
        given, other = divmod(pair, 256)
        for name, labels, own in (("label", label, given), ("prediction", predicted, other)):
            if (name, own) not in objects:
                objects[name, own] = objects_in(labels == own)
        for region in regions((pairs == pair) & wrong):
            if not is_most_of_its_object(region, objects["label", given]):
                missing = is_most_of_its_object(region, objects["prediction", other])
                kind = "missing" if missing else "outline"
                yield Suspect(key, given, other, kind, region.box, region.pixels, score(region, losses))


def objects_in(mask: np.ndarray) -> Objects:
    """Number the connected objects of a mask (H, W) bool."""
    _, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return Objects(numbers, stats[:, cv2.CC_STAT_AREA])


def is_most_of_its_object(region: Region, objects: Objects) -> bool:
    """Whether a region covers most of the object that it lies in."""
    host = int(objects.numbers[region.window][region.inside].max())
    return bool(region.pixels >= WHOLE * objects.areas[host])
