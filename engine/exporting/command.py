"""What export.py does: write a file, compare it with its checkpoint, and give it its name if both agree."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from base.base_model import BaseModel
from dataloader.transforms.preparation import training_crop
from engine import assemble
from engine.check import check_config
from engine.config import evaluation_section
from engine.exporting import graph
from engine.exporting.card import read_results, write_card
from engine.exporting.formats import UNPROVEN
from engine.exporting.int8 import calibration_images, quantize
from engine.exporting.parity import (
    PER_SIZE,
    SHARES,
    Batch,
    Example,
    Parity,
    batches_of,
    compare,
    generated_examples,
    parity_sizes,
)
from engine.exporting.read import Run, load_network, load_run, runner_of, runner_of_program, session_of
from engine.exporting.write import metadata_of, write_onnx, write_safetensors, write_torch
from models.build import build_model
from utils import checkpoint
from utils.errors import ConfigError, UserError
from utils.find_images import find_images
from utils.outputs import resize
from utils.plugins import require_modules
from utils.predict import Predictor
from utils.prediction_flags import WINDOW
from utils.run_folder import write_json

logger = logging.getLogger("segwright")

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": (), "safetensors": ("safetensors",)}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Export:
    """What to make of which checkpoint.

    Args:
        model: The checkpoint.
        output: File to write.
        format: One of `FORMATS`.
        outputs: Of the graph.
        size: Height and width of all images; None for any.
        int8: Compute with 8-bit numbers.
        half: Write weights as 16-bit numbers.
        calibrate: Folder of images that show which numbers occur, for `int8`.
        data_dir: Where the dataset is, if not where it was in training.
        modules: Names of third-party modules that have been imported.
    """

    model: Path
    output: Path
    format: str
    outputs: tuple[str, ...] = ("labels",)
    size: tuple[int, int] | None = None
    int8: bool = False
    half: bool = False
    calibrate: Path | None = None
    data_dir: Path | None = None
    modules: Sequence[str] = ()

    @property
    def unproven(self) -> Path:
        """The file's name as long as nothing is known about it."""
        return self.output.with_name(self.output.name + UNPROVEN)

    @property
    def report(self) -> Path:
        """Where the comparison goes; its name keeps the ending, for a model may lie there in several formats."""
        return self.output.with_name(f"{self.output.name}.parity.json")


@dataclass(frozen=True)
class Exported:
    """What became of it.

    Args:
        path: The file; it ends in `UNPROVEN` where it differs from the checkpoint.
        parity: How both agree.
        proven: Whether that is enough.
        source: Of the images that both predicted.
        card: The model card, if there is one.
    """

    path: Path
    parity: Parity
    proven: bool
    source: str
    card: Path | None


def export(job: Export) -> Exported:
    """Write the file under a name that says it is unproven, compare it with its checkpoint, and rename it.

    Raises:
        UserError: The checkpoint or the calibration images cannot be used, a package is missing, or the network
            cannot be made into a graph.
        Stopped: The file cannot be written.
    """
    check_packages(job)
    state = load_run(job.model)
    require_modules(state, job.modules, job.model)
    predictor = assemble.load_predictor(job.model, CPU, modules=job.modules)
    if predictor.prepare is not None and job.format != "safetensors":
        logger.warning("validation resized its images, the graph does not: give it images that are resized likewise.")
    calibration = []
    if job.int8:
        assert job.calibrate is not None
        calibration = calibration_images(find_images([str(job.calibrate)]).paths, job.size, predictor)
    examples, source = parity_examples(state, job.data_dir)
    batches = batches_of(examples, parity_sizes(training_crop(state["config"]) or (WINDOW, WINDOW), job.size))
    if job.format == "safetensors":
        parity = write_weights(job, state, predictor, batches)
    elif job.format == "torch":
        parity = write_program(job, state, predictor, batches)
    else:
        parity = write_graph(job, state, predictor, batches, calibration)
    proven = parity.proven(rounded=job.int8 or job.half)
    path = job.output if proven else job.unproven
    if proven:
        os.replace(job.unproven, job.output)
    figures = {"file": path.name, "checkpoint": job.model.name, "format": job.format}
    rounded = {"int8": job.int8, "half": job.half}
    write_json(job.report, {**figures, **rounded, "proven": proven, "images": source, **parity.to_json()})
    card = write_card(path, state, read_results(job.model)) if job.format == "safetensors" else None
    return Exported(path, parity, proven, source, card)


def check_packages(job: Export) -> None:
    """Refuse to begin what needs a package that is not there.

    Raises:
        ConfigError: It says what to install.
    """
    missing = [package for package in PACKAGES[job.format] if importlib.util.find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"--format {job.format}: needs {' and '.join(missing)}, not installed. `pip install {' '.join(missing)}`."
        )


