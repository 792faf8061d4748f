import functools
from typing import Annotated

import pytest
import torch

from base.base_trainer import TrainerConfig
from engine import assemble  # noqa: F401  registers everything
from utils.describe import describe
from utils.errors import ConfigError
from utils.registry import FACTS, KINDS, LOSSES, OPTIMIZERS, SCHEDULERS, Registry, import_submodules
from utils.schema import AtLeast, Component, parameters_of

NAMES = [(kind, name) for kind, registry in sorted(KINDS.items()) for name in sorted(registry)]


@pytest.fixture
def shapes():
    registry = Registry("shape", reserved={"canvas"})

    @registry.register("square", corners=4)
    @registry.register("triangle", corners=3)
    @registry.register()
    class Polygon:
        """A polygon.

        Args:
            corners: How many.
            size: Of each side.
            num_classes: Fact.
            where: Fact.
        """

        def __init__(
            self, corners: Annotated[int, AtLeast(3)] = 5, size: float = 1, num_classes: int = 0, where: str = ""
        ):
            self.corners, self.size, self.num_classes, self.where = corners, size, num_classes, where

    return registry


def refusal(registry, component, **facts):
    with pytest.raises(ConfigError) as caught:
        registry.build(component, where="shape", **facts)
    return list(caught.value.problems)


def test_one_class_may_have_several_names_with_arguments_fixed(shapes):
    assert sorted(shapes) == ["Polygon", "square", "triangle"]
    assert shapes.build("square", where="shape").corners == 4
    assert shapes.build({"type": "triangle", "args": {"size": 3}}, where="shape").size == 3.0
    assert "corners" not in parameters_of(shapes["square"])
    assert shapes.build(Component("Polygon"), where="shape").corners == 5


def test_one_class_may_have_other_defaults_under_another_name(shapes):
    @shapes.register("brick", corners=4, defaults={"size": 2.5})
    def polygon(corners: int, size: Annotated[float, AtLeast(1)] = 1.0, color: str = "red", where: str = "") -> tuple:
        """A shape of some corners.

        Args:
            corners: How many.
            size: Of each side.
            color: Of the paint.
            where: Fact.
        """
        return corners, size, color, where

    assert shapes.build("brick", where="shape") == (4, 2.5, "red", "shape.args")
    assert shapes.build({"type": "brick", "args": {"size": 7}}, where="shape") == (4, 7.0, "red", "shape.args")
    assert list(parameters_of(shapes["brick"])) == ["size", "color", "where"]
    problems: list[str] = []
    assert shapes.check("brick", where="shape", problems=problems).args == {"size": 2.5, "color": "red"}
    rules = shapes.json_schema()["anyOf"][1]["allOf"]
    (schema,) = [rule["then"]["properties"]["args"] for rule in rules if "brick" in str(rule["if"])]
    assert schema["properties"]["size"] == {
        "description": "Of each side.",
        "type": "number",
        "minimum": 1,
        "default": 2.5,
    }
    assert refusal(shapes, {"type": "brick", "args": {"size": 0, "corners": 3}}) == [
        "shape.args.size: expected a number of at least 1, got 0.",
        "shape.args.corners: unknown key. Choose from color, size.",
    ]


def test_the_description_of_a_name_shows_its_own_defaults(monkeypatch):
    registry = Registry("shape")
    monkeypatch.setitem(KINDS, "shapes", registry)

    @registry.register("ShapeOfTwo", defaults={"size": 2})
    @registry.register("ShapeOfOne")
    def shape(size: int = 1) -> int:
        """Something of a size."""
        return size

    assert "size: int = 1" in (describe("ShapeOfOne") or "")
    assert "size: int = 2" in (describe("ShapeOfTwo") or "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"defaults": {"weight": 1}}, "takes no argument 'weight'"),
        ({"weight": 1}, "takes no argument 'weight'"),
        ({"size": 1, "defaults": {"size": 1}}, "'size' is both preset and a default"),
    ],
)
def test_an_argument_that_cannot_be_given_is_found_at_registration(shapes, arguments, message):
    def box(size: int = 1) -> None:
        pass

    with pytest.raises(TypeError, match=message):
        shapes.register("box", **arguments)(box)
    assert "box" not in shapes


def test_a_component_receives_the_facts_that_it_names_and_no_others(shapes):
    built = shapes.build("square", where="shape", num_classes=7, total_steps=3)
    assert (built.num_classes, built.where) == (7, "shape.args")


