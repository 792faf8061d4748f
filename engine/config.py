"""What a config may say: every key, its default, and what is wrong with one before any data is read.

`check_config` turns JSON into a `RunConfig` with every default filled in, or lists all problems at once.
`python -m engine.config` prints the JSON Schema that is kept in `config.schema.json`.
"""

from __future__ import annotations

import filecmp
import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from base.base_dataloader import LoaderOptions
from base.base_dataset import BaseDataset, Examples
from base.base_trainer import TrainerConfig
from dataloader.build import (
    LoaderConfig,
    check_loader,
    check_train_loader,
    dataset_class,
    loader_json_schema,
    preprocessing_of,
    shared_classes,
)
from dataloader.transforms.chain import ChainOptions
from dataloader.transforms.preparation import preparation_of
from models.build import ArchConfig, ModelOptions, arch_json_schema, check_model
from models.fine_tuning import InitFrom
from utils import trackers  # noqa: F401  registers, as does what it imports
from utils.classes import IGNORE, ClassTable
from utils.config import INPUTS, differences, fingerprint
from utils.errors import ConfigError
from utils.json_schema import dump_schema, object_schema, share_repeated
from utils.losses.criterion import AuxFactor, LossTerm, check_loss, term_name
from utils.lr_scheduler import SchedulerConfig, check_scheduler
from utils.metrics import Metrics
from utils.optimizers import OptimizerConfig, check_optimizer
from utils.predict import Prepare
from utils.protocol import EvaluationData, hash_of_names
from utils.registry import BACKBONES, HEADS, LOSSES, MIXES, NECKS, OPTIMIZERS, SCHEDULERS, TRANSFORMS, WRITERS, Registry
from utils.schema import Between, join, to_json


@dataclass(frozen=True)
class Section:
    """A part of the config that has rules of its own; stands in an annotation, as a registry may.

    Args:
        check: Called with the JSON value, its path and a list for problems; gives what the annotation says.
        json_schema: Gives the JSON Schema of what `check` accepts.
        words: What it accepts, in words.
    """

    check: Callable[..., Any]
    json_schema: Callable[[], dict[str, Any]]
    words: str = "a component"


# What may be said of every component of a kind, besides its own arguments.
SHARED_OPTIONS = {"datasets": (LoaderOptions, ChainOptions), "models": (ModelOptions,)}

# What may differ between a checkpoint and the config that goes on from it; all else changes what a run means.
MAY_CHANGE = frozenset(
    {
        "name",
        "n_gpu",
        "parallel",
        "train_loader.args.data_dir",
        "train_loader.args.num_workers",
        "train_loader.args.return_id",
        "train_loader.args.on_bad_sample",
        "train_loader.args.cache",
        "val_loader.args.data_dir",
        "val_loader.args.num_workers",
        "val_loader.args.return_id",
        "val_loader.args.on_bad_sample",
        "val_loader.args.cache",
        "trainer.epochs",
        "trainer.max_steps",
        "trainer.max_time",
        "trainer.save_dir",
        "trainer.save_period",
        "trainer.save_minutes",
        "trainer.save_steps",
        "trainer.keep_last",
        "trainer.tensorboard",
        "trainer.log_dir",
        "trainer.writers",
        "trainer.memory_drill",
        "trainer.log_per_iter",  # of the figures, it changes those of training batches, which are samples
        "trainer.metrics",
    }
)


def may_change(path: str) -> bool:
    """Whether a resumed run may differ in what stands at `path`, such as ``train_loader[0].args.num_workers``."""
    names = re.sub(r"\[\d+\]", "", path).split(".")  # what holds for one of a list holds for all
    return any(".".join(names[:length]) in MAY_CHANGE for length in range(1, len(names) + 1))


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
    check_train_loader,
    lambda: {"anyOf": [_LOADER, {"type": "array", "items": _LOADER, "minItems": 1}]},
    "a component or a list of components",
)

