"""Diagrams, drawn by matplotlib: SVG for the report, PNG for the run's folder.

matplotlib is imported where something is drawn, and never through pyplot, which would look for a screen. In SVG, colors
stand for CSS variables, so that a diagram follows the page from light to dark, and no text is turned into outlines.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colors, which nobody confuses: https://jfly.uni-koeln.de/color/
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, GRID = "#1b1f24", "#5a6270", "#d9dde3"
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--line"} | {
    color: f"--c{number}" for number, color in enumerate(SERIES_COLORS)
}
FLAT, LARGE = (4.6, 2.3), (4.6, 2.9)  # inches
CURVES = {"loss": ("train/loss", "val/loss"), "mean IoU": ("train/Mean_IoU", "val/Mean_IoU")}


@dataclass(frozen=True)
class Line:
    """A curve: its name and its points, in order of x."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Drawing:
    """A diagram as SVG, and what a script has to know to point at its values.

    Args:
        svg: The picture.
        box: Left, top, right and bottom of the axes, in units of the SVG.
        x: Values at the left and the right.
        y: Values at the bottom and the top.
    """

    svg: str
    box: tuple[float, float, float, float] = (0, 0, 0, 0)
    x: tuple[float, float] = (0, 1)
    y: tuple[float, float] = (0, 1)


@dataclass(frozen=True)
class Marks:
    """Steps to mark in a diagram: the best validation, where the run was stopped, and where it went on."""

    best: float | None = None
    resumed: Sequence[float] = field(default=())
    stopped: Sequence[float] = field(default=())


