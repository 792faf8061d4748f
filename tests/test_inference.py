"""Prediction of image files, and that it is what evaluation measures."""

import json
import os
import re
import resource
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from base.base_dataset import BaseDataset, Sample
from engine import prediction
from engine.films import FilmWriter
from engine.prediction_files import Job
from inference import load
from tests.tiny import Squares, tiny_config
from utils import checkpoint
from utils.classes import IGNORE, ClassTable
from utils.errors import DataError, Stopped
from utils.find_images import find_images, output_names
from utils.images import read_image, read_label
from utils.predict import Prediction, Predictor
from utils.registry import DATASETS
from utils.run_folder import write_json
from utils.visualize import png_palette, void_color

TINY = ("--import", "tests.tiny")
SIZES = [(40, 48), (33, 65), (97, 31), (1, 1), (9, 70)]


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class PngSquares(BaseDataset):
    """Squares in files, of several sizes.

    Args:
        data_dir: Folder of images and labels.
        split: Part of it.
        label_map: As everywhere.
    """

    splits: ClassVar[tuple[str, ...]] = ("train", "val")

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        return Squares.base_classes()

    def find_samples(self, root: Path, split: str) -> list[Sample]:
        return [Sample(p.stem, p, root / split / "labels" / p.name) for p in (root / split / "images").glob("*.png")]


def draw(folder: Path, split: str, sizes: list[tuple[int, int]]) -> None:
    rng = np.random.default_rng(len(split))
    for kind in ("images", "labels"):
        (folder / split / kind).mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        label = rng.integers(0, 3, (height, width), dtype=np.uint8)
        label[rng.random(label.shape) < 0.1] = IGNORE
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / split / "images" / f"n{number}.png")
        Image.fromarray(label).save(folder / split / "labels" / f"n{number}.png")


@pytest.fixture(scope="module")
def file_run(tmp_path_factory):
    """A model trained on files, and the folder of those files."""
    from tests.conftest import call

    folder = tmp_path_factory.mktemp("files")
    draw(folder / "data", "train", [(40, 48)] * 4)
    draw(folder / "data", "val", SIZES)
    args = {"data_dir": str(folder / "data"), "batch_size": 2, "num_workers": 0}
    config = tiny_config(
        folder / "saved",
        train_loader={"type": "PngSquares", "args": {**args, "split": "train", "augment": True, "crop_size": 32}},
        val_loader={"type": "PngSquares", "args": {**args, "split": "val"}},
    )
    config["trainer"]["epochs"] = 1
    write_json(folder / "c.json", config)
    import train

    answer = call(train, "-c", folder / "c.json")
    assert answer.status == 0, answer.err
    (run_dir,) = (folder / "saved" / "tiny").glob("2*")
    return run_dir, folder / "data"


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures with all that names and formats can do."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)

    def save(name, height=20, width=30, **options):
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / name, **options)

    save("a.b.jpg")
    save("a.c.jpg")
    save("x.JPG", format="JPEG")
    save("x.png")
    save("tiny.bmp", 1, 1)
    save("wide.webp", 9, 700)
    save("mit Leerzeichen é.tiff")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.jpg").write_text("no image")
    return folder


def predict(command, run_dir, images, output, *more):
    return command("-m", run_dir / "last.pth", "-i", images, "-o", output, "--mode", "single", *TINY, *more)


# ---------------------------------------------------------------------------------------- the same as evaluation


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--mode", "single"],
        ["--mode", "single", "--flip"],
        ["--mode", "sliding", "--window", "32", "32", "--batch-size", "3"],
        ["--mode", "sliding", "--overlap", "0.5", "--flip"],
        ["--mode", "multiscale", "--scales", "0.75", "1", "1.5"],
        ["--mode", "multiscale", "--fast"],
    ],
    ids=lambda flags: " ".join(flags) or "by default",
)
def test_inference_is_evaluation_pixel_for_pixel(file_run, evaluate_command, inference_command, tmp_path, flags):
    run_dir, data = file_run
    answer = evaluate_command("-m", run_dir / "last.pth", "--output", tmp_path / "new" / "r.json", *flags)
    assert answer.status == 0, answer.err
    results = json.loads((tmp_path / "new" / "r.json").read_text())
    answer = inference_command(
        *("-m", run_dir / "last.pth", "-i", data / "val" / "images", "-o", tmp_path / "out", "--save", "index", *flags)
    )
    assert answer.status == 0, answer.err
    counts = np.zeros((3, 3), np.int64)
    for path in (data / "val" / "labels").iterdir():
        truth, predicted = (np.asarray(Image.open(p)) for p in (path, tmp_path / "out" / path.name))
        assert truth.shape == predicted.shape
        np.add.at(counts, (truth[truth != IGNORE], predicted[truth != IGNORE]), 1)
    assert results["confusion_matrix"] in (counts.tolist(), counts.T.tolist())
    matrix = np.array(results["confusion_matrix"])
    assert matrix.sum() == counts.sum()
    assert results["metrics"]["Pixel_Accuracy"] == pytest.approx(np.trace(counts) / counts.sum())
    union = counts.sum(0) + counts.sum(1) - np.diag(counts)
    assert results["metrics"]["Mean_IoU"] == pytest.approx((np.diag(counts)[union > 0] / union[union > 0]).mean())
    assert results["images"] == len(SIZES)
    assert results["protocol"]["size"] == "native"
    assert results["protocol"]["mode"] == (flags[1] if flags else "single")
    assert results["protocol"]["flip"] is ("--flip" in flags)
    assert [row["name"] for row in results["classes"]] == ["ground", "square", "dot"]


