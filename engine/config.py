"""What a config may say: every key, its default, and what is wrong with one before any data is read.

`check_config` turns JSON into a `RunConfig` with every default filled in, or lists all problems at once.
`python -m engine.config` prints the JSON Schema that is kept in `config.schema.json`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from base.base_dataloader import LoaderOptions
from base.base_dataset import BaseDataset
from base.base_trainer import TrainerConfig
from dataloader.build import (
    TrainLoader,
    check_loader,
    check_train_loader,
    classes_of,
    dataset_class,
    loader_json_schema,
    options_of,
    preprocessing_of,
    validation_of,
)
from dataloader.transforms.chain import ChainOptions
from models.build import ModelOptions, arch_json_schema, check_model
from utils import writers  # noqa: F401  registers
from utils.classes import IGNORE, ClassTable
from utils.config import fingerprint
from utils.errors import ConfigError
from utils.losses.criterion import LossTerm, check_loss, term_name
from utils.lr_scheduler import SchedulerConfig, check_scheduler
from utils.metrics import Metrics
from utils.optimizers import OptimizerConfig, check_optimizer
from utils.protocol import EvaluationData
from utils.registry import BACKBONES, HEADS, LOSSES, NECKS, OPTIMIZERS, SCHEDULERS, TRANSFORMS, WRITERS, Registry
from utils.schema import Between, Component, join, object_schema, to_json


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


def evaluation_data(section: Component) -> EvaluationData:
    """The images of a loader section, as the stamp on figures describes them."""
    chain: ChainOptions = options_of(ChainOptions, section.type, section.args, "chain")
    size: tuple[int, int] | str = chain.crop or "native"
    if not chain.crop and (chain.resize or chain.transforms):
        size = "resized"
    return EvaluationData(
        preprocessing=preprocessing_of(chain),
        size=size,
        dataset=section.type,
        split=section.args.get("split"),
        held_out=section.args["val_split"] or None,
    )


def normalization_of(config: RunConfig) -> dict[str, Any]:
    """Mean and std that the model normalises with."""
    if isinstance(config.normalization, Normalization):
        return to_json(config.normalization)
    source = BaseDataset if config.normalization == "imagenet" else dataset_class(config.train_loader.type)
    return {"mean": list(source.mean), "std": list(source.std)}


if __name__ == "__main__":
    from utils.config import dump_json

    print(dump_json(config_json_schema()), end="")


# What may differ between a checkpoint and the config that goes on from it; all else changes what a run means.
MAY_CHANGE = (
    *("name", "n_gpu", "parallel"),
    *(
        f"{loader}.args.{name}"
        for loader in ("train_loader", "val_loader")
        for name in ("data_dir", "num_workers", "return_id", "on_bad_sample", "cache")
    ),
    *("trainer.epochs", "trainer.max_steps", "trainer.save_dir", "trainer.save_period", "trainer.keep_last"),
    *("trainer.save_minutes", "trainer.save_steps", "trainer.max_time", "trainer.tensorboard", "trainer.log_dir"),
    *("trainer.writers", "trainer.memory_drill"),
    *("trainer.log_per_iter",),  # of the figures, it changes those of training batches, which are samples
    *("trainer.metrics",),
)
