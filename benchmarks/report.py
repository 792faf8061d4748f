"""Time and size of a report of 200 epochs and 100 validation images: ``python -m benchmarks.report``.

Measured is what comes besides the prediction itself, in CPU time. Results stand in BENCHMARKS.md.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from engine.reporting.collect import Collector
from engine.reporting.page import page
from tests.test_report import large_content


def main() -> None:
    torch.set_num_threads(1)
    listening = 0.0
    listen = Collector.listen

    def timed(self: Collector, batch: object) -> None:
        nonlocal listening
        before = time.process_time()
        listen(self, batch)  # type: ignore[arg-type]
        listening += time.process_time() - before

    Collector.listen = timed  # type: ignore[method-assign, assignment]
    with tempfile.TemporaryDirectory() as folder:
        content = large_content(Path(folder))
    seconds = []
    for _ in range(2):
        before = time.process_time()
        text = page(content)
        seconds.append(time.process_time() - before)
    print(f"figures of 100 images {listening:.2f} s, page {seconds[0]:.2f} s")
    print(f"page {seconds[1]:.2f} s where matplotlib is loaded; {len(text.encode()) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
