"""Each public dataset on a miniature of what its archives unpack to, through the commands a user gives.

The pictures are frames of CamVid where they lie beside the checkout, else drawn scenes. Around them lies what lies
there in life: files of the system, labels of other kinds, lists with other line ends, gray images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import prepare
from dataloader.datasets.synthetic import Synthetic
from dataloader.tools import download
from tests.conftest import ROOT, Answer, call
from tests.tiny import tiny_config
from utils.registry import DATASETS

FRAMES = ROOT.parent / "shared" / "data" / "camvid" / "train"
SIZE = (72, 96)
CLUTTER = (".DS_Store", "Thumbs.db", "desktop.ini", "._x.jpg", "._x.png", "README.md")


@lru_cache(maxsize=1)
def pictures() -> list[np.ndarray]:
    """Different images, (72, 96, 3) uint8."""
    if not FRAMES.is_dir():
        scenes = Synthetic(split="train", length=12, size=SIZE)
        return [scenes.read(index).image for index in range(12)]
    files = sorted(FRAMES.iterdir())[::30][:12]
    return [np.asarray(Image.open(file).convert("RGB").resize(SIZE[::-1])) for file in files]


@dataclass
class Miniature:
    """Writes pictures and labels, a new one with every call.

    Args:
        root: Folder of the dataset.
        known: Values that labels hold, each of them in every label.
    """

    root: Path
    known: Sequence[Any]
    numbers: dict[str, int] = field(default_factory=dict)  # of the picture of each key

    def number(self, key: str) -> int:
        """The number of the picture of `key`, a new one for a new key."""
        return self.numbers.setdefault(key, len(self.numbers))

    def index(self, key: str) -> np.ndarray:
        """The label of `key`, (72, 96), as indices of `known`."""
        blocks = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) // 5 + self.number(key)
        blocks.flat[: len(self.known)] = range(len(self.known))
        return blocks % len(self.known)

    def image(self, path: str, key: str) -> None:
        """Write the image of `key`; the third is gray and the fourth CMYK where the file is a JPEG."""
        number = self.number(key)
        modes = {2: "L", 3: "CMYK"} if path.endswith("jpg") else {}
        self.save(Image.fromarray(pictures()[number]).convert(modes.get(number, "RGB")), path)

    def label(self, path: str, key: str, palette: bytes | None = None) -> None:
        """Write the label of `key`."""
        image = Image.fromarray(np.array(self.known, np.uint8)[self.index(key)])
        if palette:
            image.putpalette(palette)
        self.save(image, path)

    def other(self, path: str) -> None:
        """Write a picture of another kind, which no one is to read."""
        self.save(Image.new("L", (3, 2), 77), path)

    def text(self, path: str, lines: Iterable[str], end: str = "\n") -> None:
        """Write a list."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes("".join(line + end for line in lines).encode())

    def matrix(self, path: str, **content: Any) -> None:
        """Write a MATLAB file."""
        savemat = pytest.importorskip("scipy.io").savemat
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        savemat(self.root / path, content, do_compression=True)

    def clutter(self) -> None:
        """Put into every folder what is in folders."""
        for folder in [self.root, *(path for path in self.root.rglob("*") if path.is_dir())]:
            for name in CLUTTER:
                (folder / name).write_bytes(b"\0\5\26\7")
            (folder / "@eaDir" / "x.jpg").mkdir(parents=True)

    def save(self, image: Image.Image, path: str) -> None:
        """Write `image` below the folder."""
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        image.save(self.root / path)


def voc(made: Miniature) -> dict[str, list[str]]:
    """VOCtrainval_11-May-2012.tar, and benchmark.tgz where scipy can write its matrices."""
    home, splits = "VOCdevkit/VOC2012", {"train": ["2007_000032", "2008_000008", "2011_003271"], "val": ["2007_000033"]}
    palette = bytes(range(256)) * 3
    for key in [*splits["train"], *splits["val"], "2008_000002", "2008_000003"]:
        made.image(f"{home}/JPEGImages/{key}.jpg", key)
        made.text(f"{home}/Annotations/{key}.xml", ["<annotation/>"])
    for key in splits["train"] + splits["val"]:
        made.label(f"{home}/SegmentationClass/{key}.png", key, palette)
        made.other(f"{home}/SegmentationObject/{key}.png")
    lists = f"{home}/ImageSets/Segmentation"
    made.text(f"{lists}/train.txt", splits["train"], "\r\n")
    made.text(f"{lists}/val.txt", [*splits["val"], "", "  "])
    splits["trainval"] = sorted(splits["train"] + splits["val"])
    made.text(f"{lists}/trainval.txt", splits["trainval"], "  \n")
    made.text(f"{lists}/test.txt", ["2008_000006"])  # of another archive, without labels
    made.text(f"{home}/ImageSets/Main/bird_train.txt", ["2007_000032 -1"])
    return splits


