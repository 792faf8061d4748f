"""What a backbone, a neck, a head and a whole model promise each other: their base classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from utils.any_size import continued, divides, upper_left
from utils.outputs import SegOutput
from utils.precision import without_autocast


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
    """Turn images into feature maps, finest first; `shapes` describes them without running the network."""

    shapes: tuple[FeatureShape, ...]
    needs_batch = False  # see `BaseModel`
    weights: str | None = None  # name of the public weights that fit it as it was configured
    unpublished: tuple[str, ...] = ()  # parts of names of parameters that no public weights have

    def adapt_weights(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Rename or complete published weights, by parameter name, as this network needs them."""
        return state

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """Compute the feature maps (N, channels, h, w) of normalized images (N, in_channels, H, W), finest first."""

    def layers(self) -> list[list[nn.Parameter]]:
        """Sort the parameters by depth, the first layer's first: by the finest feature map that depends on them."""
        parameters = dict(self.named_parameters())
        # The network is run on tensors without memory: autograd then tells which parameters a map depends on.
        copies = {}
        for name, tensor in self.state_dict(keep_vars=True).items():
            copies[name] = torch.empty_like(tensor, device="meta")
        remaining = {name: copies[name].requires_grad_() for name in parameters}
        channels = next(parameter.shape[1] for parameter in parameters.values() if parameter.dim() == 4)
        images = torch.empty(1, channels, 64, 64, device="meta")
        modes = {module: module.training for module in self.modules()}
        features = torch.func.functional_call(self.eval(), copies, (images,))
        for module, mode in modes.items():
            module.training = mode

        found: list[list[nn.Parameter]] = []
        for feature in features:
            gradients = torch.autograd.grad(feature.sum(), [*remaining.values()], retain_graph=True, allow_unused=True)
            used = [name for name, gradient in zip(remaining, gradients, strict=True) if gradient is not None]
            found.append([parameters[name] for name in used])
            for name in used:
                del remaining[name]
        found[-1] += [parameters[name] for name in remaining]
        return [layer for layer in found if layer]


class Neck(nn.Module, ABC):
    """Turn feature maps into others, such as ASPP does with the coarsest; `shapes` describes what it returns."""

    shapes: tuple[FeatureShape, ...]
    needs_batch = False

    def keep(self, levels: Collection[int]) -> None:
        """Drop the layers that only maps of other levels need; those may then be anything, for nobody takes them."""

    @abstractmethod
    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Compute the new feature maps (N, channels, h, w), finest first."""


class Head(nn.Module, ABC):
    """Turn feature maps into logits (N, num_classes, h, w), at whatever resolution suits."""

    needs_batch = False

    @abstractmethod
    def forward(self, features: list[Tensor]) -> Tensor | SegOutput:
        """Compute logits that cover exactly what the feature maps cover.

        A head that is trained on maps of several resolutions returns, in training, a `SegOutput` with them in `aux`.
        """


class Normalize(nn.Module):
    """Turn raw pixel values into what networks like: ``(x - mean) / std``, in float32 also under autocast.

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
        """Normalize (N, C, H, W) raw values, uint8 or floating, to float32 (float64 stays float64)."""
        with without_autocast(images.device):
            dtype = images.dtype if images.dtype == torch.float64 else torch.float32
            return (images.to(dtype) - self.mean) / self.std


class NormalizeEach(nn.Module):
    """Turn each image's raw values into ``(x - mean) / std`` by its own mean and std of each channel, in float32.

    So images that are darker, flatter or of another tint as a whole look the same to the network. A hundredth of the
    root mean square is added to the std, which keeps the noise of even areas small. Windows go by their own pixels.

    Source: the z-score of nnU-Net, Isensee et al. 2021, https://arxiv.org/abs/1904.08128, there without the addition.
    """

    def forward(self, images: Tensor) -> Tensor:
        """Normalize (N, C, H, W) raw values, uint8 or floating, to float32 (float64 stays float64)."""
        with without_autocast(images.device):
            dtype = images.dtype if images.dtype == torch.float64 else torch.float32
            images = images.to(dtype)
            mean = images.mean((2, 3), keepdim=True)
            variance = (images - mean).square().mean((2, 3), keepdim=True)
            least = (variance + mean.square()).sqrt() / 100
            # Not 0 where all is black. An addition instead would be optimized away in ONNX.
            return (images - mean) / (variance.sqrt() + least).clamp(min=1e-12)


