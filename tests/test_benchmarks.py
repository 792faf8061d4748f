"""Tables of BENCHMARKS.md that are generated show what files in benchmarks/results/ hold, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import losses, report, speed
from benchmarks.results import BLOCK, FOLDER, PAGE, Figure, page, table, write
from tests.conftest import ROOT
from tests.test_report import large_content

TEXT = PAGE.read_text(encoding="utf-8")


def test_every_table_is_that_of_its_file_and_every_file_has_one() -> None:
    assert page(TEXT) == TEXT, "run `python -m benchmarks.results`"
    assert sorted(name for _, name, _ in BLOCK.findall(TEXT)) == sorted(path.stem for path in FOLDER.glob("*.json"))


def test_a_figure_that_no_file_backs_is_noticed() -> None:
    row = re.search(r"\| [\d.]+ x \|", TEXT)
    assert row is not None
    changed = TEXT.replace(row[0], "| 99 x |")
    assert page(changed) == TEXT != changed
    with pytest.raises(FileNotFoundError):
        page("<!-- results: unmeasured -->\n| 3 x |\n<!-- end -->")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_files_name_commit_and_machine_and_no_folder_of_it(path: Path) -> None:
    stamp = json.loads(path.read_text(encoding="utf-8"))["environment"]
    assert re.fullmatch(r"[0-9a-f]{12}", stamp["git"]), "measure what is committed"
    assert stamp["versions"].keys() >= {"python", "torch"}
    assert stamp["cores"] > 0
    assert not any(word.startswith("/") for word in stamp["command"])


def test_median_and_spread_come_from_all_rounds(tmp_path: Path) -> None:
    path = write("steps", "a step", [Figure("ours", "ms", [3.0, 1.0, 2.00004])], folder=tmp_path)
    results = json.loads(path.read_text())
    assert results["figures"] == [{"what": "ours", "unit": "ms", "median": 2.0, "low": 1.0, "high": 3.0, "runs": 3}]
    assert "| ours | 2 ms | 1 to 3 | 3 |" in table(results)
    shown = page("# A\n<!-- results: steps -->\nold\n<!-- end -->\nB\n", tmp_path)
    assert shown == f"# A\n<!-- results: steps -->\n{table(results)}<!-- end -->\nB\n"


def test_ratios_of_losses_are_taken_round_by_round() -> None:
    logits, labels = losses.inputs(5, scale=16)
    cases = {who: losses.columns(None)[who]["CE"] for who in ("ours", "plain torch")}
    turns = {who: lambda case=case: losses.once(case, logits, labels) for who, case in cases.items()}
    times = losses.by_turns(turns, 3)
    ours, ratio = losses.figures_of("CE", 5, {"ours": [1.0, 2.0], "plain torch": [3.0, 2.0]})
    assert {who: len(column) for who, column in times.items()} == {"ours": 3, "plain torch": 3}
    assert (ours.unit, ratio.unit, ratio.values) == ("ms", "x", [3.0, 1.0])


def test_a_report_is_measured_as_often_as_asked() -> None:
    figures = report.measure(2, lambda folder: large_content(folder, epochs=3, images=2))
    assert [len(figure.values) for figure in figures] == [2, 2, 2]
    assert all(min(figure.values) > 0 for figure in figures)


def test_make_bench_writes_every_file() -> None:
    commands = (ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    assert re.findall(r"-m benchmarks\.(\w+).* --json", commands) == ["losses", "report", "inference", "speed"]
    assert commands.rstrip().endswith("benchmarks.results")


def test_networks_are_measured_one_by_one() -> None:
    figure = speed.measure("FastSCNN", 2)
    assert (figure.what, figure.unit, len(figure.values)) == ("FastSCNN", "images/s", 2)
    assert min(figure.values) > 0


def test_prediction_is_measured_beside_its_network(tmp_path: Path) -> None:
    from benchmarks import inference  # it imports inference.py, which is called like it

    figures = inference.measure(ROOT / "configs" / "camvid.json", None, 2, 1, torch.device("cpu"))
    assert [figure.unit for figure in figures] == ["images/s", "images/s", "x"]
    assert all(figure.values[0] > 0 for figure in figures)
