"""What sliding windows and several scales cost beside the forward passes of the network, here and elsewhere.

    python -m benchmarks.modes [--size 1024 2048] [--classes 19] [--rounds 3] [--yassouali DIR] [--semseg DIR] [--json]

One image, one thread, by turns in one process, each mode warm: ours has predicted the image before, and what others do,
which takes longer, a small one. The network is next to nothing: it averages 8x8 pixels, and each class is a weighted
sum of colors. So the time is that of the framework; the forward passes alone are measured beside it.
`--yassouali` and `--semseg` are checkouts of yassouali/pytorch-segmentation and hszhao/semseg, of which only the
functions that predict are read.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.results import Figure, peers, show, write
from dataloader.datasets.synthetic import draw_scene
from utils.classes import ClassTable
from utils.outputs import SegOutput
from utils.predict import Predictor
from utils.tta import TestTimeAugmentation

SCALES = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25)
SMALLER = 4  # times, in height and width: the image that peers are tried on first
TILES = 2.5  # of the image's sides, as yassouali cuts it
T = TypeVar("T")
Label = Callable[[np.ndarray], np.ndarray]  # image (H, W, 3) to labels (H, W)


class Cheap(nn.Module):
    """A network whose logits, at an eighth of the image's size, cost next to nothing.

    Args:
        num_classes: Channels of the logits.
        whole: Give logits of the image's size, as networks elsewhere do, and no `SegOutput`.
    """

    def __init__(self, num_classes: int, *, whole: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(num_classes, 3, 1, 1, generator=generator))
        self.whole = whole

    def forward(self, images: Tensor) -> Any:
        """Raw images (N, 3, H, W) to logits."""
        logits = F.conv2d(F.avg_pool2d(images.float() / 255, 8, ceil_mode=True), self.weight)
        if self.whole:
            size = (images.shape[-2], images.shape[-1])
            return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return SegOutput(logits)


def ours(num_classes: int, mode: str, size: tuple[int, int], *, fast: bool = False) -> Predictor:
    """Predictor with the cheap network."""
    names = tuple(map(str, range(num_classes)))
    classes = ClassTable(names, ((0, 0, 0),) * num_classes, tuple((number,) for number in range(num_classes)))
    window = int(size[0] // TILES), int(size[1] // TILES)
    tta = TestTimeAugmentation(mode=mode, scales=SCALES, flip=True, window=window, fast=fast)
    if mode == "sliding":
        tta = TestTimeAugmentation(mode=mode, flip=True, window=window)
    return Predictor(Cheap(num_classes), classes, {"arch": {"args": {}}}, tta=tta)


def functions_of(path: Path, names: Sequence[str], known: dict[str, Any]) -> dict[str, Any]:
    """Define these functions of a file whose other contents need packages that are not there.

    Raises:
        OSError: There is no such file.
        KeyError: It lacks one of them.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    exec(compile(tree, str(path), "exec"), known)
    return {name: known[name] for name in names}


def yassouali_cases(root: Path, num_classes: int) -> dict[str, Label]:
    """How the checkout's inference.py predicts, from pixels to labels."""
    from scipy import ndimage

    known = {"np": np, "torch": torch, "nn": nn, "F": F, "ndimage": ndimage, "ceil": ceil}
    found = functions_of(root / "inference.py", ("pad_image", "sliding_predict", "multi_scale_predict"), known)
    network = Cheap(num_classes, whole=True)

    def label(image: np.ndarray, predict: Callable[[Tensor], np.ndarray]) -> np.ndarray:
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        return F.softmax(torch.from_numpy(predict(pixels)), dim=0).argmax(0).numpy()

    sliding = partial(found["sliding_predict"], network, num_classes=num_classes, flip=True)
    several = partial(found["multi_scale_predict"], network, scales=SCALES, num_classes=num_classes)
    return {
        "sliding": partial(label, predict=sliding),
        "multiscale": partial(label, predict=partial(several, device="cpu", flip=True)),
    }