@pytest.mark.parametrize(
    "flags", [["--mode", "sliding", "--window", "128", "128"], ["--mode", "multiscale", "--scales", "1"]], ids=" ".join
)
def test_one_window_or_one_scale_is_the_single_mode(file_run, inference_command, tmp_path, flags):
    run_dir, data = file_run
    outputs = []
    for number, mode in enumerate((["--mode", "single"], flags)):
        outputs.append(tmp_path / str(number))
        files = ["-i", data / "val" / "images", "-o", outputs[-1], "--save", "index"]
        assert inference_command("-m", run_dir / "last.pth", *files, *mode).status == 0
    for path in outputs[0].iterdir():
        assert path.read_bytes() == (outputs[1] / path.name).read_bytes()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--mode", "single", "--scales", "1", "2"], "--scales: has no effect in mode single. Use --mode multiscale"),
        (["--window", "32", "32"], "--window: has no effect in mode single. Use --mode sliding"),
        (["--mode", "sliding", "--fast"], "--fast: has no effect in mode sliding."),
        (["--mode", "multiscale", "--scales", "0"], "--scales 0.0: out of range."),
        (["--mode", "sliding", "--overlap", "1"], "--overlap 1.0: out of range."),
        (["--mode", "sliding", "--window", "0", "32"], "--window 0 32: no size."),
        (["--batch-size", "0"], "--batch-size 0: too few."),
    ],
)
def test_flags_that_cannot_be_meant_are_refused(finished_run, pictures, inference_command, tmp_path, flags, expected):
    answer = inference_command("-m", finished_run / "last.pth", "-i", pictures, "-o", tmp_path / "out", *TINY, *flags)
    assert answer.status == 2
    assert answer.errors[0].startswith(expected)
    assert not (tmp_path / "out").exists()


def test_probabilities_are_those_of_the_winning_class_and_of_all(finished_run, pictures, inference_command, tmp_path):
    save = ["--save", "index,probability,probabilities"]
    answer = predict(inference_command, finished_run, pictures / "x.png", tmp_path / "out", *save)
    assert answer.status == 0, answer.err
    shares = np.load(tmp_path / "out" / "x_probabilities.npz")["probabilities"].astype(np.float32)
    assert shares.shape == (3, 20, 30)
    np.testing.assert_allclose(shares.sum(axis=0), 1, atol=2e-3)
    assert (shares.argmax(axis=0) == read_label(tmp_path / "out" / "x_index.png")).mean() > 0.99
    winning = read_label(tmp_path / "out" / "x_probability.png") / 255
    np.testing.assert_allclose(winning, shares.max(axis=0), atol=4e-3)


def test_what_training_validated_is_what_evaluation_finds(file_run, evaluate_command, tmp_path):
    run_dir, _ = file_run
    assert evaluate_command("-m", run_dir / "last.pth", "--output", tmp_path / "r.json").status == 0
    results = json.loads((tmp_path / "r.json").read_text())
    record = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["val/Mean_IoU"] == pytest.approx(results["metrics"]["Mean_IoU"], abs=1e-12)


def test_figures_are_stamped_with_the_precision_that_was_used(file_run, evaluate_command, tmp_path):
    run_dir, _ = file_run
    flags = ["--precision", "auto", "--output", tmp_path / "r.json"]
    assert evaluate_command("-m", run_dir / "last.pth", *flags).status == 0
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["precision"] == "fp32"


def test_evaluation_that_left_an_image_out_says_so(file_run, evaluate_command, tmp_path):
    run_dir, data = file_run
    state = checkpoint.load(run_dir / "last.pth")
    state["config"]["val_loader"]["args"]["on_bad_sample"] = "skip"
    torch.save(state, tmp_path / "x.pth")
    shutil.copytree(data, tmp_path / "data")
    (tmp_path / "data" / "val" / "images" / "n2.png").write_bytes(b"cut")
    flags = ["--data-dir", tmp_path / "data", "--output", tmp_path / "r.json"]
    answer = evaluate_command("-m", tmp_path / "x.pth", *flags)
    assert answer.status == 3
    assert "n2.png" in answer.out
    assert json.loads((tmp_path / "r.json").read_text())["images"] == len(SIZES) - 1


def test_memory_that_runs_out_in_evaluation_ends_it_with_status_4(file_run, evaluate_command, monkeypatch):
    def fail(self, images):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(Predictor, "logits", fail)
    answer = evaluate_command("-m", file_run[0] / "last.pth")
    assert answer.status == 4
    (line,) = answer.errors
    assert line.startswith("memory ran out (CUDA out of memory. Tried to allocate 2 GiB). Give smaller images")


