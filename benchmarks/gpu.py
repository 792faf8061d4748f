"""All that only a GPU can show, in less than ten minutes: `python -m benchmarks.gpu`.

    python -m benchmarks.gpu [--parts tests throughput ...] [--frames CAMVID] [--recipe [CONFIG]]
    python -m benchmarks.gpu --device cpu --quick       # tries all of it in small, without a GPU

tests           tests/test_gpu.py
throughput      training steps of whole networks by precision, layout and compilation, and their share of the roofline
losses          time and memory of losses, beside the same in ordinary operations
loader          images/s that a loader gives, and a network that trains from it
syncbn          batch norm over two processes, on one card by gloo, beside one process with the whole batch
precision       short trainings in fp32, bf16, fp16 and compiled, which should come to the same mean IoU
deterministic   what forbidding operations that differ from run to run costs
recipe          a whole training, only with --recipe; it may take longer

Each part is a process of its own that is ended when its minutes are over, and writes gpu_PART.json into
benchmarks/results/ (with --quick nowhere, or to --out). What fails is recorded with its line; the rest goes on. With
--frames, trainings are of CamVid, else of generated scenes. Where the code was copied without its repository, set
BENCHMARK_COMMIT. Ends with 1 if anything failed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import results
from benchmarks.all import kill_group
from benchmarks.results import Figure, beside, by_turns, late, ratios

ROOT = Path(__file__).resolve().parent.parent
LAST = 0.8  # of a part's minutes; from then on no case is begun
CLASSES = (21, 150)  # of the losses' table
TOLERANCE = 5.0  # points of mean IoU between short trainings; two of one kind differ by one or two


class Record:
    """What a part has found so far; in its file after each case, so that nothing is lost with the process.

    Args:
        part: Its name.
        flags: Of the command line.
    """

    def __init__(self, part: str, flags: argparse.Namespace) -> None:
        self.part = part
        self.device = flags.device
        self.figures: list[Figure] = []
        self.failed: dict[str, str] = {}

    def attempt(self, what: str, measure: Callable[[], list[Figure]]) -> list[Figure]:
        """Take down what `measure` returns, or that it failed; returns the figures."""
        found: list[Figure] = []
        if late():
            self.fail(what, "left out, since the part's time was over")
            return found
        try:
            found = results.show(measure())
            self.figures += found
        except Exception as error:
            self.fail(what, f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.write()
        return found

    def fail(self, what: str, line: str) -> None:
        """Take down that something failed."""
        self.failed[what] = line[:300]
        print(f"{what}: FAILED: {line}", flush=True)
        self.write()

    def write(self) -> None:
        title = PARTS[self.part].title
        results.write(f"gpu_{self.part}", title, self.figures, device=self.device, failed=self.failed)


def synchronize(device: str) -> None:
    """Wait for what a GPU still computes."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], Any], device: str, repeats: int = 1) -> float:
    """Seconds by the clock of a call, on an idle device to an idle device."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / repeats


# The suite ------------------------------------------------------------------------------------------------------------


def run_tests(record: Record, flags: argparse.Namespace) -> None:
    """Run tests/test_gpu.py; each test that fails is a failure of its own."""

    def suite() -> list[Figure]:
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rf", "--tb=line", "tests/test_gpu.py"]
        answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        print(answer.stdout[-4000:], answer.stderr[-2000:], flush=True)
        for name, reason in re.findall(r"^FAILED tests/test_gpu\.py::(\S+)(?: - (.*))?$", answer.stdout, re.MULTILINE):
            record.fail(name, reason or "failed")
        counts = {
            word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", answer.stdout)
        }
        if not counts:
            raise RuntimeError(f"pytest ended with {answer.returncode}: {(answer.stdout + answer.stderr)[-200:]}")
        return [Figure(f"tests/test_gpu.py, {word}", "tests", [number]) for word, number in counts.items()]

    record.attempt("tests/test_gpu.py", suite)


# Training steps -------------------------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network to take steps of."""

    label: str
    kind: str
    args: dict[str, Any]
    size: int
    batch: int


