"""Downloads go on where they broke off, are checked, and unpack nothing outside their folder."""

from __future__ import annotations

import functools
import gzip
import hashlib
import io
import os
import signal
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import prepare
from dataloader.datasets.voc import VOC
from dataloader.tools import download as module
from dataloader.tools import voc_augmented
from dataloader.tools.download import Archive, download, fetch, unpack
from dataloader.tools.voc_augmented import augmented_split, build_augmented
from tests.conftest import Answer, call, kill_9_at
from utils.errors import DataError, Stopped

DATA = np.random.default_rng(0).bytes(300_000)


class Handler(BaseHTTPRequestHandler):
    """Serves one file; breaks off once if told to, and knows ranges unless told not to."""

    ranges, break_after, shift, status = True, 0, 0, 200
    asked: list[str | None]
    data = DATA

    def do_GET(self) -> None:
        cls = type(self)
        wanted = self.headers.get("Range")
        cls.asked.append(wanted)
        if self.path.endswith("nothing"):
            self.send_error(404)
            return
        if cls.status != 200:
            self.send_error(cls.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and cls.ranges else 0
        if start >= len(cls.data):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(cls.data)}")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        start = max(0, start - cls.shift)
        body = cls.data[start:]
        self.send_header("Content-Range", f"bytes {start}-{len(cls.data) - 1}/{len(cls.data)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if cls.break_after:
            body, cls.break_after = body[: cls.break_after], 0
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture
def server() -> Iterator[tuple[type[Handler], str]]:
    handler = type("OneFile", (Handler,), {"asked": []})
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=functools.partial(http.serve_forever, poll_interval=0.01), daemon=True)
        thread.start()
        yield handler, f"http://127.0.0.1:{http.server_port}/file.tar"
        http.shutdown()
        thread.join()


