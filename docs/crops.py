"""Draw what augmentation makes of one image, for the documents: ``python -m docs.crops``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from engine.assemble import build_loaders
from engine.check import check_config
from utils.config import load_config
from utils.images import write_picture
from utils.visualize import colorize, side_by_side

ROOT = Path(__file__).resolve().parent.parent
COUNT = 5  # epochs, each of which crops anew
SETTINGS = (
    "train_loader.args.rotate=15",
    'train_loader.args.scale={"range": [0.5, 2.0]}',
    "train_loader.args.color_jitter=true",
)
SCENE = 7  # with near and far things


def main() -> None:
    train_loader, _ = build_loaders(check_config(load_config(ROOT / "config.json", SETTINGS)))
    view = train_loader.view
    items = [view[epoch, SCENE] for epoch in range(COUNT)]
    images = side_by_side([np.ascontiguousarray(item.image) for item in items])
    labels = side_by_side([colorize(item.label, view.classes) for item in items])
    write_picture(ROOT / "docs" / "images" / "crops.png", np.concatenate([images, labels]))


if __name__ == "__main__":
    main()
