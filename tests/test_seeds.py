"""Several runs of one config: seeds, folds and groups of images, kills between and within them, and what is noise."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import segwright
import train
from base.base_dataloader import HoldOut
from dataloader.datasets.folder import Folder
from dataloader.hold_out import hold_out
from dataloader.tools.packed import pack
from engine import children, spread
from engine.repeats import plan_seeds
from tests.conftest import ROOT, Answer, call, program
from tests.test_examples import NAMES, write_folder
from utils.classes import ClassTable
from utils.config import parse_json
from utils.errors import ConfigError, UserError
from utils.reproducibility import stream
from utils.run_folder import folders_of_runs, is_locked

TINY = ("--import", "tests.tiny")
KEYS = [
    f"{video}_{frame:02d}"
    for video, frames in zip("abcdefg", (9, 3, 7, 5, 8, 4, 6), strict=True)
    for frame in range(frames)
]


def dataset(keys: Sequence[str]) -> Any:
    """What `hold_out` looks at of a dataset."""

    class Named(list[str]):
        def __init__(self) -> None:
            super().__init__(keys)
            self.samples = [SimpleNamespace(key=key) for key in keys]
            self.listed: dict[str, Sequence[str]] = {}

    return Named()


# ------------------------------------------------------------------------------------------------ what is held out


@pytest.mark.parametrize("share", [0.25, 0.3, 7])
def test_a_plain_val_split_holds_out_the_images_that_it_always_did(share: float) -> None:
    count = round(42 * share) if share < 1 else int(share)
    order = stream(5, "split").permutation(42).tolist()
    assert hold_out(dataset(KEYS), HoldOut(share=share), 5) == (sorted(order[count:]), sorted(order[:count]))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 12])
def test_images_of_a_group_are_on_one_side(share: float, seed: int) -> None:
    kept, held_out = hold_out(dataset(KEYS), HoldOut(share=share, by="^[^_]+"), seed)
    assert sorted([*kept, *held_out]) == list(range(len(KEYS)))
    assert not {KEYS[index][0] for index in kept} & {KEYS[index][0] for index in held_out}
    wanted = share * len(KEYS) if share < 1 else share
    assert abs(len(held_out) - wanted) <= 5


def test_parentheses_say_what_of_a_match_is_the_group() -> None:
    options = HoldOut(share=0.5, by=r"_(\d)\d")
    _, held_out = hold_out(dataset([f"x_{tens}{ones}" for tens in range(4) for ones in range(3)]), options, 0)
    assert sorted(index // 3 for index in held_out) == sorted([held_out[0] // 3] * 3 + [held_out[3] // 3] * 3)


@pytest.mark.parametrize("by", [None, "^[^_]+"])
@pytest.mark.parametrize("folds", [2, 3, 5, 7])
def test_over_all_folds_each_image_is_held_out_once(folds: int, by: str | None) -> None:
    parts = [hold_out(dataset(KEYS), HoldOut(share=1 / folds, by=by, fold=fold), 1)[1] for fold in range(folds)]
    assert sorted(index for part in parts for index in part) == list(range(len(KEYS)))
    assert max(map(len, parts)) - min(map(len, parts)) <= (1 if by is None else 6)


def test_a_seed_of_its_own_fixes_the_split_for_all_seeds_of_runs() -> None:
    fixed = HoldOut(share=0.3, seed=4)
    assert hold_out(dataset(KEYS), fixed, 0) == hold_out(dataset(KEYS), fixed, 1)
    assert hold_out(dataset(KEYS), fixed, 0) == hold_out(dataset(KEYS), HoldOut(share=0.3), 4)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (HoldOut(share=0.2, by="^[a-f]_"), "val_split.by: '^[a-f]_' matches nothing in 6 of 42 names (g_00, g_01, "),
        (HoldOut(share=0.2, by="_"), "val_split.by: all 42 images are one group."),
        (HoldOut(share=0.2, by=3), "val_split.by: no list has a column 3 for 42 of 42 images"),
        (HoldOut(share=0.125, by="^[^_]+", fold=1), "val_split: 8 folds of 7 groups of images. Use 7"),
    ],
)
def test_groups_that_cannot_be_are_refused(options: HoldOut, error: str) -> None:
    with pytest.raises(ConfigError) as caught:
        hold_out(dataset(KEYS), options, 0)
    assert caught.value.problems[0].startswith(f"train_loader.args.{error}")


def test_a_column_of_the_list_can_name_the_groups(tmp_path: Path) -> None:
    write_folder(tmp_path, "index", 12)
    images, masks = (sorted((tmp_path / name).iterdir()) for name in ("images", "masks"))
    lines = [
        f"images/{image.name}\tmasks/{mask.name}\tpatient {number % 4}"
        for number, (image, mask) in enumerate(zip(images, masks, strict=True))
    ]
    (tmp_path / "all.txt").write_text("\n".join(lines))
    listed = Folder(data_dir=tmp_path, split="all", classes=tuple(NAMES), list_file="all.txt")
    _, held_out = hold_out(listed, HoldOut(share=0.25, by=3), 0)
    assert len(held_out) == 3
    assert len({index % 4 for index in held_out}) == 1
    pack(listed, tmp_path / "packed")
    packed = Folder(data_dir=tmp_path / "packed", split="all", classes=tuple(NAMES), list_file="all.txt")
    assert hold_out(packed, HoldOut(share=0.25, by=3), 0)[1] == held_out


# ----------------------------------------------------------------------------------------------------- the summary


def summary_of(ious: Sequence[Sequence[float]], *, folds: bool = False) -> spread.Summary:
    """Of runs with these IoUs of two classes."""
    classes = ClassTable(("road", "pole"), ((0, 0, 0), (9, 9, 9)), ((0,), (1,)))
    runs = [
        spread.Run(
            f"seed {number}",
            Path(f"run-{number}"),
            {"metrics": {"val/Mean_IoU": sum(iou) / 2, "val/Class_IoU/road": iou[0], "val/Class_IoU/pole": iou[1]}},
        )
        for number, iou in enumerate(ious)
    ]
    return spread.summarize(runs, classes, folds=folds)


def test_the_noise_floor_is_that_of_two_runs_with_a_deviation_that_is_estimated() -> None:
    found = summary_of([(0.80, 0.30), (0.82, 0.40), (0.84, 0.50)])
    assert found.mean.mean == pytest.approx(0.61)
    assert found.mean.deviation == pytest.approx(0.06)
    assert found.mean.noise == pytest.approx(4.303 * 0.06 * math.sqrt(2))
    plain = found.to_json(Path())
    assert plain["classes"][1] | {"values": 0} == {
        "name": "pole",
        "values": 0,
        "mean": pytest.approx(0.4),
        "sd": pytest.approx(0.1),
        "noise": pytest.approx(0.6085, abs=1e-3),
    }
    said = "\n".join(found.lines())
    assert "differ by less than 0.3651 in 95 % of all cases (4.30 * sd * sqrt 2" in said
    assert "Two means of 3 runs each differ by less than 0.2108." in said


def test_noisy_classes_are_named() -> None:
    said = "\n".join(summary_of([(0.80, 0.30), (0.70, 0.42), (0.78, 0.30)]).lines())
    assert "Noisiest classes, and what differences of theirs are noise: pole (0.422), road (0.322)." in said


@pytest.mark.parametrize(
    ("degrees", "exact"), [(1, 12.706), (2, 4.303), (4, 2.776), (6, 2.447), (10, 2.228), (19, 2.093), (1000, 1.962)]
)
def test_quantiles_of_student_are_those_of_the_tables(degrees: int, exact: float) -> None:
    assert spread.t_quantile(degrees) == pytest.approx(exact, rel=1e-3)


def test_two_runs_lie_within_the_noise_floor_as_often_as_it_says() -> None:
    """Of simulated studies with three seeds, the next two runs differ by less in 95 %."""
    draws = torch.randn(20000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    floors = draws[:, :3].std(dim=1) * spread.noise_floor(1.0, 3)
    inside = ((draws[:, 3] - draws[:, 4]).abs() < floors).double().mean()
    assert inside == pytest.approx(0.95, abs=0.005)


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("flags", "changes", "error"),
    [
        (["--seeds", "1"], {}, "--seeds 1: a spread takes two different seeds or more."),
        (["--seeds", "3,3"], {}, "--seeds 3,3: a spread takes two different seeds or more."),
        (["--seeds", "many"], {}, "--seeds many: expected a number or a list."),
        (["--seeds", "20261122"], {}, "--seeds 20261122: are 20261122 runs."),
        (["--seeds", "3", "--folds", "3"], {}, "command line: --seeds: there is --folds too."),
        (["--seeds", "3", "-r", "x.pth"], {}, "command line: --resume x.pth: is one run, "),
        (
            ["--seeds", "3"],
            {"val_loader": None, "trainer.val": False, "trainer.monitor": "off"},
            "--seeds: there is nothing to compare",
        ),
        (["--folds", "1"], {}, "--folds 1: there have to be two or more."),
        (["--folds", "3"], {}, "--folds: there is a val_loader, "),
        (["--folds", "3", "--lr", "-1"], {"val_loader": None}, "optimizer.args.lr"),
        (["--folds", "3"], {"val_loader": None, "train_loader.args": [1]}, "train_loader.args"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(
    config_file: Any, train_command: Callable[..., Answer], flags: list[str], changes: dict[str, Any], error: str
) -> None:
    answer = train_command(config_file(changes), *TINY, *flags)
    assert answer.status == 2
    assert len(answer.errors) == 1
    assert answer.errors[0].startswith(error)


def test_torchrun_is_refused(config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    answer = train_command(config_file(), *TINY, "--seeds", "2")
    assert answer.status == 2
    assert "torchrun" in answer.errors[0]


@pytest.mark.parametrize(
    ("val_split", "error"),
    [
        ({"share": 0.2, "by": "("}, "train_loader.args.val_split.by: '(' is no regular expression"),
        ({"share": 0.2, "fold": 5}, "train_loader.args.val_split.fold: 5 of 5 folds, counted from 0. Use 4 at most."),
        ({"share": 0.3, "fold": 0}, "train_loader.args.val_split.fold: 0.3 is no half, third, fourth"),
    ],
)
def test_a_val_split_that_cannot_be_is_refused_before_data_is_read(
    config_file: Any, train_command: Any, val_split: dict[str, Any], error: str
) -> None:
    answer = train_command(config_file({"val_loader": None, "train_loader.args.val_split": val_split}), *TINY)
    assert answer.errors[0].startswith(error)


# ------------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Let runs be trained in this process; lists the command lines."""
    found: list[list[str]] = []

    def run(words: Sequence[str]) -> int:
        found.append(list(words))
        return call(train, *words[len(program(train)) :]).status

    monkeypatch.setattr(children, "run", run)
    return found


