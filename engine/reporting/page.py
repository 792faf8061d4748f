"""A report as one HTML page that needs no network: text, tables and diagrams here, behavior in page.js.

`page` shows what `content` has put together. Everything also works from the JSON block that the page holds, which is
what pictures and curves are read from, and what `index` and `compare` need.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from statistics import median
from typing import Any

from engine.reporting import figures
from engine.reporting.collect import SURE
from engine.reporting.content import BLOCK, as_block
from engine.reporting.curves import charts, curves_section
from engine.reporting.errors import SIZE_BINS, SMALLEST
from engine.reporting.parts import (
    chip,
    document,
    duration,
    join_words,
    meter,
    number,
    number_cell,
    percent,
    plain_figure,
    protocol_words,
    size_of_memory,
    table,
)
from engine.reporting.sections import (
    calibration_section,
    classes_section,
    confusion_words,
    confusions_section,
    errors_section,
    gallery_section,
    last_validation,
)

MOST_SIZES = 4  # of images, that are told one by one
SMALLEST_BIN = SMALLEST.bit_length() - 1  # of object sizes: those below are empty
VIEWER = (
    '<dialog id="viewer" aria-labelledby="viewer-title"><div class="viewer-head"><h2 id="viewer-title"></h2>'
    '<p class="hint">Wheel or + and − zoom, drag or arrow keys move, all pictures together.</p>'
    '<button type="button" id="viewer-close">Close</button></div><div id="viewer-panes"></div></dialog>'
)


def page(content: Mapping[str, Any]) -> str:
    """The whole page."""
    content = {**content, "charts": charts(content)}
    title = f"{content['name']} {content['run']}".strip()
    sections = [
        ("curves", "Curves", curves_section(content)),
        ("classes", "Classes", classes_section(content)),
        ("confusions", "Confusions", confusions_section(content)),
        ("gallery", "Images", gallery_section(content)),
        ("errors", "Where the errors are", errors_section(content)),
        ("calibration", "Calibration", calibration_section(content)),
        ("data", "Data", data_section(content)),
        ("config", "Config", config_section(content)),
    ]
    shown = [(name, heading, body) for name, heading, body in sections if body]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in shown)
    bodies = "".join(
        f'<section id="{name}" aria-labelledby="h-{name}"><h2 id="h-{name}">{escape(heading)}</h2>{body}</section>'
        for name, heading, body in shown
    )
    body = f'<nav aria-label="Sections">{links}</nav><main>{verdict(content)}{bodies}</main>{VIEWER}'
    return document(title, body, as_block(content), BLOCK, "page.js")


def verdict(content: Mapping[str, Any]) -> str:
    """The head of the page: the figure, how sure it is, and what there is to know of the run."""
    evaluation, results = content["evaluation"], content["results"]
    metrics = evaluation["metrics"] if evaluation else last_validation(content["history"])
    value, interval = metrics.get("Mean_IoU"), evaluation["interval"] if evaluation else {}
    spread = ""
    if interval.get("low") is not None:
        images = len(evaluation["images"])
        spread = (
            f'<p class="spread">between <b>{interval["low"]:.3f}</b> and <b>{interval["high"]:.3f}</b>'
            f'<span class="muted"> (95 % interval, bootstrap over {images} images)</span></p>'
        )
    state = (
        "" if content["state"] == "finished" else '<p class="state">Still training: figures of the last validation.</p>'
    )
    sentences = "".join(f"<p>{sentence}</p>" for sentence in summary(content))
    rows = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts(content) if v != "–")
    notes = "".join(f"<li>{escape(note)}</li>" for note in results.get("notes", []))
    return (
        f'<section id="top" class="verdict" aria-label="Result"><p class="kicker">{escape(str(content["name"]))}'
        f"{' · ' + escape(content['run']) if content['run'] else ''}</p>"
        f'<h1><span class="big">{number(value)}</span> mean IoU</h1>{spread}{state}'
        f'<p class="stamp">{escape(protocol_words(content["protocol"]))}</p>'
        f'<div class="plain">{sentences}</div><dl class="facts">{rows}</dl>'
        f"{f'<ul class=notes>{notes}</ul>' if notes else ''}</section>"
    )


def summary(content: Mapping[str, Any]) -> list[str]:
    """What to take away, in a few sentences of HTML."""
    evaluation, names = content["evaluation"], content["classes"]["names"]
    if not evaluation:
        return []
    rows = [row for row in evaluation["table"] if row["iou"] is not None and not row["ignored"]]
    weakest = sorted(rows, key=lambda row: row["iou"])[:3]
    found = []
    if weakest:
        parts = [f"<b>{escape(row['name'])}</b> ({row['iou']:.2f})" for row in weakest]
        found.append(f"Weakest: {join_words(parts)}.")
    if evaluation["confusions"]:
        # Of those that cost the most pixels, the one that most of its class falls victim to.
        worst = max(evaluation["confusions"][:10], key=lambda confusion: confusion["share"])
        found.append(f"Most confused: {confusion_words(worst, names)}.")
    gains = [(gain, kind) for gain, kind in zip(*gains_of(evaluation), strict=True) if gain is not None]
    if gains:
        gain, kind = max(gains)
        found.append(f"Most is to be gained from <b>{kind}</b> errors: {gain:+.3f} mean IoU if they were right.")
    return found


def gains_of(evaluation: Mapping[str, Any]) -> tuple[list[float | None], list[str]]:
    """What the mean IoU would gain without each kind of error, and the kinds."""
    return evaluation["errors"]["mean_gains"], evaluation["errors"]["kinds"]


def facts(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Names and values of what stands under the verdict."""
    results, environment = content["results"], content["environment"]
    evaluation = content["evaluation"] or {}
    metrics = evaluation.get("metrics", {})
    epochs = content["history"][-1]["epoch"] if content["history"] else None
    epoch = results.get("epoch")
    parameters = content["facts"].get("parameters")
    return [
        ("best epoch", f"{epoch} of {epochs}" if epoch and epochs else str(epoch or "–")),
        ("pixel accuracy", number(metrics.get("Pixel_Accuracy"))),
        ("guessing by place alone", number(results.get("location_prior", {}).get("Mean_IoU"))),
        ("calibration error", number((evaluation.get("calibration") or {}).get("error"))),
        ("parameters", f"{parameters / 1e6:.2f} M" if parameters else "–"),
        ("training time", duration(content["seconds"])),
        ("peak memory", size_of_memory(content["memory"].get("gpu_memory") or content["memory"].get("host_memory"))),
        ("device", str(environment.get("device_name", "–"))),
        ("seed", str(environment.get("seed", "–"))),
        ("commit", str(environment.get("git") or "–")),
    ]


