import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.check import check_config
from engine.config import RunConfig, config_json_schema, full_json_schema
from tests.conftest import HOME, ROOT
from tests.tiny import tiny_config
from utils.config import load_config, parse_json, read_json
from utils.errors import ConfigError
from utils.json_schema import dump_schema, json_schema, object_schema
from utils.registry import KINDS
from utils.schema import (
    Above,
    AtLeast,
    Between,
    Component,
    Mismatch,
    check_arguments,
    convert,
    describe_arguments,
    did_you_mean,
    fill_defaults,
    fits,
    parameters_of,
    spell,
    to_json,
)


@dataclass(frozen=True)
class Wheel:
    """A wheel.

    Args:
        spokes: How many, of which
            none may be missing.
        tyre: Its make.
    """

    spokes: Annotated[int, AtLeast(3)]
    tyre: str = "plain"


@dataclass(frozen=True, kw_only=True)
class Bicycle:
    wheels: tuple[Wheel, ...]
    gears: Annotated[int, Between(1, 33)] | None = None
    size: Literal["S", "M", 54] = "M"
    weights: Mapping[str, float] = field(default_factory=dict)


# -------------------------------------------------------------------------------------------------- conversion


@pytest.mark.parametrize(
    ("hint", "value", "converted"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (float, 2.5, 2.5),
        (bool, True, True),
        (str, "", ""),
        (Path, "a/b", Path("a/b")),
        (None, None, None),
        (int | None, None, None),
        (bool | float, True, True),
        (bool | float, 1, 1.0),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[int, ...], [], ()),
        (tuple[float, ...], [1, 2], (1.0, 2.0)),
        (list[str], ["a"], ["a"]),
        (Sequence[int], [1], [1]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (Mapping[str, list[int]], {"a": [1]}, {"a": [1]}),
        (Literal["a", 1, None], 1, 1),
        (Annotated[int, AtLeast(1)], 1, 1),
        (Annotated[float, Above(0)], 0.1, 0.1),
        (Annotated[float, Between(0, 1)], 1, 1.0),
        (Annotated[int, Between(1, 5)] | tuple[int, int], [7, 8], (7, 8)),
        (Wheel, {"spokes": 36}, Wheel(36)),
        (list[Wheel], [{"spokes": 3, "tyre": "x"}], [Wheel(3, "x")]),
        (Component, "a", Component("a")),
        (Component, {"type": "a", "args": {"b": 1}}, Component("a", {"b": 1})),
        (Any, {"x": [1]}, {"x": [1]}),
    ],
)
def test_json_becomes_what_the_annotation_asks_for(hint, value, converted):
    result = convert(value, hint, "here")
    assert result == converted
    assert type(result) is type(converted)
    assert convert(to_json(result), hint, "here") == converted  # what is written is read back


