"""Our networks beside those of segmentation_models_pytorch: parameters, and outputs from the same weights.

    pip install segmentation-models-pytorch
    python benchmarks/models.py [--only UPerNet PSPNet]

Both sides get a ResNet-34 and the same random weights. Every parameter is either copied from theirs to ours, or belongs
to a difference that is named here, with its reason; those must account for the whole difference in number. Then each
difference is made to do nothing, and both sides must give the same logits, or, where too much differs, the same maps as
far as they are the same network. All resizing is done with half-pixel centers, as ours is (theirs aligns corners in
places). Ends with 1 if anything disagrees.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.build import build_model
from utils.schema import Component

CLASSES = 5
SIZE = (256, 512)  # divisible by 32, which theirs demand, and large enough for the pyramid of PAN
ALIKE = 1e-4  # of the outputs' range: float32 through a few dozen layers


@dataclass(frozen=True)
class Difference:
    """Something that one side has and the other has not.

    Args:
        what: It, and the reason.
        ours: Pattern of the names of our parameters that it costs.
        theirs: Likewise.
    """

    what: str
    ours: str = "$^"
    theirs: str = "$^"


@dataclass(frozen=True)
class Case:
    """A network that both have.

    Args:
        ours: Type and arguments.
        theirs: Its class there, and arguments beside those that all get.
        names: Patterns of their parameters' names, and what ours are called.
        differences: In parameters; in the order of being printed.
        remarks: Differences that have no parameters.
        neutralise: Makes the differences do nothing; gets both, after weights have been copied.
        watch: Names of modules, ours and theirs, whose outputs are compared; None for the logits.
    """

    ours: tuple[str, dict[str, Any]]
    theirs: tuple[str, dict[str, Any]]
    names: dict[str, str]
    differences: tuple[Difference, ...] = ()
    remarks: tuple[str, ...] = ()
    neutralise: Callable[[Any, Any], None] = lambda ours, theirs: None
    watch: tuple[str, str] | None = None


def pass_through(norm: nn.BatchNorm2d, bias: Tensor | float = 0.0) -> None:
    """Let a batch norm add `bias` and do nothing else."""
    norm.reset_running_stats()
    with torch.no_grad():
        norm.weight.fill_((1 + norm.eps) ** 0.5)
        norm.bias.copy_(torch.as_tensor(bias).expand_as(norm.bias))


def pass_on(block: nn.Module) -> None:
    """Let convolution, batch norm and ReLU give what they are given, if that is not negative."""
    conv, norm, *_ = block
    nn.init.dirac_(conv.weight)
    pass_through(norm)


def plain_deeplab_plus(ours: Any, theirs: Any) -> None:
    for separable in (*ours.necks[0].convs[1:4], *ours.head.refine[:2]):
        pass_through(separable[0][1])
        separable[0][2] = nn.Identity()  # theirs does nothing between depthwise and pointwise
    depthwise, pointwise = ours.head.refine[1]
    nn.init.dirac_(depthwise[0].weight, groups=depthwise[0].groups)
    pass_on(pointwise)
    theirs.decoder.aspp = theirs.decoder.aspp[0]


def plain_pspnet(ours: Any, theirs: Any) -> None:
    neck = ours.necks[0]
    whole = theirs.decoder.psp.blocks[0].pool[1][0]
    with torch.no_grad():
        pass_through(neck.pools[0][1][1], whole.bias)
        neck.pools[0][1][0].weight.copy_(whole.weight)
        fuse, wide = theirs.decoder.conv[0].weight, neck.fuse[0][0].weight
        pooled = fuse.shape[1] // 2
        wide.zero_()
        wide[:, :, 1, 1] = torch.cat([fuse[:, pooled:], fuse[:, :pooled]], dim=1)[..., 0, 0]  # ours has the map first
        classify = theirs.segmentation_head[0]
        classify.weight.zero_()
        classify.weight[:, :, 1, 1] = ours.head.classify.weight[..., 0, 0]
        classify.bias.copy_(ours.head.classify.bias)


def plain_upernet(ours: Any, theirs: Any) -> None:
    theirs.decoder.feature_norms = nn.ModuleList(nn.Identity() for _ in theirs.decoder.feature_norms)
    pass_on(ours.head.laterals[3])
    weight = theirs.decoder.fusion_block[0].weight
    with torch.no_grad():  # theirs stacks the finest map first
        ours.head.fuse[0][0].weight.copy_(weight.unflatten(1, (4, -1)).flip(1).flatten(1, 2))


def plain_fpn(ours: Any, theirs: Any) -> None:
    decoder = theirs.decoder
    laterals = (decoder.p2.skip_conv, decoder.p3.skip_conv, decoder.p4.skip_conv, decoder.p5)
    for lateral, conv in zip(ours.head.laterals, laterals, strict=True):
        pass_through(lateral[1], conv.bias)
        lateral[2] = nn.Identity()
    pass_on(ours.head.smooth[0])
    ours.head.smooth[0][2] = nn.Identity()


def plain_pan(ours: Any, theirs: Any) -> None:
    for module in theirs.decoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.bias)  # a batch norm follows
    for name in ("gau1", "gau2", "gau3"):
        weigh = getattr(theirs.decoder, name).conv1
        weigh[1].add_relu = True
        weigh[2] = nn.Identity()


def plain_manet(ours: Any, theirs: Any) -> None:
    center = theirs.decoder.center

    def forward(x: Tensor) -> Tensor:
        shares = (center.center_conv(x).flatten(2).mT @ center.top_conv(x).flatten(2)).softmax(-1)
        gathered = shares @ center.bottom_conv(x).flatten(2).mT
        return center.out_conv(x + gathered.mT.reshape(x.shape))

    center.forward = forward


def conv_norm(parts: dict[str, str]) -> dict[str, str]:
    """Names of the convolution and the batch norm of each of these parts."""
    names = {}
    for theirs, ours in parts.items():
        names[rf"^decoder\.{theirs}\.conv"] = f"head.{ours}.0"
        names[rf"^decoder\.{theirs}\.bn"] = f"head.{ours}.1"
    return names


ENCODER = {r"^encoder\.": "backbone."}
ASPP = {r"^decoder\.aspp(?:\.0)?\.(convs|project)": r"necks.0.\1"}
CLASSIFY = {r"^segmentation_head\.0": "head.classify"}
DILATED = (
    "theirs dilates the first convolution of a stage as the others; ours is told to, as it is not torchvision's way"
)

CASES = {
    "DeepLabV3": Case(
        ("DeepLabV3", {"backbone": {"type": "resnet34", "args": {"hdc": [[2] * 6, [4] * 3]}}, "use_aux": False}),
        ("DeepLabV3", {}),
        {**ENCODER, **ASPP, **CLASSIFY, r"^decoder\.conv": "head.convs.0.0", r"^decoder\.bn": "head.convs.0.1"},
        remarks=(DILATED,),
    ),
    "DeepLabV3+": Case(
        (
            "DeepLab",
            {"backbone": {"type": "resnet34", "args": {"hdc": [[2] * 3]}}, "separable": True, "rates": [12, 24, 36]},
        ),
        ("DeepLabV3Plus", {}),
        {
            r"^decoder\.aspp\.0\.(convs\.[123])\.0\.0": r"necks.0.\1.0.0",
            r"^decoder\.aspp\.0\.(convs\.[123])\.0\.1": r"necks.0.\1.1.0",
            r"^decoder\.aspp\.0\.(convs\.[123])\.1": r"necks.0.\1.1.1",
            **ENCODER,
            **ASPP,
            **CLASSIFY,
            r"^decoder\.block1": "head.reduce",
            r"^decoder\.block2\.0\.0": "head.refine.0.0.0",
            r"^decoder\.block2\.0\.1": "head.refine.0.1.0",
            r"^decoder\.block2\.1": "head.refine.0.1.1",
        },
        (
            Difference("ours refines twice behind the low-level map, as section 4.1 found best", r"^head\.refine\.1\."),
            Difference("theirs has another convolution behind ASPP, as no paper has", theirs=r"^decoder\.aspp\.[12]\."),
            Difference(
                "ours has batch norm and ReLU between depthwise and pointwise, as the authors' program",
                r"^(necks\.0\.convs\.[123]|head\.refine\.0)\.0\.1\.",
            ),
        ),
        (DILATED,),
        plain_deeplab_plus,
    ),
    "PSPNet": Case(
        ("PSPNet", {"backbone": "resnet34", "output_stride": 32, "use_aux": False}),
        ("PSPNet", {"encoder_depth": 5, "psp_out_channels": 128, "upsampling": 32}),
        {
            **ENCODER,
            r"^decoder\.psp\.blocks\.([123])\.pool": r"necks.0.pools.\1",
            r"^decoder\.conv\.1": "necks.0.fuse.0.1",
        },
        (
            Difference(
                "ours has a batch norm behind the pool over everything, theirs a bias, so as to train on one image",
                r"^necks\.0\.pools\.0\.",
                r"^decoder\.psp\.blocks\.0\.",
            ),
            Difference(
                "ours joins the pyramid by 3x3, as the authors' program, theirs by 1x1",
                r"^necks\.0\.fuse\.0\.0\.",
                r"^decoder\.conv\.0\.",
            ),
            Difference("theirs classifies by 3x3, ours by 1x1", r"^head\.classify\.", r"^segmentation_head\."),
        ),
        ("ours is at stride 32 here; at 8, its default and the paper's, theirs leaves out the last two stages",),
        plain_pspnet,
    ),
    "UPerNet": Case(
        (
            "EncoderDecoder",
            {
                "backbone": "resnet34",
                "necks": [{"type": "PyramidPooling", "args": {"channels": 128}}],
                "head": {"type": "FPNHead", "args": {"channels": 128}},
            },
        ),
        ("UPerNet", {"decoder_channels": 128}),
        {
            **ENCODER,
            **CLASSIFY,
            r"^decoder\.psp\.blocks": "necks.0.pools",
            r"^decoder\.psp\.out_conv": "necks.0.fuse.0",
            r"^decoder\.fpn_lateral_blocks\.0\.conv_norm_relu": "head.laterals.2",
            r"^decoder\.fpn_lateral_blocks\.1\.conv_norm_relu": "head.laterals.1",
            r"^decoder\.fpn_lateral_blocks\.2\.conv_norm_relu": "head.laterals.0",
            r"^decoder\.fpn_conv_blocks\.0": "head.smooth.2",
            r"^decoder\.fpn_conv_blocks\.1": "head.smooth.1",
            r"^decoder\.fpn_conv_blocks\.2": "head.smooth.0",
            r"^decoder\.fusion_block": "head.fuse.0",
        },
        (
            Difference(
                "theirs has layer norms behind the encoder, for transformers", theirs=r"^decoder\.feature_norms"
            ),
            Difference(
                "ours has a lateral convolution behind the pyramid too, as its head fits any neck", r"laterals\.3"
            ),
        ),
        ("our preset UperNet pools into 1, 2, 4 and 6 bins; both have 1, 2, 3 and 6 here",),
        plain_upernet,
    ),
    "FPN": Case(
        ("EncoderDecoder", {"backbone": "resnet34", "head": "FPNHead"}),
        ("FPN", {"decoder_interpolation": "bilinear"}),
        {
            **ENCODER,
            r"^decoder\.p5\.weight": "head.laterals.3.0.weight",
            r"^decoder\.p4\.skip_conv\.weight": "head.laterals.2.0.weight",
            r"^decoder\.p3\.skip_conv\.weight": "head.laterals.1.0.weight",
            r"^decoder\.p2\.skip_conv\.weight": "head.laterals.0.0.weight",
        },
        (
            Difference(
                "ours has batch norm and ReLU on the laterals, as UPerNet, theirs a bias",
                r"laterals\.\d\.1\.",
                r"^decoder\.p\d\.(skip_conv\.)?bias",
            ),
            Difference(
                "ours joins all levels by one 3x3 convolution, as UPerNet (Xiao et al. 2018), theirs enlarges each by "
                "several with group norm and adds them, as Panoptic FPN (Kirillov et al. 2019)",
                r"^head\.(smooth|fuse|classify)",
                r"^(decoder\.seg_blocks|segmentation_head)",
            ),
        ),
        ("compared: the map that the top-down path gives at level 2",),
        plain_fpn,
        ("head.smooth.0", "decoder.p2"),
    ),
    "PAN": Case(
        ("EncoderDecoder", {"backbone": "resnet34", "head": "PANHead"}),
        ("PAN", {"encoder_output_stride": 32}),
        {
            **ENCODER,
            **conv_norm(
                {
                    r"fpa\.branch1\.1": "attend.whole.1",
                    r"fpa\.mid\.0": "attend.plain",
                    r"fpa\.down1\.1": "attend.down.0",
                    r"fpa\.down2\.1": "attend.down.1",
                    r"fpa\.down3\.1": "attend.down.2",
                    r"fpa\.conv1": "attend.lateral.0",
                    r"fpa\.conv2": "attend.lateral.1",
                    r"fpa\.down3\.2": "attend.lateral.2",
                    r"gau3\.conv1\.1": "steps.0.weigh.1",
                    r"gau2\.conv1\.1": "steps.1.weigh.1",
                    r"gau1\.conv1\.1": "steps.2.weigh.1",
                    r"gau3\.conv2": "steps.0.reduce",
                    r"gau2\.conv2": "steps.1.reduce",
                    r"gau1\.conv2": "steps.2.reduce",
                }
            ),
        },
        (
            Difference("theirs has biases before batch norms, which undo them", theirs=r"^decoder.*conv\.bias"),
            Difference("theirs classifies by 3x3, ours by 1x1", r"^head\.classify\.", r"^segmentation_head\."),
        ),
        (
            "ours weighs channels by a rectified map, as figure 4 of the paper, theirs by a sigmoid of it",
            "compared: the map of level 2",
        ),
        plain_pan,
        ("head.steps.2", "decoder.gau1"),
    ),
    "MAnet": Case(
        ("EncoderDecoder", {"backbone": "resnet34", "head": "MAnetHead"}),
        ("MAnet", {"decoder_interpolation": "bilinear"}),
        {
            **ENCODER,
            r"^decoder\.center\.top_conv": "head.attend.key",
            r"^decoder\.center\.center_conv": "head.attend.query",
            r"^decoder\.center\.bottom_conv": "head.attend.value",
            r"^decoder\.center\.out_conv": "head.attend.leave",
            r"^decoder\.blocks\.([0-3])\.hl_conv": r"head.steps.\1.reduce",
            r"^decoder\.blocks\.([0-3])\.SE_hl": r"head.steps.\1.gate_coarse",
            r"^decoder\.blocks\.([0-3])\.SE_ll": r"head.steps.\1.gate_fine",
            r"^decoder\.blocks\.([0-3])\.conv1": r"head.steps.\1.refine.0",
            r"^decoder\.blocks\.([0-3])\.conv2": r"head.steps.\1.refine.1",
        },
        (
            Difference(
                "theirs goes on to full size, 16 channels wide, and classifies there",
                r"^head\.classify\.",
                r"^(decoder\.blocks\.4|segmentation_head)\.",
            ),
        ),
        (
            "ours takes for each pixel a mean over all pixels; theirs takes one softmax over all pairs of pixels, and "
            "puts the result back with pixels and channels confused",
            "compared: the map of level 1",
        ),
        plain_manet,
        ("head.steps.3", "decoder.blocks.3"),
    ),
    "UNet": Case(
        ("UNetResnet", {"backbone": "resnet34"}),
        ("Unet", {}),
        ENCODER,
        (
            Difference(
                "both go up by concatenating skips; ours reduces before and refines after, 128 to 48 channels wide, "
                "and ends at half the size; theirs does two convolutions after, 256 to 16 wide, and goes to full size",
                r"^head\.",
                r"^(decoder|segmentation_head)\.",
            ),
        ),
        ("compared: the coarsest map, as the decoders share no layer",),
        watch=("backbone.layer4", "encoder.layer4"),
    ),
}


@contextmanager
def half_pixel_centers() -> Iterator[None]:
    """Let every interpolation place pixels by their centers, whatever it asks for."""
    plain = F.interpolate

    def interpolate(x: Tensor, size: Any = None, scale_factor: Any = None, mode: str = "nearest", *_: Any, **__: Any):
        return plain(x, size, scale_factor, mode, False if mode == "bilinear" else None)

    with mock.patch.object(F, "interpolate", interpolate):
        yield


def stir(model: nn.Module) -> nn.Module:
    """Give batch norms something to do, as after training."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def renamed(name: str, rules: dict[str, str]) -> str:
    """Our name of their parameter; its own where no rule fits."""
    for pattern, ours in rules.items():
        if re.match(pattern, name):
            return re.sub(pattern, ours, name)
    return name


