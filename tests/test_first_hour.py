"""What a newcomer tries in the first hour: short commands, questions, other folders, the usual contradictions."""

from __future__ import annotations

import json
import logging
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import evaluate
import inference
import prepare
import segwright
import sweep
import train
from base.base_trainer import TrainerConfig
from engine.assemble import wrap_network
from engine.check import check_config
from engine.results import NOT_FETCHED, report_validation
from models import weights
from models.build import build_model
from tests.conftest import HOME, PREFIX, ROOT, Answer, program
from tests.tiny import tiny_config
from utils.errors import UserError
from utils.protocol import hash_of_names
from utils.registry import TRANSFORMS
from utils.version import VERSION

TINY = ("--import", "tests.tiny")
ONE_EPOCH = {"trainer.epochs": 1}
Command = Callable[..., Answer]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(path)
    return path


# ------------------------------------------------------------------------------------------- short commands


def test_a_config_may_be_named_without_its_flag(config_file: Any, train_command: Command, tmp_path: Path) -> None:
    answer = train_command(config_file({"trainer.max_steps": 900}), *TINY, "--epochs", "1")
    assert answer.status == 0, answer.err
    (stored,) = (tmp_path / "saved" / "tiny").glob("2*/config.json")
    trainer = json.loads(stored.read_text())["trainer"]
    assert (trainer["epochs"], trainer["max_steps"]) == (1, None)


@pytest.mark.parametrize("command", [train, evaluate, inference, prepare, sweep, segwright])
def test_every_command_says_its_version(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with suppress(SystemExit):
        command.main(["--version"])
    assert capsys.readouterr().out == f"segwright {VERSION}\n"
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


def test_the_newest_run_has_a_link_and_stands_for_its_best_model(
    config_file: Any, train_command: Command, evaluate_command: Command, inference_command: Command, tmp_path: Path,
    picture: Path,
) -> None:  # fmt: skip
    file = config_file(ONE_EPOCH)
    for _ in range(2):
        assert train_command(file, *TINY).status == 0
    runs = tmp_path / "saved" / "tiny"
    first, second = sorted(runs.glob("2*"))
    assert (runs / "latest").resolve() == second
    for model in (runs, runs / "latest", runs / "*" / "best_model.pth", runs / "2*"):
        answer = evaluate_command("-m", model, *TINY)
        assert answer.status == 0, answer.err
        said = "" if model.name == "latest" else ", the newest of 2"
        assert f"{said}\n" in answer.out.split("model: ")[1]
    answer = inference_command("-m", runs, "-i", picture, "-o", tmp_path / "out")
    assert answer.status == 0, answer.err
    assert segwright.load(runs / "latest", device="cpu").predict(picture).shape == (40, 48)
    answer = evaluate_command("-m", tmp_path / "saved" / "..", *TINY)
    assert (answer.status, answer.errors) == (
        2,
        [f"{tmp_path / 'saved' / '..'}: no best_model.pth in this folder. Name a checkpoint, a .pth file."],
    )
    assert train_command(file, *TINY, "--epochs", "2", "--resume", "auto").status == 0
    assert len(list(runs.glob("2*"))) == 2
    assert (runs / "latest").resolve() in (first, second)


# ------------------------------------------------------------------------------------------- questions


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("trainer", ["trainer (key of a config)", "  save_period: int of at least 1 = 10"]),
        ("optimizer", ["  layer_decay: a number above 0 and of at most 1 = 1.0"]),
        ("train_loader.args.crop_size", ["train_loader.args.crop_size (key of a config)"]),
        ("crop_size", ["train_loader.args.crop_size (key of a config)"]),
        ("optimizer.args.lr", ["  lr: a number = 0.01"]),
        ("arch.args", ['  freeze_backbone: true or false or "cached" = false']),
        ("train_loader.1.args.scale.range", ["train_loader.args.scale.range (key of a config)"]),
        ("val_loader", ["  args: an object; `--describe val_loader.args` lists it"]),
        ("loss", ["  factor: a number above 0 = 1.0"]),
        ("Mean_F1", ["Mean_F1 (metric; metrics)"]),
        ("pspnet/voc", ["pspnet/voc (preset)", '  "name": "pspnet_voc",']),
        ("DeepLabV3Plus", ["DeepLabV3Plus is called DeepLab here.", "DeepLab (model; models)"]),
        ("deeplabv3+", ["deeplabv3+ is called DeepLab here."]),
    ],
)
def test_sections_keys_presets_and_other_names_are_described(
    train_command: Command, name: str, lines: list[str]
) -> None:
    answer = train_command("--describe", name)
    assert answer.status == 0, answer.err
    assert set(lines) <= set(answer.out.splitlines())