@pytest.mark.parametrize(
    ("hint", "value", "line"),
    [
        (int, "80", 'here: expected int, got "80".'),
        (int, 1.0, "here: expected int, got 1.0."),
        (int, True, "here: expected int, got true."),
        (float, True, "here: expected a number, got true."),
        (float, "1", 'here: expected a number, got "1".'),
        (bool, 1, "here: expected true or false, got 1."),
        (bool, "false", 'here: expected true or false, got "false".'),
        (bool, None, "here: expected true or false, got null."),
        (str, 5, "here: expected a text, got 5."),
        (str | None, 5, "here: expected a text or null, got 5."),
        (Path, "", 'here: expected a path, got "".'),
        (Path, "a\0b", 'here: expected a path, got "a\\u0000b".'),
        (Path, 5, "here: expected a path, got 5."),
        (None, 0, "here: expected null, got 0."),
        (tuple[int, int], [1], "here: expected [int, int], got [1]."),
        (tuple[int, int], "12", 'here: expected [int, int], got "12".'),
        (tuple[int, ...], 5, "here: expected a list of int, got 5."),
        (list[int], [1, "2"], 'here[1]: expected int, got "2".'),
        (list[int], {"a": 1}, 'here: expected a list of int, got {"a": 1}.'),
        (dict[str, int], [1], "here: expected an object of int, got [1]."),
        (dict[str, int], {"a": 0.5}, "here.a: expected int, got 0.5."),
        (Literal[8, 16], 4, "here: expected one of 8, 16, got 4."),
        (Literal[8, 16], "8", 'here: expected one of 8, 16, got "8".'),
        (Literal[1, 2], True, "here: expected one of 1, 2, got true."),
        (Annotated[int, AtLeast(1)], 0, "here: expected int of at least 1, got 0."),
        (Annotated[int, Between(1, 10_000_000)], 0, "here: expected int of at least 1 and of at most 10000000, got 0."),
        (Annotated[float, Above(0)], 0, "here: expected a number above 0, got 0."),
        (Annotated[int, AtLeast(1)] | None, 0, "here: expected int of at least 1, got 0."),
        (Annotated[int, AtLeast(1)] | None, "x", 'here: expected int of at least 1 or null, got "x".'),
        (bool | Annotated[float, Above(0)], -1, "here: expected a number above 0, got -1."),
        (list[Wheel] | None, [{"spokes": 1}], "here[0].spokes: expected int of at least 3, got 1."),
        (float | torch.Tensor, "x", 'here: expected a number, got "x".'),
        (Wheel, 3, "here: expected an object, got 3."),
        (Wheel, {}, "here.spokes: missing. Give int of at least 3."),
        (Wheel, {"spokes": 3, "tire": "x"}, "here.tire: unknown key. Did you mean 'tyre'?"),
        (Component, 5, "here: expected a component, got 5."),
        (Component, {"args": {}}, "here.type: expected a name, got null."),
        (Component, {"type": "a", "args": []}, "here.args: expected an object, got []."),
        (Component, {"type": "a", "arg": {}}, "here.arg: unknown key. Did you mean 'args'?"),
    ],
)
def test_nothing_is_coerced_silently(hint, value, line):
    with pytest.raises(Mismatch) as caught:
        convert(value, hint, "here")
    assert list(caught.value.problems) == [line]
    assert not fits(value, hint)


def test_long_values_are_shortened_in_errors():
    with pytest.raises(Mismatch) as caught:
        convert("x" * 10_000, int, "here")
    assert len(caught.value.problems[0]) < 150


def test_every_problem_is_reported_at_once_and_by_its_place():
    value = {"wheels": [{"spokes": 1}, {"tyre": 5}], "gear": 3, "size": "XL", "weights": {"a": "b"}}
    problems: list[str] = []
    check_arguments(Bicycle, value, where="bike", problems=problems)
    assert sorted(line.partition(":")[0] for line in problems) == [
        "bike.gear",
        "bike.size",
        "bike.weights.a",
        "bike.wheels[0].spokes",
        "bike.wheels[1].spokes",
        "bike.wheels[1].tyre",
    ]


def test_what_the_framework_fills_in_may_not_be_set():
    problems: list[str] = []
    check_arguments(Wheel, {"spokes": 9}, where="", reserved={"spokes"}, problems=problems)
    assert problems == ["spokes: is filled in by the framework. Remove it."]


def test_defaults_are_filled_in_and_given_values_kept():
    assert fill_defaults(Bicycle, {"gears": 7}) == {"gears": 7, "size": "M"} | {
        key: value for key, value in fill_defaults(Bicycle, {}).items() if key not in ("gears", "size")
    }


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("epoch", "epochs"), ("EPOCHS", "epochs"), ("freeze_backbne", "freeze_backbone"), ("atrous_rate", "atrous_rates")],
)
def test_the_nearest_name_is_suggested(name, suggestion):
    names = ["epochs", "freeze_backbone", "atrous_rates", "lr"]
    assert did_you_mean(name, names) == f"Did you mean '{suggestion}'?"


def test_without_a_near_name_all_are_listed():
    assert did_you_mean("zzz", ["b", "a"]) == "Choose from a, b."