def city(made: Miniature, images: str, labels: str, kind: str, split: str, names: Iterable[str]) -> list[str]:
    """Images and labels of some cities as Cityscapes' archives have them."""
    for name in names:
        town, key = name.split("_")[0], f"{images}/{split}/{name.split('_')[0]}/{name}"
        made.image(f"{key}_leftImg8bit.png", name)
        place = f"{labels}/{split}/{town}/{name}_{kind}"
        made.label(f"{place}_labelIds.png", name)
        for ending in ("labelTrainIds", "instanceIds", "color"):
            made.other(f"{place}_{ending}.png")
        made.text(f"{place}_polygons.json", ["{}"])
    return list(names)


CITIES = {
    "train": ["aachen_000000_000019", "aachen_000001_000019", "hanover_000000_003853"],
    "val": ["frankfurt_000000_000294", "munster_000000_000019"],
    "train_extra": ["augsburg_000000_000019", "troisdorf_000000_000073"],
}


def cityscapes(made: Miniature) -> dict[str, list[str]]:
    """All archives unpacked in one place."""
    made.text("license.txt", ["no"])
    return {s: city(made, "leftImg8bit", "gtFine", "gtFine", s, CITIES[s]) for s in ("train", "val")}


def cityscapes_by_archive(made: Miniature) -> dict[str, list[str]]:
    """Each archive in a folder of its own name."""
    images, labels = "leftImg8bit_trainvaltest/leftImg8bit", "gtFine_trainvaltest/gtFine"
    return {s: city(made, images, labels, "gtFine", s, CITIES[s]) for s in ("train", "val")}


def cityscapes_by_list(made: Miniature) -> dict[str, list[str]]:
    """With the lists of those who made labelTrainIds, which name fewer images than there are."""
    splits = cityscapes(made)
    splits["train"] = splits["train"][:2]
    for split, names in splits.items():
        places = [f"{split}/{name.split('_')[0]}/{name}" for name in names]
        made.text(f"{split}Images.txt", [f"leftImg8bit/{place}_leftImg8bit.png" for place in places], "\r\n")
        made.text(f"{split}Labels.txt", [f"/gtFine/{p}_gtFine_labelTrainIds.png" for p in reversed(places)], " \n\n")
    return splits


def cityscapes_coarse(made: Miniature) -> dict[str, list[str]]:
    """Coarse labels beside fine ones."""
    cityscapes(made)
    return {s: city(made, "leftImg8bit", "gtCoarse", "gtCoarse", s, names) for s, names in CITIES.items()}


def cityscapes_coarse_by_archive(made: Miniature) -> dict[str, list[str]]:
    """The same, each archive in a folder of its own name."""
    splits = {}
    for split, names in CITIES.items():
        images = "leftImg8bit_trainextra" if split == "train_extra" else "leftImg8bit_trainvaltest"
        splits[split] = city(made, f"{images}/leftImg8bit", "gtCoarse/gtCoarse", "gtCoarse", split, names)
    return splits


def side_by_side(made: Miniature, root: str, splits: dict[str, list[str]]) -> None:
    """Folders `images` and `annotations`, with one for each split."""
    for split, names in splits.items():
        for name in names:
            made.image(f"{root}images/{split}/{name}.jpg", name)
            made.label(f"{root}annotations/{split}/{name}.png", name)


def ade20k(made: Miniature) -> dict[str, list[str]]:
    """ADEChallengeData2016.zip."""
    splits = {
        "training": [f"ADE_train_{number:08d}" for number in range(1, 5)],
        "validation": [f"ADE_val_{number:08d}" for number in range(1, 3)],
    }
    side_by_side(made, "ADEChallengeData2016/", splits)
    made.text("ADEChallengeData2016/objectInfo150.txt", ["Idx\tRatio\tTrain\tVal\tStuff\tName"])
    return splits


def coco(made: Miniature) -> dict[str, list[str]]:
    """train2017.zip, val2017.zip and stuffthingmaps_trainval2017.zip."""
    splits = {"train2017": ["000000000009", "000000000025", "000000000030"], "val2017": ["000000000139"]}
    side_by_side(made, "", splits)
    made.text("annotations/instances_val2017.json", ["{}"])
    return splits


