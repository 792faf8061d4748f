"""Images of any size, read a few rows at a time."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from utils.errors import DataError, Fault, Problem
from utils.images import read_bands, read_image

MOST_PIXELS = 2**30  # of a file that cannot be read in parts: OpenCV's own limit
LARGE = 2**24  # pixels of a TIFF from which on a crop is read without the rest
TIFFS = (".tif", ".tiff")
COLORS = ("MINISBLACK", "MINISWHITE", "RGB", "PALETTE", "YCBCR")  # kinds of pixels of which RGB can be made

T = TypeVar("T")

ALPHAS = (1, 2)  # extra samples of TIFF that are an alpha channel; 0 may be anything, such as infrared

# Tags that say where a GeoTIFF's pixels lie (pixel scale, tie points, transformation, and the keys of its coordinate
# system): copied as they are, they mean the same for every file of the same size. Source: OGC GeoTIFF 1.1.
GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
NODATA_TAG = 42113  # GDAL's: the value of pixels that were never measured


class Raster(Protocol):
    """An image that is read in parts."""

    size: tuple[int, int]
    channels: int
    nodata: float | None
    palette: np.ndarray | None  # color of each value, (n, 3) uint8, where values stand for colors
    alpha: bool  # whether the last channel says where the image is: four may be RGB and infrared as well

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Read the values of some rows and columns, from the first of each to before the last: (h, w, channels)."""
        ...


