"""How figures were measured: what checkpoints, results.json and evaluate.py state beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from utils.config import fingerprint
from utils.tta import TestTimeAugmentation

MEAN = "classes absent from truth and prediction are left out"


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """The images that figures were measured on.

    Args:
        preprocessing: "single" for images as they are, else what was done to them, such as "center_crop".
        size: Height and width that images are predicted at; where each has its own, "native", or how it is resized,
            such as "long_side 512".
        labels: Where images are resized, whether labels are, too ("resized"), or label maps back to them ("native").
        dataset: Its type in the config.
        split: Part of the dataset; None where it has none.
        images: Hash of their names in order, see `hash_of_names`; None where it is not known.
        held_out: Share or number of the images that `val_split` held out of this part; None for all of it.
    """

    preprocessing: str
    size: tuple[int, int] | str
    dataset: str
    split: str | None = None
    labels: str | None = None
    held_out: float | None = None
    images: str | None = None


def hash_of_names(names: Iterable[str]) -> str:
    """Hash the names of the images of a split, in order, which tells apart two splits of the same name."""
    return fingerprint(list(names))


@dataclass(frozen=True, kw_only=True)
class EvaluationProtocol:
    """How to predict the images of an evaluation, and the stamp on its figures: whoever predicts goes by it.

    Args:
        data: The images; None where nothing is measured.
        tta: How each is predicted.
        precision: Arithmetic of the forward pass: fp32, bf16 or fp16.
    """

    data: EvaluationData | None = None
    tta: TestTimeAugmentation = field(default_factory=TestTimeAugmentation)
    precision: str = "fp32"

    @property
    def mode(self) -> str:
        """What happens to an image, in a word; how the loader cropped it matters where it is predicted as it comes."""
        if self.data is None:
            return "none"
        return self.data.preprocessing if self.tta.mode in ("single", "center_crop") else self.tta.mode

    def describe(self) -> str:
        """Say it in words, for people: what of each image is predicted, and how."""
        if self.data is None:
            return "none"
        size = self.data.size
        if size == "native":
            shown = "whole images at their own size"
        elif isinstance(size, str):
            shown = "whole images, resized"
        else:
            kind = {"single": "whole images resized to", "center_crop": "the middle of each image,"}
            shown = f"{kind.get(self.data.preprocessing, self.data.preprocessing)} {size[0]}x{size[1]}"
        scales = " ".join(f"{scale:g}" for scale in self.tta.scales)
        mirrored = ", mirrored too" if self.tta.flip else ""
        return f"{shown}; mode {self.mode}, scale {scales}{mirrored}, {self.precision}"

    def to_json(self) -> dict[str, Any]:
        """Give the stamp in plain values."""
        if self.data is None:
            return {"mode": self.mode}
        size = self.data.size
        stamp: dict[str, Any] = {
            "mode": self.mode,
            "size": size if isinstance(size, str) else list(size),
            "dataset": self.data.dataset,
            "split": self.data.split,
        }
        if self.data.labels is not None:
            stamp["labels"] = self.data.labels
        if self.data.held_out is not None:
            stamp["held_out"] = self.data.held_out
        if self.data.images is not None:
            stamp["images"] = self.data.images
        stamp |= {
            "scales": list(self.tta.scales),
            "flip": self.tta.flip,
            "precision": self.precision,
            "mean": MEAN,
        }
        if self.tta.mode == "sliding":
            stamp |= {"window": list(self.tta.window), "overlap": round(self.tta.overlap, 6)}
            if self.tta.blend is not None:
                stamp["blend"] = self.tta.blend
        if self.tta.fast:
            stamp["fast"] = True
        return stamp
