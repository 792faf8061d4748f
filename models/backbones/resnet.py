"""ResNet, with torchvision's parameter names, at any output stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from base.base_model import Backbone, FeatureShape
from models.blocks import GATES, ConvNormAct, OutputStride, Positive, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES

SE = Literal["cSE", "sSE", "scSE"]


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, dilation, dilation, bias=False)


class _Block(nn.Module):
    """A residual block; subclasses make the branch that is added to the shortcut."""

    expansion: int

    def __init__(self, in_channels: int, width: int, *, stride: int, project: bool, se: SE | None) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample = ConvNormAct(in_channels, out_channels, 1, stride=stride, act=None) if project else None
        self.gate = GATES[se](out_channels) if se else None

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        out = self.branch(x)
        if self.gate is not None:
            out = self.gate(out)
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(out + shortcut)
        return result


class BasicBlock(_Block):
    """Two 3x3 convolutions, the first strided.

    Args:
        in_channels: Channels of the input.
        width: Channels of both convolutions.
        stride: Of the first convolution.
        dilations: Of the convolution that has the stride, and of those that work on its result.
        project: Let the shortcut go through a 1x1 convolution.
        se: Gate before the addition.
    """

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilations: tuple[int, int],
        project: bool,
        se: SE | None,
    ) -> None:
        super().__init__(in_channels, width, stride=stride, project=project, se=se)
        self.conv1 = _conv3x3(in_channels, width, stride, dilations[0])
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, 1, dilations[1])
        self.bn2 = nn.BatchNorm2d(width)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class Bottleneck(_Block):
    """1x1, 3x3 and 1x1 convolution; the 3x3 one is strided, as in torchvision ("v1.5").

    Args:
        in_channels: Channels of the input.
        width: Channels of the 3x3 convolution; the output has four times as many.
        stride: Of the 3x3 convolution.
        dilations: Only the first is used: no 3x3 convolution works on the result of the strided one.
        project: Let the shortcut go through a 1x1 convolution.
        se: Gate before the addition.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilations: tuple[int, int],
        project: bool,
        se: SE | None,
    ) -> None:
        super().__init__(in_channels, width, stride=stride, project=project, se=se)
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride, dilations[0])
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)

    def branch(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class LargeKernelBottleneck(_Block):
    """A k x k convolution in two separable ways, added, then 1x1; costs about what `Bottleneck` does.

    Each of the four convolutions is followed by batch norm and ReLU, and strided along its own axis.

    Source: Peng et al. 2017, https://arxiv.org/abs/1703.02719, its ResNet50-GCN.

    Args:
        in_channels: Channels of the input.
        width: Channels of the 3x3 convolution that it stands for; the output has four times as many.
        stride: Of the branch.
        dilations: Only the first is used.
        project: Let the shortcut go through a 1x1 convolution.
        se: Gate before the addition.
    """

    expansion = 4
    kernel_size: int
    reduction: int  # of `width` inside

    def __init__(
        self,
        in_channels: int,
        width: int,
        *,
        stride: int,
        dilations: tuple[int, int],
        project: bool,
        se: SE | None,
    ) -> None:
        super().__init__(in_channels, width, stride=stride, project=project, se=se)
        inner = max(1, width // self.reduction)
        size = self.kernel_size
        dilation = dilations[0]
        self.left = nn.Sequential(
            _strip(in_channels, inner, size, stride, dilation, axis=0),
            _strip(inner, inner, size, stride, dilation, axis=1),
        )
        self.right = nn.Sequential(
            _strip(in_channels, inner, size, stride, dilation, axis=1),
            _strip(inner, inner, size, stride, dilation, axis=0),
        )
        self.expand = ConvNormAct(inner, width * self.expansion, 1, act=None)

    def branch(self, x: Tensor) -> Tensor:
        out: Tensor = self.expand(self.left(x) + self.right(x))
        return out


def _strip(in_channels: int, out_channels: int, size: int, stride: int, dilation: int, *, axis: int) -> nn.Sequential:
    """Convolve along one `axis`, 0 for the height and 1 for the width, with stride and dilation along it only."""

    def pair(along: int, across: int) -> tuple[int, int]:
        return (along, across) if axis == 0 else (across, along)

    conv = nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size=pair(size, 1),
        stride=pair(stride, 1),
        padding=pair(dilation * (size // 2), 0),
        dilation=pair(dilation, 1),
        bias=False,
    )
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))


class LargeKernelBottleneck5(LargeKernelBottleneck):
    """Of 5x5, for stage 4: 85 channels inside for the published width of 256."""

    kernel_size = 5
    reduction = 3


class LargeKernelBottleneck7(LargeKernelBottleneck):
    """Of 7x7, for stage 5: 128 channels inside for the published width of 512."""

    kernel_size = 7
    reduction = 4


_GLOBAL = (Bottleneck, Bottleneck, LargeKernelBottleneck5, LargeKernelBottleneck7)


@BACKBONES.register("resnet18", variant="resnet18", blocks=(BasicBlock,) * 4, depths=(2, 2, 2, 2))
@BACKBONES.register("resnet34", variant="resnet34", blocks=(BasicBlock,) * 4, depths=(3, 4, 6, 3))
@BACKBONES.register("resnet50", variant="resnet50", blocks=(Bottleneck,) * 4, depths=(3, 4, 6, 3))
@BACKBONES.register("resnet101", variant="resnet101", blocks=(Bottleneck,) * 4, depths=(3, 4, 23, 3))
@BACKBONES.register("resnet152", variant="resnet152", blocks=(Bottleneck,) * 4, depths=(3, 8, 36, 3))
@BACKBONES.register("resnet50_gcn", variant="resnet50", blocks=_GLOBAL, depths=(3, 4, 6, 3))
@BACKBONES.register("resnet101_gcn", variant="resnet101", blocks=_GLOBAL, depths=(3, 4, 23, 3))
@BACKBONES.register("resnet152_gcn", variant="resnet152", blocks=_GLOBAL, depths=(3, 8, 36, 3))
class ResNet(Backbone):
    """Residual network whose strides beyond `output_stride` are replaced by dilation.

    The first convolution of a stage that lost its stride keeps the dilation of the stage before, so that the
    dilated network computes the strided one's features, only at more places.

    Source: He et al. 2015, https://arxiv.org/abs/1512.03385, table 1; parameters are named as in torchvision. The
    ones called `_gcn` have blocks of large kernels in stages 4 and 5, as ResNet50-GCN has
    (https://arxiv.org/abs/1703.02719); public weights fill their first stages only.

    Args:
        variant: Whose public weights fit.
        blocks: Kind of residual block of stages 2 to 5.
        depths: Blocks of stages 2 to 5.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
        deep_stem: Begin with three 3x3 convolutions (64, 64, 128) in place of the 7x7 one.
        has_max_pool: Pool behind the first convolution; without, stage 2 does its stride.
        multi_grid: Rates that multiply the dilation of each block of the last stage, such as [1, 2, 4]
            (https://arxiv.org/abs/1706.05587, section 3.1).
        hdc: Hybrid dilated convolution (https://arxiv.org/abs/1702.08502, section 3.2): the dilations d - 1, d,
            d + 1 by turns in every stage of dilation d > 1; or the lists of the last stages, block by block.
        se: Squeeze-and-excitation gate in every block: of channels, of pixels, or both.
    """

    unpublished: tuple[str, ...] = (".gate.", ".left.", ".right.", ".expand.")
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(  # noqa: PLR0913  all but the first are named
        self,
        variant: str,
        blocks: tuple[type[BasicBlock] | type[Bottleneck] | type[LargeKernelBottleneck], ...],
        depths: tuple[int, ...],
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
        deep_stem: bool = False,
        has_max_pool: bool = True,
        multi_grid: tuple[Positive, ...] | None = None,
        hdc: bool | tuple[tuple[Positive, ...], ...] = False,
        se: SE | None = None,
    ) -> None:
        super().__init__()
        if width_mult == 1 and not deep_stem:
            self.weights = variant
        elif width_mult == 1 and all(block.expansion == 4 for block in blocks):
            self.weights = f"timm/{variant}s"
        stages = strides_and_dilations(output_stride or 32)
        widths = [scaled(width, width_mult) for width in (64, 128, 256, 512)]
        stem, wide = widths[:2]
        stride, _ = stages[0]
        self.conv1: nn.Module
        if deep_stem:
            self.conv1 = nn.Sequential(
                *ConvNormAct(in_channels, stem, stride=stride), *ConvNormAct(stem, stem), _conv3x3(stem, wide)
            )
            channels = wide
        else:
            self.conv1 = nn.Conv2d(in_channels, stem, 7, stride, 3, bias=False)
            channels = stem
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        pool_stride, _ = stages[1]
        self.maxpool = nn.MaxPool2d(3, pool_stride, 1) if has_max_pool else nn.Identity()

        shapes = [FeatureShape(channels, stride, 1)]
        lists = _dilation_lists(depths, [dilation for _, dilation in stages[1:]], hdc, multi_grid)
        for level, block, width, depth, explicit in zip(range(2, 6), blocks, widths, depths, lists, strict=True):
            step, dilation = stages[level - 1]
            _, previous = stages[level - 2]
            stride *= step
            project = True
            if level == 2 and has_max_pool:  # the pool has done the stride, so every convolution comes after it
                step = 1
                previous = dilation
                project = channels != width * block.expansion
            if explicit is None:
                dilations = [(previous, dilation)] + [(dilation, dilation)] * (depth - 1)
            else:
                dilations = [(d, d) for d in explicit]
            stage: list[nn.Module] = []
            for pair in dilations:
                stage.append(block(channels, width, stride=step, dilations=pair, project=project, se=se))
                channels = width * block.expansion
                step = 1  # only the first block of a stage has its stride and a projected shortcut
                project = False
            self.add_module(f"layer{level - 1}", nn.Sequential(*stage))
            shapes.append(FeatureShape(channels, stride, level))
        self.shapes = tuple(shapes)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.relu(self.bn1(self.conv1(images)))]
        x = self.maxpool(features[0])
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features


