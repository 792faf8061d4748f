"""Time and size of a report of 200 epochs and 100 validation images: ``python -m benchmarks.report``.

Measured is what comes besides the prediction itself, on a machine that does nothing else. Results stand in
BENCHMARKS.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.reporting.collect import Collector
from engine.reporting.page import page
from tests.test_report import large_content


def main() -> None:
    spent = 0.0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal spent
            before = time.perf_counter()
            result = method(*args)
            spent += time.perf_counter() - before
            return result

        return run

    for name in ("listen", "to_json", "pictures"):
        setattr(Collector, name, timed(getattr(Collector, name)))
    with tempfile.TemporaryDirectory() as folder:
        content = large_content(Path(folder))
    seconds = []
    for _ in range(2):
        before = time.perf_counter()
        text = page(content)
        seconds.append(time.perf_counter() - before)
    print(f"figures and pictures of 100 images {spent:.2f} s, page {seconds[0]:.2f} s")
    print(f"page {seconds[1]:.2f} s where matplotlib is loaded; {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
