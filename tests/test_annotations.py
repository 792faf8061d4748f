"""Files of annotation tools are labels as they are, and predictions become such files again."""

from __future__ import annotations

import base64
import io
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from base.base_dataset import BaseDataset
from dataloader.datasets.annotation_files import read_annotations
from dataloader.datasets.annotations import Annotations, keys_of
from dataloader.datasets.run_lengths import decode_runs, encode_runs, from_runs, pack_brush, to_runs, unpack_brush
from engine.annotation_files import AnnotationFile, distinct_names
from engine.prediction_files import KINDS, Job, write
from inference import KINDS as NAMED_KINDS
from inference import SHARED, targets
from tests.conftest import Answer
from utils.classes import IGNORE, ClassTable, default_colors
from utils.errors import ConfigError, DataError
from utils.predict import Prediction

SIZE = (40, 60)
CLASSES = ("background", "car", "door")


def make(root: Path, content: object, name: str = "annotations.json", **options: Any) -> BaseDataset:
    """A dataset of one image, a.png, with annotations."""
    (root / "images").mkdir(exist_ok=True)
    Image.new("RGB", SIZE[::-1]).save(root / "images" / "a.png")
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    options = {"annotations": name, "classes": CLASSES, **options}
    return Annotations(data_dir=root, split="all", **options)


def box(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]]


def flat(points: list[list[float]]) -> list[float]:
    return [number for point in points for number in point]


def coco(*annotations: dict[str, Any], **image: Any) -> dict[str, Any]:
    return {
        "images": [{"id": 7, "file_name": "sub/a.png", "height": SIZE[0], "width": SIZE[1], **image}],
        "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "door"}],
        "annotations": [{"image_id": 7, "category_id": 3, **each} for each in annotations],
    }


