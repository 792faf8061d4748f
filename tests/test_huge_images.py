"""Images without limits: predicted a band at a time, as if they had been predicted whole."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine import huge_images
from engine.huge_images import predict_in_bands, stripes, windows_of
from engine.prediction_files import Job, empty_pixels
from inference import load
from tests.conftest import ROOT, Answer
from utils import images, rasters
from utils.classes import IGNORE, ClassTable
from utils.images import read_label
from utils.outputs import SegOutput
from utils.predict import Predictor
from utils.raster_writers import write_png
from utils.rasters import ArrayRaster, GdalRaster, ModelRaster, TiffRaster, open_raster
from utils.tta import TestTimeAugmentation, side_weights, sliding, window_starts

tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra; requirements-extra.txt has it")
rasterio = pytest.importorskip("rasterio", reason="rasterio is an extra; requirements-extra.txt has it")

TINY = ("--import", "tests.tiny")
CLASSES = ClassTable(("a", "b", "c", "d"), ((1, 2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12)), ((0,), (1,), (2,), (3,)))
GRAY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


class PerPixel(torch.nn.Module):
    """A network that looks at each pixel alone, so that no window could change anything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(0)))

    def forward(self, raw: torch.Tensor) -> SegOutput:
        return SegOutput(torch.nn.functional.conv2d(raw.float() / 128 - 1, self.weight))


def predictor_of(**options: Any) -> Predictor:
    tta = TestTimeAugmentation(mode="sliding", **options)
    return Predictor(PerPixel(), CLASSES, {"arch": {"args": {}}}, tta=tta)


def noise(size: tuple[int, int], channels: int = 3) -> np.ndarray:
    return np.random.default_rng(size[0]).integers(0, 255, (*size, channels), dtype=np.uint8)


@pytest.mark.parametrize("size", [(200, 333), (64, 64), (20, 500), (500, 20), (1, 1)])
@pytest.mark.parametrize("options", [{}, {"batch_size": 3}, {"flip": True}, {"blend": "gaussian"}, {"overlap": 0.0}])
@pytest.mark.parametrize("budget", [2**28, 1])
def test_bands_of_a_per_pixel_network_are_its_prediction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], options: dict[str, Any], budget: int
) -> None:
    monkeypatch.setattr(huge_images, "BUDGET", budget)
    predictor, image = predictor_of(window=(64, 96), **options), noise(size)
    raster, windows = ModelRaster(ArrayRaster(image), 3, tmp_path), []
    files = {"index": tmp_path / "x.png"}
    predict_in_bands(predictor, raster, files, {"index": GRAY}, source=tmp_path, progress=windows.append)
    expected = predictor_of(window=(9999, 9999)).predict_image(image)
    assert np.array_equal(read_label(tmp_path / "x.png"), expected)
    assert sum(windows) == windows_of(size, predictor)
    assert list(tmp_path.iterdir()) == [tmp_path / "x.png"]


def test_stripes_cover_the_columns_and_no_band_takes_more_than_the_budget() -> None:
    for width, classes in ((30_000, 19), (30_000, 150), (700, 150), (10, 2)):
        window = 512, min(512, width)
        found = stripes(width, window, 1 / 3, classes)
        assert [each.left for each in found] == [0, *(each.right for each in found[:-1])]
        assert found[-1].right == width
        for each in found:
            assert 4 * classes * 512 * (each.right - each.left) <= max(huge_images.BUDGET, 4 * classes * 512 * 512)
            assert each.windows[0] <= each.left
            assert each.windows[-1] + window[1] >= each.right
            assert set(each.windows) <= set(window_starts(width, window[1], 1 / 3))


@pytest.mark.parametrize("blend", ["uniform", "linear", "gaussian"])
def test_bands_are_the_sliding_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished_run: Path, blend: str
) -> None:
    monkeypatch.setattr(huge_images, "BUDGET", 1)
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    predictor.tta = TestTimeAugmentation(mode="sliding", window=(64, 64), blend=blend)
    image = noise((150, 190))
    raster = ModelRaster(ArrayRaster(image), 3, tmp_path)
    predict_in_bands(predictor, raster, {"index": tmp_path / "x.png"}, {"index": GRAY}, source=tmp_path)
    assert (read_label(tmp_path / "x.png") == predictor.predict_image(image)).mean() > 0.9995


