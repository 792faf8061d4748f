"""Heartbeats between the processes of a run: who is lost, who has failed, and when to stop."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from threading import Event, Thread
from typing import TYPE_CHECKING, NamedTuple

import torch.distributed as dist

from utils.errors import Interrupted, PeerFailed, Stopped, one_line, status_of

if TYPE_CHECKING:  # torch.distributed has it too, but does not say so to type checkers
    from torch._C._distributed_c10d import Store

INTERVAL = 1.0  # seconds between two heartbeats

LOST_AFTER = 30.0  # seconds without a heartbeat after which a process counts as lost

GRACE = 10.0  # seconds in which a process may end by itself once another has failed

LEFT = "gone"  # in place of a heartbeat, from a process that has left as it should

AHEAD = 2  # steps between rank 0's decision to stop and the stop, so that nobody has to wait for it


class Process(NamedTuple):
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1


class Heartbeat:
    """The other processes, as the key-value store shows them: heartbeats, failures, and rank 0's decision to stop.

    A thread writes a heartbeat every second and reads those of the others. When a process is lost or has failed, the
    thread ends this process too, even if its main thread waits for a device that waits for the lost process. Ending
    without notice is safe: what is on the disk is complete at any moment.

    Keys of the store: ``host/R``, ``beat/R`` (a count and the step, or `LEFT`), ``failed`` (rank and status of the
    first to fail), ``request`` (what another process than rank 0 asks for), ``decision`` (of rank 0: the step that it
    has reached, the one to stop after, and why; both 0 to go on).

    Args:
        process: This process.
        stores: Two connections to the store, one for each thread, empty of keys of other runs.
    """

    def __init__(self, process: Process, stores: tuple[Store, Store]) -> None:
        self.process = process
        self.failed = False
        self.step = 0  # that the main thread has reached
        self.requested = 0  # by another process, as the thread has read
        self._store, self._thread_store = stores
        self._stop: tuple[int, int] | None = None  # the step to stop after, and why, once that is decided
        self._closed = Event()
        self._last_seen: dict[int, tuple[str, float]] = {}  # heartbeat of each rank, and when it was new
        self._store.set(f"host/{process.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self._thread = Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()

    def agree_on_stop(self, step: int, request: int) -> int:
        """Return what all processes do after `step`, see `utils.distributed.agree_on_stop`."""
        self.step = step
        try:
            if self.process.rank == 0:
                self._decide(step, request or self.requested)
            else:
                if request:
                    self._store.set("request", str(request))
                self._stop = self._read_decision(step)
        except RuntimeError as error:
            if request:  # the store is gone because the launcher is, after a signal that all of us have got
                return request
            reason = short_message(error)
            raise Stopped(f"training: the store that all processes share is gone ({reason})") from error
        return self._stop[1] if self._stop and step >= self._stop[0] else 0

    def _decide(self, step: int, request: int) -> None:
        """Publish, on rank 0, whether to stop soon."""
        if request and self._stop is None:
            self._stop = (step + AHEAD, request)
        stop_after, why = self._stop or (0, 0)
        self._store.set("decision", f"{step} {stop_after} {why}")

    def _read_decision(self, step: int) -> tuple[int, int] | None:
        """Wait for a decision of rank 0 that is recent enough to be valid at `step`; None goes on."""
        while True:
            decided_at, stop_after, why = map(int, self._store.get("decision").split())
            if stop_after:
                return stop_after, why
            if decided_at >= step - AHEAD:
                return None
            time.sleep(0.001)

    def report(self, error: BaseException) -> BaseException:
        """Let the others know of `error`; returns what this process is to raise in its place."""
        if is_communication_error(error):
            error = Stopped(f"training: {self.explain(error)}. Go on with --resume")
        status = status_of(error)
        if isinstance(error, Interrupted):  # all have got the signal, and end together
            return PeerFailed(status) if self.process.rank else error
        self.failed = True
        if not self._is_first_to_fail(self._store, status):
            return PeerFailed(self._status_of_failed())
        if self.process.local_rank and status > 1:  # else `errors.run`, or Python, will show it
            print_error(f"rank {self.process.rank}: {error}")
        return error

    def explain(self, error: BaseException) -> str:
        """Explain why processes could not communicate: one is gone, or one is late."""
        with suppress(ValueError):  # the launcher will have noticed, and ask us to end
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = short_message(error)
        try:
            before = self._beats(self._store)
            for _ in range(5):
                if self._store.check(["failed"]):  # that process has said why, and our error is a consequence
                    return reason
                time.sleep(INTERVAL)
            now = self._beats(self._store)
            if lost := [rank for rank, beat in now.items() if beat == before[rank] != LEFT]:
                return f"{self._describe(lost)} gone ({reason})"
            steps = {rank: int(beat.split()[1]) for rank, beat in now.items() if beat not in ("", LEFT)}
            newest = max([self.step, *steps.values()])
            if late := [rank for rank, step in steps.items() if step < newest]:
                return f"{self._describe(late)} late, and the others have waited ({reason})"
        except RuntimeError:
            return f"the store that all processes share is gone ({reason})"
        return reason

    def leave(self) -> None:
        """Tell the others that no further heartbeats will come."""
        self._closed.set()
        self._thread.join(2 * INTERVAL)
        if self.failed:  # a device may hold the main thread back
            Thread(target=exit_after_grace, args=(4,), daemon=True).start()
            return
        with suppress(RuntimeError):
            self._store.set(f"beat/{self.process.rank}", LEFT)

    def _is_first_to_fail(self, store: Store, status: int) -> bool:
        """Claim the failure of the run for this process, which then says why; False if another was faster."""
        mine = f"{self.process.rank} {status}"
        try:
            claimed: str = store.compare_set("failed", "", mine).decode()
        except RuntimeError:  # no store, no others
            return True
        return claimed == mine

    def _status_of_failed(self) -> int:
        try:
            return int(self._store.get("failed").split()[1])
        except RuntimeError:
            return 4

    def _beats(self, store: Store) -> dict[int, str]:
        """Return the last heartbeat of each other process: a count and its step; empty before the first."""
        beats = {}
        for rank in range(self.process.size):
            if rank != self.process.rank:
                beats[rank] = read(store, f"beat/{rank}")
        return beats

    def _describe(self, ranks: Sequence[int]) -> str:
        """Return ranks and where they run, with a verb."""
        each = ", ".join(f"{rank} ({read(self._store, f'host/{rank}') or '?'})" for rank in ranks)
        return f"of {self.process.size} processes, rank {each} is"

    def _watch(self) -> None:
        """Write and read heartbeats until `leave`: what the thread does."""
        store, count = self._thread_store, 0
        try:
            while not self._closed.wait(INTERVAL if count else 0):
                count += 1
                store.set(f"beat/{self.process.rank}", f"{count} {self.step}")
                self.requested = int(read(store, "request") or 0)
                if lost := self._lost(store):
                    if self._is_first_to_fail(store, 4):
                        what = f"{self._describe(lost)} silent for {LOST_AFTER:.0f} s"
                        print_error(f"training: {what}. Go on with --resume")
                    exit_after_grace(4)
                if store.check(["failed"]):
                    exit_after_grace(int(store.get("failed").split()[1]))
        except RuntimeError:  # the store is gone, and with it rank 0 or the launcher
            if not self._closed.is_set():
                exit_after_grace(4)

    def _lost(self, store: Store) -> list[int]:
        """Return the ranks whose heartbeat has not changed for too long, by our own clock."""
        now = time.monotonic()
        lost = []
        for rank, beat in self._beats(store).items():
            if rank not in self._last_seen or self._last_seen[rank][0] != beat:
                self._last_seen[rank] = (beat, now)
            elif beat != LEFT and now - self._last_seen[rank][1] > LOST_AFTER:
                lost.append(rank)
        return lost


def read(store: Store, key: str) -> str:
    """Return what `store` has at `key`, or an empty text; `Store.get` would wait for it."""
    return store.get(key).decode() if store.check([key]) else ""


def is_communication_error(error: BaseException) -> bool:
    """Tell whether processes could not talk to each other, by the type of `error` or torch's and gloo's words."""
    if not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "Connection ", "NCCL"))


def short_message(error: BaseException) -> str:
    """Return the first sentence of an error, without the places in torch's code that it comes from."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\[/[^]]*\] *", "", line).partition(". ")[0].rstrip(". ") or type(error).__name__


def print_error(problem: str) -> None:
    """Print an error as `errors.run` does."""
    print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)


def exit_after_grace(status: int) -> None:
    """End this process unless it does so by itself in time."""
    time.sleep(GRACE)
    os._exit(status)
