"""What the registries hold, in words."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from utils.registry import KINDS, Registry
from utils.schema import EMPTY, describe_arguments, is_plain, parameters_of, show, spell


def list_names(kinds: Sequence[str]) -> str:
    """Names of each kind with the first line of what they are."""
    lines = []
    for kind in kinds:
        registry = KINDS[kind]
        names = sorted(registry)
        width = max(map(len, names), default=0)
        lines += [f"{kind}:", *(f"  {name:<{width}}  {summary(registry, name)}" for name in names), ""]
    return "\n".join(lines).rstrip()


def summary(registry: Registry, name: str) -> str:
    """First sentence of the docstring of `name`."""
    target = registry[name]
    target = target.func if isinstance(target, functools.partial) else target
    doc = inspect.getdoc(target) or ""
    if target.__module__.startswith("torch."):
        return f"{target.__module__.rpartition('.')[0]}.{name}" if not doc.strip() else doc.strip().split("\n")[0]
    return doc.split("\n\n")[0].replace("\n", " ")


def describe(name: str, shared: Mapping[str, Sequence[type]] = MappingProxyType({})) -> str | None:
    """Kind, documentation and arguments of `name`; None if no registry has it.

    Args:
        name: A name that a config may use.
        shared: Dataclasses whose fields may be said of every component of a kind, by kind, such as "datasets".
    """
    for kind, registry in KINDS.items():
        if name not in registry:
            continue
        target = registry[name]
        documented = target.func if isinstance(target, functools.partial) else target
        text = (inspect.getdoc(documented) or "").partition("\nArgs:")[0].strip()
        lines = [f"{name} ({registry.kind}; {kind})", "", text, "", "arguments:"]
        lines += _arguments(target, documented, registry.reserved(name)) or ["  none"]
        for options in shared.get(kind, ()):
            summary = (inspect.getdoc(options) or options.__name__).partition("\n")[0]
            lines += ["", f"and, as for all {kind}: {summary}", *_arguments(options, options, ())]
        return "\n".join(lines)
    return None


def _arguments(target: Callable[..., Any], documented: Callable[..., Any], reserved: Collection[str]) -> list[str]:
    """A line for each argument of `target`, with its type and default, and one of what it means."""
    texts, lines = describe_arguments(documented), []
    for key, parameter in parameters_of(target).items():
        if key in reserved:
            continue
        hint = "" if parameter.annotation is EMPTY else f": {spell(parameter.annotation)}"
        if parameter.default is EMPTY:
            default = ", required"
        else:
            default = f" = {show(parameter.default)}" if is_plain(parameter.default) else ""
        lines.append(f"  {key}{hint}{default}")
        if texts.get(key):
            lines.append(f"      {texts[key]}")
    return lines
