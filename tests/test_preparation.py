"""Prediction prepares images as validation did, unless it is asked not to."""

import argparse
import json

import numpy as np
import pytest
import torch
from PIL import Image

from dataloader.transforms.chain import ChainOptions, ResizeOptions, build_chain
from dataloader.transforms.preparation import Preparation, preparation_of, read_preparation, training_crop
from inference import load
from tests.conftest import call
from tests.test_inference import draw
from tests.tiny import tiny_config
from utils import checkpoint
from utils.classes import IGNORE
from utils.images import read_image, read_label
from utils.prediction_flags import add_flags, tta_from_args
from utils.run_folder import write_json
from utils.schema import Component

CHAINS = {
    "long side": {"resize": {"long_side": 24}},
    "size": {"resize": {"size": [24, 32]}},
    "crop": {"val": True, "crop_size": 24},
    "list": {"transforms": [{"type": "ShortSide", "args": {"size": 24}}]},
}
SIZES = [(40, 48), (33, 65), (97, 31), (40, 48)]


@pytest.fixture(scope="module", params=CHAINS)
def resized_run(request, tmp_path_factory):
    """A run whose validation is not at the images' own size, its images, and how it prepared them."""
    import train

    folder = tmp_path_factory.mktemp("resized")
    draw(folder / "data", "train", [(40, 48)] * 4)
    draw(folder / "data", "val", SIZES)
    args = {"data_dir": str(folder / "data"), "batch_size": 2, "num_workers": 0}
    config = tiny_config(
        folder / "saved",
        train_loader={"type": "PngSquares", "args": {**args, "split": "train", "augment": True, "crop_size": 24}},
        val_loader={"type": "PngSquares", "args": {**args, "split": "val", **CHAINS[request.param]}},
    )
    config["trainer"]["epochs"] = 1
    write_json(folder / "c.json", config)
    answer = call(train, "-c", folder / "c.json")
    assert answer.status == 0, answer.err
    (run_dir,) = (folder / "saved" / "tiny").glob("*-*")
    return run_dir, folder / "data", request.param


