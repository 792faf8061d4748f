"""Check plain JSON values against Python signatures: one subject, so one file.

A signature already says which names exist, which are required, what type each takes and what the default
is. It is read once, here, for registered components, config sections and torch's own classes alike, so that
no second schema is ever written: not for checking, not for filling in defaults, not for editors.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import json
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

EMPTY = inspect.Parameter.empty


@dataclass(frozen=True)
class Component:
    """A registered name and its arguments, as written in a config: ``{"type": ..., "args": {...}}`` or a name.

    Args:
        type: The name.
        args: Its arguments.
        checked: Kind of the registry that has checked the arguments and filled in their defaults, if one has; it
            does not do so again.
    """

    type: str
    args: Mapping[str, Any] = field(default_factory=dict)
    checked: str = field(default="", compare=False, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The component as a config says it."""
        return {"type": self.type, "args": to_json(self.args)}


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


class Preset(functools.partial[Any]):
    """A callable with some arguments fixed, except that those in `defaults` may still be given."""

    defaults: Mapping[str, Any] = types.MappingProxyType({})


@functools.lru_cache(maxsize=1024)
def parameters_of(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Parameters of `target` by name; their annotations are evaluated, or empty where that is not possible.

    `functools.partial` objects lose the parameters that they fix by keyword; a `Preset` keeps those that it gives
    other defaults.
    """
    fixed: Collection[str] = ()
    defaults: Mapping[str, Any] = {}
    if isinstance(target, functools.partial):
        defaults = target.defaults if isinstance(target, Preset) else {}
        fixed, target = target.keywords.keys() - defaults.keys(), target.func
    try:
        signature = inspect.signature(target)
    except (ValueError, TypeError):
        return {}
    try:
        hints = annotations_of(target)
    except Exception:  # a name that only exists under TYPE_CHECKING: names are still checked, types are not
        hints = {}
    return {
        name: parameter.replace(annotation=hints.get(name, EMPTY), default=defaults.get(name, parameter.default))
        for name, parameter in signature.parameters.items()
        if name not in fixed
    }


def annotations_of(target: Callable[..., Any]) -> dict[str, Any]:
    """Evaluated annotations of what `target` takes; a dataclass's fields are evaluated where each was written.

    An ``InitVar`` of a dataclass is an argument like others.

    Raises:
        NameError: An annotation names what does not exist at run time.
    """
    function = target.__init__ if inspect.isclass(target) and not is_dataclass(target) else target
    hints = get_type_hints(function, include_extras=True)
    return {name: hint.type if isinstance(hint, InitVar) else hint for name, hint in hints.items()}


def check_arguments(
    target: Callable[..., Any],
    given: Any,
    *,
    where: str,
    reserved: Collection[str] = (),
    problems: list[str],
    elsewhere: Mapping[str, str] = types.MappingProxyType({}),
) -> dict[str, Any]:
    """Return `given` as keyword arguments for `target`, converted from JSON types.

    Args:
        target: Class, dataclass or function whose signature is the schema.
        given: Values from the config, by parameter name.
        where: Path of `given` in the config, such as ``"arch.args.head"``; begins every problem.
        reserved: Parameters of `target` that the framework fills in, which a config may not set.
        problems: Receives one line for every name that is unknown, missing or reserved and for every value of
            a wrong type or out of range. What is returned is only good to be used if none were added.
        elsewhere: Names that `target` does not take, and where in the config they belong, for hints.
    """
    if not isinstance(given, Mapping):
        problems.append(f"{where}: expected an object, got {show(given)}.")
        return {}
    parameters = parameters_of(target)
    open_names = [name for name in parameters if name not in reserved]
    arguments = {}
    for name, value in given.items():
        path = join(where, name)
        if name in reserved:
            problems.append(f"{path}: is filled in by the framework. Remove it.")
        elif name not in parameters:
            hint = f"Did you mean '{elsewhere[name]}'?" if name in elsewhere else did_you_mean(name, open_names)
            problems.append(f"{path}: unknown key. {hint}")
        else:
            try:
                arguments[name] = convert(value, parameters[name].annotation, path)
            except Mismatch as mismatch:
                problems += mismatch.problems
    for name in open_names:
        if name not in given and parameters[name].default is EMPTY:
            kind = parameters[name].annotation
            problems.append(f"{join(where, name)}: missing. Give {spell(kind)}.")
    return arguments


def fill_defaults(
    target: Callable[..., Any], given: Mapping[str, Any], *, reserved: Collection[str] = ()
) -> dict[str, Any]:
    """Add to `given` the defaults of all other parameters of `target` that plain JSON can say."""
    filled = {}
    for name, parameter in parameters_of(target).items():
        if name in reserved:
            continue
        if name in given:
            filled[name] = given[name]
        elif parameter.default is not EMPTY and is_plain(parameter.default):
            try:  # as if the config had given it
                filled[name] = convert(parameter.default, parameter.annotation, name)
            except Mismatch:  # torch's own defaults are not always of the type that they are said to be
                filled[name] = parameter.default
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
    if hint is Component:
        return convert_component(value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        return _convert_dataclass(value, hint, where)
    if origin in (list, tuple, Sequence):
        return _convert_sequence(value, hint, where)
    if origin in (dict, Mapping):
        return _convert_mapping(value, hint, where)
    return _convert_plain(value, hint, where)


def _convert_plain(value: Any, hint: Any, where: str) -> Any:
    """A value without parts: a number, text, path, null or one of a few."""
    if get_origin(hint) is Literal:
        if any(type(value) is type(option) and value == option for option in get_args(hint)):
            return value
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Path and isinstance(value, str | Path):
        if str(value).strip() and "\0" not in str(value):
            return Path(value)
    elif (hint in (bool, int, str) and type(value) is hint) or (hint in (None, type(None)) and value is None):
        return value
    raise unfit(value, hint, where)


def _convert_dataclass(value: Any, hint: type, where: str) -> Any:
    if isinstance(value, hint):
        return value
    if not isinstance(value, Mapping):
        raise unfit(value, hint, where)
    problems: list[str] = []
    arguments = check_arguments(hint, value, where=where, problems=problems)
    if problems:
        raise Mismatch(*problems)
    return hint(**arguments)


def _convert_sequence(value: Any, hint: Any, where: str) -> list[Any] | tuple[Any, ...]:
    """A list, or a tuple of one type throughout or of a type for each item."""
    origin, options = get_origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise unfit(value, hint, where)
    if origin is not tuple:
        return _convert_items(value, [options[0]] * len(value), where)
    hints = [options[0]] * len(value) if options[1:] == (...,) else list(options)
    if len(hints) != len(value):
        raise unfit(value, hint, where)
    return tuple(_convert_items(value, hints, where))


def _convert_mapping(value: Any, hint: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise unfit(value, hint, where)
    hints = [get_args(hint)[1]] * len(value)
    return dict(zip(value, _convert_items(value.values(), hints, where, value.keys()), strict=True))


def unfit(value: Any, hint: Any, where: str) -> Mismatch:
    """Say that `value`, at `where`, is not what `hint` asks for."""
    return Mismatch(f"{where}: expected {spell(hint)}, got {show(value)}.")


def convert_component(value: Any, where: str) -> Component:
    """A `Component` from a name or from ``{"type", "args"}``."""
    if isinstance(value, Component):
        return value
    if isinstance(value, str):
        return Component(value)
    if not isinstance(value, Mapping):
        raise unfit(value, Component, where)
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


def _convert_annotated(value: Any, hint: Any, metadata: tuple[Any, ...], where: str) -> Any:
    is_section = any(hasattr(extra, "words") for extra in metadata)  # which converts by itself
    converted = value if is_section else convert(value, hint, where)
    for extra in metadata:
        if isinstance(extra, Range) and isinstance(converted, int | float) and converted not in extra:
            raise Mismatch(f"{where}: expected {spell(hint)} {extra}, got {show(value)}.")
        if hasattr(extra, "check"):  # a section, or a registry: the component must be one of its own
            problems: list[str] = []
            converted = extra.check(converted, where=where, problems=problems)
            if problems:
                raise Mismatch(*problems)
    return converted


def _convert_union(value: Any, options: tuple[Any, ...], hint: Any, where: str) -> Any:
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
    raise unfit(value, hint, where)


def _convert_items(
    values: Iterable[Any], hints: Sequence[Any], where: str, names: Iterable[Any] | None = None
) -> list[Any]:
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
        if hasattr(value, "to_json"):  # it is written otherwise than its fields stand
            return value.to_json()
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    raise TypeError(f"JSON has no way to say {value!r}")


def spell(hint: Any) -> str:
    """Say a type as a config author would: ``one of 8, 16, 32`` or ``a list of int``."""
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        words = [extra.words for extra in options[1:] if hasattr(extra, "words")]  # a section's own
        if words:
            return str(words[0])
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
    names |= {Any: "a value", EMPTY: "a value"}
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


# What others call some of our components, in small letters and digits.
ALIASES = {
    "deeplabv3plus": "DeepLab",
    "deeplabplus": "DeepLab",
    "segformer": "MLPHead",
    "xception": "xception65",
    "fcn": "FCN8",
    "unetresnet": "UNetResnet",
    "crossentropy": "CrossEntropyLoss2d",
    "crossentropyloss": "CrossEntropyLoss2d",
    "cedice": "CE_DiceLoss",
    "lovasz": "LovaszSoftmax",
    "ohem": "OHEMCrossEntropyLoss",
    "dice": "DiceLoss",
    "focal": "FocalLoss",
    "pascalvoc": "VOC",
    "cocostuff": "COCO",
    "customdataset": "Folder",
    "imagefolder": "Folder",
    "polylr": "Poly",
    "miou": "Mean_IoU",
}


def alias_of(name: str, names: Collection[str]) -> str | None:
    """Give that of `names` which others call `name`; None if there is none."""
    known = ALIASES.get(re.sub(r"[^a-z0-9]", "", str(name).lower().replace("+", "plus")))
    return known if known in names else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Suggest the one of `names` that is also called `name`, or the closest of them, or list them all."""
    known = sorted(names)
    if (other := alias_of(name, known)) is not None:
        return f"Did you mean '{other}'?"
    lower = {n.lower(): n for n in known}
    close = difflib.get_close_matches(str(name).lower(), lower, n=1)
    return f"Did you mean '{lower[close[0]]}'?" if close else f"Choose from {', '.join(known) or 'nothing'}."


def describe_arguments(target: Callable[..., Any]) -> dict[str, str]:
    """Texts of the ``Args:`` section of a docstring, by argument; the bases of a class fill the gaps."""
    target = target.func if isinstance(target, functools.partial) else target
    texts: dict[str, str] = {}
    for owner in inspect.getmro(target) if inspect.isclass(target) else [target]:
        own = _argument_texts(inspect.getdoc(owner) or "") if owner.__doc__ else {}
        texts = {**own, **texts}
    return texts


def _argument_texts(doc: str) -> dict[str, str]:
    """Texts of the ``Args:`` section of one docstring."""
    texts: dict[str, str] = {}
    name = ""
    for line in doc.partition("Args:\n")[2].splitlines():
        deeper = line.startswith("     ")
        if line.startswith("    ") and not deeper and ":" in line:
            name, _, text = line.strip().partition(": ")
            name = name.partition(" (")[0]  # torch gives the type there
            texts[name] = text
        elif name and deeper:
            texts[name] += " " + line.strip()
        elif line.strip():
            break
    return texts
