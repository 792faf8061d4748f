"""Find images that occur more than once or nearly so, and splits that only put others together."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from dataloader.scan import THUMBNAIL, Record, name_of
from dataloader.tools.findings import Examined, Finding

# Correlation of two thumbnails, less what all images have in common, from which on two images show nearly the same.
# Between CamVid's frames of one drive, 0.65 is usual after one second and 0.5 after two; to other drives, of the most
# similar frames, half are below 0.36 and nine tenths below 0.46.
NEAR = 0.5
FEW_NEAR = 0.05  # share of the validation images; fewer of them are chance
LEAST_NEAR = 3  # likewise, as a number
LEAST_COMPARED = 20  # images; what fewer of them have in common may be what they show
MOST_COMPARED = 20_000  # images of a side
# Starts of names that may say which images were taken together: a folder, all before the first or the last separator.
STARTS = ("^[^/]+(?=/)", "^[^_]+", "^[^-]+", "^.*(?=[_-])")


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
        if kind == "duplicate" and any(examined.held_out for examined in splits if examined.split == where):
            meaning += ", or one is validated on that another trained"
            fix += ', or let "val_split" keep them together: {"share": 0.2, "by": "^[^_]+"}'
        yield Finding(kind, where, f"{len(files)} images; {meaning}", fix, tuple(files))
    yield from near_duplicates(splits)


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


# Nearly the same ----------------------------------------------------------------------------------------------------


def near_duplicates(splits: Sequence[Examined]) -> Iterator[Finding]:
    """Find images to validate on that look nearly like one that is trained on, such as neighboring frames."""
    for examined in splits:
        if not examined.training:
            continue
        inside = {key: record for key, record in examined.records.items() if key in examined.validated}
        others = {key: record for key, record in examined.records.items() if key not in examined.validated}
        yield from _near(examined.split, others, examined.split, inside)
        for other in splits:
            joined = any(other is each for each in examined.joined)
            if not other.training and not joined and not other.sources & examined.sources:
                yield from _near(examined.split, others, other.split, other.records)


def _near(
    trained: str, training: Mapping[str, Record], validated: str, validation: Mapping[str, Record]
) -> Iterator[Finding]:
    pairs = near_pairs(training, validation)
    found = {b for _, b in pairs}
    if len(found) < max(LEAST_NEAR, FEW_NEAR * len(validation)):
        return
    where = validated if trained == validated else f"{trained} and {validated}"
    what = f"{len(found)} of {len(validation)} validation images look nearly like one that is trained on"
    start = start_of_names([*training, *validation], pairs)
    line = json.dumps({"share": 0.2, "by": start or "^[^_]+"})
    fix = f'"val_split": {line} keeps together what "by" finds in the names'
    if trained != validated:
        fix = f"put both into one folder, where {fix}"
    yield Finding("near-duplicate", where, what, fix, tuple(f"{b} ~ {a}" for a, b in pairs[: len(found)]))


def near_pairs(training: Mapping[str, Record], validation: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Find the images that look nearly like one of others, without those that are equal to the byte.

    Args:
        training: Records of images, by key.
        validation: Likewise, of those to compare with them.

    Returns:
        Key of the most similar training image and key of the validation image, for each that has one.
    """
    keys, thumbnails = _thumbnails(training)
    others, wanted = _thumbnails(validation)
    if len(keys) < LEAST_COMPARED:
        return []
    common = thumbnails.mean(0)
    digests = {record.image for record in training.values()}
    pairs = []
    for index, best in _nearest(_of_length_1(wanted - common), _of_length_1(thumbnails - common)):
        if validation[others[index]].image not in digests:
            pairs.append((keys[best], others[index]))
    return pairs


def near_within(records: Mapping[str, Record]) -> list[tuple[str, str]]:
    """Find for each image the one of the others that looks most like it, if it looks nearly the same."""
    keys, thumbnails = _thumbnails(records)
    if len(keys) < LEAST_COMPARED:
        return []
    thumbnails = _of_length_1(thumbnails - thumbnails.mean(0))
    return [(keys[best], keys[index]) for index, best in _nearest(thumbnails, thumbnails, themselves=True)]


def _nearest(rows: np.ndarray, others: np.ndarray, *, themselves: bool = False) -> Iterator[tuple[int, int]]:
    """Give the number of each row that is nearly like one of `others`, and the number of the one most like it.

    Args:
        rows: (N, 256), of length 1.
        others: (M, 256), likewise.
        themselves: The others are the rows, none of which is compared with itself.
    """
    for start in range(0, len(rows), 1000):  # rows at a time: the whole matrix might not fit
        alike = rows[start : start + 1000] @ others.T
        for index, row in enumerate(alike, start):
            if themselves:
                row[index] = -1
            best = int(row.argmax())
            if row[best] >= NEAR:
                yield index, best


def _thumbnails(records: Mapping[str, Record]) -> tuple[list[str], np.ndarray]:
    """Return keys, and thumbnails (N, 256) of length 1; evenly spaced ones where there are too many."""
    keys = [key for key, record in records.items() if record.thumbnail]
    keys = keys[:: max(1, -(-len(keys) // MOST_COMPARED))]
    values = [np.frombuffer(bytes.fromhex(records[key].thumbnail), np.int8) for key in keys]
    return keys, _of_length_1(np.array(values, np.float32).reshape(len(keys), THUMBNAIL**2))


def _of_length_1(rows: np.ndarray) -> np.ndarray:
    """Divide each row by its length; rows of zeros stay."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)  # type: ignore[no-any-return]


def start_of_names(keys: Sequence[str], pairs: Sequence[tuple[str, str]] = ()) -> str:
    """Find a start of names that puts images into groups, nearly all `pairs` of alike ones into one; empty for none.

    Args:
        keys: Names of the images; one that occurs in two splits counts once.
        pairs: Names of images that are nearly the same.
    """
    keys = list(dict.fromkeys(keys))
    for pattern in STARTS:
        groups = groups_by(pattern, keys)
        sizes = Counter(groups.values())
        if len(groups) < len(keys) or not 2 <= len(sizes) <= len(keys) / 2:
            continue
        if sum(groups[a] == groups[b] for a, b in pairs) >= 0.8 * len(pairs):
            return pattern
    return ""


def groups_by(pattern: str, keys: Sequence[str]) -> dict[str, str]:
    """Return what `pattern` finds in each name; names in which it finds nothing are left out."""
    found = {key: re.search(pattern, key) for key in keys}
    return {key: match[0] for key, match in found.items() if match}
