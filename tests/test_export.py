"""Exported files predict what their checkpoints do, at every size, or say that they do not."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

import evaluate
import export
import inference
from base.base_model import BaseModel
from dataloader.transforms.chain import ResizeOptions
from dataloader.transforms.preparation import Preparation
from engine import assemble
from engine.exporting import command, graph
from engine.exporting.card import card
from engine.exporting.int8 import calibration_images
from engine.exporting.parity import batches_of, compare, generated_examples, parity_sizes
from engine.exporting.read import check_use, load_network, load_run, runner_of, session_of
from engine.exporting.table import BEGIN, CROP, END, cases, measure, read_figures, scenes, table
from engine.exporting.write import metadata_of, write_onnx
from models.blocks import Classifier, unpool
from models.build import build_model
from models.fine_tuning import read_initial_weights
from models.necks.pyramid_pooling import GridMean
from tests.conftest import ROOT, Answer, call
from utils import checkpoint
from utils.classes import ClassTable
from utils.errors import CheckpointError, DataError
from utils.outputs import SegOutput, resize
from utils.predict import Predictor
from utils.registry import MODELS

TINY = ("--import", "tests.tiny")
CPU = torch.device("cpu")
DOCUMENT = ROOT / "docs" / "deploy.md"
PSPNET = {"type": "PSPNet", "args": {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}}}


def have(*packages: str) -> bool:
    return all(importlib.util.find_spec(package) for package in packages)


needs_onnx = pytest.mark.skipif(
    not have("onnx", "onnxscript", "onnxruntime"), reason="onnx, onnxscript and onnxruntime are not all installed"
)
needs_safetensors = pytest.mark.skipif(not have("safetensors"), reason="safetensors is not installed")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


class PlainNet(BaseModel):
    """A network that is exported in no time, for tests.

    Args:
        num_classes: Channels of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classify = Classifier(3, num_classes)

    def predict(self, images: Tensor) -> SegOutput:
        return SegOutput(self.classify(images[..., ::2, ::2]))


class RigidNet(BaseModel):
    """A network that counts on the size that it saw first, for tests.

    Args:
        num_classes: Channels of the logits.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classify = Classifier(3, num_classes)

    def predict(self, images: Tensor) -> SegOutput:
        column = torch.ones(int(images.shape[-2]), 1)  # the size becomes a plain number
        return SegOutput(self.classify(images * column))


@pytest.fixture(autouse=True, scope="module")
def _registered() -> Iterator[None]:
    """Register the networks of this file, and forget them afterwards: other tests run over all that there are."""
    for network in (PlainNet, RigidNet):
        MODELS.register()(network)
    yield
    for network in (PlainNet, RigidNet):
        del MODELS._entries[network.__name__]


def export_command(*arguments: Any) -> Answer:
    return call(export, *arguments, *TINY)


def distinct(arch: dict[str, Any], images: Tensor, num_classes: int) -> BaseModel:
    """An untrained network whose maps are normalized and whose classes all win somewhere.

    Args:
        arch: Of a config.
        images: (N, 3, H, W) uint8, at least 2.
        num_classes: Channels of the logits.
    """
    torch.manual_seed(0)
    model = build_model(arch, num_classes=num_classes, load_weights=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all batches
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    with torch.no_grad():
        model.train()
        for _ in range(2):
            model(images)
        model.eval()
        means = model(images).logits.mean((0, 2, 3))
        for module in reversed(list(model.modules())):
            bias = getattr(module, "bias", None)
            if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or bias is None or len(bias) % len(means):
                continue
            before = bias.clone()
            bias -= means.repeat_interleave(len(bias) // len(means))
            left = model(images).logits.mean((0, 2, 3)).abs().max()
            if left < 0.2 * means.abs().max():
                return model
            bias.copy_(before)
    return model


def make_checkpoint(run: Path, path: Path, arch: dict[str, Any], **changes: Any) -> Path:
    """A copy of the best checkpoint of `run` with an untrained network that tells its classes apart."""
    state = checkpoint.load_run(run / "best_model.pth")
    images = torch.stack([torch.from_numpy(example.image).permute(2, 0, 1) for example in scenes(2)])
    state["state_dict"] = distinct(arch, images, len(state["classes"])).state_dict()
    state["normalization"] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    state["arch"] = state["config"]["arch"] = arch
    checkpoint.save(path, state | changes)
    return path


@pytest.fixture(scope="module")
def pspnet(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a network that naive exporters get wrong."""
    return make_checkpoint(finished_run, tmp_path_factory.mktemp("pspnet") / "best_model.pth", PSPNET)


@pytest.fixture(scope="module")
def onnx_file(pspnet: Path) -> Path:
    """Its graph, with all outputs."""
    if not have("onnx", "onnxscript", "onnxruntime"):
        pytest.skip("onnx, onnxscript and onnxruntime are not all installed")
    path = pspnet.with_name("model.onnx")
    answer = export_command("-m", pspnet, "-o", path, "--outputs", "labels,confidence,logits")
    assert answer.status == 0, answer.err
    return path


@pytest.fixture(scope="module")
def torch_file(pspnet: Path) -> Path:
    """Its program, with labels and logits."""
    path = pspnet.with_name("model.pt2")
    answer = export_command("-m", pspnet, "-o", path, "--outputs", "labels,logits")
    assert answer.status == 0, answer.err
    return path


@pytest.fixture(scope="module")
def safetensors_file(pspnet: Path) -> Path:
    """Its weights."""
    if not have("safetensors"):
        pytest.skip("safetensors is not installed")
    path = pspnet.with_name("model.safetensors")
    answer = export_command("-m", pspnet, "-o", path)
    assert answer.status == 0, answer.err
    return path


@pytest.fixture(params=["onnx", "torch", "safetensors"])
def exported_file(request: pytest.FixtureRequest) -> Path:
    path: Path = request.getfixturevalue(f"{request.param}_file")
    return path


def load(path: Path) -> Predictor:
    return assemble.load_predictor(path, CPU, modules=["tests.tiny"])


def image(height: int, width: int) -> np.ndarray:
    (example,) = generated_examples(1, 3)
    return np.ascontiguousarray(example.image[:height, :width])


# ----------------------------------------------------------------------------------------------------- the files


def test_the_file_predicts_what_its_checkpoint_predicts_at_sizes_that_were_not_traced(
    pspnet: Path, exported_file: Path
) -> None:
    expected = load(pspnet)
    predictor = load(exported_file)
    for size in ((49, 81), (200, 300), (199, 47), (240, 47)):
        labels = expected.predict(image(*size))
        assert len(np.unique(labels)) == 3
        assert np.mean(predictor.predict(image(*size)) == labels) >= 0.9999


def test_how_weights_lie_in_memory_does_not_decide_whether_there_is_a_graph_for_every_size() -> None:
    arch = {"type": "UNetResnet", "args": {"backbone": {"type": "resnet50", "args": {"width_mult": 0.125}}}}
    network = build_model(arch, num_classes=3, load_weights=False).eval()
    graph.trace(network.to(memory_format=torch.channels_last), 3, ("labels",), None)  # as predictors have it


@pytest.mark.parametrize(("neck", "head", "smallest"), [(None, "PANHead", 264), ("SimpleFPN", "LinearHead", 32)])
def test_maps_of_few_pixels_do_not_bind_a_graph_to_one_size(neck: str | None, head: str, smallest: int) -> None:
    args = {
        "backbone": {"type": "resnet18", "args": {"width_mult": 0.125}},
        "necks": [{"type": neck, "args": {"channels": 16}}] if neck else [],
        "head": {"type": head, "args": {"channels": 16} if head == "PANHead" else {}},
    }
    network = build_model({"type": "EncoderDecoder", "args": args}, num_classes=3, load_weights=False).eval()
    program = graph.trace(network, 3, ("logits",), None).module()
    for size in ((smallest, smallest), (smallest + 8, 300)):
        images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            expected = resize(network(images).logits, size)
            torch.testing.assert_close(program(images)[0], expected)


def test_the_comparison_is_written_beside_the_file(onnx_file: Path) -> None:
    report = json.loads(onnx_file.with_name(f"{onnx_file.name}.parity.json").read_text())
    assert report["proven"]
    assert report["images"] == "Squares val"
    assert report["agreement"] >= 0.999
    assert report["largest_logit_difference"] < 1e-3
    assert abs(report["mean_iou"]["difference"]) < 1e-3
    sizes = [tuple(entry["size"]) for entry in report["sizes"]]
    assert len(sizes) == 8
    assert any(height % 2 and width % 2 for height, width in sizes)


def test_sizes_are_odd_and_even_landscape_and_portrait_larger_and_smaller_than_the_crop() -> None:
    sizes = parity_sizes((380, 380))
    assert len(set(sizes)) == 8
    assert {height > width for height, width in sizes} == {True, False}
    assert any(height % 2 and width % 2 for height, width in sizes)
    assert any(max(size) < 380 for size in sizes)
    assert any(max(size) > 380 for size in sizes)
    assert parity_sizes((380, 380), (64, 96)) == [(64, 96)] * 8


def test_other_programs_find_classes_and_colors_in_the_file(onnx_file: Path, pspnet: Path) -> None:
    session = session_of(str(onnx_file))
    about = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    state = checkpoint.load_run(pspnet)
    assert about["classes"] == ["ground", "square", "dot"]
    assert about["colors"] == [list(color) for color in state["palette"]]
    assert about["normalization"] == state["normalization"]
    assert about["protocol"] == state["protocol"]
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type) == ("image", "tensor(uint8)")
    assert [output.name for output in session.get_outputs()] == ["labels", "confidence", "logits"]


def test_labels_are_those_of_the_largest_logits_and_confidence_their_probability(onnx_file: Path) -> None:
    network, _ = load_network(onnx_file, CPU)
    found = network.outputs(torch.from_numpy(image(61, 90)).permute(2, 0, 1)[None])
    assert found["labels"].dtype == torch.uint8
    assert torch.equal(found["labels"], found["logits"].argmax(1).to(torch.uint8))
    torch.testing.assert_close(found["confidence"], found["logits"].softmax(1).amax(1))


@pytest.mark.parametrize("kind", ["torch", "safetensors"])
def test_programs_and_weights_are_equal_to_the_bit(pspnet: Path, kind: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(f"{kind}_file")
    expected = load(pspnet)
    predictor = load(path)
    for size in ((97, 131), (64, 200), (33, 33)):
        images = torch.from_numpy(image(*size)).permute(2, 0, 1)[None]
        logits = resize(expected.logits(images), size)
        assert torch.equal(resize(predictor.logits(images), size), logits)


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=needs_onnx), "pt2"])
def test_images_normalized_each_by_itself_are_so_in_a_graph(suffix: str, finished_run: Path, tmp_path: Path) -> None:
    own = {"normalization": {"mean": [], "std": []}}
    path = make_checkpoint(finished_run, tmp_path / "own.pth", PSPNET, **own)
    answer = export_command("-m", path, "-o", tmp_path / f"own.{suffix}", "--outputs", "labels,logits")
    assert answer.status == 0, answer.err
    images = torch.from_numpy(image(97, 131) // 2 * 2).permute(2, 0, 1)[None]
    graph = load(tmp_path / f"own.{suffix}")
    assert graph.about["normalization"] == own["normalization"]
    bright, dark = (resize(graph.logits(each), (97, 131)) for each in (images, images // 2))
    torch.testing.assert_close(dark, bright, rtol=1e-3, atol=1e-3)
    model = load(path)
    one_band = images.clone()
    one_band[:, 1:] = 0
    for each in (images, one_band, torch.zeros_like(images)):
        found, expected = (resize(predictor.logits(each), (97, 131)) for predictor in (graph, model))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_who_exports_is_told_that_validation_resized_its_images(finished_run: Path, tmp_path: Path) -> None:
    resized = {"preprocessing": Preparation(resize=ResizeOptions(size=(48, 64))).to_json()}
    for name, changes, told in (("plain", {}, False), ("resized", resized, True)):
        path = make_checkpoint(finished_run, tmp_path / f"{name}.pth", PSPNET, **changes)
        answer = export_command("-m", path, "-o", tmp_path / f"{name}.pt2")
        assert answer.status == 0, answer.err
        assert ("validation resized its images" in answer.err + answer.out) == told


@needs_onnx
def test_a_graph_of_labels_alone_lacks_the_work_for_others(onnx_file: Path) -> None:
    import onnx

    whole = onnx.load(str(onnx_file))
    alone = graph.with_outputs(whole, ("labels",))
    onnx.checker.check_model(alone)
    assert len(alone.graph.node) < len(whole.graph.node)
    images = torch.from_numpy(image(77, 50)).permute(2, 0, 1)[None]
    expected = runner_of(session_of(whole.SerializeToString()))(images)
    found = runner_of(session_of(alone.SerializeToString()))(images)
    assert found.keys() == {"labels"}
    assert torch.equal(found["labels"], expected["labels"])


# -------------------------------------------------------------------------------------- where checkpoints are taken


MODES = {"single": [], "multiscale": ["--scales", "1", "1.5"], "sliding": ["--window", "32", "32", "--flip"]}


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_takes_it_in_every_mode(
    pspnet: Path, exported_file: Path, mode: str, evaluate_command: Callable[..., Answer], tmp_path: Path
) -> None:
    figures = []
    for path in (pspnet, exported_file):
        output = tmp_path / f"{path.name}.json"
        answer = evaluate_command("-m", path, "-mo", mode, *MODES[mode], "--output", output, *TINY)
        assert answer.status == 0, answer.err
        figures.append(json.loads(output.read_text())["metrics"])
    # Graphs round what is resized to whole numbers.
    tolerance = 2e-2 if mode == "multiscale" else 1e-3
    assert figures[1]["Mean_IoU"] == pytest.approx(figures[0]["Mean_IoU"], abs=tolerance)


def test_inference_takes_it_where_it_takes_a_checkpoint(
    pspnet: Path, exported_file: Path, inference_command: Callable[..., Answer], tmp_path: Path
) -> None:
    Image.fromarray(image(70, 111)).save(tmp_path / "photo.png")
    found = []
    for path in (pspnet, exported_file):
        output = tmp_path / path.name
        wanted = "index,probability"
        answer = inference_command(
            "-m", path, "-i", tmp_path / "photo.png", "-o", output, "-mo", "single", "--save", wanted, *TINY
        )
        assert answer.status == 0, answer.err
        found.append([np.asarray(Image.open(output / f"photo_{kind}.png")) for kind in wanted.split(",")])
    assert np.mean(found[0][0] == found[1][0]) >= 0.9999
    assert np.abs(found[0][1].astype(int) - found[1][1]).max() <= 1


@needs_onnx
def test_what_takes_logits_is_refused_for_a_graph_of_labels(
    pspnet: Path, onnx_file: Path, evaluate_command: Callable[..., Answer], inference_command: Callable[..., Answer]
) -> None:
    import onnx

    path = onnx_file.with_name("labels.onnx")
    metadata = metadata_of(checkpoint.load_run(pspnet), outputs=("labels",))
    write_onnx(path, graph.with_outputs(onnx.load(str(onnx_file)), ("labels",)), metadata)
    assert evaluate_command("-m", path, *TINY).status == 0
    line = f"{path}: gives no logits. Export it with --outputs labels,logits, or "
    single = f"{line}use --mode single without --flip."
    assert evaluate_command("-m", path, "--flip", *TINY).errors == [single]
    photo = onnx_file.with_name("photo.png")
    Image.fromarray(image(70, 111)).save(photo)
    folder = onnx_file.with_name("out")
    answer = inference_command("-m", path, "-i", photo, "-o", folder, "-mo", "sliding")
    assert (answer.status, answer.errors) == (2, [single])
    answer = inference_command("-m", path, "-i", photo, "-o", folder, "-mo", "single", "--save", "probability")
    assert (answer.status, answer.errors) == (2, [f"{line}ask for labels only."])


@pytest.mark.parametrize("name", ["model.onnx", "model.pt2", "model.safetensors"])
def test_a_file_that_is_none_is_refused_in_one_line(
    name: str, evaluate_command: Callable[..., Answer], tmp_path: Path
) -> None:
    package = {"model.onnx": "onnxruntime", "model.safetensors": "safetensors"}.get(name)
    if package and not have(package):
        pytest.skip(f"{package} is not installed")
    path = tmp_path / name
    answer = evaluate_command("-m", path)
    assert (answer.status, answer.errors) == (2, [f"{path}: no such file. Name one that export.py wrote."])
    path.write_bytes(b"nothing that could be read")
    answer = evaluate_command("-m", path)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(f"{path}: cannot be used (")
    assert line.endswith("). Name a file that export.py wrote, or a checkpoint.")


def test_a_graph_has_its_own_precision_and_config(
    torch_file: Path, config_file: Callable[..., Path], evaluate_command: Callable[..., Answer]
) -> None:
    answer = evaluate_command("-m", torch_file, "--precision", "bf16", *TINY)
    assert answer.errors == [f"--precision bf16: has no effect on {torch_file}, a graph. Leave it out."]
    answer = evaluate_command("-m", torch_file, "-c", config_file(), *TINY)
    assert answer.errors == [f"--config: has no effect on {torch_file}, which describes itself. Leave it out."]


def test_a_missing_package_is_named(onnx_file: Path, pspnet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(CheckpointError, match="needs onnxruntime, which is not installed"):
        load(onnx_file)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else object())
    answer = export_command("-m", pspnet, "-o", pspnet.with_name("other.onnx"))
    assert answer.status == 2
    assert answer.errors == ["--format onnx: needs onnxscript, not installed. `pip install onnxscript`."]


# ---------------------------------------------------------------------------------------------------- the proof


def test_a_file_that_differs_keeps_its_suffix_and_the_status_is_3(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluate_command: Callable[..., Answer]
) -> None:
    plain = make_checkpoint(finished_run, tmp_path / "plain.pth", {"type": "PlainNet", "args": {}})
    real = graph.ExportGraph.forward

    def turned(self: graph.ExportGraph, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.flip(-1) for output in real(self, image))

    monkeypatch.setattr(graph.ExportGraph, "forward", turned)
    path = tmp_path / "model.pt2"
    answer = export_command("-m", plain, "-o", path)
    unproven = tmp_path / "model.pt2.unproven"
    assert answer.status == 3
    assert re.match(rf"not proven: {re.escape(str(unproven))}: agreement [\d.]+ % at \d+x\d+\. ", answer.err)
    assert not path.exists()
    assert not json.loads((tmp_path / "model.pt2.parity.json").read_text())["proven"]
    answer = evaluate_command("-m", unproven, *TINY)
    assert answer.status == 0, answer.err
    assert "differs from its checkpoint" in answer.out + answer.err


def test_files_of_one_name_in_several_formats_have_a_comparison_each() -> None:
    reports = {command.Export(Path("b.pth"), Path(name), "x").report for name in ("a.onnx", "a.pt2", "a.safetensors")}
    assert len(reports) == 3


def test_a_graph_without_labels_and_logits_is_refused() -> None:
    line = "m.onnx: gives confidence only, no classes. Export it with --outputs labels."
    with pytest.raises(CheckpointError) as caught:
        check_use(Path("m.onnx"), {"outputs": ["confidence"]}, averages=False, probabilities=False)
    assert caught.value.problems == (line,)
    check_use(Path("m.onnx"), {"outputs": ["confidence", "labels"]}, averages=False, probabilities=False)


def test_a_confidence_that_is_not_that_of_the_logits_is_found() -> None:
    def network(images: Tensor) -> SegOutput:
        return SegOutput(images[:, :2].float() / 50)

    def run(images: Tensor, error: float) -> dict[str, Tensor]:
        return {"confidence": network(images).logits.softmax(1).amax(1) + error}

    classes = ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9)), ((0,), (1,)))
    for error, agreement in ((0.0, 1), (0.1, 0)):
        parity = compare(
            network,  # type: ignore[arg-type]
            lambda images, error=error: run(images, error),  # type: ignore[misc]
            batches_of(generated_examples(2, 3), [(40, 50)]),
            classes,
            lambda images: {"logits": network(images).logits},
        )
        assert parity.agreement == agreement


@pytest.mark.parametrize(("channels", "dtype"), [(3, np.uint8), (4, np.float32)])
def test_images_to_calibrate_with_have_the_channels_of_the_network(tmp_path: Path, channels: int, dtype: Any) -> None:
    classes = ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9)), ((0,), (1,)))
    predictor = Predictor(nn.Linear(1, 1), classes, {"arch": {"args": {"in_channels": channels}}})
    values = np.random.default_rng(0).integers(0, 255, (60, 90, channels), dtype=np.uint8)
    np.save(tmp_path / "a.npy", values)
    (found,) = calibration_images([tmp_path / "a.npy"], (40, 50), predictor)
    assert found.dtype == dtype
    assert np.array_equal(found, values[10:50, 20:70])
    with pytest.raises(DataError, match="no image is as large as --size 128 96"):
        calibration_images([tmp_path / "a.npy"], (128, 96), predictor)


@pytest.mark.parametrize("channels", [1, 2])
def test_images_of_few_channels_are_cut_and_enlarged(channels: int) -> None:
    (batch,) = batches_of(generated_examples(2, channels), [(400, 50)])
    assert batch.images.shape == (2, channels, 400, 50)


def test_a_comparison_by_labels_counts_every_pixel() -> None:
    class Left(nn.Module):
        def forward(self, images: Tensor) -> SegOutput:
            score = images[:, :1].float()
            return SegOutput(torch.cat([score, 255 - score], dim=1))

    def run(images: Tensor) -> dict[str, Tensor]:
        logits = Left()(images).logits.clone()
        logits[:, :, 0, 0] = logits[:, [1, 0], 0, 0]  # one pixel of each image is another class
        return {"logits": logits}

    classes = ClassTable(("a", "b"), ((0, 0, 0), (9, 9, 9)), ((0,), (1,)))
    batches = batches_of(generated_examples(4, 3), [(40, 50), (50, 40)])
    parity = compare(Left(), run, batches, classes)
    assert parity.agreement == pytest.approx(1 - 1 / 2000)
    assert parity.mean_iou is None
    assert parity.proven(rounded=False)
    assert not compare(Left(), lambda images: {"logits": run(images)["logits"].flip(1)}, batches, classes).proven(
        rounded=False
    )


