"""What inference.py takes beside the bare forward passes of its network.

    python benchmarks/inference.py [--config configs/camvid.json] [--images DIR] [--frames 200] [--rounds 5]
                                   [--threads N] [--device cpu] [--json]

By turns in one process: the whole command, from loading the checkpoint to the last PNG, and forward passes of the same
network on the same frames, which lie decoded in memory. Medians of the rounds, and of their ratios. Without --images,
frames of 480x360 are generated. The target is a ratio of at most 1.15.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

import inference
from benchmarks.results import Figure, summary, write
from dataloader.datasets.synthetic import Synthetic
from engine.assemble import build_network, describe, load_predictor, validation_protocol
from engine.check import check_config
from utils import checkpoint
from utils.config import load_config
from utils.devices import choose_device
from utils.find_images import find_images
from utils.images import read_image, write_picture
from utils.predict import as_batch


def write_checkpoint(config_file: Path, path: Path) -> None:
    """Write a checkpoint of an untrained network: what it predicts does not matter for the time that it takes."""
    config = check_config(load_config(config_file))
    model = build_network(config, load_weights=False)
    state = {
        "format": checkpoint.FORMAT,
        **describe(config, {}),
        "protocol": validation_protocol(config).to_json(),
        "epoch": 0,
        "step": 0,
        "state_dict": model.state_dict(),
        "ema": None,
    }
    checkpoint.save(path, state)


def draw_frames(folder: Path, count: int) -> None:
    """Write generated frames of CamVid's size."""
    scenes = Synthetic(split="val", length=count, size=(360, 480), seed=0)
    for index in range(count):
        write_picture(folder / f"{index:03d}.png", np.ascontiguousarray(scenes.read(index).image))


def synchronize(device: torch.device) -> None:
    """Wait for what a GPU still computes."""
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.inference_mode()
def time_of_forward_passes(network: torch.nn.Module, frames: list[Tensor], device: torch.device) -> float:
    """Seconds that the network alone takes, one frame at a time."""
    synchronize(device)
    started = time.perf_counter()
    for frame in frames:
        network(frame)
    synchronize(device)
    return time.perf_counter() - started


def time_of_command(arguments: list[str]) -> float:
    """Seconds that inference.py takes in this process.

    Raises:
        RuntimeError: It failed.
    """
    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        status = inference.main(arguments)
    if status:
        raise RuntimeError(f"inference.py ended with status {status}")
    return time.perf_counter() - started


def measure(config: Path, images: Path | None, count: int, rounds: int, device: str) -> list[Figure]:
    """Measure command and forward passes by turns.

    Args:
        config: Says which network; its weights are random.
        images: Folder of frames; None generates them.
        count: How many frames.
        rounds: How often.
        device: Where, as inference.py takes it.
    """
    where = choose_device(device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "frames").mkdir()
        write_checkpoint(config, folder / "model.pth")
        if images is None:
            draw_frames(folder / "frames", count)
        paths = find_images([str(images or folder / "frames")]).paths[:count]
        frames = [as_batch([read_image(path)]).to(where) for path in paths]
        network = load_predictor(folder / "model.pth", where).model
        command = ["-m", str(folder / "model.pth"), "-o", str(folder / "out"), "-d", device, "-i"]
        command += [str(path) for path in paths]
        time_of_forward_passes(network, frames[:10], where)  # warm
        bare, whole = [], []
        for _ in range(rounds):
            bare.append(time_of_forward_passes(network, frames, where))
            whole.append(time_of_command(command))
    return [
        Figure("bare forward passes", "images/s", [len(frames) / seconds for seconds in bare]),
        Figure("inference.py, from the checkpoint to the last PNG", "images/s", [len(frames) / s for s in whole]),
        Figure("inference.py / bare forward passes", "x", [w / b for w, b in zip(whole, bare, strict=True)]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--config", type=Path, default=Path(__file__).resolve().parent.parent / "configs" / "camvid.json")
    add("--images", type=Path, help="folder of frames (default: generated ones)")
    add("--frames", type=int, default=200)
    add("--rounds", type=int, default=5)
    add("--threads", type=int, help="of torch (default: its own choice)")
    add("--device", default="cpu")
    add("--json", action="store_true", help="write the figures to benchmarks/results/")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    figures = measure(args.config, args.images, args.frames, args.rounds, args.device)
    print(f"{args.frames} frames on {args.device}, {torch.get_num_threads()} threads; medians of {args.rounds} rounds")
    for figure in figures:
        print(summary(figure))
    if args.json:
        title = f"{args.frames} frames, network of {args.config.name}, {args.device}"
        write("inference", title, figures, device=args.device)


if __name__ == "__main__":
    main()
