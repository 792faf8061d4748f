"""Linear head, with which frozen encoders are judged."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, resize_like
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register()
class LinearHead(Head):
    """Normalize one map, or several side by side, and classify each pixel by itself.

    With ``"freeze_backbone": true`` it says what an encoder knows; training it is cheap.

    Source: Oquab et al. 2023, https://arxiv.org/abs/2304.07193, section 7.4: batch norm and a linear layer on the
    last map of a frozen encoder, or on four.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        levels: Maps to classify, brought to the size of the finest of them; null is the coarsest. All four of a plain
            vision transformer are 2, 3, 4, 5.
        dropout: Share of channels dropped before the classifier in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        levels: tuple[Annotated[int, Between(1, 5)], ...] | None = None,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        if levels is not None and not levels:
            raise ValueError("needs at least one number in 'levels'")
        self.indices = sorted(at_level(shapes, level) for level in levels or (shapes[-1].level,))
        channels = sum(shapes[index].channels for index in self.indices)
        self.norm = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout2d(dropout)
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        finest = features[self.indices[0]]
        x = torch.cat([resize_like(features[index], finest) for index in self.indices], dim=1)
        logits: Tensor = self.classify(self.dropout(self.norm(x)))
        return logits
