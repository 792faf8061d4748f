"""A plan follows from a dataset, the time there is and the machine; each rule alone, and no folder makes it fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from base.base_dataloader import HoldOut
from dataloader import scan
from dataloader.datasets.folder import Folder
from dataloader.hold_out import hold_out
from dataloader.tools import recipe
from dataloader.tools.duplicates import near_pairs, near_within, start_of_names
from dataloader.tools.findings import Examined
from dataloader.tools.fingerprint import (
    ClassScale,
    Fingerprint,
    at_borders,
    border_lengths,
    half_differences,
    piece_diameters,
    take_fingerprint,
    uprightness,
    weighted_percentiles,
)
from dataloader.tools.init_config import are_even, channels_in, propose
from dataloader.tools.planning import Wish
from dataloader.tools.recipe import Machine, Measured
from dataloader.transforms.chain import ChainOptions, build_chain
from engine import timing
from engine.annotation_files import AnnotationFile
from engine.assemble import build_loaders
from engine.check import check_config
from inference import SHARED
from tests.conftest import Answer
from tests.tiny import tiny_config
from utils.config import load_config, parse_json
from utils.errors import UserError

GROUND = ClassScale("ground", 0.7, 1.0, (90.0, 120.0, 180.0), 60.0)
CAR = ClassScale("car", 0.3, 0.9, (70.0, 90.0, 140.0), 30.0)
WIRE = ClassScale("wire", 0.004, 0.9, (9.0, 20.0, 40.0), 2.0)
PLAIN = Fingerprint(
    images=300,
    smallest=(360, 480),
    median=(360, 480),
    largest=(360, 480),
    spread=1.0,
    channels=3,
    dtype="uint8",
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.2, 0.2),
    gray=False,
    classes=(GROUND, CAR),
    void=0.0,
    border=0.05,
    upright=6.0,
    duplicates=0,
    near=0,
    start="",
    groups=0,
    largest_group=0,
    pixels=300 * 360 * 480,
)
CPU, GPU = Machine(cores=2), Machine(gpus=1, cores=16, memory=2**35)
QUICK = Measured(step=0.01, validation=0.001, memory=2**20, work=0.01)


def cheap(_: Mapping[str, Any]) -> Measured:
    return QUICK


# ------------------------------------------------------------------------------------------------------- fingerprint


def test_pieces_are_as_large_as_they_are_drawn_and_specks_are_none() -> None:
    mask = np.zeros((80, 100), bool)
    mask[5:25, 5:25] = True
    mask[60:64, 50:54] = True
    mask[70, 70] = True
    assert sorted(piece_diameters(mask)) == pytest.approx([2 * (16 / np.pi) ** 0.5, 2 * (400 / np.pi) ** 0.5])
    assert weighted_percentiles([1.0, 10.0], np.array([1.0, 99.0])) == [10.0, 10.0, 10.0]
    assert weighted_percentiles([], np.array([])) == []


def test_the_width_of_a_strip_is_twice_its_area_by_its_borders() -> None:
    label = np.zeros((64, 90), np.uint8)
    label[:, 40:43] = 1
    lengths = border_lengths(label)
    assert 2 * (label == 1).sum() / lengths[1] == 3
    assert lengths[0] == lengths[1] == 2 * 64
    assert at_borders(label).sum() == 4 * 64
    label[:, 43:] = 255
    assert border_lengths(label)[1] == 64, "beside void there is no border"


def test_streets_have_an_up_and_fields_have_none() -> None:
    rng = np.random.default_rng(0)

    def of(street: bool) -> float:
        rows = []
        for _ in range(30):
            image = rng.integers(0, 60, (40, 60, 3)).astype(np.uint8)
            label = (rng.random((4, 6)) < 0.4).astype(np.uint8).repeat(10, 0).repeat(10, 1)
            if street:
                image[:15] += 150
                label[:15] = 2
            rows.append(half_differences(image, label, 3))
        return uprightness(np.array(rows))

    assert of(street=False) < recipe.UPRIGHT < of(street=True)
    assert uprightness(np.zeros((3, 2, 4))) == 0


def drive(number: int, shift: int) -> np.ndarray:
    """A frame of a drive that moves to the side."""
    world = np.random.default_rng(number).integers(0, 255, (12, 24, 3)).astype(np.uint8)
    return cv2.resize(world, (480, 240), interpolation=cv2.INTER_CUBIC)[:, shift : shift + 240]


def record(image: np.ndarray) -> scan.Record:
    return scan.Record([0], thumbnail=scan.thumbnail(image), image=scan.digest(image))


def test_neighboring_frames_are_near_duplicates_and_other_drives_are_not() -> None:
    frames = {f"{d}_{s:03d}": record(drive(d, s)) for d in range(10) for s in (0, 60)}
    neighbors = {f"{d}_{s:03d}": record(drive(d, s)) for d in range(3) for s in (6, 66)}
    others = {f"{d}_000": record(drive(d, 0)) for d in range(20, 26)}
    found = near_pairs(frames, neighbors)
    assert {b for _, b in found} == neighbors.keys()
    assert all(a.partition("_")[0] == b.partition("_")[0] for a, b in found)
    assert near_pairs(frames, others) == []
    assert near_pairs(frames, dict(list(frames.items())[:5])) == [], "equal ones are told of elsewhere"
    assert len(near_within({**frames, **neighbors})) >= 12
    assert near_pairs(dict(list(frames.items())[:5]), neighbors) == [], "too few to know what is common"


def test_the_doctor_says_what_keeps_neighboring_frames_on_one_side(
    tmp_path: Path, prepare_command: Callable[..., Answer]
) -> None:
    for number in range(8):
        for shift in range(0, 40, 8):
            frame = drive(number, shift)
            save(tmp_path / "images" / f"{number}_{shift:03d}.png", frame)
            save(tmp_path / "masks" / f"{number}_{shift:03d}.png", (frame[..., 0] > 128).astype(np.uint8))
    loader = {
        "data_dir": str(tmp_path),
        "split": "all",
        "classes": ["dark", "bright"],
        "crop_size": 64,
        "batch_size": 4,
    }
    config = tiny_config(tmp_path / "saved", val_loader=None)
    found = {}
    for split in (0.2, {"share": 0.2, "by": "^[^_]+"}):
        args = {**loader, "augment": True, "val_split": split}
        config["train_loader"] = {"type": "Folder", "args": args}
        (tmp_path / "c.json").write_text(json.dumps(config))
        found[str(split)] = prepare_command("check", "-c", tmp_path / "c.json")
    plain, grouped = found.values()
    assert plain.status == 3
    assert re.search("near-duplicate: [6-8] of 8 validation images look nearly like one that is trained on", plain.out)
    assert 'fix: "val_split": {"share": 0.2, "by": "^[^_]+"} keeps together' in plain.out
    assert (grouped.status, "near-duplicate" in grouped.out) == (0, False), grouped.out


def test_names_tell_series() -> None:
    names = [f"drive{d}_{n:03d}" for d in range(4) for n in range(6)]
    assert start_of_names(names) == "^[^_]+"
    assert start_of_names([f"img_{name}" for name in names]) == "^.*(?=[_-])"
    assert start_of_names([f"{name[5]}/{name}" for name in names]) == "^[^/]+(?=/)"
    assert start_of_names([f"{n:03d}" for n in range(24)]) == ""
    assert start_of_names(names, [("drive0_000", "drive1_000")]) == "", "what is alike is not kept together"
    assert start_of_names([*names, *names[:6]]) == "^[^_]+", "a name may occur in two splits"


def test_a_fingerprint_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        image, label = odd_pair(number)
        save(tmp_path / "images" / f"{number}.png", image)
        save(tmp_path / "masks" / f"{number}.png", label)
    dataset = Folder(data_dir=tmp_path, split="all", classes=("a", "b"))
    train = Examined("all", dataset, scan.examine(dataset))
    first = take_fingerprint(train, cache=tmp_path / "cache")
    monkeypatch.setattr(Folder, "read", lambda self, index: pytest.fail("read again"))
    assert take_fingerprint(train, cache=tmp_path / "cache") == first
    assert (first.images, first.median, first.channels, first.dtype) == (5, (48, 64), 3, "uint8")
    assert sum(each.share for each in first.classes) == pytest.approx(1)


# ------------------------------------------------------------------------------------------------------------- rules


def test_thin_classes_get_finer_logits_and_small_images_are_enlarged() -> None:
    thin = replace(PLAIN, classes=(GROUND, WIRE))
    assert recipe.smallest_detail(thin) == ("wire", 5.0)
    assert recipe.choose_stride(PLAIN, GPU).value == 4
    assert recipe.choose_stride(thin, GPU).value == 2
    assert recipe.choose_stride(PLAIN, CPU).value == 2
    small = replace(thin, median=(90, 120))
    choice = recipe.choose_scale(small, CPU, 2)
    assert choice.value == {"long_side": 240}
    assert "'wire' has pieces of 5.0 pixels" in choice.reason
    assert recipe.choose_scale(replace(small, spread=2.0), CPU, 2).value is None, "sizes differ"
    assert recipe.choose_scale(thin, CPU, 2).value is None, "a crop would show too little"


def test_photos_are_shrunk_as_far_as_their_small_classes_allow() -> None:
    photos = replace(PLAIN, median=(3000, 4000))
    size = recipe.working_size(photos, recipe.choose_scale(photos, CPU, 2).value)
    assert size[0] * size[1] == pytest.approx(16 * 224**2, rel=0.01)
    wires = replace(photos, classes=(GROUND, WIRE))
    finer = recipe.working_size(wires, recipe.choose_scale(wires, CPU, 2).value)
    assert finer[0] * finer[1] == pytest.approx(64 * 224**2, rel=0.01)


@pytest.mark.parametrize(
    ("size", "machine", "crop"),
    [
        ((360, 480), CPU, [192, 256]),
        ((1024, 2048), GPU, [352, 736]),
        ((1, 1), CPU, [32, 32]),
        ((65, 97), CPU, [64, 96]),
        ((2000, 100), CPU, [320, 96]),
    ],
)
def test_crops_have_the_proportions_of_the_images(size: tuple[int, int], machine: Machine, crop: list[int]) -> None:
    assert recipe.choose_crop(size, machine).value == crop


def test_batches_are_even_and_no_larger_than_the_training_set() -> None:
    assert [recipe.choose_batch(count, CPU).value for count in (3, 5, 100)] == [2, 4, 8]
    assert recipe.choose_batch(100, GPU).value == 16


def test_the_network_is_the_largest_that_takes_enough_steps() -> None:
    assert recipe.choose_network([None, 8000, 5000, 2000]) == 2
    assert recipe.choose_network([2000, 1500, None, None]) == 1
    assert recipe.choose_network([900, 400, None, None]) == 0
    with pytest.raises(UserError, match="no network fits"):
        recipe.choose_network([None, None])
    few, many = (recipe.networks(replace(PLAIN, images=count), CPU, 2, [192, 256]) for count in (60, 600))
    assert (len(few), len(many)) == (2, 4)
    six = recipe.networks(replace(PLAIN, channels=6), GPU, 4, [352, 736])
    assert [each["args"]["in_channels"] for each in six] == [6, 6]
    assert recipe.choose_output_stride([96, 256]).value == 8
    assert recipe.choose_output_stride([192, 256]).value == 16


def test_precision_is_what_was_quicker() -> None:
    assert recipe.choose_precision({"fp32": 1.0, "bf16": 0.6}).value == "bf16"
    assert recipe.choose_precision({"fp32": 1.0, "bf16": 0.95}).value == "fp32"
    assert recipe.choose_precision({"bf16": 1.0}).value == "bf16"
    assert recipe.choose_precision({}).value == "fp32"
    assert "fits" not in recipe.choose_precision({}).reason


def test_rare_classes_get_weights_and_crops() -> None:
    rare = replace(PLAIN, classes=(GROUND, WIRE))
    assert recipe.choose_loss(PLAIN).value == "CrossEntropyLoss2d"
    assert recipe.choose_loss(rare).value["args"] == {"class_weights": "sqrt_inv"}
    assert recipe.choose_rare_crop(rare, (360, 480), [192, 256]).value is True
    assert recipe.choose_rare_crop(rare, (200, 260), [192, 256]).value is None
    assert recipe.choose_rare_crop(PLAIN, (360, 480), [192, 256]).value is None


def test_images_from_above_are_turned_by_quarters() -> None:
    aerial = replace(PLAIN, upright=1.2)
    assert recipe.choose_rotation(aerial).value == "quarters"
    assert recipe.choose_rotation(PLAIN).value is None
    assert recipe.choose_rotation(replace(PLAIN, upright=0)).value is None, "too few images to say"
    assert recipe.choose_rotation(PLAIN, overhead=True).value == "quarters"
    assert recipe.choose_rotation(aerial, overhead=False).value is None
    assert recipe.choose_scales(aerial, overhead=True).value == {"range": [0.8, 1.25]}
    assert recipe.choose_scales(PLAIN, overhead=False).value == {"range": [0.75, 1.5]}
    varied = replace(PLAIN, classes=(GROUND, WIRE, replace(CAR, diameters=(10, 40, 90))))
    assert recipe.choose_scales(varied, overhead=False).value == {"range": [0.6, 1.6]}


def test_a_fixed_view_that_differs_both_ways_is_not_from_above() -> None:
    rng = np.random.default_rng(0)
    differences = rng.normal(0, 0.01, (20, 2, 3)) + np.array([[[2.0, 0, 0]], [[1.5, 0, 0]]]).reshape(1, 2, 3)
    assert uprightness(differences) > recipe.UPRIGHT
    assert uprightness(rng.normal(0, 0.01, (20, 2, 3))) < recipe.UPRIGHT


def test_colors_are_changed_of_photos_only() -> None:
    assert recipe.choose_colors(PLAIN).value is True
    assert recipe.choose_colors(replace(PLAIN, gray=True)).value == {"saturation": 0}
    assert recipe.choose_colors(replace(PLAIN, channels=6)).value is None
    assert recipe.choose_colors(replace(PLAIN, dtype="uint16")).value is None


def test_the_length_follows_from_time_and_speed() -> None:
    length = recipe.choose_length(15, replace(QUICK, step=0.25), images=367, batch=8, validated=100)
    assert length.steps == length.trainer["epochs"] * 45
    assert 12 < length.minutes <= 15
    assert length.trainer["epochs"] // length.trainer["val_per_epochs"] >= 10
    short = recipe.choose_length(0.2, replace(QUICK, step=0.25), images=367, batch=8, validated=100)
    assert short.trainer == {"max_steps": 39, "val_per_steps": 4}
    slow = recipe.choose_length(0.2, replace(QUICK, step=0.25, validation=0.1), images=367, batch=8, validated=100)
    assert slow.trainer == {"max_steps": 21, "val_per_steps": 21}, "once, where it takes more than a tenth of the time"
    few = recipe.choose_length(60, QUICK, images=6, batch=6, validated=2)
    assert few.trainer["epochs"] == recipe.MOST_EPOCHS
    assert few.minutes < 1


def test_what_is_held_out_keeps_series_together() -> None:
    assert recipe.choose_validation(PLAIN).value == 0.2
    assert recipe.choose_validation(replace(PLAIN, validation=50)).value is None
    assert recipe.choose_validation(replace(PLAIN, images=9000)).value == 500
    drives = replace(PLAIN, near=200, start="^[^_]+", groups=8, largest_group=60)
    assert recipe.choose_validation(drives).value == {"share": 0.2, "by": "^[^_]+"}
    assert recipe.choose_validation(replace(drives, near=2)).value == 0.2
    assert "--folds" in recipe.choose_validation(replace(PLAIN, images=100)).reason
    with pytest.raises(UserError, match="Label at least 4"):
        recipe.choose_validation(replace(PLAIN, images=3))


def test_reading_and_prediction_follow_from_machine_and_size() -> None:
    assert recipe.choose_workers(CPU).value == 0
    assert recipe.choose_workers(GPU).value == 8
    assert recipe.choose_cache(PLAIN, CPU).value == "ram"
    assert recipe.choose_cache(replace(PLAIN, pixels=10**11), CPU).value is None
    assert recipe.choose_prediction(PLAIN, overhead=False).value == "--flip"
    assert recipe.choose_prediction(replace(PLAIN, median=(3000, 4000)), overhead=False).value == "--mode sliding"
    assert recipe.choose_cache(replace(PLAIN, pixels=10**9), GPU).value is None, "the GPU's memory is another"
    assert [recipe.choose_ema(steps).value for steps in (500, 5000)] == [0.99, 0.995]


def test_quarters_turn_image_and_label_alike_and_keep_the_size_of_the_crop() -> None:
    options = ChainOptions(augment=True, crop_size=(32, 64), rotate="quarters", scale=False)
    chain = build_chain(options, (0, 0, 0), where="args")
    assert chain is not None
    label = np.arange(80 * 100).reshape(80, 100) % 251
    image = np.repeat(label[..., None], 3, 2).astype(np.uint8)
    steps = set()
    for seed in range(20):
        turned, labels = chain(image, label.astype(np.uint8), np.random.default_rng(seed))
        assert turned.shape == (32, 64, 3)
        np.testing.assert_array_equal(turned[..., 0], labels)
        steps.add((int(labels[0, 1]) - int(labels[0, 0])) % 251)
    assert steps == {1, 250, 100, 151}, "to the right there is what was right, left, below and above"


# -------------------------------------------------------------------------------------------------------- the command


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def odd_pair(number: int, size: tuple[int, int] = (48, 64)) -> tuple[np.ndarray, np.ndarray]:
    """An image and its mask of two classes."""
    rng = np.random.default_rng(number)
    label = np.zeros(size, np.uint8)
    row, column = rng.integers(0, max(1, size[0] // 2)), rng.integers(0, max(1, size[1] // 2))
    label[row : row + max(1, size[0] // 3), column : column + max(1, size[1] // 3)] = 1
    image = rng.integers(0, 60, (*size, 3)) + 120 * label[..., None]
    return image.astype(np.uint8), label


def test_plan_writes_reasons_beside_its_choices_and_says_how_long_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_command: Callable[..., Answer]
) -> None:
    for number in range(6):
        image, label = odd_pair(number)
        save(tmp_path / "images" / f"{number}.png", image)
        save(tmp_path / "masks" / f"{number}.png", label)
    monkeypatch.setattr(timing, "measure", lambda raw, machine: replace(QUICK, step=1.0))
    path = tmp_path / "c.json"
    folders = ("--images", tmp_path / "images", "--masks", tmp_path / "masks")
    answer = prepare_command("plan", *folders, "--minutes", "2", "--overhead", "-o", path)
    assert answer.status == 0, answer.err
    assert "training takes about 2 minutes on this machine" in answer.out
    text = path.read_text()
    plan = json.loads((tmp_path / "c.plan.json").read_text())
    assert {"val_split", "crop_size", "loss", "trainer.precision"} <= {each["what"] for each in plan["choices"]}
    for each in plan["choices"]:
        assert each["reason"] in text
    assert plan["fingerprint"]["images"] == 6
    assert load_config(path)["train_loader"]["args"]["rotate"] == "quarters"
    for minutes in ("0", "-3", "nan"):
        answer = prepare_command("plan", *folders, "--minutes", minutes, "-o", path, "--force")
        assert (answer.status, "no time to train in" in answer.err) == (2, True)


def test_what_does_not_fit_into_memory_gets_a_smaller_batch_or_is_refused(tmp_path: Path) -> None:
    for number in range(12):
        image, label = odd_pair(number)
        save(tmp_path / "images" / f"{number}.png", image)
        save(tmp_path / "masks" / f"{number}.png", label)

    def fits(most: int) -> Callable[[Mapping[str, Any]], Measured | None]:
        return lambda raw: QUICK if raw["train_loader"]["args"]["batch_size"] <= most else None

    folders = tmp_path / "images", tmp_path / "masks"
    proposal = propose(*folders, Wish(), CPU, fits(4))
    assert parse_json(proposal.text)["train_loader"]["args"]["batch_size"] == 4
    (said,) = [choice for choice in proposal.plan["choices"] if choice["what"] == "batch_size"]
    assert (said["value"], said["reason"]) == (4, "4 at once, as more do not fit into memory")
    assert said["reason"] in proposal.text
    assert "8 at once" not in proposal.text
    with pytest.raises(UserError, match="no network fits"):
        propose(*folders, Wish(), CPU, fits(0))


def test_precision_is_that_of_the_first_network_that_fits(tmp_path: Path) -> None:
    for number in range(12):
        image, label = odd_pair(number)
        save(tmp_path / "images" / f"{number}.png", image)
        save(tmp_path / "masks" / f"{number}.png", label)

    def narrow(raw: Mapping[str, Any]) -> Measured | None:
        fits = raw["arch"]["args"]["backbone"]["args"]["width_mult"] == 0.25
        half = raw["trainer"]["precision"] == "bf16"
        return replace(QUICK, work=0.5 * QUICK.work if half else QUICK.work) if fits else None

    plan = propose(tmp_path / "images", tmp_path / "masks", Wish(), CPU, narrow).plan
    (said,) = [choice for choice in plan["choices"] if choice["what"] == "trainer.precision"]
    assert (said["value"], said["reason"]) == ("bf16", "a step in bf16 takes 50% of the time of one in fp32")


def test_a_plan_counts_on_the_memory_that_a_container_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": f"MemTotal: {2**26} kB\nMemAvailable: {2**25} kB\n",
        "/sys/fs/cgroup/memory.max": f"{3 * 2**30}\n",
        "/sys/fs/cgroup/memory.current": f"{2 * 2**30}\n",
        "/sys/fs/cgroup/memory.stat": f"anon {2**30}\nfile {2**30}\n",
    }

    def read(path: Path, *_: Any, **__: Any) -> str:
        if path.as_posix() not in files:
            raise FileNotFoundError(path)
        return files[path.as_posix()]

    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr(Path, "read_text", read)
    assert timing.this_machine(pretrained=False).memory == 2 * 2**30
    files["/sys/fs/cgroup/memory.max"] = "max\n"
    assert timing.this_machine(pretrained=False).memory == 2**35
    files.clear()
    assert timing.this_machine(pretrained=False).memory == 8 * 2**30, "where the system is silent"


def test_a_config_that_was_measured_is_as_it_was(tmp_path: Path) -> None:
    for number in range(6):
        image, label = odd_pair(number)
        save(tmp_path / "images" / f"{number}.png", image)
        save(tmp_path / "masks" / f"{number}.png", label)
    raw = parse_json(propose(tmp_path / "images", tmp_path / "masks", Wish(), CPU, cheap).text)
    before = json.dumps(raw)
    measured = timing.measure(raw, replace(CPU, memory=2**36))
    assert measured is not None
    assert min(measured.step, measured.validation, measured.work) > 0
    assert json.dumps(raw) == before
    assert timing.measure(raw, replace(CPU, memory=2**20)) is None


def test_workers_read_while_a_step_is_computed() -> None:
    step, batch = timing.Seconds(wall=1.0, work=4.0), timing.Seconds(wall=3.0, work=3.0)
    assert step.with_batch(batch, workers=0) == (4.0, 7.0)
    assert step.with_batch(batch, workers=2) == (1.5, 7.0)
    assert step.with_batch(batch, workers=8) == (1.0, 7.0)
    assert batch.without(timing.Seconds(wall=2.0, work=4.0)) == (1.0, 0.0)


def labelme(label: np.ndarray) -> dict[str, Any]:
    """The file of LabelMe that draws class 1 of a mask as a box."""
    rows, columns = np.nonzero(label)
    points = [[float(columns.min()), float(rows.min())], [float(columns.max() + 1), float(rows.max() + 1)]]
    shape = {"label": "box", "shape_type": "rectangle", "points": points}
    return {"imageHeight": label.shape[0], "imageWidth": label.shape[1], "shapes": [shape]}


def coco(labels: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The file of COCO for masks, by the names of their images."""
    images, annotations = [], []
    for number, (name, label) in enumerate(labels.items()):
        images.append({"id": number, "file_name": name, "height": label.shape[0], "width": label.shape[1]})
        (left, top), (right, bottom) = labelme(label)["shapes"][0]["points"]
        corners = [left, top, right, top, right, bottom, left, bottom]
        annotations.append({"id": number, "image_id": number, "category_id": 7, "segmentation": [corners]})
    categories = [{"id": 7, "name": "box"}, {"id": 9, "name": "never drawn"}]
    return {"images": images, "categories": categories, "annotations": annotations}


