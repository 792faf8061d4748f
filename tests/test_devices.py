"""Which device a flag means; without a GPU, by what torch would say of some."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
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
from utils import threads as threads_module
from utils.devices import choose_device, choose_precision, gpus_to_use, restrict_gpus
from utils.errors import UserError
from utils.threads import allowed_cores, others_running, set_waiting


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
def test_a_process_that_computes_on_a_gpu_keeps_to_those_that_it_was_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,1")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    restrict_gpus("1")
    assert str(choose_device("1")) == "cuda:1", "the second of those that are shown"
    with pytest.raises(UserError, match=r"^--device: this process has begun with GPUs 3,1, and cannot change to 0"):
        restrict_gpus("0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    restrict_gpus("1")
    assert str(choose_device("1")) == "cuda:1"


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("device", ["2", "0x", "01a", "-1", "gpu"])
def test_a_gpu_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UserError, match=f"^--device {device}: "):
        choose_device(device)


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize(
    ("device", "n_gpu", "used", "told"),
    [("0,1", 1, 1, True), ("0,1", 2, 2, False), ("1", 1, 1, False), (None, 1, 1, False), (None, 4, 2, True)],
)
def test_gpus_that_are_named_and_not_used_are_spoken_of(
    device: str | None, n_gpu: int, used: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    assert gpus_to_use(device, n_gpu) == used
    assert ("n_gpu" in caplog.text) == told


def test_automatic_precision_on_a_cpu_is_fp32() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"
    assert choose_precision("bf16", torch.device("cpu")) == "bf16"


WAITING_SET_BY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
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
    environment = {name: value for name, value in os.environ.items() if name not in WAITING_SET_BY}
    environment |= {} if given is None else {"OMP_WAIT_POLICY": given}
    code = WAITING.format(root=str(ROOT), module=command.__name__)
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.split() == [then, "False"]


@pytest.mark.parametrize(
    ("running", "threads", "quota", "given", "spins"),
    [
        ("1/90", "2", "max 100000", {}, "10000"),
        ("1/90", "", "max 100000", {}, "10000"),
        ("2/90", "2", "max 100000", {}, None),
        ("2/90", "1", "max 100000", {}, "10000"),
        ("7/90", "2", "max 100000", {}, None),
        ("1/90", "2", "150000 100000", {}, None),
        ("1/90", "1", "150000 100000", {}, "10000"),
        ("1/90", "2", "200000 100000", {}, "10000"),
        ("1/90", "2", "max 100000", {"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ("1/90", "2", "max 100000", {"GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_spin_for_a_moment_only_where_each_has_a_core_for_itself(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    running: str,
    threads: str,
    quota: str,
    given: dict[str, str],
    spins: str | None,
) -> None:
    for name in WAITING_SET_BY:
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(threads_module, "number_of_cores", lambda: 2)
    load, limit = tmp_path / "loadavg", tmp_path / "cpu.max"
    load.write_text(f"0.10 0.20 0.30 {running} 4711\n")
    limit.write_text(f"{quota}\n")
    set_waiting(load, limit)
    assert os.environ.get("GOMP_SPINCOUNT") == spins


def test_threads_sleep_at_once_where_nobody_says_what_else_runs(tmp_path: Path) -> None:
    assert others_running(tmp_path / "missing") > 0
    assert allowed_cores(tmp_path / "missing") > 1000
