"""Count what every model and backbone computes for an image: ``python -m models.costs`` writes `docs/costs.json`.

Counted are multiply-adds of convolutions and matrix products, as papers count them, with default arguments and 21
classes. Nothing is computed: tensors lie on the meta device. It takes a minute, which is why the catalogue reads the
file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from models.build import build_model
from utils.registry import BACKBONES, MODELS
from utils.schema import Component

COSTS = Path(__file__).parent.parent / "docs" / "costs.json"
SIZES = ((512, 512), (1024, 2048))
NUM_CLASSES = 21


def multiply_adds(model: nn.Module, size: tuple[int, int]) -> float:
    """Count the multiply-adds, in billions, of predicting one image of `size` (height, width).

    Args:
        model: On the meta device.
        size: Height and width.
    """
    images = torch.empty(1, 3, *size, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model.eval()(images)
    return counter.get_total_flops() / 2 / 1e9


def all_names() -> list[str]:
    """List the names of all models and backbones, except `EncoderDecoder`, which is nothing alone."""
    return [*sorted(set(MODELS) - {"EncoderDecoder"}), *sorted(BACKBONES)]


def networks(names: Iterable[str]) -> Iterator[tuple[str, nn.Module]]:
    """Build models and backbones without memory, one after the other."""
    for name in names:
        with torch.device("meta"):
            if name in MODELS:
                yield name, build_model(Component(name), num_classes=NUM_CLASSES)
            else:
                yield name, BACKBONES.build(Component(name), where=name, in_channels=3)


def read_costs() -> dict[str, list[float]]:
    """Read the multiply-adds, in billions, at each of `SIZES`, by name."""
    costs: dict[str, list[float]] = json.loads(COSTS.read_text(encoding="utf-8"))
    return costs


def main() -> None:
    """Count, and write the file."""
    costs = {}
    for name, network in networks(all_names()):
        costs[name] = [float(f"{multiply_adds(network, size):.4g}") for size in SIZES]
        print(name, *costs[name], file=sys.stderr, flush=True)
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in costs.items()]
    COSTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
