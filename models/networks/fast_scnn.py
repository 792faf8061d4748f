"""Fast-SCNN."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.blocks import Classifier, ConvNormAct, Width, resize_like, scaled
from models.necks.pyramid_pooling import GridMean
from utils.outputs import SegOutput
from utils.registry import MODELS

ROWS = ((64, 3, 2), (96, 3, 2), (128, 3, 1))  # table 1: channels, blocks, stride of the first
EXPANSION = 6
BINS = (1, 2, 3, 6)


def _separable(in_channels: int, out_channels: int, *, stride: int = 1) -> nn.Sequential:
    """Make a depthwise and a pointwise convolution without an activation between both. Source: section 3.2.1."""
    return nn.Sequential(
        ConvNormAct(in_channels, in_channels, stride=stride, groups=in_channels, act=None),
        ConvNormAct(in_channels, out_channels, 1),
    )


class _Bottleneck(nn.Module):
    """Expand with 1x1, filter depthwise with 3x3, project with 1x1; a shortcut where shapes allow. Source: table 2."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int) -> None:
        super().__init__()
        inner = in_channels * EXPANSION
        self.branch = nn.Sequential(
            ConvNormAct(in_channels, inner, 1),
            ConvNormAct(inner, inner, stride=stride, groups=inner),
            ConvNormAct(inner, out_channels, 1, act=None),
        )
        self.shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return x + out if self.shortcut else out


@MODELS.register()
class FastSCNN(BaseModel):
    """Three strided layers that two branches share: one goes down to stride 32, the other is a shortcut at stride 8.

    The logits are of stride 8. Public parameters: 1.11 M, batch norms and auxiliary heads not counted; 68.6 mean IoU on
    Cityscapes val, from random numbers.

    Source: Poudel et al. 2019, https://arxiv.org/abs/1902.04502, tables 1 and 2 and section 4.1. Its auxiliary heads
    stand at the ends of the shared layers and of the deep branch, with a factor of 0.4; their width, which the paper
    leaves open, is MMSegmentation's 32.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
        use_aux: Train the auxiliary heads.
    """

    needs_batch = True  # of the pyramid pooling

    def __init__(
        self, num_classes: int, in_channels: int = 3, *, width_mult: Width = 1.0, use_aux: bool = True
    ) -> None:
        super().__init__(in_channels)
        first = scaled(32, width_mult)
        second = scaled(48, width_mult)
        shared = scaled(64, width_mult)
        self.downsample = nn.Sequential(
            ConvNormAct(in_channels, first, stride=2),
            _separable(first, second, stride=2),
            _separable(second, shared, stride=2),
        )
        width = shared
        blocks: list[nn.Module] = []
        for published, count, stride in ROWS:
            out = scaled(published, width_mult)
            for i in range(count):
                blocks.append(_Bottleneck(width, out, stride=stride if i == 0 else 1))
                width = out
        self.extract = nn.Sequential(*blocks)
        part = width // len(BINS)
        self.pools = nn.ModuleList(nn.Sequential(GridMean(bins), ConvNormAct(width, part, 1)) for bins in BINS)
        self.mix = ConvNormAct(width + part * len(BINS), width, 1)
        self.fine = ConvNormAct(shared, width, 1, act=None)
        self.coarse = nn.Sequential(
            ConvNormAct(width, width, dilation=4, groups=width), ConvNormAct(width, width, 1, act=None)
        )
        self.head = nn.Sequential(
            _separable(width, width), _separable(width, width), nn.Dropout(0.1), Classifier(width, num_classes)
        )
        aux_heads: list[nn.Module] = []
        for channels in (shared, width) if use_aux else ():
            aux_heads.append(nn.Sequential(ConvNormAct(channels, first), Classifier(first, num_classes)))
        self.aux_heads = nn.ModuleList(aux_heads)

    def predict(self, images: Tensor) -> SegOutput:
        fine = self.downsample(images)
        x = self.extract(fine)
        parts = [resize_like(pool(x), x) for pool in self.pools]
        x = self.mix(torch.cat([x, *parts], dim=1))
        fused = F.relu(self.fine(fine) + self.coarse(resize_like(x, fine)))
        aux: list[Tensor] = []
        if self.training:
            aux = [head(each) for head, each in zip(self.aux_heads, (fine, x), strict=False)]
        return SegOutput(self.head(fused), tuple(aux))
