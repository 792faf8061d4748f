"""By how much runs of one config differ, and what is so inside the noise."""

from __future__ import annotations

import math
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.reporting import statistics
from engine.reporting.collect import counts_of
from utils.classes import ClassTable
from utils.metrics import ConfusionMatrix

MEAN = "Mean_IoU"
NORMAL = 1.959964  # the 97.5 % point of the normal distribution
FEW = (12.706, 4.303, 3.182, 2.776, 2.571)  # of Student's t with 1 to 5 degrees of freedom
NOISY = 2.0  # times the mean IoU's deviation: classes above are named
MOST_NAMED = 5


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        label: What tells it from the others.
        folder: Where it is.
        results: Its results.json.
    """

    label: str
    folder: Path
    results: Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """One figure of several runs.

    Args:
        name: Of the figure: a class, or the mean IoU.
        values: Of each run; None where the class does not occur.
        pooled: Out of fold; None where there are no folds, or the class does not occur.
    """

    name: str
    values: Sequence[float | None]
    pooled: float | None = None

    @property
    def known(self) -> list[float]:
        """The values that there are."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Their mean."""
        return plain_statistics.fmean(self.known) if self.known else None

    @property
    def deviation(self) -> float | None:
        """Their standard deviation, with n - 1 in the denominator."""
        return plain_statistics.stdev(self.known) if len(self.known) > 1 else None

    @property
    def noise(self) -> float | None:
        """What two single runs differ by at most, in 95 % of all cases."""
        return None if self.deviation is None else noise_floor(self.deviation, len(self.known))


@dataclass(frozen=True)
class Summary:
    """What several runs of one config say.

    Args:
        runs: The runs.
        mean: Their mean IoU.
        classes: The IoU of each class.
        folds: Whether each was validated on another part of the training set.
        interval: Of the mean IoU out of fold, over images.
        images: How many these are.
        matrix: (C, C), the sum of all confusion matrices; None where there are no folds.
    """

    runs: Sequence[Run]
    mean: Figure
    classes: Sequence[Figure]
    folds: bool
    interval: statistics.Interval | None = None
    images: int = 0
    matrix: Sequence[Sequence[int]] | None = None

    def to_json(self, base: Path) -> dict[str, Any]:
        """Give it in plain values, with folders relative to `base`."""
        runs = [
            {
                "label": run.label,
                "folder": run.folder.relative_to(base).as_posix(),
                "epoch": run.results.get("epoch"),
                MEAN: value,
            }
            for run, value in zip(self.runs, self.mean.values, strict=True)
        ]
        found: dict[str, Any] = {
            "kind": "folds" if self.folds else "seeds",
            "runs": runs,
            MEAN: self._figure(self.mean),
            "classes": [{"name": each.name, **self._figure(each)} for each in self.classes],
        }
        if self.folds:
            found["out_of_fold"] = {
                MEAN: self.mean.pooled,
                "interval": None if self.interval is None else self.interval.to_json(),
                "images": self.images,
                "classes": {each.name: each.pooled for each in self.classes},
                "confusion_matrix": self.matrix,
            }
        else:
            found["t"] = t_quantile(len(self.runs) - 1)
        return found

    def _figure(self, figure: Figure) -> dict[str, Any]:
        found: dict[str, Any] = {"values": list(figure.values), "mean": figure.mean, "sd": figure.deviation}
        return found if self.folds else {**found, "noise": figure.noise}

    def lines(self) -> list[str]:
        """Write it as a table, a row for each class and one for the mean, and say what it means."""
        width = max(len(figure.name) for figure in (self.mean, *self.classes))
        heads = [*(run.label for run in self.runs), "mean", "sd", "out of fold" if self.folds else "noise"]
        found = [" " * width + "".join(f"{head:>{_room(head)}}" for head in heads)]
        for figure in (*self.classes, self.mean):
            end = figure.pooled if self.folds else figure.noise
            cells = zip(heads, (*figure.values, figure.mean, figure.deviation, end), strict=True)
            row = "".join(f"{_number(value):>{_room(head)}}" for head, value in cells)
            found.append(f"{figure.name:<{width}}{row}")
        return [*found, "", *(self._folds_in_words() if self.folds else self._noise_in_words())]

    def _noise_in_words(self) -> list[str]:
        """Say what is inside the noise."""
        count, deviation, noise = len(self.mean.known), self.mean.deviation, self.mean.noise
        if deviation is None or noise is None:
            return ["The mean IoU is undefined; there is nothing to compare."]
        t = t_quantile(count - 1)
        found = [
            f"{MEAN} {self.mean.mean:.4f} +- {deviation:.4f} (mean and standard deviation of {count} seeds).",
            f"Inside the noise: two single runs of this config differ by less than {noise:.4f} in 95 % of all cases "
            f"({t:.2f} * sd * sqrt 2, t of {count - 1} degrees of freedom).",
            f"Two means of {count} runs each differ by less than {noise / math.sqrt(count):.4f}. "
            f"A change that gains less has shown nothing.",
        ]
        if count < 5:
            found.append(f"{count} seeds tell the deviation itself only roughly: with 5, t is {FEW[3]:.2f}.")
        noisy = [each for each in self.classes if (each.deviation or 0) > NOISY * deviation]
        noisy.sort(key=lambda each: -(each.deviation or 0))
        if noisy:
            named = ", ".join(f"{each.name} ({each.noise:.3f})" for each in noisy[:MOST_NAMED] if each.noise)
            found.append(f"Noisiest classes, and what differences of theirs are noise: {named}.")
        return found

    def _folds_in_words(self) -> list[str]:
        """Say how good the config is on images that it was not trained on."""
        found = []
        if self.mean.deviation is not None:
            found.append(
                f"{MEAN} {self.mean.mean:.4f} +- {self.mean.deviation:.4f} (mean and standard deviation of "
                f"{len(self.mean.known)} folds: other images and other trainings)."
            )
        if self.mean.pooled is not None:
            bounds = ""
            if self.interval is not None and self.interval.low is not None:
                bounds = (
                    f", 95 % interval over {self.images} images {self.interval.low:.4f} to {self.interval.high:.4f}"
                )
            found.append(
                f"Out of fold, each image predicted by the run that did not see it: {self.mean.pooled:.4f}{bounds}."
            )
        return found


