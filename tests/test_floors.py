"""The house has floors, and nobody imports upwards. See the docstrings of `FLOORS` below for who lives where."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each room may import of ours, besides itself. `main` is train.py and its like.
MAY_IMPORT = {
    "utils": set(),
    "base": {"utils"},
    "models": {"utils", "base"},
    "dataloader": {"utils", "base"},
    "trainer": {"utils", "base"},
    "engine": {"utils", "base", "models", "dataloader", "trainer"},
}
HEAVY = ("torch", "numpy", "cv2", "PIL", "tqdm", "matplotlib")
SCRIPTS = {path.stem for path in ROOT.glob("*.py")} - MAY_IMPORT.keys()
for script in SCRIPTS:
    MAY_IMPORT[script] = {"utils", "base", "engine"}
MAY_IMPORT["prepare"].add("dataloader")  # it is all about data
MAY_IMPORT["segwright"] = {*SCRIPTS, "utils"} - {"segwright"}  # the one door to all commands

FILES = sorted(
    path for room in MAY_IMPORT for path in [*ROOT.glob(f"{room}.py"), *ROOT.glob(f"{room}/**/*.py")] if path.exists()
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    """Modules of ours that the file names in an import; packages for `from package import name`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guarded = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    nodes = tree.body if top_level_only else [node for node in ast.walk(tree) if id(node) not in guarded]
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in inside}
    return found & MODULES.keys()


def upward(path: Path) -> list[str]:
    """What is wrong with the imports of a file, in words."""
    room = module_name(path).partition(".")[0]
    allowed = MAY_IMPORT[room]
    rooms = {name.partition(".")[0] for name in imports_of(path)} - {room} - allowed
    place = path.relative_to(ROOT)
    permitted = ", ".join(sorted(allowed)) or "nothing of ours"
    where = f"{room}/" if (ROOT / room).is_dir() else f"{room}.py"
    return [f"{place} imports {other}; {where} may import {permitted}" for other in sorted(rooms)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_upwards(path):
    assert not upward(path), "\n".join(upward(path))


def test_the_message_says_who_may_import_what(tmp_path, monkeypatch):
    file = ROOT / "models" / "blocks.py"
    monkeypatch.setattr(Path, "read_text", lambda self, **_: "import dataloader.transforms\nimport engine.assemble\n")
    assert upward(file) == [
        "models/blocks.py imports dataloader; models/ may import base, utils",
        "models/blocks.py imports engine; models/ may import base, utils",
    ]


def test_there_are_no_circles():
    """Of imports at the top of files; one inside a function is there to break a circle, and may."""
    graph = {name: imports_of(path, top_level_only=True) - {name} for name, path in MODULES.items()}
    for name in graph:  # a package comes with its __init__, which may import its modules
        graph[name] = {other for other in graph[name] if not name.startswith(f"{other}.")}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name in done:
            return
        for other in sorted(graph[name]):
            visit(other, (*way, name))
        done.add(name)

    for name in sorted(graph):
        visit(name, ())


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_scripts_import_nothing_heavy_before_they_know_what_is_asked(script):
    seen: set[str] = set()

    def collect(path: Path) -> None:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.partition(".")[0] not in HEAVY, f"{path}: {name}"
        for name in imports_of(path, top_level_only=True) - seen:
            seen.add(name)
            collect(MODULES[name])

    collect(ROOT / f"{script}.py")


@pytest.mark.parametrize("path", ["trainer.py", "base/base_trainer.py"])
def test_every_function_of_the_trainer_fits_on_a_screen(path):
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    longest = max(lengths, key=lengths.get)
    assert lengths[longest] <= 60, f"{path}: {longest} has {lengths[longest]} lines"


def test_every_file_says_what_it_is_for():
    silent = [
        str(path.relative_to(ROOT))
        for path in FILES
        if path.stat().st_size and not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert not silent


def test_a_long_file_is_one_subject_and_says_so():
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 450 or "one subject" in lines[0], f"{path.relative_to(ROOT)}: {len(lines)} lines"
