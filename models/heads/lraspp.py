"""Head of MobileNetV3's segmentation network."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register()
class LRASPPHead(Head):
    """Lite R-ASPP: weigh the coarsest map's channels by its mean, classify it, and add the scores of a finer map.

    Source: Howard et al. 2019, https://arxiv.org/abs/1905.02244, section 6.4 and figure 10, with the mean over the
    whole map as in torchvision. The paper takes level 3 and, at an output stride of 16, the coarsest.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        channels: Width of the coarsest map before it is classified.
        low_level: Level of the finer map; the logits are as large.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 128,
        low_level: Annotated[int, Between(1, 4)] = 3,
    ) -> None:
        super().__init__()
        self.fine = at_level(shapes, low_level)
        wide = shapes[-1].channels
        self.reduce = ConvNormAct(wide, channels, 1)
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(wide, channels, 1, bias=False), nn.Sigmoid())
        self.classify_fine = Classifier(shapes[self.fine].channels, num_classes)
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine = features[self.fine]
        coarse = features[-1]
        weighed = resize_like(self.reduce(coarse) * self.weigh(coarse), fine)
        logits: Tensor = self.classify(weighed) + self.classify_fine(fine)
        return logits
