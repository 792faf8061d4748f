"""Losses that are sums over pixels: cross-entropy, focal loss, and cross-entropy of the hardest pixels."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from utils.classes import IGNORE, UNKNOWN_CLASSES, ClassFacts
from utils.errors import ConfigError
from utils.losses.base import ClassWeights, WeightedLoss, inverse_or_zero, labelled_images
from utils.losses.strips import accumulation_dtype, cross_entropies, pixel_sum
from utils.registry import LOSSES
from utils.schema import AtLeast, Between, Range, join


@dataclass(frozen=True)
class _CrossEntropy:
    """Cross entropy of a pixel, as a `PixelLoss`."""

    factor: float = 1.0

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        return log_p * (weight * -self.factor)

    def derivative(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        return weight * -self.factor


@dataclass(frozen=True)
class _Focal:
    """Focal loss of a pixel, as a `PixelLoss`."""

    gamma: float

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        return -(self._miss(log_p) ** self.gamma) * log_p * weight

    def derivative(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        miss = self._miss(log_p)
        return (self.gamma * miss ** (self.gamma - 1) * log_p.exp() * log_p - miss**self.gamma) * weight

    def _miss(self, log_p: Tensor) -> Tensor:
        """Return 1 - p. Near p = 1, a power below 1 needs it precisely and not 0; expm1 takes 10 times as long."""
        if self.gamma < 1:
            return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return 1 - log_p.exp()


@LOSSES.register()
@LOSSES.register("CrossEntropyLoss")
class CrossEntropyLoss2d(WeightedLoss):
    """Cross entropy, averaged over labelled pixels; with class weights, a weighted average.

    The same numbers as `torch.nn.CrossEntropyLoss` on resized logits.

    Args:
        class_weights: One per class; or by class name, 1 for those not named; or computed from the pixels of each
            class in the training set: "median_freq" (median share / share), "enet" (1 / ln(1.02 + share)),
            "sqrt_inv" (1 / sqrt(share), scaled to a mean of 1).
        label_smoothing: Share of the target that is spread evenly over all classes.
    """

    additive = True
    marginal = True

    def __init__(
        self,
        *,
        class_weights: ClassWeights = None,
        label_smoothing: Annotated[float, Between(0, 1)] = 0.0,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, class_facts, where)
        self.label_smoothing = label_smoothing

    def norm(self, labels: Tensor) -> Tensor:
        """Return the sum of the class weights of the labelled pixels of `labels` (N, H, W), shape ()."""
        return self.weight_sum(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        pixel = _CrossEntropy(1 - self.label_smoothing)
        smoothing = self.smoothing_factors(self.label_smoothing, logits)
        total = pixel_sum(logits, labels, pixel, self.label_weights(), smoothing, self.allowed)
        return self.divide(total, norm, logits)


@LOSSES.register()
class FocalLoss(WeightedLoss):
    """Cross entropy that pays less attention to pixels already classified well, averaged over labelled pixels.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, equations 4 and 5.

    Args:
        gamma: Focusing exponent; 0 is cross entropy.
        class_weights: The paper's alpha, as for `CrossEntropyLoss2d`, but the average stays one over pixels: weights
            scale the loss.
    """

    additive = True
    marginal = True

    def __init__(
        self,
        *,
        gamma: Annotated[float, AtLeast(0)] = 2.0,
        class_weights: ClassWeights = None,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, class_facts, where)
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        total = pixel_sum(logits, labels, _Focal(self.gamma), self.label_weights(), allowed=self.allowed)
        return self.divide(total, norm, logits)


class _HardPixelLoss(WeightedLoss):
    """Cross entropy of the hardest pixels alone; subclasses say which those are."""

    per_image: bool

    def norm(self, labels: Tensor) -> Tensor:
        """Return the number of images with labelled pixels if `per_image`, else 1; shape ()."""
        return labelled_images(labels) if self.per_image else super().norm(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        images = 1 if self.per_image else len(labels)
        # (S, P): S sets of pixels, each of which is averaged by itself
        losses = cross_entropies(logits, labels).view(len(labels) // images, -1)
        labels = labels.reshape(losses.shape)
        labelled = labels != IGNORE
        weights = labelled.to(losses.dtype)
        if self.class_weights is not None:
            weights *= self.class_weights.to(losses.dtype)[labels.masked_fill(~labelled, 0).long()]
        kept = self.kept(losses.detach(), weights, labelled, images) * weights
        totals = (losses * kept).sum(1, dtype=accumulation_dtype(losses.device))
        means = totals * inverse_or_zero(kept.sum(1, dtype=totals.dtype))
        return self.divide(means.sum(), norm, logits)

    @abstractmethod
    def kept(self, losses: Tensor, weights: Tensor, labelled: Tensor, images: int) -> Tensor:
        """Return how much each pixel counts, from 0 to 1, (S, P), for S sets of pixels that are averaged by themselves.

        Args:
            losses: Their cross entropy, (S, P).
            weights: Weight of their class, 0 for void ones, (S, P).
            labelled: Which are not void, (S, P).
            images: Of which each set consists.
        """


@LOSSES.register()
class TopKCrossEntropyLoss(_HardPixelLoss):
    """Cross entropy of the hardest share of the labelled pixels, which may shrink to what it is in the first steps.

    Hardest are those with the largest loss, class weights included; pixels as hard as the last one count in part.
    Over a batch it is not additive; image by image it is. Validation always takes the final share.

    Source: Wu et al. 2016, https://arxiv.org/abs/1605.06885, "online bootstrapping", without its threshold; the
    course in the first steps is that of DeepLab, https://github.com/tensorflow/models/tree/master/research/deeplab.

    Args:
        top_k_percent: Share of the labelled pixels that counts, 0.25 for a quarter.
        hard_example_mining_step: Optimizer steps in which the share falls from 1, along a line; 0 starts with
            `top_k_percent`.
        class_weights: As for `CrossEntropyLoss2d`.
        per_image: Compute each image by itself and average over the images that have labelled pixels.
    """

    def __init__(
        self,
        *,
        top_k_percent: Annotated[float, Range(above=0, most=1)] = 0.25,
        hard_example_mining_step: Annotated[int, AtLeast(0)] = 0,
        class_weights: ClassWeights = None,
        per_image: bool = False,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, class_facts, where)
        self.top_k_percent = top_k_percent
        self.hard_example_mining_step = hard_example_mining_step
        self.per_image = per_image
        self.additive = per_image
        if hard_example_mining_step and top_k_percent == 1:
            place = join(where, "hard_example_mining_step")
            raise ConfigError(f"{place}: has no effect with top_k_percent 1. Remove it, or lower top_k_percent.")

    def share(self) -> float:
        """Return the share of the labelled pixels that counts in the present step."""
        if self.step is None or self.step >= self.hard_example_mining_step:
            return self.top_k_percent
        return 1 - self.step / self.hard_example_mining_step * (1 - self.top_k_percent)

    def kept(self, losses: Tensor, weights: Tensor, labelled: Tensor, images: int) -> Tensor:
        count = (labelled.sum(1, dtype=accumulation_dtype(losses.device)) * self.share()).round().clamp(min=1).long()
        return hardest(losses * weights, labelled, count)


@LOSSES.register()
class OHEMCrossEntropyLoss(_HardPixelLoss):
    """Cross entropy of the pixels whose class gets a low probability, and of the hardest ones if those are few.

    "Online hard example mining". Over a batch it is not additive; image by image it is.

    Source: Shrivastava et al. 2016, https://arxiv.org/abs/1604.03540, for objects; for pixels, with a threshold, Wu
    et al. 2016, https://arxiv.org/abs/1605.06885, "online bootstrapping".

    Args:
        thresh: Probability of its class below which a pixel counts.
        min_kept: Pixels for each image that count at least, as far as it has them: the hardest of the batch or, with
            `per_image`, of each image.
        class_weights: As for `CrossEntropyLoss2d`.
        per_image: Compute each image by itself and average over the images that have labelled pixels.
    """

    def __init__(
        self,
        *,
        thresh: Annotated[float, Range(above=0, most=1)] = 0.7,
        min_kept: Annotated[int, AtLeast(1)] = 100_000,
        class_weights: ClassWeights = None,
        per_image: bool = False,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, class_facts, where)
        self.thresh = thresh
        self.min_kept = min_kept
        self.per_image = per_image
        self.additive = per_image

    def kept(self, losses: Tensor, weights: Tensor, labelled: Tensor, images: int) -> Tensor:
        count = labelled.sum(1).clamp(min=1, max=self.min_kept * images)
        unsure = (losses > -math.log(self.thresh)) & labelled
        return torch.maximum(hardest(losses, labelled, count), unsure.to(losses.dtype))


def hardest(losses: Tensor, labelled: Tensor, count: Tensor) -> Tensor:
    """Return 1 for the `count` largest losses of each set and 0 for the others; ties at the edge share the rest.

    So the result does not depend on the order of the pixels.

    Args:
        losses: (S, P), at least 0.
        labelled: (S, P) bool, which pixels there are to choose from.
        count: (S,) int64, at least 1.
    """
    losses = losses.masked_fill(~labelled, 0).abs()  # no -0.0
    # Floats from 0 on are ordered as the integers with the same bits, and those torch sorts 5 times as fast, by radix,
    # but only row by row.
    bits = losses.view(torch.int32) if losses.dtype == torch.float32 else losses
    ranked = torch.stack([row.sort().values for row in bits]).view(losses.dtype)
    edge = ranked.gather(1, ranked.shape[1] - count[:, None])
    above, at_edge = losses > edge, (losses == edge) & labelled
    left = (count - above.sum(1)).to(losses.dtype)
    return above.to(losses.dtype) + at_edge * (left / at_edge.sum(1).clamp(min=1))[:, None]
