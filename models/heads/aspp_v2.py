"""Head of DeepLabV2."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from base.base_model import FeatureShape, Head
from models.blocks import Classifier, Positive
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register()
class ASPPv2Head(Head):
    """Classify the coarsest map in several ways, each with another dilation, and add their logits.

    Source: Chen et al. 2016, https://arxiv.org/abs/1606.00915, figure 7 b.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        rates: Dilations of the 3x3 convolutions; null is 6, 12, 18, 24 at stride 8 and in proportion elsewhere, so
            that they reach as far in the image.
        channels: Width of the two convolutions before each classifier.
        dropout: Share of channels dropped behind each of them in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        rates: tuple[Positive, ...] | None = None,
        channels: Positive = 1024,
        dropout: Annotated[float, Between(0, 1)] = 0.5,
    ) -> None:
        super().__init__()
        if rates is None:
            rates = tuple(max(1, rate * 8 // shapes[-1].stride) for rate in (6, 12, 18, 24))
        if not rates:
            raise ValueError("needs at least one number in 'rates'")
        self.branches = nn.ModuleList()
        for rate in rates:
            branch = nn.Sequential(
                nn.Conv2d(shapes[-1].channels, channels, 3, padding=rate, dilation=rate),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
                nn.Conv2d(channels, channels, 1),
                nn.ReLU(inplace=True),
                nn.Dropout2d(dropout),
                Classifier(channels, num_classes),
            )
            self.branches.append(branch)

    def forward(self, features: list[Tensor]) -> Tensor:
        first, *others = self.branches
        logits: Tensor = first(features[-1])
        for branch in others:
            logits = logits + branch(features[-1])
        return logits
