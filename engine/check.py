"""Everything that is wrong with a config, before any data is read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from base.monitor import Monitor
from dataloader.transforms.chain import ScaleOptions
from engine.config import RunConfig, normalization_of, result_keys, training_sections
from engine.keys import key_places
from utils.classes import IGNORE
from utils.config import first_training_set
from utils.errors import ConfigError, UserError
from utils.registry import LOSSES
from utils.run_folder import check_name
from utils.schema import check_arguments, fill_defaults, show

logger = logging.getLogger("segwright")


def check_config(raw: Mapping[str, Any]) -> RunConfig:
    """Check a config and fill in every default.

    Raises:
        ConfigError: With every problem there is, not only the first.
    """
    problems: list[str] = []
    arguments = check_arguments(RunConfig, raw, where="", problems=problems, elsewhere=key_places(list(raw)))
    wrong = {field.name for field in fields(RunConfig) if field.name not in arguments and is_needed(field, raw)}
    # What stands for a section that is wrong is never looked at: only checks of other sections are made.
    config = RunConfig(**{**dict.fromkeys(wrong), **fill_defaults(RunConfig, arguments)})
    problems += cross_check(config, wrong)
    if not wrong and not is_resolved(raw):
        problems += contradictions(config, raw)
    if problems:
        raise ConfigError(*problems)
    return config


def is_needed(field: Field[Any], raw: Mapping[str, Any]) -> bool:
    """Whether a config has to have, or has, what `field` of `RunConfig` says."""
    return field.default is MISSING or field.name in raw


def is_resolved(raw: Mapping[str, Any]) -> bool:
    """Whether a config is not of a person but of a run, whose defaults are all filled in."""
    schedule, loader = raw.get("lr_scheduler"), first_training_set(raw)
    if not isinstance(schedule, Mapping) or not isinstance(loader, Mapping):
        return False
    return "per" in schedule and "return_id" in loader.get("args", {})


def cross_check(config: RunConfig, wrong: Collection[str] = ()) -> list[str]:
    """What is wrong between parts of a config that are each right; where a part is `wrong`, others are checked."""
    problems: list[str] = []
    for needed, check in CROSS_CHECKS:
        if not set(wrong) & set(needed):
            problems += check(config)
    return list(dict.fromkeys(problems))


def name_problems(config: RunConfig) -> list[str]:
    """What is wrong with the name of the run."""
    return [problem] if (problem := check_name(config.name)) else []


def contradictions(config: RunConfig, raw: Mapping[str, Any]) -> list[str]:
    """What a person's config says that has no effect, though each part is right.

    Not asked of the configs of runs: those of early ones went on with such things in them.
    """
    problems = [*stride_problems(raw["arch"]), *scratch_problems(raw["arch"])]
    for where, loader in [*training_sections(config).items(), ("val_loader", config.val_loader)]:
        scale = loader.chain.scale if loader else None
        if loader and loader.chain.base_size is None and isinstance(scale, ScaleOptions) and scale.side == "short":
            problems.append(
                f'{where}.args.scale.side: has no effect without "base_size", whose side it says. Give that, or '
                f"remove it."
            )
    return problems


def stride_problems(arch: Any) -> list[str]:
    """What is wrong with two output strides, a model's and its backbone's own, in the JSON of `arch`."""
    if not isinstance(arch, Mapping):
        return []
    args = arch.get("args", {})
    if "+" in arch["type"]:
        place = arch["type"].partition("+")[0]
        backbone = args.get(place)
    else:
        place, backbone = "backbone.args", args.get("backbone")
        backbone = backbone.get("args") if isinstance(backbone, Mapping) else None
    model, own = args.get("output_stride"), (backbone or {}).get("output_stride")
    if model is None or own is None or model == own:
        return []
    other = f"arch.args.{place}.output_stride"
    return [f"arch.args.output_stride: {model} contradicts {other}, {own}, which would win. Remove one of the two."]


def scratch_problems(arch: Any) -> list[str]:
    """What of the JSON of `arch` describes EoMT's own transformer, where it is to have another."""
    if not isinstance(arch, Mapping) or arch.get("type") != "EoMT" or arch.get("args", {}).get("backbone") is None:
        return []
    own = [key for key in ("channels", "depth", "heads", "patch") if key in arch["args"]]
    return [f"arch.args.{key}: has no effect with a backbone. Remove it." for key in own]


def length_problems(config: RunConfig) -> list[str]:
    """Whether it is said how long to train."""
    if config.trainer.epochs is None and config.trainer.max_steps is None:
        return ["trainer.epochs: missing. Give a number of epochs, or trainer.max_steps."]
    return []


def validation_problems(config: RunConfig) -> list[str]:
    """What is wrong with what is validated on."""
    held_out, val_loader = config.train.batches.held_out, config.val_loader
    problems = []
    if held_out is not None and val_loader is not None:
        problems.append("train_loader.args.val_split: there is a val_loader too. Give one of the two.")
    if config.trainer.val and val_loader is None and held_out is None:
        problems.append("val_loader: missing. Give one, or train_loader.args.val_split, or trainer.val false.")
    if val_loader is not None and val_loader.batches.drop_last:
        problems.append("val_loader.args.drop_last: validation takes every image. Remove it.")
    if val_loader is not None and val_loader.batches.held_out is not None:
        problems.append("val_loader.args.val_split: validation takes every image. Remove it.")
    return problems


def memory_problems(config: RunConfig) -> list[str]:
    """What does not go together of what saves memory or time."""
    trainer, problems = config.trainer, []
    for key, value in (("compile", trainer.compile), ("activation_checkpointing", trainer.activation_checkpointing)):
        if value and config.parallel == "DataParallel":
            problems.append(
                f'trainer.{key}: does not work with "parallel": "DataParallel". Use "ddp", or leave it out.'
            )
    if trainer.compile and trainer.activation_checkpointing:
        problems.append("trainer.compile: does not work with activation_checkpointing. Use one of the two.")
    if trainer.compile in ("reduce-overhead", "max-autotune") and trainer.accumulate > 1:  # which replay CUDA graphs
        what = f"trainer.compile: {show(trainer.compile)} uses the memory of gradients again at each micro-batch"
        problems.append(f"{what}, and cannot accumulate them. Set it to true, or remove trainer.accumulate.")
    return problems


def feature_problems(config: RunConfig) -> list[str]:
    """What does not go together with features that are kept."""
    if config.arch.options.freeze_backbone == "cached" and config.parallel == "DataParallel":
        return ['arch.args.freeze_backbone: does not work with "parallel": "DataParallel". Use "ddp", or leave it out.']
    return []


def result_problems(config: RunConfig) -> list[str]:
    """What is wrong with the figures that are to be had."""
    trainer = config.trainer
    problems: list[str] = []
    try:
        Monitor.parse(trainer.monitor, result_keys(config))
    except UserError as error:
        problems += error.problems
    if trainer.metrics and not trainer.val:
        problems.append("trainer.metrics: has no effect with trainer.val false. Remove it, or validate.")
    return problems


def early_stop_problems(config: RunConfig) -> list[str]:
    """What is wrong with stopping early; what is only rash is logged."""
    trainer = config.trainer
    if 0 < trainer.early_stop < trainer.val_per_epochs:
        logger.warning(
            "trainer.early_stop: %d epochs are fewer than the %d between validations: the first one without "
            "improvement stops the run.",
            trainer.early_stop,
            trainer.val_per_epochs,
        )
    if trainer.early_stop and trainer.monitor.strip() == "off":
        return ["trainer.early_stop: has no effect with monitor 'off'. Set it to 0, or give a monitor."]
    return []


def channel_problems(config: RunConfig) -> list[str]:
    """What does not fit the number of channels that the images have."""
    channels, offered = config.arch.options.in_channels, config.train.channels
    problems = []
    if channels != offered:
        problems.append(
            f"arch.args.in_channels: {channels}, but the images have {offered} channels. Set it to {offered}."
        )
    if config.val_loader is not None and (other := config.val_loader.channels) != offered:
        problems.append(f"val_loader: its images have {other} channels, the train_loader's {offered}. Use alike ones.")
    numbers = {} if config.normalization == "image" else normalization_of(config)
    for key, values in numbers.items():
        if len(values) not in (1, offered):
            problems.append(
                f"normalization: {len(values)} numbers of {key} for {offered} channels. "
                f'Give "mean" and "std" of each; `python prepare.py stats` measures them.'
            )
            break
    return problems


def division_problems(config: RunConfig, processes: int = 1) -> list[str]:
    """What is wrong with dividing a step's images among processes, and those of each into parts."""
    parts, batch = config.trainer.accumulate, config.train.batches.batch_size
    shares = parts * processes
    if processes > 1 and config.train.batches.drop_last is False:
        return ["train_loader.args.drop_last: several processes cannot share an incomplete batch. Leave it true."]
    if batch % shares == 0:
        return []
    by = f"trainer.accumulate {parts}" + (f" times {processes} processes" if processes > 1 else "")
    fitting = f"{batch // shares * shares} or {-(-batch // shares) * shares}" if batch > shares else f"{shares}"
    return [f"train_loader.args.batch_size: {batch} is not divisible by {by}. Use {fitting}."]


def class_problems(config: RunConfig) -> list[str]:
    """What is wrong with the classes of the datasets, and with what is said of them."""
    try:
        classes, problems = config.classes, []
    except ConfigError as error:
        return list(error.problems)
    if len(classes) < 2:
        problems.append(
            f"train_loader.args: one class ('{classes.names[0]}') cannot be told from anything. Name two, such as "
            f"background and {classes.names[0]}."
        )
    if IGNORE > config.ignore_index >= len(classes):
        problems.append(
            f"ignore_index: {config.ignore_index} is no class of 0..{len(classes) - 1}. "
            f"Use a class, or 255 for void only."
        )
    if config.val_loader is not None and set(config.val_loader.classes.names) != set(classes.names):
        problems.append(
            "val_loader: its classes differ from the train_loader's. Use the same dataset, or the same classes."
        )
    return problems


def unsure_problems(config: RunConfig) -> list[str]:
    """What is wrong with pixels that have one of several classes."""
    try:
        any_of = config.classes.any_of
    except ConfigError:  # which `class_problems` says
        return []
    losses = [getattr(LOSSES[term.type], "func", LOSSES[term.type]) for term in config.loss]  # less what is preset
    if not any_of or any(getattr(loss, "marginal", False) for loss in losses):
        return []
    return [
        "loss: nothing in it learns from the lists of classes in label_map. Add CrossEntropyLoss2d, DiceLoss, "
        "CE_DiceLoss or FocalLoss."
    ]


def plateau_problems(config: RunConfig) -> list[str]:
    """What is wrong with ReduceLROnPlateau, which is told what the monitor sees and nothing else."""
    if config.lr_scheduler.type != "ReduceLROnPlateau":
        return []
    wanted, mode = config.trainer.monitor.partition(" ")[0], config.lr_scheduler.args.get("mode", "min")
    if wanted == "off":
        return ["lr_scheduler: ReduceLROnPlateau needs a trainer.monitor to look at. Give one, or use another type."]
    if wanted in ("max", "min") and mode != wanted:
        return [f'lr_scheduler.args.mode: "{mode}", but trainer.monitor is of mode "{wanted}". Set both alike.']
    return []


# What each check looks at: it is made unless something is wrong with one of those.
CROSS_CHECKS: tuple[tuple[tuple[str, ...], Callable[[RunConfig], list[str]]], ...] = (
    (("name",), name_problems),
    (("trainer",), length_problems),
    (("train_loader", "val_loader", "trainer"), validation_problems),
    (("train_loader", "trainer"), division_problems),
    (("arch", "train_loader", "val_loader", "normalization"), channel_problems),
    (("trainer", "parallel"), memory_problems),
    (("arch", "parallel"), feature_problems),
    (("trainer", "lr_scheduler"), plateau_problems),
    (("train_loader", "val_loader", "ignore_index"), class_problems),
    (("train_loader", "loss"), unsure_problems),
    (("train_loader", "ignore_index", "loss", "trainer"), result_problems),
    (("trainer",), early_stop_problems),
)
