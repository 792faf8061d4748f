"""Head of SegFormer."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register()
class MLPHead(Head):
    """Bring levels 2 to 5 to one width and to the size of level 2, each pixel for itself, and mix them.

    It has no convolution beyond 1x1, and relies on a backbone that looks far, such as ``timm/pvt_v2_b0``.

    Source: Xie et al. 2021, https://arxiv.org/abs/2105.15203, section 3.2; batch norm and ReLU behind the mixing
    layer as in the authors' code. They take 256 channels for the two smallest backbones, and 768 for the others.

    Args:
        shapes: Feature maps to expect, finest first; levels 2 to 5.
        num_classes: Channels of the logits.
        channels: Width of every level and of the result.
        dropout: Share of channels dropped before the classifier in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 256,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        self.indices = [at_level(shapes, level) for level in (2, 3, 4, 5)]
        self.project = nn.ModuleList(nn.Conv2d(shapes[i].channels, channels, 1) for i in self.indices)
        self.mix = nn.Sequential(ConvNormAct(channels * len(self.indices), channels, 1), nn.Dropout2d(dropout))
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        maps = [project(features[i]) for project, i in zip(self.project, self.indices, strict=True)]
        mixed = self.mix(torch.cat([resize_like(x, maps[0]) for x in maps], dim=1))
        logits: Tensor = self.classify(mixed)
        return logits
