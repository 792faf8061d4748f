"""What a part of benchmarks/gpu/ has found, in its file after each case; and how to time what a GPU computes.

`Record` takes figures down, and failures with their line, so that one case that fails costs no other, and nothing is
lost when a part is ended.
"""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import results
from benchmarks.results import Figure, late

LINE = 300  # characters of a failure's line


class Record:
    """The figures and failures of a part.

    Args:
        part: Its name.
        title: The head of its table.
        device: What is computed on.
    """

    def __init__(self, part: str, title: str, device: str) -> None:
        self.part = part
        self.title = title
        self.device = device
        self.figures: list[Figure] = []
        self.failed: dict[str, str] = {}

    def attempt(self, what: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
        """Take down what `measure` returns, or that it failed; returns the figures."""
        if late():
            self.fail(what, "left out, since the part's time was over")
            return []
        found: list[Figure] = []
        try:
            found = results.show(measure())
            self.figures += found
        except Exception as error:
            traceback.print_exc(file=sys.stdout)  # the file has room for one line of it
            self.fail(what, line_of(error))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.write()
        return found

    def fail(self, what: str, line: str) -> None:
        """Take down that something failed."""
        self.failed[what] = line[:LINE]
        print(f"{what}: FAILED: {line}", flush=True)
        self.write()

    def write(self) -> None:
        """Write the part's file."""
        results.write(f"gpu_{self.part}", self.title, self.figures, device=self.device, failed=self.failed)


def line_of(error: Exception) -> str:
    """Return an error's type and the first line of what it says."""
    said = str(error).strip() or "no reason given"
    return f"{type(error).__name__}: {said.splitlines()[0]}"


def is_cuda(device: str) -> bool:
    """Whether `device` is a GPU."""
    return torch.device(device).type == "cuda"


def synchronize(device: str) -> None:
    """Wait for what a GPU still computes."""
    if is_cuda(device):
        torch.cuda.synchronize(device)


def seconds_of(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Return the seconds by the clock of a call, on an idle device to an idle device; the mean of `repeats`."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats
