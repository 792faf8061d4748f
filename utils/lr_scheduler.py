"""Learning rates as functions of the step.

Ours have no state: what was done before does not matter, so resuming is knowing the step, and a run can be
prolonged. torch's own schedulers can be named too; they count for themselves and are saved with the run.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from utils.errors import ConfigError, first_line
from utils.registry import SCHEDULERS
from utils.schema import Above, AtLeast, Between, Mismatch, convert, join

STAGES = "stages"  # key of a parameter group: optimizer steps for which it rests, and for which it then warms up


def poly_factor(step: float, total_steps: float, *, power: float = 0.9, warmup_steps: float = 0) -> float:
    """Share of the base learning rate to use for optimizer step number `step`: ``(1 - progress) ** power``.

    During the first `warmup_steps` it is multiplied by what rises linearly to 1. It would reach 0 at `total_steps`.

    Source: the "poly" policy, as used by Chen et al. 2016, https://arxiv.org/abs/1606.00915, section 4.1.

    Args:
        step: Optimizer steps taken so far, from 0.
        total_steps: Optimizer steps in the whole run.

    Returns:
        A number from 0 to 1. Steps past the end give 0, not a complex number.
    """
    remaining: float = max(1 - step / max(total_steps, 1), 0)
    return _warmup(step, warmup_steps) * math.pow(remaining, power)


def cosine_factor(step: float, total_steps: float, *, warmup_steps: float = 0) -> float:
    """Share of the base learning rate: half a cosine from 1 to 0 at `total_steps`, with a linear warm-up.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts.
    """
    return _warmup(step, warmup_steps) * _cosine(1, 0, step / max(total_steps, 1))


def one_cycle(
    step: int,
    total_steps: int,
    *,
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    pct_start: float = 0.3,
    momentums: tuple[float, float] = (0.85, 0.95),
) -> tuple[float, float]:
    """Share of the base learning rate, and the momentum, to use for optimizer step number `step`.

    The share rises from 1 / div_factor to 1 at `pct_start` of the run and falls to
    1 / (div_factor x final_div_factor) at its last step, where it stays; both along half a cosine. The momentum
    goes the opposite way. The same numbers as `torch.optim.lr_scheduler.OneCycleLR`, but also for very short runs.

    Source: Smith and Topin 2017, https://arxiv.org/abs/1708.07120, section 3.
    """
    low, high = momentums
    last = max(total_steps - 1, 0)
    peak = min(max(pct_start * total_steps - 1, 0), last)
    if step < peak:
        progress = step / peak
        return _cosine(1 / div_factor, 1, progress), _cosine(high, low, progress)
    progress = (step - peak) / (last - peak) if last > peak else float(step > peak)
    return _cosine(1, 1 / (div_factor * final_div_factor), progress), _cosine(low, high, progress)


def _warmup(step: float, warmup_steps: float) -> float:
    return min((step + 1) / (warmup_steps + 1), 1)


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(progress, 0), 1))) / 2


def _stage_factor(group: Mapping[str, Any], step: int) -> float:
    """Share of its learning rate that a parameter group has because its part rests or warms up."""
    delay, warmup = group.get(STAGES, (0, 0))
    return _warmup(step - delay, warmup) if step >= delay else 0.0


class Schedule(ABC):
    """Sets the learning rate of every group to its base rate times a factor, so that groups keep their ratios.

    A group's base rate is its "base_lr"; a group without one is given its present rate as such. A group with "stages",
    (delay, warmup) in optimizer steps, rests at first, and then warms up by itself.
    """

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Make `optimizer` ready for optimizer step number `step`, from 0."""
        factor = self.factor(step)
        momentum = self.momentum(step)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * factor * _stage_factor(group, step)
            if momentum is not None and "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif momentum is not None and "momentum" in group:
                group["momentum"] = momentum

    @abstractmethod
    def factor(self, step: int) -> float:
        """Share of the base learning rate for optimizer step number `step`."""

    def momentum(self, step: int) -> float | None:
        """Momentum (beta 1 of Adam and its kind) for optimizer step number `step`; None leaves it alone."""
        return None

    def check_length(self, total_steps: int, *, where: str) -> None:  # noqa: B027  ours are as long as the run
        """Refuse a run of `total_steps` that this schedule, which stands at `where` in the config, does not last."""

    def after_validation(self, value: float) -> None:  # noqa: B027  most have nothing to do
        """Take note of the monitored `value`. Schedules that are functions of the step do not care."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Nothing to restore."""


