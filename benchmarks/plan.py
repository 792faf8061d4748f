"""How good the config is that `prepare.py plan` writes, beside fixed recipes that get the same time.

    python -m benchmarks.plan --folder FOLDER [--minutes 15] [--datasets thin tiny ...] [--recipes plan init ...]

Eight data sets: generated ones of thin structures, tiny things, 20 classes, gray images and six channels, and CamVid as
it is, at a quarter of the length of its sides, and as road against the rest. The recipes are in `recipes.json`: "init"
is what `prepare.py init` wrote before there were plans, the others are four that somebody might take for everything.
Each trains for as many steps as fit into the time, as they were measured before, and is validated on whole images at
their own size. What FOLDER/measured.json has already is not measured again; `--json` writes the table from it. So a
folder is of one `--minutes` and one `--share`.

Where other programs keep the machine busy, `--busy` counts the time of the cores instead of that of the clock: runs
then take longer than `--minutes`, but all of them alike.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import scenes
from benchmarks.results import Figure, write
from dataloader.tools.init_config import propose
from dataloader.tools.planning import Wish, schedule
from dataloader.tools.recipe import MINUTES, Machine, Measured, choose_length
from engine.check import check_config
from engine.timing import measure, this_machine
from utils.config import dump_json, parse_json

ROOT = Path(__file__).resolve().parent.parent
RECIPES: dict[str, Any] = json.loads(Path(__file__).with_name("recipes.json").read_text(encoding="utf-8"))
DATASETS = (*scenes.GENERATED, *scenes.CAMVID)
OWN = ("data_dir", "channels", "masks", "classes", "void", "image_dir", "mask_dir", "split")  # what describes the data
COLORS = "color_jitter"


class Clock:
    """Measures configs as a plan does.

    Args:
        machine: This machine.
        busy: Count the time of the cores, shared by as many threads as torch has, not that of the clock.
    """

    def __init__(self, machine: Machine, busy: bool) -> None:
        self.machine = machine
        self.busy = busy

    def __call__(self, raw: Mapping[str, Any]) -> Measured | None:
        found = measure(raw, self.machine)
        if found is None or not self.busy:
            return found
        ratio = found.work / torch.get_num_threads() / found.step
        return replace(found, step=ratio * found.step, validation=ratio * found.validation)


def planned(folder: Path, name: str, minutes: float, clock: Clock) -> dict[str, Any]:
    """Return the config that a plan writes, as plain values."""
    names = None
    if name in scenes.CAMVID:
        count = 2 if name == "camvid_road" else scenes.VOID
        names = [f"class_{number}" for number in range(count)] + ["void"]
    wish = Wish(names, minutes, schema="")
    proposal = propose(folder / "images", folder / "masks", wish, clock.machine, clock)
    config = parse_json(proposal.text)
    config.pop("$schema")
    return {"config": config, "plan": proposal.plan}


def fixed(recipe: Mapping[str, Any], plan: Mapping[str, Any], minutes: float, clock: Clock) -> dict[str, Any]:
    """Return the config of a fixed recipe for the data that a plan was made for.

    Args:
        recipe: One of `RECIPES`.
        plan: From `planned`, for what describes the data.
        minutes: That training may take.
        clock: Measures a step.
    """
    fingerprint, given = plan["plan"]["fingerprint"], plan["config"]
    rarest = min(each["share"] for each in fingerprint["classes"] if each["share"] > 0)
    crop = [max(32, min(recipe["crop"], side) // 32 * 32) for side in fingerprint["median"]]
    sections = {}
    for key in ("train_loader", "val_loader"):
        section = given[key]
        args = {name: section["args"][name] for name in OWN if name in section["args"]}
        sections[key] = {"type": section["type"], "args": {**args, "num_workers": 0, "cache": "ram"}}
    sections["val_loader"]["args"]["batch_size"] = 1
    training = {"augment": True, "crop_size": crop, **recipe["loader"]}
    if fingerprint["channels"] != 3:
        training.pop(COLORS, None)
    sections["train_loader"]["args"] |= training
    arch = {**recipe["arch"], "args": {**recipe["arch"]["args"]}}
    if fingerprint["channels"] != 3:
        arch["args"]["in_channels"] = fingerprint["channels"]
    weighted = {"type": "CE_DiceLoss", "args": {"class_weights": "sqrt_inv"}}
    config = {
        "name": given["name"],
        "arch": arch,
        **sections,
        "normalization": given["normalization"],
        "optimizer": recipe["optimizer"],
        "loss": weighted if rarest < recipe.get("weights_if_rare", 0) else recipe["loss"],
        "lr_scheduler": {"type": "Poly", "args": {"warmup_epochs": 1}},
        "trainer": {"epochs": 1, "monitor": "max Mean_IoU", **recipe["trainer"]},
    }
    measured = clock(config)
    assert measured is not None, "it does not fit into memory"
    images, validated, batch = fingerprint["images"], fingerprint["validation"], training["batch_size"]
    length = choose_length(minutes, measured, images=images, batch=batch, validated=validated)
    config["trainer"] = {**length.trainer, "monitor": "max Mean_IoU", **recipe["trainer"]}
    config["lr_scheduler"] = schedule(length, max(1, images // batch))
    return config


def train(config: dict[str, Any], folder: Path, seed: int) -> dict[str, Any]:
    """Train and evaluate; returns mean IoU of whole images at their own size, minutes of training, commit and device.

    Args:
        config: The config.
        folder: Where runs of this data set and recipe lie.
        seed: Of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {**config, "seed": seed, "n_gpu": 0 if not torch.cuda.is_available() else 1}
    config["trainer"] = {**config["trainer"], "save_dir": str(folder / "saved"), "tensorboard": False}
    check_config(config)
    path = folder / f"config-{seed}.json"
    path.write_text(dump_json(config), encoding="utf-8")
    begun = time.monotonic()
    subprocess.run([sys.executable, ROOT / "train.py", "-c", path], check=True, stdout=subprocess.DEVNULL)
    minutes = (time.monotonic() - begun) / 60
    run = (folder / "saved" / config["name"] / "latest").resolve()
    output = folder / f"results-{seed}.json"
    output.unlink(missing_ok=True)
    # Without a mode, labels would be resized as they were in training, and figures of resized images be of others.
    command = [sys.executable, ROOT / "evaluate.py", "-m", run, "--mode", "single", "--output", output]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = json.loads(output.read_text(encoding="utf-8"))
    assert results["protocol"].get("labels") in (None, "native")
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    made_by = {key: environment[key] for key in ("git", "device")}
    return {"Mean_IoU": results["metrics"]["Mean_IoU"], "minutes": round(minutes, 2), **made_by}


