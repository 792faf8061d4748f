"""Backbones, necks, heads and models: shapes, dilation, equality with torchvision, training, config errors."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import Backbone, BaseModel, FeatureShape, Neck
from models.build import OPTIONS, arch_json_schema, arguments_of_model, build_model, check_model, initialize
from models.weights import from_torchvision
from utils.errors import ConfigError
from utils.registry import BACKBONES, HEADS, MODELS, NECKS
from utils.schema import Component, fits, parameters_of, to_json

CLASSES = 5


def narrow(backbone: str, **args: Any) -> dict[str, Any]:
    return {"type": backbone, "args": {"width_mult": 0.125, **args}}


NARROW, NARROW_50 = narrow("resnet18"), narrow("resnet50")

# One small way to build everything registered; a test sees to it that no name is missing.
SMALL: dict[str, dict[str, Any]] = {
    "EncoderDecoder": {
        "backbone": NARROW,
        "necks": [{"type": "ASPP", "args": {"channels": 8}}],
        "head": {"type": "DeepLabV3PlusHead", "args": {"channels": 8}},
        "aux_heads": [{"type": "FCNHead", "args": {"level": 4}}],
        "output_stride": 16,
    },
    "DeepLab": {"backbone": NARROW, "channels": 16},
    "DeepLab_Xception": {"backbone": narrow("xception41"), "aspp_depth": 16},
    "LRASPP": {"backbone": {"type": "mobilenet_v2", "args": {"width_mult": 0.25}}, "channels": 16},
    "DeepLabV3": {"backbone": NARROW},
    "DeepLabV3_MobileNetV2": {"width_mult": 0.25, "channels": 16},
    "PSPNet": {"backbone": NARROW_50},
    "UNet": {"width_mult": 0.125},
    "ResEncUNet": {"width_mult": 0.25},
    "UNetResnet": {"backbone": NARROW},
    "UperNet": {"backbone": NARROW, "fpn_out": 8, "use_aux": True},
    "GCN": {"backbone": NARROW, "num_filters": 5},
    "FCN8": {"width_mult": 0.0625},
    "SegNet": {"width_mult": 0.125},
    "SegResNet": {"width_mult": 0.125},
    "ENet": {},
    "PSPDenseNet": {"backbone": narrow("densenet121")},
    "DeepLab_DUC_HDC": {"backbone": NARROW_50},
    "DDRNet_23": {"width_mult": 0.125},
    "DDRNet_23_slim": {"width_mult": 0.25},
    "PIDNet_L": {"width_mult": 0.125},
    "PIDNet_M": {"width_mult": 0.125},
    "PIDNet_S": {"width_mult": 0.25},
    "BiSeNetV2": {"width_mult": 0.125, "channels": 16},
    "FastSCNN": {"width_mult": 0.25},
    "SegNeXt_B": {"backbone": narrow("mscan_t"), "channels": 16},
    "SegNeXt_L": {"backbone": narrow("mscan_t"), "channels": 16},
    "SegNeXt_S": {"backbone": narrow("mscan_s"), "channels": 16},
    "SegNeXt_T": {"backbone": narrow("mscan_t"), "channels": 16},
    "PPLiteSeg_B": {"backbone": narrow("stdc2"), "widths": (8, 8, 16), "context_channels": 8, "channels": 8},
    "PPLiteSeg_T": {"backbone": narrow("stdc1"), "widths": (8, 8, 16), "context_channels": 8},
    "EoMT": {"channels": 16, "depth": 3, "heads": 2, "queries": 8, "query_blocks": 2},
}
VARIANTS = [
    *((name, args) for name, args in SMALL.items()),
    ("EncoderDecoder", {"backbone": NARROW_50, "head": "FCNHead"}),
    (
        "EncoderDecoder",
        {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125, "se": "scSE"}}, "head": "FCNHead"},
    ),
    ("DeepLab", {"backbone": NARROW, "channels": 16, "output_stride": 8, "separable": True}),
    ("DeepLab", {"backbone": NARROW, "channels": 16, "decoder": False}),
    ("DeepLab", {"backbone": NARROW, "channels": 16, "aspp_depth": 8, "separable": "aspp", "batch_norm": "decoder"}),
    (
        "DeepLab_Xception",
        {"backbone": narrow("xception71", multi_grid=[1, 2, 4]), "aspp_depth": 8, "batch_norm": False},
    ),
    ("LRASPP", {"backbone": NARROW}),
    ("DeepLab", {"backbone": narrow("xception41", bounded=True), "channels": 16}),
    ("DeepLab_DUC_HDC", {"backbone": NARROW, "output_stride": 4, "hdc": "bigger"}),
    ("DeepLab_DUC_HDC", {"backbone": narrow("mobilenet_v2")}),
    ("drn26+ASPPv2Head", {"drn26": {"width_mult": 0.125}, "ASPPv2Head": {"channels": 8}}),
    (
        "xception71+VortexPooling+LargeKernelHead",
        {"xception71": {"width_mult": 0.125}, "VortexPooling": {"channels": 8}},
    ),
    ("EncoderDecoder", {"backbone": NARROW, "head": "FCNHead", "aux_heads": ["DUCHead"]}),
    ("DeepLab", {"backbone": {"type": "mobilenet_v2", "args": {"width_mult": 0.25}}, "channels": 16}),
    ("DeepLabV3_MobileNetV2", {"width_mult": 0.25, "channels": 16, "output_stride": 8, "multi_grid": None}),
    ("UNetResnet", {"backbone": NARROW_50, "output_stride": 8, "deep_stem": True}),
    ("UperNet", {"backbone": {"type": "mobilenet_v2", "args": {"width_mult": 0.25}}, "fpn_out": 8}),
    ("GCN", {"backbone": NARROW_50, "use_deconv": True, "output_stride": 16}),
    ("GCN", {"backbone": NARROW_50, "use_resnet_gcn": True}),
    ("PSPNet", {"backbone": NARROW, "use_aux": False, "deep_stem": True, "output_stride": 16}),
    (
        "resnet18+aspp_plus+deeplabv3_plus_decoder",
        {"output_stride": 8, "resnet18": {"width_mult": 0.125}, "aspp_plus": {"channels": 8}},
    ),
]


def build(kind: str, args: dict[str, Any] | None = None, num_classes: int = CLASSES, **options: Any) -> BaseModel:
    return build_model(Component(kind, {**(args or {}), **options}), num_classes=num_classes)


def narrow_backbone(name: str, **args: Any) -> Backbone:
    if "width_mult" in parameters_of(BACKBONES[name]):
        args["width_mult"] = 0.125
    return BACKBONES.build(Component(name, args), where="backbone", in_channels=3)


def parameter_count(kind: str, num_classes: int = 21, **args: Any) -> float:
    """Millions of parameters."""
    with torch.device("meta"):
        model = build(kind, args, num_classes)
    return sum(p.numel() for p in model.parameters()) / 1e6


# Backbones


@pytest.mark.parametrize("stride", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_delivers_the_shapes_it_announces(name: str, stride: int) -> None:
    backbone = narrow_backbone(name, output_stride=stride).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 65, 97))
    assert [shape.level for shape in backbone.shapes] == [1, 2, 3, 4, 5]
    assert backbone.shapes[-1].stride == stride
    for shape, feature in zip(backbone.shapes, features, strict=True):
        assert shape.stride == min(2**shape.level, stride)
        assert feature.shape[1] == shape.channels
        assert feature.shape[2] in (65 // shape.stride, -(-65 // shape.stride))
        assert feature.shape[3] in (97 // shape.stride, -(-97 // shape.stride))


@pytest.mark.parametrize("stride", [16, 8, 4, 2])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {}),
        ("resnet18", {"has_max_pool": False}),
        ("resnet50", {}),
        ("resnet50", {"deep_stem": True, "has_max_pool": False}),
        ("mobilenet_v2", {}),
        ("vgg16", {}),
        ("xception71", {}),
        ("densenet121", {}),
        ("resnet50_gcn", {}),
        ("stdc1", {}),
        ("mscan_t", {}),
    ],
)
def test_a_dilated_backbone_computes_the_strided_features_at_more_places(
    name: str, stride: int, options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    strided, dilated = (narrow_backbone(name, output_stride=s, **options).double().eval() for s in (32, stride))
    dilated.load_state_dict(strided.state_dict())
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for coarse, fine, shape in zip(strided(images), dilated(images), strided.shapes, strict=True):
            step = shape.stride // min(shape.stride, stride)
            torch.testing.assert_close(fine[:, :, ::step, ::step], coarse, rtol=1e-9, atol=1e-9)


def dilations(stage: nn.Module) -> list[int]:
    return [m.dilation[0] for m in stage.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]


def test_hybrid_dilation_takes_turns_in_every_dilated_stage() -> None:
    at_8, at_16 = (narrow_backbone("resnet50", output_stride=s, hdc=True) for s in (8, 16))
    assert dilations(at_8.layer2) == [1] * 4
    assert dilations(at_8.layer3) == [1, 2, 3, 1, 2, 3]
    assert dilations(at_8.layer4) == [3, 4, 5]
    assert dilations(at_16.layer3) == [1] * 6
    assert dilations(at_16.layer4) == [1, 2, 3]


def test_hybrid_dilation_can_be_spelled_out_for_the_last_stages() -> None:
    lists = ((1, 2, 3) * 7 + (2, 2), (3, 4, 5))
    backbone = narrow_backbone("resnet101", output_stride=8, hdc=lists)
    assert tuple(dilations(backbone.layer3)) == lists[0]
    assert tuple(dilations(backbone.layer4)) == lists[1]


@pytest.mark.parametrize(("stride", "expected"), [(32, [1, 2, 4]), (16, [2, 4, 8]), (8, [4, 8, 16])])
def test_multi_grid_multiplies_the_dilations_of_the_last_stage(stride: int, expected: list[int]) -> None:
    backbone = narrow_backbone("resnet50", output_stride=stride, multi_grid=[1, 2, 4])
    assert dilations(backbone.layer4) == expected


@pytest.mark.parametrize("se", ["cSE", "sSE", "scSE"])
def test_gates_stand_in_every_block_and_learn(se: str) -> None:
    backbone = narrow_backbone("resnet18", se=se)
    plain = narrow_backbone("resnet18")
    assert backbone.shapes == plain.shapes
    gated = {key.split(".gate.")[0] for key in backbone.state_dict() if ".gate." in key}
    assert gated == {f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)}
    backbone(torch.randn(2, 3, 64, 64))[-1].sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())


# Equality with torchvision


def randomized(model: nn.Module) -> nn.Module:
    """`model` in evaluation, with batch norms that do something."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


