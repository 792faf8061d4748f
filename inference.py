"""Predict images with a trained model: ``python inference.py --model best_model.pth --images folder``.

The checkpoint describes itself; neither its config nor its dataset is needed. In Python:
``from inference import load; labels = load("best_model.pth").predict("image.jpg")``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import load_config
from utils.devices import choose_device, restrict_gpus
from utils.errors import ArgumentParser, ConfigError, DataError, UserError, run

if TYPE_CHECKING:
    import argparse

    import numpy as np

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
    make_folder(args.output)
    broken: list[str] = []
    for path, name in zip(tqdm(paths, unit="image", disable=None), output_names(paths), strict=True):
        try:
            image = read_image(path)
        except DataError as error:
            broken += error.problems
            continue
        write(args.output, name, image, predictor.predict_image(image), predictor, wanted)
    for line in broken:
        print(f"not predicted: {line}", file=sys.stderr)
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
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot be made ({error.strerror}). Name another folder.") from None


def write(
    folder: Path, name: str, image: np.ndarray, labels: np.ndarray, predictor: Predictor, wanted: Sequence[str]
) -> None:
    """Write what is `wanted` of a prediction; with more than one kind, each has its name in the file's."""
    import cv2
    import numpy as np

    from utils.images import write_label
    from utils.visualize import overlay, png_palette

    gray = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for kind in wanted:
        path = folder / (f"{name}.png" if len(wanted) == 1 else f"{name}_{kind}.png")
        if kind == "overlay":
            cv2.imwrite(str(path), cv2.cvtColor(overlay(image, labels, predictor.classes), cv2.COLOR_RGB2BGR))
        else:
            write_label(path, labels, png_palette(predictor.classes) if kind == "color" else gray)


if __name__ == "__main__":
    sys.exit(run(main))
