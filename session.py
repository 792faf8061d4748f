"""One training session: from a checked config to a run folder with a trained model in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import assemble
from base.base_dataloader import Batch, Loader, check_shared_memory
from base.base_trainer import MAY_CHANGE, TimeLimit, Writer
from base.data_check import DataCheck, largest_image, location_prior
from run_config import RunConfig, meaning_of, size_of, validation_of
from trainer import Trainer
from utils import checkpoint, distributed, run_folder
from utils.config import differences, dump_json
from utils.errors import CheckpointError, DataError, Stopped, UserError, failure_of_machine
from utils.images import write_label, write_picture
from utils.log import log_to
from utils.lr_scheduler import TorchSchedule
from utils.predict import Predictor
from utils.schema import show
from utils.sync_batchnorm import SynchronizedBatchNorm
from utils.visualize import comparison, curves, legend, png_palette
from utils.writers import open_writer

logger = logging.getLogger("segwright")

EXAMPLES = 8  # predictions that a finished run leaves on disk
ROWS = 4  # of them in predictions.png
CURVES = ("train/loss", "val/loss", "train/Mean_IoU", "val/Mean_IoU")
FILES = 65536  # open at once are more than any number of workers needs
RANDOM_START = 'backbone starts from random numbers; published figures need "pretrained": true'


def train(
    config: RunConfig,
    device: torch.device,
    *,
    modules: Sequence[str] = (),
    resume: Path | None = None,
    state: Mapping[str, Any] | None = None,
    gpus: int = 1,
) -> Path:
    """Train as `config` says, or go on where a checkpoint stopped.

    Args:
        config: A checked config.
        device: Where to compute.
        modules: Names of third-party modules that have been imported.
        resume: Checkpoint to go on from.
        state: Its content.
        gpus: How many of them this process uses, by threads.

    Returns:
        The run's folder.

    Raises:
        UserError: Config, data or checkpoint do not fit together; nothing has been started.
        Stopped: The environment or a NaN ended the training.
        Interrupted: A signal did, and all is saved.
    """
    if state is not None and resume is not None:
        compare(config, state, resume)
        set_threads(state, resume, device)
    raise_file_limit()
    check_workers(config)
    dry = assemble.dry_run(config)
    loaders = assemble.build_loaders(config, pin_memory=device.type == "cuda")
    run_dir = distributed.from_first(lambda: open_folder(config, loaders, resume))
    with alone_in(run_dir):
        environment = run_folder.environment(str(device), config.seed, modules)
        try:
            run_folder.check_space(run_dir, 12 * dry.parameters)
            trainer = start(config, run_dir, device, loaders, environment, state, resume, gpus, dry.unused)
        except (UserError, Stopped):
            if resume is None and distributed.is_first():
                run_folder.remove_unstarted(run_dir)
            raise
        announce(config, trainer, dry)
        if resume is None and config.trainer.wants_drill(device.type):
            drill(config, trainer, loaders)
        if trainer.finished and has_results(run_dir, trainer.progress.step):
            logger.info("the run is finished: %d steps. %s", trainer.progress.step, way_on(trainer))
        else:
            finish(config, trainer, loaders)
    return run_dir


def open_folder(config: RunConfig, loaders: tuple[Loader, Loader | None], resume: Path | None) -> Path:
    """The folder of a new run, if the data are good enough to begin one, or that of the run to go on with."""
    check_data(config, loaders)
    if resume is not None:
        return resume.resolve().parent
    return run_folder.create(config.trainer.save_dir, config.name, datetime.now())


@contextmanager
def alone_in(run_dir: Path) -> Iterator[None]:
    """Log to a run's folder, which nobody else may train in meanwhile; that is rank 0's business."""
    if not distributed.is_first():
        yield
        return
    lock = run_folder.Lock(run_dir)
    try:
        log_to(run_dir / "train.log")
        checkpoint.remove_unfinished(run_dir)
        yield
    finally:
        lock.release()
        log_to()


def drill(config: RunConfig, trainer: Trainer, loaders: tuple[Loader, Loader | None]) -> None:
    """Take a training step and a validation of the largest images there will be, so that both are known to fit.

    Raises:
        Stopped: One does not; it names what to turn.
    """
    train_loader, val_loader = loaders
    size = size_of(config.train_loader) or largest_image(train_loader.view)
    share, channels = train_loader.batch_size // distributed.world_size(), train_loader.view.channels
    images = torch.randint(256, (share, *size, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(len(config.classes), (share, *size), dtype=torch.uint8)
    what, image = f"a step on {share} images of {size[0]}x{size[1]}", None
    if val_loader is not None:
        section = config.val_loader or validation_of(config.train_loader)
        high, wide = size_of(section) or largest_image(val_loader.view)
        image = torch.zeros(1, channels, high, wide, dtype=torch.uint8).to(trainer.device)
        what += f", or validating one of {high}x{wide},"
    try:
        trainer.rehearse(Batch(images, labels, ("drill",) * share).to(trainer.device), image)
    except (MemoryError, RuntimeError) as error:
        if not (failure := failure_of_machine(error)):
            raise
        raise Stopped(
            f"memory drill: {what} takes more than there is: {failure}. Raise trainer.accumulate, set "
            f"trainer.activation_checkpointing, or lower train_loader.args.batch_size or a crop_size; no step was taken"
        ) from error
    logger.info("memory drill: %s fits", what)


def announce(config: RunConfig, trainer: Trainer, dry: assemble.DryRun) -> None:
    """Log what is going to be trained."""
    logger.info("run folder: %s", trainer.run_dir)
    logger.info(
        "%s: %.2f M parameters, %.2f M of them trained, on %s",
        *(config.arch.type, dry.parameters / 1e6, dry.trainable / 1e6, trainer.device),
    )
    if distributed.world_size() > 1:
        share = trainer.batch_size // distributed.world_size()
        logger.info("%d processes, %d images of each step for each", distributed.world_size(), share)
    logger.debug("config: %s", dump_json(config.to_json()))
    logger.debug("model: %s", trainer.model)
    for note in notes(config, trainer):
        logger.info(note)


def start(
    config: RunConfig,
    run_dir: Path,
    device: torch.device,
    loaders: tuple[Loader, Loader | None],
    environment: dict[str, Any],
    state: Mapping[str, Any] | None,
    resume: Path | None,
    gpus: int,
    unused: bool,
) -> Trainer:
    """The trainer of a new run, or of one that goes on, with its first files written."""
    trainer = assemble.build_trainer(
        config,
        run_dir,
        device,
        loaders=loaders,
        environment=environment,
        load_weights=state is None,
        gpus=gpus,
        unused=unused,
    )
    if state is not None and resume is not None:
        trainer.resume(state, resume)
        step = trainer.progress.step
        logger.info("going on from %s at step %d of %d", resume, step, trainer.total_steps)
        if trainer.total_steps != state["total_steps"] and not isinstance(trainer.schedule, TorchSchedule):
            group = trainer.optimizer.param_groups[0]
            new = group["base_lr"] * trainer.schedule.factor(step)
            logger.info("learning rate: %.3g at the last step of %d, %.3g now", group["lr"], state["total_steps"], new)
    if not trainer.finished and distributed.is_first():
        trainer.writers = open_writers(config, run_dir, trainer.progress.step + 1 if state else None)
        run_folder.write_json(run_dir / "config.json", config.to_json())
        run_folder.write_json(run_dir / "environment.json", environment)
    return trainer


def open_writers(config: RunConfig, run_dir: Path, purge_step: int | None) -> list[Writer]:
    """Where the config wants results to be shown.

    Args:
        config: A checked config.
        run_dir: Folder of the run.
        purge_step: Steps from this one on will be taken once more, so what was shown of them is void.
    """
    log_dir, found = config.trainer.log_dir / config.name / run_dir.name, []
    for index, writer in enumerate(config.trainer.writers):
        if writer.type != "tensorboard" or config.trainer.tensorboard:
            found += open_writer(writer, f"trainer.writers[{index}]", log_dir, purge_step)
    return found


def compare(config: RunConfig, state: Mapping[str, Any], path: Path) -> None:
    """Print how the config differs from a checkpoint's, and refuse what would change the run's meaning.

    Raises:
        UserError: It names each key that may not change.
    """
    changed = differences(state["config"], config.to_json())
    refused = {key: pair for key, pair in changed.items() if key not in MAY_CHANGE}
    if refused:
        raise UserError(
            *(
                f"{key}: {show(new)}, but {path} was trained with {show(old)}. Keep that to resume, or start a new run "
                f'with "init_from".'
                for key, (old, new) in refused.items()
            )
        )
    for key, (old, new) in changed.items():
        logger.info("%s: %s instead of %s", key, show(new), show(old))


def set_threads(state: Mapping[str, Any], path: Path, device: torch.device) -> None:
    """Compute with as many threads as the checkpoint's run did, and warn where something else will change the results.

    Sums differ in their last bits with the number of threads, the version of torch and the device.
    """
    made = state["environment"]
    torch.set_num_threads(made.get("num_threads", torch.get_num_threads()))
    kind = str(made.get("device")).partition(":")[0]
    then = (made.get("versions", {}).get("torch"), made.get("num_threads"), made.get("world_size"), kind)
    now = (str(torch.__version__), torch.get_num_threads(), distributed.world_size(), device.type)
    if then != now:
        logger.warning(
            "%s was made by torch %s with %s threads in %s processes on %s, this is torch %s with %d in %d on %s: "
            "results will not be the same to the last bit.",
            *(path, *then, *now),
        )


def raise_file_limit() -> None:
    """Allow as many open files as the system grants: data workers hand over each batch through several."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows; macOS names limits that it does not keep
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_workers(config: RunConfig) -> None:
    """See to it that the batches of the data workers have a place to be handed over.

    Raises:
        Stopped: They have not.
    """
    args, size = config.train_loader.args, size_of(config.train_loader)
    if size and args["num_workers"]:
        pixels = args["batch_size"] // distributed.world_size() * size[0] * size[1]
        channels = config.arch.args.get("in_channels", 3)
        check_shared_memory(args["num_workers"], pixels * (channels + 1))


