"""Figures from label maps, against numpy and against numbers worked out by hand."""

import json
from typing import get_type_hints

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import evaluate
import train
from base.base_trainer import TrainerConfig
from tests.conftest import PREFIX, call
from tests.tiny import tiny_config
from utils.classes import IGNORE
from utils.json_schema import json_schema
from utils.losses.strips import predicted_labels
from utils.metrics import ConfusionMatrix, Metrics, boundary, confusion_matrix
from utils.metrics.base import MatrixMetric, PixelMetric
from utils.metrics.boundary import BoundaryIoU
from utils.registry import METRICS
from utils.schema import Mismatch, convert

NAMES = ["road", "sky", "a tree", "car", "dog"]
OF_MATRIX = ["Mean_Accuracy", "Mean_Precision", "Mean_Recall", "Mean_F1", "Frequency_Weighted_IoU"]
OF_PIXELS = ["Boundary_IoU", "Calibration_Error"]


def maps(shape=(2, 65, 97), classes=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=shape).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = IGNORE
    return torch.from_numpy(rng.integers(classes, size=shape).astype(np.uint8)), torch.from_numpy(labels)


def counted(predictions, labels, classes=5):
    predictions, labels = predictions.numpy().ravel().astype(int), labels.numpy().ravel().astype(int)
    kept = labels != IGNORE
    pairs = np.bincount(labels[kept] * classes + predictions[kept], minlength=classes**2)
    return torch.from_numpy(pairs.reshape(classes, classes))


@pytest.mark.parametrize("classes", [1, 2, 5, 150, 255])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_counts_are_those_of_numpy(classes, dtype):
    predictions, labels = maps(classes=classes)
    matrix = ConfusionMatrix(classes, [str(k) for k in range(classes)])
    for prediction, label in zip(predictions, labels, strict=True):
        matrix.update(prediction[None].to(dtype), label[None].to(dtype))
    assert matrix.counts.dtype == torch.int64
    assert torch.equal(matrix.counts, counted(predictions, labels, classes))


def test_the_way_for_other_devices_counts_the_same(monkeypatch):
    predictions, labels = maps()
    matrix = ConfusionMatrix(5, NAMES)
    monkeypatch.setattr(confusion_matrix, "on_cpu", lambda tensor: False)
    matrix.update(predictions, labels)
    assert torch.equal(matrix.counts, counted(predictions, labels))


def test_more_pixels_than_float32_can_count_are_counted_exactly():
    count = 2**24 + 1001
    matrix = ConfusionMatrix(2, ["a", "b"])
    matrix.update(torch.zeros(1, 1, count, dtype=torch.uint8), torch.zeros(1, 1, count, dtype=torch.uint8))
    matrix.update(torch.ones(1, 1, 1, dtype=torch.uint8), torch.zeros(1, 1, 1, dtype=torch.uint8))
    assert matrix.counts.tolist() == [[count, 1], [0, 0]]
    assert matrix.results()["Mean_IoU"] == (count / (count + 1) + 0) / 2


def test_figures_do_not_depend_on_the_batching():
    predictions, labels = maps((8, 33, 50))
    results = []
    for size in (1, 4, 8):
        matrix = ConfusionMatrix(5, NAMES)
        for pair in zip(predictions.split(size), labels.split(size), strict=True):
            matrix.update(*pair)
        results.append(matrix.results())
    assert results[0] == results[1] == results[2]


def test_classes_that_occur_nowhere_are_not_in_the_mean():
    labels = torch.tensor([[[0, 0, 1, 1, IGNORE]]], dtype=torch.uint8)
    matrix = ConfusionMatrix(5, NAMES)
    matrix.update(torch.tensor([[[0, 0, 1, 0, 3]]], dtype=torch.uint8), labels)
    results = matrix.results()
    assert results["Pixel_Accuracy"] == 3 / 4
    assert results["Class_IoU/road"] == 2 / 3
    assert results["Class_IoU/sky"] == 1 / 2
    assert results["Mean_IoU"] == pytest.approx((2 / 3 + 1 / 2) / 2, rel=1e-15)
    assert results["Mean_IoU_all_classes"] == pytest.approx((2 / 3 + 1 / 2) / 5, rel=1e-15)
    assert [key for key in results if key.startswith("Class_IoU")] == ["Class_IoU/road", "Class_IoU/sky"]
    assert set(results) <= set(matrix.keys())


