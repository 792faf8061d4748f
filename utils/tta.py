"""Test-time augmentation: sliding windows, several scales, mirrored images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.losses.strips import sum_at, sum_of_windows
from utils.outputs import resize
from utils.prediction_flags import OVERLAP, WINDOW

Predict = Callable[[Tensor], Tensor]  # raw images (N, channels, H, W) to logits (N, C, h, w)


@dataclass(frozen=True)
class TestTimeAugmentation:
    """How to predict an image, and what to average over.

    Args:
        mode: "single" is the whole image once, "sliding" windows, "multiscale" resized copies, and "center_crop" what
            validation in training cropped.
        scales: Factors of height and width in multiscale mode.
        flip: Average with the mirrored image too.
        window: Height and width of the windows in sliding mode.
        overlap: Share that neighboring windows have in common, at least.
        fast: Average scales at the resolution of the head instead of the image's; nearly the same, much cheaper.
        batch_size: Windows per forward pass.
        blend: How much the pixels of a window count where windows overlap: "uniform" all alike, "linear" and "gaussian"
            those at its border less. None is "uniform", and "linear" for images that are predicted in bands.
    """

    __test__ = False  # pytest takes classes called Test... for tests

    mode: str = "single"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window: tuple[int, int] = (WINDOW, WINDOW)
    overlap: float = OVERLAP
    fast: bool = False
    batch_size: int = 1
    blend: str | None = None

    def logits(self, predict: Predict, images: Tensor) -> Tensor:
        """Predict raw images (N, channels, H, W): logits (N, C, h, w), averaged over all that this asks for.

        Their resolution is the one at which they were averaged; the whole image once leaves them at the head's own.
        """
        predict = mirrored(predict) if self.flip else predict
        if self.mode == "sliding":
            return sliding(
                predict,
                images,
                window=self.window,
                overlap=self.overlap,
                batch_size=self.batch_size,
                blend=self.blend or "uniform",
            )
        return multi_scale(predict, images, self.scales, fast=self.fast)

    def passes(self, size: tuple[int, int]) -> int:
        """Return how many images the network sees for one of `size`: windows, scales, mirrored ones."""
        count = len(self.scales)
        if self.mode == "sliding":
            window = min(self.window[0], size[0]), min(self.window[1], size[1])
            rows, columns = (len(window_starts(size[i], window[i], self.overlap)) for i in (0, 1))
            count = rows * columns
        return 2 * count if self.flip else count


def mirrored(predict: Predict) -> Predict:
    """Average what `predict` gives with what it says of the image with left and right exchanged."""

    def both(images: Tensor) -> Tensor:
        return (predict(images) + predict(images.flip(-1)).flip(-1)) / 2

    return both


def multi_scale(predict: Predict, images: Tensor, scales: Sequence[float], *, fast: bool = False) -> Tensor:
    """Average logits over resized copies of the images.

    Args:
        predict: Gives logits of raw images.
        images: (N, channels, H, W), uint8 or floating.
        scales: Factors of height and width, above 0.
        fast: Average at the resolution of the logits whose scale is nearest 1, instead of the image's.

    Returns:
        (N, C, H, W), or smaller if `fast` or if the only scale is 1.
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    small: list[Tensor] = []
    for scale in sorted(scales, key=lambda scale: abs(scale - 1)):
        size = max(1, round(height * scale)), max(1, round(width * scale))
        # Raw values stay raw: they are resized before anything is subtracted from them.
        logits = predict(images if size == (height, width) else resize(images.float(), size))
        if len(scales) == 1:
            return logits if size == (height, width) else resize(logits, (height, width))
        if is_small(logits, (height, width)) and not fast:
            small.append(logits)
        elif total is None:
            total = logits.clone() if fast else resize(logits, (height, width)).clone()
        else:
            total += resize(logits, (total.shape[-2], total.shape[-1]))
    if small:
        sum_of_small = sum_at(small, (height, width))
        total = sum_of_small if total is None else total.add_(sum_of_small)
    assert total is not None
    return total.div_(len(scales))


