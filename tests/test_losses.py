"""The contract of losses, for every registered one, and what each of them computes."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from utils.classes import IGNORE, ClassFacts
from utils.errors import ConfigError
from utils.losses import cross_entropy, dice, lovasz, strips
from utils.losses.base import resolve_weights
from utils.losses.criterion import LossTerm, build_criterion, check_loss, needs_class_pixels
from utils.losses.cross_entropy import CrossEntropyLoss2d, FocalLoss, OHEMCrossEntropyLoss, TopKCrossEntropyLoss
from utils.losses.dice import DiceLoss
from utils.losses.lovasz import LovaszSoftmax
from utils.losses.strips import predicted_labels
from utils.outputs import SegOutput
from utils.registry import LOSSES

C = 5
CLASSES = ClassFacts(num_classes=C, class_names=list("abcde"))
VARIANTS = {
    "CrossEntropyLoss2d": [{}, {"class_weights": [0.5, 1.0, 2.0, 0.0, 3.0], "label_smoothing": 0.1}],
    "FocalLoss": [{}, {"gamma": 0.5, "class_weights": [0.5, 1.0, 2.0, 0.0, 3.0]}],
    "DiceLoss": [
        dict(zip(("per_class", "per_image"), v, strict=True)) for v in itertools.product([True, False], repeat=2)
    ],
    "CE_DiceLoss": [
        {},
        {"class_weights": [0.5, 1.0, 2.0, 0.0, 3.0], "label_smoothing": 0.1, "dice_factor": 2.0},
        {"per_class": False},
        {"per_class": False, "class_weights": [1, 2, 3, 4, 5], "label_smoothing": 0.2},
    ],
    "TopKCrossEntropyLoss": [{}, {"per_image": True}, {"top_k_percent": 1}, {"class_weights": [0.5, 1, 2, 0.0, 3]}],
    "OHEMCrossEntropyLoss": [
        {"min_kept": 5},
        {"thresh": 0.1, "min_kept": 9, "per_image": True},
        {"thresh": 0.3, "min_kept": 1, "class_weights": [0.5, 1, 2, 0.0, 3]},
    ],
    "LovaszSoftmax": [{}, {"per_image": True}, {"classes": "all"}, {"classes": [1, 3]}, {"bins": 64}],
}
CHOOSY = ("LovaszSoftmax", "TopKCrossEntropyLoss", "OHEMCrossEntropyLoss")  # which pixel counts how, depends on others
LOSS_VARIANTS = [(name, args) for name in LOSSES for args in VARIANTS.get(name, [{}])]
each_loss = pytest.mark.parametrize(("name", "args"), LOSS_VARIANTS, ids=lambda value: str(value))


def build(name, args):
    return LOSSES.build({"type": name, "args": args}, where="loss", class_facts=CLASSES)


def example(seed=0, images=2, low=(9, 13), full=(9, 13), dtype=torch.float64):
    """Logits and labels, a quarter of them void."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(images, C, *low, generator=generator, dtype=dtype)
    labels = torch.randint(C, (images, *full), generator=generator).to(torch.uint8)
    labels[torch.rand(labels.shape, generator=generator) < 0.25] = IGNORE
    return logits, labels


def value_and_gradient(loss, logits, labels, norm=None):
    logits = logits.detach().requires_grad_()
    value = loss(logits, labels, norm)
    return value.detach(), torch.autograd.grad(value, logits)[0]


@each_loss
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6), noise=st.sampled_from([1.0, 1e4]))
def test_void_pixels_have_no_part_in_value_or_gradient(name, args, seed, noise):
    loss, (logits, labels) = build(name, args), example(seed)
    void = (labels == IGNORE)[:, None]
    value, gradient = value_and_gradient(loss, logits, labels)
    other = torch.where(void, noise * torch.randn_like(logits), logits)
    assert value_and_gradient(loss, other, labels)[0] == pytest.approx(value.item(), abs=1e-12)
    torch.testing.assert_close(value_and_gradient(loss, other, labels)[1], gradient, rtol=1e-9, atol=1e-12)
    assert not gradient.masked_select(void).any()


@each_loss
def test_labels_are_left_as_they_are_and_may_be_uint8_or_int64(name, args):
    loss, (logits, labels) = build(name, args), example(full=(33, 50))
    before = labels.clone()
    values = [value_and_gradient(loss, logits, kind) for kind in (labels, labels.long())]
    assert torch.equal(labels, before)
    assert torch.equal(values[0][0], values[1][0])
    assert torch.equal(values[0][1], values[1][1])