def summarize(runs: Sequence[Run], classes: ClassTable, *, folds: bool) -> Summary:
    """Put together what runs of one config say.

    Args:
        runs: Finished runs, which validated.
        classes: Their classes.
        folds: Whether each was validated on another part of the training set.
    """
    matrices = [run.results.get("confusion_matrix") for run in runs]
    pooled: dict[str, float] = {}
    total = None
    if folds and all(matrix is not None for matrix in matrices):
        confusion = ConfusionMatrix(len(classes), classes.names, classes.ignored_classes)
        for matrix in matrices:
            confusion.counts.add_(torch.tensor(matrix, dtype=torch.int64))
        pooled, total = confusion.results(), confusion.counts.tolist()
    interval, images = image_interval(runs, classes) if folds else (None, 0)

    def figure(name: str, key: str) -> Figure:
        values = [run.results["metrics"].get(f"val/{key}") for run in runs]
        return Figure(name, values, pooled.get(key))

    return Summary(
        runs=runs,
        mean=figure(MEAN, MEAN),
        classes=[figure(name, f"Class_IoU/{name}") for name in classes.names],
        folds=folds,
        interval=interval,
        images=images,
        matrix=total,
    )


def image_interval(runs: Sequence[Run], classes: ClassTable) -> tuple[statistics.Interval | None, int]:
    """The bootstrap interval of the mean IoU over the images of all runs, and how many images these are."""
    counts = [counts_of(run.results.get("image_figures", []), len(classes)) for run in runs]
    images = sum(map(len, counts))
    if not images:
        return None, 0
    shown = np.array([index not in classes.ignored_classes for index in range(len(classes))])
    return statistics.interval_of_mean(np.concatenate(counts), shown), images


def noise_floor(deviation: float, runs: int) -> float:
    """What two single runs differ by at most in 95 % of all cases, where `runs` of them had this standard deviation.

    The difference of two has a deviation sqrt 2 times as large; that it is known from a few runs only, Student's t
    accounts for.
    """
    return t_quantile(runs - 1) * deviation * math.sqrt(2)


def t_quantile(degrees: int) -> float:
    """The 97.5 % point of Student's t distribution.

    Source: Abramowitz and Stegun 1964, 26.7.5 (expansion in 1 / degrees, here to 0.1 %).
    """
    if degrees <= len(FEW):
        return FEW[degrees - 1]
    z = NORMAL
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _room(head: str) -> int:
    """Width of a column."""
    return max(10, len(head) + 2)
