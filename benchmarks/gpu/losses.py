"""The part "losses" of benchmarks/gpu/: time and memory of losses, beside the same in ordinary operations."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from benchmarks import losses
from benchmarks.gpu.record import Record, is_cuda, seconds_of
from benchmarks.losses import Case
from benchmarks.results import Figure, beside, by_turns

CLASSES = (21, 150)


def losses_part(record: Record, flags: argparse.Namespace) -> None:
    """Measure each loss, ours and plain, for few and for many classes."""
    for num_classes in (5,) if flags.quick else CLASSES:
        logits, labels = losses.inputs(num_classes, 8 if flags.quick else 1)
        logits, labels = logits.to(flags.device), labels.to(flags.device)
        for name, plain in losses.PLAIN.items():
            what = f"{num_classes} classes: {losses.NAMES[name]}"
            ours = losses.OURS[name]
            if isinstance(ours, nn.Module):  # it may hold weights of classes
                ours.to(flags.device)
            cases = {"ours": ours, "plain torch": plain}
            record.attempt(what, functools.partial(loss_row, what, cases, logits, labels, flags))


def loss_row(
    what: str, cases: Mapping[str, Case], logits: Tensor, labels: Tensor, flags: argparse.Namespace
) -> list[Figure]:
    """Measure milliseconds of forward and backward and, on a GPU, the memory that they take at most."""

    def milliseconds(case: Case) -> float:
        return 1e3 * seconds_of(functools.partial(step, case, logits, labels), flags.device, 3)

    for case in cases.values():
        milliseconds(case)  # not counted
    turns = {who: functools.partial(milliseconds, case) for who, case in cases.items()}
    figures = beside(what, by_turns(turns, 2 if flags.quick else 5))
    if is_cuda(flags.device):
        for who, case in cases.items():
            figures.append(Figure(what, "MB", [megabytes(case, logits, labels, flags.device)], f"{who}, memory"))
    return figures


def step(case: Case, logits: Tensor, labels: Tensor) -> None:
    """Compute a loss and its gradient."""
    case(logits.detach().requires_grad_(), labels).backward()


def megabytes(case: Case, logits: Tensor, labels: Tensor, device: str) -> float:
    """Measure the memory that a loss and its gradient take at most, besides logits and labels."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step(case, logits, labels)
    return (torch.cuda.max_memory_allocated(device) - before) / 1e6
