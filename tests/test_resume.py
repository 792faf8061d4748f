"""A run that was killed anywhere and resumed ends, to the last bit, as one that was left alone."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

import train
import trainer
from engine import session
from engine.check import check_config
from engine.config import RunConfig
from engine.resume import Resume
from tests.conftest import ROOT, program
from tests.tiny import tiny_config
from utils.errors import UserError, run
from utils.run_folder import Lock, is_locked

RENAMES = 25  # of files, in a run of the config below


# Children are forked by a server that has imported torch and computed nothing: a fresh interpreter would import it for
# seconds each time, and a fork of this process would inherit autograd threads that other tests may have started.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.ranks", session.__name__, "tests.tiny", trainer.__name__])


def in_child(*flags: str, **environment: str) -> int:
    """Exit status of train.py in a process of its own; minus the signal's number if one killed it.

    Args:
        flags: Its command line.
        environment: Variables for it; with SEGWRIGHT_TEST_GROUP it leads a process group of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("out", "err")]
        # The server of forks has the variables of the test that started it.
        ours = {name: value for name, value in os.environ.items() if name.startswith("SEGWRIGHT_")}
        process = CONTEXT.Process(target=child, args=(flags, ours | environment, outputs))
        process.start()
        process.join()
        for output, stream in zip(outputs, (sys.stdout, sys.stderr), strict=True):
            stream.write(output.read_text())
    assert process.exitcode is not None
    return process.exitcode


def child(flags: tuple[str, ...], environment: dict[str, str], outputs: list[Path]) -> None:
    """What a child does: be train.py."""
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    if "SEGWRIGHT_TEST_GROUP" in environment:
        os.setsid()  # else the tests would be hit, too
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # data workers are to be its children, and notice its death
    torch.set_num_threads(1)
    sys.exit(run(train.main, flags))


MODULES = ("--import", "tests.tiny", "--import", "tests.kill_points")


def train_in_child(
    config: Path, *flags: str, kill: str = "", with_signal: str = "SIGKILL", to_workers: bool = False
) -> int:
    """Run train.py on `config` in a child that dies at the kill point `kill`, with its workers or alone."""
    environment = {"SEGWRIGHT_TEST_KILL": kill or "never:1", "SEGWRIGHT_TEST_SIGNAL": with_signal}
    if to_workers:
        environment["SEGWRIGHT_TEST_GROUP"] = "1"
    return in_child("-c", str(config), *MODULES, *flags, **environment)


def write_config(folder: Path, num_workers: int = 0, **trainer: Any) -> Path:
    """A config for runs in `folder`; `trainer` changes its section of that name."""
    config = tiny_config(folder / "saved")
    config["trainer"] |= {"epochs": 2, "save_steps": 2, "ema": 0.9, "early_stop": 5, **trainer}
    config["lr_scheduler"] = {"type": "Poly", "args": {"warmup_epochs": 0.5}}
    config["train_loader"]["args"]["num_workers"] = num_workers
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return path


def only_run(folder: Path) -> Path:
    """The only run folder below `folder`."""
    (found,) = (folder / "saved" / "tiny").glob("2*")
    return found


def files_of(folder: Path) -> dict[Path, bytes]:
    """Content of the files directly in `folder`, but for the log."""
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file() and path.suffix != ".log"}


