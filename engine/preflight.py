"""What is checked between a config that is right and the first step: data, workers, weights, memory."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from base.base_dataloader import Batch, Loader
from base.base_model import BaseModel
from base.workers import check_shared_memory
from dataloader import label_statistics
from dataloader.label_statistics import DataCheck, largest_image
from engine.config import RunConfig
from engine.memory_check import try_step
from models.fine_tuning import public_name, read_initial_weights
from models.weights import public_url, read_state, where_to_get
from trainer import Trainer
from utils import distributed
from utils.errors import ConfigError, DataError, Stopped, failure_of_machine

logger = logging.getLogger("segwright")


def check_weights(config: RunConfig) -> None:
    """Read the files of weights that a config names, as training will; nothing is downloaded.

    Raises:
        UserError: One cannot be used.
    """
    pretrained = config.arch.options.pretrained
    if isinstance(pretrained, Path):
        read_state(pretrained, where="arch.args.pretrained")
    if config.start is not None and public_name(config.start.path, where="init_from") is None:
        read_initial_weights(config.start.path, where="init_from")


def source_of_weights(backbone: str) -> str:
    """Say where public weights of `backbone` can be had now: torch's cache, or by download; empty for nowhere."""
    return where_to_get(public_url(backbone))


def check_parts(config: RunConfig, model: BaseModel) -> None:
    """Refuse batches that are too small for batch norm behind global pooling.

    Raises:
        ConfigError: A part of a step has one image.
    """
    shares = config.trainer.accumulate * distributed.world_size()
    size = config.train.batches.batch_size // shares
    if model.needs_batch and size < 2 and config.arch.options.freeze_bn is not True:
        raise ConfigError(
            f"train_loader.args.batch_size: a part of a step has {size} image, and {config.arch.type} needs 2 in "
            f"training, for its batch norm behind global pooling. Use batch_size {2 * shares} or "
            f"more, or a smaller trainer.accumulate."
        )


def check_last_batch(config: RunConfig, images: int, *, needs_batch: bool) -> None:
    """Refuse an epoch's last batch if it is too small for batch norm behind global pooling.

    Args:
        config: A checked config.
        images: Of an epoch.
        needs_batch: Whether the model has such norms, see `BaseModel`.

    Raises:
        ConfigError: A part of it has one image.
    """
    last, parts = images % config.train.batches.batch_size, config.trainer.accumulate
    kept = config.train.batches.drop_last is False and config.arch.options.freeze_bn is not True
    if kept and needs_batch and 0 < last < 2 * parts:
        raise ConfigError(
            f"train_loader.args.drop_last: the last batch of an epoch has {last} of {images} images, and "
            f"{config.arch.type} needs 2 in each part of a step. Set it to true, or use another batch_size."
        )


TRIED = 16  # images whose size after the transforms is looked at
FILES = 65536  # open at once are more than any number of workers needs


def memory_check(config: RunConfig, trainer: Trainer, loaders: tuple[Loader, Loader | None]) -> None:
    """Take a training step and a validation of the largest images there will be, so that both are known to fit.

    Raises:
        Stopped: One does not; it names what to turn.
        ConfigError: `deterministic` asks for what the device cannot do.
    """
    train_loader, val_loader = loaders
    size = config.train.chain.crop or largest_image(train_loader.view)
    share, channels = train_loader.batch_size // distributed.world_size(), train_loader.view.channels
    images = torch.randint(256, (share, *size, channels), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(len(config.classes), (share, *size), dtype=torch.uint8)
    what, validated = f"a step on {share} images of {size[0]}x{size[1]}", None
    if val_loader is not None and config.validation is not None:
        high, wide = config.validation.chain.crop or largest_image(val_loader.view)
        count = -(-val_loader.batch_size // distributed.world_size())
        validated = torch.zeros(count, channels, high, wide, dtype=torch.uint8).to(trainer.device)
        what += f", or validating {'one' if count == 1 else count} of {high}x{wide},"
    try:
        try_step(trainer, Batch(images, labels, ("memory check",) * share).to(trainer.device), validated)
    except (MemoryError, RuntimeError) as error:
        if not (failure := failure_of_machine(error)):
            if (known := trainer.explain(error)) is None:
                raise
            raise known from error
        raise Stopped(
            f"memory check: {what} takes more than there is: {failure}. Raise trainer.accumulate, set "
            f"trainer.activation_checkpointing, or lower train_loader.args.batch_size or a crop_size; no step was taken"
        ) from error
    logger.info("memory check: %s fits", what)


def raise_file_limit() -> None:
    """Allow as many open files as the system grants: data workers hand over each batch through several."""
    with suppress(ImportError, ValueError, OSError):  # not on Windows; macOS names limits that it does not keep
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
        if soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_workers(config: RunConfig, loader: Loader) -> None:
    """Refuse data workers whose batches would not fit into /dev/shm, where they are handed over that way.

    Raises:
        Stopped: They would not.
    """
    batches, size = config.train.batches, config.train.chain.crop
    if not (size and batches.num_workers):
        return
    try:
        image = loader.view.original(0).image
    except DataError:  # which is said elsewhere
        return
    if image.dtype == np.uint8 and multiprocessing.get_start_method() == "fork":
        return  # base/batch_memory.py needs none
    pixels = batches.batch_size // distributed.world_size() * size[0] * size[1]
    check_shared_memory(batches.num_workers, pixels * (image.shape[2] * image.dtype.itemsize + 1))


def check_data(config: RunConfig, loaders: tuple[Loader, Loader | None]) -> None:
    """Look at some labels of both sets, and say what guessing without looking at the image would score."""
    train_loader, val_loader = loaders
    names = config.classes.names
    check_sizes(config, train_loader)
    for kind, loader in (("training", train_loader), ("validation", val_loader)):
        if loader is not None:
            found = label_statistics.look_at(loader.view)
            logger.info("%s: %d images; %s", kind, len(loader.view), found.describe(names))
            if kind == "training":
                check_classes(found, names)


def check_classes(found: DataCheck, names: Sequence[str]) -> None:
    """Refuse training labels in which nothing can be told apart.

    Raises:
        DataError: They show fewer than two classes.
    """
    if np.count_nonzero(found.pixels) < 2:
        raise DataError(only_one_class(found, names))


def check_sizes(config: RunConfig, loader: Loader) -> None:
    """Refuse a training set whose images could not stand in one batch, as far as some of them show it.

    Raises:
        ConfigError: Two of them differ in size.
    """
    if config.train.chain.crop is not None or loader.batch_size // distributed.world_size() < 2:
        return
    view = loader.view
    found: dict[tuple[int, ...], str] = {}
    for index in np.linspace(0, len(view) - 1, min(len(view), TRIED)).astype(int).tolist():
        try:
            item = view[0, index]
        except DataError:  # whoever reads it next says so
            continue
        found.setdefault(item.label.shape, item.key)
        if len(found) > 1:
            (first, key), (second, other) = found.items()
            key_of_size = "crop_size" if config.train.chain.transforms is None else "transforms"
            raise ConfigError(
                f"train_loader.args.{key_of_size}: '{key}' comes out as {first[0]}x{first[1]} and '{other}' as "
                f"{second[0]}x{second[1]}, which do not fit into one batch. End with a crop, or use batch_size 1."
            )


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
