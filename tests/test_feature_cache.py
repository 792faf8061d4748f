"""Features of a frozen backbone that are kept in files change nothing: whichever files are there, or none."""

from __future__ import annotations

import copy
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from base.base_model import BaseModel, Normalize
from dataloader.transforms.chain import ChainOptions
from models import feature_cache
from models.build import build_model
from models.encoder_decoder import EncoderDecoder
from models.feature_cache import FeatureCache, identity, maps_taken
from tests.conftest import Answer
from tests.test_resume import assert_same_end, only_run, remove_unsaved, train_in_child, write_config
from utils.errors import ConfigError
from utils.schema import Component

Command = Callable[..., Answer]

SMALL = {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}, "head": "LinearHead"}
CENTERED = {"augment": False, "val": True, "base_size": None, "flip": None, "rotate": None}


def build(**args: Any) -> EncoderDecoder:
    torch.manual_seed(0)
    arch = {"type": "EncoderDecoder", "args": {**SMALL, "freeze_backbone": "cached", **args}}
    model = build_model(arch, num_classes=3)
    assert isinstance(model, EncoderDecoder)
    return model.train()


def cached(root: Path, model: EncoderDecoder) -> FeatureCache:
    """Give `model` a cache in `root` of the maps that a linear head takes."""
    cache = FeatureCache(model.backbone, {4}, root)
    model.backbone.forward = cache  # type: ignore[method-assign, assignment]
    return cache


def entries(root: Path) -> list[Path]:
    """The files of maps below `root`."""
    return sorted(root.glob("*/*.pth"))


def pictures(count: int, size: tuple[int, int] = (33, 47)) -> Tensor:
    """Images as a loader gives them: channels last in memory."""
    torch.manual_seed(1)
    return torch.randint(256, (count, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------------------- a run


class Folders(NamedTuple):
    """Where a run lies, and the features that it keeps."""

    run: Path
    features: Path

    def config(self, kept: Any = "cached", **changes: Any) -> Path:
        """Write the config of a run whose images come again."""
        self.run.mkdir(exist_ok=True)
        path = write_config(self.run)
        config = json.loads(path.read_text())
        config["arch"]["args"]["freeze_backbone"] = kept
        config["train_loader"]["args"] |= {**CENTERED, **changes}
        path.write_text(json.dumps(config))
        return path


def test_a_run_ends_the_same_with_all_features_or_none_and_after_a_kill(tmp_path: Path) -> None:
    first, again, killed = (Folders(tmp_path / name, tmp_path / "segwright-cache/features") for name in "abc")
    assert train_in_child(first.config()) == 0
    found = {path: path.stat().st_mtime_ns for path in entries(first.features)}
    assert len(found) == 11 + 3  # training and validation images, once each

    assert train_in_child(again.config()) == 0
    assert_same_end(again.run, only_run(first.run))
    assert {path: path.stat().st_mtime_ns for path in entries(first.features)} == found

    shutil.rmtree(first.features)
    assert train_in_child(killed.config(), kill="step:5") == -signal.SIGKILL
    for path in entries(first.features)[::2]:  # so that batches have both kinds of images
        path.unlink()
    assert train_in_child(killed.config(), "--resume", "auto") == 0
    remove_unsaved(killed.run)
    assert_same_end(killed.run, only_run(first.run))


def test_random_augmentation_keeps_nothing_and_says_so(tmp_path: Path, train_command: Command) -> None:
    ends = []
    for kept in ("cached", True):
        folders = Folders(tmp_path / str(kept), tmp_path / "segwright-cache/features")
        path = folders.config(kept, val=False, augment=True, base_size=48)
        answer = train_command("-c", path, "--import", "tests.tiny", "--set", "trainer.epochs=1")
        assert answer.status == 0, answer.err
        assert ("no features are kept: train_loader draws each image anew" in answer.out) is (kept == "cached")
        assert not folders.features.exists()
        ends.append(torch.load(only_run(folders.run) / "last.pth", weights_only=True)["state_dict"])
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize(
    ("options", "repeats"),
    [
        (ChainOptions(), True),
        (ChainOptions(val=True, crop_size=32), True),
        (ChainOptions(crop_size=32), False),
        (ChainOptions(augment=True, crop_size=32, flip=False), False),
        (ChainOptions(transforms=[Component("Resize", {"size": 32}), Component("RandomHorizontalFlip")]), True),
        (ChainOptions(transforms=[Component("Resize", {"size": 32}), Component("RandomCrop", {"size": 16})]), False),
        (ChainOptions(transforms=[Component("RandomRotation", {"degrees": 5})]), False),
        (ChainOptions(transforms=[Component("Resize", {"size": 32})], mix=Component("CutMix")), False),
    ],
)
def test_a_chain_knows_whether_its_images_come_again(options: ChainOptions, repeats: bool) -> None:
    assert options.repeats is repeats


@pytest.mark.parametrize("kind", ["FCN8", "SegNet"])
def test_a_model_without_maps_to_keep_is_refused(kind: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigError, match=f"arch.args.freeze_backbone: {kind} has no feature"):
        build_model({"type": kind, "args": {"freeze_backbone": "cached"}}, num_classes=3)


def test_threads_on_several_gpus_are_refused(config_file: Callable[..., Path], train_command: Command) -> None:
    path = config_file({"parallel": "DataParallel", "arch.args.freeze_backbone": "cached"})
    answer = train_command("-c", path, "--import", "tests.tiny", "--check")
    assert answer.errors == [
        'arch.args.freeze_backbone: does not work with "parallel": "DataParallel". Use "ddp", or leave it out.'
    ]


# ------------------------------------------------------------------------------------------------------- the files


def test_maps_are_those_of_each_image_alone_whether_they_were_found_or_not(tmp_path: Path) -> None:
    model = build().to(memory_format=torch.channels_last)
    images = model.normalize(pictures(4))
    with torch.no_grad():
        alone = [model.backbone(images[i : i + 1].clone())[4] for i in range(4)]
    cache = cached(tmp_path, model)
    for count in (2, 4, 4):  # none is known, then half of a batch, then all
        maps = cache(images[:count])
        assert torch.equal(maps[4], torch.cat(alone[:count]))
        assert maps[4].is_contiguous(memory_format=torch.channels_last)
        assert len(entries(tmp_path)) == max(count, 2)
    assert [tuple(each.shape[1:]) for each in maps] == [tuple(each.shape[1:]) for each in build().backbone(images)]


def test_only_maps_that_are_taken_fill_the_disk(tmp_path: Path) -> None:
    model = build()
    cached(tmp_path, model)(model.normalize(pictures(1, (256, 256))))
    (path,) = entries(tmp_path)
    assert path.stat().st_size < 64 * 8 * 8 * 4 + 4096


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("resnet18+LinearHead", {4}),
        ("resnet18+DeepLabV3PlusHead", {1, 4}),
        ("PSPNet", {3, 4}),  # its auxiliary head, too
        ("PPLiteSeg_T", {2, 3, 4}),
        ("resnet18+UNetHead", {0, 1, 2, 3, 4}),
    ],
)
def test_maps_that_anything_is_computed_of_are_found(kind: str, taken: set[int]) -> None:
    with torch.device("meta"):
        model = build_model(kind, num_classes=3)
    assert isinstance(model, EncoderDecoder)
    assert maps_taken(model, 3) == taken


