"""Which images a report shows, and their pictures in few bytes."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from engine.reporting.errors import KINDS
from utils.classes import count_values
from utils.visualize import as_picture

LONGEST = 320  # pixels of a picture's longer side
SMALL = 128  # of those for comparing runs
QUALITY = 60  # of JPEGs
SMALL_QUALITY = 45
LEVELS = 12  # of a picture of probabilities

WORST, MEDIAN, BEST, RANDOM = 12, 6, 6, 6
WORST_OF_CLASS = 3
MANY_CLASSES = 40  # above, one image of each class is enough
POOL = 100  # images that every run of a split keeps small pictures of; the median ones are chosen among them
MOST_BYTES = 1_300_000  # of all large pictures

# Colors of the kinds of errors: blind to none, and apart in lightness too (Okabe and Ito).
ERROR_COLORS = {"missed": "#d55e00", "hallucinated": "#cc79a7", "boundary": "#e8c547", "interior": "#0072b2"}


@dataclass(frozen=True, eq=False)
class Pictures:
    """What there is to see of one image, made small.

    Args:
        key: The image's name.
        iou: Its mean IoU.
        image: (h, w, 3) uint8.
        truth: Labels (h, w) uint8.
        predicted: Labels (h, w) uint8.
        errors: Kind of error, as `ErrorMap` has them, (h, w) uint8.
        levels: Of the predicted class's probability, from 0 to `LEVELS` - 1, uint8; smaller than the others.
    """

    key: str
    iou: float
    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    errors: np.ndarray
    levels: np.ndarray


class Gallery:
    """Keeps the pictures that may be shown, while images are seen one by one: memory does not grow with their number.

    Kept are the worst and the best, the worst of each class, and a pool of images whose names hash lowest, which is
    a random choice and the same one for every run of a split.

    Args:
        num_classes: Classes C.
    """

    def __init__(self, num_classes: int) -> None:
        self.worst_of_class = WORST_OF_CLASS if num_classes <= MANY_CLASSES else 1
        self.kept: dict[str, Pictures] = {}
        self.ranks: dict[str, list[tuple[float, str]]] = {}  # by what they are kept for: (rank, key), lowest first

    def wants(self, key: str, iou: float, classes: Mapping[str, float]) -> bool:
        """Put an image on the lists that it belongs to; whether it is on any.

        Args:
            key: Its name.
            iou: Its mean IoU.
            classes: IoU of its classes by name.
        """
        offers = [
            ("worst", iou, WORST),
            ("best", -iou, BEST),
            ("pool", float(hash_of(key)), POOL),
            *((f"class {name}", value, self.worst_of_class) for name, value in classes.items()),
        ]
        found = False
        for name, rank, most in offers:
            ranks = self.ranks.setdefault(name, [])
            if len(ranks) < most or rank < ranks[-1][0]:
                ranks.append((rank, key))
                ranks.sort()
                del ranks[most:]
                found = True
        return found

    def keep(self, pictures: Pictures) -> None:
        """Keep the pictures of an image that `wants` said yes to, and drop those on no list any more."""
        self.kept[pictures.key] = pictures
        if len(self.kept) % 32 == 0:
            listed = {key for ranks in self.ranks.values() for _, key in ranks}
            self.kept = {key: value for key, value in self.kept.items() if key in listed}

    def keys_for(self, name: str) -> list[str]:
        """Names of the images on a list, first things first."""
        return [key for _, key in self.ranks.get(name, [])]

    def choose(self, class_names: Sequence[str]) -> dict[str, list[str]]:
        """Names of the images to show, by why they are shown; `class NAME` for the worst of a class."""
        pool = [self.kept[key] for key in self.keys_for("pool")]
        middle = float(np.median([each.iou for each in pool])) if pool else 0.0
        near = sorted(pool, key=lambda each: (abs(each.iou - middle), each.key))
        groups = {
            "worst": self.keys_for("worst"),
            "median": [each.key for each in near[:MEDIAN]],
            "best": self.keys_for("best"),
            "random": self.keys_for("pool")[:RANDOM],
        }
        for name in class_names:
            groups[f"class {name}"] = self.keys_for(f"class {name}")
        return groups

    def encode(self, groups: Mapping[str, Sequence[str]], palette: np.ndarray) -> dict[str, dict[str, str]]:
        """Pictures of the images in `groups` as data URLs, by name and kind, until they are `MOST_BYTES`.

        Args:
            groups: From `choose`.
            palette: Color of each label value, (256, 3) uint8.
        """
        found: dict[str, dict[str, str]] = {}
        total = 0
        for key in first_ones_first(groups.values()):
            found[key] = encode(self.kept[key], palette)
            total += sum(map(len, found[key].values()))
            if total > MOST_BYTES:
                break
        return found

    def encode_small(self, palette: np.ndarray) -> dict[str, dict[str, str]]:
        """Small pictures of the pool: image, truth and prediction, for comparing runs."""
        found = {}
        for key in self.keys_for("pool"):
            each = self.kept[key]
            found[key] = {
                "image": jpeg(shrink(each.image, SMALL), SMALL_QUALITY),
                "truth": palette_png(shrink_labels(each.truth, SMALL), palette),
                "prediction": palette_png(shrink_labels(each.predicted, SMALL), palette),
            }
        return found


def hash_of(key: str) -> int:
    """A number that orders images at random, always the same."""
    return zlib.crc32(key.encode("utf-8", "surrogateescape"))


def first_ones_first(groups: Iterable[Sequence[str]]) -> list[str]:
    """Names of all groups once each: first the first of every group, then the second ones."""
    rows = list(groups)
    found: dict[str, None] = {}
    for rank in range(max(map(len, rows), default=0)):
        found |= dict.fromkeys(row[rank] for row in rows if rank < len(row))
    return list(found)


def reduce(
    key: str,
    iou: float,
    image: np.ndarray,
    truth: np.ndarray,
    predicted: np.ndarray,
    errors: np.ndarray,
    probability: np.ndarray,
) -> Pictures:
    """`Pictures` of maps at an image's own size; `image` is (H, W, C), `probability` (H, W) float32."""
    levels = np.clip(shrink(probability, SMALL) * LEVELS, 0, LEVELS - 1)
    return Pictures(
        key=key,
        iou=iou,
        image=shrink(as_picture(image), LONGEST),
        truth=shrink_labels(truth, LONGEST),
        predicted=shrink_labels(predicted, LONGEST),
        errors=shrink_labels(errors, LONGEST),
        levels=levels.astype(np.uint8),
    )


