"""One page for all runs of a folder: to sort, to search, and to compare any two of them.

The page holds what is in its table. What comparing two runs takes besides, it asks their reports for, which it opens in
frames that are not shown; so it stays small, and needs neither a server nor a network.
"""

from __future__ import annotations

import json
import statistics as plain_statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from base.monitor import Monitor
from engine.reporting import figures
from engine.reporting.content import read_report
from engine.reporting.curves import speed
from engine.reporting.parts import document, duration, number, number_cell, protocol_words, table
from engine.reporting.write import REPORT
from utils.checkpoint import write_text
from utils.config import fingerprint
from utils.errors import ConfigError, DataError

BLOCK = "segwright-index"
SWEEP = "sweep.db"  # in the folder of a sweep, beside those of its trials
LAST = 10**9  # what sorts runs without a rank
MOST_KEYS = 14  # config keys that the table of changed ones shows
UNTOLD = ("name", "trainer.save_dir", "trainer.log_dir")  # keys whose difference says nothing


def write_index(folder: Path) -> tuple[Path, int, list[str]]:
    """Write `index.html` of a folder of runs.

    Returns:
        Its path, how many runs it shows, and what was wrong with other reports, a line each.

    Raises:
        DataError: There is no folder, or no report in it.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder. Name one of runs, such as saved/.")
    runs: list[dict[str, Any]] = []
    problems: list[str] = []
    for path in sorted(folder.rglob(REPORT)):
        place = path.relative_to(folder)
        if any((folder / above).is_symlink() for above in place.parents):  # `latest`: the run is here by its own name
            continue
        try:
            run = summary(read_report(path), place)
            runs.append({**run, "sweep": sweep_of(folder, place)})
        except DataError as error:
            problems += error.problems
        except (KeyError, TypeError, AttributeError, ValueError):
            problems.append(f"{path}: is no report of ours. Write it anew with `python report.py {path.parent}`.")
    if not runs:
        raise DataError(*(problems or [f"{folder}: holds no {REPORT}. Train something first; a run's end writes one."]))
    target = folder / "index.html"
    write_text(target, index_page(runs, folder.resolve().name))
    return target, len(runs), problems


def sweep_of(folder: Path, place: Path) -> str | None:
    """The folder, relative to the index, of the sweep that a report at `place` is a trial of; None if it is of none."""
    for above in place.parents:
        if (folder / above / SWEEP).is_file():
            return str(above) if above.name else folder.resolve().name
    return None


def run_name(name: str, place: Path) -> str:
    """What tells a run from others of its name: its folder, and those above it up to that of the name."""
    parts = place.parent.parts
    below = len(parts) - parts[::-1].index(name) if name in parts else len(parts) - 1
    return "/".join(parts[below:])


def summary(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the index says of a run.

    `monitored` is what its config's monitor watches: key, whether more is better (1) or less (-1), and its best value.

    Args:
        content: Of its report.
        path: Of its report, relative to the index.
    """
    evaluation, history = content["evaluation"] or {}, content["history"]
    validations = [record["val/Mean_IoU"] for record in history if "val/Mean_IoU" in record]
    metrics = evaluation.get("metrics", {})
    images = sorted(image["key"] for image in evaluation.get("images", []))
    return {
        "name": content["name"],
        "run": run_name(content["name"], path) or content["run"],
        "state": content["state"],
        "href": quote(path.as_posix()),
        "Mean_IoU": metrics.get("Mean_IoU", max(validations, default=None)),
        "low": evaluation.get("interval", {}).get("low"),
        "high": evaluation.get("interval", {}).get("high"),
        "Pixel_Accuracy": metrics.get("Pixel_Accuracy"),
        "validations": validations,
        "protocol": content["protocol"],
        "stamp": fingerprint([without_models(content["protocol"]), content["classes"]["names"], images]),
        "monitored": monitored(content),
        "parameters": content["facts"].get("parameters"),
        "speed": median(speed(content)["y"]),
        "seconds": content["seconds"],
        "seed": content["environment"].get("seed"),
        "config": flattened(content["config"]),
    }


