"""What someone does who has only CONTRIBUTING.md: its examples, taken from there, each in one file and one line."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import ROOT, Answer
from tests.tiny import tiny_config
from utils.config import merge, parse_json
from utils.registry import DATASETS, HEADS, LOSSES, METRICS, TRANSFORMS

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
EXAMPLES = {
    heading: (code, line)
    for heading, code, line in re.findall(
        r"### A (\w+)\n\n```python\n(.*?)```\n\n```jsonc\n(.*?)```", PAGE, flags=re.DOTALL
    )
}
REGISTERED = {
    "loss": (LOSSES, "TverskyLoss"),
    "metric": (METRICS, "Worst_IoU"),
    "transform": (TRANSFORMS, "SaltAndPepper"),
    "dataset": (DATASETS, "Leaves"),
    "head": (HEADS, "TwoMapHead"),
}


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Writes an example to the file that its first line names; gives its module's name, and forgets it afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(kind: str) -> str:
        code, _ = EXAMPLES[kind]
        name = re.match(r"# (\w+)\.py\n", code)
        assert name is not None
        (tmp_path / f"{name[1]}.py").write_text(code)
        registry, entry = REGISTERED[kind]
        monkeypatch.delitem(sys.modules, name[1], raising=False)
        monkeypatch.setattr(registry, "_entries", {k: v for k, v in registry._entries.items() if k != entry})
        return name[1]

    return write


def leaves(folder: Path) -> None:
    """Draw the photographs that the example of a dataset reads."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        label = np.zeros((48, 56), np.uint8)
        label[number : number + 20, 10:40] = 1
        image = np.repeat((90 + 100 * label)[..., None], 3, axis=2) + rng.integers(0, 30, (48, 56, 3))
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number:04d}.jpg")
        Image.fromarray(label).save(folder / f"{number:04d}_mask.png")


def test_the_page_has_an_example_of_each() -> None:
    assert EXAMPLES.keys() == REGISTERED.keys()


@pytest.mark.parametrize("kind", sorted(REGISTERED))
def test_a_stranger_adds_it_in_one_file_and_one_line(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Callable[[str], str], train_command: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    leaves(tmp_path / "leaves")
    name = module(kind)
    config: dict[str, Any] = tiny_config(tmp_path / "saved")
    config["trainer"]["epochs"] = 1
    line = parse_json("{" + EXAMPLES[kind][1] + "}")
    if kind == "dataset":  # the same line with another split validates
        config["train_loader"] = {**line.pop("train_loader")}
        config["val_loader"] = {"type": "Leaves", "args": {"data_dir": "leaves", "split": "val", "batch_size": 1}}
    if kind == "transform":  # instead of the flags
        args = config["train_loader"]["args"]
        for flag in ("augment", "crop_size", "flip", "scale", "base_size", "rotate", "blur"):
            args.pop(flag, None)
    if kind == "head":
        config["arch"] = {}
    config = merge(config, line) if not isinstance(line.get("arch"), str) else {**config, **line}
    (tmp_path / "config.json").write_text(json.dumps(config))
    answer: Answer = train_command("-c", tmp_path / "config.json", "--import", "tests.tiny", "--import", name)
    assert answer.status == 0, answer.err
    (run,) = (tmp_path / "saved" / "tiny").glob("*-*")
    record = json.loads((run / "metrics.jsonl").read_text())
    assert record["train/loss"] > 0
    assert ("val/Worst_IoU" in record) == (kind == "metric")


@pytest.mark.parametrize("kind", sorted(REGISTERED))
def test_describe_prints_what_its_signature_and_docstring_say(
    kind: str, module: Callable[[str], str], train_command: Callable[..., Answer]
) -> None:
    answer = train_command("--describe", REGISTERED[kind][1], "--import", module(kind))
    assert answer.status == 0, answer.err
    assert REGISTERED[kind][1] in answer.out


def test_the_recipe_of_a_training_command_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"## Add a training command\n.*?```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (tmp_path / "grow.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    config: dict[str, Any] = tiny_config(tmp_path / "saved")
    config["trainer"]["epochs"] = 1
    (tmp_path / "my.json").write_text(json.dumps(config))
    import grow

    assert grow.main([str(tmp_path / "my.json")]) == 0
    assert len(list((tmp_path / "saved" / "tiny").glob("*-*"))) == 2
