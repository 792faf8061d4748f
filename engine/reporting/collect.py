"""Everything a report says of a validation set, from one pass over it: see `collect`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from base.base_dataloader import DevicePrefetcher, Loader
from base.evaluation import evaluate
from engine.reporting.calibration import Calibration
from engine.reporting.errors import BOUNDARY, KINDS, ErrorCounts, count_by_size, find_errors
from engine.reporting.gallery import Gallery, reduce
from engine.reporting.statistics import class_iou, interval_of_mean, mean_iou
from utils.classes import ClassTable
from utils.epoch_figures import PredictedBatch
from utils.losses.strips import winning_probabilities
from utils.metrics import ConfusionMatrix, Metrics
from utils.metrics.boundary import BoundaryIoU
from utils.predict import Predictor
from utils.visualize import png_palette

CONFUSIONS = 40  # pairs of classes whose images are named
IMAGES_OF_A_CONFUSION = 6
SUSPECTS = 8  # images with labels that may be wrong
SURE = 0.95  # probability from which on a network contradicts a label
SMALLEST_SUSPECT = 50  # pixels


class ImageFigures:
    """Count the pixels of single images, so that models can be compared on them; listens to `evaluate`.

    Args:
        classes: The classes C.
    """

    def __init__(self, classes: ClassTable) -> None:
        self.classes = classes
        self.num_classes = len(classes)
        self.shown = np.array([index not in classes.ignored_classes for index in range(len(classes))])
        self.keys: list[str] = []
        self.image_counts: list[np.ndarray] = []  # (C, 3) int64 of each: pixels hit, labelled, predicted

    def listen(self, batch: PredictedBatch) -> None:
        """Count a batch."""
        truth, predicted = batch.labels.cpu(), batch.predicted.cpu()
        for index, key in enumerate(batch.keys):
            self.add(key, truth[index], predicted[index])

    def add(self, key: str, truth: Tensor, predicted: Tensor) -> np.ndarray:
        """Count an image, truth and prediction (H, W) uint8; returns its confusion matrix (C, C) int64."""
        confusion = ConfusionMatrix(self.num_classes, self.classes.names)
        confusion.update(predicted[None], truth[None])
        matrix: np.ndarray = confusion.counts.numpy()
        self.keys.append(key)
        self.image_counts.append(np.stack([matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0)], axis=1))
        return matrix

    @property
    def counts(self) -> np.ndarray:
        """Pixels hit, labelled and predicted, by image and class, (N, C, 3) int64."""
        return np.array(self.image_counts, np.int64).reshape(-1, self.num_classes, 3)

    def to_json(self) -> list[dict[str, Any]]:
        """Give each image's part of the figures, see `image_figures`."""
        return image_figures(self.keys, self.counts, self.shown)


