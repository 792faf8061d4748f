"""Data that changed between training and what comes after it, and files with names that are no text."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
import train
from tests.conftest import call
from tests.tiny import tiny_config
from utils.run_folder import write_json


@pytest.fixture
def own(tmp_path: Path) -> tuple[Path, Path, Any]:
    """Eight images with masks, a config that holds two of them out, and what trains it."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for number in range(8):
        mask = rng.integers(0, 2, (24, 32), dtype=np.uint8)
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"m{number}.png")
        Image.fromarray(np.dstack([mask * 200] * 3)).save(tmp_path / "data" / "images" / f"m{number}.png")
    args = {
        "data_dir": str(tmp_path / "data"),
        "classes": ["no", "yes"],
        "batch_size": 2,
        "crop_size": 24,
        "split": "all",
    }
    section = {"type": "Folder", "args": {**args, "val_split": 2, "num_workers": 0, "augment": True}}
    config = tiny_config(tmp_path / "saved", train_loader=section, val_loader=None)
    config["trainer"]["epochs"] = 1
    write_json(tmp_path / "c.json", config)
    return tmp_path / "data", tmp_path / "saved" / "tiny", lambda *more: call(train, tmp_path / "c.json", *more)


def add(data: Path, name: str) -> None:
    for kind in ("images", "masks"):
        shutil.copy(data / kind / "m0.png", data / kind / name)


def test_where_images_have_come_a_run_does_not_go_on_and_its_evaluation_says_so(own: Any, tmp_path: Path) -> None:
    data, runs, launch = own
    answer = launch()
    assert answer.status == 0, answer.err
    (model,) = runs.glob("2*/best_model.pth")
    before = call(evaluate, "-m", model, "--output", tmp_path / "before.json")
    assert before.status == 0, before.err
    assert "notes" not in json.loads((tmp_path / "before.json").read_text())
    assert launch("--resume", "auto", "--epochs", "2").status == 0

    for number in range(3):
        add(data, f"a{number}.png")
    answer = launch("--resume", "auto", "--epochs", "3")
    assert answer.status == 2
    assert answer.errors[0].startswith("val_loader: there are other images to validate on")
    assert "start a new run" in answer.errors[0]
    after = call(evaluate, "-m", model, "--output", tmp_path / "after.json")
    assert after.status == 0
    assert "others are held out today, and some of them were trained on" in after.out + after.err
    assert len(json.loads((tmp_path / "after.json").read_text())["notes"]) == 1


def test_where_training_images_alone_have_come_a_run_does_not_go_on(own: Any) -> None:
    data, _, launch = own
    quiet = ("-s", "train_loader.args.val_split=null", "-s", "trainer.val=false", "-s", "trainer.monitor=off")
    assert launch(*quiet).status == 0
    add(data, "a.png")
    answer = launch(*quiet, "--resume", "auto", "--epochs", "2")
    assert answer.status == 2
    assert answer.errors[0].startswith("train_loader: there are other images to train on, than when ")


@pytest.mark.skipif(os.name != "posix", reason="names of files are text there")
def test_a_name_that_is_no_text_trains_to_the_end(own: Any) -> None:
    data, runs, launch = own
    try:
        for kind in ("images", "masks"):
            for number in range(8):
                path = data / kind / f"m{number}.png"
                os.rename(path, os.fsencode(path.parent) + b"/caf\xe9%d.png" % number)
    except OSError:
        pytest.skip("this file system takes text only")
    answer = launch()
    assert answer.status == 0, answer.err
    (folder,) = runs.glob("2*")
    assert (folder / "results.json").is_file()
    assert (folder / "report.html").is_file()


def test_a_prediction_of_a_very_long_name_is_written_under_a_short_one() -> None:
    from engine.results import file_name

    assert file_name("a/b") == "a_b"
    long = {file_name(f"{'a' * 150}/{'b' * 150}/{number}") for number in range(3)}
    assert len(long) == 3
    assert max(map(len, long)) < 100
