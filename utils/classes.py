"""The classes of a dataset: names, colors, and which raw label values stand for them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from utils.errors import ConfigError

IGNORE = 255  # label of pixels that neither train nor count, in every dataset, after `ClassTable.train_ids`
BACKGROUND = ("background", "_background_", "bg")  # what people call what is none of the other classes
BACKGROUND_COLOR = (70, 70, 70)
# Okabe and Ito's colors for all kinds of sight (https://jfly.uni-koeln.de/color); then each time the one that is
# farthest from those before it, from black, white and the background's: by CIEDE2000, also as seen with red or green
# blindness after Machado, Oliveira and Fernandes, 2009.
DISTINCT = (
    "e69f00 56b4e9 009e73 f0e442 0072b2 d55e00 cc79a7 4000a0 a00020 80ffc0 a060ff 00e0e0 "
    "406040 ff4060 804080 608080 ffa080 2040ff e0c0c0 c00060 404000 006060 8080c0 80c0a0 "
    "808040 a04000 a0a0a0 e0e0ff 602020 e000a0 a0a0c0 a0ff80 4040a0 c08080 a08060 e0c060 "
    "004060 c0e0a0 80c0c0 800040 "
)
LabelTarget = int | str | Sequence[str] | None  # what a value of labels stands for, as a config says it
LabelMap = Mapping[str, LabelTarget]
_LOOKS_UP_PAIRS = int(cv2.__version__.partition(".")[0]) >= 5  # before, OpenCV's tables were of 8 bits only
STRANGE = 254  # label of pixels whose value stands for nothing, see `ClassTable.marked_ids`
ANY_OF = 253  # label of pixels of the first `AnyOf` of a table; those of the next ones are below


@dataclass(frozen=True)
class AnyOf:
    """Several classes of which a pixel has one, nobody said which.

    Args:
        classes: Their training ids, ascending.
        raw_ids: Raw label values of such pixels.
    """

    classes: tuple[int, ...]
    raw_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ClassTable:
    """Names and colors by training id, and the raw label value of each class.

    Args:
        names: Class names, in order of training id; at most 255.
        colors: One (red, green, blue) per class, 0 to 255.
        raw_ids: Raw label values of each class, 0 to 255.
        void_ids: Raw label values that stand for void. All others are mistakes, see `unknown`.
        ignored_classes: Training ids whose pixels are void too, see `ignoring`.
        any_of: What pixels of unsure class may be; their labels are 253, 252 and so on, in this order.
    """

    names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    raw_ids: tuple[tuple[int, ...], ...]
    void_ids: tuple[int, ...] = (IGNORE,)
    ignored_classes: tuple[int, ...] = ()
    any_of: tuple[AnyOf, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) > IGNORE:
            raise ConfigError(f"classes: {len(self.names)} of them. Labels are 8-bit and hold at most {IGNORE}.")
        for name in self.names:
            if not name.isascii() and name != name.encode("utf-8", "replace").decode():
                raise ConfigError(f"classes: {name!r} holds half a character. Write its name anew.")
        if self.any_of and len(self.names) + len(self.any_of) > STRANGE:
            what = f"{len(self.names)} of them and {len(self.any_of)} lists of classes in label_map"
            raise ConfigError(f"classes: {what}. Labels are 8-bit and hold at most {STRANGE} of both together.")
        if twice := sorted({name for name in self.names if self.names.count(name) > 1}):
            raise ConfigError(f"classes: {', '.join(map(repr, twice))} named twice. Give each class its own name.")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def read(cls, path: Path, void_ids: Sequence[int] = (IGNORE,)) -> ClassTable:
        """Read a CSV file with columns name, red, green, blue, raw_id; one row per class, in training order."""
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return cls(
            names=tuple(row["name"] for row in rows),
            colors=tuple((int(row["red"]), int(row["green"]), int(row["blue"])) for row in rows),
            raw_ids=tuple((int(row["raw_id"]),) for row in rows),
            void_ids=tuple(void_ids),
        )

    def identity(self) -> dict[str, Any]:
        """Return all that files made with these classes depend on, by the keys that their names are made of."""
        facts = asdict(self)
        facts["left_out"] = facts.pop("ignored_classes")
        if not self.any_of:  # so that what was made before there were any is found
            del facts["any_of"]
        return facts

    @cached_property
    def lookup(self) -> np.ndarray:
        """Training id of each raw value, (256,) uint8."""
        table = np.full(256, IGNORE, np.uint8)
        for train_id, values in enumerate(self.raw_ids):
            if train_id not in self.ignored_classes:
                table[list(values)] = train_id
        for number, unsure in enumerate(self.any_of):
            table[list(unsure.raw_ids)] = ANY_OF - number
        return table

    def train_ids(self, raw: np.ndarray) -> np.ndarray:
        """Translate raw labels (H, W) uint8 to training ids (H, W) uint8."""
        return cv2.LUT(np.ascontiguousarray(raw), self.lookup).reshape(raw.shape)  # four times as fast as numpy

    def marked_ids(self, raw: np.ndarray) -> np.ndarray:
        """Translate as `train_ids` does, but to 254 where a value stands for neither a class nor void.

        Class 254, the last of 255, has this id too: then ask `unknown`.
        """
        flat = np.ascontiguousarray(raw).reshape(-1)
        if _LOOKS_UP_PAIRS and flat.size % 2 == 0:  # twice as fast
            return cv2.LUT(flat.view(np.uint16), self._marked_pairs).view(np.uint8).reshape(raw.shape)
        return cv2.LUT(flat, self._marked).reshape(raw.shape)

    @cached_property
    def _marked(self) -> np.ndarray:
        return np.where(self._strange > 0, STRANGE, self.lookup).astype(np.uint8)

    @cached_property
    def _marked_pairs(self) -> np.ndarray:
        """`_marked` of each two pixels side by side, (65536,) uint16."""
        return self._marked[np.arange(2**16, dtype=np.uint16).view(np.uint8)].view(np.uint16)

    def unknown(self, raw: np.ndarray) -> int | None:
        """Find the smallest value in `raw` (H, W) uint8 that stands for neither a class nor void; None if none does."""
        found = cv2.LUT(np.ascontiguousarray(raw), self._strange)
        return int(raw[found.reshape(raw.shape) > 0].min()) if cv2.countNonZero(found) else None

    @cached_property
    def _strange(self) -> np.ndarray:
        """1 for raw values that stand for nothing, else 0, (256,) uint8."""
        table = np.ones(256, np.uint8)
        table[list(self.known)] = 0
        return table

    @property
    def known(self) -> frozenset[int]:
        """Raw values that stand for a class, for one of several, or for void."""
        return frozenset(self.void_ids).union(*self.raw_ids, *(unsure.raw_ids for unsure in self.any_of))

    @cached_property
    def palette(self) -> np.ndarray:
        """Color of each label value, (256, 3) uint8, read-only; void and unused values are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: len(self)] = self.colors
        table.setflags(write=False)
        return table

    def ignoring(self, index: int) -> ClassTable:
        """Return the same classes with class `index` ignored: its pixels become void, the network keeps its output.

        255 and -1 stand for void only and change nothing.
        """
        if index in (IGNORE, -1):
            return self
        return replace(self, ignored_classes=(*self.ignored_classes, index))

    def mapped(self, label_map: LabelMap, where: str) -> ClassTable:
        """Return the same classes with other raw values, and those that only a list names behind them.

        Args:
            label_map: Raw value (a number, as text, since JSON's keys are) to class name, class index, null for void,
                or a list of names: its pixels have one of these classes. Values that it does not name keep their
                meaning.
            where: Path in the config, for errors.

        Raises:
            ConfigError: A value or a class is none of ours.
        """
        for key in label_map:
            if not key.isdecimal() or int(key) > 255:
                raise ConfigError(f"{where}.{key}: no label value. Use a number from 0 to 255.")
        table = self.meaning(label_map, where)
        raw_ids, void_ids = [set(values) for values in table.raw_ids], set(table.void_ids)
        any_of = [set(unsure.raw_ids) for unsure in table.any_of]
        for key, target in label_map.items():
            for values in (*raw_ids, void_ids, *any_of):
                values.discard(int(key))
            label = table.label_of(target)
            if label == IGNORE:
                void_ids.add(int(key))
            elif label < len(table):
                raw_ids[label].add(int(key))
            else:
                any_of[ANY_OF - label].add(int(key))
        return replace(
            table,
            raw_ids=tuple(tuple(sorted(values)) for values in raw_ids),
            void_ids=tuple(sorted(void_ids)),
            any_of=tuple(
                replace(unsure, raw_ids=tuple(sorted(values)))
                for unsure, values in zip(table.any_of, any_of, strict=True)
            ),
        )

    def meaning(self, label_map: LabelMap, where: str) -> ClassTable:
        """Return these classes with those that only a list of `label_map` names, and with what its lists mean.

        Raises:
            ConfigError: A class is none of ours, or a list is empty.
        """
        names = list(self.names)
        for key, target in label_map.items():
            if isinstance(target, Sequence) and not isinstance(target, str):
                if not target:
                    raise ConfigError(f"{where}.{key}: an empty list. Name the classes that it may be, or use null.")
                names += [name for name in target if name not in names]
            elif not (target is None or target in self.names or target in range(len(self))):
                shown = ", ".join(self.names)
                raise ConfigError(f"{where}.{key}: no class {target!r}. Choose from {shown} or null.")
        added = len(names) - len(self)
        spare = (color for color in distinct_colors(len(names) + added) if color not in self.colors)
        table = replace(
            self,
            names=tuple(names),
            colors=(*self.colors, *(next(spare) for _ in range(added))),
            raw_ids=(*self.raw_ids, *(() for _ in range(added))),
        )
        found = [table._classes_of(target) for target in label_map.values()]
        unsure = dict.fromkeys(classes for classes in found if 1 < len(classes) < len(names))
        return replace(table, any_of=(*self.any_of, *map(AnyOf, unsure)))

    def label_of(self, target: LabelTarget) -> int:
        """Return the label of what a `label_map` says a value is, once `meaning` has seen it; of all classes, void."""
        classes = self._classes_of(target)
        if len(classes) == 1:
            return classes[0]
        meant = [unsure.classes for unsure in self.any_of]
        return ANY_OF - meant.index(classes) if classes in meant else IGNORE

    def _classes_of(self, target: LabelTarget) -> tuple[int, ...]:
        """Return the training ids that a target of a `label_map` names, ascending; none for void."""
        if target is None:
            return ()
        if isinstance(target, int):
            return (target,)
        return tuple(sorted({self.names.index(name) for name in ((target,) if isinstance(target, str) else target)}))

    def joined_with(self, others: Sequence[ClassTable]) -> ClassTable:
        """Return these classes as data sets share them that have the same names: with what is unsure in any of them.

        A class that is labelled in one of the `others` only has its color from there.
        """
        colors, unsure = list(self.colors), [AnyOf(each.classes, each.raw_ids) for each in self.any_of]
        for other in others:
            ids = [self.names.index(name) for name in other.names]
            for index, color, mine in zip(ids, other.colors, other.raw_ids, strict=True):
                if mine and not self.raw_ids[index]:
                    colors[index] = color
            for each in other.any_of:
                classes = tuple(sorted(ids[index] for index in each.classes))
                if classes not in [known.classes for known in unsure]:
                    unsure.append(AnyOf(classes))
        return replace(self, colors=tuple(colors), any_of=tuple(unsure))

    def as_in(self, shared: ClassTable) -> ClassTable:
        """Return this table in the order of `shared`, with the labels of what is unsure and the ignored ones of that.

        Where the two have other names, only the ignored classes are taken over.
        """
        if set(self.names) != set(shared.names):
            return replace(self, ignored_classes=shared.ignored_classes)
        ids = [shared.names.index(name) for name in self.names]
        raw_ids = dict(zip(ids, self.raw_ids, strict=True))
        colors = dict(zip(ids, self.colors, strict=True))  # in which masks may be drawn
        mine = {tuple(sorted(ids[index] for index in each.classes)): each.raw_ids for each in self.any_of}
        known = [each.classes for each in shared.any_of]
        others = [value for classes, values in mine.items() if classes not in known for value in values]
        return replace(
            shared,
            colors=tuple(colors[index] for index in range(len(shared))),
            raw_ids=tuple(raw_ids[index] for index in range(len(shared))),
            void_ids=tuple(sorted({*self.void_ids, *others})),  # nobody trains on them
            any_of=tuple(AnyOf(each.classes, mine.get(each.classes, ())) for each in shared.any_of),
        )

    def settled(self) -> ClassTable:
        """Return the same classes with void for what is unsure, as figures need it."""
        unsure = [value for each in self.any_of for value in each.raw_ids]
        return replace(self, void_ids=tuple(sorted({*self.void_ids, *unsure})), any_of=())