@pytest.mark.parametrize(
    ("name", "stride", "dilate"),
    [
        ("resnet18", 32, None),
        ("resnet50", 32, None),
        ("resnet50", 16, [False, False, True]),
        ("resnet50", 8, [False, True, True]),
    ],
)
def test_resnet_is_torchvisions(name: str, stride: int, dilate: list[bool] | None) -> None:
    theirs = randomized(getattr(torchvision.models, name)(replace_stride_with_dilation=dilate))
    ours = BACKBONES.build(Component(name, {"output_stride": stride}), where="", in_channels=3).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = theirs.relu(theirs.bn1(theirs.conv1(images)))
        expected = [x]
        x = theirs.maxpool(x)
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            x = stage(x)
            expected.append(x)
        for feature, wanted in zip(ours(images), expected, strict=True):
            torch.testing.assert_close(feature, wanted)


def test_mobilenet_is_torchvisions() -> None:
    theirs = randomized(torchvision.models.mobilenet_v2())
    ours = BACKBONES.build("mobilenet_v2", where="", in_channels=3).eval()
    state = theirs.state_dict()
    ours.load_state_dict({k: v for k, v in state.items() if not k.startswith(("classifier.", "features.18."))})
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = [x := images]
        for layer in theirs.features:
            expected.append(x := layer(x))
        for feature, layer in zip(ours(images), (1, 3, 6, 13, 17), strict=True):
            torch.testing.assert_close(feature, expected[layer + 1])


