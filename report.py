"""Write the page that compares runs, ``python report.py saved/``, or one run's report anew: ``report.py FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import ArgumentParser, run


def main(argv: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="report.py", description=__doc__)
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=Path("saved"), help="folder of runs, or of one run (default: saved)")
    add("--debug", action="store_true", help="show tracebacks of user errors too")
    args = parser.parse_args(argv)

    from engine.reporting.index import write_index
    from engine.reporting.write import rewrite

    if (args.folder / "config.json").is_file():
        print(f"written: {rewrite(args.folder)}")
        return 0
    path, runs, problems = write_index(args.folder)
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"written: {path}, {runs} {'run' if runs == 1 else 'runs'}")
    return 3 if problems else 0


if __name__ == "__main__":
    sys.exit(run(main))