def labelme(*shapes: dict[str, Any]) -> dict[str, Any]:
    return {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": "..\\a.png", "shapes": list(shapes)}


def cvat(objects: str) -> str:
    return f'<annotations><image id="0" name="a.png" width="60" height="40">{objects}</image></annotations>'


def studio(*results: dict[str, Any], key: str = "annotations", **task: Any) -> list[dict[str, Any]]:
    size = {"original_width": SIZE[1], "original_height": SIZE[0]}
    found = [{"result": [{**size, **each} for each in results], "was_cancelled": False}]
    return [{"id": 4, "data": {"image": "/data/upload/1/0123abcd-a.png"}, key: found, **task}]


# Run lengths


@pytest.mark.parametrize(
    ("runs", "text"),  # by hand: 100 = 4 + 32 goes on, then 3; 1 - 3 = -2, which is 30 of 5 bits
    [([0, 6, 1], "061"), ([0, 100], "0T3"), ([2, 3, 1, 1], "231N"), ([16], "`0"), ([6305], "QU6")],
)
def test_coco_s_strings(runs: list[int], text: str) -> None:
    assert encode_runs(runs) == text
    assert decode_runs(text) == runs


def test_run_lengths_of_a_mask_are_those_of_coco_s_documentation() -> None:
    """Source: mask.py of pycocotools."""
    assert to_runs(np.flatnonzero([0, 0, 1, 1, 1, 0, 1]), 7) == [2, 3, 1, 1]
    assert to_runs(np.flatnonzero([1, 1, 1, 1, 1, 1, 0]), 7) == [0, 6, 1]
    assert to_runs(np.flatnonzero([0, 0, 0]), 3) == [3]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_run_lengths_and_brushes_keep_every_pixel(share: float) -> None:
    mask = np.random.default_rng(0).random((41, 77)) < share
    runs = to_runs(np.flatnonzero(mask), mask.size)
    np.testing.assert_array_equal(from_runs(decode_runs(encode_runs(runs)), mask.size).reshape(mask.shape), mask)
    np.testing.assert_array_equal(unpack_brush(pack_brush(mask), mask.shape), mask)


def test_a_brush_by_hand() -> None:
    """One pixel inside: 4 bytes, words of 8 bits, counts of 3, 4, 8 and 16 bits; 4 times 255 is one chunk."""
    bits = f"{4:032b}" + f"{7:05b}" + "0010001101111111" + "10001111111111"
    bits += "0" * (-len(bits) % 8)
    packed = [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]
    assert pack_brush(np.ones((1, 1), bool)) == packed
    raw = f"{4:032b}" + f"{7:05b}" + "0010001101111111" + "000011" + "00000000" * 3 + "11111111"
    raw += "0" * (-len(raw) % 8)
    packed = [int(raw[at : at + 8], 2) for at in range(0, len(raw), 8)]
    assert unpack_brush(packed, (1, 1)).all()


# Reading


def test_coco_s_smaller_objects_win_and_crowds_are_void_below_all(tmp_path: Path) -> None:
    column = [0, SIZE[0] * 12, SIZE[0] * (SIZE[1] - 12)]
    dataset = make(
        tmp_path,
        coco(
            {"area": 16, "category_id": 5, "segmentation": [flat(box(22, 12, 26, 16)), flat(box(30, 12, 34, 16))]},
            {"area": 900, "segmentation": [flat(box(20, 10, 50, 35))]},
            {"area": 4, "iscrowd": 1, "segmentation": {"size": [*SIZE], "counts": column}},
            {"segmentation": {"size": [*SIZE], "counts": encode_runs([SIZE[0] * 5, SIZE[0], SIZE[0] * 54])}},
        ),
    )
    label = dataset.read(0).label
    assert (label[13:15, 23:25] == 2).all()
    assert (label[13:15, 31:33] == 2).all()
    assert (label[20:30, 22:45] == 1).all()
    assert (label[:, 5] == 1).all()
    assert (label[:, [0, 4, 6, 11]] == IGNORE).all()
    assert (label[:8, 15:] == 0).all()


@pytest.mark.parametrize("area", [0, None, -1, "?"])
def test_an_area_of_coco_s_that_is_none_is_computed(area: object, tmp_path: Path) -> None:
    large = {"category_id": 3, "segmentation": [flat(box(0, 0, 30, 30))], "area": area}
    small = {"category_id": 5, "segmentation": [flat(box(5, 5, 15, 15))], "area": 100}
    label = make(tmp_path, coco(small, large)).read_label(0)
    assert (label[10, 10], label[20, 20]) == (2, 1), "the smaller one lies above"
    runs = {"size": [*SIZE], "counts": to_runs(np.arange(2000), 2400)}
    label = make(tmp_path, coco(small, {**large, "segmentation": runs})).read_label(0)
    assert (label[10, 10], label[20, 20]) == (2, 1)


def test_labelme_s_later_shapes_win_and_its_masks_are_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).save(file, format="PNG")
    text = base64.b64encode(file.getvalue()).decode()
    dataset = make(
        tmp_path,
        labelme(
            {"label": "door", "points": box(5, 5, 10, 10), "shape_type": "polygon"},
            {"label": "car", "points": [[4, 4], [30, 30]], "shape_type": "rectangle"},
            {"label": "door", "points": [[40, 8], [41, 9]], "shape_type": "mask", "mask": text},
            {"label": "_background_", "points": box(20, 20, 24, 24)},
            {"label": "nobody", "points": [[1, 1]], "shape_type": "point"},
        ),
        "json/a.json",
        annotations="json",
    )
    label = dataset.read(0).label
    assert (label[5:10, 5:10] == 1).all()
    assert (label[21:23, 21:23] == 0).all()
    np.testing.assert_array_equal(label[8:10, 40:42], [[0, 2], [2, 0]])


def test_cvat_s_objects_lie_by_z_order(tmp_path: Path) -> None:
    objects = (
        '<polygon label="door" points="5,5;15,5;15,15;5,15" z_order="1"/>'
        '<box label="car" xtl="0" ytl="0" xbr="30" ybr="30" z_order="0"/>'
        '<mask label="door" rle="1, 1, 2" left="40" top="8" width="2" height="2" z_order="0"/>'
        '<polyline label="lane" points="1,1;2,2"/><tag label="night"/>'
    )
    label = make(tmp_path, cvat(objects), "cvat.xml").read(0).label
    assert (label[6:14, 6:14] == 2).all()
    assert (label[20:28, 2:28] == 1).all()
    np.testing.assert_array_equal(label[8:10, 40:42], [[0, 2], [0, 0]])


