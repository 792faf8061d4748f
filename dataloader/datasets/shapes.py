"""Objects in files of annotation tools, and how they are drawn: COCO, LabelMe, CVAT, Label Studio, YOLO."""

from __future__ import annotations

import base64
import io
import json
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

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
NOTHING_LIKE_THIS = "is no annotation of LabelMe, nor of COCO, CVAT or Label Studio"
FIX = "Correct it in the tool and export again"
NO_AREA = ("point", "points", "line", "linestrip", "polyline", "tag", "skeleton", "keypoint", "keypointlabels")

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


@dataclass(frozen=True)
class Annotations:
    """What a file holds.

    Args:
        labels: Names of classes, in the file's order or by name.
        pictures: The annotated images.
    """

    labels: list[str]
    pictures: list[Picture]


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
    except ValueError as error:
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
    """Draw a polygon whose corners (N, 2), x before y, may lie between pixels: 0 is the left edge of the first."""
    shifted = np.rint((points - 0.5) * 16).astype(np.int32)
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
    return (points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle


def area_of(points: np.ndarray) -> float:
    """Return the area of a polygon with corners (N, 2)."""
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)


# What files hold ------------------------------------------------------------------------------------------------------


def read_annotations(path: Path) -> Annotations:
    """Read a file of COCO's, LabelMe's, CVAT's or Label Studio's, whichever it is.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise DataError(f"{path}: cannot be read ({reason}). Get the file again.") from None
    if text.lstrip().startswith("<"):
        return from_cvat(path, text)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise DataError(f"{path}: cannot be read (no JSON). Get the file again.") from None
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        return from_labelme(path, content)
    if isinstance(content, dict) and "images" in content:
        return from_coco(path, content)
    tasks = content if isinstance(content, list) else [content]
    if tasks and all(isinstance(task, dict) and "data" in task for task in tasks):
        return from_labelstudio(path, tasks)
    raise DataError(f"{path}: {NOTHING_LIKE_THIS}. Name such a file.")


def size_of(where: str, height: Any, width: Any) -> Size:
    """Check the size of an image.

    Raises:
        DataError: It is none.
    """
    if not (isinstance(height, int) and isinstance(width, int) and 0 < height * width <= WIDEST and height > 0):
        raise DataError(f"{where}: has no size of an image ({height} x {width}). Annotate it again.")
    return height, width


def from_labelme(path: Path, content: Mapping[str, Any]) -> Annotations:
    """Read the shapes of LabelMe's file; points and lines have no area, and are passed over."""
    size = size_of(str(path), content.get("imageHeight"), content.get("imageWidth"))
    shapes = []
    for number, each in enumerate(content["shapes"], start=1):
        where = f"shape {number}"
        with naming(f"{path}, {where}"):
            label, kind, points = str(each["label"]), each.get("shape_type") or "polygon", each["points"]
            if kind in NO_AREA:
                continue
            where = f"{where} ({label})"
            if kind == "rectangle" and len(points) == 2:
                shapes.append(Shape(label, where, "polygons", [box_corners(*points[0], *points[1])]))
            elif kind == "circle":
                shapes.append(Shape(label, where, "circle", points))
            elif kind == "mask":
                shapes.append(Shape(label, where, "picture", (each["mask"], points[0])))
            elif kind in ("polygon", "rectangle", "oriented_rectangle"):
                shapes.append(Shape(label, where, "polygons", [points]))
            else:
                raise ValueError("its shape_type is unknown")
    name = str(content.get("imagePath") or path.name)
    return Annotations(sorted({shape.label for shape in shapes}), [Picture(name, str(path), size, tuple(shapes))])


