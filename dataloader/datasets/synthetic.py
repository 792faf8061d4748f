"""Generated street scenes, one subject in one file: to train on before any data is at hand, and to test with.

The scenes have what makes real ones hard: perspective, classes of very different size, thin posts, occlusion, weather,
and pixels that nobody labelled. They are drawn in meters through a pinhole camera, far things first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import cv2
import numpy as np

from base.base_dataset import BaseDataset, Item, Sample
from utils.classes import IGNORE, ClassTable
from utils.registry import DATASETS
from utils.reproducibility import stream
from utils.schema import AtLeast, Between

CLASSES = ClassTable.read(Path(__file__).parent / "classes" / "synthetic.csv")
SKY, BUILDING, ROAD, PAVEMENT, GRASS, TREE, FENCE, POLE, SIGN, CAR, PEDESTRIAN = range(len(CLASSES))

NEAR, FAR = 0.8, 120.0  # meters; what is nearer is out of the picture, what lies beyond is skyline

# Gray levels of slow and of pixel-wise variation of each class's surface.
_SLOW = np.array([3, 6, 5, 5, 14, 24, 4, 3, 2, 4, 4], np.float32)
_FINE = np.array([2, 8, 8, 5, 18, 26, 8, 4, 3, 4, 5], np.float32) / 50

_WALLS = [(168, 96, 78), (196, 172, 138), (150, 146, 142), (206, 196, 180), (134, 112, 98), (176, 134, 100)]
_PAINTS = [(186, 34, 36), (32, 66, 150), (226, 226, 228), (34, 34, 40), (168, 172, 178), (226, 178, 40), (30, 104, 74)]
_CLOTHES = [(200, 50, 60), (40, 60, 130), (230, 200, 60), (50, 50, 56), (240, 240, 236), (60, 130, 90), (150, 60, 140)]
_SKINS = [(236, 198, 172), (198, 148, 116), (128, 86, 62)]

Color = tuple[float, float, float] | np.ndarray
Thing = tuple[float, Callable[[], None]]  # its distance, and what draws it


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class Synthetic(BaseDataset):
    """Street scenes that are drawn when they are asked for: a pure function of the seed, the split and the index.

    Args:
        data_dir: Not needed.
        length: Number of scenes.
        size: Height and width, in pixels.
        seed: Seed of the run.
    """

    data_dir: Path | None = None  # type: ignore[assignment]
    length: Annotated[int, Between(1, 10_000_000)] = 400
    size: tuple[Annotated[int, Between(32, 1024)], Annotated[int, Between(32, 1024)]] = (192, 256)
    seed: Annotated[int, AtLeast(0)] = 0

    splits: ClassVar[tuple[str, ...]] = ("train", "val")
    mean: ClassVar[tuple[float, ...]] = (0.458, 0.443, 0.423)
    std: ClassVar[tuple[float, ...]] = (0.202, 0.19, 0.206)

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        return CLASSES

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        """A sample for each scene; there are no files."""
        return [Sample(f"{split}_{index:07d}", Path(), Path()) for index in range(self.length)]

    def read(self, index: int) -> Item:
        """Draw scene `index`."""
        image, label = self._draw(index)
        return Item(image, self.classes.train_ids(label), self.samples[index].key)

    def read_label(self, index: int) -> np.ndarray:
        """The label of scene `index` alone."""
        return self.classes.train_ids(self._draw(index, finish=False)[1])

    def _draw(self, index: int, *, finish: bool = True) -> tuple[np.ndarray, np.ndarray]:
        # A range of its own for each split: no scene is in both.
        number = self.splits.index(self.split) * 10_000_000 + index
        seed = self.seed if self.split == "train" else 0  # runs of several seeds are measured on the same scenes
        return draw_scene(stream(seed, "scene", 0, number), self.size, finish=finish)


def draw_scene(
    rng: np.random.Generator, size: tuple[int, int], *, finish: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a street scene.

    Args:
        rng: Where all randomness comes from.
        size: Height and width, in pixels.
        finish: Give surfaces their texture and the picture its light; without, only the label is of use.

    Returns:
        image: (H, W, 3) uint8, RGB.
        label: (H, W) uint8.
    """
    scene = _Scene(rng, size)
    scene.lay_ground()
    for _, draw in sorted(scene.things(), key=lambda thing: -thing[0]):
        draw()
    scene.cover_with_bonnet()
    return (scene.develop() if finish else scene.image), scene.label


