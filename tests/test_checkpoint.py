import errno
import os
import pickle
import random
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from engine.assemble import load_predictor
from tests.test_trainer import ARCH, make_trainer
from utils import checkpoint
from utils.errors import CheckpointError, Stopped


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.pth"
    torch.manual_seed(0)
    checkpoint.save(path, {"w": torch.randn(500), "n": torch.arange(300), "text": "é", "list": [1, 2.5, None]})
    return path


def problem(call, *arguments):
    with pytest.raises(CheckpointError) as caught:
        call(*arguments)
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def same(one, two):
    return one["text"] == two["text"] and all(torch.equal(one[key], two[key]) for key in ("w", "n"))


# ----------------------------------------------------------------------------------------------------- damage


def test_a_flipped_bit_is_never_loaded_as_another_value(file, tmp_path):
    good, data = checkpoint.load(file), file.read_bytes()
    draw, silent, refused = random.Random(0), 0, 0
    broken = tmp_path / "broken.pth"
    for _ in range(200):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        broken.write_bytes(flipped)
        try:
            loaded = checkpoint.load(broken)
        except CheckpointError:
            refused += 1
        else:
            silent += not same(good, loaded)
    assert silent == 0
    assert refused > 100


def test_a_file_that_was_cut_short_is_refused_wherever_it_was_cut(file, tmp_path):
    data, broken = file.read_bytes(), tmp_path / "broken.pth"
    for length in [0, 1, 2, 30, *range(100, len(data), 331), len(data) - 1]:
        broken.write_bytes(data[:length])
        assert str(broken) in problem(checkpoint.load, broken)


def test_a_block_of_zeros_is_noticed(file, tmp_path):
    data, broken = file.read_bytes(), tmp_path / "broken.pth"
    good = checkpoint.load(file)
    for start in range(0, len(data) - 512, 512):
        broken.write_bytes(data[:start] + bytes(512) + data[start + 512 :])
        with suppress(CheckpointError):
            assert same(good, checkpoint.load(broken))  # it hit what was zero before


class Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("protocol", [2, 4, "torch", "torch-legacy"])
def test_nothing_in_a_checkpoint_is_executed(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pth"
    if isinstance(protocol, int):
        path.write_bytes(pickle.dumps({"x": Evil()}, protocol=protocol))
    else:
        torch.save({"x": Evil()}, path, _use_new_zipfile_serialization=protocol == "torch")
    assert "is no checkpoint that can be used" in problem(checkpoint.load, path)
    assert not (tmp_path / "executed").exists()


def test_python_objects_in_a_checkpoint_are_named_as_the_reason(tmp_path):
    torch.save({"x": np.float64(3)}, tmp_path / "x.pth")
    assert "it holds Python objects" in problem(checkpoint.load, tmp_path / "x.pth")


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"<!DOCTYPE html><html>", b'{"a": 1}', b"version https://git-lfs.github.com/spec/v1\n"]
)
def test_a_file_of_another_kind_is_refused_in_a_line(tmp_path, content):
    (tmp_path / "x.pth").write_bytes(content)
    expected = "torch did not write it" if content else "is empty"
    assert expected in problem(checkpoint.load, tmp_path / "x.pth")


def test_a_zip_archive_of_something_else_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pth", "w") as archive:
        archive.writestr("hello", "x")
    assert "is no checkpoint that can be used" in problem(checkpoint.load, tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["none.pth", "folder", "a\0b", ""])
def test_what_is_no_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    assert "no such checkpoint" in problem(checkpoint.load, tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "no such checkpoint" in problem(checkpoint.load, tmp_path / "pipe")


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "x.pth")
    assert "holds list, not a dictionary" in problem(checkpoint.load, tmp_path / "x.pth")


# ------------------------------------------------------------------------------------------------------ writing


def test_what_is_saved_loads_with_weights_only(file):
    loaded = torch.load(file, weights_only=True)
    assert loaded["list"] == [1, 2.5, None]
    assert zipfile.ZipFile(file).testzip() is None


