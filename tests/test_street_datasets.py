"""Cityscapes, ADE20K, COCO-Stuff and DeepScene on miniatures of their real layouts."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dataloader  # noqa: F401  registers
from dataloader.datasets.ade20k import ADE20K
from dataloader.datasets.cityscapes import CityScapes
from dataloader.datasets.cocostuff import COCO, UNUSED_IDS
from dataloader.datasets.deepscene import DeepScene
from dataloader.datasets.voc import VOC
from engine.check import check_config
from tests.conftest import HOME
from utils.classes import IGNORE
from utils.config import load_config
from utils.errors import ConfigError, DataError, Fault, Problem
from utils.registry import DATASETS

FACTS = HOME.parent / "shared" / "facts"
SIZE = (13, 17)
TABLES = {
    "CityScapes": {},
    "Cityscapes": {"mode": "coarse"},
    "ADE20K": {},
    "ADE20K 151": {"include_other": True},
    "COCO": {},
    "COCO 182": {"label_set": 182},
    "DeepScene": {},
    "VOC": {},
    "CamVid": {},
    "Synthetic": {},
}


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ascontiguousarray(array)).save(path)


def save_image(path: Path) -> None:
    save(path, np.full((*SIZE, 3), 100, np.uint8))


def values(*known: int, dtype: type = np.uint8) -> np.ndarray:
    """A label in which each of `known` occurs."""
    return np.resize(np.array(known, dtype), SIZE)


def problem(make: Callable[[], object]) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        make()
    assert all("\n" not in line for line in caught.value.problems)
    return " ".join(caught.value.problems)


def facts(name: str) -> dict:
    path = FACTS / f"{name}.json"
    if not path.is_file():
        pytest.skip("needs the tables of facts beside the checkout")
    return json.loads(path.read_text())


# Names, colors, values in files, means and deviations, once they had been compared with what was published.
DIGESTS = {
    "CityScapes": "73fa4423c8c2cc26",
    "Cityscapes": "73fa4423c8c2cc26",
    "ADE20K": "765098c54b4061f2",
    "ADE20K 151": "fb9f3b11459ce19f",
    "COCO": "12cb8807fb768ab8",
    "COCO 182": "613ed14859747251",
    "DeepScene": "767126387fc6e73c",
    "VOC": "0385465cce23c2b4",
    "CamVid": "8134a2b1880ae0da",
    "Synthetic": "1b27b1775a79f56f",
}


@pytest.mark.parametrize("name", TABLES)
def test_what_was_published_is_not_changed_by_accident(name: str) -> None:
    data = DATASETS[name.split()[0]].func
    table = data.class_table(**TABLES[name])
    facts = [table.names, table.colors, table.raw_ids, table.void_ids, list(data.mean), list(data.std)]
    assert hashlib.sha256(json.dumps(facts).encode()).hexdigest().startswith(DIGESTS[name])


def test_the_colors_of_voc_are_the_bits_of_the_number_dealt_out_to_the_channels() -> None:
    table = VOC.class_table()
    for number, color in enumerate(table.colors):
        channels = [sum((number >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)]
        assert list(color) == channels, table.names[number]


@pytest.mark.parametrize("name", TABLES)
def test_colors_and_classes_are_aligned_and_tell_each_other(name: str) -> None:
    table = DATASETS[name.split()[0]].func.class_table(**TABLES[name])
    palette = table.palette
    assert palette.size >= 3 * len(table)
    with pytest.raises(ValueError, match="read-only"):
        palette[0] = 1
    label = np.arange(len(table), dtype=np.uint8)[None]
    colors = palette[label]
    back = np.array([[table.colors.index(tuple(color)) for color in row] for row in colors.tolist()])
    np.testing.assert_array_equal(back, label)
    for index, raw in enumerate(table.raw_ids):
        assert (table.train_ids(np.array([raw], np.uint8)) == index).all()


# Cityscapes

CITIES = {"aachen": ["000000_000019", "000001_000019"], "ulm": ["000002_000019"]}


def cityscapes(root: Path, *, zipped: bool = False, mode: str = "fine", split: str = "train") -> Path:
    kind = "gtFine" if mode == "fine" else "gtCoarse"
    images, labels = root / "leftImg8bit", root / kind
    if zipped:
        images = root / f"leftImg8bit_{'trainextra' if split == 'train_extra' else 'trainvaltest'}" / "leftImg8bit"
        labels = root / ("gtFine_trainvaltest" if mode == "fine" else kind) / kind
    for city, names in CITIES.items():
        for name in names:
            save_image(images / split / city / f"{city}_{name}_leftImg8bit.png")
            for ending in ("labelIds", "instanceIds", "color"):
                save(labels / split / city / f"{city}_{name}_{kind}_{ending}.png", values(*range(34)))
    return root


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize(
    ("mode", "split"), [("fine", "train"), ("fine", "val"), ("coarse", "train"), ("coarse", "train_extra")]
)
def test_cityscapes_is_found_in_both_layouts(tmp_path: Path, zipped: bool, mode: str, split: str) -> None:
    cityscapes(tmp_path, zipped=zipped, mode=mode, split=split)
    data = DATASETS["Cityscapes"](data_dir=tmp_path, split=split, mode=mode)
    assert [sample.key for sample in data.samples] == [f"{c}_{n}" for c, names in CITIES.items() for n in names]
    assert all(sample.label.name.endswith("_labelIds.png") for sample in data.samples)
    assert set(np.unique(data.read(0).label)) == {*range(19), IGNORE}


def test_all_35_ids_of_cityscapes_become_what_the_benchmark_says(tmp_path: Path) -> None:
    rows = facts("cityscapes")["classes"]
    assert len(rows) == 35
    table = CityScapes.class_table()
    for row in rows:
        train_id = row["index"] if 0 <= row["index"] < 19 else IGNORE
        assert table.lookup[row["id"] % 256] == train_id  # -1, a license plate, is 255 in a file
        if train_id != IGNORE:
            assert (table.names[train_id], list(table.colors[train_id])) == (row["name"], row["color"])
    everything = np.array([[row["id"] % 256 for row in rows]], np.uint8)
    assert table.unknown(everything) is None
    assert table.unknown(np.full((1, 1), 34, np.uint8)) == 34


def test_a_label_that_is_missing_in_one_city_moves_no_pair(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    (tmp_path / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_labelIds.png").unlink()
    text = problem(lambda: CityScapes(data_dir=tmp_path, split="train"))
    assert "1 files (aachen_000000_000019_leftImg8bit.png) without label" in text
    problems: list[Problem] = []
    data = CityScapes(data_dir=tmp_path, split="train", problems=problems)
    assert [sample.key for sample in data.samples] == ["aachen_000001_000019", "ulm_000002_000019"]
    assert all(sample.label.name.startswith(sample.key) for sample in data.samples)
    assert [problem.fault for problem in problems] == [Fault.IMAGE_ALONE]


def test_lists_of_cityscapes_are_used_where_they_are(tmp_path: Path) -> None:
    cityscapes(tmp_path)
    image = "leftImg8bit/train/ulm/ulm_000002_000019_leftImg8bit.png"
    (tmp_path / "trainImages.txt").write_text(f"{image}\r\n\r\n")
    text = problem(lambda: CityScapes(data_dir=tmp_path, split="train"))
    assert "Give trainImages.txt and trainLabels.txt, or neither" in text
    # The list of seeds 000 and 002 names labelTrainIds; the labelIds beside them say the same.
    label = "gtFine/train/ulm/ulm_000002_000019_gtFine_labelTrainIds.png"
    (tmp_path / "trainLabels.txt").write_text(f"/{label}\n")
    data = CityScapes(data_dir=tmp_path, split="train")
    assert [sample.key for sample in data.samples] == ["ulm_000002_000019"]
    assert data.samples[0].label.name == "ulm_000002_000019_gtFine_labelIds.png"
    expected = data.read(0).label
    save(tmp_path / label, CityScapes.class_table().train_ids(values(*range(34))))
    data.samples[0].label.unlink()
    data = CityScapes(data_dir=tmp_path, split="train")
    assert data.samples[0].label == tmp_path / label
    np.testing.assert_array_equal(data.read(0).label, expected)
    save(tmp_path / label, values(*range(34)))
    assert "holds more than training ids" in problem(lambda: data.read_label(0))
    (tmp_path / "trainImages.txt").write_text("../../secret.png\n")
    assert "lies outside" in problem(lambda: CityScapes(data_dir=tmp_path, split="train"))
    (tmp_path / "trainImages.txt").write_text("")
    (tmp_path / "trainLabels.txt").write_text("")
    assert "no 'train' images" in problem(lambda: CityScapes(data_dir=tmp_path, split="train"))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"split": "train_extra"}, 'split: there are no fine annotations of \'train_extra\'. Set "mode": "coarse"'),
        ({"split": "test", "mode": "coarse"}, 'split: there are no coarse annotations of \'test\'. Set "mode": "fine"'),
    ],
)
def test_a_split_that_a_mode_does_not_have_is_refused(tmp_path: Path, options: dict, text: str) -> None:
    assert text in problem(lambda: CityScapes(data_dir=tmp_path, **options))


# ADE20K


def ade20k(root: Path, label: np.ndarray) -> Path:
    for name in ("ADE_train_00000001", "a.b"):
        save_image(root / "images" / "training" / f"{name}.jpg")
        save(root / "annotations" / "training" / f"{name}.png", label)
    return root


@pytest.mark.parametrize("home", ["", "ADEChallengeData2016"])
def test_ade20k_has_150_classes_and_void_or_151(tmp_path: Path, home: str) -> None:
    label = values(*range(151))
    ade20k(tmp_path / home, label)
    data = ADE20K(data_dir=tmp_path, split="training")
    assert [sample.key for sample in data.samples] == ["ADE_train_00000001", "a.b"]
    expected = np.where(label == 0, IGNORE, label - 1)
    np.testing.assert_array_equal(data.read(0).label, expected)
    other = ADE20K(data_dir=tmp_path, split="training", include_other=True)
    np.testing.assert_array_equal(other.read(0).label, label)
    assert (len(data.classes), len(other.classes)) == (150, 151)
    assert other.classes.names[:2] == ("other", "wall")


def test_labels_of_ade20k_that_were_shifted_before_are_refused(tmp_path: Path) -> None:
    ade20k(tmp_path, values(*range(150), 255))
    text = problem(lambda: ADE20K(data_dir=tmp_path, split="training").read(0))
    assert "label value 255" in text


def test_the_colors_of_ade20k_belong_to_its_classes() -> None:
    table, rows = ADE20K.class_table(), facts("ade20k")["classes"]
    assert [row["name"] for row in rows] == list(table.names)
    different = [row["name"] for row, color in zip(rows, table.colors, strict=True) if row["color"] != list(color)]
    assert different == ["skyscraper"]  # published with the road's color
    assert table.colors[0] == (120, 120, 120)


# COCO-Stuff


def coco(root: Path, label: np.ndarray, folder: str = "annotations") -> Path:
    save(root / "images" / "val2017" / "000000000139.jpg", np.full(SIZE, 100, np.uint8))  # gray
    save(root / folder / "val2017" / "000000000139.png", label)
    return root


@pytest.mark.parametrize("folder", ["annotations", "stuffthingmaps"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_coco_stuff_knows_void_in_any_type(tmp_path: Path, folder: str, dtype: type) -> None:
    void = 255 if dtype == np.uint8 else 65535
    coco(tmp_path, values(0, 12, 181, void, dtype=dtype), folder)
    data = COCO(data_dir=tmp_path, split="val2017", label_set=182)
    item = data.read(0)
    assert item.image.shape == (*SIZE, 3)
    np.testing.assert_array_equal(np.unique(item.label), [0, 12, 181, IGNORE])
    save(tmp_path / folder / "val2017" / "000000000139.png", values(0, 300, dtype=np.uint16))
    assert "holds 300, which is no id of COCO-Stuff" in problem(lambda: data.read(0))
    coco(tmp_path, values(0, 12, 181, void, dtype=dtype), folder)
    # Ids 12 and the others that were never used are left out, so 13 (stop sign) is class 11 of 171.
    assert set(np.unique(COCO(data_dir=tmp_path, split="val2017").read(0).label)) == {0, 11, 170, IGNORE}


def test_the_classes_of_coco_stuff_are_those_that_occur() -> None:
    rows = facts("cocostuff")
    assert rows["unused_ids"] == list(UNUSED_IDS)
    small, large = COCO.class_table(), COCO.class_table(label_set=182)
    assert large.names == tuple(row["name"] for row in rows["classes"])
    assert small.names == tuple(row["name"] for row in rows["classes"] if row["used"])
    assert len(small) == 171
    colors = dict(zip(large.names, large.colors, strict=True))
    assert all(colors[name] == color for name, color in zip(small.names, small.colors, strict=True))
    assert small.unknown(np.full((1, 1), 11, np.uint8)) == 11


def coco10k(root: Path) -> Path:
    (root / "imageLists").mkdir()
    (root / "imageLists" / "test.txt").write_text("COCO_train2014_000000000077\n\n")
    save_image(root / "images" / "COCO_train2014_000000000077.jpg")
    (root / "annotations").mkdir()
    (root / "annotations" / "COCO_train2014_000000000077.mat").write_bytes(b"matrix")
    return root


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_coco_stuff_10k_reads_matlab_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    fake = types.ModuleType("scipy.io")
    fake.loadmat = lambda path, variable_names: {"S": values(0, 1, 13, 182, dtype=dtype)}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "scipy", types.ModuleType("scipy"))
    monkeypatch.setitem(sys.modules, "scipy.io", fake)
    data = COCO(data_dir=coco10k(tmp_path), split="test", partition="CocoStuff10k")
    np.testing.assert_array_equal(data.read(0).label.ravel()[:4], [IGNORE, 0, 11, 170])


def test_matlab_files_without_scipy_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    data = COCO(data_dir=coco10k(tmp_path), split="test", partition="CocoStuff10k")
    assert "pip install scipy" in problem(lambda: data.read(0))


def test_a_split_of_the_other_partition_is_refused(tmp_path: Path) -> None:
    assert "CocoStuff164k has no 'test'. Use one of train2017" in problem(lambda: COCO(data_dir=tmp_path, split="test"))
    config = load_config(HOME / "configs" / "cocostuff_deeplab.json", ['train_loader.args.split="all"'])
    assert "train_loader.args.split: CocoStuff164k has no 'all'" in problem(lambda: check_config(config))


# DeepScene


def deepscene(root: Path, mask: np.ndarray) -> Path:
    for name in ("b1-09517", "b99-7"):
        save_image(root / "train" / "rgb" / f"{name}_Clipped.jpg")
        save(root / "train" / "GT_color" / f"{name}_{'Clipped' if name[1] == '1' else 'mask'}.png", mask)
    return root


@pytest.mark.parametrize("home", ["", "freiburg_forest_annotated"])
def test_deepscene_tells_classes_by_color(tmp_path: Path, home: str) -> None:
    table = DeepScene.class_table()
    index = values(*range(8))
    colors = np.array([*table.colors, (1, 2, 3)], np.uint8)[index]
    deepscene(tmp_path / home, colors)
    data = DeepScene(data_dir=tmp_path, split="training")
    assert [sample.key for sample in data.samples] == ["b1-09517", "b99-7"]
    np.testing.assert_array_equal(data.read(1).label, np.where(index == 7, IGNORE, index))
    assert data.unknown_pixels(1) == int((index == 7).sum())
    data.classes = data.classes.ignoring(0)
    np.testing.assert_array_equal(data.read(1).label, np.where((index == 7) | (index == 0), IGNORE, index))


def test_masks_in_colors_take_no_label_map(tmp_path: Path) -> None:
    text = problem(lambda: DeepScene(data_dir=tmp_path, split="training", label_map={"0": None}))
    assert "label_map: masks drawn in colors hold no values" in text


def test_deepscene_refuses_an_image_without_mask(tmp_path: Path) -> None:
    deepscene(tmp_path, np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "train" / "GT_color" / "b99-7_mask.png").unlink()
    assert "b99-7_Clipped.jpg) without label" in problem(lambda: DeepScene(data_dir=tmp_path, split="training"))


@pytest.mark.parametrize(
    ("name", "data"),
    [("cityscapes", CityScapes), ("ade20k", ADE20K), ("cocostuff", COCO), ("deepscene", DeepScene), ("voc", VOC)],
)
def test_means_are_those_that_were_published(name: str, data: type) -> None:
    published = facts(name)
    assert (list(data.mean), list(data.std)) == (published["mean"], published["std"])  # type: ignore[attr-defined]


RECIPES = sorted((HOME / "configs").glob("*.json")) + sorted((HOME / "configs" / "presets").rglob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_recipe_but_the_documented_example_says_whether_it_starts_from_imagenet(path: Path) -> None:
    if path.name != "voc_pspnet.json":  # which stands as its authors wrote it
        assert "pretrained" in load_config(path)["arch"]["args"]
