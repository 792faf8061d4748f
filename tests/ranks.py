"""What the processes of tests/test_distributed.py do; each is a module's `main`, as the launcher wants it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import train
from tests.tiny import Squares
from utils import distributed
from utils.errors import DataError

CASES = [
    {"loss": "CrossEntropyLoss2d"},
    {"loss": {"type": "CrossEntropyLoss2d", "args": {"class_weights": [1.0, 2.0, 5.0]}}, "accumulate": 2},
    {"loss": {"type": "DiceLoss", "args": {"per_image": True}}, "ema": 0.5},
    {"loss": "FocalLoss", "unused": True, "val_length": 1},
    {"loss": "CrossEntropyLoss2d", "freeze_bn": False},  # with statistics of each process's own images
]


def main(argv: Sequence[str] | None) -> int:
    """Write what this process says to FOLDER/RANK.txt, and do WHAT it is told.

    With SEGWRIGHT_TEST_RANK=R, only rank R is ever killed; with SEGWRIGHT_TEST_BAD=R, only it reads bad pictures.
    """
    assert argv is not None
    folder, what, *rest = argv
    rank = os.environ["RANK"]
    output = os.open(Path(folder) / f"{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    if os.environ.get("SEGWRIGHT_TEST_RANK", rank) != rank:
        os.environ["SEGWRIGHT_TEST_KILL"] = "never:1"
    if os.environ.get("SEGWRIGHT_TEST_BAD") == rank:
        break_pictures()
    if what == "train":
        return train.main(rest)
    with distributed.joined(torch.device("cpu")):
        (Path(folder) / f"{rank}.json").write_text(json.dumps(figures_of_a_share()))
        torch.save([steps_of(Path(folder), **case) for case in CASES], Path(folder) / f"{rank}.pt")
    return 0


def break_pictures() -> None:
    """Let every picture of the training set that is read for a batch be a bad one, in this process."""
    read = Squares.read

    def broken(self: Squares, index: int) -> Any:
        item = read(self, index)
        if self.split == "train" and sys._getframe(1).f_code.co_name in ("__getitem__", "open"):
            raise DataError(f"{item.key}: damaged or cut short. Get the file again or remove it.")
        return item

    Squares.read = broken  # type: ignore[method-assign]


def figures_of_a_share() -> dict[str, float]:
    """Every figure there is, each process having counted its share of the images."""
    from tests.test_metrics import every_figure, scene

    logits, labels = scene(5)
    figures = every_figure(logits[distributed.rank() :: 2], labels[distributed.rank() :: 2], 1)
    figures.reduce()
    return figures.results()


def steps_of(
    folder: Path, *, unused: bool = False, val_length: int = 3, freeze_bn: bool = True, **options: Any
) -> dict[str, Any]:
    """Losses, gradients and figures of two steps and a validation, in however many processes there are."""
    from tests import test_trainer

    trainer = test_trainer.make_trainer(folder, freeze_bn=freeze_bn, val_length=val_length, unused=unused, **options)
    gradients: list[dict[str, Any]] = []

    def keep(*_: Any) -> None:
        named = trainer.model.named_parameters()
        gradients.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(keep)
    trained = trainer.train_epoch()
    validated = trainer.eval_epoch()
    return {
        "gradients": gradients,
        "figures": {**{f"train/{k}": v for k, v in trained.items() if k == "loss"}, **validated},
        "counts": trainer.matrix.counts,
        "weights": trainer.model.state_dict(),
    }
