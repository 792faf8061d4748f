"""The commands of prepare.py and their flags."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from utils.flags import CommandParser, add_shared, keep_name, program

DOWNLOADS = "VOC, VOCAug (with SBD's annotations), ADE20K, CamVid, COCO, COCOStuff10k, CityScapes"

LOOKED_AT = {
    "check": (
        "read every file and say what is wrong, and which line of a config fixes it (status 3 if anything is)",
        "images and labels of a config",
    ),
    "stats": ("mean and std of the images, shares of the classes, class weights", "figures to put into a config"),
    "pack": (
        "put splits into a few large tar files; their folder can then stand as data_dir in a config",
        "the splits of a config",
    ),
}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = CommandParser(
        program("prepare"),
        usage="COMMAND",
        description="Look after datasets: make a config for your own, check them, fetch public ones.",
        examples=[
            ("init --images mydata/images --masks mydata/masks", "write a config for your own data"),
            ("check -c mydata.json", "see what is wrong with it"),
            ("download CamVid --data-dir data/camvid", "fetch a public dataset"),
        ],
        pages=["howto/own-data.md", "howto/public-datasets.md"],
    )
    commands = parser.add_subparsers(title="commands", dest="command", required=True, metavar="COMMAND")
    for name, (text, what) in LOOKED_AT.items():
        add_reader(commands, name, text, what)
    add_others(commands)
    for command in commands.choices.values():
        add_shared(command, "--workers", default=min(8, os.cpu_count() or 1))
        command.share("--import", "--debug")
    return parser.parse_args(argv)


def add_reader(commands: argparse._SubParsersAction[CommandParser], name: str, text: str, what: str) -> None:
    """Add a command that reads the splits of a config or of a dataset.

    Args:
        commands: Where to.
        name: Of the command.
        text: What it does.
        what: What its first example does.
    """
    output = " -o tars" if name == "pack" else ""
    examples = [
        (f"-c mydata.json{output}", what),
        (f"--dataset CamVid --data-dir data/camvid{output}", "of a dataset, without a config"),
    ]
    pages = ["howto/own-data.md", "howto/public-datasets.md"]
    if name == "check":
        examples.append(("--model saved/mydata-folds/*/latest", "labels that models contradict, with pictures"))
        pages.append("howto/label-errors.md")
    usage = "(-c FILE | --dataset NAME" + (" | --model CKPT)" if name == "check" else ")")
    usage += " -o DIR" if name == "pack" else ""
    command = commands.add_parser(name, help=text, description=text, usage=usage, examples=examples, pages=pages)
    group = command.add_argument_group("data, of a config")
    add_shared(group, "--config", " whose loaders to look at")
    add_shared(group, "--set")
    group = command.add_argument_group("data, without a config")
    group.add_argument("--dataset", metavar="NAME", help="type of the dataset")
    add_shared(group, "--data-dir", ", with --dataset")
    add_shared(group, "--split", ", with --dataset (default: all there are)", action="append")
    group.add_argument("--args", default="{}", metavar="JSON", help="its other arguments, with --dataset")
    if name == "pack":
        group = command.add_argument_group("result")
        add_shared(group, "--output", " packed splits", required=True, metavar="DIR")
        add_shared(group, "--force")
        shown = "size of an archive (default: 256 MiB)"
        size = group.add_argument("--archive-size", type=int, default=256, metavar="MIB", help=shown)
        keep_name(group, "--size", size)
        return
    group = command.add_argument_group("what to read")
    add = group.add_argument
    if name == "check":
        models = command.add_argument_group("labels that models contradict, instead of files that are wrong")
        add_shared(models, "--model", "; several, as of `train.py --folds`", nargs="+")
        add_shared(models, "--output", " a page with pictures, and a list (default: suspects)", metavar="DIR")
        add_shared(models, "--device")
    add("--labels-only", action="store_true", help="do not read images")
    add("--no-cache", action="store_true", help="read files again that have not changed since the last time")


def add_others(commands: argparse._SubParsersAction[CommandParser]) -> None:
    """Add the commands that read no dataset."""

    def command(name: str, text: str, example: tuple[str, str], usage: str, page: str = "own-data") -> CommandParser:
        pages = [f"howto/{page}.md" if page != "coming-from" else "coming-from.md"]
        return commands.add_parser(name, help=text, description=text, usage=usage, examples=[example], pages=pages)

    text = "fetch and unpack a dataset; called again, it goes on where it broke off"
    made = command("download", text, ("CamVid --data-dir data/camvid", "into data/camvid"), "NAME", "public-datasets")
    group = made.add_argument_group("data")
    group.add_argument("name", metavar="NAME", help=DOWNLOADS)
    add_shared(group, "--data-dir", ": where to (default: data)", default=Path("data"))

    add_planners(command)

    text = "turn a config of yassouali/pytorch-segmentation into ours, and say what changed"
    made = command("migrate", text, ("old.json -o new.json", "a config of another program"), "OLD.json", "coming-from")
    group = made.add_argument_group("configs")
    group.add_argument("old", type=Path, metavar="OLD.json", help="config of pytorch-segmentation")
    add_shared(group, "--output", " the config (default: OLD-migrated.json)")
    add_shared(group, "--force")

    text = "make masks with label values of JPEG masks, of colors or of files of annotation tools"
    example = ("--masks colored -o masks --classes classes.csv", "colors to label values")
    made = command("convert", text, example, "--masks PATH -o DIR")
    group = made.add_argument_group("masks")
    shown = ": their folder, one of LabelMe files, or a file of COCO, CVAT or Label Studio"
    add_shared(group, "--masks", shown, required=True, metavar="PATH")
    add_shared(group, "--names", ", darkest color first; of polygons, which ones to draw")
    shown = "JSON or CSV file with the color of each class (for pictures)"
    group.add_argument("--classes", type=Path, metavar="FILE", help=shown)
    add_shared(group, "--recursive", formerly="--nested")
    group = made.add_argument_group("result")
    add_shared(group, "--output", " PNG masks, with a classes.json", required=True, metavar="DIR")
    add_shared(group, "--force")

    text = "put predictions for Cityscapes' test images into the zip that the benchmark takes"
    example = ("--predictions outputs -o submission.zip", "what `inference.py --save index` wrote")
    made = command("submission", text, example, "--predictions DIR", "public-datasets")
    group = made.add_argument_group("files")
    shown = "what `inference.py --save index` wrote"
    group.add_argument("--predictions", type=Path, required=True, metavar="DIR", help=shown)
    add_shared(group, "--output", " the zip (default: submission.zip)", default=Path("submission.zip"))


def add_planners(command: Callable[..., CommandParser]) -> None:
    """Add `plan`, and `init`, its name where nobody thinks of the time."""
    text = "write a config for a folder of images and one of masks, with the reason of each choice"
    for name, words in (("plan", " --minutes 5"), ("init", "")):
        example = (f"--images mydata/images --masks mydata/masks{words}", "writes mydata.json")
        made = command(name, text, example, "--images DIR --masks PATH", "plan" if name == "plan" else "own-data")
        group = made.add_argument_group("data")
        add_shared(group, "--images", ": their folder", type=Path, required=True)
        shown = ": their folder, named like the images; or a file or folder of an annotation tool"
        add_shared(group, "--masks", shown, required=True, metavar="PATH")
        add_shared(group, "--names", ", by ascending value")
        group.add_argument(
            "--overhead",
            action=argparse.BooleanOptionalAction,
            help="images have no above and below, as from the air: turn them by 90 degrees (default: found out)",
        )
        group = made.add_argument_group("training")
        group.add_argument("--minutes", type=float, metavar="N", help="that it may take (default: 15)")
        group = made.add_argument_group("result")
        add_shared(group, "--output", " the config (default: named like the data's folder)")
        add_shared(group, "--force")
