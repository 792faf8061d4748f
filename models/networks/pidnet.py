"""PIDNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.blocks import ConvNormAct, Positive, Width, resize_like, scaled
from models.networks.ddrnet import (
    DAPPM,
    BottleneckBlock,
    NormActConv,
    ResidualBlock,
    classify_after,
    pooled_branches,
    residual_blocks,
)
from utils.outputs import SegOutput
from utils.registry import MODELS


class _PixelAttention(nn.Module):
    """Mix two maps, pixel by pixel, as much as they resemble each other ("PagFM"). Source: section 3.2, figure 4.

    Args:
        channels: Channels of both.
        inner: Channels in which they are compared.
    """

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.embed_fine = ConvNormAct(channels, inner, 1, act=None)
        self.embed_coarse = ConvNormAct(channels, inner, 1, act=None)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        product = self.embed_fine(fine) * resize_like(self.embed_coarse(coarse), fine)
        share = product.sum(dim=1, keepdim=True).sigmoid()
        return torch.add((1 - share) * fine, share * resize_like(coarse, fine))


class _ParallelPyramid(nn.Module):
    """DAPPM whose levels are refined at once by one grouped convolution ("PAPPM"). Source: section 3.3, figure 5.

    Args:
        in_channels: Channels of the input.
        width: Channels of each branch.
        out_channels: Channels of the output.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int) -> None:
        super().__init__()
        self.plain = NormActConv(in_channels, width, 1)
        self.pooled = pooled_branches(in_channels, width)
        levels = len(self.pooled)
        self.refine = NormActConv(width * levels, width * levels, groups=levels)
        self.fuse = NormActConv(width * (levels + 1), out_channels, 1)
        self.shortcut = NormActConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        plain = self.plain(x)
        maps = [resize_like(pool(x), x) + plain for pool in self.pooled]
        refined = self.refine(torch.cat(maps, dim=1))
        return torch.add(self.fuse(torch.cat([plain, refined], dim=1)), self.shortcut(x))


class _Bag(nn.Module):
    """Take details where there is a boundary, and context elsewhere. Source: section 3.4, figure 6 (a)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuse = NormActConv(channels, channels)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = boundary.sigmoid()
        fused: Tensor = self.fuse(edge * detail + (1 - edge) * context)
        return fused


class _LightBag(nn.Module):
    """`_Bag` with two 1x1 convolutions instead of a 3x3 one. Source: section 3.4, figure 6 (b)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.detail = ConvNormAct(channels, channels, 1, act=None)
        self.context = ConvNormAct(channels, channels, 1, act=None)

    def forward(self, detail: Tensor, context: Tensor, boundary: Tensor) -> Tensor:
        edge = boundary.sigmoid()
        return torch.add(self.detail((1 - edge) * context + detail), self.context(context + edge * detail))


@MODELS.register("PIDNet_L", depths=(3, 4), planes=64, pool_channels=112, head_channels=256, light=False)
@MODELS.register("PIDNet_M", depths=(2, 3), planes=64, pool_channels=96, head_channels=128, light=True)
@MODELS.register("PIDNet_S", depths=(2, 3), planes=32, pool_channels=96, head_channels=128, light=True)
class PIDNet(BaseModel):
    """Three branches, for details (P), context (I) and boundaries (D), the last of which says which of both to take.

    The logits are of stride 8. Public parameters: 7.6 M (S), 28.5 M (M), 36.9 M (L), without auxiliary heads; 78.8,
    79.9 and 80.9 mean IoU on Cityscapes val, from ImageNet.

    Source: Xu et al. 2022, https://arxiv.org/abs/2206.02066, section 3. Convolutions before batch
    norms have no biases, which their code has in the stem.

    Args:
        depths: Residual blocks in each of the first two stages, and in each of the two that follow.
        planes: Width of the first stage.
        pool_channels: Width of each branch of the pyramid pooling.
        head_channels: Width of the heads.
        light: Have the quicker pyramid pooling and fusion.
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
        use_aux: Train auxiliary heads: on the branch of details, with the paper's factor of 0.4, and on that of
            boundaries, whose loss is of its own (section 3.1).
    """

    multiple = 64
    needs_batch = True  # of the branch that sees the mean over the whole map

    def __init__(  # noqa: PLR0913  all but the numbers of the variant are named
        self,
        depths: tuple[int, int],
        planes: int,
        pool_channels: Positive,
        head_channels: int,
        light: bool,
        num_classes: int,
        in_channels: int = 3,
        *,
        width_mult: Width = 1.0,
        use_aux: bool = True,
    ) -> None:
        super().__init__(in_channels)
        first, later = depths
        width = scaled(planes, width_mult)
        head_width = scaled(head_channels, width_mult)
        pool_width = scaled(pool_channels, width_mult)
        fine, out = 2 * width, 4 * width
        self.stem = nn.Sequential(
            ConvNormAct(in_channels, width, stride=2), ConvNormAct(width, width, stride=2, act=None)
        )
        self.layer1 = residual_blocks(width, width, first)
        self.layer2 = residual_blocks(width, fine, first, stride=2)
        self.layer3 = residual_blocks(fine, 4 * width, later, stride=2)
        self.layer4 = residual_blocks(4 * width, 8 * width, later, stride=2)
        self.layer5 = nn.Sequential(
            BottleneckBlock(8 * width, 8 * width, stride=2), BottleneckBlock(16 * width, 8 * width, rectify=False)
        )
        self.detail3 = residual_blocks(fine, fine, first)
        self.detail4 = residual_blocks(fine, fine, first)
        self.detail5 = BottleneckBlock(fine, fine)
        self.compress3 = ConvNormAct(4 * width, fine, 1, act=None)
        self.compress4 = ConvNormAct(8 * width, fine, 1, act=None)
        self.attend3 = _PixelAttention(fine, width)
        self.attend4 = _PixelAttention(fine, width)
        edge = width if light else fine
        self.boundary3 = ResidualBlock(fine, edge)
        self.boundary4 = BottleneckBlock(edge, width) if light else ResidualBlock(edge, fine)
        self.boundary5 = BottleneckBlock(fine, fine)
        self.differ3 = ConvNormAct(4 * width, edge, act=None)
        self.differ4 = ConvNormAct(8 * width, fine, act=None)
        pyramid = _ParallelPyramid if light else DAPPM
        self.context = pyramid(16 * width, pool_width, out)
        self.fuse = _LightBag(out) if light else _Bag(out)
        self.head = classify_after(out, head_width, num_classes)
        self.aux_heads = nn.ModuleList([classify_after(fine, head_width, num_classes)] if use_aux else [])
        self.boundary_heads = nn.ModuleList([classify_after(fine, width, 1)] if use_aux else [])

    def predict(self, images: Tensor) -> SegOutput:
        shared = self.layer2(self.layer1(self.stem(images)))
        x = F.relu(self.layer3(shared))
        detail = self.attend3(self.detail3(shared), self.compress3(x))
        boundary = self.boundary3(shared)
        boundary = boundary + resize_like(self.differ3(x), boundary)
        aux = [head(detail) for head in self.aux_heads] if self.training else []
        x = F.relu(self.layer4(x))
        detail = self.attend4(self.detail4(detail), self.compress4(x))
        boundary = self.boundary4(boundary)
        boundary = boundary + resize_like(self.differ4(x), boundary)
        edges = [head(boundary) for head in self.boundary_heads] if self.training else []
        detail = self.detail5(detail)
        context = resize_like(self.context(self.layer5(x)), detail)
        logits = self.head(self.fuse(detail, context, self.boundary5(boundary)))
        return SegOutput(logits, tuple(aux), tuple(edges))
