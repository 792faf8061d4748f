"""DDRNet, and the layers that it shares with PIDNet."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.blocks import Classifier, ConvNormAct, Positive, Width, resize_like, scaled
from utils.outputs import SegOutput
from utils.registry import MODELS

POOLS = ((5, 2), (9, 4), (17, 8))  # kernel and stride of the pooled branches of DAPPM and PAPPM, besides the whole map


class NormActConv(nn.Sequential):
    """Batch norm, ReLU, convolution that keeps the size at stride 1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, *, groups: int = 1) -> None:
        super().__init__(
            nn.BatchNorm2d(in_channels),
            nn.ReLU(),  # not in place: its input is used elsewhere too
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=False),
        )


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut. The input is rectified here, the sum where it is used next.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvNormAct(in_channels, out_channels, stride=stride), ConvNormAct(out_channels, out_channels, act=None)
        )
        self.shortcut = shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return torch.add(self.branch(x), self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolution to twice the width, beside a shortcut; rectified as `ResidualBlock` is.

    Args:
        in_channels: Channels of the input.
        width: Channels of the 3x3 convolution; the output has twice as many.
        stride: Of the 3x3 convolution.
        rectify: Rectify the input.
    """

    def __init__(self, in_channels: int, width: int, *, stride: int = 1, rectify: bool = True) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            ConvNormAct(in_channels, width, 1),
            ConvNormAct(width, width, stride=stride),
            ConvNormAct(width, 2 * width, 1, act=None),
        )
        self.shortcut = shortcut(in_channels, 2 * width, stride)
        self.rectify = rectify

    def forward(self, x: Tensor) -> Tensor:
        if self.rectify:
            x = F.relu(x)
        return torch.add(self.branch(x), self.shortcut(x))


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling: means over ever larger areas, each refined together with the one before.

    Source: Hong et al. 2021, https://arxiv.org/abs/2101.06085, section III.

    Args:
        in_channels: Channels of the input.
        width: Channels of each branch.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.plain = NormActConv(in_channels, width, 1)
        self.pooled = pooled_branches(in_channels, width)
        self.refine = nn.ModuleList(NormActConv(width, width) for _ in self.pooled)
        self.fuse = NormActConv(width * (len(self.pooled) + 1), out_channels, 1)
        self.shortcut = NormActConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.plain(x)]
        for pool, refine in zip(self.pooled, self.refine, strict=True):
            maps.append(refine(resize_like(pool(x), x) + maps[-1]))
        return torch.add(self.fuse(torch.cat(maps, dim=1)), self.shortcut(x))


def pooled_branches(in_channels: int, width: int) -> nn.ModuleList:
    """Make the branches that see means over 5x5, 9x9 and 17x17 pixels, and over the whole map."""
    pools: list[nn.Module] = [nn.AvgPool2d(kernel, stride, kernel // 2) for kernel, stride in POOLS]
    pools.append(nn.AdaptiveAvgPool2d(1))
    return nn.ModuleList(nn.Sequential(pool, NormActConv(in_channels, width, 1)) for pool in pools)


def shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Make what a block's input is added through: nothing, or a 1x1 convolution where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return ConvNormAct(in_channels, out_channels, 1, stride=stride, act=None)


def residual_blocks(in_channels: int, out_channels: int, count: int, *, stride: int = 1) -> nn.Sequential:
    """Make `count` residual blocks, of which the first has the stride."""
    blocks = [ResidualBlock(in_channels, out_channels, stride=stride)]
    for _ in range(count - 1):
        blocks.append(ResidualBlock(out_channels, out_channels))
    return nn.Sequential(*blocks)


def classify_after(in_channels: int, width: int, num_classes: int) -> nn.Sequential:
    """Make the head of both families: batch norm, ReLU, 3x3 convolution, batch norm, ReLU, 1x1 convolution."""
    return nn.Sequential(
        NormActConv(in_channels, width),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        Classifier(width, num_classes),
    )


def downsampling(channels: Sequence[int]) -> nn.Sequential:
    """Make one strided 3x3 convolution for each step from one of `channels` to the next; no ReLU behind the last."""
    layers: list[nn.Module] = [nn.ReLU()]
    last = len(channels) - 2
    for i, (before, after) in enumerate(itertools.pairwise(channels)):
        layers.append(ConvNormAct(before, after, stride=2, act=None if i == last else nn.ReLU))
    return nn.Sequential(*layers)


@MODELS.register("DDRNet_23", planes=64, head_channels=128)
@MODELS.register("DDRNet_23_slim", planes=32, head_channels=64)
class DDRNet(BaseModel):
    """Two branches that exchange maps twice: one stays at stride 8, the other goes down to 64; the logits are of 8.

    Both have 2 residual blocks a stage and end with a bottleneck. Public parameters: 5.7 M (slim) and 20.1 M, without
    the auxiliary head; 77.8 and 79.5 mean IoU on Cityscapes val, from ImageNet.

    Source: Hong et al. 2021, https://arxiv.org/abs/2101.06085, section III; its auxiliary head has a factor of
    0.4. Convolutions before batch norms have no biases, which their code has in the stem.

    Args:
        planes: Width of the first stage.
        head_channels: Width of the heads.
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
        pool_channels: Width of each branch of the pyramid pooling.
        use_aux: Train an auxiliary head on the high-resolution branch after the first exchange.
    """

    multiple = 64
    needs_batch = True  # of the branch that sees the mean over the whole map

    def __init__(
        self,
        planes: int,
        head_channels: int,
        num_classes: int,
        in_channels: int = 3,
        *,
        width_mult: Width = 1.0,
        pool_channels: Positive = 128,
        use_aux: bool = True,
    ) -> None:
        super().__init__(in_channels)
        width = scaled(planes, width_mult)
        head_width = scaled(head_channels, width_mult)
        high = 2 * width
        self.stem = nn.Sequential(
            ConvNormAct(in_channels, width, stride=2), ConvNormAct(width, width, stride=2, act=None)
        )
        self.layer1 = residual_blocks(width, width, 2)
        self.layer2 = residual_blocks(width, high, 2, stride=2)
        self.layer3 = residual_blocks(high, 4 * width, 2, stride=2)
        self.layer4 = residual_blocks(4 * width, 8 * width, 2, stride=2)
        self.layer5 = BottleneckBlock(8 * width, 8 * width, stride=2)
        self.high3 = residual_blocks(high, high, 2)
        self.high4 = residual_blocks(high, high, 2)
        self.high5 = BottleneckBlock(high, high)
        self.down3 = downsampling((high, 4 * width))
        self.down4 = downsampling((high, 4 * width, 8 * width))
        self.up3 = nn.Sequential(nn.ReLU(), ConvNormAct(4 * width, high, 1, act=None))
        self.up4 = nn.Sequential(nn.ReLU(), ConvNormAct(8 * width, high, 1, act=None))
        self.context = DAPPM(16 * width, scaled(pool_channels, width_mult), 4 * width)
        self.head = classify_after(4 * width, head_width, num_classes)
        self.aux_heads = nn.ModuleList([classify_after(high, head_width, num_classes)] if use_aux else [])

    def predict(self, images: Tensor) -> SegOutput:
        fine = self.layer2(self.layer1(self.stem(images)))
        low = self.layer3(fine)
        high = self.high3(fine)
        exchanged = high + resize_like(self.up3(low), high)
        low = self.layer4(low + self.down3(high))
        high = self.high4(exchanged)
        low, high = low + self.down4(high), high + resize_like(self.up4(low), high)
        high = self.high5(high)
        context = self.context(self.layer5(low))
        logits = self.head(high + resize_like(context, high))
        aux = [head(exchanged) for head in self.aux_heads] if self.training else []
        return SegOutput(logits, tuple(aux))
