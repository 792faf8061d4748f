"""Training: what a step is, when a model is best, when a run stops, and what it leaves behind."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import train
from base.base_dataloader import BatchSampler, Loader
from base.base_dataset import DatasetView
from base.base_trainer import TrainerConfig
from base.monitor import Monitor
from base.run_files import RunFiles
from engine import preflight, results
from engine.assemble import wrap_network
from inference import load
from models.build import build_model
from tests.conftest import Answer
from tests.tiny import Squares, tiny_config
from trainer import StepResult, Trainer
from utils import checkpoint, distributed, step_progress
from utils.ema import ExponentialMovingAverage
from utils.errors import ConfigError, DataError, Interrupted, Stopped, run
from utils.images import read_image
from utils.losses.criterion import build_criterion
from utils.lr_scheduler import build_scheduler
from utils.optimizers import build_optimizer
from utils.protocol import EvaluationData, EvaluationProtocol
from utils.reproducibility import make_deterministic
from utils.tta import TestTimeAugmentation

ARCH = {
    "type": "EncoderDecoder",
    "args": {
        "backbone": {"type": "resnet18", "args": {"width_mult": 0.125}},
        "head": {"type": "FCNHead", "args": {"channels": 8, "dropout": 0.0}},
        "aux_heads": [{"type": "FCNHead", "args": {"level": 4, "channels": 8, "dropout": 0.0}}],
    },
}


def make_trainer(
    folder: Path,
    *,
    loss: Any = "CrossEntropyLoss2d",
    freeze_bn: bool = False,
    val_length: int = 3,
    unused: bool = False,
    **options: Any,
) -> Trainer:
    """A trainer from finished objects: no JSON file, no run folder of its own making."""
    torch.manual_seed(0)
    arch = {**ARCH, "args": {**ARCH["args"], "freeze_bn": freeze_bn}}
    model = build_model(arch, num_classes=3)
    ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    loader = Loader(DatasetView(Squares(length=9, size=(33, 41)), None), 4, training=True, **ranks)
    validation = DatasetView(Squares(length=val_length, split="val"), None)
    config = TrainerConfig(**{"epochs": 2, "log_per_iter": 1, **options})
    optimizer = build_optimizer({"type": "SGD", "args": {"lr": 0.05, "momentum": 0.9}}, model)
    if unused:
        model.register_parameter("spare", nn.Parameter(torch.ones(2)))
    return Trainer(
        config,
        folder,
        model=model,
        network=wrap_network(model, config, unused=unused),
        criterion=build_criterion(loss, num_classes=3),
        optimizer=optimizer,
        schedule=build_scheduler("Poly", optimizer, total_steps=4, steps_per_epoch=2),
        train_loader=loader,
        val_loader=Loader(validation, distributed.world_size(), training=False, **ranks),
        classes=Squares.base_classes(),
        monitor=Monitor.parse("max Mean_IoU", ["val/Mean_IoU"]),
        description={},
    )


def launch(folder: Path, *flags: str, trainer: dict[str, Any] | None = None, **sections: Any) -> Path:
    """Train the tiny config through the command line; returns its run folder."""
    config = tiny_config(folder / "saved", **sections)
    config["trainer"] |= trainer or {}
    path = folder / "config.json"
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    assert run(train.main, ["-c", str(path), "--import", "tests.tiny", *flags]) == 0
    return max((folder / "saved" / "tiny").glob("2*"))


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_trainer_needs_no_config_file(tmp_path: Path) -> None:
    progress = make_trainer(tmp_path).fit()
    assert (progress.epoch, progress.step, progress.position) == (2, 4, 0)
    assert {"last.pth", "best_model.pth", "metrics.jsonl"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    "loss",
    [
        "CrossEntropyLoss2d",
        "FocalLoss",
        {"type": "DiceLoss", "args": {"per_image": True}},
        {"type": "TopKCrossEntropyLoss", "args": {"per_image": True}},
    ],
)
def test_micro_batches_train_as_the_whole_batch_does(tmp_path: Path, loss: Any) -> None:
    whole = make_trainer(tmp_path, loss=loss, freeze_bn=True)
    parts = make_trainer(tmp_path, loss=loss, freeze_bn=True, accumulate=4)
    before = {name: value.clone() for name, value in whole.model.state_dict().items()}
    for each in (whole, parts):
        each.model.train()
        batch = next(iter(each.train_loader.batches()))
        each.loss = each.train_step(batch).loss  # type: ignore[attr-defined]
    torch.testing.assert_close(whole.loss, parts.loss, rtol=1e-5, atol=0)  # type: ignore[attr-defined]
    moved = 0
    for name, value in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], value, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(value, before[name])
    assert moved > 20


def test_losses_hear_the_step_being_taken_also_in_micro_batches_and_after_resuming(tmp_path: Path) -> None:
    loss = {"type": "TopKCrossEntropyLoss", "args": {"top_k_percent": 0.2, "hard_example_mining_step": 4}}
    shares: list[float] = []

    def listen(trainer: Trainer) -> Trainer:
        (part,) = trainer.criterion.losses
        part.register_forward_hook(lambda module, *_: shares.append(module.share()))
        return trainer

    listen(make_trainer(tmp_path, loss=loss, accumulate=2, val=False)).fit()
    assert shares == pytest.approx(
        [share for share in (1, 0.8, 0.6, 0.4) for _ in range(4)]
    )  # 2 micro-batches, each with aux
    shares.clear()
    path = tmp_path / "last.pth"
    longer = listen(make_trainer(tmp_path, loss=loss, accumulate=2, val=False, epochs=3))
    longer.resume(checkpoint.load(path), path)
    longer.fit()
    assert shares == pytest.approx([0.2] * 8)
    shares.clear()
    listen(make_trainer(tmp_path, loss=loss)).eval_epoch()
    assert shares == pytest.approx([0.2] * 3)  # the same in every epoch


def test_the_average_of_the_weights_is_what_the_formula_says() -> None:
    model = build_model(ARCH, num_classes=3)
    average, expected = ExponentialMovingAverage(model, 0.9), model.head.classify.bias.detach().clone()
    for n in (1, 2, 3):
        with torch.no_grad():
            model.head.classify.bias += n
        average.update(model)
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.head.classify.bias.detach()
    torch.testing.assert_close(average.model.head.classify.bias, expected)
    assert not any(p.requires_grad for p in average.model.parameters())


def test_the_gradient_is_clipped_to_its_norm(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, clip_grad_norm=0.01)
    norms = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            torch.stack([p.grad.norm() for p in trainer.model.parameters() if p.grad is not None]).norm().item()
        )
    )
    trainer.train_epoch()
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_dropout_depends_on_the_step_and_not_on_what_happened_before(tmp_path: Path) -> None:
    losses = []
    for _ in range(2):
        torch.rand(7)
        trainer = make_trainer(tmp_path)
        for module in trainer.model.modules():
            if isinstance(module, nn.Dropout2d | nn.Dropout):
                module.p = 0.5
        trainer.model.train()
        torch.rand(3 * len(losses))
        losses.append(trainer.train_step(next(iter(trainer.train_loader.batches()))).loss.item())
    assert losses[0] == losses[1]


def test_two_runs_of_one_config_are_the_same(tmp_path: Path) -> None:
    first, second = (launch(tmp_path) for _ in range(2))
    assert first != second
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()
    a, b = (torch.load(path / "last.pth", weights_only=True)["state_dict"] for path in (first, second))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_validating_or_not_does_not_change_the_training(tmp_path: Path) -> None:
    with_val = launch(tmp_path)
    without = launch(tmp_path, trainer={"val": False, "monitor": "min train/loss"})
    a, b = (torch.load(path / "last.pth", weights_only=True)["state_dict"] for path in (with_val, without))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(key.startswith("val/") for key in metrics(without)[-1])


def test_the_saved_config_alone_repeats_the_run(tmp_path: Path) -> None:
    first = launch(tmp_path, "--lr", "0.02", "--bs", "3", "--set", "trainer.epochs=1")
    saved = json.loads((first / "config.json").read_text())
    assert saved["optimizer"]["args"]["lr"] == 0.02
    assert saved["train_loader"]["args"]["batch_size"] == 3
    assert run(train.main, ["-c", str(first / "config.json"), "--import", "tests.tiny"]) == 0
    second = max((tmp_path / "saved" / "tiny").glob("2*"))
    assert json.loads((second / "config.json").read_text()) == saved
    assert (first / "metrics.jsonl").read_bytes() == (second / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize(("value", "best", "mode", "expected"), [
    (0.5, None, "max", True),
    (0.5, 0.4999, "max", True),
    (0.5, 0.5, "max", False),
    (0.4, 0.5, "min", True),
    (math.nan, None, "max", False),
    (math.nan, 0.1, "min", False),
    (None, 0.1, "max", False),
])  # fmt: skip
def test_what_counts_as_an_improvement(value: float | None, best: float | None, mode: str, expected: bool) -> None:
    assert Monitor.parse(f"{mode} loss", ["val/loss"]).improves(value, best) is expected


@pytest.mark.parametrize(("text", "key"), [
    ("max Mean_IoU", "val/Mean_IoU"),
    ("min val_loss", "val/loss"),
    ("min val/loss", "val/loss"),
    ("max Class_IoU/traffic light", "val/Class_IoU/traffic light"),
    ("off", ""),
])  # fmt: skip
def test_a_monitor_may_be_written_in_several_ways(text: str, key: str) -> None:
    known = ["val/loss", "val/Mean_IoU", "val/Class_IoU/traffic light"]
    assert Monitor.parse(text, known).key == key


@pytest.mark.parametrize("text", ["max", "Mean_IoU", "best Mean_IoU", "max Mean_IuO", "", "off please"])
def test_a_monitor_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.monitor"):
        Monitor.parse(text, ["val/loss", "val/Mean_IoU"])


class Scripted(Trainer):
    """A trainer whose validation gives what a test says."""

    values: list[float]

    def eval_epoch(self) -> dict[str, float]:
        return {"Mean_IoU": self.values[self.progress.epoch]}


def scripted(folder: Path, values: list[float], **options: Any) -> Scripted:
    trainer = make_trainer(folder, **{"epochs": len(values), **options})
    trainer.__class__ = Scripted
    trainer.values = values  # type: ignore[attr-defined]
    return trainer  # type: ignore[return-value]


def test_the_best_model_is_saved_when_it_is_best(tmp_path: Path) -> None:
    trainer = scripted(tmp_path, [0.1, 0.4, 0.2, math.nan], save_period=3)
    trainer.fit()
    assert torch.load(tmp_path / "best_model.pth", weights_only=True)["epoch"] == 2
    assert (trainer.progress.best_value, trainer.progress.best_epoch) == (0.4, 2)


@pytest.mark.parametrize(("patience", "epochs"), [(0, 6), (1, 3), (2, 4), (10, 6)])
def test_early_stop_counts_epochs_since_the_best(tmp_path: Path, patience: int, epochs: int) -> None:
    trainer = scripted(tmp_path, [0.1, 0.4, 0.3, 0.2, 0.1, 0.0], early_stop=patience)
    assert trainer.fit().epoch == epochs


def test_early_stop_waits_for_a_validation(tmp_path: Path) -> None:
    trainer = scripted(tmp_path, [0.1, 0.4, 0.3, 0.2, 0.1, 0.0, 0.0, 0.0], early_stop=1, val_per_epochs=3)
    assert trainer.fit().epoch == 6


def test_the_last_epoch_is_always_validated_and_saved(tmp_path: Path) -> None:
    run_dir = launch(tmp_path, trainer={"val_per_epochs": 10, "save_period": 10})
    assert ["val/Mean_IoU" in record for record in metrics(run_dir)] == [False, False, True]
    assert (run_dir / "checkpoint-epoch3.pth").exists()


def test_only_the_newest_periodic_checkpoints_are_kept(tmp_path: Path) -> None:
    trainer = scripted(tmp_path, [0.1] * 5, save_period=1, keep_last=2)
    trainer.fit()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-epoch4.pth",
        "checkpoint-epoch5.pth",
    ]


def test_max_steps_stops_exactly_there(tmp_path: Path) -> None:
    run_dir = launch(tmp_path, trainer={"max_steps": 7, "epochs": None})
    assert [record["step"] for record in metrics(run_dir)] == [5, 7]
    assert "val/Mean_IoU" in metrics(run_dir)[-1]
    assert torch.load(run_dir / "last.pth", weights_only=True)["step"] == 7


def test_a_signal_that_comes_while_a_step_is_counted_is_not_obeyed_before_all_is_saved(tmp_path: Path) -> None:
    signals = iter([0])  # none when it is first read; one whenever it is read later

    class Late(Trainer):
        signal = property(lambda self: next(signals, signal.SIGTERM), lambda self, value: None)

    trainer = make_trainer(tmp_path)
    trainer.__class__ = Late
    with pytest.raises(Interrupted, match="stopped at step 2 of 4"):
        trainer.fit()
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 2


def test_a_trainer_without_a_validation_set_does_not_validate(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.val_loader = None
    assert trainer.fit().epoch == 2
    assert not any(key.startswith("val/") for record in trainer.history for key in record)


def test_a_time_limit_saves_and_ends_well(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_dir = launch(tmp_path, trainer={"max_time": 1e-9})
    assert torch.load(run_dir / "last.pth", weights_only=True)["step"] == 1
    assert f"Go on with --resume {run_dir / 'last.pth'}" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_is_never_saved(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, epochs=5, log_per_iter=1)
    step = trainer.train_step

    def explode(batch: Any) -> StepResult:
        if trainer.progress.step == 5:
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.nan)
        return step(batch)

    trainer.train_step = explode  # type: ignore[method-assign]
    with pytest.raises(Stopped) as error:
        trainer.fit()
    text = str(error.value)
    assert "step 6 of 10 (epoch 3, images 'square_" in text
    assert str(tmp_path / "last.pth") in text
    for path in tmp_path.glob("*.pth"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(torch.isfinite(value.float()).all() for value in weights.values())


def test_weights_that_are_not_finite_are_never_saved_though_the_loss_was(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    update_weights = trainer.update_weights

    def explode() -> None:
        update_weights()
        if trainer.progress.step == 3:  # of four: no loss will ever tell
            with torch.no_grad():
                trainer.model.head.classify.bias.fill_(math.inf)

    trainer.update_weights = explode  # type: ignore[method-assign]
    with pytest.raises(
        Stopped, match=r"weights such as 'head\.classify\.bias' are not finite after step 4 of 4"
    ) as error:
        trainer.fit()
    assert str(tmp_path / "last.pth") in str(error.value)
    assert torch.load(tmp_path / "last.pth", weights_only=True)["step"] == 2


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore"), "memory ran out (CUDA out of"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "memory ran out (["),
        (MemoryError(), "memory ran out (MemoryError)"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), "memory ran out (CUDA"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "a data worker died (DataLoader"),
    ],
)
def test_what_the_machine_fails_to_do_ends_with_status_4_and_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, error: Exception, expected: str
) -> None:
    step = Trainer.train_step

    def fail(self: Trainer, batch: Any) -> StepResult:
        if self.progress.step == 5:
            raise error
        return step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", fail)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tmp_path / "saved")))
    assert run(train.main, ["-c", str(tmp_path / "config.json"), "--import", "tests.tiny"]) == 4
    (run_dir,) = (tmp_path / "saved" / "tiny").glob("2*")
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: training: {expected}")
    assert "after step 5 of 15" in line
    assert str(run_dir / "last.pth") in line
    assert torch.load(run_dir / "last.pth", weights_only=True)["epoch"] == 1


def test_a_data_worker_that_dies_during_a_step_is_named(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train_loader = Loader(DatasetView(Squares(length=9, size=(33, 41)), None), 4, training=True, num_workers=1)

    def murder(batch: Any) -> StepResult:
        iterator = trainer.train_loader._loader._iterator
        os.kill(iterator._workers[0].pid, signal.SIGKILL)  # type: ignore[union-attr]
        time.sleep(60)  # torch tells of it by an error from here
        raise AssertionError

    trainer.train_step = murder  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="a data worker died"):
        trainer.fit()


def test_workers_begin_with_the_next_epoch_before_it_is_asked_for(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    prepared: list[tuple[str, int, tuple[int, ...]]] = []

    def note(name: str) -> Any:
        return lambda *where: prepared.append((name, trainer.progress.step, where))

    assert trainer.val_loader is not None
    trainer.train_loader.prepare = note("train")  # type: ignore[method-assign]
    trainer.val_loader.prepare = note("val")  # type: ignore[method-assign]
    trainer.fit()
    steps, epochs = trainer.steps_per_epoch, trainer.progress.epoch
    assert epochs > 1
    expected: list[tuple[str, int, tuple[int, ...]]] = []
    for epoch in range(epochs):
        if epoch + 1 < epochs:
            expected.append(("train", (epoch + 1) * steps - 1, (epoch + 1,)))
        expected.append(("val", (epoch + 1) * steps, ()))
    assert prepared == expected


def test_no_worker_is_forked_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train_loader = Loader(DatasetView(Squares(length=9, size=(33, 41)), None), 4, training=True, num_workers=1)
    is_awaited, files = threading.Event(), trainer.files
    join, write = files.join, files._write
    monkeypatch.setattr(files, "_write", lambda *what: is_awaited.wait() and write(*what))
    with files.beside():
        trainer.save_last()
        monkeypatch.setattr(files, "join", lambda: is_awaited.set() or join())
        thread = files._thread
        assert thread is not None
        real = type(trainer.train_loader._loader)._get_iterator

        def begin(loader: Any) -> Any:
            assert not thread.is_alive()
            return real(loader)

        monkeypatch.setattr(type(trainer.train_loader._loader), "_get_iterator", begin)
        next(iter(trainer.batches()))


def test_errors_of_ours_stay_what_they_are(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.train_step = lambda batch: torch.zeros(1) @ torch.zeros(2)  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="size"):
        trainer.fit()


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "pool_backward_cuda does not have a deterministic implementation, but you set ...",
            r"^trainer\.deterministic: 'pool_backward_cuda' does not have",
        ),
        (
            "Deterministic behavior was enabled ... To enable it, set CUBLAS_WORKSPACE_CONFIG=:4096:8",
            r"^trainer\.deterministic: this process has computed without it before",
        ),
    ],
    ids=["an operation", "a process that has computed before"],
)
def test_what_cannot_be_deterministic_is_refused_by_the_key_that_asked(
    tmp_path: Path, said: str, expected: str
) -> None:
    trainer = make_trainer(tmp_path)

    def step(batch: Any) -> StepResult:
        raise RuntimeError(said)

    trainer.train_step = step  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=expected):
        trainer.fit()


def test_nets_that_unpool_are_not_deterministic_on_cuda() -> None:
    model = build_model("UNet", num_classes=3)
    model.unpools = True
    make_deterministic(model, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"^trainer\.deterministic: "):
        make_deterministic(model, torch.device("cuda"))
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_full_disk_ends_with_status_4_and_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    save, calls = torch.save, []

    def full(state: Any, file: Any) -> None:
        calls.append(1)
        if len(calls) > 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(state, file)

    monkeypatch.setattr(torch, "save", full)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config(tmp_path / "saved")))
    assert run(train.main, ["-c", str(config), "--import", "tests.tiny"]) == 4
    (run_dir,) = (tmp_path / "saved" / "tiny").glob("2*")
    assert "No space left on device" in capsys.readouterr().err
    assert torch.load(run_dir / "last.pth", weights_only=True)["epoch"] == 1
    assert not list(run_dir.glob("*.tmp*"))


def test_a_checkpoint_holds_what_was_saved_whatever_happens_while_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, may_write = torch.save, threading.Event()

    def save_late(state: Any, file: Any) -> None:
        assert may_write.wait(60)
        save(state, file)

    monkeypatch.setattr(torch, "save", save_late)
    files = RunFiles(tmp_path, keep_last=1)
    state: dict[str, Any] = {"w": torch.zeros(3), "optimizer": {"state": [torch.zeros(2)]}, "history": [{"step": 1}]}
    with files.beside():
        files.save(state, ["best_model.pth", "last.pth"], commit=True)
        state["w"] += 1
        state["optimizer"]["state"][0] += 1
        state["history"].append({"step": 2})
        assert not list(tmp_path.glob("*.pth"))
        may_write.set()
    for name in ("best_model.pth", "last.pth"):
        kept = torch.load(tmp_path / name, weights_only=True)
        assert not kept["w"].any()
        assert not kept["optimizer"]["state"][0].any()
        assert kept["history"] == [{"step": 1}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_the_step_after_a_save_that_failed_ends_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(state: Any, file: Any) -> None:
        raise OSError(28, "No space left on device")

    trainer = make_trainer(tmp_path, save_steps=1)
    update = trainer.update_weights

    def update_when_written() -> None:
        trainer.files.join()
        update()

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(trainer, "update_weights", update_when_written)
    with pytest.raises(Stopped, match=r"last\.pth: could not be written .*No space left on device"):
        trainer.fit()
    assert trainer.progress.step == 1


def test_a_checkpoint_describes_itself_in_plain_values(tmp_path: Path) -> None:
    state = torch.load(launch(tmp_path) / "best_model.pth", weights_only=True)
    expected = (
        "format arch epoch step position state_dict optimizer scaler ema lr_scheduler best running nan_streak history "
        "config meaning_hash classes palette normalization protocol environment"
    )
    assert set(expected.split()) <= state.keys()
    assert state["classes"] == ["ground", "square", "dot"]
    assert state["protocol"]["mode"] == "single"
    assert not any(name.startswith(("module.", "_orig_mod.")) for name in state["state_dict"])


def test_tensorboard_shows_what_the_documents_promise(tmp_path: Path) -> None:
    run_dir = launch(tmp_path, trainer={"tensorboard": True})
    events = EventAccumulator(str(tmp_path / "saved" / "runs" / "tiny" / run_dir.name)).Reload()
    scalars = {"train/loss", "train/Pixel_Accuracy", "train/Mean_IoU", "val/loss", "val/Pixel_Accuracy", "val/Mean_IoU"}
    scalars |= {"train/Learning_rate_0", "train/Learning_rate_1", "val/Class_IoU/ground", "val/Class_IoU/square"}
    assert scalars <= set(events.Tags()["scalars"])
    assert set(events.Tags()["images"]) == {"val/inputs_targets_predictions", "val/confusion_matrix"}
    assert all(event.value > 0 for event in events.Scalars("train/images_per_second"))
    assert {tag.partition("/")[0] for tag in events.Tags()["histograms"]} == {"weights"}
    rates = [events.Scalars(f"train/Learning_rate_{i}")[0].value for i in (0, 1)]
    assert rates[0] == pytest.approx(10 * rates[1])


def test_tensorboard_shows_every_step_once_though_the_run_was_stopped(tmp_path: Path) -> None:
    options = {"tensorboard": True, "log_per_iter": 1, "epochs": 1}
    run_dir = launch(tmp_path, trainer={**options, "max_time": 1e-9})
    for _ in range(2):
        launch(tmp_path, "--resume", "auto", trainer=options)
        options["epochs"] = 2
    events = EventAccumulator(str(tmp_path / "saved" / "runs" / "tiny" / run_dir.name)).Reload()
    assert [each.step for each in events.Scalars("train/loss")] == list(range(1, 11))
    assert [each.step for each in events.Scalars("val/Mean_IoU")] == [5, 10]


def test_predictions_that_do_not_fit_on_the_disk_cost_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_label", full)
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(tmp_path / "saved")))
    assert run(train.main, ["-c", str(tmp_path / "config.json"), "--import", "tests.tiny"]) == 4
    assert "best_model.pth is complete" in capsys.readouterr().err


def test_the_log_says_how_many_images_a_second_are_trained_and_the_history_does_not(tmp_path: Path) -> None:
    run_dir = launch(tmp_path, trainer={"tensorboard": True})
    log = (run_dir / "train.log").read_text()
    assert len(re.findall(r"epoch \d/3: .*, [\d.e+]+ images/s", log)) == 3
    assert re.search(r"step 2/15: .*, [\d.e+]+ images/s, waited for data", log)
    assert "tensorboard --logdir" in log
    assert not any("images" in key for record in metrics(run_dir) for key in record)  # no run has the speed of another


def test_the_progress_bar_shows_figures_from_the_first_step_on_and_how_long_all_epochs_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    plain = launch(tmp_path / "plain", trainer={"log_per_iter": 4})
    monkeypatch.setattr(step_progress, "silent", lambda: False)
    capsys.readouterr()
    run_dir = launch(tmp_path / "shown", trainer={"log_per_iter": 4})
    shown = capsys.readouterr().err
    first = re.search(r"train 1/3: +0%.*?mIoU=0\.\d\d.*?all_epochs=\d\d:\d\d", shown)
    assert first, shown
    assert metrics(run_dir) == metrics(plain)  # what is shown is not counted


def test_the_picture_of_predictions_shows_the_worst_images_with_headings_names_and_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    sheet = results.comparisons_sheet

    def keep(rows: Any, classes: Any, headings: Any) -> Any:
        drawn.append((rows, headings))
        return sheet(rows, classes, headings)

    monkeypatch.setattr(results, "comparisons_sheet", keep)
    section = tiny_config(tmp_path)["val_loader"]
    section["args"]["length"] = 12
    run_dir = launch(tmp_path, val_loader=section)
    ((rows, headings),) = drawn
    assert headings == ("image: the worst of 12", "label", "prediction")
    predictor = load(run_dir / "best_model.pth", device="cpu", modules=["tests.tiny"])
    scores = {}
    for item in map(Squares(split="val", length=12).read, range(12)):
        labels = predictor.predict(item.image)
        pixels = [(labels[item.label == c] == c).sum() for c in range(3)]
        union = [((labels == c) & (item.label != 255) | (item.label == c)).sum() for c in range(3)]
        scores[item.key] = np.mean([p / u for p, u in zip(pixels, union, strict=True) if u])
    worst = sorted(scores, key=scores.__getitem__)
    assert [row[0] for row in rows] == worst[:4]
    assert [row[1] for row in rows] == [f"mean IoU {scores[name]:.3f}" for name in worst[:4]]
    assert {path.stem for path in (run_dir / "predictions").iterdir()} == set(worst[:8])
    picture = read_image(run_dir / "predictions.png")
    assert picture.shape[1] == 1200
    assert (picture[:34] < 100).any()  # headings
    assert (picture[34:60] < 100).any()  # a name


def test_without_tensorboard_nothing_of_it_is_written(tmp_path: Path) -> None:
    launch(tmp_path)
    assert not (tmp_path / "saved" / "runs").exists()


def test_a_run_folder_holds_what_is_promised(tmp_path: Path) -> None:
    run_dir = launch(tmp_path)
    names = {path.name for path in run_dir.iterdir()}
    assert read_image(run_dir / "curves.png").shape == (432, 1080, 3)
    promised = "config.json environment.json last.pth last.prev.pth best_model.pth metrics.jsonl train.log results.json"
    assert set(promised.split()) <= names
    table = list(csv.reader((run_dir / "confusion.csv").open()))
    matrix = json.loads((run_dir / "results.json").read_text())["confusion_matrix"]
    assert [[int(pixels) for pixels in row[1:]] for row in table[1:]] == matrix
    assert table[0][1:] == [row[0] for row in table[1:]] == list(Squares.base_classes().names)
    assert len(list((run_dir / "predictions").glob("*.png"))) == 3
    log = (run_dir / "train.log").read_text()
    assert "parameters" in log
    assert '"crop_size"' in log
    assert "Guessing each place's most frequent class" in log


def test_validation_predicts_by_the_protocol_that_is_stamped_on_its_figures(tmp_path: Path) -> None:
    data = EvaluationData(preprocessing="single", size="native", dataset="Squares", split="val")
    trainer = make_trainer(tmp_path, epochs=1)
    trainer.protocol = EvaluationProtocol(data=data, tta=TestTimeAugmentation(flip=True), precision="bf16")
    seen: list[torch.dtype] = []

    def listen(_: nn.Module, inputs: Any, output: Any) -> None:
        if not trainer.model.training:
            seen.append(output.dtype)

    trainer.model.head.classify.register_forward_hook(listen)
    trainer.fit()
    assert seen == [torch.bfloat16] * 6  # three images, each of them mirrored too
    stamp = torch.load(tmp_path / "last.pth", weights_only=True)["protocol"]
    assert stamp == {
        "mode": "single",
        "size": "native",
        "dataset": "Squares",
        "split": "val",
        "scales": [1.0],
        "flip": True,
        "precision": "bf16",
        "mean": "classes absent from truth and prediction are left out",
    }


@pytest.fixture(scope="module")
def bf16_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that trained in bf16."""
    return launch(tmp_path_factory.mktemp("bf16"), trainer={"epochs": 1, "precision": "bf16"})


