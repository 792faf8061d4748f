"""From a config to objects: with `run_config.py`, the only files that know everybody."""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dataloader  # noqa: F401  registers
from base.base_dataloader import Loader, LoaderOptions
from base.base_dataset import BaseDataset, JoinedView, View
from base.base_model import BaseModel
from base.base_trainer import Monitor
from base.data_check import DataCheck, check_samples
from dataloader.doctor import count_labels, default_cache, examine, has_files, remembered
from dataloader.sample_cache import build_cache
from dataloader.transforms import ChainOptions, build_chain
from models.build import build_model
from models.fine_tuning import (
    Transfer,
    class_axes,
    match_classes,
    public_name,
    read_start,
    transfer,
    transfer_by_class_name,
)
from run_config import (
    InitFrom,
    RunConfig,
    normalization_of,
    options_of,
    protocol_of,
    result_keys,
    size_of,
    split_loader_args,
    training_sections,
    validation_of,
)
from trainer import PRECISIONS, Trainer
from utils import checkpoint, distributed
from utils.activation_checkpointing import blocks_of, checkpoint_activations
from utils.classes import IGNORE, ClassTable, as_colors
from utils.criterion import build_criterion, needs_class_pixels
from utils.devices import choose_precision
from utils.errors import CheckpointError, ConfigError, UserError
from utils.lr_scheduler import build_scheduler
from utils.optimizers import build_optimizer
from utils.predict import Predictor
from utils.registry import DATASETS
from utils.reproducibility import stream
from utils.schema import Component
from utils.sync_batchnorm import SynchronizedDataParallel, convert_sync_batchnorm

logger = logging.getLogger("segwright")


def import_modules(names: Sequence[str]) -> list[str]:
    """Import third-party modules, which register their components; also those in ``SEGWRIGHT_IMPORT``.

    Raises:
        UserError: One cannot be imported.
    """
    wanted = [*names, *filter(None, os.environ.get("SEGWRIGHT_IMPORT", "").replace(",", " ").split())]
    for name in wanted:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import {name}: {error}. Name a module that Python finds from here.") from error
        except Exception as error:  # whatever the code of others raises
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"--import {name}: {what}. Mend the module; --debug shows where it fails.") from error
    return wanted


def require_modules(state: Mapping[str, Any], modules: Sequence[str], path: Path) -> None:
    """See to it that the third-party modules that a checkpoint was made with have been imported.

    Raises:
        CheckpointError: It says which ones to import.
    """
    missing = [name for name in state["environment"].get("modules", []) if name not in modules]
    if missing:
        needed = " ".join(f"--import {name}" for name in missing)
        raise CheckpointError(f"{path}: was made with components of your own. Add {needed}.")


def build_dataset(loader: Component, *, where: str, seed: int, ignore_index: int = IGNORE) -> BaseDataset:
    """The dataset that a loader section names.

    Raises:
        DataError: Its files are not there or do not fit together.
    """
    args = split_loader_args(loader.type, loader.args)["dataset"]
    dataset = DATASETS.build(Component(loader.type, args), where=where, seed=seed)
    dataset.classes = dataset.classes.ignoring(ignore_index)
    return dataset


def build_view(
    loader: Component,
    dataset: BaseDataset,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    where: str = "train_loader",
    first: int = 0,
) -> View:
    """`dataset`, augmented as a loader section says, and decoded beforehand if it says so.

    Raises:
        UserError: There is no room for decoded images.
    """
    chain: ChainOptions = options_of(ChainOptions, loader.type, loader.args, "chain")
    options: LoaderOptions = options_of(LoaderOptions, loader.type, loader.args, "loader")
    fill, read = tuple(255 * mean for mean in dataset.mean), None
    if len(fill) != dataset.channels:  # its mean is not known here
        fill = (0,)
    if options.cache:
        place, workers = default_cache() / "samples", options.num_workers
        cache = build_cache(dataset, options.cache, folder=place, name=where, indices=indices, num_workers=workers)
        read = cache.read
    return View(
        dataset,
        build_chain(chain, fill, where="args"),
        seed=seed,
        indices=indices,
        on_bad_sample=options.on_bad_sample,
        read=read,
        first=first,
    )


