"""What a dataset is like, in figures that a plan of the training follows from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from base.base_dataset import BaseDataset
from dataloader.scan import Record, cache_key, is_usable, name_of
from dataloader.tools.duplicates import groups_by, near_pairs, near_within, start_of_names
from dataloader.tools.findings import Examined
from utils.classes import IGNORE
from utils.config import fingerprint as hash_of
from utils.errors import DataError
from utils.files import atomic_write

SAMPLED = 64  # labels, and images, that are looked at
LEAST_SEEN = 16  # images that can tell whether there is an up
SPECK = 4  # pixels; smaller pieces of a class are slips of the pencil
SLIP, SLIP_OF_ONE = 1e-5, 1e-3  # share of the pixels below which a class may be none, and that of one in one image
SHARES = (10, 50, 90)  # of a class's pixels, in percent


@dataclass(frozen=True)
class ClassScale:
    """How much of a class there is, and in pieces of which size.

    Args:
        name: Of the class.
        share: Of the labelled pixels.
        images: Share of the images that show it.
        diameters: Diameters of circles as large as its pieces: those below which 10, 50 and 90 % of its pixels are in
            smaller pieces, so that slivers count little; empty where none was seen.
        width: Twice its area by the length of its borders, in pixels: the width of a long piece, 0.4 of a disk's
            diameter; 0 where it was not seen, or has no border.
    """

    name: str
    share: float
    images: float
    diameters: tuple[float, ...] = ()
    width: float = 0.0


@dataclass(frozen=True)
class Fingerprint:
    """What a dataset is like.

    Args:
        images: Usable ones to train on or, where some are to be held out of them, to divide.
        smallest: Height and width of the smallest image.
        median: Medians of height and width.
        largest: Height and width of the largest image.
        spread: By how many times the long side of a large image (90 %) is longer than that of a small one (10 %).
        channels: Of the images.
        dtype: Type of their values, as they are read.
        mean: Mean of each channel, 0 to 1 for images of 8 bits.
        std: Standard deviation of each channel.
        gray: Whether the channels are all alike.
        classes: Their areas and scales, in the order of the classes.
        void: Share of the pixels without a class.
        border: Share of the labelled pixels beside one of another class.
        upright: How unlike above and below are, against left and right: about 1 for photos from above, more for those
            of streets; 0 where there are too few images to say.
        duplicates: Images that are equal to another one.
        near: Images that look nearly like another one; with images for validation, how many of these do.
        start: Regular expression of the start of names that images of one series share; empty for none.
        groups: Number of such series.
        largest_group: Images in the largest of them.
        pixels: Of all images, those for validation among them.
        validation: Images that are there for validation; 0 where some are to be held out.
    """

    images: int
    smallest: tuple[int, int]
    median: tuple[int, int]
    largest: tuple[int, int]
    spread: float
    channels: int
    dtype: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    gray: bool
    classes: tuple[ClassScale, ...]
    void: float
    border: float
    upright: float
    duplicates: int
    near: int
    start: str
    groups: int
    largest_group: int
    pixels: int
    validation: int = 0

    @property
    def sure(self) -> list[ClassScale]:
        """Those of the classes shown of which more is there than a slip of the pencil; all, where only one is."""
        sure = [each for each in self.shown if not is_slip(each.share, round(each.images * self.images))]
        return sure if len(sure) > 1 else self.shown

    @property
    def shown(self) -> list[ClassScale]:
        """The classes that labels show."""
        return [each for each in self.classes if each.share > 0]

    def to_json(self) -> dict[str, Any]:
        """Write it as plain values."""
        return asdict(self)


def is_slip(share: float, images: int) -> bool:
    """Say whether a class may be a slip of the pencil, by its share of the pixels and how many images show it."""
    return share < SLIP or (images == 1 and share < SLIP_OF_ONE)


def take_fingerprint(train: Examined, validation: Examined | None = None, *, cache: Path | None = None) -> Fingerprint:
    """Find out what a dataset is like; of its labels, a sample that its size seeds is looked at.

    Args:
        train: The images to train on.
        validation: Those to validate on; None where some of the others are held out.
        cache: Folder in which to remember it; None for nowhere.

    Raises:
        DataError: No image can be used.
    """
    both = [train] if validation is None else [train, validation]
    stamps = [[name_of(s), each.records[s.key].stamp] for each in both for s in each.dataset.samples]
    key = hash_of([2, *([cache_key(each.dataset, images=True), each.classes.names] for each in both), stamps])
    path = cache / f"fingerprint-{key}.json" if cache else None
    with suppress(OSError, ValueError, TypeError, KeyError):
        if path is not None:
            return _read(json.loads(path.read_text(encoding="utf-8")))
    found = _take(train, validation)
    if path is not None:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(found.to_json(), indent=1).encode())
    return found


def _read(content: Mapping[str, Any]) -> Fingerprint:
    """Make a fingerprint of its JSON, whose lists were tuples."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    rows = [{**row, "diameters": tuple(row["diameters"])} for row in content["classes"]]
    plain["classes"] = tuple(ClassScale(**row) for row in rows)
    return Fingerprint(**plain)


