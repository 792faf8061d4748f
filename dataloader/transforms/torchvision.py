"""Transforms of torchvision, by name: its v2 classes that suit image and label together.

Which ones is a closed list: others change the image alone where they should move the label too (AutoAugment), change
the number of channels, take what JSON cannot say, or are about to leave torchvision (JPEG). Torchvision is imported
when one of them is asked for.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from base.base_dataset import Size
from utils.classes import IGNORE
from utils.errors import ConfigError, DataError
from utils.registry import TRANSFORMS

COLORS = (
    *("GaussianNoise", "RandomAdjustSharpness", "RandomAutocontrast", "RandomChannelPermutation"),
    *("RandomEqualize", "RandomGrayscale", "RandomInvert", "RandomPhotometricDistort", "RandomPosterize"),
    "RandomSolarize",
)
MOVES = ("ElasticTransform", "RandomAffine", "RandomPerspective", "RandomRotation", "RandomZoomOut")


@dataclass(frozen=True)
class TorchvisionTransform:
    """A transform of torchvision for image and label, whose randomness is the sample's.

    Args:
        kind: Class of torchvision.transforms.v2.
        options: Its arguments.
        fill: Raw value of image pixels outside the source, by channel; the label is void there.
    """

    kind: Callable[..., Any]
    options: Mapping[str, Any]
    fill: tuple[float, ...] | None = None

    @cached_property
    def transform(self) -> Any:
        """Torchvision's object."""
        from torchvision.transforms import InterpolationMode
        from torchvision.tv_tensors import Image, Mask

        options = dict(self.options)
        if self.name in MOVES:
            color = options.get("fill")
            if color is None:
                color = [round(value) for value in self.fill or (0,)]
            options["fill"] = {Image: color, Mask: IGNORE}
        try:
            if "interpolation" in options:  # of the image; labels take the nearest pixel in any case
                options["interpolation"] = InterpolationMode(options["interpolation"])
            return self.kind(**options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"transforms: {self.name} refuses its arguments ({error}). Change them.") from None

    @property
    def name(self) -> str:
        """Its name in a config."""
        return self.kind.__name__

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        from torchvision.tv_tensors import Image, Mask

        # Tensors know no read-only memory, such as a cache's.
        image, label = (np.require(array, requirements=["C", "W"]) for array in (image, label))
        pair = Image(torch.from_numpy(image).permute(2, 0, 1)), Mask(torch.from_numpy(label))
        # Torchvision draws from the global generator, whose course must not depend on what is augmented where.
        generator = torch.default_generator
        state = generator.get_state()
        generator.manual_seed(int(rng.integers(2**63)))
        try:
            changed, mask = self.transform(*pair)
        except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error).split("\n")[0]
            raise DataError(f"transforms: {self.name} cannot change this image ({reason}). Remove it.") from None
        finally:
            generator.set_state(state)
        return np.ascontiguousarray(changed.permute(1, 2, 0).numpy()), np.ascontiguousarray(mask.numpy())

    def size_after(self, size: Size | None) -> Size | None:
        """Return the same size, unless the result's depends on chance."""
        return None if self.name == "RandomZoomOut" or self.options.get("expand") else size


def find_transforms() -> dict[str, Callable[..., Any]]:
    """Return functions that make the transforms, by name; they take what torchvision's classes do."""
    from torchvision.transforms import v2

    return {name: _maker(getattr(v2, name)) for name in (*COLORS, *MOVES)}


def _maker(kind: Any) -> Callable[..., TorchvisionTransform]:
    """Return a function that makes transforms of a class of torchvision, with its signature."""

    def make(**options: Any) -> TorchvisionTransform:
        made = TorchvisionTransform(kind, options)
        _ = made.transform  # refuses wrong arguments now, not when the first image comes
        return made

    make.__name__, make.__doc__, make.__module__ = kind.__name__, kind.__doc__, kind.__module__
    # Torchvision's annotations say less than it accepts. What is left blank is filled with the dataset's color.
    parameters = [
        parameter.replace(annotation=parameter.empty, default=None if parameter.name == "fill" else parameter.default)
        for parameter in inspect.signature(kind).parameters.values()
    ]
    make.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    make.__annotations__ = {}
    return make


TRANSFORMS.look_also_in(find_transforms)
