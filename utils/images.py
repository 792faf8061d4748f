"""Read and write image and label files, one subject: every command reads them here, so that none sees other pixels.

A file that is no image, was cut short, or means something else than it seems to (colors instead of label values,
lossy labels, a turned camera) raises a `DataError` that names it. Nothing is guessed.
"""

from __future__ import annotations

import io
import re
import shlex
import stat
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, ClassVar, Literal

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from utils.errors import DataError, Fault, Problem
from utils.shards import is_packed, read_bytes

try:
    from kornia_rs.io import decode_image_png_u8  # two to ten times as fast as libpng
except ImportError:  # not built for this platform: OpenCV and Pillow read the same
    decode_image_png_u8 = None

TIFF_BITS, TIFF_PHOTOMETRIC = 258, 262  # numbers of tags
MAX_PIXELS = 2**27  # of one file: 11,585 squared; a header that declares more is an attack or a mistake

MOST_CHANNELS = 64  # of an image that networks take

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
ARRAYS = (".npy",)  # endings of images with other channels than three, which are no pictures

_PILLOWS_LIMIT = threading.Lock()

# What OpenCV decodes to the same colors as Pillow, several times as fast. It refuses damaged files of these formats,
# where Pillow lets one in fifteen flipped bits of a PNG pass.
_FAST_FORMATS = frozenset({"JPEG", "MPO", "PNG", "BMP", "WEBP"})
_FAST_MODES = frozenset({"RGB", "RGBA", "L", "LA", "P", "1"})
_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_image(path: Path, *, upright: bool = True, most: int | None = None) -> np.ndarray:
    """Read the image in `path` as (H, W, 3) uint8, RGB.

    Gray, palette, CMYK and 16-bit images are converted, 16-bit and floating values to the full range; an alpha
    channel is dropped.

    Args:
        path: The file.
        upright: Turn the image as its EXIF orientation says; otherwise pixels are as they are stored.
        most: Pixels that it may have; None for `MAX_PIXELS`.

    Raises:
        DataError: It cannot be read.
    """
    return _decode(path, _read_file(path), upright=upright, most=most)


def _decode(path: Path, data: bytes, *, upright: bool = True, most: int | None = None) -> np.ndarray:
    """Decode what `read_image` has read of `path`."""
    try:
        header = _open(path, data, most)
    except DataError as error:
        if not data.startswith(_TIFF_STARTS):
            raise
        return _read_bands_as_colors(path, data, upright, most, error)
    if header.format == "TIFF" and _is_misread(header):
        return _read_bands_as_colors(path, data, upright, most)
    if header.format not in _FAST_FORMATS or header.mode not in _FAST_MODES:
        return _convert(path, header, upright)
    image = None
    if _is_complete(header.format, data):
        if header.format == "PNG" and data[24:26] == b"\x08\2":
            image = _decode_png(path, data, "rgb")
        if image is None:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DataError(_damaged(path))
    try:
        return _turn(image, _orientation(header, data)) if upright else image
    except struct.error:  # what follows a PNG's pixels, which the decoder does not look at
        raise DataError(_damaged(path)) from None


def read_image_for(path: Path, label_shape: tuple[int, ...]) -> np.ndarray:
    """Read the upright image in `path`, (H, W, 3) uint8, which must be as large as its label.

    Whoever drew the label may have seen the image turned or not; only the sizes can tell.

    Args:
        path: The file.
        label_shape: (H, W) of the label.

    Raises:
        DataError: It cannot be read, or its size is not the label's.
    """
    image = read_image(path)
    if image.shape[:2] == label_shape[:2]:
        return image
    stored = read_image(path, upright=False).shape
    sizes = f"the image is {_size(image.shape)} (width x height), its label {_size(label_shape)}"
    if stored[:2] == label_shape[:2]:
        what = f"{sizes}, which fits only if the image's EXIF orientation is not applied"
        fix = "Remove that tag from the image (`exiftool -Orientation= FILE`), or turn the label"
        raise DataError(Problem(Fault.TURNED_IMAGE, path, what, fix))
    raise DataError(Problem(Fault.DIFFERENT_SIZES, path, sizes, "Give both the same size"))


