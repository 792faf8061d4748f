"""What a finished run leaves behind: its figures, its curves and some predictions."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from base.base_dataloader import Loader
from base.base_dataset import Examples, Item
from dataloader.label_statistics import location_prior
from engine.config import RunConfig
from trainer import Trainer
from utils import checkpoint, run_folder
from utils.errors import DataError, Stopped
from utils.images import write_label, write_picture
from utils.predict import Predictor
from utils.sync_batchnorm import SynchronizedBatchNorm
from utils.visualize import comparison, curves, legend, png_palette

logger = logging.getLogger("segwright")

EXAMPLES = 8  # predictions that a finished run leaves on disk
ROWS = 4  # of them in predictions.png
CLEAR_GAIN = 0.02  # in mean IoU; less is no proof that a model looks at the images
CURVES = ("train/loss", "val/loss", "train/Mean_IoU", "val/Mean_IoU")
NOT_FETCHED = 'backbone starts from random numbers: the weights that "pretrained" asks for could not be downloaded'
RANDOM_START = 'backbone starts from random numbers; published figures need "pretrained": true'


def notes(config: RunConfig, trainer: Trainer) -> list[str]:
    """List what a reader of the figures should know."""
    found = []
    random = not config.arch.options.pretrained or trainer.model.lacks_pretrained
    if trainer.model.backbone_modules() and random and config.init_from is None:
        found.append(NOT_FETCHED if config.arch.options.pretrained else RANDOM_START)
    synchronized = (nn.SyncBatchNorm, SynchronizedBatchNorm)
    if config.use_synch_bn and not any(isinstance(module, synchronized) for module in trainer.model.modules()):
        found.append("use_synch_bn: no effect, since it takes more than one GPU and there is one, or none")
    return found


def way_on(trainer: Trainer) -> str:
    """Say what to do with a finished run."""
    if trainer.progress.step < trainer.total_steps:
        return f"It was stopped early, {trainer.config.early_stop} epochs after its best."
    return f"Raise trainer.{'max_steps' if trainer.config.max_steps else 'epochs'} to go on."


def write(config: RunConfig, trainer: Trainer, loaders: tuple[Loader, Loader | None]) -> None:
    """Leave the figures, the curves and some predictions in the folder of a run that has come to its end.

    Raises:
        Stopped: They cannot be written.
    """
    run_dir, val_loader = trainer.run_dir, loaders[1]
    used = kept_checkpoint(run_dir)
    results = figures(config, trainer, used)
    if val_loader is not None:
        results["location_prior"] = {"Mean_IoU": location_prior(loaders[0].view, val_loader.view)}
    try:
        write_picture(run_dir / "curves.png", history_curves(trainer.history))
        if val_loader is not None:
            write_predictions(trainer, used, val_loader)
    except OSError as error:
        what = f"pictures cannot be written ({error})"
        raise Stopped(f"{run_dir}: {what}. Free some space and --resume; {used} is complete") from None
    run_folder.write_json(run_dir / "results.json", results)
    report(results, config, run_dir)


def kept_checkpoint(run_dir: Path) -> Path:
    """Find the checkpoint that a finished run is for: the best model or, where nothing was monitored, the last."""
    best = run_dir / "best_model.pth"
    return best if best.exists() else run_dir / "last.pth"


def figures(config: RunConfig, trainer: Trainer, used: Path) -> dict[str, Any]:
    """Put together what results.json says of the model in `used`."""
    epoch = trainer.progress.best_epoch or trainer.progress.epoch
    return {
        "checkpoint": used.name,
        "epoch": epoch,
        "steps": trainer.progress.step,
        "protocol": trainer.protocol.to_json(),
        "metrics": metrics_at(trainer, epoch),
        "notes": notes(config, trainer),
    }


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
    logger.info("model:       %s", run_dir / results["checkpoint"])
    if (run_dir / "predictions").is_dir():
        logger.info("predictions: %s", run_dir / "predictions")
    if config.trainer.tensorboard:
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


def history_curves(history: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Draw losses and mean IoU by epoch, (H, W, 3) uint8, as far as `history` has them."""
    lines = {}
    for key in CURVES:
        line = [(record["epoch"], record[key]) for record in history if key in record]
        if line:
            lines[key] = line
    return curves(lines, x_label="epochs")


def write_predictions(trainer: Trainer, used: Path, loader: Loader) -> None:
    """Predict some validation images with the weights in `used`; one colored PNG each, and some in one picture.

    Raises:
        OSError: They cannot be written.
    """
    folder = trainer.run_dir / "predictions"
    folder.mkdir(exist_ok=True)
    state = checkpoint.load_run(used)
    classes, protocol = trainer.classes, trainer.protocol
    checkpoint.load_weights(trainer.model, checkpoint.judged_weights_of(state, used), used)
    predictor = Predictor(trainer.model, classes, state, protocol.precision, protocol.tta)
    rows: list[np.ndarray] = []
    for item in islice(good_items(loader.view), EXAMPLES):
        labels = predictor.predict_image(item.image)
        write_label(folder / f"{Path(item.key).name}.png", labels, png_palette(classes))
        rows.append(comparison(item.image, [item.label, labels], classes))
    picture = np.concatenate([*rows[:ROWS], legend(classes)])
    write_picture(folder.parent / "predictions.png", picture)


def good_items(view: Examples) -> Iterator[Item]:
    """Read the images of a view with their labels; bad ones are passed over where its loader may skip them."""
    for index in range(len(view)):
        try:
            yield view[0, index]
        except DataError:
            if view.on_bad_sample == "stop":
                raise
