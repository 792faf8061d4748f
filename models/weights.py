"""Pretrained weights: from torchvision, timm or a file, into a backbone, with a report of what became of each key."""

from __future__ import annotations

import logging
import re
import threading
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from base.base_model import Backbone, BaseModel, Normalize
from models.backbones.timm_encoders import import_timm
from utils import checkpoint
from utils.errors import CheckpointError, ConfigError, first_line

logger = logging.getLogger("segwright")

PATIENCE = 3.0  # seconds to wait for a server's first answer
CLASSIFIER = ("fc.", "classifier.")  # what follows the features in classification networks
LICENSES = {  # as timm states them
    "timm/xception41.tf_in1k": "Apache-2.0",
    "timm/xception65.tf_in1k": "Apache-2.0",
    "timm/xception71.tf_in1k": "Apache-2.0",
}
NOT_STATED = "not stated"


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys of a state dict.

    Args:
        source: File or address they came from.
        loaded: Parameters and buffers that were set, as they are in the file.
        mapped: Those that were adapted first: to another number of image channels, or made from others.
        missing: Parameters of the network that keep their random start.
        ignored: Keys of the file that nothing was made of.
    """

    source: str
    loaded: tuple[str, ...] = ()
    mapped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} loaded"]
        for what in ("mapped", "missing", "ignored"):
            if keys := getattr(self, what):
                parts.append(f"{len(keys)} {what} ({_some(keys)})")
        return f"weights from {self.source}: {', '.join(parts)}"


class DownloadFailed(ConfigError):
    """Public weights that could not be fetched."""


def load_pretrained(model: BaseModel, pretrained: bool | Literal["required"] | Path, *, where: str) -> list[LoadReport]:
    """Load pretrained weights into the backbone of `model` and log what was loaded; nothing, if it cannot be fetched.

    Args:
        model: Its `backbone_modules` are filled, each from the same file if a path is given.
        pretrained: True for the public weights, which are downloaded unless torch's cache has them; "required" for
            these and nothing else; or a file.
        where: Place of `pretrained` in the config, for errors.

    Raises:
        ConfigError: There is nothing to load into, nothing to load, or both do not fit.
    """
    try:
        return _load_pretrained(model, pretrained, where=where)
    except DownloadFailed as error:
        if pretrained is not True:
            raise
        logger.warning('NOT PRETRAINED, training starts from random numbers ("required" would stop here): %s', error)
        return []


def check_pretrained(model: BaseModel, pretrained: bool | str | Path, *, where: str) -> None:
    """Refuse `pretrained` where there is nothing to load into, or where nobody publishes what would fit; reads no file.

    Raises:
        ConfigError: So it is.
    """
    if not pretrained:
        return
    backbones = backbones_of(model)
    if not backbones:
        raise ConfigError(f"{where}: this model has no backbone that could be pretrained. Set it to false.")
    if not isinstance(pretrained, Path) and any(backbone.weights is None for backbone in backbones):
        raise ConfigError(
            f"{where}: no public weights are known for this backbone as it is configured. "
            f"Give the path of a state dict, or false."
        )


def backbones_of(model: BaseModel) -> list[Backbone]:
    """List the backbones of `model`; a network in one piece has none."""
    return [module for module in model.backbone_modules() if isinstance(module, Backbone)]


def license_of(weights: str) -> str:
    """Return the license of public weights as who publishes them states it.

    Args:
        weights: As a backbone names them: torchvision's by their name alone, timm's as ``timm/NAME``.

    Raises:
        ConfigError: timm is needed to tell, and is not installed.
    """
    if weights in LICENSES or not weights.startswith("timm/"):
        return LICENSES.get(weights, NOT_STATED)
    published = import_timm(weights, where="pretrained").get_pretrained_cfg(weights.removeprefix("timm/"))
    return published.license or NOT_STATED if published else NOT_STATED


def public_weights(backbone: Backbone) -> tuple[str, str] | None:
    """Name and license of the public weights that fit `backbone` as it is configured; None where there are none."""
    if backbone.weights is None:
        return None
    name = backbone.weights if "/" in backbone.weights else f"torchvision/{backbone.weights}"
    return name, license_of(backbone.weights)


def _load_pretrained(model: BaseModel, pretrained: bool | str | Path, *, where: str) -> list[LoadReport]:
    check_pretrained(model, pretrained, where=where)
    backbones, found = backbones_of(model), []
    for backbone in backbones:  # all are read before one is changed
        if isinstance(pretrained, Path):
            found.append((str(pretrained), read_state(pretrained, where=where)))
        else:
            found.append(_public_state(str(backbone.weights), where=where))
    reports = []
    for backbone, (source, state) in zip(backbones, found, strict=True):
        reports.append(load_backbone(backbone, state, source=source, where=where))
        logger.info("%s", reports[-1])
        if source.startswith("timm's "):
            _compare_with_published(model, source.removeprefix("timm's "))
    return reports


def _compare_with_published(model: BaseModel, name: str) -> None:
    """Say under which license timm's weights `name` are; warn where they are used to another normalization."""
    published = import_timm(f"timm/{name}", where="pretrained").get_pretrained_cfg(name)
    logger.info("license of timm/%s: %s", name, license_of(f"timm/{name}"))
    if not isinstance(model.normalize, Normalize):
        return
    for ours, theirs in ((model.normalize.mean, published.mean), (model.normalize.std, published.std)):
        own = ours.flatten().cpu() / 255
        if len(own) == len(theirs) and not torch.allclose(own, torch.tensor(theirs), atol=1e-3):
            numbers = f'{{"mean": {list(published.mean)}, "std": {list(published.std)}}}'
            logger.warning('timm/%s was trained on other numbers; set "normalization": %s.', name, numbers)
            return


