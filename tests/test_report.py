"""Reports: their figures are those of the run, their intervals cover, and their pages work in a browser."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import report as report_script
from base.base_trainer import BaseTrainer
from engine.reporting import config_view, gallery, statistics
from engine.reporting.calibration import Calibration
from engine.reporting.collect import Collector, counts_of
from engine.reporting.compare import Measurement, compare, why_not_comparable
from engine.reporting.content import read_report, run_content, thinned
from engine.reporting.curves import charts
from engine.reporting.errors import BOUNDARY, HALLUCINATED, INTERIOR, MISSED, ErrorCounts, find_errors
from engine.reporting.figures import pareto
from engine.reporting.page import page, plan_table, size_words
from engine.reporting.recorder import RunRecorder, read_steps, total_seconds
from tests.conftest import Answer, call
from tests.tiny import Squares
from utils.classes import ClassTable
from utils.epoch_figures import PredictedBatch
from utils.errors import ConfigError
from utils.losses.strips import predicted_labels
from utils.metrics import Metrics
from utils.metrics.calibration import CalibrationError
from utils.outputs import resize

TINY = ("--import", "tests.tiny")
MOST_BYTES = 3_000_000
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SWITCHES = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--no-first-run", "--disable-default-apps"),
]

# ------------------------------------------------------------------------------------------------------ intervals


def scenes(rng: np.random.Generator, number: int, skill: float) -> np.ndarray:
    """Counts (N, C, 3) of images of very different difficulty, which is the same for every skill."""
    classes = 5
    labelled = rng.gamma(1.5, 400.0, (number, classes)).round()
    difficulty = rng.normal(0.0, 0.8, (number, 1)) + rng.normal(0.0, 0.5, (number, classes))
    noise = rng.normal(0.0, 0.3, (number, classes))
    share = 1 / (1 + np.exp(-(skill + difficulty + noise)))
    hits = (labelled * share).round()
    predicted = hits + (labelled * (1 - share) * 0.8).round()
    return np.stack([hits, labelled, predicted], axis=-1).astype(np.int64)


def pair_of_models(seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Counts of two models on the same images, the second a little better."""
    first = scenes(np.random.default_rng(seed), number, 1.0)
    second = scenes(np.random.default_rng(seed), number, 1.12)
    return first, second


def test_the_paired_interval_covers_the_true_difference_in_93_to_97_percent_of_500_pairs():
    shown = np.ones(5, bool)
    first, second = pair_of_models(1, 40_000)
    truth = float(statistics.mean_iou(second.sum(0), shown) - statistics.mean_iou(first.sum(0), shown))
    rng, covered = np.random.default_rng(2), 0
    for trial in range(500):
        chosen = rng.integers(len(first), size=120)
        found = statistics.compare(first[chosen], second[chosen], shown, resamples=600, seed=trial).mean
        covered += found.low <= truth <= found.high
    assert 0.93 <= covered / 500 <= 0.97


def test_a_model_compared_with_itself_gains_0_with_an_interval_of_0():
    counts, _ = pair_of_models(3, 30)
    found = statistics.compare(counts, counts, np.ones(5, bool))
    assert found.mean == statistics.Interval(0.0, 0.0, 0.0)
    assert all(each == statistics.Interval(0.0, 0.0, 0.0) for each in found.classes)
    assert found.signs == statistics.SignTest(0, 0, 1.0)


def test_the_interval_of_a_mean_holds_the_figure_and_narrows_with_more_images():
    shown = np.ones(5, bool)
    few, many = (statistics.interval_of_mean(pair_of_models(4, number)[0], shown) for number in (20, 500))
    assert few.low < few.value < few.high
    assert many.high - many.low < (few.high - few.low) / 2


def test_the_sign_test_is_exact_and_agrees_with_its_approximation():
    found = statistics.sign_test(np.array([1, 1, 1, 1, 1, 1, 1, 1, -1, 0, np.nan]))
    assert (found.better, found.worse) == (8, 1)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)
    values = np.array([1] * 1050 + [-1] * 950)
    exact = statistics.sign_test(values).p
    assert statistics.sign_test(np.concatenate([values, [0, 1, -1]])).p == pytest.approx(exact, rel=0.02)


def test_classes_that_never_occur_are_in_no_mean_and_have_no_interval():
    counts = pair_of_models(5, 20)[0]
    counts[:, 2] = 0
    found = statistics.compare(counts, counts, np.ones(5, bool))
    assert found.classes[2] == statistics.Interval(None, None, None)
    assert statistics.mean_iou(counts.sum(0), np.ones(5, bool)) == pytest.approx(
        np.nanmean(statistics.class_iou(counts.sum(0)))
    )


# --------------------------------------------------------------------------------------------------------- errors


def test_every_kind_of_error_is_told_from_the_others():
    truth, predicted = np.zeros((60, 80), np.uint8), np.zeros((60, 80), np.uint8)
    truth[5:15, 5:15] = 1  # missed
    predicted[40:50, 5:15] = 1  # hallucinated
    truth[20:40, 40:70] = 1
    predicted[20:40, 42:70] = 1  # two columns short of the boundary
    predicted[28:32, 52:56] = 0  # a hole far inside
    truth[0, 79], predicted[0, 79] = 255, 1  # void is no error
    found = find_errors(truth, predicted, 2)
    assert (found.kinds[5:15, 5:15] == MISSED).all()
    assert (found.kinds[40:50, 5:15] == HALLUCINATED).all()
    assert (found.kinds[20:40, 40:42] == BOUNDARY).all()
    assert found.kinds[29, 53] == INTERIOR
    assert found.kinds[0, 79] == 0
    assert sorted(found.objects[1].tolist()) == [100, 600]
    assert found.missed == {0: 0, 1: 1}


def test_kinds_of_errors_add_up_to_all_errors_and_fixing_them_all_gives_an_iou_of_1():
    rng = np.random.default_rng(0)
    truth = np.kron(rng.integers(0, 3, (6, 8)), np.ones((10, 10))).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 3, truth.shape), truth).astype(np.uint8)
    predicted[:20, :20] = 2
    counts = ErrorCounts(3)
    counts.add(find_errors(truth, predicted, 3), truth, predicted)
    matrix = np.zeros((3, 3), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    wrong = matrix - np.diag(np.diag(matrix))
    assert counts.lost.sum(axis=0).tolist() == wrong.sum(axis=1).tolist()
    assert counts.wrongly_found.sum(axis=0).tolist() == wrong.sum(axis=0).tolist()
    table = np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)], axis=1)
    assert (counts.gains(table) >= 0).all()
    fixed = (table[:, 0] + counts.lost.sum(0)) / (table[:, 1] + table[:, 2] - table[:, 0] - counts.wrongly_found.sum(0))
    assert fixed == pytest.approx(1.0)


