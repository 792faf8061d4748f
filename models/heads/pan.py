"""Decoder of the pyramid attention network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like
from utils.registry import HEADS

KERNELS = (7, 5, 3)  # of the pyramid, finest first


class _PyramidAttention(nn.Module):
    """Weigh each pixel by a pyramid of three halved maps, and add the mean. Source: section 3.1, figure 3.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(in_channels, channels, 1))
        self.plain = ConvNormAct(in_channels, channels, 1)
        self.down = nn.ModuleList()
        self.lateral = nn.ModuleList()
        width = in_channels
        for kernel in KERNELS:
            self.down.append(ConvNormAct(width, 1, kernel))
            self.lateral.append(ConvNormAct(1, 1, kernel))
            width = 1

    def forward(self, x: Tensor) -> Tensor:
        maps = []
        level = x
        for down, lateral in zip(self.down, self.lateral, strict=True):
            level = down(F.max_pool2d(level, 2, ceil_mode=True))  # rounded up, so that small maps do not vanish
            maps.append(lateral(level))
        weights = maps.pop()
        while maps:
            finer = maps.pop()
            weights = finer + resize_like(weights, finer)
        weighed: Tensor = self.plain(x) * resize_like(weights, x)
        return torch.add(weighed, self.whole(x))


class _AttentionUp(nn.Module):
    """Weigh the channels of the fine map by the mean of the coarse one, and add the latter. Source: section 3.2."""

    def __init__(self, fine_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(fine_channels, channels)
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNormAct(channels, channels, 1))

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        fine = self.reduce(fine)
        weighed: Tensor = fine * self.weigh(coarse)
        return weighed + resize_like(coarse, fine)


@HEADS.register()
class PANHead(Head):
    """Pyramid attention on the coarsest map, then attention of its channels over each finer map; logits of level 2.

    Its pyramid ends in single pixels: a `torch.export` program of it is for one size; ONNX has graphs for every size.

    Source: Li et al. 2018, https://arxiv.org/abs/1805.10180, section 3. The paper takes an output stride of 16.

    Args:
        shapes: Feature maps to expect, finest first; levels 2 to 5.
        num_classes: Channels of the logits.
        channels: Width of the decoder.
    """

    needs_batch = True  # of the branches that see the mean over the whole map

    def __init__(self, shapes: tuple[FeatureShape, ...], num_classes: int, *, channels: Positive = 32) -> None:
        super().__init__()
        self.indices = [at_level(shapes, level) for level in (2, 3, 4, 5)]
        *finer, coarsest = self.indices
        self.attend = _PyramidAttention(shapes[coarsest].channels, channels)
        self.steps = nn.ModuleList(_AttentionUp(shapes[i].channels, channels) for i in reversed(finer))
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        *finer, coarsest = (features[i] for i in self.indices)
        x = self.attend(coarsest)
        for step, fine in zip(self.steps, reversed(finer), strict=True):
            x = step(fine, x)
        logits: Tensor = self.classify(x)
        return logits