def yolo(label: np.ndarray) -> str:
    (left, top), (right, bottom) = labelme(label)["shapes"][0]["points"]
    height, width = label.shape
    corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    return " ".join(["0", *(f"{x / width} {y / height}" for x, y in corners)])


def exported(root: Path, form: str) -> tuple[Path, Path]:
    """Images with annotations in a form; returns what --images and --masks name."""
    splits = ("train", "val") if "split" in form else ("",)
    for split in splits:
        pairs = {f"{number}.png": odd_pair(number + 50 * (split == "val")) for number in range(6)}
        for name, (image, label) in pairs.items():
            save(root / "images" / split / name, image)
            folder = root / ("images" if form == "labelme beside" else "labels") / split
            folder.mkdir(parents=True, exist_ok=True)
            if form.startswith("labelme"):
                (folder / name).with_suffix(".json").write_text(json.dumps(labelme(label)))
            if form.startswith("yolo"):
                (folder / name).with_suffix(".txt").write_text(yolo(label))
        if form.startswith("coco"):
            content = coco({name: label for name, (_, label) in pairs.items()})
            (root / "labels" / f"{split or 'all'}.json").write_text(json.dumps(content))
        if form in SHARED:
            file = AnnotationFile(form, root / "labels" / SHARED[form], ["background", "box"])
            for name, (_, label) in pairs.items():
                file.add(name, label)
            file.write()
            return root / "images", file.path
    if form == "coco file":
        return root / "images", root / "labels" / "all.json"
    return root / "images", root / ("images" if form == "labelme beside" else "labels")


