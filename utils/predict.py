"""From an image to a label map: the same steps in validation while training, in evaluate.py and in inference.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from utils.classes import ClassTable
from utils.images import read_bands, read_image
from utils.losses.strips import predicted_labels, winning_probabilities
from utils.outputs import SegOutput, resize
from utils.precision import autocast
from utils.protocol import EvaluationData, EvaluationProtocol
from utils.rasters import declares_nodata
from utils.tta import TestTimeAugmentation, mirrored


class Prepare(Protocol):
    """What is done to an image before it is predicted."""

    @property
    def size(self) -> tuple[int, int] | str:
        """The size that images get, as a stamp on figures names it."""
        ...

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Prepare an image (H, W, C)."""
        ...


class Prediction(NamedTuple):
    """What a model says of an image, at the image's own size; on any device."""

    labels: Tensor  # (H, W) uint8
    winning: Tensor | None = None  # (H, W) float32: probability of the label
    probabilities: Tensor | None = None  # (num_classes, H, W) float32


class Predictor:
    """Turn images into label maps with a trained model.

    Args:
        model: Takes raw images (N, C, H, W) and gives a SegOutput; on its device. It is put into evaluation mode.
        classes: Its classes.
        about: What its checkpoint says about itself.
        precision: Arithmetic of the forward pass: fp32, bf16 or fp16.
        tta: How to predict an image; None for the whole image once.
        prepare: What to do to an image (H, W, C) before it is predicted, such as what validation did; None for nothing.
            Label maps get the size that the image had before.
    """

    def __init__(
        self,
        model: nn.Module,
        classes: ClassTable,
        about: Mapping[str, Any],
        precision: str = "fp32",
        tta: TestTimeAugmentation | None = None,
        prepare: Prepare | None = None,
    ) -> None:
        self.model = model.eval()
        self.classes = classes
        self.about = about
        self.precision = precision
        self.tta = tta or TestTimeAugmentation()
        self.prepare = prepare
        self.crop: tuple[int, int] | None = None  # height and width of what it was trained on, for windows
        self.on_forward: Callable[[int], None] | None = None  # hears the images of each forward pass
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

    def window_logits(self, images: Tensor) -> Tensor:
        """Predict raw windows (N, C, H, W) of a larger image, each once or, where so asked for, mirrored too."""
        predict = mirrored(self._forward) if self.tta.flip else self._forward
        return predict(images.to(self.device))

    def _forward(self, images: Tensor) -> Tensor:
        with self.autocast:
            output: SegOutput = self.model(images)
        if self.on_forward is not None:
            self.on_forward(len(images))
        return output.logits.float()

    @torch.inference_mode()
    def predict_batch(self, images: Tensor) -> Tensor:
        """Predict label maps (N, H, W) uint8 of raw images (N, C, H, W)."""
        return predicted_labels(self.logits(images), (images.shape[-2], images.shape[-1]))

    def predict(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Predict the label map (H, W) uint8 of an image: a file, or an array (H, W, C) uint8, RGB or RGBA.

        Raises:
            DataError: The file cannot be read.
            TypeError: The array is none of 8-bit integers; scaled values would be normalized twice.
        """
        if not isinstance(image, np.ndarray):
            return self.predict_image(self.read(Path(image)))
        if self.channels == 3 and image.ndim == 3 and image.dtype != np.uint8:
            raise TypeError(f"expected an array of 8-bit integers, got {image.dtype}. Scale it to 0..255 as uint8.")
        return self.predict_image(image)

    @property
    def channels(self) -> int:
        """Channels of the images that the model takes."""
        return int(self.about["arch"]["args"].get("in_channels", 3))

    def read(self, path: Path) -> np.ndarray:
        """Read the image in `path` with the channels that the model takes.

        Raises:
            DataError: It cannot be read, or has other channels.
        """
        if self.channels == 3 and path.suffix.lower() != ".npy":
            return read_image(path)
        return read_bands(path, self.channels, fill=declares_nodata(path))

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """Make of an image (H, W, C) what the network is to see; an alpha channel is dropped.

        Raises:
            DataError: It would become too large.
            TypeError: The image is no array of what files may hold.
        """
        image = checked_image(image, self.channels)
        return image if self.prepare is None else self.prepare(image)

    @torch.inference_mode()
    def predictions(
        self, images: Tensor, sizes: Sequence[tuple[int, int]], wanted: Collection[str] = ()
    ) -> list[Prediction]:
        """Predict prepared images in one forward pass, on the model's device.

        Args:
            images: (N, C, H, W), raw values.
            sizes: Height and width that each prediction is to have: those of the image before it was prepared.
            wanted: "winning", "probabilities" or both, besides the labels.
        """
        logits, found = self.logits(images), []
        for index, size in enumerate(sizes):
            own = logits[index : index + 1]
            labels = predicted_labels(own, size)[0]
            winning = winning_probabilities(own, size)[0] if "winning" in wanted else None
            probabilities = resize(own, size)[0].softmax(dim=0) if "probabilities" in wanted else None
            found.append(Prediction(labels, winning, probabilities))
        return found

    def prediction(self, image: np.ndarray, wanted: Collection[str] = ()) -> Prediction:
        """Predict an image (H, W, C), and what else is `wanted` of it, in one forward pass; on the CPU.

        Raises:
            TypeError: The image is no array of what files may hold.
        """
        size = (image.shape[0], image.shape[1]) if isinstance(image, np.ndarray) and image.ndim > 1 else (0, 0)
        (found,) = self.predictions(as_batch([self.prepared(image)]), [size], wanted)
        return Prediction(*(None if part is None else part.cpu() for part in found))  # type: ignore[arg-type]

    def predict_image(self, image: np.ndarray) -> np.ndarray:
        """Predict the label map (H, W) uint8 of an image (H, W, C), at its own size.

        Raises:
            TypeError: The image is no array of what files may hold.
        """
        return self.prediction(image).labels.numpy()

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Predict the probability of each class at each pixel, (num_classes, H, W) float32, of an image (H, W, C)."""
        found = self.prediction(image, ["probabilities"]).probabilities
        assert found is not None
        return found.numpy()


def checked_image(image: np.ndarray, channels: int) -> np.ndarray:
    """Return an image (H, W, C) as a model of so many channels takes it: without alpha where it takes three.

    Raises:
        TypeError: It is no array (H, W, C) of 8 or 16 bits or float32, or has other channels.
    """
    if not isinstance(image, np.ndarray):
        raise TypeError(f"expected an array (height, width, {channels}), got {type(image).__name__}.")
    if image.ndim != 3:
        shape = "x".join(map(str, image.shape))
        raise TypeError(f"expected an array (height, width, {channels}), got one of shape {shape}.")
    if image.dtype not in (np.uint8, np.uint16, np.float32):
        raise TypeError(f"expected an array of 8-bit integers, got {image.dtype}. Scale it to 0..255 as uint8.")
    if channels == 3 and image.shape[2] == 4:
        return image[..., :3]
    if image.shape[2] != channels:
        raise TypeError(f"expected an array (height, width, {channels}), got one of {image.shape[2]} channels.")
    return image


def as_batch(images: Sequence[np.ndarray]) -> Tensor:
    """Make a batch (N, C, H, W) of images (H, W, C) of one size; in memory channels last, as in training."""
    if len(images) == 1:
        return torch.from_numpy(np.ascontiguousarray(images[0])).permute(2, 0, 1)[None]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