def only_run(folder: Path) -> Path:
    (run,) = folders_of_runs(folder)
    return run


def assert_same(first: Path, second: Path) -> None:
    """Two runs ended with the same figures and weights, to the bit."""
    assert (first / "metrics.jsonl").read_text() == (second / "metrics.jsonl").read_text()
    states = [torch.load(run / "last.pth", weights_only=True) for run in (first, second)]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name


def test_after_a_kill_finished_seeds_stay_and_the_interrupted_one_goes_on_to_the_bit(
    config_file: Any, train_command: Any, tmp_path: Path, started: list[list[str]]
) -> None:
    if sys.platform != "linux":
        pytest.skip("elsewhere a run outlives the one who started it, and is waited for")
    flags = [str(config_file({"trainer.epochs": 2})), *TINY, "--seeds", "0,7"]
    killed = tmp_path / "saved" / "tiny-seeds" / "tiny-seed-0"
    # The run of seed 0 halts in its second epoch; then what has started it is killed.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"SEGWRIGHT_TEST_KILL": "step:8", "SEGWRIGHT_TEST_SIGNAL": "SIGSTOP"}
    words = [*program(train), *flags, "--import", "tests.kill_points"]
    with (tmp_path / "out.txt").open("wb") as out:
        parent = subprocess.Popen(words, env=environment, stdout=out, stderr=out)
    while not list(killed.glob("*-*/last.pth")):
        assert parent.poll() is None, (tmp_path / "out.txt").read_text()
        time.sleep(0.1)
    run = only_run(killed)
    assert is_locked(run)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while is_locked(run):  # until the kernel has ended its child, too
        time.sleep(0.1)
    assert not (run / "results.json").exists()

    answer = train_command(*flags, "--resume", "auto")
    assert answer.status == 0, answer.err
    assert len(started) == 2
    folder = tmp_path / "saved" / "tiny-seeds"
    for seed in (0, 7):
        alone = ["-s", f"seed={seed}", "-s", f"name=alone-{seed}"]
        assert train_command(flags[0], *TINY, *alone).status == 0
        assert_same(only_run(folder / f"tiny-seed-{seed}"), only_run(tmp_path / "saved" / f"alone-{seed}"))
    summary = json.loads((folder / "summary.json").read_text())
    assert [each["label"] for each in summary["runs"]] == ["seed 0", "seed 7"]

    started.clear()
    assert train_command(*flags, "--resume", "auto").status == 0
    assert started == []  # all is finished
    assert json.loads((folder / "summary.json").read_text()) == summary
    (run / "results.json").unlink()  # as if killed while it was being written
    assert train_command(*flags, "--resume", "auto").status == 0
    assert len(started) == 1
    assert only_run(killed) == run