class ReducibleImage:
    """A JPEG image, of which less is decoded where it is going to shrink; for others, the array of its pixels.

    Args:
        path: Where it is, for errors.
        data: What the file holds.
        size: Height and width.
    """

    FLAGS: ClassVar = {2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4, 8: cv2.IMREAD_REDUCED_COLOR_8}

    def __init__(self, path: Path, data: bytes, size: tuple[int, int]) -> None:
        self.path = path
        self.data = data
        self.shape = (*size, 3)
        self.dtype = np.dtype(np.uint8)

    def reduced(self, step: int) -> np.ndarray:
        """Decode it with each 2 x 2, 4 x 4 or 8 x 8 pixels as one, (H, W, 3) uint8, RGB; sides are rounded up.

        What JPEG stores of 8 x 8 pixels is turned into fewer, about their means.

        Raises:
            DataError: It is damaged.
        """
        image = cv2.imdecode(np.frombuffer(self.data, np.uint8), self.FLAGS[step] | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None or image.shape[:2] != (-(-self.shape[0] // step), -(-self.shape[1] // step)):
            raise DataError(_damaged(self.path))
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def __getitem__(self, window: tuple[slice, slice]) -> np.ndarray:
        return np.asarray(self)[window]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All of it, as numpy asks for it."""
        return np.asarray(_decode(self.path, self.data), dtype)


def open_reducible(path: Path) -> ReducibleImage | None:
    """Open an upright JPEG image without decoding it; None for all other files, and for damaged ones.

    Raises:
        DataError: It cannot be read at all.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return None
    data = _read_file(path)
    header = _open(path, data)
    is_usual = header.format == "JPEG" and header.mode in ("RGB", "L") and _is_complete("JPEG", data)
    if not is_usual or _orientation(header, data) != 1:
        return None
    return ReducibleImage(path, data, (header.height, header.width))


def read_bands(path: Path, channels: int, *, fill: bool = False) -> np.ndarray:
    """Read the image in `path` with its values as they are, (H, W, channels) uint8, uint16 or float32.

    From `.npy` files, TIFF files of any number of bands (those of more than one need the package tifffile), and other
    images whose channels are stored as they are. Integers of other types become float32.

    Args:
        path: The file.
        channels: How many it must have.
        fill: Read 0 where there is no number, for files that say which pixels hold no data.

    Raises:
        DataError: It cannot be read, has another number of channels, or holds what is no number.
    """
    data = _read_file(path)
    try:
        if path.suffix.lower() == ".npy":
            values = np.load(io.BytesIO(data), allow_pickle=False)
        elif path.suffix.lower() in (".tif", ".tiff"):
            values = _read_tiff(path, data)
        else:
            values = _read_plain(path, data)
    except DataError:
        raise
    except Exception:  # whatever a damaged file makes its reader stumble over
        raise DataError(_damaged(path)) from None
    if not isinstance(values, np.ndarray) or not values.size:  # an archive of several, or nothing
        raise DataError(_damaged(path))
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[2] != channels:
        what = f"an array of shape {'x'.join(map(str, values.shape))}, expected height x width x {channels}"
        fix = 'Say how many "channels" there are in the loader\'s args, or convert the file'
        raise DataError(Problem(Fault.OTHER, path, what, fix))
    if values.dtype not in (np.uint8, np.uint16, np.float32):
        if values.dtype.kind not in "biuf":
            what = f"holds {values.dtype}, expected numbers"
            raise DataError(Problem(Fault.OTHER, path, what, "Convert it to uint8, uint16 or float32"))
        values = values.astype(np.uint8 if values.dtype == bool else np.float32)
    if values.dtype == np.float32 and fill:
        values = np.nan_to_num(values)
    elif values.dtype == np.float32 and not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0][:2]
        what = f"no number at row {row}, column {column}"
        raise DataError(Problem(Fault.OTHER, path, what, "Write one, such as 0, and make the label void there"))
    return np.ascontiguousarray(values)


def _read_tiff(path: Path, data: bytes) -> np.ndarray:
    try:
        import tifffile
    except ImportError:
        header = _open(path, data)
        if header.mode in ("L", "I", "F") or header.mode.startswith("I;"):
            return np.asarray(header)
        what = "TIFF files of several bands need tifffile"
        raise DataError(Problem(Fault.MISSING_PACKAGE, path, what, "`pip install tifffile`")) from None
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series, page = file.series[0], file.pages.first
        if page.imagelength * page.imagewidth > MAX_PIXELS:
            raise DataError(_too_large(path, f"{page.imagewidth}x{page.imagelength} pixels, "))
        values = series.asarray()
        # Bands may be stored one after the other; the axes say where they are.
        axes = series.axes.replace("Q", "S").replace("I", "S").replace("C", "S")
        return np.moveaxis(values, axes.index("S"), -1) if values.ndim == 3 and "S" in axes else values


def _read_plain(path: Path, data: bytes) -> np.ndarray:
    header = _open(path, data)
    deep = header.format == "PNG" and data[24] == 16 and data[25] != 0
    if deep or not (header.mode in ("L", "LA", "RGB", "RGBA", "I", "F") or header.mode.startswith("I;")):
        what = "its channels cannot be read as they are"
        raise DataError(Problem(Fault.OTHER, path, what, "Convert it to .npy or TIFF"))
    return np.asarray(header)


def read_label(path: Path) -> np.ndarray:
    """Read the raw label values in `path`, (H, W) uint8: indices of a palette image, values of a gray one.

    Raises:
        DataError: It cannot be read, holds colors or values below 0 or above 255, or is stored with loss.
    """
    label = read_label_values(path)
    if label.dtype != np.uint8:
        row, column = np.argwhere((label < 0) | (label > 255))[0]
        what = f"label value {label[row, column]} at row {row}, column {column}"
        fix = "Labels are 8-bit here: convert the file to values from 0 to 255"
        raise DataError(Problem(Fault.WIDE_LABEL, path, what, fix))
    return label


def read_label_values(path: Path) -> np.ndarray:
    """Read the raw values of a label, (H, W), exact: uint8 where all are from 0 to 255, else int64.

    Raises:
        DataError: It cannot be read, holds colors (`Fault.COLORS`), or is stored with loss.
    """
    data = _read_file(path)
    if (values := _png_values(path, data)) is not None:
        return values
    image = _open_label(path, data)
    if image.mode in ("L", "P", "1"):
        values = np.asarray(image, np.uint8)
        return values if image.mode == "P" else _as_stored(values, image, data)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if image.format == "PPM":
            wide = np.rint(wide * (_largest_of_ppm(data) / 65535)).astype(np.int64)
        return wide.astype(np.uint8) if wide.min() >= 0 and wide.max() <= 255 else wide
    if image.mode == "F":
        what = "holds fractions, expected class indices"
        raise DataError(Problem(Fault.FRACTIONS, path, what, "Convert the file to 8-bit values"))
    what = f"holds colors ({image.mode}), expected class indices"
    fix = 'Use the dataset "Folder", whose class file can say what each color stands for, or convert the file'
    raise DataError(Problem(Fault.COLORS, path, what, fix))


def _as_stored(values: np.ndarray, image: Image.Image, data: bytes) -> np.ndarray:
    """Undo what Pillow does to gray values of less than 8 bits, or whose 0 is white: the label is the number itself.

    Args:
        values: (H, W) uint8, as Pillow shows them: 0 is black, and 255, or 1 of a single bit, is white.
        image: Where they come from.
        data: Content of its file.
    """
    tags: Mapping[int, Any] = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    zero_is_white = tags.get(TIFF_PHOTOMETRIC) == 0
    if image.mode == "1":
        return np.uint8(1) - values if zero_is_white or image.format == "PPM" else values  # a PBM's 1 is black
    if image.format == "PPM":
        return np.rint(values * (_largest_of_ppm(data) / 255)).astype(np.uint8)
    bits = data[24] if image.format == "PNG" else tags.get(TIFF_BITS, (8,))[0]
    values = np.uint8(255) - values if zero_is_white else values
    return values // np.uint8(255 // (2 ** min(bits, 8) - 1))


def _largest_of_ppm(data: bytes) -> int:
    """Read the largest value that a PGM file declares, to which Pillow stretches the others."""
    return int(re.sub(rb"#[^\n]*\n", b"\n", data[:4096]).split(None, 4)[3])


def read_label_colors(path: Path) -> np.ndarray:
    """Read the colors of a label drawn in colors, (H, W, 3) uint8, RGB, exact.

    Raises:
        DataError: It cannot be read or is stored with loss.
    """
    return np.asarray(_open_label(path, _read_file(path)).convert("RGB"))


def write_label(path: Path | IO[bytes], label: np.ndarray, palette: np.ndarray) -> None:
    """Write `label` (H, W) uint8 as a PNG whose values are the labels and which shows as colors.

    Args:
        path: File to write, or one that is open for it.
        label: Values from 0 to 255.
        palette: Color of each value, (256, 3) uint8.
    """
    image = Image.fromarray(np.ascontiguousarray(label, np.uint8))
    image.putpalette(np.ascontiguousarray(palette, np.uint8).tobytes())
    image.save(path, format="PNG")


def write_picture(path: Path | IO[bytes], picture: np.ndarray) -> None:
    """Write `picture` (H, W, 3) uint8, RGB, as a PNG.

    Args:
        path: File to write, or one that is open for it.
        picture: What to write.

    Raises:
        OSError: It cannot be written; OpenCV's own writer would not say so.
    """
    content = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))[1].tobytes()
    if isinstance(path, Path):
        path.write_bytes(content)
    else:
        path.write(content)


