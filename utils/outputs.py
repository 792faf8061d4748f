"""What every model returns; here, on the lowest floor, because losses and metrics take it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class SegOutput(NamedTuple):
    """Logits of a segmentation model, the same type in training and in evaluation.

    The logits cover exactly the image, at whatever resolution the head works. Losses, metrics and argmax take
    them as they are. A named tuple, because `torch.export` flattens it and `DataParallel` gathers it.
    """

    logits: Tensor  # (N, num_classes, h, w): the head's own resolution
    aux: tuple[Tensor, ...] = ()  # logits of auxiliary heads, likewise; empty in evaluation
    edges: tuple[Tensor, ...] = ()  # (N, 1, h, w) each: logits of class boundaries, of networks that learn these
    masks: tuple[Tensor, ...] = ()  # (N, Q, h, w) each: logits of the masks of queries, in training
    mask_classes: tuple[Tensor, ...] = ()  # (N, Q, num_classes + 1) each: logits of their classes, the last is none

    def full(self, size: tuple[int, int]) -> SegOutput:
        """The same output with all logits resized to `size` (height, width)."""
        return self.changed(lambda x: resize(x, size))

    def changed(self, change: Callable[[Tensor], Tensor]) -> SegOutput:
        """The same output with `change` of each of its maps (N, C, h, w), whatever they hold."""
        aux, edges, masks = (tuple(map(change, each)) for each in (self.aux, self.edges, self.masks))
        return SegOutput(change(self.logits), aux, edges, masks, self.mask_classes)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `x` (N, C, h, w) bilinearly to `size` (height, width); `x` itself where it has that size.

    The only interpolation of feature maps and logits in the project, so that `align_corners` is decided once.
    """
    if _has_size(x, size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def _has_size(x: Tensor, size: tuple[int, int]) -> bool:
    """Whether `x` (..., h, w) has that size; while exporting, whether it has at every size of the image.

    A plain comparison would be decided by the sizes of the example that is traced, and an exported graph would then
    lack interpolations that other images need. One that changes nothing is harmless: it gives `x`.
    """
    height, width = x.shape[-2:]
    if torch.compiler.is_exporting():
        # Only here, because importing it takes a second.
        from torch.fx.experimental.symbolic_shapes import statically_known_true

        return statically_known_true(height == size[0]) and statically_known_true(width == size[1])
    return (height, width) == tuple(size)
