# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The denoising objective (DDeP paper, section 3): corruption, target, and the denoised image. Pure functions.

The two kinds of noise are related. With `gamma = 1 / (1 + sigma^2)`,

    simple:  x~ = x + sigma * noise
    scaled:  x~ = sqrt(gamma) * x + sqrt(1 - gamma) * noise  =  sqrt(gamma) * simple

so at equal sigma they have the same signal-to-noise ratio and differ only by a factor. Two more corruptions are not in
the DDeP paper: masking sets patches of the image to 0, as in SimMIM (arXiv 2111.09886), and downsampling halves its
resolution.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from .configuration_ddep import DDePConfig
from .resampling import resample, resize


def _check(kind: str, *allowed: str) -> None:
    if kind not in allowed:
        raise ValueError(f"{kind!r} is neither {allowed[0]!r} nor {allowed[1]!r}.")


def check_noise(
    clean: torch.Tensor, noise: torch.Tensor | None, sigma: torch.Tensor | Sequence[float] | float | None
) -> None:
    """Raises a ValueError if the shape of `noise` or `sigma` does not match `clean`, or `sigma` is not positive.

    `None` is not checked, nor are the values of a tensor `sigma`, which may be on a GPU.
    """
    batch = clean.shape[0]
    if noise is not None and noise.shape != clean.shape:
        raise ValueError(
            f"noise is {tuple(noise.shape)}, but pixel_values are {tuple(clean.shape)}. Draw it per image, as "
            "torch.randn_like(pixel_values) does."
        )
    if sigma is None:
        return
    if isinstance(sigma, torch.Tensor):
        is_valid = sigma.ndim == 0 or (sigma.ndim == 1 and sigma.shape[0] == batch)
    else:
        levels = sigma.tolist() if isinstance(sigma, (np.ndarray, np.number)) else sigma
        if isinstance(levels, (int, float)):
            is_valid = 0 < levels < math.inf
        else:
            is_valid = len(levels) == batch and all(
                isinstance(level, (int, float, np.number)) and 0 < level < math.inf for level in levels
            )
    if not is_valid:
        description = f"a tensor of shape {tuple(sigma.shape)}" if isinstance(sigma, torch.Tensor) else sigma
        raise ValueError(f"sigma must be a positive number, or one for each of {batch} images, got {description}.")


def gamma_from_sigma(sigma: torch.Tensor | float) -> torch.Tensor | float:
    """Fraction of the signal's variance in the scaled corruption, in (0, 1]: `1 / (1 + sigma^2)`."""
    return 1.0 / (1.0 + sigma**2)