class _Scene:
    """A canvas, a camera and a street.

    Coordinates are in meters: x to the right of the camera, y above the ground, z ahead.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        # The order of the draws is part of what a seed means.
        height, width = size
        self.rng = rng
        self.height = height
        self.width = width
        self.image = np.empty((height, width, 3), np.uint8)
        self.label = np.full(size, SKY, np.uint8)
        self.focal = min(width, 1.4 * height) * rng.uniform(0.6, 1.05)
        self.eye = rng.uniform(1.3, 2.6)  # height of the camera
        self.vanishing = np.array([width * rng.uniform(0.12, 0.88), height * rng.uniform(0.25, 0.62)])
        roll = np.radians(rng.normal(0, 4))
        middle = np.array([width, height]) / 2
        self.roll = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
        self.center = (self.vanishing - middle) @ self.roll + middle  # where the street vanishes
        self.thin = max(width / 256, 0.5)  # what is 1 pixel wide at the default size
        # The sun lights one side of the street; fronts that face us lie in between.
        self.light = {-1: rng.uniform(0.75, 1.1), 0: rng.uniform(0.8, 1.0), 1: rng.uniform(0.75, 1.1)}
        half = rng.uniform(2.6, 6.5)
        self.middle = rng.uniform(-1, 1) * half
        self.curbs = {-1: self.middle - half, 1: self.middle + half}
        self.walks = {side: self.curbs[side] + side * rng.uniform(1.5, 5.0) for side in (-1, 1)}
        self.paving = np.array([168, 158, 146]) + rng.uniform(-22, 22) + rng.normal(0, 5, 3)

    def project(self, points: Any) -> np.ndarray:
        """Project points (..., 3) in meters to pixels (..., 2): column, row."""
        points = np.asarray(points, np.float64)
        flat = (points[..., :2] * (1, -1) + (0, self.eye)) * (self.focal / points[..., 2:])
        rounded: np.ndarray = np.rint(flat @ self.roll + self.center)
        return rounded.clip(-30_000, 30_000).astype(np.int32)

    def pixels(self, length: float, z: float) -> float:
        """Return how many pixels `length` meters are at the distance `z`."""
        return length * self.focal / z

    def fill(self, polygons: Iterable[np.ndarray], color: Color, name: int | None = None) -> None:
        """Fill polygons of pixels; without a class only the picture changes."""
        polygons = list(polygons)
        cv2.fillPoly(self.image, polygons, tuple(float(c) for c in color))
        if name is not None:
            cv2.fillPoly(self.label, polygons, name)

    def disc(self, center: np.ndarray, radius: float, color: Color, name: int | None = None) -> None:
        """Fill a circle of pixels."""
        middle, size = (int(center[0]), int(center[1])), max(1, round(radius))
        cv2.circle(self.image, middle, size, tuple(float(c) for c in color), -1)
        if name is not None:
            cv2.circle(self.label, middle, size, name, -1)

    def outline(self, polygons: Iterable[np.ndarray]) -> None:
        """Make the border of what is drawn next void, as in labels drawn by hand."""
        cv2.polylines(self.label, list(polygons), True, IGNORE, 3)

    def copies(self, corners: Any, xs: Iterable[float], ys: Iterable[float], zs: Iterable[float]) -> list[np.ndarray]:
        """Move a polygon (K, 3) by every combination of shifts along the axes."""
        shifts = np.stack(np.meshgrid(list(xs), list(ys), list(zs)), axis=-1).reshape(-1, 1, 3)
        return list(self.project(np.asarray(corners) + shifts))

    def wall(self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float) -> np.ndarray:
        """Return the corners of an upright rectangle from (x0, z0) to (x1, z1)."""
        return self.project([(x0, y0, z0), (x1, y0, z1), (x1, y1, z1), (x0, y1, z0)])

    def floor(self, x0: float, x1: float, z0: float, z1: float) -> np.ndarray:
        """Return the corners of a rectangle on the ground."""
        return self.project([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])

    def choice(self, colors: list[tuple[int, int, int]], spread: float = 12) -> np.ndarray:
        """Draw one of `colors`, a little changed."""
        return (np.array(colors[self.rng.integers(len(colors))]) + self.rng.normal(0, spread, 3)).clip(5, 250)

    def lay_ground(self) -> None:
        """Draw sky, skyline, meadow, pavements and the road with its markings."""
        low = self.lay_sky()
        self.lay_skyline(low)
        self.lay_meadow()
        self.lay_road()

    def lay_sky(self) -> np.ndarray:
        """Draw the sky; returns its color at the horizon."""
        rng = self.rng
        top = np.array([[86, 136, 204], [150, 164, 180], [188, 192, 198], [120, 130, 170]][rng.integers(4)])
        low = np.array([[204, 220, 236], [206, 208, 210], [236, 206, 170]][rng.integers(3)])
        ramp = np.linspace(0, 1.6, self.height)[:, None].clip(0, 1)
        self.image[:] = ((top + rng.normal(0, 8, 3)) * (1 - ramp) + low * ramp).clip(0, 255)[:, None]
        return low

    def lay_skyline(self, low: np.ndarray) -> None:
        """Draw far buildings and woods, with haze of the color `low`."""
        rng, x = self.rng, -2.0 * FAR
        while x < 2 * FAR:
            step, wooded = rng.uniform(6, 30), rng.random() < 0.4
            block = self.wall(x, x + step, 0, rng.uniform(2, 14 if wooded else 28), FAR, FAR)
            haze = 0.55 * np.array([92, 112, 78] if wooded else self.choice(_WALLS)) + 0.45 * low
            self.fill([block], haze, TREE if wooded else BUILDING)
            x += step * rng.uniform(0.8, 1.5)

    def lay_meadow(self) -> None:
        """Draw grass everywhere below the horizon."""
        meadow = np.array([104, 134, 62]) + self.rng.normal(0, 10, 3)
        reach = 3 * max(self.width, self.height)
        below = np.array([(-reach, 0), (reach, 0), (reach, reach), (-reach, reach)]) @ self.roll + self.center
        self.fill([np.rint(below).astype(np.int32)], meadow, GRASS)

    def lay_road(self) -> None:
        """Draw the road with its markings, pavements, a side street and shadows."""
        rng = self.rng
        asphalt = np.array([92, 92, 98]) + rng.uniform(-26, 22) + rng.normal(0, 3, 3)
        for side in (-1, 1):
            self.fill([self.floor(self.curbs[side], self.walks[side], NEAR, FAR)], self.paving, PAVEMENT)
            curb = self.floor(self.curbs[side], self.curbs[side] + side * 0.2, NEAR, FAR)
            self.fill([curb], self.paving * 1.15)
        self.fill([self.floor(self.curbs[-1], self.curbs[1], NEAR, FAR)], asphalt, ROAD)
        if rng.random() < 0.4:  # a side street
            z = rng.uniform(6, 30)
            self.fill([self.floor(-FAR, FAR, z, z + rng.uniform(4, 9))], asphalt, ROAD)
        white = (222, 220, 214)
        if rng.random() < 0.75:
            dash = [(self.middle + dx, 0, z) for dx, z in ((-0.08, 1), (0.08, 1), (0.08, 3), (-0.08, 3))]
            self.fill(self.copies(dash, [0], [0], range(0, 60, 5)), white)
        if rng.random() < 0.25:
            z, stripes = rng.uniform(5, 16), np.arange(self.curbs[-1] + 0.4, self.curbs[1] - 0.4, 1.0)
            stripe = [(0, 0, z), (0.5, 0, z), (0.5, 0, z + 3), (0, 0, z + 3)]
            self.fill(self.copies(stripe, stripes, [0], [0]), white)
        for _ in range(rng.integers(0, 4)):  # shadows of what stands behind us
            z, x = rng.uniform(2, 25), rng.uniform(self.curbs[-1], self.curbs[1])
            self.fill([self.floor(x - rng.uniform(1, 4), self.curbs[1], z, z + rng.uniform(0.5, 3))], asphalt * 0.72)

    def things(self) -> list[Thing]:
        """Return the distance of everything that stands on the ground, and how to draw it."""
        rng = self.rng
        things: list[Thing] = []
        for side in (-1, 1):
            things += self.roadside(side)
        for z in rng.uniform(5, 45, rng.integers(0, 3)):
            things.append((z, self.car(self.middle + rng.choice([-1, 1]) * (self.curbs[1] - self.middle) * 0.4, z)))
        for z in rng.uniform(2.8, 11, rng.integers(2, 7)):
            side = rng.choice([-1, 1])
            crossing = rng.random() < 0.2
            ends = (self.curbs[-1], self.curbs[1]) if crossing else sorted((self.curbs[side], self.walks[side]))
            things.append((z, self.pedestrian(rng.uniform(*ends), z)))
        return things

    def roadside(self, side: int) -> list[Thing]:
        """Return what stands on one side of the street: plots, posts, perhaps a tree, and parked cars."""
        rng = self.rng
        things: list[Thing] = []
        built, z = rng.uniform(0.1, 0.9), rng.uniform(1.2, 6)
        while z < 70:
            step = rng.uniform(5, 15)
            if rng.random() < built:
                things.append((z, self.building(side, z, z + step)))
            else:
                things += self.garden(side, z, step)
            z += step
        for _ in range(rng.integers(1, 4)):
            z = rng.uniform(3, 16)
            x = self.curbs[side] + side * rng.uniform(0.3, 0.8)
            things.append((z, self.sign_post(x, z) if rng.random() < 0.55 else self.lamp_post(x, z, side)))
        if rng.random() < 0.3:
            z = rng.uniform(5, 25)
            things.append((z, self.tree(self.curbs[side] + side * 0.9, z)))
        for z in rng.uniform(3.5, 45, rng.integers(0, 4)):
            things.append((z, self.car(self.curbs[side] - side * rng.uniform(1.1, 1.6), z)))
        return things

    def garden(self, side: int, z: float, length: float) -> list[Thing]:
        """Return what stands on a plot without a building: perhaps a fence, and trees."""
        rng = self.rng
        things: list[Thing] = []
        if rng.random() < 0.6:
            things.append((z, self.fence(side, z, z + length)))
        for _ in range(rng.integers(0, 3)):
            x = self.walks[side] + side * rng.uniform(0.8, 9)
            at = z + rng.uniform(0, length)
            things.append((at, self.tree(x, at)))
        return things

    def building(self, side: int, z0: float, z1: float) -> Callable[[], None]:
        """A block with rows of windows."""
        rng = self.rng
        x, top, color = self.walks[side] + side * rng.choice([0.0, 0.0, 1.5]), rng.uniform(4, 22), self.choice(_WALLS)
        glass = np.array([[58, 66, 80], [88, 108, 130], [40, 42, 48]][rng.integers(3)])
        pitch, storey = rng.uniform(2.2, 3.6), rng.uniform(2.8, 3.8)
        x_far = x + side * rng.uniform(8, 20)

        def draw() -> None:
            front, flank = color * self.light[0], color * self.light[side]
            self.fill([self.wall(x, x_far, 0, top, z0, z0)], front, BUILDING)
            self.fill([self.wall(x, x, 0, top, z0, z1)], flank, BUILDING)
            self.fill([self.wall(x, x, top - 0.5, top, z0, z1)], flank * 0.8)
            self.fill([self.wall(x, x_far, top - 0.5, top, z0, z0)], front * 0.8)
            storeys = np.arange(1.0, top - 2.0, storey)[:7]
            if self.pixels(pitch, z0) < 3:
                return
            along = np.arange(z0 + 0.6, z1 - 1.4, pitch)
            pane = [(x, 0, 0), (x, 0, 1.2), (x, 1.6, 1.2), (x, 1.6, 0)]
            self.fill(self.copies(pane, [0], storeys, along), glass * self.light[side])
            across = side * np.arange(1.0, abs(x_far - x) - 1.4, pitch)[:5]
            pane = [(x, 0, z0), (x + side * 1.2, 0, z0), (x + side * 1.2, 1.6, z0), (x, 1.6, z0)]
            self.fill(self.copies(pane, across, storeys, [0]), glass * self.light[0])

        return draw

    def fence(self, side: int, z0: float, z1: float) -> Callable[[], None]:
        """Upright boards with gaps between them."""
        x, top = self.walks[side] + side * 0.3, self.rng.uniform(1.3, 2.2)
        color = self.choice([(134, 88, 48), (112, 66, 42), (158, 122, 78)])

        def draw() -> None:
            self.fill([self.wall(x, x, 0, top, z0, z1)], color * self.light[side], FENCE)
            boards = np.arange(z0, z1, 0.5)
            boards = boards[: max(1, np.searchsorted(boards, self.focal * 0.12))]  # farther ones would blur together
            gaps = self.copies([(x, 0, 0), (x, top, 0)], [0], [0], boards)
            cv2.polylines(self.image, gaps, False, tuple(color * 0.45), max(1, round(self.thin)))
            rails = [self.project([(x, y, z0), (x, y, z1)]) for y in (0.2, top - 0.15)]
            cv2.polylines(self.image, rails, False, tuple((color * 1.35).clip(0, 255)), max(1, round(self.thin)))

        return draw

    def tree(self, x: float, z: float) -> Callable[[], None]:
        """A trunk and a crown of leaves."""
        rng = self.rng
        radius, trunk = rng.uniform(1.2, 2.8), rng.uniform(1.4, 3.0)
        green = self.choice([(62, 98, 40), (84, 112, 44), (44, 82, 46), (112, 106, 40)], 8)
        puffs = rng.normal(0, 0.5, (8, 2)) * radius
        sizes, shades = rng.uniform(0.45, 0.75, 8) * radius, np.sort(rng.uniform(0.7, 1.25, 8))

        def draw() -> None:
            width = max(0.15, 0.05 * radius)
            self.fill([self.wall(x - width, x + width, 0, trunk + radius, z, z)], (82, 62, 46), TREE)
            for (dx, dy), size, shade in zip(puffs, sizes, shades, strict=True):
                center = self.project((x + dx, trunk + radius + dy, z))
                self.disc(center, self.pixels(size, z), (green * shade).clip(0, 255), TREE)

        return draw

    def lamp_post(self, x: float, z: float, side: int) -> Callable[[], None]:
        """A tall post, perhaps with an arm over the road."""
        top, arm = self.rng.uniform(4.5, 7.5), self.rng.uniform(0.8, 2.0) if self.rng.random() < 0.6 else 0.0
        color = self.choice([(58, 62, 66), (40, 44, 46), (78, 84, 84)], 5)

        def draw() -> None:
            self.post(x, z, top, color)
            if arm:
                thickness = max(3, round(self.pixels(0.16, z)))
                ends = self.project([(x, top, z), (x - side * arm, top + 0.2, z)])
                for canvas, value in ((self.image, tuple(color)), (self.label, (POLE,))):
                    cv2.line(canvas, ends[0].tolist(), ends[1].tolist(), value, thickness)

        return draw

    def post(self, x: float, z: float, top: float, color: np.ndarray) -> None:
        """An upright tube, lit from one side; never thinner than 4.5 pixels of the default size."""
        width = max(4.5 * self.thin, self.pixels(0.2, z))
        foot, head = self.project([(x, 0, z), (x, top, z)])
        across = np.array([width / 2, 0])
        corners = np.rint([foot - across, foot + across, head + across, head - across]).astype(np.int32)
        self.fill([corners], color, POLE)
        cv2.line(self.image, corners[0].tolist(), corners[3].tolist(), tuple((color * 1.5).clip(0, 255)), 1)

    def sign_post(self, x: float, z: float) -> Callable[[], None]:
        """A traffic sign."""
        top, half, kind = self.rng.uniform(2.0, 2.9), self.rng.uniform(0.4, 0.6), self.rng.integers(4)
        z = min(z, self.focal * half / (5 * self.thin))  # so near that it can be made out

        def draw() -> None:
            self.post(x, z, top, np.array([84, 86, 88]))
            center, radius = self.project((x, top, z)), self.pixels(half, z)
            if kind == 0:
                self.disc(center, radius, (206, 24, 34), SIGN)
                self.disc(center, radius * 0.6, (246, 246, 244))
            elif kind == 1:
                self.disc(center, radius, (24, 74, 186), SIGN)
                bar = np.array([[-0.2, -0.7], [0.2, -0.7], [0.2, 0.7], [-0.2, 0.7]])
                self.fill([np.rint(center + bar * radius).astype(np.int32)], (240, 242, 246))
            elif kind == 2:
                triangle = np.array([[0, -1.1], [1.1, 0.9], [-1.1, 0.9]])
                self.fill([np.rint(center + triangle * radius).astype(np.int32)], (212, 26, 34), SIGN)
                self.fill([np.rint(center + (triangle * 0.5 + (0, 0.1)) * radius).astype(np.int32)], (250, 220, 60))
            else:
                square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
                self.fill([np.rint(center + square * radius * 0.95).astype(np.int32)], (236, 182, 22), SIGN)
                self.fill([np.rint(center + square * radius * 0.5).astype(np.int32)], (30, 30, 30))

        return draw

    def car(self, x: float, z: float) -> Callable[[], None]:
        """A car seen from behind or from the front, and its nearer flank."""
        rng = self.rng
        paint, length, top = self.choice(_PAINTS, 8), rng.uniform(3.6, 4.8), rng.uniform(1.4, 1.75)
        left, right, belt, lamps = x - 0.9, x + 0.9, top * 0.58, (rng.random() < 0.6)
        flank = right if x < 0 else left

        def draw() -> None:
            z1 = z + length
            body = self.wall(left, right, 0.25, belt, z, z)
            cabin = self.project(
                [(left, belt, z), (right, belt, z), (right - 0.18, top, z + 0.5), (left + 0.18, top, z + 0.5)]
            )
            flank_body = self.wall(flank, flank, 0.25, belt, z, z1)
            inner = flank - np.sign(flank - x) * 0.18
            flank_cabin = self.project(
                [(flank, belt, z), (flank, belt, z1 - 1.0), (inner, top, z1 - 1.8), (inner, top, z + 0.5)]
            )
            wheels = [self.wall(a, a + np.sign(x - a) * 0.25, 0, 0.5, z, z) for a in (left, right)]
            wheels += [self.wall(flank, flank, 0, 0.62, c - 0.32, c + 0.32) for c in (z + 0.75, z1 - 0.8)]
            shape = [body, cabin, flank_body, flank_cabin, *wheels]
            self.fill([self.floor(left - 0.15, right + 0.15, z - 0.1, z1)], (38, 38, 42))  # its shadow
            self.outline(shape)
            self.fill([flank_body, flank_cabin], paint * 0.72, CAR)
            self.fill(wheels, (22, 22, 24), CAR)
            self.fill([body, cabin], paint, CAR)
            middle = flank_cabin.mean(axis=0)
            self.fill([np.rint(middle + (flank_cabin - middle) * 0.72).astype(np.int32)], (36, 44, 54))
            middle = cabin.mean(axis=0)
            self.fill([np.rint(middle + (cabin - middle) * 0.76).astype(np.int32)], (52, 64, 78))
            light = (214, 30, 30) if lamps else (250, 246, 214)
            low, high = belt - 0.32, belt - 0.12
            self.fill([self.wall(a, a + np.sign(x - a) * 0.35, low, high, z, z) for a in (left, right)], light)
            self.fill([self.wall(x - 0.26, x + 0.26, 0.42, 0.56, z, z)], (232, 232, 226))

        return draw

    def pedestrian(self, x: float, z: float) -> Callable[[], None]:
        """Someone who walks."""
        rng = self.rng
        tall, stride = rng.uniform(1.5, 1.9), rng.uniform(0.05, 0.28)
        shirt, trousers, skin = self.choice(_CLOTHES), self.choice(_CLOTHES[1:4], 8) * 0.7, self.choice(_SKINS, 6)

        def draw() -> None:
            hip, neck = 0.48 * tall, 0.84 * tall
            legs = [
                self.project([(x - 0.2, hip, z), (x + 0.2, hip, z), (x + s + 0.09, 0, z), (x + s - 0.11, 0, z)])
                for s in (-stride, stride)
            ]
            half = np.array([(0.2, hip), (0.3, neck - 0.3), (0.18, neck)])
            sides = [(x + dx, y, z) for dx, y in half] + [(x - dx, y, z) for dx, y in half[::-1]]
            torso = self.project(sides)
            head, radius = self.project((x, 0.92 * tall, z)), self.pixels(0.13, z)
            self.outline([*legs, torso])
            cv2.circle(self.label, head.tolist(), round(radius) + 1, IGNORE, -1)
            self.fill(legs, trousers, PEDESTRIAN)
            self.fill([torso], shirt, PEDESTRIAN)
            self.disc(head, radius, skin, PEDESTRIAN)
            self.disc(head - np.array([0, radius * 0.5]), radius * 0.7, skin * 0.35)

        return draw

    def cover_with_bonnet(self) -> None:
        """The car that carries the camera, in some scenes; it is void."""
        if self.rng.random() < 0.5:
            middle = round(self.width * self.rng.uniform(0.35, 0.65)), round(self.height * 1.03)
            axes = round(self.width * 0.5), round(self.height * self.rng.uniform(0.05, 0.12))
            paint = self.choice(_PAINTS, 6)
            cv2.ellipse(self.image, middle, axes, 0, 180, 360, tuple(paint * 0.7), -1)
            cv2.ellipse(self.image, middle, axes, 0, 200, 300, tuple((paint * 1.3).clip(0, 255)), 2)
            cv2.ellipse(self.label, middle, axes, 0, 180, 360, IGNORE, -1)

    def develop(self) -> np.ndarray:
        """Return the picture with textured surfaces, light, haze and the camera's noise."""
        rng, size, cell = self.rng, (self.width, self.height), 12 * self.thin
        shape = max(4, round(self.height / cell)), max(6, round(self.width / cell))
        grid = rng.standard_normal(shape, np.float32)
        slow = cv2.resize(grid, size, interpolation=cv2.INTER_CUBIC)
        clouds = cv2.resize(grid[:4, :6], size, interpolation=cv2.INTER_CUBIC)
        grain = np.frombuffer(rng.bytes(self.height * self.width), np.uint8).reshape(self.height, self.width)
        fine = cv2.GaussianBlur(grain.astype(np.float32) - 127.5, (3, 3), 0.7)
        name = np.where(self.label == IGNORE, CAR, self.label)
        texture = slow * _SLOW[name] + fine * _FINE[name] + np.maximum(clouds, 0) * (name == SKY) * 24
        across, down = np.linspace(-1, 1, self.width), np.linspace(-1, 1, self.height)
        slope = rng.uniform(-0.12, 0.12, 2)
        shade = ((1 + slope[0] * across)[None] * (1 + slope[1] * down)[:, None]).astype(np.float32)
        tint = rng.uniform(0.75, 1.15) * rng.uniform(0.93, 1.07, 3)
        light = cv2.merge([shade * channel for channel in tint.astype(np.float32)])
        picture = cv2.add(cv2.GaussianBlur(self.image, (3, 3), 0.6), cv2.merge([texture] * 3), dtype=cv2.CV_32F)
        return cv2.multiply(picture, light, dtype=cv2.CV_8U)
