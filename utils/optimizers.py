"""The "optimizer" section of a config: an optimizer, and which parameters it treats differently."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from utils.errors import ConfigError, first_line
from utils.lr_scheduler import STAGES
from utils.registry import OPTIMIZERS
from utils.schema import Above, AtLeast, Mismatch, Range, convert, did_you_mean, join, parameters_of, show

# The private base class is the only thing that all batch and instance norms have in common.
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)

FUSED = ("SGD", "Adam", "AdamW")  # what torch can compute in one kernel on a GPU
DIFFERENTIAL_LR = 0.1  # of the backbone, as a share of the decoder's, where the config says `true`


class Grouped(Protocol):
    """What an optimizer needs to know of a model."""

    def parameter_groups(
        self, lr: float, *, backbone_lr_scale: float = 1.0, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Give groups with "name", PART or "PART/layer", "params" and "lr": a partition of the parameters.

        Raises:
            ValueError: `layer_decay` is below 1, and there are no layers that it could be for.
        """

    def named_modules(self) -> Any:
        """As `torch.nn.Module` has it."""


@dataclass(frozen=True)
class PartOptions:
    """How one part of a model differs.

    Args:
        lr_mult: Factor of the learning rate.
        decay_mult: Factor of the weight decay.
        delay: Optimizer steps during which the part rests, at a learning rate of 0.
        warmup: Optimizer steps after these during which its learning rate rises linearly to what it should be.
    """

    lr_mult: Annotated[float, AtLeast(0)] = 1.0
    decay_mult: Annotated[float, AtLeast(0)] = 1.0
    delay: Annotated[int, AtLeast(0)] = 0
    warmup: Annotated[int, AtLeast(0)] = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """The "optimizer" section.

    Args:
        type: A class of `torch.optim`, or a registered one.
        args: Its arguments, without `params`.
        differential_lr: Learning rate of the backbone as a share of the decoder's; true is 0.1, false is 1.
        layer_decay: Learning rate of each layer of the backbone as a share of that of the next one, for fine-tuning
            deep pretrained encoders (Clark et al. 2020, https://arxiv.org/abs/2003.10555); 1 is the same for all.
        parts: What differs for parts of the model, "decoder" and "backbone".
        no_decay: Parameters without weight decay: those of normalization layers, biases, depthwise convolutions.
    """

    type: str = "SGD"
    args: Mapping[str, Any] = field(default_factory=dict)
    differential_lr: bool | Annotated[float, Above(0)] = False
    layer_decay: Annotated[float, Range(above=0, most=1)] = 1.0
    parts: Mapping[str, PartOptions] = field(default_factory=dict)
    no_decay: tuple[Literal["norm", "bias", "depthwise"], ...] = ()

    @property
    def backbone_lr_scale(self) -> float:
        """`differential_lr` as a number."""
        if isinstance(self.differential_lr, bool):
            return DIFFERENTIAL_LR if self.differential_lr else 1.0
        return self.differential_lr


def check_optimizer(value: Any, *, where: str = "optimizer", problems: list[str]) -> OptimizerConfig:
    """Check an "optimizer" section and fill in every default; what is wrong with it goes to `problems`.

    Args:
        value: A name, or ``{"type", "args", "differential_lr", "layer_decay", "parts", "no_decay"}``.
    """
    found = len(problems)
    try:
        config: OptimizerConfig = convert({"type": value} if isinstance(value, str) else value, OptimizerConfig, where)
    except Mismatch as mismatch:
        problems += mismatch.problems
        return OptimizerConfig()
    component = OPTIMIZERS.check(
        value if isinstance(value, str) else {"type": config.type, "args": config.args}, where=where, problems=problems
    )
    backbone = config.parts.get("backbone", PartOptions())
    if config.differential_lr and backbone.lr_mult != 1:
        problems.append(
            f"{join(where, 'parts.backbone.lr_mult')}: differential_lr sets the backbone's learning rate too. "
            f"Keep one of the two."
        )
    if len(problems) > found:
        return OptimizerConfig()
    try:
        _make(component.type, component.args, [nn.Parameter(torch.zeros(1))], where)
    except ConfigError as error:
        problems += error.problems
    if "weight_decay" not in parameters_of(OPTIMIZERS[component.type]):
        useless = [f"parts.{name}.decay_mult" for name, part in config.parts.items() if part.decay_mult != 1]
        if config.no_decay:
            useless.append("no_decay")
        for key in useless:
            problems.append(
                f"{join(where, key)}: {component.type} has no weight decay. Remove it, or use another type."
            )
    return replace(config, type=component.type, args=component.args)


