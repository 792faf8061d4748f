"""The part "tests" of benchmarks/gpu/: tests/test_gpu.py, in this process.

Each test is taken down as soon as it is over, so that one that hangs hides none before it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu.record import Record
from benchmarks.results import Figure

if TYPE_CHECKING:
    import pytest

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "tests" / "test_gpu.py"


class Listener:
    """A plugin of pytest that takes tests down as they end.

    Args:
        record: Of the part.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.outcome == "passed":
            return  # of what comes before and after a test, only what went wrong counts
        self.counts[report.outcome] += 1
        self.record.figures = [Figure(SUITE.name, "tests", [count], word) for word, count in self.counts.items()]
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(crash.message if crash else report.longrepr).strip().splitlines()
            self.record.fail(report.nodeid.partition("::")[2], lines[0] if lines else "no reason given")
        self.record.write()


def run_tests(record: Record, flags: argparse.Namespace, suite: Path = SUITE) -> None:
    """Run the suite; each test that fails is a failure of its own."""
    import pytest  # without it, only this part fails

    listener = Listener(record)
    # With its own settings, whatever else it is called with; the cache would be a file in the repository.
    words = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "--tb=short", "-o", "addopts=", str(suite)]
    status = pytest.main(words, plugins=[listener])
    if status and not record.failed:
        record.fail(suite.name, f"pytest ended with {int(status)}")
