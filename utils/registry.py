"""The names that a config may use, by kind of component."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any, TypeVar

from utils.classes import IGNORE
from utils.errors import ConfigError
from utils.json_schema import object_schema
from utils.schema import (
    Component,
    Mismatch,
    Preset,
    annotations_of,
    check_arguments,
    convert_component,
    did_you_mean,
    fill_defaults,
    join,
    parameters_of,
)

T = TypeVar("T", bound=Callable[..., Any])
Factory = Callable[..., Any]

# What only the running program knows. A registered callable asks for one by naming a parameter so, as pytest's
# tests name fixtures; a config may not set it.
FACTS = frozenset(
    {
        "shapes",  # feature maps that a brick will receive
        "num_classes",
        "ignore_index",
        "class_names",
        "class_pixels",  # labelled pixels of each class in the training set
        "class_facts",  # all that is known of the classes, as one `ClassFacts`
        "total_steps",
        "steps_per_epoch",
        "seed",
        "where",  # path in the config, for errors
    }
)
CONSTANT_FACTS = {"ignore_index": IGNORE}  # whatever a config calls void, its labels arrive with 255


class Registry(Mapping[str, Factory]):
    """Components of one kind, by name.

    Args:
        kind: What the entries are, in the singular; used in errors.
        also: Gives further classes that may be named, such as those of `torch.optim`; called at the first
            look-up that needs it, so that making a registry does not import torch.
        reserved: Further parameters that the framework fills in, besides `FACTS` for our own entries.
    """

    def __init__(
        self, kind: str, *, also: Callable[[], Mapping[str, Factory]] | None = None, reserved: Collection[str] = ()
    ) -> None:
        self.kind = kind
        self._entries: dict[str, Factory] = {}
        self._spellings: dict[str, str] = {}
        self._families: dict[str, tuple[Factory, str]] = {}
        self._find_also = also
        self.homes: dict[str, str] = {}  # name of an entry, or prefix of a family, to the module that registered it
        self._reserved = frozenset(reserved)

    def look_also_in(self, find: Callable[[], Mapping[str, Factory]]) -> None:
        """Let `find` give further names, as `also` does for those who make the registry."""
        self._find_also = find

    def register(
        self, name: str | None = None, *, defaults: Mapping[str, Any] = MappingProxyType({}), **preset: Any
    ) -> Callable[[T], T]:
        """Register the decorated class or function under a name, perhaps with arguments of its own.

        Stack it to give one class several names::

            @BACKBONES.register("resnet18", blocks=(BasicBlock,) * 4, depths=(2, 2, 2, 2))
            @BACKBONES.register("resnet50", blocks=(Bottleneck,) * 4, depths=(3, 4, 6, 3))
            class ResNet(Backbone): ...

            @HEADS.register("LightFCNHead", convs=1, defaults={"channels": 64})
            @HEADS.register("FCNHead")
            class FCNHead(Head): ...

        A config cannot set `blocks` of a `resnet50`: a preset takes the argument out of the signature. It can set
        `channels` of a `LightFCNHead`, which are 64 where it does not: a default stays in the signature, and so in
        the JSON Schema, in ``--describe`` and in the resolved config.

        Args:
            name: What a config calls it; None for the target's own name.
            defaults: Values of arguments that a config may still set, in place of the signature's defaults.
            **preset: Values of arguments that a config may not set.

        Raises:
            KeyError: The name is taken.
            TypeError: The callable takes ``*args`` or ``**kwargs``, which would swallow misspelt keys; or it does not
                take an argument that is given here, or one is given twice.
            NameError: An annotation cannot be evaluated, so that types could not be checked.
        """

        home = caller()

        def add(target: T) -> T:
            key = name or target.__name__
            if key in self._entries:
                raise KeyError(f"a {self.kind} called {key!r} is already registered.")
            annotations_of(target)
            parameters = inspect.signature(target).parameters
            for parameter in parameters.values():
                if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    raise TypeError(f"{self.kind} {key!r} takes {parameter}, which would swallow misspelt config keys.")
            for argument in (*preset, *defaults):
                if argument not in parameters:
                    raise TypeError(f"{self.kind} {key!r} takes no argument {argument!r}.")
            if twice := preset.keys() & defaults.keys():
                raise TypeError(f"{self.kind} {key!r}: {min(twice)!r} is both preset and a default.")
            entry = Preset(target, **preset, **defaults)
            entry.defaults = defaults
            self._entries[key] = entry
            self.homes[key] = home
            return target

        return add

    def register_family(self, prefix: str, parameter: str) -> Callable[[T], T]:
        """Register the decorated callable for all names that begin with `prefix`; its `parameter` gets the rest.

        For what another library names: ``timm/resnet50`` need not be known before it is asked for.
        """

        home = caller()

        def add(target: T) -> T:
            annotations_of(target)
            self._families[prefix] = (target, parameter)
            self.homes[prefix] = home
            return target

        return add

    def reserved(self, name: str) -> frozenset[str]:
        """Parameters of the entry `name` that the framework fills in."""
        return FACTS | self._reserved if self._is_own(name) else self._reserved

    def also_called(self, name: str, other: str) -> None:
        """Let a config say `other`, as another program does, where it means `name`."""
        self._spellings[other] = name

    def parse(self, value: Any, *, where: str, problems: list[str]) -> Component | None:
        """A `Component` of this registry from its JSON form, its arguments unchecked; None if it is none."""
        try:
            component = convert_component(value, where)
        except Mismatch as mismatch:
            problems += mismatch.problems
            return None
        if component.type not in self and component.type in self._spellings:
            component = Component(self._spellings[component.type], component.args)
        if component.type not in self:
            path = where if isinstance(value, str) else join(where, "type")
            problems.append(
                f"{path}: no {self.kind} is called '{component.type}'. {did_you_mean(component.type, self)}"
            )
            return None
        return component

    def check(self, value: Any, *, where: str, problems: list[str]) -> Component:
        """`value` as a component with every default filled in; what is wrong with it goes to `problems`."""
        component = self.parse(value, where=where, problems=problems)
        if component is None or component.checked == self.kind:
            return component or Component("")
        target, reserved = self[component.type], self.reserved(component.type)
        arguments = check_arguments(
            target, component.args, where=join(where, "args"), reserved=reserved, problems=problems
        )
        filled = fill_defaults(target, arguments, reserved=reserved)
        return Component(component.type, filled, checked=self.kind)

    def build(self, component: Any, *parts: Any, where: str, **facts: Any) -> Any:
        """Make the object that `component` describes.

        Args:
            component: Name and arguments, as a `Component` or as in a config; one that `check` returned is not
                checked again.
            parts: Finished objects that every component of this kind takes first, such as an optimizer's parameters.
            where: Path of `component` in the config, for errors.
            facts: What only the running program knows; a component receives those that it names, see `FACTS`.

        Raises:
            ConfigError: The name is not registered, or its arguments do not fit.
        """
        problems: list[str] = []
        checked = self.check(component, where=where, problems=problems)
        if problems:
            raise ConfigError(*problems)
        return self.make(checked.type, checked.args, *parts, where=where, **facts)

    def make(self, name: str, args: Mapping[str, Any], /, *parts: Any, where: str, **facts: Any) -> Any:
        """Make the object called `name` of arguments that have been checked; see `build`."""
        target = self[name]
        given = dict(args)
        if self._is_own(name):
            known = {**CONSTANT_FACTS, **facts, "where": join(where, "args")}
            for parameter in parameters_of(target).values():
                if parameter.name in known:
                    given[parameter.name] = known[parameter.name]
                elif parameter.name in FACTS and parameter.default is parameter.empty:
                    raise ConfigError(
                        f"{where}: {name} asks for '{parameter.name}', which no {self.kind} is told. It may ask for "
                        f"{', '.join(sorted(known.keys() & FACTS))}."
                    )
        return target(*parts, **given)

    def json_schema(self) -> dict[str, Any]:
        """JSON Schema of a component: its name or an object; our own entries' arguments are spelled out."""
        rules = [
            {
                "if": {"properties": {"type": {"const": name}}, "required": ["type"]},
                "then": {"properties": {"args": object_schema(self[name], reserved=self.reserved(name))}},
            }
            for name in sorted(self._entries)
        ]
        known = {"type": "string", "anyOf": [{"enum": sorted(self)}, {}]}
        return {
            "anyOf": [
                known,
                {
                    "type": "object",
                    "properties": {"type": known, "args": {"type": "object"}},
                    "required": ["type"],
                    "additionalProperties": False,
                    **({"allOf": rules} if rules else {}),  # an empty list is no valid schema
                },
            ]
        }

    def reference(self) -> dict[str, Any]:
        """Where `json_schema` is found in the schema of a whole config."""
        return {"$ref": f"#/$defs/{self.kind}"}

    @functools.cached_property
    def _also(self) -> Mapping[str, Factory]:
        return self._find_also() if self._find_also else {}

    def _family(self, name: object) -> str | None:
        """Prefix of the family that `name` belongs to."""
        prefixes = (p for p in self._families if isinstance(name, str) and name.startswith(p) and name != p)
        return next(prefixes, None)

    def _is_own(self, name: str) -> bool:
        return name in self._entries or self._family(name) is not None

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._also or self._family(name) is not None

    def __getitem__(self, name: str) -> Factory:
        if name not in self._entries and (prefix := self._family(name)):
            target, parameter = self._families[prefix]
            return functools.partial(target, **{parameter: name.removeprefix(prefix)})
        return self._entries[name] if name in self._entries else self._also[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._entries, **self._also})

    def __len__(self) -> int:
        return len({**self._entries, **self._also})

    def __hash__(self) -> int:  # registries stand in annotations, which typing caches
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def caller() -> str:
    """Name of the module that called the function which calls this one."""
    return str(sys._getframe(2).f_globals.get("__name__", ""))


