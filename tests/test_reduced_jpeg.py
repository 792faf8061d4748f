"""JPEG images of which less is decoded where they shrink: what they show stays where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from base.base_dataloader import Loader
from base.base_dataset import DatasetView
from dataloader.build import check_loader
from dataloader.datasets.folder import Folder
from dataloader.transforms.chain import Chain, ChainOptions, ScaleOptions, build_chain
from dataloader.transforms.geometry import warp
from utils.errors import DataError, Fault
from utils.images import ReducibleImage, open_reducible, read_image

NAMES = ("ground", "dot")
ORIENTATION = 274
SIZES = [(480, 640), (481, 643), (487, 637)]  # of odd ones, the last pixels stand alone
DOTS = [(120, 160), (300, 500), (400, 120), (200, 320)]  # row and column


def dotted(size: tuple[int, int]) -> np.ndarray:
    """Bright dots on dark ground, (H, W, 3)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    bright = sum(np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * 14.0**2)) for row, column in DOTS)
    return np.repeat(np.rint(20 + 220 * bright)[..., None], 3, axis=2).astype(np.uint8)


def write_jpeg(path: Path, image: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95, **options)
    return path


def dots_of(image: np.ndarray) -> np.ndarray:
    """Centers of the bright spots, in rows and columns, ordered."""
    light = image[..., 0].astype(np.float64) - 20
    _, numbers = cv2.connectedComponents((light > 30).astype(np.uint8))
    centers = []
    for number in range(1, numbers.max() + 1):
        rows, columns = np.nonzero(numbers == number)
        weights = light[rows, columns]
        centers.append((np.average(rows, weights=weights), np.average(columns, weights=weights)))
    return np.array(sorted(centers))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("step", [2, 4, 8])
