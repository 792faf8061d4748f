"""Datasets of images with one class per pixel, one subject: what they promise, and views of them."""

from __future__ import annotations

import bisect
import gc
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, cast

import numpy as np

from utils.classes import STRANGE, ClassTable, ranges
from utils.errors import ConfigError, DataError, Fault, Problem
from utils.images import open_reducible, read_image, read_image_for, read_label
from utils.reproducibility import stream
from utils.schema import did_you_mean, show, to_json
from utils.shards import find_packed

Size = tuple[int, int]  # height and width


class Transform(Protocol):
    """Changes an image and its label alike.

    It may have a method and attributes besides:

    - ``size_after(size)``: the size of what it returns; without it, that is unknown.
    - ``cuts``, if true: it also takes arrays that are read only where they are cut, see `BaseDataset.open`.
    - ``reduces``, if true: it also takes JPEGs that are not decoded yet, see `BaseDataset.open_reducible`.
    - ``repeats``, if true: it gives the same few results of an image in every epoch, so that features can be kept.
    """

    def __call__(
        self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator, /
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (H, W, C) and label (H, W), changed; all randomness comes from `rng`."""


def size_after(step: Transform, size: Size | None) -> Size | None:
    """Return the size of every image that `step` makes of images of `size`.

    Args:
        step: A transform, with or without a method of this name that takes and returns what this function does.
        size: Height and width of what goes in; None where they differ from image to image or are not known.

    Returns:
        Height and width of what comes out; None where they differ or the transform does not say.
    """
    rule = getattr(step, "size_after", None)
    return None if rule is None else rule(size)


class Mix(Protocol):
    """Puts a part of another image, and of its label, into an image."""

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        other: Callable[[], tuple[np.ndarray, np.ndarray]],
        rng: np.random.Generator,
        /,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the image (H, W, C) and label (H, W), changed; neither may be written to, for a cache may own them.

        Args:
            other: Reads and augments another example of the set, drawn at random; called only where it is needed.
            rng: All randomness comes from it.
        """


class KeepsSize:
    """A transform whose images stay as large as they were."""

    def size_after(self, size: Size | None) -> Size | None:
        """Return `size`."""
        return size


class Sample(NamedTuple):
    """Where one example lives."""

    key: str  # unique in its split, such as a file name without its ending
    image: Path
    label: Path


@contextmanager
def uncollected() -> Iterator[None]:
    """Let Python not look for unused objects while very many are made that stay, all of which it would look at."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class Item(NamedTuple):
    """One example."""

    image: np.ndarray  # (H, W, C) uint8, RGB; or other channels, also uint16 or float32
    label: np.ndarray  # (H, W) uint8: training ids, or 255 for void
    key: str


@dataclass(eq=False, kw_only=True)
class BaseDataset(ABC):
    """Pairs of image and label files under a folder.

    A subclass says which classes there are and where the files lie. It is a dataclass, so that options of its own
    are fields; none may be named like a loader's or an augmentation's (a test sees to it).

    Args:
        data_dir: Folder that the dataset was unpacked into, or one that `prepare.py pack` made of it.
        split: Which part of it; each dataset names its own.
        label_map: Raw label value to class name, class index or null for void, where files differ from the
            dataset's own numbers. A list of names means that such pixels have one of these classes, and adds those
            that the dataset lacks: where it has no labels of them, its background may be any.
        problems: Receives what is wrong with single examples, which are then passed over; None to raise it. Filled in
            by the program, never by a config.
    """

    data_dir: Path
    split: str
    label_map: dict[str, int | str | tuple[str, ...] | None] | None = None
    problems: list[Problem] | None = field(default=None, repr=False)

    splits: ClassVar[tuple[str, ...]]
    unlabelled: ClassVar[tuple[str, ...]] = ()  # splits whose labels are all void: a benchmark keeps the true ones
    mean: ClassVar[tuple[float, ...]] = (0.485, 0.456, 0.406)  # of ImageNet, where a dataset has none of its own
    std: ClassVar[tuple[float, ...]] = (0.229, 0.224, 0.225)
    channels: ClassVar[int] = 3
    packs: ClassVar[bool] = True  # each example has a label file of its own, which `prepare.py pack` can store
    reading_options: ClassVar[tuple[str, ...]] = ("label_map",)  # that do not decide which files there are
    raw_labels: bool = field(init=False, repr=False, default=True)  # files hold values that `classes` translates

    classes: ClassTable = field(init=False, repr=False)
    samples: Sequence[Any] = field(init=False, repr=False)
    listed: dict[str, Sequence[str]] = field(init=False, repr=False, default_factory=dict)  # entries, by sample's key

    def __post_init__(self) -> None:
        name = type(self).__name__
        if self.split not in self.splits:
            raise ConfigError(f"{name}: no split '{self.split}'. {did_you_mean(self.split, self.splits)}")
        self.classes = self.class_table(**self.options())
        with uncollected():
            self.samples = sorted(self._packed_samples() or self.find_samples(self.data_dir, self.split))
        if not self.samples:
            what = f"{name} found no '{self.split}' images there"
            raise DataError(Problem(Fault.OTHER, self.data_dir, what, "Set data_dir to its folder"))

    def options(self) -> dict[str, Any]:
        """Return what a config may say about the dataset, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "problems"}

    @classmethod
    @abstractmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        """The classes, from the dataset's options alone; no file of the data folder may be needed."""

    @classmethod
    def image_channels(cls, **options: Any) -> int:
        """Channels of the images that ``cls(**options)`` would have."""
        return int(options.get("channels", cls.channels))

    @classmethod
    def class_table(cls, **options: Any) -> ClassTable:
        """The classes that ``cls(**options)`` would have; unlike the constructor, it needs no data folder."""
        table = cls.base_classes(**options)
        return table.mapped(options["label_map"], "label_map") if options.get("label_map") else table

    @abstractmethod
    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        """Find the examples of `split`, in any order.

        What is wrong with some of them goes to ``self.problems`` where that is a list, and else is raised; `pair` and
        `all_present` of dataloader/datasets/files.py do so.
        """

    def listing_options(self) -> dict[str, Any]:
        """Return the options, as plain JSON, that decide which files the dataset consists of."""
        others = {"data_dir", "split", *self.reading_options}
        return {name: to_json(value) for name, value in self.options().items() if name not in others}

    @property
    def sources(self) -> frozenset[str]:
        """What the split is put together from; splits with a source in common may share its images by design."""
        return frozenset({self.split})

    @property
    def takes_unknown(self) -> bool:
        """Whether label values that stand for nothing known are void instead of mistakes."""
        return False

    def _packed_samples(self) -> list[Sample] | None:
        """The examples in a folder of packed splits; None if `data_dir` is none.

        Raises:
            DataError: Something else was packed there.
        """
        packed = find_packed(self.data_dir, self.split) if self.data_dir else None
        if packed is None:
            return None
        mine = {"type": type(self).__name__, "split": self.split, "options": self.listing_options()}
        if packed.about != mine:
            theirs = {**packed.about, **packed.about["options"]}
            mine |= mine["options"]  # type: ignore[arg-type]
            key = next(key for key in mine if key != "options" and theirs.get(key) != mine[key])
            what = f"was packed with {key} {show(theirs.get(key))}, not {show(mine[key])}"
            raise DataError(Problem(Fault.OTHER, packed.folder, what, "Pack the dataset anew, into another folder"))
        self.listed = dict(packed.listed)
        return [Sample(*row) for row in packed.rows]

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Item:
        """The example `index` as it is on disk, at its native size.

        Raises:
            DataError: A file cannot be read, sizes differ, or a label value stands for no class.
        """
        label = self.read_label(index)
        return Item(self.read_image(index, label.shape), label, self.samples[index].key)

    def open(self, index: int) -> Item:
        """The example `index`, as `read` gives it, or arrays of large files that are read where they are cut.

        Such arrays have a shape and a type, can be cut with two slices, and be made whole by `numpy.asarray`.

        Raises:
            DataError: As for `read`; what is wrong with pixels comes up when they are read.
        """
        return self.read(index)

    def open_reducible(self, index: int) -> Item:
        """The example `index`, as `open` gives it, or with a JPEG image that is decoded when it is known how large.

        Raises:
            DataError: As for `open`.
        """
        image = open_reducible(self.samples[index].image) if self.reads_plainly else None
        label = None if image is None else self.read_label(index)
        if image is None or label is None or image.shape[:2] != label.shape:
            return self.open(index)
        return Item(cast("np.ndarray", image), label, self.samples[index].key)

    @property
    def reads_plainly(self) -> bool:
        """Whether JPEG images are used as they are stored."""
        return type(self).read is BaseDataset.read and type(self).read_image is BaseDataset.read_image

    def read_image(self, index: int, label_shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The image of example `index`, (H, W, `channels`), as large as its label if that is known.

        Raises:
            DataError: It cannot be read, or its size is not the label's.
        """
        path = self.samples[index].image
        return read_image(path) if label_shape is None else read_image_for(path, label_shape)

    def read_label(self, index: int) -> np.ndarray:
        """The label of example `index` alone, (H, W) uint8: training ids, or 255 for void.

        Raises:
            DataError: It cannot be read, or a value stands for no class.
        """
        path = self.samples[index].label
        return self.training_ids(self.read_raw(path), path)

    def training_ids(self, raw: np.ndarray, path: Path, at: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Translate raw values of a label, or of a part that begins `at` a row and column, to training ids.

        Raises:
            DataError: A value stands for no class.
        """
        ids = self.classes.marked_ids(raw)
        if (ids == STRANGE).any() and (value := self.classes.unknown(raw)) is not None:
            row, column = np.argwhere(raw == value)[0] + at
            known, void = ranges(frozenset().union(*self.classes.raw_ids)), ranges(self.classes.void_ids)
            what = f"label value {value} at row {row}, column {column} is neither a class ({known}) nor void ({void})"
            fix = f'Say what it means with "label_map" in the loader\'s args: {{"{value}": null}} makes it void'
            raise DataError(Problem(Fault.OTHER, path, what, fix))
        return ids

    def read_raw(self, path: Path) -> np.ndarray:
        """The raw values in a label file, (H, W) uint8; for datasets whose files store them otherwise."""
        return read_label(path)

    def unknown_pixels(self, index: int) -> int:
        """Pixels of label `index` that `read_label` takes for void though they stand for nothing known."""
        return 0


class Examples(Protocol):
    """Numbered examples, of one dataset or of several: what a loader reads and what labels are counted over.

    Attributes:
        seed: With the epoch and the index it decides all randomness of an item, whichever worker loads it.
        on_bad_sample: What is to become of files that cannot be used: "stop" at the first, or "skip" some.
        classes: Those of all labels.
        channels: Of all images.
    """

    seed: int
    on_bad_sample: Literal["stop", "skip"]
    classes: ClassTable
    channels: int

    @property
    def views(self) -> Sequence[DatasetView]:
        """The views that these examples consist of, each of one dataset."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, address: tuple[int, int]) -> Item:
        """The item at `address`, which is (epoch, index): workers that live on cannot be told of a new epoch."""
        ...

    def key(self, index: int) -> str:
        """Name of the image at `index`."""
        ...

    def original(self, index: int) -> Item:
        """The example at `index` as it is on disk.

        Raises:
            DataError: It cannot be used.
        """
        ...

    def label(self, index: int) -> np.ndarray:
        """Its label alone, (H, W) uint8.

        Raises:
            DataError: It cannot be used.
        """
        ...

    def labels(self, indices: Iterable[int] | None = None) -> Iterator[np.ndarray]:
        """Labels as they are on disk, at `indices` or all; where bad samples are skipped, without those.

        Raises:
            DataError: One cannot be used.
        """
        for index in range(len(self)) if indices is None else indices:
            try:
                yield self.label(index)
            except DataError:
                if self.on_bad_sample == "stop":
                    raise


class DatasetView(Examples):
    """Some examples of a dataset, augmented.

    Args:
        dataset: Where the examples come from.
        transform: Called with image, label and a generator; returns both. None leaves them as they are.
        seed: With the epoch and the index it decides all randomness of an item, whichever worker loads it.
        indices: Examples of `dataset` to use; None for all.
        on_bad_sample: What is to become of files that cannot be used: "stop" at the first, or "skip" some.
        read: Gives an example of `dataset` by its number, in arrays that may be read-only; None for ``dataset.read``.
        first: Number of the dataset's first example among those of all that are joined; randomness goes by it.
        mix: Called with the image and label that `transform` made, and a function that gives those of another of
            these examples; None to leave them alone.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        transform: Transform | None,
        *,
        seed: int = 0,
        indices: Sequence[int] | None = None,
        on_bad_sample: Literal["stop", "skip"] = "stop",
        read: Callable[[int], Item] | None = None,
        first: int = 0,
        mix: Mix | None = None,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.indices = range(len(dataset)) if indices is None else indices
        self.on_bad_sample = on_bad_sample
        opened = dataset.open_reducible if getattr(transform, "reduces", False) else dataset.open
        self.read = read or (opened if getattr(transform, "cuts", False) else dataset.read)
        self.first = first
        self.mix = mix
        self.classes = dataset.classes
        self.channels = dataset.channels

    @property
    def views(self) -> Sequence[DatasetView]:
        return (self,)

    def __len__(self) -> int:
        return len(self.indices)

    def key(self, index: int) -> str:
        return str(self.dataset.samples[self.indices[index]].key)

    def original(self, index: int) -> Item:
        return self.dataset.read(int(self.indices[index]))

    def label(self, index: int) -> np.ndarray:
        return self.dataset.read_label(int(self.indices[index]))

    def __getitem__(self, address: tuple[int, int]) -> Item:
        epoch, index = address
        rng = stream(self.seed, "augmentation", epoch, self.first + self.indices[index])
        image, label, key = self._augmented(index, rng)
        if self.mix is not None:
            # Drawn after its own augmentation, which is therefore the same with and without a mix.
            try:
                image, label = self.mix(image, label, lambda: self._another(rng), rng)
            except DataError:  # of the other example, which is spoken of when its turn comes
                if self.on_bad_sample != "skip":
                    raise
        # A cache gives arrays that may be read only, and torch shares memory with what it is given.
        return Item(np.require(image, requirements="W"), np.require(label, requirements="W"), key)

    def _another(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A random example, augmented, to be mixed in."""
        image, label, _ = self._augmented(int(rng.integers(len(self))), rng)
        return image, label

    def _augmented(self, index: int, rng: np.random.Generator) -> Item:
        """The example at `index` as `transform` makes it."""
        image, label, key = self.read(self.indices[index])
        if self.transform is not None:
            try:
                image, label = self.transform(image, label, rng)
            except DataError as error:
                raise DataError(*(f"{key}: {problem}" for problem in error.problems)) from None
        return Item(image, label, key)


class JoinedDatasetView(Examples):
    """The examples of several views, one view's after the other's.

    Args:
        views: Views of datasets with the same classes and number of channels; the first one's options are for all.
    """

    def __init__(self, views: Sequence[DatasetView]) -> None:
        self._views = views
        self._starts = list(itertools.accumulate(map(len, views), initial=0))
        self.seed = views[0].seed
        self.on_bad_sample = views[0].on_bad_sample
        self.classes = views[0].classes
        self.channels = views[0].channels

    @property
    def views(self) -> Sequence[DatasetView]:
        return self._views

    def __len__(self) -> int:
        return self._starts[-1]

    def key(self, index: int) -> str:
        view, index = self._find(index)
        return view.key(index)

    def original(self, index: int) -> Item:
        view, index = self._find(index)
        return view.original(index)

    def label(self, index: int) -> np.ndarray:
        view, index = self._find(index)
        return view.label(index)

    def __getitem__(self, address: tuple[int, int]) -> Item:
        view, index = self._find(address[1])
        return view[address[0], index]

    def _find(self, index: int) -> tuple[DatasetView, int]:
        """The view that holds example `index`, and its number there."""
        number = bisect.bisect_right(self._starts, index) - 1
        return self._views[number], index - self._starts[number]
