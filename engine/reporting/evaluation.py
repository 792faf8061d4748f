"""Measuring checkpoints for evaluate.py: one, or several that predict together."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base.base_dataloader import DevicePrefetcher
from base.evaluation import evaluate
from dataloader.build import LoaderConfig
from engine import assemble
from engine.check import check_config
from engine.config import (
    evaluation_data,
    evaluation_section,
    part_to_evaluate,
    validating_as_begun,
    with_images,
)
from engine.exporting.read import check_use
from engine.reporting import write
from engine.reporting.canvas import ImagesToDraw, write_canvas
from engine.reporting.collect import Collector, ImageFigures
from engine.reporting.compare import Measurement
from engine.reporting.ensemble import Ensemble
from utils.classes import ClassTable
from utils.config import load_config
from utils.devices import choose_device
from utils.errors import ConfigError
from utils.metrics import Metrics
from utils.plugins import require_modules
from utils.predict import Predictor
from utils.prediction_flags import TIES, tta_from_args
from utils.run_folder import find_model

logger = logging.getLogger("segwright")


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one model, or of several together.

    Args:
        name: The checkpoints, as they were named.
        results: What --output writes.
        collector: What a report shows; None where none was asked for.
        skipped: What was wrong with images that do not count, a line each.
        classes: The classes of the model.
        images: What a canvas shows; None where none was asked for.
    """

    name: str
    results: dict[str, Any]
    collector: Collector | None
    skipped: Sequence[str]
    classes: ClassTable
    images: ImagesToDraw | None = None


def measure(
    args: argparse.Namespace, paths: Sequence[Path], *, modules: Sequence[str], extra: Sequence[str] | None
) -> Evaluation:
    """Measure a checkpoint, or the average of several, as the flags of evaluate.py say.

    Args:
        args: The flags.
        paths: Checkpoints; the first one's config says what to measure on.
        modules: Names of third-party modules that have been imported.
        extra: Figures to report besides; None for those of training.

    Raises:
        UserError: A checkpoint, the data or a flag cannot be used.
    """
    paths = [find_model(path) for path in paths]
    described = check_config(load_config(args.config)) if args.config else None
    device = choose_device(args.device)
    predictors = []
    for path in paths:
        predictor = assemble.load_predictor(
            path, device, precision=args.precision, modules=modules, config=described, native=args.native
        )
        predictor.tta = tta_from_args(args, predictor.about, predictor.crop)
        predictors.append(predictor)
    first = predictors[0]
    predict = Ensemble(predictors).logits if len(predictors) > 1 else first.logits
    used = part_to_evaluate(first.about["config"])
    for path, predictor in zip(paths, predictors, strict=True):
        require_modules(predictor.about, modules, path, used=part_to_evaluate(predictor.about["config"]))
    config = described or validating_as_begun(check_config(used), used)
    crop = args.mode == "center_crop"
    repeat = args.mode is None and not args.native  # measure as validation in training did
    section = evaluation_section(config, split=args.split, data_dir=args.data_dir, crop=crop, repeat=repeat)
    preparation = None if repeat or crop else first.prepare  # else the loader does what validation did
    classes = first.classes
    extra = config.trainer.metrics if extra is None else extra
    averages = args.flip or args.mode in ("multiscale", "sliding")
    for path, predictor in zip(paths, predictors, strict=True):
        check_use(path, predictor.about, averages=averages, probabilities="Calibration_Error" in extra)
    metrics = Metrics(len(classes), classes.names, classes.ignored_classes, extra)
    collector = Collector(classes, metrics) if args.report else None
    images = collector.images if collector else ImageFigures(classes)
    loader = assemble.build_evaluation_loader(config, section, preparation)
    listeners = [collector.listen if collector else images.listen]
    drawn = ImagesToDraw(args.number) if args.canvas else None
    if drawn:
        listeners.append(drawn.listen)
    together = 1 if args.mode == "sliding" else args.batch_size  # which is of windows there
    if together > 1 and not crop:
        logger.info(TIES)
    evaluate(predict, loader, metrics, move=DevicePrefetcher(first.device), listeners=listeners, together=together)
    rows = metrics.table()
    for index, row in enumerate(rows):
        row["ignored"] = index in classes.ignored_classes
    protocol = first.protocol(with_images(evaluation_data(section, preparation), loader.view)).to_json()
    notes = notes_on_images(first, section, protocol["images"])
    for note in notes:
        logger.warning(note)
    if len(predictors) > 1:
        protocol["models"] = len(predictors)
    results: dict[str, Any] = {
        "checkpoint": " + ".join(path.name for path in paths),
        "epoch": first.about["epoch"],
        "images": len(loader.view) - len(loader.skipped),
        "protocol": protocol,
        **({"notes": notes} if notes else {}),
        "metrics": metrics.results(),
        "classes": rows,
        "confusion_matrix": metrics.counts.tolist(),
        "image_figures": images.to_json(),
    }
    return Evaluation(" + ".join(map(str, paths)), results, collector, sorted(loader.skipped), classes, drawn)


def notes_on_images(predictor: Predictor, section: LoaderConfig, images: str) -> list[str]:
    """Say so where what `val_split` holds out today is not what it held out of training.

    Args:
        predictor: Whose checkpoint says what that was.
        section: What is evaluated.
        images: Hash of the names of what is evaluated.
    """
    then = predictor.about["protocol"]
    if section.batches.held_out is None or then.get("held_out") is None or then.get("images") in (None, images):
        return []
    return ["images have come or gone since training: others are held out today, and some of them were trained on"]


def measurement_of(evaluation: Evaluation) -> Measurement:
    """Give what `compare` takes."""
    results = evaluation.results
    names = [row["name"] for row in results["classes"]]
    ignored = [index for index, row in enumerate(results["classes"]) if row["ignored"]]
    return Measurement(evaluation.name, names, ignored, results["protocol"], results["image_figures"])


def write_evaluation_report(path: Path, evaluation: Evaluation, command: Sequence[str]) -> None:
    """Write the page that shows an evaluation.

    Raises:
        ValueError: It was not measured for one.
    """
    if evaluation.collector is None:
        raise ValueError("measured without a report in mind")
    name = evaluation.results["checkpoint"]
    write.write_evaluation_report(
        path, name=name, results=evaluation.results, collector=evaluation.collector, command=command
    )


def write_evaluation_canvas(path: Path, evaluations: Sequence[Evaluation]) -> None:
    """Draw some images with the predictions of all models.

    Raises:
        ConfigError: The models have different classes, or saw different images.
    """
    models = [(each.name, each.images) for each in evaluations if each.images is not None]
    first = evaluations[0].classes
    if any(each.classes.names != first.names for each in evaluations):
        raise ConfigError("--canvas: the models have different classes. Draw models of the same ones.")
    write_canvas(path, models, first)
