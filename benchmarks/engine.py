"""What the trainer costs beside the bare training step, what a checkpoint costs, and how long a start takes.

    python benchmarks/engine.py [--rounds 7] [--threads 1] [--only loop networks checkpoint start] [--yassouali DIR]

`loop`: rounds of steps of the same network on the same batches, by turns: the bare step (forward, loss, backward,
optimiser), the trainer, and, with `--yassouali`, the trainer of github.com/yassouali/pytorch-segmentation in DIR, which
gets normalised float images and full-size logits, as its own networks give them. `networks`: the bare step of
whole networks, ours in fp32 and in bf16, and theirs. `checkpoint`: how long training pauses to write last.pth. `start`:
commands in fresh processes. Medians; of processor time but for `checkpoint`, since other programs disturb it least.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from base.base_dataloader import Batch
from base.base_trainer import TrainerConfig
from base.monitor import Monitor
from models.build import build_model
from trainer import Trainer
from utils.classes import ClassTable, distinct_colors
from utils.losses.criterion import build_criterion
from utils.lr_scheduler import build_scheduler
from utils.optimizers import build_optimizer

ROOT = Path(__file__).resolve().parent.parent
CLASSES, BATCH, SIZE = 19, 4, (160, 208)
STEPS = 20  # of a round; the trainer reads its loss and figures once in each, as by default
ARCH = {"type": "DeepLab", "args": {"backbone": {"type": "resnet18", "args": {"width_mult": 0.5}}, "channels": 64}}


class Memory:
    """A loader whose batches are in memory."""

    starts_workers = False

    def __init__(self) -> None:
        torch.manual_seed(0)
        images = torch.randint(256, (BATCH, *SIZE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.randint(CLASSES, (BATCH, SIZE[0] // 8, SIZE[1] // 8), dtype=torch.uint8)
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        self.batch, self.batch_size = Batch(images, labels, ("image",) * BATCH), BATCH

    def __len__(self) -> int:
        return STEPS

    def batches(self, epoch: int = 0, position: int = 0) -> Iterator[Batch]:
        while True:
            yield self.batch

    def prepare(self, epoch: int = 0, position: int = 0) -> None:
        pass


def make_trainer(folder: Path, arch: Any = ARCH) -> Trainer:
    """The trainer, on batches in memory."""
    names = tuple(f"class {index}" for index in range(CLASSES))
    classes = ClassTable(names, tuple(distinct_colors(CLASSES)), tuple((index,) for index in range(CLASSES)))
    model, loader = build_model(arch, num_classes=CLASSES), Memory()
    optimizer = build_optimizer({"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}}, model)
    return Trainer(
        TrainerConfig(epochs=1000, val=False, monitor="off", log_per_iter=STEPS),
        folder,
        model=model,
        criterion=build_criterion("CrossEntropyLoss2d", num_classes=CLASSES),
        optimizer=optimizer,
        schedule=build_scheduler("Poly", optimizer, total_steps=1000 * STEPS, steps_per_epoch=STEPS),
        train_loader=loader,  # type: ignore[arg-type]
        val_loader=None,
        classes=classes,
        monitor=Monitor.parse("off", []),
        description={},
    )


def bare(trainer: Trainer) -> None:
    """A round of what no trainer can do without."""
    batch, model = trainer.train_loader.batch, trainer.model.train()  # type: ignore[attr-defined]
    for _ in range(STEPS):
        loss = trainer.criterion(model(batch.images), batch.labels)["loss"]
        loss.backward()
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)


def ours(trainer: Trainer) -> None:
    """A round of the trainer."""
    trainer.progress.position = 0
    trainer.start_epoch()
    trainer.train_epoch()


class FullSize(nn.Module):
    """A model as pytorch-segmentation has them: normalised images to logits of their size."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model.predict(images).full(images.shape[-2:]).logits


@contextmanager
def foreign(checkout: Path) -> Iterator[None]:
    """Let names of modules mean those in `checkout`, for the imports within."""
    if not (checkout / "trainer.py").is_file():
        sys.exit(f"{checkout}: has no trainer.py. Name a checkout of github.com/yassouali/pytorch-segmentation.")
    mine = {name: sys.modules.pop(name) for name in list(sys.modules) if name.split(".")[0] in OURS}
    for package in ("skimage", "sklearn", "scipy"):  # imported there, and of no use to a step
        if package not in sys.modules and importlib.util.find_spec(package) is None:
            sys.modules.update({f"{package}{name}": MagicMock() for name in ("", ".filters", ".utils", ".ndimage")})
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            sys.modules[f"theirs.{name}"] = sys.modules.pop(name)
        sys.modules.update(mine)


