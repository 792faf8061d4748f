"""What a run tolerates, tries out beforehand and shows elsewhere; and that no step waits for its device."""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from base import base_dataloader, workers
from base.base_dataloader import Loader
from base.base_dataset import DatasetView
from base.workers import check_shared_memory
from dataloader.datasets.folder import Folder
from dataloader.label_statistics import largest_image
from dataloader.tools.packed import pack
from engine import preflight, session
from tests.test_resume import assert_same_end, only_run, train_in_child, write_config
from tests.test_trainer import launch, make_trainer, metrics
from tests.tiny import Squares
from trainer import StepResult, Trainer
from utils.checkpoint import judged_weights_of
from utils.errors import DataError, Stopped
from utils.predict import Predictor
from utils.registry import WRITERS


def spoil(trainer: Trainer, *steps: int) -> None:
    """Let loss, gradients and the running statistics of a norm be NaN at `steps`, counted from 1."""

    def is_bad() -> bool:
        return trainer.progress.step + 1 in steps and torch.is_grad_enabled()

    def ruin(norm: Any, *_: Any) -> None:
        if is_bad():
            norm.running_mean.data.fill_(math.nan)

    forward = trainer.criterion.forward

    def losses(*arguments: Any) -> dict[str, torch.Tensor]:
        return {key: value * (math.nan if is_bad() else 1) for key, value in forward(*arguments).items()}

    trainer.criterion.forward = losses  # type: ignore[method-assign]
    next(m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)).register_forward_hook(ruin)


def test_a_step_that_is_not_finite_changes_nothing_and_its_images_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, epochs=3, nan_streak=2, ema=0.5, log_per_iter=1)
    rollback, seen = trainer.guard.rollback, []
    assert rollback is not None
    undo = rollback.undo

    def watch(undone: torch.Tensor) -> None:
        undo(undone)
        same = [torch.equal(kept, value) for kept, value in zip(rollback.kept, rollback.values, strict=True)]
        seen.append((bool(undone), all(same)))

    rollback.undo = watch  # type: ignore[method-assign]
    spoil(trainer, 3)
    with caplog.at_level("WARNING", "segwright"):
        trainer.fit()
    assert seen == [(False, False), (False, False), (True, True), *[(False, False)] * 3]
    assert trainer.progress.step == 6
    finite = [math.isfinite(record["train/loss"]) for record in trainer.history]
    assert finite == [True, True, True]
    states = [group for group in trainer.optimizer.state.values() for group in group.values()]
    assert all(torch.isfinite(value).all() for value in states if isinstance(value, torch.Tensor))
    weights = judged_weights_of(torch.load(tmp_path / "last.pth", weights_only=True), tmp_path)
    assert all(torch.isfinite(value.float()).all() for value in weights.values())


@pytest.mark.parametrize(("bad", "streak", "stops"), [
    ((2, 3, 4), 3, 4),
    ((1, 2, 4, 5), 3, None),
    ((1, 2, 4, 5), 2, 2),
    ((5,), 1, 5),
])  # fmt: skip
def test_a_run_stops_after_so_many_steps_in_a_row(
    tmp_path: Path, bad: tuple[int, ...], streak: int, stops: int | None
) -> None:
    trainer = make_trainer(tmp_path, epochs=3, nan_streak=streak, log_per_iter=3)
    spoil(trainer, *bad)
    if stops is None:
        trainer.fit()
        assert trainer.guard.streak == 0
        return
    with pytest.raises(Stopped, match=rf"the loss became nan at step {stops} of 6 \(epoch {-(-stops // 2)}, images"):
        trainer.fit()
    for path in tmp_path.glob("*.pth"):
        state = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value.float()).all() for value in state["state_dict"].values())


def test_a_streak_goes_on_after_a_resume(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, epochs=3, nan_streak=3, save_steps=1)
    spoil(first, 3, 4)
    step = first.after_step

    def stop_after_4() -> None:
        first.signal = signal.SIGTERM if first.progress.step == 3 else 0
        step()

    first.after_step = stop_after_4  # type: ignore[method-assign]
    with pytest.raises(BaseException, match="stopped at step 4"):
        first.fit()
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    assert (state["nan_streak"], state["running"]["left_out"]) == (2, 2)
    second = make_trainer(tmp_path, epochs=3, nan_streak=3)
    second.resume({**state, "total_steps": 6}, tmp_path / "last.pth")
    spoil(second, 5)
    with pytest.raises(Stopped, match="at step 5 of 6"):
        second.fit()


