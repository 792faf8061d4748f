"""Look at every file of a dataset, and say what is wrong with it and which line of a config mends it.

`examine` reads all images and labels in parallel and remembers what it read, so that the next time only files that
changed are read again. `diagnose` then knows all of them at once, and finds what no single file can tell: classes
that never occur, labels that are shifted by one, images that are in two splits.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from base.base_dataset import BaseDataset
from dataloader.scan import Record, name_of
from utils.classes import IGNORE, ClassTable
from utils.images import IMAGE_SUFFIXES
from utils.shards import is_packed

SHOWN = 5  # files that a finding names

BLURRED = 8  # unknown values from which on labels look as if they had been resized like photographs

SHIFTED = "they are shifted by one"

SKIP = '"on_bad_sample": "skip", or get the files again'


# What a line of utils/images.py says, the kind of finding that it is, and what mends it.
FILE_PROBLEMS = (
    ("is empty", "empty file", SKIP),
    ("damaged or cut short", "damaged file", SKIP),
    ("holds a web page", "web page", "download the files again"),
    ("pointer of Git LFS", "Git LFS pointer", "`git lfs pull`"),
    ("no image that can be read", "no image", SKIP),
    ("is declared to have", "huge image", "cut the files into tiles"),
    ("holds fractions", "fractions", "make the labels anew, with whole numbers from 0 to 255"),
    ("expected class indices", "colors", '"type": "Folder", "args": {"masks": "color", "classes": [...]}'),
    ("Use PNG files for labels", "lossy labels", "make the labels anew, as PNG files"),
    ("Labels are 8-bit", "wide labels", '"label_map" has no value above 255: convert the files'),
    ("EXIF orientation is not applied", "turned image", "`exiftool -Orientation= FILES`"),
    ("Give both the same size", "different sizes", SKIP),
    ("was cut or altered since it was packed", "altered archive", "`prepare.py pack --force` again"),
    ("of no class's color", "unknown color", '"unknown": "void", or add the color to "classes"'),
)


@dataclass(frozen=True)
class Finding:
    """Something wrong with a dataset.

    Args:
        kind: What it is, in two words.
        where: Split, or splits.
        what: What was found, in a sentence without its full stop.
        mend: The line of a config, or else the deed, that mends it.
        files: Where; at most `SHOWN` are printed.
    """

    kind: str
    where: str
    what: str
    mend: str
    files: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For people to read."""
        shown = ", ".join(self.files[:SHOWN]) + (", ..." if len(self.files) > SHOWN else "")
        named = f": {shown}" if self.files else ""
        return [f"{self.where}: {self.kind}: {self.what}{named}", f"    mend: {self.mend}"]


# What it means -------------------------------------------------------------------------------------------------------