def import_submodules(package: str) -> None:
    """Import every module of `package`, so that what it registers is known."""
    for found in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{found.name}")


def torch_classes(module: ModuleType, base: type, excluded: Collection[str] = ()) -> dict[str, Factory]:
    """Public classes of torch's `module` that are proper subclasses of `base`."""
    return {
        name: value
        for name, value in inspect.getmembers(module, inspect.isclass)
        if issubclass(value, base)
        and value is not base
        and value.__module__.startswith("torch.")
        and name not in excluded
        and not name.startswith("_")
    }


def _torch_optimizers() -> dict[str, Factory]:
    import torch.optim

    return torch_classes(torch.optim, torch.optim.Optimizer, {"LBFGS", "SparseAdam", "Muon"})


def _torch_schedulers() -> dict[str, Factory]:
    from torch.optim import lr_scheduler

    # These take functions or other schedulers, which JSON cannot say.
    excluded = {"LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler"}
    return torch_classes(lr_scheduler, lr_scheduler.LRScheduler, excluded)


# The channels of the images are said once, in `arch.args`, whatever the model is; see models/build.py.
MODELS, BACKBONES = Registry("model", reserved={"in_channels"}), Registry("backbone", reserved={"in_channels"})
NECKS, HEADS = Registry("neck"), Registry("head")
DATASETS, TRANSFORMS = Registry("dataset", reserved={"problems"}), Registry("transform")
MIXES = Registry("mix")
LOSSES = Registry("loss")
OPTIMIZERS = Registry("optimizer", also=_torch_optimizers, reserved={"params"})
METRICS = Registry("metric")
SCHEDULERS = Registry("scheduler", also=_torch_schedulers, reserved={"optimizer"})
WRITERS = Registry("writer", reserved={"log_dir", "purge_step", "run"})

KINDS = {
    "models": MODELS,
    "backbones": BACKBONES,
    "necks": NECKS,
    "heads": HEADS,
    "losses": LOSSES,
    "metrics": METRICS,
    "datasets": DATASETS,
    "transforms": TRANSFORMS,
    "mixes": MIXES,
    "optimizers": OPTIMIZERS,
    "schedulers": SCHEDULERS,
    "writers": WRITERS,
}