def _take(train: Examined, validation: Examined | None) -> Fingerprint:
    records = {key: record for key, record in train.records.items() if is_usable(train.dataset, record)}
    sizes = np.array([record.size for record in records.values() if record.size])
    numbers = train.normalization()
    if not len(sizes) or numbers is None:
        raise DataError(f"{train.dataset.data_dir}: no image with its mask can be used. `prepare.py check` says why.")
    order = np.argsort(sizes.prod(1), kind="stable")
    long_sides = np.percentile(sizes.max(1), [10, 90])
    mean, std = numbers
    looked = look_at_labels(train.dataset, records)
    pixels, void = train.pixels()
    keys = list(records)
    others = validation.records if validation else {}
    pairs = near_pairs(records, others) if others else near_within(records)
    start = start_of_names(keys, [] if others else pairs)
    groups = Counter(groups_by(start, keys).values()) if start else Counter[str]()
    digests = Counter(record.image for record in records.values())
    shown = _images_showing(train.dataset, records)
    return Fingerprint(
        images=len(records),
        smallest=_pair(sizes[order[0]]),
        median=_pair(np.median(sizes, axis=0)),
        largest=_pair(sizes[order[-1]]),
        spread=round(float(long_sides[1] / long_sides[0]), 3),
        channels=len(mean),
        dtype=looked.dtype,
        mean=tuple(round(value, 6) for value in mean),
        std=tuple(round(value, 6) for value in std),
        gray=max(mean) - min(mean) < 1e-9 and max(std) - min(std) < 1e-9,
        classes=tuple(
            ClassScale(name, float(count / max(pixels.sum(), 1)), float(images / len(records)), *looked.scale(index))
            for index, (name, count, images) in enumerate(zip(train.classes.names, pixels, shown, strict=True))
        ),
        void=float(void / max(void + pixels.sum(), 1)),
        border=looked.border,
        upright=looked.upright,
        duplicates=len(records) - len(digests),
        near=len({b for _, b in pairs}),
        start=start,
        groups=len(groups),
        largest_group=max(groups.values(), default=0),
        pixels=sum(record.pixels for record in (*records.values(), *others.values())),
        validation=len(others),
    )


def _pair(size: Sequence[float]) -> tuple[int, int]:
    return int(size[0]), int(size[1])


