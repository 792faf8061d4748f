"""The page of `prepare.py check --model`: suspicious regions of labels, with what the model says instead."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import cv2
import numpy as np

from engine.label_check import LabelCheck, Place, rows_of
from engine.label_errors import Box, Suspect
from engine.reporting.content import as_block
from engine.reporting.gallery import LONGEST, jpeg, shrink
from engine.reporting.parts import document, number_cell, table
from utils.classes import ClassTable
from utils.visualize import as_picture, overlay

SHOWN = 40  # suspects with pictures
LISTED = 500  # in the table
AROUND = 1.0  # of a region's longer side, that a picture shows on each side of it
LEAST_AROUND = 16  # pixels
FRAME = (255, 255, 255), (20, 20, 20)  # of a region: a dark line inside of a light one


def suspects_page(found: LabelCheck, table_name: str) -> str:
    """Make the whole page.

    Args:
        found: The suspects.
        table_name: Name of the file beside it that lists all of them.
    """
    rows = rows_of(found)
    title = f"{found.config.name}: labels that may be wrong"
    seen = ""
    if found.seen:
        seen = (
            f"<p>The model was trained on {found.seen} of the {found.images} images: there it contradicts labels less. "
            "<code>train.py --folds 5</code> makes models that were not, each of a part.</p>"
        )
    head = (
        f'<section id="top" class="verdict" aria-label="Result"><h1>{escape(title)}</h1>'
        f"<p>{len(rows)} regions of {found.images} images, the most suspicious first; all of them are in "
        f"<code>{escape(table_name)}</code>. In the pictures: the photo, the label, and what the model says.</p>{seen}"
        "</section>"
    )
    cards = "".join(
        card(suspect, place, row, found.config.classes)
        for (suspect, place), row in zip(found.ranked[:SHOWN], rows, strict=False)
    )
    body = (
        f'<main>{head}<section id="pictures-of" aria-labelledby="h-pictures"><h2 id="h-pictures">Pictures</h2>'
        f'<div class="pictures">{cards}</div></section><section id="list" aria-labelledby="h-list">'
        f'<h2 id="h-list">List</h2>{listed(rows[:LISTED])}</section></main>'
    )
    return document(title, body, as_block({"suspects": rows[:LISTED]}), "segwright-suspects", "suspects.js")


def card(suspect: Suspect, place: Place, row: dict[str, Any], classes: ClassTable) -> str:
    """Show a region: photo, label and prediction side by side, and in words."""
    item = place.dataset.read(place.index)
    predicted = place.judge.predictor.predict_image(item.image)
    text = f"{row['rank']}. {row['given']} or {row['predicted']}? {row['score']:.2f}"
    name = f"{row['set']} {row['image']}"
    picture = beside(item.image, [item.label, predicted], suspect.box, classes)
    alt = f"Region {row['rank']} of {name}: photo, label, prediction"
    return (
        f'<figure class="picture"><img src="{jpeg(picture)}" alt="{escape(alt)}" style="width:100%">'
        f'<figcaption><span class="name" title="{escape(name)}">{escape(name)}</span>'
        f"<span>{escape(text)}</span></figcaption></figure>"
    )


def beside(image: np.ndarray, labels: Sequence[np.ndarray], box: Box, classes: ClassTable) -> np.ndarray:
    """Put a part of an image (H, W, C) beside the same part of label maps (H, W), with a frame around a box."""
    around = max(LEAST_AROUND, round(AROUND * max(box.bottom - box.top, box.right - box.left)))
    top, left = max(0, box.top - around), max(0, box.left - around)
    window = (slice(top, box.bottom + around), slice(left, box.right + around))
    photo = np.ascontiguousarray(as_picture(image[window]))
    parts = [photo, *(overlay(image[window], label[window], classes, opacity=0.7) for label in labels)]
    enlarged = max(1, round(LONGEST / 2 / max(photo.shape[:2])))
    framed = []
    for part in parts:
        shown = shrink(cv2.resize(part, None, fx=enlarged, fy=enlarged, interpolation=cv2.INTER_NEAREST), LONGEST)
        scale = shown.shape[1] / part.shape[1]
        corners = [round(scale * each) for each in (box.left - left, box.top - top, box.right - left, box.bottom - top)]
        for color, thickness in zip(FRAME, (3, 1), strict=True):
            shown = cv2.rectangle(np.ascontiguousarray(shown), tuple(corners[:2]), tuple(corners[2:]), color, thickness)
        framed.append(cv2.copyMakeBorder(shown, 0, 0, 0, 4, cv2.BORDER_CONSTANT, value=(255, 255, 255)))
    return np.concatenate(framed, axis=1)


def listed(rows: Sequence[dict[str, Any]]) -> str:
    """Make the table of the suspects."""
    columns = [
        *(("rank", "rank", "num"), ("score", "score", "num"), ("set", "set", ""), ("image", "image", "")),
        *(("label", "given", ""), ("model says", "predicted", ""), ("kind", "kind", ""), ("pixels", "pixels", "num")),
    ]
    lines = []
    for row in rows:
        numbers = [number_cell(str(row["rank"]), row["rank"]), number_cell(f"{row['score']:.2f}", row["score"])]
        words = [f"<td>{escape(row[key])}</td>" for key in ("set", "image", "given", "predicted", "kind")]
        lines.append(f"<tr>{''.join([*numbers, *words])}{number_cell(str(row['pixels']), row['pixels'])}</tr>")
    return table("suspects", columns, "".join(lines), caption="Suspicious regions")
