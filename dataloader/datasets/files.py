"""Find the files of a dataset and put images and labels together, by name and never by position."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from base.base_dataset import Sample
from utils.classes import IGNORE, ClassTable
from utils.errors import ConfigError, DataError, Fault, MissingData, Problem
from utils.images import IMAGE_SUFFIXES, read_label_colors

Color = tuple[int, int, int]


UNPACKED = "Set data_dir to where the dataset was unpacked"
ADD_OR_REMOVE = "Add or remove them"


def _report(found: list[Problem], problems: list[Problem] | None) -> None:
    """Add what was `found` to `problems`, or raise it where nobody collects them."""
    if problems is not None:
        problems += found
    elif found:
        raise DataError(*found)


def first_folder(*paths: Path) -> Path:
    """Return the first of `paths` that is a folder.

    Raises:
        MissingData: None is.
    """
    for path in paths:
        if path.is_dir():
            return path
    shown = " nor ".join(map(str, paths))
    raise MissingData(Problem(Fault.OTHER, "data_dir", f"there is no folder {shown}", UNPACKED))


def image_files(
    folder: Path, *, before: str = "", remove: str = "", also: tuple[str, ...] = (), nested: bool = False
) -> dict[str, Path]:
    """Find the images right in `folder`, by file name without its ending, `before` and `remove`.

    Args:
        folder: Where they are.
        before: What names begin with that is not part of the key; others are passed over.
        remove: What they end with that is not part of the key; others are passed over.
        also: Endings of other files that are images here.
        nested: Those in folders below it, too; their keys begin with these folders' names.

    Raises:
        MissingData: There is no such folder.
        DataError: Two files share a name.
    """
    if not folder.is_dir():
        raise MissingData(Problem(Fault.OTHER, "data_dir", f"there is no folder {folder}", UNPACKED))
    files: dict[str, Path] = {}
    endings, before, remove = (*IMAGE_SUFFIXES, *also), composed(before), composed(remove)
    for name in _nested_names(folder) if nested else _names(folder):
        if name.startswith(".") or "/." in name:  # hidden
            continue
        whole, ending = os.path.splitext(composed(name))
        if ending.lower() not in endings:
            continue
        parent, _, stem = whole.rpartition("/")
        # The same letters cannot belong to both ends.
        if not (stem.startswith(before) and stem.removeprefix(before).endswith(remove)):
            continue
        stem = stem.removeprefix(before).removesuffix(remove)
        key, path = f"{parent}/{stem}" if parent else stem, folder / name
        if key in files:
            what = f"has the same name as {files[key].name}"
            raise DataError(Problem(Fault.OTHER, path, what, "Remove one of them"))
        files[key] = path
    return files


def _names(folder: Path) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))


def _nested_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def composed(name: str) -> str:
    """Write each accented letter of `name` as one character; some systems use two, which look the same."""
    return unicodedata.normalize("NFC", name)


def pair(
    images: Mapping[str, Path],
    labels: Mapping[str, Path],
    problems: list[Problem] | None = None,
    *,
    hint: str = "",
) -> list[Sample]:
    """Make samples of the images and labels with the same key.

    Args:
        images: Files by key.
        labels: Likewise.
        problems: Receives what has no counterpart; None to raise it.
        hint: What to do about it, where that is known.

    Raises:
        DataError: One lacks its counterpart; the first five are named.
    """
    found: list[Problem] = []
    for have, others, fault, lacking in (
        (images, labels, Fault.IMAGE_ALONE, "label"),
        (labels, images, Fault.LABEL_ALONE, "image"),
    ):
        alone = sorted(have.keys() - others.keys())
        if alone:
            folder = next(iter(have.values())).parent
            what = f"{_some(have[key].name for key in alone)} without {lacking}"
            found.append(Problem(fault, folder, what, hint or ADD_OR_REMOVE))
    _report(found, problems)
    return [Sample(key, image, labels[key]) for key, image in images.items() if key in labels]


def read_list(path: Path) -> list[tuple[int, str]]:
    """Read the lines of a text file with their numbers, without blank ones and spaces at the ends.

    Raises:
        MissingData: There is no such file.
        DataError: It cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingData(Problem(Fault.OTHER, path, "there is no such list", UNPACKED)) from None
    except (OSError, UnicodeError) as error:
        what = f"cannot be read as a list ({error})"
        raise DataError(Problem(Fault.OTHER, path, what, "Give a text file")) from None
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def below(root: Path, entry: str, where: str) -> Path:
    """Return the file that a list's `entry` means: a path below `root`, with or without a slash before it, or absolute.

    Args:
        root: The dataset's folder.
        entry: What the list says.
        where: List and line, for errors.

    Raises:
        DataError: It lies outside `root`.
    """
    path, base = os.path.normpath(entry), os.path.abspath(root)
    if Path(path).is_relative_to(base):
        path = os.path.relpath(path, base)
    else:
        path = os.path.normpath(entry.replace("\\", "/").lstrip("/"))
    if path == os.pardir or path.startswith(os.pardir + os.sep) or "\0" in entry or os.path.isabs(path):
        what = f"'{entry}' lies outside {root}"
        raise DataError(Problem(Fault.OTHER, where, what, "Lists name files below data_dir only"))
    return root / path


