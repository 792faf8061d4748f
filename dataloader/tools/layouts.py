"""Where images and masks, or the files of annotation tools, lie; found out from the folders that somebody names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from dataloader.datasets.annotation_files import read_annotations
from dataloader.datasets.files import image_files
from dataloader.datasets.shapes import BACKGROUND_LABELS, VOID_LABELS
from utils.classes import BACKGROUND
from utils.errors import ConfigError, DataError

SPLITS = ("train", "val")
SPLITS_OF_TOOLS = (SPLITS, ("train", "valid"))  # as exports are divided
VOID = "void"  # among the names: what has no class
FORMATS = (".json", ".xml")  # of files for all images


@dataclass(frozen=True)
class Layout:
    """Where images and masks lie.

    Args:
        root: The folder that both are in.
        image_dir: Name of the folder, or folders, of images, as `Folder` or `Annotations` wants it.
        mask_dir: Likewise, of masks; of annotations, the file or folder.
        splits: "train" and "val" (of annotations also "valid") where each has folders of its own, else "all".
        folders: Folder of images and folder of masks, or annotations, of each split.
        annotated: Whether these are the files of an annotation tool.
    """

    root: Path
    image_dir: str
    mask_dir: str
    splits: tuple[str, ...]
    folders: Sequence[tuple[Path, Path]]
    annotated: bool = False


def find_layout(images: Path, masks: Path) -> Layout:
    """Recognize folders of both, folders with train and val in them, and folders in train beside those in val.

    Raises:
        DataError: One is no folder, or both are the same.
    """
    if images == masks and (images / "train" / "images").is_dir() and (images / "train" / "masks").is_dir():
        images, masks = images / "train" / "images", images / "train" / "masks"
    if images.is_dir() and is_annotated(images, masks):
        return find_annotations(images, masks)
    root, image_dir, mask_dir = common_root(images, masks)
    inside = [(images / split, masks / split) for split in SPLITS]
    if all(folder.is_dir() for folder in chain.from_iterable(inside)):
        return Layout(root, image_dir, mask_dir, SPLITS, inside)
    if root.resolve().name == SPLITS[0]:
        home = root.parent if root.name == SPLITS[0] else root.resolve().parent
        beside = [(home / split / image_dir, home / split / mask_dir) for split in SPLITS]
        if all(folder.is_dir() for folder in chain.from_iterable(beside)):
            return Layout(home, image_dir, mask_dir, SPLITS, beside)
    return Layout(root, image_dir, mask_dir, ("all",), [(images, masks)])


def common_root(images: Path, masks: Path) -> tuple[Path, str, str]:
    """Find the folder that both are in, and their names below it.

    Raises:
        DataError: One is no folder, or both are the same.
    """
    for flag, folder in (("--images", images), ("--masks", masks)):
        if not folder.is_dir():
            raise DataError(f"{flag} {folder}: is no folder. Name the folder that holds the files.")
    if images.resolve() == masks.resolve():
        raise DataError(f"--masks {masks}: is the folder of the images. Put masks into one of their own.")
    return _root_of(images, masks)


def _root_of(images: Path, masks: Path) -> tuple[Path, str, str]:
    if images.is_absolute() != masks.is_absolute() or ".." in (*images.parts, *masks.parts):
        images, masks = images.resolve(), masks.resolve()
    root = Path(os.path.commonpath([images, masks]) or ".")
    if root == masks and masks.is_file():
        root = masks.parent
    return root, images.relative_to(root).as_posix(), masks.relative_to(root).as_posix()


def run_name(root: Path) -> str:
    """Make a name for runs on the data in `root`."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in root.resolve().name).strip("_")
    return plain if plain and plain != "runs" else "own_data"


# Files of annotation tools ------------------------------------------------------------------------------------------


def is_annotated(images: Path, masks: Path) -> bool:
    """Say whether `masks` is a file of an annotation tool, or a folder of such and not of masks."""
    if masks.is_file():
        return masks.suffix.lower() in FORMATS
    if not masks.is_dir():
        return False
    found = next(_files_of_tools(masks), None)
    return found is not None and (masks.resolve() == images.resolve() or not image_files(masks, nested=True))


def _files_of_tools(folder: Path) -> Iterator[Path]:
    """Find LabelMe's and YOLO's files in `folder` and below, and those of other tools."""
    for path in sorted(folder.rglob("*")):
        is_theirs = path.suffix.lower() in (*FORMATS, ".txt") and path.stem != "classes"
        if is_theirs and not path.name.startswith(".") and path.is_file():
            yield path


