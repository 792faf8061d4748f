"""Decoder of LinkNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head
from models.blocks import Classifier, ConvNormAct, Positive, resize_like, with_aux
from utils.outputs import SegOutput
from utils.registry import HEADS


class _Up(nn.Module):
    """Reduce to a quarter, bring to the size of the finer map, convolve, and add the finer map. Source: figure 3."""

    def __init__(self, in_channels: int, skip_channels: int) -> None:
        super().__init__()
        inner = max(1, in_channels // 4)
        self.reduce = ConvNormAct(in_channels, inner, 1)
        self.refine = ConvNormAct(inner, inner)
        self.expand = ConvNormAct(inner, skip_channels, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        refined: Tensor = self.refine(resize_like(self.reduce(x), skip))
        return torch.add(skip, self.expand(refined))


@HEADS.register()
class LinkNetHead(Head):
    """Go up from the coarsest map to the finest and add every map on the way; the logits are of level 1.

    Source: Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718, section 3, figures 2 and 3. Maps are
    resized and convolved, not deconvolved, which suits every size and dilated backbones.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        channels: Width of the last two convolutions.
        deep_supervision: Classify the map of every step in training, the coarser ones as auxiliary outputs.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 32,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        width = shapes[-1].channels
        self.steps = nn.ModuleList()
        for skip in reversed(shapes[:-1]):
            self.steps.append(_Up(width, skip.channels))
            width = skip.channels
        self.refine = nn.Sequential(ConvNormAct(width, channels), ConvNormAct(channels, channels))
        self.classify = Classifier(channels, num_classes)
        supervised = shapes[-2:0:-1] if deep_supervision else ()
        self.classify_coarser = nn.ModuleList(Classifier(shape.channels, num_classes) for shape in supervised)

    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        *skips, x = features
        maps = []
        for step, skip in zip(self.steps, reversed(skips), strict=True):
            x = step(x, skip)
            maps.append(x)
        return with_aux(self.classify(self.refine(x)), self.classify_coarser, maps[:-1])
