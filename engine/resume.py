"""Find the checkpoint to go on from, and refuse a config that would change what the run means."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from engine.config import RunConfig, may_change, meaning_of
from utils import checkpoint, distributed, run_folder
from utils.config import differences
from utils.errors import CheckpointError, UserError
from utils.schema import show

logger = logging.getLogger("segwright")


def compare(config: RunConfig, state: Mapping[str, Any], path: Path) -> None:
    """Print how the config differs from a checkpoint's, and refuse what would change the run's meaning.

    Raises:
        UserError: It names each key that may not change.
    """
    changed = differences(state["config"], config.to_json())
    refused = {key: pair for key, pair in changed.items() if not may_change(key)}
    if refused:
        raise UserError(
            *(
                f"{key}: {show(new)}, but {path} was trained with {show(old)}. Keep that to resume, or start a new run "
                f'with "init_from".'
                for key, (old, new) in refused.items()
            )
        )
    for key, (old, new) in changed.items():
        logger.info("%s: %s instead of %s", key, show(new), show(old))


def set_threads(state: Mapping[str, Any], path: Path, device: torch.device) -> None:
    """Compute with as many threads as the checkpoint's run did, and warn where something else will change the results.

    Sums differ in their last bits with the number of threads, the version of torch and the device.
    """
    made = state["environment"]
    torch.set_num_threads(made.get("num_threads", torch.get_num_threads()))
    kind = str(made.get("device")).partition(":")[0]
    then = (made.get("versions", {}).get("torch"), made.get("num_threads"), made.get("world_size"), kind)
    now = (str(torch.__version__), torch.get_num_threads(), distributed.world_size(), device.type)
    if then != now:
        logger.warning(
            "%s was made by torch %s with %s threads in %s processes on %s, this is torch %s with %d in %d on %s: "
            "results will not be the same to the last bit.",
            *(path, *then, *now),
        )


def find_run(config: RunConfig) -> tuple[Path | None, dict[str, Any] | None]:
    """The checkpoint of the newest run, by its step, that means the same as `config`; (None, None) if there is none.

    Of several processes rank 0 looks, and the others read what it has found.

    Raises:
        CheckpointError: The only matching runs have no checkpoint that can be used.
    """
    if distributed.world_size() == 1:
        return _find_run(config)
    path = distributed.broadcast_object(lambda: _find_run(config)[0])
    return (None, None) if path is None else (path, checkpoint.load_run(path))


def _find_run(config: RunConfig) -> tuple[Path | None, dict[str, Any] | None]:
    best: tuple[Path, dict[str, Any]] | None = None
    broken: list[str] = []
    for folder, resolved in run_folder.past_runs(config.trainer.save_dir, config.name):
        if meaning_of(resolved) != config.meaning or run_folder.is_locked(folder):
            continue
        try:
            found = checkpoint.newest(folder)
        except CheckpointError as error:
            broken += error.problems
            continue
        if found is None:
            continue
        path, state, passed = found
        for line in passed:
            logger.warning("%s Going on from %s.", line, path)
        if best is None or state["step"] >= best[1]["step"]:
            best = path, state
    if best is None and broken:
        raise CheckpointError(*broken)
    if best is None:
        logger.info("--resume auto: no earlier run of '%s' with this config; starting afresh.", config.name)
        return None, None
    return best
