"""What training makes small.

Every loss leaves out pixels labelled 255 (void) and never changes the labels; a batch without a labelled pixel costs
0, with a gradient of 0. Logits come at the head's own resolution and count as if resized to the labels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from utils.classes import IGNORE
from utils.errors import ConfigError
from utils.lovasz import lovasz
from utils.registry import LOSSES
from utils.schema import AtLeast, Between, Range, did_you_mean, join
from utils.upsampled_loss import class_sums, cross_entropies, label_counts, pixel_sum, wide

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
            return torch.ones((), dtype=wide(labels.device), device=labels.device)
        return (labels != IGNORE).sum(dtype=wide(labels.device))

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


@dataclass(frozen=True)
class _CrossEntropy:
    factor: float = 1.0

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        return log_p * (weight * -self.factor)

    def slope(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        return weight * -self.factor


@dataclass(frozen=True)
class _Focal:
    gamma: float

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        return -(self._doubt(log_p) ** self.gamma) * log_p * weight

    def slope(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        doubt = self._doubt(log_p)
        return (self.gamma * doubt ** (self.gamma - 1) * log_p.exp() * log_p - doubt**self.gamma) * weight

    def _doubt(self, log_p: Tensor) -> Tensor:
        """1 - p. Near p = 1 a power below 1 needs it precisely, and not quite 0; expm1 takes 10 times as long."""
        if self.gamma < 1:
            return (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
        return 1 - log_p.exp()


@dataclass(frozen=True)
class _Miss:
    """1 - p, which the Dice loss of all classes together sums up, and cross entropy in the same pass."""

    miss: Tensor | float = 1.0
    cross_entropy: Tensor | float = 0.0

    def value(self, log_p: Tensor, weight: Tensor | float) -> Tensor:
        return (1 - log_p.exp()) * self.miss - log_p * (weight * self.cross_entropy)

    def slope(self, log_p: Tensor, weight: Tensor | float) -> Tensor | float:
        return -log_p.exp() * self.miss - weight * self.cross_entropy


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
            return (labels != IGNORE).sum(dtype=wide(labels.device))
        weights = self.class_weights.to(wide(labels.device))
        return label_counts(labels, len(weights)).sum(0) @ weights

    def spread(self, smoothing: float, logits: Tensor) -> Tensor | None:
        """Factors (C,) of the log-probabilities of all classes for label smoothing; None without it."""
        if not smoothing:
            return None
        share = logits.new_full((logits.shape[1],), smoothing / logits.shape[1], dtype=wide(logits.device))
        return share if self.class_weights is None else share * self.class_weights


@LOSSES.register()
@LOSSES.register("CrossEntropyLoss")
class CrossEntropyLoss2d(_Weighted):
    """Cross entropy, averaged over labelled pixels; with class weights, a weighted average.

    The same numbers as `torch.nn.CrossEntropyLoss` on resized logits.

    Args:
        class_weights: One per class; or by class name, 1 for those not named; or computed from the pixels of each
            class in the training set: "median_freq" (median share / share), "enet" (1 / ln(1.02 + share)),
            "sqrt_inv" (1 / sqrt(share), scaled to a mean of 1).
        label_smoothing: Share of the target that is spread evenly over all classes.
    """

    additive = True

    def __init__(
        self,
        *,
        class_weights: ClassWeights = None,
        label_smoothing: Annotated[float, Between(0, 1)] = 0.0,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        class_pixels: Sequence[int] | None = None,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, num_classes, class_names, class_pixels, where)
        self.label_smoothing = label_smoothing

    def norm(self, labels: Tensor) -> Tensor:
        """Sum of the class weights of the labelled pixels of `labels` (N, H, W), shape ()."""
        return self.weight_sum(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        pixel, spread = _CrossEntropy(1 - self.label_smoothing), self.spread(self.label_smoothing, logits)
        return self.divide(pixel_sum(logits, labels, pixel, self.class_weights, spread), norm, logits)


@LOSSES.register()
class FocalLoss(_Weighted):
    """Cross entropy that pays less attention to pixels already classified well, averaged over labelled pixels.

    Source: Lin et al. 2017, https://arxiv.org/abs/1708.02002, equations 4 and 5.

    Args:
        gamma: Focusing exponent; 0 is cross entropy.
        class_weights: The paper's alpha, as for `CrossEntropyLoss2d`, but the average stays one over pixels: weights
            scale the loss.
    """

    additive = True

    def __init__(
        self,
        *,
        gamma: Annotated[float, AtLeast(0)] = 2.0,
        class_weights: ClassWeights = None,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        class_pixels: Sequence[int] | None = None,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, num_classes, class_names, class_pixels, where)
        self.gamma = gamma

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        return self.divide(pixel_sum(logits, labels, _Focal(self.gamma), self.class_weights), norm, logits)


class _HardPixels(_Weighted):
    """Cross entropy of the hardest pixels alone; subclasses say which those are."""

    per_image: bool

    def norm(self, labels: Tensor) -> Tensor:
        """Images with labelled pixels if `per_image`, else 1; shape ()."""
        return labelled_images(labels) if self.per_image else super().norm(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        images = 1 if self.per_image else len(labels)
        losses = cross_entropies(logits, labels).view(len(labels) // images, -1)
        labels = labels.reshape(losses.shape)
        weights = (labels != IGNORE).to(losses.dtype)
        if self.class_weights is not None:
            weights *= self.class_weights.to(losses.dtype)[labels.masked_fill(labels == IGNORE, 0).long()]
        kept = self.kept(losses.detach(), weights, labels != IGNORE, images) * weights
        totals = (losses * kept).sum(1, dtype=wide(losses.device))
        return self.divide((totals * _inverse(kept.sum(1, dtype=totals.dtype))).sum(), norm, logits)

    @abstractmethod
    def kept(self, losses: Tensor, weights: Tensor, labelled: Tensor, images: int) -> Tensor:
        """Which pixels count, from 0 to 1, (S, P), for S sets of pixels of which each has its own average.

        Args:
            losses: Their cross entropy, (S, P).
            weights: Weight of their class, 0 for void ones, (S, P).
            labelled: Which are not void, (S, P).
            images: Of which each set consists.
        """


@LOSSES.register()
class TopKCrossEntropyLoss(_HardPixels):
    """Cross entropy of the hardest share of the labelled pixels, which may shrink to what it is in the first steps.

    Hardest are those with the largest loss, class weights included; pixels as hard as the last one count in part.
    Over a batch it is not additive; image by image it is. Validation always takes the final share.

    Source: Wu et al. 2016, https://arxiv.org/abs/1605.06885, "online bootstrapping", without its threshold; the
    course in the first steps is that of DeepLab, https://github.com/tensorflow/models/tree/master/research/deeplab.

    Args:
        top_k_percent: Share of the labelled pixels that counts, 0.25 for a quarter.
        hard_example_mining_step: Optimiser steps in which the share falls from 1, along a line; 0 starts with
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
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        class_pixels: Sequence[int] | None = None,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, num_classes, class_names, class_pixels, where)
        self.top_k_percent, self.hard_example_mining_step = top_k_percent, hard_example_mining_step
        self.per_image = self.additive = per_image
        if hard_example_mining_step and top_k_percent == 1:
            place = join(where, "hard_example_mining_step")
            raise ConfigError(f"{place}: has no effect with top_k_percent 1. Remove it, or lower top_k_percent.")

    def share(self) -> float:
        """Share of the labelled pixels that counts in the present step."""
        if self.step is None or self.step >= self.hard_example_mining_step:
            return self.top_k_percent
        return 1 - self.step / self.hard_example_mining_step * (1 - self.top_k_percent)

    def kept(self, losses: Tensor, weights: Tensor, labelled: Tensor, images: int) -> Tensor:
        count = (labelled.sum(1, dtype=wide(losses.device)) * self.share()).round().clamp(min=1).long()
        return hardest(losses * weights, labelled, count)


