"""Encoders of the timm package, where it is installed: ``"backbone": "timm/convnext_tiny"``."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride
from utils.any_size import covering, padded
from utils.errors import ConfigError, first_line
from utils.registry import BACKBONES
from utils.schema import Range, did_you_mean

STRIDES = (32, 16, 8, 4, 2)
PATCH = 16  # pixels per side of a plain transformer's patch, where the published one is no power of two
# Sizes of which both sides must be multiples, for networks that do not take every size.
MULTIPLES = (16, 32, 64, 128, 192, 224, 256, 288, 320, 384, 448, 512)
SIZES = ((256, 256), (65, 97), (97, 33))  # of the images that a network must take, padded to multiples
Maps = list[tuple[int, int]]  # channels and stride of each map


class UnsuitableMaps(ValueError):
    """A network makes maps, but none that bricks could take; the message goes on after its name."""


class Way(NamedTuple):
    """How to use a network of timm's, as `_find_way` measures it.

    Args:
        options: For `timm.create_model`, beside `features_only`.
        multiple: Both sides of an image are padded to multiples of it.
        channels_last: Whether the maps are (N, h, w, C).
        maps: Channels and stride of each map, finest first.
    """

    options: dict[str, Any]
    multiple: int
    channels_last: bool
    maps: Maps

    @property
    def is_plain(self) -> bool:
        """Whether it is a plain transformer, of one stride throughout."""
        return len({stride for _, stride in self.maps}) == 1


@BACKBONES.register_family("timm/", "name")
class TimmEncoder(Backbone):
    """Feature maps of any timm network that can make them for images of any size.

    What it makes is not taken from what timm says of it, but measured when it is built, on the meta device, without
    memory; so an output stride is accepted exactly if the network has it. A network that takes multiples of some size
    only gets padded images, and of its maps the part that covers the image is returned.

    A plain vision transformer gives its tokens after each quarter of its blocks, normalized, as levels 2 to 5, all of
    one stride: the necks `SimpleFPN` and `DPT` make a pyramid of them. Its position embedding is interpolated to the
    image. Patches of 14 pixels become 16 wide, with the public weights resampled.

    Source: https://github.com/huggingface/pytorch-image-models, ``features_only=True``.

    Args:
        name: What timm calls it; `timm.list_models()` lists them all.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        output_stride: Input pixels per pixel of the coarsest map; null is timm's, nearly always 32.
        drop_path: Share of residual branches that are left out in training, growing from 0 with depth up to this.
    """

    def __init__(
        self,
        name: str,
        in_channels: int,
        where: str = "backbone.args",
        *,
        output_stride: OutputStride | None = None,
        drop_path: Annotated[float, Range(least=0, below=1)] = 0.0,
    ) -> None:
        super().__init__()
        place = where.removesuffix(".args")
        timm = import_timm(f"timm/{name}", where=place)
        if not timm.is_model(name):
            hint = did_you_mean(name, timm.list_models())
            if not hint.startswith("Did"):  # it would list them all, which are more than a thousand
                hint = "`timm.list_models()` lists them."
            raise ConfigError(f"{place}: timm has no network called '{name}'. {hint}")
        try:
            way = _find_way(name, in_channels)
        except Exception as error:  # timm's networks fail each in its own way
            raise ConfigError(
                f"{place}: timm/{name} {_why_not(name, error)}. Choose another, such as timm/convnext_tiny."
            ) from error
        wanted = output_stride or way.maps[-1][1]
        if not _has_stride(name, in_channels, way, wanted):
            possible = [stride for stride in STRIDES if _has_stride(name, in_channels, way, stride)]
            raise ConfigError(
                f"{where}.output_stride: timm/{name} cannot have {wanted}. Choose from {', '.join(map(str, possible))}."
            )
        options = {**way.options, **_argument(way, wanted)}
        if drop_path:
            options["drop_path_rate"] = drop_path
        try:
            self.net = _create(name, in_channels, options)
        except TypeError as error:
            if not drop_path:
                raise
            raise ConfigError(f"{where}.drop_path: timm/{name} has no such option. Leave it out.") from error
        self.weights = f"timm/{name}"
        self.multiple = way.multiple
        self.channels_last = way.channels_last
        self.is_plain = way.is_plain
        self.has_tokens = way.is_plain and _has_tokens(self.net.model)
        if way.is_plain:
            self.depth = len(self.net.model.blocks)
            self.prefix = int(getattr(self.net.model, "num_prefix_tokens", 0))
        levels = [stride.bit_length() - 1 for _, stride in way.maps]
        if way.is_plain:
            levels = [*range(6 - len(levels), 6)]
        shapes = []
        for (channels, stride), level in zip(way.maps, levels, strict=True):
            shapes.append(FeatureShape(channels, min(stride, wanted), level))
        self.shapes = tuple(shapes)

    def forward(self, images: Tensor) -> list[Tensor]:
        height, width = images.shape[-2:]
        if self.multiple > 1:
            images = padded(images, self.multiple)
        maps = list(self.net(images))
        if self.channels_last:
            maps = [x.permute(0, 3, 1, 2) for x in maps]
        if self.multiple > 1:
            maps = [covering(x, shape.stride, height, width) for x, shape in zip(maps, self.shapes, strict=True)]
        return maps

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the tokens of images (N, C, H, W) before the first block, and the rotations of their positions.

        Of plain transformers only, as are the three below; both sides are multiples of the patch.
        """
        found = self.net.model._pos_embed(self.net.model.patch_embed(images))
        tokens, rotations = found if isinstance(found, tuple) else (found, None)
        return self.net.model.norm_pre(tokens), rotations

    def block(self, index: int, tokens: Tensor, rotations: Tensor | None, mask: Tensor | None = None) -> Tensor:
        """Compute a block; `mask` (N, 1, T, T) is true where a token (row) may look at another (column)."""
        options = {} if rotations is None else {"rope": rotations}
        mixed: Tensor = self.net.model.blocks[index](tokens, attn_mask=mask, **options)
        return mixed

    def last_norm(self, tokens: Tensor) -> Tensor:
        """Normalize tokens as the network ends."""
        normalized: Tensor = self.net.model.norm(tokens)
        return normalized

    def reserve(self, first: int, count: int) -> None:
        """Expect, from block `first` on, `count` tokens without a position before all others."""
        for block in self.net.model.blocks[first:]:
            if hasattr(block.attn, "num_prefix_tokens"):
                block.attn.num_prefix_tokens += count

    def layers(self) -> list[list[nn.Parameter]]:
        """Sort the parameters by depth, as timm groups them: mostly block by block."""
        timm = import_timm(self.weights or "timm", where="backbone")
        with torch.device("meta"):
            whole = timm.create_model((self.weights or "").removeprefix("timm/"))
        if not hasattr(whole, "group_matcher"):
            return super().layers()
        # Of transformers, blocks; of pyramids, stages, as in the recipes of ConvNeXt.
        groups = timm.models.group_parameters(whole, whole.group_matcher(coarse=not self.is_plain), reverse=True)
        numbers = {_plain(name): number for name, number in groups.items()}
        layers: dict[int, list[nn.Parameter]] = {}
        number = 0
        for name, parameter in self.named_parameters():
            number = numbers.get(_plain(name), number)  # what is the encoder's own belongs to what stands before it
            layers.setdefault(number, []).append(parameter)
        return [layers[number] for number in sorted(layers)]

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Find the weights of a classification network under the names that timm gives them in an encoder."""
        adapted = dict(state)
        names = {_plain(name): name for name in state}
        for key in self.state_dict():
            if key not in state and (name := names.get(_plain(key))) is not None:
                adapted[key] = state[name]
        for key, own in self.state_dict().items():
            given = adapted.get(key)
            if key.endswith("patch_embed.proj.weight") and given is not None and given.shape[2:] != own.shape[2:]:
                # Patches of another size; timm's arithmetic is of Beyer et al. 2022, https://arxiv.org/abs/2212.08013.
                resample = import_timm(self.weights or "timm", where="backbone").layers.resample_patch_embed
                adapted[key] = resample(given, list(own.shape[2:]))
        return adapted


def _plain(name: str) -> str:
    """Write what our encoder, timm's encoder and timm's classification network call a parameter in one way.

    ``net.stages_0.blocks.1.norm.weight`` is also ``stages_0.blocks...`` and ``stages.0.blocks...``.
    """
    for prefix in ("net.", "model.", "body."):
        name = name.removeprefix(prefix)
    return name.replace(".", "_")


def _has_tokens(model: Any) -> bool:
    """Whether the blocks of a plain transformer can be called one by one, with the same rotations for all."""
    parts = ("_pos_embed", "norm_pre", "blocks", "norm", "num_prefix_tokens")
    return all(hasattr(model, part) for part in parts) and not getattr(model, "rope_mixed", False)


def _why_not(name: str, error: Exception) -> str:
    """Say why a network cannot be used, in words that go on after its name; `error` is from `_find_way`."""
    if isinstance(error, UnsuitableMaps):
        return str(error)
    if "features_only" in str(error):
        return "makes no feature maps"
    published = import_timm(f"timm/{name}", where="backbone").get_pretrained_cfg(name)
    if published is None:
        return f"fails ({first_line(error)})"
    height, width = published.input_size[-2:]
    return f"is made for images of {height}x{width} pixels and does not take every other size"


def import_timm(name: str, *, where: str) -> Any:
    """Import the package timm.

    Raises:
        ConfigError: It is not installed; `name`, at `where`, needs it.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"{where}: '{name}' needs timm, which is not installed. `pip install timm`.") from error
    return timm


