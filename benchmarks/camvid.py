"""Mean IoU of a CamVid recipe on validation and on drives that training never saw, several seeds each.

    python -m benchmarks.camvid DATA                               # configs/camvid.json: 9 runs, one after another
    python -m benchmarks.camvid DATA --on 0006R0 --seeds 0 --steps 500
    python -m benchmarks.camvid DATA --set small-crops train_loader.args.crop_size=[128,160]
    python -m benchmarks.camvid DATA --recipe benchmarks/camvid_half.json --on validation --ablations --json ablations
    python -m benchmarks.camvid DATA --ablations "rare-class crops" copy-paste --classes pole "sign symbol" fence

Validation's frames are neighbors of training's in drive 0016E5. So a drive of training's three is held out in turn, and
the other two are trained on for as many steps. A figure is that of the last step: nothing is chosen by the images that
it is measured on. What is finished in --out is passed over, so that the same command goes on after a kill. With --json
the figures are written to benchmarks/results/, with what each run came to: what is there already of the same recipe is
not trained again, so that the runs of one table can be made on several days.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from benchmarks import results
from benchmarks.results import Figure, show, write
from engine.check import check_config
from engine.children import train_command
from engine.repeats import Member, finished_run, train_member
from utils.config import load_config, override
from utils.errors import ConfigError, PeerFailed, run
from utils.log import log_to
from utils.schema import did_you_mean

logger = logging.getLogger("segwright")

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "configs" / "camvid.json"
FOLDS = {"0016E5": 0, "0006R0": 1, "0001TP": 2}  # drives of the training set: the largest is the first fold
VALIDATION = "validation"
AS_IT_IS = "recipe"  # the variant that is none
PER_CLASS = "val/Class_IoU/"
BESIDE = "above the recipe of the same seed"
ABLATIONS: Mapping[str, Sequence[str]] = {  # the recipe's loss is CE + Dice with class weights
    "CE": ('loss={"type":"CrossEntropyLoss2d"}',),
    "CE, class weights": ('loss={"type":"CrossEntropyLoss2d","args":{"class_weights":"sqrt_inv"}}',),
    "CE + Dice": ('loss={"type":"CE_DiceLoss","args":{"class_weights":null}}',),
    "CE + Lovasz": ('loss=["CrossEntropyLoss2d","LovaszSoftmax"]',),
    "focal": ('loss={"type":"FocalLoss"}',),
    "OHEM": ('loss={"type":"OHEMCrossEntropyLoss"}',),
    "rare-class crops": ("train_loader.args.rare_crop=0.5",),
    "copy-paste": ('train_loader.args.mix={"type":"CopyPaste","args":{"classes":["pole","sign symbol","fence"]}}',),
    "no EMA": ("trainer.ema=null",),
    "output stride 8": ("arch.args.output_stride=8",),
    "output stride 32": ("arch.args.output_stride=32",),
    "fp32": ("trainer.precision=fp32",),
    "no colors": ("train_loader.args.color_jitter=false",),
    "normalized by the data set": ("normalization=dataset",),
    "strong light": (
        "normalization=dataset",
        'train_loader.args.color_jitter={"brightness":0.5,"contrast":0.2,"saturation":0.2,"gamma":1.0}',
    ),
    "crops of half the sides": ("train_loader.args.crop_size=[48,64]",),
}


class Case(NamedTuple):
    """One training.

    Args:
        variant: What is different from the recipe.
        on: `VALIDATION`, or the drive that is held out.
        seed: Of the training.
    """

    variant: str
    on: str
    seed: int

    def __str__(self) -> str:
        return f"{self.variant}, {self.on}, seed {self.seed}"


class Outcome(NamedTuple):
    """What a finished run came to after its last step.

    Args:
        mean: Mean IoU, in percent.
        classes: IoU of each class, in percent.
        git: Commit of its code.
        device: On which it was trained.
    """

    mean: float
    classes: Mapping[str, float]
    git: str
    device: str


def member(case: Case, raw: Mapping[str, Any], changes: Sequence[str], data: Path, out: Path) -> Member:
    """Make the training of a case.

    Args:
        case: Which one.
        raw: The recipe.
        changes: ``KEY=VALUE`` of its variant.
        data: Folder of the data set.
        out: Folder of all runs.
    """
    folder = json.dumps(str(data.resolve()))
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{raw['name']} {case}")
    sets = [*changes, f"seed={case.seed}", f"name={name}", f"trainer.save_dir={json.dumps(str(out.resolve()))}"]
    sets.append(f"train_loader.args.data_dir={folder}")
    if case.on == VALIDATION:
        sets.append(f"val_loader.args.data_dir={folder}")
    else:
        split = {"share": 1 / len(FOLDS), "by": "^.{6}", "fold": FOLDS[case.on]}
        sets += ["val_loader=null", f"train_loader.args.val_split={json.dumps(split)}"]
        sets.append("trainer.val_per_epochs=1000000")  # validation after the last step is what counts
    return Member(str(case), sets, check_config(override(raw, sets)))


def train_all(members: Mapping[Case, Member], words: Sequence[str]) -> dict[Case, Path]:
    """Train what is not finished yet; returns the folders of what is then: some may have failed, or reached `max_time`.

    Args:
        members: The trainings.
        words: The command, without what is different between them.
    """
    folders = {}
    for number, (case, training) in enumerate(members.items(), 1):
        folder = finished_run(training)
        if folder is None:
            logger.info("%d of %d: %s", number, len(members), case)
            with suppress(PeerFailed):  # which has said why; the others are worth having
                train_member(training, words, resume=True)
            folder = finished_run(training)
        if folder is not None:
            folders[case] = folder
            logger.info("%s: mean IoU %.2f %%", case, came_to(folder).mean)
    return folders


def came_to(folder: Path) -> Outcome:
    """Read what a finished run came to."""
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    classes = {key.removeprefix(PER_CLASS): value for key, value in last.items() if key.startswith(PER_CLASS)}
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    return Outcome(
        100 * last["val/Mean_IoU"],
        {name: round(100 * value, 2) for name, value in classes.items() if value is not None},
        str(environment["git"]),
        environment["device"],
    )


def made_by(found: Iterable[Outcome]) -> tuple[str, str]:
    """Tell of which commit finished runs are, all of them where there are several, and on which device the last was."""
    found = list(found)
    commits = sorted({each.git for each in found})
    if len(commits) > 1:
        logger.warning("runs are of several commits, %s; figures of one table should be of one.", ", ".join(commits))
    return ", ".join(commits), found[-1].device


def fingerprint(raw: Mapping[str, Any]) -> str:
    """Return what two recipes have in common only if they are the same."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:12]