def theirs(checkout: Path, folder: Path) -> Callable[[], None]:
    """A round of the trainer in `checkout`, on a model and batches like ours."""
    with foreign(checkout):
        from trainer import Trainer as Theirs  # type: ignore[attr-defined]
        from utils.losses.cross_entropy import CrossEntropyLoss2d as TheirLoss
    model, batch = build_model(ARCH, num_classes=CLASSES), Memory().batch
    images, labels = model.normalize(batch.images).contiguous(), batch.labels.long()
    dataset = SimpleNamespace(num_classes=CLASSES)
    loader: Any = SimpleNamespace(batch_size=BATCH, dataset=dataset, MEAN=[0.5] * 3, STD=[0.25] * 3)

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(images, labels)] * STEPS)

        def __len__(self) -> int:
            return STEPS

        def __getattr__(self, name: str) -> Any:
            return getattr(loader, name)

    section = {"epochs": 1, "save_dir": str(folder), "save_period": 10, "monitor": "off", "early_stop": 10}
    section |= {"tensorboard": True, "log_dir": str(folder), "log_per_iter": STEPS, "val": False, "val_per_epochs": 1}
    arch = {"type": "x", "args": {"freeze_bn": False}}
    config = {
        "name": "theirs",
        "n_gpu": 0,
        "use_synch_bn": False,
        "arch": arch,
        "trainer": section,
        "optimizer": {"type": "SGD", "differential_lr": False, "args": {"lr": 0.01, "momentum": 0.9}},
        "lr_scheduler": {"type": "Poly", "args": {}},
    }
    built = Theirs(
        model=FullSize(model),
        loss=TheirLoss(ignore_index=255),
        resume=None,
        config=config,
        train_loader=Loader(),
        val_loader=None,
        train_logger=None,
        prefetch=False,
    )
    return lambda: built._train_epoch(1)


OURS = ("trainer", "utils", "base", "models", "dataloader")


