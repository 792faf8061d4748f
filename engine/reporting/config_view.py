"""What is particular about a run's config, and the commands that go on from the run."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloader.build import loader_json_schema
from engine.config import RunConfig
from utils.config import differences, preset_or, read_json, read_with_parents
from utils.errors import UserError
from utils.json_schema import object_schema
from utils.registry import BACKBONES, HEADS, MIXES, NECKS, TRANSFORMS, WRITERS
from utils.schema import join

Difference = dict[str, Any]  # {"key", "old", "new"}


def differences_to_defaults(config: Mapping[str, Any]) -> list[Difference]:
    """Keys of a resolved config whose value is not the default; those without a default are left out."""
    return list(_differences(object_schema(RunConfig), config, "", Definitions()))


class Definitions(dict[str, Any]):
    """What the schema of a config says of kinds of components, made where it is asked for.

    To describe all transforms, say, torchvision would be imported, which takes longer than all the rest of a report.
    """

    def __missing__(self, kind: str) -> Any:
        registries = {registry.kind: registry for registry in (BACKBONES, NECKS, HEADS, TRANSFORMS, MIXES, WRITERS)}
        self[kind] = loader_json_schema() if kind == "loader" else registries[kind].json_schema()
        return self[kind]


def _differences(
    schema: Mapping[str, Any], value: Mapping[str, Any], where: str, definitions: Mapping[str, Any]
) -> Iterator[Difference]:
    properties = dict(_properties(schema, value, definitions))
    for key, own in value.items():
        place, below = join(where, key), properties.get(key)
        if below is None:
            continue
        default = below.get("default")
        if isinstance(own, Mapping):
            old = default.get("type") if isinstance(default, Mapping) else default
            if "type" in own and old is not None and own["type"] != old:
                yield {"key": place, "old": old, "new": own["type"]}
            yield from _differences(below, own, place, definitions)
        elif "default" in below and own != default:
            yield {"key": place, "old": default, "new": own}


def _properties(
    schema: Mapping[str, Any], value: Mapping[str, Any], definitions: Mapping[str, Any]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The properties of an object by name, with those that its `type` brings."""
    if "$ref" in schema:
        yield from _properties(definitions[schema["$ref"].rpartition("/")[2]], value, definitions)
    yield from schema.get("properties", {}).items()
    for alternative in schema.get("anyOf", []):
        yield from _properties(alternative, value, definitions)
    for rule in schema.get("allOf", []):
        if rule["if"]["properties"]["type"]["const"] == value.get("type"):
            yield from _properties(rule["then"], value, definitions)


def differences_to_parent(config: Mapping[str, Any], command: Sequence[str]) -> tuple[str, list[Difference]]:
    """What a run changes of the files that its config file extends, and their names.

    Args:
        config: The resolved config.
        command: The command that started the run; it names the file.

    Returns:
        No name and no differences where there is no such file any more, or it extends none.
    """
    path = config_file(command)
    try:
        parents = read_json(preset_or(path)).get("extends", []) if path else []
        names = [parents] if isinstance(parents, str) else parents
        if path is None or not names:
            return "", []
        merged: dict[str, Any] = {}
        for name in names:
            above = path.parent / name
            merged |= read_with_parents(above if above.exists() else preset_or(Path(name), above))
    except (UserError, OSError, TypeError):
        return "", []
    return ", ".join(names), [each for each in as_list(differences(merged, config)) if each["old"] is not None]


def choices_of_plan(command: Sequence[str]) -> list[dict[str, str]]:
    """Read what `prepare.py plan` chose and why, from the file that it writes beside a config.

    Args:
        command: The command that started the run; it names the config.

    Returns:
        Objects of what, value and reason; none where there is no such file.
    """
    path = config_file(command)
    try:
        choices = json.loads(path.with_suffix(".plan.json").read_text(encoding="utf-8"))["choices"] if path else []
        return [{key: each[key] for key in ("what", "value", "reason")} for each in choices]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def config_file(command: Sequence[str]) -> Path | None:
    """The config file that a command names, with or without a flag."""
    for word, value in itertools.pairwise(command):
        if word in ("-c", "--config"):
            return Path(value)
    named = [word.removeprefix("--config=") for word in command]
    return next((Path(word) for word in named if word.endswith(".json") and "=" not in word), None)


def differences_to_run(config: Mapping[str, Any], other: Mapping[str, Any]) -> list[Difference]:
    """What a run changes of another one's resolved config."""
    return as_list(differences(other, config))


def as_list(found: Mapping[str, tuple[Any, Any]]) -> list[Difference]:
    """Differences as plain values."""
    return [{"key": key, "old": old, "new": new} for key, (old, new) in found.items()]


def commands(run_dir: Path, environment: Mapping[str, Any], checkpoint: str) -> list[dict[str, str]]:
    """What to type to repeat, resume, evaluate and use the model of a run: name and command of each."""
    folder = shlex.quote(str(run_dir))
    imports = "".join(f" --import {shlex.quote(name)}" for name in environment.get("modules", []))
    model = f"{folder}/{checkpoint}"
    started = shlex.join(["python", *environment.get("command", [])])
    return [
        {"name": "this run was started by", "command": started},
        {"name": "repeat it", "command": f"python train.py -c {folder}/config.json{imports}"},
        {"name": "resume", "command": f"python train.py --resume {folder}/last.pth{imports}"},
        {"name": "evaluate", "command": f"python evaluate.py -m {model}{imports}"},
        {"name": "predict", "command": f"python inference.py -m {model} -i IMAGES -o outputs{imports}"},
        {"name": "export", "command": f"python export.py -m {model} -f onnx -o model.onnx{imports}"},
    ]
