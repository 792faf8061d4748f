"""What the network was fed: sizes, areas of the classes, objects, and some training crops as they were."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from base.base_dataloader import Loader
from base.base_dataset import Examples
from dataloader.label_statistics import some_indices
from engine.reporting.collect import count_sizes
from engine.reporting.errors import SIZE_BINS, count_by_size, object_areas
from engine.reporting.gallery import jpeg, palette_png, shrink, shrink_labels
from utils.errors import DataError
from utils.visualize import as_picture, png_palette

CROPS = 8
MOST_READ = 200  # examples that are read for the doctor
LONGEST = 240  # pixels of a crop's longer side
LABELS_WITH_OBJECTS = 100  # in which objects are counted, and no more pixels than
PIXELS_WITH_OBJECTS = 30_000_000


def describe_training_data(loader: Loader, validation: Loader) -> dict[str, Any]:
    """What up to 200 training labels hold, the first crops of the first epoch, and what the doctor finds."""
    view = loader.view
    found = count_labels(view)
    return {
        "training_images": len(view),
        "labels_counted": len(found.sizes),
        "training_pixels": found.pixels[: len(view.classes)].tolist(),
        "training_void": found.void(len(view.classes)),
        "training_sizes": count_sizes(found.sizes),
        "training_objects": found.objects.tolist(),
        "labels_with_objects": found.labels_with_objects,
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


@dataclass
class LabelCounts:
    """What some labels hold.

    Args:
        pixels: Pixels of each value, (256,) int64.
        sizes: Height and width of each label, which are those of its image.
        objects: Objects by size in the first of them, (SIZE_BINS,).
        labels_with_objects: How many these are.
    """

    pixels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))
    sizes: list[tuple[int, int]] = field(default_factory=list)
    objects: np.ndarray = field(default_factory=lambda: np.zeros(SIZE_BINS, np.int64))
    labels_with_objects: int = 0

    def void(self, num_classes: int) -> float:
        """The share of pixels that are of no class."""
        return float(1 - self.pixels[:num_classes].sum() / max(self.pixels.sum(), 1))


def count_labels(view: Examples) -> LabelCounts:
    """Count some labels of `view`: always the same ones, drawn at random."""
    found = LabelCounts()
    chosen = some_indices(len(view), view.seed)
    # They are in order, and neighbors may show one place: so the first ones would not stand for all.
    mixed = np.random.default_rng(view.seed).permutation(chosen)
    for label in view.labels(mixed.tolist()):
        found.pixels += np.bincount(label.ravel(), minlength=256)
        found.sizes.append((label.shape[0], label.shape[1]))
        if found.labels_with_objects < LABELS_WITH_OBJECTS and found.pixels.sum() <= PIXELS_WITH_OBJECTS:
            found.objects += count_by_size(object_areas(label, len(view.classes)))
            found.labels_with_objects += 1
    return found


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