FORMS = ("coco file", "coco folder", "coco split", "labelme", "labelme beside", "labelme split", "yolo", "yolo split")
FORMS += ("cvat", "labelstudio")  # as inference.py --save writes them


@pytest.mark.parametrize("form", FORMS)
def test_files_of_annotation_tools_are_planned_without_conversion(form: str, tmp_path: Path) -> None:
    text = propose(*exported(tmp_path / "data", form), Wish(), CPU, cheap).text
    raw = parse_json(text)
    raw.pop("$schema")
    config = check_config(raw)
    assert config.train.type == "Annotations"
    assert config.classes.names == ("background", "class_0" if "yolo" in form else "box")
    assert (config.val_loader is None) == ("split" not in form)
    training, _ = build_loaders(config, cached=False)
    _, label = odd_pair(0)
    assert (training.view.dataset.read_label(0) != label).mean() < 0.02, "corners lie between pixels"


def test_names_choose_among_the_labels_of_a_tool(tmp_path: Path) -> None:
    folders = exported(tmp_path / "data", "yolo")
    assert '"classes": ["background", "crate"]' in propose(*folders, Wish(names=["crate"]), CPU, cheap).text
    (tmp_path / "data" / "classes.txt").write_text("tin\n")
    assert '"classes": ["background", "tin"]' in propose(*folders, Wish(), CPU, cheap).text
    with pytest.raises(UserError, match=r"no object is called 'crate'\. Choose from box"):
        propose(*exported(tmp_path / "other", "coco file"), Wish(names=["crate"]), CPU, cheap)