def timed(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    call()
    return clock() - start


def loop(rounds: int, yassouali: Path | None) -> list[tuple[str, float, str]]:
    """Milliseconds of processor time of a step, bare and by trainers, and ratios of the rounds' medians."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = [make_trainer(Path(folder)) for _ in range(2)]
        calls: dict[str, Callable[[], Any]] = {"bare": lambda: bare(trainers[0]), "ours": lambda: ours(trainers[1])}
        if yassouali is not None:
            calls["theirs"] = theirs(yassouali, Path(folder))
        for call in calls.values():
            call()
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(timed(call, time.process_time) / STEPS * 1e3)
    ratio = {name: statistics.median(a / b for a, b in zip(times["ours"], t, strict=True)) for name, t in times.items()}
    rows = [("bare step", statistics.median(times["bare"]), "ms")]
    rows += [("our trainer, a step", statistics.median(times["ours"]), "ms"), ("ours / bare", ratio["bare"], "")]
    if "theirs" in times:
        rows += [("yassouali's trainer, a step", statistics.median(times["theirs"]), "ms")]
        rows += [("ours / yassouali's", ratio["theirs"], "")]
    return rows


def networks(rounds: int, yassouali: Path | None) -> list[tuple[str, float, str]]:
    """Seconds of processor time of a bare step of whole networks, 2 images of 160x160: ours, in bf16, and theirs."""
    rows: list[tuple[str, float, str]] = []
    for name, args in NETWORKS.items():
        calls = {"fp32": network_step(name, args, torch.float32), "bf16": network_step(name, args, torch.bfloat16)}
        if yassouali is not None:
            calls["yassouali's"] = their_network_step(yassouali, name, args)
        times: dict[str, list[float]] = {kind: [] for kind in calls}
        for call in calls.values():
            call()
        for _ in range(rounds):
            for kind, call in calls.items():
                times[kind].append(timed(call, time.process_time))
        rows += [(f"{name}, {kind}", statistics.median(values), "s") for kind, values in times.items()]
        for kind in times.keys() - {"fp32"}:
            ratio = statistics.median(a / b for a, b in zip(times["fp32"], times[kind], strict=True))
            rows.append((f"{name}, fp32 / {kind}", ratio, ""))
        if yassouali is not None:
            pairs = zip(times["yassouali's"], times["bf16"], strict=True)
            rows.append((f"{name}, yassouali's / bf16", statistics.median(a / b for a, b in pairs), ""))
    return rows


NETWORKS: dict[str, dict[str, Any]] = {
    "PSPNet": {"backbone": "resnet50"},
    "DeepLab": {"backbone": "resnet50"},
    "UNet": {},
}
SHAPE = (2, 160, 160)  # of the labels


def network_step(name: str, args: Mapping[str, Any], precision: torch.dtype) -> Callable[[], None]:
    """A step of one of our networks; weights and images channels last."""
    model = build_model({"type": name, "args": dict(args)}, num_classes=CLASSES).train()
    model.to(memory_format=torch.channels_last)
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randint(256, (*SHAPE, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(CLASSES, SHAPE, dtype=torch.uint8)

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            output = model(images)
        criterion(output, labels, criterion.normalizers(labels))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def their_network_step(checkout: Path, name: str, args: Mapping[str, Any]) -> Callable[[], None]:
    """A step of the network of this name in `checkout`, as its trainer takes it."""
    with foreign(checkout):
        import models as their_models
    model = getattr(their_models, name)(CLASSES, pretrained=False, **args).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    count, *size = SHAPE
    images, labels = torch.randn(count, 3, *size), torch.randint(CLASSES, SHAPE)

    def step() -> None:
        output = model(images)
        outputs = output if isinstance(output, tuple) else (output,)
        losses = [nn.functional.cross_entropy(each, labels, ignore_index=255) for each in outputs]
        (losses[0] + 0.4 * sum(losses[1:])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def checkpoint_pause(rounds: int) -> list[tuple[str, float, str]]:
    """Seconds that training waits for last.pth, and for as many bytes written plainly."""
    arch = {"type": "DeepLab", "args": {"backbone": "resnet50"}}
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), arch)
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.update_weights()
        pauses, beside, plain = [], [], []
        for _ in range(rounds):
            pauses.append(timed(trainer.save_last))
            with trainer.files.beside():
                beside.append(timed(trainer.save_last))
            plain.append(timed(lambda: torch.save(trainer.state(), Path(folder) / "plain.pth")))
        size = (Path(folder) / "last.pth").stat().st_size / 2**20
    return [
        ("last.pth of DeepLabV3+-R50", size, "MiB"),
        ("pause: written, flushed, checked, renamed", statistics.median(pauses), "s"),
        ("pause in training: copied, and the rest in a thread", statistics.median(beside), "s"),
        ("plain torch.save", statistics.median(plain), "s"),
    ]


UNTIL_FIT = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import base.base_trainer, train
base.base_trainer.BaseTrainer.fit = lambda trainer: os._exit(0)
sys.exit(train.main(sys.argv[1:]))
"""


def start(rounds: int) -> list[tuple[str, float, str]]:
    """Seconds of processor time of commands in fresh processes."""

    def clock() -> float:
        return sum(os.times()[2:4])  # of processes that have ended

    with tempfile.TemporaryDirectory() as folder:
        bad, tiny = Path(folder) / "bad.json", Path(folder) / "tiny.json"
        bad.write_text('{"name": }')
        loader = {"length": 8, "size": [32, 32], "num_workers": 0}
        tiny.write_text(
            json.dumps(
                {
                    "extends": str(ROOT / "config.json"),
                    "train_loader": {"args": {**loader, "batch_size": 4, "base_size": 32, "crop_size": 32}},
                    "val_loader": None,
                    "trainer": {"max_steps": 1, "val": False, "monitor": "off", "save_dir": folder, "log_dir": folder},
                }
            )
        )
        train = [sys.executable, str(ROOT / "train.py")]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "train.py --help": [*train, "--help"],
            "train.py, bad JSON": [*train, "-c", str(bad)],
            "import torch, torchvision, cv2": [sys.executable, "-c", "import torch, torchvision, cv2"],
            "the same and torch._dynamo": [sys.executable, "-c", "import torch, torchvision, cv2, torch._dynamo"],
            "train.py --check": [*train, "-c", str(tiny), "--check"],
            "train.py up to its first step": [sys.executable, "-c", UNTIL_FIT, "-c", str(tiny)],
            "train.py, one step, no TensorBoard": [*train, "-c", str(tiny), "-s", "trainer.tensorboard=false"],
            "train.py, one step, TensorBoard": [*train, "-c", str(tiny)],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(timed(lambda c=command: subprocess.run(c, capture_output=True), clock))
    return [(name, statistics.median(values), "s") for name, values in times.items()]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Cost of the trainer, of checkpoints and of starting.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=["loop", "networks", "checkpoint", "start"])
    parser.add_argument("--yassouali", type=Path, metavar="DIR", help="checkout of yassouali/pytorch-segmentation")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    logging.getLogger("segwright").setLevel(logging.ERROR)
    chosen = arguments.only or ["loop", "networks", "checkpoint", "start"]
    print("| what | figure |\n|---|---|")
    for name in chosen:
        measure = {
            "loop": lambda: loop(arguments.rounds, arguments.yassouali),
            "networks": lambda: networks(arguments.rounds, arguments.yassouali),
            "checkpoint": lambda: checkpoint_pause(arguments.rounds),
            "start": lambda: start(arguments.rounds),
        }[name]
        for what, figure, unit in measure():
            print(f"| {what} | {figure:.3f} {unit}".rstrip() + " |", flush=True)


if __name__ == "__main__":
    main()