def test_label_studio_s_brushes_and_polygons(tmp_path: Path) -> None:
    mask = np.zeros(SIZE, bool)
    mask[3:9, 4:7] = True
    polygon = {"points": box(50, 50, 100, 100), "polygonlabels": ["car"]}
    brush = {"format": "rle", "rle": pack_brush(mask), "brushlabels": ["door"]}
    results = [{"type": "polygonlabels", "value": polygon}, {"type": "brushlabels", "value": brush}]
    for key in ("annotations", "predictions"):
        label = make(tmp_path, studio(*results, key=key)).read(0).label
        np.testing.assert_array_equal(label == 2, mask)
        assert (label[21:, 31:] == 1).all()
        assert (label[:19, 10:] == 0).all()


def test_results_of_label_studio_s_that_are_no_regions_are_passed_over(tmp_path: Path) -> None:
    square = {"type": "polygonlabels", "value": {"points": box(0, 0, 50, 50), "polygonlabels": ["car"]}}
    others = [{"type": kind, "value": {kind: 3}} for kind in ("number", "taxonomy", "choices")]
    assert make(tmp_path, studio(*others, square)).read_label(0)[5, 5] == 1


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_accents_may_be_written_in_both_ways_and_hidden_files_are_none(form: str, tmp_path: Path) -> None:
    name = unicodedata.normalize(form, "é")
    other = unicodedata.normalize("NFC" if form == "NFD" else "NFD", name)
    make(tmp_path, coco())  # makes the folder of images
    (tmp_path / "images" / "a.png").rename(tmp_path / "images" / f"{name}.png")
    drawn = labelme({"label": "car", "points": box(0, 0, 9, 9)})
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / f"{other}.json").write_text(json.dumps(drawn))
    (tmp_path / "labels" / f"._{other}.json").write_bytes(b"\0\5\26\7")
    write_json(tmp_path / "all.json", coco({"segmentation": [SQUARE]}, file_name=f"{other}.png"))
    for source in ("labels", "all.json"):
        data = Annotations(data_dir=tmp_path, split="all", annotations=source, classes=CLASSES)
        assert data.read_label(0)[5, 5] == 1


def test_yolo_s_numbers_do_not_count_the_background_and_images_without_a_file_are_background(tmp_path: Path) -> None:
    lines = "1 .1 .1 .2 .1 .2 .2 .1 .2\n0 0 0 .5 0 .5 .5 0 .5\n\n"
    make(tmp_path, lines, "labels/a.txt", annotations="labels")
    Image.new("RGB", (9, 8)).save(tmp_path / "images" / "b.png")
    dataset = Annotations(data_dir=tmp_path, split="all", classes=CLASSES, annotations="labels")
    assert [sample.key for sample in dataset.samples] == ["a", "b"]
    label = dataset.read(0).label
    np.testing.assert_array_equal(label, dataset.read_label(0))
    assert (label[5:7, 7:11] == 2).all()
    assert (label[10:19, 1:28] == 1).all()
    np.testing.assert_array_equal(dataset.read_label(1), np.zeros((8, 9)))


def test_what_nobody_drew_is_void_without_a_background_class(tmp_path: Path) -> None:
    dataset = make(tmp_path, coco({"segmentation": [flat(box(0, 0, 30, 40))]}), classes=("car", "door"))
    label = dataset.read_label(0)
    assert (label[:, :29] == 0).all()
    assert (label[:, 32:] == IGNORE).all()


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"label_map": {"car": "door"}}, 1),
        ({"label_map": {"car": None}}, IGNORE),
        ({"label_map": {"car": "background"}}, 0),
        ({"label_map": {"car": "door", "background": None}}, 1),
        ({"unknown": "void"}, IGNORE),
        ({"unknown": "skip"}, 0),
    ],
)
def test_labels_are_named_otherwise_or_unknown(options: dict[str, Any], value: int, tmp_path: Path) -> None:
    content = coco({"segmentation": [flat(box(0, 0, 30, 40))]})
    assert make(tmp_path, content, classes=("background", "door"), **options).read_label(0)[9, 9] == value


