"""Train a segmentation model from one JSON file: ``python train.py config.json``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.config import SCHEMA, describe_preset, first_training_path, load_config, override, presets
from utils.devices import choose_device, gpus_to_use, restrict_gpus
from utils.errors import ConfigError, UserError, run
from utils.flags import CommandParser, add_shared, program
from utils.terminal import name_table

if TYPE_CHECKING:  # torch takes two seconds to import; --help and a mistyped file name need not wait for it
    import argparse

    from engine.config import RunConfig
    from engine.repeats import Repeats
    from utils.checkpoint import Checkpoint

KINDS = (
    *("models", "backbones", "necks", "heads", "losses", "datasets", "schedulers", "optimizers", "transforms"),
    *("mixes", "metrics", "writers"),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("train"),
        usage="[FILE]",
        description="Train a segmentation model from one JSON file.",
        examples=[
            ("my.json", "train a config"),
            ("my.json -s optimizer.args.lr=0.02 --epochs 5", "change keys of it"),
            ("my.json --check", "see whether all fits before training"),
            ("my.json --resume auto", "go on with the newest run of it"),
            ("--describe trainer.ema", "ask what a key or a component means"),
        ],
        pages=["tutorial.md", "config.md", "howto/many-gpus.md"],
    )
    group = parser.add_argument_group("what to train")
    add = group.add_argument
    add("file", nargs="?", type=Path, metavar="FILE", help="config or preset to train (default: config.json)")
    add_shared(group, "--config", ", as a flag")
    add_shared(group, "--set")
    add("--epochs", type=int, metavar="N", help="length of the run: trainer.epochs, and no trainer.max_steps")
    add("--seeds", metavar="N|A,B", help="train with each of N seeds, or of these, and say what is noise")
    add("--folds", type=int, metavar="N", help="cross-validate: train N times, each with another part held out")
    add("--lr", type=float, metavar="X", help="learning rate: optimizer.args.lr")
    add_shared(group, "--batch-size", ", in a step: train_loader.args.batch_size", formerly="--bs")
    group = parser.add_argument_group("how to train it")
    add = group.add_argument
    add("-r", "--resume", metavar="CKPT|auto", help="go on from a checkpoint, or from the newest run of this config")
    add_shared(group, "--device", "; several GPUs as 0,1")
    group = parser.add_argument_group("instead of training")
    add = group.add_argument
    add("--check", action="store_true", help="check config, data and shapes, say what a step needs, and stop")
    add("--check-data", action="store_true", help="the same, and read every image and label of both loaders")
    add("--draw-schedule", type=Path, metavar="FILE", help="draw the learning rates of the whole run as a PNG")
    kinds = ["all", *KINDS, "presets"]
    shown = f"say what a config may name; of a KIND: {', '.join(kinds[1:])}"
    add("--list", nargs="?", const="all", choices=kinds, metavar="KIND", help=shown)
    shown = "arguments of what a config names, or what a key such as trainer.ema means; a part of a name will do"
    add("--describe", metavar="NAME", help=shown)
    parser.share("--import", "--debug")
    args = parser.parse_args(argv)
    if args.file is not None and args.config is not None:
        parser.error(f"{args.file}: there is --config {args.config} too. Name one config")
    args.config = args.file or args.config
    if args.seeds is not None and args.folds is not None:
        parser.error("--seeds: there is --folds too. Give one of the two")
    if repeats_training(args) and names_checkpoint(args):
        parser.error(f"--resume {args.resume}: is one run, and --seeds and --folds are several. Give --resume auto")
    return args


@dataclass(frozen=True)
class Job:
    """What a command line asks for, read and checked.

    Args:
        config: What to train.
        modules: Names of the modules with components of others, which have been imported.
        state: The checkpoint to go on from, if one is named.
    """

    config: RunConfig
    modules: Sequence[str]
    state: Checkpoint | None


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    restrict_gpus(args.device)
    if args.list or args.describe is not None:
        return explain(args)
    only_describes = args.check or args.check_data or args.draw_schedule
    if repeats_training(args):
        repeats = plan_repeats(args)
        if only_describes:
            return describe(args, repeats.members[0].config)
        train_repeatedly(args, repeats)
        return 0
    job = read_job(args)
    if only_describes:
        return describe(args, job.config)

    from utils import distributed

    processes = processes_to_train(args, job.config)
    if processes > distributed.announced_process().size:
        command = f"{__package__}.train" if __package__ else "train"  # in the wheel it lives in a package
        return distributed.launch(command, sys.argv[1:] if argv is None else argv, processes)
    train_job(args, job)
    return 0


def train(args: argparse.Namespace) -> Path:
    """Train in this process as the flags in `args` say, and return the folder of the run; for `segwright.train`.

    With ``--seeds`` or ``--folds``, each run has a process of its own, and the folder is that of all.

    Raises:
        UserError: Config, data or checkpoint do not fit together.
        Stopped: The machine or a NaN ended the training.
        Interrupted: A signal did, and all is saved.
    """
    restrict_gpus(args.device)
    if repeats_training(args):
        return train_repeatedly(args, plan_repeats(args))
    return train_job(args, read_job(args))


def read_job(args: argparse.Namespace) -> Job:
    """Read and check what `args` ask for; the config first, since it takes no time.

    Raises:
        UserError: The config, a module or the checkpoint cannot be used.
    """
    raw = read_config(args)

    from utils import distributed, plugins
    from utils.log import log_to

    log_to(rank=distributed.announced_process().rank)
    modules = plugins.import_modules(args.modules)
    state = read_checkpoint(args, modules)
    return Job(resolve_config(args, raw, state), modules, state)


def names_checkpoint(args: argparse.Namespace) -> bool:
    """Whether a checkpoint to go on from is named; with "auto", one may be found."""
    return args.resume not in (None, "auto")


def repeats_training(args: argparse.Namespace) -> bool:
    """Whether the config is to be trained several times."""
    return args.seeds is not None or args.folds is not None


def overrides_of(args: argparse.Namespace) -> list[str]:
    """What ``--set``, ``--epochs`` and ``--lr`` change in the config."""
    changes = list(args.set)
    if args.epochs is not None:
        changes += [f"trainer.epochs={args.epochs}", "trainer.max_steps=null"]
    if args.lr is not None:
        changes.append(f"optimizer.args.lr={args.lr}")
    return changes


def read_config(args: argparse.Namespace) -> dict[str, Any] | None:
    """The config file, with what the command line changes; None to take the one in the checkpoint."""
    if args.config is None and names_checkpoint(args):
        return None
    return load_config(args.config or Path("config.json"), overrides_of(args))


def read_checkpoint(args: argparse.Namespace, modules: Sequence[str]) -> Checkpoint | None:
    """The checkpoint to go on from, if one is named.

    Raises:
        CheckpointError: It cannot be used, or needs modules that were not imported.
    """
    if not names_checkpoint(args):
        return None

    from utils import checkpoint, plugins

    path = Path(args.resume)
    state = checkpoint.load_run(path)
    plugins.require_modules(state, modules, path)
    return state


def resolve_config(args: argparse.Namespace, raw: dict[str, Any] | None, state: Checkpoint | None) -> RunConfig:
    """The config to train, checked and complete.

    Raises:
        ConfigError: With every problem there is.
    """
    from engine.check import check_config

    if raw is None:
        assert state is not None
        raw = override(state["config"], overrides_of(args))
    return check_config(with_batch_size(args, raw))


def with_batch_size(args: argparse.Namespace, raw: dict[str, Any]) -> dict[str, Any]:
    """The config with what ``--batch-size`` changes."""
    if args.batch_size is None:
        return raw
    return override(raw, [f"{first_training_path(raw)}.args.batch_size={args.batch_size}"])


def plan_repeats(args: argparse.Namespace) -> Repeats:
    """Plan the runs that ``--seeds`` or ``--folds`` asks for.

    Raises:
        UserError: The config cannot be trained so.
    """
    raw = load_config(args.config or Path("config.json"), overrides_of(args))

    from engine.repeats import plan_folds, plan_seeds
    from utils import distributed, plugins
    from utils.log import log_to

    process = distributed.announced_process()
    log_to(rank=process.rank)
    if process.size > 1:
        what = "torchrun starts the processes of one run, and this is several"
        raise ConfigError(f"--seeds, --folds: {what}. Set n_gpu instead, or start each run with --set seed=N.")
    plugins.import_modules(args.modules)
    raw = with_batch_size(args, raw)
    return plan_folds(raw, args.folds) if args.seeds is None else plan_seeds(raw, args.seeds)


def train_repeatedly(args: argparse.Namespace, repeats: Repeats) -> Path:
    """Train each of `repeats` in a process of its own; returns the folder of all."""
    from engine.children import train_command
    from engine.repeats import run_all

    words = [*train_command(__package__, __file__), "--config", str(args.config or "config.json")]
    for text in overrides_of(args):
        words += ["--set", text]
    for flag, given in (("--batch-size", args.batch_size), ("--device", args.device)):
        words += [flag, str(given)] if given is not None else []
    for name in args.modules:
        words += ["--import", name]
    words += ["--debug"] if args.debug else []
    return run_all(repeats, words, resume=args.resume == "auto")


def describe(args: argparse.Namespace, config: RunConfig) -> int:
    """Answer ``--check``, ``--check-data`` and ``--draw-schedule``."""
    from engine.describe_run import check_run, draw_schedule

    if args.check or args.check_data:
        lines: Iterable[str] = check_run(config, everything=args.check_data)
    else:
        lines = draw_schedule(config, args.draw_schedule)
    for line in lines:
        print(line)
    return 0


def processes_to_train(args: argparse.Namespace, config: RunConfig) -> int:
    """Count the processes that are to train: one for each GPU to use, or as many as torchrun has started.

    Raises:
        ConfigError: They cannot share a batch.
    """
    from engine.check import division_problems
    from utils import distributed

    started = distributed.announced_process().size
    gpus = gpus_to_use(args.device, config.n_gpu) if started == 1 else 1
    processes = gpus if gpus > 1 and config.parallel == "ddp" else started
    if problems := division_problems(config, processes):
        raise ConfigError(*problems)
    return processes


def train_job(args: argparse.Namespace, job: Job) -> Path:
    """Train in this process, which is one of those of the run if there are several; returns the run's folder."""
    from engine import preflight, resume, session
    from utils import distributed

    config, process = job.config, distributed.announced_process()
    is_alone = process.size == 1
    if "TORCHELASTIC_RUN_ID" in os.environ and config.n_gpu != process.local_size:
        text = f"n_gpu: {config.n_gpu} has no effect, since torchrun has started {process.local_size} processes here"
        logging.getLogger("segwright").info(text)
    # Of several GPUs, one process uses but the first, unless threads are asked for.
    by_threads = is_alone and config.parallel == "DataParallel"
    gpus = gpus_to_use(args.device, config.n_gpu) if by_threads else 1
    device = choose_device(args.device, config.n_gpu if is_alone else -1, process.local_rank)
    found = None if job.state is None else resume.Resume(Path(args.resume), job.state)
    with distributed.joined(device):
        if args.resume == "auto":
            found = resume.find(config)
        if found is None:
            preflight.check_weights(config)
        return session.train(config, device, modules=job.modules, resume=found, gpus=gpus)


