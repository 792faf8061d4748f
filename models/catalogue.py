"""`docs/catalogue.md`: every model and brick in the registries, with what a config may say of it.

``python -m models.catalogue > docs/catalogue.md``
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from base.base_model import Backbone, FeatureShape
from models.backbones.timm_encoders import TimmEncoder
from models.build import ModelOptions, build_model
from utils.describe import summary
from utils.registry import BACKBONES, HEADS, MODELS, NECKS, Registry
from utils.schema import EMPTY, Component, describe_arguments, parameters_of, show, spell

INTRODUCTION = """\
# Catalogue of models

<!-- Written by `python -m models.catalogue > docs/catalogue.md`; a test compares both. -->

A model is named in `arch.type` of a config and takes the arguments below in `arch.args`, beside those of all models.
Backbones, necks and heads are put together by the model `EncoderDecoder`, or by a name such as
`"resnet101+ASPP+DeepLabV3PlusHead"`. Parameters are in millions, at 21 classes and with default arguments; a model
without output strides of its own has none to choose.
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
VERIFIED = Path(__file__).parent.parent / "docs" / "verified.json"  # written by tests/test_zoo.py


def catalogue() -> str:
    """The whole document, in Markdown."""
    lines = [INTRODUCTION, "## Models", ""]
    lines += _table(("model", "parameters", "output strides", "what it is"), map(_model_row, _own(MODELS)))
    lines += ["", "### Arguments of all models", "", *_arguments(ModelOptions)]
    lines += _details(MODELS)
    lines += ["", *_fitting()]
    lines += ["## Backbones", "", "Channels are those of levels 1 to 5, whose strides are 2 to 32 undilated.", ""]
    columns = ("backbone", "parameters", "channels", "output strides", "public weights")
    lines += [*_table(columns, map(_backbone_row, _own(BACKBONES))), *_details(BACKBONES), *_timm()]
    shapes = _build(BACKBONES, "resnet50", in_channels=3, output_stride=16).shapes
    for title, registry in (("Necks", NECKS), ("Heads", HEADS)):
        lines += ["", f"## {title}", "", "Parameters are those on the maps of a ResNet-50 of output stride 16.", ""]
        rows = [_brick_row(registry, name, shapes) for name in _own(registry)]
        lines += _table((registry.kind, "parameters", "levels it needs", "what it does"), rows)
        lines += _details(registry)
    return "\n".join(lines) + "\n"


def _fitting() -> Iterator[str]:
    """How many combinations of necks and heads have been verified on each backbone at each output stride."""
    necks, heads = ([min(names, key=len) for names in _distinct(each).values()] for each in (NECKS, HEADS))
    each = (len(necks) + 1) * len(heads)
    total = len(BACKBONES) * len(STRIDES) * each
    names = {"neck_names": ", ".join(necks), "head_names": ", ".join(heads)}
    yield FITTING.format(backbones=len(BACKBONES), necks=len(necks), heads=len(heads), total=total, **names)
    found = json.loads(VERIFIED.read_text(encoding="utf-8"))
    rows = [
        (f"`{name}`", *(f"{found.get(f'{name}/{stride}', 0)} of {each}" for stride in STRIDES))
        for name in _own(BACKBONES)
    ]
    yield from _table(("verified at output stride", *map(str, STRIDES)), rows)
    yield ""


def _own(registry: Registry) -> list[str]:
    return sorted(registry, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(4), name.lower()))


def _distinct(registry: Registry) -> dict[Any, list[str]]:
    """Each registered class or function, and its names."""
    names: dict[Any, list[str]] = {}
    for name in _own(registry):
        names.setdefault(_documented(registry[name]), []).append(name)
    return names


def _documented(target: Callable) -> Any:
    return target.func if isinstance(target, functools.partial) else target


def _build(registry: Registry, name: str, /, *, output_stride: int | None = None, **facts: Any) -> Any:
    args = {} if output_stride is None else {"output_stride": output_stride}
    with torch.device("meta"):
        return registry.build(Component(name, args), where=name, **facts)


def _millions(module: nn.Module) -> str:
    return f"{sum(p.numel() for p in module.parameters()) / 1e6:.2f}"


def _strides(target: Callable) -> str:
    parameter = parameters_of(target).get("output_stride")
    if parameter is None:
        return "–"
    choices = [c for option in (parameter.annotation, *get_args(parameter.annotation)) for c in get_args(option)]
    return ", ".join(str(stride) for stride in sorted({c for c in choices if isinstance(c, int)}, reverse=True))


def _model_row(name: str) -> tuple[str, ...]:
    if name == "EncoderDecoder":
        return f"`{name}`", "", _strides(MODELS[name]), summary(MODELS, name)
    with torch.device("meta"):
        model = build_model(Component(name), num_classes=21)
    return f"`{name}`", _millions(model), _strides(MODELS[name]), summary(MODELS, name)


def _backbone_row(name: str) -> tuple[str, ...]:
    backbone: Backbone = _build(BACKBONES, name, in_channels=3)
    channels = ", ".join(str(shape.channels) for shape in backbone.shapes)
    source = backbone.weights if "/" in (backbone.weights or "/") else f"torchvision/{backbone.weights}"
    return f"`{name}`", _millions(backbone), channels, _strides(BACKBONES[name]), source or "–"


def _brick_row(registry: Registry, name: str, shapes: tuple[FeatureShape, ...]) -> tuple[str, ...]:
    facts: dict[str, Any] = {"num_classes": 21}
    needed = []
    for shape in shapes:
        try:
            _build(registry, name, shapes=tuple(other for other in shapes if other is not shape), **facts)
        except ValueError:
            needed.append(str(shape.level))
    levels = ", ".join(needed) or "any"
    return f"`{name}`", _millions(_build(registry, name, shapes=shapes, **facts)), levels, summary(registry, name)


def _details(registry: Registry) -> Iterator[str]:
    """Text, source and arguments of each class or function, under all its names."""
    for documented, aliases in _distinct(registry).items():
        yield from ("", f"### {', '.join(aliases)}", "", *_text(documented), "")
        yield from _arguments(registry[aliases[0]], registry.reserved(aliases[0]))


def _text(documented: Any) -> list[str]:
    text = (inspect.getdoc(documented) or "").partition("\nArgs:")[0].strip()
    return text.replace("``", "`").split("\n")


def _timm() -> list[str]:
    return [
        "",
        "### timm/NAME",
        "",
        *_text(TimmEncoder),
        "",
        "It needs `pip install timm`. A network or an output stride that does not fit is refused, with those that do.",
        "",
        *_arguments(functools.partial(TimmEncoder, name=""), BACKBONES.reserved("timm/NAME")),
    ]


def _arguments(target: Callable, reserved: frozenset[str] = frozenset()) -> list[str]:
    texts, rows = describe_arguments(target), []
    for name, parameter in parameters_of(target).items():
        if name in reserved:
            continue
        kind = "" if parameter.annotation is EMPTY else spell(parameter.annotation)
        if parameter.default is EMPTY:
            default = "required"
        else:
            plain = parameter.default.type if isinstance(parameter.default, Component) else parameter.default
            default = f"`{show(plain)}`"
        rows.append((f"`{name}`", kind, default, texts.get(name, "")))
    return _table(("argument", "type", "default", "meaning"), rows) if rows else ["It has no arguments."]


def _table(columns: tuple[str, ...], rows: Any) -> list[str]:
    cells = [columns, ("---",) * len(columns), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]


if __name__ == "__main__":
    print(catalogue(), end="")
