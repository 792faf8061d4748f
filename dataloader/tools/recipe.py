"""How to train on own data: network, crops, length and loss, from the images and from what the machine has."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from dataloader.tools import doctor
from utils.errors import DataError

BACKBONE = "resnet18"
CROP = 512  # side of the square to train on, where images are large enough
CROP_WITHOUT_GPU = 224
BATCH, STEPS = 8, 2000
HELD_OUT = 0.2  # share of the images for validation, where there is no folder of them
RARE = 0.02  # share of the labelled pixels below which a class needs a weight of its own


@dataclass(frozen=True)
class Recipe:
    """How to train, as it follows from the images, the machine and the weights that can be had.

    Args:
        arch: The section of this name, likewise the next ones.
        optimizer: With the learning rate.
        loss: With weights where a class is rare.
        batch: Images per step.
        crop: Height and width to train on.
        epochs: How many.
        normalization: Mean and std of the training images.
        reasons: Why, a line each.
    """

    arch: dict[str, Any]
    optimizer: dict[str, Any]
    loss: Any
    batch: int
    crop: list[int]
    epochs: int
    normalization: dict[str, Any]
    reasons: list[str]


def choose_recipe(train: doctor.Examined, *, held_out: bool, gpus: int, pretrained: bool) -> Recipe:
    """Choose network, crops, length and loss for what is to be trained on.

    From random numbers a network needs more steps, at a higher learning rate. Without a GPU it is half as wide then,
    and ends in U-Net's decoder: it learns small things sooner, and costs as much as one of DeepLab's.

    Raises:
        DataError: There are too few images.
    """
    sizes = [record.size for record in train.records.values() if record.size]
    numbers = train.normalization()
    if len(sizes) < 4 or numbers is None:
        raise DataError(f"{train.dataset.data_dir}: {len(sizes)} images with masks can be used. Label at least 4.")
    count = len(train.records) - (round(HELD_OUT * len(train.records)) if held_out else 0)
    height, width = (int(side) for side in np.median(np.array(sizes), axis=0))
    largest = CROP if gpus else CROP_WITHOUT_GPU
    crop = [max(32, min(largest, side) // 32 * 32) for side in (height, width)]
    batch = min(BATCH, count - count % 2)
    steps = STEPS if pretrained else 3 * STEPS // 2
    epochs = min(400, max(20, -(-steps // (count // batch))))
    pixels, _ = train.pixels()
    rarest = pixels.min() / pixels.sum()
    mean, std = (json.loads(doctor.as_list(values)) for values in numbers)
    start = "public weights of the backbone" if pretrained else "random numbers, so with more steps"
    weighted = "cross-entropy and Dice, weighted" if rarest < RARE else "cross-entropy, no weights"
    small = "" if gpus else "; no GPU here, so they are small"
    return Recipe(
        arch=_network(gpus, pretrained),
        optimizer={
            "type": "SGD",
            "args": {"lr": 0.02 if pretrained else 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            "no_decay": ["norm", "bias"],
        },
        loss={"type": "CE_DiceLoss", "args": {"class_weights": "sqrt_inv"}} if rarest < RARE else "CrossEntropyLoss2d",
        batch=batch,
        crop=crop,
        epochs=epochs,
        normalization={"mean": mean, "std": std},
        reasons=[
            f"{len(sizes)} images, median size {height}x{width}: crops of {crop[0]}x{crop[1]}, {batch} at once{small}",
            f"{epochs} epochs of {count // batch} steps, starting from {start}",
            f"the rarest class has {rarest:.2%} of the pixels: {weighted}",
        ],
    )


def _network(gpus: int, pretrained: bool) -> dict[str, Any]:
    args: dict[str, Any] = {"backbone": BACKBONE, "output_stride": 16, "pretrained": pretrained}
    if gpus or pretrained:
        return {"type": "DeepLab", "args": args}
    small = {
        "backbone": {"type": BACKBONE, "args": {"width_mult": 0.5}},
        "necks": [{"type": "ASPP", "args": {"channels": 64}}],
        "head": {"type": "UNetHead", "args": {"channels": [96, 64, 48, 24]}},
    }
    return {"type": "EncoderDecoder", "args": {**args, **small}}
