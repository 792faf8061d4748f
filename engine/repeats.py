"""Train one config several times, with other seeds or on other folds: each time an ordinary run, one after another.

Whether a run is finished is read from its folder, and nothing else is remembered. So after a kill the same command
passes over finished runs, and the one that was under way goes on as any run does.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from engine import children, spread
from engine.check import check_config
from engine.config import RunConfig, same_run
from utils import checkpoint, run_folder
from utils.config import first_training_path, override
from utils.errors import CheckpointError, ConfigError, Interrupted, PeerFailed, UserError
from utils.schema import to_json

logger = logging.getLogger("segwright")

Kind = Literal["seeds", "folds"]
VAL_SPLIT = "train_loader.args.val_split"
MOST_RUNS = 1000  # a larger number is meant as a seed
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Member:
    """One of the runs.

    Args:
        label: What tells it from the others, such as "seed 3".
        sets: ``KEY=VALUE`` overrides that make it of the config.
        config: The config with these.
    """

    label: str
    sets: Sequence[str]
    config: RunConfig


@dataclass(frozen=True)
class Repeats:
    """Several runs of one config.

    Args:
        kind: In what they differ.
        folder: Where they and their summary are kept.
        members: The runs.
    """

    kind: Kind
    folder: Path
    members: Sequence[Member]


def plan_seeds(raw: Mapping[str, Any], text: str) -> Repeats:
    """Plan runs of different seeds; the images that `val_split` holds out are the same for all.

    Args:
        raw: The config.
        text: How many, from the config's seed on, or the seeds, separated by commas.

    Raises:
        UserError: It says neither, or the config is wrong.
    """
    config = check_config(raw)
    if not config.trainer.val:
        raise ConfigError("--seeds: there is nothing to compare with trainer.val false. Set it to true.")
    shared = []
    held_out = config.train.batches.held_out
    if held_out is not None and held_out.seed is None:
        split = to_json(replace(held_out, seed=config.seed))
        shared.append(_setting(f"{first_training_path(raw)}.args.val_split", split))
    changes = {f"seed {seed}": [f"seed={seed}", *shared] for seed in read_seeds(text, config.seed)}
    return _plan(raw, config, "seeds", changes)


def read_seeds(text: str, first: int) -> list[int]:
    """Read ``--seeds``: a number of them, from `first` on, or a list.

    Raises:
        ConfigError: It is neither, or names less than two.
    """
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--seeds {text}: expected a number or a list. Write --seeds 5, or --seeds 0,7,11.")
    numbers = [int(word) for word in words]
    if "," not in text and numbers[0] > MOST_RUNS:
        raise ConfigError(f"--seeds {text}: are {text} runs. Write --seeds 5, or a list of seeds, separated by commas.")
    seeds = list(range(first, first + numbers[0])) if "," not in text else numbers
    if len(set(seeds)) < max(2, len(seeds)):
        raise ConfigError(f"--seeds {text}: a spread takes two different seeds or more. Write --seeds 5.")
    return seeds


def plan_folds(raw: Mapping[str, Any], count: int) -> Repeats:
    """Plan a cross-validation: as many runs, each of which holds another part of the training set out.

    Raises:
        UserError: There are several training sets or a validation set, or the config is wrong.
    """
    if count < 2:
        raise ConfigError(f"--folds {count}: there have to be two or more. Write --folds 5.")
    section = raw.get("train_loader")
    if isinstance(section, list):
        raise ConfigError("--folds: does not work with a list of training sets. Give one, as an object.")
    if raw.get("val_loader") is not None:
        raise ConfigError(
            "--folds: there is a val_loader, and folds are validated on parts of the training set. "
            "Add --set val_loader=null."
        )
    args = section.get("args") if isinstance(section, Mapping) else None
    given = args.get("val_split") if isinstance(args, Mapping) else None
    kept = {key: given[key] for key in ("by", "seed") if key in given} if isinstance(given, Mapping) else {}
    changes = {
        f"fold {fold}": [_setting(VAL_SPLIT, {"share": 1 / count, "fold": fold, **kept})] for fold in range(count)
    }
    config = check_config(override(raw, changes["fold 0"]))
    if not config.trainer.val:
        raise ConfigError("--folds: nothing is held out with trainer.val false. Set it to true.")
    return _plan(raw, config, "folds", changes)


def _plan(raw: Mapping[str, Any], config: RunConfig, kind: Kind, changes: Mapping[str, Sequence[str]]) -> Repeats:
    """Give each run a name below a folder of their own, and check it."""
    folder = config.trainer.save_dir / f"{config.name}-{kind}"
    members = []
    for label, sets in changes.items():
        name = f"{config.name}-{label.replace(' ', '-')}"
        own = [*sets, _setting("name", name), _setting("trainer.save_dir", str(folder))]
        members.append(Member(label, own, check_config(override(raw, own))))
    return Repeats(kind, folder, members)


def _setting(key: str, value: Any) -> str:
    """Write a value as ``--set`` takes it."""
    return f"{key}={json.dumps(value)}"


def run_all(repeats: Repeats, command: Sequence[str], *, resume: bool) -> Path:
    """Train what is not trained yet, and write and print the summary; returns the folder.

    Args:
        repeats: The runs.
        command: Words that train the config they are made of.
        resume: Pass over runs that are finished, and go on with one that is not.

    Raises:
        UserError: Another process is at work in the folder.
        Interrupted: A signal ended a run, which has saved.
        PeerFailed: A run failed, and has said why.
    """
    run_folder.make(repeats.folder)
    lock = run_folder.Lock(repeats.folder)
    try:
        for number, member in enumerate(repeats.members, start=1):
            done = finished_run(member) if resume else None
            if done is not None:
                logger.info("%s: finished in %s", member.label, done)
                continue
            logger.info("%s: run %d of %d", member.label, number, len(repeats.members))
            train_member(member, command, resume=resume)
            if finished_run(member) is None:  # it had reached trainer.max_time
                logger.info("%s is not finished. The same command with --resume auto goes on.", member.label)
                return repeats.folder
        write_summary(repeats)
    finally:
        lock.release()
    return repeats.folder


def train_member(member: Member, command: Sequence[str], *, resume: bool) -> None:
    """Train one of the runs, or go on with it.

    Raises:
        Interrupted: A signal ended it.
        PeerFailed: It failed.
    """
    children.wait_until_free(member.config.trainer.save_dir / member.config.name)
    words = [*command, *(["--resume", "auto"] if resume else [])]
    for text in member.sets:
        words += ["--set", text]
    status = children.run(words)
    way_on = "The same command with --resume auto goes on"
    if (ending := children.ended_by(status)) is not None:
        raise Interrupted(ending, f"{member.label} was stopped by {ending.name}. {way_on}.")
    if status:
        logger.error("%s ended with status %d; later ones were not started. %s.", member.label, status, way_on)
        raise PeerFailed(status)


def finished_run(member: Member) -> Path | None:
    """Find the newest run of this config that has come to its end and left its figures; None if there is none."""
    config = member.config
    runs = list(run_folder.past_runs(config.trainer.save_dir, config.name))
    for folder, resolved in runs[::-1]:
        if same_run(resolved, config) and is_finished(folder, config):
            return folder
    return None


def is_finished(folder: Path, config: RunConfig) -> bool:
    """Whether the run of `folder` is as long as `config` says, and its figures are those of its end."""
    try:
        results = read_results(folder)
        found = checkpoint.newest(folder)
    except (UserError, CheckpointError):
        return False
    if found is None:
        return False
    state = found[1]
    if state["classes"] != list(config.classes.names):
        return False  # a file of classes has changed
    trainer = state["config"]["trainer"]
    if (trainer["epochs"], trainer["max_steps"]) != (config.trainer.epochs, config.trainer.max_steps):
        return False  # it was extended, and killed before it could save
    at_end = state["step"] == state["total_steps"] or bool(results.get("stopped_early"))
    return at_end and bool(results.get("steps") == state["step"])


def read_results(folder: Path) -> dict[str, Any]:
    """What a run's results.json says.

    Raises:
        UserError: There is none that can be read.
    """
    path = folder / "results.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}). Train the run to its end.") from None
    return dict(found)


def write_summary(repeats: Repeats) -> None:
    """Write summary.json, and print it as a table with what it means."""
    folders = [finished_run(member) for member in repeats.members]
    runs = [
        spread.Run(member.label, folder, read_results(folder))
        for member, folder in zip(repeats.members, folders, strict=True)
        if folder is not None
    ]
    found = spread.summarize(runs, repeats.members[0].config.classes, folds=repeats.kind == "folds")
    path = repeats.folder / SUMMARY
    run_folder.write_json(path, found.to_json(repeats.folder))
    for line in found.lines():
        logger.info("%s", line)
    logger.info("summary: %s", path)
