"""Transforms of two samples: a part of another image, with its labels, takes the place of what was there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np

from dataloader.transforms.geometry import Pair, Probability
from utils.classes import IGNORE
from utils.errors import ConfigError, DataError
from utils.registry import MIXES
from utils.schema import Above, did_you_mean, join


def paste(image: np.ndarray, label: np.ndarray, other: Pair, where: np.ndarray) -> Pair:
    """Paste the labelled pixels of another image that `where` marks; its void pixels are left out.

    Args:
        image: (H, W, C).
        label: (H, W) uint8.
        other: Image and label of the same size and type.
        where: (H, W) bool.

    Returns:
        New arrays.

    Raises:
        DataError: The two differ in size, channels or type.
    """
    if other[0].shape != image.shape or other[0].dtype != image.dtype:
        mine, theirs = (f"{'x'.join(map(str, each.shape))} {each.dtype}" for each in (image, other[0]))
        raise DataError(f"mix: two images differ, {mine} and {theirs}. End the transforms with a crop of one size.")
    mask = (where & (other[1] != IGNORE)).view(np.uint8)
    return cv2.copyTo(other[0], mask, image.copy()), cv2.copyTo(other[1], mask, label.copy())


class Pasting(ABC):
    """A mix that pastes a part of another image into some images; each kind says which part."""

    p: Probability

    def __call__(
        self, image: np.ndarray, label: np.ndarray, other: Callable[[], Pair], rng: np.random.Generator
    ) -> Pair:
        """Paste into a share `p` of the images, see `base.base_dataset.Mix`."""
        if rng.random() >= self.p:
            return image, label
        second = other()
        return paste(image, label, second, self.part(second[1], rng))

    @abstractmethod
    def part(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Choose what to paste, (H, W) bool, by the other image's labels (H, W) uint8."""


@MIXES.register()
@dataclass(frozen=True, kw_only=True)
class ClassMix(Pasting):
    """Paste half of the classes of another image, drawn at random and rounded up, with all their pixels.

    Source: Olsson et al. 2021, https://arxiv.org/abs/2007.07936, section 3.1.

    Args:
        p: Share of images to paste into.
    """

    p: Probability = 0.5

    def part(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        classes = np.setdiff1d(labels, [IGNORE])
        chosen = rng.permutation(classes)[: (len(classes) + 1) // 2]
        return np.isin(labels, chosen)


@MIXES.register()
@dataclass(frozen=True, kw_only=True)
class CutMix(Pasting):
    """Paste a box of another image, as wide for its height as the images are.

    The share of the image that it covers is drawn from Beta(alpha, alpha), its middle from all pixels; what would lie
    outside is cut off. Source: Yun et al. 2019, https://arxiv.org/abs/1905.04899, section 3.1.

    Args:
        p: Share of images to paste into.
        alpha: Of the distribution of shares: 1 draws any, more draws them nearer to a half.
    """

    p: Probability = 0.5
    alpha: Annotated[float, Above(0)] = 1.0

    def part(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        side = float(rng.beta(self.alpha, self.alpha)) ** 0.5
        where = np.zeros(labels.shape, bool)
        box = []
        for length in labels.shape:
            first = round(rng.integers(length) - side * length / 2)
            box.append(slice(max(0, first), max(0, first + round(side * length))))
        where[tuple(box)] = True
        return where


@MIXES.register()
class CopyPaste(Pasting):
    """Paste all pixels of rare classes from another image.

    Source: Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177, section 3, for classes instead of objects.

    Args:
        p: Share of images to paste into; where the other one shows none of the classes, nothing changes.
        classes: Names of the classes; null for those that have less than `below` of the labelled pixels of the set.
        below: What share of the pixels is rare.

    Raises:
        ConfigError: A class does not exist, or none is rare.
    """

    def __init__(
        self,
        *,
        p: Probability = 0.5,
        classes: list[str] | None = None,
        below: Probability = 0.01,
        class_names: Sequence[str] = (),
        class_pixels: Sequence[int] = (),
        where: str = "args",
    ) -> None:
        self.p = p
        if classes is not None:
            self.classes = _indices(classes, class_names, join(where, "classes"))
            return
        most = below * sum(class_pixels)
        self.classes = [index for index, pixels in enumerate(class_pixels) if 0 < pixels < most]
        if not self.classes:
            raise ConfigError(f"{join(where, 'below')}: no class has less than {below:g} of the pixels. Name classes.")

    def part(self, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return np.isin(labels, self.classes)


def _indices(classes: Sequence[str], names: Sequence[str], where: str) -> list[int]:
    problems = []
    for number, name in enumerate(classes):
        if name not in names:
            problems.append(f"{join(where, number)}: no class is called '{name}'. {did_you_mean(name, names)}")
    if not classes:
        problems.append(f"{where}: is empty. Name a class.")
    if problems:
        raise ConfigError(*problems)
    return [list(names).index(name) for name in classes]