def test_validation_computes_as_training_does_and_evaluation_repeats_it(
    bf16_run: Path, tmp_path: Path, evaluate_command: Callable[..., Answer]
) -> None:
    for name, flags, used in (("same", [], "bf16"), ("other", ["--precision", "fp32"], "fp32")):
        path = tmp_path / f"{name}.json"
        answer = evaluate_command("-m", bf16_run / "last.pth", "--import", "tests.tiny", "-o", path, *flags)
        assert answer.status == 0, answer.err
        assert json.loads(path.read_text())["protocol"]["precision"] == used
    trained = json.loads((bf16_run / "results.json").read_text())
    repeated = json.loads((tmp_path / "same.json").read_text())
    assert trained["protocol"] == repeated["protocol"]
    assert trained["confusion_matrix"] == repeated["confusion_matrix"]


def test_a_run_that_began_with_validation_in_float32_goes_on_with_it(bf16_run: Path, tmp_path: Path) -> None:
    run_dir = Path(shutil.copytree(bf16_run, tmp_path / "saved" / "tiny" / bf16_run.name))
    state = torch.load(run_dir / "last.pth", weights_only=True)
    state["protocol"]["precision"] = "fp32"
    torch.save(state, run_dir / "last.pth")
    launch(tmp_path, "--resume", str(run_dir / "last.pth"), trainer={"epochs": 2, "precision": "bf16"})
    after = torch.load(run_dir / "last.pth", weights_only=True)
    assert (after["epoch"], after["protocol"]["precision"]) == (2, "fp32")


