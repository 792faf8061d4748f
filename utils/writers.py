"""Where results are shown while a run goes on: TensorBoard here, services that track experiments in `trackers`."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import torch
from torch import nn

from utils.config import dump_json
from utils.errors import ConfigError, first_line
from utils.registry import WRITERS
from utils.schema import Component

logger = logging.getLogger("segwright")

PAUSE = 300.0  # seconds for which a writer that failed is left alone: waiting for a network costs time at every call
TRACKERS = ("wandb", "mlflow", "trackio")  # of the extra `track`
FINAL = ("best/Mean_IoU", "best/Pixel_Accuracy", "best/loss", "val/Mean_IoU")  # beside the hyperparameters
LAYOUT = {  # of TensorBoard's page of custom scalars: tags, as regular expressions
    "Training": {
        "loss": ["Multiline", ["train/loss", "val/loss"]],
        "mean IoU": ["Multiline", ["train/Mean_IoU", "val/Mean_IoU"]],
        "pixel accuracy": ["Multiline", ["train/Pixel_Accuracy", "val/Pixel_Accuracy"]],
        "learning rate": ["Multiline", ["train/Learning_rate/.*"]],
        "gradient norm": ["Multiline", ["train/gradient_norm"]],
    },
    "Classes": {"IoU": ["Multiline", ["val/Class_IoU/.*"]]},
    "Machine": {
        "images per second": ["Multiline", ["train/images_per_second"]],
        "waiting for data, share of time": ["Multiline", ["train/data_wait"]],
        "peak memory, GiB": ["Multiline", ["memory/.*"]],
    },
}


@dataclass(frozen=True)
class RunFacts:
    """What a writer may tell of a run.

    Args:
        name: Of the config.
        folder: Of the run.
        config: The resolved config.
    """

    name: str
    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)


@WRITERS.register("tensorboard")
class TensorBoardWriter:
    """TensorBoard event files; the package is imported only when one is made.

    Args:
        log_dir: Folder of this run's events.
        purge_step: Step from which on earlier events are void: where a resumed run goes on.
        run: Its config is shown as text and as hyperparameters; None shows neither.
    """

    def __init__(self, log_dir: Path, purge_step: int | None = None, run: RunFacts | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter, summary

        self._writer = SummaryWriter(str(log_dir), purge_step=purge_step)
        self._file = cast(Any, self._writer.file_writer)
        self._writer.add_custom_scalars(LAYOUT)
        if run is not None:
            indented = dump_json(run.config).replace("\n", "\n    ")  # Markdown for "as it stands"
            self._writer.add_text("config", "    " + indented, purge_step or 0)
            make_hparams: Any = summary.hparams  # has no types
            experiment, start, _ = make_hparams(leaves(run.config), dict.fromkeys(FINAL, 0.0))
            self._file.add_summary(experiment)
            self._file.add_summary(start)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write numbers by tag, at an optimizer step."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()  # a kill may come any time, and steps before the last checkpoint are not taken again

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Write a picture (H, W, 3) uint8 at an optimizer step, as JPEG: PNG takes five times as long."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        picture = Summary.Image(height=image.shape[0], width=image.shape[1], colorspace=3)
        picture.encoded_image_string = jpeg(image)
        self._file.add_summary(Summary(value=[Summary.Value(tag=tag, image=picture)]), step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Write how often values (N,) of each size occur, at an optimizer step."""
        self._writer.add_histogram(tag, values, step)

    def close(self) -> None:
        """Write out what is pending."""
        self._writer.close()


