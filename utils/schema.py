"""Check plain JSON values against Python signatures.

A signature already says which names exist, which are required, what type each takes and what the default
is. It is read once, here, for registered components, config sections and torch's own classes alike, so that
no second schema is ever written: not for checking, not for filling in defaults, not for editors.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Component:
    """A registered name and its arguments, as written in a config: ``{"type": ..., "args": {...}}`` or a name."""

    type: str
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Range:
    """Bounds of a number, for use in ``Annotated[int, AtLeast(1)]``; each bound may be absent."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        bounds = {"of at least": self.least, "above": self.above, "of at most": self.most, "below": self.below}
        return " and ".join(f"{words} {bound:.10g}" for words, bound in bounds.items() if bound is not None)

    def json_schema(self) -> dict[str, Any]:
        bounds = {
            "minimum": self.least,
            "exclusiveMinimum": self.above,
            "maximum": self.most,
            "exclusiveMaximum": self.below,
        }
        return {name: bound for name, bound in bounds.items() if bound is not None}


def AtLeast(least: float) -> Range:  # noqa: N802  reads as a type in annotations
    """Numbers from `least` on."""
    return Range(least=least)


def Above(above: float) -> Range:  # noqa: N802
    """Numbers greater than `above`."""
    return Range(above=above)


def Between(least: float, most: float) -> Range:  # noqa: N802
    """Numbers from `least` to `most`, both included."""
    return Range(least=least, most=most)


class Mismatch(Exception):
    """A value does not fit; carries one or more finished problems."""

    def __init__(self, *problems: str) -> None:
        super().__init__(*problems)
        self.problems = problems


@functools.lru_cache(maxsize=1024)
def parameters_of(target: Callable) -> dict[str, inspect.Parameter]:
    """Parameters of `target` by name, with annotations evaluated where that is possible, else left out.

    `functools.partial` objects lose the parameters that they fix by keyword.
    """
    fixed: Collection[str] = ()
    if isinstance(target, functools.partial):
        fixed, target = target.keywords, target.func
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):
        return {}
    try:
        hints = annotations_of(target)
    except Exception:  # a name that only exists under TYPE_CHECKING: names are still checked, types are not
        hints = {}
    return {
        name: parameter.replace(annotation=hints.get(name, EMPTY))
        for name, parameter in signature.parameters.items()
        if name not in fixed
    }


def annotations_of(target: Callable) -> dict[str, Any]:
    """Evaluated annotations of what `target` takes; a dataclass's fields are evaluated where each was written.

    An ``InitVar`` of a dataclass is an argument like others.

    Raises:
        NameError: An annotation names what does not exist at run time.
    """
    function = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    return {name: hint.type if isinstance(hint, InitVar) else hint for name, hint in hints.items()}


def check_arguments(
    target: Callable,
    given: Any,
    *,
    where: str,
    reserved: Collection[str] = (),
    problems: list[str],
) -> dict[str, Any]:
    """Return `given` as keyword arguments for `target`, converted from JSON types.

    Args:
        target: Class, dataclass or function whose signature is the schema.
        given: Values from the config, by parameter name.
        where: Path of `given` in the config, such as ``"arch.args.head"``; begins every problem.
        reserved: Parameters of `target` that the framework fills in, which a config may not set.
        problems: Receives one line for every name that is unknown, missing or reserved and for every value of
            a wrong type or out of range. What is returned is only good to be used if none were added.
    """
    if not isinstance(given, Mapping):
        problems.append(f"{where}: expected an object, got {show(given)}.")
        return {}
    parameters = parameters_of(target)
    open_names = [name for name in parameters if name not in reserved]
    arguments = {}
    for name, value in given.items():
        place = join(where, name)
        if name in reserved:
            problems.append(f"{place}: is filled in by the framework. Remove it.")
        elif name not in parameters:
            problems.append(f"{place}: unknown key. {did_you_mean(name, open_names)}")
        else:
            try:
                arguments[name] = convert(value, parameters[name].annotation, place)
            except Mismatch as mismatch:
                problems += mismatch.problems
    for name in open_names:
        if name not in given and parameters[name].default is EMPTY:
            kind = parameters[name].annotation
            problems.append(f"{join(where, name)}: missing. Give {spell(kind)}.")
    return arguments


def fill_defaults(target: Callable, given: Mapping[str, Any], *, reserved: Collection[str] = ()) -> dict[str, Any]:
    """`given` and, after it, the defaults of all other parameters of `target` that plain JSON can say."""
    filled = {}
    for name, parameter in parameters_of(target).items():
        if name in reserved:
            continue
        if name in given:
            filled[name] = given[name]
        elif parameter.default is not EMPTY and is_plain(parameter.default):
            # As the config would give it: torch's own defaults are not always of the type that they are said to be.
            fitting = fits(parameter.default, parameter.annotation)
            filled[name] = convert(parameter.default, parameter.annotation, name) if fitting else parameter.default
    return filled