def without_models(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """How a figure was measured, without how many models predicted: an ensemble is another model, no other way."""
    return {key: value for key, value in protocol.items() if key != "models"}


def monitored(content: Mapping[str, Any]) -> dict[str, Any]:
    """Key, sign and best value of what decided which model of a run is best; the mean IoU where nothing did."""
    history = content["history"]
    keys = list(dict.fromkeys(key for record in history for key in record))
    try:
        monitor = Monitor.parse(content["config"].get("trainer", {}).get("monitor", "off"), keys)
    except ConfigError:  # it has not been measured yet
        monitor = Monitor("", 1)
    key = monitor.key or "val/Mean_IoU"
    values = [record[key] for record in history if record.get(key) is not None]
    best = max(values, key=lambda value: monitor.sign * value, default=None)
    return {"key": key, "sign": monitor.sign, "value": best}


def median(values: Sequence[float]) -> float | None:
    """The median, or None of nothing."""
    return plain_statistics.median(values) if values else None


def flattened(value: Any, where: str = "") -> dict[str, Any]:
    """The plain values and lists in nested objects, by their keys joined by dots."""
    if not isinstance(value, Mapping):
        return {where: value}
    found: dict[str, Any] = {}
    for key, below in value.items():
        found |= flattened(below, f"{where}.{key}" if where else key)
    return found


def index_page(runs: Sequence[Mapping[str, Any]], title: str) -> str:
    """The whole page, best runs first."""
    ordered = sorted(runs, key=lambda run: (-(run["Mean_IoU"] or 0), run["run"]))
    stamps = [run["stamp"] for run in ordered]
    main = max(dict.fromkeys(stamps), key=stamps.count)
    ranks = rank(ordered, main)
    rows = "".join(run_row(index, run, ranks[index]) for index, run in enumerate(ordered))
    columns = [
        ("pick", "", ""),
        ("rank", "rank", "num"),
        ("run", "name", ""),
        ("mean IoU", "iou", "num"),
        ("95 % interval", "", "num"),
        ("over time", "", ""),
        ("parameters", "p", "num"),
        ("images/s in training", "s", "num"),
        ("time", "t", "num"),
        ("seed", "seed", "num"),
        ("measured", "protocol", ""),
    ]
    others = len(set(stamps)) - 1
    note = (
        f'<p class="muted small">Runs that were measured in another way, on other images or classes, are gray and have '
        f"no rank ({others} other {'way' if others == 1 else 'ways'}).</p>"
        if others
        else ""
    )
    body = (
        '<main class="wide"><section id="top" class="verdict" aria-label="Runs">'
        f'<h1><span class="big">{len(runs)}</span> '
        f"{'run' if len(runs) == 1 else 'runs'} in {escape(title)}</h1>"
        f'<p class="stamp">{escape(protocol_words(ordered[stamps.index(main)]["protocol"]))}</p>'
        '</section><section aria-labelledby="h-runs"><h2 id="h-runs" class="hidden">Runs</h2><div class="controls">'
        '<label>Search <input type="search" id="search" placeholder="name, date, protocol, config value"></label>'
        '<span class="muted small">Pick two runs to compare them, or more of different seeds to see the noise.</span>'
        f"</div>{table('runs', columns, rows, caption='Runs')}{note}</section>"
        '<section id="picked" aria-live="polite" aria-label="Comparison"></section>'
        f"{sweeps(ordered)}{scatters(ordered)}{changed_keys(ordered)}</main>"
    )
    content = {"runs": ordered, "changed": differing_keys(ordered)[:MOST_KEYS]}
    block = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return document(f"Runs in {title}", body, block, BLOCK, "index.js")


def rank(runs: Sequence[Mapping[str, Any]], stamp: str) -> list[int | None]:
    """The rank of each of `runs`, which are in order; None for those of another stamp, or still in training."""
    ranks: list[int | None] = []
    given = 0
    for run in runs:
        counts = run["stamp"] == stamp and run["Mean_IoU"] is not None
        given += counts
        ranks.append(given if counts else None)
    return ranks


def run_row(index: int, run: Mapping[str, Any], place: int | None) -> str:
    """The row of one run."""
    label = escape(f"{run['name']} {run['run']}")
    interval = "–" if run["low"] is None else f"{run['low']:.3f} – {run['high']:.3f}"
    parameters, value, seed = run["parameters"], run["Mean_IoU"], run["seed"]
    size = f"{parameters / 1e6:.2f} M" if parameters else "–"
    state = "" if run["state"] == "finished" else ' <span class="warn small">training</span>'
    cells = [
        f'<td><input type="checkbox" data-pick="{index}" aria-label="Pick {label}"></td>',
        number_cell(str(place or "–"), place or LAST),
        f'<th scope="row"><a href="{run["href"]}">{label}</a>{state}</th>',
        number_cell(f"<b>{number(value)}</b>", value),
        f'<td class="num">{interval}</td>',
        f"<td>{figures.sparkline(run['validations'])}</td>",
        number_cell(size, parameters),
        number_cell(number(run["speed"], 1), run["speed"]),
        number_cell(duration(run["seconds"]), run["seconds"]),
        number_cell("–" if seed is None else str(seed), seed),
        f'<td class="small muted stamp-cell">{escape(protocol_words(run["protocol"]))}</td>',
    ]
    return f'<tr data-run="{index}"{"" if place else " class=grayed"}>{"".join(cells)}</tr>'


def scatters(runs: Sequence[Mapping[str, Any]]) -> str:
    """Mean IoU against parameters and against speed, of the runs that have both."""
    parts = []
    for key, title, factor in (
        ("parameters", "million parameters", 1e-6),
        ("speed", "images per second in training", 1),
    ):
        points = [(i, run[key] * factor, run["Mean_IoU"]) for i, run in enumerate(runs) if run[key] and run["Mean_IoU"]]
        if len(points) > 1:
            drawing = figures.scatter(points, x_label=title, less_is_better=key == "parameters")
            parts.append(
                f'<figure class="chart"><figcaption><b>Mean IoU against {title}</b></figcaption>'
                f'<div class="plot scatter">{drawing.svg}</div><output class="readout">&nbsp;</output></figure>'
            )
    return f'<section><h2>What it costs</h2><div class="charts">{"".join(parts)}</div></section>' if parts else ""


def sweeps(runs: Sequence[Mapping[str, Any]]) -> str:
    """For each sweep its trials, with the values that they tried: finished ones first, best first by its monitor."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if run.get("sweep"):
            groups.setdefault(run["sweep"], []).append(run)
    parts = []
    for name, found in groups.items():
        trials = sorted(found, key=merit)
        monitor = trials[0]["monitored"]
        other = monitor["key"] != "val/Mean_IoU"
        keys = differing_keys(trials)[:MOST_KEYS]
        best = ", ".join(f"<code>{escape(key)}={escape(shown(trials[0]['config'].get(key)))}</code>" for key in keys)
        columns = [("trial", "name", ""), (monitor["key"], "m", "num")] if other else [("trial", "name", "")]
        columns += [("mean IoU", "iou", "num"), *((key, key, "") for key in keys)]
        rows = "".join(trial_row(trial, keys, monitored=other) for trial in trials)
        count = f"{len(trials)} {'trial' if len(trials) == 1 else 'trials'}"
        parts.append(
            f"<h3>{escape(name)}</h3><p>{count}. Best: <b>{escape(trials[0]['name'])}</b>, "
            f"{escape(monitor['key']) if other else 'mean IoU'} "
            f"{number(monitor['value'] if other else trials[0]['Mean_IoU'])}{': ' + best if best else ''}.</p>"
            + table("", columns, rows, caption=f"Trials of {name}")
        )
    return f'<section id="sweeps"><h2>Sweeps</h2>{"".join(parts)}</section>' if parts else ""


def merit(trial: Mapping[str, Any]) -> tuple[bool, float, str]:
    """What to sort trials by, so that the best finished one is first."""
    monitor = trial["monitored"]
    value = monitor["value"]
    return trial["state"] != "finished", LAST if value is None else -monitor["sign"] * value, trial["name"]


def trial_row(trial: Mapping[str, Any], keys: Sequence[str], *, monitored: bool) -> str:
    """The row of one trial: what its sweep watches, if that is shown too, its mean IoU and its values of `keys`."""
    state = "" if trial["state"] == "finished" else ' <span class="warn small">not finished</span>'
    watched = trial["monitored"]["value"]
    values = number_cell(number(watched, 4), watched) if monitored else ""
    values += number_cell(number(trial["Mean_IoU"]), trial["Mean_IoU"])
    cells = "".join(f"<td><code>{escape(shown(trial['config'].get(key)))}</code></td>" for key in keys)
    name = f'<a href="{trial["href"]}">{escape(trial["name"])}</a>{state}'
    return f'<tr><th scope="row">{name}</th>{values}{cells}</tr>'


def differing_keys(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The config keys that are not the same in all runs."""
    found = []
    for key in dict.fromkeys(key for run in runs for key in run["config"] if key not in UNTOLD):
        first = runs[0]["config"].get(key)
        if any(run["config"].get(key) != first for run in runs):
            found.append(key)
    return found


def changed_keys(runs: Sequence[Mapping[str, Any]]) -> str:
    """The config keys that are not the same in all runs: a drawing that index.js makes, and a table of their values."""
    changed = differing_keys(runs)
    if not changed:
        return ""
    values = {key: [run["config"].get(key) for run in runs] for key in changed}
    columns = [("run", "name", ""), ("mean IoU", "iou", "num"), *((key, key, "") for key in changed[:MOST_KEYS])]
    rows = ""
    for index, run in enumerate(runs):
        cells = "".join(f"<td><code>{escape(shown(values[key][index]))}</code></td>" for key in changed[:MOST_KEYS])
        name = f"{escape(run['name'])} {escape(run['run'])}"
        value = number_cell(number(run["Mean_IoU"]), run["Mean_IoU"])
        rows += f'<tr data-run="{index}"><th scope="row">{name}</th>{value}{cells}</tr>'
    more = len(changed) - MOST_KEYS
    note = f'<p class="muted small">{more} more keys differ.</p>' if more > 0 else ""
    found = table("changed", columns, rows, caption="Config keys that differ between runs")
    drawing = (
        '<figure class="parallel"><figcaption class="muted small">A line is a run, an axis a key that differs among '
        "the runs shown; the last one is the mean IoU. Point at a line, or at a run in a table.</figcaption>"
        '<div class="scroll" id="parallel" tabindex="0" role="region" aria-label="Changed keys against mean IoU"></div>'
        '<output class="readout" id="parallel-readout">&nbsp;</output></figure>'
    )
    return f"<section><h2>What differs in the configs</h2>{drawing}{found}{note}</section>"


def shown(value: Any) -> str:
    """A config value as short JSON."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "…"
