"""Figures from label maps, against numpy and against numbers worked out by hand."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from utils import metrics
from utils.classes import IGNORE
from utils.metrics import EXTRA_METRICS, ConfusionMatrix, predicted_labels

NAMES = ["road", "sky", "a tree", "car", "dog"]


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
    monkeypatch.setattr(metrics, "on_cpu", lambda tensor: False)
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


def test_a_class_that_is_left_out_is_in_no_mean_but_predicting_it_is_an_error():
    labels = torch.tensor([[[1, 1, 1, 2]]], dtype=torch.uint8)
    matrix = ConfusionMatrix(5, NAMES, left_out=[0])
    matrix.update(torch.tensor([[[0, 1, 1, 2]]], dtype=torch.uint8), labels)
    results = matrix.results()
    assert results["Pixel_Accuracy"] == 3 / 4
    assert results["Mean_IoU"] == (2 / 3 + 1) / 2
    assert results["Mean_IoU_all_classes"] == pytest.approx((2 / 3 + 1) / 4)
    assert "Class_IoU/road" not in results
    assert "Class_IoU/road" not in matrix.keys()  # noqa: SIM118  a method of its own


def test_a_split_without_labels_gives_no_figures_and_plain_json():
    matrix = ConfusionMatrix(5, NAMES, extra=list(EXTRA_METRICS))
    matrix.update(torch.zeros(1, 4, 4, dtype=torch.uint8), torch.full((1, 4, 4), IGNORE, dtype=torch.uint8))
    assert matrix.results() == {}
    assert json.loads(json.dumps(matrix.table(), allow_nan=False))[0] == {
        "name": "road", "pixels": 0, "iou": None, "precision": None, "recall": None, "f1": None,
    }  # fmt: skip


def test_all_figures_agree_with_their_definitions():
    predictions, labels = maps()
    predictions[labels == 0] = 0
    matrix = ConfusionMatrix(5, NAMES, extra=list(EXTRA_METRICS))
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
