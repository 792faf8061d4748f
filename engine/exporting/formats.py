"""Names of exported files and of what they give; without torch, which `--help` need not wait for."""

from __future__ import annotations

from pathlib import Path

FORMATS = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}
OUTPUTS = ("labels", "confidence", "logits")
UNPROVEN = ".unproven"  # behind the ending of a file that differs from its checkpoint


def format_of(path: Path) -> str | None:
    """The format of an exported file, by the end of its name; None for checkpoints."""
    suffix = path.with_suffix("").suffix if path.suffix == UNPROVEN else path.suffix
    for name, ending in FORMATS.items():
        if ending == suffix.lower():
            return name
    return None
