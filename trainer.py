"""One epoch of training and one of evaluating a segmentation model."""

from __future__ import annotations

import copy
import itertools
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from base.base_dataloader import Batch, DevicePrefetcher, Loader
from base.base_model import BaseModel
from base.base_trainer import BaseTrainer, Monitor, TrainerConfig, Writer
from utils import checkpoint, distributed
from utils.activation_checkpointing import checkpoint_activations
from utils.classes import ClassTable
from utils.devices import choose_precision
from utils.errors import CheckpointError, Stopped
from utils.losses.criterion import Criterion
from utils.losses.strips import predicted_labels
from utils.lr_scheduler import Schedule
from utils.metrics import ConfusionMatrix, Metrics
from utils.reproducibility import seed_micro_batch
from utils.visualize import comparison

logger = logging.getLogger("segwright")

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PICTURES = 15  # rows of val/inputs_targets_predictions


class Trainer(BaseTrainer):
    """Trains a model on batches of images and labels.

    Args:
        config: The `trainer` section.
        run_dir: Folder of this run's files; exists.
        model: The network, on its device.
        criterion: Its loss.
        optimizer: Over the model's parameters.
        schedule: Sets the optimiser's learning rates before each step.
        train_loader: Training batches.
        val_loader: Batches to validate on; None for no validation.
        classes: Names and colors of the classes.
        seed: Decides dropout, together with the step.
        monitor: What decides which model is best.
        description: What a checkpoint says about itself; plain values.
        writers: Where results are shown.
        network: What the training step calls, where that is not `model` itself but several copies of it.
    """

    def __init__(
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
        self.model, self.criterion, self.optimizer, self.schedule = model, criterion, optimizer, schedule
        self.train_loader, self.val_loader, self.classes, self.seed = train_loader, val_loader, classes, seed
        self.device = next(model.parameters()).device
        self.move = DevicePrefetcher(self.device)
        self.ema = AveragedModel(model, config.ema) if config.ema else None
        self.undo = StepRollback(model) if config.nan_streak > 1 else None
        self.streak = self.left_out = 0  # steps whose loss was not finite: the last ones, and those of the open epoch
        if config.activation_checkpointing:
            checkpoint_activations(model)
        self.network = network or model
        if config.compile:
            mode = None if config.compile is True else config.compile
            self.network = torch.compile(self.network, mode=mode)  # type: ignore[assignment]
        precision = PRECISIONS[choose_precision(config.precision, self.device)]
        self.autocast = torch.autocast(self.device.type, precision, enabled=precision != torch.float32)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.matrix = Metrics(len(classes), classes.names, classes.ignored_classes, config.metrics)
        self.start_epoch()

    # ---------------------------------------------------------------------------------------------- training

    def train_epoch(self) -> dict[str, float]:
        self.model.train()
        for batch in self.batches():
            loss = self.train_step(batch)
            self.loss_sum += torch.where(loss.isfinite(), loss, 0.0)
            self.recent.append((self.progress.step + 1, loss, self.progress.position))
            if self.is_log_step():
                self.log_step(batch)
            self.after_step()
        self.stop_if_not_finite()
        steps = max(self.progress.position // self.batch_size - self.left_out, 1)
        return {"loss": self.loss_sum.item() / steps, **figures_of(self.running)}

    def is_log_step(self) -> bool:
        """Whether the step being taken is one of every `log_per_iter`, or the last before a commit."""
        return self.steps_left == 1 or (self.progress.step + 1) % self.config.log_per_iter == 0

    def train_step(self, batch: Batch) -> Tensor:
        """Take one optimiser step on `batch`, in `accumulate` parts; returns the loss, still on its device."""
        step, parts = self.progress.step, self.config.accumulate
        self.schedule.apply(self.optimizer, step)
        norms = distributed.all_reduce_sum(self.criterion.normalizers(batch.labels))
        total = torch.zeros((), dtype=self.loss_sum.dtype, device=self.device)
        if self.undo:
            self.undo.remember()
        bounds = [len(batch.keys) * part // parts for part in range(parts + 1)]
        for part, (start, stop) in enumerate(itertools.pairwise(bounds)):
            if start == stop:  # of an epoch's last batch, which `drop_last` false keeps
                continue
            piece = batch.part(start, stop)
            seed_micro_batch(self.seed, step, part, distributed.rank())
            with distributed.no_sync(self.network, part + 1 < parts):
                with self.autocast:
                    output = self.network(piece.images)
                losses = self.criterion(output, piece.labels, norms, step)
                # Processes average their gradients, and each has a share of the sum.
                self.scaler.scale(losses["loss"] * distributed.world_size()).backward()
            total += losses["loss"].detach()
            self.output = output.logits.detach()
        total = distributed.all_reduce_sum(total)
        if self.undo:
            self.undo.drop_gradients(~total.isfinite())
        self.descend()
        if self.undo:
            self.undo.take_back(~total.isfinite())
        if self.ema:
            self.ema.update(self.model)
        return total

    def descend(self) -> None:
        """Change the weights along the gradient, and forget it."""
        if self.config.clip_grad_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_grad_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def memory_check(self, batch: Batch, image: Tensor | None) -> None:
        """Take a step on `batch`, evaluate `image` (1, C, H, W), and forget both; for what they need of memory.

        Both are on the device. The optimiser is one to throw away, which allocates as much as the real one.
        """
        weights = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}
        kept = self.optimizer, self.ema, self.scaler.state_dict()
        make: Any = type(self.optimizer)
        self.optimizer, self.ema = make([dict(group) for group in self.optimizer.param_groups]), None
        try:
            self.model.train()
            self.train_step(batch)
            if image is not None:
                with torch.inference_mode():
                    predicted_labels(self.model.eval()(image).logits, (image.shape[-2], image.shape[-1]))
        finally:
            self.optimizer, self.ema = kept[:2]
            self.scaler.load_state_dict(kept[2])
            self.optimizer.zero_grad(set_to_none=True)
            self.model.load_state_dict(weights)

    def batches(self) -> Iterator[Batch]:
        """The batches of the steps that are left, on the device, with a progress bar."""
        progress, left = self.progress, self.steps_left
        if not left:
            return
        epochs = math.ceil(self.total_steps / self.steps_per_epoch)
        source = iter(self.train_loader.batches(progress.epoch, progress.position))
        with tqdm(total=left, desc=f"train {progress.epoch + 1}/{epochs}", leave=False, disable=silent()) as self.bar:
            self.waited, self.since = 0.0, time.monotonic()
            for _ in range(left):
                before = time.monotonic()
                batch = next(source)
                self.waited += time.monotonic() - before
                yield self.move(batch)
                self.bar.update()

    def log_step(self, batch: Batch) -> None:
        """Read the loss and the figures of the current batch, and show them. The only point that waits for a GPU."""
        loss = self.stop_if_not_finite()
        labels = batch.labels[-len(self.output) :]
        sample = ConfusionMatrix(len(self.classes), self.classes.names, self.classes.ignored_classes)
        predicted = predicted_labels(self.output, (labels.shape[-2], labels.shape[-1]))
        sample.update(predicted, labels)
        sample.reduce()
        self.running.include(sample)
        figures = {"Pixel_Accuracy": math.nan, "Mean_IoU": math.nan, **figures_of(sample)}
        waiting = self.waited / max(time.monotonic() - self.since, 1e-9)
        step = self.progress.step + 1
        rates = {f"train/Learning_rate_{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        for writer in self.writers:
            writer.scalars({"train/loss": loss, **rates}, step)
        self.bar.set_postfix(
            loss=f"{loss:.3f}",
            acc=f"{figures['Pixel_Accuracy']:.2f}",
            mIoU=f"{figures['Mean_IoU']:.2f}",
            data=f"{waiting:.0%}",
        )
        logger.debug(
            "step %d/%d: loss %.4f, Pixel_Accuracy %.3f, Mean_IoU %.3f, lr %.3g, waited for data %.0f%%",
            *(step, self.total_steps, loss, figures["Pixel_Accuracy"], figures["Mean_IoU"]),
            *(self.optimizer.param_groups[0]["lr"], 100 * waiting),
        )

    def stop_if_not_finite(self) -> float:
        """Look at the losses since the last look; returns the newest.

        Raises:
            Stopped: `nan_streak` of them in a row were NaN or infinite; nothing of it has been saved.
        """
        if not self.recent:
            return math.nan
        losses = torch.stack([loss for _, loss, _ in self.recent]).tolist()
        for loss, (step, _, position) in zip(losses, self.recent, strict=True):
            if math.isfinite(loss):
                self.streak = 0
                continue
            self.streak += 1
            self.left_out += 1
            keys = self.train_loader.keys(self.progress.epoch, position)  # of all processes' parts
            what = (
                f"the loss became {loss} at step {step} of {self.total_steps} (epoch {self.progress.epoch + 1}, images "
                f"{', '.join(map(repr, keys[:8]))})"
            )
            if self.streak >= self.config.nan_streak:
                raise Stopped(
                    f"training: {what}. Lower optimizer.args.lr, set trainer.clip_grad_norm, or look at these images; "
                    f"{self.last_good}"
                )
            logger.warning("%s; left out, number %d in a row", what, self.streak)
        self.recent.clear()
        return losses[-1]

    def stop_if_weights_are_not_finite(self) -> None:
        """Look at the weights, which a finite loss with an infinite gradient ruins too.

        Raises:
            Stopped: One is NaN or infinite; it has not been saved.
        """
        values = {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
        finite = torch.stack([value.isfinite().all() for value in values.values()]).tolist()
        if not all(finite):
            raise Stopped(
                f"training: weights such as '{list(values)[finite.index(False)]}' are not finite after step "
                f"{self.progress.step} of {self.total_steps}. Lower optimizer.args.lr or set trainer.clip_grad_norm; "
                f"{self.last_good}"
            )

    # -------------------------------------------------------------------------------------------- evaluating

    def validates(self) -> bool:
        return self.val_loader is not None and super().validates()

    @property
    def evaluated_model(self) -> BaseModel:
        """The model whose figures count: the averaged one, where there is one."""
        return self.ema.model if self.ema else self.model

    @torch.inference_mode()
    def eval_epoch(self) -> dict[str, float]:
        assert self.val_loader is not None
        model = self.evaluated_model.eval()
        distributed.broadcast_(model.buffers())  # each process has running means of its own batches
        self.matrix.reset()
        numerators = norms = torch.zeros(len(self.criterion.names), dtype=torch.float64)
        pictures: list[np.ndarray] = []
        loader = self.val_loader
        for batch in tqdm(loader.batches(), total=len(loader), desc="validate", leave=False, disable=silent()):
            if self.signal:
                break
            batch = self.move(batch)
            output = model(batch.images)
            labels = self.matrix.add(output.logits, batch.labels)
            sums = self.criterion.evaluation_sums(output, batch.labels)
            numerators, norms = numerators + sums[0].cpu().double(), norms + sums[1].cpu().double()
            if self.writers and len(pictures) < PICTURES:
                pictures += comparisons(batch, labels, self.classes, PICTURES - len(pictures))
        self.check_signal()  # where all processes have come to, also one that had no image
        self.matrix.reduce()
        numerators, norms = distributed.all_reduce_sum(numerators), distributed.all_reduce_sum(norms)
        for writer in self.writers:
            writer.image("val/inputs_targets_predictions", np.concatenate(pictures), self.progress.step)
        losses = self.criterion.evaluation_loss(numerators, norms)
        terms = losses if len(losses) > 2 else {"loss": losses["loss"]}  # a single term is the loss
        return {**terms, **self.matrix.results()}

    # ------------------------------------------------------------------------------------------------- state

    def start_epoch(self) -> None:
        # float64 where the device has it, so that a long epoch's mean is not rounded
        dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.loss_sum = torch.zeros((), dtype=dtype, device=self.device)
        self.running = ConfusionMatrix(len(self.classes), self.classes.names, self.classes.ignored_classes)
        self.left_out = 0
        self.recent: list[tuple[int, Tensor, int]] = []  # step, loss, position: what nobody has looked at yet

    def after_validation(self, value: float) -> None:
        self.schedule.after_validation(value)

    def save(self, *names: str) -> None:
        if distributed.is_first():
            self.stop_if_not_finite()
            self.stop_if_weights_are_not_finite()
            super().save(*names)

    def parts_state(self) -> dict[str, Any]:
        return {
            "state_dict": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.state_dict() if self.ema else None,
            "lr_scheduler": self.schedule.state_dict(),
            "running": {
                "loss": self.loss_sum.cpu(),
                "matrix": self.running.state_dict(),
                "left_out": self.left_out,
            },
            "nan_streak": self.streak,
        }

    def load_parts_state(self, state: Mapping[str, Any], path: Path) -> None:
        checkpoint.load_weights(self.model, checkpoint.weights_of(state, path), path)
        try:
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["lr_scheduler"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.load_state_dict(state["ema"])
            self.running.load_state_dict(state["running"]["matrix"])
            self.loss_sum.copy_(state["running"]["loss"])
            self.left_out = state["running"].get("left_out", 0)
            self.streak = state.get("nan_streak", 0)
        except (KeyError, ValueError, TypeError, RuntimeError) as error:
            raise CheckpointError(
                f"{path}: its training state does not fit this config ({error}). Use it as init_from, not as --resume."
            ) from None


class AveragedModel:
    """Exponential moving average of a model's weights; its buffers are copied.

    The decay grows with the number n of updates, min(decay, (1 + n) / (10 + n)), so that the random first weights
    are soon forgotten.

    Args:
        model: What to average.
        decay: Share of the old average that is kept at each update.
    """

    def __init__(self, model: BaseModel, decay: float) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self, model: BaseModel) -> None:
        """Move the average towards `model`."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)

    def state_dict(self) -> dict[str, Any]:
        return {"state_dict": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.load_state_dict(state["state_dict"])
        self.updates = state["updates"]


class StepRollback:
    """Takes back what an optimiser step did to a model, if a device finds it spoilt; the host need not know.

    Args:
        model: Whose weights and statistics to keep a copy of.
    """

    def __init__(self, model: BaseModel) -> None:
        self.parameters = list(model.parameters())
        self.values = [*self.parameters, *model.buffers()]
        self.kept = [value.detach().clone() for value in self.values]

    @torch.no_grad()
    def remember(self) -> None:
        """Keep everything as it is."""
        for kept, value in zip(self.kept, self.values, strict=True):
            kept.copy_(value)

    def drop_gradients(self, spoilt: Tensor) -> None:
        """Let the optimiser see gradients of 0 where `spoilt`, (), is true, so that its own state stays finite."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(spoilt, 0.0)

    @torch.no_grad()
    def take_back(self, spoilt: Tensor) -> None:
        """Put everything back where `spoilt`, (), is true."""
        for kept, value in zip(self.kept, self.values, strict=True):
            value.copy_(torch.where(spoilt, kept, value))


def silent() -> bool | None:
    """Whether to show no progress bar, as `tqdm` takes it: None leaves it to the terminal."""
    return None if distributed.is_first() else True


def figures_of(matrix: ConfusionMatrix) -> dict[str, float]:
    """The two figures that are shown of training batches."""
    return {key: value for key, value in matrix.results().items() if key in ("Pixel_Accuracy", "Mean_IoU")}


def comparisons(batch: Batch, predicted: Tensor, classes: ClassTable, count: int) -> list[np.ndarray]:
    """Up to `count` rows (H, W, 3) uint8 of input, truth and prediction."""
    images, truth = batch.images.permute(0, 2, 3, 1).cpu().numpy(), batch.labels.cpu().numpy()
    rows = zip(images[:count], truth[:count], predicted[:count].cpu().numpy(), strict=True)
    return [comparison(image, [target, labels], classes, width=1200) for image, target, labels in rows]
