"""Mask transformer of Segmenter."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape, Head
from models.blocks import Positive, TransformerBlock
from utils.registry import HEADS
from utils.schema import Between


@HEADS.register()
class SegmenterHead(Head):
    """Let a token for each class look at the coarsest map, and compare each pixel with each class.

    Source: Strudel et al. 2021, https://arxiv.org/abs/2105.05633, section 3.2: the logits are the products of
    normalized pixels and classes, through a layer norm over the classes.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        channels: Width of the tokens; null is the map's.
        layers: Transformer blocks.
        heads: Of the attention, by which the width must be divisible; null is one for 64 channels.
        dropout: Share of what a block adds that is dropped in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive | None = None,
        layers: Positive = 2,
        heads: Positive | None = None,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        width = channels or shapes[-1].channels
        heads = heads or max(1, width // 64)
        if width % heads:
            raise ValueError(f"needs a width that is a multiple of its {heads} 'heads', but has {width} channels")
        self.embed = nn.Linear(shapes[-1].channels, width)
        self.classes = nn.Parameter(torch.zeros(1, num_classes, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.project_pixels = nn.Linear(width, width, bias=False)
        self.project_classes = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes)

    def start_weights(self) -> None:
        """Draw what the network begins with, which is not what convolutions begin with."""
        nn.init.trunc_normal_(self.classes, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for projection in (self.project_pixels, self.project_classes):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = features[-1]
        height, width = x.shape[-2:]
        pixels = self.embed(x.flatten(2).transpose(1, 2))
        tokens = torch.cat([pixels, self.classes.expand(x.shape[0], -1, -1)], dim=1)
        tokens = self.norm(self.blocks(tokens))
        count = self.classes.shape[1]
        pixels = F.normalize(self.project_pixels(tokens[:, :-count]), dim=-1)
        classes = F.normalize(self.project_classes(tokens[:, -count:]), dim=-1)
        logits: Tensor = self.mask_norm(pixels @ classes.transpose(1, 2))
        return logits.transpose(1, 2).reshape(x.shape[0], count, height, width)