def is_small(logits: Tensor, size: tuple[int, int]) -> bool:
    """Whether logits are better kept, and resized to `size` and added up at last: in strips that stay in a CPU's cache.

    That takes half the time; on a GPU it takes more.
    """
    return logits.device.type == "cpu" and 4 * logits.shape[-2] * logits.shape[-1] <= size[0] * size[1]


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """List where windows begin along a side so that each of its pixels is in at least one and none sticks out.

    Args:
        length: Pixels of the side.
        window: Pixels of a window, at most `length`.
        overlap: Share of a window that the next one covers too, at least; below 1.
    """
    step = max(1, int(window * (1 - overlap)))
    count = math.ceil((length - window) / step) + 1
    return [min(i * step, length - window) for i in range(count)]


def sliding(
    predict: Predict,
    images: Tensor,
    *,
    window: tuple[int, int],
    overlap: float = 1 / 3,
    batch_size: int = 1,
    blend: str = "uniform",
) -> Tensor:
    """Average logits over windows that cover the images.

    A window is never larger than the image, and the last ones are moved back inside, so no border is invented.

    Args:
        predict: Gives logits of raw images.
        images: (N, channels, H, W), uint8 or floating.
        window: Height and width of the windows.
        overlap: Share that neighbors have in common, at least, 0 to below 1.
        batch_size: Windows per call of `predict`.
        blend: Weights of the pixels of a window, see `side_weights`.

    Returns:
        (N, C, H, W), or smaller if one window covers all.
    """
    size = (images.shape[-2], images.shape[-1])
    height, width = min(window[0], size[0]), min(window[1], size[1])
    if (height, width) == size:
        return predict(images)
    rows = window_starts(size[0], height, overlap)
    columns = window_starts(size[1], width, overlap)
    corners = [(top, left) for top in rows for left in columns]
    weights = None if blend == "uniform" else blend_weights((height, width), blend, images.device)
    total: Tensor | None = None
    small: list[Tensor] = []
    for first in range(0, len(corners), batch_size):
        chosen = corners[first : first + batch_size]
        crops = torch.cat([images[..., top : top + height, left : left + width] for top, left in chosen])
        logits = predict(crops)
        if is_small(logits, (height, width)):
            small += logits.chunk(len(chosen))  # the crops of a window, one of each image, lie together
            continue
        logits = resize(logits, (height, width))
        if weights is not None:
            logits = logits * weights
        if total is None:
            total = logits.new_zeros(len(images), logits.shape[1], *size)
        for crop, (top, left) in zip(logits.chunk(len(chosen)), chosen, strict=True):
            total[..., top : top + height, left : left + width] += crop
    if small:
        total = sum_of_windows(small, corners, (height, width), size, weights)
    assert total is not None
    # Weights of windows are products over both sides, and the windows a grid: so their sums are products, too.
    down, across = _cover(size[0], rows, height, blend, total), _cover(size[1], columns, width, blend, total)
    return total.div_(down[:, None] * across)


def blend_weights(window: tuple[int, int], blend: str, device: torch.device) -> Tensor:
    """Return how much each pixel of a window counts where windows overlap, (h, w), above 0."""
    rows, columns = (side_weights(length, blend).to(device) for length in window)
    return rows[:, None] * columns


def side_weights(length: int, blend: str) -> Tensor:
    """Return how much each pixel along a window's side counts, (length,), above 0.

    Args:
        length: Pixels of the side.
        blend: "uniform" is 1 for all, "linear" falls towards both ends, "gaussian" like a bell whose standard deviation
            is an eighth of the side (Isensee et al. 2021, https://doi.org/10.1038/s41592-020-01008-z).
    """
    centers = (torch.arange(length) + 0.5) / length  # 0 to 1
    if blend == "linear":
        return 2 * torch.minimum(centers, 1 - centers)
    if blend == "gaussian":
        return torch.exp(-0.5 * ((centers - 0.5) / 0.125) ** 2)
    return torch.ones(length)


def _cover(length: int, starts: Sequence[int], window: int, blend: str, like: Tensor) -> Tensor:
    """Add up the weights of the windows that cover each pixel of a side, (length,)."""
    sums, weights = like.new_zeros(length), side_weights(window, blend).to(like)
    for start in starts:
        sums[start : start + window] += weights
    return sums
