"""Start a whole network from another's weights: a run's or torchvision's, also where the classes are others."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from base.base_model import BaseModel, NormalizeEach
from models.build import build_model
from models.weights import download, from_torchvision
from utils import checkpoint
from utils.errors import CheckpointError, ConfigError
from utils.schema import did_you_mean

logger = logging.getLogger("segwright")

TORCHVISION = "torchvision/"
# Its segmentation networks that our bricks compute exactly.
PUBLIC = ("deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101")


@dataclass(frozen=True, kw_only=True)
class InitFrom:
    """Weights to start a whole network from.

    Args:
        path: A checkpoint, a bare state dict, or `torchvision/` and one of deeplabv3_resnet50, deeplabv3_resnet101,
            fcn_resnet50, fcn_resnet101.
        by_class_name: Copy the rows of the classifiers class by class, for classes that have the same name.
    """

    path: Path
    by_class_name: bool = False


@dataclass(frozen=True)
class InitialWeights:
    """Weights to start from, as `read_initial_weights` finds them.

    Args:
        source: File or address they came from.
        weights: By parameter name.
        classes: Names of the classes they tell apart, in the order of the logits; None if nobody knows.
        normalization: Mean and std of the images that they know, as a checkpoint has them; None if nobody knows.
    """

    source: str
    weights: Mapping[str, Tensor]
    classes: tuple[str, ...] | None = None
    normalization: Any = None


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


def initialize_from(init_from: InitFrom, model: BaseModel, *, arch: Any, classes: Sequence[str]) -> TransferReport:
    """Copy the weights of another network into `model` as far as they fit.

    Args:
        init_from: Names them.
        model: Its parameters and buffers are set.
        arch: The section of the config that `model` was built from.
        classes: Names of the model's classes, in the order of its logits.

    Raises:
        UserError: There are none, or none fit.
    """
    initial = read_initial_weights(init_from.path, where="init_from")
    _compare_normalization(initial, model)
    if init_from.by_class_name:
        with torch.device("meta"):
            larger = build_model(arch, num_classes=len(classes) + 1, load_weights=False)
        axes = class_axes(model, larger, len(classes))
        return transfer_by_class_name(model, initial, classes, axes, where="init_from.by_class_name")
    if initial.classes not in (None, tuple(classes)) and match_classes(classes, initial.classes or ()):
        hint = '{"path": ..., "by_class_name": true} copies what it knows of those with the same name'
        logger.warning("init_from: %s has other classes, or another order of them; %s.", initial.source, hint)
    return transfer(model, initial)


def _compare_normalization(initial: InitialWeights, model: BaseModel) -> None:
    """Warn where only one of both networks normalizes each image by itself."""
    if not isinstance(initial.normalization, dict):
        return
    by_image = not initial.normalization.get("mean")
    if by_image != isinstance(model.normalize, NormalizeEach):
        how = "by itself" if by_image else "by fixed numbers"
        instead = '"normalization": "image"' if by_image else f'"normalization": {json.dumps(initial.normalization)}'
        logger.warning("init_from: %s knows images normalized each %s; set %s.", initial.source, how, instead)


def read_initial_weights(path: Path, *, where: str) -> InitialWeights:
    """Read the weights that `path` names: a checkpoint, bare weights, or a network of torchvision's.

    ``torchvision/deeplabv3_resnet50`` is downloaded unless torch's cache has it. Of a checkpoint with averaged
    weights, those are taken.

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
        weights = from_torchvision(download(published.url, where=where, instead="the path of a checkpoint, or null"))
        return InitialWeights(str(path), weights, tuple(published.meta["categories"]))
    if path.suffix == ".safetensors":
        weights, about = checkpoint.read_safetensors(path)
        classes, normalization = (json_or_none(about.get(key, "")) for key in ("classes", "normalization"))
        return InitialWeights(str(path), weights, class_names(classes), normalization)
    content = checkpoint.load(path)
    weights = checkpoint.judged_weights_of(content, path)
    return InitialWeights(str(path), weights, class_names(content.get("classes")), content.get("normalization"))


