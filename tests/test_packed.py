"""Packed splits hold what was put into them, to the last bit, and nothing of them is trusted that was not finished."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prepare
from base.base_dataloader import Loader
from base.base_dataset import BaseDataset, DatasetView
from dataloader.datasets.camvid import CamVid
from dataloader.datasets.cityscapes import CityScapes
from dataloader.datasets.folder import Folder
from dataloader.tools import packed
from dataloader.tools import packed as module
from dataloader.tools.packed import pack
from dataloader.transforms.chain import Chain, ScaleOptions
from tests.conftest import Answer, call, kill_9_at
from tests.tiny import tiny_config
from utils import shards
from utils.errors import DataError
from utils.shards import INDEX

NAMES = ["ground", "path", "tree", "sky"]
KEYS = ["a", "a.b", "c d", "é%2E", "e", "f", "g"]  # dots and signs that archives' names cannot hold


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGWRIGHT_CACHE", str(tmp_path / "cache"))


def make(root: Path, split: str = "train") -> Path:
    """A dataset of `Folder`, with images of different sizes and kinds."""
    for number, key in enumerate(KEYS):
        rng = np.random.default_rng(number)
        size = (65 + number, 97 - number)
        for kind, array, ending in (
            ("images", rng.integers(0, 256, (*size, 3)), ".png" if number % 2 else ".jpg"),
            ("masks", rng.integers(0, 4, size), "_mask.png"),
        ):
            path = root / kind / split / f"{key}{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array.astype(np.uint8)).save(path)
    return root


def folder(root: Path, split: str = "train") -> Folder:
    return Folder(data_dir=root, split=split, classes=tuple(NAMES), mask_suffix="_mask")


def batches(dataset: BaseDataset, num_workers: int = 0) -> list[tuple]:
    """All that two epochs give."""
    chain = Chain(crop=(48, 56), scale=ScaleOptions(), degrees=10, flip=0.5)
    loader = Loader(DatasetView(dataset, chain, seed=3), 3, num_workers=num_workers, training=True)
    return [tuple(batch) for epoch in range(2) for batch in loader.batches(epoch)]


def assert_same(mine: list[tuple], theirs: list[tuple]) -> None:
    assert len(mine) == len(theirs) > 0
    for a, b in zip(mine, theirs, strict=True):
        assert a[2:] == b[2:]
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_packed_and_unpacked_training_take_the_same_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_workers: int
) -> None:
    before = folder(make(tmp_path / "data"))
    expected = batches(before)
    monkeypatch.setattr(module, "write_archives", lambda s, f, size, **more: write(s, f, 40_000, **more))
    write = shards_write
    assert pack(before, tmp_path / "packed").startswith("train: 7 examples in 3 archives")
    after = folder(tmp_path / "packed")
    assert len(list((tmp_path / "packed" / "train").glob("*.tar"))) == 3
    assert_same(batches(after, num_workers), expected)


shards_write = packed.write_archives


def test_the_archives_are_plain_ones_that_group_by_name_up_to_the_first_dot(tmp_path: Path) -> None:
    data = folder(make(tmp_path / "data"))
    pack(data, tmp_path / "packed")
    groups: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "packed" / "train" / "000000.tar") as archive:
        for entry in archive:
            key, _, kind = entry.name.partition(".")
            file = archive.extractfile(entry)
            assert file is not None
            groups.setdefault(key, {})[kind] = file.read()
    assert len(groups) == len(KEYS)
    for sample, group in zip(data.samples, groups.values(), strict=True):
        assert set(group) == {sample.image.suffix[1:], "label_mask.png"}
        assert group[sample.image.suffix[1:]] == sample.image.read_bytes()
        assert group["label_mask.png"] == sample.label.read_bytes()


def test_the_doctor_looks_into_what_is_packed(tmp_path: Path) -> None:
    pack(folder(make(tmp_path / "data")), tmp_path / "packed")
    options = json.dumps({"classes": NAMES, "mask_suffix": "_mask"})
    answer = call(prepare, "check", "--dataset", "Folder", "--data-dir", tmp_path / "packed", "--args", options)
    assert answer.status == 0, answer.out
    assert f"train: {len(KEYS)} images" in answer.out
    assert "val: passed over" in answer.out


def test_two_loaders_with_one_split_of_two_folders_are_not_mixed(tmp_path: Path) -> None:
    sections = {}
    for kind in ("train", "val"):
        make(tmp_path / kind)
        args = {"data_dir": str(tmp_path / kind), "split": "train", "classes": NAMES, "mask_suffix": "_mask"}
        sections[f"{kind}_loader"] = {"type": "Folder", "args": {**args, "batch_size": 2}}
    config = tmp_path / "config.json"
    config.write_text(json.dumps(tiny_config(tmp_path / "saved", **sections)))
    answer = call(prepare, "pack", "-c", config, "-o", tmp_path / "packed")
    assert (answer.status, "split 'train' is that of train_loader, of other files" in answer.err) == (2, True)
    assert not (tmp_path / "packed").exists()
    same = f'val_loader.args.data_dir="{tmp_path}/train"'
    assert call(prepare, "pack", "-c", config, "-s", same, "-o", tmp_path / "packed").status == 0


def test_packing_twice_gives_equal_files(tmp_path: Path) -> None:
    data = folder(make(tmp_path / "data"))
    for name in ("one", "two"):
        pack(data, tmp_path / name)
    for path in (tmp_path / "one" / "train").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "train" / path.name).read_bytes()


def test_a_label_keeps_the_part_of_its_name_that_says_what_it_holds(tmp_path: Path) -> None:
    """Cityscapes' files of training ids are told by their names."""
    for kind, ending in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
        (tmp_path / kind / "train" / "ulm").mkdir(parents=True)
        array = np.full((9, 11), 13, np.uint8)  # 13: cars; as a raw id, of another meaning
        Image.fromarray(array).save(tmp_path / kind / "train" / "ulm" / f"ulm_000000_000000_{ending}.png")
    for kind in ("Images", "Labels"):
        name = "leftImg8bit" if kind == "Images" else "gtFine_labelTrainIds"
        stem = "leftImg8bit" if kind == "Images" else "gtFine"
        (tmp_path / f"train{kind}.txt").write_text(f"{stem}/train/ulm/ulm_000000_000000_{name}.png\n")
    data = CityScapes(data_dir=tmp_path, split="train")
    pack(data, tmp_path / "packed")
    again = CityScapes(data_dir=tmp_path / "packed", split="train")
    assert (data.read_label(0) == 13).all()
    assert (again.read_label(0) == 13).all()