def all_present(samples: list[Sample], source: Path, problems: list[Problem] | None = None) -> list[Sample]:
    """Return the `samples` whose files exist, each once.

    Args:
        samples: What a list names.
        source: The list, for errors.
        problems: Receives what is missing or named twice; None to raise it.

    Raises:
        DataError: Some are missing, or named twice; the first five are named.
    """
    counts = Counter(sample.key for sample in samples)
    if twice := [key for key, count in counts.items() if count > 1]:
        what = f"names {_some(twice)} that are listed twice"
        _report([Problem(Fault.LISTED_TWICE, source, what, "Remove all but one line of each")], problems)
        samples = list({sample.key: sample for sample in samples}.values())
    paths = {path for sample in samples for path in (sample.image, sample.label)}
    missing = {path for path in paths if not path.is_file()}
    if missing:
        what = f"names {_some(map(str, sorted(missing)))} that are missing"
        _report([Problem(Fault.MISSING_FILES, source, what, "Add the files or shorten the list")], problems)
    return [sample for sample in samples if not missing & {sample.image, sample.label}]


def refuse_label_map(options: Mapping[str, Any]) -> None:
    """Refuse a `label_map` for masks that are drawn in colors.

    Raises:
        ConfigError: One is.
    """
    if options.get("label_map"):
        raise ConfigError("label_map: masks drawn in colors hold no values that it could map. Remove it.")


def color_labels(path: Path, table: ClassTable, void: Iterable[Color] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Read a mask that is drawn in colors; what is unknown or `void` becomes 255.

    Args:
        path: The mask.
        table: Classes and their colors.
        void: Colors that stand for void.

    Returns:
        ids: Training ids, (H, W) uint8.
        unknown: Where colors stand for nothing, (H, W) bool.
    """
    colors = read_label_colors(path).astype(np.uint32)
    codes = (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]
    known, train_ids = _color_codes(table, frozenset(void))
    nearest = np.searchsorted(known, codes).clip(max=len(known) - 1)
    unknown = known[nearest] != codes
    return np.where(unknown, IGNORE, train_ids[nearest]).astype(np.uint8), unknown


@lru_cache(maxsize=8)
def _color_codes(table: ClassTable, void: frozenset[Color]) -> tuple[np.ndarray, np.ndarray]:
    """Return known colors as numbers, ascending, and the training id of each."""
    ids = dict.fromkeys(void, IGNORE)
    ids |= {color: IGNORE if i in table.ignored_classes else i for i, color in enumerate(table.colors)}
    known = sorted(((r << 16) + (g << 8) + b, train_id) for (r, g, b), train_id in ids.items())
    return np.array([code for code, _ in known], np.uint32), np.array([i for _, i in known], np.uint8)


def _some(names: Iterable[str]) -> str:
    """Say how many files there are, and the first five."""
    listed = list(names)
    return f"{len(listed)} files ({', '.join(listed[:5])}{', ...' if listed[5:] else ''})"
