"""Your own images and masks, described in the config."""

# Without `from __future__ import annotations`: Python 3.10 cannot evaluate an InitVar that stands in a text.
import csv
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast

import numpy as np

from base.base_dataset import BaseDataset, Item, Sample
from dataloader.datasets.files import all_present, below, color_labels, image_files, pair, read_list, refuse_label_map
from dataloader.datasets.naming import guess_names
from utils.classes import IGNORE, ClassTable, default_colors
from utils.errors import ConfigError, DataError, Fault, MissingData, Problem
from utils.images import ARRAYS, MOST_CHANNELS, read_bands, read_label, read_label_colors
from utils.rasters import PartlyRead, open_large_image, open_large_label
from utils.registry import DATASETS
from utils.schema import Between, Mismatch, convert

logger = logging.getLogger("segwright")

COLORS_FIX = (
    'Set "masks": "color" and give each class its color, {"name": "road", "color": [128, 64, 128]}; '
    "`python prepare.py init` writes both, and `python prepare.py convert` makes index masks"
)

Value = Annotated[int, Between(0, 255)]
Color = tuple[Value, Value, Value]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class.

    Args:
        name: Its name.
        value: Its value in the masks, or several; its place in the list, from 0, if not given.
        color: Its color, in masks that are drawn in colors and in pictures that are made.
    """

    name: str
    value: Value | tuple[Value, ...] | None = None
    color: Color | None = None


ClassSource = Path | tuple[str | ClassRow, ...]


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class Folder(BaseDataset):
    """Images and masks with the same names in two folders, or named in a list.

    Without a list, images lie in ``data_dir/images/`` for split "all", and in ``data_dir/images/SPLIT/`` or
    ``data_dir/SPLIT/images/`` for other splits; masks likewise.

    Args:
        classes: Names of the classes, or an object with name, value and color for each, or the path of a JSON file
            with either, or of a CSV file with columns name and, if wanted, raw_id (or value) and red, green, blue.
        masks: What masks hold: the classes' values (gray or palette images), or their colors.
        void: Values, or colors, of pixels that have no class; 255 unless a class has it.
        unknown: Refuse what is neither a class nor void, or take it for void.
        image_dir: Name of the folders with images.
        mask_dir: Name of the folders with masks.
        mask_suffix: What mask names have after the image's name, such as "_mask".
        mask_prefix: What they have before it.
        image_suffix: What image names have after what they share with their masks', such as "_sat".
        image_prefix: What they have before it.
        missing_masks: Refuse images that have no mask, or skip them and say how many they are.
        nested: Take the images in folders below these, too; a mask lies in the folder that is called like its image's.
        list_file: Text file below data_dir with an image and a mask in each line, separated by a tab or spaces, both
            relative to data_dir; "{split}" in its name stands for the split. Behind tabs, further entries may follow,
            such as the name of a video, which `val_split` can go by.
        channels: Channels of the images, if they are not 3 of RGB: from `.npy` files (height, width, channels), TIFF
            files of several bands or gray images, with values of 8 or 16 bits or float32 as they are. It must be
            said to the network too, as `arch.args.in_channels`; "normalization" needs a number for each, or "image".
    """

    classes: InitVar[ClassSource]  # an argument; the attribute of this name is the ClassTable that it gives
    masks: Literal["index", "color"] = "index"
    void: tuple[Value | Color, ...] = (255,)
    unknown: Literal["refuse", "void"] = "refuse"
    image_dir: str = "images"
    mask_dir: str = "masks"
    mask_suffix: str = ""
    mask_prefix: str = ""
    image_suffix: str = ""
    image_prefix: str = ""
    missing_masks: Literal["refuse", "skip"] = "refuse"
    nested: bool = False
    list_file: str | None = None
    channels: Annotated[int, Between(1, MOST_CHANNELS)] = 3  # type: ignore[misc]  # of each folder, not of the class

    class_source: ClassSource = field(init=False, repr=False)
    reading_options: ClassVar[tuple[str, ...]] = (
        *("label_map", "classes", "masks", "void", "unknown", "channels"),
        "missing_masks",  # of a packed split, what was there then
    )
    splits: ClassVar[tuple[str, ...]] = ("all", "train", "val", "test")

    def __post_init__(self, classes: ClassSource) -> None:
        self.class_source = classes
        super().__post_init__()
        self.raw_labels = self.masks == "index"

    def options(self) -> dict[str, Any]:
        return {**super().options(), "classes": self.class_source}

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        rows, void = read_classes(options["classes"]), options.get("void", (IGNORE,))
        raw_ids = tuple(_raw_values(row, index) for index, row in enumerate(rows))
        taken = list(chain.from_iterable(raw_ids))
        if twice := _repeated(taken):
            raise ConfigError(f"classes: value {min(twice)} stands for two classes. Give each its own.")
        colors = [
            row.color or color for row, color in zip(rows, default_colors([row.name for row in rows]), strict=True)
        ]
        known: Sequence[Any] = taken
        if options.get("masks") == "color":
            _check_colors(rows, options)
            known = colors
        if both := [value for value in void if value in known and value != IGNORE]:
            raise ConfigError(f"void: {json.dumps(both[0])} is a class's too. Remove it here, or from the class.")
        return ClassTable(
            names=tuple(row.name for row in rows),
            colors=tuple(colors),
            raw_ids=raw_ids,
            void_ids=tuple(value for value in void if isinstance(value, int) and value not in taken),
        )

    @property
    def sources(self) -> frozenset[str]:
        """The split; "all" where one list stands for every split; of "all" with `nested`, what folders may be below."""
        if self.list_file is not None:
            return frozenset({self.split if "{split}" in self.list_file else "all"})
        return frozenset({self.split} if self.split != "all" or not self.nested else self.splits)

    @property
    def takes_unknown(self) -> bool:
        """Whether `unknown` says so."""
        return self.unknown == "void"

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        if not root.is_dir():
            fix = "Set data_dir to where images and masks are"
            raise DataError(Problem(Fault.OTHER, "data_dir", f"there is no folder {root}", fix))
        if self.list_file is not None:
            return self._listed(root, split)
        images, masks = root / self.image_dir, root / self.mask_dir
        if split != "all":
            if (root / split).is_dir():
                images, masks = root / split / self.image_dir, root / split / self.mask_dir
            else:
                images, masks = images / split, masks / split
        before, after = self.image_prefix, self.image_suffix
        image_of = image_files(images, before=before, remove=after, also=ARRAYS, nested=self.nested)
        if split == "all" and not image_of:
            fix = 'Name a "split", or set data_dir to another folder'
            raise MissingData(Problem(Fault.OTHER, images, "no image lies right in it", fix))
        mask_of = image_files(masks, before=self.mask_prefix, remove=self.mask_suffix, nested=self.nested)
        if self.missing_masks == "skip" and image_of.keys() & mask_of.keys():
            image_of = self._with_masks(image_of, mask_of)
        hint = ""
        if image_of and mask_of and not image_of.keys() & mask_of.keys():
            hint = self._naming_hint(images, masks)
        return pair(image_of, mask_of, self.problems, hint=hint)

    def _with_masks(self, image_of: Mapping[str, Path], mask_of: Mapping[str, Path]) -> dict[str, Path]:
        """Return the images that have a mask, and say how many have none."""
        kept = {key: path for key, path in image_of.items() if key in mask_of}
        if count := len(image_of) - len(kept):
            text = '%s, split "%s": %d of %d images have no mask and are skipped'
            logger.warning(text, self.data_dir, self.split, count, len(image_of))
        return kept

    def _naming_hint(self, images: Path, masks: Path) -> str:
        """Say which options would bring images and masks together; nothing, if none would."""
        names = [image_files(folder, nested=self.nested) for folder in (images, masks)]
        try:
            naming = guess_names(*names, folders=(images, masks))
        except DataError:
            return ""
        options = ", ".join(f'"{key}": {json.dumps(value)}' for key, value in naming.items())
        return f"Set {options} in the loader's args" if options else ""

    def read_raw(self, path: Path) -> np.ndarray:
        """The raw values in a mask, (H, W) uint8; of one that is drawn in colors, what to say in the config."""
        large = open_large_label(path)
        if large is not None:
            return np.asarray(large)
        try:
            return super().read_raw(path)
        except DataError as error:
            (problem,) = error.details
            if problem.fault is not Fault.COLORS:
                raise
            raise DataError(replace(problem, fix=COLORS_FIX)) from None

    def _listed(self, root: Path, split: str) -> list[Sample]:
        path = below(root, str(self.list_file).replace("{split}", split), "list_file")
        samples = {}
        for number, line in read_list(path):
            entries = line.split("\t") if "\t" in line else line.split()
            where = f"{path}, line {number}"
            if len(entries) != 2 and ("\t" not in line or len(entries) < 2):
                what = f"{len(entries)} entries, expected an image and a mask"
                raise DataError(Problem(Fault.OTHER, where, what, "Use a tab between them"))
            image, mask = (below(root, entry.strip(), where) for entry in entries[:2])
            key = image.relative_to(root).with_suffix("").as_posix()
            if key in samples:
                what = f"{image} is listed twice"
                raise DataError(Problem(Fault.LISTED_TWICE, where, what, "Remove one of the lines"))
            samples[key] = Sample(key, image, mask)
            self.listed[key] = [entry.strip() for entry in entries]
        return all_present(list(samples.values()), path, self.problems)

    def read_image(self, index: int, label_shape: tuple[int, ...] | None = None) -> np.ndarray:
        """The image of example `index`, (H, W, `channels`), as large as its label if that is known."""
        path = self.samples[index].image
        large = open_large_image(path, self.channels)
        if large is not None:
            image = np.asarray(large)
        elif self.channels == 3 and path.suffix.lower() != ".npy":
            return super().read_image(index, label_shape)
        else:
            image = read_bands(path, self.channels)
        if label_shape is not None:
            _check_sizes(path, image.shape, label_shape)
        return image

    @property
    def reads_plainly(self) -> bool:
        """Whether images have the three channels of a JPEG's colors."""
        return type(self).read is BaseDataset.read and type(self).read_image is Folder.read_image and self.channels == 3

    def open(self, index: int) -> Item:
        """The example `index`; of a large TIFF only what is cut out of it will be read, of its mask likewise."""
        sample = self.samples[index]
        large = open_large_image(sample.image, self.channels)
        if large is None:
            return self.read(index)
        mask = self._open_label(sample.label)
        label = self.read_label(index) if mask is None else cast("np.ndarray", mask)
        _check_sizes(sample.image, large.shape, label.shape)
        return Item(cast("np.ndarray", large), label, sample.key)

    def _open_label(self, path: Path) -> PartlyRead | None:
        """Open a mask to read crops of it; None where it must be read whole."""
        raw = open_large_label(path) if self.masks == "index" and self.unknown == "refuse" else None
        if raw is None:
            return None

        def read(rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
            return self.training_ids(raw[slice(*rows), slice(*columns)], path, at=(rows[0], columns[0]))

        return PartlyRead(raw.shape, raw.dtype, read)

    def read_label(self, index: int) -> np.ndarray:
        """The label of example `index`, (H, W) uint8: training ids, or 255 for void."""
        path = self.samples[index].label
        if self.masks == "index":
            return super().read_label(index) if self.unknown == "refuse" else self.classes.train_ids(read_label(path))
        label, wrong = color_labels(path, self.classes, self._void_colors)
        if self.unknown == "refuse" and wrong.any():
            row, column = np.argwhere(wrong)[0]
            color, count = read_label_colors(path)[row, column].tolist(), int(wrong.sum())
            what = f"{count} pixels of no class's color, first {color} at row {row}, column {column}"
            fix = 'Add the color to the class file or to "void", or set "unknown": "void"'
            raise DataError(Problem(Fault.UNKNOWN_COLOR, path, what, fix))
        return label

    def unknown_pixels(self, index: int) -> int:
        """Count the pixels of label `index` that are void only because they stand for nothing known."""
        if self.unknown == "refuse":
            return 0
        path = self.samples[index].label
        if self.masks == "color":
            return int(color_labels(path, self.classes, self._void_colors)[1].sum())
        return int((~np.isin(read_label(path), list(self.classes.known))).sum())

    @property
    def _void_colors(self) -> list[Color]:
        return [color for color in self.void if not isinstance(color, int)]


def _check_sizes(path: Path, image: tuple[int, ...], label: tuple[int, ...]) -> None:
    """See to it that an image is as large as its label.

    Raises:
        DataError: It is not.
    """
    if image[:2] != label[:2]:
        sizes = f"the image is {image[1]}x{image[0]} (width x height), its label {label[1]}x{label[0]}"
        raise DataError(Problem(Fault.DIFFERENT_SIZES, path, sizes, "Give both the same size"))


def _raw_values(row: ClassRow, index: int) -> tuple[int, ...]:
    """Return the values that stand for a class in masks."""
    if row.value is None:
        return (index,)
    return (row.value,) if isinstance(row.value, int) else row.value


def _repeated(values: Iterable[Any]) -> list[Any]:
    """Return the values that occur more than once, in the order in which they first do."""
    return [value for value, count in Counter(values).items() if count > 1]


def _check_colors(rows: Sequence[ClassRow], options: Mapping[str, Any]) -> None:
    """See to it that colors can tell the classes apart.

    Raises:
        ConfigError: They cannot.
    """
    refuse_label_map(options)
    plain = [row.name for row in rows if row.color is None]
    if plain:
        raise ConfigError(f'classes: no color for \'{plain[0]}\'. With "masks": "color" each class needs one.')
    if twice := _repeated(row.color for row in rows):
        raise ConfigError(f"classes: color {list(twice[0])} is two classes'. Give each its own.")


def read_classes(source: Any) -> list[ClassRow]:
    """Read the classes that the option `classes` gives or names.

    Raises:
        ConfigError: The file cannot be read or says something else.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        try:
            is_table = path.suffix.lower() == ".csv"
            source = _read_csv(path) if is_table else json.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeError, ValueError, TypeError, RecursionError, csv.Error) as error:
            what = f"{path} cannot be read ({getattr(error, 'strerror', None) or error})"
            raise ConfigError(f"classes: {what}. Give a JSON or CSV file of classes.") from None
        if isinstance(source, dict):
            source = source.get("classes")
    try:
        rows = convert(source, tuple[str | ClassRow, ...], "classes")
    except Mismatch as mismatch:
        raise ConfigError(*mismatch.problems) from None
    if not rows:
        raise ConfigError("classes: none are given. Name at least one.")
    return [ClassRow(name=row) if isinstance(row, str) else row for row in rows]


def _read_csv(path: Path) -> list[dict[str, Any]]:
    """Read rows of name, value and color, as a JSON file would give them."""
    rows: list[dict[str, Any]] = []
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.DictReader(file):
            if "name" not in row:
                raise ValueError(f"its first line has no column 'name', but {', '.join(map(str, row))}")
            value = row.get("raw_id") or row.get("value")
            color = [row.get(channel) for channel in ("red", "green", "blue")]
            rows.append(
                {
                    "name": row["name"],
                    "value": int(value) if value else None,
                    "color": [int(c or 0) for c in color] if any(color) else None,
                }
            )
    return rows
