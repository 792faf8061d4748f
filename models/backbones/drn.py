"""Dilated residual networks, type C, with their authors' parameter names."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.backbones.resnet import BasicBlock
from models.blocks import OutputStride, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES


class _PlainBlock(BasicBlock):
    """A residual block without its shortcut, to smooth the grid that dilation leaves. Source: section 4."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.relu(self.branch(x))
        return out


@BACKBONES.register("drn26", depths=(1, 1, 2, 2, 2, 2))
@BACKBONES.register("drn42", depths=(1, 1, 3, 4, 6, 3))
class DRN(Backbone):
    """Residual network made for dilation: no pool, and two blocks without shortcuts at the end.

    Source: Yu et al. 2017, https://arxiv.org/abs/1705.09914, figure 6 (DRN-C-26 and DRN-C-42), which have output
    stride 8. Unlike a ResNet that is dilated afterwards, a stage without stride is dilated from its first
    convolution on; the two last blocks have a half and a quarter of the dilation before them.

    Args:
        depths: Blocks of each stage with shortcuts.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 8.
        width_mult: Share of the published channels.
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
    ) -> None:
        super().__init__()
        stages = [(1, 1), *strides_and_dilations(output_stride or 8)]
        widths = [scaled(width, width_mult) for width in (16, 32, 64, 128, 256, 512)]
        channels = widths[0]
        self.conv1 = nn.Conv2d(in_channels, channels, 7, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        shapes = []
        stride = 1
        layers: list[nn.Module] = []
        for level, (width, depth, (step, dilation)) in enumerate(zip(widths, depths, stages, strict=True)):
            stride *= step
            blocks = []
            for _ in range(depth):
                project = step == 2 or channels != width
                pair = (dilation, dilation)
                blocks.append(BasicBlock(channels, width, stride=step, dilations=pair, project=project, se=None))
                channels = width
                step = 1  # only the first block of a stage has its stride
            layers.append(nn.Sequential(*blocks))
            if level:  # the first stage is as large as the image
                shapes.append(FeatureShape(channels, stride, level))
        _, last = stages[-1]
        for dilation in (max(1, last // 2), max(1, last // 4)):
            pair = (dilation, dilation)
            plain = _PlainBlock(channels, channels, stride=1, dilations=pair, project=False, se=None)
            layers.append(nn.Sequential(plain))
        for number, layer in enumerate(layers, start=1):
            self.add_module(f"layer{number}", layer)
        self.count = len(layers)
        self.shapes = tuple(shapes)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.relu(self.bn1(self.conv1(images)))
        maps = []
        for number in range(1, self.count + 1):
            x = cast(nn.Module, getattr(self, f"layer{number}"))(x)
            maps.append(x)
        return [*maps[1:5], x]  # the last two only refine level 5
