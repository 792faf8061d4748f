"""Aligned Xception, with timm's parameter names, at any output stride."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride, Positive, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES

EPS = 1e-3  # of the published networks' batch norms


def _separable(
    in_channels: int, out_channels: int, *, stride: int = 1, dilation: int = 1, act: type[nn.Module] | None = None
) -> nn.Sequential:
    """Depthwise 3x3, then 1x1 convolution, each with a batch norm and, if given, an activation."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv_dw"] = nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation, in_channels, bias=False)
    layers["bn_dw"] = nn.BatchNorm2d(in_channels, EPS)
    if act is not None:
        layers["act_dw"] = act(inplace=True)
    layers["conv_pw"] = nn.Conv2d(in_channels, out_channels, 1, bias=False)
    layers["bn_pw"] = nn.BatchNorm2d(out_channels, EPS)
    if act is not None:
        layers["act_pw"] = act(inplace=True)
    return nn.Sequential(layers)


def _conv(
    in_channels: int, out_channels: int, kernel_size: int, stride: int, act: type[nn.Module] | None = None
) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv"] = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    layers["bn"] = nn.BatchNorm2d(out_channels, EPS)
    if act is not None:
        layers["act"] = act(inplace=True)
    return nn.Sequential(layers)


class _Block(nn.Module):
    """Three separable convolutions, each on a rectified map, and a shortcut past them from the unrectified one.

    Args:
        in_channels: Channels of the input.
        widths: Channels of the result of each of the three.
        stride: Of the last one.
        dilation: Of all.
        project: Let the shortcut go through a 1x1 convolution.
        act: Class of the activation.
    """

    def __init__(
        self,
        in_channels: int,
        widths: tuple[int, ...],
        *,
        stride: int = 1,
        dilation: int = 1,
        project: bool = False,
        act: type[nn.Module],
    ) -> None:
        super().__init__()
        self.shortcut = _conv(in_channels, widths[-1], 1, stride) if project else nn.Identity()
        first, second, third = widths
        self.stack = nn.ModuleDict(
            {
                "conv1": _separable(in_channels, first, dilation=dilation),
                "conv2": _separable(first, second, dilation=dilation),
                "conv3": _separable(second, third, stride=stride, dilation=dilation),
            }
        )
        self.act = act()
        self.act_inplace = act(inplace=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The result, and what goes into the last convolution: the last map before the stride."""
        y = self.stack["conv1"](self.act(x))  # not in place, or the shortcut would see a rectified map too
        y = self.stack["conv2"](self.act_inplace(y))
        before = self.act_inplace(y)
        return self.stack["conv3"](before) + self.shortcut(x), before


@BACKBONES.register("xception41", variant="xception41", middle=8, entry=((128, 2), (256, 2), (728, 2)))
@BACKBONES.register("xception65", variant="xception65", middle=16, entry=((128, 2), (256, 2), (728, 2)))
@BACKBONES.register(
    "xception71", variant="xception71", middle=16, entry=((128, 2), (256, 1), (256, 2), (728, 1), (728, 2))
)
class Xception(Backbone):
    """Separable convolutions with shortcuts, strides in place of pools; strides beyond `output_stride` dilate.

    A level's map is what goes into the convolution whose stride leads to the next level; that of level 2 has 256
    channels, as DeepLabV3+ takes it. It is taken behind the rectifier, as timm does, not before it.

    Source: Chen et al. 2018, https://arxiv.org/abs/1802.02611, figure 4.

    Args:
        variant: Whose public weights fit.
        middle: Units of the middle flow.
        entry: Channels and stride of each block of the entry flow.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
        bounded: Use ReLU6, as quantization likes it, in place of ReLU.
        multi_grid: Rates that multiply the dilation of each of the last three convolutions, such as [1, 2, 4]
            (https://arxiv.org/abs/1706.05587, section 3.1).
    """

    def __init__(
        self,
        variant: str,
        middle: int,
        entry: tuple[tuple[int, int], ...],
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
        bounded: bool = False,
        multi_grid: tuple[Positive, Positive, Positive] | None = None,
    ) -> None:
        super().__init__()
        if width_mult == 1:
            self.weights = f"timm/{variant}.tf_in1k"
        act: type[nn.Module] = nn.ReLU6 if bounded else nn.ReLU
        stages = iter(strides_and_dilations(output_stride or 32))
        stride, _ = next(stages)
        channels = scaled(64, width_mult)
        first = scaled(32, width_mult)
        self.stem = nn.Sequential(_conv(in_channels, first, 3, stride, act), _conv(first, channels, 3, 1, act))
        blocks: list[nn.Module] = []
        shapes: list[FeatureShape] = []
        self.ends: list[int] = []  # blocks whose last convolution is strided, in the undilated network
        dilation = 1
        for published, step in _flow(entry, middle):
            widths = tuple(scaled(width, width_mult) for width in published)
            project = step == 2 or channels != widths[-1]
            following = dilation
            if step == 2:
                self.ends.append(len(blocks))
                shapes.append(FeatureShape(widths[-2], stride, len(shapes) + 1))
                step, following = next(stages)
                stride *= step
            blocks.append(_Block(channels, widths, stride=step, dilation=dilation, project=project, act=act))
            channels = widths[-1]
            dilation = following
        wide = scaled(1536, width_mult)
        last = scaled(2048, width_mult)
        # The last block has no shortcut, and activations inside.
        first_rate, second_rate, third_rate = multi_grid or (1, 1, 1)
        stack: OrderedDict[str, nn.Module] = OrderedDict(
            conv1=_separable(channels, wide, dilation=dilation * first_rate, act=act),
            conv2=_separable(wide, wide, dilation=dilation * second_rate, act=act),
            conv3=_separable(wide, last, dilation=dilation * third_rate, act=act),
        )
        blocks.append(nn.Sequential(OrderedDict(stack=nn.Sequential(stack))))
        self.blocks = nn.ModuleList(blocks)
        self.shapes = (*shapes, FeatureShape(last, stride, 5))

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = self.stem(images)
        *blocks, last = self.blocks
        for i, block in enumerate(blocks):
            x, before = block(x)
            if i in self.ends:
                features.append(before)
        return [*features, last(x)]


BACKBONES.also_called("xception65", "xception")  # the default of pytorch-segmentation's DeepLab


def _flow(entry: tuple[tuple[int, int], ...], middle: int) -> Iterator[tuple[tuple[int, ...], int]]:
    """Give the channels of the three convolutions and the stride of every block with a shortcut."""
    for width, stride in entry:
        yield (width, width, width), stride
    for _ in range(middle):
        yield (728, 728, 728), 1
    yield (728, 1024, 1024), 2
