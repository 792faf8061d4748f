"""Batch norm over threads is batch norm over the whole batch: values, gradients, running statistics."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from engine.check import check_config
from models.build import build_model
from tests.tiny import tiny_config
from utils.errors import ConfigError
from utils.sync_batchnorm import (
    Careful,
    SynchronizedBatchNorm,
    SynchronizedDataParallel,
    convert_sync_batchnorm,
    introduce,
    synchronize_norms,
)


def in_threads(replicas: Sequence[nn.Module], pieces: Sequence[Tensor]) -> list[Any]:
    """What each replica makes of its piece; an exception where it raised one."""
    found: list[Any] = [None] * len(pieces)

    def run(index: int) -> None:
        try:
            found[index] = Careful(replicas[index])(pieces[index])
        except RuntimeError as error:
            found[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(pieces))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "it waits for ever"
    return found


def replicas_of(model: nn.Module, count: int) -> list[nn.Module]:
    """Copies that share parameters, as DataParallel makes them; the first shares the buffers, too."""
    introduce([model])  # what it met at before cannot be copied
    shared = {id(parameter): parameter for parameter in model.parameters()}
    copies = [copy.deepcopy(model, dict(shared)) for _ in range(count)]
    introduce(made := [model, *copies[1:]])
    return made


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4, momentum=None)
    ).double()


@pytest.mark.parametrize("sizes", [(2, 2, 2), (3, 1), (1, 1, 1, 4), (5,)])
def test_threads_norm_as_one_batch_does(sizes: tuple[int, ...]) -> None:
    whole = network()
    ours = copy.deepcopy(whole)
    convert_sync_batchnorm(ours)
    assert list(ours.state_dict()) == list(whole.state_dict())
    images = torch.randn(sum(sizes), 3, 9, 11, dtype=torch.float64) * 3 + 100
    target = torch.randn(sum(sizes), 4, 5, 7, dtype=torch.float64)
    for _ in range(2):
        expected = whole(images)
        (expected * target).sum().backward()
        found = torch.cat(in_threads(replicas_of(ours, len(sizes)), images.split(sizes)))
        (found * target).sum().backward()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for (name, mine), theirs in zip(ours.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9, msg=name)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-10, atol=1e-10)


def test_evaluation_and_frozen_statistics_are_those_of_torch() -> None:
    whole = network()
    ours = copy.deepcopy(whole)
    convert_sync_batchnorm(ours)
    images = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    whole.eval()
    ours.eval()
    before = copy.deepcopy(ours.state_dict())
    for found, piece in zip(in_threads(replicas_of(ours, 2), images.split(1)), images.split(1), strict=True):
        assert torch.equal(found, whole(piece))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


def test_a_replica_that_fails_does_not_let_the_others_wait() -> None:
    ours = network()
    convert_sync_batchnorm(ours)
    replicas = replicas_of(ours, 3)
    replicas[1][0].forward = lambda x: 1 / 0  # type: ignore[assignment]
    with pytest.raises(ZeroDivisionError):
        Careful(replicas[1])(torch.zeros(1))
    for found in in_threads([replicas[0], replicas[2]], [torch.zeros(1, 3, 9, 9, dtype=torch.float64)] * 2):
        assert "another replica of the model has failed" in str(found)


def test_replicas_compute_in_the_precision_of_the_thread_that_calls_them(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Tensor] = []

    def in_a_thread(_: Any, replicas: Sequence[nn.Module], inputs: Sequence[Any], kwargs: Any) -> list[Any]:
        thread = threading.Thread(target=lambda: found.append(replicas[0](*inputs[0])))
        thread.start()
        thread.join()
        return []

    monkeypatch.setattr(nn.DataParallel, "parallel_apply", in_a_thread)
    parallel = SynchronizedDataParallel(nn.Linear(2, 2))
    with torch.autocast("cpu", torch.float16):
        parallel.parallel_apply([nn.Linear(2, 2)], [(torch.ones(1, 2),)], [{}])
    parallel.parallel_apply([nn.Linear(2, 2)], [(torch.ones(1, 2),)], [{}])
    assert [each.dtype for each in found] == [torch.float16, torch.float32]


def test_norms_are_converted_only_where_there_are_several_gpus_and_stay_frozen() -> None:
    model = build_model(tiny_config_arch(freeze_bn=True), num_classes=3)
    before = [name for name, _ in model.named_parameters()]
    synchronize_norms(model, 1)
    assert not any(isinstance(module, SynchronizedBatchNorm) for module in model.modules())
    synchronize_norms(model, 2)
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms
    assert all(isinstance(norm, SynchronizedBatchNorm) and not norm.training for norm in norms)
    assert [name for name, _ in model.named_parameters()] == before


def tiny_config_arch(**options: Any) -> dict[str, Any]:
    backbone = {"type": "resnet18", "args": {"width_mult": 0.125}}
    head = {"type": "FCNHead", "args": {"channels": 8}}
    return {"type": "EncoderDecoder", "args": {"backbone": backbone, "head": head, **options}}


@pytest.mark.parametrize("key", ["compile", "activation_checkpointing"])
def test_threads_are_refused_together_with_what_would_break_them(tmp_path: Any, key: str) -> None:
    config = {**tiny_config(tmp_path), "parallel": "DataParallel"}
    check_config(config)
    config["trainer"][key] = True
    with pytest.raises(ConfigError, match=rf'^trainer\.{key}: does not work with "parallel": "DataParallel"'):
        check_config(config)
