"""Labels that a model contradicts where it has not been trained on them: suspicious regions, ranked.

A suspect is a connected region of pixels with one label for which the model says one other class. The region counts by
its core, since contours are drawn and predicted a little beside each other; by how much surer the model is of the other
class than of the label; and less, the more often the model takes the one class for the other in all images.

Source: Northcutt et al. 2021, Confident learning, https://arxiv.org/abs/1911.00068, equations 1 and 2, for the sureness
that a class usually gets; Lad and Mueller 2023, https://arxiv.org/abs/2307.05080, for ranking by single regions instead
of by averages over an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from utils.epoch_figures import PredictedBatch
from utils.losses.strips import cross_entropies, winning_probabilities

SMALLEST = 20  # pixels of a region
NARROWEST = 1.5  # pixels from the middle of a region to its edge
MOST_OF_IMAGE = 50  # regions that are kept of one image
SUSPICIOUS = 0.5  # score from which on a region is a finding
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
        predicted: Class that the model says.
        kind: "class" if most of an object has another class; "missing" if most of an object is not in the label;
            "outline" for parts of objects.
        box: Where it is.
        pixels: Its size.
        radius: Distance from its middle to its edge, in pixels, of the largest circle within.
        given_p: Mean probability of the given class.
        predicted_p: That of the predicted class.
        score: How suspicious it is, 0 to 1; set once all images have been seen.
    """

    key: str
    given: int
    predicted: int
    kind: str
    box: Box
    pixels: int
    radius: float
    given_p: float
    predicted_p: float
    score: float = 0.0


class SuspectFinder:
    """Find suspicious regions, image by image; listens to `evaluate`.

    Args:
        num_classes: Classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.found: list[Suspect] = []
        self.pixels = np.zeros((num_classes, num_classes), np.int64)  # by label and prediction
        self.sureness = np.zeros(num_classes)  # sum of the probabilities of each label at its pixels

    def listen(self, batch: PredictedBatch) -> None:
        """Look at a batch."""
        labels = batch.labels.masked_fill(batch.labels >= self.num_classes, 255)
        size = (labels.shape[-2], labels.shape[-1])
        given = cross_entropies(batch.logits, labels).neg().exp().float().cpu().numpy()
        predicted = winning_probabilities(batch.logits, size).float().cpu().numpy()
        for index, key in enumerate(batch.keys):
            maps = (labels[index].cpu().numpy(), batch.predicted[index].cpu().numpy())
            self.add(key, *maps, given[index], predicted[index])

    def add(
        self, key: str, label: np.ndarray, predicted: np.ndarray, given_p: np.ndarray, predicted_p: np.ndarray
    ) -> None:
        """Look at an image: label and prediction (H, W) uint8, and the probabilities of both, (H, W) float32."""
        labelled = label < self.num_classes
        codes = label[labelled].astype(np.int64) * self.num_classes + predicted[labelled]
        self.pixels += np.bincount(codes, minlength=self.num_classes**2).reshape(self.pixels.shape)
        self.sureness += np.bincount(label[labelled], given_p[labelled], minlength=self.num_classes)
        regions = sorted(self._regions(key, label, predicted, given_p, predicted_p), key=lambda each: -each.pixels)
        self.found += regions[:MOST_OF_IMAGE]

    def _regions(
        self, key: str, label: np.ndarray, predicted: np.ndarray, given_p: np.ndarray, predicted_p: np.ndarray
    ) -> Iterator[Suspect]:
        wrong = (label < self.num_classes) & (label != predicted)
        pairs = label.astype(np.int32) * 256 + predicted
        for pair in np.unique(pairs[wrong]).tolist():
            given, other = divmod(pair, 256)
            mask = ((pairs == pair) & wrong).astype(np.uint8)
            count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            for number in range(1, count):
                left, top, width, height, pixels = stats[number].tolist()
                if pixels < SMALLEST:
                    continue
                window = (slice(top, top + height), slice(left, left + width))
                inside = numbers[window] == number
                depth = cv2.distanceTransform(np.pad(inside, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
                radius = float(depth.max())
                if radius < NARROWEST:
                    continue
                core = depth >= radius / 2
                box = Box(top, left, top + height, left + width)
                kind = kind_of(label, predicted, box, inside, (given, other))
                sure = float(given_p[window][core].mean()), float(predicted_p[window][core].mean())
                yield Suspect(key, given, other, kind, box, pixels, radius, *sure)

    def ranking(self) -> list[Suspect]:
        """Score all regions by what was seen of all images, most suspicious first."""
        totals = self.pixels.sum(axis=1)
        usual = self.sureness / np.maximum(totals, 1)  # of each class, at its pixels
        confused = self.pixels / np.maximum(totals, 1)[:, None]
        scored = [replace(each, score=score(each, usual, confused)) for each in self.found]
        return sorted(scored, key=lambda each: (-each.score, each.key, each.box))


def kind_of(label: np.ndarray, predicted: np.ndarray, box: Box, inside: np.ndarray, classes: tuple[int, int]) -> str:
    """Say whether a region is most of an object of the label, most of one of the prediction, or a part.

    Args:
        label: (H, W) uint8.
        predicted: Likewise.
        box: Of the region.
        inside: Its pixels in the box, bool.
        classes: The given and the predicted one.
    """
    for kind, labels, own in (("class", label, classes[0]), ("missing", predicted, classes[1])):
        numbers = cv2.connectedComponents((labels == own).astype(np.uint8), connectivity=8)[1]
        hosts = numbers[box.top : box.bottom, box.left : box.right][inside]
        host = int(np.bincount(hosts).argmax())
        if np.count_nonzero(inside) >= WHOLE * np.count_nonzero(numbers == host):
            return kind
    return "outline"


def score(suspect: Suspect, usual: np.ndarray, confused: np.ndarray) -> float:
    """Return how suspicious a region is, 0 to 1.

    Args:
        suspect: The region.
        usual: Mean probability that each class gets at the pixels labelled so, (C,).
        confused: Share of the pixels of each label that have each prediction, (C, C).
    """
    margin = max(0.0, suspect.predicted_p - suspect.given_p)
    sure = min(1.0, suspect.predicted_p / max(float(usual[suspect.predicted]), 1e-6))
    core = 1 - math.exp(-suspect.radius / 4)
    rare = (1 - float(confused[suspect.given, suspect.predicted])) ** 2
    return margin * sure * core * rare
