"""What is shown of a run where people look: TensorBoard, Weights & Biases, MLflow, Trackio, writers of one's own."""

import json
import logging
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from tests.test_trainer import launch, make_trainer
from utils import writers
from utils.errors import ConfigError
from utils.registry import WRITERS
from utils.schema import Component
from utils.trackers import Tracker, plain
from utils.visualize import confusion_heatmap
from utils.writers import RunFacts, Tolerant, leaves, open_writer

STEPS = list(range(1, 11))  # of two epochs of the tiny run


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep every service on this machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")


def stop_and_go_on(tmp_path: Path, writer: Any) -> Path:
    """Train an epoch, forget that its last step was saved as a kill would, and train that and a second one."""
    options = {"writers": [writer], "log_per_iter": 1, "epochs": 1, "save_steps": 3}
    run_dir = launch(tmp_path, trainer={**options, "max_time": 1e-9})
    shown = json.loads(next(run_dir.glob(f"{kind(writer)}.json")).read_text())["shown"]
    assert shown["train/loss"] == 1
    launch(tmp_path, "--resume", "auto", trainer=options)
    launch(tmp_path, "--resume", str(run_dir / "last.prev.pth"), trainer={**options, "epochs": 2})
    return run_dir


def kind(writer: Any) -> str:
    return writer if isinstance(writer, str) else writer["type"]


def as_points(pairs: Any) -> list[int]:
    return [step for step, _ in sorted(pairs)]


# --------------------------------------------------------------------------------------------------- TensorBoard


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[EventAccumulator, Path]:
    """Events and folder of a run of two epochs."""
    tmp_path = tmp_path_factory.mktemp("run")
    run_dir = launch(tmp_path, trainer={"tensorboard": True, "log_per_iter": 1, "epochs": 2})
    folder = tmp_path / "saved" / "runs" / "tiny" / run_dir.name
    return EventAccumulator(str(folder), {"tensors": 0, "images": 0}).Reload(), run_dir


class TestTensorBoard:
    def test_rates_have_the_names_of_their_groups(self, run: Any) -> None:
        for index, name in enumerate(("decoder", "backbone")):
            named = [event.value for event in run[0].Scalars(f"train/Learning_rate/{name}")]
            assert named == [event.value for event in run[0].Scalars(f"train/Learning_rate_{index}")]

    def test_the_machine_is_shown(self, run: Any) -> None:
        assert all(0 <= event.value <= 1 for event in run[0].Scalars("train/data_wait"))
        assert all(0.05 < event.value < 1000 for event in run[0].Scalars("memory/host_GiB"))
        assert [event.step for event in run[0].Scalars("train/gradient_norm")] == STEPS

    def test_figures_of_the_best_model_stand_beside_the_hyperparameters(self, run: Any) -> None:
        events, run_dir = run
        results = json.loads((run_dir / "results.json").read_text())
        last = events.Scalars("best/Mean_IoU")[-1]
        assert last.value == pytest.approx(results["metrics"]["val/Mean_IoU"], rel=1e-6)
        assert last.step == results["metrics"]["step"]
        contents = [
            HParamsPluginData.FromString(events.SummaryMetadata(tag).plugin_data.content)
            for tag in events.PluginTagToContent("hparams")
        ]
        (start,) = [each.session_start_info for each in contents if each.HasField("session_start_info")]
        (experiment,) = [each.experiment for each in contents if each.HasField("experiment")]
        assert start.hparams["optimizer.args.lr"].number_value == 0.05
        assert {info.name.tag for info in experiment.metric_infos} <= set(events.Tags()["scalars"])

    def test_the_config_is_a_text_and_a_page_of_curves_is_laid_out(self, run: Any) -> None:
        events, run_dir = run
        (text,) = events.Tensors("config/text_summary")
        written = text.tensor_proto.string_val[0].decode()
        assert json.loads(written) == json.loads((run_dir / "config.json").read_text())
        assert events.PluginTagToContent("custom_scalars")

    def test_every_curve_of_the_layout_exists(self, run: Any) -> None:
        tags = run[0].Tags()["scalars"]
        for charts in writers.LAYOUT.values():
            for _, patterns in charts.values():
                for pattern in patterns:
                    assert any(re.fullmatch(pattern, tag) for tag in tags), pattern

    def test_pictures_are_small_and_show_the_matrix(self, run: Any) -> None:
        events = run[0]
        for tag in ("val/confusion_matrix", "val/inputs_targets_predictions"):
            assert [event.step for event in events.Images(tag)] == [5, 10]
            event = events.Images(tag)[-1]
            picture = cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
            assert picture.shape[:2] == (event.height, event.width)
            assert event.width <= 900


