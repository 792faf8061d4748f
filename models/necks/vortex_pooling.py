"""Vortex pooling."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Neck
from models.blocks import ConvNormAct, Positive, resize_like
from utils.registry import NECKS


def _mean_around(size: int) -> nn.Sequential:
    """Mean over size x size values around each; rows, then columns, which are 2 size additions, not size squared."""
    return nn.Sequential(
        nn.AvgPool2d((size, 1), 1, (size // 2, 0), count_include_pad=False),
        nn.AvgPool2d((1, size), 1, (0, size // 2), count_include_pad=False),
    )


@NECKS.register()
class VortexPooling(Neck):
    """ASPP whose convolutions see means, over the wider an area the further they reach; other maps pass unchanged.

    Source: Xie et al. 2018, https://arxiv.org/abs/1804.06242, its module B.

    Args:
        shapes: Feature maps to expect, finest first.
        rates: Dilations of the 3x3 convolutions, and sizes of the areas whose means they see; odd.
        channels: Width of every branch and of the result.
    """

    needs_batch = True  # of the branch that sees the mean over the whole map

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        *,
        rates: tuple[Positive, ...] = (3, 9, 27),
        channels: Positive = 256,
    ) -> None:
        super().__init__()
        if even := [rate for rate in rates if rate % 2 == 0]:
            raise ValueError(f"needs odd 'rates', but was given {even[0]}")
        *others, coarsest = shapes
        width = coarsest.channels
        self.branches = nn.ModuleList(
            [
                nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(width, channels, 1)),
                ConvNormAct(width, channels),
                *(nn.Sequential(_mean_around(rate), ConvNormAct(width, channels, dilation=rate)) for rate in rates),
            ]
        )
        self.fuse = ConvNormAct(channels * len(self.branches), channels, 1)
        self.shapes = (*others, coarsest._replace(channels=channels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        *others, x = features
        branches = [resize_like(branch(x), x) for branch in self.branches]
        return [*others, self.fuse(torch.cat(branches, dim=1))]
