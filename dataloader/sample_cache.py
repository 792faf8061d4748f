"""Decoded examples, kept in memory or in one file, so that no image is decoded twice.

What is kept is what `BaseDataset.read` gives, before any augmentation, so that batches are the same with and without.
Workers share one copy of it. A file gets its name only when all of it is on the disk; its name says of which files,
with which sizes and times, it was made.
"""

from __future__ import annotations

import functools
import json
import mmap
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch

from base.base_dataset import BaseDataset, Item
from base.workers import in_workers
from dataloader.scan import has_files
from utils.config import fingerprint
from utils.devices import available_memory
from utils.errors import ConfigError, DataError, Stopped
from utils.files import atomic_write, lock, sync_folder, writer_of
from utils.schema import to_json
from utils.shards import stamp

BLOCK = 256 << 20  # bytes of memory that are asked for at a time
ALIGNED = 64  # bytes; at multiples of them each example begins
MAGIC = b"SEGCACH3"
TAIL = 12 + len(MAGIC)  # bytes at the end of a file: length and checksum of the index before them
JUDGED = 16  # examples after which the size of all is known well enough
SPARE = 0.9  # share of the free memory or disk that may be used


class Row(NamedTuple):
    """Where an example lies: first byte, shape (H, W, C) and type of its image, which its label follows; CRC-32.

    In memory, the first byte is that within a block, plus 2^48 times the number of the block, and there is no CRC-32.
    """

    offset: int
    shape: tuple[int, int, int]
    dtype: str
    crc: int | None = None

    @property
    def image_size(self) -> int:
        """Bytes of the image."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    @property
    def size(self) -> int:
        """Bytes of image and label."""
        return self.image_size + self.shape[0] * self.shape[1]


class Sink(Protocol):
    """Where examples are put."""

    def append(self, item: Item) -> Row:
        """Keep an example."""


class Store(Protocol):
    """Where examples are found again."""

    def bytes_of(self, row: Row) -> np.ndarray:
        """The example's bytes, (n,) uint8; a view."""


