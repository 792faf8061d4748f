"""How well planted label errors are found: ``python -m benchmarks.label_errors --data CAMVID [--keep DIR] [--json]``.

In 5 % of CamVid's training masks one object, a connected region of a class, gets another class, is moved, or is left
out. Networks are trained on these masks, each without one fold, and `prepare.py check --model` ranks what they
contradict in the masks that they have not seen. Figures are average precisions: of images, ranked by their most
suspicious region, and of regions, of which one is right if it lies on what was planted.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch

from benchmarks.partial import config_of, shrink
from benchmarks.results import Figure, write
from engine import session
from engine.check import check_config
from engine.label_check import LabelCheck, check_labels
from engine.label_errors import Box
from utils.log import log_to

KINDS = ("swapped", "shifted", "missing")
VOID = 11  # in CamVid's masks
SMALLEST = 0.005  # of an image, that an object has that is changed
LARGEST = 0.25


class Planted(NamedTuple):
    """An error in a mask.

    Args:
        kind: One of `KINDS`.
        where: Pixels that are wrong now, (H, W) bool.
    """

    kind: str
    where: np.ndarray


def plant(
    label: np.ndarray, kind: str, rng: np.random.Generator, num_classes: int
) -> tuple[np.ndarray, Planted] | None:
    """Change one object of a label (H, W) uint8, drawn at random; None where none is fit for it."""
    objects = [each for index in rng.permutation(num_classes).tolist() for each in objects_of(label, index)]
    for inside in objects:
        own = int(label[inside][0])
        around = surrounding(label, inside, num_classes)
        if around is None or around == own:
            continue
        changed = label.copy()
        changed[inside] = around
        if kind == "swapped":
            others = [index for index in range(num_classes) if index not in (own, around)]
            changed[inside] = rng.choice(others)
        elif kind == "shifted":
            moved = shifted(inside, rng)
            changed[moved & (label < num_classes)] = own
        where = changed != label
        if where.sum() >= SMALLEST / 2 * label.size:
            return changed, Planted(kind, where)
    return None


def objects_of(label: np.ndarray, index: int) -> list[np.ndarray]:
    """Connected regions of a class, (H, W) bool each, that are neither small nor large."""
    count, numbers, stats, _ = cv2.connectedComponentsWithStats((label == index).astype(np.uint8), connectivity=8)
    areas = stats[:, cv2.CC_STAT_AREA] / label.size
    return [numbers == each for each in range(1, count) if SMALLEST <= areas[each] <= LARGEST]


def surrounding(label: np.ndarray, inside: np.ndarray, num_classes: int) -> int | None:
    """Return the class that most of the pixels around a region have."""
    ring = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool) & ~inside
    values = label[ring & (label < num_classes)]
    return int(np.bincount(values).argmax()) if len(values) else None


def shifted(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Move a region by half of its height and width, in a direction drawn at random."""
    rows, columns = np.nonzero(inside)
    reach = [max(2, (values.max() - values.min() + 1) // 2) for values in (rows, columns)]
    signs = rng.choice([-1, 1], 2)
    rows = rows + signs[0] * reach[0]
    columns = columns + signs[1] * reach[1]
    kept = (rows >= 0) & (rows < inside.shape[0]) & (columns >= 0) & (columns < inside.shape[1])
    moved = np.zeros_like(inside)
    moved[rows[kept], columns[kept]] = True
    return moved


def plant_in_folder(folder: Path, share: float, num_classes: int, seed: int = 0) -> dict[str, Planted]:
    """Change a share of the masks in `folder` in place; returns what was planted, by the masks' names."""
    rng = np.random.default_rng(seed)
    paths = sorted(folder.glob("*.png"))
    count = round(share * len(paths))
    found: dict[str, Planted] = {}
    for number in rng.permutation(len(paths)).tolist():
        if len(found) == count:
            break
        label = cv2.imread(str(paths[number]), cv2.IMREAD_UNCHANGED)
        planted = plant(label, KINDS[len(found) % len(KINDS)], rng, num_classes)
        if planted is not None:
            cv2.imwrite(str(paths[number]), planted[0])
            found[paths[number].stem] = planted[1]
    return found


def average_precision(hits: Sequence[bool], total: int) -> float:
    """Return the mean of the precisions at each hit of a ranking, of which `total` are to be found."""
    ranks = np.flatnonzero(hits) + 1
    return float((np.arange(1, len(ranks) + 1) / ranks).sum() / total) if total else float("nan")


def prepare_data(args: argparse.Namespace, folder: Path) -> dict[str, Planted]:
    """Write the frames, plant errors, and train the folds; what is there already is used again."""
    marks = folder / "planted.npz"
    if not marks.exists():
        shrink(args.data, folder, (args.size[0], args.size[1]))
        planted = plant_in_folder(folder / "whole" / "trainannot", args.share, VOID)
        kinds = {f"{each.kind} {name}": each.where for name, each in planted.items()}
        np.savez_compressed(marks, **kinds)  # type: ignore[arg-type]  # its first parameter is called file
    with np.load(marks) as stored:
        return {name.partition(" ")[2]: Planted(name.partition(" ")[0], stored[name]) for name in stored.files}


def train_folds(args: argparse.Namespace, folder: Path) -> list[Path]:
    """Train a network for each fold, without it; returns their checkpoints."""
    found = []
    for fold in range(args.folds):
        raw: dict[str, Any] = config_of(folder, "whole", args, seed=0)
        raw |= {"name": f"fold-{fold}", "train_loader": raw["train_loader"][0], "val_loader": None}
        raw["train_loader"]["args"]["val_split"] = {"share": 1 / args.folds, "fold": fold, "seed": 0}
        done = sorted((folder / "saved" / raw["name"]).glob("*-*/results.json"))
        run = done[0].parent if done else session.train(check_config(raw), torch.device(args.device))
        found.append(run / "best_model.pth")
    return found


def measure(found: LabelCheck, planted: Mapping[str, Planted]) -> dict[str, float]:
    """Average precision of images and of regions, and the share of the errors of each kind among the first regions."""
    images: list[str] = []
    hits: list[bool] = []
    hit_at: dict[str, int] = {}
    for rank, (suspect, place) in enumerate(found.ranked):
        key = str(place.dataset.samples[place.index].key)
        if key not in images:
            images.append(key)
        error = planted.get(key)
        box = suspect.box
        right = error is not None and overlaps(error.where, box)
        if right and key in hit_at:
            continue  # another part of the same error is neither a hit nor a mistake
        if right:
            hit_at[key] = rank
        hits.append(right)
    first = 2 * len(planted)
    figures = {
        "images": average_precision([key in planted for key in images], len(planted)),
        "regions": average_precision(hits, len(planted)),
    }
    for kind in KINDS:
        keys = [key for key, error in planted.items() if error.kind == kind]
        figures[kind] = float(np.mean([key in hit_at and hit_at[key] < first for key in keys]))
    return figures


def overlaps(where: np.ndarray, box: Box) -> bool:
    """Whether half of what lies in a box is a planted error, or half of that lies in the box."""
    inside = int(where[box.top : box.bottom, box.left : box.right].sum())
    return inside >= 0.5 * min((box.bottom - box.top) * (box.right - box.left), int(where.sum()))


def run(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Plant, train and search in a folder."""
    planted = prepare_data(args, folder)
    found = check_labels(train_folds(args, folder), torch.device(args.device))
    return measure(found, planted)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder: train, trainannot, val, valannot")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 180), metavar=("W", "H"), help="of the frames")
    parser.add_argument("--steps", type=int, default=1500, help="of each fold")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.05, help="of the masks that get an error")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=Path, help="folder for frames and runs; what it holds is used again")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/label_errors.json")
    args = parser.parse_args(argv)
    log_to()
    with tempfile.TemporaryDirectory() as temporary:
        found = run(args, args.keep or Path(temporary))
    what = {
        "images": "average precision, images",
        "regions": "average precision, regions",
        **{kind: f"{kind}: found among twice as many regions as there are errors" for kind in KINDS},
    }
    figures = [Figure(what[name], "", [value]) for name, value in found.items()]
    for figure in figures:
        print(f"{figure.what}: {figure.values[0]:.3f}")
    if args.json:
        width, height = args.size
        title = f"CamVid at {width}x{height}, errors in {args.share:.0%} of the masks, {args.folds} folds"
        write("label_errors", title, figures, device=args.device)


if __name__ == "__main__":
    main()
