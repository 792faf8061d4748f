"""Read every file of a dataset once, and remember what was found."""

from __future__ import annotations

import functools
import gzip
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from base.base_dataset import BaseDataset, Sample, uncollected
from base.workers import in_workers
from utils.classes import IGNORE, count_values
from utils.config import fingerprint
from utils.errors import ConfigError, DataError, Fault, Problem
from utils.files import atomic_write
from utils.schema import to_json
from utils.shards import stamp

THUMBNAIL = 16  # side of the pictures that images are compared by, in pixels


@dataclass
class Record:
    """What was seen of one example.

    Args:
        stamp: Sizes and times of both files, by which to see that they have not changed.
        problems: Why image and label cannot be used, if so.
        size: Height and width of the label.
        values: Pixels of each value of the label: raw values where the dataset translates them, else training ids.
        unknown: Pixels that are void though they stand for nothing known.
        image: Digest of the image's pixels.
        label: Digest of the label's.
        mean: Mean of each channel of the image, 0 to 1.
        square: Mean square of each channel.
        pixels: Number of pixels of the image.
        thumbnail: What the image shows coarsely, to find others like it; see `thumbnail`.
    """

    stamp: list[int]
    problems: list[Problem] = field(default_factory=list)
    size: list[int] | None = None
    values: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    image: str = ""
    label: str = ""
    mean: list[float] | None = None
    square: list[float] | None = None
    pixels: int = 0
    thumbnail: str = ""

    @property
    def is_blank(self) -> bool:
        """Whether all pixels of the image are equal, but for rounding."""
        pairs = zip(self.mean or (), self.square or (), strict=True)
        return self.mean is not None and all(abs(square - mean**2) <= 1e-9 * square for mean, square in pairs)


def stamp_of(sample: Sample) -> list[int]:
    """Return size and time of change of image and label; -1 for what is not there."""
    return [*stamp(sample.image), *stamp(sample.label)]


def name_of(sample: Sample) -> str:
    """Return what records call an example: the paths of both files."""
    image, label = str(sample.image), str(sample.label)
    if os.path.isabs(image) and os.path.isabs(label):  # pathlib would take ten times as long
        return f"{image} {label}"
    return f"{sample.image.absolute()} {sample.label.absolute()}"


def number_of(name: str) -> int:
    """Return 64 bits that stand for the name of an example."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


def scan_sample(dataset: BaseDataset, index: int, *, images: bool = True) -> Record:
    """Read example `index`, the label only unless `images`."""
    record = Record(stamp_of(dataset.samples[index]))
    _scan_label(dataset, index, record)
    if images:
        _scan_image(dataset, index, record)
    return record


def _scan_label(dataset: BaseDataset, index: int, record: Record) -> None:
    try:
        if dataset.raw_labels:
            label = dataset.read_raw(dataset.samples[index].label)
        else:
            label = dataset.read_label(index)
            record.unknown = dataset.unknown_pixels(index)
    except DataError as error:
        record.problems += error.details
        return
    counts = count_values(label)
    record.size = list(label.shape)
    record.label = digest(label)
    record.values = {str(value): int(counts[value]) for value in np.flatnonzero(counts)}


def _scan_image(dataset: BaseDataset, index: int, record: Record) -> None:
    try:
        image = dataset.read_image(index, tuple(record.size) if record.size else None)
    except DataError as error:
        record.problems += error.details
        return
    # OpenCV looks at up to four channels at a time.
    fours = [cv2.meanStdDev(image[..., c : c + 4]) for c in range(0, image.shape[2], 4)]
    mean, std = (np.concatenate(part).ravel() / 255 for part in zip(*fours, strict=True))
    record.mean = mean.tolist()
    record.square = (std**2 + mean**2).tolist()
    record.pixels = image.shape[0] * image.shape[1]
    record.image = digest(image)
    record.thumbnail = thumbnail(image)


def thumbnail(image: np.ndarray) -> str:
    """Reduce an image (H, W, channels) to 16x16 gray levels about their surroundings, as text; empty if it is blank.

    Levels about their surroundings tell one street from another, whose sky and road are alike.
    """
    gray = image.astype(np.float32).mean(2)
    small = cv2.resize(gray, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    detail = small - cv2.GaussianBlur(small, (0, 0), 3)
    largest = float(np.abs(detail).max())
    if largest < 1e-6 * max(1.0, float(np.abs(small).max())):
        return ""
    levels: bytes = np.rint(127 * detail / largest).astype(np.int8).tobytes()
    return levels.hex()


def digest(array: np.ndarray) -> str:
    """Return a text that only equal arrays have in common."""
    data = np.ascontiguousarray(array).data.cast("B")
    return hashlib.blake2b(data, digest_size=12, salt=str(array.shape).encode()[:16]).hexdigest()


def examine(
    dataset: BaseDataset, *, name: str = "", images: bool = True, num_workers: int = 0, cache: Path | None = None
) -> dict[str, Record]:
    """Read all examples of `dataset`, with a progress bar; returns what was seen, by key.

    Args:
        dataset: With files of its own.
        name: What to write beside the bar.
        images: Read images too, not labels only.
        num_workers: Processes; 0 reads in this one.
        cache: Folder in which to remember what was seen; None for nowhere.

    Raises:
        ConfigError: The dataset has no files.
        Stopped: A process died.
    """
    if not has_files(dataset):
        raise ConfigError(f"{type(dataset).__name__}: is generated and has no files to check. Name another dataset.")
    path = cache_file(cache, dataset, images) if cache else None
    known = recall(path)
    records, stale = {}, []
    for index, sample in enumerate(dataset.samples):
        before = known.get(name_of(sample))
        if before is not None and before.stamp == stamp_of(sample):
            records[sample.key] = before
        else:
            stale.append(index)
    scan = functools.partial(scan_sample, dataset, images=images)
    with in_workers(scan, stale, num_workers=num_workers, title=name, advice="Use fewer --workers") as seen:
        for index, record in zip(stale, seen, strict=True):
            records[dataset.samples[index].key] = record
    if path is not None and stale:
        remember(path, known | _lasting({name_of(sample): records[sample.key] for sample in dataset.samples}))
    return {sample.key: records[sample.key] for sample in dataset.samples}


def _lasting(records: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records that will still hold; others are of files that are read again the next time.

    That a package is missing is no property of a file. Of a line without its kind, nobody knows what it is about.
    """

    def lasts(problem: Problem) -> bool:
        return bool(problem.path) and problem.fault is not Fault.MISSING_PACKAGE

    return {name: record for name, record in records.items() if all(map(lasts, record.problems))}