def test_a_class_that_is_ignored_is_in_no_mean_but_predicting_it_is_an_error():
    labels = torch.tensor([[[1, 1, 1, 2]]], dtype=torch.uint8)
    matrix = ConfusionMatrix(5, NAMES, ignored_classes=[0])
    matrix.update(torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8), labels)
    results = matrix.results()
    assert results["Pixel_Accuracy"] == 3 / 4
    assert results["Mean_IoU"] == (2 / 3 + 1) / 2
    assert results["Mean_IoU_all_classes"] == pytest.approx((2 / 3 + 1) / 4)
    assert "Class_IoU/road" not in results
    assert "Class_IoU/road" not in matrix.keys()  # noqa: SIM118  a method of its own


def test_a_split_without_labels_gives_no_figures_and_plain_json():
    matrix = Metrics(5, NAMES, names=OF_MATRIX)
    matrix.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), IGNORE, dtype=torch.uint8))
    assert matrix.results() == {}
    assert json.loads(json.dumps(matrix.table(), allow_nan=False))[0] == {
        "name": "road", "pixels": 0, "iou": None, "precision": None, "recall": None, "f1": None,
    }  # fmt: skip


def test_all_figures_agree_with_their_definitions():
    predictions, labels = maps()
    predictions[labels == 0] = 0
    matrix = Metrics(5, NAMES, names=OF_MATRIX)
    matrix.update(predictions, labels)
    kept = labels != IGNORE
    p, t = predictions[kept].numpy(), labels[kept].numpy()
    hits, truth, found = (np.array([np.sum(x == k) for k in range(5)]) for x in (p[p == t], t, p))
    iou, precision, recall = hits / (truth + found - hits), hits / found, hits / truth
    expected = {
        "Pixel_Accuracy": np.mean(p == t),
        "Mean_IoU": iou.mean(),
        "Mean_IoU_all_classes": iou.mean(),
        "Mean_Accuracy": recall.mean(),
        "Mean_Recall": recall.mean(),
        "Mean_Precision": precision.mean(),
        "Mean_F1": (2 * precision * recall / (precision + recall)).mean(),
        "Frequency_Weighted_IoU": (truth / truth.sum() * iou).sum(),
        **{f"Class_IoU/{name}": value for name, value in zip(NAMES, iou, strict=True)},
    }
    results = matrix.results()
    assert results == pytest.approx(expected, rel=1e-12)
    assert {type(value) for value in results.values()} == {float}
    assert list(results) == [*matrix.keys()]
    row = matrix.table()[2]
    assert row["pixels"] == truth[2]
    assert (row["iou"], row["precision"], row["recall"]) == pytest.approx((iou[2], precision[2], recall[2]))


def test_counts_go_through_a_checkpoint(tmp_path):
    matrix, restored = ConfusionMatrix(5, NAMES), ConfusionMatrix(5, NAMES)
    matrix.update(*maps())
    torch.save(matrix.state_dict(), tmp_path / "state.pth")
    restored.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert restored.results() == matrix.results()
    matrix.reset()
    assert matrix.counts.sum() == 0
    assert restored.counts.sum() > 0


