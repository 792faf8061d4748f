"""Signals that are to end a program in good order: the first is noted, a second one acts at once."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def noted(note: Callable[[int], None]) -> Iterator[None]:
    """Call `note` with the number of the first of these signals, instead of what it does otherwise."""

    def on_signal(number: int, frame: object) -> None:
        note(number)
        put_back()

    def put_back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before: dict[int, Any] = {}
    with suppress(ValueError):  # signals can only be heard in the main thread
        for each in ENDING:
            before[each] = signal.signal(each, on_signal)
    try:
        yield
    finally:
        put_back()
