"""The zoo's further members one by one, timm's encoders, all pairs of bricks, and the catalogue."""

from __future__ import annotations

import fcntl
import importlib.util
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import Backbone, FeatureShape
from models.blocks import OutputStride, unpool
from models.build import check_model, initialize
from models.catalogue import catalogue
from models.costs import SIZES, multiply_adds, networks, read_costs
from models.weights import load_backbone
from tests.test_models import CLASSES, build, dilations, narrow, narrow_backbone, parameter_count, randomized
from utils.errors import ConfigError
from utils.registry import BACKBONES, HEADS, MODELS, NECKS
from utils.schema import Component

ROOT = Path(__file__).parents[1]
needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def full_backbone(name: str, **args: Any) -> Backbone:
    return BACKBONES.build(Component(name, args), where="backbone", in_channels=3)


def equal_features(ours: Backbone, theirs: list[Tensor], images: Tensor) -> None:
    with torch.no_grad():
        for feature, wanted in zip(ours.eval()(images), theirs, strict=True):
            torch.testing.assert_close(feature, wanted, rtol=1e-5, atol=1e-5)


# Xception


@pytest.mark.parametrize(("name", "units"), [("xception41", 8), ("xception65", 16), ("xception71", 16)])
def test_xception_has_middle_units_of_their_own_weights(name: str, units: int) -> None:
    backbone = narrow_backbone(name)
    stages = 3 if name != "xception71" else 5
    assert len(backbone.blocks) == stages + units + 2
    middle = backbone.blocks[stages : stages + units]
    assert len({id(p) for block in middle for p in block.parameters()}) == sum(
        1 for b in middle for _ in b.parameters()
    )


def test_xceptions_shortcut_takes_the_unrectified_input() -> None:
    block = narrow_backbone("xception41").blocks[4].eval()  # of the middle flow: the shortcut is the identity
    nn.init.zeros_(block.stack["conv3"].bn_pw.weight)  # the branch gives nothing
    x = torch.randn(1, 88, 9, 9)
    kept = x.clone()
    result, _ = block(x)
    assert torch.equal(result, kept)
    assert torch.equal(x, kept)


@pytest.mark.parametrize(("bounded", "kind"), [(False, nn.ReLU), (True, nn.ReLU6)])
def test_xception_has_one_kind_of_activation(bounded: bool, kind: type[nn.Module]) -> None:
    backbone = narrow_backbone("xception41", bounded=bounded)
    assert {type(m) for m in backbone.modules() if type(m).__name__.startswith("ReLU")} == {kind}


@needs_timm
def test_layers_of_timm_pyramids_are_their_stages() -> None:
    """ConvNeXt's stem and four stages, as in its recipes, each downsampling with the stage behind it."""
    model = build("EncoderDecoder", with_timm("convnext_atto"))
    names = {id(parameter): name.removeprefix("backbone.net.") for name, parameter in model.named_parameters()}
    layers = [{names[id(parameter)] for parameter in layer} for layer in model.backbone.layers()]
    assert len(layers) == 5
    assert all(name.startswith("stem_") for name in layers[0])
    for stage, layer in enumerate(layers[1:]):
        assert all(name.startswith((f"stages_{stage}.", "norm")) for name in layer)
        assert (f"stages_{stage}.downsample.1.weight" in layer) == (stage > 0)
    assert sum(map(len, layers)) == len(list(model.backbone.parameters()))


@needs_timm
@pytest.mark.parametrize(
    ("name", "stride"), [("xception41", 32), ("xception41", 16), ("xception71", 32), ("xception65", 16)]
)
def test_xception_is_timms(name: str, stride: int) -> None:
    import timm

    torch.manual_seed(0)
    theirs = randomized(timm.create_model(name, output_stride=stride))
    ours = full_backbone(name, output_stride=stride)
    report = load_backbone(ours, theirs.state_dict(), source="timm", where="")
    assert report.missing == report.mapped == ()
    assert report.ignored == ("head.fc.weight", "head.fc.bias")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, intermediates_only=True)
    equal_features(ours, expected, images)


# DenseNet