NETWORKS = (
    Network("DeepLabV3+-R50, 512x512", "DeepLab", {"backbone": "resnet50", "pretrained": False}, 512, 16),
    Network("DeepLabV3+-R50, 1024x1024", "DeepLab", {"backbone": "resnet50", "pretrained": False}, 1024, 4),
    Network("PSPNet-R101, 512x512", "PSPNet", {"backbone": "resnet101", "pretrained": False}, 512, 8),
    Network("UNet, 512x512", "UNet", {}, 512, 16),
)
SMALL = (
    Network(
        "DeepLabV3+ on half a ResNet-18, 64x64",
        "DeepLab",
        {"backbone": {"type": "resnet18", "args": {"width_mult": 0.5}}, "pretrained": False},
        64,
        2,
    ),
)
MODES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": torch.float32, "channels_last": False},
    "fp32, channels last": {"precision": torch.float32},
    "bf16": {"precision": torch.bfloat16, "channels_last": False},
    "bf16, channels last": {"precision": torch.bfloat16},
    "bf16, channels last, compiled": {"precision": torch.bfloat16, "compiled": True},
}


def throughput(record: Record, flags: argparse.Namespace) -> None:
    """Images per second of every network in every mode, eager ones first; shares of what matrix products reach."""
    peaks: dict[str, float] = {}
    for name, precision in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        for figure in record.attempt(f"peak of {name}", functools.partial(peak, name, precision, flags)):
            peaks[name] = statistics.median(figure.values)
    modes = ["fp32", "bf16, channels last"] if flags.quick else MODES  # to compile takes a minute and a compiler
    for mode in modes:
        for net in SMALL if flags.quick else NETWORKS:
            call = functools.partial(pace_of, net, mode, peaks.get(mode[:4], 0.0), flags)
            record.attempt(f"{net.label}, {mode}", call)