def test_evaluation_takes_another_split_and_another_folder(file_run, evaluate_command, tmp_path):
    run_dir, data = file_run
    shutil.copytree(data, tmp_path / "moved")
    answer = evaluate_command("-m", run_dir / "last.pth", "--data-dir", tmp_path / "moved", "--split", "train")
    assert answer.status == 0, answer.err
    assert "PngSquares train, 4 images; single, size native, fp32" in answer.out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "vall"], "evaluation.args.split: PngSquares has no 'vall'. Did you mean 'val'?"),
        (["--mode", "center_crop"], "--mode center_crop: training validated on whole images. Use --mode single."),
        (["--mode", "both"], "command line: argument -mo/--mode: invalid choice: 'both'"),
        (["--output", "/"], "--output /: cannot be written (it is a folder). Name another file."),
        (["--output", "/dev/null/x"], "--output /dev/null/x: cannot be written ("),
        (["--data-dir", "/nowhere"], "/nowhere: PngSquares found no 'val' images there."),
    ],
)
def test_an_evaluation_that_cannot_be_meant_is_refused(file_run, evaluate_command, arguments, expected):
    answer = evaluate_command("-m", file_run[0] / "last.pth", *arguments)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(expected)


# ----------------------------------------------------------------------------------------------- which files


def test_a_folder_gives_every_image_a_file_of_its_own(pictures, finished_run, inference_command, tmp_path):
    answer = predict(inference_command, finished_run, pictures, tmp_path / "deep" / "out")
    assert answer.status == 0, answer.err
    assert "7 of 7 images predicted" in answer.out
    written = sorted(path.name for path in (tmp_path / "deep" / "out").iterdir() if path.name != "_legend.png")
    names = ["a.b.png", "a.c.png", "mit Leerzeichen é.png", "tiny.png", "wide.png", "x_JPG.png", "x_png.png"]
    assert written == names
    assert Image.open(tmp_path / "deep" / "out" / "wide.png").size == (700, 9)
    assert Image.open(tmp_path / "deep" / "out" / "tiny.png").size == (1, 1)


@pytest.mark.parametrize(
    ("images", "extension", "names"),
    [
        ("", "jpg", ["a.b.jpg", "a.c.jpg", "x.JPG"]),
        ("", ".PNG, bmp", ["tiny.bmp", "x.png"]),
        ("x.png", "jpg", ["x.png"]),
        ("a.?.jpg", "any", ["a.b.jpg", "a.c.jpg"]),
        ("x.*", "any", ["x.JPG", "x.png"]),
        ("*", "bmp", ["tiny.bmp"]),
        ("notes.txt", "any", ["notes.txt"]),
    ],
)
def test_files_folders_and_patterns_name_images(pictures, images, extension, names):
    assert [path.name for path in find_images([str(pictures / images)], extension).paths] == names


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path):
    (tmp_path / "a[1].png").touch()
    assert find_images([str(tmp_path / "a[1].png")]).paths == [tmp_path / "a[1].png"]


