"""Make index masks, which `Folder` reads, of others: JPEG files, colors, files of annotation tools."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO

import cv2
import numpy as np
from tqdm import tqdm

from dataloader.datasets.annotation_files import read_annotations
from dataloader.datasets.annotations import keys_of
from dataloader.datasets.files import image_files
from dataloader.datasets.folder import read_classes
from dataloader.datasets.shapes import BACKGROUND_LABELS, VOID_LABELS, Picture, draw, naming
from utils.classes import IGNORE, default_colors
from utils.config import dump_json
from utils.errors import ConfigError, DataError, Fault, Stopped
from utils.files import atomic_write
from utils.images import read_image, read_label_values, write_label

Color = tuple[int, int, int]

MOST_CLASSES = 64  # colors in masks; more of them are no classes
PEAK = 0.005  # share of plain areas that a color must have to be a class, where others come from compression
PLAIN = 12  # difference of neighbors, in a channel, up to which an area is plain
NEAR = 40  # difference of a channel up to which compression, or a soft edge, may have changed a color
CLASS_FILE = "classes.json"
NAME_ONE = "Name a folder of masks or of LabelMe's files, or a file of COCO, CVAT or Label Studio"


@dataclass
class Conversion:
    """What is to be written.

    Args:
        names: Names of the classes, by value.
        colors: A color for each.
        masks: Name of each mask, without its ending, and what makes it, (H, W) uint8.
        remarks: What was guessed or passed over, a line each.
    """

    names: list[str]
    colors: list[Color]
    masks: dict[str, Callable[[], np.ndarray]]
    remarks: list[str] = field(default_factory=list)


def convert(
    source: Path,
    output: Path,
    *,
    names: Sequence[str] | None = None,
    classes: Path | None = None,
    nested: bool = False,
    force: bool = False,
) -> tuple[Conversion, list[str]]:
    """Write index masks and a file of their classes.

    Args:
        source: Folder of masks or of LabelMe's files, or a file of COCO, CVAT or Label Studio.
        output: Folder to write to.
        names: Names of the classes, by value; of annotations, those to draw, without the background.
        classes: File with a color for each class, as `Folder` reads it.
        nested: Take the files in folders below, too.
        force: Replace what is there.

    Returns:
        What was written, and what was wrong with files that could not be converted, a line each.

    Raises:
        DataError: Nothing can be made of the source.
        Stopped: A file cannot be written.
    """
    if output.exists() and source.is_dir() and output.resolve() == source.resolve():
        raise DataError(f"--output {output}: is the folder of the masks themselves. Name another folder.")
    work = plan(source, names=names, classes=classes, nested=nested)
    taken = [name for name in work.masks if (output / f"{name}.png").exists()]
    if taken and not force:
        raise DataError(f"--output {output}: holds {taken[0]}.png already. Name another folder, or add --force.")
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(work.colors)] = work.colors
    palette[IGNORE] = 255
    broken: list[str] = []
    for name, make in tqdm(work.masks.items(), unit="mask", leave=False, disable=None):
        try:
            mask = make()
        except DataError as error:
            broken += error.problems
            continue
        with writing(output / f"{name}.png") as file:
            write_label(file, mask, palette)
    if len(broken) < len(work.masks):
        rows = [
            {"name": name, "value": value, "color": list(color)}
            for value, (name, color) in enumerate(zip(work.names, work.colors, strict=True))
        ]
        with writing(output / CLASS_FILE) as file:
            file.write(dump_json(rows).encode())
    return work, broken


@contextmanager
def writing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file as `atomic_write` does, in a folder that need not be there.

    Raises:
        Stopped: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            yield file
    except OSError as error:
        raise Stopped(f"{path}: cannot be written ({error.strerror}). Free some space") from None


def plan(source: Path, *, names: Sequence[str] | None, classes: Path | None, nested: bool) -> Conversion:
    """Find out what `source` is, and what is to be made of it; arguments as of `convert`."""
    if source.is_file():
        refuse(classes)
        return from_files(source, [source], names)
    if not source.is_dir():
        raise DataError(f"--masks {source}: is neither a folder nor a file. {NAME_ONE}.")
    pictures = image_files(source, nested=nested)
    files = sorted(source.rglob("*.json") if nested else source.glob("*.json"))
    of_labelme = [path for path in files if is_labelme(path)]
    if of_labelme or (files and not pictures):  # LabelMe writes beside the photos
        refuse(classes)
        return from_files(source, of_labelme or files[:1], names)
    if not pictures:
        raise DataError(f"--masks {source}: holds neither pictures nor annotations. Name a folder of masks.")
    return from_pictures(pictures, names, classes)


def refuse(classes: Path | None) -> None:
    """Refuse a file of colors where annotations have names.

    Raises:
        ConfigError: There is one.
    """
    if classes is not None:
        raise ConfigError(f"--classes {classes}: annotations name their classes. Choose from them with --names.")


# Pictures -------------------------------------------------------------------------------------------------------------


def from_pictures(pictures: Mapping[str, Path], names: Sequence[str] | None, classes: Path | None) -> Conversion:
    """Turn colors, gray ones too, to values; each pixel gets the class whose color is nearest to its own."""
    if classes is not None and names is not None:
        raise ConfigError("--names: the file of --classes names the classes already. Leave one of them out.")
    if classes is None and (values := numbers_in(pictures)) is not None:
        return from_numbers(pictures, values, names)
    work = Conversion([], [], {})
    if classes is not None:
        rows = read_classes(classes)
        if plain := [row.name for row in rows if row.color is None]:
            raise ConfigError(f"--classes {classes}: no color for '{plain[0]}'. Each class needs one.")
        work.names, work.colors = [row.name for row in rows], [row.color for row in rows if row.color]
    else:
        work.colors = find_colors(pictures, work.remarks)
        work.names = names_of(work.colors, names)
    colors = np.array(work.colors, np.int32)
    for key, path in pictures.items():
        work.masks[key] = lambda path=path: nearest(read_image(path, upright=False), colors)  # type: ignore[misc]
    return work


def numbers_in(pictures: Mapping[str, Path]) -> list[int] | None:
    """List the values of masks whose values number classes; None where they stand for colors, as 0 and 255 do."""
    found: set[int] = set()
    for path in tqdm(pictures.values(), unit="mask", leave=False, disable=None):
        try:
            found.update(np.unique(read_label_values(path)).tolist())
        except DataError as error:
            if error.details[0].fault in (Fault.COLORS, Fault.LOSSY_LABEL, Fault.FRACTIONS):
                return None  # else it is broken, which is said when it is to be converted
    classes = sorted(found - {IGNORE})
    are_numbers = len(classes) > 1 and (classes[-1] > IGNORE or classes[-1] <= 2 * len(classes))
    return classes if are_numbers else None


def from_numbers(pictures: Mapping[str, Path], values: Sequence[int], names: Sequence[str] | None) -> Conversion:
    """Number classes from 0 on whose values do not fit into 8 bits.

    Raises:
        DataError: They fit already, or they are too many.
    """
    folder = next(iter(pictures.values())).parent
    if values[0] >= 0 and values[-1] < IGNORE:
        raise DataError(f"--masks {folder}: holds index masks already. Give them to prepare.py plan as they are.")
    if len(values) >= IGNORE:
        raise DataError(f"--masks {folder}: holds {len(values):,} values. Masks have up to {IGNORE} classes.")
    if names is not None and len(names) != len(values):
        shown = ", ".join(map(str, values))
        raise ConfigError(f"--names: {len(names)} names for {len(values)} values. Name {shown}, in this order.")
    called = list(names) if names is not None else [f"value_{value}" for value in values]
    work = Conversion(called, default_colors(called), {}, [f"{IGNORE} is taken for void, where a mask has it"])

    def renumbered(path: Path) -> np.ndarray:
        found = read_label_values(path)
        return np.where(found == IGNORE, IGNORE, np.searchsorted(values, found)).astype(np.uint8)

    for key, path in pictures.items():
        work.masks[key] = lambda path=path: renumbered(path)  # type: ignore[misc]
    return work


def find_colors(pictures: Mapping[str, Path], remarks: list[str]) -> list[Color]:
    """Find the colors that stand for classes, darkest first: all, if they are few, else those of plain areas.

    Raises:
        DataError: There are fewer than two, or too many.
    """
    counts: Counter[int] = Counter()
    inside: Counter[int] = Counter()
    for path in tqdm(pictures.values(), unit="mask", leave=False, disable=None):
        with suppress(DataError):  # said when it is to be converted
            image = read_image(path, upright=False)
            counts.update(tally(image.reshape(-1, 3)))
            inside.update(tally(image[is_plain(image)]))
    folder = next(iter(pictures.values())).parent
    lossy = any(path.suffix.lower() in (".jpg", ".jpeg", ".webp") for path in pictures.values())
    codes = sorted(counts)
    if lossy or len(codes) > MOST_CLASSES:
        codes = peaks(inside)
        remarks.append(
            f"of {len(counts):,} colors, {len(codes)} stand for classes; each pixel gets the one that is nearest"
        )
    if not 2 <= len(codes) <= MOST_CLASSES:
        raise DataError(f"{folder}: {len(codes)} colors stand for classes. Name them in a file with --classes.")
    colors = [(code >> 16, code >> 8 & 255, code & 255) for code in codes]
    return sorted(colors, key=lambda color: (sum(color), color))


def tally(colors: np.ndarray) -> dict[int, int]:
    """Count how often each of some colors (N, 3) uint8 occurs; they are written as numbers, red first."""
    wide = colors.astype(np.uint32)
    found, numbers = np.unique((wide[:, 0] << 16) | (wide[:, 1] << 8) | wide[:, 2], return_counts=True)
    return dict(zip(found.tolist(), numbers.tolist(), strict=True))


def is_plain(image: np.ndarray) -> np.ndarray:
    """Say of each pixel of an image (H, W, 3) uint8 whether all around it is of its color, (H, W) bool."""
    around = np.ones((5, 5), np.uint8)
    spread = cv2.dilate(image, around) - cv2.erode(image, around)
    return np.asarray(spread.max(axis=2) <= PLAIN)


def peaks(counts: Mapping[int, int]) -> list[int]:
    """Return the colors, as numbers, that are frequent and not near a more frequent one."""
    codes = np.array(sorted(counts, key=lambda code: -counts[code]), np.int64)
    pixels = np.array([counts[code] for code in codes.tolist()], np.int64)
    channels = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    left, found = np.ones(len(codes), bool), []
    while left.any():
        first = int(left.argmax())  # the most frequent one that is left
        near = left & (np.abs(channels - channels[first]).max(axis=1) <= NEAR)
        if pixels[near].sum() >= PEAK * pixels.sum():
            found.append(int(codes[first]))
        left &= ~near
    return found


def nearest(image: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Return for each pixel of an image (H, W, 3) the number of the color, of (C, 3), that is nearest, (H, W) uint8."""
    best = np.full(image.shape[:2], np.iinfo(np.int32).max, np.int32)
    labels = np.zeros(image.shape[:2], np.uint8)
    for value, color in enumerate(colors):
        distance = ((image.astype(np.int32) - color) ** 2).sum(axis=2)
        closer = distance < best
        best[closer] = distance[closer]
        labels[closer] = value
    return labels


