"""Sums over pixels of low-resolution logits, as if they had been resized to the labels first.

The losses are written in terms of these sums; how a sum is computed is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE
from utils.outputs import resize


class PixelLoss(Protocol):
    """A loss of one pixel as a function of the log-probability of its class; 0 where that is 0."""

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        """Losses of pixels, any shape; `weight` is the weight of each pixel's class."""

    def slope(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        """Derivative of `value` by `log_p`."""


def wide(device: torch.device) -> torch.dtype:
    """The floating type for sums over many pixels: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def pixel_sum(
    logits: Tensor,
    labels: Tensor,
    pixel: PixelLoss,
    class_weights: Tensor | None = None,
    spread: Tensor | None = None,
) -> Tensor:
    """Sum of `pixel` over the labelled pixels, minus that of ``spread @ log_p``; shape (), in a wide type.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.
        class_weights: (C,); 1 for all classes if None.
        spread: (C,) factors of the log-probabilities of all classes, for label smoothing.
    """
    return _plain_pixel_sum(logits, labels, pixel, class_weights, spread)


def class_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of class probabilities over labelled pixels, for each image.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.

    Returns:
        The sum over the pixels of each class, and that over all labelled pixels, both (N, C).
    """
    return _plain_class_sums(logits, labels)


def lovasz(logits: Tensor, labels: Tensor, classes: str | Sequence[int]) -> Tensor:
    """Mean over classes of the Lovász extension of 1 - intersection over union, shape (); 0 without labelled pixels.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64; all images together are one set of pixels.
        classes: "present", "all", or indices.
    """
    return _plain_lovasz(logits, labels, classes)


def label_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Pixels of each class in each image of `labels` (N, H, W): (N, C) in a wide type, without a host sync."""
    flat = labels.flatten(1).long()
    flat = torch.where(flat == IGNORE, num_classes, flat)
    counts = torch.zeros(len(labels), num_classes + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, flat, torch.ones((), dtype=torch.int64, device=labels.device).expand_as(flat))
    return counts[:, :num_classes].to(wide(labels.device))


def _enlarged(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits at the size of the labels, in float32 (float64 stays); low precision would err by whole per cents."""
    with torch.autocast(logits.device.type, enabled=False):
        return resize(logits if logits.dtype == torch.float64 else logits.float(), (labels.shape[-2], labels.shape[-1]))


def _plain_pixel_sum(
    logits: Tensor, labels: Tensor, pixel: PixelLoss, class_weights: Tensor | None, spread: Tensor | None
) -> Tensor:
    log_p = F.log_softmax(_enlarged(logits, labels), dim=1)
    void = labels == IGNORE
    index = labels.masked_fill(void, 0).long()
    weight = 1.0 if class_weights is None else class_weights.to(log_p.dtype)[index]
    losses = pixel.value(log_p.gather(1, index[:, None])[:, 0].masked_fill(void, 0), weight)
    if spread is not None:
        losses = losses - (log_p * spread.to(log_p.dtype)[:, None, None]).sum(1).masked_fill(void, 0)
    return losses.sum(dtype=wide(logits.device))


def _plain_class_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    void = labels == IGNORE
    p = F.softmax(_enlarged(logits, labels), dim=1).masked_fill(void[:, None], 0)
    index = labels.masked_fill(void, 0).long()
    own = p.gather(1, index[:, None]).flatten(1)
    hits = torch.zeros(p.shape[:2], dtype=p.dtype, device=p.device).scatter_add(1, index.flatten(1), own)
    return hits, p.sum((2, 3))


def _plain_lovasz(logits: Tensor, labels: Tensor, classes: str | Sequence[int]) -> Tensor:
    labelled = labels != IGNORE
    p, truth = F.softmax(_enlarged(logits, labels), dim=1).movedim(1, -1)[labelled], labels[labelled]
    total = p.sum(dtype=wide(logits.device)) * 0
    chosen = _chosen(truth, classes, logits.shape[1])
    for index in chosen if len(truth) else ():
        own = truth == index
        errors, order = torch.sort((own.to(p.dtype) - p[:, index]).abs(), descending=True)
        total = total + (errors * jaccard_steps(own[order]).to(p.dtype)).sum(dtype=total.dtype)
    return total / max(len(chosen), 1)


def _chosen(truth: Tensor, classes: str | Sequence[int], num_classes: int) -> Sequence[int]:
    if classes == "present":
        return torch.bincount(truth.flatten().int(), minlength=num_classes)[:num_classes].nonzero()[:, 0].tolist()
    return range(num_classes) if isinstance(classes, str) else classes


def jaccard_steps(own: Tensor) -> Tensor:
    """Growth of the Jaccard loss as pixels are given up one by one: algorithm 1 of Berman et al. 2018.

    Written as steps, not as differences of the loss, which would cancel; and so exact in any order of equal errors.

    Args:
        own: (P,) bool, which pixels are of the class, those with the largest error first.
    """
    size = own.sum()
    hits = own.cumsum(0)
    # Of the class and what was given to it. Integers would be divided in float32.
    union = (size + torch.arange(1, len(own) + 1, device=own.device) - hits).to(wide(own.device))
    steps = torch.where(own, 1 / union, (size - hits) / (union * (union - 1)).clamp(min=1))
    if len(own):
        steps[0] = torch.where(size > 0, steps[0], 1)
    return steps


@torch.no_grad()
def predicted_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Labels (N, H, W) uint8 of logits (N, C, h, w) resized to `size`; of equal logits the first class wins."""
    with torch.autocast(logits.device.type, enabled=False):
        return resize(logits if logits.dtype == torch.float64 else logits.float(), size).argmax(1).to(torch.uint8)
