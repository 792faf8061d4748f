"""What the network was fed: areas of the classes, and some training crops as they were."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from base.base_dataloader import Loader
from base.base_dataset import Examples
from dataloader.label_statistics import some_indices
from engine.reporting.gallery import jpeg, palette_png, shrink, shrink_labels
from utils.errors import DataError
from utils.visualize import as_picture, png_palette

CROPS = 8
MOST_READ = 200  # examples that are read for the doctor
LONGEST = 240  # pixels of a crop's longer side


def describe_training_data(loader: Loader, validation: Loader) -> dict[str, Any]:
    """Class areas of up to 200 training labels, the first crops of the first epoch, and what the doctor finds."""
    view = loader.view
    pixels, void, labels = class_areas(view)
    return {
        "training_images": len(view),
        "labels_counted": labels,
        "training_pixels": pixels.tolist(),
        "training_void": void,
        "crops": training_crops(loader),
        "findings": doctor_findings(loader, validation),
    }


def doctor_findings(training: Loader, validation: Loader) -> list[dict[str, Any]] | None:
    """What `prepare.py check` has to say of the data, as far as it costs nothing: kind, where, what, fix, some files.

    Read are only sets of at most `MOST_READ` examples; of others, what is remembered of an earlier look.

    Returns:
        None where that is not all of them, so that nobody takes silence for health.
    """
    from dataloader import scan
    from dataloader.tools.doctor import SHOWN, Examined, diagnose

    cache = scan.default_cache()
    splits: list[Examined] = []
    for where, loader in (("train_loader", training), ("val_loader", validation)):
        for dataset in [view.dataset for view in loader.view.views]:
            if any(dataset is each.dataset or dataset.samples == each.dataset.samples for each in splits):
                continue  # a part of it is held out
            if not scan.has_files(dataset):
                return []
            known = scan.remembered(dataset, range(len(dataset)), cache)
            if known is not None:
                records = {dataset.samples[index].key: record for index, record in known.items()}
            elif len(dataset) <= MOST_READ:
                records = scan.examine(dataset, name=where, cache=cache)
            else:
                return None
            skips = loader.view.on_bad_sample == "skip"
            splits.append(Examined(where, dataset, records, (), where == "train_loader", skips=skips))
    splits[0].joined = [each for each in splits[1:] if each.training]
    return [{**asdict(found), "files": found.files[:SHOWN]} for found in diagnose(splits)]


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