@pytest.mark.parametrize(
    "name", ["densenet121", *(pytest.param(f"densenet{n}", marks=pytest.mark.slow) for n in (161, 169, 201))]
)
def test_densenet_is_torchvisions(name: str) -> None:
    theirs = randomized(getattr(torchvision.models, name)())
    ours = full_backbone(name)
    # Their files have the names of an earlier release.
    published = {re.sub(r"(layer\d+\.(norm|conv))([12])", r"\1.\3", k): v for k, v in theirs.state_dict().items()}
    report = load_backbone(ours, published, source="torchvision", where="")
    assert report.missing == ()
    assert report.ignored == ("classifier.weight", "classifier.bias")
    images, seen = torch.randn(1, 3, 64, 96), {}
    for part in ("relu0", "transition1.conv", "transition2.conv", "transition3.conv", "norm5"):
        layer = theirs.features.get_submodule(part)
        layer.register_forward_hook(lambda module, inputs, output, part=part: seen.setdefault(part, output.clone()))
    with torch.no_grad():
        theirs(images)
    seen["norm5"] = F.relu(seen["norm5"])
    equal_features(ours, list(seen.values()), images)


# DRN


def test_drn_dilates_as_published_and_ends_without_shortcuts() -> None:
    published = narrow_backbone("drn26")
    assert [s.stride for s in published.shapes] == [2, 4, 8, 8, 8]
    stages = [dilations(published.get_submodule(f"layer{i}")) for i in (4, 5, 6, 7, 8)]
    assert stages == [[1] * 4, [2] * 4, [4] * 4, [2] * 2, [1] * 2]
    assert set(dilations(narrow_backbone("drn26", output_stride=32))) == {1}
    x = torch.randn(1, 64, 9, 9)
    with torch.no_grad():
        for number in (7, 8):
            (block,) = published.eval().get_submodule(f"layer{number}")
            assert torch.equal(block(x), F.relu(block.bn2(block.conv2(F.relu(block.bn1(block.conv1(x)))))))


@pytest.mark.parametrize(("name", "millions"), [("drn26", 21.1), ("drn42", 31.2)])
def test_drn_has_the_published_number_of_parameters(name: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = full_backbone(name)
    own = sum(p.numel() for p in backbone.parameters())
    assert (own + 512 * 1000 + 1000) / 1e6 == pytest.approx(millions, abs=0.05)  # with their classifier


# DUC and HDC


@pytest.mark.parametrize("init", ["kaiming", "xavier", "trunc_normal"])
def test_pixels_made_of_one_begin_alike(init: Any) -> None:
    torch.manual_seed(0)
    shapes = (FeatureShape(8, 4, 2), FeatureShape(16, 8, 5))
    head = HEADS.build(Component("DUCHead", {"channels": 8}), where="", shapes=shapes, num_classes=CLASSES).eval()
    initialize(head, init)
    maps = [torch.randn(1, 8, 6, 7), torch.randn(1, 16, 3, 4)]
    with torch.no_grad():
        logits = head(maps)
    assert logits.shape == (1, CLASSES, 24, 28)
    assert torch.equal(logits, logits[..., ::4, ::4].repeat_interleave(4, -1).repeat_interleave(4, -2))
    assert logits.unique().numel() > CLASSES


@pytest.mark.parametrize("stride", [8, 4])
@pytest.mark.parametrize(
    ("hdc", "third", "fourth"),
    [
        ("RF", [1, 2, 3] * 7 + [2, 2], [3, 4, 5]),
        ("bigger", [1, 2, 5, 9] * 5 + [1, 2, 5], [5, 9, 17]),
    ],
)
def test_hybrid_dilations_are_the_papers(hdc: str, third: list[int], fourth: list[int], stride: int) -> None:
    with torch.device("meta"):
        backbone = build("DeepLab_DUC_HDC", {"hdc": hdc, "output_stride": stride}).get_submodule("backbone")
    assert dilations(backbone.get_submodule("layer3")) == third
    assert dilations(backbone.get_submodule("layer4")) == fourth


@pytest.mark.parametrize("size", [(33, 35), (97, 129), (64, 66)])
def test_duc_gives_logits_of_every_pixel_and_no_more(size: tuple[int, int]) -> None:
    model = build("DeepLab_DUC_HDC", {"backbone": narrow("resnet50")}).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, *size)).logits.shape == (1, CLASSES, *size)


# SegResNet


def test_values_return_to_where_the_pool_took_them_from() -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 12)
    pooled, indices = F.max_pool2d(x, 3, 2, 1, return_indices=True)
    back = unpool(torch.ones_like(pooled), indices, x.shape[-2:], overlapping=True)
    taken = torch.stack([(indices == i).flatten(2).sum(2) for i in range(9 * 12)], dim=2).view_as(x)
    assert torch.equal(back, taken.float())
    assert taken.max() > 1  # windows overlap, and share values


