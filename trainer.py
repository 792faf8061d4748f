"""The training step with its micro-batches, an epoch of such steps, and an epoch of validation."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from base.base_dataloader import Batch, DevicePrefetcher, Loader
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer, TrainerConfig, Writer
from base.evaluation import evaluate
from base.monitor import Monitor
from utils import checkpoint, distributed
from utils.checkpoint import NetworkState, TrainingState
from utils.classes import ClassTable
from utils.devices import choose_precision, peak_memory
from utils.ema import ExponentialMovingAverage
from utils.epoch_figures import Comparisons, RunningFigures, SplitLoss
from utils.errors import CheckpointError
from utils.losses.criterion import Criterion
from utils.losses.strips import accumulation_dtype
from utils.lr_scheduler import Schedule
from utils.metrics import Metrics
from utils.nan_guard import NanGuard
from utils.precision import autocast
from utils.predict import Predictor
from utils.protocol import EvaluationProtocol
from utils.reproducibility import seed_micro_batch
from utils.step_progress import StepProgress
from utils.visualize import confusion_heatmap
from utils.writers import samples_of_weights

logger = logging.getLogger("segwright")

PICTURES = 8  # rows of val/inputs_targets_predictions


class StepResult(NamedTuple):
    """What a training step gives, on the device."""

    loss: Tensor  # (): of the whole batch, over all processes
    logits: Tensor  # (n, C, h, w): of its last micro-batch
    labels: Tensor  # (n, H, W) uint8: of its last micro-batch


class Trainer(BaseTrainer):
    """Train a model on batches of images and labels.

    Args:
        config: The `trainer` section.
        run_dir: Folder of this run's files; exists.
        model: The network, on its device: what is saved and validated.
        criterion: Its loss.
        optimizer: Over the model's parameters.
        schedule: Sets the optimizer's learning rates before each step.
        train_loader: Training batches.
        val_loader: Batches to validate on; None for no validation.
        classes: Names and colors of the classes.
        seed: Decides dropout, together with the step.
        monitor: What decides which model is best.
        description: What a checkpoint says about itself; plain values.
        protocol: How validation predicts.
        writers: Where results are shown.
        network: What the training step calls: `model` as `engine.assemble.wrap_network` wraps it; None for `model`.
    """

    def __init__(  # noqa: PLR0913  all but the first are named
        self,
        config: TrainerConfig,
        run_dir: Path,
        *,
        model: BaseModel,
        criterion: Criterion,
        optimizer: Optimizer,
        schedule: Schedule,
        train_loader: Loader,
        val_loader: Loader | None,
        classes: ClassTable,
        seed: int = 0,
        monitor: Monitor,
        description: Mapping[str, Any],
        protocol: EvaluationProtocol | None = None,
        writers: Sequence[Writer] = (),
        network: nn.Module | None = None,
    ) -> None:
        super().__init__(
            config,
            run_dir,
            steps_per_epoch=len(train_loader),
            batch_size=train_loader.batch_size,
            monitor=monitor,
            description=description,
            writers=writers,
        )
        self.model = model
        self.network = model if network is None else network
        self.criterion = criterion
        self.optimizer = optimizer
        self.schedule = schedule
        self.train_loader = train_loader
        self.val_loader = val_loader
        self.classes = classes
        self.seed = seed
        self.protocol = protocol or EvaluationProtocol()
        self.device = next(model.parameters()).device
        self.move = DevicePrefetcher(self.device)
        precision = choose_precision(config.precision, self.device)
        self.autocast = autocast(self.device, precision)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.ema = ExponentialMovingAverage(model, config.ema) if config.ema else None
        self.guard = NanGuard(
            model,
            patience=config.nan_streak,
            name_step=self.name_step,
            last_good=lambda: self.last_good,
        )
        self.gradient_norm = torch.zeros(())  # of the newest step that was asked for it
        self.running = RunningFigures(classes, self.device)
        self.matrix = Metrics(len(classes), classes.names, classes.ignored_classes, config.metrics)

    # ---------------------------------------------------------------------------------------------- training

    def train_epoch(self) -> dict[str, float]:
        self.model.train()
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        with StepProgress(f"train {self.progress.epoch + 1}/{epochs}", self.steps_left) as shown:
            for batch in shown.over(self.batches()):
                result = self.train_step(self.move(batch))
                self.running.add_loss(result.loss)
                self.guard.add(self.progress.step + 1, self.progress.position, result.loss)
                if self.is_log_step():
                    self.log_step(result, shown)
                elif shown.steps == 0 and shown.is_visible:  # so that there is something to see from the start
                    self.show_step(shown, float(result.loss), self.running.peek(result.logits, result.labels))
                self.after_step()
            self.images_per_second = self.batch_size * shown.steps_per_second(shown.steps)
        if self.validates() and self.val_loader is not None:
            self.val_loader.prepare()  # while the state is copied
        self.guard.check_losses()
        steps = self.progress.position // self.batch_size - self.guard.skipped_steps
        return self.running.results(max(steps, 1))

    def batches(self) -> Iterator[Batch]:
        """Read the batches of the steps that are left before the next commit."""
        progress, left = self.progress, self.steps_left
        is_last = progress.position // self.batch_size + left == self.steps_per_epoch  # of these steps, in the epoch
        if left:
            if self.train_loader.starts_workers:  # after a kill during a validation, one is saved before they start
                self.files.join()  # as in `eval_epoch`
            source = self.train_loader.batches(progress.epoch, progress.position)
            for number in range(left):
                batch = next(source)
                if number == left - 1 and is_last and progress.step + 1 < self.total_steps:
                    self.train_loader.prepare(progress.epoch + 1)  # while this step and a validation are computed
                yield batch

    def train_step(self, batch: Batch) -> StepResult:
        """Take one optimizer step on `batch`, in `accumulate` micro-batches."""
        step = self.progress.step
        self.schedule.apply(self.optimizer, step)
        # Each loss is divided by its share of the whole batch, so that micro-batches and processes add up to it.
        normalizers = distributed.all_reduce_sum(self.criterion.normalizers(batch.labels))
        loss = torch.zeros((), dtype=accumulation_dtype(self.device), device=self.device)
        self.guard.before_step()
        self.model.start_step(step, self.total_steps)
        for index, micro_batch in micro_batches(batch, self.config.accumulate):
            seed_micro_batch(self.seed, step, index, distributed.rank())
            with distributed.no_sync(self.network, index + 1 < self.config.accumulate):
                share, logits = self.backward(micro_batch, normalizers)
            loss += share
        loss = distributed.all_reduce_sum(loss)
        self.guard.before_update(loss)
        self.update_weights()
        self.guard.after_update(loss)
        if self.ema:
            self.ema.update(self.model)
        return StepResult(loss, logits, micro_batch.labels)

    def backward(self, micro_batch: Batch, normalizers: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradients of a micro-batch; returns its share of the loss, (), and its logits, both detached.

        Args:
            micro_batch: A part of the batch of the step being taken.
            normalizers: Of the whole batch, see `Criterion.normalizers`.
        """
        with self.autocast:
            output = self.network(micro_batch.images)
        loss = self.criterion(output, micro_batch.labels, normalizers, self.progress.step)["loss"]
        # Processes average their gradients, and each has a share of the sum.
        self.scaler.scale(loss * distributed.world_size()).backward()
        return loss.detach(), output.logits.detach()

    def update_weights(self) -> None:
        """Change the weights along the gradient, and forget it; its norm is kept where a writer will show it."""
        if self.config.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            self.gradient_norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        elif self.writers and self.is_log_step():
            gradients = [weights.grad for weights in self.model.parameters() if weights.grad is not None]
            self.gradient_norm = nn.utils.get_total_norm(gradients) / self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def is_log_step(self) -> bool:
        """Whether the step being taken is one of every `log_per_iter`, or the last before a commit."""
        return self.steps_left == 1 or (self.progress.step + 1) % self.config.log_per_iter == 0

    def log_step(self, result: StepResult, shown: StepProgress) -> None:
        """Read the loss and the figures of a step, and show them. The only point that waits for a GPU."""
        loss = self.guard.check_losses()
        figures = self.running.count(result.logits, result.labels)
        step = self.progress.step + 1
        rates = [group["lr"] for group in self.optimizer.param_groups]
        pace = self.batch_size * shown.steps_per_second(shown.steps + 1)
        if self.writers:
            self.write_step({"train/loss": loss, "train/images_per_second": pace, "train/data_wait": shown.waiting})
        self.show_step(shown, loss, figures)
        logger.debug(
            "step %d/%d: loss %.4f, Pixel_Accuracy %.3f, Mean_IoU %.3f, lr %.3g, %.3g images/s, waited for data %.0f%%",
            step,
            self.total_steps,
            loss,
            figures["Pixel_Accuracy"],
            figures["Mean_IoU"],
            rates[0],
            pace,
            100 * shown.waiting,
        )

    def write_step(self, scalars: dict[str, float]) -> None:
        """Give writers the figures of a step, with those of optimizer and machine."""
        for index, group in enumerate(self.optimizer.param_groups):
            scalars[f"train/Learning_rate_{index}"] = group["lr"]
            scalars[f"train/Learning_rate/{group.get('name', index)}"] = group["lr"]
        norm = float(self.gradient_norm)
        if math.isfinite(norm):
            scalars["train/gradient_norm"] = norm
        for key, value in peak_memory().items():
            scalars[f"memory/{key.removesuffix('_memory')}_GiB"] = value / 2**30
        for writer in self.writers:
            writer.scalars(scalars, self.progress.step + 1)

    def show_step(self, shown: StepProgress, loss: float, figures: Mapping[str, float]) -> None:
        """Show the figures of a step behind the bar, and how long all steps that are left will take."""
        done = shown.steps + 1
        shown.show(
            loss=f"{loss:.3f}",
            acc=f"{figures['Pixel_Accuracy']:.2f}",
            mIoU=f"{figures['Mean_IoU']:.2f}",
            data=f"{shown.waiting:.0%}",
            images_per_s=f"{self.batch_size * shown.steps_per_second(done):.3g}",
            all_epochs=shown.time_for(self.total_steps - self.progress.step - 1, done),
        )

    def name_step(self, step: int, position: int) -> str:
        """Say which step it is, and which images it had, over all processes.

        Args:
            step: Its number, from 1.
            position: Images of the open epoch that had been used before it.
        """
        keys = self.train_loader.keys(self.progress.epoch, position)
        images = ", ".join(repr(key) for key in keys[:8])
        return f"step {step} of {self.total_steps} (epoch {self.progress.epoch + 1}, images {images})"

    # -------------------------------------------------------------------------------------------- validating

    def validates(self) -> bool:
        return self.val_loader is not None and super().validates()

    @property
    def evaluated_model(self) -> BaseModel:
        """The model whose figures count: the averaged one, where there is one."""
        return self.ema.model if self.ema else self.model

    @torch.inference_mode()
    def eval_epoch(self) -> dict[str, float]:
        assert self.val_loader is not None
        model = self.evaluated_model
        if self.val_loader.starts_workers:
            self.files.join()  # a process that is forked beside another thread may inherit a lock that it holds
        predictor = Predictor(model, self.classes, self.description, self.protocol.precision, self.protocol.tta)
        distributed.broadcast_(model.buffers())  # each process has running means of its own batches
        self.matrix.reset()
        losses = SplitLoss(self.criterion)
        # A writer that only keeps figures says so; then no picture is drawn for it.
        shown_by = [writer for writer in self.writers if getattr(writer, "takes_images", True)]
        pictures = Comparisons(self.classes, PICTURES if shown_by else 0)
        evaluate(
            predictor.logits,
            self.val_loader,
            self.matrix,
            move=self.move,
            listeners=[losses.add, pictures.add],
            stop=lambda: bool(self.signal),
            title="validate",
        )
        self.check_signal()  # where all processes come to, also one that had no image
        self.matrix.reduce()
        losses.reduce()
        if shown_by:
            shown = {
                "val/inputs_targets_predictions": pictures.picture(),
                "val/confusion_matrix": confusion_heatmap(self.matrix.counts.cpu().numpy(), self.classes.names),
            }
            for writer, (tag, picture) in itertools.product(shown_by, shown.items()):
                writer.image(tag, picture, self.progress.step)
        for writer in self.writers:
            histogram: Any = getattr(writer, "histogram", None)  # which not every writer has
            for name, weights in samples_of_weights(model).items() if histogram else ():
                histogram(f"weights/{name}", weights, self.progress.step)
        return {**losses.results(), **self.matrix.results()}

    def after_validation(self, value: float) -> None:
        self.schedule.after_validation(value)

    # ------------------------------------------------------------------------------------------------- state

    def start_epoch(self) -> None:
        self.running.reset()
        self.guard.start_epoch()

    def save(self, *names: str, commit: bool = False) -> None:
        if distributed.is_first():
            self.guard.check_losses()
            self.guard.check_weights(f"after step {self.progress.step} of {self.total_steps}")
            super().save(*names, commit=commit)

    def network_state(self) -> NetworkState:
        return {
            "protocol": self.protocol.to_json(),
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "lr_scheduler": self.schedule.state_dict(),
            "running": self.running.state_dict(self.guard.skipped_steps),
            "nan_streak": self.guard.streak,
            "confusion_matrix": self.matrix.counts.clone(),
        }

    def load_network_state(self, state: TrainingState, path: Path) -> None:
        checkpoint.load_weights(self.model, checkpoint.weights_of(state, path), path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["lr_scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load_state_dict(state["ema"] or {})
            self.running.load_state_dict(state["running"])
            self.guard.skipped_steps = state["running"].get("left_out", 0)  # early files have neither
            self.guard.streak = state.get("nan_streak", 0)
            if "confusion_matrix" in state:
                self.matrix.load_state_dict({"counts": state["confusion_matrix"]})
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: its training state does not fit this config ({error}). Use it as init_from, not as --resume."
            ) from None


def micro_batches(batch: Batch, count: int) -> Iterator[tuple[int, Batch]]:
    """Divide `batch` into `count` micro-batches, as equal as they can be; gives each with its number.

    An epoch's last batch, which `drop_last` false keeps, may have fewer images than that; then some have none, and are
    passed over.
    """
    images = len(batch.keys)
    for index in range(count):
        start, stop = images * index // count, images * (index + 1) // count
        if start < stop:
            yield index, batch.part(start, stop)
