"""Trainings as processes of their own, one after another: they end with the one that started them."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils import run_folder, signals

POLL = 0.5  # seconds between two looks at a folder


def train_command(package: str | None, script: str) -> list[str]:
    """Give the words that start a training: of train.py beside a script, or of the installed package.

    Args:
        package: The script's ``__package__``.
        script: Its ``__file__``.
    """
    if package:
        return [sys.executable, "-m", package.partition(".")[0], "train"]
    return [sys.executable, str(Path(script).resolve().with_name("train.py"))]


def start(words: Sequence[str], log: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a command; what it prints goes to the file `log`, or where this process prints."""
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "preexec_fn": die_with_parent if LIBC else None}
    options["start_new_session"] = True  # out of reach of the terminal, whose Ctrl-C is forwarded, and so comes once
    if log is None:
        return subprocess.Popen(words, **options)
    with log.open("ab") as file:
        return subprocess.Popen(words, stdout=file, stderr=file, **options)


def run(words: Sequence[str]) -> int:
    """Run a command to its end, and forward to it the first signal that is to end this process.

    Returns:
        Its exit status; that of a process ended by signal n is 128 + n.
    """
    process = start(words)
    try:
        with signals.noted(process.send_signal):
            code = process.wait()
    except BaseException:  # a second Ctrl-C
        process.kill()
        process.wait()
        raise
    return code if code >= 0 else 128 - code


def ended_by(status: int) -> signal.Signals | None:
    """The signal that ended a process with this status; None if none did."""
    number = status - 128
    return signal.Signals(number) if number in list(signal.Signals) else None


def _libc() -> Any:
    with suppress(OSError, AttributeError):
        return ctypes.CDLL("libc.so.6") if sys.platform == "linux" else None
    return None


LIBC = _libc()
PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def die_with_parent() -> None:
    """Let the kernel end this process with the one that started it: a kill by -9 leaves no run behind."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until_free(folder: Path) -> None:
    """Wait while a run that outlived the one who started it still trains in `folder`."""
    while any(run_folder.is_locked(path) for path in run_folder.folders_of_runs(folder)):
        time.sleep(POLL)
