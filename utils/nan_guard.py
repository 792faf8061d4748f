"""Steps whose loss is NaN or infinite: undo them, say which images they had, and stop where there are too many.

No device is waited for within a step: whether a loss is finite is decided there, and the host reads the losses only
when it logs or saves.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.errors import Stopped

logger = logging.getLogger("segwright")


class UnreadLoss(NamedTuple):
    """The loss of a step that the host has not read yet."""

    step: int  # counted from 1
    position: int  # images of the epoch that had been used before it
    loss: Tensor  # (), on its device


class NanGuard:
    """Watch the losses of a run, and see to it that nothing that is not finite is ever saved.

    Args:
        model: What the optimizer changes.
        patience: Consecutive steps with a loss that is not finite after which the run stops. Above 1, such steps
            change no weight, which takes memory for a copy of the weights.
        name_step: Says in words which step it is, from its number and the position of its images.
        last_good: Says in words where to go on from after a failure.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        patience: int,
        name_step: Callable[[int, int], str],
        last_good: Callable[[], str],
    ) -> None:
        self.model = model
        self.patience = patience
        self.name_step = name_step
        self.last_good = last_good
        self.rollback = StepRollback(model) if patience > 1 else None
        self.streak = 0  # steps in a row, up to the newest, whose loss was not finite
        self.skipped_steps = 0  # steps of the open epoch whose loss was not finite
        self.unread: list[UnreadLoss] = []

    def start_epoch(self) -> None:
        """Forget the count of the epoch that was just closed; a streak goes on."""
        self.skipped_steps = 0
        self.unread.clear()

    def before_step(self) -> None:
        """Remember the weights; call it before the first forward pass of a step."""
        if self.rollback:
            self.rollback.remember()

    def before_update(self, loss: Tensor) -> None:
        """Clear the gradients if `loss`, (), is not finite; call it before the optimizer changes the weights."""
        if self.rollback:
            self.rollback.clear_gradients(~loss.isfinite())

    def after_update(self, loss: Tensor) -> None:
        """Undo the step if `loss`, (), is not finite; call it after the optimizer has changed the weights."""
        if self.rollback:
            self.rollback.undo(~loss.isfinite())

    def add(self, step: int, position: int, loss: Tensor) -> None:
        """Note the loss of a step without reading it.

        Args:
            step: Its number, from 1.
            position: Images of the epoch that had been used before it.
            loss: (), on its device.
        """
        self.unread.append(UnreadLoss(step, position, loss))

    def check_losses(self) -> float:
        """Read the losses that have been noted since the last call; returns the newest, NaN if there are none.

        Raises:
            Stopped: `patience` of them in a row were not finite; nothing of it has been saved.
        """
        if not self.unread:
            return math.nan
        losses: list[float] = torch.stack([each.loss for each in self.unread]).tolist()
        for loss, (step, position, _) in zip(losses, self.unread, strict=True):
            if math.isfinite(loss):
                self.streak = 0
                continue
            self.streak += 1
            self.skipped_steps += 1
            problem = f"the loss became {loss} at {self.name_step(step, position)}"
            if self.streak >= self.patience:
                raise Stopped(
                    f"training: {problem}. Lower optimizer.args.lr, set trainer.clip_grad_norm, or look at these "
                    f"images; {self.last_good()}"
                )
            logger.warning("%s; skipped, number %d in a row", problem, self.streak)
        self.unread.clear()
        return losses[-1]

    def check_weights(self, when: str) -> None:
        """Read the weights, which a finite loss with an infinite gradient ruins too.

        Args:
            when: After which step, in words.

        Raises:
            Stopped: One is NaN or infinite; it has not been saved.
        """
        values = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        finite: list[bool] = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
        if not all(finite):
            raise Stopped(
                f"training: weights such as '{list(values)[finite.index(False)]}' are not finite {when}. Lower "
                f"optimizer.args.lr or set trainer.clip_grad_norm; {self.last_good()}"
            )


class StepRollback:
    """Undo what an optimizer step did to a model, if a device finds that it has to be; the host need not know.

    Args:
        model: Whose weights and buffers, such as running statistics, to keep a copy of.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parameters = list(model.parameters())
        self.values = [*self.parameters, *model.buffers()]
        self.kept = [value.detach().clone() for value in self.values]

    @torch.no_grad()
    def remember(self) -> None:
        """Copy everything as it is."""
        for kept, value in zip(self.kept, self.values, strict=True):
            kept.copy_(value)

    def clear_gradients(self, undone: Tensor) -> None:
        """Let the optimizer see gradients of 0 where `undone`, () bool, is true, so that its state stays finite."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(undone, 0.0)

    @torch.no_grad()
    def undo(self, undone: Tensor) -> None:
        """Put everything back where `undone`, () bool, is true."""
        for kept, value in zip(self.kept, self.values, strict=True):
            value.copy_(torch.where(undone, kept, value))
