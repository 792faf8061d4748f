"""The life of a run, one subject: epochs, validations, checkpoints, the best model, stopping early, going on.

A subclass says how to train and how to evaluate one epoch. Everything a run needs in order to go on as if it had
never stopped is in `state`; nothing is hidden in generators or in the wall clock.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from base.monitor import Monitor
from base.run_files import RunFiles
from utils import checkpoint, distributed, signals
from utils.checkpoint import NetworkState, Position, TrainingState
from utils.errors import ConfigError, Interrupted, Stopped, failure_of_machine
from utils.metrics import MetricName
from utils.registry import WRITERS
from utils.run_folder import BEST
from utils.schema import Above, AtLeast, Between, Component

logger = logging.getLogger("segwright")

TIME_IS_OVER = -1  # what processes wish besides the numbers of signals
SHOWN = ("train/loss", "train/Mean_IoU", "val/loss", "val/Pixel_Accuracy", "val/Mean_IoU")  # when an epoch is over
FINAL = ("val/loss", "val/Pixel_Accuracy", "val/Mean_IoU")  # of the best model, which writers get as best/...
UNORDERED = "does not have a deterministic implementation"  # torch's words, where `deterministic` asks for one
CUBLAS_BEGAN = "CUBLAS_WORKSPACE_CONFIG"  # in its words where cuBLAS was used before, without being told


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The `trainer` section of a config.

    Args:
        epochs: Passes over the training set in the whole run.
        max_steps: Optimizer steps in the whole run; given, it wins over `epochs`.
        save_dir: Folder of all runs; this one's is `<save_dir>/<name>/<date and time>`.
        save_period: Epochs between the checkpoints that are kept as `checkpoint-epoch<N>.pth`.
        keep_last: How many of those are kept, the newest.
        save_minutes: Minutes after which `last.pth` is written also within an epoch.
        save_steps: Optimizer steps after which it is; null for no such rule.
        max_time: Minutes after which to save and end with status 0, for queues with a time limit; null for none.
        monitor: `max KEY` or `min KEY` decides which model is best; `off` keeps none. KEY is one of metrics.jsonl,
            such as `Mean_IoU`, `val/loss` or `Class_IoU/car`.
        early_stop: Stop when the best is this many epochs old; 0 never does.
        writers: Where results are shown besides the run's folder.
        tensorboard: Write TensorBoard files; false silences that writer.
        log_dir: Folder for them; this run's is `<log_dir>/<name>/<date and time>`.
        log_per_iter: Optimizer steps between two readings of loss, accuracy and mIoU on the training batch.
        val: Validate at all.
        val_per_epochs: Epochs between validations; the last epoch is always validated.
        val_per_steps: Optimizer steps between validations; given, it wins over `val_per_epochs`.
        metrics: Figures that validation reports besides pixel accuracy and IoU.
        precision: Arithmetic of training and validation; `auto` is bf16 where the device has it. Weights stay float32.
        compile: Compile the training step with `torch.compile`; a text is its mode.
        channels_last: Keep weights channels last in memory, as images always are; `auto` on CUDA and on a CPU.
        accumulate: Micro-batches in which a batch is worked through, to save memory. Learning rate, steps and order of
            images stay; batch norm, and losses that are not sums over pixels such as Dice, see one at a time.
        activation_checkpointing: Keep only the inputs of a network's blocks, and compute their insides again for the
            gradient: less memory, a third more time, the same results.
        memory_drill: Before the first epoch, take one step and one validation of the largest images, and forget them,
            so that memory that does not suffice shows at once; `auto` on CUDA.
        clip_grad_norm: Largest norm of the gradient; null for no limit.
        ema: Decay of an exponential moving average of the weights, which is then what is validated and used.
        nan_streak: Consecutive steps with a loss that is NaN or infinite after which the run stops. Above 1, steps
            before that are skipped: they change no weight, which takes memory for a copy of the weights.
        deterministic: Forbid operations that differ from run to run on a GPU; a CPU has none.
    """

    epochs: Annotated[int, Between(1, 1_000_000)] | None = None
    max_steps: Annotated[int, Between(1, 1_000_000_000)] | None = None
    save_dir: Path = Path("saved")
    save_period: Annotated[int, AtLeast(1)] = 10
    keep_last: Annotated[int, AtLeast(1)] = 3
    save_minutes: Annotated[float, Above(0)] = 10.0
    save_steps: Annotated[int, AtLeast(1)] | None = None
    max_time: Annotated[float, Above(0)] | None = None
    monitor: str = "max Mean_IoU"
    early_stop: Annotated[int, AtLeast(0)] = 0
    writers: tuple[Annotated[Component, WRITERS], ...] = (Component("tensorboard"),)
    tensorboard: bool = True
    log_dir: Path = Path("saved/runs")
    log_per_iter: Annotated[int, AtLeast(1)] = 20
    val: bool = True
    val_per_epochs: Annotated[int, AtLeast(1)] = 1
    val_per_steps: Annotated[int, AtLeast(1)] | None = None
    metrics: tuple[MetricName, ...] = ()
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    compile: bool | Literal["default", "reduce-overhead", "max-autotune"] = False
    channels_last: bool | Literal["auto"] = "auto"
    accumulate: Annotated[int, Between(1, 65536)] = 1
    activation_checkpointing: bool = False
    memory_drill: bool | Literal["auto"] = "auto"
    clip_grad_norm: Annotated[float, Above(0)] | None = None
    ema: Annotated[float, Between(0, 1)] | None = None
    nan_streak: Annotated[int, AtLeast(1)] = 1
    deterministic: bool = False

    def wants_memory_check(self, device: str) -> bool:
        """Whether to try the largest step and validation first, on a device of that type."""
        return device == "cuda" if self.memory_drill == "auto" else self.memory_drill

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps in the whole run."""
        return self.max_steps or (self.epochs or 1) * steps_per_epoch


@dataclass
class Progress:
    """How far a run has come.

    Args:
        epoch: Completed epochs.
        step: Optimizer steps taken.
        position: Images of the open epoch that have been used.
        best_value: Best monitored value; None before the first.
        best_epoch: Epoch (completed ones, so from 1) that gave it, or within which it was; 0 before the first.
    """

    epoch: int = 0
    step: int = 0
    position: int = 0
    best_value: float | None = None
    best_epoch: int = 0


class Writer(Protocol):
    """Somewhere to show results, such as TensorBoard.

    A registered one may name these parameters besides its own: `log_dir`, a folder for this run; `purge_step`, the step
    from which on what was shown is void, None for a new run; `run`, its `utils.writers.RunFacts`. It may set
    `takes_images` to False, and then gets none. What it raises ends no run.
    """

    def scalars(self, values: Mapping[str, float], step: int) -> None: ...
    def image(self, tag: str, image: Any, step: int) -> None: ...
    def close(self) -> None: ...


class BaseTrainer(ABC):
    """Run `train_epoch` and `eval_epoch` by turns, and see to it that nothing is lost.

    Args:
        config: The `trainer` section.
        run_dir: Folder of this run's files; exists.
        steps_per_epoch: Optimizer steps in an epoch.
        batch_size: Images per optimizer step.
        monitor: What decides which model is best.
        description: What a checkpoint says about itself besides its weights (architecture, classes, config ...):
            plain values.
        writers: Where results are shown.
    """

    def __init__(
        self,
        config: TrainerConfig,
        run_dir: Path,
        *,
        steps_per_epoch: int,
        batch_size: int,
        monitor: Monitor,
        description: Mapping[str, Any],
        writers: Sequence[Writer] = (),
    ) -> None:
        self.config = config
        self.run_dir = run_dir
        self.monitor = monitor
        self.writers = writers
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.total_steps = config.total_steps(steps_per_epoch)
        self.description = dict(description)
        self.progress = Progress()
        self.history: list[dict[str, Any]] = []
        self.signal = 0  # number of the one that came; 0 for none
        self.files = RunFiles(run_dir, config.keep_last)
        self.started = time.monotonic()
        self.saved_at = self.started
        self.images_per_second = 0.0  # of the newest epoch's training; of no effect on anything

    @abstractmethod
    def train_epoch(self) -> dict[str, float]:
        """Train from `progress.position` for `steps_left` steps, calling `after_step` after each."""

    @abstractmethod
    def eval_epoch(self) -> dict[str, float]:
        """Evaluate the model on the validation set; call `check_signal` where all processes come to, at its end."""

    @abstractmethod
    def network_state(self) -> NetworkState:
        """State of model, optimizer and whatever else training changes, as tensors and plain values."""

    @abstractmethod
    def load_network_state(self, state: TrainingState, path: Path) -> None:
        """Restore what `network_state` gave; `path` is for errors."""

    def fit(self) -> Progress:
        """Train to the end, from wherever `progress` stands.

        Raises:
            Stopped: The machine or a NaN ended it.
            ConfigError: `deterministic` asks for what the device cannot do.
            Interrupted: A signal ended it, and all is saved.
            TimeLimit: `max_time` is over, and all is saved.
        """
        try:
            with signals.noted(self.note_signal), self.files.beside():
                while not self.finished:
                    self.run_epoch()
        except (MemoryError, RuntimeError) as error:
            known = self.explain(error)
            if known is None:
                raise
            raise known from error
        finally:
            for writer in self.writers:
                with suppress(OSError):  # a full disk has been, or will be, noticed by a checkpoint
                    writer.close()
        return self.progress

    def explain(self, error: MemoryError | RuntimeError) -> Stopped | ConfigError | None:
        """Say what the user can do about an error of the machine or of torch; None if it is a defect of ours."""
        if UNORDERED in str(error):
            name = str(error).partition(" ")[0]
            return ConfigError(
                f"trainer.deterministic: '{name}' {UNORDERED} on this device. Set it to false, or use another arch."
            )
        if CUBLAS_BEGAN in str(error):
            what = "trainer.deterministic: this process has computed without it before"
            return ConfigError(f"{what}. Start another, or set the variable {CUBLAS_BEGAN}=:4096:8 before the first.")
        when = f"after step {self.progress.step} of {self.total_steps}"
        if distributed.is_of_communication(error):
            return Stopped(f"training: {distributed.explain(error)}, {when}; {self.last_good}")
        if failure := failure_of_machine(error):
            return Stopped(
                f"training: {failure} {when}. Raise trainer.accumulate or lower train_loader.args.batch_size, "
                f"crop_size or num_workers; {self.last_good}"
            )
        return None

    @property
    def last_good(self) -> str:
        """Where to go on from after a failure, in words."""
        self.files.join()
        last = self.run_dir / "last.pth"
        return f"the last good checkpoint is {last}" if last.exists() else "no checkpoint had been written yet"

    def run_epoch(self) -> None:
        """Train to the end of the open epoch or the next validation within it, validate if it is time, and commit."""
        results = {f"train/{key}": value for key, value in self.train_epoch().items()}
        if self.validates():
            self.save_last()  # so that a kill during validation costs no training
            results |= {f"val/{key}": value for key, value in self.eval_epoch().items()}
        self.commit(results)

    @property
    def steps_left(self) -> int:
        """Optimizer steps to take before the next commit: that of the epoch, or of a validation within it."""
        progress, config = self.progress, self.config
        left = min(self.steps_per_epoch - progress.position // self.batch_size, self.total_steps - progress.step)
        if config.val_per_steps and config.val:
            committed = self.history[-1]["step"] if self.history else 0
            passed = progress.step % config.val_per_steps  # 0 where a validation is due, or has been committed
            due = 0 if passed == 0 and progress.step > committed else config.val_per_steps - passed
            left = min(left, due)
        return max(left, 0)

    @property
    def epoch_is_over(self) -> bool:
        """Whether no step of the open epoch is left."""
        whole = self.progress.position // self.batch_size >= self.steps_per_epoch
        return whole or self.progress.step >= self.total_steps

    def validates(self) -> bool:
        """Whether what has been trained is to be validated, before it is committed."""
        step, config = self.progress.step, self.config
        if config.val_per_steps:
            is_due = step % config.val_per_steps == 0
        else:
            is_due = (self.progress.epoch + 1) % config.val_per_epochs == 0
        return config.val and (is_due or step >= self.total_steps)

    def commit(self, results: Mapping[str, float]) -> None:
        """Commit the open epoch, or what has been trained of it: the best model, and last of all `last.pth`."""
        progress = self.progress
        # A class that never occurred has no IoU: JSON knows no NaN and no infinity, so such keys are not written.
        results = {key: value for key, value in results.items() if math.isfinite(value)}
        epoch = progress.epoch + 1
        ends = self.epoch_is_over
        self.history.append({"epoch": epoch, "step": progress.step, **results})
        if ends:
            progress.epoch = epoch
            progress.position = 0
            self.start_epoch()
        names = []
        if self.note_best(results, epoch):
            names.append(BEST)
        if ends and (epoch % self.config.save_period == 0 or progress.step >= self.total_steps):
            names.append(f"checkpoint-epoch{epoch}.pth")
        self.save(*names, "last.pth", commit=True)
        # The loss of training is shown step by step, and its mean would be another curve.
        scalars = {key: value for key, value in results.items() if key != "train/loss"}
        if BEST in names:
            scalars |= {key.replace("val/", "best/"): results[key] for key in FINAL if key in results}
        for writer in self.writers:
            writer.scalars(scalars, progress.step)
        shown = ", ".join(f"{key} {results[key]:.4f}" for key in SHOWN if key in results)
        if self.images_per_second:
            shown += f", {self.images_per_second:.3g} images/s"
        logger.info(
            "epoch %d/%d%s: %s%s",
            epoch,
            -(-self.total_steps // self.steps_per_epoch),
            "" if ends else f", step {progress.step}",
            shown,
            " (best)" if BEST in names else "",
        )

    def note_best(self, results: Mapping[str, float], epoch: int) -> bool:
        """Take note of the monitored value, if there is one; returns whether it is the best."""
        value = results.get(self.monitor.key)
        if value is not None:
            self.after_validation(value)
        if value is None or not self.monitor.improves(value, self.progress.best_value):
            return False
        self.progress.best_value = value
        self.progress.best_epoch = epoch
        return True

    @abstractmethod
    def start_epoch(self) -> None:
        """Forget the sums of the epoch that was just closed."""

    def after_validation(self, value: float) -> None:  # noqa: B027  most have no use for it
        """Hear the monitored value, before it is saved."""

    @property
    def finished(self) -> bool:
        """Whether all steps are taken, or the best model is too old; only ever true between epochs."""
        progress, patience = self.progress, self.config.early_stop
        if progress.position:
            return False
        if progress.step >= self.total_steps and progress.epoch:
            return True
        kind = self.monitor.key.partition("/")[0] + "/"  # of results: only an epoch that has them can be too late
        lines = [record for record in self.history if record["epoch"] == progress.epoch]
        judged = any(key.startswith(kind) for record in lines for key in record)
        return bool(patience and judged and progress.epoch - progress.best_epoch >= patience)

    @property
    def stopped_early(self) -> bool:
        """Whether the run is finished before all its steps were taken."""
        return self.finished and self.progress.step < self.total_steps

    def after_step(self) -> None:
        """Count an optimizer step, save if it is time, and stop if somebody asked for it or a save failed."""
        progress, config = self.progress, self.config
        self.files.check()
        progress.step += 1
        progress.position += self.batch_size
        now = time.monotonic()
        is_over = config.max_time is not None and now - self.started >= config.max_time * 60
        # The signal is read once: one that comes later is obeyed after the next step.
        asked = distributed.agree_on_stop(progress.step, self.signal or (TIME_IS_OVER if is_over else 0))
        is_due = config.save_steps is not None and progress.step % config.save_steps == 0
        if asked or is_due or now - self.saved_at >= config.save_minutes * 60:
            self.save_last()
        if asked > 0:
            raise self.interrupted(asked)
        if asked == TIME_IS_OVER:
            raise TimeLimit(
                f"trainer.max_time: {config.max_time:g} minutes are over at step {progress.step} of "
                f"{self.total_steps}. Go on with --resume {self.run_dir / 'last.pth'}"
            )

    def check_signal(self) -> None:
        """Leave if a signal came to any of the processes; what has to be saved has been.

        Raises:
            Interrupted: One did.
        """
        if number := distributed.all_reduce_max(self.signal):
            raise self.interrupted(number)

    def interrupted(self, number: int) -> Interrupted:
        """What to raise after signal `number`, when all is saved."""
        name, last = signal.Signals(number).name, self.run_dir / "last.pth"
        text = f"{name}: stopped at step {self.progress.step} of {self.total_steps}. Go on with --resume {last}"
        return Interrupted(number, text)

    def note_signal(self, number: int) -> None:
        """Remember that a signal came; it is obeyed when the step is over and saved."""
        self.signal = number

    def state(self) -> dict[str, Any]:
        """All that is needed to go on exactly, and to use the model without this run's config: a `Checkpoint`."""
        progress = self.progress
        position: Position = {
            "epoch": progress.epoch,
            "step": progress.step,
            "total_steps": self.total_steps,
            "position": progress.position,
            "best": {"value": progress.best_value, "epoch": progress.best_epoch},
            "history": self.history,
        }
        return {"format": checkpoint.FORMAT, **self.description, **position, **self.network_state()}

    def save_last(self) -> None:
        """Write `last.pth`."""
        self.save("last.pth")

    def save(self, *names: str, commit: bool = False) -> None:
        """Write the state under all `names`, see `RunFiles.save`.

        Of several processes only rank 0 comes here, and no other has anything to add to its state.
        """
        self.files.save(self.state(), names, commit=commit)
        self.saved_at = time.monotonic()

    def resume(self, content: Mapping[str, Any], path: Path) -> None:
        """Go on from a checkpoint's content.

        Raises:
            CheckpointError: It lacks something, or does not fit the model.
        """
        state = checkpoint.training_state_of(content, path)
        self.load_network_state(state, path)
        self.progress = Progress(
            epoch=state["epoch"],
            step=state["step"],
            position=state["position"],
            best_value=state["best"]["value"],
            best_epoch=state["best"]["epoch"],
        )
        self.history = [dict(record) for record in state["history"]]
        if self.history and distributed.is_first():
            self.files.write_history(self.history)


class TimeLimit(Exception):
    """`trainer.max_time` is over, and everything is saved; status 0."""
