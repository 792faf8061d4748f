"""The confusion matrix of a split, and all that is reported of a split."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.classes import with_class_facts
from utils.losses.strips import predicted_labels
from utils.metrics.base import Counts, MatrixMetric, PixelMetric, on_cpu
from utils.registry import METRICS

CHUNK = 2**24 - 1  # pixels; OpenCV's histograms count in float32, which is exact up to 2**24


class ConfusionMatrix(Counts):
    """Counts of (truth, prediction) over many images, exact, and the figures that follow from them.

    Void pixels (255) do not count. The mean of the IoU is over classes that occur, in the truth or in a prediction;
    figures are unrounded, and what would be 0 / 0 is not reported.

    Args:
        num_classes: Classes C, as the network has them.
        class_names: Their names.
        ignored_classes: Classes that are in no mean, such as the one that "ignore_index" names. Predictions of them
            count as errors.
        metrics: Further figures to report, by name.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str],
        ignored_classes: Collection[int] = (),
        metrics: Mapping[str, MatrixMetric] = MappingProxyType({}),
    ) -> None:
        super().__init__(num_classes**2 + 1)  # the last one counts void pixels
        self.num_classes = num_classes
        self.class_names = tuple(class_names)
        self.ignored_classes = frozenset(ignored_classes)
        self.metrics = metrics

    @property
    def counts(self) -> Tensor:
        """(C, C) int64, [truth, prediction]; a view, so that others can be added in place."""
        return self._counts[:-1].view(self.num_classes, self.num_classes)

    @torch.no_grad()
    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count predictions and labels, both (N, H, W) uint8 on one device, without waiting for that device.

        Label values that stand for no class count as void.
        """
        total = self.on(labels.device)
        if on_cpu(labels):
            self.counts.add_(_histogram(_as_uint8(predictions), _as_uint8(labels), self.num_classes))
            return
        labels = labels.to(torch.uint8)
        known = labels < self.num_classes
        pairs = torch.where(known, labels.long() * self.num_classes + predictions, len(total) - 1).flatten()
        total.scatter_add_(0, pairs, torch.ones((), dtype=torch.int64, device=pairs.device).expand_as(pairs))

    def iou(self) -> Tensor:
        """Return the intersection over union of each class, (C,) float64; NaN for one never labelled nor predicted."""
        return iou(self._matrix())

    def results(self) -> dict[str, float]:
        """Compute Pixel_Accuracy, Mean_IoU, Mean_IoU_all_classes (absent classes count 0), `metrics`, Class_IoU/NAME.

        All but `metrics` are in [0, 1]. A class that occurs nowhere, or is ignored, has no Class_IoU.
        """
        matrix = self._matrix()
        in_mean = self._in_mean()
        ious = iou(matrix)
        figures = {
            "Pixel_Accuracy": matrix.diag().sum() / matrix.sum(),
            "Mean_IoU": ious[in_mean].nanmean(),
        }
        if matrix.sum() > 0:
            figures["Mean_IoU_all_classes"] = ious[in_mean].nan_to_num(nan=0).mean()
        for name, metric in self.metrics.items():
            figures[name] = metric.value(matrix, in_mean)
        for index, name in enumerate(self.class_names):
            if in_mean[index]:
                figures[f"Class_IoU/{name}"] = ious[index]
        return defined(figures)

    def keys(self) -> list[str]:
        """Return every name that `results` may hold, known before anything was counted."""
        names = ["Pixel_Accuracy", "Mean_IoU", "Mean_IoU_all_classes", *self.metrics]
        for index, name in enumerate(self.class_names):
            if index not in self.ignored_classes:
                names.append(f"Class_IoU/{name}")
        return names

    def table(self) -> list[dict[str, Any]]:
        """Return a row per class: name, pixels (labelled), iou, precision, recall, f1; None where one is 0 / 0."""
        matrix = self._matrix()
        columns = {"iou": iou(matrix), "precision": precision(matrix), "recall": recall(matrix), "f1": f1(matrix)}
        rows = []
        for index, name in enumerate(self.class_names):
            row: dict[str, Any] = {"name": name, "pixels": int(matrix[index].sum())}
            for key, values in columns.items():
                row[key] = None if values[index].isnan() else float(values[index])
            rows.append(row)
        return rows

    def state_dict(self) -> dict[str, Tensor]:
        """Return the counts, for a checkpoint."""
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what `state_dict` gave."""
        self.counts.copy_(state["counts"])

    def _matrix(self) -> Tensor:
        return self.counts.cpu().double()

    def _in_mean(self) -> Tensor:
        return torch.tensor([index not in self.ignored_classes for index in range(self.num_classes)])


