"""Files that are whole or not there, and locks between processes that the kernel lets go of when their holder dies."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows: no lock, no harm
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20  # bytes read at a time


@contextmanager
def atomic_write(path: Path, *, sync: bool = True) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of `path` when the block ends, and is removed if an error ends it.

    Whoever is killed meanwhile leaves a file that `remove_unfinished` knows by its name; `path` is as it was.

    Args:
        path: File to write.
        sync: Wait until it is on the disk, so that it is whole after a power cut too.

    Raises:
        OSError: The disk is full or cannot be written.
    """
    unfinished = unfinished_path(path)
    try:
        with unfinished.open("wb") as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())  # before the rename, which may reach the disk first
        os.replace(unfinished, path)
    except BaseException:
        with suppress(OSError, ValueError):
            unfinished.unlink()
        raise


def unfinished_path(path: Path) -> Path:
    """Return where this process writes what is to become `path`."""
    return path.with_name(f"{path.name}.tmp{os.getpid()}")


def writer_of(unfinished: Path) -> int | None:
    """Return the number of the process that writes a file named by `unfinished_path`; None for another file."""
    number = unfinished.name.rpartition(".tmp")[2]
    return int(number) if number.isdecimal() else None


def remove_unfinished(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`."""
    for path in folder.glob("*.tmp[0-9]*"):
        with suppress(OSError):
            path.unlink()


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the system can (Windows cannot open folders)."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(path: Path, kind: str = "sha256") -> str:
    """Return the checksum of a file, as ``sha256sum`` prints it.

    Args:
        path: The file.
        kind: Name of an algorithm of `hashlib`.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        found = hashlib.new(kind)
        while chunk := file.read(CHUNK):
            found.update(chunk)
    return found.hexdigest()


def lock(file: IO[Any], *, wait: bool = False, at: int = 0) -> None:
    """Lock one byte of a file that is open for writing, until it is closed.

    A record lock, since data workers would inherit the other kind and hold it after our death. Where there are no
    locks, as on some mounts over a network, nothing is locked.

    Args:
        file: The file.
        wait: Wait for whoever has it.
        at: Number of the byte, which need not be there.

    Raises:
        BlockingIOError: Another process has it, and `wait` is false.
    """
    if fcntl is None:
        return
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, at)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN) and not wait:
            raise BlockingIOError(error.errno, "locked by another process") from None
