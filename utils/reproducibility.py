"""Randomness as a pure function of what it is for.

Nothing draws from a generator that somebody else advances: the order of an epoch is a function of (seed, epoch),
an augmentation of (seed, epoch, index), dropout of (seed, step, micro-batch, rank). So a run can go on from any step
without a single generator state having been saved, and for any number of workers.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from utils.errors import ConfigError


def make_deterministic(model: nn.Module, device: torch.device) -> None:
    """Forbid operations that differ from run to run, on a GPU; a CPU has none.

    Raises:
        ConfigError: The model needs one.
    """
    if device.type != "cuda":
        return
    if getattr(model, "unpools", False):
        raise ConfigError(
            "trainer.deterministic: the model unpools, which CUDA only does in an order that differs from run to run. "
            "Set it to false, or use another arch."
        )
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at cuBLAS's first call
    torch.use_deterministic_algorithms(True)


# A tag each, so that streams for different purposes are unrelated though their other keys agree.
Tag = Literal["order", "augmentation", "split", "scene", "init"]
TAGS: dict[Tag, int] = {"order": 1, "augmentation": 2, "split": 3, "scene": 4, "init": 5}


def stream(seed: int, tag: Tag, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Make the generator for one purpose, epoch and sample; all arguments are non-negative."""
    return np.random.default_rng((seed, TAGS[tag], epoch, index))


def seed_micro_batch(seed: int, step: int, micro_batch: int = 0, rank: int = 0) -> None:
    """Seed torch's global generators, which dropout draws from, for one micro-batch of one optimizer step.

    Called before each forward pass of training (82 us): whatever drew from them before does not matter.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, micro_batch, rank)).generate_state(1, np.uint64)[0] >> 1))


# What layers draw their first weights with. Within those of torch.nn.init, a mode that was asked is not asked again.
DRAWS = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class WithoutDraws(TorchFunctionMode):
    """Fill no tensor with random numbers within this context: for networks whose weights a checkpoint replaces.

    Drawing those of a ResNet-50 twice, as layers are made and again as ours begin, takes longer than to load them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