def test_what_is_wrong_with_a_component_is_said_by_place(shapes):
    assert refusal(shapes, "squar") == ["shape: no shape is called 'squar'. Did you mean 'square'?"]
    assert refusal(shapes, {"type": "SQUARE"}) == ["shape.type: no shape is called 'SQUARE'. Did you mean 'square'?"]
    assert refusal(shapes, {"type": "square", "args": {"corners": 3, "size": "x", "num_classes": 2}}) == [
        "shape.args.corners: unknown key. Choose from size.",
        'shape.args.size: expected a number, got "x".',
        "shape.args.num_classes: is filled in by the framework. Remove it.",
    ]
    assert refusal(shapes, {"type": "Polygon", "args": {"corners": 2}}) == [
        "shape.args.corners: expected int of at least 3, got 2."
    ]


def test_a_name_is_given_once(shapes):
    with pytest.raises(KeyError, match="already registered"):
        shapes.register("square")(dict)


def test_what_would_swallow_misspelt_keys_cannot_be_registered(shapes):
    def greedy(**options):
        pass

    with pytest.raises(TypeError, match="swallow"):
        shapes.register()(greedy)


def test_an_annotation_that_does_not_exist_is_found_at_registration(shapes):
    def vague(size: "Missing") -> None:  # noqa: F821
        pass

    with pytest.raises(NameError):
        shapes.register()(vague)


def test_registering_gives_the_class_back(shapes):
    class Blob:
        """Of no shape."""

    assert shapes.register("blob")(Blob) is Blob
    assert isinstance(shapes.build("blob", where="shape", num_classes=3), Blob)


@pytest.mark.parametrize(
    "name",
    [
        "np",
        "torch",
        "__doc__",
        "__class__",
        "register",
        "_entries",
        "os.system",
        "Optimizer",
        "",
        " ",
        "Loss",
        "F",
        "nn",
    ],
)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_names_reach_registered_components_and_nothing_else(kind, name):
    assert name not in KINDS[kind]
    problems: list[str] = []
    assert KINDS[kind].parse(name, where="x", problems=problems) is None
    assert len(problems) == 1


@pytest.mark.parametrize("name", ["LBFGS", "SparseAdam", "Muon"])
def test_optimizers_that_cannot_train_a_network_from_json_are_left_out(name):
    assert name not in OPTIMIZERS


@pytest.mark.parametrize("name", ["LambdaLR", "MultiplicativeLR", "SequentialLR", "ChainedScheduler", "LRScheduler"])
def test_schedulers_that_json_cannot_say_are_left_out(name):
    assert name not in SCHEDULERS


def test_the_names_of_pytorch_segmentation_are_known():
    assert {"Poly", "OneCycle", "StepLR"} <= set(SCHEDULERS)
    assert {"SGD", "Adam", "AdamW"} <= set(OPTIMIZERS)
    assert {"CrossEntropyLoss2d", "DiceLoss", "CE_DiceLoss", "FocalLoss", "LovaszSoftmax"} <= set(LOSSES)


def test_optimizers_are_those_of_torch_itself():
    assert OPTIMIZERS["SGD"] is torch.optim.SGD
    assert not OPTIMIZERS.reserved("SGD") & FACTS


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_everything_registered_has_a_signature_without_wildcards(kind, name):
    for parameter in parameters_of(KINDS[kind][name]).values():
        assert parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_everything_registered_says_what_it_is(kind, name):
    target = KINDS[kind][name]
    target = target.func if isinstance(target, functools.partial) else target
    assert (target.__doc__ or "").strip() or target.__module__.startswith("torch.")


def test_a_section_of_the_config_is_described_as_components_are():
    from utils.schema import describe_arguments

    assert describe_arguments(TrainerConfig).keys() >= parameters_of(TrainerConfig).keys()


def test_modules_of_a_package_are_found_by_themselves(tmp_path, monkeypatch):
    package = tmp_path / "found_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "one.py").write_text("import sys; sys.found_by_test = __name__")
    monkeypatch.syspath_prepend(str(tmp_path))
    import_submodules("found_package")
    import sys

    assert sys.found_by_test == "found_package.one"
    del sys.found_by_test


def test_a_constant_fact_is_delivered_without_being_given(shapes):
    @shapes.register("hollow")
    def hollow(ignore_index: int, size: float = 1.0) -> tuple[int, float]:
        """A shape that is not there.

        Args:
            ignore_index: Fact.
            size: Of each side.
        """
        return ignore_index, size

    assert shapes.build("hollow", where="shape") == (255, 1.0)


def test_what_has_been_checked_is_not_checked_again(shapes, monkeypatch):
    problems: list[str] = []
    checked = shapes.check({"type": "square", "args": {"size": 3}}, where="shape", problems=problems)
    assert problems == []
    monkeypatch.setattr(f"{import_submodules.__module__}.check_arguments", None)
    assert shapes.build(checked, where="shape").size == 3.0
    assert shapes.check(checked, where="shape", problems=problems) is checked
    changed = Component(checked.type, {**checked.args, "size": "large"})
    monkeypatch.undo()
    assert refusal(shapes, changed) == ['shape.args.size: expected a number, got "large".']
