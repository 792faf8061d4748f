"""Write the page that compares runs, ``python report.py saved/``, or one run's report anew: ``report.py FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils.errors import run
from utils.flags import CommandParser, program

if TYPE_CHECKING:
    import argparse


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("report"),
        usage="[FOLDER]",
        description="Write the page that compares the runs in a folder, or one run's report anew.",
        examples=[
            ("saved", "the page that compares all runs: saved/index.html"),
            ("saved/mydata/latest", "the report of one run"),
        ],
        pages=["howto/several-seeds.md", "howto/sweeps.md"],
    )
    shown = "folder of runs, or of one run (default: saved)"
    group = parser.add_argument_group("runs")
    group.add_argument("folder", type=Path, nargs="?", default=Path("saved"), metavar="FOLDER", help=shown)
    parser.share("--debug")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)

    _, problems = report(args)
    return 3 if problems else 0


def report(args: argparse.Namespace) -> tuple[Path, list[str]]:
    """Write the page that `args`, from `parse`, ask for; returns its path, and what was wrong with other reports.

    Raises:
        DataError: There is no folder, or no report in it.
    """
    from engine.reporting.index import write_index
    from engine.reporting.write import rewrite

    if (args.folder / "config.json").is_file():
        path = rewrite(args.folder)
        print(f"written: {path}")
        return path, []
    path, runs, problems = write_index(args.folder)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"written: {path}, {runs} {'run' if runs == 1 else 'runs'}")
    return path, problems


if __name__ == "__main__":
    sys.exit(run(main))