def test_weights_fall_towards_the_border_of_a_window_and_never_to_nothing() -> None:
    for length in (1, 2, 7, 64):
        assert torch.equal(side_weights(length, "uniform"), torch.ones(length))
        for blend in ("linear", "gaussian"):
            weights = side_weights(length, blend)
            assert weights.min() > 0
            torch.testing.assert_close(weights, weights.flip(0))
            assert bool((weights.diff()[: (length - 1) // 2] > 0).all())


@pytest.mark.parametrize("blend", ["linear", "gaussian"])
def test_no_window_border_can_be_seen(blend: str) -> None:
    def tilted(raw: torch.Tensor) -> torch.Tensor:
        """Logits that depend on the place in the window, as those of networks do near its border."""
        height, width = raw.shape[-2:]
        rows, columns = torch.linspace(-1, 1, height), torch.linspace(-1, 1, width)
        smooth = torch.nn.functional.avg_pool2d(raw.float(), 15, stride=1, padding=7)
        return smooth[:, :1] / 16 + rows[:, None] ** 2 + columns**2

    raw = torch.from_numpy(noise((300, 400))).permute(2, 0, 1)[None]
    found = sliding(tilted, raw, window=(96, 96), blend=blend)[0, 0]
    borders = window_starts(400, 96, 1 / 3)[1:]
    steps = found.diff(dim=1).abs().mean(dim=0)
    inside = np.delete(steps.numpy(), [each - 1 for each in borders])
    assert steps[[each - 1 for each in borders]].max() <= np.quantile(inside, 0.999)
    plain = sliding(tilted, raw, window=(96, 96))[0, 0].diff(dim=1).abs().mean(dim=0)
    assert plain[[each - 1 for each in borders]].max() > np.quantile(inside, 0.999)  # which is what blending is for


# ------------------------------------------------------------------------------------------------------ reading


FORMS = {
    "strips": {},
    "tiles": {"tile": (32, 48)},
    "deflate": {"tile": (16, 16), "compression": "zlib"},
    "planes": {"planarconfig": "separate", "rowsperstrip": 7},
    "planes in tiles": {"planarconfig": "separate", "tile": (32, 16), "compression": "zlib"},
    "one strip": {"rowsperstrip": 1000},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("reader", [TiffRaster, GdalRaster])
def test_parts_of_a_tiff_are_those_of_the_whole(tmp_path: Path, form: str, reader: Callable[[Path], Any]) -> None:
    values = noise((101, 77))
    path = tmp_path / "x.tif"
    stored = np.moveaxis(values, -1, 0) if "planarconfig" in FORMS[form] else values
    tifffile.imwrite(path, stored, photometric="rgb", **FORMS[form])
    raster = reader(path)
    assert (raster.size, raster.channels) == ((101, 77), 3)
    for rows, columns in (((0, 101), (0, 77)), ((0, 1), (0, 1)), ((31, 66), (15, 50)), ((100, 101), (76, 77))):
        assert np.array_equal(raster.read(rows, columns), values[slice(*rows), slice(*columns)])


def test_values_are_those_that_whole_images_have(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65535, (20, 30, 3), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "deep.tif", deep, photometric="rgb")
    values, _ = open_raster(tmp_path / "deep.tif", 3).read((0, 20), (0, 30))
    assert np.abs(values.astype(float) - deep / 257).max() <= 0.5 + 1e-3
    tifffile.imwrite(tmp_path / "gray.tif", deep[..., 0].astype(np.uint8))
    values, _ = open_raster(tmp_path / "gray.tif", 3).read((0, 20), (0, 30))
    assert (values == deep[..., :1].astype(np.uint8)).all()
    alpha = noise((20, 30), 4)
    alpha[:5, ..., 3], alpha[5:, ..., 3] = 0, 255
    tifffile.imwrite(tmp_path / "alpha.tif", alpha, photometric="rgb", extrasamples=["unassalpha"])
    values, empty = open_raster(tmp_path / "alpha.tif", 3).read((0, 20), (0, 30))
    assert np.array_equal(values, alpha[..., :3])
    assert np.array_equal(empty, alpha[..., 3] == 0)


@pytest.mark.parametrize("reader", [TiffRaster, GdalRaster])
def test_a_fourth_band_that_is_no_alpha_makes_nothing_void(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    path, values = tmp_path / "x.tif", noise((20, 30), 4)
    values[:5, ..., 3] = 0
    for kind, void in (("unspecified", False), ("unassalpha", True)):
        tifffile.imwrite(path, values, photometric="rgb", extrasamples=[kind])
        found, empty = ModelRaster(reader(path), 3, path).read((0, 20), (0, 30))
        assert np.array_equal(found, values[..., :3])
        assert np.array_equal(empty, (values[..., 3] == 0) & void)


def test_a_png_of_any_size_is_written_in_bands(tmp_path: Path) -> None:
    labels = np.random.default_rng(0).integers(0, 256, (101, 33), dtype=np.uint8)
    write_png(tmp_path / "x.png", (101, 33), iter([labels[:40], labels[40:41], labels[41:]]), GRAY)
    assert np.array_equal(read_label(tmp_path / "x.png"), labels)
    with Image.open(tmp_path / "x.png") as file:
        assert np.array_equal(np.asarray(file), labels)


# ----------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make images of more than 5,000 pixels huge."""
    monkeypatch.setattr(images, "MAX_PIXELS", 5_000)


@pytest.mark.usefixtures("small_limit")
def test_images_above_the_limit_are_predicted_in_bands(
    finished_run: Path, inference_command: Callable[..., Answer], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    picture = noise((100, 130))
    for name in ("x.png", "y.jpg", "z.tif", "small.png"):
        Image.fromarray(picture[:40, :50] if name == "small.png" else picture).save(tmp_path / "in" / name)
    flags = ["--window", "64", "64", "--blend", "uniform", "--save", "color,index", "-mo", "sliding"]
    answer = inference_command(
        "-m", finished_run / "last.pth", "-i", tmp_path / "in", "-o", tmp_path / "out", *TINY, *flags
    )
    assert answer.status == 0, answer.err
    assert "4 of 4 images predicted" in answer.out
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    predictor.tta = TestTimeAugmentation(mode="sliding", window=(64, 64))
    expected = predictor.predict_image(picture)
    for name in ("x_index.png", "z_index.png", "x_color.png"):
        assert (np.asarray(Image.open(tmp_path / "out" / name)) == expected).mean() > 0.9995
    answer = inference_command("-m", finished_run / "last.pth", "-i", tmp_path / "in" / "x.png", "-o", tmp_path, *TINY)
    assert "x.png: 130x100 pixels, predicted in sliding windows of 32x32" in answer.out  # of training's crop


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--save", "overlay"], "is predicted in bands, which --save overlay has no form for. Use index."),
        (["--save", "index,probabilities"], "is predicted in bands, which --save probabilities has no form for."),
    ],
)
def test_what_bands_cannot_do_is_said_and_costs_no_other_image(
    finished_run: Path, inference_command: Callable[..., Answer], tmp_path: Path, flags: list[str], words: str
) -> None:
    Image.fromarray(noise((100, 130))).save(tmp_path / "x.png")
    Image.fromarray(noise((10, 13))).save(tmp_path / "y.png")
    answer = inference_command("-m", finished_run / "last.pth", "-i", tmp_path, "-o", tmp_path / "out", *TINY, *flags)
    assert answer.status == 3
    assert words in answer.err
    assert "1 of 2 images predicted" in answer.out


@pytest.mark.parametrize("limit", [images.MAX_PIXELS, 5_000])
@pytest.mark.parametrize("nodata", [7, None])
def test_a_geotiff_keeps_its_place_and_its_pixels_without_data_are_void(
    finished_run: Path,
    inference_command: Callable[..., Answer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    nodata: int | None,
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", limit)
    picture = np.maximum(noise((100, 130)), 8)
    picture[10:60, 90:] = 7
    profile = {"driver": "GTiff", "height": 100, "width": 130, "count": 3, "dtype": "uint8", "nodata": nodata}
    place = {"crs": "EPSG:32633", "transform": rasterio.transform.from_origin(500_000, 5_400_000, 0.5, 0.5)}
    with rasterio.open(tmp_path / "x.tif", "w", **profile, **place) as file:
        file.write(np.moveaxis(picture, -1, 0))
    answer = inference_command(
        "-m",
        finished_run / "last.pth",
        "-i",
        tmp_path / "x.tif",
        "-o",
        tmp_path / "out",
        *TINY,
        "--save",
        "index,color",
    )
    assert answer.status == 0, answer.err
    for kind in ("index", "color"):
        with rasterio.open(tmp_path / "out" / f"x_{kind}.tif") as file:
            assert file.crs == rasterio.CRS.from_epsg(32633)
            assert file.transform == place["transform"]
            assert (file.nodata, file.shape, file.dtypes) == (IGNORE, (100, 130), ("uint8",))
            labels = file.read(1)
            assert file.colormap(1)[1][:3] == ((250, 200, 0) if kind == "color" else (1, 1, 1))
        empty = np.zeros((100, 130), bool)
        empty[10:60, 90:] = nodata is not None
        assert np.array_equal(labels == IGNORE, empty)
    predictor = load(finished_run / "last.pth", device="cpu", modules=["tests.tiny"])
    if limit == 5_000:
        predictor.tta = TestTimeAugmentation(mode="sliding", window=(32, 32), blend="linear")
    expected = predictor.predict_image(picture)
    assert (labels == expected)[~empty].mean() > 0.9995


@pytest.mark.parametrize("length", [3, 6, 8, 40])
def test_a_tiff_that_ends_in_its_header_costs_no_other_image(
    finished_run: Path, inference_command: Callable[..., Answer], tmp_path: Path, length: int
) -> None:
    tifffile.imwrite(tmp_path / "x.tif", noise((40, 40)), photometric="rgb")
    (tmp_path / "x.tif").write_bytes((tmp_path / "x.tif").read_bytes()[:length])
    Image.fromarray(noise((40, 40))).save(tmp_path / "y.png")
    answer = inference_command("-m", finished_run / "last.pth", "-i", tmp_path, "-o", tmp_path / "out", *TINY)
    assert answer.status == 3, answer.err
    assert f"not predicted: {tmp_path / 'x.tif'}: " in answer.err
    assert "1 of 2 images predicted" in answer.out


def test_tiles_that_a_file_leaves_out_hold_no_data(tmp_path: Path) -> None:
    values = np.maximum(noise((32, 32))[..., 0], 8)
    tiles = [values[:16, :16], None, values[16:, :16], values[16:, 16:]]
    nodata = (rasters.NODATA_TAG, "s", None, "7", True)
    options = {"shape": (32, 32), "dtype": np.uint8, "tile": (16, 16), "photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "x.tif", iter(tiles), extratags=[nodata], **options)
    _, empty = open_raster(tmp_path / "x.tif", 3).read((3, 32), (5, 32))
    expected = np.zeros((32, 32), bool)
    expected[:16, 16:] = True
    assert np.array_equal(empty, expected[3:, 5:])


@pytest.mark.parametrize("reader", [TiffRaster, GdalRaster])
def test_values_that_stand_for_colors_become_those_that_whole_images_have(
    tmp_path: Path, reader: Callable[[Path], Any]
) -> None:
    path, values = tmp_path / "x.tif", noise((20, 30))[..., 0]
    colors = noise((3, 256))[..., 0].astype(np.uint16) * 257  # 8-bit colors, as writers store them
    tifffile.imwrite(path, values, photometric="palette", colormap=colors)
    found, _ = ModelRaster(reader(path), 3, path).read((0, 20), (0, 30))
    assert np.array_equal(found, images.read_image(path))


def test_inverted_gray_is_turned_and_inks_are_refused(tmp_path: Path) -> None:
    path, values = tmp_path / "x.tif", noise((20, 30), 4)
    tifffile.imwrite(path, values[..., 0], photometric="miniswhite")
    found, _ = open_raster(path, 3).read((0, 20), (0, 30))
    assert np.array_equal(found, images.read_image(path))
    tifffile.imwrite(path, values, photometric="separated")
    with pytest.raises(images.DataError, match=r"its colors are stored as SEPARATED\. Convert it to RGB\."):
        open_raster(path, 3)


def test_pixels_without_data_are_void_where_only_logits_are_too_large(
    finished_run: Path, inference_command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.prediction.MOST_SUMS", 1)
    picture = np.maximum(noise((50, 70)), 8)
    picture[10:30, 40:] = 7
    place = (33550, "d", 3, (1.0, 1.0, 0.0), True)
    nodata = (rasters.NODATA_TAG, "s", None, "7", True)
    tifffile.imwrite(tmp_path / "x.tif", picture, photometric="rgb", extratags=[place, nodata])
    flags = ["-o", tmp_path / "out", "--save", "index", "--mode", "sliding", "--window", "32", "32", *TINY]
    answer = inference_command("-m", finished_run / "last.pth", "-i", tmp_path / "x.tif", *flags)
    assert answer.status == 0, answer.err
    labels = tifffile.imread(tmp_path / "out" / "x.tif")
    assert np.array_equal(labels == IGNORE, (picture == 7).all(axis=2))


def test_pixels_without_data_are_void_in_every_kind_of_file(tmp_path: Path) -> None:
    picture = np.maximum(noise((20, 30)), 8)
    picture[:5] = 7
    place = (33550, "d", 3, (1.0, 1.0, 0.0), True)
    nodata = (rasters.NODATA_TAG, "s", None, "7", True)
    tifffile.imwrite(tmp_path / "x.tif", picture, photometric="rgb", extratags=[place, nodata])
    for kind in ("overlay", "coco", "index"):
        empty = empty_pixels(Job(tmp_path / "x.tif", {kind: tmp_path / "out"}), picture)
        assert empty is not None
        assert np.array_equal(empty, (picture == 7).all(axis=2))


def test_a_place_that_is_lost_without_tifffile_is_said_once(
    finished_run: Path, inference_command: Callable[..., Answer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("x.tif", "y.tif"):
        place = (33550, "d", 3, (1.0, 1.0, 0.0), True)
        tifffile.imwrite(tmp_path / name, noise((20, 30)), photometric="rgb", extratags=[place])
    flags = ("-m", finished_run / "last.pth", "-i", tmp_path, "-o", tmp_path / "out", "--save", "index", *TINY)
    assert "its place on the map is lost" not in inference_command(*flags).err
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "tifffile" else found(name))
    answer = inference_command(*flags)
    assert answer.status == 0, answer.err
    assert answer.err.count("its place on the map is lost") == 1
    assert (tmp_path / "out" / "y.png").is_file()


def test_bands_without_numbers_are_predicted_where_the_file_says_they_hold_no_data(tmp_path: Path) -> None:
    values = noise((20, 30), 4).astype(np.float32)
    values[:5] = np.nan
    predictor = Predictor(PerPixel(), CLASSES, {"arch": {"args": {"in_channels": 4}}})
    place = (33550, "d", 3, (1.0, 1.0, 0.0), True)
    nodata = (rasters.NODATA_TAG, "s", None, "nan", True)
    options = {"photometric": "minisblack", "planarconfig": "contig", "metadata": None}
    tifffile.imwrite(tmp_path / "x.tif", values, extratags=[place, nodata], **options)
    assert np.array_equal(predictor.read(tmp_path / "x.tif"), np.nan_to_num(values))
    empty = empty_pixels(Job(tmp_path / "x.tif", {"index": tmp_path / "out.tif"}), values)
    assert empty is not None
    assert np.array_equal(empty, np.isnan(values[..., 0]))
    tifffile.imwrite(tmp_path / "x.tif", values, extratags=[place], **options)
    with pytest.raises(images.DataError, match="no number at row 0, column 0"):
        predictor.read(tmp_path / "x.tif")


def test_a_tiff_that_nobody_can_decode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tifffile.imwrite(tmp_path / "x.tif", noise((40, 40)), photometric="rgb", compression="zlib")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "x.tif") as file:
        start = file.pages.first.dataoffsets[0]
    data[start : start + 40] = b"\xff" * 40
    (tmp_path / "x.tif").write_bytes(data)
    monkeypatch.setattr(rasters.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(images.DataError, match=r"x\.tif: cannot be read \("):
        open_raster(tmp_path / "x.tif", 3)


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(2)
from tests.test_huge_images import predictor_of, GRAY
from tests.test_huge_images import predict_in_bands, open_raster
folder, names = Path(sys.argv[1]), sys.argv[2:]
for name in names:
    raster = open_raster(folder / name, 3)
    predict_in_bands(predictor_of(window=(512, 512)), raster, {"index": folder / "out.tif"}, {"index": GRAY},
                     source=folder / name)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


def write_tiles(path: Path, side: int) -> None:
    """Write a tiled TIFF of a repeated pattern without holding it."""
    tile = np.random.default_rng(0).integers(0, 255, (512, 512, 3), dtype=np.uint8)
    count = (-(-side // 512)) ** 2
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        tiles = (tile for _ in range(count))
        options = {"tile": (512, 512), "photometric": "rgb", "compression": "zlib", "maxworkers": 1}
        writer.write(tiles, shape=(side, side, 3), dtype=np.uint8, **options)


@pytest.mark.parametrize(("side", "most"), [(6_000, 500), pytest.param(30_000, 1024, marks=[pytest.mark.slow])])
def test_memory_does_not_grow_with_the_image(tmp_path: Path, side: int, most: int) -> None:
    write_tiles(tmp_path / "small.tif", 600)
    write_tiles(tmp_path / "large.tif", side)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), "small.tif", "large.tif"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    print(f"{side}: {large - small} MiB beyond model, library and a small image ({small} MiB)")
    assert large - small <= most
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.shape == (side, side)