@each_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("full", [(9, 13), (33, 50)])
def test_a_batch_without_labels_costs_nothing_and_teaches_nothing(name, args, dtype, full):
    logits, labels = example(full=full)
    value, gradient = value_and_gradient(build(name, args), logits.to(dtype), torch.full_like(labels, IGNORE))
    assert value == 0
    assert not gradient.any()


@each_loss
def test_a_norm_of_zero_gives_zero(name, args):
    loss, (logits, labels) = build(name, args), example()
    value, gradient = value_and_gradient(loss, logits, labels, torch.zeros((), dtype=torch.float64))
    assert value == 0
    assert not gradient.any()


@each_loss
@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 10**6), order=st.permutations(range(C)))
def test_the_order_of_classes_does_not_matter(name, args, seed, order):
    if isinstance(args.get("class_weights"), list) or isinstance(args.get("classes"), list):
        args = {key: value for key, value in args.items() if key not in ("class_weights", "classes")}
    loss, (logits, labels) = build(name, args), example(seed, full=(33, 50))
    new_id = torch.full((256,), IGNORE, dtype=torch.uint8)
    new_id[list(order)] = torch.arange(C, dtype=torch.uint8)  # class order[i] becomes class i
    value, gradient = value_and_gradient(loss, logits, labels)
    value_2, gradient_2 = value_and_gradient(loss, logits[:, list(order)], new_id[labels.long()])
    torch.testing.assert_close(value_2, value, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient_2, gradient[:, list(order)], rtol=1e-8, atol=1e-12)


@each_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_give_a_finite_loss_computed_in_float32(name, args, dtype):
    loss, (logits, labels) = build(name, args), example(full=(65, 97))
    logits = (1000 * logits).clamp(-60000, 60000).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = value_and_gradient(loss, logits, labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    in_float32, gradient_32 = value_and_gradient(loss, logits.float(), labels)
    assert value == pytest.approx(in_float32.item(), rel=1e-6)
    torch.testing.assert_close(gradient, gradient_32.to(dtype), rtol=1e-2, atol=1e-6)


@each_loss
@pytest.mark.parametrize(("low", "full"), [((3, 4), (3, 4)), ((3, 4), (7, 10)), ((4, 6), (3, 4))])
def test_gradients_are_those_of_the_value(name, args, low, full):
    logits, labels = example(low=low, full=full)
    loss = build(name, args)
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), logits.requires_grad_(), atol=1e-6)


@each_loss
def test_gradients_of_gradients_are_right_too(name, args):
    if name == "LovaszSoftmax":
        pytest.skip("its gradient is piecewise smooth; the plain path is the same for all")
    logits, labels = example(low=(2, 3), full=(4, 7), images=1)
    loss = build(name, args)
    assert torch.autograd.gradgradcheck(lambda z: loss(z, labels), logits.requires_grad_(), atol=1e-5)


@each_loss
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_parts_with_a_shared_norm_equal_one_big_batch(name, args, dtype, tolerance):
    logits, labels = example(images=6, full=(33, 50), dtype=dtype)
    labels[4] = IGNORE
    loss = build(name, args)
    if not loss.additive:
        assert loss.norm(labels) == 1
        return
    norm = loss.norm(labels)
    whole, gradient = value_and_gradient(loss, logits, labels)
    parts = [value_and_gradient(loss, logits[i], labels[i], norm) for i in (slice(3), slice(3, 4), slice(4, 6))]
    torch.testing.assert_close(sum(value for value, _ in parts), whole, rtol=tolerance, atol=0)
    together = torch.cat([part for _, part in parts])
    assert (together - gradient).abs().max() <= tolerance * gradient.abs().max()
    assert norm == pytest.approx(sum(loss.norm(labels[i]) for i in (slice(3), slice(3, 6))).item())


@each_loss
def test_an_image_with_one_labelled_pixel_is_enough(name, args):
    logits, labels = example()
    labels = torch.full_like(labels, IGNORE)
    labels[0, 4, 5] = 1
    value, gradient = value_and_gradient(build(name, args), logits, labels)
    assert value > 0
    assert torch.isfinite(gradient).all()
    assert gradient.any()


