"""How sure one can be of a mean IoU, or of a difference between two, that was measured on some images.

Images are drawn anew, with replacement, from those measured (the bootstrap); the figure is computed from the summed
counts of each draw, as the figure itself is. That an image's pixels depend on each other is so accounted for.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
LEVEL = 0.95
CHUNK = 2**24  # weights that are in memory at once
LARGEST_EXACT = 2000  # images for which the sign test adds up binomials; above, a normal distribution does


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds between which it lies with a probability of `LEVEL`; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def to_json(self) -> dict[str, float | None]:
        """The same in plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True)
class SignTest:
    """On how many images one of two models is better, and how likely so uneven a count is if neither is."""

    better: int
    worse: int
    p: float


@dataclass(frozen=True)
class Comparison:
    """What a second model gains over a first one, measured on the same images.

    Args:
        mean: Difference of the mean IoU.
        classes: Difference of each class's IoU; undefined for classes that either lacks.
        signs: Sign test of the mean IoU of single images.
        class_signs: Sign tests of each class's IoU on single images.
    """

    mean: Interval
    classes: tuple[Interval, ...]
    signs: SignTest
    class_signs: tuple[SignTest, ...]


def class_iou(counts: np.ndarray) -> np.ndarray:
    """IoU (..., C) float64 of counts (..., C, 3): pixels hit, labelled, predicted. NaN for 0 / 0."""
    hits, labelled, predicted = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    union = labelled + predicted - hits
    iou = np.full(union.shape, np.nan)
    np.divide(hits, union, out=iou, where=union > 0)
    return iou


def mean_iou(counts: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Mean IoU (...) of counts (..., C, 3) over the classes `shown` (C,) bool that occur; NaN if none does."""
    iou = class_iou(counts)[..., shown]
    occurs = ~np.isnan(iou)
    number = occurs.sum(axis=-1)
    total = np.where(occurs, iou, 0.0).sum(axis=-1)
    mean = np.full(total.shape, np.nan)
    np.divide(total, number, out=mean, where=number > 0)
    return mean


def interval_of_mean(counts: np.ndarray, shown: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean IoU of images with counts (N, C, 3), and its bootstrap interval over images.

    Args:
        counts: Pixels hit, labelled and predicted, by image and class.
        shown: Which classes are in the mean, (C,) bool.
        resamples: Draws.
        seed: Decides them.
    """
    if not len(counts):
        return Interval(None, None, None)
    draws = [mean_iou(drawn[0], shown) for drawn in resampled([counts], resamples, seed)]
    return _interval(float(mean_iou(counts.sum(axis=0), shown)), np.concatenate(draws))


def compare(
    first: np.ndarray, second: np.ndarray, shown: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """What the second of two models gains; each draw takes the same images for both.

    Args:
        first: Counts (N, C, 3) of one model.
        second: Counts of another one, of the same images in the same order.
        shown: Which classes are in the mean, (C,) bool.
        resamples: Draws.
        seed: Decides them.
    """
    means: list[np.ndarray] = []
    classes: list[np.ndarray] = []
    for old, new in resampled([first, second], resamples, seed):
        means.append(mean_iou(new, shown) - mean_iou(old, shown))
        classes.append(class_iou(new) - class_iou(old))
    old, new = first.sum(axis=0), second.sum(axis=0)
    by_class = np.concatenate(classes)
    gains = class_iou(new) - class_iou(old)
    per_image = class_iou(second) - class_iou(first)
    return Comparison(
        mean=_interval(float(mean_iou(new, shown) - mean_iou(old, shown)), np.concatenate(means)),
        classes=tuple(_interval(float(gain), by_class[:, index]) for index, gain in enumerate(gains)),
        signs=sign_test(mean_iou(second, shown) - mean_iou(first, shown)),
        class_signs=tuple(sign_test(per_image[:, index]) for index in range(per_image.shape[1])),
    )


def resampled(groups: list[np.ndarray], resamples: int, seed: int) -> Iterator[list[np.ndarray]]:
    """Sums (B, C, 3) of each group's counts (N, C, 3) over images drawn with replacement, some draws at a time."""
    rng = np.random.default_rng(seed)
    images = len(groups[0])
    flat = [group.reshape(images, -1).astype(np.float64) for group in groups]
    step = max(1, CHUNK // images)
    for start in range(0, resamples, step):
        draws = min(step, resamples - start)
        weights = rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
        yield [(weights @ each).reshape(draws, *group.shape[1:]) for each, group in zip(flat, groups, strict=True)]


def sign_test(differences: np.ndarray) -> SignTest:
    """Two-sided sign test of differences (N,); those of 0, and NaN, say nothing."""
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    total, fewer = better + worse, min(better, worse)
    if total == 0:
        return SignTest(0, 0, 1.0)
    if total <= LARGEST_EXACT:
        tail = sum(math.comb(total, number) for number in range(fewer + 1))
        return SignTest(better, worse, min(1.0, 2 * tail / 2**total))
    distance = (total / 2 - fewer - 0.5) / (0.5 * math.sqrt(total))
    return SignTest(better, worse, min(1.0, math.erfc(distance / math.sqrt(2))))


def _interval(value: float, draws: np.ndarray) -> Interval:
    draws = draws[~np.isnan(draws)]
    if math.isnan(value) or not len(draws):
        return Interval(None, None, None)
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
