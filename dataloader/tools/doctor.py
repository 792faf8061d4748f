"""Say what is wrong with a dataset, and which line of a config fixes it.

`scan.examine` reads all images and labels in parallel and remembers what it read, so that the next time only files that
changed are read again. `diagnose` then knows all of them at once, and finds what no single file can tell: classes
that never occur, labels that are shifted by one, images that are in two splits.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import NamedTuple

import numpy as np

from base.base_dataset import BaseDataset
from dataloader.scan import Record, class_pixels_of, name_of, sum_values
from dataloader.transforms.chain import ChainOptions
from dataloader.transforms.preparation import preparation_of, scale_range
from utils.classes import IGNORE, ClassTable
from utils.errors import Fault, Problem
from utils.images import IMAGE_SUFFIXES
from utils.shards import is_packed

SHOWN = 5  # files that a finding names
BLURRED = 8  # unknown values from which on labels look as if they had been resized like photographs
BLURRED_SHARE = 0.2  # of the pixels; more of them are no edges
SCALE_MARGIN = 1.25  # factor by which validation may be beyond the scales that training sees
SHIFTED = "they are shifted by one"

# What fixes files with a fault; others have a fix of their own.
SKIP = '"on_bad_sample": "skip", or get the files again'
FIXES = {
    Fault.EMPTY_FILE: SKIP,
    Fault.DAMAGED_FILE: SKIP,
    Fault.WEB_PAGE: "download the files again",
    Fault.LFS_POINTER: "`git lfs pull`",
    Fault.NO_IMAGE: SKIP,
    Fault.HUGE_IMAGE: "cut the files into tiles",
    Fault.FRACTIONS: "make the labels anew, with whole numbers from 0 to 255",
    Fault.COLORS: '"type": "Folder", "args": {"masks": "color", "classes": [...]}',
    Fault.LOSSY_LABEL: "make the labels anew, as PNG files",
    Fault.WIDE_LABEL: '"label_map" has no value above 255: convert the files',
    Fault.TURNED_IMAGE: "`exiftool -Orientation= FILES`",
    Fault.DIFFERENT_SIZES: SKIP,
    Fault.ALTERED_ARCHIVE: "`prepare.py pack --force` again",
    Fault.UNKNOWN_COLOR: '"unknown": "void", or add the color to "classes"',
}
SPLIT_FAULTS = (Fault.IMAGE_ALONE, Fault.LABEL_ALONE, Fault.MISSING_FILES, Fault.LISTED_TWICE)


@dataclass(frozen=True)
class Finding:
    """Something wrong with a dataset.

    Args:
        kind: What it is, in two words.
        where: Split, or splits.
        what: What was found, in a sentence without its full stop.
        fix: The line of a config, or else the deed, that fixes it.
        files: Where; at most `SHOWN` are printed.
    """

    kind: str
    where: str
    what: str
    fix: str
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Write it for people to read."""
        shown = ", ".join(self.files[:SHOWN]) + (", ..." if len(self.files) > SHOWN else "")
        named = f": {shown}" if self.files else ""
        return [f"{self.where}: {self.kind}: {self.what}{named}", f"    fix: {self.fix}"]


