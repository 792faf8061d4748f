"""Try what training needs of memory, and leave no trace of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from base.base_dataloader import Batch
from trainer import Trainer
from utils.predict import Predictor


def try_step(trainer: Trainer, batch: Batch, image: Tensor | None) -> None:
    """Take a training step on `batch` and validate `image`, then put everything back.

    The optimizer is one to throw away, which allocates as much as the real one.

    Args:
        trainer: A trainer that has not begun.
        batch: As large as there will be, on the device.
        image: (1, channels, H, W), on the device; None without validation.
    """
    weights = {name: value.cpu().clone() for name, value in trainer.model.state_dict().items()}
    optimizer = trainer.optimizer
    ema = trainer.ema
    scaler = trainer.scaler.state_dict()
    make: Any = type(optimizer)
    trainer.optimizer = make([dict(group) for group in optimizer.param_groups])
    trainer.ema = None
    try:
        trainer.model.train()
        trainer.train_step(batch)
        if image is not None:
            Predictor(trainer.model, trainer.classes, {}, trainer.protocol.precision).predict_batch(image)
    finally:
        trainer.optimizer = optimizer
        trainer.ema = ema
        trainer.scaler.load_state_dict(scaler)
        optimizer.zero_grad(set_to_none=True)
        trainer.model.load_state_dict(weights)
