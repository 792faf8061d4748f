"""Networks that are trained from scratch on CamVid for the same time: mean IoU, parameters and images per second.

    python -m benchmarks.camvid_networks DATA --json                    # some 20 minutes for each
    python -m benchmarks.camvid_networks DATA --only ENet PIDNet_S --minutes 1

The recipe is that of configs/camvid.json but for the network, and for the optimizer where NETWORKS says so. Before the
first training, a step of each is measured, so that each gets as many as take --minutes; they are kept in
OUT/steps.json, so that the same command goes on after a kill. Mean IoU is that of validation after the last step.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.camvid import RECIPE, ROOT, VALIDATION, Case, came_to, made_by, member, train_all
from benchmarks.results import Figure, by_turns, show, write
from engine.assemble import build_loaders, build_network, build_trainer
from engine.check import check_config
from engine.children import train_command
from engine.timing import quiet
from utils.config import load_config, override
from utils.errors import run
from utils.files import atomic_write
from utils.log import log_to

logger = logging.getLogger("segwright")

SIZE = (360, 480)
ROUNDS = 5
LOWER = "optimizer.args.lr=0.05"  # where the recipe's 0.1 is too much
ADAMW = 'optimizer={"type":"AdamW","args":{"lr":1e-3,"weight_decay":0.01},"no_decay":["norm","bias"]}'


def network(name: str, **args: Any) -> str:
    """Write a network as ``--set`` takes it."""
    return "arch=" + json.dumps({"type": name, "args": args})


NETWORKS: Mapping[str, Sequence[str]] = {
    "recipe: half of ResNet-18, ASPP, UNetHead": (),
    "BiSeNetV2": (network("BiSeNetV2"), LOWER),
    "DDRNet_23_slim": (network("DDRNet_23_slim"),),
    "DeepLabV3_MobileNetV2": (network("DeepLabV3_MobileNetV2"),),
    "ENet": (network("ENet"), LOWER),
    "FastSCNN": (network("FastSCNN"), LOWER),
    "PIDNet_S": (network("PIDNet_S"),),
    "PPLiteSeg_T": (network("PPLiteSeg_T"), LOWER),
    "SegNeXt_T": (network("SegNeXt_T"), ADAMW),
    "UNetResnet, ResNet-18": (network("UNetResnet", backbone="resnet18"),),
}


def steps_within(raw: Mapping[str, Any], minutes: float) -> int:
    """Measure how many training steps of a config take some minutes here: the second epoch of two says it."""
    config = check_config(raw)
    with tempfile.TemporaryDirectory() as folder, quiet():
        loaders = build_loaders(config)
        trainer = build_trainer(config, Path(folder), torch.device("cpu"), loaders=loaders, environment={})
        trainer.model.train()
        for epoch in range(2):
            begun = time.perf_counter()
            for batch in loaders[0].batches(epoch):
                trainer.train_step(batch.to(torch.device("cpu")))
    return max(1, int(60 * minutes * len(loaders[0]) / (time.perf_counter() - begun)))


def planned_steps(path: Path, configs: Mapping[str, Mapping[str, Any]], minutes: float) -> dict[str, int]:
    """Read how many steps each network gets, and measure it for those that the file does not name yet."""
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name, raw in configs.items():
        if f"{name}, {minutes:g} min" not in known:
            known[f"{name}, {minutes:g} min"] = steps_within(raw, minutes)
            logger.info("%s: %d steps in %g minutes", name, known[f"{name}, {minutes:g} min"], minutes)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as file:
                file.write(json.dumps(known, indent=2).encode())
    return {name: known[f"{name}, {minutes:g} min"] for name in configs}


def speeds(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[float]]:
    """Measure how many frames of CamVid a second each network predicts, one at a time, in turn."""
    frame = torch.randint(256, (1, 3, *SIZE), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    models = {}
    for name, raw in configs.items():
        model = build_network(check_config(raw)).eval()
        models[name] = model.to(memory_format=torch.channels_last)

    def rate(model: torch.nn.Module) -> float:
        with torch.inference_mode():
            before = time.perf_counter()
            model(frame)
            return 1 / (time.perf_counter() - before)

    return by_turns({name: lambda model=model: rate(model) for name, model in models.items()}, ROUNDS)  # type: ignore[misc]


def parameters(raw: Mapping[str, Any]) -> float:
    """Count a network's parameters, in millions."""
    with torch.device("meta"):
        model = build_network(check_config(raw))
    return sum(each.numel() for each in model.parameters()) / 1e6


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.camvid_networks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("data", type=Path, help="folder that holds train/, trainannot/, val/, valannot/")
    add("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME", help="networks to train")
    add("--minutes", type=float, default=20.0, help="how long each is trained (default: 20)")
    add("--measure", action="store_true", help="only find out how many steps that are")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("saved/benchmark-camvid-networks"), help="where runs lie")
    add("--json", action="store_true", help="write the figures to benchmarks/results/")
    args = parser.parse_args(arguments)
    log_to()
    folder = json.dumps(str(args.data.resolve()))
    recipe = override(load_config(RECIPE), [f"{name}_loader.args.data_dir={folder}" for name in ("train", "val")])
    configs = {name: override(recipe, list(NETWORKS[name])) for name in args.only}
    steps = planned_steps(args.out / "steps.json", configs, args.minutes)
    if args.measure:
        return 0
    members = {}
    for name in args.only:
        case = Case(name, VALIDATION, args.seed)
        changes = [*NETWORKS[name], f"trainer.max_steps={steps[name]}", "trainer.val_per_epochs=1000000"]
        members[case] = member(case, load_config(RECIPE), changes, args.data, args.out)
    folders = train_all(members, [*train_command(None, str(ROOT / "train.py")), "--config", str(RECIPE)])
    rates = speeds(configs)
    found = {case: came_to(folder) for case, folder in folders.items()}
    rows = []
    for case, outcome in found.items():
        rows.append(Figure(case.variant, "%", [outcome.mean], "mean IoU"))
        rows.append(Figure(case.variant, "M", [parameters(configs[case.variant])], "parameters"))
        rows.append(Figure(case.variant, "images/s", rates[case.variant], "480x360, one at a time"))
        rows.append(Figure(case.variant, "", [steps[case.variant]], "steps of 8 crops"))
    show(rows)
    if args.json and found:
        commit, device = made_by(found.values())
        title = f"CamVid from scratch, {args.minutes:g} minutes each"
        write("camvid_networks", title, rows, device=device, made_by=commit)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
