"""Encoders of the timm package, where it is installed: ``"backbone": "timm/convnext_tiny"``."""

from __future__ import annotations

import functools
import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride
from utils.errors import ConfigError, first_line
from utils.registry import BACKBONES
from utils.schema import did_you_mean

STRIDES = (32, 16, 8, 4, 2)
Measured = list[tuple[int, int]]  # channels and stride of each map


@BACKBONES.register_family("timm/", "name")
class TimmEncoder(Backbone):
    """Feature maps of any timm network that makes some for images of any size.

    What it makes is not taken from what timm says of it, but measured when it is built, on the meta device, without
    memory; so an output stride is accepted exactly if the network has it.

    Source: https://github.com/huggingface/pytorch-image-models, ``features_only=True``.

    Args:
        name: What timm calls it; `timm.list_models()` lists them all.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        output_stride: Input pixels per pixel of the coarsest map; null is timm's, nearly always 32.
    """

    def __init__(
        self, name: str, in_channels: int, where: str = "backbone.args", *, output_stride: OutputStride | None = None
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
            published = _measure(name, in_channels)
        except Exception as error:  # timm's networks fail each in its own way
            raise ConfigError(
                f"{place}: timm/{name} does not make one map for each stride, of images of any size "
                f"({first_line(error)}). "
                f"Choose another, such as timm/convnext_tiny."
            ) from error
        wanted = output_stride or published[-1][1]
        if not _has_stride(name, in_channels, published, wanted):
            possible = [stride for stride in STRIDES if _has_stride(name, in_channels, published, stride)]
            raise ConfigError(
                f"{where}.output_stride: timm/{name} cannot have {wanted}. Choose from {', '.join(map(str, possible))}."
            )
        self.net = _create(name, in_channels, _argument(published, wanted))
        self.weights = f"timm/{name}"
        self.shapes = tuple(
            FeatureShape(channels, min(stride, wanted), stride.bit_length() - 1) for channels, stride in published
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        return list(self.net(images))

    def layers(self) -> list[list[nn.Parameter]]:
        """Sort the parameters by depth, as timm groups them: mostly block by block."""
        timm = import_timm(self.weights or "timm", where="backbone")
        with torch.device("meta"):
            whole = timm.create_model((self.weights or "").removeprefix("timm/"))
        if not hasattr(whole, "group_matcher"):
            return super().layers()
        numbers = timm.models.group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
        known = {name: numbers.get(_in_whole(name)) for name, _ in self.named_parameters()}
        last = max(number for number in known.values() if number is not None)
        layers: dict[int, list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            number = known[name]
            layers.setdefault(last if number is None else number, []).append(parameter)
        return [layers[number] for number in sorted(layers)]

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Find the weights of a classification network under the names that timm gives them in an encoder."""
        adapted = dict(state)
        for key in self.state_dict():
            # As our encoder has it, as timm's encoder has it, as the classification network has it.
            for name in (key, key.removeprefix("net."), _in_whole(key)):
                if name in state:
                    adapted[key] = state[name]
                    break
        return adapted


def _in_whole(key: str) -> str:
    """Find the name in a classification network of timm's of what is called `key` in our encoder."""
    return re.sub(r"^([a-z]\w*?)_(\d+)\.", r"\1.\2.", key.removeprefix("net.").removeprefix("model."))


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


def _create(name: str, in_channels: int, options: dict[str, int]) -> nn.Module:
    timm = import_timm(f"timm/{name}", where="backbone")
    network: nn.Module = timm.create_model(name, in_chans=in_channels, features_only=True, **options)
    return network


def _argument(published: Measured, stride: int) -> dict[str, int]:
    return {} if stride == published[-1][1] else {"output_stride": stride}


def _has_stride(name: str, in_channels: int, published: Measured, stride: int) -> bool:
    """Whether the network, told to have that output stride, has it, by dilation and not by leaving stages out."""
    try:
        measured = _measure(name, in_channels, **_argument(published, stride))
    except Exception:  # it knows no such option, or not that value
        return False
    return measured == [(channels, min(step, stride)) for channels, step in published]


@functools.cache
def _measure(name: str, in_channels: int, **options: int) -> Measured:
    """Measure the channels and the stride of each map that the network makes.

    Raises:
        ValueError: They are not a pyramid of maps (N, C, H, W), or depend on the image's size in another way.
    """
    with torch.device("meta"), torch.no_grad():
        network = _create(name, in_channels, options).eval()
        square = network(torch.empty(1, in_channels, 256, 256))
        odd = network(torch.empty(1, in_channels, 65, 97))
    measured = []
    for first, second in zip(square, odd, strict=True):
        stride = 256 // first.shape[-1]
        if first.dim() != 4 or first.shape[-2:] != (256 // stride,) * 2 or stride * first.shape[-1] != 256:
            raise ValueError(f"a map of 256x256 pixels is {list(first.shape)}")
        for size, found in zip((65, 97), second.shape[-2:], strict=True):
            if found not in (size // stride, math.ceil(size / stride)):
                raise ValueError(f"a map of 65x97 pixels is {list(second.shape)}")
        measured.append((first.shape[1], stride))
    strides = [stride for _, stride in measured]
    if not options and strides != sorted(set(strides) & {2, 4, 8, 16, 32}):
        raise ValueError(f"the strides of its maps are {', '.join(map(str, strides))}")
    return measured
