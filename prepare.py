"""Look after datasets: ``python prepare.py check --config config.json``, ``stats``, ``init``, ``pack``."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from utils.config import SCHEMA, load_config
from utils.errors import ArgumentParser, UserError, one_line, run

if TYPE_CHECKING:
    import argparse

    from base.base_dataset import BaseDataset
    from dataloader.tools.doctor import Examined, Finding

NOWHERE = "neither in torch's cache nor to be reached, so that training starts from random numbers"
RULES = ("median_freq", "enet", "sqrt_inv")
DOWNLOADS = "VOC, VOCAug (with SBD's annotations), ADE20K, CamVid, COCO, COCOStuff10k, CityScapes"
T = TypeVar("T")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = ArgumentParser(prog="prepare.py", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in {
        "check": "read every file and say what is wrong, and which line of a config fixes it (status 3 if anything is)",
        "stats": "mean and std of the images, shares of the classes, class weights",
        "pack": "put splits into a few large tar files; their folder can then stand as data_dir in a config",
    }.items():
        command = commands.add_parser(name, help=text, description=text)
        add = command.add_argument
        add("-c", "--config", type=Path, metavar="FILE", help="config whose loaders to look at")
        add("-s", "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
        add("--dataset", metavar="NAME", help="instead of a config: type of the dataset")
        add("--data-dir", type=Path, metavar="DIR", help="with --dataset: its folder")
        add("--split", action="append", metavar="NAME", help="with --dataset: part of it (default: all there are)")
        add("--args", default="{}", metavar="JSON", help="with --dataset: its other arguments")
        if name == "pack":
            add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for packed splits")
            add("--force", action="store_true", help="replace packed splits that are there")
            add("--size", type=int, default=256, metavar="MIB", help="size of an archive (default: 256 MiB)")
            continue
        add("--labels-only", action="store_true", help="do not read images")
        add("--no-cache", action="store_true", help="read files again that have not changed since the last time")
    text = "fetch and unpack a dataset; called again, it goes on where it broke off"
    command = commands.add_parser("download", help=text, description=text)
    command.add_argument("name", metavar="NAME", help=DOWNLOADS)
    command.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR", help="where to (default: data)")
    text = "write a config for a folder of images and one of masks"
    add = commands.add_parser("init", help=text, description=text).add_argument
    add("--images", type=Path, required=True, metavar="DIR", help="folder of images")
    add("--masks", type=Path, required=True, metavar="DIR", help="folder of masks, named like the images")
    add("--names", metavar="A,B,...", help="names of the classes, by ascending value")
    add("-o", "--output", type=Path, metavar="FILE", help="config to write (default: named like the data's folder)")
    add("--force", action="store_true", help="replace the file if there is one")
    text = "turn a config of yassouali/pytorch-segmentation into ours, and say what changed"
    command = commands.add_parser("migrate", help=text, description=text)
    command.add_argument("old", type=Path, metavar="OLD.json", help="config of pytorch-segmentation")
    add = command.add_argument
    add("-o", "--output", type=Path, metavar="FILE", help="config to write (default: OLD-migrated.json)")
    add("--force", action="store_true", help="replace the file if there is one")
    text = "make masks with label values of JPEG masks, of colors, of LabelMe's polygons or of COCO's annotations"
    add = commands.add_parser("convert", help=text, description=text).add_argument
    add(
        "--masks",
        type=Path,
        required=True,
        metavar="PATH",
        help="folder of masks or LabelMe files, or a COCO file",
    )
    add("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for PNG masks, with a classes.json")
    add("--names", metavar="A,B,...", help="names of the classes, darkest color first; of polygons, which ones to draw")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="JSON or CSV file with the color of each class (for pictures)",
    )
    add("--nested", action="store_true", help="take the files in folders below, too")
    add("--force", action="store_true", help="replace masks that are there")
    text = "put predictions for Cityscapes' test images into the zip that the benchmark takes"
    add = commands.add_parser("submission", help=text, description=text).add_argument
    add("--predictions", type=Path, required=True, metavar="DIR", help="what `inference.py --save index` wrote")
    add("-o", "--output", type=Path, default=Path("submission.zip"), metavar="FILE", help="zip to write")
    for command in commands.choices.values():
        add = command.add_argument
        add("--workers", type=int, default=min(8, os.cpu_count() or 1), metavar="N", help="processes that read")
        add(
            "--import", dest="modules", action="append", default=[], metavar="MODULE", help="module with own components"
        )
        add("--debug", action="store_true", help="show tracebacks of user errors too")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    others = {
        "download": download,
        "init": init,
        "convert": convert,
        "submission": submission,
        "migrate": migrate,
    }
    if args.command in others:
        return others[args.command](args)
    if (args.config is None) == (args.dataset is None):
        raise UserError("command line: --config and --dataset. Give one of the two.")
    if args.dataset is not None and args.data_dir is None:
        raise UserError("command line: --data-dir is missing. Say where the dataset is.")
    raw = load_config(args.config, args.set) if args.config else {}

    from engine.splits import dataset_of, distinct, examine_split, from_config, from_dataset, packable
    from utils.log import log_to
    from utils.plugins import import_modules

    log_to()
    import_modules(args.modules)
    if args.command == "pack":
        return pack(args, packable(raw) if args.config else from_dataset(args, dataset_of))
    broken: list[Finding] = []
    if args.config:
        splits = from_config(args, raw)
    else:
        splits = from_dataset(args, partial(examine_split, args), broken if args.command == "check" else None)
        if not args.split:
            splits = distinct(splits)
    return check(splits, broken) if args.command == "check" else stats(splits)


def summary(splits: Sequence[Examined]) -> str:
    """Say how many images of which sizes there are, and how often the classes occur."""
    from dataloader.tools.doctor import shares

    lines = []
    for examined in splits:
        sizes = sorted(tuple(record.size) for record in examined.records.values() if record.size)
        shown = f", {_size(sizes[0])} to {_size(sizes[-1])} (height x width)" if sizes else ""
        skipped = f", {examined.unusable} of them skipped" if examined.skips and examined.unusable else ""
        lines.append(f"{examined.split}: {len(examined.records)} images{shown}{skipped}")
    return "\n".join([*lines, "", *shares(splits), ""])


def _size(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"


def check(splits: Sequence[Examined], broken: Sequence[Finding] = ()) -> int:
    """Print what is wrong: with splits that could not be read, and with the others."""
    from dataloader.tools.doctor import diagnose

    print(summary(splits))
    findings = [*broken, *diagnose(splits)]
    for finding in findings:
        print("\n".join(map(one_line, finding.lines())))
    print(f"{len(findings)} findings" if findings else "nothing found that is wrong")
    return 3 if findings else 0


def stats(splits: Sequence[Examined]) -> int:
    """Print figures to put into a config: mean and std of the first split, whose they are in training; class weights of
    all that is trained on.
    """
    from dataloader.tools.doctor import as_list
    from utils.classes import ClassFacts
    from utils.losses.base import resolve_weights

    print(summary(splits))
    first = splits[0]
    if (numbers := first.normalization()) is not None:
        mean, std = map(as_list, numbers)
        print(f'"normalization": {{"mean": {mean}, "std": {std}}}')
    pixels, _ = first.pixels()
    for other in first.joined:
        pixels = pixels + other.pixels()[0]
    if pixels.any():
        for rule in RULES:
            weights = resolve_weights(rule, ClassFacts(class_pixels=pixels.tolist()))  # type: ignore[arg-type]
            assert weights is not None
            print(f'"class_weights": "{rule}"  // {as_list(weights.tolist(), 4)}')
    return 0


def pack(args: argparse.Namespace, datasets: Sequence[BaseDataset]) -> int:
    """Write packed splits, and say which line of a config takes them."""
    from dataloader.tools.packed import check_target
    from dataloader.tools.packed import pack as pack_split

    if args.size < 1:
        raise UserError(f"--size {args.size}: no size of a file. Give a number of MiB, such as 256.")
    for dataset in datasets:
        check_target(dataset, args.output / dataset.split, args.force)
    for dataset in datasets:
        print(one_line(pack_split(dataset, args.output, force=args.force, size=args.size)))
    print(f'"data_dir": {json.dumps(str(args.output))}')
    return 0


def init(args: argparse.Namespace) -> int:
    """Write a config for a folder of images and one of masks."""
    if args.output is not None:
        check_output(args.output, args.force)

    import torch

    from dataloader.tools.init_config import find_layout, propose, run_name
    from dataloader.tools.recipe import BACKBONE
    from engine.check import check_config
    from engine.preflight import source_of_weights
    from utils.checkpoint import write_text
    from utils.config import parse_json
    from utils.plugins import import_modules

    import_modules(args.modules)
    names = names_in(args)
    output = args.output or Path(f"{run_name(find_layout(args.images, args.masks).root)}.json")
    check_output(output, args.force)
    gpus = torch.cuda.device_count()
    source = source_of_weights(BACKBONE)
    options = {"names": names, "num_workers": args.workers, "gpus": gpus, "pretrained": bool(source)}
    proposal = propose(args.images, args.masks, **options)
    check_config(parse_json(proposal.text))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}). Name another file.") from None
    write_text(output, proposal.text)
    print("\n".join(map(one_line, proposal.guesses)))
    print(f"pretrained weights: {source or NOWHERE}")
    print(one_line(f"written to {output}; `python train.py -c {shlex.quote(str(output))}` trains"))
    return 0


def names_in(args: argparse.Namespace) -> list[str] | None:
    """Read the names of classes on the command line.

    Raises:
        UserError: One is empty.
    """
    names = [name.strip() for name in args.names.split(",")] if args.names else None
    if names and not all(names):
        raise UserError(f"--names {args.names}: a name is empty. Separate names by single commas.")
    return names


def convert(args: argparse.Namespace) -> int:
    """Write masks with label values, and say which line of a config takes them; unusable files are a finding."""
    from dataloader.tools.convert import CLASS_FILE
    from dataloader.tools.convert import convert as convert_masks
    from utils.log import log_to

    log_to()
    options = {"names": names_in(args), "classes": args.classes, "nested": args.nested, "force": args.force}
    work, broken = convert_masks(args.masks, args.output, **options)
    for line in (*work.remarks, *(f"not converted: {line}" for line in broken)):
        print(one_line(line))
    print(f"{len(work.masks) - len(broken)} of {len(work.masks)} masks written to {args.output}")
    if len(broken) < len(work.masks):
        print(one_line(f"{len(work.names)} classes: {', '.join(work.names)}"))
        print(f'"classes": {json.dumps(str(args.output / CLASS_FILE))}')
    return 3 if broken else 0


def check_output(path: Path, force: bool) -> None:
    """Refuse to write a config over another, and over the one that comes with the program in any case.

    Raises:
        UserError: There is one.
    """
    if path.resolve() == SCHEMA.with_name("config.json"):
        raise UserError(f"--output {path}: is the default config, which others extend. Name another file.")
    if path.exists() and not force:
        raise UserError(f"--output {path}: is there already. Name another file with --output, or add --force.")


def download(args: argparse.Namespace) -> int:
    """Fetch and unpack a dataset."""
    from dataloader.tools.download import BY_HAND, SOURCES
    from dataloader.tools.download import download as fetch
    from utils.schema import did_you_mean

    known = {name.lower(): name for name in (*SOURCES, *BY_HAND)}
    if args.name.lower() not in known:
        raise UserError(f"download {args.name}: no such dataset. {did_you_mean(args.name, known.values())}")
    for line in fetch(known[args.name.lower()], args.data_dir):
        print(line)
    return 0


def migrate(args: argparse.Namespace) -> int:
    """Write a config of pytorch-segmentation as ours; what the check of it finds is a finding."""
    from utils.config import dump_json, read_json

    output: Path = args.output or args.old.with_name(f"{args.old.stem}-migrated.json")
    if output.exists() and not args.force:
        raise UserError(f"--output {output}: is there already. Name another file, or add --force.")

    old = read_json(args.old)

    from engine.check import check_config
    from engine.migrate import migrate as migrate_config
    from utils.checkpoint import write_text
    from utils.plugins import import_modules

    import_modules(args.modules)
    found = migrate_config(old)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {output}: cannot be written ({error.strerror}). Name another file.") from None
    write_text(output, dump_json(found.config))
    print("\n".join(map(one_line, [*found.changes, f"written to {output}"])))
    try:
        check_config(found.config)
    except UserError as error:
        print("\n".join(map(one_line, ["still to fix by hand:", *error.problems])))
        return 3
    print(f"the config is right; `python train.py -c {output} --check` looks at the data too")
    return 0


def submission(args: argparse.Namespace) -> int:
    """Write the zip for Cityscapes' benchmark; fewer images than it wants are a finding."""
    from dataloader.tools.submission import EXPECTED, IMAGES, write_submission

    count = write_submission(args.predictions, args.output)
    print(f"{count} predictions written to {args.output}")
    if count != EXPECTED:
        print(f"{args.predictions}: the benchmark wants {EXPECTED} images. Predict all of {IMAGES}.")
    return 0 if count == EXPECTED else 3


if __name__ == "__main__":
    sys.exit(run(main))
