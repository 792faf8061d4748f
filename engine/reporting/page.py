"""A report as one HTML page that needs no network: text, tables and diagrams here, behaviour in page.js.

`page` shows what `content` has put together. Everything also works from the JSON block that the page holds, which is
what pictures and curves are read from, and what `index` and `compare` need.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from engine.reporting import figures
from engine.reporting.content import BLOCK, as_block
from engine.reporting.errors import BAND, SMALLEST
from engine.reporting.gallery import ERROR_COLORS

HERE = Path(__file__).parent
MOST_CONFUSED = 30  # classes that a confusion matrix shows
SMALLEST_BIN = SMALLEST.bit_length() - 1  # of object sizes: those below are empty
WORDS_OF_KINDS = {
    "missed": f"objects of which less than a tenth was found (of at least {SMALLEST} pixels)",
    "hallucinated": "objects found where less than a tenth of them is",
    "boundary": f"at most {BAND} pixels from a contour of the truth",
    "interior": "inside of objects that were found",
}


@cache
def asset(name: str) -> str:
    """The text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


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


def document(title: str, body: str, block: str, block_id: str, script: str) -> str:
    """An HTML document with a bar on top, a block of JSON and a script."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)} · Segwright</title>\n<style>{asset('page.css')}</style>\n"
        '<link rel="icon" href="data:,">\n</head>\n<body>\n'
        '<header class="bar"><a class="skip" href="#top">Skip to the content</a>'
        f'<span class="bar-title">{escape(title)}</span>'
        '<button type="button" id="theme" aria-pressed="false">Dark</button></header>\n'
        f"{body}\n"
        f'<script type="application/json" id="{block_id}">{block}</script>\n'
        f"<script>{asset('common.js')}\n{asset(script)}</script>\n</body>\n</html>\n"
    )


VIEWER = (
    '<dialog id="viewer" aria-labelledby="viewer-title"><div class="viewer-head"><h2 id="viewer-title"></h2>'
    '<p class="hint">Wheel or + and − zoom, drag or arrow keys move, all pictures together.</p>'
    '<button type="button" id="viewer-close">Close</button></div><div id="viewer-panes"></div></dialog>'
)


# ------------------------------------------------------------------------------------------------------------ words


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """A time in the units that fit."""
    if not seconds:
        return "–"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size_of_memory(number_of_bytes: float | None) -> str:
    """Bytes in GiB, or a dash."""
    return "–" if not number_of_bytes else f"{number_of_bytes / 2**30:.1f} GiB"


def join_words(words: Sequence[str]) -> str:
    """`a, b and c`."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """The stamp of a figure: how it was measured."""
    size = protocol.get("size", "native")
    size = size if isinstance(size, str) else "×".join(map(str, size))
    scales = protocol.get("scales") or [1.0]
    looks = "one scale" if len(scales) == 1 else f"{len(scales)} scales"
    parts = [
        f"{protocol.get('dataset', '')} {protocol.get('split') or ''}".strip(),
        f"mode {protocol.get('mode')}",
        f"size {size}",
        looks,
        "flipped too" if protocol.get("flip") else "not flipped",
        str(protocol.get("precision", "")),
    ]
    return " · ".join(part for part in parts if part)


# ---------------------------------------------------------------------------------------------------------- verdict


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
            f'<span class="muted"> with a probability of 95 % (bootstrap over {images} images)</span></p>'
        )
    state = "" if content["state"] == "finished" else '<p class="state">Still training: figures of the last validation.</p>'
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


def last_validation(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of the newest validation, by their names without `val/`."""
    for record in reversed(history):
        if "val/Mean_IoU" in record:
            return {key.removeprefix("val/"): value for key, value in record.items() if key.startswith("val/")}
    return {}


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
        first = evaluation["confusions"][0]
        found.append(f"Largest confusion: {confusion_words(first, names)}.")
    gains = [(gain, kind) for gain, kind in zip(*gains_of(evaluation), strict=True) if gain is not None]
    if gains:
        gain, kind = max(gains)
        found.append(f"Most is to be gained from <b>{kind}</b> errors: {gain:+.3f} mean IoU if they were right.")
    return found


def gains_of(evaluation: Mapping[str, Any]) -> tuple[list[float | None], list[str]]:
    """What the mean IoU would gain without each kind of error, and the kinds."""
    return evaluation["errors"]["mean_gains"], evaluation["errors"]["kinds"]


