"""Denoising error of a model, that of baselines that learn no features, and figures of what it predicts."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tvf

from ddep_hub.configuration_ddep import PREDICTED
from ddep_hub.denoising import denoise, downsample, draw_mask, mean_squared_error
from ddep_hub.resampling import pad_to_multiple

from .visualization import draw_panels, to_uint8


BLUR_SIGMAS = [0.1 * step for step in range(2, 31)]
# Widths of the blur that fills masked patches, in units of a patch's side.
MASK_BLURS = (0.125, 0.25, 0.5, 1.0, 2.0)
# Baselines of the denoising error, without learned features; which of them apply depends on the corruption.
REFERENCES = {
    "linear_filter": "best linear 3x3 filter",
    "gaussian_blur": "best Gaussian blur",
    "predicting_mean": "mean of the visible pixels",
    "mean_features": "mean of the features",
    "upsampled_features": "upsampled features of the downsampled image",
    "predicting_zero": "predicting no noise",
}


def validation_noise(images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Standard normal noise of the shape of `images`, the same for the same seed."""
    return torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images.device)


@torch.no_grad()
def restore(model: nn.Module, clean: torch.Tensor, noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Adds noise to images as in pretraining and removes the predicted noise.

    For every corruption by noise and every prediction type, the predicted noise is
    `(clean + sigma * noise - restored) / sigma`.

    Args:
        model: A [`DDePForPreTraining`] in eval mode, whose `corruption` is one by noise.
        clean: Normalised images (n, C, H, W).
        noise: Standard normal noise of the same shape.
        sigma: Noise level in units of `clean`, above 0.

    Returns:
        The restored images, float32 (n, C, H, W).
    """
    output = model(pixel_values=clean, noise=noise, sigma=sigma)
    return denoise(
        output.noisy_pixel_values,
        output.prediction.float(),
        sigma,
        corruption=model.config.corruption,
        prediction_type=model.config.prediction_type,
    )


@torch.no_grad()
def denoising_error(model: nn.Module, clean: torch.Tensor, *, batch_size: int = 16) -> float:
    """Computes the mean squared error of the predicted standard normal noise on validation images.

    The error is measured on the noise for every prediction type, because an estimate of the image implies one of the
    noise. The noise is fixed; its level is the middle of the model's range. With `corruption="masked"` the error is
    that of the masked pixels, with `"downsampled"` that of the features. `clean` are normalised images (n, C, H, W);
    `model` is put into eval mode.
    """
    model.eval()
    clean = clean.to(next(model.parameters()).device)
    noise, sigma = validation_noise(clean), sum(model.config.sigma_range) / 2
    total = 0.0
    for images, batch_noise in zip(clean.split(batch_size), noise.split(batch_size), strict=True):
        if model.config.corruption in PREDICTED:
            total += model(pixel_values=images, noise=batch_noise).loss.item() * images.numel()
        else:
            restored = restore(model, images, batch_noise, sigma)
            total += ((images - restored) / sigma).square().sum().item()
    return total / clean.numel()


@torch.no_grad()
def denoising_references(model: nn.Module, clean: torch.Tensor, training: torch.Tensor) -> dict[str, float]:
    """Computes the error of baseline denoisers that learn no features, on the same noise as [`denoising_error`].

    Returns `predicting_zero`, the error of predicting no noise (1 in expectation); `gaussian_blur`, that of the best
    Gaussian blur per channel, whose width is chosen on the validation images `clean` themselves; and `linear_filter`,
    that of the best 3x3 filter over all channels, fitted on the images `training`.
    """
    noise, sigma = validation_noise(clean), sum(model.config.sigma_range) / 2
    noisy = clean + sigma * noise

    def error(predicted: torch.Tensor) -> float:
        return (predicted - noise).square().mean().item()

    blurs = [
        error((noisy - tvf.gaussian_blur(noisy, _kernel_size(blur_sigma), blur_sigma)) / sigma)
        for blur_sigma in BLUR_SIGMAS
    ]
    training_noise = validation_noise(training, 1)
    weights = _linear_filter(training + sigma * training_noise, training_noise)
    squared_error = sum(
        (_extract_patches(image) @ weights - _flatten_pixels(target)).square().sum()
        for image, target in zip(noisy, noise, strict=True)
    )
    linear = (squared_error / noise.numel()).float().item()  # the same in every run, whatever order the CPU adds in
    return {"predicting_zero": error(torch.zeros_like(noise)), "gaussian_blur": min(blurs), "linear_filter": linear}


@torch.no_grad()
def masking_references(model: nn.Module, clean: torch.Tensor, *_: object) -> dict[str, float]:
    """Computes the error of baselines on the masked pixels, with the same masks as [`denoising_error`].

    Returns `predicting_mean`, the error of predicting each image's mean visible pixel; and `gaussian_blur`, that of
    the best blur of the visible pixels, whose width is chosen on the validation images `clean` themselves.
    """
    patch_size = model.config.mask_patch_size
    mask = draw_mask(validation_noise(clean), model.config.mask_ratio, patch_size)
    visible = (~mask).to(clean)
    means = (clean * visible).mean((2, 3), keepdim=True) / visible.mean((2, 3), keepdim=True).clamp(min=1e-6)

    def error(predicted: torch.Tensor) -> float:
        return mean_squared_error(predicted, clean, mask).item()

    blurs = []
    for patches in MASK_BLURS:
        weight, blurred = (_wide_blur(values, patches * patch_size) for values in (visible, clean * visible))
        blurs.append(error((blurred + 1e-6 * means) / (weight + 1e-6)))  # the mean where no visible pixel is near
    return {"predicting_mean": error(means), "gaussian_blur": min(blurs)}


@torch.no_grad()
def feature_references(model: nn.Module, clean: torch.Tensor, *_: object, batch_size: int = 4) -> dict[str, float]:
    """Computes the error of baselines without a decoder on the features, comparable to [`denoising_error`].

    Returns `mean_features`, the error of predicting each channel's mean over the validation images `clean`; and
    `upsampled_features`, that of the upsampled features of the images at half the resolution.
    """
    device, moments, squared_error, positions = next(model.parameters()).device, [], 0.0, 0
    for images in clean.split(batch_size):
        images = pad_to_multiple(images.to(device), 2 * model.ddep.stride)
        target = model.feature_target(images).float()
        small = model.feature_target(downsample(images)).float()
        upsampled = F.interpolate(small, size=target.shape[-2:], mode="bilinear")
        squared_error += (upsampled - target).square().mean(1).sum().item()
        positions += target[:, 0].numel()
        moments.append(torch.stack([power.double().sum((0, 2, 3)) for power in (target, target.square())]))
    mean, square = torch.stack(moments).sum(0) / positions
    return {
        "mean_features": (square - mean.square()).mean().item(),
        "upsampled_features": squared_error / positions,
    }


def _linear_filter(noisy: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Least-squares filter from patches to noise, (9 * C + 1, C); image by image, to save memory."""
    gram, moment = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for image, target in zip(noisy, noise, strict=True):
        patches = _extract_patches(image)
        gram, moment = gram + patches.T @ patches, moment + patches.T @ _flatten_pixels(target)
    return torch.linalg.lstsq(gram, moment).solution


def _wide_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """A separable Gaussian blur: torchvision's own takes minutes for wide kernels."""
    for axis in (0, 1):
        size, sides = [1, 1], list(images.shape[:-3:-1])  # x before y, as in torchvision
        size[axis] = min(_kernel_size(sigma), 2 * sides[axis] - 1)  # its padding reflects the image, once
        images = tvf.gaussian_blur(images, size, [sigma, sigma])
    return images


def _kernel_size(sigma: float) -> int:
    """Odd kernel size of a Gaussian out to three standard deviations."""
    return 2 * max(1, round(3 * sigma)) + 1


def _extract_patches(image: torch.Tensor) -> torch.Tensor:
    """3x3 neighbourhoods of all pixels over all channels, and a constant: float64 (H * W, 9 * C + 1)."""
    columns = F.unfold(image[None].double(), 3, padding=1)[0].T
    return torch.cat([columns, columns.new_ones(len(columns), 1)], dim=1)


def _flatten_pixels(image: torch.Tensor) -> torch.Tensor:
    """All pixels with their channels last: float64 (H * W, C)."""
    return image.permute(1, 2, 0).flatten(0, 1).double()


@torch.no_grad()
def denoising_picture(model: nn.Module, clean: torch.Tensor) -> Image.Image:
    """Draws image, corrupted image, prediction and restored image, one row per image.

    `clean` are normalised images (n, C, H, W); `model`, a [`DDePForPreTraining`], is put into eval mode.
    """
    clean = clean.to(next(model.parameters()).device)
    return EVALUATIONS[model.config.corruption].picture(model.eval(), clean)


def _noise_picture(model: nn.Module, clean: torch.Tensor) -> Image.Image:
    noise, sigma = validation_noise(clean), sum(model.config.sigma_range) / 2
    denoised = restore(model, clean, noise, sigma)
    noisy = clean + sigma * noise
    rows = []
    for image, corrupted, restored in zip(clean, noisy, denoised, strict=True):
        pictures = to_uint8(torch.stack([image, corrupted, restored]))
        predicted = to_uint8(torch.stack([(corrupted - restored) / sigma]).clamp(-3, 3))
        rows.append([pictures[0], pictures[1], predicted[0], pictures[2]])
    return draw_panels(rows, ["image", "noisy image", "predicted noise", "denoised image"])


def _masking_picture(model: nn.Module, clean: torch.Tensor) -> Image.Image:
    output = model(pixel_values=clean, noise=validation_noise(clean))
    rows = []
    for image, masked, predicted, mask in zip(
        clean, output.noisy_pixel_values, output.prediction.float(), output.mask, strict=True
    ):
        rows.append(to_uint8(torch.stack([image, masked, predicted, predicted.where(mask, image)])))
    return draw_panels(rows, ["image", "masked image", "prediction", "filled-in image"])


def _features_picture(model: nn.Module, clean: torch.Tensor) -> Image.Image:
    """Shows the first three principal components of the target as RGB, in target and prediction."""
    output = model(pixel_values=clean)
    target, predicted = (f.float().movedim(1, -1) for f in (output.target, output.prediction))
    mean, channels = target.mean((0, 1, 2)), target.shape[-1]
    centered = (target - mean).reshape(-1, channels)
    components = torch.linalg.eigh(centered.T @ centered).eigenvectors.T.flip(0)[:3]
    rows = []
    for image, small, *features in zip(clean, output.noisy_pixel_values, target, predicted, strict=True):
        maps = torch.stack([((feature - mean) @ components.T).movedim(-1, 0) for feature in features])
        scale = maps[:1].flatten(2).std(-1)[..., None, None].clamp(min=1e-6)
        rows.append([*to_uint8(image[None]), *to_uint8(small[None]), *to_uint8((maps / scale).clamp(-2, 2))])
    return draw_panels(rows, ["image", "downsampled image", "encoder's features", "predicted features"])


class Evaluation(NamedTuple):
    """How a model that was pretrained with a certain `config.corruption` is evaluated."""

    predicted: str  # in words
    references: Callable[..., dict[str, float]]  # called with the model, validation and training images, normalised
    picture: Callable[[nn.Module, torch.Tensor], Image.Image]


_NOISE = Evaluation("the predicted noise", denoising_references, _noise_picture)
EVALUATIONS = {
    "scaled": _NOISE,
    "simple": _NOISE,
    "masked": Evaluation("the masked patches", masking_references, _masking_picture),
    "downsampled": Evaluation("the predicted features", feature_references, _features_picture),
}
