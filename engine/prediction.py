"""From files to predictions on disk at the speed of the network: decoding, network and writing overlap."""

from __future__ import annotations

import logging
import math
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from engine.huge_images import FORMS, predict_in_bands, windows_of
from engine.prediction_files import Job, empty_pixels, gray_palette, write, writing
from utils import images
from utils.errors import DataError, Fault, failure_of_machine
from utils.predict import Prediction, Predictor, as_batch
from utils.rasters import ArrayRaster, ModelRaster, open_raster, size_of_tiff
from utils.visualize import png_palette

THREADS = max(1, min(4, os.cpu_count() or 1))  # that decode, and as many that write
LARGE = 2**25  # bytes of an image from which on few are kept waiting
SHOWN_PASSES = 16  # forward passes of an image from which on they have a progress bar of their own

MOST_SUMS = 2**30  # bytes of logits of a whole image, from which on sliding windows work in bands

logger = logging.getLogger("segwright")

T = TypeVar("T")


class Huge(NamedTuple):
    """An image that is predicted in bands."""

    job: Job
    image: np.ndarray | None = None  # (H, W, C); None where it is not read as a whole


class Decoded(NamedTuple):
    """An image that waits for the network."""

    job: Job
    image: np.ndarray  # (H, W, C), as it was read
    prepared: np.ndarray  # (h, w, C), as the network is to see it


@dataclass
class Work:
    """What there is to do, and what became of it.

    Args:
        predictor: What predicts.
        kinds: Kinds of output.
        batch_size: Images per forward pass, as far as neighbors are of one size; windows in sliding mode.
        progress: Called when an image is done.
        broken: What was wrong with images that could not be predicted, a line each.
    """

    predictor: Predictor
    kinds: Collection[str]
    batch_size: int = 1
    progress: Callable[[], None] = lambda: None
    broken: list[str] = field(default_factory=list)

    @property
    def wanted(self) -> list[str]:
        """What the network's output is to give besides labels."""
        named = {"probability": "winning", "probabilities": "probabilities"}
        return [name for kind, name in named.items() if kind in self.kinds]


def predict_files(
    predictor: Predictor, jobs: Sequence[Job], *, batch_size: int = 1, show_progress: bool | None = None
) -> list[str]:
    """Predict images and write what is wanted of each.

    Threads decode ahead and write behind, while this one keeps the network busy.

    Args:
        predictor: What predicts.
        jobs: The images; all want the same kinds of output.
        batch_size: Images per forward pass, as far as neighbors are of one size.
        show_progress: Whether to show progress bars; None where there is a terminal.

    Returns:
        What was wrong with those that could not be predicted, a line each.

    Raises:
        Stopped: A file cannot be written.
    """
    disable = None if show_progress is None else not show_progress
    with tqdm(total=len(jobs), unit="image", disable=disable) as bar:
        work = Work(predictor, jobs[0].files.keys() if jobs else (), batch_size, bar.update)
        with ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(THREADS) as writers:
            written = Writing(writers, 2 * THREADS, work.progress)
            decoded = read_ahead(readers, (partial(decode, predictor, job) for job in jobs), THREADS + batch_size)
            for group in groups(zip(jobs, decoded, strict=True), work):
                if isinstance(group, Huge):
                    predict_huge(work, group)
                else:
                    predict_group(work, group, written)
            written.finish()
    return work.broken


def decode(predictor: Predictor, job: Job) -> Decoded | Huge:
    """Read an image and prepare it, unless it is too large to be held.

    Raises:
        DataError: It cannot be read.
    """
    size = size_of_tiff(job.path)
    if size is not None and math.prod(size) > images.MAX_PIXELS:
        return Huge(job)
    try:
        image = predictor.read(job.path)
    except DataError as error:
        if error.details[0].fault is Fault.HUGE_IMAGE:
            return Huge(job)
        raise
    if predictor.tta.mode == "sliding" and predictor.prepare is None and job.files.keys() <= {*FORMS}:
        sums = 4 * len(predictor.classes) * image.shape[0] * image.shape[1]
        if sums > MOST_SUMS:
            return Huge(job, image)
    try:
        return Decoded(job, image, predictor.prepared(image))
    except DataError as error:  # does not know the file
        raise DataError(*(f"{job.path}: {problem}" for problem in error.problems)) from None


def read_ahead(readers: Executor, reads: Iterable[Callable[[], T]], ahead: int) -> Iterator[Future[T]]:
    """Give the results of `reads` in order, of which `readers` work on some `ahead`; fewer where images are large."""
    waiting: deque[Future[T]] = deque()
    source = iter(reads)
    limit = ahead
    while True:
        while len(waiting) < limit and (read := next(source, None)) is not None:
            waiting.append(readers.submit(read))
        if not waiting:
            return
        done = waiting.popleft()
        if done.exception() is None:
            size = getattr(getattr(done.result(), "image", None), "nbytes", 0)
            limit = 1 if size > LARGE else ahead
        yield done


def groups(decoded: Iterable[tuple[Job, Future[Decoded | Huge]]], work: Work) -> Iterator[list[Decoded] | Huge]:
    """Put neighbors of one size together, up to `batch_size`; what cannot be read goes to `work.broken`."""
    group: list[Decoded] = []
    for job, future in decoded:
        try:
            each = future.result()
        except (DataError, MemoryError, RuntimeError) as error:
            note_broken(work, error, job.path)
            continue
        if isinstance(each, Huge):
            yield each
            continue
        alike = group and form_of(group[0].prepared) == form_of(each.prepared)
        if group and (not alike or len(group) == work.batch_size):
            yield group
            group = []
        group.append(each)
    if group:
        yield group


