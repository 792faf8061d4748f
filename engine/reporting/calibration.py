"""Whether a model is as sure as it is right: reliability, sureness of hits and errors, the best temperature."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import count_values

BINS = 15  # of the reliability diagram, as in Guo et al. 2017, https://arxiv.org/abs/1706.04599
SURENESS_BINS = 20
POINTS = 100  # pixels of each image that the temperature is fitted to
MOST_POINTS = 20_000
TEMPERATURES = (0.1, 10.0)
GOLDEN = (5**0.5 - 1) / 2


class Calibration:
    """Counts how often predictions of some probability are right.

    Args:
        num_classes: Classes C.
        seed: Decides at which pixels logits are kept, for the temperature.
    """

    def __init__(self, num_classes: int, seed: int = 0) -> None:
        self.num_classes = num_classes
        self.pixels, self.right = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
        self.probability = np.zeros(BINS)
        self.sureness = np.zeros((2, SURENESS_BINS), np.int64)  # of errors, of hits
        self.points: list[tuple[np.ndarray, np.ndarray]] = []
        self.kept = 0
        self.rng = np.random.default_rng(seed)

    def add(self, probability: np.ndarray, logits: Tensor, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one image.

        Args:
            probability: Of the predicted class, (H, W) float32.
            logits: (C, h, w), on any device.
            truth: Labels (H, W) uint8.
            predicted: Labels (H, W) uint8.
        """
        labelled = truth < self.num_classes
        sure = np.nan_to_num(probability)
        right = truth == predicted
        # A bin holds its upper bound but not its lower one.
        codes = np.clip(np.ceil(sure * BINS), 1, BINS).astype(np.uint8) - 1
        codes[~labelled] = BINS
        self.pixels += count_values(codes)[:BINS]
        self.right += count_values(np.where(right, codes, np.uint8(BINS)))[:BINS]
        self.probability += np.bincount(codes.ravel(), sure.ravel(), BINS + 1)[:BINS]
        codes = np.minimum(sure * SURENESS_BINS, SURENESS_BINS - 1).astype(np.uint8)
        for kind, mask in enumerate((labelled & ~right, labelled & right)):
            self.sureness[kind] += count_values(np.where(mask, codes, np.uint8(255)))[:SURENESS_BINS]
        self._keep_points(logits, truth)

    def _keep_points(self, logits: Tensor, truth: np.ndarray) -> None:
        """Keep the logits of some labelled pixels, resized as all logits are."""
        if self.kept >= MOST_POINTS:
            return
        labelled = np.flatnonzero(truth < self.num_classes)
        if not len(labelled):
            return
        height, width = truth.shape
        rows, columns = np.divmod(labelled[self.rng.integers(len(labelled), size=POINTS)], width)
        grid = np.stack([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], axis=-1)
        places = torch.from_numpy(grid).to(logits.device, logits.dtype)[None, None]
        values = F.grid_sample(logits[None], places, padding_mode="border", align_corners=False)
        self.points.append((values[0, :, 0].T.float().cpu().numpy(), truth[rows, columns]))
        self.kept += len(rows)

    def error(self) -> float | None:
        """Expected calibration error: mean over pixels of |probability - accuracy| of their bin."""
        total = self.pixels.sum()
        return float(np.abs(self.probability - self.right).sum() / total) if total else None

    def temperature(self) -> float | None:
        """By what to divide logits so that the likelihood of the labels is largest; 1 if nothing is to be gained.

        Found by golden section over its logarithm, on `POINTS` pixels of each image.
        """
        if not self.points:
            return None
        logits = np.concatenate([values for values, _ in self.points]).astype(np.float64)
        labels = np.concatenate([labels for _, labels in self.points])
        logits -= logits.max(axis=1, keepdims=True)
        truth = logits[np.arange(len(labels)), labels]

        def loss(log_temperature: float) -> float:
            scale = np.exp(-log_temperature)
            return float((np.log(np.exp(logits * scale).sum(axis=1)) - truth * scale).mean())

        low, high = np.log(TEMPERATURES)
        for _ in range(24):
            left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
            if loss(left) < loss(right):
                high = right
            else:
                low = left
        return float(np.exp((low + high) / 2))

    def to_json(self) -> dict[str, Any]:
        """All of it in plain values."""
        return {
            "pixels": self.pixels.tolist(),
            "right": self.right.tolist(),
            "probability": np.round(self.probability, 3).tolist(),
            "error": self.error(),
            "temperature": self.temperature(),
            "sureness_of_errors": self.sureness[0].tolist(),
            "sureness_of_hits": self.sureness[1].tolist(),
        }