# What was seen before ------------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """Return the folder in which records are kept: ``SEGWRIGHT_CACHE``, or segwright/ in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SEGWRIGHT_CACHE") or Path(home) / "segwright")


def remembered(dataset: BaseDataset, indices: Sequence[int], cache: Path) -> dict[int, Record] | None:
    """Return what `examine` saw of examples, by their numbers; None unless it knows all of them as they are now."""
    if not has_files(dataset):
        return None
    for images in (True, False):
        known = recall(cache_file(cache, dataset, images))
        found = {}
        for index in indices:
            record = known.get(name_of(dataset.samples[index]))
            if record is None or record.stamp != stamp_of(dataset.samples[index]):
                break
            found[index] = record
        else:
            return found
    return None


@dataclass(frozen=True)
class LabelValues:
    """What `examine` saw of the labels of some examples, n of them.

    Args:
        usable: Whether ``dataset.read`` would give each example, as far as was looked at, (n,) bool.
        readable: Whether ``dataset.read_label`` would, (n,) bool.
        pixels: Pixels of each value in readable labels, (256,) int64, whether or not images were looked at, too.
    """

    usable: np.ndarray
    readable: np.ndarray
    pixels: np.ndarray


def remembered_values(dataset: BaseDataset, indices: Sequence[int], cache: Path) -> LabelValues | None:
    """Return what `examine` saw of the labels of examples; None unless it knows all of them as they are now.

    No record is made of what was seen, so that a start with 100,000 examples takes no seconds.
    """
    if not has_files(dataset):
        return None
    wanted = [dataset.samples[index] for index in indices]
    numbers = np.fromiter((number_of(name_of(sample)) for sample in wanted), np.uint64, len(wanted))
    stamps: np.ndarray | None = None
    for images in (True, False):
        columns = recall_columns(cache_file(cache, dataset, images))
        if columns is None or not len(columns["numbers"]):
            continue
        rows = np.searchsorted(columns["numbers"], numbers).clip(max=len(columns["numbers"]) - 1)
        if (columns["numbers"][rows] != numbers).any():
            continue
        if stamps is None:
            flat = (part for sample in wanted for path in sample[1:] for part in stamp(path))
            stamps = np.fromiter(flat, np.int64, 4 * len(wanted)).reshape(-1, 4)
        if (columns["stamps"][rows] == stamps).all():
            return _label_values(dataset, columns, rows)
    return None


def _label_values(dataset: BaseDataset, columns: Mapping[str, np.ndarray], rows: np.ndarray) -> LabelValues:
    """What the chosen `rows` of `columns` say."""
    readable = columns["kinds"] > 0  # of a label that could not be read, there are no values
    row_of = np.repeat(np.arange(len(readable)), columns["kinds"])
    if dataset.raw_labels and not dataset.takes_unknown:
        is_known = np.zeros(256, bool)
        is_known[list(dataset.classes.known)] = True
        readable[row_of[~is_known[columns["values"]]]] = False
    is_counted = np.zeros(len(readable), bool)
    is_counted[rows] = readable[rows]
    is_counted = is_counted[row_of]
    pixels = np.zeros(256, np.int64)
    np.add.at(pixels, columns["values"][is_counted], columns["pixels"][is_counted])
    return LabelValues((readable & ~columns["faulty"])[rows], readable[rows], pixels)


