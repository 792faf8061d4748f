"""A graph in 8-bit numbers, by onnxruntime's static quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.exporting.graph import input_dtype
from utils.errors import DataError
from utils.predict import Predictor

MOST = 64  # images to calibrate with; ranges hardly grow after some dozens
SIDE = 512  # pixels; larger images are cut, and none of it changes the ranges either


def quantize(model: Any, images: Sequence[np.ndarray]) -> Any:
    """An `onnx.ModelProto` that computes convolutions with 8-bit numbers.

    Weights have a scale for each channel and 7 bits, because processors without VNNI saturate sums of two products of
    8-bit numbers; ranges of activations are those seen on the images. The first and the last convolution stay float32:
    they are a small share of the work and, at least in MobileNetV2, most of the error.

    Args:
        model: Takes "image" (N, C, H, W).
        images: (H, W, C) each, of the type that it takes.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.rest = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.rest, None)
            return None if image is None else {"image": np.ascontiguousarray(image.transpose(2, 0, 1)[None])}

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, result = (Path(folder) / f"{name}.onnx" for name in ("plain", "prepared", "int8"))
        onnx.save(model, str(plain))  # of one in memory, it cannot find large weights
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        nodes = onnx.load(str(prepared)).graph.node
        convolutions = [node.name for node in nodes if node.op_type == "Conv"]
        names = [node.name for node in nodes]
        # Of images that are normalized each by itself, statistics lie beyond those of the calibration images.
        normalization = names[: names.index(convolutions[0])]
        quantize_static(
            str(prepared),
            str(result),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Relu", "Clip", "Add", "MaxPool", "Concat", "GlobalAveragePool"],
            nodes_to_exclude=[*normalization, convolutions[0], convolutions[-1]],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(str(result))


def calibration_images(paths: Sequence[Path], size: tuple[int, int] | None, predictor: Predictor) -> list[np.ndarray]:
    """Images (H, W, C) of the type that the graph takes to calibrate with, evenly chosen among `paths`.

    Args:
        paths: Files.
        size: Height and width that the graph takes; None for any.
        predictor: Reads them with the channels that its model takes.

    Raises:
        DataError: One cannot be read, or none is as large as `size`.
    """
    chosen = [paths[i * len(paths) // min(MOST, len(paths))] for i in range(min(MOST, len(paths)))]
    images, dtype = [], input_dtype(predictor.channels)
    for path in chosen:
        image = predictor.read(path)
        if size is not None and (image.shape[0] < size[0] or image.shape[1] < size[1]):
            continue
        height, width = size or (min(SIDE, image.shape[0]), min(SIDE, image.shape[1]))
        top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
        crop = np.ascontiguousarray(image[top : top + height, left : left + width])
        images.append(torch.from_numpy(crop).to(dtype).numpy())
    if size is not None and not images:
        raise DataError(
            f"--calibrate: no image is as large as --size {size[0]} {size[1]}. Name a folder of larger ones."
        )
    return images