def from_coco(path: Path, content: Mapping[str, Any]) -> Annotations:
    """Read COCO's file. It has no order: large objects come first, so that none is hidden, and crowds before all."""
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: {NOTHING_LIKE_THIS} ('{key}' is missing). Name such a file.")
    labels: dict[Any, str] = {}
    names: dict[Any, tuple[Mapping[str, Any], str]] = {}
    drawn: dict[Any, list[tuple[Shape, float]]] = {}
    for number, category in enumerate(content["categories"], start=1):
        with naming(f"{path}, category {number}"):
            labels[category["id"]] = str(category["name"])
    for number, image in enumerate(content["images"], start=1):
        with naming(f"{path}, image {number}"):
            drawn[image["id"]] = []
            names[image["id"]] = image, str(image["file_name"])
    for number, each in enumerate(content["annotations"], start=1):
        name = f"annotation {number}"
        with naming(f"{path}, {name}"):
            if each["image_id"] not in drawn:
                raise ValueError("its image_id is no image's")
            if each["category_id"] not in labels:
                raise ValueError("its category_id is no category's")
            label = labels[each["category_id"]]
        where = f"annotation with id {each['id']} ({label})" if "id" in each else f"{name} ({label})"
        with naming(f"{path}, {where}"):
            drawn[each["image_id"]].append(coco_object(each, label, where))
    pictures = []
    for key, (image, name) in names.items():
        size = size_of(f"{path}, {name}", image.get("height"), image.get("width"))
        found = sorted(drawn[key], key=lambda pair: (not pair[0].void, -pair[1]))
        pictures.append(Picture(name, f"{path}, {name}", size, tuple(shape for shape, _ in found)))
    return Annotations([labels[key] for key in sorted(labels)], pictures)


def coco_object(each: Mapping[str, Any], label: str, where: str) -> tuple[Shape, float]:
    """Read an object of COCO's and its area."""
    segmentation = each["segmentation"]
    void = bool(each.get("iscrowd"))
    if isinstance(segmentation, list):
        area = sum(area_of(corners(points)) for points in segmentation) if "area" not in each else each["area"]
        return Shape(label, where, "polygons", segmentation, void), float(area)
    counts = segmentation["counts"]
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    return Shape(label, where, "coco runs", segmentation, void), float(each.get("area", sum(runs[1::2])))


def from_cvat(path: Path, text: str) -> Annotations:
    """Read "CVAT for images": objects lie over each other by z_order, those of one z_order as they stand there."""
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise DataError(f"{path}: cannot be read (no XML). Get the file again.") from None
    images = root.findall("image")
    if root.tag != "annotations" or not images:
        raise DataError(f"{path}: {NOTHING_LIKE_THIS} (no image in it). Export 'CVAT for images'.")
    pictures, labels = [], set()
    for number, image in enumerate(images, start=1):
        with naming(f"{path}, image {number}"):
            name = image.attrib["name"]
            height, width = int(image.attrib["height"]), int(image.attrib["width"])
        where = f"{path}, {name}"
        found: list[tuple[int, Shape]] = []
        for place_in_file, each in enumerate(image, start=1):
            if each.tag in NO_AREA:
                continue
            with naming(f"{where}, object {place_in_file} ({each.tag})"):
                label = each.attrib["label"]
                form, data = cvat_object(each)
                shape = Shape(label, f"object {place_in_file} ({label})", form, data)
                found.append((int(each.get("z_order", 0)), shape))
                labels.add(label)
        shapes = tuple(shape for _, shape in sorted(found, key=lambda pair: pair[0]))
        pictures.append(Picture(name, where, size_of(where, height, width), shapes))
    return Annotations(sorted(labels), pictures)


def cvat_object(each: ElementTree.Element) -> tuple[str, Any]:
    """Read form and description of an object of CVAT's."""
    attribute = each.attrib

    def numbers(*names: str) -> list[float]:
        return [float(attribute[name]) for name in names]

    degrees = float(attribute.get("rotation", 0))
    if each.tag == "polygon":
        pairs = attribute["points"].split(";")
        return "polygons", [[[float(x), float(y)] for x, y in (pair.split(",") for pair in pairs)]]
    if each.tag == "box":
        return "polygons", [box_corners(*numbers("xtl", "ytl", "xbr", "ybr"), degrees)]
    if each.tag == "ellipse":
        return "polygons", [ellipse_corners(*numbers("cx", "cy", "rx", "ry"), degrees)]
    if each.tag == "mask":
        runs = [int(run) for run in attribute["rle"].split(",")]
        return "window", (*map(int, numbers("left", "top", "width", "height")), runs)
    raise ValueError("its kind is unknown")


