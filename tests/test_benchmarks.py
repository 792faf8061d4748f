"""Tables of BENCHMARKS.md that are generated show what files in benchmarks/results/ hold, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import losses, plan, report, scenes
from benchmarks.results import BLOCK, FOLDER, PAGE, Figure, page, table, write
from dataloader.tools.recipe import Machine, Measured
from engine.check import check_config
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
    assert re.findall(r"-m benchmarks\.(\w+).* --json", commands) == ["losses", "report", "inference"]
    assert commands.rstrip().endswith("benchmarks.results")


def test_prediction_is_measured_beside_its_network(tmp_path: Path) -> None:
    from benchmarks import inference  # it imports inference.py, which is called like it

    figures = inference.measure(ROOT / "configs" / "camvid.json", None, 2, 1, torch.device("cpu"))
    assert [figure.unit for figure in figures] == ["images/s", "images/s", "x"]
    assert all(figure.values[0] > 0 for figure in figures)


@pytest.mark.parametrize("name", scenes.GENERATED)
def test_every_recipe_is_a_right_config_for_every_generated_data_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenes.write(name, tmp_path / name, tmp_path, share=0.05)
    monkeypatch.setattr(plan, "measure", lambda raw, machine: Measured(0.1, 0.01, 2**20, 0.1))
    clock = plan.Clock(Machine(cores=2), busy=False)
    made = plan.planned(tmp_path / name, name, 15, clock)
    configs = {"plan": made["config"]}
    configs |= {key: plan.fixed(recipe, made, 15, clock) for key, recipe in plan.RECIPES.items()}
    assert len(configs) == 6
    for config in configs.values():
        checked = check_config(config)
        assert checked.arch.options.in_channels == (6 if name == "six" else 3)
        assert checked.val_loader is not None


def test_a_plan_is_compared_with_the_best_fixed_recipe_and_with_init() -> None:
    def runs(value: float) -> dict[str, dict[str, float]]:
        return {"0": {"Mean_IoU": value, "minutes": 1.0}}

    measured = {"thin": {"plan": runs(0.5), "unet": runs(0.52), "deeplab": runs(0.4), "init": runs(0.45)}}
    assert plan.summary(measured) == [
        "thin: plan 50.0, unet 52.0 (-2.0), init 45.0 (+5.0)",
        "on average +5.0 points above init",
    ]
    assert [figure.what for figure in plan.table(measured)][:2] == ["thin: plan", "thin: unet"]
