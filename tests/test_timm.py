"""Encoders of timm: families, sizes of images, weights, layers, errors; without timm all of it is skipped."""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

timm = pytest.importorskip("timm")

from base.base_model import Backbone, MissingLevel  # noqa: E402
from models.weights import load_backbone, load_pretrained  # noqa: E402
from tests.test_models import CLASSES, build, randomized  # noqa: E402
from tests.test_zoo import HEAD_ARGS, distinct, full_backbone  # noqa: E402
from utils.any_size import covering  # noqa: E402
from utils.errors import ConfigError  # noqa: E402
from utils.registry import HEADS  # noqa: E402
from utils.schema import Component  # noqa: E402
from utils.sync_batchnorm import convert_for_processes, convert_sync_batchnorm  # noqa: E402

SIZES = ((65, 97), (97, 33), (64, 96), (33, 129), (128, 128))

# The smallest network of each family, but where a pretrained one of the size is the reason to want it.
SMALL = (
    "test_convnext",
    "test_efficientnet",
    "test_mambaout",
    "test_resnet",
    "test_vit",
    "mobilenetv3_small_050",
)
FAMILIES = (
    "caformer_s18",
    "convnext_zepto_rms",
    "convnextv2_atto",
    "cs3darknet_s",
    "davit_tiny",
    "deit_tiny_distilled_patch16_224",
    "densenet121",
    "dla46_c",
    "dpn48b",
    "eca_nfnet_l0",
    "edgenext_xx_small",
    "efficientvit_b0",
    "ese_vovnet19b_slim_dw",
    "eva02_tiny_patch14_224",
    "fastvit_t8",
    "focalnet_tiny_srf",
    "ghostnet_050",
    "hgnetv2_b0",
    "hiera_small_abswin_256",
    "hrnet_w18_small",
    "inception_next_atto",
    "maxvit_rmlp_pico_rw_256",
    "mobilevit_xxs",
    "mvitv2_tiny",
    "nextvit_small",
    "poolformer_s12",
    "pvt_v2_b0",
    "regnetx_002",
    "repvit_m0_9",
    "res2net50_14w_8s",
    "resnest14d",
    "resnetv2_18",
    "rexnet_100",
    "sam2_hiera_tiny",
    "skresnet18",
    "swiftformer_xs",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "tiny_vit_5m_224",
    "twins_svt_small",
    "vgg11",
    "vit_base_patch16_siglip_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "xcit_nano_12_p16_224",
)
REFUSED = {
    "beit_base_patch16_224": "is made for images of 224x224 pixels and does not take every other size",
    "shvit_s1": "makes maps of strides 16, 32, 64, but only 2, 4, 8, 16, 32 are of use",
}


def with_head(name: str, head: str = "FCNHead", **args: Any) -> dict[str, Any]:
    return {"backbone": {"type": f"timm/{name}", "args": args}, "head": {"type": head, "args": HEAD_ARGS[head]}}