def encode(pictures: Pictures, palette: np.ndarray) -> dict[str, str]:
    """Data URLs of an image, its truth, its prediction, its errors and its probabilities."""
    right = (pictures.errors == 0) & (pictures.truth < 255)
    return {
        "image": jpeg(pictures.image),
        "truth": palette_png(pictures.truth, palette),
        "prediction": palette_png(pictures.predicted, palette),
        "errors": palette_png(np.where(right, 5, pictures.errors).astype(np.uint8), error_palette()),
        "confidence": palette_png(pictures.levels, probability_palette()),
    }


def error_palette() -> np.ndarray:
    """Colors of 0 (void, white), the kinds of errors, and 5 (right, light gray)."""
    colors = ["#ffffff", *(ERROR_COLORS[kind] for kind in KINDS), "#dde1e6"]
    return np.array([list(bytes.fromhex(color[1:])) for color in colors], np.uint8)


def probability_palette() -> np.ndarray:
    """From dark (a guess) to light (sure), (LEVELS, 3) uint8; even steps of lightness."""
    gray = np.linspace(0, 255, LEVELS).astype(np.uint8).reshape(-1, 1)
    return cv2.cvtColor(cv2.applyColorMap(gray, cv2.COLORMAP_CIVIDIS), cv2.COLOR_BGR2RGB)[:, 0]


def shrink(picture: np.ndarray, longest: int) -> np.ndarray:
    """`picture` (H, W, ...) averaged down to `longest` pixels, or as it is if it is smaller."""
    size = small_size(picture.shape, longest)
    return cv2.resize(np.ascontiguousarray(picture), size, interpolation=cv2.INTER_AREA)


def shrink_labels(labels: np.ndarray, longest: int) -> np.ndarray:
    """`labels` (H, W) uint8 at the size of `shrink`, none of them mixed."""
    return cv2.resize(labels, small_size(labels.shape, longest), interpolation=cv2.INTER_NEAREST)


def small_size(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Width and height at most `longest`, in proportion."""
    height, width = shape[:2]
    factor = min(1.0, longest / max(height, width))
    return max(1, round(width * factor)), max(1, round(height * factor))


def jpeg(picture: np.ndarray, quality: int = QUALITY) -> str:
    """Data URL of a picture (h, w, 3) uint8, RGB."""
    swapped = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    data = cv2.imencode(".jpg", swapped, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()


def palette_png(labels: np.ndarray, palette: np.ndarray) -> str:
    """Data URL of labels (h, w) uint8 shown in the colors of `palette` (up to 256, 3) uint8; few colors, few bits."""
    used = np.flatnonzero(count_values(labels))
    codes = np.zeros(256, np.uint8)
    codes[used] = np.arange(len(used))
    image = Image.fromarray(codes[labels])
    image.putpalette(np.ascontiguousarray(palette[used]).tobytes())
    bits = next(bits for bits in (1, 2, 4, 8) if len(used) <= 2**bits)
    file = io.BytesIO()
    image.save(file, format="PNG", bits=bits)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
