"""From an image to a label map, by the same steps in validation, evaluation and inference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.classes import ClassTable
from utils.images import read_image
from utils.metrics import predicted_labels


class Predictor:
    """A trained model that turns images into label maps.

    Args:
        model: Takes raw images (N, C, H, W) and gives a SegOutput; on its device, in evaluation mode.
        classes: Its classes.
        about: What its checkpoint says about itself.
        precision: Arithmetic of the forward pass.
    """

    def __init__(
        self, model: nn.Module, classes: ClassTable, about: Mapping[str, Any], precision: torch.dtype = torch.float32
    ) -> None:
        self.model, self.classes, self.about = model.eval(), classes, about
        self.device = next(model.parameters()).device
        self.autocast = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of raw images (N, C, H, W), at the head's own resolution."""
        with self.autocast:
            return self.model(images.to(self.device)).logits.float()

    @torch.inference_mode()
    def predict_batch(self, images: Tensor) -> Tensor:
        """Label maps (N, H, W) uint8 of raw images (N, C, H, W)."""
        return predicted_labels(self.logits(images), (images.shape[-2], images.shape[-1]))

    def predict(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Label map (H, W) uint8 of an image: a file, or an array (H, W, C) uint8, RGB.

        Raises:
            DataError: The file cannot be read.
            TypeError: The array is none of 8-bit integers.
        """
        return self.predict_image(image if isinstance(image, np.ndarray) else read_image(Path(image)))

    def predict_image(self, image: np.ndarray) -> np.ndarray:
        """Label map (H, W) uint8 of an image (H, W, C) uint8, at its own size.

        Raises:
            TypeError: The image is no array of 8-bit integers; scaled values would be normalised twice.
        """
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            raise TypeError(f"expected a uint8 array (H, W, C), got {getattr(image, 'dtype', type(image))}")
        batch = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        return self.predict_batch(batch)[0].cpu().numpy()
