"""Decoded examples that are kept give the same batches as those that are not, and are never trusted when unfinished."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from base.base_dataloader import Loader
from base.base_dataset import DatasetView
from dataloader import sample_cache as module
from dataloader.datasets.folder import Folder
from dataloader.datasets.synthetic import Synthetic
from dataloader.sample_cache import build_cache, stored_rows
from dataloader.transforms.chain import Chain, ScaleOptions
from tests.conftest import kill_9_at
from tests.test_packed import assert_same, folder, make
from utils.errors import ConfigError, DataError


def loader(
    dataset: Folder, where: Literal["ram", "disk"] | None, cache: Path, num_workers: int = 0, **more: Any
) -> Loader:
    """Training batches of 3, with augmentation."""
    kept = build_cache(dataset, where, folder=cache, num_workers=num_workers) if where else None
    chain = Chain(crop=(48, 56), scale=ScaleOptions(), degrees=10, flip=0.5)
    view = DatasetView(dataset, chain, seed=3, read=kept.read if kept else None, **more)
    return Loader(view, 3, num_workers=num_workers, training=True)


def batches(found: Loader) -> list[tuple]:
    return [tuple(batch) for epoch in range(2) for batch in found.batches(epoch)]


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("where", ["ram", "disk"])
def test_batches_are_the_same_with_and_without_and_no_file_is_read_twice(
    tmp_path: Path, where: Literal["ram", "disk"], num_workers: int
) -> None:
    data = folder(make(tmp_path / "data"))
    expected = batches(loader(data, None, tmp_path))
    cached = loader(data, where, tmp_path / "cache", num_workers)
    for path in (tmp_path / "data").rglob("*.*"):
        path.write_bytes(b"")
    assert_same(batches(cached), expected)


def test_small_blocks_of_memory_hold_examples_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK", 30_000)
    data = folder(make(tmp_path / "data"))
    kept = build_cache(data, "ram", folder=tmp_path)
    assert len(kept.store.blocks) > 2  # type: ignore[attr-defined]
    again = pickle.loads(pickle.dumps(kept))  # as for workers that are not forked
    for index in range(len(data)):
        for cache in (kept, again):
            for mine, theirs in zip(cache.read(index), data.read(index), strict=True):
                assert np.array_equal(mine, theirs)


def test_native_images_may_be_written_to_and_change_nothing(tmp_path: Path) -> None:
    data = folder(make(tmp_path / "data"))
    view = DatasetView(data, None, read=build_cache(data, "disk", folder=tmp_path / "cache").read)
    expected = data.read(2).image
    torch.from_numpy(view[0, 2].image).zero_()
    assert np.array_equal(view[0, 2].image, expected)


def test_a_file_serves_the_next_run_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled: list[int] = []
    real = module.fill
    monkeypatch.setattr(
        module, "fill", lambda d, indices, *rest: filled.append(len(indices)) or real(d, indices, *rest)
    )
    root, cache = make(tmp_path / "data"), tmp_path / "cache"

    def build(**options: Any) -> int:
        filled.clear()
        data = Folder(data_dir=root, split="train", mask_suffix="_mask", **{"classes": tuple("abcd"), **options})
        build_cache(data, "disk", folder=cache).read(0)
        assert len(list(cache.iterdir())) == 1 + bool(options)
        return sum(filled)

    assert build() == 7
    assert build() == 0
    assert build(label_map={"3": None}) == 7
    (other,) = [
        path
        for path in cache.iterdir()
        if path.stat().st_mtime_ns == max(p.stat().st_mtime_ns for p in cache.iterdir())
    ]
    other.unlink()
    os.utime(root / "masks" / "train" / "a_mask.png", ns=(1, 1))
    assert build() == 7  # and the file of before is gone
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:-30] + bytes([whole[-30] ^ 1]) + whole[-29:]):
        path.write_bytes(damaged)
        assert stored_rows(path) is None
        assert build() == 7


def test_an_example_of_which_a_bit_flipped_on_the_disk_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = folder(make(tmp_path / "data"))
    rows = build_cache(data, "disk", folder=tmp_path / "cache").rows
    (path,) = (tmp_path / "cache").iterdir()
    content = bytearray(path.read_bytes())
    content[rows[2].offset + 5] ^= 64  # in an image
    content[rows[4].offset + rows[4].size - 1] ^= 1  # in a label
    path.write_bytes(content)
    kept = build_cache(data, "disk", folder=tmp_path / "cache")
    decoded: list[int] = []
    real = data.read
    monkeypatch.setattr(data, "read", lambda index: decoded.append(index) or real(index))
    for index in (*range(len(data)), 2):
        for mine, right in zip(kept.read(index)[:2], real(index)[:2], strict=True):
            assert np.array_equal(mine, right)
    assert decoded == [2, 4, 2]


def test_of_several_processes_one_fills_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fcntl")
    data, context = folder(make(tmp_path / "data")), multiprocessing.get_context("fork")
    filled, right, real = context.Value("i"), context.Value("i"), module.fill

    def fill(*arguments: Any) -> dict:
        with filled.get_lock():
            filled.value += 1
        return real(*arguments)

    def child() -> None:
        kept = build_cache(data, "disk", folder=tmp_path / "cache")
        same = all(np.array_equal(kept.read(i).image, data.read(i).image) for i in range(len(data)))
        with right.get_lock():
            right.value += same

    monkeypatch.setattr(module, "fill", fill)
    processes = [context.Process(target=child) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert (filled.value, right.value) == (1, 3)


def test_a_run_keeps_its_file_when_another_split_of_the_data_replaces_it(tmp_path: Path) -> None:
    data = folder(make(tmp_path / "data"))
    mine = build_cache(data, "disk", folder=tmp_path / "cache", indices=[0, 1])
    build_cache(data, "disk", folder=tmp_path / "cache", indices=[1, 2])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    assert np.array_equal(mine.read(1).image, data.read(1).image)


def test_what_cannot_be_read_is_told_when_it_is_asked_for(tmp_path: Path) -> None:
    root = make(tmp_path / "data")
    (root / "images" / "train" / "c d.jpg").write_bytes(b"once upon a time")
    data = folder(root)
    kept = build_cache(data, "disk", folder=tmp_path / "cache")
    assert len(kept.rows) == 6
    with pytest.raises(DataError, match=r"c d\.jpg"):
        kept.read([sample.key for sample in data.samples].index("c d"))
    skipping = loader(data, "ram", tmp_path, on_bad_sample="skip")
    assert len(batches(skipping)) == 4
    assert len(skipping.skipped) == 1


def test_what_will_not_fit_is_said_before_it_does_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(make(tmp_path / "data"))
    monkeypatch.setattr(module, "available_memory", lambda: 100_000)
    with pytest.raises(ConfigError, match=r'train_loader\.args\.cache: 7 decoded images.*Use "disk"'):
        build_cache(data, "ram", folder=tmp_path)
    with pytest.raises(ConfigError, match=r'Synthetic has no files to tell an old cache by\. Use "ram"'):
        build_cache(Synthetic(split="train", length=2), "disk", folder=tmp_path)
    build_cache(Synthetic(split="train", length=1, size=(32, 32)), "ram", folder=tmp_path)


@pytest.mark.parametrize("name", ["_shape", "os.fsync", "os.replace"])
def test_kill_9_while_filling_leaves_nothing_that_is_trusted(tmp_path: Path, name: str) -> None:
    data, cache = folder(make(tmp_path / "data")), tmp_path / "cache"

    owner = os if name.startswith("os.") else module
    killed = kill_9_at(owner, name.removeprefix("os."), 1, lambda: build_cache(data, "disk", folder=cache))
    assert killed == -signal.SIGKILL
    (left,) = cache.iterdir()
    assert ".tmp" in left.name
    assert_same(batches(loader(data, "disk", cache)), batches(loader(data, None, cache)))
    (path,) = cache.iterdir()
    assert path.suffix == ".bin"


def test_a_config_asks_for_it_in_one_line_and_trains_the_same(
    tmp_path: Path, config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGWRIGHT_CACHE", str(tmp_path / "cache"))
    root = make(make(tmp_path / "data"), "val")
    args = {"data_dir": str(root), "classes": list("abcd"), "mask_suffix": "_mask", "num_workers": 0}
    train_args = {**args, "batch_size": 2, "split": "train", "augment": True, "crop_size": 32, "flip": True}
    lines: dict[str | None, Any] = {}
    for number, where in enumerate((None, "ram", "disk")):
        changes = {
            "name": f"run{number}",
            "train_loader": {"type": "Folder", "args": {**train_args, "cache": where}},
            "val_loader": {"type": "Folder", "args": {**args, "batch_size": 1, "split": "val", "cache": where}},
            "trainer.epochs": 2,
        }
        before = sorted((tmp_path / "cache").rglob("*.bin"))
        assert train_command("-c", config_file(changes), "--import", "tests.tiny", "--check").status == 0
        assert sorted((tmp_path / "cache").rglob("*.bin")) == before  # a check is quick
        answer = train_command("-c", config_file(changes), "--import", "tests.tiny")
        assert answer.status == 0, answer.err
        (run_dir,) = (tmp_path / "saved" / f"run{number}").glob("2*")
        lines[where] = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines["ram"] == lines["disk"] == lines[None]
    assert len(list((tmp_path / "cache" / "samples").glob("*.bin"))) == 2