def from_labelstudio(path: Path, tasks: Sequence[Mapping[str, Any]]) -> Annotations:
    """Read tasks of Label Studio's: of each the first annotation, or else the last prediction; later results on top."""
    pictures, labels = [], set()
    for number, task in enumerate(tasks, start=1):
        where = f"{path}, task {task.get('id', number)}"
        with naming(where):
            valid = [each for each in task.get("annotations") or [] if not each.get("was_cancelled")]
            valid = valid or (task.get("predictions") or [])[-1:]
            if not valid:
                continue
            data = task["data"]
            name = data.get("image") or next(value for value in data.values() if isinstance(value, str))
            results = valid[0]["result"]
        size, shapes = None, []
        for place_in_file, each in enumerate(results, start=1):
            with naming(f"{where}, result {place_in_file}"):
                if each["type"] in ("choices", "rating", "textarea", "relation", *NO_AREA):
                    continue
                label = each["value"][each["type"]][0]
                size = size_of(where, each["original_height"], each["original_width"])
                form, described = labelstudio_object(each["type"], each["value"], size)
                shapes.append(Shape(label, f"result {place_in_file} ({label})", form, described))
                labels.add(label)
        pictures.append(Picture(str(name), where, size, tuple(shapes)))
    return Annotations(sorted(labels), pictures)


def labelstudio_object(kind: str, value: Mapping[str, Any], size: Size) -> tuple[str, Any]:
    """Read form and description of a result of Label Studio's; its places are hundredths of width and height."""
    unit = np.array([size[1], size[0]]) / 100
    if kind == "brushlabels":
        if value.get("format") != "rle":
            raise ValueError("its brush has another format than rle")
        return "brush", value["rle"]
    if kind == "polygonlabels":
        return "polygons", [corners(value["points"]) * unit]
    x, y = np.array([value["x"], value["y"]], np.float64) * unit
    degrees = float(value.get("rotation", 0))
    if kind == "rectanglelabels":  # turned around its upper left corner
        width, height = np.array([value["width"], value["height"]], np.float64) * unit
        points = box_corners(x, y, x + width, y + height)
        return "polygons", [turned(points, np.array([x, y]), degrees)]
    if kind == "ellipselabels":
        rx, ry = np.array([value["radiusX"], value["radiusY"]], np.float64) * unit
        return "polygons", [ellipse_corners(x, y, rx, ry, degrees)]
    raise ValueError("its type is unknown")


def read_yolo(path: Path) -> Picture:
    """Read YOLO's polygons: a number of a class and corners, as shares of width and height, in each line.

    The format has no order: large objects come first, so that none is hidden. A hole is a polygon that goes in and
    comes back on the same way.

    Raises:
        DataError: It cannot be read, or a line is something else.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise DataError(f"{path}: cannot be read ({reason}). Get the file again.") from None
    found: list[tuple[float, Shape]] = []
    for number, line in enumerate(lines, start=1):
        entries = line.split()
        if not entries:
            continue
        where = f"line {number}"
        with naming(f"{path}, {where}"):
            if not re.fullmatch(r"\d+", entries[0]):
                raise ValueError("its class is no number")
            if len(entries) == 5:
                raise ValueError("its object is a box, expected a polygon")
            points = corners([float(entry) for entry in entries[1:]])
            label = str(int(entries[0]))
            found.append((area_of(points), Shape(label, f"{where} (class {label})", "relative", points)))
    found.sort(key=lambda pair: -pair[0])
    return Picture(path.name, str(path), None, tuple(shape for _, shape in found))