def test_texts_of_arguments_come_from_the_docstring():
    assert describe_arguments(Wheel) == {"spokes": "How many, of which none may be missing.", "tyre": "Its make."}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_our_own_components_say_what_each_argument_means_and_of_which_type_it_is(kind):
    registry = KINDS[kind]
    for name in registry._entries:
        target, texts = registry[name], describe_arguments(registry[name])
        for key, parameter in parameters_of(target).items():
            if key in registry.reserved(name):
                continue
            assert parameter.annotation is not parameter.empty, f"{kind} {name}: {key} has no annotation"
            assert texts.get(key), f"{kind} {name}: {key} is not described"
            assert spell(parameter.annotation)


# ------------------------------------------------------------------------------------------------- JSON Schema


HINTS = [int, float, bool, str, int | None, Literal[8, "x"], Annotated[int, Between(1, 5)], Annotated[float, Above(0)]]
HINTS += [list[int], tuple[float, ...], tuple[int, str], dict[str, bool], bool | Annotated[float, Above(0)], Component]
HINTS += [Wheel, Bicycle, list[Wheel] | None, Any]
plain = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-3, 3).filter(lambda x: x != int(x)) | st.text("x8a")
keys = st.sampled_from(["type", "args", "spokes", "tyre", "wheels", "gears", "size", "weights", "zzz"])
values = st.recursive(plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(keys, v, max_size=3), max_leaves=6)


@pytest.mark.parametrize("hint", HINTS, ids=str)
@settings(deadline=None, derandomize=True)
@given(value=values)
def test_the_json_schema_accepts_what_convert_accepts_and_nothing_else(hint, value):
    schema = json_schema(hint)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid(value) == fits(value, hint)


def test_the_json_schema_of_an_object_carries_texts_and_defaults():
    schema = object_schema(Wheel)
    assert schema["required"] == ["spokes"]
    assert schema["properties"]["tyre"] == {"description": "Its make.", "type": "string", "default": "plain"}


SCHEMA, FULL = config_json_schema(), full_json_schema()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
RECIPES = sorted([*ROOT.glob("*.json"), *ROOT.glob("configs/**/*.json")])
RECIPES = [path for path in RECIPES if path.name != "config.schema.json"]


def test_the_schema_of_configs_is_a_schema():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    text = json.dumps(SCHEMA)
    for kind in re.findall(r'"#/\$defs/([^"]+)"', text):
        assert kind in SCHEMA["$defs"]
    assert len(text) < 130_000  # editors read it at every key press; a third of it describes networks and their bricks