def confusion_words(confusion: Mapping[str, Any], names: Sequence[str]) -> str:
    """A confusion as a phrase of HTML."""
    truth, predicted = escape(names[confusion["truth"]]), escape(names[confusion["predicted"]])
    return f"{100 * confusion['share']:.0f} % of <b>{truth}</b> is taken for <b>{predicted}</b>"


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


# ----------------------------------------------------------------------------------------------------------- curves


def charts(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The curves there are: id, title and series (name, x, y), x being optimiser steps."""
    history, steps = content["history"], [line for line in content["steps"] if "event" not in line]
    found = [
        chart("loss", "Loss", history, {"training": "train/loss", "validation": "val/loss"}),
        chart("mean-iou", "Mean IoU", history, {"training": "train/Mean_IoU", "validation": "val/Mean_IoU"}),
    ]
    keys = dict.fromkeys(key for line in steps for key in line)
    rates = {rate_name(key): key for key in keys if "Learning_rate" in key}
    found.append(chart("learning-rate", "Learning rate", steps, rates))
    found.append(chart("gradient", "Gradient norm", steps, {"norm": k for k in keys if "grad" in k.lower()}))
    found.append(chart("wait", "Waiting for data, share of time", steps, {"share": k for k in keys if "wait" in k.lower()}))
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
    legend = "".join(f'<span class="key c{n}">{escape(name)}</span>' for n, name in enumerate(names)) if len(names) > 1 else ""
    label = f"{each['title']} by step; arrow keys move the cursor"
    return (
        f'<figure class="chart"><figcaption><b>{escape(each["title"])}</b>{legend}</figcaption>'
        f'<div class="plot" tabindex="0" role="group" aria-label="{escape(label)}" data-chart="{each["id"]}" '
        f"data-box='{json.dumps(drawing.box)}' data-x='{json.dumps(drawing.x)}' data-y='{json.dumps(drawing.y)}'>"
        f'{drawing.svg}</div><output class="readout" aria-live="polite">&nbsp;</output></figure>'
    )


# ---------------------------------------------------------------------------------------------------------- classes


def classes_section(content: Mapping[str, Any]) -> str:
    """A row for each class, to sort by any column."""
    rows = class_rows(content)
    if not rows:
        return ""
    history = [record for record in content["history"] if "val/Mean_IoU" in record]
    columns = [
        ("class", "name", ""),
        ("IoU", "iou", "num"),
        ("over time", "", "") if len(history) > 1 else ("", "", ""),
        ("precision", "precision", "num"),
        ("recall", "recall", "num"),
        ("boundary IoU", "boundary_iou", "num"),
        ("share of pixels", "pixel_share", "num"),
        ("images", "images", "num"),
        ("share of errors", "share_of_error", "num"),
    ]
    columns = [column for column in columns if column[0] and (not column[1] or column[1] in rows[0])]
    body = "".join(class_row(row, columns, history, content["classes"]) for row in rows)
    return table("class-table", columns, body, caption="Figures of each class") + (
        '<p class="muted small">Boundary IoU counts only what lies near contours (2 % of the diagonal). A name leads to '
        "the images in which its class is worst.</p>"
        if content["evaluation"]
        else ""
    )


def class_rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Figures of each class: of the evaluation or, during training, of the last validation."""
    evaluation = content["evaluation"]
    if evaluation:
        total = sum(row["pixels"] for row in evaluation["table"]) or 1
        return [{**row, "pixel_share": row["pixels"] / total} for row in evaluation["table"]]
    metrics = last_validation(content["history"])
    names = content["classes"]["names"]
    return [{"name": name, "iou": metrics.get(f"Class_IoU/{name}"), "ignored": False} for name in names] if metrics else []


def class_row(
    row: Mapping[str, Any],
    columns: Sequence[tuple[str, str, str]],
    history: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Any],
) -> str:
    """The row of one class."""
    index = classes["names"].index(row["name"])
    name, color = escape(row["name"]), classes["colors"][index]
    ignored = ' <span class="muted">(in no mean)</span>' if row["ignored"] else ""
    label = f'<button type="button" class="link" data-worst="{name}">{name}</button>' if "pixels" in row else name
    cells = [f'<th scope="row"><span class="chip" style="background:{color}"></span>{label}{ignored}</th>']
    for heading, key, _ in columns[1:]:
        value = row.get(key)
        sort = -1 if value is None else value
        if heading == "over time":
            values = [record.get(f"val/Class_IoU/{row['name']}") for record in history]
            cells.append(f"<td>{figures.sparkline(values)}</td>")
        elif key == "iou":
            bar = f'<span class="meter"><span style="width:{100 * (value or 0):.1f}%"></span></span>'
            cells.append(f'<td class="num" data-v="{sort}">{bar}{number(value)}</td>')
        elif key in ("pixel_share", "share_of_error"):
            cells.append(f'<td class="num" data-v="{sort}">{percent(value)}</td>')
        else:
            text = f"{value:,}" if isinstance(value, int) else number(value)
            cells.append(f'<td class="num" data-v="{sort}">{text}</td>')
    return f"<tr>{''.join(cells)}</tr>"


