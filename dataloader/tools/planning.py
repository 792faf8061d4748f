"""From what a dataset and a machine are like to a config: the rules one after the other, and the text with reasons."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from base.base_dataloader import HoldOut
from base.base_dataset import BaseDataset
from dataloader.hold_out import hold_out
from dataloader.tools import recipe
from dataloader.tools.fingerprint import Fingerprint
from dataloader.tools.layouts import Layout, run_name
from dataloader.tools.recipe import MINUTES, Choice, Length, Machine, Measured
from utils.errors import one_line

SEEDS = 50  # to try

Measure = Callable[[Mapping[str, Any]], Measured | None]  # what a config costs; None where it does not fit

NOTES = {  # what a person who changes a section may want to know
    "arch": '"pretrained": true starts from ImageNet: better with few images. Weights are downloaded unless torch has '
    'them; where that fails, training says so and starts from random numbers. "required" would stop instead.',
    "normalization": "Measured on the training images.",
    "trainer": "Whole images are validated, with the average of the last weights.",
}


@dataclass(frozen=True)
class Wish:
    """What a person says of a plan.

    Args:
        names: Names of the classes, by ascending value.
        minutes: That training may take.
        overhead: Whether images are taken from above; None to find out.
        num_workers: Processes that read now.
        schema: Path of the JSON Schema, as the config names it for editors.
    """

    names: Sequence[str] | None = None
    minutes: float = MINUTES
    overhead: bool | None = None
    num_workers: int = 0
    schema: str = "config.schema.json"


@dataclass(frozen=True)
class Draft:
    """What is known before anything is chosen.

    Args:
        layout: Where images and masks lie.
        kind: Name of the dataset.
        options: Its arguments, besides folder and split.
        dataset: The training set.
        fingerprint: What it is like.
        shown: The classes that each of its images shows, by key; broken ones are missing.
        machine: What there is to train with.
        wish: What was asked for.
    """

    layout: Layout
    kind: str
    options: Mapping[str, Any]
    dataset: BaseDataset
    fingerprint: Fingerprint
    shown: Mapping[str, frozenset[str]]
    machine: Machine
    wish: Wish


@dataclass
class Plan:
    """A config, and why it is as it is.

    Args:
        draft: What it follows from.
        config: The config, as plain values.
        choices: What was chosen, and why.
        tried: Networks that were measured, a line each.
        minutes: How long training takes.
    """

    draft: Draft
    config: dict[str, Any] = field(default_factory=dict)
    choices: list[Choice] = field(default_factory=list)
    tried: list[str] = field(default_factory=list)
    minutes: float = 0.0

    def take(self, choice: Choice) -> Any:
        """Note a choice, and return its value."""
        self.choices.append(choice)
        return choice.value

    def correct(self, choice: Choice) -> Any:
        """Note a choice in the place of an earlier one of the same key, and return its value."""
        self.choices = [choice if each.what == choice.what else each for each in self.choices]
        return choice.value

    @property
    def summary(self) -> list[str]:
        """What was chosen, a line each."""
        return [f"{choice.what}: {choice.reason}" for choice in self.choices]

    def to_json(self) -> dict[str, Any]:
        """Write it as plain values."""
        machine = {**asdict(self.draft.machine), "tried": self.tried}
        return {
            "minutes": round(self.minutes, 2),
            "choices": [choice._asdict() for choice in self.choices],
            "machine": machine,
            "fingerprint": self.draft.fingerprint.to_json(),
        }


def make_plan(draft: Draft, measure: Measure) -> Plan:
    """Follow the rules one after the other.

    Args:
        draft: What they follow from.
        measure: Called with configs to try; None for one that does not fit into memory.

    Raises:
        DataError: There are too few images, or too little memory.
    """
    plan = Plan(draft)
    fingerprint, machine, wish = draft.fingerprint, draft.machine, draft.wish
    val_split = plan.take(keep_classes(draft, recipe.choose_validation(fingerprint)))
    images, validated = _counts(draft, val_split)
    stride = plan.take(recipe.choose_stride(fingerprint, machine))
    resize = plan.take(recipe.choose_scale(fingerprint, machine, stride))
    size = recipe.working_size(fingerprint, resize)
    crop = plan.take(recipe.choose_crop(size, machine))
    rotation = recipe.choose_rotation(fingerprint, wish.overhead)
    overhead = rotation.value is not None
    plan.config = {
        "name": run_name(draft.layout.root),
        "arch": {},
        **_loaders(plan, images, val_split, resize, crop, rotation),
        "normalization": {
            "mean": recipe.rounded(fingerprint.mean),
            "std": recipe.rounded([max(value, 1e-6) for value in fingerprint.std]),
        },
        "optimizer": plan.take(recipe.choose_optimizer(machine)),
        "loss": plan.take(recipe.choose_loss(fingerprint)),
        "lr_scheduler": {"type": "Poly", "args": {"warmup_epochs": 1}},
        "trainer": {"epochs": 1, "monitor": "max Mean_IoU"},
    }
    plan.take(recipe.choose_output_stride(crop))
    choose_network(plan, measure, recipe.networks(fingerprint, machine, stride, crop), images, validated)
    plan.take(recipe.choose_prediction(fingerprint, overhead))
    return plan


def _counts(draft: Draft, val_split: Any) -> tuple[int, int]:
    """Return how many images are trained on and how many are validated on."""
    if val_split is None:
        return draft.fingerprint.images, draft.fingerprint.validation
    kept, held_out = _sides(draft, val_split)
    return len(kept), len(held_out)


def _sides(draft: Draft, val_split: Any) -> tuple[list[int], list[int]]:
    """Return which images are trained on and which are held out, by a run whose seed is 0."""
    options = HoldOut(**val_split) if isinstance(val_split, dict) else HoldOut(share=val_split)
    return hold_out(draft.dataset, options, seed=0)


def keep_classes(draft: Draft, choice: Choice) -> Choice:
    """Hold out other images where training would be left with none of a class; say so where that cannot be."""
    if choice.value is None:
        return choice
    plain = choice.value if isinstance(choice.value, dict) else {"share": choice.value}
    lost = _lost(draft, choice.value)
    if not lost:
        return choice
    named = ", ".join(f"'{name}'" for name in sorted(lost))
    for seed in range(1, SEEDS + 1):
        if not _lost(draft, {**plain, "seed": seed}):
            reason = f"{choice.reason}; by this seed, as seed 0 leaves no image of {named} to train on"
            return Choice(choice.what, {**plain, "seed": seed}, reason)
    return Choice(choice.what, choice.value, f"{choice.reason}; all images of {named} are held out: label more of them")


def _lost(draft: Draft, val_split: Any) -> frozenset[str]:
    """Return the classes that no image to train on shows, but for slips of the pencil."""
    keys = [sample.key for sample in draft.dataset.samples]
    kept, _ = _sides(draft, val_split)
    trained = frozenset[str]().union(*(draft.shown.get(keys[index], ()) for index in kept))
    return frozenset(each.name for each in draft.fingerprint.sure) - trained


def _loaders(
    plan: Plan, images: int, val_split: Any, resize: Any, crop: Sequence[int], rotation: Choice
) -> dict[str, Any]:
    """Choose the loaders' arguments; what is null is left out."""
    draft, fingerprint = plan.draft, plan.draft.fingerprint
    data = {"data_dir": str(draft.layout.root), **draft.options, "resize": resize}
    size = recipe.working_size(fingerprint, resize)
    reading = {
        "cache": plan.take(recipe.choose_cache(fingerprint, draft.machine)),
        "num_workers": plan.take(recipe.choose_workers(draft.machine)),
    }
    overhead = rotation.value is not None
    training = {
        "val_split": val_split,
        "batch_size": plan.take(recipe.choose_batch(images, draft.machine)),
        "augment": True,
        "crop_size": crop,
        "scale": plan.take(recipe.choose_scales(fingerprint, overhead)),
        "flip": True,
        "rotate": plan.take(rotation),
        "rare_crop": plan.take(recipe.choose_rare_crop(fingerprint, size, crop)),
        "color_jitter": plan.take(recipe.choose_colors(fingerprint)),
    }
    sections = {"train_loader": {**data, "split": draft.layout.splits[0], **training, **reading}}
    if len(draft.layout.splits) > 1:
        sections["val_loader"] = {**data, "split": draft.layout.splits[-1], "batch_size": 1, **reading}
    return {
        key: {"type": draft.kind, "args": {name: value for name, value in args.items() if value is not None}}
        for key, args in sections.items()
    }


