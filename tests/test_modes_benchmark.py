"""The benchmark of sliding windows and several scales measures what it says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import modes


def test_every_mode_is_measured_beside_its_forward_passes_and_a_peer() -> None:
    first = {"sliding": lambda image: np.zeros(image.shape[:2])}
    figures = modes.measure((48, 64), 3, 1, {"peer": first})
    names = [figure.what for figure in figures]
    assert {f"{mode}: {what}" for mode in ("sliding", "multiscale") for what in ("forward passes", "here")} <= {*names}
    assert "multiscale: here, --fast" in names
    assert [name for name in names if "peer" in name] == [
        "sliding: peer",
        "sliding: peer / here",
        "sliding: peer / here, without forward passes",
        "sliding: labels here equal to those of peer",
    ]


def test_forward_passes_are_those_of_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.zeros((60, 80, 3), np.uint8)
    predictor = modes.ours(3, "sliding", (60, 80))
    sizes = []
    forward = modes.Cheap.forward
    monkeypatch.setattr(modes.Cheap, "forward", lambda self, x: sizes.append(tuple(x.shape)) or forward(self, x))
    again = modes.forward_passes(predictor, image)
    seen = sizes.copy()
    again()
    assert sizes == 2 * seen
    assert set(seen) == {(1, 3, 24, 32)}


def test_only_the_functions_that_predict_are_read_of_a_checkout(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text("import not_there\n\ndef f(x):\n    return g(x) + 1\n\ndef g(x):\n    return x\n")
    found = modes.functions_of(tmp_path / "x.py", ("f", "g"), {})
    assert found["f"](1) == 2