def line_chart(lines: Sequence[Line], *, marks: Marks | None = None, size: tuple[float, float] = FLAT) -> Drawing:
    """Curves over optimizer steps.

    Args:
        lines: At most as many as there are `SERIES_COLORS`.
        marks: What to mark.
        size: Width and height in inches.
    """
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(size)
    marks = marks or Marks()
    for number, (line, color) in enumerate(zip(lines, SERIES_COLORS, strict=False)):
        marker = "o" if len(line.x) < 12 else ""
        (drawn,) = axes.plot(line.x, line.y, color=color, linewidth=1.6, marker=marker, markersize=3)
        drawn.set_gid(f"series-{number}")
    if marks.best is not None:
        axes.axvline(marks.best, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    for step in marks.resumed:
        axes.axvline(step, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
    top = axes.get_xaxis_transform()  # x is a step, y a share of the height
    axes.plot(marks.stopped, [1] * len(marks.stopped), "x", transform=top, clip_on=False, color=INK, markersize=5)
    axes.margins(x=0.01, y=0.08)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_gid("y-axis")
    axes.set_xlabel("step", color=MUTED, fontsize=8)
    return _finish(figure, axes)


def reliability_chart(calibration: Mapping[str, Any]) -> Drawing:
    """Accuracy by probability, beside the diagonal on which both agree."""
    figure, axes = _figure(LARGE)
    pixels = np.array(calibration["pixels"], float)
    filled = pixels > 0
    probability = np.array(calibration["probability"])[filled] / pixels[filled]
    accuracy = np.array(calibration["right"])[filled] / pixels[filled]
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(probability, accuracy, color=SERIES_COLORS[0], linewidth=1.6, marker="o", markersize=4)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability that the network gives", color=MUTED, fontsize=8)
    axes.set_ylabel("share that is right", color=MUTED, fontsize=8)
    return _finish(figure, axes)


def histogram(
    groups: Mapping[str, Sequence[float]], edges: Sequence[float], *, x_label: str, log_x: bool = False
) -> Drawing:
    """Counts in bins, as shares of each group.

    Args:
        groups: Counts of each group, one less than `edges`.
        edges: Bounds of the bins.
        x_label: What is counted.
        log_x: Whether bins grow by a factor.
    """
    figure, axes = _figure(LARGE)
    for number, counts in enumerate(groups.values()):
        shares = np.array(counts, float) / max(sum(counts), 1)
        color = SERIES_COLORS[number]
        axes.stairs(shares, edges, color=color, linewidth=1.6)
        axes.stairs(shares, edges, color=color, alpha=0.18, fill=True, linewidth=0)
    if log_x:
        axes.set_xscale("log")
    axes.set_xlim(edges[0], edges[-1])
    axes.set_ylim(bottom=0)
    axes.set_xlabel(x_label, color=MUTED, fontsize=8)
    axes.set_ylabel("share", color=MUTED, fontsize=8)
    return _finish(figure, axes)


def scatter(points: Sequence[tuple[int, float, float]], *, x_label: str, less_is_better: bool) -> Drawing:
    """Points (number, x, mean IoU), and the line of those that no other one beats in both.

    Args:
        points: Their numbers name them for the page's script.
        x_label: What x is.
        less_is_better: Of x.
    """
    figure, axes = _figure(LARGE)
    best = pareto([(x, y) for _, x, y in points], less_is_better=less_is_better)
    axes.plot(*zip(*best, strict=True), color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    for number, x, y in points:
        (drawn,) = axes.plot([x], [y], marker="o", markersize=7, color=SERIES_COLORS[0], alpha=0.85)
        drawn.set_gid(f"run-{number}")
    axes.margins(0.12)
    axes.set_xlabel(x_label, color=MUTED, fontsize=8)
    axes.set_ylabel("mean IoU", color=MUTED, fontsize=8)
    return _finish(figure, axes)


def pareto(points: Sequence[tuple[float, float]], *, less_is_better: bool) -> list[tuple[float, float]]:
    """The points (cost or speed, mean IoU) that no other one beats in both, from left to right."""
    ordered = sorted(points, key=lambda point: (point[0] if less_is_better else -point[0], -point[1]))
    found: list[tuple[float, float]] = []
    for point in ordered:
        if not found or point[1] > found[-1][1]:
            found.append(point)
    return sorted(found)


def sparkline(values: Sequence[float | None], width: int = 84, height: int = 20) -> str:
    """A small SVG curve of values from 0 to 1, without axes; empty where there are fewer than two."""
    points = [(number, value) for number, value in enumerate(values) if value is not None]
    if len(points) < 2:
        return ""
    scale = (width - 4) / max(len(values) - 1, 1)
    path = " ".join(f"{2 + number * scale:.1f},{height - 2 - value * (height - 4):.1f}" for number, value in points)
    last_x, last_y = path.rpartition(" ")[2].split(",")
    return (
        f'<svg class="spark" viewBox="0 0 {width} {height}" width="{width}" height="{height}" aria-hidden="true">'
        f'<polyline points="{path}"/><circle cx="{last_x}" cy="{last_y}" r="2"/></svg>'
    )


# ------------------------------------------------------------------------------------------------ pictures on disk


def curves_picture(history: Sequence[Mapping[str, Any]]) -> bytes:
    """PNG of a run's losses and of its mean IoU by epoch, each on axes of its own."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6))
    for left, (name, keys) in zip((0.06, 0.56), CURVES.items(), strict=True):
        axes = figure.add_axes((left, 0.13, 0.42, 0.76))
        _style(axes)
        for key, color in zip(keys, SERIES_COLORS, strict=False):
            points = [(record["epoch"], record[key]) for record in history if key in record]
            if points:
                label = "training" if key.startswith("train") else "validation"
                axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8, marker="o", markersize=3, label=label)
        axes.set_title(name, loc="left", fontsize=11, color=INK)
        axes.set_xlabel("epoch", color=MUTED)
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def schedule_picture(lines: Mapping[str, Sequence[tuple[float, float]]]) -> bytes:
    """PNG of learning rates by optimizer step, a curve for each group of parameters."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    _style(axes)
    for (name, points), color in zip(lines.items(), SERIES_COLORS * len(lines), strict=False):
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.8, label=name)
    axes.set_xlabel("optimizer steps", color=MUTED)
    axes.set_ylabel("learning rate", color=MUTED)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=9)
    return _png(figure)


def confusion_picture(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> bytes:
    """PNG of a confusion matrix (C, C): of each class's pixels, the share taken for every other."""
    from matplotlib.figure import Figure

    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(4 + 0.32 * len(names), 24)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("prediction", color=MUTED)
    axes.set_ylabel("truth", color=MUTED)
    if len(names) <= 25:
        for row, column in np.argwhere(shares >= 0.005).tolist():
            color = "white" if shares[row, column] > 0.55 else INK
            text = f"{100 * shares[row, column]:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    return _png(figure)


# ---------------------------------------------------------------------------------------------------------- inside


def _figure(size: tuple[float, float]) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    left, bottom = 0.52 / size[0], 0.42 / size[1]
    axes = figure.add_axes((left, bottom, 0.97 - left, 0.95 - bottom))
    _style(axes)
    return figure, axes


def _style(axes: Axes) -> None:
    """Quiet axes: a light grid, no frame but the x axis."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(which="both", colors=MUTED, labelsize=8, length=0)


def _finish(figure: Figure, axes: Axes) -> Drawing:
    """The drawing of a figure, with its colors as CSS variables."""
    import matplotlib

    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "segwright"}):
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    width, height = 72 * figure.get_size_inches()
    place = axes.get_position()
    left, right = float(place.x0 * width), float(place.x1 * width)
    top, bottom = float((1 - place.y1) * height), float((1 - place.y0) * height)
    x, y = axes.get_xlim(), axes.get_ylim()
    svg = clean_svg(file.getvalue())
    return Drawing(svg, (left, top, right, bottom), (float(x[0]), float(x[1])), (float(y[0]), float(y[1])))


def clean_svg(svg: str) -> str:
    """matplotlib's SVG as a part of a page: no prologue, no names that occur twice, colors and fonts of the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="([^"]+)"', r'<g data-g="\1"', svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'aria-hidden="true" focusable="false"', svg, count=1)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font-family: [^;]*; ", "", svg)
    for color, variable in VARIABLES.items():
        svg = svg.replace(f": {color}", f": var({variable})")
    return re.sub(r"\n\s*", "\n", svg)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, facecolor="white", metadata={"Software": None})
    return file.getvalue()
