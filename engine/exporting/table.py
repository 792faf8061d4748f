"""How exported networks of every kind agree with the networks themselves: ``python -m engine.exporting.table``.

Each is narrow and trained for a moment on generated scenes; it is exported as ONNX and run at eight sizes. Figures are
kept in `docs/exports.json`, where those that are there are not measured again, and shown in a table in
`docs/deploy.md`. With names behind it, the command measures these only, and anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from base.base_model import BaseModel
from dataloader.datasets.synthetic import CLASSES, draw_scene
from engine.exporting import graph
from engine.exporting.parity import PER_SIZE, SHARES, Batch, Example, batches_of, compare, parity_sizes
from engine.exporting.read import runner_of, session_of
from models.build import build_model
from utils.classes import IGNORE
from utils.outputs import resize
from utils.registry import BACKBONES, HEADS, MODELS, NECKS, Registry
from utils.schema import parameters_of

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "exports.json"
BEGIN, END = "<!-- table: python -m engine.exporting.table -->", "<!-- end of table -->"
EXACT = 0.9999  # agreement that is asked for
CROP = (112, 144)  # sizes are made of it
TRAINED_AT = (64, 96)
STEPS, BATCH, LR = 60, 4, 3e-3
MOST_STEPS = 5 * STEPS
SIX = ("resnet18", "mobilenet_v2", "vgg16_bn", "stdc1", "drn26", "xception41")
SAME = {"aspp_plus": "ASPP", "deeplabv3_plus_decoder": "DeepLabV3PlusHead"}  # second names of bricks
# Of narrow networks, by argument.
WIDTHS = {"width_mult": 0.125, "channels": 16, "fpn_out": 16, "aspp_depth": 16, "heads": 2}
WIDER = {"mobilenet_v2": 0.25}


class Case(NamedTuple):
    """A network to export, as a config's "arch"."""

    name: str
    arch: dict[str, Any]


def cases() -> Iterator[Case]:
    """Every registered model, and every head behind every neck on six backbones."""
    for name in sorted(MODELS):
        if name != "EncoderDecoder":
            yield Case(name, narrow(MODELS, name))
    necks = [None, *(name for name in sorted(NECKS) if name not in SAME)]
    heads = [name for name in sorted(HEADS) if name not in SAME]
    pairs = list(product(necks, heads))
    # Every pair is met once before any backbone is met with all, so that a part of the list is a good sample.
    for turn, (number, (neck, head)) in product(range(len(SIX)), enumerate(pairs)):
        backbone = SIX[(number + turn) % len(SIX)]
        args = {
            "backbone": narrow(BACKBONES, backbone),
            "necks": [narrow(NECKS, neck)] if neck else [],
            "head": narrow(HEADS, head),
        }
        bricks = [brick for brick in (backbone, neck, head) if brick]
        yield Case("+".join(bricks), {"type": "EncoderDecoder", "args": args})


def narrow(registry: Registry, name: str) -> dict[str, Any]:
    """A component with few channels."""
    args: dict[str, Any] = {}
    for argument, parameter in parameters_of(registry[name]).items():
        if argument == "channels" and isinstance(parameter.default, type(None)) and name == "UNetHead":
            continue  # a width for each step
        if argument in WIDTHS:
            args[argument] = WIDER.get(name, WIDTHS[argument]) if argument == "width_mult" else WIDTHS[argument]
        elif argument == "backbone" and parameter.default is not None:
            # Rounding errors of a deep network without training grow until they decide labels.
            usual = parameter.default.type
            args[argument] = narrow(BACKBONES, "resnet18" if usual.startswith("resnet") else usual)
    return {"type": name, "args": args}


def scenes(count: int, size: tuple[int, int] = (192, 256), seed: int = 7) -> list[Example]:
    """Generated street scenes with their labels."""
    return [Example(*draw_scene(np.random.default_rng((seed, number)), size)) for number in range(count)]


def trained(arch: dict[str, Any], examples: Sequence[Example], num_classes: int = len(CLASSES)) -> BaseModel:
    """A network after a short training: its maps are normalized, and several classes win somewhere.

    One without batch norms (FCN8) takes longer until they do.

    Args:
        arch: Of a config.
        examples: At least `BATCH`, of one size, with labels.
        num_classes: Channels of the logits.
    """
    torch.manual_seed(0)
    model = build_model(arch, num_classes=num_classes, load_weights=False).train()
    images = torch.stack([torch.from_numpy(example.image).permute(2, 0, 1) for example in examples])
    labels = torch.stack([torch.from_numpy(example.label) for example in examples if example.label is not None])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for step in range(MOST_STEPS):
        if step and step % STEPS == 0:
            won = classes_won(model.eval(), images)
            model.train()
            if won > 1:
                break
        chosen = torch.randperm(len(images))[:BATCH]
        truth = labels[chosen].long()
        logits = resize(model(images[chosen]).logits, (truth.shape[-2], truth.shape[-1]))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, truth, ignore_index=IGNORE).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.eval()


