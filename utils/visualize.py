"""Labels as colors: for TensorBoard, for predictions on disk, for pictures in documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from utils.classes import IGNORE, ClassTable, distinct_colors, is_background

VOID_COLOR = (255, 255, 255)  # no dataset paints a class white
GAP = 8  # pixels between pictures


def colorize(labels: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Show labels (H, W) uint8 as a picture (H, W, 3) uint8; void in a color of its own."""
    picture: np.ndarray = png_palette(classes)[labels]
    return picture


def png_palette(classes: ClassTable) -> np.ndarray:
    """Return colors (256, 3) uint8 for palette PNGs: the classes', and one of its own for void."""
    palette = classes.palette.copy()
    palette[IGNORE] = VOID_COLOR
    return palette


def overlay(image: np.ndarray, labels: np.ndarray, classes: ClassTable, opacity: float = 0.5) -> np.ndarray:
    """Lay colored labels over an image (H, W, C), shown as `as_picture` does.

    Pixels of void, and of a class that is called background, show the image alone.
    """
    image = np.ascontiguousarray(as_picture(image))
    mixed = cv2.addWeighted(colorize(labels, classes), opacity, image, 1 - opacity, 0)
    plain = [IGNORE, *(index for index, name in enumerate(classes.names) if is_background(name))]
    return np.where(np.isin(labels, plain)[..., None], image, mixed)


def as_picture(image: np.ndarray) -> np.ndarray:
    """Turn an image (H, W, C) into a picture (H, W, 3) uint8.

    One channel is shown gray, of more than three the first three; values of other types than uint8 from the smallest
    to the largest.
    """
    shown = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] < 3 else image[..., :3]
    if shown.dtype == np.uint8:
        return shown
    low, high = float(shown.min()), float(shown.max())
    return np.rint((shown.astype(np.float64) - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)


def comparison(image: np.ndarray, labels: Sequence[np.ndarray], classes: ClassTable, width: int = 1200) -> np.ndarray:
    """Put an image and label maps of it side by side.

    Args:
        image: (H, W, C), shown as `as_picture` does.
        labels: Label maps (H, W) uint8.
        classes: Their colors.
        width: Width of the result; its height follows.

    Returns:
        (h, width, 3) uint8, with a white gap after each part and below.
    """
    return side_by_side([as_picture(image), *(colorize(each, classes) for each in labels)], width)


def side_by_side(parts: Sequence[np.ndarray], width: int = 1200) -> np.ndarray:
    """Put pictures (H, W, 3) uint8 of one size in a row: a photo, then pictures of plain colors.

    Returns:
        (h, width, 3) uint8, with a white gap after each part and below.
    """
    w = width // len(parts) - GAP
    h = max(1, round(w * parts[0].shape[0] / parts[0].shape[1]))
    row = np.full((h + GAP, width, 3), 255, np.uint8)
    for i, part in enumerate(parts):
        interpolation = cv2.INTER_AREA if i == 0 else cv2.INTER_NEAREST
        left = i * (w + GAP)
        row[:h, left : left + w] = cv2.resize(np.ascontiguousarray(part), (w, h), interpolation=interpolation)
    return row


def legend(classes: ClassTable, width: int = 1200, height: int = 28) -> np.ndarray:
    """Draw color and name of each class and of void, in as many rows as it takes; (h, width, 3) uint8."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, height / 56
    entries = [*zip(classes.names, classes.colors, strict=True), ("void", VOID_COLOR)]
    rows, x = [np.full((height, width, 3), 255, np.uint8)], 0
    for name, color in entries:
        text_width = cv2.getTextSize(name, font, scale, 1)[0][0]
        needed = height + text_width + height // 2
        if x + needed > width and x > 0:
            rows.append(np.full((height, width, 3), 255, np.uint8))
            x = 0
        box = (x + 4, 4), (x + height - 4, height - 4)
        cv2.rectangle(rows[-1], *box, tuple(int(c) for c in color), -1)
        cv2.rectangle(rows[-1], *box, (90, 90, 90), 1)
        cv2.putText(rows[-1], name, (x + height, int(height * 0.68)), font, scale, (30, 30, 30), 1, cv2.LINE_AA)
        x += needed
    return np.concatenate(rows)


def curves(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    x_label: str,
    size: tuple[int, int] = (360, 640),
    least: float = 1.0,
) -> np.ndarray:
    """Lines in one diagram whose y axis runs from 0 to the largest value, at least `least`.

    Args:
        series: Points (x, y), in order of x, by name.
        x_label: What x counts.
        size: Height and width of the picture.
        least: Where the y axis ends at least; above 0.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = size
    across = (width - 56) // 145  # names in a row of the legend
    left, right, top, bottom = 56, width - 16, 34 + 16 * ((len(series) - 1) // across), height - 44
    picture = np.full((height, width, 3), 255, np.uint8)
    points = [point for line in series.values() for point in line]
    last = max([x for x, _ in points], default=1) or 1
    highest = max([least, *(y for _, y in points)])

    def text(words: str, x: int, y: int, color: tuple[int, ...] = (60, 60, 60)) -> None:
        cv2.putText(picture, words, (x, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, color, 1, cv2.LINE_AA)

    for tick in range(6):
        y = round(bottom - tick / 5 * (bottom - top))
        cv2.line(picture, (left, y), (right, y), (225, 225, 225), 1)
        text(f"{tick / 5 * highest:.2g}", 8, y + 4)
        x = round(left + tick / 5 * (right - left))
        text(f"{tick / 5 * last:g}", x - 8, bottom + 18)
    text(x_label, (left + right) // 2 - 20, height - 8)
    for number, ((name, line), color) in enumerate(zip(series.items(), distinct_colors(len(series)), strict=True)):
        places = [
            (round(left + x / last * (right - left)), round(bottom - y / highest * (bottom - top))) for x, y in line
        ]
        cv2.polylines(picture, [np.array(places, np.int32).reshape(-1, 1, 2)], False, color, 2, cv2.LINE_AA)
        text(name, left + number % across * 145, 20 + number // across * 16, color)
    return picture
