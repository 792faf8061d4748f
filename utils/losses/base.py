"""What every loss promises, and class weights."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from utils.classes import ANY_OF, IGNORE, UNKNOWN_CLASSES, ClassFacts
from utils.errors import ConfigError
from utils.losses.strips import accumulation_dtype, label_counts
from utils.schema import AtLeast, did_you_mean, join

Weight = Annotated[float, AtLeast(0)]

ClassWeights = list[Weight] | dict[str, Weight] | Literal["median_freq", "enet", "sqrt_inv"] | None


class Loss(nn.Module, ABC):
    """A loss of logits and labels.

    `additive` says whether the value is (sum over pixels or images) / (sum of their weights). Then the micro-batches
    of a batch, on one process or on many, add up to the loss of the whole batch, if each divides by the norm of the
    whole batch. Other losses are computed for each micro-batch and averaged.

    `marginal` says whether it knows labels that stand for one of several classes, see `allowed_classes`; others are
    given void instead.

    `step` is the optimizer step that is being taken, from 0, for losses that change in the course of training; None
    where nothing is being trained. Whoever calls the loss sets it.
    """

    additive: bool
    marginal: ClassVar[bool] = False
    step: int | None = None

    def norm(self, labels: Tensor) -> Tensor:
        """Return what labels (N, H, W) add to the denominator, shape (), on their device.

        Here the number of labelled pixels, or 1 if the loss is not additive.
        """
        if not self.additive:
            return torch.ones((), dtype=accumulation_dtype(labels.device), device=labels.device)
        return labelled_pixels(labels)

    @abstractmethod
    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        """Return the loss, shape (), in float32 or, for float64 logits, in float64.

        Args:
            logits: (N, C, h, w), at the head's own resolution.
            labels: (N, H, W), uint8 or int64.
            norm: What to divide by when `labels` are only a part of the batch; their own norm if None.
        """

    def divide(self, numerator: Tensor, norm: Tensor, logits: Tensor) -> Tensor:
        """Return ``numerator / norm`` in the type of a loss of `logits`; 0, with a gradient of 0, if `norm` is 0."""
        quotient = numerator * inverse_or_zero(norm)
        return quotient.to(torch.float64 if logits.dtype == torch.float64 else torch.float32)


class WeightedLoss(Loss):
    """A loss with class weights, which follow it to its device and are in no state dict.

    A label that stands for several classes weighs what their pixels weigh on average, `class_pixels` of each; each
    class counts alike where these are not known. So a list of a street and a lamp weighs about as much as a street:
    were it their plain mean, the unsure pixels of streets would outweigh the lamps that are labelled.

    Args:
        weights: As for `CrossEntropyLoss2d`.
        class_facts: What is known of the classes.
        where: Place of the loss's arguments in the config, for errors.
    """

    class_weights: Tensor | None
    allowed: Tensor | None
    weights_of_labels: Tensor | None

    def __init__(self, weights: ClassWeights, class_facts: ClassFacts, where: str) -> None:
        super().__init__()
        resolved = resolve_weights(weights, class_facts, where=join(where, "class_weights"))
        allowed = allowed_classes(class_facts) if self.marginal else None
        of_labels = resolved if allowed is None else _mean_weights(resolved, allowed, class_facts.class_pixels)
        self.register_buffer("class_weights", resolved, persistent=False)
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("weights_of_labels", of_labels, persistent=False)

    def weight_sum(self, labels: Tensor) -> Tensor:
        """Return the sum of the class weights of the labelled pixels of `labels` (N, H, W), shape ()."""
        weights = self.label_weights(accumulation_dtype(labels.device))
        if weights is None:
            return labelled_pixels(labels)
        weights = weights[:IGNORE]
        return label_counts(labels, len(weights)).sum(0) @ weights

    def label_weights(self, dtype: torch.dtype | None = None) -> Tensor | None:
        """Return the weights of classes, (C,), or where labels may stand for several, of labels, (256,)."""
        if self.weights_of_labels is None:
            return None
        return self.weights_of_labels.to(dtype or self.weights_of_labels.dtype)

    def smoothing_factors(self, label_smoothing: float, logits: Tensor) -> Tensor | None:
        """Return factors (C,) of the log-probabilities of all classes for label smoothing; None without it.

        Args:
            label_smoothing: Share of the target that is spread evenly over all classes.
            logits: (N, C, h, w), for their number of classes and their device.
        """
        if not label_smoothing:
            return None
        num_classes = logits.shape[1]
        dtype = accumulation_dtype(logits.device)
        factors = logits.new_full((num_classes,), label_smoothing / num_classes, dtype=dtype)
        return factors if self.class_weights is None else factors * self.class_weights


def allowed_classes(class_facts: ClassFacts) -> Tensor | None:
    """Return which classes a pixel of each label may have, (256, C) bool; None where each label is one class.

    The loss of such a pixel is that of the sum of the probabilities of these classes: the marginal loss. Void, and
    what is no label, may be any. Source: Shi et al. 2021, https://arxiv.org/abs/2007.03868, section 3.1.
    """
    if not class_facts.any_of or class_facts.num_classes is None:
        return None
    allowed = torch.ones(IGNORE + 1, class_facts.num_classes, dtype=torch.bool)
    allowed[: class_facts.num_classes] = torch.eye(class_facts.num_classes, dtype=torch.bool)
    for number, classes in enumerate(class_facts.any_of):
        allowed[ANY_OF - number] = False
        allowed[ANY_OF - number, list(classes)] = True
    return allowed


def _mean_weights(weights: Tensor | None, allowed: Tensor, class_pixels: Sequence[int] | None) -> Tensor | None:
    """Return the mean weight (256,) of the pixels that may have each label, from weights (C,) and `allowed` (256, C).

    A class counts at least one pixel, so that a list of classes that were never labelled has a mean.
    """
    if weights is None:
        return None
    pixels = torch.ones(len(weights)) if class_pixels is None else torch.tensor(class_pixels)
    counted = allowed * pixels.double().clamp(min=1)
    return ((counted * weights).sum(1) / counted.sum(1)).to(weights.dtype)


def labelled_pixels(labels: Tensor) -> Tensor:
    """Count the pixels of `labels` (N, H, W) that are not void: shape (), without a host sync."""
    return (labels != IGNORE).sum(dtype=accumulation_dtype(labels.device))


def labelled_images(labels: Tensor) -> Tensor:
    """Count the images of `labels` (N, H, W) that have labelled pixels: shape (), without a host sync."""
    return (labels != IGNORE).flatten(1).any(1).sum(dtype=accumulation_dtype(labels.device))


def inverse_or_zero(values: Tensor) -> Tensor:
    """Return 1 / `values`, and 0 where they are 0, without a host sync."""
    return (values > 0) / torch.where(values > 0, values, 1)


def resolve_weights(
    weights: ClassWeights, class_facts: ClassFacts = UNKNOWN_CLASSES, *, where: str = "class_weights"
) -> Tensor | None:
    """Return class weights as numbers (C,) float32; None for None.

    Args:
        weights: A list, weights by class name, or a rule, see `CrossEntropyLoss2d`. A rule gives a class without any
            pixel in the training set the largest weight of the others.
        class_facts: What is known of the classes; rules need `class_pixels`.
        where: Place in the config, for errors.

    Raises:
        ConfigError: Names or their number do not fit the classes, or a rule lacks the pixels.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        if class_facts.class_pixels is None or not any(class_facts.class_pixels):
            raise ConfigError(
                f"{where}: '{weights}' needs the pixels of each class in the training set, which are not known here. "
                f"Scan it with `python prepare.py check`, or give a list of numbers."
            )
        return _weights_by_rule(weights, torch.tensor(class_facts.class_pixels, dtype=torch.float64))
    if isinstance(weights, Mapping):
        return _weights_by_name(weights, class_facts.class_names, where)
    num_classes = class_facts.num_classes
    if num_classes is not None and len(weights) != num_classes:
        raise ConfigError(f"{where}: {len(weights)} weights for {num_classes} classes. Give one per class.")
    return torch.tensor(weights, dtype=torch.float32)


