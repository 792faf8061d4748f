"""DenseNet, with torchvision's parameter names, at any output stride."""

from __future__ import annotations

import re
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES


class _DenseLayer(nn.Module):
    """New channels from all that there are: a 1x1 and a 3x3 convolution, each behind norm and ReLU.

    Source: section 3, "Bottleneck layers".
    """

    def __init__(self, in_channels: int, growth: int, dilation: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, 4 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(F.relu(self.norm1(x), inplace=True))
        new: Tensor = self.conv2(F.relu(self.norm2(x), inplace=True))
        return new


class _DenseBlock(nn.ModuleDict):
    """Each layer sees what all layers before it gave."""

    def __init__(self, in_channels: int, depth: int, growth: int, dilation: int) -> None:
        super().__init__()
        for i in range(depth):
            self[f"denselayer{i + 1}"] = _DenseLayer(in_channels + i * growth, growth, dilation)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.values():
            x = torch.cat([x, layer(x)], dim=1)
        return x


@BACKBONES.register("densenet121", variant="densenet121", stem=64, growth=32, depths=(6, 12, 24, 16))
@BACKBONES.register("densenet169", variant="densenet169", stem=64, growth=32, depths=(6, 12, 32, 32))
@BACKBONES.register("densenet201", variant="densenet201", stem=64, growth=32, depths=(6, 12, 48, 32))
@BACKBONES.register("densenet161", variant="densenet161", stem=96, growth=48, depths=(6, 12, 36, 24))
class DenseNet(Backbone):
    """Blocks of densely connected layers; strides beyond `output_stride` are replaced by dilation.

    The maps of levels 2 to 4 are what the transitions' convolutions give, before their pools. Where a transition
    lost its stride, it goes on taking the mean of four values, now without leaving any out, so that published
    weights see what they were trained on.

    Source: Huang et al. 2016, https://arxiv.org/abs/1608.06993, table 1; parameters are named as in torchvision.

    Args:
        variant: Whose public weights fit.
        stem: Channels of the first convolution.
        growth: Channels that each layer adds.
        depths: Layers of the four blocks.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
    """

    def __init__(
        self,
        variant: str,
        stem: int,
        growth: int,
        depths: tuple[int, int, int, int],
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
    ) -> None:
        super().__init__()
        if width_mult == 1:
            self.weights = variant
        self.stages = strides_and_dilations(output_stride or 32)
        growth = scaled(growth, width_mult)
        channels = scaled(stem, width_mult)
        stride, _ = self.stages[0]
        layers: list[tuple[str, nn.Module]] = [
            ("conv0", nn.Conv2d(in_channels, channels, 7, stride, 3, bias=False)),
            ("norm0", nn.BatchNorm2d(channels)),
        ]
        shapes = [FeatureShape(channels, stride, 1)]
        stride *= self.stages[1][0]
        for i, depth in enumerate(depths, start=1):
            dilation = self.stages[i][1]
            layers.append((f"denseblock{i}", _DenseBlock(channels, depth, growth, dilation)))
            channels += depth * growth
            if i < len(depths):
                layers.append((f"transition{i}", _transition(channels)))
                channels //= 2
                shapes.append(FeatureShape(channels, stride, i + 1))
                stride *= self.stages[i + 1][0]
        layers.append(("norm5", nn.BatchNorm2d(channels)))
        self.features = nn.ModuleDict(OrderedDict(layers))
        self.shapes = (*shapes, FeatureShape(channels, stride, 5))

    def forward(self, images: Tensor) -> list[Tensor]:
        layers = self.features
        features = [F.relu(layers["norm0"](layers["conv0"](images)), inplace=True)]
        x = F.max_pool2d(features[0], 3, self.stages[1][0], 1)
        for i in (1, 2, 3):
            features.append(layers[f"transition{i}"](layers[f"denseblock{i}"](x)))
            stride, _ = self.stages[i + 1]
            _, dilation = self.stages[i]
            x = F.avg_pool2d(features[-1], 2) if stride == 2 else _mean_of_four(features[-1], dilation)
        return [*features, F.relu(layers["norm5"](layers["denseblock4"](x)), inplace=True)]

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename layers from how torchvision's files still have them: ``norm.1`` for ``norm1``."""
        old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")
        return {old.sub(r"\1", key): value for key, value in state.items()}


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(channels),
            relu=nn.ReLU(inplace=True),
            conv=nn.Conv2d(channels, channels // 2, 1, bias=False),
        )
    )


def _mean_of_four(x: Tensor, dilation: int) -> Tensor:
    """Take the 2x2 mean of stride 1 and of that dilation; the border is continued, to keep the size."""
    x = F.pad(x, (0, dilation, 0, dilation), mode="replicate")
    x = x[..., :-dilation, :] + x[..., dilation:, :]
    return (x[..., :-dilation] + x[..., dilation:]) / 4
