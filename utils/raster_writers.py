"""Labels of any size, written a few rows at a time; TIFF files keep where on Earth their images lie."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.files import atomic_write
from utils.rasters import GEO_TAGS, NODATA_TAG, import_tifffile

ROWS = 64  # that are written at a time
TILE = 256  # side of the tiles of a TIFF


def write_png(path: Path, size: tuple[int, int], bands: Iterator[np.ndarray], palette: np.ndarray) -> None:
    """Write labels as a palette PNG of any size.

    Args:
        path: File to write.
        size: Height and width.
        bands: Rows of labels, (h, width) uint8 each, from the top to the bottom.
        palette: Color of each value, (256, 3) uint8.
    """

    def chunk(file: IO[bytes], kind: bytes, content: bytes) -> None:
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(kind + content)))

    with atomic_write(path) as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        chunk(file, b"IHDR", struct.pack(">IIBBBBB", size[1], size[0], 8, 3, 0, 0, 0))
        chunk(file, b"PLTE", np.ascontiguousarray(palette, np.uint8).tobytes())
        packer = zlib.compressobj()
        for band in bands:
            filtered = np.pad(band, ((0, 0), (1, 0)))  # each row begins with its filter: none
            if content := packer.compress(filtered.tobytes()):
                chunk(file, b"IDAT", content)
        chunk(file, b"IDAT", packer.flush())
        chunk(file, b"IEND", b"")


def write_tiff(
    path: Path, size: tuple[int, int], bands: Iterator[np.ndarray], palette: np.ndarray, *, source: Path, void: int
) -> None:
    """Write labels as a palette TIFF of any size that lies where its source does; otherwise as `write_png`.

    Args:
        path: File to write.
        size: Height and width.
        bands: Rows of labels, (h, width) uint8 each, from the top to the bottom.
        palette: Color of each value, (256, 3) uint8.
        source: The image that was predicted.
        void: Value of pixels without data.
    """
    tifffile = import_tifffile(path)
    extra: list[tuple[int, Any, int | None, Any, bool]] = []
    with tifffile.TiffFile(source) as file:
        for code in GEO_TAGS:
            tag = file.pages.first.tags.get(code)
            if tag is not None:
                extra.append((code, tag.dtype, None if isinstance(tag.value, str) else tag.count, tag.value, True))
    extra.append((NODATA_TAG, "s", None, str(void), True))

    with atomic_write(path) as handle, tifffile.TiffWriter(handle, bigtiff=size[0] * size[1] > 2**31) as writer:
        writer.write(
            _tiles(bands, TILE),
            shape=size,
            dtype=np.uint8,
            tile=(TILE, TILE),
            compression="zlib",
            photometric="palette",
            colormap=np.ascontiguousarray(palette.T, np.uint16) * 257,
            extratags=extra,
            metadata=None,
            maxworkers=1,
        )


def _tiles(bands: Iterator[np.ndarray], side: int) -> Iterator[np.ndarray]:
    """Cut rows into square tiles, row by row of them; those at the edges are filled up with 0."""

    def cut(rows: np.ndarray) -> Iterator[np.ndarray]:
        padded = np.pad(rows, ((0, side - len(rows)), (0, -rows.shape[1] % side)))
        for left in range(0, padded.shape[1], side):
            yield np.ascontiguousarray(padded[:, left : left + side])

    kept: np.ndarray | None = None
    for band in bands:
        kept = band if kept is None else np.concatenate([kept, band])
        while len(kept) >= side:
            yield from cut(kept[:side])
            kept = kept[side:]
    if kept is not None and len(kept):
        yield from cut(kept)
