"""Figures of merit, all of them functions of one confusion matrix."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.upsampled_loss import predicted_labels

__all__ = ["EXTRA_METRICS", "ConfusionMatrix", "predicted_labels"]

CHUNK = 2**24 - 1  # pixels; OpenCV's histograms count in float32, which is exact up to 2**24


class ConfusionMatrix:
    """Counts of (truth, prediction) over many images, exact, and the figures that follow from them.

    Void pixels (255) do not count. The mean of the IoU is over classes that occur, in the truth or in a prediction;
    figures are unrounded, and what would be 0 / 0 is left out of the results.

    Args:
        num_classes: Classes C, as the network has them.
        class_names: Their names.
        left_out: Classes that are in no mean, such as the one that "ignore_index" names. Predictions of them count
            as errors.
        extra: Names from `EXTRA_METRICS` to report besides.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str],
        left_out: Collection[int] = (),
        extra: Sequence[str] = (),
    ) -> None:
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.left_out, self.extra = frozenset(left_out), tuple(extra)
        self._pairs = torch.zeros(num_classes**2 + 1, dtype=torch.int64)  # the last one counts void pixels

    @property
    def counts(self) -> Tensor:
        """(C, C) int64, [truth, prediction]; a view, so that processes can add theirs up in place."""
        return self._pairs[:-1].view(self.num_classes, self.num_classes)

    @torch.no_grad()
    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count predictions and labels, both (N, H, W) uint8 on one device. Does not wait for that device.

        Label values that stand for no class count as void.
        """
        if labels.device != self._pairs.device:
            self._pairs = self._pairs.to(labels.device)
        if on_cpu(labels):
            self.counts.add_(_histogram(_as_uint8(predictions), _as_uint8(labels), self.num_classes))
            return
        labels = labels.to(torch.uint8)
        known = labels < self.num_classes
        pairs = torch.where(known, labels.long() * self.num_classes + predictions, len(self._pairs) - 1).flatten()
        self._pairs.scatter_add_(0, pairs, torch.ones((), dtype=torch.int64, device=pairs.device).expand_as(pairs))

    def add(self, other: ConfusionMatrix) -> None:
        """Count what `other` has counted, too."""
        self._pairs = self._pairs.to(other._pairs.device).add_(other._pairs)

    def reduce(self) -> None:
        """Add up what all processes have counted; each has the sum then."""
        self._pairs = distributed.add_up(self._pairs)

    def reset(self) -> None:
        """Start again."""
        self._pairs.zero_()

    def iou(self) -> Tensor:
        """Intersection over union of each class, (C,) float64; NaN for one never labelled nor predicted."""
        return _iou(self._matrix())

    def results(self) -> dict[str, float]:
        """Pixel_Accuracy, Mean_IoU, Mean_IoU_all_classes (absent classes count 0), the extra ones and Class_IoU/NAME.

        All are in [0, 1]. A class that occurs nowhere, or is left out, has no Class_IoU.
        """
        matrix, shown = self._matrix(), self._shown()
        iou = _iou(matrix)
        figures = {
            "Pixel_Accuracy": matrix.diag().sum() / matrix.sum(),
            "Mean_IoU": iou[shown].nanmean(),
            "Mean_IoU_all_classes": iou[shown].nan_to_num(nan=0).mean() if matrix.sum() > 0 else torch.nan,
            **{name: EXTRA_METRICS[name](matrix, shown) for name in self.extra},
            **{f"Class_IoU/{self.class_names[index]}": iou[index] for index in shown.nonzero()[:, 0].tolist()},
        }
        return {name: float(value) for name, value in figures.items() if not np.isnan(float(value))}

    def keys(self) -> list[str]:
        """Every name that `results` may hold, known before anything was counted."""
        names = [f"Class_IoU/{name}" for i, name in enumerate(self.class_names) if i not in self.left_out]
        return ["Pixel_Accuracy", "Mean_IoU", "Mean_IoU_all_classes", *self.extra, *names]

    def table(self) -> list[dict[str, Any]]:
        """One row per class: name, pixels (labelled), iou, precision, recall, f1; None where a figure is 0 / 0."""
        matrix = self._matrix()
        columns = {"iou": _iou(matrix), "precision": _precision(matrix), "recall": _recall(matrix), "f1": _f1(matrix)}
        return [
            {
                "name": name,
                "pixels": int(matrix[index].sum()),
                **{key: None if value[index].isnan() else float(value[index]) for key, value in columns.items()},
            }
            for index, name in enumerate(self.class_names)
        ]

    def state_dict(self) -> dict[str, Tensor]:
        return {"counts": self.counts.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.counts.copy_(state["counts"])

    def _matrix(self) -> Tensor:
        return self.counts.cpu().double()

    def _shown(self) -> Tensor:
        return torch.tensor([index not in self.left_out for index in range(self.num_classes)])


def on_cpu(tensor: Tensor) -> bool:
    """Whether OpenCV can count it; a function of its own, so that tests can take the way of other devices."""
    return tensor.device.type == "cpu"


def _as_uint8(labels: Tensor) -> np.ndarray:
    return labels.to(torch.uint8).numpy().reshape(-1)


def _histogram(predictions: np.ndarray, labels: np.ndarray, size: int) -> Tensor:
    """Counts (size, size) int64 of pairs of uint8 values below `size`; 15 to 20 times as fast as `torch.bincount`."""
    total = np.zeros((size, size), np.int64)
    for start in range(0, len(labels), CHUNK):
        pair = [np.ascontiguousarray(part[start : start + CHUNK]).reshape(-1, 1) for part in (labels, predictions)]
        counts = cv2.calcHist(pair, [0, 1], None, [size, size], [0, size, 0, size])
        total += counts.reshape(size, size).astype(np.int64)
    return torch.from_numpy(total)


def _iou(matrix: Tensor) -> Tensor:
    hits = matrix.diag()
    return hits / (matrix.sum(0) + matrix.sum(1) - hits)


def _precision(matrix: Tensor) -> Tensor:
    return matrix.diag() / matrix.sum(0)


def _recall(matrix: Tensor) -> Tensor:
    return matrix.diag() / matrix.sum(1)


def _f1(matrix: Tensor) -> Tensor:
    return 2 * matrix.diag() / (matrix.sum(0) + matrix.sum(1))


def mean_accuracy(matrix: Tensor, shown: Tensor) -> Tensor:
    """Mean recall of the labelled classes; also called class accuracy."""
    return _recall(matrix)[shown].nanmean()


def mean_precision(matrix: Tensor, shown: Tensor) -> Tensor:
    """Mean precision of the predicted classes."""
    return _precision(matrix)[shown].nanmean()


def mean_f1(matrix: Tensor, shown: Tensor) -> Tensor:
    """Mean F1 (also the Dice score) of the classes that occur."""
    return _f1(matrix)[shown].nanmean()


def frequency_weighted_iou(matrix: Tensor, shown: Tensor) -> Tensor:
    """Mean IoU with each class weighted by its labelled pixels."""
    share = matrix.sum(1) * shown
    return (share * _iou(matrix).nan_to_num()).sum() / share.sum()


# Functions of a confusion matrix (C, C) float64, [truth, prediction], and of which classes are in the means, (C,) bool.
EXTRA_METRICS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Mean_Accuracy": mean_accuracy,
    "Mean_Precision": mean_precision,
    "Mean_Recall": mean_accuracy,
    "Mean_F1": mean_f1,
    "Frequency_Weighted_IoU": frequency_weighted_iou,
}
