"""How figures were measured: what checkpoints, results.json and evaluate.py state beside them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
        held_out: Share or number of the images that `val_split` held out of this part; None for all of it.
    """

    preprocessing: str
    size: tuple[int, int] | str
    dataset: str
    split: str | None = None
    labels: str | None = None
    held_out: float | None = None


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
