"""ENet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.blocks import unpool
from utils.outputs import SegOutput
from utils.registry import MODELS


def _conv(in_channels: int, out_channels: int, kernel: int | tuple[int, int], *, dilation: int = 1) -> nn.Conv2d:
    high, wide = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (high - 1) // 2, dilation * (wide - 1) // 2)
    return nn.Conv2d(in_channels, out_channels, (high, wide), padding=padding, dilation=dilation, bias=False)


def _norm_act(channels: int, *, act: bool = True, relu: bool = False) -> nn.Sequential:
    if not act:
        return nn.Sequential(nn.BatchNorm2d(channels))
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True) if relu else nn.PReLU(channels))


class _Bottleneck(nn.Module):
    """Reduce to a quarter, convolve, expand, drop channels, add to the input. Source: figure 2 (b).

    Args:
        channels: Channels of input and output.
        dilation: Of the 3x3 convolution.
        asymmetric: Use a 5x1 and a 1x5 convolution instead.
        dropout: Share of channels dropped in training.
        relu: Use ReLU in place of PReLU, as decoders do.
    """

    def __init__(
        self, channels: int, *, dilation: int = 1, asymmetric: bool = False, dropout: float = 0.1, relu: bool = False
    ) -> None:
        super().__init__()
        inner = channels // 4
        middle: nn.Module = _conv(inner, inner, 3, dilation=dilation)
        if asymmetric:
            middle = nn.Sequential(_conv(inner, inner, (5, 1)), _conv(inner, inner, (1, 5)))
        self.branch = nn.Sequential(
            _conv(channels, inner, 1),
            _norm_act(inner, relu=relu),
            middle,
            _norm_act(inner, relu=relu),
            _conv(inner, channels, 1),
            _norm_act(channels, act=False),
            nn.Dropout2d(dropout),
        )
        self.act = nn.ReLU(inplace=True) if relu else nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = self.act(x + self.branch(x))
        return added


class _Down(nn.Module):
    """Halve the size, rounding up: a strided branch beside a max-pool whose indices are kept for `_Up`."""

    def __init__(self, in_channels: int, out_channels: int, *, dropout: float) -> None:
        super().__init__()
        inner = in_channels // 4
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, inner, 2, stride=2, bias=False), _norm_act(inner))
        self.branch = nn.Sequential(
            _conv(inner, inner, 3),
            _norm_act(inner),
            _conv(inner, out_channels, 1),
            _norm_act(out_channels, act=False),
            nn.Dropout2d(dropout),
        )
        self.act = nn.PReLU(out_channels)
        self.added = out_channels - in_channels

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pooled, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
        # One row and column of zeros: the convolution uses them where the size is odd, and drops them elsewhere.
        even = F.pad(x, (0, 1, 0, 1))
        pooled = F.pad(pooled, (0, 0, 0, 0, 0, self.added))  # new channels begin as zeros
        return self.act(pooled + self.branch(self.reduce(even))), indices


class _Up(nn.Module):
    """Return to the size that a `_Down` started from, and values to where it took them."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = in_channels // 4
        self.main = nn.Sequential(_conv(in_channels, out_channels, 1), _norm_act(out_channels, act=False))
        self.reduce = nn.Sequential(_conv(in_channels, inner, 1), _norm_act(inner, relu=True))
        self.enlarge = nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1, bias=False)
        self.expand = nn.Sequential(
            _norm_act(inner, relu=True),
            _conv(inner, out_channels, 1),
            _norm_act(out_channels, act=False),
            nn.Dropout2d(0.1),
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, indices: Tensor, size: torch.Size) -> Tensor:
        main = unpool(self.main(x), indices, size)
        branch = self.expand(self.enlarge(self.reduce(x))[..., : size[0], : size[1]])
        enlarged: Tensor = self.act(main + branch)
        return enlarged


def _context() -> nn.Sequential:
    """What stages 2 and 3 have in common: regular, dilated and asymmetric by turns. Source: table 1."""
    blocks = []
    for first, second in ((2, 4), (8, 16)):
        blocks += [_Bottleneck(128), _Bottleneck(128, dilation=first)]
        blocks += [_Bottleneck(128, asymmetric=True), _Bottleneck(128, dilation=second)]
    return nn.Sequential(*blocks)


@MODELS.register()
class ENet(BaseModel):
    """A third of a million parameters, most work at an eighth of the size; unpools with the encoder's indices.

    Source: Paszke et al. 2016, https://arxiv.org/abs/1606.02147, table 1.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
    """

    multiple = 8

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__(in_channels)
        first = 13 + in_channels  # 13 filters beside the pooled image
        self.initial = nn.Conv2d(in_channels, 13, 3, stride=2, padding=1, bias=False)
        self.initial_act = _norm_act(first)
        self.down1 = _Down(first, 64, dropout=0.01)
        self.stage1 = nn.Sequential(*(_Bottleneck(64, dropout=0.01) for _ in range(4)))
        self.down2 = _Down(64, 128, dropout=0.1)
        self.stage2 = _context()
        self.stage3 = _context()
        self.up4 = _Up(128, 64)
        self.stage4 = nn.Sequential(*(_Bottleneck(64, relu=True) for _ in range(2)))
        self.up5 = _Up(64, first)
        self.stage5 = _Bottleneck(first, relu=True)
        self.classify = nn.ConvTranspose2d(first, num_classes, 3, stride=2, padding=1, output_padding=1)

    def predict(self, images: Tensor) -> SegOutput:
        pooled = F.max_pool2d(images, 2, ceil_mode=True)
        half = self.initial_act(torch.cat([self.initial(images), pooled], dim=1))
        x, indices1 = self.down1(half)
        quarter = self.stage1(x)
        x, indices2 = self.down2(quarter)
        x = self.stage3(self.stage2(x))
        x = self.stage4(self.up4(x, indices2, quarter.shape[-2:]))
        x = self.stage5(self.up5(x, indices1, half.shape[-2:]))
        return SegOutput(self.classify(x)[..., : images.shape[-2], : images.shape[-1]])
