"""The log of a run: short on the console, with time stamps and every step in train.log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

from utils.errors import one_line


class PathFilter(logging.Filter):
    """Escape what is not printable in paths, so that a file name cannot forge a line of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(one_line(str(arg)) if isinstance(arg, Path) else arg for arg in record.args)
        return True


class ConsoleHandler(logging.Handler):
    """Print above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(mark + self.format(record), file=sys.stdout)
        sys.stdout.flush()


def log_to(path: Path | None = None, rank: int = 0) -> logging.Logger:
    """Send the project's log to the console and, from now on, to the file at `path`.

    Of several processes that train together, only `rank` 0 writes to the console.
    """
    logger = logging.getLogger("segwright")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    if not logger.filters:
        logger.addFilter(PathFilter())
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    console = ConsoleHandler(logging.CRITICAL if rank else logging.INFO)
    logger.addHandler(console)
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    return logger
