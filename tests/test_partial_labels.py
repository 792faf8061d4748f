"""Training sets that are labelled for some of the classes only: labels that stand for one of several."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dataloader.build import build_dataset
from dataloader.label_statistics import class_pixels, look_at
from engine.assemble import build_loaders, facts_of
from engine.check import check_config
from engine.config import training_sections
from tests.test_losses import value_and_gradient
from tests.tiny import tiny_config
from utils.classes import ANY_OF, IGNORE, AnyOf, ClassFacts, ClassTable
from utils.errors import ConfigError
from utils.losses import cross_entropy, dice, strips
from utils.losses.criterion import build_criterion, check_loss, needs_class_pixels
from utils.outputs import SegOutput
from utils.registry import LOSSES

C = 5
SETS = ((0, 1), (1, 2, 4))  # what labels 253 and 252 stand for
FACTS = ClassFacts(num_classes=C, class_names=list("abcde"), any_of=SETS)
WEIGHTS = [0.5, 1.0, 2.0, 0.5, 3.0]
VARIANTS = [
    ("CrossEntropyLoss2d", {}),
    ("CrossEntropyLoss2d", {"class_weights": WEIGHTS, "label_smoothing": 0.1}),
    ("FocalLoss", {}),
    ("FocalLoss", {"gamma": 0.5, "class_weights": WEIGHTS}),
    *(
        ("DiceLoss", {"per_class": per_class, "per_image": per_image})
        for per_class, per_image in itertools.product([True, False], repeat=2)
    ),
    ("CE_DiceLoss", {}),
    ("CE_DiceLoss", {"class_weights": WEIGHTS, "label_smoothing": 0.1, "dice_factor": 2.0}),
    ("CE_DiceLoss", {"per_class": False}),
    ("CE_DiceLoss", {"per_class": False, "class_weights": WEIGHTS, "label_smoothing": 0.2}),
]
each_loss = pytest.mark.parametrize(("name", "args"), VARIANTS, ids=lambda value: str(value))


def build(name: str, args: dict[str, Any], facts: ClassFacts = FACTS) -> Any:
    return LOSSES.build({"type": name, "args": args}, where="loss", class_facts=facts)


def example(seed: int = 0, images: int = 2, low=(9, 13), full=(9, 13), dtype=torch.float64):
    """Logits and labels, a quarter of them void and a third of the others unsure."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, C, *low, generator=generator, dtype=dtype)
    values = torch.tensor([*range(C), ANY_OF, ANY_OF - 1], dtype=torch.uint8)
    labels = values[torch.randint(len(values), (images, *full), generator=generator)]
    labels[torch.rand(labels.shape, generator=generator) < 0.25] = IGNORE
    return logits, labels


# Losses ---------------------------------------------------------------------------------------------------------------


@each_loss
@pytest.mark.parametrize(("low", "full"), [((3, 4), (3, 4)), ((3, 4), (7, 10)), ((4, 6), (3, 4))])
def test_gradients_are_those_of_the_value(name, args, low, full):
    logits, labels = example(low=low, full=full)
    loss = build(name, args)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_(), atol=1e-6)


@each_loss
def test_gradients_of_gradients_are_right_too(name, args):
    logits, labels = example(low=(2, 3), full=(4, 7), images=1)
    loss = build(name, args)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels), logits.requires_grad_(), atol=1e-5)


@each_loss
def test_where_one_class_is_allowed_the_loss_is_the_usual_one(name, args):
    """Labels that stand for one class each, and a table that knows of lists that no pixel has."""
    logits, labels = example(full=(33, 50))
    alone = torch.tensor([*range(C), *[IGNORE] * 251], dtype=torch.uint8)
    alone[ANY_OF], alone[ANY_OF - 1] = 3, 1
    single = ClassFacts(num_classes=C, class_names=list("abcde"), any_of=((3,), (1,)))
    plain = ClassFacts(num_classes=C, class_names=list("abcde"))
    expected = value_and_gradient(build(name, args, plain), logits, alone[labels.long()])
    torch.testing.assert_close(value_and_gradient(build(name, args, single), logits, labels), expected)
    torch.testing.assert_close(value_and_gradient(build(name, args), logits, alone[labels.long()]), expected)


