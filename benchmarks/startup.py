"""How long commands take to start: help, a mistake, a check, and training up to and with its first step.

    python benchmarks/startup.py [--rounds 5] [--configs config.json configs/camvid.json] [--json]

Seconds of processor time of fresh processes, by turns, beside what the imports of torch, torchvision and OpenCV take
alone. The first step of a config is taken on generated scenes, as no data is at hand, at the batch and crop of the
config; "up to" it is everything before, on images of 32x32.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.results import Figure, by_turns, show, write
from utils.config import load_config

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = (ROOT / "config.json", ROOT / "configs" / "camvid.json")  # whose first steps a CPU takes in seconds
IMPORTS = "import torch, torchvision, cv2"
UNTIL_FIT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import base.base_trainer, train
base.base_trainer.BaseTrainer.fit = lambda trainer: os._exit(0)
sys.exit(train.main(sys.argv[1:]))
"""


def tiny_run(folder: Path, config: Path, *, size: Sequence[int] | None = None) -> Path:
    """Write a config that takes one step of the network of `config` on generated scenes, and no more.

    Args:
        folder: Where to; its runs go there too.
        config: The config.
        size: Height and width of the crops; None for those of the config, and its batch.
    """
    raw = load_config(config)
    args = raw["train_loader"]["args"]
    crop = size or args["crop_size"]
    height, width = crop if not isinstance(crop, int) else (crop, crop)
    batch = 4 if size else args["batch_size"]
    loader = {"split": "train", "length": batch, "size": [height, width], "batch_size": batch, "num_workers": 0}
    loader |= {"augment": True, "crop_size": [height, width], "base_size": max(height, width)}
    raw["train_loader"] = {"type": "Synthetic", "args": loader}
    raw["arch"] = without_weights(raw["arch"])
    raw |= {"val_loader": None, "n_gpu": 0}
    raw["trainer"] |= {"max_steps": 1, "val": False, "monitor": "off", "precision": "fp32"}
    raw["trainer"] |= {"save_dir": str(folder), "log_dir": str(folder)}
    raw["trainer"].pop("epochs", None)
    path = folder / f"{config.stem}{'-tiny' if size else ''}.json"
    path.write_text(json.dumps(raw))
    return path


def without_weights(arch: Any) -> dict[str, Any]:
    """The network, from random numbers: nothing is downloaded."""
    kind = {"type": arch, "args": {}} if isinstance(arch, str) else arch
    return {**kind, "args": {**kind.get("args", {}), "pretrained": False}}


def commands(folder: Path, configs: Sequence[Path]) -> dict[str, list[str]]:
    """What is started, by name."""
    bad = folder / "bad.json"
    bad.write_text('{"name": }')
    tiny = str(tiny_run(folder, CONFIGS[0], size=(32, 32)))
    train = [sys.executable, str(ROOT / "train.py")]
    found = {
        "python -c pass": [sys.executable, "-c", "pass"],
        "train.py --help": [*train, "--help"],
        "train.py, bad JSON": [*train, "-c", str(bad)],
        "import torch": [sys.executable, "-c", "import torch"],
        IMPORTS: [sys.executable, "-c", IMPORTS],
        "import segwright": [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import segwright"],
        "train.py --check": [*train, "-c", tiny, "--check"],
        "train.py up to its first step": [sys.executable, "-c", UNTIL_FIT, "-c", tiny],
        "train.py, one step, no TensorBoard": [*train, "-c", tiny, "-s", "trainer.tensorboard=false"],
        "train.py, one step, TensorBoard": [*train, "-c", tiny],
    }
    if configs:
        found["config.json: --check of it as it is"] = [*train, "-c", str(CONFIGS[0]), "--check"]
    for config in configs:
        name = config.relative_to(ROOT).as_posix()
        found[f"{name}: to the end of its first step"] = [*train, "-c", str(tiny_run(folder, config))]
    return found


def seconds_of(name: str, command: Sequence[str]) -> Callable[[], float]:
    """What measures the processor time of a command.

    Raises:
        RuntimeError: It failed; mistakes may.
    """

    def run() -> float:
        before = sum(os.times()[2:4])  # of processes that have ended
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode and "bad" not in name:
            raise RuntimeError(f"{name}: ended with {done.returncode}: {done.stderr[-500:]}")
        return sum(os.times()[2:4]) - before

    return run


def measure(rounds: int, configs: Sequence[Path]) -> list[Figure]:
    """Seconds of every command, and what the first step takes beyond the imports."""
    with tempfile.TemporaryDirectory() as name:
        cases = {what: seconds_of(what, command) for what, command in commands(Path(name), configs).items()}
        times = by_turns(cases, rounds)
    figures = [Figure(what, "s", values) for what, values in times.items()]
    first = "train.py up to its first step"
    beyond = [a - b for a, b in zip(times[first], times[IMPORTS], strict=True)]
    return show([*figures, Figure(f"{first} - {IMPORTS}", "s", beyond)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--configs", type=Path, nargs="*", default=CONFIGS)
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    flags = parser.parse_args()
    figures = measure(flags.rounds, [path.resolve() for path in flags.configs])
    if flags.json:
        write("startup", "commands in fresh processes; processor time", figures)


if __name__ == "__main__":
    main()