def test_calibration_is_that_of_the_metric_and_its_temperature_undoes_a_factor():
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 4, 48, 64)
    labels = torch.distributions.Categorical(logits=logits.permute(0, 2, 3, 1)).sample().to(torch.uint8)
    labels[0, :3] = 255
    logits = logits * 3
    predicted = logits.argmax(1).to(torch.uint8)
    metric, own = CalibrationError(4, bins=15), Calibration(4)
    metric.update(logits[0], predicted[0], labels[0])
    probability = logits.softmax(1).amax(1)[0].numpy()
    for _ in range(8):
        own.add(probability, logits[0], labels[0].numpy(), predicted[0].numpy())
    assert own.error() == pytest.approx(float(metric.value(torch.ones(4, dtype=torch.bool))), abs=1e-6)
    assert own.temperature() == pytest.approx(3.0, rel=0.2)


def test_images_whose_labels_a_sure_network_contradicts_are_named_but_not_those_with_fuzzy_edges():
    table = ClassTable(("a", "b", "c"), ((0, 0, 0), (9, 9, 9), (99, 9, 9)), ((0,), (1,), (2,)))
    collector = Collector(table, Metrics(3, table.names))
    truth = torch.zeros(3, 40, 48, dtype=torch.uint8)
    truth[:, 10:30, 10:30] = 1
    believed = truth.clone()
    believed[0, 14:26, 14:26] = 2  # inside: 144 pixels
    believed[1, 10:30, 28:30] = 0  # two columns at an edge
    logits = torch.nn.functional.one_hot(believed.long(), 3).movedim(-1, 1) * torch.tensor([9.0, 9.0, 1.0]).view(
        3, 1, 1, 1
    )
    believed[2, 14:26, 14:26] = 2  # unsure
    logits[2] = torch.nn.functional.one_hot(believed[2].long(), 3).movedim(-1, 0)
    predicted = collector.metrics.add(logits, truth)
    photos = torch.zeros(3, 3, 40, 48, dtype=torch.uint8)
    collector.listen(PredictedBatch(photos, truth, logits, predicted, ("inside", "edge", "unsure")))
    assert collector.to_json()["suspects"] == [{"pixels": 144, "key": "inside", "truth": 1, "predicted": 2}]


