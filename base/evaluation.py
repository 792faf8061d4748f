"""The one loop that measures a model: of validation in training, and of evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from base.base_dataloader import Batch, Loader
from utils.epoch_figures import PredictedBatch
from utils.metrics import Metrics
from utils.step_progress import progress_bar


@torch.inference_mode()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: Loader,
    metrics: Metrics,
    *,
    move: Callable[[Batch], Batch],
    listeners: Iterable[Callable[[PredictedBatch], None]] = (),
    stop: Callable[[], bool] = lambda: False,
    together: int = 1,
    title: str = "evaluate",
) -> None:
    """Predict every image of `loader` that is this process's share, and count into `metrics`.

    Args:
        predict: Gives logits (N, C, h, w) of raw images (N, channels, H, W), such as `Predictor.logits`.
        loader: Batches to measure on.
        metrics: What to count into.
        move: Brings a batch to the device that predicts, such as a `DevicePrefetcher`.
        listeners: What else wants to see each batch with its logits and predicted labels, in this order.
        stop: Says before each batch whether to end early.
        together: Images that are predicted at once where neighbors are of one size and batches are smaller.
        title: What stands before the progress bar.
    """
    for batch in grouped(progress_bar(loader.batches(), total=len(loader), title=title), together):
        if stop():
            break
        batch = move(batch)
        logits = predict(batch.images)
        predicted = metrics.add(logits, batch.labels)
        for listen in listeners:
            listen(PredictedBatch(batch.images, batch.labels, logits, predicted, batch.keys))


def grouped(batches: Iterable[Batch], most: int) -> Iterator[Batch]:
    """Put neighboring batches of one size together, up to `most` images; larger ones stay as they are."""
    group: list[Batch] = []
    for batch in batches:
        alike = group and batch.images.shape[1:] == group[0].images.shape[1:]
        if group and (not alike or sum(len(each.images) for each in (*group, batch)) > most):
            yield _as_one(group)
            group = []
        group.append(batch)
    if group:
        yield _as_one(group)


def _as_one(group: list[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    images, labels, keys, skipped = zip(*group, strict=True)
    return Batch(torch.cat(images), torch.cat(labels), sum(keys, ()), sum(skipped, ()))
