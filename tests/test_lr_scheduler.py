"""Learning rates at steps where they can be worked out by hand."""

import math

import pytest
import torch
from torch import nn

from utils.errors import ConfigError
from utils.lr_scheduler import SchedulerConfig, build_scheduler, check_scheduler, one_cycle, poly_factor
from utils.registry import SCHEDULERS

OURS = {
    "Poly": {"warmup_epochs": 1},
    "OneCycle": {},
    "Constant": {},
    "Step": {"milestones": [2, 3]},
    "Cosine": {"warmup_epochs": 0.5},
}
TORCHS = {
    "StepLR": {"step_size": 2},
    "CosineAnnealingLR": {"T_max": 5},
    "ExponentialLR": {"gamma": 0.9},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 12},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1},
    "PolynomialLR": {"total_iters": 4},
}


def make_optimizer(kind=torch.optim.SGD, **options):
    weights = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": 0.1, "name": "decoder"}, {"params": weights[1:], "lr": 0.01}]
    return kind(groups, **({"momentum": 0.9} if kind is torch.optim.SGD else {}) | options)


def rates(config, steps, *, total_steps=None, steps_per_epoch=4, optimizer=None):
    optimizer = optimizer or make_optimizer()
    schedule = build_scheduler(config, optimizer, total_steps=total_steps or steps, steps_per_epoch=steps_per_epoch)
    found = []
    for step in range(steps):
        schedule.apply(optimizer, step)
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
    return found


def test_poly_is_the_papers_power_of_what_is_left():
    assert [poly_factor(step, 10) for step in (0, 5, 9)] == [1, 0.5**0.9, pytest.approx(0.1**0.9)]
    assert poly_factor(10, 10) == poly_factor(11, 10) == 0
    assert [poly_factor(step, 100, power=1, warmup_steps=4) for step in (0, 3, 4)] == pytest.approx(
        [0.2, 0.8 * 0.97, 0.96]
    )
    assert poly_factor(0, 1) == 1
    assert poly_factor(0, 0) == 1


def test_poly_per_epoch_is_constant_within_an_epoch():
    found = [decoder for decoder, _ in rates({"type": "Poly", "args": {"per_epoch": True}}, 10, steps_per_epoch=4)]
    epochs = [0.1 * (1 - epoch / 3) ** 0.9 for epoch in (0, 1, 2)]
    assert found == pytest.approx([epochs[0]] * 4 + [epochs[1]] * 4 + [epochs[2]] * 2)


@pytest.mark.parametrize("total", [10, 37, 200])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_one_cycle_is_torchs(total, kind):
    ours, theirs = make_optimizer(kind), make_optimizer(kind)
    schedule = build_scheduler("OneCycle", ours, total_steps=total, steps_per_epoch=5)
    reference = torch.optim.lr_scheduler.OneCycleLR(theirs, [0.1, 0.01], total_steps=total)
    for step in range(total):
        schedule.apply(ours, step)
        for own, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert own["lr"] == pytest.approx(other["lr"], rel=1e-9)
            for key in ("momentum", "betas"):
                assert own.get(key) == pytest.approx(other.get(key))
        theirs.step()
        if step < total - 1:
            reference.step()


def test_one_cycle_starts_at_a_25th_peaks_at_30_per_cent_and_ends_near_nothing():
    shares, momentums = zip(*(one_cycle(step, 100) for step in range(100)), strict=True)
    assert (shares[0], max(shares), shares[-1]) == pytest.approx((1 / 25, 1, 1 / 25e4))
    assert shares.index(max(shares)) == 29
    assert (momentums[0], momentums[29], momentums[-1]) == pytest.approx((0.95, 0.85, 0.95))


@pytest.mark.parametrize("total", [1, 2, 3, 5])
@pytest.mark.parametrize("config", [{"type": name, "args": args} for name, args in OURS.items()], ids=list(OURS))
def test_short_runs_and_steps_past_the_end_are_real_and_not_negative(config, total):
    for decoder, _ in rates(config, total + 5, total_steps=total, steps_per_epoch=1):
        assert isinstance(decoder, float)
        assert 0 <= decoder <= 0.1
        assert math.isfinite(decoder)


@pytest.mark.parametrize("name", ["Poly", "Cosine"])
def test_nothing_is_left_past_the_end(name):
    assert rates(name, 12, total_steps=10)[-2:] == [[0, 0], [0, 0]]


@pytest.mark.parametrize("config", [{"type": name, "args": args} for name, args in OURS.items()], ids=list(OURS))
def test_groups_keep_their_ratio_and_only_the_step_matters(config):
    optimizer = make_optimizer()
    found = rates(config, 16, optimizer=optimizer)
    for decoder, backbone in found:
        assert backbone == pytest.approx(decoder / 10)
    # The same optimizer, its rates long changed, in another order, by a new schedule.
    schedule = build_scheduler(config, optimizer, total_steps=16, steps_per_epoch=4)
    for step in (11, 3, 15, 0):
        schedule.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == found[step]
    assert schedule.state_dict() == {}


