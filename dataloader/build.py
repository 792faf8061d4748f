"""From the JSON of a loader section to batches: check it, build the dataset, its view and its loader."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from base.base_dataloader import Loader, LoaderOptions
from base.base_dataset import BaseDataset, DatasetView, Transform
from dataloader.hold_out import hold_out_problems
from dataloader.label_statistics import class_pixels
from dataloader.sample_cache import build_cache
from dataloader.scan import default_cache
from dataloader.transforms.chain import ChainOptions, build_chain, chain_problems
from utils import distributed
from utils.classes import ClassTable
from utils.errors import ConfigError, Problem
from utils.json_schema import object_schema
from utils.registry import DATASETS, MIXES
from utils.schema import Component, check_arguments, did_you_mean, fill_defaults, join, parameters_of, to_json


@dataclass(frozen=True)
class LoaderConfig:
    """A loader section, taken apart by whom its flat `args` are for; what `check_loader` makes of JSON.

    Args:
        dataset: Name of the dataset, and the arguments of its own.
        batches: How batches are made.
        chain: How images are resized and augmented.
    """

    dataset: Component
    batches: LoaderOptions
    chain: ChainOptions

    @property
    def type(self) -> str:
        """Name of the dataset."""
        return self.dataset.type

    @property
    def split(self) -> str | None:
        """Part of the dataset, where it has some."""
        split = self.dataset.args.get("split")
        return None if split is None else str(split)

    @functools.cached_property
    def classes(self) -> ClassTable:
        """Classes of the dataset; needs no data folder.

        Raises:
            ConfigError: The arguments describe none.
        """
        return dataset_class(self.type).class_table(**self._options)

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return dataset_class(self.type).image_channels(**self._options)

    @property
    def _options(self) -> dict[str, Any]:
        fixed = getattr(DATASETS[self.type], "keywords", {})  # by the name that it is registered under
        return {**fixed, **self.dataset.args}

    def for_validation(self) -> LoaderConfig:
        """The same without augmentation, for the part that `val_split` holds out."""
        return replace(self, chain=self.chain.for_validation())

    def without_cache(self) -> LoaderConfig:
        """The same, reading its files whenever they are wanted."""
        return replace(self, batches=replace(self.batches, cache=None))

    def to_json(self) -> dict[str, Any]:
        """The section as a config says it, with flat `args`."""
        args = {**to_json(self.batches), **to_json(self.chain), **to_json(self.dataset.args)}
        return {"type": self.type, "args": args}


def dataset_class(name: str) -> type[BaseDataset]:
    """The class that the dataset `name` is registered for."""
    target = DATASETS[name]
    return getattr(target, "func", target)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------- building


def build_dataset(
    loader: LoaderConfig,
    *,
    where: str,
    seed: int,
    classes: ClassTable | None = None,
    problems: list[Problem] | None = None,
) -> BaseDataset:
    """Build the dataset that a loader section names.

    Args:
        loader: The section.
        where: Path of the section in the config, for errors.
        seed: Seed of the run.
        classes: Those of the config, of which the dataset takes over order and labels; None for its own.
        problems: Receives what is wrong with single examples, which are then passed over; None to raise it.

    Raises:
        DataError: Its files are not there or do not fit together.
    """
    dataset: BaseDataset = DATASETS.build(loader.dataset, where=where, seed=seed, problems=problems)
    if classes is not None:
        dataset.classes = dataset.classes.as_in(classes)
    return dataset


def build_view(
    loader: LoaderConfig,
    dataset: BaseDataset,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    where: str = "train_loader",
    first: int = 0,
    own_mean: bool = False,
) -> DatasetView:
    """Build a view of `dataset`, augmented as a loader section says, and decoded beforehand if it says so.

    Args:
        loader: The section.
        dataset: What it names.
        seed: Decides the augmentation.
        indices: Examples of `dataset` to use; None for all.
        where: Path of the section in the config, for errors.
        first: Number of the dataset's first example among those of all that are joined.
        own_mean: Pad an image with its own mean color, not the dataset's: for models that normalize each by itself.

    Raises:
        UserError: There is no room for decoded images.
    """
    batches = loader.batches
    fill: tuple[float, ...] = tuple(255 * mean for mean in dataset.mean)
    if own_mean:
        fill = ()
    elif len(fill) != dataset.channels:  # its mean is not known here
        fill = (0,)
    read = None
    if batches.cache:
        folder, workers = default_cache() / "samples", batches.num_workers
        cache = build_cache(dataset, batches.cache, folder=folder, name=where, indices=indices, num_workers=workers)
        read = cache.read
    view = DatasetView(
        dataset,
        build_chain(loader.chain, fill, where="args"),
        seed=seed,
        indices=indices,
        on_bad_sample=batches.on_bad_sample,
        read=read,
        first=first,
    )
    if loader.chain.mix is not None:
        facts: dict[str, Any] = {"class_names": dataset.classes.names, "num_classes": len(dataset.classes)}
        if needs_class_pixels(loader.chain.mix):
            facts["class_pixels"] = class_pixels(view, batches.num_workers)
        view.mix = MIXES.build(loader.chain.mix, where=f"{where}.args.mix", **facts)
    return view


def needs_class_pixels(mix: Component) -> bool:
    """Tell whether `mix` chooses classes by their pixels, which costs a scan of the training set."""
    return "class_pixels" in parameters_of(MIXES[mix.type]) and mix.args.get("classes") is None


def build_val_loader(
    loader: LoaderConfig,
    dataset: BaseDataset,
    *,
    seed: int,
    indices: Sequence[int] | None = None,
    pin_memory: bool = False,
    transform: Transform | None = None,
    own_mean: bool = False,
) -> Loader:
    """Build a loader to evaluate with: native images one by one, crops in batches; what is unsure in labels is void.

    Args:
        loader: The section.
        dataset: What it names.
        seed: Decides what is random in the section's chain, if anything.
        indices: Examples of `dataset` to use; None for all.
        pin_memory: Put batches where a GPU can fetch them.
        transform: What to do with images and labels instead of what the section's chain says.
        own_mean: As for `build_view`.
    """
    size = loader.chain.crop
    if dataset.classes.any_of:
        dataset = copy.copy(dataset)  # the same one may be trained on
        dataset.classes = dataset.classes.settled()
    view = build_view(loader, dataset, seed=seed, indices=indices, where="val_loader", own_mean=own_mean)
    if transform is not None:
        view.transform, view.mix = transform, None
    return Loader(
        view,
        max(loader.batches.batch_size if size else 1, distributed.world_size()),  # each process at least one image
        num_workers=loader.batches.num_workers,
        training=False,
        shuffle=False,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        pin_memory=pin_memory,
        size=size,
    )


# ------------------------------------------------------------------------------------------------------- checking


def owners_of(dataset: str) -> dict[str, Any]:
    """Who owns which of a loader's flat `args`: the fields of `LoaderConfig`."""
    return {"dataset": DATASETS[dataset], "batches": LoaderOptions, "chain": ChainOptions}


