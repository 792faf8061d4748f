"""What training and validation add up over an epoch: losses, pixels, and pictures to look at."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from utils import distributed
from utils.checkpoint import Running
from utils.classes import ClassTable
from utils.losses.criterion import Criterion
from utils.losses.strips import accumulation_dtype, predicted_labels
from utils.metrics import ConfusionMatrix
from utils.outputs import SegOutput
from utils.visualize import comparison

WIDTH = 900  # pixels of a row of pictures
FIGURES = ("Pixel_Accuracy", "Mean_IoU")  # that are shown of training batches


class PredictedBatch(NamedTuple):
    """A batch of an evaluation and what a model says of it, on one device."""

    images: Tensor  # (N, channels, H, W), raw values
    labels: Tensor  # (N, H, W) uint8
    logits: Tensor  # (N, C, h, w)
    predicted: Tensor  # (N, H, W) uint8
    keys: tuple[str, ...] = ()  # names of the images


class RunningFigures:
    """Add up the losses of the open epoch, and the pixels of those batches of it that are logged.

    Args:
        classes: What the pixels are counted by.
        device: Where the losses are added up, so that nobody waits for it.
    """

    def __init__(self, classes: ClassTable, device: torch.device) -> None:
        self.classes = classes
        # float64 where the device has it, so that a long epoch's mean is not rounded
        self.loss = torch.zeros((), dtype=accumulation_dtype(device), device=device)
        self.matrix = self._empty_matrix()

    def _empty_matrix(self) -> ConfusionMatrix:
        return ConfusionMatrix(len(self.classes), self.classes.names, self.classes.ignored_classes)

    def reset(self) -> None:
        """Start again."""
        self.loss.zero_()
        self.matrix.reset()

    def add_loss(self, loss: Tensor) -> None:
        """Add the loss of a step, (); one that is not finite counts as 0. No host sync."""
        self.loss += torch.where(loss.isfinite(), loss, 0.0)

    def count(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Count the pixels of all processes' batches; returns the figures of these, NaN where there are none.

        Args:
            logits: (N, C, h, w).
            labels: (N, H, W) uint8.
        """
        sample = self._sample(logits, labels)
        sample.reduce()
        self.matrix.include(sample)
        return {**dict.fromkeys(FIGURES, math.nan), **_shown(sample)}

    def peek(self, logits: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the figures of this process's batch alone, of which nothing is counted; otherwise as `count`."""
        return {**dict.fromkeys(FIGURES, math.nan), **_shown(self._sample(logits, labels))}

    def _sample(self, logits: Tensor, labels: Tensor) -> ConfusionMatrix:
        sample = self._empty_matrix()
        sample.update(predicted_labels(logits, (labels.shape[-2], labels.shape[-1])), labels)
        return sample

    def results(self, steps: int) -> dict[str, float]:
        """Give the mean loss of `steps` steps and the figures of all pixels counted."""
        return {"loss": self.loss.item() / steps, **_shown(self.matrix)}

    def state_dict(self, skipped_steps: int) -> Running:
        """Give the sums, and with them how many steps are not in them."""
        return {"loss": self.loss.cpu(), "matrix": self.matrix.state_dict(), "left_out": skipped_steps}

    def load_state_dict(self, state: Running) -> None:
        """Restore the sums that `state_dict` gave."""
        self.matrix.load_state_dict(state["matrix"])
        self.loss.copy_(state["loss"])


def _shown(matrix: ConfusionMatrix) -> dict[str, float]:
    return {key: value for key, value in matrix.results().items() if key in FIGURES}


class SplitLoss:
    """Add up a criterion's loss over a split, image by image, so that batches and processes do not matter.

    Args:
        criterion: The loss that is trained with.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.numerators = torch.zeros(len(criterion.names), dtype=torch.float64)
        self.normalizers = torch.zeros(len(criterion.names), dtype=torch.float64)

    def add(self, batch: PredictedBatch) -> None:
        """Add the loss of a batch."""
        numerators, normalizers = self.criterion.evaluation_sums(SegOutput(batch.logits), batch.labels)
        self.numerators = self.numerators + numerators.cpu().double()
        self.normalizers = self.normalizers + normalizers.cpu().double()

    def reduce(self) -> None:
        """Add up the sums of all processes, in each of them."""
        self.numerators = distributed.all_reduce_sum(self.numerators)
        self.normalizers = distributed.all_reduce_sum(self.normalizers)

    def results(self) -> dict[str, float]:
        """Give the loss and, where it has several, its terms by name."""
        losses = self.criterion.evaluation_loss(self.numerators, self.normalizers)
        return losses if len(losses) > 2 else {"loss": losses["loss"]}  # a single term is the loss


class Comparisons:
    """Draw the first images of a split beside their labels and what was predicted.

    Args:
        classes: Their colors.
        count: How many images; 0 for none.
    """

    def __init__(self, classes: ClassTable, count: int) -> None:
        self.classes = classes
        self.count = count
        self.rows: list[np.ndarray] = []  # (h, w, 3) uint8 each

    def add(self, batch: PredictedBatch) -> None:
        """Draw as many images of a batch as are still wanted."""
        count = self.count - len(self.rows)
        if count <= 0:
            return
        images = batch.images[:count].permute(0, 2, 3, 1).cpu().numpy()
        labels = batch.labels[:count].cpu().numpy()
        predicted = batch.predicted[:count].cpu().numpy()
        for image, truth, guess in zip(images, labels, predicted, strict=True):
            self.rows.append(comparison(image, [truth, guess], self.classes, width=WIDTH))

    def picture(self) -> np.ndarray:
        """Put the rows below each other, (H, W, 3) uint8."""
        return np.concatenate(self.rows)