def table(measured: Mapping[str, Any]) -> list[Figure]:
    """Make rows of all that was measured, and of what it was measured for."""
    figures = []
    for name, recipes in measured.items():
        for recipe, runs in recipes.items():
            values = [100 * run["Mean_IoU"] for run in runs.values()]
            figures.append(Figure(f"{name}: {recipe}", "% mean IoU", values))
    return figures


def summary(measured: Mapping[str, Any]) -> list[str]:
    """Say of each data set how plan does against the best fixed recipe and against init."""

    def mean(runs: Mapping[str, Any]) -> float:
        return 100 * sum(run["Mean_IoU"] for run in runs.values()) / len(runs)

    lines, gains = [], []
    for name, recipes in measured.items():
        found = {recipe: mean(runs) for recipe, runs in recipes.items()}
        others = {recipe: value for recipe, value in found.items() if recipe not in ("plan", "init")}
        if "plan" not in found:
            continue
        line = f"{name}: plan {found['plan']:.1f}"
        if others:
            best = max(others, key=lambda recipe: others[recipe])
            line += f", {best} {others[best]:.1f} ({found['plan'] - others[best]:+.1f})"
        if "init" in found:
            gains.append(found["plan"] - found["init"])
            line += f", init {found['init']:.1f} ({gains[-1]:+.1f})"
        lines.append(line)
    if gains:
        lines.append(f"on average {sum(gains) / len(gains):+.1f} points above init")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for data, runs and measured.json")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=list(DATASETS))
    parser.add_argument("--recipes", nargs="+", choices=("plan", *RECIPES), default=["plan", *RECIPES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--camvid", type=Path, default=Path("data/camvid"), help="with train, trainannot, val, valannot"
    )
    parser.add_argument("--share", type=float, default=1.0, help="of the images, to try things out")
    parser.add_argument("--busy", action="store_true", help="count the time of the cores, not that of the clock")
    parser.add_argument("--json", action="store_true", help="write the table to benchmarks/results/")
    arguments = parser.parse_args()
    if (problem := other_settings(arguments)) is not None:
        parser.error(problem)
    clock = Clock(this_machine(pretrained=False), arguments.busy)
    record = arguments.folder / "measured.json"
    measured = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    for name in arguments.datasets:
        for recipe in arguments.recipes:
            left = [seed for seed in arguments.seeds if str(seed) not in measured.get(name, {}).get(recipe, {})]
            for seed in left:
                config = config_of(name, recipe, arguments, clock)
                run = train(config, arguments.folder / "runs" / name / recipe, seed)
                measured.setdefault(name, {}).setdefault(recipe, {})[str(seed)] = run
                record.write_text(json.dumps(measured, indent=1), encoding="utf-8")
                print(f"{name}, {recipe}, seed {seed}: {run['Mean_IoU']:.4f} in {run['minutes']} minutes", flush=True)
    print("\n".join(summary(measured)))
    if arguments.json:
        runs = [run for recipes in measured.values() for seeds in recipes.values() for run in seeds.values()]
        commits = ", ".join(sorted({str(run["git"]) for run in runs if "git" in run}))
        device = max((run.get("device", "cpu") for run in runs), default="cpu")
        title = f"{arguments.minutes:g} minutes of training"
        write("plan", title, table(measured), device=device, made_by=commits or None)


def other_settings(arguments: argparse.Namespace) -> str | None:
    """Say what is different from what the folder was begun with, None if nothing is; a new folder keeps it."""
    wanted = {"minutes": arguments.minutes, "share": arguments.share}
    path = arguments.folder / "settings.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted), encoding="utf-8")
    begun = json.loads(path.read_text(encoding="utf-8"))
    for key, value in wanted.items():
        if begun[key] != value:
            return f"--folder: {arguments.folder} was begun with --{key} {begun[key]:g}. Use another."
    return None


def config_of(name: str, recipe: str, arguments: argparse.Namespace, clock: Clock) -> dict[str, Any]:
    """Make the config of a recipe for a data set, which is written where it is missing; both are kept."""
    data = arguments.folder / "data" / name
    if not (data / "complete").exists():
        scenes.write(name, data, arguments.camvid, arguments.share)
        (data / "complete").touch()
    path = arguments.folder / f"{name}.plan.json"
    if path.exists():
        plan = json.loads(path.read_text(encoding="utf-8"))
    else:
        plan = planned(data, name, arguments.minutes, clock)
        path.write_text(dump_json(plan), encoding="utf-8")
    return plan["config"] if recipe == "plan" else fixed(RECIPES[recipe], plan, arguments.minutes, clock)


if __name__ == "__main__":
    main()
