"""Whether one model is better than another one, or whether it is noise: paired figures of the same images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.reporting import statistics
from engine.reporting.collect import counts_of
from engine.reporting.content import read_report
from engine.reporting.statistics import Comparison, Interval, SignTest
from utils.config import differences
from utils.errors import ConfigError, DataError


@dataclass(frozen=True)
class Measurement:
    """What was measured of one model.

    Args:
        name: Of the model, for the table.
        classes: Names of the classes.
        ignored: Classes that are in no mean.
        protocol: How it was measured.
        images: As `collect.image_figures` gives them.
    """

    name: str
    classes: Sequence[str]
    ignored: Sequence[int]
    protocol: Mapping[str, Any]
    images: Sequence[Mapping[str, Any]]


def read_measurement(path: Path) -> Measurement:
    """What a results.json, or a report, says of one model.

    Raises:
        DataError: The file cannot be read, or lacks figures of single images.
    """
    if path.suffix == ".html":
        return from_report(path)
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        names = [row["name"] for row in results["classes"]]
        ignored = [index for index, row in enumerate(results["classes"]) if row.get("ignored")]
        images = list(results["image_figures"])
        counts_of(images, len(names))
        found = Measurement(str(path), names, ignored, dict(results["protocol"]), images)
        labelled(found)
        return found
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Name a results.json or a report.html.") from None
    except (ValueError, LookupError, TypeError):
        raise DataError(
            f"{path}: holds no figures of single images. Write it by evaluate.py --output, or name a report.html."
        ) from None


def from_report(path: Path) -> Measurement:
    """What a report says of its model.

    Raises:
        DataError: It cannot be read, or measured nothing.
    """
    content = read_report(path)
    if not content["evaluation"]:
        raise DataError(f"{path}: was written during training. Wait for its end, or use evaluate.py --report.")
    classes = content["classes"]
    images = content["evaluation"]["images"]
    return Measurement(str(path), classes["names"], classes["ignored"], content["protocol"], images)


def compare(first: Measurement, second: Measurement) -> Comparison:
    """What the second model gains over the first one.

    Raises:
        ConfigError: They were measured in different ways, or on different images.
    """
    if problems := why_not_comparable(first, second):
        raise ConfigError(*(f"--compare {second.name}: {problem}" for problem in problems))
    size = len(first.classes)
    by_key = {image["key"]: image for image in second.images}
    paired = [by_key[image["key"]] for image in first.images]
    shown = np.array([index not in first.ignored for index in range(size)])
    return statistics.compare(counts_of(first.images, size), counts_of(paired, size), shown)


def why_not_comparable(first: Measurement, second: Measurement) -> list[str]:
    """Why figures of two models cannot be compared: a finished sentence each, and what would help."""
    problems = [
        f"protocol: {key} is {json.dumps(new)}, but {json.dumps(old)} for {first.name}. Evaluate both the same way."
        for key, (old, new) in differences(first.protocol, second.protocol).items()
        if key != "models"  # an ensemble is another model, not another way to measure
    ]
    if list(first.classes) != list(second.classes) or sorted(first.ignored) != sorted(second.ignored):
        problems.append(f"has other classes than {first.name}. Compare models of the same classes.")
    keys = {image["key"] for image in first.images}
    others = {image["key"] for image in second.images}
    if keys != others:
        number = len(keys ^ others)
        problems.append(f"{number} images were measured for one of the two only. Evaluate both on the same split.")
    elif len(keys) < len(first.images) or not keys:
        problems.append("images are missing, or have the same names. Evaluate both anew with --output.")
    elif labelled(first) != labelled(second):
        problems.append(f"labels differ from those of {first.name}. Evaluate both on the same labels.")
    return problems


def labelled(measurement: Measurement) -> dict[str, int]:
    """Labelled pixels of each image."""
    return {image["key"]: sum(row[2] for row in image["classes"]) for image in measurement.images}


def comparison_table(first: Measurement, second: Measurement, found: Comparison) -> str:
    """A comparison as text, a row for each class and one for the mean."""
    size = len(first.classes)
    counts = [counts_of(each.images, size) for each in (first, second)]
    ious = [statistics.class_iou(each.sum(axis=0)).tolist() for each in counts]
    shown = np.array([index not in first.ignored for index in range(size)])
    old, new = (float(statistics.mean_iou(each.sum(axis=0), shown)) for each in counts)
    width = max(len("Mean_IoU"), *map(len, first.classes))
    lines = [f"A: {first.name}", f"B: {second.name}", ""]
    lines.append(
        f"{'class':<{width}}{'A':>9}{'B':>9}{'B - A':>10}   {'95 % interval':<19}{'images B better / worse':>24}"
    )
    for index, name in enumerate(first.classes):
        lines.append(row(name, width, ious[0][index], ious[1][index], found.classes[index], found.class_signs[index]))
    lines.append(row("Mean_IoU", width, old, new, found.mean, found.signs))
    lines += ["", verdict(found, len(first.images))]
    return "\n".join(lines)


def row(name: str, width: int, old: float, new: float, gain: Interval, signs: SignTest) -> str:
    """A line of the table."""

    def figure(value: float | None, form: str, room: int) -> str:
        return f"{'-' if value is None or value != value else format(value, form):>{room}}"

    bounds = "-" if gain.low is None else f"[{gain.low:+.4f}, {gain.high:+.4f}]"
    counts = f"{signs.better} / {signs.worse}, p = {signs.p:.3f}"
    return (
        f"{name:<{width}}{figure(old, '.4f', 9)}{figure(new, '.4f', 9)}{figure(gain.value, '+.4f', 10)}   "
        f"{bounds:<19}{counts:>24}"
    )


def verdict(found: Comparison, images: int) -> str:
    """What the interval of the mean says, in words."""
    gain = found.mean
    if gain.low is None or gain.high is None:
        return "The mean IoU of one of the two is undefined."
    basis = f"(paired bootstrap over {images} images; the spread between trainings with other seeds is not in it)"
    if gain.low > 0:
        return f"B is better on these images {basis}."
    if gain.high < 0:
        return f"A is better on these images {basis}."
    return f"No difference that is more than noise {basis}."


def comparison_json(first: Measurement, second: Measurement, found: Comparison) -> dict[str, Any]:
    """A comparison in plain values."""
    rows = zip(first.classes, found.classes, found.class_signs, strict=True)
    return {
        "A": first.name,
        "B": second.name,
        "protocol": dict(first.protocol),
        "Mean_IoU": {**found.mean.to_json(), **signs_json(found.signs)},
        "classes": [{"name": name, **gain.to_json(), **signs_json(signs)} for name, gain, signs in rows],
    }


def signs_json(signs: SignTest) -> dict[str, float]:
    """A sign test in plain values."""
    return {"images_better": signs.better, "images_worse": signs.worse, "p": signs.p}