@each_loss
def test_perfect_predictions_cost_almost_nothing(name, args):
    logits, labels = example()
    logits = 200.0 * F.one_hot(labels.masked_fill(labels == IGNORE, 0).long(), C).movedim(-1, 1)
    value, gradient = value_and_gradient(
        build(name, args | {"label_smoothing": 0.0} if "label_smoothing" in args else args), logits, labels
    )
    # Lovász over all classes, or over absent ones, charges the largest error of each, here 0 too.
    assert value.abs() < 1e-9
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.0, 3.0]])
@pytest.mark.parametrize("full", [(9, 13), (65, 97)])
def test_cross_entropy_is_that_of_torch_on_resized_logits(weights, smoothing, full):
    logits, labels = example(full=full)
    ours = value_and_gradient(CrossEntropyLoss2d(class_weights=weights, label_smoothing=smoothing), logits, labels)
    resized = F.interpolate(logits.requires_grad_(), size=full, mode="bilinear", align_corners=False)
    weight = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(resized, labels.long(), weight=weight, ignore_index=IGNORE, label_smoothing=smoothing)
    torch.testing.assert_close(ours[0], expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(ours[1], torch.autograd.grad(expected, logits)[0], rtol=1e-8, atol=1e-12)


def test_focal_loss_without_focus_is_cross_entropy():
    logits, labels = example(full=(33, 50))
    torch.testing.assert_close(FocalLoss(gamma=0.0)(logits, labels), CrossEntropyLoss2d()(logits, labels))


def test_focal_loss_is_the_papers_formula_averaged_over_labelled_pixels():
    logits, labels = example()
    p = F.softmax(logits, 1).movedim(1, -1)[labels != IGNORE]
    truth = labels[labels != IGNORE].long()
    p_true, alpha = p[torch.arange(len(truth)), truth], torch.tensor([0.25, 1, 2, 3, 4.0])[truth]
    expected = (-alpha * (1 - p_true) ** 2 * p_true.log()).mean()
    torch.testing.assert_close(FocalLoss(class_weights=[0.25, 1, 2, 3, 4])(logits, labels), expected)


def chosen_by_hand(logits, labels, choose, weights, per_image):
    """Average over the pixels that `choose` takes of lists of (weighted loss, weight, probability), the worst first."""
    losses = []
    for group in ([i] for i in range(len(labels))) if per_image else (range(len(labels)),):
        pixels = []
        for p, truth in (
            (p, t) for i in group for p, t in zip(logits[i].flatten(1).T, labels[i].flatten(), strict=True)
        ):
            if truth != IGNORE:
                probability, weight = F.softmax(p, 0)[truth.long()].item(), weights[truth]
                pixels.append((-weight * np.log(probability), weight, probability))
        if pixels:
            kept = choose(sorted(pixels, reverse=True))
            losses.append(sum(loss for loss, _, _ in kept) / sum(weight for _, weight, _ in kept))
    return np.mean(losses)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.5, 3.0]])
@pytest.mark.parametrize("share", [0.25, 0.1, 1.0])
def test_top_k_averages_over_the_hardest_share_of_the_labelled_pixels(share, weights, per_image):
    logits, labels = example(images=3)
    labels[1] = IGNORE
    loss = TopKCrossEntropyLoss(top_k_percent=share, class_weights=weights, per_image=per_image)
    expected = chosen_by_hand(logits, labels, lambda p: p[: round(share * len(p))], weights or [1] * C, per_image)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-9)
    assert loss(logits.float(), labels).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 0.5, 3.0]])
@pytest.mark.parametrize(("thresh", "least"), [(0.7, 1), (0.001, 20), (0.05, 30), (0.5, 10**6)])
def test_ohem_averages_over_unlikely_pixels_and_over_enough_of_them(thresh, least, weights, per_image):
    logits, labels = example(images=3)

    def choose(pixels):
        pixels.sort(key=lambda pixel: pixel[2])
        unlikely = sum(probability < thresh for _, _, probability in pixels)
        return pixels[: max(unlikely, least * (1 if per_image else len(labels)))]

    loss = OHEMCrossEntropyLoss(thresh=thresh, min_kept=least, class_weights=weights, per_image=per_image)
    expected = chosen_by_hand(logits, labels, choose, weights or [1] * C, per_image)
    assert loss(logits, labels).item() == pytest.approx(expected, rel=1e-9)