class Tolerant:
    """A writer whose failures are said once, and end no run; after each it is left alone for `PAUSE` seconds.

    Args:
        writer: What to call.
        where: Its place in the config.
    """

    def __init__(self, writer: Any, where: str) -> None:
        self.writer = writer
        self.where = where
        self.takes_images: bool = getattr(writer, "takes_images", True)
        self.takes_histograms = hasattr(writer, "histogram")
        self.failed_at: float | None = None

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Show numbers by tag, at an optimizer step."""
        if not self.is_paused():
            self.attempt(self.writer.scalars, values, step)

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Show a picture (H, W, 3) uint8 at an optimizer step."""
        if not self.is_paused():
            self.attempt(self.writer.image, tag, image, step)

    def histogram(self, tag: str, values: np.ndarray, step: int) -> None:
        """Show how often values (N,) of each size occur, if the writer can, at an optimizer step."""
        if self.takes_histograms and not self.is_paused():
            self.attempt(self.writer.histogram, tag, values, step)

    def close(self) -> None:
        """Let the writer end its work, whatever went before."""
        self.attempt(self.writer.close)

    def is_paused(self) -> bool:
        """Whether it failed lately."""
        return self.failed_at is not None and time.monotonic() - self.failed_at < PAUSE

    def attempt(self, call: Callable[..., None], *args: Any) -> None:
        """Call the writer."""
        try:
            call(*args)
        except Exception as error:  # the code of others, and networks, raise anything
            if self.failed_at is None:
                what = f"{type(error).__name__}: {first_line(error)}"
                logger.warning("%s: failed (%s). The run goes on; what it shows there has gaps.", self.where, what)
            self.failed_at = time.monotonic()


def open_writer(
    writer: Component, where: str, log_dir: Path, purge_step: int | None = None, run: RunFacts | None = None
) -> list[Tolerant]:
    """Make a writer, or none with a warning where the package that it needs is missing.

    Args:
        writer: Its name in the registry, and arguments.
        where: Its place in the config.
        log_dir: Folder of this run.
        purge_step: Step from which on what it showed before is void; None for a new run.
        run: What it may tell of the run.

    Raises:
        ConfigError: It cannot be made, for a new run. One that goes on does so without it, with a warning.
    """
    place = "trainer.tensorboard" if writer.type == "tensorboard" else where
    try:
        made = WRITERS.build(writer, where=where, log_dir=log_dir, purge_step=purge_step, run=run)
    except ConfigError:
        raise
    except ImportError as error:
        extra = " or the extra `track`" if writer.type in TRACKERS else ""
        logger.warning("%s: not written, %s. Install it with `pip install %s`%s.", place, error, writer.type, extra)
        return []
    except Exception as error:  # the code of others, and networks, raise anything
        problem = f"{where}: {writer.type} does not start ({type(error).__name__}: {first_line(error)})"
        if isinstance(error, OSError) and error.filename:
            reason = error.strerror or error
            problem = f"trainer.log_dir: {log_dir} cannot be written ({reason})"
        if purge_step is None:
            fix = "Name another folder." if problem.startswith("trainer.log_dir") else "Set it up, or remove it."
            raise ConfigError(f"{problem}. {fix}") from None
        logger.warning("%s. The run goes on without it.", problem)
        return []
    return [Tolerant(made, place)]


def samples_of_weights(network: nn.Module, most: int = 10_000) -> dict[str, np.ndarray]:
    """Pick weights of each part of a network, evenly spread over its parameters, at most so many; (n,) float32."""
    samples = {}
    for name, part in network.named_children():
        weights = [parameter.detach().flatten() for parameter in part.parameters()]
        if weights:
            step = -(-sum(map(len, weights)) // most)
            samples[name] = torch.cat([each[::step] for each in weights]).float().cpu().numpy()
    return samples


def leaves(value: Any, where: str = "") -> dict[str, str | int | float | bool]:
    """List the values of a config by their paths, such as ``optimizer.args.lr``; lists and null as JSON text."""
    if isinstance(value, Mapping):
        found: dict[str, str | int | float | bool] = {}
        for key, item in value.items():
            found |= leaves(item, f"{where}.{key}" if where else key)
        return found
    return {where: value if isinstance(value, str | int | float | bool) else json.dumps(value)}


def jpeg(picture: np.ndarray) -> bytes:
    """Encode a picture (H, W, 3) uint8, with colors as sharp as its brightness."""
    options = [cv2.IMWRITE_JPEG_QUALITY, 90, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)[1].tobytes()