def _read_file(path: Path) -> bytes:
    try:
        mode = (path.parent if is_packed(path) else path).stat().st_mode
        if not stat.S_ISREG(mode):  # opening a pipe would wait for ever
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file"
            raise DataError(Problem(Fault.OTHER, path, f"is {kind}", "Give an image file"))
        data = read_bytes(path)
    except DataError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        what = f"cannot be read ({getattr(error, 'strerror', None) or error})"
        raise DataError(Problem(Fault.OTHER, path, what, "Check the path and its permissions")) from None
    if not data:
        raise DataError(Problem(Fault.EMPTY_FILE, path, "is empty", "Get the file again or remove it"))
    return data


def _damaged(path: Path) -> Problem:
    return Problem(Fault.DAMAGED_FILE, path, "is damaged or cut short", "Get the file again or remove it")


def _open(path: Path, data: bytes, most: int | None = None) -> Image.Image:
    """Open an image, of at most `MAX_PIXELS` or `most`: its header is read and no pixel decoded."""
    try:
        with _unlimited() if most else nullcontext():
            image = Image.open(io.BytesIO(data))
        width, height = image.size
    except Image.DecompressionBombError:
        raise DataError(_too_large(path, "")) from None
    except Exception:  # Pillow's plugins raise whatever they stumble over: SyntaxError, struct.error, ...
        raise DataError(_what_it_is(path, data)) from None
    if width * height > (most or MAX_PIXELS):
        raise DataError(_too_large(path, f"{width}x{height} pixels, ", most))
    return image


