"""Search settings with optuna: each trial is an ordinary run, and a sweep that was killed goes on where it stopped.

What a trial tries is a function of (seed, number of the trial, key) and of the finished trials, never of a generator
that a kill would lose. A trial that was under way is taken up again with the same settings, and its run resumes to the
bit; so a sweep that was killed ends with the trials and values of one that was left alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import shlex
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.monitor import Monitor
from engine import children
from engine.check import check_config
from engine.config import result_keys
from utils import run_folder, signals
from utils.config import load_config, override, read_json
from utils.errors import ConfigError, Interrupted, UserError, first_line
from utils.schema import show

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

logger = logging.getLogger("segwright")

DATABASE = "sweep.db"
POLL = 0.5  # seconds between two looks at a run's figures
RANGE_KEYS = ("low", "high", "log", "step")


@dataclass(frozen=True)
class Sweep:
    """A search over the settings of one config.

    Args:
        config: The config file, or a preset's name.
        space: Distribution of each dotted key.
        folder: Where the study and the runs of its trials are kept.
        trials: How many trials to run in all.
        seed: Decides what is tried.
        command: What trains: the words before ``-c CONFIG``.
        options: Words for every trial's command, such as ``--set`` and ``--device``.
        monitor: The figure to optimize, and whether more of it is better.
        meaning: Hash of the config without the space's values; trials of two would mean nothing together.
    """

    config: Path
    space: Mapping[str, BaseDistribution]
    folder: Path
    trials: int
    seed: int
    command: Sequence[str]
    options: Sequence[str]
    monitor: Monitor
    meaning: str


def prepare_sweep(
    config: Path,
    space: Path,
    *,
    trials: int,
    seed: int,
    command: Sequence[str],
    sets: Sequence[str] = (),
    options: Sequence[str] = (),
) -> Sweep:
    """Check a config and a search space together, before anything is run.

    Args:
        config: The config file.
        space: A JSON file: dotted key to a list of values, or to {"low", "high", "log", "step"}.
        trials: How many trials to run in all.
        seed: Decides what is tried.
        command: What trains.
        sets: ``KEY=VALUE`` overrides for all trials.
        options: Further words for every trial's command.

    Raises:
        UserError: One of the files is wrong, or a value of the space does not fit the config.
    """
    import_optuna()
    raw = load_config(config, sets)
    distributions = read_space(space)
    checked = check_config(raw)
    for key, distribution in distributions.items():
        for value in bounds_of(distribution):
            check_value(raw, key, value, space)
    if checked.trainer.monitor.strip() == "off":
        raise ConfigError("trainer.monitor: a sweep needs a figure to optimize. Give one, such as 'max Mean_IoU'.")
    if checked.trainer.max_time is not None:
        raise ConfigError(
            "trainer.max_time: would cut trials off, whose figures could not be compared. Set it to null, and "
            "trainer.max_steps to what fits; a sweep that is stopped by a signal goes on by the same command."
        )
    words = [word for text in sets for word in ("--set", text)]
    return Sweep(
        config=config,
        space=distributions,
        folder=checked.trainer.save_dir / f"{checked.name}-sweep",
        trials=trials,
        seed=seed,
        command=command,
        options=[*words, *options],
        monitor=Monitor.parse(checked.trainer.monitor, result_keys(checked)),
        meaning=f"{checked.meaning} {checked.trainer.epochs} {checked.trainer.max_steps}",
    )


def import_optuna() -> Any:
    """Import optuna, which only a sweep needs.

    Raises:
        UserError: It is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("sweep: needs the package optuna. Install it with: pip install optuna") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def read_space(path: Path) -> dict[str, BaseDistribution]:
    """Read a search space.

    Raises:
        ConfigError: It names every entry that is wrong.
    """
    found: dict[str, BaseDistribution] = {}
    problems: list[str] = []
    for key, value in read_json(path).items():
        try:
            found[key] = distribution_of(value)
        except ValueError as error:
            problems.append(f"{path}: {key}: {error}")
    if not found and not problems:
        problems.append(
            f'{path}: names no key. Write for example {{"optimizer.args.lr": {{"low": 1e-4, "high": 0.1}}}}.'
        )
    if problems:
        raise ConfigError(*problems)
    return found