class WorstImages:
    """Keep the images with the lowest mean IoU at their own size, worst first; images that are all void have none.

    Args:
        classes: The classes C.
        most: How many to keep.
    """

    def __init__(self, classes: ClassTable, most: int) -> None:
        self.most = most
        self.shown = np.array([index not in classes.ignored_classes for index in range(len(classes))])
        self.images = 0  # that were seen
        self.found: list[tuple[float, str, np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, key: str, counts: np.ndarray, image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
        """See an image (H, W, channels) with its counts (C, 3), labels (H, W) and prediction (H, W)."""
        self.images += 1
        score = float(mean_iou(counts, self.shown))
        if np.isnan(score) or (len(self.found) == self.most and score >= self.found[-1][0]):
            return
        self.found.append((score, key, image.copy(), truth.copy(), predicted.copy()))
        self.found.sort(key=lambda each: each[0])
        del self.found[self.most :]


class Collector:
    """Figures of single images and of all of them together, and pictures; listens to `evaluate`.

    Args:
        classes: The classes C.
        metrics: What counts the pixels of all images meanwhile.
        worst: What keeps the worst images at their own size, if anything does.
    """

    def __init__(self, classes: ClassTable, metrics: Metrics, worst: WorstImages | None = None) -> None:
        self.classes = classes
        self.metrics = metrics
        self.worst = worst
        self.num_classes = len(classes)
        self.images = ImageFigures(classes)
        self.sizes: list[tuple[int, int]] = []
        self.mistakes: dict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)  # (pixels, image), most first
        self.suspects: list[tuple[int, str, int, int]] = []  # (pixels, image, truth, predicted), most first
        self.boundary = BoundaryIoU(len(classes), distance=0.02)
        self.errors = ErrorCounts(len(classes))
        self.calibration = Calibration(len(classes))
        self.gallery = Gallery(len(classes))
        self.void = 0  # pixels
        self.pixels = 0

    def listen(self, batch: PredictedBatch) -> None:
        """Count a batch."""
        size = (batch.labels.shape[-2], batch.labels.shape[-1])
        probabilities = winning_probabilities(batch.logits, size).float().cpu().numpy()
        for index, key in enumerate(batch.keys):
            self.boundary.update(batch.logits[index], batch.predicted[index], batch.labels[index])
            image = batch.images[index].permute(1, 2, 0).cpu().numpy()
            truth, predicted = batch.labels[index].cpu(), batch.predicted[index].cpu()
            matrix = self.images.add(key, truth, predicted)
            maps = truth.numpy(), predicted.numpy(), probabilities[index]
            self._add_image(key, matrix, image, batch.logits[index], *maps)

    def _add_image(
        self,
        key: str,
        matrix: np.ndarray,
        image: np.ndarray,
        logits: Tensor,
        truth: np.ndarray,
        predicted: np.ndarray,
        sure: np.ndarray,
    ) -> None:
        """Count an image (H, W, channels), its confusion matrix, its logits (C, h, w) and maps (H, W)."""
        self.sizes.append((truth.shape[0], truth.shape[1]))
        self.pixels += truth.size
        self.void += truth.size - int(matrix.sum())
        self._remember_mistakes(key, matrix)
        errors = find_errors(truth, predicted, self.num_classes)
        self.errors.add(errors, truth, predicted)
        self._suspect(key, (errors.kinds > 0) & (errors.kinds != BOUNDARY) & (sure >= SURE), truth, predicted)
        self.calibration.add(sure, logits, truth, predicted)
        counts, shown = self.images.image_counts[-1], self.images.shown
        if self.worst is not None:
            self.worst.add(key, counts, image, truth, predicted)
        iou, mean = class_iou(counts), float(mean_iou(counts, shown))
        if np.isnan(mean):  # nothing but void
            return
        labelled = {}
        for index in np.nonzero((counts[:, 1] > 0) & shown)[0].tolist():
            labelled[self.classes.names[index]] = float(iou[index])
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

    def _suspect(self, key: str, contradicted: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Remember an image by the class whose label the network contradicts most, if in many pixels.

        Source: Northcutt et al. 2021, Confident learning, https://arxiv.org/abs/1911.00068; with one threshold for all.
        """
        if np.count_nonzero(contradicted) < SMALLEST_SUSPECT:
            return
        codes = truth[contradicted].astype(np.int64) * self.num_classes + predicted[contradicted]
        counts = np.bincount(codes)
        worst = int(counts.argmax())
        if counts[worst] < SMALLEST_SUSPECT:
            return
        self.suspects.append((int(counts[worst]), key, *divmod(worst, self.num_classes)))
        self.suspects.sort(key=lambda each: (-each[0], each[1]))
        del self.suspects[SUSPECTS:]

    def to_json(self) -> dict[str, Any]:
        """All figures in plain values; pictures are `pictures`' business."""
        matrix = self.metrics.counts.cpu().numpy()
        counts = self.images.counts
        return {
            "metrics": self.metrics.results(),
            "interval": interval_of_mean(counts, self.images.shown).to_json(),
            "matrix": matrix.tolist(),
            "table": self._table(counts),
            "images": self.images.to_json(),
            "confusions": self._confusions(matrix),
            "suspects": [
                dict(zip(("pixels", "key", "truth", "predicted"), each, strict=True)) for each in self.suspects
            ],
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
            row["ignored"] = not self.images.shown[index]
            areas = self.errors.objects(index)
            row["objects"], row["missed_objects"] = len(areas), int(self.errors.missed[index])
            row["median_object"] = float(np.median(areas)) if len(areas) else None
            row["object_sizes"] = count_by_size(areas).tolist()
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
        mean = [mean_of(row[self.images.shown]) for row in gains]
        return {
            "kinds": list(KINDS),
            "lost": self.errors.lost.tolist(),
            "wrongly_found": self.errors.wrongly_found.tolist(),
            "gains": [[None if np.isnan(value) else float(value) for value in row] for row in gains],
            "mean_gains": mean,
        }


def collect(predictor: Predictor, loader: Loader, worst: WorstImages | None = None) -> Collector:
    """Predict every image of a loader and count.

    Args:
        predictor: What predicts.
        loader: Images and labels.
        worst: What keeps the worst images at their own size, if anything does.
    """
    classes = predictor.classes
    metrics = Metrics(len(classes), classes.names, classes.ignored_classes)
    collector = Collector(classes, metrics, worst)
    move = DevicePrefetcher(predictor.device)
    evaluate(predictor.logits, loader, metrics, move=move, listeners=[collector.listen], title="report")
    return collector


def mean_of(values: np.ndarray) -> float | None:
    """Mean of the values (N,) that are not NaN; None where all are."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


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
