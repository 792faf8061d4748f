"""CamVid in two halves, each labelled for half of the classes: ``python -m benchmarks.partial --data CAMVID [--json]``.

Every other image has labels of every other class only. Three networks are trained for equally many steps: with all
labels; with the halves joined, where an unlabelled pixel has one of the classes that its half lacks; and with the
halves merged naively, where it is void. Figures are on the validation frames, which are fully labelled.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import torch

from benchmarks.results import Figure, summary, write
from dataloader.datasets.camvid import CamVid
from dataloader.datasets.files import image_files
from engine import session
from engine.check import check_config
from utils.config import load_config, merge
from utils.log import log_to

ROOT = Path(__file__).resolve().parent.parent
WAYS = {"all labels": "whole", "halves, joined by the marginal loss": "joined", "halves, merged naively": "naive"}


def shrink(source: Path, target: Path, size: tuple[int, int]) -> None:
    """Write the frames of `source`, and the same in two halves, at another width and height."""
    for folder in ("train", "val"):
        images = image_files(source / folder)
        for index, (key, path) in enumerate(sorted(images.items())):
            label = source / f"{folder}annot" / f"{key}.png"
            files = ((path, folder, cv2.INTER_AREA), (label, f"{folder}annot", cv2.INTER_NEAREST))
            for file, below, interpolation in files:
                picture = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
                small = cv2.resize(picture, size, interpolation=interpolation)
                for name in ("whole", f"half{index % 2}"):
                    (target / name / below).mkdir(parents=True, exist_ok=True)
                    cv2.imwrite(str(target / name / below / f"{key}.png"), small)


def sections(folder: Path, way: str, chain: dict[str, Any]) -> list[dict[str, Any]]:
    """The training sets of one of the `WAYS`."""
    batches = {"batch_size": chain.pop("batch_size"), "num_workers": 0}
    if way == "whole":
        return [{"type": "CamVid", "args": {"data_dir": str(folder / "whole"), "split": "train", **batches, **chain}}]
    names = CamVid.base_classes().names
    found = []
    for half in (0, 1):
        others = [index for index in range(len(names)) if index % 2 != half]
        target = [names[index] for index in others] if way == "joined" else None
        args = {"data_dir": str(folder / f"half{half}"), "split": "train", **chain}
        args["label_map"] = {str(index): target for index in others}
        found.append({"type": "CamVid", "args": args})
    found[0]["args"] |= batches
    return found


def config_of(folder: Path, way: str, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The config of CamVid, smaller."""
    width, height = args.size
    chain = {
        "batch_size": args.batch,
        "augment": True,
        "base_size": width,
        "crop_size": [height // 60 * 32, width // 15 * 8],
        "scale": {"range": [0.6, 1.6]},
        "flip": True,
        "cache": "ram",
    }
    changes = {
        "name": way,
        "seed": seed,
        "val_loader": {"args": {"data_dir": str(folder / "whole")}},
        "trainer": {
            "epochs": None,
            "max_steps": args.steps,
            "val_per_epochs": 10**6,  # at the end only
            "precision": "fp32",
            "tensorboard": False,
            "save_dir": str(folder / "saved"),
            "log_dir": str(folder / "runs"),
        },
    }
    raw = merge(load_config(ROOT / "configs" / "camvid.json"), changes)
    return {**raw, "train_loader": sections(folder, way, chain)}


def measure(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Train each way with each seed: mean IoU, IoU of each class, and seconds of processor time, by way."""
    device = torch.device(args.device)
    found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        shrink(args.data, folder, (args.size[0], args.size[1]))
        for seed in range(args.seeds):
            for way, name in WAYS.items():
                before = time.process_time()
                run = session.train(check_config(config_of(folder, name, args, seed)), device)
                last = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
                figures = {key: value for key, value in last.items() if key.startswith(("val/Mean_IoU", "val/Class"))}
                for key, value in {**figures, "seconds": time.process_time() - before}.items():
                    found[way].setdefault(key, []).append(value)
    return found


def figures_of(found: dict[str, dict[str, list[float]]]) -> list[Figure]:
    """Mean IoU of each way, and what share of that with all labels it is."""
    figures = []
    whole = found["all labels"]["val/Mean_IoU"]
    for way, values in found.items():
        mean = values["val/Mean_IoU"]
        figures.append(Figure(f"{way}: mean IoU", "", mean))
        if way != "all labels":
            shares = [100 * each / full for each, full in zip(mean, whole, strict=True)]
            figures.append(Figure(f"{way}: share of that with all labels", "%", shares))
    return figures


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder: train, trainannot, val, valannot")
    parser.add_argument("--size", type=int, nargs=2, default=(240, 180), metavar=("W", "H"), help="of the frames")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="write benchmarks/results/partial.json")
    args = parser.parse_args(argv)
    log_to()
    found = measure(args)
    figures = figures_of(found)
    for figure in figures:
        print(f"{figure.what}: {summary(figure)['median']:g} {figure.unit}".rstrip())
    for way, values in found.items():
        classes = {key.rpartition("/")[2]: values[key][0] for key in values if "Class_IoU" in key}
        print(f"{way}: {', '.join(f'{name} {value:.2f}' for name, value in classes.items())}")
        print(f"{way}: {values['seconds'][0]:.0f} s of processor time")
    if args.json:
        width, height = args.size
        title = f"CamVid at {width}x{height}, {args.steps} steps of {args.batch} images"
        write("partial", title, figures, device=args.device)


if __name__ == "__main__":
    main()