@pytest.mark.parametrize(
    ("name", "args"),
    [
        (f"{kind}_resnet{depth}", args)
        for depth in (50, 101)
        for kind, args in (
            ("fcn", {"head": "FCNHead"}),
            ("deeplabv3", {"necks": ["ASPP"], "head": {"type": "FCNHead", "args": {"channels": 256, "dropout": 0}}}),
        )
    ],
)
def test_our_bricks_make_torchvisions_segmentation_networks(name: str, args: dict[str, Any]) -> None:
    make = getattr(torchvision.models.segmentation, name)
    theirs = randomized(make(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True))
    aux = {"type": "FCNHead", "args": {"level": 4}}
    backbone = {"backbone": name.partition("_")[2], "output_stride": 8}
    ours = build("EncoderDecoder", {**backbone, "aux_heads": [aux], **args}).eval()
    ours.load_state_dict(from_torchvision(theirs.state_dict()))
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours.predict(images).full((65, 97)).logits, expected["out"])
        ours_aux = ours.get_submodule("aux_heads.0")(ours.get_submodule("backbone")(images))
        torch.testing.assert_close(
            F.interpolate(ours_aux, (65, 97), mode="bilinear", align_corners=False), expected["aux"]
        )


def test_our_lr_aspp_is_torchvisions() -> None:
    theirs = randomized(torchvision.models.segmentation.lraspp.LRASPPHead(6, 10, CLASSES, 8))
    shapes = (FeatureShape(6, 8, 3), FeatureShape(10, 16, 5))
    ours = HEADS.build(Component("LRASPPHead", {"channels": 8}), where="", shapes=shapes, num_classes=CLASSES).eval()
    names = {"cbr": "reduce", "scale": "weigh", "low_classifier": "classify_fine", "high_classifier": "classify"}
    state = theirs.state_dict()
    ours.load_state_dict({names[k.partition(".")[0]] + k[k.index(".") :]: v for k, v in state.items()})
    low, high = torch.randn(2, 6, 17, 23), torch.randn(2, 10, 9, 12)
    with torch.no_grad():
        torch.testing.assert_close(ours([low, high]), theirs({"low": low, "high": high}))