def test_the_doctor_s_findings_stand_in_the_report(tmp_path, train_command):
    from PIL import Image

    for folder, first, count in (("train", 0, 4), ("val", 3, 3)):  # the last one of training is validated on, too
        for number in range(first, first + count):
            draw = np.random.default_rng(number)
            for kind, array in (
                ("images", draw.integers(0, 255, (32, 32, 3))),
                ("masks", draw.integers(0, 2, (32, 32))),
            ):
                path = tmp_path / "data" / kind / folder / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.astype(np.uint8)).save(path)
    from tests.tiny import tiny_config

    config = tiny_config(tmp_path / "saved")
    loader = {"data_dir": str(tmp_path / "data"), "classes": ["a", "b"], "batch_size": 2, "num_workers": 0}
    config["train_loader"] = {"type": "Folder", "args": {**loader, "split": "train"}}
    config["val_loader"] = {"type": "Folder", "args": {**loader, "split": "val"}}
    config["trainer"]["epochs"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = train_command("-c", tmp_path / "config.json")
    assert answer.status == 0, answer.err
    (path,) = tmp_path.glob("saved/tiny/*-*/report.html")
    (found,) = read_report(path)["data"]["findings"]
    assert found["kind"] == "image in two splits"
    assert found["files"] == ["3 = 3"]
    assert "image in two splits" in path.read_text().partition("segwright-report")[0]


# -------------------------------------------------------------------------------------------------------- gallery


def test_the_gallery_keeps_the_worst_and_the_best_and_forgets_the_others():
    kept = gallery.Gallery(2)
    blank = np.zeros((4, 4), np.uint8)
    for number in range(500):
        key, iou = f"{number:03d}", (number * 37 % 500) / 500
        if kept.wants(key, iou, {"a": iou}):
            kept.keep(gallery.Pictures(key, iou, np.zeros((4, 4, 3), np.uint8), blank, blank, blank, blank))
    groups = kept.choose(["a", "b"])
    ious = {key: pictures.iou for key, pictures in kept.kept.items()}
    assert [ious[key] for key in groups["worst"]] == [number / 500 for number in range(gallery.WORST)]
    assert [ious[key] for key in groups["best"]] == [1 - number / 500 for number in range(1, gallery.BEST + 1)]
    assert groups["class a"] == groups["worst"][: gallery.WORST_OF_CLASS]
    assert len(kept.kept) < 200
    assert len(set(groups["random"])) == gallery.RANDOM


def test_palette_pictures_have_the_colors_of_their_labels():
    import base64
    import io

    from PIL import Image

    labels = np.array([[0, 3], [255, 3]], np.uint8)
    palette = np.random.default_rng(0).integers(0, 255, (256, 3), dtype=np.uint8)
    data = base64.b64decode(gallery.palette_png(labels, palette).partition(",")[2])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")), palette[labels])


# ----------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of three epochs that differ in their seed and learning rate, and their index."""
    import train
    from tests.tiny import tiny_config

    folder = tmp_path_factory.mktemp("runs")
    config = tiny_config(folder / "saved")
    config["val_loader"]["args"]["length"] = 7
    for seed in (0, 1):
        config["seed"] = seed
        config["optimizer"]["args"]["lr"] = 0.05 * (1 + seed)
        (folder / "config.json").write_text(json.dumps(config))
        answer = call(train, "-c", folder / "config.json", *TINY)
        assert answer.status == 0, answer.err
        assert "report.html" in answer.out
    answer = call(report_script, folder / "saved")
    assert answer.status == 0, answer.err
    return folder / "saved"


@pytest.fixture
def report_command() -> Callable[..., Answer]:
    return lambda *arguments: call(report_script, *arguments)


def run_folders(runs: Path) -> list[Path]:
    return sorted(path.parent for path in runs.glob("tiny/*-*/config.json"))


def test_every_figure_of_a_report_is_that_of_the_run(runs):
    for folder in run_folders(runs):
        content = read_report(folder / "report.html")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        results = json.loads((folder / "results.json").read_text())
        assert content["history"] == lines
        assert content["results"] == {key: value for key, value in results.items() if key != "image_figures"}
        assert content["evaluation"]["images"] == results["image_figures"]
        metrics = content["evaluation"]["metrics"]
        for key, value in metrics.items():
            assert results["metrics"][f"val/{key}"] == value, key
        curves = {chart["id"]: chart["series"] for chart in content["charts"]}
        for chart, key in (("loss", "loss"), ("mean-iou", "Mean_IoU")):
            for series, part in zip(curves[chart], ("train", "val"), strict=True):
                points = [(line["step"], line[f"{part}/{key}"]) for line in lines if f"{part}/{key}" in line]
                assert list(zip(series["x"], series["y"], strict=True)) == points
        counts = counts_of(results["image_figures"], 3)
        table = [[row["pixels"], row["iou"]] for row in content["evaluation"]["table"]]
        assert table == [
            [int(c[1]), float(iou)] for c, iou in zip(counts.sum(0), statistics.class_iou(counts.sum(0)), strict=True)
        ]
        interval = content["evaluation"]["interval"]
        assert interval["low"] <= interval["value"] <= interval["high"]
        assert interval["value"] == pytest.approx(metrics["Mean_IoU"])


def test_curves_by_step_are_what_the_run_wrote_down(runs):
    for folder in run_folders(runs):
        content = read_report(folder / "report.html")
        written = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        steps = [line for line in written if "event" not in line]
        assert len(steps) > 2
        curves = {chart["id"]: chart["series"] for chart in content["charts"]}
        keys = {"gradient": "train/gradient_norm", "wait": "train/data_wait", "memory": "host_memory"}
        for chart, key in keys.items():
            factor = 2**-30 if chart == "memory" else 1
            expected = [(line["step"], line[key] * factor) for line in steps]
            assert list(zip(curves[chart][0]["x"], curves[chart][0]["y"], strict=True)) == expected, chart
        drawn = {name: series for series in curves["learning-rate"] for name in series["name"].split(", ")}
        assert set(drawn) == {"decoder", "backbone"}
        for name, series in drawn.items():
            assert series["y"] == [line[f"train/Learning_rate/{name}"] for line in steps]
        speeds = []
        for before, line in itertools.pairwise(written):
            if "event" not in before and "event" not in line and line["seconds"] > before["seconds"]:
                images = 2 * (line["step"] - before["step"])
                speeds.append((line["step"], images / (line["seconds"] - before["seconds"])))
        (speed,) = curves.get("speed", [{"x": [], "y": []}])
        if len(speeds) > 1:
            assert speed["x"] == [step for step, _ in speeds]
            assert speed["y"] == pytest.approx([value for _, value in speeds], abs=1e-3)


def flooded(mask: np.ndarray) -> list[list[tuple[int, int]]]:
    """The connected regions (8 neighbors) of a mask (H, W) bool, each as its pixels, by filling one after another."""
    left, found = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while left:
        region, border = [], [left.pop()]
        while border:
            y, x = border.pop()
            region.append((y, x))
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            border += around
        found.append(region)
    return found


def kinds_by_hand(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """The kind of error at each pixel, (H, W), as the head of engine/reporting/errors.py defines them."""
    void, height, width = truth == 255, *truth.shape
    kinds = np.zeros(truth.shape, int)
    for y, x in np.argwhere((truth != predicted) & ~void).tolist():
        window = truth[max(y - 3, 0) : y + 4, max(x - 3, 0) : x + 4]
        kinds[y, x] = BOUNDARY if (window != truth[y, x]).any() else INTERIOR
    wrong = kinds > 0
    for kind, own, other in ((HALLUCINATED, predicted, truth), (MISSED, truth, predicted)):
        for value in range(3):
            for region in flooded((own == value) & ~void):
                hits = sum(int(other[place]) == value for place in region)
                if len(region) >= 20 and hits < 0.1 * len(region):
                    for place in region:
                        kinds[place] = kind if wrong[place] else 0
    assert kinds.shape == (height, width)
    return kinds


def test_calibration_boundaries_and_kinds_of_errors_are_those_of_the_model_s_logits(runs):
    from engine.assemble import load_predictor
    from utils.metrics.boundary import BoundaryIoU

    folder = run_folders(runs)[0]
    evaluation = read_report(folder / "report.html")["evaluation"]
    predictor = load_predictor(folder / "best_model.pth", torch.device("cpu"), modules=["tests.tiny"])
    dataset = Squares(split="val", length=7)
    boundary, lost, found = BoundaryIoU(3, distance=0.02), np.zeros((4, 3), int), np.zeros((4, 3), int)
    pixels, right, probability = np.zeros(15, int), np.zeros(15, int), np.zeros(15)
    for index in range(7):
        item = dataset.read(index)
        images = torch.from_numpy(item.image).permute(2, 0, 1)[None]
        logits = predictor.logits(images)
        large = torch.nn.functional.interpolate(logits.double(), item.label.shape, mode="bilinear")[0].numpy()
        exponents = np.exp(large - large.max(axis=0))
        sure, predicted = (exponents / exponents.sum(axis=0)).max(axis=0), large.argmax(axis=0)
        hit = predicted == item.label
        for number in range(15):
            of_bin = (sure > number / 15) & (sure <= (number + 1) / 15) & (item.label < 3)
            pixels[number] += of_bin.sum()
            right[number] += (of_bin & hit).sum()
            probability[number] += sure[of_bin].sum()
        labels, answer = torch.from_numpy(item.label), torch.from_numpy(predicted.astype(np.uint8))
        boundary.update(logits[0], answer, labels)
        kinds = kinds_by_hand(item.label, predicted)
        for kind in (MISSED, HALLUCINATED, BOUNDARY, INTERIOR):
            lost[kind - 1] += np.bincount(item.label[kinds == kind], minlength=3)
            found[kind - 1] += np.bincount(predicted[kinds == kind], minlength=3)
    calibration = evaluation["calibration"]
    assert calibration["pixels"] == pixels.tolist()
    assert calibration["right"] == right.tolist()
    assert calibration["probability"] == pytest.approx(probability.tolist(), abs=0.01)
    assert calibration["error"] == pytest.approx(np.abs(probability - right).sum() / pixels.sum(), abs=1e-5)
    assert sum(calibration["sureness_of_hits"]) == right.sum()
    assert sum(calibration["sureness_of_errors"]) == (pixels - right).sum()
    assert evaluation["errors"]["lost"] == lost.tolist()
    assert evaluation["errors"]["wrongly_found"] == found.tolist()
    for row, alone in zip(evaluation["table"], torch.eye(3, dtype=torch.bool), strict=True):
        value = float(boundary.value(alone))
        assert row["boundary_iou"] == (None if np.isnan(value) else value)


def test_a_report_tells_sizes_of_training_images_and_of_their_objects(runs):
    folder = run_folders(runs)[0]
    data = read_report(folder / "report.html")["data"]
    assert data["training_sizes"] == [{"height": 40, "width": 48, "images": 11}]
    dataset, areas = Squares(length=11), []
    for index in range(11):
        label = dataset.read_label(index)
        areas += [len(region) for value in range(3) for region in flooded(label == value)]
    expected = np.zeros(16, int)
    for area in areas:
        expected[min(area.bit_length() - 1, 15)] += area >= 20
    assert data["training_objects"] == expected.tolist()
    assert data["labels_with_objects"] == 11
    text = (folder / "report.html").read_text()
    assert "11 of them that were looked at: all 48×40;" in text
    assert "Training: in 11 labels" in text


def test_many_sizes_of_images_are_told_by_their_range_and_median():
    sizes = [{"height": 10 * n, "width": 20 * n, "images": n} for n in range(1, 6)]
    assert size_words(sizes) == "width 20 to 100 (median 80) and height 10 to 50 (median 40)"
    assert size_words(sizes[:2]) == "20×10 (1) and 40×20 (2)"
    assert size_words([]) == ""


def test_a_report_marks_what_stopped_a_run_and_where_it_went_on(train_command, config_file, monkeypatch):
    step, file = BaseTrainer.after_step, config_file({"trainer.epochs": 1})

    def interrupt(trainer: BaseTrainer) -> None:
        if trainer.progress.step == 2:
            trainer.note_signal(signal.SIGTERM)
        step(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "after_step", interrupt)
        assert train_command("-c", file, *TINY).status == 128 + signal.SIGTERM
    (folder,) = file.parent.glob("saved/tiny/*-*")
    assert train_command("--resume", folder / "last.pth", *TINY).status == 0
    events = [line for line in read_report(folder / "report.html")["steps"] if "event" in line]
    assert [(line["event"], line["step"], line.get("reason")) for line in events[:3]] == [
        *(("start", 0, None), ("stop", 3, "SIGTERM"), ("resume", 3, None))
    ]
    assert "crosses mark what stopped it (SIGTERM at step 3)" in (folder / "report.html").read_text()


def test_the_titles_of_curves_say_that_averaged_weights_were_validated(tmp_path):
    content = large_content(tmp_path, epochs=2, images=1)
    titles = [chart["title"] for chart in charts(content)]
    content["config"]["trainer"] = {"ema": 0.99}
    averaged = [chart["title"] for chart in charts(content)]
    assert titles[:2] == ["Loss", "Mean IoU"]
    assert averaged[:2] == ["Loss, validation of EMA weights", "Mean IoU, validation of EMA weights"]


def test_a_report_needs_nothing_from_elsewhere(runs):
    text = (run_folders(runs)[0] / "report.html").read_text()
    assert "http://www.w3.org/" in text
    for scheme in ("http://", "https://"):
        rest = [part[:40] for part in text.split(scheme)[1:]]
        assert all(part.startswith("www.w3.org/") for part in rest), rest
    assert 'src="http' not in text
    assert "@import" not in text


def test_a_run_leaves_curves_and_confusions_as_pictures(runs):
    from utils.images import read_image

    folder = run_folders(runs)[0]
    assert read_image(folder / "curves.png").shape == (432, 1080, 3)
    assert read_image(folder / "confusion.png").ndim == 3


def test_a_report_is_written_anew_from_what_it_holds(runs, report_command):
    folder = run_folders(runs)[0]
    before = read_report(folder / "report.html")
    assert report_command(folder).status == 0
    after = read_report(folder / "report.html")
    assert {key: value for key, value in after.items() if key != "made"} == {
        key: value for key, value in before.items() if key != "made"
    }


def test_the_report_by_the_link_to_the_latest_run_is_that_of_the_run(runs, report_command, tmp_path):
    folder = tmp_path / "a"
    for day in ("2026-01-01_00-00-00", "2026-01-02_00-00-00"):
        shutil.copytree(run_folders(runs)[0], folder / day)
    (folder / "latest").symlink_to("2026-01-02_00-00-00")
    assert report_command(folder / "latest").status == 0
    content = read_report(folder / "2026-01-02_00-00-00" / "report.html")
    assert content["run"] == "2026-01-02_00-00-00"
    assert content["differences"]["previous_name"] == "2026-01-01_00-00-00"


def test_the_index_ranks_runs_of_one_protocol_only(runs, report_command, tmp_path):
    copied = tmp_path / "saved"
    shutil.copytree(runs, copied, symlinks=True)
    first, second = run_folders(copied)
    content = read_report(second / "report.html")
    content["protocol"]["flip"] = True
    (second / "report.html").write_text(page(content))
    third = copied / "tiny" / "third"
    shutil.copytree(first, third)
    assert report_command(copied).status == 0
    text = (copied / "index.html").read_text()
    assert text.count("class=grayed") == 1
    assert "1 other way" in text


def test_the_index_shows_the_trials_of_a_sweep_with_their_values_and_the_best_first(runs, report_command, tmp_path):
    saved = tmp_path / "saved"
    folder = saved / "tiny-sweep"
    for number, run in enumerate(run_folders(runs)):
        content = read_report(run / "report.html")
        content["name"] = content["config"]["name"] = f"trial-{number:04d}"
        target = folder / content["name"] / run.name
        target.mkdir(parents=True)
        (target / "report.html").write_text(page(content))
    (folder / "sweep.db").touch()
    alone = saved / "tiny" / "other"
    shutil.copytree(run_folders(runs)[0], alone)
    best = max(
        (0, 1), key=lambda n: read_report(run_folders(runs)[n] / "report.html")["evaluation"]["metrics"]["Mean_IoU"]
    )
    for above, name in ((saved, "tiny-sweep"), (folder, "tiny-sweep")):
        assert report_command(above).status == 0
        text = (above / "index.html").read_text()
        section = text.partition('id="sweeps"')[2].partition("</section>")[0]
        assert f"<h3>{name}</h3><p>2 trials. Best: <b>trial-000{best}</b>" in section
        assert f"optimizer.args.lr={0.05 * (1 + best)}" in section
        assert section.index(f">trial-000{best}</a>") < section.index(f">trial-000{1 - best}</a>")
    assert report_command(saved / "tiny").status == 0
    assert 'id="sweeps"' not in (saved / "tiny" / "index.html").read_text()


def test_the_best_trial_of_a_sweep_is_the_best_by_its_monitor(runs, report_command, tmp_path):
    folder = tmp_path / "saved" / "tiny-sweep"
    for number, loss in enumerate((0.3, 0.1, 0.2, 0.05)):
        content = read_report(run_folders(runs)[0] / "report.html")
        content["name"] = content["config"]["name"] = f"trial-{number:04d}"
        content["config"]["trainer"]["monitor"] = "min val_loss"
        content["config"]["optimizer"]["args"]["lr"] = loss
        content["state"] = "training" if number == 3 else "finished"
        content["evaluation"]["metrics"]["Mean_IoU"] = loss
        for record in content["history"]:
            record["val/loss"] = loss + 1 / record["epoch"]
        (folder / content["name"]).mkdir(parents=True)
        (folder / content["name"] / "report.html").write_text(page(content))
    (folder / "sweep.db").touch()
    assert report_command(folder).status == 0
    section = (folder / "index.html").read_text().partition('id="sweeps"')[2].partition("</section>")[0]
    assert "4 trials. Best: <b>trial-0001</b>, val/loss 0.433: <code>optimizer.args.lr=0.1</code>" in section
    order = [section.index(f">trial-000{number}</a>") for number in (1, 2, 0, 3)]
    assert order == sorted(order)


def test_runs_deep_in_a_folder_are_found_once_and_told_apart(runs, report_command, tmp_path):
    saved = tmp_path / "saved"
    for seed, run in enumerate(run_folders(runs)):
        shutil.copytree(run, saved / "tiny" / "2026-01-01_00-00-00" / f"seed-{seed}")
    (saved / "tiny" / "latest").symlink_to("2026-01-01_00-00-00")
    answer = report_command(saved)
    assert answer.out.endswith("2 runs\n")
    text = (saved / "index.html").read_text()
    for seed in (0, 1):
        assert f">tiny 2026-01-01_00-00-00/seed-{seed}</a>" in text


def test_a_report_that_cannot_be_read_is_named_and_the_others_are_shown(runs, report_command, tmp_path):
    copied = tmp_path / "saved"
    shutil.copytree(runs, copied, symlinks=True)
    broken = run_folders(copied)[0] / "report.html"
    broken.write_text("<p>nothing</p>")
    answer = report_command(copied)
    assert answer.status == 3
    assert "holds no report of this version" in answer.err
    assert "1 run" in answer.out
    assert report_command(tmp_path / "nowhere").errors == [
        f"{tmp_path / 'nowhere'}: no such folder. Name one of runs, such as saved/."
    ]


def test_a_run_without_validation_has_a_report_too(train_command, config_file):
    file = config_file({"trainer.epochs": 1, "trainer.val": False, "trainer.monitor": "off"})
    answer = train_command("-c", file, *TINY)
    assert answer.status == 0, answer.err
    (path,) = file.parent.glob("saved/tiny/*-*/report.html")
    assert read_report(path)["evaluation"] is None


def test_the_course_of_a_run_is_kept_over_a_resume(tmp_path):
    recorder = RunRecorder(tmp_path, lambda: None)
    for step in (2, 4, 6):
        recorder.scalars({"train/loss": 1.0 / step, "train/Learning_rate_0": 0.1}, step)
    recorder.scalars({"val/loss": 1.0}, 6)
    (tmp_path / "steps.jsonl").open("a").write('{"step": 8, "secon')  # a kill in the middle of a line
    going_on = RunRecorder(tmp_path, lambda: None, resumed_at=4)
    going_on.scalars({"train/loss": 0.2}, 6)
    lines = read_steps(tmp_path)
    assert [(line["step"], line.get("event")) for line in lines] == [
        *((0, "start"), (2, None), (4, None), (4, "resume"), (6, None))
    ]
    assert total_seconds(lines) >= lines[-1]["seconds"]


def test_reports_are_refreshed_after_validations_now_and_then_and_cost_no_run(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(f"{RunRecorder.__module__}.time.monotonic", lambda: clock.now)
    written = []

    def refresh() -> None:
        written.append(clock.now)
        clock.now += 3.0
        if len(written) > 1:
            raise ValueError("a defect")

    recorder = RunRecorder(tmp_path, refresh)
    for moment in range(0, 2000, 50):
        clock.now = max(clock.now, float(moment))
        recorder.scalars({"val/Mean_IoU": 0.5}, moment)
    assert written[0] >= 120
    assert all(later - sooner >= 120 for sooner, later in itertools.pairwise(written))
    assert 3.0 * len(written) <= 0.02 * 2000


# ------------------------------------------------------------------------------------------------------- comparing


def test_models_are_compared_on_the_command_line(runs, evaluate_command, tmp_path):
    first, second = (folder / "best_model.pth" for folder in run_folders(runs))
    answer = evaluate_command("-m", first, second, "--compare", "--output", tmp_path / "c.json", *TINY)
    assert answer.status == 0, answer.err
    assert "B - A" in answer.out
    (found,) = json.loads((tmp_path / "c.json").read_text())["comparisons"]
    values = [
        json.loads((folder / "results.json").read_text())["metrics"]["val/Mean_IoU"] for folder in run_folders(runs)
    ]
    assert found["Mean_IoU"]["value"] == pytest.approx(values[1] - values[0])
    assert found["Mean_IoU"]["low"] <= found["Mean_IoU"]["value"] <= found["Mean_IoU"]["high"]


def test_a_checkpoint_compared_with_itself_differs_by_nothing(runs, evaluate_command):
    model = run_folders(runs)[0] / "best_model.pth"
    answer = evaluate_command("-m", model, model, "--compare", *TINY)
    assert answer.status == 0, answer.err
    (line,) = (line for line in answer.out.splitlines() if line.startswith("Mean_IoU"))
    assert "+0.0000   [+0.0000, +0.0000]" in line
    assert "No difference that is more than noise" in answer.out


def test_files_and_reports_are_compared_too(runs, evaluate_command, tmp_path):
    first, second = run_folders(runs)
    results = evaluate_command("--compare", first / "results.json", second / "results.json")
    assert results.status == 0, results.err
    reports = evaluate_command("--compare", first / "report.html", second / "report.html")
    assert reports.status == 0, reports.err
    assert results.out.splitlines()[3:] == reports.out.splitlines()[3:]
    (tmp_path / "old.json").write_text('{"metrics": {}}')
    old = evaluate_command("--compare", first / "results.json", tmp_path / "old.json")
    assert old.status == 2
    assert "holds no figures of single images" in old.errors[0]


def test_figures_of_other_protocols_splits_or_images_are_not_compared(runs, evaluate_command, tmp_path):
    model = run_folders(runs)[0] / "best_model.pth"
    for name, flags in {"a": [], "flip": ["--flip"], "train": ["--split", "train"]}.items():
        assert evaluate_command("-m", model, "--output", tmp_path / f"{name}.json", *flags, *TINY).status == 0
    flipped = evaluate_command("--compare", tmp_path / "a.json", tmp_path / "flip.json")
    assert flipped.status == 2
    assert any("protocol: flip is true, but false" in line for line in flipped.errors)
    train = evaluate_command("--compare", tmp_path / "a.json", tmp_path / "train.json")
    assert train.status == 2
    assert any("protocol: split" in line for line in train.errors)
    images = [{"key": "a", "Mean_IoU": 0.5, "classes": [[0, 1, 2, 2]]}]
    one = Measurement("one", ["x"], [], {}, images)
    other = Measurement("other", ["x"], [], {}, [{**images[0], "key": "b"}])
    assert why_not_comparable(one, other) == [
        "2 images were measured for one of the two only. Evaluate both on the same split."
    ]
    with pytest.raises(ConfigError, match="labels differ"):
        compare(one, Measurement("o", ["x"], [], {}, [{**images[0], "classes": [[0, 1, 3, 2]]}]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "command line: no model. Name one with --model, or files with --compare."),
        (["-m", "a.pth", "--ensemble"], "--ensemble: one model. Name two or more with --model."),
        (["--compare", "a.json", "b.json", "--report", "c.html"], "--report: has no effect with --compare FILES."),
        (["--compare", "a.json", "b.json", "--split", "val"], "--split: has no effect with --compare FILES."),
        (["-m", "a.pth", "--compare"], "--compare: one model. Name two or more with --model, or files."),
        (
            ["-m", "a", "b", "--output", "r.json"],
            "--output: holds the figures of one model. Name one, or add --ensemble",
        ),
        (["-m", "a.pth", "--canvas", "c.png", "-n", "0"], "--canvas: -n 0 images. Give 1 or more."),
        (["--compare", "a.json", "b.json", "--canvas", "c.png"], "--canvas: files hold no images. Name models."),
        (["-m", "a", "b", "--report", "r.html"], "--report: shows one model. Name one, or add --ensemble."),
    ],
)
def test_flags_that_contradict_each_other_are_named(evaluate_command, flags, message):
    answer = evaluate_command(*flags)
    assert answer.status == 2
    assert answer.errors[0].startswith(message)


def test_a_canvas_shows_the_same_images_with_truth_and_the_prediction_of_every_model(
    runs, evaluate_command, tmp_path, monkeypatch
):
    from engine.reporting import canvas
    from utils.images import read_image

    drawn: list[Any] = []
    sheet = canvas.comparisons_sheet
    monkeypatch.setattr(canvas, "comparisons_sheet", lambda *a, **k: (drawn.append(a), sheet(*a, **k))[1])
    models = [folder / "best_model.pth" for folder in run_folders(runs)]
    for name in ("one.png", "two.png"):
        answer = evaluate_command("-m", *models, "--canvas", tmp_path / name, "-n", 3, *TINY)
        assert answer.status == 0, answer.err
        assert f"written to {tmp_path / name}" in answer.out
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    assert read_image(tmp_path / "one.png").shape[1] == 4 * 300
    rows, _, headings = drawn[0]
    assert headings == ["image", "truth", *map(str, models)]
    assert [len(maps) for _, _, _, maps in rows] == [3, 3, 3]
    dataset = Squares(split="val", length=7)
    items = {sample.key: dataset.read(index) for index, sample in enumerate(dataset.samples)}
    for key, _, image, (truth, *predicted) in rows:
        assert np.array_equal(image, items[key].image)
        assert np.array_equal(truth, items[key].label)
        assert len(predicted) == 2
    few = evaluate_command("-m", models[0], "--canvas", tmp_path / "all.png", "-n", 50, "--split", "val", *TINY)
    assert few.status == 0, few.err
    assert len(drawn[-1][0]) == 7


def test_an_ensemble_averages_logits(runs, evaluate_command, tmp_path):
    first, second = (folder / "best_model.pth" for folder in run_folders(runs))
    flags = ["--ensemble", "--output", tmp_path / "e.json", "--report", tmp_path / "e.html", *TINY]
    assert evaluate_command("-m", first, first, *flags).status == 0
    twice = json.loads((tmp_path / "e.json").read_text())
    alone = json.loads((run_folders(runs)[0] / "results.json").read_text())
    assert twice["metrics"]["Mean_IoU"] == alone["metrics"]["val/Mean_IoU"]
    assert evaluate_command("-m", first, second, *flags).status == 0
    both = json.loads((tmp_path / "e.json").read_text())
    assert both["checkpoint"] == "best_model.pth + best_model.pth"
    assert both["protocol"]["models"] == 2
    assert "models" not in alone["protocol"]
    assert "2 models averaged" in (tmp_path / "e.html").read_text().partition("segwright-report")[0]
    compared = evaluate_command("--compare", run_folders(runs)[0] / "results.json", tmp_path / "e.json")
    assert compared.status == 0, compared.err
    assert read_report(tmp_path / "e.html")["evaluation"]["images"] == both["image_figures"]


def test_models_that_saw_images_at_other_sizes_are_not_averaged():
    from engine.reporting.ensemble import Ensemble
    from utils.errors import CheckpointError

    table = ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9)), ((0,), (1,)))
    one, other = (SimpleNamespace(classes=table, device="cpu", prepare=size) for size in (None, 64))
    with pytest.raises(CheckpointError, match="another size"):
        Ensemble([one, other])  # type: ignore[list-item]


