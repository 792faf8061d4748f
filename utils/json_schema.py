"""JSON Schema of what signatures accept, for editors."""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from utils.schema import EMPTY, Component, Range, describe_arguments, is_plain, parameters_of, to_json


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
