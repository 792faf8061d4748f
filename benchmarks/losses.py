"""Time of losses and of confusion matrices, beside what others would use instead.

    python benchmarks/losses.py [--classes 21 150] [--only CE Dice] [--yassouali DIR] [--json]
    python benchmarks/losses.py --metrics [--classes 19 150] [--yassouali DIR] [--json]

Losses: forward and backward from 64 x 64 logits to 512 x 512 labels, 4 images. With --metrics: confusion matrices of
one 2048 x 1024 label map, and of full-size logits. One thread; times are medians of its processor time, so that other
processes matter less, and cases take turns: only ratios within a row mean anything. `benchmarks/memory.py` has what
they take in memory.

Beside the same mathematics in ordinary operations of torch stand, where they are installed,
segmentation_models_pytorch and torchmetrics, and, with --yassouali, the losses of a checkout of
https://github.com/yassouali/pytorch-segmentation.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.results import Figure, beside, by_turns, peers, show, write
from dataloader.datasets.synthetic import Synthetic
from utils.classes import IGNORE
from utils.losses.cross_entropy import CrossEntropyLoss2d, FocalLoss, TopKCrossEntropyLoss
from utils.losses.dice import CrossEntropyDiceLoss, DiceLoss
from utils.losses.lovasz import LovaszSoftmax
from utils.losses.strips import predicted_labels
from utils.metrics import ConfusionMatrix

IMAGES, LOW, FULL = 4, 64, 512
BINS = "Lovasz-histogram"
SECONDS = 15  # after which a row is not repeated any more
Case = Callable[[Tensor, Tensor], Any]


def full(logits: Tensor, labels: Tensor) -> Tensor:
    return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)


# ------------------------------------------------------------------------------------------- in ordinary operations


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(full(logits, labels), labels.long(), ignore_index=IGNORE)


def plain_top_k(logits: Tensor, labels: Tensor) -> Tensor:
    each = F.cross_entropy(full(logits, labels), labels.long(), ignore_index=IGNORE, reduction="none")
    return each.flatten().topk(int((labels != IGNORE).sum()) // 4).values.mean()


def plain_focal(logits: Tensor, labels: Tensor) -> Tensor:
    each = F.cross_entropy(full(logits, labels), labels.long(), ignore_index=IGNORE, reduction="none")
    return ((1 - torch.exp(-each)) ** 2 * each).sum() / (labels != IGNORE).sum()


def plain_dice(logits: Tensor, labels: Tensor, per_class: bool) -> Tensor:
    kept = (labels != IGNORE)[:, None]
    p = full(logits, labels).softmax(1) * kept
    t = torch.zeros_like(p).scatter_(1, labels[:, None].masked_fill(~kept, 0).long(), 1) * kept
    axes = (0, 2, 3) if per_class else (0, 1, 2, 3)
    hits, total = (p * t).sum(axes), p.sum(axes) + t.sum(axes)
    return (1 - (2 * hits + 1) / (total + 1))[t.sum(axes) > 0].mean()


def plain_both(logits: Tensor, labels: Tensor) -> Tensor:
    return plain_cross_entropy(logits, labels) + plain_dice(logits, labels, per_class=False)


def plain_lovasz(logits: Tensor, labels: Tensor) -> Tensor:
    kept = labels != IGNORE
    p, truth, losses = full(logits, labels).softmax(1).movedim(1, -1)[kept], labels[kept], []
    for index in truth.unique().tolist():
        own = (truth == index).float()
        errors, order = (own - p[:, index]).abs().sort(descending=True)
        own = own[order]
        jaccard = 1 - (own.sum() - own.cumsum(0)) / (own.sum() + (1 - own).cumsum(0))
        losses.append(errors @ torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]]))
    return torch.stack(losses).mean()


PLAIN: dict[str, Case] = {
    "CE": plain_cross_entropy,
    "Top-k": plain_top_k,
    "Focal": plain_focal,
    "Dice": functools.partial(plain_dice, per_class=True),
    "Dice-global": functools.partial(plain_dice, per_class=False),
    "CE+Dice-global": plain_both,
    "Lovasz": plain_lovasz,
}
NAMES = {
    "CE": "cross-entropy",
    "Top-k": "top-k",
    "Focal": "focal",
    "Dice": "Dice, per class",
    "Dice-global": "Dice, global",
    "CE+Dice-global": "CE + global Dice",
    "Lovasz": "Lovász, exact",
    "Lovasz-histogram": "Lovász, 4096 bins",
}
OURS: dict[str, Case] = {
    "CE": CrossEntropyLoss2d(),
    "Top-k": TopKCrossEntropyLoss(),
    "Focal": FocalLoss(),
    "Dice": DiceLoss(),
    "Dice-global": DiceLoss(per_class=False),
    "CE+Dice-global": CrossEntropyDiceLoss(per_class=False),
    "Lovasz": LovaszSoftmax(),
    "Lovasz-histogram": LovaszSoftmax(bins=4096),
}


# --------------------------------------------------------------------------------------------------- other packages


def smp() -> dict[str, Case]:
    """Losses of segmentation_models_pytorch by our names; none where it is not installed."""
    try:
        from segmentation_models_pytorch import losses
    except ImportError:
        return {}
    made = {
        "CE": losses.SoftCrossEntropyLoss(smooth_factor=0.0, ignore_index=IGNORE),  # divides by void pixels too
        "Dice": losses.DiceLoss("multiclass", ignore_index=IGNORE, smooth=1.0),
        "Lovasz": losses.LovaszLoss("multiclass", ignore_index=IGNORE),
    }
    return {name: lambda z, t, loss=loss: loss(full(z, t), t.long()) for name, loss in made.items()}


def yassouali(folder: Path | None) -> dict[str, Case]:
    """Losses of a checkout of pytorch-segmentation by our names, and "confusion"; none without a checkout."""
    if folder is None:
        return {}
    losses, metrics = (foreign(folder, f"utils.{name}") for name in ("losses", "metrics"))
    made = {
        "CE": losses.CrossEntropyLoss2d(),
        "Focal": losses.FocalLoss(),
        "Dice-global": losses.DiceLoss(),
        "CE+Dice-global": losses.CE_DiceLoss(),
        "Lovasz": losses.LovaszSoftmax(),
    }

    def case(name: str) -> Case:
        def run(logits: Tensor, labels: Tensor) -> Tensor:
            labels = labels.long()  # a copy: its Dice writes into the labels
            if name == "CE+Dice-global":  # and so its backward pass refuses labels with void pixels
                labels = labels.masked_fill_(labels == IGNORE, 0)
            return made[name](full(logits, labels), labels)

        return run

    confusion = {"confusion": lambda z, t: metrics.eval_metrics(z, t.long(), z.shape[1])}
    return {name: case(name) for name in made} | confusion


def foreign(folder: Path, name: str) -> Any:
    """The module `name` of another project, whose packages are called as ours are."""
    ours = {key: sys.modules.pop(key) for key in list(sys.modules) if key.partition(".")[0] == "utils"}
    sklearn = {"sklearn": types.ModuleType("sklearn"), "sklearn.utils": types.ModuleType("sklearn.utils")}
    sklearn["sklearn.utils"].class_weight = None  # type: ignore[attr-defined]  # imported there, and not used
    missing = {key: module for key, module in sklearn.items() if key not in sys.modules}
    sys.modules.update(missing)
    sys.path.insert(0, str(folder))
    try:
        with warnings.catch_warnings(action="ignore"):
            return importlib.import_module(name)
    finally:
        sys.path.remove(str(folder))
        for key in [*missing, *(key for key in sys.modules if key.partition(".")[0] == "utils")]:
            del sys.modules[key]
        sys.modules.update(ours)


def columns(folder: Path | None) -> dict[str, Mapping[str, Case]]:
    """All losses there are, by who wrote them; ours first."""
    found = {"ours": OURS, "plain torch": PLAIN, "smp": smp(), "yassouali": yassouali(folder)}
    return {who: cases for who, cases in found.items() if cases}


def cases_of(name: str, num_classes: int, columns_: Mapping[str, Mapping[str, Case]]) -> dict[str, Case]:
    """A loss by who wrote it; of many classes, without smp's Lovász, a round of which takes half a minute."""
    found = {who: losses[name] for who, losses in columns_.items() if name in losses}
    if name == "Lovasz" and num_classes > 50:
        found.pop("smp", None)
    return found


