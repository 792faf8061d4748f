"""From a checked config to objects: loaders, network, trainer, predictor."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from base.base_dataloader import Loader
from base.base_dataset import DatasetView, JoinedDatasetView
from base.base_model import BaseModel
from base.base_trainer import TrainerConfig
from base.monitor import Monitor
from dataloader.build import LoaderConfig, build_dataset, build_val_loader, build_view
from dataloader.hold_out import hold_out
from dataloader.label_statistics import class_pixels
from dataloader.scan import default_cache
from dataloader.transforms.preparation import (
    ImageAlone,
    preparation_of,
    read_preparation,
    training_crop,
    validated_chain,
)
from engine.config import (
    RunConfig,
    evaluation_data,
    hash_of_view,
    normalization_of,
    result_keys,
    training_sections,
    with_images,
)
from engine.exporting import read as exported
from engine.exporting.formats import format_of
from engine.preflight import check_parts
from models.build import build_model
from models.encoder_decoder import EncoderDecoder
from models.feature_cache import FeatureCache, maps_taken
from models.fine_tuning import initialize_from
from trainer import Trainer
from utils import checkpoint, distributed
from utils.activation_checkpointing import checkpoint_activations
from utils.checkpoint import Description
from utils.devices import choose_precision
from utils.losses.criterion import build_criterion, needs_class_pixels
from utils.lr_scheduler import build_scheduler
from utils.optimizers import build_optimizer
from utils.plugins import require_modules
from utils.predict import Predictor, Prepare
from utils.protocol import EvaluationProtocol
from utils.reproducibility import WithoutDraws, make_deterministic, stream
from utils.sync_batchnorm import SynchronizedDataParallel, synchronize_norms

logger = logging.getLogger("segwright")

LACKS_PRETRAINED = "lacks_pretrained"  # in an environment: a run began from random numbers for want of weights


def build_loaders(config: RunConfig, *, pin_memory: bool = False, cached: bool = True) -> tuple[Loader, Loader | None]:
    """Build the training loader and, unless the trainer does not validate, the validation loader.

    Args:
        config: A checked config.
        pin_memory: Put batches where a GPU can fetch them.
        cached: Decode images beforehand where the config says so, which takes as long as an epoch's reading.

    Raises:
        UserError: The data is not there or cannot be used.
    """
    seed, sections = config.seed, training_sections(config)
    if not cached:
        sections = {where: section.without_cache() for where, section in sections.items()}
    datasets = {
        where: build_dataset(section, where=where, seed=seed, classes=config.classes)
        for where, section in sections.items()
    }
    section, dataset = next(iter(sections.values())), next(iter(datasets.values()))
    options = section.batches
    kept, held_out, val_set, val_section = None, None, dataset, config.val_loader
    if val_section is not None and not cached:
        val_section = val_section.without_cache()
    if options.held_out is not None:
        kept, held_out = hold_out(dataset, options.held_out, seed)
        val_section = section.for_validation()
    own_mean = config.normalization == "image"
    views: list[DatasetView] = []
    for where, each in datasets.items():
        first = sum(len(view.dataset) for view in views)
        view = build_view(sections[where], each, seed=seed, indices=kept, where=where, first=first, own_mean=own_mean)
        views.append(view)
    train = Loader(
        views[0] if len(views) == 1 else JoinedDatasetView(views),
        options.batch_size,
        num_workers=options.num_workers,
        training=True,
        shuffle=options.shuffle,
        drop_last=options.drop_last,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=pin_memory,
        size=section.chain.crop,
    )
    if not config.trainer.val or val_section is None:
        return train, None
    if held_out is None:
        val_set = build_dataset(val_section, where="val_loader", seed=seed, classes=config.classes)
    validation = build_val_loader(
        val_section, val_set, seed=seed, indices=held_out, pin_memory=pin_memory, own_mean=own_mean
    )
    return train, validation


def build_evaluation_loader(config: RunConfig, section: LoaderConfig, preparation: Prepare | None = None) -> Loader:
    """Build the loader of an evaluation section: the images held out from training where it splits one off.

    Args:
        config: The config of the training.
        section: Images as they are to be measured.
        preparation: What to do to the images alone, before they are predicted; labels stay as the section has them.
    """
    dataset = build_dataset(section, where="evaluation", seed=config.seed, classes=config.classes)
    options = section.batches.held_out
    held_out = hold_out(dataset, options, config.seed)[1] if options is not None else None
    transform = ImageAlone(preparation) if preparation else None
    own_mean = config.normalization == "image"
    return build_val_loader(
        section, dataset, seed=config.seed, indices=held_out, transform=transform, own_mean=own_mean
    )


def build_network(config: RunConfig, *, load_weights: bool = True) -> BaseModel:
    """Build the model that the config describes, on the current default device."""
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
    begun: Mapping[str, Any] | None = None,
    gpus: int = 1,
    unused: bool = False,
) -> Trainer:
    """Build everything that trains, ready to `fit` or to `resume`.

    Args:
        config: A checked config.
        run_dir: Folder of the run; exists.
        device: Where to compute.
        loaders: From `build_loaders`.
        environment: What checkpoints record about where they were made.
        begun: Content of the checkpoint that the run is to go on from, which replaces pretrained weights and those of
            `init_from`. How its weights lay in memory and how it was validated stays.
        gpus: How many of them this process uses, by threads.
        unused: Whether the loss leaves some trained parameters alone, see `DryRun`.

    Raises:
        UserError: Weights cannot be loaded, or parts do not fit.
    """
    train_loader, val_loader = loaders
    trainer = config.trainer
    torch.manual_seed(int(stream(config.seed, "init").integers(2**63)))
    with WithoutDraws() if begun else nullcontext():
        model = build_network(config, load_weights=begun is None)
    if begun is not None and LACKS_PRETRAINED in begun["environment"]:
        model.lacks_pretrained = True
    if model.lacks_pretrained:
        environment = {**environment, LACKS_PRETRAINED: True}
    check_parts(config, model)
    if config.use_synch_bn and device.type == "cuda":
        synchronize_norms(model, gpus)
    if begun is None and config.start is not None:
        report = initialize_from(config.start, model, arch=config.arch, classes=config.classes.names)
        logger.info("init_from %s", report)
    if trainer.deterministic:
        make_deterministic(model, device)
    was = None if begun is None else checkpoint.was_channels_last(begun)
    channels_last = uses_channels_last(trainer, device, begun=was)
    trained_on = hash_of_view(train_loader.view)
    environment = {**environment, checkpoint.CHANNELS_LAST: channels_last, checkpoint.TRAINING_IMAGES: trained_on}
    settled = replace(trainer, channels_last=channels_last)
    network = wrap_network(model.to(device), settled, gpus=gpus, unused=unused)
    precision = choose_precision(trainer.precision, device)
    if begun is not None:  # early runs validated in float32 whatever they trained in; figures of a run are to be alike
        precision = begun["protocol"].get("precision", precision)
    steps = len(train_loader)
    facts = facts_of(config, total_steps=trainer.total_steps(steps), steps_per_epoch=steps)
    counted = {}
    if needs_class_pixels(config.loss, facts["any_of"]):
        counted["class_pixels"] = class_pixels(train_loader.view, config.train.batches.num_workers)
    criterion = build_criterion(loss_of(config), aux_factor=config.aux_factor, where="loss", **facts, **counted)
    # A fused SGD that skips an overflowing step leaves its momentum to whatever was in memory.
    fused = device.type == "cuda" and trainer.precision != "fp16"
    optimizer = build_optimizer(config.optimizer, model, where="optimizer", fused=fused)
    schedule = build_scheduler(config.lr_scheduler, optimizer, where="lr_scheduler", **facts)
    schedule.check_length(facts["total_steps"], where="lr_scheduler")
    if config.arch.options.freeze_backbone == "cached":
        keep_features(config, model)
    return Trainer(
        trainer,
        run_dir,
        model=model,
        network=network,
        criterion=criterion.to(device),
        optimizer=optimizer,
        schedule=schedule,
        train_loader=train_loader,
        val_loader=val_loader,
        classes=config.classes,
        seed=config.seed,
        monitor=Monitor.parse(trainer.monitor, result_keys(config)),
        description=describe(config, environment),
        protocol=validation_protocol(config, val_loader, precision=precision),
    )


def keep_features(config: RunConfig, model: BaseModel) -> None:
    """Let the frozen backbone of `model` compute each image once, unless images come out of the loader ever anew."""
    for where, section in training_sections(config).items():
        if not section.chain.repeats:
            logger.warning(
                "arch.args.freeze_backbone: no features are kept: %s draws each image anew (augment, mix, or a random "
                'crop or transform). Use "val" or "resize" there, or set it to true.',
                where,
            )
            return
    with torch.device("meta"):
        blueprint = cast("EncoderDecoder", build_network(config, load_weights=False))
    taken = maps_taken(blueprint, config.arch.options.in_channels)
    backbone: nn.Module = cast("EncoderDecoder", model).backbone
    backbone.forward = FeatureCache(backbone, taken, default_cache() / "features")


def wrap_network(model: BaseModel, config: TrainerConfig, *, gpus: int = 1, unused: bool = False) -> nn.Module:
    """Wrap `model` for the training step: memory layout, activation checkpointing, several GPUs, compilation.

    The model itself, its weights and their names stay what is saved and validated.

    Args:
        model: The network, on its device, with all its layers what they are going to be.
        config: The `trainer` section.
        gpus: How many of them this process uses, by threads.
        unused: Whether the loss leaves some trained parameters alone, see `DryRun`.
    """
    if uses_channels_last(config, next(model.parameters()).device):
        model.to(memory_format=torch.channels_last)
    if config.activation_checkpointing:
        checkpoint_activations(model)
    network: nn.Module
    if gpus > 1:
        network = SynchronizedDataParallel(model, list(range(gpus)))
    else:
        network = distributed.wrap(model, unused=unused)
    if config.compile:  # last, so that it sees how the network is divided among processes
        mode = None if config.compile is True else config.compile
        # What puts values back by their indices cannot be compiled for sizes that are not known.
        network = cast(nn.Module, torch.compile(network, mode=mode, dynamic=False if model.unpools else None))
    return network


def uses_channels_last(config: TrainerConfig, device: torch.device, *, begun: bool | None = None) -> bool:
    """Whether to keep weights channels last in memory.

    Args:
        config: The `trainer` section.
        device: Where to compute.
        begun: How a run that goes on has kept them; None for a new one. Sums differ in their last bits between the two.
    """
    if config.channels_last != "auto":
        return config.channels_last
    if device.type == "cpu" and begun is not None:
        return begun
    return device.type in ("cuda", "cpu")


def facts_of(config: RunConfig, *, total_steps: int, steps_per_epoch: int) -> dict[str, Any]:
    """Give what a loss or a schedule may ask for, see `utils.registry.FACTS`.

    Args:
        config: A checked config.
        total_steps: Optimizer steps in the whole run.
        steps_per_epoch: Optimizer steps in an epoch.
    """
    classes = config.classes
    return {
        "num_classes": len(classes),
        "class_names": classes.names,
        "any_of": [unsure.classes for unsure in classes.any_of],
        "total_steps": total_steps,
        "steps_per_epoch": steps_per_epoch,
        "seed": config.seed,
    }


def loss_of(config: RunConfig) -> Any:
    """Give the "loss" section, a single term without its list, so that errors name it as it was written."""
    return config.loss[0] if len(config.loss) == 1 else config.loss


def describe(config: RunConfig, environment: Mapping[str, Any]) -> Description:
    """Describe a config's model, in plain values, for its checkpoints."""
    resolved, classes = config.to_json(), config.classes
    return {
        "arch": resolved["arch"],
        "config": resolved,
        "meaning_hash": config.meaning,
        "classes": list(classes.names),
        "palette": [list(color) for color in classes.colors],
        "left_out": list(classes.ignored_classes),
        "normalization": normalization_of(config),
        "preprocessing": preparation_of(validated_chain(resolved)).to_json(),
        "environment": dict(environment),
    }