def test_all_pixels_count_at_first_and_the_share_falls_along_a_line():
    logits, labels = example(full=(33, 50))
    loss = TopKCrossEntropyLoss(top_k_percent=0.2, hard_example_mining_step=100)
    values = []
    for loss.step in (0, 1, 50, 99, 100, 10**6, None):
        values.append(loss(logits, labels).item())
        wanted = 0.2 if loss.step is None else max(1 - 0.8 * loss.step / 100, 0.2)
        assert values[-1] == pytest.approx(TopKCrossEntropyLoss(top_k_percent=wanted)(logits, labels).item(), rel=1e-3)
    assert values[0] == pytest.approx(CrossEntropyLoss2d()(logits, labels).item(), rel=1e-12)
    assert values == sorted(values)
    assert values[-1] == values[-2] == values[-3]


@pytest.mark.parametrize("weights", [None, [0.0, 1.0, 2.0, 0.5, 3.0]])
def test_pixels_as_hard_as_the_last_one_share_what_is_left(weights):
    logits = torch.zeros(1, C, 4, 6)  # all equally hard, if weights are
    labels = torch.randint(1, C, (1, 4, 6), dtype=torch.uint8)
    loss = TopKCrossEntropyLoss(top_k_percent=0.3, class_weights=weights)
    value, gradient = value_and_gradient(loss, logits, labels)
    assert value.item() == pytest.approx(np.log(C))
    if weights is None:
        expected = (1 / C - F.one_hot(labels.long(), C).movedim(-1, 1)) / labels.numel()
        torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", ["TopKCrossEntropyLoss", "OHEMCrossEntropyLoss"])
def test_hard_pixels_in_float32_are_those_of_float64(name):
    """Where pixels at the edge differ by more than rounding."""
    logits, labels = example(low=(9, 13), full=(33, 50))
    logits[0, 0] += torch.linspace(0, 8, 9, dtype=torch.float64)[:, None]
    loss = build(name, {} if name.startswith("Top") else {"min_kept": 10, "thresh": 0.31})
    value, gradient = value_and_gradient(loss, logits.float(), labels)
    expected, expected_gradient = value_and_gradient(loss, logits.float().double(), labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - expected_gradient).abs().max() <= 1e-6 * expected_gradient.abs().max()


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("per_class", [True, False])
def test_dice_is_one_minus_twice_the_overlap_over_the_sum(per_class, per_image):
    logits, labels = example(images=3)
    labels[0][labels[0] == 2] = IGNORE  # a class that one image lacks
    labels[2] = IGNORE  # an image without labels does not count
    p, smooth = F.softmax(logits, 1), 0.5
    losses = []
    for group in ([0], [1]) if per_image else ([0, 1, 2],):
        mask = labels[group] != IGNORE
        p_in, t_in = p[group].movedim(1, -1)[mask], F.one_hot(labels[group][mask].long(), C).double()
        p_in, t_in = (p_in, t_in) if per_class else (p_in.flatten()[:, None], t_in.flatten()[:, None])
        dice = 1 - (2 * (p_in * t_in).sum(0) + smooth) / (p_in.sum(0) + t_in.sum(0) + smooth)
        losses.append(dice[t_in.sum(0) > 0].mean())
    loss = DiceLoss(per_class=per_class, per_image=per_image, smooth=smooth)
    torch.testing.assert_close(loss(logits, labels), torch.stack(losses).mean())


def naive_lovasz(errors, own):
    """Equation 8 of the paper as it stands: the Jaccard loss of each set of the worst pixels, from its definition."""
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    truth = {i for i in order if own[i]}

    def jaccard_loss(wrong):
        # The prediction differs from the truth exactly on `wrong`.
        predicted = truth ^ wrong
        return 1 - len(truth & predicted) / len(truth | predicted) if truth | predicted else 0.0

    total, before = 0.0, 0.0
    for count in range(1, len(order) + 1):
        now = jaccard_loss(set(order[:count]))
        total, before = total + errors[order[count - 1]] * (now - before), now
    return total


