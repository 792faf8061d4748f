"""Processes that load data: how they start, end and hand over batches."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from utils.errors import Stopped

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h

PATIENCE = 600.0  # seconds that a data worker may take for a batch

T = TypeVar("T")


class WorkerLoader(DataLoader[Any]):
    """A DataLoader whose workers end with this process, also where an error's traceback still refers to them.

    Else multiprocessing would send them a SIGTERM at the end, which they take for one to all of us (see
    `start_worker`), and wait for them for ever.
    """

    def _get_iterator(self) -> Any:
        iterator = super()._get_iterator()
        if self.num_workers:
            end = functools.partial(end_workers, weakref.ref(iterator), os.getpid())
            atexit.register(end)
            # Processes that multiprocessing started know no atexit. At 10 they close queues, which must still serve.
            Finalize(None, end, exitpriority=11)
        return iterator


class Results(Dataset[T], Generic[T]):
    """What a function returns for each of some numbers; computed by workers.

    Args:
        function: Called with a number.
        numbers: What to call it with, in order.
    """

    def __init__(self, function: Callable[[int], T], numbers: Sequence[int]) -> None:
        self.function = function
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> T:
        return self.function(self.numbers[index])


@contextmanager
def in_workers(
    function: Callable[[int], T], numbers: Sequence[int], *, num_workers: int, title: str, advice: str
) -> Iterator[Iterable[T]]:
    """Within it, what a function returns for each of `numbers`, in order, with a progress bar.

    Args:
        function: Called in a worker; of a module, or a `functools.partial` of such a one.
        numbers: What to call it with.
        num_workers: Processes; 0 calls it in this one.
        title: Stands beside the bar.
        advice: What to do if a process dies.

    Raises:
        Stopped: A process died, wherever in the block torch said so.
    """
    from tqdm import tqdm

    loader = WorkerLoader(
        Results(function, numbers),
        batch_size=None,
        num_workers=min(num_workers, len(numbers)),
        worker_init_fn=start_worker if num_workers else None,
        generator=torch.Generator(),  # its own: an iterator draws from it
    )
    try:
        yield tqdm(loader, title, unit="image", leave=False, disable=None)
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):  # torch has no type of its own for it
            raise
        raise Stopped(f"a process that reads died ({first_line(error)}). {advice}") from error


def end_workers(reference: weakref.ref[Any], owner: int) -> None:
    """End the workers of a DataLoader's iterator, if it is still there, in the process that started them."""
    iterator = reference()
    if iterator is not None and owner == os.getpid():
        iterator._shutdown_workers()


def start_worker(worker: int) -> None:
    """Prepare a worker process: one thread, and deaf to the signals that terminals and queues send to all of us."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, obey_the_next)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_memory()


def keep_memory() -> None:
    """Let glibc keep memory that was freed: fetching megabytes from the kernel for each image costs half the time."""
    with suppress(OSError, AttributeError):  # other systems
        libc = ctypes.CDLL("libc.so.6")
        for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
            libc.mallopt(option, 1 << 30)


def obey_the_next(number: int, frame: object) -> None:
    """Let the main process finish its step and save; it sends SIGTERM a second time to workers that hang."""
    signal.signal(number, signal.SIG_DFL)


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Refuse workers whose batches would not fit where they hand them over; there, a process dies of a bus error.

    Args:
        workers: Their number.
        batch_bytes: Bytes of a batch; each worker prepares two.

    Raises:
        Stopped: There is too little shared memory.
    """
    free, needed = free_shared_memory(), 2 * workers * batch_bytes
    if free is not None and needed > free:
        raise Stopped(
            f"/dev/shm: {free >> 20} MiB are free, and {workers} workers prepare {needed >> 20} MiB of batches there. "
            f"Use train_loader.args.num_workers {free // (2 * batch_bytes)}, or give it more (docker run --shm-size); "
            f"nothing was started"
        )


def free_shared_memory() -> int | None:
    """Bytes that are free in the memory that workers share with us; None where it is not a folder."""
    if not os.path.isdir("/dev/shm"):
        return None
    stats = os.statvfs("/dev/shm")
    return stats.f_bavail * stats.f_frsize


def memory_hint() -> str:
    """How much memory there is for workers, and what to change."""
    free = free_shared_memory()
    shared = "" if free is None else f" /dev/shm has {free >> 20} MiB free."
    return f"Memory may have run out.{shared} Lower train_loader.args.num_workers"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
