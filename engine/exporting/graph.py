"""A network as one graph, from raw pixels to a label map: for ONNX and for `torch.export`."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from base.base_model import BaseModel
from utils.outputs import resize

SMALLEST = 32  # pixels of a side, in graphs for images of any size
OPSET = 18
# Images, height and width that are traced: no two alike, so that none is taken for another; large enough that no map of
# a deep pyramid is a single pixel, which torch would count on.
EXAMPLE = (2, 320, 352)


class Untraceable(Exception):
    """A network cannot be made into a graph; the message is the reason, in one line."""


class ExportGraph(nn.Module):
    """Raw pixels to what the user asked for, at the size of the image.

    Args:
        network: In evaluation mode.
        outputs: Some of `formats.OUTPUTS`, in the order in which they are to come.
    """

    def __init__(self, network: BaseModel, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Raw images (N, C, H, W) to any of:

        labels: (N, H, W) uint8, the class of the largest logit; of equal ones the first.
        confidence: (N, H, W) float32, the probability of that class.
        logits: (N, num_classes, H, W) float32.
        """
        logits = resize(self.network(image).logits.float(), (image.shape[-2], image.shape[-1]))
        found = {"logits": logits}
        if "labels" in self.outputs:
            found["labels"] = logits.argmax(1).to(torch.uint8)
        if "confidence" in self.outputs:
            found["confidence"] = logits.softmax(1).amax(1)
        return tuple(found[name] for name in self.outputs)


def input_dtype(channels: int) -> torch.dtype:
    """Type of the graph's input: pixels of pictures are 8-bit numbers, other channels may hold anything."""
    return torch.uint8 if channels == 3 else torch.float32


def trace(network: BaseModel, channels: int, outputs: Sequence[str], size: tuple[int, int] | None) -> ExportedProgram:
    """Make a program of `network`, for any number of images.

    Args:
        network: In evaluation mode, on the CPU.
        channels: Of the images.
        outputs: See `ExportGraph`.
        size: Height and width of all images; None for any of at least `SMALLEST`.

    Raises:
        Untraceable: What it computes depends on sizes in a way that no graph can express.
    """
    network = deepcopy(network).to(memory_format=torch.contiguous_format)  # else torch asks about small maps
    count, *shape = EXAMPLE if size is None else (EXAMPLE[0], *size)
    example = torch.zeros(count, channels, *shape, dtype=input_dtype(channels))
    dynamic = {0: Dim("batch", min=1)}
    if size is None:
        dynamic |= {2: Dim("height", min=SMALLEST), 3: Dim("width", min=SMALLEST)}
    try:
        with _quiet(), _any_size(), torch.no_grad():
            return torch.export.export(
                ExportGraph(network, outputs).eval(),
                (example,),
                dynamic_shapes=(dynamic,),
                strict=False,
                # Such as that a map enlarged and cut to a size has it: true for every size, but not obvious to torch.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # the tracer fails in as many ways as there are networks
        raise Untraceable(_reason(error)) from error


def to_onnx(program: ExportedProgram, outputs: Sequence[str]) -> Any:
    """The program as an `onnx.ModelProto` with an input "image", and outputs of these names.

    Raises:
        Untraceable: ONNX lacks something that it computes.
    """
    try:
        with _quiet(), _any_size(), torch.no_grad():
            made = torch.onnx.export(
                program,
                (),
                dynamo=True,
                input_names=["image"],
                output_names=list(outputs),
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
    except Exception as error:
        raise Untraceable(_reason(error)) from error
    assert made is not None
    return made.model_proto


def with_outputs(model: Any, outputs: Sequence[str]) -> Any:
    """A copy of an `onnx.ModelProto` that computes these outputs only."""
    import onnx

    pruned = onnx.ModelProto()
    pruned.CopyFrom(model)
    graph = pruned.graph
    kept = [output for output in graph.output if output.name in outputs]
    needed = {output.name for output in kept}
    nodes = []
    for node in reversed(graph.node):  # each node comes behind what it needs
        if needed.isdisjoint(node.output):
            continue
        nodes.append(node)
        needed.update(node.input)
    del graph.output[:]
    graph.output.extend(kept)
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(nodes)]
    del graph.node[:]
    graph.node.extend(nodes)
    weights = [weight for weight in graph.initializer if weight.name in needed]
    weights = [onnx.TensorProto.FromString(weight.SerializeToString()) for weight in weights]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    return pruned


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks about its own insides from the user."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _any_size() -> Iterator[None]:
    """Let a side of length 1 be like any other: else torch asks for images whose maps are all larger.

    The option has no public name; where a version of torch lacks it, the smallest images are refused.
    """
    import torch.fx.experimental._config as options

    if not hasattr(options, "backed_size_oblivious"):
        yield
        return
    with options.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        yield


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause, without what torch recommends to its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Constraints violated"):
        return "it computes small and large images in two ways, of which a graph has one"
    return lines[0].rstrip(".:!")[:200] if lines else type(error).__name__
