"""The commands agree: what a flag is called, what help shows, and what the functions of `segwright` take."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import shlex
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segwright
import train
from docs.reference import parser_of, subcommands
from tests.conftest import HOME, ROOT, Answer, program
from utils.describe import plain_text, summary
from utils.errors import UserError
from utils.flags import SHARED, CommandParser
from utils.registry import KINDS, MODELS

PARSERS: dict[str, CommandParser] = {}
for _script, _ in segwright.COMMANDS.values():
    _parser = parser_of(importlib.import_module(_script))
    PARSERS[_script] = _parser  # type: ignore[assignment]
    PARSERS |= {f"{_script} {name}": below for name, below in subcommands(_parser).items()}  # type: ignore[misc]

# What stands for another thing of the same name: a folder where another command writes a file, for example.
METAVARS = {
    "--output": {"FILE", "DIR"},
    "--images": {"DIR", "FILE|DIR|GLOB"},
    "--masks": {"DIR", "PATH"},
}


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """The flags of a parser, by their long names."""
    shown = [action for action in parser._actions if action.option_strings]
    return {action.option_strings[-1]: action for action in shown if action.dest not in ("help", "version")}


def uses() -> dict[str, dict[str, argparse.Action]]:
    """Which commands have each flag."""
    found: dict[str, dict[str, argparse.Action]] = defaultdict(dict)
    for command, parser in PARSERS.items():
        for name, action in flags(parser).items():
            found[name][command] = action
    return found


def test_a_flag_has_the_same_short_form_value_and_words_in_all_commands() -> None:
    for name, commands in uses().items():
        assert len({tuple(action.option_strings) for action in commands.values()}) == 1, name
        assert {action.metavar for action in commands.values()} <= METAVARS.get(
            name, {next(iter(commands.values())).metavar}
        )
        assert len({action.dest for action in commands.values()}) == 1, name
        if name in SHARED:
            short, shared = SHARED[name]
            for command, action in commands.items():
                assert action.option_strings == ([short] if short else []) + [name], command
                assert str(action.help).startswith(shared["help"]), command
        elif len(commands) > 1:  # said once, in a function that several commands call
            assert len({str(action.help).partition(" (default")[0] for action in commands.values()}) == 1, name


def test_a_short_form_stands_for_one_flag() -> None:
    found = {
        (short, name) for name, commands in uses().items() for a in commands.values() for short in a.option_strings[:-1]
    }
    assert len({short for short, _ in found}) == len(found)


@pytest.mark.parametrize(
    ("command", "words", "name", "value"),
    [
        ("train", "--bs 3", "batch_size", 3),
        ("prepare pack", "-o x --size 3", "archive_size", 3),
        ("prepare convert", "--masks x -o y --nested", "recursive", True),
    ],
)
def test_former_names_are_understood_and_not_shown(command: str, words: str, name: str, value: Any) -> None:
    former = next(word for word in words.split() if word.startswith("--") and word != "--masks")
    assert getattr(PARSERS[command].parse_args(words.split()), name) == value
    assert former not in PARSERS[command].format_help().split()


@pytest.mark.parametrize("command", PARSERS)
def test_help_has_groups_examples_and_pages_in_80_columns(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parser = PARSERS[command]
    text = parser.format_help()
    assert max(map(len, text.splitlines())) <= 80
    titles = [line for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[-2:] == ["other:", "examples:"]
    assert len(titles) >= 3
    assert "options:" not in titles
    assert parser.examples
    assert all((HOME / "docs" / page).is_file() for page in parser.pages)
    assert f"read on: docs/{parser.pages[0]}" in text
    for words, _ in parser.examples:
        parser.parse_args(shlex.split(words))
    assert all(action.help for action in parser._actions if action.option_strings)


def test_help_of_segwright_names_all_commands_in_80_columns() -> None:
    lines = segwright.usage().splitlines()
    assert max(map(len, lines)) <= 80
    assert all(any(line.startswith(f"  {command} ") for line in lines) for command in segwright.COMMANDS)
    assert {"commands:", "examples:"} <= set(lines)
    assert any(line.startswith("read on: docs/") for line in lines)


# ------------------------------------------------------------------------------------------------- --list, --describe

Command = Callable[..., Answer]


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_a_process_that_only_lists_lists_what_comes_along() -> None:
    done = subprocess.run([*program(train), "--list", "models"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "\n  PSPNet " in done.stdout


def test_lists_are_tables_of_80_columns(train_command: Command) -> None:
    lines = train_command("--list").out.splitlines()
    assert [line for line in lines if len(line) > 80 and '"$schema"' not in line] == []
    row = next(number for number, line in enumerate(lines) if line.startswith("  AdamW "))
    assert lines[row + 1].startswith(" " * lines[row].index("Implements"))


@pytest.mark.parametrize("kind", KINDS)
def test_descriptions_have_80_columns(kind: str, train_command: Command) -> None:
    for name in KINDS[kind]:
        for line in train_command("--describe", name).out.splitlines():
            assert len(line) <= 80 or '"$schema"' in line or " " not in line.strip(), name


def test_names_of_one_function_have_lines_of_their_own() -> None:
    lines = {name: summary(MODELS, name) for name in ("DeepLab", "DeepLab_Xception", "PSPNet", "PSPDenseNet")}
    assert len(set(lines.values())) == 4
    assert lines["PSPDenseNet"] == "PSPNet on a DenseNet."


def test_a_part_of_several_names_lists_them_with_their_lines(train_command: Command) -> None:
    answer = train_command("--describe", "CROSSENT")
    assert answer.status == 0
    assert "\nlosses:\n  CrossEntropyLoss " in answer.out
    out = train_command("--describe", "epoch").out
    assert "\nkeys of a config:\n" in out
    assert "\n  trainer.epochs  " in out
    out = train_command("--describe", "pspn").out
    assert "\n  PSPNet " in out
    assert "\n  pspnet/voc " in out


@pytest.mark.parametrize(
    ("part", "first"),
    [
        ("lovaszs", "LovaszSoftmax (loss; losses)"),
        ("early_st", "trainer.early_stop (key of a config)"),
        ("deeplab/cocos", "deeplab/cocostuff (preset)"),
    ],
)
def test_a_part_of_one_name_describes_it(part: str, first: str, train_command: Command) -> None:
    answer = train_command("--describe", part)
    assert answer.status == 0, answer.err
    assert answer.out.splitlines()[0] == first


def test_marks_of_code_are_no_links() -> None:
    assert plain_text("Has `a` at first. Others, `_gcn`, follow; see `torch <https://x>`_.") == (
        "Has `a` at first. Others, `_gcn`, follow; see torch."
    )


# --------------------------------------------------------------------------------------------------------- functions

FUNCTIONS = {"train": segwright.train, "evaluate": segwright.evaluate, "inference": segwright.predict}
FUNCTIONS |= {"export": segwright.export, "report": segwright.report, "sweep": segwright.sweep}

# What a function does not take, and why.
ONLY_COMMANDS = {
    "debug": "exceptions have tracebacks",
    "file": "is --config",
    "check": "prints",
    "check_data": "prints",
    "draw_schedule": "draws",
    "list": "prints",
    "describe": "prints",
    "compare": "prints",
    "canvas": "draws",
    "number": "of --canvas",
}
RENAMED = {"overrides": "set"}  # which is a type in Python


def plain(value: Any) -> Any:
    """A default without what differs in form only."""
    if value in ((), [], None):
        return None
    return value if isinstance(value, (bool, int, float)) else str(value)


@pytest.mark.parametrize("command", FUNCTIONS)
def test_functions_take_what_commands_take_with_the_same_defaults(command: str) -> None:
    parameters = inspect.signature(FUNCTIONS[command]).parameters
    actions = {action.dest: action for action in PARSERS[command]._actions}
    named = {RENAMED.get(name, name): parameter for name, parameter in parameters.items()}
    assert named.keys() == actions.keys() - ONLY_COMMANDS.keys() - {"help", "version"}
    for name, parameter in named.items():
        if parameter.default is not inspect.Parameter.empty:
            assert plain(parameter.default) == plain(actions[name].default), name


def test_a_model_is_loaded_with_the_arguments_and_defaults_of_predict() -> None:
    loads, predicts = (inspect.signature(f).parameters for f in (segwright.load, segwright.predict))
    assert all(parameter == predicts[name] for name, parameter in loads.items())


def test_every_command_but_prepare_is_a_function() -> None:
    """Which looks at folders and prints."""
    assert {*segwright.COMMANDS} - {"prepare"} <= {*dir(segwright)}
    assert {script for script, _ in segwright.COMMANDS.values()} == {*FUNCTIONS, "prepare"}


def test_arguments_are_spelled_as_flags() -> None:
    words = segwright.flags(model=["a", "b"], flip=True, fast=False, window=(3, 4), data_dir=None, overlap=0.0)
    assert words == ["--model", "a", "b", "--flip", "--window", "3", "4", "--overlap", "0.0"]
    assert segwright.sets({"a.b": "x", "c": None}) == ["--set", 'a.b="x"', "--set", "c=null"]


def test_a_notebook_predicts_exports_and_reports(finished_run: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((40, 48, 3), np.uint8)).save(tmp_path / "a.png")
    options: dict[str, Any] = {"output": tmp_path / "maps", "device": "cpu", "modules": ["tests.tiny"]}
    folder = segwright.predict(finished_run, tmp_path / "a.png", save="index,overlay", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["_legend.png", "a_index.png", "a_overlay.png"]
    results = segwright.evaluate(finished_run, **options | {"output": tmp_path / "r.json"})
    assert json.loads((tmp_path / "r.json").read_text()) == results
    with pytest.raises(UserError, match="model: several"):
        segwright.evaluate([finished_run, finished_run], device="cpu")
    copy = tmp_path / "saved" / "tiny" / "one"
    shutil.copytree(finished_run, copy)
    assert segwright.report(tmp_path / "saved") == tmp_path / "saved" / "index.html"
