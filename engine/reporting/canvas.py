"""One picture of some images: each with its truth and the prediction of every model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from engine.reporting.gallery import hash_of
from utils.classes import ClassTable
from utils.epoch_figures import PredictedBatch
from utils.errors import ConfigError, Stopped
from utils.files import atomic_write
from utils.images import write_picture
from utils.visualize import comparisons_sheet

COLUMN = 300  # pixels


class Drawn(NamedTuple):
    """An image and what a model says of it."""

    image: np.ndarray  # (H, W, channels)
    truth: np.ndarray  # (H, W) uint8
    predicted: np.ndarray  # (H, W) uint8


class ImagesToDraw:
    """Keep some images; listens to `evaluate`.

    Which ones is drawn by their names: at random, but the same ones for every model and every time.

    Args:
        most: How many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.kept: dict[str, Drawn] = {}

    def listen(self, batch: PredictedBatch) -> None:
        """Keep those images of a batch whose names hash lower than those of others."""
        for index, key in enumerate(batch.keys):
            if len(self.kept) == self.most:
                last = max(self.kept, key=hash_of)
                if hash_of(key) >= hash_of(last):
                    continue
                del self.kept[last]
            image = batch.images[index].permute(1, 2, 0).cpu().numpy()
            self.kept[key] = Drawn(image, batch.labels[index].cpu().numpy(), batch.predicted[index].cpu().numpy())


def write_canvas(path: Path, models: Sequence[tuple[str, ImagesToDraw]], classes: ClassTable) -> None:
    """Draw a row for each image: itself, its truth and the prediction of every model.

    Args:
        path: PNG to write.
        models: Name and images of each.
        classes: Their colors.

    Raises:
        ConfigError: The models saw different images.
        Stopped: It cannot be written.
    """
    name, first = models[0]
    rows = []
    for key in sorted(first.kept):
        drawn = first.kept[key]
        maps = [drawn.truth]
        for other, images in models:
            found = images.kept.get(key)
            if found is None or found.truth.shape != drawn.truth.shape:
                raise ConfigError(f"--canvas: {other} saw other images than {name}. Draw models of the same data.")
            maps.append(found.predicted)
        rows.append((key, "", drawn.image, maps))
    headings = ["image", "truth", *(name for name, _ in models)]
    picture = comparisons_sheet(rows, classes, headings, width=COLUMN * len(headings))
    try:
        with atomic_write(path) as file:
            write_picture(file, picture)
    except OSError as error:
        raise Stopped(f"--canvas {path}: cannot be written ({error.strerror}). Name another file.") from None
