"""The benchmark of the data path measures what it says: every case reads the same files and gives crops of one size."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("data_benchmark", ROOT / "benchmarks" / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["data_benchmark"] = module  # where dataclasses look
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["voc380", "ade512", "city2048"])
def test_every_case_gives_a_crop(benchmark: ModuleType, tmp_path: Path, name: str) -> None:
    column = replace(benchmark.COLUMNS[name], size=(96, 128), base=128, crop=70)
    pairs = benchmark.write(column, tmp_path, None, 2)
    made = benchmark.cases_of(column, tmp_path, pairs, Namespace(yassouali=None, semseg=None))
    for case in ("ours", "cached", "torchvision v2"):
        image, label = made[case]()(1)[:2]
        assert sorted(image.shape) == [3, 70, 70], case
        assert tuple(label.shape) == (70, 70), case
    image, label = made["decoding alone"]()(0)
    assert (image.shape, label.shape) == ((96, 128, 3), (96, 128))


def test_a_row_has_our_time_and_ratios_within_rounds(benchmark: ModuleType) -> None:
    rows = {"ours": [1.0, 2.0, 4.0], "cached": [0.5, 1.0, 1.0], "yassouali": [3.0, 4.0, 20.0]}
    ours, cached, other, both = benchmark.figures_of("title", rows, 10, pace=False)
    assert (ours.values, ours.unit, cached.values) == ([100.0, 200.0, 400.0], "ms", [50.0, 100.0, 100.0])
    assert (other.column, other.unit, other.values) == ("yassouali", "x", [3.0, 2.0, 5.0])
    assert (both.column, both.values) == ("yassouali / cached", [6.0, 4.0, 20.0])
    pace = benchmark.figures_of("title", rows, 10, pace=True)[0]
    assert (pace.unit, pace.values) == ("images/s", [10.0, 5.0, 2.5])


def test_a_case_that_dies_ends_the_measurement(benchmark: ModuleType) -> None:
    def die() -> None:
        sys.exit(1)

    with pytest.raises(EOFError):
        benchmark.measure({"ours": die}, 1, 1, malloc=False)
