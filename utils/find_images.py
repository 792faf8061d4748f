"""Which image files a path, a folder or a pattern means, and what to call what is made of them."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from utils.images import IMAGE_SUFFIXES


def find_images(images: str, extensions: str = "any") -> list[Path]:
    """Find the files that `images` means, sorted.

    Args:
        images: A file, a folder (its files, not those of folders in it) or a pattern such as ``"a/**/*.png"``.
        extensions: Endings such as ``"jpg,png"``, in any case, or ``"any"`` for all that can be read.

    Raises:
        UserError: There are none.
    """
    allowed: tuple[str, ...] = IMAGE_SUFFIXES
    if extensions != "any":
        allowed = tuple(f".{ending.strip().lstrip('.')}".lower() for ending in extensions.split(","))
    path = Path(images)
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() in allowed and not p.name.startswith(".")]
        if not found:
            raise UserError(f"--images {images}: no image ending in {', '.join(allowed)} there. See --extension.")
    elif path.exists():
        found = [path]
    else:
        found = [Path(p) for p in glob.glob(images, recursive=True) if Path(p).suffix.lower() in allowed]
        if not found:
            raise UserError(f"--images {images}: no such file or folder. Name an image, a folder or a pattern.")
    return sorted(found)


def output_names(paths: Sequence[Path]) -> list[str]:
    """Make a name for each path: its stem; where two share one, the ending and then a number tell them apart."""
    stems = Counter(path.stem for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        name = path.stem if stems[path.stem] == 1 else f"{path.stem}_{path.suffix.lstrip('.')}"
        unique, number = name, 2
        while unique in taken:
            unique = f"{name}_{number}"
            number += 1
        taken.add(unique)
        names.append(unique)
    return names
