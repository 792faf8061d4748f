"""Augmentation and preprocessing of image and label together.

A transform is called as ``transform(image, label, rng)``: image (H, W, C), label (H, W) uint8 of training ids, and
the one generator that it may draw from. It returns both and leaves what it was given as it was. Labels are resized
to the nearest pixel, and whatever lies outside the image is void.

The flags of a loader (`augment`, `scale`, ...) become one `Chain`, whose geometry is composed into a single affine
map from the source straight to the crop: each pixel is interpolated once, and only the crop's pixels are computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, Literal

import cv2
import numpy as np

from base.base_dataset import Transform
from utils.classes import IGNORE
from utils.errors import ConfigError, DataError
from utils.images import MAX_PIXELS
from utils.registry import TRANSFORMS
from utils.schema import AtLeast, Between, Component, join

Side = Annotated[int, Between(1, 2**15 - 1)]  # pixels
LONGEST = 2**31 if int(cv2.__version__.partition(".")[0]) >= 5 else 2**15 - 2  # side of what is warped, in pixels
Probability = Annotated[float, Between(0, 1)]
Degrees = Annotated[float, Between(0, 180)]
Factor = Annotated[float, Between(0.01, 100)]
Pair = tuple[np.ndarray, np.ndarray]
Edges = tuple[int, int, int, int]  # pixels above, below, to the left and to the right


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) from the side of a square or from both."""
    return (size, size) if isinstance(size, int) else size


# Geometry ------------------------------------------------------------------------------------------------------------


def warp(
    image: np.ndarray,
    label: np.ndarray,
    *,
    scaled: tuple[int, int],
    crop: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
    angle: float = 0.0,
    flip: bool = False,
    fill: Sequence[float] = (0,),
    change: Callable[[np.ndarray, np.ndarray], Pair] | None = None,
) -> Pair:
    """Resize, turn about the centre, cut out (padding below and to the right), mirror; all in one interpolation.

    Args:
        image: (H, W, C), of 8 or 16 bits or float32.
        label: (H, W) uint8.
        scaled: Height and width to resize to.
        crop: Height and width to cut out.
        offset: Row and column of the resized image at which the crop begins.
        angle: Degrees, counter-clockwise.
        flip: Exchange left and right.
        fill: Value of image pixels outside the source, one per channel or one for all. Label pixels there are void.
        change: What else to do to image and label before they are padded; the size must stay.

    Raises:
        DataError: The image would become too large, or is longer than this OpenCV can warp.
    """
    if math.prod(crop) > MAX_PIXELS:
        raise DataError(f"would become {crop[1]}x{crop[0]} pixels, more than {MAX_PIXELS:,}. Give a crop_size.")
    if scaled == label.shape and not angle:
        image, label, edges = _cut(image, label, crop, offset, flip)
    else:
        matrix = _crop_to_source(label.shape, scaled, crop, offset, math.radians(angle), flip)
        rows, columns = (max(1, int(old / new + 1e-6)) for old, new in zip(label.shape, scaled, strict=True))
        steps = rows, columns
        inside = not angle
        # Parts of the crop that show nothing of the image are filled, not warped.
        if inside:
            height, width = (min(c, s - o) for c, s, o in zip(crop, scaled, offset, strict=True))
            top, bottom, left, right = (0, height, crop[1] - width, crop[1]) if flip else (0, height, 0, width)
        else:
            top, bottom, left, right = _shown(matrix, label.shape, crop, steps)
        matrix[:, 2] += matrix[:, :2] @ (left, top)
        image, label = _warp_pair(image, label, matrix, (bottom - top, right - left), steps, inside, fill)
        edges = top, crop[0] - bottom, left, crop[1] - right
    if change is not None:
        image, label = change(image, label)
    return _pad(image, label, edges, fill) if any(edges) else (image, label)


def _pad(image: np.ndarray, label: np.ndarray, edges: Edges, fill: Sequence[float]) -> Pair:
    def apply(x: np.ndarray, value: list[float]) -> np.ndarray:
        return cv2.copyMakeBorder(x, *edges, cv2.BORDER_CONSTANT, value=value)

    values = _fill(fill, image)
    return _by_fours(image, lambda x, first: apply(x, values[first : first + 4])), apply(label, [IGNORE])