def test_evaluation_without_flags_repeats_the_figure_of_training_exactly(resized_run, evaluate_command, tmp_path):
    run_dir, _, _ = resized_run
    answer = evaluate_command("-m", run_dir / "last.pth", "--output", tmp_path / "r.json")
    assert answer.status == 0, answer.err
    results = json.loads((tmp_path / "r.json").read_text())
    record = json.loads((run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert results["metrics"]["Mean_IoU"] == record["val/Mean_IoU"]
    assert results["protocol"] == checkpoint.load(run_dir / "last.pth")["protocol"]


def test_label_maps_are_predicted_at_the_size_of_validation_and_have_that_of_their_image(
    resized_run, evaluate_command, inference_command, tmp_path
):
    run_dir, data, _ = resized_run
    images = ["-i", data / "val" / "images", "--save", "index"]
    assert inference_command("-m", run_dir / "last.pth", "-o", tmp_path / "out", *images).status == 0
    assert inference_command("-m", run_dir / "last.pth", "-o", tmp_path / "native", *images, "--native").status == 0
    for name, flags in (("out", []), ("native", ["--native"])):
        answer = evaluate_command("-m", run_dir / "last.pth", "-mo", "single", "--output", tmp_path / "r.json", *flags)
        assert answer.status == 0, answer.err
        results = json.loads((tmp_path / "r.json").read_text())
        counts = np.zeros((3, 3), np.int64)
        for path in (data / "val" / "labels").iterdir():
            truth, predicted = (np.asarray(Image.open(p)) for p in (path, tmp_path / name / path.name))
            assert truth.shape == predicted.shape
            np.add.at(counts, (truth[truth != IGNORE], predicted[truth != IGNORE]), 1)
        assert results["confusion_matrix"] in (counts.tolist(), counts.T.tolist())
    different = [
        path.read_bytes() != (tmp_path / "native" / path.name).read_bytes() for path in (tmp_path / "out").iterdir()
    ]
    assert any(different)


def test_the_stamp_names_the_size_that_images_are_predicted_at(resized_run, evaluate_command, tmp_path):
    run_dir, _, name = resized_run
    expected = {
        "long side": ("long_side 24", "resized"),
        "size": ([24, 32], "resized"),
        "crop": ([24, 24], None),
        "list": ("transforms ShortSide", "resized"),
    }
    stamps = []
    for flags in ([], ["--mode", "single"], ["--native"]):
        answer = evaluate_command("-m", run_dir / "last.pth", "--output", tmp_path / "r.json", *flags)
        assert answer.status == 0, answer.err
        stamp = json.loads((tmp_path / "r.json").read_text())["protocol"]
        stamps.append((stamp["size"], stamp.get("labels")))
    size = "cover 24x24" if name == "crop" else expected[name][0]
    assert stamps == [expected[name], (size, "native"), ("native", None)]


def test_the_checkpoint_says_in_plain_values_how_images_are_prepared(resized_run, tmp_path):
    run_dir, data, _ = resized_run
    state = torch.load(run_dir / "last.pth", weights_only=True)
    assert json.loads(json.dumps(state["preprocessing"])) == state["preprocessing"]
    assert set(state["preprocessing"]) == {"resize", "cover", "transforms"}
    del state["preprocessing"]  # as in early files, whose config says it
    torch.save(state, tmp_path / "early.pth")
    image = data / "val" / "images" / "n1.png"
    found = [load(path, device="cpu").predict(image) for path in (run_dir / "last.pth", tmp_path / "early.pth")]
    assert np.array_equal(*found)


@pytest.mark.parametrize("size", [(40, 48), (97, 31), (7, 300)])
@pytest.mark.parametrize("options", [{"resize": ResizeOptions(long_side=24)}, {"resize": ResizeOptions(size=(9, 17))}])
def test_what_the_network_sees_is_to_the_bit_what_it_saw_in_validation(size, options):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
    chain = ChainOptions(val=True, **options)
    seen, _ = build_chain(chain, (0, 0, 0), where="args")(image, np.zeros(size, np.uint8), rng)
    assert np.array_equal(preparation_of(chain)(image), seen)


def test_a_crop_of_validation_is_a_scale_for_whole_images():
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    assert preparation_of(ChainOptions(val=True, crop_size=(80, 60)))(image).shape == (80, 120, 3)


@pytest.mark.parametrize(
    ("args", "size"),
    [
        ({"crop_size": 48}, (48, 48)),
        ({"transforms": [{"type": "RandomCrop", "args": {"size": [40, 56]}}]}, (40, 56)),
        ({"transforms": [{"type": "ShortSide", "args": {"size": 40}}]}, None),
        ({"transforms": [{"type": "OfAModuleThatWasNotImported"}]}, None),
        ({}, None),
    ],
)
def test_windows_are_as_large_as_what_training_saw(args, size):
    assert training_crop({"train_loader": [{"type": "Folder", "args": {"data_dir": "x", **args}}]}) == size
    assert training_crop({}) is None


@pytest.mark.parametrize(("dataset", "largest"), [("CityScapes", 2.25), ("Cityscapes", 2.25), ("VOC", 2.0)])
def test_several_scales_are_those_of_the_older_programs(dataset, largest):
    flags = argparse.ArgumentParser()
    add_flags(flags, ["single", "multiscale"], "single")
    about = {"config": {"train_loader": [{"type": dataset, "args": {}}]}}
    scales = tta_from_args(flags.parse_args(["--mode", "multiscale"]), about, None).scales
    assert scales == tuple(dict.fromkeys((0.75, 1.0, 1.25, 1.5, 1.75, 2.0, largest)))


def test_what_is_random_in_validation_is_not_repeated():
    steps = [
        Component("RandomHorizontalFlip", {"p": 0.5}),
        Component("Resize", {"size": 20}),
        Component("CenterCrop", {"size": 8}),
        Component("RandomGrayscale", {"p": 0.1}),
        Component("RandomGrayscale", {"p": 1}),
    ]
    kept = preparation_of(ChainOptions(transforms=steps))
    assert [step.type for step in kept.transforms] == ["Resize", "RandomGrayscale"]
    assert read_preparation({"preprocessing": kept.to_json()}) == kept
    image = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    prepared = kept(image)
    assert prepared.shape == (20, 20, 3)
    assert np.array_equal(prepared[..., 0], prepared[..., 1])


def test_nothing_to_prepare_is_nothing():
    assert not Preparation()
    assert not preparation_of(ChainOptions(val=True))
    assert not preparation_of(ChainOptions(crop_size=30))


def test_in_python_the_size_of_validation_is_the_default_too(resized_run):
    run_dir, data, _ = resized_run
    path = data / "val" / "images" / "n1.png"
    image = read_image(path)
    shapes = []
    for native in (False, True):
        predictor = load(run_dir / "last.pth", device="cpu", native=native)
        shapes.append(predictor.prepared(image).shape)
        assert predictor.predict(path).shape == image.shape[:2]
        assert predictor.probabilities(image).shape[1:] == image.shape[:2]
    assert shapes[0] != shapes[1] == image.shape


def test_predictions_of_a_run_are_as_large_as_what_was_validated(resized_run):
    run_dir, _, name = resized_run
    shape = read_label(run_dir / "predictions" / "n0.png").shape
    assert shape == {"long side": (20, 24), "size": (24, 32), "crop": (24, 24), "list": (24, 29)}[name]
