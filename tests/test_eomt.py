"""EoMT: what its loss counts, how its masks are annealed, that it learns, resumes and is exported."""

from __future__ import annotations

import itertools
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.check import check_config
from engine.dry_run import dry_run
from models.build import build_model
from tests.test_resume import assert_same_end, only_run, train_in_child, write_config
from tests.test_trainer import make_trainer
from tests.tiny import Squares, tiny_config
from utils.classes import IGNORE, ClassFacts
from utils.errors import ConfigError
from utils.losses.criterion import Criterion, build_criterion
from utils.losses.masks import MaskLoss, _at, assign
from utils.outputs import SegOutput, resize
from utils.schema import Component

C = 3
TINY = {"channels": 32, "depth": 3, "heads": 2, "patch": 8, "queries": 8, "query_blocks": 2}


def build(**args: Any) -> Any:
    torch.manual_seed(0)
    return build_model(Component("EoMT", {**TINY, **args}), num_classes=C)


def loss(**args: Any) -> MaskLoss:
    return MaskLoss(class_facts=ClassFacts(num_classes=C, class_names=list("abc")), **{"points": 64, **args})


def value(of: MaskLoss, masks: Tensor, classes: Tensor, labels: Tensor, norm: Tensor | None = None) -> Tensor:
    torch.manual_seed(1)
    return of.of_masks((masks,), (classes,), labels, norm)


