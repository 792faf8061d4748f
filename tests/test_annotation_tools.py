"""What the tools' own libraries write is read as they mean it, and what is written here is what they read.

pycocotools for COCO, label-studio-sdk for Label Studio's brushes, datumaro for CVAT. LabelMe's own functions need a
window system, and YOLO has none; see tests/test_annotations.py for their files. Whatever is not installed is skipped.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dataloader.datasets.annotations import Annotations
from engine.annotation_files import AnnotationFile
from engine.prediction_files import Job, write
from inference import SHARED, targets
from utils.classes import ClassTable, default_colors
from utils.predict import Prediction

SIZE = (120, 160)
CLASSES = ("background", "car", "door")
Masks = dict[str, np.ndarray]  # (H, W) bool by class, apart from each other


def blobs(seed: int) -> Masks:
    """Ragged objects with holes, which touch each other and the border, and single pixels."""
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=SIZE).astype(np.float32), (0, 0), 5)
    other = cv2.GaussianBlur(rng.normal(size=SIZE).astype(np.float32), (0, 0), 3)
    car = noise > 0.05
    door = ~car & (other > 0.08)
    car[0, 7] = door[0, 7] = False
    car[0, 7] = True
    return {"car": car, "door": door}


def star(seed: int) -> np.ndarray:
    """Corners (N, 2) of a ragged polygon, x before y, with fractions of pixels."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 24))
    radii = rng.uniform(25, 55, 24)
    points = np.stack([80 + radii * np.cos(angles), 60 + radii * np.sin(angles)], axis=1)
    return points.round(2)


def dataset(root: Path, annotations: str) -> Annotations:
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(root / "images" / "a.png")
    return Annotations(data_dir=root, split="all", annotations=annotations, classes=CLASSES)


def label_of(masks: Masks) -> np.ndarray:
    label = np.zeros(SIZE, np.uint8)
    for name, mask in masks.items():
        label[mask] = CLASSES.index(name)
    return label


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


def written(root: Path, kind: str, label: np.ndarray) -> Path:
    """Write a prediction of ``images/a.png`` as a file of a tool."""
    (root / "images").mkdir(exist_ok=True)
    image = root / "images" / "a.png"
    Image.new("RGB", SIZE[::-1]).save(image)
    files = targets(root / "out", "a", [kind], image)
    shared = {kind: AnnotationFile(kind, files[kind], CLASSES)} if kind in SHARED else {}
    prediction = Prediction(torch.from_numpy(label), None, None)
    table = ClassTable(names=CLASSES, colors=tuple(default_colors(CLASSES)), raw_ids=((0,), (1,), (2,)))
    job = Job(image, files, image.name, shared)
    write(job, np.zeros((*SIZE, 3), np.uint8), lambda: prediction, table)
    for file in shared.values():
        file.write()
    return root / "out" / SHARED[kind]


# COCO -----------------------------------------------------------------------------------------------------------------


def coco(segmentations: dict[str, Any]) -> dict[str, Any]:
    names = list(segmentations)
    return {
        "images": [{"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": CLASSES.index(name), "name": name} for name in CLASSES[1:]],
        "annotations": [
            {
                "id": number,
                "image_id": 1,
                "category_id": CLASSES.index(name),
                "iscrowd": 0,
                "area": 100 - number,
                "segmentation": segmentations[name],
            }
            for number, name in enumerate(names, start=1)
        ],
    }


@pytest.mark.parametrize("seed", range(3))
def test_run_lengths_of_pycocotools_are_read_without_loss(seed: int, tmp_path: Path) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    masks = blobs(seed)
    runs = {name: mask_tools.encode(np.asfortranarray(mask)) for name, mask in masks.items()}
    texts = {name: {**found, "counts": found["counts"].decode()} for name, found in runs.items()}
    (tmp_path / "a.json").write_text(json.dumps(coco(texts)))
    np.testing.assert_array_equal(dataset(tmp_path, "a.json").read_label(0), label_of(masks))


@pytest.mark.parametrize("seed", range(4))
def test_polygons_are_drawn_as_pycocotools_draws_them(seed: int, tmp_path: Path) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    corners = star(seed).ravel().tolist()
    expected = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects([corners], *SIZE))) > 0
    (tmp_path / "a.json").write_text(json.dumps(coco({"car": [corners]})))
    assert iou(dataset(tmp_path, "a.json").read_label(0) == 1, expected) >= 0.99