def _dilation_lists(
    depths: Sequence[int],
    dilations: Sequence[int],
    hdc: bool | tuple[tuple[int, ...], ...],
    multi_grid: tuple[int, ...] | None,
) -> list[Sequence[int] | None]:
    """List the dilation of every block, for each stage where the options spell it out; None for the others.

    Raises:
        ValueError: A list is not as long as its stage is deep, or both options say something.
    """
    if hdc and multi_grid:
        raise ValueError("takes either 'hdc' or 'multi_grid', but was given both")
    lists: list[Sequence[int] | None] = [None] * len(depths)
    if hdc is True:
        for i, (depth, dilation) in enumerate(zip(depths, dilations, strict=True)):
            if dilation > 1:
                lists[i] = [dilation - 1 + block % 3 for block in range(depth)]
    elif hdc:
        if len(hdc) > len(depths):
            raise ValueError(f"has {len(depths)} stages of blocks, but 'hdc' has {len(hdc)} lists")
        lists[-len(hdc) :] = hdc
    elif multi_grid:
        lists[-1] = [dilations[-1] * rate for rate in multi_grid]
    for depth, given in zip(depths, lists, strict=True):
        if given is not None and len(given) != depth:
            raise ValueError(f"has a stage of {depth} blocks, but was given {len(given)} dilations for it")
    return lists
