"""Config files: JSON with comments, put together from parents (`extends`) and overrides (`--set`).

Only the text and the tree are dealt with here, so that a missing file or bad JSON is answered before torch is
imported; what the keys mean is `assemble.py`'s.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import ConfigError

MAX_DEPTH = 8  # of `extends`
MAX_BYTES = 1 << 20
COMPONENT_KEYS = {"type", "args", "factor"}


def load_config(path: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its parents and apply ``a.b.c=VALUE`` overrides.

    Raises:
        ConfigError: A file cannot be read or is no JSON object, or an override is malformed.
    """
    return override(read_with_parents(path), sets)


def read_with_parents(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read `path` and merge it over the files that its ``"extends"`` names, relative to its own folder."""
    if path.resolve() in children:
        raise ConfigError(f"{path}: extends itself, by way of {children[-1]}. Break the circle.")
    if len(children) >= MAX_DEPTH:
        raise ConfigError(f"{path}: is parent number {len(children)}. Use at most {MAX_DEPTH - 1} levels of extends.")
    config = read_json(path)
    parents = config.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends: expected a path or a list of paths, got {json.dumps(parents)}.")
    merged: dict[str, Any] = {}
    for parent in parents:
        merged = merge(merged, read_with_parents(path.parent / parent, (*children, path.resolve())))
    return merge(merged, config)


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """`child` over `parent`: objects key by key, all else replaced.

    Where `type` changes, the parent's `args` belong to something else and are dropped.
    """
    merged = dict(parent)
    if "type" in child and child["type"] != parent.get("type", child["type"]):
        merged.pop("args", None)
    for key, value in child.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            if isinstance(below, str) and set(value) <= COMPONENT_KEYS:
                below = {"type": below}
            merged[key] = merge(below if isinstance(below, Mapping) else {}, value)
        else:
            merged[key] = value
    return merged


def override(config: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """`config` with ``a.b.c=VALUE`` applied; VALUE is JSON or, where it is none, text."""
    changes: dict[str, Any] = {}
    for text in sets:
        key, equals, value = text.partition("=")
        names = key.strip().split(".")
        if not equals or not all(names):
            raise ConfigError(f"--set {text}: expected KEY=VALUE. Write it like --set trainer.epochs=20.")
        place = changes
        for name in names[:-1]:
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise ConfigError(f"--set {text}: an earlier --set gave '{name}' a plain value. Give one of the two.")
        try:
            place[names[-1]] = parse_json(value)
        except json.JSONDecodeError:
            place[names[-1]] = value
        except ValueError as error:
            raise ConfigError(f"--set {text}: {error}") from None
    return merge(config, changes)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object from a file; ``//`` and ``/* */`` comments and trailing commas are accepted.

    Raises:
        ConfigError: One line that names the file and, where there is one, the line and column.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES >> 10} KiB, so no config. Name a JSON config file.")
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text. Save it as UTF-8, or name a JSON config file.") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder. Name a JSON config file.") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Name a config with --config; configs/ has recipes.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}. Name a readable JSON file.") from None
    if not text.strip():
        raise ConfigError(f"{path}: is empty. Name a JSON config file.")
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        hint = "Remove it or add what is missing there"
        raise ConfigError(f"{path}: line {error.lineno} column {error.colno}: {error.msg}. {hint}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply. Name a JSON config file.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds {type(value).__name__}, not an object. Put the config between {{ and }}.")
    return value


def parse_json(text: str) -> Any:
    """Parse JSON with comments and trailing commas, but no duplicate keys and no numbers that are not finite.

    Raises:
        json.JSONDecodeError: With the place in `text`.
        ValueError: A finished sentence.
    """
    return json.loads(
        _blank_comments(text),
        object_pairs_hook=_object,
        parse_constant=_refuse_constant,
        parse_float=_finite,
        parse_int=_integer,
    )


# Strings come first, so that "http://" starts no comment; a comma counts as trailing if only space follows it.
_STRING_OR_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_STRING_OR_COMMA = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[}\]])')


def _blank_comments(text: str) -> str:
    """`text` with comments and trailing commas turned into spaces, so that places in it stay what they were."""

    def blank(match: re.Match[str]) -> str:
        found = match.group()
        return found if found[0] == '"' else re.sub(r"[^\n]", " ", found)

    return _STRING_OR_COMMA.sub(blank, _STRING_OR_COMMENT.sub(blank, text))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key '{twice}' stands twice in one object. Keep one of them.")
    return result


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number to train with. Give a finite number.")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _integer(text: str) -> int:
    if len(text) > 20:
        raise ValueError(f"{text[:10]}... is a number of {len(text)} digits. Give a smaller one.")
    return int(text)


def dump_json(value: Any) -> str:
    """`value` as indented JSON; short lists and objects stay on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Lists of plain values read better in one line: colors, scales, sizes.
    short = re.compile(r"\[\s+([^\[\]{}]{1,90}?)\s+\]")
    return short.sub(lambda match: "[" + re.sub(r"\s*\n\s*", " ", match.group(1)) + "]", text) + "\n"


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two configs differ: path to (old value, new value); a missing value counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found: dict[str, tuple[Any, Any]] = {}
        for key in (*old, *(key for key in new if key not in old)):
            found |= differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return found
    return {} if old == new else {where: (old, new)}


def fingerprint(value: Any) -> str:
    """A hash of plain JSON that does not depend on the order of keys."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