def build_optimizer(config: Any, model: Grouped, *, where: str = "optimizer", fused: bool = False) -> Optimizer:
    """Build the optimizer that an "optimizer" section describes, for the parameters of `model`.

    Its groups are the model's, decoder first; with `layer_decay`, one for each layer of the backbone. `no_decay` splits
    a group NAME in two, NAME and "NAME/no_decay".
    Frozen parameters stay in their group, so that freezing changes no group; groups without parameters are dropped.
    Each group keeps its learning rate in "base_lr", for schedules to scale, and, where it has any, the delay and the
    warm-up of its part in "stages".

    Args:
        config: A name, the section, or an `OptimizerConfig`.
        fused: Take torch's implementation in one kernel where there is one and the section does not say otherwise.

    Raises:
        ConfigError: The section is wrong, torch refuses the arguments, or the model has no part of a given name.
    """
    problems: list[str] = []
    is_checked = isinstance(config, OptimizerConfig)
    checked = config if is_checked else check_optimizer(config, where=where, problems=problems)
    if problems:
        raise ConfigError(*problems)
    lr = _argument(checked, "lr")
    decay = _argument(checked, "weight_decay")
    try:
        groups = model.parameter_groups(
            lr, backbone_lr_scale=checked.backbone_lr_scale, layer_decay=checked.layer_decay
        )
    except ValueError as error:
        raise ConfigError(f"{join(where, 'layer_decay')}: has no effect, {error}. Set it to 1.") from None
    names = [*dict.fromkeys(part_of(group) for group in groups)]
    for name in checked.parts:
        if name not in names:
            hint = did_you_mean(name, names)
            problems.append(f"{join(join(where, 'parts'), name)}: the model has no such part. {hint}")
    if problems:
        raise ConfigError(*problems)
    without_decay: set[int] = set()
    for kind in checked.no_decay:
        without_decay.update(map(id, _parameters_of_kind(model, kind)))
    finished = []
    for group in groups:
        part = checked.parts.get(part_of(group), PartOptions())
        rate = group["lr"] * part.lr_mult
        options: dict[str, Any] = {"lr": rate, "base_lr": rate}
        if part.delay or part.warmup:
            options[STAGES] = (part.delay, part.warmup)
        if decay is not None:
            options["weight_decay"] = decay * part.decay_mult
        decayed = [p for p in group["params"] if id(p) not in without_decay]
        rest = [p for p in group["params"] if id(p) in without_decay]
        finished.append({"name": group["name"], "params": decayed, **options})
        finished.append({"name": f"{group['name']}/no_decay", "params": rest, **options, "weight_decay": 0.0})
    args = dict(checked.args)
    undecided = args.get("fused") is None and args.get("foreach") is None and not args.get("differentiable")
    if fused and undecided and checked.type in FUSED:
        args["fused"] = True
    return _make(checked.type, args, [group for group in finished if group["params"]], where)


def part_of(group: Mapping[str, Any]) -> str:
    """Tell the part of the model that a parameter group belongs to, "decoder" or "backbone"."""
    name: str = group["name"]
    return name.partition("/")[0]


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Let optimizers be made without torch's compiler, whose import takes as long as that of all else together.

    A decorator of `add_param_group` imports it to say that this is not to be compiled, which nobody does here.
    """
    decorated = Optimizer.add_param_group
    if "torch._dynamo" not in sys.modules:
        Optimizer.add_param_group = inspect.unwrap(decorated)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = decorated  # type: ignore[method-assign]


def _make(kind: str, args: Mapping[str, Any], parameters: list[Any], where: str) -> Optimizer:
    try:
        with _without_compiler():
            optimizer: Optimizer = OPTIMIZERS.make(kind, args, parameters, where=where)
    except ConfigError:
        raise
    except (ValueError, TypeError, RuntimeError) as error:
        place, reason = join(where, "args"), first_line(error)
        if (name := _argument_to_blame(kind, args, parameters, where)) is not None:
            what = f"{show(args[name])}, which {kind} refuses: {reason}. Change it."
            raise ConfigError(f"{join(place, name)}: {what}") from error
        raise ConfigError(f"{place}: {kind} refuses its arguments: {reason}. Change them.") from error
    return optimizer


def _argument_to_blame(kind: str, args: Mapping[str, Any], parameters: list[Any], where: str) -> str | None:
    """Find the only argument without which an optimizer can be made; None if there is none, or several."""
    blamed = []
    for name in args:
        others = {key: value for key, value in args.items() if key != name}
        with suppress(ValueError, TypeError, RuntimeError):
            OPTIMIZERS.make(kind, others, parameters, where=where)
            blamed.append(name)
    return blamed[0] if len(blamed) == 1 else None


def _argument(config: OptimizerConfig, name: str) -> Any:
    """Look up the value of an argument, or its default; None where there is no such argument."""
    parameter = parameters_of(OPTIMIZERS[config.type]).get(name)
    return config.args.get(name, parameter.default if parameter else None)


def _parameters_of_kind(model: Grouped, kind: str) -> list[torch.Tensor]:
    """List the parameters of one kind of `no_decay`."""
    found: list[torch.Tensor] = []
    for _, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if kind == "bias":
            found += [parameter for name, parameter in own.items() if name == "bias"]
        elif kind == "norm" and isinstance(module, NORMS):
            found += own.values()
        elif kind == "depthwise" and isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            found.append(module.weight)
    return found
