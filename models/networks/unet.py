"""U-Net."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from base.base_model import BaseModel
from models.blocks import Classifier, ConvNormAct, Width, resize_like, scaled
from utils.outputs import SegOutput
from utils.registry import MODELS


class _DoubleConv(nn.Sequential):
    """Two 3x3 convolutions; the first has half the channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        inner = out_channels // 2
        super().__init__(ConvNormAct(in_channels, inner), ConvNormAct(inner, out_channels))


class _Up(nn.Module):
    """Double the size, then refine together with the map that the encoder had there."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.refine = _DoubleConv(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        refined: Tensor = self.refine(torch.cat([skip, resize_like(self.enlarge(x), skip)], dim=1))
        return refined


@MODELS.register()
class UNet(BaseModel):
    """Encoder of five resolutions, and a decoder that takes each of its maps up again; it starts from scratch.

    Source: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, figure 1. Unlike there, convolutions are
    padded and normalized, so that the logits cover the image.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width_mult: Width = 1.0) -> None:
        super().__init__(in_channels)
        widths = [scaled(width, width_mult) for width in (64, 128, 256, 512, 1024)]
        pairs = list(pairwise(widths))
        self.start = _DoubleConv(in_channels, widths[0])
        self.down = nn.ModuleList(_DoubleConv(fine, coarse) for fine, coarse in pairs)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.middle = _DoubleConv(widths[-1], widths[-1])
        self.up = nn.ModuleList(_Up(coarse, fine) for fine, coarse in reversed(pairs))
        self.classify = Classifier(widths[0], num_classes)

    def predict(self, images: Tensor) -> SegOutput:
        x = self.start(images)
        skips = []
        for down in self.down:
            skips.append(x)
            x = self.pool(down(x))
        x = self.middle(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
        return SegOutput(self.classify(x))