@dataclass
class Examined:
    """A split and what was seen of it.

    Args:
        split: Its name.
        dataset: Whose it is.
        records: From `examine`.
        unpaired: Lines about files without counterpart.
        training: Whether it is what is trained on.
        crop: Height and width that images are cropped to without being resized before; None if not known.
        batch_size: Images per step; None if not known.
        parts: What it consists of, where it may have images in common with other splits; empty: it may not.
        joined: Others that are trained on together with it.
    """

    split: str
    dataset: BaseDataset
    records: Mapping[str, Record]
    unpaired: Sequence[str] = ()
    training: bool = True
    crop: tuple[int, int] | None = None
    batch_size: int | None = None
    parts: frozenset[str] = frozenset()
    joined: Sequence[Examined] = ()

    @property
    def classes(self) -> ClassTable:
        """The dataset's classes."""
        return self.dataset.classes

    def values(self) -> np.ndarray:
        """Pixels of each value of the labels, (256,)."""
        counts = np.zeros(256, np.int64)
        for record in self.records.values():
            for value, count in record.values.items():
                counts[int(value)] += count
        return counts

    def pixels(self) -> tuple[np.ndarray, int]:
        """Labelled pixels of each class, (C,), and those of void."""
        values, counts = self.values(), np.zeros(256, np.int64)
        ids = self.classes.lookup if self.dataset.raw_labels else np.arange(256)
        np.add.at(counts, ids, values)
        return counts[: len(self.classes)], int(counts[IGNORE])

    def normalization(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of the channels over all pixels of the images, 0 to 1."""
        seen = [record for record in self.records.values() if record.mean is not None]
        if not seen:
            return None
        weights = np.array([record.pixels for record in seen], np.float64)
        mean = np.average([record.mean for record in seen], axis=0, weights=weights)
        square = np.average([record.square for record in seen], axis=0, weights=weights)
        return mean.tolist(), np.sqrt(np.maximum(square - mean**2, 0)).tolist()


def diagnose(splits: Sequence[Examined]) -> list[Finding]:
    """What is wrong with the splits of a dataset."""
    findings: list[Finding] = []
    for examined in splits:
        wrong = list(wrong_values(examined))
        for rule in (unpaired_files, left_out, unusable_files, void_labels, odd_images, sizes):
            findings += rule(examined)
        findings += wrong or missing_classes(examined)  # what values mean decides which classes there are
    return findings + list(repeated(splits))


def unpaired_files(examined: Examined) -> Iterator[Finding]:
    """Images without label, labels without image, files that a list names and that are not there."""
    for line in examined.unpaired:
        yield unusable_split(examined.split, line, type(examined.dataset))


def unusable_split(split: str, line: str, dataset: type[BaseDataset]) -> Finding:
    """What `line`, which a dataset complained with, says about `split`."""
    kinds = {
        "without label": "image alone",
        "without image": "label alone",
        "are missing": "missing files",
        "listed twice": "listed twice",
    }
    kind = next((kind for text, kind in kinds.items() if text in line), "unusable split")
    what, _, mend = line.rstrip(".").rpartition(". ")
    if "without" in line and hasattr(dataset, "mask_suffix"):
        mend += '; "mask_suffix" says what mask names have after the image\'s'
    return Finding(kind, split, what or line, mend)


def left_out(examined: Examined) -> Iterator[Finding]:
    """Images in folders below the one that is read."""
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
    """Files that cannot be read, or not as what they should be."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for record in examined.records.values():
        for problem in record.problems:
            own = ("unusable file", problem.rstrip(".").rpartition(". ")[2])
            kind, mend = next(((kind, mend) for text, kind, mend in FILE_PROBLEMS if text in problem), own)
            found[kind, mend].append(problem)
    for (kind, mend), problems in found.items():
        first, _, _ = problems[0].rstrip(".").rpartition(". ")
        place, _, what = first.partition(": ")
        files = tuple(problem.partition(": ")[0] for problem in problems)
        yield Finding(kind, examined.split, f"{len(files)} files; {place} {what}", mend, files)


def wrong_values(examined: Examined) -> Iterator[Finding]:
    """Label values that stand for nothing, or for something else than was meant."""
    if not examined.dataset.raw_labels:
        if count := sum(record.unknown for record in examined.records.values()):
            files = _keys(examined, lambda record: record.unknown > 0)
            what = f"{count:,} pixels of {len(files)} files have colors that stand for nothing, and become void"
            mend = "draw these pixels in a class's color, or leave them void"
            if hasattr(type(examined.dataset), "void"):
                mend = 'add the colors to "classes" or to "void"'
            yield Finding("unknown color", examined.split, what, mend, files)
        return
    table, counts = examined.classes, examined.values()
    present = set(np.flatnonzero(counts).tolist())
    meant = {value: index for index, values in enumerate(table.raw_ids) for value in values}
    unknown = sorted(present - meant.keys() - set(table.void_ids))
    if present <= {0, IGNORE} and IGNORE in present & set(table.void_ids) and 0 in meant and len(table) > 1:
        other = 1 if meant[0] == 0 else 0
        what = f"labels hold 0 and 255 only: 255 is void, so class '{table.names[other]}' never occurs"
        yield Finding("0 and 255", examined.split, what, label_map({IGNORE: other}))
    if not unknown:
        return
    files = _keys(examined, lambda record: any(int(value) in unknown for value in record.values))
    share = counts[unknown].sum() / counts.sum()
    low, high = min(meant), max(meant)
    if unknown == [high + 1] and low not in present:
        what = f"labels hold {low + 1}..{high + 1} where {low}..{high} are expected: {SHIFTED}"
        mend = label_map({value: meant[value - 1] for value in range(low + 1, high + 2) if value - 1 in meant})
        yield Finding("shifted labels", examined.split, what, mend, files)
    elif unknown == [IGNORE] and low - 1 in present and high not in present:
        what = f"labels hold {low - 1}..{max(present - {IGNORE})} and 255 where {low}..{high} are expected: {SHIFTED}"
        mend = label_map({value: meant[value + 1] for value in range(low - 1, high) if value + 1 in meant})
        mend = mend.replace("}", f', "{IGNORE}": null}}')
        yield Finding("shifted labels", examined.split, what, mend, files)
    elif len(unknown) >= BLURRED and share < 0.2:
        what = (
            f"{len(files)} labels hold {len(unknown)} values that stand for nothing, in {share:.1%} of the pixels: "
            f"they seem to have been resized with interpolation, or drawn with soft edges"
        )
        mend = 'make them anew with nearest-neighbour resizing, or "unknown": "void" of "Folder"'
        yield Finding("blurred labels", examined.split, what, mend, files)
    else:
        named = ", ".join(f"{value} ({counts[value]:,} pixels)" for value in unknown[:8])
        more = f" and {len(unknown) - 8} others" if len(unknown) > 8 else ""
        what = f"{len(files)} labels hold values that are neither a class nor void: {named}{more}"
        yield Finding("unknown value", examined.split, what, label_map(dict.fromkeys(unknown)), files)


def label_map(targets: Mapping[int, int | None]) -> str:
    """The line of a config that gives raw values a meaning."""
    texts = [f'"{value}": {json.dumps(target)}' for value, target in targets.items()]
    if len(texts) > 40:
        texts[3:-1] = ["..."]
    return f'"label_map": {{{", ".join(texts)}}}'


def void_labels(examined: Examined) -> Iterator[Finding]:
    """Labels in which nothing is labelled."""
    table = examined.classes
    void = set(np.flatnonzero(table.lookup == IGNORE).tolist()) if examined.dataset.raw_labels else {IGNORE}
    files = _keys(examined, lambda record: bool(record.values) and all(int(value) in void for value in record.values))
    if files and len(files) == len(examined.records):
        if examined.split in examined.dataset.unlabelled:
            return
        yield Finding("all void", examined.split, "no label has a labelled pixel", 'train on another "split"', files)
    elif files:
        what = f"{len(files)} labels are all void, and teach nothing"
        yield Finding("all void", examined.split, what, "remove the files, or label them", files)


def missing_classes(examined: Examined) -> Iterator[Finding]:
    """Classes that the training labels never show."""
    pixels = np.sum([each.pixels()[0] for each in (examined, *examined.joined)], axis=0)
    names = [name for name, count in zip(examined.classes.names, pixels, strict=True) if not count]
    if not pixels.any() or not examined.training:
        return
    if len(names) == len(pixels) - 1 > 0:
        seen = examined.classes.names[int(pixels.argmax())]
        what = f"all labels show one class, '{seen}', and void"
        yield Finding("one class", examined.split, what, '"label_map" says which values mean the others')
    elif names:
        mend = 'remove the class, or "label_map" says which value means it'
        if len(names) == 1:
            index = examined.classes.names.index(names[0])
            mend = f'"ignore_index": {index} leaves it out of the mean; or {mend}'
        yield Finding("absent class", examined.split, f"no label shows {', '.join(map(repr, names))}", mend)


def odd_images(examined: Examined) -> Iterator[Finding]:
    """Images of a single color."""
    if files := _keys(examined, lambda record: record.is_blank):
        mend = "get the files again, or remove them"
        yield Finding("blank image", examined.split, f"{len(files)} images show one color", mend, files)


def sizes(examined: Examined) -> Iterator[Finding]:
    """Images that do not fit to crop and batch."""
    shapes = [record.size for record in examined.records.values() if record.size]
    if examined.training and examined.batch_size and len(examined.records) < examined.batch_size:
        what = f"{len(examined.records)} images are fewer than a batch of {examined.batch_size}"
        yield Finding("batch too large", examined.split, what, f'"batch_size": {max(1, len(examined.records))}')
    if examined.crop and shapes:
        small = [h < examined.crop[0] or w < examined.crop[1] for h, w in shapes]
        if sum(small) > len(small) / 2:
            height, width = (int(side) for side in np.median(shapes, axis=0))
            what = f"{sum(small)} of {len(small)} images are smaller than the crop, and filled up with void"
            yield Finding("crop too large", examined.split, what, f'"crop_size": [{height}, {width}]')


def repeated(splits: Sequence[Examined]) -> Iterator[Finding]:
    """Images that occur twice: in one split, in two, or with different labels."""
    places: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for examined in splits:
        for key, record in examined.records.items():
            if record.image and not record.is_blank:
                places[record.image].append((examined.split, key, record.label))
    parts = {examined.split: examined.parts for examined in splits}
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for occurrences in places.values():
        named = " = ".join(key for _, key, _ in occurrences)
        counts = Counter(split for split, _, _ in occurrences)
        pairs = [(a, b) for a, b in combinations(occurrences, 2) if a[0] == b[0] or not parts[a[0]] & parts[b[0]]]
        apart = {split for a, b in pairs if a[0] != b[0] for split in (a[0], b[0])}
        if apart:
            groups["image in two splits", " and ".join(split for split in counts if split in apart)].append(named)
        if any(count > 1 for count in counts.values()):
            groups["duplicate", ", ".join(split for split, count in counts.items() if count > 1)].append(named)
        if any(a[2] and b[2] and a[2] != b[2] for a, b in pairs):
            groups["two labels", " and ".join(counts)].append(named)
    texts = {
        "image in two splits": ("figures on one of them flatter", "remove the files from one of the splits"),
        "duplicate": ("they count twice", "remove one of each"),
        "two labels": ("the same image has different labels", "keep the right label"),
    }
    for (kind, where), files in groups.items():
        what, mend = texts[kind]
        yield Finding(kind, where, f"{len(files)} images; {what}", mend, tuple(files))


def without_unions(splits: Sequence[Examined]) -> list[Examined]:
    """`splits` less those that are others put together, as "trainval" is: all of it would be said twice."""
    files = {examined.split: set(map(name_of, examined.dataset.samples)) for examined in splits}

    def is_union(examined: Examined) -> bool:
        mine = files[examined.split]
        parts = [files[other.split] for other in splits if other.parts & examined.parts]
        return not examined.unpaired and mine == set().union(*(part for part in parts if part < mine))

    return [examined for examined in splits if not is_union(examined)]


def _keys(examined: Examined, condition: Any) -> tuple[str, ...]:
    return tuple(key for key, record in examined.records.items() if condition(record))


def shares(splits: Iterable[Examined]) -> list[str]:
    """A table of the classes' shares of the labelled pixels, a column for each split."""
    splits = list(splits)
    names = splits[0].classes.names
    width = max(map(len, names))
    columns = []
    for examined in splits:
        pixels, void = examined.pixels()
        total = max(int(pixels.sum()), 1)
        columns.append([*(f"{count / total:.3%}" for count in pixels), f"{void / max(total + void, 1):.3%}"])
    wide = max(14, *(len(examined.split) + 2 for examined in splits))
    head = f"{'class':<{width}}" + "".join(f"{examined.split:>{wide}}" for examined in splits)
    rows = zip((*names, "(void)"), *columns, strict=True)
    return [head, *(f"{name:<{width}}" + "".join(f"{cell:>{wide}}" for cell in cells) for name, *cells in rows)]


def as_list(values: Iterable[float], digits: int = 6) -> str:
    """Numbers as they stand in a config."""
    return json.dumps([float(f"{value:.{digits}g}") for value in values])
