"""The curves of a run: what there is to draw, and the section of the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.reporting import figures

# What else log steps may have: id and title of the chart, and a word in its keys.
OTHERS = (("gradient", "Gradient norm", "grad"), ("wait", "Waiting for data, share of time", "wait"))


def charts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curves there are: id, title and series (name, x, y), x being optimiser steps."""
    history, steps = content["history"], [line for line in content["steps"] if "event" not in line]
    found = [
        chart("loss", "Loss", history, {"training": "train/loss", "validation": "val/loss"}),
        chart("mean-iou", "Mean IoU", history, {"training": "train/Mean_IoU", "validation": "val/Mean_IoU"}),
    ]
    keys = dict.fromkeys(key for line in steps for key in line)
    rates = {rate_name(key): key for key in keys if "Learning_rate" in key}
    found.append(merged(chart("learning-rate", "Learning rate", steps, rates)))
    for name, title, word in OTHERS:
        named = {key.removeprefix("train/"): key for key in keys if word in key.lower()}
        found.append(chart(name, title, steps, named))
    found.append({"id": "speed", "title": "Images per second", "series": [speed(content)]})
    memory = {"host": "host_memory", "GPU": "gpu_memory"}
    found.append(chart("memory", "Peak memory, GiB", steps, memory, factor=2**-30))
    return [each for each in found if any(len(series["x"]) > 1 for series in each["series"])]


def rate_name(key: str) -> str:
    """A short name of a learning rate's series."""
    return key.removeprefix("train/Learning_rate").strip("_/ ") or "rate"


def chart(
    name: str, title: str, records: Sequence[Mapping[str, Any]], keys: Mapping[str, str], factor: float = 1
) -> dict[str, Any]:
    """A chart of some keys of `records`, by the names of their series."""
    series = []
    for label, key in keys.items():
        points = [(record["step"], record[key]) for record in records if key in record]
        if points:
            x, y = [point[0] for point in points], [point[1] * factor if factor != 1 else point[1] for point in points]
            series.append({"name": label, "x": x, "y": y})
    return {"id": name, "title": title, "series": series}


def merged(each: Mapping[str, Any]) -> dict[str, Any]:
    """The same chart with equal series as one, named after all of them."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for series in each["series"]:
        groups.setdefault(json.dumps([series["x"], series["y"]]), []).append(series)
    found = [{**equal[0], "name": ", ".join(series["name"] for series in equal)} for equal in groups.values()]
    return {**each, "series": found}


def speed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Images per second between log steps with neither a validation nor a start between them."""
    loader = content["config"].get("train_loader") or {}
    loader = loader[0] if isinstance(loader, list) else loader
    batch = loader.get("args", {}).get("batch_size", 0)
    x, y = [], []
    before: Mapping[str, Any] | None = None
    for line in content["steps"]:
        if "event" in line:
            before = None
            continue
        if before is not None and line["seconds"] > before["seconds"]:
            x.append(line["step"])
            y.append(round(batch * (line["step"] - before["step"]) / (line["seconds"] - before["seconds"]), 3))
        before = line
    return {"name": "images per second", "x": x, "y": y}


def curves_section(content: Mapping[str, Any]) -> str:
    """All charts, with one cursor, smoothing and a logarithmic scale."""
    found = charts(content)
    if not found:
        return ""
    best = best_step(content)
    resumed = [line["step"] for line in content["steps"] if line.get("event") == "resume"]
    parts = []
    for each in found:
        lines = [figures.Line(series["name"], series["x"], series["y"]) for series in each["series"]]
        drawing = figures.line_chart(lines, marks=figures.Marks(best, resumed))
        parts.append(chart_figure(each, drawing))
    marks = ["The dashed line marks the best validation"] if best is not None else []
    marks += ["dotted lines mark where the run went on"] if resumed else []
    note = f'<p class="muted small">{"; ".join(marks)}.</p>' if marks else ""
    return (
        '<div class="controls"><label>Smoothing <input type="range" id="smoothing" min="0" max="0.95" step="0.05" '
        'value="0"></label><label><input type="checkbox" id="log-scale"> Logarithmic</label>'
        '<span class="muted small">Point at a curve, or use the arrow keys on it.</span></div>'
        f'<div class="charts">{"".join(parts)}</div>{note}'
    )


def best_step(content: Mapping[str, Any]) -> float | None:
    """Step of the validation that the reported figures are of."""
    step = content["results"].get("metrics", {}).get("step")
    return step if isinstance(step, int) else None


def chart_figure(each: Mapping[str, Any], drawing: figures.Drawing) -> str:
    """A chart with its title, legend and the values under the cursor."""
    names = [series["name"] for series in each["series"]]
    legend = (
        "".join(f'<span class="key c{n}">{escape(name)}</span>' for n, name in enumerate(names))
        if len(names) > 1
        else ""
    )
    label = f"{each['title']} by step; arrow keys move the cursor"
    return (
        f'<figure class="chart"><figcaption><b>{escape(each["title"])}</b>{legend}</figcaption>'
        f'<div class="plot" tabindex="0" role="group" aria-label="{escape(label)}" data-chart="{each["id"]}" '
        f"data-box='{json.dumps(drawing.box)}' data-x='{json.dumps(drawing.x)}' data-y='{json.dumps(drawing.y)}'>"
        f'{drawing.svg}</div><output class="readout" aria-live="polite">&nbsp;</output></figure>'
    )
