"""All that a report holds, in one object of plain values: put together here, shown by `page`, read by `index`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.reporting import config_view
from engine.reporting.recorder import now, read_steps, total_seconds
from utils.classes import ClassTable
from utils.errors import DataError

FORMAT = 1
BLOCK = "segwright-report"  # id of the page's element that holds the object
MOST_POINTS = 600  # of a curve of log steps
FROM_EVALUATION = ("evaluation", "data", "gallery", "pictures", "small_pictures")


def run_content(
    run_dir: Path,
    *,
    protocol: Mapping[str, Any],
    classes: ClassTable,
    results: Mapping[str, Any] | None = None,
    measured: Mapping[str, Any] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of a run's report, from the files in its folder and what was measured.

    Args:
        run_dir: The run's folder.
        protocol: How validation measures.
        classes: Its classes.
        results: What results.json says; None while the run is being trained.
        measured: Values for `FROM_EVALUATION`, as far as there are any.
        facts: Others for the head of the page, such as the number of parameters.
    """
    config, environment = read_object(run_dir / "config.json"), read_object(run_dir / "environment.json")
    steps = read_steps(run_dir)
    results = results or {}
    checkpoint = results.get("checkpoint", "best_model.pth")
    parent, parent_differences = config_view.differences_to_parent(config, environment.get("command", []))
    previous = previous_run(run_dir)
    return {
        "format": FORMAT,
        "kind": "run",
        "made": now(),
        "name": config.get("name", run_dir.parent.name),
        "run": run_dir.name,
        "state": "finished" if results else "training",
        "results": {key: value for key, value in results.items() if key != "image_figures"},
        "protocol": dict(protocol),
        "classes": class_facts(classes),
        "history": read_lines(run_dir / "metrics.jsonl"),
        "steps": thinned(steps),
        "seconds": total_seconds(steps),
        "memory": {
            name: max((line[name] for line in steps if name in line), default=None)
            for name in ("host_memory", "gpu_memory")
        },
        "facts": dict(facts or {}),
        "config": config,
        "environment": environment,
        "differences": {
            "defaults": config_view.differences_to_defaults(config),
            "parent_name": parent,
            "parent": parent_differences,
            "previous_name": previous.name if previous else "",
            "previous": config_view.differences_to_run(config, read_object(previous / "config.json"))
            if previous
            else [],
        },
        "plan": config_view.choices_of_plan(environment.get("command", [])),
        "commands": config_view.commands(run_dir, environment, checkpoint),
        **dict.fromkeys(FROM_EVALUATION),
        **(measured or {}),
    }


def evaluation_content(
    *, name: str, results: Mapping[str, Any], classes: ClassTable, measured: Mapping[str, Any], command: Sequence[str]
) -> dict[str, Any]:
    """The content of a report of an evaluation: no curves, and no config but the protocol.

    Args:
        name: What was evaluated.
        results: What evaluate.py writes with --output.
        classes: The classes.
        measured: Values for `FROM_EVALUATION`.
        command: The command line.
    """
    return {
        "format": FORMAT,
        "kind": "evaluation",
        "made": now(),
        "name": name,
        "run": "",
        "state": "finished",
        "results": {key: value for key, value in results.items() if key != "image_figures"},
        "protocol": dict(results["protocol"]),
        "classes": class_facts(classes),
        "history": [],
        "steps": [],
        "seconds": None,
        "memory": {},
        "facts": {},
        "config": {},
        "environment": {},
        "differences": {},
        "commands": [{"name": "this report was made by", "command": " ".join(command)}],
        **dict.fromkeys(FROM_EVALUATION),
        **measured,
    }


def class_facts(classes: ClassTable) -> dict[str, Any]:
    """Names, colors and ignored ones of the classes."""
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in classes.colors]
    return {"names": list(classes.names), "colors": colors, "ignored": sorted(classes.ignored_classes)}


def previous_run(run_dir: Path) -> Path | None:
    """The run of the same name that was begun before this one."""
    siblings = sorted(path.parent for path in run_dir.parent.glob("*/config.json") if not path.parent.is_symlink())
    earlier = [path for path in siblings if path.name < run_dir.name]
    return earlier[-1] if earlier else None


def thinned(steps: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """At most `MOST_POINTS` log steps, evenly, and all events."""
    plain = sum("event" not in line for line in steps)
    every = -(-plain // MOST_POINTS) or 1
    found, number = [], 0
    for line in steps:
        if "event" in line:
            found.append(line)
            continue
        number += 1
        if number % every == 0 or number == plain:
            found.append(line)
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where it cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects in a file, one a line; none where it cannot be read."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError):
        return []


def read_report(path: Path) -> dict[str, Any]:
    """The content of a report.

    Raises:
        DataError: The file cannot be read, or is no report.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise DataError(f"{path}: cannot be read ({reason}). Name a report.html.") from None
    found = re.search(rf'<script type="application/json" id="{BLOCK}">(.*?)</script>', text, re.DOTALL)
    try:
        content = json.loads(found[1]) if found else None
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise DataError(f"{path}: holds no report of this version. Name a report.html, or write it anew by report.py.")
    return content


def as_block(content: Mapping[str, Any]) -> str:
    """`content` as the text of a script element; no `<` in it can end that."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
