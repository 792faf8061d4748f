"""Predictions as the Cityscapes benchmark takes them: a zip of raw ids."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from dataloader.datasets.cityscapes import CityScapes, frame_of
from utils.errors import DataError, Stopped
from utils.files import atomic_write
from utils.images import read_label

IMAGES = "leftImg8bit/test"
MAKE_THEM = f"python inference.py -m CKPT -i data/cityscapes/{IMAGES} --recursive --save index"
SIZE = (1024, 2048)
EXPECTED = 1525  # images of the test split
CITIES = ("berlin", "bielefeld", "bonn", "leverkusen", "mainz", "munich")  # where they were taken


def write_submission(predictions: Path, output: Path) -> int:
    """Put the predictions below a folder into a zip, each a PNG of raw ids; returns how many there are.

    Args:
        predictions: Folder of ``inference.py --save index``: PNGs of training ids, named like the images.
        output: File to write; it is complete or not there.

    Raises:
        DataError: A file is no such prediction, or of no image of the test split, or there are two of one image.
        Stopped: The zip cannot be written.
    """
    files: dict[str, Path] = {}
    for path in sorted(predictions.rglob("*.png")):
        if not path.stem.removesuffix("_index").endswith("_leftImg8bit"):
            continue  # pictures that were made beside
        key = frame_of(path)
        if key in files:
            raise DataError(f"{path}: predicts what {files[key]} does. Keep one of them.")
        if key.partition("_")[0] not in CITIES:
            raise DataError(f"{path}: is no frame of {', '.join(CITIES)}. Predict leftImg8bit/test, and nothing else.")
        files[key] = path
    if not files:
        raise DataError(f"--predictions {predictions}: holds no *_leftImg8bit.png. `{MAKE_THEM}` makes them.")
    raw_ids = np.array([ids[0] for ids in CityScapes.class_table().raw_ids], np.uint8)
    if output.is_dir() or not output.parent.is_dir():
        raise DataError(f"--output {output}: is no place for a file. Name a .zip file in a folder that is there.")
    try:
        # PNGs are compressed already.
        with atomic_write(output) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for key, path in tqdm(files.items(), unit="image", leave=False, disable=None):
                archive.writestr(f"{key}.png", _encode(path, raw_ids))
    except OSError as error:
        raise Stopped(f"{output}: cannot be written ({error.strerror}). Free some space or name another file") from None
    return len(files)


def _encode(path: Path, raw_ids: np.ndarray) -> bytes:
    """Turn a prediction of training ids into a PNG of raw ids."""
    label = read_label(path)
    if label.shape != SIZE:
        raise DataError(f"{path}: {label.shape[1]}x{label.shape[0]} pixels. The benchmark takes 2048x1024 only.")
    if label.max() >= len(raw_ids):
        raise DataError(f"{path}: holds {label.max()}, which is no class of 19. Predict with --save index.")
    data = io.BytesIO()
    Image.fromarray(raw_ids[label]).save(data, "PNG")
    return data.getvalue()
