"""Checkpoints that survive whatever happens while they are written, and that are checked before they are used.

A checkpoint is one dictionary of tensors and plain values, so it loads with ``weights_only=True``. It is written
beside its place, flushed, verified and renamed; the previous one stays, complete, until the new one is.
"""

from __future__ import annotations

import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from torch import Tensor, nn

from utils.errors import CheckpointError, Stopped, failure_of_machine, one_line
from utils.files import atomic_write, unfinished_path
from utils.files import remove_unfinished as remove_unfinished  # others call them by this module
from utils.files import sync_folder as sync_folder
from utils.schema import fits

FORMAT = 1


class Description(TypedDict):
    """What a checkpoint says about its model: enough to use it without the config it was trained with.

    Keys:
        arch: Type and arguments of the network.
        config: The resolved config.
        meaning_hash: Hash of what in it changes the results.
        classes: Names of the classes.
        palette: Their colors.
        left_out: Classes that are in no mean.
        normalization: Mean and std by which the model normalizes; empty ones mean each image's own.
        preprocessing: How validation prepared whole images, which prediction repeats (not in early files).
        environment: Versions, device, command line; `modules` names those with third-party components.
    """

    arch: dict[str, Any]
    config: dict[str, Any]
    meaning_hash: str
    classes: list[str]
    palette: list[list[int]]
    left_out: list[int]
    normalization: dict[str, list[float]]
    preprocessing: dict[str, Any]
    environment: dict[str, Any]


class Best(TypedDict):
    """The best monitored value, None before the first, and the epoch that gave it."""

    value: float | None
    epoch: int


class Running(TypedDict):
    """Sums over the open epoch: losses, pixels, and the steps whose loss was not finite (not in early files)."""

    loss: Tensor
    matrix: dict[str, Tensor]
    left_out: int


class NetworkState(TypedDict):
    """What training has made of the network and of all that it trains with.

    Keys:
        protocol: How validation measures.
        state_dict: Weights and buffers by name, without prefixes of wrappers.
        optimizer: State of the optimizer.
        scaler: State of the loss scaling of fp16; empty without.
        ema: Averaged weights (`state_dict`) and the number of `updates`; None without.
        lr_scheduler: State of a schedule of torch's own; ours are functions of the step.
        running: Sums over the open epoch.
        nan_streak: Steps in a row, up to the newest, whose loss was not finite; not in early files.
        confusion_matrix: (C, C), truth and prediction, of the newest validation; not in early files.
    """

    protocol: dict[str, Any]
    state_dict: dict[str, Any]
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    ema: dict[str, Any] | None
    lr_scheduler: dict[str, Any]
    running: Running
    nan_streak: int
    confusion_matrix: Tensor


class Position(TypedDict):
    """How far a run has come.

    Keys:
        epoch: Completed epochs.
        step: Optimizer steps taken.
        total_steps: Steps of the whole run as it was planned.
        position: Images of the open epoch that have been used.
        best: The best result so far.
        history: The lines of metrics.jsonl.
    """

    epoch: int
    step: int
    total_steps: int
    position: int
    best: Best
    history: list[dict[str, Any]]


class TrainingState(Position, NetworkState):
    """All that training goes on from, exactly."""


class Checkpoint(Description, TrainingState):
    """The content of a checkpoint. One that is only to predict may lack what only training needs."""

    format: int


TRAINING_IMAGES = "training_images"  # in an environment: hash of their names, see `hash_of_names`; not in early files
CHANNELS_LAST = "channels_last"  # in an environment: how weights lie in memory; not in early files
# What everybody who reads one of our checkpoints counts on.
CONTENT: dict[str, Any] = {
    "arch": dict[str, Any],
    "config": dict[str, Any],
    "classes": list[str],
    "palette": list[tuple[int, int, int]],
    "left_out": list[int],
    "normalization": dict[str, list[float]],
    "protocol": dict[str, Any],
    "environment": dict[str, Any],
    "epoch": int,
    "step": int,
    "state_dict": dict[str, Any],
    "ema": dict[str, Any] | None,
}
# What exact resume counts on besides.
RESUMABLE = ("epoch", "step", "total_steps", "position", "best", "history", "state_dict", "optimizer")
PREFIXES = ("module.", "_orig_mod.")  # of DataParallel, DistributedDataParallel and torch.compile


