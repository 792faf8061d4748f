"""Find images that occur more than once, and splits that only put others together."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from dataloader.scan import name_of
from dataloader.tools.findings import Examined, Finding


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
