"""Kills this process at a named moment: ``SEGWRIGHT_TEST_KILL=POINT:N`` acts at the N-th time POINT is reached.

Imported with ``--import tests.kill_points`` by a process that is to die. Points: `step` (gradients are there, weights
are not changed yet), `mid_validation`, `after_best` (the best model is written, the epoch not committed),
`before_rename` and `after_rename` (of any file), `mid_write` (half of a checkpoint is on the disk).
``SEGWRIGHT_TEST_SIGNAL`` chooses another signal than SIGKILL, and ``SEGWRIGHT_TEST_GROUP`` sends it to the data
workers too, as terminals and queues do.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import torch

import trainer
from utils import checkpoint, metrics

point, _, number = os.environ.get("SEGWRIGHT_TEST_KILL", "never:1").partition(":")
left = int(number)


def strike(here: str) -> None:
    """Send the signal if this is the moment."""
    global left
    if here == point:
        left -= 1
        if left == 0:
            number = getattr(signal, os.environ.get("SEGWRIGHT_TEST_SIGNAL", "SIGKILL"))
            if os.environ.get("SEGWRIGHT_TEST_GROUP"):
                os.killpg(os.getpgrp(), number)
            else:
                os.kill(os.getpid(), number)


def around(owner: Any, name: str, before: str = "", after: str = "", when: Callable[..., bool] | None = None) -> None:
    """Pass the points `before` and `after` at each call of ``owner.name``."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        counts = when is None or when(*args)
        if before and counts:
            strike(before)
        result = original(*args, **kwargs)
        if after and counts:
            strike(after)
        return result

    setattr(owner, name, call)


def save_half(state: Any, file: Any) -> None:
    """`torch.save`, but dying in the middle of the file when it is time."""
    torch_save(state, file)
    size = file.tell()
    file.flush()
    os.truncate(file.fileno(), size // 2)
    strike("mid_write")
    file.seek(0)
    torch_save(state, file)
    file.truncate()


torch_save = torch.save
torch.save = save_half
around(trainer.Trainer, "update_weights", before="step")
around(metrics.Metrics, "add", before="mid_validation")
around(checkpoint, "save", after="after_best", when=lambda path, state: path.name == "best_model.pth")
around(os, "replace", before="before_rename", after="after_rename")