def test_a_reduced_image_has_a_pixel_for_each_square_of_pixels(
    tmp_path: Path, size: tuple[int, int], step: int
) -> None:
    image = open_reducible(write_jpeg(tmp_path / "a.jpg", dotted(size)))
    assert image is not None
    assert image.shape == (*size, 3)
    found = image.reduced(step)
    assert found.shape == (-(-size[0] // step), -(-size[1] // step), 3)
    # Pixel k stands for pixels step * k to step * k + step - 1, so that its center is theirs.
    np.testing.assert_allclose(dots_of(found) * step + (step - 1) / 2, sorted(DOTS), atol=step / 12)
    blocks = cv2.resize(
        dotted(size)[: size[0] // step * step, : size[1] // step * step],
        None,
        fx=1 / step,
        fy=1 / step,
        interpolation=cv2.INTER_AREA,
    )
    whole = found[: size[0] // step, : size[1] // step].astype(int)
    assert np.abs(whole - blocks).mean() < 1.5
    np.testing.assert_array_equal(np.asarray(image), read_image(image.path))
    np.testing.assert_array_equal(image[3:9, 5:7], read_image(image.path)[3:9, 5:7])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("factor", [0.5, 0.4, 0.27, 0.2, 0.125])
@pytest.mark.parametrize(("angle", "flip"), [(0.0, False), (0.0, True), (7.0, False), (-9.0, True)])
def test_points_lie_where_they_lie_when_all_is_decoded(
    tmp_path: Path, size: tuple[int, int], factor: float, angle: float, flip: bool
) -> None:
    image = open_reducible(write_jpeg(tmp_path / "a.jpg", dotted(size)))
    assert image is not None
    label = (dotted(size)[..., 0] > 100).astype(np.uint8)
    scaled = round(size[0] * factor), round(size[1] * factor)
    options: dict[str, Any] = {"scaled": scaled, "crop": scaled, "angle": angle, "flip": flip, "fill": (20,)}
    expected, expected_label = warp(read_image(image.path), label, **options)
    found, found_label = warp(image, label, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found_label, expected_label)
    np.testing.assert_allclose(dots_of(found), dots_of(expected), atol=0.1)
    assert np.abs(found.astype(int) - expected).mean() < 2
    again, _ = warp(image, label, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(again, found)


def test_an_image_that_shrinks_less_is_decoded_whole(tmp_path: Path) -> None:
    image = open_reducible(write_jpeg(tmp_path / "a.jpg", dotted((480, 640))))
    assert image is not None
    label = np.zeros((480, 640), np.uint8)
    for scaled in ((480, 640), (280, 360), (600, 800), (200, 640)):
        options: dict[str, Any] = {"scaled": scaled, "crop": (64, 64), "offset": (3, 5)}
        expected, _ = warp(read_image(image.path), label, **options)
        found, _ = warp(image, label, **options)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)


def test_a_file_is_read_once_whatever_is_decoded_of_it(tmp_path: Path) -> None:
    path = write_jpeg(tmp_path / "a.jpg", dotted((64, 96)))
    whole = read_image(path)
    image = open_reducible(path)
    assert image is not None
    path.unlink()
    np.testing.assert_array_equal(np.asarray(image), whole)
    np.testing.assert_array_equal(image[3:9, 5:7], whole[3:9, 5:7])
    assert image.reduced(2).shape == (32, 48, 3)


def test_other_files_are_read_as_ever(tmp_path: Path) -> None:
    picture = dotted((480, 640))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    Image.fromarray(picture).save(tmp_path / "a.png")
    assert open_reducible(tmp_path / "a.png") is None
    assert open_reducible(write_jpeg(tmp_path / "turned.jpg", picture, exif=exif)) is None
    Image.fromarray(picture).save(tmp_path / "really_png.jpg", format="PNG")
    assert open_reducible(tmp_path / "really_png.jpg") is None
    path = write_jpeg(tmp_path / "cut.jpg", picture)
    path.write_bytes(path.read_bytes()[:-300])
    assert open_reducible(path) is None  # whoever reads it says why
    with pytest.raises(DataError) as caught:
        ReducibleImage(path, b"nothing", (480, 640)).reduced(2)
    assert caught.value.details[0].fault is Fault.DAMAGED_FILE
    gray = tmp_path / "gray.jpg"
    Image.fromarray(picture[..., 0]).save(gray, quality=95)
    found = open_reducible(gray)
    assert found is not None
    assert found.reduced(2).shape == (240, 320, 3)


def folder(root: Path, **options: Any) -> Folder:
    return Folder(data_dir=root, split="train", classes=NAMES, **options)


def make(root: Path, count: int = 6) -> Path:
    for number in range(count):
        picture = dotted((480, 640))
        write_jpeg(root / "images" / "train" / f"{number}.jpg", np.roll(picture, 5 * number, axis=1))
        mask = np.roll((picture[..., 0] > 100).astype(np.uint8), 5 * number, axis=1)
        (root / "masks" / "train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(root / "masks" / "train" / f"{number}.png")
    return root


def batches(root: Path, *, reduced: bool | None, workers: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    options = ChainOptions(
        augment=True, crop_size=64, base_size=220, scale=ScaleOptions(range=(0.8, 1.2)), reduced_jpeg=reduced
    )
    view = DatasetView(folder(root), build_chain(options, (0,), where="args"), seed=1)
    loader = Loader(view, 2, training=True, num_workers=workers, size=(64, 64))
    return [(batch.images.numpy().copy(), batch.labels.numpy().copy()) for batch in loader.batches(1)]


def test_training_takes_the_same_crops_of_about_the_same_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make(tmp_path / "data")
    whole, reduced = batches(root, reduced=None), batches(root, reduced=True)
    parallel = batches(root, reduced=True, workers=1)
    for (image, label), (other, other_label), (third, _) in zip(whole, reduced, parallel, strict=True):
        np.testing.assert_array_equal(label, other_label)
        assert (image != other).any()
        assert np.abs(image.astype(int) - other).mean() < 2
        np.testing.assert_array_equal(other, third)

    def never(*_: object) -> None:
        raise AssertionError("less was decoded though nobody asked for it")

    monkeypatch.setattr(ReducibleImage, "__init__", never)
    for (image, _), (other, _) in zip(whole, batches(root, reduced=None), strict=True):
        np.testing.assert_array_equal(image, other)


def test_a_dataset_that_makes_its_images_itself_goes_on_to_do_so(tmp_path: Path) -> None:
    class Own(Folder):
        def read_image(self, index: int, label_shape: tuple[int, ...] | None = None) -> np.ndarray:
            return 255 - super().read_image(index, label_shape)

    dataset = Own(data_dir=make(tmp_path / "data", 1), split="train", classes=NAMES)
    transform = Chain(crop=(120, 160), scale=ScaleOptions(range=(0.25, 0.25)), reduces=True)
    assert DatasetView(dataset, transform)[0, 0].image.max() > 200  # the ground is bright


def test_it_is_refused_where_it_has_no_effect(tmp_path: Path) -> None:
    args = {"data_dir": str(tmp_path), "split": "train", "classes": list(NAMES), "batch_size": 2, "reduced_jpeg": True}
    for more, expected in (
        ({}, 'args.reduced_jpeg: has no effect. Set "augment": true'),
        ({"augment": True, "crop_size": 64, "cache": "ram"}, "args.reduced_jpeg: has no effect with a cache"),
        ({"augment": True, "crop_size": 64}, None),
    ):
        problems: list[str] = []
        check_loader({"type": "Folder", "args": {**args, **more}}, where="train_loader", problems=problems)
        assert len(problems) == (expected is not None)
        assert expected is None or expected in problems[0]