def test_what_the_schema_says_once_is_what_it_said_many_times():
    added = {f"#/$defs/{name}": SCHEMA["$defs"][name] for name in SCHEMA["$defs"].keys() - FULL["$defs"].keys()}

    def expanded(value: Any) -> Any:
        if isinstance(value, list):
            return [expanded(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.get("$ref") in added:
            assert len(value) == 1
            return expanded(added[value["$ref"]])
        return {key: expanded(item) for key, item in value.items()}

    shared = {**SCHEMA, "$defs": {name: SCHEMA["$defs"][name] for name in FULL["$defs"]}}
    assert expanded(shared) == FULL
    assert len(json.dumps(SCHEMA)) < 0.6 * len(json.dumps(FULL))


def test_the_schema_says_once_what_a_block_of_options_takes():
    loaders = SCHEMA["$defs"]["loader"]["allOf"]
    for rule in loaders:
        args = rule["then"]["properties"]["args"]
        properties = SCHEMA["$defs"][args["$ref"].removeprefix("#/$defs/")] if "$ref" in args else args
        assert properties["properties"]["batch_size"] == {"$ref": "#/$defs/loader.batch_size"}
        assert properties["properties"]["crop_size"] == {"$ref": "#/$defs/loader.crop_size"}


def test_the_schema_is_written_as_it_is():
    assert json.loads(dump_schema(SCHEMA)) == SCHEMA


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_schema_accepts_every_config_of_the_repository(path):
    VALIDATOR.validate(read_json(path))


def documented_example() -> dict[str, Any]:
    """The config in the README of pytorch-segmentation, comments and all."""
    seeds = ROOT.parent / "shared" / "seeds"
    found = sorted(seeds.glob("003_*.txt"))
    if not found:
        pytest.skip("the seeds are not here")
    text = found[0].read_text(encoding="utf-8", errors="replace")
    blocks = [block.partition("```")[0] for block in text.split("```javascript")[1:] or text.split("```json")[1:]]
    block = next(block for block in blocks if '"arch"' in block)
    return parse_json(block)


def test_the_documented_example_of_the_seed_is_accepted():
    example = documented_example()
    VALIDATOR.validate(example)
    config = check_config(example)
    assert config.trainer.monitor == "max Mean_IoU"
    assert config.train.batches.batch_size == example["train_loader"]["args"]["batch_size"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("nam", "x"),
        ("trainer.epoch", 3),
        ("trainer.epochs", "80"),
        ("trainer.epochs", 0),
        ("trainer.precision", "fp8"),
        ("arch.typ", "PSPNet"),
        ("arch.args", {"backbon": "resnet18"}),
        ("train_loader.args.batch_sise", 3),
        ("train_loader.args.crop_size", "380"),
        ("train_loader.args.augment", 1),
        ("loss", {"type": "CrossEntropyLoss2d", "factr": 2}),
        ("loss", {"type": "DiceLoss", "args": {"smoth": 1}}),
        ("optimizer.differential_lr", "yes"),
        ("lr_scheduler", {"type": "Poly", "args": {"pwer": 1}}),
        ("extends", 5),
        ("arch.args.backbone.args.width_mul", 1),
        ("arch.args.head.args.chanels", 1),
    ],
)
def test_the_schema_shows_what_the_program_refuses(tmp_path, path, value):
    config = tiny_config(tmp_path)
    VALIDATOR.validate(config)
    *names, last = path.split(".")
    place = config
    for name in names:
        place = place[name]
    place[last] = value
    assert not VALIDATOR.is_valid(config)


def test_the_schema_lets_components_of_others_pass(tmp_path):
    arch = {"type": "TheirModel", "args": {"anything": 1}}
    VALIDATOR.validate(tiny_config(tmp_path, arch=arch))


def test_the_schema_lets_a_lego_string_pass(tmp_path):
    VALIDATOR.validate(tiny_config(tmp_path, arch="resnet18+ASPP+FCNHead"))


def test_the_schema_for_editors_is_not_stale():
    pins = (ROOT / "requirements.txt").read_text()
    if f"torch=={torch.__version__.partition('+')[0]}" not in pins:
        pytest.skip("torch's own names differ from version to version, and this one is not the pinned one")
    done = subprocess.run(
        [sys.executable, "-m", RunConfig.__module__], cwd=ROOT, capture_output=True, text=True, check=True
    )
    stored = (HOME / "config.schema.json").read_text(encoding="utf-8")
    assert json.loads(stored) == json.loads(done.stdout), "run `python -m engine.config > config.schema.json`"


# ----------------------------------------------------------------------------------------------- resolved configs


def variants(folder: Path) -> list[dict[str, Any]]:
    held_out = tiny_config(folder, val_loader=None)
    held_out["train_loader"]["args"]["val_split"] = 0.3
    transforms = tiny_config(folder)
    transforms["train_loader"]["args"] = {"batch_size": 2, "transforms": [{"type": "ShortSide", "args": {"size": 40}}]}
    return [
        tiny_config(folder),
        held_out,
        transforms,
        tiny_config(folder, arch="resnet18+ASPP+FCNHead", optimizer="SGD", loss=["DiceLoss", "FocalLoss"]),
        tiny_config(folder, arch={"type": "PSPNet", "args": {"backbone": "resnet18", "pretrained": "weights.pth"}}),
        tiny_config(folder, loss={"type": "CE_DiceLoss", "factor": 0.5}, lr_scheduler="StepLR"),
        tiny_config(
            folder,
            optimizer={"type": "AdamW", "differential_lr": 0.5, "args": {"betas": [0.5, 0.9]}, "no_decay": ["bias"]},
            lr_scheduler={"type": "Poly", "args": {}},
            normalization={"mean": [0.5], "std": [0.25]},
            init_from="some/weights.pth",
        ),
    ]


@pytest.mark.parametrize("number", range(7))
def test_a_resolved_config_is_plain_json_and_resolves_to_itself(tmp_path, number):
    raw = variants(tmp_path)[number]
    if raw.get("lr_scheduler") == "StepLR":
        raw["lr_scheduler"] = {"type": "StepLR", "args": {"step_size": 3}}
    if "transforms" in raw["train_loader"]["args"]:
        pytest.importorskip("torchvision")
    first = check_config(raw)
    text = json.dumps(first.to_json(), allow_nan=False)
    again = check_config(json.loads(text))
    assert again.to_json() == first.to_json()
    assert again == first
    assert again.meaning == first.meaning
    VALIDATOR.validate(first.to_json())


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_config_of_the_repository_that_is_whole_resolves_to_itself(path):
    raw = load_config(path)
    if not {"name", "arch", "train_loader", "optimizer", "trainer"} <= raw.keys():
        pytest.skip("a part, for others to extend")
    resolved = check_config(raw).to_json()
    assert check_config(json.loads(json.dumps(resolved))).to_json() == resolved


def test_every_default_stands_in_the_resolved_config(tmp_path):
    resolved = check_config(tiny_config(tmp_path)).to_json()
    for section, keys in {
        "trainer": ("save_period", "monitor", "accumulate", "ema", "clip_grad_norm", "val_per_epochs"),
        "optimizer": ("differential_lr", "parts", "no_decay"),
    }.items():
        assert set(keys) <= resolved[section].keys()
    assert resolved["optimizer"]["args"]["weight_decay"] == 0
    assert resolved["train_loader"]["args"]["shuffle"] is None
    assert resolved["arch"]["args"]["pretrained"] is False
    assert resolved["ignore_index"] == 255


def test_a_config_is_not_changed_by_checking_it(tmp_path):
    raw = tiny_config(tmp_path)
    before = json.dumps(raw)
    check_config(raw)
    assert json.dumps(raw) == before


def test_the_meaning_does_not_depend_on_what_may_change_on_resume(tmp_path):
    one = check_config(tiny_config(tmp_path))
    other = tiny_config(tmp_path / "elsewhere", n_gpu=4)
    other["trainer"] |= {"epochs": 99, "save_period": 3}
    assert check_config(other).meaning == one.meaning
    assert check_config(tiny_config(tmp_path, seed=1)).meaning != one.meaning


def test_all_problems_of_a_config_come_together(tmp_path):
    raw = tiny_config(tmp_path, arch={"type": "PSPNett"}, loss="Dice", seed=-1, nam="x")
    raw["trainer"]["epoch"] = 3
    raw["train_loader"]["args"]["crop"] = 3
    raw["optimizer"]["args"]["momentun"] = 0.9
    with pytest.raises(ConfigError) as caught:
        check_config(raw)
    places = {line.partition(":")[0] for line in caught.value.problems}
    assert places == {
        *("nam", "arch.type", "loss", "seed", "trainer.epoch", "train_loader.args.crop", "optimizer.args.momentun")
    }


ODD = [None, True, 0, -1, 1.5, 10**19, 1e300, "", "x", "a+b", "\0", [], [None], [[1], 2], {}, {"type": 1}, {"x": None}]


def places(value: Any, where: tuple = ()) -> list[tuple]:
    """Every place in a tree of JSON."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [where, *(place for key, item in items for place in places(item, (*where, key)))]


def replaced(value: Any, place: tuple, new: Any) -> Any:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = replaced(value[place[0]], place[1:], new)
    return copy


def answer(config: dict[str, Any]) -> tuple[list[str], dict[str, Any] | None]:
    """What is wrong with a config, or what it resolves to."""
    try:
        return [], check_config(config).to_json()
    except ConfigError as error:
        return list(error.problems), None


def test_whatever_stands_anywhere_in_a_config_is_accepted_or_refused_with_a_place(tmp_path):
    whole = check_config(tiny_config(tmp_path, loss=["DiceLoss", {"type": "FocalLoss"}])).to_json()
    for place in places(whole)[1:]:
        for odd in ODD:
            problems, resolved = answer(replaced(whole, place, odd))
            assert all(": " in line and "\n" not in line for line in problems), (place, odd)
            if resolved is not None:
                assert answer(resolved) == ([], resolved), (place, odd)
