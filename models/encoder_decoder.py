"""Put backbone, necks and heads together freely: the model, and what builds it from the names of its bricks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor, nn

from base.base_model import Backbone, BaseModel, FeatureShape, Head, MissingLevel, Neck
from models.blocks import OutputStride
from utils.errors import ConfigError
from utils.outputs import SegOutput
from utils.registry import BACKBONES, HEADS, MODELS, NECKS, Registry
from utils.schema import Component, parameters_of


class EncoderDecoder(BaseModel):
    """A backbone, any number of necks, one head, and auxiliary heads that exist only to be trained on.

    Args:
        backbone: Receives the images.
        necks: Each receives the maps of the one before it, the first those of the backbone.
        head: Receives the maps of the last neck.
        aux_heads: Each receives the maps of the backbone.
        in_channels: Channels of the images.
    """

    def __init__(
        self,
        backbone: Backbone,
        necks: Sequence[Neck],
        head: Head,
        aux_heads: Sequence[Head] = (),
        *,
        in_channels: int = 3,
    ) -> None:
        super().__init__(in_channels)
        self.backbone = backbone
        self.necks = nn.Sequential(*necks)
        self.head = head
        self.aux_heads = nn.ModuleList(aux_heads)
        own = getattr(backbone, "multiple", 1)  # which the backbone sees to
        maps = [*backbone.shapes, *(shape for neck in necks for shape in neck.shapes)]
        self.multiple = 1 if own > 1 else max(shape.stride for shape in maps)
        self.needs_batch = any(brick.needs_batch for brick in (backbone, *necks, head, *aux_heads))
        for index, neck in enumerate(necks):
            if type(neck).keep is not Neck.keep:
                neck.keep(_levels_taken([*necks[index + 1 :], head], neck.shapes))

    def predict(self, images: Tensor) -> SegOutput:
        features = self.backbone(images)
        found = _output(self.head(self.necks(features)))
        aux = found.aux
        for head in self.aux_heads if self.training else ():
            further = _output(head(features))
            aux += (further.logits, *further.aux)
        # Heads that make whole blocks of pixels out of each may reach beyond an image of another size.
        height, width = images.shape[-2:]
        return SegOutput(found.logits[..., :height, :width], tuple(each[..., :height, :width] for each in aux))

    def backbone_modules(self) -> Sequence[nn.Module]:
        return (self.backbone,)


def _output(result: Tensor | SegOutput) -> SegOutput:
    """Give what a head returned one type."""
    return SegOutput(result) if isinstance(result, Tensor) else result


def _levels_taken(bricks: Sequence[nn.Module], shapes: Sequence[FeatureShape]) -> set[int]:
    """Find the levels of maps of `shapes` that have a part in what necks and a head behind them compute.

    They are run on tensors without memory: autograd then tells which maps the logits depend on.
    """
    tail = nn.Sequential(*bricks)
    modes = {module: module.training for module in tail.modules()}
    tensors = {name: torch.empty_like(tensor, device="meta") for name, tensor in tail.state_dict().items()}
    maps = []
    for shape in shapes:
        side = 128 // shape.stride
        maps.append(torch.empty(1, shape.channels, side, side, device="meta", requires_grad=True))
    logits = _output(torch.func.functional_call(tail.eval(), tensors, (list(maps),))).logits
    for module, mode in modes.items():
        module.training = mode
    gradients = torch.autograd.grad(logits.sum(), maps, allow_unused=True)
    return {shape.level for shape, gradient in zip(shapes, gradients, strict=True) if gradient is not None}


class BrickSpec(NamedTuple):
    """A brick to build, and its place in the config, for errors."""

    where: str
    component: Component


def compose(
    num_classes: int,
    in_channels: int,
    where: str,
    *,
    backbone: BrickSpec,
    head: BrickSpec,
    necks: Sequence[BrickSpec] = (),
    aux_heads: Sequence[BrickSpec] = (),
    output_stride: OutputStride | None = None,
) -> EncoderDecoder:
    """Build an `EncoderDecoder` from the names of its bricks; each is told what the one before it offers.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place of the arguments in the config, for errors.
        backbone: Its own `output_stride`, if it has one, wins.
        head: Makes the logits.
        necks: Between both.
        aux_heads: On maps of the backbone.
        output_stride: For the backbone; None leaves it as it is.

    Raises:
        ConfigError: The bricks do not fit each other.
    """
    if output_stride is not None and backbone.component.args.get("output_stride") is None:
        strided = with_argument(backbone.component, "output_stride", output_stride, where=f"{where}.output_stride")
        backbone = backbone._replace(component=strided)
    built_backbone: Backbone = _build(BACKBONES, backbone, in_channels=in_channels)
    shapes: tuple[FeatureShape, ...] = built_backbone.shapes
    built_necks: list[Neck] = []
    for spec in necks:
        neck: Neck = _build(NECKS, spec, shapes=shapes)
        built_necks.append(neck)
        shapes = neck.shapes
    built_head: Head = _build(HEADS, head, shapes=shapes, num_classes=num_classes)
    built_aux_heads: list[Head] = []
    for spec in aux_heads:
        built_aux_heads.append(_build(HEADS, spec, shapes=built_backbone.shapes, num_classes=num_classes))
    return EncoderDecoder(built_backbone, built_necks, built_head, built_aux_heads, in_channels=in_channels)


@MODELS.register("EncoderDecoder")
def encoder_decoder(
    num_classes: int,
    in_channels: int,
    where: str = "arch.args",
    *,
    backbone: Annotated[Component, BACKBONES],
    head: Annotated[Component, HEADS],
    necks: tuple[Annotated[Component, NECKS], ...] = (),
    aux_heads: tuple[Annotated[Component, HEADS], ...] = (),
    output_stride: OutputStride | None = None,
) -> EncoderDecoder:
    """Any backbone, necks and head that fit each other.

    Args:
        num_classes: Channels of the logits.
        in_channels: Channels of the images.
        where: Place in the config, for errors.
        backbone: Makes the feature maps.
        head: Makes the logits.
        necks: Work on the feature maps, in this order.
        aux_heads: Further heads on the backbone's maps, used in training only.
        output_stride: Input pixels per pixel of the backbone's coarsest map, where its own args do not say it.
    """
    return compose(
        num_classes,
        in_channels,
        where,
        backbone=BrickSpec(f"{where}.backbone", backbone),
        head=BrickSpec(f"{where}.head", head),
        necks=[BrickSpec(f"{where}.necks[{i}]", neck) for i, neck in enumerate(necks)],
        aux_heads=[BrickSpec(f"{where}.aux_heads[{i}]", brick) for i, brick in enumerate(aux_heads)],
        output_stride=output_stride,
    )


def with_argument(backbone: Component, name: str, value: Any, *, where: str) -> Component:
    """Give `backbone` one more argument.

    Raises:
        ConfigError: It takes none of that name; `where` is the place that asked for it.
    """
    if backbone.type in BACKBONES and name not in parameters_of(BACKBONES[backbone.type]):
        raise ConfigError(f"{where}: backbone '{backbone.type}' has no such choice. Leave it out, or set it to null.")
    return Component(backbone.type, {**backbone.args, name: value})


def _build(registry: Registry, brick: BrickSpec, **facts: Any) -> Any:
    """Build a brick; what it says of its arguments or of the maps that it is offered becomes a line with its place.

    Raises:
        ConfigError: It cannot be built.
    """
    try:
        return registry.build(brick.component, where=brick.where, **facts)
    except ConfigError:
        raise
    except MissingLevel as error:
        others = ", ".join(_fitting(registry, facts))
        raise ConfigError(
            f"{brick.where}: {brick.component.type} {error}. "
            f"Change the bricks before it, or take a {registry.kind} that fits: {others}."
        ) from error
    except ValueError as error:
        raise ConfigError(
            f"{brick.where}: {brick.component.type} {error}. "
            f"Change its arguments or the bricks before it, or choose another {registry.kind}."
        ) from error


def _fitting(registry: Registry, facts: dict[str, Any]) -> list[str]:
    """List the names of components that can be built from `facts`, without arguments."""
    names = []
    for name in sorted(registry):
        with suppress(Exception), torch.device("meta"):  # components of others fail each in their own way
            registry.build(Component(name), where=name, **facts)
            names.append(name)
    return names
