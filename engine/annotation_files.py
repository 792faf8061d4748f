"""Predictions as files of annotation tools, to be corrected there; the dataset `Annotations` reads them again."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import cv2
import numpy as np

from dataloader.datasets.run_lengths import encode_runs, pack_brush, to_runs
from dataloader.datasets.shapes import VOID_LABELS
from utils.classes import BACKGROUND, IGNORE
from utils.files import atomic_write

VOID = VOID_LABELS[0]


class Region(NamedTuple):
    """Pixels of one class that hang together by their edges.

    Args:
        label: Name of the class.
        left: First column.
        top: First row.
        mask: Where they are, from there on, (h, w) bool.
    """

    label: str
    left: int
    top: int
    mask: np.ndarray


def regions(labels: np.ndarray, names: Sequence[str], *, holes: bool = False) -> list[Region]:
    """Find the objects in a label map, the largest outlines first, so that what lies in a hole comes later.

    Args:
        labels: Label map, (H, W) uint8.
        names: Names of the classes.
        holes: Give the background, too, where it lies in a hole: it does not reach the image's edge.
    """
    found: list[tuple[int, Region]] = []
    height, width = labels.shape
    for value in np.unique(labels).tolist():
        label = VOID if value == IGNORE else names[value]
        background = label.lower() in BACKGROUND
        if background and not holes:
            continue
        # Of eight neighbors, two classes could cross each other, and neither would lie in a hole of the other.
        count, numbers, boxes, _ = cv2.connectedComponentsWithStats(
            (labels == value).astype(np.uint8), connectivity=4, ltype=cv2.CV_32S
        )
        for number in range(1, count):
            x, y, w, h, _ = boxes[number].tolist()
            if background and (x == 0 or y == 0 or x + w == width or y + h == height):
                continue
            mask = numbers[y : y + h, x : x + w] == number
            found.append((filled_area(mask), Region(label, x, y, mask)))
    return [region for _, region in sorted(found, key=lambda pair: -pair[0])]


def filled_area(mask: np.ndarray) -> int:
    """Count the pixels of a region (h, w) bool with those of its holes."""
    filled = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(filled, [outline(mask)], 1)
    return int(np.count_nonzero(filled))


def outline(mask: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of a region (h, w) bool, corners only, (N, 1, 2) int32."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return np.asarray(contours[0], np.int32)


def polygon(region: Region) -> list[list[float]]:
    """Return the outline of a region through the middles of its outermost pixels, x and y of at least three corners."""
    points = outline(region.mask).reshape(-1, 2) + 0.5
    if len(points) < 3:  # a pixel, or a line of them
        (x0, y0), (x1, y1) = points.min(axis=0) - 0.25, points.max(axis=0) + 0.25
        points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    corners: list[list[float]] = (points + np.array([region.left, region.top])).tolist()
    return corners


def labelme(labels: np.ndarray, names: Sequence[str], image: str) -> bytes:
    """Write a label map as LabelMe's file: outlines, the largest first; what lies in a hole is drawn over it.

    Args:
        labels: Label map, (H, W) uint8.
        names: Names of the classes.
        image: Path of the image, from the file's folder.
    """
    shapes = []
    for region in regions(labels, names, holes=True):
        label = "_background_" if region.label.lower() in BACKGROUND else region.label
        about: dict[str, Any] = {"group_id": None, "shape_type": "polygon", "flags": {}}
        shapes.append({"label": label, "points": polygon(region), **about})
    height, width = labels.shape
    size = {"imageHeight": height, "imageWidth": width}
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": image, "imageData": None, **size}
    return to_json(content)


def to_json(value: Any) -> bytes:
    """Write JSON in one line: a brush is thousands of numbers."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


def distinct_names(paths: Sequence[Path], names: Sequence[str]) -> list[str]:
    """Name images in a file for all of them: as `names` say, or with folders where several are called the same."""
    found = list(names)
    for longer in (lambda path: f"{path.parent.name}/{path.name}", lambda path: path.absolute().as_posix()):
        counts = Counter(found)
        found = [longer(path) if counts[name] > 1 else name for path, name in zip(paths, found, strict=True)]
    return found


