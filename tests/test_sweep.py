"""Sweeps: what is tried is a function of the seed and of what was found, and a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import PREFIX, ROOT, Answer, call, program

optuna = pytest.importorskip("optuna", reason="optuna is an extra; requirements-extra.txt has it")

import sweep  # noqa: E402
import train  # noqa: E402
from engine.sweep import distribution_of, prepare_sweep, run_sweep, summary  # noqa: E402
from utils.errors import ConfigError, Interrupted, UserError  # noqa: E402

SPACE = {"optimizer.args.lr": {"low": 1e-4, "high": 1.0, "log": True}, "trainer.accumulate": [1, 2]}

# Stands for train.py: a "run" whose figures follow from its settings, in the folder where a run would be.
FAKE = """
import json, math, sys, time
from pathlib import Path
sets = dict(word.split("=", 1) for flag, word in zip(sys.argv, sys.argv[1:]) if flag == "--set")
lr = float(sets["optimizer.args.lr"])
best = 1 - abs(math.log10(lr) + 2) / 4 - 0.1 * (sets["trainer.accumulate"] == "2")
folder = Path(json.loads(sets["trainer.save_dir"])) / sets["name"] / "2026-01-01_00-00-00"
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text("{}")
lines = []
for epoch in range(1, 4):
    time.sleep(PAUSE)
    lines.append(json.dumps({"epoch": epoch, "val/Mean_IoU": best * epoch / 3}))
    (folder / "new").write_text("\\n".join(lines) + "\\n")
    (folder / "new").rename(folder / "metrics.jsonl")
