"""Where results are shown while a run goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import ConfigError
from utils.registry import WRITERS
from utils.schema import Component

logger = logging.getLogger("segwright")


@WRITERS.register("tensorboard")
class TensorBoardWriter:
    """TensorBoard event files; the package is imported only when one is made.

    Args:
        log_dir: Folder of this run's events.
        purge_step: Step from which on earlier events are void: where a resumed run goes on.
    """

    def __init__(self, log_dir: Path, purge_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(log_dir), purge_step=purge_step)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, at an optimiser step."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """A picture (H, W, 3) uint8 at an optimiser step."""
        self._writer.add_image(tag, image, step, dataformats="HWC")

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


def open_writer(writer: Component, where: str, log_dir: Path, purge_step: int | None = None) -> list[Any]:
    """A writer, or none and a warning where the package that it needs is missing.

    Args:
        writer: Its name in the registry, and arguments.
        where: Its place in the config.
        log_dir: Folder of this run.
        purge_step: Step from which on what it showed before is void.

    Raises:
        ConfigError: The folder cannot be written.
    """
    try:
        return [WRITERS.build(writer, where=where, log_dir=log_dir, purge_step=purge_step)]
    except ImportError as error:
        place = "trainer.tensorboard" if writer.type == "tensorboard" else where
        logger.warning("%s: not written, %s. `pip install %s` fixes it.", place, error, writer.type)
        return []
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"trainer.log_dir: {log_dir} cannot be written ({reason}). Name another folder.") from None