def kept(name: str, raw: Mapping[str, Any], variants: Mapping[str, Sequence[str]]) -> dict[Case, Outcome]:
    """Read the runs of a file in benchmarks/results/ that are of a recipe, with these changes.

    Args:
        name: Of the file, which need not be there.
        raw: The recipe.
        variants: Changes by name.
    """
    try:
        runs = results.read(name, results.folder_to_write()).get("runs", [])
    except FileNotFoundError:
        return {}
    found = {}
    for each in runs:
        if each["recipe"] == fingerprint(raw) and each["changes"] == list(variants.get(each["variant"], [None])):
            case = Case(*(each[field] for field in Case._fields))
            found[case] = Outcome(*(each[field] for field in Outcome._fields))
    return found


def as_kept(case: Case, outcome: Outcome, raw: Mapping[str, Any], changes: Sequence[str]) -> dict[str, Any]:
    """Say of a run what `kept` reads."""
    return {"recipe": fingerprint(raw), "changes": list(changes), **case._asdict(), **outcome._asdict()}


def figures(found: Mapping[Case, Outcome], classes: Sequence[str] = ()) -> list[Figure]:
    """Make the rows of the table: mean IoU by variant and by where it was measured, over seeds.

    Beside it stands by how much a variant differs from the recipe of the same seed.

    Raises:
        ConfigError: There is no such class.
    """
    rows: dict[tuple[str, str], list[float]] = {}
    several = len({case.variant for case in found}) > 1
    whole = "all classes" if classes else "mean IoU" if several else ""
    for case, outcome in found.items():
        where = case.on if case.on == VALIDATION else f"unseen drive {case.on}"
        what = f"{case.variant}: {where}"
        rows.setdefault((what, whole), []).append(outcome.mean)
        recipe = found.get(case._replace(variant=AS_IT_IS))
        if case.variant != AS_IT_IS and recipe is not None:
            rows.setdefault((what, BESIDE), []).append(outcome.mean - recipe.mean)
        for name in classes:
            if name not in outcome.classes:
                raise ConfigError(f"--classes: no class is called '{name}'. {did_you_mean(name, outcome.classes)}")
        if classes:
            rows.setdefault((what, ", ".join(classes)), []).append(mean(outcome.classes[name] for name in classes))
    return [
        Figure(what, "points" if column == BESIDE else "%", values, column) for (what, column), values in rows.items()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.camvid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=Path, help="folder that holds train/, trainannot/, val/, valannot/")
    add("--recipe", type=Path, default=RECIPE, help="config to train (default: configs/camvid.json)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--on", nargs="+", default=[VALIDATION, "0006R0", "0001TP"], choices=[VALIDATION, *FOLDS])
    add("--set", action="append", nargs="+", default=[], metavar=("NAME", "KEY=VALUE"), help="a variant of the recipe")
    add("--ablations", nargs="*", choices=ABLATIONS, metavar="NAME", help="these variants, or all that have a name")
    add("--classes", nargs="+", default=[], metavar="NAME", help="report the mean IoU of these beside that of all")
    add("--steps", type=int, help="length of every run (default: the recipe's)")
    add("--device", help="as train.py takes it")
    add("--out", type=Path, default=Path("saved/benchmark-camvid"), help="where runs lie")
    add("--json", metavar="NAME", nargs="?", const="camvid", help="write the figures to benchmarks/results/NAME.json")
    args = parser.parse_args(arguments)
    raw = load_config(args.recipe)
    steps = args.steps or raw.get("trainer", {}).get("max_steps")
    if steps is None:
        parser.error("the recipe has no trainer.max_steps, and epochs of fewer images have fewer steps. Give --steps.")
    raw = override(raw, [f"trainer.max_steps={steps}"])
    ablations = ABLATIONS if args.ablations == [] else args.ablations or ()
    variants = {
        AS_IT_IS: (),
        **{name: ABLATIONS[name] for name in ablations},
        **{name: sets for name, *sets in args.set},
    }
    log_to()
    for name in [name for name, sets in variants.items() if sets and override(raw, sets) == raw]:
        logger.warning("'%s' is the recipe itself, and passed over.", name)
        del variants[name]
    cases = [Case(*each) for each in itertools.product(variants, args.on, args.seeds)]
    cases.sort(key=lambda case: args.seeds.index(case.seed))  # early runs already say something about all
    # A mistake in the last one is found before the first one has been trained.
    members = {case: member(case, raw, variants[case.variant], args.data, args.out) for case in cases}
    known = {AS_IT_IS: (), **ABLATIONS, **variants}
    found = kept(args.json, raw, known) if args.json else {}
    members = {case: training for case, training in members.items() if case not in found}
    words = [*train_command(None, str(ROOT / "train.py")), "--config", str(args.recipe)]
    words += ["--set", f"trainer.max_steps={steps}", *(["--device", args.device] if args.device else [])]
    folders = train_all(members, words)
    found |= {case: came_to(folder) for case, folder in folders.items()}
    names, places = list(known), [VALIDATION, *FOLDS]
    by_table = sorted(found, key=lambda case: (names.index(case.variant), places.index(case.on), case.seed))
    found = {case: found[case] for case in by_table}
    rows = show(figures(found, args.classes))
    if args.json and found:
        commit, device = made_by(found.values())  # which need not be what is there now
        title = f"{raw['name']}: mean IoU after {steps:,} steps"
        runs = [as_kept(case, outcome, raw, known[case.variant]) for case, outcome in found.items()]
        write(args.json, title, rows, device=device, made_by=commit, runs=runs)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