def hold_out(length: int, val_split: float, seed: int) -> tuple[list[int], list[int]]:
    """Indices to train on and to validate on.

    Args:
        length: Examples there are.
        val_split: To hold out: a share below 1, or a number.
        seed: Decides which.

    Raises:
        ConfigError: Nothing would be left on one of the sides.
    """
    count = round(length * val_split) if val_split < 1 else int(val_split)
    if not 0 < count < length:
        raise ConfigError(f"train_loader.args.val_split: {val_split:g} of {length} images. Leave some on both sides.")
    order = stream(seed, "split").permutation(length)
    return sorted(order[count:].tolist()), sorted(order[:count].tolist())


def build_loaders(config: RunConfig, *, pin_memory: bool = False, cached: bool = True) -> tuple[Loader, Loader | None]:
    """The training loader and, unless the trainer does not validate, the validation loader.

    Args:
        config: A checked config.
        pin_memory: Put batches where a GPU can fetch them.
        cached: Decode images beforehand where the config says so, which takes as long as an epoch's reading.

    Raises:
        UserError: The data is not there or cannot be used.
    """
    seed, sections = config.seed, training_sections(config)
    if not cached:
        sections = {where: without_cache(section) for where, section in sections.items()}
    datasets = {
        where: build_dataset(section, where=where, seed=seed, ignore_index=config.ignore_index)
        for where, section in sections.items()
    }
    section, dataset = next(iter(sections.values())), next(iter(datasets.values()))
    options: LoaderOptions = options_of(LoaderOptions, section.type, section.args, "loader")
    kept, held_out, val_set, val_section = None, None, dataset, config.val_loader
    if val_section is not None and not cached:
        val_section = without_cache(val_section)
    if options.val_split:
        kept, held_out = hold_out(len(dataset), options.val_split, seed)
        val_section = validation_of(section)
    views: list[View] = []
    for where, each in datasets.items():
        first = sum(len(view.dataset) for view in views)
        views.append(build_view(sections[where], each, seed=seed, indices=kept, where=where, first=first))
    train = Loader(
        views[0] if len(views) == 1 else JoinedView(views),
        options.batch_size,
        num_workers=options.num_workers,
        training=True,
        shuffle=options.shuffle,
        drop_last=options.drop_last,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=pin_memory,
        size=size_of(section),
    )
    if not config.trainer.val or val_section is None:
        return train, None
    if held_out is None:
        val_set = build_dataset(val_section, where="val_loader", seed=seed, ignore_index=config.ignore_index)
    return train, build_val_loader(val_section, val_set, seed=seed, indices=held_out, pin_memory=pin_memory)


def without_cache(section: Component) -> Component:
    """A loader section that reads its files whenever they are wanted."""
    return Component(section.type, {**section.args, "cache": None})


def build_val_loader(
    section: Component,
    dataset: BaseDataset,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    pin_memory: bool = False,
) -> Loader:
    """A loader to evaluate with: native images one by one, crops in batches."""
    options: LoaderOptions = options_of(LoaderOptions, section.type, section.args, "loader")
    chain: ChainOptions = options_of(ChainOptions, section.type, section.args, "chain")
    return Loader(
        build_view(section, dataset, seed=seed, indices=indices, where="val_loader"),
        max(options.batch_size if chain.crop else 1, distributed.world_size()),  # each process at least one image
        num_workers=options.num_workers,
        training=False,
        shuffle=False,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=pin_memory,
        size=chain.crop,
    )


