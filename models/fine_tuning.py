"""Start a whole network from another's weights: a run's or torchvision's, also where the classes are others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.weights import download, from_torchvision
from utils import checkpoint
from utils.errors import CheckpointError, ConfigError
from utils.schema import did_you_mean

TORCHVISION = "torchvision/"
# Its segmentation networks that our bricks compute exactly.
PUBLIC = ("deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101")


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from.

    Args:
        source: File or address they came from.
        weights: By parameter name.
        classes: Names of the classes they tell apart, in the order of the logits; None if nobody knows.
    """

    source: str
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None


@dataclass(frozen=True)
class TransferReport:
    """What became of the weights of a model that started from another's.

    Args:
        source: File or address they came from.
        loaded: Parameters and buffers that were set as they are in the file.
        mapped: Those of which the rows of some classes were set.
        fresh: Those that keep their random start.
        unused: Keys of the file that nothing was made of.
        known: Classes that have rows in the file.
        new: Classes that have not.
    """

    source: str
    loaded: tuple[str, ...]
    mapped: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    known: tuple[str, ...] = ()
    new: tuple[str, ...] = ()

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.mapped) + len(self.fresh)
        parts = [f"{len(self.loaded)} of {total} weights loaded"]
        if self.mapped:
            parts.append(f"{len(self.mapped)} mapped for the classes {', '.join(self.known)}")
        if self.new:
            parts.append(f"fresh classes: {', '.join(self.new)}")
        if self.fresh:
            parts.append(f"fresh: {', '.join(self.fresh[:6])}{' ...' if len(self.fresh) > 6 else ''}")
        if self.unused:
            parts.append(f"not used: {len(self.unused)} of the file")
        return f"{self.source}: {'; '.join(parts)}"


def read_start(path: Path, *, where: str) -> InitialWeights:
    """The weights that `path` names: a checkpoint, a bare state dict, or a network of torchvision's.

    ``torchvision/deeplabv3_resnet50`` is downloaded unless torch's cache has it.

    Args:
        path: A file, or ``torchvision/`` and a name.
        where: Its place in the config, for errors.

    Raises:
        CheckpointError: There is no such file, or it holds no weights.
        ConfigError: torchvision has no such network, or its weights cannot be had.
    """
    if (name := public_name(path, where=where)) is not None:
        from torchvision.models import get_model_weights

        published = get_model_weights(name).DEFAULT
        state = from_torchvision(download(published.url, where=where, instead="the path of a checkpoint, or null"))
        return InitialWeights(str(path), state, tuple(published.meta["categories"]))
    state = checkpoint.load(path)
    classes: Any = state.get("classes")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    return InitialWeights(str(path), checkpoint.judged_weights_of(state, path), tuple(classes) if named else None)


def public_name(path: Path, *, where: str) -> str | None:
    """What torchvision calls the network that `path` means; None if it means a file.

    Raises:
        ConfigError: It can only mean a network, and there is none of that name that would fit.
    """
    name = path.as_posix().removeprefix(TORCHVISION)
    if name == path.as_posix() or path.suffix or path.exists():
        return None
    if name not in PUBLIC:
        raise ConfigError(
            f"{where}: no weights of torchvision's are called '{name}' here. {did_you_mean(name, PUBLIC)}"
        )
    return name


def transfer(model: nn.Module, start: InitialWeights) -> TransferReport:
    """Copy all weights whose names and shapes agree.

    Raises:
        CheckpointError: None agree, or one that does is not finite; nothing has been copied then.
    """
    own = model.state_dict()
    fitting = {n: v for n, v in start.weights.items() if n in own and own[n].shape == v.shape}
    return _load(model, start, fitting, {}, known=(), new=())


