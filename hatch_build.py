"""Build the wheel: everything below one package, ``segwright``, with its absolute imports rewritten.

The repository is flat, so that it can be cloned and hacked: ``from utils.registry import HEADS``. Nobody wants packages
named ``utils`` or ``models`` in their site-packages, though, so the wheel holds ``segwright.utils.registry``. Imports
are found by the AST, and only the module's name in them is edited: line numbers and everything else stay.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "segwright"
FOLDERS = ("base", "dataloader", "engine", "models", "utils")
DATA = ("config.json", "config.schema.json", "configs")
LIBRARY = ("trainer",)  # top-level modules that are no commands
NOT_INSTALLED = ("hatch_build", PACKAGE)


def new_homes(root: Path) -> dict[str, str]:
    """Say for each top-level module and package of the repository below which package the wheel has it.

    Commands get a package of their own: ``segwright.train`` is a function, and a module of that name would replace it.
    """
    homes = dict.fromkeys((*FOLDERS, *LIBRARY), PACKAGE)
    scripts = {path.stem for path in root.glob("*.py")} - {*NOT_INSTALLED, *LIBRARY}
    return homes | dict.fromkeys(sorted(scripts), f"{PACKAGE}.commands")


def rewrite_imports(source: str, homes: Mapping[str, str]) -> str:
    """Put its new home in front of every imported module whose first name is one of `homes`.

    Args:
        source: Text of a Python file.
        homes: From `new_homes`.

    Raises:
        ValueError: ``import a.b`` binds the name ``a``, and the file uses it: no edit of one line could keep that.
    """
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and _first(node.module) in homes:
            home = homes[_first(node.module)]
            _replace(lines, node, f"from {node.module}", f"from {home}.{node.module}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _first(alias.name) not in homes:
                    continue
                if alias.asname is None and "." in alias.name and _first(alias.name) in used:
                    raise ValueError(f"line {node.lineno}: import {alias.name}: write it as from ... import")
                _rewrite_import(lines, node, alias, homes[_first(alias.name)])
    return "".join(lines)


def _first(module: str) -> str:
    return module.partition(".")[0]


def _rewrite_import(lines: list[str], node: ast.Import, alias: ast.alias, home: str) -> None:
    if len(node.names) > 1:
        raise ValueError(f"line {node.lineno}: import one module of ours at a time")
    if "." in alias.name or alias.asname:
        _replace(lines, node, f"import {alias.name}", f"import {home}.{alias.name}")
    else:  # `import train` binds `train`
        _replace(lines, node, f"import {alias.name}", f"from {home} import {alias.name}")


def _replace(lines: list[str], node: ast.stmt, old: str, new: str) -> None:
    """Edit the statement `node`, which begins with `old`."""
    row = node.lineno - 1
    # Columns of the AST count bytes.
    line = lines[row].encode()
    before = line[: node.col_offset]
    after = line[node.col_offset :].decode()
    if not after.startswith(old):
        raise ValueError(f"line {node.lineno}: expected '{old}'")
    lines[row] = before.decode() + new + after[len(old) :]


def build_package(root: Path, target: Path) -> None:
    """Write the package's tree to `target`, from the repository in `root`."""
    homes = new_homes(root)
    files = [path for folder in FOLDERS for path in (root / folder).rglob("*")]
    files += [path for name in DATA for path in [root / name, *(root / name).rglob("*")]]
    files += root.glob("*.py")
    for path in sorted(files):
        if not path.is_file() or "__pycache__" in path.parts or path.stem == "hatch_build":
            continue
        place = target / _place(path.relative_to(root), homes)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            place.write_text(rewrite_imports(path.read_text(encoding="utf-8"), homes), encoding="utf-8")
        else:
            shutil.copyfile(path, place)
    (target / "commands" / "__init__.py").write_text('"""The commands, one module each."""\n', encoding="utf-8")
    (target / "__main__.py").write_text(f"from {PACKAGE} import main\n\nraise SystemExit(main())\n", encoding="utf-8")


def _place(path: Path, homes: Mapping[str, str]) -> Path:
    """Give a file's path in the wheel's package; `path` is relative to the repository."""
    if path == Path(f"{PACKAGE}.py"):  # what `import segwright` runs
        return Path("__init__.py")
    folders = homes.get(path.stem, PACKAGE).split(".")[1:] if len(path.parts) == 1 else []
    return Path(*folders, path)


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    """Hatchling's hook: lays the rewritten tree beside the build and puts it into the wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        tree = Path(self.directory) / "tree"
        shutil.rmtree(tree, ignore_errors=True)
        build_package(Path(self.root), tree / PACKAGE)
        build_data["force_include"][str(tree / PACKAGE)] = PACKAGE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        shutil.rmtree(Path(self.directory) / "tree", ignore_errors=True)
