"""Memory in which data workers hand batches over, and which is used again.

Fetching new shared memory from the kernel for each batch, as torch does, costs as much as augmenting its images. Here
it is fetched once, before workers are forked from this process, in slots of one batch. A worker fills one of its own
free slots and sends its number. What is received refers to the slot; when nobody refers to it any more, the slot is
free. A consumer that keeps many batches leaves no free slots, and the others come as torch sends them.
"""

from __future__ import annotations

import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

PREFETCHED = 2  # batches that torch asks each worker for in advance
HELD = 3  # batches that a consumer may hold of one worker, such as the last, this one, and one on its way to a GPU
PAGE = 4096  # bytes

_memories: weakref.WeakValueDictionary[int, BatchMemory] = weakref.WeakValueDictionary()
_numbers = itertools.count()


class BatchMemory:
    """Slots that this process and workers forked from it share.

    Args:
        workers: Number of workers.
        size: Bytes of the largest batch.
    """

    def __init__(self, workers: int, size: int) -> None:
        self.each = PREFETCHED + HELD  # slots of a worker
        self.size = -(-size // PAGE) * PAGE  # bytes of a slot
        count = workers * self.each
        self.slots = mmap.mmap(-1, count * self.size)  # pages that are never touched take no memory
        self.taken = mmap.mmap(-1, count)  # 1 for a slot that is in use
        self.owner = os.getpid()
        self.number = next(_numbers)
        _memories[self.number] = self

    def __reduce__(self) -> Any:
        return bool, ()  # false: a worker that was not forked has no part in it

    def put(self, *parts: Sequence[np.ndarray]) -> tuple[Any, ...] | None:
        """Stack each of `parts`, arrays of one shape and 8 bits, into a free slot of this worker.

        Returns:
            The address, which `take` needs in the process that owns the memory; None if no slot is free or it is too
            small.
        """
        info = get_worker_info()
        if info is None or sum(len(part) * part[0].nbytes for part in parts) > self.size:
            return None
        mine = range(info.id * self.each, (info.id + 1) * self.each)
        slot = next((slot for slot in mine if not self.taken[slot]), None)
        if slot is None:
            return None
        self.taken[slot] = 1
        shapes, start = [], slot * self.size
        for part in parts:
            shape = (len(part), *part[0].shape)
            size = len(part) * part[0].nbytes
            np.stack(part, out=np.frombuffer(self.slots, np.uint8, size, start).reshape(shape))
            shapes.append(shape)
            start += size
        return self.number, slot, *shapes

    def give_back(self, slot: int) -> None:
        """Let the worker use a slot again; called when nothing refers to it."""
        if os.getpid() == self.owner:  # a process forked from this one has copies of references only
            self.taken[slot] = 0


class SharedBatch:
    """What a worker sends for a batch: unpickled, it is what `make` makes of the tensors and of what else was given.

    Args:
        address: From `BatchMemory.put`.
        make: A function of a module, called with a tensor for each of the parts, and `others`.
        others: Further arguments.
    """

    def __init__(self, address: tuple[Any, ...], make: Callable[..., Any], *others: Any) -> None:
        self.address = address
        self.make = make
        self.others = others

    def __reduce__(self) -> Any:
        return _received, (self.address, self.make, self.others)


def _received(address: tuple[Any, ...], make: Callable[..., Any], others: tuple[Any, ...]) -> Any:
    return make(*take(*address), *others)


def take(number: int, slot: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Return the tensors in a slot, uint8; it is given back when none of them, nor a view of one, is left."""
    memory = _memories[number]
    sizes = [int(np.prod(shape)) for shape in shapes]
    array = np.frombuffer(memory.slots, np.uint8, sum(sizes), slot * memory.size)
    weakref.finalize(array, memory.give_back, slot).atexit = False
    # All parts are views of one tensor, whose storage is the only one to refer to the array.
    parts = torch.split(torch.from_numpy(array), sizes)
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