@pytest.mark.parametrize("classes", ["present", "all", [1, 3], ["b", "d"]])
@pytest.mark.parametrize("per_image", [True, False])
def test_lovasz_is_the_extension_that_the_paper_defines(classes, per_image):
    logits, labels = example(images=2, low=(4, 5), full=(7, 9))
    labels[labels == 3] = 2
    logits[0, 0, 0, 0] = -50.0
    p = F.softmax(F.interpolate(logits, size=(7, 9), mode="bilinear", align_corners=False), 1)
    values = []
    for group in ([0], [1]) if per_image else ([0, 1],):
        mask = labels[group] != IGNORE
        p_in, t_in = p[group].movedim(1, -1)[mask].numpy(), labels[group][mask].numpy()
        indices = sorted(set(t_in.tolist())) if classes == "present" else range(C) if classes == "all" else (1, 3)
        values.append(np.mean([naive_lovasz(np.abs((t_in == k) - p_in[:, k]), t_in == k) for k in indices]))
    loss = LovaszSoftmax(classes=classes, per_image=per_image, class_facts=CLASSES)
    assert loss(logits, labels).item() == pytest.approx(np.mean(values), rel=1e-9)


def test_class_weights_follow_their_formulas():
    pixels = [100, 300, 0, 600]
    share = np.array(pixels) / 1000
    facts = ClassFacts(class_pixels=pixels)
    median, enet, root = (resolve_weights(rule, facts) for rule in ("median_freq", "enet", "sqrt_inv"))
    assert median.tolist() == pytest.approx([3.0, 1.0, 3.0, 0.5])  # an absent class gets the largest of the others
    assert enet[[0, 1, 3]].tolist() == pytest.approx((1 / np.log(1.02 + share[[0, 1, 3]])).tolist())
    assert (root[0] / root[3]).item() == pytest.approx(6**0.5)
    assert root.mean().item() == pytest.approx(1)
    assert resolve_weights({"b": 3}, ClassFacts(class_names=["a", "b"])).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("loss", "lines"),
    [
        ("CrossEntropy", ["loss: no loss is called 'CrossEntropy'. Did you mean 'CrossEntropyLoss2d'?"]),
        ({"type": "FocalLoss", "args": {"gama": 1}}, ["loss.args.gama: unknown key. Did you mean 'gamma'?"]),
        ({"type": "FocalLoss", "args": {"gamma": -1}}, ["loss.args.gamma: expected a number of at least 0, got -1."]),
        (
            [{"type": "DiceLoss", "factor": 0}, {"type": "FocalLoss", "fctor": 1}],
            [
                "loss[0].factor: expected a number above 0, got 0.",
                "loss[1].fctor: unknown key. Did you mean 'factor'?",
            ],
        ),
        ([], ["loss: is empty. Name a loss, such as CrossEntropyLoss2d."]),
        (3, ["loss: expected a name, an object or a list of these, got 3."]),
        (
            {"type": "CrossEntropyLoss2d", "args": {"class_weights": [1, 2]}},
            ["loss.args.class_weights: 2 weights for 5 classes. Give one per class."],
        ),
        (
            {"type": "CrossEntropyLoss2d", "args": {"class_weights": {"rod": 2}}},
            ["loss.args.class_weights.rod: no class has this name. Did you mean 'road'?"],
        ),
        (
            {"type": "TopKCrossEntropyLoss", "args": {"top_k_percent": 1, "hard_example_mining_step": 9}},
            [
                "loss.args.hard_example_mining_step: has no effect with top_k_percent 1. "
                "Remove it, or lower top_k_percent."
            ],
        ),
        (
            {"type": "LovaszSoftmax", "args": {"classes": [7]}},
            ["loss.args.classes[0]: no class has index 7. Use 0 to 4."],
        ),
        (
            {"type": "LovaszSoftmax", "args": {"classes": ["rod"]}},
            ["loss.args.classes[0]: no class is called 'rod'. Did you mean 'road'?"],
        ),
    ],
)
def test_mistakes_in_the_loss_section_are_named(loss, lines):
    with pytest.raises(ConfigError) as caught:
        build_criterion(loss, num_classes=C, class_names=["road", "sky", "tree", "car", "dog"])
    assert list(caught.value.problems) == lines


def test_class_weights_by_rule_need_the_counts():
    loss = {"type": "FocalLoss", "args": {"class_weights": "enet"}}
    with pytest.raises(ConfigError, match=r"loss\.args\.class_weights: 'enet' needs the pixels of each class"):
        build_criterion(loss, num_classes=C)
    assert needs_class_pixels(check_loss(loss, problems=[]))
    assert build_criterion(loss, num_classes=C, class_pixels=[1] * C)


