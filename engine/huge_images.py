"""Images without limits: windows that slide over an image which is read, predicted and written a band at a time.

No more of the image, its logits and its labels is held than a band takes. A band is as high as a window and, where
there are many classes, narrower than the image: logits of 19 classes over 30,000 columns would take 1.2 GB.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from utils.classes import IGNORE
from utils.losses.strips import predicted_labels
from utils.outputs import resize
from utils.predict import Predictor, as_batch
from utils.raster_writers import ROWS, write_png, write_tiff
from utils.rasters import ModelRaster
from utils.tta import blend_weights, window_starts

BUDGET = 2**28  # bytes of logits that are added up at a time
FORMS = ("color", "index")  # kinds of output that are written in bands


@dataclass(frozen=True)
class Stripe:
    """Columns that are predicted from the top to the bottom before the next ones.

    Args:
        left: First column.
        right: Last column + 1.
        windows: Where the windows that show some of these columns begin.
    """

    left: int
    right: int
    windows: Sequence[int]


def predict_in_bands(
    predictor: Predictor,
    raster: ModelRaster,
    files: Mapping[str, Path],
    palettes: Mapping[str, np.ndarray],
    *,
    source: Path,
    progress: Callable[[int], object] = lambda count: None,
) -> None:
    """Predict an image in sliding windows, and write its labels; pixels without data are void.

    Args:
        predictor: What predicts; its test-time augmentation says how large the windows are and how they are averaged.
        raster: The image.
        files: File to write for each kind, of `FORMS`; a ``.tif`` lies where the source does.
        palettes: Color of each value for each kind, (256, 3) uint8.
        source: File of the image.
        progress: Called with the number of windows that have been predicted.

    Raises:
        DataError: The image cannot be read.
        OSError: A file cannot be written.
    """
    folder = next(iter(files.values())).parent
    # Stripes are not rows: labels wait in a file until those of all stripes are there.
    with tempfile.TemporaryFile(dir=folder) as spool:
        predict_to(spool, predictor, raster, progress)
        for kind, path in files.items():
            bands = rows_of(spool, raster.size)
            if path.suffix == ".tif":
                write_tiff(path, raster.size, bands, palettes[kind], source=source, void=IGNORE)
            else:
                write_png(path, raster.size, bands, palettes[kind])


def predict_to(spool: IO[bytes], predictor: Predictor, raster: ModelRaster, progress: Callable[[int], object]) -> None:
    """Write the labels of an image to an open file, a byte for each pixel, row by row."""
    height, width = raster.size
    tta = predictor.tta
    window = min(tta.window[0], height), min(tta.window[1], width)
    rows = window_starts(height, window[0], tta.overlap)
    for stripe in stripes(width, window, tta.overlap, len(predictor.classes)):
        for top, labels in bands(predictor, raster, rows, window, stripe, progress):
            for number, row in enumerate(labels):
                spool.seek((top + number) * width + stripe.left)
                spool.write(row.tobytes())


def windows_of(size: tuple[int, int], predictor: Predictor) -> int:
    """Count the windows that `predict_in_bands` predicts for an image of `size`; some columns are in two stripes."""
    tta = predictor.tta
    window = min(tta.window[0], size[0]), min(tta.window[1], size[1])
    across = sum(len(each.windows) for each in stripes(size[1], window, tta.overlap, len(predictor.classes)))
    return across * len(window_starts(size[0], window[0], tta.overlap))


def stripes(width: int, window: tuple[int, int], overlap: float, num_classes: int) -> list[Stripe]:
    """Divide the columns of an image such that a band's logits take no more than `BUDGET`."""
    starts = window_starts(width, window[1], overlap)
    widest = max(BUDGET // (4 * num_classes * window[0]), window[1])
    count = -(-width // widest)
    edges = [width * number // count for number in range(count + 1)]
    found = []
    for left, right in itertools.pairwise(edges):
        shown = [start for start in starts if start < right and start + window[1] > left]
        found.append(Stripe(left, right, shown))
    return found


@torch.inference_mode()
def bands(
    predictor: Predictor,
    raster: ModelRaster,
    rows: Sequence[int],
    window: tuple[int, int],
    stripe: Stripe,
    progress: Callable[[int], object],
) -> Iterator[tuple[int, np.ndarray]]:
    """Predict a stripe; gives its labels (h, w) uint8, some rows at a time, and the first of these rows.

    Args:
        predictor: What predicts.
        raster: The image.
        rows: Where windows begin.
        window: Their height and width.
        stripe: The columns.
        progress: Called with the number of windows that have been predicted.
    """
    columns = stripe.windows[0], stripe.windows[-1] + window[1]  # that its windows show
    device, width = predictor.device, stripe.right - stripe.left
    weights = blend_weights(window, predictor.tta.blend or "linear", device)
    total = torch.zeros(len(predictor.classes), window[0], width, device=device)
    image, empty = raster.read((rows[0], rows[0] + window[0]), columns)
    for number, top in enumerate(rows):
        add_windows(predictor, image, stripe, window, weights, total, progress)
        # Rows above the next windows are complete. What they were divided by would not change which class wins.
        done = rows[number + 1] - top if number + 1 < len(rows) else window[0]
        labels = predicted_labels(total[None, :, :done], (done, width))[0].cpu().numpy()
        inside = slice(stripe.left - columns[0], stripe.right - columns[0])
        labels[empty[:done, inside]] = IGNORE
        yield top, labels
        if number + 1 < len(rows):
            kept = total[:, done:].clone()
            total.zero_()
            total[:, : window[0] - done] = kept
            new_image, new_empty = raster.read((top + window[0], top + window[0] + done), columns)
            image = np.concatenate([image[done:], new_image])
            empty = np.concatenate([empty[done:], new_empty])


def add_windows(
    predictor: Predictor,
    image: np.ndarray,
    stripe: Stripe,
    window: tuple[int, int],
    weights: Tensor,
    total: Tensor,
    progress: Callable[[int], object],
) -> None:
    """Add the logits of a row of windows to `total`, the sum over a stripe.

    Args:
        predictor: What predicts.
        image: What the windows show, (h, w, C).
        stripe: The columns of `total`.
        window: Height and width of the windows.
        weights: Of a window's pixels, (h, w).
        total: (num_classes, h, width of the stripe).
        progress: Called with the number of windows that have been predicted.
    """
    first, size = stripe.windows[0], predictor.tta.batch_size
    for number in range(0, len(stripe.windows), size):
        lefts = stripe.windows[number : number + size]
        crops = as_batch([image[:, left - first : left - first + window[1]] for left in lefts])
        logits = resize(predictor.window_logits(crops), window)
        logits *= weights
        for left, crop in zip(lefts, logits, strict=True):
            begin, end = max(left, stripe.left), min(left + window[1], stripe.right)
            total[:, :, begin - stripe.left : end - stripe.left] += crop[:, :, begin - left : end - left]
        progress(len(lefts))


def rows_of(spool: IO[bytes], size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Read labels that were written to an open file, some rows (h, W) uint8 at a time."""
    for top in range(0, size[0], ROWS):
        spool.seek(top * size[1])
        count = min(ROWS, size[0] - top)
        yield np.frombuffer(spool.read(count * size[1]), np.uint8).reshape(count, size[1])
