"""The benchmark of the data path measures what it says: every case reads the same files and gives crops of one size."""

from __future__ import annotations

import importlib.util
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
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
    for case in ("ours", "ours, cached", "torchvision v2"):
        image, label = made[case]()(1)[:2]
        assert sorted(image.shape) == [3, 70, 70], case
        assert tuple(label.shape) == (70, 70), case
    image, label = made["decode only"]()(0)
    assert (image.shape, label.shape) == ((96, 128, 3), (96, 128))


def test_ratios_are_medians_of_those_within_a_round(benchmark: ModuleType, capsys: pytest.CaptureFixture) -> None:
    rows = {"ours": [1.0, 2.0, 4.0], "ours, cached": [0.5, 1.0, 1.0], "other": [3.0, 4.0, 20.0]}
    benchmark.report("title", rows, 10)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  other")]
    ratios = np.median(np.divide(rows["other"], [rows["ours"], rows["ours, cached"]]), axis=1)
    assert line.split() == ["other", "400.00", "2", *(f"{ratio:.2f}x" for ratio in ratios)]
