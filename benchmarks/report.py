"""Time and size of a report of 200 epochs and 100 validation images: ``python -m benchmarks.report [--json]``.

Measured is what comes besides the prediction itself, in processor time, so that other programs matter less; medians of
--rounds (3). With --json they are written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.results import Figure, summary, write
from engine.reporting.collect import Collector
from engine.reporting.page import page
from tests.test_report import large_content


def measure(rounds: int, make: Callable[[Path], Any] = large_content) -> list[Figure]:
    """Make the report `rounds` times.

    Args:
        rounds: How often; the first page, for which matplotlib is loaded, is not counted.
        make: Makes the content of a report with a `Collector`, in a folder.
    """
    collecting, writing, sizes = [], [], []
    spent = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal spent
            before = time.process_time()
            result = method(*args)
            spent += time.process_time() - before
            return result

        return run

    methods = {name: timed(getattr(Collector, name)) for name in ("listen", "to_json", "pictures")}
    for number in range(rounds):
        spent = 0.0
        with tempfile.TemporaryDirectory() as folder, patch.multiple(Collector, **methods):
            content = make(Path(folder))
        collecting.append(spent)
        if number == 0:
            page(content)
        before = time.process_time()
        text = page(content)
        writing.append(time.process_time() - before)
        sizes.append(len(text.encode()) / 1e6)
    return [
        Figure("figures and pictures of the images, besides their prediction", "s", collecting),
        Figure("page, where matplotlib is loaded", "s", writing),
        Figure("size of the page", "MB", sizes),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    args = parser.parse_args(arguments)
    figures = measure(args.rounds)
    for figure in figures:
        print(summary(figure))
    if args.json:
        write("report", "200 epochs, 100 validation images of 480x360, 11 classes; processor time", figures)


if __name__ == "__main__":
    main()
