"""What can go wrong in a command, and the exit status each kind ends with.

`0` done, `2` the user's input was wrong, `3` done with findings, `4` stopped by the environment or by NaN,
`128 + n` after signal n, `1` a bug of ours (the only one that shows a traceback).
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from utils.version import VERSION


class UserError(Exception):
    """Input that cannot be used; ends a command with status 2.

    Args:
        problems: One ``PLACE: WHAT. WHAT INSTEAD.`` each; all that were found, not only the first.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ConfigError(UserError, ValueError):
    """A config that cannot be used."""


class Fault(str, Enum):
    """What is wrong with data, for code that acts on it; its value is the name that people read."""

    OTHER = "other"
    MISSING_PACKAGE = "missing package"  # of ours, not of the file
    # Of a file
    EMPTY_FILE = "empty file"
    DAMAGED_FILE = "damaged file"
    WEB_PAGE = "web page"
    LFS_POINTER = "Git LFS pointer"
    NO_IMAGE = "no image"
    HUGE_IMAGE = "huge image"
    FRACTIONS = "fractions"
    COLORS = "colors"
    LOSSY_LABEL = "lossy labels"
    WIDE_LABEL = "wide labels"
    TURNED_IMAGE = "turned image"
    DIFFERENT_SIZES = "different sizes"
    ALTERED_ARCHIVE = "altered archive"
    UNKNOWN_COLOR = "unknown color"
    # Of a split
    IMAGE_ALONE = "image alone"
    LABEL_ALONE = "label alone"
    MISSING_FILES = "missing files"
    LISTED_TWICE = "listed twice"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with data; as text, the line that people read.

    Args:
        fault: What kind of thing.
        path: The file or the key that the line begins with; empty where `what` is all there is to say.
        what: What is wrong, in a sentence without its full stop.
        fix: What to do about it, likewise.
    """

    fault: Fault
    path: Path | str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}. {self.fix}." if self.path else self.what


class DataError(UserError, ValueError):
    """Images or labels that cannot be used.

    Args:
        problems: What was found; finished lines where nobody needs to know the kind of fault.
    """

    def __init__(self, *problems: str | Problem) -> None:
        super().__init__(*map(str, problems))
        self.details = tuple(p if isinstance(p, Problem) else Problem(Fault.OTHER, "", p, "") for p in problems)


class MissingData(DataError):
    """A folder or list that a dataset has if the split that was asked for is there."""


class CheckpointError(UserError, ValueError):
    """A checkpoint that cannot be used."""


class Stopped(Exception):
    """The environment (disk, memory, a dead worker) or a NaN ended the work; status 4.

    Its message is one line that names the cause, the knob to turn and the last good checkpoint.
    """


class Interrupted(Exception):
    """A signal asked us to stop, and all that is needed to go on has been saved; status 128 + `signum`."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum


class PeerFailed(Exception):
    """Another of several processes has failed and said why; this one ends with the same status, in silence."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)

# What torch says of a GPU's memory and of the machine's, of cuBLAS's, and of cuDNN's.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "ALLOC_FAILED", "unable to find an engine")


def failure_of_machine(error: BaseException) -> str:
    """What the machine failed to do, if that is what `error` says; an empty text for all other errors.

    That is memory that ran out, or a dead data worker, of which torch tells by interrupting whatever the main process
    is doing. Known by their words, since torch raises either as a plain RuntimeError, too.
    """
    first = str(error).strip().partition("\n")[0].rstrip(". ") or type(error).__name__
    if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
        return f"memory ran out ({first})"
    return f"a data worker died ({first})" if "DataLoader worker" in str(error) else ""


def first_line(error: BaseException) -> str:
    """Take the first line of an error's message, without its full stop, or else the name of its type."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def status_of(error: BaseException) -> int:
    """The exit status that `run` makes of `error`."""
    if isinstance(error, PeerFailed):
        return error.status
    if isinstance(error, Interrupted):
        return 128 + error.signum
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, UserError):
        return 2
    if isinstance(error, OSError) and error.filename is not None:
        return 4 if error.errno in NO_ROOM else 2
    return 4 if isinstance(error, Stopped) or failure_of_machine(error) else 1


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse` parser whose complaints look like all our other errors, and that knows its version."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.add_argument("-V", "--version", action="version", version=f"segwright {VERSION}")

    def error(self, message: str) -> NoReturn:
        raise UserError(f"command line: {message}. `{self.prog} --help` lists what there is.")


def run(main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call `main(argv)` and turn what it raises into lines on standard error and an exit status.

    Of several processes on a machine, the first one speaks; what went wrong in another alone, that one has said.
    """

    def say(text: str) -> None:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(one_line(text), file=sys.stderr)

    def show() -> None:
        if "--debug" in (sys.argv[1:] if argv is None else argv):
            traceback.print_exc()

    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may have letters that a terminal lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return main(argv) or 0
    except UserError as error:
        show()
        for problem in error.problems:
            say(f"error: {problem}")
        return 2
    except Stopped as error:
        show()
        say(f"error: {error}")
        return 4
    except Interrupted as error:
        say(str(error))
        return 128 + error.signum
    except PeerFailed as error:
        return error.status
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output (`| head`) is gone. Python would complain once more while closing it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (MemoryError, RuntimeError, OSError) as error:
        if not (reason := _reason(error)):
            raise
        show()
        say(f"error: {reason}")
        return status_of(error)


def _reason(error: Exception) -> str:
    """Say of memory that ran out, a dead worker or a path that cannot be used what to do; nothing of other errors."""
    if isinstance(error, OSError) and error.filename is not None:
        fix = "Free some space" if status_of(error) == 4 else "Check the path and its permissions"
        return f"{error.filename}: {error.strerror}. {fix}."
    failure = failure_of_machine(error)
    return f"{failure}. Give smaller images or batches, or fewer workers" if failure else ""


def one_line(text: str) -> str:
    """`text` with control characters escaped, so that a file name cannot forge a line of output."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