def _create(name: str, in_channels: int, options: Mapping[str, Any]) -> Any:
    """Make a network that gives maps; `options` are those of `timm.create_model`, and "blocks" for `_Tokens`."""
    timm = import_timm(f"timm/{name}", where="backbone")
    network: Any
    if "blocks" in options:
        others = {key: value for key, value in options.items() if key != "blocks"}
        network = _Tokens(timm.create_model(name, in_chans=in_channels, num_classes=0, **others), options["blocks"])
    else:
        network = timm.create_model(name, in_chans=in_channels, features_only=True, **options)
        model = getattr(network, "model", None)
        if getattr(model, "pos_embed_win", None) is not None and hasattr(model, "reroll"):
            network = _Hiera(model)
    for module in network.modules():
        if hasattr(module, "strict_img_size"):
            module.strict_img_size = False  # whether another size does harm is measured
    return network


class _Hiera(nn.Module):
    """The maps of a Hiera whose position embedding fits every size, but which keeps the size it was made for.

    It sorts its tokens by windows, so that pooling takes neighbors in memory, and has noted how.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        model, size = self.model, images.shape[-2:]
        tokens = [pixels // stride for pixels, stride in zip(size, model.patch_stride, strict=True)]
        model.tokens_spatial_shape = tokens
        model.mask_spatial_shape = [count // unit for count, unit in zip(tokens, model.mask_unit_size, strict=True)]
        model.unroll.size = tokens
        schedule = model.unroll.schedule
        model.reroll = type(model.reroll)(size, model.patch_stride, schedule, model.stage_ends, model.q_pool)
        maps: list[Tensor] = model.forward_intermediates(images, output_fmt="NCHW", intermediates_only=True)
        return maps


class _Tokens(nn.Module):
    """The tokens of a plain transformer after some of its blocks, as maps (N, C, h, w), all through its last norm."""

    def __init__(self, model: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.blocks = list(blocks)
        model.prune_intermediate_layers(self.blocks, prune_norm=False, prune_head=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(
            images, indices=self.blocks, norm=True, output_fmt="NCHW", intermediates_only=True
        )
        return maps


def _argument(way: Way, stride: int) -> dict[str, int]:
    return {} if stride == way.maps[-1][1] else {"output_stride": stride}


def _has_stride(name: str, in_channels: int, way: Way, stride: int) -> bool:
    """Whether the network, told to have that output stride, has it, by dilation and not by leaving stages out."""
    if not (argument := _argument(way, stride)):
        return True
    try:
        network = _create_on_meta(name, in_channels, {**way.options, **argument})
        maps, _ = _measure(network, in_channels, way.multiple)
    except Exception:  # it knows no such option, or not that value
        return False
    return maps == [(channels, min(step, stride)) for channels, step in way.maps]


@functools.cache
def _find_way(name: str, in_channels: int) -> Way:
    """Find out how the network takes images of any size, padded as little as possible.

    Raises:
        Exception: It does not; timm's networks fail each in its own way.
    """
    with suppress(Exception):
        return _try(name, in_channels, {"dynamic_img_size": True})
    return _try(name, in_channels, {})


def _try(name: str, in_channels: int, options: Mapping[str, Any]) -> Way:
    """Measure the network made with `options`, and with what its maps then show that it needs.

    1. Patches whose side is no power of two become `PATCH` wide.
    2. The smallest padding with which images of any size go through is found.
    3. Maps of one stride are those of a plain transformer: four blocks are taken.
    4. Of several maps of one stride, the last is; those of stride 1 are not.
    5. After 3 or 4, the maps are measured once more.

    Raises:
        Exception: It does not take images of any size, or makes no maps of strides 2 to 32 of them.
    """
    wanted = dict(options)
    network = _create_on_meta(name, in_channels, wanted)
    patch = _patch_of(network)
    if patch is not None and patch & (patch - 1):  # no power of two
        # As many patches as published, so that the position embedding fits as it is.
        grid = network.model.patch_embed.grid_size
        wanted |= {"patch_size": PATCH, "img_size": tuple(PATCH * count for count in grid)}
        network = _create_on_meta(name, in_channels, wanted)
    multiple = _smallest_multiple(network, in_channels)
    maps, channels_last = _measure(network, in_channels, multiple)
    strides = [stride for _, stride in maps]
    if len(set(strides)) == 1 and strides[0] in STRIDES:
        depth = len(network.feature_info.info)
        wanted["blocks"] = sorted({depth * quarter // 4 - 1 for quarter in range(1, 5)} - {-1})
    elif strides != sorted(set(strides) & set(STRIDES)):
        # The last of several maps of one stride; stems may offer one of stride 1.
        kept = [i for i, stride in enumerate(strides) if stride in STRIDES and stride not in strides[i + 1 :]]
        if kept[-1:] != [len(strides) - 1] or len(kept) < 2:
            found = ", ".join(map(str, strides))
            raise UnsuitableMaps(f"makes maps of strides {found}, but only 2, 4, 8, 16, 32 are of use")
        wanted["out_indices"] = kept
    if wanted.keys() & {"blocks", "out_indices"}:
        network = _create_on_meta(name, in_channels, wanted)
        maps, channels_last = _measure(network, in_channels, multiple)
    return Way(wanted, multiple, channels_last, maps)


def _patch_of(network: nn.Module) -> int | None:
    """Side of a plain transformer's patches in pixels; None for other networks."""
    embed = getattr(getattr(network, "model", None), "patch_embed", None)
    size = getattr(embed, "patch_size", None)
    return size[0] if isinstance(size, tuple) and hasattr(embed, "grid_size") else None