@contextmanager
def _unlimited() -> Iterator[None]:
    """Let Pillow open images of any size; other threads, which see that too, have limits of their own."""
    with _PILLOWS_LIMIT:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _too_large(path: Path, size: str, most: int | None = None) -> Problem:
    what = f"is declared to have {size}more than {most or MAX_PIXELS:,} pixels"
    return Problem(Fault.HUGE_IMAGE, path, what, "Cut it into tiles")


def _what_it_is(path: Path, data: bytes) -> Problem:
    """Say what a file is that Pillow cannot open."""
    start = data[:512].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return Problem(Fault.LFS_POINTER, path, "is a pointer of Git LFS, not the file itself", "Run `git lfs pull`")
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<body")):
        return Problem(Fault.WEB_PAGE, path, "holds a web page, not an image", "Download the file again")
    if data.startswith((b"\xff\xd8", b"\x89PNG")):
        return _damaged(path)
    return Problem(Fault.NO_IMAGE, path, "is no image that can be read", "Convert it to PNG or JPEG, or remove it")


def _is_complete(kind: str | None, data: bytes) -> bool:
    """Say whether a file of this format ends as it should; decoders fill up with gray what is missing."""
    if kind in ("JPEG", "MPO"):
        # Cameras and editors append data of their own, and a thumbnail has an end of its own at the beginning.
        return data.endswith(b"\xff\xd9") or data.rfind(b"\xff\xd9") > data.rfind(b"\xff\xda")
    return kind != "PNG" or data.rfind(b"IEND") > data.rfind(b"IDAT")


def _orientation(image: Image.Image, data: bytes) -> int:
    """Read the EXIF orientation, 1 to 8; 1 where there is none or it makes no sense.

    Raises:
        struct.error: A PNG is cut short.
    """
    if image.format == "PNG" and not any(kind == b"eXIf" for kind, _, _ in _png_chunks(data)):
        return 1  # getexif() would decode the whole image in search of it
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # what is written there may be anything, and is no reason not to use the pixels
        return 1


