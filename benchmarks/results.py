"""What benchmarks measured: files in benchmarks/results/, and the tables that BENCHMARKS.md shows of them.

    make bench                      # measure, and write the tables
    python -m benchmarks.results    # write the tables alone

A table stands between `<!-- results: NAME -->` and `<!-- end -->`; a test compares it with results/NAME.json.
"""

from __future__ import annotations

import json
import os
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.run_folder import environment

FOLDER = Path(__file__).resolve().parent / "results"
PAGE = FOLDER.parent.parent / "BENCHMARKS.md"
STAMP = ("versions", "device_name", "num_threads", "git", "command")  # of what a run's environment holds
BLOCK = re.compile(r"(<!-- results: (\w+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


class Figure(NamedTuple):
    """What was measured several times."""

    what: str
    unit: str  # "x" for a ratio
    values: Sequence[float]


def summary(figure: Figure) -> dict[str, Any]:
    """Return median and spread of a figure, as plain JSON; to four digits."""
    low, middle, high = min(figure.values), statistics.median(figure.values), max(figure.values)
    rounded = {name: float(f"{value:.4g}") for name, value in (("median", middle), ("low", low), ("high", high))}
    return {"what": figure.what, "unit": figure.unit, **rounded, "runs": len(figure.values)}


def write(name: str, title: str, figures: Sequence[Figure], *, device: str = "cpu", folder: Path = FOLDER) -> Path:
    """Write NAME.json: median and spread of each figure, the commit, and the machine with its load at the end.

    Args:
        name: Of the benchmark; letters, digits and ``_``.
        title: What was measured, for the head of the table.
        figures: In the order of the table.
        device: What was computed on.
        folder: Where results lie.
    """
    made = environment(device, seed=0)
    stamp = {key: made[key] for key in STAMP} | {"cores": os.cpu_count(), "load": round(os.getloadavg()[0], 1)}
    stamp["command"] = ["DIR" if os.path.isabs(word) else word for word in stamp["command"]]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    content = {"title": title, "figures": [summary(figure) for figure in figures], "environment": stamp}
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(results: Mapping[str, Any]) -> str:
    """Return the table of what `write` wrote, in Markdown, with a line of where it was measured."""
    lines = [f"| {results['title']} | median | lowest to highest | runs |", "| --- | --- | --- | --- |"]
    for row in results["figures"]:
        spread = f"{row['low']:g} to {row['high']:g}"
        lines.append(f"| {row['what']} | {row['median']:g} {row['unit']} | {spread} | {row['runs']} |")
    stamp = results["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in stamp["versions"].items())
    machine = f"threads {stamp['num_threads']}, cores {stamp['cores']}, load {stamp['load']:g}"
    lines += ["", f"Commit {stamp['git']}; {machine}; {versions}."]
    return "\n".join(lines) + "\n"


def page(text: str, folder: Path = FOLDER) -> str:
    """Return the page `text` with the tables of all results in their places.

    Raises:
        FileNotFoundError: A place has no results.
    """

    def block(match: re.Match[str]) -> str:
        results = json.loads((folder / f"{match[2]}.json").read_text(encoding="utf-8"))
        return f"{match[1]}{table(results)}{match[3]}"

    return BLOCK.sub(block, text)


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