@pytest.mark.parametrize(
    "name", ["trainer.epoch", "train_loader.arg", "trainer.epochs.x", "optimizer.parts", "..", "a.b"]
)
def test_what_is_no_key_is_not_described(train_command: Command, name: str) -> None:
    status = 0 if name == "optimizer.parts" else 2
    assert train_command("--describe", name).status == status


def test_descriptions_of_torchs_own_have_no_formulas_in_tex(train_command: Command) -> None:
    for name in ("Adam", "SGD", "Rprop", "CosineAnnealingLR", "OneCycleLR", "NAdam"):
        out = train_command("--describe", name).out
        assert not any(mark in out for mark in ("\\", ":math:", ".. ", "`_"))
    out = train_command("--describe", "Adam").out
    assert "  lr: a number = 0.001\n      learning rate (default: 1e-3)" in out


def test_lists_point_at_the_schema(train_command: Command) -> None:
    for question in (("--list", "losses"), ("--describe", "trainer")):
        assert f'"$schema": "{HOME / "config.schema.json"}"' in train_command(*question).out


def test_what_others_call_a_component_is_suggested(config_file: Any, train_command: Command) -> None:
    answer = train_command(config_file({"arch": "DeepLabV3Plus"}), *TINY)
    assert answer.errors == ["arch: no model is called 'DeepLabV3Plus'. Did you mean 'DeepLab'?"]


# ------------------------------------------------------------------------------------------- in Python


def test_segwright_trains_in_this_process_and_returns_the_folder_of_the_run(config_file: Any, tmp_path: Path) -> None:
    file = config_file()
    folder = segwright.train(file, overrides={"trainer.epochs": 1, "name": "python"}, device="cpu", modules=TINY[1:])
    assert folder.parent == tmp_path / "saved" / "python"
    assert json.loads((folder / "results.json").read_text())["epoch"] == 1
    again = segwright.train(
        file, overrides={"trainer.epochs": 2, "name": "python"}, resume=folder / "last.pth", modules=TINY[1:]
    )
    assert again == folder
    assert torch.load(folder / "last.pth", weights_only=True)["epoch"] == 2
    results = segwright.evaluate(folder, device="cpu", modules=TINY[1:])
    assert results["images"] == 3
    with pytest.raises(UserError, match="epoch: unknown key"):
        segwright.train(file, overrides={"trainer.epoch": 1}, modules=TINY[1:])


# ------------------------------------------------------------------------------------------- own components

OWN = f"""\
import torch
from {PREFIX}utils.losses.cross_entropy import FocalLoss
from {PREFIX}utils.registry import HEADS, LOSSES
from {PREFIX}models.heads.fcn import FCNHead
LOSSES.register("OwnLoss", gamma=1.5)(FocalLoss)
"""


