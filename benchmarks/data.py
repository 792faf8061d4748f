"""Images per second of reading and augmenting, beside decoding alone and beside what others use.

    python benchmarks/data.py [--frames CAMVID] [--only voc380 city2048] [--rounds 9] [--malloc] [--json]
                              [--yassouali DIR] [--semseg DIR]
    python benchmarks/data.py --workers 1 2 [...]       # whole loaders of that many processes

One process, one thread, full training augmentation: scale 0.5 to 2, rotate, crop, mirror, blur. Images are frames of
CamVid where that folder is given, else generated scenes, enlarged to the size of VOC, ADE20K and Cityscapes with a
little grain, so that files are about as large as real ones. `--yassouali` and `--semseg` are checkouts of
yassouali/pytorch-segmentation and hszhao/semseg; albumentations takes part where it is installed. Others give what
they give in training: normalized float tensors; we give bytes, which the model normalizes.

Each case runs in processes of its own, as a data worker does, with the allocator as its authors leave it: ours keeps
memory that was freed (`--malloc` gives that to all). They take turns; what is printed is the median over rounds of the
ratio to our loader in the same round, and only that means anything on a machine that does something else as well. Times
are those of the processor; of whole loaders, by the clock.
"""

from __future__ import annotations

import argparse
import collections
import collections.abc
import importlib
import importlib.util
import io
import multiprocessing
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

import dataloader  # noqa: F401  registers
from base import workers
from base.base_dataloader import Loader
from base.base_dataset import BaseDataset, DatasetView
from benchmarks.results import Figure, late, peers, ratios, show
from benchmarks.results import write as write_results
from dataloader.datasets.synthetic import Synthetic
from dataloader.sample_cache import build_cache
from dataloader.transforms.chain import ChainOptions, build_chain
from utils.registry import DATASETS
from utils.schema import Component

OURS, CACHED, LIMIT = "ours", "cached", "decoding alone"
BATCH = 8  # images, of whole loaders
LIFE = 3  # rounds after which processes start anew, since some are slow or fast all their lives, by their heap's luck
FORK = multiprocessing.get_context("fork")
CITY = (7, 11, 17, 7, 8, 21, 20, 13, 26, 24, 33, 0)  # raw ids of Cityscapes for CamVid's classes and void
Case = Callable[[int], Any]


@dataclass(frozen=True)
class Column:
    """A kind of images and what is made of them.

    Args:
        dataset: Type in a config, whose layout the files have.
        size: Height and width of the images.
        code: Format of the images; Cityscapes' files are called .png whatever they are.
        base: Long side before random scaling.
        crop: Side of the crop.
    """

    dataset: str
    size: tuple[int, int]
    code: str
    base: int
    crop: int

    @property
    def label(self) -> str:
        """What a table calls it."""
        return f"{self.size[1]}x{self.size[0]} {FORMATS[self.code]}, base {self.base}, crop {self.crop}"

    @property
    def split(self) -> str:
        return "training" if self.dataset == "ADE20K" else "train"


FORMATS = {".jpg": "JPEG", ".png": "PNG"}
COLUMNS = {
    "voc380": Column("VOC", (360, 480), ".jpg", 400, 380),
    "voc512": Column("VOC", (360, 480), ".jpg", 512, 512),
    "ade512": Column("ADE20K", (512, 683), ".jpg", 683, 512),
    "city400": Column("CityScapes", (1024, 2048), ".png", 400, 380),
    "city2048": Column("CityScapes", (1024, 2048), ".png", 2048, 512),
    "cityjpg400": Column("CityScapes", (1024, 2048), ".jpg", 400, 380),
    "cityjpg2048": Column("CityScapes", (1024, 2048), ".jpg", 2048, 512),
}


# The files -----------------------------------------------------------------------------------------------------------