# -------------------------------------------------------------------------------------------------------- measuring


def inputs(num_classes: int, scale: int = 1) -> tuple[Tensor, Tensor]:
    """Logits without ties, and labels in patches: a third or half of the classes present, some void."""
    torch.manual_seed(0)
    low, size = LOW // scale, FULL // scale
    logits = 3 * torch.randn(IMAGES, num_classes, low, low)
    present = 10 if num_classes < 50 else 40
    labels = torch.randint(min(present, num_classes), (IMAGES, low, low), dtype=torch.uint8)
    labels = labels.repeat_interleave(size // low, 1).repeat_interleave(size // low, 2)
    labels[:, : size // 16] = IGNORE
    return logits, labels


def once(case: Case, logits: Tensor, labels: Tensor) -> float:
    """Milliseconds of processor time of forward and backward."""
    logits = logits.detach().requires_grad_()
    start = time.process_time()
    case(logits, labels).backward()
    return 1e3 * (time.process_time() - start)


# ----------------------------------------------------------------------------------------------------------- tables


def losses_figures(arguments: argparse.Namespace) -> list[Figure]:
    """A row for each number of classes and loss: our milliseconds, and how many times as long the others take."""
    columns_ = columns(arguments.yassouali)
    figures: list[Figure] = []
    for num_classes in arguments.classes:
        logits, labels = inputs(num_classes, arguments.shrink)
        for name in arguments.only or OURS:
            cases = cases_of(name, num_classes, columns_)
            if name == "Lovasz":  # others have it in one form only, which both of ours stand beside
                cases[BINS] = OURS[BINS]
            elif name == BINS and "Lovasz" in (arguments.only or OURS):
                continue
            for case in cases.values():  # what is loaded and allocated by the first call is nobody's
                once(case, *inputs(num_classes, 16))
            turns = {who: functools.partial(once, case, logits, labels) for who, case in cases.items()}
            times = by_turns(turns, arguments.rounds, SECONDS)
            binned = times.pop(BINS, None)
            figures += show(beside(f"{num_classes} classes: {NAMES[name]}", times))
            if binned:
                figures += show(beside(f"{num_classes} classes: {NAMES[BINS]}", {**times, "ours": binned}))
    return figures


def metrics_figures(arguments: argparse.Namespace) -> list[Figure]:
    """A row for each kind of input and number of classes, likewise."""
    kinds = {"street scene": from_a_scene, "labels in patches": from_labels, "logits of full size": from_logits}
    height = 1024 // arguments.shrink
    figures: list[Figure] = []
    for kind, make in kinds.items():
        for num_classes in arguments.classes:
            cases = make(num_classes, height, arguments.yassouali)
            results = [case() for who, case in cases.items() if who != "yassouali"]
            assert all(np.array_equal(result, results[0]) for result in results), "somebody counts wrongly"
            turns = {who: functools.partial(milliseconds, case) for who, case in cases.items()}
            figures += show(beside(f"{kind}, {num_classes} classes", by_turns(turns, arguments.rounds, SECONDS)))
    return figures


def milliseconds(case: Callable[[], Any]) -> float:
    start = time.process_time()
    case()
    return 1e3 * (time.process_time() - start)


def from_labels(num_classes: int, height: int, _: Path | None) -> dict[str, Callable[[], Any]]:
    """Confusion matrices of a uint8 label map in patches; a tenth of the predictions is wrong, a twentieth void."""
    rng = np.random.default_rng(0)
    truth = rng.integers(num_classes, size=(height // 32, height // 16), dtype=np.uint8).repeat(32, 0).repeat(32, 1)
    wrong = rng.integers(num_classes, size=truth.shape, dtype=np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.1, wrong, truth)
    truth[: len(truth) // 20] = IGNORE
    return counting(predicted, truth, num_classes)


def from_a_scene(num_classes: int, height: int, _: Path | None) -> dict[str, Callable[[], Any]]:
    """Confusion matrices of the labels of a generated street scene; the prediction is some pixels off."""
    scene = Synthetic(split="val", length=1, size=(height // 2, height)).read(0).label.repeat(2, 0).repeat(2, 1)
    predicted = np.roll(scene, (6, 9), (0, 1))
    return counting(np.where(predicted == IGNORE, 0, predicted), scene, num_classes)


def counting(predictions: np.ndarray, truth: np.ndarray, num_classes: int) -> dict[str, Callable[[], Any]]:
    """Ways to count label maps (H, W) uint8."""
    predicted, labels = torch.from_numpy(predictions), torch.from_numpy(truth)

    def numpy_bincount() -> Any:
        t, p = labels.numpy(), predicted.numpy()
        kept = t != IGNORE
        counts = np.bincount(t[kept].astype(np.int64) * num_classes + p[kept], minlength=num_classes**2)
        return counts.reshape(num_classes, num_classes)

    cases: dict[str, Callable[[], Any]] = {
        "ours": lambda: ours_counts(predicted, labels, num_classes),
        "torch.bincount": lambda: torch_bincount(predicted, labels, num_classes),
        "np.bincount": numpy_bincount,
    }
    try:
        from torchmetrics.functional.classification import multiclass_confusion_matrix
    except ImportError:
        return cases
    options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": IGNORE}
    for name, validate in (("torchmetrics", True), ("torchmetrics unchecked", False)):
        cases[name] = functools.partial(
            multiclass_confusion_matrix, predicted[None], labels[None].long(), validate_args=validate, **options
        )
    return cases


def from_logits(num_classes: int, height: int, folder: Path | None) -> dict[str, Callable[[], Any]]:
    """Confusion matrices of the logits of one image at full size."""
    torch.manual_seed(0)
    logits = torch.randn(1, num_classes, height, 2 * height)
    labels = torch.randint(num_classes, (1, height, 2 * height), dtype=torch.uint8)
    cases = {
        "ours": lambda: ours_counts(predicted_labels(logits, (height, 2 * height)), labels, num_classes),
        "argmax and torch.bincount": lambda: torch_bincount(logits.argmax(1), labels, num_classes),
    }
    theirs = yassouali(folder).get("confusion")
    return cases | ({"yassouali": lambda: theirs(logits, labels)} if theirs else {})


def ours_counts(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    matrix = ConfusionMatrix(num_classes, [str(index) for index in range(num_classes)])
    matrix.update(predicted, labels)
    return matrix.counts


def torch_bincount(predicted: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    kept = labels != IGNORE
    pairs = labels[kept].long() * num_classes + predicted[kept]
    return torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of losses and confusion matrices.")
    parser.add_argument("--classes", type=int, nargs="+", default=[21, 150])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=OURS)
    parser.add_argument("--yassouali", type=Path, metavar="DIR", help="a checkout of pytorch-segmentation")
    parser.add_argument("--metrics", action="store_true", help="measure confusion matrices instead")
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes by this, to try it out")
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    warnings.filterwarnings("ignore", "size_average", UserWarning)
    package = "torchmetrics" if arguments.metrics else "segmentation_models_pytorch"
    figures = metrics_figures(arguments) if arguments.metrics else losses_figures(arguments)
    title = "forward and backward, 64x64 logits to 512x512 labels, 4 images"
    if arguments.metrics:
        title = "confusion matrix of 2048x1024 pixels"
    if arguments.json:
        others = peers(package, yassouali=arguments.yassouali)
        write("metrics" if arguments.metrics else "losses", f"{title}; processor time", figures, peers=others)


if __name__ == "__main__":
    main()
