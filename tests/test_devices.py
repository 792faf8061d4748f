"""Which device a flag means; without a GPU, by what torch would say of some."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch

import evaluate
import export
import inference
import prepare
import segwright
import train
from tests.conftest import ROOT
from utils.devices import choose_device, choose_precision, restrict_gpus
from utils.errors import UserError


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "n_gpu", "expected"),
    [
        (None, 1, "cuda:0"),
        (None, 0, "cpu"),
        (None, -1, "cuda:0"),
        ("cuda", 0, "cuda:0"),
        ("1", 1, "cuda:1"),
        ("1,0", 1, "cuda:1"),
        ("cpu", 1, "cpu"),
    ],
)
def test_a_device_is_what_the_flag_says_and_else_what_the_config_says(
    device: str | None, n_gpu: int, expected: str
) -> None:
    assert str(choose_device(device, n_gpu)) == expected


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_alone_is_shown_is_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    restrict_gpus("1")
    assert str(choose_device("1")) == "cuda:0"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["2", "0x", "01a", "-1", "gpu"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=f"^--device {device}: "):
        choose_device(device)


def test_automatic_precision_on_a_cpu_is_fp32() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"


WAITING = """
import importlib, os, sys
sys.path.insert(0, {root!r})
importlib.import_module({module!r})
print(os.environ["OMP_WAIT_POLICY"], "torch" in sys.modules)
"""


@pytest.mark.parametrize("command", [segwright, train, evaluate, inference, prepare, export])
@pytest.mark.parametrize(("given", "then"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_threads_that_wait_sleep_unless_the_user_says_otherwise(
    command: ModuleType, given: str | None, then: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    code = WAITING.format(root=str(ROOT), module=command.__name__)
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split() == [then, "False"]