def test_tensors_are_written_from_the_cpu_so_that_any_machine_can_read_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor + 1)  # as if they were elsewhere
    checkpoint.save(tmp_path / "x.pth", {"a": torch.zeros(2), "b": [{"c": torch.zeros(3)}, "text", None]})
    loaded = torch.load(tmp_path / "x.pth", weights_only=True)
    assert loaded["a"].tolist() == [1, 1]
    assert loaded["b"][0]["c"].tolist() == [1, 1, 1]
    assert loaded["b"][1:] == ["text", None]


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def half_written(state, target):
    target.write(b"PK\x03\x04 half of it")
    raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")


@pytest.mark.parametrize(
    ("place", "name", "failure"),
    [
        (torch, "save", full_disk),
        (torch, "save", half_written),
        (torch, "save", lambda state, target: target.write(b"PK\x03\x04 lost by the disk")),
        (os, "fsync", full_disk),
        (os, "replace", full_disk),
    ],
    ids=["full", "half", "silently lost", "full at flush", "full at rename"],
)
def test_a_disk_that_is_full_leaves_the_old_checkpoint_as_it_was(file, monkeypatch, place, name, failure):
    before, files = file.read_bytes(), sorted(file.parent.iterdir())
    monkeypatch.setattr(place, name, failure)
    with pytest.raises(Stopped) as caught:
        checkpoint.save(file, {"w": torch.zeros(1 << 19)}, previous=file.with_name("prev.pth"))
    monkeypatch.undo()
    message = str(caught.value)
    assert "could not be written" in message
    assert str(file) in message
    if place is not os or name != "replace":  # which is when the old one is kept
        assert message.startswith(f"{file}: could not be written")
        assert "2 MiB" in message
        assert f"{file} is as it was" in message
    assert file.read_bytes() == before
    left = [path for path in file.parent.iterdir() if path not in files and path.name != "prev.pth"]
    assert not left
    assert "w" in checkpoint.load(file)


def test_the_first_checkpoint_that_does_not_fit_says_that_there_is_no_earlier_one(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(Stopped, match="there is no earlier one"):
        checkpoint.save(tmp_path / "x.pth", {})
    assert not list(tmp_path.iterdir())


def test_the_previous_checkpoint_is_kept(tmp_path):
    last, previous = tmp_path / "last.pth", tmp_path / "last.prev.pth"
    for number in range(3):
        checkpoint.save(last, {"number": number}, previous=previous)
    assert (checkpoint.load(last)["number"], checkpoint.load(previous)["number"]) == (2, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.prev.pth", "last.pth"]


def test_keep_copies_where_the_file_system_has_no_links(file, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    copy = file.with_name("copy.pth")
    copy.write_bytes(b"older")
    checkpoint.keep(file, copy)
    assert copy.read_bytes() == file.read_bytes()
    assert not copy.samefile(file)
    assert sorted(path.name for path in file.parent.iterdir()) == ["copy.pth", "model.pth"]


def test_keep_links_where_it_can_and_is_not_stopped_by_what_a_killed_process_left(file):
    copy = file.with_name("copy.pth")
    copy.with_name(f"copy.pth.tmp{os.getpid()}").write_bytes(b"half")
    checkpoint.keep(file, copy)
    assert copy.samefile(file)
    checkpoint.save(file, {"w": torch.zeros(1)})
    assert len(checkpoint.load(copy)["w"]) == 500  # a new file takes the name; the old one stays


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path):
    for name in ("last.pth.tmp123", "metrics.jsonl.tmp9", "last.pth", "notes.tmp", "a.tmpx"):
        (tmp_path / name).touch()
    checkpoint.remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tmpx", "last.pth", "notes.tmp"]


def test_small_files_are_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "m.jsonl"
    checkpoint.write_text(path, "é\n")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(Stopped, match="space"):
        checkpoint.write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "é\n"
    assert list(tmp_path.iterdir()) == [path]


# ------------------------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix):
    weights = {f"{prefix}head.module.weight": torch.zeros(1)}
    assert list(checkpoint.weights_of(weights, Path("x"))) == ["head.module.weight"]
    assert list(checkpoint.weights_of({"state_dict": weights, "epoch": 3}, Path("x"))) == ["head.module.weight"]


@pytest.mark.parametrize("state", [{}, {"state_dict": {}}, {"state_dict": [1]}, {"a": 1}, {"state_dict": {"a": 1}}])
def test_a_file_without_weights_is_refused(state):
    assert "holds no weights" in problem(checkpoint.weights_of, state, Path("x.pth"))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w: w.pop("0.weight"), "lacks '0.weight'"),
        (lambda w: w.update(extra=torch.zeros(1)), "has 'extra', which the model has not"),
        (lambda w: w.update({"0.weight": torch.zeros(5, 2)}), "'0.weight' is [5, 2], the model's [3, 2]"),
        (lambda w: w.update({"0.weight": torch.full((3, 2), torch.nan)}), "'0.weight' is not finite"),
        (lambda w: w.update({"0.bias": torch.full((3,), torch.inf)}), "'0.bias' is not finite"),
    ],
)
def test_weights_that_do_not_fit_change_nothing_and_the_first_is_named(change, expected):
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = {name: value + 1 for name, value in before.items()}
    change(weights)
    line = problem(checkpoint.load_weights, model, weights, Path("x.pth"))
    assert line.startswith(f"x.pth: does not fit the model: {expected}")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# ------------------------------------------------------------------------------------------------------- of runs


