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
    from optuna import Study

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


def train(  # noqa: PLR0913  all but the first are named
    config: str | Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    batch_size: int | None = None,
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
        epochs: Length of the run: trainer.epochs, and no trainer.max_steps.
        lr: Learning rate: optimizer.args.lr.
        batch_size: Images in a step: train_loader.args.batch_size.
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

    listed = seeds if seeds is None or isinstance(seeds, int) else "".join(f"{seed}," for seed in seeds)
    words = flags(
        config=config,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        resume=resume,
        device=device,
        seeds=listed,
        folds=folds,
    )
    return command.train(command.parse([*words, *sets(overrides), *imports(modules)]))


def evaluate(  # noqa: PLR0913  all but the first are named
    model: str | Path | Sequence[str | Path],
    *,
    config: str | Path | None = None,
    device: str | None = None,
    precision: str | None = None,
    ensemble: bool = False,
    split: str | None = None,
    data_dir: str | Path | None = None,
    mode: str | None = None,
    native: bool = False,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    blend: str | None = None,
    fast: bool = False,
    batch_size: int = 1,
    metrics: Sequence[str] | None = None,
    output: str | Path | None = None,
    report: str | Path | None = None,
    modules: Sequence[str] = (),
) -> dict[str, Any]:
    """Measure a checkpoint, or several averaged; returns what ``evaluate.py --output`` writes.

    Args:
        model: Path of a checkpoint; of several with `ensemble`.
        config: As for `load`.
        device: As for `load`.
        precision: As for `load`; None for what validation in training did.
        ensemble: Average the logits of several models.
        split: Part of the dataset; None for what was validated on in training.
        data_dir: Where the dataset is, if not where it was in training.
        mode: Of prediction: "single", "multiscale", "sliding" or "center_crop"; None for what validation did.
        native: As for `load`.
        scales: Of mode "multiscale": factors of the size.
        flip: Average with the mirrored image too.
        window: Of mode "sliding": height and width of a window; None for training's crop.
        overlap: Of mode "sliding": share that windows have in common; None for 1/3.
        blend: Of mode "sliding": weights where windows overlap: "uniform", "linear" or "gaussian".
        fast: Of mode "multiscale": average at the resolution of the network's head.
        batch_size: Images of one size, or windows, at a time.
        metrics: Figures to report besides; None for those of training.
        output: Where to write the figures as JSON.
        report: Where to write a page that shows them, with pictures.
        modules: Modules with components of your own.

    Raises:
        UserError: Checkpoint and data do not fit together.
    """
    import evaluate as command

    models = [model] if isinstance(model, (str, Path)) else model
    words = flags(model=models, config=config, device=device, precision=precision, ensemble=ensemble, split=split)
    words += flags(data_dir=data_dir, mode=mode, native=native, scales=scales, flip=flip, window=window)
    words += flags(overlap=overlap, blend=blend, fast=fast, batch_size=batch_size, metrics=metrics)
    words += [*flags(output=output, report=report), *imports(modules)]
    return command.evaluate(command.parse(words), ["evaluate.py", *words])


def predict(  # noqa: PLR0913  all but the first two are named
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    output: str | Path = "outputs",
    extension: str = "any",
    recursive: bool = False,
    config: str | Path | None = None,
    device: str | None = None,
    precision: str = "fp32",
    mode: str = "single",
    native: bool = False,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    window: tuple[int, int] | None = None,
    overlap: float | None = None,
    blend: str | None = None,
    fast: bool = False,
    batch_size: int = 1,
    save: str = "color",
    modules: Sequence[str] = (),
) -> Path:
    """Predict the images of files and folders, and return the folder of the results; arrays are for `load`.

    Images that cannot be used are left out, and listed on standard error.

    Args:
        model: Path of a checkpoint.
        images: Files, folders or patterns.
        output: Folder to write to.
        extension: Endings of images in a folder: "jpg,png", or "any".
        recursive: Take the files in nested folders too.
        config: As for `load`.
        device: As for `load`.
        precision: As for `load`.
        mode: Of prediction: "single", "multiscale" or "sliding".
        native: As for `load`.
        scales: As for `evaluate`.
        flip: As for `evaluate`.
        window: As for `evaluate`.
        overlap: As for `evaluate`.
        blend: As for `evaluate`.
        fast: As for `evaluate`.
        batch_size: As for `evaluate`.
        save: What to write, of "color,index,overlay,probability,probabilities".
        modules: Modules with components of your own.

    Raises:
        UserError: Arguments, checkpoint and images do not fit together.
    """
    import inference as command

    files = [images] if isinstance(images, (str, Path)) else images
    words = flags(model=model, images=files, output=output, extension=extension, recursive=recursive, config=config)
    words += flags(device=device, precision=precision, mode=mode, native=native, scales=scales, flip=flip)
    words += flags(window=window, overlap=overlap, blend=blend, fast=fast, batch_size=batch_size, save=save)
    command.predict(command.parse([*words, *imports(modules)]))
    return Path(output)


def export(  # noqa: PLR0913  all but the first are named
    model: str | Path,
    *,
    output: str | Path | None = None,
    format: str | None = None,
    outputs: str = "labels",
    size: tuple[int, int] | None = None,
    int8: bool = False,
    half: bool = False,
    calibrate: str | Path | None = None,
    data_dir: str | Path | None = None,
    modules: Sequence[str] = (),
) -> Path:
    """Make a checkpoint a file for other programs, compare both, and return the file's path.

    It ends in ``.unproven`` where the file predicts something else than the checkpoint.

    Args:
        model: Path of a checkpoint.
        output: File to write; None for one beside the checkpoint.
        format: "onnx", "torch" or "safetensors"; None for what the ending of `output` says, or "onnx".
        outputs: What the graph gives, of "labels,confidence,logits".
        size: Height and width of the only images to take; None for any.
        int8: Compute with 8-bit numbers.
        half: Write weights as 16-bit numbers.
        calibrate: Folder of images that show which numbers occur, for `int8`.
        data_dir: Where the dataset is, if not where it was in training.
        modules: Modules with components of your own.

    Raises:
        UserError: Arguments, checkpoint and images do not fit together.
    """
    import export as command

    words = flags(model=model, output=output, format=format, outputs=outputs, size=size, int8=int8)
    words += flags(half=half, calibrate=calibrate, data_dir=data_dir)
    job, made = command.export(command.parse([*words, *imports(modules)]))
    command.report(job, made)
    return made.path


def report(folder: str | Path = "saved") -> Path:
    """Write the page that compares the runs in a folder, or one run's report anew, and return its path.

    Args:
        folder: Of runs, or of one run.

    Raises:
        DataError: There is no folder, or no report in it.
    """
    import report as command

    path, _ = command.report(command.parse([str(folder)]))
    return path


def sweep(
    space: str | Path,
    *,
    config: str | Path = "config.json",
    overrides: Mapping[str, Any] | None = None,
    trials: int = 20,
    seed: int = 0,
    device: str | None = None,
    modules: Sequence[str] = (),
) -> Study:
    """Search the best settings of a config, and return optuna's study: ``sweep("space.json").best_params``.

    Args:
        space: JSON file: what to search, by dotted key.
        config: Path of a config, or the name of a preset.
        overrides: As for `train`, in all trials.
        trials: How many runs in all.
        seed: Decides what is tried.
        device: As for `load`.
        modules: Modules with components of your own.

    Raises:
        UserError: Config and space do not fit together.
    """
    import sweep as command

    words = flags(space=space, config=config, trials=trials, seed=seed, device=device)
    return command.sweep(command.parse([*words, *sets(overrides), *imports(modules)]))


def flags(**values: Any) -> list[str]:
    """Spell arguments as on a command line: None and False are left out, True is the flag alone."""
    words = []
    for name, value in values.items():
        if value is None or value is False:
            continue
        words.append(f"--{name.replace('_', '-')}")
        if value is not True:
            words += map(str, value if isinstance(value, (list, tuple)) else [value])
    return words


def sets(overrides: Mapping[str, Any] | None) -> list[str]:
    """Spell values by dotted key as ``--set`` takes them."""
    return [word for key, value in (overrides or {}).items() for word in ("--set", f"{key}={json.dumps(value)}")]


def imports(modules: Sequence[str]) -> list[str]:
    """Spell names of modules as ``--import`` takes them."""
    return [word for name in modules for word in ("--import", name)]


def usage() -> str:
    """Say which commands there are."""
    commands = [f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: segwright COMMAND [options]", "", *ABOUT, "", "commands:", *commands, "", *ENDING])


ABOUT = ["Train semantic segmentation from one JSON file."]
ENDING = [
    "`segwright COMMAND --help` tells the options of a command.",
    "",
    "examples:",
    "  # write a config for your own images and masks, and train it",
    "  segwright prepare init --images mydata/images --masks mydata/masks",
    "  segwright train mydata.json",
    "",
    "read on: docs/tutorial.md, docs/faq.md",
]


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
