"""MSCAN, the encoder of SegNeXt, at any output stride."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride, Width, scaled, strides_and_dilations
from utils.precision import without_autocast
from utils.registry import BACKBONES
from utils.schema import Between

STRIPS = (7, 11, 21)  # lengths of the strip convolutions
EXPANSIONS = (8, 8, 4, 4)  # of the MLP, levels 2 to 5
LAYER_SCALE = 1e-2


class _Depthwise(nn.Conv2d):
    """Depthwise convolution that keeps the size; `kernel_size` is (height, width), both odd."""

    def __init__(self, channels: int, kernel_size: tuple[int, int], *, dilation: int) -> None:
        height, width = kernel_size
        padding = (dilation * (height // 2), dilation * (width // 2))
        super().__init__(channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels)

    def start_weights(self) -> None:
        """Draw weights whose spread counts the one channel that each filter makes, as the authors' do."""
        height, width = self.kernel_size
        nn.init.normal_(self.weight, std=math.sqrt(2 / (height * width)))


class _Attention(nn.Module):
    """Weigh each value by what strips of several lengths around it hold.

    Source: Guo et al. 2022, https://arxiv.org/abs/2209.08575, section 3.1, equations 1 and 2.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.local = _Depthwise(channels, (5, 5), dilation=dilation)
        self.strips = nn.ModuleList()
        for length in STRIPS:
            pair = (
                _Depthwise(channels, (1, length), dilation=dilation),
                _Depthwise(channels, (length, 1), dilation=dilation),
            )
            self.strips.append(nn.Sequential(*pair))
        self.mix = nn.Conv2d(channels, channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        local = self.local(entered)
        seen = local
        for strip in self.strips:
            seen = seen + strip(local)
        return torch.add(self.leave(self.mix(seen) * entered), x)


class _MLP(nn.Sequential):
    """1x1 convolution to more channels, 3x3 depthwise, GELU, 1x1 back."""

    def __init__(self, channels: int, expansion: int, dilation: int) -> None:
        inner = channels * expansion
        super().__init__(
            nn.Conv2d(channels, inner, 1),
            _Depthwise(inner, (3, 3), dilation=dilation),
            nn.GELU(),
            nn.Conv2d(inner, channels, 1),
        )


class _Residual(nn.Module):
    """Batch norm and a branch, scaled channel by channel and added to the input; skipped for some images in training.

    Args:
        channels: Channels of input and output.
        branch: What is added.
        drop_path: Share of images for which the branch is left out in training.
    """

    def __init__(self, channels: int, branch: nn.Module, drop_path: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.branch = branch
        self.scale = nn.Parameter(torch.full((channels, 1, 1), LAYER_SCALE))
        self.drop_path = drop_path

    def forward(self, x: Tensor) -> Tensor:
        added = self.scale * self.branch(self.norm(x))
        if self.training and self.drop_path:
            # Those that stay count for more, so that the mean is that of evaluation. Source: Huang et al. 2016.
            kept = 1 - self.drop_path
            added = added * torch.empty_like(added[:, :1, :1, :1]).bernoulli_(kept) / kept
        return torch.add(x, added)


class _ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each pixel of (N, C, H, W).

    It does not permute: a graph of every size cannot tell how a map of a single pixel then lies in memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):  # as torch computes layer norms
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            centered = wide - wide.mean(1, keepdim=True)
            variance = centered.square().mean(1, keepdim=True)
            normed = centered * torch.rsqrt(variance + self.eps)
            shifted = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return shifted.to(x.dtype)


def _embed(in_channels: int, channels: int, stride: int, dilation: int) -> list[nn.Module]:
    """Make a 3x3 convolution of that stride, and a batch norm."""
    conv = nn.Conv2d(in_channels, channels, 3, stride, dilation, dilation)
    return [conv, nn.BatchNorm2d(channels)]


@BACKBONES.register("mscan_t", widths=(32, 64, 160, 256), depths=(3, 3, 5, 2), defaults={"drop_path": 0.1})
@BACKBONES.register("mscan_s", widths=(64, 128, 320, 512), depths=(2, 2, 4, 2), defaults={"drop_path": 0.1})
@BACKBONES.register("mscan_b", widths=(64, 128, 320, 512), depths=(3, 3, 12, 3), defaults={"drop_path": 0.1})
@BACKBONES.register("mscan_l", widths=(64, 128, 320, 512), depths=(3, 5, 27, 3), defaults={"drop_path": 0.3})
class MSCAN(Backbone):
    """Multi-scale convolutional attention; strides beyond `output_stride` are replaced by dilation.

    Level 1 is half of the stem.

    Source: Guo et al. 2022, https://arxiv.org/abs/2209.08575, section 3.1 and table 2: 4.2 M (T), 14 M (S), 27 M (B)
    and 45 M (L) parameters as classifiers.

    Args:
        widths: Channels of levels 2 to 5.
        depths: Blocks of levels 2 to 5.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
        drop_path: Share of images for which the last block is left out in training; earlier ones less often.
    """

    def __init__(
        self,
        widths: tuple[int, ...],
        depths: tuple[int, ...],
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
        drop_path: Annotated[float, Between(0, 0.9)] = 0.1,
    ) -> None:
        super().__init__()
        (first_stride, _), *levels = strides_and_dilations(output_stride or 32)
        before, total = 1, first_stride
        channels = scaled(widths[0] // 2, width_mult)
        self.stem = nn.Sequential(*_embed(in_channels, channels, first_stride, 1), nn.GELU())
        shapes = [FeatureShape(channels, total, 1)]
        stages: list[nn.Module] = []
        count, last = 0, max(1, sum(depths) - 1)
        for number, (published, depth, expansion) in enumerate(zip(widths, depths, EXPANSIONS, strict=True)):
            stride, dilation = levels[number]
            width = scaled(published, width_mult)
            layers = _embed(channels, width, stride, before)
            for _ in range(depth):
                share = drop_path * count / last
                layers.append(_Residual(width, _Attention(width, dilation), share))
                layers.append(_Residual(width, _MLP(width, expansion, dilation), share))
                count += 1
            layers.append(_ChannelNorm(width, eps=1e-5))
            stages.append(nn.Sequential(*layers))
            channels, total, before = width, total * stride, dilation
            shapes.append(FeatureShape(channels, total, number + 2))
        self.stages = nn.ModuleList(stages)
        self.shapes = tuple(shapes)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.stem(images)
        features = [x]
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features
