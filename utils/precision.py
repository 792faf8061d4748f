"""Arithmetic of a forward pass: the names that configs and flags use, and what torch makes of them."""

from __future__ import annotations

import torch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Compute in `precision`, a key of `PRECISIONS`, within this context; "fp32" changes nothing."""
    dtype = PRECISIONS[precision]
    return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
