"""Find the files of a dataset and put images and labels together, by name and never by position."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from base.base_dataset import Sample
from utils.classes import IGNORE, ClassTable
from utils.errors import ConfigError, DataError, MissingData
from utils.images import IMAGE_SUFFIXES, read_label_colors

Color = tuple[int, int, int]


_forgiven: ContextVar[list[str] | None] = ContextVar("forgiven", default=None)


@contextmanager
def forgiving() -> Iterator[list[str]]:
    """Within it, examples that lack a file are left out, and what would have been raised is listed instead."""
    problems: list[str] = []
    token = _forgiven.set(problems)
    try:
        yield problems
    finally:
        _forgiven.reset(token)


def _complain(problems: list[str]) -> None:
    forgiven = _forgiven.get()
    if forgiven is not None:
        forgiven += problems
    elif problems:
        raise DataError(*problems)


def first_folder(*places: Path) -> Path:
    """The first of `places` that is a folder.

    Raises:
        NotThere: None is.
    """
    for place in places:
        if place.is_dir():
            return place
    shown = " nor ".join(str(place) for place in places)
    raise MissingData(f"data_dir: there is no folder {shown}. Set data_dir to where the dataset was unpacked.")


def image_files(
    folder: Path, *, before: str = "", remove: str = "", also: tuple[str, ...] = (), nested: bool = False
) -> dict[str, Path]:
    """The images right in `folder`, by file name without its ending, `before` at its beginning and `remove` at its end.

    Args:
        folder: Where they are.
        before: What names begin with that belongs to none.
        remove: What they end with that belongs to none.
        also: Endings of other files that are images here.
        nested: Those in folders below it, too; their names begin with these folders'.

    Raises:
        NotThere: There is no such folder.
        DataError: Two files share a name.
    """
    if not folder.is_dir():
        raise MissingData(f"data_dir: there is no folder {folder}. Set data_dir to where the dataset was unpacked.")
    if nested:
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    else:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not entry.is_dir(follow_symlinks=False))
    files: dict[str, Path] = {}
    endings, before, remove = (*IMAGE_SUFFIXES, *also), _composed(before), _composed(remove)
    for name in names:
        whole, ending = os.path.splitext(_composed(name))
        place, stem = os.path.split(whole)
        if ending.lower() not in endings or any(part.startswith(".") for part in name.split("/")):
            continue
        if not (stem.startswith(before) and stem.removeprefix(before).endswith(remove)):
            continue
        stem = stem.removeprefix(before).removesuffix(remove)
        key, path = f"{place}/{stem}" if place else stem, folder / name
        if key in files:
            raise DataError(f"{path}: has the same name as {files[key].name}. Remove one of them.")
        files[key] = path
    return files


def _composed(name: str) -> str:
    """`name` with each accented letter as one character; some systems write it as two, which look the same."""
    return unicodedata.normalize("NFC", name)


def pair(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[Sample]:
    """Samples of the images and labels with the same name.

    Raises:
        DataError: One lacks its counterpart; the first five are named.
    """
    problems: list[str] = []
    for have, other, kind in ((images, labels, "label"), (labels, images, "image")):
        lonely = sorted(have.keys() - other.keys())
        if lonely:
            folder = next(iter(have.values())).parent
            problems.append(f"{folder}: {_some(have[key].name for key in lonely)} without {kind}. Add or remove them.")
    _complain(problems)
    return [Sample(key, image, labels[key]) for key, image in images.items() if key in labels]


def read_list(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file with their numbers, without blank ones and spaces at the ends.

    Raises:
        NotThere: There is no such file.
        DataError: It cannot be read as text.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise MissingData(f"{path}: there is no such list. Set data_dir to where the dataset was unpacked.") from None
    except (OSError, UnicodeError) as error:
        raise DataError(f"{path}: cannot be read as a list ({error}). Give a text file.") from None
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]


def below(root: Path, entry: str, place: str) -> Path:
    """The file that a list's `entry` means: its place below `root`, with or without a slash before it, or its path.

    Raises:
        DataError: It lies outside `root`.
    """
    path, base = os.path.normpath(entry), os.path.abspath(root)
    if Path(path).is_relative_to(base):
        path = os.path.relpath(path, base)
    else:
        path = os.path.normpath(entry.replace("\\", "/").lstrip("/"))
    if path == os.pardir or path.startswith(os.pardir + os.sep) or "\0" in entry or os.path.isabs(path):
        raise DataError(f"{place}: '{entry}' lies outside {root}. Lists name files below data_dir only.")
    return root / path


def all_present(samples: list[Sample], place: Path) -> list[Sample]:
    """`samples`, whose files all exist, and of which none is named twice.

    Raises:
        DataError: Some are missing, or named twice; the first five are named.
    """
    counts = Counter(sample.key for sample in samples)
    if twice := [key for key, count in counts.items() if count > 1]:
        _complain([f"{place}: names {_some(twice)} that are listed twice. Remove all but one line of each."])
        samples = list({sample.key: sample for sample in samples}.values())
    missing = {path for sample in samples for path in (sample.image, sample.label) if not path.is_file()}
    if missing:
        shown = _some(map(str, sorted(missing)))
        _complain([f"{place}: names {shown} that are missing. Add the files or shorten the list."])
    return [sample for sample in samples if not missing & {sample.image, sample.label}]


def refuse_label_map(options: Mapping[str, Any]) -> None:
    """See to it that no `label_map` is given for masks that are drawn in colors.

    Raises:
        ConfigError: One is.
    """
    if options.get("label_map"):
        raise ConfigError("label_map: masks drawn in colors hold no values that it could map. Remove it.")


def color_labels(path: Path, table: ClassTable, void: Iterable[Color] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Training ids of a mask that is drawn in colors, (H, W) uint8, and where its colors are unknown, (H, W) bool.

    What is unknown or `void` becomes 255.
    """
    colors = read_label_colors(path).astype(np.uint32)
    codes = (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]
    known, train_ids = _color_codes(table, frozenset(void))
    place = np.searchsorted(known, codes).clip(max=len(known) - 1)
    unknown = known[place] != codes
    return np.where(unknown, IGNORE, train_ids[place]).astype(np.uint8), unknown


@lru_cache(maxsize=8)
def _color_codes(table: ClassTable, void: frozenset[Color]) -> tuple[np.ndarray, np.ndarray]:
    """Known colors as numbers, ascending, and the training id of each."""
    ids = dict.fromkeys(void, IGNORE)
    ids |= {color: IGNORE if i in table.left_out else i for i, color in enumerate(table.colors)}
    known = sorted(((r << 16) + (g << 8) + b, train_id) for (r, g, b), train_id in ids.items())
    return np.array([code for code, _ in known], np.uint32), np.array([i for _, i in known], np.uint8)


def _some(names: Iterable[str]) -> str:
    """The number of files and the first five."""
    listed = list(names)
    return f"{len(listed)} files ({', '.join(listed[:5])}{', ...' if listed[5:] else ''})"