def test_the_mlp_head_looks_at_each_place_of_the_image_alone() -> None:
    torch.manual_seed(0)
    shapes = tuple(FeatureShape(4 * level, 2**level, level) for level in (2, 3, 4, 5))
    head = HEADS.build(Component("MLPHead", {"channels": 8}), where="", shapes=shapes, num_classes=CLASSES).eval()
    maps = [torch.randn(1, shape.channels, 64 // shape.stride, 96 // shape.stride) for shape in shapes]
    flat = [x.flatten(2).transpose(1, 2) for x in maps]  # the paper's layers are linear, on (N, pixels, C)
    projected = [
        F.linear(x, layer.weight.flatten(1), layer.bias).transpose(1, 2).unflatten(2, full.shape[-2:])
        for x, layer, full in zip(flat, head.project, maps, strict=True)
    ]
    enlarged = [F.interpolate(x, (16, 24), mode="bilinear", align_corners=False) for x in projected]
    conv, norm, *_ = head.mix[0]
    mixed = F.linear(torch.cat(enlarged, 1).movedim(1, -1), conv.weight.flatten(1)) / (1 + norm.eps) ** 0.5
    expected = F.linear(mixed.relu(), head.classify.weight.flatten(1), head.classify.bias).movedim(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(head(maps), expected)


# Whole models


def test_every_model_has_a_small_variant_here() -> None:
    ours = {name for name, target in MODELS.items() if not _module_of(target).startswith("tests.")}
    assert set(SMALL) == ours


def _module_of(target: Any) -> str:
    return str(getattr(target, "func", target).__module__)


@pytest.mark.parametrize(("kind", "args"), VARIANTS)
def test_a_training_step_reaches_every_parameter(kind: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = build(kind, args)
    output = model(torch.randint(256, (2, 3, 65, 97), dtype=torch.uint8))
    assert output.logits.shape[:2] == (2, CLASSES)
    sum(logits.square().mean() for logits in (output.logits, *output.aux, *output.edges)).backward()
    lost = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lost == []


@pytest.mark.parametrize(("kind", "args"), VARIANTS)
def test_every_parameter_is_in_exactly_one_group(kind: str, args: dict[str, Any]) -> None:
    model = build(kind, args)
    groups = model.parameter_groups(0.1, backbone_lr_scale=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    names = ["decoder", "backbone"] if model.backbone_modules() else ["decoder"]
    assert [group["name"] for group in groups] == names


@pytest.mark.parametrize("size", [(33, 33), (65, 97), (129, 34)])
@pytest.mark.parametrize(("kind", "args"), VARIANTS)
def test_logits_cover_images_of_any_size_and_aux_is_for_training(
    kind: str, args: dict[str, Any], size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    model = build(kind, args).eval()
    with torch.no_grad():
        output = model(torch.randint(256, (1, 3, *size), dtype=torch.uint8))
    assert output.aux == ()
    assert output.full(size).logits.shape == (1, CLASSES, *size)
    assert output.logits.min() < 0  # nothing clamps them


@pytest.mark.parametrize(("kind", "args"), VARIANTS)
def test_a_state_dict_restores_the_model(kind: str, args: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = randomized(build(kind, args))
    twin = build(kind, args).eval()
    twin.load_state_dict(copy.deepcopy(model.state_dict()))
    images = torch.rand(1, 3, 65, 97) * 255
    with torch.no_grad():
        assert torch.equal(model(images).logits, twin(images).logits)


QUICKLY_EXPORTED = (
    "EncoderDecoder",
    "FCN8",
    "SegNet",
    "SegResNet",
    "ENet",
    "UNet",
    "GCN",
)  # and what is common to the others


@pytest.mark.parametrize(
    ("kind", "args"),
    [
        pytest.param(k, a, marks=() if a is SMALL.get(k) and k in QUICKLY_EXPORTED else pytest.mark.slow)
        for k, a in VARIANTS
    ],
)
def test_a_model_can_be_exported(kind: str, args: dict[str, Any]) -> None:
    model = build(kind, args).eval()
    images = torch.randint(256, (1, 3, 64, 96), dtype=torch.uint8)
    exported = torch.export.export(model, (images,), strict=False).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4, 6])
@pytest.mark.parametrize("kind", MODELS)
def test_images_may_have_any_number_of_channels(kind: str, channels: int) -> None:
    model = build(kind, SMALL[kind], in_channels=channels).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, channels, 65, 97)).logits.shape[1] == CLASSES


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_built_on_the_meta_device(kind: str) -> None:
    with torch.device("meta"):
        model = build(kind, SMALL[kind], in_channels=4, pretrained=False)
        output = model(torch.empty(2, 4, 65, 97))
    assert output.logits.is_meta
    assert all(t.is_meta for t in model.state_dict().values())


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in module.named_buffers()}


@pytest.mark.parametrize("kind", MODELS)
def test_frozen_batch_norms_keep_their_statistics_to_the_bit(kind: str) -> None:
    model = build(kind, SMALL[kind], freeze_bn=True).train()
    before = buffers(model)
    model(torch.rand(2, 3, 65, 97) * 255)
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_batch_norms_of_the_backbone_alone_can_be_frozen(kind: str) -> None:
    if not build(kind, SMALL[kind]).backbone_modules():
        with pytest.raises(ConfigError, match=r"arch.args.freeze_bn: .* has no backbone"):
            build(kind, SMALL[kind], freeze_bn="backbone")
        return
    model = build(kind, SMALL[kind], freeze_bn="backbone").train()
    inside = {id(m) for backbone in model.backbone_modules() for m in backbone.modules()}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(norm.training == (id(norm) not in inside) for norm in norms)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("kind", MODELS)
def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics(kind: str) -> None:
    if not build(kind, SMALL[kind]).backbone_modules():
        with pytest.raises(ConfigError, match=r"arch.args.freeze_backbone: .* has no backbone"):
            build(kind, SMALL[kind], freeze_backbone=True)
        return
    model = build(kind, SMALL[kind], freeze_backbone=True).train()
    frozen = model.backbone_modules()
    before = [buffers(module) for module in frozen]
    model(torch.rand(2, 3, 65, 97) * 255).logits.mean().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.backbone_parameters())
    assert all(p.grad is not None for p in model.decoder_parameters() if not _in_aux(model, p))
    for module, old in zip(frozen, before, strict=True):
        assert all(torch.equal(old[name], b) for name, b in module.named_buffers())


def _in_aux(model: BaseModel, parameter: nn.Parameter) -> bool:
    return any(p is parameter for p in getattr(model, "aux_heads", nn.ModuleList()).parameters())


def test_pyramid_pooling_means_over_its_bins() -> None:
    neck = NECKS.build("PyramidPooling", where="", shapes=(FeatureShape(16, 8, 5),)).eval()
    seen = []
    for pool in neck.pools:
        pool[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(1, 16, 12, 18)
    (fused,) = neck([x])
    assert fused.shape == (1, 4, 12, 18)
    for means, bins in zip(seen, (1, 2, 3, 6), strict=True):
        expected = x.reshape(1, 16, bins, 12 // bins, bins, 18 // bins).mean((3, 5))
        torch.testing.assert_close(means, expected)


def test_fcn8_enlarges_bilinearly() -> None:
    from models.networks.fcn8 import _enlarge

    ramp = torch.arange(6.0).expand(1, 2, 6, 6)
    enlarged = _enlarge(ramp, 2)[:, :, 3:-3, 3:-3]  # borders mix with zeros
    torch.testing.assert_close(enlarged, (torch.arange(8) / 2 + 0.75).expand(1, 2, 8, 8))


def test_only_models_with_pooled_branches_need_two_images() -> None:
    assert build("DeepLab", SMALL["DeepLab"]).needs_batch
    assert not build("EncoderDecoder", {"backbone": NARROW, "head": "FCNHead"}).needs_batch
    no_pool = {"type": "ASPP", "args": {"channels": 8, "image_pooling": False}}
    assert not build("EncoderDecoder", {"backbone": NARROW, "necks": [no_pool], "head": "FCNHead"}).needs_batch


@pytest.mark.parametrize(("stride", "expected"), [(32, [3, 6, 9]), (16, [6, 12, 18]), (8, [12, 24, 36])])
def test_aspp_reaches_equally_far_in_the_image_at_every_stride(stride: int, expected: list[int]) -> None:
    shapes = (FeatureShape(8, stride, 5),)
    assert dilations(NECKS.build("ASPP", where="", shapes=shapes)) == expected
    assert dilations(NECKS.build(Component("ASPP", {"rates": [2, 5]}), where="", shapes=shapes)) == [2, 5]


@pytest.mark.parametrize("init", ["kaiming", "xavier", "trunc_normal"])
def test_each_initialisation_gives_its_own_spread(init: Any) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 256, 3)
    initialize(conv, init)
    expected = {
        "kaiming": (2 / (256 * 9)) ** 0.5,
        "xavier": (2 / ((64 + 256) * 9)) ** 0.5,
        "trunc_normal": 0.09 * 0.8796,  # of a normal cut at two standard deviations
    }
    assert conv.weight.std().item() == pytest.approx(expected[init], rel=0.02)
    assert not conv.bias.any()


# Options of presets


def convs_of(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


@pytest.mark.parametrize("choice", [True, False, "aspp", "decoder"])
@pytest.mark.parametrize("option", ["separable", "batch_norm"])
def test_deeplabs_options_reach_both_parts_or_one(option: str, choice: bool | str) -> None:
    model = build("DeepLab", {"backbone": NARROW, "channels": 16, "aspp_depth": 24, option: choice})
    for name, part in (("aspp", model.get_submodule("necks.0")), ("decoder", model.get_submodule("head"))):
        if option == "separable":
            found = any(conv.groups > 1 for conv in convs_of(part))
        else:
            found = any(isinstance(m, nn.BatchNorm2d) for m in part.modules())
            biased = [conv for conv in convs_of(part) if conv.bias is not None and conv.out_channels != CLASSES]
            assert bool(biased) != found
        assert found == (choice in (True, name))
    widths = [convs_of(model.get_submodule(name))[-1].out_channels for name in ("necks.0.project", "head.refine")]
    assert widths == [24, 16]


def test_batch_norms_take_their_numbers_from_the_preset() -> None:
    args = SMALL["DeepLab_Xception"]
    for given, expected in (({}, (0.1, 1e-3)), ({"bn_momentum": 3e-4, "bn_eps": 1e-5}, (3e-4, 1e-5))):
        norms = [m for m in build("DeepLab_Xception", {**args, **given}).modules() if isinstance(m, nn.BatchNorm2d)]
        assert {(norm.momentum, norm.eps) for norm in norms} == {expected}
    plain = build("DeepLab", {"backbone": narrow("xception41"), "channels": 16})
    assert {m.eps for m in plain.get_submodule("backbone").modules() if isinstance(m, nn.BatchNorm2d)} == {1e-3}


def test_multi_grid_multiplies_the_dilations_of_xceptions_last_convolutions() -> None:
    backbone = narrow_backbone("xception41", output_stride=16, multi_grid=[1, 2, 4])
    assert dilations(backbone.blocks[-1]) == [2, 4, 8]


def test_large_kernels_replace_two_stages_of_a_resnet() -> None:
    backbone = BACKBONES.build("resnet50_gcn", where="", in_channels=3)
    for stage, depth, kernel, inner in ((backbone.layer3, 6, 5, 85), (backbone.layer4, 3, 7, 128)):
        assert len(stage) == depth
        inside = [c for c in convs_of(stage) if c.kernel_size != (1, 1)]
        assert [c.kernel_size for c in inside] == [(kernel, 1), (1, kernel), (1, kernel), (kernel, 1)] * depth
        assert {c.out_channels for c in inside} == {inner}
    plain = BACKBONES.build("resnet50", where="", in_channels=3)
    assert {type(b) for b in backbone.layer1} == {type(b) for b in plain.layer1}
    for name in ("layer3.1", "layer4.1"):  # they were made to cost about the same
        sizes = [sum(p.numel() for p in net.get_submodule(name).parameters()) for net in (backbone, plain)]
        assert sizes[0] == pytest.approx(sizes[1], rel=0.08)


def test_large_kernels_need_a_resnet_of_bottlenecks() -> None:
    with pytest.raises(ConfigError, match=r"^arch.args.use_resnet_gcn: 'resnet18' has no such variant"):
        build("GCN", {"backbone": "resnet18", "use_resnet_gcn": True})


# Parameters at 21 classes, as counted in the seed systems


@pytest.mark.parametrize(
    ("kind", "args", "millions"),
    [
        ("DeepLab", {"backbone": "resnet50"}, 40.4),
        ("DeepLab", {"backbone": "resnet101"}, 59.3),
        ("resnet101+aspp_plus+deeplabv3_plus_decoder", {}, 59.3),
        ("DeepLab", {"backbone": "xception65"}, 54.7),
        ("PSPNet", {"backbone": "resnet50", "deep_stem": True}, 51.4),
        # 42.3 there: 480 channels in the auxiliary head; ours has half of the 896 that its map has.
        ("PSPDenseNet", {}, 42.0),
        # 69.2 there: it classifies first, and enlarges the logits; the paper enlarges the features.
        ("DeepLab_DUC_HDC", {}, 69.3),
        ("UNet", {}, 26.4),
        ("GCN", {}, 25.4),
        # 134.5 where the fixed bilinear kernels (0.13) are counted; ours are computed, and no parameters.
        ("FCN8", {}, 134.4),
        ("SegNet", {}, 29.49),
        ("SegResNet", {}, 53.6),
        ("ENet", {}, 0.36),
        # 4.12 there: its pooled branch of ASPP shares the 1x1 convolution, its residuals have projections.
        ("DeepLabV3_MobileNetV2", {}, 4.14),
        # 30.0 there: 192 channels behind the encoder and 4x4 transposed convolutions; no skip from level 1.
        ("UNetResnet", {"deep_stem": True}, 28.3),
        # 126.1 there: 75.5 in a convolution back to 2048 channels behind the pyramid; ours gives a quarter.
        ("UperNet", {}, 70.3),
    ],
)
def test_a_network_has_the_published_number_of_parameters(kind: str, args: dict[str, Any], millions: float) -> None:
    assert parameter_count(kind, **args) == pytest.approx(millions, abs=0.5 * 10 ** -len(str(millions).split(".")[1]))


# The config


def problems_of(value: Any) -> list[str]:
    problems: list[str] = []
    check_model(value, where="arch", problems=problems)
    return problems


@pytest.mark.parametrize("kind", MODELS)
def test_no_model_takes_an_argument_that_belongs_to_every_model(kind: str) -> None:
    assert parameters_of(MODELS[kind]).keys() & OPTIONS <= {"in_channels"}
    assert parameters_of(arguments_of_model(kind)).keys() >= OPTIONS


@pytest.mark.parametrize(("kind", "args"), VARIANTS)
def test_a_checked_config_is_complete_and_checks_to_itself(kind: str, args: dict[str, Any]) -> None:
    problems: list[str] = []
    checked = check_model({"type": kind, "args": args}, where="arch", problems=problems)
    again = check_model(to_json(checked), where="arch", problems=problems)
    assert problems == []
    assert to_json(again) == to_json(checked)
    assert to_json(checked)["args"].keys() >= OPTIONS


def test_the_documented_example_is_accepted() -> None:
    args = {"backbone": "resnet50", "freeze_bn": False, "freeze_backbone": False}
    assert problems_of({"type": "PSPNet", "args": args}) == []


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("DeepLabb", "arch: no model is called 'DeepLabb'. Did you mean 'DeepLab'?"),
        (
            {"type": "DeepLab", "args": {"freeze_backbne": True}},
            "arch.args.freeze_backbne: unknown key. Did you mean 'freeze_backbone'?",
        ),
        (
            {"type": "DeepLab", "args": {"backbon": "resnet50"}},
            "arch.args.backbon: unknown key. Did you mean 'backbone'?",
        ),
        (
            {"type": "DeepLab", "args": {"num_classes": 3}},
            "arch.args.num_classes: is filled in by the framework. Remove it.",
        ),
        ({"type": "DeepLab", "args": {"output_stride": 12}}, "arch.args.output_stride: expected one of 16, 8, got 12."),
        (
            {"type": "DeepLab", "args": {"pretrained": 1}},
            'arch.args.pretrained: expected true or false or "required" or a path, got 1.',
        ),
        (
            {"type": "DeepLab", "args": {"backbone": "resnet51"}},
            "arch.args.backbone.type: no backbone is called 'resnet51'. Did you mean 'resnet50'?",
        ),
        (
            {"type": "EncoderDecoder", "args": {"backbone": "resnet18"}},
            "arch.args.head: missing. Give a component.",
        ),
        (
            "resnet18+aspp_pluss+FCNHead",
            "arch.type: no neck is called 'aspp_pluss' in 'resnet18+aspp_pluss+FCNHead'. Did you mean 'aspp_plus'?",
        ),
        (
            {"type": "resnet18+FCNHead", "args": {"resnet18": {"outputstride": 8}}},
            "arch.args.resnet18.outputstride: unknown key. Did you mean 'output_stride'?",
        ),
        (
            {"type": "resnet18+FCNHead", "args": {"resnet19": {}}},
            "arch.args.resnet19: unknown key. Did you mean 'resnet18'?",
        ),
        (
            "resnet18+ASPP+ASPP+FCNHead",
            "arch.type: a brick stands twice in 'resnet18+ASPP+ASPP+FCNHead', so that its arguments could not be told "
            'apart. Use {"type": "EncoderDecoder"}.',
        ),
    ],
)
def test_a_mistake_in_the_config_gets_one_line_that_helps(value: Any, expected: str) -> None:
    assert problems_of(value) == [expected]
    with pytest.raises(ConfigError) as error:
        build_model(value, num_classes=CLASSES)
    assert error.value.problems == (expected,)


def test_a_head_whose_level_is_missing_names_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    class KeepCoarse(Neck):
        """Drop the two finest maps."""

        def __init__(self, shapes: tuple[FeatureShape, ...]) -> None:
            super().__init__()
            self.shapes = shapes[2:]

        def forward(self, features: list[Tensor]) -> list[Tensor]:
            return features[2:]

    monkeypatch.setitem(NECKS._entries, "KeepCoarse", KeepCoarse)
    with pytest.raises(ConfigError) as error:
        build("EncoderDecoder", {"backbone": NARROW, "necks": ["KeepCoarse"], "head": "DeepLabV3PlusHead"})
    (problem,) = error.value.problems
    assert problem.startswith(
        "arch.args.head: DeepLabV3PlusHead needs a feature map of level 2, but is offered levels 3, 4, 5."
    )
    heads = (
        "ASPPv2Head, FCNHead, LRASPPHead, LightHamHead, LinearHead, LinkNetHead, MAnetHead, SegmenterHead, UAFMHead, "
        "UNetHead, UNetPlusPlusHead"
    )
    assert problem.endswith(f"or take a head that fits: {heads}.")
    with pytest.raises(ConfigError, match=r"^arch.args.DeepLabV3PlusHead: DeepLabV3PlusHead needs a feature map"):
        build("resnet18+KeepCoarse+DeepLabV3PlusHead", {"resnet18": {"width_mult": 0.125}})


def test_lists_of_dilations_must_fit_the_stages() -> None:
    backbone = {"type": "resnet18", "args": {"multi_grid": [1, 2, 4]}}
    with pytest.raises(ConfigError, match=r"^arch.args.backbone: resnet18 has a stage of 2 blocks, but was given 3"):
        build("EncoderDecoder", {"backbone": backbone, "head": "FCNHead"})


def test_the_backbones_own_output_stride_wins() -> None:
    own = {"type": "resnet18", "args": {"width_mult": 0.125, "output_stride": 4}}
    for backbone, expected in ((own, 4), (NARROW, 16)):
        model = build("EncoderDecoder", {"backbone": backbone, "head": "FCNHead", "output_stride": 16})
        assert model.get_submodule("backbone").shapes[-1].stride == expected


def test_the_data_decide_the_normalization() -> None:
    component = Component("DeepLab", SMALL["DeepLab"])
    model = build_model(component, num_classes=CLASSES, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    normal = model.normalize(torch.full((1, 3, 2, 2), 51, dtype=torch.uint8))  # 0.2 of 255
    torch.testing.assert_close(normal[0, :, 0, 0], torch.tensor([0.2, 0.0, -0.2]), atol=1e-6, rtol=0)
    with pytest.raises(ConfigError, match="images of 4 channels"):
        build_model(
            Component("DeepLab", {**SMALL["DeepLab"], "in_channels": 4}), num_classes=2, mean=(0, 0, 0), std=(1, 1, 1)
        )
    with pytest.raises(ConfigError, match="the data have 0"):
        build_model(component, num_classes=CLASSES, mean=(), std=(0.5, 0.5, 0.5))


def test_each_image_can_be_normalized_by_itself() -> None:
    model = build_model(Component("DeepLab", SMALL["DeepLab"]), num_classes=CLASSES, mean=(), std=())
    pixels = torch.Generator().manual_seed(0)
    images = torch.randint(20, 80, (3, 3, 16, 24), dtype=torch.uint8, generator=pixels)
    images[1] = 3 * images[0]  # longer exposed
    images[2] = 0
    normal = model.normalize(images)
    torch.testing.assert_close(normal[0].mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal[0].std((1, 2), correction=0), torch.ones(3), atol=0.05, rtol=0)
    torch.testing.assert_close(normal[1], normal[0])
    assert torch.equal(normal[2], torch.zeros(3, 16, 24))
    assert torch.equal(model.normalize(images[:1])[0], normal[0])
    assert model.normalize(images.double()).dtype == torch.float64


def test_the_json_schema_knows_the_options_of_every_model() -> None:
    rules = arch_json_schema()["anyOf"][1]["allOf"]
    assert {rule["if"]["properties"]["type"]["const"] for rule in rules} == set(MODELS)
    for rule in rules:
        properties = rule["then"]["properties"]["args"]["properties"]
        assert properties.keys() >= OPTIONS
        assert all(text.get("description") for text in properties.values())


@pytest.mark.parametrize("registry", [BACKBONES, NECKS, HEADS, MODELS])
def test_every_component_describes_all_its_arguments(registry: Any) -> None:
    from utils.schema import describe_arguments

    for name in registry:
        undescribed = parameters_of(registry[name]).keys() - describe_arguments(registry[name]).keys()
        assert not undescribed, (name, undescribed)


def test_a_component_fits_its_own_annotation() -> None:
    hint = parameters_of(MODELS["DeepLab"])["backbone"].annotation
    assert fits("resnet18", hint)
    assert not fits("ASPP", hint)


@pytest.mark.parametrize("kind", ["UNetResnet", "UperNet", "DDRNet_23_slim", "UNet"])
def test_an_image_that_no_stride_divides_is_seen_as_its_continuation(kind: str) -> None:
    """By copies of its last row and column: else maps of several strides would be laid over each other askew."""
    torch.manual_seed(0)
    model = build(kind, SMALL[kind]).eval()
    images = torch.randint(256, (1, 3, 72, 136), dtype=torch.uint8)
    continued = F.pad(images.float(), (0, -136 % model.multiple, 0, -72 % model.multiple), mode="replicate")
    with torch.no_grad():
        found, whole = model(images).logits, model(continued).logits
        height, width = found.shape[-2:]
        torch.testing.assert_close(found, whole[..., :height, :width])
        odd = model(images[..., :65, :129]).full((65, 129)).logits
    assert odd.shape[-2:] == (65, 129)
    assert odd.isfinite().all()
