"""Loss of networks that predict masks and a class for each: queries are matched to the classes of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.classes import IGNORE, UNKNOWN_CLASSES, ClassFacts
from utils.losses.base import ClassWeights, inverse_or_zero
from utils.losses.cross_entropy import CrossEntropyLoss2d
from utils.registry import LOSSES
from utils.schema import AtLeast, Between

Factor = Annotated[float, AtLeast(0)]


@LOSSES.register()
class MaskLoss(CrossEntropyLoss2d):
    """Class and mask of each query of a network such as EoMT, against the class that it is matched to in an image.

    The classes of an image are its targets. Each gets the query that fits it best, such that the sum of costs is the
    least; the other queries are to say that they are no class. Masks are compared at points that are drawn from the
    labelled pixels, so void ones have no part in anything; most of the points are where the mask is least sure. What
    is drawn depends on torch's generator only, which training seeds for each step.

    Images count as much as they have labelled pixels (times class weights), and within an image a target counts as
    much as the weight of its class: so micro-batches add up to the batch. The losses of the predictions after several
    blocks are added up. Where there are logits only, as in validation, the value is their cross entropy.

    Source: Cheng et al. 2022, https://arxiv.org/abs/2112.01527, section 3.3 and appendix A, with the Dice loss of
    Milletari et al. 2016 and points of Kirillov et al. 2020, https://arxiv.org/abs/1912.08193, section 3.1; as used by
    Kerssies et al. 2025, https://arxiv.org/abs/2503.19108, section 3.

    Args:
        class_weights: As for `CrossEntropyLoss2d`.
        class_factor: Factor of the cross entropy of the queries' classes.
        mask_factor: Factor of the binary cross entropy of a mask.
        dice_factor: Factor of the Dice loss of a mask.
        no_object: Weight of queries that are no class, in the cross entropy.
        points: Number of points at which masks are compared.
        oversample: Points among which the unsure ones are sought, as a multiple of `points`.
        importance: Share of the points that are sought; the rest is anywhere.
    """

    marginal = False

    def __init__(  # noqa: PLR0913  all are named
        self,
        *,
        class_weights: ClassWeights = None,
        class_factor: Factor = 2.0,
        mask_factor: Factor = 5.0,
        dice_factor: Factor = 5.0,
        no_object: Factor = 0.1,
        points: Annotated[int, AtLeast(1)] = 12544,
        oversample: Annotated[float, AtLeast(1)] = 3.0,
        importance: Annotated[float, Between(0, 1)] = 0.75,
        class_facts: ClassFacts = UNKNOWN_CLASSES,
        where: str = "",
    ) -> None:
        super().__init__(class_weights=class_weights, class_facts=class_facts, where=where)
        self.class_factor = class_factor
        self.mask_factor = mask_factor
        self.dice_factor = dice_factor
        self.no_object = no_object
        self.points = points
        self.oversample = oversample
        self.importance = importance

    def of_masks(
        self, masks: Sequence[Tensor], classes: Sequence[Tensor], labels: Tensor, norm: Tensor | None = None
    ) -> Tensor:
        """Return the loss, shape (), of what queries predict after several blocks.

        Args:
            masks: (N, Q, h, w) logits each, of masks that cover the image.
            classes: (N, Q, C + 1) logits each; the last class is none.
            labels: (N, H, W), uint8 or int64.
            norm: What to divide by when `labels` are only a part of the batch; their own norm if None.
        """
        norm = self.norm(labels) if norm is None else norm
        total = norm.new_zeros(())
        for index, label in enumerate(labels):
            pixels = (label.flatten() != IGNORE).nonzero()[:, 0]
            share = self.weight_sum(label[None])
            values = []
            for mask, scores in zip(masks, classes, strict=True):
                values.append(self._of_image(_in_single(mask[index]), _in_single(scores[index]), label, pixels))
            total = total + share * torch.stack(values).sum()
        return self.divide(total, norm, _in_single(masks[0][:0]))

    def _of_image(self, masks: Tensor, scores: Tensor, label: Tensor, pixels: Tensor) -> Tensor:
        """Compute the loss of one image.

        Args:
            masks: (Q, h, w) logits.
            scores: (Q, C + 1) logits.
            label: (H, W).
            pixels: Indices of its labelled pixels.
        """
        if not len(pixels):
            return 0 * (masks.sum() + scores.sum())  # it teaches nothing, but gradients are there
        flat = label.flatten().long()
        present = torch.unique(flat[pixels])
        drawn = pixels[_draw(len(pixels), (self.points,), pixels.device)]
        with torch.no_grad():
            cost = self._costs(_at(masks, drawn.expand(len(masks), -1), label.shape), scores, present, flat[drawn])
            queries, found = assign(cost.double().cpu().numpy())
        matched = torch.from_numpy(queries).to(masks.device)
        targets = present[torch.from_numpy(found).to(masks.device)]
        weights = self._weights(scores)
        none = scores.shape[1] - 1
        wanted = torch.full((len(scores),), none, device=scores.device).index_put((matched,), targets)
        entropies = F.cross_entropy(scores, wanted, reduction="none")
        # The denominator has no class weights: a rare class would else weigh the same in an image of its own.
        counts = torch.where(wanted == none, self.no_object, 1.0).to(scores.dtype)
        of_classes = (entropies * weights[wanted]).sum() * inverse_or_zero(counts.sum())
        chosen = self._points(masks[matched], pixels, label.shape)
        logits = _at(masks[matched], chosen, label.shape)
        truth = (flat[chosen] == targets[:, None]).to(logits.dtype)
        entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(1)
        each = self.mask_factor * entropy + self.dice_factor * _dice(logits.sigmoid(), truth)
        of_masks = (each * weights[targets]).sum() * inverse_or_zero(weights[targets].sum())
        return self.class_factor * of_classes + of_masks

    def _weights(self, scores: Tensor) -> Tensor:
        """Return the weights of all classes, the last that of none, (C + 1,)."""
        weights = scores.new_ones(scores.shape[1])
        if self.class_weights is not None:
            weights[:-1] = self.class_weights
        weights[-1] = self.no_object
        return weights

    def _costs(self, logits: Tensor, scores: Tensor, present: Tensor, labels: Tensor) -> Tensor:
        """Compute what it costs to match each query to each target (Q, T), from logits (Q, P) and labels (P,)."""
        truth = (labels == present[:, None]).to(logits.dtype)
        # Cross entropy is softplus(x) - x * truth, summed over the points.
        entropies = (F.softplus(logits).sum(1, keepdim=True) - logits @ truth.T) / logits.shape[1]
        shares = logits.sigmoid()
        overlaps = 2 * shares @ truth.T
        dice = 1 - (overlaps + 1) / (shares.sum(1, keepdim=True) + truth.sum(1) + 1)
        classes = scores.softmax(1)[:, present]
        return self.mask_factor * entropies + self.dice_factor * dice - self.class_factor * classes

    @torch.no_grad()
    def _points(self, masks: Tensor, pixels: Tensor, size: Sequence[int]) -> Tensor:
        """Draw labelled pixels (T, points) for masks (T, h, w): those of which a mask is least sure, and any."""
        sought = round(self.importance * self.points)
        count = round(self.oversample * self.points)
        drawn = pixels[_draw(len(pixels), (len(masks), count), pixels.device)]
        unsure = _at(masks, drawn, size).abs().topk(sought, dim=1, largest=False).indices
        anywhere = pixels[_draw(len(pixels), (len(masks), self.points - sought), pixels.device)]
        return torch.cat([drawn.gather(1, unsure), anywhere], dim=1)


def _in_single(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _draw(count: int, shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw numbers from 0 to `count` - 1, with repetition."""
    return torch.randint(count, tuple(shape), device=device)