@SCHEDULERS.register()
class Poly(Schedule):
    """Falls as ``(1 - progress) ** power``.

    Source: the "poly" policy, as used by Chen et al. 2016, https://arxiv.org/abs/1606.00915, section 4.1.

    Args:
        power: Exponent; 1 is a straight line.
        warmup_epochs: Epochs during which the rate rises linearly to where it should be.
        per_epoch: Compute it from whole epochs; it is then constant during each.
    """

    def __init__(
        self,
        total_steps: int,
        steps_per_epoch: int,
        *,
        power: Annotated[float, AtLeast(0)] = 0.9,
        warmup_epochs: Annotated[float, AtLeast(0)] = 0.0,
        per_epoch: bool = False,
    ) -> None:
        self.power = power
        self.unit = steps_per_epoch if per_epoch else 1  # optimizer steps between changes
        self.total = math.ceil(total_steps / self.unit)
        self.warmup = warmup_epochs if per_epoch else round(warmup_epochs * steps_per_epoch)

    def factor(self, step: int) -> float:
        return poly_factor(step // self.unit, self.total, power=self.power, warmup_steps=self.warmup)


@SCHEDULERS.register()
class Cosine(Schedule):
    """Falls along half a cosine, to 0 at the end of the run.

    Source: Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, equation 5, without restarts.

    Args:
        warmup_epochs: Epochs during which the rate rises linearly to where it should be.
    """

    def __init__(
        self, total_steps: int, steps_per_epoch: int, *, warmup_epochs: Annotated[float, AtLeast(0)] = 0.0
    ) -> None:
        self.total = total_steps
        self.warmup = round(warmup_epochs * steps_per_epoch)

    def factor(self, step: int) -> float:
        return cosine_factor(step, self.total, warmup_steps=self.warmup)


@SCHEDULERS.register()
class OneCycle(Schedule):
    """Rises and falls along half cosines, while the momentum goes the opposite way.

    The optimizer's learning rate is the highest one.

    Source: Smith and Topin 2017, https://arxiv.org/abs/1708.07120, section 3.

    Args:
        div_factor: The highest learning rate divided by the first.
        final_div_factor: The first learning rate divided by the last.
        pct_start: Share of the run in which the rate rises.
        momentums: Lowest and highest momentum (beta 1 of Adam and its kind); null leaves it alone.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        div_factor: Annotated[float, AtLeast(1)] = 25.0,
        final_div_factor: Annotated[float, AtLeast(1)] = 1e4,
        pct_start: Annotated[float, Between(0, 1)] = 0.3,
        momentums: tuple[Annotated[float, Between(0, 1)], Annotated[float, Between(0, 1)]] | None = (0.85, 0.95),
    ) -> None:
        self.total = total_steps
        self.div_factor = div_factor
        self.final_div_factor = final_div_factor
        self.pct_start = pct_start
        self.momentums = momentums

    def factor(self, step: int) -> float:
        return self._cycle(step)[0]

    def momentum(self, step: int) -> float | None:
        return None if self.momentums is None else self._cycle(step)[1]

    def _cycle(self, step: int) -> tuple[float, float]:
        return one_cycle(
            step,
            self.total,
            div_factor=self.div_factor,
            final_div_factor=self.final_div_factor,
            pct_start=self.pct_start,
            momentums=self.momentums or (0.0, 0.0),
        )


@SCHEDULERS.register()
class Constant(Schedule):
    """Stays where it is.

    Args:
        warmup_epochs: Epochs during which the rate rises linearly to where it should be.
    """

    def __init__(self, steps_per_epoch: int, *, warmup_epochs: Annotated[float, AtLeast(0)] = 0.0) -> None:
        self.warmup = round(warmup_epochs * steps_per_epoch)

    def factor(self, step: int) -> float:
        return _warmup(step, self.warmup)


@SCHEDULERS.register()
class Step(Schedule):
    """Is multiplied by `gamma` at milestones.

    Args:
        milestones: Epochs after which this happens.
        gamma: Factor each time.
        warmup_epochs: Epochs during which the rate rises linearly to where it should be.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        *,
        milestones: tuple[Annotated[float, AtLeast(0)], ...],
        gamma: Annotated[float, Above(0)] = 0.1,
        warmup_epochs: Annotated[float, AtLeast(0)] = 0.0,
    ) -> None:
        self.steps = [milestone * steps_per_epoch for milestone in milestones]
        self.gamma = gamma
        self.warmup = round(warmup_epochs * steps_per_epoch)

    def factor(self, step: int) -> float:
        passed = sum(step >= milestone for milestone in self.steps)
        return _warmup(step, self.warmup) * self.gamma**passed


