"""Dice loss, alone and with cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from utils.classes import ANY_OF, IGNORE, UNKNOWN_CLASSES, ClassFacts
from utils.losses.base import (
    ClassWeights,
    Loss,
    WeightedLoss,
    allowed_classes,
    inverse_or_zero,
    labelled_images,
    labelled_pixels,
)
from utils.losses.strips import (
    accumulation_dtype,
    class_sums,
    cross_entropy_and_class_sums,
    label_counts,
    label_sums,
    pixel_sum,
)
from utils.registry import LOSSES
from utils.schema import AtLeast, Between


@dataclass(frozen=True)
class _Miss:
    """1 - p of a pixel, which the Dice loss of all classes together sums up, and cross entropy in the same pass."""

    miss: Tensor | float = 1.0
    cross_entropy: Tensor | float = 0.0

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        return (1 - log_p.exp()) * self.miss - log_p * (weight * self.cross_entropy)

    def derivative(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        return -log_p.exp() * self.miss - weight * self.cross_entropy


@LOSSES.register()
class DiceLoss(Loss):
    """1 - 2 |P T| / (|P| + |T|) of the predicted probabilities P and the target T, averaged over classes.

    Classes without a labelled pixel are not in the average. Summed over a batch it is not additive; over all
    classes together, or image by image, it is.

    Where pixels have one of several classes, these are one more class, whose probability is their sum. A pixel counts
    for a class as far as it is known whether it has it: not for those that it may have or not.

    Source: Milletari et al. 2016, https://arxiv.org/abs/1606.04797, section 3, without its squares.

    Args:
        per_class: Average over classes; otherwise all classes are summed up first and large ones dominate.
        smooth: Pixels added to numerator and denominator.
        per_image: Compute each image by itself and average over the images that have labelled pixels.
    """

    marginal = True
    allowed: Tensor | None
    values: Tensor
    targets: Tensor

    def __init__(
        self,
        *,
        per_class: bool = True,
        smooth: Annotated[float, AtLeast(0)] = 1.0,
        per_image: bool = False,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
    ) -> None:
        super().__init__()
        self.register_buffer("allowed", allowed_classes(class_facts), persistent=False)
        num_classes = class_facts.num_classes or 0
        values = [*range(num_classes), *range(ANY_OF, ANY_OF - len(class_facts.any_of), -1)]
        # A list of one class or of all is no target of its own. Chosen here, by number: a mask would wait for the GPU.
        several = [ANY_OF - index for index, each in enumerate(class_facts.any_of) if 1 < len(set(each)) < num_classes]
        self.register_buffer("values", torch.tensor(values), persistent=False)
        self.register_buffer("targets", torch.tensor([*range(num_classes), *several]), persistent=False)
        self.per_class = per_class
        self.smooth = smooth
        self.per_image = per_image
        self.additive = per_image or not per_class

    def norm(self, labels: Tensor) -> Tensor:
        """Return the number of images with labelled pixels if `per_image`; else as for any `Loss`. Shape ()."""
        if self.per_image:
            return labelled_images(labels)
        return super().norm(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        if not self.per_class and not self.per_image:
            # Probabilities sum to 1, so |P| = |T| = pixels, and the loss is the sum of 1 - p over pixels + smooth / 2.
            total = pixel_sum(logits, labels, _Miss(), allowed=self.allowed)
            return self.divide(total, _with_smooth(norm, self.smooth), logits)
        if self.allowed is not None:
            return self.divide(self._overlap(*self._marginal_sums(logits, labels, self.allowed)), norm, logits)
        hits, predicted = class_sums(logits, labels)
        return self.divide(self.of_sums(hits, predicted, labels), norm, logits)

    def of_sums(self, hits: Tensor, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the sum over images or, unless `per_image`, the value for the whole batch, ().

        Args:
            hits: Sums of probabilities over the pixels of each class, (N, C), see `class_sums`.
            predicted: Those over all labelled pixels, (N, C).
            labels: (N, H, W).
        """
        actual = label_counts(labels, hits.shape[1])
        return self._overlap(hits, predicted, actual, actual)

    def _marginal_sums(self, logits: Tensor, labels: Tensor, allowed: Tensor) -> tuple[Tensor, ...]:
        """Return what `_overlap` takes, (N, S) each, of S targets: each class, and each list of several.

        For example, classes car, bus, sky, and a label that may be car or bus. Targets are car, bus, sky, (car or bus).
        Of these, the label shares 1, 1, 0, 2 classes. It is `inside` the last alone, `known` to be or not to be the
        last and sky, and the `same` as the last.
        """
        sums = label_sums(logits, labels, self.values)
        counts = label_counts(labels, IGNORE)[:, self.values].to(sums.dtype)
        known_as = allowed[self.values].to(sums.dtype)  # (L, C)
        if not self.per_class:  # then all that a pixel may be is its own target
            hits = (sums * known_as).sum(2)
            return hits, counts, counts, counts
        sizes = known_as.sum(1)
        targets = allowed[self.targets].to(sums.dtype)  # (S, C)
        shared = known_as @ targets.t()  # (L, S): how many of a label's classes are in a target
        inside = (shared == sizes[:, None]).to(sums.dtype)
        known = inside + (shared == 0)
        same = inside * (sizes[:, None] == targets.sum(1))
        by_target = sums @ targets.t()  # (N, L, S)
        return (by_target * inside).sum(1), (by_target * known).sum(1), counts @ inside, counts @ same

    def _overlap(self, hits: Tensor, predicted: Tensor, actual: Tensor, labelled: Tensor) -> Tensor:
        """Return the loss, (), of sums over the pixels of S targets, (N, S) each.

        Args:
            hits: Of the target's probability, over its pixels.
            predicted: Of its probability, over all pixels that count for it.
            actual: Its pixels.
            labelled: Those that are labelled as just this; a target without any is not in the average.
        """
        if not self.per_image:
            hits, predicted, actual, labelled = (x.sum(0, keepdim=True) for x in (hits, predicted, actual, labelled))
        if not self.per_class:
            hits, predicted, actual, labelled = (x.sum(1, keepdim=True) for x in (hits, predicted, actual, labelled))
        present = labelled > 0
        overlap = (2 * hits + self.smooth) / torch.where(present, predicted + actual + self.smooth, 1)
        losses = ((1 - overlap) * present).sum(1) / present.sum(1).clamp(min=1)
        return losses.sum()


