"""The network that comes with the repository: CamVid's, of configs/camvid.json."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dataloader.datasets.camvid import CamVid
from tests.conftest import ROOT
from utils.config import load_config

pytest.importorskip("safetensors")
FOLDER = ROOT / "trained" / "camvid"
FRAMES = Path(__file__).parents[2] / "shared" / "data" / "camvid"


def test_it_is_small_and_predicts_images_of_any_size() -> None:
    import segwright

    assert (FOLDER / "model.safetensors").stat().st_size < 10_000_000
    predictor = segwright.load(FOLDER / "model.safetensors")
    assert predictor.predict(np.zeros((101, 203, 3), np.uint8)).shape == (101, 203)
    assert "road" in predictor.classes.names


def test_it_is_the_recipe_s_and_names_nobody_s_folders() -> None:
    import segwright

    about = segwright.load(FOLDER / "model.safetensors").about
    recipe = load_config(ROOT / "configs" / "camvid.json")
    assert about["config"]["normalization"] == recipe["normalization"]
    assert about["config"]["trainer"]["max_steps"] == recipe["trainer"]["max_steps"]
    assert (
        about["arch"]["args"]["backbone"]["args"]["width_mult"]
        == recipe["arch"]["args"]["backbone"]["args"]["width_mult"]
    )
    assert about["config"]["train_loader"]["args"]["data_dir"] == recipe["train_loader"]["args"]["data_dir"]
    last = json.loads((FOLDER / "metrics.jsonl").read_text().splitlines()[-1])
    assert json.loads((FOLDER / "results.json").read_text())["metrics"]["val/Mean_IoU"] == last["val/Mean_IoU"]


@pytest.mark.skipif(not FRAMES.is_dir(), reason="CamVid's frames are not here")
def test_it_sees_streets() -> None:
    import segwright

    predictor = segwright.load(FOLDER / "model.safetensors")
    frames = CamVid(data_dir=FRAMES, split="val")
    right = known = 0
    for index in range(0, len(frames), 10):
        item = frames.read(index)
        counts = item.label != 255
        right += int((predictor.predict(item.image) == item.label)[counts].sum())
        known += int(counts.sum())
    assert right / known > 0.88
