"""One affine warp of image and label, which scales, rotates, flips and crops in one pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated

import cv2
import numpy as np

from utils.classes import IGNORE
from utils.errors import DataError
from utils.images import MAX_PIXELS, ReducibleImage
from utils.schema import Between

Side = Annotated[int, Between(1, 2**15 - 1)]  # pixels

LONGEST = 2**31 if int(cv2.__version__.partition(".")[0]) >= 5 else 2**15 - 2  # side of what is warped, in pixels

Probability = Annotated[float, Between(0, 1)]

Degrees = Annotated[float, Between(0, 180)]

Factor = Annotated[float, Between(0.01, 100)]

Pair = tuple[np.ndarray, np.ndarray]

Edges = tuple[int, int, int, int]  # pixels above, below, to the left and to the right


def as_size(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) from the side of a square or from both."""
    return (size, size) if isinstance(size, int) else size


def warp(  # noqa: PLR0913  all but the first are named
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
    """Resize, turn about the center, cut out (padding below and to the right), mirror; all in one interpolation.

    Args:
        image: (H, W, C), of 8 or 16 bits or float32.
        label: (H, W) uint8.
        scaled: Height and width to resize to.
        crop: Height and width to cut out.
        offset: Row and column of the resized image at which the crop begins.
        angle: Degrees, counter-clockwise.
        flip: Exchange left and right.
        fill: Value of image pixels outside the source, one per channel or one for all; if empty, the mean of those
            that are shown. Label pixels there are void.
        change: What else to do to image and label before they are padded; the size must stay.

    Raises:
        DataError: The image would become too large, or is longer than this OpenCV can warp.
    """
    if math.prod(crop) > MAX_PIXELS:
        raise DataError(f"would become {crop[1]}x{crop[0]} pixels, more than {MAX_PIXELS:,}. Give a crop_size.")
    if scaled == label.shape and not angle:
        image, label, edges = _cut(image, label, crop, offset, flip)
    else:
        image, label, edges = _interpolate(image, label, scaled, crop, offset, angle, flip, fill)
    if change is not None:
        image, label = change(image, label)
    return _pad(image, label, edges, fill) if any(edges) else (image, label)


def _interpolate(
    image: np.ndarray,
    label: np.ndarray,
    scaled: tuple[int, int],
    crop: tuple[int, int],
    offset: tuple[int, int],
    angle: float,
    flip: bool,
    fill: Sequence[float],
) -> tuple[np.ndarray, np.ndarray, Edges]:
    """Return what `warp` makes of the part of the crop that shows the image, and how much is missing around it.

    Parts of the crop that show nothing of the image are filled later, which is faster than to warp them.
    """
    matrix = _crop_to_source(label.shape, scaled, crop, offset, math.radians(angle), flip)
    rows, columns = (max(1, int(old / new + 1e-6)) for old, new in zip(label.shape, scaled, strict=True))
    steps = rows, columns
    if not angle:
        height, width = (min(c, s - o) for c, s, o in zip(crop, scaled, offset, strict=True))
        top, bottom, left, right = (0, height, crop[1] - width, crop[1]) if flip else (0, height, 0, width)
    else:
        top, bottom, left, right = _shown(matrix, label.shape, crop, steps)
    matrix[:, 2] += matrix[:, :2] @ (left, top)
    image, label = _warp_pair(image, label, matrix, (bottom - top, right - left), steps, not angle, fill)
    return image, label, (top, crop[0] - bottom, left, crop[1] - right)


def _pad(image: np.ndarray, label: np.ndarray, edges: Edges, fill: Sequence[float]) -> Pair:
    """Surround the image with `fill` and the label with void."""

    def apply(x: np.ndarray, value: list[float]) -> np.ndarray:
        return cv2.copyMakeBorder(x, *edges, cv2.BORDER_CONSTANT, value=value)

    values = _fill(fill, image)
    return by_fours(image, lambda x, first: apply(x, values[first : first + 4])), apply(label, [IGNORE])


def _span(function: Sequence[float], columns: tuple[float, float], rows: tuple[float, float]) -> tuple[float, float]:
    """Return the smallest and largest value of an affine function of column and row, (a, b, c), on a rectangle."""
    a, b, c = function
    xs, ys = sorted((a * columns[0], a * columns[1])), sorted((b * rows[0], b * rows[1]))
    return c + xs[0] + ys[0], c + xs[1] + ys[1]


def _shown(
    matrix: np.ndarray, source: tuple[int, ...], crop: tuple[int, int], steps: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the first and last + 1 of the rows, and of the columns, of the crop that the source can be seen in."""
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
    window, to_part = _needed(matrix, crop, label.shape, steps)
    label = label[window]
    if max(label.shape) > LONGEST:
        raise DataError(f"is longer than {LONGEST:,} pixels, which takes OpenCV 5. Update it, or cut tiles.")
    label = cv2.warpAffine(
        label.astype(np.uint16),  # OpenCV takes a third less time for it than for 8 bits
        to_part,
        crop[::-1],
        flags=cv2.WARP_INVERSE_MAP | cv2.INTER_NEAREST,
        # Half a pixel at the image's edge is nearer to the edge than to any pixel outside.
        borderMode=cv2.BORDER_REPLICATE if inside else cv2.BORDER_CONSTANT,
        borderValue=IGNORE,
    ).astype(np.uint8)
    if isinstance(image, ReducibleImage) and min(steps) > 1:
        step = max(each for each in image.FLAGS if each <= min(steps))
        image, matrix = image.reduced(step), _coarser(matrix, (step, step))
        steps = steps[0] // step, steps[1] // step
        window, to_part = _needed(matrix, crop, image.shape[:2], steps)
    image = image[window]
    if steps != (1, 1):  # bilinear interpolation sees 2x2 pixels only, so that it would skip others below 1/2
        image = by_fours(image, lambda x, _: _reduce(x, steps))
        to_part = _coarser(to_part, steps)
    return _warp_image(image, to_part, crop, inside, fill), label


def _needed(
    matrix: np.ndarray, crop: tuple[int, int], size: tuple[int, ...], steps: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return what the crop shows of a source of `size`, with a margin for interpolation, and the matrix to that part.

    All else is left alone.
    """
    to_column, to_row = matrix.tolist()
    top, bottom = _region(_span(to_row, (0, crop[1] - 1), (0, crop[0] - 1)), size[0], steps[0])
    left, right = _region(_span(to_column, (0, crop[1] - 1), (0, crop[0] - 1)), size[1], steps[1])
    return (slice(top, bottom), slice(left, right)), matrix - [[0, 0, left], [0, 0, top]]


def _coarser(matrix: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Return the matrix to a source whose pixels are each so many rows x columns of the one before."""
    half = np.array([0, 0, 0.5])  # pixels are squares around their coordinates
    coarser: np.ndarray = (matrix + half) / np.array(steps[::-1])[:, None] - half
    return coarser


def _crop_to_source(
    source: tuple[int, ...],
    scaled: tuple[int, int],
    crop: tuple[int, int],
    offset: tuple[int, int],
    angle: float,
    flip: bool,
) -> np.ndarray:
    """Return the (2, 3) matrix from (column, row, 1) in the crop to (column, row) in the source."""
    # Column and row in the resized image are (sign * column + x0, row + y0); it is turned about (x, y).
    sign, x0, y0 = (-1, crop[1] - 1 + offset[1], offset[0]) if flip else (1, offset[1], offset[0])
    c, s = math.cos(angle), math.sin(angle)
    x, y = (scaled[1] - 1) / 2, (scaled[0] - 1) / 2
    fy, fx = source[0] / scaled[0], source[1] / scaled[1]
    # Pixels are squares around their coordinates, so that a resized image begins half a pixel before them.
    return np.array(
        [
            [fx * c * sign, -fx * s, fx * (c * (x0 - x) - s * (y0 - y) + x + 0.5) - 0.5],
            [fy * s * sign, fy * c, fy * (s * (x0 - x) + c * (y0 - y) + y + 0.5) - 0.5],
        ]
    )


def _reduce(image: np.ndarray, steps: tuple[int, int]) -> np.ndarray:
    """Return the means of so many rows x columns of pixels; the last are completed with copies of the edge."""
    below, right = -image.shape[0] % steps[0], -image.shape[1] % steps[1]
    if below or right:  # blocks that do not fit would cost five times the time
        image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    size = image.shape[1] // steps[1], image.shape[0] // steps[0]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _region(span: tuple[float, float], length: int, step: int) -> tuple[int, int]:
    """Return the first and last + 1 of `length` rows (or columns) between two coordinates, in multiples of `step`."""
    margin = step + 1
    first = min(max(int(span[0]) - margin, 0), length - 1)
    last = max(int(span[1]) + margin + 1, first + 1)
    return first, min(first - (first - last) // step * step, length)


def _warp_image(
    image: np.ndarray, matrix: np.ndarray, crop: tuple[int, int], inside: bool, fill: Sequence[float]
) -> np.ndarray:
    """Interpolate a crop (H, W, C) of an image through a matrix from its pixels to the source's."""
    mode = cv2.BORDER_REPLICATE if inside else cv2.BORDER_CONSTANT
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    values = [0.0] * image.shape[2] if inside else _fill(fill, image)

    def apply(x: np.ndarray, border: list[float]) -> np.ndarray:
        return cv2.warpAffine(x, matrix, crop[::-1], flags=flags, borderMode=mode, borderValue=border)

    if image.shape[2] == 3 and image.shape[0] * image.shape[1] < 4 * crop[0] * crop[1]:
        # OpenCV warps four channels twice as fast as three, which pays for the copies.
        wide = apply(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), [*values, 0])
        return cv2.cvtColor(wide, cv2.COLOR_RGBA2RGB)
    return by_fours(image, lambda x, first: apply(x, values[first : first + 4]))


def _cut(
    image: np.ndarray, label: np.ndarray, crop: tuple[int, int], offset: tuple[int, int], flip: bool
) -> tuple[np.ndarray, np.ndarray, Edges]:
    """Return what `warp` makes without a change of scale or angle, copied, and how much is missing around it."""
    window = np.s_[offset[0] : offset[0] + crop[0], offset[1] : offset[1] + crop[1]]
    image, label = image[window], label[window]
    below, beside = crop[0] - label.shape[0], crop[1] - label.shape[1]
    if flip:
        image, label = image[:, ::-1], label[:, ::-1]
    edges = (0, below, beside, 0) if flip else (0, below, 0, beside)
    return np.ascontiguousarray(image), np.ascontiguousarray(label), edges


def _fill(fill: Sequence[float], image: np.ndarray) -> list[float]:
    """Return one value per channel of `image`, rounded as its type needs."""
    values = list(fill) or image.mean((0, 1), dtype=np.float64).tolist()
    values = values * image.shape[2] if len(values) == 1 else values
    if len(values) != image.shape[2]:
        raise DataError(
            f"fill: {len(values)} numbers for {image.shape[2]} channels. Give one for each, or one for all."
        )
    return values if image.dtype.kind == "f" else [round(value) for value in values]


def by_fours(image: np.ndarray, function: Callable[[np.ndarray, int], np.ndarray]) -> np.ndarray:
    """Apply `function` to up to four channels at a time, as OpenCV wants them, and to the first one's number."""
    channels = image.shape[2]
    if channels in (3, 4):
        return function(image, 0)
    parts = [function(np.ascontiguousarray(image[..., c : c + 4]), c) for c in range(0, channels, 4)]
    # OpenCV drops the channel axis where there is one channel.
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)


def random_offset(spare: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Draw the offset of a crop that leaves `spare` rows and columns."""
    return int(rng.integers(spare[0] + 1)), int(rng.integers(spare[1] + 1))
