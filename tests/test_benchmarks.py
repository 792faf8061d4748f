"""Tables and figures of BENCHMARKS.md and README show what files in benchmarks/results/ hold, and nothing else."""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import all as everything
from benchmarks import losses, plan, report, results, scenes, speed, startup
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import record, suite, syncbn, throughput, trainings
from benchmarks.results import BLOCK, FOLDER, PAGE, PAGES, Figure, page, table, targets, unbacked, write
from dataloader.tools.recipe import Machine, Measured
from engine.check import check_config
from tests.conftest import ROOT
from tests.test_report import large_content
from utils.config import load_config, override

TEXT = PAGE.read_text(encoding="utf-8")
OF_SEVERAL = {"targets", "busy", "gpu"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_page_shows_what_the_files_hold(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert page(text) == text, "run `python -m benchmarks.results`"
    assert unbacked(text, tables=path == PAGE) == [], "measure it, and refer to it as benchmarks/results.py says"


def test_every_file_has_a_table() -> None:
    files = {path.stem for path in FOLDER.glob("*.json") if not path.stem.startswith("gpu_")}
    assert {name for _, name, _ in BLOCK.findall(TEXT)} == files | OF_SEVERAL


def test_a_figure_that_no_file_backs_is_noticed() -> None:
    row = re.search(r"\| [\d.]+ x \|", TEXT)
    assert row is not None
    changed = TEXT.replace(row[0], "| 99 x |")
    assert page(changed) == TEXT != changed
    with pytest.raises(FileNotFoundError):
        page("<!-- results: unmeasured -->\n| 3 x |\n<!-- end -->")
    with pytest.raises(LookupError, match=r"losses\.json: has no figure '7 classes: magic; ours'"):
        page("<!-- figure: losses; 7 classes: magic; ours -->3 ms<!-- end -->")


@pytest.mark.parametrize(
    "text", ["4.5x as fast", "4 times as fast", "in 20 ms", "3 GiB less", "at 500 images/s", "2 s"]
)
def test_a_figure_in_a_sentence_needs_a_file(text: str) -> None:
    assert len(unbacked(f"It is {text}.")) == 1
    assert unbacked(f"It is <!-- figure: losses; *; smp -->{text}<!-- end -->.") == []
    assert unbacked(f"```\n{text}\n```\nand `{text}`, images of 160x208, 11 classes, mean IoU 0.62") == []


def test_a_table_by_hand_is_noticed() -> None:
    assert unbacked("| a |\n| --- |\n", tables=True) == ["| a |", "| --- |"]
    assert unbacked("| a |\n| --- |\n") == []


@pytest.mark.parametrize("path", sorted(FOLDER.rglob("*.json")), ids=lambda path: path.stem)
def test_files_name_commit_and_machine_and_no_folder_of_it(path: Path) -> None:
    stamp = json.loads(path.read_text(encoding="utf-8"))["environment"]
    # Trainings of hours may be of several commits, which are all named.
    assert re.fullmatch(r"[0-9a-f]{12}(, [0-9a-f]{12})*", stamp["git"]), "measure what is committed"
    assert stamp["versions"].keys() >= {"python", "torch"}
    assert stamp["cores"] > 0
    assert not any(word.startswith("/") for word in stamp["command"])


def test_a_commit_is_marked_where_code_was_changed_but_not_where_results_were(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        author = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True).stdout

    assert results.commit(tmp_path) is None
    git("init", "-q")
    for path in ("code.py", "README.md", "benchmarks/results/losses.json", "benchmarks/losses.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1")
    git("add", "-A")
    git("commit", "-qm", "first")
    clean = results.commit(tmp_path / "benchmarks")
    assert clean is not None
    assert len(clean) == 12
    for path in ("README.md", "benchmarks/results/losses.json"):
        (tmp_path / path).write_text("2")
    assert results.commit(tmp_path / "benchmarks") == clean
    (tmp_path / "code.py").write_text("2")
    assert results.commit(tmp_path / "benchmarks") == f"{clean}+"


def test_median_and_spread_come_from_all_rounds(tmp_path: Path) -> None:
    path = write("steps", "a step", [Figure("ours", "ms", [3.0, 1.0, 2.00004])], folder=tmp_path)
    found = json.loads(path.read_text())
    assert found["figures"] == [{"what": "ours", "unit": "ms", "median": 2.0, "low": 1.0, "high": 3.0, "runs": 3}]
    assert "| ours | 2 ms | 1 to 3 | 3 |" in table(found)
    shown = page("# A\n<!-- results: steps -->\nold\n<!-- end -->\nB\n", tmp_path)
    assert shown == f"# A\n<!-- results: steps -->\n{table(found)}<!-- end -->\nB\n"


def test_figures_with_columns_make_a_table_with_columns(tmp_path: Path) -> None:
    figures = [
        Figure("CE", "ms", [2.0, 4.0], "ours"),
        Figure("CE", "x", [1.0, 1.0], "smp"),
        Figure("Dice", "ms", [1], "ours"),
    ]
    write("losses", "a loss", figures, peers={"smp": "0.6"}, failed={"Dice": "no memory"}, folder=tmp_path)
    lines = table(results.read("losses", tmp_path)).splitlines()
    assert lines[0] == "| a loss | ours, ms | smp, x |"
    assert lines[2:5] == ["| CE | 3 (2 to 4) | 1 |", "| Dice | 1 |  |", "| **failed**: Dice | no memory |"]
    assert "others: smp 0.6." in lines[-1]
    text = "<!-- figure: losses; *; ours -->?<!-- end --> and <!-- figure: losses; CE; smp -->?<!-- end -->"
    assert re.sub("<.*?>", "", page(text, tmp_path)) == "1 to 3 ms and 1 times"


def test_ratios_that_were_measured_on_a_busy_machine_too_stand_beside_the_quiet_ones(tmp_path: Path) -> None:
    assert results.busy(tmp_path) == ["Not measured."]
    for folder, values in ((tmp_path, [4.0]), (tmp_path / "busy", [3.0, 5.0])):
        write("losses", "a loss", [Figure("CE", "x", values, "smp"), Figure("CE", "ms", [1], "ours")], folder=folder)
    assert results.busy(tmp_path)[2:] == ["| losses, CE: smp | 4 | 4 (3 to 5) |"]


def test_targets_are_met_missed_or_not_measured(tmp_path: Path) -> None:
    assert {verdict for *_, verdict in targets(tmp_path)} == {"not measured"}
    for value, verdict in ((2.9, "missed"), (3.0, "met")):
        write("losses", "a loss", [Figure("21 classes: cross-entropy", "x", [value], "yassouali")], folder=tmp_path)
        found = {target: (measured, said) for target, _, measured, said in targets(tmp_path)}
        assert found["cross-entropy, 21 classes: yassouali's / ours"] == (
            f"{value:g} x",
            f"**{verdict}**".replace("**met**", "met"),
        )


def test_what_is_missed_has_a_reason() -> None:
    assert [target for target, _, _, verdict in targets() if verdict == "**missed**"] == []


def test_cases_take_turns_and_are_repeated_less_when_it_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def case(name: str) -> float:
        order.append(name)
        return float(len(order))

    cases = {name: lambda name=name: case(name) for name in "ab"}
    assert results.by_turns(cases, 3) == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert len(results.by_turns(cases, 9, seconds=0)["a"]) == 2
    monkeypatch.setenv(results.LATE, str(time.time() - 1))
    assert len(results.by_turns(cases, 9)["a"]) == 2


def test_ratios_of_losses_are_taken_round_by_round() -> None:
    logits, labels = losses.inputs(5, scale=16)
    cases = {who: losses.columns(None)[who]["CE"] for who in ("ours", "plain torch")}
    turns = {who: lambda case=case: losses.once(case, logits, labels) for who, case in cases.items()}
    times = results.by_turns(turns, 3)
    ours, ratio = results.beside("CE", {"ours": [1.0, 2.0], "plain torch": [3.0, 2.0]})
    assert {who: len(column) for who, column in times.items()} == {"ours": 3, "plain torch": 3}
    assert (ours.unit, ratio.unit, ratio.values) == ("ms", "x", [3.0, 1.0])


def test_a_report_is_measured_as_often_as_asked() -> None:
    figures = report.measure(2, lambda folder: large_content(folder, epochs=3, images=2))
    assert [len(figure.values) for figure in figures] == [2, 2, 2]
    assert all(min(figure.values) > 0 for figure in figures)


def test_networks_are_measured_one_by_one() -> None:
    figure = speed.measure("FastSCNN", 2)
    assert (figure.what, figure.unit, len(figure.values)) == ("FastSCNN", "images/s", 2)
    assert min(figure.values) > 0


def test_prediction_is_measured_beside_its_network(tmp_path: Path) -> None:
    from benchmarks import inference  # it imports inference.py, which is called like it

    figures = inference.measure(ROOT / "configs" / "camvid.json", None, 2, 1, "cpu")
    assert [figure.unit for figure in figures] == ["images/s", "images/s", "x"]
    assert all(figure.values[0] > 0 for figure in figures)


def test_a_start_is_measured_with_the_network_of_the_config_and_no_data(tmp_path: Path) -> None:
    path = startup.tiny_run(tmp_path, ROOT / "configs" / "camvid.json")
    raw = json.loads(path.read_text())
    assert raw["train_loader"]["type"] == "Synthetic"
    assert raw["train_loader"]["args"]["batch_size"] == 8
    assert raw["train_loader"]["args"]["crop_size"] == [192, 256]
    assert raw["arch"]["args"]["head"]["type"] == "UNetHead"
    assert raw["trainer"]["max_steps"] == 1


# make bench -----------------------------------------------------------------------------------------------------------


def test_make_bench_measures_everything_in_less_than_25_minutes() -> None:
    recipe = (ROOT / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    assert "-m benchmarks.all $(BENCH)" in recipe
    assert sum(part.minutes for part in everything.PARTS.values()) <= 25
    measuring = {
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if '("--json", action' in path.read_text("utf-8")
    }
    assert {part.module for part in everything.PARTS.values()} == measuring - {*everything.BY_HAND}


def test_parts_for_a_gpu_take_less_than_ten_minutes() -> None:
    assert sum(part.minutes for name, part in gpu.PARTS.items() if name != "recipe") < 10


def test_a_part_that_fails_or_takes_too_long_is_told_of(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    slow = everything.Part("losses", 0.001)
    monkeypatch.setattr(everything, "PARTS", {"slow": slow, "missing": everything.Part("nothing", 1)})
    assert everything.main(["--quick"]) == 1
    output = capsys.readouterr().out
    assert "of 0.001 minutes, ended after 0.004 minutes" in output
    assert "of 1 minutes, ended with status 1" in output


@pytest.mark.slow
def test_everything_can_be_tried_in_small() -> None:
    assert everything.main(["--quick"]) == 0


# benchmarks/gpu/ ------------------------------------------------------------------------------------------------------


def test_what_fails_on_a_gpu_is_recorded_and_the_rest_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.TO, str(tmp_path))
    part = record.Record("losses", "losses", "cpu")
    part.attempt("first", lambda: 1 / 0)
    part.attempt("second", lambda: [Figure("second", "ms", [1.0], "ours")])
    found = results.read("gpu_losses", tmp_path)
    assert found["failed"] == {"first": "ZeroDivisionError: division by zero"}
    assert [figure["what"] for figure in found["figures"]] == ["second"]
    shown = page("<!-- results: gpu -->\n<!-- end -->", tmp_path)
    assert "| **failed**: first | ZeroDivisionError: division by zero |" in shown


def test_parts_for_a_gpu_run_on_a_cpu_in_small(tmp_path: Path) -> None:
    flags = ["--device", "cpu", "--quick", "--out", str(tmp_path), "--parts"]
    assert gpu.main([*flags, "losses"]) == 0
    found = results.read("gpu_losses", tmp_path)
    assert {figure["column"] for figure in found["figures"]} == {"ours", "plain torch"}
    assert len({figure["what"] for figure in found["figures"]}) == len(losses.PLAIN)


@pytest.mark.slow
def test_all_parts_for_a_gpu_run_on_a_cpu_in_small(tmp_path: Path) -> None:
    assert gpu.main(["--device", "cpu", "--quick", "--out", str(tmp_path)]) == 0
    names = {path.stem.removeprefix("gpu_") for path in tmp_path.glob("*.json")}
    assert names == gpu.PARTS.keys() - {"recipe"}
    assert all(results.read(path.stem, tmp_path)["figures"] for path in tmp_path.glob("*.json"))


def test_a_part_that_ends_before_it_writes_anything_has_a_file_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failure_of(code: str, minutes: float = 1.0) -> str:
        return gpu.failure_of([sys.executable, "-c", f"import sys, time; {code}"], os.environ, minutes)

    assert failure_of("print('what for', file=sys.stderr); sys.exit(3)") == "ended with status 3: what for"
    assert failure_of("pass") == ""
    assert failure_of("time.sleep(60)", 0.002) == "ended after 0.002 minutes"
    monkeypatch.setattr(gpu, "failure_of", lambda *arguments: "ended after 1 minutes")
    flags = argparse.Namespace(device="cpu", quick=True, frames=None, recipe=gpu.RECIPE)
    assert gpu.run_part("losses", flags, tmp_path) == {"losses": "ended after 1 minutes"}
    assert results.read("gpu_losses", tmp_path)["failed"] == {"losses": "ended after 1 minutes"}


def test_every_test_of_the_suite_for_gpus_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.TO, str(tmp_path))
    lines = [
        "import pytest",
        "@pytest.mark.parametrize('x', [0, 1], ids=['a b', 'c d'])",
        "def test_one(x): assert x == 0, 'one'",
        "@pytest.fixture",
        "def broken(): raise ValueError('in a fixture')",
        "def test_two(broken): pass",
        "@pytest.mark.skip",
        "def test_three(): pass",
    ]
    path = tmp_path / "test_some.py"
    path.write_text("\n".join(lines))
    suite.run_tests(record.Record("tests", "tests", "cpu"), argparse.Namespace(), path)
    found = results.read("gpu_tests", tmp_path)
    assert {name: line.partition("\n")[0] for name, line in found["failed"].items()} == {
        "test_one[c d]": "AssertionError: one",
        "test_two": "ValueError: in a fixture",
    }
    counts = {figure["column"]: figure["median"] for figure in found["figures"]}
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}


def test_a_suite_for_gpus_that_cannot_be_run_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.TO, str(tmp_path))
    part = record.Record("tests", "tests", "cpu")
    suite.run_tests(part, argparse.Namespace(), tmp_path / "test_none.py")
    assert list(part.failed) == ["test_none.py"]