def check_loader(value: Any, *, where: str, problems: list[str]) -> LoaderConfig | None:
    """Parse a loader section, with every default filled in.

    Args:
        value: Its JSON, with the arguments of all three owners in one object.
        where: Its path in the config.
        problems: Receives one line for everything that is wrong; then the result is None.
    """
    component = DATASETS.parse(value, where=where, problems=problems)
    if component is None:
        return None
    name, path, found = component.type, join(where, "args"), len(problems)
    reserved, owners = DATASETS.reserved(name), owners_of(name)
    known = {owner: parameters_of(target).keys() - reserved for owner, target in owners.items()}
    everything = frozenset().union(*known.values())
    for key in component.args:
        if key not in everything:
            problems.append(f"{join(path, key)}: unknown key. {did_you_mean(key, everything)}")
    checked = {}
    for owner in ("batches", "chain", "dataset"):
        given = {key: each for key, each in component.args.items() if key in known[owner]}
        left = reserved if owner == "dataset" else ()
        checked[owner] = check_arguments(owners[owner], given, where=path, reserved=left, problems=problems)
    if len(problems) > found:
        if len(checked["chain"]) == len(component.args.keys() & known["chain"]):  # each is right, but together?
            problems += chain_problems(ChainOptions(**checked["chain"]), path)
        return None
    own = fill_defaults(owners["dataset"], checked["dataset"], reserved=reserved)
    loader = LoaderConfig(
        Component(name, own, checked=DATASETS.kind),
        LoaderOptions(**checked["batches"]),
        ChainOptions(**checked["chain"]),
    )
    problems += loader_problems(loader, path)
    return loader if len(problems) == found else None


def loader_problems(loader: LoaderConfig, where: str) -> list[str]:
    """What is wrong between the arguments of a loader, which are each right and stand at `where`."""
    splits = dataset_class(loader.type).splits
    problems = chain_problems(loader.chain, where)
    if loader.split is not None and loader.split not in splits:
        wrong = f"{where}.split: {loader.type} has no '{loader.split}'. {did_you_mean(loader.split, splits)}"
        return [wrong, *problems]
    if loader.chain.reduced_jpeg and loader.batches.cache:
        problems.append(
            f"{where}.reduced_jpeg: has no effect with a cache, which keeps whole images. Remove one of them."
        )
    if loader.batches.held_out is not None:
        problems += hold_out_problems(loader.batches.held_out, f"{where}.val_split")
    if loader.chain.val_crop_size is not None and loader.batches.held_out is None:
        problems.append(f'{where}.val_crop_size: has no effect without "val_split". Remove it, or hold something out.')
    try:
        loader.classes  # noqa: B018  for its errors
    except ConfigError as error:
        arguments = loader.to_json()["args"]
        for problem in error.problems:  # they begin with an argument's name, or with that of a file of classes
            is_argument = re.split(r"\W", problem)[0] in arguments
            problems.append(join(where, problem) if is_argument else problem)
    else:
        problems += mix_problems(loader, join(where, "mix"))
    return problems


