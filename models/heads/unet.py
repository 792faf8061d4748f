"""Decoder of U-Net, for any backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head
from models.blocks import Classifier, ConvNormAct, Positive, resize_like, with_aux
from utils.outputs import SegOutput
from utils.registry import HEADS


class _Up(nn.Module):
    """Reduce the coarse map, bring it to the size of the finer one, and refine both together."""

    def __init__(self, in_channels: int, skip_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(in_channels, channels)
        self.refine = ConvNormAct(channels + skip_channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        refined: Tensor = self.refine(torch.cat([resize_like(self.reduce(x), skip), skip], dim=1))
        return refined


@HEADS.register()
class UNetHead(Head):
    """Go up from the coarsest map to the finest, taking in every map on the way; the logits are of level 1.

    Source: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597. Maps are resized, not deconvolved, which
    suits every size and dilated backbones too, where neighboring maps are equally large.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        channels: Width of each step, coarsest first, one for every map but the coarsest; null is as many as needed
            of 128, 96, 64, 48.
        deep_supervision: Classify the map of every step in training, the coarser ones as auxiliary outputs.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: tuple[Positive, ...] | None = None,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        *skips, coarsest = shapes
        channels = (128, 96, 64, 48)[: len(skips)] if channels is None else channels
        if len(channels) != len(skips):
            raise ValueError(f"needs a width for each of {len(skips)} maps, but 'channels' has {len(channels)}")
        width = coarsest.channels
        steps = []
        for skip, out_channels in zip(reversed(skips), channels, strict=True):
            steps.append(_Up(width, skip.channels, out_channels))
            width = out_channels
        self.steps = nn.ModuleList(steps)
        self.classify = Classifier(width, num_classes)
        supervised = channels[:-1] if deep_supervision else ()
        self.classify_coarser = nn.ModuleList(Classifier(width, num_classes) for width in supervised)

    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        *skips, x = features
        maps = []
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
            maps.append(x)
        return with_aux(self.classify(x), self.classify_coarser, maps[:-1])
