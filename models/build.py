"""From the JSON of `arch` to a model: check it, build it, initialize it, load weights, freeze."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor, nn

import models  # noqa: F401  registers everything
from base.base_model import BaseModel, Normalize, NormalizeEach
from models.blocks import Classifier, OutputStride
from models.encoder_decoder import BrickSpec, EncoderDecoder, compose
from models.weights import load_pretrained
from utils.errors import ConfigError
from utils.float32_convolutions import compute_in_float32
from utils.json_schema import object_schema
from utils.registry import BACKBONES, HEADS, MODELS, NECKS, Registry
from utils.schema import (
    Between,
    Component,
    Mismatch,
    check_arguments,
    convert_component,
    describe_arguments,
    did_you_mean,
    fill_defaults,
    join,
    parameters_of,
    to_json,
)


@dataclass(frozen=True)
class ModelOptions:
    """What may be said of every model, beside its own arguments.

    Args:
        pretrained: Start the backbone from public weights (downloaded unless they are in torch's cache), from a
            file, or from random numbers. Where true, a download that fails is said and random numbers are taken;
            "required" stops there.
        freeze_bn: Leave the statistics of all batch norms as they are, or of those in the backbone only.
        freeze_backbone: Train the decoder only. "cached" also keeps in files what the backbone makes of each image,
            unless augmentation draws images anew in every epoch.
        in_channels: Channels of the images.
        init: Random numbers that layers without pretrained weights start from: for rectified units
            (https://arxiv.org/abs/1502.01852), after Glorot and Bengio, or of standard deviation 0.09.
    """

    pretrained: bool | Literal["required"] | Path = False
    freeze_bn: bool | Literal["backbone"] = False
    freeze_backbone: bool | Literal["cached"] = False
    in_channels: Annotated[int, Between(1, 64)] = 3
    init: Literal["kaiming", "xavier", "trunc_normal"] = "kaiming"


logger = logging.getLogger("segwright")
OPTIONS = frozenset(field.name for field in fields(ModelOptions))


@dataclass(frozen=True)
class ArchConfig:
    """The "arch" section, taken apart by whom its `args` are for; what `check_model` makes of JSON.

    Args:
        model: Name of the model, or names of bricks joined by `+`, with the arguments of its own.
        options: What may be said of every model.
    """

    model: Component
    options: ModelOptions = ModelOptions()

    @property
    def type(self) -> str:
        """Name of the model, or names of bricks joined by `+`."""
        return self.model.type

    def to_json(self) -> dict[str, Any]:
        """The section as a config says it, with flat `args`."""
        return {"type": self.type, "args": {**to_json(self.model.args), **to_json(self.options)}}

    @classmethod
    def from_arguments(cls, kind: str, args: Mapping[str, Any], *, checked: str = "") -> ArchConfig:
        """Take apart `args` that have been checked and are complete."""
        own = {name: value for name, value in args.items() if name not in OPTIONS}
        return cls(Component(kind, own, checked=checked), ModelOptions(**{name: args[name] for name in OPTIONS}))


def check_model(value: Any, *, where: str, problems: list[str]) -> ArchConfig | None:
    """Parse the JSON of `arch`, with every default filled in; None if something is wrong with it.

    Args:
        value: A name, a LEGO string such as ``"resnet101+aspp_plus+deeplabv3_plus_decoder"``, or an object of
            `type` and `args`; the arguments are the model's own and those of `ModelOptions`.
        where: Its place in the config.
        problems: Receives one line for everything that is wrong.
    """
    try:
        component = convert_component(value, where)
    except Mismatch as mismatch:
        problems += mismatch.problems
        return None
    if "+" in component.type:
        component = _with_head(component, where)
        return _check_lego(component, where=where, problems=problems)
    if component.type not in MODELS and component.type in BACKBONES:
        hint = f"Add a head to it, as in '{component.type}+{PLAIN_HEAD}'"
        problems.append(f"{where}: '{component.type}' is a backbone, and no model alone. {hint}.")
        return None
    if MODELS.parse(value, where=where, problems=problems) is None:
        return None
    arguments, reserved = arguments_of_model(component.type), MODELS.reserved(component.type) - OPTIONS
    found = len(problems)
    checked = _check(arguments, component.args, reserved, where=where, problems=problems)
    if len(problems) > found:
        return None
    return ArchConfig.from_arguments(component.type, checked, checked=MODELS.kind)


def build_model(
    arch: Any,
    *,
    num_classes: int,
    where: str = "arch",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    load_weights: bool = True,
) -> BaseModel:
    """The model that `arch` describes, ready to be trained.

    Under ``torch.device("meta")``, and with `load_weights` off, it takes no memory and milliseconds.

    Args:
        arch: `arch` of a config, as JSON or as `check_model` gives it.
        num_classes: Channels of the logits.
        where: Place of `arch` in the config.
        mean: Mean of each channel of the images, as a share of their largest value; ImageNet's if None, and each
            image's own if empty.
        std: Standard deviation of each channel, likewise.
        load_weights: Load pretrained weights if the options ask for them; off where a checkpoint follows.

    Raises:
        ConfigError: The arguments do not fit the model, its bricks each other, or the weights the backbone.
    """
    problems: list[str] = []
    checked = arch if isinstance(arch, ArchConfig) else check_model(arch, where=where, problems=problems)
    if checked is None:
        raise ConfigError(*problems)
    own, options = checked.model, checked.options
    place = join(where, "args")

    if "+" in own.type:
        model = _build_lego(own, num_classes, options.in_channels, where=where)
    else:
        model = _build_registered(own, num_classes, options.in_channels, where=where)
    compute_in_float32(model)
    initialize(model, options.init)
    if mean is not None and std is not None and not mean and not std:
        model.normalize = NormalizeEach()
    elif mean is not None and std is not None:
        for numbers in (mean, std):
            if len(numbers) not in (1, options.in_channels):
                raise ConfigError(
                    f"{place}.in_channels: images of {options.in_channels} channels need one mean and one std, or as "
                    f"many as channels, but the data have {len(numbers)}. Set both to the channels of the data."
                )
        model.normalize = Normalize(mean, std)
    asks_for_backbone = {
        "freeze_backbone": options.freeze_backbone,
        "pretrained": options.pretrained,
        "freeze_bn": options.freeze_bn == "backbone",
    }
    for option, is_set in asks_for_backbone.items():
        if is_set and not model.backbone_modules():
            raise ConfigError(f"{place}.{option}: {own.type} has no backbone. Set it to false.")
    if options.freeze_backbone == "cached" and not isinstance(model, EncoderDecoder):
        raise ConfigError(f"{place}.freeze_backbone: {own.type} has no feature maps to keep. Set it to true.")
    if options.pretrained and load_weights:
        # A frozen backbone of random numbers would be of no use.
        pretrained = "required" if options.pretrained is True and options.freeze_backbone else options.pretrained
        model.lacks_pretrained = not load_pretrained(model, pretrained, where=f"{place}.pretrained")
    model.freeze(backbone=bool(options.freeze_backbone), norm=options.freeze_bn)
    return model


def initialize(model: nn.Module, init: Literal["kaiming", "xavier", "trunc_normal"]) -> None:
    """Draw the weights of all convolutions anew, from torch's global generator; biases are 0, batch norms 1 and 0.

    Classifiers get a standard deviation of 0.01 in any case, so that training starts near the loss of a uniform
    guess. A layer that starts from something else has a method `start_weights`, which is called last.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            _draw(module.weight, "classifier" if isinstance(module, Classifier) else init)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for module in model.modules():
        if callable(start := getattr(module, "start_weights", None)):
            start()


def _draw(weight: Tensor, kind: str) -> None:
    """Fill `weight` with random numbers of one of the kinds that `initialize` knows."""
    if kind == "classifier":
        nn.init.normal_(weight, std=0.01)
    elif kind == "kaiming":
        nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
    elif kind == "xavier":
        nn.init.xavier_normal_(weight)
    else:
        nn.init.trunc_normal_(weight, std=0.09, a=-0.18, b=0.18)


def arguments_of_model(name: str) -> Callable[..., None]:
    """Make a function whose signature is the schema of `arch.args` for the model `name`, with `ModelOptions`."""
    reserved = MODELS.reserved(name)
    own = {n: p for n, p in parameters_of(MODELS[name]).items() if n not in reserved}
    return _union(own, describe_arguments(MODELS[name]))


def arch_json_schema() -> dict[str, Any]:
    """Make the JSON Schema of `arch`; LEGO strings are allowed, their arguments not spelled out."""
    schema = MODELS.json_schema()
    for rule in schema["anyOf"][1]["allOf"]:
        name = rule["if"]["properties"]["type"]["const"]
        rule["then"]["properties"]["args"] = object_schema(arguments_of_model(name))
    return schema


def _union(own: Mapping[str, inspect.Parameter], texts: Mapping[str, str]) -> Callable[..., None]:
    options = parameters_of(ModelOptions)
    if clash := own.keys() & options.keys():
        raise TypeError(f"the arguments {sorted(clash)} belong to every model; name them otherwise")
    parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in (*own.values(), *options.values())]
    texts = {**texts, **describe_arguments(ModelOptions)}

    def arguments() -> None: ...

    arguments.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    arguments.__annotations__ = {p.name: p.annotation for p in parameters}
    arguments.__doc__ = "Args of a model.\n\nArgs:\n" + "\n".join(
        f"    {p.name}: {texts[p.name]}" for p in parameters if p.name in texts
    )
    return arguments


def _check(
    arguments: Callable[..., None], given: Any, reserved: Collection[str], *, where: str, problems: list[str]
) -> dict[str, Any]:
    place = join(where, "args")
    for name in sorted(reserved & given.keys()):
        problems.append(f"{join(place, name)}: is filled in by the framework. Remove it.")
    given = {name: value for name, value in given.items() if name not in reserved}
    return fill_defaults(arguments, check_arguments(arguments, given, where=place, problems=problems))


PLAIN_HEAD = "FCNHead"


def _with_head(component: Component, where: str) -> Component:
    """Complete bricks that end with a neck by a plain head."""
    last = component.type.rpartition("+")[2]
    if last in HEADS or last not in NECKS:
        return component
    logger.info("%s: '%s' has no head, so it gets a plain %s.", where, component.type, PLAIN_HEAD)
    return Component(f"{component.type}+{PLAIN_HEAD}", component.args)


def _lego_bricks(kind: str) -> list[tuple[Registry, str]]:
    first, *middle, last = kind.split("+")
    return [(BACKBONES, first), *((NECKS, name) for name in middle), (HEADS, last)]


def _check_lego(component: Component, *, where: str, problems: list[str]) -> ArchConfig | None:
    """Check a name such as ``"resnet101+ASPP+FCNHead"``, whose arguments stand under the names of its bricks."""
    found = len(problems)
    place = join(where, "args")
    bricks = _lego_bricks(component.type)
    names = [name for _, name in bricks]
    for registry, name in bricks:
        if name not in registry:
            problems.append(
                f"{join(where, 'type')}: no {registry.kind} is called '{name}' in '{component.type}'. "
                f"{did_you_mean(name, registry)}"
            )
    if len(set(names)) < len(names):
        problems.append(
            f"{join(where, 'type')}: a brick stands twice in '{component.type}', so that its arguments could not be "
            f'told apart. Use {{"type": "EncoderDecoder"}}.'
        )
    if len(problems) > found:
        return None
    own = {
        "output_stride": inspect.Parameter(
            "output_stride", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=OutputStride | None
        )
    }
    arguments = _union(own, {})
    known = parameters_of(arguments).keys() | set(names)
    for name in component.args.keys() - known:
        problems.append(f"{join(place, name)}: unknown key. {did_you_mean(name, known)}")
    given = {name: value for name, value in component.args.items() if name in known and name not in names}
    checked = _check(arguments, given, (), where=where, problems=problems)
    for registry, name in bricks:
        value = component.args.get(name, {})
        target, reserved = registry[name], registry.reserved(name)
        brick = check_arguments(target, value, where=join(place, name), reserved=reserved, problems=problems)
        checked[name] = fill_defaults(target, brick, reserved=reserved)
    return ArchConfig.from_arguments(component.type, checked) if len(problems) == found else None


def _build_registered(component: Component, num_classes: int, in_channels: int, *, where: str) -> BaseModel:
    if in_channels != 3 and "in_channels" not in parameters_of(MODELS[component.type]):
        place = join(where, "args.in_channels")
        raise ConfigError(f"{place}: {component.type} takes 3 channels only. Choose another model.")
    try:
        model: BaseModel = MODELS.build(component, where=where, num_classes=num_classes, in_channels=in_channels)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{where}: {component.type} {error}. Change its arguments.") from error
    return model


def _build_lego(component: Component, num_classes: int, in_channels: int, *, where: str) -> BaseModel:
    placed = [
        BrickSpec(join(join(where, "args"), name), Component(name, component.args[name], checked=registry.kind))
        for registry, name in _lego_bricks(component.type)
    ]
    return compose(
        num_classes,
        in_channels,
        join(where, "args"),
        backbone=placed[0],
        necks=placed[1:-1],
        head=placed[-1],
        output_stride=component.args["output_stride"],
    )
