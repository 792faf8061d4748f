"""Peak memory of losses beside what others would use, and of training beside a plain loop (Linux only).

    python benchmarks/memory.py [--classes 21 150] [--only CE Lovasz] [--steps 4] [--yassouali DIR] [--json]

A loss: what a forward and backward pass of the inputs of `benchmarks/losses.py` adds to the peak resident size of a
fresh process. Training: the peak of a fresh process that takes some steps of a small DeepLabV3+ on batches from memory,
by the trainer with its loss, and in a plain loop that enlarges the logits for torch's cross-entropy. One thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks import losses
from benchmarks.results import Figure, peers, show, write

TRAINING = ("ours", "plain torch")


def resident_peak() -> float:
    """Return the peak resident size of this process, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


def forget_peak() -> None:
    """Let the peak begin at what is resident now; getrusage's is inherited from the process that started this one."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_of_loss(case: losses.Case, num_classes: int, shrink: int) -> float:
    """By how many MB a loss raises the peak of this process; small inputs first, to load what it needs."""
    losses.once(case, *losses.inputs(num_classes, 16))
    logits, labels = losses.inputs(num_classes, shrink)
    forget_peak()
    before = resident_peak()
    losses.once(case, logits, labels)
    return resident_peak() - before


def peak_of_training(who: str, num_classes: int, steps: int, shrink: int) -> float:
    """The peak of this process in MB after some steps, 4 images of 256x256."""
    from benchmarks import engine

    size = (256 // shrink, 256 // shrink)
    with tempfile.TemporaryDirectory() as folder:
        trainer = engine.make_trainer(Path(folder), num_classes=num_classes, size=size, steps=steps)
        forget_peak()
        if who == "ours":
            engine.ours(trainer)
        else:
            batch = trainer.train_loader.batch  # type: ignore[attr-defined]
            for _ in range(steps):
                logits = trainer.model.train()(batch.images).logits
                losses.plain_cross_entropy(logits, batch.labels).backward()
                trainer.optimizer.step()
                trainer.optimizer.zero_grad(set_to_none=True)
    return resident_peak()


def elsewhere(*arguments: Any, yassouali: Path | None = None) -> float:
    """Measure in a fresh process."""
    command = [sys.executable, __file__, "--peak", *map(str, arguments)]
    command += ["--yassouali", str(yassouali)] if yassouali else []
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure(flags: argparse.Namespace) -> list[Figure]:
    """MB of each loss and of training, a column for each who has it."""
    figures: list[Figure] = []
    for num_classes in flags.classes:
        for name in flags.only or losses.OURS:
            what = f"{num_classes} classes: {losses.NAMES[name]}"
            for who in losses.cases_of(name, num_classes, losses.columns(flags.yassouali)):
                peak = elsewhere("loss", who, name, num_classes, flags.shrink, yassouali=flags.yassouali)
                figures += show([Figure(what, "MB", [peak], who)])
    for num_classes in flags.classes:
        what = f"{num_classes} classes: a training process, 4 images of 256x256"
        for who in TRAINING:
            peak = elsewhere("training", who, num_classes, flags.steps, flags.shrink)
            figures += show([Figure(what, "MB", [peak], who)])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 150])
    parser.add_argument("--only", nargs="+", choices=losses.OURS)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes by this, to try it out")
    parser.add_argument("--yassouali", type=Path, metavar="DIR", help="a checkout of pytorch-segmentation")
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "size_average", UserWarning)
    if flags.peak:
        kind, who, *rest = flags.peak
        if kind == "loss":
            name, num_classes, shrink = rest
            print(peak_of_loss(losses.columns(flags.yassouali)[who][name], int(num_classes), int(shrink)))
        else:
            print(peak_of_training(who, *map(int, rest)))
        return
    figures = measure(flags)
    if flags.json:
        title = "peak memory: losses, 64x64 logits to 512x512 labels, 4 images, forward and backward; training"
        write("memory", title, figures, peers=peers("segmentation_models_pytorch", yassouali=flags.yassouali))


if __name__ == "__main__":
    main()
