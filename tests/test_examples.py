"""The documented example, own folders, recipes and presets work as they stand; test_documents.py follows the pages."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.check import check_config
from tests.conftest import HOME, ROOT, Answer
from utils.config import PRESETS, differences, load_config, parse_json

SHARED = ROOT.parent / "shared"
SMALL = ["-s", "trainer.epochs=1", "-s", "trainer.tensorboard=false", "-s", "n_gpu=0"]


def shapes(rng: np.random.Generator, height: int, width: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """An image with a blob of each class, and its label."""
    label = np.zeros((height, width), np.uint8)
    for value in range(1, classes):
        top, left = rng.integers(height // 2), rng.integers(width // 2)
        label[top : top + height // 3, left : left + width // 3] = value
    image = np.repeat((label * (200 // classes) + 20)[..., None], 3, axis=2) + rng.integers(0, 30, (height, width, 3))
    return image.astype(np.uint8), label


# ------------------------------------------------------------------------------------------ the documented example


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of Pascal VOC's layout, with SBD's lists; returns its data_dir."""
    root = tmp_path_factory.mktemp("voc")
    home = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "SegmentationClassAug", "ImageSets/Segmentation"):
        (home / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    names = [f"2007_{number:06d}" for number in range(38)]
    for name in names:
        image, label = shapes(rng, 75, 100, 21)
        label[:2] = 255
        Image.fromarray(image).save(home / "JPEGImages" / f"{name}.jpg")
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            Image.fromarray(label).save(home / folder / f"{name}.png")
    lists = home / "ImageSets" / "Segmentation"
    pairs = [f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png" for name in names[:34]]
    (lists / "train_aug.txt").write_text("\n".join(pairs))
    (lists / "val.txt").write_text("\n".join(names[34:]) + "\n")
    return root


def at(voc: Path) -> list[str]:
    return ["-s", f"train_loader.args.data_dir={voc}", "-s", f"val_loader.args.data_dir={voc}"]


@pytest.mark.skipif(not (SHARED / "seeds").is_dir(), reason="the original document is not here")
def test_our_copy_of_the_documented_example_says_what_the_original_says() -> None:
    (document,) = (SHARED / "seeds").glob("003_*.txt")
    original = re.search(r"```javascript\n(.*?)```", document.read_text(), re.DOTALL)
    assert original is not None
    assert parse_json(original.group(1)) == load_config(HOME / "configs" / "voc_pspnet.json")


def test_the_documented_example_passes_the_check(voc: Path, train_command: Callable[..., Answer]) -> None:
    answer = train_command("-c", HOME / "configs" / "voc_pspnet.json", "--check", *at(voc))
    assert answer.status == 0, answer.err
    assert "34 images, 1 batches" in answer.out
    memory = re.search(r"memory +([\d.]+) GiB", answer.out)
    assert memory is not None
    assert 15 < float(memory.group(1)) < 25


def test_every_key_of_the_documented_example_has_its_effect() -> None:
    config = check_config(load_config(HOME / "configs" / "voc_pspnet.json"))
    resolved = config.to_json()
    given = load_config(HOME / "configs" / "voc_pspnet.json")
    given["loss"] = [{"type": "CrossEntropyLoss2d"}]
    given["trainer"] |= {"save_dir": "saved", "log_dir": "saved/runs"}
    for loader in ("train_loader", "val_loader"):
        given[loader]["args"]["data_dir"] = "data"
    given["arch"]["args"]["backbone"] = {"type": "resnet50"}
    stored = json.loads((ROOT / "tests" / "data" / "voc_pspnet_resolved.json").read_text())
    ours = {key: pair for key, pair in differences(stored, resolved).items() if not key.startswith("optimizer.args.")}
    assert not ours, "a default changed: is that meant? Then store tests/data/voc_pspnet_resolved.json anew"
    assert contains(resolved, given)


def contains(whole: Any, part: Any) -> bool:
    """Whether everything that `part` says stands in `whole` too."""
    if isinstance(part, dict):
        return all(key in whole and contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(contains, whole, part))
    return whole == part


def test_the_documented_example_trains_validates_and_saves(
    voc: Path, tmp_path: Path, train_command: Callable[..., Answer]
) -> None:
    smaller = [
        *("-s", "train_loader.args.batch_size=4", "-s", "train_loader.args.crop_size=96"),
        *("-s", "val_loader.args.crop_size=96", "-s", "arch.args.backbone=resnet18"),
        *("-s", "train_loader.args.num_workers=0", "-s", "val_loader.args.num_workers=0", "-s", "trainer.max_steps=3"),
        *("-s", f"trainer.save_dir={tmp_path}", "-s", f"trainer.log_dir={tmp_path / 'runs'}"),
    ]
    answer = train_command("-c", HOME / "configs" / "voc_pspnet.json", *at(voc), *SMALL, *smaller)
    assert answer.status == 0, answer.err
    (run_dir,) = (tmp_path / "PSPNet").glob("2*")
    (record,) = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert record["step"] == 3
    assert 0 <= record["val/Mean_IoU"] <= 1
    assert json.loads((run_dir / "results.json").read_text())["protocol"]["mode"] == "center_crop"
    assert {"best_model.pth", "last.pth"} <= {path.name for path in run_dir.iterdir()}


# ----------------------------------------------------------------------------------------------------- own data

COLORS = np.array([[0, 0, 0], [200, 30, 40], [20, 90, 220]], np.uint8)
NAMES = ["background", "leaf", "stem"]


def write_folder(root: Path, form: str, count: int = 10) -> None:
    """Images and masks in one of the forms that the README lists."""
    rng = np.random.default_rng(1)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        image, label = shapes(rng, 120, 160, 2 if form == "binary" else 3)
        Image.fromarray(image).save(root / "images" / f"{number:04d}.jpg")
        mask = Image.fromarray(COLORS[label] if form == "color" else label * 255 if form == "binary" else label)
        if form == "palette":
            mask.putpalette(COLORS.tobytes())
        mask.save(root / "masks" / f"{number:04d}.png")


def own_config(root: Path, **options: Any) -> dict[str, Any]:
    """What the README's example says, made small."""
    args = {"data_dir": str(root), "split": "all", "val_split": 0.2, "batch_size": 4, "augment": True, "crop_size": 64}
    return {
        "extends": str(HOME / "config.json"),
        "name": "own",
        "arch": {"args": {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}}},
        "train_loader": {"type": "Folder", "args": {**args, "num_workers": 0, **options}},
        "val_loader": None,
        "trainer": {"save_dir": str(root / "saved"), "log_dir": str(root / "saved" / "runs")},
    }


@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("index", {"classes": NAMES}),
        ("palette", {"classes": NAMES}),
        (
            "color",
            {
                "classes": [{"name": n, "color": c} for n, c in zip(NAMES, COLORS.tolist(), strict=True)],
                "masks": "color",
            },
        ),
        ("binary", {"classes": [{"name": "background", "value": 0}, {"name": "object", "value": 255}]}),
    ],
)
def test_an_own_folder_trains_from_a_config_alone(
    tmp_path: Path, train_command: Callable[..., Answer], form: str, options: dict[str, Any]
) -> None:
    write_folder(tmp_path, form)
    (tmp_path / "my.json").write_text(json.dumps(own_config(tmp_path, **options)))
    answer = train_command("-c", tmp_path / "my.json", *SMALL)
    assert answer.status == 0, answer.err
    (run_dir,) = (tmp_path / "saved" / "own").glob("2*")
    record = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    names = ["background", "object"] if form == "binary" else NAMES
    assert {f"val/Class_IoU/{name}" for name in names} <= record.keys()


