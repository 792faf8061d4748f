"""What people see while an epoch goes on: a progress bar, and how long its steps waited for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

from utils import distributed

T = TypeVar("T")


class StepProgress:
    """Count steps in a progress bar, and measure how long they waited for their batches.

    Args:
        title: What stands before the bar.
        steps: How many there will be.
    """

    def __init__(self, title: str, steps: int) -> None:
        self.bar = tqdm(total=steps, desc=title, leave=False, disable=silent())
        self.started = time.monotonic()
        self.waited = 0.0  # seconds
        self.steps = 0  # that are over

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def over(self, batches: Iterable[T]) -> Iterator[T]:
        """Give each of `batches`, and count a step when the next one is asked for."""
        source = iter(batches)
        while True:
            asked = time.monotonic()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.waited += time.monotonic() - asked
            yield batch
            self.steps += 1
            self.bar.update()

    @property
    def waiting(self) -> float:
        """Share of the time that was spent on waiting for batches, 0 to 1."""
        return self.waited / max(time.monotonic() - self.started, 1e-9)

    @property
    def is_visible(self) -> bool:
        """Whether anybody sees the bar."""
        return not self.bar.disable

    def steps_per_second(self, done: int) -> float:
        """Give the pace since the start, when `done` steps are over."""
        return done / max(time.monotonic() - self.started, 1e-9)

    def time_for(self, steps: int, done: int) -> str:
        """Say how long `steps` more take at the pace of those `done` so far, such as ``1:02:03``."""
        return str(tqdm.format_interval(steps / self.steps_per_second(done)))

    def show(self, **figures: str) -> None:
        """Show `figures` behind the bar."""
        self.bar.set_postfix(figures)


def progress_bar(batches: Iterable[T], *, total: int, title: str) -> Iterable[T]:
    """Give each of `batches` and show how many of `total` there have been."""
    shown: Iterable[T] = tqdm(batches, total=total, desc=title, leave=False, disable=silent())
    return shown


def silent() -> bool | None:
    """Whether to show no progress bar, as `tqdm` takes it: None leaves it to the terminal."""
    return None if distributed.is_first() else True
