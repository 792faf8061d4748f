"""Several models that predict together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from utils.errors import CheckpointError
from utils.losses.strips import predicted_labels
from utils.outputs import resize
from utils.predict import Predictor


class Ensemble:
    """Averages the logits of several models.

    Args:
        predictors: One for each model; all have the same classes.

    Raises:
        CheckpointError: The classes differ, or the way in which images are prepared.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        first = predictors[0]
        for number, other in enumerate(predictors[1:], start=2):
            if other.classes.names != first.classes.names:
                raise CheckpointError(f"--ensemble: model {number} has other classes. Average models of the same ones.")
            if other.prepare != first.prepare:
                what = f"--ensemble: model {number} was validated on images of another size"
                raise CheckpointError(f"{what}. Average models that saw the same, or add --native.")
        self.predictors, self.classes, self.device = list(predictors), first.classes, first.device

    def logits(self, images: Tensor) -> Tensor:
        """Mean logits (N, num_classes, h, w) of raw images (N, C, H, W).

        They have the size of the first model's if all are of one size, else that of the images.
        """
        found = [predictor.logits(images).to(self.device) for predictor in self.predictors]
        if len({logits.shape for logits in found}) > 1:
            size = (images.shape[-2], images.shape[-1])
            found = [resize(logits, size) for logits in found]
        return torch.stack(found).mean(dim=0)

    def predict_batch(self, images: Tensor) -> Tensor:
        """Label maps (N, H, W) uint8 of raw images (N, C, H, W)."""
        return predicted_labels(self.logits(images), (images.shape[-2], images.shape[-1]))