def _span(function: Sequence[float], columns: tuple[float, float], rows: tuple[float, float]) -> tuple[float, float]:
    """Smallest and largest value of an affine function of column and row, (a, b, c), on a rectangle."""
    a, b, c = function
    xs, ys = sorted((a * columns[0], a * columns[1])), sorted((b * rows[0], b * rows[1]))
    return c + xs[0] + ys[0], c + xs[1] + ys[1]


def _shown(
    matrix: np.ndarray, source: tuple[int, ...], crop: tuple[int, int], steps: tuple[int, int]
) -> tuple[int, int, int, int]:
    """First and last + 1 of the rows, and of the columns, of the crop that the source can be seen in."""
    to_column, to_row = cv2.invertAffineTransform(matrix).tolist()
    bounds = []
    for function, length in ((to_row, crop[0]), (to_column, crop[1])):
        # Interpolation reaches less than a step beyond the source.
        low, high = _span(function, (-steps[1], source[1] - 1 + steps[1]), (-steps[0], source[0] - 1 + steps[0]))
        first = min(max(math.floor(low), 0), length - 1)
        bounds += [first, max(min(math.ceil(high) + 1, length), first + 1)]
    return bounds[0], bounds[1], bounds[2], bounds[3]


def _warp_pair(
    image: np.ndarray,
    label: np.ndarray,
    matrix: np.ndarray,
    crop: tuple[int, int],
    steps: tuple[int, int],
    inside: bool,
    fill: Sequence[float],
) -> Pair:
    """Interpolate a crop through a matrix from its pixels to the source, `steps` source rows and columns apart."""
    # What the crop shows of the source, with a margin for interpolation; all else is left alone.
    to_column, to_row = matrix.tolist()
    top, bottom = _region(_span(to_row, (0, crop[1] - 1), (0, crop[0] - 1)), label.shape[0], steps[0])
    left, right = _region(_span(to_column, (0, crop[1] - 1), (0, crop[0] - 1)), label.shape[1], steps[1])
    matrix[:, 2] -= left, top
    image, label = image[top:bottom, left:right], label[top:bottom, left:right]
    if max(label.shape) > LONGEST:
        raise DataError(f"is longer than {LONGEST:,} pixels, which takes OpenCV 5. Update it, or cut tiles.")
    label = cv2.warpAffine(
        label.astype(np.uint16),  # OpenCV takes a third less time for it than for 8 bits
        matrix,
        crop[::-1],
        flags=cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST,
        # Half a pixel at the image's edge is nearer to the edge than to any pixel outside.
        borderMode=cv2.BORDER_REPLICATE if inside else cv2.BORDER_CONSTANT,
        borderValue=IGNORE,
    ).astype(np.uint8)
    if steps != (1, 1):  # bilinear interpolation sees 2x2 pixels only, so that it would skip others below 1/2
        image = _by_fours(image, lambda x, _: _reduce(x, steps))
        half = np.array([0, 0, 0.5])  # pixels are squares around their coordinates
        matrix = (matrix + half) / np.array(steps[::-1])[:, None] - half
    return _warp_image(image, matrix, crop, inside, fill), label


def _crop_to_source(
    source: tuple[int, ...],
    scaled: tuple[int, int],
    crop: tuple[int, int],
    offset: tuple[int, int],
    angle: float,
    flip: bool,
) -> np.ndarray:
    """(2, 3) matrix from (column, row, 1) in the crop to (column, row) in the source."""
    # Column and row in the resized image are (sign * column + x0, row + y0); it is turned about (x, y).
    sign, x0, y0 = (-1, crop[1] - 1 + offset[1], offset[0]) if flip else (1, *offset[::-1])
    c, s, x, y = math.cos(angle), math.sin(angle), (scaled[1] - 1) / 2, (scaled[0] - 1) / 2
    fy, fx = source[0] / scaled[0], source[1] / scaled[1]
    return np.array(
        [
            [fx * c * sign, -fx * s, fx * (c * (x0 - x) - s * (y0 - y) + x + 0.5) - 0.5],
            [fy * s * sign, fy * c, fy * (s * (x0 - x) + c * (y0 - y) + y + 0.5) - 0.5],
        ]
    )


