"""Pascal VOC with the annotations of SBD: the labels and lists of the `_aug` splits."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

from dataloader.datasets.cocostuff import read_mat
from dataloader.datasets.files import first_folder, read_list
from utils.classes import ClassTable
from utils.files import atomic_write, remove_unfinished
from utils.images import write_label

CLASSES = Path(__file__).parents[1] / "datasets" / "classes" / "voc.csv"


def augmented_split(sbd: Iterable[str], voc_train: Iterable[str], voc_val: Iterable[str]) -> list[str]:
    """Return the ids of train_aug: what SBD or VOC's train annotate, less VOC's val; 10,582 of the real lists."""
    return sorted({*sbd, *voc_train} - set(voc_val))


def build_augmented(data_dir: Path) -> Iterator[str]:
    """Make the `_aug` splits of VOC from SBD's annotations: label files first, and then the lists that name them.

    Images that VOC itself annotates keep VOC's labels, which are finer.

    Raises:
        DataError: VOC or SBD is not there, or scipy is not installed.
    """
    home = first_folder(data_dir / "VOCdevkit" / "VOC2012")
    sbd = first_folder(data_dir / "benchmark_RELEASE" / "dataset")
    lists = home / "ImageSets" / "Segmentation"
    train, val = (_ids(lists / f"{split}.txt") for split in ("train", "val"))
    wanted = augmented_split([*_ids(sbd / "train.txt"), *_ids(sbd / "val.txt")], train, val)
    target, palette = home / "SegmentationClassAug", ClassTable.read(CLASSES).palette
    target.mkdir(exist_ok=True)
    remove_unfinished(target)
    for name in tqdm([*wanted, *val], desc=target.name, unit="label", leave=False, disable=None):
        label = target / f"{name}.png"
        if label.exists():
            continue
        own = home / "SegmentationClass" / label.name
        with atomic_write(label) as file:
            if own.exists():
                file.write(own.read_bytes())
            else:
                write_label(file, read_mat(sbd / "cls" / f"{name}.mat", "GTcls", "Segmentation"), palette)
    for split, ids in (("train", wanted), ("val", val), ("trainval", sorted({*wanted, *val}))):
        with atomic_write(lists / f"{split}_aug.txt") as file:
            file.write("".join(f"{name}\n" for name in ids).encode())
        yield f"{split}_aug: {len(ids):,} images"


def _ids(path: Path) -> list[str]:
    return [line for _, line in read_list(path)]