def semseg_cases(root: Path, num_classes: int, size: tuple[int, int]) -> dict[str, Label]:
    """How the checkout's tool/test.py predicts at one scale: in windows, each mirrored too."""
    known = {"np": np, "torch": torch, "F": F, "cv2": cv2}
    found = functions_of(root / "tool" / "test.py", ("net_process", "scale_process"), known)
    predict = partial(found["scale_process"], Cheap(num_classes, whole=True), classes=num_classes, mean=[0.0] * 3)
    window = int(size[0] // TILES), int(size[1] // TILES)

    def label(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        with mock.patch.object(Tensor, "cuda", lambda tensor: tensor):  # it knows GPUs only
            logits: np.ndarray = predict(image, crop_h=window[0], crop_w=window[1], h=height, w=width)
        return np.argmax(logits, axis=2)

    return {"sliding": label}


def timed(job: Callable[[], T]) -> tuple[float, T]:
    """Processor time of `job` in seconds, and what it returns."""
    started = time.process_time()
    result = job()
    return time.process_time() - started, result


def forward_passes(predictor: Predictor, image: np.ndarray) -> Callable[[], object]:
    """Return a function that runs the network on all that a prediction shows it, and does nothing else."""
    seen: list[Tensor] = []
    network = predictor.model
    hook = network.register_forward_pre_hook(lambda _, images: seen.extend(images))
    predictor.predict_image(image)
    hook.remove()

    def again() -> None:
        for images in seen:
            network(images)

    return again


@torch.inference_mode()
def measure(size: tuple[int, int], num_classes: int, rounds: int, others: dict[str, dict[str, Label]]) -> list[Figure]:
    """Measure each mode here and at the others by turns.

    Args:
        size: Of the image.
        num_classes: Channels of the logits.
        rounds: How often.
        others: Their modes, by name.
    """
    image, _ = draw_scene(np.random.default_rng(0), size)
    small = np.ascontiguousarray(image[::SMALLER, ::SMALLER])
    figures = []
    for mode in ("sliding", "multiscale"):
        own = {"here": ours(num_classes, mode, size)}
        if mode == "multiscale":
            own["here, --fast"] = ours(num_classes, mode, size, fast=True)
        theirs = {peer: modes[mode] for peer, modes in others.items() if mode in modes}
        for predictor in own.values():
            predictor.predict_image(image)
        for label in theirs.values():
            label(small)
        jobs: dict[str, Callable[[], object]] = {"forward passes": forward_passes(own["here"], image)}
        jobs |= {name: partial(predictor.predict_image, image) for name, predictor in own.items()}
        jobs |= {peer: partial(label, image) for peer, label in theirs.items()}
        times: dict[str, list[float]] = {job: [] for job in jobs}
        found: dict[str, Any] = {}
        for _ in range(rounds):
            for job, run in jobs.items():
                taken, found[job] = timed(run)
                times[job].append(taken)
        figures += [Figure(f"{mode}: {job}", "s", values) for job, values in times.items()]
        for peer, name in itertools.product(theirs, own):
            figures += ratios(f"{mode}: {peer} / {name}", times[peer], times[name], times["forward passes"])
            same = float((found[name] == found[peer]).mean())
            figures.append(Figure(f"{mode}: labels {name} equal to those of {peer}", "%", [100 * same]))
    return figures


def ratios(what: str, theirs: Sequence[float], mine: Sequence[float], bare: Sequence[float]) -> list[Figure]:
    """Ratios of whole times, and of what they are above that of the forward passes."""
    whole = [a / b for a, b in zip(theirs, mine, strict=True)]
    above = [(a - c) / (b - c) for a, b, c in zip(theirs, mine, bare, strict=True)]
    return [Figure(what, "x", whole), Figure(f"{what}, without forward passes", "x", above)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--size", type=int, nargs=2, default=(1024, 2048), metavar=("H", "W"))
    add("--classes", type=int, default=19)
    add("--rounds", type=int, default=3)
    add("--yassouali", type=Path, help="checkout of yassouali/pytorch-segmentation")
    add("--semseg", type=Path, help="checkout of hszhao/semseg")
    add("--json", action="store_true", help="write the figures to benchmarks/results/")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    size = (args.size[0], args.size[1])
    others = {}
    if args.yassouali:
        others["yassouali"] = yassouali_cases(args.yassouali, args.classes)
    if args.semseg:
        others["semseg"] = semseg_cases(args.semseg, args.classes, size)
    figures = measure(size, args.classes, args.rounds, others)
    show(figures)
    if args.json:
        scales = ", ".join(map(str, SCALES))
        title = (
            f"an image of {size[1]}x{size[0]}, {args.classes} classes, mirrored too; scales {scales}; processor time"
        )
        write("modes", title, figures, peers=peers(yassouali=args.yassouali, semseg=args.semseg))


if __name__ == "__main__":
    main()
