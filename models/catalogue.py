"""Write `docs/catalogue.md`: every model and brick in the registries, with what a config may say of it.

``python -m models.catalogue > docs/catalogue.md``
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import torch
from torch import nn

from base.base_model import Backbone, FeatureShape
from models.backbones.timm_encoders import TimmEncoder
from models.build import ModelOptions, build_model
from models.costs import read_costs
from models.weights import public_weights
from utils.describe import summary
from utils.registry import BACKBONES, HEADS, MODELS, NECKS, Registry
from utils.schema import EMPTY, Component, describe_arguments, parameters_of, show, spell

INTRODUCTION = """\
# Catalogue of models

<!-- Written by `python -m models.catalogue > docs/catalogue.md`; a test compares both. -->

A model is named in `arch.type` of a config and takes the arguments below in `arch.args`, beside those of all models.
Backbones, necks and heads are put together by the model `EncoderDecoder`, or by a name such as
`"resnet101+ASPP+DeepLabV3PlusHead"`. Parameters are in millions, at 21 classes and with default arguments, those of
auxiliary heads among them; a model without output strides of its own has none to choose.

Multiply-adds are billions for one image of 512x512 and of 1024x2048, as `python -m models.costs` counts them. Images a
second are those of one thread, one image of 512x512 at a time, as `python -m benchmarks.speed --json` measured them
{machine}; a dash means that nobody has.
"""

WEIGHTS = """\
Channels are those of levels 1 to 5, whose strides are 2 to 32 undilated; multiply-adds as above, without a head.