def test_a_wrapped_network_trains_the_model_under_its_own_names(tmp_path: Path) -> None:
    model = build_model(ARCH, num_classes=3)
    names = list(model.state_dict())
    config = TrainerConfig(epochs=1, activation_checkpointing=True, channels_last=True)
    network = wrap_network(model, config)
    assert list(model.state_dict()) == names
    assert model.backbone.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    network(torch.zeros(2, 3, 33, 41, dtype=torch.uint8)).logits.sum().backward()
    assert model.backbone.conv1.weight.grad is not None


def first_convolution(path: Path) -> torch.Tensor:
    """The first convolution's weights in a checkpoint, as they lie in memory."""
    weights: torch.Tensor = torch.load(path, weights_only=True)["state_dict"]["backbone.conv1.weight"]
    return weights


def test_weights_lie_channels_last_on_a_cpu_where_training_and_prediction_are_faster_so(tmp_path: Path) -> None:
    last = launch(tmp_path, trainer={"epochs": 1}) / "last.pth"
    assert first_convolution(last).is_contiguous(memory_format=torch.channels_last)
    assert torch.load(last, weights_only=True)["environment"]["channels_last"] is True
    predicting = load(last, device="cpu", modules=["tests.tiny"]).model.backbone.conv1.weight
    assert predicting.is_contiguous(memory_format=torch.channels_last)