def peak(name: str, precision: torch.dtype, flags: argparse.Namespace) -> list[Figure]:
    """TFLOP/s of a large matrix product, float32 by TF32 where a GPU has it, as its convolutions do."""
    side = 256 if flags.quick else 8192
    a, b = (torch.randn(side, side, device=flags.device).to(precision) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        seconds_of(lambda: a @ b, flags.device, 3)
        values = [2 * side**3 / seconds_of(lambda: a @ b, flags.device, 10) / 1e12 for _ in range(5)]
    finally:
        torch.set_float32_matmul_precision(before)
    return [Figure("product of two large matrices", "TFLOP/s", values, name)]


@functools.cache
def flops_of_image(kind: str, args: str, size: int, device: str) -> float:
    """Floating-point operations of convolutions and products, forward and backward, for an image."""
    from benchmarks.engine import network_step

    step = network_step(kind, json.loads(args), size=size, batch=2, device=device)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 2


def pace_of(net: Network, mode: str, peak_tflops: float, flags: argparse.Namespace) -> list[Figure]:
    """Images per second, and their share of the peak; with half the batch where memory does not suffice."""
    from benchmarks.engine import network_step

    batch = net.batch
    while True:
        try:
            step = network_step(net.kind, net.args, size=net.size, batch=batch, device=flags.device, **MODES[mode])
            for _ in range(3):
                step()
            break
        except torch.OutOfMemoryError:
            if batch <= 2:
                raise
            batch //= 2
            gc.collect()
            torch.cuda.empty_cache()
    repeats = max(1, min(20, int(0.5 / seconds_of(step, flags.device))))
    rounds = 2 if flags.quick else 5
    pace = [batch / seconds_of(step, flags.device, repeats) for _ in range(rounds)]
    figures = [Figure(f"{net.label}, batch {batch}", "images/s", pace, mode)]
    if peak_tflops:
        flops = flops_of_image(net.kind, json.dumps(net.args), net.size, flags.device)
        share = [100 * each * flops / peak_tflops / 1e12 for each in pace]
        figures.append(Figure(f"{net.label}, share of the product's TFLOP/s", "%", share, mode))
    if "compiled" in MODES[mode]:
        torch._dynamo.reset()
    return figures


# Losses ---------------------------------------------------------------------------------------------------------------


def losses_part(record: Record, flags: argparse.Namespace) -> None:
    """Milliseconds and, on a GPU, peak memory of losses, ours and plain."""
    from benchmarks import losses

    for num_classes in (5,) if flags.quick else CLASSES:
        logits, labels = losses.inputs(num_classes, 8 if flags.quick else 1)
        logits, labels = logits.to(flags.device), labels.to(flags.device)
        for name, plain in losses.PLAIN.items():
            what = f"{num_classes} classes: {losses.NAMES[name]}"
            cases = {"ours": on_device(losses.OURS[name], flags.device), "plain torch": plain}
            record.attempt(what, functools.partial(loss_row, what, cases, logits, labels, flags))


def on_device(loss: Any, device: str) -> Any:
    return loss.to(device) if isinstance(loss, torch.nn.Module) else loss


def loss_row(
    what: str, cases: dict[str, Any], logits: torch.Tensor, labels: torch.Tensor, flags: argparse.Namespace
) -> list[Figure]:
    """Time and memory of a loss."""

    def step(case: Any) -> None:
        case(logits.detach().requires_grad_(), labels).backward()

    for case in cases.values():
        step(case)
    turns = {
        who: lambda case=case: 1e3 * seconds_of(lambda: step(case), flags.device, 3) for who, case in cases.items()
    }
    figures = beside(what, by_turns(turns, 2 if flags.quick else 5))
    for who, case in cases.items():
        if flags.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step(case)
            taken = (torch.cuda.max_memory_allocated() - before) / 1e6
            figures.append(Figure(what, "MB", [taken], f"{who}, memory"))
    return figures


# Loader ---------------------------------------------------------------------------------------------------------------


def loader_part(record: Record, flags: argparse.Namespace) -> None:
    """What a loader gives alone, and what a network gets from it, beside the same from memory."""
    from benchmarks import data

    warnings.filterwarnings("ignore")
    shrink = 8 if flags.quick else 1
    names = ("voc380",) if flags.quick else ("voc512", "cityjpg2048")
    workers = 1 if flags.quick else max(1, (os.cpu_count() or 2) - 1)
    for name in names:
        column = data.shrunk(data.COLUMNS[name], shrink)
        with tempfile.TemporaryDirectory() as folder:
            data.write(column, Path(folder), None, 4 if flags.quick else 16)
            for cached in (False, True):
                what = f"{column.label}{', cached' if cached else ''}, {workers} workers"
                call = functools.partial(loader_row, what, column, Path(folder), cached, workers, flags)
                record.attempt(what, call)


def loader_row(
    what: str, column: Any, root: Path, cached: bool, workers: int, flags: argparse.Namespace
) -> list[Figure]:
    """Images/s of a loader, of a network fed by it, and of the network alone."""
    from base.base_dataloader import Batch, DevicePrefetcher, Loader
    from benchmarks import data
    from models.build import build_model
    from utils.losses.criterion import build_criterion

    batch, count = (2, 2) if flags.quick else (16, 40)
    view = data.our_view(column, root, cached=cached)
    view.indices = [index % len(view.indices) for index in range(batch * count)]
    loader = Loader(view, batch, num_workers=workers, training=True, size=(column.crop, column.crop))
    net = SMALL[0] if flags.quick else NETWORKS[0]
    num_classes = len(view.dataset.classes)
    model = build_model({"type": net.kind, "args": net.args}, num_classes=num_classes).train()
    model.to(flags.device, memory_format=torch.channels_last)
    criterion = build_criterion("CrossEntropyLoss2d", num_classes=num_classes).to(flags.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    move = DevicePrefetcher(torch.device(flags.device))
    kind = torch.device(flags.device).type

    def train(batches: Iterator[Batch]) -> None:
        for each in batches:
            images, labels = each.images, each.labels
            with torch.autocast(kind, torch.bfloat16):
                output = model(images)
            criterion(output, labels, criterion.normalizers(labels))["loss"].backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def drain(epoch: int) -> None:
        for _ in loader.batches(epoch):
            pass

    drain(0)  # in which processes start
    first = move(next(iter(loader.batches(1))))
    train(iter([first]))
    images = batch * count
    pace: dict[str, list[float]] = {"loader": [], "network from memory": [], "network from loader": []}
    for turn in range(1 if flags.quick else 3):
        pace["loader"].append(images / seconds_of(functools.partial(drain, 3 * turn + 2), flags.device))
        alone = seconds_of(lambda: train(iter([first] * count)), flags.device)
        fed = seconds_of(lambda turn=turn: train(map(move, loader.batches(3 * turn + 3))), flags.device)
        pace["network from memory"].append(images / alone)
        pace["network from loader"].append(images / fed)
    figures = [Figure(what, "images/s", values, column) for column, values in pace.items()]
    share = ratios(pace["network from loader"], pace["network from memory"])
    return [*figures, Figure(what, "x", share, "from loader / from memory")]


# Batch norm over processes --------------------------------------------------------------------------------------------


def syncbn(record: Record, flags: argparse.Namespace) -> None:
    """Gradients and running statistics of two processes with half the batch, against one with all of it."""

    def compare() -> list[Figure]:
        from utils import distributed

        with tempfile.TemporaryDirectory() as folder:
            arguments = ["--rank-of", folder, "--device", flags.device]
            found = []
            for processes in (1, 2):
                status = distributed.launch("benchmarks.gpu", arguments, processes)
                if status:
                    raise RuntimeError(f"{processes} processes ended with {status}")
                found.append(torch.load(Path(folder) / f"{processes}.pt"))
        worst = {}
        for kind in ("gradients", "statistics"):
            pairs = zip(found[0][kind], found[1][kind], strict=True)
            worst[kind] = max(float((one - two).abs().max() / one.abs().max().clamp(min=1e-6)) for one, two in pairs)
        if max(worst.values()) > 1e-2:
            raise RuntimeError(f"two processes differ from one: {worst}")
        return [
            Figure(f"two processes - one: largest difference of {kind}, of the largest", "", [v])
            for kind, v in worst.items()
        ]

    record.attempt("two processes", compare)


def syncbn_rank(folder: Path, device_name: str) -> None:
    """Take a step on this process's share of a batch; the first writes gradients and running statistics.

    On a CPU, which has no batch norm over processes, statistics stay as they are.
    """
    from models.build import build_model
    from utils import distributed
    from utils.sync_batchnorm import synchronize_norms

    warnings.filterwarnings("ignore")
    torch.backends.cudnn.allow_tf32 = False
    kind = torch.device(device_name).type
    device = (
        torch.device("cuda", distributed.announced_process().rank % torch.cuda.device_count())
        if kind == "cuda"
        else torch.device("cpu")
    )
    args = {
        "backbone": {"type": "resnet18", "args": {"width_mult": 0.5}},
        "pretrained": False,
        "freeze_bn": kind == "cpu",
    }
    with distributed.joined(device):
        torch.manual_seed(0)
        model = build_model({"type": "DeepLab", "args": args}, num_classes=5).to(device).train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
                module.p = 0.0
        images = torch.randint(256, (8, 3, 65, 97), dtype=torch.uint8)
        images[4:] //= 2  # so that the halves have statistics of their own
        if kind == "cuda":
            synchronize_norms(model, distributed.world_size())
        network = distributed.wrap(model)
        share = images.chunk(distributed.world_size())[distributed.rank()].to(device)
        network(share).logits.float().square().mean().backward()
        if distributed.is_first():
            gradients = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
            statistics_ = [value.float().cpu() for name, value in model.named_buffers() if "running" in name]
            found = {"gradients": gradients, "statistics": statistics_}
            torch.save(found, folder / f"{distributed.world_size()}.pt")


# Trainings ------------------------------------------------------------------------------------------------------------


def train(config: Path, flags: argparse.Namespace, *settings: str) -> tuple[float, float]:
    """Train; returns mean IoU in percent, and minutes.

    Raises:
        RuntimeError: It failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "train.py"), "-c", str(config), "-d", flags.device]
        chosen = [*settings, f"trainer.save_dir={folder}", f"trainer.log_dir={folder}", "trainer.tensorboard=false"]
        if flags.frames:
            chosen += [f"{loader}.args.data_dir={flags.frames}" for loader in ("train_loader", "val_loader")]
        for setting in chosen:
            command += ["-s", setting]
        start = time.perf_counter()
        answer = subprocess.run(command, capture_output=True, text=True)
        minutes = (time.perf_counter() - start) / 60
        if answer.returncode:
            lines = [line for line in answer.stderr.splitlines() if line.strip()]
            raise RuntimeError(f"train.py ended with {answer.returncode}: {lines[-1] if lines else ''}")
        (path,) = Path(folder).glob("*/2*/metrics.jsonl")
        found = [json.loads(row) for row in path.read_text().splitlines()]
    return 100 * max(row["val/Mean_IoU"] for row in found if "val/Mean_IoU" in row), minutes


def precision_part(record: Record, flags: argparse.Namespace) -> None:
    """Short trainings that differ in how they compute; config.json's scenes, or CamVid where it is given."""
    config = ROOT / ("configs/camvid.json" if flags.frames else "config.json")
    settings = ["trainer.epochs=6", "trainer.val_per_epochs=6"] if flags.frames else ["trainer.epochs=5"]
    workers = min(8, os.cpu_count() or 1) if flags.device.startswith("cuda") else 0
    settings.append(f"train_loader.args.num_workers={workers}")
    if flags.quick:
        settings = ["trainer.epochs=1", "trainer.val_per_epochs=1"]
        settings += [f"{loader}.args.size=[64,96]" for loader in ("train_loader", "val_loader")]
        settings += ["train_loader.args.length=16", "val_loader.args.length=2", "train_loader.args.crop_size=64"]
    modes = {"fp32": ["trainer.precision=fp32"], "bf16": ["trainer.precision=bf16"], "fp16": ["trainer.precision=fp16"]}
    modes["bf16, compiled"] = ["trainer.precision=bf16", "trainer.compile=true"]
    if flags.quick:  # fp16 is for GPUs, and compiling takes a minute
        modes = {"fp32": modes["fp32"], "bf16": modes["bf16"]}

    reached: dict[str, float] = {}

    def row(mode: str) -> list[Figure]:
        reached[mode], minutes = train(config, flags, *settings, *modes[mode])
        apart = reached[mode] - reached.get("fp32", reached[mode])
        if abs(apart) > TOLERANCE:
            raise RuntimeError(f"mean IoU {reached[mode]:.1f} is {apart:+.1f} points from that in fp32")
        return [
            Figure(mode, "%", [reached[mode]], "mean IoU"),
            Figure(mode, "points", [apart], "minus fp32"),
            Figure(mode, "minutes", [minutes], "time"),
        ]

    for mode in modes:
        record.attempt(mode, functools.partial(row, mode))


def deterministic_part(record: Record, flags: argparse.Namespace) -> None:
    """Steps with and without operations that differ from run to run, by turns."""
    from benchmarks.engine import network_step

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for net in (SMALL if flags.quick else NETWORKS)[:2]:

        def row(net: Network = net) -> list[Figure]:
            batch = min(net.batch, 8)
            step = network_step(
                net.kind, net.args, size=net.size, batch=batch, device=flags.device, precision=torch.bfloat16
            )

            def timer(enabled: bool) -> Callable[[], float]:
                def run() -> float:
                    torch.use_deterministic_algorithms(enabled)
                    try:
                        step()
                        return 1e3 * seconds_of(step, flags.device, 2 if flags.quick else 10)
                    finally:
                        torch.use_deterministic_algorithms(False)

                return run

            times = by_turns({"free": timer(False), "deterministic": timer(True)}, 2 if flags.quick else 5)
            return beside(f"{net.label}, batch {batch}", times, first="free")

        record.attempt(net.label, row)


def recipe(record: Record, flags: argparse.Namespace) -> None:
    """Train the recipe as it is."""

    def row() -> list[Figure]:
        quick = ["trainer.epochs=1", "trainer.val_per_epochs=1"] if flags.quick else []
        value, minutes = train(flags.recipe, flags, *quick)
        return [
            Figure(flags.recipe.name, "%", [value], "mean IoU"),
            Figure(flags.recipe.name, "minutes", [minutes], "time"),
        ]

    record.attempt("recipe", row)


# The command ----------------------------------------------------------------------------------------------------------


class Part(NamedTuple):
    """A part: what it does, after how many minutes it is ended, and the head of its table."""

    call: Callable[[Record, argparse.Namespace], None]
    minutes: float
    title: str


PARTS = {
    "tests": Part(run_tests, 2.25, "the suite's tests for GPUs"),
    "throughput": Part(throughput, 3, "training steps"),
    "losses": Part(losses_part, 0.4, "losses, 64x64 logits to 512x512 labels, 4 images, forward and backward"),
    "loader": Part(loader_part, 0.75, "DeepLabV3+-R50 in bf16, channels last, fed by a loader"),
    "syncbn": Part(syncbn, 0.6, "batch norm over processes"),
    "precision": Part(precision_part, 2.25, "short trainings"),
    "deterministic": Part(deterministic_part, 0.5, "a step in bf16, channels last, ms"),
    "recipe": Part(recipe, 30, "training"),
}


def run_part(name: str, flags: argparse.Namespace, folder: Path, rest: Sequence[str]) -> dict[str, str]:
    """Run a part in a process of its own; returns what failed."""
    path = folder / f"gpu_{name}.json"
    path.unlink(missing_ok=True)
    minutes = PARTS[name].minutes * (4 if flags.quick else 1)  # on whatever machine it is tried
    variables = {**os.environ, results.TO: str(folder), results.LATE: str(time.time() + LAST * 60 * minutes)}
    command = [sys.executable, "-m", "benchmarks.gpu", *rest, "--part", name]
    print(f"\n== {name}", flush=True)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stderr=errors, start_new_session=True)
        line = ""
        try:
            if process.wait(60 * minutes):
                errors.seek(0)
                said = [each.strip() for each in errors if each.strip()]
                line = f"ended with status {process.returncode}: {said[-1] if said else ''}"
        except subprocess.TimeoutExpired:
            line = f"ended after {minutes:g} minutes"
        finally:
            kill_group(process.pid)  # with whatever it started
            process.wait()
    if not path.exists():
        results.write(f"gpu_{name}", PARTS[name].title, [], folder=folder)
    content = json.loads(path.read_text())
    if line:
        print(f"{name}: FAILED: {line}", flush=True)
        content.setdefault("failed", {})[name] = line[:300]
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    failed: dict[str, str] = content.get("failed", {})
    return failed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--parts", nargs="+", choices=PARTS, default=[name for name in PARTS if name != "recipe"])
    add("--device", default="cuda")
    add("--quick", action="store_true", help="try everything in small, and write nowhere")
    add("--frames", type=Path, metavar="CAMVID", help="folder of CamVid, with train/ and trainannot/")
    add(
        "--recipe", type=Path, nargs="?", const=ROOT / "configs" / "camvid.json", metavar="CONFIG", help="train it, too"
    )
    add("--out", type=Path, metavar="DIR", help="write there instead of to benchmarks/results/")
    add("--part", choices=PARTS, help=argparse.SUPPRESS)
    add("--rank-of", type=Path, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    for name in ("frames", "recipe", "out"):
        if getattr(flags, name):
            setattr(flags, name, getattr(flags, name).resolve())
    if flags.rank_of:
        syncbn_rank(flags.rank_of, flags.device)
        return 0
    if flags.device.startswith("cuda") and not torch.cuda.is_available():
        print("error: --device: no GPU is visible. Use --device cpu --quick to try it.", file=sys.stderr)
        return 2
    if flags.part:
        PARTS[flags.part].call(Record(flags.part, flags), flags)
        return 0
    return run_all(flags)


def run_all(flags: argparse.Namespace) -> int:
    """Run the parts one after the other, and the pages' tables."""
    rest = ["--device", flags.device, *["--quick"] * flags.quick]
    rest += ["--frames", str(flags.frames)] if flags.frames else []
    rest += ["--recipe", str(flags.recipe)] if flags.recipe else []
    names = [*flags.parts, *["recipe"] * (flags.recipe is not None and "recipe" not in flags.parts)]
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        trial = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = flags.out or (trial if flags.quick else results.FOLDER)
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            start = time.monotonic()
            found = run_part(name, flags, folder, rest)
            failed |= {f"{name}, {what}": line for what, line in found.items()}
            print(f"{name}: {(time.monotonic() - start) / 60:.1f} of {PARTS[name].minutes:g} minutes", flush=True)
        if folder == results.FOLDER:
            results.main()
    for what, line in failed.items():
        print(f"FAILED: {what}: {line}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
