"""Measure checkpoints on a split of their dataset: ``python evaluate.py --model best_model.pth --split val``.

Several are measured one after another, averaged (``--ensemble``), or compared image by image (``--compare``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.devices import restrict_gpus
from utils.errors import UserError, run
from utils.flags import CommandParser, add_shared, check_writable, program
from utils.prediction_flags import add_flags, add_model_flags

if TYPE_CHECKING:
    import argparse

    from engine.reporting.compare import Measurement
    from engine.reporting.evaluation import Evaluation


CANVAS = 8  # images on a canvas


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("evaluate"),
        usage="-m CKPT",
        description="Measure checkpoints on a split of their dataset: one after another, averaged, or compared.",
        examples=[
            ("-m saved/mydata/latest", "measure a run's best model as validation did"),
            ("-m best_model.pth --split test -o results.json", "another split, and the figures as JSON"),
            ("-m a.pth b.pth --compare", "say what two models differ in, with intervals"),
            ("-m best_model.pth -mo multiscale --flip", "with test-time augmentation"),
        ],
        pages=["explanation/mean-iou.md", "howto/several-seeds.md"],
    )
    group = add_model_flags(parser, several=True)
    group.add_argument("--ensemble", action="store_true", help="average the logits of several models")
    group = parser.add_argument_group("data")
    add_shared(group, "--split", " (default: the one validated on in training)")
    add_shared(group, "--data-dir", ", if not where it was in training")
    add_flags(parser, ["single", "multiscale", "sliding", "center_crop"], default=None)
    group = parser.add_argument_group("result")
    add = group.add_argument
    add("--metrics", nargs="+", metavar="NAME", help="figures to report besides (default: those of training)")
    add_shared(group, "--output", " the figures as JSON")
    add("--report", type=Path, metavar="FILE", help="where to write a page that shows them, with pictures")
    add("--canvas", type=Path, metavar="FILE", help="PNG to draw: images, truth, the prediction of each model")
    add("-n", "--number", type=int, default=CANVAS, metavar="N", help=f"images on the canvas (default: {CANVAS})")
    compare = "say what the models differ in, with intervals; or FILEs that --output wrote, or reports"
    add("--compare", type=Path, nargs="*", metavar="FILE", help=compare)
    args = parser.parse_args(argv)
    if problems := contradictions(args):
        raise UserError(*problems)
    return args


def contradictions(args: argparse.Namespace) -> list[str]:
    """List what is wrong with the flags together, a finished sentence each."""
    models = len(args.model or [])
    if args.canvas and (args.compare or args.number < 1):
        fault = "files hold no images. Name models" if args.compare else f"-n {args.number} images. Give 1 or more"
        return [f"--canvas: {fault}."]
    if args.compare:
        few = ["--compare: one file. Give two or more, or models with --model."] if len(args.compare) < 2 else []
        unread = {
            "model": bool(models),
            "report": args.report is not None,
            "split": args.split is not None,
            "data-dir": args.data_dir is not None,
            "metrics": bool(args.metrics),
            "mode": args.mode is not None,
            "ensemble": args.ensemble,
        }
        what = "has no effect with --compare FILES. Leave one of them out."
        return few + [f"--{flag}: {what}" for flag, is_given in unread.items() if is_given]
    if not models:
        return ["command line: no model. Name one with --model, or files with --compare."]
    problems = []
    if models < 2 and args.compare is not None:
        problems.append("--compare: one model. Name two or more with --model, or files.")
    if models < 2 and args.ensemble:
        problems.append("--ensemble: one model. Name two or more with --model.")
    if args.ensemble and args.compare is not None:
        problems.append("--ensemble: has no effect with --compare. Write its figures with --output, and compare those.")
    one = models < 2 or args.ensemble
    if args.report and not one:
        problems.append("--report: shows one model. Name one, or add --ensemble.")
    if args.output and not one and args.compare is None:
        problems.append("--output: holds the figures of one model. Name one, or add --ensemble or --compare.")
    return problems


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    restrict_gpus(args.device)
    check_outputs(args)
    if args.compare:
        from engine.reporting.compare import read_measurement

        return show_comparison([read_measurement(path) for path in args.compare], args.output)

    from engine.reporting.evaluation import measurement_of, write_evaluation_canvas

    found = measured(args)
    status = 3 if any(each.skipped for each in found) else 0
    if args.canvas:
        write_evaluation_canvas(args.canvas, found)
        print(f"written to {args.canvas}")
    if args.compare is not None:
        return show_comparison([measurement_of(each) for each in found], args.output) or status
    for each in found:
        print(table(each.results))
    for path in written(args, found[0], sys.argv if argv is None else ["evaluate.py", *argv]):
        print(f"written to {path}")
    return status


def evaluate(args: argparse.Namespace, command: Sequence[str] = ("evaluate.py",)) -> dict[str, Any]:
    """Measure the one model, or the ensemble, that `args`, from `parse`, ask for.

    Args:
        args: Flags.
        command: What the report shows as the command line.

    Returns:
        What ``--output`` writes.

    Raises:
        UserError: Checkpoint and data do not fit together.
    """
    if len(args.model or []) > 1 and not args.ensemble:
        raise UserError("model: several. Give one, or ensemble=True.")
    restrict_gpus(args.device)
    check_outputs(args)
    (found,) = measured(args)
    written(args, found, command)
    return found.results


def check_outputs(args: argparse.Namespace) -> None:
    """Make the folders of what is to be written.

    Raises:
        ConfigError: Something cannot be written.
    """
    for flag, path in (("--output", args.output), ("--report", args.report), ("--canvas", args.canvas)):
        if path:
            check_writable(flag, path)


def written(args: argparse.Namespace, found: Evaluation, command: Sequence[str]) -> list[Path]:
    """Write the figures and the report that are asked for; returns their paths."""
    from engine.reporting.evaluation import write_evaluation_report
    from utils.run_folder import write_json

    if args.output:
        write_json(args.output, found.results)
    if args.report:
        write_evaluation_report(args.report, found, command)
    return [path for path in (args.output, args.report) if path]


def measured(args: argparse.Namespace) -> list[Evaluation]:
    """Measure each checkpoint, or all of them together.

    Raises:
        UserError: Checkpoint and data do not fit together.
    """
    from engine.reporting.evaluation import measure
    from utils import plugins
    from utils.log import log_to

    log_to()
    modules = plugins.import_modules(args.modules)
    extra = check_metrics(args.metrics) if args.metrics else None
    groups = [args.model] if args.ensemble else [[path] for path in args.model]
    return [measure(args, group, modules=modules, extra=extra) for group in groups]


def show_comparison(measurements: Sequence[Measurement], output: Path | None) -> int:
    """Print what every model gains over the first one, and write it to `output`."""
    from engine.reporting.compare import compare, comparison_json, comparison_table
    from utils.run_folder import write_json

    first, found = measurements[0], []
    for other in measurements[1:]:
        comparison = compare(first, other)
        print(comparison_table(first, other, comparison))
        found.append(comparison_json(first, other, comparison))
    if output:
        write_json(output, {"comparisons": found})
        print(f"written to {output}")
    return 0


def check_metrics(names: Sequence[str]) -> Sequence[str]:
    """Give the names given to --metrics.

    Raises:
        UserError: There is no such figure.
    """
    from utils.registry import METRICS
    from utils.schema import did_you_mean

    if unknown := [name for name in names if name not in METRICS]:
        raise UserError(*(f"--metrics {name}: no such figure. {did_you_mean(name, METRICS)}" for name in unknown))
    return names


def table(results: dict[str, Any]) -> str:
    """Write the figures as text, a row for each class."""
    rows, protocol = results["classes"], results["protocol"]
    width = max(len("class"), *(len(row["name"]) for row in rows))

    def figure(value: float | None) -> str:
        return f"{value:9.4f}" if value is not None else f"{'-':>9}"

    lines = [f"{'class':<{width}}{'IoU':>9}{'precision':>11}{'recall':>9}{'pixels':>13}"]
    for row in rows:
        iou, precision, recall = (figure(row[key]) for key in ("iou", "precision", "recall"))
        lines.append(f"{row['name']:<{width}}{iou}  {precision}{recall}{row['pixels']:13,}")
    figures = ", ".join(f"{k} {v:.4f}" for k, v in results["metrics"].items() if not k.startswith("Class_IoU"))
    where = f"{protocol['dataset']} {protocol['split']}, {results['images']} images"
    size = protocol["size"] if isinstance(protocol["size"], str) else "x".join(map(str, protocol["size"]))
    averaged = f", {protocol['models']} models averaged" if "models" in protocol else ""
    how = f"{protocol['mode']}, size {size}, {protocol['precision']}{averaged}"
    return "\n".join([*lines, "", figures, f"{where}; {how}"])


if __name__ == "__main__":
    sys.exit(run(main))