def test_an_early_run_goes_on_with_weights_as_they_lay(tmp_path: Path) -> None:
    last = launch(tmp_path, trainer={"epochs": 1, "channels_last": False}) / "last.pth"
    state = torch.load(last, weights_only=True)
    del state["environment"]["channels_last"]
    state["config"]["trainer"]["channels_last"] = "auto"  # which meant CUDA alone
    torch.save(state, last)
    predictor = load(last, device="cpu", modules=["tests.tiny"])
    assert predictor.model.backbone.conv1.weight.is_contiguous()
    launch(tmp_path, "--resume", str(last), trainer={"epochs": 2})
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert first_convolution(last).is_contiguous()
    assert torch.load(last, weights_only=True)["environment"]["channels_last"] is False


def test_the_step_calls_a_compiled_network_and_saves_the_plain_one(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, compile=True)  # compiled when it is called, and so never here
    assert trainer.network is not trainer.model
    assert list(trainer.network_state()["state_dict"]) == list(build_model(ARCH, num_classes=3).state_dict())


def test_freezing_leaves_the_statistics_of_batch_norm_alone(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, freeze_bn=True)
    before = {name: value.clone() for name, value in trainer.model.named_buffers()}
    trainer.train_epoch()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.named_buffers())


def test_val_split_holds_out_images_and_validates_on_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = tiny_config(tmp_path)["train_loader"]
    config["args"] |= {"val_split": 3}
    run_dir = launch(tmp_path, train_loader=config, val_loader=None)
    assert "val/Mean_IoU" in metrics(run_dir)[-1]
    printed = capsys.readouterr().out
    assert "training: 8 images" in printed
    assert "validation: 3 images" in printed
    assert metrics(run_dir)[0]["step"] == 4


