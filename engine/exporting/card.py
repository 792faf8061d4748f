"""The model card beside exported weights: what they are, how good they are, how to use them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.checkpoint import write_text
from utils.config import first_training_set
from utils.files import digest

MARK = "<!-- written by Segwright's export.py -->"


def write_card(weights: Path, state: Mapping[str, Any], results: Mapping[str, Any] | None) -> Path:
    """Write README.md into the folder of the weights; under another name where somebody else's is there.

    Args:
        weights: The exported file.
        state: The checkpoint.
        results: The run's results.json, if there is one.

    Returns:
        What was written.

    Raises:
        Stopped: It cannot be written.
    """
    path = weights.with_name("README.md")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace"):
        path = weights.with_name(f"{weights.stem}.README.md")
    write_text(path, card(weights, state, results))
    return path


def read_results(checkpoint: Path) -> dict[str, Any] | None:
    """The results.json of the checkpoint's run, if it is about this file."""
    try:
        results = json.loads((checkpoint.parent / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) and results.get("checkpoint") == checkpoint.name else None


def card(weights: Path, state: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    """The text of the card, in Markdown with the header that model hubs read.

    Args:
        weights: The exported file, whose SHA-256 it gives.
        state: The checkpoint.
        results: The run's results.json, if there is one.
    """
    name = weights.name
    checksum = digest(weights)
    protocol = (results or state)["protocol"]
    arch = state["arch"]["type"]
    dataset = protocol.get("dataset") or first_training_set(state["config"])["type"]
    lines = [
        "---",
        "library_name: segwright",
        "pipeline_tag: image-segmentation",
        f"datasets: [{json.dumps(dataset)}]",
        "---",
        MARK,
        f"# {arch} trained on {dataset}",
        "",
        f"`{name}` holds the weights, and in its metadata the network, the classes and the normalization.",
        "",
        f"SHA-256, as `sha256sum {name}` prints it: `{checksum}`",
        "",
        *_figures(results),
        "## Use",
        "",
        "```",
        f"python inference.py --model {name} --images photos/",
        "```",
        "",
        "## Classes",
        "",
        "| index | class | color |",
        "| --- | --- | --- |",
    ]
    for index, (label, color) in enumerate(zip(state["classes"], state["palette"], strict=True)):
        red, green, blue = color
        lines.append(f"| {index} | {label} | `#{red:02x}{green:02x}{blue:02x}` |")
    settings = json.dumps(state["arch"], indent=2)
    return "\n".join([*lines, "", "## Network", "", "```json", settings, "```", ""])


def _figures(results: Mapping[str, Any] | None) -> list[str]:
    if results is None:
        return ["No results.json was found beside the checkpoint, so that no figures are given.", ""]
    lines = ["## Figures", "", "| figure | value |", "| --- | --- |"]
    for key, value in results["metrics"].items():
        if key.startswith("val/") and isinstance(value, float):
            lines.append(f"| {key.removeprefix('val/')} | {value:.4f} |")
    stamp = ", ".join(f"{key} {value}" for key, value in results["protocol"].items())
    return [*lines, "", f"Measured with: {stamp}.", ""]