def test_a_file_with_half_of_the_figures_is_named(evaluate_command, tmp_path):
    file = tmp_path / "half.json"
    for images in ([{"key": "a"}], [{"key": "a", "classes": [[7, 1, 1, 1]]}], [3]):
        file.write_text(json.dumps({"classes": [{"name": "x"}], "protocol": {}, "image_figures": images}))
        answer = evaluate_command("--compare", file, file)
        assert answer.status == 2, answer.err
        assert "holds no figures of single images" in answer.errors[0]


def test_logits_of_an_ensemble_are_the_mean_at_one_size():
    from engine.reporting.ensemble import Ensemble

    table = ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9)), ((0,), (1,)))

    def predictor(*shape: int) -> Any:
        values = torch.randn(1, 2, *shape)
        return SimpleNamespace(classes=table, device="cpu", prepare=None, logits=lambda images: values, values=values)

    one, two, other = predictor(8, 8), predictor(8, 8), predictor(4, 4)
    images = torch.zeros(1, 3, 16, 16)
    assert torch.equal(Ensemble([one, two]).logits(images), (one.values + two.values) / 2)
    assert Ensemble([one, other]).logits(images).shape == (1, 2, 16, 16)


# ----------------------------------------------------------------------------------------------- config and limits


def test_only_what_is_not_the_default_is_called_different(runs):
    config = json.loads((run_folders(runs)[0] / "config.json").read_text())
    found = {each["key"]: (each["old"], each["new"]) for each in config_view.differences_to_defaults(config)}
    assert found["trainer.save_period"] == (10, 2)
    assert found["n_gpu"] == (1, 0)
    assert found["train_loader.args.crop_size"] == (None, 32)
    assert found["arch.args.backbone.args.width_mult"] == (1.0, 0.125)
    assert "trainer.keep_last" not in found
    assert not any(old == new for old, new in found.values())


