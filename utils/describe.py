"""What the registries hold, in words."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from utils.registry import KINDS, Registry
from utils.schema import EMPTY, alias_of, describe_arguments, is_plain, parameters_of, show, spell
from utils.terminal import name_table, wrapped, wrapped_line


def list_names(kinds: Sequence[str]) -> str:
    """Names of each kind with the first line of what they are."""
    return tables({kind: {name: summary(KINDS[kind], name) for name in sorted(KINDS[kind])} for kind in kinds})


def tables(rows: Mapping[str, Mapping[str, str]]) -> str:
    """Write a table for each kind: names, and what they are."""
    return "\n\n".join("\n".join([f"{kind}:", *name_table(texts)]) for kind, texts in rows.items())


def find_names(part: str) -> dict[str, dict[str, str]]:
    """Find the names that have `part` in them, in whatever case: by kind, with the first line of what they are."""
    found = {}
    for kind, registry in KINDS.items():
        names = [name for name in sorted(registry) if part.lower() in name.lower()]
        if names:
            found[kind] = {name: summary(registry, name) for name in names}
    return found


def summary(registry: Registry, name: str) -> str:
    """First sentence of the docstring of `name`.

    Of several names of one class or function, some have a paragraph of their own, which begins with the name.
    """
    target = registry[name]
    target = target.func if isinstance(target, functools.partial) else target
    doc = plain_text(inspect.getdoc(target) or "")
    for paragraph in doc.split("\n\n"):
        if paragraph.startswith(f"`{name}`: "):
            text = " ".join(paragraph.removeprefix(f"`{name}`: ").split())
            return f"{text[:1].upper()}{text[1:].partition('. ')[0].rstrip('.')}."
    if target.__module__.startswith("torch."):
        return f"{target.__module__.rpartition('.')[0]}.{name}" if not doc else doc.split("\n")[0]
    return " ".join(doc.split("\n\n")[0].split())


def describe(name: str, shared: Mapping[str, Sequence[type]] = MappingProxyType({})) -> str | None:
    """Kind, documentation and arguments of `name`; None if no registry has it.

    Args:
        name: A name that a config may use, or one by which others call the same.
        shared: Dataclasses whose fields may be said of every component of a kind, by kind, such as "datasets".
    """
    for kind, registry in KINDS.items():
        known = name if name in registry else alias_of(name, registry)
        if known is None:
            continue
        target = registry[known]
        documented = target.func if isinstance(target, functools.partial) else target
        text = plain_text((inspect.getdoc(documented) or "").partition("\nArgs:")[0])
        lines = [f"{known} ({registry.kind}; {kind})", "", wrapped(text), "", "arguments:"]
        if known != name:
            lines.insert(0, f"{name} is called {known} here.")
        lines += argument_lines(target, registry.reserved(known)) or ["  none"]
        for options in shared.get(kind, ()):
            summary = (inspect.getdoc(options) or options.__name__).partition("\n")[0]
            lines += ["", wrapped(f"and, as for all {kind}: {summary}"), *argument_lines(options)]
        return "\n".join(lines)
    return None


def argument_lines(target: Callable[..., Any], reserved: Collection[str] = (), *, only: str | None = None) -> list[str]:
    """Give a line for each argument of `target`, with its type and default, and one of what it means.

    Args:
        target: A component, or a dataclass whose fields are keys of a config.
        reserved: Arguments to pass over.
        only: The only argument to describe; None for all.
    """
    documented = target.func if isinstance(target, functools.partial) else target
    texts, lines = describe_arguments(documented), []
    for key, parameter in parameters_of(target).items():
        if key in reserved or only not in (None, key):
            continue
        hint = "" if parameter.annotation is EMPTY else f": {spell(parameter.annotation)}"
        if parameter.default is EMPTY:
            default = ", required"
        else:
            default = f" = {show(parameter.default)}" if is_plain(parameter.default) else ""
        lines.append(wrapped_line(f"  {key}{hint}{default}", deeper=8))
        if texts.get(key):
            lines.append(wrapped_line(f"      {plain_text(texts[key])}"))
    return lines


ROLE = re.compile(r":[\w:]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`")  # of reStructuredText, such as :math:`x` or :class:`Adam`
LINK = re.compile(r"`(?=\S)([^`<]+?)\s*(?:<[^`]*>)?`_+")


def plain_text(doc: str) -> str:
    """Take from a docstring of torch what a terminal cannot show: directives such as formulas, roles and links."""
    text = "\n".join(_without_directives(doc.splitlines()))
    text = ROLE.sub(lambda match: re.sub(r"[\\{}]", "", match[1]), text)
    text = LINK.sub(r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _without_directives(lines: Sequence[str]) -> Iterator[str]:
    """Pass over each directive, ``.. name::``, and over all that is indented deeper below it."""
    depth: int | None = None  # of the directive that is passed over
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if depth is not None and (not line.strip() or indent > depth):
            continue
        is_directive = line.lstrip().startswith(".. ")
        depth = indent if is_directive else None
        if not is_directive:
            yield line