def test_a_module_is_found_in_the_current_folder_and_only_asked_for_where_it_is_needed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "saved", loss="OwnLoss")
    config["train_loader"] = {"type": "Synthetic", "args": {"length": 4, "split": "train", "batch_size": 2}}
    config["train_loader"]["args"] |= {"crop_size": 64, "augment": True, "num_workers": 0, "size": [64, 80]}
    config["val_loader"] = {"type": "Synthetic", "args": {"length": 2, "split": "val", "batch_size": 1}}
    config["val_loader"]["args"] |= {"num_workers": 0, "size": [64, 80]}
    config["trainer"]["epochs"] = 1
    (tmp_path / "own_losses.py").write_text(OWN)
    (tmp_path / "own_head.py").write_text(OWN.replace('LOSSES.register("OwnLoss", gamma=1.5)(FocalLoss)', "")
                                          + 'HEADS.register("OwnHead")(FCNHead)\n')  # fmt: skip
    config["arch"]["args"]["head"]["type"] = "OwnHead"
    (tmp_path / "my.json").write_text(json.dumps(config))

    def run(command: ModuleType, *words: Any) -> subprocess.CompletedProcess[str]:
        line = [*program(command), *words, "-d", "cpu"]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    done = run(train, "my.json", "--import", "own_losses", "--import", "own_head")
    assert done.returncode == 0, done.stderr
    model = tmp_path / "saved" / "tiny" / "latest"
    done = run(evaluate, "-m", model, "--import", "own_head")
    assert done.returncode == 0, done.stderr
    done = run(evaluate, "-m", model)
    assert done.stderr.endswith(": was made with components of your own. Add --import own_head.\n")
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / "a.png")
    done = run(inference, "-m", model, "-i", "a.png", "--import", "own_head")
    assert done.returncode == 0, done.stderr
    done = run(train, "--resume", model / "last.pth", "--import", "own_head")
    assert done.stderr.endswith(": was made with components of your own. Add --import own_losses.\n")


# ------------------------------------------------------------------------------------------- other folders


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a config in `configs/` and images beside it."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "configs" / "data" / kind / split).mkdir(parents=True)
        for number in range(3):
            label = np.zeros((40, 48), np.uint8)
            label[number : 20 + number] = 1
            name = f"{split}/{number}.png"
            Image.fromarray(label).save(tmp_path / "configs" / "data" / "masks" / name)
            image = np.repeat(90 * label[..., None], 3, axis=2)
            Image.fromarray(image).save(tmp_path / "configs" / "data" / "images" / name)
    (tmp_path / "configs" / "names.json").write_text('["ground", "sky"]')
    loader = {"data_dir": "data", "classes": "names.json", "batch_size": 2, "num_workers": 0}
    config = tiny_config(
        Path("saved"), train_loader={"type": "Folder", "args": {**loader, "split": "train", "crop_size": 32}}
    )
    config["val_loader"] = {"type": "Folder", "args": {**loader, "split": "val"}}
    (tmp_path / "configs" / "base.json").write_text(json.dumps(config))
    child = {"extends": "base.json", "trainer": {"epochs": 1}}
    (tmp_path / "configs" / "my.json").write_text(json.dumps(child))
    return tmp_path


