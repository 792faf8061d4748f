"""A dataset of tiny pictures, for tests of everything around it; registered as a third party would."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from base.base_dataset import BaseDataset, Item, Sample
from utils.classes import ClassTable
from utils.registry import DATASETS


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class Squares(BaseDataset):
    """Bright squares on noise; drawn, not read.

    Args:
        length: Number of pictures.
        size: Their height and width.
    """

    data_dir: Path | None = None  # type: ignore[assignment]
    split: str = "train"
    length: int = 11
    size: tuple[int, int] = (40, 48)
    seed: int = 0

    splits = ("train", "val")

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        return ClassTable(("ground", "square", "dot"), ((90, 60, 30), (250, 200, 0), (0, 90, 250)), ((0,), (1,), (2,)))

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        offset = self.splits.index(split) * 1000
        return [Sample(f"square_{offset + i:04d}", Path("nowhere"), Path("nowhere")) for i in range(self.length)]

    def read(self, index: int) -> Item:
        key = self.samples[index].key
        rng = np.random.default_rng((self.seed, int(key[-4:])))
        height, width = self.size
        image = rng.integers(0, 90, (height, width, 3), dtype=np.uint8)
        label = np.zeros((height, width), np.uint8)
        top, left = rng.integers(height // 2), rng.integers(width // 2)
        for value, size in ((1, height // 3), (2, height // 10)):
            label[top : top + size, left : left + size] = value
        image[..., 0] += 80 * label
        label[:, 0] = 255
        return Item(image, label, key)

    def read_label(self, index: int) -> np.ndarray:
        return self.read(index).label


def tiny_config(save_dir: Path, **changes: Any) -> dict[str, Any]:
    """A config that trains in a second; `changes` replace whole sections."""
    backbone = {"type": "resnet18", "args": {"width_mult": 0.125}}
    head = {"type": "FCNHead", "args": {"channels": 8, "dropout": 0.1}}
    loader = {"length": 11, "num_workers": 0}
    return {
        "name": "tiny",
        "n_gpu": 0,
        "arch": {"type": "EncoderDecoder", "args": {"backbone": backbone, "head": head, "output_stride": 8}},
        "train_loader": {
            "type": "Squares",
            "args": {
                **loader,
                "batch_size": 2,
                "augment": True,
                "crop_size": 32,
                "base_size": 48,
                "flip": True,
                "rotate": True,
            },
        },
        "val_loader": {"type": "Squares", "args": {**loader, "batch_size": 2, "split": "val", "length": 3}},
        "optimizer": {"type": "SGD", "differential_lr": True, "args": {"lr": 0.05, "momentum": 0.9}},
        "trainer": {
            "epochs": 3,
            "save_dir": str(save_dir),
            "log_dir": str(save_dir / "runs"),
            "log_per_iter": 2,
            "save_period": 2,
            "tensorboard": False,
        },
        **changes,
    }
