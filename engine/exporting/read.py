"""Exported files where checkpoints are taken: as a network that a runtime computes, or as weights."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from engine.exporting.formats import UNPROVEN, format_of
from engine.exporting.write import EXTRA_FILE, about_of
from utils import checkpoint
from utils.checkpoint import Checkpoint
from utils.classes import ClassTable, as_colors
from utils.errors import CheckpointError, ConfigError, DataError
from utils.outputs import SegOutput
from utils.predict import Predictor

logger = logging.getLogger("segwright")

Run = Callable[[Tensor], dict[str, Tensor]]  # raw images (N, C, H, W) of the graph's type to its outputs, by name


class ExportedNetwork(nn.Module):
    """A network whose graph a runtime computes, in place of a `BaseModel` in evaluation.

    Where the graph has no logits, those that it returns are 1 for the label of a pixel and 0 for other classes.

    Args:
        run: Computes the graph.
        about: What the file says about itself.
        device: Where results are wanted.
        name: Of the file, for errors.
    """

    def __init__(self, run: Run, about: Mapping[str, Any], device: torch.device, name: str) -> None:
        super().__init__()
        self.run = run
        self.name = name
        self.size: list[int] | None = about["size"]
        self.num_classes = len(about["classes"])
        self.whole_numbers = about["arch"]["args"].get("in_channels", 3) == 3
        # What has no weights would not be on any device.
        self.anchor = nn.Parameter(torch.empty(0, device=device), requires_grad=False)

    def forward(self, images: Tensor) -> SegOutput:
        """Logits (N, num_classes, H, W) of raw images (N, C, H, W); fractions of 8-bit pixels are rounded.

        Raises:
            DataError: The graph does not take images of this size.
        """
        found = self.outputs(images)
        if "logits" in found:
            return SegOutput(found["logits"].float())
        labels = found["labels"].long()
        return SegOutput(torch.nn.functional.one_hot(labels, self.num_classes).movedim(-1, 1).float())

    def outputs(self, images: Tensor) -> dict[str, Tensor]:
        """All outputs of the graph, by name.

        Raises:
            DataError: The graph does not take images of this size.
        """
        size = list(images.shape[-2:])
        shown = "x".join(map(str, size))
        if self.size is not None and size != self.size:
            height, width = self.size
            raise DataError(
                f"{self.name}: takes images of {height}x{width} only, and was given {shown}. "
                f"Use --mode sliding --window {height} {width}, or export it without --size."
            )
        if not self.whole_numbers:
            images = images.float()
        elif images.dtype != torch.uint8:
            images = images.round().clamp(0, 255).to(torch.uint8)
        try:
            found = self.run(images)
        except Exception as error:  # runtimes have errors of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
            raise DataError(f"{self.name}: fails at {shown} ({reason}). Use the checkpoint for such images.") from error
        return {name: value.to(self.anchor.device) for name, value in found.items()}


def load_network(path: Path, device: torch.device) -> tuple[ExportedNetwork, dict[str, Any]]:
    """The graph in an .onnx or .pt2 file, and what the file says about itself, under the names of a checkpoint.

    Raises:
        CheckpointError: The file is missing or none of ours, or its runtime is not installed.
    """
    _check(path)
    about, run, device = (_load_onnx if format_of(path) == "onnx" else _load_torch)(path, device)
    return ExportedNetwork(run, about, device, path.name), about


def load_predictor(path: Path, device: torch.device, *, precision: str, config: object = None) -> Predictor:
    """The graph in an .onnx or .pt2 file, ready to predict.

    Args:
        path: What export.py wrote.
        device: Where to compute, if the runtime can.
        precision: Arithmetic that was asked for; a graph has its own.
        config: A config that was given with it; a graph needs none.

    Raises:
        UserError: The file cannot be used, or with such a precision or a config.
    """
    if precision not in ("fp32", "auto"):
        raise ConfigError(f"--precision {precision}: has no effect on {path}, a graph. Leave it out.")
    if config is not None:
        raise ConfigError(f"--config: has no effect on {path}, which describes itself. Leave it out.")
    network, about = load_network(path, device)
    return Predictor(network, classes_of(about), about)


def warn_if_unproven(path: Path) -> None:
    """Say of a file that it differs from its checkpoint."""
    if path.suffix == UNPROVEN:
        logger.warning("%s: differs from its checkpoint, see the .parity.json beside it", path)


def check_use(path: Path, about: Mapping[str, Any], *, averages: bool, probabilities: bool) -> None:
    """Refuse a graph that says no classes, and what takes logits where a graph gives labels only.

    Args:
        path: The file.
        about: What it says about itself, or a checkpoint.
        averages: Several predictions of an image are to be averaged.
        probabilities: More than labels is asked for.

    Raises:
        CheckpointError: The graph has no logits, or no labels either.
    """
    outputs = about.get("outputs")
    if outputs and not {"labels", "logits"} & set(outputs):
        raise CheckpointError(f"{path}: gives {outputs[0]} only, no classes. Export it with --outputs labels.")
    if (averages or probabilities) and outputs and "logits" not in outputs:
        instead = "ask for labels only" if probabilities else "use --mode single without --flip"
        raise CheckpointError(f"{path}: gives no logits. Export it with --outputs labels,logits, or {instead}.")


def classes_of(about: Mapping[str, Any]) -> ClassTable:
    """The classes that a checkpoint or an exported file says it tells apart."""
    return ClassTable(
        tuple(about["classes"]),
        as_colors(about["palette"]),
        tuple((index,) for index in range(len(about["classes"]))),
        ignored_classes=tuple(about["left_out"]),
    )


def load_run(path: Path) -> Checkpoint:
    """Load a checkpoint, or a .safetensors file as one.

    Raises:
        CheckpointError: It cannot be used.
    """
    if format_of(path) != "safetensors":
        return checkpoint.load_run(path)
    weights, metadata = checkpoint.read_safetensors(path)
    try:
        about = about_of(metadata)
    except ValueError as error:
        raise _unusable(path, error) from None
    return cast(Checkpoint, {**about, "state_dict": weights, "ema": None})


def session_of(model: bytes | str) -> Any:
    """An onnxruntime session on the CPU with as many threads as torch has, which leaves the cores alone while it waits.

    Args:
        model: A path or the file's content.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model, options, providers=providers)


