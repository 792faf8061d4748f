"""Draw the pictures in the documents: ``python -m docs.pictures saved/street/latest``.

The run is one of `make train`, whose first images of validation street.png shows. The scenes of inference.png are
generated ones that it has not seen, larger than its training's. report.png shows its report, and compare.png the page
of all runs beside it with the best two compared; both take playwright, and a Chromium of its own or the system's.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dataloader.datasets.synthetic import Synthetic
from engine.reporting.index import write_index
from engine.reporting.write import REPORT
from inference import load
from utils.images import write_picture
from utils.predict import Predictor
from utils.prediction_flags import SCALES
from utils.visualize import colorize, comparisons_sheet, legend, overlay, side_by_side, strip_of_text

IMAGES = Path(__file__).parent / "images"
SCREEN = {"width": 1440, "height": 1380}  # pixels of a page
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


def photograph_pages(run_dir: Path) -> None:
    """Take report.png of a run's report, and compare.png of the page of its folder."""
    from playwright.sync_api import sync_playwright

    index, _, _ = write_index(run_dir.resolve().parent)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        opened = browser.new_page(viewport=SCREEN, color_scheme="light")
        opened.goto((run_dir / REPORT).resolve().as_uri())
        opened.screenshot(path=IMAGES / "report.png")
        opened.goto(index.as_uri())
        for number in (0, 1):
            opened.check(f"[data-pick='{number}']")
        opened.wait_for_selector("#comparison")
        opened.mouse.move(0, 0)
        opened.screenshot(path=IMAGES / "compare.png")
        browser.close()


def first_scenes(predictor: Predictor, count: int = 3) -> np.ndarray:
    """The first images that the run was validated on, with truth and prediction; (h, w, 3) uint8."""
    scenes = Synthetic(split="val", length=60, size=(192, 256))
    rows = []
    for index in range(count):
        image, label, key = scenes.read(index)
        rows.append((key, "", image, [label, predictor.predict_image(image)]))
    return comparisons_sheet(rows, predictor.classes, ("image", "truth", "prediction"), 1000)


def main(argv: Sequence[str]) -> int:
    run_dir = Path(argv[0])
    predictor = load(run_dir)
    write_picture(IMAGES / "street.png", first_scenes(predictor))
    scenes = Synthetic(split="val", length=16, size=(240, 336), seed=1)
    first, second = (scenes.read(index).image for index in SCENES)
    picture = [row(kinds(predictor, first)), row(looks(predictor, second)), legend(predictor.classes)]
    write_picture(IMAGES / "inference.png", np.concatenate(picture))
    photograph_pages(run_dir)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
