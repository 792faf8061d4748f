"""SegNet."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.backbones.vgg import STAGES, VGG
from models.blocks import Classifier, ConvNormAct, Width, scaled, unpool
from utils.outputs import SegOutput
from utils.registry import MODELS


@MODELS.register()
class SegNet(BaseModel):
    """VGG-16 and its mirror image, which puts values back to where the encoder's pools took them from.

    Source: Badrinarayanan et al. 2015, https://arxiv.org/abs/1511.00561, section 3.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width_mult: Width = 1.0) -> None:
        super().__init__(in_channels)
        self.encoder = VGG("vgg16_bn", True, in_channels, width_mult=width_mult)
        widths = [scaled(width, width_mult) for width, _ in STAGES]
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ConvNormAct(width, width) for _ in range(count - 1)), ConvNormAct(width, finer))
            for (_, count), width, finer in reversed(list(zip(STAGES, widths, [widths[0], *widths], strict=False)))
        )
        self.classify = Classifier(widths[0], num_classes, 3)

    def predict(self, images: Tensor) -> SegOutput:
        x, taken = images, []
        for number in range(5):
            x = self.encoder.convolve(number, x)
            size = x.shape[-2:]
            x, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
            taken.append((indices, size))
        for stage, (indices, size) in zip(self.decoder, reversed(taken), strict=True):
            x = stage(unpool(x, indices, size))
        return SegOutput(self.classify(x))

    def backbone_modules(self) -> Sequence[nn.Module]:
        return (self.encoder,)
