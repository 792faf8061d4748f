"""Where the wrong pixels of a prediction are, so that one knows what would help.

Every wrong pixel is of exactly one kind, the first of these that fits:

missed        It belongs to an object of the truth of which less than a tenth was found.
hallucinated  It belongs to an object of the prediction of which less than a tenth is there.
boundary      It is at most 3 pixels (in rows and columns) from a contour of the truth.
interior      All others: inside an object that was found, but partly taken for something else.

An object is a connected region of one class (8 neighbors) of at least 20 pixels; the specks below count by where they
lie. Void pixels are neither right nor wrong, and the edge between a class and void is a contour.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import numpy as np

KINDS = ("missed", "hallucinated", "boundary", "interior")
MISSED, HALLUCINATED, BOUNDARY, INTERIOR = range(1, 5)

BAND = 3  # pixels
FOUND = 0.1  # share of an object that has to be there for it to count as found
SMALLEST = 20  # pixels of an object
SIZE_BINS = 16  # of objects: 1, 2, 4 ... pixels
VOID = 255


class Regions(NamedTuple):
    """Connected regions of one class in a label map."""

    places: np.ndarray  # (P,) the pixels of the class, as indices into the flattened map
    numbers: np.ndarray  # (P,) int32: the region of each, from 1
    areas: np.ndarray  # (R + 1,) pixels of each region
    hits: np.ndarray  # (R + 1,) pixels of each that the other label map has too

    @property
    def is_object(self) -> np.ndarray:
        """Which regions are objects, (R + 1,) bool."""
        found = self.areas >= SMALLEST
        found[0] = False
        return found

    @property
    def not_there(self) -> np.ndarray:
        """Which of them the other label map does not have, (R + 1,) bool."""
        return self.is_object & (self.hits < FOUND * self.areas)


class ErrorMap(NamedTuple):
    """The errors of one image."""

    kinds: np.ndarray  # (H, W) uint8: 0 for right or void, else 1 + index in KINDS
    objects: dict[int, np.ndarray]  # areas of the truth's objects in pixels, by class
    missed: dict[int, int]  # how many of them were missed


def all_regions(labels: np.ndarray, other: np.ndarray, num_classes: int) -> Iterator[tuple[int, Regions]]:
    """Connected regions of every class in `labels` (H, W) uint8, and how much of each `other` (H, W) has too."""
    width = labels.shape[1]
    flat = labels.ravel()
    same = flat == other.ravel()
    places = np.argsort(flat, kind="stable").astype(np.int32)  # all pixels, class by class
    bounds = np.concatenate([[0], np.bincount(flat, minlength=256).cumsum()])
    for index in range(num_classes):
        own = places[bounds[index] : bounds[index + 1]]
        if not len(own):
            continue
        top, bottom = int(own[0]) // width, int(own[-1]) // width
        # Whole rows, so that a place in them is one number: that costs less than narrower windows would save.
        found = cv2.inRange(labels[top : bottom + 1], index, index)
        count, numbered = cv2.connectedComponents(found, connectivity=8)
        numbers = numbered.ravel().take(own - top * width)
        areas = np.bincount(numbers, minlength=count)
        hits = np.bincount(numbers[same.take(own)], minlength=count)
        yield index, Regions(own, numbers, areas, hits)


def object_areas(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Areas (K,) in pixels of the objects of all classes in `labels` (H, W) uint8."""
    found = [regions.areas[regions.is_object] for _, regions in all_regions(labels, labels, num_classes)]
    return np.concatenate([np.zeros(0, np.int64), *found])


def count_by_size(areas: np.ndarray) -> np.ndarray:
    """How many of `areas` (K,) are of 1, of 2 to 3, of 4 to 7 ... pixels, (SIZE_BINS,); the last has no end."""
    exponents = np.minimum(np.log2(np.maximum(areas, 1)).astype(int), SIZE_BINS - 1)
    return np.bincount(exponents, minlength=SIZE_BINS)


def near_boundary(labels: np.ndarray, reach: int = BAND) -> np.ndarray:
    """Which pixels of `labels` (H, W) uint8 have another label within `reach` rows and columns, (H, W) bool.

    Unlike for the boundary IoU, the border of the image is no contour: nothing ends there.
    """
    square = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    differs: np.ndarray = cv2.dilate(labels, square) != cv2.erode(labels, square)
    return differs


def find_errors(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> ErrorMap:
    """The kind of error at each pixel.

    Args:
        truth: Labels (H, W) uint8; values from `num_classes` on are void.
        predicted: Labels (H, W) uint8 below `num_classes`.
        num_classes: Classes C.
    """
    labelled = truth < num_classes
    wrong = labelled & (truth != predicted)
    kinds = wrong * np.where(near_boundary(truth), np.uint8(BOUNDARY), np.uint8(INTERIOR))
    seen = np.where(labelled, predicted, VOID)
    with ThreadPoolExecutor(1) as pool:  # OpenCV lets another thread compute meanwhile: a fifth less time
        found = pool.submit(list, all_regions(seen, truth, num_classes))
        own = list(all_regions(truth, predicted, num_classes))
    for _, regions in found.result():
        mark(kinds, wrong, regions, HALLUCINATED)
    objects: dict[int, np.ndarray] = {}
    missed: dict[int, int] = {}
    for index, regions in own:
        objects[index] = regions.areas[regions.is_object]
        missed[index] = int(regions.not_there.sum())
        mark(kinds, wrong, regions, MISSED)
    return ErrorMap(kinds, objects, missed)


def mark(kinds: np.ndarray, wrong: np.ndarray, regions: Regions, kind: int) -> None:
    """Give the wrong pixels (H, W) bool of the regions that the other label map does not have their kind, in place."""
    absent = regions.not_there
    if absent.any():
        places = regions.places[absent[regions.numbers]]
        kinds.ravel()[places[wrong.ravel()[places]]] = kind


class ErrorCounts:
    """Wrong pixels by kind and class, added up over images.

    Args:
        num_classes: Classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.lost = np.zeros((len(KINDS), num_classes), np.int64)  # pixels by the class that they are
        self.wrongly_found = np.zeros((len(KINDS), num_classes), np.int64)  # by the class that they were taken for
        self.areas: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
        self.missed = np.zeros(num_classes, np.int64)

    def add(self, errors: ErrorMap, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one image."""
        wrong = np.flatnonzero(errors.kinds)
        kind = errors.kinds.ravel().take(wrong).astype(np.int64) - 1
        size = len(KINDS) * self.num_classes
        for counts, labels in ((self.lost, truth), (self.wrongly_found, predicted)):
            codes = kind * self.num_classes + labels.ravel().take(wrong)
            counts += np.bincount(codes, minlength=size).reshape(counts.shape)
        for index, areas in errors.objects.items():
            self.areas[index].append(areas)
            self.missed[index] += errors.missed[index]

    def gains(self, counts: np.ndarray) -> np.ndarray:
        """What each class's IoU would gain if all its errors of one kind were right, (kinds, C); NaN for 0 / 0.

        Args:
            counts: Pixels hit, labelled and predicted, (C, 3), over all images.
        """
        hits, labelled, predicted = counts.astype(np.float64).T
        union = labelled + predicted - hits
        fixed = (hits + self.lost) / np.maximum(union - self.wrongly_found, 1)
        return np.where(union > 0, fixed - hits / np.maximum(union, 1), np.nan)

    def objects(self, index: int) -> np.ndarray:
        """Areas of all objects of a class in the truth, in pixels."""
        return np.concatenate([np.zeros(0, np.int32), *self.areas[index]])