def distribution_of(value: Any) -> BaseDistribution:
    """Read what a search space says of one key.

    Raises:
        ValueError: It is neither a list of values nor a range.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(value, list) and value:
        return CategoricalDistribution([json.dumps(each) for each in value])  # any JSON, as the command line takes it
    if not isinstance(value, Mapping) or not {"low", "high"} <= value.keys() <= set(RANGE_KEYS):
        raise ValueError(f'got {show(value)}. Give a list of values, or {{"low": ..., "high": ..., "log": true}}.')
    low, high = value["low"], value["high"]
    log = value.get("log", False)
    if type(low) not in (int, float) or type(high) not in (int, float) or low > high:
        raise ValueError(
            f"low {show(low)} and high {show(high)} are no range. Give two numbers, the smaller one first."
        )
    if log and low <= 0:
        raise ValueError(f"low {show(low)} has no logarithm. Give a number above 0, or leave log out.")
    step = value.get("step")
    if type(log) is not bool or not (step is None or (type(step) in (int, float) and step > 0)):
        raise ValueError(f"log {show(log)}, step {show(step)}. Give true or false, and a number above 0.")
    if all(type(each) is int for each in (low, high, step or 1)):
        return IntDistribution(low, high, log=log, step=step or 1)
    return FloatDistribution(low, high, log=log, step=step)


def bounds_of(distribution: BaseDistribution) -> list[Any]:
    """List the values of a distribution that must fit the config if all are to."""
    choices = getattr(distribution, "choices", None)
    return list(choices) if choices is not None else [distribution.low, distribution.high]  # type: ignore[attr-defined]


def check_value(raw: Mapping[str, Any], key: str, value: Any, space: Path) -> None:
    """Refuse a value that the config would not take.

    Raises:
        ConfigError: It says which one.
    """
    try:
        check_config(override(raw, [setting(key, value)]))
    except UserError as error:
        raise ConfigError(*(f"{space}: {setting(key, value)}: {problem}" for problem in error.problems)) from None


def setting(key: str, value: Any) -> str:
    """Write a value as ``--set`` takes it; categories are JSON texts already."""
    return f"{key}={value if isinstance(value, str) else json.dumps(value)}"


def run_sweep(sweep: Sweep) -> Study:
    """Run trials until there are as many as asked for; returns the study.

    Raises:
        UserError: Another sweep is at work in the folder, or it cannot be made, or its database cannot be read.
        Interrupted: A signal ended it; the same command goes on.
    """
    optuna = import_optuna()
    run_folder.make(sweep.folder)
    lock = run_folder.Lock(sweep.folder)
    try:
        storage = f"sqlite:///{sweep.folder / DATABASE}"
        try:
            known = optuna.get_all_study_names(storage)
        except Exception as error:  # of the database, which optuna leaves as they are
            fix = "Delete it to begin anew; the runs of its trials stay"
            raise ConfigError(f"{sweep.folder / DATABASE}: cannot be read ({first_line(error)}). {fix}.") from None
        # in early folders there may be one for each file of one "name"
        name = sweep.config.stem
        study: Study = optuna.create_study(
            storage=storage,
            study_name=name if name in known or not known else known[0],
            direction="maximize" if sweep.monitor.sign > 0 else "minimize",
            sampler=seeded_sampler(sweep.seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
            load_if_exists=True,
        )
        check_same(study, sweep)
        while (trial := next_trial(study, sweep)) is not None:
            run_trial(study, trial, sweep)
    finally:
        lock.release()
    return study


def seeded_sampler(seed: int) -> BaseSampler:
    """Make a TPE sampler whose choice is a function of (seed, trial, key) and of the finished trials."""
    from optuna.samplers import BaseSampler, TPESampler

    class SeededTPE(BaseSampler):
        """Bergstra et al. 2011, "Algorithms for hyper-parameter optimization", with a generator for each choice."""

        def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
            return {}

        def sample_relative(
            self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
        ) -> dict[str, Any]:
            return {}

        def sample_independent(
            self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
        ) -> Any:
            digest = hashlib.sha256(f"{seed}/{trial.number}/{param_name}".encode()).digest()
            sampler = TPESampler(seed=int.from_bytes(digest[:4], "little"))
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    return SeededTPE()


def check_same(study: Study, sweep: Sweep) -> None:
    """Refuse to go on with a study that searched something else.

    Raises:
        UserError: Its space, seed or config differ.
    """
    from optuna.distributions import distribution_to_json

    about = {
        "space": {key: distribution_to_json(value) for key, value in sweep.space.items()},
        "seed": sweep.seed,
        "monitor": sweep.monitor.key,
        "config": sweep.meaning,
    }
    known = study.user_attrs.get("sweep")
    if known is None:
        study.set_user_attr("sweep", about)
    elif differing := ", ".join(
        key for key in about if known.get(key, about[key]) != about[key]
    ):  # early ones lack one
        raise UserError(
            f"{sweep.folder}: holds a sweep with another {differing}. Give the config another name, or delete it."
        )


def next_trial(study: Study, sweep: Sweep) -> Trial | None:
    """Take up the trial that was under way, or begin the next one; None when there are enough."""
    from optuna.trial import Trial, TrialState

    known = study.get_trials(deepcopy=False)
    running = [trial for trial in known if trial.state == TrialState.RUNNING]
    if not running and len(known) >= sweep.trials:
        return None
    trial = Trial(study, running[0]._trial_id) if running else study.ask()
    for key, distribution in sweep.space.items():
        suggest(trial, key, distribution)  # a value that is stored already stays
    return trial


def suggest(trial: Trial, key: str, distribution: BaseDistribution) -> None:
    """Let a trial choose its value of one key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        trial.suggest_categorical(key, distribution.choices)
    elif isinstance(distribution, IntDistribution):
        trial.suggest_int(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)
    elif isinstance(distribution, FloatDistribution):
        trial.suggest_float(key, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def run_trial(study: Study, trial: Trial, sweep: Sweep) -> None:
    """Train with a trial's settings, report its validations, stop it where others were better, and store its value.

    Raises:
        Interrupted: A signal came; the run has saved.
        UserError: The very first trial cannot be run as config and data are; it is tried again the next time.
    """
    from optuna.trial import TrialState

    values = [setting(key, trial.params[key]) for key in sweep.space]
    name = f"trial-{trial.number:04d}"
    children.wait_until_free(sweep.folder / name)
    process = start(sweep, name, values)
    values_seen: list[float] = []
    pruned = False
    with signals.noted(process.send_signal):
        while not pruned:
            code = process.poll()  # before the figures are read, so that none is missed at the end
            for number, value in validations(sweep.folder / name, sweep.monitor)[len(values_seen) :]:
                values_seen.append(value)
                trial.report(value, number)
                if pruned := trial.should_prune():
                    process.terminate()
                    process.wait()
                    break
            if code is not None:
                break
            time.sleep(POLL)
    if pruned:
        study.tell(trial, state=TrialState.PRUNED)
    elif code in (0, 3) and values_seen:
        study.tell(trial, (max if sweep.monitor.sign > 0 else min)(values_seen))
    elif code is not None and (code < 0 or code - 128 in signals.ENDING):
        number = -code if code < 0 else code - 128
        raise Interrupted(number, f"{name} was stopped by {signal.Signals(number).name}. The same command goes on.")
    else:
        log = sweep.folder / f"{name}.log"
        if code == 2 and trial.number == 0:
            raise UserError(f"{name}: {last_error(log)} All of it is in {log}; nothing was tried yet.")
        logger.warning("%s failed with status %s, see %s; the sweep goes on without it.", name, code, log)
        study.tell(trial, state=TrialState.FAIL)
    result = "stopped early" if pruned else f"{values_seen[-1]:.4f} at last" if values_seen else "failed"
    logger.info("%s: %s: %s %s", name, ", ".join(values), sweep.monitor.key, result)


def start(sweep: Sweep, name: str, values: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the run of a trial, or go on with it."""
    words = [*sweep.command, "--config", str(sweep.config), "--resume", "auto", *sweep.options]
    fixed = [f"name={name}", f"trainer.save_dir={json.dumps(str(sweep.folder))}"]
    for text in (*values, *fixed):
        words += ["--set", text]
    return children.start(words, sweep.folder / f"{name}.log")


def last_error(log: Path) -> str:
    """Find the last problem that a run printed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return found[-1] if found else "it failed."


def validations(folder: Path, monitor: Monitor) -> list[tuple[int, float]]:
    """Read number and figure of each validation of the newest run in `folder`; an undefined one is no value."""
    files = [run / "metrics.jsonl" for run in run_folder.folders_of_runs(folder)]
    files = [file for file in files if file.exists()]
    if not files:
        return []
    records = [json.loads(line) for line in files[-1].read_text(encoding="utf-8").splitlines()]
    kind = monitor.key.partition("/")[0] + "/"
    values = [record.get(monitor.key) for record in records if any(key.startswith(kind) for key in record)]
    return [(n, value) for n, value in enumerate(values, 1) if value is not None and not math.isnan(value)]


def summary(study: Study, sweep: Sweep) -> str:
    """Say which trials were best, and how to repeat the first of them."""
    from optuna.trial import TrialState

    done = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    done.sort(key=lambda trial: -sweep.monitor.sign * float(trial.value or 0))
    lines = [f"{'trial':<12}{sweep.monitor.key:>14}  settings"]
    for trial in done[:10]:
        values = ", ".join(setting(key, trial.params[key]) for key in sweep.space)
        lines.append(f"trial-{trial.number:04d}  {trial.value:14.4f}  {values}")
    others = len(study.trials) - len(done)
    lines.append(f"{len(done)} of {len(study.trials)} trials ran to the end, {others} were stopped early or failed.")
    if done:
        words = ["--config", str(sweep.config), *sweep.options]
        for key in sweep.space:
            words += ["--set", setting(key, done[0].params[key])]
        lines.append(f"best: {sweep.folder / f'trial-{done[0].number:04d}'}; again: {shlex.join(words)}")
    return "\n".join(lines)
