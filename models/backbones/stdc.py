"""STDC, at any output stride."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import Backbone, FeatureShape
from models.blocks import ConvNormAct, OutputStride, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES

WIDTHS = (32, 64, 256, 512, 1024)  # table 2: channels of levels 1 to 5


class _Mean(nn.Module):
    """Mean over 3x3 values around each, as `nn.AvgPool2d(3, 1, 1)` has it, at any distance from each other."""

    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        weights = x.new_full((channels, 1, 3, 3), 1 / 9)
        return F.conv2d(x, weights, padding=self.dilation, dilation=self.dilation, groups=channels)


class _Concat(nn.Module):
    """Four convolutions, each of the one before it, to 1/2, 1/4, 1/8 and 1/8 of the channels; their results abreast.

    In the first block of a stage, a depthwise convolution behind the first has the stride, and what the first gives
    goes through a mean of that stride.

    Source: Fan et al. 2021, https://arxiv.org/abs/2104.13188, section 3.1, figure 3.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first block of a stage; None in others.
        dilations: Of what would have the stride, and of the convolutions that work on its result.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int | None, dilations: tuple[int, int]) -> None:
        super().__init__()
        before, after = dilations
        half = out_channels // 2
        quarter = out_channels // 4
        eighth = out_channels // 8
        self.first = ConvNormAct(in_channels, half, 1)
        self.down: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if stride is not None:
            self.down = ConvNormAct(half, half, stride=stride, dilation=before, groups=half, act=None)
            self.pool = nn.AvgPool2d(3, stride, 1) if stride > 1 else _Mean(before)
        self.rest = nn.ModuleList(
            [
                ConvNormAct(half, quarter, dilation=after),
                ConvNormAct(quarter, eighth, dilation=after),
                ConvNormAct(eighth, eighth, dilation=after),
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        maps = [self.pool(first)]
        x = self.down(first)
        for conv in self.rest:
            x = conv(x)
            maps.append(x)
        return torch.cat(maps, dim=1)


@BACKBONES.register("stdc1", depths=(2, 2, 2))
@BACKBONES.register("stdc2", depths=(4, 5, 3))
class STDC(Backbone):
    """Short-term dense concatenation: quick where memory is what limits; strides beyond `output_stride` dilate.

    Source: Fan et al. 2021, https://arxiv.org/abs/2104.13188, section 3 and table 2, without what follows stage 5:
    8.4 M parameters with it and a classifier for `stdc1`, 12.5 M for `stdc2`.

    Args:
        depths: Blocks of levels 3 to 5.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
    """

    def __init__(
        self,
        depths: tuple[int, int, int],
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
    ) -> None:
        super().__init__()
        levels = strides_and_dilations(output_stride or 32)
        widths = [scaled(width, width_mult) for width in WIDTHS]
        stages: list[nn.Module] = []
        shapes: list[FeatureShape] = []
        channels, total, before = in_channels, 1, 1
        for level, (width, (stride, dilation)) in enumerate(zip(widths, levels, strict=True), start=1):
            if level <= 2:
                stages.append(ConvNormAct(channels, width, stride=stride, dilation=before))
            else:
                blocks = [_Concat(channels, width, stride=stride, dilations=(before, dilation))]
                for _ in range(depths[level - 3] - 1):
                    blocks.append(_Concat(width, width, stride=None, dilations=(dilation, dilation)))
                stages.append(nn.Sequential(*blocks))
            channels, total, before = width, total * stride, dilation
            shapes.append(FeatureShape(channels, total, level))
        self.stages = nn.ModuleList(stages)
        self.shapes = tuple(shapes)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
