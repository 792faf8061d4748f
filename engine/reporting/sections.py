"""The sections of a report that say what was measured: classes, confusions, images, errors, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.reporting import figures
from engine.reporting.errors import BAND, SMALLEST
from engine.reporting.gallery import ERROR_COLORS
from engine.reporting.parts import Column, chip, meter, number, number_cell, percent, plain_figure, table

LAYERS = ("prediction", "truth", "errors", "confidence")
MOST_CONFUSED = 30  # classes that a confusion matrix shows
WORDS_OF_KINDS = {
    "missed": f"objects of which less than a tenth was found (of at least {SMALLEST} pixels)",
    "hallucinated": "objects found where less than a tenth of them is",
    "boundary": f"at most {BAND} pixels from a contour of the truth",
    "interior": "inside of objects that were found",
}


def last_validation(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Figures of the newest validation, by their names without `val/`."""
    for record in reversed(history):
        if "val/Mean_IoU" in record:
            return {key.removeprefix("val/"): value for key, value in record.items() if key.startswith("val/")}
    return {}


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
        '<p class="muted small">Boundary IoU counts only what lies near contours (2 % of the diagonal). A name leads '
        "to the images in which its class is worst.</p>"
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
    return (
        [{"name": name, "iou": metrics.get(f"Class_IoU/{name}"), "ignored": False} for name in names] if metrics else []
    )


def class_row(
    row: Mapping[str, Any],
    columns: Sequence[Column],
    history: Sequence[Mapping[str, Any]],
    classes: Mapping[str, Any],
) -> str:
    """The row of one class."""
    index = classes["names"].index(row["name"])
    name, color = escape(row["name"]), classes["colors"][index]
    ignored = ' <span class="muted">(in no mean)</span>' if row["ignored"] else ""
    label = f'<button type="button" class="link" data-worst="{name}">{name}</button>' if "pixels" in row else name
    cells = [f'<th scope="row">{chip(color)}{label}{ignored}</th>']
    for heading, key, _ in columns[1:]:
        value = row.get(key)
        if heading == "over time":
            values = [record.get(f"val/Class_IoU/{row['name']}") for record in history]
            cells.append(f"<td>{figures.sparkline(values)}</td>")
        elif key == "iou":
            cells.append(number_cell(number(value), value, meter(value)))
        elif key in ("pixel_share", "share_of_error"):
            cells.append(number_cell(percent(value), value))
        else:
            cells.append(number_cell(f"{value:,}" if isinstance(value, int) else number(value), value))
    return f"<tr>{''.join(cells)}</tr>"


def confusion_words(confusion: Mapping[str, Any], names: Sequence[str]) -> str:
    """A confusion as a phrase of HTML."""
    truth, predicted = escape(names[confusion["truth"]]), escape(names[confusion["predicted"]])
    return f"{100 * confusion['share']:.0f} % of <b>{truth}</b> is taken for <b>{predicted}</b>"


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
        f"{matrix_table(evaluation['matrix'], names)}"
        '<output id="matrix-readout" class="readout" aria-live="polite">Point at a field for its pixels.</output>'
        "</div></div>"
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


def gallery_section(content: Mapping[str, Any]) -> str:
    """Controls and an empty place that page.js fills with pictures."""
    if not content["gallery"]:
        return ""
    classes = "".join(f"<option>{escape(name)}</option>" for name in content["classes"]["names"])
    radios = "".join(
        f'<label><input type="radio" name="layer" value="{layer}"{" checked" if layer == LAYERS[0] else ""}> '
        f"{layer}</label>"
        for layer in LAYERS
    )
    kinds = "".join(f'<span class="key" style="--key:{color}">{kind}</span>' for kind, color in ERROR_COLORS.items())
    iou = [image["Mean_IoU"] for image in content["evaluation"]["images"] if image["Mean_IoU"] is not None]
    return (
        '<div class="controls"><label>Images <select id="group"><option value="worst">worst</option>'
        '<option value="median">median</option><option value="best">best</option><option value="random">random</option>'
        '</select></label><label>Class <select id="gallery-class"><option value="">all</option>'
        f'{classes}</select></label><span class="radios" role="radiogroup" aria-label="Layer">{radios}</span>'
        '<label>Opacity <input type="range" id="opacity" min="0" max="100" value="70"></label></div>'
        '<p id="gallery-note" class="muted small" aria-live="polite"></p>'
        f'<p class="legend small" id="error-legend" hidden>{kinds}</p>'
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
    columns = [
        ("class", "name", ""),
        *((f"{kind}", kind, "num") for kind in errors["kinds"]),
        ("missed objects", "m", "num"),
    ]
    body = "".join(error_row(index, row, errors, classes["colors"][index]) for index, row in enumerate(rows))
    caption = "What the IoU of each class would gain if errors of one kind were right"
    return (
        f'<div class="kinds">{cards}</div>{table("error-table", columns, body, caption=caption)}'
        f'<p class="muted small">{caption}. Every wrong pixel is of the first kind that fits, in this order.</p>'
    )


def error_row(index: int, row: Mapping[str, Any], errors: Mapping[str, Any], color: str) -> str:
    """What one class would gain without each kind of its errors."""
    cells = [f'<th scope="row">{chip(color)}{escape(row["name"])}</th>']
    for kind, gains in zip(errors["kinds"], errors["gains"], strict=True):
        cells.append(number_cell(gain_text(gains[index]), gains[index], meter(gains[index], ERROR_COLORS[kind])))
    share = row["missed_objects"] / row["objects"] if row["objects"] else None
    cells.append(number_cell(f"{row['missed_objects']:,} of {row['objects']:,}", share))
    return f"<tr>{''.join(cells)}</tr>"


def gain_text(value: float | None) -> str:
    """A gain with its sign, or a dash."""
    return "–" if value is None else f"{value:+.3f}"


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
