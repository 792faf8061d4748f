"""How well predictions fit along the contours of objects."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE, count_values
from utils.metrics.base import PixelMetric, on_cpu
from utils.registry import METRICS


@METRICS.register("Boundary_IoU", distance=0.02)
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

    def __init__(self, num_classes: int, distance: float) -> None:
        super().__init__(3, 256)  # pixels by class: of both bands and right, of the truth's, of the prediction's
        self.num_classes = num_classes
        self.distance = distance

    def update(self, logits: Tensor, predictions: Tensor, labels: Tensor) -> None:
        height, width = labels.shape
        reach = max(1, round(self.distance * (height**2 + width**2) ** 0.5))
        void = labels >= self.num_classes
        truth = _band(labels.masked_fill(void, IGNORE), reach)
        predicted = _band(predictions.masked_fill(void, IGNORE), reach)
        both = truth.masked_fill(truth != predicted, IGNORE)
        if on_cpu(labels):  # eight times as fast
            counts = [count_values(band.numpy()) for band in (both, truth, predicted)]
            self.on(labels.device).add_(torch.from_numpy(np.stack(counts)))
            return
        codes = torch.stack([both, truth, predicted]).flatten(1).long()
        one = torch.ones((), dtype=torch.int64, device=codes.device)
        self.on(codes.device).scatter_add_(1, codes, one.expand_as(codes))

    def value(self, in_mean: Tensor) -> Tensor:
        hits, truth, predicted = self.total()[:, : self.num_classes]
        iou: Tensor = hits / (truth + predicted - hits)
        return iou[in_mean].nanmean()


def _band(labels: Tensor, reach: int) -> Tensor:
    """Return `labels` (H, W) uint8 near a contour, and void elsewhere."""
    return labels.masked_fill(~near_contour(labels, reach), IGNORE)


def near_contour(labels: Tensor, reach: int) -> Tensor:
    """Return which pixels of `labels` (H, W) uint8 have another label, or the border, within `reach` rows and columns.

    The same as what the erosion of each class's mask by a square takes away, for all classes at once.
    """
    if on_cpu(labels):
        size = 2 * reach + 1
        pixels, square = labels.numpy(), np.ones((size, size), np.uint8)
        # Beyond the image lies no label: what is largest there only has to differ.
        most = cv2.dilate(pixels, square, borderType=cv2.BORDER_CONSTANT, borderValue=IGNORE)
        return torch.from_numpy((most != pixels) | (cv2.erode(pixels, square) != pixels))
    values = labels[None, None].float()
    largest = _largest_within(values, reach, beyond=float(IGNORE))
    smallest = -_largest_within(-values, reach, beyond=-math.inf)
    return ((largest != values) | (smallest != values))[0, 0]


def _largest_within(values: Tensor, reach: int, beyond: float) -> Tensor:
    """Return the largest of `values` (1, 1, H, W) within `reach` of each; outside of the image, all are `beyond`."""
    size = 2 * reach + 1
    padded = F.pad(values, [reach] * 4, value=beyond)
    return F.max_pool2d(F.max_pool2d(padded, (1, size), 1), (size, 1), 1)  # a square is separable
