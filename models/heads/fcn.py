"""Fully convolutional head."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive
from utils.registry import HEADS
from utils.schema import AtLeast, Between


@HEADS.register()
class FCNHead(Head):
    """Classify one feature map, after some 3x3 convolutions; on an earlier level it serves as an auxiliary head.

    Source: torchvision's FCN head, and the tail of its DeepLabV3 with ``channels=256, dropout=0``.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        level: Map to classify; null is the coarsest.
        convs: 3x3 convolutions before the classifier.
        channels: Their width; null is the map's divided by `reduction`.
        reduction: See `channels`.
        dropout: Share of values dropped before the classifier in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        level: Annotated[int, Between(1, 5)] | None = None,
        convs: Annotated[int, AtLeast(0)] = 1,
        channels: Positive | None = None,
        reduction: Positive = 4,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        self.index = len(shapes) - 1 if level is None else at_level(shapes, level)
        width = shapes[self.index].channels
        out_channels = channels or max(1, width // reduction)
        layers: list[nn.Module] = []
        for _ in range(convs):
            layers.append(ConvNormAct(width, out_channels))
            width = out_channels
        self.convs = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.classify = Classifier(width, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.dropout(self.convs(features[self.index]))
        logits: Tensor = self.classify(x)
        return logits
