"""The parts "throughput" and "deterministic" of benchmarks/gpu/: training steps of whole networks on one batch.

Images per second by precision, memory layout and compilation, their share of what products of large matrices reach on
the same GPU, and what it costs to forbid operations that differ from run to run.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine import network_step
from benchmarks.gpu.record import Record, is_cuda, seconds_of
from benchmarks.results import Figure, beside, by_turns

SECONDS, REPEATS = 0.5, 20  # of a round; at most so many steps
WARM_UP = 3  # steps that are not timed: the first ones compile, load kernels and allocate


class Network(NamedTuple):
    """A network to take steps of.

    Args:
        label: Its name in a table.
        kind: Type of the network.
        args: Its arguments.
        size: Side of the images.
        batch: How many.
    """

    label: str
    kind: str
    args: dict[str, Any]
    size: int
    batch: int


NETWORKS = (
    Network("DeepLabV3+-R50, 512x512", "DeepLab", {"backbone": "resnet50", "pretrained": False}, 512, 16),
    Network("DeepLabV3+-R50, 1024x1024", "DeepLab", {"backbone": "resnet50", "pretrained": False}, 1024, 4),
    Network("PSPNet-R101, 512x512", "PSPNet", {"backbone": "resnet101", "pretrained": False}, 512, 8),
    Network("UNet, 512x512", "UNet", {}, 512, 16),
)
COMPILED = (NETWORKS[0], NETWORKS[3])  # each takes about a minute
HALF = {"backbone": {"type": "resnet18", "args": {"width_mult": 0.5}}, "pretrained": False}
SMALL = (Network("DeepLabV3+ on half a ResNet-18, 64x64", "DeepLab", HALF, 64, 2),)
MODES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": torch.float32, "channels_last": False},
    "fp32, channels last": {"precision": torch.float32},
    "bf16": {"precision": torch.bfloat16, "channels_last": False},
    "bf16, channels last": {"precision": torch.bfloat16},
    "bf16, channels last, compiled": {"precision": torch.bfloat16, "compiled": True},
}
QUICK = ("fp32", "bf16, channels last")  # to compile takes a minute and a compiler


def throughput(record: Record, flags: argparse.Namespace) -> None:
    """Measure every network in every mode, eager ones first, beside products of large matrices."""
    peaks: dict[str, float] = {}
    for name, precision in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for figure in record.attempt(f"peak of {name}", functools.partial(peak, name, precision, flags)):
            peaks[name] = statistics.median(figure.values)
    for mode in QUICK if flags.quick else MODES:
        large = COMPILED if "compiled" in MODES[mode] else NETWORKS
        for net in SMALL if flags.quick else large:
            call = functools.partial(pace_of, net, mode, peaks.get(mode.partition(",")[0]), flags)
            record.attempt(f"{net.label}, {mode}", call)


def peak(name: str, precision: torch.dtype, flags: argparse.Namespace) -> list[Figure]:
    """Measure the TFLOP/s of a large matrix product, float32 by TF32 where a GPU has it, as its convolutions do."""
    side = 256 if flags.quick else 8192
    a, b = (torch.randn(side, side, device=flags.device).to(precision) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        seconds_of(lambda: a @ b, flags.device, 10)  # not counted
        values = [2 * side**3 / seconds_of(lambda: a @ b, flags.device, 10) / 1e12 for _ in range(5)]
    finally:
        torch.set_float32_matmul_precision(before)
    return [Figure("product of two large matrices", "TFLOP/s", values, name)]


def pace_of(net: Network, mode: str, peak_tflops: float | None, flags: argparse.Namespace) -> list[Figure]:
    """Measure images per second and, where the peak is known, their share of it."""
    try:
        batch, step = warm_step(net, mode, flags)
        repeats = max(1, min(REPEATS, int(SECONDS / seconds_of(step, flags.device))))
        rounds = 2 if flags.quick else 5
        pace = [batch / seconds_of(step, flags.device, repeats) for _ in range(rounds)]
    finally:
        if "compiled" in MODES[mode]:
            torch._dynamo.reset()
    figures = [Figure(f"{net.label}, batch {batch}", "images/s", pace, mode)]
    if peak_tflops is not None:
        flops = flops_of_image(net.kind, json.dumps(net.args), net.size, flags.device)
        share = [100 * each * flops / peak_tflops / 1e12 for each in pace]
        figures.append(Figure(f"{net.label}, share of the product's TFLOP/s", "%", share, mode))
    return figures


def warm_step(net: Network, mode: str, flags: argparse.Namespace) -> tuple[int, Callable[[], None]]:
    """Return a step that has been taken before, and its batch: halved as often as memory does not suffice.

    Raises:
        torch.OutOfMemoryError: It does not suffice for two images.
    """
    batch = net.batch
    while True:
        try:
            step = network_step(net.kind, net.args, size=net.size, batch=batch, device=flags.device, **MODES[mode])
            for _ in range(WARM_UP):
                step()
            return batch, step
        except torch.OutOfMemoryError:
            if batch <= 2:
                raise
        step = None  # what did not fit goes before the next network comes
        batch //= 2
        gc.collect()
        if is_cuda(flags.device):
            torch.cuda.empty_cache()


@functools.cache
def flops_of_image(kind: str, args: str, size: int, device: str) -> float:
    """Count the floating-point operations of convolutions and products, forward and backward, for an image."""
    step = network_step(kind, json.loads(args), size=size, batch=2, device=device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


def deterministic_part(record: Record, flags: argparse.Namespace) -> None:
    """Take steps with and without operations that differ from run to run, by turns."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # nothing has been computed yet in this process
    for net in (SMALL if flags.quick else NETWORKS)[:2]:
        record.attempt(net.label, functools.partial(deterministic_row, net, flags))


def deterministic_row(net: Network, flags: argparse.Namespace) -> list[Figure]:
    """Measure milliseconds of a step, and how many times as long it takes without such operations."""
    batch = min(net.batch, 8)
    step = network_step(net.kind, net.args, size=net.size, batch=batch, device=flags.device, precision=torch.bfloat16)

    def milliseconds(enabled: bool) -> float:
        torch.use_deterministic_algorithms(enabled)
        try:
            step()  # not counted: other kernels are chosen
            return 1e3 * seconds_of(step, flags.device, 2 if flags.quick else 10)
        finally:
            torch.use_deterministic_algorithms(False)

    cases = {
        "free": functools.partial(milliseconds, False),
        "deterministic": functools.partial(milliseconds, True),
    }
    times = by_turns(cases, 2 if flags.quick else 5)
    return beside(f"{net.label}, batch {batch}", times, first="free")
