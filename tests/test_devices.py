"""Which device a flag means; without a GPU, by what torch would say of some."""

from __future__ import annotations

import pytest
import torch

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
