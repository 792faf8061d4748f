"""Simple feature pyramid of ViTDet."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape, Neck
from models.blocks import Positive
from utils.registry import NECKS

LEVELS = (2, 3, 4, 5)


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each pixel of (N, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        normed = normed.permute(0, 3, 1, 2)
        if torch.compiler.is_exporting():  # a graph for every size cannot know how single pixels lie in memory
            normed = normed.clone(memory_format=torch.contiguous_format)
        return normed


@NECKS.register()
class SimpleFPN(Neck):
    """Make levels 2 to 5, of strides 4 to 32, of the coarsest map alone; a map of level 1 passes unchanged.

    It is meant for a plain vision transformer, whose last map knows all that the others do.

    Source: Li et al. 2022, https://arxiv.org/abs/2203.16527, section 3: transposed convolutions with layer norm and
    GELU between them, or max pooling, then 1x1 and 3x3 convolutions, each with layer norm.

    Args:
        shapes: Feature maps to expect, finest first.
        channels: Width of every level.
    """

    def __init__(self, shapes: tuple[FeatureShape, ...], *, channels: Positive = 256) -> None:
        super().__init__()
        source = shapes[-1]
        passing = [shape for shape in shapes[:-1] if shape.level < LEVELS[0]]
        self.passing = len(passing)
        self.levels = nn.ModuleList(_level(source.channels, source.stride, 2**level, channels) for level in LEVELS)
        self.shapes = (*passing, *(FeatureShape(channels, 2**level, level) for level in LEVELS))

    def keep(self, levels: Collection[int]) -> None:
        for index, level in enumerate(LEVELS):
            if level not in levels:
                self.levels[index] = nn.Identity()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [*features[: self.passing], *(level(features[-1]) for level in self.levels)]


def _level(in_channels: int, stride: int, wanted: int, channels: int) -> nn.Sequential:
    """Layers from a map of `stride` to one of stride `wanted`, both powers of two."""
    layers: list[nn.Module] = []
    if wanted > stride:
        layers.append(nn.MaxPool2d(wanted // stride, ceil_mode=True))  # there may be a single pixel
    width = in_channels
    while stride > wanted:
        if layers:
            layers += [LayerNorm2d(width), nn.GELU()]
        narrower = max(1, width // 2)
        layers.append(nn.ConvTranspose2d(width, narrower, 2, stride=2))
        width = narrower
        stride //= 2
    layers += [nn.Conv2d(width, channels, 1, bias=False), LayerNorm2d(channels)]
    layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), LayerNorm2d(channels)]
    return nn.Sequential(*layers)
