"""Say what is wrong with a dataset, and which line of a config fixes it.

`scan.examine` reads all images and labels in parallel and remembers what it read, so that the next time only files that
changed are read again. `diagnose` then knows all of them at once, and finds what no single file can tell: classes
that never occur, labels that are shifted by one, images that are in two splits.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from base.base_dataset import BaseDataset
from dataloader.datasets.files import ADD_OR_REMOVE
from dataloader.tools.duplicates import repeated
from dataloader.tools.findings import SHOWN as SHOWN
from dataloader.tools.findings import Examined as Examined
from dataloader.tools.findings import Finding as Finding
from dataloader.transforms.preparation import preparation_of, scale_range
from utils.classes import IGNORE
from utils.errors import DataError, Fault, Problem
from utils.images import IMAGE_SUFFIXES, read_label_colors
from utils.shards import is_packed

MOST_COLORS = 32  # in masks; more of them are no classes
SOME = 50  # files that are read once more, to name what is in them
BLURRED = 8  # unknown values from which on labels look as if they had been resized like photographs
BLURRED_SHARE = 0.2  # of the pixels; more of them are no edges
DARK = 16  # of 255 in root mean square: what is left of 12 bits in a file of 16
SCALE_MARGIN = 1.25  # factor by which validation may be beyond the scales that training sees
ZERO_AND_255, SHIFTED_LABELS = "0 and 255", "shifted labels"
MISREAD = (ZERO_AND_255, SHIFTED_LABELS)  # kinds of findings that decide which classes there are
SHIFTED = "they are shifted by one"

# What fixes files with a fault; others have a fix of their own.
SKIP = '"on_bad_sample": "skip", or get the files again'
REPLACE = "get the files again, or remove them with their counterparts: they are more than a loader skips"
CONVERT = "`python prepare.py convert` makes masks with label values of them"
FIXES = {
    Fault.EMPTY_FILE: SKIP,
    Fault.DAMAGED_FILE: SKIP,
    Fault.WEB_PAGE: "download the files again",
    Fault.LFS_POINTER: "`git lfs pull`",
    Fault.NO_IMAGE: SKIP,
    Fault.HUGE_IMAGE: "cut the files into tiles",
    Fault.FRACTIONS: "make the labels anew, with whole numbers from 0 to 255",
    Fault.COLORS: CONVERT,
    Fault.LOSSY_LABEL: CONVERT,
    Fault.WIDE_LABEL: 'convert the files: "label_map" has no value above 255',
    Fault.TURNED_IMAGE: "`exiftool -Orientation= FILES`",
    Fault.DIFFERENT_SIZES: SKIP,
    Fault.ALTERED_ARCHIVE: "`prepare.py pack --force` again",
    Fault.UNKNOWN_COLOR: '"unknown": "void"',
}
SPLIT_FAULTS = (Fault.IMAGE_ALONE, Fault.LABEL_ALONE, Fault.MISSING_FILES, Fault.LISTED_TWICE)


def diagnose(splits: Sequence[Examined]) -> list[Finding]:
    """Find what is wrong with the splits of a dataset."""
    findings: list[Finding] = []
    for examined in splits:
        wrong = list(wrong_values(examined))
        for rule in (unpaired_files, nested_files, unusable_files, void_labels, odd_images, sizes, scales):
            findings += rule(examined)
        findings += wrong
        if not any(finding.kind in MISREAD for finding in wrong):
            findings += missing_classes(examined)
    return findings + list(repeated(splits))


def unpaired_files(examined: Examined) -> Iterator[Finding]:
    """Find images without label, labels without image, files that a list names and that are not there."""
    for problem in examined.unpaired:
        yield unusable_split(examined.split, problem, type(examined.dataset))


def unusable_split(split: str, problem: Problem, dataset: type[BaseDataset]) -> Finding:
    """Say what a dataset's complaint means for `split`."""
    kind = problem.fault.value if problem.fault in SPLIT_FAULTS else "unusable split"
    what = f"{problem.path}: {problem.what}" if problem.path else problem.what.rstrip(".")
    fix = problem.fix or "change the files or the dataset's arguments"
    if fix == ADD_OR_REMOVE and hasattr(dataset, "mask_suffix"):
        fix += '; "mask_suffix" says what mask names have after the image\'s'
        if problem.fault is Fault.IMAGE_ALONE:
            fix = f'"missing_masks": "skip". {fix}'
    return Finding(kind, split, what, fix)


