"""A config of pytorch-segmentation becomes one of ours, and every change is said."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.check import check_config
from engine.migrate import BACKBONES, migrate
from tests.conftest import HOME, Answer
from utils.config import load_config

OLD = load_config(HOME / "configs" / "voc_pspnet.json")  # the example of their documents, key by key


def old(**changes: Any) -> dict[str, Any]:
    """Their example with some of its sections replaced."""
    return {**copy.deepcopy(OLD), **changes}


def said(found: Any, place: str) -> bool:
    return any(line.startswith(f"{place}: ") for line in found.changes)


@pytest.mark.parametrize("model", BACKBONES)
def test_every_model_of_theirs_gives_a_right_config(model: str) -> None:
    given = old(arch={"type": model, "args": {"freeze_bn": False, "freeze_backbone": False}})
    before = copy.deepcopy(given)
    found = migrate(given)
    config = check_config(found.config)
    assert config.arch.type == model
    assert given == before
    if BACKBONES[model]:
        assert said(found, "arch.args.backbone")
        assert found.config["arch"]["args"]["backbone"] == BACKBONES[model]


def test_their_example_keeps_what_means_the_same() -> None:
    found = migrate(OLD)
    check_config(found.config)
    new = found.config
    assert new["train_loader"] == OLD["train_loader"]
    assert new["val_loader"] == OLD["val_loader"]
    assert new["optimizer"] == OLD["optimizer"]
    assert new["arch"]["args"] == {**OLD["arch"]["args"], "pretrained": True, "deep_stem": True}
    # Theirs stops at the 11th validation without a better one, five epochs apart; it logs every 20 images.
    assert new["trainer"] == {**OLD["trainer"], "early_stop": 55, "log_per_iter": 1}


@pytest.mark.parametrize(
    ("section", "value", "place"),
    [
        ("loss", "DiceLoss", "loss.args.per_class"),
        ("loss", "CE_DiceLoss", "loss.args.per_class"),
        ("lr_scheduler", {"type": "OneCycle", "args": {"warmup": 3}}, "lr_scheduler.args"),
        ("arch", {"type": "DeepLab", "args": {"backbone": "xception"}}, "arch.args.backbone"),
        ("arch", {"type": "UNet", "args": {"freeze_bn": False, "pretrained": True}}, "arch.args.pretrained"),
        ("arch", {"type": "ENet", "args": {"backbone": "resnet50"}}, "arch.args.backbone"),
        ("arch", {"type": "ENet", "args": {"droput": 0.5}}, "arch.args.droput"),
        ("augmentations", {"flip": True}, "augmentations"),
    ],
)
def test_what_differs_is_changed_and_said(section: str, value: Any, place: str) -> None:
    found = migrate(old(**{section: value}))
    check_config(found.config)
    assert said(found, place), found.changes


def test_contradictions_that_their_loader_settles_in_silence_are_settled_aloud() -> None:
    given = old()
    given["val_loader"]["args"] |= {"augment": True, "flip": True, "scale": True}
    given["train_loader"] = {
        "type": "COCO",
        "args": {
            "data_dir": "data",
            "split": "train2017",
            "batch_size": 8,
            "augment": True,
            "crop_size": 96,
            "mode": "fine",
        },
    }
    given["val_loader"]["type"] = "COCO"
    given["val_loader"]["args"]["split"] = "val2017"
    found = migrate(given)
    check_config(found.config)
    for place in ("val_loader.args.augment", "val_loader.args.flip", "train_loader.args.mode"):
        assert said(found, place), found.changes
    assert found.config["train_loader"]["args"]["label_set"] == 182
    assert found.config["train_loader"]["args"]["scale"] is True


def test_a_config_without_validation_is_migrated_as_a_whole() -> None:
    given = old(val_loader=None)
    given["train_loader"]["args"]["val_split"] = 0.1
    found = migrate(given)
    check_config(found.config)
    assert said(found, "trainer.early_stop")


def test_migrate_writes_the_config_and_lists_the_changes(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(OLD))
    answer = prepare_command("migrate", path)
    assert answer.status == 0, answer.err
    assert "trainer.early_stop: 10 is now 55. Theirs counts validations" in answer.out
    check_config(load_config(tmp_path / "old-migrated.json"))
    assert prepare_command("migrate", path).status == 2
    assert prepare_command("migrate", path, "--force").status == 0


def test_migrate_says_what_is_left_to_fix(tmp_path: Path, prepare_command: Callable[..., Answer]) -> None:
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old(optimizer={"type": "SDG", "args": {"lr": 0.01}})))
    answer = prepare_command("migrate", path, "-o", tmp_path / "new.json")
    assert answer.status == 3
    assert "still to fix by hand:\noptimizer" in answer.out
    assert (tmp_path / "new.json").exists()
    for number, broken in enumerate(({"arch": "FCN8", "trainer": 3}, {"val_loader": {"args": []}}, {"trainer": None})):
        path.write_text(json.dumps(broken))
        answer = prepare_command("migrate", path, "-o", tmp_path / f"broken{number}.json")
        assert answer.status == 3
    assert prepare_command("migrate", tmp_path / "none.json").status == 2
