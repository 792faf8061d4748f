"""Decoder of MA-Net, for any backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head
from models.blocks import Classifier, ConvNormAct, Positive, resize_like, with_aux
from utils.outputs import SegOutput
from utils.registry import HEADS


class _PositionAttention(nn.Module):
    """Add to each pixel what all pixels hold that resemble it. Source: section III."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 3, padding=1)
        self.leave = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        shares = (self.query(x).flatten(2).mT @ self.key(x).flatten(2)).softmax(-1)  # (N, pixels, pixels)
        gathered = self.value(x).flatten(2) @ shares.mT
        left: Tensor = self.leave(x + gathered.view_as(x))
        return left


class _Gate(nn.Sequential):
    """Weights of the channels of a map from its mean, (N, C, 1, 1)."""

    def __init__(self, channels: int) -> None:
        squeezed = max(1, channels // 16)
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )


class _Fusion(nn.Module):
    """Weigh the channels of the coarse map by what both maps hold, and refine both. Source: section III."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = nn.Sequential(ConvNormAct(in_channels, in_channels), ConvNormAct(in_channels, skip_channels, 1))
        self.gate_coarse = _Gate(skip_channels)
        self.gate_fine = _Gate(skip_channels)
        self.refine = nn.Sequential(ConvNormAct(2 * skip_channels, channels), ConvNormAct(channels, channels))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = resize_like(self.reduce(x), skip)
        weighed = x * (self.gate_coarse(x) + self.gate_fine(skip))
        refined: Tensor = self.refine(torch.cat([weighed, skip], dim=1))
        return refined


@HEADS.register()
class MAnetHead(Head):
    """U-Net's decoder with attention: between pixels of the coarsest map, and between channels at every step up.

    The first keeps a number for each pair of pixels of the coarsest map: take an output stride of 32 or 16. The logits
    are of the finest map.

    Source: Fan et al. 2020, "MA-Net: a multi-scale attention network for liver and tumor segmentation", IEEE Access 8,
    https://doi.org/10.1109/ACCESS.2020.3025372, section III.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        channels: Width of the finest step, 8 times as many at the coarsest.
        inner: Channels in which pixels are compared.
        deep_supervision: Classify the map of every step in training, the coarser ones as auxiliary outputs.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 32,
        inner: Positive = 64,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        *skips, coarsest = shapes
        width = coarsest.channels
        self.attend = _PositionAttention(width, inner)
        widths = []
        self.steps = nn.ModuleList()
        for number, skip in reversed(list(enumerate(skips))):
            out = channels * 2 ** min(number, 3)
            self.steps.append(_Fusion(width, skip.channels, out))
            width = out
            widths.append(width)
        self.classify = Classifier(width, num_classes)
        supervised = widths[:-1] if deep_supervision else []
        self.classify_coarser = nn.ModuleList(Classifier(width, num_classes) for width in supervised)

    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        *skips, coarsest = features
        maps = []
        x = self.attend(coarsest)
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
            maps.append(x)
        return with_aux(self.classify(x), self.classify_coarser, maps[:-1])