@pytest.mark.parametrize(("meaning", "value"), [(None, IGNORE), ("door", 1), ("background", 0)])
def test_what_nobody_drew_means_what_the_label_map_says(meaning: str | None, value: int, tmp_path: Path) -> None:
    content = coco({"segmentation": [flat(box(0, 0, 30, 40))]})
    options = {"classes": ("background", "door"), "unknown": "skip"}
    label = make(tmp_path, content, label_map={"background": meaning}, **options).read_label(0)
    assert (label == value).all()


def test_categories_may_be_numbered_in_texts_too(tmp_path: Path) -> None:
    content = coco({"segmentation": [SQUARE], "category_id": "2"})
    content["categories"] = [{"id": "2", "name": "door"}, {"id": 1, "name": "car"}]
    assert read_annotations(write_json(tmp_path / "a.json", content)).labels == ["car", "door"]


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_a_label_map_without_such_a_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"label_map\.car: no class 'lorry'"):
        make(tmp_path, coco(), label_map={"car": "lorry"})


def test_splits_stand_in_names(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make(tmp_path, coco({"segmentation": [flat(box(0, 0, 30, 40))]}), f"instances_{split}.json")
        (tmp_path / "images").rename(tmp_path / split)
    options = {"annotations": "instances_{split}.json", "image_dir": "{split}", "classes": CLASSES}
    train, val = (Annotations(data_dir=tmp_path, split=split, **options) for split in ("train", "val"))
    assert train.samples[0].image != val.samples[0].image
    assert not train.sources & val.sources


@pytest.mark.parametrize(
    "name", ["a.png", "sub/a.png", "C:\\x\\a.png", "/data/upload/3/0123abcd-a.jpg", "/data/local-files/?d=sub/a.png"]
)
def test_images_are_found_by_what_tools_call_them(name: str) -> None:
    assert "a" in [*keys_of(name)]


SQUARE = flat(box(0, 0, 9, 9))
BAD = {
    "coco corners": (coco({"segmentation": [SQUARE], "id": 1}, {"segmentation": [[1, 2, 3]], "id": 31}), "id 31 (car)"),
    "coco odd": (coco({"segmentation": [[*SQUARE, 1]]}), "annotation 1 (car)"),
    "coco nan": (coco({"segmentation": [[*SQUARE[:-1], float("nan")]], "area": 1}), "annotation 1 (car)"),
    "coco far": (coco({"segmentation": [[*SQUARE[:-1], 1e12]], "area": 1}), "annotation 1 (car)"),
    "coco text": (coco({"segmentation": "here"}), "annotation 1"),
    "coco none": (coco({"segmentation": None}), "annotation 1"),
    "coco no segmentation": (coco({}), "annotation 1 (car): has no 'segmentation'"),
    "coco runs": (coco({"segmentation": {"counts": [1, 2, 3], "size": [*SIZE]}}), "annotation 1 (car)"),
    "coco negative": (coco({"segmentation": {"counts": [-1, 2401], "size": [*SIZE]}}), "annotation 1 (car)"),
    "coco other size": (coco({"segmentation": {"counts": [2400], "size": [60, 40]}}), "annotation 1 (car)"),
    "coco cut": (coco({"segmentation": {"counts": "0T", "size": [*SIZE]}}), "annotation 1"),
    "coco bytes": (coco({"segmentation": {"counts": "é", "size": [*SIZE]}}), "annotation 1"),
    "coco image": (coco({"segmentation": [SQUARE], "image_id": 8}), "annotation 1: its image_id is no image's"),
    "coco category": (coco({"segmentation": [SQUARE], "category_id": 9}), "annotation 1: its category_id"),
    "coco size": (coco(height="40"), "sub/a.png: has no size"),
    "coco no list": ({**coco(), "annotations": {}}, "'annotations' is missing"),
    "coco box": (coco({"segmentation": [], "bbox": [1, 2, 3, 4]}), "annotation 1 (car): its object is a box"),
    "coco two images": ({**coco(), "images": 2 * coco()["images"]}, "image 2: its id is another's, too"),
    "coco two categories": ({**coco(), "categories": 2 * coco()["categories"]}, "category 3: its id is another's"),
    "coco no name": (coco(file_name=""), "its image has no name"),
    "coco missing image": (coco(file_name="z.png"), "names 1 images (z.png) that are missing"),
    "coco outside": (coco({"segmentation": [SQUARE], "category_id": [1]}), "annotation 1"),
    "labelme corners": (labelme({"label": "car", "points": [[1, 2], [3, 4]]}), "shape 1 (car)"),
    "labelme kind": (labelme({"label": "car", "points": [], "shape_type": "cloud"}), "shape 1: its shape_type"),
    "labelme no label": (labelme({"points": box(0, 0, 9, 9)}), "shape 1: has no 'label'"),
    "labelme mask": (labelme({"label": "car", "points": [[0, 0]], "shape_type": "mask", "mask": "AAAA"}), "shape 1"),
    "labelme unknown": (labelme({"label": "lorry", "points": box(0, 0, 9, 9)}), "'lorry' is none of the classes"),
    "cvat xml": ("<annotations><image", "no XML"),
    "cvat other": ("<html></html>", "is no annotation of LabelMe"),
    "cvat points": (cvat('<polygon label="car" points="1,2;3"/>'), "object 1 (polygon)"),
    "cvat runs": (cvat('<mask label="car" rle="9" left="0" top="0" width="2" height="2"/>'), "object 1 (car)"),
    "cvat outside": (cvat('<mask label="car" rle="0, 4" left="59" top="0" width="2" height="2"/>'), "object 1 (car)"),
    "cvat label": (cvat('<polygon points="1,2;3,4;5,6"/>'), "object 1 (polygon): has no 'label'"),
    "cvat kind": (cvat('<cuboid label="car"/>'), "object 1 (cuboid): its kind is unknown"),
    "studio brush": (
        studio({"type": "brushlabels", "value": {"format": "rle", "rle": [0, 0], "brushlabels": ["car"]}}),
        "task 4, result 1 (car)",
    ),
    "studio type": (studio({"type": "videolabels", "value": {"videolabels": ["car"]}}), "task 4, result 1"),
    "studio label": (
        studio({"type": "polygonlabels", "value": {"points": SQUARE}}),
        "its region has no label",
    ),
    "studio plain": (studio({"type": "rectangle", "value": {"x": 1}}), "its region has no label"),
    "studio points": (
        studio({"type": "polygonlabels", "value": {"points": [["a", "b"]], "polygonlabels": ["car"]}}),
        "task 4, result 1",
    ),
    "json": ("[", "no JSON"),
    "number": ("7", "is no annotation of LabelMe"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_line_with_file_and_object(name: str, tmp_path: Path) -> None:
    content, said = BAD[name]
    with pytest.raises(DataError) as caught:
        make(tmp_path, content).read_label(0)
    (line,) = caught.value.problems
    assert line.startswith(str(tmp_path / "annotations.json"))
    assert said in line
    assert "\n" not in line
    assert line.count(". ") >= 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 .5 .5 .1 .1", "line 2: its object is a box, expected a polygon"),
        ("car .1 .1 .2 .2 .3 .3", "line 2: its class is no number"),
        ("0 .1 .1 .2 .2", "line 2"),
        ("0 .1 .1 .2 .2 .3", "line 2"),
        ("0 .1 .1 .2 x .3 .3", "line 2"),
        ("0 10 10 20 20 30 10", "line 2 (class 0): its corners are no shares"),
        ("9 .1 .1 .2 .2 .3 .3", "line 2 (class 9): '9' is none of the classes"),
    ],
)
def test_a_mistake_of_yolo_s_is_one_line_with_its_number(line: str, said: str, tmp_path: Path) -> None:
    dataset = make(tmp_path, f"\n{line}\n", "labels/a.txt", annotations="labels")
    with pytest.raises(DataError) as caught:
        dataset.read(0)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path / 'labels' / 'a.txt'}, ")
    assert said in problem


