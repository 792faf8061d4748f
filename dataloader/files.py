"""Find the files of a dataset and put images and labels together, by name and never by position."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from base.base_dataset import Sample
from utils.errors import DataError
from utils.images import IMAGE_SUFFIXES


def image_files(folder: Path, *, remove: str = "") -> dict[str, Path]:
    """The images right in `folder`, by file name without its ending and without `remove` at its end.

    Raises:
        DataError: There is no such folder, or two files share a name.
    """
    if not folder.is_dir():
        raise DataError(f"data_dir: there is no folder {folder}. Set data_dir to where the dataset was unpacked.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES or path.name.startswith(".") or not path.stem.endswith(remove):
            continue
        key = path.stem.removesuffix(remove)
        if key in files:
            raise DataError(f"{path}: has the same name as {files[key].name}. Remove one of them.")
        files[key] = path
    return files


def pair(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[Sample]:
    """Samples of the images and labels with the same name.

    Raises:
        DataError: One lacks its counterpart; the first five are named.
    """
    problems = []
    for have, other, kind in ((images, labels, "label"), (labels, images, "image")):
        lonely = sorted(have.keys() - other.keys())
        if lonely:
            folder = next(iter(have.values())).parent
            problems.append(f"{folder}: {_some(have[key].name for key in lonely)} without {kind}. Add or remove them.")
    if problems:
        raise DataError(*problems)
    return [Sample(key, image, labels[key]) for key, image in images.items()]


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers, without blank ones and spaces at the ends.

    Raises:
        DataError: It cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read as a list ({error}). Give a text file.") from None
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def below(root: Path, entry: str, place: str) -> Path:
    """The file that a list's `entry` means, with or without a slash at its beginning.

    Raises:
        DataError: It lies outside `root`.
    """
    path = os.path.normpath(entry.replace("\\", "/").lstrip("/"))
    if path == os.pardir or path.startswith(os.pardir + os.sep) or "\0" in entry or os.path.isabs(path):
        raise DataError(f"{place}: '{entry}' lies outside {root}. Lists name files below data_dir only.")
    return root / path


def all_present(samples: list[Sample], place: Path) -> list[Sample]:
    """`samples`, whose files all exist.

    Raises:
        DataError: Some are missing; the first five are named.
    """
    missing = [path for sample in samples for path in (sample.image, sample.label) if not path.is_file()]
    if missing:
        raise DataError(
            f"{place}: names {_some(map(str, missing))} that are missing. Add the files or shorten the list."
        )
    return samples


def _some(names: Iterable[str]) -> str:
    """The number of files and the first five."""
    listed = list(names)
    return f"{len(listed)} files ({', '.join(listed[:5])}{', ...' if listed[5:] else ''})"
