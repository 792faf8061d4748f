"""Feature maps of a frozen backbone, kept in files, so that it computes no image twice."""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import shutil
import zipfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.encoder_decoder import EncoderDecoder
from utils.files import atomic_write

logger = logging.getLogger("segwright")


class FeatureCache:
    """Stand in for the `forward` of a frozen backbone: find the maps of an image in a file, or compute and keep them.

    A file is named by the pixels that the backbone is given, so that no transform or normalization has to be known
    here; what else its maps depend on names the folder.

    Each image is computed alone, also when none of a batch is known: kernels are chosen, and so sums are rounded, by
    the size of a batch, and a run must not depend on which files there are.

    Args:
        backbone: In evaluation mode, on its device. Its weights may still be loaded, but not after the first image.
        taken: Numbers of the maps that are needed; of the others, only the sizes are right.
        root: Folder of all such folders; need not be there.
    """

    def __init__(self, backbone: nn.Module, taken: Collection[int], root: Path) -> None:
        self.backbone = backbone
        self.compute = backbone.forward
        self.taken = sorted(taken)
        self.root = root
        self.is_full = False
        self.reserve: float | None = None  # bytes of the disk that stay free

    def __deepcopy__(self, memo: dict[int, Any]) -> FeatureCache:
        return self  # an average of frozen weights is what they are

    @functools.cached_property
    def folder(self) -> Path:
        """Folder of the maps that this backbone computes on this machine."""
        folder = self.root / f"{identity(self.backbone)}-{'-'.join(map(str, self.taken))}"
        logger.info("features of the frozen backbone are kept in %s", folder)
        return folder

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def __call__(self, images: Tensor) -> list[Tensor]:
        """Give the maps (N, channels, h, w) of normalized images (N, in_channels, H, W), finest first."""
        # Copies, since kernels are chosen by the alignment in memory, too.
        found = [self.maps_of(images[i : i + 1].clone()) for i in range(len(images))]
        return [torch.cat(maps) for maps in zip(*found, strict=True)]

    def maps_of(self, image: Tensor) -> list[Tensor]:
        """Read the maps of an image (1, in_channels, H, W), or compute and keep them."""
        path = self.folder / f"{name_of(image)}.pth"
        with suppress(Exception):  # not there, or damaged, of which torch tells in many ways
            with zipfile.ZipFile(path) as file:
                intact = file.testzip() is None  # torch does not look at checksums
            if intact:
                found: list[Tensor] = torch.load(path, map_location=image.device, weights_only=True)
                return found
        maps = []
        for number, each in enumerate(self.compute(image)):
            maps.append(each.clone() if number in self.taken else each.new_zeros(()).expand(each.shape))
        if not self.is_full:
            self.keep(maps, path)
        return maps

    def keep(self, maps: list[Tensor], path: Path) -> None:
        """Write `maps` to `path`; a tenth of what is free on the disk at first stays so."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(path.parent).free
            self.reserve = free / 10 if self.reserve is None else self.reserve
            if free < self.reserve:
                raise OSError("nine tenths of the free disk are used")
            with atomic_write(path) as file:
                torch.save(maps, file)
        except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
            self.is_full = True
            logger.warning("%s: no further features are kept (%s). Free some space.", self.folder, error)


def name_of(image: Tensor) -> str:
    """Hash the pixels of an image (1, C, H, W), how they lie in memory, and in which arithmetic they are computed."""
    kind = image.device.type
    precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else image.dtype
    about = f"{tuple(image.shape)} {image.stride()} {image.dtype} {precision} {kind}"
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    digest.update(image.permute(0, 2, 3, 1).cpu().contiguous().numpy().data)  # as batches lie: no copy
    return digest.hexdigest()


def identity(backbone: nn.Module) -> str:
    """Hash all that the maps of an image depend on beside it: code, layers, weights and their layout, machine."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted({inspect.getfile(type(module)) for module in backbone.modules()}):
        digest.update(Path(file).read_bytes())
    for module in backbone.modules():
        options = {name: value for name, value in vars(module).items() if isinstance(value, int | float | str)}
        digest.update(f"{type(module)} {module.extra_repr()} {options}".encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}".encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        device = tensor.device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    arithmetic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    digest.update(f"{machine} {torch.__version__} {torch.get_num_threads()} {arithmetic}".encode())
    return digest.hexdigest()


def maps_taken(model: EncoderDecoder, in_channels: int) -> set[int]:
    """Find which of the backbone's maps, by number, necks and heads compute anything of in training.

    Args:
        model: Built under ``torch.device("meta")``, to be thrown away.
        in_channels: Channels of the images.
    """
    images = torch.empty(2, in_channels, 256, 256, device="meta")
    backbone: nn.Module = model.backbone
    maps = backbone(images)
    backbone.forward = lambda images: maps
    with torch.no_grad(), _Operands() as operands:
        model.train()(images)
    return {number for number, each in enumerate(maps) if id(each) in operands.seen}


class _Operands(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Note which tensors operations take."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.update(map(id, tree_leaves((args, kwargs))))
        return func(*args, **(kwargs or {}))
