"""From an image to a label map, by the same steps in validation, evaluation and inference."""

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
from utils.outputs import resize
from utils.tta import Predict, TestTimeAugmentation, mirrored, multi_scale, sliding


class Predictor:
    """A trained model that turns images into label maps.

    Args:
        model: Takes raw images (N, C, H, W) and gives a SegOutput; on its device, in evaluation mode.
        classes: Its classes.
        about: What its checkpoint says about itself.
        precision: Arithmetic of the forward pass.
        look: How to look at an image.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: ClassTable,
        about: Mapping[str, Any],
        precision: torch.dtype = torch.float32,
        look: TestTimeAugmentation | None = None,
    ) -> None:
        self.model, self.classes, self.about = model.eval(), classes, about
        self.look = look or TestTimeAugmentation()
        self.device = next(model.parameters()).device
        self.autocast = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Logits (N, num_classes, h, w) of raw images (N, C, H, W), at the resolution at which they were averaged.

        A single look leaves them at the head's own.
        """
        look, predict = self.look, self._one_look
        predict = mirrored(predict) if look.flip else predict
        images = images.to(self.device)
        if look.mode == "sliding":
            return sliding(predict, images, window=look.window, overlap=look.overlap, batch_size=look.batch_size)
        return multi_scale(predict, images, look.scales, fast=look.fast)

    @property
    def _one_look(self) -> Predict:
        def predict(images: Tensor) -> Tensor:
            with self.autocast:
                return self.model(images).logits.float()

        return predict

    @torch.inference_mode()
    def predict_batch(self, images: Tensor) -> Tensor:
        """Label maps (N, H, W) uint8 of raw images (N, C, H, W)."""
        return predicted_labels(self.logits(images), (images.shape[-2], images.shape[-1]))

    def predict(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Label map (H, W) uint8 of an image: a file, or an array (H, W, C) uint8, RGB.

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
        """The image in `path` with the channels that the model takes.

        Raises:
            DataError: It cannot be read, or has other channels.
        """
        channels = self.about["arch"]["args"].get("in_channels", 3)
        return read_image(path) if channels == 3 and path.suffix != ".npy" else read_bands(path, channels)

    def predict_image(self, image: np.ndarray) -> np.ndarray:
        """Label map (H, W) uint8 of an image (H, W, C), at its own size.

        Raises:
            TypeError: The image is no array of what files may hold.
        """
        return self.predict_batch(as_batch(image))[0].cpu().numpy()

    @torch.inference_mode()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Probability of each class at each pixel, (num_classes, H, W) float32, of an image (H, W, C)."""
        logits = resize(self.logits(as_batch(image)), (image.shape[0], image.shape[1]))
        return logits[0].softmax(dim=0).cpu().numpy()


def as_batch(image: np.ndarray) -> Tensor:
    """An image (H, W, C), uint8, or uint16 or float32 as in training, as a batch (1, C, H, W) of raw values.

    Raises:
        TypeError: It is something else.
    """
    is_image = isinstance(image, np.ndarray) and image.ndim == 3
    if not is_image or image.dtype not in (np.uint8, np.uint16, np.float32):
        raise TypeError(f"expected a uint8 array (H, W, C), got {getattr(image, 'dtype', type(image))}")
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
