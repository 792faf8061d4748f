"""Everything a report says of a validation set, from one pass over it: see `collect`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from base.base_dataloader import Batch
from engine.reporting.calibration import Calibration
from engine.reporting.errors import KINDS, ErrorCounts, find_errors
from engine.reporting.gallery import Gallery, reduce
from engine.reporting.statistics import class_iou, interval_of_mean, mean_iou
from utils.classes import ClassTable
from utils.losses.strips import winning_probabilities
from utils.metrics import BoundaryIoU, ConfusionMatrix, Metrics
from utils.visualize import png_palette

CONFUSIONS = 40  # pairs of classes whose images are named
IMAGES_OF_A_CONFUSION = 6
SIZE_BINS = 16  # of objects: 1, 2, 4 ... pixels


class GivesLogits(Protocol):
    """What predicts: a `Predictor`, or several of them."""

    @property
    def classes(self) -> ClassTable: ...

    def logits(self, images: Tensor) -> Tensor: ...


class Collector:
    """Figures of single images and of all of them together.

    Args:
        classes: The classes C.
        extra: Names of figures to report besides, as for `Metrics`.
    """

    def __init__(self, classes: ClassTable, extra: Sequence[str] = ()) -> None:
        self.classes, self.num_classes = classes, len(classes)
        self.metrics = Metrics(len(classes), classes.names, classes.left_out, extra)
        self.shown = np.array([index not in classes.left_out for index in range(len(classes))])
        self.keys: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.counts: list[np.ndarray] = []  # (C, 3) int64 of each image: pixels hit, labelled, predicted
        self.mistakes: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)  # (pixels, image), most first
        self.boundary = BoundaryIoU(len(classes))
        self.errors = ErrorCounts(len(classes))
        self.calibration = Calibration(len(classes))
        self.gallery = Gallery(len(classes))
        self.void = self.pixels = 0

    @torch.inference_mode()
    def add(self, logits: Tensor, batch: Batch) -> None:
        """Count a batch; logits (N, C, h, w) are of its images."""
        labels = batch.labels.to(logits.device)
        predictions = self.metrics.add(logits, labels)
        size = (labels.shape[-2], labels.shape[-1])
        probabilities = winning_probabilities(logits, size).float().cpu().numpy()
        for index, key in enumerate(batch.keys):
            self.boundary.add(logits[index], predictions[index], labels[index])
            image = batch.images[index].permute(1, 2, 0).cpu().numpy()
            maps = labels[index].cpu().numpy(), predictions[index].cpu().numpy(), probabilities[index]
            self._add_image(key, image, logits[index], *maps)

    def _add_image(
        self, key: str, image: np.ndarray, logits: Tensor, truth: np.ndarray, predicted: np.ndarray, sure: np.ndarray
    ) -> None:
        """Count an image (H, W, channels), its logits (C, h, w) and maps (H, W)."""
        confusion = ConfusionMatrix(self.num_classes, self.classes.names)
        confusion.update(torch.from_numpy(predicted)[None], torch.from_numpy(truth)[None])
        matrix = confusion.counts.numpy()
        counts = np.stack([matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)], axis=1)
        self.keys.append(key)
        self.sizes.append((truth.shape[0], truth.shape[1]))
        self.counts.append(counts)
        self.pixels += truth.size
        self.void += truth.size - int(matrix.sum())
        self._remember_mistakes(key, matrix)
        errors = find_errors(truth, predicted, self.num_classes)
        self.errors.add(errors, truth, predicted)
        self.calibration.add(sure, logits, truth, predicted)
        iou, mean = class_iou(counts), float(mean_iou(counts, self.shown))
        if np.isnan(mean):  # nothing but void
            return
        labelled = {name: float(iou[c]) for c, name in enumerate(self.classes.names) if counts[c, 1] and self.shown[c]}
        if self.gallery.wants(key, mean, labelled):
            self.gallery.keep(reduce(key, mean, image, truth, predicted, errors.kinds, sure))

    def _remember_mistakes(self, key: str, matrix: np.ndarray) -> None:
        """Keep an image's name with the confusions that it has more of than most others."""
        wrong = matrix.copy()
        np.fill_diagonal(wrong, 0)
        for truth, predicted in np.argwhere(wrong).tolist():
            images = self.mistakes[truth, predicted]
            images.append((int(wrong[truth, predicted]), key))
            images.sort(key=lambda image: (-image[0], image[1]))
            del images[IMAGES_OF_A_CONFUSION:]

    def to_json(self) -> dict[str, Any]:
        """All figures in plain values; pictures are `pictures`' business."""
        matrix = self.metrics.counts.cpu().numpy()
        counts = np.array(self.counts, np.int64).reshape(-1, self.num_classes, 3)
        return {
            "metrics": self.metrics.results(),
            "interval": interval_of_mean(counts, self.shown).to_json(),
            "matrix": matrix.tolist(),
            "table": self._table(counts),
            "images": image_figures(self.keys, counts, self.shown),
            "confusions": self._confusions(matrix),
            "errors": self._errors(counts.sum(axis=0)),
            "calibration": self.calibration.to_json(),
            "sizes": count_sizes(self.sizes),
            "void": self.void / max(self.pixels, 1),
        }

    def pictures(self) -> dict[str, Any]:
        """Names of the images to show, their pictures, and small ones for comparing runs."""
        palette = png_palette(self.classes)
        groups = self.gallery.choose(self.classes.names)
        pictures = self.gallery.encode(groups, palette)
        return {
            "gallery": {name: [key for key in keys if key in pictures] for name, keys in groups.items()},
            "pictures": pictures,
            "small_pictures": self.gallery.encode_small(palette),
        }

    def _table(self, counts: np.ndarray) -> list[dict[str, Any]]:
        """The figures of each class, in order."""
        occurring = (counts[:, :, 1] > 0).sum(axis=0)
        wrong = (counts[:, :, 1] - counts[:, :, 0]).sum(axis=0)
        rows = self.metrics.table()
        for index, row in enumerate(rows):
            alone = torch.zeros(self.num_classes, dtype=torch.bool)
            alone[index] = True
            boundary = float(self.boundary.value(alone))
            row["boundary_iou"] = None if np.isnan(boundary) else boundary
            row["images"] = int(occurring[index])
            row["share_of_error"] = float(wrong[index] / max(wrong.sum(), 1))
            row["ignored"] = not self.shown[index]
            areas = self.errors.objects(index)
            row["objects"], row["missed_objects"] = len(areas), int(self.errors.missed[index])
            row["median_object"] = float(np.median(areas)) if len(areas) else None
            exponents = np.minimum(np.log2(np.maximum(areas, 1)).astype(int), SIZE_BINS - 1)
            row["object_sizes"] = np.bincount(exponents, minlength=SIZE_BINS).tolist()
        return rows

    def _confusions(self, matrix: np.ndarray) -> list[dict[str, Any]]:
        """The pairs of classes with the most wrong pixels, most first, and the images that have them."""
        wrong = matrix.copy()
        np.fill_diagonal(wrong, 0)
        labelled = matrix.sum(axis=1)
        found = []
        for code in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist():
            truth, predicted = divmod(code, self.num_classes)
            pixels = int(wrong[truth, predicted])
            if pixels == 0:
                break
            found.append(
                {
                    "truth": truth,
                    "predicted": predicted,
                    "pixels": pixels,
                    "share": pixels / int(labelled[truth]),
                    "images": [key for _, key in self.mistakes[truth, predicted]],
                }
            )
        return found

    def _errors(self, counts: np.ndarray) -> dict[str, Any]:
        """Wrong pixels by kind and class, and what the IoU would gain without them."""
        gains = self.errors.gains(counts)
        mean = [float(np.nanmean(row[self.shown])) if not np.isnan(row[self.shown]).all() else None for row in gains]
        return {
            "kinds": list(KINDS),
            "lost": self.errors.lost.tolist(),
            "wrongly_found": self.errors.wrongly_found.tolist(),
            "gains": [[None if np.isnan(value) else float(value) for value in row] for row in gains],
            "mean_gains": mean,
        }


