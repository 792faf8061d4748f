"""One training session: from a checked config to a run folder with a trained model in it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from base.base_dataloader import Loader
from base.base_trainer import Writer
from engine import assemble, dry_run
from engine.config import RunConfig
from engine.preflight import check_data, check_workers, drill, raise_file_limit
from engine.reporting.write import record_run
from engine.results import finish, has_results, notes, run_facts, way_on
from engine.resume import compare, set_threads
from trainer import Trainer
from utils import checkpoint, distributed, run_folder
from utils.config import dump_json
from utils.errors import Stopped, UserError
from utils.log import log_to
from utils.lr_scheduler import TorchSchedule
from utils.writers import open_writer

logger = logging.getLogger("segwright")


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
    dry = dry_run.dry_run(config)
    loaders = assemble.build_loaders(config, pin_memory=device.type == "cuda")
    run_dir = distributed.broadcast_object(lambda: open_folder(config, loaders, resume))
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
        if resume is None and config.trainer.wants_memory_check(device.type):
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


def announce(config: RunConfig, trainer: Trainer, dry: dry_run.DryRun) -> None:
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
        going_on = trainer.progress.step if state else None
        trainer.writers = open_writers(config, run_dir, None if going_on is None else going_on + 1)
        trainer.writers.append(
            record_run(run_dir, trainer.description["protocol"], config.classes, run_facts(trainer), going_on)
        )
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