@pytest.mark.parametrize("images", ["nowhere", "*.xyz", "a\0b", ""])
def test_no_images_is_an_error(pictures, finished_run, inference_command, tmp_path, images, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = predict(inference_command, finished_run, images, tmp_path / "out")
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith("--images ")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_is_an_error_that_names_the_endings(finished_run, inference_command, tmp_path):
    (tmp_path / "empty").mkdir()
    answer = predict(inference_command, finished_run, tmp_path / "empty", tmp_path / "out")
    assert answer.status == 2
    assert answer.errors[0].startswith(f"--images {tmp_path / 'empty'}: no image ending in .jpg,")


def test_names_never_collide():
    paths = [Path(p) for p in ("a/x.jpg", "a/x.png", "b/x.jpg", "x_jpg.gif", "y.b.jpg", "y.jpg", "y.png", "y_jpg.bmp")]
    for placed in (paths, [Path(path.name) for path in paths]):
        names = output_names(placed)
        assert len(set(names)) == len(paths)
        assert names[4] == "y.b"


def test_an_image_is_never_replaced_by_its_prediction(pictures, finished_run, inference_command):
    before = (pictures / "x.png").read_bytes()
    (pictures / "x.JPG").unlink()
    answer = predict(inference_command, finished_run, pictures, pictures)
    assert answer.status == 2
    assert answer.errors == [f"--output {pictures}: would replace {pictures / 'x.png'}, an image. Name another folder."]
    assert (pictures / "x.png").read_bytes() == before
    assert predict(inference_command, finished_run, pictures, pictures, "--save", "index,overlay").status == 0


@pytest.mark.parametrize("output", ["file", "file/below", "a\0b"])
def test_an_output_that_cannot_be_a_folder_is_refused(pictures, finished_run, inference_command, tmp_path, output):
    (tmp_path / "file").write_text("")
    answer = predict(inference_command, finished_run, pictures, tmp_path / output)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith("--output ")


def test_a_disk_that_is_full_stops_with_the_file_named(
    pictures, finished_run, inference_command, tmp_path, monkeypatch
):
    def full(image, file, **__):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out")
    assert answer.status == 4
    assert not list((tmp_path / "out").glob("a.b.png*"))  # whole or not there
    assert answer.errors == [
        f"{tmp_path / 'out' / 'a.b.png'}: cannot be written (No space left on device). "
        f"Free some space, or name another --output."
    ]


# ------------------------------------------------------------------------------------------- what is in the files


def test_a_broken_image_costs_no_other(pictures, finished_run, inference_command, tmp_path):
    data = (pictures / "a.b.jpg").read_bytes()
    (pictures / "b_cut.jpg").write_bytes(data[: len(data) // 2])
    (pictures / "b_empty.png").write_bytes(b"")
    (pictures / "b_html.jpg").write_text("<html>")
    (pictures / "b_folder.png").mkdir()
    (pictures / "b_link.png").symlink_to("nowhere")
    (pictures / "b\nline.png").write_text("error: forged")
    broken = 6
    if hasattr(os, "mkfifo"):
        os.mkfifo(pictures / "b_pipe.png")
        broken += 1
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out")
    assert answer.status == 3
    assert f"7 of {7 + broken} images predicted" in answer.out
    assert len(list((tmp_path / "out").glob("[!_]*"))) == 7
    lines = [line for line in answer.err.splitlines() if "passed over" not in line]
    assert len(lines) == broken
    assert all(line.startswith("not predicted: ") for line in lines)
    for name in ("b_cut.jpg", "b_empty.png", "b_html.jpg", "b_folder.png", "b_link.png", "b\\nline.png"):
        assert any(name in line for line in lines)


def test_what_the_image_says_about_itself_is_respected(finished_run, tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 255, (20, 33, 3), dtype=np.uint8)
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])

    exif = Image.Exif()
    exif[274] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    turned = np.ascontiguousarray(np.rot90(pixels, -1))
    assert np.array_equal(predictor.predict(tmp_path / "turned.png"), predictor.predict(turned))

    rgba = np.dstack([pixels, rng.integers(0, 255, (20, 33, 1), dtype=np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    assert np.array_equal(predictor.predict(tmp_path / "alpha.png"), predictor.predict(pixels))

    gray = pixels[..., 0]
    Image.fromarray(gray).save(tmp_path / "gray.png")
    cv2.imwrite(str(tmp_path / "deep.png"), gray.astype(np.uint16) * 257)
    three = np.repeat(gray[..., None], 3, axis=2)
    for name in ("gray.png", "deep.png"):
        assert np.array_equal(predictor.predict(str(tmp_path / name)), predictor.predict(three))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 700), (31, 97)])
def test_a_label_map_is_as_large_as_its_image_and_holds_classes_only(finished_run, size):
    image = np.random.default_rng(2).integers(0, 255, (*size, 3), dtype=np.uint8)
    labels = load(str(finished_run / "best_model.pth"), device="cpu", modules=["tests.tiny"]).predict(image)
    assert labels.shape == size
    assert labels.dtype == np.uint8
    assert labels.max() < 3


def test_an_image_that_memory_is_too_small_for_costs_no_other(
    pictures, finished_run, inference_command, tmp_path, monkeypatch
):
    logits = Predictor.logits

    def fail(self, images):
        if images.shape[-1] == 700:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return logits(self, images)

    monkeypatch.setattr(Predictor, "logits", fail)
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out")
    assert answer.status == 3
    assert "6 of 7 images predicted" in answer.out
    assert f"not predicted: {pictures / 'wide.webp'}: memory ran out (CUDA out of memory" in answer.err


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.int64), [[0]], None]
)
def test_what_is_no_8_bit_image_is_not_guessed_at(finished_run, image):
    with pytest.raises(TypeError):
        load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"]).predict(image)


def test_python_callers_get_errors_they_can_catch(finished_run, tmp_path):
    with pytest.raises(DataError):
        load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"]).predict(tmp_path / "none.png")
    with pytest.raises(ValueError, match="no such checkpoint"):
        load("none.pth")


# ------------------------------------------------------------------------------------------------- what is written


def test_color_files_are_palette_images_of_the_labels(pictures, finished_run, inference_command, tmp_path):
    answer = predict(inference_command, finished_run, pictures / "a.b.jpg", tmp_path, "--save", "color,index,overlay")
    assert answer.status == 0, answer.err
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    labels = predictor.predict(pictures / "a.b.jpg")
    color, index = Image.open(tmp_path / "a.b_color.png"), Image.open(tmp_path / "a.b_index.png")
    assert color.mode == index.mode == "P"
    assert np.array_equal(np.asarray(color), labels)
    assert np.array_equal(read_label(tmp_path / "a.b_index.png"), labels)
    assert np.array_equal(cv2.imread(str(tmp_path / "a.b_index.png"), cv2.IMREAD_GRAYSCALE), labels)
    shown = np.asarray(color.convert("RGB"))
    for value, expected in enumerate(((90, 60, 30), (250, 200, 0), (0, 90, 250))):
        assert (shown[labels == value] == expected).all()
    overlay = read_image(tmp_path / "a.b_overlay.png").astype(int)
    half = (shown.astype(int) + read_image(pictures / "a.b.jpg")) / 2
    assert np.abs(overlay - half).max() <= 1