def problem_of(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    (problem,) = caught.value.problems
    assert "\n" not in problem
    return problem


def test_what_was_cut_or_altered_is_refused_with_its_name(tmp_path: Path) -> None:
    pack(folder(make(tmp_path / "data")), tmp_path / "packed")
    archive = tmp_path / "packed" / "train" / "000000.tar"
    whole = archive.read_bytes()

    archive.write_bytes(whole[:-2000])
    assert f"{archive}: has {len(whole) - 2000:,} bytes instead" in problem_of(lambda: folder(tmp_path / "packed"))
    archive.unlink()
    assert f"{archive}: is missing" in problem_of(lambda: folder(tmp_path / "packed"))

    archive.write_bytes(whole)
    data = folder(tmp_path / "packed")
    _, offset, size, _ = shards.open_packed(archive.parent).member("000000.tar", "e.jpg")
    archive.write_bytes(
        whole[: offset + size // 2] + bytes([whole[offset + size // 2] ^ 1]) + whole[offset + size // 2 + 1 :]
    )
    number = [sample.key for sample in data.samples].index("e")
    found = problem_of(lambda: data.read(number))
    assert found.startswith(f"{archive}: was cut or altered since it was packed, at 'e.jpg'.")
    data.read(0)

    index = archive.parent / INDEX
    index.write_text(index.read_text().replace("e.jpg", "f.jpg", 1))
    assert f"{index}: is damaged" in problem_of(lambda: folder(tmp_path / "packed"))
    index.write_bytes(index.read_bytes()[:200])
    assert f"{index}: is damaged" in problem_of(lambda: folder(tmp_path / "packed"))
    index.write_text("3")
    assert f"{index}: is damaged" in problem_of(lambda: folder(tmp_path / "packed"))


def test_an_index_of_an_early_version_is_read_and_compared_too(tmp_path: Path) -> None:
    pack(folder(make(tmp_path / "data")), tmp_path / "packed")
    index = tmp_path / "packed" / "train" / INDEX
    samples = folder(tmp_path / "packed").samples
    content = json.loads(index.read_text())
    early = json.dumps({key: content[key] for key in ("format", "about", "archives", "examples", "checksum")})
    index.write_text(early)
    assert folder(tmp_path / "packed").samples == samples
    index.write_text(early.replace("e.jpg", "f.jpg", 1))
    assert f"{index}: is damaged" in problem_of(lambda: folder(tmp_path / "packed"))


def test_what_was_packed_otherwise_is_refused_by_its_option(tmp_path: Path) -> None:
    pack(folder(make(tmp_path / "data")), tmp_path / "packed")
    assert "holds packed train, not 'val'" in problem_of(lambda: folder(tmp_path / "packed", "val"))
    other = problem_of(lambda: CamVid(data_dir=tmp_path / "packed", split="train"))
    assert 'was packed with type "Folder", not "CamVid"' in other
    plain = problem_of(lambda: Folder(data_dir=tmp_path / "packed", split="train", classes=tuple(NAMES)))
    assert 'with mask_suffix "_mask", not ""' in plain
    # What files mean may change, as long as they are the same files.
    Folder(data_dir=tmp_path / "packed", split="train", classes=tuple("abcde"), mask_suffix="_mask", unknown="void")


def command(*arguments: object) -> Answer:
    return call(prepare, "pack", "--dataset", "Folder", *arguments, "--args", json.dumps(OPTIONS))


OPTIONS = {"classes": NAMES, "mask_suffix": "_mask"}


def test_the_command_packs_all_splits_and_replaces_only_when_told_to(tmp_path: Path) -> None:
    root, target = make(make(tmp_path / "data"), "val"), tmp_path / "packed"
    answer = command("--data-dir", root, "-o", target)
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[-1] == f'"data_dir": {json.dumps(str(target))}'
    assert "train: 7 examples in 1 archives" in answer.out
    assert len(folder(target, "val")) == 7
    again = command("--data-dir", root, "-o", target)
    assert (again.status, len(again.errors)) == (2, 1)
    assert "is there already. Add --force" in again.errors[0]
    (root / "images" / "val" / "a.jpg").unlink()
    (root / "masks" / "val" / "a_mask.png").unlink()
    assert command("--data-dir", root, "--split", "val", "-o", target, "--force").status == 0
    assert len(folder(target, "val")) == 6
    assert sorted(path.name for path in target.iterdir()) == ["train", "val"]
    assert (
        call(prepare, "check", "--dataset", "Folder", "--data-dir", target, "--args", json.dumps(OPTIONS)).status == 3
    )
    # The original folder is no place for packed splits: nothing of ours is replaced by mistake.
    (tmp_path / "data" / "images" / "train" / "precious").touch()
    refused = command("--data-dir", root, "--split", "train", "-o", root / "images", "--force")
    assert "is no packed split. Name another --output" in refused.errors[0]
    generated = call(prepare, "pack", "--dataset", "Synthetic", "--data-dir", ".", "-o", target)
    assert "is generated and has no files to pack" in generated.errors[0]


@pytest.mark.parametrize("point", ["fsync:1", "fsync:2", "replace:1"])
@pytest.mark.parametrize("force", [False, True])
def test_kill_9_while_packing_leaves_nothing_that_is_trusted(tmp_path: Path, point: str, force: bool) -> None:
    data, target = folder(make(tmp_path / "data")), tmp_path / "packed"
    if force:
        pack(data, target)
    name, _, number = point.partition(":")

    assert kill_9_at(os, name, int(number), lambda: pack(data, target, force=force)) == -signal.SIGKILL
    assert list(target.glob(".*")), "killed too late"
    if force:
        assert_same(batches(folder(target)), batches(data))  # the old one, whole
    else:
        assert "there is no folder" in problem_of(lambda: folder(target))
    pack(data, target, force=force)
    assert_same(batches(folder(target)), batches(data))
    assert not list(target.glob(".*"))


def test_a_full_disk_ends_with_one_line_and_no_leftovers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    root = make(tmp_path / "data")
    monkeypatch.setattr(os, "fsync", full)
    answer = command("--data-dir", root, "--split", "train", "-o", tmp_path / "packed")
    assert (answer.status, len(answer.errors)) == (4, 1)
    assert "No space left on device" in answer.errors[0]
    assert not list((tmp_path / "packed").iterdir())