def validation_protocol(
    config: RunConfig, loader: Loader | None = None, *, precision: str = "fp32"
) -> EvaluationProtocol:
    """State how validation in training predicts: each image once, as its loader delivers it."""
    section = config.validation
    if section is None:
        return EvaluationProtocol()
    data = evaluation_data(section)
    return EvaluationProtocol(data=with_images(data, loader.view) if loader else data, precision=precision)


def load_predictor(
    path: Path,
    device: torch.device,
    *,
    precision: str | None = "fp32",
    modules: Sequence[str] = (),
    config: RunConfig | None = None,
    native: bool = False,
) -> Predictor:
    """Load the model in a checkpoint, ready to predict images prepared as validation did.

    Args:
        path: As for `load_model`, as all but `native`.
        device: Where to compute.
        precision: Arithmetic: fp32, bf16, fp16, or auto; None for that of validation in training.
        modules: Names of third-party modules that have been imported.
        config: Describes the model instead of the checkpoint.
        native: Predict images at their own size, whatever validation did.

    Raises:
        CheckpointError: The file is no checkpoint of ours, is damaged, or needs modules that were not imported.
    """
    predictor = load_model(path, device, precision=precision, modules=modules, config=config)
    preparation = read_preparation(predictor.about)
    predictor.prepare = preparation if preparation and not native else None
    predictor.crop = training_crop(predictor.about["config"])
    return predictor


