"""Train a segmentation model from one JSON file: ``python train.py --config config.json``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.config import list_presets, load_config, override
from utils.devices import choose_device, gpus_to_use, restrict_gpus
from utils.errors import ArgumentParser, ConfigError, UserError, run

if TYPE_CHECKING:  # torch takes two seconds to import; --help and a mistyped file name need not wait for it
    import argparse

    from engine.config import RunConfig
    from utils.checkpoint import Checkpoint

KINDS = (
    *("models", "backbones", "necks", "heads", "losses", "datasets", "schedulers", "optimizers", "transforms"),
    *("metrics", "writers"),
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="train.py", description=__doc__)
    add = parser.add_argument
    add("-c", "--config", type=Path, metavar="FILE", help="config or preset to train (default: config.json)")
    add("-r", "--resume", metavar="CKPT|auto", help="go on from a checkpoint, or from the newest run of this config")
    add("-d", "--device", help="GPUs such as 0 or 0,1, or cpu, cuda, mps")
    add("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key")
    add("--lr", type=float, help="learning rate: optimizer.args.lr")
    add("--bs", type=int, help="batch size: train_loader.args.batch_size")
    add("--check", action="store_true", help="check config, data and shapes, say what a step needs, and stop")
    add("--check-data", action="store_true", help="the same, and read every image and label of both loaders")
    add(
        "--draw-schedule", type=Path, metavar="FILE", help="draw the learning rates of the whole run as a PNG, and stop"
    )
    add("--import", dest="modules", action="append", default=[], metavar="MODULE", help="module with own components")
    add("--list", nargs="?", const="all", choices=["all", *KINDS, "presets"], help="what a config may name")
    add("--describe", metavar="NAME", help="arguments of one of them")
    add("--debug", action="store_true", help="show tracebacks of user errors too")
    return parser.parse_args(argv)


class Request(NamedTuple):
    """What a command line asks to train."""

    config: RunConfig
    modules: list[str]  # of third parties, imported
    checkpoint: Checkpoint | None  # to go on from


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    if args.list or args.describe is not None:
        return explain(args)
    request = read_request(args)
    if args.check or args.check_data or args.draw_schedule:
        return describe(args, request.config)

    from utils import distributed

    processes = processes_for(args, request.config)
    if processes > distributed.announced_process().size:
        command = f"{__package__}.train" if __package__ else "train"  # in the wheel it lives in a package
        return distributed.launch(command, sys.argv[1:] if argv is None else argv, processes)
    train_here(args, request)
    return 0


def train(args: argparse.Namespace) -> Path:
    """Train as `parse` understood a command line, in this process, and return the folder of the run."""
    return train_here(args, read_request(args))


def read_request(args: argparse.Namespace) -> Request:
    """Read the config and the checkpoint that are named, and check the config.

    Raises:
        UserError: With every problem there is.
    """
    restrict_gpus(args.device)
    raw = read_config(args)

    from utils import distributed, plugins
    from utils.log import log_to

    log_to(rank=distributed.announced_process().rank)
    modules = plugins.import_modules(args.modules)
    state = read_checkpoint(args, modules)
    return Request(resolve_config(args, raw, state), modules, state)


def names_checkpoint(args: argparse.Namespace) -> bool:
    """Whether a checkpoint to go on from is named; with "auto", one may be found."""
    return args.resume not in (None, "auto")


def overrides_of(args: argparse.Namespace) -> list[str]:
    """What ``--set`` and ``--lr`` change in the config."""
    return [*args.set, *([f"optimizer.args.lr={args.lr}"] if args.lr is not None else [])]


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
    if args.bs is not None:
        first = "train_loader.0" if isinstance(raw.get("train_loader"), list) else "train_loader"
        raw = override(raw, [f"{first}.args.batch_size={args.bs}"])
    return check_config(raw)


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


def processes_for(args: argparse.Namespace, config: RunConfig) -> int:
    """How many processes train: those that there are, or as many as there are GPUs to use.

    Raises:
        ConfigError: They cannot share a step's images.
    """
    from engine.check import division_problems
    from utils import distributed

    processes = distributed.announced_process().size
    if processes == 1 and config.parallel == "ddp":
        processes = max(1, gpus_to_use(args.device, config.n_gpu))
    if problems := division_problems(config, processes):
        raise ConfigError(*problems)
    return processes


def train_here(args: argparse.Namespace, request: Request) -> Path:
    """Train in this process, which may be one of several, and return the folder of the run."""
    from engine import preflight, resume, session
    from utils import distributed

    config, process = request.config, distributed.announced_process()
    if "TORCHELASTIC_RUN_ID" in os.environ and config.n_gpu != process.local_size:
        text = f"n_gpu: {config.n_gpu} has no effect, since torchrun has started {process.local_size} processes here"
        logging.getLogger("segwright").info(text)
    alone = process.size == 1
    by_threads = alone and config.parallel == "DataParallel"
    gpus = gpus_to_use(args.device, config.n_gpu) if by_threads else 1
    device = choose_device(args.device, config.n_gpu if alone else -1, process.local_rank)
    found = None if request.checkpoint is None else resume.Resume(Path(args.resume), request.checkpoint)
    with distributed.joined(device):
        if args.resume == "auto":
            found = resume.find(config)
        if found is None:
            preflight.check_weights(config)
        return session.train(config, device, modules=request.modules, resume=found, gpus=gpus)


def explain(args: argparse.Namespace) -> int:
    """Answer ``--list`` and ``--describe``."""
    if args.list == "presets":
        print(list_presets())
        return 0

    from engine.config import SHARED_OPTIONS
    from utils import plugins
    from utils.describe import describe as describe_component
    from utils.describe import list_names

    plugins.import_modules(args.modules)
    if args.list:
        print(list_names(KINDS if args.list == "all" else [args.list]))
        if args.list == "all":
            print(f"\n{list_presets()}")
    if args.describe is not None:
        text = describe_component(args.describe, SHARED_OPTIONS)
        if text is None:
            raise UserError(f"--describe {args.describe}: no such name. `train.py --list` shows what there is.")
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
