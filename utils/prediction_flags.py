"""Flags that evaluate.py and inference.py share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from utils.config import first_training_set
from utils.errors import UserError
from utils.flags import CommandParser, add_shared

if TYPE_CHECKING:  # it needs torch, which --help need not wait for
    from utils.tta import TestTimeAugmentation

# Scales of the multiscale mode, as pytorch-segmentation has them; its Cityscapes adds one.
SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
CITYSCAPES_SCALES = (*SCALES, 2.25)

OVERLAP = 1 / 3
WINDOW = 512  # where training used no crop
TIES = "--batch-size: of equally likely classes another may win than with one image at a time"
STRIDE = 32  # windows are multiples of the coarsest stride there is, so that their logits lie on one grid


def add_model_flags(parser: CommandParser, *, several: bool = False) -> argparse._ArgumentGroup:
    """Give `parser` the flags that say which model predicts, and where; returns their group.

    Args:
        parser: A command's.
        several: Take any number of models, also none.
    """
    group = parser.add_argument_group("model")
    if several:
        add_shared(group, "--model", "; several are measured one after another", nargs="+")
    else:
        add_shared(group, "--model", required=True)
    add_shared(group, "--config", " of the model, if the file holds bare weights")
    add_shared(group, "--device")
    precisions = ["fp32", "bf16", "fp16", "auto"]
    default, shown = (None, "what validation in training did") if several else ("fp32", "fp32")
    group.add_argument("--precision", choices=precisions, default=default, help=f"arithmetic (default: {shown})")
    parser.share("--import", "--debug")
    return group


def add_flags(parser: argparse.ArgumentParser, modes: Sequence[str], default: str | None) -> None:
    """Give `parser` the flags that `tta_from_args` reads; without a default mode, it is what validation did."""
    group = parser.add_argument_group("how to predict")
    add = group.add_argument
    shown = default or "what validation in training did"
    add("-mo", "--mode", choices=modes, default=default, help=f"how to predict an image (default: {shown})")
    add("--native", action="store_true", help="predict images at their own size, also where validation resized them")
    shown = " ".join(f"{scale:g}" for scale in SCALES)
    add("--scales", type=float, nargs="+", metavar="X", help=f"multiscale: factors of the size (default: {shown})")
    add("--flip", action="store_true", help="average with the mirrored image too")
    add("--window", type=int, nargs=2, metavar=("H", "W"), help="sliding: size of a window (default: training's crop)")
    add("--overlap", type=float, metavar="X", help="sliding: share that windows have in common (default: 1/3)")
    blends = ["uniform", "linear", "gaussian"]
    blend = "sliding: weights where windows overlap (default: uniform; linear for images in bands)"
    add("--blend", choices=blends, help=blend)
    add("--fast", action="store_true", help="multiscale: average at the resolution of the network's head")
    add_shared(group, "--batch-size", ", of one size, or windows (default: 1)", default=1)


def tta_from_args(
    args: argparse.Namespace, about: Mapping[str, Any], crop: tuple[int, int] | None
) -> TestTimeAugmentation:
    """Make the test-time augmentation that flags ask for.

    Args:
        args: With the flags of `add_flags`.
        about: What the checkpoint says about itself; its training decides the defaults.
        crop: Height and width of training's crops, for windows; None where they had no size.

    Raises:
        UserError: A flag has no effect in this mode, or its value makes no sense.
    """
    from utils.tta import TestTimeAugmentation

    mode = args.mode or "single"
    if problems := [*flags_without_effect(args), *values_out_of_range(args)]:
        raise UserError(*problems)
    loader = first_training_set(about["config"])
    height, width = args.window or crop or (WINDOW, WINDOW)
    step = 1 if about.get("size") else STRIDE  # an exported graph of one size takes just that
    scales: Sequence[float] = (1.0,)
    if mode == "multiscale":
        usual = CITYSCAPES_SCALES if loader["type"].lower() == "cityscapes" else SCALES
        scales = args.scales or usual
    return TestTimeAugmentation(
        mode=mode,
        scales=tuple(scales),
        flip=args.flip,
        window=(-(-height // step) * step, -(-width // step) * step),
        overlap=OVERLAP if args.overlap is None else args.overlap,
        fast=args.fast,
        batch_size=args.batch_size,
        blend=args.blend,
    )


def flags_without_effect(args: argparse.Namespace) -> list[str]:
    """Say which flags were given that this mode does not read."""
    mode = args.mode or "single"
    given = {
        "scales": ("multiscale", args.scales is not None),
        "window": ("sliding", args.window is not None),
        "overlap": ("sliding", args.overlap is not None),
        "blend": ("sliding", args.blend is not None),
        "fast": ("multiscale", args.fast),
    }
    return [
        f"--{flag}: has no effect in mode {mode}. Use --mode {needed} or leave it out."
        for flag, (needed, is_given) in given.items()
        if is_given and mode != needed
    ]


def values_out_of_range(args: argparse.Namespace) -> list[str]:
    """Say which values of flags make no sense."""
    problems = []
    if args.scales and not all(0.05 <= scale <= 16 for scale in args.scales):
        problems.append(f"--scales {' '.join(map(str, args.scales))}: out of range. Use factors from 0.05 to 16.")
    if args.window and min(args.window) < 1:
        problems.append(f"--window {args.window[0]} {args.window[1]}: no size. Use two numbers of at least 1.")
    if args.overlap is not None and not 0 <= args.overlap <= 0.95:
        problems.append(f"--overlap {args.overlap}: out of range. Use a share from 0 to 0.95.")
    if args.batch_size < 1:
        problems.append(f"--batch-size {args.batch_size}: too few. Use at least 1.")
    return problems
