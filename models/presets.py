"""Published networks as compositions of our bricks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from torch import nn

from models.blocks import OutputStride, Positive, Width
from models.encoder_decoder import BrickSpec, EncoderDecoder, compose, with_argument
from utils.errors import ConfigError
from utils.registry import BACKBONES, MODELS
from utils.schema import Between, Component, parameters_of


def _brick(where: str, kind: str, **args: Any) -> BrickSpec:
    """A brick that the preset chose; what cannot be built from it is the fault of the backbone chosen."""
    return BrickSpec(f"{where}.backbone", Component(kind, args))


Part = Literal["aspp", "decoder"]
Momentum = Annotated[float, Between(0, 1)]


@MODELS.register(
    "DeepLab_Xception",
    one_width=True,
    channels=256,
    defaults={"backbone": Component("xception65"), "aspp_depth": 256, "separable": True, "bn_eps": 1e-3},
)
@MODELS.register("DeepLab", one_width=False)
def deeplab(  # noqa: PLR0913  all but the first are named
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    one_width: bool,
    backbone: Annotated[Component, BACKBONES] = Component("resnet50"),  # noqa: B008  frozen
    output_stride: Literal[16, 8] = 16,
    decoder: bool = True,
    channels: Positive = 256,
    aspp_depth: Positive | None = None,
    rates: tuple[Positive, ...] | None = None,
    separable: bool | Part = False,
    batch_norm: bool | Part = True,
    bn_momentum: Momentum | None = None,
    bn_eps: Width | None = None,
) -> EncoderDecoder:
    """DeepLabV3+: ASPP and a decoder that sharpens its result with the level-2 map.

    `DeepLab_Xception`: DeepLabV3+ as its authors trained it, on an Xception and with separable convolutions. In it
    (section 4.3), `aspp_depth` is the width of the decoder too. What their program calls `fine_tune_batch_norm: false`
    is `freeze_bn: true` here.

    Source: Chen et al. 2018, https://arxiv.org/abs/1802.02611.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        one_width: Give the decoder the width of ASPP.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        decoder: Have the decoder; without it, the result of ASPP is classified.
        channels: Width of ASPP and of the decoder.
        aspp_depth: Width of ASPP, if it is not `channels`; in a `DeepLab_Xception`, of the decoder too.
        rates: Dilations of ASPP; null is 6, 12, 18 at stride 16 and 12, 24, 36 at stride 8.
        separable: Use depthwise-separable 3x3 convolutions in both, or in one of them.
        batch_norm: Have batch norms in both, or in one of them; `freeze_bn` says whether they are trained.
        bn_momentum: Share of a batch in the running statistics of all batch norms; null is 0.1. The authors' 0.0003
            takes ten thousand steps to forget where it started.
        bn_eps: Added to the variance in all batch norms; null is what the bricks have, 0.001 in an Xception.
    """
    aspp_width = aspp_depth or channels
    aspp = _brick(
        where,
        "ASPP",
        channels=aspp_width,
        rates=rates,
        separable=separable in (True, "aspp"),
        batch_norm=batch_norm in (True, "aspp"),
    )
    if decoder:
        head = _brick(
            where,
            "DeepLabV3PlusHead",
            channels=aspp_width if one_width else channels,
            separable=separable in (True, "decoder"),
            batch_norm=batch_norm in (True, "decoder"),
        )
    else:
        head = _brick(where, "FCNHead", convs=0, dropout=0.0)
    model = compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        necks=[aspp],
        head=head,
        output_stride=output_stride,
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = module.momentum if bn_momentum is None else bn_momentum
            module.eps = module.eps if bn_eps is None else bn_eps
    return model


@MODELS.register("DeepLabV3")
def deeplab_v3(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("resnet50"),  # noqa: B008
    output_stride: Literal[16, 8] = 8,
    use_aux: bool = True,
    rates: tuple[Positive, ...] | None = None,
) -> EncoderDecoder:
    """DeepLabV3 as torchvision has it: ASPP, one 3x3 convolution, an auxiliary head on level 4.

    Source: Chen et al. 2017, https://arxiv.org/abs/1706.05587.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        use_aux: Train an auxiliary head on the level-4 map.
        rates: Dilations of ASPP; null is 6, 12, 18 at stride 16 and 12, 24, 36 at stride 8.
    """
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        necks=[_brick(where, "ASPP", rates=rates)],
        head=_brick(where, "FCNHead", channels=256, dropout=0.0),
        aux_heads=[_brick(where, "FCNHead", level=4)] if use_aux else [],
        output_stride=output_stride,
    )


@MODELS.register("DeepLabV3_MobileNetV2")
def deeplab_v3_mobilenet_v2(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    output_stride: Literal[16, 8] = 16,
    multi_grid: tuple[Positive, ...] | None = (1, 2, 4),
    rates: tuple[Positive, ...] | None = (6, 12, 18),
    width_mult: Width = 1.0,
    channels: Positive = 256,
) -> EncoderDecoder:
    """DeepLabV3 on MobileNetV2, with multi-grid: small and quick.

    Source: Chen et al. 2017, https://arxiv.org/abs/1706.05587, and Sandler et al. 2018,
    https://arxiv.org/abs/1801.04381, section 6.3.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        multi_grid: Rates of the backbone's last blocks; null ends it as published.
        rates: Dilations of ASPP; null adapts 6, 12, 18 to the output stride.
        width_mult: Share of the backbone's published channels.
        channels: Width of ASPP.
    """
    return deeplab(
        num_classes,
        in_channels,
        where,
        one_width=True,
        backbone=Component("mobilenet_v2", {"multi_grid": multi_grid, "width_mult": width_mult}),
        output_stride=output_stride,
        decoder=False,
        channels=channels,
        rates=rates,
    )


@MODELS.register("PSPDenseNet", deep_stem=False, bins=(1, 2, 3, 6), defaults={"backbone": Component("densenet201")})
@MODELS.register("PSPNet")
def pspnet(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("resnet152"),  # noqa: B008
    output_stride: OutputStride = 8,
    use_aux: bool = True,
    deep_stem: bool = False,
    bins: tuple[Positive, ...] = (1, 2, 3, 6),
) -> EncoderDecoder:
    """Pyramid scene parsing network: pyramid pooling, and an auxiliary head on level 4.

    `PSPDenseNet`: PSPNet on a DenseNet. Its source is Huang et al. 2016, https://arxiv.org/abs/1608.06993.

    Source: Zhao et al. 2016, https://arxiv.org/abs/1612.01105.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        use_aux: Train an auxiliary head on the level-4 map.
        deep_stem: Let a ResNet begin with three 3x3 convolutions, as the authors' does; its public weights are
            timm's, torchvision's have the 7x7 one.
        bins: Parts per side of each level of the pyramid.
    """
    if deep_stem:
        backbone = with_argument(backbone, "deep_stem", True, where=f"{where}.deep_stem")
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        necks=[_brick(where, "PyramidPooling", bins=bins)],
        head=_brick(where, "FCNHead", convs=0, dropout=0.0),
        aux_heads=[_brick(where, "FCNHead", level=4, reduction=2)] if use_aux else [],
        output_stride=output_stride,
    )


@MODELS.register("DeepLab_DUC_HDC")
def deeplab_duc_hdc(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("resnet101"),  # noqa: B008
    output_stride: Literal[8, 4] = 8,
    hdc: Literal["RF", "bigger"] | None = "RF",
    rates: tuple[Positive, ...] = (6, 12, 18, 24, 36),
) -> EncoderDecoder:
    """DeepLabV3+ with hybrid dilated convolution in the backbone, and logits of every pixel by learned upsampling.

    Source: Wang et al. 2017, https://arxiv.org/abs/1702.08502, sections 3.1 and 3.2.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        hdc: Dilations of the two last stages of a ResNet, at either stride: 1, 2, 3 by turns, then 3, 4, 5 ("RF");
            1, 2, 5, 9 by turns, then 5, 9, 17 ("bigger"); or what the backbone's own arguments say (null). Other
            backbones have no such lists.
        rates: Dilations of ASPP.
    """
    target = BACKBONES[backbone.type]
    depths = getattr(target, "keywords", {}).get("depths")
    if hdc and depths and "hdc" in parameters_of(target):
        lists = _hybrid_dilations(hdc, *depths[-2:])
        backbone = with_argument(backbone, "hdc", lists, where=f"{where}.hdc")
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        necks=[_brick(where, "ASPP", rates=rates)],
        head=_brick(where, "DUCHead"),
        output_stride=output_stride,
    )


def _hybrid_dilations(kind: str, third: int, fourth: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The lists of section 3.2 and table 3, for stages of any number of blocks; ResNet-101 has 23 and 3."""
    if kind == "RF":
        return (1, 2, 3) * (third // 3) + (2,) * (third % 3), (3, 4, 5)[:fourth]
    turns = (1, 2, 5, 9)
    return turns * (third // 4) + turns[: third % 4], (5, 9, 17)[:fourth]


@MODELS.register("UNetResnet")
def unet_resnet(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("resnet50"),  # noqa: B008
    output_stride: OutputStride | None = None,
    deep_stem: bool = False,
    deep_supervision: bool = False,
) -> EncoderDecoder:
    """U-Net whose encoder is a ResNet, or any other backbone: skips from levels 1 to 4.

    Source: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map; null is 32.
        deep_stem: Let a ResNet begin with three 3x3 convolutions.
        deep_supervision: Classify the map of every step of the decoder in training.
    """
    if deep_stem:
        backbone = with_argument(backbone, "deep_stem", True, where=f"{where}.deep_stem")
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        head=_brick(where, "UNetHead", deep_supervision=deep_supervision),
        output_stride=output_stride,
    )


@MODELS.register("UperNet")
def upernet(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("resnet101"),  # noqa: B008
    output_stride: OutputStride = 16,
    fpn_out: Positive = 256,
    use_aux: bool = False,
    deep_supervision: bool = False,
) -> EncoderDecoder:
    """Unified perceptual parsing network: pyramid pooling below a feature pyramid.

    Source: Xiao et al. 2018, https://arxiv.org/abs/1807.10221, figure 4.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        fpn_out: Width of the feature pyramid.
        use_aux: Train an auxiliary head on the level-4 map.
        deep_supervision: Classify the map of every level of the pyramid by itself too in training.
    """
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        necks=[_brick(where, "PyramidPooling", bins=(1, 2, 4, 6))],
        head=_brick(where, "FPNHead", channels=fpn_out, deep_supervision=deep_supervision),
        aux_heads=[_brick(where, "FCNHead", level=4)] if use_aux else [],
        output_stride=output_stride,
    )


