"""Make a checkpoint a file for other programs, and prove it: ``python export.py -m best_model.pth -o model.onnx``.

The graph takes raw pixels, uint8 RGB (N, 3, H, W), and gives a label map, uint8 (N, H, W). It is run on images of eight
sizes; where it predicts something else than the checkpoint, the exit status is 3 and the file ends in ``.unproven``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from engine.exporting.formats import FORMATS, OUTPUTS
from utils.errors import UserError, one_line, run
from utils.files import digest
from utils.flags import CommandParser, add_shared, check_writable, program

if TYPE_CHECKING:  # torch takes two seconds to import; --help need not wait for it
    import argparse

    from engine.exporting.command import Export, Exported


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("export"),
        usage="-m CKPT",
        description="Make a checkpoint a file for other programs, and prove that it predicts the same.",
        examples=[
            ("-m best_model.pth -o model.onnx", "ONNX, for images of any size"),
            ("-m best_model.pth -o model.pt2 --size 512 1024", "torch.export, for one size"),
            ("-m best_model.pth -o small.onnx --int8 --calibrate photos", "8-bit numbers"),
            ("-m best_model.pth -o model.safetensors --half", "weights to share, half as large"),
        ],
        pages=["howto/deployment.md", "deploy.md"],
    )
    group = parser.add_argument_group("model")
    add_shared(group, "--model", required=True)
    group = parser.add_argument_group("file to write")
    add_shared(group, "--output", " (default: beside the checkpoint)")
    add = group.add_argument
    add("-f", "--format", choices=FORMATS, help="default: as --output ends, or onnx")
    shown = f"what the graph gives, of {', '.join(OUTPUTS)} (default: labels)"
    add("--outputs", default="labels", metavar="NAME,...", help=shown)
    add("--size", type=int, nargs=2, metavar=("H", "W"), help="take images of this size only (default: any)")
    add("--int8", action="store_true", help="compute with 8-bit numbers; onnx only")
    add("--half", action="store_true", help="write weights as 16-bit numbers; safetensors only")
    group = parser.add_argument_group("images to compare on")
    add = group.add_argument
    add("--calibrate", type=Path, metavar="DIR", help="images that show which numbers occur, for --int8")
    add_shared(group, "--data-dir", ", if not where it was in training")
    parser.share("--import", "--debug")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    job, made = export(parse(argv))
    return report(job, made)


def export(args: argparse.Namespace) -> tuple[Export, Exported]:
    """Write the file that `args`, from `parse`, ask for, and compare it with the checkpoint.

    Raises:
        UserError: Flags, checkpoint and images do not fit together.
    """
    kind = choose_format(args.format, args.output)
    outputs = choose_outputs(args.outputs)
    check_flags(args, kind)

    from utils import plugins
    from utils.log import log_to
    from utils.run_folder import find_model

    log_to()
    model = find_model(args.model)
    output = args.output or model.with_suffix(FORMATS[kind])
    check_writable("--output", output)

    from engine.exporting.command import Export
    from engine.exporting.command import export as export_model

    job = Export(
        model,
        output,
        kind,
        outputs=outputs,
        size=tuple(args.size) if args.size else None,
        int8=args.int8,
        half=args.half,
        calibrate=args.calibrate,
        data_dir=args.data_dir,
        modules=plugins.import_modules(args.modules),
    )
    return job, export_model(job)


def choose_format(wanted: str | None, output: Path | None) -> str:
    """The format to write.

    Raises:
        UserError: The name of the file does not end as those of its format.
    """
    endings = {ending: kind for kind, ending in FORMATS.items()}
    if output is None:
        return wanted or "onnx"
    kind = wanted or endings.get(output.suffix)
    if kind is None or FORMATS[kind] != output.suffix:
        rest = f"does not end in {FORMATS[kind]}" if kind else "has an ending that says no format"
        raise UserError(f"--output {output}: {rest}. End it in one of {', '.join(endings)}, and let --format agree.")
    return kind


def choose_outputs(text: str) -> tuple[str, ...]:
    """The names in ``--outputs``.

    Raises:
        UserError: There is no such output.
    """
    names = tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise UserError(f"--outputs {unknown[0]}: unknown. Choose from {', '.join(OUTPUTS)}.")
    return tuple(dict.fromkeys(names))


def check_flags(args: argparse.Namespace, kind: str) -> None:
    """Refuse flags that have no effect.

    Raises:
        UserError: With all that are wrong.
    """
    problems = []
    if args.int8 and kind != "onnx":
        problems.append(f"--int8: has no effect with --format {kind}. Use --format onnx.")
    if args.half and kind != "safetensors":
        problems.append(f"--half: has no effect with --format {kind}. Use --format safetensors.")
    if args.int8 and args.calibrate is None:
        problems.append("--int8: needs images to see which numbers occur. Add --calibrate DIR.")
    if args.calibrate is not None and not args.int8:
        problems.append("--calibrate: has no effect without --int8. Add it, or leave this out.")
    if kind == "safetensors" and (args.size or args.outputs != "labels"):
        flag = "--size" if args.size else "--outputs"
        problems.append(f"{flag}: has no effect with --format safetensors, which holds weights only. Leave it out.")
    if args.size and min(args.size) < 1:
        problems.append(f"--size {args.size[0]} {args.size[1]}: no size. Use two numbers of at least 1.")
    if problems:
        raise UserError(*problems)


def report(job: Export, made: Exported) -> int:
    """Print what was made and how it agrees with the checkpoint; the exit status."""
    parity = made.parity
    worst = parity.worst
    height, width = worst.size
    size = made.path.stat().st_size / 2**20
    print(f"{made.path} ({size:.1f} MiB), compared on images: {made.source}; figures in {job.report}")
    print(f"sha256: {digest(made.path)}")
    if made.card is not None:
        print(f"model card: {made.card}")
    difference = parity.largest_logit_difference
    parts = [f"agreement {100 * parity.agreement:.4f} % of pixels (least of {len(parity.sizes)} sizes)"]
    if difference is not None:
        parts.append(f"largest logit difference {difference:.2g}")
    if parity.mean_iou is not None:
        parts.append(f"Mean_IoU {parity.mean_iou[0]:.4f} of the checkpoint and {parity.mean_iou[1]:.4f} of the file")
    print(", ".join(parts))
    if made.proven:
        return 0
    found = worst.error or f"agreement {100 * worst.agreement:.4f} % at {height}x{width}"
    instead = "Export with --size H W, or use the checkpoint" if job.size is None else "Use the checkpoint"
    if job.int8:
        instead = "Calibrate with other images, or leave out --int8"
    if job.half:
        instead = "Leave out --half"
    print(one_line(f"not proven: {made.path}: {found}. {instead}."), file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(run(main))
