"""Encoders of timm: families, sizes of images, weights, layers, errors; without timm all of it is skipped."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

timm = pytest.importorskip("timm")

from base.base_model import Backbone, MissingLevel  # noqa: E402
from models.backbones.timm_encoders import _covering  # noqa: E402
from models.weights import load_backbone, load_pretrained  # noqa: E402
from tests.test_models import CLASSES, build, randomized  # noqa: E402
from tests.test_zoo import HEAD_ARGS, distinct, full_backbone  # noqa: E402
from utils.errors import ConfigError  # noqa: E402
from utils.registry import HEADS  # noqa: E402
from utils.schema import Component  # noqa: E402

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