def transfer_by_class_name(
    model: nn.Module,
    start: InitialWeights,
    classes: Sequence[str],
    axes: Mapping[str, Mapping[int, int]],
    *,
    where: str,
) -> TransferReport:
    """As `transfer`, but where an axis of a parameter stands for classes, copy the rows of classes of the same name.

    Args:
        model: Its parameters are set; rows of classes that `start` has not stay as they are.
        start: Must say its classes.
        classes: Names of the model's classes, in the order of its logits.
        axes: From `class_axes`.
        where: Place of the wish in the config, for errors.

    Raises:
        ConfigError: `start` does not name its classes, or none has the name of one of ours.
        CheckpointError: As `transfer`.
    """
    if start.classes is None:
        raise ConfigError(f"{where}: {start.source} does not say which classes it knows. Set it to false.")
    pairs = match_classes(classes, start.classes)
    if not pairs:
        theirs = ", ".join(start.classes[:6]) + (", ..." if len(start.classes) > 6 else "")
        raise ConfigError(f"{where}: no class of {start.source} ({theirs}) has the name of one here. Set it to false.")
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for name, value in start.weights.items():
        if name not in own:
            continue
        if name in axes:
            rows = _rows_of_classes(own[name], value, axes[name], pairs, len(start.classes))
            mapped |= {} if rows is None else {name: rows}
        elif own[name].shape == value.shape:
            fitting[name] = value
    known = tuple(classes[index] for index in pairs)
    return _load(model, start, fitting, mapped, known=known, new=tuple(n for n in classes if n not in known))


def class_axes(model: nn.Module, larger: nn.Module, num_classes: int) -> dict[str, dict[int, int]]:
    """Which axes of which parameters stand for classes, and how many entries each class has there.

    What grows with the number of classes is found by comparison, so that classifiers, learned upsampling and scores
    that are refined by further convolutions are all treated alike, and no axis that is as long by accident.

    Args:
        model: Has `num_classes` classes.
        larger: The same with one class more; may be on the meta device.
        num_classes: Of `model`.
    """
    found: dict[str, dict[int, int]] = {}
    shapes = {name: value.shape for name, value in larger.state_dict().items()}
    for name, value in model.state_dict().items():
        grown = [more - size for size, more in zip(value.shape, shapes[name], strict=True)]
        axes = {axis: rows for axis, rows in enumerate(grown) if rows and rows * num_classes == value.shape[axis]}
        if axes:
            found[name] = axes
    return found


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Index among `theirs` of each of `ours` that has the same name, but for case, spaces and punctuation."""

    def plain(name: str) -> str:
        return re.sub(r"[\W_]", "", name.casefold())

    exact = {name: index for index, name in enumerate(theirs)}
    keys = [plain(name) for name in theirs]
    loose = {key: index for index, key in enumerate(keys) if key and keys.count(key) == 1}
    found = {index: exact.get(name, loose.get(plain(name))) for index, name in enumerate(ours)}
    return {index: other for index, other in found.items() if other is not None}


def _rows_of_classes(
    own: Tensor, value: Tensor, axes: Mapping[int, int], pairs: Mapping[int, int], count: int
) -> Tensor | None:
    """`own` with the entries of classes in `pairs` from `value`, which has `count` classes; None if it cannot be."""
    expected = [axes[axis] * count if axis in axes else size for axis, size in enumerate(own.shape)]
    if list(value.shape) != expected:
        return None
    into, out_of = [], []
    for axis, size in enumerate(own.shape):
        ours = theirs = torch.arange(size)
        if axis in axes:
            entries = torch.arange(axes[axis])
            ours, theirs = (
                torch.cat([index * axes[axis] + entries for index in indices])
                for indices in (pairs.keys(), pairs.values())
            )
        open_mesh = [-1 if other == axis else 1 for other in range(own.dim())]
        into.append(ours.view(open_mesh))
        out_of.append(theirs.view(open_mesh))
    result = own.clone()
    result[tuple(into)] = value[tuple(out_of)].to(own.dtype)
    return result


def _load(
    model: nn.Module,
    start: InitialWeights,
    loaded: Mapping[str, Tensor],
    mapped: Mapping[str, Tensor],
    *,
    known: tuple[str, ...],
    new: tuple[str, ...],
) -> TransferReport:
    if not loaded and not mapped:
        count = len(start.weights)
        raise CheckpointError(f"{start.source}: none of its {count} weights fits the model. Name another init_from.")
    taken = {**loaded, **mapped}
    if broken := [name for name, value in taken.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{start.source}: '{broken[0]}' is not finite. Name another init_from.")
    own = model.state_dict()
    model.load_state_dict(taken, strict=False)
    return TransferReport(
        start.source,
        loaded=tuple(loaded),
        mapped=tuple(mapped),
        fresh=tuple(name for name in own if name not in taken),
        unused=tuple(name for name in start.weights if name not in taken),
        known=known,
        new=new,
    )
