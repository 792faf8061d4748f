"""What a finished run leaves behind: its figures, its curves and some predictions."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from base.base_dataloader import Loader
from dataloader.label_statistics import location_prior
from engine.config import RunConfig
from engine.reporting.collect import WorstImages
from engine.reporting.figures import curves_picture
from engine.reporting.write import measure_run, results_of_images, write_run_report
from models.weights import backbones_of
from trainer import Trainer
from utils import checkpoint, distributed, run_folder
from utils.checkpoint import Checkpoint
from utils.classes import ClassTable
from utils.errors import Stopped
from utils.images import write_label, write_picture
from utils.predict import Predictor
from utils.sync_batchnorm import SynchronizedBatchNorm
from utils.visualize import comparisons_sheet, png_palette

logger = logging.getLogger("segwright")

EXAMPLES = 8  # predictions that it leaves on disk: the worst
ROWS = 4  # of them in predictions.png
CLEAR_GAIN = 0.02  # in mean IoU; less is no proof that a model looks at the images
NOT_FETCHED = 'backbone starts from random numbers: the weights that "pretrained" asks for could not be downloaded'
RANDOM_START = 'backbone starts from random numbers; published figures need "pretrained": true'
FEW = 4  # images that a batch norm sees at a time; from this on nothing is said
SYNCHRONIZED = (nn.SyncBatchNorm, SynchronizedBatchNorm)


def notes(config: RunConfig, trainer: Trainer) -> list[str]:
    """List what a reader of the figures should know."""
    found = []
    random = not config.arch.options.pretrained or trainer.model.lacks_pretrained
    published = any(backbone.weights for backbone in backbones_of(trainer.model))
    if published and random and config.init_from is None:
        found.append(NOT_FETCHED if config.arch.options.pretrained else RANDOM_START)
    synchronized = any(isinstance(module, SYNCHRONIZED) for module in trainer.model.modules())
    if config.use_synch_bn and not synchronized:
        found.append("use_synch_bn: no effect, since it takes more than one GPU and there is one, or none")
    return [*found, *notes_on_parts(config, trainer, synchronized=synchronized)]


def notes_on_parts(config: RunConfig, trainer: Trainer, *, synchronized: bool) -> list[str]:
    """Say what sees only a part of each batch, and so makes figures differ from those of a batch in one part.

    Args:
        config: A checked config.
        trainer: Of the run.
        synchronized: Whether batch norms see the parts of all processes.
    """
    whole, processes = trainer.batch_size, distributed.world_size()
    part = whole // (config.trainer.accumulate * processes)  # what a loss sees
    threads = len(getattr(trainer.network, "device_ids", None) or [0])
    seen = part * processes if synchronized else part // threads  # what a batch norm sees
    has_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in trainer.model.modules())
    trains_norm = has_norm and config.arch.options.freeze_bn is not True
    found = []
    if trains_norm and seen < FEW:
        found.append(
            f"batch norm sees {seen} {'image' if seen == 1 else 'images'} at a time, and its statistics are noisy "
            f"below {FEW}: raise batch_size, lower accumulate, or set arch.args.freeze_bn"
        )
    partial = [type(loss).__name__ for loss in trainer.criterion.losses if not loss.additive and part < whole]
    partial += ["batch norm"] if trains_norm and seen < whole else []
    if partial:
        what = " and ".join(partial)
        found.append(f"computed of parts of a batch, not of all its {whole} images: {what}; figures differ a little")
    return found


def way_on(trainer: Trainer) -> str:
    """Say what to do with a finished run."""
    if trainer.stopped_early:
        return early_stop(trainer)
    return f"Raise trainer.{'max_steps' if trainer.config.max_steps else 'epochs'} to go on."


def early_stop(trainer: Trainer) -> str:
    """Say why a run was stopped early."""
    progress = trainer.progress
    best = f", {progress.best_value:.4f}" if progress.best_value is not None else ""
    return (
        f"stopped early (trainer.early_stop {trainer.config.early_stop}) after step {progress.step} of "
        f"{trainer.total_steps}: the best {trainer.monitor.key}{best}, is that of epoch {progress.best_epoch}, and "
        f"this is epoch {progress.epoch}."
    )


def write(config: RunConfig, trainer: Trainer, loaders: tuple[Loader, Loader | None]) -> None:
    """Leave the figures, the curves and some predictions in the folder of a run that has come to its end.

    Raises:
        Stopped: They cannot be written.
    """
    run_dir, val_loader = trainer.run_dir, loaders[1]
    used = kept_checkpoint(run_dir)
    state = checkpoint.load_run(used)
    matrix = state.get("confusion_matrix")
    results = figures(config, trainer, used, matrix)
    if val_loader is not None:
        results["location_prior"] = {"Mean_IoU": location_prior(loaders[0].view, val_loader.view)}
    try:
        (run_dir / "curves.png").write_bytes(curves_picture(trainer.history))
        if matrix is not None:
            write_confusion(run_dir / "confusion.csv", config.classes.names, matrix)
        measured = None
        if val_loader is not None:
            predictor = best_predictor(trainer, used, state)
            worst = WorstImages(config.classes, EXAMPLES)
            measured = measure_run(predictor, val_loader, loaders[0], worst)
            write_predictions(run_dir, config.classes, worst)
            results |= results_of_images(measured)
        write_run_report(run_dir, results["protocol"], config.classes, results, measured, run_facts(trainer))
    except OSError as error:
        what = f"pictures cannot be written ({error})"
        raise Stopped(f"{run_dir}: {what}. Free some space and --resume; {used} is complete") from None
    run_folder.write_json(run_dir / "results.json", results)
    report(results, config, run_dir)


def write_confusion(path: Path, names: Sequence[str], matrix: Tensor) -> None:
    """Write pixels by true class, a row each, and predicted class, a column each: `matrix` (C, C), as CSV."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["true, then predicted", *names])
    table.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    path.write_text(text.getvalue(), encoding="utf-8")