def build_evaluation_loader(config: RunConfig, section: Component) -> Loader:
    """The loader of an evaluation section: the images held out from training where it splits one off."""
    dataset = build_dataset(section, where="evaluation", seed=config.seed, ignore_index=config.ignore_index)
    held_out = hold_out(len(dataset), section.args["val_split"], config.seed)[1] if section.args["val_split"] else None
    return build_val_loader(section, dataset, seed=config.seed, indices=held_out)


def count_classes(view: View) -> DataCheck | None:
    """Pixels of each class in all labels of `view`, as `prepare.py check` counted them; None unless it did.

    Raises:
        DataError: It found an example that cannot be used, and that is still so.
    """
    counts = [_count_classes(part) for part in view.views]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return None
    return DataCheck(*(sum(numbers) for numbers in zip(*map(astuple, known), strict=True)))  # type: ignore[arg-type]


def _count_classes(view: View) -> DataCheck | None:
    records = remembered(view.dataset, [int(index) for index in view.indices], default_cache())
    if records is None:
        return None
    pixels, void, unusable = count_labels(view.dataset, records)
    if view.on_bad_sample == "stop" and unusable:
        view.dataset.read(unusable[0])
        return None  # nothing is wrong with it any more
    return DataCheck(len(records) - len(unusable), pixels, void)


def look_at(view: View) -> DataCheck:
    """What is known of all labels of `view` or, where nothing is, what some of them say.

    Raises:
        DataError: One cannot be used.
    """
    return count_classes(view) or check_samples(view)


def class_pixels(view: View, num_workers: int = 0) -> list[int]:
    """Labelled pixels of each class, counted over all labels of `view`; of files, they are remembered.

    Raises:
        DataError: One cannot be used.
    """
    for part in view.views:
        if has_files(part.dataset) and count_classes(part) is None:
            examine(part.dataset, name="labels", images=False, num_workers=num_workers, cache=default_cache())
    if (known := count_classes(view)) is not None:
        return known.pixels.tolist()
    counts = np.zeros(256, np.int64)
    for label in view.labels():
        counts += np.bincount(label.ravel(), minlength=256)
    return counts[: len(view.classes)].tolist()


def build_network(config: RunConfig, *, load_weights: bool = True) -> BaseModel:
    """The model, as the config describes it, on the current default device."""
    numbers = normalization_of(config)
    return build_model(
        config.arch,
        num_classes=len(config.classes),
        mean=numbers["mean"],
        std=numbers["std"],
        load_weights=load_weights,
    )


def build_trainer(
    config: RunConfig,
    run_dir: Path,
    device: torch.device,
    *,
    loaders: tuple[Loader, Loader | None],
    environment: Mapping[str, Any],
    load_weights: bool = True,
    gpus: int = 1,
    unused: bool = False,
) -> Trainer:
    """Everything that trains, ready to `fit` or to `resume`.

    Args:
        config: A checked config.
        run_dir: Folder of the run; exists.
        device: Where to compute.
        loaders: From `build_loaders`.
        environment: What checkpoints record about where they were made.
        load_weights: Start from pretrained weights or `init_from`, if the config says so; False where a checkpoint
            replaces them.
        gpus: How many of them this process uses, by threads.
        unused: Whether the loss leaves some trained parameters alone, see `DryRun`.

    Raises:
        UserError: Weights cannot be loaded, or parts do not fit.
    """
    train_loader, val_loader = loaders
    seed, trainer = config.seed, config.trainer
    torch.manual_seed(int(stream(seed, "init").integers(2**63)))
    model = build_network(config, load_weights=load_weights)
    check_parts(config, model)
    check_last_batch(config, model, len(train_loader.view))
    if config.use_synch_bn and device.type == "cuda":
        synchronise_norms(model, gpus)
    if load_weights and config.start is not None:
        logger.info("init_from %s", initialise_from(config.start, config, model))
    if trainer.deterministic:
        make_deterministic(model, device)
    model.to(device)
    if trainer.channels_last is True or (trainer.channels_last == "auto" and device.type == "cuda"):
        model.to(memory_format=torch.channels_last)
    steps = len(train_loader)
    facts: dict[str, Any] = {"num_classes": len(config.classes), "class_names": config.classes.names}
    if needs_class_pixels(config.loss):
        facts["class_pixels"] = class_pixels(train_loader.view, config.train_loader.args["num_workers"])
    criterion = build_criterion(loss_of(config), aux_factor=config.aux_factor, where="loss", **facts).to(device)
    optimizer = build_optimizer(config.optimizer, model, where="optimizer", fused=device.type == "cuda")
    total = trainer.total_steps(steps)
    schedule = build_scheduler(config.lr_scheduler, optimizer, total_steps=total, steps_per_epoch=steps)
    network: nn.Module
    if gpus > 1:
        network = SynchronizedDataParallel(model, list(range(gpus)))
    else:
        network = distributed.wrap(model, unused=unused)
    return Trainer(
        trainer,
        run_dir,
        model=model,
        network=network,
        criterion=criterion,
        optimizer=optimizer,
        schedule=schedule,
        train_loader=train_loader,
        val_loader=val_loader,
        classes=config.classes,
        seed=seed,
        monitor=Monitor.parse(trainer.monitor, result_keys(config)),
        description=describe(config, environment),
    )


