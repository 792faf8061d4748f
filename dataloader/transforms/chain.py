"""From a loader's flags (augment, crop_size, flip ...) to one transform."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import numpy as np

from base.base_dataset import Size, Transform, size_after
from dataloader.transforms.colors import ColorJitter, GaussianBlur
from dataloader.transforms.geometry import (
    Degrees,
    Factor,
    Pair,
    Probability,
    Side,
    as_size,
    random_offset,
    warp,
)
from utils.classes import IGNORE, count_values
from utils.errors import ConfigError
from utils.registry import MIXES, TRANSFORMS
from utils.schema import Between, Component, join


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """How much images are resized at random; their proportions are kept.

    Args:
        range: Smallest and largest factor, of the size that `base_size` or `resize` gives, else of the image's own.
        step: Distance of the factors that are drawn, such as 0.25; null draws any in between.
        side: Which side `base_size` means.
    """

    range: tuple[Factor, Factor] = (0.5, 2.0)
    step: Annotated[float, Between(0.001, 100)] | None = None
    side: Literal["long", "short"] = "long"

    def draw(self, rng: np.random.Generator) -> float:
        """Draw a factor."""
        low, high = self.range
        if self.step is None:
            return float(rng.uniform(low, high))
        return low + self.step * float(rng.integers(math.floor((high - low) / self.step + 1e-6) + 1))


@dataclass(frozen=True, kw_only=True)
class ResizeOptions:
    """The size that every image gets before anything else; give one of the three.

    Args:
        short_side: Length of the short side, in pixels; proportions are kept.
        long_side: Length of the long side; proportions are kept.
        size: Height and width, whatever the proportions.
    """

    short_side: Side | None = None
    long_side: Side | None = None
    size: tuple[Side, Side] | None = None

    def factors(self, height: int, width: int) -> tuple[float, float]:
        """Return by what an image of this size is to be stretched, vertically and horizontally."""
        if self.size is not None:
            return self.size[0] / height, self.size[1] / width
        factor = 1.0
        if self.short_side is not None:
            factor = self.short_side / min(height, width)
        elif self.long_side is not None:
            factor = self.long_side / max(height, width)
        return factor, factor


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Resize, scale, rotate, crop and mirror in one warp, then change colors and blur.

    Args:
        crop: Height and width of the result; None for as large as the image has become.
        resize: Size before scaling; None for the image's own.
        cover: Resize such that the image just covers the crop, instead.
        scale: Random scale; None for none.
        degrees: Largest rotation, either way.
        quarters: Turn by 0, 90, 180 or 270 degrees.
        flip: Share of images to mirror.
        center: Crop the middle instead of a random place.
        rare: Share of crops that are placed to show a class drawn from those of the image, before rotation.
        color_jitter: Change of colors; None for none.
        blur: Blur; None for none.
        fill: Raw value of image pixels outside the source, by channel; if empty, the mean of those that are shown.
        reduces: Decode less of JPEG images that shrink.
    """

    crop: tuple[int, int] | None
    resize: ResizeOptions | None = None
    cover: bool = False
    scale: ScaleOptions | None = None
    degrees: float = 0.0
    quarters: bool = False
    flip: float = 0.0
    center: bool = False
    rare: float = 0.0
    color_jitter: ColorJitter | None = None
    blur: GaussianBlur | None = None
    fill: tuple[float, ...] = (0,)
    reduces: bool = False

    cuts: ClassVar[bool] = True  # it takes images that are read where they are cut

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        height, width = label.shape
        fy, fx = self.resize.factors(height, width) if self.resize else (1.0, 1.0)
        if self.cover and self.crop:
            fy = fx = max(self.crop[0] / height, self.crop[1] / width)
        factor = self.scale.draw(rng) if self.scale else 1.0
        scaled = max(1, round(height * fy * factor)), max(1, round(width * fx * factor))
        crop = self.crop or scaled
        # The order of the draws is part of what a seed means: quarters, offset, angle, flip, then colors and blur.
        turns = int(rng.integers(4)) if self.quarters else 0
        crop = crop if turns % 2 == 0 else (crop[1], crop[0])
        offset = self._offset(label, scaled, crop, rng)
        angle = float(rng.uniform(-self.degrees, self.degrees)) if self.degrees else 0.0
        flip = bool(self.flip and rng.random() < self.flip)
        change = partial(self._change, rng) if self.color_jitter or self.blur else None
        image, label = warp(
            image, label, scaled=scaled, crop=crop, offset=offset, angle=angle, flip=flip, fill=self.fill, change=change
        )
        if turns:
            image, label = (np.ascontiguousarray(np.rot90(array, turns)) for array in (image, label))
        return image, label

    def _change(self, rng: np.random.Generator, image: np.ndarray, label: np.ndarray) -> Pair:
        for step in (self.color_jitter, self.blur):
            if step is not None:
                image, label = step(image, label, rng)
        return image, label

    def _offset(
        self, label: np.ndarray, scaled: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator
    ) -> tuple[int, int]:
        spare = max(0, scaled[0] - crop[0]), max(0, scaled[1] - crop[1])
        if self.center:
            return spare[0] // 2, spare[1] // 2
        if self.rare and rng.random() < self.rare:
            return _offset_of_a_class(np.asarray(label), scaled, crop, spare, rng)
        return random_offset(spare, rng)


