"""FCN-8s."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import BaseModel
from models.backbones.vgg import VGG
from models.blocks import Classifier, Width, scaled
from utils.outputs import SegOutput
from utils.registry import MODELS


class _Encoder(VGG):
    """VGG-16 with its classifier as convolutions; gives what pools 3 and 4 and the last of those give."""

    def __init__(self, in_channels: int, width_mult: float) -> None:
        super().__init__("vgg16", False, in_channels, width_mult=width_mult)
        # So much padding that the 7x7 convolution has something to see in images of any size; cropped away at the end.
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        first.padding = (100, 100)
        width = scaled(4096, width_mult)
        self.fc6 = nn.Conv2d(self.shapes[-1].channels, width, 7)
        self.fc7 = nn.Conv2d(width, width, 1)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> list[Tensor]:
        pools, x = [], images
        for stage in range(5):
            x = F.max_pool2d(self.convolve(stage, x), 2, ceil_mode=True)
            pools.append(x)
        x = self.dropout(F.relu(self.fc6(x)))
        return [pools[2], pools[3], self.dropout(F.relu(self.fc7(x)))]

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Make the fully connected layers of a published VGG convolutions."""
        state = dict(state)
        for old, new in (("classifier.0", self.fc6), ("classifier.3", self.fc7)):
            if f"{old}.weight" in state:
                name = "fc6" if new is self.fc6 else "fc7"
                state[f"{name}.weight"] = state[f"{old}.weight"].reshape(new.weight.shape)
                state[f"{name}.bias"] = state[f"{old}.bias"]
        return state


@MODELS.register()
class FCN8(BaseModel):
    """VGG-16 turned into a fully convolutional network, with scores of three resolutions added up.

    Source: Shelhamer et al. 2016, https://arxiv.org/abs/1605.06211, section 4.3, and the authors' public
    FCN-8s "at once" for the scales of the two skips and the offsets of the crops.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        width_mult: Share of the published channels.
    """

    def __init__(self, num_classes: int, in_channels: int = 3, *, width_mult: Width = 1.0) -> None:
        super().__init__(in_channels)
        self.encoder = _Encoder(in_channels, width_mult)
        pool3, pool4 = self.encoder.shapes[2], self.encoder.shapes[3]
        self.score3 = Classifier(pool3.channels, num_classes)
        self.score4 = Classifier(pool4.channels, num_classes)
        self.score7 = Classifier(self.encoder.fc7.out_channels, num_classes)

    def predict(self, images: Tensor) -> SegOutput:
        pool3, pool4, last = self.encoder(images)
        x = _enlarge(self.score7(last), 2)
        x = _enlarge(x + _crop(self.score4(0.01 * pool4), 5, x), 2)
        x = _enlarge(x + _crop(self.score3(0.0001 * pool3), 9, x), 8)
        return SegOutput(_crop(x, 31, images))

    def backbone_modules(self) -> Sequence[nn.Module]:
        return (self.encoder,)


def _crop(x: Tensor, offset: int, reference: Tensor) -> Tensor:
    return x[..., offset : offset + reference.shape[-2], offset : offset + reference.shape[-1]]


def _enlarge(x: Tensor, factor: int) -> Tensor:
    """Enlarge bilinearly by a fixed transposed convolution, as the authors do: borders grow by half a kernel."""
    size, channels = 2 * factor, x.shape[1]
    ramp = 1 - ((torch.arange(size, device=x.device, dtype=x.dtype) + 0.5) / factor - 1).abs()
    kernel = (ramp[:, None] * ramp).expand(channels, 1, size, size)
    return F.conv_transpose2d(x, kernel, stride=factor, groups=channels)
