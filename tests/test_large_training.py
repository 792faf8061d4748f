"""Crops of large TIFF files are read without the rest of the file, and are those of the whole image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from base.base_dataset import DatasetView
from dataloader.datasets.folder import Folder
from dataloader.transforms.chain import ChainOptions, build_chain
from utils import images, rasters
from utils.errors import DataError
from utils.images import write_label
from utils.rasters import PartlyRead, TiffRaster

tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra; requirements-extra.txt has it")

SIZE = (150, 200)
FILES = {
    "tiles": {"tile": (32, 48)},
    "strips": {"rowsperstrip": 7},
    "packed": {"tile": (64, 64), "compression": "zlib", "predictor": True},
    "planes": {"tile": (32, 32), "planarconfig": "separate"},
}


def write_pair(folder: Path, channels: int = 3, dtype: str = "uint8", **options: Any) -> None:
    rng = np.random.default_rng(channels)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    values = rng.integers(0, 255, (*SIZE, channels)).astype(dtype)
    photometric = "rgb" if channels in (3, 4) and dtype == "uint8" else "minisblack"
    if options.get("planarconfig") == "separate":
        values = np.moveaxis(values, -1, 0)
    else:
        options["planarconfig"] = "contig" if channels > 1 else None
    tifffile.imwrite(folder / "images" / "a.tif", values, photometric=photometric, **options)
    tifffile.imwrite(folder / "masks" / "a.tif", rng.integers(0, 3, SIZE, dtype=np.uint8), tile=(32, 32))


def view_of(folder: Path, channels: int = 3, **chain: Any) -> DatasetView:
    dataset = Folder(data_dir=folder, split="all", classes=("a", "b", "c"), channels=channels)
    chain = {"augment": True, "crop_size": 40, "color_jitter": channels == 3, "blur": channels == 3, **chain}
    return DatasetView(dataset, build_chain(ChainOptions(**chain), (0,), where="args"))


def test_what_only_others_can_decompress_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path)
    for name in ("images", "masks"):
        path = tmp_path / name / "a.tif"
        Image.open(path).save(path, compression="tiff_lzw")
    view = view_of(tmp_path)
    whole = view[0, 0]
    monkeypatch.setattr(rasters, "LARGE", 1000)
    monkeypatch.setattr(rasters, "_is_decodable", lambda tifffile, compression: False)
    assert isinstance(view.dataset.open(0).image, np.ndarray)
    assert np.array_equal(view[0, 0].image, whole.image)


@pytest.mark.parametrize("chain", [{}, {"scale": False, "rotate": False}, {"rare_crop": 1.0}, {"base_size": 90}])
@pytest.mark.parametrize("kind", FILES)
def test_crops_of_large_files_are_those_of_the_whole_image(
    tmp_path: Path, kind: str, chain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, **FILES[kind])
    view = view_of(tmp_path, **chain)
    whole = [view[epoch, 0] for epoch in range(6)]
    monkeypatch.setattr(rasters, "LARGE", 1000)
    assert isinstance(view.dataset.open(0).image, PartlyRead)
    for epoch, (image, label, _) in enumerate(whole):
        item = view[epoch, 0]
        assert np.array_equal(item.image, image)
        assert np.array_equal(item.label, label)


@pytest.mark.parametrize(("channels", "dtype"), [(1, "uint8"), (4, "uint8"), (6, "uint16"), (5, "float32")])
def test_other_bands_are_cut_likewise(
    tmp_path: Path, channels: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_pair(tmp_path, channels, dtype, tile=(32, 48))
    view = view_of(tmp_path, channels)
    whole = view[0, 0]
    monkeypatch.setattr(rasters, "LARGE", 1000)
    assert isinstance(view.dataset.open(0).image, PartlyRead)
    assert np.array_equal(view[0, 0].image, whole.image)
    assert np.array_equal(view.original(0).image, view.dataset.read(0).image)


def test_only_what_a_crop_shows_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, tile=(16, 16))
    monkeypatch.setattr(rasters, "LARGE", 1000)
    decoded = []
    read = TiffRaster.read

    def watch(self: TiffRaster, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        decoded.append((rows[1] - rows[0]) * (columns[1] - columns[0]))
        return read(self, rows, columns)

    monkeypatch.setattr(TiffRaster, "read", watch)
    view = view_of(tmp_path, crop_size=16, scale=False)
    assert view[0, 0].image.shape == (16, 16, 3)
    assert len(decoded) == 2
    assert max(decoded) < 40 * 40


def test_files_above_the_limit_of_pixels_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, tile=(32, 32))
    monkeypatch.setattr(images, "MAX_PIXELS", 20_000)
    view = view_of(tmp_path)
    with pytest.raises(DataError, match="Cut it into tiles"):
        view[0, 0]
    monkeypatch.setattr(rasters, "LARGE", 1000)
    assert view_of(tmp_path)[0, 0].image.shape == (40, 40, 3)
    assert view.label(0).shape == SIZE


def test_a_mask_of_another_kind_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, tile=(32, 32))
    (tmp_path / "masks" / "a.tif").unlink()
    label = np.random.default_rng(1).integers(0, 3, SIZE, dtype=np.uint8)
    write_label(tmp_path / "masks" / "a.png", label, np.zeros((256, 3), np.uint8))
    view = view_of(tmp_path)
    whole = view[0, 0]
    monkeypatch.setattr(rasters, "LARGE", 1000)
    assert isinstance(view.dataset.open(0).label, np.ndarray)
    assert np.array_equal(view[0, 0].image, whole.image)
    assert np.array_equal(view[0, 0].label, whole.label)


def test_what_is_wrong_is_said_with_its_place_in_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path, tile=(32, 32))
    label = np.zeros(SIZE, np.uint8)
    label[120, 150] = 9
    tifffile.imwrite(tmp_path / "masks" / "a.tif", label, tile=(32, 32))
    monkeypatch.setattr(rasters, "LARGE", 1000)
    cut = view_of(tmp_path).dataset.open(0).label
    assert cut[0:100, 0:200].max() == 0
    with pytest.raises(DataError, match="label value 9 at row 120, column 150"):
        cut[100:150, 100:200]
    tifffile.imwrite(tmp_path / "masks" / "a.tif", label[:100], tile=(32, 32))
    with pytest.raises(DataError, match=r"the image is 200x150 .*, its label 200x100"):
        view_of(tmp_path)[0, 0]