@each_loss
def test_where_every_class_is_allowed_nothing_is_taught(name, args):
    if args.get("label_smoothing"):
        args = {**args, "label_smoothing": 0.0}
    logits, labels = example()
    loss = build(name, args, ClassFacts(num_classes=C, any_of=(tuple(range(C)), SETS[1])))
    _, gradient = value_and_gradient(loss, logits, labels)
    anything = (labels == ANY_OF)[:, None].expand_as(gradient)
    assert anything.any()
    torch.testing.assert_close(gradient[anything], torch.zeros_like(gradient[anything]), atol=1e-12, rtol=0)
    value, gradient = value_and_gradient(loss, logits, torch.full_like(labels, ANY_OF))
    torch.testing.assert_close(value, torch.zeros_like(value), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@each_loss
def test_void_pixels_have_no_part_in_it(name, args):
    loss, (logits, labels) = build(name, args), example()
    void = (labels == IGNORE)[:, None]
    before = labels.clone()
    value, gradient = value_and_gradient(loss, logits, labels)
    other = torch.where(void, 1e4 * torch.randn_like(logits), logits)
    torch.testing.assert_close(value_and_gradient(loss, other, labels), (value, gradient), rtol=1e-9, atol=1e-12)
    assert not gradient.masked_select(void).any()
    assert torch.equal(labels, before)
    none, flat = value_and_gradient(loss, logits, torch.full_like(labels, IGNORE))
    assert none == 0
    assert not flat.any()


@each_loss
def test_the_order_of_images_and_of_classes_does_not_matter(name, args):
    args = {key: value for key, value in args.items() if key != "class_weights"}
    logits, labels = example(images=4, full=(17, 25))
    value, gradient = value_and_gradient(build(name, args), logits, labels)
    images = torch.tensor([2, 0, 3, 1])
    value_2, gradient_2 = value_and_gradient(build(name, args), logits[images], labels[images])
    torch.testing.assert_close((value_2, gradient_2), (value, gradient[images]))
    order = [3, 0, 4, 1, 2]
    new_id = torch.arange(256, dtype=torch.uint8)
    new_id[order] = torch.arange(C, dtype=torch.uint8)
    sets = tuple(tuple(sorted(order.index(index) for index in each)) for each in SETS)
    loss = build(name, args, ClassFacts(num_classes=C, any_of=sets))
    value_2, gradient_2 = value_and_gradient(loss, logits[:, order], new_id[labels.long()])
    torch.testing.assert_close((value_2, gradient_2), (value, gradient[:, order]), rtol=1e-9, atol=1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_huge_logits_give_a_finite_loss(name, args, dtype):
    loss, (logits, labels) = build(name, args), example(full=(65, 97))
    logits = (1000 * logits).clamp(-60000, 60000).to(dtype)
    value, gradient = value_and_gradient(loss, logits, labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@each_loss
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_parts_of_a_batch_add_up_to_it(name, args, dtype, tolerance):
    logits, labels = example(images=6, full=(33, 50), dtype=dtype)
    loss = build(name, args)
    if not loss.additive:
        assert loss.norm(labels) == 1
        return
    whole, gradient = value_and_gradient(loss, logits, labels)
    parts = [value_and_gradient(loss, logits[i], labels[i], loss.norm(labels)) for i in (slice(2), slice(2, 6))]
    torch.testing.assert_close(sum(value for value, _ in parts), whole, rtol=tolerance, atol=0)
    assert (torch.cat([part for _, part in parts]) - gradient).abs().max() <= tolerance * gradient.abs().max()


@each_loss
@pytest.mark.parametrize(("seed", "strip"), [(0, 1), (1, 1000), (2, 2**20)])
def test_strips_in_float32_equal_the_plain_computation_in_float64(name, args, seed, strip, monkeypatch):
    loss, (logits, labels) = build(name, args), example(seed, low=(5, 17), full=(37, 130), dtype=torch.float32)
    logits /= 3
    monkeypatch.setattr(strips, "CPU_STRIP", strip)
    value, gradient = value_and_gradient(loss, logits, labels)
    for module in (cross_entropy, dice):
        for function in ("pixel_sum", "label_sums"):
            monkeypatch.setattr(module, function, getattr(strips, f"plain_{function}"), raising=False)
    expected, expected_gradient = value_and_gradient(loss, logits.double(), labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6, abs=1e-7)
    assert (gradient - expected_gradient).abs().max() <= 1e-6 * expected_gradient.abs().max()


@each_loss
def test_full_size_logits_are_never_made(name, args, monkeypatch):
    from tests.test_losses import LargestTensor

    monkeypatch.setattr(strips, "CPU_STRIP", 4096)
    logits, labels = example(full=(65, 97), dtype=torch.float32)
    with LargestTensor() as largest:
        value_and_gradient(build(name, args), logits, labels)
    assert largest.numel <= 8192 < labels.numel() * C // 3


def test_cross_entropy_is_that_of_the_sum_of_probabilities():
    logits, labels = example(full=(33, 50))
    p = F.interpolate(logits, (33, 50), mode="bilinear").softmax(1).movedim(1, -1).numpy()
    losses, weights = [], []
    for probabilities, label in zip(p.reshape(-1, C), labels.flatten().tolist(), strict=True):
        classes = {ANY_OF: SETS[0], ANY_OF - 1: SETS[1], IGNORE: ()}.get(label, (label,))
        if classes:
            weights.append(np.mean([WEIGHTS[index] for index in classes]))
            losses.append(-np.log(probabilities[list(classes)].sum()))
    value = build("CrossEntropyLoss2d", {"class_weights": WEIGHTS})(logits, labels)
    assert value.item() == pytest.approx(np.average(losses, weights=weights), rel=1e-10)
    focal = build("FocalLoss", {})(logits, labels)
    expected = np.mean([(1 - np.exp(-each)) ** 2 * each for each in losses])
    assert focal.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", ["CrossEntropyLoss2d", "CE_DiceLoss", "FocalLoss"])
def test_a_list_weighs_what_its_pixels_weigh_on_average(name):
    """So unsure labels weigh together as much as those that they stand for, however rare some of their classes are."""
    labels = torch.randint(C, (2, 33, 50), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels[:, :20] = 2  # the most frequent class, and that of the least weight
    pixels = torch.bincount(labels.flatten().long(), minlength=C).tolist()
    unsure = torch.tensor([0, 1, ANY_OF - 1, 3, ANY_OF - 1], dtype=torch.uint8)[labels.long()]
    unsure[labels == 1] = ANY_OF - 1
    facts = ClassFacts(num_classes=C, class_pixels=pixels, any_of=SETS)
    loss = build(name, {"class_weights": "sqrt_inv"}, facts)
    torch.testing.assert_close(loss.weight_sum(unsure), loss.weight_sum(labels))
    torch.testing.assert_close(loss.label_weights()[:C], loss.class_weights, rtol=0, atol=0)
    unknown = ClassFacts(num_classes=C, class_pixels=[9, 9, 0, 9, 0], any_of=((2, 4), (0, 3)))
    assert build(name, {"class_weights": WEIGHTS}, unknown).label_weights()[ANY_OF] == 2.5  # of classes never labelled
    assert needs_class_pixels(check_loss({"type": name, "args": {"class_weights": WEIGHTS}}, problems=[]), SETS)
    assert not needs_class_pixels(check_loss(name, problems=[]), SETS)


def test_dice_takes_a_list_for_a_class_and_leaves_out_what_it_cannot_know():
    logits, labels = example(full=(33, 50))
    p = F.interpolate(logits, (33, 50), mode="bilinear").softmax(1).movedim(1, -1).reshape(-1, C).numpy()
    flat = labels.flatten().tolist()
    may_be = [set({ANY_OF: SETS[0], ANY_OF - 1: SETS[1], IGNORE: range(C)}.get(label, (label,))) for label in flat]
    losses = []
    for target in [*({index} for index in range(C)), *map(set, SETS)]:
        inside = np.array([classes <= target for classes in may_be])
        known = inside | np.array([not classes & target for classes in may_be])
        share = p[:, list(target)].sum(1)
        losses.append(1 - (2 * share[inside].sum() + 1) / (share[known].sum() + inside.sum() + 1))
    assert build("DiceLoss", {})(logits, labels).item() == pytest.approx(np.mean(losses), rel=1e-10)


class Waits(TorchDispatchMode):
    """Note what has a shape that only the values tell: a GPU is waited for there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        chosen = args[1] if func.overloadpacket == torch.ops.aten.index else ()
        by_mask = any(each is not None and each.dtype == torch.bool for each in chosen)
        if by_mask or func.overloadpacket in (torch.ops.aten.nonzero, torch.ops.aten._local_scalar_dense):
            self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("per_class", [True, False])
def test_dice_of_unsure_labels_waits_for_no_gpu_and_keeps_nothing_in_checkpoints(per_class):
    loss = build("DiceLoss", {"per_class": per_class, "per_image": True})
    logits, labels = example()
    with Waits() as waits:
        loss(logits, labels)
    assert not waits.seen
    assert not loss.state_dict()


def test_losses_without_a_marginal_form_see_void():
    logits, labels = example(full=(17, 25))
    void = labels.masked_fill((labels >= ANY_OF - 1) & (labels != IGNORE), IGNORE)
    facts: dict[str, Any] = {"num_classes": C, "class_names": list("abcde")}
    terms = ["CrossEntropyLoss2d", "LovaszSoftmax", "OHEMCrossEntropyLoss"]
    found = build_criterion(terms, any_of=SETS, **facts)(SegOutput(logits), labels)
    expected = build_criterion(terms, **facts)(SegOutput(logits), void)
    assert found["LovaszSoftmax"] == expected["LovaszSoftmax"]
    assert found["OHEMCrossEntropyLoss"] == expected["OHEMCrossEntropyLoss"]
    assert found["CrossEntropyLoss2d"] != expected["CrossEntropyLoss2d"]


@pytest.mark.parametrize("terms", ["CE_DiceLoss", ["FocalLoss", "LovaszSoftmax"], [{"type": "DiceLoss", "factor": 2}]])
def test_the_criterion_adds_up_over_parts_of_a_batch(terms):
    logits, labels = example(images=6, full=(33, 50))
    criterion = build_criterion(terms, num_classes=C, class_names=list("abcde"), any_of=SETS)
    normalizers, parts = criterion.normalizers(labels), (slice(2), slice(2, 6))
    assert torch.equal(normalizers, sum(criterion.normalizers(labels[part]) for part in parts))
    shares = [criterion(SegOutput(logits[part]), labels[part], normalizers)["loss"] for part in parts]
    alone = [criterion(SegOutput(logits[part]), labels[part])["loss"] for part in parts]
    if all(loss.additive for loss in criterion.losses):
        alone = [criterion(SegOutput(logits), labels)["loss"]]
    weighted = alone[0] if len(alone) == 1 else alone[0] / 3 + alone[1] * 2 / 3
    if terms != ["FocalLoss", "LovaszSoftmax"]:  # one is additive, the other is not
        torch.testing.assert_close(sum(shares), weighted, rtol=1e-10, atol=0)


# Classes --------------------------------------------------------------------------------------------------------------


def table(names: str = "abc") -> ClassTable:
    numbers = range(len(names))
    return ClassTable(tuple(names), tuple((i + 1, 0, 0) for i in numbers), tuple((i,) for i in numbers))


def test_a_list_in_label_map_stands_for_one_of_its_classes_and_adds_those_that_are_missing():
    found = table().mapped({"7": ("a", "d"), "8": ("b",), "9": tuple("dcba"), "2": ("d", "a"), "5": ("b", "c")}, "m")
    assert found.names == tuple("abcd")
    assert len(set(found.colors)) == 4
    assert found.lookup[[0, 1, 2, 5, 7, 8, 9, 255]].tolist() == [0, 1, 253, 252, 253, 1, 255, 255]
    assert found.known == {0, 1, 2, 5, 7, 8, 9, 255}
    assert found.unknown(np.array([[0, 7, 5]], np.uint8)) is None
    assert found.marked_ids(np.array([[7, 77]], np.uint8)).tolist() == [[253, 254]]
    with pytest.raises(ConfigError, match=r"m\.7: an empty list\. Name the classes that it may be, or use null"):
        table().mapped({"7": ()}, "m")


def test_what_files_made_from_other_tables_are_called_stays():
    assert "any_of" not in table().identity()
    assert "any_of" in table().mapped({"7": ("a", "b")}, "m").identity()


def test_tables_with_the_same_names_share_an_order_and_labels():
    first = table("ab").mapped({"0": ("a", "c", "d")}, "m")
    second = table("dca").mapped({"9": ("a", "b"), "8": ("c", "d", "a")}, "m")
    shared = first.joined_with([second])
    assert shared.names == tuple("abcd")
    assert shared.any_of == (AnyOf((0, 2, 3), (0,)), AnyOf((0, 1)))
    assert shared.colors[2:] == ((2, 0, 0), (1, 0, 0))  # those of where they are labelled
    assert second.as_in(shared).lookup[[0, 1, 2, 8, 9]].tolist() == [3, 2, 0, 253, 252]
    assert second.as_in(shared.ignoring(3)).lookup[[0, 1]].tolist() == [IGNORE, 2]
    assert second.as_in(first).lookup[[0, 1, 8, 9]].tolist() == [3, 2, 253, IGNORE]
    assert second.settled().lookup[[0, 8, 9]].tolist() == [0, IGNORE, IGNORE]


# Runs -----------------------------------------------------------------------------------------------------------------

NAMES = ["ground", "square", "dot", "line"]


def scenes(folder: Path, *, train: int = 6, val: int = 3) -> None:
    """Write scenes of four classes and three kinds of masks: full, and those that know two of the objects each."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for name in ("images", "full", "squares", "lines"):
            (folder / name / split).mkdir(parents=True)
        for index in range(count):
            label = np.zeros((48, 64), np.uint8)
            label[rng.integers(20) :][:16, rng.integers(30) :][:, :20] = 1
            label[rng.integers(40) :][:6, rng.integers(50) :][:, :6] = 2
            label[:, rng.integers(60) :][:, :3] = 3
            image = np.stack([60 * label, 255 - 60 * label, label * 0], axis=2) + rng.integers(0, 20, (48, 64, 3))
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image.astype(np.uint8))
            squares = np.array([7, 1, 2, 7], np.uint8)[label]  # 7: ground, or one of the lines
            lines = np.array([0, 0, 0, 1], np.uint8)[label]  # 0: all but lines
            for kind, mask in (("full", label), ("squares", squares), ("lines", lines)):
                cv2.imwrite(str(folder / kind / split / f"{index}.png"), mask)


def halves(tmp_path: Path) -> dict[str, Any]:
    """A config with two training sets, each labelled for its part of the classes."""
    shared = {"data_dir": str(tmp_path / "data"), "split": "train"}
    sections: list[dict[str, Any]] = [
        {
            "mask_dir": "squares",
            "classes": [{"name": "square", "value": 1}, {"name": "dot", "value": 2}],
            "label_map": {"7": ["ground", "line"]},
        },
        {"mask_dir": "lines", "classes": [{"name": "line", "value": 1}], "label_map": {"0": NAMES[:3]}},
    ]
    config = tiny_config(tmp_path / "saved")
    batches = {"batch_size": 4, "num_workers": 0}
    chain = {"augment": True, "crop_size": 32, "base_size": 40, "flip": True}
    config["train_loader"] = [{"type": "Folder", "args": {**shared, **chain, **section}} for section in sections]
    config["train_loader"][0]["args"] |= batches
    args = {**shared, "split": "val", "mask_dir": "full", "classes": NAMES, **batches}
    config["val_loader"] = {"type": "Folder", "args": args}
    config["loss"] = "CE_DiceLoss"
    return config


def test_sets_with_other_classes_are_joined_by_name(tmp_path):
    scenes(tmp_path / "data")
    config = check_config(halves(tmp_path))
    assert config.classes.names == ("square", "dot", "ground", "line")
    assert facts_of(config, total_steps=1, steps_per_epoch=1)["any_of"] == [(2, 3), (0, 1, 2)]
    resolved = json.loads(json.dumps(config.to_json()))
    assert check_config(resolved) == config
    train, val = build_loaders(config)
    assert val is not None
    truth = [cv2.imread(str(tmp_path / "data" / "full" / "train" / f"{i}.png"), -1) for i in range(6)]
    for index in range(6):
        expected = np.array([ANY_OF, 0, 1, ANY_OF], np.uint8)[truth[index]]
        np.testing.assert_array_equal(train.view.label(index), expected)
        expected = np.array([ANY_OF - 1, ANY_OF - 1, ANY_OF - 1, 3], np.uint8)[truth[index]]
        np.testing.assert_array_equal(train.view.label(6 + index), expected)
    counted = [int((np.stack(truth) == value).sum()) for value in (1, 2, 0, 3)]
    unsure = 2 * 6 * 48 * 64 - sum(counted[index] for index in (0, 1, 3))
    for _ in range(2):  # read, and then remembered
        found = look_at(train.view)
        assert (found.void, found.unsure) == (0, unsure)
        assert "% one of several classes" in found.describe(config.classes.names)
        assert class_pixels(train.view) == [counted[0], counted[1], 0, counted[3]]
    seen = {int(value) for batch in train.batches() for value in np.unique(batch.labels)}
    assert seen <= {0, 1, 3, ANY_OF, ANY_OF - 1, IGNORE}
    label = cv2.imread(str(tmp_path / "data" / "full" / "val" / "0.png"), -1)
    np.testing.assert_array_equal(val.view.label(0), np.array([2, 0, 1, 3], np.uint8)[label])


def test_unsure_pixels_are_void_where_figures_are_measured(tmp_path):
    scenes(tmp_path / "data")
    raw = halves(tmp_path)
    raw["val_loader"]["args"] |= raw["train_loader"][0]["args"] | {"split": "val", "augment": False, "flip": False}
    raw["val_loader"]["args"] |= {"crop_size": None, "base_size": None}
    val = build_loaders(check_config(raw))[1]
    assert val is not None
    assert {int(value) for batch in val.batches() for value in np.unique(batch.labels)} == {0, 1, IGNORE}


def test_a_part_that_is_held_out_is_measured_so_too(tmp_path):
    scenes(tmp_path / "data")
    raw = halves(tmp_path)
    raw["train_loader"] = raw["train_loader"][0]
    raw["train_loader"]["args"] |= {"val_split": 2}
    raw["train_loader"]["args"]["classes"] = [{"name": "square", "value": 1}, {"name": "dot", "value": 2}]
    train, val = build_loaders(check_config({**raw, "val_loader": None}))
    assert val is not None
    assert ANY_OF in train.view.label(0)
    assert ANY_OF not in val.view.label(0)


def test_annotations_may_leave_out_classes_too(tmp_path):
    scenes(tmp_path / "data")
    image = {"id": 1, "file_name": "0.png", "width": 64, "height": 48}
    box = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 100, "bbox": [0, 0, 10, 10]}
    box["segmentation"] = [[0, 0, 10, 0, 10, 10, 0, 10]]
    text = {"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "square"}]}
    (tmp_path / "data" / "squares.json").write_text(json.dumps(text))
    raw = halves(tmp_path)
    args = {
        "data_dir": str(tmp_path / "data"),
        "split": "train",
        "image_dir": "images/{split}",
        "annotations": "squares.json",
        "classes": ["square"],
        "label_map": {"background": ["ground", "dot", "line"]},
    }
    raw["train_loader"][0]["args"] |= {"classes": ["dot", "line", "ground", "square"], "label_map": None}
    raw["train_loader"][1] = {"type": "Annotations", "args": {**args, "augment": True, "crop_size": 32}}
    config = check_config(raw)
    sections = training_sections(config)
    dataset = build_dataset(sections["train_loader[1]"], where="here", seed=0, classes=config.classes)
    label = dataset.read_label(0)
    assert config.classes.names == ("dot", "line", "ground", "square")
    assert (label[:10, :10] == 3).all()
    assert (label[11:] == ANY_OF).all()
    assert (label[:, 11:] == ANY_OF).all()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"label_map": {"0": ["ground", "square", "dots"]}},
            "train_loader[1]: its classes differ from those of train_loader[0]: they have 'dots' and lack 'dot'. "
            'Give a class one name in both; where one was not labelled, "label_map" says which label may be it too: '
            '{"0": [...]}.',
        ),
        ({"label_map": {"0": []}}, "train_loader[1].args.label_map.0: an empty list. Name the classes that it may be"),
        ({"label_map": {"300": ["dot", "ground"]}}, "train_loader[1].args.label_map.300: no label value"),
    ],
)
def test_mistakes_are_named_in_one_line(tmp_path, change, expected):
    raw = halves(tmp_path)
    raw["train_loader"][1]["args"] |= change
    with pytest.raises(ConfigError) as caught:
        check_config(raw)
    (problem,) = (each for each in caught.value.problems if each.startswith("train_loader[1]"))
    assert problem.startswith(expected)


