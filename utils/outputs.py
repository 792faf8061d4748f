"""What every model returns; here, on the lowest floor, because losses and metrics take it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class SegOutput(NamedTuple):
    """Logits of a segmentation model, the same type in training and in evaluation.

    The logits cover exactly the image, at whatever resolution the head works. Losses, metrics and argmax take
    them as they are. A named tuple, because `torch.export` flattens it and `DataParallel` gathers it.
    """

    logits: Tensor  # (N, num_classes, h, w): the head's own resolution
    aux: tuple[Tensor, ...] = ()  # logits of auxiliary heads, likewise; empty in evaluation

    def full(self, size: tuple[int, int]) -> SegOutput:
        """The same output with all logits resized to `size` (height, width)."""
        return SegOutput(resize(self.logits, size), tuple(resize(logits, size) for logits in self.aux))


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize `x` (N, C, h, w) bilinearly to `size` (height, width); `x` itself where it has that size.

    The only interpolation of feature maps and logits in the project, so that `align_corners` is decided once.
    """
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)
