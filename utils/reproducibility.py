"""Randomness as a pure function of what it is for.

Nothing draws from a generator that somebody else advances: the order of an epoch is a function of (seed, epoch),
an augmentation of (seed, epoch, index), dropout of (seed, step, part, rank). So a run can go on from any step
without a single generator state having been saved, and for any number of workers.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

# A tag each, so that streams for different purposes are unrelated though their other keys agree.
TAGS = {"order": 1, "augmentation": 2, "split": 3, "scene": 4, "init": 5}


def stream(
    seed: int, tag: Literal["order", "augmentation", "split", "scene", "init"], epoch: int = 0, index: int = 0
) -> np.random.Generator:
    """The generator for one purpose, epoch and sample; all arguments are non-negative."""
    return np.random.default_rng((seed, TAGS[tag], epoch, index))


def seed_part(seed: int, step: int, part: int = 0, rank: int = 0) -> None:
    """Seed torch's global generators, which dropout draws from, for one part of one optimiser step.

    Called before each forward pass of training (82 us): whatever drew from them before does not matter.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, part, rank)).generate_state(1, np.uint64)[0] >> 1))
