"""Everything in benchmarks/ on a CPU, one after the other, and the pages that show it: `make bench`.

    python -m benchmarks.all [--yassouali DIR] [--semseg DIR] [--only losses memory] [--busy] [--quick]

Each part is a program of its own and is ended when its minutes are over; its old figures then stay as they are.
Together they have less than 25 minutes on two cores. Others take part where they are installed
(segmentation_models_pytorch, torchmetrics, albumentations) or where a checkout is given
(yassouali/pytorch-segmentation, hszhao/semseg).

--busy: keep a core busy meanwhile, measure the parts whose ratios matter most, and write to benchmarks/results/busy/.
--quick: try everything in small, and write nowhere. Ends with 1 if a part failed.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import results

ROOT = Path(__file__).resolve().parent.parent


class Part(NamedTuple):
    """A program.

    Args:
        module: In benchmarks/; it takes `--json`.
        minutes: After which it is ended.
        flags: For a measurement.
        quick: For a trial.
        checkouts: Of whom it takes.
        busy: Whether it is measured on a busy machine too.
    """

    module: str
    minutes: float
    flags: str = ""
    quick: str = ""
    checkouts: tuple[str, ...] = ()
    busy: bool = False


COLUMNS = "--images 8 --only voc380 voc512 ade512 city2048 cityjpg2048"
YASSOUALI = ("yassouali",)
PARTS = {
    "losses": Part("losses", 5.25, "--rounds 4", "--rounds 2 --classes 5 --shrink 8", YASSOUALI, True),
    "metrics": Part(
        "losses", 0.75, "--metrics --classes 19 150", "--metrics --rounds 2 --classes 19 --shrink 8", YASSOUALI, True
    ),
    "memory": Part(
        "memory",
        4.5,
        "--only CE CE+Dice-global Lovasz Lovasz-histogram",
        "--classes 5 --only CE --shrink 8 --steps 1",
        YASSOUALI,
    ),
    "data": Part(
        "data", 2.75, f"--rounds 5 {COLUMNS}", "--rounds 1 --images 2 --shrink 8 --only voc380", ("yassouali", "semseg")
    ),
    "loaders": Part(
        "data",
        3,
        f"--rounds 4 --workers 1 2 {COLUMNS}",
        "--rounds 1 --workers 1 --images 2 --batches 2 --shrink 8 --only voc380",
        YASSOUALI,
        True,
    ),
    "engine": Part("engine", 2.75, "--rounds 5", "--rounds 1 --shrink 4", YASSOUALI, True),
    "startup": Part("startup", 1.75, "--rounds 3", "--rounds 1 --configs"),
    "scaling": Part("scaling", 1, "--rounds 3", "--rounds 1 --shrink 4 --batches 2"),
    "inference": Part("inference", 1.75, "--frames 60 --rounds 3", "--frames 2 --rounds 1"),
    "modes": Part("modes", 1, "--rounds 1", "--size 64 128 --rounds 1", ("yassouali", "semseg")),
    "report": Part("report", 0.5, "--rounds 3", "--rounds 1"),
}
BY_HAND = ("camvid", "camvid_networks", "label_errors", "partial", "plan", "speed")  # they take too long
LAST = 0.6  # of a part's minutes; from then on it repeats nothing more than twice


@contextmanager
def spinning(enabled: bool) -> Iterator[None]:
    """Let a process use a core for as long as this lasts."""
    spinner = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if enabled else None
    try:
        yield
    finally:
        if spinner:
            spinner.kill()
            spinner.wait()


def run(name: str, flags: argparse.Namespace, folder: Path) -> tuple[float, str]:
    """Measure a part; returns its minutes and, if it failed, a line that says how."""
    part = PARTS[name]
    command = [
        sys.executable,
        "-m",
        f"benchmarks.{part.module}",
        *shlex.split(part.quick if flags.quick else part.flags),
    ]
    for who in part.checkouts:
        folder_of = getattr(flags, who)
        command += [f"--{who}", str(folder_of)] if folder_of else []
    variables = {**os.environ, results.TO: str(folder), results.BUSY: "1" if flags.busy else ""}
    variables[results.LATE] = str(time.time() + LAST * 60 * part.minutes)
    variables = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", **variables}
    minutes = part.minutes * (4 if flags.quick else 1)  # on whatever machine it is tried
    print(f"\n== {name}: {shlex.join(command[2:])}", flush=True)
    start = time.monotonic()
    process = subprocess.Popen([*command, "--json"], cwd=ROOT, env=variables, start_new_session=True)
    failure = ""
    try:
        status = process.wait(60 * minutes)
        failure = f"ended with status {status}" if status else ""
    except subprocess.TimeoutExpired:
        failure = f"ended after {minutes:g} minutes"
    finally:
        if process.poll() is None or failure:
            kill_group(process.pid)  # with whatever it started
        process.wait()
    return (time.monotonic() - start) / 60, failure


def kill_group(number: int) -> None:
    """Kill the processes of a group, if there are any left."""
    try:
        os.killpg(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS)
    parser.add_argument("--busy", action="store_true", help="keep a core busy, and write to benchmarks/results/busy/")
    parser.add_argument("--quick", action="store_true", help="try everything in small, and write nowhere")
    parser.add_argument("--yassouali", type=Path, metavar="DIR", help="checkout of yassouali/pytorch-segmentation")
    parser.add_argument("--semseg", type=Path, metavar="DIR", help="checkout of hszhao/semseg")
    flags = parser.parse_args(argv)
    for who in ("yassouali", "semseg"):
        if getattr(flags, who):
            setattr(flags, who, getattr(flags, who).resolve())
    names = flags.only or [name for name, part in PARTS.items() if part.busy or not flags.busy]
    spent, failures = {}, {}
    with tempfile.TemporaryDirectory() as trial, spinning(flags.busy):
        folder = Path(trial) if flags.quick else results.FOLDER / ("busy" if flags.busy else ".")
        for name in names:
            spent[name], failure = run(name, flags, folder)
            failures |= {name: failure} if failure else {}
    print()
    for name, minutes in spent.items():
        how = f", {failures[name]}" if name in failures else ""
        print(f"{name}: {minutes:.1f} of {PARTS[name].minutes:g} minutes{how}")
    print(f"together: {sum(spent.values()):.1f} minutes\n")
    if not flags.quick:
        results.main()
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
