"""Train a segmentation model from one JSON file: ``python train.py --config config.json``."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import list_presets, load_config
from utils.devices import choose_device, gpus_to_use, restrict_gpus
from utils.errors import ArgumentParser, ConfigError, UserError, run

if TYPE_CHECKING:  # torch takes two seconds to import; --help and a mistyped file name need not wait for it
    import argparse

    from engine.config import RunConfig

KINDS = (
    *("models", "backbones", "necks", "heads", "losses", "datasets", "schedulers", "optimizers", "transforms"),
    *("writers",),
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


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    restrict_gpus(args.device)
    overrides = [*args.set]
    overrides += [f"optimizer.args.lr={args.lr}"] if args.lr is not None else []
    if args.list or args.describe is not None:
        return explain(args)
    from_checkpoint = args.resume not in (None, "auto") and args.config is None
    raw = {} if from_checkpoint else load_config(args.config or Path("config.json"), overrides)

    from engine import preflight
    from engine.check import check_config, division_problems
    from utils import checkpoint, distributed, plugins
    from utils.config import override
    from utils.log import log_to

    place = distributed.announced_process()
    log_to(rank=place.rank)
    modules = plugins.import_modules(args.modules)
    state = None
    if args.resume not in (None, "auto"):
        state = checkpoint.load_run(Path(args.resume))
        plugins.require_modules(state, modules, Path(args.resume))
        raw = override(state["config"], overrides) if from_checkpoint else raw
    if args.bs is not None:
        first = "train_loader.0" if isinstance(raw.get("train_loader"), list) else "train_loader"
        raw = override(raw, [f"{first}.args.batch_size={args.bs}"])
    config = check_config(raw)
    if args.check or args.check_data:
        return check(config, args.check_data)
    if args.draw_schedule:
        return draw_schedule(config, args.draw_schedule)
    gpus = gpus_to_use(args.device, config.n_gpu) if place.size == 1 else 1
    processes = gpus if gpus > 1 and config.parallel == "ddp" else place.size
    if problems := division_problems(config, processes):
        raise ConfigError(*problems)
    if processes > place.size:
        return distributed.launch("train", sys.argv[1:] if argv is None else argv, processes)

    from engine import resume, session

    if "TORCHELASTIC_RUN_ID" in os.environ and config.n_gpu != place.local_size:
        text = f"n_gpu: {config.n_gpu} has no effect, since torchrun has started {place.local_size} processes here"
        logging.getLogger("segwright").info(text)
    device = choose_device(args.device, config.n_gpu if place.size == 1 else -1, place.local_rank)
    found = None if state is None else resume.Resume(Path(args.resume), state)
    with distributed.joined(device):
        if args.resume == "auto":
            found = resume.find(config)
        if found is None:
            preflight.check_weights(config)
        session.train(config, device, modules=modules, resume=found, gpus=gpus)
    return 0


def check(config: RunConfig, everything: bool = False) -> int:
    """Validate and build everything without training, and say what training would need; read `everything`, or some."""
    from dataloader import label_statistics
    from dataloader.label_statistics import check_samples
    from engine import assemble, dry_run, preflight

    dry = dry_run.dry_run(config)
    preflight.check_weights(config)
    print(f"config      right; {config.arch.type}, {len(config.classes)} classes")
    print(f"parameters  {dry.parameters / 1e6:.2f} M, {dry.trainable / 1e6:.2f} M of them trained")
    print(f"logits      {list(dry.logits)} for images of {dry.image_size[0]}x{dry.image_size[1]}")
    need = dry.activation_bytes + 16 * dry.parameters
    print(f"memory      {gib(dry.activation_bytes)} of activations in each part of a step, {gib(need)} with weights")
    for loader in assemble.build_loaders(config, cached=False):
        if loader is not None:
            kind = "training" if loader.training else "validation"
            found = check_samples(loader.view, everything=True) if everything else label_statistics.look_at(loader.view)
            print(f"{kind:<12}{len(loader.view)} images, {len(loader)} batches; {found.describe(config.classes.names)}")
    return 0


def draw_schedule(config: RunConfig, path: Path) -> int:
    """Draw the learning rate of every group of parameters over the steps of the run, and print its course."""
    from engine import dry_run
    from engine.reporting.figures import schedule_picture

    rates = {name.removesuffix("/no_decay"): line for name, line in dry_run.learning_rates(config).items()}
    lines = {", ".join(name for name in rates if rates[name] == line): line for line in rates.values()}
    try:
        path.write_bytes(schedule_picture(lines))
    except OSError as error:
        raise UserError(f"--draw-schedule {path}: cannot be written ({error.strerror}). Name another file.") from error
    for name, line in lines.items():
        highest, step = max((rate, -step) for step, rate in line)
        print(f"{name}: {line[0][1]:.3g} at first, {highest:.3g} at step {-step}, {line[-1][1]:.3g} at {line[-1][0]}")
    print(f"written to {path}")
    return 0


def gib(size: int) -> str:
    """A number of bytes, for people."""
    return f"{size / 2**30:.2f} GiB"


def explain(args: argparse.Namespace) -> int:
    """Answer ``--list`` and ``--describe``."""
    if args.list == "presets":
        print(list_presets())
        return 0

    from engine.config import SHARED_OPTIONS
    from utils import plugins
    from utils.describe import describe, list_names

    plugins.import_modules(args.modules)
    if args.list:
        print(list_names(KINDS if args.list == "all" else [args.list]))
        if args.list == "all":
            print(f"\n{list_presets()}")
    if args.describe is not None:
        text = describe(args.describe, SHARED_OPTIONS)
        if text is None:
            raise UserError(f"--describe {args.describe}: no such name. `train.py --list` shows what there is.")
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
