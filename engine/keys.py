"""What the keys of a config mean, and where each stands: for ``--describe``, and for hints at keys given elsewhere."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass
from typing import Any, cast, get_args

from base.base_dataloader import LoaderOptions
from base.base_model import Backbone, BaseModel
from base.base_trainer import TrainerConfig
from dataloader.transforms.chain import ChainOptions
from engine.config import Normalization, RunConfig
from models.build import ModelOptions
from models.costs import networks
from models.fine_tuning import InitFrom
from models.weights import backbones_of, public_weights
from utils.describe import argument_lines
from utils.errors import ConfigError
from utils.losses.criterion import LossTerm
from utils.lr_scheduler import SchedulerConfig
from utils.optimizers import OptimizerConfig, PartOptions
from utils.registry import BACKBONES, DATASETS, LOSSES, MODELS, OPTIMIZERS, SCHEDULERS, Registry
from utils.schema import describe_arguments, parameters_of

# Who says which keys a section has; the first that has a key is where a hint leads to.
SECTIONS: dict[str, tuple[type, ...]] = {
    "": (RunConfig,),
    "trainer": (TrainerConfig,),
    "optimizer": (OptimizerConfig,),
    "optimizer.parts.backbone": (PartOptions,),
    "optimizer.parts.decoder": (PartOptions,),
    "lr_scheduler": (SchedulerConfig,),
    "train_loader": (),
    "train_loader.args": (LoaderOptions, ChainOptions),
    "val_loader": (),
    "val_loader.args": (LoaderOptions, ChainOptions),
    "arch": (),
    "arch.args": (ModelOptions,),
    "loss": (LossTerm,),
    "init_from": (InitFrom,),
    "normalization": (Normalization,),
}

# Sections with the arguments of a component, besides those above.
COMPONENTS: dict[str, Registry] = {
    "optimizer.args": OPTIMIZERS,
    "train_loader.args": DATASETS,
    "val_loader.args": DATASETS,
    "arch.args": MODELS,
    "loss.args": LOSSES,
    "lr_scheduler.args": SCHEDULERS,
}


def place_of(key: str) -> str | None:
    """Give the dotted path of the first section that has `key`; None if none has."""
    for section, owners in SECTIONS.items():
        if section and any(key in parameters_of(owner) for owner in owners):
            return f"{section}.{key}"
    for section in COMPONENTS:
        if _takers(section, key):
            return f"{section}.{key}"
    return None


def key_places(keys: Sequence[str]) -> dict[str, str]:
    """Give the dotted paths of those of `keys` that stand in a section, and not at the top of a config."""
    top = parameters_of(RunConfig)
    places = {key: place_of(key) for key in keys if key not in top}
    return {key: place for key, place in places.items() if place is not None}


def describe_weights(name: str) -> list[str]:
    """Say which public weights the model or backbone `name` can start from, by default, and under which license."""
    if name not in BACKBONES and name not in MODELS:
        return []
    try:
        _, network = next(networks([name]))
    except ConfigError:  # an argument has no default, or timm is not installed
        return []
    found = [network] if isinstance(network, Backbone) else backbones_of(cast("BaseModel", network))
    named = dict(filter(None, map(public_weights, found)))
    return [f"public weights: {weights}, license: {license}" for weights, license in named.items()]


def find_keys(part: str) -> dict[str, str]:
    """Find the keys of a config that have `part` in their own name; by their dotted paths, with what they mean."""
    found = {}
    for section, owners in SECTIONS.items():
        for owner in owners:
            texts = describe_arguments(owner)
            for key in parameters_of(owner):
                if part.lower() in key.lower() and not section.startswith("val_loader"):  # as in train_loader
                    found[f"{section}.{key}" if section else key] = texts.get(key, "")
    return found


def describe_key(path: str) -> str | None:
    """Describe a section such as ``trainer``, or a key such as ``train_loader.args.crop_size``; None if there is none.

    Args:
        path: Dotted names, as ``--set`` takes them, or the last of them alone.
    """
    names = [name for name in path.split(".") if not name.isdecimal()]  # numbers stand for one of several
    known = _describe(names) if all(names) else None
    if known is None and len(names) == 1 and (place := place_of(path)) is not None:
        known = _describe(place.split("."))
    return known


def _describe(names: Sequence[str]) -> str | None:
    """Describe the key at `names` and, if it is a section, its keys."""
    path = ".".join(names)
    lines = list(_of_key(names))
    keys = [line for owner in _owners(path) for line in argument_lines(owner)]
    if not lines and not keys and path not in COMPONENTS:
        return None
    if f"{path}.args" in COMPONENTS and not keys:
        keys = ["  type: a name", f"  args: an object; `--describe {path}.args` lists it"]
    parts = ["\n".join(lines), "\n".join(["keys:", *keys]) if keys else ""]
    if path in COMPONENTS:
        parts.append(f"and the arguments of the {COMPONENTS[path].kind} that is named: `--describe NAME` lists them.")
    return "\n\n".join([f"{path} (key of a config)", *filter(None, parts)])


def _of_key(names: Sequence[str]) -> Iterator[str]:
    """Say type, default and meaning of the key at `names`."""
    parent, key = ".".join(names[:-1]), names[-1]
    for owner in _owners(parent):
        if key in parameters_of(owner):
            yield from argument_lines(owner, only=key)
            return
    takers = _takers(parent, key)
    if takers:
        yield from argument_lines(COMPONENTS[parent][takers[0]], only=key)
        shown = ", ".join(takers[:12]) + (", ..." if len(takers) > 12 else "")
        yield f"  an argument of {shown}; `--describe {takers[0]}` shows its others"


def _takers(section: str, key: str) -> list[str]:
    """List the components that may be named in a section whose arguments are `key`, among others."""
    registry = COMPONENTS.get(section)
    if registry is None:
        return []
    return sorted(name for name in registry if key in parameters_of(registry[name]).keys() - registry.reserved(name))


def _owners(path: str) -> tuple[type, ...]:
    """Give the dataclasses whose fields are the keys at `path`."""
    if path in SECTIONS:
        return SECTIONS[path]
    parent, _, key = path.rpartition(".")
    found: list[type] = []
    for owner in _owners(parent):
        if key in parameters_of(owner):
            found += _dataclasses(parameters_of(owner)[key].annotation)
    return tuple(found)


def _dataclasses(hint: Any) -> Iterator[type]:
    """Give the dataclasses that stand in an annotation."""
    if inspect.isclass(hint) and is_dataclass(hint):
        yield hint
    for option in get_args(hint):
        yield from _dataclasses(option)
