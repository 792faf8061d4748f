"""EoMT: an encoder that is a mask transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol, cast

import torch
from torch import Tensor, nn

from base.base_model import Backbone, BaseModel, FeatureShape
from models.blocks import OutputStride, Positive, TransformerBlock
from models.necks.simple_fpn import LayerNorm2d
from utils.any_size import covering, padded
from utils.errors import ConfigError
from utils.outputs import SegOutput, resize
from utils.precision import without_autocast
from utils.registry import BACKBONES, MODELS
from utils.schema import Component

GRID = 32  # rows and columns of the position embedding, which is interpolated to those of an image
POWER = 0.9  # of the annealing of masks


class _Encoder(Protocol):
    """A plain transformer, block by block, as `TimmEncoder` offers it."""

    shapes: tuple[FeatureShape, ...]
    depth: int
    prefix: int  # tokens before those of patches

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]: ...

    def block(self, index: int, tokens: Tensor, rotations: Tensor | None, mask: Tensor | None = None) -> Tensor: ...

    def last_norm(self, tokens: Tensor) -> Tensor: ...

    def reserve(self, first: int, count: int) -> None: ...


class _PlainTransformer(Backbone):
    """A vision transformer to be trained from scratch. Source: Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929.

    Args:
        in_channels: Channels of the images.
        channels: Width of the tokens.
        depth: Blocks.
        heads: Of the attention.
        patch: Side of a patch in pixels.
    """

    prefix = 0

    def __init__(self, in_channels: int, channels: int, depth: int, heads: int, patch: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"needs 'channels' that are a multiple of its {heads} 'heads', but has {channels}")
        self.depth = depth
        self.shapes = (FeatureShape(channels, patch, 5),)
        self.patches = nn.Conv2d(in_channels, channels, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, channels, GRID, GRID))
        self.blocks = nn.ModuleList(TransformerBlock(channels, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(channels)

    def start_weights(self) -> None:
        """Draw what the network begins with, which is not what convolutions begin with."""
        nn.init.trunc_normal_(self.positions, std=0.02)
        nn.init.trunc_normal_(self.patches.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = self.patches(images)
        return (x + resize(self.positions, (x.shape[-2], x.shape[-1]))).flatten(2).transpose(1, 2), None

    def block(self, index: int, tokens: Tensor, rotations: Tensor | None, mask: Tensor | None = None) -> Tensor:
        mixed: Tensor = self.blocks[index](tokens, mask)
        return mixed

    def last_norm(self, tokens: Tensor) -> Tensor:
        normalized: Tensor = self.norm(tokens)
        return normalized

    def reserve(self, first: int, count: int) -> None:
        """Nothing to be done: positions are added before the first block."""

    def forward(self, images: Tensor) -> list[Tensor]:
        tokens, _ = self.embed(images)
        for index in range(self.depth):
            tokens = self.block(index, tokens, None)
        stride = self.shapes[0].stride
        grid = (images.shape[-2] // stride, images.shape[-1] // stride)
        return [_as_map(self.last_norm(tokens), grid)]

    def layers(self) -> list[list[nn.Parameter]]:
        blocks = [list(block.parameters()) for block in self.blocks]
        return [[self.positions, *self.patches.parameters()], *blocks, list(self.norm.parameters())]


class _Upscale(nn.Sequential):
    """Double height and width of a map `times` times."""

    def __init__(self, channels: int, times: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(times):
            layers += [nn.ConvTranspose2d(channels, channels, 2, 2), nn.GELU()]
            layers += [
                nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
                LayerNorm2d(channels, eps=1e-6),
            ]
        super().__init__(*layers)


@MODELS.register()
class EoMT(BaseModel):
    """A plain vision transformer whose last blocks have queries among their tokens, and no decoder.

    Each query predicts a class and a mask; the logits are the logarithm of the sum over queries of the probability of
    the class times that of the mask, so that whatever takes logits takes these. Train it with `MaskLoss`, on the
    predictions before each of the last blocks and after them.

    In training, a query looks only at patches that are in its mask, and is freed of that in the course of training.
    Of `query_blocks` + 2 equal ranges of steps, the first has all queries masked in all of the last blocks; in each of
    the next, the masked share of one block falls from 1 to 0, the first block's first; the last range and prediction
    are without masks.

    Source: Kerssies et al. 2025, https://arxiv.org/abs/2503.19108, sections 3.2 (queries and heads) and 3.3 (mask
    annealing). 58.4 mean IoU on ADE20K with DINOv2 ViT-L, 59.5 with DINOv3:
    https://github.com/tue-mps/eomt, model_zoo.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: A plain transformer of timm's, such as `timm/vit_base_patch14_reg4_dinov2` (patches become 16
            pixels wide); null is one from scratch, of the four sizes that follow.
        channels: Width of the tokens.
        depth: Blocks.
        heads: Of the attention.
        patch: Side of a patch in pixels.
        queries: Number of masks.
        query_blocks: Last blocks, which have the queries: 3 for S and B, 4 for L, 5 for g.
    """

    multiple = 1  # it pads with zeros itself, as its authors do

    def __init__(  # noqa: PLR0913  all but the first are named
        self,
        num_classes: int,
        in_channels: int = 3,
        where: str = "arch.args",
        *,
        backbone: Annotated[Component, BACKBONES] | None = None,
        channels: Positive = 384,
        depth: Positive = 12,
        heads: Positive = 6,
        patch: OutputStride = 16,
        queries: Positive = 100,
        query_blocks: Positive = 3,
    ) -> None:
        super().__init__(in_channels)
        if backbone is None:
            self.backbone: Backbone = _PlainTransformer(in_channels, channels, depth, heads, patch)
        else:
            place = f"{where}.backbone"
            self.backbone = BACKBONES.build(backbone, where=place, in_channels=in_channels)
            if not getattr(self.backbone, "has_tokens", False):
                raise ConfigError(
                    f"{place}: EoMT needs a plain transformer, which {backbone.type} is not, or one whose blocks can "
                    f"be called one by one. Choose another, such as timm/vit_base_patch14_reg4_dinov2."
                )
        encoder = self._encoder
        if query_blocks > encoder.depth:
            raise ConfigError(
                f"{where}.query_blocks: {query_blocks} of {encoder.depth} blocks. Choose at most {encoder.depth}."
            )
        width, self.stride, _ = encoder.shapes[-1]
        self.first = encoder.depth - query_blocks
        encoder.reserve(self.first, queries)
        times = max(1, self.stride.bit_length() - 3)
        self.mask_stride = max(1, self.stride >> times)
        self.queries = nn.Parameter(torch.zeros(1, queries, width))
        self.classify = nn.Linear(width, num_classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        self.upscale = _Upscale(width, times)
        # Share of queries that are held to their masks, in each of the last blocks; changes with the step.
        self.register_buffer("masked", torch.ones(query_blocks), persistent=False)

    masked: Tensor

    @property
    def _encoder(self) -> _Encoder:
        return cast("_Encoder", self.backbone)

    def start_weights(self) -> None:
        """Draw what queries begin with, which is not what convolutions begin with."""
        nn.init.normal_(self.queries)

    def start_step(self, step: int, total_steps: int) -> None:
        """Set the share of queries that are held to their masks, from 1 down to 0, the first block's first."""
        blocks = len(self.masked)
        for index, share in enumerate(self.masked):
            done = step / total_steps * (blocks + 2) - (index + 1)
            share.fill_((1 - min(max(done, 0.0), 1.0)) ** POWER)

    def predict(self, images: Tensor) -> SegOutput:
        height, width = images.shape[-2:]
        whole = padded(images, self.stride)
        grid = (whole.shape[-2] // self.stride, whole.shape[-1] // self.stride)
        encoder = self._encoder
        tokens, rotations = encoder.embed(whole)
        found: list[tuple[Tensor, Tensor]] = []
        for index in range(encoder.depth):
            mask = None
            if index == self.first:
                tokens = torch.cat([self.queries.expand(tokens.shape[0], -1, -1), tokens], dim=1)
            if index >= self.first and self.training:
                found.append(self._masks_and_classes(tokens, grid))
                mask = self._attention_mask(found[-1][0], self.masked[index - self.first], grid)
            tokens = encoder.block(index, tokens, rotations, mask)
        found.append(self._masks_and_classes(tokens, grid))
        masks = tuple(covering(mask, self.mask_stride, height, width) for mask, _ in found)
        classes = tuple(each for _, each in found)
        logits = _semantic(masks[-1], classes[-1])
        return SegOutput(logits, masks=masks, mask_classes=classes) if self.training else SegOutput(logits)

    def _masks_and_classes(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Compute the masks (N, Q, h, w) and classes (N, Q, C + 1) of queries, logits all, from all tokens."""
        normalized = self._encoder.last_norm(tokens)
        count = self.queries.shape[1]
        queries = normalized[:, :count]
        patches = _as_map(normalized[:, count + self._encoder.prefix :], grid)
        masks = torch.einsum("nqd,ndhw->nqhw", self.mask_head(queries), self.upscale(patches))
        return masks, self.classify(queries)

    def _attention_mask(self, masks: Tensor, share: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tell which tokens may look at which (N, 1, T, T): a `share` of the queries at patches in their masks only."""
        count = self.queries.shape[1]
        inside = (resize(masks.detach(), grid) > 0).flatten(2)
        free = torch.rand(*inside.shape[:2], 1, device=inside.device) >= share
        before = count + self._encoder.prefix
        total = before + inside.shape[2]
        allowed = inside.new_ones(len(inside), 1, total, total)
        allowed[:, 0, :count, before:] = inside | free
        return allowed

    def backbone_modules(self) -> Sequence[nn.Module]:
        return (self.backbone,)


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Arrange the tokens of patches (N, h * w, D) as a map (N, D, h, w)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _semantic(masks: Tensor, classes: Tensor) -> Tensor:
    """Compute logits (N, C, h, w) from those of masks (N, Q, h, w) and of their classes (N, Q, C + 1)."""
    with without_autocast(masks.device):
        dtype = torch.promote_types(masks.dtype, torch.float32)
        shares = classes.to(dtype).softmax(-1)[..., :-1]
        sums = torch.einsum("nqc,nqhw->nchw", shares, masks.to(dtype).sigmoid())
        return sums.clamp(min=1e-12).log()