@dataclass
class Examined:
    """A split and what was read of it.

    Args:
        split: Its name.
        dataset: Whose it is.
        records: From `scan.examine`.
        unpaired: Files without counterpart.
        training: Whether it is what is trained on.
        crop: Height and width that images are cropped to without being resized before; None if not known.
        batch_size: Images per step; None if not known.
        sources: What it is put together from, where splits may share images by design; empty: they may not.
        joined: Others that are trained on together with it.
        chains: How a config prepares images to train on, and those to validate on; None if not known.
    """

    split: str
    dataset: BaseDataset
    records: Mapping[str, Record]
    unpaired: Sequence[Problem] = ()
    training: bool = True
    crop: tuple[int, int] | None = None
    batch_size: int | None = None
    sources: frozenset[str] = frozenset()
    joined: Sequence[Examined] = ()
    chains: tuple[ChainOptions, ChainOptions] | None = None

    @property
    def classes(self) -> ClassTable:
        """The dataset's classes."""
        return self.dataset.classes

    def values(self) -> np.ndarray:
        """Add up the pixels of each value of the labels, (256,)."""
        return sum_values(self.records.values())

    def pixels(self) -> tuple[np.ndarray, int]:
        """Add up the labelled pixels of each class, (C,), and those of void."""
        return class_pixels_of(self.dataset, self.values())

    def keys(self, condition: Callable[[Record], bool]) -> tuple[str, ...]:
        """Return the keys of the records that a condition holds for."""
        return tuple(key for key, record in self.records.items() if condition(record))

    def showing(self, values: Collection[int]) -> tuple[str, ...]:
        """Return the keys of the labels that hold one of `values`."""
        wanted = set(map(str, values))
        return self.keys(lambda record: not wanted.isdisjoint(record.values))

    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Compute mean and standard deviation of the channels over all pixels of the images, 0 to 1."""
        seen = [record for record in self.records.values() if record.mean is not None]
        if not seen:
            return None
        weights = np.array([record.pixels for record in seen], np.float64)
        mean = np.average([record.mean for record in seen], axis=0, weights=weights)
        square = np.average([record.square for record in seen], axis=0, weights=weights)
        return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def diagnose(splits: Sequence[Examined]) -> list[Finding]:
    """Find what is wrong with the splits of a dataset."""
    findings: list[Finding] = []
    for examined in splits:
        wrong = list(wrong_values(examined))
        for rule in (unpaired_files, nested_files, unusable_files, void_labels, odd_images, sizes, scales):
            findings += rule(examined)
        findings += wrong or missing_classes(examined)  # what values mean decides which classes there are
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
    if problem.fault in (Fault.IMAGE_ALONE, Fault.LABEL_ALONE) and hasattr(dataset, "mask_suffix"):
        fix += '; "mask_suffix" says what mask names have after the image\'s'
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
        yield Finding(kind, examined.split, f"{len(problems)} files; {said}", fix, files)


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
        yield Finding("0 and 255", examined.split, what, label_map({IGNORE: other}))
    unknown = sorted(present - table.known)
    if unknown:
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
            fix = 'add the colors to "classes" or to "void"'
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
    return Finding("shifted labels", examined.split, what, label_map(targets), examined.showing(unknown))


def shifted_down(examined: Examined, unknown: Sequence[int], meant: Mapping[int, int]) -> Finding | None:
    """Find labels whose values are all smaller by one than expected, so that 0 became 255; as `shifted_up`."""
    low, high, counts = min(meant), max(meant), examined.values()
    if unknown != [IGNORE] or low == 0 or not counts[low - 1] or counts[high]:
        return None
    most = max(value for value in np.flatnonzero(counts).tolist() if value != IGNORE)
    what = f"labels hold {low - 1}..{most} and 255 where {low}..{high} are expected: {SHIFTED}"
    targets = {value: meant[value + 1] for value in range(low - 1, high) if value + 1 in meant}
    fix = label_map(targets).replace("}", f', "{IGNORE}": null}}')
    return Finding("shifted labels", examined.split, what, fix, examined.showing(unknown))


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
    fix = 'make them anew with nearest-neighbour resizing, or "unknown": "void" of "Folder"'
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
    names = [name for name, count in zip(examined.classes.names, pixels, strict=True) if not count]
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
    """Find images of a single color."""
    if files := examined.keys(lambda record: record.is_blank):
        what = f"{len(files)} images show one color"
        yield Finding("blank image", examined.split, what, "get the files again, or remove them", files)


def sizes(examined: Examined) -> Iterator[Finding]:
    """Find images that do not fit to crop and batch."""
    count = len(examined.records)
    if examined.training and examined.batch_size and count < examined.batch_size:
        what = f"{count} images are fewer than a batch of {examined.batch_size}"
        yield Finding("batch too large", examined.split, what, f'"batch_size": {max(1, count)}')
    shapes = [record.size for record in examined.records.values() if record.size]
    if examined.crop and shapes:
        small = [h < examined.crop[0] or w < examined.crop[1] for h, w in shapes]
        if sum(small) > len(small) / 2:
            height, width = (int(side) for side in np.median(shapes, axis=0))
            what = f"{sum(small)} of {len(small)} images are smaller than the crop, and filled up with void"
            yield Finding("crop too large", examined.split, what, f'"crop_size": [{height}, {width}]')


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


class Occurrence(NamedTuple):
    """Where an image was found."""

    split: str
    key: str
    label: str  # digest of its label; empty if that cannot be used


REPEATED = {  # what it means, and what fixes it
    "image in two splits": ("figures on one of them flatter", "remove the files from one of the splits"),
    "duplicate": ("they count twice", "remove one of each"),
    "two labels": ("the same image has different labels", "keep the right label"),
}


def repeated(splits: Sequence[Examined]) -> Iterator[Finding]:
    """Find images that occur twice: in one split, in two, or with different labels."""
    found: dict[str, list[Occurrence]] = defaultdict(list)  # by digest of the image
    for examined in splits:
        for key, record in examined.records.items():
            if record.image and not record.is_blank:
                found[record.image].append(Occurrence(examined.split, key, record.label))
    sources = {examined.split: examined.sources for examined in splits}
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)  # by kind and splits
    for occurrences in found.values():
        for kind, where in _repetitions(occurrences, sources):
            groups[kind, where].append(" = ".join(each.key for each in occurrences))
    for (kind, where), files in groups.items():
        meaning, fix = REPEATED[kind]
        yield Finding(kind, where, f"{len(files)} images; {meaning}", fix, tuple(files))


def _repetitions(occurrences: Sequence[Occurrence], sources: Mapping[str, frozenset[str]]) -> Iterator[tuple[str, str]]:
    """Say what is wrong with an image that occurs so often, and in which splits, in order."""
    counts = Counter(each.split for each in occurrences)
    # Splits that are put together from the same source are meant to share it.
    pairs = [
        (a, b) for a, b in combinations(occurrences, 2) if a.split == b.split or not sources[a.split] & sources[b.split]
    ]
    apart: set[str] = set()
    for a, b in pairs:
        if a.split != b.split:
            apart |= {a.split, b.split}
    if apart:
        yield "image in two splits", " and ".join(split for split in counts if split in apart)
    if twice := [split for split, count in counts.items() if count > 1]:
        yield "duplicate", ", ".join(twice)
    if any(a.label and b.label and a.label != b.label for a, b in pairs):
        yield "two labels", " and ".join(counts)


def without_unions(splits: Sequence[Examined]) -> list[Examined]:
    """Return `splits` less those that are others put together, as "trainval" is: all of it would be said twice."""
    files = {examined.split: set(map(name_of, examined.dataset.samples)) for examined in splits}

    def is_union(examined: Examined) -> bool:
        mine, covered = files[examined.split], set[str]()
        for other in splits:
            if other.sources & examined.sources and files[other.split] < mine:
                covered |= files[other.split]
        return not examined.unpaired and mine == covered

    return [examined for examined in splits if not is_union(examined)]


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