def sample_sigma(
    sigma_range: tuple[float, float],
    batch_size: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Noise levels of a batch, float32 `(batch_size,)`: uniform draws, unless both ends of the range are the same.

    `generator` may be on another device than the result, which is on `device`; `None` is torch's default generator.
    """
    low, high = sigma_range
    if low == high:
        return torch.full((batch_size,), low, device=device)
    generator_device = generator.device if generator is not None else device
    uniform = torch.rand(batch_size, generator=generator, device=generator_device).to(device)
    return low + (high - low) * uniform


def broadcast_like(values: torch.Tensor | float, reference: torch.Tensor) -> torch.Tensor:
    """A number, or values `(batch,)`, in a shape and dtype that broadcast with `reference`, `(batch, C, H, W)`."""
    values = torch.as_tensor(values, dtype=reference.dtype, device=reference.device)
    return values.reshape(-1, *[1] * (reference.ndim - 1)) if values.ndim else values


def corrupt(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor | float, corruption: str) -> torch.Tensor:
    """Adds noise to images `(batch, C, H, W)`, with the corruption `"scaled"` or `"simple"`.

    `noise` is standard normal, of the same shape; `sigma` is its level, one number or one per image, `(batch,)`.
    """
    _check(corruption, "scaled", "simple")
    sigma = broadcast_like(sigma, clean)
    noisy = clean + sigma * noise
    return noisy * gamma_from_sigma(sigma) ** 0.5 if corruption == "scaled" else noisy


def draw_mask(noise: torch.Tensor, mask_ratio: float, patch_size: int) -> torch.Tensor:
    """Draws the patches to mask, the same number in each image: at least one, but not all unless there is only one.

    They are ranked by the values of `noise`, `(batch, C, H, W)`, at the patches' corners; `patch_size` is their side
    in pixels. Returns bool `(batch, 1, H, W)`, true where a pixel is masked.
    """
    corners = noise[:, 0, ::patch_size, ::patch_size]
    ranks = corners.flatten(1).argsort(1).argsort(1).reshape(corners.shape)
    num_patches = corners[0].numel()
    mask = ranks < max(1, min(round(mask_ratio * num_patches), num_patches - 1))
    mask = mask.repeat_interleave(patch_size, 1).repeat_interleave(patch_size, 2)
    return mask[:, None, : noise.shape[2], : noise.shape[3]]


def downsample(pixel_values: torch.Tensor) -> torch.Tensor:
    """Downsamples images `(batch, C, H, W)` by 2 with antialiasing; their sides must be even."""
    height, width = pixel_values.shape[-2:]
    return resize(pixel_values, (height // 2, width // 2))


def feature_target(
    features: Sequence[torch.Tensor], covered_size: tuple[int, int], stride: int, size: tuple[int, int]
) -> torch.Tensor:
    """The features of an image that a decoder predicts from the downsampled image, on one grid.

    Each position of each feature map is normalised to mean 0 and variance 1 over its channels, like the targets of
    I-JEPA (arXiv 2301.08243).

    Args:
        features: The encoder's features to predict, each `(batch, C, rows, columns)`.
        covered_size: Height and width in pixels of the area that they cover.
        stride: Stride of the grid in pixels.
        size: Rows and columns of the grid.

    Returns:
        Shape `(batch, sum of C, *size)`.
    """
    normalized = [F.layer_norm(f.float().movedim(1, -1), f.shape[1:2]).movedim(-1, 1) for f in features]
    return torch.cat([resample(feature, covered_size, stride, size) for feature in normalized], dim=1)


def noise_scale(sigma: torch.Tensor | float, corruption: str) -> torch.Tensor | float:
    """Coefficient of the noise in a corrupted image: `sigma`, or `sqrt(1 - gamma)` for the scaled corruption."""
    return sigma * gamma_from_sigma(sigma) ** 0.5 if corruption == "scaled" else sigma


def mean_squared_error(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean squared error; with a mask from [`draw_mask`], of each image's masked pixels, averaged over the images."""
    if mask is None:
        return F.mse_loss(prediction, target)
    # Per image, so that the loss does not depend on how a batch is split, even if the number of masked pixels varies.
    squared_error = ((prediction - target).square() * mask).mean((1, 2, 3))
    return (squared_error / mask.float().mean((1, 2, 3))).mean()


def denoise(
    noisy: torch.Tensor,
    prediction: torch.Tensor,
    sigma: torch.Tensor | float,
    *,
    corruption: str,
    prediction_type: str,
) -> torch.Tensor:
    """The clean image implied by a prediction; exact if the prediction is.

    `noisy`, `prediction` and the result are `(batch, C, H, W)`; `sigma` is a number or `(batch,)`. `corruption` is how
    `noisy` was made, and `prediction_type` what `prediction` is.
    """
    _check(corruption, "scaled", "simple")
    _check(prediction_type, "epsilon", "sample")
    if prediction_type == "sample":
        return prediction
    sigma = broadcast_like(sigma, noisy)
    simple = noisy / gamma_from_sigma(sigma) ** 0.5 if corruption == "scaled" else noisy
    return simple - sigma * prediction


class Corruption(NamedTuple):
    """How images are corrupted: `apply(clean, noise, sigma, config)` returns corrupted images and a mask or `None`."""

    apply: Callable[..., tuple[torch.Tensor, torch.Tensor | None]]  # with a mask, only the loss of its pixels counts
    needs_noise: bool = True  # whether `apply` uses noise and sigma
    size_factor: int = 1  # side of the clean images over that of the corrupted ones


def _mask_patches(clean: torch.Tensor, noise: torch.Tensor, _: object, config: DDePConfig) -> tuple[torch.Tensor, ...]:
    mask = draw_mask(noise, config.mask_ratio, config.mask_patch_size)
    return clean.masked_fill(mask, 0), mask


_NOISE = Corruption(lambda clean, noise, sigma, config: (corrupt(clean, noise, sigma, config.corruption), None))
CORRUPTIONS = {
    "scaled": _NOISE,
    "simple": _NOISE,
    "masked": Corruption(_mask_patches),
    "downsampled": Corruption(lambda clean, *_: (downsample(clean), None), needs_noise=False, size_factor=2),
}
