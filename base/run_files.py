"""The checkpoints of a run and its metrics.jsonl: under which names, in which order, and beside the training."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils import checkpoint

WRITER = "checkpoints"  # name of the thread


class RunFiles:
    """Write a run's state, at once or, within `beside`, in a thread while the run goes on.

    Whoever is killed at any moment leaves whole files: new ones, or those before them. The last name of a save commits
    it.

    Args:
        folder: Of the run; exists.
        keep_last: How many periodic checkpoints are kept, the newest.
    """

    def __init__(self, folder: Path, keep_last: int) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self._is_beside = False
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Write in a thread within this context, and leave it when all is written.

        Raises:
            Stopped: Something could not be written.
        """
        self._is_beside = True
        try:
            yield
        finally:
            self._is_beside = False
            self.wait()

    def save(self, state: Mapping[str, Any], names: Sequence[str], *, commit: bool = False) -> None:
        """Write `state` once, under all `names`; `last.pth` keeps its predecessor as `last.prev.pth`.

        Within `beside`, this waits for the save before, copies the state and returns.

        Args:
            state: Tensors and plain values.
            names: Of files in the folder.
            commit: Whether the history has grown: metrics.jsonl is written anew, and checkpoints that are too many are
                deleted.

        Raises:
            Stopped: The disk is full or cannot be written.
        """
        if not self._is_beside:
            self._write(state, names, commit)
            return
        self.wait()  # before copying, so that there is one copy at most
        copy = checkpoint.copied(state)
        arguments = (copy, names, commit)
        self._thread = threading.Thread(target=self._try_to_write, args=arguments, name=WRITER)
        self._thread.start()

    def check(self) -> None:
        """Go on at once, unless something could not be written.

        Raises:
            Stopped: Why.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def join(self) -> None:
        """Wait until nothing is being written; what went wrong stays for `wait`."""
        if self._thread is not None:
            self._thread.join()

    def wait(self) -> None:
        """Wait until nothing is being written.

        Raises:
            Stopped: Something could not be.
        """
        self.join()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write metrics.jsonl anew, so that a kill cannot leave half a line.

        Raises:
            Stopped: It cannot be written.
        """
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in history]
        checkpoint.write_text(self.folder / "metrics.jsonl", "".join(lines))

    def _try_to_write(self, state: Mapping[str, Any], names: Sequence[str], commit: bool) -> None:
        try:
            self._write(state, names, commit)
        except BaseException as error:  # for who waits
            self._error = error

    def _write(self, state: Mapping[str, Any], names: Sequence[str], commit: bool) -> None:
        first = self.folder / names[0]
        previous = self.folder / "last.prev.pth"
        checkpoint.save(first, state, previous=previous if names[0] == "last.pth" else None)
        for name in names[1:]:
            if name == "last.pth" and (self.folder / name).exists():
                checkpoint.keep(self.folder / name, previous)
            checkpoint.keep(first, self.folder / name)
        checkpoint.sync_folder(self.folder)
        if commit:
            self._prune()
            self.write_history(state["history"])

    def _prune(self) -> None:
        """Delete all but the newest periodic checkpoints."""
        found = [path for path in self.folder.glob("checkpoint-epoch*.pth") if epoch_of(path) >= 0]
        for path in sorted(found, key=epoch_of)[: -self.keep_last]:
            path.unlink(missing_ok=True)


def epoch_of(path: Path) -> int:
    """N of `checkpoint-epochN.pth`; -1 for other names."""
    number = path.stem.removeprefix("checkpoint-epoch")
    return int(number) if number.isdecimal() else -1
