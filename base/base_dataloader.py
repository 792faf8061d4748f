"""Batches of a dataset: in an order that is a function of (seed, epoch), from any position on."""

from __future__ import annotations

import functools
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from base.base_dataset import Examples, Item
from base.batch_memory import PREFETCHED, BatchMemory, SharedBatch
from base.workers import PATIENCE, WorkerLoader, first_line, memory_hint, start_worker
from utils.classes import IGNORE
from utils.errors import DataError, Stopped
from utils.reproducibility import stream
from utils.schema import AtLeast, Between

logger = logging.getLogger("segwright")

MOST_SKIPPED = 0.05  # share of the images that may be skipped; more of them are no accident


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """Which images of the training set to hold out for validation.

    Args:
        share: How many, as a share below 1 or as a number.
        by: What has to stay on one side, such as the frames of one video or the images of one patient: a regular
            expression, where images in whose names it matches the same text stay together ("^[^_]+" is all before
            the first "_"; with parentheses, what these match); or the number of a column of `Folder`'s `list_file`.
            Null: each image may go anywhere.
        fold: Divide the images into 1 / `share` folds, and hold out this one, counted from 0: over all folds, each
            image is held out once. `train.py --folds` sets it.
        seed: Decides which; null is the run's seed.
    """

    share: Annotated[float, Between(0, 1)] | Annotated[int, AtLeast(0)]
    by: str | Annotated[int, AtLeast(3)] | None = None
    fold: Annotated[int, AtLeast(0)] | None = None
    seed: Annotated[int, Between(0, 2**32 - 1)] | None = None


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """What a loader's `args` say about batches.

    Args:
        batch_size: Images per optimizer step, over all processes and parts; when validating, images per forward
            pass, and only where all have one size.
        shuffle: Draw the images of an epoch in random order; null is what the loader is for: true in training.
        num_workers: Processes that read and augment; 0 does it in the main process. Results do not depend on it.
        val_split: Images of the training set to hold out for validation, as a share below 1 or as a number; an object
            {"share", "by", "fold", "seed"} says also, by a regular expression over names, what has to stay together.
        return_id: Kept for configs of pytorch-segmentation: our batches always carry the images' names.
        on_bad_sample: "stop" at the first file that cannot be used. Or "skip": say which one and go on, up to 5 % of
            the images. In training, a copy of another image of the batch takes its place, with a label that is all
            void, so that it does not train; in validation it does not count.
        cache: Keep decoded images and labels for the epochs to come, in memory ("ram") or in a file in the user's
            cache folder ("disk"), which later runs use too. Results do not depend on it.
        drop_last: Leave out the last batch of an epoch if it is incomplete; null is what the loader is for: true in
            training. Validation takes every image.
    """

    batch_size: Annotated[int, Between(1, 65536)]
    shuffle: bool | None = None
    num_workers: Annotated[int, Between(0, 256)] = 1
    val_split: Annotated[float, Between(0, 1)] | Annotated[int, AtLeast(0)] | HoldOut | None = None
    return_id: bool = False
    on_bad_sample: Literal["stop", "skip"] = "stop"
    cache: Literal["ram", "disk"] | None = None
    drop_last: bool | None = None

    @property
    def held_out(self) -> HoldOut | None:
        """`val_split` in full; None where nothing is held out."""
        given = self.val_split
        found = given if isinstance(given, HoldOut) else HoldOut(share=given or 0)
        return found if found.share else None


