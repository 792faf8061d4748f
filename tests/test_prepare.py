"""The doctor finds what is wrong and says which line fixes it; `init` turns a folder into a config that trains."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import shlex
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import prepare
from base.base_dataset import DatasetView
from dataloader import label_statistics, scan
from dataloader.datasets.cityscapes import CityScapes
from dataloader.datasets.folder import Folder
from dataloader.tools import doctor
from engine import results
from engine.check import check_config
from models import weights
from tests.conftest import HOME, Answer, call
from tests.tiny import tiny_config
from utils.config import load_config, parse_json
from utils.errors import DataError, Fault, Problem, run

SIZE = (65, 97)
NAMES = ("road", "tree", "sky")
CLASSES = json.dumps({"classes": NAMES})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(weights, "is_reachable", lambda url: False)
    monkeypatch.setenv("SEGWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def scene(number: int) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label, different for each number."""
    rng = np.random.default_rng(number)
    label = np.zeros(SIZE, np.uint8)
    label[: SIZE[0] // 3] = 2
    row, column = rng.integers(10, 40), rng.integers(10, 70)
    label[row : row + 20, column : column + 20] = 1
    image = label[..., None] * np.array([60, 40, 20], np.uint8) + rng.integers(40, 90, (*SIZE, 3)).astype(np.uint8)
    return image.astype(np.uint8), label


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def clean(root: Path, train: int = 8, val: int = 3) -> Path:
    """A dataset of `Folder` with nothing wrong."""
    for split, numbers in (("train", range(train)), ("val", range(100, 100 + val))):
        for number in numbers:
            image, label = scene(number)
            save(root / "images" / split / f"{number:03d}.png", image)
            save(root / "masks" / split / f"{number:03d}.png", label)
    return root


def check(command: Callable[..., Answer], root: Path, *more: str) -> Answer:
    return command("check", "--dataset", "Folder", "--data-dir", root, "--args", CLASSES, *more)


def kinds(answer: Answer) -> set[tuple[str, str]]:
    """Where and what the findings of an answer are."""
    found = re.findall(r"^(\w[\w ]*): ([\w ]+): .*\n    fix: .+", answer.out, re.MULTILINE)
    return {(where, kind) for where, kind in found}


def test_nothing_is_found_in_a_clean_folder(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    answer = check(prepare_command, clean(tmp_path / "data"))
    assert (answer.status, kinds(answer)) == (0, set()), answer.out
    assert "train: 8 images, 65x97 to 65x97" in answer.out
    assert "all: passed over" in answer.out
    assert "nothing found that is wrong" in answer.out
    share = np.mean([(scene(number)[1] == 2).mean() for number in range(8)])
    assert f"{share:.3%}" in answer.out


# What to plant in images/train and masks/train, and what the doctor is to call it.
Plant = Callable[[Path, Path], object]


def _over(folder: Path, number: int = 0) -> Path:
    return folder / f"{number:03d}.png"


def _turned(images: Path, masks: Path) -> None:
    image, _ = scene(0)
    exif = Image.Exif()
    exif[274] = 6
    _over(images).unlink()
    save(images / "000.jpg", image, exif=exif)


def _blurred(images: Path, masks: Path) -> None:
    # Values of a label drawn as 0, 100, 200 and resized like a photograph.
    for number in range(8):
        label = cv2.resize(scene(number)[1] * 100, SIZE[::-1], interpolation=cv2.INTER_NEAREST)
        soft = cv2.GaussianBlur(label, (5, 5), 1.0)
        save(_over(masks, number), np.where(soft == label, label // 100, soft).astype(np.uint8))


PLANTS: dict[str, Plant] = {
    "image alone": lambda images, masks: _over(masks).unlink(),
    "label alone": lambda images, masks: _over(images).unlink(),
    "empty file": lambda images, masks: _over(images).write_bytes(b""),
    "damaged file": lambda images, masks: _over(images).write_bytes(_over(images).read_bytes()[:-900]),
    "web page": lambda images, masks: _over(images).write_bytes(b"<!DOCTYPE html><p>404"),
    "Git LFS pointer": lambda i, m: _over(i).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
    "no image": lambda images, masks: _over(images).write_bytes(b"once upon a time"),
    "colors": lambda images, masks: save(_over(masks), scene(0)[0]),
    "lossy labels": lambda i, m: _over(m).write_bytes(cv2.imencode(".jpg", scene(0)[1])[1].tobytes()),
    "fractions": lambda i, m: Image.fromarray(scene(0)[1].astype(np.float32)).save(_over(m), format="TIFF"),
    "wide labels": lambda i, m: save(_over(m), scene(0)[1].astype(np.uint16) * 300),
    "turned image": _turned,
    "different sizes": lambda images, masks: save(_over(masks), scene(0)[1][:-1]),
    "unknown value": lambda images, masks: save(_over(masks), np.where(scene(0)[1] == 1, 7, 0).astype(np.uint8)),
    "0 and 255": lambda i, m: [save(_over(m, k), (scene(k)[1] == 1).astype(np.uint8) * 255) for k in range(8)],
    "shifted labels": lambda images, masks: [save(_over(masks, k), scene(k)[1] + 1) for k in range(8)],
    "blurred labels": _blurred,
    "all void": lambda images, masks: save(_over(masks), np.full(SIZE, 255, np.uint8)),
    "absent class": lambda i, m: [save(_over(m, k), np.minimum(scene(k)[1], 1)) for k in range(8)],
    "one class": lambda images, masks: [save(_over(masks, k), np.zeros(SIZE, np.uint8)) for k in range(8)],
    "blank image": lambda images, masks: save(_over(images), np.zeros((*SIZE, 3), np.uint8)),
    "dark images": lambda images, masks: [save(_over(images, k), scene(k)[0] // 16) for k in range(8)],
    "duplicate": lambda images, masks: ([save(_over(f, 50), scene(0)[k]) for k, f in enumerate((images, masks))]),
    "two labels": lambda i, m: [save(_over(i, 50), scene(0)[0]), save(_over(m, 50), scene(1)[1])],
    "image in two splits": lambda i, m: (
        [save(_over(f.parent / "val", 50), scene(0)[k]) for k, f in enumerate((i, m))]
    ),
}


@pytest.mark.parametrize("kind", PLANTS)
def test_the_doctor_finds(kind: str, tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    PLANTS[kind](root / "images" / "train", root / "masks" / "train")
    answer = check(prepare_command, root, "--no-cache")
    assert answer.status == 3, answer.out + answer.err
    assert kind in {found for _, found in kinds(answer)}, answer.out
    also = {"duplicate"} if kind == "two labels" else set()
    assert {found for _, found in kinds(answer)} == {kind} | also, answer.out
    assert "Traceback" not in answer.err


def test_all_plants_are_found_at_once_by_several_processes(tmp_path: Path) -> None:
    root = clean(tmp_path / "data", train=30)
    images, masks = root / "images" / "train", root / "masks" / "train"
    files = {
        "empty file": (images, b""),
        "web page": (images, b"<html>"),
        "no image": (images, b"once"),
        "Git LFS pointer": (images, b"version https://git-lfs.github.com/spec/v1\n"),
        "damaged file": (masks, (masks / "004.png").read_bytes()[:-30]),
    }
    for number, (folder, data) in enumerate(files.values()):
        _over(folder, number).write_bytes(data)
    save(_over(masks, 5), scene(5)[0])
    save(_over(masks, 6), scene(6)[1][:-1])
    answer = call(
        prepare, "check", "--dataset", "Folder", "--data-dir", root, "--args", CLASSES, "--workers", "2", "--no-cache"
    )
    assert answer.status == 3
    assert {kind for _, kind in kinds(answer)} == {*files, "colors", "different sizes"}
    # Seven of thirty are more than a loader skips.
    assert re.search(r"damaged file: 1 files; .*004\.png.*\n    fix: get the files again, or remove them", answer.out)


def test_splits_that_are_others_put_together_are_no_finding_and_say_nothing_twice(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    home = tmp_path / "VOC2012"
    lists = {"train": range(4), "val": range(4, 6), "trainval": range(6), "train_aug": range(4)}
    for number in range(6):
        label = np.resize(np.arange(21, dtype=np.uint8), SIZE)
        save(home / "JPEGImages" / f"{number}.jpg", scene(number)[0])
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            save(home / folder / f"{number}.png", label)
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)

    def voc() -> Answer:
        for split, ids in lists.items():
            text = "".join(f"{number}\n" for number in ids)
            (home / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(text)
        return prepare_command("check", "--dataset", "VOC", "--data-dir", tmp_path)

    clean = voc()
    assert (clean.status, kinds(clean)) == (0, set()), clean.out
    assert "trainval: passed over" in clean.out
    (home / "SegmentationClass" / "0.png").write_bytes(b"")
    assert kinds(voc()) == {("train", "empty file")}
    save(home / "SegmentationClass" / "0.png", np.resize(np.arange(21, dtype=np.uint8), SIZE))
    lists["val"] = range(3, 6)
    assert kinds(voc()) == {("train and val and train_aug", "image in two splits")}
    lists |= {"val": range(4, 6), "train": [0, 1, 1, 2, 3]}  # type: ignore[dict-item]
    answer = voc()
    assert kinds(answer) == {("train", "listed twice")}
    assert "names 1 files (1) that are listed twice" in answer.out


def test_a_split_that_is_there_and_cannot_be_used_is_a_finding(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    save(root / "images" / "train" / "000.bmp", scene(0)[0])
    answer = check(prepare_command, root)
    assert (answer.status, kinds(answer)) == (3, {("train", "unusable split")})
    assert "has the same name as 000.bmp\n    fix: Remove one of them" in answer.out
    (root / "images" / "train" / "000.bmp").unlink()
    for path in (root / "masks" / "train").iterdir():
        path.rename(path.with_stem(f"{path.stem}_mask"))
    answer = check(prepare_command, root)
    assert (answer.status, kinds(answer)) == (3, {("train", "image alone"), ("train", "label alone")})
    assert 'fix: Set "mask_suffix": "_mask" in the loader' in answer.out
    for command in ("stats", "pack"):  # cannot leave it out in silence
        more = ["-o", tmp_path / "packed"] if command == "pack" else []
        answer = call(prepare, command, "--dataset", "Folder", "--data-dir", root, "--args", CLASSES, *more)
        assert (answer.status, "without label" in answer.err) == (2, True)


def test_labels_shifted_down_are_told_and_mended(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    """As those of ADE20K are in many copies: void 0 has become 255."""
    root = clean(tmp_path / "data")
    rows = [{"name": name, "value": value} for value, name in enumerate(NAMES, start=1)]
    options = {"classes": rows, "void": [0]}
    for path in (root / "masks").rglob("*.png"):
        label = np.asarray(Image.open(path)).copy()
        label[:2] = 255
        save(path, label)
    command = ("check", "--dataset", "Folder", "--data-dir", root, "--args")
    answer = prepare_command(*command, json.dumps(options))
    assert kinds(answer) == {("train", "shifted labels"), ("val", "shifted labels")}
    line = '"label_map": {"0": 0, "1": 1, "2": 2, "255": null}'
    assert f"fix: {line}" in answer.out
    assert prepare_command(*command, json.dumps({**options, **parse_json("{" + line + "}")})).status == 0


def test_a_long_label_map_is_shortened() -> None:
    assert doctor.label_map({value: value for value in range(150)}) == (
        '"label_map": {"0": 0, "1": 1, "2": 2, ..., "149": 149}'
    )


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("0 and 255", '"label_map": {"255": 1}'),
        ("shifted labels", '"label_map": {"1": 0, "2": 1, "3": 2}'),
        ("unknown value", '"label_map": {"7": null}'),
    ],
)
def test_a_mending_line_mends(kind: str, line: str, tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    PLANTS[kind](root / "images" / "train", root / "masks" / "train")
    answer = check(prepare_command, root, "--split", "train")
    assert f"fix: {line}" in answer.out
    options = {"classes": NAMES, **parse_json("{" + line + "}")}
    if kind == "0 and 255":
        options["classes"] = NAMES[:2]
    fixed = prepare_command(
        *("check", "--dataset", "Folder", "--data-dir", root, "--split", "train", "--args", json.dumps(options))
    )
    assert fixed.status == 0, fixed.out


def lines_of(fix: str) -> dict[str, object]:
    """The lines of a config that a fix begins with; none where it is a deed."""
    found: dict[str, object] = {}
    text = fix.removeprefix("Set ")
    while match := re.match(r'(?:, )?"(\w+)": ', text):
        value, end = json.JSONDecoder().raw_decode(text[match.end() :])
        found[match[1]] = value
        text = text[match.end() + end :]
    return found


def _all_in_colors(images: Path, masks: Path) -> None:
    for folder in (masks, masks.parent / "val"):
        for path in folder.iterdir():
            save(path, np.array([[0, 0, 0], [0, 90, 0], [70, 130, 180]], np.uint8)[np.asarray(Image.open(path))])


def _with_suffix(images: Path, masks: Path) -> None:
    for folder in (masks, masks.parent / "val"):
        for path in folder.iterdir():
            path.rename(path.with_stem(f"{path.stem}_mask"))


FIXABLE = PLANTS | {
    "colors": _all_in_colors,
    "nested files": lambda images, masks: [
        save(folder / "night" / "000.png", array) for folder, array in zip((images, masks), scene(50), strict=True)
    ],
}


@pytest.mark.parametrize("kind", FIXABLE)
def test_a_fix_that_is_a_line_of_a_config_removes_its_finding(
    kind: str, tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data", train=8)
    FIXABLE[kind](root / "images" / "train", root / "masks" / "train")
    path = training_config(root, tmp_path)
    before = prepare_command("check", "-c", path)
    (fix,) = re.findall(rf"^train_loader[\w ]*: {kind}: .*\n    fix: (.+)", before.out, re.MULTILINE)
    assert kind in {found for where, found in kinds(before)}, before.out
    lines = lines_of(fix)
    if not lines:
        assert not fix.startswith('"') or '"label_map" says' in fix
        return
    config = json.loads(path.read_text())
    for key, value in lines.items():
        if key == "ignore_index":
            config[key] = value
            continue
        for section in ("train_loader", "val_loader"):
            config[section]["args"][key] = value
    path.write_text(json.dumps(config))
    after = prepare_command("check", "-c", path)
    assert after.status in (0, 3), after.err
    assert ("train_loader", kind) not in kinds(after), after.out


def test_the_crop_that_is_offered_for_mixed_sizes_fits_most(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data", train=9)
    for number in range(9):  # a third wide, a third tall, a third large
        height, width = ((40, 120), (120, 40), (130, 130))[number % 3]
        save(root / "images" / "train" / f"{number:03d}.png", np.resize(scene(number)[0], (height, width, 3)))
        save(root / "masks" / "train" / f"{number:03d}.png", np.resize(scene(number)[1], (height, width)))
    path = training_config(root, tmp_path, augment=True, crop_size=128)
    config = json.loads(path.read_text())
    config["train_loader"]["args"]["crop_size"] = 128
    config["val_loader"]["args"] |= {"augment": False, "crop_size": None}
    path.write_text(json.dumps(config))
    answer = prepare_command("check", "-c", path)
    assert "6 of 9 images are smaller than the crop" in answer.out
    (line,) = re.findall(r'fix: "crop_size": (.*)', answer.out)
    answer = prepare_command("check", "-c", path, "-s", f"train_loader.args.crop_size={line}")
    assert ("train_loader", "crop too large") not in kinds(answer), answer.out


def test_masks_in_color_are_told_what_to_set(tmp_path: Path, train_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    _all_in_colors(root / "images" / "train", root / "masks" / "train")
    answer = train_command("-c", training_config(root, tmp_path), "--import", "tests.tiny")
    assert answer.status == 2
    assert 'Set "masks": "color" and give each class its color' in answer.err
    assert 'Use the dataset "Folder"' not in answer.err


def test_masks_whose_names_end_otherwise_are_told_the_suffix(
    tmp_path: Path, train_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    _with_suffix(root / "images" / "train", root / "masks" / "train")
    answer = train_command("-c", training_config(root, tmp_path), "--check", "--import", "tests.tiny")
    assert answer.status == 2
    assert 'Set "mask_suffix": "_mask" in the loader\'s args.' in answer.err


def test_images_without_mask_are_skipped_if_the_config_says_so_and_their_number_is_told(
    tmp_path: Path, train_command: Callable[..., Answer], prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    for number in (1, 5):
        (root / "masks" / "train" / f"{number:03d}.png").unlink()
    path = training_config(root, tmp_path)
    answer = train_command("-c", path, "--check", "--import", "tests.tiny")
    assert (answer.status, "2 files (001.png, 005.png) without label" in answer.err) == (2, True)
    assert 'fix: "missing_masks": "skip"' in prepare_command("check", "-c", path).out
    path = training_config(root, tmp_path, missing_masks="skip")
    answer = train_command("-c", path, "--check", "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    assert 'split "train": 2 of 8 images have no mask and are skipped' in answer.out + answer.err
    assert "6 images" in answer.out
    assert "train_loader: 6 images" in prepare_command("check", "-c", path).out


def test_splits_may_consist_of_others(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    home, train, val = tmp_path / "VOCdevkit" / "VOC2012", ["000", "001", "002"], ["100"]
    for number in (0, 1, 2, 3, 100):
        image, label = scene(number)
        label = np.tile(np.arange(21, dtype=np.uint8), (label.size // 21 + 1))[: label.size].reshape(label.shape)
        save(home / "JPEGImages" / f"{number:03d}.jpg", image)
        save(home / "SegmentationClass" / f"{number:03d}.png", label)
        save(home / "SegmentationClassAug" / f"{number:03d}.png", label[::-1])  # SBD's differ
    lists = {"train": train, "val": val, "trainval": train + val, "train_aug": [*train, "003"], "val_aug": val}
    (home / "ImageSets" / "Segmentation").mkdir(parents=True)

    def write(name: str, ids: list[str]) -> None:
        (home / "ImageSets" / "Segmentation" / f"{name}.txt").write_text("\n".join(ids))

    for name, ids in lists.items():
        write(name, ids)
    answer = prepare_command("check", "--dataset", "VOC", "--data-dir", tmp_path)
    assert (answer.status, kinds(answer)) == (0, set()), answer.out
    assert "train_aug: 4 images" in answer.out
    write("train_aug", [*train, "003", "100"])
    answer = prepare_command("check", "--dataset", "VOC", "--data-dir", tmp_path)
    assert {kind for _, kind in kinds(answer)} == {"image in two splits", "two labels"}
    # To train on what one validates on is a mistake, whatever the splits are called.
    args = {"data_dir": str(tmp_path), "batch_size": 2, "num_workers": 0}
    sections = {
        "train_loader": {"type": "VOC", "args": {**args, "split": "trainval"}},
        "val_loader": {"type": "VOC", "args": {**args, "split": "val"}},
    }
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tmp_path, **sections)))
    answer = prepare_command("check", "-c", tmp_path / "config.json")
    assert kinds(answer) == {("train_loader and val_loader", "image in two splits")}


def test_labels_that_a_benchmark_keeps_are_no_finding(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    for number, (split, city) in enumerate({"train": "ulm", "val": "munster", "test": "bonn"}.items()):
        image, _ = scene(number)
        values = np.tile(np.arange(34, dtype=np.uint8), 200)[: 65 * 97].reshape(SIZE)
        save(tmp_path / "leftImg8bit" / split / city / f"{city}_0_0_leftImg8bit.png", image)
        label = tmp_path / "gtFine" / split / city / f"{city}_0_0_gtFine_labelIds.png"
        save(label, values * (split != "test"))
    answer = prepare_command("check", "--dataset", "Cityscapes", "--data-dir", tmp_path)
    assert (answer.status, kinds(answer)) == (0, set()), answer.out
    save(label.parents[2] / "val" / "munster" / "munster_0_0_gtFine_labelIds.png", np.zeros(SIZE, np.uint8))
    assert kinds(prepare_command("check", "--dataset", "Cityscapes", "--data-dir", tmp_path)) == {("val", "all void")}


def test_one_list_for_every_split_is_no_finding(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    rows = [f"images/train/{number:03d}.png\tmasks/train/{number:03d}.png\n" for number in range(8)]
    (root / "list.txt").write_text("".join(rows))
    options = json.dumps({"classes": NAMES, "list_file": "list.txt"})
    answer = prepare_command("check", "--dataset", "Folder", "--data-dir", root, "--args", options)
    assert (answer.status, kinds(answer)) == (0, set()), answer.out


def test_a_list_that_names_what_is_not_there(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    rows = [f"images/train/{name}.png\tmasks/train/{name}.png" for name in ("000", "001", "nobody")]
    (root / "train.txt").write_text("\n".join(rows))
    options = {"classes": NAMES, "list_file": "{split}.txt"}
    answer = prepare_command("check", "--dataset", "Folder", "--data-dir", root, "--args", json.dumps(options))
    assert answer.status == 3
    assert kinds(answer) == {("train", "missing files")}
    assert "train: 2 images" in answer.out


def test_masks_in_colors_are_counted_and_their_unknown_colors_found(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    palette = np.array([[128, 64, 128], [0, 90, 0], [70, 130, 180], [1, 2, 3]], np.uint8)
    for split in ("train", "val"):
        for path in (root / "masks" / split).iterdir():
            label = np.asarray(Image.open(path))
            save(path, palette[label])
    rows = [{"name": name, "color": color} for name, color in zip(NAMES, palette.tolist(), strict=False)]

    def command(**more: object) -> Answer:
        options = json.dumps({"classes": rows, "masks": "color", **more})
        return prepare_command("check", "--dataset", "Folder", "--data-dir", root, "--args", options)

    assert command().status == 0
    label = scene(0)[1]
    label[0, :5] = 3
    save(root / "masks" / "train" / "000.png", palette[label])
    assert kinds(command()) == {("train", "unknown color")}
    answer = command(unknown="void")
    assert kinds(answer) == {("train", "unknown color")}
    assert "5 pixels of 1 files" in answer.out
    assert command(void=[[1, 2, 3]]).status == 0


def test_a_mend_names_only_what_the_dataset_has(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    for number in range(2):
        image, label = scene(number)
        save(tmp_path / "train" / "rgb" / f"{number}.png", image)
        save(tmp_path / "train" / "GT_color" / f"{number}.png", np.repeat(label[..., None], 3, axis=2))
    answer = prepare_command("check", "--dataset", "DeepScene", "--data-dir", tmp_path, "--split", "training")
    assert ("training", "unknown color") in kinds(answer), answer.out + answer.err
    assert '"void"' not in answer.out


def test_a_config_is_checked_with_its_crop_and_batch(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    config = load_config(HOME / "config.json")
    args = {"data_dir": str(root), "classes": NAMES}
    config["train_loader"] = {
        "type": "Folder",
        "args": {**args, "split": "train", "batch_size": 9, "augment": True, "crop_size": 128},
    }
    config["val_loader"] = {"type": "Folder", "args": {**args, "split": "val", "batch_size": 1}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    answer = prepare_command("check", "-c", path)
    assert kinds(answer) == {("train_loader", "batch too large"), ("train_loader", "crop too large")}
    assert '"crop_size": [65, 97]' in answer.out
    sets = ["-s", "train_loader.args.crop_size=[65,97]", "-s", "train_loader.args.batch_size=8"]
    assert prepare_command("check", "-c", path, *sets).status == 0


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ({"base_size": 24, "scale": False}, {}),
        ({"base_size": 24}, {}),
        ({"resize": {"short_side": 24}, "scale": False}, {"val": True, "crop_size": 64}),
        ({"scale": {"range": [0.8, 1.2]}}, {"resize": {"long_side": 24}}),
        ({"scale": False}, {"val": True, "crop_size": 130}),
    ],
)
def test_a_scale_that_training_never_saw_is_found_and_fixed(
    tmp_path: Path, prepare_command: Callable[..., Answer], training: dict[str, Any], validation: dict[str, Any]
) -> None:
    config = load_config(HOME / "config.json")
    args = {"data_dir": str(clean(tmp_path / "data")), "classes": NAMES}
    train = {**args, "split": "train", "batch_size": 4, "augment": True, "crop_size": 24, **training}
    config["train_loader"] = {"type": "Folder", "args": train}
    config["val_loader"] = {"type": "Folder", "args": {**args, "split": "val", "batch_size": 1, **validation}}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    answer = prepare_command("check", "-c", path)
    assert kinds(answer) == {("train_loader", "another scale")}, answer.out
    fixed = {
        key: value for key, value in config["val_loader"]["args"].items() if key not in ("crop_size", "resize", "val")
    }
    if found := re.search(r'fix: "resize": (\{.*\}) in the val_loader', answer.out):
        fixed["resize"] = json.loads(found[1])
    config["val_loader"]["args"] = fixed
    path.write_text(json.dumps(config))
    assert prepare_command("check", "-c", path).status == 0


@pytest.mark.parametrize("path", sorted([HOME / "config.json", *(HOME / "configs").glob("**/*.json")]), ids=str)
def test_no_config_of_ours_validates_at_a_scale_that_training_never_sees(path: Path) -> None:
    raw = load_config(path)
    if "arch" not in raw or "trainer" not in raw:
        return
    config = check_config(raw)
    assert config.validation is not None
    records = {"x": scan.Record([], size=[375, 500])}
    if config.train.type in ("CamVid", "Synthetic"):
        records = {"x": scan.Record([], size=[360, 480] if config.train.type == "CamVid" else [192, 256])}
    examined = doctor.Examined("train", None, records, chains=(config.train.chain, config.validation.chain))
    assert list(doctor.scales(examined)) == []


def test_files_that_did_not_change_are_not_read_again(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = clean(tmp_path / "data")
    read: list[int] = []
    real = scan.scan_sample

    def scan_sample(dataset: Folder, index: int, **more: bool) -> scan.Record:
        read.append(index)
        return real(dataset, index, **more)

    monkeypatch.setattr(scan, "scan_sample", scan_sample)

    def examine() -> dict[str, scan.Record]:
        read.clear()
        return scan.examine(Folder(data_dir=root, split="train", classes=NAMES), cache=cache)

    first = examine()
    assert len(read) == 8
    assert examine() == first
    assert not read
    save(root / "masks" / "train" / "003.png", np.zeros(SIZE, np.uint8))
    again = examine()
    assert read == [3]
    assert again["003"].values == {"0": SIZE[0] * SIZE[1]}
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:50])  # a cache that was cut short is no reason to stop
    assert examine() == again
    assert len(read) == 8


def test_a_file_that_took_another_s_place_is_read_though_size_and_time_are_the_same(
    tmp_path: Path, cache: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data", train=4)
    paths = [root / "masks" / "train" / f"{number:03d}.bmp" for number in range(2)]
    for path, value in zip(paths, (1, 7), strict=True):
        path.with_suffix(".png").unlink()
        os.utime(save(path, np.full(SIZE, value, np.uint8)), (1, 1))
    assert "(6,305 pixels): 001" in check(prepare_command, root).out
    paths[0].rename(tmp_path / "other")
    paths[1].rename(paths[0])
    (tmp_path / "other").rename(paths[1])
    assert "(6,305 pixels): 000" in check(prepare_command, root).out


@pytest.mark.parametrize(
    "problem",
    [
        Problem(Fault.MISSING_PACKAGE, "a.mat", "needs scipy", "`pip install scipy`"),
        "a.mat: needs scipy. `pip install scipy`.",  # of a dataset of somebody else
    ],
)
def test_what_a_missing_package_kept_from_being_read_is_read_when_it_is_there(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, problem: str | Problem
) -> None:
    dataset = Folder(data_dir=clean(tmp_path / "data"), split="train", classes=NAMES)

    def fail(path: Path) -> np.ndarray:
        raise DataError(problem)

    with monkeypatch.context() as patch:
        patch.setattr(dataset, "read_raw", fail)
        assert all(record.problems for record in scan.examine(dataset, cache=cache).values())
    assert not any(record.problems for record in scan.examine(dataset, cache=cache).values())


def test_what_an_older_version_remembered_of_unusable_files_is_read_again(tmp_path: Path, cache: Path) -> None:
    root = clean(tmp_path / "data")
    (root / "images" / "train" / "003.png").write_bytes(b"")
    dataset = Folder(data_dir=root, split="train", classes=NAMES)
    first = scan.examine(dataset, cache=cache)
    assert [problem.fault for problem in first["003"].problems] == [Fault.EMPTY_FILE]
    (file,) = cache.iterdir()
    with np.load(file) as saved:
        columns = dict(saved)
    rows = json.loads(gzip.decompress(columns["rows"].tobytes()))
    for row in rows.values():
        row["problems"] = ["003.png: is empty. Get the file again." for _ in row["problems"]]
    columns["rows"] = np.frombuffer(gzip.compress(json.dumps(rows).encode()), np.uint8)
    np.savez(file, **columns)
    assert sum(not record.problems for record in scan.recall(file).values()) == 7
    assert str(scan.examine(dataset, cache=cache)["003"].problems[0]) == str(first["003"].problems[0])


def test_a_dataset_of_somebody_else_may_complain_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = Folder(data_dir=clean(tmp_path / "data"), split="train", classes=NAMES)

    def fail(path: Path) -> np.ndarray:
        raise DataError("The moon is in the wrong house.")

    monkeypatch.setattr(dataset, "read_raw", fail)
    examined = doctor.Examined("train", dataset, scan.examine(dataset), training=False)
    (finding,) = doctor.diagnose([examined])
    assert finding.lines()[0] == "train: unusable file: 8 files; The moon is in the wrong house"
    assert finding.fix.startswith("get the files again")  # all eight are more than a loader skips


def test_what_receives_problems_is_no_key_of_a_config(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    more = json.dumps({"classes": NAMES, "problems": []})
    answer = prepare_command("check", "--dataset", "Folder", "--data-dir", clean(tmp_path / "data"), "--args", more)
    assert answer.status == 2
    assert "--dataset.args.problems: unknown key" in answer.err


def training_config(root: Path, tmp_path: Path, **more: object) -> Path:
    """A config that trains on `clean` data with classes weighted by their share."""
    args = {"data_dir": str(root), "classes": list(NAMES), "num_workers": 0, **more}
    config = tiny_config(
        tmp_path / "saved",
        train_loader={"type": "Folder", "args": {**args, "split": "train", "batch_size": 2, "crop_size": 32}},
        val_loader={"type": "Folder", "args": {**args, "split": "val", "batch_size": 1}},
        loss={"type": "CrossEntropyLoss2d", "args": {"class_weights": "median_freq"}},
    )
    config["trainer"]["epochs"] = 1
    path = tmp_path / "training.json"
    path.write_text(json.dumps(config))
    return path


def test_what_the_doctor_saw_is_used_before_training(
    tmp_path: Path,
    prepare_command: Callable[..., Answer],
    train_command: Callable[..., Answer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = clean(tmp_path / "data")
    path = training_config(root, tmp_path)
    pixels = np.bincount(np.concatenate([scene(number)[1].ravel() for number in range(8)]), minlength=3)
    view = DatasetView(Folder(data_dir=root, split="train", classes=NAMES), None)
    assert label_statistics.count_classes(view) is None  # nobody has looked
    assert prepare_command("check", "-c", path).status == 0

    def never(*_: object, **__: object) -> None:
        raise AssertionError("labels were read again")

    monkeypatch.setattr(label_statistics, "check_samples", never)
    monkeypatch.setattr(label_statistics, "examine", never)
    monkeypatch.setattr(DatasetView, "labels", lambda self, indices=None: never() if indices is None else iter(()))
    assert label_statistics.class_pixels(view) == pixels.tolist()
    assert label_statistics.look_at(DatasetView(view.dataset, None, indices=[1, 5])).labels == 2
    monkeypatch.setattr(results, "location_prior", lambda *_: 0.0)
    answer = train_command("-c", path, "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    assert "training: 8 images; 8 labels read, 0.0% void" in answer.err + answer.out


def test_what_changed_since_the_doctor_looked_is_read_again(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    assert prepare_command("check", "-c", training_config(root, tmp_path)).status == 0
    save(root / "masks" / "train" / "003.png", np.ones(SIZE, np.uint8))
    data = Folder(data_dir=root, split="train", classes=NAMES)
    expected = sum(np.bincount(data.read_label(index).ravel(), minlength=3) for index in range(8))
    assert label_statistics.count_classes(DatasetView(data, None)) is None
    assert label_statistics.class_pixels(DatasetView(data, None)) == expected.tolist()
    assert label_statistics.count_classes(DatasetView(data, None)) is not None  # remembered for the next run


def test_a_start_finds_in_columns_what_records_say_of_labels(tmp_path: Path, cache: Path) -> None:
    root = clean(tmp_path / "data")
    save(root / "masks" / "train" / "002.png", np.full(SIZE, 9, np.uint8))  # no class
    (root / "images" / "train" / "003.png").write_bytes(b"")
    dataset = Folder(data_dir=root, split="train", classes=NAMES)
    assert scan.remembered_values(dataset, range(8), cache) is None  # nobody has looked
    records = list(scan.examine(dataset, cache=cache).values())
    found = scan.remembered_values(dataset, [7, 2, 3, 0], cache)
    assert found is not None
    assert found.usable.tolist() == [True, False, False, True]
    assert found.readable.tolist() == [True, False, True, True]
    assert found.pixels.tolist() == scan.sum_values([records[7], records[3], records[0]]).tolist()
    tolerant = Folder(data_dir=root, split="train", classes=NAMES, unknown="void")
    assert scan.remembered_values(tolerant, [2], cache) is None  # other options, other records
    scan.examine(tolerant, cache=cache)
    seen = scan.remembered_values(tolerant, [2], cache)
    assert seen is not None
    assert seen.usable.tolist() == [True]
    assert seen.pixels[9] == SIZE[0] * SIZE[1]


@pytest.mark.parametrize("kept", [0, 50, 1000])
def test_what_was_remembered_and_cut_short_is_no_reason_to_stop(tmp_path: Path, cache: Path, kept: int) -> None:
    dataset = Folder(data_dir=clean(tmp_path / "data"), split="train", classes=NAMES)
    scan.examine(dataset, cache=cache)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:kept])
    assert scan.remembered_values(dataset, range(8), cache) is None
    assert scan.remembered(dataset, range(8), cache) is None
    file.write_text("{}")
    assert scan.remembered_values(dataset, range(8), cache) is None


def test_what_the_doctor_found_stops_a_run_at_once_or_is_left_out(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    save(root / "masks" / "train" / "003.png", np.full(SIZE, 77, np.uint8))
    (root / "images" / "train" / "005.png").write_bytes(b"")
    assert prepare_command("check", "-c", training_config(root, tmp_path)).status == 3
    data = Folder(data_dir=root, split="train", classes=NAMES)
    with pytest.raises(DataError, match=r"003\.png: label value 77"):
        label_statistics.look_at(DatasetView(data, None))
    with pytest.raises(DataError, match=r"005\.png: is empty"):
        label_statistics.look_at(DatasetView(data, None, indices=[0, 5]))
    found = label_statistics.look_at(DatasetView(data, None, on_bad_sample="skip"))
    assert (found.labels, int(found.pixels.sum())) == (7, 7 * SIZE[0] * SIZE[1])  # the label of 005 is one, too


def test_class_weights_do_not_depend_on_whether_images_have_been_checked(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    (root / "images" / "train" / "005.png").write_bytes(b"")
    view = DatasetView(Folder(data_dir=root, split="train", classes=NAMES), None, on_bad_sample="skip")
    unchecked = label_statistics.class_pixels(view)
    assert prepare_command("check", "-c", training_config(root, tmp_path)).status == 3
    assert label_statistics.class_pixels(view) == unchecked


def test_unknown_values_that_may_be_void_cost_no_label(
    tmp_path: Path, prepare_command: Callable[..., Answer], train_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    options = {"classes": list(NAMES[:2]), "unknown": "void", "on_bad_sample": "skip"}
    path = training_config(root, tmp_path, **options)
    assert kinds(prepare_command("check", "-c", path)) >= {("train_loader", "unknown value")}
    data = Folder(data_dir=root, split="train", classes=NAMES[:2], unknown="void")
    found = label_statistics.count_classes(DatasetView(data, None, on_bad_sample="skip"))
    labels = np.concatenate([scene(number)[1].ravel() for number in range(8)])
    assert found is not None
    assert (found.labels, found.pixels.tolist()) == (8, np.bincount(labels, minlength=3)[:2].tolist())
    assert found.void == (labels == 2).sum()
    answer = train_command("-c", path, "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    for file in (root / "masks" / "train").iterdir():
        save(file, np.full(SIZE, 255, np.uint8))
    answer = train_command("-c", path, "--import", "tests.tiny", "--set", 'loss="DiceLoss"')
    assert answer.errors[0].startswith("train_loader: the labels hold void only. ")
    for file in (root / "masks" / "train").iterdir():
        file.write_bytes(b"")
    answer = train_command("-c", path, "--import", "tests.tiny", "--set", 'loss="DiceLoss"')
    assert answer.errors == ["train_loader: none of its labels can be read. `python prepare.py check` says why."]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "COMMAND"),
        (["check"], "--config and --dataset. Give one of the two"),
        (["check", "--dataset", "Folder"], "--data-dir is missing"),
        (["check", "--dataset", "Foldr", "--data-dir", "x"], "Did you mean 'Folder'?"),
        (["check", "--dataset", "CamVid", "--data-dir", "nowhere"], "data_dir: there is no folder nowhere"),
        (["check", "--dataset", "Folder", "--data-dir", ".", "--args", "{"], "--args: no JSON"),
        (["check", "--dataset", "Folder", "--data-dir", ".", "--args", "[1]"], "--args: no JSON"),
        (["check", "--dataset", "Folder", "--data-dir", ".", "--args", '{"klasses": []}'], "unknown key"),
        (["check", "--dataset", "Synthetic", "--data-dir", "."], "Synthetic: is generated"),
        (["check", "-c", str(HOME / "config.json")], "Synthetic: is generated and has no files"),
        (["check", "-c", "nothing.json"], "no such file"),
        (["init", "--images", "nowhere", "--masks", "."], "--images nowhere: is no folder"),
        (["init", "--images", ".", "--masks", "."], "is the folder of the images"),
        (["init", "--images", ".", "--masks", ".", "--names", "a,,b"], "--names a,,b: a name is empty"),
    ],
)
def test_mistakes_have_their_line(
    arguments: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    answer = call(prepare, *arguments)
    assert answer.status == 2, answer.out + answer.err
    assert text in answer.err
    assert "Traceback" not in answer.err


def test_a_name_that_the_terminal_cannot_show_is_told_nonetheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = clean(tmp_path / "data")
    (root / "images" / "train" / "é.png").write_bytes(b"")
    (root / "masks" / "train" / "é.png").write_bytes(b"")
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii", write_through=True))
    command = ["check", "--dataset", "Folder", "--data-dir", str(root), "--args", CLASSES, "--workers", "0"]
    assert run(prepare.main, command) == 3
    assert rb"train/\xe9.png is empty" in out.getvalue()


def test_stats_are_those_of_numpy(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    root = clean(tmp_path / "data")
    answer = prepare_command("stats", "--dataset", "Folder", "--data-dir", root, "--args", CLASSES)
    assert answer.status == 0
    pixels = np.concatenate([scene(number)[0].reshape(-1, 3) for number in range(8)]) / 255
    numbers = parse_json("{" + re.search(r'"normalization".*', answer.out).group() + "}")["normalization"]  # type: ignore[union-attr]
    np.testing.assert_allclose(numbers["mean"], pixels.mean(0), atol=1e-5)
    np.testing.assert_allclose(numbers["std"], pixels.std(0), atol=1e-5)
    share = np.mean([(scene(n)[1][..., None] == [0, 1, 2]).mean((0, 1)) for n in range(8)], axis=0)
    weights = json.loads(re.search(r'"median_freq"  // (.*)', answer.out).group(1))  # type: ignore[union-attr]
    np.testing.assert_allclose(weights, np.median(share) / share, rtol=1e-3)


# ------------------------------------------------------------------------------------------------------------- init


def index_masks(label: np.ndarray) -> np.ndarray:
    label = label.copy()
    label[:3] = 255
    return label


def color_masks(label: np.ndarray) -> np.ndarray:
    return np.array([[0, 0, 0], [200, 10, 10], [10, 10, 200]], np.uint8)[label]


def binary_masks(label: np.ndarray) -> np.ndarray:
    return ((label == 1) * 255).astype(np.uint8)


FOLDERS = {
    "index": (index_masks, "_mask", ["background", "class_1", "class_2"]),
    "color": (color_masks, "", ["background", "color_0a0ac8", "color_c80a0a"]),
    "binary": (binary_masks, "-seg", ["background", "foreground"]),
}


@pytest.fixture(params=FOLDERS)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, list[str]]:
    draw, suffix, names = FOLDERS[request.param]
    split = request.param == "color"
    for number in range(12):
        image, label = scene(number)
        part = ("val" if number > 8 else "train") if split else "."
        save(tmp_path / "data of mine" / "photos" / part / f"{number}.jpg", image)
        save(tmp_path / "data of mine" / "truth" / part / f"{number}{suffix}.png", draw(label))
    return tmp_path / "data of mine", names


def test_init_gives_a_config_that_trains_unchanged(
    own: tuple[Path, list[str]],
    tmp_path: Path,
    prepare_command: Callable[..., Answer],
    train_command: Callable[..., Answer],
) -> None:
    root, names = own
    path = tmp_path / "mine.json"
    arguments = ("init", "--images", root / "photos", "--masks", root / "truth", "-o", path)
    answer = prepare_command(*arguments)
    assert answer.status == 0, answer.err
    assert f"{len(names)} classes, {', '.join(names)}" in answer.out
    again = prepare_command(*arguments)
    assert (again.status, "is there already" in again.err) == (2, True)
    config = load_config(path)
    assert [row["name"] for row in config["train_loader"]["args"]["classes"]] == names
    assert config["arch"]["args"]["pretrained"] is False
    shorter = ["trainer.max_steps=2", "trainer.tensorboard=false", f"trainer.save_dir={tmp_path / 'saved'}"]
    shorter += ["train_loader.args.num_workers=0"]
    trained = train_command("-c", path, "-d", "cpu", *[word for text in shorter for word in ("-s", text)])
    assert trained.status == 0, trained.err
    assert prepare_command("check", "-c", path).status == 0


def photos(root: Path, *folders: str, count: int = 8) -> Path:
    """Images and masks in folders, given in pairs."""
    for number, (images, masks) in enumerate(zip(folders[::2], folders[1::2], strict=True)):
        for index in range(count):
            image, label = scene(100 * number + index)
            save(root / images / f"{index}.png", image)
            save(root / masks / f"{index}.png", label)
    return root


def test_init_names_its_config_like_the_folder_and_spares_the_one_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_command: Callable[..., Answer]
) -> None:
    photos(tmp_path / "mydata", "images", "masks")
    monkeypatch.chdir(tmp_path)
    arguments = ("init", "--images", "mydata/images", "--masks", "mydata/masks")
    answer = prepare_command(*arguments)
    assert answer.status == 0, answer.err
    assert "written to mydata.json; `python train.py -c mydata.json` trains" in answer.out
    config = load_config(Path("mydata.json"))
    assert "n_gpu" not in config
    assert config["trainer"]["val_per_epochs"] <= config["trainer"]["epochs"] / 10
    assert "is there already" in prepare_command(*arguments).err
    for output in (HOME / "config.json", os.path.relpath(HOME / "config.json")):
        answer = prepare_command(*arguments, "-o", output, "--force")
        assert (answer.status, "is the default config" in answer.err) == (2, True)


def test_init_starts_from_public_weights_where_they_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_command: Callable[..., Answer]
) -> None:
    root = photos(tmp_path / "mydata", "images", "masks")
    said = {}
    for reachable in (False, True):
        monkeypatch.setattr(weights, "is_reachable", lambda url, answer=reachable: answer)
        path = tmp_path / f"{reachable}.json"
        answer = prepare_command("init", "--images", root / "images", "--masks", root / "masks", "-o", path)
        assert answer.status == 0, answer.err
        said[reachable] = load_config(path)
        assert ("pretrained weights: by download" in answer.out) == reachable
    assert said[True]["arch"]["args"]["pretrained"] is True
    assert said[False]["arch"]["args"]["pretrained"] is False
    assert said[False]["optimizer"]["args"]["lr"] > said[True]["optimizer"]["args"]["lr"]


@pytest.mark.parametrize("given", [("train/images", "train/masks"), (".", ".")])
def test_init_recognizes_train_and_val_side_by_side(
    given: tuple[str, str], tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = photos(tmp_path / "mydata", "train/images", "train/masks", "val/images", "val/masks")
    path = tmp_path / "c.json"
    answer = prepare_command("init", "--images", root / given[0], "--masks", root / given[1], "-o", path)
    assert answer.status == 0, answer.err
    config = load_config(path)
    assert [config[key]["args"]["split"] for key in ("train_loader", "val_loader")] == ["train", "val"]
    assert config["name"] == "mydata"
    answer = prepare_command("check", "-c", path)
    assert answer.status == 0, answer.out + answer.err
    assert "val_loader: 8 images" in answer.out


def test_init_says_of_an_empty_folder_that_it_is_empty(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    arguments = ("init", "--images", tmp_path / "images", "--masks", tmp_path / "masks", "-o", tmp_path / "c.json")
    answer = prepare_command(*arguments)
    assert (answer.status, answer.errors) == (
        2,
        [f"{tmp_path / 'images'}: holds no image file. Name the folder that the files lie in."],
    )
    photos(tmp_path, "images", "others")
    assert f"{tmp_path / 'masks'}: holds no image file" in prepare_command(*arguments).err


@pytest.mark.parametrize(
    ("image", "mask", "said"),
    [
        ("{:03d}", "{:03d}_mask", {"mask_suffix": "_mask"}),
        ("{:03d}_sat", "{:03d}_mask", {"image_suffix": "_sat", "mask_suffix": "_mask"}),
        ("img_{:03d}", "mask_{:03d}", {"image_prefix": "img_", "mask_prefix": "mask_"}),
        ("img_{:03d}", "{:03d}", {"image_prefix": "img_"}),
        ("a/{:03d}", "a/{:03d}", {"nested": True}),
        ("été {:d}.v1", "été {:d}.v1", {}),
    ],
)
def test_init_sees_how_masks_are_named(
    image: str, mask: str, said: dict, tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    for number in range(8):
        for folder, name, array in zip(("x", "y"), (image, mask), scene(number), strict=True):
            save(tmp_path / folder / f"{name.format(number)}.PNG", array)
    path = tmp_path / "c.json"
    answer = prepare_command("init", "--images", tmp_path / "x", "--masks", tmp_path / "y", "-o", path)
    assert answer.status == 0, answer.err
    args = load_config(path)["train_loader"]["args"]
    naming = ("image_prefix", "image_suffix", "mask_prefix", "mask_suffix", "nested")
    assert {key: args[key] for key in naming if key in args} == said
    answer = prepare_command("check", "-c", path)
    assert answer.status == 0, answer.out
    assert "train_loader: 8 images" in answer.out


def test_images_in_folders_below_are_not_left_out_in_silence(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    for folder, array in zip(("images", "masks"), scene(50), strict=True):
        save(root / folder / "train" / "night" / "000.png", array)
    answer = check(prepare_command, root)
    assert kinds(answer) == {("train", "nested files")}
    assert '"nested": true' in answer.out
    options = json.dumps({"classes": NAMES, "nested": True})
    answer = prepare_command("check", "--dataset", "Folder", "--data-dir", root, "--args", options)
    assert answer.status == 0, answer.out
    assert "train: 9 images" in answer.out
    assert "all: passed over (it is others put together)" in answer.out


@pytest.mark.parametrize("colors", [None, np.array([[0, 0, 0], [200, 30, 0], [0, 60, 250]], np.uint8)])
def test_init_takes_soft_edges_for_void_not_for_classes(
    colors: np.ndarray | None, tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    for number in range(8):
        image, label = scene(number)
        mask = (label == 1).astype(np.uint8) * 255 if colors is None else colors[label]
        half = cv2.resize(mask, (SIZE[1] // 2, SIZE[0] // 2), interpolation=cv2.INTER_AREA)
        save(tmp_path / "a" / f"{number}.png", image)
        save(tmp_path / "b" / f"{number}.png", cv2.resize(half, SIZE[::-1], interpolation=cv2.INTER_LINEAR))
    path = tmp_path / "c.json"
    answer = prepare_command("init", "--images", tmp_path / "a", "--masks", tmp_path / "b", "-o", path)
    assert answer.status == 0, answer.err
    args = load_config(path)["train_loader"]["args"]
    if colors is None:
        assert [row["value"] for row in args["classes"]] == [0, 255]
    else:
        assert sorted(row["color"] for row in args["classes"]) == sorted(colors.tolist())
    assert args["unknown"] == "void"


def test_init_skips_what_cannot_be_used_and_refuses_where_that_is_much(
    tmp_path: Path, prepare_command: Callable[..., Answer], train_command: Callable[..., Answer]
) -> None:
    for number in range(8):
        for folder, array in zip(("a", "b"), scene(number), strict=True):
            save(tmp_path / folder / f"{number}.png", array)
    (tmp_path / "a" / "3.png").write_bytes(b"")
    path = tmp_path / "c.json"
    arguments = ("init", "--images", tmp_path / "a", "--masks", tmp_path / "b", "-o", path)
    answer = prepare_command(*arguments)
    assert answer.status == 0, answer.err
    assert "empty file" in answer.out
    shorter = ["trainer.max_steps=2", "trainer.tensorboard=false", f"trainer.save_dir={tmp_path / 'saved'}"]
    shorter += ["train_loader.args.num_workers=0"]
    trained = train_command("-c", path, "-d", "cpu", *[word for text in shorter for word in ("-s", text)])
    assert trained.status == 0, trained.err
    (tmp_path / "a" / "4.png").write_bytes(b"")
    answer = prepare_command(*arguments, "--force")
    assert (answer.status, "2 examples cannot be used" in answer.err) == (2, True)


def test_init_takes_names_and_refuses_what_are_no_masks(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    for number in range(6):
        image, label = scene(number)
        save(tmp_path / "a" / f"{number}.png", image)
        save(tmp_path / "b" / f"{number}.png", label)
    arguments = ("init", "--images", tmp_path / "a", "--masks", tmp_path / "b", "-o", tmp_path / "c.json")
    wrong = prepare_command(*arguments, "--names", "x,y")
    assert (wrong.status, "--names: 2 names, but masks hold 3 values" in wrong.err) == (2, True)
    assert prepare_command(*arguments, "--names", "x, y,z").status == 0
    text = (tmp_path / "c.json").read_text()
    assert '{"name": "y", "value": 1' in text
    assert text.startswith("// Made by")
    for number in range(6):
        save(tmp_path / "b" / f"{number}.png", scene(number)[0])
    answer = prepare_command(*arguments, "--force")
    assert (answer.status, "too many for classes" in answer.err) == (2, True)
    assert (tmp_path / "c.json").read_text() == text
    for number in range(6):
        (tmp_path / "b" / f"{number}.png").unlink()
        save(tmp_path / "b" / f"{number}.tif", scene(number)[1].astype(np.int32) - 1)
    assert "0.tif: label value -1. Labels are 8-bit here" in prepare_command(*arguments, "--force").err
    for path in (tmp_path / "b").iterdir():
        path.rename(path.with_stem("abcdef"[int(path.stem)]))
    assert "no mask is named like an image" in prepare_command(*arguments, "--force").err


@pytest.mark.parametrize(("form", "void"), [("index", [255, 2]), ("color", [255, [90, 0, 90]])])
def test_what_init_is_told_to_call_void_is_no_class(
    form: str, void: list[Any], tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    colors = np.array([[0, 0, 0], [30, 200, 30], [90, 0, 90]], np.uint8)
    for number in range(6):
        image, label = scene(number)
        save(tmp_path / "a" / f"{number}.png", image)
        save(tmp_path / "b" / f"{number}.png", label if form == "index" else colors[label])
    arguments = ("init", "--images", tmp_path / "a", "--masks", tmp_path / "b", "-o", tmp_path / "c.json")
    answer = prepare_command(*arguments, "--names", "ground,leaf,void")
    assert answer.status == 0, answer.err
    options = load_config(tmp_path / "c.json")["train_loader"]["args"]
    assert [row["name"] for row in options["classes"]] == ["ground", "leaf"]
    assert options["void"] == void
    answer = prepare_command("check", "-c", tmp_path / "c.json")
    assert (answer.status, "(void)" in answer.out) == (0, True), answer.out
    (tmp_path / "c.json").unlink()
    for number in range(6):
        save(tmp_path / "b" / f"{number}.png", np.minimum(scene(number)[1], 1))
    assert "--names: one class is left." in prepare_command(*arguments, "--names", "ground,void").err


def test_editors_find_the_schema_of_a_config_that_init_wrote(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = photos(tmp_path / "mydata", "images", "masks")
    path = tmp_path / "deep" / "c.json"
    answer = prepare_command("init", "--images", root / "images", "--masks", root / "masks", "-o", path)
    assert answer.status == 0, answer.err
    named = parse_json(path.read_text())["$schema"]
    assert (path.parent / named).resolve() == HOME / "config.schema.json"
    assert prepare.relative_path(HOME / "config.schema.json", HOME) == "config.schema.json"
    assert prepare.relative_path(HOME / "config.schema.json", HOME / "mine") == "../config.schema.json"


def test_a_submission_holds_raw_ids(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    label = np.resize(np.arange(19, dtype=np.uint8), (1024, 2048))
    for city in ("berlin", "bonn"):
        save(tmp_path / "outputs" / city / f"{city}_000001_000019_leftImg8bit.png", label)
    arguments = ("submission", "--predictions", tmp_path / "outputs", "-o", tmp_path / "s.zip")
    answer = prepare_command(*arguments)
    assert (answer.status, "wants 1525 images" in answer.out) == (3, True)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["berlin_000001_000019.png", "bonn_000001_000019.png"]
        raw = np.asarray(Image.open(archive.open("bonn_000001_000019.png")))
    np.testing.assert_array_equal(CityScapes.class_table().train_ids(raw), label)
    (tmp_path / "s.zip").unlink()
    save(tmp_path / "outputs" / "bonn" / "bonn_000001_000019_leftImg8bit.png", label + 1)
    assert "holds 19, which is no class" in prepare_command(*arguments).err
    assert not list(tmp_path.glob("s.zip*"))
    assert "holds no *_leftImg8bit" in prepare_command(*arguments[:2], tmp_path / "cache", *arguments[3:]).err


def test_a_submission_takes_one_prediction_of_each_frame_of_the_test_split(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    def submit(*names: str, output: str = "s.zip") -> Answer:
        for name in names:
            save(tmp_path / "outputs" / f"{name}.png", np.full((1024, 2048), 3, np.uint8))
        return prepare_command("submission", "--predictions", tmp_path / "outputs", "-o", tmp_path / output)

    frame = "berlin_000001_000019_leftImg8bit"
    assert submit(f"{frame}_index", f"{frame}_overlay", f"{frame}_probability").status == 3
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert archive.namelist() == ["berlin_000001_000019.png"]
    for output in ("outputs", "nowhere/s.zip"):
        assert (submit(output=output).status, "no place for a file" in submit(output=output).err) == (2, True)
    assert f"predicts what {tmp_path}/outputs/a/{frame}.png does" in submit(f"a/{frame}").err
    (tmp_path / "outputs" / "a" / f"{frame}.png").unlink()
    assert "is no frame of berlin, " in submit("frankfurt_000000_000294_leftImg8bit").err


def test_the_command_that_a_submission_recommends_works(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finished_run: Path,
    prepare_command: Callable[..., Answer],
    inference_command: Callable[..., Answer],
) -> None:
    for city in ("berlin", "bonn"):
        name = f"data/cityscapes/leftImg8bit/test/{city}/{city}_000001_000019_leftImg8bit.png"
        save(tmp_path / name, np.zeros((1024, 2048, 3), np.uint8))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    answer = prepare_command("submission", "--predictions", "outputs")
    (line,) = re.findall("`python inference.py (.*)` makes them", answer.err)
    words = [str(finished_run / "best_model.pth") if word == "CKPT" else word for word in shlex.split(line)]
    answer = inference_command(*words, "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    answer = prepare_command("submission", "--predictions", "outputs")
    assert (answer.status, "2 predictions written" in answer.out) == (3, True), answer.err


def test_absent_classes_are_found_beside_broken_files_and_unknown_values(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    root = clean(tmp_path / "data")
    images, masks = root / "images" / "train", root / "masks" / "train"
    PLANTS["absent class"](images, masks)
    _over(masks).write_bytes(b"")
    save(_over(masks, 1), np.where(scene(1)[1] == 1, 9, 0).astype(np.uint8))
    answer = check(prepare_command, root)
    assert {kind for _, kind in kinds(answer)} == {"absent class", "empty file", "unknown value"}


def test_help_is_there_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("check", "stats", "init", "convert", "submission"):
        with pytest.raises(SystemExit):
            prepare.parse([command, "--help"])
        assert "--workers" in capsys.readouterr().out