def size_of(model: nn.Module, pattern: str) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if re.search(pattern, name))


def copy_weights(case: Case, ours: nn.Module, theirs: nn.Module) -> list[str]:
    """Copy what is the same, and name the parameters that are neither copied nor part of a difference."""
    own = ours.state_dict()
    copied = {}
    for name, value in theirs.state_dict().items():
        match = renamed(name, case.names)
        if match in own and own[match].shape == value.shape and not _expected(case, "theirs", name):
            copied[match] = value
    ours.load_state_dict(copied, strict=False)
    lost = [f"ours: {n}" for n, _ in ours.named_parameters() if n not in copied and not _expected(case, "ours", n)]
    taken = copied.keys()
    lost += [
        f"theirs: {name}"
        for name, _ in theirs.named_parameters()
        if renamed(name, case.names) not in taken and not _expected(case, "theirs", name)
    ]
    return lost


def _expected(case: Case, side: str, name: str) -> bool:
    return any(re.search(getattr(difference, side), name) for difference in case.differences)


def outputs(case: Case, ours: Any, theirs: Any) -> tuple[Tensor, Tensor]:
    """What both give for one image: logits of full size, or what the watched modules give."""
    images, seen = torch.randn(1, 3, *SIZE), {}
    for model, name in zip((ours, theirs), case.watch or (), strict=False):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, model=model: seen.setdefault(id(model), output)
        )
    with torch.no_grad(), half_pixel_centers():
        logits = ours.predict(images).full(SIZE).logits, theirs(images)
    return (seen[id(ours)], seen[id(theirs)]) if case.watch else logits