class TestValidationBySteps:
    """`val_per_steps`."""

    def test_it_validates_after_so_many_steps_and_at_the_end(self, tmp_path: Path) -> None:
        trainer = {"epochs": None, "max_steps": 13, "val_per_steps": 4}
        run_dir = launch(tmp_path, trainer=trainer)
        lines = metrics(run_dir)
        assert [(line["epoch"], line["step"], "val/Mean_IoU" in line) for line in lines] == [
            *((1, 4, True), (1, 5, False), (2, 8, True), (2, 10, False)),
            *((3, 12, True), (3, 13, True)),
        ]
        best = torch.load(run_dir / "best_model.pth", weights_only=True)
        results = json.loads((run_dir / "results.json").read_text())
        values = [line["val/Mean_IoU"] for line in lines if "val/Mean_IoU" in line]
        assert best["best"]["value"] == max(values) == results["metrics"]["val/Mean_IoU"]
        state = torch.load(run_dir / "last.pth", weights_only=True)
        assert (state["epoch"], state["step"], state["position"]) == (3, 13, 0)

    def test_a_kill_within_an_epoch_changes_nothing(self, tmp_path: Path) -> None:
        folders = [tmp_path / name for name in ("whole", "killed")]
        for folder in folders:
            folder.mkdir()
            config = write_config(folder, val_per_steps=3)
            if folder == folders[1]:
                assert train_in_child(config, kill="mid_validation:2") == -signal.SIGKILL
                assert train_in_child(config, "--resume", "auto", kill="step:2") == -signal.SIGKILL
            assert train_in_child(config, "--resume", "auto") == 0
        assert_same_end(folders[1], only_run(folders[0]))


@WRITERS.register("notebook")
class Notebook:
    """Writes results into a text file.

    Args:
        log_dir: Folder of the run.
        purge_step: Of no interest.
        title: First line.
    """

    def __init__(self, log_dir: Path, purge_step: int | None = None, *, title: str = "") -> None:
        log_dir.mkdir(parents=True)
        self.path = log_dir / "notebook.txt"
        self.path.write_text(f"{title}\n")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        with self.path.open("a") as file:
            file.writelines(f"{step} {name}\n" for name in values)

    def image(self, tag: str, image: Any, step: int) -> None:
        self.scalars({tag: 0}, step)

    def close(self) -> None:
        self.scalars({"the end": 0}, 0)


def test_results_are_shown_where_a_registered_writer_shows_them(tmp_path: Path) -> None:
    writers = ["tensorboard", {"type": "notebook", "args": {"title": "A run"}}]
    launch(tmp_path, trainer={"writers": writers, "epochs": 1})
    (path,) = tmp_path.glob("saved/runs/tiny/*/*")  # and no file of TensorBoard's, which "tensorboard": false silences
    lines = path.read_text().splitlines()
    assert lines[0] == "A run"
    assert {"2 train/loss", "5 val/Mean_IoU", "5 val/inputs_targets_predictions", "0 the end"} <= set(lines)