def kept_checkpoint(run_dir: Path) -> Path:
    """Find the checkpoint that a finished run is for: the best model or, where nothing was monitored, the last."""
    best = run_dir / run_folder.BEST
    return best if best.exists() else run_dir / "last.pth"


def figures(config: RunConfig, trainer: Trainer, used: Path, matrix: Tensor | None) -> dict[str, Any]:
    """Put together what results.json says of the model in `used`.

    Args:
        config: A checked config.
        trainer: At the end of its run.
        used: The checkpoint that the figures are of.
        matrix: (C, C), truth and prediction, as its validation counted pixels; None where it is not known.
    """
    epoch = trainer.progress.best_epoch or trainer.progress.epoch
    return {
        "checkpoint": used.name,
        "epoch": epoch,
        "steps": trainer.progress.step,
        "planned_steps": trainer.total_steps,
        "stopped_early": trainer.stopped_early,
        "protocol": trainer.protocol.to_json(),
        "metrics": metrics_at(trainer, epoch),
        "notes": [*notes(config, trainer), *([early_stop(trainer)] if trainer.stopped_early else [])],
        **({} if matrix is None else {"confusion_matrix": matrix.tolist()}),
    }


def best_predictor(trainer: Trainer, used: Path, state: Checkpoint) -> Predictor:
    """Give what predicts as validation did, with the weights in `used`."""
    protocol = trainer.protocol
    checkpoint.load_weights(trainer.model, checkpoint.judged_weights_of(state, used), used)
    return Predictor(trainer.model, trainer.classes, state, protocol.precision, protocol.tta)


def run_facts(trainer: Trainer) -> dict[str, Any]:
    """Give what the head of a run's report says besides."""
    return {"parameters": sum(parameter.numel() for parameter in trainer.model.parameters())}


def file_name(key: str) -> str:
    """Return what the prediction of an image called `key` is called; long names end in a hash instead."""
    name, most = key.replace("/", "_"), run_folder.LONGEST
    if len(os.fsencode(name)) <= most:
        return name
    return f"{name[: most // 4]}-{zlib.crc32(os.fsencode(key)):08x}"  # a letter has up to four bytes


def metrics_at(trainer: Trainer, epoch: int) -> dict[str, Any]:
    """Find the line of metrics.jsonl of `epoch`; where it has several, that of the best model."""
    records = [record for record in trainer.history if record["epoch"] == epoch]
    best = [record for record in records if record.get(trainer.monitor.key) == trainer.progress.best_value]
    return (best or records or [{}])[0]


def has_results(run_dir: Path, steps: int) -> bool:
    """Whether a finished run got as far as writing the figures of its `steps` steps."""
    try:
        written = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(written == steps)


def report(results: Mapping[str, Any], config: RunConfig, run_dir: Path) -> None:
    """Print the figures of the model that the run leaves behind, and where everything is."""
    if "val/Mean_IoU" in results["metrics"]:
        report_validation(results, config.classes.names)
    logger.info("report:      %s", run_dir / "report.html")
    logger.info("model:       %s", run_dir / results["checkpoint"])
    if (run_dir / "predictions").is_dir():
        logger.info("predictions: %s", run_dir / "predictions")
    if (config.trainer.log_dir / config.name / run_dir.name).is_dir():  # not where TensorBoard is not installed
        logger.info("curves:      tensorboard --logdir %s", config.trainer.log_dir)


def report_validation(results: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print the IoU of each class, and the means beside what a guess scores."""
    metrics = results["metrics"]
    width = max(map(len, names))
    for name in names:
        value = metrics.get(f"val/Class_IoU/{name}")
        logger.info("  %-*s  %s", width, name, "-" if value is None else f"{value:.3f}")
    logger.info(
        "Mean_IoU %.4f, Pixel_Accuracy %.4f at epoch %d. Guessing each place's most frequent class, without "
        "looking at the image, scores Mean_IoU %.4f.",
        metrics["val/Mean_IoU"],
        metrics["val/Pixel_Accuracy"],
        results["epoch"],
        results["location_prior"]["Mean_IoU"],
    )
    verdict(metrics["val/Mean_IoU"] - results["location_prior"]["Mean_IoU"])


def verdict(gain: float) -> None:
    """Say by how much the mean IoU exceeds that of the guess, and what to do where it hardly does."""
    if gain >= CLEAR_GAIN:
        logger.info("The model beats that guess by %.4f.", gain)
    else:
        what = f"is only {gain:.4f} better than" if gain > 0 else "is no better than"
        advice = 'Train longer, start from "pretrained" weights, and look whether images and masks belong together'
        logger.warning("The model %s that guess: it has learned little from the images. %s.", what, advice)


def write_predictions(run_dir: Path, classes: ClassTable, worst: WorstImages) -> None:
    """Write a colored PNG of each of the worst predictions, and some of them beside image and label in one picture.

    Raises:
        OSError: They cannot be written.
    """
    folder = run_dir / "predictions"
    folder.mkdir(exist_ok=True)
    rows = []
    for score, key, image, truth, predicted in worst.found:
        write_label(folder / f"{file_name(key)}.png", predicted, png_palette(classes))
        rows.append((key, f"mean IoU {score:.3f}", image, [truth, predicted]))
    headings = (f"image: the worst of {worst.images}", "label", "prediction")
    write_picture(run_dir / "predictions.png", comparisons_sheet(rows[:ROWS], classes, headings))