def test_packing_is_refused_and_converting_said(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    from dataloader.tools.packed import check_target

    dataset = make(tmp_path, coco())
    with pytest.raises(ConfigError, match="Annotations: files of annotation tools are not packed"):
        check_target(dataset, tmp_path / "packed" / "all", force=False)


# Writing


def maps() -> dict[str, np.ndarray]:
    """Label maps with holes, lines, single pixels, touching corners and void."""
    rng = np.random.default_rng(0)
    nested = np.zeros(SIZE, np.uint8)
    for margin, value in ((2, 1), (6, 2), (9, 0), (12, 1), (15, 0)):
        nested[margin:-margin, margin:-margin] = value
    nested[0, 0] = nested[0, 5:9] = 2
    nested[20, 30] = 1
    coarse = rng.integers(0, 3, (10, 15)).repeat(4, 0).repeat(4, 1).astype(np.uint8)
    void = coarse.copy()
    void[5:11, 7:30] = IGNORE
    return {"nested": nested, "coarse": coarse, "void": void, "noise": rng.integers(0, 3, SIZE).astype(np.uint8)}


@pytest.mark.parametrize("names", [CLASSES, ("car", "door", "tree")])
@pytest.mark.parametrize("kind", ["labelme", *SHARED])
def test_predictions_are_read_again_as_they_were(kind: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    table = ClassTable(names=names, colors=tuple(default_colors(names)), raw_ids=((0,), (1,), (2,)))
    shared: dict[str, AnnotationFile] = {}
    for name, labels in maps().items():
        image = tmp_path / "images" / f"{name}.png"
        Image.new("RGB", SIZE[::-1]).save(image)
        files = targets(tmp_path / "out", name, [kind], image)
        if kind in SHARED:
            shared.setdefault(kind, AnnotationFile(kind, files[kind], names))
        prediction = Prediction(torch.from_numpy(labels), None, None)
        job = Job(image, files, image.name, shared)
        write(job, np.zeros((*SIZE, 3), np.uint8), lambda found=prediction: found, table)  # type: ignore[misc]
    for file in shared.values():
        file.write()
    source = f"out/{SHARED[kind]}" if kind in SHARED else "out"
    dataset = Annotations(data_dir=tmp_path, split="all", classes=names, annotations=source)
    assert len(dataset) == 4
    for index, sample in enumerate(dataset.samples):
        np.testing.assert_array_equal(dataset.read(index).label, maps()[sample.key])


def test_cvat_s_file_declares_void_where_objects_have_it(tmp_path: Path) -> None:
    for name, void in (("coarse", False), ("void", True)):
        file = AnnotationFile("cvat", tmp_path / "x.xml", CLASSES)
        file.add("a.png", maps()[name])
        file.write()
        declared = [label.text for label in ElementTree.parse(file.path).iterfind("meta/task/labels/label/name")]
        assert declared == [*CLASSES, *(["__ignore__"] if void else [])]


def test_images_of_one_name_keep_their_folders_in_a_file_for_all() -> None:
    paths = [Path("/a/cam1/0.png"), Path("/a/cam2/0.png"), Path("/a/cam2/1.png")]
    assert distinct_names(paths, ["0.png", "0.png", "1.png"]) == ["cam1/0.png", "cam2/0.png", "1.png"]
    paths = [Path("/a/cam/0.png"), Path("/b/cam/0.png")]
    assert distinct_names(paths, ["0.png", "0.png"]) == ["/a/cam/0.png", "/b/cam/0.png"]


def test_inference_names_the_kinds_that_there_are() -> None:
    assert NAMED_KINDS == KINDS