def table(name: str, columns: Iterable[tuple[str, str, str]], body: str, *, caption: str) -> str:
    """A table that can be sorted by its columns (heading, key, class); those without a key cannot."""
    heads = "".join(
        f'<th scope="col" class="{kind}" aria-sort="none"><button type="button">{escape(heading)}</button></th>'
        if key
        else f'<th scope="col" class="{kind}">{escape(heading)}</th>'
        for heading, key, kind in columns
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table id="{name}" class="sortable">'
        f'<caption class="hidden">{escape(caption)}</caption><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
    )


# ------------------------------------------------------------------------------------------------------- confusions


def confusions_section(content: Mapping[str, Any]) -> str:
    """The most frequent confusions in words, and the matrix."""
    evaluation, names = content["evaluation"], content["classes"]["names"]
    if not evaluation or not evaluation["confusions"]:
        return ""
    items = "".join(
        f'<li><button type="button" class="link" data-confusion="{number_}">'
        f"{confusion_words(confusion, names)}</button></li>"
        for number_, confusion in enumerate(evaluation["confusions"][:10])
    )
    return (
        f'<div class="columns"><ol class="words">{items}</ol><div>'
        '<div class="controls" role="group" aria-label="What shares are of">'
        '<label><input type="radio" name="norm" value="truth" checked> share of the truth</label>'
        '<label><input type="radio" name="norm" value="predicted"> share of the prediction</label></div>'
        f'{matrix_table(evaluation["matrix"], names)}'
        '<output id="matrix-readout" class="readout" aria-live="polite">Point at a field for its pixels.</output></div></div>'
    )


def matrix_table(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """The confusion matrix; of many classes, those with the most wrong pixels. page.js fills in colors and shares."""
    wrong = [sum(row) - row[index] + sum(other[index] for other in matrix) for index, row in enumerate(matrix)]
    chosen = sorted(sorted(range(len(names)), key=lambda index: -wrong[index])[:MOST_CONFUSED])
    heads = "".join(f'<th scope="col"><span>{escape(names[index])}</span></th>' for index in chosen)
    rows = "".join(
        f'<tr><th scope="row">{escape(names[row])}</th>'
        + "".join(f'<td data-t="{row}" data-p="{column}"></td>' for column in chosen)
        + "</tr>"
        for row in chosen
    )
    left_out = len(names) - len(chosen)
    note = f'<p class="muted small">{left_out} classes with fewer errors are not shown.</p>' if left_out else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Confusion matrix"><table class="matrix">'
        '<caption>rows: truth, columns: prediction</caption><thead><tr><td class="corner"></td>'
        f"{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


# ---------------------------------------------------------------------------------------------------------- gallery


def gallery_section(content: Mapping[str, Any]) -> str:
    """Controls and an empty place that page.js fills with pictures."""
    if not content["gallery"]:
        return ""
    classes = "".join(f"<option>{escape(name)}</option>" for name in content["classes"]["names"])
    layers = [("prediction", "prediction"), ("truth", "truth"), ("errors", "errors"), ("confidence", "confidence")]
    radios = "".join(
        f'<label><input type="radio" name="layer" value="{value}"{" checked" if value == "prediction" else ""}> {text}</label>'
        for value, text in layers
    )
    kinds = "".join(
        f'<span class="key" style="--key:{color}">{kind}</span>' for kind, color in ERROR_COLORS.items()
    )
    iou = [image["Mean_IoU"] for image in content["evaluation"]["images"] if image["Mean_IoU"] is not None]
    return (
        '<div class="controls"><label>Images <select id="group"><option value="worst">worst</option>'
        '<option value="median">median</option><option value="best">best</option><option value="random">random</option>'
        '</select></label><label>Class <select id="gallery-class"><option value="">all</option>'
        f'{classes}</select></label><span class="radios" role="radiogroup" aria-label="Layer">{radios}</span>'
        '<label>Opacity <input type="range" id="opacity" min="0" max="100" value="70"></label></div>'
        f'<p id="gallery-note" class="muted small" aria-live="polite"></p><p class="legend small" id="error-legend" hidden>{kinds}</p>'
        '<noscript><p>Pictures need JavaScript.</p></noscript><div id="pictures" class="pictures"></div>'
        f"{iou_histogram(iou)}"
    )


def iou_histogram(values: Sequence[float]) -> str:
    """How many images have which mean IoU."""
    if not values:
        return ""
    edges = [number_ / 20 for number_ in range(21)]
    counts = [0] * 20
    for value in values:
        counts[min(int(value * 20), 19)] += 1
    drawing = figures.histogram({"images": counts}, edges, x_label="mean IoU of an image")
    return plain_figure("Mean IoU of single images", drawing, {})


def plain_figure(title: str, drawing: figures.Drawing, legend: Mapping[str, int]) -> str:
    """A diagram without a cursor."""
    keys = "".join(f'<span class="key c{n}">{escape(name)}</span>' for name, n in legend.items())
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{keys}</figcaption>'
        f'<div class="plot">{drawing.svg}</div></figure>'
    )


