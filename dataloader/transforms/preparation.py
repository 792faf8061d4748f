"""How validation prepared its images, kept in the checkpoint, so that prediction prepares others alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from base.base_dataset import Size, Transform
from dataloader.transforms.chain import (
    Chain,
    ChainOptions,
    Compose,
    ResizeOptions,
    ScaleOptions,
    build_chain,
)
from dataloader.transforms.geometry import as_size
from utils.config import first_training_set
from utils.errors import ConfigError
from utils.predict import Prepare
from utils.registry import TRANSFORMS
from utils.schema import Component, check_arguments, parameters_of, to_json

# Transforms of a list that validation may hold and that say nothing about how to prepare a whole image: what they do
# is random, or cuts a part out.
OF_TRAINING = frozenset(
    {
        "CenterCrop",
        "ColorJitter",
        "GaussianBlur",
        "RandomCrop",
        "RandomHorizontalFlip",
        "RandomRotate",
        "RandomScale",
        "RandomSizedCrop",
        "RandomVerticalFlip",
        "SlidingCrop",
    }
)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """What is done to a whole image before it is predicted; at most one of the three.

    Args:
        resize: Resize it so.
        cover: Resize it, keeping proportions, until it just covers this height and width.
        transforms: Apply these in turn.
    """

    resize: ResizeOptions | None = None
    cover: Size | None = None
    transforms: tuple[Component, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.resize or self.cover or self.transforms)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Prepare an image (H, W, C)."""
        if not self:
            return image
        label = np.zeros(image.shape[:2], np.uint8)  # transforms take pairs
        prepared, _ = self._transform(image.shape[:2])(image, label, np.random.default_rng(0))
        return prepared

    def _transform(self, size: tuple[int, ...]) -> Transform:
        """Return what prepares images of `size`: the very steps that validation takes, without its crop."""
        if self.transforms:
            steps = (TRANSFORMS.build(step, where="preprocessing.transforms") for step in self.transforms)
            return Compose(tuple(steps))
        if self.cover:
            factor = max(self.cover[0] / size[0], self.cover[1] / size[1])
            scaled = max(1, round(size[0] * factor)), max(1, round(size[1] * factor))
            return Chain(crop=None, resize=ResizeOptions(size=scaled))
        transform = build_chain(ChainOptions(val=True, resize=self.resize), (0,), where="preprocessing")
        assert transform is not None
        return transform

    @property
    def size(self) -> Size | str:
        """The size that images are predicted at, as a stamp on figures names it."""
        if self.resize is not None:
            ((name, value),) = [(k, v) for k, v in to_json(self.resize).items() if v is not None]
            return as_size(tuple(value)) if name == "size" else f"{name} {value}"
        if self.cover is not None:
            return f"cover {self.cover[0]}x{self.cover[1]}"
        if self.transforms:
            return "transforms " + ", ".join(step.type for step in self.transforms)
        return "native"

    def to_json(self) -> dict[str, Any]:
        """Give it in plain values, for a checkpoint."""
        return {
            "resize": to_json(self.resize) if self.resize else None,
            "cover": list(self.cover) if self.cover else None,
            "transforms": [to_json(step) for step in self.transforms],
        }


@dataclass(frozen=True)
class ImageAlone:
    """A transform that prepares the image and leaves its label as it is.

    Args:
        prepare: Prepares an image.
    """

    prepare: Prepare

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.prepare(image), label


def preparation_of(chain: ChainOptions) -> Preparation:
    """Say how a loader's chain prepares whole images: what is random is left out, and so are crops."""
    if chain.transforms is not None:
        return Preparation(transforms=tuple(step for step in chain.transforms if is_repeatable(step)))
    if chain.resize is not None:
        return Preparation(resize=chain.resize)
    if chain.base_size is not None:
        by_short_side = getattr(chain.scale, "side", "long") == "short"
        side = chain.base_size
        return Preparation(resize=ResizeOptions(short_side=side) if by_short_side else ResizeOptions(long_side=side))
    if chain.val and chain.crop_size is not None:
        return Preparation(cover=as_size(chain.crop_size))
    return Preparation()


def scale_range(chain: ChainOptions, size: Size) -> tuple[float, float] | None:
    """Return the smallest and largest factor by which a chain resizes images of `size`; None if it does not say."""
    if chain.transforms is not None:
        return None
    preparation = preparation_of(chain)
    fy, fx = preparation.resize.factors(*size) if preparation.resize else (1.0, 1.0)
    if preparation.cover:
        fy = fx = max(preparation.cover[0] / size[0], preparation.cover[1] / size[1])
    factor = math.sqrt(fy * fx)
    low, high = 1.0, 1.0
    if chain.augment and chain.scale is not False:
        low, high = chain.scale.range if isinstance(chain.scale, ScaleOptions) else ScaleOptions().range
    return factor * low, factor * high


def is_repeatable(step: Component) -> bool:
    """Whether a transform does to every image what it did in validation, and keeps all of it."""
    if step.type in OF_TRAINING:
        return False
    is_random = step.type.startswith("Random") or step.type in ("GaussianNoise", "ElasticTransform")
    return not is_random or step.args.get("p") == 1


def read_preparation(about: Mapping[str, Any]) -> Preparation:
    """Read how a checkpoint wants images to be prepared.

    Args:
        about: What the checkpoint says about itself; early ones say it in their config only.

    Raises:
        ConfigError: It cannot be understood.
    """
    stated = about.get("preprocessing")
    if stated is None:
        resolved = about["config"]
        return preparation_of(validated_chain(resolved)) if "train_loader" in resolved else Preparation()
    chain = _chain_of({key: stated[key] for key in ("resize", "transforms") if stated.get(key)})
    cover = stated.get("cover")
    return Preparation(
        resize=chain.resize,
        cover=(int(cover[0]), int(cover[1])) if cover else None,
        transforms=tuple(chain.transforms or ()),
    )


def validated_chain(resolved: Mapping[str, Any]) -> ChainOptions:
    """Find the chain of what was validated on in a resolved config: the validation set, or what was held out.

    Raises:
        ConfigError: It cannot be understood.
    """
    section = resolved.get("val_loader") or first_training_set(resolved)
    chain = _chain_of(section["args"])
    if resolved.get("val_loader"):
        return chain
    if not resolved["trainer"].get("val", True):
        return replace(chain, crop_size=None, val=False)  # nothing was validated: as training begins, before it crops
    crop = section["args"].get("val_crop_size", chain.crop_size)  # early runs cropped as in training
    return replace(chain.for_validation(), crop_size=as_size(tuple(crop)) if isinstance(crop, list) else crop)


def training_crop(resolved: Mapping[str, Any]) -> Size | None:
    """Return the height and width that training's images had, all of them, in a resolved config; None if not known."""
    section = first_training_set(resolved)
    if section is None:
        return None
    try:
        return _chain_of(section["args"]).crop
    except ConfigError:  # a transform of a module that was not imported
        return None


def _chain_of(args: Mapping[str, Any]) -> ChainOptions:
    """Read the options of a chain in the arguments of a loader.

    Raises:
        ConfigError: They cannot be understood.
    """
    problems: list[str] = []
    given = {key: value for key, value in args.items() if key in parameters_of(ChainOptions)}
    chain = ChainOptions(**check_arguments(ChainOptions, given, where="preprocessing", problems=problems))
    if problems:
        raise ConfigError(*problems)
    return chain