def test_paths_in_a_config_are_relative_to_it_whatever_the_current_folder(
    project: Path, train_command: Command, evaluate_command: Command, prepare_command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(project)
    answer = train_command("configs/my.json")
    assert answer.status == 0, answer.err
    assert "current folder" not in answer.err
    (run,) = (project / "saved" / "tiny").glob("2*")
    assert "val_loader: 3 images" in prepare_command("check", "-c", "configs/my.json").out
    elsewhere = project / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    answer = evaluate_command("-m", run)  # the checkpoint still finds the data and the names
    assert answer.status == 0, answer.err
    assert train_command("--check", run / "config.json").status == 0
    assert train_command("--check", "../configs/my.json").status == 0
    monkeypatch.chdir(project / "configs")
    words = ("my.json", "--set", f"trainer.save_dir={project / 'saved'}", "--epochs", "2", "--resume")
    for checkpoint in ("auto", run / "last.pth"):
        answer = train_command(*words, checkpoint)
        assert answer.status == 0, answer.err
    assert torch.load(run / "last.pth", weights_only=True)["epoch"] == 2


def test_what_is_not_beside_the_config_is_looked_for_in_the_current_folder_which_is_said(
    project: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = project / "deep"
    deep.mkdir()
    (project / "configs" / "my.json").rename(deep / "my.json")
    monkeypatch.chdir(project / "configs")
    answer = train_command("--check", "../deep/my.json")
    assert answer.status == 0, answer.err
    assert answer.err == (
        "../deep/my.json: extends: base.json is that of the current folder; there is no ../deep/base.json\n"
    )
    (project / "configs" / "data").rename(deep / "data")
    monkeypatch.chdir(deep)
    (deep / "my.json").write_text('{"extends": "../configs/base.json", "trainer": {"epochs": 1}}')
    answer = train_command("--check", "my.json")
    assert answer.status == 0, answer.err
    assert "data_dir: data is that of the current folder; there is no ../configs/data\n" in answer.err
    answer = train_command("--check", "my.json", "--set", "train_loader.args.data_dir=nowhere")
    assert "no folder nowhere" in answer.errors[0]
    (deep / "my.json").write_text('{"extends": "nothing.json"}')
    answer = train_command("my.json")
    assert answer.errors == [
        "my.json: extends: there is no file nothing.json, nor a preset of that name. Name a file beside this one."
    ]


def test_a_run_of_before_paths_were_found_beside_the_config_still_goes_on(
    project: Path, train_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project / "configs")
    assert train_command("my.json").status == 0
    (run,) = (project / "configs" / "saved" / "tiny").glob("2*")
    for file in run.glob("*.pth"):
        state = torch.load(file, weights_only=True)
        for loader in ("train_loader", "val_loader"):
            state["config"][loader]["args"] |= {"data_dir": "data", "classes": "names.json"}
        torch.save(state, file)
    (run / "config.json").write_text(json.dumps(state["config"]))
    answer = train_command("my.json", "--resume", "auto", "--epochs", "2")
    assert answer.status == 0, answer.err
    assert "going on from" in answer.out
    assert train_command("--resume", run / "last.pth", "--epochs", "3").status == 0


# ------------------------------------------------------------------------------------------- the usual mistakes

LOADER = "train_loader.args"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"optimizer.args.lr": -0.1}, ["optimizer.args.lr: -0.1, which SGD refuses: Invalid learning rate: -0.1. Cha"]),
        (
            {"nam": 1, "trainer.accumulate": 2, f"{LOADER}.batch_size": 5, "trainer.monitor": "x"},
            ["nam: unknown key.", f"{LOADER}.batch_size: 5 is not divisible", "trainer.monitor: expected"],
        ),
        (
            {"trainer.epoch": 3, "ignore_index": 7, "arch.args.in_channels": 4, "name": ".."},
            ["trainer.epoch: unknown key.", "name: ", "arch.args.in_channels: 4, but", "ignore_index: 7 is no class"],
        ),
        (
            {f"{LOADER}.base_size": None, f"{LOADER}.scale": {"side": "short"}},
            [f'{LOADER}.scale.side: has no effect without "base_size", whose side it says. Give that, or remove it.'],
        ),
        (
            {"arch.args.backbone": {"type": "resnet18", "args": {"output_stride": 16}}},
            [
                "arch.args.output_stride: 8 contradicts arch.args.backbone.args.output_stride, 16, which would win. "
                "Remove one of the two."
            ],
        ),
        (
            {"arch": {"type": "resnet18+FCNHead", "args": {"output_stride": 8, "resnet18": {"output_stride": 32}}}},
            ["arch.args.output_stride: 8 contradicts arch.args.resnet18.output_stride, 32, which would win."],
        ),
        (
            {"arch": {"type": "EoMT", "args": {"backbone": "timm/test_vit", "patch": 8}}, "loss": "MaskLoss"},
            ["arch.args.patch: has no effect with a backbone. Remove it."],
        ),
        ({"arch": "resnet18"}, ["arch: 'resnet18' is a backbone, and no model alone. Add a head to it, as in 'resn"]),
        (
            {LOADER: {"batch_size": 2, "num_workers": 0, "transforms": ["Resizing"]}},
            [f"{LOADER}.transforms: 'square_0000' comes out as 40x48 and 'square_0001' as 80x96, which do not fit"],
        ),
    ],
)  # fmt: skip
def test_contradictions_are_named_before_anything_is_done(
    config_file: Any, train_command: Command, changes: dict[str, Any], expected: list[str]
) -> None:
    for flags in ([], ["--check"]):
        answer = train_command(config_file(changes), *TINY, *flags)
        assert answer.status == 2
        assert len(answer.errors) == len(expected), answer.errors
        for line, start in zip(answer.errors, expected, strict=True):
            assert line.startswith(start)


