"""Read every file of a dataset once, and remember what was found."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from base.base_dataset import BaseDataset, Sample
from base.workers import WorkerLoader, first_line, start_worker
from utils.classes import IGNORE
from utils.config import fingerprint
from utils.errors import ConfigError, DataError, Stopped
from utils.schema import to_json
from utils.shards import stamp


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
    """

    stamp: list[int]
    problems: list[str] = field(default_factory=list)
    size: list[int] | None = None
    values: dict[str, int] = field(default_factory=dict)
    unknown: int = 0
    image: str = ""
    label: str = ""
    mean: list[float] | None = None
    square: list[float] | None = None
    pixels: int = 0

    @property
    def is_blank(self) -> bool:
        """Whether all pixels of the image are equal."""
        pairs = zip(self.mean or (), self.square or (), strict=True)
        return self.mean is not None and all(abs(square - mean**2) < 1e-9 for mean, square in pairs)


def stamp_of(sample: Sample) -> list[int]:
    """Size and time of change of image and label; -1 for what is not there."""
    return [*stamp(sample.image), *stamp(sample.label)]


def name_of(sample: Sample) -> str:
    """What records call an example: the paths of both files."""
    return f"{sample.image.absolute()} {sample.label.absolute()}"


def look(dataset: BaseDataset, index: int, *, images: bool = True) -> Record:
    """Read example `index`, the label only unless `images`."""
    sample = dataset.samples[index]
    record = Record(stamp_of(sample))
    shape: tuple[int, ...] | None = None
    try:
        if dataset.raw_labels:
            label = dataset.read_raw(sample.label)
        else:
            label = dataset.read_label(index)
            record.unknown = dataset.unknown_pixels(index)
        shape = label.shape
        record.size, record.label = list(shape), digest(label)
        record.values = {str(value): count for value, count in enumerate(histogram(label)) if count}
    except DataError as error:
        record.problems += error.problems
    if images:
        try:
            image = dataset.read_image(index, shape)
            # OpenCV looks at up to four channels at a time.
            fours = [cv2.meanStdDev(image[..., c : c + 4]) for c in range(0, image.shape[2], 4)]
            mean, std = (np.concatenate(part).ravel() / 255 for part in zip(*fours, strict=True))
            record.mean, record.square = mean.tolist(), (std**2 + mean**2).tolist()
            record.pixels, record.image = image.shape[0] * image.shape[1], digest(image)
        except DataError as error:
            record.problems += error.problems
    return record


