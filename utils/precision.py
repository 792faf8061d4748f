"""Arithmetic of a forward pass: the names that configs and flags use, and what torch makes of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in `precision`, a key of `PRECISIONS`, within this context; "fp32" changes nothing."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Compute in the types that tensors have, also under autocast, on devices that have it; the meta device has not."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
