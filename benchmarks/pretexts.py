"""Pretrains a decoder with another pretext than independent Gaussian noise, for one-channel (grey) images.

    python benchmarks/pretexts.py shared_noise --images path/to/em/unlabelled --output_dir runs/shared --max_steps 1500

What follows the name of the pretext are arguments of `ddep-hub pretrain`. The decoder is then fine-tuned like any
other, `--pretrained runs/shared/final`. The pretexts:

- `gaussian`: the package's own, for comparison. A grey image has three equal channels, and each gets noise of its own.
- `shared_noise`: Gaussian noise that the three channels share, as a grey image that was noisy before it became RGB.
- `poisson_gaussian`: shared noise of a microscope, four fifths of its variance from counting photons or electrons.
- `blind_spot`: one pixel in 32 is replaced by a neighbour; the network predicts it (Noise2Void, arXiv 1811.10980).

The last one predicts the image from the features alone: `--prediction_type sample --image_skip false` is set for it.
Masked patches and features are in the package: `ddep-hub pretrain --corruption masked`, or `downsampled`.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ddep_hub.data.samplers import example_seed
from ddep_hub.denoising import broadcast_like
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.losses import sample_noise
from ddep_hub.training.pretraining import PretrainTrainer
from ddep_hub.training.trainer import Batch
from ddep_hub.utils.arguments import parse_arguments


SHOT_SHARE = 0.8
BLIND_SPOTS = 1 / 32


def poisson_gaussian_noise(
    clean: torch.Tensor,
    noise: torch.Tensor,
    sigma: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Noise of a detector, divided by `sigma`: counts of what is above an image's darkest value, and readout.

    With the signal `s`, the variance of a pixel is `0.8 * s / mean(s) + 0.2`, on average 1.

    Args:
        clean: Images of shape `(batch, 1, H, W)`.
        noise: Standard normal noise of the same shape.
        sigma: Level of each image, shape `(batch,)`.
        generator: Source of the counts.

    Returns:
        Noise of the same shape, with mean 0 in every pixel.
    """
    sigma = broadcast_like(sigma, clean)
    signal = clean - clean.amin((1, 2, 3), keepdim=True)
    gain = SHOT_SHARE * sigma**2 / signal.mean((1, 2, 3), keepdim=True).clamp(min=1e-3)
    counted = gain * torch.poisson(signal / gain, generator=generator) - signal
    return counted / sigma + (1 - SHOT_SHARE) ** 0.5 * noise


def blind_spots(clean: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images in which a few pixels are one of their 24 neighbours, and where these pixels are, `(batch, 1, H, W)`.

    Args:
        clean: Images of shape `(batch, C, H, W)`.
        noise: Standard normal noise of shape `(batch, 2, H, W)`, which selects pixels and neighbours.
    """
    selected, neighbour = torch.special.ndtr(noise).split(1, dim=1)
    mask = (selected < BLIND_SPOTS).to(clean)
    shifts = [(y, x) for y in range(-2, 3) for x in range(-2, 3) if (y, x) != (0, 0)]
    index = (neighbour * len(shifts)).long().clamp(max=len(shifts) - 1)
    masked = clean.clone()
    for number, shift in enumerate(shifts):
        masked = torch.where((mask > 0) & (index == number), clean.roll(shift, (2, 3)), masked)
    return masked, mask


class PretextTrainer(PretrainTrainer):
    """Noise that the channels share, Gaussian or that of a microscope."""

    def __init__(self, args: PretrainArguments, pretext: str) -> None:
        super().__init__(args)
        self.pretext = pretext
        self.run_info["method"] = f"benchmarks/pretexts.py, {pretext}"

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        images = self.normalize(batch["pixel_values"])
        return [self._error(model, images, step, positions) * images.numel()]

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        return {"pretext_error": float(self._error(model.eval(), self.validation, 0, range(len(self.validation))))}

    def score(self, results: dict[str, Any]) -> float:
        return -results["pretext_error"]

    def _error(self, model: nn.Module, images: torch.Tensor, step: int, positions: Sequence[int]) -> torch.Tensor:
        noise, sigma = sample_noise(images, self.sigma_range, self.args.seed, step, positions)
        noise = noise[:, :1]
        if self.pretext == "poisson_gaussian":
            generator = torch.Generator(images.device).manual_seed(example_seed(self.args.seed, step, positions[0]))
            noise = poisson_gaussian_noise(images.mean(1, keepdim=True), noise, sigma, generator)
        loss: torch.Tensor = model(pixel_values=images, noise=noise.expand_as(images), sigma=sigma).loss
        return loss


class BlindSpotTrainer(PretextTrainer):
    """Single pixels are replaced, and predicted from the rest."""

    def _error(self, model: nn.Module, images: torch.Tensor, step: int, positions: Sequence[int]) -> torch.Tensor:
        noise, sigma = sample_noise(images, self.sigma_range, self.args.seed, step, positions)
        masked, mask = blind_spots(images, noise[:, :2])
        prediction = model(pixel_values=masked, noise=torch.zeros_like(images), sigma=sigma).prediction
        squared_error = F.mse_loss(prediction.float(), images, reduction="none")
        return (squared_error * mask).sum() / (mask.sum() * images.shape[1]).clamp(min=1)


PRETEXTS = {
    "gaussian": PretrainTrainer,
    "shared_noise": PretextTrainer,
    "poisson_gaussian": PretextTrainer,
    "blind_spot": BlindSpotTrainer,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pretext", choices=PRETEXTS)
    pretext = parser.parse_args(sys.argv[1:2]).pretext
    trainer = PRETEXTS[pretext]
    flags = "--prediction_type sample --image_skip false --corruption simple" if trainer is BlindSpotTrainer else ""
    args = parse_arguments(PretrainArguments, [*flags.split(), *sys.argv[2:]])
    (trainer(args) if pretext == "gaussian" else trainer(args, pretext)).run()


if __name__ == "__main__":
    main()
