"""Find the checkpoint to go on from, and refuse a config that would change what the run means."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.config import RunConfig, input_name, may_change, meaning_of
from utils import checkpoint, distributed, run_folder
from utils.checkpoint import Checkpoint
from utils.config import differences
from utils.errors import CheckpointError, UserError
from utils.schema import show

logger = logging.getLogger("segwright")


@dataclass(frozen=True)
class Resume:
    """A checkpoint to go on from.

    Args:
        path: Its file, in the folder of its run.
        checkpoint: Its content.
    """

    path: Path
    checkpoint: Checkpoint

    def compare(self, config: RunConfig) -> None:
        """Print how `config` differs from the checkpoint's, and refuse what would change the run's meaning.

        Raises:
            UserError: It names each key that may not change.
        """
        changed = differences(self.checkpoint["config"], config.to_json())
        changed = {
            key: (old, new) for key, (old, new) in changed.items() if input_name(key, old) != input_name(key, new)
        }
        refused = {key: pair for key, pair in changed.items() if not may_change(key)}
        if refused:
            raise UserError(
                *(
                    f"{key}: {show(new)}, but {self.path} was trained with {show(old)}. Keep that to resume, or start "
                    f'a new run with "init_from".'
                    for key, (old, new) in refused.items()
                )
            )
        for key, (old, new) in changed.items():
            logger.info("%s: %s instead of %s", key, show(new), show(old))

    def set_threads(self, device: torch.device) -> None:
        """Compute with as many threads as the checkpoint's run did, and warn where something else changes the results.

        Sums differ in their last bits with the number of threads, the version of torch and the device.
        """
        made = self.checkpoint["environment"]
        torch.set_num_threads(made.get("num_threads", torch.get_num_threads()))
        kind = str(made.get("device")).partition(":")[0]
        then = (made.get("versions", {}).get("torch"), made.get("num_threads"), made.get("world_size"), kind)
        now = (str(torch.__version__), torch.get_num_threads(), distributed.world_size(), device.type)
        if then != now:
            logger.warning(
                "%s was made by torch %s with %s threads in %s processes on %s, this is torch %s with %d in %d on %s: "
                "results will not be the same to the last bit.",
                self.path,
                *then,
                *now,
            )


def find(config: RunConfig) -> Resume | None:
    """Find the checkpoint of the run that means the same as `config` and has come furthest; None if there is none.

    Of several processes rank 0 searches, and the others read what it has found.

    Raises:
        CheckpointError: The only matching runs have no checkpoint that can be used.
    """
    if distributed.world_size() == 1:
        return _find(config)

    def found_path() -> Path | None:
        found = _find(config)
        return None if found is None else found.path

    path = distributed.broadcast_object(found_path)
    return None if path is None else Resume(path, checkpoint.load_run(path))


def _find(config: RunConfig) -> Resume | None:
    best: Resume | None = None
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
        path, content, passed = found
        for line in passed:
            logger.warning("%s Going on from %s.", line, path)
        if best is None or content["step"] >= best.checkpoint["step"]:
            best = Resume(path, content)
    if best is None and broken:
        raise CheckpointError(*broken)
    if best is None:
        logger.info("--resume auto: no earlier run of '%s' with this config; starting afresh.", config.name)
    return best