def measure(case: Case, batches: Sequence[Batch]) -> dict[str, Any]:
    """Export a network and compare; the figures, or why it is refused."""
    try:
        model = trained(case.arch, scenes(16, TRAINED_AT, seed=8))
        outputs = ("labels", "logits")
        made = graph.to_onnx(graph.trace(model, 3, outputs, None), outputs)
    except graph.Untraceable as error:
        return {"refused": str(error)}
    parity = compare(model, runner_of(session_of(made.SerializeToString())), batches, CLASSES)
    if parity.worst.error:
        return {"refused": parity.worst.error}
    figures = {"agreement": parity.overall, "classes": classes_won(model, *(batch.images for batch in batches))}
    if parity.mean_iou is not None:
        figures["mean_iou_difference"] = abs(parity.mean_iou[1] - parity.mean_iou[0])
    if parity.overall < EXACT:
        figures["rounding"] = decided_by_rounding(model, batches[0].images)
    return figures


@torch.inference_mode()
def decided_by_rounding(model: BaseModel, images: Tensor) -> float:
    """Share of pixels whose label is another in float64: deep networks without training amplify rounding errors."""
    labels = model(images).logits.argmax(1)
    exact = model.double()(images.double()).logits.argmax(1)
    return float((labels != exact).double().mean())


@torch.inference_mode()
def classes_won(model: BaseModel, *batches: Tensor) -> int:
    """Number of classes that some pixel of the batches of images gets."""
    found: set[int] = set()
    for images in batches:
        found |= set(model(images).logits.argmax(1).unique().tolist())
    return len(found)


def read_figures() -> dict[str, dict[str, Any]]:
    """What was measured so far."""
    return json.loads(FIGURES.read_text(encoding="utf-8")) if FIGURES.exists() else {}


def write_figures(figures: dict[str, dict[str, Any]]) -> None:
    """Write what was measured, a line for each network."""
    lines = [f"{json.dumps(name)}: {json.dumps(entry)}" for name, entry in figures.items()]
    FIGURES.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def table(figures: dict[str, dict[str, Any]]) -> str:
    """The figures in Markdown: models one by one, combinations of bricks by their head."""
    lines = ["| network | agreement over 8 sizes, at least | largest difference of Mean_IoU | exported |"]
    lines.append("| --- " * 4 + "|")
    groups: dict[str, list[dict[str, Any]]] = {}
    for name, entry in figures.items():
        _, *bricks = name.split("+")
        groups.setdefault(bricks[-1] if bricks else name, []).append(entry)
    for row, entries in groups.items():
        made = [entry for entry in entries if "refused" not in entry]
        refused = [entry["refused"] for entry in entries if "refused" in entry]
        rounded = [entry["rounding"] for entry in entries if "rounding" in entry]
        share = "all" if not refused else f"{len(made)} of {len(entries)}; {refused[0]}"
        if len(entries) > 1 and not refused:
            share = f"all {len(entries)}"
        if rounded:
            share += f"; without ONNX, float32 differs from float64 at {100 * max(rounded):.3f} %"
        least = f"{100 * min(entry['agreement'] for entry in made):.4f} %" if made else "–"
        most = f"{max(entry['mean_iou_difference'] for entry in made):.5f}" if made else "–"
        lines.append(f"| {row} | {least} | {most} | {share} |")
    return "\n".join(lines)


def with_table(text: str, figures: dict[str, dict[str, Any]]) -> str:
    """The text of docs/deploy.md with the table in its place."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table(figures)}\n\n{END}{tail}"


def main(names: Sequence[str]) -> None:
    """Measure what was not measured yet, and write both files; with names, these only, and anew."""
    torch.set_num_threads(1)
    batches = batches_of(scenes(PER_SIZE * len(SHARES)), parity_sizes(CROP))
    figures = read_figures()
    for case in cases():
        if case.name not in names if names else case.name in figures:
            continue
        figures[case.name] = measure(case, batches)
        print(case.name, figures[case.name], flush=True)
        write_figures(figures)
    page = DOCS / "deploy.md"
    page.write_text(with_table(page.read_text(encoding="utf-8"), figures), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
