"""What a metric promises.

To add one, subclass `MatrixMetric` if the confusion matrix of the split says enough, or else `PixelMetric`, and
register it, in a file of this folder or in a module that `--import` names::

    @METRICS.register("Worst_IoU")
    class WorstIoU(MatrixMetric):
        '''IoU of the worst class that occurs.'''

        def value(self, matrix: Tensor, in_mean: Tensor) -> Tensor:
            return iou(matrix)[in_mean].nan_to_num(nan=1).min()

It is reported by that name where ``"trainer": {"metrics": ["Worst_IoU"]}`` or ``evaluate.py --metrics`` says so.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from utils import distributed
from utils.registry import METRICS, Registry


@dataclass(frozen=True)
class NameIn:
    """Says in the annotation of a text that it is a name in `registry`; `utils.schema` calls the two methods."""

    registry: Registry

    def check(self, value: str, *, where: str, problems: list[str]) -> str:
        """Return `value`; add what is wrong with it to `problems`."""
        self.registry.check(value, where=where, problems=problems)
        return value

    def json_schema(self) -> dict[str, Any]:
        """Return a JSON Schema that suggests the known names, and lets those of third parties pass."""
        return {"anyOf": [{"enum": sorted(self.registry)}, {}]}


MetricName = Annotated[str, NameIn(METRICS)]


class Counts:
    """Integers that are added up over images and over processes.

    Args:
        shape: How many there are.
    """

    def __init__(self, *shape: int) -> None:
        self._counts = torch.zeros(shape, dtype=torch.int64)

    def on(self, device: torch.device) -> Tensor:
        """Return the counts, moved to `device`, to be added to in place."""
        if device != self._counts.device:
            self._counts = self._counts.to(device)
        return self._counts

    def total(self) -> Tensor:
        """Return the counts in float64 on the CPU, to compute figures from."""
        return self._counts.cpu().double()

    def reset(self) -> None:
        """Start again."""
        self._counts.zero_()

    def include(self, other: Counts) -> None:
        """Add what `other` has counted."""
        self.on(other._counts.device).add_(other._counts)

    def reduce(self) -> None:
        """Add up the counts of all processes, in each of them; of a single process, nothing changes."""
        self._counts = distributed.all_reduce_sum(self._counts)


class MatrixMetric(ABC):
    """A figure that follows from the confusion matrix of a split."""

    @abstractmethod
    def value(self, matrix: Tensor, in_mean: Tensor) -> Tensor:
        """Compute the figure, shape (); NaN where it is not defined, and then it is not reported.

        Args:
            matrix: Pixels by [truth, prediction], (C, C) float64.
            in_mean: Which classes are in means, (C,) bool: not the one that "ignore_index" names.
        """


class PixelMetric(Counts, ABC):
    """A figure that needs more than the confusion matrix: it counts each image by itself, in `Counts` of its own."""

    @abstractmethod
    def update(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> None:
        """Count one image.

        Args:
            logits: (C, h, w), at the head's own resolution.
            predictions: (H, W) uint8, the predicted classes.
            labels: (H, W) uint8; void pixels are 255.
        """

    @abstractmethod
    def value(self, in_mean: Tensor) -> Tensor:
        """Compute the figure from the counts, shape (); else as for `MatrixMetric`."""


def on_cpu(tensor: Tensor) -> bool:
    """Tell whether OpenCV can count `tensor`; a function, so that tests can take the way of other devices."""
    return tensor.device.type == "cpu"
