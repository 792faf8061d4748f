"""Search the best settings of a config: ``python sweep.py --config config.json --space space.json --trials 20``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import UserError, run
from utils.flags import CommandParser, add_shared, program

if TYPE_CHECKING:
    import argparse

    from optuna import Study

TEXT = (
    "Search the best settings of a config. A space is a JSON file that names dotted keys, each with a list of values "
    'or a range: {"optimizer.args.lr": {"low": 1e-4, "high": 0.1, "log": true}}. A sweep that was stopped or killed '
    "goes on when the same command is given again."
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("sweep"),
        usage="--space FILE",
        description=TEXT,
        examples=[
            ("-c my.json --space space.json --trials 20", "twenty runs, and the best settings"),
            ("-c my.json --space space.json -s trainer.epochs=5", "short ones"),
        ],
        pages=["howto/sweeps.md"],
    )
    group = parser.add_argument_group("what to search")
    add_shared(group, "--config", " (default: config.json)", default=Path("config.json"))
    add = group.add_argument
    add("--space", type=Path, required=True, metavar="FILE", help="JSON file: what to search, by dotted key")
    add_shared(group, "--set", ", in all trials")
    group = parser.add_argument_group("how to search")
    add = group.add_argument
    add("--trials", type=int, default=20, metavar="N", help="how many runs in all (default: 20)")
    add("--seed", type=int, default=0, metavar="N", help="decides what is tried (default: 0)")
    add_shared(group, "--device", "; several GPUs as 0,1")
    parser.share("--import", "--debug")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    study = sweep(parse(argv))
    return 3 if any(trial.state.name == "FAIL" for trial in study.trials) else 0


def sweep(args: argparse.Namespace) -> Study:
    """Search as `args`, from `parse`, say, and print what was best; returns optuna's study.

    Raises:
        UserError: Config and space do not fit together.
    """
    from engine.children import train_command
    from engine.sweep import prepare_sweep, run_sweep, summary
    from utils.log import log_to
    from utils.plugins import import_modules

    if args.trials < 1:
        raise UserError(f"--trials {args.trials}: no run. Give at least 1.")
    log_to()
    import_modules(args.modules)
    options = ["--device", args.device] if args.device else []
    for name in args.modules:
        options += ["--import", name]
    job = prepare_sweep(
        args.config,
        args.space,
        trials=args.trials,
        seed=args.seed,
        command=train_command(__package__, __file__),
        sets=args.set,
        options=options,
    )
    study = run_sweep(job)
    print(summary(study, job))
    return study


if __name__ == "__main__":
    sys.exit(run(main))
