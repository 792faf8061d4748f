"""VGG, with torchvision's parameter names, at any output stride."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride, Width, scaled, strides_and_dilations
from utils.registry import BACKBONES

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions, configuration D of table 1


@BACKBONES.register("vgg16", variant="vgg16", batch_norm=False)
@BACKBONES.register("vgg16_bn", variant="vgg16_bn", batch_norm=True)
class VGG(Backbone):
    """Stages of 3x3 convolutions, each with a max-pool behind it; level k is what the k-th pool gives.

    Source: Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556, table 1, without the classifier.

    Args:
        variant: Whose public weights fit.
        batch_norm: Have a batch norm behind every convolution.
        in_channels: Channels of the images.
        output_stride: Input pixels per pixel of the coarsest map; null is what the model says, or else 32.
        width_mult: Share of the published channels.
    """

    def __init__(
        self,
        variant: str,
        batch_norm: bool,
        in_channels: int,
        *,
        output_stride: OutputStride | None = None,
        width_mult: Width = 1.0,
    ) -> None:
        super().__init__()
        if width_mult == 1:
            self.weights = variant
        self.pools = strides_and_dilations(output_stride or 32)
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # index of the pool of each stage; torchvision counts pools among the layers
        shapes = []
        stride = 1
        dilation = 1
        for level, (published, count) in enumerate(STAGES, start=1):
            width = scaled(published, width_mult)
            for _ in range(count):
                layers.append(nn.Conv2d(in_channels, width, 3, padding=dilation, dilation=dilation))
                if batch_norm:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(nn.ReLU(inplace=True))
                in_channels = width
            self.ends.append(len(layers))
            layers.append(nn.Identity())
            pool_stride, dilation = self.pools[
                level - 1
            ]  # the pool stands behind its stage, so both are the next one's
            stride *= pool_stride
            shapes.append(FeatureShape(width, stride, level))
        self.features = nn.ModuleList(layers)
        self.shapes = tuple(shapes)

    def convolve(self, stage: int, x: Tensor) -> Tensor:
        """Run the convolutions of `stage`, from 0 to 4, without its pool."""
        first = self.ends[stage - 1] + 1 if stage else 0
        for layer in self.features[first : self.ends[stage]]:
            x = layer(x)
        return x

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = images
        dilation = 1
        for stage, (stride, next_dilation) in enumerate(self.pools):
            x = self.convolve(stage, x)
            if stride == 1:  # keeps the size; zeros are no more than what a ReLU gives
                x = F.pad(x, (0, dilation, 0, dilation))
            x = F.max_pool2d(x, 2, stride, dilation=dilation)
            dilation = next_dilation
            features.append(x)
        return features