@pytest.mark.parametrize(
    ("low", "full"), [((9, 13), (65, 97)), ((17, 25), (65, 97)), ((65, 97), (65, 97)), ((40, 30), (21, 50))]
)
@pytest.mark.parametrize("classes", [1, 2, 21, 255])
def test_predicted_labels_are_the_argmax_of_resized_logits(low, full, classes):
    torch.manual_seed(0)
    logits = torch.randn(2, classes, *low)
    labels = predicted_labels(logits, full)
    resized = F.interpolate(logits.double(), size=full, mode="bilinear", align_corners=False)
    assert labels.dtype == torch.uint8
    best = resized.max(1).values
    chosen = resized.gather(1, labels.long()[:, None])[:, 0]
    assert (best - chosen).max() < 1e-5  # only rounding may decide otherwise
    assert (labels != resized.argmax(1)).float().mean() < 1e-3


def test_of_equal_logits_the_first_class_wins():
    logits = torch.zeros(1, 7, 9, 13)
    logits[:, 3:] = 1
    assert (predicted_labels(logits, (9, 13)) == 3).all()
    assert (predicted_labels(logits, (65, 97)) == 3).all()


def test_predictions_do_not_depend_on_the_batching():
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 9, 13).bfloat16()
    whole = predicted_labels(logits, (65, 97))
    assert torch.equal(whole, torch.cat([predicted_labels(image, (65, 97)) for image in logits.split(1)]))


def scene(images=4, size=(65, 97), low=(17, 25), classes=5, seed=0):
    """Logits (N, C, h, w), and labels (N, H, W) in patches that they predict better than chance; some void."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(classes, (images, 1, 6, 7), generator=generator)
    coarse = F.interpolate(patches.float(), size=low)[:, 0].long()
    labels = F.interpolate(patches.float(), size=size)[:, 0].to(torch.uint8)
    labels[:, 20:30, 40:60] = IGNORE
    return F.one_hot(coarse, classes).movedim(-1, 1) * 2 + torch.randn(
        images, classes, *low, generator=generator
    ), labels


def every_figure(logits, labels, batch):
    figures = Metrics(5, NAMES, names=[*OF_MATRIX, *OF_PIXELS])
    for pair in zip(logits.split(batch), labels.split(batch), strict=True):
        figures.add(*pair)
    return figures


def test_every_figure_has_a_name_that_a_config_may_say():
    assert {*METRICS} == {*OF_MATRIX, *OF_PIXELS}
    figures = every_figure(*scene(), 1)
    assert [*figures.results()] == figures.keys()[:3] + OF_MATRIX + [
        *(f"Class_IoU/{name}" for name in NAMES), *OF_PIXELS,
    ]  # fmt: skip
    assert sorted(figures.keys()) == sorted(figures.results())
    figures.reset()
    assert figures.results() == {}


def bands_by_definition(labels, reach, classes=5):
    """Of each class's mask, what `reach` erosions by 3 x 3 take away; beyond the image lies nothing. (C, H, W) bool."""
    masks = np.stack([labels == k for k in range(classes)])
    inner = masks
    for _ in range(reach):
        padded = np.pad(inner, ((0, 0), (1, 1), (1, 1)))
        height, width = labels.shape
        inner = np.logical_and.reduce([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])
    return masks & ~inner


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize(("size", "reach"), [((65, 97), 2), ((20, 31), 1), ((120, 161), 4)])
def test_boundary_iou_is_that_of_the_bands_along_contours(size, reach, on_cpu, monkeypatch):
    monkeypatch.setattr(boundary, "on_cpu", lambda tensor: on_cpu)
    logits, labels = scene(3, size)
    predictions = predicted_labels(logits, size)
    figure = BoundaryIoU(5, 0.02)
    hits, union = np.zeros(5), np.zeros(5)
    for each in zip(logits, predictions, labels, strict=True):
        figure.update(*each)
        void = each[2].numpy() == IGNORE
        predicted, truth = (np.where(void, IGNORE, x.numpy()) for x in each[1:])
        found, there = bands_by_definition(predicted, reach), bands_by_definition(truth, reach)
        hits, union = hits + (found & there).sum((1, 2)), union + (found | there).sum((1, 2))
    assert figure.value(torch.ones(5, dtype=torch.bool)).item() == pytest.approx(np.mean(hits / union), rel=1e-12)
    shown = torch.tensor([False, True, True, False, True])
    assert figure.value(shown).item() == pytest.approx(np.mean((hits / union)[[1, 2, 4]]), rel=1e-12)


