"""Loss of a branch that finds the boundaries of classes; void pixels count nowhere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE
from utils.losses.base import inverse_or_zero
from utils.losses.strips import accumulation_dtype
from utils.outputs import resize

RADIUS = 2  # pixels on either side of a boundary that belong to it
SURE = 0.8  # probability above which the branch is believed


def boundaries(labels: Tensor) -> Tensor:
    """Find the labelled pixels with another class at most `RADIUS` rows and columns away: (N, H, W) bool.

    What borders on void is no boundary.
    """
    labelled = labels != IGNORE
    classes = labels.float()[:, None]
    void = ~labelled[:, None]
    size = 2 * RADIUS + 1
    highest = F.max_pool2d(classes.masked_fill(void, -IGNORE), size, 1, RADIUS)
    lowest = -F.max_pool2d((-classes).masked_fill(void, -IGNORE), size, 1, RADIUS)
    return labelled & (highest != lowest)[:, 0]


def boundary_loss(edges: Tensor, labels: Tensor, images: Tensor) -> Tensor:
    """Compute the binary cross entropy of boundaries, of which both kinds of pixels have one half in each image.

    Source: Xu et al. 2022, https://arxiv.org/abs/2206.02066, section 3.1, with shares of each image, not of the batch,
    so that micro-batches add up.

    Args:
        edges: (N, 1, h, w) logits.
        labels: (N, H, W).
        images: Number of images with labelled pixels in the whole batch, shape ().
    """
    logits = resize(edges.float(), (labels.shape[-2], labels.shape[-1]))[:, 0].flatten(1)
    truth = boundaries(labels).flatten(1)
    labelled = (labels != IGNORE).flatten(1)
    losses = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="none")
    dtype = accumulation_dtype(logits.device)
    counted = labelled.sum(1, dtype=dtype)
    found = truth.sum(1, dtype=dtype)
    total = losses.new_zeros((), dtype=dtype)
    for pixels, other in ((truth, counted - found), (labelled & ~truth, found)):
        sums = (losses * pixels).sum(1, dtype=dtype)
        total = total + (sums * other * inverse_or_zero(counted).square()).sum()
    return (total * inverse_or_zero(images)).to(torch.float32)


def near_boundaries(edges: Tensor, labels: Tensor) -> Tensor:
    """Return `labels` (N, H, W) with void wherever `edges` (N, 1, h, w) are not sure of a boundary."""
    logits = resize(edges.detach().float(), (labels.shape[-2], labels.shape[-1]))[:, 0]
    return labels.masked_fill(logits.sigmoid() <= SURE, IGNORE)