def test_the_choices_of_a_plan_are_found_by_the_command_and_shown_with_their_reasons(tmp_path):
    choice = {"what": "crop_size", "value": [64, 96], "reason": "images of 65x97 <px>"}
    (tmp_path / "mine.plan.json").write_text(json.dumps({"choices": [choice]}))
    command = ["train.py", "-c", str(tmp_path / "mine.json")]
    assert config_view.choices_of_plan(command) == [choice]
    named = str(tmp_path / "mine.json")
    for words in ([named], [f"--config={named}"], ["-s", "init_from=a.json", named]):
        assert config_view.choices_of_plan(["train.py", *words]) == [choice]
    shown = plan_table([choice])
    assert "images of 65x97 &lt;px&gt;" in shown
    assert "[64, 96]" in shown
    (tmp_path / "mine.plan.json").write_text('{"choices": 3}')
    assert config_view.choices_of_plan(command) == config_view.choices_of_plan(["train.py"]) == []
    assert plan_table([]) == ""


def test_the_parent_of_a_config_is_found_by_the_command(tmp_path):
    (tmp_path / "parent.json").write_text('{"seed": 3, "trainer": {"epochs": 5}}')
    (tmp_path / "child.json").write_text('{"extends": "parent.json", "seed": 4}')
    config = {"seed": 4, "trainer": {"epochs": 5, "val": True}}
    names, found = config_view.differences_to_parent(config, ["train.py", "-c", str(tmp_path / "child.json")])
    assert names == "parent.json"
    assert found == [{"key": "seed", "old": 3, "new": 4}]
    assert config_view.differences_to_parent(config, ["train.py"]) == ("", [])


