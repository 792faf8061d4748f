"""Draw the pictures of predictions in the documents: ``python -m docs.pictures saved/street/latest``.

The run is one of `make train`, which leaves street.png as its predictions.png. The scenes of inference.png are
generated ones that it has not seen, larger than its training's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataloader.datasets.synthetic import Synthetic
from inference import load
from utils.images import write_picture
from utils.predict import Predictor
from utils.prediction_flags import SCALES
from utils.visualize import colorize, legend, overlay, side_by_side, strip_of_text

IMAGES = Path(__file__).parent / "images"
SCENES = (2, 7)  # with near and far things
LOOKS = {
    "single": {"mode": "single"},
    "sliding": {"mode": "sliding", "window": (160, 224)},
    "multiscale": {"mode": "multiscale", "scales": SCALES},
    "multiscale, flip": {"mode": "multiscale", "scales": SCALES, "flip": True},
}


def row(parts: dict[str, np.ndarray], width: int = 1200) -> np.ndarray:
    """Pictures (H, W, 3) uint8 side by side, each under its name; (h, width, 3) uint8."""
    columns = [number * (width // len(parts)) for number in range(len(parts))]
    titles = strip_of_text(dict(zip(columns, parts, strict=True)), width)
    return np.concatenate([titles, side_by_side(list(parts.values()), width)])


def kinds(predictor: Predictor, image: np.ndarray) -> dict[str, np.ndarray]:
    """What `--save` can show of one image."""
    labels, classes = predictor.predict_image(image), predictor.classes
    sure = np.rint(255 * predictor.probabilities(image).max(axis=0)).astype(np.uint8)
    return {
        "image": image,
        "--save color": colorize(labels, classes),
        "--save overlay": overlay(image, labels, classes),
        "--save probability": np.repeat(sure[..., None], 3, axis=2),
    }


def looks(predictor: Predictor, image: np.ndarray) -> dict[str, np.ndarray]:
    """The prediction of one image in every mode."""
    found = {}
    for name, options in LOOKS.items():
        predictor.tta = replace(predictor.tta, **options)
        found[f"--mode {name.replace(', ', ' --')}"] = colorize(predictor.predict_image(image), predictor.classes)
    return found


def main(argv: Sequence[str]) -> int:
    run_dir = Path(argv[0])
    shutil.copy(run_dir / "predictions.png", IMAGES / "street.png")
    predictor = load(run_dir)
    scenes = Synthetic(split="val", length=16, size=(240, 336), seed=1)
    first, second = (scenes.read(index).image for index in SCENES)
    picture = [row(kinds(predictor, first)), row(looks(predictor, second)), legend(predictor.classes)]
    write_picture(IMAGES / "inference.png", np.concatenate(picture))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
