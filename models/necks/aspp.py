"""Atrous spatial pyramid pooling."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Neck
from models.blocks import ConvNormAct, Positive, SeparableConvNormAct, resize_like
from utils.registry import NECKS
from utils.schema import Between


@NECKS.register("ASPP")
@NECKS.register("aspp_plus")
class ASPP(Neck):
    """Look at the coarsest map through convolutions of several dilations and as a whole; the others pass unchanged.

    Source: Chen et al. 2017, https://arxiv.org/abs/1706.05587, section 3.3; parameters are named as in torchvision.

    Args:
        shapes: Feature maps to expect, finest first.
        rates: Dilations of the 3x3 convolutions; null is 6, 12, 18 at stride 16 and in proportion elsewhere, so
            that they reach as far in the image.
        channels: Width of every branch and of the result.
        separable: Make the 3x3 convolutions depthwise-separable.
        batch_norm: Have batch norms, and biases where there are none.
        image_pooling: Have a branch that sees the mean over the whole map.
        dropout: Share of the result that is dropped in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        *,
        rates: tuple[Positive, ...] | None = None,
        channels: Positive = 256,
        separable: bool = False,
        batch_norm: bool = True,
        image_pooling: bool = True,
        dropout: Annotated[float, Between(0, 1)] = 0.5,
    ) -> None:
        super().__init__()
        *others, coarsest = shapes
        if rates is None:
            rates = tuple(max(1, rate * 16 // coarsest.stride) for rate in (6, 12, 18))
        conv = SeparableConvNormAct if separable else ConvNormAct
        wide = coarsest.channels
        branches: list[nn.Module] = [ConvNormAct(wide, channels, 1, norm=batch_norm)]
        for rate in rates:
            branches.append(conv(wide, channels, dilation=rate, norm=batch_norm))
        if image_pooling:
            whole = ConvNormAct(wide, channels, 1, norm=batch_norm)
            branches.append(nn.Sequential(nn.AdaptiveAvgPool2d(1), *whole))
        self.convs = nn.ModuleList(branches)
        fuse = ConvNormAct(channels * len(branches), channels, 1, norm=batch_norm)
        self.project = nn.Sequential(*fuse, nn.Dropout(dropout))
        self.needs_batch = image_pooling and batch_norm
        self.shapes = (*others, coarsest._replace(channels=channels))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        *others, x = features
        branches = [resize_like(branch(x), x) for branch in self.convs]
        return [*others, self.project(torch.cat(branches, dim=1))]
