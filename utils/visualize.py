"""Labels as colors: for TensorBoard, for predictions on disk, for pictures in documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.classes import IGNORE, ClassTable, is_background

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


def strip_of_text(texts: Mapping[int, str], width: int = 1200, height: int = 26) -> np.ndarray:
    """Draw texts in a white strip, (height, width, 3) uint8.

    Args:
        texts: What to write, by the column where it begins; what does not fit before the next one is cut off.
        width: Width of the strip.
        height: Its height, which decides the size of the letters.
    """
    strip = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size=height * 0.6)
    ends = [*sorted(texts)[1:], width]
    for (left, text), end in zip(sorted(texts.items()), ends, strict=True):
        while text and draw.textlength(text, font) > end - left - GAP:
            text = text[:-2] + "…" if len(text) > 1 else ""
        draw.text((left + 2, height // 2), text, fill=(30, 30, 30), font=font, anchor="lm")
    return np.asarray(strip)


def comparisons_sheet(
    rows: Sequence[tuple[str, str, np.ndarray, Sequence[np.ndarray]]],
    classes: ClassTable,
    headings: Sequence[str],
    width: int = 1200,
) -> np.ndarray:
    """Draw images with label maps of them below each other: headings, names, scores, and a legend at the end.

    Args:
        rows: For each image its name, its score in words, itself (H, W, C), and label maps (H, W) uint8.
        classes: Their colors.
        headings: What stands over each column.
        width: Width of the result.

    Returns:
        (h, width, 3) uint8.
    """
    columns = [number * (width // len(headings)) for number in range(len(headings))]
    parts = [strip_of_text(dict(zip(columns, headings, strict=True)), width, height=34)]
    for name, score, image, labels in rows:
        parts += [
            strip_of_text({0: name, columns[-1]: score}, width),
            comparison(image, labels, classes, width),
        ]
    return np.concatenate([*parts, legend(classes, width)])


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