def _offset_of_a_class(
    label: np.ndarray,
    scaled: tuple[int, int],
    crop: tuple[int, int],
    spare: tuple[int, int],
    rng: np.random.Generator,
) -> tuple[int, int]:
    """Draw the offset of a crop that shows a random pixel of a class; each class of `label` is as likely."""
    counts = count_values(label)[:IGNORE]
    if not counts.any():
        return random_offset(spare, rng)
    chosen = rng.choice(np.flatnonzero(counts))
    pixel = np.flatnonzero(label == chosen)[rng.integers(counts[chosen])]
    position = divmod(int(pixel), label.shape[1])  # its row and column
    offset = []
    for axis in (0, 1):
        at = int((position[axis] + 0.5) * scaled[axis] / label.shape[axis])  # likewise in the resized image
        first, last = max(0, at - crop[axis] + 1), min(spare[axis], at)
        offset.append(int(rng.integers(first, last + 1)))
    return offset[0], offset[1]


@dataclass(frozen=True)
class Compose:
    """Apply one transform after the other."""

    steps: tuple[Transform, ...]

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Pair:
        for step in self.steps:
            image, label = step(image, label, rng)
        return image, label


@dataclass(frozen=True, kw_only=True)
class ChainOptions:
    """What a loader's arguments say about augmentation and size.

    Args:
        augment: Augment at random, as `scale`, `flip`, `rotate`, `blur` and `color_jitter` say; for training.
        val: Resize until the image just covers `crop_size`, and crop the middle; nothing random. Without
            `crop_size`, images keep their size.
        base_size: Length of the long side before random scaling, in pixels; null for the image's own.
        crop_size: Side of a square or [height, width] of what a model gets; null for whole images.
        val_crop_size: With `val_split`, crop the middle of the images held out, likewise, where whole ones take too
            much memory; null validates whole images.
        scale: Random scale; with `augment`, 0.5 to 2 if not given.
        flip: Mirror half of the images, or this share.
        rotate: Turn by up to 10 degrees either way, or by as many as given; "quarters" turns by 0, 90, 180 or 270
            degrees, for what has neither above nor below, such as images from the air or of a microscope.
        blur: Blur half of the images, or as given.
        resize: Resize all images first.
        color_jitter: Change brightness, contrast and saturation, or as given.
        rare_crop: Place half of the crops, or this share, where they show a class drawn from those of the image, each
            as likely however small it is, so that rare classes are seen more often.
        transforms: Transforms to apply in this order, instead of all of the above.
        mix: Paste a part of another image of this set into some, after both have been augmented.
        reduced_jpeg: Decode JPEG images at a half, a quarter or an eighth of their size where they shrink to that or
            less, in a quarter to three quarters of the time. Pixels are about the same, not to the bit; a `cache` keeps
            whole images, so that it cannot be had besides.
    """

    augment: bool = False
    val: bool = False
    base_size: Side | None = None
    crop_size: Side | tuple[Side, Side] | None = None
    val_crop_size: Side | tuple[Side, Side] | None = None
    scale: bool | ScaleOptions | None = None
    flip: bool | Probability | None = None
    rotate: bool | Degrees | Literal["quarters"] | None = None
    blur: bool | GaussianBlur | None = None
    resize: ResizeOptions | None = None
    color_jitter: bool | ColorJitter | None = None
    rare_crop: bool | Probability | None = None
    transforms: list[Annotated[Component, TRANSFORMS]] | None = None
    mix: Annotated[Component, MIXES] | None = None
    reduced_jpeg: bool | None = None

    @property
    def crop(self) -> Size | None:
        """Height and width that every image will have; None if they differ from image to image or are not known."""
        if self.transforms is None:
            if self.crop_size is None:
                return self.resize.size if self.resize and not self.augment else None
            return as_size(self.crop_size)
        size: Size | None = None
        for step in _steps(self.transforms, "transforms"):
            size = size_after(step, size)
        return size

    @property
    def repeats(self) -> bool:
        """Whether an image comes out the same again, or in one of a few ways; no if a transform does not say so."""
        if self.mix is not None:
            return False
        if self.transforms is None:
            return not self.augment and (self.val or self.crop_size is None)
        return all(getattr(step, "repeats", False) for step in _steps(self.transforms, "transforms"))

    def for_validation(self) -> ChainOptions:
        """Return the options for images held out of a training set: whole unless asked otherwise, nothing random."""
        return ChainOptions(val=True, crop_size=self.val_crop_size, resize=self.resize)


T = TypeVar("T")
# What only `augment` turns on.
_RANDOM = ("base_size", "scale", "flip", "rotate", "blur", "color_jitter", "rare_crop", "mix", "reduced_jpeg")


