"""Flags that several commands have, said once, and how ``--help`` shows them: in groups, with examples."""

from __future__ import annotations

import argparse
import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.errors import ArgumentParser, ConfigError
from utils.terminal import width

INSTALLED = __name__ != "utils.flags"  # in a package, where commands are words after `segwright`
COMMANDS = {"inference": "predict"}  # scripts whose command has another name

MODULES: dict[str, Any] = {"dest": "modules", "action": "append", "default": []}

# Name of a flag, its short form, and what `add_argument` takes. A command may add to the help, which begins so in all.
SHARED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "--config": ("-c", {"type": Path, "metavar": "FILE", "help": "config"}),
    "--set": (
        "-s",
        {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "override a key of the config"},
    ),
    "--model": ("-m", {"type": Path, "metavar": "CKPT", "help": "checkpoint, run folder or quoted pattern"}),
    "--images": ("-i", {"metavar": "DIR", "help": "images"}),
    "--masks": (None, {"type": Path, "metavar": "DIR", "help": "masks"}),
    "--output": ("-o", {"type": Path, "metavar": "FILE", "help": "where to write"}),
    "--force": (None, {"action": "store_true", "help": "replace what is there"}),
    "--data-dir": (None, {"type": Path, "metavar": "DIR", "help": "folder of the dataset"}),
    "--split": (None, {"metavar": "NAME", "help": "part of the dataset"}),
    "--names": (None, {"metavar": "A,B,...", "help": "names of the classes"}),
    "--recursive": (None, {"action": "store_true", "help": "take the files in nested folders too"}),
    "--batch-size": (None, {"type": int, "metavar": "N", "help": "images at a time"}),
    "--device": ("-d", {"metavar": "DEVICE", "help": "cpu, cuda, mps, or the number of a GPU such as 0"}),
    "--workers": (None, {"type": int, "metavar": "N", "help": "processes that read"}),
    "--import": (None, {**MODULES, "metavar": "MODULE", "help": "module with own components"}),
    "--debug": (None, {"action": "store_true", "help": "show tracebacks of user errors too"}),
}


class CommandParser(ArgumentParser):
    """A parser whose help says in groups what there is, gives examples, and says where to read on.

    Args:
        prog: What the command is called.
        usage: What follows the name, besides options.
        description: What it does.
        examples: What to write behind the name, and what that does.
        pages: Where to read on, below docs/.
        options: Of `argparse`.
    """

    def __init__(
        self,
        prog: str,
        *,
        usage: str = "",
        description: str = "",
        examples: Sequence[tuple[str, str]] = (),
        pages: Sequence[str] = (),
        **options: Any,
    ) -> None:
        shown = " ".join(filter(None, ["%(prog)s", usage, "[options]"]))
        super().__init__(prog=prog, usage=shown, formatter_class=HelpFormatter, **options)
        self.text = description
        self.examples = examples
        self.pages = pages
        self._optionals.title = "other"

    def add_subparsers(self, **options: Any) -> Any:
        return super().add_subparsers(**{"prog": self.prog, **options})

    def share(self, *names: str) -> None:
        """Take shared flags as they are into the last group of the help."""
        for name in names:
            add_shared(self, name)

    def format_help(self) -> str:
        self.description = textwrap.fill(self.text, width())
        start = f"python {self.prog}" if ".py" in self.prog else self.prog
        lines = [line for words, what in self.examples for line in (f"  # {what}", f"  {start} {words}")]
        self.epilog = "\n".join(["examples:", *lines])
        if self.pages:
            self.epilog += "\n\n" + textwrap.fill(
                f"read on: {', '.join(f'docs/{page}' for page in self.pages)}", width()
            )
        # What all commands have stands last.
        self._action_groups.sort(key=lambda group: group is self._optionals)
        return super().format_help()


def program(script: str) -> str:
    """Give the name of a command: that of its script, or in the installed package ``segwright COMMAND``."""
    return f"segwright {COMMANDS.get(script, script)}" if INSTALLED else f"{script}.py"


def add_shared(
    group: argparse._ActionsContainer, name: str, more: str = "", *, formerly: str | None = None, **options: Any
) -> argparse.Action:
    """Add a flag of `SHARED`.

    Args:
        group: Of a parser, or the parser.
        name: Of the flag.
        more: What this command adds to its help.
        formerly: A name that it had, which is still understood.
        options: Of `add_argument`, in place of those in `SHARED`.
    """
    short, shared = SHARED[name]
    names = [short, name] if short else [name]
    action = group.add_argument(*names, **{**shared, "help": shared["help"] + more, **options})
    if formerly is not None:
        keep_name(group, formerly, action)
    return action


def keep_name(group: argparse._ActionsContainer, former: str, action: argparse.Action) -> None:
    """Understand a former name of a flag, which the help does not show."""
    group._option_string_actions[former] = action


def check_writable(flag: str, path: Path) -> None:
    """Make the folder of the file to write, before hours are spent on what is to be written there.

    Args:
        flag: That named the file, for errors.
        path: The file.

    Raises:
        ConfigError: It cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = "it is a folder" if path.is_dir() else ""
        if not reason and not os.access(path if path.exists() else path.parent, os.W_OK):
            reason = "permission denied"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
    if reason:
        raise ConfigError(f"{flag} {path}: cannot be written ({reason}). Name another file.")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Show a flag as ``-c, --config FILE``, and several values as ``FILE ...``."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, **{**options, "width": width() - 2, "max_help_position": 26})

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return ", ".join(action.option_strings) or super()._format_action_invocation(action)
        values = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {values}"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        shown = action.metavar or default_metavar
        if isinstance(shown, str) and action.nargs == argparse.ONE_OR_MORE:
            return f"{shown} ..."
        if isinstance(shown, str) and action.nargs == argparse.ZERO_OR_MORE:
            return f"[{shown} ...]"
        return super()._format_args(action, default_metavar)
