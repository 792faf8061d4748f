"""The Lovász extension of the Jaccard loss at full size from low-resolution logits, one class at a time.

A pixel's share in it depends on how many pixels of the image have larger errors. So each class is resized by itself,
its errors are ranked, and its gradient is taken at once: a few numbers for each pixel, whatever the number of
classes. Ranks come from sorting, or from counting errors in bins, which takes a fraction of the time.

Source: Berman et al. 2018, https://arxiv.org/abs/1705.08790, equations 8, 9 and 11 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE, UNKNOWN_CLASSES, ClassFacts
from utils.losses.base import Loss, class_indices, labelled_images
from utils.losses.strips import Resizing, accumulation_dtype, as_precise, enlarged, plain_gradient
from utils.registry import LOSSES
from utils.schema import Between, join

ONE = 0x3F800000  # the bits of 1.0 in float32


def lovasz(logits: Tensor, labels: Tensor, classes: str | Sequence[int], bins: int | None = None) -> Tensor:
    """Return the mean over classes of the Lovász extension of 1 - intersection over union, shape ().

    It is 0 without labelled pixels.

    Args:
        logits: (N, C, h, w).
        labels: (N, H, W), uint8 or int64; all images together are one set of pixels.
        classes: "present", "all", or indices.
        bins: Errors that fall into the same of so many bins count as equal; None compares them exactly.
    """
    value: Tensor = _Lovasz.apply(logits, labels, classes, bins)
    return value


class _Lovasz(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, classes: str | Sequence[int], bins: int | None) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.plain = lambda z: plain_lovasz(z, labels, classes, bins)
        with torch.autocast(logits.device.type, enabled=False):
            value, ctx.gradient = _by_class(as_precise(logits), labels, classes, bins, ctx.needs_input_grad[0])
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (logits,) = ctx.saved_tensors
        if torch.is_grad_enabled():
            return plain_gradient(ctx.plain, logits, [gradient]), None, None, None
        return (ctx.gradient * gradient).to(logits.dtype), None, None, None


def _by_class(
    logits: Tensor, labels: Tensor, classes: str | Sequence[int], bins: int | None, needs_gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the loss and its gradient by `logits` (N, C, h, w), which is None unless it is needed."""
    images, num_classes = logits.shape[:2]
    resizing = Resizing.of(logits, labels.shape[1:])
    truth = resizing.tiled(labels).transpose(0, 1).contiguous()  # (blocks, N, H, width), as all that follows
    log_mass = torch.empty(truth.shape, dtype=logits.dtype, device=logits.device)
    for image, strip in resizing.strips(images, num_classes):
        log_mass[:, image, strip.top : strip.bottom] = resizing.enlarge(logits[image], strip).logsumexp(1)
    void = truth == IGNORE
    log_mass.masked_fill_(void, torch.inf)  # void pixels have the probability 0 of all classes, and so no error
    voids = void.sum()

    chosen = _chosen(truth, classes, num_classes)
    total = torch.zeros((), dtype=accumulation_dtype(logits.device), device=logits.device)
    gradient = torch.zeros_like(logits, memory_format=torch.contiguous_format) if needs_gradient else None
    if not len(chosen) or void.all():
        return total, gradient

    whole = resizing.strip(0, labels.shape[1])
    mean = torch.zeros_like(log_mass)
    for index in chosen:
        p = resizing.enlarge(logits[:, index], whole).sub_(log_mass).exp_()
        own = truth == index
        # Multiplied by p - own, which has its sign, the derivative by p adds up to the loss.
        derivatives = _derivatives(p.flatten(), own.flatten(), voids, bins).view_as(p)
        total += torch.add(p, own, alpha=-1).mul_(derivatives).sum(dtype=total.dtype)
        if gradient is None:
            continue
        p *= derivatives
        mean += p
        resizing.add_reduced(gradient[:, index], p, whole)
    if gradient is not None:
        # The softmax couples the classes: d p_k / d logit_j = p_k ([k = j] - p_j). The first part is added above.
        for image, strip in resizing.strips(images, num_classes):
            rows = slice(strip.top, strip.bottom)
            p = resizing.enlarge(logits[image], strip).sub_(log_mass[:, image, None, rows]).exp_()
            resizing.add_reduced(gradient[image], p.mul_(mean[:, image, None, rows]).neg_(), strip)
        gradient /= len(chosen)
    return total / len(chosen), gradient


def _derivatives(p: Tensor, own: Tensor, voids: Tensor | int, bins: int | None) -> Tensor:
    """Return the derivative (P,) of the loss of one class by the probabilities `p` (P,) of that class.

    Args:
        own: (P,) bool, which pixels are of the class.
        voids: Number of pixels that do not count; they have p = 0 and are not `own`.
        bins: As for `lovasz`.
    """
    if bins is not None:
        codes = bin_codes(p, own, bins)
        counts = torch.bincount(codes, minlength=2 * bins).view(2, bins)
        counts[0, 0] -= voids
        return binned_steps(counts).to(p.dtype).view(-1).index_select(0, codes)
    errors = torch.add(p, own, alpha=-1).abs_()
    if p.dtype == torch.float32:
        # Floats from 0 on are ordered as the integers with the same bits, and those torch sorts by radix: 5 times as
        # fast. The lowest bit of the key tells which pixels are of the class.
        keys = errors.view(torch.int32).clamp_(max=ONE).neg_().add_(ONE).mul_(2).add_(~own)
        keys, order = keys.sort()
        own = keys.bitwise_and_(1) == 0
    else:
        order = errors.argsort(descending=True)
        own = own.index_select(0, order)
    steps = jaccard_steps(own, p.dtype)
    return torch.empty_like(p).scatter_(0, order, torch.where(own, -steps, steps))


