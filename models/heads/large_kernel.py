"""Head of the global convolutional network."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from base.base_model import FeatureShape, Head, at_level
from models.blocks import Classifier, resize_like
from utils.registry import HEADS
from utils.schema import AtLeast


class _GlobalConv(nn.Module):
    """A k x k convolution in two separable ways, added. Source: section 3.1, figure 2 B."""

    def __init__(self, in_channels: int, out_channels: int, k: int) -> None:
        super().__init__()
        half = k // 2
        self.left = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, (k, 1), padding=(half, 0)),
            nn.Conv2d(out_channels, out_channels, (1, k), padding=(0, half)),
        )
        self.right = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, (1, k), padding=(0, half)),
            nn.Conv2d(out_channels, out_channels, (k, 1), padding=(half, 0)),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) + self.right(x)
        return out


class _Refine(nn.Module):
    """Boundary refinement: a residual block without norms. Source: section 3.2, figure 2 C."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.branch(x)
        return out


class _Enlarge(nn.Module):
    """Bring scores to the size of a finer map, by resizing, or by a transposed convolution and what is left."""

    def __init__(self, channels: int, use_deconv: bool) -> None:
        super().__init__()
        self.deconv = nn.ConvTranspose2d(channels, channels, 3, stride=2, padding=1) if use_deconv else None

    def forward(self, x: Tensor, reference: Tensor) -> Tensor:
        # Where the backbone is dilated, the finer map is no larger, and there is nothing to undo.
        if self.deconv is not None:
            x = self.deconv(x)
        return resize_like(x, reference)


@HEADS.register()
class LargeKernelHead(Head):
    """Score levels 2 to 5 by large kernels, and add the scores from coarse to fine, refining boundaries.

    Source: Peng et al. 2017, https://arxiv.org/abs/1703.02719, figure 2. The last of the nine refinements works
    at level 1, or at the finest level that there is, not at full resolution, which a head does not know.

    Args:
        shapes: Feature maps to expect, finest first; levels 2 to 5.
        num_classes: Channels of the logits.
        kernel_size: Reach of the kernels, in feature pixels; odd.
        use_deconv: Enlarge scores by learned transposed convolutions.
    """

    def __init__(
        self,
        shapes: tuple[FeatureShape, ...],
        num_classes: int,
        *,
        kernel_size: Annotated[int, AtLeast(1)] = 11,
        use_deconv: bool = False,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"needs an odd 'kernel_size', but was given {kernel_size}")
        self.indices = [at_level(shapes, level) for level in (5, 4, 3, 2)]
        self.finest = 0
        self.score = nn.ModuleList(
            nn.Sequential(_GlobalConv(shapes[i].channels, num_classes, kernel_size), _Refine(num_classes))
            for i in self.indices
        )
        self.enlarge = nn.ModuleList(_Enlarge(num_classes, use_deconv) for _ in range(4))
        self.refine = nn.ModuleList(_Refine(num_classes) for _ in range(5))
        self.classify = Classifier(num_classes, num_classes)

    def forward(self, features: list[Tensor]) -> Tensor:
        x, *finer = [score(features[i]) for score, i in zip(self.score, self.indices, strict=True)]
        for y, enlarge, refine in zip(finer, self.enlarge, self.refine, strict=False):  # one more of each follows
            x = refine(y + enlarge(x, y))
        x = self.enlarge[3](x, features[self.finest])
        logits: Tensor = self.classify(self.refine[4](self.refine[3](x)))
        return logits