def test_boundary_iou_of_a_shifted_square_is_worse_than_its_iou():
    labels = torch.zeros(1, 100, 100, dtype=torch.uint8)
    labels[0, 20:80, 20:80] = 1
    shifted = labels.roll(3, 2)
    logits = 9.0 * F.one_hot(shifted.long(), 2).movedim(-1, 1)
    figures = Metrics(2, ["ground", "square"], [0], ["Boundary_IoU"])
    figures.add(logits, labels)
    band = 60**2 - 54**2  # within 3 pixels of the contour, 2 % of the diagonal
    # The rows of both bands along the top and bottom meet in 57 of 60 columns, those along the sides in none.
    overlap = 2 * 3 * 57
    assert figures.results()["Boundary_IoU"] == overlap / (2 * band - overlap)
    assert figures.results()["Boundary_IoU"] < figures.results()["Mean_IoU"]


def test_calibration_error_is_the_gap_between_probability_and_accuracy():
    logits, labels = scene()
    figures = every_figure(logits, labels, 2)
    p = F.softmax(F.interpolate(logits, size=(65, 97), mode="bilinear", align_corners=False), 1).movedim(1, -1)
    p, truth = p[labels != IGNORE].numpy().astype(float), labels[labels != IGNORE].numpy()
    confidence, right = p.max(1), p.argmax(1) == truth
    error = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert figures.results()["Calibration_Error"] == pytest.approx(error, abs=1e-6)
    sure = Metrics(5, NAMES, names=["Calibration_Error"])
    sure.add(50.0 * F.one_hot(labels.long() % 5, 5).movedim(-1, 1), labels)
    assert sure.results()["Calibration_Error"] == pytest.approx(0, abs=1e-6)


def test_figures_are_the_same_for_any_batch():
    logits, labels = scene(5)
    assert every_figure(logits, labels, 4).results() == every_figure(logits, labels, 1).results()


def test_reducing_a_single_process_changes_nothing():
    figures = every_figure(*scene(), 1)
    expected = figures.results()
    figures.reduce()
    assert figures.results() == expected


