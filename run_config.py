"""What a config may say: every key, its default, and what is wrong with one before any data is read.

`check_config` turns JSON into a `RunConfig` with every default filled in, or lists all problems at once.
`python -m run_config` prints the JSON Schema that is kept in `config.schema.json`.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import dataloader  # noqa: F401  registers
from base.base_dataloader import LoaderOptions
from base.base_dataset import BaseDataset
from base.base_trainer import MAY_CHANGE, Monitor, TrainerConfig
from dataloader.transforms import ChainOptions, chain_problems
from models.build import ModelOptions, arch_json_schema, check_model
from utils import writers  # noqa: F401  registers
from utils.classes import IGNORE, ClassTable
from utils.config import fingerprint
from utils.criterion import LossTerm, check_loss, term_name
from utils.errors import ConfigError, UserError
from utils.lr_scheduler import SchedulerConfig, check_scheduler
from utils.metrics import Metrics
from utils.optimizers import OptimizerConfig, check_optimizer
from utils.registry import (
    BACKBONES,
    DATASETS,
    HEADS,
    LOSSES,
    NECKS,
    OPTIMIZERS,
    SCHEDULERS,
    TRANSFORMS,
    WRITERS,
    Registry,
)
from utils.run_folder import check_name
from utils.schema import (
    Between,
    Component,
    check_arguments,
    did_you_mean,
    fill_defaults,
    join,
    object_schema,
    parameters_of,
    to_json,
)

logger = logging.getLogger("segwright")


@dataclass(frozen=True)
class Section:
    """A part of the config that has rules of its own; stands in an annotation, as a registry may.

    Args:
        check: Called with the JSON value, its place and a list for problems; gives the value resolved.
        json_schema: Gives the JSON Schema of what `check` accepts.
    """

    check: Callable[..., Any]
    json_schema: Callable[[], dict[str, Any]]


# --------------------------------------------------------------------------------------------------- loader args

# What may be said of every component of a kind, besides its own arguments.
SHARED_OPTIONS = {"datasets": (LoaderOptions, ChainOptions), "models": (ModelOptions,)}


def owners_of(dataset: str) -> dict[str, Any]:
    """Who owns which of a loader's flat `args`: the loader, the augmentation chain, the dataset."""
    return {"loader": LoaderOptions, "chain": ChainOptions, "dataset": DATASETS[dataset]}