def form_of(image: np.ndarray) -> tuple[object, ...]:
    """Return what images of one batch have in common."""
    return (*image.shape, image.dtype)


def note_broken(work: Work, error: Exception, where: Path) -> None:
    """Take note of what was wrong with an image; what is no fault of it or of the machine is raised.

    Args:
        work: Receives it.
        error: What was raised.
        where: Path of the image.
    """
    if isinstance(error, DataError):
        work.broken += error.problems
    elif failure := failure_of_machine(error):
        work.broken.append(f"{where}: {failure}. Use --mode sliding with a smaller --window.")
    else:
        raise error
    work.progress()


def predict_group(work: Work, group: Sequence[Decoded], written: Writing) -> None:
    """Predict images of one size in one forward pass; where memory is too small for that, one by one."""
    predictor = work.predictor
    try:
        with passes_shown(predictor, group):
            batch = to_device(as_batch([each.prepared for each in group]), predictor.device)
            sizes = [(each.image.shape[0], each.image.shape[1]) for each in group]
            predictions = [to_host(found) for found in predictor.predictions(batch, sizes, work.wanted)]
    except (DataError, MemoryError, RuntimeError) as error:
        if len(group) == 1 or (not isinstance(error, DataError) and not failure_of_machine(error)):
            note_broken(work, error, group[0].job.path)
            return
        predictions = []
    if not predictions:  # outside of the handler, whose traceback holds on to the memory
        for each in group:
            predict_group(work, [each], written)
    for each, found in zip(group, predictions, strict=False):
        written.submit(partial(write, each.job, each.image, found, predictor.classes))


def predict_huge(work: Work, huge: Huge) -> None:
    """Predict an image in bands and write it; what is wrong with it goes to `work.broken`.

    Raises:
        Stopped: A file cannot be written.
    """
    predictor, (job, image) = work.predictor, huge
    palettes = {"color": png_palette(predictor.classes), "index": gray_palette()}
    path = next(iter(job.files.values()))
    try:
        if others := [kind for kind in job.files if kind not in FORMS]:
            raise DataError(f"{job.path}: is predicted in bands, which --save {others[0]} has no form for. Use index.")
        if predictor.prepare is not None:
            size = predictor.prepare.size
            raise DataError(f"{job.path}: bands have the image's own size, validation had {size}. Use --native.")
        if image is None:
            raster = open_raster(job.path, predictor.channels)
        else:
            raster = ModelRaster(ArrayRaster(image), predictor.channels, job.path, empty_pixels(job, image))
        if predictor.tta.mode != "sliding":
            height, width = raster.size
            window = "x".join(map(str, predictor.tta.window))
            logger.info("%s: %dx%d pixels, predicted in sliding windows of %s", job.path, width, height, window)
        count = windows_of(raster.size, predictor)
        with tqdm(total=count, desc=job.path.name, unit="window", leave=False, disable=None) as bar, writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            predict_in_bands(predictor, raster, job.files, palettes, source=job.path, progress=bar.update)
    except (DataError, MemoryError, RuntimeError) as error:
        note_broken(work, error, job.path)
        return
    work.progress()


@contextmanager
def passes_shown(predictor: Predictor, group: Sequence[Decoded]) -> Iterator[None]:
    """Show a progress bar of the forward passes of an image that takes many."""
    shape = group[0].prepared.shape
    passes = predictor.tta.passes((shape[0], shape[1]))
    if passes < SHOWN_PASSES:
        yield
        return
    with tqdm(total=passes * len(group), desc=group[0].job.path.name, unit="window", leave=False, disable=None) as bar:
        predictor.on_forward = bar.update
        try:
            yield
        finally:
            predictor.on_forward = None


def to_device(images: Tensor, device: torch.device) -> Tensor:
    """Bring a batch to a device; to a GPU from pinned memory, so that nobody waits for the copy."""
    if device.type != "cuda":
        return images.to(device)
    return images.pin_memory().to(device, non_blocking=True)


def to_host(prediction: Prediction) -> Callable[[], Prediction]:
    """Begin to bring a prediction to the CPU; what is returned waits for it to be there."""
    if prediction.labels.device.type != "cuda":
        return lambda: prediction
    copies = []
    for part in prediction:
        copy = None
        if part is not None:
            copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
            copy.copy_(part, non_blocking=True)
        copies.append(copy)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()

    def wait() -> Prediction:
        event.synchronize()
        return Prediction(*copies)  # type: ignore[arg-type]

    return wait


class Writing:
    """Writes in threads, some at a time, and raises what went wrong there.

    Args:
        writers: The threads.
        most: Writes that may wait.
        progress: Called when one is done.
    """

    def __init__(self, writers: Executor, most: int, progress: Callable[[], None]) -> None:
        self.writers = writers
        self.most = most
        self.progress = progress
        self.waiting: deque[Future[None]] = deque()

    def submit(self, job: Callable[[], None]) -> None:
        """Have something written.

        Raises:
            Stopped: An earlier one could not be written.
        """
        while len(self.waiting) >= self.most:
            self._wait()
        self.waiting.append(self.writers.submit(job))

    def finish(self) -> None:
        """Wait for all.

        Raises:
            Stopped: One could not be written.
        """
        while self.waiting:
            self._wait()

    def _wait(self) -> None:
        self.waiting.popleft().result()
        self.progress()
