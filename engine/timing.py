"""Measure what a config costs on this machine: a training step, a validation and memory."""

from __future__ import annotations

import gc
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from base.base_dataloader import Batch, Loader
from dataloader.tools.recipe import MEMORY, Machine, Measured
from engine.assemble import build_loaders, build_trainer
from engine.check import check_config
from engine.config import RunConfig
from engine.dry_run import dry_run
from trainer import Trainer
from utils.devices import available_memory
from utils.errors import ConfigError, DataError, failure_of_machine
from utils.losses.strips import predicted_labels
from utils.threads import number_of_cores

logger = logging.getLogger("segwright")

SECONDS, STEPS = 4.0, 12  # of measuring, but for two steps at least, and at most so many steps
WARM = 2  # steps at first that are not counted: memory is fetched, and kernels are chosen
PARAMETER = 16  # bytes: weight, gradient, momentum and average


def this_machine(pretrained: bool) -> Machine:
    """Find out what there is to train with."""
    gpus = torch.cuda.device_count()
    ram = available_memory(unknown=Machine.ram)
    memory = torch.cuda.mem_get_info()[0] if gpus else ram
    return Machine(gpus=gpus, cores=number_of_cores(), memory=memory, ram=ram, pretrained=pretrained)


def measure(raw: Mapping[str, Any], machine: Machine) -> Measured | None:
    """Take a few training steps as a config says, and validate an image; nothing of it is kept.

    Args:
        raw: A config.
        machine: This machine.

    Returns:
        What it costs; None where its memory does not suffice.

    Raises:
        UserError: The config or the data cannot be used.
    """
    config = check_config(_alone(raw))
    workers = raw["train_loader"]["args"].get("num_workers", 0)
    device = torch.device("cuda" if machine.gpus else "cpu")
    dry = dry_run(config)
    memory = dry.activation_bytes + PARAMETER * dry.parameters
    if not machine.gpus and memory > MEMORY * machine.memory:
        return None
    try:
        with tempfile.TemporaryDirectory() as folder, quiet():
            step, validation = _seconds(config, Path(folder), device, workers)
    except (MemoryError, RuntimeError) as error:
        if not failure_of_machine(error):
            raise
        return None
    finally:
        if machine.gpus:
            memory = torch.cuda.max_memory_allocated()
            gc.collect()  # a trainer refers to itself
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    return Measured(step.wall, validation.wall, memory, step.wall if machine.gpus else step.work)


def _seconds(config: RunConfig, folder: Path, device: torch.device, workers: int) -> tuple[Seconds, Seconds]:
    """Return what a step with its batch takes where so many workers read, and what validating an image takes."""
    loaders = build_loaders(config, cached=False)
    trainer = build_trainer(config, folder, device, loaders=loaders, environment={})
    batch = seconds_of_batch(trainer, device)
    if config.train.batches.cache is not None:  # what is measured here reads files
        batch = batch.without(seconds_of_reading(trainer, device))
    step = seconds_of_step(trainer, device).with_batch(batch, workers)
    return step, seconds_of_validation(trainer, loaders[1], device)


def _alone(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config that is read in this process, starts from random numbers, and has no weights to count for."""
    config = {key: value for key, value in raw.items() if key != "$schema"}
    for key in ("train_loader", "val_loader"):
        if config.get(key) is not None:
            config[key] = {**config[key], "args": {**config[key]["args"], "num_workers": 0}}
    config["arch"] = {**config["arch"], "args": {**config["arch"]["args"], "pretrained": False}}
    return config


@contextmanager
def quiet() -> Iterator[None]:
    """Log nothing but errors: what is tried is no run."""
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


class Seconds(NamedTuple):
    """How long something takes."""

    wall: float
    work: float  # of all threads together, at least

    def without(self, other: Seconds) -> Seconds:
        """Subtract what is not done after all; what was measured to be less than nothing is nothing."""
        return Seconds(max(self.wall - other.wall, 0.0), max(self.work - other.work, 0.0))

    def with_batch(self, batch: Seconds, workers: int) -> Seconds:
        """Return what a step of this takes with its batch, which is made before it or, by workers, meanwhile."""
        wall = max(self.wall, batch.wall / workers) if workers else self.wall + batch.wall
        return Seconds(wall, self.work + batch.work)


def seconds_of_batch(trainer: Trainer, device: torch.device) -> Seconds:
    """Return the median time of making a batch in this process, from files to tensors on the device."""
    batches = _endless(trainer.train_loader)

    def make() -> None:
        next(batches).to(device)

    return _median(make, device)


def seconds_of_step(trainer: Trainer, device: torch.device) -> Seconds:
    """Return the median time of a training step whose batch lies on the device."""
    trainer.model.train()
    batch = next(_endless(trainer.train_loader)).to(device)

    def take() -> None:
        trainer.train_step(batch)

    return _median(take, device)


def seconds_of_reading(trainer: Trainer, device: torch.device) -> Seconds:
    """Return the time of reading the images of a step from their files."""
    view, count = trainer.train_loader.view, trainer.train_loader.batch_size
    indices = itertools.cycle(range(len(view)))

    def read() -> None:
        for _ in range(count):
            with suppress(DataError):  # the loader passes it over as well
                view.original(next(indices))

    return _median(read, device)


def seconds_of_validation(trainer: Trainer, loader: Loader | None, device: torch.device) -> Seconds:
    """Return the median time of validating an image; 0 without validation."""
    if loader is None:
        return Seconds(0.0, 0.0)
    batches = _endless(loader)

    def validate() -> None:
        batch = next(batches).to(device)
        with torch.inference_mode(), trainer.autocast:
            logits = trainer.model.eval()(batch.images).logits
            predicted_labels(logits, (batch.labels.shape[-2], batch.labels.shape[-1]))

    wall, work = _median(validate, device)
    return Seconds(wall / loader.batch_size, work / loader.batch_size)


def _endless(loader: Loader) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other.

    Raises:
        ConfigError: There are none.
    """
    if not len(loader):
        raise ConfigError("train_loader.args.batch_size: more than there are images. Use a smaller one.")
    for epoch in itertools.count():
        yield from loader.batches(epoch)


def _median(work: Callable[[], None], device: torch.device) -> Seconds:
    """Return the median seconds of `work`, but for the first times, and the least of all threads together."""
    walls: list[float] = []
    works: list[float] = []
    begun = time.perf_counter()
    while len(walls) < WARM + 2 or (len(walls) < WARM + STEPS and time.perf_counter() - begun < SECONDS):
        start, used = time.perf_counter(), time.process_time()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
        works.append(time.process_time() - used)
    return Seconds(statistics.median(walls[WARM:]), min(works[WARM:]))