LOSS = Section(check_loss, loss_json_schema, "a component or a list of components")

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
        aux_factor: Weight of the loss of each auxiliary output, or a list of one weight for each of them.
        ignore_index: 255 or -1: only void pixels are ignored. The index of a class: that class too.
        lr_scheduler: Course of the learning rate.
        normalization: The dataset's mean and std, ImageNet's, or numbers; "image" takes those of each image, so that
            light and tint of the whole matter less.
        init_from: Checkpoint to take weights from, as far as names and shapes agree, for fine-tuning; or the name of
            torchvision's, such as `torchvision/deeplabv3_resnet50`; an object says whether classes go by their names.
        n_gpu: GPUs to use on this machine, each by a process of its own; 0 for the CPU. Of no effect under torchrun.
        parallel: How to use several GPUs: "ddp" by DistributedDataParallel; "DataParallel", slower, by threads of
            one process, for compatibility.
        use_synch_bn: Batch norm over the images of all GPUs; of no effect with less than two.
        seed: Decides everything random.
    """

    name: str
    arch: Annotated[ArchConfig, ARCH]
    train_loader: Annotated[list[LoaderConfig], TRAIN_LOADER]
    optimizer: Annotated[OptimizerConfig, OPTIMIZER]
    trainer: TrainerConfig
    val_loader: Annotated[LoaderConfig, LOADER] | None = None
    loss: Annotated[list[LossTerm], LOSS] = "CrossEntropyLoss2d"  # type: ignore[assignment]  # as a config says it
    aux_factor: AuxFactor = 0.4
    ignore_index: Annotated[int, Between(-1, IGNORE)] = IGNORE
    lr_scheduler: Annotated[SchedulerConfig, SCHEDULER] = "Poly"  # type: ignore[assignment]
    normalization: Literal["dataset", "imagenet", "image"] | Normalization = "dataset"
    init_from: Path | InitFrom | None = None
    n_gpu: Annotated[int, Between(0, 1024)] = 1
    parallel: Literal["ddp", "DataParallel"] = "ddp"
    use_synch_bn: bool = False
    seed: Annotated[int, Between(0, 2**32 - 1)] = 0

    def to_json(self) -> dict[str, Any]:
        """The resolved config: loaded alone, it repeats the run."""
        resolved = {field.name: to_json(getattr(self, field.name)) for field in fields(self)}
        if len(self.train_loader) == 1:
            resolved["train_loader"] = to_json(self.train)
        return resolved

    @property
    def train(self) -> LoaderConfig:
        """The first training set, which says for all how batches are made."""
        return self.train_loader[0]

    @property
    def validation(self) -> LoaderConfig | None:
        """What training validates on: the validation set, or what is held out of the training set."""
        if not self.trainer.val:
            return None
        return self.val_loader or self.train.for_validation()

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
        """The training sets' classes, in the order of the first one's; needs no data folder."""
        return shared_classes(self.train_loader).ignoring(self.ignore_index)


def training_sections(config: RunConfig) -> dict[str, LoaderConfig]:
    """The training sets, by their paths in the config."""
    if len(config.train_loader) == 1:
        return {"train_loader": config.train}
    return {f"train_loader[{number}]": loader for number, loader in enumerate(config.train_loader)}


def result_keys(config: RunConfig) -> list[str]:
    """Keys of metrics.jsonl, which can be monitored."""
    training = ["train/loss", "train/Pixel_Accuracy", "train/Mean_IoU"]
    if not config.trainer.val:
        return training
    classes, loss = config.classes, config.loss
    terms = [term_name(loss, index) for index in range(len(loss))] if len(loss) > 1 else []
    figures = Metrics(len(classes), classes.names, classes.ignored_classes, config.trainer.metrics).keys()
    return [*training, *(f"val/{key}" for key in ("loss", *terms, *figures))]


# Which runs are the same: `--resume`, `--seeds` and `--folds` ask, sweeps too.


def is_input(where: str) -> bool:
    """Whether a path to read stands at `where` in a config."""
    return where.rpartition(".")[2] in INPUTS


def same_value(where: str, old: Any, new: Any) -> bool:
    """Whether two values that stand at `where` are the same; of two files to read, whether they hold the same.

    Folders of data, and files that are gone, count by their last names: projects are moved.
    """
    if old == new or not (is_input(where) and isinstance(old, str) and isinstance(new, str)):
        return bool(old == new)
    if Path(old).is_file() and Path(new).is_file():
        return filecmp.cmp(old, new, shallow=False)
    return Path(old).name == Path(new).name


def same_run(resolved: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a run that began with the config `resolved` is one of `config`, but for what may change."""
    if meaning_of(resolved) != config.meaning:
        return False
    changed = differences(resolved, config.to_json())
    return all(same_value(key, *pair) for key, pair in changed.items() if is_input(key) and not may_change(key))


def meaning_of(resolved: Mapping[str, Any]) -> str:
    """Hash of a resolved config without what may change when a run is resumed, and with paths' last names only."""

    def without(value: Any, where: str) -> Any:
        if isinstance(value, list):
            return [without(item, where) for item in value]
        if not isinstance(value, Mapping):
            return Path(value).name if is_input(where) and isinstance(value, str) else value
        # A key that is null is as good as none: configs of early runs lack those that came later.
        kept = {k: v for k, v in value.items() if v is not None and not may_change(join(where, k))}
        return {k: without(v, join(where, k)) for k, v in kept.items()}

    return fingerprint(without(resolved, ""))


