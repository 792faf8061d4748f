"""Head of SegNeXt."""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, Positive, resize_like
from utils.precision import without_autocast
from utils.registry import HEADS
from utils.schema import Between

LEVELS = (3, 4, 5)
TRAIN_STEPS, EVAL_STEPS = 6, 7  # of the multiplicative updates
EPS = 1e-6
SEED = 0  # of the bases that every factorization starts from


class _Factorization(nn.Module):
    """Replace each image's map (N, C, h, w), at least 0, by the nearest product of C x R bases and R x hw coefficients.

    Both are found by multiplicative updates, which keep them at 0 or above. The authors start from bases that are drawn
    anew in every pass, also in evaluation; here they are drawn once, from a seed of their own, and kept with the
    weights, so that an image has one result.

    Source: Geng et al. 2021, https://arxiv.org/abs/2109.04553, section 2.2.

    Args:
        channels: Channels of the map.
        rank: Number of bases.
    """

    bases: Tensor

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(SEED)
        drawn = torch.rand(channels, rank, generator=source, device="cpu")
        self.register_buffer("bases", F.normalize(drawn, dim=0).to(torch.get_default_device()))

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device):  # quotients of sums over all pixels
            values = x.flatten(2).to(torch.promote_types(x.dtype, torch.float32))
            # One copy for each image: a graph of every size can express no product with a shared one.
            bases = self.bases.to(values.dtype) + values.new_zeros(values.shape[0], 1, 1)
            coefficients = (values.mT @ bases).softmax(-1)
            for _ in range(TRAIN_STEPS if self.training else EVAL_STEPS):
                coefficients = _updated(coefficients, values.mT, bases)
                bases = _updated(bases, values, coefficients)
            coefficients = _updated(coefficients, values.mT, bases)
            nearest = bases @ coefficients.mT
        return nearest.to(x.dtype).view_as(x)


def _updated(factor: Tensor, values: Tensor, other: Tensor) -> Tensor:
    """Bring ``factor @ other.mT`` nearer to `values`: factor (N, A, R), values (N, A, B), other (N, B, R)."""
    return factor * (values @ other) / (factor @ (other.mT @ other) + EPS)


class _GroupNorm(nn.GroupNorm):
    """Group norm of 32 groups, or of as many as go into the channels, which is exported for every size.

    torch's own compares the number of pixels with 1, which no graph can express.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(math.gcd(32, channels), channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


@HEADS.register()
class LightHamHead(Head):
    """Bring levels 3 to 5 to the size of level 3, and explain what they hold by few bases for the whole image.

    Source: Guo et al. 2022, https://arxiv.org/abs/2209.08575, section 3.2, figure 3 (c). The authors take 256, 256, 512
    and 1024 channels on the backbones T to L.

    Args:
        shapes: Feature maps to expect, finest first; levels 3 to 5.
        num_classes: Channels of the logits.
        channels: Width of the head.
        rank: Number of bases.
        dropout: Share of channels dropped before the classifier in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 256,
        rank: Positive = 64,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        self.indices = [at_level(shapes, level) for level in LEVELS]
        width = sum(shapes[i].channels for i in self.indices)
        self.squeeze = nn.Sequential(
            nn.Conv2d(width, channels, 1, bias=False), _GroupNorm(channels), nn.ReLU(inplace=True)
        )
        self.enter = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True))
        self.factorize = _Factorization(channels, rank)
        self.leave = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), _GroupNorm(channels))
        self.align = nn.Sequential(
            nn.Conv2d(channels, channels, 1, bias=False), _GroupNorm(channels), nn.ReLU(inplace=True)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classify = Classifier(channels, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        finest, *coarser = (features[i] for i in self.indices)
        x = self.squeeze(torch.cat([finest, *(resize_like(each, finest) for each in coarser)], dim=1))
        x = F.relu(x + self.leave(self.factorize(self.enter(x))))
        logits: Tensor = self.classify(self.dropout(self.align(x)))
        return logits