def collect(
    predictor: GivesLogits, batches: Iterable[Batch], extra: Sequence[str] = (), collector: Collector | None = None
) -> Collector:
    """Predict every batch and count.

    Args:
        predictor: What predicts.
        batches: Images and labels.
        extra: Names of figures to report besides.
        collector: To go on with; None for a new one.
    """
    collector = collector or Collector(predictor.classes, extra)
    for batch in batches:
        collector.add(predictor.logits(batch.images), batch)
    return collector


def image_figures(keys: Sequence[str], counts: np.ndarray, shown: np.ndarray) -> list[dict[str, Any]]:
    """What every image adds to the figures, so that others can be compared with it.

    Args:
        keys: Names of the images.
        counts: Pixels hit, labelled and predicted, (N, C, 3).
        shown: Which classes are in the mean, (C,) bool.

    Returns:
        For each: key, mean IoU (None if it is all void), and [class, hit, labelled, predicted] of its classes.
    """
    found = []
    for key, image, mean in zip(keys, counts, mean_iou(counts, shown).tolist(), strict=True):
        present = np.nonzero(image.any(axis=1))[0].tolist()
        rows = [[index, *image[index].tolist()] for index in present]
        found.append({"key": key, "Mean_IoU": None if np.isnan(mean) else mean, "classes": rows})
    return found


def counts_of(images: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """Counts (N, C, 3) int64 of what `image_figures` gave."""
    counts = np.zeros((len(images), num_classes, 3), np.int64)
    for number, image in enumerate(images):
        for index, *values in image["classes"]:
            counts[number, index] = values
    return counts


def count_sizes(sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
    """How many images have each height and width, most frequent first."""
    found: dict[tuple[int, int], int] = defaultdict(int)
    for size in sizes:
        found[size] += 1
    ordered = sorted(found.items(), key=lambda item: -item[1])
    return [{"height": height, "width": width, "images": number} for (height, width), number in ordered]
