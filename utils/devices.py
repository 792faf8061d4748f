"""Which device to compute on."""

from __future__ import annotations

import logging
import os
import re

logger = logging.getLogger("segwright")


def restrict_gpus(device: str | None) -> None:
    """Show this process only the GPUs that ``--device 0,1`` names; call before torch is imported."""
    if device and re.fullmatch(r"\d+(,\d+)*", device):
        os.environ["CUDA_VISIBLE_DEVICES"] = device


def choose_device(device: str | None, n_gpu: int = -1):  # type: ignore[no-untyped-def]  # torch is not imported yet
    """The `torch.device` to use.

    Args:
        device: ``--device``: GPU numbers, ``cpu``, ``cuda`` or ``mps``; None leaves it to `n_gpu`.
        n_gpu: GPUs that the config asks for; 0 is the CPU, -1 whatever there is.

    Raises:
        UserError: `device` names something that is not there.
    """
    import torch

    from utils.errors import UserError

    if device in (None, "cuda") or (device and device[0].isdigit()):
        available = torch.cuda.device_count()
        if device is None and n_gpu == 0:
            return torch.device("cpu")
        if available:
            if n_gpu > 1:
                logger.warning("n_gpu: %d asked for, 1 of %d is used: training runs in one process.", n_gpu, available)
            return torch.device("cuda", 0)
        if device is not None:
            raise UserError(f"--device {device}: no such GPU is available. Use --device cpu.")
        if n_gpu > 0:
            logger.warning("n_gpu: %d asked for, none available: using the CPU.", n_gpu)
        return torch.device("cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available here. Use --device cpu.")
    if device not in ("cpu", "mps"):
        raise UserError(f"--device {device}: unknown. Use GPU numbers such as 0 or 0,1, or cpu, cuda, mps.")
    return torch.device(device)
