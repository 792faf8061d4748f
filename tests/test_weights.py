"""Pretrained weights: what is loaded, adapted, missing and refused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor

from engine.check import check_config
from engine.preflight import check_weights
from models import weights
from models.build import build_model
from models.weights import adapt_channels, load_backbone
from utils.config import load_config
from utils.errors import ConfigError
from utils.registry import BACKBONES
from utils.schema import Component


@pytest.fixture(scope="module")
def published() -> dict[str, Tensor]:
    """A state dict as torchvision publishes them."""
    torch.manual_seed(3)
    return torchvision.models.resnet18().state_dict()


@pytest.fixture
def file(published: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save(published, tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


def build(pretrained: Any, *, load_weights: bool = True, backbone: Any = "resnet18", **options: Any) -> Any:
    args = {"backbone": backbone, "head": "FCNHead", "pretrained": pretrained, **options}
    return build_model(Component("EncoderDecoder", args), num_classes=3, load_weights=load_weights)


def test_a_file_fills_the_backbone_and_the_log_says_so(
    file: Path, published: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="segwright"):
        model = build(str(file))
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, published[key]), key
    assert f"weights from {file}: 120 loaded, 2 ignored (fc.weight, fc.bias)" in caplog.text


@pytest.mark.parametrize("wrap", ["module.", "_orig_mod.", "backbone.", "module.backbone."])
def test_prefixes_of_wrappers_are_taken_off(wrap: str, published: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({"epoch": 3, "state_dict": {wrap + key: value for key, value in published.items()}}, path)
    model = build(str(path))
    assert torch.equal(model.backbone.conv1.weight, published["conv1.weight"])


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_checkpoint_of_others_is_accepted_by_the_check_and_by_the_model(
    key: str, published: dict[str, Tensor], tmp_path: Path, config_file: Callable[..., Path]
) -> None:
    path = tmp_path / "checkpoint.pth"
    torch.save({key: {**published, "note": "by others"}, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert torch.equal(build(str(path)).backbone.conv1.weight, published["conv1.weight"])
    for changes in ({"arch.args.pretrained": str(path)}, {"init_from": str(path)}):
        check_weights(check_config(load_config(config_file(changes))))


@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_grey_as_color_gives_the_same_features_for_any_number_of_channels(
    channels: int, file: Path, published: dict[str, Tensor]
) -> None:
    model = build(str(file), in_channels=channels)
    gray = torch.rand(1, 1, 16, 16)
    adapted = model.backbone.conv1(gray.expand(-1, channels, -1, -1))
    expected = torch.nn.functional.conv2d(gray.expand(-1, 3, -1, -1), published["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(adapted, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(model.backbone.layer4[1].conv2.weight, published["layer4.1.conv2.weight"])


def test_further_channels_leave_the_first_three_in_proportion() -> None:
    weight = torch.randn(4, 3, 3, 3)
    torch.testing.assert_close(adapt_channels(weight, 5)[:, :3], weight * 3 / 5)


def test_the_report_tells_loaded_mapped_missing_and_ignored_apart(published: dict[str, Tensor]) -> None:
    backbone = BACKBONES.build(Component("resnet18", {"se": "cSE"}), where="", in_channels=4)
    report = load_backbone(backbone, published, source="here", where="pretrained")
    assert report.mapped == ("conv1.weight",)
    assert report.ignored == ("fc.weight", "fc.bias")
    assert report.missing
    assert all(".gate." in key for key in report.missing)
    assert set(report.loaded) | {"conv1.weight"} == published.keys() - {"fc.weight", "fc.bias"}


def test_layers_without_pretrained_weights_are_initialized(file: Path) -> None:
    model = build(str(file))
    assert model.head.classify.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_weights_of_a_resnet_fill_the_first_stages_of_its_variant_with_large_kernels() -> None:
    torch.manual_seed(0)
    state = torchvision.models.resnet50().state_dict()
    backbone = BACKBONES.build("resnet50_gcn", where="", in_channels=3)
    assert backbone.weights == "resnet50"
    report = load_backbone(backbone, state, source="here", where="pretrained")
    assert torch.equal(backbone.layer2[3].conv2.weight, state["layer2.3.conv2.weight"])
    assert {key.rpartition(".")[0].split(".")[0] for key in report.missing} == {"layer3", "layer4"}


def test_multi_grid_blocks_start_from_the_last_published_one() -> None:
    torch.manual_seed(0)
    state = torchvision.models.mobilenet_v2().state_dict()
    backbone = BACKBONES.build(Component("mobilenet_v2", {"multi_grid": [1, 2, 4]}), where="", in_channels=3)
    report = load_backbone(backbone, state, source="here", where="pretrained")
    assert report.missing == ()
    assert len([key for key in report.mapped if key.startswith("grid.")]) == len(report.mapped) > 0
    for i in range(4):
        assert torch.equal(backbone.grid[i].conv[1][0].weight, state["features.16.conv.1.0.weight"])


def test_fcn8_takes_over_the_fully_connected_layers_of_vgg() -> None:
    torch.manual_seed(0)
    encoder = build_model(Component("FCN8", {"width_mult": 0.0625}), num_classes=3).encoder
    state = {k: torch.randn_like(v) for k, v in encoder.state_dict().items()}
    published = {
        k.replace("fc6", "classifier.0").replace("fc7", "classifier.3"): v.flatten(1)
        if k[:2] == "fc" and v.dim() > 1
        else v
        for k, v in state.items()
    }
    report = load_backbone(encoder, published, source="here", where="pretrained")
    assert set(report.mapped) == {"fc6.weight", "fc6.bias", "fc7.weight", "fc7.bias"}
    assert all(torch.equal(v, state[k]) for k, v in encoder.state_dict().items())
    # As a fully connected layer sees it: channels, rows, columns.
    x = torch.randn(1, encoder.fc6.in_channels, 7, 7)
    flat = torch.nn.functional.linear(x.flatten(1), published["classifier.0.weight"], published["classifier.0.bias"])
    torch.testing.assert_close(encoder.fc6(x).flatten(1), flat, atol=1e-4, rtol=1e-4)


def test_a_model_without_a_backbone_cannot_be_pretrained(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^arch.args.pretrained: UNet has no backbone. Set it to false.$"):
        build_model(Component("UNet", {"width_mult": 0.1, "pretrained": str(file)}), num_classes=2)


def test_nothing_is_loaded_where_a_checkpoint_follows(tmp_path: Path) -> None:
    build(str(tmp_path / "absent.pth"), load_weights=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: {k: v for k, v in state.items() if "layer3" not in k}, r"lacks 25 of 120 parameters of ResNet"),
        (
            lambda state: {**state, "layer1.0.conv1.weight": torch.zeros(1)},
            r"have other shapes, such as layer1.0.conv1",
        ),
        (lambda state: {**state, "bn1.bias": torch.full((64,), float("nan"))}, r"NaN or infinite values in bn1.bias"),
        (lambda state: {"epoch": 3}, r"holds no weights"),
        (lambda state: {"state_dict": {}}, r"holds no weights"),
    ],
)
def test_an_unusable_file_is_an_error_and_changes_nothing(
    damage: Any, message: str, published: dict[str, Tensor], tmp_path: Path
) -> None:
    path = tmp_path / "damaged.pth"
    torch.save(damage(published), path)
    with pytest.raises(ConfigError, match=message) as error:
        build(str(path))
    assert error.value.problems[0].startswith("arch.args.pretrained: ")


def test_missing_and_broken_files_are_one_line_errors(tmp_path: Path, file: Path) -> None:
    with pytest.raises(ConfigError, match=r"^arch.args.pretrained: .*absent.pth: no such checkpoint"):
        build(str(tmp_path / "absent.pth"))
    truncated = tmp_path / "truncated.pth"
    truncated.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ConfigError, match=r"^arch.args.pretrained: .*truncated.pth: is damaged \("):
        build(str(truncated))
    with pytest.raises(ConfigError, match="Give weights of the same network"):
        build(str(file), backbone="resnet50")


def test_public_weights_come_from_torchs_cache(
    file: Path, published: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file.rename(cache / url.rsplit("/", 1)[1])
    assert torch.equal(build(True).backbone.conv1.weight, published["conv1.weight"])


def test_a_failed_download_names_the_file_and_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(ConfigError) as error:
        build("required")
    (problem,) = error.value.problems
    assert problem.startswith("arch.args.pretrained: https://download.pytorch.org/models/resnet18-f37072fd.pth cannot")
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in problem
    assert "no route to host" in problem


def test_training_goes_on_loudly_without_weights_that_cannot_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(url: str, *args: Any, **kwargs: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(logging.getLogger("segwright"), "propagate", True)
    model = build(True)
    assert model.lacks_pretrained
    (said,) = {each.getMessage() for each in caplog.records if each.levelno == logging.WARNING}
    assert said.startswith("NOT PRETRAINED")
    assert "no route to host" in said
    with pytest.raises(ConfigError, match="no route to host"):  # random numbers that are never trained
        build(True, freeze_backbone=True)


def test_it_is_known_beforehand_whether_weights_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(weights, "PATIENCE", 0.5)
    url = weights.public_url("resnet18")
    assert weights.where_to_get(url.replace("https://download.pytorch.org", "http://127.0.0.1:9")) == ""
    monkeypatch.setattr(weights, "is_reachable", lambda url: True)
    assert weights.where_to_get(url) == "by download"
    weights.cached_file(url).parent.mkdir(parents=True)
    weights.cached_file(url).touch()
    assert weights.where_to_get(url) == "in torch's cache"


@pytest.mark.parametrize("args", [{"width_mult": 0.5}, {"deep_stem": True}])
def test_a_backbone_without_public_weights_says_so(args: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^arch.args.pretrained: no public weights are known"):
        build(True, backbone={"type": "resnet18", "args": args})