def save(path: Path, state: Mapping[str, Any], *, previous: Path | None = None) -> None:
    """Write `state` to `path`, or leave what was there untouched.

    Args:
        path: Where the checkpoint is to be.
        state: Tensors and plain values; written as if all tensors were on the CPU, so that the file can be read where
            there is no other device.
        previous: Where to keep what was at `path` before.

    Raises:
        Stopped: The disk is full or cannot be written; the message names the path.
    """
    state = _with_tensors(Tensor.cpu, state)
    unfinished = unfinished_path(path)
    try:
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if wrong := damage(unfinished):
            raise OSError(f"what was written is not what is on the disk ({wrong})")
        if previous is not None and path.exists():
            keep(path, previous)
        os.replace(unfinished, path)
        sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
        if failure_of_machine(error):
            raise  # it only happened meanwhile
        size = sum(t.numel() * t.element_size() for t in _tensors(state)) >> 20
        good = f"{path} is as it was" if path.exists() else "there is no earlier one"
        raise Stopped(
            f"{path}: could not be written ({error}); it takes {size} MiB. Free some space or set trainer.save_dir "
            f"to another disk; {good}."
        ) from error
    finally:
        with suppress(OSError):
            unfinished.unlink()


def copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a state to the CPU, with all its containers and tensors, so that what it is of may change meanwhile."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()

    found: dict[str, Any] = _with_tensors(copy, state)
    return found


