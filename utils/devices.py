"""Which device to compute on, how much memory there is, and how much was taken."""

from __future__ import annotations

import logging
import os
import re
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes two seconds to import, and --help need not wait for it
    import torch

logger = logging.getLogger("segwright")

GPUS = re.compile(r"\d+(,\d+)*")  # what `--device` may say of GPUs


def restrict_gpus(device: str | None) -> None:
    """Show this process only the GPUs that ``--device 0,1`` names; call before torch is imported.

    Raises:
        UserError: It has begun to use others, which cannot be changed any more.
    """
    if not device or not GPUS.fullmatch(device):
        return
    if "torch" not in sys.modules or not sys.modules["torch"].cuda.is_initialized():
        os.environ["CUDA_VISIBLE_DEVICES"] = device
        return
    shown = _shown()
    hidden = [number for number in device.split(",") if shown and number not in shown]
    if hidden:
        from utils.errors import UserError

        what = f"--device: this process has begun with GPUs {','.join(shown)}, and cannot change to {hidden[0]}"
        raise UserError(f"{what}. Start another process.")


def _shown() -> list[str]:
    """Return the numbers of the GPUs that this process was shown; none if nobody said which."""
    return [number for number in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if number]


def gpu_index(device: str | None) -> int:
    """Return what torch calls the first GPU that `device` names: its place among those that are shown."""
    if device in (None, "cuda"):
        return 0
    first = str(device).partition(",")[0]
    return _shown().index(first) if first in _shown() else int(first)


def choose_precision(name: str, device: torch.device) -> str:
    """Return the precision `name`; `auto` is bf16 where the device computes in it natively, else fp32."""
    import torch

    if name != "auto":
        return name
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def gpus_to_use(device: str | None, n_gpu: int) -> int:
    """Return how many GPUs training gets when `n_gpu` are asked for: as many as there are, at most."""
    import torch

    if device not in (None, "cuda") and not GPUS.fullmatch(str(device)):
        return 0
    available = torch.cuda.device_count()
    named = str(device).count(",") + 1
    if max(n_gpu, 1) < named <= available:
        said = "--device: %d GPUs named, n_gpu asks for %d: using %d. Set n_gpu=%d."
        logger.warning(said, named, n_gpu, max(n_gpu, 1), named)
    if n_gpu > available > 0:
        logger.warning("n_gpu: %d asked for, %d available: using %d.", n_gpu, available, available)
    return min(n_gpu, available)


def choose_device(device: str | None, n_gpu: int = -1, local_rank: int = 0) -> torch.device:
    """Choose the `torch.device` to use.

    Args:
        device: ``--device``: GPU numbers, ``cpu``, ``cuda`` or ``mps``; None leaves it to `n_gpu`.
        n_gpu: GPUs that the config asks for; 0 is the CPU, -1 whatever there is.
        local_rank: This process's number among those on this machine; where there are more of them than GPUs, they
            share.

    Raises:
        UserError: `device` names something that is not there.
    """
    import torch

    from utils.errors import UserError

    if device in (None, "cuda") or (device and GPUS.fullmatch(device)):
        available = torch.cuda.device_count()
        if device is None and n_gpu == 0:
            return torch.device("cpu")
        index = gpu_index(device)
        if index < available:
            return torch.device("cuda", (index + local_rank) % available)
        if device is not None:
            raise UserError(f"--device {device}: no such GPU is available. Use --device cpu.")
        if n_gpu > 1:
            logger.warning("n_gpu: %d asked for, none available: using the CPU.", n_gpu)
        elif n_gpu == 1:  # the default: nobody asked
            logger.info("no GPU is available: using the CPU.")
        return torch.device("cpu")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: not available here. Use --device cpu.")
    if device not in ("cpu", "mps"):
        raise UserError(f"--device {device}: unknown. Use GPU numbers such as 0 or 0,1, or cpu, cuda, mps.")
    return torch.device(device)


def peak_memory() -> dict[str, int]:
    """Measure the most memory in use so far, in bytes: of this process and, where there is one, of the GPU."""
    found = {}
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["host_memory"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    import torch

    if torch.cuda.is_available():
        found["gpu_memory"] = torch.cuda.max_memory_allocated()
    return found


def available_memory(unknown: int = 1 << 60) -> int:
    """Return the bytes of memory that can be had, here and in this container; `unknown` where the system is silent."""
    found = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found += [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        found.append(limit - used + int(stats["file"]))  # what files take is given back when it is wanted
    return max(0, min(found, default=unknown))