def _with_smooth(norm: Tensor, smooth: float) -> Tensor:
    """Return half the smoothed denominator, |P| = |T| = `norm`; 0 without labelled pixels."""
    return (norm + smooth / 2) * (norm > 0)


@LOSSES.register("CE_DiceLoss")
class CrossEntropyDiceLoss(WeightedLoss):
    """`CrossEntropyLoss2d` and `DiceLoss` added up.

    A list of the two in "loss" does the same and takes all their options; this one computes probabilities once for
    both. With `per_class` false it is that of pytorch-segmentation, and the gradient comes out of the same pass.

    Args:
        ce_factor: Factor of the cross entropy.
        dice_factor: Factor of the Dice loss.
        class_weights: As for `CrossEntropyLoss2d`; the Dice loss has none.
        label_smoothing: As for `CrossEntropyLoss2d`.
        per_class: As for `DiceLoss`.
        smooth: As for `DiceLoss`.
    """

    marginal = True

    def __init__(
        self,
        *,
        ce_factor: Annotated[float, AtLeast(0)] = 1.0,
        dice_factor: Annotated[float, AtLeast(0)] = 1.0,
        class_weights: ClassWeights = None,
        label_smoothing: Annotated[float, Between(0, 1)] = 0.0,
        per_class: bool = True,
        smooth: Annotated[float, AtLeast(0)] = 1.0,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, class_facts, where)
        self.ce_factor = ce_factor
        self.dice_factor = dice_factor
        self.label_smoothing = label_smoothing
        self.smooth = smooth
        self.dice = DiceLoss(smooth=smooth, class_facts=class_facts) if per_class else None
        self.additive = not per_class and self.class_weights is None  # else the two have different denominators

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        smoothing = self.smoothing_factors(self.label_smoothing, logits)
        if self.dice is not None and self.allowed is not None:
            return self._marginal(logits, labels, norm, smoothing)
        if self.dice is not None:
            # In float64, where 1 - label_smoothing is not rounded to float32.
            weights = logits.new_full(
                (logits.shape[1],), 1 - self.label_smoothing, dtype=accumulation_dtype(logits.device)
            )
            if self.class_weights is not None:
                weights *= self.class_weights
            entropy, hits, predicted = cross_entropy_and_class_sums(logits, labels, weights, smoothing)
            entropy = entropy * inverse_or_zero(self.weight_sum(labels))
            dice = self.dice.of_sums(hits, predicted, labels)
            return self.divide(self.ce_factor * entropy + self.dice_factor * dice, norm, logits)
        ce_norm = norm if self.additive else self.weight_sum(labels)
        dice_norm = norm if self.additive else labelled_pixels(labels)
        # Both are divided inside of the pass, since it sums them up together.
        ce_share = self.ce_factor * inverse_or_zero(ce_norm)
        dice_share = self.dice_factor * inverse_or_zero(_with_smooth(dice_norm, self.smooth))
        pixel = _Miss(dice_share, ce_share * (1 - self.label_smoothing))
        if smoothing is not None:
            smoothing = smoothing * ce_share
        loss = pixel_sum(logits, labels, pixel, self.label_weights(), smoothing, self.allowed)
        return self.divide(loss, torch.ones_like(norm) if self.additive else norm, logits)

    def _marginal(self, logits: Tensor, labels: Tensor, norm: Tensor, smoothing: Tensor | None) -> Tensor:
        """Compute both one after the other, where labels may stand for one of several classes."""
        assert self.dice is not None
        pixel = _Miss(0.0, 1 - self.label_smoothing)
        entropy = pixel_sum(logits, labels, pixel, self.label_weights(), smoothing, self.allowed)
        entropy = entropy * inverse_or_zero(self.weight_sum(labels))
        dice: Tensor = self.dice(logits, labels, norm)
        return self.divide(self.ce_factor * entropy, norm, logits) + self.dice_factor * dice
