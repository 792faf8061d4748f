"""Locks between processes, which the kernel lets go of when their holder dies."""

from __future__ import annotations

import errno
from typing import IO

try:
    import fcntl
except ImportError:  # Windows: no lock, no harm
    fcntl = None  # type: ignore[assignment]


def lock(file: IO, *, wait: bool = False, at: int = 0) -> None:
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