@pytest.mark.parametrize("seed", range(3))
def test_predictions_are_what_pycocotools_reads(seed: int, tmp_path: Path) -> None:
    tools = pytest.importorskip("pycocotools.coco")
    masks = blobs(seed)
    found = tools.COCO(str(written(tmp_path, "coco", label_of(masks))))
    seen = {name: np.zeros(SIZE, bool) for name in masks}
    for annotation in found.loadAnns(found.getAnnIds()):
        (category,) = found.loadCats([annotation["category_id"]])
        if category["name"] in seen:
            seen[category["name"]] |= found.annToMask(annotation) > 0
    for name, mask in masks.items():
        np.testing.assert_array_equal(seen[name], mask)


# Label Studio ---------------------------------------------------------------------------------------------------------


def test_brushes_of_label_studio_are_read_without_loss(tmp_path: Path) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    masks = blobs(0)
    results = [
        {
            "type": "brushlabels",
            "original_width": SIZE[1],
            "original_height": SIZE[0],
            "value": {"format": "rle", "rle": brush.mask2rle(mask.astype(np.uint8) * 255), "brushlabels": [name]},
        }
        for name, mask in masks.items()
    ]
    tasks = [{"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": results}]}]
    (tmp_path / "a.json").write_text(json.dumps(tasks))
    np.testing.assert_array_equal(dataset(tmp_path, "a.json").read_label(0), label_of(masks))


def test_predictions_are_what_label_studio_reads(tmp_path: Path) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush")
    masks = blobs(1)
    (task,) = json.loads(written(tmp_path, "labelstudio", label_of(masks)).read_text())
    seen = {name: np.zeros(SIZE, bool) for name in masks}
    for result in task["predictions"][0]["result"]:
        (name,) = result["value"]["brushlabels"]
        if name in seen:
            decoded = brush.decode_rle(result["value"]["rle"])
            seen[name] |= decoded.reshape(*SIZE, 4)[..., 3] > 0
    for name, mask in masks.items():
        np.testing.assert_array_equal(seen[name], mask)


# CVAT --------------------------------------------------------------------------------------------------------


def exported(root: Path, form: str, make: Callable[[Any], list[Any]]) -> Path:
    """What datumaro exports of annotations of one image, `make` of its module."""
    datumaro = pytest.importorskip("datumaro")
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(root / "images" / "a.png")
    media = datumaro.Image.from_numpy(data=np.zeros((*SIZE, 3), np.uint8))
    item = datumaro.DatasetItem(id="a", subset="train", media=media, annotations=make(datumaro))
    found = datumaro.Dataset.from_iterable([item], categories=list(CLASSES[1:]))
    found.export(str(root / "export"), form, save_media=False)
    return root / "export"


def test_masks_that_cvat_s_library_exports_are_read_without_loss(tmp_path: Path) -> None:
    masks = blobs(2)
    folder = exported(
        tmp_path,
        "cvat",
        lambda dm: [dm.Mask(image=mask, label=CLASSES.index(name) - 1) for name, mask in masks.items()],
    )
    path = next(path for path in folder.rglob("*.xml") if 'name="a' in path.read_text())
    found = dataset(tmp_path, path.relative_to(tmp_path).as_posix()).read_label(0)
    np.testing.assert_array_equal(found, label_of(masks))


def test_polygons_that_cvat_s_library_exports_are_read(tmp_path: Path) -> None:
    pytest.importorskip("datumaro")
    mask_tools = pytest.importorskip("pycocotools.mask")
    corners = star(5).ravel().tolist()
    expected = mask_tools.decode(mask_tools.merge(mask_tools.frPyObjects([corners], *SIZE))) > 0
    folder = exported(tmp_path, "cvat", lambda dm: [dm.Polygon(corners, label=1)])
    path = next(path for path in folder.rglob("*.xml") if 'name="a' in path.read_text())
    found = dataset(tmp_path, path.relative_to(tmp_path).as_posix()).read_label(0)
    assert iou(found == 2, expected) >= 0.99


def test_predictions_are_what_cvat_s_library_reads(tmp_path: Path) -> None:
    datumaro = pytest.importorskip("datumaro")
    masks = blobs(4)
    path = written(tmp_path, "cvat", label_of(masks))
    shutil.copytree(tmp_path / "images", path.parent / "images")
    found = datumaro.Dataset.import_from(str(path.parent), "cvat")
    names = [each.name for each in found.categories()[datumaro.AnnotationType.label]]
    seen = {name: np.zeros(SIZE, bool) for name in masks}
    for item in found:
        for each in item.annotations:
            if names[each.label] in seen:
                seen[names[each.label]] |= np.asarray(each.image) > 0
    for name, mask in masks.items():
        np.testing.assert_array_equal(seen[name], mask)
