"""How threads that wait for each other do so: set before torch is imported, which reads it once."""

from __future__ import annotations

import os
import time
from pathlib import Path

SPINS = "10000"  # about half a millisecond
SAMPLES = 3
BETWEEN = 0.002  # seconds


LOAD = Path("/proc/loadavg")


def set_waiting(load: Path = LOAD) -> None:
    """Let OpenMP's threads sleep while they wait for each other, and spin for a moment first where cores are free.

    Waking a sleeping thread takes as long as many an operation of a small network: on two quiet cores, a step without
    spinning takes 1.5 times as long. But beside one busy process, what spins takes the core from what computes.
    OpenMP reads this once, when torch is imported; processes that we start inherit it. Results do not depend on it.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if others_running(load) + number_of_threads() <= (os.cpu_count() or 1):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def number_of_threads() -> int:
    """How many threads torch is going to use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else os.cpu_count() or 1


def others_running(load: Path = LOAD) -> int:
    """How many threads of other processes compute just now, the least of some samples; 1 where nobody can say."""
    least = None
    for sample in range(SAMPLES):
        if sample:
            time.sleep(BETWEEN)
        try:
            running = int(load.read_text().split()[3].partition("/")[0]) - 1  # without ourselves
        except (OSError, ValueError, IndexError):
            return 1
        least = running if least is None else min(least, running)
    return max(least or 0, 0)
