"""Starting from another network's weights: classes by name, and torchvision's public networks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torchvision
from torch import Tensor

from base.base_model import BaseModel
from engine import assemble
from engine.check import check_config
from models import fine_tuning
from models.fine_tuning import (
    InitialWeights,
    TransferReport,
    class_axes,
    initialize_from,
    match_classes,
    read_initial_weights,
    transfer,
    transfer_by_class_name,
)
from tests.test_models import NARROW, SMALL, build, randomized
from utils.config import load_config
from utils.errors import CheckpointError, ConfigError
from utils.registry import MODELS

OLD = ("road", "sky", "car", "tree")


def start_of(model: BaseModel, classes: tuple[str, ...] | None = OLD) -> InitialWeights:
    return InitialWeights("old.pth", {name: value.clone() for name, value in model.state_dict().items()}, classes)


def by_name(
    model: BaseModel, kind: str, args: dict[str, Any], classes: tuple[str, ...], start: InitialWeights
) -> TransferReport:
    axes = class_axes(model, build(kind, args, len(classes) + 1), len(classes))
    return transfer_by_class_name(model, start, classes, axes, where="init_from.by_class_name")


@pytest.mark.parametrize("classes", [("car", "person", "road"), ("tree", "car", "sky", "road"), ("Sky ", *"abcdef")])
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_a_class_of_the_same_name_keeps_its_logits(kind: str, classes: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    args, images = SMALL[kind], torch.rand(1, 3, 33, 47) * 255
    old, new = randomized(build(kind, args, 4)), build(kind, args, len(classes)).eval()
    report = by_name(new, kind, args, classes, start_of(old))
    assert report.mapped
    assert report.fresh == report.unused == ()
    if kind in ("GCN", "EoMT"):  # they refine, or compare, the scores of all classes together
        return
    with torch.no_grad():
        before, after = old(images).logits, new(images).logits
    for index, name in enumerate(classes):
        if name.strip().lower() in OLD:
            torch.testing.assert_close(after[:, index], before[:, OLD.index(name.strip().lower())])


def test_where_scores_are_refined_both_axes_go_by_name() -> None:
    torch.manual_seed(0)
    classes = ("person", "car", "road")
    old, new = build("GCN", SMALL["GCN"], 4), build("GCN", SMALL["GCN"], 3)
    before = new.get_parameter("head.classify.weight").clone()
    by_name(new, "GCN", SMALL["GCN"], classes, start_of(old))
    after, theirs = new.get_parameter("head.classify.weight"), old.get_parameter("head.classify.weight")
    assert torch.equal(after[1:, 1:].flatten(), theirs[[[2, 2], [0, 0]], [[2, 0], [2, 0]]].flatten())
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[:, 0], before[:, 0])


def test_a_new_class_starts_as_it_would_have_and_the_report_tells_all_apart() -> None:
    torch.manual_seed(0)
    args = {"backbone": NARROW, "head": "FCNHead"}
    old, new = build("EncoderDecoder", args, 4), build("EncoderDecoder", args, 3)
    row = new.get_parameter("head.classify.weight")[1].clone()
    weights = dict(start_of(old).weights)
    del weights["head.convs.0.0.weight"]
    weights["foreign"] = torch.zeros(3)
    report = by_name(new, "EncoderDecoder", args, ("car", "person", "sky"), InitialWeights("old.pth", weights, OLD))
    assert torch.equal(new.get_parameter("head.classify.weight")[1], row)
    assert torch.equal(new.get_parameter("head.classify.bias"), torch.zeros(3))
    assert report.mapped == ("head.classify.weight", "head.classify.bias")
    assert report.fresh == ("head.convs.0.0.weight",)
    assert report.unused == ("foreign",)
    assert (report.known, report.new) == (("car", "sky"), ("person",))
    assert len(report.loaded) == len(new.state_dict()) - 3
    assert str(report).startswith(f"old.pth: {len(report.loaded)} of {len(new.state_dict())} weights loaded; 2 mapped")


def test_axes_that_are_as_long_by_accident_are_not_taken_for_classes() -> None:
    args = {"backbone": NARROW, "head": {"type": "FCNHead", "args": {"channels": 8}}}
    model, larger = (build("EncoderDecoder", args, count) for count in (8, 9))
    assert class_axes(model, larger, 8) == {"head.classify.weight": {0: 1}, "head.classify.bias": {0: 1}}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (("car", "road"), ("road", "car"), {0: 1, 1: 0}),
        (("Dining table", "background"), ("__background__", "diningtable"), {0: 1, 1: 0}),
        (("car",), ("Car", "car"), {0: 1}),
        (("CAR",), ("Car", "car"), {}),  # either could be meant
        (("?",), ("!",), {}),
    ],
)
def test_names_match_but_for_case_spaces_and_punctuation(ours: Any, theirs: Any, expected: dict[int, int]) -> None:
    assert match_classes(ours, theirs) == expected


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (None, r"^init_from.by_class_name: old.pth does not say which classes it knows. Set it to false.$"),
        (("a", "b", "c", "d"), r"^init_from.by_class_name: no class of old.pth \(a, b, c, d\) has the name of one"),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(classes: Any, message: str) -> None:
    model = build("ENet", {}, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match=message):
        by_name(model, "ENet", {}, ("car", "road"), start_of(build("ENet", {}, 4), classes))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_weights_that_are_not_finite_or_of_another_network_change_nothing() -> None:
    model = build("ENet", {}, 4)
    start = start_of(model)
    next(iter(start.weights.values())).fill_(torch.nan)
    with pytest.raises(CheckpointError, match="is not finite"):
        transfer(model, start)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(CheckpointError, match="none of its 1 weights fits the model"):
        transfer(model, InitialWeights("x.pth", {"foreign": torch.zeros(1)}))


def test_a_run_starts_from_another_whose_classes_are_others(
    finished_run: Path, tmp_path: Path, config_file: Callable[..., Path], train_command: Callable[..., Any]
) -> None:
    state = torch.load(finished_run / "best_model.pth", weights_only=True)
    state["classes"] = ["dot", "ground", "other"]
    torch.save(state, tmp_path / "old.pth")
    start = {"path": str(tmp_path / "old.pth"), "by_class_name": True}
    file = config_file({"init_from": start, "optimizer.args.lr": 0.0, "trainer.epochs": 1})
    answer = train_command("-c", file, "--import", "tests.tiny")
    assert answer.status == 0, answer.err
    assert "mapped for the classes ground, dot; fresh classes: square" in answer.out
    (trained,) = tmp_path.glob("saved/tiny/*-*/last.pth")
    rows = torch.load(trained, weights_only=True)["state_dict"]["head.classify.weight"]
    assert torch.equal(rows[[0, 2]], state["state_dict"]["head.classify.weight"][[1, 0]])
    assert not torch.equal(rows[1], state["state_dict"]["head.classify.weight"][2])


def test_other_classes_that_are_taken_as_they_come_are_pointed_out(
    finished_run: Path, tmp_path: Path, config_file: Callable[..., Path], train_command: Callable[..., Any]
) -> None:
    state = torch.load(finished_run / "best_model.pth", weights_only=True)
    for classes, hinted in ((state["classes"], False), (state["classes"][::-1], True), (["a", "b", "c"], False)):
        torch.save({**state, "classes": classes}, tmp_path / "old.pth")
        config = check_config(load_config(config_file({"init_from": str(tmp_path / "old.pth")})))
        with mock.patch.object(fine_tuning.logger, "warning") as warning:
            initialize_from(
                config.start, assemble.build_network(config), arch=config.arch, classes=config.classes.names
            )
        assert warning.called == hinted


@pytest.mark.parametrize("ours", ["dataset", "image"])
@pytest.mark.parametrize("theirs", [{"mean": [0.5], "std": [0.2]}, {"mean": [], "std": []}])
def test_weights_that_know_images_normalized_otherwise_are_pointed_out(
    ours: str, theirs: dict[str, list[float]], finished_run: Path, tmp_path: Path, config_file: Callable[..., Path]
) -> None:
    state = torch.load(finished_run / "best_model.pth", weights_only=True)
    torch.save({**state, "normalization": theirs}, tmp_path / "old.pth")
    changes = {"init_from": str(tmp_path / "old.pth"), "normalization": ours}
    config = check_config(load_config(config_file(changes)))
    with mock.patch.object(fine_tuning.logger, "warning") as warning:
        initialize_from(config.start, assemble.build_network(config), arch=config.arch, classes=config.classes.names)
    assert warning.called == ((ours == "image") != (not theirs["mean"]))


# torchvision's segmentation networks


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def published(name: str) -> dict[str, Tensor]:
    """Some of the weights that torchvision's file would hold, so that it is small."""
    with torch.device("meta"):
        network = torchvision.models.get_model(name, weights=None, weights_backbone=None, aux_loss=True)
    kept = ("backbone.conv1", "classifier.0.project", "classifier.4", "aux_classifier.4")
    state = {key: value for key, value in network.state_dict().items() if key.startswith(kept)}
    return {k: torch.randn(v.shape) if v.is_floating_point() else torch.ones(()) for k, v in state.items()}


