"""Objects that annotation tools describe, and how they are drawn."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

from dataloader.datasets.run_lengths import decode_runs, from_runs, unpack_brush
from utils.classes import IGNORE
from utils.errors import DataError

Size = tuple[int, int]  # height and width
Unknown = Literal["refuse", "void", "skip"]

WIDEST = 2**27  # pixels of a mask
FARTHEST = 2**20  # pixels that a corner may lie outside of an image
VOID_LABELS = ("__ignore__", "void")  # LabelMe's word for what has no class
BACKGROUND_LABELS = ("_background_", "background")
FIX = "Correct it in the tool and export again"
# What a description that is something else than expected makes its reader raise; Pillow's has many ways.
UNREADABLE = (
    *(TypeError, AttributeError, IndexError, OverflowError, OSError, SyntaxError, StopIteration),
    *(EOFError, struct.error, zlib.error, Image.DecompressionBombError),
)


@dataclass(frozen=True)
class Shape:
    """One object.

    Args:
        label: Name of its class.
        where: What errors call it.
        form: How it is described, a key of `PAINTERS`.
        data: The description.
        void: It has no class, whatever its label says, as COCO's crowds.
    """

    label: str
    where: str
    form: str
    data: Any
    void: bool = False


@dataclass(frozen=True)
class Picture:
    """The objects of an image, in the order in which they are drawn: later ones lie over earlier ones.

    Args:
        name: What the file calls the image.
        where: What errors call it.
        size: Height and width; None where the file does not say.
        shapes: The objects.
    """

    name: str
    where: str
    size: Size | None
    shapes: tuple[Shape, ...]


def draw(
    picture: Picture,
    values: Mapping[str, int],
    *,
    size: Size | None = None,
    background: int = 0,
    unknown: Unknown = "refuse",
) -> np.ndarray:
    """Draw the objects of an image, (H, W) uint8.

    Args:
        picture: The objects.
        values: What stands for each label.
        size: Of the image, where the file does not say.
        background: Value of what nobody drew.
        unknown: What becomes of labels that `values` lacks.

    Raises:
        DataError: An object cannot be drawn, or its label is unknown.
    """
    found = picture.size or size
    if found is None:
        raise DataError(f"{picture.where}: has no size of an image. Annotate it again.")
    mask = np.full(found, background, np.uint8)
    for shape in picture.shapes:
        value = IGNORE if shape.void else values.get(shape.label)
        if value is None and unknown == "refuse":
            fix = 'Add it to "classes", say what it means with "label_map", or set "unknown"'
            raise DataError(f"{picture.where}, {shape.where}: '{shape.label}' is none of the classes. {fix}.")
        if value is None and unknown == "skip":
            continue
        with naming(f"{picture.where}, {shape.where}"):
            PAINTERS[shape.form](mask, shape.data, IGNORE if value is None else value)
    return mask


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Say of an object that makes no sense which one it is.

    Raises:
        DataError: It makes none.
    """
    try:
        yield
    except KeyError as error:
        raise DataError(f"{where}: has no {error}. {FIX}.") from None
    except (ValueError, TypeError) as error:
        if isinstance(error, DataError):
            raise
        reason = str(error) if str(error).startswith(("its ", "expected ")) else "makes no sense"
        raise DataError(f"{where}: {reason}. {FIX}.") from None
    except UNREADABLE:
        raise DataError(f"{where}: makes no sense. {FIX}.") from None


# How objects are drawn ------------------------------------------------------------------------------------------------


def corners(points: Any) -> np.ndarray:
    """Read the corners of a polygon, (N, 2) float64, x before y.

    Raises:
        ValueError: They are no numbers, or fewer than three.
    """
    found = np.array(points, np.float64)
    if found.size % 2 or found.size < 6:
        raise ValueError(f"its polygon has {found.size} numbers, expected x and y of at least three corners")
    if not (np.abs(found) < FARTHEST).all():  # false for NaN, too
        raise ValueError("its corners are no places in an image")
    return found.reshape(-1, 2)


def fill(mask: np.ndarray, points: np.ndarray, value: int) -> None:
    """Draw a polygon whose corners (N, 2), x before y, may lie between pixels: 0 is the left edge of the first.

    A pixel is inside if its middle is, where outlines cross by the even-odd rule, as pycocotools has it. OpenCV and
    Pillow draw all pixels that the outline touches: objects become larger by half a pixel on each side.
    """
    height, width = mask.shape
    top, bottom = (int(np.clip(each, 0, height)) for each in (points[:, 1].min() - 1, points[:, 1].max() + 1))
    left, right = (int(np.clip(each, 0, width)) for each in (points[:, 0].min() - 1, points[:, 0].max() + 2))
    if top >= bottom or left >= right:
        return
    (x0, y0), (x1, y1) = points.T, np.roll(points, -1, axis=0).T
    # An edge crosses the rows whose middles lie between its ends; a middle at an end belongs to one of the two edges.
    first = np.ceil(np.clip(np.minimum(y0, y1) - 0.5, top, bottom)).astype(np.int64)
    last = np.ceil(np.clip(np.maximum(y0, y1) - 0.5, top, bottom)).astype(np.int64)
    edges = np.repeat(np.arange(len(points)), last - first)
    starts = np.cumsum(last - first) - (last - first)
    rows = np.arange(len(edges)) - starts[edges] + first[edges]
    slopes = (x1 - x0)[edges] / (y1 - y0)[edges]
    crossed = x0[edges] + (rows + 0.5 - y0[edges]) * slopes
    columns = np.ceil(np.clip(crossed - 0.5, left, right)).astype(np.int64)
    span = right - left + 1
    crossings = np.bincount((rows - top) * span + columns - left, minlength=(bottom - top) * span)
    inside = crossings.reshape(-1, span).cumsum(axis=1)[:, :-1] % 2 > 0
    mask[top:bottom, left:right][inside] = value


