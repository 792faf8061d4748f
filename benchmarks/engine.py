"""What the trainer costs beside the bare training step, steps of whole networks, and what a checkpoint costs.

    python benchmarks/engine.py [--rounds 7] [--threads 1] [--only loop networks checkpoint] [--yassouali DIR] [--json]

`loop`: rounds of steps of the same network on the same batches, by turns: the bare step (forward, loss, backward,
optimizer), the trainer, and, with `--yassouali`, the trainer of github.com/yassouali/pytorch-segmentation in DIR, which
gets normalized float images and full-size logits, as its own networks give them. `networks`: the bare step of
whole networks, ours in fp32 and in bf16, and theirs. `checkpoint`: how long training pauses to write last.pth. Medians;
of processor time but for `checkpoint`, since other programs disturb it least.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import logging
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
from benchmarks.results import Figure, by_turns, peers, ratios, show, write
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

    def __init__(self, num_classes: int = CLASSES, size: tuple[int, int] = SIZE, steps: int = STEPS) -> None:
        torch.manual_seed(0)
        images = torch.randint(256, (BATCH, *size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
        labels = torch.randint(num_classes, (BATCH, size[0] // 8, size[1] // 8), dtype=torch.uint8)
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
        self.batch, self.batch_size = Batch(images, labels, ("image",) * BATCH), BATCH
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def batches(self, epoch: int = 0, position: int = 0) -> Iterator[Batch]:
        while True:
            yield self.batch

    def prepare(self, epoch: int = 0, position: int = 0) -> None:
        pass


def make_trainer(
    folder: Path,
    arch: Any = ARCH,
    *,
    num_classes: int = CLASSES,
    size: tuple[int, int] = SIZE,
    steps: int = STEPS,
    device: str = "cpu",
    **options: Any,
) -> Trainer:
    """The trainer, on batches in memory.

    Args:
        folder: Of its files.
        arch: The network.
        num_classes: Channels of its logits.
        size: Height and width of the images, multiples of 8.
        steps: Of an epoch.
        device: Where the network is.
        options: Of the trainer's section.
    """
    names = tuple(f"class {index}" for index in range(num_classes))
    classes = ClassTable(names, tuple(distinct_colors(num_classes)), tuple((index,) for index in range(num_classes)))
    model, loader = build_model(arch, num_classes=num_classes).to(device), Memory(num_classes, size, steps)
    optimizer = build_optimizer({"type": "SGD", "args": {"lr": 0.01, "momentum": 0.9}}, model)
    return Trainer(
        TrainerConfig(epochs=1000, val=False, monitor="off", log_per_iter=steps, **options),
        folder,
        model=model,
        criterion=build_criterion("CrossEntropyLoss2d", num_classes=num_classes).to(device),
        optimizer=optimizer,
        schedule=build_scheduler("Poly", optimizer, total_steps=1000 * steps, steps_per_epoch=steps),
        train_loader=loader,  # type: ignore[arg-type]
        val_loader=None,
        classes=classes,
        monitor=Monitor.parse("off", []),
        description={},
    )


def bare(trainer: Trainer) -> None:
    """A round of what no trainer can do without."""
    batch, model = trainer.train_loader.batch, trainer.model.train()  # type: ignore[attr-defined]
    for _ in range(trainer.train_loader.steps):  # type: ignore[attr-defined]
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
    """A model as pytorch-segmentation has them: normalized images to logits of their size."""

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
    import torchvision  # noqa: F401  it looks for packages that are only pretended below

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


def theirs(checkout: Path, folder: Path, size: tuple[int, int], steps: int) -> Callable[[], None]:
    """A round of the trainer in `checkout`, on a model and batches like ours."""
    with foreign(checkout):
        from trainer import Trainer as Theirs  # type: ignore[attr-defined]
        from utils.losses import CrossEntropyLoss2d as TheirLoss  # type: ignore[attr-defined]
    model, batch = build_model(ARCH, num_classes=CLASSES), Memory(size=size).batch
    images, labels = model.normalize(batch.images).contiguous(), batch.labels.long()
    dataset = SimpleNamespace(num_classes=CLASSES)
    loader: Any = SimpleNamespace(batch_size=BATCH, dataset=dataset, MEAN=[0.5] * 3, STD=[0.25] * 3)

    class Loader:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter([(images, labels)] * steps)

        def __len__(self) -> int:
            return steps

        def __getattr__(self, name: str) -> Any:
            return getattr(loader, name)

    section = {"epochs": 1, "save_dir": str(folder), "save_period": 10, "monitor": "off", "early_stop": 10}
    section |= {"tensorboard": True, "log_dir": str(folder), "log_per_iter": steps, "val": False, "val_per_epochs": 1}
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


def loop(rounds: int, shrink: int, yassouali: Path | None) -> list[Figure]:
    """Milliseconds of processor time of a step, bare and by trainers, and ratios within rounds."""
    size, steps = (SIZE[0] // shrink // 8 * 8, SIZE[1] // shrink // 8 * 8), STEPS if shrink == 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        trainers = [make_trainer(Path(folder), size=size, steps=steps) for _ in range(2)]
        calls: dict[str, Callable[[], Any]] = {"bare": lambda: bare(trainers[0]), "ours": lambda: ours(trainers[1])}
        if yassouali is not None:
            calls["theirs"] = theirs(yassouali, Path(folder), size, steps)
        times = steps_by_turns(calls, rounds, 1e3 / steps)
    figures = [
        Figure("bare step: forward, loss, backward, optimizer", "ms", times["bare"]),
        Figure("our trainer, a step", "ms", times["ours"]),
        Figure("our trainer / bare step", "x", ratios(times["ours"], times["bare"])),
    ]
    if "theirs" in times:
        figures.append(Figure("yassouali's trainer, a step", "ms", times["theirs"]))
        figures.append(Figure("our trainer / yassouali's", "x", ratios(times["ours"], times["theirs"])))
    return show(figures)


def steps_by_turns(calls: Mapping[str, Callable[[], Any]], rounds: int, factor: float = 1.0) -> dict[str, list[float]]:
    """Processor time of each call, times `factor`, by turns, after a first round that is not counted."""

    def timer(call: Callable[[], Any]) -> Callable[[], float]:
        return lambda: factor * timed(call, time.process_time)

    for call in calls.values():
        call()
    return by_turns({name: timer(call) for name, call in calls.items()}, rounds)


def networks(rounds: int, shrink: int, yassouali: Path | None) -> list[Figure]:
    """Seconds of processor time of a bare step of whole networks, 2 images of 160x160: ours, in bf16, and theirs."""
    figures: list[Figure] = []
    for name, args in NETWORKS.items():
        make = functools.partial(network_step, name, args, size=160 // shrink)
        calls = {"float32": make(precision=torch.float32), "bf16": make(precision=torch.bfloat16)}
        if yassouali is not None:
            calls["yassouali"] = their_network_step(yassouali, name, args, 160 // shrink)
        times = steps_by_turns(calls, rounds)
        row = ", ".join([name, *["ResNet-50"] * ("backbone" in args)])
        found = [Figure(row, "s", values, kind) for kind, values in times.items()]
        found.append(Figure(row, "x", ratios(times["float32"], times["bf16"]), "float32 / bf16"))
        if yassouali is not None:
            found.append(Figure(row, "x", ratios(times["yassouali"], times["bf16"]), "yassouali / bf16"))
            found.append(Figure(row, "x", ratios(times["float32"], times["yassouali"]), "float32 / yassouali"))
        figures += show(found)
    return figures


NETWORKS: dict[str, dict[str, Any]] = {
    "PSPNet": {"backbone": "resnet50"},
    "DeepLab": {"backbone": "resnet50"},
    "UNet": {},
}


def network_step(
    name: str,
    args: Mapping[str, Any],
    *,
    precision: torch.dtype = torch.float32,
    size: int = 160,
    batch: int = 2,
    device: str = "cpu",
    channels_last: bool = True,
    compiled: bool = False,
) -> Callable[[], None]:
    """A step of one of our networks, from bytes to changed weights.

    Args:
        name: Type of the network.
        args: Its arguments.
        precision: What the network computes in.
        size: Side of the images.
        batch: How many.
        device: Where.
        channels_last: Whether weights are; images always are.
        compiled: Whether the network is.
    """
    torch.manual_seed(0)
    model = build_model({"type": name, "args": dict(args)}, num_classes=CLASSES).train()
    model.to(device, memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    network = torch.compile(model) if compiled else model
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=CLASSES).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randint(256, (batch, size, size, 3), dtype=torch.uint8).permute(0, 3, 1, 2).to(device)
    labels = torch.randint(CLASSES, (batch, size, size), dtype=torch.uint8).to(device)

    def step() -> None:
        with torch.autocast(torch.device(device).type, precision, enabled=precision != torch.float32):
            output = network(images)
        criterion(output, labels, criterion.normalizers(labels))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def their_network_step(checkout: Path, name: str, args: Mapping[str, Any], size: int) -> Callable[[], None]:
    """A step of the network of this name in `checkout`, as its trainer takes it."""
    with foreign(checkout):
        import models as their_models
    model = getattr(their_models, name)(CLASSES, pretrained=False, **args).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.randn(2, 3, size, size), torch.randint(CLASSES, (2, size, size))

    def step() -> None:
        output = model(images)
        outputs = output if isinstance(output, tuple) else (output,)
        losses = [nn.functional.cross_entropy(each, labels, ignore_index=255) for each in outputs]
        (losses[0] + 0.4 * sum(losses[1:])).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def checkpoint_pause(rounds: int, shrink: int) -> list[Figure]:
    """Seconds by the clock that training waits for last.pth, and for as many bytes written plainly."""
    arch = {"type": "DeepLab", "args": {"backbone": "resnet50"}} if shrink == 1 else ARCH
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), arch)
        for parameter in trainer.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.update_weights()

        def beside() -> float:
            with trainer.files.beside():
                return timed(trainer.save_last)

        cases = {
            "plain torch.save": lambda: timed(lambda: torch.save(trainer.state(), Path(folder) / "plain.pth")),
            "written, flushed, checked, renamed": lambda: timed(trainer.save_last),
            "pause of training: copied, the rest in a thread": beside,
        }
        times = by_turns(cases, rounds)
        size = (Path(folder) / "last.pth").stat().st_size / 2**20
    figures = [Figure(what, "s", values) for what, values in times.items()]
    return show([Figure("last.pth of DeepLabV3+-R50 with momentum", "MiB", [size]), *figures])


TITLES = {
    "loop": "a step of 4 images of 160x208, 19 classes, DeepLabV3+ on half a ResNet-18, float32; processor time",
    "networks": "a bare step, 2 images of 160x160, 19 classes; processor time",
    "checkpoint": "writing a checkpoint; by the clock",
}
FILES = {"loop": "engine", "networks": "networks", "checkpoint": "checkpoint"}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes by this, to try it out")
    parser.add_argument("--yassouali", type=Path, metavar="DIR", help="checkout of yassouali/pytorch-segmentation")
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    logging.getLogger("segwright").setLevel(logging.ERROR)
    rounds, shrink, yassouali = arguments.rounds, arguments.shrink, arguments.yassouali
    for name in arguments.only:
        figures = {
            "loop": lambda: loop(rounds, shrink, yassouali),
            "networks": lambda: networks(rounds, shrink, yassouali),
            "checkpoint": lambda: checkpoint_pause(rounds, shrink),
        }[name]()
        if arguments.json:
            others = {} if name == "checkpoint" else peers(yassouali=yassouali)
            write(FILES[name], TITLES[name], figures, peers=others)


if __name__ == "__main__":
    main()
