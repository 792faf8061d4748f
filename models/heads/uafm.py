"""Decoder of PP-LiteSeg."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, ConvNormAct, Positive, resize_like, with_aux
from models.necks.pyramid_pooling import GridMean
from utils.outputs import SegOutput
from utils.registry import HEADS

LEVELS = (3, 4, 5)


class SPPM(nn.Module):
    """Simple pyramid pooling: means over parts of the map, added up and refined.

    Source: Peng et al. 2022, https://arxiv.org/abs/2204.02681, section 3.3.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the output.
        bins: The map is divided into bins x bins parts, once for each of these.
    """

    def __init__(self, in_channels: int, channels: int, bins: tuple[int, ...] = (1, 2, 4)) -> None:
        super().__init__()
        self.pools = nn.ModuleList(
            nn.Sequential(GridMean(size), ConvNormAct(in_channels, channels, 1)) for size in bins
        )
        self.refine = ConvNormAct(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.stack([resize_like(pool(x), x) for pool in self.pools])
        refined: Tensor = self.refine(parts.sum(0))
        return refined


class UAFM(nn.Module):
    """Unified attention fusion: let each pixel choose between a fine map and an enlarged coarse one.

    Source: Peng et al. 2022, section 3.2, with spatial attention.

    Args:
        fine_channels: Channels of the fine map.
        coarse_channels: Channels of the coarse map.
        channels: Channels of the output.
    """

    def __init__(self, fine_channels: int, coarse_channels: int, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNormAct(fine_channels, coarse_channels)
        self.weigh = nn.Sequential(ConvNormAct(4, 2), ConvNormAct(2, 1, act=None))
        self.refine = ConvNormAct(coarse_channels, channels)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        fine = self.reduce(fine)
        coarse = resize_like(coarse, fine)
        seen = []
        for x in (fine, coarse):
            seen += [x.mean(1, keepdim=True), x.amax(1, keepdim=True)]
        share = self.weigh(torch.cat(seen, dim=1)).sigmoid()
        refined: Tensor = self.refine(share * fine + (1 - share) * coarse)
        return refined


@HEADS.register()
class UAFMHead(Head):
    """PP-LiteSeg's decoder: pyramid pooling on the coarsest map, which then meets one finer map after the other.

    `decoded` describes the maps that `decode` makes, finest first.

    Source: Peng et al. 2022, https://arxiv.org/abs/2204.02681, section 3, figure 2. The paper takes levels 3 to 5.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        widths: Channels behind the fusion with each of levels 3 to 5; (64, 96, 128) for PP-LiteSeg-B.
        context_channels: Width of the pyramid pooling.
        channels: Width of the 3x3 convolution before the classifier.
        deep_supervision: Classify the two coarser maps too in training, as auxiliary outputs.
    """

    needs_batch = True  # of the pyramid pooling

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        widths: tuple[Positive, ...] = (32, 64, 128),
        context_channels: Positive = 128,
        channels: Positive = 64,
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != len(LEVELS):
            raise ValueError(f"needs a width for each of {len(LEVELS)} levels, but 'widths' has {len(widths)}")
        self.indices = [at_level(shapes, level) for level in LEVELS]
        self.context = SPPM(shapes[self.indices[-1]].channels, context_channels)
        coarse = context_channels
        fusions: list[nn.Module] = []  # coarsest first
        decoded: list[FeatureShape] = []
        for i, width in zip(reversed(self.indices), reversed(widths), strict=True):
            fusions.append(UAFM(shapes[i].channels, coarse, width))
            decoded.insert(0, shapes[i]._replace(channels=width))
            coarse = width
        self.fusions = nn.ModuleList(fusions)
        self.decoded = tuple(decoded)
        self.head = nn.Sequential(ConvNormAct(coarse, channels), Classifier(channels, num_classes))
        supervised = decoded[1:] if deep_supervision else []
        self.classify_coarser = nn.ModuleList(Classifier(shape.channels, num_classes) for shape in supervised)

    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Compute the maps (N, channels, h, w) of levels 3 to 5."""
        x = self.context(features[self.indices[-1]])
        maps: list[Tensor] = []
        for fuse, i in zip(self.fusions, reversed(self.indices), strict=True):
            x = fuse(features[i], x)
            maps.insert(0, x)
        return maps

    def classify(self, decoded: Tensor) -> Tensor:
        """Compute logits (N, num_classes, h, w) of the finest map."""
        logits: Tensor = self.head(decoded)
        return logits

    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        finest, *coarser = self.decode(features)
        return with_aux(self.classify(finest), self.classify_coarser, coarser)