def test_the_palette_of_a_checkpoint_is_the_datasets_with_a_color_for_void(finished_run):
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    palette = png_palette(predictor.classes)
    assert predictor.classes.colors == Squares.base_classes().colors
    assert predictor.classes.names == Squares.base_classes().names
    assert tuple(palette[IGNORE]) == void_color(predictor.classes) == (255, 255, 255)
    assert (palette[3:IGNORE] == 0).all()


@pytest.mark.parametrize("save", ["colour", "color,", "", "probability,what"])
def test_an_unknown_kind_of_output_is_refused(pictures, finished_run, inference_command, tmp_path, save):
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out", "--save", save)
    assert answer.status == 2
    assert answer.errors[0].startswith("--save ")


@pytest.mark.parametrize("mode", ["Single", "none"])
def test_an_unknown_mode_is_refused(pictures, finished_run, inference_command, tmp_path, mode):
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out", "--mode", mode)
    assert answer.status == 2
    assert answer.errors[0].startswith("command line: argument -mo/--mode: invalid choice")


# --------------------------------------------------------------------------------------------------- which model


def test_a_model_needs_no_dataset_on_disk(file_run, inference_command, pictures, tmp_path):
    run_dir, data = file_run
    shutil.copy(run_dir / "best_model.pth", tmp_path / "model.pth")
    hidden = data.with_name("hidden")
    data.rename(hidden)
    try:
        answer = inference_command("-m", tmp_path / "model.pth", "-i", pictures, "-o", tmp_path / "out")
    finally:
        hidden.rename(data)
    assert answer.status == 0, answer.err


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("bare", [True, False])
def test_weights_of_wrapped_models_load(
    finished_run, inference_command, evaluate_command, pictures, tmp_path, prefix, bare
):
    state = checkpoint.load(finished_run / "last.pth")
    weights = {prefix + name: value for name, value in state["state_dict"].items()}
    path = tmp_path / "weights.pth"
    torch.save(weights if bare else {**state, "state_dict": weights}, path)
    config = ["-c", finished_run / "config.json"] if bare else []
    answer = inference_command("-m", path, "-i", pictures / "a.b.jpg", "-o", tmp_path / "out", *config, *TINY)
    assert answer.status == 0, answer.err
    own = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"]).predict(pictures / "a.b.jpg")
    assert np.array_equal(read_label(tmp_path / "out" / "a.b.png"), own)
    assert evaluate_command("-m", path, *config, *TINY).status == 0


def test_bare_weights_without_a_config_say_what_is_missing(finished_run, inference_command, pictures, tmp_path):
    torch.save(checkpoint.load(finished_run / "last.pth")["state_dict"], tmp_path / "weights.pth")
    answer = inference_command("-m", tmp_path / "weights.pth", "-i", pictures, "-o", tmp_path / "out")
    (line,) = answer.errors
    assert answer.status == 2
    assert "--config" in line


def test_weights_of_another_number_of_classes_are_refused_by_the_first_that_differs(
    finished_run, inference_command, pictures, tmp_path
):
    state = checkpoint.load(finished_run / "last.pth")
    state["classes"], state["palette"] = [*state["classes"], "fourth"], [*state["palette"], [1, 2, 3]]
    torch.save(state, tmp_path / "x.pth")
    answer = inference_command("-m", tmp_path / "x.pth", "-i", pictures, "-o", tmp_path / "out", *TINY)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(f"{tmp_path / 'x.pth'}: does not fit the model: 'head.")
    assert not (tmp_path / "out").exists()


def test_averaged_weights_are_used_where_there_are_some(finished_run, pictures, tmp_path):
    state = checkpoint.load(finished_run / "last.pth")
    zero = {name: torch.zeros_like(value) for name, value in state["state_dict"].items()}
    torch.save({**state, "ema": {"state_dict": zero, "updates": 1}}, tmp_path / "x.pth")
    model = load(tmp_path / "x.pth", device="cpu", modules=["tests.tiny"]).model
    assert all(not parameter.any() for parameter in model.parameters())


# ------------------------------------------------------------------------------- many files, and what is passed over


def test_a_link_to_itself_costs_no_other_image(pictures, finished_run, inference_command, tmp_path):
    (pictures / "loop.png").symlink_to(pictures / "loop.png")
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out")
    assert answer.status == 3
    assert "7 of 8 images predicted" in answer.out
    assert f"not predicted: {pictures / 'loop.png'}: cannot be read (" in answer.err
    answer = predict(inference_command, finished_run, pictures / "loop.png", tmp_path / "one")
    assert answer.status == 3
    assert "0 of 1 images predicted" in answer.out


def test_what_is_passed_over_is_said(pictures, finished_run, inference_command, tmp_path):
    (pictures / "..dots.png").write_bytes((pictures / "x.png").read_bytes())
    (pictures / "below").mkdir()
    (pictures / "below" / "y.png").write_bytes((pictures / "x.png").read_bytes())
    (pictures / "empty").mkdir()
    answer = predict(inference_command, finished_run, pictures, tmp_path / "out")
    assert answer.status == 0
    assert "7 of 7 images predicted" in answer.out
    assert f"{pictures}: passed over 2 hidden files (..dots.png, .hidden.jpg). Name them to predict them." in answer.err
    assert f"{pictures}: passed over 1 files of other kinds (notes.txt). See --extension." in answer.err
    assert f"{pictures}: passed over 1 folders with images in them (below). Use --recursive for those." in answer.err
    answer = predict(inference_command, finished_run, pictures / "..dots.png", tmp_path / "named")
    assert answer.status == 0
    assert "passed over" not in answer.err


