"""What a config means as a whole: what can be monitored, how validation is stamped, what contradicts what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.assemble import validation_protocol
from engine.check import check_config
from engine.config import RunConfig, evaluation_data, evaluation_section, result_keys
from tests.tiny import tiny_config
from utils.errors import ConfigError
from utils.protocol import EvaluationProtocol


def checked(**changes: Any) -> RunConfig:
    return check_config(tiny_config(Path("saved"), **changes))


def validated_on(**args: Any) -> dict[str, Any]:
    """A `val_loader` section."""
    return {"type": "Squares", "args": {"batch_size": 1, "split": "val", **args}}


@pytest.mark.parametrize(
    ("args", "mode", "size"),
    [
        ({}, "single", "native"),
        ({"val": True, "crop_size": [33, 41]}, "center_crop", [33, 41]),
        ({"crop_size": 33}, "random_crop", [33, 33]),
        ({"augment": True, "crop_size": 33}, "augmented", [33, 33]),
        ({"resize": {"short_side": 50}}, "single", "resized"),
        ({"resize": {"size": [50, 60]}}, "single", [50, 60]),
        ({"transforms": []}, "transforms", "native"),
    ],
)
def test_figures_are_stamped_with_what_validation_looked_at(args: dict[str, Any], mode: str, size: Any) -> None:
    stamp = validation_protocol(checked(val_loader=validated_on(**args))).to_json()
    assert (stamp["mode"], stamp["size"]) == (mode, size)


def test_a_run_without_validation_is_stamped_so() -> None:
    trainer = {**tiny_config(Path("saved"))["trainer"], "val": False, "monitor": "off"}
    assert validation_protocol(checked(trainer=trainer)).to_json() == {"mode": "none"}


def test_what_is_held_out_is_stamped_and_validated_without_augmentation() -> None:
    loader = tiny_config(Path("saved"))["train_loader"]
    loader["args"] |= {"val_split": 0.25}
    config = checked(train_loader=loader, val_loader=None)
    stamp = validation_protocol(config).to_json()
    assert (stamp["mode"], stamp["size"], stamp["held_out"]) == ("center_crop", [32, 32], 0.25)
    assert evaluation_data(evaluation_section(config, split="val")).held_out is None


@pytest.mark.parametrize("args", [{"augment": True, "crop_size": 33, "flip": True}, {"resize": {"short_side": 50}}])
def test_evaluation_looks_at_whole_images_whatever_validation_did(args: dict[str, Any]) -> None:
    data = evaluation_data(evaluation_section(checked(val_loader=validated_on(**args))))
    stamp = EvaluationProtocol(data=data).to_json()
    assert (stamp["mode"], stamp["size"]) == ("single", "native")


def test_every_key_of_the_results_can_be_monitored() -> None:
    keys = result_keys(checked(loss=["CrossEntropyLoss2d", "DiceLoss", {"type": "DiceLoss", "factor": 2.0}]))
    assert {"train/loss", "val/loss", "val/CrossEntropyLoss2d", "val/DiceLoss", "val/DiceLoss_2"} <= set(keys)
    assert "val/Class_IoU/square" in keys
    assert "val/CrossEntropyLoss2d" not in result_keys(checked())  # a single term is the loss


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"lr_scheduler": "ReduceLROnPlateau"},
            'lr_scheduler.args.mode: "min", but trainer.monitor is of mode "max". Set both alike.',
        ),
        (
            {"lr_scheduler": "ReduceLROnPlateau", "trainer": {"epochs": 1, "monitor": "off"}},
            "lr_scheduler: ReduceLROnPlateau needs a trainer.monitor to look at.",
        ),
        (
            {
                "arch": {"type": "UNet", "args": {"in_channels": 1}},
                "normalization": {"mean": [0.5], "std": [0.25]},
            },
            "arch.args.in_channels: 1, but the images have 3 channels. Set it to 3.",
        ),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        checked(**changes)
    (line,) = error.value.problems
    assert line.startswith(expected)


def test_a_plateau_of_the_monitors_mode_is_right() -> None:
    checked(lr_scheduler={"type": "ReduceLROnPlateau", "args": {"mode": "max"}})