def test_torchvisions_network_is_a_start_by_name(cache: Path) -> None:
    torch.manual_seed(0)
    state = published("deeplabv3_resnet50")
    torch.save(state, cache / "deeplabv3_resnet50_coco-cd0a2569.pth")
    start = read_initial_weights(Path("torchvision/deeplabv3_resnet50"), where="init_from")
    assert start.classes is not None
    assert start.classes[15] == "person"
    classes = ("background", "person", "robot")
    model = build("DeepLabV3", {}, 3)
    with torch.device("meta"):
        larger = build("DeepLabV3", {}, 4)
    report = transfer_by_class_name(model, start, classes, class_axes(model, larger, 3), where="")
    assert report.unused == ()
    assert report.new == ("robot",)
    assert torch.equal(model.get_parameter("head.classify.weight")[:2], state["classifier.4.weight"][[0, 15]])
    assert torch.equal(model.get_parameter("aux_heads.0.classify.bias")[1], state["aux_classifier.4.bias"][15])
    assert torch.equal(model.get_parameter("backbone.conv1.weight"), state["backbone.conv1.weight"])


@pytest.mark.parametrize("name", ["deeplabv3_resnet50", "deeplabv3_resnet101", "fcn_resnet50", "fcn_resnet101"])
def test_a_failed_download_of_a_network_names_the_file_and_its_place(
    name: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ConfigError) as error:
        read_initial_weights(Path(f"torchvision/{name}"), where="init_from")
    (problem,) = error.value.problems
    assert problem.startswith(f"init_from: https://download.pytorch.org/models/{name}_coco-")
    assert f"(no route to host). Put that file at {cache / f'{name}_coco-'}" in problem


def test_checking_a_config_downloads_nothing_and_knows_the_names(
    cache: Path, config_file: Callable[..., Path], train_command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **options: pytest.fail("a download"))
    common = ("--import", "tests.tiny", "--check")
    answer = train_command("-c", config_file({"init_from": "torchvision/fcn_resnet50"}), *common)
    assert answer.status == 0, answer.err
    answer = train_command("-c", config_file({"init_from": "torchvision/fcn_resnet5"}), *common)
    assert answer.errors == [
        "init_from: no weights of torchvision's are called 'fcn_resnet5' here. Did you mean 'fcn_resnet50'?"
    ]
    answer = train_command("-c", config_file({"init_from": {"path": "x.pth", "by_clas_name": True}}), *common)
    assert answer.errors == ["init_from.by_clas_name: unknown key. Did you mean 'by_class_name'?"]


def test_what_is_none_of_the_classes_keeps_its_entries_behind_them() -> None:
    args, classes = SMALL["EoMT"], ("tree", "car", "sky", "road")
    old, new = randomized(build("EoMT", args, 4)), build("EoMT", args, 4)
    by_name(new, "EoMT", args, classes, start_of(old))
    before, after = (dict(model.named_parameters())["classify.bias"] for model in (old, new))
    assert after.tolist() == [*(before[OLD.index(name)].item() for name in classes), before[-1].item()]