def test_recursive_predictions_keep_the_folders_of_their_images(pictures, finished_run, inference_command, tmp_path):
    data = (pictures / "x.png").read_bytes()
    for name in ("b/x.png", "b/c/x.png", "b/c/x.bmp.png", ".git/x.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        (pictures / name).write_bytes(data)
    (pictures / "b" / "again").symlink_to(pictures)  # would be searched for ever
    output = pictures / "out"
    for _ in range(2):  # the second time, there are predictions below the images
        answer = predict(inference_command, finished_run, pictures, output, "--recursive", "--save", "index")
        assert answer.status == 0, answer.err
        assert "10 of 10 images predicted" in answer.out
    written = {str(path.relative_to(output)) for path in output.rglob("*.png")}
    assert {"b/x.png", "b/c/x.png", "b/c/x.bmp.png", "x_png.png"} <= written
    assert len(written) == 10


def test_several_images_folders_and_patterns_may_be_named(pictures, finished_run, inference_command, tmp_path):
    (tmp_path / "more").mkdir()
    shutil.copy(pictures / "x.png", tmp_path / "more" / "x.png")
    named = [pictures / "x.png", tmp_path / "more", pictures / "a.?.jpg", pictures / "x.png"]
    flags = ["-o", tmp_path / "out", "--save", "index", *TINY]
    answer = inference_command("-m", finished_run / "last.pth", "-i", *named, *flags)
    assert answer.status == 0, answer.err
    assert "4 of 4 images predicted" in answer.out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["a.b.png", "a.c.png", "x_png.png", "x_png_2.png"]
    answer = inference_command("-m", finished_run / "last.pth", "-i", *named, "nowhere", "none*.png", *flags)
    assert answer.status == 2
    assert [line.split(":")[0] for line in answer.errors] == ["--images nowhere", "--images none*.png"]


@pytest.mark.parametrize("flags", [[], ["--batch-size", "3"]], ids=" ".join)
def test_one_forward_pass_gives_all_kinds_of_outputs(
    pictures, finished_run, inference_command, tmp_path, monkeypatch, flags
):
    forward, passes = Predictor._forward, []

    def count(self, images):
        passes.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(Predictor, "_forward", count)
    for name in ("x.png", "x.JPG", "a.b.jpg", "a.c.jpg", "wide.webp"):
        shutil.copy(pictures / name, tmp_path / name)
    save = ["--save", "color,index,overlay,probability,probabilities"]
    images = ["-i", tmp_path, "-e", "jpg,png,webp", "-o", tmp_path / "out"]
    answer = inference_command("-m", finished_run / "last.pth", *images, *TINY, *save, *flags)
    assert answer.status == 0, answer.err
    assert sum(passes) == 5
    assert len(passes) == (3 if flags else 5)
    assert ("--batch-size: " in answer.err) == bool(flags)
    assert len(list((tmp_path / "out").iterdir())) == 5 * 5 + 1


def test_evaluation_puts_neighbors_of_one_size_together_where_asked_to(
    file_run, evaluate_command, tmp_path, monkeypatch
):
    run_dir, _ = file_run
    forward, passes = Predictor._forward, []
    monkeypatch.setattr(Predictor, "_forward", lambda self, x: passes.append(len(x)) or forward(self, x))
    found = []
    for flags in ([], ["--batch-size", "3"]):
        passes.clear()
        output = tmp_path / "out.json"
        answer = evaluate_command("-m", run_dir / "last.pth", "--split", "train", "-mo", "single", *flags, "-o", output)
        assert answer.status == 0, answer.err
        found.append((list(passes), json.loads(output.read_text())["metrics"]["Mean_IoU"]))
    assert [passes for passes, _ in found] == [[1, 1, 1, 1], [3, 1]]
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-3)


def test_batches_of_equal_sizes_predict_what_single_images_do(file_run, inference_command, tmp_path):
    run_dir, data = file_run
    for output, flags in (("one", []), ("many", ["--batch-size", "4"])):
        files = ["-i", data / "train" / "images", data / "val" / "images", "-o", tmp_path / output, "--save", "index"]
        assert inference_command("-m", run_dir / "last.pth", *files, *flags).status == 0
    same = [(read_label(p) == read_label(tmp_path / "many" / p.name)).mean() for p in (tmp_path / "one").iterdir()]
    assert len(same) == 4 + len(SIZES)
    assert min(same) > 0.999


