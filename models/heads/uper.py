"""Head of UPerNet as ConvNeXt and Swin are published with it."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like
from models.necks.pyramid_pooling import GridMean
from utils.registry import HEADS
from utils.schema import Between

BINS = (1, 2, 3, 6)


@HEADS.register()
class UPerHead(Head):
    """Pyramid pooling of the coarsest map below a feature pyramid of one width; logits of level 2.

    Where `FPNHead` behind a `PyramidPooling` keeps to the widths of the first paper, every branch here has all
    channels. Public recipes have an auxiliary `FCNHead` of 256 channels on level 4. With both, a ConvNeXt-T has 60 M
    parameters.

    Source: Xiao et al. 2018, https://arxiv.org/abs/1807.10221, figure 4; widths and bins as in MMSegmentation, whose
    settings Liu et al. 2021 (Swin), https://arxiv.org/abs/2103.14030, and Liu et al. 2022 (ConvNeXt),
    https://arxiv.org/abs/2201.03545, take.

    Args:
        shapes: Feature maps to expect, finest first; levels 2 to 5.
        num_classes: Channels of the logits.
        channels: Width of the head.
        dropout: Share of channels dropped before the classifier in training.
    """

    needs_batch = True  # of the pyramid pooling

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 512,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        self.indices = [at_level(shapes, level) for level in (2, 3, 4, 5)]
        *finer, coarsest = self.indices
        width = shapes[coarsest].channels
        self.pools = nn.ModuleList(nn.Sequential(GridMean(bins), ConvNormAct(width, channels, 1)) for bins in BINS)
        self.pooled = ConvNormAct(width + channels * len(BINS), channels)
        self.laterals = nn.ModuleList(ConvNormAct(shapes[i].channels, channels, 1) for i in finer)
        self.smooth = nn.ModuleList(ConvNormAct(channels, channels) for _ in finer)
        self.fuse = nn.Sequential(ConvNormAct(channels * len(self.indices), channels), nn.Dropout2d(dropout))
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        *finer, coarsest = (features[i] for i in self.indices)
        parts = [resize_like(pool(coarsest), coarsest) for pool in self.pools]
        x = self.pooled(torch.cat([coarsest, *parts], dim=1))
        maps = [x]
        for fine, lateral, smooth in zip(reversed(finer), reversed(self.laterals), reversed(self.smooth), strict=True):
            reduced = lateral(fine)
            x = reduced + resize_like(x, reduced)
            maps.append(smooth(x))
        fused = self.fuse(torch.cat([resize_like(each, maps[-1]) for each in maps], dim=1))
        logits: Tensor = self.classify(fused)
        return logits
