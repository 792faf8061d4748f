"""From the JSON of a loader section to batches: check it, build the dataset, its view and its loader."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from base.base_dataloader import Loader, LoaderOptions
from base.base_dataset import BaseDataset, DatasetView
from dataloader.sample_cache import build_cache
from dataloader.scan import default_cache
from dataloader.transforms.chain import ChainOptions, build_chain, chain_problems
from utils import distributed
from utils.classes import IGNORE, ClassTable
from utils.errors import ConfigError, Problem
from utils.registry import DATASETS
from utils.reproducibility import stream
from utils.schema import (
    Component,
    check_arguments,
    did_you_mean,
    fill_defaults,
    join,
    object_schema,
    parameters_of,
    to_json,
)


def build_dataset(
    loader: Component,
    *,
    where: str,
    seed: int,
    ignore_index: int = IGNORE,
    problems: list[Problem] | None = None,
) -> BaseDataset:
    """The dataset that a loader section names.

    Args:
        loader: The section.
        where: Path of the section in the config, for errors.
        seed: Seed of the run.
        ignore_index: Class whose pixels become void.
        problems: Receives what is wrong with single examples, which are then passed over; None to raise it.

    Raises:
        DataError: Its files are not there or do not fit together.
    """
    args = split_loader_args(loader.type, loader.args)["dataset"]
    component = Component(loader.type, args)
    dataset: BaseDataset = DATASETS.build(component, where=where, seed=seed, problems=problems)
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
) -> DatasetView:
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
    return DatasetView(
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


def channels_of(loader: Component) -> int:
    """How many channels the images of a loader section have."""
    return loader.args.get("channels", dataset_class(loader.type).channels)


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


def preprocessing_of(chain: ChainOptions) -> str:
    """What validation looks at, in a word: whole images only where nothing else was asked for."""
    if chain.transforms is not None:
        return "transforms"
    if chain.augment:
        return "augmented"
    if chain.crop_size is None:
        return "single"
    return "center_crop" if chain.val else "random_crop"