def convert(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` asks for it: list to tuple, int to float, str to Path, object to dataclass.

    Nothing else is coerced: ``"80"`` is no number and ``1`` is no bool.

    Raises:
        Mismatch: `value` does not fit `hint`.
    """
    origin, options = get_origin(hint), get_args(hint)
    if hint in (Any, EMPTY):
        return value
    if origin is Annotated:
        return _convert_annotated(value, options[0], options[1:], where)
    if origin in (Union, types.UnionType):
        return _convert_union(value, options, hint, where)
    if origin is Literal:
        for option in options:
            if type(value) is type(option) and value == option:
                return value
    elif origin is tuple and isinstance(value, list | tuple):
        if options[1:] == (...,):
            return tuple(_convert_items(value, [options[0]] * len(value), where))
        if len(value) == len(options):
            return tuple(_convert_items(value, options, where))
    elif origin in (list, Sequence) and isinstance(value, list | tuple):
        return _convert_items(value, [options[0]] * len(value), where)
    elif origin in (dict, Mapping) and isinstance(value, Mapping):
        return dict(
            zip(value, _convert_items(value.values(), [options[1]] * len(value), where, value.keys()), strict=True)
        )
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Path and isinstance(value, str | Path):
        if str(value).strip() and "\0" not in str(value):
            return Path(value)
    elif hint is Component:
        return convert_component(value, where)
    elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, hint):
        return value
    elif isinstance(hint, type) and is_dataclass(hint) and isinstance(value, Mapping):
        problems: list[str] = []
        arguments = check_arguments(hint, value, where=where, problems=problems)
        if problems:
            raise Mismatch(*problems)
        return hint(**arguments)
    elif hint in (bool, int, str) and type(value) is hint:
        return value
    elif hint in (None, type(None)) and value is None:
        return None
    raise Mismatch(f"{where}: expected {spell(hint)}, got {show(value)}.")


def convert_component(value: Any, where: str) -> Component:
    """A `Component` from a name or from ``{"type", "args"}``."""
    if isinstance(value, Component):
        return value
    if isinstance(value, str):
        return Component(value)
    if not isinstance(value, Mapping):
        raise Mismatch(f"{where}: expected {spell(Component)}, got {show(value)}.")
    problems = [
        f"{join(where, k)}: unknown key. {did_you_mean(k, ('type', 'args'))}"
        for k in value
        if k not in ("type", "args")
    ]
    kind, args = value.get("type"), value.get("args", {})
    if not isinstance(kind, str):
        problems.append(f"{join(where, 'type')}: expected a name, got {show(kind)}.")
    if not isinstance(args, Mapping):
        problems.append(f"{join(where, 'args')}: expected an object, got {show(args)}.")
    if problems:
        raise Mismatch(*problems)
    return Component(str(kind), dict(args))


def _convert_annotated(value: Any, hint: Any, metadata: tuple, where: str) -> Any:
    converted = convert(value, hint, where)
    for extra in metadata:
        if isinstance(extra, Range) and isinstance(converted, int | float) and converted not in extra:
            raise Mismatch(f"{where}: expected {spell(hint)} {extra}, got {show(value)}.")
        if hasattr(extra, "check"):  # a registry: the component must be one of its own
            problems: list[str] = []
            converted = extra.check(converted, where=where, problems=problems)
            if problems:
                raise Mismatch(*problems)
    return converted


def _convert_union(value: Any, options: tuple, hint: Any, where: str) -> Any:
    closest: list[Mismatch] = []
    for option in options:
        try:
            return convert(value, option, where)
        except Mismatch as mismatch:
            # The option was of the right kind if it complains about something inside the value, or of its range.
            inside = not all(problem.startswith(f"{where}: expected") for problem in mismatch.problems)
            if inside or (get_origin(option) is Annotated and fits(value, get_args(option)[0])):
                closest.append(mismatch)
    if len(closest) == 1:
        raise closest[0]
    raise Mismatch(f"{where}: expected {spell(hint)}, got {show(value)}.")


def _convert_items(values: Iterable, hints: Sequence, where: str, names: Iterable | None = None) -> list:
    converted: list[Any] = []
    problems: list[str] = []
    for name, value, hint in zip(names or range(len(hints)), values, hints, strict=False):
        try:
            converted.append(convert(value, hint, join(where, name)))
        except Mismatch as mismatch:
            problems += mismatch.problems
    if problems:
        raise Mismatch(*problems)
    return converted


def fits(value: Any, hint: Any) -> bool:
    """Whether `convert` would accept `value`."""
    try:
        convert(value, hint, "")
    except Mismatch:
        return False
    return True


def is_plain(value: Any) -> bool:
    """Whether `to_json` can express `value`."""
    try:
        to_json(value)
    except TypeError:
        return False
    return True


def to_json(value: Any) -> Any:
    """`value` as plain JSON types, such that `convert` gives it back.

    Raises:
        TypeError: JSON cannot say it.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    raise TypeError(f"JSON has no way to say {value!r}")


def spell(hint: Any) -> str:
    """Say a type as a config author would: ``one of 8, 16, 32`` or ``a list of int``."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = " ".join(str(extra) for extra in options[1:] if isinstance(extra, Range))
        return f"{spell(options[0])} {bounds}".strip()
    if origin is Literal:
        return show(options[0]) if len(options) == 1 else "one of " + ", ".join(map(show, options))
    if origin in (Union, types.UnionType):
        sayable = [option for option in options if not getattr(option, "__module__", "").startswith("torch")]
        return " or ".join(dict.fromkeys(map(spell, sayable or options)))
    if origin in (list, Sequence) or (origin is tuple and options[-1] is ...):
        return f"a list of {spell(options[0])}"
    if origin is tuple:
        return f"[{', '.join(map(spell, options))}]"
    if origin in (dict, Mapping):
        return f"an object of {spell(options[1])}"
    if hint in (None, type(None)):
        return "null"
    names = {Path: "a path", Component: "a component", str: "a text", bool: "true or false", float: "a number"}
    names |= {Any: "a value", EMPTY: "a value"}  # type: ignore[dict-item]
    return names.get(hint, "an object" if is_dataclass(hint) else getattr(hint, "__name__", str(hint)))


def show(value: Any) -> str:
    """`value` as it stands in JSON, shortened."""
    try:
        text = json.dumps(to_json(value), ensure_ascii=False)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def join(where: str, name: str | int) -> str:
    """Path of a key or an item below `where`."""
    if isinstance(name, int):
        return f"{where}[{name}]"
    return f"{where}.{name}" if where else name


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the closest of `names`, or list them all."""
    known = sorted(names)
    lower = {n.lower(): n for n in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f"Did you mean '{lower[close[0]]}'?" if close else f"Choose from {', '.join(known) or 'nothing'}."


def json_schema(hint: Any, default: Any = EMPTY) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `convert` accepts for `hint`."""
    schema = _json_schema(hint)
    if default is not EMPTY and is_plain(default):
        schema = {**schema, "default": to_json(default)}
    return schema


def _json_schema(hint: Any) -> dict[str, Any]:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        schema = _json_schema(options[0])
        for extra in options[1:]:
            if hasattr(extra, "reference"):  # a registry: spelled out once, however often it is named
                schema = extra.reference()
            elif hasattr(extra, "json_schema"):
                schema = {**schema, **extra.json_schema()}
        return schema
    if origin is Literal:
        return {"enum": list(options)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_json_schema(option) for option in options]}
    if origin in (list, Sequence) or (origin is tuple and options[-1] is ...):
        return {"type": "array", "items": _json_schema(options[0])}
    if origin is tuple:
        return {
            "type": "array",
            "prefixItems": list(map(_json_schema, options)),
            "minItems": len(options),
            "maxItems": len(options),
        }
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _json_schema(options[1])}
    if hint is Component:
        return {
            "anyOf": [
                {"type": "string"},
                {
                    "type": "object",
                    "properties": {"type": {"type": "string"}, "args": {"type": "object"}},
                    "required": ["type"],
                    "additionalProperties": False,
                },
            ]
        }
    if isinstance(hint, type) and is_dataclass(hint):
        return object_schema(hint)
    plain = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null"}
    return {"type": plain[hint]} if hint in plain else {}


def object_schema(target: Callable, *, reserved: Collection[str] = ()) -> dict[str, Any]:
    """JSON Schema of the arguments that `check_arguments` accepts for `target`."""
    parameters = {name: p for name, p in parameters_of(target).items() if name not in reserved}
    described = describe_arguments(target)
    properties = {}
    for name, parameter in parameters.items():
        properties[name] = json_schema(parameter.annotation, parameter.default)
        if name in described:
            properties[name] = {"description": described[name], **properties[name]}
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": False}
    if required := [name for name, p in parameters.items() if p.default is EMPTY]:
        schema["required"] = required
    return schema


def describe_arguments(target: Callable) -> dict[str, str]:
    """Texts of the ``Args:`` section of a docstring, by argument; the bases of a class fill the gaps."""
    target = target.func if isinstance(target, functools.partial) else target
    texts: dict[str, str] = {}
    for owner in inspect.getmro(target) if inspect.isclass(target) else [target]:
        name = None
        lines = ((inspect.getdoc(owner) or "") if owner.__doc__ else "").partition("Args:\n")[2].splitlines()
        own: dict[str, str] = {}
        for line in lines:
            if line.startswith("    ") and not line.startswith("     ") and ":" in line:
                name, _, text = line.strip().partition(": ")
                own[name] = text
            elif name and line.startswith("     "):
                own[name] += " " + line.strip()
            elif line.strip():
                break
        texts = {**own, **texts}
    return texts
