"""Make index masks, which `Folder` reads, of others: JPEG files, colors, polygons of LabelMe, annotations of COCO."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from dataloader.datasets.files import image_files
from dataloader.datasets.folder import read_classes
from utils.classes import IGNORE, default_colors
from utils.config import dump_json
from utils.errors import ConfigError, DataError, Stopped
from utils.files import atomic_write
from utils.images import read_image, write_label

Color = tuple[int, int, int]

MOST_CLASSES = 64  # colors in masks; more of them are no classes
PEAK = 0.005  # share of plain areas that a color must have to be a class, where others come from compression
PLAIN = 12  # difference of neighbours, in a channel, up to which an area is plain
NEAR = 40  # difference of a channel up to which compression, or a soft edge, may have changed a color
WIDEST = 2**27  # pixels of a mask
CLASS_FILE = "classes.json"
VOID_LABELS = ("__ignore__", "void")  # LabelMe's word for what has no class
BACKGROUND_LABELS = ("_background_", "background")
NAME_ONE = "Name a folder of masks or of LabelMe's files, or COCO's file"
NOTHING_LIKE_THIS = f"is no annotation of LabelMe, nor of COCO. {NAME_ONE}"


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
        source: Folder of masks or of LabelMe's files, or COCO's file.
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
        path = output / f"{name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                write_label(file, mask, palette)
        except OSError as error:
            raise Stopped(f"{path}: cannot be written ({error.strerror}). Free some space") from None
    if len(broken) < len(work.masks):
        rows = [
            {"name": name, "value": value, "color": list(color)}
            for value, (name, color) in enumerate(zip(work.names, work.colors, strict=True))
        ]
        with atomic_write(output / CLASS_FILE) as file:
            file.write(dump_json(rows).encode())
    return work, broken


def plan(source: Path, *, names: Sequence[str] | None, classes: Path | None, nested: bool) -> Conversion:
    """Find out what `source` is, and what is to be made of it; arguments as of `convert`."""
    if source.is_file():
        return from_coco(source, names)
    if not source.is_dir():
        raise DataError(f"--masks {source}: is neither a folder nor a file. {NAME_ONE}.")
    pictures = image_files(source, nested=nested)
    files = sorted(source.rglob("*.json") if nested else source.glob("*.json"))
    if files and not pictures:
        return from_labelme(source, files, names)
    if files and pictures and any("shapes" in read_annotation(path) for path in files[:1]):
        return from_labelme(source, files, names)  # LabelMe writes beside the photos
    if not pictures:
        raise DataError(f"--masks {source}: holds neither pictures nor annotations. Name a folder of masks.")
    return from_pictures(pictures, names, classes)


# Pictures -------------------------------------------------------------------------------------------------------------


def from_pictures(pictures: Mapping[str, Path], names: Sequence[str] | None, classes: Path | None) -> Conversion:
    """Turn colors, gray ones too, to values; each pixel gets the class whose color is nearest to its own."""
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


# Polygons -------------------------------------------------------------------------------------------------------------


def read_annotation(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: It cannot be read, or is something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "no JSON"
        raise DataError(f"{path}: cannot be read ({reason}). Get the file again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: {NOTHING_LIKE_THIS}.")
    return value


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


def from_labelme(source: Path, files: Sequence[Path], names: Sequence[str] | None) -> Conversion:
    """Draw the shapes of LabelMe's files, a mask for each; later shapes lie over earlier ones."""
    contents = {path: read_annotation(path) for path in files}
    contents = {path: content for path, content in contents.items() if isinstance(content.get("shapes"), list)}
    if not contents:
        raise DataError(f"{files[0]}: {NOTHING_LIKE_THIS}.")
    labels: set[str] = set()
    for content in contents.values():
        labels |= {str(shape.get("label")) for shape in content["shapes"] if isinstance(shape, dict)}
    work = classes_of(sorted(labels - {*VOID_LABELS, *BACKGROUND_LABELS}), names, source)
    values = {name: value for value, name in enumerate(work.names)}
    values |= dict.fromkeys(VOID_LABELS, IGNORE) | dict.fromkeys(BACKGROUND_LABELS, 0)
    for path, content in contents.items():
        key = path.relative_to(source).with_suffix("").as_posix()
        work.masks[key] = lambda path=path, content=content: draw_labelme(path, content, values)  # type: ignore[misc]
    return work


