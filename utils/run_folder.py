"""The folder of a run: made once, never shared, found again."""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from glob import glob
from pathlib import Path
from typing import Any

from utils.errors import ConfigError, Stopped, UserError
from utils.files import lock
from utils.schema import show

logger = logging.getLogger("segwright")

LOCK = "run.lock"
LATEST = "latest"  # name of the link to the newest run, beside its folder
BEST = "best_model.pth"
FORBIDDEN = set('/\\:*?"<>|\0')
LONGEST = 200  # bytes; file systems take 255, and TensorBoard's files need some


def check_name(name: str) -> str:
    """Say what is wrong with `name` as the name of a run; an empty text if nothing is."""
    plain = name.isprintable() and not FORBIDDEN & set(name) and ".." not in name
    if not plain or name.strip(". ") in ("", "runs") or len(name.encode()) > LONGEST:
        return f"name: {show(name)} cannot name a folder of runs. Use up to {LONGEST} letters, digits, '-' and '_'."
    return ""


def make(folder: Path) -> None:
    """Make a folder that runs are to lie in, if it is not there.

    Raises:
        ConfigError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"{folder} cannot be written ({error.strerror})"
        raise ConfigError(f"trainer.save_dir: {what}. Name a folder that can be.") from None


def create(save_dir: Path, name: str, now: datetime) -> Path:
    """Make a new folder `<save_dir>/<name>/<YYYY-MM-DD_HH-MM-SS[-n]>`; two runs of one second get two.

    Raises:
        ConfigError: It cannot be made or written to.
    """
    stamp, parent = f"{now:%Y-%m-%d_%H-%M-%S}", save_dir / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = parent / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            (folder / LOCK).touch()
            return folder
    except OSError as error:
        raise ConfigError(
            f"trainer.save_dir: {parent} cannot be written ({error.strerror}). Name a folder that can be."
        ) from None
    raise ConfigError(f"trainer.save_dir: {parent} has a thousand runs of {stamp}. Clear it up.")


def link_latest(folder: Path) -> None:
    """Let the link `<save_dir>/<name>/latest` lead to the run of `folder`, where the file system has links."""
    link, unfinished = folder.parent / LATEST, folder.parent / f".{LATEST}-{os.getpid()}"
    if link.exists() and not link.is_symlink():
        return  # something of the user's
    with suppress(OSError):
        unfinished.symlink_to(folder.name, target_is_directory=True)
        unfinished.rename(link)


def find_model(model: str | Path) -> Path:
    """Find the checkpoint that `model` means: itself, or the best model of a run folder or of what a pattern matches.

    Of several, the newest is taken, and that is said.

    Args:
        model: Path of a checkpoint, of the folder of a run or of several runs, or a pattern such as
            ``saved/street/*/best_model.pth``.
    """
    path = Path(model)
    if path.is_file() or "\0" in str(model):
        return path
    places = [path] if path.is_dir() else [Path(match) for match in glob(str(model))]
    found: dict[Path, Path] = {}  # as they were named, by where they really are: `latest` is one of the others
    for place in sorted(places):
        files = [place] if place.is_file() else [place / BEST, *place.glob(f"*/{BEST}")]
        for file in files:
            if file.is_file():
                found.setdefault(file.resolve(), file)
    if not found:
        if path.is_dir():
            raise UserError(f"{path}: no {BEST} in this folder. Name a checkpoint, a .pth file.")
        return path  # whoever reads it says what is wrong
    newest = max(found.values(), key=lambda file: file.stat().st_mtime_ns)
    others = f", the newest of {len(found)}" if len(found) > 1 else ""
    logger.info("model: %s%s", newest, others)
    return newest


def remove_unstarted(folder: Path) -> None:
    """Delete the folder of a run that could not be started, and the one around it if that is empty."""
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):
        folder.parent.rmdir()


class Lock:
    """Keep other processes from going on with a run; the kernel lets go of it when this process dies.

    Args:
        folder: The run's folder.

    Raises:
        UserError: A living process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._file = (folder / LOCK).open("a+")
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror}). Copy the run to where it can.") from None
        try:
            lock(self._file)
        except BlockingIOError:
            self._file.close()
            raise UserError(
                f"{folder}: another process is training this run. Wait for it or start a run of your own."
            ) from None

    def release(self) -> None:
        """Let others have the run."""
        self._file.close()


def is_locked(folder: Path) -> bool:
    """Whether a living process trains the run of `folder`."""
    try:
        Lock(folder).release()
    except UserError:
        return True
    return False


def folders_of_runs(parent: Path) -> list[Path]:
    """List the folders of the runs in `parent`, oldest first; each once, so without the link to the newest."""
    return [path.parent for path in sorted(parent.glob("*/config.json")) if not path.parent.is_symlink()]


def past_runs(save_dir: Path, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Give the folders of earlier runs of `name` and their resolved configs."""
    for folder in folders_of_runs(save_dir / name):
        try:
            yield folder, json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue


def check_space(folder: Path, checkpoint_bytes: int) -> None:
    """Refuse to start where three checkpoints would not fit.

    Raises:
        Stopped: The disk is too full.
    """
    free = shutil.disk_usage(folder).free
    if free < 3 * checkpoint_bytes:
        raise Stopped(
            f"{folder}: {free >> 20} MiB are free, and three checkpoints take {3 * checkpoint_bytes >> 20} MiB. "
            f"Free some space or set trainer.save_dir to another disk; nothing was started"
        )


def environment(device: str, seed: int, modules: Sequence[str] = ()) -> dict[str, Any]:
    """Collect versions, device, seed, git commit and command line: what it takes to repeat a run."""
    import cv2
    import numpy
    import torch

    from utils import distributed
    from utils.plugins import registered_by

    return {
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "numpy": numpy.__version__,
            "opencv": cv2.__version__,
        },
        "platform": platform.platform(),
        "device": device,
        "device_name": torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine(),
        "num_threads": torch.get_num_threads(),
        "world_size": distributed.world_size(),
        "seed": seed,
        "modules": list(modules),
        "registered": registered_by(modules),
        "git": git_commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def git_commit(repository: Path = Path(__file__).parent, without: Sequence[str] = ()) -> str | None:
    """Find the commit of the code, with ``+`` where files were changed; None outside a repository.

    Args:
        repository: A folder of it; by default, of the code that runs.
        without: Paths from its root whose changes do not count.
    """
    excluded = [f":(exclude,top){path}" for path in without]

    def git(*words: str) -> str:
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        return subprocess.run(
            ["git", *words], cwd=repository, capture_output=True, text=True, timeout=10, check=True, env=quiet
        ).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "-uno", "--", ":/", *excluded) else "")
    except (OSError, subprocess.SubprocessError):
        return None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON."""
    from utils.checkpoint import write_text
    from utils.config import dump_json

    write_text(path, dump_json(value))
