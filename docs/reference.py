"""The reference of the documents, from signatures: ``python -m docs.reference`` writes docs/reference/ anew.

`config.md` holds every key of a config, `commands.md` every flag, `python.md` the functions for notebooks. Models and
their bricks have a page of their own, `docs/catalogue.md`, which `python -m models.catalogue` writes.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import segwright
from base.base_dataloader import LoaderOptions
from base.base_trainer import TrainerConfig
from dataloader.transforms.chain import ChainOptions
from engine.config import InitFrom, Normalization, RunConfig
from models.build import ModelOptions
from utils.config import PRESETS
from utils.losses.criterion import LossTerm
from utils.lr_scheduler import SchedulerConfig
from utils.optimizers import OptimizerConfig
from utils.predict import Predictor
from utils.registry import KINDS, Registry
from utils.schema import EMPTY, Component, describe_arguments, is_plain, parameters_of, show, spell

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "reference"
WRITTEN = "<!-- Written by `python -m docs.reference`; a test compares both. -->"

# Headings of the config page: the key, the class that holds its fields, what to say first.
SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("The whole config", RunConfig, ""),
    ("trainer", TrainerConfig, ""),
    (
        "arch.args, for every model",
        ModelOptions,
        "The arguments of each model are in the [catalogue](../catalogue.md).",
    ),
    (
        "train_loader.args and val_loader.args: batches",
        LoaderOptions,
        "Beside those of the dataset, in one flat object.",
    ),
    ("train_loader.args and val_loader.args: augmentation and size", ChainOptions, ""),
    ("optimizer", OptimizerConfig, "`args` are those of the class in `torch.optim`."),
    ("lr_scheduler", SchedulerConfig, ""),
    ("loss", LossTerm, "A name alone will do; several in a list are added up."),
    ("normalization", Normalization, "`dataset`, `imagenet`, or an object with these."),
    ("init_from", InitFrom, "A path, or an object with these."),
)
COMPONENTS = (
    "datasets",
    "losses",
    "metrics",
    "schedulers",
    "transforms",
    "mixes",
    "writers",
)  # of KINDS, if it has them


def config_page() -> str:
    """Every key of a config, and every component that has no page of its own; in Markdown."""
    lines = ["# Config keys", "", WRITTEN, ""]
    lines += ["`python train.py --describe NAME` prints the same in a terminal. Paths with dots, such as", ""]
    lines += ["`trainer.epochs`, are what `--set` takes.", ""]
    for title, section, text in SECTIONS:
        lines += [f"## {title}", ""]
        lines += [text, ""] if text else []
        lines += [*arguments(section), ""]
    for kind in COMPONENTS:
        if kind in KINDS:
            lines += [f"## {kind.capitalize()}", "", *components(KINDS[kind])]
    lines += ["## Optimizers", "", "Of `torch.optim`, with its arguments: " + names(KINDS["optimizers"]) + ".", ""]
    lines += ["## Presets", "", *presets()]
    return "\n".join(lines) + "\n"


def components(registry: Registry) -> Iterator[str]:
    """Text and arguments of all of ours in a registry; names only of those that are torch's."""
    foreign = []
    for name in sorted(registry):
        target = registry[name]
        documented = target.func if isinstance(target, functools.partial) else target
        if documented.__module__.startswith(("torch.", "torchvision.")):
            foreign.append(f"`{name}`")
            continue
        yield from (f"### {name}", "", first_part(documented), "")
        yield from (*arguments(target, registry.reserved(name)), "")
    if foreign:
        yield from ("And by their own names, with their own arguments: " + ", ".join(foreign) + ".", "")


def presets() -> Iterator[str]:
    """A row for each preset."""
    rows = []
    for path in sorted(PRESETS.glob("*/*.json")):
        line = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("// ")
        rows.append((f"`{path.parent.name}/{path.stem}`", line))
    yield from table(("preset", "what it is"), rows)


def arguments(target: Callable[..., Any], reserved: Iterable[str] = ()) -> list[str]:
    """A table of the arguments of `target`, from its signature and docstring."""
    documented = target.func if isinstance(target, functools.partial) else target
    texts = describe_arguments(documented)
    rows = []
    for name, parameter in parameters_of(target).items():
        if name in reserved:
            continue
        kind = "" if parameter.annotation is EMPTY else spell(parameter.annotation)
        rows.append((f"`{name}`", kind, default_of(parameter), texts.get(name, "")))
    return table(("key", "type", "default", "meaning"), rows) if rows else ["It has no arguments."]


def default_of(parameter: inspect.Parameter) -> str:
    """The default of a parameter as a config would write it."""
    value = parameter.default
    if value is EMPTY:
        return "required"
    if isinstance(value, Component):
        value = value.type
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, tuple):
        value = [item.type if isinstance(item, Component) else item for item in value]
    return f"`{show(value)}`" if is_plain(value) else ""