class TorchSchedule(Schedule):
    """One of torch's own schedulers, which counts for itself.

    Args:
        scheduler: What it is.
        unit: Optimizer steps after which it is told to step.
    """

    def __init__(self, scheduler: Any, unit: int) -> None:
        self.scheduler = scheduler
        self.unit = unit
        self.taken = 0  # steps that it was told to take
        self.needs_value = isinstance(scheduler, ReduceLROnPlateau)

    def apply(self, optimizer: Optimizer, step: int) -> None:
        """Let the scheduler catch up with `step`; it set its optimizer's first learning rate when it was made."""
        while self.taken < step // self.unit and not self.needs_value:
            self.scheduler.step()
            self.taken += 1

    def try_step(self, *, where: str) -> None:
        """Take a step, for what is found wrong only then, such as a `step_size` of 0; of no use afterwards.

        Raises:
            ConfigError: It cannot be taken.
        """
        with warnings.catch_warnings():  # the step of the optimizer is missed
            warnings.simplefilter("ignore", UserWarning)
            try:
                if not self.needs_value:
                    self.scheduler.step()
            except (ValueError, TypeError, ArithmeticError) as error:
                raise refusal(type(self.scheduler).__name__, error, where=where) from error

    def check_length(self, total_steps: int, *, where: str) -> None:
        """Refuse `OneCycleLR` that ends before the run does: it would raise an error in the middle of training.

        Raises:
            ConfigError: So it is.
        """
        length, needed = getattr(self.scheduler, "total_steps", None), (total_steps - 1) // self.unit
        if length is not None and length < needed:
            per = "steps" if self.unit == 1 else "epochs"
            raise ConfigError(
                f"{join(where, 'args')}: {type(self.scheduler).__name__} ends after {length} {per}, and the run takes "
                f"{needed}. Lengthen it, or use OneCycle, which knows how long the run is."
            )

    def factor(self, step: int) -> float:
        raise NotImplementedError("torch's schedulers are not functions of the step")

    def after_validation(self, value: float) -> None:
        """Give `value` to ReduceLROnPlateau, which steps then and only then."""
        if self.needs_value:
            self.scheduler.step(value)

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.taken = state["taken"]
        self.scheduler.load_state_dict(state["scheduler"])


@dataclass(frozen=True)
class SchedulerConfig:
    """The "lr_scheduler" section.

    Args:
        type: One of ours, or of `torch.optim.lr_scheduler`.
        args: Its arguments.
        per: What torch's own count, "epoch" unless given; ours count optimizer steps.
    """

    type: str = "Poly"
    args: Mapping[str, Any] = field(default_factory=dict)
    per: Literal["epoch", "step"] | None = None


def check_scheduler(value: Any, *, where: str = "lr_scheduler", problems: list[str]) -> SchedulerConfig:
    """Check an "lr_scheduler" section and fill in every default; what is wrong with it goes to `problems`.

    Args:
        value: A name, or ``{"type", "args", "per"}``.
    """
    found = len(problems)
    try:
        config: SchedulerConfig = convert({"type": value} if isinstance(value, str) else value, SchedulerConfig, where)
    except Mismatch as mismatch:
        problems += mismatch.problems
        return SchedulerConfig()
    component = SCHEDULERS.check(
        value if isinstance(value, str) else {"type": config.type, "args": config.args}, where=where, problems=problems
    )
    if len(problems) > found:
        return SchedulerConfig()
    per = config.per
    if _is_ours(component.type):
        if per is not None:
            problems.append(f"{join(where, 'per')}: has no effect on {component.type}, which counts steps. Remove it.")
    else:
        per = per or "epoch"
    return SchedulerConfig(component.type, component.args, per)


def build_scheduler(
    config: Any,
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    where: str = "lr_scheduler",
    **facts: Any,
) -> Schedule:
    """Build the schedule that an "lr_scheduler" section describes.

    Make it before the states of optimizer and schedule are loaded: torch's own set the learning rate when made.

    Args:
        config: A name, ``{"type", "args", "per"}`` or a `SchedulerConfig`.
        total_steps: Optimizer steps in the whole run.
        steps_per_epoch: Optimizer steps in an epoch.
        facts: What else a schedule of our own may ask for, see `utils.registry.FACTS`.

    Raises:
        ConfigError: The section is wrong, or torch refuses the arguments.
    """
    problems: list[str] = []
    is_checked = isinstance(config, SchedulerConfig)
    checked = config if is_checked else check_scheduler(config, where=where, problems=problems)
    if problems:
        raise ConfigError(*problems)
    for group in optimizer.param_groups:
        group.setdefault("base_lr", group["lr"])
        if STAGES in group and not _is_ours(checked.type):
            raise ConfigError(
                f"{where}: {checked.type} counts for itself and knows no delay or warm-up of a part. "
                f"Take them out of optimizer.parts, or use a schedule such as Poly."
            )
    if _is_ours(checked.type):
        facts |= {"total_steps": total_steps, "steps_per_epoch": steps_per_epoch}
        schedule: Schedule = SCHEDULERS.make(checked.type, checked.args, where=where, **facts)
        return schedule
    try:
        scheduler = SCHEDULERS.make(checked.type, checked.args, optimizer, where=where)
    except ConfigError:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise refusal(checked.type, error, where=where) from error
    return TorchSchedule(scheduler, steps_per_epoch if checked.per == "epoch" else 1)


def refusal(name: str, error: Exception, *, where: str) -> ConfigError:
    """Make one line of what a scheduler of torch says of its arguments."""
    return ConfigError(f"{join(where, 'args')}: {name} refuses its arguments: {first_line(error)}. Change them.")


def _is_ours(name: str) -> bool:
    """Whether `name` was registered, by us or by a third party; else it is one of torch's classes."""
    return not getattr(SCHEDULERS[name], "__module__", "").startswith("torch.")
