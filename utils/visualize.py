"""Labels as colors: for TensorBoard, for predictions on disk, for pictures in documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from utils.classes import IGNORE, ClassTable, is_background

VOID_COLORS = ((255, 255, 255), (255, 0, 255), (160, 160, 160), (0, 0, 0))  # the first that no class is close to
CLOSE = 24  # difference of the channel that differs most; no class of a public dataset is so close to white
GAP = 8  # pixels between pictures
INK = (30, 30, 30)
FULL = (8, 48, 107)  # color of a share of 1 in a confusion matrix; 0 is white


def colorize(labels: np.ndarray, classes: ClassTable) -> np.ndarray:
    """Show labels (H, W) uint8 as a picture (H, W, 3) uint8; void in a color of its own."""
    picture: np.ndarray = png_palette(classes)[labels]
    return picture


def png_palette(classes: ClassTable) -> np.ndarray:
    """Return colors (256, 3) uint8 for palette PNGs: the classes', and one of its own for void."""
    palette = classes.palette.copy()
    palette[IGNORE] = void_color(classes)
    return palette


def void_color(classes: ClassTable) -> tuple[int, int, int]:
    """Return the color that void is shown in: white, unless a class of your own is."""

    def distance(color: tuple[int, int, int]) -> int:
        return int(np.abs(np.array(classes.colors) - color).max(axis=1).min())

    return next((color for color in VOID_COLORS if distance(color) > CLOSE), max(VOID_COLORS, key=distance))


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
    w, h = size_in_row(image, 1 + len(labels), width)
    small = [cv2.resize(each, (w, h), interpolation=cv2.INTER_NEAREST) for each in labels]  # coloring fewer pixels
    photo = cv2.resize(np.ascontiguousarray(as_picture(image)), (w, h), interpolation=cv2.INTER_AREA)
    return side_by_side([photo, *(colorize(each, classes) for each in small)], width)


def size_in_row(picture: np.ndarray, parts: int, width: int) -> tuple[int, int]:
    """Return width and height that a picture (H, W, ...) has as one of a row of `parts` that is `width` wide."""
    w = width // parts - GAP
    return w, max(1, round(w * picture.shape[0] / picture.shape[1]))


def side_by_side(parts: Sequence[np.ndarray], width: int = 1200) -> np.ndarray:
    """Put pictures (H, W, 3) uint8 of one size in a row: a photo, then pictures of plain colors.

    Returns:
        (h, width, 3) uint8, with a white gap after each part and below.
    """
    w, h = size_in_row(parts[0], len(parts), width)
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
        draw.text((left + 2, height // 2), text, fill=INK, font=font, anchor="lm")
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
    font = ImageFont.load_default(size=height * 0.5)
    entries = [*zip(classes.names, classes.colors, strict=True), ("void", void_color(classes))]
    rows, x = [Image.new("RGB", (width, height), (255, 255, 255))], 0
    for name, color in entries:
        needed = height + round(font.getlength(name)) + height // 2
        if x + needed > width and x > 0:
            rows.append(Image.new("RGB", (width, height), (255, 255, 255)))
            x = 0
        draw = ImageDraw.Draw(rows[-1])
        draw.rectangle((x + 4, 4, x + height - 4, height - 4), fill=color, outline=(90, 90, 90))
        draw.text((x + height, height // 2), name, fill=INK, font=font, anchor="lm")
        x += needed
    return np.concatenate([np.asarray(row) for row in rows])


def confusion_heatmap(counts: np.ndarray, names: Sequence[str], side: int = 640) -> np.ndarray:
    """Draw a confusion matrix fast enough to do so in training: of each class's pixels, the share taken for another.

    Args:
        counts: (C, C), truth and prediction.
        names: Of the classes; left out where there is no room for letters.
        side: Width and height of the cells together, about.

    Returns:
        (h, w, 3) uint8: truth from top to bottom, prediction from left to right.
    """
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    cell = min(max(side // len(names), 4), 64)
    colors = 255 + shares[..., None] * (np.array(FULL) - 255)
    cells = np.rint(colors).astype(np.uint8).repeat(cell, axis=0).repeat(cell, axis=1)
    font = ImageFont.load_default(size=min(cell * 0.7, 14))
    margin = 4 if cell < 10 else 16 + round(max(font.getlength(name) for name in names))
    top = 24
    picture = Image.new("RGB", (max(margin + cells.shape[1] + 4, 240), top + cells.shape[0] + margin), (255, 255, 255))
    picture.paste(Image.fromarray(cells), (margin, top))
    draw = ImageDraw.Draw(picture)
    draw.text((4, top // 2), "rows: truth, columns: prediction", fill=INK, font=ImageFont.load_default(12), anchor="lm")
    if margin == 4:
        return np.asarray(picture)
    column = Image.new("RGB", (margin, cells.shape[0]), (255, 255, 255))
    letters = ImageDraw.Draw(column)
    for row, name in enumerate(names):
        letters.text((margin - 6, row * cell + cell // 2), name, fill=INK, font=font, anchor="rm")
    picture.paste(column, (0, top))
    picture.paste(column.transpose(Image.Transpose.ROTATE_90), (margin, top + cells.shape[0]))
    if cell >= 24:
        for row, across in np.argwhere(shares >= 0.02).tolist():
            middle = (margin + across * cell + cell // 2, top + row * cell + cell // 2)
            color = "white" if shares[row, across] > 0.5 else INK
            draw.text(middle, f"{100 * shares[row, across]:.0f}", fill=color, font=font, anchor="mm")
    return np.asarray(picture)