def example(images: int = 2, size: tuple[int, int] = (12, 16)) -> tuple[Tensor, Tensor, Tensor]:
    """Masks and classes of 5 queries, and labels of which the lower half is void."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.randn(images, 5, *size, generator=generator)
    classes = torch.randn(images, 5, C + 1, generator=generator)
    labels = torch.randint(C, (images, *size), generator=generator)
    labels[:, size[0] // 2 :] = IGNORE
    return masks, classes, labels


# The loss


@pytest.mark.parametrize(("rows", "columns"), [(5, 3), (3, 5), (4, 4), (6, 1), (1, 6)])
def test_an_assignment_is_the_cheapest_there_is(rows: int, columns: int) -> None:
    rng = np.random.default_rng(rows)
    for costs in (rng.normal(size=(rows, columns)), rng.integers(3, size=(rows, columns)).astype(float)):
        of_rows, of_columns = assign(costs)
        assert len(set(of_rows)) == len(set(of_columns)) == min(rows, columns)
        table = costs if rows >= columns else costs.T
        orders = itertools.permutations(range(len(table)), table.shape[1])
        best = min(sum(table[row, column] for column, row in enumerate(order)) for order in orders)
        assert costs[of_rows, of_columns].sum() == pytest.approx(best)


def test_an_assignment_costs_what_that_of_scipy_costs() -> None:
    optimize = pytest.importorskip("scipy.optimize")
    costs = np.random.default_rng(0).normal(size=(100, 60))
    assert costs[assign(costs)].sum() == pytest.approx(costs[optimize.linear_sum_assignment(costs)].sum())


def test_masks_are_taken_at_pixels_as_if_they_had_been_resized() -> None:
    masks = torch.randn(2, 3, 5)
    pixels = torch.arange(13 * 17).expand(2, -1)
    torch.testing.assert_close(_at(masks, pixels, (13, 17)), resize(masks[None], (13, 17))[0].flatten(1))


def test_void_pixels_have_no_part_in_the_loss_of_masks() -> None:
    masks, classes, labels = example()
    values = []
    for change in (0.0, 50.0):
        other = masks.clone()
        other[:, :, 6:] += change
        other.requires_grad_()
        values.append(value(loss(points=2000), other, classes, labels))
        (gradient,) = torch.autograd.grad(values[-1], other)
        assert not gradient[:, :, 6:].any()
        assert gradient[:, :, :6].any()
    assert torch.equal(*values)


def test_images_without_labels_cost_nothing() -> None:
    masks, classes, labels = example()
    classes.requires_grad_()
    found = value(loss(), masks, classes, torch.full_like(labels, IGNORE))
    assert found == 0
    assert not torch.autograd.grad(found, classes)[0].any()


def test_the_right_masks_and_classes_cost_next_to_nothing_in_whatever_order() -> None:
    _, _, labels = example()
    masks = torch.full((2, 5, 12, 16), -30.0)
    classes = torch.zeros(2, 5, C + 1)
    classes[..., C] = 30
    for query, index in enumerate((2, 0, 1)):
        masks[:, query][labels == index] = 30
        classes[:, query, index] = 60
    assert value(loss(), masks, classes, labels) < 1e-3
    order = [4, 2, 0, 3, 1]
    torch.testing.assert_close(value(loss(), masks[:, order], classes[:, order], labels), torch.tensor(0.0))
    assert value(loss(), -masks, classes, labels) > 1


def test_queries_may_be_fewer_than_classes() -> None:
    masks, classes, labels = example()
    assert value(loss(), masks[:, :2], classes[:, :2], labels).isfinite()


def test_a_class_of_weight_zero_teaches_no_mask() -> None:
    masks, classes, labels = example(1)
    labels[:, :6, :8], labels[:, :6, 8:] = 0, 1
    classes = torch.zeros(1, 5, C + 1)
    classes[0, 0, 0] = classes[0, 1, 1] = 20  # so that query 0 is matched to class 0, 1 to 1
    for weights, same in (([1.0, 0.0, 1.0], True), ([1.0, 1.0, 1.0], False)):
        found = []
        for change in (0.0, 3.0):
            other = masks.clone()
            other[:, 1] += change
            found.append(value(loss(class_weights=weights, class_factor=100.0), other, classes, labels))
        assert torch.equal(*found) == same


def test_micro_batches_add_up_to_the_batch() -> None:
    criterion = Criterion([("MaskLoss", loss(class_weights=[0.5, 2.0, 1.0]), 1.0)])
    # Masks and labels that are the same everywhere, so that it does not matter which points are drawn.
    masks = torch.randn(4, 5, 1, 1).expand(-1, -1, 12, 16)
    classes = torch.randn(4, 5, C + 1)
    labels = torch.tensor([0, 1, 2, 1])[:, None, None].repeat(1, 12, 16)
    labels[0, :9] = labels[3] = IGNORE
    norms = criterion.normalizers(labels)
    total = torch.zeros(())
    for part in (slice(0, 1), slice(1, 4)):
        output = SegOutput(torch.zeros(1), masks=(masks[part],), mask_classes=(classes[part],))
        total = total + criterion(output, labels[part], norms)["loss"]
    whole = criterion(SegOutput(torch.zeros(1), masks=(masks,), mask_classes=(classes,)), labels)["loss"]
    torch.testing.assert_close(total, whole)


def test_the_same_seed_draws_the_same_points_and_each_prediction_counts() -> None:
    masks, classes, labels = example()
    assert torch.equal(value(loss(), masks, classes, labels), value(loss(), masks, classes, labels))
    torch.manual_seed(2)
    assert loss().of_masks((masks,), (classes,), labels) != value(loss(), masks, classes, labels)
    twice = loss(points=5000).of_masks((masks, masks), (classes, classes), labels)
    torch.testing.assert_close(twice, 2 * value(loss(points=5000), masks, classes, labels), rtol=0.05, atol=0)


# The network


def test_logits_are_the_logarithm_of_what_queries_say_together() -> None:
    model = build().train()
    images = torch.randint(256, (2, 3, 37, 51), dtype=torch.uint8)
    output = model(images)
    assert len(output.masks) == len(output.mask_classes) == 3  # before each of two blocks, and after them
    assert output.masks[0].shape == (2, 8, 10, 13)
    assert output.mask_classes[0].shape == (2, 8, C + 1)
    shares = output.mask_classes[-1].softmax(-1)[..., :C]
    sums = torch.einsum("nqc,nqhw->nchw", shares, output.masks[-1].sigmoid())
    torch.testing.assert_close(output.logits.exp(), sums)
    with torch.no_grad():
        assert model.eval()(images).masks == ()


def test_masks_of_attention_end_block_by_block_and_are_a_function_of_the_step() -> None:
    model = build()
    found = []
    for step in (0, 25, 50, 75, 99, 0):
        model.start_step(step, 100)
        found.append(model.masked.tolist())
    assert found[0] == found[1] == found[5] == [1, 1]
    assert found[2] == [0, 1]
    assert found[3] == found[4] == [0, 0]
    model.start_step(37, 100)
    assert model.masked.tolist() == pytest.approx([0.52**0.9, 1])


def test_a_query_looks_at_nothing_but_its_mask_until_it_is_freed() -> None:
    model = build()
    masks = torch.full((1, 8, 4, 6), -1.0)
    masks[:, :, :2] = 1  # the upper half
    held = model._attention_mask(masks, torch.ones(()), (2, 3))[0, 0]
    assert held.shape == (14, 14)
    assert held[:8, :11].all()  # queries and the upper row of patches
    assert not held[:8, 11:].any()
    assert held[8:].all()
    assert model._attention_mask(masks, torch.zeros(()), (2, 3)).all()


def test_the_trainer_tells_it_the_step(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, val=False)
    heard: list[tuple[int, int]] = []
    trainer.model.start_step = lambda step, total: heard.append((step, total))  # type: ignore[method-assign]
    trainer.fit()
    assert heard == [(0, 4), (1, 4), (2, 4), (3, 4)]


def test_a_loss_of_masks_is_refused_where_no_masks_are_predicted(tmp_path: Path) -> None:
    config = check_config(tiny_config(tmp_path, loss="MaskLoss"))
    with pytest.raises(ConfigError, match=r"^loss: MaskLoss needs masks, which EncoderDecoder does not predict"):
        dry_run(config)
    model = {"type": "EoMT", "args": TINY}
    assert dry_run(check_config(tiny_config(tmp_path, loss="MaskLoss", arch=model))).logits == (2, C, 8, 8)


def test_in_the_end_training_computes_what_prediction_does() -> None:
    model = build().train()
    images = torch.randint(256, (1, 3, 32, 40), dtype=torch.uint8)
    model.start_step(99, 100)
    with torch.no_grad():
        torch.testing.assert_close(model(images).logits, model.eval()(images).logits)


def test_layers_of_its_encoder_are_blocks_and_groups_are_a_partition() -> None:
    model = build()
    groups = model.parameter_groups(1.0, layer_decay=0.8)
    assert len(groups) == 1 + 3 + 2
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_what_does_not_fit_is_refused_by_place() -> None:
    with pytest.raises(ConfigError, match=r"arch.args.backbone: EoMT needs a plain transformer, which resnet18 is not"):
        build(backbone="resnet18")
    with pytest.raises(ConfigError, match=r"arch.args.query_blocks: 4 of 3 blocks"):
        build(query_blocks=4)
    with pytest.raises(ConfigError, match="multiple of its 5 'heads'"):
        build(heads=5)


@pytest.mark.parametrize("name", ["xcit_nano_12_p16_224", "vit_small_patch16_rope_mixed_224"])
def test_transformers_whose_blocks_cannot_be_called_one_by_one_are_refused(name: str) -> None:
    timm = pytest.importorskip("timm")
    if not timm.is_model(name):
        pytest.skip(f"this timm has no {name}")
    with pytest.raises(ConfigError, match=f"arch.args.backbone: EoMT needs a plain transformer, which timm/{name} is"):
        build(backbone=f"timm/{name}")


@pytest.mark.parametrize("name", ["test_vit", "test_vit4", "vit_small_patch16_dinov3"])
def test_encoders_of_timm_take_queries_and_queries_know_no_position(name: str) -> None:
    pytest.importorskip("timm")
    model = build(backbone=f"timm/{name}", query_blocks=1).eval()
    images = torch.randint(256, (1, 3, 65, 97), dtype=torch.uint8)
    with torch.no_grad():
        before = model(images).logits
        model.queries.copy_(model.queries.flip(1))
        torch.testing.assert_close(model(images).logits, before, rtol=1e-3, atol=1e-3)
    assert before.shape == (1, C, 17, 25)
    criterion = build_criterion("MaskLoss", num_classes=C)
    labels = torch.randint(C, (1, 65, 97))
    criterion(model.train()(images), labels)["loss"].backward()
    assert all(each.grad is not None for each in model.decoder_parameters())


def test_it_learns_tiny_scenes() -> None:
    torch.manual_seed(0)
    items = [Squares(length=4, size=(48, 48)).read(index) for index in range(4)]
    images = torch.stack([torch.from_numpy(item.image).permute(2, 0, 1) for item in items])
    labels = torch.stack([torch.from_numpy(item.label) for item in items])
    model = build(patch=4).train()
    criterion = build_criterion({"type": "MaskLoss", "args": {"points": 256}}, num_classes=C)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    steps = 160
    decay = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps)
    for step in range(steps):
        model.start_step(step, steps)
        criterion(model(images), labels)["loss"].backward()
        optimizer.step()
        decay.step()
        optimizer.zero_grad()
    with torch.no_grad():
        found = model.eval()(images).full((48, 48)).logits.argmax(1)
    ious = []
    for index in range(C):
        mine, theirs = (found == index) & (labels != IGNORE), labels == index
        ious.append(((mine & theirs).sum() / (mine | theirs).sum()).item())
    assert np.mean(ious) > 0.9


def test_kill_9_while_masks_are_annealed_changes_nothing(tmp_path: Path) -> None:
    folders = [tmp_path / kill for kill in ("whole", "step:5")]
    for folder in folders:
        folder.mkdir()
        path = write_config(folder, accumulate=2)
        config = json.loads(path.read_text())
        config["arch"] = {"type": "EoMT", "args": TINY}
        config["loss"] = {"type": "MaskLoss", "args": {"points": 64}}
        path.write_text(json.dumps(config))
        if folder.name == "whole":
            assert train_in_child(path) == 0
        else:
            assert train_in_child(path, kill=folder.name) == -signal.SIGKILL
            assert train_in_child(path, "--resume", "auto") == 0
            assert_same_end(folder, only_run(tmp_path / "whole"))


def test_it_is_exported_for_any_size() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from engine.exporting.graph import to_onnx, trace
    from engine.exporting.read import runner_of, session_of

    model = build().eval()
    runner = runner_of(session_of(to_onnx(trace(model, 3, ("logits",), None), ("logits",)).SerializeToString()))
    for size in ((37, 51), (64, 48)):
        images = torch.randint(256, (2, 3, *size), dtype=torch.uint8)
        with torch.no_grad():
            torch.testing.assert_close(runner(images)["logits"], model(images).full(size).logits, rtol=1e-3, atol=1e-4)
