"""The "loss" section of a config, and the one object that training knows of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import torch
from torch import Tensor, nn

from utils.classes import ANY_OF, IGNORE, with_class_facts
from utils.errors import ConfigError
from utils.losses.base import Loss, labelled_images
from utils.losses.boundary import boundary_loss, near_boundaries
from utils.losses.masks import MaskLoss
from utils.losses.strips import accumulation_dtype
from utils.outputs import SegOutput
from utils.registry import LOSSES
from utils.schema import Above, Between, Mismatch, convert, did_you_mean, join, parameters_of, show

BOUNDARY_FACTOR = 20.0  # of the loss of boundaries, in PIDNet
Factor = Annotated[float, Between(0, 100)]
AuxFactor = Factor | tuple[Factor, ...]


@dataclass(frozen=True)
class LossTerm:
    """A loss and its share in the sum.

    Args:
        type: Name of a loss.
        args: Its arguments.
        factor: What its value is multiplied by.
    """

    type: str
    args: Mapping[str, Any] = field(default_factory=dict)
    factor: Annotated[float, Above(0)] = 1.0


class Criterion(nn.Module):
    """Weighted sum of losses, of the main logits and, with less weight, of the auxiliary ones.

    Args:
        terms: Name, loss and factor of each; names are unique.
        aux_factor: Factor of the sum for each auxiliary output, one number for all or one for each; 0.4 in PSPNet,
            https://arxiv.org/abs/1612.01105.
        any_of: How many labels, 253, 252 and so on, stand for one of several classes; void for losses that are not
            `marginal`.

    Where a network learns boundaries too (`SegOutput.edges`), their loss comes on top, and the sum once more for the
    pixels at which the network is sure of one. Source: Xu et al. 2022, https://arxiv.org/abs/2206.02066, section 3.1.
    """

    def __init__(
        self, terms: Sequence[tuple[str, Loss, float]], *, aux_factor: AuxFactor = 0.4, any_of: int = 0
    ) -> None:
        super().__init__()
        self.names = tuple(name for name, _, _ in terms)
        self.factors = tuple(factor for _, _, factor in terms)
        self.losses = nn.ModuleList(loss for _, loss, _ in terms)
        self.aux_factor = aux_factor
        self.any_of = any_of

    def normalizers(self, labels: Tensor) -> Tensor:
        """Return what labels (N, H, W) add to the denominators of the K terms and of the loss of boundaries: (K + 1,).

        They are on the labels' device, and no host sync is needed.

        To train on a batch in micro-batches, add up the normalizers of all of them on all processes, give `forward`
        that sum with each micro-batch, and add up its results.
        """
        images = labelled_images(self._settled(labels)).to(accumulation_dtype(labels.device))
        return torch.cat([self._term_normalizers(labels), images[None]])

    def _term_normalizers(self, labels: Tensor) -> Tensor:
        found, settled = [], self._settled(labels)
        for loss in self._losses():
            known = labels if loss.marginal else settled
            # What is not additive is averaged over micro-batches, and each counts as much as it has images.
            norm = loss.norm(known) if loss.additive else loss.norm(known) * len(labels)
            found.append(norm.to(accumulation_dtype(labels.device)))
        return torch.stack(found)

    def forward(
        self, output: SegOutput, labels: Tensor, normalizers: Tensor | None = None, step: int | None = None
    ) -> dict[str, Tensor]:
        """Compute the loss of `output` for labels (N, H, W), and the terms that it consists of.

        Args:
            normalizers: (K + 1,), those of the whole batch when `labels` are a micro-batch of it; else None.
            step: Optimizer step that is being taken, from 0, for losses that change in the course of training.

        Returns:
            "loss", to call `backward` on, and, detached, each term by name, for the main logits and without its
            factor, and "aux" and "boundary", if there are any.
        """
        if normalizers is None:
            normalizers = self.normalizers(labels)
        self._set_step(step)
        normalizers, images = normalizers[:-1], normalizers[-1]  # of the K terms, and of the loss of boundaries
        terms = self._values(output, labels, normalizers)
        loss = self._total(terms)
        detached = {name: term.detach() for name, term in zip(self.names, terms, strict=True)}
        if output.aux:
            totals = [self._total(self._values(SegOutput(logits), labels, normalizers)) for logits in output.aux]
            aux = torch.stack(totals)
            loss = loss + self._weighted(aux)
            detached["aux"] = aux.sum().detach()
        for edges in output.edges:
            boundary = boundary_loss(edges, self._settled(labels), images)
            near = self._total(self._values(SegOutput(output.logits), near_boundaries(edges, labels), normalizers))
            loss = loss + BOUNDARY_FACTOR * boundary + near
            detached["boundary"] = boundary.detach()
        return {"loss": loss, **detached}

    @torch.no_grad()
    def evaluation_sums(self, output: SegOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return what a batch adds to the numerators and normalizers of a split: both (K,), no host sync.

        Of the main logits only and image by image, so that sums do not depend on how images were grouped.
        """
        numerators, normalizers = [], []
        self._set_step(None)  # what validation measures is the same in every epoch
        for logits, label in zip(torch.split(output.logits, 1), torch.split(labels, 1), strict=True):
            own = self._term_normalizers(label)
            numerators.append(torch.stack(self._values(SegOutput(logits), label, own)) * own)
            normalizers.append(own)
        return torch.stack(numerators).sum(0), torch.stack(normalizers).sum(0)

    def evaluation_loss(self, numerators: Tensor, normalizers: Tensor) -> dict[str, float]:
        """Return "loss" and each term over a split from the sums of `evaluation_sums`; NaN if nothing was labelled."""
        values: list[float] = (numerators / normalizers).tolist()
        loss = sum(factor * value for factor, value in zip(self.factors, values, strict=True))
        return {"loss": loss, **dict(zip(self.names, values, strict=True))}

    def _values(self, output: SegOutput, labels: Tensor, normalizers: Tensor) -> list[Tensor]:
        values, settled = [], self._settled(labels)
        for loss, norm in zip(self._losses(), normalizers, strict=True):
            known = labels if loss.marginal else settled
            if output.masks and isinstance(loss, MaskLoss):
                values.append(loss.of_masks(output.masks, output.mask_classes, known, norm))
            else:
                values.append(loss(output.logits, known, norm if loss.additive else norm / len(labels)))
        return values

    def _settled(self, labels: Tensor) -> Tensor:
        """Return `labels` with void for what stands for one of several classes."""
        return labels.masked_fill(labels > ANY_OF - self.any_of, IGNORE) if self.any_of else labels

    def _total(self, terms: Sequence[Tensor]) -> Tensor:
        return _weighted_sum(self.factors, terms)

    def _weighted(self, aux: Tensor) -> Tensor:
        """Add up the losses of auxiliary outputs (K,) with their factors."""
        if isinstance(self.aux_factor, float | int):
            return self.aux_factor * aux.sum()
        return _weighted_sum(self.aux_factor, aux.unbind())

    def _set_step(self, step: int | None) -> None:
        for loss in self._losses():
            loss.step = step

    def _losses(self) -> Iterator[Loss]:
        return iter(cast("Sequence[Loss]", self.losses))  # a ModuleList does not say of what