def own_run(tmp_path: Path, command: Callable[..., Answer], **options: Any) -> tuple[Answer, Path]:
    """A short run on a folder of images of 120x160 with a held-out part: what it said, and its folder."""
    write_folder(tmp_path, "index")
    (tmp_path / "my.json").write_text(json.dumps(own_config(tmp_path, classes=NAMES, **options)))
    answer = command("-c", tmp_path / "my.json", *SMALL)
    assert answer.status == 0, answer.err
    (run_dir,) = (tmp_path / "saved" / "own").glob("*-*")
    return answer, run_dir


def test_own_data_is_validated_on_whole_images_and_evaluation_repeats_the_figures(
    tmp_path: Path, train_command: Callable[..., Answer], evaluate_command: Callable[..., Answer]
) -> None:
    answer, run_dir = own_run(tmp_path, train_command)
    assert "whole images at their own size; mode single, scale 1, fp32" in answer.out
    record = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    again = evaluate_command("-m", run_dir / "best_model.pth", "--output", tmp_path / "again.json")
    assert again.status == 0, again.err
    figures = json.loads((tmp_path / "again.json").read_text())
    assert {key: record[f"val/{key}"] for key in figures["metrics"]} == figures["metrics"]
    assert figures["protocol"] == json.loads((run_dir / "results.json").read_text())["protocol"]
    sizes = {Image.open(path).size for path in (run_dir / "predictions").iterdir()}
    assert sizes == {(160, 120)}


def test_own_data_is_validated_on_crops_where_the_config_asks_for_them(
    tmp_path: Path, train_command: Callable[..., Answer]
) -> None:
    answer, run_dir = own_run(tmp_path, train_command, val_crop_size=[96, 128])
    assert "the middle of each image, 96x128; mode center_crop, scale 1, fp32" in answer.out
    assert json.loads((run_dir / "results.json").read_text())["protocol"]["size"] == [96, 128]
    answer = train_command("-c", HOME / "config.json", "-s", "train_loader.args.val_crop_size=96", "--check")
    assert answer.errors == [
        'train_loader.args.val_crop_size: has no effect without "val_split". Remove it, or hold something out.'
    ]