class Metrics(ConfusionMatrix):
    """A confusion matrix, and the metrics of the registry that are asked for.

    Args:
        num_classes: As for `ConfusionMatrix`, and so the next two.
        class_names: Names of the classes.
        ignored_classes: Classes that are in no mean.
        names: Names in `METRICS` of further figures to report.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str],
        ignored_classes: Collection[int] = (),
        names: Sequence[str] = (),
    ) -> None:
        facts = with_class_facts({"num_classes": num_classes, "class_names": tuple(class_names)})
        of_matrix: dict[str, MatrixMetric] = {}
        self.pixel_metrics: dict[str, PixelMetric] = {}
        for name in names:
            metric = METRICS.build(name, where="trainer.metrics", **facts)
            if isinstance(metric, MatrixMetric):
                of_matrix[name] = metric
            elif isinstance(metric, PixelMetric):
                self.pixel_metrics[name] = metric
            else:
                raise TypeError(f"metric {name!r} is neither a MatrixMetric nor a PixelMetric.")
        super().__init__(num_classes, class_names, ignored_classes, of_matrix)

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count logits (N, C, h, w) for labels (N, H, W) uint8; returns the predicted labels (N, H, W) uint8."""
        predictions = predicted_labels(logits, (labels.shape[-2], labels.shape[-1]))
        self.update(predictions, labels)
        for metric in self.pixel_metrics.values():
            for image in zip(logits, predictions, labels, strict=True):
                metric.update(*image)
        return predictions

    def results(self) -> dict[str, float]:
        in_mean = self._in_mean()
        return super().results() | defined({name: m.value(in_mean) for name, m in self.pixel_metrics.items()})

    def keys(self) -> list[str]:
        return [*super().keys(), *self.pixel_metrics]

    def reset(self) -> None:
        super().reset()
        for metric in self.pixel_metrics.values():
            metric.reset()

    def reduce(self) -> None:
        super().reduce()
        for metric in self.pixel_metrics.values():
            metric.reduce()


def defined(figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the figures, each of shape (), that are not NaN, as numbers."""
    numbers = {name: float(figure) for name, figure in figures.items()}
    return {name: number for name, number in numbers.items() if not math.isnan(number)}


def iou(matrix: Tensor) -> Tensor:
    """Return the intersection over union of each class, (C,), of `matrix` (C, C); 0 / 0 is NaN, as below."""
    hits = matrix.diag()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)


def precision(matrix: Tensor) -> Tensor:
    """Return the share of each class's predictions that are right, (C,)."""
    return matrix.diag() / matrix.sum(0)


def recall(matrix: Tensor) -> Tensor:
    """Return the share of each class's pixels that are found, (C,)."""
    return matrix.diag() / matrix.sum(1)


def f1(matrix: Tensor) -> Tensor:
    """Return the harmonic mean of precision and recall of each class, (C,)."""
    return 2 * matrix.diag() / (matrix.sum(0) + matrix.sum(1))


def _as_uint8(labels: Tensor) -> np.ndarray:
    return labels.to(torch.uint8).numpy().reshape(-1)


def _histogram(predictions: np.ndarray, labels: np.ndarray, size: int) -> Tensor:
    """Count pairs of uint8 values below `size`: (size, size) int64; 15 to 20 times as fast as `torch.bincount`."""
    total = np.zeros((size, size), np.int64)
    for start in range(0, len(labels), CHUNK):
        chunk = slice(start, start + CHUNK)
        pair = [np.ascontiguousarray(values[chunk]).reshape(-1, 1) for values in (labels, predictions)]
        counts = cv2.calcHist(pair, [0, 1], None, [size, size], [0, size, 0, size])
        total += counts.reshape(size, size).astype(np.int64)
    return torch.from_numpy(total)
