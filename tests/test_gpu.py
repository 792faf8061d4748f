"""What only a GPU can show: devices of sums and states, mixed precision, files that any machine can read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from base.base_dataloader import Batch, DevicePrefetcher
from tests.tiny import tiny_config
from utils.distributed import launch
from utils.losses.base import Loss
from utils.metrics import Metrics
from utils.registry import LOSSES

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a checkpoint."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


def trained(folder: Path, train_command: Any, *flags: str, **trainer: Any) -> Any:
    """What train.py answers to a tiny config for runs in `folder`."""
    config = tiny_config(folder / "saved")
    config["arch"]["args"]["head"]["args"]["dropout"] = 0.0  # drawn from the device's own generator
    config["trainer"] |= trainer
    (folder / "c.json").write_text(json.dumps(config))
    return train_command("-c", folder / "c.json", "--import", "tests.tiny", *flags)


def lines_of(folder: Path, train_command: Any, *flags: str, **trainer: Any) -> list[dict[str, Any]]:
    """metrics.jsonl of the only run below `folder`, after training it."""
    answer = trained(folder, train_command, *flags, **trainer)
    assert answer.status == 0, answer.err
    (run_dir,) = (folder / "saved" / "tiny").glob("2*")
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "bf16", "ema": 0.9},
        {"precision": "fp16", "clip_grad_norm": 1.0},
        {"precision": "auto", "accumulate": 2, "channels_last": False},
        {"compile": True},
    ],
    ids=lambda options: " ".join(options) or "plain",
)
def test_a_run_on_a_gpu_saves_what_any_machine_can_read_and_goes_on(
    tmp_path: Path, train_command: Any, options: dict[str, Any]
) -> None:
    lines_of(tmp_path, train_command, "-d", "cuda", epochs=1, **options)
    lines = lines_of(tmp_path, train_command, "-d", "cuda", "--resume", "auto", epochs=2, **options)
    assert [line["step"] for line in lines] == [5, 10]
    assert all(math.isfinite(line["train/loss"]) and 0 <= line["val/Mean_IoU"] <= 1 for line in lines)
    (run_dir,) = (tmp_path / "saved" / "tiny").glob("2*")
    state = torch.load(run_dir / "last.pth", weights_only=True)  # without a map_location
    assert {tensor.device.type for tensor in tensors(state)} == {"cpu"}


def test_two_processes_on_one_gpu_with_batch_norm_over_both_train_as_one_does(
    tmp_path: Path, train_command: Any
) -> None:
    lines = {}
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        config = tiny_config(folder / "saved")
        config["arch"]["args"]["head"]["args"]["dropout"] = 0.0
        config["train_loader"]["args"]["batch_size"] = 4
        config["trainer"]["epochs"] = 2
        config["use_synch_bn"] = True
        (folder / "c.json").write_text(json.dumps(config))
        flags = ["-c", str(folder / "c.json"), "--import", "tests.tiny", "-d", "cuda"]
        status = train_command(*flags).status if processes == 1 else launch("train", flags, 2)
        assert status == 0
        (run_dir,) = (folder / "saved" / "tiny").glob("2*")
        lines[processes] = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    for one, two in zip(lines[1], lines[2], strict=True):
        for key in ("train/loss", "val/loss", "val/Pixel_Accuracy"):
            assert two[key] == pytest.approx(one[key], rel=0.02), key


def test_a_memory_check_comes_first(tmp_path: Path, train_command: Any) -> None:
    answer = trained(tmp_path, train_command, "-d", "cuda", epochs=1)
    assert answer.status == 0
    assert "memory check: a step on 2 images of 32x32, or validating one of 40x48, fits" in answer.out


@pytest.mark.parametrize("parts", [{"activation_checkpointing": True}, {"nan_streak": 2}])
def test_options_of_the_engine_work_on_a_gpu(tmp_path: Path, train_command: Any, parts: dict[str, Any]) -> None:
    lines = lines_of(tmp_path, train_command, "-d", "cuda", epochs=1, **parts)
    assert math.isfinite(lines[0]["train/loss"])


def test_deterministic_training_is_the_same_twice_or_refused_by_its_key(tmp_path: Path, train_command: Any) -> None:
    try:
        answers = []
        for number in "12":
            (tmp_path / number).mkdir()
            answers.append(trained(tmp_path / number, train_command, "-d", "cuda", deterministic=True, epochs=1))
    finally:
        torch.use_deterministic_algorithms(False)
    if answers[0].status:
        assert (answers[0].status, answers[0].errors[0].partition(":")[0]) == (2, "trainer.deterministic")
        return
    # Without `latest`, which is a link to one of them.
    first, second = (path.read_bytes() for path in sorted(tmp_path.glob("*/saved/tiny/*-*/metrics.jsonl")))
    assert first == second


def test_a_gpu_computes_what_a_cpu_does(tmp_path: Path, train_command: Any) -> None:
    lines = {}
    for device in ("cpu", "cuda"):
        (tmp_path / device).mkdir()
        (lines[device],) = lines_of(tmp_path / device, train_command, "-d", device, epochs=None, max_steps=1)
    for key in ("train/loss", "val/loss"):
        assert lines["cuda"][key] == pytest.approx(lines["cpu"][key], rel=0.02)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_loss_is_the_same_on_a_gpu(name: str) -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 17, 25), torch.randint(5, (2, 65, 97), dtype=torch.uint8)
    labels[:, :9] = 255
    loss: Loss = LOSSES.build(name, where="loss", num_classes=5, class_names=tuple("abcde"))
    found = []
    for device in ("cpu", "cuda"):
        x = logits.to(device).requires_grad_()
        value = loss.to(device)(x, labels.to(device))
        value.backward()
        assert x.grad is not None
        found.append((value.item(), x.grad.cpu()))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-3, atol=1e-6)


def test_pixels_are_counted_alike_on_a_gpu() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 17, 25, dtype=torch.float64), torch.randint(7, (2, 65, 97), dtype=torch.uint8)
    found = []
    for device in ("cpu", "cuda"):
        figures = Metrics(5, "abcde", names=["Boundary_IoU", "Calibration_Error"])
        figures.add(logits.to(device), labels.to(device))
        found.append(figures)
    assert torch.equal(*(figures.counts.cpu() for figures in found))
    assert found[1].results() == pytest.approx(found[0].results(), rel=1e-6)


def test_batches_arrive_whole_while_the_gpu_is_busy() -> None:
    """Copies have a stream of their own, and memory is reused as fast as the allocator can."""
    device = torch.device("cuda")
    move, sums = DevicePrefetcher(device), []
    work = torch.randn(2048, 2048, device=device)
    for number in range(200):
        images = torch.full((4, 3, 256, 256), number, dtype=torch.uint8).pin_memory()
        labels = torch.full((4, 256, 256), 255 - number, dtype=torch.uint8).pin_memory()
        batch = move(Batch(images, labels, ("a",) * 4))
        work = torch.tanh(work @ work)  # keeps the queue full, so that the sums below are taken late
        sums.append(torch.stack([batch.images.sum(dtype=torch.int64), batch.labels.sum(dtype=torch.int64)]))
        del batch, images, labels
    pixels = 4 * 256 * 256
    expected = [[3 * pixels * number, pixels * (255 - number)] for number in range(200)]
    assert torch.stack(sums).tolist() == expected