def draw_labelme(path: Path, content: Mapping[str, Any], values: Mapping[str, int]) -> np.ndarray:
    """Draw the shapes of a file of LabelMe: polygons, rectangles and circles; points and lines have no area.

    Raises:
        DataError: Its sizes or shapes make no sense.
    """
    mask = blank(path, content.get("imageHeight"), content.get("imageWidth"))
    try:
        for shape in content["shapes"]:
            value, kind = values.get(str(shape["label"])), shape.get("shape_type") or "polygon"
            points = np.array(shape["points"], np.float64).reshape(-1, 2)
            if value is None or not np.isfinite(points).all():
                continue
            if kind == "rectangle" and len(points) == 2:
                (x0, y0), (x1, y1) = points
                points = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            if kind == "circle" and len(points) == 2:
                radius = float(np.hypot(*(points[1] - points[0])))
                center = int(points[0][0]), int(points[0][1])
                cv2.circle(mask, center, max(1, round(radius)), value, -1)
            elif kind in ("polygon", "rectangle") and len(points) > 2:
                fill(mask, points, value)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: a shape makes no sense. Open and save it in LabelMe.") from None
    return mask


def blank(where: Path | str, height: Any, width: Any) -> np.ndarray:
    """Make an empty mask.

    Raises:
        DataError: It has no size.
    """
    if not (isinstance(height, int) and isinstance(width, int) and 0 < height * width <= WIDEST and height > 0):
        raise DataError(f"{where}: has no size of an image ({height} x {width}). Annotate it again.")
    return np.zeros((height, width), np.uint8)


def fill(mask: np.ndarray, points: np.ndarray, value: int) -> None:
    """Draw a polygon whose corners (N, 2), x before y, may lie between pixels: 0 is the left edge of the first."""
    shifted = np.rint((points - 0.5) * 16).astype(np.int32)
    cv2.fillPoly(mask, [shifted.reshape(-1, 1, 2)], value, shift=4)


def from_coco(source: Path, names: Sequence[str] | None) -> Conversion:
    """Draw the annotations of COCO's file, a mask for each image: large ones first, so that none is hidden."""
    content = read_annotation(source)
    try:
        images = {image["id"]: image for image in content["images"]}
        categories = {category["id"]: str(category["name"]) for category in content["categories"]}
        drawn: dict[Any, list[dict[str, Any]]] = {key: [] for key in images}
        for annotation in content["annotations"]:
            drawn[annotation["image_id"]].append(annotation)
        labels = [categories[key] for key in sorted(categories)]
        files = {key: Path(str(image["file_name"])) for key, image in images.items()}
    except (KeyError, TypeError) as error:
        raise DataError(f"{source}: {NOTHING_LIKE_THIS} ({error} is missing).") from None
    work = classes_of(labels, names, source)
    numbers = {name: value for value, name in enumerate(work.names)}
    values = {key: numbers[name] for key, name in categories.items() if name in numbers}
    for key, image in images.items():
        if files[key].is_absolute() or ".." in files[key].parts:
            raise DataError(f"{source}: '{files[key]}' lies outside its folder. Give plain names.")
        name = files[key].with_suffix("").as_posix()
        work.masks[name] = lambda image=image, shapes=drawn[key]: draw_coco(source, image, shapes, values)  # type: ignore[misc]
    return work


def draw_coco(
    source: Path, image: Mapping[str, Any], shapes: Sequence[Mapping[str, Any]], values: Mapping[Any, int]
) -> np.ndarray:
    """Draw the annotations of an image of COCO's; crowds are void.

    Raises:
        DataError: They make no sense.
    """
    where = f"{source}: {image.get('file_name')}"
    mask = blank(where, image.get("height"), image.get("width"))
    try:
        for shape in sorted(shapes, key=lambda each: -float(each.get("area", 0))):
            value = IGNORE if shape.get("iscrowd") else values.get(shape["category_id"])
            if value is None:
                continue
            for region in regions_of(shape["segmentation"], mask.shape):
                if region.dtype == bool:
                    mask[region] = value
                else:
                    fill(mask, region, value)
    except (KeyError, TypeError, ValueError, IndexError):
        raise DataError(f"{where}: an annotation makes no sense. Export it again.") from None
    return mask


def regions_of(segmentation: Any, size: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Read a segmentation of COCO's: corners (N, 2) of polygons, or a mask (H, W) bool of run lengths."""
    if isinstance(segmentation, list):
        for corners in segmentation:
            yield np.array(corners, np.float64).reshape(-1, 2)
        return
    counts = segmentation["counts"]
    runs = decode_runs(counts) if isinstance(counts, str) else list(counts)
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    yield flat.reshape(size[1], size[0]).T  # column by column


def decode_runs(text: str) -> list[int]:
    """Decode compressed run lengths: 5 bits and a bit for "goes on" in each character, from the third on as a
    difference to the last but one. Source: maskApi.c of https://github.com/cocodataset/cocoapi, `rleFrString`.
    """
    runs: list[int] = []
    value, shift = 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value, shift = 0, 0
    return runs