def test_init_from_takes_the_weights_that_fit(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    first = launch(tmp_path)
    launch(tmp_path, "--set", f"init_from={first / 'best_model.pth'}", "--set", "arch.args.head.args.channels=4")
    first_log, _, second_log = capsys.readouterr().out.partition("init_from ")
    assert "weights loaded; fresh: head." in second_log
    assert "weights loaded" not in first_log


def test_fine_tuning_starts_from_the_weights_that_were_validated_and_so_does_their_average(tmp_path: Path) -> None:
    first = launch(tmp_path, trainer={"ema": 0.5})
    wanted = torch.load(first / "best_model.pth", weights_only=True)["ema"]["state_dict"]
    second = launch(tmp_path, "--set", f"init_from={first / 'best_model.pth'}", "--lr", "0", trainer={"ema": 0.5})
    state = torch.load(second / "last.pth", weights_only=True)
    for name in wanted:
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(state["state_dict"][name], wanted[name])
            torch.testing.assert_close(state["ema"]["state_dict"][name], wanted[name])


def test_training_may_open_as_many_files_as_the_system_grants() -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        preflight.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class TestOrder:
    """The order in which images are used."""

    @staticmethod
    def sampler(**options: Any) -> BatchSampler:
        return BatchSampler(23, 4, shuffle=True, drop_last=True, seed=5, **options)

    def test_each_image_is_used_at_most_once_in_an_epoch(self) -> None:
        used = [index for batch in self.sampler() for _, index in batch]
        assert len(used) == len(set(used)) == 20

    def test_epochs_differ_and_can_be_had_in_any_order(self) -> None:
        sampler = self.sampler()
        orders = {epoch: sampler.order(epoch).tolist() for epoch in (3, 0, 1)}
        assert len({tuple(order) for order in orders.values()}) == 3
        assert self.sampler().order(3).tolist() == orders[3]

    def test_a_position_continues_the_epoch(self) -> None:
        whole, rest = self.sampler(), self.sampler()
        rest.position = 8
        assert list(rest) == list(whole)[2:]

    def test_processes_share_the_batches_of_one(self) -> None:
        whole = list(self.sampler())
        shares = [list(self.sampler(rank=rank, world_size=2)) for rank in (0, 1)]
        for batch, first, second in zip(whole, *shares, strict=True):
            assert sorted(first + second) == sorted(batch)

    def test_evaluation_sees_every_image_once_on_any_number_of_processes(self) -> None:
        seen = []
        for rank in range(3):
            options = {"shuffle": False, "drop_last": False, "rank": rank, "world_size": 3}
            seen += [index for batch in BatchSampler(23, 4, **options) for _, index in batch]
        assert sorted(seen) == list(range(23))

    def test_orders_of_different_seeds_are_unrelated(self) -> None:
        a, b = (BatchSampler(1000, 4, shuffle=True, drop_last=True, seed=s).order(0) for s in (1, 2))
        assert np.mean(a == b) < 0.02


def test_the_last_batch_may_be_kept_and_then_counts_in_full(tmp_path: Path) -> None:
    """11 images in batches of 4: three steps, the last one on 3 images in 2 micro-batches."""
    config = tiny_config(tmp_path)
    config["train_loader"]["args"] |= {"batch_size": 4, "drop_last": False}
    run_dir = launch(tmp_path, trainer={"epochs": 2, "accumulate": 2}, train_loader=config["train_loader"])
    assert [line["step"] for line in metrics(run_dir)] == [3, 6]
    loader = Loader(DatasetView(Squares(length=11), None), 4, training=True, drop_last=False)
    assert [len(batch.keys) for batch in loader.batches()] == [4, 4, 3]
    assert len({key for batch in loader.batches() for key in batch.keys}) == 11
    # Micro-batches of an incomplete batch train as the whole does.
    (last,) = list(loader.batches(position=8))
    parameters = []
    for parts in (1, 2, 4):
        trainer = make_trainer(tmp_path, freeze_bn=True, accumulate=parts)
        trainer.train_step(last)
        parameters.append(torch.cat([p.detach().flatten() for p in trainer.model.parameters()]))
    for other in parameters[1:]:
        torch.testing.assert_close(other, parameters[0], rtol=1e-4, atol=1e-6)


def test_a_last_batch_of_one_image_is_refused_where_batch_norm_needs_two(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config["train_loader"]["args"] |= {"batch_size": 2, "drop_last": False, "length": 9}
    arch = {"type": "PSPNet", "args": {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}}}
    config |= {"arch": arch}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with redirect_stderr(io.StringIO()) as errors:
        assert run(train.main, ["-c", str(path), "--import", "tests.tiny"]) == 2
    assert "train_loader.args.drop_last: the last batch of an epoch has 1 of 9 images" in errors.getvalue()
    config["val_loader"]["args"] |= {"drop_last": True, "val_split": 0.5}
    path.write_text(json.dumps(config))
    with redirect_stderr(io.StringIO()) as errors:
        assert run(train.main, ["-c", str(path), "--import", "tests.tiny"]) == 2
    for key in ("drop_last", "val_split"):
        assert f"val_loader.args.{key}: validation takes every image. Remove it." in errors.getvalue()


def test_class_weights_can_be_computed_from_the_training_labels(tmp_path: Path) -> None:
    loss = {"type": "CrossEntropyLoss2d", "args": {"class_weights": "median_freq"}}
    plain, weighted = launch(tmp_path), launch(tmp_path, loss=loss)
    assert metrics(plain)[0]["val/loss"] != metrics(weighted)[0]["val/loss"]


def test_losses_add_up_and_each_is_reported(tmp_path: Path) -> None:
    loss = [{"type": "CrossEntropyLoss2d", "factor": 0.5}, "LovaszSoftmax"]
    record = metrics(launch(tmp_path, loss=loss))[-1]
    parts = 0.5 * record["val/CrossEntropyLoss2d"] + record["val/LovaszSoftmax"]
    assert record["val/loss"] == pytest.approx(parts)


def test_more_gpus_than_there_are_is_no_reason_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("there are GPUs")
    launch(tmp_path, n_gpu=3, use_synch_bn=True)
    printed = capsys.readouterr().out
    assert "n_gpu: 3 asked for, none available: using the CPU." in printed
    assert "use_synch_bn: no effect" in printed
    launch(tmp_path, n_gpu=1)  # the default, so that nobody asked
    printed = capsys.readouterr().out
    assert "no GPU is available: using the CPU." in printed
    assert "n_gpu" not in printed


def test_without_the_tensorboard_package_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    launch(tmp_path, trainer={"tensorboard": True})
    printed = capsys.readouterr().out
    assert "warning: trainer.tensorboard: not written" in printed
    assert "--logdir" not in printed  # there is nothing that it could show, nor anybody to show it


def test_the_batch_size_of_validation_changes_no_figure(tmp_path: Path) -> None:
    records = []
    for batch_size in (1, 3):
        args = {"split": "val", "length": 7, "num_workers": 0, "val": True, "crop_size": 33, "batch_size": batch_size}
        run_dir = launch(tmp_path, val_loader={"type": "Squares", "args": args})
        records.append(metrics(run_dir)[-1])
    assert records[0].keys() == records[1].keys()
    for key, value in records[0].items():
        assert records[1][key] == pytest.approx(value, rel=1e-5), key


def test_a_bad_sample_stops_the_run_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Squares.read

    def broken(self: Squares, index: int) -> Any:
        item = read(self, index)
        if item.key == "square_0007" and sys._getframe(1).f_code.co_name in ("__getitem__", "open"):
            raise DataError(f"{item.key}: damaged or cut short. Get the file again or remove it.")
        return item

    monkeypatch.setattr(Squares, "read", broken)
    for workers in (0, 1):
        config = tiny_config(tmp_path / "saved")
        config["train_loader"]["args"]["num_workers"] = workers
        path = tmp_path / "config.json"
        path.write_text(json.dumps(config))
        stderr = io.StringIO()
        with redirect_stderr(stderr):
            assert run(train.main, ["-c", str(path), "--import", "tests.tiny"]) == 2
        assert stderr.getvalue() == "error: square_0007: damaged or cut short. Get the file again or remove it.\n"