def data_section(content: Mapping[str, Any]) -> str:
    """What the network was trained and measured on."""
    evaluation, data, classes = content["evaluation"], content["data"], content["classes"]
    parts = []
    if evaluation:
        sizes = size_words(evaluation["sizes"])
        parts.append(
            f"<p>Validation: {len(evaluation['images'])} images, {sizes}; {percent(evaluation['void'])} void.</p>"
        )
    if data:
        sizes = size_words(data.get("training_sizes") or [])
        parts.append(
            f"<p>Training: {data['training_images']:,} images; the {data['labels_counted']} of them that were looked "
            f"at: {sizes + '; ' if sizes else ''}{percent(data['training_void'])} void.</p>"
        )
    parts.append(findings_list(data))
    if evaluation:
        parts.append(suspects_list(evaluation, classes["names"]))
    if data and data["crops"]:
        crops = "".join(
            f'<figure class="picture"><div class="stack"><img src="{crop["image"]}" alt="Training crop '
            f'{escape(crop["key"])}"><img class="layer" src="{crop["label"]}" alt=""></div></figure>'
            for crop in data["crops"]
        )
        parts.append(
            '<h3>The first training crops, as fed</h3><div class="controls"><label>Labels <input type="range" '
            f'id="crop-opacity" min="0" max="100" value="40"></label></div><div class="crops">{crops}</div>'
        )
    if evaluation:
        parts.append(area_table(evaluation, data, classes))
        parts.append(object_sizes(evaluation, data))
    return "".join(parts)


