"""Parts of other images are pasted with their labels, void never, and always the same ones."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from base.base_dataset import DatasetView
from dataloader.sample_cache import build_cache
from dataloader.transforms.mixing import ClassMix, CopyPaste, CutMix
from dataloader.transforms.named import RandomCrop
from engine.assemble import build_loaders
from engine.check import check_config
from tests.test_packed import folder, make
from tests.test_resume import only_run, train_in_child, write_config
from tests.tiny import Squares, tiny_config
from utils.errors import ConfigError, DataError
from utils.registry import MIXES
from utils.schema import Component

VOID = 255
ARGUMENTS = {"CopyPaste": {"classes": ["square"]}}
CLASSES = ("ground", "square", "dot")

Pair = tuple[np.ndarray, np.ndarray]


def pair(seed: int, channels: int = 3, dtype: str = "uint8") -> Pair:
    """An image, even or odd as `seed` is, and a label of four classes and void."""
    rng = np.random.default_rng(seed)
    image = (2 * rng.integers(0, 127, (30, 40, channels)) + seed % 2).astype(dtype)
    label = np.repeat(rng.integers(0, 4, (6, 8)), 5, 0).repeat(5, 1).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = VOID
    return image, label


def mixed(mix: Any, seed: int = 0, first: Pair | None = None, second: Pair | None = None) -> tuple[Pair, np.ndarray]:
    """What `mix` makes of two pairs, and where it pasted; whatever it is, pixels and labels must go together."""
    first, second = first or pair(1), second or pair(2)
    for array in (*first, *second):
        array.flags.writeable = False
    image, label = mix(*first, lambda: second, np.random.default_rng(seed))
    assert image.dtype == first[0].dtype
    assert label.dtype == np.uint8
    pasted = (image != first[0]).any(2)
    np.testing.assert_array_equal(image, np.where(pasted[..., None], second[0], first[0]))
    same = first[1] == second[1]
    np.testing.assert_array_equal(label[~same], np.where(pasted, second[1], first[1])[~same])
    assert not (second[1][pasted] == VOID).any()
    return (image, label), pasted


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("name", sorted(MIXES))
def test_pixels_come_with_their_labels_and_void_stays_out(name: str, dtype: str, channels: int) -> None:
    component = Component(name, {**ARGUMENTS.get(name, {}), "p": 1.0})
    mix = MIXES.build(component, where="mix", class_names=CLASSES)
    changed = [mixed(mix, seed, pair(1, channels, dtype), pair(2, channels, dtype))[1].any() for seed in range(8)]
    assert sum(changed) >= 7  # a box may have no pixel


@pytest.mark.parametrize("name", sorted(MIXES))
def test_the_other_image_is_read_only_where_it_is_wanted(name: str) -> None:
    def never() -> Pair:
        raise AssertionError

    mix = MIXES.build(Component(name, {**ARGUMENTS.get(name, {}), "p": 0.0}), where="mix", class_names=CLASSES)
    first = pair(1)
    assert all(a is b for a, b in zip(mix(*first, never, np.random.default_rng(0)), first, strict=True))


def test_class_mix_pastes_half_of_the_classes_whole() -> None:
    second = pair(2)
    drawn = set()
    for seed in range(40):
        (_, label), _ = mixed(ClassMix(p=1), seed, (pair(1)[0], np.full((30, 40), 9, np.uint8)), second)
        chosen = set(np.unique(label)) - {9}
        assert len(chosen) == 2
        np.testing.assert_array_equal(label != 9, np.isin(second[1], list(chosen)))
        drawn.add(tuple(sorted(chosen)))
    assert len(drawn) == 6  # all pairs of four


def test_class_mix_of_an_image_that_is_all_void_changes_nothing() -> None:
    void = pair(2)[0], np.full((30, 40), VOID, np.uint8)
    assert not mixed(ClassMix(p=1), second=void)[1].any()


def test_cut_mix_pastes_a_box_that_covers_any_share() -> None:
    first, second = (np.full((30, 40, 3), v, np.uint8) for v in (0, 1))
    shares = []
    for seed in range(60):
        labels = np.zeros((30, 40), np.uint8), np.ones((30, 40), np.uint8)
        _, pasted = mixed(CutMix(p=1), seed, (first, labels[0]), (second, labels[1]))
        rows, columns = np.flatnonzero(pasted.any(1)), np.flatnonzero(pasted.any(0))
        assert pasted.sum() == len(rows) * len(columns)
        assert pasted.sum() == 0 or pasted[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        shares.append(pasted.mean())
    assert min(shares) < 0.05
    assert max(shares) > 0.6


def test_copy_paste_takes_named_classes_or_those_that_are_rare() -> None:
    second = pair(2)
    names = ("road", "pole", "sign", "sky")
    blank = pair(1)[0], np.full((30, 40), 9, np.uint8)
    named = CopyPaste(p=1, classes=["sign"], class_names=names)
    counted = CopyPaste(p=1, below=0.1, class_names=names, class_pixels=[800, 50, 0, 150])  # 0: there is none
    for mix, chosen in ((named, 2), (counted, 1)):
        (_, label), _ = mixed(mix, 0, blank, second)
        np.testing.assert_array_equal(label, np.where(second[1] == chosen, chosen, 9))


def test_copy_paste_refuses_classes_that_are_not_there() -> None:
    with pytest.raises(ConfigError, match=r"m\.classes\[1\]: no class is called 'pol'\. Did you mean 'pole'"):
        CopyPaste(classes=["sign", "pol"], class_names=("pole", "sign"), where="m")
    with pytest.raises(ConfigError, match=r"m\.classes: is empty"):
        CopyPaste(classes=[], class_names=("pole", "sign"), where="m")
    with pytest.raises(ConfigError, match=r"m\.below: no class has less than 0\.01 of the pixels"):
        CopyPaste(class_pixels=[5, 5], where="m")


def test_images_of_two_sizes_or_types_do_not_mix() -> None:
    wide = np.zeros((30, 41, 3), np.uint8), np.zeros((30, 41), np.uint8)
    for second in (wide, pair(2, dtype="uint16")):
        with pytest.raises(DataError, match="two images differ"):
            ClassMix(p=1)(*pair(1), lambda second=second: second, np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------------- in a loader


def config(save_dir: Path, mix: Any, **args: Any) -> dict[str, Any]:
    """A tiny config whose training set mixes."""
    raw = tiny_config(save_dir)
    raw["train_loader"]["args"] |= {"mix": mix, **args}
    return raw


def batches(raw: dict[str, Any], position: int = 0) -> list[Any]:
    return list(build_loaders(check_config(raw))[0].batches(epoch=1, position=position))


def assert_same(mine: list[Any], theirs: list[Any]) -> None:
    for one, other in zip(mine, theirs, strict=True):
        assert one.keys == other.keys
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize("name", sorted(MIXES))
def test_batches_are_the_same_with_workers_with_a_cache_and_from_any_position(name: str, tmp_path: Path) -> None:
    mix = {"type": name, "args": ARGUMENTS.get(name, {})}
    expected = batches(config(tmp_path, mix))
    assert_same(batches(config(tmp_path, mix, num_workers=2)), expected)
    assert_same(batches(config(tmp_path, mix, cache="ram")), expected)
    assert_same(batches(config(tmp_path, mix), position=4), expected[2:])
    plain = batches(config(tmp_path, None))
    assert any((a.images != b.images).any() for a, b in zip(expected, plain, strict=True))


def test_images_that_are_not_mixed_are_augmented_as_without(tmp_path: Path) -> None:
    plain, mixes = (batches(config(tmp_path, mix)) for mix in (None, "ClassMix"))
    images = [np.concatenate([batch.images for batch in each]) for each in (plain, mixes)]
    same = (images[0] == images[1]).all((1, 2, 3))
    assert 0 < same.sum() < len(same)


def test_each_epoch_and_each_seed_mixes_anew() -> None:
    views = [DatasetView(Squares(), None, seed=seed, mix=ClassMix(p=1)) for seed in (0, 1)]
    items = [views[0][0, 3], views[0][1, 3], views[1][0, 3]]
    assert len({item.image.tobytes() for item in items}) == 3
    assert {item.key for item in items} == {"square_0003"}


def test_partners_come_from_the_part_that_is_trained_on() -> None:
    def other_alone(image: np.ndarray, label: np.ndarray, other: Callable[[], Pair], rng: np.random.Generator) -> Pair:
        return other()

    data = Squares()
    view = DatasetView(data, None, indices=[2, 5], mix=other_alone)
    kept = {data.read(index).image.tobytes() for index in (2, 5)}
    assert {view[epoch, 0].image.tobytes() for epoch in range(20)} == kept


def test_an_image_whose_partner_cannot_be_read_stays_as_it_is() -> None:
    def other_alone(image: np.ndarray, label: np.ndarray, other: Callable[[], Pair], rng: np.random.Generator) -> Pair:
        return other()

    def read(index: int) -> Any:
        if index == 5:
            raise DataError("broken")
        return data.read(index)

    data = Squares()
    view = DatasetView(data, None, indices=[2, 5], mix=other_alone, read=read, on_bad_sample="skip")
    assert {view[epoch, 0].image.tobytes() for epoch in range(20)} == {data.read(2).image.tobytes()}
    view = DatasetView(data, None, indices=[2, 5], mix=other_alone, read=read)
    with pytest.raises(DataError, match="broken"):
        [view[epoch, 0] for epoch in range(20)]


@pytest.mark.parametrize("name", sorted(MIXES))
def test_files_that_are_kept_decoded_stay_as_they_were(name: str, tmp_path: Path) -> None:
    data = folder(make(tmp_path / "data"))
    kept = build_cache(data, "ram", folder=tmp_path / "cache")
    args = {**ARGUMENTS.get(name, {}), "p": 1.0}
    if "classes" in args:
        args["classes"] = [data.classes.names[1]]
    mix = MIXES.build(Component(name, args), where="mix", class_names=data.classes.names)
    plain, cached = (
        DatasetView(data, RandomCrop(size=24), seed=3, mix=mix, read=read) for read in (data.read, kept.read)
    )
    for epoch in range(2):
        for index in range(len(data)):
            mine, theirs = plain[epoch, index], cached[epoch, index]
            np.testing.assert_array_equal(mine.image, theirs.image)
            np.testing.assert_array_equal(mine.label, theirs.label)


def test_rare_classes_are_found_by_counting_labels(tmp_path: Path) -> None:
    raw = config(tmp_path, {"type": "CopyPaste", "args": {"below": 0.05}})
    view = build_loaders(check_config(raw))[0].view.views[0]
    assert isinstance(view.mix, CopyPaste)
    assert view.mix.classes == [2]


def test_what_is_held_out_and_validated_on_is_not_mixed(tmp_path: Path) -> None:
    raw = config(tmp_path, "ClassMix", val_split=0.3)
    del raw["val_loader"]
    train, val = build_loaders(check_config(raw))
    assert val is not None
    assert (train.view.views[0].mix, val.view.views[0].mix) == (ClassMix(), None)


@pytest.mark.parametrize(
    ("args", "line"),
    [
        ({"mix": "ClasMix"}, "train_loader.args.mix.type: no mix is called 'ClasMix'. Did you mean 'ClassMix'"),
        ({"mix": {"type": "CopyPaste", "args": {"classes": ["skwer"]}}}, "mix.args.classes[0]: no class is called"),
        ({"mix": {"type": "CutMix", "args": {"p": 2}}}, "train_loader.args.mix.args.p"),
        ({"mix": "ClassMix", "augment": False}, 'args.mix: has no effect. Set "augment": true'),
    ],
)
def test_mistakes_are_found_before_training(args: dict[str, Any], line: str, tmp_path: Path) -> None:
    raw = config(tmp_path, **args)
    with pytest.raises(ConfigError) as caught:
        check_config(raw)
    assert any(line in problem for problem in caught.value.problems), caught.value.problems


def test_kill_9_in_a_run_that_mixes_changes_nothing(tmp_path: Path) -> None:
    ends = []
    for kill, workers in (("", 0), ("step:5", 2)):
        folder = tmp_path / f"workers{workers}"
        folder.mkdir()
        path = write_config(folder, num_workers=workers)
        raw = json.loads(path.read_text())
        raw["train_loader"]["args"]["mix"] = {"type": "CutMix", "args": {"p": 1.0}}
        path.write_text(json.dumps(raw))
        assert train_in_child(path, kill=kill) == (-signal.SIGKILL if kill else 0)
        if kill:
            assert train_in_child(path, "--resume", "auto") == 0
        ends.append((only_run(path.parent) / "metrics.jsonl").read_bytes())
    assert ends[0] == ends[1]
