"""Third-party modules, which register components of their own."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError, UserError


def import_modules(names: Sequence[str]) -> list[str]:
    """Import third-party modules, which register their components; also those in ``SEGWRIGHT_IMPORT``.

    Raises:
        UserError: One cannot be imported.
    """
    wanted = [*names, *filter(None, os.environ.get("SEGWRIGHT_IMPORT", "").replace(",", " ").split())]
    for name in wanted:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UserError(f"--import {name}: {error}. Name a module that Python finds from here.") from error
        except Exception as error:  # whatever the code of others raises
            what = f"{type(error).__name__}: {error}"
            raise UserError(f"--import {name}: {what}. Fix the module; --debug shows where it fails.") from error
    return wanted


def require_modules(state: Mapping[str, Any], modules: Sequence[str], path: Path) -> None:
    """See to it that the third-party modules that a checkpoint was made with have been imported.

    Raises:
        CheckpointError: It says which ones to import.
    """
    missing = [name for name in state["environment"].get("modules", []) if name not in modules]
    if missing:
        needed = " ".join(f"--import {name}" for name in missing)
        raise CheckpointError(f"{path}: was made with components of your own. Add {needed}.")