def size_words(sizes: Sequence[Mapping[str, int]]) -> str:
    """Widths and heights of images, most frequent first; of many, their range and median."""
    if len(sizes) == 1:
        return f"all {sizes[0]['width']}×{sizes[0]['height']}"
    if len(sizes) <= MOST_SIZES:
        return join_words([f"{each['width']}×{each['height']} ({each['images']})" for each in sizes]) if sizes else ""
    parts = []
    for side in ("width", "height"):
        values = [each[side] for each in sizes for _ in range(each["images"])]
        parts.append(f"{side} {min(values)} to {max(values)} (median {median(values):.0f})")
    return join_words(parts)


def object_sizes(evaluation: Mapping[str, Any], data: Mapping[str, Any] | None) -> str:
    """How large the objects in the labels are, those of validation and those of training."""
    by_class = [row["object_sizes"] for row in evaluation["table"]]
    groups = {"validation": [sum(counts) for counts in zip(*by_class, strict=True)]}
    note = ""
    if data and sum(data.get("training_objects", [])):
        groups["training"] = data["training_objects"]
        note = f" Training: in {data['labels_with_objects']} labels, drawn at random."
    groups = {name: counts[SMALLEST_BIN:] for name, counts in groups.items() if sum(counts)}
    if not groups:
        return ""
    edges = [2.0 ** (k + SMALLEST_BIN) for k in range(SIZE_BINS - SMALLEST_BIN + 1)]
    drawing = figures.histogram(groups, edges, x_label="pixels of an object", log_x=True)
    legend = {name: index for index, name in enumerate(groups)}
    return (
        f"{plain_figure('Sizes of objects in the labels', drawing, legend)}"
        f'<p class="muted small">An object is a connected region of a class, of {SMALLEST} pixels or more.{note}</p>'
    )


def findings_list(data: Mapping[str, Any] | None) -> str:
    """What is wrong with the data, as the doctor says."""
    if not data or "findings" not in data:
        return ""
    findings = data["findings"]
    command = "<code>python prepare.py check -c CONFIG</code>"
    if findings is None:
        return f"<h3>What the doctor found</h3><p>Nobody has looked at all files yet: {command} does.</p>"
    if not findings:
        return ""
    items = "".join(
        f"<li><b>{escape(each['kind'])}</b> ({escape(each['where'])}): {escape(each['what'])}"
        f"{': ' + escape(', '.join(each['files'])) if each['files'] else ''}. "
        f'<span class="muted">Fix: <code>{escape(each["fix"])}</code></span></li>'
        for each in findings
    )
    return f'<h3>What the doctor found</h3><ul class="findings">{items}</ul>'


def suspects_list(evaluation: Mapping[str, Any], names: Sequence[str]) -> str:
    """Images whose labels are perhaps wrong."""
    if not evaluation.get("suspects"):
        return ""
    items = "".join(
        f'<li><button type="button" class="link" data-images="{escape(json.dumps([each["key"]]))}">'
        f"{escape(each['key'])}</button>: {each['pixels']:,} pixels labelled <b>{escape(names[each['truth']])}</b> "
        f"look like <b>{escape(names[each['predicted']])}</b></li>"
        for each in evaluation["suspects"]
    )
    return (
        f'<h3>Labels to look at</h3><p class="muted small">Where the network contradicts a label, away from contours, '
        f'with a probability of at least {SURE:.0%}: it is wrong, or the label is.</p><ul class="findings">{items}</ul>'
    )