class Batch(NamedTuple):
    """Images and labels of one forward pass, on any device."""

    images: Tensor  # (N, C, H, W) uint8, in memory channels last
    labels: Tensor  # (N, H, W) uint8: training ids, or 255 for void
    keys: tuple[str, ...]  # names of the images
    skipped: tuple[str, ...] = ()  # what was wrong with the others, a line each

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`; copies from pinned memory do not wait."""
        images, labels = (part.to(device, non_blocking=True) for part in self[:2])
        return Batch(images, labels, self.keys, self.skipped)

    def part(self, start: int, stop: int) -> Batch:
        """Images `start` to `stop` of the batch."""
        return Batch(self.images[start:stop], self.labels[start:stop], self.keys[start:stop])


class DevicePrefetcher:
    """Copies batches to a device, on a GPU beside what it is computing; on a CPU there is nothing to copy.

    Kernels are queued, so that the host asks for the next batch while the GPU works on the last one. On the stream of
    those kernels the copy would wait for them; on one of its own, it does not.

    Args:
        device: Where batches are to be.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        is_cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if is_cuda else None  # type: ignore[no-untyped-call]

    def __call__(self, batch: Batch) -> Batch:
        """`batch` on the device; what is queued from now on sees it whole."""
        if self.stream is None:
            return batch.to(self.device)
        with torch.cuda.stream(self.stream):
            moved = batch.to(self.device)
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        for tensor in (moved.images, moved.labels):
            tensor.record_stream(current)  # else its memory might be given to the next copy while it is still read
        return moved


def collate(
    items: Sequence[Item | DataError],
    *,
    bad: Literal["stop", "drop", "void"] = "stop",
    memory: BatchMemory | None = None,
) -> Batch | SharedBatch | DataError:
    """Items of one size to a batch. They stay uint8 and HWC in memory: a permuted view *is* channels last.

    Args:
        items: Images with labels, or what was wrong with them.
        bad: What becomes of those that are errors. "stop" returns the first. "drop" leaves them out. "void" puts a
            copy of the first good image in their place, with a label that is all void: the batch keeps its size, so
            that parts, processes and batch norm go on as before, and the copy adds nothing to the loss.
        memory: Where to put them for the process that the batch is for; then what is returned becomes one there.
    """
    errors = [item for item in items if isinstance(item, DataError)]
    good = [item for item in items if not isinstance(item, DataError)]
    if errors and (bad == "stop" or not good):
        return errors[0]
    sizes = {item.label.shape for item in good}
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width}" for height, width in sorted(sizes)[:4])
        return DataError(f"train_loader.args: images of different sizes in one batch ({shown}). Give a crop_size.")
    if len(kinds := {item.image.dtype.name for item in good}) > 1:
        shown = ", ".join(sorted(kinds))
        return DataError(f"train_loader.args: images of different types in one batch ({shown}). Convert them to one.")
    if bad == "void":
        good += [Item(good[0].image, np.full_like(good[0].label, IGNORE), good[0].key)] * len(errors)
    images, labels = [item.image for item in good], [item.label for item in good]
    names = tuple(item.key for item in good), tuple(error.problems[0] for error in errors)
    if memory and images[0].dtype == np.uint8 and (place := memory.put(images, labels)):
        return SharedBatch(place, as_batch, *names)
    # In a worker, torch's function stacks right into new shared memory, so that pixels are copied once.
    stacked = [default_collate([torch.from_numpy(array) for array in arrays]) for arrays in (images, labels)]
    return as_batch(stacked[0], stacked[1], *names)


def as_batch(images: Tensor, labels: Tensor, keys: tuple[str, ...], skipped: tuple[str, ...]) -> Batch:
    """A batch of images (N, H, W, C) and labels (N, H, W)."""
    return Batch(images.permute(0, 3, 1, 2), labels, keys, skipped)


class ErrorsAsItems(Dataset[Item | DataError]):
    """Examples whose bad samples are returned as errors: raised in a worker, they would arrive as a traceback."""

    def __init__(self, view: Examples) -> None:
        self.view = view

    def __getitem__(self, address: tuple[int, int]) -> Item | DataError:
        try:
            return self.view[address]
        except DataError as error:
            return error


class BatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, index), one epoch per iteration, from any position on.

    The order of epoch e is a permutation that depends on (seed, e) alone. Training drops the incomplete last
    batch; evaluation keeps it. Process r of R takes every R-th image of each batch, from its r-th on.

    Args:
        length: Images in the dataset.
        batch_size: Images per batch over all processes.
        shuffle: Permute the images.
        drop_last: Leave out the last batch if it is incomplete.
        seed: Orders of different seeds are unrelated.
        rank: This process's number.
        world_size: Number of processes.
    """

    def __init__(
        self,
        length: int,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.position = 0

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the images of `epoch`, in the order in which they are used."""
        return stream(self.seed, "order", epoch).permutation(self.length) if self.shuffle else np.arange(self.length)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order, epoch = self.order(self.epoch), self.epoch
        stop = self.length - self.length % self.batch_size if self.drop_last else self.length
        for start in range(self.position, stop, self.batch_size):
            batch = order[start : start + self.batch_size][self.rank :: self.world_size]
            if len(batch):
                yield [(epoch, int(index)) for index in batch]

    def __len__(self) -> int:
        return self.length // self.batch_size if self.drop_last else -(-self.length // self.batch_size)


class Loader:
    """Batches of examples, with or without worker processes.

    Args:
        view: Where the items come from.
        batch_size: Images per batch over all processes.
        num_workers: Worker processes; they live as long as the loader.
        training: Shuffle and drop the incomplete last batch.
        shuffle: Overrides the order that `training` implies.
        drop_last: Overrides whether `training` drops the incomplete last batch.
        seed: Decides the order.
        pin_memory: Use page-locked memory, from which a GPU copies in the background.
        size: Height and width of all images; None if they differ. Batches of one size reuse their memory.

    Raises:
        DataError: There are fewer images than one training batch takes.
    """

    def __init__(  # noqa: PLR0913  all but the first are named
        self,
        view: Examples,
        batch_size: int,
        *,
        num_workers: int = 0,
        training: bool,
        shuffle: bool | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        size: tuple[int, int] | None = None,
    ) -> None:
        drop_last = training if drop_last is None else drop_last
        if drop_last and len(view) < batch_size:
            raise DataError(
                f"train_loader.args.batch_size: {batch_size}, but there are only {len(view)} images to train on. "
                f"Use at most {len(view)}."
            )
        self.view = view
        self.batch_size = batch_size
        self.training = training
        self.skipped: set[str] = set()  # what was wrong with images that have been skipped, a line each
        self.sampler = BatchSampler(
            len(view),
            batch_size,
            shuffle=training if shuffle is None else shuffle,
            drop_last=drop_last,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        bad: Literal["stop", "drop", "void"] = "stop"
        if view.on_bad_sample == "skip":
            bad = "void" if training else "drop"
        memory = None
        if num_workers and size and multiprocessing.get_start_method() == "fork":
            share = -(-batch_size // world_size)  # images of a batch for this process, rounded up
            memory = BatchMemory(num_workers, share * size[0] * size[1] * (view.channels + 1))
        self._loader = WorkerLoader(
            ErrorsAsItems(view),
            batch_sampler=self.sampler,
            num_workers=num_workers,
            collate_fn=functools.partial(collate, bad=bad, memory=memory),
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            prefetch_factor=PREFETCHED if num_workers else None,
            timeout=PATIENCE if num_workers else 0,
            worker_init_fn=start_worker if num_workers else None,
            # Its own generator: an iterator draws a seed for its workers, which would move the global one.
            generator=torch.Generator().manual_seed(seed),
        )
        # Workers read ahead: the place (epoch, position) that they are at, and what gives its batches. Whoever asks for
        # that place next takes them; for another place they are dropped. None if nothing has been begun.
        self._begun: tuple[tuple[int, int], Iterator[Batch | DataError]] | None = None

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def starts_workers(self) -> bool:
        """Whether the next batches start worker processes."""
        return self._loader.num_workers > 0 and self._loader._iterator is None

    def keys(self, epoch: int, position: int) -> list[str]:
        """Names of the images of the batch that begins after `position` images of `epoch`, over all processes."""
        chosen = self.sampler.order(epoch)[position : position + self.batch_size]
        return [self.view.key(int(index)) for index in chosen]

    def prepare(self, epoch: int = 0, position: int = 0) -> None:
        """Let workers that are running read what `batches` will be asked for next, `PREFETCHED` batches each.

        What had been begun otherwise is forgotten; no batch is another for it.
        """
        if self._loader.num_workers and not self.starts_workers:
            self._begun = (epoch, position), self._begin(epoch, position)

    def _begin(self, epoch: int, position: int) -> Iterator[Batch | DataError]:
        """Go on with what has been begun at this place, or begin there."""
        begun, self._begun = self._begun, None
        if begun is not None and begun[0] == (epoch, position):
            return begun[1]
        self.sampler.epoch, self.sampler.position = epoch, position
        return iter(self._loader)

    def batches(self, epoch: int = 0, position: int = 0) -> Iterator[Batch]:
        """The batches of `epoch` after its first `position` images.

        Raises:
            DataError: A sample cannot be used.
            Stopped: A worker process died.
        """
        try:
            begun = self._begin(epoch, position)
            for batch in begun:
                position += self.batch_size
                self._begun = (epoch, position), begun
                if not isinstance(batch, DataError):
                    self._skip(batch.skipped)
                    yield batch
                elif self.training or self.view.on_bad_sample == "stop":
                    raise batch  # in training, also where a whole batch cannot be used: no step could be taken
                else:
                    self._skip(tuple(batch.problems))
        except RuntimeError as error:
            if "DataLoader timed out" in str(error):
                raise Stopped(
                    f"no data worker has delivered a batch for {PATIENCE:g} s. See whether the disk answers, or raise "
                    f"train_loader.args.num_workers"
                ) from error
            if "DataLoader worker" not in str(error):
                raise
            raise Stopped(f"a data worker died ({first_line(error)}). {memory_hint()}") from error

    def _skip(self, problems: Sequence[str]) -> None:
        """Say what has been skipped, once each.

        Raises:
            DataError: It is too much.
        """
        most = max(1, int(MOST_SKIPPED * len(self.view)))
        for problem in problems:
            if problem in self.skipped:
                continue
            self.skipped.add(problem)
            if len(self.skipped) > most:
                raise DataError(
                    problem,
                    f"on_bad_sample: more than {most} of {len(self.view)} images cannot be used. "
                    f"`python prepare.py check` lists them all.",
                )
            logger.warning("%s Left out, number %d of at most %d.", problem, len(self.skipped), most)
