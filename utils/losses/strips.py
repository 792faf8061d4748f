"""Losses and predictions at full size, strip by strip; one subject, which is why this file is long.

The strips are of low-resolution logits; full-size logits are never held. Bilinear resizing is linear and separable: a
strip of output rows is ``rows @ logits @ columns`` with two narrow banded matrices. Each strip of logits is made, used
and dropped; its gradient goes through the transposed matrices at once. So value and gradient of a loss come out of one
forward pass over strips that fit into the cache, and backward only scales the gradient. Inside, all is float32 (float64
for float64 logits), autocast or not.

The losses are written in terms of the public functions below. Each has a plain twin, `plain_...`, made of ordinary
operations, which gives second derivatives and is what tests compare with.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE
from utils.outputs import resize

# Floats of one strip. On a CPU it should fit into the second-level cache, often 2 MiB; elsewhere, few launches count.
CPU_STRIP, DEVICE_STRIP = 2**19, 2**25
BLOCK = 64  # columns of one dense block of the banded matrix


class PixelLoss(Protocol):
    """A loss of one pixel as a function of the log-probability of its class; 0 where that is 0."""

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        """Return the losses of pixels, any shape; `weight` is the weight of each pixel's class."""

    def derivative(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        """Return the derivative of `value` by `log_p`."""


def pixel_sum(
    logits: Tensor,
    labels: Tensor,
    pixel: PixelLoss,
    class_weights: Tensor | None = None,
    smoothing: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Sum `pixel` over the labelled pixels, minus ``smoothing @ log_p``: shape (), in `accumulation_dtype`.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.
        class_weights: (C,); 1 for all classes if None. With `allowed`, of each label, (256,).
        smoothing: (C,) factors of the log-probabilities of all classes, for label smoothing.
        allowed: (256, C) bool, classes of which a pixel with each label has one: `pixel` is of the sum of their
            probabilities. None where a label is a class.
    """
    total: Tensor = _PixelSum.apply(logits, labels, pixel, class_weights, smoothing, allowed)
    return total


def cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross entropy of each pixel: (N, H, W) in float32 (float64 for float64 logits); 0 at void pixels.

    For losses that choose among pixels: the gradient of the result says how much each pixel counts.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.
    """
    losses: Tensor = _CrossEntropies.apply(logits, labels)
    return losses


def class_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum class probabilities over labelled pixels, for each image.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.

    Returns:
        The sum over the pixels of each class, and that over all labelled pixels, both (N, C), in `accumulation_dtype`.
    """
    hits, sums = _ClassSums.apply(logits, labels)
    return hits, sums


def label_sums(logits: Tensor, labels: Tensor, values: Tensor) -> Tensor:
    """Sum class probabilities over the pixels of each label, for each image: (N, L, C) in `accumulation_dtype`.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.
        values: The L labels, of which void is none, (L,).
    """
    sums: Tensor = _LabelSums.apply(logits, labels, values)
    return sums


def cross_entropy_and_class_sums(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the cross entropies of labelled pixels, minus ``smoothing @ log_p``, and what `class_sums` does, in one pass.

    Backward takes another one, since what a probability adds to a loss of such sums is known only after all of them.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64.
        weights: (C,), what a pixel of each class counts.
        smoothing: (C,) factors of the log-probabilities of all classes, for label smoothing.

    Returns:
        The first sum, (), and the two of `class_sums`, (N, C), all in `accumulation_dtype`.
    """
    total, hits, sums = _CrossEntropyAndClassSums.apply(logits, labels, weights, smoothing)
    return total, hits, sums


@torch.no_grad()
def predicted_labels(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return labels (N, H, W) uint8 of logits (N, C, h, w) resized to `size`; of equal logits the first class wins.

    Each image is computed by itself, so that the result does not depend on the batch.
    """
    logits = as_precise(logits)
    num_classes = logits.shape[1]
    resizing = Resizing.of(logits, size)
    labels = torch.empty(len(logits), *size, dtype=torch.uint8, device=logits.device)
    # The first of several largest is the one with the largest of these.
    rank = torch.arange(num_classes, 0, -1, dtype=torch.uint8, device=logits.device).view(-1, 1, 1)
    for index, strip in resizing.strips(len(logits), num_classes):
        tiles = resizing.enlarge(logits[index], strip, fresh=False)
        if tiles.device.type == "cpu":  # where argmax over a dimension in the middle is slow: 3 times as fast
            best = num_classes - ((tiles == tiles.amax(1, keepdim=True)).to(torch.uint8) * rank).amax(1)
            best.clamp_(max=num_classes - 1)  # a pixel of NaNs equals nothing
        else:
            best = tiles.argmax(1).to(torch.uint8)
        labels[index, strip.top : strip.bottom] = resizing.rows_of(best)
    return labels


@torch.no_grad()
def winning_probabilities(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the largest class probability (N, H, W) of logits (N, C, h, w) resized to `size`, see `as_precise`."""
    logits = as_precise(logits)
    resizing = Resizing.of(logits, size)
    largest = torch.empty(len(logits), *size, dtype=logits.dtype, device=logits.device)
    for index, strip in resizing.strips(*logits.shape[:2]):
        tiles = resizing.enlarge(logits[index], strip)
        tiles -= tiles.amax(1, keepdim=True)
        largest[index, strip.top : strip.bottom] = resizing.rows_of(tiles.exp_().sum(1).reciprocal_())
    return largest


@torch.no_grad()
def sum_at(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Add up logits (N, C, h, w), of several h and w below `size`, resized to it: (N, C, H, W), the only full size."""
    images, channels = maps[0].shape[:2]
    resizings = [Resizing.of(each, size) for each in maps]
    result = maps[0].new_empty(images, channels, *size)
    for index, strip in resizings[0].strips(images, channels):
        total: Tensor | None = None
        for each, resizing in zip(maps, resizings, strict=True):
            tiles = resizing.enlarge(each[index], resizing.strip(strip.top, strip.bottom))
            total = tiles if total is None else total.add_(tiles)
        assert total is not None
        rows = total.permute(1, 2, 0, 3).flatten(2)
        result[index, :, strip.top : strip.bottom] = rows[..., : size[1]]
    return result


@torch.no_grad()
def sum_of_windows(
    maps: Sequence[Tensor],
    corners: Sequence[tuple[int, int]],
    window: tuple[int, int],
    size: tuple[int, int],
    weights: Tensor | None = None,
) -> Tensor:
    """Add up logits of windows of an image, each resized to the window's size: (N, C, H, W), the only full size.

    Args:
        maps: Logits (N, C, h, w) of each window.
        corners: Row and column at which each window begins.
        window: Their height and width.
        size: Of the image.
        weights: What each pixel of a window counts, of the window's size; None for 1.
    """
    images, channels = maps[0].shape[:2]
    resizing = Resizing.of(maps[0], window)
    rows = max(1, CPU_STRIP // (channels * size[1]))
    buffer = maps[0].new_empty(channels, rows, size[1])
    result = maps[0].new_empty(images, channels, *size)
    for image, top in itertools.product(range(images), range(0, size[0], rows)):
        bottom = min(top + rows, size[0])
        strip = buffer[:, : bottom - top].zero_()
        for logits, (upper, left) in zip(maps, corners, strict=True):
            first, last = max(top, upper), min(bottom, upper + window[0])
            if first >= last:
                continue
            tiles = resizing.enlarge(logits[image], resizing.strip(first - upper, last - upper))
            shown = tiles.permute(1, 2, 0, 3).flatten(2)[..., : window[1]]
            if weights is not None:
                shown = shown * weights[first - upper : last - upper]
            strip[:, first - top : last - top, left : left + window[1]] += shown
        result[image, :, top:bottom] = strip
    return result


def label_counts(labels: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each class in each image of `labels` (N, H, W): (N, C) float, without a host sync."""
    flat = labels.flatten(1).long()
    flat = torch.where(flat == IGNORE, num_classes, flat)
    counts = torch.zeros(len(labels), num_classes + 1, dtype=torch.int64, device=labels.device)
    counts.scatter_add_(1, flat, torch.ones((), dtype=torch.int64, device=labels.device).expand_as(flat))
    return counts[:, :num_classes].to(accumulation_dtype(labels.device))


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return the floating type for sums over many pixels: float64 where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Strip(NamedTuple):
    """Output rows `top` to `bottom`, and the input rows `first` to `last` that they depend on (ends excluded)."""

    top: int
    bottom: int
    first: int
    last: int


class Resizing:
    """Bilinear resizing (align_corners=False) from (h, w) to (H, W) of strips of rows, and its transpose.

    Strips come as tiles (blocks, C, rows, width): the columns are cut into blocks, since a block depends on few
    input columns. Where the width does not divide evenly, tiles go beyond the image; labels there are void.
    """

    def __init__(
        self, height: int, width: int, out_height: int, out_width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.out_height = out_height
        self.out_width = out_width
        self.device = device
        self.identity = (height, width) == (out_height, out_width)
        self.blocks = 1 if self.identity else -(-out_width // BLOCK)
        self.block_width = -(-out_width // self.blocks)
        if self.identity:
            return
        rows = _interpolation(height, out_height)
        # The first input row of each output row, and the one behind the last; of equal values, argmax takes the first.
        used = rows.ne(0).to(torch.int8)
        self._first: list[int] = used.argmax(1).tolist()
        self._last: list[int] = (height - used.flip(1).argmax(1)).tolist()
        self._rows = rows.to(device, dtype)
        take, columns = _banded(_interpolation(width, out_width), self.blocks, self.block_width)
        self._take = take.to(device)
        self._columns = columns.to(device, dtype)

    @classmethod
    def of(cls, logits: Tensor, size: Sequence[int]) -> Resizing:
        """Return the resizing of `logits` (N, C, h, w) to `size` (H, W), which is kept for the next time."""
        height, width = logits.shape[-2:]
        out_height, out_width = size
        return _resizing(height, width, out_height, out_width, logits.dtype, logits.device)

    def strips(self, images: int, channels: int) -> Iterator[tuple[int, Strip]]:
        """Yield the number of the image and the strip, for all strips of all images."""
        floats = CPU_STRIP if self.device.type == "cpu" else DEVICE_STRIP
        rows = max(1, floats // (channels * self.block_width * self.blocks))
        for image in range(images):
            for top in range(0, self.out_height, rows):
                yield image, self.strip(top, min(top + rows, self.out_height))

    def strip(self, top: int, bottom: int) -> Strip:
        """Return the strip of output rows `top` to `bottom`."""
        if self.identity:
            return Strip(top, bottom, top, bottom)
        return Strip(top, bottom, self._first[top], self._last[bottom - 1])

    def enlarge(self, logits: Tensor, strip: Strip, *, fresh: bool = True) -> Tensor:
        """Resize a strip of `logits` (C, h, w) to tiles (blocks, C, rows, width).

        With `fresh`, the tiles are memory of their own, which may be overwritten.
        """
        channels, rows = len(logits), strip.bottom - strip.top
        source = logits[:, strip.first : strip.last]
        if self.identity:
            return source.clone(memory_format=torch.contiguous_format)[None] if fresh else source[None]
        # Rows first: they are fewer columns then.
        tall = torch.matmul(self._row_weights(strip), source).view(channels * rows, -1)
        taken = tall.index_select(1, self._take).view(channels * rows, self.blocks, -1).transpose(0, 1)
        return torch.bmm(taken, self._columns).view(self.blocks, channels, rows, self.block_width)

    def add_reduced(self, gradient: Tensor, tiles: Tensor, strip: Strip) -> None:
        """Add to `gradient` (C, h, w) that of `tiles` (blocks, C, rows, width): the transpose of `enlarge`."""
        target = gradient[:, strip.first : strip.last]
        if self.identity:
            target += tiles[0]
            return
        channels, rows = tiles.shape[1:3]
        taken = torch.bmm(tiles.view(self.blocks, channels * rows, -1), self._columns.transpose(1, 2))
        tall = taken.new_zeros(channels * rows, gradient.shape[2])
        tall.index_add_(1, self._take, taken.transpose(0, 1).reshape(channels * rows, -1))
        target += torch.matmul(self._row_weights(strip).t(), tall.view(channels, rows, -1))

    def tiled(self, pixels: Tensor, beyond: float = IGNORE) -> Tensor:
        """Cut labels or other `pixels` (N, H, W) into (N, blocks, H, width), with `beyond` outside of the image."""
        missing = self.blocks * self.block_width - self.out_width
        padded = F.pad(pixels, (0, missing), value=beyond) if missing else pixels
        return padded.reshape(*padded.shape[:2], self.blocks, self.block_width).transpose(1, 2)

    def rows_of(self, tiles: Tensor) -> Tensor:
        """Join tiles (blocks, rows, width) to rows (rows, W)."""
        return tiles.transpose(0, 1).flatten(1)[:, : self.out_width]

    def _row_weights(self, strip: Strip) -> Tensor:
        return self._rows[strip.top : strip.bottom, strip.first : strip.last]


@functools.lru_cache(maxsize=64)
def _resizing(*arguments: Any) -> Resizing:
    return Resizing(*arguments)


def _interpolation(size: int, out_size: int) -> Tensor:
    """Return the matrix (out_size, size), float64, that resizes one dimension, with align_corners=False."""
    position = ((torch.arange(out_size, dtype=torch.float64) + 0.5) * (size / out_size) - 0.5).clamp(min=0)
    lower = position.long().clamp(max=size - 1)
    upper = (lower + 1).clamp(max=size - 1)
    share = (position - lower)[:, None]
    matrix = torch.zeros(out_size, size, dtype=torch.float64)
    matrix.scatter_add_(1, lower[:, None], 1 - share)
    return matrix.scatter_add_(1, upper[:, None], share)


def _banded(matrix: Tensor, blocks: int, width: int) -> tuple[Tensor, Tensor]:
    """Cut a banded `matrix` (out, in) into dense blocks of `width` outputs that take K inputs each.

    Returns:
        The inputs that the blocks take, one block after the other, (blocks * K,), and their weights (blocks, K, width).
    """
    padded = F.pad(matrix, (0, 0, 0, blocks * width - len(matrix)))
    parts = torch.split(padded, width)
    first, size = [], 1
    for part in parts:
        used = part.ne(0).any(0).nonzero()[:, 0].tolist() or [0]  # a block may lie beyond the image
        first.append(used[0])
        size = max(size, used[-1] - used[0] + 1)
    taken, weights = [], []
    for part, start in zip(parts, first, strict=True):
        start = min(start, matrix.shape[1] - size)  # all blocks take equally many
        taken.append(torch.arange(start, start + size))
        weights.append(part[:, start : start + size].t())
    return torch.cat(taken), torch.stack(weights).contiguous()


def as_precise(logits: Tensor) -> Tensor:
    """Return `logits`, detached, in the type that losses are computed in: float64 for float64, else float32."""
    logits = logits.detach()
    return logits if logits.dtype == torch.float64 else logits.float()


def _truth(tiled: Tensor, strip: Strip) -> tuple[Tensor, Tensor]:
    """Return classes of a strip of one image, (blocks, rows, width) int64, 0 for void, and which pixels are void."""
    labels = tiled[:, strip.top : strip.bottom]
    void = labels == IGNORE
    return labels.masked_fill(void, 0).long(), void


def plain_gradient(plain: Callable[..., Any], logits: Tensor, gradients: Sequence[Tensor]) -> Tensor:
    """Return the gradient of ``plain(logits)`` as a function that can be differentiated, for second derivatives."""
    values = plain(logits)
    values = values if isinstance(values, tuple) else (values,)
    return torch.autograd.grad(values, logits, gradients, create_graph=True)[0]


class _PixelSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        labels: Tensor,
        pixel: PixelLoss,
        class_weights: Tensor | None,
        smoothing: Tensor | None,
        allowed: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.plain = lambda z: plain_pixel_sum(z, labels, pixel, class_weights, smoothing, allowed)
        with torch.autocast(logits.device.type, enabled=False):
            total, ctx.gradient = _strip_pixel_sum(
                as_precise(logits), labels, pixel, class_weights, smoothing, allowed, ctx.needs_input_grad[0]
            )
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradient(ctx.plain, logits, [gradient]), None, None, None, None, None
        return (ctx.gradient * gradient).to(logits.dtype), None, None, None, None, None


def _strip_pixel_sum(
    logits: Tensor,
    labels: Tensor,
    pixel: PixelLoss,
    class_weights: Tensor | None,
    smoothing: Tensor | None,
    allowed: Tensor | None,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Compute `pixel_sum` and its gradient by `logits` (N, C, h, w), which is None unless it is needed.

    With logits z, m = log sum exp z, log p_t = z_t - m and smoothing s, the value of a pixel is
    f(log p_t) - sum s_k (z_k - m), and its derivative by z_k is f' ([k = t] - p_k) - s_k + p_k sum s.
    So what holds exp z is multiplied until it is p (sum s - f'), then f' is added at t, and s subtracted.
    """
    images, num_classes = logits.shape[:2]
    resizing = Resizing.of(logits, labels.shape[1:])
    tiled = resizing.tiled(labels)
    class_weights = None if class_weights is None else class_weights.to(logits.dtype)
    smoothing = None if smoothing is None else smoothing.to(logits.dtype).view(-1, 1, 1)
    total = torch.zeros((), dtype=accumulation_dtype(logits.device), device=logits.device)
    gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format) if needs_gradient else None
    for image, strip in resizing.strips(images, num_classes):
        truth, void = _truth(tiled[image], strip)
        weight = 1.0 if class_weights is None else class_weights[truth]
        tiles = resizing.enlarge(logits[image], strip)
        tiles -= tiles.amax(1, keepdim=True)  # which changes no probability, and keeps exponentials finite
        shares: Tensor | None = None
        if allowed is None:
            own = tiles.gather(1, truth[:, None])[:, 0]
        else:
            own, shares = _of_allowed(tiles, truth, allowed)
        smoothed = None if smoothing is None else (tiles * smoothing).sum(1)
        exponentials = tiles.exp_()  # in place: from here on, `tiles` are no logits
        mass = exponentials.sum(1)
        log_mass = mass.log()
        log_p = (own - log_mass).masked_fill_(void, 0)
        if shares is not None:
            log_p.clamp_(max=0)  # the two sums may be rounded differently
        total += pixel.value(log_p, weight).sum(dtype=total.dtype)
        if smoothing is not None and smoothed is not None:
            total -= (smoothed - smoothing.sum() * log_mass).masked_fill_(void, 0).sum(dtype=total.dtype)
        if gradient is None:
            continue
        slope = pixel.derivative(log_p, weight)
        filled = slope if isinstance(slope, Tensor) else log_p.new_full((), slope)  # on a GPU, without waiting for it
        derivative = filled.to(log_p.dtype).expand_as(log_p).masked_fill(void, 0)
        # The softmax, exponentials / mass, is never written down. Of several classes that are allowed, each has its
        # share in them instead of [k = t].
        factor_of_p = -derivative if smoothing is None else (smoothing.sum() - derivative).masked_fill_(void, 0)
        exponentials *= (factor_of_p / mass)[:, None]
        if shares is None:
            exponentials.scatter_add_(1, truth[:, None], derivative[:, None])
        else:
            exponentials += shares.mul_(derivative[:, None])
        if smoothing is not None:
            exponentials -= smoothing * (~void)[:, None]
        resizing.add_reduced(gradient[image], exponentials, strip)
    return total, gradient


def _of_allowed(tiles: Tensor, labels: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Join the classes that are allowed at each pixel: the logit of their sum, and the share of each class in it.

    Args:
        tiles: Logits, (blocks, C, rows, width).
        labels: (blocks, rows, width) int64.
        allowed: (256, C) bool.

    Returns:
        (blocks, rows, width), and (blocks, C, rows, width), which is 0 for classes that are not allowed.
    """
    others = ~allowed.t()[:, labels].movedim(0, 1)
    shares = tiles.masked_fill(others, -torch.inf)
    joined = shares.logsumexp(1)
    shares -= joined[:, None]
    return joined, shares.exp_()


class _CrossEntropies(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels)
        precise = as_precise(logits)
        resizing = Resizing.of(precise, labels.shape[1:])
        tiled = resizing.tiled(labels)
        losses = torch.empty(labels.shape, dtype=precise.dtype, device=labels.device)
        with torch.autocast(logits.device.type, enabled=False):
            for image, strip in resizing.strips(*logits.shape[:2]):
                truth, void = _truth(tiled[image], strip)
                tiles = resizing.enlarge(precise[image], strip)
                own = tiles.gather(1, truth[:, None])[:, 0]
                rows = resizing.rows_of((tiles.logsumexp(1) - own).masked_fill_(void, 0))
                losses[image, strip.top : strip.bottom] = rows
        return losses

    @staticmethod
    def backward(ctx: Any, shares: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradient(lambda z: plain_cross_entropies(z, labels), logits, [shares]), None
        precise = as_precise(logits)
        gradient = torch.zeros_like(precise, memory_format=torch.contiguous_format)
        shares = shares.to(precise.dtype).masked_fill(labels == IGNORE, 0)
        tiled = Resizing.of(precise, labels.shape[1:]).tiled(shares, beyond=0)
        with torch.autocast(logits.device.type, enabled=False):
            for image, strip, p, truth, _, resizing in _probabilities(precise, labels):
                share = tiled[image, :, None, strip.top : strip.bottom]
                p *= share
                p.scatter_add_(1, truth[:, None], -share)
                resizing.add_reduced(gradient[image], p, strip)
        return gradient.to(logits.dtype), None


class _ClassSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(logits, labels)
        precise = as_precise(logits)
        hits = torch.zeros(logits.shape[:2], dtype=accumulation_dtype(logits.device), device=logits.device)
        sums = torch.zeros_like(hits)
        with torch.autocast(logits.device.type, enabled=False):
            for image, _, p, truth, _, _ in _probabilities(precise, labels):
                own = p.gather(1, truth[:, None])
                hits[image].scatter_add_(0, truth.flatten(), own.flatten().to(hits.dtype))
                sums[image] += p.sum((2, 3)).sum(0)
        return hits, sums

    @staticmethod
    def backward(ctx: Any, hits_gradient: Tensor, sums_gradient: Tensor) -> tuple[Tensor, None]:
        logits, labels = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradient(lambda z: plain_class_sums(z, labels), logits, [hits_gradient, sums_gradient]), None
        precise = as_precise(logits)
        hits_gradient, sums_gradient = hits_gradient.to(precise.dtype), sums_gradient.to(precise.dtype)
        gradient = torch.zeros_like(precise, memory_format=torch.contiguous_format)
        with torch.autocast(logits.device.type, enabled=False):
            for image, strip, p, truth, _, resizing in _probabilities(precise, labels):
                by_class = sums_gradient[image]
                own = hits_gradient[image][truth] * p.gather(1, truth[:, None])[:, 0]
                mean = torch.matmul(by_class, p.flatten(2)).view_as(own) + own
                p *= by_class[:, None, None] - mean[:, None]
                p.scatter_add_(1, truth[:, None], own[:, None])
                resizing.add_reduced(gradient[image], p, strip)
        return gradient.to(logits.dtype), None


class _LabelSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(logits, labels, values)
        precise = as_precise(logits)
        shape = len(logits), len(values), logits.shape[1]
        sums = torch.zeros(shape, dtype=accumulation_dtype(logits.device), device=logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            for image, _, p, truth, _, _ in _probabilities(precise, labels):
                belongs = (truth[:, :, None] == values[:, None]).to(p.dtype)  # (blocks, rows, L, width)
                by_row = torch.matmul(belongs, p.permute(0, 2, 3, 1))  # void has probabilities of 0
                sums[image] += by_row.sum((0, 1), dtype=sums.dtype)
        return sums

    @staticmethod
    def backward(ctx: Any, sums_gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, values = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = functools.partial(plain_label_sums, labels=labels, values=values)
            return plain_gradient(plain, logits, [sums_gradient]), None, None
        precise = as_precise(logits)
        gradient = torch.zeros_like(precise, memory_format=torch.contiguous_format)
        by_label = precise.new_zeros(len(logits), logits.shape[1], 256)
        by_label[:, :, values] = sums_gradient.to(precise.dtype).transpose(1, 2)
        with torch.autocast(logits.device.type, enabled=False):
            for image, strip, p, truth, _, resizing in _probabilities(precise, labels):
                slopes = by_label[image][:, truth].movedim(0, 1)
                p *= slopes - (p * slopes).sum(1, keepdim=True)
                resizing.add_reduced(gradient[image], p, strip)
        return gradient.to(logits.dtype), None, None


class _CrossEntropyAndClassSums(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, weights: Tensor, smoothing: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(logits, labels, weights, smoothing)
        precise = as_precise(logits)
        weights = weights.to(precise.dtype)
        shares = None if smoothing is None else smoothing.to(precise.dtype).view(-1, 1, 1)
        total = torch.zeros((), dtype=accumulation_dtype(logits.device), device=logits.device)
        hits = torch.zeros(logits.shape[:2], dtype=total.dtype, device=logits.device)
        sums = torch.zeros_like(hits)
        resizing = Resizing.of(precise, labels.shape[1:])
        tiled = resizing.tiled(labels)
        with torch.autocast(logits.device.type, enabled=False):
            for image, strip in resizing.strips(*logits.shape[:2]):
                truth, void = _truth(tiled[image], strip)
                tiles = resizing.enlarge(precise[image], strip)
                tiles -= tiles.amax(1, keepdim=True)
                own = tiles.gather(1, truth[:, None])[:, 0]
                smoothed = None if shares is None else (tiles * shares).sum(1)
                exponentials = tiles.exp_()  # in place: from here on, `tiles` are no logits
                mass = exponentials.sum(1)
                log_mass = mass.log()
                log_p = (own - log_mass).masked_fill_(void, 0)
                total -= (log_p * weights[truth]).sum(dtype=total.dtype)
                if smoothed is not None and shares is not None:
                    total -= (smoothed - shares.sum() * log_mass).masked_fill_(void, 0).sum(dtype=total.dtype)
                exponentials *= mass.reciprocal_().masked_fill_(void, 0)[:, None]  # now probabilities
                own_p = log_p.exp_().masked_fill_(void, 0)
                hits[image].scatter_add_(0, truth.flatten(), own_p.flatten().to(hits.dtype))
                sums[image] += exponentials.sum((2, 3)).sum(0)
        return total, hits, sums

    @staticmethod
    def backward(
        ctx: Any, total_gradient: Tensor, hits_gradient: Tensor, sums_gradient: Tensor
    ) -> tuple[Tensor | None, ...]:
        logits, labels, weights, smoothing = ctx.saved_tensors
        gradients = [total_gradient, hits_gradient, sums_gradient]
        if torch.is_grad_enabled():
            plain = functools.partial(
                plain_cross_entropy_and_class_sums, labels=labels, weights=weights, smoothing=smoothing
            )
            return plain_gradient(plain, logits, gradients), None, None, None
        precise = as_precise(logits)
        total_gradient, hits_gradient, sums_gradient = (each.to(precise.dtype) for each in gradients)
        weights = weights.to(precise.dtype) * total_gradient
        shares = None if smoothing is None else smoothing.to(precise.dtype).view(-1, 1, 1) * total_gradient
        gradient = torch.zeros_like(precise, memory_format=torch.contiguous_format)
        with torch.autocast(logits.device.type, enabled=False):
            for image, strip, p, truth, void, resizing in _probabilities(precise, labels):
                by_class = sums_gradient[image]
                own = hits_gradient[image][truth] * p.gather(1, truth[:, None])[:, 0]
                mean = torch.matmul(by_class, p.flatten(2)).view_as(own) + own
                # Of the cross entropy by logit k: weight (p_k - [k = t]).
                weight = weights[truth].masked_fill_(void, 0)
                mean -= weight
                own -= weight
                if shares is not None:
                    mean -= shares.sum()
                p *= by_class[:, None, None] - mean[:, None]
                p.scatter_add_(1, truth[:, None], own[:, None])
                if shares is not None:
                    p -= shares * (~void)[:, None]
                resizing.add_reduced(gradient[image], p, strip)
        return gradient.to(logits.dtype), None, None, None


def _probabilities(logits: Tensor, labels: Tensor) -> Iterator[tuple[int, Strip, Tensor, Tensor, Tensor, Resizing]]:
    """Yield image, strip, probabilities (blocks, C, rows, width), truth and what is void, and the resizing.

    The latter two are (blocks, rows, width); probabilities and truth are 0 at void pixels.
    """
    resizing = Resizing.of(logits, labels.shape[1:])
    tiled = resizing.tiled(labels)
    for image, strip in resizing.strips(*logits.shape[:2]):
        truth, void = _truth(tiled[image], strip)
        tiles = resizing.enlarge(logits[image], strip)
        tiles -= tiles.amax(1, keepdim=True)
        tiles.exp_()
        tiles *= tiles.sum(1).reciprocal_().masked_fill_(void, 0)[:, None]
        yield image, strip, tiles, truth, void, resizing


def enlarged(logits: Tensor, labels: Tensor) -> Tensor:
    """Resize `logits` to the size of `labels` in ordinary operations, for the plain twins."""
    with torch.autocast(logits.device.type, enabled=False):
        precise = logits if logits.dtype == torch.float64 else logits.float()
        return resize(precise, (labels.shape[-2], labels.shape[-1]))


def plain_pixel_sum(
    logits: Tensor,
    labels: Tensor,
    pixel: PixelLoss,
    class_weights: Tensor | None = None,
    smoothing: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Compute `pixel_sum` in ordinary operations."""
    log_p = F.log_softmax(enlarged(logits, labels), dim=1)
    void = labels == IGNORE
    index = labels.masked_fill(void, 0).long()
    weight = 1.0 if class_weights is None else class_weights.to(log_p.dtype)[index]
    if allowed is None:
        own = log_p.gather(1, index[:, None])[:, 0]
    else:
        own = log_p.masked_fill(~allowed[index].movedim(-1, 1), -torch.inf).logsumexp(1).clamp(max=0)
    losses = pixel.value(own.masked_fill(void, 0), weight)
    if smoothing is not None:
        losses = losses - (log_p * smoothing.to(log_p.dtype)[:, None, None]).sum(1).masked_fill(void, 0)
    return losses.sum(dtype=accumulation_dtype(logits.device))


def plain_cross_entropies(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute `cross_entropies` in ordinary operations."""
    return F.cross_entropy(enlarged(logits, labels), labels.long(), ignore_index=IGNORE, reduction="none")


def plain_cross_entropy_and_class_sums(
    logits: Tensor, labels: Tensor, weights: Tensor, smoothing: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `cross_entropy_and_class_sums` in ordinary operations."""
    log_p = F.log_softmax(enlarged(logits, labels), dim=1)
    void = labels == IGNORE
    index = labels.masked_fill(void, 0).long()
    weight = weights.to(log_p.dtype)[index].masked_fill(void, 0)
    total = -(log_p.gather(1, index[:, None])[:, 0] * weight).sum(dtype=accumulation_dtype(logits.device))
    if smoothing is not None:
        smoothed = (log_p * smoothing.to(log_p.dtype)[:, None, None]).sum(1).masked_fill(void, 0)
        total = total - smoothed.sum(dtype=total.dtype)
    return total, *plain_class_sums(logits, labels)


def plain_class_sums(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `class_sums` in ordinary operations."""
    void = labels == IGNORE
    p = F.softmax(enlarged(logits, labels), dim=1).masked_fill(void[:, None], 0).to(accumulation_dtype(logits.device))
    index = labels.masked_fill(void, 0).long()
    own = p.gather(1, index[:, None]).flatten(1)
    hits = torch.zeros(p.shape[:2], dtype=p.dtype, device=p.device).scatter_add(1, index.flatten(1), own)
    return hits, p.sum((2, 3))


def plain_label_sums(logits: Tensor, labels: Tensor, values: Tensor) -> Tensor:
    """Compute `label_sums` in ordinary operations."""
    p = F.softmax(enlarged(logits, labels), dim=1).to(accumulation_dtype(logits.device))
    return torch.stack([(p * (labels == value)[:, None]).sum((2, 3)) for value in values], dim=1)
