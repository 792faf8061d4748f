"""Predict images with a trained model: ``python inference.py --model best_model.pth --images folder``.

The checkpoint describes itself; neither its config nor its dataset is needed. In Python:
``from inference import load; labels = load("best_model.pth").predict("image.jpg")``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import load_config
from utils.devices import choose_device, restrict_gpus
from utils.errors import ArgumentParser, ConfigError, DataError, Stopped, UserError, failure_of_machine, one_line, run
from utils.prediction_flags import add_flags, add_model_flags, tta_from_args

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from utils.predict import Predictor

LEGEND = "_legend"  # name of the picture that says which color is which class
KINDS = ("color", "index", "overlay", "probability", "probabilities")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="inference.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add_model_flags(parser)
    add("-i", "--images", required=True, metavar="FILE|DIR|GLOB", help="images to predict")
    add("-o", "--output", type=Path, default=Path("outputs"), metavar="DIR", help="where to write (default: outputs)")
    add("-e", "--extension", default="any", help="endings of images in a folder: jpg,png, or any (default)")
    add_flags(parser, ["single", "multiscale", "sliding"], default="single")
    add("--save", default="color", help=f"what to write, of {','.join(KINDS)} (default: color)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    restrict_gpus(args.device)
    wanted = [kind.strip() for kind in args.save.split(",")]
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UserError(f"--save {unknown[0]}: unknown. Choose from {', '.join(KINDS)}.")

    from utils.find_images import find_images, output_names

    paths = find_images(args.images, args.extension)
    predictor = load(
        args.model,
        config=args.config,
        device=args.device,
        precision=args.precision,
        modules=args.modules,
        native=args.native,
    )
    predictor.tta = tta_from_args(args, predictor.about)
    names = output_names(paths)
    files = [targets(args.output, name, wanted) for name in names]
    check_targets(paths, files)
    make_folder(args.output)
    broken = predict_files(predictor, paths, files)
    if {"color", "overlay"} & set(wanted) and len(broken) < len(paths) and LEGEND not in names:
        write_legend(args.output / f"{LEGEND}.png", predictor)
    for line in broken:
        print(f"not predicted: {one_line(line)}", file=sys.stderr)
    print(f"{len(paths) - len(broken)} of {len(paths)} images predicted, in {args.output}")
    return 3 if broken else 0


def predict_files(predictor: Predictor, paths: Sequence[Path], files: Sequence[Mapping[str, Path]]) -> list[str]:
    """Predict each of `paths` into its `files`; returns what was wrong with those that could not be, a line each.

    Raises:
        Stopped: A file cannot be written.
    """
    from tqdm import tqdm

    broken: list[str] = []
    for path, wanted in zip(tqdm(paths, unit="image", disable=None), files, strict=True):
        try:
            write(wanted, predictor.read(path), predictor)
        except DataError as error:
            broken += error.problems
        except (MemoryError, RuntimeError) as error:
            failure = failure_of_machine(error)
            if not failure:
                raise
            broken.append(f"{path}: {failure}. Use --mode sliding with a smaller --window.")
    return broken


def write_legend(path: Path, predictor: Predictor) -> None:
    """Write the picture that says which color is which class.

    Raises:
        Stopped: It cannot be written.
    """
    from utils.images import write_picture
    from utils.visualize import legend

    with writing(path):
        write_picture(path, legend(predictor.classes))


def load(
    model: str | Path,
    *,
    config: str | Path | None = None,
    device: str | None = None,
    precision: str = "fp32",
    modules: Sequence[str] = (),
    native: bool = False,
) -> Predictor:
    """Load the model in a checkpoint, ready to predict; for notebooks and scripts.

    Args:
        model: Path of a checkpoint or of the folder of a run, whose best model is taken.
        config: Path of the config that describes the model, if the file holds bare weights.
        device: GPU such as ``"0"``, or ``"cpu"``, ``"cuda"``, ``"mps"``; None takes a GPU if there is one.
        precision: Arithmetic: fp32, bf16, fp16, or auto.
        modules: Modules with components of your own that the model uses.
        native: Predict images at their own size, also where validation resized them.

    Raises:
        CheckpointError: The file cannot be used.
    """
    from dataloader.transforms.preparation import read_preparation
    from engine import assemble
    from engine.check import check_config
    from utils import plugins
    from utils.log import log_to
    from utils.run_folder import find_model

    log_to()
    names = plugins.import_modules(modules)
    path = find_model(model)
    described = check_config(load_config(Path(config))) if config is not None else None
    predictor = assemble.load_predictor(
        path, choose_device(device), precision=precision, modules=names, config=described
    )
    preparation = read_preparation(predictor.about)
    if preparation and not native:
        predictor.prepare = preparation
    return predictor


def make_folder(path: Path) -> None:
    """Make the output folder.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"--output {path}: cannot be made ({reason}). Name another folder.") from None


def targets(folder: Path, name: str, wanted: Sequence[str]) -> dict[str, Path]:
    """Name the file to write for each kind; with more than one kind, each has its name in the file's."""
    files = {}
    for kind in wanted:
        stem = name if len(wanted) == 1 else f"{name}_{kind}"
        ending = "npz" if kind == "probabilities" else "png"
        files[kind] = folder / f"{stem}.{ending}"
    return files


def check_targets(images: Sequence[Path], files: Sequence[Mapping[str, Path]]) -> None:
    """Refuse to write over what is to be predicted.

    Args:
        images: What is to be predicted.
        files: For each, the file to write for each kind.

    Raises:
        ConfigError: An output would replace an image.
    """
    inputs = {path.resolve() for path in images}
    for wanted in files:
        for path in wanted.values():
            if path.exists() and path.resolve() in inputs:
                raise ConfigError(f"--output {path.parent}: would replace {path}, an image. Name another folder.")


def write(files: Mapping[str, Path], image: np.ndarray, predictor: Predictor) -> None:
    """Predict an image and write it in each wanted kind.

    Args:
        files: Path for each kind: "color" and "index" are label maps with the classes' colors or gray values as
            palette, "overlay" is color over the image, "probability" the winning class's from 0 to 255, and
            "probabilities" those of all classes, (C, H, W) float16.
        image: (H, W, C) uint8.
        predictor: What predicts.

    Raises:
        Stopped: A file cannot be written.
    """
    import numpy as np

    from utils.images import write_label, write_picture
    from utils.visualize import overlay, png_palette

    classes, labels = predictor.classes, predictor.predict_image(image)
    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    shares = predictor.probabilities(image) if {"probability", "probabilities"} & set(files) else None
    for kind, path in files.items():
        with writing(path):
            if kind == "overlay":
                write_picture(path, overlay(image, labels, classes))
            elif shares is not None and kind == "probability":
                write_label(path, np.rint(255 * shares.max(axis=0)).astype(np.uint8), gray)
            elif shares is not None and kind == "probabilities":
                np.savez_compressed(path, probabilities=shares.astype(np.float16))
            else:
                write_label(path, labels, png_palette(classes) if kind == "color" else gray)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say of an output file that cannot be written which one it is.

    Raises:
        Stopped: It cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise Stopped(
            f"{path}: cannot be written ({error.strerror}). Free some space, or name another --output."
        ) from None


if __name__ == "__main__":
    sys.exit(run(main))