def check_family(name: str) -> None:
    """A step reaches every parameter, all sizes give maps as announced, and every head takes these."""
    torch.manual_seed(0)
    with torch.device("meta"):
        levels = [shape.level for shape in full_backbone(f"timm/{name}").shapes]
    head = {"type": "LinearHead", "args": {"levels": levels}}
    model = build("EncoderDecoder", {"backbone": f"timm/{name}", "head": head})
    backbone = model.get_submodule("backbone")
    assert isinstance(backbone, Backbone)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    images = torch.randint(256, (2, 3, *SIZES[0]), dtype=torch.uint8)
    loss = F.cross_entropy(model(images).full(SIZES[0]).logits, torch.randint(CLASSES, (2, *SIZES[0])))
    loss.backward()
    optimizer.step()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert loss.isfinite()
    model.eval()
    for size in SIZES:
        with torch.no_grad():
            features = backbone(torch.randn(1, 3, *size))
            logits = model(torch.randint(256, (1, 3, *size), dtype=torch.uint8)).full(size).logits
        assert logits.shape == (1, CLASSES, *size)
        assert logits.isfinite().all()
        for shape, feature in zip(backbone.shapes, features, strict=True):
            assert feature.shape[:2] == (1, shape.channels)
            for found, pixels in zip(feature.shape[2:], size, strict=True):
                assert found in (pixels // shape.stride, math.ceil(pixels / shape.stride))
    for name in distinct(HEADS):
        args = {**HEAD_ARGS[name], "channels": [8] * (len(levels) - 1)} if name == "UNetHead" else HEAD_ARGS[name]
        try:
            built = HEADS.build(Component(name, args), where="head", shapes=backbone.shapes, num_classes=CLASSES)
        except MissingLevel:
            assert not {2, 3, 4, 5} <= set(levels), name
            continue
        assert built.eval()(features).shape[:2] == (1, CLASSES)


@pytest.mark.parametrize("name", SMALL)
def test_a_timm_encoder_takes_images_of_any_size(name: str) -> None:
    check_family(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_timms_takes_images_of_any_size(name: str) -> None:
    check_family(name)


def test_most_families_are_named() -> None:
    assert len({*SMALL, *FAMILIES}) >= 45
    assert len({*SMALL, *FAMILIES, *REFUSED}) >= 52


@pytest.mark.parametrize("name", REFUSED)
def test_a_network_that_cannot_be_used_says_why(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        build("EncoderDecoder", with_head(name))
    (problem,) = error.value.problems
    assert problem == f"arch.args.backbone: timm/{name} {REFUSED[name]}. Choose another, such as timm/convnext_tiny."


# Maps of padded images


def test_maps_of_padded_images_end_where_the_image_does() -> None:
    """A map that says where its pixels are says so after the cut, too, but beyond the first and last center."""
    rows = (torch.arange(6.0) + 0.5) * 16
    whole = rows[:, None].expand(6, 8)[None, None]
    for height, wanted in ((80, 5), (81, 6), (95, 6), (96, 6)):
        cut = covering(whole, 16, height, 100)
        assert cut.shape == (1, 1, wanted, 7)
        expected = ((torch.arange(wanted) + 0.5) * height / wanted).clamp(min=8)
        torch.testing.assert_close(cut[0, 0, :, 3], expected)
    assert torch.equal(covering(whole, 16, 64, 32), whole[..., :4, :2])


def test_a_prediction_is_that_of_the_padded_image() -> None:
    """Nearly, for maps are resampled; a map cut at whole pixels, and stretched over the image, is further off."""
    torch.manual_seed(0)
    model = build("EncoderDecoder", with_head("test_vit", "LinearHead")).eval()
    size, padded = (65, 97), (80, 112)
    black = model.normalize.mean.expand(1, 3, *padded).clone()  # what padding is made of
    black[..., : size[0], : size[1]] = torch.rand(1, 3, *size) * 255
    with torch.no_grad():
        expected = model(black).full(padded).logits[..., : size[0], : size[1]]
        found = model(black[..., : size[0], : size[1]]).full(size).logits
        stretched = F.interpolate(model(black).logits[..., :5, :7], size, mode="bilinear")
    assert (found - expected).abs().mean() < (stretched - expected).abs().mean()


# Weights


@pytest.mark.parametrize("size", [(160, 160), (64, 96)])
def test_tokens_are_those_of_the_classification_network(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = randomized(timm.create_model("test_vit"))
    ours = full_backbone("timm/test_vit").eval()
    report = load_backbone(ours, theirs.state_dict(), source="timm", where="")
    assert report.missing == ()
    assert {key.partition(".")[0] for key in report.ignored} <= {"head", "fc_norm"}
    images = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = theirs.forward_intermediates(images, indices=[0, 2, 3, 5], norm=True, intermediates_only=True)
        for mine, other in zip(ours(images), expected, strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


def test_patches_of_14_pixels_become_16_and_keep_their_positions() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("eva02_tiny_patch14_224").state_dict()
    ours = full_backbone("timm/eva02_tiny_patch14_224")
    report = load_backbone(ours, theirs, source="timm", where="")
    assert report.missing == ()
    own = ours.state_dict()
    assert torch.equal(own["net.model.pos_embed"], theirs["pos_embed"])
    assert own["net.model.patch_embed.proj.weight"].shape[2:] == (16, 16)
    # A patch of one gray gives the same token.
    sums = [
        state.sum((1, 2, 3)) for state in (own["net.model.patch_embed.proj.weight"], theirs["patch_embed.proj.weight"])
    ]
    torch.testing.assert_close(*sums, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["densenet121", "resnetv2_50", "efficientvit_b0", "mobilenetv3_small_050"])
def test_weights_and_layers_are_found_whatever_an_encoder_calls_them(name: str) -> None:
    ours = full_backbone(f"timm/{name}")
    report = load_backbone(ours, timm.create_model(name).state_dict(), source="timm", where="")
    assert report.missing == ()
    first = next(iter(ours.parameters()))
    layers = ours.layers()
    assert any(first is parameter for parameter in layers[0])
    assert sum(map(len, layers)) == len(list(ours.parameters()))


def test_batch_norms_keep_their_activations_when_they_are_synchronized() -> None:
    torch.manual_seed(0)
    before = full_backbone("timm/mobilenetv3_small_050").eval()
    images = torch.randn(1, 3, 64, 64)
    for convert in (convert_sync_batchnorm, convert_for_processes):
        after = copy.deepcopy(before)
        convert(after)
        after.eval()
        with torch.no_grad():
            for mine, expected in zip(after(images), before(images), strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_weights_name_their_license_and_warn_where_they_are_used_to_another_normalization(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    published = timm.create_model("test_vit").state_dict()
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: Any) -> nn.Module:
        network: nn.Module = create(name, **options)
        if pretrained:
            network.load_state_dict(published)
        return network

    monkeypatch.setattr(timm, "create_model", offline)
    model = build("EncoderDecoder", with_head("test_vit"))
    mean, std = timm.get_pretrained_cfg("test_vit").mean, timm.get_pretrained_cfg("test_vit").std
    with caplog.at_level(logging.INFO, logger="segwright"):
        load_pretrained(model, True, where="arch.args.pretrained")
    assert f"license of timm/test_vit: {timm.get_pretrained_cfg('test_vit').license}" in caplog.text
    differs = not torch.allclose(model.normalize.mean.flatten() / 255, torch.tensor(mean), atol=1e-3)
    assert differs  # else this test tests nothing
    assert f'"normalization": {{"mean": {list(mean)}, "std": {list(std)}}}' in caplog.text


# Blocks


def test_layers_of_a_plain_transformer_are_its_blocks() -> None:
    model = build("EncoderDecoder", with_head("test_vit"))
    names = {id(parameter): name.removeprefix("backbone.net.model.") for name, parameter in model.named_parameters()}
    stem, *blocks = [{names[id(p)] for p in layer} for layer in model.backbone.layers()]
    assert all(name.startswith(("cls_token", "reg_token", "pos_embed", "patch_embed")) for name in stem)
    for index, block in enumerate(blocks):
        own = {name for name in block if name.startswith(f"blocks.{index}.")}
        assert own
        assert block - own == ({"norm.weight", "norm.bias"} if index == len(blocks) - 1 else set())
    rates = {group["name"]: group["lr"] for group in model.parameter_groups(1.0, layer_decay=0.8)}
    assert rates["backbone/layer_0"] == pytest.approx(0.8**7)
    assert rates["backbone/layer_6"] == pytest.approx(0.8)


def test_layers_of_a_pyramid_are_its_stages() -> None:
    groups = build("EncoderDecoder", with_head("test_convnext")).parameter_groups(1.0, layer_decay=0.9)
    rates = sorted({group["lr"] for group in groups if group["name"].startswith("backbone")})
    assert rates == pytest.approx([0.9**power for power in range(len(rates), 0, -1)])
    assert len(rates) == 5  # the stem and four stages


def test_drop_path_reaches_the_network() -> None:
    model = build("EncoderDecoder", with_head("test_vit", drop_path=0.2))
    shares = [module.drop_prob for module in model.modules() if type(module).__name__ == "DropPath"]
    assert max(shares) == pytest.approx(0.2)
    with pytest.raises(ConfigError, match=r"^arch.args.backbone.args.drop_path: timm/densenet121 has no such option"):
        build("EncoderDecoder", with_head("densenet121", drop_path=0.1))


@pytest.mark.parametrize(
    "arch",
    ["timm/test_vit+SegmenterHead", pytest.param("timm/test_vit+SimpleFPN+FPNHead", marks=pytest.mark.slow)],
)
def test_an_encoder_that_pads_images_is_exported_for_any_size(arch: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from engine.exporting.graph import to_onnx, trace
    from engine.exporting.read import runner_of, session_of

    torch.manual_seed(0)
    model = build(arch).eval()
    runner = runner_of(session_of(to_onnx(trace(model, 3, ("logits",), None), ("logits",)).SerializeToString()))
    for size in ((64, 96), (65, 97), (33, 50), (130, 47)):
        images: Tensor = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(runner(images)["logits"], model(images).full(size).logits, rtol=1e-3, atol=1e-4)
