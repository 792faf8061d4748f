"""SegNet with a ResNet-50 encoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.backbones.resnet import Bottleneck, ResNet
from models.blocks import Classifier, ConvNormAct, Width, unpool
from utils.outputs import SegOutput
from utils.registry import MODELS

DEPTHS = (3, 4, 6, 3)


class _Enlarge(nn.Module):
    """A bottleneck backwards: fewer channels at twice the size."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            ConvNormAct(channels, inner, 1),
            nn.ConvTranspose2d(inner, inner, 2, stride=2, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            ConvNormAct(inner, out_channels, 1, act=None),
        )
        self.shortcut = nn.Sequential(
            nn.ConvTranspose2d(channels, out_channels, 2, stride=2, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class _Reduce(nn.Module):
    """The last bottleneck: a quarter of the channels at the same size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 4
        self.branch = nn.Sequential(
            ConvNormAct(channels, inner, 1), ConvNormAct(inner, inner), ConvNormAct(inner, inner, 1, act=None)
        )
        self.shortcut = ConvNormAct(channels, inner, 1, act=None)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


@MODELS.register()
class SegResNet(BaseModel):
    """ResNet-50 and its mirror image, which puts values back to where the encoder's pool took them from.

    Source: Badrinarayanan et al. 2015, https://arxiv.org/abs/1511.00561, for the idea; He et al. 2015,
    https://arxiv.org/abs/1512.03385, table 1, for the stages. Sizes are rounded up on the way down; what is too much
    is cut off on the way up.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width_mult: Width = 1.0) -> None:
        super().__init__(in_channels)
        self.encoder = ResNet("resnet50", (Bottleneck,) * 4, DEPTHS, in_channels, width_mult=width_mult)
        stem, *widths = [shape.channels for shape in self.encoder.shapes]
        stages: list[nn.Module] = []
        for width, finer, depth in reversed(list(zip(widths, [None, *widths], DEPTHS, strict=False))):
            # One block fewer than the encoder: the place of its first is taken by what changes the channels.
            blocks = [
                Bottleneck(width, width // 4, stride=1, dilations=(1, 1), project=False, se=None)
                for _ in range(depth - 1)
            ]
            stages.append(nn.Sequential(*blocks, _Enlarge(width, finer) if finer else _Reduce(width)))
        self.decoder = nn.ModuleList(stages)
        self.enlarge = nn.ConvTranspose2d(stem, stem, 2, stride=2, bias=False)
        self.classify = Classifier(stem, num_classes, 3)

    def predict(self, images: Tensor) -> SegOutput:
        encoder = self.encoder
        first = encoder.relu(encoder.bn1(encoder.conv1(images)))
        x, indices = F.max_pool2d(first, 3, 2, 1, return_indices=True)
        sizes = []
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
            sizes.append(x.shape[-2:])
            x = stage(x)
        for decode, (height, width) in zip(self.decoder, reversed(sizes), strict=True):
            x = decode(x)[..., :height, :width]
        x = unpool(x, indices, first.shape[-2:], overlapping=True)
        x = self.enlarge(x)[..., : images.shape[-2], : images.shape[-1]]
        return SegOutput(self.classify(x))

    def backbone_modules(self) -> Sequence[nn.Module]:
        return (self.encoder,)