def nested_files(examined: Examined) -> Iterator[Finding]:
    """Find images in folders below the one that is read."""
    dataset = examined.dataset
    if getattr(dataset, "nested", True) or getattr(dataset, "list_file", None) or is_packed(dataset.samples[0].image):
        return
    folder, labels = dataset.samples[0].image.parent, dataset.samples[0].label.parent
    found = [path for path in sorted(folder.glob("*/**/*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    found = [path for path in found if labels not in path.parents]
    if found:
        what = f"{len(found)} images in folders below {folder} are not read"
        yield Finding("nested files", examined.split, what, '"nested": true', tuple(map(str, found)))


def unusable_files(examined: Examined) -> Iterator[Finding]:
    """Find files that cannot be read, or not as what they should be."""
    if examined.skips and examined.are_few:
        return
    found: dict[tuple[str, str], list[Problem]] = defaultdict(list)
    for record in examined.records.values():
        for problem in record.problems:
            if problem.fault in FIXES:
                found[problem.fault.value, FIXES[problem.fault]].append(problem)
            else:
                found["unusable file", problem.fix or SKIP].append(problem)
    for (kind, fix), problems in found.items():
        first, files = problems[0], tuple(str(problem.path) for problem in problems if problem.path)
        said = f"{first.path} {first.what}" if first.path else first.what.rstrip(".")
        if fix == SKIP and not examined.are_few:
            fix = REPLACE
        elif first.fault in (Fault.COLORS, Fault.UNKNOWN_COLOR):
            fix = colors_fix(examined, problems)
        yield Finding(kind, examined.split, f"{len(problems)} files; {said}", fix, files)


def colors_fix(examined: Examined, problems: Sequence[Problem]) -> str:
    """Write the line of a config that gives the colors in masks a meaning, where the dataset has such options."""
    fix = FIXES[problems[0].fault]
    if not hasattr(type(examined.dataset), "void"):
        return fix
    files = [Path(problem.path) for problem in problems]
    if problems[0].fault is Fault.UNKNOWN_COLOR:
        return void_line(examined, files) or fix
    colors = colors_in(files)
    if len(problems) < len(examined.records) or not 1 < len(colors) <= MOST_COLORS:
        return fix  # other masks hold values, or these are photographs
    rows = [{"name": "color_{:02x}{:02x}{:02x}".format(*color), "color": list(color)} for color in colors]
    return f'"masks": "color", "classes": {json.dumps(rows)}'


def void_line(examined: Examined, files: Sequence[Path]) -> str:
    """Write the option that makes colors void that stand for nothing; nothing, where they are too many."""
    void: Sequence[Any] = getattr(examined.dataset, "void", ())
    known = {*examined.classes.colors, *(color for color in void if not isinstance(color, int))}
    unknown = [color for color in colors_in(files) if color not in known]
    if not 0 < len(unknown) <= BLURRED:
        return ""
    return f'"void": {json.dumps([*void, *unknown])}'


def colors_in(files: Sequence[Path]) -> list[tuple[int, int, int]]:
    """List the colors that occur in masks, at most `MOST_COLORS` and one more; of files, the first `SOME`."""
    found: set[int] = set()
    for path in files[:SOME]:
        with suppress(DataError):
            colors = read_label_colors(path).astype(np.uint32)
            found |= set(np.unique((colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]).tolist())
        if len(found) > MOST_COLORS:
            break
    return [(code >> 16, code >> 8 & 255, code & 255) for code in sorted(found)[: MOST_COLORS + 1]]


def wrong_values(examined: Examined) -> Iterator[Finding]:
    """Find label values that stand for nothing, or for something else than was meant."""
    if not examined.dataset.raw_labels:
        yield from unknown_colors(examined)
        return
    table, counts = examined.classes, examined.values()
    present = set(np.flatnonzero(counts).tolist())
    meant: dict[int, int] = {}  # class of each value that stands for one
    for index, values in enumerate(table.raw_ids):
        meant |= dict.fromkeys(values, index)
    if present <= {0, IGNORE} and IGNORE in present & set(table.void_ids) and 0 in meant and len(table) > 1:
        other = 1 if meant[0] == 0 else 0
        what = f"labels hold 0 and 255 only: 255 is void, so class '{table.names[other]}' never occurs"
        yield Finding(ZERO_AND_255, examined.split, what, label_map({IGNORE: other}))
    unknown = sorted(present - table.known)
    if unknown and not (examined.dataset.takes_unknown and blurred(examined, unknown)):
        yield (
            shifted_up(examined, unknown, meant)
            or shifted_down(examined, unknown, meant)
            or (blurred(examined, unknown) or unknown_values(examined, unknown))
        )


def unknown_colors(examined: Examined) -> Iterator[Finding]:
    """Find colors that stand for nothing, where they become void."""
    if count := sum(record.unknown for record in examined.records.values()):
        files = examined.keys(lambda record: record.unknown > 0)
        what = f"{count:,} pixels of {len(files)} files have colors that stand for nothing, and become void"
        fix = "draw these pixels in a class's color, or leave them void"
        if hasattr(type(examined.dataset), "void"):
            labels = {sample.key: sample.label for sample in examined.dataset.samples}
            fix = void_line(examined, [labels[key] for key in files])
            if not fix:  # soft edges: "unknown" is meant for them
                return
        yield Finding("unknown color", examined.split, what, fix, files)


def shifted_up(examined: Examined, unknown: Sequence[int], meant: Mapping[int, int]) -> Finding | None:
    """Find labels whose values are all larger by one than expected.

    Args:
        examined: The split.
        unknown: Values in it that stand for nothing.
        meant: Class of each value that stands for one.
    """
    low, high = min(meant), max(meant)
    if unknown != [high + 1] or examined.values()[low]:
        return None
    what = f"labels hold {low + 1}..{high + 1} where {low}..{high} are expected: {SHIFTED}"
    targets = {value: meant[value - 1] for value in range(low + 1, high + 2) if value - 1 in meant}
    return Finding(SHIFTED_LABELS, examined.split, what, label_map(targets), examined.showing(unknown))


def shifted_down(examined: Examined, unknown: Sequence[int], meant: Mapping[int, int]) -> Finding | None:
    """Find labels whose values are all smaller by one than expected, so that 0 became 255; as `shifted_up`."""
    low, high, counts = min(meant), max(meant), examined.values()
    if unknown != [IGNORE] or low == 0 or not counts[low - 1] or counts[high]:
        return None
    most = max(value for value in np.flatnonzero(counts).tolist() if value != IGNORE)
    what = f"labels hold {low - 1}..{most} and 255 where {low}..{high} are expected: {SHIFTED}"
    targets = {value: meant[value + 1] for value in range(low - 1, high) if value + 1 in meant}
    fix = label_map(targets).replace("}", f', "{IGNORE}": null}}')
    return Finding(SHIFTED_LABELS, examined.split, what, fix, examined.showing(unknown))


def blurred(examined: Examined, unknown: Sequence[int]) -> Finding | None:
    """Find labels with many values that stand for nothing, in few pixels."""
    counts = examined.values()
    share = counts[list(unknown)].sum() / counts.sum()
    if len(unknown) < BLURRED or share >= BLURRED_SHARE:
        return None
    files = examined.showing(unknown)
    what = (
        f"{len(files)} labels hold {len(unknown)} values that stand for nothing, in {share:.1%} of the pixels: "
        f"they seem to have been resized with interpolation, or drawn with soft edges"
    )
    fix = "make them anew with nearest-neighbor resizing"
    if hasattr(type(examined.dataset), "unknown"):
        fix = f'"unknown": "void", or {fix}'
    return Finding("blurred labels", examined.split, what, fix, files)


def unknown_values(examined: Examined, unknown: Sequence[int]) -> Finding:
    """Say which values stand for nothing, and how often."""
    counts, files = examined.values(), examined.showing(unknown)
    named = ", ".join(f"{value} ({counts[value]:,} pixels)" for value in unknown[:8])
    more = f" and {len(unknown) - 8} others" if len(unknown) > 8 else ""
    what = f"{len(files)} labels hold values that are neither a class nor void: {named}{more}"
    return Finding("unknown value", examined.split, what, label_map(dict.fromkeys(unknown)), files)


def label_map(targets: Mapping[int, int | None]) -> str:
    """Write the line of a config that gives raw values a meaning."""
    texts = [f'"{value}": {json.dumps(target)}' for value, target in targets.items()]
    if len(texts) > 40:
        texts[3:-1] = ["..."]
    return f'"label_map": {{{", ".join(texts)}}}'


def void_labels(examined: Examined) -> Iterator[Finding]:
    """Find labels in which nothing is labelled."""
    void = {str(IGNORE)}
    if examined.dataset.raw_labels:
        void = set(map(str, np.flatnonzero(examined.classes.lookup == IGNORE)))
    files = examined.keys(lambda record: bool(record.values) and record.values.keys() <= void)
    if files and len(files) == len(examined.records):
        if examined.split in examined.dataset.unlabelled:
            return
        yield Finding("all void", examined.split, "no label has a labelled pixel", 'train on another "split"', files)
    elif files:
        what = f"{len(files)} labels are all void, and teach nothing"
        yield Finding("all void", examined.split, what, "remove the files, or label them", files)


def missing_classes(examined: Examined) -> Iterator[Finding]:
    """Find classes that the training labels never show."""
    pixels = np.sum([each.pixels()[0] for each in (examined, *examined.joined)], axis=0)
    ignored = examined.classes.ignored_classes
    names = [
        name
        for index, (name, count) in enumerate(zip(examined.classes.names, pixels, strict=True))
        if not count and index not in ignored
    ]
    if not pixels.any() or not examined.training:
        return
    if len(names) == len(pixels) - 1 > 0:
        seen = examined.classes.names[int(pixels.argmax())]
        what = f"all labels show one class, '{seen}', and void"
        yield Finding("one class", examined.split, what, '"label_map" says which values mean the others')
    elif names:
        fix = 'remove the class, or "label_map" says which value means it'
        if len(names) == 1:
            index = examined.classes.names.index(names[0])
            fix = f'"ignore_index": {index} leaves it out of the mean; or {fix}'
        yield Finding("absent class", examined.split, f"no label shows {', '.join(map(repr, names))}", fix)


def odd_images(examined: Examined) -> Iterator[Finding]:
    """Find images of a single color, and whether all are nearly black."""
    if files := examined.keys(lambda record: record.is_blank):
        what = f"{len(files)} images show one color"
        yield Finding("blank image", examined.split, what, "get the files again, or remove them", files)
    levels = [255 * max(record.square) ** 0.5 for record in examined.records.values() if record.square]
    if examined.dataset.channels == 3 and levels and 0 < max(levels) < DARK:
        what = f"all images are nearly black: the brightest one's root mean square is {max(levels):.1f} of 255"
        yield Finding("dark images", examined.split, what, "write them with 8 bits, if they hold values of 10 to 14")


def sizes(examined: Examined) -> Iterator[Finding]:
    """Find images that do not fit to crop and batch."""
    count = len(examined.records) - examined.held_out
    if examined.training and examined.batch_size and count < examined.batch_size:
        what = f"{count} images are fewer than a batch of {examined.batch_size}"
        yield Finding("batch too large", examined.split, what, f'"batch_size": {max(1, count)}')
    shapes = [record.size for record in examined.records.values() if record.size]
    if examined.crop and shapes:
        small = count_smaller(shapes, examined.crop)
        if small > len(shapes) / 2:
            what = f"{small} of {len(shapes)} images are smaller than the crop, and filled up with void"
            yield Finding("crop too large", examined.split, what, f'"crop_size": {fitting_crop(shapes, examined.crop)}')


def scales(examined: Examined) -> Iterator[Finding]:
    """Find that validation, and so every prediction, sees images at a scale that training never does."""
    shapes = [record.size for record in examined.records.values() if record.size]
    if examined.chains is None or not shapes:
        return
    training, validation = examined.chains
    height, width = (int(side) for side in np.median(shapes, axis=0))
    trained, validated = scale_range(training, (height, width)), scale_range(validation, (height, width))
    if trained is None or validated is None:
        return
    low, high = trained[0] / SCALE_MARGIN, trained[1] * SCALE_MARGIN
    if low <= validated[0] and validated[1] <= high:
        return
    what = (
        f"training sees images at {trained[0]:.2f} to {trained[1]:.2f} of their size, validation and prediction at "
        f"{validated[0]:.2f}"
    )
    base = preparation_of(replace(training, crop_size=None, val=False)).to_json()["resize"]
    fix = 'remove "resize" and the crop of the val_loader, which then takes whole images at their own size'
    if base is not None:
        fix = f'"resize": {json.dumps({k: v for k, v in base.items() if v is not None})} in the val_loader'
    yield Finding("another scale", examined.split, what, fix)


def count_smaller(shapes: Sequence[Sequence[int]], crop: Sequence[int]) -> int:
    """Count the images whose height or width is less than that of the crop."""
    return sum(height < crop[0] or width < crop[1] for height, width in shapes)


def fitting_crop(shapes: Sequence[Sequence[int]], crop: tuple[int, int]) -> list[int]:
    """Find the largest of some crops that at least half of the images are as large as.

    Wide and tall images among each other are larger than a crop in one side, and smaller in the other: then neither
    median will do.
    """
    for share in (50, 40, 30, 20, 10):
        sides = np.percentile(np.array(shapes), share, axis=0, method="lower")
        found = [min(int(side), most) for side, most in zip(sides, crop, strict=True)]
        if count_smaller(shapes, found) <= len(shapes) / 2:
            return found
    return [min(int(side), most) for side, most in zip(np.min(shapes, axis=0), crop, strict=True)]


def shares(splits: Sequence[Examined]) -> list[str]:
    """Write a table of the classes' shares of the labelled pixels, a column for each split."""
    names = splits[0].classes.names
    columns = []
    for examined in splits:
        pixels, void = examined.pixels()
        total = max(int(pixels.sum()), 1)
        columns.append([*(f"{count / total:.3%}" for count in pixels), f"{void / max(total + void, 1):.3%}"])
    first, wide = max(map(len, names)), max(14, *(len(examined.split) + 2 for examined in splits))
    rows = [("class", *(examined.split for examined in splits))]
    rows += zip((*names, "(void)"), *columns, strict=True)
    lines = []
    for name, *cells in rows:
        lines.append(f"{name:<{first}}" + "".join(f"{cell:>{wide}}" for cell in cells))
    return lines


def as_list(values: Iterable[float], digits: int = 6) -> str:
    """Write numbers as they stand in a config."""
    return json.dumps([float(f"{value:.{digits}g}") for value in values])
