"""What decides which model is best, and so which one a run leaves behind."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from utils.errors import ConfigError
from utils.schema import did_you_mean


@dataclass(frozen=True)
class Monitor:
    """Which result decides which model is best.

    Args:
        key: Key of a line of metrics.jsonl; empty for none.
        sign: 1 where more is better, -1 where less is.
    """

    key: str
    sign: int

    @classmethod
    def parse(cls, text: str, known: Sequence[str]) -> Monitor:
        """Read ``max KEY``, ``min KEY`` or ``off``.

        Args:
            text: The config's `trainer.monitor`.
            known: Keys that validation will give; with or without the ``val/`` before them.

        Raises:
            ConfigError: It has another form, or no such key will ever exist.
        """
        mode, _, key = text.strip().partition(" ")
        key = key.strip()
        if mode == "off" and not key:
            return cls("", 1)
        if mode not in ("max", "min") or not key:
            raise ConfigError(
                f"trainer.monitor: expected 'max KEY', 'min KEY' or 'off', got {json.dumps(text)}. "
                f"Use for example 'max Mean_IoU'."
            )
        key = {"val_loss": "val/loss"}.get(key, key)
        for candidate in (key, f"val/{key}"):
            if candidate in known:
                return cls(candidate, 1 if mode == "max" else -1)
        raise ConfigError(f"trainer.monitor: there will be no '{key}'. {did_you_mean(key, known)}")

    def improves(self, value: float | None, best: float | None) -> bool:
        """Whether `value` is better than `best`; NaN never is."""
        if not self.key or value is None or math.isnan(value):
            return False
        return best is None or self.sign * value > self.sign * best