def coco10k(made: Miniature) -> dict[str, list[str]]:
    """cocostuff-10k-v1.1.zip; its matrices hold ids from 1, and 0 for void, in any type."""
    splits = {"train": ["COCO_train2014_000000000077", "COCO_train2014_000000000149"]}
    splits |= {"test": ["COCO_train2014_000000000247"]}
    splits["all"] = splits["train"] + splits["test"]
    types = (np.uint8, np.uint16, np.float64)
    for name, kind in zip(splits["all"], types, strict=True):
        made.image(f"images/{name}.jpg", name)
        ids = (np.array(made.known)[made.index(name)] + 1) % 256  # 255 becomes 0
        made.matrix(f"annotations/{name}.mat", S=ids.astype(kind), names=np.array(["x"], object), regionMapStuff=ids)
    for split, names in splits.items():
        made.text(f"imageLists/{split}.txt", names, "\r\n" if split == "test" else "\n")
    return splits


def deepscene(made: Miniature) -> dict[str, list[str]]:
    """freiburg_forest_annotated.tar.gz; masks are colors, and their names end otherwise than their images'."""
    splits = {"training": ["b1-09517", "b10-3", "b2-1"], "validation": ["b1-13404", "b310-25"]}
    for split, names in splits.items():
        home = f"freiburg_forest_annotated/{'train' if split == 'training' else 'test'}"
        for name in names:
            made.image(f"{home}/rgb/{name}_Clipped.jpg", name)
            ending = "Clipped" if split == "training" else "mask"
            made.save(
                Image.fromarray(np.array(made.known, np.uint8)[made.index(name)]),
                f"{home}/GT_color/{name}_{ending}.png",
            )
            for other in ("depth_color", "nir_gray"):
                made.other(f"{home}/{other}/{name}.jpg")
    return splits


def camvid(made: Miniature) -> dict[str, list[str]]:
    """The CamVid folder of SegNet's tutorial, with lists of a machine that is no more."""
    names = {"train": ["0001TP_006690", "0001TP_006720"], "val": ["0016E5_07959"], "test": ["Seq05VD_f00000"]}
    for split, keys in names.items():
        for key in keys:
            made.image(f"{split}/{key}.png", key)
            made.label(f"{split}annot/{key}.png", key)
        made.text(
            f"{split}.txt", [f"/SegNet/CamVid/{split}/{key}.png /SegNet/CamVid/{split}annot/{key}.png" for key in keys]
        )
    return names


# What values become, written down here once more, and not read from the tables under test.
CITY_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
IN_CITY = {value: CITY_IDS.index(value) if value in CITY_IDS else 255 for value in range(34)}
NEVER = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
IN_COCO = {i - 1: n for n, i in enumerate(i for i in range(1, 183) if i not in NEVER)} | {255: 255}
FOREST = ((255, 0, 0), (170, 170, 170), (0, 255, 0), (102, 102, 51), (0, 60, 0), (0, 120, 255), (0, 0, 0))


@dataclass(frozen=True)
class Layout:
    """A dataset, what makes a miniature of it, and what label values become."""

    name: str
    write: Callable[[Miniature], dict[str, list[str]]]
    becomes: dict[Any, int]
    options: dict[str, Any] = field(default_factory=dict)


LAYOUTS = {
    "VOC": Layout("VOC", voc, {k: k for k in (*range(21), 255)}),
    "Cityscapes": Layout("CityScapes", cityscapes, IN_CITY),
    "Cityscapes by archive": Layout("CityScapes", cityscapes_by_archive, IN_CITY),
    "Cityscapes by list": Layout("CityScapes", cityscapes_by_list, IN_CITY),
    "Cityscapes coarse": Layout("CityScapes", cityscapes_coarse, IN_CITY, {"mode": "coarse"}),
    "Cityscapes coarse by archive": Layout("CityScapes", cityscapes_coarse_by_archive, IN_CITY, {"mode": "coarse"}),
    "ADE20K": Layout("ADE20K", ade20k, {0: 255, **{k: k - 1 for k in range(1, 151)}}),
    "ADE20K 151": Layout("ADE20K", ade20k, {k: k for k in range(151)}, {"include_other": True}),
    "COCO-Stuff": Layout("COCO", coco, IN_COCO),
    "COCO-Stuff 10k": Layout("COCO", coco10k, IN_COCO, {"partition": "CocoStuff10k"}),
    "DeepScene": Layout("DeepScene", deepscene, {color: k for k, color in enumerate(FOREST)}),
    "CamVid": Layout("CamVid", camvid, {**{k: k for k in range(11)}, 11: 255}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_dataset_is_used_as_it_was_unpacked(
    name: str,
    tmp_path: Path,
    train_command: Callable[..., Answer],
    evaluate_command: Callable[..., Answer],
) -> None:
    layout, root = LAYOUTS[name], tmp_path / "data é"
    made = Miniature(root, list(layout.becomes))
    splits = layout.write(made)
    made.clutter()
    for split, keys in splits.items():
        data = DATASETS[layout.name](data_dir=root, split=split, **layout.options)
        assert [sample.key for sample in data.samples] == sorted(keys)
        for index, key in enumerate(sorted(keys)):
            item = data.read(index)
            expected = np.array(list(layout.becomes.values()), np.uint8)[made.index(key)]
            np.testing.assert_array_equal(item.label, expected)
            picture = pictures()[made.number(key)]
            assert item.image.shape == picture.shape
            if item.image.mean(axis=(0, 1)).std() > 1:  # not the gray one
                assert np.abs(item.image.astype(int) - picture).mean() < 8
    options = json.dumps(layout.options)
    answer = call(prepare, "check", "--dataset", layout.name, "--data-dir", root, "--args", options, "--workers", "0")
    assert (answer.status, answer.out.splitlines()[-1]) == (0, "nothing found that is wrong"), answer.out
    train, val = [*splits][:2]
    args = {"data_dir": str(root), "num_workers": 0, **layout.options}
    training = {**args, "split": train, "batch_size": 2, "crop_size": 48, "augment": True, "rotate": True}
    sections = {
        "train_loader": {"type": layout.name, "args": training},
        "val_loader": {"type": layout.name, "args": {**args, "split": val, "batch_size": 1}},
    }
    config = tiny_config(tmp_path / "saved", **sections)
    config["trainer"]["epochs"] = 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer = train_command("-c", tmp_path / "config.json")
    assert answer.status == 0, answer.err
    (checkpoint,) = (tmp_path / "saved" / "tiny").glob("2*/last.pth")
    for split in splits:
        answer = evaluate_command("-m", checkpoint, "--split", split, "--output", tmp_path / f"{split}.json")
        assert answer.status == 0, answer.err


def test_voc_s_augmented_set_is_made_of_the_archives_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Miniature(tmp_path, [*range(21), 255])
    splits = voc(made)
    sbd = {"train": ["2008_000002", splits["train"][0]], "val": [splits["val"][0], "2008_000003"]}
    for split, keys in sbd.items():
        made.text(f"benchmark_RELEASE/dataset/{split}.txt", keys)
        for key in keys:
            label = np.minimum(made.index(key), 20).astype(np.uint8)  # SBD has no void
            edges = np.empty((20, 1), object)
            edges[:] = [[np.zeros((2, 2), np.uint8)]] * 20
            parts = {"Boundaries": edges, "Segmentation": label, "CategoriesPresent": np.array([[1], [2]], np.uint8)}
            made.matrix(f"benchmark_RELEASE/dataset/cls/{key}.mat", GTcls=parts)
    made.clutter()
    monkeypatch.setattr(download, "fetch", lambda url, path: pytest.fail(f"fetches {url}"))
    answer = call(prepare, "download", "VOCAug", "--data-dir", tmp_path)
    assert answer.status == 0, answer.err
    expected = {"train_aug": [*splits["train"], "2008_000002", "2008_000003"], "val_aug": splits["val"]}
    expected["trainval_aug"] = expected["train_aug"] + expected["val_aug"]
    for split, keys in expected.items():
        data = DATASETS["VOC"](data_dir=tmp_path, split=split)
        assert [sample.key for sample in data.samples] == sorted(keys)
        for index, key in enumerate(sorted(keys)):
            own, label = np.array(made.known, np.uint8)[made.index(key)], data.read(index).label
            np.testing.assert_array_equal(label, own if key in splits["trainval"] else np.minimum(made.index(key), 20))
    answer = call(prepare, "check", "--dataset", "VOC", "--data-dir", tmp_path, "--workers", "0")
    assert (answer.status, answer.out.splitlines()[-1]) == (0, "nothing found that is wrong"), answer.out
