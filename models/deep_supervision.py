"""Decoders that make maps of several resolutions, and networks that train all of these."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from base.base_model import FeatureShape, Head, Neck
from models.encoder_decoder import EncoderDecoder
from models.heads.fcn import FCNHead
from utils.outputs import SegOutput


class Decoder(Head):
    """A head that makes maps of several resolutions on its way to the finest, which is classified.

    `decoded` describes the maps that `decode` makes, for auxiliary heads on them.
    """

    decoded: tuple[FeatureShape, ...]

    @abstractmethod
    def decode(self, features: list[Tensor]) -> list[Tensor]:
        """Compute the maps (N, channels, h, w), finest first."""

    @abstractmethod
    def classify(self, decoded: Tensor) -> Tensor:
        """Compute logits (N, num_classes, h, w) of the finest map."""

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.classify(self.decode(features)[0])


class DeeplySupervised(EncoderDecoder):
    """An encoder and a decoder whose auxiliary heads look at the decoder's coarser maps, not at the encoder's.

    Args:
        model: The network without auxiliary heads; its head is a `Decoder`.
        aux_heads: Each receives all maps of the decoder.
        in_channels: Channels of the images.
    """

    head: Decoder

    def __init__(self, model: EncoderDecoder, aux_heads: Sequence[Head], *, in_channels: int = 3) -> None:
        necks = [neck for neck in model.necks if isinstance(neck, Neck)]
        super().__init__(model.backbone, necks, model.head, aux_heads, in_channels=in_channels)

    def predict(self, images: Tensor) -> SegOutput:
        maps = self.head.decode(self.necks(self.backbone(images)))
        aux = [head(maps) for head in self.aux_heads] if self.training else []
        return SegOutput(self.head.classify(maps[0]), tuple(aux))


def supervise(
    model: EncoderDecoder, num_classes: int, in_channels: int, *, levels: Sequence[int], channels: int | None
) -> DeeplySupervised:
    """Give `model`, whose head is a `Decoder`, an auxiliary head on each of these levels of its maps.

    Args:
        model: The network without auxiliary heads.
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        levels: Of the decoder's maps.
        channels: Width of a 3x3 convolution before each classifier; None for the classifier alone.
    """
    decoder = model.head
    if not isinstance(decoder, Decoder):
        raise TypeError(f"{type(decoder).__name__} makes no maps that could be supervised")
    aux_heads = []
    for level in levels:
        convs = 0 if channels is None else 1
        aux_heads.append(
            FCNHead(decoder.decoded, num_classes, level=level, convs=convs, channels=channels, dropout=0.0)
        )
    return DeeplySupervised(model, aux_heads, in_channels=in_channels)
