"""MobileNetV2, with torchvision's parameter names, at any output stride."""

from __future__ import annotations

from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.blocks import ConvNormAct, OutputStride, Positive, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES

# Table 2 of the paper: expansion, channels, blocks, and the level whose stride the first block does, if any.
ROWS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 3), (6, 64, 4, 4), (6, 96, 3, 4), (6, 160, 3, 5), (6, 320, 1, 5))


class InvertedResidual(nn.Module):
    """Expand with 1x1, filter depthwise with 3x3, project with 1x1; a shortcut where sizes allow it.

    Source: Sandler et al. 2018, https://arxiv.org/abs/1801.04381, section 3.3.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        expansion: Channels inside, as a multiple of `in_channels`.
        stride: Of the 3x3 convolution.
        dilation: Of the 3x3 convolution.
        shortcut: Add the input; needs equal channels and no stride.
    """

    def __init__(
        self, in_channels: int, out_channels: int, expansion: int, *, stride: int, dilation: int, shortcut: bool
    ) -> None:
        super().__init__()
        inner = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(ConvNormAct(in_channels, inner, 1, act=nn.ReLU6))
        layers.append(ConvNormAct(inner, inner, stride=stride, dilation=dilation, groups=inner, act=nn.ReLU6))
        layers += ConvNormAct(inner, out_channels, 1, act=None)  # taken apart, as torchvision names its parameters
        self.conv = nn.Sequential(*layers)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.shortcut else out


@BACKBONES.register("mobilenet_v2")
class MobileNetV2(Backbone):
    """Network of inverted residuals; strides beyond `output_stride` are replaced by dilation.

    Source: Sandler et al. 2018, https://arxiv.org/abs/1801.04381, table 2, without its 1280-channel layer.

    Args:
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
        multi_grid: Instead of the 320-channel block, end with one further 160-channel block and one for each of
            these rates, which multiply its dilation; the blocks start from the last published 160-channel one.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
        multi_grid: tuple[Positive, ...] | None = None,
    ) -> None:
        super().__init__()
        if width_mult == 1:
            self.weights = "mobilenet_v2"
        stages = strides_and_dilations(output_stride or 32)
        channels = scaled(32, width_mult)
        stride, _ = stages[0]
        reached = 1  # level of the layers so far
        layers: list[nn.Module] = [ConvNormAct(in_channels, channels, stride=stride, act=nn.ReLU6)]
        ends: dict[int, int] = {}  # level -> its last layer
        shapes: dict[int, FeatureShape] = {}
        for expansion, published, count, level in ROWS[:-1] if multi_grid else ROWS:
            width = scaled(published, width_mult)
            for _ in range(count):
                new = level > reached
                step, dilation = stages[level - 1]
                if new:  # its stride, if it has one, comes after the filter of the old dilation
                    _, dilation = stages[level - 2]
                    stride *= step
                    reached = level
                else:
                    step = 1
                shortcut = not new and channels == width  # as in the undilated network, where `new` ones have strides
                layers.append(
                    InvertedResidual(channels, width, expansion, stride=step, dilation=dilation, shortcut=shortcut)
                )
                channels = width
            ends[level] = len(layers) - 1
            shapes[level] = FeatureShape(channels, stride, level)
        self.features = nn.ModuleList(layers)
        self.grid = nn.Sequential()
        for rate in (1, *multi_grid) if multi_grid else ():
            _, dilation = stages[-1]
            self.grid.append(InvertedResidual(channels, channels, 6, stride=1, dilation=dilation * rate, shortcut=True))
        self.ends = frozenset(ends.values())
        self.shapes = tuple(shapes.values())

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = images
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                features.append(x)
        features[-1] = self.grid(features[-1])
        return features

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Add the weights of the multi-grid blocks to those of a published network."""
        if not len(self.grid) or any(key.startswith("grid.") for key in state):
            return state
        last = f"features.{len(self.features) - 1}."
        published = {key.removeprefix(last): value for key, value in state.items() if key.startswith(last)}
        copies = {}
        for i in range(len(self.grid)):
            for key, value in published.items():
                copies[f"grid.{i}.{key}"] = value
        return {**state, **copies}
