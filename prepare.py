"""Look after datasets: ``python prepare.py check --config config.json``, ``stats``, ``init``, ``pack``."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from engine.prepare_flags import parse
from utils.config import SCHEMA, load_config
from utils.errors import UserError, one_line, run
from utils.flags import check_writable

if TYPE_CHECKING:
    from base.base_dataset import BaseDataset
    from dataloader.tools.doctor import Examined, Finding

NOWHERE = "neither in torch's cache nor to be reached, so that training starts from random numbers"
RULES = ("median_freq", "enet", "sqrt_inv")
PLAN = ".plan.json"  # ending of the file with the reasons of a config's choices, beside it
MOST_MINUTES = 60 * 24 * 365
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    others = {
        "download": download,
        "init": plan,
        "plan": plan,
        "convert": convert,
        "submission": submission,
        "migrate": migrate,
    }
    if args.command in others:
        return others[args.command](args)
    if args.command == "check" and args.model:
        return check_labels(args)
    if args.command == "check" and (args.output or args.device):
        raise UserError("command line: --output and --device have no effect without --model. Name a model.")
    if args.config and args.dataset is None:
        given = [("--data-dir", args.data_dir), ("--split", args.split), ("--args", args.args != "{}")]
        fix = "Use --set, such as --set train_loader.args.data_dir=DIR"
    else:
        given, fix = [("--set", args.set if args.config is None else None)], "Give a --config, or use --args"
    if unread := [flag for flag, value in given if value]:
        raise UserError(*(f"command line: {flag} has no effect here. {fix}." for flag in unread))
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


def check_labels(args: argparse.Namespace) -> int:
    """Print which labels models contradict, and write a page and a list of them."""
    if args.dataset is not None:
        raise UserError("--dataset: does not go with --model, which knows its data. Leave it out, or give a --config.")
    if args.set and args.config is None:
        raise UserError("--set: has no effect without --config. Give one.")
    no_effect = {
        "--data-dir": args.data_dir is not None,
        "--split": bool(args.split),
        "--args": args.args != "{}",
        "--labels-only": args.labels_only,
        "--no-cache": args.no_cache,
    }
    for flag, given in no_effect.items():
        if given:
            raise UserError(f"{flag}: has no effect with --model. Leave it out.")
    folder = args.output or Path("suspects")
    page, listed = folder / "suspects.html", folder / "suspects.csv"
    for path in (page, listed):
        check_writable("--output", path)
    raw = load_config(args.config, args.set) if args.config else None

    from engine.check import check_config
    from engine.config import part_to_evaluate
    from engine.label_check import check_labels as find_suspects
    from engine.label_check import summary as summary_of
    from engine.label_check import write_table
    from engine.reporting.suspects import suspects_page
    from utils.checkpoint import write_text
    from utils.devices import choose_device
    from utils.log import log_to
    from utils.plugins import import_modules

    log_to()
    modules = import_modules(args.modules)
    config = None if raw is None else check_config(part_to_evaluate(check_config(raw).to_json()))
    device = choose_device(args.device)
    found = find_suspects(args.model, device, config=config, modules=modules, num_workers=args.workers)
    write_table(listed, found)
    write_text(page, suspects_page(found, listed.name))
    lines = summary_of(found)
    print("\n".join(map(one_line, [*lines, *(f"left out: {line}" for line in found.skipped)])))
    print(f"written to {page} and {listed}")
    return 3 if found.suspicious or found.skipped else 0


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

    if args.archive_size < 1:
        raise UserError(f"--archive-size {args.archive_size}: no size of a file. Give a number of MiB, such as 256.")
    for dataset in datasets:
        check_target(dataset, args.output / dataset.split, args.force)
    for dataset in datasets:
        print(one_line(pack_split(dataset, args.output, force=args.force, size=args.archive_size)))
    print(f'"data_dir": {json.dumps(str(args.output))}')
    return 0


def plan(args: argparse.Namespace) -> int:
    """Write a config for a folder of images and one of masks, and the reasons of its choices beside it."""
    if args.minutes is not None and not 0 < args.minutes <= MOST_MINUTES:
        raise UserError(f"--minutes {args.minutes:g}: no time to train in. Give a number such as 15.")
    if args.output is not None:
        check_output(args.output, args.force)

    from dataloader.tools.init_config import propose
    from dataloader.tools.layouts import find_layout, run_name
    from dataloader.tools.planning import Wish
    from dataloader.tools.recipe import BACKBONE, MINUTES
    from engine.check import check_config
    from engine.preflight import source_of_weights
    from engine.timing import measure, this_machine
    from utils.checkpoint import write_text
    from utils.config import SCHEMA, dump_json, parse_json
    from utils.plugins import import_modules

    import_modules(args.modules)
    names = names_in(args)
    output = args.output or Path(f"{run_name(find_layout(args.images, args.masks).root)}.json")
    check_output(output, args.force)
    source = source_of_weights(BACKBONE)
    machine = this_machine(pretrained=bool(source))
    schema = relative_path(SCHEMA, output.parent)
    minutes = MINUTES if args.minutes is None else args.minutes
    wish = Wish(names, minutes, args.overhead, args.workers, schema)
    proposal = propose(args.images, args.masks, wish, machine, partial(measure, machine=machine))
    check_config({key: value for key, value in parse_json(proposal.text).items() if key != "$schema"})
    check_writable("--output", output)
    write_text(output, proposal.text)
    write_text(output.with_suffix(PLAN), dump_json(proposal.plan))
    print("\n".join(map(one_line, proposal.guesses)))
    print(f"pretrained weights: {source or NOWHERE}")
    print(f"training takes about {proposal.plan['minutes']:.2g} minutes on this machine")
    print(one_line(f"written to {output}; `python train.py -c {shlex.quote(str(output))}` trains"))
    return 0


def relative_path(path: Path, folder: Path) -> str:
    """Write `path` as seen from `folder`; whole where they share no more than the root, or lie on two drives."""
    path, folder = path.resolve(), folder.resolve()
    shared = os.path.commonpath([path, folder]) if path.drive == folder.drive else path.anchor
    return path.as_posix() if Path(shared) == Path(path.anchor) else Path(os.path.relpath(path, folder)).as_posix()


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
    options = {"names": names_in(args), "classes": args.classes, "nested": args.recursive, "force": args.force}
    work, broken = convert_masks(args.masks, args.output, **options)
    for line in (*work.remarks, *(f"not converted: {line}" for line in broken)):
        print(one_line(line))
    print(f"{len(work.masks) - len(broken)} of {len(work.masks)} masks written to {args.output}")
    if len(broken) < len(work.masks):
        print(one_line(f"{len(work.names)} classes: {', '.join(work.names)}"))
        print(f'"classes": {json.dumps(str(args.output / CLASS_FILE))}')
        line = f"`python prepare.py init --images FOLDER --masks {shlex.quote(str(args.output))}` makes a config"
        print(one_line(line))
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
    check_output(output, args.force)

    old = read_json(args.old)

    from engine.check import check_config
    from engine.migrate import migrate as migrate_config
    from utils.checkpoint import write_text
    from utils.plugins import import_modules

    import_modules(args.modules)
    found = migrate_config(old)
    check_writable("--output", output)
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