def test_a_batch_that_memory_is_too_small_for_is_predicted_one_by_one(
    file_run, inference_command, tmp_path, monkeypatch
):
    logits = Predictor.logits

    def fail(self, images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        return logits(self, images)

    monkeypatch.setattr(Predictor, "logits", fail)
    run_dir, data = file_run
    flags = ["-i", data / "train" / "images", "-o", tmp_path / "out", "--batch-size", "4"]
    answer = inference_command("-m", run_dir / "last.pth", *flags)
    assert answer.status == 0, answer.err
    assert "4 of 4 images predicted" in answer.out


def test_folders_and_patterns_of_arrays_are_images_too(tmp_path, inference_command):
    from tests.conftest import call

    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
        for number in range(4):
            image = rng.random((33, 40, 4), dtype=np.float32)
            np.save(tmp_path / "data" / "images" / split / f"n{number}.npy", image)
            Image.fromarray(rng.integers(0, 2, (33, 40), dtype=np.uint8)).save(
                tmp_path / "data" / "masks" / split / f"n{number}.png"
            )
    args = {"data_dir": str(tmp_path / "data"), "classes": ["a", "b"], "channels": 4}
    config = tiny_config(
        tmp_path / "saved",
        train_loader={"type": "Folder", "args": {**args, "split": "train", "batch_size": 2, "num_workers": 0}},
        val_loader={"type": "Folder", "args": {**args, "split": "val", "batch_size": 1, "num_workers": 0}},
        normalization={"mean": [0.5] * 4, "std": [0.25] * 4},
    )
    config["arch"]["args"]["in_channels"] = 4
    config["trainer"]["epochs"] = 1
    write_json(tmp_path / "c.json", config)
    import train

    answer = call(train, "-c", tmp_path / "c.json")
    assert answer.status == 0, answer.err
    (run_dir,) = (tmp_path / "saved" / "tiny").glob("*-*")
    images = tmp_path / "data" / "images" / "val"
    for number, named in enumerate((images, images / "*.npy", images / "n?.*", images / "n1.npy")):
        answer = inference_command("-m", run_dir / "last.pth", "-i", named, "-o", tmp_path / str(number))
        assert answer.status == 0, answer.err
        assert len(list((tmp_path / str(number)).iterdir())) == (2 if number == 3 else 5)
    (images / "x.png").write_bytes((tmp_path / "data" / "masks" / "val" / "n0.png").read_bytes())
    answer = inference_command("-m", run_dir / "last.pth", "-i", images, "-e", "npy", "-o", tmp_path / "last")
    assert answer.status == 0, answer.err


def test_an_array_with_alpha_is_predicted_without(finished_run):
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 4), dtype=np.uint8)
    assert np.array_equal(predictor.predict(image), predictor.predict(image[..., :3]))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 5), np.uint8), r"expected an array \(height, width, 3\), got one of shape 4x5\."),
        (np.zeros((4, 5, 2), np.uint8), r"expected an array \(height, width, 3\), got one of 2 channels\."),
        (np.zeros((4, 5, 3), np.float32), r"expected an array of 8-bit integers, got float32\."),
        (np.zeros((4, 5, 4), bool), r"expected an array of 8-bit integers, got bool\."),
        (None, r"expected an array|expected str|argument should be"),
    ],
)
def test_an_array_that_is_no_image_is_refused_in_one_line_that_says_why(finished_run, image, words):
    with pytest.raises(TypeError, match=words):
        load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"]).predict(image)


# --------------------------------------------------------------------------------------------------------- films


def frames_of(path):
    film = cv2.VideoCapture(str(path))
    found = []
    while (frame := film.read())[0]:
        found.append(cv2.cvtColor(frame[1], cv2.COLOR_BGR2RGB))
    return found, film.get(cv2.CAP_PROP_FPS)


@pytest.fixture
def film(tmp_path):
    writer = cv2.VideoWriter(str(tmp_path / "film.mp4"), cv2.VideoWriter.fourcc(*"mp4v"), 12.0, (80, 64))
    for number in range(21):
        frame = np.full((64, 80, 3), 40, np.uint8)
        frame[10:40, 3 * number : 3 * number + 20] = (30, 60, 250)
        writer.write(frame)
    writer.release()
    return tmp_path / "film.mp4"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_that_is_called_like_a_film_is_not_waited_for(finished_run, inference_command, tmp_path):
    os.mkfifo(tmp_path / "p.mp4")
    answer = inference_command(
        "-m", finished_run / "last.pth", "-i", tmp_path / "p.mp4", "-o", tmp_path / "out", "--save", "color", *TINY
    )
    assert answer.status == 3
    assert f"{tmp_path / 'p.mp4'}: is no regular file. Give a film." in answer.err


@pytest.mark.parametrize("flags", [[], ["--batch-size", "4"]], ids=" ".join)
def test_a_film_becomes_a_film_of_its_classes(finished_run, film, inference_command, tmp_path, flags):
    files = ["-i", film, "-o", tmp_path / "out", "--save", "color,overlay"]
    answer = inference_command("-m", finished_run / "last.pth", *files, *TINY, *flags)
    assert answer.status == 0, answer.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_legend.png",
        "film_color.mp4",
        "film_overlay.mp4",
    ]
    frames, _ = frames_of(film)
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    for kind in ("color", "overlay"):
        shown, rate = frames_of(tmp_path / "out" / f"film_{kind}.mp4")
        assert (len(shown), rate) == (21, 12.0)
        for frame, drawn in zip(frames, shown, strict=True):
            expected = png_palette(predictor.classes)[predictor.predict(frame)].astype(float)
            expected = expected if kind == "color" else (expected + frame) / 2
            assert np.abs(drawn - expected).mean() < 12  # the codec loses some


