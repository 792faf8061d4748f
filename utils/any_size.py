"""Images of any size for networks whose strides divide the sides of what they get: longer on the way in, cut after."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.outputs import SegOutput, resize


def divides(multiple: int, size: tuple[int, int]) -> bool:
    """Whether both sides of `size` are multiples; no while a graph is made, which is for every size."""
    return _is_known(size) and size[0] % multiple == size[1] % multiple == 0


def continued(images: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of images (N, C, H, W) until both sides are multiples of `multiple`."""
    height, width = images.shape[-2:]
    rows, columns = _rounded_up(height, multiple), _rounded_up(width, multiple)
    if _is_known((height, width)):
        return F.pad(images, (0, columns - width, 0, rows - height), mode="replicate")
    # Of this form torch knows, for symbols as well, that the sides are multiples.
    for dim, (wanted, side) in enumerate(((rows, height), (columns, width)), start=2):
        images = images.index_select(dim, torch.arange(wanted, device=images.device).clamp(max=side - 1))
    return images


def upper_left(output: SegOutput, whole: tuple[int, int], size: tuple[int, int]) -> SegOutput:
    """Cut an output for images of `whole` (height, width) to what covers their upper left `size`, in pixels."""

    def cut(x: Tensor) -> Tensor:
        sides = [(_example(side), _example(count)) for side, count in zip(whole, x.shape[-2:], strict=True)]
        strides = {side // count for side, count in sides}
        if len(strides) == 1 and all(side % count == 0 for side, count in sides):
            return covering(x, strides.pop(), *size)
        return resize(x, whole)[..., : size[0], : size[1]]

    return output.changed(cut)


def padded(images: Tensor, multiple: int) -> Tensor:
    """Pad images (N, C, H, W) with zeros, below and to the right, until both sides are multiples of `multiple`.

    Too much is padded and cut off again: of this form torch knows, for symbols as well, that the sides are multiples.
    """
    height, width = images.shape[-2:]
    rows, columns = _rounded_up(height, multiple), _rounded_up(width, multiple)
    return F.pad(images, (0, multiple - 1, 0, multiple - 1))[..., :rows, :columns]


def covering(x: Tensor, stride: int, height: int, width: int) -> Tensor:
    """Take from a map (N, C, h, w) of a padded image what covers its upper left `height` x `width` pixels.

    Where these are no multiples of `stride`, values are interpolated: a map cut at whole pixels would be stretched
    over the image, and differently at each stride.

    Returns:
        (N, C, ceil(height / stride), ceil(width / stride)).
    """
    if divides(stride, (height, width)):
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


def _rounded_up(pixels: int, multiple: int) -> int:
    """The next multiple, of a form that torch understands for symbols too."""
    return (pixels + multiple - 1) // multiple * multiple


def _is_known(size: tuple[int, int]) -> bool:
    """Whether a size is one of numbers, not of symbols."""
    return isinstance(size[0], int) and isinstance(size[1], int)


def _example(size: int) -> int:
    """A size, or while exporting that of the example, which no graph depends on: strides are the same for all."""
    return size if isinstance(size, int) else int(size.node.hint)
