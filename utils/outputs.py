"""What every model returns; here, on the lowest floor, because losses and metrics take it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
        return self._each(lambda x: resize(x, size))

    def upper_left(self, whole: tuple[int, int], size: tuple[int, int]) -> SegOutput:
        """The same output for the upper left `size` (height, width) of images of `whole`, which all logits cover."""
        return self._each(lambda x: upper_left(x, whole, size))

    def _each(self, change: Callable[[Tensor], Tensor]) -> SegOutput:
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


def upper_left(x: Tensor, whole: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Take from a map (N, C, h, w) of images of `whole` (height, width) what covers their upper left `size`."""
    strides = {_example(side) // _example(count) for side, count in zip(whole, x.shape[-2:], strict=True)}
    exact = all(_example(side) % _example(count) == 0 for side, count in zip(whole, x.shape[-2:], strict=True))
    if len(strides) == 1 and exact:
        return covering(x, strides.pop(), *size)
    return resize(x, whole)[..., : size[0], : size[1]]


def _example(size: int) -> int:
    """A size, or while exporting that of the example, which no graph depends on: strides are the same for all."""
    return size if isinstance(size, int) else int(size.node.hint)


def padded(images: Tensor, multiple: int) -> Tensor:
    """Pad images (N, C, H, W) with zeros, below and to the right, until both sides are multiples of `multiple`.

    Too much is padded and cut off again: of this form torch knows, for symbols as well, that the sides are multiples.
    """
    height, width = images.shape[-2:]
    rows = (height + multiple - 1) // multiple * multiple
    columns = (width + multiple - 1) // multiple * multiple
    return F.pad(images, (0, multiple - 1, 0, multiple - 1))[..., :rows, :columns]


def continued(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of images (N, C, H, W) until both sides are multiples of `multiple`."""
    height, width = images.shape[-2:]
    rows = (height + multiple - 1) // multiple * multiple
    columns = (width + multiple - 1) // multiple * multiple
    if isinstance(height, int) and isinstance(width, int):
        return F.pad(images, (0, columns - width, 0, rows - height), mode="replicate")
    # Of this form torch knows, for symbols as well, that the sides are multiples.
    for dim, (wanted, side) in enumerate(((rows, height), (columns, width)), start=2):
        images = images.index_select(dim, torch.arange(wanted, device=images.device).clamp(max=side - 1))
    return images


def covering(x: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Take from a map (N, C, h, w) of a padded image what covers its upper left `height` x `width` pixels.

    Where these are no multiples of `stride`, values are interpolated: a map cut at whole pixels would be stretched
    over the image, and differently at each stride.

    Returns:
        (N, C, ceil(height / stride), ceil(width / stride)).
    """
    known = isinstance(height, int) and isinstance(width, int)  # else a graph is made, for every size
    if known and height % stride == 0 and width % stride == 0:
        return x[..., : height // stride, : width // stride]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))  # half precision knows positions to 1 in 256
    for dim, pixels in ((2, height), (3, width)):
        wide = _resampled(wide, dim, pixels, stride)
    return wide.to(x.dtype)


def _resampled(x: Tensor, dim: int, pixels: int, stride: int) -> Tensor:
    """Resample values of `stride` pixels each to as few that end where the image of `pixels` does, linearly.

    By index, not by `F.interpolate` or a product of matrices: these ask whether a side is a single pixel, which a graph
    for every size cannot know.
    """
    wanted = (pixels + stride - 1) // stride
    positions = torch.arange(wanted, device=x.device, dtype=x.dtype)
    centers = ((positions + 0.5) * (pixels / (stride * wanted)) - 0.5).clamp(min=0)
    first = centers.floor()
    second = (first.long() + 1).clamp(max=x.shape[dim] - 1)
    share = (centers - first).view(-1, *[1] * (3 - dim))
    return x.index_select(dim, first.long()).lerp(x.index_select(dim, second), share)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the types that tensors have, also under autocast, on devices that have it; the meta device has not."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