def names_of(colors: Sequence[Color], names: Sequence[str] | None) -> list[str]:
    """Name classes by what is given, else by their colors.

    Raises:
        ConfigError: There are more names, or fewer, than colors.
    """
    if names is None:
        first = "background" if sum(colors[0]) < 3 * NEAR else None
        plain = ["color_{:02x}{:02x}{:02x}".format(*color) for color in colors]
        return [first or plain[0], *(["foreground"] if first and len(colors) == 2 else plain[1:])]
    if len(names) != len(colors):
        shown = ", ".join(map(str, colors))
        raise ConfigError(f"--names: {len(names)} names for {len(colors)} colors. Name {shown}, in this order.")
    return list(names)


# Annotations ----------------------------------------------------------------------------------------------------------


def is_labelme(path: Path) -> bool:
    """Say whether a file looks like one of LabelMe's; what cannot be read is said where it is read."""
    try:
        return '"shapes"' in path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError):
        return True


def classes_of(labels: Sequence[str], names: Sequence[str] | None, source: Path) -> Conversion:
    """Number the classes that annotations name: 0 is what nobody drew, then `names`, or all in order.

    Raises:
        DataError: They are too many, or none of them is wanted.
    """
    wanted = list(names) if names is not None else list(labels)
    if missing := [name for name in wanted if name not in labels]:
        raise DataError(f"--names {missing[0]}: {source} has no such class. Choose from {', '.join(labels)}.")
    if not 0 < len(wanted) < IGNORE - 1:
        raise DataError(f"{source}: names {len(wanted)} classes. Masks hold 1 to {IGNORE - 2} besides the background.")
    found = ["background", *wanted]
    work = Conversion(found, default_colors(found), {})
    if passed := [label for label in labels if label not in wanted]:
        work.remarks.append(f"not drawn, since --names lacks them: {', '.join(passed)}")
    return work


