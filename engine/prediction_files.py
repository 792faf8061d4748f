"""What is written of a prediction: label maps, pictures, probabilities, annotations; each file whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from engine.annotation_files import AnnotationFile, labelme
from utils.classes import IGNORE, ClassTable
from utils.errors import DataError, Stopped
from utils.files import atomic_write
from utils.images import write_label, write_picture
from utils.predict import Prediction
from utils.raster_writers import write_tiff
from utils.rasters import is_georeferenced, open_raster
from utils.visualize import legend, overlay, png_palette

KINDS = ("color", "index", "overlay", "probability", "probabilities", "labelme", "coco", "cvat", "labelstudio")
LEGEND = "_legend"  # name of the picture that says which color is which class


@dataclass(frozen=True)
class Job:
    """An image to predict.

    Args:
        path: Its file.
        files: The file to write for each kind of output.
        name: What a file for all images calls it.
        shared: That file for each kind that has one; written by whoever made it.
    """

    path: Path
    files: Mapping[str, Path]
    name: str = ""
    shared: Mapping[str, AnnotationFile] = field(default_factory=dict)


def write(job: Job, image: np.ndarray, predicted: Callable[[], Prediction], classes: ClassTable) -> None:
    """Write each wanted kind of a prediction.

    Args:
        job: Has a path for each kind: "color" and "index" are label maps with the classes' colors or gray values as
            palette, "overlay" is color over the image, "probability" the winning class's from 0 to 255, and
            "probabilities" those of all classes, (C, H, W) float16; "labelme" is a file of that tool, and those of
            `shared` are added to one.
        image: (H, W, C).
        predicted: Gives the prediction, on the CPU.
        classes: Their colors.

    Raises:
        Stopped: A file cannot be written.
    """
    prediction = predicted()
    labels = prediction.labels.numpy()
    empty = empty_pixels(job, image)
    if empty is not None:
        labels[empty] = IGNORE
    for kind, path in job.files.items():
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind in job.shared:
                job.shared[kind].add(job.name or job.path.name, labels)
            elif path.suffix == ".tif":
                palette = palette_of(kind, classes)
                write_tiff(path, image.shape[:2], iter([labels]), palette, source=job.path, void=IGNORE)
            else:
                with atomic_write(path, sync=False) as file:
                    write_kind(file, kind, job, image, labels, prediction, classes)


def write_kind(
    file: IO[bytes],
    kind: str,
    job: Job,
    image: np.ndarray,
    labels: np.ndarray,
    prediction: Prediction,
    classes: ClassTable,
) -> None:
    """Write one kind of a prediction that has a file of its own; arguments otherwise as `write` has them.

    Args:
        file: Open for it.
        kind: Kind of output.
        job: What was predicted.
        image: (H, W, C).
        labels: Label map, (H, W) uint8, void where the image has no data.
        prediction: Probabilities, where they are wanted.
        classes: Their colors.
    """
    if kind == "overlay":
        write_picture(file, overlay(image, labels, classes))
    elif kind == "probability" and prediction.winning is not None:
        write_label(file, np.rint(255 * prediction.winning.numpy()).astype(np.uint8), gray_palette())
    elif kind == "probabilities" and prediction.probabilities is not None:
        np.savez_compressed(file, probabilities=prediction.probabilities.numpy().astype(np.float16))
    elif kind == "labelme":
        image_path = Path(os.path.relpath(job.path, job.files[kind].parent)).as_posix()
        file.write(labelme(labels, classes.names, image_path))
    else:
        write_label(file, labels, palette_of(kind, classes))


def palette_of(kind: str, classes: ClassTable) -> np.ndarray:
    """Return the palette (256, 3) uint8 of label maps of a kind: the classes' colors, or gray values."""
    return png_palette(classes) if kind == "color" else gray_palette()


def empty_pixels(job: Job, image: np.ndarray) -> np.ndarray | None:
    """Find where the georeferenced image (H, W, C) of a job has no data, (H, W) bool; None if that is not known."""
    if not is_georeferenced(job.path):
        return None
    try:
        raster = open_raster(job.path, image.shape[2])
        _, empty = raster.read((0, raster.size[0]), (0, raster.size[1]))
    except DataError:  # only others can read it
        return None
    return empty if empty.shape == image.shape[:2] else None  # an EXIF orientation turned the image


def gray_palette() -> np.ndarray:
    """Return gray values (256, 3) uint8, for palette PNGs that show their values."""
    return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


def write_legend(path: Path, classes: ClassTable) -> None:
    """Write the picture that says which color is which class.

    Raises:
        Stopped: It cannot be written.
    """
    with writing(path), atomic_write(path, sync=False) as file:
        write_picture(file, legend(classes))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of an output file that cannot be written which one it is.

    Raises:
        Stopped: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise Stopped(
            f"{path}: cannot be written ({error.strerror}). Free some space, or name another --output."
        ) from None
