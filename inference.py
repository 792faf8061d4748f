"""Predict images with a trained model: ``python inference.py --model best_model.pth --images folder``.

The checkpoint describes itself; neither its config nor its dataset is needed. In Python:
``from inference import load; labels = load("best_model.pth").predict("image.jpg")``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import load_config
from utils.devices import choose_device, restrict_gpus
from utils.errors import ConfigError, UserError, one_line, run
from utils.flags import CommandParser, add_shared, program
from utils.prediction_flags import TIES, add_flags, add_model_flags, tta_from_args

if TYPE_CHECKING:
    import argparse

    from utils.predict import Predictor

SHARED = {"coco": "coco.json", "cvat": "cvat.xml", "labelstudio": "labelstudio.json"}  # one file for all images
KINDS = ("color", "index", "overlay", "probability", "probabilities", "labelme", *SHARED)
ENDINGS = {"probabilities": "npz", "labelme": "json"}
WITHOUT_PLACE = (
    "its place on the map is lost, and pixels without data are predicted. `pip install tifffile` keeps both."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("inference"),
        usage="-m CKPT -i PATH",
        description="Predict images with a trained model. Neither its config nor its dataset is needed.",
        examples=[
            ("-m saved/mydata/latest -i photos", "color maps of a folder's images, into outputs/"),
            ("-m best.pth -i photo.jpg -o maps --save index,overlay", "labels, and the image under them"),
            ('-m best.pth -i "city/*.tif" -mo sliding --flip', "large images, in windows"),
        ],
        pages=["howto/deployment.md", "howto/large-images.md"],
    )
    add_model_flags(parser)
    group = parser.add_argument_group("images")
    add_shared(group, "--images", " to predict, or films", required=True, nargs="+", metavar="FILE|DIR|GLOB")
    add = group.add_argument
    add("-e", "--extension", default="any", metavar="EXT,...", help="endings in a folder: jpg,png, or any (default)")
    add_shared(group, "--recursive", "; outputs keep those folders")
    add_flags(parser, ["single", "multiscale", "sliding"], default="single")
    group = parser.add_argument_group("result")
    add_shared(group, "--output", " (default: outputs)", default=Path("outputs"), metavar="DIR")
    shown = f"what to write, of {', '.join(KINDS)} (default: color)"
    group.add_argument("--save", default="color", metavar="KIND,...", help=shown)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    return 3 if predict(parse(argv)) else 0


def predict(args: argparse.Namespace) -> list[str]:
    """Predict and write what `args`, from `parse`, ask for; returns a line for each image that could not be predicted.

    Raises:
        UserError: Flags, checkpoint and images do not fit together.
    """
    restrict_gpus(args.device)
    wanted = [kind.strip() for kind in args.save.split(",")]
    if unknown := [kind for kind in wanted if kind not in KINDS]:
        raise UserError(f"--save {unknown[0]}: unknown. Choose from {', '.join(KINDS)}.")

    from engine.exporting.read import check_use
    from utils.find_images import find_images, is_film

    found = find_images(args.images, args.extension, recursive=args.recursive, leave_out=args.output)
    predictor = load(
        args.model,
        config=args.config,
        device=args.device,
        precision=args.precision,
        modules=args.modules,
        native=args.native,
    )
    predictor.tta = tta_from_args(args, predictor.about, predictor.crop)
    probabilities = bool({"probability", "probabilities"} & set(wanted))
    check_use(
        args.model,
        predictor.about,
        averages=args.flip or args.mode in ("multiscale", "sliding"),
        probabilities=probabilities,
    )
    files = [targets(args.output, name, wanted, path) for path, name in zip(found.paths, found.names, strict=True)]
    check_targets(found.paths, files)
    make_folder(args.output)

    from engine.annotation_files import AnnotationFile, distinct_names
    from engine.films import predict_films
    from engine.prediction import predict_files
    from engine.prediction_files import LEGEND, Job, write_legend, writing
    from utils.rasters import loses_place

    if lost := next(filter(loses_place, found.paths), None):
        print(one_line(f"{lost}: {WITHOUT_PLACE}"), file=sys.stderr)
    for line in found.passed_over:
        print(one_line(line), file=sys.stderr)
    if args.batch_size > 1 and args.mode != "sliding":
        print(TIES, file=sys.stderr)
    names = predictor.classes.names
    shared = {kind: AnnotationFile(kind, args.output / SHARED[kind], names) for kind in wanted if kind in SHARED}
    plain = [Path(name).with_name(path.name).as_posix() for path, name in zip(found.paths, found.names, strict=True)]
    called = distinct_names(found.paths, plain)
    jobs = [Job(path, each, name, shared) for path, name, each in zip(found.paths, called, files, strict=True)]
    started = time.monotonic()
    films = [job for job in jobs if is_film(job.path)]
    pictures = [job for job in jobs if not is_film(job.path)]
    batch_size = 1 if args.mode == "sliding" else args.batch_size
    broken = predict_files(predictor, pictures, batch_size=batch_size) if pictures else []
    broken += predict_films(predictor, films, batch_size=batch_size)
    done, seconds = len(jobs) - len(broken), time.monotonic() - started
    for file in shared.values():
        with writing(file.path):
            file.write()
    if {"color", "overlay"} & set(wanted) and done and LEGEND not in found.names:
        write_legend(args.output / f"{LEGEND}.png", predictor.classes)
    for line in broken:
        print(f"not predicted: {one_line(line)}", file=sys.stderr)
    print(f"{done} of {len(jobs)} images predicted, in {args.output} ({done / seconds:.3g} images/s)")
    return broken


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
    from engine import assemble
    from engine.check import check_config
    from utils import plugins
    from utils.log import log_to
    from utils.run_folder import find_model

    log_to()
    names = plugins.import_modules(modules)
    path = find_model(model)
    described = check_config(load_config(Path(config))) if config is not None else None
    return assemble.load_predictor(
        path, choose_device(device), precision=precision, modules=names, config=described, native=native
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


def targets(folder: Path, name: str, wanted: Sequence[str], source: Path) -> dict[str, Path]:
    """Name the file to write for each kind; with more than one kind, each has its name in the file's.

    Args:
        folder: Where to write.
        name: Of the image, without ending.
        wanted: Kinds of output.
        source: The image. A GeoTIFF's labels are one, too, and a film's a film.
    """
    from utils.find_images import is_film
    from utils.rasters import is_georeferenced

    keeps_place, files = is_georeferenced(source), {}
    for kind in wanted:
        stem = name if len(wanted) == 1 else f"{name}_{kind}"
        ending = ENDINGS.get(kind, "png")
        if keeps_place and kind in ("color", "index"):
            ending = "tif"
        elif is_film(source):
            ending = "mp4"
        files[kind] = folder / SHARED.get(kind, f"{stem}.{ending}")
    return files


def check_targets(images: Sequence[Path], files: Sequence[Mapping[str, Path]]) -> None:
    """Refuse to write over what is to be predicted.

    Args:
        images: What is to be predicted.
        files: For each, the file to write for each kind.

    Raises:
        ConfigError: An output would replace an image.
    """
    inputs = {os.path.realpath(path) for path in images}  # which, unlike Path.resolve, bears links to themselves
    for wanted in files:
        for path in wanted.values():
            if path.exists() and os.path.realpath(path) in inputs:
                raise ConfigError(f"--output {path.parent}: would replace {path}, an image. Name another folder.")


if __name__ == "__main__":
    sys.exit(run(main))
