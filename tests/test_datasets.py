"""Datasets: pairs by name, classes by table, and a line for everything that is wrong with a folder."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import unicodedata
from dataclasses import fields
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import dataloader
from base.base_dataloader import Batch, DevicePrefetcher, Loader, collate
from base.base_dataset import BaseDataset, DatasetView, Item
from dataloader.datasets.camvid import CamVid
from dataloader.datasets.files import color_labels
from dataloader.datasets.folder import Folder
from dataloader.datasets.synthetic import Synthetic
from dataloader.datasets.voc import VOC
from dataloader.label_statistics import check_samples, location_prior
from dataloader.transforms.chain import ChainOptions, build_chain
from tests.conftest import PREFIX, ROOT
from utils.classes import IGNORE, ClassTable
from utils.errors import ConfigError, DataError
from utils.metrics import ConfusionMatrix
from utils.registry import DATASETS
from utils.schema import EMPTY, parameters_of
from utils.visualize import VOID_COLORS, colorize, png_palette

CLASS_TABLES = Path(dataloader.__file__).parent / "datasets" / "classes"
SHARED = Path(__file__).parents[2] / "shared" / "data"
LOADER = {"batch_size", "shuffle", "num_workers", "val_split", "return_id", "drop_last", "cache", "on_bad_sample"}


def save(path, array, palette=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(array, np.uint8))
    if palette is not None:
        image.putpalette(palette)
    image.save(path)


def save_image(path, height=13, width=17):
    save(path, np.full((height, width, 3), 100))


def problems(make):
    with pytest.raises((DataError, ConfigError)) as caught:
        make()
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_takes_no_name_of_the_loader_or_the_chain(name):
    taken = LOADER | {f.name for f in fields(ChainOptions)}
    assert not taken & set(parameters_of(DATASETS[name]))
    assert {"data_dir", "split", "label_map"} <= set(parameters_of(DATASETS[name]))


@pytest.mark.parametrize("name", DATASETS)
def test_a_dataset_knows_its_classes_without_its_files(name):
    options = {"classes": ["a", "b"]} if name in ("Folder", "Annotations") else {}
    table = DATASETS[name].func.class_table(**options)
    assert len(set(table.names)) == len(set(table.colors)) == len(table)
    assert set(table.train_ids(np.arange(256, dtype=np.uint8))) == {*range(len(table)), IGNORE}


OURS = [name for name in DATASETS if DATASETS.homes[name].startswith("dataloader.")]  # not those of other tests


@pytest.mark.parametrize("name", [n for n in OURS if parameters_of(DATASETS[n])["data_dir"].default is EMPTY])
def test_a_missing_folder_is_named(name, tmp_path):
    options = {"classes": ("a",)} if name in ("Folder", "Annotations") else {}
    split = DATASETS[name].func.splits[0]
    (problem,) = problems(lambda: DATASETS[name](data_dir=tmp_path / "no where", split=split, **options))
    assert problem.startswith("data_dir: ")
    assert str(tmp_path / "no where") in problem


@pytest.mark.parametrize("name", DATASETS)
def test_an_unknown_split_is_named(name, tmp_path):
    options = {"classes": ("a",)} if name in ("Folder", "Annotations") else {}
    split = DATASETS[name].func.splits[-1]
    (problem,) = problems(lambda: DATASETS[name](data_dir=tmp_path, split=f"{split}x", **options))
    assert f"Did you mean '{split}'?" in problem


# Synthetic


def test_a_scene_is_a_function_of_seed_split_and_index():
    first = Synthetic(split="train", length=5, size=(65, 97), seed=3)
    np.random.seed(0)
    torch.manual_seed(0)
    before = [first.read(index) for index in range(5)]
    np.random.seed(1)
    torch.manual_seed(1)
    again = Synthetic(split="train", length=9, size=(65, 97), seed=3)
    for index in (4, 2, 0):
        np.testing.assert_array_equal(again.read(index).image, before[index].image)
        np.testing.assert_array_equal(again.read(index).label, before[index].label)
        np.testing.assert_array_equal(again.read_label(index), before[index].label)
        assert again.read(index).key == before[index].key
    for other in (Synthetic(split="val", size=(65, 97), seed=3), Synthetic(split="train", size=(65, 97), seed=4)):
        assert not np.array_equal(other.read(0).image, before[0].image)
    measured_on = [Synthetic(split="val", size=(65, 97), seed=seed).read(7).image for seed in (0, 3)]
    np.testing.assert_array_equal(*measured_on)


@pytest.mark.parametrize("size", [(192, 256), (65, 97), (97, 65), (33, 300), (600, 800)])
def test_scenes_come_in_any_size(size):
    item = Synthetic(split="val", length=2, size=size).read(1)
    assert item.image.shape == (*size, 3)
    assert item.label.shape == size
    assert item.image.dtype == item.label.dtype == np.uint8


def test_scenes_show_all_classes_and_cannot_be_guessed_from_the_place():
    train, val = Synthetic(split="train", length=160), Synthetic(split="val", length=40)
    count = len(train.classes)
    votes = np.zeros((count, *train.size), np.int64)
    for index in range(len(train)):
        votes += train.read_label(index) == np.arange(count)[:, None, None]
    shares = votes.sum((1, 2)) / votes.sum()
    assert shares.min() > 0.003
    assert shares.max() / shares.min() > 10
    prior, matrix = votes.argmax(0), np.zeros((count, count))
    void = 0
    for index in range(len(val)):
        label = val.read_label(index)
        void += (label == IGNORE).mean() / len(val)
        seen = label != IGNORE
        matrix += np.bincount(label[seen] * count + prior[seen], minlength=count**2).reshape(count, count)
    hits = matrix.diagonal()
    assert (hits / (matrix.sum(0) + matrix.sum(1) - hits)).mean() < 0.35
    assert 0.005 < void < 0.1


def test_the_location_prior_is_measured_as_a_network_is_over_the_classes_that_count():
    train, val = Synthetic(split="train", length=1), Synthetic(split="val", length=20)
    for dataset in (train, val):  # the sky
        dataset.classes = dataset.classes.ignoring(0)
    seen = cv2.resize(train.read_label(0), (120, 90), interpolation=cv2.INTER_NEAREST)
    guess = np.where(seen == IGNORE, 0, seen)
    assert (guess == 0).any()  # where nothing is labelled in training; this class is in no mean
    matrix = ConfusionMatrix(11, train.classes.names, train.classes.ignored_classes)
    for index in range(len(val)):
        label = cv2.resize(val.read_label(index), (120, 90), interpolation=cv2.INTER_NEAREST)
        matrix.update(torch.from_numpy(guess)[None], torch.from_numpy(label)[None])
    assert matrix.counts[:, 0].any()
    assert location_prior(DatasetView(train, None), DatasetView(val, None)) == matrix.results()["Mean_IoU"]


def test_a_view_augments_by_epoch_and_index():
    data = Synthetic(split="train", length=3, size=(65, 97))
    chain = build_chain(ChainOptions(augment=True, crop_size=(41, 53), flip=True), (1.0, 2.0, 3.0), where="")
    view = DatasetView(data, chain, seed=5, indices=[2, 1])
    assert len(view) == 2
    item = view[4, 0]
    assert item.key == "train_0000002"
    assert item.image.shape == (41, 53, 3)
    np.testing.assert_array_equal(item.image, view[4, 0].image)
    assert not np.array_equal(item.image, view[5, 0].image)


def test_the_table_of_normalization_is_the_data_s():
    data = Synthetic(split="train", length=60)
    pixels = np.stack([data.read(index).image for index in range(60)]).reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), Synthetic.mean, atol=0.04)
    np.testing.assert_allclose(pixels.std(0), Synthetic.std, atol=0.04)


# CamVid


def camvid(root, names=("a.b", "b"), suffix=".jpg"):
    for name in names:
        save_image(root / "train" / f"{name}{suffix}")
        save(root / "trainannot" / f"{name}.png", np.arange(13 * 17).reshape(13, 17) % 12)
    return root


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".JPG"])
def test_camvid_pairs_by_name_and_ignores_11(tmp_path, suffix):
    (camvid(tmp_path, suffix=suffix) / "train" / "Thumbs.db").write_bytes(b"stray")
    data = CamVid(data_dir=tmp_path, split="train")
    assert [sample.key for sample in data.samples] == ["a.b", "b"]
    label = data.read(0).label
    assert set(np.unique(label)) == {*range(11), IGNORE}
    assert (label.ravel()[11::12] == IGNORE).all()


def test_camvid_names_what_has_no_counterpart(tmp_path):
    camvid(tmp_path)
    for number in range(7):
        save_image(tmp_path / "train" / f"x{number}.png")
    save(tmp_path / "trainannot" / "y.png", np.zeros((2, 2)))
    first, second = problems(lambda: CamVid(data_dir=tmp_path, split="train"))
    assert "7 files (x0.png, x1.png, x2.png, x3.png, x4.png, ...) without label" in first
    assert "1 files (y.png) without image" in second


def test_faults_in_files_are_named_when_they_are_read(tmp_path):
    camvid(tmp_path, names="abcd")
    save(tmp_path / "trainannot" / "a.png", np.full((13, 17), 200))
    save(tmp_path / "trainannot" / "b.png", np.zeros((13, 18)))
    save(tmp_path / "trainannot" / "c.png", np.zeros((13, 17, 3)))
    (tmp_path / "train" / "d.jpg").write_bytes(b"")
    data = CamVid(data_dir=tmp_path, split="train")
    texts = ["label value 200 at row 0, column 0", "17x13 (width x height), its label 18x13", "colors (RGB)", "empty"]
    for index, text in enumerate(texts):
        (problem,) = problems(lambda index=index: data.read(index))
        assert text in problem
    mapped = CamVid(data_dir=tmp_path, split="train", label_map={"200": "road"})
    assert (mapped.read(0).label == 3).all()


def test_a_letter_and_its_accent_pair_with_the_accented_letter(tmp_path):
    save_image(tmp_path / "train" / f"{unicodedata.normalize('NFD', 'é à')}.png")
    save(tmp_path / "trainannot" / f"{unicodedata.normalize('NFC', 'é à')}.png", np.zeros((13, 17)))
    assert CamVid(data_dir=tmp_path, split="train").read(0).label.shape == (13, 17)


def test_links_are_followed_and_folders_are_no_images(tmp_path):
    camvid(tmp_path / "far away")
    (tmp_path / "train" / "old.jpg").mkdir(parents=True)
    (tmp_path / "train" / "b.jpg").symlink_to(tmp_path / "far away" / "train" / "b.jpg")
    (tmp_path / "train" / "a.b.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "trainannot").symlink_to(tmp_path / "far away" / "trainannot")
    data = CamVid(data_dir=tmp_path, split="train")
    assert data.read(1).key == "b"
    assert "a.b.jpg: cannot be read (No such file or directory)" in problems(lambda: data.read(0))[0]


def test_two_images_of_one_name_are_refused(tmp_path):
    save_image(camvid(tmp_path) / "train" / "b.png")
    (problem,) = problems(lambda: CamVid(data_dir=tmp_path, split="train"))
    assert "same name as b.jpg" in problem


@pytest.mark.skipif(not (SHARED / "camvid").is_dir(), reason="needs CamVid beside the checkout")
def test_camvid_itself_has_the_sizes_it_states():
    train, val = (CamVid(data_dir=SHARED / "camvid", split=split) for split in ("train", "val"))
    assert (len(train), len(val)) == (367, 101)
    item = val.read(50)
    assert item.image.shape == (360, 480, 3)
    pixels = np.concatenate([train.read(index).image.reshape(-1, 3) for index in range(0, 367, 8)]) / 255
    np.testing.assert_allclose(pixels.mean(0), CamVid.mean, atol=0.02)
    np.testing.assert_allclose(pixels.std(0), CamVid.std, atol=0.02)


# Pascal VOC


def voc(root, lists, names=("2007_000032", "2008_1")):
    for name in names:
        save_image(root / "JPEGImages" / f"{name}.jpg")
        label = np.arange(13 * 17).reshape(13, 17) % 21
        label[0] = 255
        for folder in ("SegmentationClass", "SegmentationClassAug"):
            save(root / folder / f"{name}.png", label, palette=list(range(256)) * 3)
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True)
    for split, text in lists.items():
        (folder / f"{split}.txt").write_bytes(text.encode())


@pytest.mark.parametrize("home", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc_is_found_wherever_it_was_unpacked(tmp_path, home):
    voc(tmp_path / home, {"train": "2007_000032\r\n\r\n 2008_1 \r\n"})
    data = VOC(data_dir=tmp_path, split="train")
    assert [sample.key for sample in data.samples] == ["2007_000032", "2008_1"]
    assert set(np.unique(data.read(1).label)) == {*range(21), IGNORE}


@pytest.mark.parametrize(
    "line",
    [
        "/JPEGImages/2008_1.jpg /SegmentationClassAug/2008_1.png",
        "JPEGImages/2008_1.jpg SegmentationClassAug/2008_1.png",
        "2008_1",
    ],
)
def test_lists_of_sbd_come_in_three_forms(tmp_path, line):
    voc(tmp_path, {"train_aug": f"\ufeff{line}\n\n"})
    (sample,) = VOC(data_dir=tmp_path, split="train_aug").samples
    assert sample.key == "2008_1"
    assert sample.label == tmp_path / "SegmentationClassAug" / "2008_1.png"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("../../etc/passwd /SegmentationClassAug/2008_1.png", "line 1: '../../etc/passwd' lies outside"),
        ("/JPEGImages/../../x.jpg /SegmentationClassAug/2008_1.png", "lies outside"),
        ("a b c", "line 1: 3 entries"),
        ("\nnothing", "names 2 files"),
        ("", "no 'train_aug' images"),
    ],
)
def test_a_wrong_list_is_named_with_its_line(tmp_path, text, reason):
    voc(tmp_path, {"train_aug": text})
    (problem,) = problems(lambda: VOC(data_dir=tmp_path, split="train_aug"))
    assert reason in problem


def test_a_missing_list_of_sbd_says_what_it_would_be(tmp_path):
    voc(tmp_path, {})
    (problem,) = problems(lambda: VOC(data_dir=tmp_path, split="train_aug"))
    assert "SBD" in problem
    assert "or use split 'train'" in problem


# Folder


def own(root, mask, split=None, names=("a", "b"), **options):
    for name in names:
        save_image(root / "images" / (split or "") / f"{name}.jpg")
        save(root / "masks" / (split or "") / f"{name}.png", mask, **options)


def folder(root, split="all", **options) -> BaseDataset:
    return DATASETS.build(
        {"type": "Folder", "args": {"data_dir": str(root), "split": split, **options}}, where="train_loader"
    )


INDEX = np.arange(13 * 17).reshape(13, 17) % 3


@pytest.mark.parametrize("palette", [None, list(range(255, -1, -1)) * 3])
def test_masks_of_indices_need_only_names(tmp_path, palette):
    own(tmp_path, INDEX, palette=palette)
    data = folder(tmp_path, classes=["x", "y", "z"])
    assert len(data) == 2
    np.testing.assert_array_equal(data.read(0).label, INDEX)
    assert data.classes.names == ("x", "y", "z")


def test_binary_masks_of_0_and_255(tmp_path):
    own(tmp_path, (INDEX == 1) * 255)
    rows = [{"name": "rest", "value": 0}, {"name": "crack", "value": 255}]
    np.testing.assert_array_equal(folder(tmp_path, classes=rows).read(0).label, INDEX == 1)
    own(tmp_path, np.where(INDEX == 2, 7, (INDEX == 1) * 255))
    (problem,) = problems(lambda: folder(tmp_path, classes=rows).read(0))
    assert "label value 7 at row 0, column 2 is neither a class (0, 255) nor void (none)." in problem
    taken = folder(tmp_path, classes=rows, unknown="void").read(0).label
    np.testing.assert_array_equal(taken, np.where(INDEX == 2, IGNORE, INDEX == 1))


@pytest.mark.parametrize("table", sorted(CLASS_TABLES.glob("*.csv")), ids=lambda path: path.stem)
@pytest.mark.parametrize("mode", ["RGB", "P"])
def test_labels_of_every_dataset_drawn_in_its_colors_are_read_as_the_same_labels(tmp_path, table, mode):
    classes = ClassTable.read(table)
    labels = np.append(np.arange(len(classes)), IGNORE).astype(np.uint8)[None].repeat(3, axis=0)
    picture = Image.fromarray(colorize(labels, classes))
    if mode == "P":
        picture = Image.fromarray(labels)
        picture.putpalette(png_palette(classes).tobytes())
    picture.save(tmp_path / "mask.png")
    found, unknown = color_labels(tmp_path / "mask.png", classes, void=[VOID_COLORS[0]])
    assert not unknown.any()
    assert np.array_equal(found, labels)


def test_masks_of_colors_are_exact(tmp_path):
    colors = np.array([[255, 0, 0], [0, 0, 0], [0, 255, 1]], np.uint8)
    own(tmp_path, colors[INDEX])
    rows = [{"name": "red", "color": [255, 0, 0]}, {"name": "black", "color": [0, 0, 0]}]
    options = {"classes": rows, "masks": "color"}
    (problem,) = problems(lambda: folder(tmp_path, **options).read(0))
    count = int((INDEX == 2).sum())
    assert f"{count} pixels of no class's color, first [0, 255, 1] at row 0, column 2" in problem
    expected = np.where(INDEX == 2, IGNORE, INDEX)
    np.testing.assert_array_equal(folder(tmp_path, unknown="void", **options).read(0).label, expected)
    np.testing.assert_array_equal(folder(tmp_path, void=[[0, 255, 1]], **options).read(0).label, expected)


def test_colors_where_indices_are_expected_are_refused(tmp_path):
    own(tmp_path, np.zeros((13, 17, 3)))
    assert "expected class indices" in problems(lambda: folder(tmp_path, classes=["a"]).read(0))[0]


@pytest.mark.parametrize("form", ["csv", "names.json", "rows.json", "object.json"])
def test_classes_may_stand_in_a_file(tmp_path, form):
    own(tmp_path, INDEX)
    rows = [{"name": "x", "value": 2, "color": [1, 2, 3]}, {"name": "y", "value": [0, 1], "color": [4, 5, 6]}]
    texts = {
        "csv": "name,red,green,blue,raw_id\nx,1,2,3,0\ny,4,5,6,1\nz,7,8,9,2\n",
        "names.json": json.dumps(["x", "y", "z"]),
        "rows.json": json.dumps(rows),
        "object.json": json.dumps({"classes": rows}),
    }
    path = tmp_path / f"classes.{form}"
    path.write_text(texts[form])
    data = folder(tmp_path, classes=str(path))
    expected = INDEX if form in ("csv", "names.json") else INDEX != 2
    np.testing.assert_array_equal(data.read(0).label, expected)
    if form != "names.json":
        assert data.classes.colors[:2] == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_splits_may_be_folders(tmp_path, layout):
    for split, names in (("train", "abc"), ("val", "d")):
        for name in names:
            place = layout.replace("train", split)
            save_image(tmp_path / place / f"{name}.jpg")
            save(tmp_path / place.replace("images", "masks") / f"{name}_mask.png", INDEX)
    options = {"classes": ["x", "y", "z"], "mask_suffix": "_mask"}
    assert len(folder(tmp_path, "train", **options)) == 3
    assert len(folder(tmp_path, "val", **options)) == 1


def test_a_list_names_images_and_masks(tmp_path):
    save_image(tmp_path / "photos of" / "a.jpg")
    save_image(tmp_path / "b.jpg")
    save(tmp_path / "m.png", INDEX)
    (tmp_path / "train.txt").write_text("photos of/a.jpg\tm.png\r\n\r\nb.jpg  m.png\n")
    data = folder(tmp_path, "train", classes=["x", "y", "z"], list_file="{split}.txt")
    assert [sample.key for sample in data.samples] == ["b", "photos of/a"]
    (tmp_path / "train.txt").write_text(f"{tmp_path}/photos of/a.jpg\t{tmp_path}/m.png\n/b.jpg\t/m.png")
    again = folder(tmp_path, "train", classes=["x", "y", "z"], list_file="{split}.txt")
    assert again.samples == data.samples
    (tmp_path / "train.txt").write_text("../b.jpg m.png")
    assert "outside" in problems(lambda: folder(tmp_path, "train", classes=["x"], list_file="train.txt"))[0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"classes": []}, "none are given"),
        ({"classes": ["a", "a"]}, "named twice"),
        ({"classes": "nowhere.json"}, "cannot be read"),
        ({"classes": [{"name": "a", "value": 1}, {"name": "b"}]}, "value 1 stands for two"),
        ({"classes": ["a"], "masks": "color"}, "no color for 'a'"),
        ({"classes": [{"name": "a", "color": [1, 2, 3]}], "masks": "color", "label_map": {"1": "a"}}, "Remove it"),
        ({"classes": [{"name": "a", "colour": [1, 2, 3]}]}, "Did you mean 'color'?"),
        ({"classes": [{"name": "a", "value": 300}]}, "of at most 255"),
        ({"classes": ["a", "b"], "void": [1, 255]}, "void: 1 is a class's too. Remove it here"),
        ({"classes": [{"name": "a", "color": [1, 2, 3]}], "masks": "color", "void": [[1, 2, 3]]}, "void: [1, 2, 3]"),
    ],
)
def test_a_wrong_class_list_has_its_line(tmp_path, options, reason):
    own(tmp_path, INDEX)
    assert any(reason in problem for problem in problems(lambda: folder(tmp_path, **options)))


def test_a_table_of_classes_needs_their_names(tmp_path):
    own(tmp_path, INDEX)
    (tmp_path / "classes.csv").write_text("class;value\nx;0\n")
    (problem,) = problems(lambda: folder(tmp_path, classes=str(tmp_path / "classes.csv")))
    assert "its first line has no column 'name', but class;value" in problem


def test_a_class_that_is_left_out_becomes_void_in_colors_too(tmp_path):
    own(tmp_path, np.array([[9, 9, 9], [1, 1, 1], [2, 2, 2]], np.uint8)[INDEX])
    rows = [{"name": str(k), "color": [k, k, k]} for k in (9, 1, 2)]
    data = folder(tmp_path, classes=rows, masks="color")
    data.classes = data.classes.ignoring(1)
    np.testing.assert_array_equal(data.read(0).label, np.where(INDEX == 1, IGNORE, INDEX))
    assert Folder.splits[0] == "all"


# Batches


def test_on_a_cpu_a_batch_is_not_copied():
    batch = Batch(
        torch.zeros(2, 3, 5, 7, dtype=torch.uint8), torch.zeros(2, 5, 7, dtype=torch.uint8), ("a", "b"), ("c",)
    )
    moved = DevicePrefetcher(torch.device("cpu"))(batch)
    assert moved == batch
    assert moved.images.data_ptr() == batch.images.data_ptr()


# Bad samples


def broken(root, bad, length=40):
    """`length` examples of CamVid, of which those with a number in `bad` cannot be read."""
    camvid(root, names=[f"{number:02d}" for number in range(length)], suffix=".png")
    for number in bad:
        (root / "train" / f"{number:02d}.png").write_bytes(b"once upon a time")
    return CamVid(data_dir=root, split="train")


def loader_of(data, *, training=True, batch_size=4, num_workers=0):
    view = DatasetView(data, None, on_bad_sample="skip")
    return Loader(view, batch_size, training=training, shuffle=False, num_workers=num_workers)


def test_a_bad_sample_stops_unless_skipping_was_asked_for(tmp_path):
    data = broken(tmp_path, [5])
    (problem,) = problems(lambda: list(Loader(DatasetView(data, None), 4, training=True, shuffle=False).batches()))
    assert "05.png" in problem


@pytest.mark.parametrize("num_workers", [0, 2])
def test_skipping_keeps_the_batch_size_and_teaches_nothing(tmp_path, caplog, num_workers):
    loader = loader_of(broken(tmp_path, [5, 6]), num_workers=num_workers)
    batches = list(loader.batches())
    assert [len(batch.keys) for batch in batches] == [4] * 10
    second = batches[1]
    assert second.keys == ("04", "07", "04", "04")
    assert (second.labels[2:] == IGNORE).all()
    assert (second.labels[:2] != IGNORE).any()
    assert len(second.skipped) == 2
    assert [record.getMessage()[-32:] for record in caplog.records] == [
        f"Left out, number {number} of at most 2." for number in (1, 2)
    ]
    caplog.clear()
    again = list(loader.batches(epoch=1, position=4))
    assert torch.equal(again[0].labels, second.labels)
    assert not caplog.records  # said once
    assert len(loader.skipped) == 2


@pytest.mark.parametrize("batch_size", [1, 4])
def test_skipping_leaves_bad_samples_out_of_validation(tmp_path, batch_size):
    keys = [
        key
        for batch in loader_of(broken(tmp_path, [5, 6]), training=False, batch_size=batch_size).batches()
        for key in batch.keys
    ]
    assert keys == [f"{number:02d}" for number in range(40) if number not in (5, 6)]


def test_skipping_has_a_limit(tmp_path):
    first, second = problems(lambda: list(loader_of(broken(tmp_path, [1, 11, 21])).batches()))
    assert "21.png" in first
    assert second.startswith("on_bad_sample: more than 2 of 40 images")
    # A batch of nothing but bad samples takes no step.
    assert "00.png" in problems(lambda: list(loader_of(broken(tmp_path, [0, 1, 2, 3])).batches()))[0]


def test_what_a_transform_cannot_do_is_counted_image_by_image(tmp_path):
    def refuse(image, label, rng):
        raise DataError("nothing can be done. Remove it.")

    view = DatasetView(broken(tmp_path, []), refuse, on_bad_sample="skip")
    loader = Loader(view, 1, training=False, num_workers=0)
    first, second = problems(lambda: list(loader.batches()))
    assert first == "02: nothing can be done. Remove it."
    assert second.startswith("on_bad_sample: more than 2 of 40 images")


def test_images_of_different_types_are_refused_whatever_torch_would_make_of_them():
    label = np.zeros((4, 5), np.uint8)
    items = [Item(np.zeros((4, 5, 3), kind), label, kind) for kind in ("uint8", "float32", "uint8")]
    answer = collate(items, bad="void")
    assert isinstance(answer, DataError)
    assert "different types in one batch (float32, uint8)" in answer.problems[0]
    assert collate(items[::2]).images.shape == (2, 3, 4, 5)


def test_the_look_before_training_passes_over_what_is_skipped(tmp_path):
    data = broken(tmp_path, [])
    (tmp_path / "trainannot" / "07.png").write_bytes(b"")
    skipping, stopping = (DatasetView(data, None, on_bad_sample=rule) for rule in ("skip", "stop"))
    assert check_samples(skipping).pixels.sum() > 0
    assert 0 <= location_prior(skipping, skipping) <= 1
    for look in (lambda: check_samples(stopping), lambda: location_prior(stopping, stopping)):
        assert "07.png" in problems(look)[0]
    assert "07.png" in problems(lambda: check_samples(skipping, everything=True))[0]


def test_reading_datasets_takes_none_of_the_tools_around_them():
    name = f"{PREFIX}dataloader"
    check = f"import sys, {name}; print([found for found in sys.modules if found.startswith('{name}.tools')])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_of_generated_scenes_fewer_labels_are_drawn_before_training(monkeypatch):
    drawn = []
    real = Synthetic.read_label
    monkeypatch.setattr(Synthetic, "read_label", lambda self, index: drawn.append(index) or real(self, index))
    found = check_samples(DatasetView(Synthetic(split="train", length=100, size=(32, 32)), None))
    assert found.labels == 20
    assert len(drawn) == 12  # of the others, the image is drawn too


def test_objects_that_are_no_more_used_are_collected_again_after_a_dataset_is_not_found(tmp_path):
    with pytest.raises(DataError):
        CamVid(data_dir=tmp_path, split="train")
    assert gc.isenabled()
