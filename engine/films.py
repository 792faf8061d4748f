"""Films: read frame by frame, predicted, and written as films of their classes; only some frames are held at a time.

Sound is not kept. What OpenCV writes is compressed with loss: for labels to compute with, predict single frames.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from engine.prediction import Writing, read_ahead, to_device, to_host
from engine.prediction_files import Job, writing
from utils.classes import ClassTable
from utils.errors import DataError, Fault, Problem, Stopped, failure_of_machine
from utils.predict import Prediction, Predictor, as_batch
from utils.visualize import colorize, overlay

AHEAD = 8  # frames that are decoded before they are wanted, and as many that wait to be written
FORMS = ("color", "overlay")  # kinds of output that a film has
CODEC = "mp4v"  # MPEG-4, which every build of OpenCV writes
USUAL_RATE = 25.0  # frames per second, where a film does not say
COMPLETE = 0.9  # share of the frames that a film is said to have: some formats tell it only roughly

logger = logging.getLogger("segwright")


class Frame(NamedTuple):
    """A frame that waits for the network."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    prepared: np.ndarray  # (h, w, 3) uint8, as the network is to see it


def predict_films(predictor: Predictor, jobs: Sequence[Job], *, batch_size: int = 1) -> list[str]:
    """Predict films, one after another.

    Args:
        predictor: What predicts.
        jobs: The films.
        batch_size: Frames per forward pass.

    Returns:
        What was wrong with those that could not be predicted, a line each.

    Raises:
        Stopped: A file cannot be written.
    """
    broken: list[str] = []
    for job in jobs:
        try:
            predict_film(predictor, job, batch_size)
        except DataError as error:
            broken += error.problems
        except (MemoryError, RuntimeError) as error:
            failure = failure_of_machine(error)
            if not failure:
                raise
            broken.append(f"{job.path}: {failure}. Use --mode sliding with a smaller --window.")
    return broken


def predict_film(predictor: Predictor, job: Job, batch_size: int) -> None:
    """Predict a film and write another one for each kind of output.

    Raises:
        DataError: It cannot be read, or holds no frame.
        Stopped: A file cannot be written.
    """
    if others := [kind for kind in job.files if kind not in FORMS]:
        raise DataError(f"{job.path}: is a film, which --save {others[0]} has no form for. Use color or overlay.")
    if predictor.channels != 3:
        raise DataError(f"{job.path}: is a film, and the model takes images of {predictor.channels} channels.")
    if not job.path.is_file():  # opening a pipe would wait for ever
        raise DataError(Problem(Fault.OTHER, job.path, "is no regular file", "Give a film"))
    film = cv2.VideoCapture(str(job.path))
    try:
        if not film.isOpened():
            raise DataError(Problem(Fault.OTHER, job.path, "is no film that can be read", "Convert it to MP4"))
        writer = FilmWriter(job, predictor.classes, film.get(cv2.CAP_PROP_FPS) or USUAL_RATE)
        count = int(film.get(cv2.CAP_PROP_FRAME_COUNT))
        with (
            tqdm(total=count if count > 0 else None, desc=job.path.name, unit="frame", disable=None) as bar,
            ThreadPoolExecutor(1) as reader,
            ThreadPoolExecutor(1) as writing_thread,  # one of each, so that frames stay in order
        ):
            try:
                written = Writing(writing_thread, AHEAD, bar.update)
                for group in groups(frames(film, predictor, reader), batch_size):
                    predict_group(predictor, group, writer.write, written)
                written.finish()
                writer.finish()
            except BaseException:
                writing_thread.shutdown(cancel_futures=True)
                writer.discard()
                raise
        if writer.count < COMPLETE * count:
            logger.warning("%s: only %d of about %d frames can be read. Get it again.", job.path, writer.count, count)
    finally:
        film.release()


