"""Services that track experiments, as writers: Weights & Biases, MLflow, Trackio; each imported where one is made."""

from __future__ import annotations

import json
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np

from utils.files import atomic_write
from utils.registry import WRITERS
from utils.writers import RunFacts, leaves

MANY = 100  # parameters that MLflow takes at once


class Tracker(ABC):
    """A service that tracks experiments: after `--resume` the same run goes on there, and no point is shown twice.

    The run's folder keeps, in a file named like the service, which run it is there and the last step of every tag.

    Args:
        run: What to track.
        service: Name of the service.
    """

    def __init__(self, run: RunFacts, service: str) -> None:
        self.file = run.folder / f"{service}.json"
        self.id: str | None = None
        self.shown: dict[str, int] = {}
        with suppress(OSError, ValueError, KeyError):
            known = json.loads(self.file.read_text(encoding="utf-8"))
            self.id, self.shown = known["id"], known["shown"]

    @abstractmethod
    def send(self, values: Mapping[str, float], step: int) -> None:
        """Send numbers by tag, at an optimizer step."""

    @abstractmethod
    def send_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Send a picture (H, W, 3) uint8."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send those numbers that have not been sent, before the run was resumed."""
        new = {tag: value for tag, value in values.items() if step > self.shown.get(tag, -1)}
        if new:
            self.send(new, step)
            self.remember(dict.fromkeys(new, step))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Send a picture (H, W, 3) uint8, if it has not been sent."""
        if step > self.shown.get(tag, -1):
            self.send_image(tag, image, step)
            self.remember({tag: step})

    def remember(self, shown: Mapping[str, int]) -> None:
        """Note the newest steps by tag, in the run's folder; a kill leaves the old note or the new one."""
        self.shown |= shown
        with atomic_write(self.file) as file:
            file.write(json.dumps({"id": self.id, "shown": self.shown}).encode())


@WRITERS.register("wandb")
class WandbWriter(Tracker):
    """Weights & Biases, https://wandb.ai. `WANDB_MODE=offline` keeps it on this machine, for `wandb sync` later.

    Args:
        run: What to track.
        project: Where it is listed; null for the config's `name`.
        entity: User or team that it belongs to; null for the default of the account.
    """

    def __init__(self, run: RunFacts, *, project: str | None = None, entity: str | None = None) -> None:
        import wandb

        super().__init__(run, "wandb")
        self._wandb: Any = wandb
        self._run: Any = wandb.init(
            project=project or run.name,
            entity=entity,
            name=run.folder.name,
            id=self.id,
            resume="allow",
            config=dict(run.config),
            dir=run.folder,
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("*", step_metric="step")  # theirs takes no second value at a step before the newest
        self.id = self._run.id
        self.remember({})

    def send(self, values: Mapping[str, float], step: int) -> None:
        self._run.log({**values, "step": step})

    def send_image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._run.log({tag: self._wandb.Image(image, file_type="jpg"), "step": step})

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


@WRITERS.register("mlflow")
class MlflowWriter(Tracker):
    """MLflow, https://mlflow.org: a server, or a database on this machine.

    Args:
        run: What to track.
        experiment: Where it is listed; null for the config's `name`.
        tracking_uri: Server or database, such as ``sqlite:////data/mlflow.db``; null for `MLFLOW_TRACKING_URI`.
    """

    def __init__(self, run: RunFacts, *, experiment: str | None = None, tracking_uri: str | None = None) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        super().__init__(run, "mlflow")
        self._metric: Any = Metric
        self._client: Any = MlflowClient(tracking_uri=tracking_uri)
        if self.id is not None:
            self._client.update_run(self.id, status="RUNNING")
            return
        name = experiment or run.name
        known = self._client.get_experiment_by_name(name)
        place = known.experiment_id if known else self._client.create_experiment(name)
        self.id = self._client.create_run(place, run_name=run.folder.name).info.run_id
        params = [Param(plain(key), str(value)) for key, value in leaves(run.config).items()]
        for start in range(0, len(params), MANY):
            self._client.log_batch(self.id, params=params[start : start + MANY])
        self.remember({})

    def send(self, values: Mapping[str, float], step: int) -> None:
        now = round(1000 * time.time())
        metrics = [self._metric(plain(tag), value, now, step) for tag, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics, synchronous=False)  # it logs what fails later

    def send_image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._client.log_image(self.id, image, key=plain(tag), step=step, synchronous=False)

    def close(self) -> None:
        """Wait until all is sent."""
        self._client.set_terminated(self.id)


@WRITERS.register("trackio")
class TrackioWriter(Tracker):
    """Trackio, https://github.com/gradio-app/trackio: on this machine, or in a Space of Hugging Face.

    Args:
        run: What to track.
        project: Where it is listed; null for the config's `name`.
        space_id: Space to send it to, such as ``user/space``; null keeps it on this machine.
    """

    def __init__(self, run: RunFacts, *, project: str | None = None, space_id: str | None = None) -> None:
        import trackio

        super().__init__(run, "trackio")
        self._trackio: Any = trackio
        self.id = run.folder.name  # its runs are found by their names
        self._run: Any = trackio.init(
            project=project or run.name, name=self.id, space_id=space_id, config=dict(run.config), resume="allow"
        )
        self.remember({})

    def send(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def send_image(self, tag: str, image: np.ndarray, step: int) -> None:
        self._run.log({tag: self._trackio.Image(image)}, step=step)

    def close(self) -> None:
        """Wait until all is sent."""
        self._run.finish()


def plain(name: str) -> str:
    """Replace what MLflow takes in no name."""
    return re.sub(r"[^\w\-. /]", "_", name)
