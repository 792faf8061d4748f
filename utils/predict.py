"""From an image to a label map: the same steps in validation while training, in evaluate.py and in inference.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.classes import ClassTable
from utils.images import read_bands, read_image
from utils.losses.strips import predicted_labels
from utils.outputs import SegOutput, resize
from utils.precision import autocast
from utils.protocol import EvaluationData, EvaluationProtocol
from utils.tta import TestTimeAugmentation


class Predictor:
    """Turn images into label maps with a trained model.

    Args:
        model: Takes raw images (N, C, H, W) and gives a SegOutput; on its device. It is put into evaluation mode.
        classes: Its classes.
        about: What its checkpoint says about itself.
        precision: Arithmetic of the forward pass: fp32, bf16 or fp16.
        tta: How to predict an image; None for the whole image once.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: ClassTable,
        about: Mapping[str, Any],
        precision: str = "fp32",
        tta: TestTimeAugmentation | None = None,
    ) -> None:
        self.model = model.eval()
        self.classes = classes
        self.about = about
        self.precision = precision
        self.tta = tta or TestTimeAugmentation()
        self.device = next(model.parameters()).device
        self.autocast = autocast(self.device, precision)

    def protocol(self, data: EvaluationData | None) -> EvaluationProtocol:
        """State how figures are measured that this predicts on `data`."""
        return EvaluationProtocol(data=data, tta=self.tta, precision=self.precision)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Predict raw images (N, C, H, W): logits (N, num_classes, h, w), at the resolution of their average.

        The whole image once leaves them at the head's own.
        """
        return self.tta.logits(self._forward, images.to(self.device))

    def _forward(self, images: Tensor) -> Tensor:
        with self.autocast:
            output: SegOutput = self.model(images)
        return output.logits.float()

    @torch.inference_mode()
    def predict_batch(self, images: Tensor) -> Tensor:
        """Predict label maps (N, H, W) uint8 of raw images (N, C, H, W)."""
        return predicted_labels(self.logits(images), (images.shape[-2], images.shape[-1]))

    def predict(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Predict the label map (H, W) uint8 of an image: a file, or an array (H, W, C) uint8, RGB.

        Raises:
            DataError: The file cannot be read.
            TypeError: The array is none of 8-bit integers; scaled values would be normalised twice.
        """
        if not isinstance(image, np.ndarray):
            return self.predict_image(self.read(Path(image)))
        if image.ndim == 3 and image.shape[2] == 3 and image.dtype != np.uint8:
            raise TypeError(f"expected a uint8 array (H, W, C), got {image.dtype}")
        return self.predict_image(image)

    def read(self, path: Path) -> np.ndarray:
        """Read the image in `path` with the channels that the model takes.

        Raises:
            DataError: It cannot be read, or has other channels.
        """
        channels = self.about["arch"]["args"].get("in_channels", 3)
        return read_image(path) if channels == 3 and path.suffix != ".npy" else read_bands(path, channels)

    def predict_image(self, image: np.ndarray) -> np.ndarray:
        """Predict the label map (H, W) uint8 of an image (H, W, C), at its own size.

        Raises:
            TypeError: The image is no array of what files may hold.
        """
        return self.predict_batch(as_batch(image))[0].cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Predict the probability of each class at each pixel, (num_classes, H, W) float32, of an image (H, W, C)."""
        logits = resize(self.logits(as_batch(image)), (image.shape[0], image.shape[1]))
        return logits[0].softmax(dim=0).cpu().numpy()


def as_batch(image: np.ndarray) -> Tensor:
    """Make a batch (1, C, H, W) of raw values of an image (H, W, C), uint8, or uint16 or float32 as in training.

    Raises:
        TypeError: It is something else.
    """
    is_image = isinstance(image, np.ndarray) and image.ndim == 3
    if not is_image or image.dtype not in (np.uint8, np.uint16, np.float32):
        raise TypeError(f"expected a uint8 array (H, W, C), got {getattr(image, 'dtype', type(image))}")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