def write_graph(
    job: Export, state: Mapping[str, Any], predictor: Predictor, batches: Sequence[Batch], calibration: Sequence[Any]
) -> Parity:
    """Write an ONNX graph and compare what onnxruntime makes of it."""
    whole = onnx_model(job, predictor)
    if job.int8:
        whole = quantize(whole, calibration)
    metadata = metadata_of(state, outputs=job.outputs, size=job.size, int8=job.int8)
    write_onnx(job.unproven, graph.with_outputs(whole, job.outputs), metadata)
    network, _ = load_network(job.unproven, CPU)
    logits = None if "logits" in job.outputs else runner_of(session_of(whole.SerializeToString()))
    return compare(predictor.model, network.outputs, batches, predictor.classes, logits)


def onnx_model(job: Export, predictor: Predictor) -> Any:
    """The network as an `onnx.ModelProto` with the outputs that were asked for, and logits.

    Raises:
        UserError: It cannot be one.
    """
    outputs = tuple(dict.fromkeys((*job.outputs, "logits")))
    program = traced(job, predictor, outputs)
    try:
        return graph.to_onnx(program, outputs)
    except graph.Untraceable as error:
        raise UserError(f"{job.model}: cannot be written as ONNX ({error}). Use --format torch.") from error


def write_program(job: Export, state: Mapping[str, Any], predictor: Predictor, batches: Sequence[Batch]) -> Parity:
    """Write a program of torch.export and compare what torch makes of it."""
    program = traced(job, predictor, job.outputs)
    write_torch(job.unproven, program, metadata_of(state, outputs=job.outputs, size=job.size))
    network, _ = load_network(job.unproven, CPU)
    logits: Run | None = None
    if "logits" not in job.outputs:
        logits = runner_of_program(traced(job, predictor, ("logits",)).module(), ["logits"], CPU)
    return compare(predictor.model, network.outputs, batches, predictor.classes, logits)


def write_weights(job: Export, state: Mapping[str, Any], predictor: Predictor, batches: Sequence[Batch]) -> Parity:
    """Write the weights and compare a network that is built from the file alone."""
    weights = predictor.model.state_dict()
    if job.half:  # vectors stay: they are small, and a variance of batch norm may be too small for 16 bits
        weights = {name: value.half() if value.dim() > 1 else value for name, value in weights.items()}
    write_safetensors(job.unproven, weights, metadata_of(state))
    again = load_run(job.unproven)
    model = build_model(
        again["arch"],
        num_classes=len(again["classes"]),
        mean=again["normalization"]["mean"],
        std=again["normalization"]["std"],
        load_weights=False,
    ).eval()
    checkpoint.load_weights(model, again["state_dict"], job.unproven)

    @torch.inference_mode()
    def run(images: Tensor) -> dict[str, Tensor]:
        return {"logits": resize(model(images).logits, (images.shape[-2], images.shape[-1]))}

    return compare(predictor.model, run, batches, predictor.classes)


def traced(job: Export, predictor: Predictor, outputs: Sequence[str]) -> torch.export.ExportedProgram:
    """The network as a program.

    Raises:
        UserError: It cannot be one; the reason, and what would do.
    """
    model = predictor.model
    assert isinstance(model, BaseModel)
    arch = predictor.about["arch"]
    try:
        return graph.trace(model, arch["args"].get("in_channels", 3), outputs, job.size)
    except graph.Untraceable as error:
        what = "for images of any size" if job.size is None else "as a graph"
        instead = "--size H W" if job.size is None else "--format safetensors"
        raise UserError(f"{job.model}: {arch['type']} cannot be exported {what} ({error}). Use {instead}.") from error


def parity_examples(state: Mapping[str, Any], data_dir: Path | None) -> tuple[list[Example], str]:
    """Images of the checkpoint's validation set, evenly chosen; generated ones where it is not there.

    Returns:
        Examples, and where they come from.

    Raises:
        UserError: `data_dir` is given, and does not hold the dataset.
    """
    count = PER_SIZE * len(SHARES)
    try:
        config = check_config(state["config"])
        section = evaluation_section(config, data_dir=data_dir)
        view = assemble.build_evaluation_loader(config, section).view
        chosen = range(0, len(view), max(1, len(view) // count))[:count]
        items = [view[0, index] for index in chosen]
    except UserError as error:
        if data_dir is not None:
            raise
        logger.warning("the validation set is not used: %s", error.problems[0])
        channels = state["arch"]["args"].get("in_channels", 3)
        return generated_examples(count, channels), "generated"
    examples = [Example(item.image, item.label) for item in items]
    return examples, f"{section.type} {section.split or ''}".strip()
