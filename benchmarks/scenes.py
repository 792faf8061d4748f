"""Data sets of different character to try plans on, written as images and masks for train and val."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

TRAIN, VAL = 160, 40
VOID = 11  # in CamVid's masks
ROAD = 3
QUARTER = 4  # of the length of a side

Scene = tuple[np.ndarray, np.ndarray]  # image (H, W) or (H, W, channels); mask (H, W) uint8


def texture(rng: np.random.Generator, size: tuple[int, int], *, coarse: int = 8, depth: float = 60) -> np.ndarray:
    """Draw uneven ground, (H, W, 3) float32: slow changes of color, and noise."""
    height, width = size
    slow = rng.normal(0, depth / 2, (height // coarse + 2, width // coarse + 2, 3)).astype(np.float32)
    base = np.asarray(rng.uniform(70, 180, 3), np.float32)
    return base + cv2.resize(slow, (width, height)) + rng.normal(0, depth / 6, (height, width, 3)).astype(np.float32)


def as_image(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


def thin(rng: np.random.Generator) -> Scene:
    """Wires of one or two pixels and cracks of two or three on uneven ground, which has spots of the same colors."""
    size = (256, 256)
    image, mask = texture(rng, size), np.zeros(size, np.uint8)
    for _ in range(6):
        spot = tuple(int(value) for value in rng.integers(20, 236, 2))
        cv2.circle(image, spot, int(rng.integers(4, 12)), tuple(rng.uniform(20, 110, 3).tolist()), -1)
    for value, count, wide, shade in ((1, 4, (1, 3), 55), (2, 3, (2, 4), 45)):
        for _ in range(count):
            points = wander(rng, size, smooth=value == 1)
            thickness = int(rng.integers(*wide))
            color = image.mean((0, 1)) + (shade if value == 1 else -shade)
            cv2.polylines(image, [points], False, tuple(color.tolist()), thickness)
            cv2.polylines(mask, [points], False, value, thickness)
    return as_image(image), mask


def wander(rng: np.random.Generator, size: tuple[int, int], *, smooth: bool) -> np.ndarray:
    """Draw the points of a line across an image, (N, 1, 2) int32: a curve, or one with corners."""
    start, end = rng.uniform(0, size[0], 2), rng.uniform(0, size[1], 2)
    along = np.linspace(0, 1, 30)[:, None]
    bend = np.sin(along * np.pi) * rng.normal(0, 40, 2)
    jitter = 0 if smooth else rng.normal(0, 5, (30, 2))
    points = start + along * (end - start) + bend + jitter
    return np.round(points).astype(np.int32)[:, None]


def tiny(rng: np.random.Generator) -> Scene:
    """Three kinds of things of 4 to 9 pixels, seen from above, that differ in shape more than in color."""
    size = (320, 320)
    image, mask = texture(rng, size, coarse=24), np.zeros(size, np.uint8)
    for _ in range(int(rng.integers(20, 60))):
        kind = int(rng.integers(3))
        middle = rng.uniform(8, 312, 2)
        angle, length = rng.uniform(0, 180), rng.uniform(6, 9)
        sides = ((length, length / 3), (length * 0.7, length * 0.7), (length * 0.8, length * 0.8))[kind]
        color = tuple((image.mean((0, 1)) + rng.choice([-1, 1]) * rng.uniform(40, 80, 3)).tolist())
        box = cv2.boxPoints((tuple(middle.tolist()), sides, angle)).round().astype(np.int32)
        for canvas, value in ((image, color), (mask, kind + 1)):
            if kind == 2:
                cv2.circle(canvas, tuple(middle.astype(int).tolist()), round(sides[0] / 2), value, -1)
            else:
                cv2.fillPoly(canvas, [box], value)
    return as_image(image), mask


def twenty(rng: np.random.Generator) -> Scene:
    """Shapes of 19 classes over ground: a class is a hue, a shape and stripes of a width."""
    size = (192, 256)
    image, mask = texture(rng, size), np.zeros(size, np.uint8)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    for _ in range(int(rng.integers(8, 16))):
        # Of classes with a small number there are many, of others few.
        value = 1 + int(19 * rng.random() ** 1.7)
        radius = rng.uniform(8, 34)
        middle = rng.uniform(0, 192), rng.uniform(0, 256)
        shape = np.zeros(size, np.uint8)
        corners = cv2.boxPoints(((middle[1], middle[0]), (2 * radius, 1.3 * radius), rng.uniform(0, 180)))
        if value % 2:
            cv2.ellipse(shape, ((middle[1], middle[0]), (2 * radius, 1.5 * radius), rng.uniform(0, 180)), 1, -1)
        else:
            cv2.fillPoly(shape, [corners.round().astype(np.int32)], 1)
        hue = np.array([np.cos(value), np.cos(value + 2.1), np.cos(value + 4.2)], np.float32) * 55 + 120
        stripes = 30 * np.sin((rows + columns * (value % 3 - 1)) * (0.4 + 0.25 * (value % 4)))
        inside = shape == 1
        image[inside] = (hue + stripes[..., None] + rng.normal(0, 14, (*size, 3)))[inside]
        mask[inside] = value
    return as_image(image * rng.uniform(0.7, 1.2)), mask


def gray(rng: np.random.Generator) -> Scene:
    """Cells in a microscope, gray: ground, bodies and kernels, with rims that are as dark as kernels."""
    size = (256, 320)
    image = texture(rng, size, coarse=40, depth=30).mean(2)
    mask = np.zeros(size, np.uint8)
    for _ in range(int(rng.integers(6, 16))):
        middle = (float(rng.uniform(0, 320)), float(rng.uniform(0, 256)))
        axes, angle = tuple(rng.uniform(24, 60, 2).tolist()), float(rng.uniform(0, 180))
        shade = float(image.mean())
        cv2.ellipse(image, (middle, axes, angle), shade + 12, -1)
        cv2.ellipse(image, (middle, axes, angle), shade - 35, 2)
        cv2.ellipse(mask, (middle, axes, angle), 1, -1)
        kernel = (middle, (axes[0] / 3, axes[1] / 3), angle)
        cv2.ellipse(image, kernel, shade - 25, -1)
        cv2.ellipse(mask, kernel, 2, -1)
    image = cv2.GaussianBlur(image, (0, 0), 1.2) + rng.normal(0, 9, size)
    return as_image(image), mask


def six(rng: np.random.Generator) -> Scene:
    """Fields from above in six channels: what grows shows in the last three, its stand in the first three."""
    size = (224, 224)
    count = 14
    seeds = rng.uniform(0, 224, (count, 2)).astype(np.float32)
    rows, columns = np.mgrid[: size[0], : size[1]].astype(np.float32)
    nearest = np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in seeds], axis=0)
    kinds = rng.choice(5, count, p=[0.35, 0.3, 0.2, 0.1, 0.05]).astype(np.uint8)
    mask = kinds[nearest]
    spectra = np.array([[90, 60, 30], [60, 90, 80], [130, 70, 60], [80, 120, 40], [100, 90, 120]], np.float32)
    stand = rng.normal(0, 25, (count, 3)).astype(np.float32)[nearest]
    visible = texture(rng, size) * 0.5 + 50 + stand
    hidden = spectra[mask] + stand * 0.4 + rng.normal(0, 25, (*size, 3)) + texture(rng, size, depth=30) * 0.2
    return np.clip(np.concatenate([visible, hidden], 2), 0, 255).astype(np.uint8), mask


GENERATED: dict[str, Callable[[np.random.Generator], Scene]] = {
    "thin": thin,
    "tiny": tiny,
    "twenty": twenty,
    "gray": gray,
    "six": six,
}
CAMVID = ("camvid", "camvid_quarter", "camvid_road")


def write(name: str, folder: Path, camvid: Path, share: float = 1.0) -> None:
    """Write a data set: images/train, masks/train, images/val, masks/val.

    Args:
        name: A key of `GENERATED`, or one of `CAMVID`.
        folder: Where to.
        camvid: Folder with train, trainannot, val and valannot.
        share: Of the images, to try things out.
    """
    for split, count in (("train", TRAIN), ("val", VAL)):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        (folder / "masks" / split).mkdir(parents=True, exist_ok=True)
        if name in GENERATED:
            for number in range(max(4, round(share * count))):
                rng = np.random.default_rng([sorted(GENERATED).index(name), split == "val", number])
                _save(folder, split, f"{number:04d}", *GENERATED[name](rng))
            continue
        paths = sorted((camvid / split).glob("*.*"))
        for path in paths[:: max(1, round(1 / share))]:
            image = np.asarray(Image.open(path).convert("RGB"))
            mask = np.asarray(Image.open(camvid / f"{split}annot" / f"{path.stem}.png"))
            _save(folder, split, path.stem, *_changed(name, image, mask))


def _changed(name: str, image: np.ndarray, mask: np.ndarray) -> Scene:
    """Make of a frame of CamVid what the data set has instead."""
    if name == "camvid_quarter":
        size = (image.shape[1] // QUARTER, image.shape[0] // QUARTER)
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        return image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    if name == "camvid_road":
        return image, np.where(mask == VOID, VOID, mask == ROAD).astype(np.uint8)
    return image, mask


def _save(folder: Path, split: str, name: str, image: np.ndarray, mask: np.ndarray) -> None:
    if image.ndim == 3 and image.shape[2] != 3:
        np.save(folder / "images" / split / f"{name}.npy", image)
    else:
        Image.fromarray(image).save(folder / "images" / split / f"{name}.png")
    Image.fromarray(mask).save(folder / "masks" / split / f"{name}.png")