def test_long_runs_keep_few_points_and_all_events():
    steps = [{"step": 0, "event": "start"}, *({"step": step, "seconds": step} for step in range(1, 5001))]
    found = thinned(steps)
    assert len(found) <= 601
    assert found[0]["event"] == "start"
    assert found[-1]["step"] == 5000


def test_points_that_another_one_beats_are_not_on_the_front():
    points = [(1.0, 0.3), (2.0, 0.2), (3.0, 0.5), (4.0, 0.5)]
    assert pareto(points, less_is_better=True) == [(1.0, 0.3), (3.0, 0.5)]
    assert pareto(points, less_is_better=False) == [(4.0, 0.5)]


def large_content(tmp_path: Path, epochs: int = 200, images: int = 100) -> dict[str, Any]:
    """What a report of many epochs and of photo-like images at 480x360 holds."""
    rng = np.random.default_rng(0)
    names = tuple(f"class {index}" for index in range(11))
    table = ClassTable(
        names, tuple((20 * index, 255 - 20 * index, 90) for index in range(11)), tuple((i,) for i in range(11))
    )
    collector = Collector(table, Metrics(11, names))
    scenes_of_classes = []
    for _ in range(10):
        coarse = torch.from_numpy(rng.normal(size=(1, 11, 12, 16)).astype(np.float32))
        logits = 4 * resize(coarse, (90, 120))
        labels = predicted_labels(logits, (360, 480))
        logits = logits + torch.from_numpy(rng.normal(size=(1, 11, 90, 120)).astype(np.float32))
        colors = resize(torch.from_numpy(rng.random((1, 3, 90, 120))), (360, 480))
        photo = (colors * 200 + torch.from_numpy(rng.random((1, 3, 360, 480))) * 50).to(torch.uint8)
        scenes_of_classes.append((photo, labels, logits))
    for number in range(images):
        photo, labels, logits = scenes_of_classes[number % 10]
        predicted = collector.metrics.add(logits, labels)
        collector.listen(PredictedBatch(photo, labels, logits, predicted, (f"frame_{number:04d}",)))
    figures = {f"val/Class_IoU/{name}": 0.5 for name in names}
    history = [
        {
            "epoch": epoch,
            "step": 45 * epoch,
            "train/loss": 1 / epoch,
            "val/loss": 1.1 / epoch,
            "val/Mean_IoU": 0.5,
            **figures,
        }
        for epoch in range(1, epochs + 1)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in history))
    (tmp_path / "config.json").write_text('{"name": "large"}')
    measured = {"evaluation": collector.to_json(), **collector.pictures()}
    return run_content(tmp_path, protocol={"mode": "single"}, classes=table, results={"epoch": 1}, measured=measured)


