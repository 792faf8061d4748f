"""Text as wide as the terminal: tables of names, and paragraphs."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Mapping

MARK = re.compile(r"\d+[.)] ")  # of a list


def width() -> int:
    """Columns to write text in: the terminal's, but no more than are pleasant to read."""
    return min(shutil.get_terminal_size().columns, 100)


def name_table(rows: Mapping[str, str]) -> list[str]:
    """Lines of a table with a name and what it is in each row; longer texts go on below their beginning."""
    first = max(map(len, rows), default=0)
    indent = " " * (first + 4)
    lines = []
    for name, text in rows.items():
        pieces = textwrap.wrap(text, width() - len(indent), break_long_words=False, break_on_hyphens=False)
        lines.append(f"  {name:<{first}}  {pieces[0] if pieces else ''}")
        lines += [indent + piece for piece in pieces[1:]]
    return lines


def wrapped(text: str) -> str:
    """Fill the paragraphs of a docstring anew; of all else, only lines that are too long."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(_paragraph(block) if _is_paragraph(block) else _lines(block) for block in blocks)


def _is_paragraph(block: str) -> bool:
    """Whether all lines begin as those of a sentence do."""
    lines = block.splitlines()
    return not any(line.startswith((" ", "- ", "* ", ">>>", "|")) or MARK.match(line) for line in lines)


def _paragraph(block: str) -> str:
    return textwrap.fill(" ".join(block.split()), width(), break_long_words=False, break_on_hyphens=False)


def _lines(block: str) -> str:
    return "\n".join(wrapped_line(line) for line in block.splitlines())


def wrapped_line(line: str, deeper: int = 0) -> str:
    """Break a line that is too long; what follows is indented as it is, or deeper."""
    if len(line) <= width():
        return line
    indent = line[: len(line) - len(line.lstrip())]
    below = indent + " " * deeper
    return textwrap.fill(
        line.strip(),
        width(),
        initial_indent=indent,
        subsequent_indent=below,
        break_long_words=False,
        break_on_hyphens=False,
    )
