"""Kills this process at a named moment: ``SEGWRIGHT_TEST_KILL=POINT:N`` acts at the N-th time POINT is reached.

Imported with ``--import tests.kill_points`` by a process that is to die. Points: `step` (gradients are there, weights
are not changed yet), `mid_validation`, `after_best` (the best model is written, the epoch not committed),
`before_rename` and `after_rename` (of any file), `mid_write` (half of a checkpoint is on the disk). At these, all that
was saved before a step or a validation is on the disk. It is not at these: the thread that writes checkpoints stops
before the N-th (`unwritten`), in the middle of it (`half_written`) or before the N-th rename (`unrenamed`), and the
process dies in the next step or batch of validation.
``SEGWRIGHT_TEST_SIGNAL`` chooses another signal than SIGKILL, and ``SEGWRIGHT_TEST_GROUP`` sends it to the data
workers too, as terminals and queues do.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch

import trainer
from base import run_files
from utils import checkpoint, metrics

point, _, number = os.environ.get("SEGWRIGHT_TEST_KILL", "never:1").partition(":")
left = int(number)
is_held = False  # whether the thread that writes waits for the end of this process


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


def hold(here: str) -> None:
    """Stop this thread for good if this is the moment and it is the one that writes."""
    global left, is_held
    if here == point and threading.current_thread() is not threading.main_thread():
        left -= 1
        if left == 0:
            is_held = True
            time.sleep(600)


def go_on(*_: Any) -> None:
    """What training does before a step or a batch of validation: die if a write is held, else wait until it ends."""
    while any(thread.name == run_files.WRITER for thread in threading.enumerate()):
        if is_held:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)


def before(owner: Any, name: str, work: Callable[..., Any]) -> None:
    """Call `work` before each call of ``owner.name``, with its arguments."""
    original = getattr(owner, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        work(*args)
        return original(*args, **kwargs)

    setattr(owner, name, call)


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


def save_half(state: Any, file: Any, **options: Any) -> None:
    """`torch.save`, but dying in the middle of the file when it is time; runs write to open files, without options."""
    torch_save(state, file, **options)
    if options or not hasattr(file, "tell"):
        return
    size = file.tell()
    file.flush()
    os.truncate(file.fileno(), size // 2)
    strike("mid_write")
    hold("half_written")
    file.seek(0)
    torch_save(state, file)
    file.truncate()


torch_save = torch.save
torch.save = save_half
around(trainer.Trainer, "update_weights", before="step")
around(metrics.Metrics, "add", before="mid_validation")
around(checkpoint, "save", after="after_best", when=lambda path, state: path.name == "best_model.pth")
around(os, "replace", before="before_rename", after="after_rename")
before(os, "replace", lambda *_: hold("unrenamed"))
before(checkpoint, "save", lambda *_: hold("unwritten"))
before(trainer.Trainer, "update_weights", go_on)
before(metrics.Metrics, "add", go_on)
