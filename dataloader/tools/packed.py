"""Put a split into a few large tar files: what network drives and clusters read fast, and what WebDataset reads too.

The files go in as they are, so that training on the packed split takes the same samples in the same order. A split
appears under its name only when all of it is on the disk.
"""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from base.base_dataset import BaseDataset, Sample
from dataloader.scan import has_files
from utils.errors import ConfigError, DataError, Fault, Problem, Stopped
from utils.files import sync_folder
from utils.shards import INDEX, Member, read_bytes, write_index

SIZE = 256  # MiB of an archive, after which the next one begins


@dataclass(frozen=True)
class Contents:
    """What has been written: name and size of each archive, and where each example lies."""

    archives: list[tuple[str, int]]
    examples: list[tuple[str, int, Member, Member]]


def pack(dataset: BaseDataset, folder: Path, *, force: bool = False, size: int = SIZE) -> str:
    """Write the split of `dataset` to ``folder/SPLIT``; returns a line that says what is there.

    Args:
        dataset: With files of its own.
        folder: Where packed splits are to be; it can then stand as `data_dir` in a config.
        force: Replace the split if it is there.
        size: MiB after which a new archive begins.

    Raises:
        ConfigError: The dataset is generated, or there is something else at its path.
        DataError: A file cannot be read.
        Stopped: The disk is full or cannot be written.
    """
    target = folder / dataset.split
    check_target(dataset, target, force)
    unfinished, old = (folder / f".{dataset.split}.{state}" for state in ("packing", "old"))
    try:
        for leftover in (unfinished, old):
            if leftover.exists():
                shutil.rmtree(leftover)
        unfinished.mkdir(parents=True)
        contents = write_archives(dataset.samples, unfinished, size << 20, title=dataset.split)
        about = {"type": type(dataset).__name__, "split": dataset.split, "options": dataset.listing_options()}
        write_index(
            unfinished,
            about=about,
            archives=contents.archives,
            examples=contents.examples,
            listed=dataset.listed,
        )
        sync_folder(unfinished)
        if target.exists():
            os.replace(target, old)
        os.replace(unfinished, target)
        sync_folder(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise Stopped(f"{target}: cannot be written ({error.strerror or error}). Free some space") from error
    total = sum(length for _, length in contents.archives)
    return f"{dataset.split}: {len(contents.examples):,} examples in {len(contents.archives)} archives, {total:,} bytes"


def check_target(dataset: BaseDataset, target: Path, force: bool) -> None:
    """Refuse to overwrite what was not packed by us, or without having been asked to.

    Raises:
        ConfigError: It would be.
    """
    if not has_files(dataset):
        raise ConfigError(f"{type(dataset).__name__}: is generated and has no files to pack. Name another dataset.")
    if not dataset.packs:
        fix = "`python prepare.py convert` makes masks of them, which can be"
        raise ConfigError(f"{type(dataset).__name__}: files of annotation tools are not packed. {fix}.")
    if target.parent.exists() and not target.parent.is_dir():
        raise ConfigError(f"{target.parent}: is a file. Name another --output.")
    if target.exists() and not (target / INDEX).is_file():
        raise ConfigError(f"{target}: is there already, and is no packed split. Name another --output.")
    if target.exists() and not force:
        raise ConfigError(f"{target}: is there already. Add --force to replace it, or name another --output.")


def write_archives(samples: Sequence[Sample], folder: Path, size: int, *, title: str) -> Contents:
    """Write the files of `samples` to ``folder/000000.tar`` and so on, each flushed to the disk.

    Raises:
        OSError: The disk is full.
        DataError: A file cannot be read.
    """
    contents = Contents([], [])
    pending = list(reversed(samples))
    with tqdm(total=len(pending), desc=title, unit="example", leave=False, disable=None) as bar:
        while pending:
            name = f"{len(contents.archives):06d}.tar"
            with (folder / name).open("wb") as file, tarfile.open(fileobj=file, mode="w") as archive:
                while pending and (archive.offset == 0 or archive.offset < size):
                    sample = pending.pop()
                    members = [add(archive, *part) for part in files_of(sample)]
                    contents.examples.append((sample.key, len(contents.archives), members[0], members[1]))
                    bar.update()
                archive.close()
                file.flush()
                os.fsync(file.fileno())
                contents.archives.append((name, file.tell()))
    return contents


def files_of(sample: Sample) -> list[tuple[str, bytes]]:
    """Return names and content of image and label in an archive: ``KEY.jpg`` and ``KEY.label.png``.

    What a label's name adds to its image's, such as ``_gtFine_labelIds``, is kept, as datasets may look at it.

    Raises:
        DataError: One cannot be read.
    """
    key, name = encoded(sample.key), PurePosixPath(sample.key).name
    stem = sample.label.stem
    ending = encoded(stem.removeprefix(name)) if stem.startswith(name) else ""
    parts = []
    for path, role in ((sample.image, ""), (sample.label, f".label{ending}")):
        try:
            parts.append((f"{key}{role}{path.suffix}", read_bytes(path)))
        except OSError as error:
            what = f"cannot be read ({error.strerror or error})"
            raise DataError(Problem(Fault.OTHER, path, what, "Check the path")) from None
    return parts


def encoded(key: str) -> str:
    """Escape in `key` what ends a name in WebDataset (dots) or a folder's (slashes); no two keys become one."""
    return key.replace("%", "%25").replace(".", "%2E").replace("/", "%2F")


def add(archive: tarfile.TarFile, name: str, data: bytes) -> Member:
    """Append a file to `archive`, without time and owner, so that equal data makes equal archives."""
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))
    blocks = -(-len(data) // tarfile.BLOCKSIZE)
    return Member(name, archive.offset - blocks * tarfile.BLOCKSIZE, len(data), zlib.crc32(data))