def _images_showing(dataset: BaseDataset, records: Mapping[str, Record]) -> np.ndarray:
    """Count the images that show each class, (C,)."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for record in records.values():
        counts[_labels_in(dataset, record)] += 1
    return counts[: len(dataset.classes)]


def _labels_in(dataset: BaseDataset, record: Record) -> np.ndarray:
    """Return the training ids that an image shows, and what else its label holds."""
    lookup = dataset.classes.lookup if dataset.raw_labels else np.arange(IGNORE + 1)
    return np.unique(lookup[[int(value) for value in record.values]])


def classes_of_images(examined: Examined) -> dict[str, frozenset[str]]:
    """Return the names of the classes that each usable image shows."""
    dataset, names = examined.dataset, examined.dataset.classes.names
    return {
        str(key): frozenset(names[index] for index in _labels_in(dataset, record) if index < len(names))
        for key, record in examined.records.items()
        if is_usable(dataset, record)
    }


# Labels --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Looked:
    """What a sample of labels and images shows.

    Args:
        diameters: Of the pieces of each class.
        areas: Pixels of each class.
        borders: Length of the borders of each class.
        border: As in `Fingerprint`, like `upright` and `dtype`.
        upright: Likewise.
        dtype: Likewise.
    """

    diameters: Sequence[Sequence[float]]
    areas: np.ndarray
    borders: np.ndarray
    border: float
    upright: float
    dtype: str

    def scale(self, index: int) -> tuple[tuple[float, ...], float]:
        """Return percentiles of the diameters of class `index`, and its width."""
        found = self.diameters[index]
        if not found:  # specks have no width either
            return (), 0.0
        shares = tuple(round(value, 2) for value in weighted_percentiles(found, np.square(found)))
        length = int(self.borders[index])
        return shares, round(2 * int(self.areas[index]) / length, 2) if length else 0.0


def look_at_labels(dataset: BaseDataset, records: Mapping[str, Record]) -> Looked:
    """Measure the pieces and borders of classes in at most `SAMPLED` examples."""
    usable = [index for index, sample in enumerate(dataset.samples) if sample.key in records]
    if len(usable) > SAMPLED:
        usable = sorted(np.random.default_rng(len(usable)).choice(usable, SAMPLED, replace=False).tolist())
    count = len(dataset.classes)
    diameters: list[list[float]] = [[] for _ in range(count)]
    areas, borders = np.zeros(IGNORE + 1, np.int64), np.zeros(IGNORE + 1, np.int64)
    beside = 0
    sides: list[np.ndarray] = []
    dtype = "uint8"
    for index in usable:
        item = dataset.read(index)
        dtype = str(item.image.dtype)
        for number in np.unique(item.label[item.label != IGNORE]).tolist():
            diameters[number] += piece_diameters(item.label == number)
        areas += np.bincount(item.label.ravel(), minlength=IGNORE + 1)
        borders += border_lengths(item.label)
        beside += int(at_borders(item.label).sum())
        sides.append(half_differences(item.image, item.label, count))
    labelled = int(areas[:IGNORE].sum())
    return Looked(
        diameters=diameters,
        areas=areas,
        borders=borders,
        border=round(beside / max(labelled, 1), 4),
        upright=uprightness(np.array(sides)),
        dtype=dtype,
    )


def piece_diameters(mask: np.ndarray) -> list[float]:
    """Return the diameters of circles as large as the connected pieces of `mask`, (H, W), without specks."""
    _, _, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    areas = found[1:, cv2.CC_STAT_AREA]
    return np.sqrt(4 / np.pi * areas[areas >= SPECK]).tolist()  # type: ignore[no-any-return]


def weighted_percentiles(values: Sequence[float], weights: np.ndarray) -> list[float]:
    """Return the values below which `SHARES` percent of the weights are; nothing of nothing."""
    if not len(values):
        return []
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order]) / weights.sum()
    chosen = np.searchsorted(reached, np.array(SHARES) / 100)
    return [float(values[order[min(int(index), len(values) - 1)]]) for index in chosen]


def border_lengths(label: np.ndarray) -> np.ndarray:
    """Count for each value of `label`, (H, W) uint8, its sides of pixels at which another value begins, (256,)."""
    counts = np.zeros(IGNORE + 1, np.int64)
    for first, second in ((label[:-1], label[1:]), (label[:, :-1], label[:, 1:])):
        differ = (first != second) & (first != IGNORE) & (second != IGNORE)
        counts += np.bincount(first[differ], minlength=IGNORE + 1) + np.bincount(second[differ], minlength=IGNORE + 1)
    return counts


def at_borders(label: np.ndarray) -> np.ndarray:
    """Find the labelled pixels beside one of another class, (H, W) bool."""
    found = np.zeros(label.shape, bool)
    for axis in (0, 1):
        ahead, behind = [slice(None)] * 2, [slice(None)] * 2
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        first, second = label[tuple(behind)], label[tuple(ahead)]
        differ = (first != second) & (first != IGNORE) & (second != IGNORE)
        found[tuple(behind)] |= differ
        found[tuple(ahead)] |= differ
    return found


# Whether there is an up and a down ----------------------------------------------------------------------------------


def half_differences(image: np.ndarray, label: np.ndarray, count: int) -> np.ndarray:
    """Return by how much the upper half differs from the lower one, and the left from the right one, (2, 1 + count).

    Args:
        image: (H, W, channels).
        label: (H, W) uint8.
        count: Number of classes; the first column is of the gray level, the others are of their shares.
    """
    gray = image.astype(np.float32).mean(2)
    scale = max(float(gray.std()), 1e-6)
    rows = []
    for turned, marks in ((gray, label), (gray.T, label.T)):
        middle = max(1, len(turned) // 2)
        halves = [
            np.array([part.mean() / scale, *np.bincount(mark.ravel(), minlength=IGNORE + 1)[:count] / mark.size])
            if part.size
            else np.zeros(1 + count)
            for part, mark in ((turned[:middle], marks[:middle]), (turned[-middle:], marks[-middle:]))
        ]
        rows.append(halves[0] - halves[1])
    return np.array(rows)


def uprightness(differences: np.ndarray) -> float:
    """Compare how alike the differences of halves are in all images: above and below against left and right.

    What is seen from above has sky neither here nor there, so that differences are as often one way as the other.

    Args:
        differences: (N, 2, K), from `half_differences`.

    Returns:
        Length of the mean difference of above and below, in lengths that chance and left and right would give; of
        these no more than twice chance, since a fixed view may differ both ways.
    """
    count = len(differences)
    if count < LEAST_SEEN:
        return 0.0
    means = differences.mean(0)
    chance = differences.std(0) / np.sqrt(count)
    vertical, horizontal = np.linalg.norm(means, axis=1)
    usual = np.linalg.norm(chance[0])
    return round(float(vertical / max(min(horizontal, 2 * usual), usual, 1e-6)), 3)
