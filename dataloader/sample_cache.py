"""Decoded examples, kept in memory or in one file, so that no image is decoded twice.

What is kept is what `BaseDataset.read` gives, before any augmentation, so that batches are the same with and without.
Workers share one copy of it. A file is written beside its place and gets its name only when all of it is on the disk;
its name says of which files, with which sizes and times, it was made.
"""

from __future__ import annotations

import json
import mmap
import multiprocessing
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset

from base.base_dataset import BaseDataset, Item
from base.workers import WorkerLoader, first_line, start_worker
from utils.checkpoint import sync_folder
from utils.config import fingerprint
from utils.errors import ConfigError, DataError, Stopped
from utils.locks import lock
from utils.schema import to_json
from utils.shards import stamp

BLOCK = 256 << 20  # bytes of memory that are asked for at a time
ALIGNED = 64  # bytes; at multiples of them each example begins
MAGIC = b"SEGCACH2"
TAIL = 12 + len(MAGIC)  # bytes at the end of a file: length and checksum of the index before them
JUDGED = 16  # examples after which the size of all is known well enough
SPARE = 0.9  # share of the free memory or disk that may be used


class Row(NamedTuple):
    """Where an example lies: first byte, shape (H, W, C) and type of its image, which its label follows."""

    offset: int
    shape: tuple[int, int, int]
    dtype: str

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
        self.used, self.shared = BLOCK, shared  # bytes of the last block

    def append(self, item: Item) -> Row:
        parts = [_flat(item.image), _flat(item.label)]
        size = sum(map(len, parts))
        if not self.blocks or self.used + size > len(self.blocks[-1]):
            block = torch.empty(max(BLOCK, size), dtype=torch.uint8)
            self.blocks.append(block.share_memory_() if self.shared else block)
            self.used = 0
        # Numbers of blocks stand above the 48 bits that an offset in one of them may have.
        row = Row((len(self.blocks) - 1 << 48) + self.used, _shape(item), item.image.dtype.str)
        self.blocks[-1][self.used : self.used + size] = torch.from_numpy(np.concatenate(parts))
        self.used += -(-size // ALIGNED) * ALIGNED
        return row

    def bytes_of(self, row: Row) -> np.ndarray:
        offset = row.offset & (1 << 48) - 1
        return self.blocks[row.offset >> 48].numpy()[offset : offset + row.size]


class File:
    """A file of examples, which every process maps for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._map: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_map": None}

    def bytes_of(self, row: Row) -> np.ndarray:
        if self._map is None:
            with self.path.open("rb") as file:
                self._map = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
        return self._map[row.offset : row.offset + row.size]


class Unfinished:
    """A file that is being written; it has a name of its own until `commit`."""

    def __init__(self, path: Path) -> None:
        self.path, self.place = path, path.with_name(f"{path.name}.tmp{os.getpid()}")
        self.file = self.place.open("wb")

    def append(self, item: Item) -> Row:
        self.file.write(bytes(-self.file.tell() % ALIGNED))
        row = Row(self.file.tell(), _shape(item), item.image.dtype.str)
        for part in (item.image, item.label):
            self.file.write(_flat(part).data)
        return row

    def commit(self, rows: dict[int, Row]) -> None:
        """Write where everything lies, wait for the disk, and take the place."""
        index = json.dumps(rows).encode()
        self.file.write(index + len(index).to_bytes(8, "little") + zlib.crc32(index).to_bytes(4, "little") + MAGIC)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.place, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        self.file.close()
        self.place.unlink(missing_ok=True)


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

    def read(self, index: int) -> Item:
        """What ``dataset.read(index)`` gives; its arrays are read-only.

        Raises:
            DataError: The files cannot be used.
        """
        row = self.rows.get(index)
        if row is None:
            return self.dataset.read(index)
        data = self.store.bytes_of(row)
        image = data[: row.image_size].view(row.dtype).reshape(row.shape)
        label = data[row.image_size :].reshape(row.shape[:2])
        image.flags.writeable = label.flags.writeable = False
        return Item(image, label, self.dataset.samples[index].key)


class Reads(Dataset):
    """Examples of a dataset, or what is wrong with them; read from by workers."""

    def __init__(self, dataset: BaseDataset, indices: Sequence[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Item | DataError:
        try:
            image, label, key = self.dataset.read(self.indices[index])
        except DataError as error:
            return error
        return Item(torch.from_numpy(image), torch.from_numpy(label), key)  # type: ignore[arg-type]  # to be shared


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
    first = dataset.samples[chosen[0]].image
    if not first.name or stamp(first) == (-1, -1):  # drawn, not read
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
                    with writing(path) as file:
                        rows = fill(dataset, chosen, file, num_workers, shutil.disk_usage(folder).free, name)
                        file.commit(rows)
                    for old in folder.glob(f"{family}-*.bin"):
                        if old != path:  # whoever reads it still has it
                            old.unlink(missing_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise Stopped(f'{path}: cannot be written ({reason}). Free some space, or set "cache" to null') from error
    return SampleCache(dataset, File(path), rows)


@contextmanager
def in_turn(folder: Path, family: str) -> Iterator[None]:
    """Within it, no other process fills a cache of `family`: of several ranks one does, and the others find it done.

    Where there are no locks, each fills a file of its own, and the last one's stays.
    """
    with folder.with_name(f"{folder.name}.lock").open("ab") as file:
        lock(file, wait=True, at=int(family, 16) % 2**40)
        yield


@contextmanager
def writing(path: Path) -> Iterator[Unfinished]:
    """A file that is removed unless it has been committed; what killed processes left is removed first."""
    for left in path.parent.glob(f"{path.name.partition('-')[0]}-*.tmp*"):
        with suppress(ValueError, OSError):
            if not is_running(int(left.name.rpartition(".tmp")[2])):
                left.unlink()
    file = Unfinished(path)
    try:
        yield file
    finally:
        file.discard()


def is_running(process: int) -> bool:
    """Whether there is a process with this number."""
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
    from tqdm import tqdm

    loader = WorkerLoader(
        Reads(dataset, indices),
        batch_size=None,
        num_workers=min(num_workers, len(indices)),
        worker_init_fn=start_worker if num_workers else None,
        generator=torch.Generator(),
    )
    rows: dict[int, Row] = {}
    used = 0
    try:
        for index, item in zip(indices, tqdm(loader, "cache", unit="image", leave=False, disable=None), strict=True):
            if isinstance(item, DataError):
                continue
            rows[index] = store.append(Item(item.image.numpy(), item.label.numpy(), item.key))
            used += rows[index].size
            expected = used * len(indices) // len(rows)
            if len(rows) in (JUDGED, len(indices)) and expected > SPARE * free:
                other = '"disk"' if isinstance(store, Memory) else "another SEGWRIGHT_CACHE"
                raise ConfigError(
                    f"{name}.args.cache: {len(indices):,} decoded images take about {expected >> 20:,} MiB, and "
                    f"{free >> 20:,} MiB are free. Use {other}, or null."
                )
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise Stopped(f"a process that reads died ({first_line(error)}). Lower num_workers") from error
    return rows


def stored_rows(path: Path) -> dict[int, Row] | None:
    """Where examples lie in the file `path`; None if it is not there or not whole."""
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
        return {int(index): Row(offset, tuple(shape), dtype) for index, (offset, shape, dtype) in rows.items()}
    except (OSError, ValueError, TypeError):
        return None


def cache_name(dataset: BaseDataset, indices: Sequence[int], name: str) -> tuple[str, str]:
    """Two names: of the split in this use, and of all that its examples depend on, down to files' sizes and times."""
    options = {f.name: getattr(dataset, f.name) for f in fields(dataset) if f.init and f.name != "classes"}
    kind = [1, type(dataset).__name__, to_json(options | {"data_dir": str(Path(options["data_dir"]).absolute())})]
    samples = [dataset.samples[index] for index in indices]
    files = [[index, s.key, *stamp(s.image), *stamp(s.label)] for index, s in zip(indices, samples, strict=True)]
    return fingerprint([*kind, name]), fingerprint([to_json(asdict(dataset.classes)), files])


def available_memory() -> int:
    """Bytes of memory that can be had, here and in this container; very many where the system does not say."""
    found = [1 << 60]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(stats["file"]))  # what files take is given back when it is wanted
    return max(0, min(found))


def _flat(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _shape(item: Item) -> tuple[int, int, int]:
    height, width, channels = item.image.shape
    return height, width, channels
