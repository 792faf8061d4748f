"""Segwright from Python and the command line: ``segwright.load(CKPT).predict(image)``, ``segwright train -c my.json``.

The commands are the scripts beside this file; this is the one door to all of them. Nothing heavy is imported before it
is known what is asked for.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.version import VERSION

if TYPE_CHECKING:
    from utils.predict import Predictor

__version__ = VERSION

# Command, the script that it runs, what it does.
COMMANDS = {
    "train": ("train", "train a model from one JSON file"),
    "evaluate": ("evaluate", "measure a checkpoint on a split of its dataset"),
    "predict": ("inference", "predict images with a checkpoint"),
    "export": ("export", "write a checkpoint as ONNX, torch.export or safetensors"),
    "report": ("report", "draw the reports of runs and the page that compares them"),
    "sweep": ("sweep", "search the best settings of a config"),
    "prepare": ("prepare", "download, check and describe data; write a config for your own"),
}


def load(
    model: str | Path,
    *,
    config: str | Path | None = None,
    device: str | None = None,
    precision: str = "fp32",
    modules: Sequence[str] = (),
    native: bool = False,
) -> Predictor:
    """Load the model in a checkpoint, ready to predict: ``load("best_model.pth").predict("image.jpg")``.

    Args:
        model: Path of a checkpoint.
        config: Path of the config that describes the model, if the file holds bare weights.
        device: GPU such as ``"0"``, or ``"cpu"``, ``"cuda"``, ``"mps"``; None takes a GPU if there is one.
        precision: Arithmetic: fp32, bf16, fp16, or auto.
        modules: Modules with components of your own that the model uses.
        native: Predict images at their own size, also where validation resized them.

    Raises:
        CheckpointError: The file cannot be used.
    """
    import inference

    return inference.load(model, config=config, device=device, precision=precision, modules=modules, native=native)


def train(
    config: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    resume: str | Path | None = None,
    device: str | None = None,
    modules: Sequence[str] = (),
    seeds: int | Sequence[int] | None = None,
    folds: int | None = None,
) -> Path:
    """Train as a config says, in this process, and return the folder of the run.

    With `seeds` or `folds`, each run has a process of its own, and the folder is that of all, with their summary.json.

    Args:
        config: Path of a config, or the name of a preset.
        overrides: Values by dotted key, as ``--set`` takes them: ``{"trainer.epochs": 3}``.
        resume: Checkpoint to go on from, or ``"auto"``.
        device: As for `load`.
        modules: Modules with components of your own.
        seeds: Train once with each of so many seeds, or of these.
        folds: Cross-validate: train so many times, each with another part of the training set held out.

    Raises:
        UserError: Config, data or checkpoint do not fit together.
        Stopped: The machine or a NaN ended the training.
    """
    import train as command

    arguments = ["--config", str(config)]
    for key, value in (overrides or {}).items():
        arguments += ["--set", f"{key}={json.dumps(value)}"]
    listed = seeds if seeds is None or isinstance(seeds, int) else ",".join(map(str, seeds))
    for flag, given in (("--resume", resume), ("--device", device), ("--seeds", listed), ("--folds", folds)):
        arguments += [flag, str(given)] if given is not None else []
    for name in modules:
        arguments += ["--import", name]
    return command.train(command.parse(arguments))


def evaluate(
    model: str | Path,
    *,
    split: str | None = None,
    data_dir: str | Path | None = None,
    mode: str | None = None,
    device: str | None = None,
    modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a checkpoint; returns what ``evaluate.py --output`` writes.

    Args:
        model: Path of a checkpoint.
        split: Part of the dataset; None for what was validated on in training.
        data_dir: Where the dataset is, if not where it was in training.
        mode: Of prediction: "single", "multiscale", "sliding" or "center_crop"; None for what validation did.
        device: As for `load`.
        modules: Modules with components of your own.

    Raises:
        UserError: Checkpoint and data do not fit together.
    """
    import evaluate as command

    arguments = ["--model", str(model)]
    flags = {"--mode": mode, "--split": split, "--data-dir": data_dir, "--device": device}
    for flag, given in flags.items():
        arguments += [flag, str(given)] if given is not None else []
    for name in modules:
        arguments += ["--import", name]
    return command.evaluate(command.parse(arguments))


def usage() -> str:
    """Say which commands there are."""
    lines = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: segwright COMMAND ...",
            "",
            "Train semantic segmentation from one JSON file.",
            "",
            *lines,
            "",
            "`segwright COMMAND --help` tells its flags. Begin with `segwright prepare init --images DIR --masks DIR`.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, with the words after it."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        print(f"segwright {__version__}")
        return 0
    if words[0] not in COMMANDS:
        print(f"error: {words[0]}: no such command. Choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    script = COMMANDS[words[0]][0]
    # In the wheel this module is a package, and the scripts live below it; in the repository it lies beside them.
    name = f"{__name__}.commands.{script}" if hasattr(sys.modules[__name__], "__path__") else script
    if argv is None:  # what is recorded as the command line of a run
        sys.argv = [f"segwright {words[0]}", *words[1:]]
    from utils.errors import run

    return run(importlib.import_module(name).main, words[1:])


if __name__ == "__main__":
    sys.exit(main())