def compare(name: str, case: Case, smp: Any) -> bool:
    """Print how both sides compare; whether they agree."""
    torch.manual_seed(0)
    kind, args = case.ours
    ours: Any = stir(build_model(Component(kind, args), num_classes=CLASSES))
    maker, options = case.theirs
    theirs: Any = stir(getattr(smp, maker)("resnet34", encoder_weights=None, classes=CLASSES, **options))
    counts = [size_of(model, "") for model in (ours, theirs)]
    print(f"\n{name}: {counts[0] / 1e6:.3f} M parameters, theirs {counts[1] / 1e6:.3f} M ({counts[0] - counts[1]:+,})")
    explained = 0
    for difference in case.differences:
        change = size_of(ours, difference.ours) - size_of(theirs, difference.theirs)
        explained += change
        print(f"  {change:+12,}  {difference.what}")
    for remark in case.remarks:
        print(f"{'':14}  {remark}")
    lost = copy_weights(case, ours, theirs)
    case.neutralise(ours, theirs)
    first, second = outputs(case, ours, theirs)
    off = (
        ((first - second).abs().max() / (second.max() - second.min())).item()
        if first.shape == second.shape
        else float("inf")
    )
    what = "logits" if case.watch is None else "maps"
    print(f"  {what} differ by {off:.1e} of their range, from the same weights")
    for problem in lost:
        print(f"  unexplained parameter of {problem}")
    return off < ALIKE and not lost and explained == counts[0] - counts[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="networks to compare")
    args = parser.parse_args()
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        print("skipped: segmentation_models_pytorch is not installed. `pip install segmentation-models-pytorch`.")
        return 0
    wrong = [name for name in args.only if not compare(name, CASES[name], smp)]
    print(f"\n{'they disagree: ' + ', '.join(wrong) if wrong else 'they agree'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
