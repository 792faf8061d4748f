"""Signs of life between the processes of a run: who is lost, who failed, and when to stop."""

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
from typing import NamedTuple

import torch.distributed as dist

from utils.errors import Interrupted, PeerFailed, Stopped, one_line, status_of

BEAT = 1.0  # seconds between two signs of life

SILENCE = 30.0  # seconds without any, after which a process counts as lost

GRACE = 10.0  # seconds in which a process may end by itself once another has failed

GONE = "gone"  # in place of a sign of life, from one who has left as he should

AHEAD = 2  # steps between rank 0's decision to stop and the stop, so that nobody has to wait for it


class Process(NamedTuple):
    """One process among those that train together."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # among those on this machine
    local_size: int = 1


class Heartbeat:
    """The other processes, as the store shows them: signs of life, failures, and rank 0's last word.

    A thread gives a sign of life every second and looks for those of the others. When one is lost or has failed, it
    sees to it that this process ends too, even if its main thread waits for a device that waits for the lost one.
    Ending without notice is safe: what is on the disk is complete at any moment.

    Args:
        place: This process's place.
        stores: Two connections to the store, one for each thread, empty of keys of other runs.
    """

    def __init__(self, place: Process, stores: tuple[dist.Store, dist.Store]) -> None:
        self.place, self.failed = place, False
        self._store, self._watched = stores
        self.at = 0  # step that the main thread has reached
        self.asked = 0  # what another process wishes, as the thread has read
        self._stop: tuple[int, int] | None = None  # after which step to do what, once that is decided
        self._over = Event()
        self._seen: dict[int, tuple[str, float]] = {}
        self._store.set(f"host/{place.rank}", f"process {os.getpid()} on {socket.gethostname()}")
        self._thread = Thread(target=self._watch, name="peers", daemon=True)
        self._thread.start()

    def agree_on_stop(self, step: int, wish: int) -> int:
        """See the function of this name."""
        self.at = step
        try:
            if self.place.rank == 0:
                wish = wish or self.asked
                if wish and self._stop is None:
                    self._stop = (step + AHEAD, wish)
                self._store.set("word", " ".join(map(str, (step, *(self._stop or (0, 0))))))
            else:
                if wish:
                    self._store.set("wish", str(wish))
                self._stop = self._last_word(step)
        except RuntimeError as error:
            if wish:  # it is gone because whoever started us is, which we have heard of all
                return wish
            raise Stopped(f"training: the store that all processes share is gone ({first_line(error)})") from error
        return self._stop[1] if self._stop and step >= self._stop[0] else 0

    def _last_word(self, step: int) -> tuple[int, int] | None:
        """What rank 0 has decided, as of a step that is late enough to decide about `step`."""
        while True:
            said, stop, wish = map(int, self._store.get("word").split())
            if stop:
                return stop, wish
            if said >= step - AHEAD:
                return None
            time.sleep(0.001)

    def tell(self, error: BaseException) -> BaseException:
        """Let the others know of `error`; returns what this process is to raise in its place."""
        if is_communication_error(error):
            error = Stopped(f"training: {self.explain(error)}. Go on with --resume")
        status = status_of(error)
        if isinstance(error, Interrupted):  # all have heard of it, and end together
            return PeerFailed(status) if self.place.rank else error
        self.failed = True
        if not self._is_first_to_fail(self._store, status):
            return PeerFailed(self._status_of_failed())
        if self.place.local_rank and status > 1:  # else `errors.run`, or Python, will show it
            say(f"rank {self.place.rank}: {error}")
        return error

    def explain(self, error: BaseException) -> str:
        """Why we could not talk to each other: a process that is gone, or one that is late; in words."""
        with suppress(ValueError):  # whoever started us will have noticed, and ask us to end
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        reason = first_line(error)
        try:
            before = self._beats(self._store)
            for _ in range(5):
                if self._store.check(["failed"]):  # it has said why, and we are a consequence
                    return reason
                time.sleep(BEAT)
            now = self._beats(self._store)
            if lost := [other for other, beat in now.items() if beat == before[other] != GONE]:
                return f"{self._name(lost)} gone ({reason})"
            steps = {other: int(beat.split()[1]) for other, beat in now.items() if beat not in ("", GONE)}
            if late := [other for other, step in steps.items() if step < max(self.at, *steps.values())]:
                return f"{self._name(late)} late, and the others have waited ({reason})"
        except RuntimeError:
            return f"the store that all processes share is gone ({reason})"
        return reason

    def leave(self) -> None:
        """Say goodbye, so that nobody waits for further signs of life."""
        self._over.set()
        self._thread.join(2 * BEAT)
        if self.failed:  # a device may hold the main thread back
            Thread(target=end_soon, args=(4,), daemon=True).start()
            return
        with suppress(RuntimeError):
            self._store.set(f"beat/{self.place.rank}", GONE)

    def _is_first_to_fail(self, store: dist.Store, status: int) -> bool:
        """Whether no other process has failed before, so that it is this one that says why."""
        mine = f"{self.place.rank} {status}"
        try:
            return store.compare_set("failed", "", mine).decode() == mine
        except RuntimeError:  # no store, no others
            return True

    def _status_of_failed(self) -> int:
        try:
            return int(self._store.get("failed").split()[1])
        except RuntimeError:
            return 4

    def _beats(self, store: dist.Store) -> dict[int, str]:
        """Last sign of life of each other process: a count and its step; empty before the first."""
        keys = {other: f"beat/{other}" for other in range(self.place.size) if other != self.place.rank}
        return {other: store.get(key).decode() if store.check([key]) else "" for other, key in keys.items()}

    def _name(self, ranks: Sequence[int]) -> str:
        """Ranks and where they run, with a verb."""
        keys = {other: f"host/{other}" for other in ranks}
        hosts = {other: self._store.get(k).decode() if self._store.check([k]) else "?" for other, k in keys.items()}
        each = ", ".join(f"{other} ({host})" for other, host in hosts.items())
        return f"of {self.place.size} processes, rank {each} is"

    def _watch(self) -> None:
        """What the thread does."""
        store, count = self._watched, 0
        try:
            while not self._over.wait(BEAT if count else 0):
                count += 1
                store.set(f"beat/{self.place.rank}", f"{count} {self.at}")
                self.asked = int(store.get("wish")) if store.check(["wish"]) else 0
                if silent := self._silent(store):
                    if self._is_first_to_fail(store, 4):
                        say(f"training: {self._name(silent)} silent for {SILENCE:.0f} s. Go on with --resume")
                    end_soon(4)
                if store.check(["failed"]):
                    end_soon(int(store.get("failed").split()[1]))
        except RuntimeError:  # the store is gone, and with it rank 0 or whoever started us
            if not self._over.is_set():
                end_soon(4)

    def _silent(self, store: dist.Store) -> list[int]:
        """Ranks that have given no sign of life for too long, by our own clock."""
        now, silent = time.monotonic(), []
        for other, beat in self._beats(store).items():
            if other not in self._seen or self._seen[other][0] != beat:
                self._seen[other] = (beat, now)
            elif beat != GONE and now - self._seen[other][1] > SILENCE:
                silent.append(other)
        return silent


def is_communication_error(error: BaseException) -> bool:
    """Whether `error` says that processes could not talk to each other; known by torch's and gloo's words."""
    words = ("gloo", "Connection ", "NCCL")
    return isinstance(error, RuntimeError) and (
        isinstance(error, dist.DistError) or any(word in str(error) for word in words)
    )


def first_line(error: BaseException) -> str:
    """What an error says, without the lines that follow and the places in torch's code that it comes from."""
    line = str(error).strip().partition("\n")[0]
    return re.sub(r"\[/[^]]*\] *", "", line).partition(". ")[0].rstrip(". ") or type(error).__name__


def say(problem: str) -> None:
    """Print an error as `errors.run` does."""
    print(f"error: {one_line(problem)}", file=sys.stderr, flush=True)


def end_soon(status: int) -> None:
    """End this process unless it does so by itself."""
    time.sleep(GRACE)
    os._exit(status)
