"""Computing blocks twice saves memory and changes nothing else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from base.base_model import BaseModel
from engine.check import check_config
from engine.dry_run import dry_run
from models.blocks import ConvNormAct
from models.build import build_model
from tests.test_trainer import make_trainer
from tests.tiny import tiny_config
from utils.activation_checkpointing import blocks_of, checkpoint_activations
from utils.errors import ConfigError

NARROW = {"width_mult": 0.125}
MODELS: list[Any] = [
    {"type": "PSPNet", "args": {"backbone": {"type": "resnet18", "args": NARROW}}},
    {"type": "DeepLab", "args": {"backbone": {"type": "resnet50", "args": NARROW}, "channels": 16}},
    {"type": "UperNet", "args": {"backbone": {"type": "mobilenet_v2"}}},
    {"type": "PSPDenseNet", "args": {"backbone": {"type": "densenet121"}}},
    "UNet",
    "ENet",  # its blocks are as wide outside as inside
]
SHARES = (0.5, 0.4, 0.5, 0.4, 0.65, 0.95)  # of the memory that are left, at most


def gradients(model: BaseModel, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """Gradients by name, state after one pass, and bytes kept from the forward for the backward pass."""
    torch.manual_seed(0)
    kept: dict[int, int] = {}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(images)
    size = sum(kept.values())
    loss = output.logits.square().mean() + sum(aux.square().mean() for aux in output.aux)
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, model.state_dict(), size


@pytest.mark.parametrize(("arch", "share"), list(zip(MODELS, SHARES, strict=True)))
def test_gradients_and_statistics_are_those_of_the_plain_network(arch: Any, share: float) -> None:
    torch.manual_seed(0)
    plain = build_model(arch, num_classes=3).train()
    twice = copy.deepcopy(plain)
    checkpoint_activations(twice)
    images = torch.randint(256, (2, 3, 65, 97), dtype=torch.uint8)
    expected, state, plain_bytes = gradients(plain, images)
    found, own_state, less_bytes = gradients(twice, images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 1e-5 * value.norm() + 1e-12, name
    assert own_state.keys() == state.keys()
    assert all(torch.equal(own_state[name], value) for name, value in state.items())  # batch norm: updated once
    assert less_bytes < share * plain_bytes


def test_blocks_of_a_resnet_are_its_residual_blocks() -> None:
    model = build_model(MODELS[1], num_classes=3)
    inside = [block for block in blocks_of(model) if block in set(model.backbone.modules())]
    assert [type(block).__name__ for block in inside] == ["Bottleneck"] * 16
    assert not any(isinstance(block, nn.BatchNorm2d | nn.Conv2d) for block in blocks_of(model))
    assert not any(isinstance(block, ConvNormAct) and block in set(model.backbone.modules()) for block in inside)


def test_training_is_the_same_with_it(tmp_path: Path) -> None:
    plain, twice = (make_trainer(tmp_path, ema=0.9, activation_checkpointing=each) for each in (False, True))
    for trainer in (plain, twice):
        trainer.fit()
    assert twice.history == plain.history
    assert list(blocks_of(twice.model))
    copied = copy.deepcopy(twice.model)  # has blocks of its own
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    images = torch.zeros(2, 3, 33, 41, dtype=torch.uint8)
    assert copied(images).logits.abs().max() == 0
    assert twice.model.train()(images).logits.abs().max() > 0


def test_the_check_says_how_much_less_a_step_holds(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    plain = dry_run(check_config(config))
    config["trainer"]["activation_checkpointing"] = True
    less = dry_run(check_config(config))
    assert 0.1 * plain.activation_bytes < less.activation_bytes < 0.6 * plain.activation_bytes
    assert (less.logits, less.parameters, less.unused) == (plain.logits, plain.parameters, False)


def test_it_is_refused_together_with_compile(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config["trainer"] |= {"compile": True, "activation_checkpointing": True}
    with pytest.raises(ConfigError, match=r"^trainer\.compile: does not work with activation_checkpointing"):
        check_config(config)


def test_graphs_that_use_the_memory_of_gradients_again_are_refused_where_these_add_up(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    config["trainer"] |= {"compile": "reduce-overhead", "accumulate": 2}
    with pytest.raises(ConfigError, match=r'^trainer\.compile: "reduce-overhead" uses the memory of gradients again'):
        check_config(config)
    config["trainer"]["compile"] = True
    check_config(config)