def synchronise_norms(model: BaseModel, gpus: int) -> None:
    """Let all batch norms of `model` see the images of all GPUs, if there are several: in processes, or in threads."""
    if distributed.world_size() > 1:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif gpus > 1:
        convert_sync_batchnorm(model)
    model.train(model.training)  # what is frozen stays so


def initialise_from(start: InitFrom, config: RunConfig, model: BaseModel) -> Transfer:
    """Copy the weights of another network as far as they fit, and say what became of them.

    Raises:
        UserError: There are none, or none fit.
    """
    found, names = read_start(start.path, where="init_from"), config.classes.names
    if not start.by_class_name:
        if found.classes not in (None, names) and match_classes(names, found.classes or ()):
            hint = '{"path": ..., "by_class_name": true} copies what it knows of those with the same name'
            logger.warning("init_from: %s has other classes, or another order of them; %s.", found.source, hint)
        return transfer(model, found)
    with torch.device("meta"):
        larger = build_model(config.arch, num_classes=len(names) + 1, load_weights=False)
    axes = class_axes(model, larger, len(names))
    return transfer_by_class_name(model, found, names, axes, where="init_from.by_class_name")


def check_weights(config: RunConfig) -> None:
    """See to it that the files of weights that a config names can be used; nothing is downloaded.

    Raises:
        UserError: They cannot.
    """
    paths = [config.arch.args["pretrained"]]
    if config.start is not None and public_name(config.start.path, where="init_from") is None:
        paths.append(config.start.path)
    for path in paths:
        if isinstance(path, Path):
            checkpoint.weights_of(checkpoint.load(path), path)


