"""The denoising objective against its closed forms."""

import math

import numpy as np
import pytest
import torch

from ddep_hub.denoising import (
    check_noise,
    corrupt,
    denoise,
    draw_mask,
    gamma_from_sigma,
    sample_sigma,
)


# sigma -> gamma = 1 / (1 + sigma^2), worked out by hand.
GAMMA = {0.10: 0.9901, 0.15: 0.9780, 0.20: 0.9615, 0.22: 0.9538, 0.25: 0.9412, 0.30: 0.9174, 0.40: 0.8621}


@pytest.mark.parametrize("sigma, gamma", GAMMA.items())
def test_gamma(sigma, gamma):
    assert gamma_from_sigma(sigma) == pytest.approx(gamma, abs=5e-5)


def test_closed_forms():
    clean, noise = torch.randn(3, 3, 5, 7), torch.randn(3, 3, 5, 7)
    torch.testing.assert_close(corrupt(clean, noise, 0.22, "simple"), clean + 0.22 * noise)
    scaled = corrupt(clean, noise, 0.22, "scaled")
    torch.testing.assert_close(scaled, 0.9766 * clean + 0.2149 * noise, atol=5e-4, rtol=0)
    gamma = 1 / (1 + 0.22**2)
    torch.testing.assert_close(scaled, math.sqrt(gamma) * clean + math.sqrt(1 - gamma) * noise)


def test_scaled_is_the_root_of_gamma_times_simple_for_each_example():
    clean, noise, sigma = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), torch.tensor([0.05, 0.22, 1.0, 3.0])
    root = (1 / (1 + sigma**2)).sqrt().reshape(4, 1, 1, 1)
    torch.testing.assert_close(corrupt(clean, noise, sigma, "scaled"), root * corrupt(clean, noise, sigma, "simple"))
    alone = corrupt(clean[2:3], noise[2:3], 1.0, "simple")
    torch.testing.assert_close(corrupt(clean, noise, sigma, "simple")[2:3], alone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("corruption", ["scaled", "simple"])
def test_levels_take_the_format_of_the_images(corruption, dtype):
    clean, noise, sigma = torch.randn(2, 3, 4, 4, dtype=dtype), torch.randn(2, 3, 4, 4, dtype=dtype), torch.ones(2)
    assert corrupt(clean, noise, sigma, corruption).dtype == dtype


@pytest.mark.parametrize("sigma", [0.22, 1.0, 2.0])
def test_scaled_keeps_the_variance(sigma):
    clean, noise = torch.randn(2, 3, 200, 200), torch.randn(2, 3, 200, 200)
    assert corrupt(clean, noise, sigma, "scaled").var().item() == pytest.approx(1, abs=0.02)
    assert corrupt(clean, noise, sigma, "simple").var().item() == pytest.approx(1 + sigma**2, rel=0.02)


@pytest.mark.parametrize("ratio, count", [(0.5, 18), (0.75, 26), (0.001, 1), (0.99, 34)])
def test_the_same_number_of_patches_is_masked_in_each_image(ratio, count):
    noise = torch.randn(3, 2, 70, 100)
    mask = draw_mask(noise, ratio, 16)
    assert mask.shape == (3, 1, 70, 100) and mask.dtype == torch.bool
    patches = mask[:, 0, ::16, ::16]
    assert patches.sum((1, 2)).tolist() == [count] * 3  # of 5 x 7
    whole = patches.repeat_interleave(16, 1).repeat_interleave(16, 2)[:, :70, :100]
    assert torch.equal(mask[:, 0], whole)
    assert count in (1, 34) or not torch.equal(patches[0], patches[1])
    assert torch.equal(draw_mask(noise[1:2], ratio, 16), mask[1:2])  # whatever else is in the batch


@pytest.mark.parametrize("corruption", ["scaled", "simple"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_denoise_inverts_where_the_prediction_is_exact(corruption, prediction_type):
    clean, noise, sigma = torch.randn(2, 3, 6, 6), torch.randn(2, 3, 6, 6), torch.tensor([0.22, 0.7])
    noisy = corrupt(clean, noise, sigma, corruption)
    exact = noise if prediction_type == "epsilon" else clean
    denoised = denoise(noisy, exact, sigma, corruption=corruption, prediction_type=prediction_type)
    torch.testing.assert_close(denoised, clean, atol=1e-5, rtol=1e-5)


def test_an_unknown_kind_is_refused():
    images = torch.zeros(1, 1, 2, 2)
    with pytest.raises(ValueError, match="Simple"):
        corrupt(images, images, 0.2, "Simple")
    with pytest.raises(ValueError, match="noise"):
        denoise(images, images, 0.2, corruption="simple", prediction_type="noise")


def test_sigma_of_any_kind_is_checked():
    images = torch.zeros(2, 1, 2, 2)
    for sigma in (0.2, np.float32(0.2), np.array(0.2), [0.1, 0.2], np.array([0.1, 0.2])):
        check_noise(images, None, sigma)
    for sigma in (-1.0, np.array(-1.0), np.array(math.nan), [0.1], [0.1, 0.0], np.array([0.1, math.inf])):
        with pytest.raises(ValueError, match="sigma must be a positive number, or one for each of 2 images"):
            check_noise(images, None, sigma)


def test_sample_sigma():
    assert sample_sigma((0.22, 0.22), 3).tolist() == pytest.approx([0.22] * 3)
    levels = sample_sigma((0.2, 0.3), 2000, generator=torch.Generator().manual_seed(1))
    assert levels.shape == (2000,) and levels.dtype == torch.float32
    assert 0.2 <= levels.min() < 0.201 and 0.299 < levels.max() <= 0.3
    assert levels.mean().item() == pytest.approx(0.25, abs=0.002)
    assert torch.equal(levels, sample_sigma((0.2, 0.3), 2000, generator=torch.Generator().manual_seed(1)))
    assert not torch.equal(levels, sample_sigma((0.2, 0.3), 2000, generator=torch.Generator().manual_seed(2)))
