"""Label errors are found by models that contradict them: planted ones come first, and the page shows them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.label_errors import KINDS, average_precision, overlaps, plant
from dataloader.datasets.synthetic import Synthetic
from engine import label_check
from engine.label_check import trained_on
from engine.label_errors import SUSPICIOUS, SuspectFinder
from tests.test_partial_labels import NAMES, scenes
from tests.tiny import tiny_config
from utils.epoch_figures import PredictedBatch
from utils.losses.strips import predicted_labels


def guess(label: np.ndarray, num_classes: int, rng: np.random.Generator) -> torch.Tensor:
    """Logits (1, C, H/4, W/4) of a model that is mostly right: blurred, unsure in places, sometimes wrong."""
    truth = torch.from_numpy(np.where(label < num_classes, label, 0)).long()
    maps = F.one_hot(truth, num_classes).movedim(-1, 0)[None].double()
    coarse = F.avg_pool2d(maps, 4)
    noise = F.interpolate(torch.from_numpy(rng.normal(size=(1, num_classes, 6, 8))), coarse.shape[-2:], mode="bilinear")
    return 5 * coarse + 1.2 * noise + 0.5 * torch.from_numpy(rng.normal(size=tuple(coarse.shape)))


def test_planted_errors_come_first():
    rng = np.random.default_rng(0)
    dataset = Synthetic(split="train", length=80, size=(96, 128))
    finder, planted = SuspectFinder(len(dataset.classes)), {}
    for index in range(len(dataset)):
        item = dataset.read(index)
        label = item.label
        if index % 20 == 7:  # 5 % of them
            found = plant(label, KINDS[index // 20 % 3], rng, len(dataset.classes))
            assert found is not None
            label, planted[item.key] = found
        logits = guess(item.label, len(dataset.classes), rng)
        labels = torch.from_numpy(label)[None]
        predicted = predicted_labels(logits, labels.shape[1:])
        images = torch.from_numpy(item.image).permute(2, 0, 1)[None]
        finder.listen(PredictedBatch(images, labels, logits, predicted, (item.key,)))
    ranking = finder.ranking()
    images = list(dict.fromkeys(each.key for each in ranking))
    assert average_precision([key in planted for key in images], len(planted)) >= 0.7
    for each in ranking[:2]:
        assert overlaps(planted[each.key].where, each.box)
    assert all(each.score >= 0 for each in ranking)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_where_it_is_said_to_be(kind):
    rng = np.random.default_rng(3)
    label = np.zeros((60, 80), np.uint8)
    label[20:40, 20:40] = 2
    label[:, 70:] = 255
    changed, planted = plant(label, kind, rng, 4) or pytest.fail("nothing planted")
    assert planted.kind == kind
    np.testing.assert_array_equal(planted.where, changed != label)
    values = {"swapped": {1, 3}, "shifted": {0, 2}, "missing": {0}}[kind]
    assert set(np.unique(changed[planted.where]).tolist()) <= values
    assert (changed[:, 70:] == 255).all()


def listened(label: np.ndarray, predicted: np.ndarray) -> list[tuple[str, int, int]]:
    """Kind, given and predicted class of the suspects of an image, as a sure model sees it."""
    finder = SuspectFinder(3)
    finder.add("a", label, predicted, np.where(label == predicted, 0.1, 3).astype(np.float32))
    return [(each.kind, each.given, each.predicted) for each in finder.ranking()]


def test_kinds_of_errors_are_told_apart():
    empty = np.zeros((60, 80), np.uint8)
    box = empty.copy()
    box[10:30, 10:30] = 1
    other = box * 2
    moved = np.roll(box, 8, axis=1)
    assert listened(box, other) == [("class", 1, 2)]
    assert listened(empty, box) == [("missing", 0, 1)]
    assert listened(box, empty) == [("class", 1, 0)]
    assert sorted(listened(box, moved)) == [("outline", 0, 1), ("outline", 1, 0)]
    assert not listened(box, box)
    void = box.copy()
    void[box == 1] = 255
    assert not listened(void, other)
    thin = empty.copy()
    thin[30] = 1
    assert not listened(empty, thin)


def test_sure_contradictions_and_thick_regions_come_first():
    label = np.zeros((60, 80), np.uint8)
    predicted = label.copy()
    predicted[5:25, 5:25] = 1
    predicted[35:55, 35:55] = 1
    predicted[30:32, 5:30] = 1
    losses = np.zeros(label.shape, np.float32)
    losses[predicted == 1] = 1
    losses[35:55, 35:55] = 4
    losses[30:32, 5:30] = 3
    finder = SuspectFinder(2)
    finder.add("a", label, predicted, losses)
    assert [each.box[:2] for each in finder.ranking()] == [(35, 35), (5, 5)]
    assert finder.ranking()[0].score > SUSPICIOUS > finder.ranking()[1].score


def folder_config(tmp_path: Path) -> dict:
    """A config of generated scenes, a third of them held out."""
    scenes(tmp_path / "data", train=9, val=3)
    config = tiny_config(tmp_path / "saved")
    args = {"data_dir": str(tmp_path / "data"), "split": "train", "mask_dir": "full", "classes": NAMES}
    args |= {"batch_size": 2, "num_workers": 0, "augment": True, "crop_size": 32, "base_size": 48}
    config["train_loader"] = {"type": "Folder", "args": {**args, "val_split": 1 / 3}}
    config["val_loader"] = None
    config["trainer"]["epochs"] = 1
    return config


def test_each_image_is_judged_by_a_model_that_has_not_seen_it(tmp_path, train_command, prepare_command):
    config = folder_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = train_command("-c", tmp_path / "config.json", "-d", "cpu", "--folds", "3")
    assert trained.status == 0, trained.err
    models = sorted((tmp_path / "saved" / "tiny-folds").glob("*/latest"))
    assert len(models) == 3
    answer = prepare_command("check", "--model", *models, "-o", tmp_path / "out", "-d", "cpu")
    assert answer.status in (0, 3), answer.err
    assert "9 images, " in answer.out
    assert "was trained on" not in answer.out
    with (tmp_path / "out" / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert {row["seen"] for row in rows} == {"False"}
    assert [float(row["score"]) for row in rows] == sorted((float(row["score"]) for row in rows), reverse=True)
    page = (tmp_path / "out" / "suspects.html").read_text()
    assert page.count("data:image/jpeg") == min(len(rows), 40)
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_as_many_processes_read_as_asked_for(tmp_path, train_command, prepare_command, monkeypatch):
    config = folder_config(tmp_path)
    config["train_loader"]["args"]["num_workers"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["-s", "train_loader.args.num_workers=0"]
    assert train_command("-c", tmp_path / "config.json", "-d", "cpu", *flags).status == 0
    model = tmp_path / "saved" / "tiny" / "latest"
    asked = []
    build = label_check.build_val_loader
    monkeypatch.setattr(
        label_check,
        "build_val_loader",
        lambda section, *rest, **options: asked.append(section.batches.num_workers) or build(section, *rest, **options),
    )
    config_file = tmp_path / "config.json"
    answer = prepare_command("check", "-c", config_file, "--model", model, "-o", tmp_path / "out", "-d", "cpu")
    assert answer.status in (0, 3), answer.err
    assert set(asked) == {0}


def test_a_model_that_was_trained_on_the_images_is_said_to_have_been(tmp_path, train_command, prepare_command):
    config = folder_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = train_command("-c", tmp_path / "config.json", "-d", "cpu")
    assert trained.status == 0, trained.err
    model = tmp_path / "saved" / "tiny" / "latest"
    answer = prepare_command("check", "-c", tmp_path / "config.json", "--model", model, "-o", tmp_path / "out")
    assert answer.status in (0, 3), answer.err
    line = (
        "6 of the images: the model was trained on them, and contradicts them less. `train.py --folds 5` makes models"
    )
    assert line in answer.out
    from engine.assemble import load_predictor

    predictor = load_predictor(model / "best_model.pth", torch.device("cpu"))
    known = trained_on(predictor)
    assert known is not None
    assert len(known) == 6
    # A photo that came later moves the borders of the folds: nobody can say any more what was held out.
    for name in ("images", "full"):
        picture = cv2.imread(str(tmp_path / "data" / name / "train" / "0.png"), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(tmp_path / "data" / name / "train" / "99.png"), picture)
    again = trained_on(predictor)
    assert again is not None
    assert len(again) == 10


def test_images_of_equal_names_are_told_apart_and_copies_are_not(tmp_path, train_command, prepare_command):
    config = folder_config(tmp_path)
    train = config["train_loader"]["args"]
    for key in ("val_split", "base_size"):
        del train[key]
    config["val_loader"] = {"type": "Folder", "args": {**train, "split": "val", "augment": False}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    trained = train_command("-c", tmp_path / "config.json", "-d", "cpu")
    assert trained.status == 0, trained.err
    model = tmp_path / "saved" / "tiny" / "latest"
    # train/0.png to 2.png were trained on, val/0.png to 2.png were not.
    answer = prepare_command("check", "--model", model, "-o", tmp_path / "out", "-d", "cpu")
    assert answer.status in (0, 3), answer.err
    assert "12 images, " in answer.out
    assert "9 of the images: the model was trained on them" in answer.out
    # The same files in another place are still what it was trained on; others under their names are not.
    for name in ("images", "full"):
        shutil.copytree(tmp_path / "data" / name / "train", tmp_path / "moved" / name / "train")
        shutil.copytree(tmp_path / "data" / name / "val", tmp_path / "new" / name / "train")
    config["val_loader"] = None
    train["val_split"] = 1 / 3
    for folder, count, seen in (("moved", 9, True), ("new", 3, False)):
        train["data_dir"] = str(tmp_path / folder)
        (tmp_path / "other.json").write_text(json.dumps(config))
        answer = prepare_command("check", "-c", tmp_path / "other.json", "--model", model, "-o", tmp_path / "out")
        assert answer.status in (0, 3), answer.err
        assert f"{count} images, " in answer.out
        assert (f"{count} of the images: the model was trained" in answer.out) == seen
        assert ("was trained on" in answer.out) == seen


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--dataset", "CamVid", "--model", "x.pth"], "--dataset: does not go with --model"),
        (["--config", "x.json", "--split", "val"], "--split has no effect here. Use --set"),
        (["--config", "x.json", "--args", '{"mode": "coarse"}'], "--args has no effect here."),
        (["--dataset", "CamVid", "--set", "seed=1"], "--set has no effect here. Give a --config"),
        (["-o", "out"], "--output and --device have no effect without --model"),
        (["--model", "missing.pth"], "missing.pth"),
        (["--model", "x.pth", "--data-dir", "data"], "--data-dir: has no effect with --model"),
        (["--model", "x.pth", "--split", "val"], "--split: has no effect with --model"),
        (["--model", "x.pth", "--args", '{"mode": "coarse"}'], "--args: has no effect with --model"),
        (["--model", "x.pth", "--labels-only"], "--labels-only: has no effect with --model"),
        (["--model", "x.pth", "--no-cache"], "--no-cache: has no effect with --model"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, monkeypatch, prepare_command, flags, expected):
    monkeypatch.chdir(tmp_path)
    answer = prepare_command("check", *flags)
    assert answer.status == 2
    (line,) = answer.err.strip().splitlines()
    assert expected in line


def test_average_precision_is_that_of_its_definition():
    assert average_precision([True, False, True, False], 2) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([True], 4) == 0.25
    assert average_precision([False, False], 2) == 0
