"""SegNeXt."""

from __future__ import annotations

from typing import Annotated

from models.blocks import OutputStride, Positive
from models.encoder_decoder import BrickSpec, EncoderDecoder, compose
from utils.registry import BACKBONES, MODELS
from utils.schema import Component


@MODELS.register("SegNeXt_L", defaults={"backbone": Component("mscan_l"), "channels": 1024})
@MODELS.register("SegNeXt_B", defaults={"backbone": Component("mscan_b"), "channels": 512})
@MODELS.register("SegNeXt_S", defaults={"backbone": Component("mscan_s"), "rank": 16})
@MODELS.register("SegNeXt_T", defaults={"rank": 16})
def segnext(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("mscan_t"),  # noqa: B008  frozen
    output_stride: OutputStride | None = None,
    channels: Positive = 256,
    rank: Positive = 64,
) -> EncoderDecoder:
    """Multi-scale convolutional attention, and a head that explains the whole image by few bases.

    The logits are of stride 8. Public parameters, at 150 classes: 4.3 M (T), 13.9 M (S), 27.6 M (B), 48.9 M (L);
    41.1, 44.3, 48.5 and 51.0 mean IoU on ADE20K val, from ImageNet.

    Source: Guo et al. 2022, https://arxiv.org/abs/2209.08575, section 3 and tables 2 and 3.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map; null is 32.
        channels: Width of the head.
        rank: Number of bases.
    """
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        # What cannot be built on a backbone is the fault of the backbone chosen.
        head=BrickSpec(f"{where}.backbone", Component("LightHamHead", {"channels": channels, "rank": rank})),
        output_stride=output_stride,
    )