def frames(folder: Path | None, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images (H, W, 3) uint8 and labels of 0..10 and 11 for void."""
    if folder is None:
        scenes = Synthetic(split="train", length=count, size=(360, 480))
        for index in range(count):
            image, label, _ = scenes.read(index)
            yield image, np.minimum(label, 11)
        return
    files = sorted((folder / "train").glob("*.*"))
    for file in files[:: max(1, len(files) // count)][:count]:
        label = np.array(Image.open(folder / "trainannot" / f"{file.stem}.png"))
        yield np.array(Image.open(file).convert("RGB")), np.minimum(label, 11)


def write(column: Column, root: Path, source: Path | None, count: int) -> list[tuple[Path, Path]]:
    """Files in the layout of the column's dataset, as all loaders here expect it."""
    pairs, names = [], []
    for number, (image, label) in enumerate(frames(source, count)):
        image = cv2.resize(image, column.size[::-1], interpolation=cv2.INTER_CUBIC)
        label = cv2.resize(label, column.size[::-1], interpolation=cv2.INTER_NEAREST)
        if column.size[0] >= 1024:
            grain = np.random.default_rng(number).normal(0, 1.2, column.size)[..., None]
            image = np.clip(image + grain, 0, 255).astype(np.uint8)
        name = f"ulm_{number:06d}_000019"
        names.append(name)
        image_path, label_path = places(column, root, name)
        for path in (image_path, label_path):
            path.parent.mkdir(parents=True, exist_ok=True)
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if column.code == ".jpg" else []
        image_path.write_bytes(cv2.imencode(column.code, image[..., ::-1], quality)[1].tobytes())
        values = {"VOC": np.where(label == 11, 255, label), "ADE20K": (label + 1) % 12}
        picture = Image.fromarray(values.get(column.dataset, np.array(CITY)[label]).astype(np.uint8))
        if column.dataset == "VOC":
            picture.putpalette(np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes())
        picture.save(label_path)
        pairs.append((image_path, label_path))
    if column.dataset == "VOC":
        lists = root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("".join(f"{name}\n" for name in names))
    (root / "list.txt").write_text("".join(f"{image} {label}\n" for image, label in pairs))
    return pairs


def places(column: Column, root: Path, name: str) -> tuple[Path, Path]:
    if column.dataset == "VOC":
        home = root / "VOCdevkit" / "VOC2012"
        return home / "JPEGImages" / f"{name}.jpg", home / "SegmentationClass" / f"{name}.png"
    if column.dataset == "ADE20K":
        return root / "images" / "training" / f"{name}.jpg", root / "annotations" / "training" / f"{name}.png"
    image = root / "leftImg8bit_trainvaltest" / "leftImg8bit" / "train" / "ulm" / f"{name}_leftImg8bit.png"
    label = root / "gtFine_trainvaltest" / "gtFine" / "train" / "ulm" / f"{name}_gtFine_labelIds.png"
    return image, label


# Who takes part ------------------------------------------------------------------------------------------------------


def our_view(column: Column, root: Path, *, cached: bool = False) -> DatasetView:
    dataset: BaseDataset = DATASETS.build(
        Component(column.dataset, {"data_dir": str(root), "split": column.split}), where="args"
    )
    flags = {"base_size": column.base, "crop_size": column.crop, "flip": True, "rotate": True, "blur": True}
    fill = tuple(255 * mean for mean in dataset.mean)
    cache = build_cache(dataset, "disk", folder=root / "cache") if cached else None
    chain = build_chain(ChainOptions(augment=True, **flags), fill, where="args")  # type: ignore[arg-type]
    return DatasetView(dataset, chain, read=cache.read if cache else None)


def ours(column: Column, root: Path, *, cached: bool = False) -> Case:
    view, epochs = our_view(column, root, cached=cached), iter(range(10**9))
    return lambda index: view[next(epochs), index]


def decoding(pairs: Sequence[tuple[Path, Path]]) -> Case:
    def read(index: int) -> Any:
        image, label = pairs[index]
        return cv2.imread(str(image), cv2.IMREAD_COLOR_RGB), np.asarray(Image.open(label))

    return read


def torchvision_case(column: Column, pairs: Sequence[tuple[Path, Path]]) -> Case:
    from torchvision import tv_tensors
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    chain = v2.Compose(
        [
            v2.RandomResize(min_size=short(column, 0.5), max_size=short(column, 2)),
            v2.RandomRotation(10, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
            v2.RandomCrop(column.crop, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: 255}),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.GaussianBlur(3, (0.5, 1.0))]),
            v2.ToDtype({tv_tensors.Image: torch.float32, tv_tensors.Mask: torch.int64}, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def read(index: int) -> Any:
        image, label = pairs[index]
        mask = torch.from_numpy(np.array(Image.open(label)))
        return chain(tv_tensors.Image(decode_image(str(image), ImageReadMode.RGB)), tv_tensors.Mask(mask))

    return read


def short(column: Column, factor: float) -> int:
    """The short side where the long one is `factor` of the base size."""
    return round(column.base * factor * min(column.size) / max(column.size))


def albumentations_case(column: Column, pairs: Sequence[tuple[Path, Path]]) -> Case:
    import albumentations as A
    from albumentations.pytorch import ToTensorV2

    factor = column.base / max(column.size)
    chain = A.Compose(
        [
            A.RandomScale((0.5 * factor - 1, 2 * factor - 1), p=1),
            A.Rotate(10, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255, p=1),
            A.PadIfNeeded(column.crop, column.crop, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255),
            A.RandomCrop(column.crop, column.crop),
            A.HorizontalFlip(),
            A.GaussianBlur((3, 5), (0.5, 1.0)),
            A.Normalize(),
            ToTensorV2(),
        ]
    )

    def read(index: int) -> Any:
        image, label = pairs[index]
        pixels = cv2.imread(str(image), cv2.IMREAD_COLOR_RGB)
        found = chain(image=pixels, mask=np.asarray(Image.open(label)))
        return found["image"], found["mask"].long()

    return read


@contextmanager
def their_modules(folder: Path) -> Iterator[None]:
    """Imports of what is called as ours is: `base`, `utils`, `dataloaders`, `util`."""
    rooms = ("base", "utils", "util", "dataloader", "dataloaders", "models")

    def set_aside() -> dict[str, Any]:
        return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in rooms}

    import torchvision  # noqa: F401  it looks for packages that are only pretended below

    mine, pretended = set_aside(), {}
    for package in ("skimage", "sklearn", "scipy"):  # imported there, and of no use to reading images
        if importlib.util.find_spec(package) is None:
            pretended |= {f"{package}{name}": MagicMock() for name in ("", ".filters", ".utils", ".ndimage", ".io")}
    sys.modules.update(pretended)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        set_aside()
        for name in pretended:
            del sys.modules[name]
        sys.modules.update(mine)


def yassouali_case(column: Column, root: Path, folder: Path) -> Case:
    with their_modules(folder):
        kind = getattr(importlib.import_module("dataloaders"), column.dataset)
        flags = {"scale": True, "flip": True, "rotate": True, "blur": True, "augment": True}
        loader = kind(
            str(root), batch_size=1, split=column.split, crop_size=column.crop, base_size=column.base, **flags
        )
    return loader.dataset.__getitem__


def semseg_case(column: Column, root: Path, folder: Path) -> Case:
    collections.Iterable = collections.abc.Iterable  # type: ignore[attr-defined]  # it was written for Python 3.7
    with their_modules(folder):
        data, tf = (importlib.import_module(f"util.{name}") for name in ("dataset", "transform"))
    mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    factor = column.base / max(column.size)
    chain = tf.Compose(
        [
            tf.RandScale([0.5 * factor, 2 * factor]),
            tf.RandRotate([-10, 10], padding=mean, ignore_label=255),
            tf.RandomGaussianBlur(),
            tf.RandomHorizontalFlip(),
            tf.Crop([column.crop] * 2, crop_type="rand", padding=mean, ignore_label=255),
            tf.ToTensor(),
            tf.Normalize(mean=mean, std=std),
        ]
    )
    return data.SemData("train", "/", str(root / "list.txt"), chain).__getitem__


def cases_of(
    column: Column, root: Path, pairs: Sequence[tuple[Path, Path]], flags: argparse.Namespace
) -> dict[str, Callable[[], Case]]:
    """What makes each case, by its name, ours first."""
    found: dict[str, Callable[[], Case]] = {
        OURS: partial(ours, column, root),
        CACHED: partial(ours, column, root, cached=True),
        LIMIT: partial(decoding, pairs),
        "torchvision v2": partial(torchvision_case, column, pairs),
    }
    if importlib.util.find_spec("albumentations"):
        found["albumentations"] = partial(albumentations_case, column, pairs)
    if flags.yassouali:
        found["yassouali"] = partial(yassouali_case, column, root, flags.yassouali)
    if flags.semseg:
        found["semseg"] = partial(semseg_case, column, root, flags.semseg)
    return found


# Measuring -----------------------------------------------------------------------------------------------------------


def contestant(make: Callable[[], Case], images: int, keep_memory: bool, pipe: Connection) -> None:
    """A process that reads all images whenever it is told to, and says how many seconds that took."""
    if keep_memory:
        workers.keep_memory()
    with redirect_stdout(io.StringIO()):
        case = make()
        for index in range(images):
            case(index)
    pipe.send(0.0)
    while pipe.recv():
        case(0)  # what others left in the processor's caches is not ours
        start = time.thread_time()
        for index in range(images):
            case(index)
        pipe.send(time.thread_time() - start)


def measure(cases: dict[str, Callable[[], Case]], images: int, rounds: int, *, malloc: bool) -> dict[str, list[float]]:
    """Seconds for all images, of each round and case; cases take turns, in a new order each time."""
    rows: dict[str, list[float]] = {name: [] for name in cases}
    order = random.Random(0)
    for first in range(0, rounds, LIFE):
        if first and late():
            break
        pipes: dict[str, Connection] = {}
        for name, make in cases.items():
            pipes[name], theirs = FORK.Pipe()
            keeps = malloc or name in (OURS, CACHED, LIMIT)
            FORK.Process(target=contestant, args=(make, images, keeps, theirs), daemon=True).start()
            theirs.close()  # so that the death of the process ends the waiting for it
            pipes[name].recv()
        for _ in range(first, min(first + LIFE, rounds)):
            for name in order.sample(list(cases), len(cases)):
                pipes[name].send(True)
                rows[name].append(pipes[name].recv())
        for pipe in pipes.values():
            pipe.send(False)
    return rows


def measure_loaders(
    column: Column, root: Path, flags: argparse.Namespace, workers: int, images: int
) -> dict[str, list[float]]:
    """Seconds by the clock for `images` images of whole loaders with `workers` processes, by turns."""
    indices = [index % flags.images for index in range(images)]
    loaders: dict[str, Any] = {}
    for name, cached in ((OURS, False), (CACHED, True)):
        view = our_view(column, root, cached=cached)
        view.indices = indices
        loaders[name] = Loader(view, BATCH, num_workers=workers, training=True, size=(column.crop, column.crop))
    if flags.yassouali:
        with redirect_stdout(io.StringIO()):
            dataset: Any = yassouali_case(column, root, flags.yassouali)
        loaders["yassouali"] = DataLoader(
            Subset(dataset.__self__, indices), BATCH, num_workers=workers, shuffle=True, persistent_workers=True
        )
    rows: dict[str, list[float]] = {name: [] for name in loaders}
    for turn in range(flags.rounds + 1):
        if turn > 2 and late():
            break
        for name, loader in loaders.items():
            start = time.perf_counter()
            for _ in loader.batches(turn) if isinstance(loader, Loader) else loader:
                pass
            if turn:  # in the first one, processes start
                rows[name].append(time.perf_counter() - start)
    return rows


def figures_of(what: str, rows: dict[str, list[float]], images: int, *, pace: bool) -> list[Figure]:
    """A row of the table: our time or pace, with and without a cache, and how many times as long others take.

    Args:
        what: Name of the row.
        rows: Seconds of each round, by case.
        images: That were read in a round.
        pace: Whether to give images/s instead of milliseconds.
    """
    found = []
    for name in (OURS, CACHED):
        each = [images / seconds if pace else 1e3 * seconds / images for seconds in rows[name]]
        found.append(Figure(what, "images/s" if pace else "ms", each, name))
    others = [name for name in rows if name not in (OURS, CACHED)]
    found += [Figure(what, "x", ratios(rows[name], rows[OURS]), name) for name in others]
    if "yassouali" in rows:
        found.append(Figure(what, "x", ratios(rows["yassouali"], rows[CACHED]), "yassouali / cached"))
    return show(found)


def measure_column(column: Column, flags: argparse.Namespace) -> list[Figure]:
    """The rows of a kind of images."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with FORK.Pool(1) as pool:  # so that this process's heap stays as it is at a worker's start
            pairs = pool.apply(write, (column, root, flags.frames, flags.images))
        if not flags.workers:
            cases = cases_of(column, root, pairs, flags)
            rows = measure(cases, flags.images, flags.rounds, malloc=flags.malloc)
            return figures_of(column.label, rows, flags.images, pace=False)
        found: list[Figure] = []
        for workers in flags.workers:
            images = max(1, flags.batches // (4 if column.size[0] > 1000 else 1)) * BATCH
            rows = measure_loaders(column, root, flags, workers, images)
            found += figures_of(f"{workers} worker{'s' * (workers > 1)}: {column.label}", rows, images, pace=True)
        return found


def shrunk(column: Column, factor: int) -> Column:
    """The same in small."""
    height, width = column.size
    return replace(
        column, size=(height // factor, width // factor), base=column.base // factor, crop=column.crop // factor
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second of reading and augmenting.")
    parser.add_argument("--frames", type=Path, help="folder of CamVid, with train/ and trainannot/")
    parser.add_argument("--only", nargs="+", choices=COLUMNS, default=list(COLUMNS))
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, nargs="+", help="measure whole loaders of that many processes instead")
    parser.add_argument("--batches", type=int, default=20, help="of a loader's round; a quarter of it for large images")
    parser.add_argument("--malloc", action="store_true", help="with the allocator's settings of our workers")
    parser.add_argument("--shrink", type=int, default=1, help="divide sizes by this, to try it out")
    parser.add_argument("--yassouali", type=Path, metavar="DIR", help="checkout of yassouali/pytorch-segmentation")
    parser.add_argument("--semseg", type=Path, metavar="DIR", help="checkout of hszhao/semseg")
    parser.add_argument("--json", action="store_true", help="write the figures to benchmarks/results/")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    warnings.filterwarnings("ignore")
    figures: list[Figure] = []
    for name in flags.only:
        figures += measure_column(shrunk(COLUMNS[name], flags.shrink), flags)
    if flags.json and flags.workers:
        others = peers(yassouali=flags.yassouali)
        write_results("loaders", "whole loaders, batches of 8; by the clock", figures, peers=others)
    elif flags.json:
        others = peers("albumentations", yassouali=flags.yassouali, semseg=flags.semseg)
        title = "reading and augmenting an image, one thread; processor time"
        write_results("data", title, figures, peers=others)


if __name__ == "__main__":
    main()