def _create_on_meta(name: str, in_channels: int, options: Mapping[str, Any]) -> Any:
    with torch.device("meta"):
        return _create(name, in_channels, options).eval()


def _smallest_multiple(network: nn.Module, in_channels: int) -> int:
    """Find the smallest number to multiples of which images must be padded; 1 if they need not be.

    Raises:
        Exception: There is none; what the network says of images of odd sizes.
    """
    reason: Exception | None = None
    for multiple in (1, *MULTIPLES):
        try:
            _measure(network, in_channels, multiple)
        except Exception as error:
            reason = reason or error
        else:
            return multiple
    assert reason is not None
    raise reason


def _measure(network: nn.Module, in_channels: int, multiple: int) -> tuple[Maps, bool]:
    """Measure channels and stride of each map of images padded to `multiple`, and whether channels come last.

    Raises:
        UnsuitableMaps: Maps are not (N, C, h, w) or (N, h, w, C), or do not follow the size of the image.
        Exception: The network refuses a size.
    """
    sizes = []
    seen = []
    for index, (height, width) in enumerate(SIZES):
        size = (height + -height % multiple, width + -width % multiple)
        if multiple > 1:
            # A large multiple must not make all of them one.
            size = (size[0] + index * multiple, size[1] + 2 * index * multiple)
        sizes.append(size)
        with torch.device("meta"), torch.no_grad():
            seen.append([tuple(x.shape) for x in network(torch.empty(2, in_channels, *size))])
    channels_last = all(len({shape[-1] for shape in shapes}) == 1 for shapes in zip(*seen, strict=True))
    maps = []
    for shapes in zip(*seen, strict=True):
        channels = shapes[0][-1 if channels_last else 1]
        plane = slice(1, 3) if channels_last else slice(2, 4)
        stride = sizes[0][0] // shapes[0][plane][0]
        for shape, size in zip(shapes, sizes, strict=True):
            if len(shape) != 4 or not _covers(shape[plane], size, stride, exactly=multiple > 1):
                raise UnsuitableMaps(f"makes a map {list(shape)} of an image of {size[0]}x{size[1]} pixels")
        maps.append((channels, stride))
    return maps, channels_last


def _covers(found: Sequence[int], size: Sequence[int], stride: int, *, exactly: bool) -> bool:
    """Whether a map of `found` rows and columns is one of `stride`, of an image of `size` pixels."""
    for count, pixels in zip(found, size, strict=True):
        if count not in ((pixels / stride,) if exactly else (pixels // stride, math.ceil(pixels / stride))):
            return False
    return True
