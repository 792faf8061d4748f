"""Find the checkpoint to go on from, and refuse a config that would change what the run means."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from base.base_dataloader import Loader
from base.run_files import epoch_of
from engine.config import RunConfig, hash_of_view, may_change, same_run, same_value
from trainer import Trainer
from utils import checkpoint, distributed, run_folder
from utils.checkpoint import Checkpoint
from utils.config import differences
from utils.errors import CheckpointError, DataError, UserError
from utils.run_folder import BEST
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
        changed = {key: pair for key, pair in changed.items() if not same_value(key, *pair)}
        refused = {key: pair for key, pair in changed.items() if not may_change(key)}
        names = list(config.classes.names)
        if names != self.checkpoint["classes"] and not refused:  # a file of classes has changed
            refused = {"classes": (self.checkpoint["classes"], names)}
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

    def compare_images(self, loaders: tuple[Loader, Loader | None]) -> None:
        """Refuse other images than those of the checkpoint, as far as it knows: some may have been trained on.

        Args:
            loaders: The training loader and the validation loader, if there is one.

        Raises:
            DataError: Images have come or gone.
        """
        for key, loader, then in (
            ("val_loader", loaders[1], self.checkpoint["protocol"].get("images")),
            ("train_loader", loaders[0], self.checkpoint["environment"].get(checkpoint.TRAINING_IMAGES)),
        ):
            if loader is not None and then not in (None, hash_of_view(loader.view)):
                what = "to train on" if loader.training else "to validate on, and some may have been trained on"
                raise DataError(
                    f"{key}: there are other images {what}, than when {self.path} was saved. Restore them, or start a "
                    f'new run with "init_from".'
                )

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


def set_aside_later(trainer: Trainer) -> None:
    """Rename what a run has saved beyond the step from which it goes on now: it is of another future.

    Else its best model could stay beside figures of this one. Without one, the next model validated is the best, and
    `early_stop` counts from now on.
    """
    for name in distributed.broadcast_object(lambda: _set_aside(trainer)):
        logger.warning("%s: damaged, or saved after step %d; it is old-%s now.", name, trainer.progress.step, name)
    if trainer.progress.best_value is not None and not distributed.broadcast_object((trainer.run_dir / BEST).exists):
        trainer.progress.best_value, trainer.progress.best_epoch = None, trainer.progress.epoch


def _set_aside(trainer: Trainer) -> list[str]:
    folder, progress = trainer.run_dir, trainer.progress
    found = [path for path in folder.glob("checkpoint-epoch*.pth") if epoch_of(path) > progress.epoch]
    found += [path for path in [folder / BEST] if path.exists()]
    later = [path for path in sorted(found) if _is_later(path, progress.step)]
    for path in later:
        path.replace(path.with_name(f"old-{path.name}"))
    return [path.name for path in later]


def _is_later(path: Path, step: int) -> bool:
    try:
        return checkpoint.load_run(path)["step"] > step
    except CheckpointError:  # it is of no use any more
        return True


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
        if not same_run(resolved, config) or run_folder.is_locked(folder):
            continue
        try:
            found = checkpoint.newest(folder)
        except CheckpointError as error:
            broken += error.problems
            continue
        if found is None:
            continue
        path, content, passed = found
        if content["classes"] != list(config.classes.names):  # a file of classes has changed
            continue
        for line in passed:
            logger.warning("%s Going on from %s.", line, path)
        if best is None or content["step"] >= best.checkpoint["step"]:
            best = Resume(path, content)
    if best is None and broken:
        raise CheckpointError(*broken)
    if best is None:
        logger.info("--resume auto: no earlier run of '%s' with this config; starting afresh.", config.name)
    return best
