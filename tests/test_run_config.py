"""What a config means as a whole: what can be monitored, how validation is stamped, what contradicts what."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import dataloader.build as dataloader_build
import models.build as models_build
from dataloader.label_statistics import class_pixels
from engine import check, results
from engine.assemble import build_loaders, build_network, build_trainer, validation_protocol
from engine.check import check_config
from engine.config import RunConfig, evaluation_data, evaluation_section, meaning_of, result_keys
from engine.dry_run import dry_run
from engine.preflight import check_weights
from tests.conftest import HOME
from tests.tiny import tiny_config
from trainer import Trainer
from utils import registry, schema
from utils.errors import ConfigError
from utils.losses.cross_entropy import CrossEntropyLoss2d
from utils.lr_scheduler import Constant
from utils.protocol import EvaluationProtocol
from utils.registry import LOSSES, SCHEDULERS, TRANSFORMS
from utils.schema import check_arguments


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
        ({"resize": {"short_side": 50}}, "single", "short_side 50"),
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
    assert (stamp["mode"], stamp["size"], stamp["held_out"]) == ("single", "native", 0.25)
    assert evaluation_data(evaluation_section(config, split="val")).held_out is None
    loader["args"] |= {"val_crop_size": [24, 32]}
    stamp = validation_protocol(checked(train_loader=loader, val_loader=None)).to_json()
    assert (stamp["mode"], stamp["size"], stamp["held_out"]) == ("center_crop", [24, 32], 0.25)


def test_null_means_the_same_as_a_key_that_early_configs_do_not_know() -> None:
    resolved = checked().to_json()
    early = json.loads(json.dumps(resolved))
    assert early["train_loader"]["args"].pop("val_crop_size", "absent") is None
    assert meaning_of(early) == meaning_of(resolved) == checked().meaning


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
        ({"normalization": {"mean": [], "std": []}}, "normalization: 0 numbers of mean for 3 channels."),
    ],
)
def test_parts_that_contradict_each_other_are_refused(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        checked(**changes)
    (line,) = error.value.problems
    assert line.startswith(expected)


def test_a_plateau_of_the_monitors_mode_is_right() -> None:
    checked(lr_scheduler={"type": "ReduceLROnPlateau", "args": {"mode": "max"}})


# ------------------------------------------------------------------------------------------- parsed, not reread

# Modules that hold `check_arguments` by name.
ENTRANCES = (schema, registry, dataloader_build, models_build, check)


def test_a_walk_from_the_config_to_a_trainer_reads_every_section_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: Counter[tuple[str, str]] = Counter()

    def counting(target: Any, given: Any, *, where: str, **rest: Any) -> dict[str, Any]:
        name = getattr(getattr(target, "func", target), "__name__", "")
        entered[where, name] += 1
        return check_arguments(target, given, where=where, **rest)

    for module in ENTRANCES:
        monkeypatch.setattr(module, "check_arguments", counting)
    raw = tiny_config(tmp_path, loss=["DiceLoss", {"type": "FocalLoss"}], lr_scheduler="StepLR")
    del raw["arch"]["args"]["output_stride"]  # else the model adds it to its backbone's arguments, which is checked
    raw["lr_scheduler"] = {"type": "StepLR", "args": {"step_size": 3}}
    steps = [{"type": "CenterCrop", "args": {"size": 32}}, {"type": "RandomHorizontalFlip"}]
    further = {"type": "Squares", "args": {"length": 4, "transforms": steps}}
    raw["train_loader"] = [raw["train_loader"], further]
    config = check_config(raw)
    dry_run(config)
    loaders = build_loaders(config)
    next(iter(loaders[0].batches()))
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    build_trainer(config, run_dir, torch.device("cpu"), loaders=loaders, environment={})
    assert {where for where, _ in entered} >= {
        *("", "arch.args", "arch.args.backbone.args", "arch.args.head.args", "train_loader[0].args"),
        *("train_loader[1].args", "train_loader[1].args.transforms[0].args", "val_loader.args", "loss[0].args"),
        *("optimizer.args", "lr_scheduler.args", "trainer"),
    }
    assert {place: times for place, times in entered.items() if times > 1} == {}
    of_a_loader = {name for where, name in entered if where == "val_loader.args"}
    assert of_a_loader == {"LoaderOptions", "ChainOptions", "Squares"}


def test_nobody_above_the_data_and_the_models_reads_flat_arguments() -> None:
    root = HOME
    found = []
    for path in [*root.glob("*.py"), *root.glob("engine/*.py"), *root.glob("base/*.py")]:
        text = path.read_text(encoding="utf-8")
        found += [f"{path.name}: {match[0]}" for match in re.finditer(r"\w+\.args(\[|\.get\()\"\w+\"", text)]
    assert [line for line in found if not line.startswith("check.py: lr_scheduler.args.get")] == []


# --------------------------------------------------------------------------------------------- what is delivered


def test_a_loss_that_names_the_ignored_label_is_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []

    class NamesIgnored(CrossEntropyLoss2d):
        """Cross entropy that wants to know which label is void."""

        def __init__(self, ignore_index: int) -> None:
            super().__init__()
            given.append(ignore_index)

    monkeypatch.setitem(LOSSES._entries, "NamesIgnored", NamesIgnored)
    for ignore_index in (255, -1, 0):  # whatever a config calls void, labels arrive with 255
        dry_run(checked(loss="NamesIgnored", ignore_index=ignore_index))
    assert set(given) == {255}


class AsksForAll(CrossEntropyLoss2d):
    """Cross entropy that asks for every fact that a loss may ask for."""

    def __init__(
        self,
        num_classes: int,
        class_names: tuple[str, ...],
        class_pixels: list[int],
        total_steps: int,
        steps_per_epoch: int,
        seed: int,
        where: str,
    ) -> None:
        super().__init__()
        self.told = (num_classes, class_names, list(class_pixels), total_steps, steps_per_epoch, seed, where)


class OfThisRun(Constant):
    """A schedule that asks for what a loss may ask for, but for pixels."""

    def __init__(self, total_steps: int, steps_per_epoch: int, seed: int, num_classes: int) -> None:
        super().__init__(steps_per_epoch)
        self.told = (total_steps, steps_per_epoch, seed, num_classes)


def built(config: RunConfig, folder: Path) -> Trainer:
    folder.mkdir(exist_ok=True)
    return build_trainer(config, folder, torch.device("cpu"), loaders=build_loaders(config), environment={})


def test_a_loss_and_a_schedule_are_told_what_the_page_says_they_may_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES._entries, "AsksForAll", AsksForAll)
    monkeypatch.setitem(SCHEDULERS._entries, "OfThisRun", OfThisRun)
    config = checked(loss="AsksForAll", lr_scheduler="OfThisRun", seed=7)
    dry_run(config)
    trainer = built(config, tmp_path / "run")
    (loss,) = trainer.criterion.losses
    names = config.classes.names
    pixels = class_pixels(trainer.train_loader.view, 0)
    assert loss.told == (3, names, list(pixels), 15, 5, 7, "loss.args")
    assert sum(pixels) > 100
    assert trainer.schedule.told == (15, 5, 7, 3)


def test_a_fact_that_a_kind_is_not_told_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class KnowsClasses:
        """A transform that asks for what no transform is told."""

        num_classes: int

        def __call__(self, image: Any, label: Any, rng: Any) -> Any:
            return image, label

    monkeypatch.setitem(TRANSFORMS._entries, "KnowsClasses", KnowsClasses)
    section = {"type": "Squares", "args": {"length": 4, "batch_size": 1, "transforms": [{"type": "KnowsClasses"}]}}
    wanted = r"train_loader\.args\.transforms\[0\]: KnowsClasses asks for 'num_classes', which no transform is told"
    with pytest.raises(ConfigError, match=wanted):
        checked(train_loader=section)


@pytest.mark.parametrize(
    ("arch", "problem"),
    [
        ({"type": "EncoderDecoder", "args": {"backbone": "mscan_t", "head": "FCNHead"}}, "no public weights are known"),
        ("UNet", "UNet has no backbone"),
    ],
)
def test_weights_that_nobody_publishes_are_refused_before_training(arch: Any, problem: str) -> None:
    raw = tiny_config(Path("saved"))
    raw["arch"] = {"type": arch, "args": {}} if isinstance(arch, str) else arch
    raw["arch"]["args"]["pretrained"] = True
    with pytest.raises(ConfigError, match=rf"arch\.args\.pretrained: {problem}"):
        dry_run(check_config(raw))


@pytest.mark.parametrize("name", ["StepLR", "CyclicLR"])
def test_a_schedule_of_torch_that_cannot_take_a_step_is_refused_before_training(name: str) -> None:
    args = {"StepLR": {"step_size": 0}, "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2, "step_size_up": 0}}[name]
    with pytest.raises(ConfigError, match=rf"^lr_scheduler\.args: {name} refuses its arguments: .*division|modulo"):
        dry_run(checked(lr_scheduler={"type": name, "args": args}))


def test_notes_name_what_sees_a_part_of_a_batch_only(tmp_path: Path) -> None:
    trainer = tiny_config(tmp_path)["trainer"]
    loader = tiny_config(tmp_path)["train_loader"]
    loader["args"]["batch_size"] = 8

    def notes(number: int, **changes: Any) -> str:
        config = check_config(tiny_config(tmp_path, train_loader=loader, **changes))
        return "\n".join(results.notes(config, built(config, tmp_path / str(number))))

    assert notes(0, loss="DiceLoss") == ""
    in_parts = {**trainer, "accumulate": 4}
    found = notes(1, loss="DiceLoss", trainer=in_parts)
    assert "batch norm sees 2 images at a time, and its statistics are noisy below 4" in found
    assert "not of all its 8 images: DiceLoss and batch norm" in found
    arch = tiny_config(tmp_path)["arch"]
    frozen = {**arch, "args": {**arch["args"], "freeze_bn": True}}
    assert notes(2, loss="CrossEntropyLoss2d", trainer=in_parts, arch=frozen) == ""
    assert "batch norm sees" not in notes(3, trainer={**trainer, "accumulate": 2})


def test_only_a_backbone_of_public_weights_is_said_to_need_them(tmp_path: Path) -> None:
    raw = tiny_config(tmp_path)
    said = []
    for width in (0.125, 1):
        raw["arch"]["args"]["backbone"]["args"]["width_mult"] = width
        config = check_config(raw)
        said.append(results.RANDOM_START in results.notes(config, built(config, tmp_path / str(width))))
    assert said == [False, True]


@pytest.mark.parametrize("wrapped", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
def test_the_check_before_training_takes_the_weights_that_training_takes(tmp_path: Path, wrapped: Any) -> None:
    raw = tiny_config(tmp_path)
    with torch.device("cpu"):
        backbone = build_network(check_config(raw)).get_submodule("backbone")
    file = tmp_path / "backbone.pth"
    torch.save(wrapped({f"module.{key}": value for key, value in backbone.state_dict().items()}), file)
    raw["arch"]["args"]["pretrained"] = str(file)
    config = check_config(raw)
    check_weights(config)
    build_network(config)


def test_the_check_before_training_refuses_what_holds_no_weights(tmp_path: Path) -> None:
    file = tmp_path / "text.pth"
    torch.save({"model": "resnet"}, file)
    raw = tiny_config(tmp_path)
    raw["arch"]["args"]["pretrained"] = str(file)
    with pytest.raises(ConfigError, match=r"^arch\.args\.pretrained: "):
        check_weights(check_config(raw))