def commands_page() -> str:
    """Every flag of every command, from its parser; in Markdown."""
    lines = ["# Commands", "", WRITTEN, ""]
    lines += [
        "Each script runs from any folder. Installed by `pip`, they are `segwright COMMAND` with the same flags.",
        "",
    ]
    for command, (script, text) in segwright.COMMANDS.items():
        if not (ROOT / f"{script}.py").exists():
            continue
        parser = parser_of(importlib.import_module(script))
        lines += [f"## {script}.py", "", f"`segwright {command}`: {text}.", "", *flags(parser)]
        for name, below in subcommands(parser).items():
            about = sentence(getattr(below, "text", "") or below.description or "")
            lines += [f"### {script}.py {name}", "", about, "", *flags(below)]
    lines += ["## Exit status", "", *table(("status", "means"), STATUS)]
    return "\n".join(lines) + "\n"


STATUS = (
    ("0", "done"),
    ("2", "the input was wrong: one line for each problem, `error: PLACE: WHAT. WHAT INSTEAD.`"),
    ("3", "done, but some inputs could not be used or something was found; it is listed"),
    ("4", "the disk, the memory, a dead worker or a NaN ended it; the last good checkpoint is named"),
    ("128 + n", "signal n; the run was saved and can be resumed"),
)


class Caught(Exception):
    """Carries a parser out of the function that builds it."""


def parser_of(script: ModuleType) -> argparse.ArgumentParser:
    """Give the parser that a script builds in `parse`, or where it has none in `main`."""

    def catch(parser: argparse.ArgumentParser, *_: Any) -> None:
        raise Caught(parser)

    with patch.object(argparse.ArgumentParser, "parse_args", catch):
        try:
            getattr(script, "parse", script.main)([])
        except Caught as caught:
            parser = caught.args[0]
            assert isinstance(parser, argparse.ArgumentParser)
            return parser
    raise AssertionError(f"{script.__name__} builds no parser")


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The parsers of the words that may follow a command."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return {}


def flags(parser: argparse.ArgumentParser) -> list[str]:
    """A table of the flags of a parser."""
    rows = []
    for action in parser._actions:
        if isinstance(action, (argparse._HelpAction, argparse._SubParsersAction)):
            continue
        if action.help == argparse.SUPPRESS:
            continue
        flag = ", ".join(f"`{name}`" for name in action.option_strings) or f"`{action.metavar or action.dest}`"
        rows.append((flag, value_of(action), (action.help or "").replace("%%", "%")))
    return [*table(("flag", "value", "meaning"), rows), ""] if rows else []


def value_of(action: argparse.Action) -> str:
    """What follows a flag."""
    if action.nargs == 0 or not action.option_strings:
        return ""
    if action.choices:
        return ", ".join(str(choice) for choice in action.choices)
    shown = action.metavar or action.dest.upper()
    return " ".join(shown) if isinstance(shown, tuple) else shown


FUNCTIONS = (
    *(segwright.load, segwright.train, segwright.evaluate, segwright.predict, segwright.export),
    *(segwright.report, segwright.sweep),
)


def python_page() -> str:
    """The functions for notebooks and scripts; in Markdown."""
    lines = ["# Python", "", WRITTEN, ""]
    lines += ["`import segwright` where it is installed, or with the repository on the path.", ""]
    for function in FUNCTIONS:
        lines += described(f"segwright.{function.__name__}", function)
    lines += ["## Predictor", "", first_part(Predictor), ""]
    for name, method in inspect.getmembers(Predictor, inspect.isfunction):
        if not name.startswith("_") and inspect.getdoc(method):
            lines += described(f"Predictor.{name}", method, level="###")
    return "\n".join(lines)


def described(name: str, function: Callable[..., Any], level: str = "##") -> list[str]:
    """Heading, signature, text and arguments of a function."""
    signature = inspect.signature(function)
    shown = [spelled(parameter) for key, parameter in signature.parameters.items() if key != "self"]
    if any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in signature.parameters.values()):
        positional = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.KEYWORD_ONLY]
        shown.insert(len(positional), "*")
    returned = f" -> {signature.return_annotation}" if signature.return_annotation is not EMPTY else ""
    lines = [
        f"{level} {name}",
        "",
        "```text",
        f"{name}({', '.join(shown)}){returned}",
        "```",
        "",
        first_part(function),
        "",
    ]
    rows = [(f"`{key}`", text) for key, text in describe_arguments(function).items()]
    return [*lines, *table(("argument", "meaning"), rows), ""] if rows else lines


def spelled(parameter: inspect.Parameter) -> str:
    """A parameter as a signature shows it, without the quotes of postponed annotations."""
    default = "" if parameter.default is EMPTY else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


def first_part(documented: Any) -> str:
    """A docstring up to its arguments, as Markdown."""
    return (
        (inspect.getdoc(documented) or "").partition("\nArgs:")[0].partition("\nRaises:")[0].strip().replace("``", "`")
    )


def sentence(text: str) -> str:
    """`text` with a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def names(registry: Registry) -> str:
    return ", ".join(f"`{name}`" for name in sorted(registry))


def table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A table in Markdown."""
    cells = [columns, ("---",) * len(columns), *rows]
    return ["| " + " | ".join(clean(cell) for cell in row) + " |" for row in cells]


def clean(cell: str) -> str:
    """A cell without what ends one."""
    return cell.replace("|", "\\|").replace("\n", " ").replace("``", "`")


PAGES = {"config.md": config_page, "commands.md": commands_page, "python.md": python_page}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
