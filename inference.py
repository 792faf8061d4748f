"""Predict images with a trained model: ``python inference.py --model best_model.pth --images folder``.

The checkpoint describes itself; neither its config nor its dataset is needed. In Python:
``from inference import load; labels = load("best_model.pth").predict("image.jpg")``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import load_config
from utils.devices import choose_device, restrict_gpus
from utils.errors import ArgumentParser, ConfigError, DataError, Stopped, UserError, one_line, run

if TYPE_CHECKING:
    import argparse

    import numpy as np

    from utils.classes import ClassTable
    from utils.predict import Predictor

KINDS = ("color", "index", "overlay")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="inference.py", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("-m", "--model", type=Path, required=True, metavar="CKPT", help="checkpoint, such as best_model.pth")
    add("-c", "--config", type=Path, metavar="FILE", help="config of the model, if the file holds bare weights")
    add("-i", "--images", required=True, metavar="FILE|DIR|GLOB", help="images to predict")
    add("-o", "--output", type=Path, default=Path("outputs"), metavar="DIR", help="where to write (default: outputs)")
    add("-e", "--extension", default="any", help="endings of images in a folder: jpg,png, or any (default)")
    add("-mo", "--mode", choices=["single"], default="single", help="single: the whole image at its own size")
    add("--save", default="color", help=f"what to write, of {','.join(KINDS)} (default: color)")
    add("-d", "--device", help="GPU such as 0, or cpu, cuda, mps")
    add("--precision", choices=["fp32", "bf16", "fp16", "auto"], default="fp32", help="arithmetic (default: fp32)")
    add("--import", dest="modules", action="append", default=[], metavar="MODULE", help="module with own components")
    add("--debug", action="store_true", help="show tracebacks of user errors too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    restrict_gpus(args.device)
    wanted = [kind.strip() for kind in args.save.split(",")]
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UserError(f"--save {unknown[0]}: unknown. Choose from {', '.join(KINDS)}.")

    from tqdm import tqdm

    from utils.find_images import find_images, output_names
    from utils.images import read_image

    paths = find_images(args.images, args.extension)
    predictor = load(args.model, config=args.config, device=args.device, precision=args.precision, modules=args.modules)
    names = output_names(paths)
    check_targets(paths, [target for name in names for target in targets(args.output, name, wanted).values()])
    make_folder(args.output)
    broken: list[str] = []
    for path, name in zip(tqdm(paths, unit="image", disable=None), names, strict=True):
        try:
            image = read_image(path)
        except DataError as error:
            broken += error.problems
            continue
        write(targets(args.output, name, wanted), image, predictor.predict_image(image), predictor.classes)
    for line in broken:
        print(f"not predicted: {one_line(line)}", file=sys.stderr)
    print(f"{len(paths) - len(broken)} of {len(paths)} images predicted, in {args.output}")
    return 3 if broken else 0


def load(
    model: str | Path,
    *,
    config: str | Path | None = None,
    device: str | None = None,
    precision: str = "fp32",
    modules: Sequence[str] = (),
) -> Predictor:
    """The model in a checkpoint, ready to predict; for notebooks and scripts.

    Args:
        model: Path of a checkpoint.
        config: Path of the config that describes the model, if the file holds bare weights.
        device: GPU such as ``"0"``, or ``"cpu"``, ``"cuda"``, ``"mps"``; None takes a GPU if there is one.
        precision: Arithmetic: fp32, bf16, fp16, or auto.
        modules: Modules with components of your own that the model uses.

    Raises:
        CheckpointError: The file cannot be used.
    """
    import assemble
    from run_config import check_config
    from utils.log import log_to

    log_to()
    names = assemble.import_modules(modules)
    described = check_config(load_config(Path(config))) if config is not None else None
    return assemble.load_predictor(
        Path(model), choose_device(device), precision=precision, modules=names, config=described
    )


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
    """The file to write for each kind; with more than one kind, each has its name in the file's."""
    return {kind: folder / (f"{name}.png" if len(wanted) == 1 else f"{name}_{kind}.png") for kind in wanted}


def check_targets(images: Sequence[Path], files: Sequence[Path]) -> None:
    """Refuse to write over what is to be predicted.

    Raises:
        ConfigError: An output would replace an image.
    """
    inputs = {path.resolve() for path in images}
    if lost := [path for path in files if path.exists() and path.resolve() in inputs]:
        raise ConfigError(f"--output {lost[0].parent}: would replace {lost[0]}, an image. Name another folder.")


def write(files: Mapping[str, Path], image: np.ndarray, labels: np.ndarray, classes: ClassTable) -> None:
    """Write a prediction in each wanted kind.

    Raises:
        Stopped: A file cannot be written.
    """
    import cv2
    import numpy as np

    from utils.images import write_label
    from utils.visualize import overlay, png_palette

    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for kind, path in files.items():
        try:
            if kind == "overlay":
                picture = cv2.cvtColor(overlay(image, labels, classes), cv2.COLOR_RGB2BGR)
                path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
            else:
                write_label(path, labels, png_palette(classes) if kind == "color" else gray)
        except OSError as error:
            raise Stopped(
                f"{path}: cannot be written ({error.strerror}). Free some space, or name another --output."
            ) from None


if __name__ == "__main__":
    sys.exit(run(main))
