"""How well probabilities fit."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.losses.strips import winning_probabilities
from utils.metrics.base import PixelMetric
from utils.registry import METRICS


@METRICS.register("Calibration_Error", bins=15)
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

    def __init__(self, num_classes: int, bins: int) -> None:
        super().__init__(3, bins + 1)  # pixels, right ones, sum of probabilities; the last bin is for void pixels
        self.num_classes = num_classes
        self.bins = bins

    def update(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> None:
        p = winning_probabilities(logits[None], (labels.shape[0], labels.shape[1])).flatten().nan_to_num()
        labels, predictions = labels.flatten(), predictions.flatten()
        codes = (p * self.bins).ceil().long().clamp_(1, self.bins).sub_(1)
        codes.masked_fill_(labels >= self.num_classes, self.bins)
        pixels, right, probability = self.on(codes.device)
        pixels.scatter_add_(0, codes, torch.ones((), dtype=torch.int64, device=codes.device).expand_as(codes))
        right.scatter_add_(0, codes, (labels == predictions).to(torch.int64))
        probability.scatter_add_(0, codes, (p * self.UNIT).to(torch.int64))

    def value(self, in_mean: Tensor) -> Tensor:
        pixels, right, probability = self.total()[:, : self.bins]
        gaps: Tensor = (probability / self.UNIT - right).abs()
        error: Tensor = gaps.sum() / pixels.sum()
        return error
