"""What a second process adds to training, and a second worker to a loader.

    python benchmarks/scaling.py [--rounds 3] [--json]

Training: the small network of `benchmarks/engine.py`, 4 images a process, on one and on two processes of one thread
that average their gradients by gloo; each round starts them anew. Loader: reading and augmenting images of 480x360.
Images per second by the clock, by turns; on two idle cores, 2 is the most that the ratios can be.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.results import Figure, by_turns, ratios, show, write


def train_as_rank(folder: Path, shrink: int) -> None:
    """Take two rounds of steps as one of the processes; the first of them writes the pace of the second."""
    import torch

    from benchmarks import engine
    from utils import distributed

    warnings.filterwarnings("ignore")
    size = (engine.SIZE[0] // shrink // 8 * 8, engine.SIZE[1] // shrink // 8 * 8)
    steps = 8 if shrink == 1 else 2
    torch.set_num_threads(1)
    with distributed.joined(torch.device("cpu")):
        trainer = engine.make_trainer(folder, size=size, steps=steps)
        trainer.network = distributed.wrap(trainer.model)
        engine.ours(trainer)
        seconds = engine.timed(lambda: engine.ours(trainer))
        pace = distributed.world_size() * engine.BATCH * steps / seconds
        if distributed.is_first():
            (folder / "pace.json").write_text(json.dumps(pace))


def training(processes: int, shrink: int) -> Callable[[], float]:
    """What measures the pace of training in so many processes."""
    from utils import distributed

    def run() -> float:
        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--rank-of", folder, "--shrink", str(shrink)]
            status = distributed.launch("benchmarks.scaling", arguments, processes)
            if status:
                raise RuntimeError(f"{processes} processes ended with {status}")
            return float(json.loads((Path(folder) / "pace.json").read_text()))

    return run


def loading(root: Path, workers: int, batches: int, shrink: int) -> Callable[[], float]:
    """What measures the pace of a loader with so many workers; the files are in `root`."""
    from base.base_dataloader import Loader
    from benchmarks import data

    column = data.shrunk(data.COLUMNS["voc380"], shrink)
    view = data.our_view(column, root)
    view.indices = [index % len(view.indices) for index in range(batches * data.BATCH)]
    loader = Loader(view, data.BATCH, num_workers=workers, training=True, size=(column.crop, column.crop))
    epochs = iter(range(10**9))

    def run() -> float:
        start = time.perf_counter()
        for _ in loader.batches(next(epochs)):
            pass
        return batches * data.BATCH / (time.perf_counter() - start)

    run()  # in which its processes start
    return run


def measure(rounds: int, batches: int, shrink: int) -> list[Figure]:
    """Both, by turns."""
    from benchmarks import data

    rows = {"training, processes": {count: training(count, shrink) for count in (1, 2)}}
    with tempfile.TemporaryDirectory() as folder:
        data.write(data.shrunk(data.COLUMNS["voc380"], shrink), Path(folder), None, 16)
        rows["loader, workers"] = {count: loading(Path(folder), count, batches, shrink) for count in (1, 2)}
        figures: list[Figure] = []
        for what, cases in rows.items():
            pace = by_turns({str(count): case for count, case in cases.items()}, rounds)
            row = [Figure(what, "images/s", pace[count], count) for count in ("1", "2")]
            figures += show([*row, Figure(what, "x", ratios(pace["2"], pace["1"]), "2 / 1")])
    return figures


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=40, help="that a loader reads in a round")
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes by this, to try it out")
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    if flags.rank_of:
        train_as_rank(flags.rank_of, flags.shrink)
        return 0
    os.environ["OMP_NUM_THREADS"] = "1"
    figures = measure(flags.rounds, flags.batches, flags.shrink)
    if flags.json:
        write("scaling", "one and two of them", figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