def test_a_loss_that_would_learn_nothing_of_it_is_refused(tmp_path):
    for loss, fine in (("LovaszSoftmax", False), (["LovaszSoftmax", "DiceLoss"], True), ("MaskLoss", False)):
        raw = {**halves(tmp_path), "loss": loss}
        if fine:
            check_config(raw)
            continue
        with pytest.raises(ConfigError) as caught:
            check_config(raw)
        assert caught.value.problems[0].startswith("loss: nothing in it learns from the lists of classes in label_map.")


def test_a_run_that_was_killed_and_resumed_ends_as_one_that_was_not(tmp_path, train_command):
    from tests.test_resume import MODULES, equal, train_in_child

    scenes(tmp_path / "data")
    raw = halves(tmp_path)
    raw["trainer"] |= {"epochs": 2, "metrics": ["Boundary_IoU"], "save_steps": 2}
    runs = []
    for name in ("whole", "killed"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({**raw, "name": name}))
        if name == "killed":
            assert train_in_child(path, "-d", "cpu", kill="step:6") == -9
            (run,) = (tmp_path / "saved" / name).glob("*-*")
            answer = train_command("-r", run / "last.pth", "-d", "cpu", *MODULES)
        else:
            answer = train_command("-c", path, "-d", "cpu", *MODULES[:2])
            (run,) = (tmp_path / "saved" / name).glob("*-*")
        assert answer.status == 0, answer.err
        runs.append(run)
    states = [torch.load(run / "last.pth", weights_only=True) for run in runs]
    for key in ("state_dict", "optimizer", "history", "step", "best"):
        assert equal(states[0][key], states[1][key]), key
    assert states[0]["step"] == 6
    line = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= line["val/Boundary_IoU"] < 1
