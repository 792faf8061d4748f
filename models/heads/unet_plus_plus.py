"""Decoder of U-Net++, for any backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from base.base_model import FeatureShape, Head
from models.blocks import Classifier, ConvNormAct, Positive, resize_like, with_aux
from utils.outputs import SegOutput
from utils.registry import HEADS


@HEADS.register()
class UNetPlusPlusHead(Head):
    """Fill the skips of U-Net with nodes, each of which sees all before it on its level and one of the level below.

    The logits are of the finest map.

    Source: Zhou et al. 2018, https://arxiv.org/abs/1807.10165, section 3.1, equation 1, with 32 to 256 channels on
    levels 1 to 4; section 3.2 for deep supervision. Maps are resized, not deconvolved.

    Args:
        shapes: Feature maps to expect, finest first.
        num_classes: Channels of the logits.
        channels: Width of the nodes of the finest level; each coarser level has twice as many.
        deep_supervision: Classify all nodes of the finest level in training, the earlier ones as auxiliary outputs.
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
        if len(shapes) < 2:
            raise ValueError(f"needs two feature maps or more, but is offered {len(shapes)}")
        widths = [channels * 2**i for i in range(len(shapes) - 1)]
        below = [shape.channels for shape in shapes]  # of the last node of each level so far
        seen = list(below)  # of all nodes of each level so far
        columns: list[nn.Module] = []
        for depth in range(1, len(shapes)):
            column: list[nn.Module] = []
            for level in range(len(shapes) - depth):
                in_channels = seen[level] + below[level + 1]
                node = (ConvNormAct(in_channels, widths[level]), ConvNormAct(widths[level], widths[level]))
                column.append(nn.Sequential(*node))
            for level in range(len(column)):
                seen[level] += widths[level]
                below[level] = widths[level]
            columns.append(nn.ModuleList(column))
        self.columns = nn.ModuleList(columns)
        self.classify = Classifier(widths[0], num_classes)
        supervised = columns[:-1] if deep_supervision else []
        self.classify_earlier = nn.ModuleList(Classifier(widths[0], num_classes) for _ in supervised)

    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        seen = [[x] for x in features]  # nodes by level
        for column in self.columns:
            made: list[Tensor] = []
            for level, node in enumerate(_nodes(column)):
                enlarged = resize_like(seen[level + 1][-1], seen[level][0])
                made.append(node(torch.cat([*seen[level], enlarged], dim=1)))
            for nodes, x in zip(seen, made, strict=False):  # the coarsest level of the column gets none
                nodes.append(x)
        _, *earlier, last = seen[0]  # without the map that the backbone made
        return with_aux(self.classify(last), self.classify_earlier, earlier)


def _nodes(column: nn.Module) -> list[nn.Module]:
    return list(column.children())
