"""How well a model denoises, beside what can be had without learning."""

import torch
from torch import nn
from torchvision.transforms.v2 import functional as tvf

from ddep_hub.denoising import denoise, gamma_from_sigma


BLUR_SIGMAS = [0.1 * step for step in range(2, 31)]


@torch.no_grad()
def denoising_error(model: nn.Module, clean: torch.Tensor, *, batch_size: int = 16, seed: int = 0) -> dict[str, float]:
    """Mean squared error of the noise that a model finds in images, with that of two references.

    The error is that of the standard normal noise, whatever the model predicts: an estimate of the image implies one
    of the noise. Level and noise of each image are fixed by `seed`; the level is the middle of the model's range.

    Args:
        model: a [`DDePForPreTraining`]; it is put into eval mode.
        clean: normalised images `(n, C, H, W)` that the model was not trained on.
        batch_size: images a forward pass.
        seed: seed of the noise.

    Returns:
        `denoising_error` of the model; `predicting_zero`, that of finding no noise (1 in expectation); and
        `gaussian_blur`, that of the best Gaussian blur as denoiser, its width chosen on these very images.
    """
    model.eval()
    device, config = next(model.parameters()).device, model.config
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape, generator=generator).to(device)
    clean = clean.to(device)
    sigma = sum(config.sigma_range) / 2
    found = []
    for image, part in zip(clean.split(batch_size), noise.split(batch_size), strict=True):
        output = model(pixel_values=image, noise=part, sigma=sigma)
        estimate = denoise(
            output.noisy_pixel_values,
            output.prediction.float(),
            sigma,
            corruption=config.corruption,
            prediction_type=config.prediction_type,
        )
        found.append(estimate)
    noisy = clean + sigma * noise

    def error(estimate: torch.Tensor) -> float:
        return ((noisy - estimate) / sigma - noise).square().mean().item()

    blurred = [error(tvf.gaussian_blur(noisy, _kernel(width), width)) for width in BLUR_SIGMAS]
    return {
        "denoising_error": error(torch.cat(found)),
        "predicting_zero": noise.square().mean().item(),
        "gaussian_blur": min(blurred),
        "signal_share": float(gamma_from_sigma(sigma)),
    }


def _kernel(sigma: float) -> int:
    """Odd kernel size that holds a Gaussian out to three standard deviations."""
    return 2 * max(1, round(3 * sigma)) + 1
