"""Decoder of DeepLabV3+."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, SeparableConvNormAct, resize_like
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register("DeepLabV3PlusHead")
@HEADS.register("deeplabv3_plus_decoder")
class DeepLabV3PlusHead(Head):
    """Sharpen the coarsest feature map with the level-2 one.

    Source: Chen et al. 2018, https://arxiv.org/abs/1802.02611, section 4.1: 48 low-level channels and two
    3x3 convolutions of 256 did best.

    Args:
        shapes: Feature maps to expect, finest first; one must be of level 2.
        num_classes: Channels of the logits.
        channels: Width of the two refining convolutions.
        low_level_channels: Width to which the level-2 map is reduced, so that it does not drown the other.
        separable: Make the refining convolutions depthwise-separable.
        batch_norm: Have batch norms, and biases where there are none.
        dropout: Share of values dropped before the classifier in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 256,
        low_level_channels: Positive = 48,
        separable: bool = False,
        batch_norm: bool = True,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        self.fine = at_level(shapes, 2)
        conv = SeparableConvNormAct if separable else ConvNormAct
        self.reduce = ConvNormAct(shapes[self.fine].channels, low_level_channels, 1, norm=batch_norm)
        self.refine = nn.Sequential(
            conv(shapes[-1].channels + low_level_channels, channels, norm=batch_norm),
            conv(channels, channels, norm=batch_norm),
            nn.Dropout(dropout),
        )
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine = self.reduce(features[self.fine])
        coarse = resize_like(features[-1], fine)
        refined = self.refine(torch.cat([coarse, fine], dim=1))
        logits: Tensor = self.classify(refined)
        return logits
