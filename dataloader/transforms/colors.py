"""What changes the colors of pixels and leaves them where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np

from base.base_dataset import KeepsSize
from dataloader.transforms.geometry import Pair, Probability, by_fours
from utils.errors import DataError
from utils.registry import TRANSFORMS
from utils.schema import Between


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class GaussianBlur(KeepsSize):
    """Blur some images.

    Args:
        p: Share of images to blur.
        sigma: Smallest and largest standard deviation, in pixels. Less than 0.5 cannot be seen.
    """

    p: Probability = 0.5
    sigma: tuple[Annotated[float, Between(0.1, 100)], Annotated[float, Between(0.1, 100)]] = (0.5, 1.0)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        if rng.random() < self.p:
            sigma = float(rng.uniform(*self.sigma))
            kernel = cv2.getGaussianKernel(2 * max(1, round(2 * sigma)) + 1, sigma)
            # A fifth faster than cv2.GaussianBlur.
            image = by_fours(image, lambda x, _: cv2.sepFilter2D(x, -1, kernel, kernel))
        return image, label


@TRANSFORMS.register()
@dataclass(frozen=True, kw_only=True)
class ColorJitter(KeepsSize):
    """Change colors at random, in the order of the arguments; 8-bit RGB images only.

    Args:
        brightness: The factor is drawn from 1 - brightness to 1 + brightness.
        contrast: Likewise, about the image's mean gray.
        gamma: The exponent is drawn from 1 / (1 + gamma) to 1 + gamma, either side of 1 as often.
        white_balance: Each channel's factor is drawn from 1 - white_balance to 1 + white_balance.
        saturation: The factor is drawn from 1 - saturation to 1 + saturation; 0 would be gray.
        hue: Largest shift, as a share of the color circle.
        gray: Share of images that lose their color.
    """

    brightness: Probability = 0.4
    contrast: Probability = 0.4
    gamma: Annotated[float, Between(0, 10)] = 0.0
    white_balance: Probability = 0.0
    saturation: Probability = 0.4
    hue: Annotated[float, Between(0, 0.5)] = 0.0
    gray: Probability = 0.0

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        if image.dtype != np.uint8 or image.shape[2] != 3:
            raise DataError(f"color_jitter: needs 8-bit RGB images, got {image.shape[2]} x {image.dtype}. Remove it.")
        # The order of the draws is part of what a seed means; those that came later are made where asked for.
        amounts = np.array([self.brightness, self.contrast, self.saturation])
        brightness, contrast, saturation = 1 + amounts * rng.uniform(-1, 1, 3)
        shift = round(180 * float(rng.uniform(-self.hue, self.hue)))  # OpenCV's circle has 180 steps
        image = cv2.LUT(image, self._levels(image, brightness, contrast, rng))
        if self.gray and rng.random() < self.gray:
            saturation, shift = 0.0, 0
        if saturation != 1:
            gray_image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
            image = cv2.addWeighted(image, saturation, gray_image, 1 - saturation, 0)
        if shift:
            turned = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
            turned[..., 0] = cv2.LUT(turned[..., 0], ((np.arange(256) + shift) % 180).astype(np.uint8))
            image = cv2.cvtColor(turned, cv2.COLOR_HSV2RGB)
        return image, label

    def _levels(self, image: np.ndarray, brightness: float, contrast: float, rng: np.random.Generator) -> np.ndarray:
        """Return what each value becomes, (256,) uint8 or, where channels differ, (1, 256, 3)."""
        gray = cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0] * brightness
        levels = (np.arange(256) * brightness - gray) * contrast + gray
        if self.gamma:
            exponent = (1 + self.gamma) ** float(rng.uniform(-1, 1))
            levels = 255 * (levels.clip(0, 255) / 255) ** exponent
        if self.white_balance:
            levels = levels[None, :, None] * (1 + self.white_balance * rng.uniform(-1, 1, 3))
        found: np.ndarray = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
        return found