# ------------------------------------------------------------------------------------------------------------ errors


def errors_section(content: Mapping[str, Any]) -> str:
    """What each class would gain if one kind of its errors were right."""
    if not content["evaluation"]:
        return ""
    evaluation = content["evaluation"]
    errors, rows, classes = evaluation["errors"], evaluation["table"], content["classes"]
    lost = [sum(row) for row in errors["lost"]]
    total = sum(lost) or 1
    cards = "".join(
        f'<div class="kind"><span class="key" style="--key:{ERROR_COLORS[kind]}">{kind}</span>'
        f"<b>{percent(lost[k] / total, 0)}</b> of wrong pixels, {gain_text(errors['mean_gains'][k])} mean IoU"
        f'<p class="muted small">{WORDS_OF_KINDS[kind]}</p></div>'
        for k, kind in enumerate(errors["kinds"])
    )
    columns = [("class", "name", ""), *((f"{kind}", kind, "num") for kind in errors["kinds"]), ("missed objects", "m", "num")]
    body = ""
    for index, row in enumerate(rows):
        chip = f'<span class="chip" style="background:{classes["colors"][index]}"></span>'
        cells = [f'<th scope="row">{chip}{escape(row["name"])}</th>']
        for k, kind in enumerate(errors["kinds"]):
            gain = errors["gains"][k][index]
            bar = f'<span class="meter"><span style="width:{min(100, 100 * (gain or 0)):.1f}%;background:{ERROR_COLORS[kind]}"></span></span>'
            cells.append(f'<td class="num" data-v="{-1 if gain is None else gain}">{bar}{gain_text(gain)}</td>')
        share = row["missed_objects"] / row["objects"] if row["objects"] else -1
        text = f"{row['missed_objects']:,} of {row['objects']:,}"
        cells.append(f'<td class="num" data-v="{share}">{text}</td>')
        body += f"<tr>{''.join(cells)}</tr>"
    caption = "What the IoU of each class would gain if errors of one kind were right"
    return (
        f'<div class="kinds">{cards}</div>{table("error-table", columns, body, caption=caption)}'
        f'<p class="muted small">{caption}. Every wrong pixel is of the first kind that fits, in this order.</p>'
    )


def gain_text(value: float | None) -> str:
    """A gain with its sign, or a dash."""
    return "–" if value is None else f"{value:+.3f}"


# ------------------------------------------------------------------------------------------------------- calibration