@dataclass(frozen=True)
class ClassFacts:
    """What a loss or a metric may ask about the classes, by a parameter called `class_facts`.

    Args:
        num_classes: Number of classes C, as the network has them; None where it is not known.
        class_names: Their names, in order of training id; empty where they are not known.
        class_pixels: Labelled pixels of each class in the training set; None unless somebody needs them, since
            counting them takes a scan of all labels.
        ignore_index: Label of pixels that neither train nor count.
        any_of: Classes of which pixels with label 253, 252 and so on have one, see `ClassTable`.
    """

    num_classes: int | None = None
    class_names: Sequence[str] = ()
    class_pixels: Sequence[int] | None = None
    ignore_index: int = IGNORE
    any_of: Sequence[Sequence[int]] = ()


UNKNOWN_CLASSES = ClassFacts()


def with_class_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `facts` for the components of a registry, with those about the classes as one `class_facts`, too.

    Labels are translated when they are read, so that 255 is all that is ignored, whatever the config's "ignore_index".
    """
    known = {each.name: facts[each.name] for each in fields(ClassFacts) if each.name in facts}
    return {**facts, "class_facts": ClassFacts(**known)}


def ranges(values: Iterable[int]) -> str:
    """Write `values`, ascending, for people: ``0..4, 255``, or none."""
    parts: list[list[int]] = []
    for value in sorted(values):
        if parts and value == parts[-1][-1] + 1:
            parts[-1].append(value)
        else:
            parts.append([value])
    return ", ".join(f"{part[0]}..{part[-1]}" if len(part) > 1 else str(part[0]) for part in parts) or "none"


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """Return `count` colors, none black; the first 40 are far apart, also for the color-blind.

    Further ones are those of Pascal VOC's palette, a bit-shuffle, that are not among them.
    """
    colors = [(int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code in DISTINCT.split()][:count]
    index = 0
    while len(colors) < count:
        index += 1
        color = [0, 0, 0]
        for bit in range(24):  # the lowest bits of the index become the highest of red, green and blue, in turn
            color[bit % 3] |= (index >> bit & 1) << (7 - bit // 3)
        found = (color[0], color[1], color[2])
        if found not in colors:
            colors.append(found)
    return colors


def default_colors(names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Return a color for each class: a dark gray for the background, if one is called so, else `distinct_colors`."""
    others = iter(distinct_colors(len(names)))
    return [BACKGROUND_COLOR if is_background(name) else next(others) for name in names]


def is_background(name: str) -> bool:
    """Say whether a class's name says that it is what is none of the others."""
    return name.lower() in BACKGROUND


def count_values(label: np.ndarray) -> np.ndarray:
    """Count the pixels of each value in `label` (H, W) uint8; returns (256,) int64."""
    # OpenCV counts in float32, exactly up to 2^24 pixels.
    strips = np.array_split(label, -(-label.size // 2**24) or 1)
    counts = [cv2.calcHist([np.ascontiguousarray(strip)], [0], None, [256], [0, 256]) for strip in strips]
    return np.sum(counts, axis=0, dtype=np.int64).ravel()


def as_colors(values: Sequence[Sequence[int]]) -> tuple[tuple[int, int, int], ...]:
    """Convert rows of three numbers to colors as a `ClassTable` keeps them."""
    return tuple((int(r), int(g), int(b)) for r, g, b in values)
