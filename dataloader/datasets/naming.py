"""Find out by which prefixes and suffixes the names of masks differ from those of their images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from utils.errors import DataError


def guess_names(images: Collection[str], masks: Collection[str], *, folders: tuple[Path, Path]) -> dict[str, Any]:
    """Find the arguments of `Folder` about what names of images and masks do not share.

    Args:
        images: Names of the images.
        masks: Names of the masks.
        folders: Where both are, for errors.

    Raises:
        DataError: No mask is named like an image.
    """
    stems, endings = set(images), Counter[str]()
    for mask in masks:
        endings.update(mask[length:] for length in range(1, len(mask) + 1) if mask[:length] in stems)
    if endings:
        most = max(endings.values())
        suffix = min((ending for ending, count in endings.items() if count == most), key=len)
        return {"mask_suffix": suffix} if suffix else {}
    (before, after), (mask_before, mask_after) = around(images), around(masks)
    if not core(images, before, after) & core(masks, mask_before, mask_after):
        raise DataError(f"{folders[1]}: no mask is named like an image in {folders[0]}. Rename one or the other.")
    # What both have there belongs to the names themselves, such as leading zeros, but for what sets it off.
    start = common_start([before[::-1], mask_before[::-1]])[::-1].lstrip("_-. ")
    end = common_start([after, mask_after]).rstrip("_-. ")
    found = {
        "image_prefix": before.removesuffix(start),
        "image_suffix": after.removeprefix(end),
        "mask_prefix": mask_before.removesuffix(start),
        "mask_suffix": mask_after.removeprefix(end),
    }
    return {key: value for key, value in found.items() if value}


def other_endings(images: Collection[str], masks: Collection[str], ending: str) -> list[str]:
    """Return what else masks of half as many images or more end in: of these, each class may have a mask of its own.

    Args:
        images: Names of the images.
        masks: Names of the masks.
        ending: What those masks end in that were chosen.
    """
    stems, found = set(images), Counter[str]()
    chosen = sum(stem + ending in masks for stem in stems)
    for mask in masks:
        # The longest name of an image counts: 10 is no 1 that ends in 0.
        length = next((length for length in range(len(mask), 0, -1) if mask[:length] in stems), 0)
        if length:
            found[mask[length:]] += 1
    return sorted(each for each, count in found.items() if each != ending and 2 * count >= chosen)


def around(names: Collection[str]) -> tuple[str, str]:
    """Return what all names, but for folders, begin and end with."""
    plain = [name.rpartition("/")[2] for name in names]
    before = common_start(plain)
    return before, common_start([name[len(before) :][::-1] for name in plain])[::-1]


def common_start(texts: Collection[str]) -> str:
    """Return what all of `texts` begin with."""
    first, last = min(texts), max(texts)
    length = next((i for i, pair in enumerate(zip(first, last, strict=False)) if pair[0] != pair[1]), len(first))
    return first[:length]


def core(names: Collection[str], before: str, after: str) -> set[str]:
    """Return names with their folders, and without what they all begin and end with."""
    parts = (name.rpartition("/") for name in names)
    return {f"{folder}/{name.removeprefix(before).removesuffix(after)}" for folder, _, name in parts}