def test_frames_of_odd_sizes_are_filled_up(tmp_path):
    job = Job(tmp_path / "in.mp4", {"color": tmp_path / "out.mp4"})
    writer = FilmWriter(job, Squares.base_classes(), 5.0)
    for _ in range(3):
        labels = torch.zeros(27, 33, dtype=torch.uint8)
        writer.write(np.zeros((27, 33, 3), np.uint8), lambda labels=labels: Prediction(labels))
    writer.finish()
    frames, _ = frames_of(tmp_path / "out.mp4")
    assert [frame.shape for frame in frames] == [(28, 34, 3)] * 3


def test_a_film_that_does_not_fit_on_the_disk_has_no_name(tmp_path):
    job = Job(tmp_path / "in.mp4", {"overlay": tmp_path / "out.mp4"})
    writer = FilmWriter(job, Squares.base_classes(), 5.0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        for number in range(9):
            frame = np.random.default_rng(number).integers(0, 255, (128, 128, 3), dtype=np.uint8)
            writer.write(frame, lambda: Prediction(torch.zeros(128, 128, dtype=torch.uint8)))
        with pytest.raises(Stopped, match=r"out\.mp4: cannot be written\. Free some space"):
            writer.finish()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_frames_that_a_film_lacks_are_said(finished_run, inference_command, tmp_path):
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 12.0, (80, 64))
    for number in range(20):
        writer.write(np.random.default_rng(number).integers(0, 255, (64, 80, 3), dtype=np.uint8))
    writer.release()
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    answer = inference_command("-m", finished_run / "last.pth", "-i", path, "-o", tmp_path / "out", *TINY)
    assert answer.status == 0, answer.err
    assert re.search(r"film\.avi: only \d+ of about 20 frames can be read\. Get it again\.", answer.err + answer.out)


@pytest.mark.parametrize(
    ("content", "flags", "words"),
    [
        (b"no film", [], "is no film that can be read. Convert it to MP4."),
        (None, ["--save", "index"], "is a film, which --save index has no form for. Use color or overlay."),
    ],
)
def test_a_film_that_cannot_be_predicted_costs_no_image(
    finished_run, film, pictures, inference_command, tmp_path, content, flags, words
):
    if content:
        film.write_bytes(content)
    files = ["-i", film, pictures / "x.png", "-o", tmp_path / "out"]
    answer = inference_command("-m", finished_run / "last.pth", *files, *TINY, *flags)
    assert answer.status == 3
    assert f"not predicted: {film}: {words}" in answer.err
    assert (tmp_path / "out" / "x.png").exists()
    assert not list((tmp_path / "out").glob("*.mp4"))


# ------------------------------------------------------------------------------------------------------ progress


@pytest.mark.parametrize(
    "flags",
    [
        ["--mode", "sliding", "--window", "32", "32"],
        ["--mode", "sliding", "--window", "32", "64", "--overlap", "0.5", "--flip", "--batch-size", "4"],
        ["--mode", "multiscale", "--scales", *map(str, np.linspace(0.5, 1, 17))],
    ],
    ids=" ".join,
)
def test_an_image_of_many_forward_passes_has_a_bar_that_moves_with_them(
    finished_run, inference_command, tmp_path, monkeypatch, flags
):
    bars = []

    class Bar:
        def __init__(self, total, unit, desc="", **_):
            self.total, self.unit, self.desc, self.moved = total, unit, desc, []
            bars.append(self)

        def update(self, count=1):
            self.moved.append(count)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(prediction, "tqdm", Bar)
    image = np.random.default_rng(0).integers(0, 255, (150, 200, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "x.png")
    flags = ["-i", tmp_path / "x.png", "-o", tmp_path / "out", *flags]
    answer = inference_command("-m", finished_run / "last.pth", *flags, *TINY)
    assert answer.status == 0, answer.err
    images, windows = bars
    assert (images.unit, images.total, images.moved) == ("image", 1, [1])
    assert (windows.unit, windows.desc) == ("window", "x.png")
    assert sum(windows.moved) == windows.total > 16
    assert len(windows.moved) > 8


def test_predictions_as_files_of_annotation_tools_hold_every_image(file_run, inference_command, tmp_path):
    run_dir, data = file_run
    images, output = data / "val" / "images", tmp_path / "out"
    answer = predict(inference_command, run_dir, images, output, "--save", "index,coco,labelme,cvat,labelstudio")
    assert answer.status == 0, answer.err
    names = sorted(path.name for path in images.iterdir())
    assert [image["file_name"] for image in json.loads((output / "coco.json").read_text())["images"]] == names
    assert all(f'name="{name}"' in (output / "cvat.xml").read_text() for name in names)
    assert len(json.loads((output / "labelstudio.json").read_text())) == len(names)
    for path in images.iterdir():
        content = json.loads((output / f"{path.stem}_labelme.json").read_text())
        assert (output / content["imagePath"]).resolve() == path.resolve()
