"""Transforms that a config names in a list, one after another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np

from base.base_dataset import KeepsSize, Size
from dataloader.transforms.chain import Chain, ResizeOptions, ScaleOptions
from dataloader.transforms.geometry import Degrees, Factor, Pair, Probability, Side, as_size, random_offset, warp
from utils.registry import TRANSFORMS
from utils.schema import AtLeast, Between


@TRANSFORMS.register("FreeScale")
@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class Resize:
    """Resize to a height and width, whatever the proportions.

    Args:
        size: Height and width, or the side of a square.
    """

    size: Side | tuple[Side, Side]

    repeats: ClassVar[bool] = True

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        size = as_size(self.size)
        return warp(image, label, scaled=size, crop=size)

    def size_after(self, size: Size | None) -> Size | None:
        """Return the size of the result."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class ShortSide:
    """Resize, keeping proportions.

    Args:
        size: Length of the short side.
        most: Upper limit of the long side, which then decides; null for none.
    """

    size: Side
    most: Side | None = None

    repeats: ClassVar[bool] = True

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        factor = self.size / min(label.shape)
        if self.most is not None:
            factor = min(factor, self.most / max(label.shape))
        scaled = max(1, round(label.shape[0] * factor)), max(1, round(label.shape[1] * factor))
        return warp(image, label, scaled=scaled, crop=scaled)

    def size_after(self, size: Size | None) -> Size | None:
        """Return None: it differs from image to image."""
        return None


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class ResizeToRange:
    """Resize such that no side is shorter than one length and none longer than another, which wins.

    Source: `resize_to_range` of TensorFlow's DeepLab, whose sides are a multiple of the output stride plus 1.

    Args:
        least: Shortest side wanted.
        most: Longest side allowed.
        multiple: Sides become 1 more than a multiple of this; null leaves them.
    """

    least: Side
    most: Annotated[int, Between(2, 2**15 - 1)]
    multiple: Annotated[int, AtLeast(1)] | None = None

    repeats: ClassVar[bool] = True

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        factor = min(self.least / min(label.shape), self.most / max(label.shape))
        height, width = (self._fit(side * factor) for side in label.shape)
        return warp(image, label, scaled=(height, width), crop=(height, width))

    def _fit(self, length: float) -> int:
        if self.multiple is None:
            return max(1, round(length))
        above = math.ceil((length - 1) / self.multiple - 1e-6) * self.multiple + 1
        return max(1, above if above <= self.most else above - self.multiple)

    def size_after(self, size: Size | None) -> Size | None:
        """Return None: it differs from image to image."""
        return None


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomScale:
    """Resize by a random factor.

    Args:
        range: Smallest and largest factor.
        step: Distance of the factors that are drawn; null draws any in between.
        base_size: Length of the long side that the factor multiplies; null for the image's own.
    """

    range: tuple[Factor, Factor] = (0.5, 2.0)
    step: Annotated[float, Between(0.001, 100)] | None = None
    base_size: Side | None = None

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        resize = ResizeOptions(long_side=self.base_size)
        scale = ScaleOptions(range=self.range, step=self.step)
        return Chain(crop=None, resize=resize, scale=scale)(image, label, rng)

    def size_after(self, size: Size | None) -> Size | None:
        """Return None: it differs from image to image."""
        return None


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomCrop:
    """Cut out a random window; where the image is too small, pad it below and to the right.

    Args:
        size: Height and width of the window, or the side of a square.
        fill: Value of padded pixels, 0 to 255, by channel; the dataset's mean color if null. Their label is void.
    """

    size: Side | tuple[Side, Side]
    fill: tuple[float, ...] | None = None

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=as_size(self.size), fill=_or_black(self.fill))(image, label, rng)

    def size_after(self, size: Size | None) -> Size | None:
        """Return the window's size."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class CenterCrop:
    """Cut out the middle; where the image is too small, pad it below and to the right.

    Args:
        size: Height and width of the window, or the side of a square.
        fill: Value of padded pixels, 0 to 255, by channel; the dataset's mean color if null. Their label is void.
    """

    size: Side | tuple[Side, Side]
    fill: tuple[float, ...] | None = None

    repeats: ClassVar[bool] = True

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=as_size(self.size), center=True, fill=_or_black(self.fill))(image, label, rng)

    def size_after(self, size: Size | None) -> Size | None:
        """Return the window's size."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomSizedCrop:
    """Cut out a window of random area and proportions, and resize it.

    Args:
        size: Height and width of the result, or the side of a square.
        area: Smallest and largest share of the image.
        ratio: Smallest and largest width / height of the window.
    """

    size: Side | tuple[Side, Side]
    area: tuple[Annotated[float, Between(0.001, 1)], Annotated[float, Between(0.001, 1)]] = (0.45, 1.0)
    ratio: tuple[Factor, Factor] = (0.5, 2.0)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        height, width = label.shape
        area = height * width * float(rng.uniform(*self.area))
        ratio = math.exp(float(rng.uniform(*np.log(self.ratio))))
        rows = min(height, max(1, round(math.sqrt(area / ratio))))
        columns = min(width, max(1, round(math.sqrt(area * ratio))))
        top, left = random_offset((height - rows, width - columns), rng)
        window, size = np.s_[top : top + rows, left : left + columns], as_size(self.size)
        return warp(image[window], label[window], scaled=size, crop=size)

    def size_after(self, size: Size | None) -> Size | None:
        """Return the size of the result."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class SlidingCrop:
    """Cut out one of the windows that, side by side, cover the image; where it is too small, pad below and right.

    Args:
        size: Height and width of the window, or the side of a square.
        stride_rate: Distance of neighboring windows, as a share of their size.
        fill: Value of padded pixels, 0 to 255, by channel; the dataset's mean color if null. Their label is void.
    """

    size: Side | tuple[Side, Side]
    stride_rate: Annotated[float, Between(0.01, 1)] = 2 / 3
    fill: tuple[float, ...] | None = None

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        crop = as_size(self.size)
        offset = []
        for length, side in zip(label.shape, crop, strict=True):
            stride = max(1, math.ceil(side * self.stride_rate))
            steps = -(-max(0, length - side) // stride)
            # The last window is moved back to end with the image.
            offset.append(min(int(rng.integers(steps + 1)) * stride, max(0, length - side)))
        top, left = offset
        return warp(image, label, scaled=label.shape, crop=crop, offset=(top, left), fill=_or_black(self.fill))

    def size_after(self, size: Size | None) -> Size | None:
        """Return the window's size."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomHorizontalFlip(KeepsSize):
    """Exchange left and right.

    Args:
        p: Share of images.
    """

    p: Probability = 0.5

    repeats: ClassVar[bool] = True

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=None, flip=self.p)(image, label, rng)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomVerticalFlip(KeepsSize):
    """Exchange top and bottom.

    Args:
        p: Share of images.
    """

    p: Probability = 0.5

    repeats: ClassVar[bool] = True

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        if rng.random() >= self.p:
            return image, label
        return np.ascontiguousarray(image[::-1]), np.ascontiguousarray(label[::-1])


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomRotate(KeepsSize):
    """Turn about the center; the size stays.

    Args:
        degrees: Largest angle, either way.
        fill: Value of the corners, 0 to 255, by channel; the dataset's mean color if null. Their label is void.
    """

    degrees: Degrees = 10.0
    fill: tuple[float, ...] | None = None

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=None, degrees=self.degrees, fill=_or_black(self.fill))(image, label, rng)


def _or_black(fill: tuple[float, ...] | None) -> tuple[float, ...]:
    """Return `fill`, or black where nobody has set it."""
    return (0,) if fill is None else fill