def test_other_weights_layers_numbers_or_arithmetic_do_not_meet(tmp_path: Path) -> None:
    def use(change: Callable[[BaseModel], object] = lambda model: None, precision: Any = None, **args: Any) -> int:
        model = build(**args)
        change(model)
        cached(tmp_path, model)
        with torch.autocast("cpu", precision, enabled=precision is not None):
            model(pictures(1))
        return len(entries(tmp_path))

    def nudge(model: BaseModel) -> None:
        with torch.no_grad():
            model.backbone_parameters()[0][0, 0, 0, 0] += 1e-6

    assert use() == 1
    assert use() == 1
    assert use(nudge) == 2
    assert use(lambda model: setattr(model, "normalize", Normalize((0.5,), (0.5,)))) == 3
    assert use(precision=torch.bfloat16) == 4
    assert use(output_stride=8) == 5
    assert use(lambda model: model.to(memory_format=torch.channels_last)) == 6
    weights = build().backbone.state_dict()
    assert use(lambda model: model.get_submodule("backbone").load_state_dict(weights), head="FCNHead") == 6


@pytest.mark.parametrize("content", [b"", b"no maps", b"\x80\2a", b"\x80\2h\1.", None])
def test_a_damaged_file_is_made_anew(tmp_path: Path, content: bytes | None) -> None:
    model = build()
    cache, image = cached(tmp_path, model), model.normalize(pictures(1))
    whole = cache(image)[4]
    (path,) = entries(tmp_path)
    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2] if content is None else content)
    assert torch.equal(cache(image)[4], whole)
    assert path.read_bytes() == good


def test_a_flipped_bit_is_no_feature(tmp_path: Path) -> None:
    model = build()
    cache, image = cached(tmp_path, model), model.normalize(pictures(1))
    whole = cache(image)[4]
    (path,) = entries(tmp_path)
    good = path.read_bytes()
    place = len(good) // 2  # within the numbers
    path.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
    assert torch.equal(cache(image)[4], whole)
    assert path.read_bytes() == good


def test_a_full_disk_is_said_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(feature_cache.logger, "warning", lambda text, *words: said.append(text % words))
    free = iter((1000, 101, 99))  # bytes, before each file
    monkeypatch.setattr(feature_cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9999, 0, next(free)))
    model = build()
    cache = cached(tmp_path, model)
    for _ in range(2):
        assert len(cache(model.normalize(pictures(5)))) == 5
    assert len(said) == 1
    assert "no further features are kept (nine tenths of the free disk are used)" in said[0]
    assert len(entries(tmp_path)) == 2


def test_a_compiled_network_and_an_average_use_the_same_files(tmp_path: Path) -> None:
    model, images = build().eval(), pictures(2)
    cache = cached(tmp_path, model)
    average = copy.deepcopy(model)
    network = torch.compile(model, backend="eager")
    computed = network(images).logits
    for path in entries(tmp_path):  # which are read from now on
        torch.save([torch.zeros_like(each) for each in torch.load(path, weights_only=True)], path)
    zeros = network(images).logits
    assert not torch.equal(zeros, computed)
    assert torch.equal(average(images).logits, zeros)
    assert average.backbone.forward is cache
    assert average.state_dict().keys() == build().state_dict().keys()


def test_code_that_changes_makes_other_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = build().backbone
    before = identity(backbone)
    assert identity(build().backbone) == before
    changed = tmp_path / "changed.py"
    changed.write_text("another forward")
    monkeypatch.setattr(feature_cache.inspect, "getfile", lambda kind: str(changed))
    assert identity(backbone) != before
