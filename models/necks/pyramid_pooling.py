"""Pyramid pooling module."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Neck
from models.blocks import ConvNormAct, Positive, resize_like
from utils.registry import NECKS
from utils.schema import Between


@NECKS.register()
class PyramidPooling(Neck):
    """Add means over parts of the coarsest map to it, and fuse them; the other maps pass unchanged.

    Source: Zhao et al. 2016, https://arxiv.org/abs/1612.01105, section 3.2.

    Args:
        shapes: Feature maps to expect, finest first.
        bins: The map is divided into bins x bins parts, once for each of these.
        channels: Channels of the result; null is a quarter of the map's.
        dropout: Share of the result's channels that are dropped in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        *,
        bins: tuple[Positive, ...] = (1, 2, 3, 6),
        channels: Positive | None = None,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        if not bins:
            raise ValueError("needs at least one number in 'bins'")
        *others, coarsest = shapes
        width, channels = coarsest.channels // len(bins), channels or coarsest.channels // 4
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), ConvNormAct(coarsest.channels, width, 1)) for size in bins
        )
        self.fuse = nn.Sequential(ConvNormAct(coarsest.channels + width * len(bins), channels), nn.Dropout2d(dropout))
        self.needs_batch = 1 in bins
        self.shapes = (*others, coarsest._replace(channels=channels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        *others, x = features
        parts = [resize_like(pool(x), x) for pool in self.pools]
        return [*others, self.fuse(torch.cat([x, *parts], dim=1))]
