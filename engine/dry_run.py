"""What a run would be and need, found without memory or time."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from base.base_model import BaseModel
from engine.assemble import build_loaders, build_network, facts_of, loss_of
from engine.config import RunConfig
from engine.preflight import check_parts
from models.weights import check_pretrained
from utils import distributed
from utils.activation_checkpointing import blocks_of, checkpoint_activations
from utils.errors import ConfigError
from utils.losses.criterion import build_criterion
from utils.lr_scheduler import Schedule, TorchSchedule, build_scheduler
from utils.optimizers import build_optimizer


@dataclass(frozen=True)
class DryRun:
    """What a model would be and need, found without memory or time.

    Args:
        parameters: Number of parameters.
        trainable: Number of those that training changes.
        logits: Shape of the logits of one part of a step.
        activation_bytes: What the forward pass of one part keeps for the backward pass.
        image_size: Height and width of the images assumed.
        unused: Whether some trained parameters take no part in the output.
        needs_batch: Whether training needs two images in each part of a step, see `BaseModel`.
    """

    parameters: int
    trainable: int
    logits: tuple[int, ...]
    activation_bytes: int
    image_size: tuple[int, int]
    unused: bool
    needs_batch: bool


def check_training(config: RunConfig, model: BaseModel) -> None:
    """Build loss and optimizer for `model`, for what only they can find wrong.

    Raises:
        ConfigError: A class or a part of the model does not exist, or torch refuses an argument.
    """
    facts = facts_of(config, total_steps=config.trainer.max_steps or 1000, steps_per_epoch=10)
    pixels = [1] * len(config.classes)
    build_criterion(loss_of(config), aux_factor=config.aux_factor, where="loss", class_pixels=pixels, **facts)
    optimizer = build_optimizer(config.optimizer, model, where="optimizer")
    schedule = build_scheduler(config.lr_scheduler, optimizer, where="lr_scheduler", **facts)
    if isinstance(schedule, TorchSchedule):
        schedule.try_step(where="lr_scheduler")


def learning_rates(config: RunConfig) -> dict[str, list[tuple[int, float]]]:
    """Learning rate of each group of parameters, by name, at up to 2,000 steps (step, rate) of the whole run.

    Needs the training set, for the length of an epoch, but neither memory nor time for the model.

    Raises:
        ConfigError: The schedule depends on what validation gives.
        DataError: The data is not there.
    """
    if config.lr_scheduler.type == "ReduceLROnPlateau":
        raise ConfigError("lr_scheduler: ReduceLROnPlateau depends on results. --draw-schedule needs another type.")
    steps = len(build_loaders(config)[0])
    total = config.trainer.total_steps(steps)
    with warnings.catch_warnings():  # torch's own schedulers miss the steps of the optimizer
        warnings.simplefilter("ignore", UserWarning)
        optimizer, schedule = _scheduled(config, steps)
        rates: dict[str, list[tuple[int, float]]] = {group["name"]: [] for group in optimizer.param_groups}
        for step in sorted({*range(0, total, -(-total // 2000)), total - 1}):
            schedule.apply(optimizer, step)
            for group in optimizer.param_groups:
                rates[group["name"]].append((step, float(group["lr"])))
    return rates


def check_schedule(config: RunConfig, steps_per_epoch: int) -> None:
    """Refuse a schedule that ends before the run does.

    Raises:
        ConfigError: It does.
    """
    _scheduled(config, steps_per_epoch)


def _scheduled(config: RunConfig, steps_per_epoch: int) -> tuple[Optimizer, Schedule]:
    """Make the optimizer of a network without memory, and the schedule of the whole run."""
    with torch.device("meta"):
        model = build_network(config, load_weights=False)
    optimizer = build_optimizer(config.optimizer, model, where="optimizer")
    facts = facts_of(config, total_steps=config.trainer.total_steps(steps_per_epoch), steps_per_epoch=steps_per_epoch)
    schedule = build_scheduler(config.lr_scheduler, optimizer, where="lr_scheduler", **facts)
    schedule.check_length(facts["total_steps"], where="lr_scheduler")
    return optimizer, schedule


class ActivationMeter:
    """Counts what a forward pass keeps for the backward pass, also on the meta device.

    Each storage counts once, however many operations keep it; parameters do not count.
    """

    def __init__(self) -> None:
        self._kept: dict[int, int] = {}  # bytes by storage
        self._alive: list[torch.Tensor] = []  # a freed storage's number could be given to another

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count `tensor`; gives it back, as a hook of autograd has to."""
        if not isinstance(tensor, nn.Parameter):
            storage = tensor.untyped_storage()
            self._kept[storage._cdata] = storage.nbytes()
        self._alive.append(tensor)
        return tensor

    def keep_inputs(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """Count the inputs of `module`, tensors or lists of them."""
        for each in inputs:
            for tensor in each if isinstance(each, list | tuple) else [each]:
                self.keep(tensor)

    @property
    def bytes(self) -> int:
        """What is kept, in bytes."""
        return sum(self._kept.values())


def dry_run(config: RunConfig) -> DryRun:
    """Build the model on the meta device and run one training forward pass at the crop size.

    Raises:
        ConfigError: The bricks do not fit, or the batch is too small.
    """
    with torch.device("meta"):
        model = build_network(config, load_weights=False)
    check_parts(config, model)
    check_pretrained(model, config.arch.options.pretrained, where="arch.args.pretrained")
    check_training(config, model)
    size = config.train.chain.crop or (512, 512)
    count = config.train.batches.batch_size // (config.trainer.accumulate * distributed.world_size())
    images = torch.empty(count, config.arch.options.in_channels, *size, dtype=torch.uint8, device="meta")
    meter = ActivationMeter()
    if config.trainer.activation_checkpointing:  # torch keeps the inputs of blocks without telling the hooks below
        for block in blocks_of(model):
            block.register_forward_pre_hook(meter.keep_inputs)
        checkpoint_activations(model)
    try:
        with torch.autograd.graph.saved_tensors_hooks(meter.keep, lambda tensor: tensor):
            output = model.train()(images)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"arch: cannot train on images of {size[0]}x{size[1]} ({reason}). Use another crop_size or arch."
        ) from None
    factors = config.aux_factor
    if isinstance(factors, tuple) and len(factors) != len(output.aux):
        raise ConfigError(
            f"aux_factor: {len(factors)} numbers for the {len(output.aux)} auxiliary outputs of {config.arch.type}. "
            f"Give one number for all of them, or one for each."
        )
    if not output.masks and any(term.type == "MaskLoss" for term in config.loss):
        raise ConfigError(f"loss: MaskLoss needs masks, which {config.arch.type} does not predict. Take EoMT for arch.")
    parameters = list(model.parameters())
    return DryRun(
        parameters=sum(p.numel() for p in parameters),
        trainable=sum(p.numel() for p in parameters if p.requires_grad),
        logits=tuple(output.logits.shape),
        activation_bytes=meter.bytes,
        image_size=size,
        unused=has_unused(parameters, [output.logits, *output.aux, *output.edges, *output.masks, *output.mask_classes]),
        needs_batch=model.needs_batch,
    )


def has_unused(parameters: Sequence[nn.Parameter], outputs: Sequence[torch.Tensor]) -> bool:
    """Whether some of `parameters` that are trained took no part in computing `outputs`."""
    ahead, seen = [output.grad_fn for output in outputs if output.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node not in seen:
            seen.add(node)
            ahead += [function for function, _ in node.next_functions if function]
    reached = {id(node.variable) for node in seen if hasattr(node, "variable")}
    return any(parameter.requires_grad and id(parameter) not in reached for parameter in parameters)
