"""All that only a GPU can show, in less than ten minutes: `python -m benchmarks.gpu`.

    python -m benchmarks.gpu [--parts tests throughput ...] [--frames CAMVID] [--recipe [CONFIG]]
    python -m benchmarks.gpu --device cpu --quick       # tries all of it in small, without a GPU

tests           tests/test_gpu.py
throughput      training steps of whole networks by precision, layout and compilation, and their share of the roofline
losses          time and memory of losses, beside the same in ordinary operations
loader          images/s that a loader gives, and a network that trains from it
syncbn          batch norm over two processes, on one card by gloo, beside one process with the whole batch
precision       short trainings in fp32, bf16, fp16 and compiled, which should come to the same mean IoU
deterministic   what forbidding operations that differ from run to run costs
recipe          a whole training, only with --recipe; it may take longer

Each part is a process of its own that is ended when its minutes are over, and writes gpu_PART.json into
benchmarks/results/ (with --quick nowhere, or to --out). What fails is recorded with its line; the rest goes on. With
--frames, trainings are of CamVid, else of generated scenes. Where the code was copied without its repository, set
BENCHMARK_COMMIT. Ends with 1 if anything failed.

A part is a function of a module beside this one, which knows how to measure; here is when, for how long, and what
becomes of its figures.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import results
from benchmarks.all import kill_group
from benchmarks.gpu.loader import loader_part
from benchmarks.gpu.losses import losses_part
from benchmarks.gpu.record import LINE, Record, is_cuda
from benchmarks.gpu.suite import run_tests
from benchmarks.gpu.syncbn import syncbn
from benchmarks.gpu.throughput import deterministic_part, throughput
from benchmarks.gpu.trainings import precision_part, recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "configs" / "camvid.json"
LINES = 30  # of what a part that failed has said are shown
LAST = 0.8  # of a part's minutes; from then on no case is begun


class Part(NamedTuple):
    """What is measured by one process.

    Args:
        call: Measures it.
        minutes: After which it is ended.
        title: The head of its table.
    """

    call: Callable[[Record, argparse.Namespace], None]
    minutes: float
    title: str


PARTS = {
    "tests": Part(run_tests, 2.25, "the suite's tests for GPUs"),
    "throughput": Part(throughput, 2.75, "training steps"),
    "losses": Part(losses_part, 0.5, "losses, 64x64 logits to 512x512 labels, 4 images, forward and backward"),
    "loader": Part(loader_part, 0.75, "DeepLabV3+-R50 in bf16, channels last, fed by a loader"),
    "syncbn": Part(syncbn, 0.7, "batch norm over processes"),
    "precision": Part(precision_part, 2.25, "short trainings"),
    "deterministic": Part(deterministic_part, 0.5, "a step in bf16, channels last"),
    "recipe": Part(recipe, 30, "training"),
}


def run_part(name: str, flags: argparse.Namespace, folder: Path) -> dict[str, str]:
    """Run a part in a process of its own; returns what failed, from its file, where it may be the only thing."""
    path = folder / f"gpu_{name}.json"
    path.unlink(missing_ok=True)
    minutes = PARTS[name].minutes * (4 if flags.quick else 1)  # on whatever machine it is tried
    variables = {**os.environ, results.TO: str(folder), results.LATE: str(time.time() + LAST * 60 * minutes)}
    command = [sys.executable, "-m", "benchmarks.gpu", *words_of(flags), "--part", name]
    print(f"\n== {name}", flush=True)
    line = failure_of(command, variables, minutes)
    if not path.exists():
        results.write(f"gpu_{name}", PARTS[name].title, [], device=flags.device, folder=folder)
    content = results.read(f"gpu_{name}", folder)
    if line:
        print(f"{name}: FAILED: {line}", flush=True)
        content.setdefault("failed", {})[name] = line[:LINE]
        results.write_json(path, content)
    failed: dict[str, str] = content.get("failed", {})
    return failed


def words_of(flags: argparse.Namespace) -> list[str]:
    """Return what a part's process is to know of the command line."""
    words = ["--device", flags.device, *["--quick"] * flags.quick]
    words += ["--frames", str(flags.frames)] if flags.frames else []
    return [*words, "--recipe", str(flags.recipe)]


def failure_of(command: Sequence[str], variables: Mapping[str, str], minutes: float) -> str:
    """Run a command, and say how it failed; nothing if it did not.

    Args:
        command: Its words.
        variables: Its environment.
        minutes: After which it is ended, with all that it started.
    """
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=errors, start_new_session=True)
        try:
            status = process.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            return f"ended after {minutes:g} minutes"
        finally:
            kill_group(process.pid)
            process.wait()
        if not status:
            return ""
        errors.seek(0)
        said = [line.rstrip() for line in errors if line.strip()]
        print("\n".join(said[-LINES:]), flush=True)
        return f"ended with status {status}: {said[-1].strip() if said else ''}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "recipe"])
    add("--device", choices=("cuda", "cpu"), default="cuda", help="CUDA_VISIBLE_DEVICES says which GPU")
    add("--quick", action="store_true", help="try everything in small, and write nowhere")
    add("--frames", type=Path, metavar="CAMVID", help="folder of CamVid, with train/ and trainannot/")
    add("--recipe", type=Path, nargs="?", const=RECIPE, metavar="CONFIG", help="train it, too")
    add("--out", type=Path, metavar="DIR", help="write there instead of to benchmarks/results/")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.recipe and "recipe" not in flags.parts:
        flags.parts.append("recipe")
    flags.recipe = flags.recipe or RECIPE
    for name in ("frames", "recipe", "out"):
        if getattr(flags, name):
            setattr(flags, name, getattr(flags, name).resolve())
    if is_cuda(flags.device) and not torch.cuda.is_available():
        print("error: --device: no GPU is visible. Use --device cpu --quick to try it.", file=sys.stderr)
        return 2
    if flags.part:
        part = PARTS[flags.part]
        part.call(Record(flags.part, part.title, flags.device), flags)
        return 0
    return run_all(flags)


def run_all(flags: argparse.Namespace) -> int:
    """Run the parts one after the other, and write the pages' tables."""
    failed: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as trial:
        folder = flags.out or (Path(trial) if flags.quick else results.FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        for name in flags.parts:
            start = time.monotonic()
            found = run_part(name, flags, folder)
            failed |= {f"{name}, {what}": line for what, line in found.items()}
            print(f"{name}: {(time.monotonic() - start) / 60:.1f} of {PARTS[name].minutes:g} minutes", flush=True)
        if folder == results.FOLDER:
            results.main()
    for what, line in failed.items():
        print(f"FAILED: {what}: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
