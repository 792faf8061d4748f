"""benchmarks/camvid.py holds out what it says, trains what is not trained yet, and takes the last step's figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from benchmarks import camvid, camvid_networks, results
from engine.assemble import build_loaders
from tests.conftest import ROOT
from utils.config import load_config, override
from utils.errors import ConfigError

DRIVES = {"0016E5": 5, "0006R0": 3, "0001TP": 2}
SMALL = {
    "extends": str(ROOT / "configs" / "camvid.json"),
    "arch": {"type": "EncoderDecoder", "args": {"backbone": "resnet18", "head": "FCNHead", "necks": []}},
    "train_loader": {"args": {"batch_size": 2, "base_size": 48, "crop_size": 32}},
    "loss": "CrossEntropyLoss2d",
    "trainer": {"max_steps": 2, "precision": "fp32", "val_per_epochs": 1},
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of the layout of CamVid, with pictures of noise from three drives."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in (split, f"{split}annot"):
            (tmp_path / "data" / kind).mkdir(parents=True)
        for drive, frames in DRIVES.items():
            for frame in range(frames):
                name = f"{drive}_{frame:05d}.png"
                image = rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)
                cv2.imwrite(str(tmp_path / "data" / split / name), image)
                cv2.imwrite(str(tmp_path / "data" / f"{split}annot" / name), image[..., 0] % 12)
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of two steps, in the working directory; results go there, too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    path = tmp_path / "small.json"
    path.write_text(json.dumps(SMALL))
    return path


@pytest.mark.parametrize("drive", DRIVES)
def test_a_drive_is_held_out_whole_and_the_others_train_for_as_many_steps(drive: str, data: Path) -> None:
    raw = load_config(camvid.RECIPE)
    steps = {}
    for on in (camvid.VALIDATION, drive):
        case = camvid.Case("recipe", on, 3)
        config = camvid.member(case, raw, ["train_loader.args.batch_size=2"], data, data.parent).config
        steps[on] = config.trainer.max_steps
    train, held_out = build_loaders(config, cached=False)
    assert held_out is not None
    assert {train.view.key(i)[:6] for i in range(len(train.view))} == set(DRIVES) - {drive}
    assert [held_out.view.key(i)[:6] for i in range(len(held_out.view))] == [drive] * DRIVES[drive]
    assert steps[drive] == steps[camvid.VALIDATION]
    assert config.seed == 3


@pytest.mark.parametrize("path", [camvid.RECIPE, camvid.ROOT / "benchmarks" / "camvid_half.json"])
def test_every_ablation_is_a_right_config_and_none_is_the_recipe(path: Path, data: Path) -> None:
    raw = load_config(path)
    for name, changes in camvid.ABLATIONS.items():
        assert override(raw, changes) != raw, name
        camvid.member(camvid.Case(name, "0006R0", 0), raw, changes, data, data.parent)


@pytest.mark.parametrize(
    ("words", "variants"),
    [
        ([], ["recipe"]),
        (["--ablations"], ["recipe", *camvid.ABLATIONS]),
        (["--ablations", "focal", "--set", "mine", "trainer.ema=null"], ["recipe", "focal", "mine"]),
        (["--set", "as it is", "trainer.ema=0.995"], ["recipe"]),
    ],
)
def test_variants_are_those_that_were_named(
    words: list[str], variants: list[str], tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(camvid, "train_all", lambda members, words: seen.extend(case.variant for case in members) or {})
    out = str(tmp_path / "out")
    assert camvid.main([str(data), "--on", "0006R0", "--seeds", "0", "--out", out, *words]) == 0
    assert seen == variants


def test_what_is_trained_is_passed_over_and_what_the_table_shows_is_the_last_step(
    tmp_path: Path, data: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [str(data), "--recipe", str(recipe), "--on", "0006R0", "--seeds", "1"]
    assert camvid.main(words) == 0
    (folder,) = (tmp_path / "saved" / "benchmark-camvid").glob("*/*-*")
    (last,) = (folder / "metrics.jsonl").read_text().splitlines()[-1:]
    monkeypatch.setattr(camvid, "train_member", lambda *_, **__: pytest.fail("trained again"))
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "git": "of then"}))
    assert camvid.main([*words, "--json"]) == 0
    written = results.read("camvid", tmp_path / "results")
    (value,) = written["figures"]
    assert (written["environment"]["git"], written["environment"]["device"]) == ("of then", environment["device"])
    assert (value["what"], value["unit"]) == ("recipe: unseen drive 0006R0", "%")
    assert [each["mean"] for each in written["runs"]] == [100 * json.loads(last)["val/Mean_IoU"]]
    assert value["median"] == pytest.approx(written["runs"][0]["mean"], rel=1e-3)  # four digits
    classes = ["pole", "fence"]
    assert camvid.main([*words, "--json", "--classes", *classes]) == 0
    values = json.loads(last)
    of_them = sum(values[f"val/Class_IoU/{name}"] for name in classes) / 2
    rows = results.read("camvid", tmp_path / "results")["figures"]
    assert {row["column"]: row["median"] for row in rows} == {
        "all classes": value["median"],
        "pole, fence": pytest.approx(100 * of_them, abs=0.01),
    }
    with pytest.raises(ConfigError, match=r"'poles'.* Did you mean 'pole'"):
        camvid.main([*words, "--classes", "poles"])


def test_runs_that_the_results_have_are_not_made_again(
    tmp_path: Path, data: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def train_all(members: dict[camvid.Case, Any], words: list[str]) -> dict[camvid.Case, Path]:
        asked.extend(map(str, members))
        return {case: Path(str(case.seed)) for case in members}

    def came_to(folder: Path) -> camvid.Outcome:
        return camvid.Outcome(40.0 + int(folder.name), {"pole": 9.0}, "abc", "cpu")

    monkeypatch.setattr(camvid, "train_all", train_all)
    monkeypatch.setattr(camvid, "came_to", came_to)
    words = [str(data), "--recipe", str(recipe), "--on", "0006R0", "--json", "small"]
    mine = ["--set", "mine", "trainer.ema=null"]
    for seeds in (["1"], ["0", "1"]):
        assert camvid.main([*words, *mine, "--seeds", *seeds]) == 0
    variants = ("recipe", "mine")
    assert asked == [f"{each}, 0006R0, seed {seed}" for seed in (1, 0) for each in variants]
    of_recipe, of_mine, difference = results.read("small", tmp_path / "results")["figures"]
    assert (difference["column"], difference["median"], difference["unit"]) == (camvid.BESIDE, 0, "points")
    assert (of_recipe["low"], of_recipe["high"], of_recipe["runs"]) == (40, 41, 2)
    assert of_mine["what"] == "mine: unseen drive 0006R0"

    asked.clear()
    assert camvid.main([*words, "--set", "mine", "trainer.ema=0.9", "--seeds", "0"]) == 0
    assert asked == ["mine, 0006R0, seed 0"]  # the recipe's are there; of the same name, these are others
    asked.clear()
    assert camvid.main([*words, "--steps", "3", "--seeds", "0"]) == 0
    assert asked == ["recipe, 0006R0, seed 0"]  # of another length


def test_epochs_are_refused_where_drives_differ_in_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "epochs.json"
    recipe.write_text(json.dumps({**SMALL, "trainer": {"epochs": 2, "max_steps": None}}))
    with pytest.raises(SystemExit):
        camvid.main([str(tmp_path), "--recipe", str(recipe)])
    assert "--steps" in capsys.readouterr().err


def test_every_network_of_the_table_is_a_right_config_of_the_recipe(data: Path) -> None:
    raw = load_config(camvid.RECIPE)
    for name, changes in camvid_networks.NETWORKS.items():
        camvid.member(camvid.Case(name, camvid.VALIDATION, 0), raw, changes, data, data.parent)


def test_networks_get_the_steps_that_fit_into_the_minutes(
    tmp_path: Path, data: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camvid_networks, "RECIPE", recipe)
    monkeypatch.setattr(camvid_networks, "ROUNDS", 1)
    names = ["ENet", "FastSCNN"]
    found: list[camvid.Figure] = []
    monkeypatch.setattr(camvid_networks, "write", lambda name, title, rows, **_: found.extend(rows))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "steps.json").write_text('{"ENet, 0.001 min": 3}')
    words = [str(data), "--only", *names, "--minutes", "0.001", "--out", str(tmp_path / "out"), "--json"]
    assert camvid_networks.main(words) == 0
    steps = json.loads((tmp_path / "out" / "steps.json").read_text())
    assert steps["ENet, 0.001 min"] == 3
    assert steps["FastSCNN, 0.001 min"] >= 1
    table = {(row.what, row.column): row.values[0] for row in found}
    assert {what for what, _ in table} == set(names)
    assert table["ENet", "steps of 8 crops"] == 3
    assert table["ENet", "parameters"] == pytest.approx(0.36, abs=0.02)
    assert 0 <= table["FastSCNN", "mean IoU"] <= 100
