"""From a folder of images and one of masks to a config that trains on them, with all that was guessed said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from base.base_dataloader import MOST_SKIPPED
from base.base_dataset import BaseDataset
from dataloader import scan
from dataloader.datasets.annotations import Annotations
from dataloader.datasets.files import image_files
from dataloader.datasets.folder import Folder, read_classes
from dataloader.datasets.naming import guess_names, other_endings
from dataloader.tools import doctor
from dataloader.tools.convert import CLASS_FILE
from dataloader.tools.findings import Examined
from dataloader.tools.fingerprint import classes_of_images, is_slip, take_fingerprint
from dataloader.tools.layouts import SPLITS, VOID, Layout, annotated_classes, find_layout
from dataloader.tools.planning import Draft, Measure, Wish, make_plan, write_text
from dataloader.tools.recipe import HELD_OUT, RARE, Machine
from utils.classes import IGNORE, default_colors
from utils.errors import ConfigError, DataError, Fault
from utils.images import ARRAYS, MOST_CHANNELS, read_label_colors, read_label_values

MOST_CLASSES = 64  # values in masks; more of them are soft edges, or photographs
KEPT = 0.8  # share of the pixels that classes must have where other values are taken for soft edges


@dataclass
class Proposal:
    """A config for own data.

    Args:
        text: The config, with comments.
        guesses: What was found and what was assumed, a line each.
        plan: The choices with their reasons, what they follow from, and how long training takes, as plain values.
    """

    text: str = ""
    guesses: list[str] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)


def propose(images: Path, masks: Path, wish: Wish, machine: Machine, measure: Measure) -> Proposal:
    """Read all masks and images and write a config.

    Args:
        images: Folder of images, or with a folder of them for each of train and val.
        masks: Folder of masks, likewise, or file or folder of an annotation tool.
        wish: What was asked for.
        machine: What there is to train with.
        measure: Called with configs to try.

    Raises:
        DataError: Nothing can be made of the folders.
    """
    proposal = Proposal()
    layout = find_layout(images, masks)
    kind, options = (describe_annotations if layout.annotated else describe_folder)(layout, wish.names, proposal)
    cache = scan.default_cache()
    examined = []
    for split in layout.splits:
        dataset = kind(data_dir=layout.root, split=split, **typed_options(kind, options))
        records = scan.examine(dataset, name=split, num_workers=wish.num_workers, cache=cache)
        examined.append(Examined(split, dataset, records, training=split in ("all", SPLITS[0])))
    for finding in doctor.diagnose(examined):
        proposal.guesses += finding.lines()
    if any(must_skip(each, layout.root, 1.0 if len(layout.splits) > 1 else HELD_OUT) for each in examined):
        options["on_bad_sample"] = "skip"
    fingerprint = take_fingerprint(examined[0], examined[1] if len(examined) > 1 else None, cache=cache)
    if len(fingerprint.shown) < 2:
        only = fingerprint.shown[0].name if fingerprint.shown else "nothing"
        raise DataError(f"{masks}: masks show {only} and no other class. Segmentation needs two, such as background.")
    draft = Draft(
        layout, kind.__name__, options, examined[0].dataset, fingerprint, classes_of_images(examined[0]), machine, wish
    )
    planned = make_plan(draft, measure)
    proposal.text = write_text(planned, proposal.guesses, wish.schema)
    proposal.guesses += planned.summary  # in the text, reasons stand beside what they are for
    proposal.plan = planned.to_json()
    return proposal


def describe_annotations(
    layout: Layout, names: Sequence[str] | None, proposal: Proposal
) -> tuple[type[BaseDataset], dict[str, Any]]:
    """Find the arguments of `Annotations`."""
    classes, options = annotated_classes(layout, names)
    proposal.guesses.append(f"masks are drawn from {layout.mask_dir}: {len(classes)} classes, {', '.join(classes)}")
    return Annotations, {
        "image_dir": layout.image_dir,
        "annotations": layout.mask_dir,
        "classes": classes,
        **options,
    }


def describe_folder(
    layout: Layout, names: Sequence[str] | None, proposal: Proposal
) -> tuple[type[BaseDataset], dict[str, Any]]:
    """Find the arguments of `Folder`.

    Raises:
        DataError: A folder holds no images, or masks are no masks.
    """
    folders = layout.folders
    nested = not all(image_files(folder, also=ARRAYS) for folder in chain.from_iterable(folders))
    for folder in chain.from_iterable(folders):
        if not image_files(folder, also=ARRAYS, nested=nested):
            raise DataError(f"{folder}: holds no image file. Name the folder that the files lie in.")
    found = image_files(folders[0][0], also=ARRAYS, nested=nested), image_files(folders[0][1], nested=nested)
    naming = guess_names(*found, folders=folders[0])
    others = other_endings(*found, naming["mask_suffix"]) if naming.keys() == {"mask_suffix"} else []
    if others:
        listed = ", ".join(f"'{each}'" for each in sorted([*others, naming["mask_suffix"]]))
        raise DataError(
            f"{folders[0][1]}: an image has several masks, which end in {listed}. "
            f"Name a folder with one mask for each image, which shows all classes."
        )
    said = [f"{key.replace('_', ' ')} '{value}'" for key, value in naming.items()]
    proposal.guesses.append(f"masks are named like their images{', but for ' if said else ''}{' and '.join(said)}")
    if nested:
        naming["nested"] = True
        proposal.guesses.append("images lie in folders below, which are taken together")
    before, after = str(naming.get("mask_prefix", "")), str(naming.get("mask_suffix", ""))
    files: list[Path] = []
    for _, folder in folders:
        files += image_files(folder, before=before, remove=after, nested=nested).values()
    channels = guess_channels(list(found[0].values()))
    if channels != 3:
        naming["channels"] = channels
        proposal.guesses.append(f"images have {channels} channels")
    return Folder, {
        "image_dir": layout.image_dir,
        "mask_dir": layout.mask_dir,
        **naming,
        **guess_classes(files, names, proposal),
    }


def guess_channels(files: Sequence[Path]) -> int:
    """Return how many channels most images have, of those whose values are taken as they are; 3 for photos.

    Raises:
        DataError: They are more than a network takes.
    """
    found = Counter(channels_in(path) for path in files)
    channels = max(found, key=lambda channels: (found[channels], channels == 3))
    if channels > MOST_CHANNELS:
        raise DataError(
            f"{files[0].parent}: images have {channels} channels. Keep the {MOST_CHANNELS} that matter most."
        )
    return channels


def channels_in(path: Path) -> int:
    """Return how many channels an image has; 3 where it is read as a photo, or cannot be read.

    Gray values of more than 8 bits are one channel, as they are: as a photo, of the 1000 that a camera counts to in a
    file of 16 bits, four would be left.
    """
    with suppress(Exception):  # what is wrong with a file is said when it is read
        if path.suffix.lower() in ARRAYS:
            shape = np.load(path, mmap_mode="r", allow_pickle=False).shape
            return shape[2] if len(shape) == 3 else 1
        if path.suffix.lower() in (".tif", ".tiff"):
            import tifffile

            with tifffile.TiffFile(path) as file:
                series = file.series[0]
                axes = series.axes.replace("Q", "S").replace("I", "S").replace("C", "S")
                bands = series.shape[axes.index("S")] if "S" in axes else 1
                page = file.pages.first
                if bands == 1:
                    return 1 if series.dtype.itemsize > 1 else 3
                if bands > 4 or (bands == page.samplesperpixel and not is_photo(page)):
                    return int(bands)
            return 3
        if path.suffix.lower() in (".png", ".pgm"):
            with Image.open(path) as header:
                return 1 if header.mode[0] in "IF" else 3
    return 3


def is_photo(page: Any) -> bool:
    """Say whether a TIFF image is one of 3 colors, CMYK, or gray or of colors with alpha."""
    alpha = tuple(page.extrasamples) in ((1,), (2,))
    return page.samplesperpixel == 3 or page.photometric.name == "SEPARATED" or alpha


def must_skip(examined: Examined, root: Path, share: float) -> bool:
    """Say whether a split has examples that cannot be used, and not more than a loader skips.

    Args:
        examined: The split.
        root: Folder of the data, for errors.
        share: Share of the examples that the smallest loader has.

    Raises:
        DataError: There are more.
    """
    bad = [record.problems[0] for record in examined.records.values() if record.problems]
    if len(bad) > max(1, int(MOST_SKIPPED * share * len(examined.records))):
        raise DataError(*bad[: doctor.SHOWN], f"{root}: {len(bad)} examples cannot be used. Fix or remove them.")
    return bool(bad)


@dataclass
class Codes:
    """What masks hold.

    Args:
        in_colors: Whether classes are shown by color; then codes are colors as numbers, red first.
        pixels: Pixels of each code.
        inner: Those whose neighbors to the right and below have the same code.
        masks: How many show it.
    """

    in_colors: bool
    pixels: Counter[int] = field(default_factory=Counter)
    inner: Counter[int] = field(default_factory=Counter)
    masks: Counter[int] = field(default_factory=Counter)

    def slips(self, pixels: Mapping[int, int]) -> list[int]:
        """Return those of `pixels` that a slip of the pencil may have made."""
        total = sum(self.pixels.values())
        return [code for code in pixels if is_slip(pixels[code] / total, self.masks[code])]


def count_codes(files: Sequence[Path]) -> Codes:
    """Count the values, or colors, in all masks."""
    from tqdm import tqdm

    codes = Codes(is_in_colors(files[0]))
    for path in tqdm(files, desc="masks", unit="file", leave=False, disable=None):
        try:
            mask = read_codes(path, codes.in_colors)
        except DataError as error:
            # Masks before it that are all black or white may be stored as gray.
            if codes.in_colors or error.details[0].fault is not Fault.COLORS or not codes.pixels.keys() <= {0, IGNORE}:
                raise
            return count_codes([path, *(other for other in files if other != path)])
        found = tally(mask)
        codes.pixels.update(found)
        codes.masks.update(found.keys())
        corner = mask[:-1, :-1]
        codes.inner.update(tally(corner[(corner == mask[:-1, 1:]) & (corner == mask[1:, :-1])]))
    return codes


def without_soft_edges(codes: Codes, folder: Path) -> dict[int, int]:
    """Return pixels of each code that is a class; all of them, unless there are too many or some are soft edges.

    Between two classes, soft edges show a value for a pixel or two; a class has an inside, unless it is very thin.

    Args:
        codes: What masks hold.
        folder: Where they are, for errors.

    Raises:
        DataError: No classes can be told from the rest.
    """
    total = sum(codes.pixels.values())
    found = dict(codes.pixels)
    soft = {code for code, count in found.items() if count < RARE * total and codes.inner[code] < count / 4}
    if len(found) <= MOST_CLASSES and len(soft) < doctor.BLURRED:
        return found
    kept = {code: count for code, count in found.items() if code not in soft}
    if len(kept) > MOST_CLASSES:
        kept = {code: count for code, count in kept.items() if count >= RARE / 2 * total}
    if len(kept) < 2 or sum(kept.values()) < KEPT * total:
        what = "colors" if codes.in_colors else "values"
        raise DataError(
            f"{folder}: masks hold {len(found):,} different {what}, too many for classes. "
            f"Make them anew, without soft edges and as PNG files."
        )
    return kept


def guess_classes(files: Sequence[Path], names: Sequence[str] | None, proposal: Proposal) -> dict[str, Any]:
    """Find the arguments of `Folder` about the classes, from what all masks hold.

    Raises:
        DataError: Masks cannot be read, or hold something else than two classes or more.
        ConfigError: There are more or fewer names than classes.
    """
    codes = count_codes(files)
    pixels = without_soft_edges(codes, files[0].parent)
    options: dict[str, Any] = {"masks": "color" if codes.in_colors else "index"}
    if len(pixels) < len(codes.pixels):
        options["unknown"] = "void"
        proposal.guesses.append(
            f"of {len(codes.pixels):,} values, {len(pixels)} are classes; the rest, soft edges or too rare, is void"
        )
    values: list[Any] = sorted(pixels)
    for code in codes.slips(pixels) if names is None else ():
        shown, count = name_of(color_of(code), ()) if codes.in_colors else f"value {code}", codes.masks[code]
        many = f"{pixels[code]} pixels in {count} image{'s' if count > 1 else ''}"
        proposal.guesses.append(f"{shown}: {many}; if these are slips, call it void by --names")
    if codes.in_colors:
        values = [color_of(code) for code in values]
    elif values != [0, IGNORE] and IGNORE in values:
        if names is not None and len(names) == len(values) and names[-1] == VOID:
            names = names[:-1]
        if len(names) == len(values) if names is not None else are_even(values):
            proposal.guesses.append("255 is a class" + (", as values are evenly spaced" if names is None else ""))
        else:
            values.remove(IGNORE)
            proposal.guesses.append(f"255 is void, {pixels[IGNORE] / sum(pixels.values()):.2%} of the pixels")
    if len(values) < 2:
        raise DataError(f"{files[0].parent}: all masks show one class. Segmentation needs two, such as background.")
    names = names or names_of_conversion(files[0].parent, values)
    if names is not None and len(names) != len(values):
        raise ConfigError(f"--names: {len(names)} names, but masks hold {len(values)} values. Name {values}.")
    given = list(names or [name_of(value, values) for value in values])
    if VOID in given:
        value = values.pop(given.index(VOID))
        given.remove(VOID)
        options["void"] = [IGNORE, list(value) if codes.in_colors else value]
        proposal.guesses.append(f"the color {value} is void" if codes.in_colors else f"{value} is void")
    if len(values) < 2:
        raise ConfigError("--names: one class is left. Name two at least, such as background and object.")
    colors = values if codes.in_colors else default_colors(given)
    options["classes"] = [
        {"name": name, **({} if codes.in_colors else {"value": value}), "color": list(color)}
        for name, value, color in zip(given, values, colors, strict=True)
    ]
    kind = "colors" if codes.in_colors else "0 and 255" if values == [0, IGNORE] else "indices"
    proposal.guesses.append(f"masks hold {kind}: {len(values)} classes, {', '.join(given)}")
    return options


def color_of(code: int) -> tuple[int, int, int]:
    """Return the color that a number stands for."""
    return code >> 16, code >> 8 & 255, code & 255


def are_even(values: Sequence[int]) -> bool:
    """Say whether values from 0 on have gaps of one size, as 0, 128 and 255 do: these are classes made visible."""
    gaps = {high - low for low, high in pairwise(values)}
    return len(values) > 2 and values[0] == 0 and min(gaps) > 1 and max(gaps) - min(gaps) <= 1


def is_in_colors(path: Path) -> bool:
    """Say whether a mask shows classes by color rather than by value.

    Raises:
        DataError: It cannot be read.
    """
    try:
        read_label_values(path)
    except DataError as error:
        if error.details[0].fault is not Fault.COLORS:
            raise
        return True
    return False


def read_codes(path: Path, in_colors: bool) -> np.ndarray:
    """Read the values of a mask, (H, W); colors as numbers, red first.

    Raises:
        DataError: It cannot be read, or holds values that are not of 8 bits.
    """
    if in_colors:
        colors = read_label_colors(path).astype(np.uint32)
        return (colors[..., 0] << 16) | (colors[..., 1] << 8) | colors[..., 2]
    values = read_label_values(path)
    if wrong := [value for value in (values.max(), values.min()) if not 0 <= value <= IGNORE]:
        raise DataError(f"{path}: label value {wrong[0]}. Labels are 8-bit here: use values from 0 to 255.")
    return values


def tally(codes: np.ndarray) -> dict[int, int]:
    """Count how often each number occurs in `codes`, of any size."""
    found, counts = np.unique(codes, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


def names_of_conversion(folder: Path, values: Sequence[Any]) -> list[str] | None:
    """Return what `prepare.py convert` called the classes of the masks in `folder`; None if it did not make them."""
    file = folder / CLASS_FILE
    if not file.is_file():
        return None
    known = {row.value: row.name for row in read_classes(file)}
    return [known[value] for value in values] if set(values) <= known.keys() else None


def name_of(value: Any, values: Sequence[Any]) -> str:
    """Make up a name for a class that has none."""
    if value in (0, (0, 0, 0)):
        return "background"
    if values == [0, IGNORE]:
        return "foreground"
    return f"class_{value}" if isinstance(value, int) else "color_{:02x}{:02x}{:02x}".format(*value)


def typed_options(kind: type[BaseDataset], options: dict[str, Any]) -> dict[str, Any]:
    """Convert arguments of a dataset to what its constructor takes."""
    from utils.schema import check_arguments

    problems: list[str] = []
    typed = check_arguments(kind, {**options, "data_dir": ".", "split": "all"}, where="", problems=problems)
    assert not problems, problems
    return {name: value for name, value in typed.items() if name not in ("data_dir", "split")}
