"""The "loss" section of a config, and the one object that training knows of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from utils.errors import ConfigError
from utils.losses.base import Loss
from utils.losses.strips import accumulation_dtype
from utils.outputs import SegOutput
from utils.registry import LOSSES
from utils.schema import Above, Mismatch, convert, did_you_mean, join, show


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
    """Weighted sum of losses, of the main logits and, more weakly, of the auxiliary ones.

    Args:
        terms: Name, loss and factor of each; names are unique.
        aux_factor: Factor of the sum for each auxiliary output; 0.4 in PSPNet, https://arxiv.org/abs/1612.01105.
    """

    def __init__(self, terms: Sequence[tuple[str, Loss, float]], *, aux_factor: float = 0.4) -> None:
        super().__init__()
        self.names = tuple(name for name, _, _ in terms)
        self.factors = tuple(factor for _, _, factor in terms)
        self.losses = nn.ModuleList(loss for _, loss, _ in terms)
        self.aux_factor = aux_factor

    def normalizers(self, labels: Tensor) -> Tensor:
        """Share of labels (N, H, W) in the denominator of each of the K terms: (K,) on their device, no host sync.

        To train on a batch in parts, add up the norms of all parts on all processes, give `forward` that sum with
        each part, and add up its results.
        """
        # A loss that is not additive is averaged over parts, each counting as much as it has images.
        norms = [loss.norm(labels) * (1 if loss.additive else len(labels)) for loss in self._losses()]
        return torch.stack([norm.to(accumulation_dtype(labels.device)) for norm in norms])

    def forward(
        self, output: SegOutput, labels: Tensor, norms: Tensor | None = None, step: int | None = None
    ) -> dict[str, Tensor]:
        """The loss of `output` for labels (N, H, W), and what it consists of.

        Args:
            norms: (K,), those of the whole batch when `labels` are a part of it; else None.
            step: Optimiser step that is being taken, from 0, for losses that change in the course of training.

        Returns:
            "loss", to call `backward` on, and, detached, each term by name, for the main logits and without its
            factor, and "aux", if there is any.
        """
        norms = self.normalizers(labels) if norms is None else norms
        self._set_step(step)
        terms = self._values(output.logits, labels, norms)
        loss = self._total(terms)
        parts = dict(zip(self.names, (term.detach() for term in terms), strict=True))
        if output.aux:
            aux = torch.stack([self._total(self._values(logits, labels, norms)) for logits in output.aux]).sum()
            loss, parts["aux"] = loss + self.aux_factor * aux, aux.detach()
        return {"loss": loss, **parts}

    @torch.no_grad()
    def evaluation_sums(self, output: SegOutput, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a batch adds to the numerators and the norms of the K terms over a split: both (K,), no host sync.

        Of the main logits only and image by image, so that sums do not depend on how images were grouped.
        """
        numerators, norms = [], []
        self._set_step(None)  # what validation measures is the same in every epoch
        for logits, label in zip(output.logits.split(1), labels.split(1), strict=True):
            own = self.normalizers(label)
            numerators.append(torch.stack(self._values(logits, label, own)) * own)
            norms.append(own)
        return torch.stack(numerators).sum(0), torch.stack(norms).sum(0)

    def evaluation_loss(self, numerators: Tensor, norms: Tensor) -> dict[str, float]:
        """ "loss" and each term over a split from the sums of `evaluation_sums`; NaN if nothing was labelled."""
        values = (numerators / norms).tolist()
        loss = sum(factor * value for factor, value in zip(self.factors, values, strict=True))
        return {"loss": loss, **dict(zip(self.names, values, strict=True))}

    def _values(self, logits: Tensor, labels: Tensor, norms: Tensor) -> list[Tensor]:
        return [
            loss(logits, labels, norm if loss.additive else norm / len(labels))
            for loss, norm in zip(self._losses(), norms, strict=True)
        ]

    def _set_step(self, step: int | None) -> None:
        for loss in self._losses():
            loss.step = step

    def _total(self, terms: Sequence[Tensor]) -> Tensor:
        return torch.stack([factor * term for factor, term in zip(self.factors, terms, strict=True)]).sum()

    def _losses(self) -> list[Loss]:
        return list(self.losses)  # type: ignore[arg-type]  # a ModuleList does not say of what


def check_loss(value: Any, *, where: str = "loss", problems: list[str]) -> list[LossTerm]:
    """The terms of a "loss" section, with every default filled in; what is wrong with it goes to `problems`.

    Args:
        value: A name, ``{"type", "args", "factor"}``, or a list of these.
    """
    if isinstance(value, list | tuple):
        if not value:
            problems.append(f"{where}: is empty. Name a loss, such as CrossEntropyLoss2d.")
        terms = [_check_term(item, join(where, index), problems) for index, item in enumerate(value)]
    else:
        terms = [_check_term(value, where, problems)]
    return [term for term in terms if term is not None]


def _check_term(value: Any, where: str, problems: list[str]) -> LossTerm | None:
    found, factor, component = len(problems), 1.0, value
    if isinstance(value, LossTerm):
        value = asdict(value)
    if isinstance(value, Mapping):
        known = ("type", "args", "factor")
        problems += [f"{join(where, k)}: unknown key. {did_you_mean(k, known)}" for k in value if k not in known]
        component = {k: value[k] for k in ("type", "args") if k in value}
        try:
            factor = convert(value.get("factor", 1.0), Annotated[float, Above(0)], join(where, "factor"))
        except Mismatch as mismatch:
            problems += mismatch.problems
    elif not isinstance(value, str):
        problems.append(f"{where}: expected a name, an object or a list of these, got {show(value)}.")
        return None
    checked = LOSSES.check(component, where=where, problems=problems)
    return LossTerm(checked.type, checked.args, factor) if len(problems) == found else None


def build_criterion(loss: Any, *, aux_factor: float = 0.4, where: str = "loss", **facts: Any) -> Criterion:
    """The criterion that a "loss" section describes.

    Args:
        loss: A name, ``{"type", "args", "factor"}``, a `LossTerm`, or a list of these.
        facts: What losses may ask for: num_classes, class_names, class_pixels.

    Raises:
        ConfigError: `loss` is wrong or does not fit the facts.
    """
    problems: list[str] = []
    terms = check_loss(loss, where=where, problems=problems)
    built: list[tuple[str, Loss, float]] = []
    for index, term in enumerate(terms):
        place = join(where, index) if isinstance(loss, list | tuple) else where
        try:
            part = LOSSES.build({"type": term.type, "args": term.args}, where=place, **facts)
            built.append((term_name(terms, index), part, term.factor))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return Criterion(built, aux_factor=aux_factor)


def term_name(terms: Sequence[LossTerm], index: int) -> str:
    """What a term of a sum is called in results: its type, numbered from the second of a type on."""
    earlier = sum(other.type == terms[index].type for other in terms[:index])
    return f"{terms[index].type}_{earlier + 1}" if earlier else terms[index].type


def needs_class_pixels(terms: Sequence[LossTerm]) -> bool:
    """Whether a term computes class weights from the fact `class_pixels`, which costs a scan of the training set."""
    return any(isinstance(term.args.get("class_weights"), str) for term in terms)
