"""Which splits prepare.py reads: those of a config's loaders, or those of a dataset that is named."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from utils.errors import ConfigError, DataError, MissingData, UserError

if TYPE_CHECKING:
    from base.base_dataset import BaseDataset
    from dataloader.build import LoaderConfig
    from dataloader.tools.doctor import Examined, Finding
    from utils.classes import ClassTable
    from utils.errors import Problem

T = TypeVar("T")


def from_config(args: argparse.Namespace, raw: dict[str, Any]) -> list[Examined]:
    """Read all files of the loaders of a config."""
    from dataloader.hold_out import hold_out
    from engine.check import check_config
    from engine.config import training_sections

    config = check_config(raw)
    examined: list[Examined] = []
    sections = {**training_sections(config), "val_loader": config.val_loader}
    for where, section in sections.items():
        if section is None:
            continue
        chain = section.chain
        plain = chain.augment and chain.base_size is None and chain.resize is None
        training = not examined
        found = examine(args, section, where, training=training, seed=config.seed, classes=config.classes)
        found.crop = chain.crop if plain else None
        found.batch_size = section.batches.batch_size if len(sections) == 2 else None
        if (held_out := section.batches.held_out) is not None:
            share = held_out.share
            found.held_out = round(share * len(found.records)) if share < 1 else int(share)
            with suppress(ConfigError):  # training says so
                chosen = hold_out(found.dataset, held_out, config.seed)[1]
                found.validated = frozenset(found.dataset.samples[index].key for index in chosen)
        if where != "val_loader" and len(sections) > 2:
            found.sources |= {"train_loader"}  # what stands in two training sets is meant to count twice
        examined.append(found)
    validation = config.validation
    examined[0].chains = (config.train.chain, validation.chain) if validation else None
    examined[0].joined = [each for each in examined[1:] if each.split != "val_loader"]
    return examined


def packable(raw: dict[str, Any]) -> list[BaseDataset]:
    """Build the datasets of a config's loaders, each split once.

    Raises:
        UserError: Two have a split of the same name and of other files, so that one would take the other's place.
    """
    from engine.check import check_config
    from engine.config import training_sections

    config = check_config(raw)
    sections = training_sections(config) | ({"val_loader": config.val_loader} if config.val_loader else {})
    datasets: dict[str, tuple[str, BaseDataset]] = {}
    for where, section in sections.items():
        dataset = dataset_of(section, "data")
        first, other = datasets.setdefault(dataset.split, (where, dataset))
        if other.samples != dataset.samples:
            raise UserError(
                f"{where}: split '{dataset.split}' is that of {first}, of other files. "
                f"Pack each into a folder of its own: --dataset, --data-dir, --args."
            )
    return [dataset for _, dataset in datasets.values()]


def dataset_of(section: LoaderConfig, where: str) -> BaseDataset:
    """Build the dataset that a loader section names.

    Raises:
        UserError: It is not there, or its arguments are wrong.
    """
    from dataloader.build import build_dataset

    return build_dataset(section, where=where, seed=0)


def examine_split(args: argparse.Namespace, section: LoaderConfig, split: str) -> Examined:
    """Read all files of a split that was named without a config: nobody said that it is trained or validated on."""
    found = examine(args, section, split, training=split.startswith(("train", "all")))
    found.sources = found.dataset.sources
    return found


def distinct(splits: Sequence[Examined]) -> list[Examined]:
    """Return `splits` less those that only put others together."""
    from dataloader.tools.duplicates import without_unions

    kept = without_unions(splits)
    for examined in splits:
        if examined not in kept:
            print(f"{examined.split}: passed over (it is others put together)")
    return kept


def from_dataset(
    args: argparse.Namespace, make: Callable[[LoaderConfig, str], T], broken: list[Finding] | None = None
) -> list[T]:
    """Call `make` for the splits of a dataset; those that are not there are passed over, unless asked for.

    Args:
        args: The command line.
        make: Called with the loader's section and the name of the split.
        broken: Where to put what is wrong with splits that are there and cannot be used; None to raise it.
    """
    from dataloader.build import check_loader, dataset_class
    from dataloader.tools.doctor import unusable_split

    given = dataset_arguments(args)
    dataset = dataset_class(args.dataset)
    found: list[T] = []
    unusable: list[DataError] = []
    absent: list[tuple[str, UserError]] = []
    for split in args.split or dataset.splits:
        flat = {**given, "data_dir": str(args.data_dir), "split": split, "batch_size": 1}
        problems: list[str] = []
        section = check_loader({"type": args.dataset, "args": flat}, where="--dataset", problems=problems)
        try:
            if section is None:
                raise UserError(*problems)
            found.append(make(section, split))
        except UserError as error:
            if args.split:
                raise
            if isinstance(error, MissingData) or not isinstance(error, DataError):
                absent.append((split, error))
                continue
            if broken is None:
                raise
            unusable.append(error)
            said = error.details[: len(error.details) - 1 or 1]  # the last one follows: that nothing is left
            broken += [unusable_split(split, problem, dataset) for problem in said]
    if not found:
        raise unusable[0] if unusable else absent[0][1]
    for split, reason in absent:
        print(f"{split}: passed over ({reason.problems[0].rstrip('.')})")
    return found


def dataset_arguments(args: argparse.Namespace) -> dict[str, Any]:
    """Read the arguments of the dataset that is named on the command line.

    Raises:
        UserError: There is no such dataset, or they are no JSON object.
    """
    from utils.config import parse_json
    from utils.registry import DATASETS
    from utils.schema import did_you_mean

    if args.dataset not in DATASETS:
        raise UserError(f"--dataset {args.dataset}: no such dataset. {did_you_mean(args.dataset, DATASETS)}")
    try:
        given = parse_json(args.args)
        if not isinstance(given, dict):
            raise ValueError("no object in braces")
    except ValueError as error:
        raise UserError(f'--args: no JSON ({error}). Write it like --args \'{{"mode": "coarse"}}\'.') from None
    return given


def examine(
    args: argparse.Namespace,
    section: LoaderConfig,
    where: str,
    *,
    training: bool,
    seed: int = 0,
    classes: ClassTable | None = None,
) -> Examined:
    """Read all files of a split.

    Raises:
        UserError: It is not there, or its arguments are wrong.
    """
    from dataloader import scan
    from dataloader.build import build_dataset
    from dataloader.tools import doctor

    unpaired: list[Problem] = []
    try:
        dataset = build_dataset(section, where=where, seed=seed, classes=classes, problems=unpaired)
    except DataError as error:
        if not unpaired:
            raise
        raise DataError(*unpaired, *error.details) from None
    cache = None if args.no_cache else scan.default_cache()
    options = {"images": not args.labels_only, "num_workers": max(0, args.workers)}
    records = scan.examine(dataset, name=where, cache=cache, **options)
    skips = section.batches.on_bad_sample == "skip"
    return doctor.Examined(where, dataset, records, unpaired, training, skips=skips)
