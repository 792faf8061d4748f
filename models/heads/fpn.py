"""Feature pyramid head of UPerNet."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like, with_aux
from utils.outputs import SegOutput
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register()
class FPNHead(Head):
    """Add coarse maps to finer ones, level by level, and classify all of them together at level 2.

    Source: Xiao et al. 2018, https://arxiv.org/abs/1807.10221, figure 4; Lin et al. 2016,
    https://arxiv.org/abs/1612.03144. The top-down path is cumulative, and each level is smoothed by a convolution
    of its own.

    Args:
        shapes: Feature maps to expect, finest first; levels 2 to 5.
        num_classes: Channels of the logits.
        channels: Width of the pyramid.
        dropout: Share of channels dropped before the classifier in training.
        deep_supervision: Classify the map of every level by itself too in training, as auxiliary outputs.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 256,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        self.indices = [at_level(shapes, level) for level in (2, 3, 4, 5)]
        self.laterals = nn.ModuleList(ConvNormAct(shapes[i].channels, channels, 1) for i in self.indices)
        self.smooth = nn.ModuleList(ConvNormAct(channels, channels) for _ in self.indices[:-1])
        self.fuse = nn.Sequential(ConvNormAct(channels * len(self.indices), channels), nn.Dropout2d(dropout))
        self.classify = Classifier(channels, num_classes)
        supervised = self.indices if deep_supervision else []
        self.classify_levels = nn.ModuleList(Classifier(channels, num_classes) for _ in supervised)

    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        *finer, x = [lateral(features[i]) for lateral, i in zip(self.laterals, self.indices, strict=True)]
        maps = [x]
        for lateral, smooth in zip(reversed(finer), reversed(self.smooth), strict=True):
            x = lateral + resize_like(x, lateral)
            maps.append(smooth(x))
        fused = self.fuse(torch.cat([resize_like(x, maps[-1]) for x in maps], dim=1))
        return with_aux(self.classify(fused), self.classify_levels, maps)
