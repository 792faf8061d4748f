"""From a folder of images and one of masks to a config that trains on them, with all that was guessed said."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from base.base_dataloader import MOST_SKIPPED
from dataloader import scan
from dataloader.datasets.files import image_files
from dataloader.datasets.folder import Folder, read_classes
from dataloader.datasets.naming import guess_names
from dataloader.tools import doctor
from dataloader.tools.convert import CLASS_FILE
from dataloader.tools.recipe import HELD_OUT, RARE, Recipe, choose_recipe
from utils.classes import IGNORE, default_colors
from utils.errors import ConfigError, DataError, Fault, one_line
from utils.images import read_label_colors, read_label_values

MOST_CLASSES = 64  # values in masks; more of them are soft edges, or photographs
KEPT = 0.8  # share of the pixels that classes must have where other values are taken for soft edges
SPLITS = ("train", "val")
VOID = "void"  # among the names: what has no class


@dataclass
class Proposal:
    """A config for own data.

    Args:
        text: The config, with comments.
        guesses: What was found and what was assumed, a line each.
    """

    text: str = ""
    guesses: list[str] = field(default_factory=list)


def propose(
    images: Path,
    masks: Path,
    *,
    names: Sequence[str] | None = None,
    num_workers: int = 0,
    gpus: int = 0,
    pretrained: bool = False,
    schema: str = "config.schema.json",
) -> Proposal:
    """Read all masks and images and write a config.

    Args:
        images: Folder of images, or with a folder of them for each of train and val.
        masks: Folder of masks, likewise.
        names: Names of the classes, by ascending value.
        num_workers: Processes that read.
        gpus: How many this machine has; without one, network and crops are small.
        pretrained: Whether public weights can be had.
        schema: Path of the JSON Schema, as the config names it for editors.

    Raises:
        DataError: Nothing can be made of the folders.
    """
    proposal = Proposal()
    layout = find_layout(images, masks)
    root, splits, folders = layout.root, layout.splits, layout.folders
    nested = not all(image_files(folder) for folder in chain.from_iterable(folders))
    for folder in chain.from_iterable(folders):
        if not image_files(folder, nested=nested):
            raise DataError(f"{folder}: holds no image file. Name the folder that the files lie in.")
    naming = guess_names(*(image_files(folder, nested=nested) for folder in folders[0]), folders=folders[0])
    said = [f"{key.replace('_', ' ')} '{value}'" for key, value in naming.items()]
    proposal.guesses.append(f"masks are named like their images{', but for ' if said else ''}{' and '.join(said)}")
    if nested:
        naming["nested"] = True
        proposal.guesses.append("images lie in folders below, which are taken together")
    before, after = str(naming.get("mask_prefix", "")), str(naming.get("mask_suffix", ""))
    files: list[Path] = []
    for _, folder in folders:
        files += image_files(folder, before=before, remove=after, nested=nested).values()
    options = {
        "image_dir": layout.image_dir,
        "mask_dir": layout.mask_dir,
        **naming,
        **guess_classes(files, names, proposal),
    }
    examined = []
    for split in splits:
        dataset = Folder(data_dir=root, split=split, **typed_options(options))
        records = scan.examine(dataset, name=split, num_workers=num_workers)
        examined.append(doctor.Examined(split, dataset, records, training=split != "val"))
    for finding in doctor.diagnose(examined):
        proposal.guesses += finding.lines()
    if any(must_skip(each, root, HELD_OUT if splits == ("all",) else 1.0) for each in examined):
        options["on_bad_sample"] = "skip"
    recipe = choose_recipe(examined[0], held_out=splits == ("all",), gpus=gpus, pretrained=pretrained)
    proposal.text = write(layout, options, recipe, proposal, schema)
    return proposal


@dataclass(frozen=True)
class Layout:
    """Where images and masks lie.

    Args:
        root: The folder that both are in.
        image_dir: Name of the folder, or folders, of images, as `Folder` wants it.
        mask_dir: Likewise, of masks.
        splits: "train" and "val" where each has folders of its own, else "all".
        folders: Folder of images and folder of masks of each split.
    """

    root: Path
    image_dir: str
    mask_dir: str
    splits: tuple[str, ...]
    folders: Sequence[tuple[Path, Path]]


def find_layout(images: Path, masks: Path) -> Layout:
    """Recognise folders of both, folders with train and val in them, and folders in train beside those in val.

    Raises:
        DataError: One is no folder, or both are the same.
    """
    if images == masks and (images / "train" / "images").is_dir() and (images / "train" / "masks").is_dir():
        images, masks = images / "train" / "images", images / "train" / "masks"
    root, image_dir, mask_dir = common_root(images, masks)
    inside = [(images / split, masks / split) for split in SPLITS]
    if all(folder.is_dir() for folder in chain.from_iterable(inside)):
        return Layout(root, image_dir, mask_dir, SPLITS, inside)
    if root.resolve().name == SPLITS[0]:
        home = root.parent if root.name == SPLITS[0] else root.resolve().parent
        beside = [(home / split / image_dir, home / split / mask_dir) for split in SPLITS]
        if all(folder.is_dir() for folder in chain.from_iterable(beside)):
            return Layout(home, image_dir, mask_dir, SPLITS, beside)
    return Layout(root, image_dir, mask_dir, ("all",), [(images, masks)])


def must_skip(examined: doctor.Examined, root: Path, share: float) -> bool:
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


def common_root(images: Path, masks: Path) -> tuple[Path, str, str]:
    """Find the folder that both are in, and their names below it.

    Raises:
        DataError: One is no folder, or both are the same.
    """
    for flag, folder in (("--images", images), ("--masks", masks)):
        if not folder.is_dir():
            raise DataError(f"{flag} {folder}: is no folder. Name the folder that holds the files.")
    if images.resolve() == masks.resolve():
        raise DataError(f"--masks {masks}: is the folder of the images. Put masks into one of their own.")
    if images.is_absolute() != masks.is_absolute() or ".." in (*images.parts, *masks.parts):
        images, masks = images.resolve(), masks.resolve()
    root = Path(os.path.commonpath([images, masks]) or ".")
    return root, images.relative_to(root).as_posix(), masks.relative_to(root).as_posix()


@dataclass
class Codes:
    """What masks hold.

    Args:
        in_colors: Whether classes are shown by color; then codes are colors as numbers, red first.
        pixels: Pixels of each code.
        inner: Those whose neighbours to the right and below have the same code.
    """

    in_colors: bool
    pixels: Counter[int] = field(default_factory=Counter)
    inner: Counter[int] = field(default_factory=Counter)


def count_codes(files: Sequence[Path]) -> Codes:
    """Count the values, or colors, in all masks."""
    from tqdm import tqdm

    codes = Codes(is_in_colors(files[0]))
    for path in tqdm(files, desc="masks", unit="file", leave=False, disable=None):
        mask = read_codes(path, codes.in_colors)
        codes.pixels.update(tally(mask))
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
    if codes.in_colors:
        values = [(code >> 16, code >> 8 & 255, code & 255) for code in values]
    elif values != [0, IGNORE] and IGNORE in values:
        values.remove(IGNORE)
        proposal.guesses.append("255 is void")
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


def typed_options(options: dict[str, Any]) -> dict[str, Any]:
    """Convert arguments of `Folder` to what its constructor takes."""
    from utils.schema import check_arguments

    problems: list[str] = []
    typed = check_arguments(Folder, {**options, "data_dir": ".", "split": "all"}, where="", problems=problems)
    assert not problems, problems
    return {name: value for name, value in typed.items() if name not in ("data_dir", "split")}


def write(layout: Layout, options: dict[str, Any], recipe: Recipe, proposal: Proposal, schema: str) -> str:
    """Write the config's text; what it assumes goes to the proposal."""
    splits, held_out = layout.splits, len(layout.splits) == 1
    proposal.guesses += recipe.reasons
    if held_out:
        proposal.guesses.append("every fifth image is held out for validation")
    data = {"data_dir": str(layout.root), **options}
    training = {
        "batch_size": recipe.batch,
        "augment": True,
        "crop_size": recipe.crop,
        "scale": {"range": [0.75, 1.5]},
        "flip": True,
        "color_jitter": True,
        "num_workers": 2,
    }
    validation = f"""
  "val_loader": {{"type": "Folder", "args": {{
    {_lines({**data, "split": splits[-1], "batch_size": 1, "num_workers": 2})}
  }}}},
"""
    said = "\n".join(f"// {one_line(line)}" for line in proposal.guesses)
    every = max(1, recipe.epochs // 20)
    return f"""// Made by `prepare.py init`. What it found and guessed:
{said}
{{
  "$schema": {json.dumps(schema, ensure_ascii=False)},
  "name": {json.dumps(run_name(layout.root))},

  // "pretrained": true starts from ImageNet: better with few images. Weights are downloaded unless torch has them;
  // where that fails, training says so and starts from random numbers. "required" would stop instead.
  "arch": {json.dumps(recipe.arch)},

  "train_loader": {{"type": "Folder", "args": {{
    {_lines({**data, "split": splits[0], **({"val_split": HELD_OUT} if held_out else {}), **training})}
  }}}},
{"" if held_out else validation}
  // Measured on the training images.
  "normalization": {json.dumps(recipe.normalization)},
  "optimizer": {json.dumps(recipe.optimizer)},
  "loss": {json.dumps(recipe.loss)},
  "lr_scheduler": {{"type": "Poly", "args": {{"warmup_epochs": 1}}}},
  // Whole images at their own size are validated, with the average of the last weights.
  "trainer": {{"epochs": {recipe.epochs}, "val_per_epochs": {every}, "monitor": "max Mean_IoU", "ema": 0.99}}
}}
"""


def _lines(values: dict[str, Any]) -> str:
    """Write keys and values, a line each; a list of objects takes a line for each of them."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            shown = "[\n      " + ",\n      ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n    ]"
        else:
            shown = json.dumps(value, ensure_ascii=False)
        lines.append(f'"{key}": {shown}')
    return ",\n    ".join(lines)


def run_name(root: Path) -> str:
    """Make a name for runs on the data in `root`."""
    plain = "".join(c if c.isalnum() or c in "-_" else "_" for c in root.resolve().name).strip("_")
    return plain if plain and plain != "runs" else "own_data"