def keep(path: Path, copy: Path) -> None:
    """Make `copy` another name of the file at `path`, or a copy where the file system has no links; atomically.

    Raises:
        Stopped: It cannot be written.
    """
    unfinished = unfinished_path(copy)
    with suppress(FileNotFoundError):
        unfinished.unlink()
    try:
        try:
            os.link(path, unfinished)
        except OSError:  # FAT, SMB and some FUSE file systems
            shutil.copyfile(path, unfinished)
        os.replace(unfinished, copy)
    except OSError as error:
        raise Stopped(f"{copy}: could not be written ({error}). Free some space; {path} is complete.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is either the old or the new one, whole.

    Raises:
        Stopped: The disk is full or cannot be written.
    """
    try:
        with atomic_write(path) as file:
            file.write(text.encode("utf-8", "backslashreplace"))  # names of files may be no text
    except OSError as error:
        raise Stopped(f"{path}: cannot be written ({error.strerror}). Free some space; {path} is as it was") from error


def damage(path: Path) -> str:
    """Say what is wrong with the file; an empty text if nothing is.

    `torch.load` skips the checksums that `torch.save` writes (four of five flipped bits load silently), so they
    are compared here.
    """
    if path.exists() and not zipfile.is_zipfile(path):
        return "its end is missing"
    try:
        with zipfile.ZipFile(path) as archive:
            member = archive.testzip()
    except (zipfile.BadZipFile, OSError, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        return str(error) or type(error).__name__
    return f"checksum of {member} is wrong" if member else ""


def load(path: Path) -> dict[str, Any]:
    """Read a file written by `torch.save`, on the CPU; nothing in it is executed.

    Raises:
        CheckpointError: The file is missing, damaged, not a checkpoint, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint. Name a .pth file of a run folder.")
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}). Name another checkpoint.") from None
    if start == b"PK" and (wrong := damage(path)):
        raise CheckpointError(f"{path}: is damaged ({wrong}). Use last.prev.pth or another checkpoint beside it.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if not start:
            hint = "Use last.prev.pth or another checkpoint beside it"
            raise CheckpointError(f"{path}: is empty. {hint}.") from None
        reason = "torch cannot read it"
        if start not in (b"PK", b"\x80\x02"):  # a zip archive; a pickle, as torch wrote them before 1.6
            reason = "torch did not write it"
        if "GLOBAL" in str(error):
            reason = "it holds Python objects, which could run code when loaded"
        raise CheckpointError(f"{path}: is no checkpoint that can be used: {reason}. Name a .pth file.") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a dictionary. Name a checkpoint.")
    return state


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the weights and the metadata of a .safetensors file.

    Raises:
        CheckpointError: The file or the package is missing, or it is none of that kind.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Name one that export.py wrote.")
    try:
        import safetensors
    except ImportError:
        raise CheckpointError(
            f"{path}: needs safetensors, which is not installed. `pip install safetensors`."
        ) from None
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118  no mapping
    except (OSError, safetensors.SafetensorError) as error:
        hint = "Name a file that export.py wrote, or a checkpoint"
        raise CheckpointError(f"{path}: cannot be used ({one_line(str(error)).rstrip('.')}). {hint}.") from None


def load_run(path: Path) -> Checkpoint:
    """Read a checkpoint of ours, complete with what describes it.

    Raises:
        CheckpointError: It is of another program or of another format, or lacks something.
    """
    state = load(path)
    if state.get("format") != FORMAT:
        what = f"format {state['format']!r}" if "format" in state else "no 'format'"
        hint = "Name one of ours; inference.py and evaluate.py take bare weights too, with --config"
        raise CheckpointError(f"{path}: is not a Segwright checkpoint ({what}, expected {FORMAT}). {hint}.")
    for key, kind in CONTENT.items():
        if key not in state or not fits(state[key], kind):
            what = f"'{key}' is not what it should be" if key in state else f"lacks '{key}'"
            raise CheckpointError(f"{path}: is not a whole Segwright checkpoint ({what}). Name another one.")
    return cast(Checkpoint, state)


def training_state_of(state: Mapping[str, Any], path: Path) -> TrainingState:
    """Take a checkpoint's content as what training goes on from.

    Raises:
        CheckpointError: It lacks some of that.
    """
    if missing := [key for key in RESUMABLE if key not in state]:
        raise CheckpointError(f"{path}: lacks {', '.join(missing)}. Use it as init_from, not as --resume.")
    return cast(TrainingState, state)


def weights_of(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Take the model's weights from a checkpoint or a bare state dict, without prefixes of wrappers.

    Checkpoints of others have them under "state_dict" or "model"; what is no tensor there is left out.

    Raises:
        CheckpointError: There are none.
    """
    nested = [state[key] for key in ("state_dict", "model") if isinstance(state.get(key), Mapping)]
    weights = nested[0] if nested else state
    found = {strip_prefixes(name): value for name, value in weights.items() if isinstance(value, Tensor)}
    if not found:
        raise CheckpointError(f"{path}: holds no weights. Name a checkpoint or a state dict.")
    return found


def judged_weights_of(state: Mapping[str, Any], path: Path) -> dict[str, Tensor]:
    """Take the weights that validation measured: the averaged ones, where a checkpoint has some; else as `weights_of`.

    Raises:
        CheckpointError: There are none.
    """
    return weights_of(state.get("ema") or state, path)


def was_channels_last(state: Mapping[str, Any]) -> bool:
    """Whether the run that made a checkpoint kept weights channels last; in early ones, "auto" did not on a CPU."""
    early = state["config"].get("trainer", {}).get("channels_last") is True
    return bool(state["environment"].get(CHANNELS_LAST, early))


def strip_prefixes(name: str) -> str:
    """Take off a parameter's `name` what wrappers put before it."""
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    """Put `weights` into `model`, all of them or none.

    Raises:
        CheckpointError: Names or shapes differ, or a weight is not finite; it names the first.
    """
    own = model.state_dict()
    problems = [f"lacks '{name}'" for name in own if name not in weights]
    problems += [f"has '{name}', which the model has not" for name in weights if name not in own]
    problems += [
        f"'{name}' is {list(weights[name].shape)}, the model's {list(value.shape)}"
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    ]
    problems += [
        f"'{name}' is not finite"
        for name, value in weights.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(
            f"{path}: does not fit the model: {problems[0]}{more}. "
            f'Use the config it was trained with, or "init_from" for fine-tuning.'
        )
    model.load_state_dict(dict(weights))


def newest(folder: Path) -> tuple[Path, Checkpoint, list[str]] | None:
    """Find the checkpoint of a run folder to go on from: last.pth or, where it is damaged, last.prev.pth.

    Returns:
        Path, content, and a line for each file that had to be passed over; None if there is no checkpoint at all.

    Raises:
        CheckpointError: There are checkpoints, and none can be used.
    """
    passed: list[str] = []
    candidates = [p for p in (folder / "last.pth", folder / "last.prev.pth") if p.exists()]
    for path in candidates:
        try:
            return path, load_run(path), passed
        except CheckpointError as error:
            passed += error.problems
    if candidates:
        raise CheckpointError(*passed)
    return None


def _with_tensors(change: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return `value` in new containers, with what `change` gives for each tensor."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_tensors(change, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_with_tensors(change, item) for item in value)
    return value


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for item in value.values() for t in _tensors(item)]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []
