"""Layers and arithmetic shared by more than one brick. What a single file needs stays, private, in that file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.outputs import SegOutput, resize
from utils.schema import Above, AtLeast

OutputStride = Literal[32, 16, 8, 4, 2]
Positive = Annotated[int, AtLeast(1)]
Width = Annotated[float, Above(0)]


def strides_and_dilations(output_stride: int) -> list[tuple[int, int]]:
    """Stride and dilation of the five stages of a backbone.

    A stage that may not halve the size any more doubles its dilation instead, so that its convolutions go on
    seeing what they would have seen: s_k = 2 if 2^k divides `output_stride`, else 1 and d_k = 2 d_(k-1).

    Source: the atrous algorithm, Chen et al. 2017, https://arxiv.org/abs/1706.05587, section 3.1.
    """
    stages = []
    dilation = 1
    for level in range(1, 6):
        stride = 2 if output_stride % 2**level == 0 else 1
        dilation *= 3 - stride
        stages.append((stride, dilation))
    return stages


def scaled(channels: int, width_mult: float) -> int:
    """`channels` times `width_mult`, as a multiple of 8 that is not more than 10 % below it, and at least 8.

    Source: torchvision's MobileNetV2, whose weights fit only if channels are rounded so.
    """
    wanted = channels * width_mult
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def resize_like(x: Tensor, reference: Tensor) -> Tensor:
    """Resize `x` (N, C, h, w) bilinearly to the height and width of `reference`.

    Bricks meet maps of other bricks through this only: sizes that are computed from strides are wrong by one
    for every second image.
    """
    return resize(x, (reference.shape[-2], reference.shape[-1]))


def unpool(x: Tensor, indices: Tensor, size: Sequence[int], *, overlapping: bool = False) -> Tensor:
    """Put the values of `x` to where a max-pool took them from, in a map of zeros.

    Args:
        x: (N, C, h, w).
        indices: (N, C, h, w), from ``F.max_pool2d(..., return_indices=True)``.
        size: Height and width of what was pooled.
        overlapping: Whether the windows did, so that several may have taken the same value. What they put there is
            added up: `max_unpool2d` would keep any one of them and give all of them a gradient.

    Returns:
        (N, C, *size).
    """
    height, width = size
    # `max_unpool2d` is faster for channels-last maps, but not deterministic on CUDA, and has no form in ONNX.
    exact = torch.are_deterministic_algorithms_enabled() or torch.compiler.is_exporting()
    if not (overlapping or exact):
        return F.max_unpool2d(x, indices, (2, 2), output_size=[height, width])
    empty = x.new_zeros((*x.shape[:2], height * width))
    return empty.scatter_add(2, indices.flatten(2), x.flatten(2)).view(*x.shape[:2], height, width)


class ConvNormAct(nn.Sequential):
    """Convolution that keeps the size (at stride 1), batch norm, activation; a bias where there is no batch norm.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd.
        stride: Of the convolution.
        dilation: Of the convolution.
        groups: Of the convolution; `in_channels` makes it depthwise.
        act: Class of the activation, or None for none.
        norm: Have the batch norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        act: type[nn.Module] | None = nn.ReLU,
        norm: bool = True,
    ) -> None:
        padding = dilation * (kernel_size - 1) // 2
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias=not norm)
        ]
        if norm:
            layers.append(nn.BatchNorm2d(out_channels))
        if act is not None:
            layers.append(act(inplace=True))
        super().__init__(*layers)


class SeparableConvNormAct(nn.Sequential):
    """Depthwise, then pointwise `ConvNormAct`: the same reach for about a ninth of the parameters."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, dilation: int = 1, norm: bool = True
    ) -> None:
        super().__init__(
            ConvNormAct(in_channels, in_channels, kernel_size, dilation=dilation, groups=in_channels, norm=norm),
            ConvNormAct(in_channels, out_channels, 1, norm=norm),
        )


class Classifier(nn.Conv2d):
    """The convolution that makes logits; a class of its own because it starts from other random numbers."""

    def __init__(self, in_channels: int, num_classes: int, kernel_size: int = 1) -> None:
        super().__init__(in_channels, num_classes, kernel_size, padding=kernel_size // 2)


def with_aux(logits: Tensor, classifiers: nn.ModuleList, maps: Sequence[Tensor]) -> Tensor | SegOutput:
    """Add the logits of a decoder's other maps to the main ones, for deep supervision, in training.

    Source: Lee et al. 2014, https://arxiv.org/abs/1409.5185.

    Args:
        logits: (N, num_classes, h, w).
        classifiers: One for each of `maps`; or none, for no deep supervision.
        maps: Of the decoder, of any sizes.
    """
    if not classifiers.training or not classifiers:
        return logits
    return SegOutput(logits, tuple(classify(x) for classify, x in zip(classifiers, maps, strict=True)))


class TransformerBlock(nn.Module):
    """Attention of all tokens to all, then two layers for each token, both with layer norm before and a shortcut.

    Args:
        channels: Of a token.
        heads: Of the attention, by which the channels are divisible.
        dropout: Share of what both add that is dropped in training.
    """

    def __init__(self, channels: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.mix = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix tokens (N, T, channels); `mask` (N, 1, T, T) is true where one (row) may look at another (column)."""
        x = x + self.dropout(self.attend(self.norm1(x), mask))
        added: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return added

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        count, tokens, channels = x.shape
        query, key, value = self.qkv(x).view(count, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        mixed: Tensor = self.mix(seen.transpose(1, 2).reshape(count, tokens, channels))
        return mixed


class ChannelGate(nn.Module):
    """Weigh each channel by what the whole map holds (cSE).

    Source: Roy et al. 2018, https://arxiv.org/abs/1803.02579, section 3.1; reduction 16 as in Hu et al. 2017.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        weighed: Tensor = x * self.weigh(x)
        return weighed


class SpatialGate(nn.Module):
    """Weigh each pixel by what its channels hold (sSE). Source: Roy et al. 2018, section 3.2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Conv2d(channels, 1, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        weighed: Tensor = x * self.weigh(x)
        return weighed


class ChannelAndSpatialGate(nn.Module):
    """The sum of both gates (scSE). Source: Roy et al. 2018, section 3.3."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channel = ChannelGate(channels)
        self.spatial = SpatialGate(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.channel(x), self.spatial(x))


GATES: dict[str, type[nn.Module]] = {"cSE": ChannelGate, "sSE": SpatialGate, "scSE": ChannelAndSpatialGate}
