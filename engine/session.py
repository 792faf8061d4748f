"""One training session: preflight, start, fit, results."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from base.base_dataloader import Loader
from base.base_trainer import TimeLimit, Writer
from engine import assemble, dry_run, results
from engine.config import RunConfig, validating_as_begun
from engine.preflight import check_data, check_last_batch, check_workers, memory_check, raise_file_limit
from engine.reporting.recorder import note_stop
from engine.reporting.write import record_run
from engine.resume import Resume, set_aside_later
from trainer import Trainer
from utils import checkpoint, distributed, run_folder
from utils.config import dump_json
from utils.errors import Interrupted, Stopped, UserError
from utils.log import log_to
from utils.lr_scheduler import TorchSchedule
from utils.writers import RunFacts, open_writer

logger = logging.getLogger("segwright")

BYTES_PER_PARAMETER = 12  # of a checkpoint: the weight and what an optimizer such as Adam keeps of it, in float32


@dataclass(frozen=True, kw_only=True)
class Session:
    """What is settled before a run has a folder.

    Args:
        config: A checked config.
        device: Where to compute.
        loaders: The training loader and the validation loader, if there is one.
        dry: What the network is and needs.
        modules: Names of third-party modules that have been imported.
        resume: Checkpoint to go on from; None for a new run.
        gpus: How many of them this process uses, by threads.
    """

    config: RunConfig
    device: torch.device
    loaders: tuple[Loader, Loader | None]
    dry: dry_run.DryRun
    modules: Sequence[str]
    resume: Resume | None
    gpus: int


def train(
    config: RunConfig,
    device: torch.device,
    *,
    modules: Sequence[str] = (),
    resume: Resume | None = None,
    gpus: int = 1,
) -> Path:
    """Train as `config` says, or go on where a checkpoint stopped.

    Args:
        config: A checked config.
        device: Where to compute.
        modules: Names of third-party modules that have been imported.
        resume: Checkpoint to go on from; None for a new run.
        gpus: How many of them this process uses, by threads.

    Returns:
        The run's folder.

    Raises:
        UserError: Config, data or checkpoint do not fit together; nothing has been started.
        Stopped: The environment or a NaN ended the training.
        Interrupted: A signal did, and all is saved.
    """
    if resume is not None:
        resume.compare(config)
        config = validating_as_begun(config, resume.checkpoint["config"])
        resume.set_threads(device)
    session = preflight(config, device, modules=modules, resume=resume, gpus=gpus)
    if resume is not None:
        resume.compare_images(session.loaders)
    run_dir = distributed.broadcast_object(lambda: open_folder(session))
    with alone_in(run_dir):
        trainer = start(session, run_dir)
        if trainer.finished and results.has_results(run_dir, trainer.progress.step):
            logger.info("the run is finished: %d steps. %s", trainer.progress.step, results.way_on(trainer))
        elif fit(trainer):
            distributed.leave()  # what is left to do takes one process
            if distributed.is_first():
                results.write(config, trainer, session.loaders)
    return run_dir


def preflight(
    config: RunConfig, device: torch.device, *, modules: Sequence[str], resume: Resume | None, gpus: int
) -> Session:
    """Check all that can be checked without a run folder.

    Raises:
        UserError: The network cannot be built, or the data is not there.
        Stopped: The machine has no room for the data workers.
    """
    raise_file_limit()
    dry = dry_run.dry_run(config)
    loaders = assemble.build_loaders(config, pin_memory=device.type == "cuda")
    check_last_batch(config, len(loaders[0].view), needs_batch=dry.needs_batch)
    check_workers(config, loaders[0])
    return Session(config=config, device=device, loaders=loaders, dry=dry, modules=modules, resume=resume, gpus=gpus)


def open_folder(session: Session) -> Path:
    """Make the folder of a new run, if the data are good enough to begin one; or give that of the run to go on with."""
    check_data(session.config, session.loaders)
    if session.resume is not None:
        return session.resume.path.resolve().parent
    return run_folder.create(session.config.trainer.save_dir, session.config.name, datetime.now())


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


def start(session: Session, run_dir: Path) -> Trainer:
    """Make the trainer of a new run, or of one that goes on, with its first files written and its memory tried.

    Raises:
        UserError: Weights cannot be loaded, or parts do not fit; the folder of a new run is gone again.
        Stopped: The disk or the memory does not suffice.
    """
    config, resume = session.config, session.resume
    environment = run_folder.environment(str(session.device), config.seed, session.modules)
    try:
        run_folder.check_space(run_dir, BYTES_PER_PARAMETER * session.dry.parameters)
        trainer = build(session, run_dir, environment)
    except (UserError, Stopped):
        if resume is None and distributed.is_first():
            run_folder.remove_unstarted(run_dir)
        raise
    announce(config, trainer, session.dry)
    if resume is None and config.trainer.wants_memory_check(session.device.type):
        memory_check(config, trainer, session.loaders)
    return trainer


def build(session: Session, run_dir: Path, environment: dict[str, Any]) -> Trainer:
    """Build the trainer, put it where a checkpoint stopped, and write the first files of the run."""
    config, resume = session.config, session.resume
    trainer = assemble.build_trainer(
        config,
        run_dir,
        session.device,
        loaders=session.loaders,
        environment=environment,
        begun=None if resume is None else resume.checkpoint,
        gpus=session.gpus,
        unused=session.dry.unused,
    )
    if resume is not None:
        trainer.resume(resume.checkpoint, resume.path)
        set_aside_later(trainer)
        announce_resume(trainer, resume)
    if not trainer.finished and distributed.is_first():
        # Steps from the next one on will be taken once more, so what was shown of them is void.
        purge_step = None if resume is None else trainer.progress.step + 1
        resumed_at = None if resume is None else trainer.progress.step
        facts = results.run_facts(trainer)
        recorder = record_run(run_dir, trainer.protocol.to_json(), config.classes, facts, resumed_at)
        trainer.writers = [*open_writers(config, run_dir, purge_step), recorder]
        run_folder.write_json(run_dir / "config.json", config.to_json())
        run_folder.write_json(run_dir / "environment.json", environment)
        run_folder.link_latest(run_dir)
    return trainer


def announce_resume(trainer: Trainer, resume: Resume) -> None:
    """Log where a run goes on, and how the learning rate changes where its planned length does."""
    step, planned = trainer.progress.step, resume.checkpoint["total_steps"]
    logger.info("going on from %s at step %d of %d", resume.path, step, trainer.total_steps)
    if trainer.total_steps != planned and not isinstance(trainer.schedule, TorchSchedule):
        group = trainer.optimizer.param_groups[0]
        rate = group["base_lr"] * trainer.schedule.factor(step)
        logger.info("learning rate: %.3g at the last step of %d, %.3g now", group["lr"], planned, rate)


def open_writers(config: RunConfig, run_dir: Path, purge_step: int | None) -> list[Writer]:
    """Open where the config wants results to be shown.

    Args:
        config: A checked config.
        run_dir: Folder of the run.
        purge_step: Forget what was shown of steps from this one on; None for nothing.
    """
    log_dir = config.trainer.log_dir / config.name / run_dir.name
    run = RunFacts(config.name, run_dir, config.to_json())
    found: list[Writer] = []
    for index, writer in enumerate(config.trainer.writers):
        if writer.type != "tensorboard" or config.trainer.tensorboard:
            found += open_writer(writer, f"trainer.writers[{index}]", log_dir, purge_step, run)
    return found


def announce(config: RunConfig, trainer: Trainer, dry: dry_run.DryRun) -> None:
    """Log what is going to be trained."""
    logger.info("run folder: %s", trainer.run_dir)
    logger.info(
        "%s: %.2f M parameters, %.2f M of them trained, on %s",
        config.arch.type,
        dry.parameters / 1e6,
        dry.trainable / 1e6,
        trainer.device,
    )
    if distributed.world_size() > 1:
        share = trainer.batch_size // distributed.world_size()
        logger.info("%d processes, %d images of each step for each", distributed.world_size(), share)
    if trainer.val_loader is not None:
        logger.info("validation of %d images: %s", len(trainer.val_loader.view), trainer.protocol.describe())
    logger.debug("config: %s", dump_json(config.to_json()))
    logger.debug("model: %s", trainer.model)
    for note in results.notes(config, trainer):
        logger.info(note)


def fit(trainer: Trainer) -> bool:
    """Train to the end; returns whether it was reached, and not `trainer.max_time` before."""
    try:
        trainer.fit()
    except (Interrupted, TimeLimit) as stop:
        reason = signal.Signals(stop.signum).name if isinstance(stop, Interrupted) else "trainer.max_time"
        if distributed.is_first():
            note_stop(trainer.run_dir, trainer.progress.step, reason)
        if isinstance(stop, Interrupted):
            raise
        logger.info(str(stop))
        return False
    if trainer.stopped_early:
        logger.info("%s", results.early_stop(trainer))
    return True
