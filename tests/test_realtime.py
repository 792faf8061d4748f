"""Networks of the years after 2019, real-time ones first: sizes, strides and auxiliary heads as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from base.base_model import FeatureShape
from engine.check import check_config
from engine.dry_run import dry_run
from engine.exporting import graph
from models.backbones.mscan import _ChannelNorm
from models.build import initialize
from models.heads.light_ham import _Factorization
from models.heads.manet import _PositionAttention
from models.heads.pan import _PyramidAttention
from models.heads.uafm import SPPM, UAFM
from models.networks.resenc_unet import _Residual
from tests.test_models import CLASSES, SMALL, build, parameter_count
from tests.tiny import tiny_config
from utils.classes import IGNORE
from utils.errors import ConfigError
from utils.losses.boundary import boundaries, boundary_loss
from utils.losses.criterion import build_criterion
from utils.outputs import SegOutput
from utils.registry import BACKBONES, HEADS
from utils.schema import Component

CITYSCAPES = 19
ADE20K = 150

# Name, arguments, classes, millions of parameters as published, without auxiliary heads.
PUBLISHED: list[tuple[str, dict[str, Any], int, float]] = [
    ("DDRNet_23_slim", {"use_aux": False}, CITYSCAPES, 5.7),
    ("DDRNet_23", {"use_aux": False}, CITYSCAPES, 20.1),
    ("PIDNet_S", {"use_aux": False}, CITYSCAPES, 7.6),
    ("PIDNet_M", {"use_aux": False}, CITYSCAPES, 28.5),
    ("PIDNet_L", {"use_aux": False}, CITYSCAPES, 36.9),
    ("BiSeNetV2", {"use_aux": False}, CITYSCAPES, 3.4),
    ("PPLiteSeg_T", {"use_aux": False}, CITYSCAPES, 8.0),
    ("PPLiteSeg_B", {"use_aux": False}, CITYSCAPES, 12.2),
    ("SegNeXt_T", {}, ADE20K, 4.3),
    ("SegNeXt_S", {}, ADE20K, 13.9),
    ("SegNeXt_B", {}, ADE20K, 27.6),
    ("SegNeXt_L", {}, ADE20K, 48.9),
    ("ResEncUNet", {}, CITYSCAPES, 140.04),
]
# Name, input pixels per pixel of the logits, auxiliary outputs.
OUTPUTS = [
    ("DDRNet_23_slim", 8, 1),
    ("DDRNet_23", 8, 1),
    ("PIDNet_S", 8, 1),
    ("PIDNet_L", 8, 1),
    ("BiSeNetV2", 8, 4),
    ("FastSCNN", 8, 2),
]


@pytest.mark.parametrize(("kind", "args", "classes", "millions"), PUBLISHED)
def test_parameters_are_as_many_as_published(kind: str, args: dict[str, Any], classes: int, millions: float) -> None:
    assert parameter_count(kind, classes, **args) == pytest.approx(millions, rel=0.02)


@pytest.mark.parametrize(("kind", "stride", "aux"), OUTPUTS)
def test_logits_have_the_published_stride_and_auxiliary_ones_are_for_training(kind: str, stride: int, aux: int) -> None:
    torch.manual_seed(0)
    model = build(kind, SMALL[kind])
    images = torch.randint(256, (2, 3, 128, 192), dtype=torch.uint8)
    output = model.train()(images)
    assert output.logits.shape == (2, CLASSES, 128 // stride, 192 // stride)
    assert [len(logits) for logits in output.aux] == [2] * aux
    assert all(logits.shape[1] == CLASSES for logits in output.aux)
    with torch.no_grad():
        assert model.eval()(images).aux == ()


def stage_sizes(kind: str, names: tuple[str, ...], **args: Any) -> list[int]:
    """Parameters of each of the named parts."""
    with torch.device("meta"):
        model = build(kind, args, CITYSCAPES)
    return [sum(p.numel() for p in model.get_submodule(name).parameters()) for name in names]


# DDRNet


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("DDRNet_23_slim", [525568, 2099712, 920576, 147968, 58112, 369408, 1073408, 75347, 38355]),
        ("DDRNet_23", [2099712, 8393728, 3676160, 590848, 230912, 1476096, 1685760, 298131, 150419]),
    ],
)
def test_ddrnets_stages_are_as_large_as_its_authors(kind: str, sizes: list[int]) -> None:
    names = ("layer3", "layer4", "layer5", "high4", "high5", "down4", "context", "head", "aux_heads.0")
    assert stage_sizes(kind, names) == sizes


def test_the_branches_of_ddrnet_exchange_what_they_were_before_the_exchange() -> None:
    torch.manual_seed(0)
    model = build("DDRNet_23_slim", SMALL["DDRNet_23_slim"]).eval()
    seen: dict[str, list[Tensor]] = {}
    for name in ("layer3", "layer4", "high3", "high4", "down3", "up3", "high5"):

        def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            seen[name] = [inputs[0], output]

        model.get_submodule(name).register_forward_hook(note)
    with torch.no_grad():
        model(torch.rand(1, 3, 65, 97) * 255)
    low, high = seen["layer3"][1], seen["high3"][1]
    assert seen["up3"][0] is low
    assert seen["down3"][0] is high
    torch.testing.assert_close(seen["layer4"][0], low + seen["down3"][1])
    assert (seen["high5"][0] < 0).any()  # rectified only where it is used


# PIDNet


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("PIDNet_S", [3280384, 1774592, 147968, 14720, 58112, 36928, 147584, 4224, 712384, 33280, 150419, 76563]),
        (
            "PIDNet_M",
            [13114368, 7088128, 590848, 58112, 230912, 147584, 590080, 16640, 1222336, 132096, 298131, 150419],
        ),
        (
            "PIDNet_L",
            [17835008, 7088128, 886272, 295424, 230912, 295168, 590080, 16640, 1444832, 590336, 595731, 300563],
        ),
    ],
)
def test_pidnets_stages_are_as_large_as_its_authors(kind: str, sizes: list[int]) -> None:
    context = ("layer4", "layer5")
    branches = ("detail4", "boundary4", "boundary5", "differ3", "differ4", "attend4")
    assert stage_sizes(kind, (*context, *branches, "context", "fuse", "head", "aux_heads.0")) == sizes


@pytest.mark.parametrize("kind", ["PIDNet_S", "PIDNet_L"])
def test_details_count_where_there_is_a_boundary_and_context_elsewhere(kind: str) -> None:
    torch.manual_seed(0)
    fuse = build(kind, SMALL[kind]).eval().get_submodule("fuse")
    detail, other, context = (torch.randn(1, 32, 5, 6) for _ in range(3))
    never, always = torch.full_like(context, -100.0), torch.full_like(context, 100.0)
    with torch.no_grad():
        if kind == "PIDNet_L":
            assert torch.equal(fuse(detail, context, never), fuse(other, context, never))
            assert torch.equal(fuse(detail, context, always), fuse(detail, other, always))
        else:  # both are always there, and what counts more is added to the other
            both = fuse(detail, context, never)
            torch.testing.assert_close(both, fuse.detail(context + detail) + fuse.context(context))
            both = fuse(detail, context, always)
            torch.testing.assert_close(both, fuse.detail(detail) + fuse.context(context + detail))


def test_like_pixels_of_two_branches_are_mixed_and_unlike_ones_are_not() -> None:
    torch.manual_seed(0)
    attend = build("PIDNet_S", SMALL["PIDNet_S"]).eval().get_submodule("attend3")
    attend.embed_coarse.load_state_dict(attend.embed_fine.state_dict())
    fine = torch.randn(1, 16, 8, 8) * 100
    with torch.no_grad():
        torch.testing.assert_close(attend(fine, 3 * fine), 3 * fine)  # alike: the context
        torch.testing.assert_close(attend(fine, -3 * fine), fine)  # opposite: the details


def test_pidnet_learns_boundaries_in_training_only() -> None:
    torch.manual_seed(0)
    model = build("PIDNet_S", SMALL["PIDNet_S"])
    images = torch.randint(256, (2, 3, 65, 97), dtype=torch.uint8)
    (edges,) = model.train()(images).edges
    assert edges.shape == (2, 1, 9, 13)
    with torch.no_grad():
        assert model.eval()(images).edges == ()
    assert build("PIDNet_S", {**SMALL["PIDNet_S"], "use_aux": False}).train()(images).edges == ()


def labels_of_two_halves() -> Tensor:
    """Class 1 from column 8 on, and void in the lower half of the rows: (1, 12, 16)."""
    labels = torch.zeros(1, 12, 16, dtype=torch.uint8)
    labels[..., 8:] = 1
    labels[:, 6:] = IGNORE
    return labels


def test_a_boundary_is_four_pixels_wide_and_none_is_between_a_class_and_void() -> None:
    found = boundaries(labels_of_two_halves())
    expected = torch.zeros(1, 12, 16, dtype=torch.bool)
    expected[:, :6, 6:10] = True
    assert torch.equal(found, expected)
    labels = torch.full((1, 12, 16), IGNORE, dtype=torch.uint8)
    labels[:, 3:9, 4:12] = 5
    assert not boundaries(labels).any()
    assert not boundaries(torch.full_like(labels, IGNORE)).any()


def test_void_pixels_count_nowhere_in_the_loss_of_boundaries() -> None:
    torch.manual_seed(0)
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=2)
    labels = labels_of_two_halves()
    logits = torch.randn(1, 2, 12, 16)
    edges = torch.randn(1, 1, 12, 16) * 4
    losses = []
    for change in (0.0, 50.0):
        other = edges.clone()
        other[:, :, 6:] += change
        other.requires_grad_()
        found = criterion(SegOutput(logits, (), (other,)), labels)
        (gradient,) = torch.autograd.grad(found["loss"], other)
        assert not gradient[:, :, 6:].any()
        assert gradient[:, :, :6].all()
        losses.append(found["loss"].detach())
    assert torch.equal(*losses)


def test_both_kinds_of_pixels_weigh_half_in_the_loss_of_boundaries() -> None:
    labels = labels_of_two_halves()
    truth = boundaries(labels)[:, :6]
    edges = torch.randn(1, 1, 12, 16, generator=torch.Generator().manual_seed(0))
    share = truth.float().mean()
    weights = torch.where(truth, 1 - share, share)
    expected = nn.functional.binary_cross_entropy_with_logits(edges[:, 0, :6], truth.float(), weights)
    torch.testing.assert_close(boundary_loss(edges, labels, torch.tensor(1.0)), expected)


def test_losses_of_boundaries_of_micro_batches_add_up() -> None:
    torch.manual_seed(0)
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=3)
    labels = torch.randint(3, (4, 6, 8)).repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels[0, :10] = IGNORE
    labels[3] = IGNORE
    logits, edges = torch.randn(4, 3, 6, 8), torch.randn(4, 1, 6, 8) * 3
    whole = criterion(SegOutput(logits, (), (edges,)), labels)["loss"]
    normalizers = criterion.normalizers(labels)
    total = torch.zeros(())
    for part in (slice(1), slice(1, 3), slice(3, 4)):
        output = SegOutput(logits[part], (), (edges[part],))
        total += criterion(output, labels[part], normalizers)["loss"]
    torch.testing.assert_close(total, whole)


def test_pixels_at_sure_boundaries_count_once_more() -> None:
    torch.manual_seed(0)
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=2)
    labels = labels_of_two_halves()
    logits = torch.randn(1, 2, 12, 16)
    unsure, sure = torch.full((1, 1, 12, 16), 1.0), torch.full((1, 1, 12, 16), 2.0)  # 0.73 and 0.88
    for edges, times in ((unsure, 1), (sure, 2)):
        found = criterion(SegOutput(logits, (), (edges,)), labels)
        plain = times * found["CrossEntropyLoss2d"]
        torch.testing.assert_close(found["loss"], plain + 20 * found["boundary"])


# BiSeNetV2 and Fast-SCNN


def test_bisenets_stages_are_as_large_as_public_ones() -> None:
    names = ("detail", "stem", "stages", "context", "aggregate", "head")
    detail, *semantic, aggregate, head = stage_sizes("BiSeNetV2", names)
    assert (detail, sum(semantic), aggregate, head) == (519232, 1159504, 478720, 1201171)


def test_one_image_has_one_context_in_bisenet() -> None:
    torch.manual_seed(0)
    context = build("BiSeNetV2", SMALL["BiSeNetV2"]).eval().get_submodule("context")
    x = torch.randn(1, 16, 4, 6)
    added: list[Tensor] = []
    context.refine.register_forward_pre_hook(lambda module, inputs: added.append(inputs[0] - x))
    with torch.no_grad():
        context(x)
    torch.testing.assert_close(added[0], added[0][:, :, :1, :1].expand_as(added[0]))


def test_fast_scnn_has_the_published_parameters_batch_norms_not_counted() -> None:
    with torch.device("meta"):
        model = build("FastSCNN", {"use_aux": False}, CITYSCAPES)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    count = sum(parameter.numel() for conv in convolutions for parameter in conv.parameters())
    assert count / 1e6 == pytest.approx(1.11, abs=0.005)


def test_fast_scnns_separable_convolutions_have_one_activation() -> None:
    model = build("FastSCNN", SMALL["FastSCNN"])
    for part in (*model.get_submodule("downsample")[1:], *model.get_submodule("head")[:2]):
        assert sum(isinstance(module, nn.ReLU) for module in part.modules()) == 1
        assert sum(isinstance(module, nn.BatchNorm2d) for module in part.modules()) == 2


# STDC and PP-LiteSeg


@pytest.mark.parametrize(
    ("name", "stages"),
    [("stdc1", [928, 18560, 246144, 1012480, 4040192]), ("stdc2", [928, 18560, 515456, 2625280, 6188544])],
)
def test_stdcs_stages_are_as_large_as_its_authors(name: str, stages: list[int]) -> None:
    with torch.device("meta"):
        backbone = BACKBONES.build(name, where="", in_channels=3)
    assert [sum(p.numel() for p in stage.parameters()) for stage in backbone.stages] == stages
    assert [shape.channels for shape in backbone.shapes] == [32, 64, 256, 512, 1024]


def test_stdc_pools_what_its_strided_blocks_pass_on() -> None:
    torch.manual_seed(0)
    block = BACKBONES.build("stdc1", where="", in_channels=3).eval().stages[2][0]
    x = torch.randn(1, 64, 13, 18)
    with torch.no_grad():
        result = block(x)
        passed = nn.functional.avg_pool2d(block.first(x), 3, 2, 1)
    assert result.shape == (1, 256, 7, 9)
    torch.testing.assert_close(result[:, :128], passed)


def test_simple_pyramid_pooling_adds_means_of_parts() -> None:
    torch.manual_seed(0)
    pool = SPPM(6, 4).eval()
    seen: list[Tensor] = []
    pool.refine.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    x = torch.randn(1, 6, 8, 12)
    with torch.no_grad():
        pool(x)
        expected = torch.zeros(1, 4, 8, 12)
        for bins, part in zip((1, 2, 4), pool.pools, strict=True):
            means = part[1](nn.functional.adaptive_avg_pool2d(x, bins))
            expected += nn.functional.interpolate(means, (8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(seen[0], expected)


def test_attention_fusion_gives_each_pixel_a_share_of_both_maps() -> None:
    torch.manual_seed(0)
    fuse = UAFM(5, 6, 4).eval()
    seen: list[Tensor] = []
    fuse.refine.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    fine, coarse = torch.randn(1, 5, 9, 13), torch.randn(1, 6, 5, 7)
    with torch.no_grad():
        fuse(fine, coarse)
        first = fuse.reduce(fine)
    second = nn.functional.interpolate(coarse, (9, 13), mode="bilinear", align_corners=False)
    low, high = torch.minimum(first, second), torch.maximum(first, second)
    assert (seen[0] >= low - 1e-6).all()
    assert (seen[0] <= high + 1e-6).all()
    shares = (seen[0] - second) / (first - second)
    torch.testing.assert_close(shares, shares[:, :1].expand_as(shares), rtol=1e-3, atol=1e-3)


def test_attention_fusion_needs_three_widths() -> None:
    with pytest.raises(ConfigError, match="needs a width for each of 3 levels, but 'widths' has 2"):
        build("PPLiteSeg_T", {"widths": (8, 8)})


# SegNeXt


def test_strips_see_as_far_as_published_and_dilation_spreads_them() -> None:
    for stride, dilation in ((32, 1), (16, 2)):
        backbone = BACKBONES.build(Component("mscan_t", {"output_stride": stride}), where="", in_channels=3)
        attention = backbone.stages[3][2].branch
        strips = [conv for strip in attention.strips for conv in strip]
        assert [conv.kernel_size for conv in strips] == [(1, 7), (7, 1), (1, 11), (11, 1), (1, 21), (21, 1)]
        assert {conv.dilation for conv in strips} == {(dilation, dilation)}


def test_the_norm_between_mscans_stages_is_a_layer_norm_of_each_pixel() -> None:
    torch.manual_seed(0)
    norm = _ChannelNorm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(2, 6, 3, 4)
    expected = nn.functional.layer_norm(x.movedim(1, -1), (6,), norm.weight, norm.bias).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("kind", ["DDRNet_23_slim", "SegNeXt_T"])
def test_one_graph_is_for_images_of_every_size(kind: str) -> None:
    torch.manual_seed(0)
    model = build(kind, SMALL[kind]).eval()
    program = graph.trace(model, 3, ("logits",), None).module()
    for size in ((32, 32), (65, 97), (130, 33)):
        images = torch.randint(256, (1, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            (logits,) = program(images)
            torch.testing.assert_close(logits, model(images).full(size).logits, rtol=1e-3, atol=1e-4)


def test_filters_of_one_channel_start_as_wide_as_their_size_asks() -> None:
    torch.manual_seed(0)
    backbone = BACKBONES.build("mscan_s", where="", in_channels=3)
    initialize(backbone, "kaiming")
    attention = backbone.stages[3][2].branch
    assert attention.local.weight.std().item() == pytest.approx((2 / 25) ** 0.5, rel=0.05)
    assert attention.strips[2][0].weight.std().item() == pytest.approx((2 / 21) ** 0.5, rel=0.05)


def test_blocks_are_left_out_in_training_the_later_the_more_often() -> None:
    backbone = BACKBONES.build(Component("mscan_t", {"drop_path": 0.5}), where="", in_channels=3)
    shares = [module.drop_path for module in backbone.modules() if hasattr(module, "drop_path")]
    assert len(shares) == 2 * (3 + 3 + 5 + 2)
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 0.5)
    torch.manual_seed(0)
    block = backbone.stages[3][-2].train()
    nn.init.constant_(block.scale, 1)
    x = torch.randn(64, 256, 2, 2)
    added = block(x) - x
    left_out = added.flatten(1).abs().amax(1) == 0
    assert 16 < left_out.sum() < 48
    with torch.no_grad():
        torch.testing.assert_close(added[~left_out], 2 * block.branch(block.norm(x))[~left_out])


def test_the_same_image_gets_the_same_logits_every_time_and_in_every_program() -> None:
    images = torch.rand(2, 3, 65, 97) * 255
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = build("SegNeXt_T", SMALL["SegNeXt_T"]).eval()
        torch.manual_seed(len(found))  # what others draw in between changes nothing
        with torch.no_grad():
            found += [model(images).logits, model(images).logits]
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert "head.factorize.bases" in model.state_dict()


def test_bases_do_not_depend_on_the_random_numbers_of_the_run_and_take_none() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = _Factorization(8, 4).bases
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(_Factorization(8, 4).bases, first)
    torch.testing.assert_close(first.norm(dim=0), torch.ones(4))


def test_a_map_of_few_bases_is_found_again_and_one_of_noise_is_smoothed() -> None:
    torch.manual_seed(0)
    factorize = _Factorization(32, 2).eval()
    simple = (torch.rand(32, 2) @ torch.rand(2, 90)).view(1, 32, 9, 10)
    noise = torch.rand(1, 32, 9, 10)
    assert (factorize(noise) >= 0).all()
    errors = [((factorize(x) - x).norm() / x.norm()).item() for x in (simple, noise)]
    assert errors[0] < 0.1 < errors[1]


def test_the_head_factorizes_in_single_precision_under_autocast() -> None:
    torch.manual_seed(0)
    factorize = _Factorization(32, 4).eval()
    x = torch.rand(1, 32, 9, 10).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = factorize(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, factorize(x.float()).bfloat16())


# Heads


RESNET34 = tuple(FeatureShape(c, 2**level, level) for level, c in enumerate((64, 64, 128, 256, 512), start=1))
CONVNEXT_T = tuple(FeatureShape(c, 2**level, level) for level, c in enumerate((96, 192, 384, 768), start=2))


def head_size(name: str, shapes: tuple[FeatureShape, ...], num_classes: int, **args: Any) -> int:
    """Number of parameters."""
    with torch.device("meta"):
        head = HEADS.build(Component(name, args), where="", shapes=shapes, num_classes=num_classes)
    return sum(p.numel() for p in head.parameters())


def test_uper_head_makes_convnext_t_and_its_auxiliary_head_60_million() -> None:
    convnext = 27_820_128  # timm's convnext_tiny without its classifier
    own = head_size("UPerHead", CONVNEXT_T, ADE20K)
    aux = head_size("FCNHead", CONVNEXT_T, ADE20K, level=4, channels=256)
    assert (convnext + own + aux) / 1e6 == pytest.approx(60, rel=0.01)


def test_the_nodes_of_unet_plus_plus_see_all_before_them_on_their_level() -> None:
    head = HEADS.build(Component("UNetPlusPlusHead"), where="", shapes=RESNET34, num_classes=CLASSES)
    widths = (32, 64, 128, 256)
    assert [len(column) for column in head.columns] == [4, 3, 2, 1]
    for depth, column in enumerate(head.columns, start=1):
        for level, node in enumerate(column):
            below = RESNET34[level + 1].channels if depth == 1 else widths[level + 1]
            assert node[0][0].in_channels == RESNET34[level].channels + (depth - 1) * widths[level] + below
            assert node[1][0].out_channels == widths[level]


def test_linknet_adds_every_map_on_the_way_up() -> None:
    torch.manual_seed(0)
    shapes = tuple(FeatureShape(4 * level, 2**level, level) for level in (1, 2, 3))
    head = HEADS.build(Component("LinkNetHead", {"channels": 8}), where="", shapes=shapes, num_classes=CLASSES).eval()
    for step in head.steps:
        nn.init.zeros_(step.expand[1].weight)  # the branch gives nothing
    maps = [torch.randn(1, shape.channels, 64 // shape.stride, 96 // shape.stride) for shape in shapes]
    with torch.no_grad():
        torch.testing.assert_close(head(maps), head.classify(head.refine(maps[0])))


def test_each_pixel_of_manets_attention_takes_a_mean_of_all() -> None:
    torch.manual_seed(0)
    attend = _PositionAttention(6, 4)
    for conv in (attend.value, attend.leave):
        nn.init.dirac_(conv.weight)
        nn.init.zeros_(conv.bias)
    x = torch.randn(2, 6, 3, 5)
    with torch.no_grad():
        nn.init.zeros_(attend.query.weight)
        nn.init.zeros_(attend.query.bias)  # nothing resembles anything more than anything else
        torch.testing.assert_close(attend(x), x + x.mean((2, 3), keepdim=True))


def test_pyramid_attention_takes_maps_of_any_size() -> None:
    torch.manual_seed(0)
    attend = _PyramidAttention(6, 4).eval()
    for size in ((1, 1), (2, 3), (7, 5)):
        assert attend(torch.randn(1, 6, *size)).shape == (1, 4, *size)


# ResEncUNet


def test_instances_are_normalized_each_by_itself_and_single_pixels_too() -> None:
    torch.manual_seed(0)
    model = build("ResEncUNet", {"width_mult": 0.25, "stages": 8}).eval()
    images = torch.randint(256, (2, 3, 33, 65), dtype=torch.uint8)  # the coarsest map has a single pixel
    with torch.no_grad():
        both = model(images).logits
        for image, logits in zip(images, both, strict=True):
            torch.testing.assert_close(model(image[None]).logits[0], logits)
    assert both.shape == (2, CLASSES, 33, 65)


def test_residual_blocks_begin_as_their_shortcuts() -> None:
    block = _Residual(8, 8, stride=2)
    initialize(block, "kaiming")
    x = torch.randn(1, 8, 6, 10)
    torch.testing.assert_close(block(x), F.leaky_relu(F.avg_pool2d(x, 2), 0.01))


def test_every_step_of_resencunets_decoder_but_the_coarsest_is_classified() -> None:
    images = torch.randint(256, (1, 3, 65, 97), dtype=torch.uint8)
    model = build("ResEncUNet", {"width_mult": 0.25, "stages": 6}).train()
    sizes = [tuple(logits.shape[-2:]) for logits in (model(images).logits, *model(images).aux)]
    assert sizes == [(65, 97), (33, 49), (17, 25), (9, 13)]
    assert build("ResEncUNet", {"width_mult": 0.25, "deep_supervision": False}).train()(images).aux == ()


def test_factors_of_auxiliary_outputs_are_as_many_as_these(tmp_path: Path) -> None:
    arch = {"type": "ResEncUNet", "args": {"width_mult": 0.25, "stages": 6}}
    raw = tiny_config(tmp_path, arch=arch, aux_factor=[0.5, 0.25])
    with pytest.raises(
        ConfigError, match=r"^aux_factor: 2 numbers for the 3 auxiliary outputs of ResEncUNet. Give one"
    ):
        dry_run(check_config(raw))
    assert dry_run(check_config({**raw, "aux_factor": [0.5, 0.25, 0.125]})).logits == (2, 3, 32, 32)
