"""Batch norm over the images of all threads of `torch.nn.DataParallel`.

For compatibility; several processes, with torch's own SyncBatchNorm, are faster. DataParallel copies the model to each
GPU for every forward pass and calls the copies in threads. The copies of a layer meet at one point per forward pass:
each brings the sum, the sum of squares and the number of its values, and takes home those of all. They add up in one
autograd graph that crosses devices, so the gradient needs no second meeting.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from utils import distributed


def synchronize_norms(model: nn.Module, gpus: int) -> None:
    """Let all batch norms of `model` see the images of all GPUs, if there are several: in processes, or in threads."""
    if distributed.world_size() > 1:
        convert_for_processes(model)
    elif gpus > 1:
        convert_sync_batchnorm(model)
    model.train(model.training)  # what is frozen stays so


def convert_for_processes(model: nn.Module) -> None:
    """Replace all batch norms inside `model` by torch's SyncBatchNorm."""
    if "timm" in sys.modules:  # whose batch norms may have the activation inside, which torch's function drops
        from timm.layers import convert_sync_batchnorm as convert
    else:
        convert = nn.SyncBatchNorm.convert_sync_batchnorm
    convert(model)


PATIENCE = 300.0  # seconds that the copies wait for each other


class MeetingPoint:
    """Where the copies of one layer add up what they have seen.

    Copies come in any order and again for each forward pass. If one of them fails elsewhere, and so never comes, the
    others give up instead of waiting for ever.

    Args:
        parties: How many there are.
    """

    def __init__(self, parties: int) -> None:
        self.brought: dict[int, Sequence[Tensor]] = {}  # by the number of who brought them
        self.barrier = threading.Barrier(parties)

    def add_up(self, who: int, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum `tensors` over all parties, on the device of this one's.

        Raises:
            RuntimeError: Another party has failed.
        """
        self.brought[who] = tensors
        try:
            self.barrier.wait(PATIENCE)
            everybody = [self.brought[other] for other in sorted(self.brought)]  # in one order: equal sums for all
            self.barrier.wait(PATIENCE)  # nobody may bring anything new before all have looked
        except threading.BrokenBarrierError:
            raise RuntimeError("another replica of the model has failed") from None
        del self.brought[who]  # or it would keep a whole graph
        device = tensors[0].device
        sums = []
        for same in zip(*everybody, strict=True):
            sums.append(torch.stack([tensor.to(device) for tensor in same]).sum(0))
        return sums

    def abort(self) -> None:
        """Make everybody who waits, or will, give up."""
        self.barrier.abort()


class SynchronizedBatchNorm(_BatchNorm):
    """`torch.nn.BatchNorm2d` over the images of all replicas; alone, and in evaluation, the same as it.

    Its replicas are told by `SynchronizedDataParallel` where to meet. Modules inside of it, such as the activation of
    timm's norms, are applied to what it gives.
    """

    _who = 0  # number of this replica
    _point: MeetingPoint | None = None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        output = self._normalized(input)
        for inside in self.children():
            output = inside(output)
        return output

    def _normalized(self, input: Tensor) -> Tensor:
        if not self.training or self._point is None:
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training or self.running_mean is None,
                self._rate(count=True),
                self.eps,
            )
        mean, variance, count = self._statistics(input)
        if self._who == 0:  # it shares its buffers with the model; those of the others are copies
            self._remember(mean.detach(), variance.detach(), count)
        shape = (1, -1) + (1,) * (input.dim() - 2)
        scale = (variance + self.eps).rsqrt()
        scale = scale if self.weight is None else scale * self.weight
        shift = -mean * scale if self.bias is None else self.bias - mean * scale
        return (input * scale.view(shape) + shift.view(shape)).to(input.dtype)

    def _statistics(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean and variance of each channel, (C,), and the number of values of each, (), over all replicas.

        In two meetings: a sum of squares about the mean keeps the digits that one about 0 would lose.
        """
        assert self._point is not None
        axes = [axis for axis in range(input.dim()) if axis != 1]
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        own = torch.tensor(input.numel() // input.shape[1], device=x.device, dtype=x.dtype)
        total, count = self._point.add_up(self._who, [x.sum(axes), own])
        mean = total / count
        shape = (1, -1) + (1,) * (input.dim() - 2)
        (squares,) = self._point.add_up(self._who, [(x - mean.view(shape)).square().sum(axes)])
        return mean, squares / count, count

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        rate = self._rate(count=True)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_((variance * count / (count - 1).clamp(min=1)).to(self.running_var.dtype), rate)

    def _rate(self, *, count: bool) -> float:
        """Tell the share of the new statistics in the running ones, and count the batch."""
        if not self.training or self.num_batches_tracked is None:
            return self.momentum or 0.0
        self.num_batches_tracked.add_(1)
        return 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum


class SynchronizedDataParallel(nn.DataParallel[nn.Module]):
    """`torch.nn.DataParallel` whose replicas' batch norms see the images of all of them."""

    def replicate(self, module: nn.Module, device_ids: Sequence[Any]) -> list[nn.Module]:
        replicas = super().replicate(module, device_ids)  # as many as got images
        introduce(replicas)
        return replicas

    def parallel_apply(self, replicas: Sequence[Any], inputs: Sequence[Any], kwargs: Any) -> list[Any]:
        kind = inputs[0][0].device.type
        # That of this thread: torch only tells the others that there is autocast, and they would take its default.
        context = functools.partial(
            torch.autocast, kind, torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind)
        )
        return super().parallel_apply([Careful(replica, context) for replica in replicas], inputs, kwargs)


class Careful(nn.Module):
    """A replica that, should it fail, lets the others know.

    Args:
        replica: What it calls.
        context: Makes the context that it computes in.
    """

    def __init__(self, replica: nn.Module, context: Callable[[], AbstractContextManager[object]] = nullcontext) -> None:
        super().__init__()
        self.replica = replica
        self.context = context

    def forward(self, *inputs: Any, **kwargs: Any) -> Any:
        try:
            with self.context():
                return self.replica(*inputs, **kwargs)
        except BaseException:
            for norm in _synchronized_norms(self.replica):
                if norm._point is not None:
                    norm._point.abort()
            raise


def introduce(replicas: Sequence[nn.Module]) -> None:
    """Give each layer of `replicas`, which are copies of one model, a point to meet its likes in the others."""
    for copies in zip(*(_synchronized_norms(replica) for replica in replicas), strict=True):
        point = MeetingPoint(len(replicas)) if len(replicas) > 1 else None
        for who, copy in enumerate(copies):
            copy._who = who
            copy._point = point


def _synchronized_norms(module: nn.Module) -> list[SynchronizedBatchNorm]:
    return [child for child in module.modules() if isinstance(child, SynchronizedBatchNorm)]


def convert_sync_batchnorm(module: nn.Module) -> None:
    """Replace all batch norms inside `module` by `SynchronizedBatchNorm` with the same parameters and buffers."""
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm) and not isinstance(child, SynchronizedBatchNorm):
            twin = SynchronizedBatchNorm(
                child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
            )
            twin._parameters = child._parameters
            twin._buffers = child._buffers
            twin._modules = child._modules
            setattr(module, name, twin.train(child.training))
        else:
            convert_sync_batchnorm(child)