def _weights_by_name(weights: Mapping[str, float], names: Sequence[str], where: str) -> Tensor:
    problems = []
    for name in weights:
        if name not in names:
            problems.append(f"{join(where, name)}: no class has this name. {did_you_mean(name, names)}")
    if problems:
        raise ConfigError(*problems)
    return torch.tensor([float(weights.get(name, 1.0)) for name in names])


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
    if rule == "sqrt_inv":
        weights = weights / weights.mean()
    return weights.float()


def class_indices(classes: Sequence[int | str], class_facts: ClassFacts, where: str) -> list[int]:
    """Return the indices of `classes`, given by index or name.

    Raises:
        ConfigError: There is no such class, or none is named.
    """
    names, num_classes = list(class_facts.class_names), class_facts.num_classes
    indices = []
    for position, item in enumerate(classes):
        if isinstance(item, str) and item not in names:
            raise ConfigError(f"{join(where, position)}: no class is called '{item}'. {did_you_mean(item, names)}")
        index = names.index(item) if isinstance(item, str) else item
        if index < 0 or (num_classes is not None and index >= num_classes):
            upper = f"0 to {num_classes - 1}" if num_classes is not None else "an index from 0"
            raise ConfigError(f"{join(where, position)}: no class has index {index}. Use {upper}.")
        indices.append(index)
    if not indices:
        raise ConfigError(f'{where}: is empty. Name a class, or use "present".')
    return indices
