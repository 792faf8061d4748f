"""The part "syncbn" of benchmarks/gpu/: batch norm over two processes, beside one process with the whole batch.

On one card the processes meet by gloo, as there can be no more of NCCL's than GPUs.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.gpu.record import Record, is_cuda
from benchmarks.gpu.throughput import HALF
from benchmarks.results import Figure
from models.build import build_model
from utils import distributed
from utils.sync_batchnorm import synchronize_norms

MOST = 1e-2  # that two processes may differ from one, as a share of the largest value of a tensor
SMALLEST = 1e-6  # largest value below which a tensor counts as 0


def syncbn(record: Record, flags: argparse.Namespace) -> None:
    """Compare gradients and running statistics of two processes with half the batch to those of one with all of it."""

    def compare() -> list[Figure]:
        with tempfile.TemporaryDirectory() as folder:
            found = []
            for processes in (1, 2):
                status = distributed.launch("benchmarks.gpu.syncbn", [folder, flags.device], processes)
                if status:
                    raise RuntimeError(f"{processes} processes ended with {status}")
                found.append(torch.load(Path(folder) / f"{processes}.pt", weights_only=True))
        one, two = found
        worst = {kind: largest_difference(one[kind], two[kind]) for kind in ("gradients", "statistics")}
        if not max(worst.values()) <= MOST:  # NaN is not
            raise RuntimeError(f"two processes differ from one: {worst}")
        what = "two processes - one: largest difference of"
        return [Figure(f"{what} {kind}", "of the largest", [value]) for kind, value in worst.items()]

    record.attempt("two processes", compare)


def largest_difference(one: Sequence[Tensor], two: Sequence[Tensor]) -> float:
    """Return the largest difference of tensors to their twins, as a share of each one's largest value."""
    shares = []
    for a, b in zip(one, two, strict=True):
        shares.append((a - b).abs().max() / a.abs().max().clamp(min=SMALLEST))
    return float(torch.stack(shares).max())  # of NaN and a number, NaN


def main(argv: Sequence[str]) -> int:
    """Take a step on this process's share of a batch; the first writes gradients and running statistics.

    On a CPU, which has no batch norm over processes, statistics stay as they are.

    Args:
        argv: The folder to write to, and the device.
    """
    folder, name = argv
    warnings.filterwarnings("ignore")
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cpu")
    if is_cuda(name):
        device = torch.device("cuda", distributed.announced_process().rank % torch.cuda.device_count())
    with distributed.joined(device):
        torch.manual_seed(0)
        args = {**HALF, "freeze_bn": device.type == "cpu"}
        model = build_model({"type": "DeepLab", "args": args}, num_classes=5).to(device).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout | nn.Dropout2d):
                module.p = 0.0
        images = torch.randint(256, (8, 3, 65, 97), dtype=torch.uint8)
        images[4:] //= 2  # so that the halves have statistics of their own
        if device.type == "cuda":
            synchronize_norms(model, gpus=1)
        network = distributed.wrap(model)
        share = images.chunk(distributed.world_size())[distributed.rank()].to(device)
        network(share).logits.float().square().mean().backward()
        if distributed.is_first():
            gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
            running = [value.float().cpu() for key, value in model.named_buffers() if "running" in key]
            found = {"gradients": gradients, "statistics": running}
            torch.save(found, Path(folder) / f"{distributed.world_size()}.pt")
    return 0
