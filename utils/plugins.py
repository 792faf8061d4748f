"""Third-party modules, which register components of their own, and which of them a checkpoint needs."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError, UserError
from utils.registry import KINDS


def import_modules(names: Sequence[str]) -> list[str]:
    """Import third-party modules, which register their components; also those in ``SEGWRIGHT_IMPORT``.

    They are looked for in the current folder too, wherever the command lies.

    Raises:
        UserError: One cannot be imported.
    """
    wanted = [*names, *filter(None, os.environ.get("SEGWRIGHT_IMPORT", "").replace(",", " ").split())]
    if wanted and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there hides a library
    for name in wanted:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import {name}: {error}. Name a module that Python finds from here.") from error
        except Exception as error:  # whatever the code of others raises
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"--import {name}: {what}. Fix the module; --debug shows where it fails.") from error
    return wanted


def registered_by(modules: Sequence[str]) -> dict[str, list[str]]:
    """Say which components each of some modules, or a module below it, has registered."""
    found: dict[str, list[str]] = {module: [] for module in modules}
    for registry in KINDS.values():
        for name, home in registry.homes.items():
            for module in modules:
                if _is_within(home, module):
                    found[module].append(name)
    return found


def _is_within(home: str, module: str) -> bool:
    return home == module or home.startswith(f"{module}.")


def require_modules(
    state: Mapping[str, Any], modules: Sequence[str], path: Path, *, used: Mapping[str, Any] | None = None
) -> None:
    """See to it that the third-party modules that a checkpoint needs have been imported.

    Args:
        state: Content of the checkpoint.
        modules: Names of those that have been imported.
        path: Its file, for errors.
        used: What of its config is going to be used; None for all of it. A module all of whose components stand
            elsewhere is not needed. Early checkpoints do not say who registered what, so they need all of theirs.

    Raises:
        CheckpointError: It says which ones to import.
    """
    environment = state["environment"]
    missing = [name for name in environment.get("modules", []) if name not in modules]
    if used is not None:
        texts, registered = list(_texts(used)), environment.get("registered", {})
        # One that registered nothing is there for something else, which may matter.
        missing = [name for name in missing if not registered.get(name) or _stand_in(registered[name], texts)]
    if missing:
        needed = " ".join(f"--import {name}" for name in missing)
        raise CheckpointError(f"{path}: was made with components of your own. Add {needed}.")


def _stand_in(names: Collection[str], texts: Sequence[str]) -> bool:
    """Whether one of `names` is among `texts`; one that ends with a slash stands for all names that begin with it."""
    return any(text == name or (name.endswith("/") and text.startswith(name)) for name in names for text in texts)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a part of a config that may name a component; names joined by `+` one by one."""
    if isinstance(value, str):
        yield value
        yield from value.split("+")
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
