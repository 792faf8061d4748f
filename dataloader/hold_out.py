"""Which images of a training set are held out for validation."""

from __future__ import annotations

import re
from collections.abc import Sequence

from base.base_dataloader import HoldOut
from base.base_dataset import BaseDataset
from utils.errors import ConfigError
from utils.reproducibility import stream

WHERE = "train_loader.args.val_split"  # of several training sets none is divided


def hold_out(dataset: BaseDataset, options: HoldOut, seed: int) -> tuple[list[int], list[int]]:
    """Divide the images of a dataset into those to train on and those to validate on; returns their indices.

    Args:
        dataset: The training set.
        options: How many to hold out, and what has to stay together.
        seed: Seed of the run; decides which, unless `options` has a seed of its own.

    Raises:
        ConfigError: Nothing would be left on one of the sides, or an image is in no group.
    """
    length, share = len(dataset), options.share
    count = round(length * share) if share < 1 else int(share)
    if not 0 < count < length:
        raise ConfigError(f"{WHERE}: {share:g} of {length} images. Leave some on both sides.")
    groups = groups_of(dataset, options.by)
    if len(groups) < 2:
        raise ConfigError(f"{WHERE}.by: all {length} images are one group. Name something that tells them apart.")
    rng = stream(seed if options.seed is None else options.seed, "split")
    shuffled = [groups[number] for number in rng.permutation(len(groups))]
    chosen = _about(shuffled, count) if options.fold is None else _fold(shuffled, options, options.fold)
    held_out = {index for group in chosen for index in group}
    return [index for index in range(length) if index not in held_out], sorted(held_out)


def groups_of(dataset: BaseDataset, by: str | int | None) -> list[list[int]]:
    """Indices of the images that have to stay together, a list for each group, in the order of the dataset.

    Args:
        dataset: The images.
        by: As in `HoldOut`.

    Raises:
        ConfigError: An image is in no group.
    """
    if by is None:
        return [[index] for index in range(len(dataset))]
    keys = [str(sample.key) for sample in dataset.samples]
    names = _columns(dataset, keys, by) if isinstance(by, int) else _matches(keys, by)
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        groups.setdefault(name, []).append(index)
    return list(groups.values())


def hold_out_problems(options: HoldOut, where: str) -> list[str]:
    """What is wrong with options that are each of the right type, and stand at `where`."""
    problems = []
    if isinstance(options.by, str):
        try:
            re.compile(options.by)
        except re.error as error:
            problems.append(f"{where}.by: {options.by!r} is no regular expression ({error}). Write one like '^[^_]+'.")
    if options.fold is not None:
        folds = _folds(options)
        if not folds:
            problems.append(f"{where}.fold: {options.share:g} is no half, third, fourth ... Give such a share.")
        elif options.fold >= folds:
            problems.append(f"{where}.fold: {options.fold} of {folds} folds, counted from 0. Use {folds - 1} at most.")
    return problems


def _matches(keys: Sequence[str], pattern: str) -> list[str]:
    """What `pattern` matches in each name: its first pair of parentheses or, without any, all of it."""
    expression = re.compile(pattern)
    found = [expression.search(key) for key in keys]
    if without := [key for key, match in zip(keys, found, strict=True) if match is None]:
        shown = ", ".join(without[:3]) + (", ..." if len(without) > 3 else "")
        raise ConfigError(
            f"{WHERE}.by: {pattern!r} matches nothing in {len(without)} of {len(keys)} names ({shown}). "
            f"Write one that matches in each."
        )
    return [str(match[1 if expression.groups else 0]) for match in found if match is not None]


def _columns(dataset: BaseDataset, keys: Sequence[str], number: int) -> list[str]:
    """What stands in column `number`, from 1, of the list that names each image."""
    if without := [key for key in keys if len(dataset.listed.get(key, ())) < number]:
        again = ", pack the set again if it is a packed one" if not dataset.listed else ""
        raise ConfigError(
            f"{WHERE}.by: no list has a column {number} for {len(without)} of {len(keys)} images ({without[0]}). "
            f'Add it to the "list_file", behind a tab{again}, or give a regular expression over names.'
        )
    return [dataset.listed[key][number - 1] for key in keys]


def _about(groups: Sequence[list[int]], count: int) -> list[list[int]]:
    """Of groups in random order, take some that together have about `count` images: just so many where each has one."""
    taken: list[list[int]] = []
    size = 0
    for group in groups:
        nearer = abs(size + len(group) - count) < abs(size - count)
        if nearer and len(taken) + 1 < len(groups):
            taken.append(group)
            size += len(group)
    return taken or [min(groups, key=len)]


def _fold(groups: Sequence[list[int]], options: HoldOut, number: int) -> list[list[int]]:
    """Divide groups, in random order, into folds of about the same size, and return one.

    The largest group goes first, and each to the smallest fold so far (Graham 1969, "Bounds on multiprocessing timing
    anomalies").
    """
    count = _folds(options)
    if len(groups) < count:
        what = "images" if options.by is None else "groups of images"
        raise ConfigError(f"{WHERE}: {count} folds of {len(groups)} {what}. Use {len(groups)} folds at most.")
    folds: list[list[list[int]]] = [[] for _ in range(count)]
    sizes = [0] * count
    for group in sorted(groups, key=len, reverse=True):
        smallest = sizes.index(min(sizes))
        folds[smallest].append(group)
        sizes[smallest] += len(group)
    return folds[number]


def _folds(options: HoldOut) -> int:
    """How many folds a share makes; 0 where that is no whole number."""
    count = round(1 / options.share) if 0 < options.share < 1 else 0
    return count if count and abs(count * options.share - 1) < 0.02 else 0