def chain_problems(options: ChainOptions, where: str) -> list[str]:
    """Say what contradicts itself or would have no effect in `options`, which stand at `where` in the config."""
    if options.transforms is not None:
        return _list_problems(options, where)
    problems: list[str] = []
    if options.augment and options.val:
        problems.append(f'{join(where, "val")}: contradicts "augment": true. Set one of them to false.')
    elif not options.augment:
        idle = [name for name in _given(options) if name in _RANDOM]
        problems += [f'{join(where, name)}: has no effect. Set "augment": true, or remove it.' for name in idle]
    elif options.crop_size is None:
        problems.append(
            f'{join(where, "crop_size")}: missing. Give a size: with "augment": true, images differ in size '
            f"and would not fit into one batch."
        )
    problems += _reversed_ranges(options.scale, join(where, "scale"))
    problems += _reversed_ranges(options.blur, join(where, "blur"))
    if options.resize is not None:
        said = _given(options.resize)
        if len(said) != 1:
            problems.append(
                f"{join(where, 'resize')}: {' and '.join(said) or 'nothing'} given. "
                f"Give one of short_side, long_side, size."
            )
        if options.base_size is not None:
            problems.append(f'{join(where, "base_size")}: contradicts "resize". Give one of them.')
    return problems


def _list_problems(options: ChainOptions, where: str) -> list[str]:
    """Say what is wrong with the option `transforms`, and with others that have no effect beside it."""
    problems = [
        f'{join(where, name)}: has no effect beside "transforms". Remove it, or say it as a transform.'
        for name in _given(options)
        if name not in ("transforms", "val_crop_size", "mix")
    ]
    key = join(where, "transforms")
    try:
        for index, step in enumerate(_steps(options.transforms or [], key)):
            problems += _reversed_ranges(step, f"{key}[{index}].args")
    except ConfigError as error:
        problems += error.problems
    return problems


def _given(options: ChainOptions | ResizeOptions) -> list[str]:
    """Return the names of options that ask for something."""
    return [f.name for f in fields(options) if getattr(options, f.name) not in (None, False)]


def _reversed_ranges(step: object, where: str) -> list[str]:
    problems = []
    for name in ("range", "sigma", "area", "ratio"):
        pair = getattr(step, name, None)
        if pair is not None and pair[0] > pair[1]:
            problems.append(f"{join(where, name)}: its first number is the larger one. Exchange them.")
    return problems


def build_chain(options: ChainOptions, fill: tuple[float, ...], *, where: str) -> Transform | None:
    """Build the transform that `options` describe; None if images stay as they are.

    Args:
        options: Checked by `chain_problems`.
        fill: Raw value (0 to 255 for 8-bit images) of image pixels outside the source, by channel; if empty, the mean
            of those that are shown.
        where: Path of the options in the config, for errors.

    Raises:
        ConfigError: The options contradict themselves.
    """
    if problems := chain_problems(options, where):
        raise ConfigError(*problems)
    if options.transforms is not None:
        steps = _steps(options.transforms, join(where, "transforms"))
        return Compose(tuple(_with_fill(step, fill) for step in steps))
    if options.augment:
        return _augmentation(options, fill)
    if options.crop_size is None and options.resize is None:
        return None
    return Chain(
        crop=None if options.crop_size is None else as_size(options.crop_size),
        resize=options.resize,
        cover=options.val and options.resize is None,
        center=options.val,
        fill=fill,
    )


def _augmentation(options: ChainOptions, fill: tuple[float, ...]) -> Chain:
    """Build the random chain; an option that is true stands for its default."""
    scale = ScaleOptions() if options.scale is None else _or_default(options.scale, ScaleOptions())
    resize = options.resize
    if options.base_size is not None:
        short = scale is not None and scale.side == "short"
        base = options.base_size
        resize = ResizeOptions(short_side=base) if short else ResizeOptions(long_side=base)
    degrees = 0.0 if options.rotate == "quarters" else _or_default(options.rotate, 10.0)
    return Chain(
        crop=options.crop,
        resize=resize,
        scale=scale,
        degrees=float(degrees or 0),
        quarters=options.rotate == "quarters",
        flip=float(_or_default(options.flip, 0.5) or 0),
        rare=float(_or_default(options.rare_crop, 0.5) or 0),
        color_jitter=_or_default(options.color_jitter, ColorJitter()),
        blur=_or_default(options.blur, GaussianBlur()),
        fill=fill,
        reduces=bool(options.reduced_jpeg),
    )


def _or_default(option: bool | T | None, default: T) -> T | None:
    """Return what an option says: `default` for true, None for false."""
    if option is True:
        return default
    return None if option is None or option is False else option


def _with_fill(step: Any, fill: tuple[float, ...]) -> Any:
    """Return `step` with `fill`, if it has a field of this name that was left open."""
    return replace(step, fill=fill) if getattr(step, "fill", fill) is None else step


def _steps(components: Sequence[Component], where: str) -> list[Any]:
    return [TRANSFORMS.build(step, where=f"{where}[{i}]") for i, step in enumerate(components)]
