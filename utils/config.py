"""Config files: JSON with comments, put together from parents (`extends`) and overrides (`--set`).

Text and tree only, so that a missing file or bad JSON is answered before torch is imported; what the keys mean is
said in `engine/config.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, one_line

PRESETS = Path(__file__).resolve().parent.parent / "configs" / "presets"
SCHEMA = PRESETS.parents[1] / "config.schema.json"  # what editors complete a config by
MAX_DEPTH = 8  # of `extends`
MAX_BYTES = 1 << 20
MAX_DIGITS = 20  # of an integer
# Keys whose text may be a path of something to read; what is written goes where the command is given.
INPUTS = {"data_dir", "init_from", "path", "pretrained", "classes"}
COMPONENT_KEYS = {"type", "args", "factor", "differential_lr", "parts", "no_decay"}


def load_config(path: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config with its parents and apply ``a.b.c=VALUE`` overrides.

    Raises:
        ConfigError: A file cannot be read or is no JSON object, or an override is malformed.
    """
    return override(read_with_parents(path), sets)


def read_with_parents(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Read `path` and merge it over the files that its ``"extends"`` names.

    What a file says of others is relative to its own folder or, where nothing is there, to the current one.
    """
    path = preset_or(path)
    config = with_inputs_found(read_json(path), path)
    if path.resolve() in children:
        raise ConfigError(f"{path}: extends itself, by way of {children[-1]}. Break the circle.")
    if len(children) >= MAX_DEPTH:
        raise ConfigError(f"{path}: is parent number {len(children)}. Use at most {MAX_DEPTH - 1} levels of extends.")
    config.pop("$schema", None)  # tells editors which names there are
    parents = config.pop("extends", [])
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise ConfigError(f"{path}: extends: expected a path or a list of paths, got {json.dumps(parents)}.")
    merged: dict[str, Any] = {}
    for parent in parents:
        beside = path.parent / parent
        above = found_input(parent, path, "extends") or preset_or(Path(parent), beside)
        if not above.exists():
            here = "" if Path(parent) == beside else f", nor {parent} in the current folder"
            what = f"there is no file {beside}, nor a preset of that name{here}"
            raise ConfigError(f"{path}: extends: {what}. Name a file beside this one.")
        merged = merge(merged, read_with_parents(above, (*children, path.resolve())))
    return merge(merged, config)


def with_inputs_found(value: Any, source: Path, key: str = "") -> Any:
    """Replace the paths of what is to be read in a config of the file `source` by those of what is there.

    They are absolute then, so that checkpoints find it from any folder; a path of nothing stays what it was.
    """
    if isinstance(value, Mapping):
        return {name: with_inputs_found(each, source, name) for name, each in value.items()}
    if isinstance(value, list):
        return [with_inputs_found(each, source) for each in value]
    if key not in INPUTS or not isinstance(value, str) or not value.strip():
        return value
    found = found_input(value, source, key)
    return value if found is None else str(found.absolute())


def found_input(text: str, source: Path, key: str) -> Path | None:
    """Find what `text` names, beside the config file `source` or else in the current folder, which is said.

    Returns:
        None if nothing is there.
    """
    try:
        beside, here = source.parent / text, Path(text)
        if beside.exists():
            return beside
        if not here.exists():
            return None
    except (OSError, ValueError):  # a name that cannot be one: too long, or with a NUL
        return None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        said = f"{source}: {key}: {text} is that of the current folder; there is no {beside}"
        print(one_line(said), file=sys.stderr)
    return here


def preset_or(path: Path, otherwise: Path | None = None) -> Path:
    """The file of the preset that `path` names, such as ``pspnet/voc``, unless there is a file of that name."""
    found = PRESETS / f"{path}.json"
    return found if not path.exists() and found.exists() else otherwise or path


def presets() -> dict[str, str]:
    """Names of all presets, with what the first line of their file says."""
    lines = {
        path.relative_to(PRESETS).with_suffix("").as_posix(): path.read_text(encoding="utf-8").partition("\n")[0]
        for path in sorted(PRESETS.glob("*/*.json"))
    }
    return {name: line.removeprefix("// ") for name, line in lines.items()}


def describe_preset(name: str) -> str | None:
    """The text of the preset `name`, such as ``pspnet/voc``, and how to train it; None if there is none."""
    path = PRESETS / f"{name}.json"
    if name not in (found.relative_to(PRESETS).with_suffix("").as_posix() for found in PRESETS.glob("*/*.json")):
        return None
    text = path.read_text(encoding="utf-8").rstrip()
    return f'{name} (preset)\n\n{text}\n\nTrain it: --config {name}. Change it: {{"extends": "{name}", ...}}.'


def merge(parent: Mapping[str, Any], child: Mapping[str, Any]) -> dict[str, Any]:
    """`child` over `parent`: objects key by key, lists by number if `child` has numbers for keys, all else replaced.

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
            if isinstance(below, list) and value and all(k.isdecimal() and int(k) < len(below) for k in value):
                numbered = merge({str(number): item for number, item in enumerate(below)}, value)
                merged[key] = list(numbered.values())
            else:
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
        section = changes
        for name in names[:-1]:
            section = section.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"--set {text}: an earlier --set gave '{name}' a plain value. Give one of the two.")
        try:
            section[names[-1]] = parse_json(value)
        except json.JSONDecodeError:
            section[names[-1]] = value
        except RecursionError:
            raise ConfigError(f"--set {text[:40]}...: nested too deeply. Give a plain value.") from None
        except ValueError as error:
            raise ConfigError(f"--set {text}: {error}") from None
    return merge(config, changes)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object from a file; ``//`` and ``/* */`` comments and trailing commas are accepted.

    Raises:
        ConfigError: One line that names the file and, where there is one, the line and column.
    """
    text = _read_text(path)
    if not text.strip():
        raise ConfigError(f"{path}: is empty. Name a JSON config file.")
    try:
        value = parse_json(text)
    except json.JSONDecodeError as error:
        what, hint = error.msg.removesuffix(" at"), "Remove it or add what is missing there"
        raise ConfigError(f"{path}: line {error.lineno} column {error.colno}: {what}. {hint}.") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply. Name a JSON config file.") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: holds {type(value).__name__}, not an object. Put the config between {{ and }}.")
    return value


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder. Name a JSON config file.") from None
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file. Name a config with --config; configs/ has recipes.") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}. Name a readable JSON file.") from None
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES >> 10} KiB, so no config. Name a JSON config file.")
    try:
        if b"\0" not in data:  # UTF-16 is full of them
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    raise ConfigError(f"{path}: is not UTF-8 text. Save it as UTF-8, or name a JSON config file.")


def parse_json(text: str) -> Any:
    """Parse JSON with comments and trailing commas, but no duplicate keys and no numbers that are not finite.

    Raises:
        json.JSONDecodeError: With the place in `text`.
        ValueError: A finished sentence.
    """
    text = _blank_comments(text)
    value = json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    _check_numbers(text)
    return value


# Strings come first, so that "http://" starts no comment. A comma counts as trailing if only space follows it, and
# something to separate stands before it. Group 1 is what stays.
_STRING = r'"(?:\\.|[^"\\\n])*"'
_COMMENT = re.compile(rf"({_STRING})|//[^\n]*|/\*.*?\*/", re.DOTALL)
_COMMA = re.compile(rf"({_STRING}|[\[{{:,]\s*,)|,(?=\s*[}}\]])")
_NUMBER = re.compile(rf"{_STRING}|(-?(?:NaN|Infinity|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?))")
_STRUCTURE = re.compile(rf"({_STRING})\s*:|{_STRING}|[\[\]{{}}]")  # keys, other texts, brackets


def _blank_comments(text: str) -> str:
    """`text` with comments and trailing commas turned into spaces, so that places in it stay what they were."""

    def blank(match: re.Match[str]) -> str:
        return match[1] or re.sub(r"[^\n]", " ", match[0])

    return _COMMA.sub(blank, _COMMENT.sub(blank, text))


def _check_numbers(text: str) -> None:
    """Refuse what `json` takes for a number and no one trains with: NaN, infinities, hundreds of digits."""
    for match in _NUMBER.finditer(text):
        number = match[1]
        if not number:
            continue
        too_long = len(number) > MAX_DIGITS and number.lstrip("-").isdecimal()
        if too_long or not math.isfinite(float(number)):
            line = text.count("\n", 0, match.start()) + 1
            what = f"{number[:10]}... has {len(number)} digits" if too_long else f"{number} is no number to train with"
            key = _key_at(text, match.start())
            place = f"line {line}: {key}" if key else f"line {line}"
            raise ValueError(f"{place}: {what}. Give a {'smaller' if too_long else 'finite'} number.")


def _key_at(text: str, position: int) -> str:
    """Dotted path of the key whose value stands at `position` of JSON; empty where there is none."""
    around: list[str] = []  # the keys of the objects and lists that are open
    key = ""
    for match in _STRUCTURE.finditer(text, 0, position):
        if match[1]:
            key = json.loads(match[1])
        elif match[0] in "{[":
            around.append(key)
            key = ""
        elif match[0] in "}]":
            key = around.pop() if around else ""
    return ".".join(filter(None, [*around, key]))


def _integer(text: str) -> float:
    return int(text) if len(text) <= MAX_DIGITS else math.inf  # Python refuses to convert thousands of digits


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key '{twice}' stands twice in one object. Keep one of them.")
    return result


def dump_json(value: Any) -> str:
    """`value` as indented JSON; short lists and objects stay on one line."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    # Lists of plain values read better in one line: colors, scales, sizes.
    short = re.compile(r"\[\s+([^\[\]{}]{1,90}?)\s+\]")
    return short.sub(lambda match: "[" + re.sub(r"\s*\n\s*", " ", match.group(1)) + "]", text) + "\n"


def differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two configs differ: path to (old value, new value); a missing value counts as None.

    Lists of objects are compared one by one if they are equally long, as ``train_loader[0].args``; others as a whole.
    """
    found: dict[str, tuple[Any, Any]] = {}
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in (*old, *(key for key in new if key not in old)):
            found |= differences(old.get(key), new.get(key), f"{where}.{key}" if where else key)
    elif is_list_of_objects(old) and is_list_of_objects(new) and len(old) == len(new):
        for number, (before, now) in enumerate(zip(old, new, strict=True)):
            found |= differences(before, now, f"{where}[{number}]")
    elif old != new:
        found[where] = (old, new)
    return found


def first_training_set(config: Mapping[str, Any]) -> Any:
    """Return the training set of a config in plain values; of several the first, which says how batches are made."""
    section = config.get("train_loader")
    return section[0] if isinstance(section, list) and section else section


def first_training_path(config: Mapping[str, Any]) -> str:
    """Return the dotted path of that training set, as ``KEY=VALUE`` has it: "train_loader" or "train_loader.0"."""
    return "train_loader.0" if isinstance(config.get("train_loader"), list) else "train_loader"


def is_list_of_objects(value: Any) -> bool:
    """Whether a config's value is a list whose items have keys, such as several training sets."""
    return isinstance(value, list) and all(isinstance(item, Mapping) for item in value)


def _whole(value: Any) -> Any:
    """`value` with 1.0 written as 1, since a config may say either."""
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def canonical(value: Any) -> str:
    """Plain JSON as text that does not depend on the order of keys."""
    return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"))


def fingerprint(value: Any) -> str:
    """A hash of plain JSON that does not depend on the order of keys."""
    return fingerprint_of_text(canonical(value))


def fingerprint_of_text(text: str) -> str:
    """The hash of the value whose `canonical` text this is."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]
