"""Colors that are given to classes tell apart, and backgrounds do not hide what is under them."""

from __future__ import annotations

import numpy as np
import pytest

from dataloader.datasets.folder import Folder
from dataloader.datasets.synthetic import Synthetic
from tests.conftest import HOME
from utils.classes import ClassTable, default_colors, distinct_colors
from utils.visualize import colorize, overlay, void_color

# What red-blind and green-blind people see of linear RGB (Machado, Oliveira and Fernandes 2009, table 1, severity 1).
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(colors: np.ndarray, sight: str = "") -> np.ndarray:
    """CIELAB of sRGB colors (N, 3), as somebody sees them."""
    scaled = np.asarray(colors, float) / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    if sight:
        linear = np.clip(linear @ np.array(BLIND[sight]).T, 0, 1)
    xyz = linear @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


def least_distance(colors: object, sight: str = "") -> float:
    """Smallest difference of two of the colors; 2.3 can just be noticed."""
    places = lab(np.array(colors), sight)
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)
    return float(distances[np.triu_indices(len(places), 1)].min())


def folder(*names: str) -> ClassTable:
    return Folder.class_table(classes=names)


@pytest.mark.parametrize(("count", "apart", "blind"), [(10, 25, 15), (20, 20, 9), (40, 15, 6)])
def test_default_colors_tell_apart_also_for_the_color_blind(count: int, apart: float, blind: float) -> None:
    colors = default_colors(["background", *map(str, range(count))])
    assert least_distance(colors) > apart
    assert min(least_distance(colors, sight) for sight in BLIND) > blind


def test_there_are_colors_for_as_many_classes_as_labels_hold() -> None:
    colors = distinct_colors(255)
    assert len(set(colors)) == 255
    assert (0, 0, 0) not in colors
    assert distinct_colors(7) == colors[:7]


@pytest.mark.parametrize("names", [("background", "road"), ("bg", "road"), ("no", "yes")])
def test_two_classes_tell_apart_at_a_glance(names: tuple[str, str]) -> None:
    colors = folder(*names).colors
    assert min(least_distance(colors, sight) for sight in ("", *BLIND)) > 30


def test_no_two_classes_of_the_generated_scenes_look_alike() -> None:
    assert least_distance(Synthetic.class_table().colors) > 25


def test_an_overlay_shows_the_image_where_there_is_only_background() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    labels = np.zeros((5, 7), np.uint8)
    labels[2:, 3:] = 1
    labels[0] = 255
    shown = overlay(image, labels, folder("background", "road"))
    np.testing.assert_array_equal((shown == image).all(axis=-1), labels != 1)
    assert (overlay(image, labels, folder("sky", "road"))[1:2] != image[1:2]).any()


def test_void_has_a_color_that_no_class_has() -> None:
    assert void_color(folder("background", "road")) == (255, 255, 255)
    own = ((255, 255, 255), (250, 10, 250), (0, 0, 0))
    table = Folder.class_table(classes=[{"name": str(i), "color": list(color)} for i, color in enumerate(own)])
    assert void_color(table) == (160, 160, 160)
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    assert len({tuple(color) for color in colorize(labels, table)[0].tolist()}) == 4


def test_colors_that_are_standards_stay() -> None:
    for name, first in {"voc": "background,0,0,0,0", "cityscapes": "road,128,64,128"}.items():
        text = (HOME / "dataloader" / "datasets" / "classes" / f"{name}.csv").read_text()
        assert text.splitlines()[1].startswith(first)