def equal(a: Any, b: Any) -> bool:
    """Whether two checkpoints' contents are the same to the last bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def assert_same_end(folder: Path, whole: Path) -> None:
    """The run below `folder` left what the run in `whole` did."""
    mine = only_run(folder)
    assert (mine / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    for name in ("last.pth", "best_model.pth", "checkpoint-epoch2.pth"):
        a, b = (torch.load(path / name, weights_only=True) for path in (mine, whole))
        for key in a.keys() - {"config", "environment"}:
            assert equal(a[key], b[key]), f"{name}: {key} differs"
    assert not list(mine.glob("*.tmp*"))


def remove_unsaved(folder: Path) -> None:
    """Remove all but the newest run below `folder`: killed before their first checkpoint, they left nothing."""
    for early in sorted((folder / "saved" / "tiny").glob("2*"))[:-1]:
        assert not list(early.glob("*.pth"))
        for file in early.iterdir():
            file.unlink()
        early.rmdir()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert train_in_child(write_config(folder)) == 0
    return only_run(folder)


def test_the_kill_points_below_are_all_the_renames_there_are(tmp_path: Path) -> None:
    assert train_in_child(write_config(tmp_path), kill=f"before_rename:{RENAMES + 1}") == 0


def test_the_number_of_workers_changes_nothing(tmp_path: Path, whole: Path) -> None:
    assert train_in_child(write_config(tmp_path, num_workers=2)) == 0
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(
    "kill",
    [
        *("step:1", "step:4", "step:5", "step:6", "step:10"),
        *("mid_validation:1", "mid_validation:5", "after_best:1"),
        *(f"{when}_rename:{n}" for n in range(1, RENAMES + 1) for when in ("before", "after")),
        *("mid_write:1", "mid_write:4"),
    ],
)
def test_kill_9_at_a_named_point_changes_nothing(tmp_path: Path, whole: Path, kill: str) -> None:
    config = write_config(tmp_path)
    assert train_in_child(config, kill=kill) == -signal.SIGKILL
    assert train_in_child(config, "--resume", "auto") == 0
    remove_unsaved(tmp_path)
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(
    "kill",
    [
        *(f"unwritten:{n}" for n in (1, 3, 4, 6)),
        *(f"half_written:{n}" for n in (2, 3, 4, 8)),
        *(f"unrenamed:{n}" for n in (1, 3, 6, 7, 8, 9, 12)),
    ],
)
def test_kill_9_while_training_is_ahead_of_what_is_written_changes_nothing(
    tmp_path: Path, whole: Path, kill: str
) -> None:
    config = write_config(tmp_path)
    assert train_in_child(config, kill=kill) == -signal.SIGKILL
    assert train_in_child(config, "--resume", "auto") == 0
    remove_unsaved(tmp_path)
    assert_same_end(tmp_path, whole)


def test_kill_9_while_a_part_rests_or_warms_up_changes_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / kill for kill in ("", "step:4", "step:6")]
    for folder in folders:
        kill = folder.name if folder != tmp_path else ""
        folder.mkdir(exist_ok=True)
        path = write_config(folder)
        config = json.loads(path.read_text())
        config["optimizer"]["parts"] = {"backbone": {"delay": 4, "warmup": 4}, "decoder": {"warmup": 2}}
        path.write_text(json.dumps(config))
        assert train_in_child(path, kill=kill) == (-signal.SIGKILL if kill else 0)
        if kill:
            assert train_in_child(path, "--resume", "auto") == 0
            assert_same_end(folder, only_run(tmp_path))


@pytest.mark.parametrize("kill", ["step:4", "before_rename:9", "mid_validation:2"])
def test_kill_9_with_workers_changes_nothing(tmp_path: Path, whole: Path, kill: str) -> None:
    config = write_config(tmp_path, num_workers=2)
    assert train_in_child(config, kill=kill) == -signal.SIGKILL
    assert train_in_child(config, "--resume", "auto") == 0
    assert_same_end(tmp_path, whole)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc")
def test_no_data_worker_outlives_a_killed_run(tmp_path: Path) -> None:
    flags = ("-c", str(write_config(tmp_path, num_workers=2)), *MODULES)
    outputs = [tmp_path / "out", tmp_path / "err"]
    process = CONTEXT.Process(target=leader, args=(flags, {"SEGWRIGHT_TEST_KILL": "step:4"}, outputs))
    process.start()
    most, deadline = 0, time.monotonic() + 120
    while process.is_alive() or members(process.pid):
        most = max(most, len(members(process.pid)))
        assert time.monotonic() < deadline, f"still there: {members(process.pid)}"
        time.sleep(0.05)
    assert process.exitcode == -signal.SIGKILL
    assert most >= 3  # the run and two workers


@pytest.mark.parametrize("own", [True, False], ids=["as a program", "as a child of multiprocessing"])
def test_an_error_in_the_data_ends_a_run_that_has_workers(tmp_path: Path, own: bool) -> None:
    config = write_config(tmp_path, num_workers=2)
    text = json.loads(config.read_text())
    text["train_loader"]["args"] = {"batch_size": 4, "num_workers": 2, "transforms": ["UnequalInWorkers"]}
    config.write_text(json.dumps(text))
    command = [*program(train), "-c", str(config), *MODULES, "--import", "tests.unequal"]
    if own:
        process = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert process.returncode == 2
        assert "images of different sizes in one batch" in process.stderr
        return
    child_of_ours = CONTEXT.Process(
        target=child, args=(command[len(program(train)) :], {}, [tmp_path / "out", tmp_path / "err"])
    )
    child_of_ours.start()
    child_of_ours.join(120)
    if child_of_ours.exitcode is None:
        child_of_ours.kill()
    assert child_of_ours.exitcode == 2


def leader(flags: tuple[str, ...], environment: dict[str, str], outputs: list[Path]) -> None:
    """What a child does whose workers can be told from other processes: lead a group, and be train.py."""
    os.setsid()
    child(flags, environment, outputs)


def members(group: int | None) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            state, _, leader = stat.read_text().rpartition(")")[2].split()[:3]
            found += [int(stat.parent.name)] if state != "Z" and int(leader) == group else []
    return found


def test_being_killed_again_and_again_changes_nothing(tmp_path: Path, whole: Path) -> None:
    config = write_config(tmp_path, save_steps=1)
    for kill in ("step:3", "step:2", "mid_validation:1", "before_rename:5", "step:1", "after_rename:4"):
        assert train_in_child(config, "--resume", "auto", kill=kill) == -signal.SIGKILL
    assert train_in_child(config, "--resume", "auto") == 0
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture, name: str, status: int
) -> None:
    config = write_config(tmp_path, save_steps=None)
    assert train_in_child(config, kill="step:3", with_signal=name) == status
    last = only_run(tmp_path) / "last.pth"
    assert torch.load(last, weights_only=True)["step"] == 3
    assert f"{name}: stopped at step 3 of 10. Go on with --resume {last}" in capsys.readouterr().err
    assert train_in_child(config, "--resume", str(last), "--set", "trainer.save_steps=2") == 0
    assert_same_end(tmp_path, whole)


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_a_signal_to_the_workers_too_finishes_the_step_and_saves(
    tmp_path: Path, whole: Path, name: str, status: int
) -> None:
    config = write_config(tmp_path, num_workers=2, save_steps=None)
    assert train_in_child(config, kill="step:3", with_signal=name, to_workers=True) == status
    last = only_run(tmp_path) / "last.pth"
    assert torch.load(last, weights_only=True)["step"] == 3
    assert train_in_child(config, "--resume", str(last), "--set", "trainer.save_steps=2") == 0
    assert_same_end(tmp_path, whole)


def test_a_signal_during_validation_loses_no_training(tmp_path: Path, whole: Path) -> None:
    config = write_config(tmp_path, save_steps=None)
    assert train_in_child(config, kill="mid_validation:1", with_signal="SIGTERM") == 143
    assert torch.load(only_run(tmp_path) / "last.pth", weights_only=True)["position"] == 10
    assert train_in_child(config, "--resume", "auto", "--set", "trainer.save_steps=2") == 0
    assert_same_end(tmp_path, whole)


def test_resuming_without_a_config_takes_the_checkpoints_own(tmp_path: Path, whole: Path) -> None:
    config = write_config(tmp_path)
    assert train_in_child(config, kill="step:5") == -signal.SIGKILL
    last = only_run(tmp_path) / "last.pth"
    assert in_child(*MODULES, "--resume", str(last)) == 0
    assert_same_end(tmp_path, whole)


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    config = write_config(tmp_path, epochs=1)
    assert train_in_child(config) == 0
    before = files_of(only_run(tmp_path))
    assert train_in_child(config, "--resume", "auto") == 0
    assert files_of(only_run(tmp_path)) == before


def test_a_kill_before_the_final_figures_loses_none(tmp_path: Path) -> None:
    config = write_config(tmp_path, epochs=1)
    assert train_in_child(config) == 0
    results = only_run(tmp_path) / "results.json"
    written = results.read_bytes()
    results.unlink()
    assert train_in_child(config, "--resume", "auto") == 0
    assert results.read_bytes() == written


def test_a_finished_run_can_be_prolonged(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path, epochs=1)
    assert train_in_child(config) == 0
    assert train_in_child(config, "--resume", "auto", "--set", "trainer.epochs=2") == 0
    printed = capsys.readouterr().out
    assert "trainer.epochs: 2 instead of 1" in printed
    assert "learning rate: " in printed
    lines = [json.loads(line) for line in (only_run(tmp_path) / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10]


def test_another_config_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path, epochs=1)
    assert train_in_child(config) == 0
    last = only_run(tmp_path) / "last.pth"
    assert train_in_child(config, "--resume", str(last), "--lr", "0.5", "--set", "aux_factor=0.1") == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert [line.split(": ")[1] for line in lines] == ["optimizer.args.lr", "aux_factor"]
    assert "0.5, but" in lines[0]


def test_auto_starts_afresh_from_other_weights_and_goes_on_from_equal_ones(
    tmp_path: Path,
) -> None:
    (tmp_path / "sources").mkdir()
    source = write_config(tmp_path / "sources", epochs=1)
    for name, seed in (("a", 0), ("copy", 0), ("b", 1)):
        assert train_in_child(source, "--resume", "auto", "--set", f"seed={seed}") == 0
        (tmp_path / name).mkdir()
        newest = max((tmp_path / "sources" / "saved" / "tiny").glob("2*"))
        shutil.copy(newest / "last.pth", tmp_path / name / "weights.pth")
    config = write_config(tmp_path, epochs=1)
    for name, runs in (("a", 1), ("copy", 1), ("b", 2)):
        start = f"init_from={json.dumps(str(tmp_path / name / 'weights.pth'))}"
        assert train_in_child(config, "--resume", "auto", "--set", start) == 0
        assert len(list((tmp_path / "saved" / "tiny").glob("2*"))) == runs
    shutil.rmtree(tmp_path / "a")  # as if the project had been moved
    shutil.rmtree(tmp_path / "copy")
    assert train_in_child(config, "--resume", "auto", "--set", start) == 0
    assert len(list((tmp_path / "saved" / "tiny").glob("2*"))) == 2


def test_what_was_saved_later_is_set_aside_when_an_earlier_checkpoint_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = write_config(tmp_path, epochs=3, save_period=1, keep_last=3, monitor="max val/loss")
    assert train_in_child(config) == 0
    run = only_run(tmp_path)
    history = [json.loads(line)["val/loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    sign = "max" if history[0] < max(history[1:]) else "min"  # so that the best is a later one
    monitor = f"trainer.monitor={sign} val/loss"
    assert train_in_child(config, "--set", monitor) == 0
    (run,) = set((tmp_path / "saved" / "tiny").glob("2*")) - {run}
    assert torch.load(run / "best_model.pth", weights_only=True)["epoch"] > 1
    flags = ("--resume", str(run / "checkpoint-epoch1.pth"), "--set", monitor, "--set", "trainer.epochs=2")
    assert train_in_child(config, *flags) == 0
    assert "best_model.pth: damaged, or saved after step 5; it is old-best_model.pth now." in capsys.readouterr().out
    best = torch.load(run / "best_model.pth", weights_only=True)
    results = json.loads((run / "results.json").read_text())
    assert (best["epoch"], best["best"]["value"]) == (results["epoch"], results["metrics"]["val/loss"])
    assert sorted(path.name for path in run.glob("*checkpoint*")) == [
        "checkpoint-epoch1.pth",
        "checkpoint-epoch2.pth",
        "old-checkpoint-epoch2.pth",
        "old-checkpoint-epoch3.pth",
    ]


def test_a_run_on_several_training_sets_may_go_on_with_other_workers_and_folders(tmp_path: Path) -> None:
    first = tiny_config(tmp_path)["train_loader"]
    own = {name: value for name, value in first["args"].items() if name not in ("batch_size", "num_workers")}
    other = {"type": "Squares", "args": {**own, "split": "val"}}
    made = check_config(tiny_config(tmp_path, train_loader=[first, other]))
    content = {"config": made.to_json(), "classes": list(made.classes.names)}
    resume = Resume(tmp_path / "last.pth", content)  # type: ignore[arg-type]

    def changed(number: int, **args: Any) -> RunConfig:
        loaders = [deepcopy(first), deepcopy(other)]
        loaders[number]["args"] |= args
        return check_config(tiny_config(tmp_path, train_loader=loaders))

    resume.compare(changed(0, num_workers=3))
    resume.compare(changed(1, data_dir="/moved"))
    with pytest.raises(UserError, match=r"^train_loader\[1\]\.args\.length: 4, but .*last\.pth was trained with 11\."):
        resume.compare(changed(1, length=4))


def test_auto_starts_afresh_where_nothing_matches(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path, epochs=1)
    assert train_in_child(config) == 0
    assert train_in_child(config, "--resume", "auto", "--set", "seed=1") == 0
    assert "starting afresh" in capsys.readouterr().out
    assert len(list((tmp_path / "saved" / "tiny").glob("2*"))) == 2


def test_auto_takes_the_run_that_came_furthest_whatever_its_date(tmp_path: Path) -> None:
    config = write_config(tmp_path, epochs=2)
    assert train_in_child(config, kill="step:7") == -signal.SIGKILL
    older = only_run(tmp_path)
    assert train_in_child(config, kill="step:4") == -signal.SIGKILL
    assert train_in_child(config, "--resume", "auto") == 0
    assert torch.load(older / "last.pth", weights_only=True)["epoch"] == 2


def test_a_damaged_checkpoint_is_passed_over_loudly(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path)
    assert train_in_child(config, kill="step:9") == -signal.SIGKILL
    last = only_run(tmp_path) / "last.pth"
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 4
    last.write_bytes(data)
    assert train_in_child(config, "--resume", "auto") == 0
    printed = capsys.readouterr().out
    assert "warning" in printed
    assert "is damaged" in printed
    assert "last.prev.pth" in printed
    assert_same_end(tmp_path, whole)


def test_a_run_that_is_being_trained_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = write_config(tmp_path)
    assert train_in_child(config, kill="step:5") == -signal.SIGKILL
    lock = Lock(only_run(tmp_path))
    assert train_in_child(config, "--resume", str(only_run(tmp_path) / "last.pth")) == 2
    assert "another process is training this run" in capsys.readouterr().err
    lock.release()


def test_a_run_in_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: cannot be written"):
        Lock(tmp_path / "nowhere")


def test_a_file_system_without_locks_is_no_reason_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    Lock(tmp_path).release()
    assert not is_locked(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_kill_9_at_random_moments_changes_nothing(tmp_path: Path, num_workers: int) -> None:
    (tmp_path / "alone").mkdir()
    (tmp_path / "killed").mkdir()
    command = [*program(train), "--import", "tests.tiny", "--resume", "auto", "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    options = {"epochs": 12, "save_steps": 3}
    alone = write_config(tmp_path / "alone", num_workers, **options)
    subprocess.run([*command, str(alone)], env=environment, check=True, stdout=subprocess.DEVNULL)
    killed, moments = write_config(tmp_path / "killed", num_workers, **options), random.Random(num_workers)
    deaths, folder = 0, tmp_path / "killed" / "saved" / "tiny"

    def saved() -> list[int]:
        return [path.stat().st_mtime_ns for path in folder.glob("2*/last.pth")]

    for _ in range(60):
        before = saved()
        process = subprocess.Popen([*command, str(killed)], env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and saved() == before:  # it is to get on, however slow the machine
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.6))
        process.kill()
        if process.wait() == 0:
            break
        deaths += 1
    assert process.returncode == 0, "never finished"
    assert deaths >= 2
    whole = only_run(tmp_path / "alone")
    mine = only_run(tmp_path / "killed")
    assert (mine / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    a, b = (torch.load(path / "last.pth", weights_only=True) for path in (mine, whole))
    assert all(equal(a[key], b[key]) for key in a.keys() - {"config", "environment"})
