"""Files of annotation tools: COCO, LabelMe, CVAT, Label Studio and YOLO."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from dataloader.datasets.run_lengths import decode_runs
from dataloader.datasets.shapes import (
    WIDEST,
    Picture,
    Shape,
    Size,
    area_of,
    box_corners,
    corners,
    ellipse_corners,
    naming,
    turned,
)
from utils.errors import DataError

NOTHING_LIKE_THIS = "is no annotation of LabelMe, nor of COCO, CVAT or Label Studio"
NO_AREA = ("point", "points", "line", "linestrip", "polyline", "tag", "skeleton", "keypoint", "keypointlabels")


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        labels: Names of classes, in the file's order or by name.
        pictures: The annotated images.
    """

    labels: list[str]
    pictures: list[Picture]


def read_annotations(path: Path) -> Contents:
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
    if not (type(height) is type(width) is int and 0 < height * width <= WIDEST and height > 0):
        raise DataError(f"{where}: has no size of an image ({height} x {width}). Annotate it again.")
    return height, width


def from_labelme(path: Path, content: Mapping[str, Any]) -> Contents:
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
                shapes.append(Shape(label, where, "outlined", box_corners(*points[0], *points[1])))
            elif kind == "circle":
                shapes.append(Shape(label, where, "circle", points))
            elif kind == "mask":
                shapes.append(Shape(label, where, "picture", (each["mask"], points[0])))
            elif kind in ("polygon", "rectangle", "oriented_rectangle"):
                shapes.append(Shape(label, where, "outlined", points))
            else:
                raise ValueError("its shape_type is unknown")
    name = str(content.get("imagePath") or path.name)
    return Contents(sorted({shape.label for shape in shapes}), [Picture(name, str(path), size, tuple(shapes))])


def from_coco(path: Path, content: Mapping[str, Any]) -> Contents:
    """Read COCO's file. It has no order: large objects come first, so that none is hidden, and crowds before all."""
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key), list):
            raise DataError(f"{path}: {NOTHING_LIKE_THIS} ('{key}' is missing). Name such a file.")
    labels: dict[Any, str] = {}
    names: dict[Any, tuple[Mapping[str, Any], str]] = {}
    drawn: dict[Any, list[tuple[Shape, float]]] = {}
    for number, category in enumerate(content["categories"], start=1):
        with naming(f"{path}, category {number}"):
            if category["id"] in labels:
                raise ValueError("its id is another's, too")
            labels[category["id"]] = str(category["name"])
    for number, image in enumerate(content["images"], start=1):
        with naming(f"{path}, image {number}"):
            if image["id"] in drawn:
                raise ValueError("its id is another's, too")
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
    ordered = sorted(labels, key=lambda number: (type(number).__name__, number))  # some tools write texts
    return Contents([labels[number] for number in ordered], pictures)


def coco_object(each: Mapping[str, Any], label: str, where: str) -> tuple[Shape, float]:
    """Read an object of COCO's and its area."""
    segmentation = each["segmentation"]
    void = bool(each.get("iscrowd"))
    stated = each["area"] if isinstance(each.get("area"), int | float) and each["area"] > 0 else 0.0
    if not segmentation:
        raise ValueError("its object is a box, expected a polygon")
    if isinstance(segmentation, list):
        area = stated or sum(area_of(corners(points)) for points in segmentation)
        return Shape(label, where, "polygons", segmentation, void), area
    counts = segmentation["counts"]
    runs = decode_runs(counts) if isinstance(counts, str) else counts
    return Shape(label, where, "coco runs", segmentation, void), stated or float(sum(runs[1::2]))


def from_cvat(path: Path, text: str) -> Contents:
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
    return Contents(sorted(labels), pictures)


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
        x0, y0, x1, y1 = numbers("xtl", "ytl", "xbr", "ybr")
        return "polygons", [box_corners(x0, y0, x1, y1, degrees)]
    if each.tag == "ellipse":
        x, y, rx, ry = numbers("cx", "cy", "rx", "ry")
        return "polygons", [ellipse_corners(x, y, rx, ry, degrees)]
    if each.tag == "mask":
        runs = [int(run) for run in attribute["rle"].split(",")]
        return "window", (*map(int, numbers("left", "top", "width", "height")), runs)
    raise ValueError("its kind is unknown")


def from_labelstudio(path: Path, tasks: Sequence[Mapping[str, Any]]) -> Contents:
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
            results = list(valid[0]["result"])
        size, shapes = None, []
        for place_in_file, each in enumerate(results, start=1):
            with naming(f"{where}, result {place_in_file}"):
                if each["type"] in ("choices", "number", "rating", "relation", "taxonomy", "textarea", *NO_AREA):
                    continue
                if not each["value"].get(each["type"]):  # a region that nobody gave a class, or "rectangle"
                    raise ValueError("its region has no label")
                label = str(each["value"][each["type"]][0])
                size = size_of(where, each["original_height"], each["original_width"])
                form, described = labelstudio_object(each["type"], each["value"], size)
                shapes.append(Shape(label, f"result {place_in_file} ({label})", form, described))
                labels.add(label)
        pictures.append(Picture(str(name), where, size, tuple(shapes)))
    return Contents(sorted(labels), pictures)


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