def test_a_run_that_began_on_crops_goes_on_with_them(
    tmp_path: Path, train_command: Callable[..., Answer], evaluate_command: Callable[..., Answer]
) -> None:
    _, run_dir = own_run(tmp_path, train_command, val_crop_size=64)
    for path in (run_dir / "last.pth", run_dir / "best_model.pth"):  # as they were written before there was the key
        state = torch.load(path, weights_only=True)
        state["config"]["train_loader"]["args"].pop("val_crop_size", None)  # both may be one file
        torch.save(state, path)
    resolved = json.loads((run_dir / "config.json").read_text())
    del resolved["train_loader"]["args"]["val_crop_size"]
    (run_dir / "config.json").write_text(json.dumps(resolved))
    (tmp_path / "my.json").write_text(json.dumps(own_config(tmp_path, classes=NAMES)))
    answer = train_command("-c", tmp_path / "my.json", *SMALL, "-s", "trainer.epochs=2", "--resume", "auto")
    assert answer.status == 0, answer.err
    assert "the middle of each image, 64x64" in answer.out
    assert json.loads((run_dir / "results.json").read_text())["protocol"]["mode"] == "center_crop"
    answer = evaluate_command("-m", run_dir / "best_model.pth", "--mode", "center_crop")
    assert answer.status == 0, answer.err
    assert "center_crop, size 64x64, fp32" in answer.out


def test_masks_that_hold_one_class_only_are_refused_with_the_cure(
    tmp_path: Path, train_command: Callable[..., Answer]
) -> None:
    write_folder(tmp_path, "binary")
    (tmp_path / "my.json").write_text(json.dumps(own_config(tmp_path, classes=["background", "object"])))
    answer = train_command("-c", tmp_path / "my.json", *SMALL)
    assert answer.status == 2
    (line,) = answer.errors
    assert line.startswith("train_loader: the labels hold no class but 'background', and void")
    assert '{"name": "object", "value": 255}' in line
    assert not (tmp_path / "saved").exists()
    for flag in ("--check", "--check-data"):
        answer = train_command("-c", tmp_path / "my.json", *SMALL, flag)
        assert (answer.status, answer.errors) == (2, [line])


def test_one_class_alone_is_refused(tmp_path: Path, train_command: Callable[..., Answer]) -> None:
    write_folder(tmp_path, "binary", 3)
    (tmp_path / "my.json").write_text(json.dumps(own_config(tmp_path, classes=["object"])))
    answer = train_command("-c", tmp_path / "my.json", *SMALL)
    assert answer.status == 2
    assert "one class" in answer.errors[0]


RECIPES = sorted([*(HOME / "configs").glob("*.json"), *PRESETS.glob("*/*.json")])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_a_right_config(path: Path) -> None:
    check_config(load_config(path))


def test_every_preset_is_listed_and_does_what_its_line_says(train_command: Callable[..., Answer]) -> None:
    answer = train_command("--list", "presets")
    assert answer.status == 0
    unwrapped = re.sub(r"\n {3,}", " ", answer.out)
    lines = dict(line.split(maxsplit=1) for line in unwrapped.splitlines()[1:])
    assert len(lines) == len(list(PRESETS.glob("*/*.json"))) == 24
    for name, text in lines.items():
        config = load_config(Path(name)), load_config(Path(name), ["optimizer.args.lr=0.5"])
        loader, trainer = config[0]["train_loader"]["args"], config[0]["trainer"]
        crop = loader["crop_size"]
        size = "x".join(map(str, crop)) if isinstance(crop, list) else crop
        what = f"{trainer['max_steps']:,} steps of {loader['batch_size']} crops of {size}"
        assert text.endswith(f": {what}, learning rate {config[0]['optimizer']['args']['lr']:g}.")
        assert config[1]["optimizer"]["args"] == {**config[0]["optimizer"]["args"], "lr": 0.5}
        assert "After" in (PRESETS / f"{name}.json").read_text().splitlines()[1]


def test_a_config_can_differ_from_a_preset_and_a_file_of_its_name_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.json").write_text('{"extends": "pspnet/voc", "name": "mine"}')
    expected = load_config(PRESETS / "pspnet" / "voc.json")
    assert load_config(tmp_path / "mine.json") == {**expected, "name": "mine"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pspnet").mkdir()
    (tmp_path / "pspnet" / "voc").write_text('{"name": "file"}')
    assert load_config(Path("pspnet/voc")) == {"name": "file"}
    assert load_config(tmp_path / "mine.json") == {"name": "mine"}