def frames(film: cv2.VideoCapture, predictor: Predictor, reader: ThreadPoolExecutor) -> Iterator[Frame]:
    """Read the frames of a film ahead of whoever takes them."""

    def read() -> Frame | None:
        found, image = film.read()
        if not found:
            return None
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return Frame(image, predictor.prepared(image))

    for future in read_ahead(reader, iter(lambda: read, None), AHEAD):
        frame = future.result()
        if frame is None:
            return
        yield frame


def groups(source: Iterator[Frame], batch_size: int) -> Iterator[list[Frame]]:
    """Put frames together; all of a film are of one size."""
    group: list[Frame] = []
    for frame in source:
        group.append(frame)
        if len(group) == batch_size:
            yield group
            group = []
    if group:
        yield group


def predict_group(
    predictor: Predictor,
    group: Sequence[Frame],
    write: Callable[[np.ndarray, Callable[[], Prediction]], None],
    written: Writing,
) -> None:
    """Predict frames in one forward pass, and have them written."""
    batch = to_device(as_batch([frame.prepared for frame in group]), predictor.device)
    sizes = [(frame.image.shape[0], frame.image.shape[1]) for frame in group]
    for frame, found in zip(group, predictor.predictions(batch, sizes), strict=True):
        written.submit(partial(write, frame.image, to_host(found)))


class FilmWriter:
    """Writes the films of a job, which have their names when they are complete.

    Args:
        job: The film, and what to write.
        classes: Colors of the classes.
        rate: Frames per second.
    """

    def __init__(self, job: Job, classes: ClassTable, rate: float) -> None:
        self.job = job
        self.classes = classes
        self.rate = rate
        self.films: dict[str, cv2.VideoWriter] = {}
        self.count = 0  # frames that have been written

    def write(self, image: np.ndarray, predicted: Callable[[], Prediction]) -> None:
        """Write a frame (H, W, 3) with its prediction.

        Raises:
            Stopped: A file cannot be written.
        """
        labels = predicted().labels.numpy()
        for kind, path in self.job.files.items():
            picture = overlay(image, labels, self.classes) if kind == "overlay" else colorize(labels, self.classes)
            below, right = picture.shape[0] % 2, picture.shape[1] % 2  # the codec takes even sizes
            picture = cv2.copyMakeBorder(picture, 0, below, 0, right, cv2.BORDER_REPLICATE)
            if kind not in self.films:
                self.films[kind] = self._open(path, (picture.shape[1], picture.shape[0]))
            self.films[kind].write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.count += 1

    def finish(self) -> None:
        """Close the films and give them their names.

        Raises:
            DataError: There was no frame.
            Stopped: A film could not be written, or not all of it.
        """
        if not self.films:
            raise DataError(Problem(Fault.OTHER, self.job.path, "holds no frame that can be read", "Convert it to MP4"))
        for kind, path in self.job.files.items():
            self.films[kind].release()
            complete = frames_in(unfinished(path)) >= self.count  # OpenCV does not say that a disk is full
            if not complete:
                raise Stopped(f"{path}: cannot be written. Free some space, or name another --output.")
            with writing(path):
                os.replace(unfinished(path), path)

    def discard(self) -> None:
        """Remove what has been written."""
        for kind, film in self.films.items():
            film.release()
            unfinished(self.job.files[kind]).unlink(missing_ok=True)

    def _open(self, path: Path, size: tuple[int, int]) -> cv2.VideoWriter:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            film = cv2.VideoWriter(str(unfinished(path)), cv2.VideoWriter.fourcc(*CODEC), self.rate, size)
            if not film.isOpened():
                raise OSError(0, "OpenCV cannot open it")
        return film


def frames_in(path: Path) -> int:
    """Return how many frames a film that OpenCV wrote has; 0 if it cannot be read."""
    film = cv2.VideoCapture(str(path))
    try:
        return int(film.get(cv2.CAP_PROP_FRAME_COUNT)) if film.isOpened() else 0
    finally:
        film.release()


def unfinished(path: Path) -> Path:
    """Return where a film is written; by its ending OpenCV knows the format."""
    return path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