@LOSSES.register()
class OHEMCrossEntropyLoss(_HardPixels):
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
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        class_pixels: Sequence[int] | None = None,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, num_classes, class_names, class_pixels, where)
        self.thresh, self.min_kept = thresh, min_kept
        self.per_image = self.additive = per_image

    def kept(self, losses: Tensor, weights: Tensor, labelled: Tensor, images: int) -> Tensor:
        count = labelled.sum(1).clamp(min=1, max=self.min_kept * images)
        unsure = (losses > -math.log(self.thresh)) & labelled
        return torch.maximum(hardest(losses, labelled, count), unsure.to(losses.dtype))


def hardest(losses: Tensor, labelled: Tensor, count: Tensor) -> Tensor:
    """1 for the `count` largest losses of each set, 0 for the others; equal ones at the edge share what is left.

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


def labelled_images(labels: Tensor) -> Tensor:
    """Number of images of `labels` (N, H, W) that have labelled pixels, shape ()."""
    return (labels != IGNORE).flatten(1).any(1).sum(dtype=wide(labels.device))


@LOSSES.register()
class DiceLoss(Loss):
    """1 - 2 |P T| / (|P| + |T|) of the predicted probabilities P and the target T, averaged over classes.

    Classes without a labelled pixel are left out of the average. Summed over a batch it is not additive; over all
    classes together, or image by image, it is.

    Source: Milletari et al. 2016, https://arxiv.org/abs/1606.04797, section 3, without its squares.

    Args:
        per_class: Average over classes; otherwise all classes are summed up first and large ones dominate.
        smooth: Pixels added to numerator and denominator.
        per_image: Compute each image by itself and average over the images that have labelled pixels.
    """

    def __init__(
        self, *, per_class: bool = True, smooth: Annotated[float, AtLeast(0)] = 1.0, per_image: bool = False
    ) -> None:
        super().__init__()
        self.per_class, self.smooth, self.per_image = per_class, smooth, per_image
        self.additive = per_image or not per_class

    def norm(self, labels: Tensor) -> Tensor:
        """Images with labelled pixels if `per_image`; else labelled pixels, or 1 if not additive. Shape ()."""
        if self.per_image:
            return labelled_images(labels)
        return super().norm(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        if not self.per_class and not self.per_image:
            # Probabilities sum to 1, so |P| = |T| = pixels, and the loss is the sum of 1 - p over pixels + smooth / 2.
            return self.divide(pixel_sum(logits, labels, _Miss()), _with_smooth(norm, self.smooth), logits)
        hits, predicted = (sums.to(wide(logits.device)) for sums in class_sums(logits, labels))
        actual = label_counts(labels, logits.shape[1])
        if not self.per_image:
            hits, predicted, actual = (sums.sum(0, keepdim=True) for sums in (hits, predicted, actual))
        if not self.per_class:
            hits, predicted, actual = (sums.sum(1, keepdim=True) for sums in (hits, predicted, actual))
        present = actual > 0
        overlap = (2 * hits + self.smooth) / torch.where(present, predicted + actual + self.smooth, 1)
        losses = ((1 - overlap) * present).sum(1) / present.sum(1).clamp(min=1)
        return self.divide(losses.sum(), norm, logits)


def _with_smooth(norm: Tensor, smooth: float) -> Tensor:
    return (norm + smooth / 2) * (norm > 0)


@LOSSES.register("CE_DiceLoss")
class CrossEntropyDiceLoss(_Weighted):
    """`CrossEntropyLoss2d` and `DiceLoss` added up.

    A list of the two in "loss" does the same and takes all their options; this one needs a single pass where
    `per_class` is false.

    Args:
        ce_factor: Factor of the cross entropy.
        dice_factor: Factor of the Dice loss.
        class_weights: As for `CrossEntropyLoss2d`; the Dice loss has none.
        label_smoothing: As for `CrossEntropyLoss2d`.
        per_class: As for `DiceLoss`.
        smooth: As for `DiceLoss`.
    """

    def __init__(
        self,
        *,
        ce_factor: Annotated[float, AtLeast(0)] = 1.0,
        dice_factor: Annotated[float, AtLeast(0)] = 1.0,
        class_weights: ClassWeights = None,
        label_smoothing: Annotated[float, Between(0, 1)] = 0.0,
        per_class: bool = True,
        smooth: Annotated[float, AtLeast(0)] = 1.0,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        class_pixels: Sequence[int] | None = None,
        where: str = "",
    ) -> None:
        super().__init__(class_weights, num_classes, class_names, class_pixels, where)
        self.ce_factor, self.dice_factor = ce_factor, dice_factor
        self.label_smoothing, self.smooth = label_smoothing, smooth
        self.dice = DiceLoss(smooth=smooth) if per_class else None
        self.additive = not per_class and self.class_weights is None  # else the two have different denominators

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        ce_norm = dice_norm = norm
        if not self.additive:
            ce_norm, dice_norm = self.weight_sum(labels), (labels != IGNORE).sum(dtype=wide(labels.device))
        ce_share = self.ce_factor * _inverse(ce_norm)
        dice_share = self.dice_factor * _inverse(_with_smooth(dice_norm, self.smooth))
        if self.dice is not None:
            dice_share = torch.zeros_like(dice_share)
        spread = self.spread(self.label_smoothing, logits)
        loss = pixel_sum(
            logits,
            labels,
            _Miss(dice_share, ce_share * (1 - self.label_smoothing)),
            self.class_weights,
            None if spread is None else spread * ce_share,
        )
        if self.dice is not None:
            loss = loss + self.dice_factor * self.dice(logits, labels)
        return self.divide(loss, torch.ones_like(norm) if self.additive else norm, logits)


@LOSSES.register()
class LovaszSoftmax(Loss):
    """The Lovász extension of the Jaccard loss, 1 - intersection over union, averaged over classes.

    Over a batch it is not additive; image by image it is.

    Source: Berman et al. 2018, https://arxiv.org/abs/1705.08790, equations 8, 9 and 11 and algorithm 1.

    Args:
        classes: Which classes to average over: those with a labelled pixel, all, or these (by index or name).
        per_image: Compute each image by itself and average over the images that have labelled pixels.
        bins: Rank errors by so many bins instead of exactly: several times as fast, and the loss is off by 1 / bins at
            most; 4096 are plenty.
    """

    def __init__(
        self,
        *,
        classes: Literal["present", "all"] | list[int | str] = "present",
        per_image: bool = False,
        bins: Annotated[int, Between(2, 2**16)] | None = None,
        num_classes: int | None = None,
        class_names: Sequence[str] = (),
        where: str = "",
    ) -> None:
        super().__init__()
        self.per_image = self.additive = per_image
        self.bins = bins
        self.classes: str | list[int] = (
            classes if isinstance(classes, str) else _indices(classes, num_classes, class_names, join(where, "classes"))
        )

    def norm(self, labels: Tensor) -> Tensor:
        """Images with labelled pixels if `per_image`, else 1; shape ()."""
        if self.per_image:
            return labelled_images(labels)
        return super().norm(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        groups = range(len(labels)) if self.per_image else [None]
        total = torch.zeros((), dtype=wide(logits.device), device=logits.device)
        for group in groups:
            part = slice(None) if group is None else slice(group, group + 1)
            total = total + lovasz(logits[part], labels[part], self.classes, self.bins)
        return self.divide(total, norm, logits)


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