def _reduce(image: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """The means of so many rows x columns of pixels; the last are completed with copies of the edge."""
    below, right = -image.shape[0] % steps[0], -image.shape[1] % steps[1]
    if below or right:  # blocks that do not fit would cost five times the time
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = image.shape[1] // steps[1], image.shape[0] // steps[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _region(span: tuple[float, float], length: int, step: int) -> tuple[int, int]:
    """First and last + 1 of `length` rows (or columns) between two coordinates, in multiples of `step`."""
    margin = step + 1
    first = min(max(int(span[0]) - margin, 0), length - 1)
    last = max(int(span[1]) + margin + 1, first + 1)
    return first, min(first - (first - last) // step * step, length)


def _warp_image(
    image: np.ndarray, matrix: np.ndarray, crop: tuple[int, int], inside: bool, fill: Sequence[float]
) -> np.ndarray:
    mode = cv2.BORDER_REPLICATE if inside else cv2.BORDER_CONSTANT
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    values = _fill(fill, image)

    def apply(x: np.ndarray, border: list[float]) -> np.ndarray:
        return cv2.warpAffine(x, matrix, crop[::-1], flags=flags, borderMode=mode, borderValue=border)

    if image.shape[2] == 3 and image.shape[0] * image.shape[1] < 4 * crop[0] * crop[1]:
        # OpenCV warps four channels twice as fast as three, which pays for the copies.
        wide = apply(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), [*values, 0])
        return cv2.cvtColor(wide, cv2.COLOR_RGBA2RGB)
    return _by_fours(image, lambda x, first: apply(x, values[first : first + 4]))


def _cut(
    image: np.ndarray, label: np.ndarray, crop: tuple[int, int], offset: tuple[int, int], flip: bool
) -> tuple[np.ndarray, np.ndarray, Edges]:
    """`warp` without a change of scale or angle, where pixels are copied, and what is missing around them."""
    window = np.s_[offset[0] : offset[0] + crop[0], offset[1] : offset[1] + crop[1]]
    image, label = image[window], label[window]
    below, beside = crop[0] - label.shape[0], crop[1] - label.shape[1]
    if flip:
        image, label = image[:, ::-1], label[:, ::-1]
    edges = (0, below, beside, 0) if flip else (0, below, 0, beside)
    return np.ascontiguousarray(image), np.ascontiguousarray(label), edges


def _fill(fill: Sequence[float], image: np.ndarray) -> list[float]:
    """One value per channel of `image`, rounded as its type needs."""
    values = list(fill) * image.shape[2] if len(fill) == 1 else list(fill)
    if len(values) != image.shape[2]:
        raise DataError(
            f"fill: {len(values)} numbers for {image.shape[2]} channels. Give one for each, or one for all."
        )
    return values if image.dtype.kind == "f" else [round(value) for value in values]


def _by_fours(image: np.ndarray, function: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """`function` of up to four channels at a time, as OpenCV wants them, and of the first one's number."""
    channels = image.shape[2]
    if channels in (3, 4):
        return function(image, 0)
    parts = [function(np.ascontiguousarray(image[..., c : c + 4]), c) for c in range(0, channels, 4)]
    # OpenCV drops the channel axis where there is one channel.
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


# Options, each also the drawing of what it describes -----------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """How much images are resized at random; their proportions are kept.

    Args:
        range: Smallest and largest factor, of the size that `base_size` or `resize` gives, else of the image's own.
        step: Distance of the factors that are drawn, such as 0.25; null draws any in between.
        side: Which side `base_size` means.
    """

    range: tuple[Factor, Factor] = (0.5, 2.0)
    step: Annotated[float, Between(0.001, 100)] | None = None
    side: Literal["long", "short"] = "long"

    def draw(self, rng: np.random.Generator) -> float:
        """A factor."""
        low, high = self.range
        if self.step is None:
            return float(rng.uniform(low, high))
        return low + self.step * float(rng.integers(math.floor((high - low) / self.step + 1e-6) + 1))


@dataclass(frozen=True, kw_only=True)
class ResizeOptions:
    """The size that every image gets before anything else; give one of the three.

    Args:
        short_side: Length of the short side, in pixels; proportions are kept.
        long_side: Length of the long side; proportions are kept.
        size: Height and width, whatever the proportions.
    """

    short_side: Side | None = None
    long_side: Side | None = None
    size: tuple[Side, Side] | None = None

    def factors(self, height: int, width: int) -> tuple[float, float]:
        """By what an image of this size is to be stretched, vertically and horizontally."""
        if self.size is not None:
            return self.size[0] / height, self.size[1] / width
        factor = 1.0
        if self.short_side is not None:
            factor = self.short_side / min(height, width)
        elif self.long_side is not None:
            factor = self.long_side / max(height, width)
        return factor, factor


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Blur some images.

    Args:
        p: Share of images to blur.
        sigma: Smallest and largest standard deviation, in pixels. Less than 0.5 cannot be seen.
    """

    p: Probability = 0.5
    sigma: tuple[Annotated[float, Between(0.1, 100)], Annotated[float, Between(0.1, 100)]] = (0.5, 1.0)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        if rng.random() < self.p:
            sigma = float(rng.uniform(*self.sigma))
            kernel = cv2.getGaussianKernel(2 * max(1, round(2 * sigma)) + 1, sigma)
            # A fifth faster than cv2.GaussianBlur.
            image = _by_fours(image, lambda x, _: cv2.sepFilter2D(x, -1, kernel, kernel))
        return image, label


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue at random, in this order; 8-bit RGB images only.

    Args:
        brightness: The factor is drawn from 1 - brightness to 1 + brightness.
        contrast: Likewise, about the image's mean gray.
        saturation: Likewise; 0 would be gray.
        hue: Largest shift, as a share of the color circle.
    """

    brightness: Probability = 0.4
    contrast: Probability = 0.4
    saturation: Probability = 0.4
    hue: Annotated[float, Between(0, 0.5)] = 0.0

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        if image.dtype != np.uint8 or image.shape[2] != 3:
            raise DataError(f"color_jitter: needs 8-bit RGB images, got {image.shape[2]} x {image.dtype}. Remove it.")
        amounts = np.array([self.brightness, self.contrast, self.saturation])
        brightness, contrast, saturation = 1 + amounts * rng.uniform(-1, 1, 3)
        shift = round(180 * float(rng.uniform(-self.hue, self.hue)))  # OpenCV's circle has 180 steps
        gray = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] * brightness
        levels = (np.arange(256) * brightness - gray) * contrast + gray
        image = cv2.LUT(image, np.clip(np.rint(levels), 0, 255).astype(np.uint8))
        if saturation != 1:
            gray_image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, saturation, gray_image, 1 - saturation, 0)
        if shift:
            turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            turned[..., 0] = cv2.LUT(turned[..., 0], ((np.arange(256) + shift) % 180).astype(np.uint8))
            image = cv2.cvtColor(turned, cv2.COLOR_HSV2RGB)
        return image, label


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Resize, scale, rotate, crop and mirror in one warp, then change colors and blur.

    Args:
        crop: Height and width of the result; None for as large as the image has become.
        resize: Size before scaling; None for the image's own.
        cover: Resize such that the image just covers the crop, instead.
        scale: Random scale; None for none.
        degrees: Largest rotation, either way.
        flip: Share of images to mirror.
        center: Crop the middle instead of a random place.
        rare: Share of crops that are placed to show a class drawn from those of the image, before rotation.
        color_jitter: Change of colors; None for none.
        blur: Blur; None for none.
        fill: Raw value of image pixels outside the source, by channel.
    """

    crop: tuple[int, int] | None
    resize: ResizeOptions | None = None
    cover: bool = False
    scale: ScaleOptions | None = None
    degrees: float = 0.0
    flip: float = 0.0
    center: bool = False
    rare: float = 0.0
    color_jitter: ColorJitter | None = None
    blur: GaussianBlur | None = None
    fill: tuple[float, ...] = (0,)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        height, width = label.shape
        fy, fx = self.resize.factors(height, width) if self.resize else (1.0, 1.0)
        if self.cover and self.crop:
            fy = fx = max(self.crop[0] / height, self.crop[1] / width)
        factor = self.scale.draw(rng) if self.scale else 1.0
        scaled = max(1, round(height * fy * factor)), max(1, round(width * fx * factor))
        crop = self.crop or scaled
        offset = self._offset(label, scaled, crop, rng)
        angle = float(rng.uniform(-self.degrees, self.degrees)) if self.degrees else 0.0
        flip = bool(self.flip and rng.random() < self.flip)
        change = partial(self._change, rng) if self.color_jitter or self.blur else None
        return warp(
            image, label, scaled=scaled, crop=crop, offset=offset, angle=angle, flip=flip, fill=self.fill, change=change
        )

    def _change(self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> Pair:
        for step in (self.color_jitter, self.blur):
            if step is not None:
                image, label = step(image, label, rng)
        return image, label

    def _offset(
        self, label: np.ndarray, scaled: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        spare = max(0, scaled[0] - crop[0]), max(0, scaled[1] - crop[1])
        if self.center:
            return spare[0] // 2, spare[1] // 2
        if self.rare and rng.random() < self.rare:
            return _place_of_a_class(label, scaled, crop, spare, rng)
        return _place(spare, rng)


def _place_of_a_class(
    label: np.ndarray,
    scaled: tuple[int, int],
    crop: tuple[int, int],
    spare: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """A random offset of a crop that shows a random pixel of a class; each class of `label` is as likely."""
    counts = np.bincount(label.ravel(), minlength=IGNORE + 1)[:IGNORE]
    if not counts.any():
        return _place(spare, rng)
    chosen = rng.choice(np.flatnonzero(counts))
    pixel = np.flatnonzero(label == chosen)[rng.integers(counts[chosen])]
    offset = []
    for position, length, size, side, most in zip(
        divmod(int(pixel), label.shape[1]), label.shape, scaled, crop, spare, strict=True
    ):
        at = int((position + 0.5) * size / length)  # the pixel's row or column in the resized image
        offset.append(int(rng.integers(max(0, at - side + 1), min(most, at) + 1)))
    return offset[0], offset[1]


def _place(spare: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """A random offset of a crop that leaves `spare` rows and columns."""
    return int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))


# Named transforms ----------------------------------------------------------------------------------------------------


@TRANSFORMS.register("FreeScale")
@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class Resize:
    """Resize to a height and width, whatever the proportions.

    Args:
        size: Height and width, or the side of a square.
    """

    size: Side | tuple[Side, Side]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        size = as_size(self.size)
        return warp(image, label, scaled=size, crop=size)

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Size of what comes out, given that of what goes in; None if it differs from image to image."""
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

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        factor = self.size / min(label.shape)
        if self.most is not None:
            factor = min(factor, self.most / max(label.shape))
        scaled = max(1, round(label.shape[0] * factor)), max(1, round(label.shape[1] * factor))
        return warp(image, label, scaled=scaled, crop=scaled)

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """None: it differs from image to image."""
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

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        factor = min(self.least / min(label.shape), self.most / max(label.shape))
        height, width = (self._fit(side * factor) for side in label.shape)
        return warp(image, label, scaled=(height, width), crop=(height, width))

    def _fit(self, length: float) -> int:
        if self.multiple is None:
            return max(1, round(length))
        above = math.ceil((length - 1) / self.multiple - 1e-6) * self.multiple + 1
        return max(1, above if above <= self.most else above - self.multiple)

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """None: it differs from image to image."""
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

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """None: it differs from image to image."""
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
        return Chain(crop=as_size(self.size), fill=self.fill or (0,))(image, label, rng)

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """The window's size."""
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

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=as_size(self.size), center=True, fill=self.fill or (0,))(image, label, rng)

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """The window's size."""
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
        top, left = _place((height - rows, width - columns), rng)
        window, size = np.s_[top : top + rows, left : left + columns], as_size(self.size)
        return warp(image[window], label[window], scaled=size, crop=size)

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """The size of the result."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class SlidingCrop:
    """Cut out one of the windows that, side by side, cover the image; where it is too small, pad below and right.

    Args:
        size: Height and width of the window, or the side of a square.
        stride_rate: Distance of neighbouring windows, as a share of their size.
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
        return warp(image, label, scaled=label.shape, crop=crop, offset=(top, left), fill=self.fill or (0,))

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """The window's size."""
        return as_size(self.size)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomHorizontalFlip:
    """Exchange left and right.

    Args:
        p: Share of images.
    """

    p: Probability = 0.5

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=None, flip=self.p)(image, label, rng)


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomVerticalFlip:
    """Exchange top and bottom.

    Args:
        p: Share of images.
    """

    p: Probability = 0.5

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        if rng.random() >= self.p:
            return image, label
        return np.ascontiguousarray(image[::-1]), np.ascontiguousarray(label[::-1])


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class RandomRotate:
    """Turn about the centre; the size stays.

    Args:
        degrees: Largest angle, either way.
        fill: Value of the corners, 0 to 255, by channel; the dataset's mean color if null. Their label is void.
    """

    degrees: Degrees = 10.0
    fill: tuple[float, ...] | None = None

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        return Chain(crop=None, degrees=self.degrees, fill=self.fill or (0,))(image, label, rng)


@dataclass(frozen=True)
class Compose:
    """One transform after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        for step in self.steps:
            image, label = step(image, label, rng)
        return image, label


# From a config -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """What a loader's arguments say about augmentation and size.

    Args:
        augment: Augment at random, as `scale`, `flip`, `rotate`, `blur` and `color_jitter` say; for training.
        val: Resize until the image just covers `crop_size`, and crop the middle; nothing random. Without
            `crop_size`, images keep their size.
        base_size: Length of the long side before random scaling, in pixels; null for the image's own.
        crop_size: Side of a square or [height, width] of what a model gets; null for whole images.
        scale: Random scale; with `augment`, 0.5 to 2 if not given.
        flip: Mirror half of the images, or this share.
        rotate: Turn by up to 10 degrees either way, or by as many as given.
        blur: Blur half of the images, or as given.
        resize: Resize all images first.
        color_jitter: Change brightness, contrast and saturation, or as given.
        rare_crop: Place half of the crops, or this share, where they show a class drawn from those of the image, each
            as likely however small it is, so that rare classes are seen more often.
        transforms: Transforms to apply in this order, instead of all of the above.
    """

    augment: bool = False
    val: bool = False
    base_size: Side | None = None
    crop_size: Side | tuple[Side, Side] | None = None
    scale: bool | ScaleOptions | None = None
    flip: bool | Probability | None = None
    rotate: bool | Degrees | None = None
    blur: bool | GaussianBlur | None = None
    resize: ResizeOptions | None = None
    color_jitter: bool | ColorJitter | None = None
    rare_crop: bool | Probability | None = None
    transforms: list[Annotated[Component, TRANSFORMS]] | None = None

    @property
    def crop(self) -> tuple[int, int] | None:
        """Height and width that every image will have; None if they differ from image to image."""
        if self.transforms is None:
            if self.crop_size is None:
                return self.resize.size if self.resize and not self.augment else None
            return as_size(self.crop_size)
        size: tuple[int, int] | None = None
        for step in _steps(self.transforms, "transforms"):
            size = step.size_after(size) if hasattr(step, "size_after") else size
        return size

    def for_validation(self) -> ChainOptions:
        """The same sizes without anything random, for what is held out of a training set."""
        return ChainOptions(val=True, crop_size=self.crop_size, resize=self.resize)


_RANDOM = ("base_size", "scale", "flip", "rotate", "blur", "color_jitter", "rare_crop")  # what only `augment` turns on


def chain_problems(options: ChainOptions, where: str) -> list[str]:
    """What contradicts itself or would have no effect in `options`, which stand at `where` in the config."""
    problems = []
    given = [f.name for f in fields(options) if getattr(options, f.name) not in (None, False)]
    if options.transforms is not None:
        flags = [name for name in given if name != "transforms"]
        problems += [
            f'{join(where, name)}: has no effect beside "transforms". Remove it, or say it as a transform.'
            for name in flags
        ]
        try:
            for i, step in enumerate(_steps(options.transforms, join(where, "transforms"))):
                problems += _reversed_ranges(step, f"{join(where, 'transforms')}[{i}].args")
        except ConfigError as error:
            problems += error.problems
        return problems
    if options.augment and options.val:
        problems.append(f'{join(where, "val")}: contradicts "augment": true. Set one of them to false.')
    elif not options.augment:
        problems += [
            f'{join(where, name)}: has no effect. Set "augment": true, or remove it.'
            for name in given
            if name in _RANDOM
        ]
    elif options.crop_size is None:
        problems.append(
            f'{join(where, "crop_size")}: missing. Give a size: with "augment": true, images differ in size '
            f"and would not fit into one batch."
        )
    problems += _reversed_ranges(options.scale, join(where, "scale"))
    problems += _reversed_ranges(options.blur, join(where, "blur"))
    if options.resize is not None:
        said = [f.name for f in fields(options.resize) if getattr(options.resize, f.name) is not None]
        if len(said) != 1:
            problems.append(
                f"{join(where, 'resize')}: {' and '.join(said) or 'nothing'} given. "
                f"Give one of short_side, long_side, size."
            )
        if options.base_size is not None:
            problems.append(f'{join(where, "base_size")}: contradicts "resize". Give one of them.')
    return problems


def _reversed_ranges(step: object, where: str) -> list[str]:
    pairs = {name: getattr(step, name, None) for name in ("range", "sigma", "area", "ratio")}
    return [
        f"{join(where, name)}: its first number is the larger one. Exchange them."
        for name, pair in pairs.items()
        if pair is not None and pair[0] > pair[1]
    ]


def build_chain(options: ChainOptions, fill: tuple[float, ...], *, where: str) -> Transform | None:
    """The transform that `options` describe; None if images stay as they are.

    Args:
        options: Checked by `chain_problems`.
        fill: Raw value (0 to 255 for 8-bit images) of image pixels outside the source, by channel; the dataset's
            mean color.
        where: Place of the options in the config, for errors.

    Raises:
        ConfigError: The options contradict themselves.
    """
    if problems := chain_problems(options, where):
        raise ConfigError(*problems)
    if options.transforms is not None:
        steps = _steps(options.transforms, join(where, "transforms"))
        return Compose(tuple(replace(s, fill=fill) if getattr(s, "fill", fill) is None else s for s in steps))
    if options.augment:
        scale = ScaleOptions() if options.scale in (None, True) else options.scale or None
        resize = options.resize
        if options.base_size is not None:
            short = isinstance(scale, ScaleOptions) and scale.side == "short"
            base = options.base_size
            resize = ResizeOptions(short_side=base) if short else ResizeOptions(long_side=base)
        return Chain(
            crop=options.crop,
            resize=resize,
            scale=scale if isinstance(scale, ScaleOptions) else None,
            degrees=10.0 if options.rotate is True else float(options.rotate or 0),
            flip=0.5 if options.flip is True else float(options.flip or 0),
            rare=0.5 if options.rare_crop is True else float(options.rare_crop or 0),
            color_jitter=ColorJitter() if options.color_jitter is True else options.color_jitter or None,
            blur=GaussianBlur() if options.blur is True else options.blur or None,
            fill=fill,
        )
    if options.crop_size is None and options.resize is None:
        return None
    crop = None if options.crop_size is None else as_size(options.crop_size)
    cover = options.val and options.resize is None
    return Chain(crop=crop, resize=options.resize, cover=cover, center=options.val, fill=fill)


def _steps(components: Sequence[Component], where: str) -> list[Any]:
    return [TRANSFORMS.build(step, where=f"{where}[{i}]") for i, step in enumerate(components)]