def test_folds_predict_each_image_once_and_add_up(
    config_file: Any, tmp_path: Path, started: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    split = {"share": 0.3, "by": r"\d$"}
    config = config_file({"val_loader": None, "train_loader.args.val_split": split, "trainer.epochs": 1})
    folder = segwright.train(config, modules=["tests.tiny"], folds=2)
    assert folder == tmp_path / "saved" / "tiny-folds"
    results = [json.loads((only_run(folder / f"tiny-fold-{fold}") / "results.json").read_text()) for fold in range(2)]
    keys = [image["key"] for each in results for image in each["image_figures"]]
    assert sorted(keys) == [f"square_{number:04d}" for number in range(11)]
    by_fold = [{image["key"][-1] for image in each["image_figures"]} for each in results]
    assert not by_fold[0] & by_fold[1]  # 0000 and 0010 are of one group
    summary = json.loads((folder / "summary.json").read_text())
    matrix = sum(torch.tensor(each["confusion_matrix"]) for each in results)
    assert summary["out_of_fold"]["confusion_matrix"] == matrix.tolist()  # type: ignore[union-attr]
    hits = matrix.diagonal().double()  # type: ignore[union-attr]
    union = matrix.sum(0) + matrix.sum(1) - hits  # type: ignore[union-attr]
    assert summary["out_of_fold"]["Mean_IoU"] == pytest.approx(float((hits / union).mean()))
    assert summary["out_of_fold"]["images"] == 11
    assert "Out of fold, each image predicted by the run that did not see it: " in capsys.readouterr().out


def test_seeds_are_validated_on_the_same_images(config_file: Any) -> None:
    config = config_file({"val_loader": None, "train_loader.args.val_split": 0.3, "seed": 5})
    repeats = train.plan_repeats(train.parse([str(config), *TINY, "--seeds", "3"]))
    assert [member.config.seed for member in repeats.members] == [5, 6, 7]
    held_out = {member.config.train.batches.held_out for member in repeats.members}
    assert held_out == {HoldOut(share=0.3, seed=5)}
    raw = parse_json(config.read_text())
    listed = plan_seeds({**raw, "train_loader": [raw["train_loader"]]}, "3")
    assert {member.config.train.batches.held_out for member in listed.members} == held_out


def test_a_run_that_fails_ends_the_others_with_its_status(
    config_file: Any, train_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {4: "seed 0 ended with status 4; later ones were not started.", 143: "seed 0 was stopped by SIGTERM."}
    for status, said in answers.items():
        monkeypatch.setattr(children, "run", lambda words, status=status: status)
        answer = train_command(config_file(), *TINY, "--seeds", "2")
        assert answer.status == status
        assert said in answer.out + answer.err
        assert "--resume auto goes on" in answer.out + answer.err


def test_a_signal_reaches_the_run_once_and_the_status_tells_of_it(tmp_path: Path) -> None:
    script = (
        "import signal, sys, os\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "signal.pause()\n"
    )
    status = children.run([sys.executable, "-c", script])
    assert status == 143
    assert children.ended_by(status) == signal.SIGTERM
    assert children.ended_by(4) is None


def test_the_api_takes_lists_of_seeds(config_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "run", lambda words: 2)
    with pytest.raises(Exception, match="status 2"):
        segwright.train(config_file(), modules=["tests.tiny"], seeds=[3, 8])
    with pytest.raises(UserError, match="two different seeds"):
        segwright.train(config_file(), modules=["tests.tiny"], seeds=[7])
    with pytest.raises(UserError, match="two or more"):
        segwright.train(config_file({"val_loader": None}), modules=["tests.tiny"], folds=1)
