"""Figures of merit, all of them functions of integer counts, such as one confusion matrix.

Counts add up to the same whatever the order, so figures do not depend on batches or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils import distributed
from utils.classes import IGNORE
from utils.losses.strips import predicted_labels, winning_probabilities

__all__ = ["EXTRA_METRICS", "PIXEL_METRICS", "ConfusionMatrix", "ExtraMetric", "Metrics", "predicted_labels"]

CHUNK = 2**24 - 1  # pixels; OpenCV's histograms count in float32, which is exact up to 2**24

# What may be reported besides; a config names them.
ExtraMetric = Literal[
    "Mean_Accuracy",
    "Mean_Precision",
    "Mean_Recall",
    "Mean_F1",
    "Frequency_Weighted_IoU",
    "Boundary_IoU",
    "Calibration_Error",
]


class Counts:
    """Integers that are added up over images and over processes.

    Args:
        shape: How many there are.
    """

    def __init__(self, *shape: int) -> None:
        self._counts = torch.zeros(shape, dtype=torch.int64)

    def on(self, device: torch.device) -> Tensor:
        """The counts, moved to `device`, to be added to in place."""
        if device != self._counts.device:
            self._counts = self._counts.to(device)
        return self._counts

    def reset(self) -> None:
        """Start again."""
        self._counts.zero_()

    def include(self, other: Counts) -> None:
        """Add what `other` has counted."""
        self.on(other._counts.device).add_(other._counts)

    def reduce(self) -> None:
        """Add up the counts of all processes, in each of them; of a single process, nothing changes."""
        self._counts = distributed.all_reduce_sum(self._counts)


class ConfusionMatrix(Counts):
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
        super().__init__(num_classes**2 + 1)  # the last one counts void pixels
        self.num_classes, self.class_names = num_classes, tuple(class_names)
        self.left_out, self.extra = frozenset(left_out), tuple(extra)

    @property
    def counts(self) -> Tensor:
        """(C, C) int64, [truth, prediction]; a view, so that others can be added in place."""
        return self._counts[:-1].view(self.num_classes, self.num_classes)

    @torch.no_grad()
    def update(self, predictions: Tensor, labels: Tensor) -> None:
        """Count predictions and labels, both (N, H, W) uint8 on one device. Does not wait for that device.

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


class Metrics(ConfusionMatrix):
    """A confusion matrix and, where asked for, what it cannot tell: how well boundaries and probabilities fit.

    Args:
        num_classes: As for `ConfusionMatrix`, and so the next two.
        class_names: Names of the classes.
        left_out: Classes that are in no mean.
        extra: Names from `EXTRA_METRICS` and `PIXEL_METRICS` to report besides.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str],
        left_out: Collection[int] = (),
        extra: Sequence[str] = (),
    ) -> None:
        super().__init__(num_classes, class_names, left_out, [name for name in extra if name in EXTRA_METRICS])
        self.others = {name: PIXEL_METRICS[name](num_classes) for name in extra if name not in EXTRA_METRICS}

    @torch.no_grad()
    def add(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Count logits (N, C, h, w) for labels (N, H, W) uint8; returns the predicted labels (N, H, W) uint8."""
        predictions = predicted_labels(logits, (labels.shape[-2], labels.shape[-1]))
        self.update(predictions, labels)
        for other in self.others.values():
            for image in zip(logits, predictions, labels, strict=True):
                other.add(*image)
        return predictions

    def results(self) -> dict[str, float]:
        shown = self._shown()
        own = {name: float(other.value(shown)) for name, other in self.others.items()}
        return super().results() | {name: value for name, value in own.items() if not np.isnan(value)}

    def keys(self) -> list[str]:
        return [*super().keys(), *self.others]

    def reset(self) -> None:
        super().reset()
        for other in self.others.values():
            other.reset()

    def reduce(self) -> None:
        super().reduce()
        for other in self.others.values():
            other.reduce()


