"""Files inside of tar archives, read in place by their position and compared with a checksum before they are used.

A packed split is a folder of plain tar files, which `tar` and WebDataset read too, and an index of what is where in
them. A path such as ``packed/train/000002.tar/aachen_000019.png`` means a file inside of one of them: whoever reads
through `read_bytes` need not know. The index is the last thing to be written, so that nothing is trusted before all
of it is on the disk.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.config import canonical, fingerprint, fingerprint_of_text
from utils.errors import DataError, Fault, MissingData, Problem
from utils.files import atomic_write

INDEX = "shards.json"
PACK_AGAIN = "Pack the dataset again with --force, or get a good copy"
FORMAT = 1
CHECKSUM = ',"checksum":"'  # stands last in an index, behind the text that it is of


class Member(NamedTuple):
    """Where a file lies in an archive: its first byte, its length, and the CRC-32 of what it holds."""

    name: str
    offset: int
    size: int
    checksum: int


@dataclass(frozen=True)
class Packed:
    """A packed split.

    Args:
        folder: Where its archives are.
        about: Dataset, split and options that it was made of.
        rows: Key, image and label of each example, the latter as if archives were folders.
        members: What the archives hold, by name of the archive and of the file: the values of a `Member`.
        listed: What stood in the list of the split, by key of the example.
    """

    folder: Path
    about: Mapping[str, Any]
    rows: list[tuple[str, Path, Path]]
    members: Mapping[str, Mapping[str, Sequence[Any]]]
    listed: Mapping[str, Sequence[str]]

    def member(self, archive: str, name: str) -> Member:
        """Say where a file lies.

        Raises:
            KeyError: There is none of that name.
        """
        return Member(*self.members[archive][name])


_opened: dict[Path, Packed] = {}  # by folder, so that an index is read once in a process


def find_packed(data_dir: Path, split: str) -> Packed | None:
    """Find the packed `split` in `data_dir`; None if that is no folder of packed splits.

    Raises:
        MissingData: Other splits are packed there.
        DataError: An archive is not what it was.
    """
    folder = data_dir / split
    if (folder / INDEX).is_file():
        return open_packed(folder)
    others = sorted(path.parent.name for path in data_dir.glob(f"[!.]*/{INDEX}"))  # hidden ones are unfinished
    if others:
        what = f"holds packed {', '.join(others)}, not '{split}'"
        fix = "Pack that too (`python prepare.py pack`), or set data_dir to the dataset itself"
        raise MissingData(Problem(Fault.OTHER, data_dir, what, fix))
    return None


def open_packed(folder: Path) -> Packed:
    """Read the index in `folder`, and check that all archives are there in full length.

    Raises:
        DataError: They are not.
    """
    path = folder / INDEX
    try:
        content = _content(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}")
        archives = content["archives"]
        paths = [folder / name for name, _ in archives]
        rows: list[tuple[str, Path, Path]] = []
        files: list[dict[str, Sequence[Any]]] = [{} for _ in archives]
        # Of a hundred thousand examples: what json made is kept as it is, and a path is joined once.
        for key, number, image, label in content["examples"]:
            files[number][image[0]] = image
            files[number][label[0]] = label
            rows.append((key, paths[number] / image[0], paths[number] / label[0]))
        members = {name: each for (name, _), each in zip(archives, files, strict=True)}
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise DataError(Problem(Fault.OTHER, path, f"is damaged ({error})", PACK_AGAIN)) from None
    for name, size in archives:
        archive_path = folder / name
        found = archive_path.stat().st_size if archive_path.is_file() else None
        if found != size:
            what = "is missing" if found is None else f"has {found:,} bytes instead of {size:,}: it was cut or altered"
            raise DataError(Problem(Fault.OTHER, archive_path, what, PACK_AGAIN))
    _opened[folder] = Packed(folder, content["about"], rows, members, content.get("listed", {}))
    return _opened[folder]


def _content(text: str) -> dict[str, Any]:
    """Read what `write_index` wrote.

    Raises:
        ValueError: It is not what was written.
    """
    body, _, end = text.rpartition(CHECKSUM)
    content: dict[str, Any] = json.loads(text)
    checksum = content.pop("checksum")
    is_right = end == f'{checksum}"}}' and fingerprint_of_text(body + "}") == checksum
    # Early indexes stand in another order, and have to be written anew to be compared.
    if not is_right and fingerprint(content) != checksum:
        raise ValueError("its checksum is another")
    return content


def write_index(
    folder: Path,
    *,
    about: Mapping[str, Any],
    archives: list[tuple[str, int]],
    examples: list[tuple[str, int, Member, Member]],
    listed: Mapping[str, Sequence[str]],
) -> None:
    """Write the index of `folder` and wait until it is on the disk.

    Args:
        folder: Where the archives are, complete.
        about: Dataset, split and options.
        archives: Name and size of each.
        examples: Key, number of the archive, image and label of each.
        listed: What stood in the list of the split, by key of the example; empty without a list.
    """
    content = {"format": FORMAT, "about": dict(about), "archives": archives, "examples": examples}
    if listed:
        content["listed"] = dict(listed)
    text = canonical(json.loads(json.dumps(content)))
    text = f'{text.removesuffix("}")}{CHECKSUM}{fingerprint_of_text(text)}"}}'
    with atomic_write(folder / INDEX) as file:
        file.write(text.encode())


def read_bytes(path: Path) -> bytes:
    """Read the file `path`, which may lie inside of a packed archive.

    Raises:
        OSError: There is no such file.
        DataError: The archive is not what it was when it was packed.
    """
    member = _member(path)
    if member is None:
        return path.read_bytes()
    archive = path.parent
    with archive.open("rb") as file:
        file.seek(member.offset)
        data = file.read(member.size)
    if len(data) != member.size or zlib.crc32(data) != member.checksum:
        what = f"was cut or altered since it was packed, at '{member.name}'"
        raise DataError(Problem(Fault.ALTERED_ARCHIVE, archive, what, PACK_AGAIN))
    return data


def stamp(path: Path) -> tuple[int, int]:
    """Return two numbers that change when the file does: its size and times, or size and checksum in an archive.

    (-1, -1) if it is not there.
    """
    try:
        member = _member(path)
        if member is not None:
            return member.size, member.checksum
        status = path.stat()
        # Tools that copy, unpack or sort files bring the time of change along; that of the entry is the system's.
        return status.st_size, status.st_mtime_ns + status.st_ctime_ns
    except (OSError, DataError):
        return -1, -1


def is_packed(path: Path) -> bool:
    """Say whether `path` means a file inside of a packed archive."""
    return path.parent.suffix == ".tar" and (path.parent.parent / INDEX).is_file()


def _member(path: Path) -> Member | None:
    """Find where `path` lies in an archive; None if it is a file of its own.

    Raises:
        FileNotFoundError: There is no such file in the archive.
    """
    # Of a hundred thousand files, the text is looked at in a tenth of the time.
    if ".tar" not in str(path) or path.parent.suffix != ".tar":
        return None
    folder = path.parent.parent
    if folder not in _opened and not is_packed(path):
        return None
    packed = _opened.get(folder) or open_packed(folder)
    try:
        return packed.member(path.parent.name, path.name)
    except KeyError:
        raise FileNotFoundError(f"no '{path.name}' in {path.parent}") from None