@pytest.mark.parametrize("named", [False, True])
def test_a_background_among_yolo_s_names_keeps_its_number(named: bool, tmp_path: Path) -> None:
    images, labels = exported(tmp_path, "yolo")
    names = ["background", "tin", "crate"]
    for path in labels.glob("*.txt"):
        path.write_text("2" + path.read_text()[1:])
    if not named:
        (labels / "classes.txt").write_text("\n".join(names))
    raw = parse_json(propose(images, labels, Wish(names=names if named else None), CPU, cheap).text)
    raw.pop("$schema")
    training, _ = build_loaders(check_config(raw), cached=False)
    values, counts = np.unique(training.view.dataset.read_label(0), return_counts=True)
    assert values.tolist() == [0, 2], "2 is the number of crate"
    assert counts[1] == pytest.approx(odd_pair(0)[1].sum(), rel=0.2)


@pytest.mark.parametrize("form", ["coco", "yolo"])
@pytest.mark.parametrize("other", ["val", "valid"])
def test_exports_that_are_divided_keep_their_validation(form: str, other: str, tmp_path: Path) -> None:
    for split in ("train", other):
        pairs = {f"{number}.png": odd_pair(number + 50 * (split == other)) for number in range(6)}
        folder = tmp_path / split
        for name, (image, label) in pairs.items():
            save(folder / ("images" if form == "yolo" else "") / name, image)
            (folder / "labels").mkdir(exist_ok=True)
            if form == "yolo":
                (folder / "labels" / name).with_suffix(".txt").write_text(yolo(label))
        if form == "coco":
            content = coco({name: label for name, (_, label) in pairs.items()})
            (folder / "_annotations.coco.json").write_text(json.dumps(content))
    train = tmp_path / "train"
    folders = {"yolo": (train / "images", train / "labels"), "coco": (train, train / "_annotations.coco.json")}[form]
    raw = parse_json(propose(*folders, Wish(), CPU, cheap).text)
    raw.pop("$schema")
    training, validation = build_loaders(check_config(raw), cached=False)
    assert validation is not None
    assert raw["val_loader"]["args"]["split"] == other
    assert (len(training.view.dataset.samples), len(validation.view.dataset.samples)) == (6, 6)