def class_names(value: Any) -> tuple[str, ...] | None:
    """Names of classes as a file has them; None where it has something else, or nothing."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        return None
    return tuple(value)


def json_or_none(text: str) -> Any:
    """What JSON text says; None where it is none, as in the metadata of other programs."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def public_name(path: Path, *, where: str) -> str | None:
    """Find what torchvision calls the network that `path` means; None if it means a file.

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


def transfer(model: nn.Module, initial: InitialWeights) -> TransferReport:
    """Copy all weights whose names and shapes agree.

    Raises:
        CheckpointError: None agree, or one that does is not finite; nothing has been copied then.
    """
    own = model.state_dict()
    fitting = {}
    for name, value in initial.weights.items():
        if name in own and own[name].shape == value.shape:
            fitting[name] = value
    return _load(model, initial, fitting, {}, known=(), new=())


def transfer_by_class_name(
    model: nn.Module,
    initial: InitialWeights,
    classes: Sequence[str],
    axes: Mapping[str, Mapping[int, int]],
    *,
    where: str,
) -> TransferReport:
    """Copy weights as `transfer` does, but along axes that stand for classes, the rows of classes of the same name.

    Args:
        model: Its parameters are set; rows of classes that `initial` has not stay as they are.
        initial: Must say its classes.
        classes: Names of the model's classes, in the order of its logits.
        axes: From `class_axes`.
        where: Place of the wish in the config, for errors.

    Raises:
        ConfigError: `initial` does not name its classes, or none has the name of one of ours.
        CheckpointError: As `transfer`.
    """
    if initial.classes is None:
        raise ConfigError(f"{where}: {initial.source} does not say which classes it knows. Set it to false.")
    pairs = match_classes(classes, initial.classes)
    if not pairs:
        theirs = ", ".join(initial.classes[:6]) + (", ..." if len(initial.classes) > 6 else "")
        raise ConfigError(
            f"{where}: no class of {initial.source} ({theirs}) has the name of one here. Set it to false."
        )
    own = model.state_dict()
    fitting: dict[str, Tensor] = {}
    mapped: dict[str, Tensor] = {}
    for name, value in initial.weights.items():
        if name not in own:
            continue
        if name in axes:
            rows = _rows_of_classes(own[name], value, axes[name], pairs, (len(classes), len(initial.classes)))
            if rows is not None:
                mapped[name] = rows
        elif own[name].shape == value.shape:
            fitting[name] = value
    known = tuple(classes[index] for index in pairs)
    new = tuple(name for name in classes if name not in known)
    return _load(model, initial, fitting, mapped, known=known, new=new)


def class_axes(model: nn.Module, larger: nn.Module, num_classes: int) -> dict[str, dict[int, int]]:
    """Find which axes of which parameters stand for classes, and how many entries each class has there.

    What grows with the number of classes is found by comparison, so that classifiers, learned upsampling and scores
    that are refined by further convolutions are all treated alike, and no axis that is as long by accident.
    Behind all classes there may be entries of one more, of what is none of them.

    For example, with 19 classes: a classifier has 19 rows, and one class more adds 1. Learned upsampling by 4 has 304,
    and adds 16. EoMT has 20 rows, and adds 1: the last is "none of them".

    Args:
        model: Has `num_classes` classes.
        larger: The same with one class more; may be on the meta device.
        num_classes: Of `model`.
    """
    found: dict[str, dict[int, int]] = {}
    shapes = {name: value.shape for name, value in larger.state_dict().items()}
    for name, value in model.state_dict().items():
        for axis, (size, larger_size) in enumerate(zip(value.shape, shapes[name], strict=True)):
            rows = larger_size - size
            if rows and size in (rows * num_classes, rows * (num_classes + 1)):
                found.setdefault(name, {})[axis] = rows
    return found


def match_classes(ours: Sequence[str], theirs: Sequence[str]) -> dict[int, int]:
    """Find the index among `theirs` of each of `ours` that has the same name, but for case, spaces and punctuation."""
    exact = {name: index for index, name in enumerate(theirs)}
    keys = [_plain(name) for name in theirs]
    # Two of theirs that differ in case only are told apart by their exact names, or not at all.
    loose = {key: index for index, key in enumerate(keys) if key and keys.count(key) == 1}
    pairs = {}
    for index, name in enumerate(ours):
        other = exact.get(name, loose.get(_plain(name)))
        if other is not None:
            pairs[index] = other
    return pairs


def _plain(name: str) -> str:
    return re.sub(r"[\W_]", "", name.casefold())


def _rows_of_classes(
    own: Tensor, value: Tensor, axes: Mapping[int, int], pairs: Mapping[int, int], counts: tuple[int, int]
) -> Tensor | None:
    """Make `own` with the entries of classes in `pairs` from `value`; None if it cannot be.

    Args:
        own: A parameter of the model, of any shape.
        value: The one of that name in the file, as long as `own` along all axes that do not stand for classes.
        axes: Entries of each class along each axis that does.
        pairs: Index in the file of each class, by its index in the model.
        counts: Classes of the model, and in the file.
    """
    expected = list(own.shape)
    for axis, rows in axes.items():
        expected[axis] += rows * (counts[1] - counts[0])
    if list(value.shape) != expected:
        return None
    targets, sources = [], []
    for axis, size in enumerate(own.shape):
        ours = theirs = torch.arange(size)
        if axis in axes:
            rows = axes[axis]
            has_none = size != rows * counts[0]  # entries behind all classes, for what is none of them
            known = {**pairs, counts[0]: counts[1]} if has_none else pairs
            ours = _entries(known.keys(), rows)
            theirs = _entries(known.values(), rows)
        # An open mesh: the indices of each axis are broadcast along all others.
        shape = [-1 if other == axis else 1 for other in range(own.dim())]
        targets.append(ours.view(shape))
        sources.append(theirs.view(shape))
    result = own.clone()
    result[tuple(targets)] = value[tuple(sources)].to(own.dtype)
    return result


def _entries(classes: Collection[int], rows: int) -> Tensor:
    """Indices along an axis that has so many `rows` for each class."""
    return torch.cat([index * rows + torch.arange(rows) for index in classes])


def _load(
    model: nn.Module,
    initial: InitialWeights,
    loaded: Mapping[str, Tensor],
    mapped: Mapping[str, Tensor],
    *,
    known: tuple[str, ...],
    new: tuple[str, ...],
) -> TransferReport:
    """Put weights that fit into `model`: all of them or, if one is not finite, none."""
    if not loaded and not mapped:
        count = len(initial.weights)
        raise CheckpointError(f"{initial.source}: none of its {count} weights fits the model. Name another init_from.")
    taken = {**loaded, **mapped}
    if broken := [name for name, value in taken.items() if not value.isfinite().all()]:
        raise CheckpointError(f"{initial.source}: '{broken[0]}' is not finite. Name another init_from.")
    own = model.state_dict()
    model.load_state_dict(taken, strict=False)
    return TransferReport(
        initial.source,
        loaded=tuple(loaded),
        mapped=tuple(mapped),
        fresh=tuple(name for name in own if name not in taken),
        unused=tuple(name for name in initial.weights if name not in taken),
        known=known,
        new=new,
    )
