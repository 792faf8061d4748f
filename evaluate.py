"""Measure a checkpoint on a split of its dataset: ``python evaluate.py --model best_model.pth --split val``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import load_config
from utils.devices import choose_device, restrict_gpus
from utils.errors import ArgumentParser, ConfigError, UserError, run
from utils.prediction_flags import add_flags, add_model_flags, tta_from_args

if TYPE_CHECKING:
    import argparse


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="evaluate.py", description=__doc__)
    add = parser.add_argument
    add_model_flags(parser)
    add("--split", help="part of the dataset (default: the one validated on in training)")
    add("--data-dir", type=Path, metavar="DIR", help="where the dataset is, if not where it was in training")
    add_flags(parser, ["single", "multiscale", "sliding", "center_crop"], default="single")
    add("--metrics", nargs="+", metavar="NAME", help="figures to report besides (default: those of training)")
    add("--output", type=Path, metavar="FILE", help="where to write the figures as JSON")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    restrict_gpus(args.device)
    if args.output:
        check_output(args.output)

    from base.base_dataloader import DevicePrefetcher
    from base.evaluation import evaluate
    from engine import assemble
    from engine.check import check_config
    from engine.config import evaluation_data, evaluation_section, validating_as_begun
    from utils import plugins
    from utils.log import log_to
    from utils.metrics import Metrics
    from utils.run_folder import write_json

    log_to()
    modules = plugins.import_modules(args.modules)
    described = check_config(load_config(args.config)) if args.config else None
    device = choose_device(args.device)
    predictor = assemble.load_predictor(args.model, device, precision=args.precision, modules=modules, config=described)
    predictor.tta = tta_from_args(args, predictor.about)
    resolved = predictor.about["config"]
    config = described or validating_as_begun(check_config(resolved), resolved)
    crop = args.mode == "center_crop"
    section = evaluation_section(config, split=args.split, data_dir=args.data_dir, crop=crop)
    extra = check_metrics(args.metrics) if args.metrics else config.trainer.metrics
    classes = predictor.classes
    metrics = Metrics(len(classes), classes.names, classes.ignored_classes, extra)
    loader = assemble.build_evaluation_loader(config, section)
    evaluate(predictor.logits, loader, metrics, move=DevicePrefetcher(device))
    results: dict[str, Any] = {
        "checkpoint": args.model.name,
        "epoch": predictor.about["epoch"],
        "images": len(loader.view) - len(loader.skipped),
        "protocol": predictor.protocol(evaluation_data(section)).to_json(),
        "metrics": metrics.results(),
        "classes": metrics.table(),
        "confusion_matrix": metrics.counts.tolist(),
    }
    print(table(results))
    if args.output:
        write_json(args.output, results)
        print(f"written to {args.output}")
    return 3 if loader.skipped else 0


def check_output(path: Path) -> None:
    """Make the folder of the file to write, before hours are spent on what is to be written there.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if path.is_dir() else ""
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise ConfigError(f"--output {path}: cannot be written ({reason}). Name another file.")


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
    return "\n".join([*lines, "", figures, f"{where}; {protocol['mode']}, size {size}, {protocol['precision']}"])


if __name__ == "__main__":
    sys.exit(run(main))
