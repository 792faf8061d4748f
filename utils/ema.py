"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class ExponentialMovingAverage(Generic[M]):
    """Keep the exponential moving average of a model's weights; its buffers are copied.

    The decay grows with the number n of updates, min(decay, (1 + n) / (10 + n)), so that the random first weights
    are soon forgotten.

    Not `torch.optim.swa_utils.AveragedModel`: that one begins with the weights after the first step, where ours begins
    with those before it, so that runs would end with other weights. It also counts updates in a tensor, which an
    averaging function that depends on their number has to read: the host would wait for the device in each step.

    Args:
        model: What to average.
        decay: Share of the old average that is kept at each update.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, model: M) -> None:
        """Move the average towards `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for average, value in zip(self.model.buffers(), model.buffers(), strict=True):
            average.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Give the averaged weights by name and the number of updates."""
        return {"state_dict": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.model.load_state_dict(state["state_dict"])
        self.updates = state["updates"]