def tar_of(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return data.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return data.getvalue()


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_goes_on_where_it_broke_off(server: tuple[type[Handler], str], tmp_path: Path, ranges: bool) -> None:
    handler, url = server
    handler.ranges, handler.break_after = ranges, 100_000
    path = tmp_path / "file.tar"
    with pytest.raises((OSError, ConnectionError)):
        fetch(url, path)
    assert not path.exists()
    assert (tmp_path / "file.tar.part").stat().st_size == 100_000
    fetch(url, path)
    assert path.read_bytes() == DATA
    assert handler.asked == [None, "bytes=100000-"]
    fetch(url, path)
    assert len(handler.asked) == 2  # what is whole is not asked for


def test_a_part_that_is_whole_needs_only_its_name(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    (tmp_path / "file.tar.part").write_bytes(DATA)  # killed before it was renamed
    fetch(server[1], tmp_path / "file.tar")
    assert (tmp_path / "file.tar").read_bytes() == DATA


def test_a_file_that_became_shorter_is_fetched_anew(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    handler, url = server
    (tmp_path / "file.tar.part").write_bytes(DATA + b"of an older state")
    fetch(url, tmp_path / "file.tar")
    assert (tmp_path / "file.tar").read_bytes() == DATA
    assert handler.asked == [f"bytes={len(DATA) + 17}-", None]


def test_a_server_that_goes_on_elsewhere_is_not_trusted(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    handler, url = server
    handler.break_after, handler.shift = 100_000, 1000
    path = tmp_path / "file.tar"
    for _ in range(2):
        with pytest.raises(ConnectionError):
            fetch(url, path)
    fetch(url, path)
    assert path.read_bytes() == DATA


@pytest.mark.parametrize(("answer", "status"), [(404, 2), (403, 2), (429, 4), (500, 4), (503, 4)])
def test_what_a_server_may_give_later_is_no_mistake_of_the_user(
    answer: int, status: int, server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server[0].status = answer
    sources(monkeypatch, Archive(server[1]))
    given = call(prepare, "download", "VOC", "--data-dir", tmp_path)
    assert (given.status, f"the server answers {answer}" in given.err) == (status, True)


def test_two_downloads_into_one_folder_do_not_mix(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("fcntl")
    server[0].data = tar_of({"A/x.txt": b"1"})
    sources(monkeypatch, Archive(server[1]))
    first = download("VOC", tmp_path)
    next(first)
    with pytest.raises(Stopped, match="another process downloads into it"):
        list(download("VOC", tmp_path))
    list(first)
    assert "was unpacked before" in next(download("VOC", tmp_path))


def test_a_file_is_no_folder_to_download_into(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    answer = call(prepare, "download", "VOC", "--data-dir", tmp_path / "data")
    assert (answer.status, answer.err) == (2, f"error: --data-dir {tmp_path}/data: is a file. Name a folder.\n")


def test_what_the_server_does_not_have_is_named(server: tuple[type[Handler], str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the server answers 404"):
        fetch(server[1] + "/nothing", tmp_path / "x")


def sources(monkeypatch: pytest.MonkeyPatch, *archives: Archive) -> None:
    monkeypatch.setattr(module, "SOURCES", {"VOC": archives})


def test_a_wrong_checksum_removes_the_file(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources(monkeypatch, Archive(server[1], "md5:00"))
    with pytest.raises(DataError, match="not 00; it was removed"):
        list(download("VOC", tmp_path))
    assert not list(tmp_path.iterdir())


def test_without_a_published_checksum_the_first_download_decides(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = server
    handler.data = tar_of({"A/x.txt": b"1"})
    sources(monkeypatch, Archive(url))
    lines = list(download("VOC", tmp_path))
    assert any(hashlib.sha256(handler.data).hexdigest() in line for line in lines)
    assert (tmp_path / "A" / "x.txt").read_bytes() == b"1"
    (tmp_path / ".file.tar.done").unlink()
    (tmp_path / "file.tar").write_bytes(tar_of({"A/x.txt": b"2"}))
    with pytest.raises(DataError, match="sha256"):
        list(download("VOC", tmp_path))


def test_a_damaged_first_download_is_no_measure_for_the_next(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = server
    handler.data = b"<html>Please log in</html>"
    sources(monkeypatch, Archive(url))
    with pytest.raises(DataError, match="Remove it and run the command again"):
        list(download("VOC", tmp_path))
    (tmp_path / "file.tar").unlink()
    handler.data = tar_of({"A/x.txt": b"1"})
    list(download("VOC", tmp_path))
    assert (tmp_path / "A" / "x.txt").read_bytes() == b"1"


def test_a_dataset_is_fetched_checked_and_unpacked_once(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler, url = server
    handler.data = zip_of({"train2017/a.png": b"1", "val2017/b.png": b"2"})
    sources(monkeypatch, Archive(url, f"md5:{hashlib.md5(handler.data).hexdigest()}", "annotations"))
    answer = call(prepare, "download", "voc", "--data-dir", tmp_path / "data")
    assert answer.status == 0, answer.err
    assert "md5 is right" in answer.out
    assert (tmp_path / "data" / "annotations" / "val2017" / "b.png").read_bytes() == b"2"
    assert "was unpacked before" in call(prepare, "download", "VOC", "--data-dir", tmp_path / "data").out
    assert len(handler.asked) == 1
    wrong = call(prepare, "download", "VOK", "--data-dir", tmp_path)
    assert (wrong.status, "Did you mean 'VOC'?" in wrong.err) == (2, True)


def test_a_broken_network_ends_with_status_4(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server[0].break_after = 100
    sources(monkeypatch, Archive(server[1]))
    answer: Answer = call(prepare, "download", "VOC", "--data-dir", tmp_path)
    assert answer.status == 4
    assert "the same command goes on" in answer.err
    sources(monkeypatch, Archive("http://127.0.0.1:9/file.tar"))
    with pytest.raises(Stopped):
        list(download("VOC", tmp_path))


def changed(data: bytes, place: int) -> bytes:
    """`data` with one byte changed."""
    return data[:place] + bytes([data[place] ^ 1]) + data[place:][1:]


PACKED = gzip.compress(tar_of({"A/x": DATA}))
ZIPPED = zip_of({"A/x": b"1"})


@pytest.mark.parametrize(
    "data",
    [
        changed(PACKED, -6),
        changed(PACKED, 200_000),
        PACKED[:200_000],
        changed(changed(ZIPPED, 6), ZIPPED.index(b"PK\1\2") + 8),  # encrypted
        changed(changed(ZIPPED, 8), ZIPPED.index(b"PK\1\2") + 10),  # compressed in an unknown way
        tar_of({"A/x": b"1", "A/x/y": b"2"}),
        tar_of({"A/" + "x" * 300: b"1"}),
        tar_of({"../out.txt": b""}),
        tar_of({"A/../../out.txt": b""}),
        tar_of({"/tmp/out.txt": b""}),
        tar_of({"A/x": b""}, links={"A/l": "../../out.txt"}),
        zip_of({"../out.txt": b""}),
        zip_of({"C:\\out.txt": b""}),
        tar_of({"A/x": b"1" * 5000})[:3000],
        zip_of({"A/x": b"1" * 5000})[:3000],
        b"no archive",
    ],
)
def test_what_points_outside_or_is_damaged_leaves_nothing(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(path, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())
    assert [entry.name for entry in tmp_path.iterdir() if entry.name not in ("file", "data")] == []


@pytest.mark.parametrize("data", [zip_of({"A/x": bytes(3000)}), tar_of({"A/x": bytes(3000)})], ids=["zip", "tar"])
def test_what_does_not_fit_on_the_disk_is_not_begun(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=2999))
    with pytest.raises(OSError, match="to be unpacked, and 2,999 are free"):
        unpack(path, tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


def test_unpacking_that_was_interrupted_leaves_no_half_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, place = tmp_path / "file", tmp_path / "data"
    path.write_bytes(tar_of({"V/2007/x": b"1", "V/2012/y": b"2", "V/2012/z": b"3"}))
    (place / "V" / "2007").mkdir(parents=True)
    real = module.shutil.copyfileobj
    calls: list[int] = []

    def copy(*arguments: object) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module.shutil, "copyfileobj", copy)
    with pytest.raises(KeyboardInterrupt):
        unpack(path, place)
    assert not (place / "V" / "2012").exists()
    unpack(path, place)
    assert {p.relative_to(place).as_posix() for p in place.rglob("*") if p.is_file()} == {
        "V/2007/x",
        "V/2012/y",
        "V/2012/z",
    }


@pytest.mark.parametrize(
    ("owner", "name", "number"),
    [
        *((os, "fsync", 1), (os, "replace", 1), (module, "verify", 1), (module.shutil, "copyfileobj", 2)),
        *((os, "replace", 2), (os, "replace", 3), (Path, "touch", 1)),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_kill_9_at_any_moment_leaves_nothing_half_that_is_trusted(
    server: tuple[type[Handler], str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: object,
    name: str,
    number: int,
) -> None:
    handler, url = server
    files = {
        f"{folder}/{file}.png": bytes([i, j]) * 999 for i, folder in enumerate("AB") for j, file in enumerate("xy")
    }
    handler.data = tar_of(files)
    sources(monkeypatch, Archive(url, f"md5:{hashlib.md5(handler.data).hexdigest()}"))

    assert kill_9_at(owner, name, number, lambda: list(download("VOC", tmp_path))) == -signal.SIGKILL
    for folder in "AB":  # not there, or whole
        found = {path: (tmp_path / path).read_bytes() for path in files if (tmp_path / path).exists()}
        mine = {path: data for path, data in files.items() if path.startswith(folder)}
        assert {p: data for p, data in found.items() if p.startswith(folder)} in ({}, mine)
    list(download("VOC", tmp_path))
    assert {path: (tmp_path / path).read_bytes() for path in files} == files
    assert "was unpacked before" in next(iter(download("VOC", tmp_path)))
    assert not [path for path in tmp_path.iterdir() if path.name.endswith((".part", ".unpacking"))]


def test_only_the_folder_that_is_wanted_is_unpacked(
    server: tuple[type[Handler], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CamVid is a folder of a repository."""
    handler, url = server
    handler.data = zip_of({"Tutorial-1/CamVid/train/a.png": b"1", "Tutorial-1/README.md": b"2"})
    archive = Archive(url, only="Tutorial-1/CamVid", save_as="CamVid.zip")
    sources(monkeypatch, archive)
    list(download("VOC", tmp_path))
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith((".", "CamVid.zip"))]
    assert kept == [tmp_path / "train" / "a.png"]
    with pytest.raises(DataError, match="has no folder Tutorial-2"):
        unpack(tmp_path / "CamVid.zip", tmp_path / "other", only="Tutorial-2")


def test_every_source_says_where_it_is_and_has_a_dataset() -> None:
    for name, archives in module.SOURCES.items():
        for archive in archives:
            assert archive.url.startswith(("http://", "https://"))
            assert archive.name.endswith((".zip", ".tar", ".tgz")), name
            kind, _, digest = archive.checksum.partition(":")
            assert len(digest) == {"": 0, "md5": 32, "sha1": 40}[kind]


def test_cityscapes_says_what_to_fetch_by_hand_and_unpacks_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip .*cityscapes"):
        list(download("CityScapes", tmp_path))
    for name in ("leftImg8bit", "gtFine"):
        data = zip_of({f"{name}/train/ulm/x.png": b"1", "README": b"", "license.txt": b""})
        (tmp_path / f"{name}_trainvaltest.zip").write_bytes(data)
    assert len(list(download("CityScapes", tmp_path))) == 2
    assert (tmp_path / "gtFine" / "train" / "ulm" / "x.png").exists()
    assert not list(download("CityScapes", tmp_path))


def test_train_aug_is_all_that_is_annotated_less_what_is_validated_on() -> None:
    assert augmented_split(["a", "b", "v"], ["b", "c"], ["v", "w"]) == ["a", "b", "c"]


def test_the_aug_splits_are_made_from_sbd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, sbd = tmp_path / "VOCdevkit" / "VOC2012", tmp_path / "benchmark_RELEASE" / "dataset"
    for folder in (home / "JPEGImages", home / "SegmentationClass", home / "ImageSets" / "Segmentation", sbd / "cls"):
        folder.mkdir(parents=True)
    for name in "abcv":
        Image.fromarray(np.zeros((5, 7, 3), np.uint8)).save(home / "JPEGImages" / f"{name}.jpg")
    for name in "cv":
        Image.fromarray(np.full((5, 7), 3, np.uint8)).save(home / "SegmentationClass" / f"{name}.png")
    (home / "ImageSets" / "Segmentation" / "train.txt").write_text("c\n")
    (home / "ImageSets" / "Segmentation" / "val.txt").write_text("v\n")
    (sbd / "train.txt").write_text("a\nv\n")
    (sbd / "val.txt").write_text("b\nc\n")
    read: list[str] = []

    def read_mat(path: Path, *names: str) -> np.ndarray:
        assert names == ("GTcls", "Segmentation")
        read.append(path.name)
        return np.full((5, 7), 9, np.uint8)

    monkeypatch.setattr(voc_augmented, "read_mat", read_mat)
    monkeypatch.setattr(module, "fetch", lambda url, path: pytest.fail(f"fetches {url}"))
    assert list(download("VOCAug", tmp_path)) == [  # what was fetched elsewhere, when it could be
        f"VOCtrainval_11-May-2012.tar: not needed, as {home}/SegmentationClass is there",
        f"benchmark.tgz: not needed, as {sbd}/cls is there",
        "train_aug: 3 images",
        "val_aug: 1 images",
        "trainval_aug: 4 images",
    ]
    data = VOC(data_dir=tmp_path, split="train_aug")
    assert [int(data.read(index).label[0, 0]) for index in range(3)] == [9, 9, 3]
    assert len(VOC(data_dir=tmp_path, split="trainval_aug")) == 4
    list(build_augmented(tmp_path))
    assert read == ["a.mat", "b.mat"]  # the second time, nothing was left to do
    assert not list(home.rglob(".*"))
    (tmp_path / ".benchmark.tgz.unpacking").mkdir()  # which was cut off, so that labels may be missing
    with pytest.raises(pytest.fail.Exception, match=r"benchmark\.tgz"):
        list(download("VOCAug", tmp_path))