@MODELS.register("GCN")
def gcn(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("resnet50"),  # noqa: B008
    output_stride: OutputStride | None = None,
    num_filters: Positive = 11,
    use_deconv: bool = False,
    use_resnet_gcn: bool = False,
) -> EncoderDecoder:
    """Global convolutional network: large kernels on every level.

    Source: Peng et al. 2017, https://arxiv.org/abs/1703.02719.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        output_stride: Input pixels per pixel of the backbone's coarsest map; null is 32.
        num_filters: Size k of the kernels; odd.
        use_deconv: Enlarge scores by learned transposed convolutions.
        use_resnet_gcn: Have large kernels inside a ResNet of bottlenecks too: resnet50 becomes resnet50_gcn.
    """
    if use_resnet_gcn:
        variants = {name.removesuffix("_gcn"): name for name in BACKBONES if name.endswith("_gcn")}
        if backbone.type not in {*variants, *variants.values()}:
            raise ConfigError(
                f"{where}.use_resnet_gcn: '{backbone.type}' has no such variant. "
                f"Set it to false, or take one of {', '.join(variants)} as the backbone."
            )
        backbone = Component(variants.get(backbone.type, backbone.type), backbone.args)
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        head=_brick(where, "LargeKernelHead", kernel_size=num_filters, use_deconv=use_deconv),
        output_stride=output_stride,
    )


@MODELS.register("LRASPP")
def lr_aspp(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES] = Component("mobilenet_v2"),  # noqa: B008
    output_stride: OutputStride = 16,
    channels: Positive = 128,
) -> EncoderDecoder:
    """Lite R-ASPP, the smallest head that sees the whole image; the authors' backbone is one of timm's MobileNetV3.

    Source: Howard et al. 2019, https://arxiv.org/abs/1905.02244, section 6.4.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps; `timm/mobilenetv3_large_100` is the one of the paper.
        output_stride: Input pixels per pixel of the backbone's coarsest map.
        channels: Width of the coarsest map before it is classified.
    """
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        head=_brick(where, "LRASPPHead", channels=channels),
        output_stride=output_stride,
    )