def test_a_report_of_200_epochs_and_100_images_is_below_3_mb(tmp_path):
    assert len(page(large_content(tmp_path)).encode()) <= MOST_BYTES


# ------------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no chromium")
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=CHROMIUM, args=SWITCHES)
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens a file at a width and in a color scheme; fails at the end if a page complained."""
    complaints: list[str] = []
    contexts = []

    def open_(path: Path, width: int = 1440, scheme: str = "light") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        opened = context.new_page()
        opened.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        opened.on("pageerror", lambda error: complaints.append(str(error)))
        opened.on("request", lambda r: complaints.append(r.url) if r.url.startswith("http") else None)
        opened.goto(path.resolve().as_uri())
        return opened

    yield open_
    for context in contexts:
        context.close()
    assert not complaints


def test_pages_fit_a_phone_and_a_screen_in_light_and_dark(runs, open_page):
    for path in (run_folders(runs)[0] / "report.html", runs / "index.html"):
        for width in (390, 1440):
            for scheme in ("light", "dark"):
                opened = open_page(path, width, scheme)
                assert opened.evaluate("document.documentElement.scrollWidth") <= width
                assert opened.evaluate("document.documentElement.dataset.theme") == scheme


def test_the_theme_can_be_changed_and_is_remembered(runs, open_page):
    opened = open_page(run_folders(runs)[0] / "report.html")
    opened.click("#theme")
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.reload()
    assert opened.evaluate("document.documentElement.dataset.theme") == "dark"


def test_tables_sort_by_keyboard(runs, open_page):
    opened = open_page(run_folders(runs)[0] / "report.html")
    opened.focus("#class-table thead th:nth-child(2) button")
    opened.keyboard.press("Enter")
    column = "[...document.querySelectorAll('#class-table tbody tr')].map((row) => Number(row.cells[1].dataset.v))"
    values = opened.evaluate(column)
    assert values == sorted(values, reverse=True)
    opened.keyboard.press("Enter")
    assert opened.evaluate(column) == sorted(values)
    assert opened.get_attribute("#class-table thead th:nth-child(2)", "aria-sort") == "ascending"


def test_the_cursor_reads_all_curves_at_once(runs, open_page):
    folder = run_folders(runs)[0]
    opened = open_page(folder / "report.html")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    opened.focus('.plot[data-chart="loss"]')
    opened.keyboard.press("Home")
    opened.keyboard.press("End")
    readout = opened.text_content('.chart:has([data-chart="mean-iou"]) .readout')
    assert f"step {lines[-1]['step']}, epoch 3" in readout
    assert f"{lines[-1]['val/Mean_IoU']:.4f}" in readout
    assert f"{lines[-1]['train/loss']:.4f}" in opened.text_content('.chart:has([data-chart="loss"]) .readout')


def test_smoothing_and_the_logarithmic_scale_redraw_the_curves(runs, open_page):
    opened = open_page(run_folders(runs)[0] / "report.html")
    path = "document.querySelector('.plot[data-chart=loss] [data-g=series-0] path').getAttribute('d')"
    before = opened.evaluate(path)
    opened.fill("#smoothing", "0.6")
    smooth = opened.evaluate(path)
    opened.fill("#smoothing", "0")
    assert opened.evaluate(path) == before
    opened.check("#log-scale")
    assert smooth != before
    assert opened.evaluate(path) not in (before, smooth)
    assert opened.locator(".plot[data-chart=loss] .log-axis text").count() >= 1
    opened.uncheck("#log-scale")
    assert opened.evaluate(path) == before


def test_the_gallery_filters_mixes_and_enlarges(runs, open_page):
    opened = open_page(run_folders(runs)[0] / "report.html")
    assert opened.locator("#pictures .picture").count() == 7
    opened.select_option("#gallery-class", "dot")
    assert opened.locator("#pictures .picture").count() == 3
    opened.fill("#opacity", "20")
    assert float(opened.evaluate("getComputedStyle(document.querySelector('#pictures .layer')).opacity")) == 0.2
    source = opened.get_attribute("#pictures .layer >> nth=0", "src")
    opened.check('input[name="layer"][value="errors"]')
    assert opened.get_attribute("#pictures .layer >> nth=0", "src") != source
    assert opened.is_visible("#error-legend")
    opened.focus("#pictures button >> nth=0")
    opened.keyboard.press("Enter")
    assert opened.locator("#viewer-panes img").count() == 5
    opened.keyboard.press("+")
    styles = opened.evaluate(
        "[...document.querySelectorAll('#viewer-panes img')].map((image) => image.style.transform)"
    )
    assert len(set(styles)) == 1
    assert "scale(1.25)" in styles[0]
    opened.keyboard.press("Escape")
    assert not opened.is_visible("#viewer")


def test_a_confusion_leads_to_its_images_and_the_matrix_changes_its_shares(runs, open_page):
    opened = open_page(run_folders(runs)[0] / "report.html")
    opened.click("[data-confusion='0']")
    assert "is taken for" in opened.text_content("#gallery-note")
    cells = "[...document.querySelectorAll('.matrix td[data-t]')].map((cell) => cell.textContent).join()"
    before = opened.evaluate(cells)
    opened.check('input[name="norm"][value="predicted"]')
    assert opened.evaluate(cells) != before


def test_two_runs_picked_are_compared_as_on_the_command_line(runs, open_page, evaluate_command):
    opened = open_page(runs / "index.html")
    for box in opened.locator("[data-pick]").all():
        box.check()
    opened.wait_for_selector("#comparison", timeout=15_000)
    first, second = run_folders(runs)
    values = [
        json.loads((folder / "results.json").read_text())["metrics"]["val/Mean_IoU"] for folder in (first, second)
    ]
    row = opened.text_content("#comparison tbody tr >> nth=0")
    gain = values[1] - values[0]
    assert f"{'−' if gain < 0 else '+'}{abs(gain):.3f}" in row
    assert "optimizer.args.lr" in opened.text_content("#picked")
    assert opened.locator("#picked svg").count() >= 2


def test_the_index_searches_names_and_config_values(runs, open_page):
    opened = open_page(runs / "index.html")
    visible = "[...document.querySelectorAll('#runs tbody tr')].filter((row) => !row.hidden).length"
    assert opened.evaluate(visible) == 2
    opened.fill("#search", "optimizer.args.lr=0.1")
    assert opened.evaluate(visible) == 1
    opened.fill("#search", "no such run")
    assert opened.evaluate(visible) == 0


def test_changed_keys_are_drawn_as_axes_of_the_runs_that_are_shown(runs, open_page, report_command, tmp_path):
    copied = tmp_path / "saved"
    shutil.copytree(runs, copied, symlinks=True)
    content = read_report(run_folders(copied)[0] / "report.html")
    content["config"]["optimizer"]["type"] = "Adam"
    (copied / "tiny" / "third").mkdir()
    (copied / "tiny" / "third" / "report.html").write_text(page(content))
    assert report_command(copied).status == 0
    opened = open_page(copied / "index.html", 390)
    axes = "[...document.querySelectorAll('#parallel .axis-title > title')].map((title) => title.textContent)"
    assert sorted(opened.evaluate(axes)[:-1]) == ["optimizer.args.lr", "optimizer.type", "seed"]
    assert opened.evaluate(axes)[-1] == "mean IoU"
    assert opened.locator("#parallel .run-line").count() == 3
    assert opened.evaluate("document.querySelector('#parallel').scrollWidth") > 390
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    opened.hover('#changed tr[data-run="1"]')
    assert opened.get_attribute("#parallel .highlit", "data-line") == "1"
    assert "tiny" in opened.text_content("#parallel-readout")
    opened.fill("#search", 'optimizer.type="SGD')
    assert opened.locator("#parallel .run-line").count() == 2
    assert sorted(opened.evaluate(axes)) == ["mean IoU", "optimizer.args.lr", "seed"]
    opened.fill("#search", "third")
    assert "do not differ" in opened.text_content("#parallel")


def test_more_runs_picked_show_their_spread(runs, open_page, report_command, tmp_path):
    copied = tmp_path / "saved"
    shutil.copytree(runs, copied, symlinks=True)
    shutil.copytree(run_folders(copied)[0], copied / "tiny" / "third")
    assert report_command(copied).status == 0
    opened = open_page(copied / "index.html")
    for box in opened.locator("[data-pick]").all():
        box.check()
    opened.wait_for_selector("#picked svg", timeout=15_000)
    assert "Noise floor" in opened.text_content("#picked")


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of axe-core, which finds what hinders people with impairments; from npm's own client."""
    path = os.environ.get("AXE_CORE")
    if path:
        return Path(path).read_text(encoding="utf-8")
    npm, folder = shutil.which("npm"), tmp_path_factory.mktemp("axe")
    if npm is None:
        pytest.skip("no npm")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", "--fetch-retries=0", "axe-core@4"]
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip("npm cannot install axe-core")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text(encoding="utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_hinders_people_with_impairments(runs, open_page, axe, scheme):
    for path in (run_folders(runs)[0] / "report.html", runs / "index.html"):
        opened = open_page(path, scheme=scheme)
        opened.evaluate(axe)
        assert opened.locator("#parallel svg").count() == (path.name == "index.html")
        found = opened.evaluate("axe.run().then((result) => result.violations)")
        serious = [
            (each["id"], each["nodes"][0]["html"][:200]) for each in found if each["impact"] in ("serious", "critical")
        ]
        assert not serious, (path.name, serious)
