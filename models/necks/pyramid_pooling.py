"""Pyramid pooling module."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Neck
from models.blocks import ConvNormAct, Positive, resize_like
from utils.precision import without_autocast
from utils.registry import NECKS
from utils.schema import Between


class GridMean(nn.Module):
    """Means over bins x bins parts of a map, (N, C, h, w) to (N, C, bins, bins), as `nn.AdaptiveAvgPool2d` has them.

    They are products with two small matrices that are made of the map's size when it is known. So the gradient is the
    same in every run on CUDA, where adaptive pooling adds up in any order, and an exported graph fits every size.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        with without_autocast(x.device):  # half precision loses too much of the sum of thousands of values
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            means = self._weights(height, wide) @ wide @ self._weights(width, wide).mT
        return means.to(x.dtype)

    def _weights(self, length: int, like: Tensor) -> Tensor:
        """Share of each of `length` values in the mean of each part, (bins, length); parts may overlap by one."""
        numbers = torch.arange(self.bins, device=like.device)[:, None]
        starts = numbers * length // self.bins
        ends = ((numbers + 1) * length + self.bins - 1) // self.bins
        positions = torch.arange(length, device=like.device)
        inside = (starts <= positions) & (positions < ends)
        return inside / (ends - starts).to(like.dtype)


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
        width = coarsest.channels // len(bins)
        channels = channels or coarsest.channels // 4
        self.pools = nn.ModuleList(
            nn.Sequential(GridMean(size), ConvNormAct(coarsest.channels, width, 1)) for size in bins
        )
        self.fuse = nn.Sequential(ConvNormAct(coarsest.channels + width * len(bins), channels), nn.Dropout2d(dropout))
        self.needs_batch = 1 in bins
        self.shapes = (*others, coarsest._replace(channels=channels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        *others, x = features
        parts = [resize_like(pool(x), x) for pool in self.pools]
        return [*others, self.fuse(torch.cat([x, *parts], dim=1))]
