"""Whether an exported file predicts what its checkpoint does, measured on images of sizes that were not traced."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from dataloader.datasets.synthetic import draw_scene
from engine.exporting.read import Run
from utils.classes import ClassTable
from utils.errors import DataError
from utils.losses.strips import predicted_labels
from utils.metrics import ConfusionMatrix
from utils.outputs import resize

AGREEMENT = 0.999  # share of pixels with equal labels that proves an export, at every size
UNSURE = 0.01  # that the confidence of a pixel may differ from that of the logits of the same graph
LOST = 0.01  # of mean IoU, that 8-bit numbers may cost
PER_SIZE = 2  # images of each size
LARGEST = 512  # pixels of a crop; larger images prove nothing more, and take minutes
# Height and width as shares of the crop: square, landscape and portrait, larger and smaller.
SHARES = ((1, 1), (0.8, 1.25), (1.4, 0.7), (0.5, 0.5), (0.63, 0.9), (1.1, 0.4), (0.45, 1.3), (0.27, 0.31))
SMALLEST = 33


class Batch(NamedTuple):
    """Images of one size."""

    images: Tensor  # (N, C, H, W), raw values
    labels: Tensor | None  # (N, H, W) uint8; None where nobody knows them


class Example(NamedTuple):
    """An image and, if known, its label."""

    image: np.ndarray  # (H, W, C)
    label: np.ndarray | None  # (H, W) uint8


@dataclass(frozen=True)
class SizeReport:
    """How two predictions of images of one size agree.

    Args:
        size: Height and width.
        images: Number of images.
        agreement: Share of pixels with equal labels and, where the file gives it, the confidence of its logits.
        largest_logit_difference: Over all classes and pixels; None where the runtime failed.
        error: What the runtime said where it failed.
    """

    size: tuple[int, int]
    images: int
    agreement: float
    largest_logit_difference: float | None
    error: str = ""


@dataclass(frozen=True)
class Parity:
    """How a file and its checkpoint agree.

    Args:
        sizes: One report for each size.
        agreement: The smallest of them.
        largest_logit_difference: The largest of them.
        mean_iou: Of the checkpoint and of the file; None where the labels are unknown.
    """

    sizes: tuple[SizeReport, ...]
    agreement: float
    largest_logit_difference: float | None
    mean_iou: tuple[float, float] | None

    def proven(self, *, rounded: bool) -> bool:
        """Whether the file may stand for the checkpoint.

        Rounded weights move borders between classes; where labels are known, they are judged by the mean IoU.
        """
        if any(report.error for report in self.sizes):
            return False
        if rounded and self.mean_iou is not None:
            return self.mean_iou[0] - self.mean_iou[1] <= LOST
        return self.agreement >= AGREEMENT

    @property
    def worst(self) -> SizeReport:
        """The size with the smallest agreement."""
        return min(self.sizes, key=lambda report: report.agreement)

    @property
    def overall(self) -> float:
        """Share of all pixels with equal labels."""
        pixels = [report.images * report.size[0] * report.size[1] for report in self.sizes]
        agreeing = sum(report.agreement * count for report, count in zip(self.sizes, pixels, strict=True))
        return agreeing / sum(pixels)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        sizes = []
        for report in self.sizes:
            entry: dict[str, Any] = {
                "size": list(report.size),
                "images": report.images,
                "agreement": report.agreement,
                "largest_logit_difference": report.largest_logit_difference,
            }
            if report.error:
                entry["error"] = report.error
            sizes.append(entry)
        figures: dict[str, Any] = {
            "agreement": self.agreement,
            "largest_logit_difference": self.largest_logit_difference,
            "mean_iou": None,
            "sizes": sizes,
        }
        if self.mean_iou is not None:
            ours, theirs = self.mean_iou
            figures["mean_iou"] = {"checkpoint": ours, "export": theirs, "difference": theirs - ours}
        return figures


def parity_sizes(crop: tuple[int, int], only: tuple[int, int] | None = None) -> list[tuple[int, int]]:
    """Eight sizes around that of a training crop, every second one odd; eight times `only`, if it is given."""
    if only is not None:
        return [only] * len(SHARES)
    sizes = []
    for number, (tall, wide) in enumerate(SHARES):
        height = max(SMALLEST, round(min(crop[0], LARGEST) * tall))
        width = max(SMALLEST, round(min(crop[1], LARGEST) * wide))
        sizes.append((height | 1, width | 1) if number % 2 else (height, width))
    return sizes


def generated_examples(count: int, channels: int) -> list[Example]:
    """Street scenes, or smooth noise where images have other than three channels."""
    examples = []
    for number in range(count):
        rng = np.random.default_rng((2024, number))
        if channels == 3:
            image, _ = draw_scene(rng, (240, 320))
        else:
            coarse = rng.uniform(0, 255, (15, 20, channels)).astype(np.float32)
            bands = [cv2.resize(coarse[..., band], (320, 240)) for band in range(channels)]
            image = np.stack(bands, axis=-1)
        examples.append(Example(image, None))
    return examples


def batches_of(examples: Sequence[Example], sizes: Sequence[tuple[int, int]]) -> list[Batch]:
    """Pieces of the examples, `PER_SIZE` of each size; the examples are used by turns."""
    batches = []
    for number, size in enumerate(sizes):
        chosen = [examples[(number * PER_SIZE + i) % len(examples)] for i in range(PER_SIZE)]
        pieces = [_piece(example, size) for example in chosen]
        images = torch.stack([torch.from_numpy(piece.image).permute(2, 0, 1) for piece in pieces])
        known = [torch.from_numpy(piece.label) for piece in pieces if piece.label is not None]
        batches.append(Batch(images, torch.stack(known) if len(known) == len(pieces) else None))
    return batches


def compare(
    reference: nn.Module, run: Run, batches: Sequence[Batch], classes: ClassTable, logits: Run | None = None
) -> Parity:
    """Predict all batches with both.

    Args:
        reference: The checkpoint's network, in evaluation mode, on the CPU.
        run: Computes the exported file.
        batches: What to predict.
        classes: Of the network.
        logits: Computes the same graph with logits, where `run` has none.
    """
    ours, theirs = (ConfusionMatrix(len(classes), classes.names, classes.ignored_classes) for _ in range(2))
    reports = []
    for images, truth in batches:
        with torch.inference_mode():
            expected = reference(images).logits.float()
        report, labels, found = _compare_batch(expected, images, run, logits or run)
        reports.append(report)
        if truth is not None and found is not None:
            ours.update(labels, truth)
            theirs.update(found, truth)
    differences = [r.largest_logit_difference for r in reports if r.largest_logit_difference is not None]
    known = all(batch.labels is not None for batch in batches) and not any(report.error for report in reports)
    return Parity(
        tuple(reports),
        agreement=min(report.agreement for report in reports),
        largest_logit_difference=max(differences, default=None),
        mean_iou=(ours.results()["Mean_IoU"], theirs.results()["Mean_IoU"]) if known else None,
    )


def _compare_batch(expected: Tensor, images: Tensor, run: Run, logits: Run) -> tuple[SizeReport, Tensor, Tensor | None]:
    """The report of a batch, and the labels of both; of the second None if its runtime fails."""
    size = (images.shape[-2], images.shape[-1])
    labels = predicted_labels(expected, size)
    try:
        found = run(images)
        theirs = found if "logits" in found else logits(images)
    except DataError as error:
        return SizeReport(size, len(images), 0.0, None, error.problems[0]), labels, None
    predicted = found["labels"] if "labels" in found else predicted_labels(theirs["logits"], size)
    if predicted.shape != labels.shape:
        shape = "x".join(map(str, predicted.shape))
        return SizeReport(size, len(images), 0.0, None, f"labels are of shape {shape}"), labels, None
    agrees = predicted == labels
    if "confidence" in found:
        agrees = agrees & ((found["confidence"] - theirs["logits"].softmax(1).amax(1)).abs() <= UNSURE)
    agreement = float(agrees.double().mean())
    difference = float((theirs["logits"] - resize(expected, size)).abs().max())
    return SizeReport(size, len(images), agreement, difference), labels, predicted


def _piece(example: Example, size: tuple[int, int]) -> Example:
    """The middle of the example at that size, enlarged first where it is smaller."""
    height, width = example.image.shape[:2]
    factor = max(1.0, size[0] / height, size[1] / width)
    return Example(
        _fit(example.image, size, factor, cv2.INTER_LINEAR),
        None if example.label is None else _fit(example.label, size, factor, cv2.INTER_NEAREST),
    )


def _fit(values: np.ndarray, size: tuple[int, int], factor: float, interpolation: int) -> np.ndarray:
    if factor > 1:
        width = max(size[1], round(values.shape[1] * factor))
        height = max(size[0], round(values.shape[0] * factor))
        resized = cv2.resize(values, (width, height), interpolation=interpolation)
        values = resized.reshape(height, width, *values.shape[2:])  # OpenCV drops a single channel
    top = (values.shape[0] - size[0]) // 2
    left = (values.shape[1] - size[1]) // 2
    return np.ascontiguousarray(values[top : top + size[0], left : left + size[1]])