sys.exit(STATUS)
"""


@pytest.fixture
def files(tmp_path: Path, config_file: Callable[..., Path]) -> tuple[Path, Path]:
    """A config and a search space."""
    (tmp_path / "space.json").write_text(json.dumps(SPACE))
    return config_file(), tmp_path / "space.json"


def found(study: Any) -> list[tuple[Any, ...]]:
    """Settings, state and value of every trial."""
    return [(trial.params, trial.state, trial.value, trial.intermediate_values) for trial in study.trials]


def fake(tmp_path: Path, pause: float = 0.0, status: int = 0) -> list[str]:
    script = tmp_path / "fake.py"
    script.write_text(FAKE.replace("PAUSE", str(pause)).replace("STATUS", str(status)))
    return [sys.executable, str(script)]


def searched(files: tuple[Path, Path], command: list[str], trials: int = 12) -> Any:
    """The study of a whole sweep."""
    return run_sweep(prepare_sweep(*files, trials=trials, seed=3, command=command))


def test_what_cannot_be_searched_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    answer = call(sweep, "--config", files[0], "--space", files[1], "--trials", "0")
    assert answer.errors == ["--trials 0: no run. Give at least 1."]
    job = prepare_sweep(*files, trials=1, seed=3, command=fake(tmp_path))
    job.folder.mkdir(parents=True)
    (job.folder / "sweep.db").write_text("no database " * 100)
    with pytest.raises(ConfigError, match=r"sweep\.db: cannot be read \(.*not a database.*Delete it to begin anew"):
        run_sweep(job)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{run_sweep.__module__}.POLL", 0.01)
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(autouse=True)
def _registered() -> None:
    import tests.tiny  # noqa: F401  registers the dataset of the config


def test_a_sweep_finds_what_is_best_and_stops_what_is_not(files: tuple[Path, Path], tmp_path: Path) -> None:
    study = searched(files, fake(tmp_path))
    assert len(study.trials) == 12
    assert study.best_trial.params["trainer.accumulate"] == "1"
    assert 1e-3 < study.best_trial.params["optimizer.args.lr"] < 0.1
    states = {trial.state for trial in study.trials}
    assert states == {optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED}


def test_a_sweep_goes_on_with_as_many_trials_as_are_asked_for(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = found(searched(files, fake(tmp_path), 6))
    assert found(searched(files, fake(tmp_path), 6)) == whole  # it is finished
    longer = found(searched(files, fake(tmp_path), 8))
    assert longer[:6] == whole
    assert len(longer) == 8


def test_a_failed_trial_does_not_end_the_sweep(files: tuple[Path, Path], tmp_path: Path) -> None:
    study = searched(files, fake(tmp_path, status=4), 3)
    assert [trial.state for trial in study.trials] == [optuna.trial.TrialState.FAIL] * 3


def test_whole_bounds_with_a_step_that_is_not_are_a_range_of_numbers() -> None:
    kinds = optuna.distributions
    assert distribution_of({"low": 0, "high": 1, "step": 0.5}) == kinds.FloatDistribution(0, 1, step=0.5)
    assert distribution_of({"low": 4, "high": 16, "step": 4}) == kinds.IntDistribution(4, 16, step=4)
    assert distribution_of({"low": 0, "high": 1}) == kinds.IntDistribution(0, 1)


def test_what_lets_the_very_first_trial_fail_ends_the_sweep_and_is_said(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    command = fake(tmp_path, status=2)
    script = Path(command[-1])
    good = script.read_text().replace("sys.exit(2)", "sys.exit(0)")
    script.write_text('import sys; print("error: data_dir: is not there. Set it.", file=sys.stderr); sys.exit(2)')
    with pytest.raises(UserError, match=r"^trial-0000: data_dir: is not there\. Set it\. .*trial-0000\.log"):
        searched(files, command, 3)
    script.write_text(good)
    assert [trial.state.name for trial in searched(files, command, 3).trials] == ["COMPLETE"] * 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_trial_save_and_is_told(
    files: tuple[Path, Path], tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = fake(tmp_path)
    Path(command[-1]).write_text(
        "import os, signal, sys, time\n"
        "for each in (signal.SIGINT, signal.SIGTERM):\n"
        "    signal.signal(each, lambda n, _: (time.sleep(0.5), open('is_saved', 'w'), sys.exit(128 + n)))\n"
        f"os.kill({os.getpid()}, {int(number)})\n"
        "time.sleep(60)\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Interrupted, match=f"trial-0000 was stopped by {number.name}"):
        searched(files, command, 3)
    assert (tmp_path / "is_saved").exists()


def test_the_winner_is_given_with_what_all_trials_were_given(files: tuple[Path, Path], tmp_path: Path) -> None:
    job = prepare_sweep(*files, trials=1, seed=3, command=fake(tmp_path), sets=["trainer.epochs=7"])
    assert f"again: --config {files[0]} --set trainer.epochs=7 --set optimizer.args.lr=" in summary(run_sweep(job), job)


def test_another_config_file_of_the_same_name_is_another_sweep(files: tuple[Path, Path], tmp_path: Path) -> None:
    searched(files, fake(tmp_path), 1)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(json.loads(files[0].read_text()) | {"loss": "FocalLoss"}))
    answer = call(sweep, "-c", other, "--space", files[1], "--seed", 3)
    assert answer.status == 2
    assert "holds a sweep with another config" in answer.err


def test_an_undefined_figure_is_no_value_and_ends_no_sweep(files: tuple[Path, Path], tmp_path: Path) -> None:
    command = fake(tmp_path)
    script = Path(command[-1])
    script.write_text(script.read_text().replace("best * epoch / 3", "[None, math.nan, best][epoch - 1]"))
    study = searched(files, command, 1)
    assert [list(trial.intermediate_values) for trial in study.trials] == [[3]]
    assert study.trials[0].state == optuna.trial.TrialState.COMPLETE


def test_trials_that_would_be_cut_off_are_refused(files: tuple[Path, Path]) -> None:
    answer = call(sweep, "-c", files[0], "--space", files[1], "-s", "trainer.max_time=5")
    assert answer.status == 2
    assert answer.errors[0].startswith("trainer.max_time: would cut trials off")


@pytest.mark.parametrize(
    ("space", "error"),
    [
        ({}, "names no key"),
        ({"optimizer.args.lr": {"low": 1}}, "optimizer.args.lr: got"),
        ({"optimizer.args.lr": {"low": 2, "high": 1}}, "optimizer.args.lr: low 2 and high 1 are no range"),
        ({"optimizer.args.lr": {"low": 0, "high": 1, "log": True}}, "low 0 has no logarithm"),
        ({"trainer.epochs": {"low": 2, "high": 4, "step": "2"}}, 'trainer.epochs: log false, step "2". Give'),
        ({"optimizer.args.lr": {"low": 1, "high": 2, "log": 1}}, "optimizer.args.lr: log 1, step null. Give"),
        ({"optimizer.args.lrr": [1]}, "optimizer.args.lrr=1: optimizer.args.lrr: unknown key"),
        ({"trainer.epochs": [3, "many"]}, 'trainer.epochs="many": trainer.epochs: expected int'),
    ],
)
def test_a_space_that_does_not_fit_is_refused_at_once(
    files: tuple[Path, Path], space: dict[str, Any], error: str
) -> None:
    config, path = files
    path.write_text(json.dumps(space))
    answer: Answer = call(sweep, "-c", config, "--space", path)
    assert answer.status == 2
    assert any(line.startswith(f"{path}: ") and error in line for line in answer.errors), answer.err


def test_another_space_is_another_sweep(files: tuple[Path, Path], tmp_path: Path) -> None:
    searched(files, fake(tmp_path), 1)
    files[1].write_text(json.dumps({"trainer.accumulate": [1, 2]}))
    answer = call(sweep, "-c", files[0], "--space", files[1])
    assert answer.status == 2
    assert "holds a sweep with another space" in answer.err


@pytest.mark.parametrize("change", ["loss.type=FocalLoss", "trainer.epochs=4"])
def test_trials_of_two_configs_are_not_mixed(files: tuple[Path, Path], tmp_path: Path, change: str) -> None:
    searched(files, fake(tmp_path), 1)
    answer = call(sweep, "-c", files[0], "--space", files[1], "--seed", 3, "--set", change)
    assert answer.status == 2
    assert "holds a sweep with another config" in answer.err


def killed_three_times(files: tuple[Path, Path], folder: Path, command: list[str], pauses: list[float]) -> None:
    """Kill a sweep with -9 after each of `pauses`, starting it again in between."""
    code = (
        f"from pathlib import Path; import tests.tiny; from {PREFIX}engine.sweep import prepare_sweep, run_sweep\n"
        f"run_sweep(prepare_sweep(Path({str(files[0])!r}), Path({str(files[1])!r}), trials=12, seed=3, "
        f"command={command!r}, options=['--import', 'tests.tiny', '--device', 'cpu']))"
    )
    for pause in pauses:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
        deadline = time.monotonic() + 120
        count = len(list(folder.glob("trial-*.log")))
        while len(list(folder.glob("trial-*.log"))) == count and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(pause)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()


def test_a_sweep_that_was_killed_ends_like_one_that_was_not(files: tuple[Path, Path], tmp_path: Path) -> None:
    whole = found(searched(files, fake(tmp_path)))
    folder = tmp_path / "saved" / "tiny-sweep"
    folder.rename(tmp_path / "undisturbed")
    killed_three_times(files, folder, fake(tmp_path, pause=0.1), [0.05, 0.2, 0.35])
    assert found(searched(files, fake(tmp_path))) == whole


@pytest.mark.slow
def test_a_sweep_of_real_runs_that_was_killed_ends_like_one_that_was_not(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    command = program(train)
    options = ["--import", "tests.tiny", "--device", "cpu"]
    folder = tmp_path / "saved" / "tiny-sweep"
    killed_three_times(files, folder, command, [1.0, 4.0, 3.0])
    ends = []
    for _ in range(2):
        ends.append(found(run_sweep(prepare_sweep(*files, trials=12, seed=3, command=command, options=options))))
        if folder.exists():
            folder.rename(tmp_path / f"finished-{len(ends)}")
    assert ends[0] == ends[1]
    assert len(ends[0]) == 12