def test_short_trainings_are_short_whatever_the_config_says() -> None:
    """CamVid's has a number of steps, which wins over epochs."""
    flags = argparse.Namespace(quick=False, frames=Path("camvid"), device="cpu")
    changed = override(load_config(ROOT / "configs" / "camvid.json"), trainings.settings_of(flags))
    assert check_config(changed).trainer.total_steps(steps_per_epoch=45) == 6 * 45


def test_a_training_is_compared_with_float32_only_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: Path, flags: argparse.Namespace, *settings: str) -> tuple[float, float]:
        if "trainer.precision=fp32" in settings and not flags.frames:
            raise RuntimeError("no memory")
        return (40.0, 1.0) if "trainer.precision=fp32" in settings else (48.0, 1.0)

    monkeypatch.setenv(results.TO, str(tmp_path))
    monkeypatch.setattr(trainings, "train", train)
    for frames, failed in ((None, {"fp32"}), (Path("camvid"), {"bf16"})):
        part = record.Record("precision", "short trainings", "cpu")
        trainings.precision_part(part, argparse.Namespace(quick=True, frames=frames, device="cpu"))
        assert set(part.failed) == failed
        assert [figure.column for figure in part.figures].count("minus fp32") == (frames is not None)


def test_a_network_that_does_not_fit_gets_half_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def network_step(*arguments: object, batch: int, **options: object) -> Callable[[], None]:
        def step() -> None:
            if batch > 4:
                raise torch.OutOfMemoryError("no memory")

        return step

    monkeypatch.setattr(throughput, "network_step", network_step)
    flags = argparse.Namespace(device="cpu")
    assert throughput.warm_step(throughput.NETWORKS[0], "fp32", flags)[0] == 4


def test_gradients_that_are_not_numbers_are_no_small_difference() -> None:
    one, two = torch.ones(2), torch.tensor([1.0, 1.5])
    assert syncbn.largest_difference([one, one], [one, two]) == 0.5
    assert not syncbn.largest_difference([one, one], [one * torch.nan, two]) <= 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_to_do(capsys: pytest.CaptureFixture) -> None:
    assert gpu.main([]) == 2
    assert capsys.readouterr().err == "error: --device: no GPU is visible. Use --device cpu --quick to try it.\n"


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


def test_a_folder_of_plans_is_of_one_length_of_training(tmp_path: Path) -> None:
    def settings(**changed: float) -> str | None:
        flags = argparse.Namespace(**{"folder": tmp_path / "new", "minutes": 15.0, "share": 1.0, **changed})
        return plan.other_settings(flags)

    assert settings() is None
    assert settings() is None
    assert settings(minutes=5) == f"--folder: {tmp_path / 'new'} was begun with --minutes 15. Use another."