def _turn(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn `image` upright. Source: EXIF 2.32, tag 274: where row 0 and column 0 of what is stored belong."""
    turned = {
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1),
        6: lambda x: x[::-1].swapaxes(0, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
        8: lambda x: x[:, ::-1].swapaxes(0, 1),
    }.get(orientation)
    return image if turned is None else np.ascontiguousarray(turned(image))


def _convert(path: Path, image: Image.Image, upright: bool) -> np.ndarray:
    """Decode what OpenCV does not, or not to the same colors."""
    try:
        if upright:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I") or image.mode == "F":
            return cv2.cvtColor(_to_8_bit(path, np.asarray(image)), cv2.COLOR_GRAY2RGB)
        return np.array(image.convert("RGB"))
    except DataError:
        raise
    except Exception:
        raise DataError(_damaged(path)) from None


def _is_misread(header: Image.Image) -> bool:
    """Say whether a TIFF holds separate bands that Pillow takes for one, or whose 16-bit values it mixes up."""
    tags = getattr(header, "tag_v2", {})
    bits = tags.get(258, (8,))
    if tags.get(284) != 2 or tags.get(277, 1) < 3:
        return False
    return len(header.getbands()) == 1 or (max(bits) > 8 and header.info.get("compression") == "raw")


def _read_bands_as_colors(
    path: Path, data: bytes, upright: bool, most: int | None, error: DataError | None = None
) -> np.ndarray:
    """Read a TIFF that Pillow does not read rightly, (H, W, 3) uint8.

    Args:
        path: The file.
        data: What it holds.
        upright: Turn it as its orientation says.
        most: Pixels that it may have.
        error: What to raise where tifffile is missing, or can make nothing of the header either.

    Raises:
        DataError: It cannot be read.
    """
    from utils.rasters import ModelRaster, TiffRaster, decoder_of  # which imports this module

    try:
        tiff = TiffRaster(path, data)
    except DataError as own:
        raise error or own from None
    height, width = tiff.size
    if height * width > (most or MAX_PIXELS):
        raise DataError(_too_large(path, f"{width}x{height} pixels, ", most))
    if tiff.end > len(data):  # tifffile would fill up with zeros
        raise DataError(_damaged(path))
    values, _ = ModelRaster(decoder_of(tiff, 3), 3, path).read((0, height), (0, width))
    return _turn(values, tiff.orientation) if upright else values


def _to_8_bit(path: Path, values: np.ndarray) -> np.ndarray:
    """Scale gray values (H, W) of 16 bits, or fractions from 0 to 1, to 0..255; never clipped."""
    low, high = float(values.min()), float(values.max())
    top = 65535.0
    if values.dtype.kind == "f":
        top = 1.0 if high <= 1 else 255.0
    if not 0 <= low <= high <= top:  # false for NaN, too
        what = f"values from {low:g} to {high:g}, expected 0 to {top:g}"
        raise DataError(Problem(Fault.OTHER, path, what, "Convert it to 8 bits"))
    return np.rint(values * (255 / top)).astype(np.uint8)


def _png_values(path: Path, data: bytes) -> np.ndarray | None:
    """Read the values of a PNG of 8 bits, gray or with a palette, (H, W) uint8; None for other files.

    OpenCV would give the palette's colors.
    """
    start = data[:33]
    if len(start) < 33 or start[:16] != b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" or start[24:26] not in (b"\x08\0", b"\x08\3"):
        return None
    values = _decode_png(path, data, "mono")
    return None if values is None else values[..., 0]


def _decode_png(path: Path, data: bytes, mode: Literal["rgb", "mono"]) -> np.ndarray | None:
    """Decode a PNG of 8 bits as it is stored, (H, W, C) uint8; None if others must do it.

    Raises:
        DataError: It is damaged or cut short; the checksum of each of its parts is compared.
    """
    width, height, interlaced = struct.unpack_from(">II4xB", data, 16)
    if decode_image_png_u8 is None or interlaced or width * height > MAX_PIXELS:
        return None
    try:
        image: np.ndarray = decode_image_png_u8(data, (height, width), mode)
    except Exception:  # it has none of its own
        raise DataError(_damaged(path)) from None
    return image


def _open_label(path: Path, data: bytes) -> Image.Image:
    """Decode the label in the file's `data`."""
    image = _open(path, data)
    packing = str(image.info.get("compression", ""))  # of TIFF, where JPEG is one of several
    if image.format in ("JPEG", "MPO") or (image.format == "WEBP" and b"VP8L" not in data[:64]) or "jpeg" in packing:
        kind = f"{image.format} file" + (" compressed as JPEG" if "jpeg" in packing else "")
        what = f"is a {kind}, which changes label values at every edge"
        folder = shlex.quote(str(path.parent))
        fix = f"Use PNG files for labels; `python prepare.py convert --masks {folder} -o NEW_FOLDER` makes them"
        raise DataError(Problem(Fault.LOSSY_LABEL, path, what, fix))
    try:
        if image.format == "PNG":
            _check_png(data)
        image.load()
    except Exception:
        raise DataError(_damaged(path)) from None
    return image


def _check_png(data: bytes) -> None:
    """Compare the checksum of each critical chunk, which Pillow does not.

    Raises:
        ValueError, struct.error: Damaged or cut short.
    """
    for kind, start, size in _png_chunks(data):
        (checksum,) = struct.unpack_from(">I", data, start + 8 + size)
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[start + 4 : start + 8 + size]) != checksum:
            raise ValueError("checksum")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Find kind, start and size of the content of each chunk of a PNG file.

    Raises:
        struct.error: It is cut short.
    """
    start, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, start)
        yield kind, start, size
        start += 12 + size


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]}x{shape[0]}"
