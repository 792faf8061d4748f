"""What every loss promises, and class weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from utils.classes import IGNORE
from utils.errors import ConfigError
from utils.losses.strips import accumulation_dtype, label_counts
from utils.schema import AtLeast, did_you_mean, join

Weight = Annotated[float, AtLeast(0)]

ClassWeights = list[Weight] | dict[str, Weight] | Literal["median_freq", "enet", "sqrt_inv"] | None


class Loss(nn.Module, ABC):
    """A loss of logits and labels.

    `additive` says whether the value is (sum over pixels or images) / (sum of their weights). Then a batch in parts,
    on one process or on many, costs what it would in one piece, if all parts divide by the norm of the whole batch.
    Other losses are computed for each part.

    `step` is the optimiser step that is being taken, from 0, for losses that change in the course of training; None
    where nothing is being trained. Whoever calls the loss sets it.
    """

    additive: bool
    step: int | None = None

    def norm(self, labels: Tensor) -> Tensor:
        """What labels (N, H, W) add to the denominator, shape (), on their device; 1 if the loss is not additive.

        Here the number of labelled pixels.
        """
        if not self.additive:
            return torch.ones((), dtype=accumulation_dtype(labels.device), device=labels.device)
        return (labels != IGNORE).sum(dtype=accumulation_dtype(labels.device))

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        """The loss, shape (), in float32 or, for float64 logits, in float64.

        Args:
            logits: (N, C, h, w), at the head's own resolution.
            labels: (N, H, W), uint8 or int64.
            norm: What to divide by when `labels` are only a part of the batch; their own norm if None.
        """

    def divide(self, numerator: Tensor, norm: Tensor, logits: Tensor) -> Tensor:
        """``numerator / norm`` in the type of a loss of `logits`; 0, with a gradient of 0, where `norm` is 0."""
        return (numerator * _inverse(norm)).to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _inverse(norm: Tensor) -> Tensor:
    return (norm > 0) / torch.where(norm > 0, norm, 1)


class _Weighted(Loss):
    """A loss with class weights; they follow it to its device and are in no state dict."""

    class_weights: Tensor | None

    def __init__(
        self,
        weights: ClassWeights,
        num_classes: int | None,
        class_names: Sequence[str],
        class_pixels: Sequence[int] | None,
        where: str,
    ) -> None:
        super().__init__()
        resolved = resolve_weights(
            weights,
            num_classes=num_classes,
            class_names=class_names,
            class_pixels=class_pixels,
            where=join(where, "class_weights"),
        )
        self.register_buffer("class_weights", resolved, persistent=False)

    def weight_sum(self, labels: Tensor) -> Tensor:
        """Sum of the class weights of the labelled pixels of `labels` (N, H, W), shape ()."""
        if self.class_weights is None:
            return (labels != IGNORE).sum(dtype=accumulation_dtype(labels.device))
        weights = self.class_weights.to(accumulation_dtype(labels.device))
        return label_counts(labels, len(weights)).sum(0) @ weights

    def spread(self, smoothing: float, logits: Tensor) -> Tensor | None:
        """Factors (C,) of the log-probabilities of all classes for label smoothing; None without it."""
        if not smoothing:
            return None
        share = logits.new_full(
            (logits.shape[1],), smoothing / logits.shape[1], dtype=accumulation_dtype(logits.device)
        )
        return share if self.class_weights is None else share * self.class_weights


def labelled_images(labels: Tensor) -> Tensor:
    """Number of images of `labels` (N, H, W) that have labelled pixels, shape ()."""
    return (labels != IGNORE).flatten(1).any(1).sum(dtype=accumulation_dtype(labels.device))


def resolve_weights(
    weights: ClassWeights,
    *,
    num_classes: int | None = None,
    class_names: Sequence[str] = (),
    class_pixels: Sequence[int] | None = None,
    where: str = "class_weights",
) -> Tensor | None:
    """Class weights as numbers (C,) float32; None for None.

    Args:
        weights: A list, weights by class name, or a rule, see `CrossEntropyLoss2d`.
        class_pixels: Pixels of each class in the training set, for the rules. A class without any gets the largest
            weight of the others.
        where: Place in the config, for errors.

    Raises:
        ConfigError: Names or their number do not fit the classes, or a rule lacks `class_pixels`.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        if class_pixels is None or not any(class_pixels):
            raise ConfigError(
                f"{where}: '{weights}' needs the pixels of each class in the training set, which are not known here. "
                f"Scan it with `python prepare.py check`, or give a list of numbers."
            )
        return _weights_by_rule(weights, torch.tensor(class_pixels, dtype=torch.float64))
    if isinstance(weights, Mapping):
        if unknown := [name for name in weights if name not in class_names]:
            raise ConfigError(
                *(f"{join(where, name)}: no class has this name. {did_you_mean(name, class_names)}" for name in unknown)
            )
        return torch.tensor([float(weights.get(name, 1.0)) for name in class_names])
    if num_classes is not None and len(weights) != num_classes:
        raise ConfigError(f"{where}: {len(weights)} weights for {num_classes} classes. Give one per class.")
    return torch.tensor(weights, dtype=torch.float32)


def _weights_by_rule(rule: str, pixels: Tensor) -> Tensor:
    share = pixels / pixels.sum()
    seen = share > 0
    if rule == "median_freq":  # Eigen and Fergus 2015, https://arxiv.org/abs/1411.4734, section 6.3.2
        # They divide by the pixels of the images that show the class; shares of all pixels are what is known here.
        # The middle of an even number is the mean of two, as numpy has it, not the lower one.
        weights = share[seen].quantile(0.5) / share
    elif rule == "enet":  # Paszke et al. 2016, https://arxiv.org/abs/1606.02147, section 5.2
        weights = 1 / torch.log(1.02 + share)
    else:
        weights = 1 / share.sqrt()
    weights = torch.where(seen, weights, weights[seen].max())
    return (weights / weights.mean() if rule == "sqrt_inv" else weights).float()


def _indices(classes: Sequence[int | str], num_classes: int | None, names: Sequence[str], where: str) -> list[int]:
    indices = []
    for position, item in enumerate(classes):
        if isinstance(item, str) and item not in names:
            raise ConfigError(f"{join(where, position)}: no class is called '{item}'. {did_you_mean(item, names)}")
        index = list(names).index(item) if isinstance(item, str) else item
        if index < 0 or (num_classes is not None and index >= num_classes):
            upper = f"0 to {num_classes - 1}" if num_classes is not None else "an index from 0"
            raise ConfigError(f"{join(where, position)}: no class has index {index}. Use {upper}.")
        indices.append(index)
    if not indices:
        raise ConfigError(f'{where}: is empty. Name a class, or use "present".')
    return indices
