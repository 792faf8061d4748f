"""Several training sets in one config: drawn from as if they were one."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base.base_dataset import DatasetView, Examples
from dataloader.label_statistics import class_pixels, look_at
from engine.assemble import build_loaders
from engine.check import check_config
from engine.config import training_sections
from tests.test_prepare import clean
from tests.tiny import tiny_config
from utils.config import override
from utils.errors import ConfigError


def joined(save_dir: Path, *changes: dict[str, Any]) -> dict[str, Any]:
    """A config with one more training set for each of `changes` to the args of the first."""
    config = tiny_config(save_dir)
    first = config["train_loader"]
    others = []
    for change in changes:
        args = {k: v for k, v in first["args"].items() if k not in ("batch_size", "num_workers")}
        others.append({"type": first["type"], "args": {**args, **change}})
    return {**config, "train_loader": [first, *others]}


def test_images_of_all_sets_are_drawn_each_with_its_own_augmentation(tmp_path):
    raw = joined(tmp_path, {"split": "val", "length": 5, "rotate": False, "flip": False})
    config = check_config(raw)
    view = build_loaders(config)[0].view
    assert len(view) == 16
    assert [view.key(i) for i in (0, 10, 11, 15)] == ["square_0000", "square_0010", "square_1000", "square_1004"]
    alone = [
        build_loaders(check_config({**raw, "train_loader": s.to_json()}))[0].view
        for s in training_sections(config).values()
    ]
    np.testing.assert_array_equal(view[3, 4].image, alone[0][3, 4].image)
    np.testing.assert_array_equal(view.original(12).image, alone[1].original(1).image)
    # The same picture of both sets would be augmented in two ways.
    assert (view[3, 12].image != alone[1][3, 1].image).any()
    loader = build_loaders(config)[0]
    keys = [key for batch in loader.batches(epoch=2) for key in batch.keys]
    assert keys == [key for at in range(0, 16, 2) for key in loader.keys(2, at)]
    assert set(keys) == {view.key(i) for i in range(16)}


def test_workers_give_the_same_batches(tmp_path):
    batches = []
    for workers in (0, 2):
        raw = joined(tmp_path, {"split": "val", "length": 5})
        raw["train_loader"][0]["args"]["num_workers"] = workers
        batches.append(list(build_loaders(check_config(raw))[0].batches(epoch=1, position=4)))
    for one, other in zip(*batches, strict=True):
        assert one.keys == other.keys
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_labels_of_all_sets_are_counted(tmp_path):
    view = build_loaders(check_config(joined(tmp_path, {"split": "val", "length": 5})))[0].view
    labels = np.concatenate([view.label(i).ravel() for i in range(16)])
    expected = np.bincount(labels, minlength=256)
    assert class_pixels(view) == expected[:3].tolist()
    assert look_at(view).pixels.tolist() == expected[:3].tolist()


def test_what_was_resolved_resolves_to_itself_and_may_change_the_same_things(tmp_path):
    raw = joined(tmp_path, {"split": "val", "cache": "ram"}, {"length": 3})
    config = check_config(deepcopy(raw))
    resolved = json.loads(json.dumps(config.to_json()))
    assert [each["args"]["length"] for each in resolved["train_loader"]] == [11, 11, 3]
    assert resolved["train_loader"][1]["args"]["batch_size"] == 2
    assert check_config(resolved) == config
    raw["train_loader"][0]["args"]["num_workers"] = 3
    assert check_config(raw).meaning == config.meaning
    assert check_config(override(raw, ["train_loader.2.args.length=4"])).meaning != config.meaning


def test_a_list_of_one_is_that_one(tmp_path):
    config = tiny_config(tmp_path)
    assert check_config({**config, "train_loader": [config["train_loader"]]}) == check_config(config)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"batch_size": 4}, "train_loader[1].args.batch_size: differs from that of train_loader[0]"),
        ({"crop_size": 24}, "train_loader[1].args: its images are not as large as those of train_loader[0]"),
        ({"croq_size": 24}, "train_loader[1].args.croq_size: unknown key. Did you mean 'crop_size'?"),
        ({"split": "both"}, "train_loader[1].args.split: Squares has no 'both'"),
    ],
)
def test_what_cannot_be_joined_is_refused(tmp_path, change, expected):
    with pytest.raises(ConfigError) as caught:
        check_config(joined(tmp_path, change))
    (problem,) = caught.value.problems
    assert problem.startswith(expected)


def test_other_classes_empty_lists_and_held_out_parts_are_refused(tmp_path):
    config = joined(tmp_path, {})
    for loaders, expected in (
        ([], "train_loader: an empty list"),
        (
            [
                config["train_loader"][0],
                {"type": "Synthetic", "args": {"split": "train", "augment": True, "crop_size": 32}},
            ],
            "its classes",
        ),
        ([{"type": "Nothing"}, config["train_loader"][0]], "train_loader[0].type: no dataset is called 'Nothing'"),
    ):
        with pytest.raises(ConfigError, match="train_loader") as caught:
            check_config({**config, "train_loader": loaders})
        assert expected in caught.value.problems[0]
    config["train_loader"][0]["args"]["val_split"] = 0.2
    with pytest.raises(ConfigError) as caught:
        check_config({**config, "val_loader": None})
    assert any(p.startswith("train_loader[0].args.val_split: does not work") for p in caught.value.problems)


def test_a_run_trains_on_them_and_goes_on_from_its_checkpoint(tmp_path, train_command, evaluate_command):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(joined(tmp_path / "saved", {"split": "val", "length": 5})))
    first = train_command("-c", path, "--import", "tests.tiny", "-d", "cpu", "--bs", "4", "-s", "trainer.epochs=1")
    assert first.status == 0, first.err
    (run,) = [p for p in (tmp_path / "saved" / "tiny").glob("2*") if p.is_dir()]
    resolved = json.loads((run / "config.json").read_text())
    assert [each["args"]["batch_size"] for each in resolved["train_loader"]] == [4, 4]
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    again = train_command("-r", run / "last.pth", "--import", "tests.tiny", "-d", "cpu", "-s", "trainer.epochs=2")
    assert again.status == 0, again.err
    checked = train_command("-c", path, "--import", "tests.tiny", "-d", "cpu", "--check-data")
    assert checked.status == 0, checked.err


def test_the_commands_for_data_take_all_training_sets(tmp_path, prepare_command):
    names = ["a", "b", "c"]
    config = joined(tmp_path, {})
    for place, folder in ((0, "one"), (1, "other")):
        clean(tmp_path / folder, train=3 + place, val=2)
        args = {"data_dir": str(tmp_path / folder), "split": "train", "classes": names}
        loader = {"type": "Folder", "args": {**args, "crop_size": 32, "augment": True}}
        config["train_loader"][place] = loader
    config["train_loader"][0]["args"]["batch_size"] = 2
    args = {**args, "batch_size": 1, "split": "val"}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**config, "val_loader": {"type": "Folder", "args": args}}))
    answer = prepare_command("stats", "-c", path)
    assert answer.status == 0, answer.err
    head = next(line for line in answer.out.splitlines() if line.startswith("class "))
    assert head.split() == ["class", "train_loader[0]", "train_loader[1]", "val_loader"]
    pixels = np.array(class_pixels(build_loaders(check_config(json.loads(path.read_text())))[0].view))
    assert pixels.sum() == 7 * 65 * 97
    printed = next(line for line in answer.out.splitlines() if '"sqrt_inv"' in line)
    shown = np.array(json.loads(printed.partition("// ")[2]))
    np.testing.assert_allclose(shown / shown[0], np.sqrt(pixels[0] / pixels), rtol=2e-3)
    found = prepare_command("check", "-c", path)
    assert "train_loader[0] and train_loader[1]" not in found.out  # a weight of two, if one likes


def test_what_reads_a_joined_view_finds_all_that_one_view_promises(tmp_path):
    view = build_loaders(check_config(joined(tmp_path, {"split": "val", "length": 5})))[0].view
    promised = {name for name in {*vars(Examples), *Examples.__annotations__} if not name.startswith("_")}
    assert promised == {
        *("classes", "channels", "seed", "on_bad_sample", "views", "key", "original", "label", "labels")
    }
    assert [name for name in promised if not hasattr(view, name)] == []
    assert not isinstance(view, DatasetView)  # it would lack the dataset, the transform and more
    assert [len(each) for each in view.views] == [11, 5]
    for number, label in zip((2, 12), view.labels([2, 12]), strict=True):
        np.testing.assert_array_equal(label, view.label(number))


def test_a_run_on_several_sets_may_change_when_resumed_what_a_run_on_one_may(tmp_path, train_command):
    path = tmp_path / "config.json"
    raw = joined(tmp_path / "saved", {"split": "val", "length": 5})
    path.write_text(json.dumps(raw))
    tiny = ("--import", "tests.tiny", "-d", "cpu")
    assert train_command("-c", path, *tiny, "-s", "trainer.epochs=1").status == 0
    (run,) = [p for p in (tmp_path / "saved" / "tiny").glob("2*") if p.is_dir()]
    raw["train_loader"][0]["args"] |= {"num_workers": 1}
    for each in raw["train_loader"]:
        each["args"]["data_dir"] = str(tmp_path)
    path.write_text(json.dumps(raw))
    again = train_command("-c", path, "-r", run / "last.pth", *tiny, "-s", "trainer.epochs=2")
    assert again.status == 0, again.err
    assert "train_loader[0].args.num_workers: 1 instead of 0" in again.out
    assert "train_loader[1].args.data_dir: " in again.out
    for each in raw["train_loader"]:
        each["args"]["crop_size"] = 24
    path.write_text(json.dumps(raw))
    refused = train_command("-c", path, "-r", run / "last.pth", *tiny, "-s", "trainer.epochs=2")
    assert refused.status == 2
    assert [line.partition(":")[0] for line in refused.errors] == [
        "train_loader[0].args.crop_size",
        "train_loader[1].args.crop_size",
    ]
