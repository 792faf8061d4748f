"""What a checkpoint and its exported graphs give: mean IoU on its validation split, and images per second.

    python -m benchmarks.exports CKPT [CKPT ...] --calibrate DIR [--frames 40] [--rounds 3] [--threads 1] [--write]

Each checkpoint is exported as ONNX, in float32 and in 8-bit numbers with ranges as on the images in DIR, by export.py
itself; evaluate.py measures all three. Then they label the same frames by turns, from raw pixels to label maps.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

import evaluate
import export
from benchmarks.results import Figure, by_turns, peers, ratios, show, write
from engine.assemble import load_predictor
from engine.exporting import read
from utils.find_images import find_images
from utils.images import read_image
from utils.predict import Predictor, as_batch


def exported(checkpoint: Path, folder: Path, calibrate: Path) -> dict[str, Path]:
    """Export a checkpoint both ways.

    Raises:
        RuntimeError: It cannot be.
    """
    files = {"fp32": folder / "fp32.onnx", "int8": folder / "int8.onnx"}
    for name, path in files.items():
        flags = ["-m", str(checkpoint), "-o", str(path), "--outputs", "labels"]
        flags += ["--int8", "--calibrate", str(calibrate)] if name == "int8" else []
        if export.main(flags) not in (0, 3):  # 3: pixels differ, as those of 8-bit numbers do
            raise RuntimeError(f"{checkpoint}: {name} cannot be exported")
    return files


def mean_iou(model: Path) -> float:
    """Mean IoU, in percent, on the split that the checkpoint was validated on."""
    precision = ["--precision", "fp32"] if model.suffix == ".pth" else []
    results = evaluate.evaluate(evaluate.parse(["-m", str(model), "-d", "cpu", *precision]))
    return 100 * float(results["metrics"]["Mean_IoU"])


@torch.inference_mode()
def seconds(predictor: Predictor, frames: Sequence[Tensor]) -> float:
    """Seconds from raw pixels to the label maps of all frames."""
    started = time.perf_counter()
    for frame in frames:
        predictor.predict_batch(frame)
    return time.perf_counter() - started


def graph_seconds(path: Path, frames: Sequence[np.ndarray]) -> float:
    """Seconds that a graph in ONNX Runtime takes for all frames."""
    session = read.session_of(path.read_bytes())
    session.run(None, {"image": frames[0]})
    started = time.perf_counter()
    for frame in frames:
        session.run(None, {"image": frame})
    return time.perf_counter() - started


def measure(checkpoint: Path, calibrate: Path, count: int, rounds: int) -> list[Figure]:
    """Measure a checkpoint and its graphs by turns.

    Args:
        checkpoint: Of a run whose dataset is there.
        calibrate: Folder of images; the first of them are predicted for the time.
        count: How many.
        rounds: How often.
    """
    predictor = load_predictor(checkpoint, torch.device("cpu"))
    paths = find_images([str(calibrate)]).paths[:count]
    frames = [as_batch([read_image(path)]) for path in paths]
    arrays = [np.ascontiguousarray(frame.numpy()) for frame in frames]
    with tempfile.TemporaryDirectory() as name:
        files = exported(checkpoint, Path(name), calibrate)
        scores = {key: mean_iou(path) for key, path in {"eager": checkpoint, **files}.items()}
        seconds(predictor, frames[:2])  # warm
        cases: dict[str, Callable[[], float]] = {"eager": partial(seconds, predictor, frames)}
        cases |= {key: partial(graph_seconds, path, arrays) for key, path in files.items()}
        times = by_turns(cases, rounds)
    arch = predictor.about["arch"]["type"]
    figures = [Figure(f"{arch}: Mean_IoU, {key}", "%", [value]) for key, value in scores.items()]
    for key, values in times.items():
        figures.append(Figure(f"{arch}: {key}", "images/s", [len(frames) / value for value in values]))
    for fast, slow in (("fp32", "eager"), ("int8", "fp32")):
        figures.append(Figure(f"{arch}: {slow} / {fast}, time", "x", ratios(times[slow], times[fast])))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("checkpoints", type=Path, nargs="+", metavar="CKPT")
    add("--calibrate", type=Path, required=True, metavar="DIR", help="images of the kind that will be predicted")
    add("--frames", type=int, default=40)
    add("--rounds", type=int, default=3)
    add("--threads", type=int, default=1)
    add("--write", action="store_true", help="write the figures to benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    figures: list[Figure] = []
    for checkpoint in args.checkpoints:
        figures += show(measure(checkpoint, args.calibrate, args.frames, args.rounds))
    if args.write:
        title = f"checkpoints and their graphs in ONNX Runtime, {args.frames} frames"
        write("exports", title, figures, peers=peers("onnxruntime"))


if __name__ == "__main__":
    main()
