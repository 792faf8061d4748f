"""The parts "precision" and "recipe" of benchmarks/gpu/: whole trainings by train.py.

Short ones in fp32, bf16, fp16 and compiled should come to the same mean IoU; a recipe takes as long as it takes.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu.record import Record, is_cuda
from benchmarks.results import Figure

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = 5.0  # points of mean IoU between short trainings; two of one kind differ by one or two
MODES = {
    "fp32": ("trainer.precision=fp32",),
    "bf16": ("trainer.precision=bf16",),
    "fp16": ("trainer.precision=fp16",),
    "bf16, compiled": ("trainer.precision=bf16", "trainer.compile=true"),
}
QUICK = ("fp32", "bf16")  # fp16 is for GPUs, and to compile takes a minute
LOADERS = ("train_loader", "val_loader")
TINY = (  # scenes, to try things out
    *(f"{loader}.args.size=[64,96]" for loader in LOADERS),
    "train_loader.args.length=16",
    "train_loader.args.crop_size=64",
    "val_loader.args.length=2",
)


def train(config: Path, flags: argparse.Namespace, *settings: str) -> tuple[float, float]:
    """Train; returns the best mean IoU of all validations, in percent, and the minutes from start to end.

    Args:
        config: The recipe.
        flags: Of the command line.
        settings: ``KEY=VALUE`` that replace what it says.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = [*settings, f"trainer.save_dir={folder}", f"trainer.log_dir={folder}", "trainer.tensorboard=false"]
        if flags.frames:
            chosen += [f"{loader}.args.data_dir={flags.frames}" for loader in LOADERS]
        command = [sys.executable, str(ROOT / "train.py"), "-c", str(config), "-d", flags.device]
        for setting in chosen:
            command += ["-s", setting]
        start = time.perf_counter()
        answer = subprocess.run(command, capture_output=True, text=True)
        minutes = (time.perf_counter() - start) / 60
        if answer.returncode:
            print(answer.stderr[-4000:], flush=True)
            lines = [line for line in answer.stderr.splitlines() if line.strip()]
            raise RuntimeError(f"train.py ended with {answer.returncode}: {lines[-1] if lines else ''}")
        (path,) = Path(folder).glob("*/*-*/metrics.jsonl")
        rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
    return 100 * max(row["val/Mean_IoU"] for row in rows if "val/Mean_IoU" in row), minutes


def precision_part(record: Record, flags: argparse.Namespace) -> None:
    """Train shortly in each arithmetic: config.json's scenes, or CamVid where it is given."""
    config = ROOT / ("configs/camvid.json" if flags.frames else "config.json")
    settings = settings_of(flags)
    reached: dict[str, float] = {}

    def row(mode: str) -> list[Figure]:
        value, minutes = train(config, flags, *settings, *MODES[mode])
        reached[mode] = value
        figures = [Figure(mode, "%", [value], "mean IoU"), Figure(mode, "minutes", [minutes], "time")]
        if mode != "fp32" and "fp32" in reached:
            apart = value - reached["fp32"]
            if abs(apart) > TOLERANCE:
                record.fail(mode, f"mean IoU {value:.1f} is {apart:+.1f} points from that in fp32")
            figures.insert(1, Figure(mode, "points", [apart], "minus fp32"))
        return figures

    for mode in QUICK if flags.quick else MODES:
        record.attempt(mode, functools.partial(row, mode))


def settings_of(flags: argparse.Namespace) -> list[str]:
    """Return how short trainings differ from their config."""
    if flags.quick:
        return [*epochs(1), "train_loader.args.num_workers=0", *([] if flags.frames else TINY)]
    workers = min(8, os.cpu_count() or 1) if is_cuda(flags.device) else 0
    return [*epochs(6 if flags.frames else 5), f"train_loader.args.num_workers={workers}"]


def epochs(count: int) -> list[str]:
    """Return the settings of a training of so many epochs, the last of which is validated."""
    # A number of steps would win over that of epochs.
    return ["trainer.max_steps=null", f"trainer.epochs={count}", f"trainer.val_per_epochs={count}"]


def recipe(record: Record, flags: argparse.Namespace) -> None:
    """Train the recipe as it is."""

    def row() -> list[Figure]:
        value, minutes = train(flags.recipe, flags, *(epochs(1) if flags.quick else []))
        name = flags.recipe.name
        return [Figure(name, "%", [value], "mean IoU"), Figure(name, "minutes", [minutes], "time")]

    record.attempt("recipe", row)