@TRANSFORMS.register("Resizing")
class Resizing:
    """Makes every other image twice as large."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        self.count += 1
        factor = 2 - self.count % 2
        return np.tile(image, (factor, factor, 1)), np.tile(label, (factor, factor))


def test_the_config_of_a_run_is_never_found_contradictory(config_file: Any, train_command: Command) -> None:
    config = json.loads(config_file(ONE_EPOCH).read_text())
    config["arch"]["args"]["backbone"]["args"]["output_stride"] = 8
    resolved = check_config(config).to_json()
    resolved["arch"]["args"]["backbone"]["args"]["output_stride"] = 16
    resolved["train_loader"]["args"] |= {"base_size": None, "scale": {"side": "short"}}
    assert check_config(resolved).train.chain.base_size is None


def test_nan_in_json_is_named_by_its_key(train_command: Command, tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"a": [{"b": 1}],\n // NaN\n "optimizer": {"x": "}", "args": {"lr": NaN}}}')
    answer = train_command(file)
    what = "line 3: optimizer.args.lr: NaN is no number to train with. Give a finite number."
    assert answer.errors == [f"{file}: {what}"]


def test_flags_of_another_mode_are_refused(
    finished_run: Path, inference_command: Command, evaluate_command: Command, picture: Path
) -> None:
    lines = ["--overlap: has no effect in mode single. Use --mode sliding or leave it out."]
    words = ("-m", finished_run / "best_model.pth", *TINY, "--mode", "single", "--overlap", "0.5")
    assert inference_command(*words, "-i", picture).errors == lines
    assert evaluate_command(*words).errors == lines


def test_bricks_without_a_head_get_a_plain_one_and_the_seeds_name_of_a_backbone_is_known(
    config_file: Any, train_command: Command
) -> None:
    answer = train_command(config_file({"arch": "resnet18+aspp_plus"}), *TINY, "--check")
    assert answer.status == 0, answer.err
    assert "arch: 'resnet18+aspp_plus' has no head, so it gets a plain FCNHead." in answer.out
    assert "resnet18+aspp_plus+FCNHead, 3 classes" in answer.out
    arch = {"type": "DeepLab", "args": {"backbone": "xception", "output_stride": 16}}
    answer = train_command(config_file({"arch": arch}), *TINY, "--check")
    assert answer.status == 0, answer.err
    assert "parameters  54.7" in answer.out


# ------------------------------------------------------------------------------------------- what a run says


def test_a_run_that_stops_early_says_so_everywhere(config_file: Any, train_command: Command, tmp_path: Path) -> None:
    changes = {"trainer.epochs": 9, "trainer.early_stop": 1, "trainer.monitor": "min val/Mean_IoU_all_classes"}
    answer = train_command(config_file({**changes, "optimizer.args.lr": 1e-9}), *TINY)
    assert answer.status == 0, answer.err
    (run,) = (tmp_path / "saved" / "tiny").glob("2*")
    results = json.loads((run / "results.json").read_text())
    text = "stopped early (trainer.early_stop 1) after step "
    assert text in answer.out
    assert text in (run / "train.log").read_text()
    assert any(text in note for note in results["notes"])
    assert results["stopped_early"] is True
    assert results["steps"] < results["planned_steps"] == 45


@pytest.mark.parametrize(
    ("gain", "said"),
    [
        (0.2, "The model beats that guess by 0.2000."),
        (0.01, "The model is only 0.0100 better than that guess: it has learned little from the images. Train longer"),
        (-0.1, "The model is no better than that guess: it has learned little from the images. Train longer"),
    ],
)
def test_a_finished_run_says_whether_it_beats_guessing_by_place(
    gain: float, said: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("segwright"), "propagate", True)
    metrics = {"val/Mean_IoU": 0.3 + gain, "val/Pixel_Accuracy": 0.5, "val/Class_IoU/sky": 0.3}
    with caplog.at_level(logging.INFO, "segwright"):
        report_validation({"metrics": metrics, "epoch": 3, "location_prior": {"Mean_IoU": 0.3}}, ["sky"])
    assert caplog.messages[-1].startswith(said)
    guess = "Guessing each place's most frequent class, without looking at the image, scores Mean_IoU 0.3000."
    assert any(guess in message for message in caplog.messages)


def test_results_hold_the_confusion_matrix_and_say_which_images_they_are_of(
    config_file: Any, train_command: Command, evaluate_command: Command, tmp_path: Path
) -> None:
    file = config_file({"trainer.monitor": "max val/Pixel_Accuracy"})
    assert train_command(file, *TINY).status == 0
    (run,) = (tmp_path / "saved" / "tiny").glob("2*")
    results = json.loads((run / "results.json").read_text())
    answer = evaluate_command("-m", run, *TINY, "--output", tmp_path / "again.json")
    assert answer.status == 0, answer.err
    again = json.loads((tmp_path / "again.json").read_text())
    assert results["confusion_matrix"] == again["confusion_matrix"]
    assert results["protocol"] == again["protocol"]
    other = evaluate_command("-m", run, *TINY, "--split", "train", "--output", tmp_path / "other.json")
    assert other.status == 0, other.err
    assert json.loads((tmp_path / "other.json").read_text())["protocol"]["images"] != again["protocol"]["images"]
    assert hash_of_names(["a", "b"]) != hash_of_names(["b", "a"]) != hash_of_names(["ba"])


def test_weights_that_could_not_be_downloaded_are_remembered_on_resume(
    config_file: Any, train_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise weights.DownloadFailed("no route to host")

    monkeypatch.setattr(weights, "_public_state", refuse)
    file = config_file({**ONE_EPOCH, "arch.args.pretrained": True, "arch.args.backbone.args.width_mult": 1})
    for steps in (1, 2):
        answer = train_command(file, *TINY, "-s", f"trainer.max_steps={steps}", "--resume", "auto")
        assert answer.status == 0, answer.err
        (run,) = (tmp_path / "saved" / "tiny").glob("2*")
        results = json.loads((run / "results.json").read_text())
        assert (results["steps"], results["notes"][0]) == (steps, NOT_FETCHED)
        assert f"{NOT_FETCHED}\n" in answer.out
    made = torch.load(run / "last.pth", weights_only=True)["environment"]
    assert made["lacks_pretrained"]  # for who goes on from here


@pytest.mark.parametrize("damage", ["", "PK"])
def test_resume_says_which_file_is_damaged_and_which_is_used(
    config_file: Any, train_command: Command, tmp_path: Path, damage: str
) -> None:
    file = config_file({"trainer.epochs": 2})
    assert train_command(file, *TINY).status == 0
    (run,) = (tmp_path / "saved" / "tiny").glob("2*")
    (run / "last.pth").write_text(damage)
    answer = train_command(file, *TINY, "--resume", "auto", "--epochs", "3")
    assert answer.status == 0, answer.err
    (line,) = [line for line in answer.out.splitlines() if line.startswith("warning: ") and "last.pth" in line]
    assert f"{run / 'last.pth'}: " in line
    assert "is empty" in line or "is damaged" in line
    assert line.endswith(f"Going on from {run / 'last.prev.pth'}.")
    (run / "last.pth").write_text(damage)
    answer = train_command("--resume", run / "last.pth", *TINY)
    assert answer.errors[0].endswith("Use last.prev.pth or another checkpoint beside it.")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SegNet", "ENet", "SegResNet"])
def test_networks_that_unpool_are_compiled_for_images_of_several_sizes(name: str) -> None:
    config = {"type": name, "args": {} if name == "ENet" else {"width_mult": 0.0625}}
    model = build_model(config, num_classes=3)
    network = wrap_network(model, TrainerConfig(epochs=1, compile=True))
    for size in ((64, 64), (96, 64), (65, 97)):
        output = network(torch.zeros(2, 3, *size, dtype=torch.uint8))
        output.logits.sum().backward()
        assert output.logits.shape[-2:] == size
