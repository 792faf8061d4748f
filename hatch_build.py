"""Build the wheel: everything below one package, ``segwright``, with its absolute imports rewritten.

The repository is flat, so that it can be cloned and hacked: ``from utils.registry import HEADS``. Nobody wants packages
named ``utils`` or ``models`` in their site-packages, though, so the wheel holds ``segwright.utils.registry``. Imports
are found by the AST, and only the module's name in them is edited: line numbers and everything else stay.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "segwright"
FOLDERS = ("base", "dataloader", "engine", "models", "utils")
DATA = ("config.json", "config.schema.json", "configs")
NOT_INSTALLED = ("hatch_build.py", "setup.py")


def own_modules(root: Path) -> frozenset[str]:
    """Names of the repository's top-level modules and packages, as an import statement begins with them."""
    scripts = {path.stem for path in root.glob("*.py") if path.name not in NOT_INSTALLED}
    return frozenset(scripts - {PACKAGE} | set(FOLDERS))


def rewrite_imports(source: str, own: Collection[str], package: str = PACKAGE) -> str:
    """Put `package` in front of every imported module whose first name is one of `own`.

    Args:
        source: Text of a Python file.
        own: Top-level names to move below `package`.
        package: Where they are going to live.

    Raises:
        ValueError: ``import a.b`` binds the name ``a``, and the file uses it: no edit of one line could keep that.
    """
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source)
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and _first(node.module) in own:
            _replace(lines, node, f"from {node.module}", f"from {package}.{node.module}")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _first(alias.name) not in own:
                    continue
                if alias.asname is None and "." in alias.name and _first(alias.name) in used:
                    raise ValueError(f"line {node.lineno}: import {alias.name}: write it as from ... import")
                _rewrite_import(lines, node, alias, package)
    return "".join(lines)


def _first(module: str) -> str:
    return module.partition(".")[0]


def _rewrite_import(lines: list[str], node: ast.Import, alias: ast.alias, package: str) -> None:
    if len(node.names) > 1:
        raise ValueError(f"line {node.lineno}: import one module of ours at a time")
    if "." in alias.name or alias.asname:
        _replace(lines, node, f"import {alias.name}", f"import {package}.{alias.name}")
    else:  # `import train` binds `train`
        _replace(lines, node, f"import {alias.name}", f"from {package} import {alias.name}")


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
    own = own_modules(root)
    files = [path for folder in FOLDERS for path in sorted((root / folder).rglob("*")) if path.is_file()]
    files += [path for path in sorted(root.glob("*.py")) if path.name not in NOT_INSTALLED]
    for name in DATA:
        path = root / name
        files += [path] if path.is_file() else [inner for inner in sorted(path.rglob("*")) if inner.is_file()]
    for path in files:
        if "__pycache__" in path.parts:
            continue
        # segwright.py is the package's face: what `import segwright` runs.
        name = Path("__init__.py") if path == root / f"{PACKAGE}.py" else path.relative_to(root)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".py":
            (target / name).write_text(rewrite_imports(path.read_text(encoding="utf-8"), own), encoding="utf-8")
        else:
            shutil.copyfile(path, target / name)
    (target / "__main__.py").write_text(f"from {PACKAGE} import main\n\nraise SystemExit(main())\n", encoding="utf-8")


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
