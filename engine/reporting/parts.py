"""Pieces of HTML that pages are put together from, and figures as words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

from engine.reporting.figures import Drawing

HERE = Path(__file__).parent
Column = tuple[str, str, str]  # heading, key, CSS class; without a key it cannot be sorted by


@cache
def asset(name: str) -> str:
    """The text of a file beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


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


def chip(color: str) -> str:
    """A small square in the color of a class."""
    return f'<span class="chip" style="background:{color}"></span>'


def meter(share: float | None, color: str = "") -> str:
    """A bar that is filled to a share."""
    fill = f";background:{color}" if color else ""
    return f'<span class="meter"><span style="width:{100 * min(share or 0, 1):.1f}%{fill}"></span></span>'


def number_cell(text: str, value: float | None, before: str = "") -> str:
    """A cell of a table with a figure to sort by; what is none comes last."""
    return f'<td class="num" data-v="{-1 if value is None else value}">{before}{text}</td>'


def table(name: str, columns: Iterable[Column], body: str, *, caption: str) -> str:
    """A table that can be sorted by its columns (heading, key, class); those without a key cannot."""
    heads = "".join(
        f'<th scope="col" class="{kind}" aria-sort="none"><button type="button">{escape(heading)}</button></th>'
        if key
        else f'<th scope="col" class="{kind}">{escape(heading)}</th>'
        for heading, key, kind in columns
    )
    name_of_it = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table{name_of_it} class="sortable"><caption class="hidden">{escape(caption)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def plain_figure(title: str, drawing: Drawing, legend: Mapping[str, int]) -> str:
    """A diagram without a cursor."""
    keys = "".join(f'<span class="key c{n}">{escape(name)}</span>' for name, n in legend.items())
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{keys}</figcaption>'
        f'<div class="plot">{drawing.svg}</div></figure>'
    )


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
    parts = [
        f"{protocol.get('dataset', '')} {protocol.get('split') or ''}".strip(),
        "whole images" if protocol.get("mode") == "single" else str(protocol.get("mode", "")).replace("_", " "),
        "own size" if size == "native" else f"size {size}",
        f"{len(scales)} scales" if len(scales) > 1 else "",
        "flipped too" if protocol.get("flip") else "",
        str(protocol.get("precision", "")),
        f"{protocol['models']} models averaged" if "models" in protocol else "",
    ]
    return " · ".join(part for part in parts if part)
