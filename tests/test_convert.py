"""`prepare.py convert` makes index masks of whatever people have; `Folder` then reads what was drawn."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloader.datasets.folder import Folder
from dataloader.datasets.run_lengths import decode_runs, encode_runs
from tests.conftest import Answer

SIZE = (65, 97)
COLORS = np.array([[0, 0, 0], [200, 30, 40], [30, 60, 220]], np.uint8)


def shapes(number: int, classes: int = 3) -> np.ndarray:
    """A label with a block of each class but the first."""
    rng = np.random.default_rng(number)
    label = np.zeros(SIZE, np.uint8)
    for value in range(1, classes):
        row, column = rng.integers(0, 40), rng.integers(0, 20)
        label[row : row + 24, 45 * (value - 1) + column : 45 * (value - 1) + column + 24] = value
    return label


def save(path: Path, array: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


@pytest.fixture
def convert(tmp_path: Path, prepare_command: Callable[..., Answer]) -> Callable[..., Answer]:
    return lambda source, *more: prepare_command("convert", "--masks", source, "-o", tmp_path / "masks", *more)


def read(tmp_path: Path, name: str) -> np.ndarray:
    return np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))


@pytest.mark.parametrize("quality", [60, 95])
def test_two_valued_jpeg_masks(quality: int, tmp_path: Path, convert: Callable[..., Answer]) -> None:
    for number in range(4):
        save(tmp_path / "jpeg" / f"{number}.jpg", shapes(number, 2) * 255, quality=quality)
    answer = convert(tmp_path / "jpeg")
    assert answer.status == 0, answer.err
    assert "2 classes: background, foreground" in answer.out
    for number in range(4):
        assert (read(tmp_path, str(number)) == shapes(number, 2)).mean() > 0.999


def test_jpeg_masks_lead_to_convert_and_from_there_to_a_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_command: Callable[..., Answer]
) -> None:
    monkeypatch.chdir(tmp_path)
    for number in range(6):
        save(Path("mydata", "images", f"{number}.png"), np.repeat(99 * shapes(number, 2)[..., None], 3, axis=2))
        save(Path("mydata", "masks", f"{number}.jpg"), shapes(number, 2) * 255)
    answer = prepare_command("init", "--images", "mydata/images", "--masks", "mydata/masks")
    assert answer.status == 2
    (words,) = re.findall(r"`python prepare\.py (.*)` makes them", answer.err)
    answer = prepare_command(*shlex.split(words.replace("NEW_FOLDER", "mydata/png")))
    assert answer.status == 0, answer.err
    (words,) = re.findall(r"`python prepare\.py (.*)` makes a config", answer.out)
    answer = prepare_command(*shlex.split(words.replace("FOLDER", "mydata/images")))
    assert answer.status == 0, answer.err
    assert "2 classes, background, foreground" in answer.out  # as the conversion called them


def test_colored_jpeg_masks_by_their_frequent_colors_or_by_a_file(
    tmp_path: Path, convert: Callable[..., Answer]
) -> None:
    for number in range(4):
        save(tmp_path / "jpeg" / f"{number}.jpg", COLORS[shapes(number)], quality=90)
    answer = convert(tmp_path / "jpeg", "--names", "floor,red,blue")
    assert answer.status == 0, answer.err
    assert "3 classes: floor, red, blue" in answer.out
    for number in range(4):
        assert (read(tmp_path, str(number)) == shapes(number)).mean() > 0.98
    again = convert(tmp_path / "jpeg")
    assert (again.status, "holds 0.png already" in again.err) == (2, True)
    rows = [{"name": name, "color": COLORS[index].tolist()} for name, index in (("b", 2), ("r", 1), ("f", 0))]
    (tmp_path / "classes.json").write_text(json.dumps(rows))
    answer = convert(tmp_path / "jpeg", "--classes", tmp_path / "classes.json", "--force")
    assert answer.status == 0, answer.err
    assert (read(tmp_path, "0") == 2 - shapes(0)).mean() > 0.98


def test_masks_in_exact_colors_are_converted_exactly_and_train_as_they_are(
    tmp_path: Path, convert: Callable[..., Answer], prepare_command: Callable[..., Answer]
) -> None:
    for number in range(4):
        save(tmp_path / "color" / f"{number}.png", COLORS[shapes(number)])
        save(tmp_path / "images" / f"{number}.jpg", COLORS[shapes(number)])
    (tmp_path / "color" / "5.png").write_bytes(b"once upon a time")
    answer = convert(tmp_path / "color")
    assert answer.status == 3
    assert "not converted: " in answer.out
    assert "4 of 5 masks written" in answer.out
    dataset = Folder(data_dir=tmp_path, split="all", classes=tmp_path / "masks" / "classes.json")
    assert dataset.classes.colors == tuple(map(tuple, COLORS.tolist()))
    for number in range(4):
        np.testing.assert_array_equal(dataset.read_label(number), shapes(number))


def test_wide_values_are_numbered_and_index_masks_are_left_alone(
    tmp_path: Path, convert: Callable[..., Answer]
) -> None:
    ids = np.array([0, 7001, 26001], np.uint16)
    for number in range(3):
        label = ids[shapes(number)]
        label[:2] = 255
        save(tmp_path / "wide" / f"{number}.png", label)
        save(tmp_path / "index" / f"{number}.png", np.where(label == 255, 255, shapes(number)).astype(np.uint8))
    (tmp_path / "wide" / "x.png").write_bytes(b"broken")
    answer = convert(tmp_path / "wide")
    assert answer.status == 3, answer.err
    assert "3 classes: value_0, value_7001, value_26001" in answer.out
    for number in range(3):
        assert (read(tmp_path, str(number))[2:] == shapes(number)[2:]).all()
        assert (read(tmp_path, str(number))[:2] == 255).all()
    answer = convert(tmp_path / "wide", "--names", "a,b", "--force")
    assert answer.errors == ["--names: 2 names for 3 values. Name 0, 7001, 26001, in this order."]
    answer = convert(tmp_path / "index", "--force")
    assert answer.status == 2
    assert "holds index masks already" in answer.err


def test_names_and_a_class_file_are_not_given_together(tmp_path: Path, convert: Callable[..., Answer]) -> None:
    save(tmp_path / "color" / "0.png", COLORS[shapes(0)])
    (tmp_path / "classes.json").write_text(json.dumps([{"name": "a", "color": [0, 0, 0]}]))
    answer = convert(tmp_path / "color", "--names", "a,b,c", "--classes", tmp_path / "classes.json")
    assert (answer.status, answer.errors[0][:8]) == (2, "--names:")
    answer = convert(coco_of(tmp_path / "coco.json", "a.jpg"), "--classes", tmp_path / "classes.json")
    assert (answer.status, answer.errors[0][:10]) == (2, "--classes ")


def test_polygons_of_labelme(tmp_path: Path, convert: Callable[..., Answer]) -> None:
    content = {
        "imageHeight": SIZE[0],
        "imageWidth": SIZE[1],
        "imagePath": "a.jpg",
        "shapes": [
            {"label": "leaf", "points": [[10, 20], [30, 20], [30, 50], [10, 50]], "shape_type": "polygon"},
            {"label": "stem", "points": [[40, 5], [60, 15]], "shape_type": "rectangle"},
            {"label": "leaf", "points": [[80, 30], [85, 30]], "shape_type": "circle"},
            {"label": "__ignore__", "points": [[0, 60], [97, 60], [97, 65], [0, 65]]},
            {"label": "stem", "points": [[1, 1]], "shape_type": "point"},
        ],
    }
    (tmp_path / "labelme").mkdir()
    (tmp_path / "labelme" / "a.json").write_text(json.dumps(content))
    save(tmp_path / "labelme" / "a.jpg", np.zeros((*SIZE, 3), np.uint8))
    answer = convert(tmp_path / "labelme")
    assert answer.status == 0, answer.err
    assert "3 classes: background, leaf, stem" in answer.out
    mask = read(tmp_path, "a")
    assert mask.shape == SIZE
    assert (mask[20:50, 10:30] == 1).all()
    assert (mask[5:15, 40:60] == 2).all()
    assert (mask[60:] == 255).all()
    assert abs(int((mask[:60] == 1).sum()) - (600 + 79)) <= 60
    assert abs(int((mask == 2).sum()) - 200) <= 40
    answer = convert(tmp_path / "labelme", "--names", "stem", "--force")
    assert "not drawn, since --names lacks them: leaf" in answer.out
    assert set(np.unique(read(tmp_path, "a"))) == {0, 1, 255}


def test_annotations_of_coco(tmp_path: Path, convert: Callable[..., Answer]) -> None:
    runs = [0, 65 * 3, 65 * 94]  # the first three columns
    annotations = [
        {"image_id": 7, "category_id": 5, "area": 100, "segmentation": [[50, 10, 60, 10, 60, 20, 50, 20]]},
        {"image_id": 7, "category_id": 3, "area": 900, "segmentation": [[45, 5, 75, 5, 75, 35, 45, 35]]},
        {"image_id": 7, "category_id": 3, "area": 9, "iscrowd": 1, "segmentation": {"counts": runs, "size": SIZE}},
    ]
    content = {
        "images": [{"id": 7, "file_name": "sub/b.jpg", "height": SIZE[0], "width": SIZE[1]}],
        "categories": [{"id": 3, "name": "car"}, {"id": 5, "name": "door"}],
        "annotations": annotations,
    }
    path = tmp_path / "coco.json"
    path.write_text(json.dumps(content))
    answer = convert(path)
    assert answer.status == 0, answer.err
    assert "3 classes: background, car, door" in answer.out
    mask = read(tmp_path, "sub/b")
    assert (mask[10:20, 50:60] == 2).all()
    assert (mask[25:35, 45:75] == 1).all()
    assert (mask[:, :3] == 255).all()
    assert (mask[40:, 5:] == 0).all()


@pytest.mark.parametrize("runs", [[6, 1, 40, 4, 5, 4, 5, 4, 21], [0, 100], [0, 3, 70000, 12, 1, 500, 3], [6305]])
def test_compressed_runs_are_decoded(runs: list[int]) -> None:
    assert decode_runs(encode_runs(runs)) == runs


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root, "is neither a folder nor a file"),
        (lambda root: root.mkdir(), "holds neither pictures nor annotations"),
        (lambda root: root.write_text("{}"), "is no annotation of LabelMe, nor of COCO"),
        (lambda root: root.write_text("["), "cannot be read (no JSON)"),
        (lambda root: save(root / "a.png", np.zeros(SIZE, np.uint8)), "1 colors stand for classes"),
        (
            lambda root: save(root / "a.png", np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)),
            "0 colors stand for classes",
        ),
    ],
)
def test_what_cannot_be_converted_is_said_in_a_line(
    make: Callable[[Path], object], said: str, tmp_path: Path, convert: Callable[..., Answer]
) -> None:
    make(tmp_path / "source")
    answer = convert(tmp_path / "source")
    assert (answer.status, len(answer.errors)) == (2, 1), answer.err
    assert said in answer.err


def test_masks_are_not_replaced_by_what_is_made_of_them(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    save(tmp_path / "a" / "0.png", COLORS[shapes(0)])
    answer = prepare_command("convert", "--masks", tmp_path / "a", "-o", tmp_path / "a")
    assert (answer.status, "is the folder of the masks themselves" in answer.err) == (2, True)


def coco_of(path: Path, *names: str) -> Path:
    """Write annotations of images so called, each with a car in its upper left corner."""
    images = [{"id": i, "file_name": name, "height": SIZE[0], "width": SIZE[1]} for i, name in enumerate(names)]
    car = {"category_id": 1, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}
    objects = [{"image_id": i, **car} for i in range(len(names))]
    path.write_text(json.dumps({"images": images, "categories": [{"id": 1, "name": "car"}], "annotations": objects}))
    return path


@pytest.mark.parametrize(
    ("name", "mask"),
    [
        ("day\\a.jpg", "day/a"),
        ("C:\\photos\\a.jpg", "a"),
        ("../images/a.jpg", "a"),
        ("/home/me/deadbeef-a.jpg", "deadbeef-a"),
        ("/data/upload/2/3f8a9b1c-a.jpg", "a"),
        ("/data/local-files/?d=day/a.jpg", "a"),
    ],
)
def test_masks_are_called_as_images_wherever_these_were(
    name: str, mask: str, tmp_path: Path, convert: Callable[..., Answer]
) -> None:
    answer = convert(coco_of(tmp_path / "coco.json", name))
    assert answer.status == 0, answer.err
    assert [path.relative_to(tmp_path / "masks").as_posix() for path in (tmp_path / "masks").rglob("*.png")] == [
        f"{mask}.png"
    ]


@pytest.mark.parametrize(
    ("names", "said"), [(["a.jpg", "a.png"], "two images are called 'a'"), ([""], "makes no sense")]
)
def test_no_mask_is_lost_to_another_of_its_name(
    names: list[str], said: str, tmp_path: Path, convert: Callable[..., Answer]
) -> None:
    answer = convert(coco_of(tmp_path / "coco.json", *names))
    assert (answer.status, len(answer.errors)) == (2, 1), answer.err
    assert said in answer.err
    assert not (tmp_path / "masks").exists()


def test_files_of_labelme_are_found_beside_photos_and_other_json(
    tmp_path: Path, convert: Callable[..., Answer]
) -> None:
    square = {"label": "car", "points": [[0, 0], [9, 0], [9, 9], [0, 9]]}
    content = {"shapes": [square], "imagePath": "p.jpg", "imageHeight": SIZE[0], "imageWidth": SIZE[1]}
    save(tmp_path / "photos" / "p.jpg", COLORS[shapes(0)])
    (tmp_path / "photos" / "p.json").write_text(json.dumps(content))
    (tmp_path / "photos" / "about.json").write_text("{}")
    answer = convert(tmp_path / "photos")
    assert answer.status == 0, answer.err
    assert "2 classes: background, car" in answer.out
