"""What all tests share: one thread each, a registered tiny dataset, and commands called in this process."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import pytest
import torch

import evaluate
import inference
import prepare
import train
from tests.tiny import tiny_config
from utils import version
from utils.errors import run

torch.set_num_threads(1)
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for `deterministic`; cuBLAS reads it once in a process
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of commands that tests start: tests run side by side, one on each core
cv2.setNumThreads(0)

ROOT = Path(__file__).parents[1]  # the folder of tests/, from which its modules can be imported
HOME = Path(version.__file__).parents[1]  # of the program: the repository, or its package where a wheel is installed
PREFIX = version.__name__.removesuffix("utils.version")  # of the names of its modules


def program(command: ModuleType) -> list[str]:
    """Give the words that start a command in a process of its own: its script, or that of the installed package."""
    if not command.__package__:
        return [sys.executable, str(command.__file__)]
    words = {"inference": "predict"}
    name = command.__name__.rpartition(".")[2]
    return [sys.executable, "-m", command.__package__.partition(".")[0], words.get(name, name)]


class Answer(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """Its error lines, without what each begins with."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


def kill_9_at(owner: Any, name: str, number: int, work: Callable[[], object]) -> int:
    """Do `work` in a child that dies at the `number`-th call of `owner`'s function `name`; its exit code."""

    def child() -> None:
        left, real = number, getattr(owner, name)

        def strike(*arguments: object) -> object:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        setattr(owner, name, strike)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def call(command: ModuleType, *arguments: Any) -> Answer:
    """Call a script's `main` as its last line does, in this process."""
    with ExitStack() as stack:
        out, err = stack.enter_context(redirect_stdout(StringIO())), stack.enter_context(redirect_stderr(StringIO()))
        status = run(command.main, [str(argument) for argument in arguments])
    return Answer(status, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SEGWRIGHT_CACHE", str(tmp_path / "segwright-cache"))  # not the user's
    monkeypatch.delenv("SEGWRIGHT_IMPORT", raising=False)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:  # `--device` writes it, and what was not there is to be gone again
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-")
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)  # resuming would keep another test's threads


@pytest.fixture
def train_command() -> Callable[..., Answer]:
    return lambda *arguments: call(train, *arguments)


@pytest.fixture
def prepare_command() -> Callable[..., Answer]:
    return lambda *arguments: call(prepare, *arguments, "--workers", "0")


@pytest.fixture
def evaluate_command() -> Callable[..., Answer]:
    return lambda *arguments: call(evaluate, *arguments, "-d", "cpu")


@pytest.fixture
def inference_command() -> Callable[..., Answer]:
    return lambda *arguments: call(inference, *arguments, "-d", "cpu")


@pytest.fixture
def config_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes `tiny_config` to a file, with keys replaced: `config_file({"trainer.epochs": 3})`."""

    def write(changes: dict[str, Any] | None = None) -> Path:
        config = tiny_config(tmp_path / "saved")
        for path, value in (changes or {}).items():
            *names, last = path.split(".")
            place = config
            for name in names:
                place = place[name]
            place[last] = value
        file = tmp_path / "config.json"
        file.write_text(json.dumps(config))
        return file

    return write


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny run of one epoch; read it, do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    config = tiny_config(folder / "saved")
    config["trainer"]["epochs"] = 1
    (folder / "config.json").write_text(json.dumps(config))
    answer = call(train, "-c", folder / "config.json", "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    (found,) = (folder / "saved" / "tiny").glob("2*")
    return found