def test_without_its_dataset_generated_images_are_taken(pspnet: Path, tmp_path: Path) -> None:
    state = checkpoint.load_run(pspnet)
    section = state["config"]["val_loader"]
    section["type"], section["args"] = "Folder", {"data_dir": "nowhere", "batch_size": 1}
    examples, source = command.parity_examples(state, None)
    assert source == "generated"
    assert len(examples) == 16
    assert examples[0].image.shape == (240, 320, 3)
    four = generated_examples(1, 4)[0].image
    assert (four.shape, four.dtype) == ((240, 320, 4), np.float32)


def test_a_network_that_fits_one_size_only_is_refused_with_the_reason(finished_run: Path, tmp_path: Path) -> None:
    path = make_checkpoint(finished_run, tmp_path / "rigid.pth", {"type": "RigidNet", "args": {}})
    answer = export_command("-m", path, "-o", tmp_path / "model.pt2")
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(f"{path}: RigidNet cannot be exported for images of any size (")
    assert line.endswith("). Use --size H W.")
    answer = export_command("-m", path, "-o", tmp_path / "model.pt2", "--size", 48, 64)
    assert answer.status == 0, answer.err
    predictor = load(tmp_path / "model.pt2")
    assert predictor.predict(image(48, 64)).shape == (48, 64)
    with pytest.raises(ValueError, match="takes images of 48x64 only, and was given 48x65"):
        predictor.predict(image(48, 65))


# ------------------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-o", "m.txt"], "--output m.txt: has an ending that says no format. End it in one of .onnx, .pt2, "),
        (["-o", "m.pt2", "-f", "onnx"], "--output m.pt2: does not end in .onnx. "),
        (["--outputs", "labels,masks"], "--outputs masks: unknown. Choose from labels, confidence, logits."),
        (["--int8"], "--int8: needs images to see which numbers occur. Add --calibrate DIR."),
        (["--calibrate", "x"], "--calibrate: has no effect without --int8. Add it, or leave this out."),
        (["-f", "torch", "--int8", "--calibrate", "x"], "--int8: has no effect with --format torch. "),
        (["-f", "torch", "--half"], "--half: has no effect with --format torch. Use --format safetensors."),
        (["-f", "safetensors", "--size", "64", "64"], "--size: has no effect with --format safetensors"),
        (["--size", "0", "64"], "--size 0 64: no size. Use two numbers of at least 1."),
        (["-f", "torch"], "none.pth: no such checkpoint. Name a .pth file of a run folder."),
        ([], "command line: the following arguments are required: -m/--model."),
    ],
)
def test_wrong_arguments_are_answered_in_one_line(arguments: list[str], expected: str) -> None:
    answer = call(export, *(["-m", "none.pth"] if arguments else []), *arguments)
    (line,) = answer.errors
    assert answer.status == 2
    assert line.startswith(expected)


def test_the_model_card_names_the_first_of_joined_sets(finished_run: Path, tmp_path: Path) -> None:
    state = checkpoint.load_run(finished_run / "best_model.pth")
    state["config"]["train_loader"] = [state["config"]["train_loader"]]
    state["protocol"] = {}
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    assert f'datasets: ["{state["config"]["train_loader"][0]["type"]}"]' in card(weights, state, None)