@pytest.mark.parametrize(
    "height", [*range(33, 130, 12), *(pytest.param(h, marks=pytest.mark.slow) for h in range(33, 130))]
)
def test_segresnet_takes_any_size(height: int) -> None:
    model = build("SegResNet", {"width_mult": 0.125}).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, height, 162 - height)).logits.shape[-2:] == (height, 162 - height)


# Vortex pooling and DeepLabV2


def test_vortex_pooling_convolves_means() -> None:
    torch.manual_seed(0)
    neck = NECKS.build(Component("VortexPooling", {"channels": 4}), where="", shapes=(FeatureShape(6, 8, 5),)).eval()
    assert dilations(neck) == [1, 3, 9, 27]
    seen: list[Tensor] = []
    for branch in neck.branches[2:]:
        branch[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    x = torch.randn(1, 6, 13, 40)
    (result,) = neck([x])
    assert result.shape == (1, 4, 13, 40)
    for mean, size in zip(seen, (3, 9, 27), strict=True):
        torch.testing.assert_close(mean, F.avg_pool2d(x, size, 1, size // 2, count_include_pad=False))


def test_vortex_pooling_needs_odd_rates() -> None:
    neck = {"type": "VortexPooling", "args": {"rates": [3, 4]}}
    with pytest.raises(ConfigError, match=r"^arch.args.necks\[0\]: VortexPooling needs odd 'rates', but was given 4"):
        build("EncoderDecoder", {"backbone": narrow("resnet18"), "necks": [neck], "head": "FCNHead"})


@pytest.mark.parametrize(("stride", "expected"), [(32, [1, 3, 4, 6]), (16, [3, 6, 9, 12]), (8, [6, 12, 18, 24])])
def test_aspp_v2_adds_the_logits_of_its_branches(stride: int, expected: list[int]) -> None:
    torch.manual_seed(0)
    shapes = (FeatureShape(512, stride, 5),)
    head = HEADS.build("ASPPv2Head", where="", shapes=shapes, num_classes=21).eval()
    assert dilations(head) == expected
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(23, abs=0.5)
    x = torch.randn(1, 512, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(head([x]), torch.stack([branch(x) for branch in head.branches]).sum(0))


# timm


def with_timm(name: str, **args: Any) -> dict[str, Any]:
    return {"backbone": {"type": f"timm/{name}", "args": args}, "head": "FCNHead"}


@needs_timm
@pytest.mark.parametrize(
    ("name", "stride", "strides", "levels"),
    [
        ("test_convnext", None, [4, 8, 16, 32], [2, 3, 4, 5]),
        ("test_convnext", 8, [4, 8, 8, 8], [2, 3, 4, 5]),
        ("test_resnet", 16, [2, 4, 8, 16, 16], [1, 2, 3, 4, 5]),
        ("test_efficientnet", 4, [2, 4, 4, 4, 4], [1, 2, 3, 4, 5]),
        pytest.param("convnext_tiny", 16, [4, 8, 16, 16], [2, 3, 4, 5], marks=pytest.mark.slow),
        pytest.param("regnety_002", 8, [2, 4, 8, 8, 8], [1, 2, 3, 4, 5], marks=pytest.mark.slow),
    ],
)
def test_timm_encoders_announce_what_they_deliver(
    name: str, stride: int | None, strides: list[int], levels: list[int]
) -> None:
    torch.manual_seed(0)
    model = build("EncoderDecoder", with_timm(name, output_stride=stride))
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    assert [s.stride for s in backbone.shapes] == strides
    assert [s.level for s in backbone.shapes] == levels
    for shape, feature in zip(backbone.shapes, backbone(torch.randn(2, 3, 65, 97)), strict=True):
        assert feature.shape[1] == shape.channels
        assert feature.shape[2] in (65 // shape.stride, -(-65 // shape.stride))
        assert feature.shape[3] in (97 // shape.stride, -(-97 // shape.stride))
    model(torch.rand(2, 3, 65, 97) * 255).logits.square().mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert len(model.parameter_groups(0.1)) == 2


@needs_timm
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_weights_of_timms_classification_networks_fit_its_encoders(name: str) -> None:
    import timm

    torch.manual_seed(0)
    theirs = randomized(timm.create_model(name))
    ours = full_backbone(f"timm/{name}")
    report = load_backbone(ours, theirs.state_dict(), source="timm", where="")
    assert report.missing == ()
    assert all(re.match(r"(head|classifier|fc|conv_head|bn2)\b", key) for key in report.ignored), report.ignored
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        features = ours.eval()(images)
        last = theirs.forward_intermediates(images, intermediates_only=True)[-1]
    torch.testing.assert_close(features[-1], last, rtol=1e-5, atol=1e-5)


@needs_timm
def test_our_deep_stem_is_timms_resnet50s() -> None:
    import timm

    theirs = randomized(timm.create_model("resnet50s", features_only=True))
    ours = full_backbone("resnet50", deep_stem=True)
    load_backbone(ours, theirs.state_dict(), source="timm", where="")
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        equal_features(ours, theirs(images), images)
    assert [full_backbone(name, deep_stem=True).weights for name in ("resnet50", "resnet18")] == [
        "timm/resnet50s",
        None,
    ]


@needs_timm
def test_a_timm_network_is_composed_in_one_string() -> None:
    model = build("timm/test_convnext+ASPP+DeepLabV3PlusHead", {"timm/test_convnext": {"output_stride": 16}})
    assert model.eval()(torch.zeros(1, 3, 65, 97)).logits.shape[-2:] == (17, 25)
    assert build("UNetResnet", {"backbone": "timm/test_convnext"})(torch.zeros(2, 3, 64, 64)).logits.shape[-1] == 16
    transformer = build("timm/pvt_v2_b0+MLPHead", {"MLPHead": {"channels": 8}}).eval()
    assert transformer(torch.zeros(1, 3, 65, 97)).logits.shape[-2:] == (17, 25)
    assert build("EncoderDecoder", with_timm("test_resnet"), in_channels=5)(torch.zeros(2, 5, 64, 64)).logits.numel()


@needs_timm
@pytest.mark.parametrize(
    ("name", "args", "expected"),
    [
        (
            "test_convnext",
            {"output_stride": 4},
            ".args.output_stride: timm/test_convnext cannot have 4. Choose from 32, 16, 8.",
        ),
        ("test_convnexd", {}, ": timm has no network called 'test_convnexd'. Did you mean 'test_convnext'?"),
        ("zzz", {}, ": timm has no network called 'zzz'. `timm.list_models()` lists them."),
        ("shvit_s1", {}, ": timm/shvit_s1 makes maps of strides 16, 32, 64, but only 2, 4, 8, 16, 32 are of use."),
    ],
)
def test_a_timm_network_that_does_not_fit_is_refused(name: str, args: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        build("EncoderDecoder", with_timm(name, **args))
    (problem,) = error.value.problems
    assert problem.startswith(f"arch.args.backbone{expected}")


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)  # as if it were not there
    with pytest.raises(ConfigError) as error:
        build("EncoderDecoder", with_timm("convnext_tiny"))
    assert error.value.problems == (
        "arch.args.backbone: 'timm/convnext_tiny' needs timm, which is not installed. `pip install timm`.",
    )
    with pytest.raises(ConfigError, match=r"^arch.args.pretrained: 'timm/xception41.tf_in1k' needs timm"):
        build("DeepLab", {"backbone": "xception41", "pretrained": True})


def test_names_of_a_family_need_not_be_known_beforehand() -> None:
    assert "timm/convnext_tiny" in BACKBONES
    assert "timm/" not in BACKBONES
    assert "timm/convnext_tiny" not in {*BACKBONES, *HEADS, *MODELS}
    args = {"backbone": {"type": "timm/convnext_tiny", "args": {"output_strid": 8}}}
    problems: list[str] = []
    check_model({"type": "DeepLab", "args": args}, where="arch", problems=problems)
    assert problems == ["arch.args.backbone.args.output_strid: unknown key. Did you mean 'output_stride'?"]


@needs_timm
@pytest.mark.parametrize(
    "backbone",
    [
        {"type": "timm/test_convnext", "args": {"output_stride": 16}},
        {"type": "timm/test_vit", "args": {"drop_path": 0.1}},
    ],
)
def test_a_timm_network_trains_from_json_and_its_checkpoint_predicts(
    backbone: dict[str, Any],
    config_file: Callable[..., Path],
    train_command: Callable[..., Any],
    inference_command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    file = config_file({"arch.args.backbone": backbone, "arch.args.output_stride": None, "trainer.epochs": 1})
    answer = train_command("-c", file, "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    (checkpoint,) = tmp_path.glob("saved/tiny/*-*/best_model.pth")
    cv2.imwrite(str(tmp_path / "image.png"), np.zeros((50, 70, 3), np.uint8))
    files = ("-m", checkpoint, "-i", tmp_path / "image.png", "-o", tmp_path / "out")
    answer = inference_command(*files, "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    assert cv2.imread(str(tmp_path / "out" / "image.png")).shape == (50, 70, 3)


@needs_timm
def test_timms_public_weights_are_loaded_and_draw_no_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model
    published = create("test_resnet").state_dict()

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network = create(name, **options)
        if pretrained:
            network.load_state_dict(published)
        return network

    monkeypatch.setattr(timm, "create_model", offline)
    states = []
    for pretrained in (False, True):
        torch.manual_seed(5)
        model = build("EncoderDecoder", with_timm("test_resnet"), pretrained=pretrained)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert torch.equal(model.get_parameter("backbone.net.conv1.0.weight"), published["conv1.0.weight"])

    def broken(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(timm, "create_model", broken)
    with pytest.raises(
        ConfigError, match=r"^arch.args.pretrained: the weights of timm/test_resnet cannot be downloaded"
    ):
        build("EncoderDecoder", with_timm("test_resnet"), pretrained="required")
    with pytest.raises(ConfigError, match=r"^arch.args.pretrained: timm has no weights of convnext_atto_rms"):
        build("EncoderDecoder", with_timm("convnext_atto_rms"), pretrained=True)


# Everything with everything


STRIDES = (32, 16, 8, 4, 2)
NECK_ARGS: dict[str, dict[str, Any]] = {name: {"channels": 8} for name in NECKS}
HEAD_ARGS: dict[str, dict[str, Any]] = {name: {"channels": 8} for name in HEADS}
HEAD_ARGS["LargeKernelHead"] = {"kernel_size": 5}
HEAD_ARGS["UAFMHead"] = {"widths": (8, 8, 8), "context_channels": 8, "channels": 8}
HEAD_ARGS["UNetHead"] = {"channels": (8, 8, 8, 8)}
HEAD_ARGS["LinearHead"] = {}
NECK_ARGS["DPT"]["widths"] = (8, 8, 8, 8)
# One of each class; its sisters differ in depth only.
FAMILIES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "vgg16_bn",
    "densenet121",
    "drn26",
    "xception41",
    "stdc1",
    "mscan_t",
)


def distinct(registry: Any) -> list[str]:
    """One name of each class."""
    found: dict[Any, str] = {}
    for name in registry:
        found[registry[name].func] = name
    return list(found.values())


def cover(*factors: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Rows in which any two values of different factors meet, few rather than many."""
    indices = range(len(factors))
    missing = {
        ((i, a), (j, b)): None for i, j in itertools.combinations(indices, 2) for a in factors[i] for b in factors[j]
    }
    rows = []
    while missing:
        (i, a), (j, b) = next(iter(missing))
        row = {i: a, j: b}
        for k in indices:
            if k not in row:
                gains = [sum(_pair((k, v), item) in missing for item in row.items()) for v in factors[k]]
                row[k] = factors[k][gains.index(max(gains))]
        for pair in itertools.combinations(sorted(row.items()), 2):
            missing.pop(pair, None)
        rows.append(tuple(row[k] for k in indices))
    return rows


def _pair(first: tuple[int, Any], second: tuple[int, Any]) -> tuple[tuple[int, Any], tuple[int, Any]]:
    return (first, second) if first[0] < second[0] else (second, first)


FACTORS = (FAMILIES, tuple(distinct(HEADS)), STRIDES, (None, *distinct(NECKS)), ((65, 97), (96, 64)), (False, True))
PAIRS = cover(*FACTORS)


def compose(backbone: str, head: str, stride: int, neck: str | None, aux: bool) -> nn.Module:
    args = {
        "backbone": narrow(backbone),
        "necks": [{"type": neck, "args": NECK_ARGS[neck]}] if neck else [],
        "head": {"type": head, "args": HEAD_ARGS[head]},
        "aux_heads": [{"type": "FCNHead", "args": {"level": 4}}] if aux else [],
        "output_stride": stride,
    }
    return build("EncoderDecoder", args)


def check_a_step(model: nn.Module, size: tuple[int, int], aux: bool) -> None:
    """A training step reaches every parameter; evaluation covers the image and has no auxiliary output."""
    output = model.train()(torch.randint(256, (2, 3, *size), dtype=torch.uint8))
    assert len(output.aux) == aux
    sum(logits.square().mean() for logits in (output.logits, *output.aux)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    with torch.no_grad():
        output = model.eval()(torch.zeros(1, 3, *size))
    assert output.aux == ()
    assert output.logits.shape[:2] == (1, CLASSES)
    assert output.logits.shape[2] <= size[0]
    assert output.logits.shape[3] <= size[1]


def test_the_cover_brings_every_two_values_together() -> None:
    for i, j in itertools.combinations(range(len(FACTORS)), 2):
        assert {(row[i], row[j]) for row in PAIRS} == set(itertools.product(FACTORS[i], FACTORS[j]))
    families = {BACKBONES[name].func for name in FAMILIES}
    assert families == {BACKBONES[name].func for name in BACKBONES}
    assert set(STRIDES) == set(OutputStride.__args__)


@pytest.mark.parametrize(("backbone", "head", "stride", "neck", "size", "aux"), PAIRS)
def test_any_two_bricks_train_together(
    backbone: str, head: str, stride: int, neck: str | None, size: tuple[int, int], aux: bool
) -> None:
    torch.manual_seed(0)
    check_a_step(compose(backbone, head, stride, neck, aux), size, aux)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head", "stride", "neck", "size", "aux"), PAIRS)
def test_any_two_bricks_are_exported_together(
    backbone: str, head: str, stride: int, neck: str | None, size: tuple[int, int], aux: bool
) -> None:
    torch.manual_seed(0)
    model = compose(backbone, head, stride, neck, aux).eval()
    twin = compose(backbone, head, stride, neck, aux).eval()
    twin.load_state_dict(model.state_dict())
    images = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
    exported = torch.export.export(twin, (images,), strict=False).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(images).logits, model(images).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_all_bricks_train_together(backbone: str, stride: int) -> None:
    torch.manual_seed(0)
    combinations = list(itertools.product((None, *distinct(NECKS)), distinct(HEADS)))
    for neck, head in combinations:
        check_a_step(compose(backbone, head, stride, neck, aux=True), (65, 97), aux=True)
    record(f"{backbone}/{stride}", len(combinations))


def record(place: str, number: int) -> None:
    """Note in docs/verified.json, which the catalogue shows, how many combinations were right."""
    with (ROOT / "docs" / "verified.json").open("r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # tests run in several processes
        found = json.load(file) | {place: number}
        file.seek(0)
        file.truncate()
        file.write(json.dumps(dict(sorted(found.items())), indent=0) + "\n")


# The catalogue


def test_the_catalogue_is_that_of_the_code() -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    if torch.__version__.split("+")[0] != pinned["torch"]:
        pytest.skip(f"only with torch {pinned['torch']}")
    stored = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert stored == catalogue(), "run: python -m models.catalogue > docs/catalogue.md"


def test_the_catalogue_counts_parameters_as_the_models_have_them() -> None:
    text = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    for kind in ("DeepLab", "ENet", "SegResNet"):
        (found,) = re.findall(rf"^\| `{kind}` \| ([\d.]+) \|", text, re.MULTILINE)
        assert float(found) == pytest.approx(parameter_count(kind), abs=0.005)


def test_costs_are_those_of_the_networks_there_are() -> None:
    costs = read_costs()
    assert sorted(costs) == sorted({*MODELS, *BACKBONES} - {"EncoderDecoder"}), "run: python -m models.costs"
    for name, network in networks(("FastSCNN", "resnet18")):
        counted = [multiply_adds(network, size) for size in SIZES]
        assert counted == pytest.approx(costs[name], rel=1e-3), "run: python -m models.costs"


def test_multiply_adds_are_those_that_papers_count() -> None:
    """ResNet-50 needs 4.09 billion at 224x224 with its classifier; DDRNet-23-slim 36.3 at 1024x2048."""
    costs = read_costs()
    assert costs["resnet50"][0] * (224 / 512) ** 2 == pytest.approx(4.09, rel=0.01)
    assert costs["DDRNet_23_slim"][1] == pytest.approx(36.3, rel=0.01)