def find_annotations(images: Path, masks: Path) -> Layout:
    """Recognize one file for all images or one for each, with train and val apart or not."""
    if masks.is_dir():
        whole = [path for path in sorted(masks.iterdir()) if _is_for_all(path)]
        named = next(
            (path for path in whole if any(_other(path, splits).is_file() for splits in SPLITS_OF_TOOLS)), None
        )
        masks = named or (whole[0] if len(whole) == 1 else masks)
    root, image_dir, mask_dir = _root_of(images, masks)
    for splits in SPLITS_OF_TOOLS:
        apart = _by_split(images, splits), _by_split(masks, splits)
        if apart[0] is None or apart[1] is None:
            continue
        both = [(Path(apart[0].replace("{split}", each)), Path(apart[1].replace("{split}", each))) for each in splits]
        if all(path.exists() for path in chain.from_iterable(both)):
            base = Path(os.path.commonpath(list(chain.from_iterable(both))) or ".")
            names = [Path(text).relative_to(base).as_posix() for text in apart]  # type: ignore[arg-type]
            return Layout(base, names[0], names[1], splits, both, annotated=True)
    return Layout(root, image_dir, mask_dir, ("all",), [(images, masks)], annotated=True)


def _is_for_all(path: Path) -> bool:
    """Say whether a file names several images, as LabelMe's do not."""
    if path.name.startswith("."):
        return False
    if path.suffix.lower() == ".xml":
        return True
    if path.suffix.lower() != ".json":
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return False
    return not (isinstance(content, dict) and "shapes" in content)


def _other(path: Path, splits: Sequence[str]) -> Path:
    """Return what a path that names train would be called for val; a folder that is none where it does not."""
    return path.with_name(path.name.replace(splits[0], splits[1])) if splits[0] in path.name else path.parent


def _by_split(path: Path, splits: Sequence[str]) -> str | None:
    """Write a path with "{split}" for the name of the split; None where none is in it, below it or right above it."""
    if splits[0] in path.name:
        return path.with_name(path.name.replace(splits[0], "{split}")).as_posix()
    if all((path / split).is_dir() for split in splits):
        return (path / "{split}").as_posix()
    if path.parent.name == splits[0]:
        return (path.parent.parent / "{split}" / path.name).as_posix()
    return None


def annotated_classes(layout: Layout, names: Sequence[str] | None) -> tuple[list[str], dict[str, Any]]:
    """Find the classes in the files of an annotation tool.

    Args:
        layout: Where they lie.
        names: Names of the classes to take, others being void; of YOLO, names by ascending number.

    Returns:
        The classes, and the arguments of `Annotations` besides its folders.

    Raises:
        DataError: A file cannot be read.
        ConfigError: A name is no label, or too few are given.
    """
    sources = [source for _, source in layout.folders]
    labels: dict[str, None] = {}
    numbers: set[int] = set()
    for source in sources:
        if source.is_file():
            contents = read_annotations(source)
            used = {shape.label for picture in contents.pictures for shape in picture.shapes}
            order = [*contents.labels, *sorted(used - set(contents.labels))]
            labels |= dict.fromkeys(label for label in order if label in used)
            continue
        for path in _files_of_tools(source):
            if path.suffix.lower() == ".txt":
                numbers |= _numbers_in(path)
            else:
                found = read_annotations(path).pictures
                labels |= dict.fromkeys(sorted(shape.label for picture in found for shape in picture.shapes))
    if labels:
        return _named(list(labels), names)
    if not numbers:
        raise DataError(f"{sources[0]}: no object is drawn in it. Name the file or folder that the tool exported.")
    given = list(names or _names_of_numbers(sources[0], layout.root) or [f"class_{n}" for n in range(max(numbers) + 1)])
    if len(given) <= max(numbers):
        raise ConfigError(f"--names: {len(given)} names, but objects have numbers up to {max(numbers)}. Name all.")
    classes = _with_background(given)
    if classes != given:
        return classes, {}
    # `Annotations` counts the classes without the background, and here it has a number itself.
    return classes, {"label_map": {str(number): name for number, name in enumerate(given)}}


def _named(labels: Sequence[str], names: Sequence[str] | None) -> tuple[list[str], dict[str, Any]]:
    known = [label for label in labels if label not in (*VOID_LABELS, *BACKGROUND_LABELS)]
    if names is None:
        return _with_background(known), {}
    wanted = [name for name in names if name != VOID]
    if wrong := [name for name in wanted if name not in known and name.lower() not in BACKGROUND]:
        raise ConfigError(f"--names: no object is called {wrong[0]!r}. Choose from {', '.join(known)}.")
    return _with_background(wanted), {"unknown": "void"} if set(known) - set(wanted) else {}


def _with_background(names: Sequence[str]) -> list[str]:
    return list(names) if any(name.lower() in BACKGROUND for name in names) else ["background", *names]


def _numbers_in(path: Path) -> set[int]:
    """Read which numbers of classes a file of YOLO's has; what else is wrong with it is said when it is read."""
    try:
        words = [line.split()[0] for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError):
        return set()
    return {int(word) for word in words if word.isdecimal() and int(word) < 255}


def _names_of_numbers(folder: Path, root: Path) -> list[str] | None:
    """Read the names that YOLO's exporters put into classes.txt."""
    for place in (folder, folder.parent, root):
        path = place / "classes.txt"
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            return [line.strip() for line in lines if line.strip()]
    return None