def _dice(shares: Tensor, truth: Tensor) -> Tensor:
    """Compute the Dice loss of each of the masks (T, P)."""
    return 1 - (2 * (shares * truth).sum(1) + 1) / (shares.sum(1) + truth.sum(1) + 1)


def _at(masks: Tensor, pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Interpolate maps (K, h, w) bilinearly at `pixels` (K, P), indices of an image of `size` that they cover.

    The same values as those of a resized map; `grid_sample` has no deterministic gradient on CUDA.
    """
    height, width = masks.shape[-2:]
    flat = masks.flatten(1)
    rows = ((pixels // size[1] + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)
    columns = ((pixels % size[1] + 0.5) * (width / size[1]) - 0.5).clamp(0, width - 1)
    top, left = rows.long(), columns.long()
    down, right = (rows - top).to(flat.dtype), (columns - left).to(flat.dtype)
    bottom, other = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    upper = (1 - right) * flat.gather(1, top * width + left) + right * flat.gather(1, top * width + other)
    lower = (1 - right) * flat.gather(1, bottom * width + left) + right * flat.gather(1, bottom * width + other)
    return (1 - down) * upper + down * lower


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Match rows to columns of `costs` (R, C) such that the sum is the least, each at most once and min(R, C) in all.

    Columns are added one by one, each along the cheapest chain of changes to those that have a row. Source: Jonker and
    Volgenant 1987, https://doi.org/10.1007/BF02278710, the step of augmentation.

    Returns:
        Rows, and the column of each, by column, or by row if these are fewer.
    """
    costs = np.nan_to_num(costs, nan=1e30, posinf=1e30, neginf=-1e30)  # the step is skipped, or ends the run, elsewhere
    if costs.shape[0] < costs.shape[1]:
        columns, rows = assign(costs.T)
        return rows, columns
    rows, columns = costs.shape
    price_of_row, price_of_column = np.zeros(rows), np.zeros(columns)
    owner = np.full(rows, -1)  # column that has the row
    for new in range(columns):
        distance = np.full(rows, np.inf)
        before = np.full(rows, -1)  # row from which a row is reached
        done = np.zeros(rows, bool)
        column, row, so_far = new, -1, 0.0
        while column >= 0:
            reduced = costs[:, column] - price_of_column[column] - price_of_row + so_far
            nearer = ~done & (reduced < distance)
            distance[nearer] = reduced[nearer]
            before[nearer] = row
            row = int(np.where(done, np.inf, distance).argmin())
            so_far = distance[row]
            done[row] = True
            column = owner[row]
        price_of_column[new] += so_far
        reached = done & (owner >= 0)
        price_of_column[owner[reached]] += so_far - distance[reached]
        price_of_row[done] -= so_far - distance[done]
        while row >= 0:  # pass the rows on along the chain
            owner[row] = owner[before[row]] if before[row] >= 0 else new
            row = before[row]
    matched = np.flatnonzero(owner >= 0)
    order = owner[matched].argsort()
    return matched[order], owner[matched][order]
