"""The curves of a run: what there is to draw, and the section of the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.reporting import figures
from utils.config import first_training_set

# What else log steps may have: id and title of the chart, and a word in its keys.
OTHERS = (("gradient", "Gradient norm", "grad"), ("wait", "Waiting for data, share of time", "wait"))


def charts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curves there are: id, title and series (name, x, y), x being optimizer steps."""
    history, steps = content["history"], [line for line in content["steps"] if "event" not in line]
    # Averaged weights are validated instead of the raw ones, which train.
    averaged = ", validation of EMA weights" if content["config"].get("trainer", {}).get("ema") else ""
    found = [
        chart("loss", f"Loss{averaged}", history, {"training": "train/loss", "validation": "val/loss"}),
        chart(
            "mean-iou",
            f"Mean IoU{averaged}",
            history,
            {"training": "train/Mean_IoU", "validation": "val/Mean_IoU"},
        ),
    ]
    keys = dict.fromkeys(key for line in steps for key in line)
    every_rate = [key for key in keys if "Learning_rate" in key]
    named_rates = [key for key in every_rate if "Learning_rate/" in key]  # the others are the same ones, by number
    rates = {rate_name(key): key for key in named_rates or every_rate}
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
    loader = first_training_set(content["config"]) or {}
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
    marks = figures.Marks(best_step(content), steps_of("resume", content), steps_of("stop", content))
    parts = []
    for each in found:
        lines = [figures.Line(series["name"], series["x"], series["y"]) for series in each["series"]]
        drawing = figures.line_chart(lines, marks=marks)
        parts.append(chart_figure(each, drawing))
    words = marks_in_words(marks, content)
    note = f'<p class="muted small">{escape(words)}</p>' if words else ""
    return (
        '<div class="controls"><label>Smoothing <input type="range" id="smoothing" min="0" max="0.95" step="0.05" '
        'value="0"></label><label><input type="checkbox" id="log-scale"> Logarithmic</label>'
        '<span class="muted small">Point at a curve, or use the arrow keys on it.</span></div>'
        f'<div class="charts">{"".join(parts)}</div>{note}'
    )


def steps_of(event: str, content: Mapping[str, Any]) -> list[float]:
    """Steps at which the run went on ("resume"), or was stopped ("stop")."""
    return [line["step"] for line in content["steps"] if line.get("event") == event]


def marks_in_words(marks: figures.Marks, content: Mapping[str, Any]) -> str:
    """What the marks in the charts stand for, in a sentence; empty where there are none."""
    parts = ["the dashed line marks the best validation"] if marks.best is not None else []
    parts += ["dotted lines mark where the run went on"] if marks.resumed else []
    stops = [f"{line['reason']} at step {line['step']}" for line in content["steps"] if line.get("event") == "stop"]
    parts += [f"crosses mark what stopped it ({', '.join(stops)})"] if stops else []
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


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
