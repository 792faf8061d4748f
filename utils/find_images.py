"""Which files a path, a folder or a pattern means, what was passed over, and what to call what is made of them."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils.errors import UserError
from utils.images import ARRAYS, IMAGE_SUFFIXES

FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm")
SHOWN = 3  # names in a line that says what was passed over


@dataclass
class Found:
    """Files to predict.

    Args:
        paths: The files, each once.
        names: For each the name of what is made of it, without ending: below the output folder, unique.
        passed_over: What is there and was not taken, a line for each kind.
    """

    paths: list[Path] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    passed_over: list[str] = field(default_factory=list)


def find_images(
    images: Sequence[str], extensions: str = "any", *, recursive: bool = False, leave_out: Path | None = None
) -> Found:
    """Find the files that `images` mean; those of a folder or a pattern are sorted.

    Args:
        images: Files, folders (their files, not those of folders in them) or patterns such as ``"a/**/*.png"``.
        extensions: Endings such as ``"jpg,png"``, in any case, or ``"any"`` for all that can be read.
        recursive: Take the files of nested folders too, whose places names keep.
        leave_out: A folder whose files are not meant: the one that predictions are written to.

    Raises:
        UserError: One of `images` means no file.
    """
    allowed: tuple[str, ...] | None = None
    if extensions != "any":
        allowed = tuple(f".{ending.strip().lstrip('.')}".lower() for ending in extensions.split(","))
    found, problems = Found(), list[str]()
    relative: dict[Path, Path] = {}  # by file, the place of its prediction
    for each in images:
        path = Path(each)
        if not each:
            problems.append("--images '': an empty name. Name an image, a folder or a pattern.")
        elif path.is_dir():
            files = _files_of(path, allowed, recursive, leave_out, found.passed_over)
            if not files:
                endings = ", ".join(allowed or IMAGE_SUFFIXES)
                problems.append(f"--images {each}: no image ending in {endings} there. See --extension, --recursive.")
            relative |= {file: file.relative_to(path) for file in files if file not in relative}
        elif path.exists():
            relative.setdefault(path, Path(path.name))
        else:
            files = _matches(each, allowed)
            if not files:
                problems.append(f"--images {each}: no such file or folder. Name an image, a folder or a pattern.")
            relative |= {file: Path(file.name) for file in files if file not in relative}
    if problems or not images:
        raise UserError(*problems or ["--images: nothing named. Name an image, a folder or a pattern."])
    found.paths = list(relative)
    found.names = output_names(list(relative.values()))
    return found


def is_film(path: Path) -> bool:
    """Whether a file is a film, by its ending."""
    return path.suffix.lower() in FILMS


def _matches(pattern: str, allowed: Sequence[str] | None) -> list[Path]:
    suffixes = allowed or (*IMAGE_SUFFIXES, *ARRAYS, *FILMS)
    return sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.suffix.lower() in suffixes)


def _files_of(
    folder: Path, allowed: Sequence[str] | None, recursive: bool, leave_out: Path | None, passed_over: list[str]
) -> list[Path]:
    """List the images of a folder, and say in `passed_over` what else is there."""
    files: dict[str, list[Path]] = {"taken": [], "arrays": [], "hidden": [], "others": []}
    for path in _walk(folder, recursive, leave_out):
        files[_kind(path, allowed)].append(path)
    if allowed is None and not files["taken"]:  # the images of a model that was trained on arrays
        files["taken"] = files.pop("arrays")
    nested = [] if recursive else [path for path in _folders(folder, leave_out) if _holds_images(path, allowed)]
    lines = {
        "hidden files. Name them to predict them": files["hidden"],
        "arrays beside images. Use --extension npy for them": files.get("arrays", []),
        "files of other kinds. See --extension": files["others"],
        "folders with images in them. Use --recursive for those": nested,
    }
    for words, paths in lines.items():
        if paths:
            names = ", ".join(path.name for path in paths[:SHOWN]) + (", ..." if len(paths) > SHOWN else "")
            what, _, instead = words.partition(". ")
            passed_over.append(f"{folder}: passed over {len(paths)} {what} ({names}). {instead}.")
    return files["taken"]


def _kind(path: Path, allowed: Sequence[str] | None) -> str:
    """Say what a file of a folder is to be taken for."""
    suffix = path.suffix.lower()
    if path.name.startswith("."):
        return "hidden"
    if allowed is not None:
        return "taken" if suffix in allowed else "others"
    if suffix in ARRAYS:
        return "arrays"
    return "taken" if suffix in IMAGE_SUFFIXES else "others"


def _walk(folder: Path, recursive: bool, leave_out: Path | None) -> Iterator[Path]:
    """Give the files of a folder, sorted; links to folders are not followed, and hidden folders not searched."""
    nested = set(_folders(folder, leave_out))
    for path in sorted(folder.iterdir()):
        named_as_file = not recursive and path.suffix.lower() in IMAGE_SUFFIXES  # a mistake, which reading tells
        if not path.is_dir() or named_as_file:
            yield path
        elif recursive and path in nested:
            yield from _walk(path, recursive, leave_out)


def _folders(folder: Path, leave_out: Path | None) -> list[Path]:
    """List the folders in a folder that predictions are not written to."""
    output = os.path.abspath(leave_out) if leave_out else ""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]
    return [path for path in inside if not path.name.startswith(".") and os.path.abspath(path) != output]


def _holds_images(folder: Path, allowed: Sequence[str] | None) -> bool:
    return any(_kind(path, allowed) in ("taken", "arrays") for path in _walk(folder, True, None))


def output_names(paths: Sequence[Path]) -> list[str]:
    """Make a name for each path, without ending; where two share one, the ending and then a number tell them apart.

    Args:
        paths: Where predictions are to lie below the output folder, with the endings of their images.
    """
    stems = Counter(path.with_suffix("") for path in paths)
    names: list[str] = []
    taken: set[str] = set()
    for path in paths:
        stem = path.with_suffix("")
        name = stem.as_posix() if stems[stem] == 1 else f"{stem.as_posix()}_{path.suffix.lstrip('.')}"
        unique, number = name, 2
        while unique in taken:
            unique = f"{name}_{number}"
            number += 1
        taken.add(unique)
        names.append(unique)
    return names