class PixelMetric(Counts):
    """A figure that needs more than pairs of labels."""

    def add(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> None:
        """Count one image: logits (C, h, w), predictions and labels (H, W) uint8."""
        raise NotImplementedError

    def value(self, shown: Tensor) -> Tensor:
        """The figure, shape (), NaN where nothing was labelled; `shown` (C,) bool says which classes are in means."""
        raise NotImplementedError


class BoundaryIoU(PixelMetric):
    """Mean IoU of what lies near a contour: for each class, its pixels within 2 % of the image's diagonal of another.

    The image's border is a contour too. Void pixels are cut out of truth and prediction alike. Counts are summed up
    over images before they are divided, as for the mean IoU.

    Source: Cheng et al. 2021, https://arxiv.org/abs/2103.16562, equation 4; distance and border as in its code,
    https://github.com/bowenc0221/boundary-iou-api.

    Args:
        num_classes: Classes C.
        distance: Share of the image's diagonal.
    """

    def __init__(self, num_classes: int, distance: float = 0.02) -> None:
        super().__init__(3, 256)  # pixels by class: of both bands and right, of the truth's, of the prediction's
        self.num_classes, self.distance = num_classes, distance

    def add(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> None:
        height, width = labels.shape
        reach = max(1, round(self.distance * (height**2 + width**2) ** 0.5))
        void = labels >= self.num_classes
        truth, predicted = labels.masked_fill(void, IGNORE), predictions.masked_fill(void, IGNORE)
        truth, predicted = (map_.masked_fill(~near_contour(map_, reach), IGNORE) for map_ in (truth, predicted))
        both = truth.masked_fill(truth != predicted, IGNORE)
        codes = torch.stack([both, truth, predicted]).flatten(1).long()
        one = torch.ones((), dtype=torch.int64, device=codes.device)
        self.on(codes.device).scatter_add_(1, codes, one.expand_as(codes))

    def value(self, shown: Tensor) -> Tensor:
        hits, truth, predicted = self._counts[:, : self.num_classes].cpu().double()
        return (hits / (truth + predicted - hits))[shown].nanmean()


def near_contour(labels: Tensor, reach: int) -> Tensor:
    """Which pixels of `labels` (H, W) uint8 have another label, or the border, within `reach` rows and columns.

    The same as what the erosion of each class's mask by a square takes away, for all classes at once.
    """
    size = 2 * reach + 1
    if on_cpu(labels):
        pixels, square = labels.numpy(), np.ones((size, size), np.uint8)
        # Beyond the image lies no label: what is largest there only has to differ.
        most = cv2.dilate(pixels, square, borderType=cv2.BORDER_CONSTANT, borderValue=IGNORE)
        return torch.from_numpy((most != pixels) | (cv2.erode(pixels, square) != pixels))
    values = labels[None, None].float()
    largest, smallest = (
        sign * F.max_pool2d(F.max_pool2d(F.pad(sign * values, [reach] * 4, value=beyond), (1, size), 1), (size, 1), 1)
        for sign, beyond in ((1, float(IGNORE)), (-1, -float("inf")))
    )
    return ((largest != values) | (smallest != values))[0, 0]


class CalibrationError(PixelMetric):
    """How far probabilities are from the share of predictions that are right; 0 is best.

    Pixels are sorted into bins by the probability of the predicted class; the error is the mean over pixels of the
    difference between their bin's mean probability and its accuracy ("expected calibration error").

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3, with its 15 bins.

    Args:
        num_classes: Classes C.
        bins: Bins of equal width.
    """

    UNIT = 2**30  # of the sum of probabilities, which is an integer, so that no order of adding up can change it

    def __init__(self, num_classes: int, bins: int = 15) -> None:
        super().__init__(3, bins + 1)  # pixels, right ones, sum of probabilities; the last bin is for void pixels
        self.num_classes, self.bins = num_classes, bins

    def add(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> None:
        p = winning_probabilities(logits[None], (labels.shape[0], labels.shape[1])).flatten().nan_to_num()
        labels, predictions = labels.flatten(), predictions.flatten()
        codes = (p * self.bins).ceil().long().clamp_(1, self.bins).sub_(1)
        codes.masked_fill_(labels >= self.num_classes, self.bins)
        counts = self.on(codes.device)
        parts = (torch.ones((), dtype=torch.int64, device=codes.device).expand_as(codes), labels == predictions)
        for total, part in zip(counts, (*parts, p * self.UNIT), strict=True):
            total.scatter_add_(0, codes, part.to(torch.int64))

    def value(self, shown: Tensor) -> Tensor:
        pixels, right, probability = self._counts[:, : self.bins].cpu().double()
        return (probability / self.UNIT - right).abs().sum() / pixels.sum()


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

# What needs more than a confusion matrix, by name; each is made with the number of classes.
PIXEL_METRICS: dict[str, Callable[[int], PixelMetric]] = {
    "Boundary_IoU": BoundaryIoU,
    "Calibration_Error": CalibrationError,
}