def choose_network(
    plan: Plan, measure: Measure, networks: Sequence[dict[str, Any]], images: int, validated: int
) -> None:
    """Choose network, precision, batch and length by what steps take on this machine.

    The second cheapest network is measured first. One larger is tried only where the last one took enough steps, one
    smaller only where it took too few. The first that fits into memory says which precision all of them get.
    """
    minutes = plan.draft.wish.minutes
    found: dict[int, Measured] = {}
    steps: list[int | None] = [None] * len(networks)

    def attempt(index: int) -> int:
        plan.config["arch"] = networks[index]
        measured = _try(plan, measure) if found else choose_arithmetic(plan, measure)
        if measured is None:
            return 0
        found[index] = measured
        steps[index] = recipe.steps_in(minutes, measured)
        return steps[index] or 0

    index = first = min(1, len(networks) - 1)
    count = attempt(first)
    while count >= recipe.ENOUGH_STEPS and index + 1 < len(networks):
        index += 1
        count = attempt(index)
    if not found or max(each or 0 for each in steps) < recipe.FEWEST_STEPS:
        for smaller in range(first - 1, -1, -1):
            attempt(smaller)
    batch = plan.config["train_loader"]["args"]
    while not found and batch["batch_size"] > 2:  # even the smallest does not fit
        smaller_batch = max(2, batch["batch_size"] // 4 * 2)
        said = f"{smaller_batch} at once, as more do not fit into memory"
        batch["batch_size"] = plan.correct(Choice("batch_size", smaller_batch, said))
        attempt(0)
    chosen = recipe.choose_network(steps)
    network = networks[chosen]
    plan.config["arch"] = network
    said = f"{_name(network)}, of {len(networks)} that are possible: {steps[chosen]} steps in {minutes:g} minutes"
    plan.take(Choice("arch", network, said))
    length = recipe.choose_length(minutes, found[chosen], images=images, batch=batch["batch_size"], validated=validated)
    plan.minutes = length.minutes
    plan.take(Choice("trainer", length.trainer, length.reason))
    plan.config["trainer"] = {
        **length.trainer,
        "monitor": "max Mean_IoU",
        "precision": plan.config["trainer"]["precision"],
        "ema": plan.take(recipe.choose_ema(length.steps)),
    }
    plan.config["lr_scheduler"] = schedule(length, max(1, images // batch["batch_size"]))


def choose_arithmetic(plan: Plan, measure: Measure) -> Measured | None:
    """Choose the precision by a step of the network that the plan has now.

    Returns:
        What that step takes; None, with no choice, where it fits into memory in neither.
    """
    found: dict[str, Measured] = {}
    for precision in ("fp32", "bf16"):
        plan.config["trainer"]["precision"] = precision
        measured = _try(plan, measure)
        if measured is not None:
            found[precision] = measured
    if not found:
        return None
    chosen = plan.take(recipe.choose_precision({name: each.work for name, each in found.items()}))
    plan.config["trainer"]["precision"] = chosen
    return found[chosen]


def _try(plan: Plan, measure: Measure) -> Measured | None:
    """Measure the config that the plan has now, and note what came of it."""
    measured = measure(plan.config)
    plan.tried.append(_line(plan.config, measured))
    return measured


def schedule(length: Length, steps_per_epoch: int) -> dict[str, Any]:
    """Return the course of the learning rate: it rises over an epoch, or a twentieth of a short run."""
    return {"type": "Poly", "args": {"warmup_epochs": round(min(1.0, length.steps / steps_per_epoch / 20), 3)}}


def _name(network: Mapping[str, Any]) -> str:
    """Name a network and its backbone."""
    backbone = network["args"]["backbone"]
    if isinstance(backbone, str):
        return f"{network['type']} on {backbone}"
    return f"{network['type']} on {backbone['type']}, {backbone['args']['width_mult']:g} as wide"


def _line(config: Mapping[str, Any], measured: Measured | None) -> str:
    """Say what a network took."""
    name = f"{_name(config['arch'])}, {config['trainer']['precision']}"
    if measured is None:
        return f"{name}: does not fit into memory"
    return f"{name}: {measured.step:.3g} s a step, {measured.memory / 2**20:.0f} MiB"


# Text ---------------------------------------------------------------------------------------------------------------


def write_text(plan: Plan, guesses: Sequence[str], schema: str) -> str:
    """Write a config with its reasons as comments.

    Args:
        plan: The config and the reasons.
        guesses: What was found and assumed besides.
        schema: Path of the JSON Schema, for editors.
    """
    lines = ["// Made by `prepare.py plan`. What it found and guessed:"]
    lines += [f"// {one_line(line)}" for line in guesses]
    lines += [f"// Training takes about {plan.minutes:.3g} minutes on the machine that this was written on.", "{"]
    lines.append(f'  "$schema": {json.dumps(schema, ensure_ascii=False)},')
    last = list(plan.config)[-1]
    for key, value in plan.config.items():
        comments = [*_wrapped(NOTES.get(key, "")), *_reasons(plan.choices, key)]
        if comments:
            lines += ["", *(f"  // {one_line(line)}" for line in comments)]
        lines.append(f'  "{key}": {_section(key, value)}{"" if key == last else ","}')
    return "\n".join([*lines, "}"]) + "\n"


def _wrapped(text: str) -> list[str]:
    from textwrap import wrap

    return wrap(text, 110)


# Where reasons stand that are not named after their section, and what they are called there; others: train_loader.
PLACES = {
    "arch.head": ("arch", "head"),
    "arch.output_stride": ("arch", "output_stride"),
    "arch": ("arch", "arch"),
    "optimizer": ("optimizer", "optimizer"),
    "loss": ("loss", "loss"),
    "trainer": ("trainer", "length"),
    "trainer.precision": ("trainer", "precision"),
    "trainer.ema": ("trainer", "ema"),
    "inference.py": ("trainer", "prediction"),
}


def _reasons(choices: Sequence[Choice], key: str) -> Iterator[str]:
    """Yield the reasons that belong to a section."""
    for choice in choices:
        section, name = PLACES.get(choice.what, ("train_loader", choice.what))
        if section == key:
            yield f"{name}: {choice.reason}"


def _section(key: str, value: Any) -> str:
    """Write a section: of a loader, a line for each argument."""
    if not key.endswith("_loader"):
        return json.dumps(value, ensure_ascii=False)
    return f'{{"type": {json.dumps(value["type"])}, "args": {{\n    {_lines(value["args"])}\n  }}}}'


def _lines(values: Mapping[str, Any]) -> str:
    """Write keys and values, a line each; a list of objects takes a line for each of them."""
    lines = []
    for key, value in values.items():
        if isinstance(value, list) and isinstance(value[0], dict):
            shown = "[\n      " + ",\n      ".join(json.dumps(item, ensure_ascii=False) for item in value) + "\n    ]"
        else:
            shown = json.dumps(value, ensure_ascii=False)
        lines.append(f'"{key}": {shown}')
    return ",\n    ".join(lines)
