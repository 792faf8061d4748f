"""Masks as run lengths, in the ways of COCO, CVAT and Label Studio."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SIZES = (3, 4, 8, 16)  # bits of a count in Label Studio's packing


def to_runs(inside: np.ndarray, total: int) -> list[int]:
    """Write a mask of `total` pixels as lengths of runs outside and inside by turns, the first outside.

    Args:
        inside: Numbers of the pixels inside, (N,) int, ascending.
        total: Pixels of the mask.
    """
    if not len(inside):
        return [total]
    breaks = np.flatnonzero(np.diff(inside) != 1)
    starts = inside[np.concatenate([[0], breaks + 1])]
    ends = inside[np.concatenate([breaks, [len(inside) - 1]])] + 1
    edges = np.stack([starts, ends], axis=1).reshape(-1)
    runs: list[int] = np.diff(edges, prepend=0).tolist()
    return [*runs, total - int(ends[-1])] if ends[-1] < total else runs


def from_runs(runs: Sequence[int], total: int) -> np.ndarray:
    """Draw run lengths as a mask, (total,) bool.

    Raises:
        ValueError: They are not as long as the mask.
    """
    lengths = np.array(runs, np.int64)
    if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != total:
        raise ValueError(f"its run lengths are not those of {total} pixels")
    return np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)


def encode_runs(runs: Sequence[int]) -> str:
    """Compress run lengths as COCO does, see `decode_runs`. Source: maskApi.c, `rleToString`."""
    text = ""
    for index, run in enumerate(runs):
        value = run - (runs[index - 2] if index > 2 else 0)
        goes_on = True
        while goes_on:
            bits = value & 31
            value >>= 5
            goes_on = value != (-1 if bits & 16 else 0)
            text += chr((bits | 32 if goes_on else bits) + 48)
    return text


def decode_runs(text: str) -> list[int]:
    """Decode compressed run lengths: 5 bits and a bit for "goes on" in each character; the fourth and later numbers are
    differences to the number two before. Source: maskApi.c of https://github.com/cocodataset/cocoapi, `rleFrString`.

    Raises:
        ValueError: It ends within a number.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 40:
            raise ValueError("its run lengths are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    if shift:
        raise ValueError("its run lengths are cut short")
    return runs


def pack_brush(mask: np.ndarray) -> list[int]:
    """Pack a mask (H, W) bool as Label Studio's brush does: bytes of RGBA, all four 255 inside.

    32 bits say how many bytes there are, 5 the size of a word less 1, 4 times 4 the sizes of counts less 1. Then each
    chunk has a bit for "one word repeated", two for the size of its count, the count less 1, and its words.
    Source: https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack, which Label Studio packs with.
    """
    flat = mask.reshape(-1)
    parts = [f"{4 * flat.size:032b}", f"{7:05b}", *(f"{size - 1:04b}" for size in SIZES)]
    for index, run in enumerate(to_runs(np.flatnonzero(flat), flat.size)):
        left, word = 4 * run, "11111111" if index % 2 else "00000000"
        while left:
            count = min(left, 1 << SIZES[-1])
            kind = next(kind for kind, size in enumerate(SIZES) if count <= 1 << size)
            parts.append(f"1{kind:02b}{count - 1:0{SIZES[kind]}b}{word}")
            left -= count
    text = "".join(parts)
    bits = np.frombuffer(text.encode(), np.uint8) - ord("0")
    packed: list[int] = np.packbits(bits).tolist()
    return packed


def unpack_brush(packed: Sequence[int], size: tuple[int, int]) -> np.ndarray:
    """Unpack a brush of Label Studio's to a mask (H, W) bool: where alpha is above 0; see `pack_brush`.

    Raises:
        ValueError: It is damaged, or of another size.
    """
    data = np.array(packed)
    if data.ndim != 1 or data.dtype.kind not in "iu" or (data < 0).any() or (data > 255).any():
        raise ValueError("its brush is no list of bytes")
    bits = np.unpackbits(data.astype(np.uint8))
    text = (bits + ord("0")).tobytes().decode()
    at = 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(text):
            raise ValueError("its brush is cut short")
        return int(text[at - count : at], 2)

    total, word = take(32), take(5) + 1
    if total != 4 * size[0] * size[1] or word != 8:
        raise ValueError(f"its brush is not of {size[1]}x{size[0]} pixels")
    sizes = [take(4) + 1 for _ in range(4)]
    values, done = np.zeros(total, np.uint8), 0
    while done < total:
        repeated = take(1)
        count = take(sizes[take(2)]) + 1
        if done + count > total:
            raise ValueError("its brush is longer than its image")
        if repeated:
            values[done : done + count] = take(8)
        elif at + 8 * count > len(text):
            raise ValueError("its brush is cut short")
        else:
            values[done : done + count] = np.packbits(bits[at : at + 8 * count])
            at += 8 * count
        done += count
    return values.reshape(*size, 4)[..., 3] > 0