@needs_safetensors
def test_the_model_card_has_the_figures_of_the_run_and_spares_the_readme_of_others(
    finished_run: Path, tmp_path: Path
) -> None:
    for name in ("best_model.pth", "results.json"):
        shutil.copy(finished_run / name, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    answer = export_command("-m", tmp_path / "best_model.pth", "-f", "safetensors")
    assert answer.status == 0, answer.err
    card = (tmp_path / "README.md").read_text()
    assert f"| Mean_IoU | {results['metrics']['val/Mean_IoU']:.4f} |" in card
    assert "| 1 | square | `#fac800` |" in card
    checksum = hashlib.sha256((tmp_path / "best_model.safetensors").read_bytes()).hexdigest()
    assert f"sha256: {checksum}\n" in answer.out
    assert checksum in card
    (tmp_path / "README.md").write_text("mine")
    assert export_command("-m", tmp_path / "best_model.pth", "-f", "safetensors").status == 0
    assert (tmp_path / "README.md").read_text() == "mine"
    assert (tmp_path / "best_model.README.md").exists()


@needs_safetensors
def test_training_starts_from_shared_weights(safetensors_file: Path, pspnet: Path, tmp_path: Path) -> None:
    found = read_initial_weights(safetensors_file, where="init_from")
    assert found.classes == ("ground", "square", "dot")
    expected = checkpoint.load_run(pspnet)["state_dict"]
    assert all(torch.equal(found.weights[name], value) for name, value in expected.items())
    of_others = tmp_path / "others.safetensors"
    safetensors_torch = pytest.importorskip("safetensors.torch")
    safetensors_torch.save_file({"conv.weight": torch.ones(2)}, of_others, {"format": "pt", "classes": "many"})
    assert read_initial_weights(of_others, where="init_from").classes is None


@needs_safetensors
def test_weights_of_16_bits_take_half_the_space_and_keep_the_mean_iou(finished_run: Path, tmp_path: Path) -> None:
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    for path, flags in ((whole, []), (small, ["--half"])):
        answer = export_command("-m", finished_run / "best_model.pth", "-o", path, *flags)
        assert answer.status == 0, answer.err
    assert small.stat().st_size < 0.6 * whole.stat().st_size
    report = json.loads((tmp_path / "small.safetensors.parity.json").read_text())
    assert abs(report["mean_iou"]["difference"]) < 0.01
    expected, found = (load_run(path)["state_dict"] for path in (whole, small))
    for name, value in expected.items():
        torch.testing.assert_close(found[name].to(value.dtype), value, rtol=1e-3, atol=1e-7)
    assert {value.dtype for value in load(small).model.state_dict().values()} <= {torch.float32, torch.int64}


@needs_safetensors
def test_safetensors_can_be_exported_further(safetensors_file: Path, tmp_path: Path) -> None:
    assert load_run(safetensors_file)["classes"] == ["ground", "square", "dot"]
    answer = export_command("-m", safetensors_file, "-o", tmp_path / "again.safetensors")
    assert answer.status == 0, answer.err


@needs_onnx
def test_8_bit_graphs_normalize_each_image_in_32_bits(finished_run: Path, tmp_path: Path) -> None:
    import onnx

    path = make_checkpoint(finished_run, tmp_path / "own.pth", PSPNET, normalization={"mean": [], "std": []})
    Image.fromarray(scenes(1)[0].image).save(tmp_path / "scene.png")
    export_command("-m", path, "-o", tmp_path / "own.onnx", "--int8", "--calibrate", tmp_path)
    file, _ = sorted(tmp_path.glob("own*.onnx*"), key=lambda each: each.suffix == ".json")  # it may be unproven
    makers = {name: node for node in onnx.load(str(file)).graph.node for name in node.output}

    def before(node: Any) -> set[str]:
        """The operations that a node depends on."""
        inputs = [makers[name] for name in node.input if name in makers]
        return {each.op_type for each in inputs}.union(*(before(each) for each in inputs))

    convolutions = [before(node) for node in makers.values() if node.op_type == "Conv"]
    (first,) = [operations for operations in convolutions if "Conv" not in operations]
    assert "ReduceMean" in first
    assert "QuantizeLinear" not in first


@needs_onnx
@pytest.mark.slow
def test_8_bit_graphs_keep_the_mean_iou(finished_run: Path, tmp_path: Path) -> None:
    for number, example in enumerate(scenes(4)):
        Image.fromarray(example.image).save(tmp_path / f"{number}.png")
    path = tmp_path / "model.onnx"
    answer = export_command("-m", finished_run / "best_model.pth", "-o", path, "--int8", "--calibrate", tmp_path)
    assert answer.status == 0, answer.err
    report = json.loads((tmp_path / "model.onnx.parity.json").read_text())
    assert report["int8"]
    assert report["mean_iou"]["difference"] >= -0.01
    assert load(path).predict(image(97, 131)).shape == (97, 131)


# --------------------------------------------------------------------------------------------------- the document


def runner() -> str:
    """The only Python program in docs/deploy.md."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    return code


def test_the_runner_of_the_documentation_predicts_the_same(onnx_file: Path, pspnet: Path, tmp_path: Path) -> None:
    assert len(runner().splitlines()) <= 20
    (tmp_path / "run.py").write_text(runner())
    Image.fromarray(image(150, 201)).save(tmp_path / "photo.png")
    command_line = [sys.executable, "-I", "run.py", str(onnx_file), "photo.png"]
    done = subprocess.run(command_line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "classes: ground, square, dot\n"
    labels = np.asarray(Image.open(tmp_path / "photo.png.labels.png"))
    expected = load(pspnet).predict(image(150, 201))
    assert np.mean(labels == expected) >= 0.9999


def test_the_commands_in_the_documentation_are_accepted() -> None:
    parsers = {"export.py": export.parse, "evaluate.py": evaluate.parse, "inference.py": inference.parse}
    lines = [line.partition("#")[0].split() for line in DOCUMENT.read_text().splitlines()]
    commands = [words for words in lines if words[:1] == ["python"] and words[1] in parsers]
    assert len(commands) >= 8
    for _, script, *arguments in commands:
        parsers[script](arguments)


def test_the_table_in_the_documentation_shows_the_figures_there_are() -> None:
    _, _, rest = DOCUMENT.read_text().partition(BEGIN)
    shown, _, _ = rest.partition(END)
    assert shown.strip() == table(read_figures())


def test_every_exported_network_agrees() -> None:
    figures = read_figures()
    known = {case.name for case in cases()}
    assert figures.keys() <= known
    for name, entry in figures.items():
        # Where float64 gives other labels than float32 does, no export can agree better than both.
        assert "refused" in entry or 1 - entry["agreement"] <= max(1e-4, 2 * entry.get("rounding", 0)), name
        assert "refused" in entry or entry["mean_iou_difference"] <= 0.0005, name


@needs_onnx
@pytest.mark.slow
@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.name)
def test_a_network_is_exported_for_every_size_or_refused(case: Any) -> None:
    figures = measure(case, batches_of(scenes(16), parity_sizes(CROP)))
    if "refused" in figures:
        pytest.skip(figures["refused"])
    assert figures["classes"] > 1
    assert 1 - figures["agreement"] <= max(1e-4, 2 * figures.get("rounding", 0))
    assert figures["mean_iou_difference"] <= 0.0005


# ----------------------------------------------------------------------------------------- bricks that fit every size


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_means_by_matrices_are_those_of_adaptive_pooling(bins: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    for size in ((6, 6), (7, 13), (3, 20), (48, 1)):
        x = torch.randn(2, 4, *size, dtype=dtype)
        torch.testing.assert_close(GridMean(bins)(x), F.adaptive_avg_pool2d(x, bins))


def test_unpooling_by_scatter_is_max_unpooling(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.rand(2, 3, 9, 12)
    pooled, indices = F.max_pool2d(x, 2, ceil_mode=True, return_indices=True)
    pooled.requires_grad_()
    expected = unpool(pooled, indices, x.shape[-2:])
    weights = torch.rand_like(expected)
    (gradient,) = torch.autograd.grad((expected * weights).sum(), pooled)
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    found = unpool(pooled, indices, x.shape[-2:])
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad((found * weights).sum(), pooled)[0], gradient)


@needs_cuda
@pytest.mark.parametrize("arch", [PSPNET, {"type": "ENet", "args": {}}], ids=["PSPNet", "ENet"])
def test_networks_that_pool_and_unpool_train_deterministically_on_cuda(arch: dict[str, Any]) -> None:
    images = torch.stack([torch.from_numpy(example.image).permute(2, 0, 1) for example in scenes(2)])
    model = distinct(arch, images, 11).cuda()
    gradients = []
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            model.zero_grad()
            model(images.cuda()).logits.square().mean().backward()
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_a_traced_resize_does_not_depend_on_the_example() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return resize(x, (y.shape[-2], y.shape[-1]))

    x = torch.randn(1, 1, 8, 8)
    free = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(Net(), (x, x.clone()), dynamic_shapes=(free, free), strict=False)
    other = torch.randn(1, 1, 13, 5)
    assert torch.equal(program.module()(x, other), resize(x, (13, 5)))
    assert torch.equal(program.module()(x, x), x)
