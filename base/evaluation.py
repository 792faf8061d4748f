"""The one loop that measures a model: of validation in training, and of evaluate.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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
        title: What stands before the progress bar.
    """
    for batch in progress_bar(loader.batches(), total=len(loader), title=title):
        if stop():
            break
        batch = move(batch)
        logits = predict(batch.images)
        predicted = metrics.add(logits, batch.labels)
        for listen in listeners:
            listen(PredictedBatch(batch.images, batch.labels, logits, predicted, batch.keys))
