"""Which parameters an optimizer treats how."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from base.base_model import BaseModel
from models.build import build_model
from utils.errors import ConfigError
from utils.lr_scheduler import build_scheduler
from utils.optimizers import OptimizerConfig, PartOptions, build_optimizer, check_optimizer
from utils.outputs import SegOutput
from utils.registry import OPTIMIZERS

LEGO = {
    "type": "EncoderDecoder",
    "args": {"backbone": {"type": "resnet18", "args": {"width_mult": 0.125}}, "head": "FCNHead"},
}


class Small(BaseModel):
    def __init__(self, backbone=True):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.GroupNorm(2, 4)
        )
        self.classify = nn.Conv2d(4, 2, 1)
        self.has_backbone = backbone

    def predict(self, images):
        return SegOutput(self.classify(self.encoder(images)))

    def backbone_modules(self):
        return [self.encoder] if self.has_backbone else []


def groups(config, model=None):
    model = model or Small()
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        group["name"]: (group["lr"], group.get("weight_decay"), [names[p] for p in group["params"]])
        for group in build_optimizer(config, model).param_groups
    }


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_takes_a_step(name):
    model = Small()
    optimizer = build_optimizer({"type": name, "differential_lr": True}, model)
    model(torch.rand(2, 3, 9, 13)).logits.sum().backward()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer.step()
    assert any((old != new).any() for old, new in zip(before, model.parameters(), strict=True))
    assert [group["name"] for group in optimizer.param_groups] == ["decoder", "backbone"]
    assert optimizer.param_groups[1]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"] / 10)


@pytest.mark.parametrize(("setting", "ratio"), [(False, 1), (True, 0.1), (0.25, 0.25), (2, 2)])
def test_differential_lr_sets_the_backbones_ratio(setting, ratio):
    found = groups({"args": {"lr": 0.02, "weight_decay": 1e-4}, "differential_lr": setting})
    assert list(found) == ["decoder", "backbone"]
    assert [found[name][:2] for name in found] == [(0.02, 1e-4), (pytest.approx(0.02 * ratio), 1e-4)]


def test_parts_scale_rate_and_decay():
    parts = {"backbone": {"lr_mult": 0.5, "decay_mult": 0}, "decoder": {"lr_mult": 10}}
    found = groups({"type": "AdamW", "args": {"lr": 1e-3}, "parts": parts})
    assert found["decoder"][:2] == (1e-2, 1e-2)  # AdamW decays by default
    assert found["backbone"][:2] == (5e-4, 0)


@pytest.mark.parametrize(
    ("spared", "expected"),
    [
        (["norm"], ["encoder.1.weight", "encoder.1.bias", "encoder.3.weight", "encoder.3.bias"]),
        (["bias"], ["encoder.0.bias", "encoder.1.bias", "encoder.3.bias"]),
        (["depthwise"], ["encoder.2.weight"]),
    ],
)
def test_no_decay_splits_groups_and_keeps_their_order(spared, expected):
    model = Small()
    found = groups({"args": {"weight_decay": 1e-4}, "no_decay": spared, "differential_lr": True}, model)
    order = ["decoder", "decoder/no_decay", "backbone", "backbone/no_decay"]
    assert list(found) == [name for name in order if name in found]
    assert found["backbone/no_decay"][2] == expected
    assert found["backbone/no_decay"][1] == 0
    assert found["backbone"][1] == 1e-4
    assert found["backbone"][0] == found["backbone/no_decay"][0]
    everything = [name for _, _, names in found.values() for name in names]
    assert sorted(everything) == sorted(name for name, _ in model.named_parameters())
    assert ("decoder/no_decay" in found) == (spared == ["bias"])


@pytest.mark.parametrize("schedule", ["Poly", "OneCycle", {"type": "StepLR", "args": {"step_size": 1, "gamma": 0.3}}])
def test_each_layer_of_the_backbone_learns_more_slowly_than_the_next(schedule):
    model = build_model(LEGO, num_classes=3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    section = {
        "args": {"lr": 0.1, "weight_decay": 1e-4},
        "layer_decay": 0.75,
        "differential_lr": 0.5,
        "parts": {"backbone": {"decay_mult": 2}},
        "no_decay": ["norm"],
    }
    optimizer = build_optimizer(section, model)
    course = build_scheduler(schedule, optimizer, total_steps=20, steps_per_epoch=5)
    optimizer.step()
    for step in (0, 7, 19):
        course.apply(optimizer, step)
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        for layer in range(5):
            expected = rates["decoder"] * 0.5 * 0.75 ** (5 - layer)
            assert rates[f"backbone/layer_{layer}"] == pytest.approx(expected)
            assert rates[f"backbone/layer_{layer}/no_decay"] == pytest.approx(expected)
    decays = {group["name"]: group["weight_decay"] for group in optimizer.param_groups}
    assert (decays["decoder"], decays["backbone/layer_3"], decays["backbone/layer_3/no_decay"]) == (1e-4, 2e-4, 0)
    found = {
        names[id(parameter)]: group["name"].removesuffix("/no_decay")
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    assert found.keys() == set(names.values())
    for name, group in found.items():
        stem, stage = name.startswith(("backbone.conv1", "backbone.bn1")), name.partition("backbone.layer")[2][:1]
        assert group == ("backbone/layer_0" if stem else f"backbone/layer_{stage}" if stage else "decoder")


def test_a_part_rests_and_warms_up_by_itself():
    """The head warms up for 4 steps while the backbone rests, and the backbone for 8 after that."""
    parts = {"decoder": {"warmup": 4}, "backbone": {"delay": 5, "warmup": 8}}
    section = {"args": {"lr": 0.1}, "layer_decay": 0.5, "parts": parts, "no_decay": ["norm"]}
    plain, staged = (build_optimizer(s, build_model(LEGO, num_classes=3)) for s in ({**section, "parts": {}}, section))
    facts = {"total_steps": 30, "steps_per_epoch": 10}
    for step in (0, 3, 4, 5, 12, 13, 29):
        for optimizer in (plain, staged):
            # A new schedule each time: what was done before has no part in it.
            build_scheduler({"type": "Poly", "args": {"warmup_epochs": 0.2}}, optimizer, **facts).apply(optimizer, step)
        shares = {"decoder": min((step + 1) / 5, 1), "backbone": min(max(step - 5 + 1, 0) / 9, 1)}
        for one, other in zip(plain.param_groups, staged.param_groups, strict=True):
            assert other["lr"] == pytest.approx(one["lr"] * shares[one["name"].partition("/")[0]])
    assert not any("stages" in group for group in plain.param_groups)


def test_a_resting_part_keeps_its_weights():
    model = Small()
    section = {"type": "AdamW", "args": {"lr": 0.1, "weight_decay": 0.1}, "parts": {"backbone": {"delay": 2}}}
    optimizer = build_optimizer(section, model)
    schedule = build_scheduler("Constant", optimizer, total_steps=9, steps_per_epoch=3)
    changed = []
    for step in range(4):
        before = model.encoder[0].weight.clone()
        schedule.apply(optimizer, step)
        model(torch.rand(2, 3, 9, 9)).logits.square().sum().backward()
        optimizer.step()
        changed.append(not torch.equal(before, model.encoder[0].weight))
    assert changed == [False, False, True, True]


def test_stages_of_parts_need_a_schedule_of_ours():
    optimizer = build_optimizer({"parts": {"backbone": {"warmup": 1}}}, Small())
    with pytest.raises(ConfigError, match=r"^lr_scheduler: StepLR counts for itself and knows no delay or warm-up of"):
        build_scheduler({"type": "StepLR", "args": {"step_size": 1}}, optimizer, total_steps=9, steps_per_epoch=3)


def test_looking_for_layers_leaves_the_model_as_it_is():
    model = build_model({**LEGO, "args": {**LEGO["args"], "freeze_bn": True}}, num_classes=3).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    build_optimizer({"layer_decay": 0.5}, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes


def test_frozen_parameters_stay_and_empty_groups_go():
    model = Small()
    model.freeze(backbone=True)
    assert list(groups({}, model)) == ["decoder", "backbone"]
    assert list(groups({"differential_lr": True}, Small(backbone=False))) == ["decoder"]


def test_groups_go_through_a_checkpoint(tmp_path):
    optimizer = build_optimizer({"no_decay": ["bias"], "parts": {"backbone": {"delay": 2, "warmup": 3}}}, Small())
    torch.save(optimizer.state_dict(), tmp_path / "state.pth")
    other = build_optimizer({"args": {"lr": 1}, "no_decay": ["bias"]}, Small())
    other.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    for own, restored in zip(optimizer.param_groups, other.param_groups, strict=True):
        assert {k: v for k, v in own.items() if k != "params"} == {k: v for k, v in restored.items() if k != "params"}


@pytest.mark.parametrize(
    ("config", "lines"),
    [
        ("Adm", ["optimizer: no optimizer is called 'Adm'. Did you mean 'Adam'?"]),
        ({"lr": 1}, ["optimizer.lr: unknown key. Choose from args, differential_lr, layer_decay, no_decay, parts"]),
        ({"args": {"lr": "0.1"}}, ["optimizer.args.lr: expected a number"]),
        (
            {"args": {"lr": -1}},
            ["optimizer.args.lr: -1.0, which SGD refuses: Invalid learning rate: -1.0. Change it."],
        ),
        ({"args": {"params": []}}, ["optimizer.args.params: is filled in by the framework. Remove it."]),
        (
            {"args": {"momentun": 1, "nesterov": 1}},
            [
                "optimizer.args.momentun: unknown key. Did you mean 'momentum'?",
                "optimizer.args.nesterov: expected true or false, got 1.",
            ],
        ),
        ({"differential_lr": -0.1}, ["optimizer.differential_lr: expected a number above 0, got -0.1."]),
        (
            {"differential_lr": True, "parts": {"backbone": {"lr_mult": 0.1}}},
            [
                "optimizer.parts.backbone.lr_mult: differential_lr sets the backbone's learning rate too. "
                "Keep one of the two."
            ],
        ),
        ({"parts": {"bakbone": {}}}, ["optimizer.parts.bakbone: the model has no such part. Did you mean 'backbone'?"]),
        (
            {"parts": {"backbone": {"lr": 1}}},
            ["optimizer.parts.backbone.lr: unknown key."],
        ),
        (
            {"layer_decay": 0.5},
            ["optimizer.layer_decay: has no effect, the model has no backbone whose layers are known. Set it to 1."],
        ),
        ({"layer_decay": 0}, ["optimizer.layer_decay: expected a number above 0 and of at most 1, got 0."]),
        ({"no_decay": ["biases"]}, ['optimizer.no_decay[0]: expected one of "norm", "bias", "depthwise"']),
        (
            {"type": "Rprop", "no_decay": ["bias"]},
            ["optimizer.no_decay: Rprop has no weight decay. Remove it, or use another type."],
        ),
    ],
)
def test_mistakes_are_named(config, lines):
    with pytest.raises(ConfigError) as caught:
        build_optimizer(config, Small())
    assert len(caught.value.problems) == len(lines)
    for problem, line in zip(caught.value.problems, lines, strict=True):
        assert problem.startswith(line)


def test_the_resolved_section_gives_itself_again():
    problems: list[str] = []
    section = {"type": "SGD", "args": {"lr": 0.1}, "parts": {"backbone": {"lr_mult": 0.1}}, "no_decay": ["norm"]}
    config = check_optimizer(section, problems=problems)
    assert config.args["momentum"] == 0
    assert config.parts == {"backbone": PartOptions(0.1)}
    assert check_optimizer(config, problems=problems) == config
    assert isinstance(config, OptimizerConfig)
    assert not problems


def test_one_kernel_computes_what_many_do_where_torch_has_it():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 9, 9)
    found = {}
    for fused in (False, True):
        torch.manual_seed(0)
        model = Small()
        optimizer = build_optimizer({"type": "AdamW", "args": {"lr": 0.1}}, model, fused=fused)
        model(images).logits.square().sum().backward()
        optimizer.step()
        found[fused] = [parameter.detach() for parameter in model.parameters()]
        assert bool(optimizer.param_groups[0]["fused"]) is fused
    for one, many in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
    for config in ({"type": "SGD", "args": {"fused": False}}, {"type": "SGD", "args": {"foreach": True}}, "RMSprop"):
        assert not build_optimizer(config, Small(), fused=True).param_groups[0].get("fused")


def test_checking_an_optimizer_does_not_wait_for_torch_s_compiler():
    code = """
import sys
from utils.optimizers import check_optimizer
from torch.optim import Optimizer
before = Optimizer.add_param_group
problems = []
check_optimizer({"type": "AdamW", "args": {"lr": 0.1}}, problems=problems)
print(problems, "torch._dynamo" in sys.modules, Optimizer.add_param_group is before)
"""
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "False", "True"]