def load_backbone(backbone: Backbone, state: Mapping[str, Tensor], *, source: str, where: str) -> LoadReport:
    """Load `state` into `backbone`, adapted to its number of image channels.

    Raises:
        ConfigError: Parameters are missing or have other shapes; nothing has been loaded then.
    """
    own = backbone.state_dict()
    given = _below_backbone(dict(state), own)
    adapted = dict(backbone.adapt_weights(given))
    used = {id(value) for key, value in adapted.items() if key in own}  # also under another name
    mapped = [key for key in adapted if key in own and key not in given]
    first = next((n for n, m in backbone.named_modules() if isinstance(m, nn.Conv2d)), "") + ".weight"
    if first in adapted and first in own and adapted[first].shape != own[first].shape:
        adapted[first] = adapt_channels(adapted[first], own[first].shape[1])
        mapped.append(first)

    taken = {key: value for key, value in adapted.items() if key in own}
    missing = [key for key in own if key not in adapted and not key.endswith(".num_batches_tracked")]
    if lacking := [key for key in missing if not _is_unpublished(key, backbone)]:
        raise ConfigError(
            f"{where}: {source} lacks {len(lacking)} of {len(own)} parameters of {type(backbone).__name__} "
            f"({_some(lacking)}); it has {_some(list(given))}. Give weights of the same network."
        )
    _check_shapes(taken, own, source=source, where=where, kind=type(backbone).__name__)
    backbone.load_state_dict(taken, strict=False)
    return LoadReport(
        source,
        loaded=tuple(key for key in taken if key not in mapped),
        mapped=tuple(mapped),
        missing=tuple(missing),
        ignored=tuple(key for key, value in given.items() if key not in own and id(value) not in used),
    )


def _is_unpublished(key: str, backbone: Backbone) -> bool:
    """Whether no public weights have what `key` names."""
    return any(part in key for part in backbone.unpublished)


