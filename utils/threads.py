"""How threads that wait for each other do so: set before torch is imported, which reads it once."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

SPINS = "10000"  # about half a millisecond
SAMPLES = 3
BETWEEN = 0.002  # seconds
LOAD = Path("/proc/loadavg")
QUOTA = Path("/sys/fs/cgroup/cpu.max")  # what a container may use: microseconds of computing, and of the clock


def set_waiting(load: Path = LOAD, quota: Path = QUOTA) -> None:
    """Let OpenMP's threads sleep while they wait for each other, and spin for a moment first where cores are free.

    Waking a sleeping thread takes as long as many an operation of a small network: on two quiet cores, a step without
    spinning takes 1.5 times as long. But beside one busy process, what spins takes the core from what computes.
    OpenMP reads this once, when torch is imported; processes that we start inherit it. Results do not depend on it.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    if others_running(load) + number_of_threads() <= min(number_of_cores(), allowed_cores(quota)):
        os.environ["GOMP_SPINCOUNT"] = SPINS


def number_of_threads() -> int:
    """How many threads torch is going to use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else number_of_cores()


def number_of_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def allowed_cores(quota: Path = QUOTA) -> float:
    """How many cores' time the container may use; infinite where nothing limits it."""
    try:
        time_of_cores, time_of_clock = quota.read_text().split()
        return int(time_of_cores) / int(time_of_clock)
    except (OSError, ValueError):  # no container, or "max"
        return math.inf


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
