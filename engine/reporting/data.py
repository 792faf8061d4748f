"""What the network was fed: areas of the classes, and some training crops as they were."""

from __future__ import annotations

from typing import Any

import numpy as np

from base.base_dataloader import Loader
from base.base_dataset import Examples
from dataloader.label_statistics import some_indices
from engine.reporting.gallery import jpeg, palette_png, shrink, shrink_labels
from utils.errors import DataError
from utils.visualize import as_picture, png_palette

CROPS = 8
LONGEST = 240  # pixels of a crop's longer side


def describe_training_data(loader: Loader) -> dict[str, Any]:
    """Class areas of the training set, of up to 200 labels, and the first crops of the first epoch."""
    view = loader.view
    pixels, void, labels = class_areas(view)
    return {
        "training_images": len(view),
        "labels_counted": labels,
        "training_pixels": pixels.tolist(),
        "training_void": void,
        "crops": training_crops(loader),
    }


def class_areas(view: Examples) -> tuple[np.ndarray, float, int]:
    """Pixels (C,) int64 of each class in some labels of `view`, the share of void, and how many labels were read."""
    counts, read = np.zeros(256, np.int64), 0
    for label in view.labels(some_indices(len(view), view.seed).tolist()):
        counts += np.bincount(label.ravel(), minlength=256)
        read += 1
    classes = counts[: len(view.classes)]
    return classes, float(1 - classes.sum() / max(counts.sum(), 1)), read


def training_crops(loader: Loader) -> list[dict[str, str]]:
    """The first images that the network was trained on, as it saw them: key, image and label as data URLs."""
    view, found = loader.view, []
    palette = png_palette(view.classes)
    for index in loader.sampler.order(0)[: 2 * CROPS].tolist():
        try:
            item = view[0, index]
        except DataError:
            continue
        label = palette_png(shrink_labels(item.label, LONGEST), palette)
        found.append({"key": item.key, "image": jpeg(shrink(as_picture(item.image), LONGEST)), "label": label})
        if len(found) == CROPS:
            break
    return found