def test_a_loss_receives_what_it_asks_about_the_classes(monkeypatch):
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES._entries))

    @LOSSES.register("single")
    class SingleFacts(FocalLoss):
        """Asks for facts one by one, and needs them."""

        def __init__(self, *, num_classes: int, class_names: list[str], ignore_index: int, where: str) -> None:
            super().__init__()
            self.received = (num_classes, class_names, ignore_index, where)

    @LOSSES.register("together")
    class TogetherFacts(FocalLoss):
        """Asks for all of them."""

        def __init__(self, *, class_facts: ClassFacts) -> None:
            super().__init__()
            self.received = class_facts

    names = list("abcde")
    single, together = build_criterion(["single", "together"], num_classes=C, class_names=names).losses
    assert single.received == (C, names, IGNORE, "loss[0].args")
    assert together.received == ClassFacts(num_classes=C, class_names=names, class_pixels=None, ignore_index=IGNORE)
    with pytest.raises(ConfigError, match=r"^loss\.args\.class_facts: is filled in by the framework\. Remove it\.$"):
        build_criterion({"type": "together", "args": {"class_facts": {}}}, num_classes=C)


def test_the_resolved_loss_section_gives_itself_again():
    problems: list[str] = []
    loss = ["DiceLoss", {"type": "CrossEntropyLoss2d", "args": {"label_smoothing": 0.1}, "factor": 2}]
    terms = check_loss(loss, problems=problems)
    assert terms[1] == LossTerm("CrossEntropyLoss2d", {"class_weights": None, "label_smoothing": 0.1}, 2.0)
    assert check_loss(terms, problems=problems) == terms
    assert not problems


def test_the_criterion_adds_terms_and_auxiliary_outputs_with_their_factors():
    (logits, labels), (aux, _) = example(full=(33, 50)), example(1, low=(5, 7))
    criterion = build_criterion(["CrossEntropyLoss2d", {"type": "DiceLoss", "factor": 0.5}], aux_factor=0.3)
    result = criterion(SegOutput(logits, (aux,)), labels)
    main, side = ([CrossEntropyLoss2d()(z, labels), DiceLoss()(z, labels)] for z in (logits, aux))
    assert list(result) == ["loss", "CrossEntropyLoss2d", "DiceLoss", "aux"]
    torch.testing.assert_close(result["DiceLoss"], main[1])
    torch.testing.assert_close(result["loss"], main[0] + 0.5 * main[1] + 0.3 * (side[0] + 0.5 * side[1]))


def test_auxiliary_outputs_may_each_have_a_factor():
    (logits, labels), (first, _), (second, _) = example(full=(33, 50)), example(1, low=(5, 7)), example(2, low=(3, 4))
    output = SegOutput(logits, (first, second))
    results = [build_criterion("DiceLoss", aux_factor=factor)(output, labels) for factor in ((0.5, 0.25), 0.5)]
    main, *aux = (DiceLoss()(z, labels) for z in (logits, first, second))
    torch.testing.assert_close(results[0]["loss"], main + 0.5 * aux[0] + 0.25 * aux[1])
    assert torch.equal(results[0]["aux"], results[1]["aux"])


@each_loss
def test_the_criterion_adds_up_over_parts_of_a_batch(name, args):
    """What is additive equals the whole batch; what is not is averaged over parts by their number of images."""
    logits, labels = example(images=6, full=(33, 50))
    criterion = build_criterion({"type": name, "args": args}, num_classes=C, class_names=list("abcde"))
    normalizers, parts = criterion.normalizers(labels), (slice(2), slice(2, 6))
    assert torch.equal(normalizers, sum(criterion.normalizers(labels[part]) for part in parts))
    total = sum(criterion(SegOutput(logits[part]), labels[part], normalizers)["loss"] for part in parts)
    loss = build(name, args)
    expected = loss(logits, labels)
    if not loss.additive:
        expected = loss(logits[:2], labels[:2]) / 3 + loss(logits[2:], labels[2:]) * 2 / 3
    torch.testing.assert_close(total, expected, rtol=1e-10, atol=0)