torchvision states no license for its weights: ["may have their own licenses or terms and conditions derived from the
dataset used for training"](https://github.com/pytorch/vision#pre-trained-model-license), which is ImageNet. Licenses of
timm's weights are what their authors state, `timm.get_pretrained_cfg(NAME).license`; they are logged where weights are
loaded. Not all allow commercial use: Hiera's are CC-BY-NC 4.0, DINOv3's have a license of their own, and SegFormer's
encoders (MiT), which NVIDIA publishes for research alone, are not offered: `timm/pvt_v2_b0` to `b5` are of that kind.
"""

FITTING = """\
## What fits what

A head or neck fits where the levels that it needs are offered; otherwise it is refused, with the levels there are,
before training begins. All backbones below offer levels 1 to 5, and necks leave all levels in place, so that
everything fits: {backbones} backbones at 5 output strides, {necks} necks or none, {heads} heads, {total:,}
combinations. `pytest -m slow tests/test_zoo.py -k all_bricks` builds each of them, takes a training step that must
reach every parameter, evaluates it, and counts it in this table. Encoders of timm may lack level 1, or some output
strides; they are asked when they are built.

Necks: {neck_names}. Heads: {head_names}.
"""

STRIDES = (32, 16, 8, 4, 2)
NUM_CLASSES = 21
COSTS = ("multiply-adds, 512x512", "1024x2048")
ROOT = Path(__file__).parent.parent
VERIFIED = ROOT / "docs" / "verified.json"  # written by tests/test_zoo.py
SPEED = ROOT / "benchmarks" / "results" / "speed.json"


def catalogue() -> str:
    """The whole document, in Markdown."""
    resnet50: Backbone = _build(BACKBONES, "resnet50", in_channels=3, output_stride=16)
    lines = [
        INTRODUCTION.format(machine=_machine()),
        *_models(),
        "",
        *_fitting(),
        *_backbones(),
        *_bricks("Necks", NECKS, resnet50.shapes),
        *_bricks("Heads", HEADS, resnet50.shapes),
    ]
    return "\n".join(lines) + "\n"


# Chapters, each a list of lines


def _models() -> list[str]:
    costs, speeds = read_costs(), _speeds()
    rows = []
    for name in _names(MODELS):
        parameters, counted, speed = "", ["", ""], ""
        if name != "EncoderDecoder":  # which is nothing without its bricks
            with torch.device("meta"):
                parameters = _millions(build_model(Component(name), num_classes=NUM_CLASSES))
            counted = [_short(value) for value in costs[name]]
            speed = _short(speeds[name]) if name in speeds else "–"
        rows.append((f"`{name}`", parameters, *counted, speed, _strides(MODELS[name]), summary(MODELS, name)))
    columns = ("model", "parameters", *COSTS, "images/s", "output strides", "what it is")
    table = _table(columns, rows)
    common = ["", "### Arguments of all models", "", *_arguments(ModelOptions)]
    return ["## Models", "", *table, *common, *_details(MODELS)]


def _fitting() -> list[str]:
    """How many combinations of necks and heads have been verified on each backbone at each output stride."""
    necks, heads = _shortest_names(NECKS), _shortest_names(HEADS)
    combinations = (len(necks) + 1) * len(heads)  # one more, because there may be no neck
    text = FITTING.format(
        backbones=len(BACKBONES),
        necks=len(necks),
        heads=len(heads),
        total=len(BACKBONES) * len(STRIDES) * combinations,
        neck_names=", ".join(necks),
        head_names=", ".join(heads),
    )
    verified = json.loads(VERIFIED.read_text(encoding="utf-8"))
    rows = []
    for name in _names(BACKBONES):
        counts = [verified.get(f"{name}/{stride}", 0) for stride in STRIDES]
        rows.append((f"`{name}`", *(f"{count} of {combinations}" for count in counts)))
    return [text, *_table(("verified at output stride", *map(str, STRIDES)), rows), ""]


def _backbones() -> list[str]:
    costs = read_costs()
    rows = []
    for name in _names(BACKBONES):
        backbone: Backbone = _build(BACKBONES, name, in_channels=3)
        channels = ", ".join(str(shape.channels) for shape in backbone.shapes)
        counted = [_short(value) for value in costs[name]]
        weights = public_weights(backbone) or ("–", "–")
        rows.append((f"`{name}`", _millions(backbone), *counted, channels, _strides(BACKBONES[name]), *weights))
    return [
        "## Backbones",
        "",
        WEIGHTS,
        *_table(("backbone", "parameters", *COSTS, "channels", "output strides", "public weights", "license"), rows),
        *_details(BACKBONES),
        "",
        "### timm/NAME",
        "",
        *_text(TimmEncoder),
        "",
        "It needs `pip install timm`. A network or an output stride that does not fit is refused, with those that do.",
        "",
        *_arguments(functools.partial(TimmEncoder, name=""), BACKBONES.reserved("timm/NAME")),
    ]


def _speeds() -> dict[str, float]:
    """Images per second by name, as far as they have been measured."""
    measured = json.loads(SPEED.read_text(encoding="utf-8"))["figures"]
    return {figure["what"]: figure["median"] for figure in measured}


def _machine() -> str:
    """What the speeds were measured on, and with which commit."""
    stamp = json.loads(SPEED.read_text(encoding="utf-8"))["environment"]
    return f"({stamp['device_name']}, load {stamp['load']:g}, commit {stamp['git']})"


def _bricks(title: str, registry: Registry, shapes: tuple[FeatureShape, ...]) -> list[str]:
    rows = []
    for name in _names(registry):
        brick = _build(registry, name, shapes=shapes, num_classes=NUM_CLASSES)
        levels = ", ".join(_needed_levels(registry, name, shapes)) or "any"
        rows.append((f"`{name}`", _millions(brick), levels, summary(registry, name)))
    return [
        "",
        f"## {title}",
        "",
        "Parameters are those on the maps of a ResNet-50 of output stride 16.",
        "",
        *_table((registry.kind, "parameters", "levels it needs", "what it does"), rows),
        *_details(registry),
    ]


def _details(registry: Registry) -> list[str]:
    """Text, source and arguments of each class or function, under all its names."""
    lines = []
    for names in _synonyms(registry):
        target = registry[names[0]]
        lines += ["", f"### {', '.join(names)}", "", *_text(_documented(target)), ""]
        lines += _arguments(target, registry.reserved(names[0]))
    return lines


# What the registries hold


def _names(registry: Registry) -> list[str]:
    """All names, without regard to case, and `resnet50` before `resnet101`."""
    return sorted(registry, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(4), name.lower()))


def _synonyms(registry: Registry) -> list[list[str]]:
    """The names of each class or function; one that takes other arguments, or has other defaults, stands alone."""
    found: dict[Any, list[str]] = {}
    for name in _names(registry):
        target = registry[name]
        signature = str(list(parameters_of(target).values()))
        found.setdefault((_documented(target), signature), []).append(name)
    return list(found.values())


def _shortest_names(registry: Registry) -> list[str]:
    return [min(names, key=len) for names in _synonyms(registry)]


def _documented(target: Callable[..., Any]) -> Callable[..., Any]:
    return target.func if isinstance(target, functools.partial) else target


def _build(registry: Registry, name: str, /, *, output_stride: int | None = None, **facts: Any) -> Any:
    """A component without memory for its parameters, which are only counted."""
    args = {} if output_stride is None else {"output_stride": output_stride}
    with torch.device("meta"):
        return registry.build(Component(name, args), where=name, **facts)


def _needed_levels(registry: Registry, name: str, shapes: tuple[FeatureShape, ...]) -> list[str]:
    """The levels without which the component cannot be built: each is left out once, to see."""
    needed = []
    for shape in shapes:
        others = tuple(other for other in shapes if other is not shape)
        try:
            _build(registry, name, shapes=others, num_classes=NUM_CLASSES)
        except ValueError:
            needed.append(str(shape.level))
    return needed


def _millions(module: nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()) / 1e6:.2f}"


def _short(value: float) -> str:
    """A number to three digits."""
    return f"{float(f'{value:.3g}'):g}"


def _strides(target: Callable[..., Any]) -> str:
    """The output strides that the annotation of that parameter lists: a Literal, or a union of one and None."""
    parameter = parameters_of(target).get("output_stride")
    if parameter is None:
        return "–"
    strides: set[int] = set()
    for option in (parameter.annotation, *get_args(parameter.annotation)):
        if get_origin(option) is Literal:
            strides.update(get_args(option))
    return ", ".join(map(str, sorted(strides, reverse=True)))


# Markdown


def _text(documented: Callable[..., Any]) -> list[str]:
    """The docstring without its arguments."""
    text = (inspect.getdoc(documented) or "").partition("\nArgs:")[0].strip()
    return text.replace("``", "`").split("\n")


def _arguments(target: Callable[..., Any], reserved: frozenset[str] = frozenset()) -> list[str]:
    """A table of the arguments that a config may set."""
    texts = describe_arguments(target)
    rows = []
    for name, parameter in parameters_of(target).items():
        if name not in reserved:
            kind = "" if parameter.annotation is EMPTY else spell(parameter.annotation)
            rows.append((f"`{name}`", kind, _default(parameter), texts.get(name, "")))
    return _table(("argument", "type", "default", "meaning"), rows) if rows else ["It has no arguments."]


def _default(parameter: inspect.Parameter) -> str:
    if parameter.default is EMPTY:
        return "required"
    plain = parameter.default.type if isinstance(parameter.default, Component) else parameter.default
    return f"`{show(plain)}`"


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    lines = []
    for row in (columns, ("---",) * len(columns), *rows):
        cells = [cell.replace("|", "\\|") for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print(catalogue(), end="")
