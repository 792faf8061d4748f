"""What a backbone, a neck, a head and a whole model promise each other."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from utils.outputs import SegOutput


class FeatureShape(NamedTuple):
    """Size of one feature map.

    `level` k, from 1 to 5, is the stage that the map stands for: the one with stride 2^k in the undilated
    network. Bricks ask for maps by level; `stride`, input pixels per feature pixel, is for arithmetic only, and
    not for sizes: a map of an image of height H is floor(H / stride) or ceil(H / stride) high.
    """

    channels: int
    stride: int
    level: int


class MissingLevel(ValueError):
    """A brick needs a feature map of a level that it is not offered."""


class Backbone(nn.Module, ABC):
    """Images to feature maps, finest first. `shapes` describes the maps without running the network."""

    shapes: tuple[FeatureShape, ...]
    needs_batch = False  # see `BaseModel`
    weights: str | None = None  # name of the public weights that fit it as it was configured
    unpublished: tuple[str, ...] = ()  # parts of names of parameters that no public weights have

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published weights, by parameter name, as this network needs them."""
        return state

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Feature maps of normalised images (N, in_channels, H, W)."""

    def layers(self) -> list[list[nn.Parameter]]:
        """Parameters by depth, the first layer's first: here by the finest feature map that depends on them."""
        named = dict(self.named_parameters())
        meta = {
            name: torch.empty_like(tensor, device="meta") for name, tensor in self.state_dict(keep_vars=True).items()
        }
        left = {name: meta[name].requires_grad_() for name in named}
        channels = next(p.shape[1] for p in named.values() if p.dim() == 4)
        modes = {module: module.training for module in self.modules()}
        maps = torch.func.functional_call(self.eval(), meta, (torch.empty(1, channels, 64, 64, device="meta"),))
        for module, mode in modes.items():
            module.training = mode
        found: list[list[nn.Parameter]] = []
        for feature in maps:
            gradients = torch.autograd.grad(feature.sum(), [*left.values()], retain_graph=True, allow_unused=True)
            used = [name for name, gradient in zip(left, gradients, strict=True) if gradient is not None]
            found.append([named[name] for name in used])
            left = {name: tensor for name, tensor in left.items() if name not in used}
        found[-1] += [named[name] for name in left]
        return [layer for layer in found if layer]


class Neck(nn.Module, ABC):
    """Feature maps to feature maps, such as ASPP on the coarsest. `shapes` describes what it returns."""

    shapes: tuple[FeatureShape, ...]
    needs_batch = False

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """New feature maps, finest first."""


class Head(nn.Module, ABC):
    """Feature maps to logits (N, num_classes, h, w), at whatever resolution suits."""

    needs_batch = False

    @abstractmethod
    def forward(self, features: list[Tensor]) -> Tensor:
        """Logits that cover exactly what the feature maps cover."""


class Normalize(nn.Module):
    """Raw pixel values to what networks like: ``(x - mean) / std``, in float32 also under autocast.

    Its buffers are not part of the state dict, so that the state dicts of backbones interchange with
    torchvision's; a checkpoint keeps the numbers beside the weights.

    Args:
        mean: Mean of each channel, as a share of the largest value (0 to 1).
        std: Standard deviation of each channel, likewise.
        scale: Largest value of a pixel: 255 for 8-bit images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], scale: float = 255.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1) * scale, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1) * scale, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, C, H, W) raw values, uint8 or floating, to float32 (float64 stays float64)."""
        kind = images.device.type
        off = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with off:
            dtype = images.dtype if images.dtype == torch.float64 else torch.float32
            return (images.to(dtype) - self.mean) / self.std


