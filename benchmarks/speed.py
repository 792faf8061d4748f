"""Images per second of every network on one thread: ``python -m benchmarks.speed [--only NAME ...] [--json]``.

Each predicts one image of 512x512 with default arguments and 21 classes: uint8 in, logits of its own size out.
Processor time, so that other programs matter less; medians of --rounds (5), after one that is not counted. With --json
they are written to benchmarks/results/, from where docs/catalogue.md takes them: `make catalogue`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from benchmarks.results import Figure, summary, write
from models.build import build_model
from models.costs import NUM_CLASSES
from utils.registry import MODELS
from utils.schema import Component

SIZE = (512, 512)
NAMES = sorted(set(MODELS) - {"EncoderDecoder"})  # which is nothing without its bricks


def measure(name: str, rounds: int) -> Figure:
    """Let a network predict one image `rounds` times.

    Args:
        name: Of a model, which gets random weights.
        rounds: How often; one more is not counted.
    """
    torch.manual_seed(0)
    model = build_model(Component(name), num_classes=NUM_CLASSES).eval()
    model = model.to(memory_format=torch.channels_last)
    image = torch.randint(256, (1, 3, *SIZE), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    rates = []
    with torch.inference_mode():
        for _ in range(rounds + 1):
            before = time.process_time()
            model(image)
            rates.append(1 / (time.process_time() - before))
    return Figure(name, "images/s", rates[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help="networks to measure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = []
    for name in args.only:
        figures.append(measure(name, args.rounds))
        print(summary(figures[-1]), flush=True)
    if args.json:
        write("speed", "one image of 512x512, 21 classes, one thread; processor time", figures)


if __name__ == "__main__":
    main()
