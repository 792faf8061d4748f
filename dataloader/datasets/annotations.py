"""Images with the files of annotation tools as labels, without conversion."""

# Without `from __future__ import annotations`: Python 3.10 cannot evaluate an InitVar that stands in a text.
import functools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal
from urllib.parse import unquote

import cv2
import numpy as np

from base.base_dataset import BaseDataset, Item, Sample
from dataloader.datasets.annotation_files import read_annotations, read_yolo
from dataloader.datasets.files import below, composed, image_files
from dataloader.datasets.folder import ClassSource, read_classes
from dataloader.datasets.shapes import BACKGROUND_LABELS, VOID_LABELS, Picture, Size, draw, naming
from utils.classes import ANY_OF, BACKGROUND, IGNORE, ClassTable, default_colors
from utils.errors import ConfigError, DataError, Fault, Problem
from utils.registry import DATASETS

logger = logging.getLogger("segwright")


@DATASETS.register()
@dataclass(eq=False, kw_only=True)
class Annotations(BaseDataset):
    """Images with labels as annotation tools export them: COCO, LabelMe, CVAT for images, Label Studio, YOLO polygons.

    The format is recognized. What nobody drew is the class "background", if there is one, else void. Where objects
    overlap, the later one wins (LabelMe, Label Studio), the one of higher z_order (CVAT), or the smaller one (COCO and
    YOLO, which have no order). COCO's crowds are void and lie under all other objects. Images that a file does not
    name are left out; of YOLO, an image without a file is all background.

    Args:
        classes: Names of the classes, or an object with name and color for each, or a file, as `Folder` reads it.
            YOLO's numbers count the classes from 0, without the background.
        annotations: File (COCO, CVAT, Label Studio) or folder (LabelMe, YOLO) below data_dir; "{split}" in its name
            stands for the split.
        image_dir: Folder with the images below data_dir, likewise; files in folders below it are found, too.
        label_map: Label in the files to class name, class index or null for void, where files name classes otherwise;
            or to a list of classes of which it may be any, see `Folder`. One of "background" is for what nobody drew.
        unknown: Refuse objects whose label is no class, take them for void, or skip them.
    """

    classes: InitVar[ClassSource]  # an argument; the attribute of this name is the ClassTable that it gives
    annotations: str = "annotations.json"
    image_dir: str = "images"
    unknown: Literal["refuse", "void", "skip"] = "refuse"

    class_source: ClassSource = field(init=False, repr=False)
    pictures: dict[str, Picture] = field(init=False, repr=False, default_factory=dict)  # of one file for all images
    own: ClassTable = field(init=False, repr=False)  # classes as these options describe them
    described: int = field(init=False, repr=False)  # how many of them `classes` names: YOLO's numbers
    reading_options: ClassVar[tuple[str, ...]] = ("label_map", "classes", "unknown")
    splits: ClassVar[tuple[str, ...]] = ("all", "train", "val", "valid", "test")  # as exports call their folders
    packs: ClassVar[bool] = False

    def __post_init__(self, classes: ClassSource) -> None:
        self.class_source = classes
        super().__post_init__()
        self.raw_labels = False
        self.own = self.classes
        self.described = len(self.base_classes(**self.options()))

    def options(self) -> dict[str, Any]:
        return {**super().options(), "classes": self.class_source}

    @classmethod
    def base_classes(cls, **options: Any) -> ClassTable:
        rows = read_classes(options["classes"])
        if valued := [row.name for row in rows if row.value is not None]:
            raise ConfigError(f"classes: '{valued[0]}' has a value, and objects have names. Remove it.")
        defaults = default_colors([row.name for row in rows])
        colors = tuple(row.color or color for row, color in zip(rows, defaults, strict=True))
        raw_ids = tuple((index,) for index in range(len(rows)))
        return ClassTable(names=tuple(row.name for row in rows), colors=colors, raw_ids=raw_ids)

    @classmethod
    def class_table(cls, **options: Any) -> ClassTable:
        """The classes that ``cls(**options)`` would have; `label_map` is of names here."""
        table = cls.base_classes(**options)
        return table.meaning(options["label_map"], "label_map") if options.get("label_map") else table

    @property
    def sources(self) -> frozenset[str]:
        """The split; "all" where neither images nor annotations go by it."""
        named = "{split}" in self.annotations or "{split}" in self.image_dir
        return frozenset({self.split if named else "all"})

    def find_samples(self, root: Path, split: str) -> Iterable[Sample]:
        if not root.is_dir():
            fix = "Set data_dir to where images and annotations are"
            raise DataError(Problem(Fault.OTHER, "data_dir", f"there is no folder {root}", fix))
        images = image_files(below(root, self.image_dir.replace("{split}", split), "image_dir"), nested=True)
        source = below(root, self.annotations.replace("{split}", split), "annotations")
        if source.is_dir():
            return self._of_folder(images, source)
        if not source.is_file():
            fix = 'Name the file, or the folder of files, of "annotations"'
            raise DataError(Problem(Fault.OTHER, "annotations", f"there is no {source}", fix))
        return self._of_file(images, source)

    def _of_folder(self, images: Mapping[str, Path], folder: Path) -> list[Sample]:
        """Find LabelMe's or YOLO's files, one an image."""
        for ending in (".json", ".txt"):
            files = {
                composed(path.relative_to(folder).with_suffix("").as_posix()): path
                for path in folder.rglob(f"*{ending}")
                if not path.name.startswith(".")  # what a Mac puts beside a file is no annotation
            }
            files.pop("classes", None)  # with which YOLO's exporters name the classes
            if not files:
                continue
            if alone := sorted(files.keys() - images.keys()):
                what = f"{len(alone)} files ({', '.join(alone[:5])}) without image"
                self._note(Problem(Fault.LABEL_ALONE, folder, what, 'Add the images, or set "image_dir"'))
            if ending == ".txt":
                return [Sample(key, path, files.get(key, folder)) for key, path in images.items()]
            self._say_left_out(len(images), len(images.keys() & files.keys()))
            return [Sample(key, path, files[key]) for key, path in images.items() if key in files]
        what = "holds neither LabelMe's files (.json) nor YOLO's (.txt)"
        raise DataError(Problem(Fault.OTHER, folder, what, "Name the file or folder that the tool exported"))

    def _of_file(self, images: Mapping[str, Path], source: Path) -> list[Sample]:
        """Find the images that a file names."""
        missing = []
        for picture in read_annotations(source).pictures:
            with naming(picture.where):
                key = next((key for key in keys_of(picture.name) if key in images), None)
            if key is None:
                missing.append(picture.name)
            elif key in self.pictures:
                what = f"names {picture.name} twice"
                self._note(Problem(Fault.LISTED_TWICE, source, what, "Remove one of them"))
            else:
                self.pictures[key] = picture
        if missing:
            what = f"names {len(missing)} images ({', '.join(missing[:5])}) that are missing"
            self._note(Problem(Fault.MISSING_FILES, source, what, 'Add them, or set "image_dir"'))
        self._say_left_out(len(images), len(self.pictures))
        return [Sample(key, images[key], source) for key in self.pictures]

    def _note(self, problem: Problem) -> None:
        if self.problems is None:
            raise DataError(problem)
        self.problems.append(problem)

    def _say_left_out(self, images: int, annotated: int) -> None:
        if annotated < images:
            text = '%s, split "%s": %d of %d images have no annotation and are left out'
            logger.info(text, self.data_dir, self.split, images - annotated, images)

    def read(self, index: int) -> Item:
        sample = self.samples[index]
        picture = self._picture(sample)
        if picture.size is not None:
            return Item(self.read_image(index, picture.size), self._draw(picture), sample.key)
        image = self.read_image(index)
        return Item(image, self._draw(picture, (image.shape[0], image.shape[1])), sample.key)

    def read_label(self, index: int) -> np.ndarray:
        sample = self.samples[index]
        picture = self._picture(sample)
        if picture.size is not None:
            return self._draw(picture)
        shape = self.read_image(index).shape  # of YOLO, whose files do not say it
        return self._draw(picture, (shape[0], shape[1]))

    def _picture(self, sample: Sample) -> Picture:
        """The objects of an example."""
        if self.pictures:
            return self.pictures[sample.key]
        if sample.label.suffix == ".json":
            return read_annotations(sample.label).pictures[0]
        if sample.label.is_dir():
            return Picture(sample.image.name, str(sample.image), None, ())
        return read_yolo(sample.label)

    def _draw(self, picture: Picture, size: Size | None = None) -> np.ndarray:
        values, background = self._values(is_yolo=picture.size is None)
        mask = draw(picture, values, size=size, background=background, unknown=self.unknown)
        return cv2.LUT(mask, shared_labels(self.own, self.classes))

    def _values(self, *, is_yolo: bool) -> tuple[dict[str, int], int]:
        """Return what each label of the files is drawn as, and what nobody drew: indices of `own`, or void."""
        names, label_map = self.own.names[: self.described], self.label_map or {}
        background = next((index for index, name in enumerate(names) if name.lower() in BACKGROUND), IGNORE)
        if is_yolo:  # its classes are numbers, without the background
            objects = [index for index in range(len(names)) if index != background]
            values = {str(number): index for number, index in enumerate(objects)}
        else:  # a class wins over a word that tools reserve
            values = dict.fromkeys(VOID_LABELS, IGNORE) | dict.fromkeys(BACKGROUND_LABELS, background)
            values |= {name: index for index, name in enumerate(names)}
        values |= {label: self.own.label_of(target) for label, target in label_map.items()}
        return values, values["background"] if "background" in label_map else background


