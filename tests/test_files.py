"""Files are the old or the new one, whole, whatever happens while they are written; all writers share how."""

from __future__ import annotations

import ast
import os
from contextlib import suppress
from pathlib import Path

from tests.conftest import HOME
from utils.files import atomic_write, remove_unfinished, unfinished_path, writer_of


def test_a_file_is_replaced_only_when_all_of_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with atomic_write(path) as file:
        file.write(b"old")
        assert not path.exists()
    with suppress(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half of the ne")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_known_by_its_name(tmp_path: Path) -> None:
    left = unfinished_path(tmp_path / "a.bin")
    left.write_bytes(b"half")
    assert writer_of(left) == os.getpid()
    assert writer_of(tmp_path / "a.bin") is None
    remove_unfinished(tmp_path)
    assert not left.exists()


def test_only_the_shared_writer_and_checkpoints_rename_what_they_wrote() -> None:
    """Others that rename move folders, a download that is gone on with, a film, or an export once it is proven."""
    allowed = {"utils/files.py", "utils/checkpoint.py", "dataloader/tools/download.py", "dataloader/tools/packed.py"}
    allowed |= {"engine/films.py", "engine/exporting/command.py"}
    found = set()
    for folder in ("base", "dataloader", "engine", "models", "utils", "."):
        for path in (HOME / folder).glob("*.py" if folder == "." else "**/*.py"):
            calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
            if "os.replace" in map(ast.unparse, calls):
                found.add(path.relative_to(HOME).as_posix())
    assert found <= allowed