def test_base_rates_survive_a_checkpoint_in_the_middle():
    first, second = make_optimizer(), make_optimizer()
    schedule = build_scheduler("Poly", first, total_steps=10, steps_per_epoch=2)
    schedule.apply(first, 7)
    resumed = build_scheduler("Poly", second, total_steps=10, steps_per_epoch=2)
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        resumed.apply(optimizer, 8)
    assert [g["lr"] for g in first.param_groups] == [g["lr"] for g in second.param_groups]


def test_step_falls_after_its_milestones():
    found = [decoder for decoder, _ in rates({"type": "Step", "args": {"milestones": [1, 3]}}, 16)]
    assert found == pytest.approx([0.1] * 4 + [0.01] * 8 + [0.001] * 4)


@pytest.mark.parametrize("per", ["epoch", "step"])
@pytest.mark.parametrize("name", TORCHS)
def test_torchs_schedulers_go_by_name_and_by_epoch_or_step(name, per):
    found = rates({"type": name, "args": TORCHS[name], "per": per}, 12)
    optimizer = make_optimizer()
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **TORCHS[name])
    for step in range(12):
        if step and (per == "step" or step % 4 == 0):
            scheduler.step()
        assert found[step] == [group["lr"] for group in optimizer.param_groups]
        optimizer.step()


@pytest.mark.parametrize("name", TORCHS)
def test_torchs_schedulers_resume_where_they_were(name, tmp_path):
    config = {"type": name, "args": TORCHS[name], "per": "step"}
    expected, optimizer = rates(config, 12), make_optimizer()
    schedule = build_scheduler(config, optimizer, total_steps=12, steps_per_epoch=4)
    for step in range(6):
        schedule.apply(optimizer, step)
        optimizer.step()
    torch.save([optimizer.state_dict(), schedule.state_dict()], tmp_path / "state.pth")
    optimizer = make_optimizer()
    schedule = build_scheduler(config, optimizer, total_steps=12, steps_per_epoch=4)
    for part, state in zip((optimizer, schedule), torch.load(tmp_path / "state.pth", weights_only=True), strict=True):
        part.load_state_dict(state)
    for step in range(6, 12):
        schedule.apply(optimizer, step)
        assert [group["lr"] for group in optimizer.param_groups] == expected[step]
        optimizer.step()


def test_a_schedule_of_torch_that_ends_before_the_run_is_refused_before_it_begins():
    config = {"type": "OneCycleLR", "args": {"max_lr": 0.1, "total_steps": 3}, "per": "step"}
    assert len(rates(config, 4)) == 4
    with pytest.raises(ValueError, match="Tried to step 4 times"):
        rates(config, 5)
    for total, per in ((4, "step"), (11, "epoch"), (5, "step"), (17, "epoch")):
        schedule = build_scheduler({**config, "per": per}, make_optimizer(), total_steps=total, steps_per_epoch=4)
        if total in (4, 11):
            schedule.check_length(total, where="lr_scheduler")
            continue
        with pytest.raises(ConfigError, match=rf"^lr_scheduler\.args: OneCycleLR ends after 3 {per}s, and .* takes 4"):
            schedule.check_length(total, where="lr_scheduler")


def test_a_plateau_is_seen_at_validations_only():
    optimizer = make_optimizer()
    config = {"type": "ReduceLROnPlateau", "args": {"patience": 0, "mode": "max"}}
    schedule = build_scheduler(config, optimizer, total_steps=20, steps_per_epoch=2)
    for step, value in enumerate([0.5, 0.6, 0.6]):
        schedule.apply(optimizer, 5 * step)
        assert optimizer.param_groups[0]["lr"] == 0.1
        schedule.after_validation(value)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_every_schedule_of_ours_is_tested_here():
    assert {name for name in SCHEDULERS if SCHEDULERS.reserved(name) > SCHEDULERS.reserved("StepLR")} == set(OURS)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("Polly", "lr_scheduler: no scheduler is called 'Polly'. Did you mean 'Poly'?"),
        ({"type": "Poly", "args": {"pwer": 1}}, "lr_scheduler.args.pwer: unknown key. Did you mean 'power'?"),
        (
            {"type": "Poly", "args": {"total_steps": 1}},
            "lr_scheduler.args.total_steps: is filled in by the framework. Remove it.",
        ),
        ({"type": "Poly", "per": "epoch"}, "lr_scheduler.per: has no effect on Poly, which counts steps. Remove it."),
        ({"type": "StepLR"}, "lr_scheduler.args.step_size: missing. Give int."),
        (
            {"type": "OneCycleLR", "args": {"max_lr": 1}},
            "lr_scheduler.args: OneCycleLR refuses its arguments: You must define either total_steps OR (epochs AND "
            "steps_per_epoch). Change them.",
        ),
    ],
)
def test_mistakes_are_named(config, line):
    with pytest.raises(ConfigError) as caught:
        build_scheduler(config, make_optimizer(), total_steps=10, steps_per_epoch=2)
    assert caught.value.problems == (line,)


def test_the_resolved_section_gives_itself_again():
    problems: list[str] = []
    config = check_scheduler({"type": "StepLR", "args": {"step_size": 3}}, problems=problems)
    assert config == SchedulerConfig("StepLR", {"step_size": 3, "gamma": 0.1, "last_epoch": -1}, "epoch")
    assert check_scheduler(config, problems=problems) == config
    assert not problems
