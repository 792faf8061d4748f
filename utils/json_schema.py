"""JSON Schema of what signatures accept, for editors."""

from __future__ import annotations

import functools
import itertools
import json
import operator
import types
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from utils.schema import EMPTY, Component, Range, describe_arguments, is_plain, parameters_of, to_json

REPEATED = 60  # characters of a property's schema that may be repeated: a reference is as long
WIDTH = 100  # columns of a line of JSON


def json_schema(hint: Any, default: Any = EMPTY) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `convert` accepts for `hint`."""
    schema = _json_schema(hint)
    if default is not EMPTY and is_plain(default):
        schema = {**schema, "default": to_json(default)}
    return schema


def _json_schema(hint: Any) -> dict[str, Any]:
    origin, options = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _annotated_schema(options[0], options[1:])
    if origin is Literal:
        return {"enum": list(options)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_json_schema(option) for option in options]}
    if origin in (list, tuple, Sequence):
        return _sequence_schema(hint)
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _json_schema(options[1])}
    if hint is Component:
        return {"anyOf": [{"type": "string"}, _COMPONENT_SCHEMA]}
    if isinstance(hint, type) and is_dataclass(hint):
        return object_schema(hint)
    plain = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "string", type(None): "null"}
    return {"type": plain[hint]} if hint in plain else {}


_COMPONENT_SCHEMA = {
    "type": "object",
    "properties": {"type": {"type": "string"}, "args": {"type": "object"}},
    "required": ["type"],
    "additionalProperties": False,
}


def _annotated_schema(hint: Any, metadata: tuple[Any, ...]) -> dict[str, Any]:
    for extra in metadata:
        if hasattr(extra, "reference"):  # a registry: spelled out once, however often it is named
            return dict(extra.reference())
        if hasattr(extra, "check"):  # a section of the config, which says all of it
            return dict(extra.json_schema())
    bounds = [extra.json_schema() for extra in metadata if isinstance(extra, Range)]
    return functools.reduce(operator.or_, bounds, _json_schema(hint))


def _sequence_schema(hint: Any) -> dict[str, Any]:
    options = get_args(hint)
    if get_origin(hint) is not tuple or options[-1] is ...:
        return {"type": "array", "items": _json_schema(options[0])}
    return {
        "type": "array",
        "prefixItems": [_json_schema(option) for option in options],
        "minItems": len(options),
        "maxItems": len(options),
    }


def object_schema(target: Callable[..., Any], *, reserved: Collection[str] = ()) -> dict[str, Any]:
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


def share_repeated(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Say once, under "$defs", what a schema says of several properties, and refer to it; it accepts the same.

    What is shared is called by the section or the kind of component that it is first met in, and by its own name, such
    as ``loader.crop_size``; the arguments of several components by the first one's, such as ``backbone.resnet101``.
    """
    tops = {**schema["properties"], **schema["$defs"]}
    counts: Counter[str] = Counter()
    names: dict[str, str] = {}
    for owner, top in tops.items():
        for name, part in _parts(top):
            _count(f"{owner}.{name}", part, counts, names)
    shared = {text: name for text, name in names.items() if counts[text] > 1 and len(text) > REPEATED}
    definitions = {name: _refer_inside(json.loads(text), shared) for text, name in shared.items()}
    return {
        **schema,
        "properties": {name: _refer_inside(part, shared) for name, part in schema["properties"].items()},
        "$defs": {**{name: _refer_inside(part, shared) for name, part in schema["$defs"].items()}, **definitions},
    }


def _text(schema: Any) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _parts(schema: Any, component: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """The properties in `schema`, without those inside of them, by name; arguments by that of their `component`."""
    if isinstance(schema, list):
        for each in schema:
            yield from _parts(each, component)
    elif isinstance(schema, dict):
        if "if" in schema:  # a rule on one component
            component = schema["if"]["properties"]["type"]["const"]
        for name, part in schema.get("properties", {}).items():
            yield (component if name == "args" and component else name), part
        for key, each in schema.items():
            if key not in ("properties", "if"):
                yield from _parts(each, component)


def _count(name: str, part: dict[str, Any], counts: Counter[str], names: dict[str, str]) -> None:
    """Count `part` and, where it is met for the first time, the properties in it."""
    text = _text(part)
    counts[text] += 1
    if counts[text] > 1:
        return
    taken = set(names.values())
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    names[text] = name if name not in taken else next(each for each in numbered if each not in taken)
    owner = name.partition(".")[0]
    for inner, each in _parts(part):
        _count(f"{owner}.{inner}", each, counts, names)


def _refer_inside(schema: Any, shared: Mapping[str, str]) -> Any:
    """`schema` with references for those properties in it that are `shared`."""
    if isinstance(schema, list):
        return [_refer_inside(each, shared) for each in schema]
    if not isinstance(schema, dict):
        return schema
    result = {}
    for key, value in schema.items():
        if key == "properties":
            result[key] = {name: _refer(part, shared) for name, part in value.items()}
        elif key in ("default", "enum", "const"):
            result[key] = value
        else:
            result[key] = _refer_inside(value, shared)
    return result


def _refer(part: Any, shared: Mapping[str, str]) -> Any:
    name = shared.get(_text(part))
    return {"$ref": f"#/$defs/{name}"} if name else _refer_inside(part, shared)


def dump_schema(schema: Any, indent: int = 0) -> str:
    """`schema` as JSON text in which what fits on a line stands on one."""
    flat = _text(schema)
    if len(flat) + indent <= WIDTH or not isinstance(schema, dict | list):
        return flat
    deeper = " " * (indent + 2)
    if isinstance(schema, dict):
        lines = [f"{deeper}{_text(key)}: {dump_schema(value, indent + 2)}" for key, value in schema.items()]
        opening, closing = "{", "}"
    else:
        lines = [f"{deeper}{dump_schema(value, indent + 2)}" for value in schema]
        opening, closing = "[", "]"
    return "\n".join([opening, ",\n".join(lines), " " * indent + closing])