# -------------------------------------------------------------------------------------------------------- odd folders


Pair = tuple[np.ndarray, np.ndarray]


def odd_folder(
    root: Path,
    *,
    count: int = 8,
    size: Callable[[int], tuple[int, int]] = lambda number: (48, 64),
    image: Callable[[np.ndarray, int], np.ndarray] = lambda array, number: array,
    mask: Callable[[np.ndarray, int], np.ndarray] = lambda array, number: array,
    name: Callable[[int], str] = lambda number: f"{number:02d}",
    endings: tuple[str, str] = (".png", ".png"),
) -> Path:
    """Images and masks in two folders, changed as the functions of image, mask and number say."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(count):
        array, label = odd_pair(number, size(number))
        save(root / "images" / (name(number) + endings[0]), image(array, number))
        save(root / "masks" / (name(number) + endings[1]), mask(label, number))
    return root


def bands(channels: int, dtype: str = "uint8") -> Callable[[np.ndarray, int], np.ndarray]:
    return lambda array, number: np.resize(array, (*array.shape[:2], channels)).astype(dtype)


def spoilt(content: bytes, folder: str = "images", number: int = 3, count: int = 8) -> Callable[[Path], Path]:
    """A folder in which one file holds `content`."""

    def make(root: Path) -> Path:
        odd_folder(root, count=count)
        (root / folder / f"{number:02d}.png").write_bytes(content)
        return root

    return make


def with_more(path: str, content: bytes = b"") -> Callable[[Path], Path]:
    """A folder with one more file."""

    def make(root: Path) -> Path:
        odd_folder(root)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        return root

    return make


def without(path: str) -> Callable[[Path], Path]:
    """A folder with one file less."""

    def make(root: Path) -> Path:
        odd_folder(root)
        (root / path).unlink()
        return root

    return make


def of(**changes: Any) -> Callable[[Path], Path]:
    return lambda root: odd_folder(root, **changes)


def in_palette(array: np.ndarray, number: int) -> np.ndarray:
    return np.array([[0, 0, 0], [200, 30, 30]], np.uint8)[array]


SIZES = [(1, 1), (1, 40), (40, 1), (2, 3), (7, 5), (31, 33), (33, 31), (300, 20), (20, 300), (500, 700)]
ODD: dict[str, Callable[[Path], Path]] = {
    **{f"{height}x{width}": of(size=lambda n, s=(height, width): s) for height, width in SIZES},
    **{f"{count} images": of(count=count) for count in (0, 1, 2, 3, 4, 5, 9, 13)},
    "1x1, two classes": of(size=lambda n: (1, 1), mask=lambda label, n: label * (n % 2)),
    "mixed sizes": of(size=lambda n: (20 + 17 * n, 90 - 9 * n)),
    "sizes from 1x1 on": of(size=lambda n: (1 + 40 * n, 1 + 30 * n)),
    "one class": of(mask=lambda label, n: label * 0),
    "one class of 7": of(mask=lambda label, n: label * 0 + 7),
    "all void": of(mask=lambda label, n: label * 0 + 255),
    "most masks empty": of(mask=lambda label, n: label * (n == 2)),
    "a class and void": of(mask=lambda label, n: np.where(label == 1, 1, 255).astype(np.uint8)),
    "half void": of(mask=lambda label, n: np.where(np.arange(label.size).reshape(label.shape) % 2, label, 255)),
    "0 and 255": of(mask=lambda label, n: label * 255),
    "values with gaps": of(mask=lambda label, n: (label * 200 + 5 * (n % 2)).astype(np.uint8)),
    "a class each": of(mask=lambda label, n: (label * (n + 1)).astype(np.uint8)),
    "70 classes": of(count=40, mask=lambda label, n: (label * (n + 1) + 100 * (1 - label) * (n % 2)).astype(np.uint8)),
    "a pixel of a class": of(mask=lambda label, n: label * 0 + (np.arange(label.size).reshape(label.shape) == 100)),
    "masks in color": of(mask=in_palette),
    "masks in color, RGBA": of(mask=lambda label, n: np.dstack([in_palette(label, n), 255 - 0 * label])),
    "masks as gray RGB": of(mask=lambda label, n: np.dstack([label] * 3)),
    "masks of 1 bit": of(mask=lambda label, n: label.astype(bool)),
    "masks of 16 bit": of(mask=lambda label, n: label.astype(np.uint16)),
    "masks of 16 bit, large": of(mask=lambda label, n: label.astype(np.uint16) * 1000),
    "masks of fractions": of(mask=lambda label, n: label.astype(np.float32) / 2, endings=(".png", ".tif")),
    "masks as JPEG": of(mask=lambda label, n: label * 200, endings=(".png", ".jpg")),
    "masks are photos": of(mask=lambda label, n: odd_pair(n + 50)[0]),
    "masks of another size": of(mask=lambda label, n: label[:40, :50]),
    "a mask of another size": of(mask=lambda label, n: label[:40] if n == 3 else label),
    "gray": of(image=lambda array, n: array[..., 0]),
    "mixed gray and RGB": of(image=lambda array, n: array[..., 0] if n % 2 else array),
    "gray with alpha": of(image=lambda array, n: array[..., :2]),
    "RGBA": of(image=bands(4)),
    "16 bit": of(image=lambda array, n: array[..., 0].astype(np.uint16) * 257),
    "mixed 8 and 16 bit": of(image=lambda array, n: array[..., 0].astype(np.uint16) * 257 if n % 2 else array),
    "black": of(image=lambda array, n: array * 0),
    "all the same image": of(image=lambda array, n: odd_pair(0)[0], mask=lambda label, n: odd_pair(0)[1]),
    "6 channels": of(image=bands(6), endings=(".npy", ".png")),
    "6 channels of 16 bit": of(image=bands(6, "uint16"), endings=(".npy", ".png")),
    "1 channel of float": of(image=bands(1, "float32"), endings=(".npy", ".png")),
    "2 axes": of(image=lambda array, n: array[..., 0], endings=(".npy", ".png")),
    "3 channels as array": of(image=bands(3), endings=(".npy", ".png")),
    "mixed channels": of(image=lambda array, n: bands(6 if n % 2 else 4)(array, n), endings=(".npy", ".png")),
    "no numbers": of(image=lambda array, n: array / np.where(n == 3, np.nan, 1), endings=(".npy", ".png")),
    "complex numbers": of(image=bands(4, "complex64"), endings=(".npy", ".png")),
    "100 channels": of(image=bands(100), endings=(".npy", ".png")),
    "names with spaces": of(name=lambda n: f"a b  {n}"),
    "names of other letters": of(name=lambda n: f"été 街 {n}"),
    "names with signs": of(name=lambda n: f"-a#'\"$(x){{split}}%s;[{n}]"),
    "names with dots": of(name=lambda n: f"v1.2.{n}"),
    "long names": of(name=lambda n: "x" * 200 + str(n)),
    "names of series": of(count=24, name=lambda n: f"{n // 6}_{n % 6}"),
    "capital endings": of(endings=(".JPG", ".PNG")),
    "an empty image": spoilt(b""),
    "an empty mask": spoilt(b"", "masks"),
    "a web page": spoilt(b"<!DOCTYPE html><html></html>"),
    "half a file": spoilt(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0"),
    "one of four broken": spoilt(b"", count=4),
    "an image alone": with_more("images/alone.png"),
    "a mask alone": with_more("masks/alone.png"),
    "a missing mask": without("masks/03.png"),
    "other files": with_more("images/Thumbs.db", b"x"),
    "notes among masks": with_more("masks/notes.txt", b"3 apples and 4 pears"),
    "hidden files": with_more("images/.hidden.png", b"x"),
    "two endings": with_more("images/03.jpg", b"x"),
    "only notes": lambda root: (odd_folder(root, count=0), (root / "masks" / "a.txt").write_text("1 b"))[0],
    "a broken export": lambda root: (odd_folder(root, count=4), (root / "masks.json").write_text("{"))[0],
}


def planned(root: Path, names: Sequence[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """The arguments of the loader that is planned for a folder, and what was guessed."""
    proposal = propose(root / "images", root / "masks", Wish(names=names), CPU, cheap)
    raw = parse_json(proposal.text)
    raw.pop("$schema")
    check_config(raw)
    return raw["train_loader"]["args"], proposal.guesses


def test_what_is_held_out_leaves_each_class_to_train_on(tmp_path: Path) -> None:
    root = odd_folder(tmp_path, count=20, size=lambda number: (20 + number, 30))
    assert planned(root)[0]["val_split"] == 0.2
    dataset = Folder(data_dir=root, split="all", classes=("a", "b", "c"))
    _, held_out = hold_out(dataset, HoldOut(share=0.2), 0)
    for index in held_out[:2]:
        path = dataset.samples[index].label
        label = np.array(Image.open(path))
        label[:4] = 2
        save(path, label)
    proposal = propose(root / "images", root / "masks", Wish(), CPU, cheap)
    split = parse_json(proposal.text)["train_loader"]["args"]["val_split"]
    kept, _ = hold_out(dataset, HoldOut(**split), 0)
    assert any((dataset.read_label(index) == 2).any() for index in kept)
    assert "as seed 0 leaves no image of 'class_2' to train on" in proposal.text
    assert proposal.plan["fingerprint"]["pixels"] == sum((20 + number) * 30 for number in range(20))


def test_a_mask_for_each_class_is_refused(tmp_path: Path) -> None:
    root = odd_folder(tmp_path, count=12, name=str)
    for path in sorted((root / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_road.png"))
    assert planned(root)[0]["mask_suffix"] == "_road", "10 is no 1 that ends in 0"
    for path in sorted((root / "masks").iterdir()):
        save(path.with_name(path.name.replace("road", "car")), np.array(Image.open(path)))
    with pytest.raises(UserError, match="several masks, which end in '_car', '_road'"):
        planned(root)


@pytest.mark.parametrize("ending", [".png", ".tif"])
def test_gray_values_of_more_than_8_bits_are_kept(ending: str, tmp_path: Path) -> None:
    def counts(array: np.ndarray, number: int) -> np.ndarray:
        return 400 + array[..., 0].astype(np.uint16)

    if ending == ".tif":
        pytest.importorskip("tifffile")
    arguments, _ = planned(odd_folder(tmp_path, image=counts, endings=(ending, ".png")))
    assert arguments["channels"] == 1
    data = Folder(data_dir=tmp_path, split="all", classes=("a", "b"), channels=1)
    assert len(np.unique(data.read(0).image)) > 100
    assert "channels" not in planned(odd_folder(tmp_path / "photos", image=lambda array, number: array[..., 0]))[0]


@pytest.mark.parametrize(
    ("bands", "options", "channels"),
    [
        (2, {"photometric": "minisblack"}, 2),
        (4, {"photometric": "minisblack"}, 4),
        (4, {"photometric": "rgb", "extrasamples": ["unspecified"]}, 4),
        (4, {"photometric": "rgb", "extrasamples": ["unassalpha"]}, 3),
        (4, {"photometric": "separated"}, 3),
        (3, {"photometric": "rgb"}, 3),
    ],
)
def test_tiff_files_of_few_bands_are_photos_only_with_colors(
    bands: int, options: dict[str, Any], channels: int, tmp_path: Path
) -> None:
    tifffile = pytest.importorskip("tifffile", reason="an optional package")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((20, 30, bands), np.uint8), planarconfig="contig", **options)
    assert channels_in(tmp_path / "a.tif") == channels


def test_a_slip_of_the_pencil_decides_nothing_and_is_named(tmp_path: Path) -> None:
    def slip(label: np.ndarray, number: int) -> np.ndarray:
        label = cv2.resize(label, (160, 128), interpolation=cv2.INTER_NEAREST)
        label[0, :2] = 7 if number == 3 else 0
        return label

    odd_folder(tmp_path, size=lambda number: (128, 160), mask=slip)
    proposal = propose(tmp_path / "images", tmp_path / "masks", Wish(), CPU, cheap)
    assert "value 7: 2 pixels in 1 image; if these are slips, call it void by --names" in proposal.guesses
    assert parse_json(proposal.text)["loss"] == "CrossEntropyLoss2d"
    assert not any("'class_7'" in choice["reason"] for choice in proposal.plan["choices"])
    rare = replace(PLAIN, classes=(GROUND, replace(WIRE, share=5e-6), CAR))
    assert recipe.rarest_class(rare) == CAR
    assert recipe.rarest_class(replace(rare, classes=rare.classes[:2])).name == "wire", "there is no other"


def test_255_is_a_class_where_names_or_even_steps_say_so(tmp_path: Path) -> None:
    def visible(label: np.ndarray, number: int) -> np.ndarray:
        label = label * 128
        label[-5:] = 255
        return label

    root = odd_folder(tmp_path / "even", mask=visible)
    arguments, guesses = planned(root)
    assert [each["value"] for each in arguments["classes"]] == [0, 128, 255]
    assert "255 is a class, as values are evenly spaced" in guesses
    assert len(planned(root, ["a", "b", "c"])[0]["classes"]) == 3
    for names in (["a", "b"], ["a", "b", "void"]):
        arguments, guesses = planned(root, names)
        assert [each["value"] for each in arguments["classes"]] == [0, 128]
        assert "255 is void, 10.42% of the pixels" in guesses
    assert not are_even([1, 255])
    assert not are_even([0, 1, 2, 255])


def test_the_first_mask_may_be_stored_as_gray_where_others_are_in_color(tmp_path: Path) -> None:
    root = odd_folder(tmp_path, mask=lambda label, n: in_palette(label, n) if n else label * 0)
    arguments, _ = planned(root)
    assert [each["color"] for each in arguments["classes"]] == [[0, 0, 0], [200, 30, 30]]


def plan_of(root: Path, command: Callable[..., Answer], config: Path) -> Answer:
    masks = root / "masks.json" if (root / "masks.json").exists() else root / "masks"
    return command("plan", "--images", root / "images", "--masks", masks, "-o", config, "--minutes", "0.2")


def refuses_in_one_line(answer: Answer) -> None:
    assert answer.status == 2, answer.out + answer.err
    assert "Traceback" not in answer.err
    for line in answer.errors:
        assert ": " in line, "it says where"
        assert re.search(r"[.)] [^ ].*[.?]$", line), f"it says what would help: {line}"
    assert answer.errors


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_folder_gets_a_config_or_a_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepare_command: Callable[..., Answer]
) -> None:
    monkeypatch.setattr(timing, "measure", lambda raw, machine: QUICK)
    root = ODD[kind](tmp_path / "odd data")
    answer = plan_of(root, prepare_command, tmp_path / "c.json")
    if answer.status != 0:
        refuses_in_one_line(answer)
        assert not (tmp_path / "c.json").exists()
        return
    config = check_config(load_config(tmp_path / "c.json"))
    training, validation = build_loaders(config, cached=False)
    assert validation is not None
    for loader in (training, validation):
        assert len(loader) > 0
        assert next(iter(loader.batches(0))).images.shape[1] == config.arch.options.in_channels


def test_there_are_sixty_odd_folders() -> None:
    assert len(ODD) >= 60


@pytest.mark.slow
@pytest.mark.parametrize("kind", ODD)
def test_a_config_for_an_odd_folder_trains(
    kind: str, tmp_path: Path, prepare_command: Callable[..., Answer], train_command: Callable[..., Answer]
) -> None:
    path = tmp_path / "c.json"
    answer = plan_of(ODD[kind](tmp_path / "odd data"), prepare_command, path)
    if answer.status != 0:
        refuses_in_one_line(answer)
        return
    shorter = ["trainer.max_steps=2", "trainer.tensorboard=false", f"trainer.save_dir={tmp_path / 'saved'}"]
    trained = train_command("-c", path, "-d", "cpu", *[word for text in shorter for word in ("-s", text)])
    if trained.status != 0:  # what is held out may be all that shows a class
        refuses_in_one_line(trained)