def mix_problems(loader: LoaderConfig, where: str) -> list[str]:
    """What is wrong with the mix of a loader, which stands at `where`, as far as it shows without the data."""
    mix = loader.chain.mix
    if mix is None or needs_class_pixels(mix):
        return []
    try:
        MIXES.build(mix, where=where, class_names=loader.classes.names, num_classes=len(loader.classes))
    except ConfigError as error:
        return list(error.problems)
    return []


# What the first of several training sets says for all.
SHARED = [name for name in parameters_of(LoaderOptions) if name != "cache"]


def check_train_loader(value: Any, *, where: str, problems: list[str]) -> list[LoaderConfig]:
    """Parse the training sets: one section, or a list whose images are drawn from as if they were one dataset.

    The first says for all how batches are made. What is wrong goes to `problems`; then the list is not complete.
    """
    if not isinstance(value, list):
        single = check_loader(value, where=where, problems=problems)
        return [single] if single else []
    if not value:
        problems.append(f"{where}: an empty list. Give a dataset.")
        return []
    first = check_loader(value[0], where=f"{where}[0]", problems=problems)
    if first is None:
        return []
    if len(value) > 1 and first.batches.held_out:
        problems.append(f"{where}[0].args.val_split: does not work with several training sets. Give a val_loader.")
    loaders = [first]
    for number, raw in enumerate(value[1:], start=1):
        other = check_other(raw, first, where=f"{where}[{number}]", first_where=f"{where}[0]", problems=problems)
        if other is not None:
            loaders.append(other)
    return loaders


def check_other(
    value: Any, first: LoaderConfig, *, where: str, first_where: str, problems: list[str]
) -> LoaderConfig | None:
    """Parse the section of a further training set, whose batches are made as the `first` one says."""
    shared = {name: option for name, option in to_json(first.batches).items() if name in SHARED}
    if isinstance(value, str):
        value = {"type": value}
    if isinstance(value, Mapping) and isinstance(value.get("args", {}), Mapping):
        given = value.get("args", {})
        for name in SHARED:
            if name in given and given[name] != shared[name]:
                problems.append(
                    f"{where}.args.{name}: differs from that of {first_where}, which is for all. Remove it."
                )
        value = {**value, "args": {**shared, **given}}
    other = check_loader(value, where=where, problems=problems)
    if other is not None:
        problems += misfits(first, other, where, first_where)
    return other


def misfits(first: LoaderConfig, other: LoaderConfig, where: str, first_where: str) -> list[str]:
    """Why the images of two training sets could not stand in one batch."""
    problems = []
    if problem := other_classes(first, other, where, first_where):
        problems.append(problem)
    if other.channels != first.channels:
        problems.append(f"{where}: its images have {other.channels} channels, not {first.channels}.")
    if other.chain.crop != first.chain.crop:
        problems.append(f"{where}.args: its images are not as large as those of {first_where}. Use one crop_size.")
    return problems


def other_classes(first: LoaderConfig, other: LoaderConfig, where: str, first_where: str) -> str:
    """Say how the classes of two sections differ; nothing where both have the same, in any order."""
    mine, theirs = other.classes.names, first.classes.names
    texts = []
    for names, rest, verb in ((mine, theirs, "have"), (theirs, mine, "lack")):
        if only := [f"'{name}'" for name in names if name not in rest]:
            texts.append(f"{verb} {', '.join(only[:4])}{' and others' if len(only) > 4 else ''}")
    if not texts:
        return ""
    what = f"its classes differ from those of {first_where}: they {' and '.join(texts)}"
    fix = 'Give a class one name in both; where one was not labelled, "label_map" says which label may be it too'
    return f'{where}: {what}. {fix}: {{"0": [...]}}.'


def shared_classes(sections: Sequence[LoaderConfig]) -> ClassTable:
    """Return the classes of training sets that are joined, in the order of the first one's."""
    first, *others = (section.classes for section in sections)
    return first.joined_with([other for other in others if set(other.names) == set(first.names)])


def preprocessing_of(chain: ChainOptions) -> str:
    """What validation looks at, in a word: whole images only where nothing else was asked for."""
    if chain.transforms is not None:
        return "transforms"
    if chain.augment:
        return "augmented"
    if chain.crop_size is None:
        return "single"
    return "center_crop" if chain.val else "random_crop"


def loader_json_schema() -> dict[str, Any]:
    """JSON Schema of a loader section: the arguments of all three owners, for each dataset."""
    rules = [
        {
            "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
            "then": {"properties": {"args": _arguments_schema(name)}},
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


def _arguments_schema(dataset: str) -> dict[str, Any]:
    """JSON Schema of the flat `args`; a file that extends another holds only the differences, so none is required."""
    properties: dict[str, Any] = {}
    for target in (LoaderOptions, ChainOptions, DATASETS[dataset]):
        properties |= object_schema(target, reserved=DATASETS.reserved(dataset))["properties"]
    return {"type": "object", "properties": properties, "additionalProperties": False}