def check_loss(value: Any, *, where: str = "loss", problems: list[str]) -> list[LossTerm]:
    """Return the terms of a "loss" section, with every default filled in; add what is wrong with it to `problems`.

    Args:
        value: A name, ``{"type", "args", "factor"}``, a `LossTerm`, or a list of these.
        where: Place of the section in the config.
        problems: Receives one line for each problem.
    """
    if not isinstance(value, list | tuple):
        terms = [_check_term(value, where, problems)]
    else:
        if not value:
            problems.append(f"{where}: is empty. Name a loss, such as CrossEntropyLoss2d.")
        terms = [_check_term(item, join(where, index), problems) for index, item in enumerate(value)]
    return [term for term in terms if term is not None]


def _check_term(value: Any, where: str, problems: list[str]) -> LossTerm | None:
    if isinstance(value, LossTerm):  # it has been checked
        return value
    before, factor = len(problems), 1.0
    if isinstance(value, Mapping):
        known = ("type", "args", "factor")
        for key in value:
            if key not in known:
                problems.append(f"{join(where, key)}: unknown key. {did_you_mean(key, known)}")
        try:
            factor = convert(value.get("factor", 1.0), Annotated[float, Above(0)], join(where, "factor"))
        except Mismatch as mismatch:
            problems += mismatch.problems
        value = {key: value[key] for key in ("type", "args") if key in value}
    elif not isinstance(value, str):
        problems.append(f"{where}: expected a name, an object or a list of these, got {show(value)}.")
        return None
    checked = LOSSES.check(value, where=where, problems=problems)
    return LossTerm(checked.type, checked.args, factor) if len(problems) == before else None


def build_criterion(loss: Any, *, aux_factor: AuxFactor = 0.4, where: str = "loss", **facts: Any) -> Criterion:
    """Build the criterion that a "loss" section describes.

    Args:
        loss: A name, ``{"type", "args", "factor"}``, a `LossTerm`, or a list of these.
        aux_factor: As for `Criterion`.
        where: Place of the section in the config.
        facts: What is known of the classes, see `ClassFacts`: num_classes, class_names, any_of and so on, and of the
            run: total_steps, steps_per_epoch, seed. A loss receives those that it names; those of the classes also
            as one, `class_facts`.

    Raises:
        ConfigError: `loss` is wrong or does not fit the facts.
    """
    problems: list[str] = []
    terms = check_loss(loss, where=where, problems=problems)
    facts = with_class_facts(facts)
    built: list[tuple[str, Loss, float]] = []
    for index, term in enumerate(terms):
        place = join(where, index) if isinstance(loss, list | tuple) else where
        try:
            part = LOSSES.make(term.type, term.args, where=place, **facts)
            built.append((term_name(terms, index), part, term.factor))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return Criterion(built, aux_factor=aux_factor, any_of=len(facts.get("any_of", ())))


def _weighted_sum(factors: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    """Add up terms, shape () each, with their factors; these stay numbers, for which a GPU need not wait."""
    return torch.stack([factor * term for factor, term in zip(factors, terms, strict=True)]).sum()


def term_name(terms: Sequence[LossTerm], index: int) -> str:
    """Return what a term of a sum is called in results: its type, numbered from the second of a type on."""
    earlier = sum(other.type == terms[index].type for other in terms[:index])
    return f"{terms[index].type}_{earlier + 1}" if earlier else terms[index].type


def needs_class_pixels(terms: Sequence[LossTerm], any_of: Sequence[Sequence[int]] = ()) -> bool:
    """Tell whether a term asks for `class_pixels`, or computes class weights from them: they cost a scan of all labels.

    Args:
        terms: Of the loss.
        any_of: See `ClassFacts`; the weight of such a label is the mean of those of its pixels.
    """
    if any("class_pixels" in parameters_of(LOSSES[term.type]) for term in terms):
        return True
    given = [term.args.get("class_weights") for term in terms]
    return any(isinstance(weights, str) or (weights is not None and len(any_of) > 0) for weights in given)
