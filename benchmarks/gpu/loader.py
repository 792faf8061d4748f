"""The part "loader" of benchmarks/gpu/: images/s of a loader, and of a network that trains from it.

The network alone trains from one batch that stays on the GPU. Files are few, and in the system's cache: what is
measured is decoding, augmenting, and handing over.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from base.base_dataloader import Batch, DevicePrefetcher, Loader
from benchmarks import data
from benchmarks.data import Column
from benchmarks.gpu.record import Record, is_cuda, seconds_of
from benchmarks.gpu.throughput import NETWORKS, SMALL
from benchmarks.results import Figure, by_turns, ratios
from models.build import build_model
from utils.losses.criterion import build_criterion

FILES = 16


def loader_part(record: Record, flags: argparse.Namespace) -> None:
    """Measure two kinds of images, decoded each time and from a cache."""
    warnings.filterwarnings("ignore")
    names = ("voc380",) if flags.quick else ("voc512", "cityjpg2048")
    workers = 1 if flags.quick else max(1, (os.cpu_count() or 2) - 1)
    for name in names:
        column = data.shrunk(data.COLUMNS[name], 8 if flags.quick else 1)
        with tempfile.TemporaryDirectory() as folder:
            data.write(column, Path(folder), None, 4 if flags.quick else FILES)
            for cached in (False, True):
                what = f"{column.label}{', cached' if cached else ''}, {workers} workers"
                call = functools.partial(loader_row, what, column, Path(folder), cached, workers, flags)
                record.attempt(what, call)


def loader_row(
    what: str, column: Column, root: Path, cached: bool, workers: int, flags: argparse.Namespace
) -> list[Figure]:
    """Measure a loader, a network that trains from it, and the network alone, by turns."""
    batch_size, count = (2, 2) if flags.quick else (16, 40)
    view = data.our_view(column, root, cached=cached)
    view.indices = [index % len(view.indices) for index in range(batch_size * count)]
    size = (column.crop, column.crop)
    pinned = is_cuda(flags.device)  # as in training
    loader = Loader(view, batch_size, num_workers=workers, training=True, pin_memory=pinned, size=size)
    train = training_of(len(view.dataset.classes), flags)
    move = DevicePrefetcher(torch.device(flags.device))
    epochs = iter(range(1000))

    def drain() -> Batch:
        """Read an epoch to its end, so that nothing of it is left to do for workers; returns its last batch."""
        for batch in loader.batches(next(epochs)):  # noqa: B007  none is kept, whose memory is used again
            pass
        return batch

    def pace(work: Callable[[], object]) -> Callable[[], float]:
        return lambda: batch_size * count / seconds_of(work, flags.device)

    in_memory = move(drain())  # processes start, and caches fill
    train([in_memory] * 3)
    cases = {
        "loader": pace(drain),
        "network from memory": pace(lambda: train([in_memory] * count)),
        "network from loader": pace(lambda: train(map(move, loader.batches(next(epochs))))),
    }
    found = by_turns(cases, 1 if flags.quick else 3)
    figures = [Figure(what, "images/s", values, case) for case, values in found.items()]
    share = ratios(found["network from loader"], found["network from memory"])
    return [*figures, Figure(what, "x", share, "from loader / from memory")]


def training_of(num_classes: int, flags: argparse.Namespace) -> Callable[[Iterable[Batch]], None]:
    """Return a function that trains a network in bf16, channels last, on batches on its device."""
    net = SMALL[0] if flags.quick else NETWORKS[0]
    model = build_model({"type": net.kind, "args": net.args}, num_classes=num_classes).train()
    model.to(flags.device, memory_format=torch.channels_last)
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=num_classes).to(flags.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    kind = torch.device(flags.device).type

    def train(batches: Iterable[Batch]) -> None:
        for batch in batches:
            with torch.autocast(kind, torch.bfloat16):
                output = model(batch.images)
            criterion(output, batch.labels, criterion.normalizers(batch.labels))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return train
