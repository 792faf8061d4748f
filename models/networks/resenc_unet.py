"""nnU-Net's U-Net of residual blocks."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.blocks import Classifier, Width, resize_like, scaled
from utils.outputs import SegOutput
from utils.registry import MODELS
from utils.schema import Between

DEPTHS = (1, 3, 4, 6, 6, 6, 6, 6, 6)  # residual blocks at each resolution
FINEST, WIDEST = 32, 512  # channels at the first resolution, each other has twice as many; and the most
SLOPE = 0.01  # of the rectifier, for negative values


class _InstanceNorm(nn.GroupNorm):
    """Normalize each channel of each image by itself.

    A map of a single pixel becomes the bias; torch's own layers refuse it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def _conv_norm(in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1) -> list[nn.Module]:
    """Make a convolution that keeps the size at stride 1, and an instance norm."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    return [conv, _InstanceNorm(out_channels)]


class _Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut, in which means of 2x2 pixels take the place of a stride.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            *_conv_norm(in_channels, out_channels, stride=stride),
            nn.LeakyReLU(SLOPE, inplace=True),
            *_conv_norm(out_channels, out_channels),
        )
        widen = in_channels != out_channels
        self.shortcut = nn.Sequential(*_conv_norm(in_channels, out_channels, 1)) if widen else nn.Identity()

    def start_weights(self) -> None:
        """Begin with what the shortcut gives alone."""
        nn.init.zeros_(self.branch[-1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        added = self.branch(x)
        # Halving by `resize` is a mean of 2x2 pixels, and takes odd sizes too.
        return F.leaky_relu(added + self.shortcut(resize_like(x, added)), SLOPE)


class _Up(nn.Module):
    """Double the size, then refine together with the map that the encoder had there."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
        self.refine = nn.Sequential(*_conv_norm(2 * out_channels, out_channels), nn.LeakyReLU(SLOPE, inplace=True))

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        height, width = skip.shape[-2:]
        refined: Tensor = self.refine(torch.cat([self.enlarge(x)[..., :height, :width], skip], dim=1))
        return refined


@MODELS.register()
class ResEncUNet(BaseModel):
    """nnU-Net's residual encoder U-Net ("ResEnc"): a deep encoder from full resolution on, and a light decoder.

    It starts from scratch and normalizes each image by itself, so that a batch may be small. With deep supervision,
    every step of the decoder but the coarsest is classified; nnU-Net halves the weight of each coarser one:
    ``"aux_factor": [0.5, 0.25, 0.125, 0.0625, 0.03125]`` for eight resolutions.

    Source: Isensee et al. 2024, https://arxiv.org/abs/2404.09556, and its presets in
    https://github.com/MIC-DKFZ/nnUNet, documentation/resenc_presets.md, for two dimensions; Isensee et al. 2021,
    https://doi.org/10.1038/s41592-020-01008-z, for what both nnU-Nets share. Convolutions before norms have no biases.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        stages: Resolutions. nnU-Net halves the size of a crop while at least 4 pixels a side remain: 8 stages for 512
            pixels, 7 for 256.
        width_mult: Share of the published channels.
        deep_supervision: Classify the maps of the decoder in training, as auxiliary outputs.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        stages: Annotated[int, Between(2, len(DEPTHS))] = 8,
        width_mult: Width = 1.0,
        deep_supervision: bool = True,
    ) -> None:
        super().__init__(in_channels)
        self.multiple = 2 ** (stages - 1)
        widths = [scaled(min(FINEST * 2**stage, WIDEST), width_mult) for stage in range(stages)]
        self.stem = nn.Sequential(*_conv_norm(in_channels, widths[0]), nn.LeakyReLU(SLOPE, inplace=True))
        encoder: list[nn.Module] = []
        before = widths[0]
        for stage, (width, depth) in enumerate(zip(widths, DEPTHS, strict=False)):
            blocks = [_Residual(before, width, stride=2 if stage else 1)]
            for _ in range(depth - 1):
                blocks.append(_Residual(width, width))
            encoder.append(nn.Sequential(*blocks))
            before = width
        self.encoder = nn.ModuleList(encoder)
        pairs = list(pairwise(widths))
        self.decoder = nn.ModuleList(_Up(coarse, fine) for fine, coarse in reversed(pairs))
        self.classify = Classifier(widths[0], num_classes)
        supervised = widths[1 : stages - 2] if deep_supervision else []
        self.classify_coarser = nn.ModuleList(Classifier(width, num_classes) for width in supervised)  # finest first

    def predict(self, images: Tensor) -> SegOutput:
        x = self.stem(images)
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        maps = []
        for up, skip in zip(self.decoder, reversed(skips[:-1]), strict=True):
            x = up(x, skip)
            maps.append(x)
        coarser = maps[-2::-1] if self.training else ()
        aux = [classify(each) for classify, each in zip(self.classify_coarser, coarser, strict=False)]
        return SegOutput(self.classify(x), tuple(aux))
