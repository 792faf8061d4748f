"""Windows, scales and mirror images: every pixel is seen, and the whole image once is plain prediction."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from utils.outputs import resize
from utils.tta import mirrored, multi_scale, sliding, window_starts

SIZES = [(1024, 2048), (300, 1000), (1000, 300), (40, 30), (1, 1), (5, 700), (65, 97)]


def per_pixel(images: Tensor) -> Tensor:
    """Logits that depend on each pixel alone, so that no window border can show."""
    x = images.float() / 255
    return torch.cat([x, 1 - x, (x * 7).sin()], dim=1)


def coarse(images: Tensor) -> Tensor:
    """Logits at a quarter of the size, as a network gives them."""
    return F.avg_pool2d(per_pixel(images), 4, ceil_mode=True)


def image(size: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (1, 1, *size), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("overlap", [0.0, 1 / 3, 0.5, 0.9])
def test_sliding_windows_cover_every_pixel(size: tuple[int, int], overlap: float) -> None:
    for length in size:
        window = min(128, length)
        covered = torch.zeros(length)
        for start in window_starts(length, window, overlap):
            assert 0 <= start <= length - window
            covered[start : start + window] += 1
        assert covered.min() >= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("batch_size", [1, 5])
def test_sliding_of_a_per_pixel_function_is_that_function(size: tuple[int, int], batch_size: int) -> None:
    images = image(size)
    found = sliding(per_pixel, images, window=(128, 96), batch_size=batch_size)
    assert found.shape[-2:] == size
    torch.testing.assert_close(found, per_pixel(images), rtol=0, atol=1e-5)


def test_windows_of_a_batch_stay_with_their_image() -> None:
    images = torch.cat([image((50, 70)), 255 - image((50, 70))])
    torch.testing.assert_close(sliding(per_pixel, images, window=(32, 32)), per_pixel(images), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [(65, 97), (200, 97), (999, 999)])
def test_one_window_is_plain_prediction_to_the_last_bit(window: tuple[int, int]) -> None:
    images = image((65, 97))
    assert torch.equal(sliding(coarse, images, window=window), coarse(images))


def test_the_scale_of_one_alone_is_plain_prediction_to_the_last_bit() -> None:
    images = image((65, 97))
    assert torch.equal(multi_scale(coarse, images, [1.0]), coarse(images))


def test_scales_are_averaged_at_the_size_of_the_image() -> None:
    images = image((65, 97))
    half = F.interpolate(images.float(), (32, 48), mode="bilinear", align_corners=False)  # 32.5 and 48.5, to even
    expected = F.interpolate(coarse(images), (65, 97), mode="bilinear", align_corners=False)
    expected = (expected + F.interpolate(coarse(half), (65, 97), mode="bilinear", align_corners=False)) / 2
    torch.testing.assert_close(multi_scale(coarse, images, [0.5, 1.0]), expected)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_many_scales_are_averaged_as_torch_resizes_whatever_the_stride_of_the_head(stride: int) -> None:
    def predict(pixels: Tensor) -> Tensor:
        return F.avg_pool2d(pixels.float(), stride, ceil_mode=True)

    pixels = torch.randint(0, 256, (2, 3, 65, 97), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    size, expected = (65, 97), torch.zeros(2, 3, 65, 97)
    scales = [1.0, 0.5, 1.5, 2.25]
    for scale in scales:
        scaled = F.interpolate(pixels.float(), (round(65 * scale), round(97 * scale)), mode="bilinear")
        expected += F.interpolate(predict(scaled), size, mode="bilinear") / len(scales)
    torch.testing.assert_close(multi_scale(predict, pixels, scales), expected, rtol=1e-5, atol=1e-3)


def test_a_fast_average_has_the_resolution_of_the_head() -> None:
    images = image((64, 96))
    assert multi_scale(coarse, images, [0.5, 1.0, 2.0], fast=True).shape[-2:] == (16, 24)


def test_a_mirrored_prediction_is_symmetric() -> None:
    def sloped(images: Tensor) -> Tensor:
        return images.float() * torch.linspace(0, 1, images.shape[-1])

    images = torch.ones(1, 1, 4, 9)
    found = mirrored(sloped)(images)
    torch.testing.assert_close(found, found.flip(-1))
    torch.testing.assert_close(found, torch.full_like(found, 0.5))


@pytest.mark.parametrize("blend", ["uniform", "linear"])
@pytest.mark.parametrize("images", [1, 3])
def test_logits_of_windows_are_averaged_as_if_each_were_enlarged_first(images: int, blend: str) -> None:
    def coarse(raw: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(raw.float(), 8, ceil_mode=True)

    def enlarged(raw: torch.Tensor) -> torch.Tensor:
        return resize(coarse(raw), (raw.shape[-2], raw.shape[-1]))

    raw = torch.rand(images, 5, 90, 131, generator=torch.Generator().manual_seed(0))
    found, expected = (
        sliding(predict, raw, window=(40, 56), batch_size=2, blend=blend) for predict in (coarse, enlarged)
    )
    torch.testing.assert_close(found, expected)