def find_run(config: RunConfig) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint of the newest run, by its step, that means the same as `config`; (None, None) if there is none.

    Of several processes rank 0 looks, and the others read what it has found.

    Raises:
        CheckpointError: The only matching runs have no checkpoint that can be used.
    """
    if distributed.world_size() == 1:
        return _find_run(config)
    path = distributed.from_first(lambda: _find_run(config)[0])
    return (None, None) if path is None else (path, checkpoint.load_run(path))


def _find_run(config: RunConfig) -> tuple[Path | None, dict[str, Any] | None]:
    best: tuple[Path, dict[str, Any]] | None = None
    broken: list[str] = []
    for folder, resolved in run_folder.past_runs(config.trainer.save_dir, config.name):
        if meaning_of(resolved) != config.meaning or run_folder.is_locked(folder):
            continue
        try:
            found = checkpoint.newest(folder)
        except CheckpointError as error:
            broken += error.problems
            continue
        if found is None:
            continue
        path, state, passed = found
        for line in passed:
            logger.warning("%s Going on from %s.", line, path)
        if best is None or state["step"] >= best[1]["step"]:
            best = path, state
    if best is None and broken:
        raise CheckpointError(*broken)
    if best is None:
        logger.info("--resume auto: no earlier run of '%s' with this config; starting afresh.", config.name)
        return None, None
    return best


def check_data(config: RunConfig, loaders: tuple[Loader, Loader | None]) -> None:
    """Look at some labels of both sets, and say what guessing without looking at the image would score."""
    train_loader, val_loader = loaders
    names = config.classes.names
    for kind, loader in (("training", train_loader), ("validation", val_loader)):
        if loader is not None:
            found = assemble.look_at(loader.view)
            logger.info("%s: %d images; %s", kind, len(loader.view), found.describe(names))
            if kind == "training" and np.count_nonzero(found.pixels) < 2:
                raise DataError(only_one_class(found, names))


def only_one_class(found: DataCheck, names: Sequence[str]) -> str:
    """What to say of labels in which nothing can be told apart."""
    if not found.labels:
        return "train_loader: none of its labels can be read. `python prepare.py check` says why."
    seen = [name for name, pixels in zip(names, found.pixels, strict=True) if pixels]
    if not seen:
        return 'train_loader: the labels hold void only. Say which values mean classes with "label_map" or "classes".'
    other = next(name for name in names if name not in seen)
    void = ", and void (255)" if found.void else ""
    cure = f'Say which values mean the others: {{"name": "{other}", "value": 255}} in "classes" or "label_map"'
    return f"train_loader: the labels hold no class but {', '.join(map(repr, seen))}{void}. {cure}."


def notes(config: RunConfig, trainer: Trainer) -> list[str]:
    """What a reader of the figures should know."""
    found = []
    if trainer.model.backbone_modules() and not config.arch.args["pretrained"] and config.init_from is None:
        found.append(RANDOM_START)
    synchronised = (nn.SyncBatchNorm, SynchronizedBatchNorm)
    if config.use_synch_bn and not any(isinstance(module, synchronised) for module in trainer.model.modules()):
        found.append("use_synch_bn: no effect, since it takes more than one GPU and there is one, or none")
    return found


def way_on(trainer: Trainer) -> str:
    """What to do with a finished run."""
    if trainer.progress.step < trainer.total_steps:
        return f"It was stopped early, {trainer.config.early_stop} epochs after its best."
    return f"Raise trainer.{'max_steps' if trainer.config.max_steps else 'epochs'} to go on."


def finish(config: RunConfig, trainer: Trainer, loaders: tuple[Loader, Loader | None]) -> None:
    """Train to the end, and leave the figures and some predictions in the run folder."""
    try:
        progress = trainer.fit()
    except TimeLimit as limit:
        logger.info(str(limit))
        return
    distributed.leave()  # what is left to do takes one process
    if not distributed.is_first():
        return
    run_dir, val_loader = trainer.run_dir, loaders[1]
    best = run_dir / "best_model.pth"
    used = best if best.exists() else run_dir / "last.pth"
    epoch = progress.best_epoch or progress.epoch
    results: dict[str, Any] = {
        "checkpoint": used.name,
        "epoch": epoch,
        "steps": progress.step,
        "protocol": trainer.description["protocol"],
        "metrics": metrics_at(trainer, epoch),
        "notes": notes(config, trainer),
    }
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


def metrics_at(trainer: Trainer, epoch: int) -> dict[str, Any]:
    """The line of metrics.jsonl of `epoch`; where it has several, that of the best model."""
    records = [record for record in trainer.history if record["epoch"] == epoch]
    best = [record for record in records if record.get(trainer.monitor.key) == trainer.progress.best_value]
    return (best or records or [{}])[0]


def has_results(run_dir: Path, steps: int) -> bool:
    """Whether a finished run got as far as writing the figures of its `steps` steps."""
    try:
        return json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["steps"] == steps
    except (OSError, ValueError, KeyError, TypeError):
        return False


def report(results: Mapping[str, Any], config: RunConfig, run_dir: Path) -> None:
    """Print the figures of the model that the run leaves behind, and where to look."""
    metrics, names = results["metrics"], config.classes.names
    if "val/Mean_IoU" in metrics:
        width = max(map(len, names))
        for name in names:
            value = metrics.get(f"val/Class_IoU/{name}")
            logger.info("  %-*s  %s", width, name, "-" if value is None else f"{value:.3f}")
        logger.info(
            "Mean_IoU %.4f, Pixel_Accuracy %.4f at epoch %d. Guessing each place's most frequent class, without "
            "looking at the image, scores Mean_IoU %.4f.",
            *(metrics["val/Mean_IoU"], metrics["val/Pixel_Accuracy"], results["epoch"]),
            results["location_prior"]["Mean_IoU"],
        )
    logger.info("model:       %s", run_dir / results["checkpoint"])
    if (run_dir / "predictions").is_dir():
        logger.info("predictions: %s", run_dir / "predictions")
    if config.trainer.tensorboard:
        logger.info("curves:      tensorboard --logdir %s", config.trainer.log_dir)


def history_curves(history: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Losses and mean IoU by epoch, (H, W, 3) uint8, as far as `history` has them."""
    lines = {key: [(r["epoch"], r[key]) for r in history if key in r] for key in CURVES}
    return curves({key: line for key, line in lines.items() if line}, x_label="epochs")


def write_predictions(trainer: Trainer, used: Path, loader: Loader) -> None:
    """Predict some validation images with the weights in `used`; one colored PNG each, and some in one picture.

    Raises:
        OSError: They cannot be written.
    """
    folder = trainer.run_dir / "predictions"
    folder.mkdir(exist_ok=True)
    state = checkpoint.load_run(used)
    model, classes = trainer.model, trainer.classes
    checkpoint.load_weights(model, checkpoint.judged_weights_of(state, used), used)
    predictor = Predictor(model, classes, state)
    rows: list[np.ndarray] = []
    for index in range(len(loader.view)):
        if len(rows) == EXAMPLES:
            break
        try:
            item = loader.view[0, index]
        except DataError:
            if loader.view.on_bad_sample == "stop":
                raise
            continue
        labels = predictor.predict_image(item.image)
        write_label(folder / f"{Path(item.key).name}.png", labels, png_palette(classes))
        rows.append(comparison(item.image, [item.label, labels], classes))
    picture = np.concatenate([*rows[:ROWS], legend(classes)])
    write_picture(folder.parent / "predictions.png", picture)
