"""What exported files say about themselves, and how they are written."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from utils import checkpoint
from utils.errors import Stopped

EXTRA_FILE = "segwright.json"  # in a .pt2 archive
MARK = "segwright"
VERSION = "1"
# What a checkpoint says about itself, by the name that it has there; weights are not part of it.
DESCRIBED = tuple(key for key in checkpoint.CONTENT if key not in ("state_dict", "ema", "environment"))
RENAMED = {"palette": "colors", "left_out": "ignored_classes"}


def metadata_of(
    state: Mapping[str, Any], *, outputs: Sequence[str] = (), size: tuple[int, int] | None = None, int8: bool = False
) -> dict[str, str]:
    """What an exported file says about itself: JSON by name.

    Args:
        state: A checkpoint.
        outputs: What the graph gives; none where the file holds weights only.
        size: Height and width that the graph takes; None for any.
        int8: Whether it computes with 8-bit numbers.
    """
    about = {RENAMED.get(key, key): state[key] for key in DESCRIBED}
    about["modules"] = state["environment"].get("modules", [])
    about["registered"] = state["environment"].get("registered", {})
    if (channels_last := state["environment"].get("channels_last")) is not None:  # not in early checkpoints
        about["channels_last"] = channels_last
    about |= {"outputs": list(outputs), "size": None if size is None else list(size), "int8": int8}
    return {MARK: VERSION, **{key: json.dumps(value, ensure_ascii=False) for key, value in about.items()}}


def about_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The reverse of `metadata_of`: a checkpoint without its weights, and what is said of the graph.

    Raises:
        ValueError: The file is none of ours.
    """
    if metadata.get(MARK) != VERSION:
        raise ValueError("export.py did not write it")
    old = {new: name for name, new in RENAMED.items()}
    about = {old.get(key, key): json.loads(value) for key, value in metadata.items() if key != MARK}
    if missing := [key for key in (*DESCRIBED, "modules", "outputs", "size") if key not in about]:
        raise ValueError(f"it lacks '{missing[0]}'")
    about["environment"] = {"modules": about.pop("modules"), "registered": about.pop("registered", {})}
    if "channels_last" in about:
        about["environment"]["channels_last"] = about.pop("channels_last")
    return about


def write_onnx(path: Path, model: Any, metadata: Mapping[str, str]) -> None:
    """Write an `onnx.ModelProto`, which gets the metadata.

    Raises:
        Stopped: It cannot be written.
    """
    del model.metadata_props[:]
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    model.producer_name = MARK
    write_bytes(path, model.SerializeToString())


def write_torch(path: Path, program: ExportedProgram, metadata: Mapping[str, str]) -> None:
    """Write a program as torch.export's archive.

    Raises:
        Stopped: It cannot be written.
    """
    buffer = io.BytesIO()  # torch's writer aborts the process where a disk is full
    torch.export.save(program, buffer, extra_files={EXTRA_FILE: json.dumps(metadata)})
    write_bytes(path, buffer.getvalue())


def write_safetensors(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write weights alone.

    Raises:
        Stopped: It cannot be written.
    """
    from safetensors.torch import save

    # Parameters that share memory are not accepted, nor are such of other layouts.
    whole = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in weights.items()}
    write_bytes(path, save(whole, dict(metadata)))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole.

    Raises:
        Stopped: It cannot be written.
    """
    try:
        path.write_bytes(data)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        raise Stopped(
            f"{path}: cannot be written ({error.strerror}). Free some space, or name another --output."
        ) from None
