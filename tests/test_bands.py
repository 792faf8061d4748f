"""Images of other channels than RGB: values arrive as they are stored, and what does not fit is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import inference
import prepare
from dataloader.datasets.folder import Folder
from tests.conftest import Answer, call
from utils.errors import DataError
from utils.images import read_bands

SIZE = (45, 61)
TYPES = (np.uint8, np.uint16, np.float32)


def bands(channels: int, dtype: Any, number: int = 0) -> np.ndarray:
    """Values over the full range of their type."""
    rng = np.random.default_rng(number)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1000, (*SIZE, channels)).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, (*SIZE, channels)).astype(dtype)


def make(root: Path, channels: int, dtype: Any = np.uint8, count: int = 8) -> Path:
    for number in range(count):
        label = np.random.default_rng(number).integers(0, 2, SIZE).astype(np.uint8)
        for folder, array in (("images", bands(channels, dtype, number)), ("masks", label)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            if folder == "images":
                np.save(root / folder / f"{number}.npy", array)
            else:
                Image.fromarray(array).save(root / folder / f"{number}.png")
    return root


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("channels", [1, 4, 6])
def test_arrays_are_read_as_they_are(tmp_path: Path, channels: int, dtype: Any) -> None:
    make(tmp_path, channels, dtype)
    data = Folder(data_dir=tmp_path, split="all", classes=("a", "b"), channels=channels)
    assert data.channels == channels
    image, label, _ = data.read(3)
    assert image.dtype == dtype
    assert np.array_equal(image, bands(channels, dtype, 3))
    assert label.shape == SIZE


def test_other_numbers_become_float32_and_planes_get_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for dtype in (np.int16, np.int32, np.float64, np.float16):
        values = np.arange(-20, 22).reshape(6, 7).astype(dtype)
        np.save(path, values)
        found = read_bands(path, 1)
        assert found.dtype == np.float32
        assert np.array_equal(found[..., 0], values.astype(np.float64))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [2, 4, 6])
def test_tiff_files_of_several_bands(tmp_path: Path, channels: int, planar: str, dtype: Any) -> None:
    tifffile = pytest.importorskip("tifffile", reason="an optional package")
    values = bands(channels, dtype)
    stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
    options = {"photometric": "minisblack", "planarconfig": planar, "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    assert np.array_equal(read_bands(tmp_path / "a.tif", channels), values)


def test_gray_images_and_tiff_files_of_one_band_need_nothing_more(tmp_path: Path) -> None:
    values = bands(1, np.uint16)
    Image.fromarray(values[..., 0]).save(tmp_path / "a.tif")
    Image.fromarray(values[..., 0]).save(tmp_path / "a.png")
    for name in ("a.tif", "a.png"):
        assert np.array_equal(read_bands(tmp_path / name, 1), values)
    alpha = bands(4, np.uint8)
    Image.fromarray(alpha).save(tmp_path / "b.png")
    assert np.array_equal(read_bands(tmp_path / "b.png", 4), alpha)


def test_what_does_not_fit_has_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"

    def problem(channels: int = 4) -> str:
        with pytest.raises(DataError) as caught:
            read_bands(path, channels)
        (line,) = caught.value.problems
        assert line.startswith(f"{path}: ")
        return line

    np.save(path, bands(5, np.uint8))
    assert "shape 45x61x5, expected height x width x 4" in problem()
    holes = bands(4, np.float32)
    holes[7, 9, 2] = np.nan
    np.save(path, holes)
    assert "no number at row 7, column 9" in problem()
    np.save(path, np.array([["text"]]))
    assert "expected numbers" in problem(1)
    path.write_bytes(path.read_bytes()[:50])
    assert "damaged or cut short" in problem(1)
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert "damaged" in problem(1)  # which would run code


def config(root: Path, folder: Path, channels: int, **more: Any) -> dict[str, Any]:
    args = {"data_dir": str(root), "classes": ["a", "b"], "channels": channels, "num_workers": 0}
    train = {**args, "split": "all", "val_split": 0.25, "batch_size": 2, "augment": True, "crop_size": 32, "rotate": 5}
    backbone = {"type": "resnet18", "args": {"width_mult": 0.125}}
    head = {"type": "FCNHead", "args": {"channels": 8}}
    network = {"backbone": backbone, "head": head, "output_stride": 8, "in_channels": channels}
    return {
        "name": "bands",
        "n_gpu": 0,
        "arch": {"type": "EncoderDecoder", "args": network},
        "train_loader": {"type": "Folder", "args": train},
        "optimizer": {"type": "SGD", "args": {"lr": 0.01}},
        "normalization": {"mean": [0.5] * channels, "std": [0.25] * channels},
        "trainer": {"epochs": 1, "save_dir": str(folder), "log_dir": str(folder / "runs")},
        **more,
    }


def train_and_predict(raw: dict[str, Any], folder: Path, train_command: Callable[..., Answer]) -> None:
    """Train with the config `raw`, which saves below `folder`, and predict the images it was trained on."""
    (folder / "config.json").write_text(json.dumps(raw))
    trained = train_command("-c", folder / "config.json")
    assert trained.status == 0, trained.err
    (run_dir,) = (folder / "saved" / "bands").glob("2*")
    images = Path(raw["train_loader"]["args"]["data_dir"]) / "images"
    flags = ("-i", images, "-e", "npy", "--save", "index,overlay", "--mode", "single", "-d", "cpu")
    predicted = call(inference, "-m", run_dir / "last.pth", *flags, "-o", folder / "out")
    assert predicted.status == 0, predicted.err
    assert np.asarray(Image.open(folder / "out" / "3_index.png")).shape == SIZE
    assert np.asarray(Image.open(folder / "out" / "3_overlay.png")).shape == (*SIZE, 3)


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (6, np.uint16), (4, np.float32), (3, np.uint16)])
def test_they_train_with_the_numbers_that_stats_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, train_command: Callable[..., Answer], channels: int, dtype: Any
) -> None:
    monkeypatch.setenv("SEGWRIGHT_CACHE", str(tmp_path / "cache"))
    root = make(tmp_path / "data", channels, dtype)
    options = json.dumps({"classes": ["a", "b"], "channels": channels})
    answer = call(prepare, "stats", "--dataset", "Folder", "--data-dir", root, "--args", options, "--workers", 0)
    assert answer.status == 0, answer.err
    line = next(line for line in answer.out.splitlines() if line.startswith('"normalization"'))
    numbers = json.loads(f"{{{line}}}")["normalization"]
    values = np.concatenate([bands(channels, dtype, number).reshape(-1, channels) for number in range(8)])
    np.testing.assert_allclose(numbers["mean"], values.mean(axis=0, dtype=np.float64) / 255, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(numbers["std"], values.std(axis=0, dtype=np.float64) / 255, rtol=1e-4)
    train_and_predict(config(root, tmp_path / "saved", channels, normalization=numbers), tmp_path, train_command)


def test_they_train_with_each_image_s_own_numbers(tmp_path: Path, train_command: Callable[..., Answer]) -> None:
    root = make(tmp_path / "data", 6, np.uint16)
    train_and_predict(config(root, tmp_path / "saved", 6, normalization="image"), tmp_path, train_command)


def test_channels_are_told_to_everybody_or_refused(tmp_path: Path, train_command: Callable[..., Answer]) -> None:
    def errors(**more: Any) -> list[str]:
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config(tmp_path, tmp_path / "saved", 6, **more)))
        return train_command("-c", file, "--check").errors

    wrong = config(tmp_path, tmp_path, 6)["arch"]
    wrong["args"]["in_channels"] = 3
    (line,) = errors(arch=wrong)
    assert line == "arch.args.in_channels: 3, but the images have 6 channels. Set it to 6."
    (line,) = errors(normalization="dataset")
    assert line.startswith("normalization: 3 numbers of mean for 6 channels.")
