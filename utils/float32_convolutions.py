"""Depthwise dilated convolutions that compute in float32 where those in bf16 would learn nonsense: on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Float32Conv2d(nn.Conv2d):
    """A convolution that computes in float32 within autocast on a CPU, and answers in autocast's type.

    For depthwise ones with a dilation, in bf16 and channels last, oneDNN gives gradients of the weights that are read
    from memory nobody wrote: numbers of any size, or NaN. Seen in torch 2.14.1; stride 1, maps of 32 columns or more.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve maps (N, in_channels, H, W)."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            found = super().forward(x.float())
        return found.to(torch.get_autocast_dtype("cpu"))


def compute_in_float32(model: nn.Module) -> None:
    """Let a model's depthwise dilated convolutions be of `Float32Conv2d`; names and weights stay."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 and max(module.dilation) > 1:
            kind = type(module)
            if kind is nn.Conv2d:
                module.__class__ = Float32Conv2d
            elif not issubclass(kind, Float32Conv2d):
                module.__class__ = type(kind.__name__, (Float32Conv2d, kind), {})  # such as timm's own