class BaseModel(nn.Module, ABC):
    """A segmentation network.

    Subclasses implement `predict` and, if part of them may start from pretrained weights, `backbone_modules`.
    `normalize` is replaced by whoever knows the data; a model made by hand starts with ImageNet's numbers.
    """

    needs_batch = False  # whether a training step needs 2 images, because batch norm sees a single pixel of each
    lacks_pretrained = False  # whether it was to start from public weights, and they could not be fetched
    multiple = 32  # of which both sides of what `predict` gets are: pixels of its coarsest map's stride
    unpools = False  # whether it uses max_unpool2d, which has no deterministic implementation on CUDA

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        if in_channels == 3:
            self.normalize: nn.Module = Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        else:
            self.normalize = Normalize(mean=(0.5,), std=(0.25,))
        self._norm_frozen: bool | Literal["backbone"] = False
        self._backbone_frozen = False

    @abstractmethod
    def predict(self, images: Tensor) -> SegOutput:
        """Compute the logits of normalized images (N, in_channels, H, W); `aux` only in training."""

    def forward(self, images: Tensor) -> SegOutput:
        """Compute the logits of raw images (N, in_channels, H, W) with values 0..255, uint8 or floating.

        Maps of strides that divide no side end beyond the image, each elsewhere, and would be laid over each other
        askew; so images are continued by copies of their last row and column, and logits of these cut off.
        """
        normalized = self.normalize(images)
        size = (normalized.shape[-2], normalized.shape[-1])
        if self.multiple == 1 or divides(self.multiple, size):
            return self.predict(normalized)
        whole = continued(normalized, self.multiple)
        return upper_left(self.predict(whole), (whole.shape[-2], whole.shape[-1]), size)

    def start_step(self, step: int, total_steps: int) -> None:
        """Prepare for optimizer step `step`, from 0, of `total_steps`: for networks that change while they learn."""

    def backbone_modules(self) -> Sequence[nn.Module]:
        """List what may start from pretrained weights: it gets the lower learning rate and can be frozen."""
        return ()

    def backbone_parameters(self) -> list[nn.Parameter]:
        """List the parameters of `backbone_modules`, each once."""
        return _unique(p for module in self.backbone_modules() for p in module.parameters())

    def decoder_parameters(self) -> list[nn.Parameter]:
        """List all other parameters."""
        backbone = {id(p) for p in self.backbone_parameters()}
        return _unique(p for p in self.parameters() if id(p) not in backbone)

    def parameter_groups(
        self, lr: float, *, backbone_lr_scale: float = 1.0, layer_decay: float = 1.0
    ) -> list[dict[str, Any]]:
        """Group the parameters for an optimizer, decoder first: a partition of all, frozen ones included.

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
            for i, layer in enumerate(layers):
                layer_rate = rate * layer_decay ** (len(layers) - i)
                groups.append({"name": f"backbone/layer_{i}", "params": layer, "lr": layer_rate})
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
        if backbone:
            for parameter in self.backbone_parameters():
                parameter.requires_grad_(False)
        self._backbone_frozen = backbone
        self._norm_frozen = norm
        self.train(self.training)

    def train(self, mode: bool = True) -> BaseModel:
        """Set the mode of all modules but the frozen ones, which stay in evaluation."""
        super().train(mode)
        if self._norm_frozen == "backbone":
            for module in self.backbone_modules():
                _eval_norms(module)
        elif self._norm_frozen:
            _eval_norms(self)
        if self._backbone_frozen:
            for module in self.backbone_modules():
                module.eval()
        return self


def at_level(shapes: Sequence[FeatureShape], level: int) -> int:
    """Find the index of the feature map of `level`.

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
    return list(dict.fromkeys(parameters))
