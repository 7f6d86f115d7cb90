"""What the app does with an image: segmentation and denoising, at sizes that a small machine bears."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import decode_image
from ddep_hub.data.transforms import EvalTransform, Normalize
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.evaluation.arguments import InferenceArguments
from ddep_hub.evaluation.denoising import restore, validation_noise
from ddep_hub.evaluation.inference import InferenceOptions, predict_probabilities
from ddep_hub.evaluation.predict import classes_of
from ddep_hub.evaluation.visualization import overlay
from ddep_hub.pretrained import image_size, load_denoiser, load_model


# Probabilities of an image, pixels times classes: 256 MB in float32, and a few copies on the way.
MOST_PROBABILITIES = 2**26
# Pixels of an image to denoise.
MOST_DENOISED = 2**20
# An image is resized by its shorter side, so that a thin one would grow without a limit.
SHORTEST_SIDE, LARGEST_RATIO = 32, 8
# Side in pixels, as the model sees them, above which it slides over an image.
WINDOW = 1024
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Segmentation:
    """A segmented image.

    Attributes:
        overlay: the colours of the classes over the image, RGB.
        confidence: probability of the class that was chosen, float32 `(H, W)` in [1 / number of classes, 1].
        shares: shares of the pixels in (0, 1] by class id, the largest first; classes without a pixel are left out.
        classes: the classes.
    """

    overlay: Image.Image
    confidence: np.ndarray
    shares: dict[int, float]
    classes: ClassTable


@dataclass(frozen=True)
class Denoising:
    """A denoised image.

    Attributes:
        noisy: the image with noise, RGB.
        found: the noise that was found, RGB; mid-grey is none, black and white are three standard deviations.
        denoised: the noisy image without the noise that was found, RGB.
        error: mean squared error of the noise that was found, in units of its variance.
        finding_none: the same where no noise is found.
        trained_at: lowest and highest level that the model was trained at.
    """

    noisy: Image.Image
    found: Image.Image
    denoised: Image.Image
    error: float
    finding_none: float
    trained_at: tuple[float, float]


def read_upload(path: str | Path) -> Image.Image:
    """Reads an image as RGB, upright.

    Raises:
        ValueError: it is no image, damaged, smaller than `SHORTEST_SIDE`, or thinner than 1 to `LARGEST_RATIO`.
    """
    image = decode_image(path)
    width, height = image.size
    if min(image.size) < SHORTEST_SIDE:
        raise ValueError(f"The image has {width} x {height} pixels. Give one of at least {SHORTEST_SIDE} each way.")
    if max(image.size) > LARGEST_RATIO * min(image.size):
        raise ValueError(
            f"The image has {width} x {height} pixels. Crop it: one side may be {LARGEST_RATIO} times the other."
        )
    return image


def fitted(image: Image.Image, pixels: int) -> Image.Image:
    """The image, reduced to at most so many pixels where it has more."""
    if image.width * image.height <= pixels:
        return image
    scale = (pixels / (image.width * image.height)) ** 0.5
    return image.resize((int(scale * image.width), int(scale * image.height)), Image.Resampling.LANCZOS)


def segment(image: Image.Image, name: str) -> Segmentation:
    """Segments an image as `ddep-hub predict` does, at its own size up to `MOST_PROBABILITIES`.

    Args:
        image: an RGB image.
        name: fine-tuned folder or repository.

    Raises:
        ImportError: the package with the encoder's weights is not installed.
        OSError: there is no model at that place, or its weights cannot be had.
        RuntimeError: its weights do not fit its configuration.
        ValueError: it is not fine-tuned.
    """
    model, side = _segmenter(name)
    classes = classes_of(model.config)
    image = fitted(image, MOST_PROBABILITIES // classes.num_classes)
    size = image.height, image.width
    example = EvalTransform(image_size=side)({"image": image, "annotation": np.zeros(size, dtype=np.uint8)})
    pixel_values = _normalize(model)(example["pixel_values"][None].to(DEVICE))
    options = InferenceOptions()
    if max(pixel_values.shape[-2:]) > WINDOW:
        options = InferenceOptions(window=(WINDOW, WINDOW), blending="hann", window_batch=1)
    confidence, mask = predict_probabilities(model, pixel_values, size, options)[0].max(0)
    ids = mask.cpu().numpy()
    counts = np.bincount(ids.ravel(), minlength=classes.num_classes)
    shares = {int(index): counts[index] / ids.size for index in np.argsort(-counts, kind="stable") if counts[index]}
    return Segmentation(overlay(image, ids, classes), confidence.cpu().numpy(), shares, classes)


def denoise_image(image: Image.Image, name: str, sigma: float, seed: int) -> Denoising:
    """Adds noise to an image, of at most `MOST_DENOISED` pixels, and takes out what a model finds.

    Args:
        image: an RGB image.
        name: folder or repository of a model pretrained by denoising.
        sigma: level of the noise in units of normalised pixels, above 0.
        seed: seed of the noise.

    Raises:
        ImportError: the package with the encoder's weights is not installed.
        OSError: there is no model at that place, or its weights cannot be had.
        RuntimeError: its weights do not fit its configuration.
        ValueError: it has no denoising head, or `sigma` is not positive.
    """
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma}; give a level above 0, as there is no noise to find without any.")
    model = _denoiser(name)
    image = fitted(image, MOST_DENOISED)
    example = EvalTransform()({"image": image, "annotation": np.zeros((image.height, image.width), dtype=np.uint8)})
    clean = _normalize(model)(example["pixel_values"][None].to(DEVICE))
    noise = validation_noise(clean, seed)
    noisy, restored = clean + sigma * noise, restore(model, clean, noise, sigma)
    found = (noisy - restored) / sigma
    mean, std = (torch.tensor(values, device=DEVICE).reshape(-1, 1, 1) for values in _mean_std(model))
    low, high = model.config.sigma_range
    return Denoising(
        noisy=_picture(noisy[0] * std + mean),
        found=_picture(found[0] / 6 + 0.5),
        denoised=_picture(restored[0] * std + mean),
        error=(found - noise).square().mean().item(),
        finding_none=noise.square().mean().item(),
        trained_at=(low, high),
    )


@lru_cache(maxsize=2)
def _segmenter(name: str) -> tuple[DDePForSemanticSegmentation, int | None]:
    return load_model(name, None).to(DEVICE), image_size(InferenceArguments(model=name))


@lru_cache(maxsize=2)
def _denoiser(name: str) -> DDePForPreTraining:
    return load_denoiser(name, None).to(DEVICE)


def _mean_std(model: DDePForPreTraining | DDePForSemanticSegmentation) -> tuple[list[float], list[float]]:
    return encoder_mean_std(model.config.encoder_name)


def _normalize(model: DDePForPreTraining | DDePForSemanticSegmentation) -> Normalize:
    return Normalize(*_mean_std(model))


def _picture(values: torch.Tensor) -> Image.Image:
    """Values `(3, H, W)`, of which 0..1 are shown, as an RGB image."""
    return Image.fromarray((values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
