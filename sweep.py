"""Search the best settings of a config: ``python sweep.py --config config.json --space space.json --trials 20``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import ArgumentParser, run

if TYPE_CHECKING:
    import argparse

EXAMPLE = """\
a space names dotted keys of the config:
  {"optimizer.args.lr": {"low": 1e-4, "high": 0.1, "log": true},
   "arch.args.backbone": ["resnet18", "resnet50"]}

a sweep that was stopped or killed goes on when the same command is given again.
"""


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    from argparse import RawDescriptionHelpFormatter

    parser = ArgumentParser(
        prog="sweep.py", description=__doc__, epilog=EXAMPLE, formatter_class=RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("-c", "--config", type=Path, default=Path("config.json"), metavar="FILE", help="config (default: config.json)")
    add("--space", type=Path, required=True, metavar="FILE", help="JSON file: what to search, by dotted key")
    add("--trials", type=int, default=20, metavar="N", help="how many runs in all (default: 20)")
    add("--seed", type=int, default=0, metavar="N", help="decides what is tried (default: 0)")
    add("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key in all trials")
    add("-d", "--device", help="GPUs such as 0 or 0,1, or cpu, cuda, mps")
    add("--import", dest="modules", action="append", default=[], metavar="MODULE", help="module with own components")
    add("--debug", action="store_true", help="show tracebacks of user errors too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)

    from engine.children import train_command
    from engine.sweep import prepare_sweep, run_sweep, summary
    from utils.log import log_to
    from utils.plugins import import_modules

    log_to()
    import_modules(args.modules)
    options = ["--device", args.device] if args.device else []
    for name in args.modules:
        options += ["--import", name]
    sweep = prepare_sweep(
        args.config,
        args.space,
        trials=args.trials,
        seed=args.seed,
        command=train_command(__package__, __file__),
        sets=args.set,
        options=options,
    )
    print(summary(run_sweep(sweep), sweep))
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