def paint_outlined(mask: np.ndarray, points: Any, value: int) -> None:
    """Draw a polygon as LabelMe does: with all pixels that its outline touches."""
    shifted = np.rint((corners(points) - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [shifted.reshape(-1, 1, 2)], value, shift=4)


def paint_polygons(mask: np.ndarray, polygons: Any, value: int) -> None:
    for points in polygons:
        fill(mask, corners(points), value)


def paint_relative(mask: np.ndarray, points: Any, value: int) -> None:
    """Draw a polygon whose corners are shares of width and height."""
    found = corners(points)
    if (np.abs(found - 0.5) > 1).any():
        raise ValueError("its corners are no shares of width and height")
    fill(mask, found * (mask.shape[1], mask.shape[0]), value)


def paint_circle(mask: np.ndarray, data: Any, value: int) -> None:
    """Draw LabelMe's circle: its center and a point on it."""
    (x, y), edge = np.array(data, np.float64)
    radius = float(np.hypot(edge[0] - x, edge[1] - y))
    if not abs(x) + abs(y) + radius < FARTHEST:
        raise ValueError("its corners are no places in an image")
    cv2.circle(mask, (int(x), int(y)), max(1, round(radius)), value, -1)


def paint_coco_runs(mask: np.ndarray, data: Any, value: int) -> None:
    counts = data["counts"]
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    if list(data.get("size", mask.shape)) != list(mask.shape):
        raise ValueError(f"its size is {data['size']}, its image's {list(mask.shape)}")
    inside = from_runs(runs, mask.size).reshape(mask.shape[1], mask.shape[0]).T  # column by column
    mask[inside] = value


def paint_window(mask: np.ndarray, data: Any, value: int) -> None:
    """Draw CVAT's mask: its left and upper end, width, height, and run lengths row by row."""
    left, top, width, height, runs = data
    if min(width, height) < 1 or width * height > WIDEST:
        raise ValueError("its size makes no sense")
    place(mask, from_runs(runs, width * height).reshape(height, width), left, top, value)


def place(mask: np.ndarray, inside: np.ndarray, left: int, top: int, value: int) -> None:
    """Draw a mask (h, w) bool that must lie within the image."""
    height, width = inside.shape
    if min(left, top) < 0 or top + height > mask.shape[0] or left + width > mask.shape[1]:
        raise ValueError("its mask lies outside of the image")
    mask[top : top + height, left : left + width][inside] = value


def paint_brush(mask: np.ndarray, packed: Any, value: int) -> None:
    mask[unpack_brush(packed, (mask.shape[0], mask.shape[1]))] = value


def paint_picture(mask: np.ndarray, data: Any, value: int) -> None:
    """Draw LabelMe's mask: a PNG as text, and its left upper corner."""
    text, (left, top) = data
    with Image.open(io.BytesIO(base64.b64decode(text))) as image:
        if image.width * image.height > WIDEST:
            raise ValueError("its size makes no sense")
        inside = np.asarray(image.convert("L")) > 0
    place(mask, inside, round(left), round(top), value)


PAINTERS: dict[str, Callable[[np.ndarray, Any, int], None]] = {
    "outlined": paint_outlined,
    "polygons": paint_polygons,
    "relative": paint_relative,
    "circle": paint_circle,
    "coco runs": paint_coco_runs,
    "window": paint_window,
    "brush": paint_brush,
    "picture": paint_picture,
}


def box_corners(x0: float, y0: float, x1: float, y1: float, degrees: float = 0) -> np.ndarray:
    """Return the corners (4, 2) of a box that is turned around its middle."""
    points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return turned(points, points.mean(axis=0), degrees)


def ellipse_corners(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> np.ndarray:
    """Return 90 corners (90, 2) of an ellipse."""
    angles = np.linspace(0, 2 * np.pi, 90, endpoint=False)
    points = np.stack([x + rx * np.cos(angles), y + ry * np.sin(angles)], axis=1)
    return turned(points, np.array([x, y]), degrees)


def turned(points: np.ndarray, middle: np.ndarray, degrees: float) -> np.ndarray:
    """Turn points (N, 2) clockwise around a middle."""
    cos, sin = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    return np.asarray((points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle)


def area_of(points: np.ndarray) -> float:
    """Return the area of a polygon with corners (N, 2)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
