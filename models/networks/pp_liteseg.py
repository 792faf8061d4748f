"""PP-LiteSeg."""

from __future__ import annotations

from typing import Annotated, cast

from torch import Tensor

from models.blocks import OutputStride, Positive
from models.encoder_decoder import BrickSpec, EncoderDecoder, compose
from models.heads.fcn import FCNHead
from models.heads.uafm import UAFMHead
from utils.outputs import SegOutput
from utils.registry import BACKBONES, MODELS
from utils.schema import Component


class PPLiteSeg(EncoderDecoder):
    """An encoder with a `UAFMHead`, and auxiliary heads of 64 channels on the decoder's two coarser maps.

    Args:
        model: The network without auxiliary heads.
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
    """

    head: UAFMHead

    def __init__(self, model: EncoderDecoder, num_classes: int, in_channels: int) -> None:
        decoder = cast("UAFMHead", model.head)
        aux_heads = [FCNHead(decoder.decoded, num_classes, level=level, channels=64, dropout=0.0) for level in (4, 5)]
        super().__init__(model.backbone, [], decoder, aux_heads, in_channels=in_channels)

    def predict(self, images: Tensor) -> SegOutput:
        maps = self.head.decode(self.backbone(images))
        aux = [head(maps) for head in self.aux_heads] if self.training else []
        return SegOutput(self.head.classify(maps[0]), tuple(aux))


@MODELS.register("PPLiteSeg_B", defaults={"backbone": Component("stdc2"), "widths": (64, 96, 128), "channels": 64})
@MODELS.register("PPLiteSeg_T")
def pp_liteseg(  # noqa: PLR0913  all but the first are named
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("stdc1"),  # noqa: B008
    output_stride: OutputStride | None = None,
    widths: tuple[Positive, ...] = (32, 64, 128),
    context_channels: Positive = 128,
    channels: Positive = 32,
    use_aux: bool = True,
) -> EncoderDecoder:
    """Real-time network of an STDC backbone and a decoder of attention, whose coarser maps are trained on too.

    `PPLiteSeg_B`: on STDC2 and with a wider decoder. The logits are of stride 8; mean IoU on Cityscapes val at
    1024x2048 is 77.0 (T) and 79.0 (B), from ImageNet. The auxiliary losses weigh as much as the main one: set
    `aux_factor` to 1.

    Source: Peng et al. 2022, https://arxiv.org/abs/2204.02681, section 3 and table 1; widths of the heads and both
    figures are of https://github.com/PaddlePaddle/PaddleSeg, configs/pp_liteseg.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map; null is 32.
        widths: Channels behind the fusion with each of levels 3 to 5.
        context_channels: Width of the pyramid pooling.
        channels: Width of the 3x3 convolution before the classifier.
        use_aux: Train auxiliary heads of 64 channels on the decoder's maps of levels 4 and 5.
    """
    args = {"widths": widths, "context_channels": context_channels, "channels": channels}
    model = compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        head=BrickSpec(f"{where}.backbone", Component("UAFMHead", args)),  # what does not fit is the backbone
        output_stride=output_stride,
    )
    return PPLiteSeg(model, num_classes, in_channels) if use_aux else model
