"""Bricks for vision transformers: the necks SimpleFPN and DPT, the heads linear and Segmenter; deep supervision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape, Head, Neck
from tests.test_models import CLASSES, build, narrow
from utils.errors import ConfigError
from utils.registry import HEADS, NECKS
from utils.schema import Component

TOKENS = tuple(FeatureShape(16, 16, level) for level in (2, 3, 4, 5))
NECK_ARGS: dict[str, dict[str, Any]] = {"SimpleFPN": {"channels": 8}, "DPT": {"channels": 8, "widths": (4, 4, 6, 8)}}


def neck_of(name: str, shapes: tuple[FeatureShape, ...] = TOKENS) -> Neck:
    neck: Neck = NECKS.build(Component(name, NECK_ARGS[name]), where="", shapes=shapes)
    return neck


def head_of(name: str, shapes: tuple[FeatureShape, ...] = TOKENS, **args: Any) -> Head:
    head: Head = HEADS.build(Component(name, args), where="", shapes=shapes, num_classes=CLASSES)
    return head


def tokens(height: int = 5, width: int = 7) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 16, height, width) for _ in TOKENS]


@pytest.mark.parametrize("name", NECK_ARGS)
def test_a_neck_makes_a_pyramid_of_maps_of_one_stride(name: str) -> None:
    neck = neck_of(name)
    assert [(s.stride, s.level) for s in neck.shapes] == [(4, 2), (8, 3), (16, 4), (32, 5)]
    sizes = [tuple(x.shape[1:]) for x in neck(tokens())]
    assert sizes == [(8, 20, 28), (8, 10, 14), (8, 5, 7), (8, 3, 4)]
    assert neck(tokens(1, 1))[-1].shape[-2:] == (1, 1)


@pytest.mark.parametrize("name", NECK_ARGS)
def test_a_neck_passes_a_map_of_level_1(name: str) -> None:
    shapes = (FeatureShape(3, 2, 1), *TOKENS)
    neck = neck_of(name, shapes)
    finest = torch.randn(2, 3, 40, 56)
    assert neck.shapes[0] == shapes[0]
    assert neck([finest, *tokens()])[0] is finest


def test_simple_fpn_looks_at_the_last_map_only() -> None:
    neck = neck_of("SimpleFPN").eval()
    maps = tokens()
    expected = neck(maps)
    found = neck([*(torch.zeros_like(x) for x in maps[:-1]), maps[-1]])
    assert all(map(torch.equal, expected, found))


def test_every_map_has_a_part_in_the_finest_of_dpt() -> None:
    neck = neck_of("DPT").eval()
    maps = [x.requires_grad_() for x in tokens()]
    finest, *_, coarsest = neck(maps)
    gradients = torch.autograd.grad(finest.square().sum(), maps, retain_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    gradients = torch.autograd.grad(coarsest.square().sum(), maps, allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [False, False, False, True]


@pytest.mark.parametrize("name", NECK_ARGS)
def test_a_neck_lacks_what_no_head_looks_at(name: str) -> None:
    counts = []
    for level in (5, 3, 2):
        head = {"type": "FCNHead", "args": {"level": level}}
        neck = {"type": name, "args": NECK_ARGS[name]}
        model = build("EncoderDecoder", {"backbone": narrow("resnet18"), "necks": [neck], "head": head})
        assert model.training
        model(torch.rand(2, 3, 64, 64) * 255).logits.square().sum().backward()
        assert [n for n, p in model.named_parameters() if p.grad is None] == []
        counts.append(len(list(model.get_submodule("necks").parameters())))
    assert counts[0] < counts[2]
    between = {"type": "ASPP", "args": {"channels": 8}}
    model = build("EncoderDecoder", {"backbone": narrow("resnet18"), "necks": [neck, between], "head": "FCNHead"})
    assert len(list(model.get_submodule("necks.0").parameters())) == counts[0]


def test_the_linear_head_puts_maps_side_by_side() -> None:
    shapes = (FeatureShape(3, 4, 2), FeatureShape(5, 8, 4), FeatureShape(6, 16, 5))
    head = head_of("LinearHead", shapes, levels=(5, 2)).eval()
    maps = [torch.randn(1, 3, 8, 9), torch.randn(1, 5, 4, 5), torch.randn(1, 6, 2, 3)]
    together = torch.cat([maps[0], F.interpolate(maps[2], (8, 9), mode="bilinear")], dim=1)
    torch.testing.assert_close(head(maps), head.classify(head.norm(together)))
    with pytest.raises(ValueError, match="needs at least one number in 'levels'"):
        head_of("LinearHead", shapes, levels=())


def test_segmenter_compares_pixels_with_classes() -> None:
    """Where the blocks do nothing, the logits are the cosines of projected pixels and classes, over classes normed."""
    head = head_of("SegmenterHead", heads=2).eval()
    maps = tokens()
    assert head(maps).shape == (2, CLASSES, 5, 7)
    assert isinstance(head.blocks, nn.Sequential)
    torch.manual_seed(1)
    nn.init.normal_(head.classes)
    head.blocks = nn.Sequential()
    pixels = head.project_pixels(head.norm(head.embed(maps[-1].movedim(1, -1))))
    classes = head.project_classes(head.norm(head.classes[0]))
    cosines = F.cosine_similarity(pixels[..., None, :], classes, dim=-1)
    torch.testing.assert_close(head(maps), head.mask_norm(cosines).movedim(-1, 1), rtol=1e-4, atol=1e-5)


def test_segmenters_classes_see_the_whole_map() -> None:
    head = head_of("SegmenterHead").eval()
    nn.init.normal_(head.classes)
    x = tokens()[-1].requires_grad_()
    (gradient,) = torch.autograd.grad(head([x])[:, :, 0, 0].square().sum(), x)
    assert (gradient.abs().sum(1) > 0).all()


def test_segmenter_has_the_published_size() -> None:
    """Strudel et al. 2021, tables 1 and 3: of ViT-S, 2 layers of 384 channels beside an encoder of 22 M make 26 M."""
    shapes = (FeatureShape(384, 16, 5),)
    head = HEADS.build("SegmenterHead", where="", shapes=shapes, num_classes=150)
    assert sum(p.numel() for p in head.parameters()) / 1e6 == pytest.approx(4.1, abs=0.1)


def test_segmenters_heads_divide_its_width() -> None:
    head = {"type": "SegmenterHead", "args": {"heads": 3}}
    with pytest.raises(ConfigError, match=r"^arch.args.head: SegmenterHead needs a width that is a multiple of its 3"):
        build("EncoderDecoder", {"backbone": narrow("resnet18"), "head": head})


@pytest.mark.parametrize(
    ("kind", "args", "outputs"),
    [
        ("UNetResnet", {"backbone": narrow("resnet18")}, 3),
        ("UperNet", {"backbone": narrow("resnet18"), "fpn_out": 8}, 4),
    ],
)
def test_deep_supervision_trains_a_classifier_on_every_map_of_the_decoder(
    kind: str, args: dict[str, Any], outputs: int
) -> None:
    torch.manual_seed(0)
    images = torch.randint(256, (2, 3, 65, 97), dtype=torch.uint8)
    plain = build(kind, args)
    model = build(kind, args, deep_supervision=True)
    output = model.train()(images)
    assert len(output.aux) == outputs
    assert len({logits.shape[-2:] for logits in output.aux}) == 3
    sum(logits.square().mean() for logits in (output.logits, *output.aux)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model.eval()(images).aux == ()
    assert plain.train()(images).aux == ()
    # What is added is not needed to predict: weights of one network are those of the other.
    assert not plain.load_state_dict(model.state_dict(), strict=False).missing_keys
    assert torch.equal(plain.eval()(images).logits, model(images).logits)


@pytest.mark.parametrize(
    ("head", "sizes"),
    [
        ("UNetHead", [(5, 7), (9, 13), (17, 25)]),
        ("MAnetHead", [(5, 7), (9, 13), (17, 25)]),
        ("LinkNetHead", [(5, 7), (9, 13), (17, 25)]),
        ("UNetPlusPlusHead", [(33, 49)] * 3),
        ("UAFMHead", [(5, 7), (3, 4)]),
        ("FPNHead", [(3, 4), (5, 7), (9, 13), (17, 25)]),
    ],
)
def test_every_decoder_of_several_maps_can_be_supervised_at_each(head: str, sizes: list[tuple[int, int]]) -> None:
    """Strides 16, 8 and 4; U-Net++ classifies earlier nodes of the finest level, the others coarser maps."""
    torch.manual_seed(0)
    bricks = {"backbone": narrow("resnet18"), "head": {"type": head, "args": {"deep_supervision": True}}}
    model = build("EncoderDecoder", bricks).train()
    output = model(torch.randint(256, (2, 3, 65, 97), dtype=torch.uint8))
    assert [tuple(logits.shape[-2:]) for logits in output.aux] == sizes
    sum(logits.square().mean() for logits in (output.logits, *output.aux)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert model.eval()(torch.zeros(1, 3, 65, 97)).aux == ()
