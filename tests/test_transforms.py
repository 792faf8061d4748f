"""Augmentation: image and label stay together, labels are never invented, randomness is the generator's alone."""

from __future__ import annotations

import json
import random
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from base.base_dataset import size_after
from dataloader.transforms import chain as chain_module
from dataloader.transforms import geometry
from dataloader.transforms.chain import (
    Chain,
    ChainOptions,
    ResizeOptions,
    ScaleOptions,
    build_chain,
    chain_problems,
)
from dataloader.transforms.colors import ColorJitter, GaussianBlur
from dataloader.transforms.geometry import warp
from dataloader.transforms.named import ResizeToRange
from dataloader.transforms.torchvision import COLORS, MOVES
from engine.check import check_config
from engine.config import evaluation_data
from tests.tiny import tiny_config
from utils.classes import IGNORE
from utils.errors import ConfigError, DataError
from utils.protocol import EvaluationProtocol
from utils.registry import TRANSFORMS
from utils.reproducibility import stream
from utils.schema import Component, Mismatch, check_arguments, convert, to_json

ARGUMENTS = {
    "Resize": {"size": [41, 53]},
    "ShortSide": {"size": 50},
    "ResizeToRange": {"least": 40, "most": 70},
    "RandomCrop": {"size": [41, 153]},
    "CenterCrop": {"size": 41},
    "RandomSizedCrop": {"size": 41},
    "SlidingCrop": {"size": [41, 53]},
    "FreeScale": {"size": [41, 53]},
    "GaussianNoise": {"sigma": 0.05},
    "RandomAdjustSharpness": {"sharpness_factor": 2, "p": 1},
    "RandomAffine": {"degrees": 20, "translate": [0.1, 0.2], "scale": [0.7, 1.3]},
    "RandomPosterize": {"bits": 3},
    "RandomRotation": {"degrees": 30, "interpolation": "bilinear"},
    "RandomSolarize": {"threshold": 100},
    "ElasticTransform": {"alpha": 20},
}
FILL = (10.0, 20.0, 30.0)