class ArrayRaster:
    """An image that is in memory.

    Args:
        values: (H, W, C).
    """

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.size = values.shape[0], values.shape[1]
        self.channels = values.shape[2]
        self.nodata: float | None = None
        self.palette: np.ndarray | None = None
        self.alpha = self.channels == 4

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Read a part, see `Raster`."""
        return self.values[rows[0] : rows[1], columns[0] : columns[1]]


class TiffRaster:
    """A TIFF file, of which only the tiles or strips are decoded that are asked for.

    Args:
        path: The file.
        data: What it holds, where that is in memory.

    Raises:
        DataError: It cannot be read.
    """

    def __init__(self, path: Path, data: bytes | None = None) -> None:
        self.path = path
        tifffile = import_tifffile(path)
        try:
            self.file = tifffile.TiffFile(path if data is None else io.BytesIO(data))
            page = self.page = self.file.pages.first
            self.nodata = _nodata(page)
            self.planar = int(page.planarconfig) == 2  # bands one after the other
            self.tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
            self.size = (int(page.imagelength), int(page.imagewidth))
            self.channels = int(page.samplesperpixel)
            self.dtype = np.dtype(page.dtype)
            self.photometric = page.photometric.name
            self.lossy = page.compression.name in ("JPEG", "OJPEG")
            self.decodable = _is_decodable(tifffile, page.compression)
            self.alpha = bool(page.extrasamples) and page.extrasamples[-1] in ALPHAS
            self.orientation = int(page.tags["Orientation"].value) if "Orientation" in page.tags else 1
            self.across = -(-self.size[1] // self.tile[1])
            self.down = -(-self.size[0] // self.tile[0])
            self.palette = _palette(page)
        except Exception as error:  # whatever tifffile stumbles over in a damaged header
            raise _unreadable(path, error) from None

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Read a part, see `Raster`.

        Raises:
            DataError: It is damaged, or compressed in a way that nobody here can decode.
        """
        part = np.zeros((rows[1] - rows[0], columns[1] - columns[0], self.channels), self.page.dtype)
        nothing = np.array(self.page.nodata, part.dtype)  # 0 where no value stands for no data
        for plane in range(self.channels if self.planar else 1):
            shown = part[..., plane : plane + 1] if self.planar else part
            for down in range(rows[0] // self.tile[0], -(-rows[1] // self.tile[0])):
                for across in range(columns[0] // self.tile[1], -(-columns[1] // self.tile[1])):
                    segment = self._segment((plane * self.down + down) * self.across + across)
                    if segment is None:
                        segment = np.broadcast_to(nothing, (*self.tile, shown.shape[2]))
                    offset = down * self.tile[0] - rows[0], across * self.tile[1] - columns[0]
                    _paste(shown, segment, offset)
        return part

    @property
    def end(self) -> int:
        """Where the last tile or strip ends in the file."""
        page = self.page
        return max((at + count for at, count in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)

    def _segment(self, index: int) -> np.ndarray | None:
        """Decode a tile or strip, (h, w, C); None for one that the file leaves out because it is empty."""
        page, handle = self.page, self.file.filehandle
        try:
            count = page.databytecounts[index]
            if not count:
                return None
            handle.seek(page.dataoffsets[index])
            options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
            segment, _, _ = page.decode(handle.read(count), index, **options)
        except Exception as error:  # whatever a codec stumbles over, or that there is none
            raise _unreadable(self.path, error) from None
        return None if segment is None else np.asarray(segment)[0]


def _is_decodable(tifffile: Any, compression: int) -> bool:
    """Whether tifffile can undo a compression; some need imagecodecs, and others than tifffile know them without."""
    try:
        return tifffile.TIFF.DECOMPRESSORS[compression] is not None
    except KeyError:
        return False


class GdalRaster:
    """A TIFF file that rasterio reads: it knows all compressions.

    Args:
        path: The file.

    Raises:
        DataError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        import rasterio

        self.path = path
        self.env = rasterio.Env(GDAL_CACHEMAX=32)  # MiB; else a twentieth of the memory
        try:
            with self.env:
                self.file = rasterio.open(path)
        except rasterio.errors.RasterioError as error:
            raise _unreadable(path, error) from None
        self.size = int(self.file.height), int(self.file.width)
        self.channels = int(self.file.count)
        self.nodata = self.file.nodata
        self.palette: np.ndarray | None = None
        self.alpha = self.file.colorinterp[-1] == rasterio.enums.ColorInterp.alpha
        if self.file.colorinterp[0] == rasterio.enums.ColorInterp.palette:
            colors = self.file.colormap(1)
            self.palette = np.array([colors.get(value, (0, 0, 0))[:3] for value in range(256)], np.uint8)

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """Read a part, see `Raster`."""
        import rasterio

        try:
            with self.env:
                values = self.file.read(window=(rows, columns))
        except rasterio.errors.RasterioError as error:
            raise _unreadable(self.path, error) from None
        return np.moveaxis(values, 0, -1)


class ModelRaster:
    """A raster with the channels and the type of values that a model takes, and where it holds no data.

    Args:
        raster: The image.
        channels: That the model takes.
        path: Its file, for errors.
        empty: Where it is known to hold no data, (H, W) bool, besides what `raster` says.

    Raises:
        DataError: It has other channels or values.
    """

    def __init__(self, raster: Raster, channels: int, path: Path, empty: np.ndarray | None = None) -> None:
        self.raster = raster
        self.empty = empty
        self.size = raster.size
        self.channels = channels
        if not (raster.channels == channels or (channels == 3 and raster.channels in (1, 4))):
            what = f"{raster.channels} channels, expected {channels}"
            raise DataError(Problem(Fault.OTHER, path, what, "Choose bands with gdal_translate -b"))
        first = raster.read((0, 1), (0, 1))
        if channels == 3 and first.dtype not in (np.uint8, np.uint16):
            what = f"values of type {first.dtype}, expected 8 or 16 bits"
            raise DataError(Problem(Fault.OTHER, path, what, "Convert it with gdal_translate -ot Byte -scale"))

    def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Read the values (h, w, channels) of some rows and columns, and where there is no data, (h, w) bool."""
        values = self.raster.read(rows, columns)
        colors = values[..., : self.channels]
        empty = np.zeros(values.shape[:2], bool)
        if self.empty is not None:
            empty |= self.empty[rows[0] : rows[1], columns[0] : columns[1]]
        if self.raster.nodata is not None:
            alike = np.isnan(colors) if np.isnan(self.raster.nodata) else colors == self.raster.nodata
            empty |= alike.all(axis=2)
        if self.raster.alpha and values.shape[2] > self.channels:
            empty |= values[..., 3] == 0
        if self.channels == 3:
            if self.raster.palette is not None:
                colors = self.raster.palette[colors[..., 0]]
            if colors.dtype == np.uint16:  # as images of 16 bits are everywhere here
                colors = np.rint(colors * np.float32(255 / 65535)).astype(np.uint8)
            return (np.repeat(colors, 3, axis=2) if colors.shape[2] == 1 else colors), empty
        if colors.dtype not in (np.uint8, np.uint16, np.float32):
            colors = colors.astype(np.float32)
        return (np.nan_to_num(colors) if colors.dtype == np.float32 else colors), empty


def open_raster(path: Path, channels: int) -> ModelRaster:
    """Open an image for a model of so many channels: a TIFF in parts, other formats decoded whole.

    Raises:
        DataError: It cannot be read, or has other channels.
    """
    raster: Raster
    if path.suffix.lower() in TIFFS:
        raster = decoder_of(TiffRaster(path), channels)
    elif channels == 3 and path.suffix.lower() != ".npy":
        raster = ArrayRaster(read_image(path, most=MOST_PIXELS))
    else:
        raster = ArrayRaster(read_bands(path, channels))
    return ModelRaster(raster, channels, path)


def decoder_of(tiff: TiffRaster, channels: int) -> Raster:
    """Return what reads a TIFF for a model of so many channels: itself, or GDAL where it lacks the compression.

    Raises:
        DataError: Neither can.
    """
    try:
        tiff.read((0, 1), (0, 1))
    except DataError:  # a compression that tifffile knows only with imagecodecs
        if importlib.util.find_spec("rasterio") is None or not tiff.path.is_file():
            raise
        return GdalRaster(tiff.path)
    if channels == 3 and tiff.photometric not in COLORS:
        what = f"its colors are stored as {tiff.photometric}"
        raise DataError(Problem(Fault.OTHER, tiff.path, what, "Convert it to RGB"))
    return tiff


class PartlyRead:
    """An array whose values are read from a file when rows and columns of it are asked for: ``array[2:5, 7:9]``.

    Args:
        shape: (H, W) or (H, W, C).
        dtype: Of the values.
        read: Gives some rows and columns, from the first of each to before the last.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: np.dtype,
        read: Callable[[tuple[int, int], tuple[int, int]], np.ndarray],
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self._read = read

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        top, bottom, _ = window[0].indices(self.shape[0])
        left, right, _ = window[1].indices(self.shape[1])
        return self._read((top, bottom), (left, right))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as numpy asks for it."""
        return np.asarray(self[:, :], dtype)


def open_large_image(path: Path, channels: int) -> PartlyRead | None:
    """Open a large TIFF, (H, W, channels), to read crops of it; None for all other files, which are read whole.

    Its values are those that `read_image` and `read_bands` give.

    Raises:
        DataError: It cannot be read, or has other channels.
    """
    raster = _open_large(path)
    if raster is None:
        return None
    colors = channels == 3 and raster.photometric == "RGB" and raster.dtype == np.uint8 and raster.channels in (3, 4)
    bands = channels != 3 and raster.channels == channels and raster.dtype in (np.uint8, np.uint16, np.float32)
    if not (colors or bands):
        return None

    def read(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        values = np.ascontiguousarray(raster.read(rows, columns)[..., :channels])
        if values.dtype == np.float32 and not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0][:2]
            what = f"no number at row {row + rows[0]}, column {column + columns[0]}"
            raise DataError(Problem(Fault.OTHER, path, what, "Write one, such as 0, and make the label void there"))
        return values

    return PartlyRead((*raster.size, channels), raster.dtype, read)


def open_large_label(path: Path) -> PartlyRead | None:
    """Open a large TIFF of label values, (H, W) uint8, to read crops of it; None for all other files.

    Raises:
        DataError: It cannot be read.
    """
    raster = _open_large(path)
    if raster is None or raster.channels != 1 or raster.dtype != np.uint8:
        return None
    if raster.photometric not in ("MINISBLACK", "PALETTE") or raster.lossy:
        return None
    return PartlyRead(raster.size, raster.dtype, lambda rows, columns: raster.read(rows, columns)[..., 0])


def _open_large(path: Path) -> TiffRaster | None:
    size = size_of_tiff(path)
    if size is None or size[0] * size[1] < LARGE:
        return None
    raster = TiffRaster(path)
    return raster if raster.decodable and raster.orientation == 1 else None


def size_of_tiff(path: Path) -> tuple[int, int] | None:
    """Read height and width of a TIFF from its header; None for other files, or where tifffile is not installed."""
    return _look_into(path, lambda page: (int(page.imagelength), int(page.imagewidth)))


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF that says where on Earth it lies, and tifffile is there to keep that."""
    return bool(_look_into(path, lambda page: any(tag in page.tags for tag in GEO_TAGS)))


def loses_place(path: Path) -> bool:
    """Whether a file is a TIFF that says where on Earth it lies, and tifffile is missing that would keep it."""
    if path.suffix.lower() not in TIFFS or importlib.util.find_spec("tifffile") is not None:
        return False
    try:
        with Image.open(path) as image:
            return any(tag in getattr(image, "tag_v2", {}) for tag in GEO_TAGS)
    except Exception:  # whatever Pillow stumbles over in a damaged header; reading it will tell
        return False


def declares_nodata(path: Path) -> bool:
    """Whether a file is a TIFF that says which value its pixels without data have."""
    return bool(_look_into(path, lambda page: NODATA_TAG in page.tags))


def _look_into(path: Path, look: Callable[[Any], T]) -> T | None:
    """Return what `look` finds in the first page of a TIFF; None for other and damaged files, or without tifffile."""
    if path.suffix.lower() not in TIFFS or importlib.util.find_spec("tifffile") is None or not path.is_file():
        return None
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            return look(file.pages.first)
    except Exception:  # whatever tifffile stumbles over in a damaged header; reading it will tell
        return None


def import_tifffile(path: Path) -> Any:
    """Import tifffile.

    Raises:
        DataError: It is not installed.
    """
    try:
        import tifffile
    except ImportError:
        what = "large and georeferenced TIFF files, and those of separate bands, need tifffile"
        raise DataError(Problem(Fault.MISSING_PACKAGE, path, what, "`pip install tifffile`")) from None
    return tifffile


def _paste(part: np.ndarray, segment: np.ndarray, offset: Sequence[int]) -> None:
    """Copy a segment (h, w, C) into `part` (H, W, C), where it begins at `offset`; what lies outside is left out."""
    first = [max(0, each) for each in offset]
    last = [min(part.shape[axis], offset[axis] + segment.shape[axis]) for axis in (0, 1)]
    if first[0] < last[0] and first[1] < last[1]:
        part[first[0] : last[0], first[1] : last[1]] = segment[
            first[0] - offset[0] : last[0] - offset[0], first[1] - offset[1] : last[1] - offset[1]
        ]


def _nodata(page: Any) -> float | None:
    """Read which value stands for no data."""
    tag = page.tags.get(NODATA_TAG)
    try:
        return None if tag is None else float(str(tag.value).strip("\0 "))
    except ValueError:
        return None


def _palette(page: Any) -> np.ndarray | None:
    """Return the color of each value, (n, 3) uint8, of a page of 8 bits whose values are no brightness, else None."""
    if np.dtype(page.dtype) != np.uint8 or page.samplesperpixel != 1:
        return None
    if page.photometric.name == "MINISWHITE":
        return np.repeat(np.arange(255, -1, -1, dtype=np.uint8)[:, None], 3, axis=1)
    return None if page.colormap is None else np.asarray(page.colormap.T >> 8, np.uint8)


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    fix = "Get the file again; for other compressions `pip install imagecodecs` or rasterio"
    return DataError(Problem(Fault.OTHER, path, f"cannot be read ({reason})", fix))