def config_json_schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors, in which what several components share is said once."""
    return share_repeated(full_json_schema())


def full_json_schema() -> dict[str, Any]:
    """JSON Schema of a config file; of each kind of component that others name, there is one definition."""
    schema = object_schema(RunConfig)
    schema["properties"]["extends"] = {
        "description": "Config files, relative to this one, over which this one is laid.",
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
    }
    schema["properties"]["$schema"] = {"type": "string"}
    schema["$defs"] = {
        registry.kind: registry.json_schema() for registry in (BACKBONES, NECKS, HEADS, TRANSFORMS, MIXES, WRITERS)
    }
    schema["$defs"]["loader"] = loader_json_schema()
    del schema["required"]  # a file that extends another holds only the differences
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Segwright config", **schema}


def part_to_evaluate(resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Take from a resolved config what only training uses, so that an evaluation needs no components for that."""
    trainer = {**resolved["trainer"], "monitor": "off", "early_stop": 0, "writers": []}
    unused = {
        "loss": "CrossEntropyLoss2d",
        "lr_scheduler": "Constant",
        "optimizer": {"type": "SGD", "args": {"lr": 0.1}},
    }
    return {**resolved, **unused, "trainer": trainer}


def validating_as_begun(config: RunConfig, resolved: Mapping[str, Any]) -> RunConfig:
    """Return `config` with the validation that a run began with: early ones cropped what `val_split` held out.

    Args:
        config: The config to go on with, or to evaluate.
        resolved: The resolved config in the run's checkpoint; early ones do not know `val_crop_size`.
    """
    section, train = resolved["train_loader"], config.train
    early = isinstance(section, Mapping) and "val_crop_size" not in section.get("args", {})
    if not early or train.batches.held_out is None or train.chain.crop_size is None:
        return config
    chain = replace(train.chain, val_crop_size=train.chain.crop_size)
    return replace(config, train_loader=[replace(train, chain=chain)])


def evaluation_section(
    config: RunConfig,
    *,
    split: str | None = None,
    data_dir: Path | None = None,
    crop: bool = False,
    repeat: bool = False,
) -> LoaderConfig:
    """The loader section to evaluate with.

    Args:
        config: The config of the training.
        split: Part of the dataset; None for what was validated on in training.
        data_dir: Folder of the dataset; None for the one of training.
        crop: Evaluate on the crops that training validated on, instead of whole images.
        repeat: Evaluate on just what training validated on, whatever that is.

    Raises:
        ConfigError: `crop` is asked for, and training had none.
    """
    trained_on = config.val_loader or config.train.for_validation()
    if crop and trained_on.chain.crop_size is None:
        raise ConfigError("--mode center_crop: training validated on whole images. Use --mode single.")
    changes: dict[str, Any] = {"cache": None}  # each image is read once
    if not crop and not repeat:
        changes |= to_json(ChainOptions(val=True))
    if split is not None:
        changes |= {"split": split, "val_split": None}
    if data_dir is not None:
        changes["data_dir"] = str(data_dir)
    resolved = trained_on.to_json()
    resolved["args"] |= changes
    problems: list[str] = []
    section = check_loader(resolved, where="evaluation", problems=problems)
    if section is None:
        raise ConfigError(*problems)
    return section


def evaluation_data(section: LoaderConfig, preparation: Prepare | None = None) -> EvaluationData:
    """The images of a loader section, as the stamp on figures describes them.

    Args:
        section: The section.
        preparation: What is done to the images alone before they are predicted; labels stay as they are.
    """
    chain = section.chain
    size: tuple[int, int] | str
    labels: str | None
    if preparation:
        size, labels = preparation.size, "native"
    else:
        size = chain.crop or preparation_of(chain).size
        labels = None if chain.crop_size or size == "native" else "resized"
    held_out = section.batches.held_out
    return EvaluationData(
        preprocessing=preprocessing_of(chain),
        size=size,
        labels=labels,
        dataset=section.type,
        split=section.split,
        held_out=None if held_out is None else held_out.share,
    )


def with_images(data: EvaluationData, view: Examples) -> EvaluationData:
    """Add to what is said of images of an evaluation which ones those in `view` are."""
    return replace(data, images=hash_of_view(view))


def hash_of_view(view: Examples) -> str:
    """Hash the names of the images in `view`, in order."""
    return hash_of_names(view.key(index) for index in range(len(view)))


def normalization_of(config: RunConfig) -> dict[str, list[float]]:
    """Mean and std that the model normalizes with; empty ones mean each image's own."""
    if config.normalization == "image":
        return {"mean": [], "std": []}
    if isinstance(config.normalization, Normalization):
        return {"mean": config.normalization.mean, "std": config.normalization.std}
    source = BaseDataset if config.normalization == "imagenet" else dataset_class(config.train.type)
    return {"mean": list(source.mean), "std": list(source.std)}


if __name__ == "__main__":
    print(dump_schema(config_json_schema()))