@pytest.fixture
def run_dir(finished_run, tmp_path):
    for name in ("last.pth", "last.prev.pth"):
        shutil.copy(finished_run / name, tmp_path / name)
    return tmp_path


def test_a_checkpoint_of_a_run_holds_tensors_and_plain_values_without_prefixes(finished_run):
    state = torch.load(finished_run / "last.pth", weights_only=True)
    assert {"format", "arch", "epoch", "step", "position", "state_dict", "optimizer", "scaler", "ema"} <= state.keys()
    assert {"best", "running", "nan_streak", "history", "config", "meaning_hash", "classes", "palette"} <= state.keys()
    assert {"normalization", "protocol", "environment", "lr_scheduler"} <= state.keys()
    assert not any(name.startswith(checkpoint.PREFIXES) for name in state["state_dict"])


def test_the_newest_checkpoint_is_the_last_one(run_dir):
    path, _, passed = checkpoint.newest(run_dir)
    assert (path, passed) == (run_dir / "last.pth", [])


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "gone"])
def test_the_one_before_last_is_taken_where_the_last_is_damaged_and_that_is_said(run_dir, damage):
    last = run_dir / "last.pth"
    data = bytearray(last.read_bytes())
    if damage == "gone":
        last.unlink()
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        last.write_bytes(data)
    else:
        last.write_bytes(data[: len(data) // 2 if damage == "cut" else 0])
    path, state, passed = checkpoint.newest(run_dir)
    assert path == run_dir / "last.prev.pth"
    assert state["format"] == checkpoint.FORMAT
    assert len(passed) == (damage != "gone")
    assert all(line.startswith(f"{last}: ") for line in passed)


def test_where_no_checkpoint_can_be_used_all_are_named(run_dir, tmp_path):
    for name in ("last.pth", "last.prev.pth"):
        (run_dir / name).write_bytes(b"PK")
    with pytest.raises(CheckpointError) as caught:
        checkpoint.newest(run_dir)
    assert [line.partition(": ")[0] for line in caught.value.problems] == [
        str(run_dir / "last.pth"),
        str(run_dir / "last.prev.pth"),
    ]


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert checkpoint.newest(tmp_path) is None


@pytest.mark.parametrize("key", sorted(checkpoint.CONTENT))
def test_a_checkpoint_that_lacks_something_is_refused_by_its_name(run_dir, key):
    path = run_dir / "last.pth"
    state = torch.load(path, weights_only=True)
    del state[key]
    torch.save(state, path)
    assert f"lacks '{key}'" in problem(checkpoint.load_run, path)
    torch.save({**state, key: 0.5}, path)
    assert f"'{key}' is not what it should be" in problem(checkpoint.load_run, path)


def first_form(trainer):
    """The content of a checkpoint as the first version wrote it, key by key: after an epoch of two."""
    return {
        "format": 1,
        "arch": {"type": ARCH["type"], "args": ARCH["args"]},
        "config": {"name": "old"},
        "meaning_hash": "0123456789abcdef",
        "classes": ["ground", "square", "dot"],
        "palette": [[90, 60, 30], [250, 200, 0], [0, 90, 250]],
        "left_out": [],
        "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "protocol": {"mode": "single", "size": "native", "scales": [1.0], "flip": False, "precision": "fp32"},
        "environment": {"versions": {"torch": "2.10.0"}, "num_threads": 1, "world_size": 1, "device": "cpu"},
        "epoch": 1,
        "step": 2,
        "total_steps": 4,
        "position": 0,
        "best": {"value": 0.25, "epoch": 1},
        "history": [{"epoch": 1, "step": 2, "train/loss": 1.5, "val/Mean_IoU": 0.25}],
        "state_dict": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": {},
        "ema": None,
        "lr_scheduler": {},
        "running": {
            "loss": torch.zeros((), dtype=torch.float64),
            "matrix": {"counts": torch.zeros(3, 3, dtype=torch.int64)},
        },
    }


def test_a_checkpoint_of_the_first_form_predicts_and_goes_on(tmp_path):
    trainer = make_trainer(tmp_path)
    path = tmp_path / "old.pth"
    torch.save(first_form(trainer), path)
    predictor = load_predictor(path, torch.device("cpu"))
    assert predictor.predict(np.zeros((20, 30, 3), np.uint8)).shape == (20, 30)
    assert predictor.classes.names == ("ground", "square", "dot")
    trainer.resume(checkpoint.load_run(path), path)
    assert (trainer.progress.step, trainer.progress.best_value, trainer.progress.best_epoch) == (2, 0.25, 1)
    assert trainer.fit().step == 4
    assert [record["step"] for record in trainer.history] == [2, 4]
    assert trainer.history[0]["train/loss"] == 1.5


def test_a_network_whose_weights_are_loaded_draws_none(tmp_path):
    trainer = make_trainer(tmp_path)
    torch.save(first_form(trainer), tmp_path / "old.pth")
    before = torch.get_rng_state()
    predictor = load_predictor(tmp_path / "old.pth", torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)
    own = trainer.model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in predictor.model.state_dict().items())


def test_what_only_training_needs_is_missed_only_by_training(tmp_path):
    trainer = make_trainer(tmp_path)
    content = first_form(trainer)
    del content["optimizer"], content["history"]
    torch.save(content, tmp_path / "small.pth")
    load_predictor(tmp_path / "small.pth", torch.device("cpu"))
    line = problem(trainer.resume, checkpoint.load_run(tmp_path / "small.pth"), Path("small.pth"))
    assert line == "small.pth: lacks history, optimizer. Use it as init_from, not as --resume."


def test_every_key_that_is_checked_is_a_documented_one():
    assert checkpoint.CONTENT.keys() | set(checkpoint.RESUMABLE) <= checkpoint.Checkpoint.__annotations__.keys()


@pytest.mark.parametrize(("change", "expected"), [({}, "no 'format'"), ({"format": 99}, "format 99, expected 1")])
def test_a_checkpoint_of_another_program_is_told_apart(tmp_path, change, expected):
    torch.save({"state_dict": {"a": torch.zeros(1)}, **change}, tmp_path / "x.pth")
    assert expected in problem(checkpoint.load_run, tmp_path / "x.pth")
