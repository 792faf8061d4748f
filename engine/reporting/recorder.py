"""Writes down what happens during a run, with times, and refreshes its report after validations.

The file `steps.jsonl` of a run's folder has a line for every log step, every start and every stop by a signal. It is
for the report alone: unlike metrics.jsonl it holds times, so it is not the same when a run is repeated.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.devices import peak_memory

logger = logging.getLogger("segwright")

STEPS = "steps.jsonl"
REFRESH_SECONDS = 120.0  # between two reports during training
SHARE = 0.01  # of the run's time that reports may take


class RunRecorder:
    """A writer, as TensorBoard's is, that keeps the course of a run for its report.

    Args:
        run_dir: Folder of the run; exists.
        refresh: Writes the report of the run as it stands.
        resumed_at: Step at which the run goes on; lines of later steps are dropped. None for a new run.
    """

    takes_images = False

    def __init__(self, run_dir: Path, refresh: Callable[[], object], resumed_at: int | None = None) -> None:
        self.path, self.refresh = run_dir / STEPS, refresh
        self.started = self.refreshed = time.monotonic()
        self.cost = 0.0  # seconds that reports took
        lines = [] if resumed_at is None else [line for line in read_steps(run_dir) if line["step"] <= resumed_at]
        lines.append({"step": resumed_at or 0, "event": "start" if resumed_at is None else "resume", "time": now()})
        with suppress(OSError):
            self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write a line; after a validation, refresh the report if it is time."""
        validated = any(key.startswith("val/") for key in values)
        shown = {"event": "validation"} if validated else {key: float(value) for key, value in values.items()}
        line = {"step": step, "seconds": round(time.monotonic() - self.started, 3), **peak_memory(), **shown}
        # A full disk has been, or will be, noticed by a checkpoint.
        with suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if validated and self.is_due():
            self.write_report()

    def is_due(self) -> bool:
        """Whether a report is old enough, and would take little of the run's time, to be written anew."""
        time_now = time.monotonic()
        affordable = self.cost <= SHARE * (time_now - self.started)
        return affordable and time_now - self.refreshed >= REFRESH_SECONDS

    def write_report(self) -> None:
        """Write the report; training goes on without it where that fails."""
        before = time.monotonic()
        try:
            self.refresh()
        except Exception as error:  # a picture is no reason to lose a run
            logger.warning("report.html: not written (%s).", error)
        self.refreshed = time.monotonic()
        self.cost += self.refreshed - before

    def image(self, tag: str, image: Any, step: int) -> None:
        """Pictures are chosen at the end of the run."""

    def close(self) -> None:
        """Nothing is pending."""


def note_stop(run_dir: Path, step: int, reason: str) -> None:
    """Write down that a run was stopped after `step`, and by what: the name of a signal, or `trainer.max_time`."""
    line = {"step": step, "event": "stop", "reason": reason, "time": now()}
    with suppress(OSError), (run_dir / STEPS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def now() -> str:
    """The time of day, in ISO 8601 to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def read_steps(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of a run's `steps.jsonl`, without one that a kill cut off; none where there is no such file."""
    try:
        text = (run_dir / STEPS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict) and isinstance(value.get("step"), int):
                found.append(value)
    return found


def total_seconds(steps: list[dict[str, Any]]) -> float:
    """Time that the run took, over all its starts."""
    total, last = 0.0, 0.0
    for line in steps:
        if line.get("event") in ("start", "resume"):
            total, last = total + last, 0.0
        last = line.get("seconds", last)
    return total + last