def load_model(
    path: Path,
    device: torch.device,
    *,
    precision: str | None = "fp32",
    modules: Sequence[str] = (),
    config: RunConfig | None = None,
) -> Predictor:
    """Load the model in a checkpoint; the averaged weights, where there are some.

    Args:
        path: A checkpoint or, with `config`, any file of weights.
        device: Where to compute.
        precision: Arithmetic: fp32, bf16, fp16, or auto; None for that of validation in training.
        modules: Names of third-party modules that have been imported.
        config: Describes the model instead of the checkpoint.

    Raises:
        CheckpointError: The file is no checkpoint of ours, is damaged, or needs modules that were not imported.
    """
    exported.warn_if_unproven(path)
    if format_of(path) in ("onnx", "torch"):
        return exported.load_predictor(path, device, precision=precision or "fp32", config=config)
    about: Mapping[str, Any]
    state: Mapping[str, Any]
    if config is None:
        state = about = exported.load_run(path)
        require_modules(state, modules, path, used={"arch": state["arch"]})
    else:
        state = checkpoint.load(path)
        about = {
            **describe(config, {}),
            "protocol": validation_protocol(config, precision=config.trainer.precision).to_json(),
            "epoch": state.get("epoch"),
            "step": state.get("step"),
        }
    with WithoutDraws():
        model = build_model(
            about["arch"],
            num_classes=len(about["classes"]),
            mean=about["normalization"]["mean"],
            std=about["normalization"]["std"],
            load_weights=False,
        )
    checkpoint.load_weights(model, checkpoint.judged_weights_of(state, path), path)
    if checkpoint.was_channels_last(about) if config is None else uses_channels_last(config.trainer, device):
        model.to(memory_format=torch.channels_last)
    classes = exported.classes_of(about)
    kept = ("arch", "config", "classes", "normalization", "protocol", "environment", "epoch", "step")
    preprocessing = about.get("preprocessing")  # not in early files, whose config says it
    about = {**{key: value for key, value in about.items() if key in kept}, "preprocessing": preprocessing}
    precision = precision or about["protocol"].get("precision", "fp32")  # none where nothing was validated
    return Predictor(model.to(device), classes, about, choose_precision(precision, device))