class Memory:
    """Memory in blocks, which forked workers share by being forked, and others through shared memory."""

    def __init__(self, *, shared: bool) -> None:
        self.blocks: list[torch.Tensor] = []
        self.used = BLOCK  # bytes of the last block
        self.shared = shared

    def append(self, item: Item) -> Row:
        parts = [_flat(item.image), _flat(item.label)]
        size = sum(map(len, parts))
        if not self.blocks or self.used + size > len(self.blocks[-1]):
            block = torch.empty(max(BLOCK, size), dtype=torch.uint8)
            if self.shared:
                block.share_memory_()  # type: ignore[no-untyped-call]
            self.blocks.append(block)
            self.used = 0
        row = Row((len(self.blocks) - 1 << 48) + self.used, _shape(item), item.image.dtype.str)
        self.blocks[-1][self.used : self.used + size] = torch.from_numpy(np.concatenate(parts))
        self.used += -(-size // ALIGNED) * ALIGNED
        return row

    def bytes_of(self, row: Row) -> np.ndarray:
        offset = row.offset & (1 << 48) - 1
        return self.blocks[row.offset >> 48].numpy()[offset : offset + row.size]


class File:
    """A file of examples, mapped at once: another run of the data set may remove its name before it is read.

    Raises:
        FileNotFoundError: One has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self._map = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def __reduce__(self) -> Any:
        return File, (self.path,)  # for workers that are not forked

    def bytes_of(self, row: Row) -> np.ndarray:
        return self._map[row.offset : row.offset + row.size]


class OpenFile:
    """A file that examples are written to.

    Args:
        file: Open for writing, empty.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def append(self, item: Item) -> Row:
        self.file.write(bytes(-self.file.tell() % ALIGNED))
        offset, crc = self.file.tell(), 0
        for part in (item.image, item.label):
            self.file.write(_flat(part).data)
            crc = zlib.crc32(_flat(part).data, crc)
        return Row(offset, _shape(item), item.image.dtype.str, crc)

    def finish(self, rows: dict[int, Row]) -> None:
        """Write where everything lies."""
        index = json.dumps(rows).encode()
        self.file.write(index + len(index).to_bytes(8, "little") + zlib.crc32(index).to_bytes(4, "little") + MAGIC)


@dataclass(eq=False)
class SampleCache:
    """Examples of a dataset that have been decoded before.

    Args:
        dataset: Whose they are.
        store: Where they are kept.
        rows: Where each lies, by its number in the dataset. What could not be read is not there.
    """

    dataset: BaseDataset
    store: Store
    rows: dict[int, Row] = field(default_factory=dict)
    _compared: set[int] = field(default_factory=set)  # with their checksums, once a process

    def read(self, index: int) -> Item:
        """What ``dataset.read(index)`` gives; its arrays are read-only, unless those kept are damaged.

        Raises:
            DataError: The files cannot be used.
        """
        row = self.rows.get(index)
        if row is None:
            return self.dataset.read(index)
        data = self.store.bytes_of(row)
        if row.crc is not None and index not in self._compared:
            if zlib.crc32(data.data) != row.crc:
                return self.dataset.read(index)
            self._compared.add(index)
        image = data[: row.image_size].view(row.dtype).reshape(row.shape)
        label = data[row.image_size :].reshape(row.shape[:2])
        image.flags.writeable = label.flags.writeable = False
        return Item(image, label, self.dataset.samples[index].key)


def _read(dataset: BaseDataset, index: int) -> Item | DataError:
    """Read an example in a worker, as tensors, which are shared; or return what is wrong with it."""
    try:
        image, label, key = dataset.read(index)
    except DataError as error:
        return error
    return Item(torch.from_numpy(image), torch.from_numpy(label), key)  # type: ignore[arg-type]


def build_cache(
    dataset: BaseDataset,
    where: Literal["ram", "disk"],
    *,
    folder: Path,
    name: str = "train_loader",
    indices: Sequence[int] | None = None,
    num_workers: int = 0,
) -> SampleCache:
    """Decode examples of `dataset`, with a progress bar, or find those that an earlier run left on the disk.

    Args:
        dataset: Where they come from.
        where: Memory, or a file in `folder`.
        folder: For files; old ones of the same split are removed from it.
        name: Section of the config that asks for it.
        indices: Which examples; None for all.
        num_workers: Processes that read.

    Raises:
        ConfigError: There is not enough memory, or the dataset has no files to tell an old cache by.
        Stopped: The disk is full, or a process died.
    """
    chosen = list(range(len(dataset)) if indices is None else indices)
    if where == "ram":
        memory = Memory(shared=num_workers > 0 and multiprocessing.get_start_method() != "fork")
        free = shutil.disk_usage("/dev/shm").free if memory.shared and os.path.isdir("/dev/shm") else available_memory()
        return SampleCache(dataset, memory, fill(dataset, chosen, memory, num_workers, free, name))
    if not has_files(dataset):
        raise ConfigError(
            f'{name}.args.cache: {type(dataset).__name__} has no files to tell an old cache by. Use "ram".'
        )
    family, mark = cache_name(dataset, chosen, name)
    path = folder / f"{family}-{mark}.bin"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        rows = stored_rows(path)
        if rows is None:
            with in_turn(folder, family):
                rows = stored_rows(path)
                if rows is None:
                    rows = _fill_file(dataset, chosen, path, num_workers, name)
        return SampleCache(dataset, File(path), rows)
    except OSError as error:
        reason = error.strerror or error
        raise Stopped(f'{path}: cannot be written ({reason}). Free some space, or set "cache" to null') from error


@contextmanager
def in_turn(folder: Path, family: str) -> Iterator[None]:
    """Within it, no other process fills a cache of `family`: of several ranks one does, and the others find it done.

    Where there are no locks, each fills a file of its own, and the last one's stays.
    """
    with folder.with_name(f"{folder.name}.lock").open("ab") as file:
        lock(file, wait=True, at=int(family, 16) % 2**40)
        yield


def _fill_file(dataset: BaseDataset, indices: Sequence[int], path: Path, num_workers: int, name: str) -> dict[int, Row]:
    """Write examples to `path`, and remove what it replaces: files of the same family, and what killed processes left.

    Raises:
        OSError: The disk is full.
        ConfigError, Stopped: As for `fill`.
    """
    family = path.name.partition("-")[0]
    for left in path.parent.glob(f"{family}-*.tmp*"):
        writer = writer_of(left)
        if writer is not None and not is_running(writer):
            with suppress(OSError):
                left.unlink()
    with atomic_write(path) as file:
        store = OpenFile(file)
        rows = fill(dataset, indices, store, num_workers, shutil.disk_usage(path.parent).free, name)
        store.finish(rows)
    sync_folder(path.parent)
    for old in path.parent.glob(f"{family}-*.bin"):
        if old != path:  # whoever reads it has mapped it
            old.unlink(missing_ok=True)
    return rows


def is_running(process: int) -> bool:
    """Say whether there is a process with this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def fill(
    dataset: BaseDataset, indices: Sequence[int], store: Sink, num_workers: int, free: int, name: str
) -> dict[int, Row]:
    """Read examples into `store`; returns where each lies. Those that cannot be read are left out.

    Args:
        dataset: Where they come from.
        indices: Which ones.
        store: Where to keep them.
        num_workers: Processes that read.
        free: Bytes that there are for them.
        name: Section of the config that asks for it.

    Raises:
        ConfigError: They will not fit.
        Stopped: A process died.
    """
    rows: dict[int, Row] = {}
    used = 0
    read = functools.partial(_read, dataset)
    with in_workers(read, indices, num_workers=num_workers, title="cache", advice="Lower num_workers") as items:
        for index, item in zip(indices, items, strict=True):
            if isinstance(item, DataError):
                continue
            rows[index] = store.append(Item(np.asarray(item.image), np.asarray(item.label), item.key))
            used += rows[index].size
            expected = used * len(indices) // len(rows)
            if len(rows) in (JUDGED, len(indices)) and expected > SPARE * free:
                other = '"disk"' if isinstance(store, Memory) else "another SEGWRIGHT_CACHE"
                raise ConfigError(
                    f"{name}.args.cache: {len(indices):,} decoded images take about {expected >> 20:,} MiB, and "
                    f"{free >> 20:,} MiB are free. Use {other}, or null."
                )
    return rows


def stored_rows(path: Path) -> dict[int, Row] | None:
    """Read where examples lie in the file `path`; None if it is not there or not whole."""
    try:
        with path.open("rb") as file:
            file.seek(-TAIL, os.SEEK_END)
            tail = file.read()
            length = int.from_bytes(tail[:8], "little")
            if tail[12:] != MAGIC:
                return None
            file.seek(-TAIL - length, os.SEEK_END)
            index = file.read(length)
            if zlib.crc32(index) != int.from_bytes(tail[8:12], "little"):
                return None
            rows = json.loads(index)
        return {int(index): Row(offset, tuple(shape), *rest) for index, (offset, shape, *rest) in rows.items()}
    except (OSError, ValueError, TypeError):
        return None


def cache_name(dataset: BaseDataset, indices: Sequence[int], name: str) -> tuple[str, str]:
    """Make two names: of the split in this use, and of all that examples depend on, down to files' sizes and times."""
    options = {option: value for option, value in dataset.options().items() if option != "classes"}
    options["data_dir"] = str(Path(options["data_dir"]).absolute())
    files = []
    for index in indices:
        sample = dataset.samples[index]
        files.append([index, sample.key, *stamp(sample.image), *stamp(sample.label)])
    family = fingerprint([1, type(dataset).__name__, to_json(options), name])
    return family, fingerprint([to_json(dataset.classes.identity()), files])


def _flat(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _shape(item: Item) -> tuple[int, int, int]:
    height, width, channels = item.image.shape
    return height, width, channels