def test_a_confusion_matrix_is_dark_where_pixels_are() -> None:
    for classes in (2, 11, 150):
        counts = np.zeros((classes, classes), np.int64)
        counts[range(classes), [*range(1, classes), 0]] = 7  # each is taken for the next one
        picture = confusion_heatmap(counts, [f"class {number}" for number in range(classes)])
        cell = min(max(640 // classes, 4), 64)
        left = picture.shape[1] - 4 - cell * classes if classes > 2 else None
        if left is not None:
            corner = picture[24 + 1, left + 1], picture[24 + 1, left + cell + 1]
            assert corner[0].min() == 255
            assert corner[1].tolist() == [8, 48, 107]


def gradient_norm(folder: Path, limit: float | None) -> tuple[float, float]:
    """Norm that a step notes, and that of the gradients it leaves."""
    folder.mkdir()
    trainer = make_trainer(folder, clip_grad_norm=limit, log_per_iter=1)
    trainer.writers = [Shown()]
    trainer.optimizer.step = lambda *_: None  # type: ignore[method-assign, assignment]
    trainer.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign, assignment]
    trainer.model.train()
    trainer.train_step(trainer.move(next(trainer.batches())))
    gradients = [weights.grad.flatten() for weights in trainer.model.parameters() if weights.grad is not None]
    return float(trainer.gradient_norm), float(torch.cat(gradients).norm())


def test_the_norm_of_the_gradient_is_that_before_it_is_clipped(tmp_path: Path) -> None:
    noted, left = gradient_norm(tmp_path / "free", None)
    assert noted == pytest.approx(left, rel=1e-5)
    clipped, rest = gradient_norm(tmp_path / "clipped", 1e-3)
    assert clipped == pytest.approx(noted, rel=1e-5)
    assert rest == pytest.approx(1e-3, rel=1e-2)


def test_writers_change_no_weight(tmp_path: Path) -> None:
    with_it, without = (launch(tmp_path / str(each), trainer={"tensorboard": each}) for each in (True, False))
    states = [torch.load(run_dir / "last.pth", weights_only=True)["state_dict"] for run_dir in (with_it, without)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert (with_it / "metrics.jsonl").read_bytes() == (without / "metrics.jsonl").read_bytes()


# ------------------------------------------------------------------------------------------------------ failures


class Shown:
    """Keeps what it is shown; fails where `broken`."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.broken = False

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("no route to host")
        self.calls.append((dict(values), step))

    def image(self, tag: str, image: Any, step: int) -> None:
        self.scalars({tag: 0}, step)

    def close(self) -> None:
        self.scalars({"end": 0}, -1)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(logging.getLogger("segwright"), "warning", lambda text, *args: found.append(text % args))
    return found


def test_a_writer_that_fails_is_warned_of_once_and_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(writers.time, "monotonic", lambda: now)
    inner = Shown()
    writer = Tolerant(inner, "trainer.writers[1]")
    writer.scalars({"a": 1}, 1)
    inner.broken = True
    writer.scalars({"a": 1}, 2)
    inner.broken = False
    writer.image("b", None, 3)  # it is left alone
    now = writers.PAUSE
    writer.scalars({"a": 1}, 4)
    inner.broken = True
    writer.close()
    assert [step for _, step in inner.calls] == [1, 4]
    (warning,) = warnings
    assert warning.startswith("trainer.writers[1]: failed (ConnectionError: no route to host). The run goes on")


def test_a_run_goes_on_when_a_writer_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: Any) -> None:
        raise ConnectionError("the network is gone")

    monkeypatch.setattr(writers.TensorBoardWriter, "scalars", gone)
    run_dir = launch(tmp_path, trainer={"tensorboard": True})
    log = (run_dir / "train.log").read_text()
    assert log.count("the network is gone") == 1
    assert (run_dir / "results.json").exists()


@pytest.mark.parametrize("name", writers.TRACKERS)
def test_a_service_whose_package_is_missing_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warnings: list[str], name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    assert open_writer(Component(name), "trainer.writers[0]", tmp_path, run=RunFacts("tiny", tmp_path)) == []
    (warning,) = warnings
    assert warning.startswith("trainer.writers[0]: not written, ")
    assert warning.endswith(f"`pip install {name}` or the extra `track`.")


def test_a_writer_that_does_not_start_refuses_a_new_run_and_is_left_out_of_one_that_goes_on(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(log_dir: Path) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setitem(WRITERS._entries, "refuses", refuse)
    where = "trainer.writers[0]"
    with pytest.raises(ConfigError, match=r"trainer.writers\[0\]: refuses does not start .*no route to host"):
        open_writer(Component("refuses"), where, tmp_path)
    assert open_writer(Component("refuses"), where, tmp_path, purge_step=4) == []
    assert warnings[0].endswith("The run goes on without it.")


def test_a_tracker_shows_no_step_twice_though_its_process_was_killed(tmp_path: Path) -> None:
    sent: list[tuple[str, int]] = []

    class Kept(Tracker):
        def send(self, values: Mapping[str, float], step: int) -> None:
            sent.extend((tag, step) for tag in values)

        def send_image(self, tag: str, image: Any, step: int) -> None:
            sent.append((tag, step))

    first = Kept(RunFacts("tiny", tmp_path), "kept")
    first.id = "a1"
    first.scalars({"train/loss": 1.0}, 1)
    first.scalars({"train/loss": 1.0}, 2)
    first.image("val/picture", np.zeros((1, 1, 3), np.uint8), 2)
    second = Kept(RunFacts("tiny", tmp_path), "kept")  # after a kill between the training and the validation of step 2
    assert second.id == "a1"
    second.scalars({"train/loss": 1.0}, 2)
    second.image("val/picture", np.zeros((1, 1, 3), np.uint8), 2)
    second.scalars({"val/loss": 1.0}, 2)
    second.scalars({"train/loss": 1.0}, 3)
    assert sent == [("train/loss", 1), ("train/loss", 2), ("val/picture", 2), ("val/loss", 2), ("train/loss", 3)]


def test_a_damaged_note_of_a_tracker_is_no_reason_to_stop(tmp_path: Path) -> None:
    (tmp_path / "kept.json").write_text('{"id": ')

    class Kept(Tracker):
        def send(self, values: Mapping[str, float], step: int) -> None: ...
        def send_image(self, tag: str, image: Any, step: int) -> None: ...

    assert Kept(RunFacts("tiny", tmp_path), "kept").id is None


def test_values_of_a_config_are_listed_by_their_paths() -> None:
    config = {"seed": 1, "optimizer": {"args": {"lr": 0.1, "betas": [0.9, 0.99]}}, "ema": None}
    expected = {"seed": 1, "optimizer.args.lr": 0.1, "optimizer.args.betas": "[0.9, 0.99]", "ema": "null"}
    assert leaves(config) == expected
    assert plain("val/Class_IoU/trees & bushes (all)") == "val/Class_IoU/trees _ bushes _all_"


# ---------------------------------------------------------------------------------------------- the real packages


def test_wandb_tracks_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    run_dir = stop_and_go_on(tmp_path, "wandb")
    found = wandb_points(run_dir)
    assert as_points(found["train/loss"]) == STEPS
    assert as_points(found["val/Mean_IoU"]) == [5, 10]
    assert as_points(found["val/confusion_matrix"]) == [5, 10]
    ids = {path.name.rpartition("-")[2] for path in (run_dir / "wandb").glob("offline-run-*")}
    assert ids == {json.loads((run_dir / "wandb.json").read_text())["id"]}


def wandb_points(run_dir: Path) -> dict[str, list[tuple[int, str]]]:
    """Values by tag as JSON texts, with their steps, of all offline files of a run; a picture is one with its tag."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb")):
        for record in wandb_records(path):
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            step = int(items.pop("step", -1))
            for key, value in items.items():
                found.setdefault(key.removesuffix("/path"), []).append((step, value))
    return found


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a file of theirs, which is a log of LevelDB's form: blocks of 32 KiB with parts of records."""
    from wandb.proto import wandb_internal_pb2

    data, position, record = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, length, part = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def test_mlflow_tracks_a_run_and_goes_on_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)  # where it keeps pictures
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_dir = stop_and_go_on(tmp_path, {"type": "mlflow", "args": {"tracking_uri": uri}})
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert run.info.run_name == run_dir.name
    assert run.info.status == "FINISHED"
    assert run.data.params["optimizer.args.lr"] == "0.05"
    history = client.get_metric_history(run.info.run_id, "train/loss")
    assert as_points((metric.step, metric.value) for metric in history) == STEPS
    records = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    values = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "val/Mean_IoU")}
    assert values == {record["step"]: record["val/Mean_IoU"] for record in records}
    assert client.list_artifacts(run.info.run_id, "images")


def test_trackio_tracks_a_run_and_goes_on_with_it(tmp_path: Path) -> None:
    trackio = pytest.importorskip("trackio")
    run_dir = stop_and_go_on(tmp_path, "trackio")
    (run,) = trackio.Api().runs("tiny")
    assert run.name == run_dir.name
    logs = trackio_logs(run_dir.name)
    assert as_points((line["step"], 0) for line in logs if "train/loss" in line) == STEPS
    assert as_points((line["step"], 0) for line in logs if "val/Mean_IoU" in line) == [5, 10]


def trackio_logs(name: str) -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage

    found: list[dict[str, Any]] = SQLiteStorage.get_logs("tiny", name)
    return found