def from_files(source: Path, files: Sequence[Path], names: Sequence[str] | None) -> Conversion:
    """Draw the objects of annotation tools' files, a mask for each image, see `Annotations`.

    Raises:
        DataError: A file cannot be read, or two images would have one mask.
    """
    found = {path: read_annotations(path) for path in files}
    if len(found) == 1:
        labels = next(iter(found.values())).labels
    else:
        labels = sorted({label for each in found.values() for label in each.labels})
    work = classes_of([label for label in labels if label not in (*VOID_LABELS, *BACKGROUND_LABELS)], names, source)
    values = {name: value for value, name in enumerate(work.names)}
    values |= dict.fromkeys(VOID_LABELS, IGNORE) | dict.fromkeys(BACKGROUND_LABELS, 0)
    for path, each in found.items():
        for picture in each.pictures:
            with naming(picture.where):
                key = path.relative_to(source).with_suffix("").as_posix() if source.is_dir() else mask_name(picture)
            if key in work.masks:
                raise DataError(f"{picture.where}: two images are called '{key}'. Give each a name of its own.")
            work.masks[key] = lambda picture=picture: draw(picture, values, unknown="skip")  # type: ignore[misc]
    return work


def mask_name(picture: Picture) -> str:
    """Name a mask, without its ending, as its image is called; folders stay if they are within that of the images.

    They are not in paths of another machine, nor in addresses of Label Studio, which also puts eight digits before the
    names of files that were uploaded.

    Raises:
        ValueError: The image has no name.
    """
    path = PurePosixPath(picture.name.replace("\\", "/"))
    is_within = not path.is_absolute() and ".." not in path.parts and ":" not in picture.name
    if is_within:
        return path.with_suffix("").as_posix()
    *_, as_stored, as_uploaded = keys_of(picture.name)
    return as_uploaded if "/upload/" in picture.name else as_stored
