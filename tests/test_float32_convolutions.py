"""Depthwise dilated convolutions learn the same in bf16 on a CPU as in float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.build import build_model
from utils.float32_convolutions import Float32Conv2d, compute_in_float32
from utils.schema import Component


class Own(nn.Conv2d):
    """Somebody's own convolution, which doubles."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def spoil_memory() -> None:
    """Leave NaN in memory that is handed out again."""
    for count in (2**20, 2**16, 2**14, 2**12, 64 * 9):
        for kind in (torch.bfloat16, torch.float32):
            torch.full((count,), float("nan"), dtype=kind)


def gradient(conv: nn.Conv2d, images: Tensor, precision: torch.dtype) -> Tensor:
    conv.zero_grad()
    spoil_memory()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        found = conv(images)
    assert found.dtype == precision
    spoil_memory()
    (found.float() * torch.linspace(-1, 1, found.numel()).view(found.shape)).sum().backward()
    assert conv.weight.grad is not None
    return conv.weight.grad


@pytest.mark.parametrize("kind", [nn.Conv2d, Own])
@pytest.mark.parametrize("dilation", [2, 4])
def test_gradients_of_depthwise_dilated_convolutions_are_those_of_float32(kind: type, dilation: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(64, 64, 3, padding=dilation, dilation=dilation, groups=64, bias=False))
    model = model.to(memory_format=torch.channels_last)
    compute_in_float32(model)
    compute_in_float32(model)  # once is enough
    images = torch.randn(4, 64, 24, 32).contiguous(memory_format=torch.channels_last)
    for conv in (model[0], copy.deepcopy(model)[0]):
        wanted = gradient(conv, images, torch.float32)
        for _ in range(3):
            assert F.mse_loss(gradient(conv, images, torch.bfloat16), wanted) < 1e-4 * wanted.square().mean()


def test_models_have_them_and_name_their_weights_as_before() -> None:
    model = build_model(Component("FastSCNN"), num_classes=3)
    kinds = {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    assert [name for name, kind in kinds.items() if kind is Float32Conv2d] == ["coarse.0.0"]
    assert "coarse.0.0.weight" in model.state_dict()