def jaccard_steps(own: Tensor, dtype: torch.dtype) -> Tensor:
    """Return how the Jaccard loss grows as pixels are given up one by one, (P,): algorithm 1 of Berman et al. 2018.

    Written as steps, not as differences of the loss, which would cancel; the order of equal errors does not matter.

    Args:
        own: (P,) bool, which pixels are of the class, those with the largest error first.
    """
    size = own.sum()
    kept = size - own.cumsum(0, dtype=torch.int32)
    union = (kept + torch.arange(1, len(own) + 1, dtype=torch.int32, device=own.device)).to(dtype)
    steps = torch.where(own, 1 / union, kept / (union * (union - 1)).clamp_(min=1))
    steps[0] = torch.where(size > 0, steps[0], 1)
    return steps


def bin_codes(p: Tensor, own: Tensor, bins: int) -> Tensor:
    """Return the bin of each pixel, (P,) int32: that of its probability, and `bins` higher for pixels of the class."""
    return (p * bins).int().clamp_(0, bins - 1).add_(own, alpha=bins)


def binned_steps(counts: Tensor) -> Tensor:
    """Return the derivative of the loss by the probabilities of pixels in each bin, (2, B) in `accumulation_dtype`.

    Errors are ranked by bin. Within a bin, pixels of the class come first in one order and last in another; each
    step is the mean of the two, and so all steps together still add up to the loss of giving up all pixels. The loss
    is off by no more than the width of a bin.

    Args:
        counts: (2, B), how many pixels of other classes, and of the class, have probabilities in each bin.
    """
    # From the largest error on: other classes' pixels by falling probability, own ones by rising.
    others, own = counts.to(accumulation_dtype(counts.device)).unbind()
    others = others.flip(0)
    size, found, wrong = own.sum(), own.cumsum(0), others.cumsum(0)
    before, after = size + wrong - others, size + wrong
    own_steps = (1 / before.clamp(min=1) + 1 / after.clamp(min=1)) / 2
    kept = size - found + own / 2
    steps = kept / (before * after).clamp(min=1)
    # Without a pixel of the class, the first pixel with an error costs 1, and the others nothing.
    first = (before == 0) & (others > 0)
    steps = torch.where(size > 0, steps, first / others.clamp(min=1))
    return torch.stack([steps.flip(0), -own_steps])


def plain_lovasz(logits: Tensor, labels: Tensor, classes: str | Sequence[int], bins: int | None = None) -> Tensor:
    """Compute `lovasz` in ordinary operations."""
    labelled = labels != IGNORE
    p, truth = F.softmax(enlarged(logits, labels), dim=1).movedim(1, -1)[labelled], labels[labelled]
    total = p.sum(dtype=accumulation_dtype(logits.device)) * 0
    chosen = _chosen(truth, classes, logits.shape[1])
    for index in chosen if len(truth) else ():
        own = truth == index
        errors = (own.to(p.dtype) - p[:, index]).abs()
        if bins is not None:
            codes = bin_codes(p[:, index].detach(), own, bins)
            counts = torch.bincount(codes, minlength=2 * bins).view(2, bins)
            total = total + (errors * binned_steps(counts).abs().flatten()[codes]).sum(dtype=total.dtype)
        else:
            errors, order = torch.sort(errors, descending=True)
            total = total + (errors * jaccard_steps(own[order], p.dtype)).sum(dtype=total.dtype)
    return total / max(len(chosen), 1)


def _chosen(truth: Tensor, classes: str | Sequence[int], num_classes: int) -> Sequence[int]:
    """Return the indices that `classes` stands for; "present" are those that occur in `truth`."""
    if not isinstance(classes, str):
        return classes
    if classes == "all":
        return range(num_classes)
    counts = torch.bincount(truth.flatten(), minlength=num_classes)[:num_classes]
    present: list[int] = counts.nonzero()[:, 0].tolist()
    return present


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
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__()
        self.per_image = per_image
        self.additive = per_image
        self.bins = bins
        self.classes: str | list[int]
        if isinstance(classes, str):
            self.classes = classes
        else:
            self.classes = class_indices(classes, class_facts, join(where, "classes"))

    def norm(self, labels: Tensor) -> Tensor:
        """Return the number of images with labelled pixels if `per_image`, else 1; shape ()."""
        return labelled_images(labels) if self.per_image else super().norm(labels)

    def forward(self, logits: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
        norm = self.norm(labels) if norm is None else norm
        if not self.per_image:
            return self.divide(lovasz(logits, labels, self.classes, self.bins), norm, logits)
        total = torch.zeros((), dtype=accumulation_dtype(logits.device), device=logits.device)
        for index in range(len(labels)):
            # Slices, since under autocast the backward pass of `split` refuses mixed types.
            image = slice(index, index + 1)
            total = total + lovasz(logits[image], labels[image], self.classes, self.bins)
        return self.divide(total, norm, logits)