def _check_shapes(
    taken: Mapping[str, Tensor], own: Mapping[str, Tensor], *, source: str, where: str, kind: str
) -> None:
    """Refuse weights of other shapes than the network's, or that are not finite.

    Raises:
        ConfigError: There are some.
    """
    if misshapen := [key for key in own if key in taken and taken[key].shape != own[key].shape]:
        key = misshapen[0]
        raise ConfigError(
            f"{where}: in {source}, {len(misshapen)} parameters of {kind} have other shapes, such as {key}: "
            f"{list(taken[key].shape)} for {list(own[key].shape)}. Give weights of the same network."
        )
    if broken := [key for key, value in taken.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ConfigError(f"{where}: {source} has NaN or infinite values in {_some(broken)}. Give an intact file.")


def adapt_channels(weight: Tensor, in_channels: int) -> Tensor:
    """Adapt the weights (K, C, h, w) of a first convolution to images of `in_channels` channels.

    Further channels start as the mean of the old ones, fewer than before too, and all are scaled: an image whose
    channels are all alike gives the same features as before.
    """
    old = weight.shape[1]
    mean = weight.mean(1, keepdim=True)
    kept = weight if in_channels > old else weight[:, :0]
    added = mean.expand(-1, in_channels - kept.shape[1], -1, -1)
    return torch.cat([kept, added], dim=1) * (old / in_channels)


def read_state(path: Path, *, where: str) -> dict[str, Tensor]:
    """Read the weights in a file: a bare state dict, or that of a checkpoint; without the prefixes of wrappers.

    The check before training calls it too, so that both accept the same files.

    Args:
        path: Written by `torch.save`; nothing in it is executed.
        where: Its place in the config, for errors.

    Raises:
        ConfigError: The file is missing or damaged, or holds no weights.
    """
    try:
        return checkpoint.weights_of(checkpoint.load(path), path)
    except CheckpointError as error:
        raise ConfigError(f"{where}: {error}") from error


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the state dict of torchvision's FCN or DeepLabV3 on ResNet for our bricks.

    The result fits an `EncoderDecoder` of a ResNet of output stride 8, an `FCNHead` (behind an `ASPP`, with
    ``channels=256``, for DeepLabV3) and, if torchvision's has one, an auxiliary `FCNHead` of level 4.
    """
    rules = {
        r"^classifier\.0\.(convs|project)\.": r"necks.0.\1.",
        r"^classifier\.4\.": "head.classify.",
        r"^aux_classifier\.([01])\.": r"aux_heads.0.convs.0.\1.",
        r"^aux_classifier\.4\.": "aux_heads.0.classify.",
    }
    if any(key.startswith("classifier.0.convs.") for key in state):
        rules |= {r"^classifier\.1\.": "head.convs.0.0.", r"^classifier\.2\.": "head.convs.0.1."}
    else:
        rules |= {r"^classifier\.([01])\.": r"head.convs.0.\1."}

    def rename(key: str) -> str:
        for pattern, new in rules.items():
            if re.match(pattern, key):
                return re.sub(pattern, new, key)
        return key

    return {rename(key): value for key, value in state.items()}


def _public_state(name: str, *, where: str) -> tuple[str, dict[str, Tensor]]:
    if name.startswith("timm/"):
        return _timm_state(name.removeprefix("timm/"), where=where)
    url = public_url(name)
    return url, download(url, where=where, instead="the path of a state dict, or false")


def download(url: str, *, where: str, instead: str) -> dict[str, Tensor]:
    """Download the state dict at `url`, or take it from torch's cache if it is there.

    Args:
        url: Ends in the file's name, which holds the beginning of its SHA-256, as torchvision's do.
        where: Place in the config of what asked for it, for errors.
        instead: What else that could say, for errors.

    Raises:
        ConfigError: It cannot be had; the message names the file and where to put it.
    """
    file = cached_file(url)
    cached = file.exists()
    try:
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", check_hash=True, weights_only=True)
    except Exception as error:  # network, disk, hash and unpickling all fail in ways of their own
        reason = first_line(error)
        if cached:
            raise ConfigError(
                f"{where}: {file} cannot be read ({reason}). Delete it, or replace it by {url}"
            ) from error
        raise DownloadFailed(
            f"{where}: {url} cannot be downloaded ({reason}). Put that file at {file}, give {instead}."
        ) from error


def public_url(name: str) -> str:
    """Return the address of torchvision's ImageNet weights of the classification network `name`."""
    from torchvision.models import get_model_weights

    enum: Any = get_model_weights(name)
    # The first release, where there are two: the second's recipe gains on ImageNet, not in dense prediction, and
    # torchvision's own segmentation networks start from the first.
    return str(getattr(enum, "IMAGENET1K_V1", enum.DEFAULT).url)


def cached_file(url: str) -> Path:
    """Return the file in torch's cache that is made of what is at `url`."""
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]


def where_to_get(url: str) -> str:
    """Say where the weights at `url` can be had now: "in torch's cache" or "by download"; empty for nowhere."""
    if cached_file(url).exists():
        return "in torch's cache"
    return "by download" if is_reachable(url) else ""


def is_reachable(url: str) -> bool:
    """Ask the server for the header of `url`, for at most `PATIENCE` seconds."""
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(url, method="HEAD")
        with suppress(OSError, ValueError), urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            answers.append(answer.status == 200)

    # Looking up a name takes no notice of timeouts, so that it is not waited for.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers and answers[0])


def _timm_state(name: str, *, where: str) -> tuple[str, dict[str, Tensor]]:
    """Take the weights of a whole classification network from timm, by its own names."""
    timm = import_timm(f"timm/{name}", where=where)
    published = timm.get_pretrained_cfg(name)
    if not published or not published.has_weights:  # timm itself would go on with random numbers
        raise ConfigError(f"{where}: timm has no weights of {name}. Give the path of a state dict, or false.")
    try:
        with torch.random.fork_rng(devices=[]):  # its random start is of no use, and must not change ours
            return f"timm's {name}", timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # network, disk and hub all fail in ways of their own
        reason = first_line(error)
        raise DownloadFailed(
            f"{where}: the weights of timm/{name} cannot be downloaded ({reason}). Fetch them from "
            f"https://huggingface.co/{published.hf_hub_id} and give the path of a state dict, or false."
        ) from error


def _below_backbone(state: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take from `state` that of the backbone alone, where it is one of a whole segmentation network."""
    inside = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    return inside if len(inside.keys() & own.keys()) > len(state.keys() & own.keys()) else state


def _some(keys: list[str] | tuple[str, ...]) -> str:
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
