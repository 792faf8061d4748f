"""Time and peak memory of losses and predictions, beside the same mathematics on full-size logits.

    python benchmarks/losses.py [--classes 21 150] [--repeats 5] [--only CE Dice] [--peers]

Forward and backward from 64 x 64 logits to 512 x 512 labels, 4 images, one thread. Cases take turns and only ratios
within a row mean anything; times are medians. Memory is what a fresh process adds to its peak resident size.
`--peers` adds segmentation_models_pytorch, where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE
from utils.losses import CrossEntropyDiceLoss, CrossEntropyLoss2d, DiceLoss, FocalLoss, LovaszSoftmax
from utils.metrics import ConfusionMatrix
from utils.upsampled_loss import predicted_labels

IMAGES, LOW, FULL = 4, 64, 512
Case = Callable[[Tensor, Tensor], Tensor]


def full(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(full(logits, labels), labels.long(), ignore_index=IGNORE)


def plain_focal(logits: Tensor, labels: Tensor) -> Tensor:
    each = F.cross_entropy(full(logits, labels), labels.long(), ignore_index=IGNORE, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).sum() / (labels != IGNORE).sum()


def plain_dice(logits: Tensor, labels: Tensor, per_class: bool) -> Tensor:
    kept = (labels != IGNORE)[:, None]
    p = full(logits, labels).softmax(1) * kept
    t = torch.zeros_like(p).scatter_(1, labels[:, None].masked_fill(~kept, 0).long(), 1) * kept
    axes = (0, 2, 3) if per_class else (0, 1, 2, 3)
    hits, total = (p * t).sum(axes), p.sum(axes) + t.sum(axes)
    return (1 - (2 * hits + 1) / (total + 1))[t.sum(axes) > 0].mean()


def plain_both(logits: Tensor, labels: Tensor) -> Tensor:
    return plain_cross_entropy(logits, labels) + plain_dice(logits, labels, per_class=False)


def plain_lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE
    p, truth, losses = full(logits, labels).softmax(1).movedim(1, -1)[kept], labels[kept], []
    for index in truth.unique().tolist():
        own = (truth == index).float()
        errors, order = (own - p[:, index]).abs().sort(descending=True)
        own = own[order]
        jaccard = 1 - (own.sum() - own.cumsum(0)) / (own.sum() + (1 - own).cumsum(0))
        losses.append(errors @ torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]]))
    return torch.stack(losses).mean()


def plain_confusion(logits: Tensor, labels: Tensor) -> Tensor:
    predictions, kept = full(logits, labels).argmax(1), labels != IGNORE
    pairs = labels[kept].long() * logits.shape[1] + predictions[kept]
    return torch.bincount(pairs, minlength=logits.shape[1] ** 2)


def confusion(logits: Tensor, labels: Tensor) -> Tensor:
    matrix = ConfusionMatrix(logits.shape[1], [str(index) for index in range(logits.shape[1])])
    matrix.update(predicted_labels(logits, (labels.shape[1], labels.shape[2])), labels)
    return matrix.counts


CASES: dict[str, tuple[Case, Case]] = {
    "CE": (CrossEntropyLoss2d(), plain_cross_entropy),
    "Focal": (FocalLoss(), plain_focal),
    "Dice": (DiceLoss(), functools.partial(plain_dice, per_class=True)),
    "Dice-global": (DiceLoss(per_class=False), functools.partial(plain_dice, per_class=False)),
    "CE+Dice-global": (CrossEntropyDiceLoss(per_class=False), plain_both),
    "Lovasz": (LovaszSoftmax(), plain_lovasz),
    "Argmax+confusion": (confusion, plain_confusion),
}


def peers() -> dict[str, Case]:
    """Losses of other packages by our name for them; empty where they are not installed."""
    try:
        from segmentation_models_pytorch import losses as smp
    except ImportError:
        print("segmentation_models_pytorch is not installed: no peers.\n")
        return {}
    made = {"Dice": smp.DiceLoss("multiclass", ignore_index=IGNORE, smooth=1.0)}
    made["Lovasz"] = smp.LovaszLoss("multiclass", ignore_index=IGNORE)
    made["CE"] = smp.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=IGNORE)
    return {name: lambda z, t, loss=loss: loss(full(z, t), t.long()) for name, loss in made.items()}


def inputs(num_classes: int, scale: int = 1) -> tuple[Tensor, Tensor]:
    """Logits without ties, and labels in patches: about a third of the classes present, some void."""
    torch.manual_seed(0)
    low, size = LOW // scale, FULL // scale
    logits = 3 * torch.randn(IMAGES, num_classes, low, low)
    present = 10 if num_classes < 50 else 40
    labels = torch.randint(min(present, num_classes), (IMAGES, low, low), dtype=torch.uint8)
    labels = labels.repeat_interleave(size // low, 1).repeat_interleave(size // low, 2)
    labels[:, : size // 16] = IGNORE
    return logits, labels


def once(case: Case, logits: Tensor, labels: Tensor) -> float:
    """Milliseconds of forward and, where there is a gradient, backward."""
    logits = logits.detach().requires_grad_(case not in (confusion, plain_confusion))
    start = time.perf_counter()
    value = case(logits, labels)
    if value.requires_grad:
        value.backward()
    return 1e3 * (time.perf_counter() - start)


def peak(name: str, which: int, num_classes: int) -> None:
    """Print by how many MB a case raises the peak of this process; small inputs first, to load what it needs."""
    case = CASES[name][which]
    once(case, *inputs(num_classes, scale=8))
    logits, labels = inputs(num_classes)
    # Not getrusage, whose peak is inherited from the process that started this one. Linux only.
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_peak()
    once(case, logits, labels)
    print(resident_peak() - before)


def resident_peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def peak_elsewhere(name: str, which: int, num_classes: int) -> float:
    command = [sys.executable, __file__, "--peak", name, str(which), str(num_classes)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and peak memory of losses.")
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 150])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak:
        name, which, num_classes = arguments.peak
        peak(name, int(which), int(num_classes))
        return

    others = peers() if arguments.peers else {}
    heads = ("", "classes", "ms", "plain ms", "times as fast", "MB", "plain MB", "peer: times as fast")
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for num_classes in arguments.classes:
        logits, labels = inputs(num_classes)
        for name in arguments.only:
            cases = [*CASES[name], *([others[name]] if name in others else [])]
            times = [[once(case, logits, labels) for case in cases] for _ in range(arguments.repeats)]
            ours, plain, *peer = (statistics.median(column) for column in zip(*times, strict=True))
            memory = [peak_elsewhere(name, which, num_classes) for which in (0, 1)]
            than_peer = f"{peer[0] / ours:.1f}" if peer else ""
            print(
                f"| {name} | {num_classes} | {ours:.0f} | {plain:.0f} | {plain / ours:.1f} "
                f"| {memory[0]:.0f} | {memory[1]:.0f} | {than_peer} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