class AnnotationFile:
    """A file for all images; images may be added by several threads.

    Args:
        kind: coco, cvat or labelstudio.
        path: Where to write it.
        names: Names of the classes.
    """

    def __init__(self, kind: str, path: Path, names: Sequence[str]) -> None:
        self.kind = kind
        self.path = path
        self.names = names
        self.images: dict[str, tuple[tuple[int, int], list[Any]]] = {}
        self._lock = threading.Lock()

    def add(self, image: str, labels: np.ndarray) -> None:
        """Add the label map (H, W) uint8 of an image."""
        objects = list(DESCRIBE[self.kind](labels, self.names))
        with self._lock:
            self.images[image] = (labels.shape[0], labels.shape[1]), objects

    def write(self) -> None:
        """Write what was added.

        Raises:
            OSError: It cannot be written.
        """
        images = dict(sorted(self.images.items()))
        data = {"coco": self._coco, "cvat": self._cvat, "labelstudio": self._labelstudio}[self.kind](images)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.path) as file:
            file.write(data)

    def _used_names(self, images: dict[str, tuple[tuple[int, int], list[Any]]]) -> list[str]:
        """Names of the classes, and of void where some objects are: tools refuse a label that was not declared."""
        used = {each["label"] for _, objects in images.values() for each in objects}
        return [name for name in (*self.names, VOID) if name != VOID or name in used]

    def _coco(self, images: dict[str, tuple[tuple[int, int], list[Any]]]) -> bytes:
        names = [name for name in self._used_names(images) if name.lower() not in BACKGROUND]
        listed: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, (name, ((height, width), objects)) in enumerate(images.items(), start=1):
            listed.append({"id": number, "file_name": name, "height": height, "width": width})
            for each in objects:
                keys = {"id": len(annotations) + 1, "image_id": number, "category_id": names.index(each["label"]) + 1}
                annotations.append({**keys, **{key: value for key, value in each.items() if key != "label"}})
        categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
        return to_json({"images": listed, "categories": categories, "annotations": annotations})

    def _cvat(self, images: dict[str, tuple[tuple[int, int], list[Any]]]) -> bytes:
        root = ElementTree.Element("annotations")
        ElementTree.SubElement(root, "version").text = "1.1"
        task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")  # readers besides CVAT want it
        labels = ElementTree.SubElement(task, "labels")
        for name in self._used_names(images):
            ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
        for number, (name, ((height, width), objects)) in enumerate(images.items()):
            about = {"id": str(number), "name": name, "width": str(width), "height": str(height)}
            image = ElementTree.SubElement(root, "image", about)
            for each in objects:
                ElementTree.SubElement(image, "mask", each)
        ElementTree.indent(root)
        return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))

    def _labelstudio(self, images: dict[str, tuple[tuple[int, int], list[Any]]]) -> bytes:
        tasks = []
        for name, (_, objects) in images.items():
            prediction = {"model_version": "segwright", "result": objects}
            tasks.append({"data": {"image": f"/data/local-files/?d={name}"}, "predictions": [prediction]})
        return to_json(tasks)


def describe_coco(labels: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give COCO's annotations of a label map: compressed run lengths, column by column."""
    height, width = labels.shape
    for region in regions(labels, names):
        columns, rows = np.nonzero(region.mask.T)
        inside = (columns + region.left) * height + rows + region.top
        counts = encode_runs(to_runs(inside, labels.size))
        h, w = region.mask.shape
        yield {
            "label": region.label,
            "iscrowd": 0,
            "area": len(rows),
            "bbox": [region.left, region.top, w, h],
            "segmentation": {"size": [height, width], "counts": counts},
        }


def describe_cvat(labels: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, str]]:
    """Give CVAT's masks of a label map: run lengths of a window, row by row."""
    for region in regions(labels, names):
        height, width = region.mask.shape
        runs = to_runs(np.flatnonzero(region.mask), region.mask.size)
        yield {
            "label": region.label,
            "source": "auto",
            "occluded": "0",
            "rle": ", ".join(map(str, runs)),
            "left": str(region.left),
            "top": str(region.top),
            "width": str(width),
            "height": str(height),
            "z_order": "0",
        }


def describe_labelstudio(labels: np.ndarray, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Give Label Studio's brushes of a label map, one a class."""
    height, width = labels.shape
    for value in np.unique(labels).tolist():
        label = VOID if value == IGNORE else names[value]
        if label.lower() in BACKGROUND:
            continue
        yield {
            "id": f"class{value}",
            "type": "brushlabels",
            "from_name": "tag",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"format": "rle", "rle": pack_brush(labels == value), "brushlabels": [label]},
        }


DESCRIBE: dict[str, Callable[[np.ndarray, Sequence[str]], Iterator[Any]]] = {
    "coco": describe_coco,
    "cvat": describe_cvat,
    "labelstudio": describe_labelstudio,
}