class BaseModel(nn.Module, ABC):
    """A segmentation network.

    Subclasses implement `predict` and, if part of them may start from pretrained weights, `backbone_modules`.
    `normalize` is replaced by whoever knows the data; a model made by hand starts with ImageNet's numbers.
    """

    needs_batch = False  # whether a training step needs 2 images, because batch norm sees a single pixel of each
    unpools = False  # whether it uses max_unpool2d, which has no deterministic implementation on CUDA

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if in_channels == 3 else ((0.5,), (0.25,))
        self.normalize = Normalize(*imagenet)
        self._norm_frozen: bool | Literal["backbone"] = False
        self._backbone_frozen = False

    @abstractmethod
    def predict(self, images: Tensor) -> SegOutput:
        """Logits of normalised images (N, in_channels, H, W); `aux` only in training."""

    def forward(self, images: Tensor) -> SegOutput:
        """Logits of raw images (N, in_channels, H, W) with values 0..255, uint8 or floating."""
        return self.predict(self.normalize(images))

    def backbone_modules(self) -> Sequence[nn.Module]:
        """Modules that may start from pretrained weights: they get the lower learning rate and can be frozen."""
        return ()

    def backbone_parameters(self) -> list[nn.Parameter]:
        """Parameters of `backbone_modules`, each once."""
        return _unique(p for module in self.backbone_modules() for p in module.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """All other parameters."""
        backbone = {id(p) for p in self.backbone_parameters()}
        return _unique(p for p in self.parameters() if id(p) not in backbone)

    def parameter_groups(
        self, lr: float, *, backbone_lr_scale: float = 1.0, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser, decoder first: a partition of the parameters, frozen ones included.

        Args:
            lr: Learning rate of the decoder.
            backbone_lr_scale: Learning rate of the backbone, as a share of `lr`.
            layer_decay: Learning rate of each of the backbone's layers as a share of that of the next one; the last
                one's is a share of the backbone's. Below 1, each layer is a group, "backbone/layer_0" the first.

        Raises:
            ValueError: `layer_decay` is below 1, and there is no backbone whose layers are known.
        """
        rate = lr * backbone_lr_scale
        groups = [{"name": "decoder", "params": self.decoder_parameters(), "lr": lr}]
        if layer_decay == 1:
            groups.append({"name": "backbone", "params": self.backbone_parameters(), "lr": rate})
        else:
            layers = self._backbone_layers()
            groups += [
                {"name": f"backbone/layer_{i}", "params": layer, "lr": rate * layer_decay ** (len(layers) - i)}
                for i, layer in enumerate(layers)
            ]
        return [group for group in groups if group["params"]]

    def _backbone_layers(self) -> list[list[nn.Parameter]]:
        modules = self.backbone_modules()
        if len(modules) != 1 or not isinstance(modules[0], Backbone):
            raise ValueError("the model has no backbone whose layers are known")
        return modules[0].layers()

    def freeze(self, *, backbone: bool = False, norm: bool | Literal["backbone"] = False) -> None:
        """Stop training the backbone (weights and statistics), or batch-norm statistics; survives `train()`.

        Args:
            backbone: Freeze the backbone.
            norm: Freeze the statistics of all batch norms, or of the backbone's only.

        Raises:
            ValueError: The model has no backbone to freeze.
        """
        if (backbone or norm == "backbone") and not self.backbone_modules():
            raise ValueError(f"{type(self).__name__} has no backbone that could be frozen")
        for parameter in self.backbone_parameters() if backbone else ():
            parameter.requires_grad_(False)
        self._backbone_frozen, self._norm_frozen = backbone, norm
        self.train(self.training)

    def train(self, mode: bool = True) -> BaseModel:
        super().train(mode)
        if self._norm_frozen:
            for module in self.backbone_modules() if self._norm_frozen == "backbone" else (self,):
                _eval_norms(module)
        if self._backbone_frozen:
            for module in self.backbone_modules():
                module.eval()
        return self


def at_level(shapes: Sequence[FeatureShape], level: int) -> int:
    """Index of the feature map of `level`.

    Raises:
        MissingLevel: There is none; the message lists the levels there are.
    """
    levels = [shape.level for shape in shapes]
    if level not in levels:
        raise MissingLevel(f"needs a feature map of level {level}, but is offered levels {', '.join(map(str, levels))}")
    return levels.index(level)


def _eval_norms(module: nn.Module) -> None:
    for child in module.modules():
        # The private base class is the only thing BatchNorm1d..3d and SyncBatchNorm have in common.
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def _unique(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return list({id(p): p for p in parameters}.values())