def explain(args: argparse.Namespace) -> int:
    """Answer ``--list`` and ``--describe``."""
    if args.list == "presets":
        print(preset_table())
        return 0
    if args.describe is not None and (preset := describe_preset(args.describe)):
        print(preset)
        return 0

    import engine.config  # noqa: F401  registers all that comes along
    from utils import plugins
    from utils.describe import list_names

    plugins.import_modules(args.modules)
    if args.list:
        print(list_names(KINDS if args.list == "all" else [args.list]))
        if args.list == "all":
            print(f"\n{preset_table()}")
    if args.describe is not None:
        print(describe_name(args.describe))
    print(f'\nEditors complete names and keys with this in a config:\n  "$schema": "{SCHEMA}"')
    return 0


def preset_table() -> str:
    """The names of the presets, and what they are."""
    return "\n".join(["presets:", *name_table(presets())])


def describe_name(name: str) -> str:
    """Describe a component, or else a section or key of a config; of a part of several names, list them.

    Raises:
        UserError: There is no such name.
    """
    from engine.config import SHARED_OPTIONS
    from engine.keys import describe_key, describe_weights, find_keys
    from utils.describe import describe as describe_component
    from utils.describe import find_names, tables

    found = describe_component(name, SHARED_OPTIONS)
    if found is not None:
        return "\n\n".join([found, *describe_weights(name)])
    found = describe_key(name) if name else None
    if found is not None:
        return found
    hits = find_names(name) if name else {}
    named = {preset: text for preset, text in presets().items() if name.lower() in preset}
    others = {"presets": named, "keys of a config": find_keys(name)} if name else {}
    hits |= {kind: rows for kind, rows in others.items() if rows}
    if not hits:
        raise UserError(f"--describe {name}: no such name. `train.py --list` shows what there is.")
    names = [each for rows in hits.values() for each in rows]
    if len(names) == 1:
        return describe_preset(names[0]) or describe_name(names[0])
    return f"names with '{name}' in them; `--describe NAME` tells more of one:\n\n{tables(hits)}"


if __name__ == "__main__":
    sys.exit(run(main))