class TestMemoryCheck:
    """`memory_drill`."""

    def test_it_changes_nothing(self, tmp_path: Path) -> None:
        options = {"ema": 0.9, "nan_streak": 2}
        without, with_it = (launch(tmp_path, trainer={**options, "memory_drill": each}) for each in (False, True))
        assert (with_it / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()
        log = (with_it / "train.log").read_text()
        assert "memory check: a step on 2 images of 32x32, or validating one of 40x48, fits" in log
        assert "memory check" not in (without / "train.log").read_text()

    def test_it_names_what_to_turn(
        self, tmp_path: Path, config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(self: Trainer) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

        monkeypatch.setattr(Trainer, "update_weights", fail)
        answer = train_command("-c", config_file({"trainer.memory_drill": True}), "--import", "tests.tiny")
        assert answer.status == 4
        assert answer.errors[0].startswith("memory check: a step on 2 images of 32x32, or validating one of 40x48, ")
        assert "trainer.activation_checkpointing" in answer.errors[0]
        assert not list((tmp_path / "saved").glob("tiny/*/last.pth"))

    def test_it_validates_as_many_images_as_validation(self, config_file: Any, train_command: Any) -> None:
        sets = {"val_loader.args.batch_size": 3, "val_loader.args.crop_size": 32}
        answer = train_command("-c", config_file({"trainer.memory_drill": True, **sets}), "--import", "tests.tiny")
        assert "memory check: a step on 2 images of 32x32, or validating 3 of 32x32, fits" in answer.out

    def test_it_validates_in_the_precision_of_validation(
        self, config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = []
        forward = Predictor._forward

        def watch(self: Predictor, images: torch.Tensor) -> torch.Tensor:
            seen.append(self.precision)
            return forward(self, images)

        monkeypatch.setattr(Predictor, "_forward", watch)
        monkeypatch.setattr(session, "fit", lambda trainer: False)
        options = {"trainer.memory_drill": True, "trainer.precision": "bf16"}
        assert train_command("-c", config_file(options), "--import", "tests.tiny").status == 0
        assert seen == ["bf16"]

    def test_an_operation_that_has_no_order_is_refused_there_as_in_training(
        self, config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """On a GPU, the check comes before the first step."""

        def fail(self: Trainer) -> None:
            raise RuntimeError("some_cuda does not have a deterministic implementation, but you set ...")

        monkeypatch.setattr(Trainer, "update_weights", fail)
        answer = train_command("-c", config_file({"trainer.memory_drill": True}), "--import", "tests.tiny")
        assert answer.status == 2
        assert answer.errors[0].startswith("trainer.deterministic: 'some_cuda' does not have")

    def test_the_largest_image_is_found_without_decoding_one(self, tmp_path: Path, finished_run: Path) -> None:
        pictures = sorted((finished_run / "predictions").glob("*.png"))
        dataset = Squares(length=len(pictures))
        dataset.samples = [s._replace(image=path) for s, path in zip(dataset.samples, pictures, strict=True)]
        assert largest_image(DatasetView(dataset, None)) == (40, 48)
        assert largest_image(DatasetView(Squares(length=2, size=(33, 41)), None)) == (33, 41)

    def test_the_largest_image_is_found_in_a_packed_set_and_beside_what_is_skipped(self, tmp_path: Path) -> None:
        for number, side in enumerate((30, 50, 40)):
            for kind in ("images", "masks"):
                (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
                array = np.zeros((side, 32, 3) if kind == "images" else (side, 32), np.uint8)
                Image.fromarray(array).save(tmp_path / "data" / kind / f"{number}.png")
        data = Folder(data_dir=tmp_path / "data", split="all", classes=("a", "b"))
        pack(data, tmp_path / "packed")
        packed = Folder(data_dir=tmp_path / "packed", split="all", classes=("a", "b"))
        assert largest_image(DatasetView(packed, None)) == (50, 32)
        (tmp_path / "data" / "images" / "0.png").write_bytes(b"")
        assert largest_image(DatasetView(data, None, on_bad_sample="skip")) == (50, 32)
        with pytest.raises(DataError, match=r"0\.png"):
            largest_image(DatasetView(data, None))


def test_workers_whose_batches_have_no_place_are_refused(
    config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "free_shared_memory", lambda: 40 * 1024)
    check_shared_memory(2, 10 * 1024)
    with pytest.raises(Stopped, match=r"^/dev/shm: 0 MiB are free, and 3 .*num_workers 2, or"):
        check_shared_memory(3, 10 * 1024)
    words = ("-c", config_file({"train_loader.args.num_workers": 3}), "--import", "tests.tiny")
    assert train_command(*words).status == 0  # batches of 8 bits do not go through /dev/shm
    monkeypatch.setattr(preflight.multiprocessing, "get_start_method", lambda: "spawn")
    answer = train_command(*words)
    assert answer.status == 4
    assert answer.errors[0].startswith("/dev/shm: ")


def test_a_worker_that_hangs_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_dataloader, "PATIENCE", 0.2)
    monkeypatch.setattr(Squares, "read", lambda self, index: time.sleep(1))
    loader = Loader(DatasetView(Squares(length=4), None), 2, training=True, num_workers=1)
    with pytest.raises(Stopped, match=r"no data worker has delivered a batch for 0\.2 s"):
        next(iter(loader.batches()))


class Waits(TorchDispatchMode):
    """Notes whatever would make a host wait for its device: reading a number, or finding how many there are."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in self.NAMES:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("options", [
    {},
    {"ema": 0.9, "clip_grad_norm": 1.0, "accumulate": 2, "nan_streak": 3},
    {"precision": "bf16", "activation_checkpointing": True},
    {"loss": ["FocalLoss", {"type": "CrossEntropyLoss2d", "args": {"class_weights": [1.0, 2.0, 3.0]}}]},
], ids=lambda options: " ".join(options) or "plain")  # fmt: skip
def test_no_step_waits_for_its_device_between_two_log_steps(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, log_per_iter=100, epochs=1, **options)
    waits, after_step, read = Waits(), trainer.after_step, []
    for name in ("cpu", "numpy", "tolist"):  # which a device other than the CPU would be waited for in, too
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda self, *a, f=original, n=name: waits.found.append(n) or f(self, *a)
        )

    def note() -> None:
        read.append(list(waits.found))
        after_step()

    step = trainer.train_step

    def start(batch: Any) -> StepResult:
        waits.found.clear()  # at the start of an epoch torch draws a number for its data workers
        return step(batch)

    trainer.after_step, trainer.train_step = note, start  # type: ignore[method-assign]
    step(next(iter(trainer.train_loader.batches())))  # what depends on sizes alone is computed once
    with waits:
        trainer.train_epoch()
    assert read[0] == []
    assert "tolist" in read[1]  # the last step of an epoch is read, or this would show nothing