def runner_of(session: Any) -> Run:
    """Run all outputs of an onnxruntime session."""
    names = [output.name for output in session.get_outputs()]

    def run(images: Tensor) -> dict[str, Tensor]:
        results = session.run(names, {"image": np.ascontiguousarray(images.cpu().numpy())})
        return {name: torch.from_numpy(result) for name, result in zip(names, results, strict=True)}

    return run


def _load_onnx(path: Path, device: torch.device) -> tuple[dict[str, Any], Run, torch.device]:
    _need("onnxruntime", path)
    try:
        session = session_of(str(path))
        about = about_of(session.get_modelmeta().custom_metadata_map)
    except Exception as error:  # onnxruntime's exceptions have no base class of their own
        raise _unusable(path, error) from None
    if device.type != "cpu":
        logger.warning("%s: is computed on the CPU", path)
    return about, runner_of(session), torch.device("cpu")


def _load_torch(path: Path, device: torch.device) -> tuple[dict[str, Any], Run, torch.device]:
    extra = {EXTRA_FILE: ""}
    try:
        with path.open("rb") as file:  # by its name, torch takes none that ends in .unproven
            program = torch.export.load(file, extra_files=extra)
        about = about_of(json.loads(extra[EXTRA_FILE] or "{}"))
        if device.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, device)
    except Exception as error:  # torch fails in many ways on files that are none of its own
        raise _unusable(path, error) from None
    module = program.module()
    if checkpoint.was_channels_last(about):  # as the checkpoint's own weights lie: else the last bits of sums differ
        module.to(memory_format=torch.channels_last)
    return about, runner_of_program(module, about["outputs"], device), device


def runner_of_program(module: nn.Module, outputs: list[str], device: torch.device) -> Run:
    """Run the module of a `torch.export` program whose outputs have these names."""

    @torch.no_grad()
    def run(images: Tensor) -> dict[str, Tensor]:
        return dict(zip(outputs, module(images.to(device)), strict=True))

    return run


def _check(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file. Name one that export.py wrote.")


def _need(package: str, path: Path) -> Any:
    try:
        return __import__(package)
    except ImportError:
        raise CheckpointError(f"{path}: needs {package}, which is not installed. `pip install {package}`.") from None


def _unusable(path: Path, error: Exception) -> CheckpointError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]
    return CheckpointError(f"{path}: cannot be used ({reason}). Name a file that export.py wrote, or a checkpoint.")