def split_loader_args(dataset: str, args: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Take flat loader `args` apart by owner; names that nobody owns are left out."""
    return {
        owner: {name: args[name] for name in parameters_of(target) if name in args}
        for owner, target in owners_of(dataset).items()
    }


def check_loader(value: Any, *, where: str, problems: list[str]) -> Component:
    """A loader section with every default filled in; what is wrong with it goes to `problems`."""
    component = DATASETS.parse(value, where=where, problems=problems)
    if component is None:
        return Component("")
    name, place = component.type, join(where, "args")
    owners, given = owners_of(name), split_loader_args(name, component.args)
    known = [key for target in owners.values() for key in parameters_of(target) if key not in DATASETS.reserved(name)]
    for key in component.args:
        if key not in known:
            problems.append(f"{join(place, key)}: unknown key. {did_you_mean(key, known)}")
    before, resolved = len(problems), {}
    for owner, target in owners.items():
        reserved = DATASETS.reserved(name) if owner == "dataset" else ()
        # A reserved key has been reported above, as unknown.
        mine = {key: each for key, each in given[owner].items() if key not in reserved}
        arguments = check_arguments(target, mine, where=place, reserved=reserved, problems=problems)
        resolved.update(fill_defaults(target, arguments, reserved=reserved))
    splits = dataset_class(name).splits
    if len(problems) == before and resolved.get("split", splits[0]) not in splits:
        problems.append(
            f"{place}.split: {name} has no '{resolved['split']}'. {did_you_mean(resolved['split'], splits)}"
        )
    if len(problems) == before:
        chain = ChainOptions(**{key: resolved[key] for key in parameters_of(ChainOptions)})
        problems += chain_problems(chain, place)
        try:
            classes_of(Component(name, resolved))
        except ConfigError as error:  # its lines begin with an argument's name, or with that of a file of classes
            problems += [join(place, p) if re.split(r"\W", p)[0] in resolved else p for p in error.problems]
    return Component(name, resolved)


@dataclass(frozen=True)
class TrainLoader(Component):
    """The first of several training sets, which says how batches are made, and the others."""

    others: tuple[Component, ...] = ()


# What the first of several training sets says for all.
OF_ALL = [name for name in parameters_of(LoaderOptions) if name != "cache"]


def check_train_loader(value: Any, *, where: str, problems: list[str]) -> Component:
    """`check_loader` of one section, or of a list of them whose images are drawn from as if they were one dataset."""
    if not isinstance(value, list):
        return check_loader(value, where=where, problems=problems)
    if not value:
        problems.append(f"{where}: an empty list. Give a dataset.")
        return Component("")
    before = len(problems)
    first, *others = (f"{where}[{number}]" for number in range(len(value)))
    lead = check_loader(value[0], where=first, problems=problems)
    if len(problems) > before:
        return lead
    shared, found = {name: lead.args[name] for name in OF_ALL}, []
    if len(value) > 1 and lead.args["val_split"]:
        problems.append(f"{first}.args.val_split: does not work with several training sets. Give a val_loader.")
    for place, raw in zip(others, value[1:], strict=True):
        given = raw.get("args", {}) if isinstance(raw, Mapping) else {}
        if isinstance(given, Mapping):
            problems += [
                f"{place}.args.{name}: differs from that of {first}, which is for all. Remove it."
                for name in OF_ALL
                if name in given and given[name] != shared[name]
            ]
            raw = {**raw, "args": {**shared, **given}} if isinstance(raw, Mapping) else {"type": raw, "args": shared}
        count = len(problems)
        section = check_loader(raw, where=place, problems=problems)
        if len(problems) == count:
            problems += misfits(lead, section, place, first)
        found.append(section)
    return TrainLoader(lead.type, lead.args, tuple(found)) if found else lead


def misfits(first: Component, other: Component, place: str, of: str) -> list[str]:
    """Why the images of two training sets could not stand in one batch."""
    problems = []
    if classes_of(other).names != classes_of(first).names:
        problems.append(f"{place}: its classes differ from those of {of}. Say with label_map which are which.")
    if channels_of(other) != channels_of(first):
        problems.append(f"{place}: its images have {channels_of(other)} channels, not {channels_of(first)}.")
    if size_of(other) != size_of(first):
        problems.append(f"{place}.args: its images are not as large as those of {of}. Use one crop_size.")
    return problems


def loader_json_schema() -> dict[str, Any]:
    """JSON Schema of a loader section: the arguments of all three owners, for each dataset."""

    def arguments(name: str) -> dict[str, Any]:
        schemas = [object_schema(t, reserved=DATASETS.reserved(name)) for t in owners_of(name).values()]
        merged = dict(schemas[0])
        for schema in schemas[1:]:
            merged["properties"] = {**merged["properties"], **schema["properties"]}
        merged.pop("required", None)  # a file that extends another holds only the differences
        return merged

    rules = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"properties": {"args": arguments(name)}},
        }
        for name in sorted(DATASETS)
    ]
    kind = {"type": "string", "anyOf": [{"enum": sorted(DATASETS)}, {}]}
    return {
        "type": "object",
        "properties": {"type": kind, "args": {"type": "object"}},
        "additionalProperties": False,
        "allOf": rules,
    }


# ----------------------------------------------------------------------------------------------------- the config


def component_json_schema(registry: Registry, section: type) -> dict[str, Any]:
    """JSON Schema of a component that says more than its type and arguments, as the dataclass `section` does."""
    name, component = registry.json_schema()["anyOf"]
    own = object_schema(section)["properties"]
    return {"anyOf": [name, {**component, "properties": {**own, **component["properties"]}}]}


def loss_json_schema() -> dict[str, Any]:
    """JSON Schema of the loss: one term or a list of them."""
    term = component_json_schema(LOSSES, LossTerm)
    return {"anyOf": [*term["anyOf"], {"type": "array", "items": term, "minItems": 1}]}


ARCH = Section(check_model, arch_json_schema)
_LOADER = {"$ref": "#/$defs/loader"}
LOADER = Section(check_loader, lambda: _LOADER)
TRAIN_LOADER = Section(
    check_train_loader, lambda: {"anyOf": [_LOADER, {"type": "array", "items": _LOADER, "minItems": 1}]}
)
LOSS = Section(check_loss, loss_json_schema)
OPTIMIZER = Section(check_optimizer, lambda: component_json_schema(OPTIMIZERS, OptimizerConfig))
SCHEDULER = Section(check_scheduler, lambda: component_json_schema(SCHEDULERS, SchedulerConfig))


@dataclass(frozen=True, kw_only=True)
class Normalization:
    """Numbers that the model subtracts and divides by.

    Args:
        mean: Mean of each channel, as a share of 255: 0 to 1 for 8-bit images.
        std: Standard deviation of each channel, likewise.
    """

    mean: list[Annotated[float, Between(-1e6, 1e6)]]
    std: list[Annotated[float, Between(1e-6, 1e6)]]


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Weights to start a whole network from.

    Args:
        path: A checkpoint, a bare state dict, or `torchvision/` and one of deeplabv3_resnet50, deeplabv3_resnet101,
            fcn_resnet50, fcn_resnet101.
        by_class_name: Copy the rows of the classifiers class by class, for classes that have the same name.
    """

    path: Path
    by_class_name: bool = False


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole config.

    Args:
        name: Name of the run; the folder of its runs is `<save_dir>/<name>`.
        arch: Network: a model's name and arguments, or bricks joined by `+`.
        train_loader: Dataset to train on, with batches and augmentation; or a list of them, which are joined.
        val_loader: Dataset to validate on; null where `val_split` holds out a part, or with `trainer.val: false`.
        optimizer: Any of `torch.optim`, and the learning rates of the network's parts.
        trainer: How long, how to save, what to monitor.
        loss: A loss's name, an object with its arguments, or a list of those, which are added up.
        aux_factor: Weight of the loss of auxiliary outputs.
        ignore_index: 255 or -1: void pixels only are left out. The index of a class: that class too.
        lr_scheduler: Course of the learning rate.
        normalization: The dataset's mean and std, ImageNet's, or numbers.
        init_from: Checkpoint to take weights from, as far as names and shapes agree, for fine-tuning; or the name of
            torchvision's, such as `torchvision/deeplabv3_resnet50`; an object says whether classes go by their names.
        n_gpu: GPUs to use on this machine, each by a process of its own; 0 for the CPU. Of no effect under torchrun.
        parallel: How to use several GPUs: "ddp" by DistributedDataParallel; "DataParallel", slower, by threads of
            one process, for compatibility.
        use_synch_bn: Batch norm over the images of all GPUs; of no effect with less than two.
        seed: Decides everything random.
    """

    name: str
    arch: Annotated[Any, ARCH]
    train_loader: Annotated[Any, TRAIN_LOADER]
    optimizer: Annotated[Any, OPTIMIZER]
    trainer: TrainerConfig
    val_loader: Annotated[Any, LOADER] | None = None
    loss: Annotated[Any, LOSS] = "CrossEntropyLoss2d"
    aux_factor: Annotated[float, Between(0, 100)] = 0.4
    ignore_index: Annotated[int, Between(-1, IGNORE)] = IGNORE
    lr_scheduler: Annotated[Any, SCHEDULER] = "Poly"
    normalization: Literal["dataset", "imagenet"] | Normalization = "dataset"
    init_from: Path | InitFrom | None = None
    n_gpu: Annotated[int, Between(0, 1024)] = 1
    parallel: Literal["ddp", "DataParallel"] = "ddp"
    use_synch_bn: bool = False
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0

    def to_json(self) -> dict[str, Any]:
        """The resolved config: loaded alone, it repeats the run."""
        sections = list(training_sections(self).values())
        joined = {"train_loader": [to_json(section) for section in sections]} if len(sections) > 1 else {}
        return {**to_json(self), **joined}

    @property
    def start(self) -> InitFrom | None:
        """`init_from` in full."""
        return InitFrom(path=self.init_from) if isinstance(self.init_from, Path) else self.init_from

    @property
    def meaning(self) -> str:
        """Hash of all that changes what the run computes."""
        return meaning_of(self.to_json())

    @functools.cached_property
    def classes(self) -> ClassTable:
        """The training set's classes; needs no data folder."""
        return classes_of(self.train_loader).ignoring(self.ignore_index)


def training_sections(config: RunConfig) -> dict[str, Component]:
    """The training sets, by their places in the config."""
    first = config.train_loader
    if not isinstance(first, TrainLoader):
        return {"train_loader": first}
    sections = (Component(first.type, first.args), *first.others)
    return {f"train_loader[{number}]": section for number, section in enumerate(sections)}


def check_config(raw: Mapping[str, Any]) -> RunConfig:
    """Check a config and fill in every default.

    Raises:
        ConfigError: With every problem there is, not only the first.
    """
    problems: list[str] = []
    given = {**fill_defaults(RunConfig, {}), **raw}
    arguments = check_arguments(RunConfig, given, where="", problems=problems)
    if problems:
        raise ConfigError(*problems)
    config = RunConfig(**arguments)
    if problems := cross_check(config):
        raise ConfigError(*problems)
    return config


def cross_check(config: RunConfig) -> list[str]:
    """What is wrong between parts of a config that are each right."""
    problems = [check_name(config.name)] if check_name(config.name) else []
    trainer, train = config.trainer, config.train_loader.args
    if trainer.epochs is None and trainer.max_steps is None:
        problems.append("trainer.epochs: missing. Give a number of epochs, or trainer.max_steps.")
    if train["val_split"] and config.val_loader is not None:
        problems.append("train_loader.args.val_split: there is a val_loader too. Give one of the two.")
    if trainer.val and config.val_loader is None and not train["val_split"]:
        problems.append("val_loader: missing. Give one, or train_loader.args.val_split, or trainer.val false.")
    if config.val_loader is not None and config.val_loader.args["drop_last"]:
        problems.append("val_loader.args.drop_last: validation takes every image. Remove it.")
    if config.val_loader is not None and config.val_loader.args["val_split"]:
        problems.append("val_loader.args.val_split: validation takes every image. Remove it.")
    problems += division_problems(config)
    problems += channel_problems(config)
    for key, value in (("compile", trainer.compile), ("activation_checkpointing", trainer.activation_checkpointing)):
        if value and config.parallel == "DataParallel":
            problems.append(
                f'trainer.{key}: does not work with "parallel": "DataParallel". Use "ddp", or leave it out.'
            )
    if trainer.compile and trainer.activation_checkpointing:
        problems.append("trainer.compile: does not work with activation_checkpointing. Use one of the two.")
    if config.lr_scheduler.type == "ReduceLROnPlateau":
        problems += plateau_problems(config)
    try:
        problems += class_problems(config)
        Monitor.parse(trainer.monitor, result_keys(config))
    except UserError as error:
        problems += error.problems
    if trainer.metrics and not trainer.val:
        problems.append("trainer.metrics: has no effect with trainer.val false. Remove it, or validate.")
    if trainer.early_stop and trainer.monitor.strip() == "off":
        problems.append("trainer.early_stop: has no effect with monitor 'off'. Set it to 0, or give a monitor.")
    if 0 < trainer.early_stop < trainer.val_per_epochs:
        logger.warning(
            "trainer.early_stop: %d epochs are fewer than the %d between validations: the first one without "
            "improvement stops the run.",
            trainer.early_stop,
            trainer.val_per_epochs,
        )
    return problems


def channels_of(loader: Component) -> int:
    """How many channels the images of a loader section have."""
    return loader.args.get("channels", dataset_class(loader.type).channels)


def channel_problems(config: RunConfig) -> list[str]:
    """What does not fit the number of channels that the images have."""
    channels, offered = config.arch.args.get("in_channels", 3), channels_of(config.train_loader)
    problems = []
    if channels != offered:
        problems.append(
            f"arch.args.in_channels: {channels}, but the images have {offered} channels. Set it to {offered}."
        )
    if config.val_loader is not None and (other := channels_of(config.val_loader)) != offered:
        problems.append(f"val_loader: its images have {other} channels, the train_loader's {offered}. Use alike ones.")
    lengths = {key: len(values) for key, values in normalization_of(config).items()}
    for key, length in lengths.items():
        if length not in (1, offered):
            problems.append(
                f"normalization: {length} numbers of {key} for {offered} channels. "
                f'Give "mean" and "std" of each; `python prepare.py stats` measures them.'
            )
            break
    return problems


def division_problems(config: RunConfig, processes: int = 1) -> list[str]:
    """What is wrong with dividing a step's images among processes, and those of each into parts."""
    parts, batch = config.trainer.accumulate, config.train_loader.args["batch_size"]
    shares = parts * processes
    if processes > 1 and config.train_loader.args["drop_last"] is False:
        return ["train_loader.args.drop_last: several processes cannot share an incomplete batch. Leave it true."]
    if batch % shares == 0:
        return []
    by = f"trainer.accumulate {parts}" + (f" times {processes} processes" if processes > 1 else "")
    fitting = f"{batch // shares * shares} or {-(-batch // shares) * shares}" if batch > shares else f"{shares}"
    return [f"train_loader.args.batch_size: {batch} is not divisible by {by}. Use {fitting}."]


def class_problems(config: RunConfig) -> list[str]:
    """What is wrong with the classes of the datasets, and with what is said of them.

    Raises:
        ConfigError: There are no such classes.
    """
    classes, problems = config.classes, []
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
    if config.val_loader is not None and classes_of(config.val_loader).names != classes.names:
        problems.append(
            "val_loader: its classes differ from the train_loader's. Use the same dataset, or the same classes."
        )
    return problems


def plateau_problems(config: RunConfig) -> list[str]:
    """What is wrong with ReduceLROnPlateau, which is told what the monitor sees and nothing else."""
    wanted, mode = config.trainer.monitor.partition(" ")[0], config.lr_scheduler.args.get("mode", "min")
    if wanted == "off":
        return ["lr_scheduler: ReduceLROnPlateau needs a trainer.monitor to look at. Give one, or use another type."]
    if wanted in ("max", "min") and mode != wanted:
        return [f'lr_scheduler.args.mode: "{mode}", but trainer.monitor is of mode "{wanted}". Set both alike.']
    return []


def result_keys(config: RunConfig) -> list[str]:
    """Keys of metrics.jsonl, which can be monitored."""
    training = ["train/loss", "train/Pixel_Accuracy", "train/Mean_IoU"]
    if not config.trainer.val:
        return training
    classes, loss = config.classes, config.loss
    terms = [term_name(loss, index) for index in range(len(loss))] if len(loss) > 1 else []
    figures = Metrics(len(classes), classes.names, classes.left_out, config.trainer.metrics).keys()
    return [*training, *(f"val/{key}" for key in ("loss", *terms, *figures))]


def meaning_of(resolved: Mapping[str, Any]) -> str:
    """Hash of a resolved config without what may change when a run is resumed."""

    def without(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [without(item, where) for item in value]
        if not isinstance(value, Mapping):
            return value
        return {k: without(v, join(where, k)) for k, v in value.items() if join(where, k) not in MAY_CHANGE}

    return fingerprint(without(resolved, ""))


def config_json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors."""
    schema = object_schema(RunConfig)
    schema["properties"]["extends"] = {
        "description": "Config files, relative to this one, over which this one is laid.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema["properties"]["$schema"] = {"type": "string"}
    schema["$defs"] = {
        registry.kind: registry.json_schema() for registry in (BACKBONES, NECKS, HEADS, TRANSFORMS, WRITERS)
    }
    schema["$defs"]["loader"] = loader_json_schema()
    del schema["required"]  # a file that extends another holds only the differences
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Segwright config", **schema}


def classes_of(loader: Component) -> ClassTable:
    """Classes of the dataset that a loader section names, from its arguments alone."""
    target = DATASETS[loader.type]
    options = typed(target, split_loader_args(loader.type, loader.args)["dataset"])
    return dataset_class(loader.type).class_table(**getattr(target, "keywords", {}), **options)


def dataset_class(name: str) -> type[BaseDataset]:
    """The class that the dataset `name` is registered for."""
    target = DATASETS[name]
    return getattr(target, "func", target)  # type: ignore[arg-type]


def typed(target: Callable, values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked JSON `values` as the keyword arguments that `target` takes."""
    return check_arguments(target, values, where="", problems=[])


def options_of(kind: type, dataset: str, args: Mapping[str, Any], owner: str) -> Any:
    """What the flat `args` of a loader say to one of their owners, as the dataclass `kind`."""
    return kind(**typed(kind, split_loader_args(dataset, args)[owner]))


def size_of(loader: Component) -> tuple[int, int] | None:
    """Height and width of all images that a loader section delivers; None where each has its own."""
    chain: ChainOptions = options_of(ChainOptions, loader.type, loader.args, "chain")
    return chain.crop


def validation_of(loader: Component) -> Component:
    """The section for the part that `val_split` holds out: the same, without augmentation."""
    chain: ChainOptions = options_of(ChainOptions, loader.type, loader.args, "chain")
    return Component(loader.type, {**loader.args, **to_json(chain.for_validation())})


def evaluation_section(
    config: RunConfig, *, split: str | None = None, data_dir: Path | None = None, crop: bool = False
) -> Component:
    """The loader section to evaluate with.

    Args:
        config: The config of the training.
        split: Part of the dataset; None for what was validated on in training.
        data_dir: Folder of the dataset; None for the one of training.
        crop: Evaluate on the crops that training validated on, instead of whole images.

    Raises:
        ConfigError: `crop` is asked for, and training had none.
    """
    trained_on = config.val_loader or validation_of(config.train_loader)
    args = {**trained_on.args, "cache": None}  # each image is read once
    if crop and args["crop_size"] is None:
        raise ConfigError("--mode center_crop: training validated on whole images. Use --mode single.")
    if not crop:
        args |= to_json(ChainOptions(val=True))
    if split is not None:
        args |= {"split": split, "val_split": None}
    if data_dir is not None:
        args["data_dir"] = str(data_dir)
    problems: list[str] = []
    section = check_loader({"type": trained_on.type, "args": args}, where="evaluation", problems=problems)
    if problems:
        raise ConfigError(*problems)
    return section


def protocol_of(section: Component | None) -> dict[str, Any]:
    """How validation measures, for stamping on every figure."""
    if section is None:
        return {"mode": "none"}
    chain: ChainOptions = options_of(ChainOptions, section.type, section.args, "chain")
    size: list[int] | str = list(chain.crop) if chain.crop else "native"
    if not chain.crop and (chain.resize or chain.transforms):
        size = "resized"
    held_out = {"held_out": section.args["val_split"]} if section.args["val_split"] else {}
    return {
        "mode": preprocessing_of(chain),
        "size": size,
        "dataset": section.type,
        "split": section.args.get("split"),
        **held_out,
        "scales": [1.0],
        "flip": False,
        "precision": "fp32",
        "mean": "classes absent from truth and prediction are left out",
    }


def preprocessing_of(chain: ChainOptions) -> str:
    """What validation looks at, in a word: whole images only where nothing else was asked for."""
    if chain.transforms is not None:
        return "transforms"
    if chain.augment:
        return "augmented"
    if chain.crop_size is None:
        return "single"
    return "center_crop" if chain.val else "random_crop"


def normalization_of(config: RunConfig) -> dict[str, Any]:
    """Mean and std that the model normalises with."""
    if isinstance(config.normalization, Normalization):
        return to_json(config.normalization)
    source = BaseDataset if config.normalization == "imagenet" else dataset_class(config.train_loader.type)
    return {"mean": list(source.mean), "std": list(source.std)}


if __name__ == "__main__":
    from utils.config import dump_json

    print(dump_json(config_json_schema()), end="")