def sum_values(records: Iterable[Record]) -> np.ndarray:
    """Add up the pixels of each value that labels hold, (256,) int64."""
    counts = np.zeros(256, np.int64)
    for record in records:
        for value, count in record.values.items():
            counts[int(value)] += count
    return counts


def class_pixels_of(dataset: BaseDataset, values: np.ndarray) -> tuple[np.ndarray, int]:
    """Translate pixels of each value that records hold to labelled pixels of each class, (C,), and those of void."""
    counts = np.zeros(256, np.int64)
    np.add.at(counts, dataset.classes.lookup if dataset.raw_labels else np.arange(256), values)
    return counts[: len(dataset.classes)], int(counts[IGNORE])


def is_usable(dataset: BaseDataset, record: Record) -> bool:
    """Say whether ``dataset.read`` would give the example that `record` is about."""
    if record.problems:
        return False
    if not dataset.raw_labels or dataset.takes_unknown:
        return True
    return dataset.classes.known.issuperset(map(int, record.values))


def has_files(dataset: BaseDataset) -> bool:
    """Say whether examples are read from files, not generated; generated ones may have paths at which nothing is."""
    first = dataset.samples[0]
    if not isinstance(first, Sample) or not (first.image.name and first.label.name):
        return False
    return stamp_of(first) != [-1, -1, -1, -1]


def cache_key(dataset: BaseDataset, images: bool) -> str:
    """Make a name of what records depend on besides the files: the dataset's options, but neither folder nor split."""
    options = {name: value for name, value in dataset.options().items() if name not in ("data_dir", "split", "classes")}
    table = dataset.classes.identity() if not dataset.raw_labels else None
    return fingerprint([2, type(dataset).__name__, to_json(options), to_json(table), images])


def cache_file(cache: Path, dataset: BaseDataset, images: bool) -> Path:
    """Return the file in which records of `dataset` are kept."""
    return cache / f"{cache_key(dataset, images)}.npz"


def recall(path: Path | None) -> dict[str, Record]:
    """Read the records in the file `path`, by name; none if it is not there or damaged."""
    if path is None:
        return {}
    try:
        with _opened(path) as columns, uncollected():
            rows = json.loads(gzip.decompress(columns["rows"].tobytes()))
            return {key: _record(row) for key, row in rows.items() if _is_current(row)}
    except UNREADABLE:
        return {}


def recall_columns(path: Path) -> dict[str, np.ndarray] | None:
    """Read what the file `path` says of labels, without its records; None if it is not there or damaged."""
    try:
        with _opened(path) as columns:
            return {name: columns[name] for name in ("numbers", "stamps", "faulty", "kinds", "values", "pixels")}
    except UNREADABLE:
        return None


UNREADABLE = (
    *(OSError, EOFError, ValueError, TypeError, AttributeError, KeyError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


@contextmanager
def _opened(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    with np.load(path) as columns:  # each is read, and compared with its checksum, when it is asked for
        if not isinstance(columns, Mapping):
            raise ValueError("a single array")
        yield columns


def _is_current(row: dict[str, Any]) -> bool:
    """Say whether a record's problems are of known kinds; once they were texts."""
    return all(isinstance(problem, dict) for problem in row["problems"])


def _record(row: dict[str, Any]) -> Record:
    problems = [Problem(**{**problem, "fault": Fault(problem["fault"])}) for problem in row["problems"]]
    return Record(**{**row, "problems": problems})


def remember(path: Path, records: Mapping[str, Record]) -> None:
    """Write records so that the file is either the old or the new one; where that is impossible, do without.

    It holds them as JSON, and what every start of a training asks for in columns, ordered by `number_of` the names.
    """
    rows = {key: asdict(record) for key, record in records.items()}
    text = json.dumps(rows, separators=(",", ":"), default=str)  # paths
    numbers = np.array([number_of(name) for name in records], np.uint64)
    order = np.argsort(numbers)
    ordered = list(records.values())
    ordered = [ordered[index] for index in order.tolist()]
    columns = {
        "numbers": numbers[order],
        "stamps": np.array([record.stamp for record in ordered], np.int64).reshape(-1, 4),
        "faulty": np.array([bool(record.problems) for record in ordered], bool),
        "kinds": np.array([len(record.values) for record in ordered], np.int64),  # of values, in each label
        "values": np.array([int(value) for record in ordered for value in record.values], np.uint8),
        "pixels": np.array([count for record in ordered for count in record.values.values()], np.int64),
        "rows": np.frombuffer(gzip.compress(text.encode(), compresslevel=1), np.uint8),
    }
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            np.savez(file, **columns)  # type: ignore[arg-type]  # of the keywords, one is a flag
