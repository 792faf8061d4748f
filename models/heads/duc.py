"""Dense upsampling convolution."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like
from utils.registry import HEADS
from utils.schema import Between


class _Shuffle(nn.Module):
    """Make `factor` x `factor` pixels of each by a 1x1 convolution.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the result.
        factor: Pixels per side that one becomes; 1 leaves a plain convolution.
        logits: Give what the convolution gives; normalize and rectify it otherwise.
    """

    def __init__(self, in_channels: int, out_channels: int, factor: int, *, logits: bool = False) -> None:
        super().__init__()
        width = out_channels * factor**2
        self.factor = factor
        self.convs = Classifier(in_channels, width) if logits else ConvNormAct(in_channels, width, 1)

    def start_weights(self) -> None:
        """Let all pixels made of one begin alike, as by nearest-neighbor resizing, or a checkered pattern shows.

        Source: "ICNR", Aitken et al. 2017, https://arxiv.org/abs/1707.02937, section 3.
        """
        conv = next(module for module in self.modules() if isinstance(module, nn.Conv2d))
        with torch.no_grad():
            # The channels of one result stand one behind the other, one for each of its pixels.
            kernels = conv.weight.reshape(-1, self.factor**2, *conv.weight.shape[1:])
            conv.weight.copy_(kernels[:, :1].expand_as(kernels).flatten(0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.convs(x), self.factor)


@HEADS.register()
class DUCHead(Head):
    """Learn to enlarge: the coarsest map to level 2, and both together to logits of every pixel of the image.

    Source: Wang et al. 2017, https://arxiv.org/abs/1702.08502, section 3.1, with the decoder of DeepLabV3+ between
    both steps. The logits are neither normalized nor rectified. They may reach beyond the image, to whole pixels of
    the level-2 map; the model cuts that off.

    Args:
        shapes: Feature maps to expect, finest first; one must be of level 2.
        num_classes: Channels of the logits.
        channels: Width of the two refining convolutions.
        low_level_channels: Width to which the level-2 map is reduced.
        dropout: Share of values dropped before the last convolution in training.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        channels: Positive = 256,
        low_level_channels: Positive = 48,
        dropout: Annotated[float, Between(0, 1)] = 0.1,
    ) -> None:
        super().__init__()
        self.fine = at_level(shapes, 2)
        fine = shapes[self.fine]
        coarse = shapes[-1]
        self.enlarge = _Shuffle(coarse.channels, channels, max(1, coarse.stride // fine.stride))
        self.reduce = ConvNormAct(fine.channels, low_level_channels, 1)
        self.refine = nn.Sequential(
            ConvNormAct(channels + low_level_channels, channels),
            ConvNormAct(channels, channels),
            nn.Dropout(dropout),
        )
        self.classify = _Shuffle(channels, num_classes, fine.stride, logits=True)

    def forward(self, features: list[Tensor]) -> Tensor:
        fine = self.reduce(features[self.fine])
        coarse = self.enlarge(features[-1])[..., : fine.shape[-2], : fine.shape[-1]]
        # A backbone that rounds down leaves less than the finer map covers; only then is there something to resize.
        refined = self.refine(torch.cat([resize_like(coarse, fine), fine], dim=1))
        logits: Tensor = self.classify(refined)
        return logits