def calibration_section(content: Mapping[str, Any]) -> str:
    """How sure the network is, and how right."""
    if not content["evaluation"] or content["evaluation"]["calibration"]["error"] is None:
        return ""
    calibration = content["evaluation"]["calibration"]
    temperature = calibration["temperature"]
    mood = "about right"
    if temperature is not None and temperature > 1.05:
        mood = "too sure of itself"
    elif temperature is not None and temperature < 0.95:
        mood = "less sure than it could be"
    text = (
        f"<p>The network is {mood}. Its probabilities are off by {calibration['error']:.3f} on average (expected "
        f"calibration error); dividing the logits by {number(temperature, 2)} would make them most likely.</p>"
    )
    bins = len(calibration["sureness_of_hits"])
    groups = {"right": calibration["sureness_of_hits"], "wrong": calibration["sureness_of_errors"]}
    edges = [index / bins for index in range(bins + 1)]
    sureness = figures.histogram(groups, edges, x_label="probability that the network gives")
    reliability = plain_figure("Reliability", figures.reliability_chart(calibration), {})
    return (
        f'{text}<div class="charts">{reliability}'
        f"{plain_figure('Probability of right and of wrong pixels', sureness, {'right': 0, 'wrong': 1})}</div>"
    )


# -------------------------------------------------------------------------------------------------------------- data


def data_section(content: Mapping[str, Any]) -> str:
    """What the network was trained and measured on."""
    evaluation, data, classes = content["evaluation"], content["data"], content["classes"]
    parts = []
    if evaluation:
        sizes = ", ".join(f"{each['width']}×{each['height']} ({each['images']})" for each in evaluation["sizes"][:4])
        more = len(evaluation["sizes"]) - 4
        sizes += f" and {more} other sizes" if more > 0 else ""
        parts.append(f"<p>Validation: {len(evaluation['images'])} images of {sizes}; {percent(evaluation['void'])} void.</p>")
    if data:
        parts.append(
            f"<p>Training: {data['training_images']:,} images; {percent(data['training_void'])} void in "
            f"{data['labels_counted']} labels that were counted.</p>"
        )
    if data and data["crops"]:
        crops = "".join(
            f'<figure class="picture"><div class="stack"><img src="{crop["image"]}" alt="Training crop {escape(crop["key"])}">'
            f'<img class="layer" src="{crop["label"]}" alt=""></div></figure>'
            for crop in data["crops"]
        )
        parts.append(
            '<h3>The first training crops, as fed</h3><div class="controls"><label>Labels <input type="range" '
            f'id="crop-opacity" min="0" max="100" value="40"></label></div><div class="crops">{crops}</div>'
        )
    if evaluation:
        parts.append(area_table(evaluation, data, classes))
        by_class = [row["object_sizes"] for row in evaluation["table"]]
        sizes_of_objects = [sum(counts) for counts in zip(*by_class, strict=True)][SMALLEST_BIN:]
        if sum(sizes_of_objects):
            edges = [2.0 ** (k + SMALLEST_BIN) for k in range(len(sizes_of_objects) + 1)]
            drawing = figures.histogram({"objects": sizes_of_objects}, edges, x_label="pixels of an object", log_x=True)
            parts.append(plain_figure("Sizes of objects in the validation labels", drawing, {}))
    return "".join(parts)


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
            f'<th scope="row"><span class="chip" style="background:{classes["colors"][index]}"></span>{escape(row["name"])}</th>',
            share_cell(row["pixels"] / total),
        ]
        if training:
            cells.append(share_cell(training[index] / (sum(training) or 1)))
        cells.append(f'<td class="num" data-v="{row["objects"]}">{row["objects"]:,}</td>')
        median = row["median_object"]
        cells.append(f'<td class="num" data-v="{median or 0}">{"–" if median is None else f"{median:,.0f}"}</td>')
        body += f"<tr>{''.join(cells)}</tr>"
    return "<h3>Areas</h3>" + table("area-table", columns, body, caption="Areas of the classes")


def share_cell(share: float) -> str:
    """A share with a bar."""
    bar = f'<span class="meter"><span style="width:{100 * share:.1f}%"></span></span>'
    return f'<td class="num" data-v="{share}">{bar}{percent(share)}</td>'


# ------------------------------------------------------------------------------------------------------------ config


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
            parts.append(difference_table(f"Other than the run before, {differences['previous_name']}", "there", previous))
    for title, value in (("Resolved config", content["config"]), ("Environment", content["environment"]), ("Protocol", content["protocol"])):
        if value:
            text = escape(json.dumps(value, indent=2, ensure_ascii=False))
            parts.append(
                f'<details><summary>{title}</summary><pre tabindex="0" aria-label="{title}">{text}</pre></details>'
            )
    return "".join(parts)


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
    return f"<h3>{escape(title)}</h3>" + table("", columns, body, caption=title).replace(' id=""', "")


def shown(value: Any) -> str:
    """A config value as JSON, cut off where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return escape(text if len(text) <= 120 else text[:117] + "…")
