"""Several processes train as one does, stop together, and none is left behind when one of them dies."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import train
from engine.check import check_config
from engine.dry_run import dry_run, has_unused
from tests.conftest import ROOT, program
from tests.ranks import CASES, steps_of
from tests.test_metrics import every_figure, scene
from tests.test_resume import CONTEXT, MODULES, assert_same_end, only_run, write_config
from tests.tiny import tiny_config
from utils import distributed, heartbeat
from utils.errors import DataError, Interrupted, PeerFailed, Stopped, UserError
from utils.heartbeat import Heartbeat, Process

CPU = ("--device", "cpu")


def on_two_ranks(folder: Path, what: str, *flags: str, **environment: str) -> tuple[int, list[str]]:
    """Exit status of two processes that do `what` of tests/ranks.py, and what each has printed."""
    folder.mkdir(exist_ok=True)
    kept = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    # Of the launcher only; its children are forked by a server that has imported torch already, see test_resume.
    launcher = CONTEXT.Process(target=launch, args=([str(folder), what, *flags], environment))
    try:
        launcher.start()
        launcher.join(60)
        assert launcher.exitcode is not None, "never ended"
    finally:
        launcher.kill()
        for name, value in kept.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return launcher.exitcode, [(folder / f"{rank}.txt").read_text() for rank in (0, 1)]


def launch(argv: list[str], environment: dict[str, str]) -> None:
    """What the launching process does; in one of its own, since its children inherit its environment."""
    torch.set_num_threads(1)
    os.environ.update(environment, OMP_NUM_THREADS="1")
    os.dup2(os.open(Path(argv[0]) / "launcher.txt", os.O_WRONLY | os.O_CREAT), 2)
    sys.exit(distributed.launch("tests.ranks", argv, 2, start_method="fork"))


def test_two_processes_compute_what_one_does(tmp_path: Path) -> None:
    status, printed = on_two_ranks(tmp_path, "steps")
    assert status == 0, printed
    figures = every_figure(*scene(5), 1).results()
    assert [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)] == [figures, figures]
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for case, *found in zip(CASES, *ranks, strict=True):
        first, second = found
        assert second["figures"] == first["figures"]
        assert all(torch.equal(value, first["weights"][name]) for name, value in second["weights"].items())
        if "freeze_bn" in case:  # statistics of half a batch are not those of the whole
            continue
        alone = steps_of(tmp_path, **{key: value for key, value in case.items() if key != "accumulate"})
        for each in found:
            assert each["figures"] == pytest.approx(alone["figures"], rel=1e-5), case
            assert torch.equal(each["counts"], alone["counts"])
            for mine, theirs in zip(each["gradients"], alone["gradients"], strict=True):
                assert mine.keys() == theirs.keys()
                for name in theirs:
                    torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6)
            for name, value in alone["weights"].items():
                torch.testing.assert_close(each["weights"][name], value, rtol=1e-5, atol=1e-6)


def test_processes_stop_together_die_together_and_go_on_to_the_last_bit(tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    whole, config = (str(write_config(tmp_path / name)) for name in ("whole", "broken"))
    status, printed = on_two_ranks(tmp_path / "1", "train", "-c", whole, *MODULES, *CPU)
    assert (status, printed[1]) == (0, ""), printed
    assert printed[0].count("epoch 2/2") == 1
    flags = ("train", "-c", config, *MODULES, *CPU, "--resume", "auto")

    status, printed = on_two_ranks(
        tmp_path / "2", *flags, SEGWRIGHT_TEST_KILL="step:3", SEGWRIGHT_TEST_SIGNAL="SIGTERM"
    )
    assert status == 143
    assert "SIGTERM: stopped at step 5 of 10. Go on with --resume" in printed[0]
    assert printed[1] == ""
    assert torch.load(only_run(tmp_path / "broken") / "last.pth", weights_only=True)["step"] == 5

    start = time.monotonic()
    status, printed = on_two_ranks(tmp_path / "3", *flags, SEGWRIGHT_TEST_KILL="step:4", SEGWRIGHT_TEST_RANK="1")
    assert status == 4
    assert time.monotonic() - start < 40
    assert "of 2 processes, rank 1 (process" in printed[0]
    assert str(only_run(tmp_path / "broken") / "last.pth") in printed[0]
    assert "rank 1 was killed by SIGKILL" in (tmp_path / "3" / "launcher.txt").read_text()

    status, printed = on_two_ranks(tmp_path / "4", *flags)
    assert status == 0, printed
    assert_same_end(tmp_path / "broken", only_run(tmp_path / "whole"))
    log = (only_run(tmp_path / "broken") / "train.log").read_text()
    assert "going on from" in log


def test_what_is_wrong_in_one_process_ends_all_and_is_said_once(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    status, printed = on_two_ranks(tmp_path / "out", "train", "-c", str(config), *MODULES, *CPU, SEGWRIGHT_TEST_BAD="1")
    assert status == 2
    assert printed[1].startswith("error: rank 1: square_")
    assert "error" not in printed[0]


@pytest.mark.slow
def test_sigterm_to_torchrun_saves_and_a_killed_rank_makes_it_start_again(tmp_path: Path) -> None:
    config = write_config(tmp_path, epochs=2000, save_steps=2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [
        *torchrun,
        "--max-restarts",
        "1",
        *program(train)[1:],
        "-c",
        str(config),
        "--import",
        "tests.tiny",
        *CPU,
        "-r",
        "auto",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    steps = [0]
    for how in (signal.SIGTERM, signal.SIGKILL):
        limit = ["-s", "trainer.max_time=0.2"] if how == signal.SIGKILL else []
        run = subprocess.Popen(
            [*command, *limit], env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
        )
        while not (saved := list(tmp_path.glob("saved/tiny/*/last.pth"))) or step_of(saved[0]) < steps[-1] + 10:
            assert run.poll() is None
            time.sleep(0.1)
        ranks = [
            pid for task in Path(f"/proc/{run.pid}/task").iterdir() for pid in (task / "children").read_text().split()
        ]
        if how == signal.SIGTERM:
            run.send_signal(how)
        else:
            os.kill(max(map(int, ranks)), how)
        try:
            _, said = run.communicate(timeout=60)
        finally:
            run.kill()
        assert (run.returncode == 0) == (how == signal.SIGKILL)  # started again, it runs until its time is over
        assert ("SIGTERM: stopped at step" if how == signal.SIGTERM else "processes, rank ") in said
        steps.append(step_of(only_run(tmp_path) / "last.pth"))
    assert steps == sorted(steps)


def step_of(path: Path) -> int:
    try:
        return torch.load(path, weights_only=True)["step"]
    except (OSError, RuntimeError):  # it is being replaced
        return 0


def test_another_number_of_processes_is_no_longer_exact_and_says_so(
    tmp_path: Path, train_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_config(tmp_path, epochs=1)
    tiny = ("-c", config, "--import", "tests.tiny", *CPU)
    assert train_command(*tiny).status == 0
    last = only_run(tmp_path) / "last.pth"
    state = torch.load(last, weights_only=True)
    state["environment"]["world_size"] = 2
    torch.save(state, last)
    answer = train_command(*tiny, "-r", last, "-s", "trainer.epochs=2")
    assert answer.status == 0, answer.err
    assert "in 2 processes on cpu, this is" in answer.out
    assert "results will not be the same to the last bit" in answer.out
    assert "going on from" in answer.out


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in place.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UserError, match=rf"^MASTER_PORT: 127\.0\.0\.1:{port} is in use"),
            distributed.joined(torch.device("cpu")),
        ):
            raise AssertionError


def test_processes_meet_though_an_earlier_group_has_left_its_words() -> None:
    store, names = dist.HashStore(), []

    def meet(rank: int) -> None:
        names.append(distributed._rendezvous(store, Process(rank, 3, rank, 3)))

    for group in (1, 2, 3):
        threads = [threading.Thread(target=meet, args=(rank,)) for rank in (1, 0, 2)]
        for thread in threads[: 3 if group != 2 else 2]:
            thread.start()
        if group == 2:  # the third comes late
            time.sleep(0.1)
            threads[2].start()
        for thread in threads:
            thread.join(20)
        assert len(names) == 3 * group
    assert [len(set(names[start : start + 3])) for start in (0, 3, 6)] == [1, 1, 1]
    assert len(set(names)) == 3


def test_who_does_not_come_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "TIMEOUT", timedelta(seconds=0.05))
    with pytest.raises(RuntimeError, match="rank 1, 2 did not come"):
        distributed._rendezvous(dist.HashStore(), Process(0, 3, 0, 3))


@pytest.mark.parametrize("changes", [{"RANK": "2"}, {"RANK": "-1"}, {"RANK": "x"}, {"LOCAL_RANK": "5"}])
def test_a_place_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"^environment: RANK="):
        distributed.announced_process()


def test_a_batch_that_processes_cannot_share_is_refused(
    tmp_path: Path, train_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**tiny_config(tmp_path), "n_gpu": 3}))
    answer = train_command("-c", path, "--import", "tests.tiny")
    assert answer.status == 2
    assert answer.errors == [
        "train_loader.args.batch_size: 2 is not divisible by trainer.accumulate 1 times 3 processes. Use 3."
    ]


def test_as_many_processes_are_started_as_there_are_gpus(
    tmp_path: Path, train_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(distributed, "launch", lambda *arguments: started.append(arguments) or 0)
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**tiny_config(tmp_path), "n_gpu": 8}))
    flags = ["-c", str(path), "--import", "tests.tiny"]
    answer = train_command(*flags)
    assert answer.status == 0
    assert started == [(train.__name__, flags, 2)]
    assert "n_gpu: 8 asked for, 2 available: using 2." in answer.out


def test_parameters_that_the_loss_leaves_alone_are_found(tmp_path: Path) -> None:
    assert not dry_run(check_config(tiny_config(tmp_path))).unused
    used, spare = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    assert has_unused([used, spare], [used * 2])
    assert not has_unused([used, spare.requires_grad_(False)], [used * 2])


class TestPeers:
    """What processes say to each other, by threads that share a store."""

    @pytest.fixture(autouse=True)
    def _hurry(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(heartbeat, "INTERVAL", 0.02)
        monkeypatch.setattr(heartbeat, "LOST_AFTER", 0.3)
        monkeypatch.setattr(heartbeat, "exit_after_grace", self.ended)
        self.statuses: list[int] = []
        self.made: list[Heartbeat] = []
        yield
        for each in self.made:  # or their threads would go on, and end this process in earnest
            each._closed.set()
            each._thread.join(20)

    def ended(self, status: int) -> None:
        self.statuses.append(status)
        for each in self.made:  # the thread would end with its process
            each._closed.set()

    def peers(self, store: Any, size: int) -> list[Heartbeat]:
        for rank in range(size):
            self.made.append(Heartbeat(Process(rank, size, rank, size), (store, store)))
        return self.made

    @pytest.mark.parametrize(("asker", "step"), [(0, 7), (2, 4)])
    def test_all_stop_after_the_same_step_whoever_was_asked(self, asker: int, step: int) -> None:
        peers, stops = self.peers(dist.HashStore(), 3), {}

        def run(each: Heartbeat) -> None:
            for number in range(1, 2000):
                time.sleep(0.0003 * each.process.rank)  # they are not equally fast
                request = 15 if each.process.rank == asker and number >= step else 0
                if each.agree_on_stop(number, request):
                    stops[each.process.rank] = number
                    return

        threads = [threading.Thread(target=run, args=(each,)) for each in peers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for each in peers:
            each.leave()
        assert len(stops) == 3
        assert len(set(stops.values())) == 1
        assert stops[0] >= step + 2
        assert asker != 0 or stops[0] == step + 2

    def test_a_process_that_falls_silent_is_named(self, capsys: pytest.CaptureFixture) -> None:
        first, second = self.peers(dist.HashStore(), 2)
        second._closed.set()  # no more signs of life, and no goodbye
        first._thread.join(5)
        assert set(self.statuses) == {4}
        said = capsys.readouterr().err
        assert "error: training: of 2 processes, rank 1 (process " in said
        assert f"on {socket.gethostname()}) is silent for 0 s. Go on with --resume" in said

    def test_a_process_that_says_goodbye_is_not_missed(self) -> None:
        first, second = self.peers(dist.HashStore(), 2)
        second.leave()
        time.sleep(0.6)
        assert first._thread.is_alive()
        assert not self.statuses
        first.leave()

    def test_of_those_who_live_the_one_that_is_behind_is_late(self) -> None:
        first, second = self.peers(dist.HashStore(), 2)
        first.step, second.step = 12, 9
        time.sleep(0.1)
        text = first.explain(RuntimeError("[gloo] Timed out waiting 5 ms for recv\nmore"))
        assert "of 2 processes, rank 1 (" in text
        assert text.endswith(") is late, and the others have waited ([gloo] Timed out waiting 5 ms for recv)")
        for each in (first, second):
            each.leave()

    def test_the_first_to_fail_says_why_and_the_others_follow(self, capsys: pytest.CaptureFixture) -> None:
        first, second = self.peers(dist.HashStore(), 2)
        error = DataError("a.png: is broken. Remove it.")
        assert second.report(error) is error
        assert capsys.readouterr().err == "error: rank 1: a.png: is broken. Remove it.\n"
        told = first.report(Stopped("a consequence"))
        assert isinstance(told, PeerFailed)
        assert told.status == 2
        assert capsys.readouterr().err == ""

    def test_a_signal_is_no_failure_and_only_rank_0_speaks_of_it(self) -> None:
        first, second = self.peers(dist.HashStore(), 2)
        error = Interrupted(15, "stopped")
        assert first.report(error) is error
        told = second.report(error)
        assert isinstance(told, PeerFailed)
        assert told.status == 143
        first._closed.set()
        second._closed.set()