def area_table(evaluation: Mapping[str, Any], data: Mapping[str, Any] | None, classes: Mapping[str, Any]) -> str:
    """Areas of the classes in validation and, where it is known, in training."""
    total = sum(row["pixels"] for row in evaluation["table"]) or 1
    training = data["training_pixels"] if data else None
    columns = [("class", "name", ""), ("validation", "v", "num")]
    columns += [("training", "t", "num")] if training else []
    columns += [("objects", "o", "num"), ("median size, pixels", "s", "num")]
    body = ""
    for index, row in enumerate(evaluation["table"]):
        cells = [
            f'<th scope="row">{chip(classes["colors"][index])}{escape(row["name"])}</th>',
            share_cell(row["pixels"] / total),
        ]
        if training:
            cells.append(share_cell(training[index] / (sum(training) or 1)))
        cells.append(number_cell(f"{row['objects']:,}", row["objects"]))
        area = row["median_object"]
        cells.append(number_cell("–" if area is None else f"{area:,.0f}", area))
        body += f"<tr>{''.join(cells)}</tr>"
    return "<h3>Areas</h3>" + table("area-table", columns, body, caption="Areas of the classes")


def share_cell(share: float) -> str:
    """A share with a bar."""
    return number_cell(percent(share), share, meter(share))


def config_section(content: Mapping[str, Any]) -> str:
    """Commands to go on with, and what is particular about the config."""
    commands = "".join(
        f'<div class="command"><span>{escape(each["name"])}</span><code>{escape(each["command"])}</code>'
        f'<button type="button" data-copy aria-label="Copy the command: {escape(each["name"])}">Copy</button></div>'
        for each in content["commands"]
    )
    parts = [f'<div class="commands">{commands}</div>']
    differences = content["differences"]
    if differences:
        defaults, parent, previous = differences["defaults"], differences["parent"], differences["previous"]
        parts.append(difference_table("Other than the defaults", "default", defaults))
        if differences["parent_name"]:
            parts.append(difference_table(f"Other than {differences['parent_name']}", "there", parent))
        if differences["previous_name"]:
            parts.append(
                difference_table(f"Other than the run before, {differences['previous_name']}", "there", previous)
            )
    parts.append(plan_table(content.get("plan", [])))
    for title, value in (
        ("Resolved config", content["config"]),
        ("Environment", content["environment"]),
        ("Protocol", content["protocol"]),
    ):
        if value:
            text = escape(json.dumps(value, indent=2, ensure_ascii=False))
            parts.append(
                f'<details><summary>{title}</summary><pre tabindex="0" aria-label="{title}">{text}</pre></details>'
            )
    return "".join(parts)


def plan_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """What `prepare.py plan` chose and why; nothing for a config that it did not write."""
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row"><code>{escape(row["what"])}</code></th><td><code>{shown(row["value"])}</code></td>'
        f"<td>{escape(row['reason'])}</td></tr>"
        for row in rows
    )
    columns = [("key", "k", ""), ("planned", "", ""), ("because", "", "")]
    return "<h3>Planned</h3>" + table("", columns, body, caption="What the plan chose, and why")


def difference_table(title: str, old: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Keys that differ, with both values."""
    if not rows:
        return f"<h3>{escape(title)}</h3><p>Nothing.</p>"
    body = "".join(
        f'<tr><th scope="row"><code>{escape(row["key"])}</code></th><td><code>{shown(row["new"])}</code></td>'
        f"<td><code>{shown(row['old'])}</code></td></tr>"
        for row in rows
    )
    columns = [("key", "k", ""), ("this run", "", ""), (old, "", "")]
    return f"<h3>{escape(title)}</h3>" + table("", columns, body, caption=title)


def shown(value: Any) -> str:
    """A config value as JSON, cut off where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= 120 else text[:117] + "…")
