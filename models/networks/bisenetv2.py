"""BiSeNetV2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.blocks import Classifier, ConvNormAct, Positive, Width, resize_like, scaled
from utils.outputs import SegOutput
from utils.registry import MODELS

EXPANSION = 6
# Figure 4 and table 1: channels, and blocks after the strided one, of the semantic branch's stages 3 to 5.
STAGES = ((32, 1), (64, 1), (128, 3))


class _Stem(nn.Module):
    """A strided convolution and a max-pool of its result side by side, fused. Source: section 4.2, figure 4 (a)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.first = ConvNormAct(in_channels, channels, stride=2)
        self.branch = nn.Sequential(ConvNormAct(channels, inner, 1), ConvNormAct(inner, channels, stride=2))
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.fuse = ConvNormAct(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        fused: Tensor = self.fuse(torch.cat([self.branch(x), self.pool(x)], dim=1))
        return fused


class _GatherExpansion(nn.Module):
    """A 3x3 convolution, one depthwise convolution (two if strided) to 6 times the channels, 1x1, and a shortcut.

    Source: section 4.2, figure 5.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: 1 or 2.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        inner = in_channels * EXPANSION
        layers: list[nn.Module] = [ConvNormAct(in_channels, in_channels)]
        self.shortcut: nn.Module = nn.Identity()
        if stride == 1:
            layers.append(ConvNormAct(in_channels, inner, groups=in_channels))
        else:
            layers.append(ConvNormAct(in_channels, inner, stride=stride, groups=in_channels, act=None))
            layers.append(ConvNormAct(inner, inner, groups=inner))
            self.shortcut = nn.Sequential(
                ConvNormAct(in_channels, in_channels, stride=stride, groups=in_channels, act=None),
                ConvNormAct(in_channels, out_channels, 1, act=None),
            )
        self.branch = nn.Sequential(*layers, ConvNormAct(inner, out_channels, 1, act=None))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class _ContextEmbedding(nn.Module):
    """Add the mean over the whole map to every pixel. Source: section 4.2, figure 4 (b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.whole = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(channels), ConvNormAct(channels, channels, 1)
        )
        self.refine = ConvNormAct(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        refined: Tensor = self.refine(x + self.whole(x))
        return refined


class _Aggregation(nn.Module):
    """Let each branch weigh the other, at both resolutions, and add both up. Source: section 4.3, figure 6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        depthwise = ConvNormAct(channels, channels, groups=channels, act=None)
        self.detail_kept = nn.Sequential(*depthwise, nn.Conv2d(channels, channels, 1, bias=False))
        strided = ConvNormAct(channels, channels, stride=2, act=None)
        self.detail_small = nn.Sequential(*strided, nn.AvgPool2d(3, 2, 1))
        depthwise = ConvNormAct(channels, channels, groups=channels, act=None)
        self.semantic_kept = nn.Sequential(*depthwise, nn.Conv2d(channels, channels, 1, bias=False))
        self.semantic_large = ConvNormAct(channels, channels, act=None)
        self.fuse = ConvNormAct(channels, channels)

    def forward(self, detail: Tensor, semantic: Tensor) -> Tensor:
        fine = self.detail_kept(detail) * resize_like(self.semantic_large(semantic), detail).sigmoid()
        kept = self.semantic_kept(semantic).sigmoid()
        coarse = resize_like(self.detail_small(detail), kept) * kept
        fused: Tensor = self.fuse(fine + resize_like(coarse, fine))
        return fused


def _classify_after(in_channels: int, channels: int, num_classes: int) -> nn.Sequential:
    """Make a head: a 3x3 convolution, dropout, a 1x1 convolution."""
    return nn.Sequential(ConvNormAct(in_channels, channels), nn.Dropout(0.1), Classifier(channels, num_classes))


@MODELS.register()
class BiSeNetV2(BaseModel):
    """A wide, shallow branch for details and a narrow, deep one for semantics, aggregated at stride 8.

    Public parameters: 3.4 M without auxiliary heads; 73.4 mean IoU on Cityscapes val at half the size, from random
    numbers; 73.2 at full size in MMSegmentation.

    Source: Yu et al. 2020, https://arxiv.org/abs/2004.02147, table 1 and section 4. Four auxiliary heads (section 4.4,
    "booster training") look at the semantic branch's stages, each with a loss as heavy as the main one: set
    `aux_factor` to 1. Widths of these heads, which the paper leaves open, are those of MMSegmentation.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
        channels: Width of the head.
        use_aux: Train the auxiliary heads.
    """

    needs_batch = True  # of the context embedding

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width_mult: Width = 1.0,
        channels: Positive = 1024,
        use_aux: bool = True,
    ) -> None:
        super().__init__(in_channels)
        half, quarter = scaled(64, width_mult), scaled(128, width_mult)
        self.detail = nn.Sequential(
            ConvNormAct(in_channels, half, stride=2),
            ConvNormAct(half, half),
            ConvNormAct(half, half, stride=2),
            ConvNormAct(half, half),
            ConvNormAct(half, half),
            ConvNormAct(half, quarter, stride=2),
            ConvNormAct(quarter, quarter),
            ConvNormAct(quarter, quarter),
        )
        width = scaled(16, width_mult)
        self.stem = _Stem(in_channels, width)
        stages: list[nn.Module] = []
        aux_heads: list[nn.Module] = [_classify_after(width, scaled(16, width_mult), num_classes)]
        for (published, repeats), aux_width in zip(STAGES, (64, 256, 1024), strict=True):
            out = scaled(published, width_mult)
            blocks: list[nn.Module] = [_GatherExpansion(width, out, stride=2)]
            for _ in range(repeats):
                blocks.append(_GatherExpansion(out, out))
            stages.append(nn.Sequential(*blocks))
            aux_heads.append(_classify_after(out, scaled(aux_width, width_mult), num_classes))
            width = out
        self.stages = nn.ModuleList(stages)
        self.context = _ContextEmbedding(width)
        self.aggregate = _Aggregation(width)
        self.head = _classify_after(width, channels, num_classes)
        self.aux_heads = nn.ModuleList(aux_heads if use_aux else [])

    def predict(self, images: Tensor) -> SegOutput:
        x = self.stem(images)
        maps = [x]
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        logits = self.head(self.aggregate(self.detail(images), self.context(x)))
        aux: list[Tensor] = []
        if self.training:
            aux = [head(each) for head, each in zip(self.aux_heads, maps, strict=False)]
        return SegOutput(logits, tuple(aux))
