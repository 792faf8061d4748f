"""Reassembling and fusion of DPT."""

from __future__ import annotations

from collections.abc import Collection
from typing import cast

from torch import Tensor, nn

from base.base_model import FeatureShape, Neck, at_level
from models.blocks import Positive, resize_like
from utils.registry import NECKS

LEVELS = (2, 3, 4, 5)


class _Residual(nn.Module):
    """Add two convolutions of a map to it, each behind a rectifier and with batch norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            # The rectifier must not work in place: the map is added.
            layers += [nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.layers(x)
        return added


class _Level(nn.Module):
    """Bring the map of one level to its stride and width, and fuse it with the next coarser one."""

    def __init__(self, shape: FeatureShape, width: int, channels: int) -> None:
        super().__init__()
        self.reassemble = nn.Sequential(
            nn.Conv2d(shape.channels, width, 1),
            *_resizing(width, shape.stride, 2**shape.level),
            nn.Conv2d(width, channels, 3, padding=1, bias=False),
        )
        is_coarsest = shape.level == LEVELS[-1]
        self.refine = nn.Identity() if is_coarsest else _Residual(channels)
        self.fuse = nn.Sequential(_Residual(channels), nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, coarser: Tensor | None) -> Tensor:
        x = self.refine(self.reassemble(x))
        if coarser is not None:
            x = x + resize_like(coarser, x)
        fused: Tensor = self.fuse(x)
        return fused


@NECKS.register()
class DPT(Neck):
    """Bring levels 2 to 5 to strides 4 to 32, and add each to the finer ones; a map of level 1 passes unchanged.

    It is meant for a plain vision transformer, whose maps are all of one stride. With ``FCNHead`` of level 2 behind
    it, it is DPT as published, but that there the map is enlarged once more before the head's convolution.

    Source: Ranftl et al. 2021, https://arxiv.org/abs/2103.13413, section 3: the class token is left out ("ignore").

    Args:
        shapes: Feature maps to expect, finest first; levels 2 to 5.
        channels: Width of every level of the result.
        widths: Width of each level while it is resized, finest first; of a ViT-S rather 48, 96, 192, 384, and of a
            ViT-L 256, 512, 1024, 1024.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        *,
        channels: Positive = 256,
        widths: tuple[Positive, Positive, Positive, Positive] = (96, 192, 384, 768),
    ) -> None:
        super().__init__()
        self.indices = [at_level(shapes, level) for level in LEVELS]
        passing = [shape for shape in shapes if shape.level < LEVELS[0]]
        self.passing = len(passing)
        self.levels = nn.ModuleList(
            _Level(shapes[index], width, channels) for index, width in zip(self.indices, widths, strict=True)
        )
        self.finest = 0  # index of the finest level that anybody takes
        self.shapes = (*passing, *(FeatureShape(channels, 2**level, level) for level in LEVELS))

    def keep(self, levels: Collection[int]) -> None:
        while self.finest < len(LEVELS) - 1 and LEVELS[self.finest] not in levels:
            self.levels[self.finest] = nn.Identity()
            self.finest += 1

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        maps = [features[index] for index in self.indices]
        coarser = None
        for number in range(len(LEVELS) - 1, self.finest - 1, -1):
            level = cast("_Level", self.levels[number])
            coarser = maps[number] = level(maps[number], coarser)
        return [*features[: self.passing], *maps]


def _resizing(width: int, stride: int, wanted: int) -> list[nn.Module]:
    """Layers from a map of `stride` to one of stride `wanted`, both powers of two."""
    if stride > wanted:
        factor = stride // wanted
        return [nn.ConvTranspose2d(width, width, factor, stride=factor)]
    layers: list[nn.Module] = []
    while stride < wanted:
        layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        stride *= 2
    return layers