@functools.lru_cache(maxsize=64)
def shared_labels(own: ClassTable, shared: ClassTable) -> np.ndarray:
    """Return the labels, (256,) uint8, that `shared` has for those of `own`: data sets that are joined share an order.

    It is one array for all masks of a data set, and not to be changed.
    """
    labels = np.full(256, IGNORE, np.uint8)
    for index, name in enumerate(own.names):
        place = shared.names.index(name)
        labels[index] = IGNORE if place in shared.ignored_classes else place
    lists = [{shared.names[index] for index in each.classes} for each in shared.any_of]
    for number, each in enumerate(own.any_of):
        meant = {own.names[index] for index in each.classes}
        labels[ANY_OF - number] = ANY_OF - lists.index(meant) if meant in lists else IGNORE
    return labels


def keys_of(name: str) -> Iterator[str]:
    """Give what an image may be called, without its ending, whose file a tool calls `name`: the longest first.

    Label Studio puts a path or an address before the name, and eight digits and a hyphen where it was uploaded.

    Raises:
        ValueError: It is no name.
    """
    path = PurePosixPath(composed(unquote(name)).replace("\\", "/").rpartition("?d=")[2])
    if not path.name:
        raise ValueError("its image has no name")
    path = path.with_suffix("")
    parts = path.parts
    for start in range(len(parts)):
        yield "/".join(parts[start:])
    yield re.sub("^[0-9a-f]{8}-", "", path.name)