def histogram(label: np.ndarray) -> list[int]:
    """Pixels of each value of `label` (H, W) uint8."""
    # OpenCV counts in float32, exactly up to 2^24 pixels.
    strips = np.array_split(label, -(-label.size // 2**24) or 1)
    counts = [cv2.calcHist([np.ascontiguousarray(strip)], [0], None, [256], [0, 256]) for strip in strips]
    return np.sum(counts, axis=0, dtype=np.int64).ravel().tolist()


def digest(array: np.ndarray) -> str:
    """A text that only equal arrays have in common."""
    data = np.ascontiguousarray(array).data.cast("B")
    return hashlib.blake2b(data, digest_size=12, salt=str(array.shape).encode()[:16]).hexdigest()


class Looks(Dataset):
    """What `look` sees of some examples; read from by workers."""

    def __init__(self, dataset: BaseDataset, indices: Sequence[int], images: bool) -> None:
        self.dataset, self.indices, self.images = dataset, indices, images

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return look(self.dataset, self.indices[index], images=self.images)


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
    from tqdm import tqdm

    if not all(isinstance(sample, Sample) and sample.image.name for sample in dataset.samples[:1]):
        raise ConfigError(f"{type(dataset).__name__}: is generated and has no files to check. Name another dataset.")
    path = cache / f"{cache_key(dataset, images)}.json.gz" if cache else None
    known = recall(path)
    records, stale = {}, []
    for index, sample in enumerate(dataset.samples):
        before = known.get(name_of(sample))
        if before is not None and before.stamp == stamp_of(sample):
            records[sample.key] = before
        else:
            stale.append(index)
    loader = WorkerLoader(
        Looks(dataset, stale, images),
        batch_size=None,
        num_workers=min(num_workers, len(stale)),
        worker_init_fn=start_worker if num_workers else None,
        generator=torch.Generator(),
    )
    bar = tqdm(loader, total=len(stale), desc=name, unit="image", leave=False, disable=None)
    try:
        for index, record in zip(stale, bar, strict=True):
            records[dataset.samples[index].key] = record
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise Stopped(f"a process that reads died ({first_line(error)}). Use fewer --workers") from error
    if path is not None and stale:
        seen = {name_of(sample): records[sample.key] for sample in dataset.samples}
        # What a package is missing for is no property of the file.
        known |= {name: record for name, record in seen.items() if "pip install" not in " ".join(record.problems)}
        remember(path, known)
    return {sample.key: records[sample.key] for sample in dataset.samples}


# What was seen before ------------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """The folder in which records are kept: ``SEGWRIGHT_CACHE``, or segwright/ in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("SEGWRIGHT_CACHE") or Path(home) / "segwright")


def remembered(dataset: BaseDataset, indices: Sequence[int], cache: Path) -> dict[int, Record] | None:
    """What `examine` saw of examples, by their numbers; None unless it knows all of them as they are now."""
    if not has_files(dataset):
        return None
    for images in (True, False):
        known = recall(cache / f"{cache_key(dataset, images)}.json.gz")
        found = {index: known.get(name_of(dataset.samples[index])) for index in indices}
        if all(r is not None and r.stamp == stamp_of(dataset.samples[index]) for index, r in found.items()):
            return found  # type: ignore[return-value]
    return None


def count_labels(dataset: BaseDataset, records: Mapping[int, Record]) -> tuple[np.ndarray, int, list[int]]:
    """What `records` say of training ids.

    Returns:
        pixels: Labelled pixels of each class, (C,), in examples that can be used.
        void: Pixels of void in them.
        unusable: Numbers of the other examples.
    """
    table, counts, unusable = dataset.classes, np.zeros(256, np.int64), []
    known = {value for values in (*table.raw_ids, table.void_ids) for value in values}
    lookup = table.lookup if dataset.raw_labels else np.arange(256)
    for index, record in records.items():
        values = {int(value): count for value, count in record.values.items()}
        strict = dataset.raw_labels and not dataset.takes_unknown
        if record.problems or (strict and not values.keys() <= known):
            unusable.append(index)
            continue
        for value, count in values.items():
            counts[lookup[value]] += count
    return counts[: len(table)], int(counts[IGNORE]), unusable


def has_files(dataset: BaseDataset) -> bool:
    """Whether examples are read from files, not drawn."""
    first = dataset.samples[0]
    return isinstance(first, Sample) and bool(first.label.name) and stamp(first.label) != (-1, -1)


def cache_key(dataset: BaseDataset, images: bool) -> str:
    """A name for what records depend on besides the files: the dataset's options, but neither folder nor split."""
    options = {f.name: getattr(dataset, f.name) for f in fields(dataset) if f.init}
    options = {name: value for name, value in options.items() if name not in ("data_dir", "split", "classes")}
    table = asdict(dataset.classes) if not dataset.raw_labels else None
    return fingerprint([1, type(dataset).__name__, to_json(options), to_json(table), images])


def recall(path: Path | None) -> dict[str, Record]:
    """Records in the file `path`, by label; none if it is not there or damaged."""
    try:
        rows = json.loads(gzip.decompress(path.read_bytes())) if path else {}
        return {key: Record(**row) for key, row in rows.items()}
    except (OSError, EOFError, ValueError, TypeError, AttributeError):
        return {}


def remember(path: Path, records: Mapping[str, Record]) -> None:
    """Write records so that the file is either the old or the new one; where that is impossible, do without."""
    unfinished = path.with_name(f"{path.name}.tmp{os.getpid()}")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({key: asdict(record) for key, record in records.items()}, separators=(",", ":"))
        unfinished.write_bytes(gzip.compress(text.encode(), compresslevel=1))
        os.replace(unfinished, path)