def make_deterministic(model: BaseModel, device: torch.device) -> None:
    """Forbid operations that differ from run to run, on a GPU; a CPU has none.

    Raises:
        ConfigError: The model needs one.
    """
    if device.type != "cuda":
        return
    if model.unpools:
        raise ConfigError(
            "trainer.deterministic: the model unpools, which CUDA only does in an order that differs from run to run. "
            "Set it to false, or use another arch."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first call
    torch.use_deterministic_algorithms(True)


def loss_of(config: RunConfig) -> Any:
    """The "loss" section, a single term without its list, so that errors name it as it was written."""
    return config.loss[0] if len(config.loss) == 1 else config.loss


def describe(config: RunConfig, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says about itself, in plain values."""
    resolved, classes = config.to_json(), config.classes
    val_section = (config.val_loader or validation_of(config.train_loader)) if config.trainer.val else None
    return {
        "arch": resolved["arch"],
        "config": resolved,
        "meaning_hash": config.meaning,
        "classes": list(classes.names),
        "palette": [list(color) for color in classes.colors],
        "left_out": list(classes.left_out),
        "normalization": normalization_of(config),
        "protocol": protocol_of(val_section),
        "environment": dict(environment),
    }


def check_parts(config: RunConfig, model: BaseModel) -> None:
    """Refuse batches that are too small for batch norm behind global pooling.

    Raises:
        ConfigError: A part of a step has one image.
    """
    shares = config.trainer.accumulate * distributed.world_size()
    size = config.train_loader.args["batch_size"] // shares
    if model.needs_batch and size < 2:
        raise ConfigError(
            f"train_loader.args.batch_size: a part of a step has {size} image, and {config.arch.type} needs 2 in "
            f"training, for its batch norm behind global pooling. Use batch_size {2 * shares} or "
            f"more, or a smaller trainer.accumulate."
        )


def check_last_batch(config: RunConfig, model: BaseModel, images: int) -> None:
    """Refuse an epoch's last batch if it is too small for batch norm behind global pooling.

    Raises:
        ConfigError: A part of it has one image.
    """
    last, parts = images % config.train_loader.args["batch_size"], config.trainer.accumulate
    kept = config.train_loader.args["drop_last"] is False
    if kept and model.needs_batch and 0 < last < 2 * parts:
        raise ConfigError(
            f"train_loader.args.drop_last: the last batch of an epoch has {last} of {images} images, and "
            f"{config.arch.type} needs 2 in each part of a step. Set it to true, or use another batch_size."
        )


# ---------------------------------------------------------------------------------------------- the dry run


@dataclass(frozen=True)
class DryRun:
    """What a model would be and need, found without memory or time.

    Args:
        parameters: Number of parameters.
        trainable: Number of those that training changes.
        logits: Shape of the logits of one part of a step.
        activation_bytes: What the forward pass of one part keeps for the backward pass.
        image_size: Height and width of the images assumed.
        unused: Whether some trained parameters take no part in the output.
    """

    parameters: int
    trainable: int
    logits: tuple[int, ...]
    activation_bytes: int
    image_size: tuple[int, int]
    unused: bool


def check_training(config: RunConfig, model: BaseModel) -> None:
    """Build loss and optimiser for `model`, for what only they can find wrong.

    Raises:
        ConfigError: A class or a part of the model does not exist, or torch refuses an argument.
    """
    names = config.classes.names
    facts = {"num_classes": len(names), "class_names": names, "class_pixels": [1] * len(names)}
    build_criterion(loss_of(config), aux_factor=config.aux_factor, where="loss", **facts)
    optimizer = build_optimizer(config.optimizer, model, where="optimizer")
    build_scheduler(config.lr_scheduler, optimizer, total_steps=config.trainer.max_steps or 1000, steps_per_epoch=10)


def learning_rates(config: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """Learning rate of each group of parameters, by name, at up to 2,000 steps (step, rate) of the whole run.

    Needs the training set, for the length of an epoch, but neither memory nor time for the model.

    Raises:
        ConfigError: The schedule depends on what validation gives.
        DataError: The data is not there.
    """
    if config.lr_scheduler.type == "ReduceLROnPlateau":
        raise ConfigError("lr_scheduler: ReduceLROnPlateau depends on results. --draw-schedule needs another type.")
    steps = len(build_loaders(config)[0])
    total = config.trainer.total_steps(steps)
    with torch.device("meta"):
        model = build_network(config, load_weights=False)
    optimizer = build_optimizer(config.optimizer, model, where="optimizer")
    rates: dict[str, list[tuple[int, float]]] = {group["name"]: [] for group in optimizer.param_groups}
    with warnings.catch_warnings():  # torch's own schedulers miss the steps of the optimiser
        warnings.simplefilter("ignore", UserWarning)
        schedule = build_scheduler(config.lr_scheduler, optimizer, total_steps=total, steps_per_epoch=steps)
        for step in sorted({*range(0, total, -(-total // 2000)), total - 1}):
            schedule.apply(optimizer, step)
            for group in optimizer.param_groups:
                rates[group["name"]].append((step, float(group["lr"])))
    return rates


def dry_run(config: RunConfig) -> DryRun:
    """Build the model on the meta device and run one training forward pass at the crop size.

    Raises:
        ConfigError: The bricks do not fit, or the batch is too small.
    """
    train, args = config.train_loader, config.train_loader.args
    chain: ChainOptions = options_of(ChainOptions, train.type, args, "chain")
    size = chain.crop or (512, 512)
    with torch.device("meta"):
        model = build_network(config, load_weights=False)
    check_parts(config, model)
    check_training(config, model)
    count = args["batch_size"] // (config.trainer.accumulate * distributed.world_size())
    channels = config.arch.args.get("in_channels", 3)
    images = torch.empty(count, channels, *size, dtype=torch.uint8, device="meta")
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            kept[storage._cdata] = storage.nbytes()
        alive.append(tensor)  # a freed storage's number could be given to another
        return tensor

    def keep_inputs(module: nn.Module, inputs: Sequence[Any]) -> None:
        for each in inputs:
            for tensor in each if isinstance(each, list | tuple) else [each]:
                keep(tensor)

    alive: list[torch.Tensor] = []
    if config.trainer.activation_checkpointing:  # torch keeps the inputs of blocks without telling the hooks below
        for block in blocks_of(model):
            block.register_forward_pre_hook(keep_inputs)
        checkpoint_activations(model)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.train()(images)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"arch: cannot train on images of {size[0]}x{size[1]} ({reason}). Use another crop_size or arch."
        ) from None
    parameters = list(model.parameters())
    return DryRun(
        sum(p.numel() for p in parameters),
        sum(p.numel() for p in parameters if p.requires_grad),
        tuple(output.logits.shape),
        sum(kept.values()),
        size,
        has_unused(parameters, [output.logits, *output.aux]),
    )


def has_unused(parameters: Sequence[nn.Parameter], outputs: Sequence[torch.Tensor]) -> bool:
    """Whether some of `parameters` that are trained took no part in computing `outputs`."""
    ahead, seen = [output.grad_fn for output in outputs if output.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += [function for function, _ in node.next_functions if function]
    reached = {id(node.variable) for node in seen if hasattr(node, "variable")}
    return any(parameter.requires_grad and id(parameter) not in reached for parameter in parameters)


def load_predictor(
    path: Path,
    device: torch.device,
    *,
    precision: str = "fp32",
    modules: Sequence[str] = (),
    config: RunConfig | None = None,
) -> Predictor:
    """The model in a checkpoint, ready to predict; the averaged weights, where there are some.

    Args:
        path: A checkpoint or, with `config`, any file of weights.
        device: Where to compute.
        precision: Arithmetic: fp32, bf16, fp16, or auto.
        modules: Names of third-party modules that have been imported.
        config: Describes the model instead of the checkpoint.

    Raises:
        CheckpointError: The file is no checkpoint of ours, is damaged, or needs modules that were not imported.
    """
    if config is None:
        state = about = checkpoint.load_run(path)
        require_modules(state, modules, path)
    else:
        state = checkpoint.load(path)
        about = {**describe(config, {}), "epoch": state.get("epoch"), "step": state.get("step")}
    model = build_model(
        about["arch"],
        num_classes=len(about["classes"]),
        mean=about["normalization"]["mean"],
        std=about["normalization"]["std"],
        load_weights=False,
    )
    checkpoint.load_weights(model, checkpoint.judged_weights_of(state, path), path)
    classes = ClassTable(
        tuple(about["classes"]),
        as_colors(about["palette"]),
        tuple((index,) for index in range(len(about["classes"]))),
        left_out=tuple(about["left_out"]),
    )
    about = {key: about[key] for key in ("arch", "config", "classes", "normalization", "protocol", "epoch", "step")}
    return Predictor(model.to(device), classes, about, PRECISIONS[choose_precision(precision, device)])