def test_a_config_and_evaluate_name_further_figures(tmp_path):
    config = tiny_config(tmp_path / "saved")
    config["trainer"] |= {"epochs": 1, "metrics": ["Mean_F1", "Boundary_IoU"], "monitor": "max Boundary_IoU"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call(train, "-c", tmp_path / "config.json", "--import", "tests.tiny").status == 0
    (run_dir,) = (tmp_path / "saved" / "tiny").glob("2*")
    (line,) = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert {"val/Mean_F1", "val/Boundary_IoU"} <= line.keys()
    model, output = run_dir / "best_model.pth", tmp_path / "results.json"
    command = ("-m", model, "-d", "cpu", "--import", "tests.tiny", "--output", output)
    assert call(evaluate, *command).status == 0
    figures = json.loads(output.read_text())["metrics"]
    assert figures["Boundary_IoU"] == line["val/Boundary_IoU"]
    assert call(evaluate, *command, "--metrics", "Calibration_Error").status == 0
    figures = json.loads(output.read_text())["metrics"]
    assert "Calibration_Error" in figures
    assert "Boundary_IoU" not in figures
    assert call(evaluate, *command, "--metrics", "Boundery_IoU").errors == [
        "--metrics Boundery_IoU: no such figure. Did you mean 'Boundary_IoU'?"
    ]
    config["trainer"]["val"] = False
    (tmp_path / "config.json").write_text(json.dumps(config))
    errors = call(train, "-c", tmp_path / "config.json", "--check", "--import", "tests.tiny").errors
    assert "trainer.metrics: has no effect with trainer.val false. Remove it, or validate." in errors


THEIRS = f'''
"""Metrics of a third party."""

import torch

from {PREFIX}utils.metrics.base import MatrixMetric, PixelMetric
from {PREFIX}utils.registry import METRICS


@METRICS.register("Worst_IoU")
class WorstIoU(MatrixMetric):
    """IoU of the worst class."""

    def value(self, matrix, in_mean):
        hits = matrix.diag()
        return (hits / (matrix.sum(0) + matrix.sum(1) - hits))[in_mean].nan_to_num(nan=1).min()


@METRICS.register("Void_Share", label=255)
class LabelShare(PixelMetric):
    """Share of the pixels that have a label."""

    def __init__(self, label: int, class_names: tuple[str, ...]) -> None:
        super().__init__(2)
        assert class_names == ("ground", "square", "dot")
        self.label = label

    def update(self, logits, predictions, labels):
        self.on(labels.device).add_(torch.stack([(labels == self.label).sum(), torch.tensor(labels.numel())]))

    def value(self, in_mean):
        found, pixels = self.total()
        return found / pixels
'''


def test_a_metric_of_a_third_party_is_imported_and_named(tmp_path, monkeypatch):
    (tmp_path / "their_metrics.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))
    imports = ("--import", "tests.tiny", "--import", "their_metrics")
    config = tiny_config(tmp_path / "saved")
    config["trainer"] |= {"epochs": 1, "metrics": ["Void_Share", "Worst_IoU"], "monitor": "max Worst_IoU"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert call(train, "-c", tmp_path / "config.json", *imports).status == 0
    (run_dir,) = (tmp_path / "saved" / "tiny").glob("2*")
    (line,) = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    ious = [value for key, value in line.items() if key.startswith("val/Class_IoU/")]
    assert line["val/Worst_IoU"] == min(ious)
    assert line["val/Void_Share"] == 1 / 48  # a column of 48

    output = tmp_path / "results.json"
    command = ("-m", run_dir / "best_model.pth", "-d", "cpu", *imports, "--output", output)
    assert call(evaluate, *command, "--metrics", "Void_Share").status == 0
    figures = json.loads(output.read_text())["metrics"]
    assert figures["Void_Share"] == line["val/Void_Share"]
    assert "Worst_IoU" not in figures

    assert "  Worst_IoU " in call(train, "--list", "metrics", *imports).out
    described = call(train, "--describe", "Void_Share", *imports).out
    assert described.startswith("Void_Share (metric; metrics)")
    assert "Share of the pixels that have a label." in described
    assert "arguments:\n  none" in described


def test_a_config_may_say_only_metrics_that_there_are():
    hint = get_type_hints(TrainerConfig, include_extras=True)["metrics"]
    assert convert(["Mean_F1", "Boundary_IoU"], hint, "trainer.metrics") == ("Mean_F1", "Boundary_IoU")
    with pytest.raises(Mismatch) as caught:
        convert(["Mean_F2", 3], hint, "trainer.metrics")
    assert list(caught.value.problems) == [
        "trainer.metrics[0]: no metric is called 'Mean_F2'. Did you mean 'Mean_F1'?",
        "trainer.metrics[1]: expected a text, got 3.",
    ]
    suggested, others = json_schema(hint)["items"]["anyOf"]
    assert suggested["enum"] == sorted(METRICS)
    assert others == {}


def test_what_is_no_metric_is_refused(monkeypatch):
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))

    @METRICS.register("neither")
    class Neither:
        """No metric."""

    with pytest.raises(TypeError, match="'neither' is neither a MatrixMetric nor a PixelMetric"):
        Metrics(5, NAMES, names=["neither"])
    for name in OF_MATRIX:
        assert isinstance(METRICS.build(name, where=""), MatrixMetric)
    for name in OF_PIXELS:
        assert isinstance(METRICS.build(name, where="", num_classes=5), PixelMetric)
