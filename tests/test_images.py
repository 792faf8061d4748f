"""Image and label files: every form is read alike, every fault has its line."""

from __future__ import annotations

import io
import os
import pickle
import struct
import sys
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from utils import images
from utils.errors import DataError, Fault
from utils.images import (
    read_bands,
    read_image,
    read_image_for,
    read_label,
    read_label_colors,
    read_label_values,
    write_label,
)

ORIENTATION = 274


def picture(height=65, width=97):
    """A smooth color gradient, which survives JPEG."""
    rows, columns = np.mgrid[:height, :width]
    return np.dstack([rows * 2, columns * 2, 255 - rows - columns]).astype(np.uint8)


def png(width, height, bits, color_type, rows):
    """A PNG file from its raw rows."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def fault(read, path):
    """The one line that reading `path` fails with."""
    with pytest.raises(DataError) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{path}: ")
    assert "\n" not in problem
    return problem


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_lossless_images_are_read_exactly(tmp_path, suffix):
    path = tmp_path / f"ünï cödé.v1.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    Image.fromarray(picture()).save(path, **options)
    np.testing.assert_array_equal(read_image(path), picture())


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "jpg"])
def test_every_pixel_format_becomes_8_bit_rgb(tmp_path, mode, suffix):
    image = Image.fromarray(picture())
    if mode == "I;16":
        image = Image.fromarray(picture()[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = tmp_path / f"image.{suffix}"
    try:
        image.save(path)
    except (OSError, KeyError):
        pytest.skip(f"{suffix} has no {mode}")
    expected = picture()[..., :1].repeat(3, 2) if mode == "I;16" else np.asarray(image.convert("RGB"))
    read = read_image(path)
    assert read.dtype == np.uint8
    assert read.shape == (65, 97, 3)
    assert np.abs(read.astype(int) - expected).mean() < (4 if suffix == "jpg" else 1)


def test_16_bit_color_is_rescaled_not_clipped(tmp_path):
    wide = picture().astype(np.uint16) * 257
    cv2.imwrite(str(tmp_path / "wide.png"), wide[..., ::-1])
    assert np.abs(read_image(tmp_path / "wide.png").astype(int) - picture()).max() <= 1


@pytest.mark.parametrize("kind", ["rgb", "minisblack"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(("planar", "channels"), [("contig", 3), ("separate", 3), ("separate", 4)])
@pytest.mark.parametrize("scale", [1, 257])
def test_tiff_files_that_pillow_knows_not_or_misreads(tmp_path, kind, compression, planar, channels, scale):
    tifffile = pytest.importorskip("tifffile", reason="an optional package")
    values = np.dstack([picture(), picture()[..., 0]])[..., :channels].astype(np.uint8 if scale == 1 else np.uint16)
    stored = values * values.dtype.type(scale)
    if planar == "separate":
        stored = np.ascontiguousarray(np.moveaxis(stored, -1, 0))
    extra = ["unspecified"] * (channels - (3 if kind == "rgb" else 1))
    options = {"photometric": kind, "planarconfig": planar, "compression": compression, "extrasamples": extra}
    turned = (ORIENTATION, "H", 1, 6, True)
    tifffile.imwrite(tmp_path / "a.tif", stored, metadata=None, extratags=[turned], **options)
    assert np.array_equal(read_image(tmp_path / "a.tif"), np.rot90(picture(), -1))


def test_such_a_tiff_that_is_cut_short_or_has_other_bands_is_refused(tmp_path, monkeypatch):
    tifffile = pytest.importorskip("tifffile", reason="an optional package")
    path, deep = tmp_path / "a.tif", np.moveaxis(picture(), -1, 0).astype(np.uint16)
    tifffile.imwrite(path, deep, photometric="rgb", planarconfig="separate", metadata=None)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    assert "is damaged or cut short" in fault(read_image, path)
    path.write_bytes(whole)
    monkeypatch.setitem(sys.modules, "tifffile", None)
    assert "need tifffile" in fault(read_image, path)
    monkeypatch.undo()
    two = np.ascontiguousarray(np.moveaxis(deep[:2], 0, -1))
    tifffile.imwrite(path, two, photometric="minisblack", planarconfig="contig", metadata=None)
    assert "2 channels, expected 3" in fault(read_image, path)


def test_fractions_are_scaled_and_other_floats_refused(tmp_path):
    fractions = picture()[..., 0].astype(np.float32) / 255
    Image.fromarray(fractions).save(tmp_path / "fractions.tiff")
    np.testing.assert_array_equal(read_image(tmp_path / "fractions.tiff")[..., 1], picture()[..., 0])
    Image.fromarray(fractions - 1).save(tmp_path / "negative.tiff")
    assert "values from -1" in fault(read_image, tmp_path / "negative.tiff")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_images_are_turned_as_exif_says(tmp_path, orientation, suffix):
    image, exif = Image.fromarray(picture()), Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"turned.{suffix}"
    image.save(path, exif=exif, quality=100)
    upright = read_image(path)
    assert upright.shape[:2] == ((65, 97) if orientation <= 4 else (97, 65))
    with Image.open(path) as file:
        expected = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    assert np.abs(upright.astype(int) - expected).mean() < 2
    assert read_image(path, upright=False).shape[:2] == (65, 97)


def test_a_turned_image_is_used_only_if_its_label_fits_upright(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    path = tmp_path / "turned.png"
    Image.fromarray(picture()).save(path, exif=exif)
    assert read_image_for(path, (97, 65)).shape == (97, 65, 3)
    problem = fault(lambda p: read_image_for(p, (65, 97)), path)
    assert "EXIF" in problem
    problem = fault(lambda p: read_image_for(p, (10, 20)), path)
    assert "65x97" in problem
    assert "20x10" in problem


JPEG = encoded(Image.fromarray(picture()), "JPEG")
PNG = encoded(Image.fromarray(picture()), "PNG")
NO_IMAGES = {
    "empty": (b"", "empty"),
    "a web page": (b"\n<!DOCTYPE html><html>404</html>", "web page"),
    "an LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "text": (b"not an image", "no image"),
    "a JPEG cut short": (JPEG[: len(JPEG) // 2], "cut short"),
    "a JPEG without its last bytes": (JPEG[:-40], "cut short"),
    "a PNG cut short": (PNG[: len(PNG) // 2], "cut short"),
    "a PNG header alone": (PNG[:30], ""),
    "a flipped bit": (PNG[:90] + bytes([PNG[90] ^ 4]) + PNG[91:], "damaged"),
    "a decompression bomb": (png(40_000, 40_000, 8, 0, b""), "pixels"),
    "a larger bomb": (png(2_000_000, 2_000_000, 8, 0, b""), "pixels"),
}


@pytest.mark.parametrize("name", NO_IMAGES)
@pytest.mark.parametrize("read", [read_image, read_label])
def test_a_file_that_is_no_image_is_named_in_one_line(tmp_path, name, read):
    data, reason = NO_IMAGES[name]
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    problem = fault(read, path)
    if read is read_image:
        assert reason in problem


@pytest.mark.parametrize("decoder", ["kornia_rs", "others"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_png_cut_or_with_a_flipped_bit_is_refused_or_read_as_it_was(tmp_path, monkeypatch, mode, decoder):
    if decoder == "others":
        monkeypatch.setattr(images, "decode_image_png_u8", None)
    elif images.decode_image_png_u8 is None:
        pytest.skip("needs kornia_rs")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 16, (20, 15, 3), np.uint8)).convert(mode)
    data = encoded(image, "PNG")
    read, values = (read_image if mode == "RGB" else read_label), np.asarray(image)
    path, kept = tmp_path / "damaged.png", 0
    flips = [data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :] for at in range(len(data))]
    for number, damaged in enumerate([*flips, *(data[:end] for end in range(1, len(data)))]):
        path.write_bytes(damaged)
        with suppress(DataError):
            np.testing.assert_array_equal(read(path), values, err_msg=str(number))
            kept += 1
    assert kept < 20  # the checksum of the last chunk, which holds nothing


def test_what_follows_the_end_of_a_jpeg_does_no_harm(tmp_path):
    path = tmp_path / "appended.jpg"
    path.write_bytes(JPEG + b"made by some camera")
    assert read_image(path).shape == (65, 97, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_folders_pipes_and_missing_files_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "broken link").symlink_to(tmp_path / "nowhere")
    assert "regular file" in fault(read_image, tmp_path / "pipe")
    assert "folder" in fault(read_image, tmp_path)
    assert "cannot be read" in fault(read_image, tmp_path / "missing.png")
    assert "cannot be read" in fault(read_label, tmp_path / "broken link")


@pytest.mark.parametrize("suffix", ["png", "tiff", "bmp"])
@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_indices_whatever_colors_they_show(tmp_path, suffix, mode):
    label = np.random.default_rng(0).integers(0, 20, (65, 97), dtype=np.uint8)
    label[0] = 255
    image = Image.fromarray(label)
    if mode == "P":
        image.putpalette(np.arange(768).astype(np.uint8).tobytes())
    path = tmp_path / f"label.{suffix}"
    image.save(path)
    np.testing.assert_array_equal(read_label(path), label)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("color_type", [0, 3])
def test_labels_of_few_bits_keep_their_values(tmp_path, bits, color_type):
    values = np.arange(8).reshape(1, 8) % 2**bits
    packed = np.packbits((values[..., None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).reshape(1, -1), axis=1)
    data = png(8, 1, bits, color_type, b"\x00" + packed.tobytes())
    if color_type == 3:
        palette = b"PLTE" + bytes(range(3 * 2**bits))
        chunk = struct.pack(">I", len(palette) - 4) + palette + struct.pack(">I", zlib.crc32(palette))
        data = data[:33] + chunk + data[33:]
    (tmp_path / "label.png").write_bytes(data)
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), values)


def tiff(values, bits, photometric):
    """A TIFF of one strip, (H, W) values of `bits` bits; photometric 0 says that 0 is white."""
    height, width = values.shape
    rows = [np.packbits((row[:, None] >> np.arange(bits)[::-1] & 1).astype(np.uint8).ravel()) for row in values]
    strip = b"".join(row.tobytes() for row in rows)
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric)]
    tags += [(273, 4, 8), (277, 3, 1), (278, 4, height), (279, 4, len(strip))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip + directory


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("photometric", [0, 1])
def test_labels_in_tiff_keep_their_values_whichever_is_white(tmp_path, bits, photometric):
    values = np.arange(24).reshape(3, 8) % 2**bits
    (tmp_path / "label.tif").write_bytes(tiff(values, bits, photometric))
    np.testing.assert_array_equal(read_label(tmp_path / "label.tif"), values)


@pytest.mark.parametrize("most", [1, 2, 21, 254, 255, 1000, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_labels_in_pgm_keep_their_values_whatever_the_largest_is(tmp_path, most, plain):
    values = np.minimum(np.arange(24).reshape(3, 8), most)
    header = f"{'P2' if plain else 'P5'}\n# made by hand\n8 3\n{most}\n".encode()
    body = " ".join(map(str, values.ravel())).encode()
    stored = values.astype(np.uint8 if most < 256 else ">u2").tobytes()
    (tmp_path / "label.pgm").write_bytes(header + (body if plain else stored))
    np.testing.assert_array_equal(read_label(tmp_path / "label.pgm"), values)


@pytest.mark.parametrize("content", ["archive", "nothing"])
def test_an_array_that_is_none_is_refused(tmp_path, content):
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=np.zeros(3)) if content == "archive" else np.save(file, np.zeros((0, 4, 3), np.uint8))
    with pytest.raises(DataError, match="damaged or cut short"):
        read_bands(tmp_path / "x.npy", 3)


def test_16_bit_labels_are_exact(tmp_path):
    label = np.arange(65 * 97, dtype=np.uint16).reshape(65, 97)
    path = tmp_path / "label.png"
    Image.fromarray(label).save(path)
    np.testing.assert_array_equal(read_label_values(path), label)
    assert "label value 256 at row 2, column 62" in fault(read_label, path)
    Image.fromarray(label % 256).save(path)
    np.testing.assert_array_equal(read_label(path), label % 256)


def filtered(values, kind):
    """Raw rows of a PNG of `values` (H, W, C) uint8, each coded with the filter `kind`; 5 for one after the other."""
    rows, channels = values.reshape(len(values), -1).astype(int), values.shape[2]
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    before, corner = (np.hstack([np.zeros((len(x), channels), int), x[:, :-channels]]) for x in (rows, above))
    guess = before + above - corner
    far = [abs(guess - x) for x in (before, above, corner)]
    paeth = np.where((far[0] <= far[1]) & (far[0] <= far[2]), before, np.where(far[1] <= far[2], above, corner))
    coded = [rows, rows - before, rows - above, rows - (before + above) // 2, rows - paeth]
    kinds = [number % 5 if kind == 5 else kind for number in range(len(rows))]
    return b"".join(bytes([k]) + (coded[k][i] % 256).astype(np.uint8).tobytes() for i, k in enumerate(kinds))


@pytest.mark.parametrize("decoder", ["kornia_rs", "without it"])
@pytest.mark.parametrize("kind", range(6))
def test_every_filter_of_png_is_undone(tmp_path, monkeypatch, kind, decoder):
    if decoder == "without it":
        monkeypatch.setattr(f"{images.__name__}.decode_image_png_u8", None)
    else:
        pytest.importorskip("kornia_rs")
    rng = np.random.default_rng(kind)
    colors, label = rng.integers(0, 256, (13, 7, 3), np.uint8), rng.integers(0, 256, (13, 7, 1), np.uint8)
    (tmp_path / "image.png").write_bytes(png(7, 13, 8, 2, filtered(colors, kind)))
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), colors)
    gray, palette = tmp_path / "gray.png", tmp_path / "palette.png"
    gray.write_bytes(png(7, 13, 8, 0, filtered(label, kind)))
    whole = png(7, 13, 8, 3, filtered(label, kind))
    table = b"PLTE" + rng.integers(0, 256, 768, np.uint8).tobytes()
    palette.write_bytes(whole[:33] + struct.pack(">I", 768) + table + struct.pack(">I", zlib.crc32(table)) + whole[33:])
    for path in (gray, palette):
        np.testing.assert_array_equal(read_label(path), label[..., 0])


@pytest.mark.parametrize("decoder", ["kornia_rs", "without it"])
@pytest.mark.parametrize("color_type", [0, 2])
def test_no_flipped_bit_of_a_png_goes_unseen(tmp_path, monkeypatch, color_type, decoder):
    if decoder == "without it":
        monkeypatch.setattr(f"{images.__name__}.decode_image_png_u8", None)
    values = np.random.default_rng(0).integers(0, 256, (9, 11, color_type + 1), np.uint8)
    whole, path = png(11, 9, 8, color_type, filtered(values, 5)), tmp_path / "a.png"
    read = read_image if color_type else read_label_values
    rng = np.random.default_rng(1)
    for place in range(8, len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            found = read(path)
        except DataError:
            continue
        np.testing.assert_array_equal(found, values if color_type else values[..., 0], err_msg=str(place))


FAULTS = {
    "empty": Fault.EMPTY_FILE,
    "a web page": Fault.WEB_PAGE,
    "an LFS pointer": Fault.LFS_POINTER,
    "text": Fault.NO_IMAGE,
    "a JPEG cut short": Fault.DAMAGED_FILE,
    "a flipped bit": Fault.DAMAGED_FILE,
    "a decompression bomb": Fault.HUGE_IMAGE,
    "a larger bomb": Fault.HUGE_IMAGE,
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_with_a_file_is_known_without_reading_the_text(tmp_path, name):
    path = tmp_path / "bad.png"
    path.write_bytes(NO_IMAGES[name][0])
    with pytest.raises(DataError) as caught:
        read_image(path)
    error = pickle.loads(pickle.dumps(caught.value))  # as a data worker hands it over
    (problem,) = error.details
    assert (problem.fault, problem.path) == (FAULTS[name], path)
    assert error.problems == (f"{path}: {problem.what}. {problem.fix}.",) == caught.value.problems


def test_labels_below_0_are_refused(tmp_path):
    label = np.zeros((5, 7), np.int32)
    label[2, 3] = -1
    Image.fromarray(label).save(tmp_path / "label.tif")
    np.testing.assert_array_equal(read_label_values(tmp_path / "label.tif"), label)
    assert "label value -1 at row 2, column 3" in fault(read_label, tmp_path / "label.tif")


def test_colors_and_lossy_files_are_no_labels(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "colors.png")
    assert "holds colors (RGB), expected class indices" in fault(read_label, tmp_path / "colors.png")
    np.testing.assert_array_equal(read_label_colors(tmp_path / "colors.png"), picture())
    Image.fromarray(picture()[..., 0]).save(tmp_path / "lossy.jpg")
    Image.fromarray(picture()[..., 0]).save(tmp_path / "lossy.tif", compression="jpeg")
    for read in (read_label, read_label_colors):
        assert "Use PNG" in fault(read, tmp_path / "lossy.jpg")
        assert "is a TIFF file compressed as JPEG" in fault(read, tmp_path / "lossy.tif")


def test_a_written_label_reads_back_and_shows_its_colors(tmp_path):
    label = np.random.default_rng(0).integers(0, 256, (65, 97), dtype=np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (256, 3), dtype=np.uint8)
    write_label(tmp_path / "label.png", label, palette)
    np.testing.assert_array_equal(read_label(tmp_path / "label.png"), label)
    np.testing.assert_array_equal(read_image(tmp_path / "label.png"), palette[label])
