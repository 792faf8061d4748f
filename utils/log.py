"""The log of a run: short on the console, with time stamps and every step in train.log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm


class ConsoleHandler(logging.Handler):
    """Prints above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        tqdm.write(mark + self.format(record), file=sys.stdout)
        sys.stdout.flush()


def log_to(path: Path | None = None) -> logging.Logger:
    """Send the project's log to the console and, from now on, to the file at `path`."""
    logger = logging.getLogger("segwright")
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    console = ConsoleHandler(logging.INFO)
    logger.addHandler(console)
    if path is not None:
        file = logging.FileHandler(path, encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logger.addHandler(file)
    return logger