def scene(height=65, width=97, channels=3):
    """A smooth image, and a label of blobs whose values are 3, 7, 11."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / (5 + c)) + np.cos(columns / (7 + c)) for c in range(channels)]
    image = np.rint(np.dstack(waves) * 60 + 127).astype(np.uint8)
    label = np.array([3, 7, 11], np.uint8)[(rows // 9 + columns // 13) % 3]
    return image, label


def rng(index=0, epoch=0):
    return stream(0, "augmentation", epoch, index)


def options(**flags):
    problems: list[str] = []
    arguments = check_arguments(ChainOptions, flags, where="args", problems=problems)
    assert not problems
    return ChainOptions(**arguments)


def chain(**flags):
    return build_chain(options(**flags), FILL, where="args")


AUGMENT = {
    "augment": True,
    "base_size": 90,
    "crop_size": [64, 80],
    "flip": True,
    "rotate": True,
    "blur": True,
    "color_jitter": True,
}


def test_without_rotation_one_warp_is_resize_pad_crop_flip():
    image, label = scene(120, 200)
    for scaled, crop, offset, flip in [
        ((181, 301), (97, 111), (30, 61), False),
        ((90, 150), (65, 65), (20, 80), True),
        ((77, 131), (97, 161), (0, 0), True),
        ((120, 200), (65, 97), (11, 13), True),
    ]:
        got = warp(image, label, scaled=scaled, crop=crop, offset=offset, flip=flip, fill=FILL)
        big = cv2.resize(image, scaled[::-1], interpolation=cv2.INTER_LINEAR)
        # Not cv2.resize, whose nearest pixel depends on its version.
        rows, columns = ((np.arange(n) + 0.5) * m / n for n, m in zip(scaled, label.shape, strict=True))
        big_label = label[rows.astype(int)][:, columns.astype(int)]
        below, right = max(0, crop[0] - scaled[0]), max(0, crop[1] - scaled[1])
        big = cv2.copyMakeBorder(big, 0, below, 0, right, cv2.BORDER_CONSTANT, value=FILL)
        big_label = np.pad(big_label, ((0, below), (0, right)), constant_values=IGNORE)
        window = np.s_[offset[0] : offset[0] + crop[0], offset[1] : offset[1] + crop[1]]
        expected, expected_label = big[window], big_label[window]
        if flip:
            expected, expected_label = expected[:, ::-1], expected_label[:, ::-1]
        assert (got[1] == expected_label).mean() > 0.98  # else halfway between two pixels
        assert np.abs(got[0].astype(int) - expected).mean() < 0.8


def test_what_would_become_too_large_is_refused(monkeypatch):
    image, label = scene(2, 600)
    with pytest.raises(DataError, match="would become 614400x2048 pixels"):
        chain(val=True, resize={"short_side": 2048})(image, label, rng())
    assert chain(val=True, crop_size=2048)(image, label, rng())[1].shape == (2048, 2048)
    monkeypatch.setattr(geometry, "LONGEST", 500)
    with pytest.raises(DataError, match="longer than 500 pixels"):
        chain(resize={"size": [50, 50]})(image, label, rng())


def test_the_warp_agrees_with_interpolating_each_pixel_by_hand():
    image, label = scene()
    got, got_label = warp(image, label, scaled=(91, 140), crop=(70, 80), offset=(5, 40), angle=17, flip=True, fill=FILL)
    rows, columns = np.mgrid[:70, :80].astype(float)
    x, y = (79 - columns) + 40 - 139 / 2, rows + 5 - 90 / 2
    c, s = np.cos(np.radians(17)), np.sin(np.radians(17))
    x, y = c * x - s * y + 139 / 2, s * x + c * y + 90 / 2
    x, y = (x + 0.5) * 97 / 140 - 0.5, (y + 0.5) * 65 / 91 - 0.5
    inside = (x >= 0) & (x <= 96) & (y >= 0) & (y <= 64)
    x0, y0 = np.clip(np.floor(x), 0, 95).astype(int), np.clip(np.floor(y), 0, 63).astype(int)
    u, v = (x - x0)[..., None], (y - y0)[..., None]
    expected = (image[y0, x0] * (1 - u) + image[y0, x0 + 1] * u) * (1 - v) + (
        image[y0 + 1, x0] * (1 - u) + image[y0 + 1, x0 + 1] * u
    ) * v
    assert np.abs(got - expected)[inside].max() < 4
    nearest = label[np.clip(np.rint(y), 0, 64).astype(int), np.clip(np.rint(x), 0, 96).astype(int)]
    assert (got_label == nearest)[inside].mean() > 0.98
    outside = (x < -1) | (x > 97) | (y < -1) | (y > 65)
    assert outside.any()
    assert (got_label[outside] == IGNORE).all()
    assert (got[outside] == FILL).all()


def test_shrinking_far_averages_instead_of_skipping_pixels():
    checkers = np.indices((256, 320)).sum(0) % 2 * 255
    image = np.repeat(checkers[..., None], 3, 2).astype(np.uint8)
    label = np.zeros((256, 320), np.uint8)
    for factor in (0.5, 0.37, 0.25, 0.11):
        scaled = round(256 * factor), round(320 * factor)
        small, _ = warp(image, label, scaled=scaled, crop=scaled)
        assert np.abs(small.astype(int) - 127).max() <= (64 if factor == 0.37 else 16)


@pytest.mark.parametrize("scaled", [(256, 29), (29, 320), (100, 30), (30, 640)])
def test_shrinking_one_side_further_than_the_other_skips_no_pixels_of_it(scaled):
    image, label = np.zeros((256, 320, 3), np.uint8), np.zeros((256, 320), np.uint8)
    lines = image if scaled[0] < scaled[1] else image.swapaxes(0, 1)
    lines[::2] = 255
    small, small_label = warp(image, label, scaled=scaled, crop=scaled)
    assert np.abs(small.astype(int) - 127).max() <= 32
    assert (small_label == 0).all()


def test_shrinking_far_keeps_image_and_label_together():
    label = np.zeros((300, 411), np.uint8)
    cv2.circle(label, (301, 101), 80, 1, -1)
    image = np.repeat(label[..., None] * 250, 3, 2)
    for seed in range(20):
        small, small_label = Chain(
            crop=(64, 64), scale=ScaleOptions(range=(0.1, 0.3)), degrees=30, flip=0.5, fill=(0,)
        )(image, label, rng(seed))
        seen = small_label != IGNORE
        assert ((small[..., 0] > 125) == (small_label == 1))[seen].mean() > 0.98


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("size", [(1, 1), (65, 97), (2, 300), (300, 211)])
def test_any_size_and_number_of_channels_gives_the_crop(channels, size):
    image, label = scene(*size, channels)
    flags = {**AUGMENT, "color_jitter": None}
    transform = build_chain(options(**flags), (5.0,) * channels, where="args")
    for index in range(8):
        got, got_label = transform(image, label, rng(index))
        assert got.shape == (64, 80, channels)
        assert got_label.shape == (64, 80)
        assert got.dtype == got_label.dtype == np.uint8
        assert got.flags.c_contiguous
        assert got_label.flags.c_contiguous
        assert set(np.unique(got_label)) <= {*np.unique(label), IGNORE}


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_number_types_are_kept(dtype):
    image, label = scene()
    flags = {**AUGMENT, "color_jitter": None}
    got, _ = chain(**flags)(image.astype(dtype) * 200, label, rng())
    assert got.dtype == dtype
    assert got.max() > 255


def test_void_is_exactly_where_the_source_is_not():
    image, label = np.full((65, 97, 3), 200, np.uint8), np.zeros((65, 97), np.uint8)
    for index in range(30):
        got, got_label = chain(**{**AUGMENT, "blur": False, "color_jitter": False})(image, label, rng(index))
        assert (got[got_label == 0] > 60).all()
        far = cv2.erode((got_label == IGNORE).astype(np.uint8), np.ones((5, 5)), borderValue=0).astype(bool)
        assert (got[far] == FILL).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_padding_does_not_bleed_into_the_image_nor_the_image_into_it(channels, flip):
    image, label = np.full((13, 21, channels), 200, np.uint8), np.zeros((13, 21), np.uint8)
    for scaled in [(41, 67), (13, 40), (26, 21), (9, 11), (4, 7)]:
        got, got_label = warp(image, label, scaled=scaled, crop=(43, 70), flip=flip, fill=(3,))
        expected = np.full((43, 70), IGNORE)
        expected[: scaled[0], 70 - scaled[1] :] = 0
        np.testing.assert_array_equal(got_label, expected if flip else expected[:, ::-1])
        np.testing.assert_array_equal(got, np.where(got_label == 0, 200, 3)[..., None].repeat(channels, 2))


def test_an_image_larger_than_the_crop_shows_no_border():
    image, label = scene(200, 300)
    for index in range(20):
        _, got_label = chain(augment=True, crop_size=97, scale={"range": [0.6, 8]})(image, label, rng(index))
        assert (got_label != IGNORE).all()


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_images_are_mirrored_with_the_given_probability(p):
    image, label = scene()
    transform = build_chain(options(augment=True, scale=False, crop_size=[65, 97], flip=p), FILL, where="args")
    flipped = 0
    for index in range(400):
        got, got_label = transform(image, label, rng(index))
        mirrored = np.array_equal(got, image[:, ::-1])
        assert mirrored or np.array_equal(got, image)
        assert np.array_equal(got_label, label[:, ::-1] if mirrored else label)
        flipped += mirrored
    assert abs(flipped / 400 - p) < 0.08


def test_scales_cover_their_range_and_keep_to_their_step():
    factors = [ScaleOptions().draw(rng(i)) for i in range(300)]
    assert 0.5 <= min(factors) < 0.55
    assert 1.95 < max(factors) <= 2
    stepped = {ScaleOptions(range=(0.5, 2.0), step=0.25).draw(rng(i)) for i in range(300)}
    assert stepped == {0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0}


@pytest.mark.parametrize(("side", "expected"), [("long", 50), ("short", 75)])
def test_base_size_measures_the_side_it_is_told(side, expected):
    image, label = scene(100, 150)
    scale = {"range": [1, 1], "side": side}
    _, got = chain(augment=True, base_size=50 if side == "short" else 75, crop_size=200, scale=scale)(
        image, label, rng()
    )
    seen = got != IGNORE
    assert seen.any(1).sum() == 50
    assert seen.any(0).sum() == 75


def test_blur_acts_on_the_share_of_images_it_is_given():
    image, label = scene()
    noisy = image ^ np.random.default_rng(0).integers(0, 64, image.shape, dtype=np.uint8)
    changed = sum(not np.array_equal(GaussianBlur(p=0.5)(noisy, label, rng(i))[0], noisy) for i in range(300))
    assert abs(changed / 300 - 0.5) < 0.09


def test_color_jitter_of_nothing_changes_nothing_and_needs_rgb():
    image, label = scene()
    none = ColorJitter(brightness=0.0, contrast=0.0, saturation=0.0)
    np.testing.assert_array_equal(none(image, label, rng())[0], image)
    some = ColorJitter(hue=0.5)(image, label, rng())[0]
    assert not np.array_equal(some, image)
    with pytest.raises(DataError, match="needs 8-bit RGB"):
        none(image[..., :1], label, rng())


def jitter(image: np.ndarray, seed: int = 0, **amounts: float) -> np.ndarray:
    """`image` with nothing but these changes."""
    nothing = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    return ColorJitter(**{**nothing, **amounts})(image, np.zeros(image.shape[:2], np.uint8), rng(seed))[0]


def test_gamma_draws_exponents_either_side_of_1_and_keeps_black_and_white():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    exponents = []
    for seed in range(200):
        changed = jitter(ramp, seed, gamma=1.0)[0, :, 0]
        assert (changed[0], changed[255]) == (0, 255)
        exponents.append(np.log(changed[128] / 255) / np.log(128 / 255))
    assert 0.49 < min(exponents) < 0.55
    assert 1.85 < max(exponents) < 2.02
    assert 0.4 < np.mean(np.array(exponents) < 1) < 0.6


def test_white_balance_scales_each_channel_by_a_factor_of_its_own():
    image = np.full((5, 7, 3), 100, np.uint8)
    factors = np.array([jitter(image, seed, white_balance=0.3)[0, 0] for seed in range(200)]) / 100
    assert (factors.min(0) > 0.69).all()
    assert (factors.min(0) < 0.75).all()
    assert (factors.max(0) > 1.25).all()
    assert (factors.max(0) < 1.31).all()
    assert abs(np.corrcoef(factors[:, 0], factors[:, 1])[0, 1]) < 0.2


def test_the_share_of_gray_images_loses_its_color_and_the_rest_keeps_it():
    image, _ = scene()
    changed = [jitter(image, seed, gray=0.3, hue=0.1) for seed in range(200)]
    gray = [bool((each == each[..., :1]).all()) for each in changed]
    assert 0.2 < np.mean(gray) < 0.4


def test_what_color_jitter_can_do_besides_leaves_the_draws_of_the_rest_alone():
    image, _ = scene()
    before = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
    for seed in range(20):
        plain = jitter(image, seed, **before)
        np.testing.assert_array_equal(jitter(image, seed, **before, gray=1e-9), plain)
        np.testing.assert_array_equal(jitter(image, seed, **before, white_balance=1e-9), plain)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_depends_on_its_generator_alone(name):
    step = TRANSFORMS.build(Component(name, ARGUMENTS.get(name, {})), where="step")
    image, label = scene()
    before = image.copy(), label.copy()
    results = []
    for poison in (1, 2):
        random.seed(poison)
        np.random.seed(poison)
        torch.manual_seed(poison)
        results.append([step(image, label, rng(index)) for index in range(4)])
        np.testing.assert_array_equal(image, before[0])
        np.testing.assert_array_equal(label, before[1])
    for (first, first_label), (second, second_label) in zip(*results, strict=True):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first_label, second_label)
        assert first.shape[:2] == first_label.shape
        assert set(np.unique(first_label)) <= {3, 7, 11, IGNORE}
        assert first.flags.c_contiguous


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"GaussianBlur", "ColorJitter", *COLORS}))
def test_every_transform_moves_image_and_label_alike(name):
    label = scene(130, 194)[1]
    label[40:90, 30:160] = 200
    image = np.repeat(np.where(label == 200, 220, 30)[..., None], 3, 2).astype(np.uint8)
    step = TRANSFORMS.build(Component(name, ARGUMENTS.get(name, {})), where="step")
    for index in range(5):
        got, got_label = step(image, label, rng(index))
        seen = got_label != IGNORE
        assert ((got[..., 0] > 125) == (got_label == 200))[seen].mean() > 0.97


def test_the_global_generators_are_left_alone():
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    chain(**AUGMENT)(*scene(), rng())
    assert random.getstate() == before[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(torch.get_rng_state(), before[2])


def test_epoch_and_index_decide_an_augmentation():
    image, label = scene()
    transform = chain(**AUGMENT)
    once, again = (transform(image, label, rng(3, 4))[0] for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, transform(image, label, rng(4, 3))[0])


@pytest.mark.parametrize("size", [(65, 97), (97, 65), (10, 500)])
def test_validation_covers_the_crop_and_takes_the_middle(size):
    image, label = scene(*size)
    transform = chain(val=True, crop_size=50)
    got, got_label = transform(image, label, rng(0))
    factor = 50 / min(size)
    big = cv2.resize(image, (round(size[1] * factor), round(size[0] * factor)))
    top, left = (big.shape[0] - 50) // 2, (big.shape[1] - 50) // 2
    assert np.abs(got.astype(int) - big[top : top + 50, left : left + 50]).mean() < 1
    assert (got_label != IGNORE).all()
    np.testing.assert_array_equal(got, transform(image, label, rng(1))[0])


def test_validation_without_a_crop_and_no_flags_leave_images_as_they_are():
    assert chain(val=True) is None
    assert chain() is None
    image, label = scene()
    got, got_label = chain(crop_size=[40, 50])(image, label, rng())
    rows, columns = np.mgrid[: 65 - 39, : 97 - 49]
    assert any(
        np.array_equal(got, image[r : r + 40, c : c + 50]) and np.array_equal(got_label, label[r : r + 40, c : c + 50])
        for r, c in zip(rows.ravel(), columns.ravel(), strict=True)
    )


def test_a_short_side_then_a_crop_is_what_the_config_says():
    image, label = scene(100, 200)
    got = chain(augment=True, scale=False, resize={"short_side": 60}, crop_size=60, flip=False)(image, label, rng())
    assert got[0].shape == (60, 60, 3)
    whole = chain(val=True, resize={"short_side": 60})(image, label, rng())
    assert whole[0].shape == (60, 120, 3)
    assert chain(resize={"size": [30, 31]})(image, label, rng())[1].shape == (30, 31)


@pytest.mark.parametrize("size", [(100, 300), (300, 100), (700, 700), (5, 6)])
def test_resizing_to_a_range_gives_sides_of_a_multiple_plus_one(size):
    got = ResizeToRange(least=200, most=400, multiple=16)(*scene(*size), rng())[1]
    assert got.shape[0] % 16 == got.shape[1] % 16 == 1
    assert max(got.shape) <= 400


CONTRADICTIONS = {
    "args.val: contradicts": {"augment": True, "val": True, "crop_size": 9},
    "args.scale: has no effect": {"scale": True},
    "args.flip: has no effect": {"flip": 0.5, "val": True},
    "args.rotate: has no effect": {"rotate": 5},
    "args.blur: has no effect": {"blur": True},
    "args.base_size: has no effect": {"base_size": 5},
    "args.crop_size: missing": {"augment": True},
    "args.flip: has no effect beside": {"flip": True, "transforms": []},
    "args.crop_size: has no effect beside": {"crop_size": 5, "transforms": []},
    "args.scale.range: its first": {"augment": True, "crop_size": 9, "scale": {"range": [2, 1]}},
    "args.blur.sigma: its first": {"augment": True, "crop_size": 9, "blur": {"sigma": [2, 1]}},
    "args.transforms[1].args.range: its first": {
        "transforms": [{"type": "Resize", "args": {"size": 9}}, {"type": "RandomScale", "args": {"range": [2, 1]}}]
    },
    "args.transforms[0].args.area: its first": {
        "transforms": [{"type": "RandomSizedCrop", "args": {"size": 9, "area": [1, 0.5]}}]
    },
    "args.transforms[0].args.sigma: its first": {"transforms": [{"type": "GaussianBlur", "args": {"sigma": [2, 1]}}]},
    "args.resize: nothing given": {"resize": {}},
    "args.resize: short_side and size": {"resize": {"short_side": 5, "size": [2, 2]}},
    "args.base_size: contradicts": {"augment": True, "crop_size": 9, "base_size": 5, "resize": {"long_side": 5}},
}


@pytest.mark.parametrize("start", CONTRADICTIONS)
def test_a_contradiction_has_its_line(start):
    given = options(**CONTRADICTIONS[start])
    (problem,) = chain_problems(given, "args")
    assert problem.startswith(start)
    with pytest.raises(ConfigError):
        build_chain(given, FILL, where="args")


@pytest.mark.parametrize(
    "flags",
    [
        {"crop_size": 0},
        {"crop_size": 10**8},
        {"crop_size": [5]},
        {"flip": 1.5},
        {"rotate": -1},
        {"scale": {"range": [0, 2]}},
        {"scale": {"rnge": [1, 2]}},
        {"transforms": [{"type": "RandomCrop"}]},
        {"transforms": [{"type": "RandomCrp", "args": {"size": 5}}]},
        {"augment": "true"},
    ],
)
def test_a_value_out_of_range_is_refused(flags):
    with pytest.raises(Mismatch):
        convert(flags, ChainOptions, "args")


@pytest.mark.parametrize("degrees", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_an_empty_fill_is_the_mean_of_what_is_shown(degrees, dtype):
    image = rng().integers(0, 256, (40, 60, 3)).astype(dtype) // np.array([1, 2, 4], dtype)
    step = chain_module.Chain(crop=(80, 96), degrees=degrees, fill=())
    found, label = step(image, np.zeros((40, 60), np.uint8), rng())
    padded = found[label == IGNORE].astype(float)
    assert len(padded) > 1000
    np.testing.assert_allclose(padded.mean(0), image.mean((0, 1)), atol=4)
    assert padded.std(0).max() < 8


def test_a_fill_of_too_few_numbers_is_refused():
    step = chain(transforms=[{"type": "CenterCrop", "args": {"size": 200, "fill": [1, 2]}}])
    with pytest.raises(DataError, match="fill: 2 numbers for 3 channels"):
        step(*scene(), rng())


def test_named_transforms_replace_the_chain_and_pad_with_the_mean():
    listed = [
        {"type": "RandomScale", "args": {"range": [0.2, 0.4]}},
        {"type": "CenterCrop", "args": {"size": [65, 97]}},
    ]
    assert options(transforms=listed).crop == (65, 97)
    image, label = chain(transforms=listed)(*scene(), rng())
    assert image.shape == (65, 97, 3)
    assert (image[label == IGNORE][-1] == FILL).all()
    assert options(transforms=listed[::-1]).crop is None
    assert options(transforms=[*listed, "RandomHorizontalFlip"]).crop == (65, 97)


def test_the_size_after_a_transform_that_does_not_say_it_is_unknown(monkeypatch):
    class HalfSize:
        """Of somebody else, who read no more than how transforms are called."""

        def __call__(self, image, label, rng):
            return image[::2, ::2].copy(), label[::2, ::2].copy()

    monkeypatch.setitem(TRANSFORMS._entries, "HalfSize", HalfSize)
    listed = [{"type": "CenterCrop", "args": {"size": [64, 96]}}, "HalfSize"]
    assert options(transforms=listed).crop is None
    loader = {"type": "Squares", "args": {"split": "val", "batch_size": 1, "transforms": listed}}
    data = evaluation_data(check_config(tiny_config(Path("saved"), val_loader=loader)).val_loader)
    stamp = EvaluationProtocol(data=data).to_json()
    assert (stamp["mode"], stamp["size"]) == ("transforms", "transforms HalfSize")
    assert options(transforms=[*listed, {"type": "CenterCrop", "args": {"size": 9}}]).crop == (9, 9)


@pytest.mark.parametrize("name", sorted(set(TRANSFORMS) - {"RandomZoomOut"}))
def test_every_transform_says_the_size_of_what_it_returns(name):
    step = TRANSFORMS.build(Component(name, ARGUMENTS.get(name, {})), where="step")
    image, label = scene()
    sizes = {step(image, label, rng(seed))[1].shape for seed in range(3)}
    assert size_after(step, label.shape) in (None, *sizes)
    assert len(sizes) == 1 or size_after(step, label.shape) is None


@pytest.mark.parametrize("name", [*COLORS, *MOVES])
def test_torchvisions_transforms_leave_the_global_generator_alone(name):
    step = TRANSFORMS.build(Component(name, ARGUMENTS.get(name, {})), where="step")
    state = torch.get_rng_state()
    image, label = scene()
    seen = [step(image, label, rng(index)) for index in range(8)]
    assert torch.equal(torch.get_rng_state(), state)
    assert any(got.shape != image.shape or (got != image).any() for got, _ in seen)
    if name in COLORS:
        assert all(np.array_equal(got, label) for _, got in seen)


@pytest.mark.parametrize("name", [*COLORS, *MOVES])
def test_torchvisions_transforms_are_resolved_to_what_makes_them_again(name):
    problems: list[str] = []
    given = TRANSFORMS.check({"type": name, "args": ARGUMENTS.get(name, {})}, where="step", problems=problems)
    resolved = json.loads(json.dumps(to_json(given)))
    assert not problems
    image, label = scene()
    for index in range(3):
        first, second = (TRANSFORMS.build(c, where="step")(image, label, rng(index)) for c in (given, resolved))
        np.testing.assert_array_equal(first[0], second[0])


def test_torchvisions_transforms_pad_with_the_mean_color_and_void():
    image, label = scene()
    got, got_label = chain(transforms=[{"type": "RandomRotation", "args": {"degrees": [45, 45]}}])(image, label, rng())
    assert (got[0, 0] == FILL).all()
    assert got_label[0, 0] == IGNORE
    assert options(transforms=[{"type": "CenterCrop", "args": {"size": 9}}, "RandomInvert"]).crop == (9, 9)
    assert options(transforms=[{"type": "CenterCrop", "args": {"size": 9}}, "RandomZoomOut"]).crop is None


def test_a_wrong_argument_of_torchvisions_transforms_is_found_in_the_config():
    given = options(transforms=[{"type": "RandomRotation", "args": {"degrees": -3}}])
    (problem,) = chain_problems(given, "args")
    assert problem.startswith("transforms: RandomRotation refuses its arguments (")
    with pytest.raises(Mismatch, match="Did you mean 'degrees'"):
        convert({"transforms": [{"type": "RandomRotation", "args": {"degreees": 3}}]}, ChainOptions, "args")
    with pytest.raises(Mismatch, match="RandomErasing"):  # which erases the image and leaves the label
        convert({"transforms": ["RandomErasing"]}, ChainOptions, "args")


def test_a_sliding_crop_is_one_of_the_windows_that_cover_the_image():
    height, width, side = 65, 97, 30
    image = np.dstack([*np.mgrid[:height, :width], np.zeros((height, width))]).astype(np.uint8)
    step = TRANSFORMS.build(Component("SlidingCrop", {"size": side}), where="step")
    places, covered = set(), np.zeros((height, width), bool)
    for index in range(200):
        crop, _ = step(image, np.zeros((height, width), np.uint8), rng(index))
        row, column = (int(value) for value in crop[0, 0, :2])
        places.add((row, column))
        covered[row : row + side, column : column + side] = True
    assert places == {(row, column) for row in (0, 20, 35) for column in (0, 20, 40, 60, 67)}
    assert covered.all()


def test_the_pipeline_of_the_cityscapes_seed_can_be_said():
    """Short side to 600, a random crop of 512, mirrored or not: seed 002."""
    flags = {"augment": True, "resize": {"short_side": 600}, "crop_size": 512, "scale": False, "flip": True}
    image, label = scene(300, 600)
    mirrored = 0
    resized, resized_label = warp(image, label, scaled=(600, 1200), crop=(600, 1200))
    for index in range(12):
        draw = rng(index)
        top, left = int(draw.integers(600 - 512 + 1)), int(draw.integers(1200 - 512 + 1))
        flip = bool(draw.random() < 0.5)
        mirrored += flip
        expected = resized_label[top : top + 512, left : left + 512]
        got_image, got = chain(**flags)(image, label, rng(index))
        assert (got == (expected[:, ::-1] if flip else expected)).mean() > 0.999
        window = resized[top : top + 512, left : left + 512].astype(int)
        assert np.abs(got_image - (window[:, ::-1] if flip else window)).max() <= 2
    assert 0 < mirrored < 12


def test_what_is_held_out_is_whole_and_nothing_random():
    assert build_chain(options(**AUGMENT).for_validation(), FILL, where="args") is None
    held = options(**AUGMENT, val_crop_size=(64, 80)).for_validation()
    assert not chain_problems(held, "args")
    assert held.crop == (64, 80)
    image, label = scene()
    transform = build_chain(held, FILL, where="args")
    np.testing.assert_array_equal(transform(image, label, rng(0))[0], transform(image, label, rng(1))[0])


def test_the_module_says_what_it_needs_of_options():
    assert set(chain_module._RANDOM) < set(ChainOptions.__dataclass_fields__)
    assert ResizeOptions(long_side=50).factors(100, 25) == (0.5, 0.5)


@pytest.mark.parametrize(("scale", "size"), [(False, 97), ({"range": [0.4, 2.5]}, 97), (False, 40)])
def test_a_rare_class_is_cropped_as_often_as_a_frequent_one(scale, size):
    label = np.zeros((65, 97), np.uint8)
    label[60, 3] = 1
    image = np.zeros((65, 97, 3), np.uint8)
    arguments = {"augment": True, "crop_size": [16, 24], "base_size": size, "scale": scale}
    usual, rare = (build_chain(options(**arguments, rare_crop=share), FILL, where="args") for share in (0.0, 1.0))

    def times_seen(transform):
        return sum(bool((transform(image, label, np.random.default_rng(i))[1] == 1).any()) for i in range(300))

    assert times_seen(usual) < 60
    if scale is False and size == 97:  # else a single pixel may be lost in resizing
        assert 120 < times_seen(rare) < 240
        label[label == 0] = IGNORE
        assert times_seen(rare) == 300
    label[:] = IGNORE
    assert rare(image, label, np.random.default_rng(0))[1].shape == (16, 24)