@each_loss
def test_the_loss_of_a_split_does_not_depend_on_how_images_are_batched(name, args):
    logits, labels = example(images=6, full=(33, 50))
    criterion = build_criterion({"type": name, "args": args}, num_classes=C, class_names=list("abcde"))
    sums = []
    for size in (1, 4, 6):
        pairs = zip(logits.split(size), labels.split(size), strict=True)
        parts = [criterion.evaluation_sums(SegOutput(z), t) for z, t in pairs]
        sums.append([sum(column) for column in zip(*parts, strict=True)])
    for numerators, normalizers in sums[1:]:
        torch.testing.assert_close(numerators, sums[0][0], rtol=1e-12, atol=0)
        assert torch.equal(normalizers, sums[0][1])
    result = criterion.evaluation_loss(*sums[0])
    if build(name, args).additive and "per_class" not in args:
        assert result["loss"] == pytest.approx(build(name, args)(logits, labels).item(), rel=1e-9)


class LargestTensor(TorchDispatchMode):
    """Remembers the largest floating tensor that any operation made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else [result]
        sizes = [x.numel() for x in made if isinstance(x, torch.Tensor) and x.is_floating_point() and not x._is_view()]
        self.numel = max([self.numel, *sizes])
        return result


@each_loss
def test_full_size_logits_are_never_made(name, args, monkeypatch):
    monkeypatch.setattr(strips, "CPU_STRIP", 4096)
    logits, labels = example(full=(65, 97), dtype=torch.float32)
    with LargestTensor() as largest:
        value_and_gradient(build(name, args), logits, labels)
        predicted_labels(logits, (65, 97))
    full_size = labels.numel() * C
    # Lovász sorts the pixels of one class at a time; hard pixels are chosen among all.
    assert largest.numel <= max(full_size // C + 1000 if name in CHOOSY else 8192, logits.numel())
    assert largest.numel < full_size // 3


PLAIN = {
    "pixel_sum": strips.plain_pixel_sum,
    "class_sums": strips.plain_class_sums,
    "cross_entropy_and_class_sums": strips.plain_cross_entropy_and_class_sums,
    "cross_entropies": strips.plain_cross_entropies,
    "lovasz": lovasz.plain_lovasz,
}


@each_loss
@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 10**6),
    low=st.tuples(st.integers(3, 20), st.integers(3, 20)),
    full=st.tuples(st.integers(8, 70), st.integers(8, 150)),
    strip=st.sampled_from([1, 1000, 2**20]),
)
def test_strips_in_float32_equal_the_plain_computation_in_float64(name, args, seed, low, full, strip):
    loss, (logits, labels) = build(name, args), example(seed, low=low, full=full, dtype=torch.float32)
    logits /= 3  # where every pixel is right beyond doubt, the largest gradient itself is lost in rounding
    tolerance = 1e-6
    if name in CHOOSY:  # where errors differ by rounding only, their order is arbitrary, and so the gradient
        logits, tolerance = logits.double(), 1e-10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "CPU_STRIP", strip)
        value, gradient = value_and_gradient(loss, logits, labels)
    with pytest.MonkeyPatch.context() as patch:
        for function, plain in PLAIN.items():
            for module in (cross_entropy, dice, lovasz):
                patch.setattr(module, function, plain, raising=False)
        expected, expected_gradient = value_and_gradient(loss, logits.double(), labels)
    assert value.item() == pytest.approx(expected.item(), rel=tolerance, abs=tolerance / 10)
    assert (gradient - expected_gradient).abs().max() <= tolerance * expected_gradient.abs().max()


@pytest.mark.parametrize("args", [{}, {"class_weights": [0.5, 1.0, 2.0, 0.0, 3.0], "label_smoothing": 0.1}], ids=str)
def test_cross_entropy_and_dice_in_one_pass_are_the_two_added_up(args):
    logits, labels = example(full=(65, 97))
    factors = {"ce_factor": 0.7, "dice_factor": 2.0}
    both = build_criterion({"type": "CE_DiceLoss", "args": {**args, **factors}}, num_classes=C)
    terms = [
        {"type": "CrossEntropyLoss2d", "args": args, "factor": 0.7},
        {"type": "DiceLoss", "factor": 2.0},
    ]
    found = []
    for criterion in (both, build_criterion(terms, num_classes=C)):
        z = logits.detach().requires_grad_()
        value = criterion(SegOutput(z), labels)["loss"]
        found.append((value.detach(), torch.autograd.grad(value, z)[0]))
    torch.testing.assert_close(found[0], found[1], rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_are_ranked_exactly(dtype):
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(100_000, dtype=dtype, generator=generator) ** 8
    p = torch.cat([p, torch.tensor([0, 1, 1e-40, 0.5, 0.5, 1 + 1e-7, 0, 1], dtype=dtype)])
    own = torch.rand(p.shape, generator=generator) < 0.1
    voids = torch.zeros(1000, dtype=dtype)
    with_voids = torch.cat([p, voids]), torch.cat([own, voids > 0])
    derivatives = lovasz._derivatives(*with_voids, len(voids), None)[: len(p)].double()
    errors = (own.to(dtype) - p).abs().double().numpy()
    order = np.argsort(-errors, kind="stable")
    found, size = np.cumsum(own.numpy()[order]), own.sum().item()
    jaccard = 1 - (size - found) / (size + np.arange(1, len(p) + 1) - found)
    expected = errors[order] @ np.diff(jaccard, prepend=0)
    assert ((p - own.to(dtype)).double() @ derivatives).item() == pytest.approx(expected, rel=1e-5)
    assert (derivatives[own] < 0).all()
    assert (derivatives[~own] >= 0).all()


@pytest.mark.parametrize("bins", [16, 256, 4096, 65536])
@pytest.mark.parametrize("classes", ["present", "all"])
def test_lovasz_by_bins_is_off_by_less_than_the_width_of_a_bin(bins, classes):
    logits, labels = example(low=(9, 13), full=(65, 97))
    labels[labels == 3] = 2
    value, gradient = value_and_gradient(LovaszSoftmax(classes=classes, bins=bins), logits, labels)
    expected, expected_gradient = value_and_gradient(LovaszSoftmax(classes=classes), logits, labels)
    assert abs(value - expected) < 1 / bins
    if bins >= 4096:
        assert abs(value - expected) < 1e-6
        assert F.cosine_similarity(gradient.flatten(), expected_gradient.flatten(), dim=0) > 0.9999


@settings(deadline=None, max_examples=50)
@given(
    others=st.lists(st.integers(0, 3), min_size=3, max_size=3), own=st.lists(st.integers(0, 3), min_size=3, max_size=3)
)
def test_a_bin_teaches_the_mean_of_both_orders_within_it(others, own):
    """And all bins together add up to the loss of giving up every pixel, which is 1."""
    steps = lovasz.binned_steps(torch.tensor([others, own])).tolist()

    def given_up(found, wrong):
        return 1 - (sum(own) - found) / (sum(own) + wrong) if sum(own) + wrong else 0.0

    found = wrong = 0
    for a, b in zip(reversed(range(3)), range(3), strict=True):  # bins of other classes, and of own pixels
        found_then, wrong_then = found + own[b], wrong + others[a]
        start, end = given_up(found, wrong), given_up(found_then, wrong_then)
        own_first, others_first = given_up(found_then, wrong), given_up(found, wrong_then)
        assert -steps[1][b] * own[b] == pytest.approx((own_first - start + end - others_first) / 2, abs=1e-12)
        assert steps[0][a] * others[a] == pytest.approx((end - own_first + others_first - start) / 2, abs=1e-12)
        found, wrong = found_then, wrong_then
    if sum(own) + sum(others):
        total = sum(n * s for n, s in zip(others, steps[0], strict=True))
        assert total - sum(n * s for n, s in zip(own, steps[1], strict=True)) == pytest.approx(1)


def test_lovasz_in_float32_is_as_near_as_rounding_allows():
    logits, labels = example(low=(9, 13), full=(65, 97))
    value, gradient = value_and_gradient(LovaszSoftmax(), logits.float(), labels)
    expected, expected_gradient = value_and_gradient(LovaszSoftmax(), logits.float().double(), labels)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (gradient - expected_gradient).abs().max() <= 1e-4 * expected_gradient.abs().max()


def test_training_after_validation_in_inference_mode_works():
    strips._resizing.cache_clear()
    logits, labels = example(full=(33, 50))
    with torch.inference_mode():
        predicted_labels(logits.clone(), (33, 50))
        before = CrossEntropyLoss2d()(logits.clone(), labels)
    assert value_and_gradient(CrossEntropyLoss2d(), logits, labels)[0] == before


@each_loss
def test_a_graph_can_be_gone_through_twice(name, args):
    logits, labels = example(full=(33, 50))
    logits.requires_grad_()
    value = build(name, args)(logits, labels)
    first, second = (torch.autograd.grad(value, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert first.any()
