"""The app's segmentation and denoising, at image sizes that a small machine can handle."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.configuration_ddep import PREDICTED
from ddep_hub.data.classes import ClassTable
from ddep_hub.data.image_io import decode_image
from ddep_hub.data.preprocessing import AnyImage, Normalize, resize, resize_with_processor, to_tensor
from ddep_hub.evaluation.denoising import restore, validation_noise
from ddep_hub.evaluation.inference import InferenceOptions, predict_probabilities
from ddep_hub.evaluation.predict import get_class_table
from ddep_hub.evaluation.visualization import overlay, to_rgb_image, to_three_channels
from ddep_hub.image_conversion import ChannelImage
from ddep_hub.pretrained import load_denoiser, load_model, load_processor, stored_config


# Largest number of probabilities, pixels times classes: 256 MB in float32, and a few copies on the way.
MAX_PROBABILITIES = 2**26
# Largest number of pixels to denoise.
MAX_DENOISED = 2**20
# Images are resized by their shorter side: a thin one would become very long.
MIN_SIDE, MAX_RATIO = 32, 8
# Side in pixels, after resizing, above which the model slides over an image in windows.
WINDOW = 1024
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Segmentation:
    """A segmented image.

    Attributes:
        overlay: The colours of the classes over the image, RGB.
        confidence: Probability of the predicted class, float32 (H, W) in [1 / number of classes, 1].
        shares: Share of the pixels in (0, 1] by class id, largest first; classes without a pixel are left out.
        classes: The classes.
    """

    overlay: Image.Image
    confidence: np.ndarray
    shares: dict[int, float]
    classes: ClassTable


@dataclass(frozen=True)
class Denoising:
    """A denoised image.

    Attributes:
        noisy: The image with noise, RGB.
        predicted_noise: The predicted noise, RGB; mid-grey is none, black and white are three standard deviations.
        denoised: The noisy image without the predicted noise, RGB.
        error: Mean squared error of the predicted noise, in units of its variance.
        predicting_zero: The same for a prediction of no noise.
        trained_sigma: Lowest and highest noise level that the model was trained at.
    """

    noisy: Image.Image
    predicted_noise: Image.Image
    denoised: Image.Image
    error: float
    predicting_zero: float
    trained_sigma: tuple[float, float]


def read_upload(path: str | Path, model: str | None = None) -> AnyImage:
    """Reads an image, upright, with the channels that a model takes.

    Args:
        path: The file.
        model: Folder, shipped name or Hub id of the model; RGB by default.

    Raises:
        ValueError: It is not an image, is damaged, smaller than `MIN_SIDE`, thinner than 1 to `MAX_RATIO`, or has
            other channels than the model's.
    """
    image = decode_image(path, 3 if model is None else stored_config(model).get("num_channels", 3))
    width, height = image.size
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"The image has {width} x {height} pixels. Both sides must have at least {MIN_SIDE}.")
    if max(image.size) > MAX_RATIO * min(image.size):
        raise ValueError(
            f"The image has {width} x {height} pixels. Crop it: one side may be {MAX_RATIO} times the other."
        )
    return image


def fitted(image: AnyImage, pixels: int) -> AnyImage:
    """The image, resized to at most this number of pixels if it has more."""
    if image.width * image.height <= pixels:
        return image
    scale = (pixels / (image.width * image.height)) ** 0.5
    width, height = int(scale * image.width), int(scale * image.height)
    if isinstance(image, ChannelImage):
        return ChannelImage(resize(to_tensor(image), (height, width)).numpy())
    return image.resize((width, height), Image.Resampling.LANCZOS)


def processed(image: AnyImage, processor: DDePImageProcessor, **options: Any) -> torch.Tensor:
    """The `pixel_values` of an image, as in evaluation."""
    return Normalize.from_processor(processor)(resize_with_processor(processor, image, **options)[None]).contiguous()


def segment(image: AnyImage, name: str) -> Segmentation:
    """Segments an image as `ddep-hub predict` does, at its own size up to `MAX_PROBABILITIES`.

    Args:
        image: An image of [`read_upload`].
        name: Fine-tuned model, a folder or Hub id.

    Raises:
        ImportError: The package with the encoder's weights is not installed.
        OSError: The model or its encoder's weights do not exist.
        RuntimeError: The weights do not fit the configuration.
        ValueError: The model is not fine-tuned.
    """
    model, processor = _segmenter(name)
    classes = get_class_table(model.config)
    image = fitted(image, MAX_PROBABILITIES // classes.num_classes)
    size = image.height, image.width
    pixel_values = processed(image, processor).to(DEVICE)
    options = InferenceOptions()
    if max(pixel_values.shape[-2:]) > WINDOW:
        options = InferenceOptions(window=(WINDOW, WINDOW), blending="hann", window_batch=1)
    confidence, mask = predict_probabilities(model, pixel_values, size, options)[0].max(0)
    ids = mask.cpu().numpy()
    counts = np.bincount(ids.ravel(), minlength=classes.num_classes)
    shares = {int(index): counts[index] / ids.size for index in np.argsort(-counts, kind="stable") if counts[index]}
    return Segmentation(
        overlay(to_rgb_image(image, processor.channel_order), ids, classes), confidence.cpu().numpy(), shares, classes
    )


def denoise_image(image: AnyImage, name: str, sigma: float, seed: int) -> Denoising:
    """Adds noise to an image, resized to at most `MAX_DENOISED` pixels, and subtracts the noise a model predicts.

    Args:
        image: An image of [`read_upload`].
        name: Model pretrained by denoising, a folder, shipped name or Hub id.
        sigma: Noise level in units of normalised pixels, above 0.
        seed: Seed of the noise.

    Raises:
        ImportError: The package with the encoder's weights is not installed.
        OSError: The model or its encoder's weights do not exist.
        RuntimeError: The weights do not fit the configuration.
        ValueError: The model has no denoising head or was not pretrained with noise, or `sigma` is not positive.
    """
    if sigma <= 0:
        raise ValueError(f"sigma is {sigma}. Set a noise level above 0.")
    model, processor = _denoiser(name)
    if model.config.corruption in PREDICTED:
        raise ValueError(f"{name} was pretrained with {model.config.corruption} images. Choose a denoising model.")
    # At its own scale, because the noise level refers to pixels, not to objects.
    clean = processed(fitted(image, MAX_DENOISED), processor, do_resize=False).to(DEVICE)
    noise = validation_noise(clean, seed)
    noisy, restored = clean + sigma * noise, restore(model, clean, noise, sigma)
    prediction = (noisy - restored) / sigma
    low, high = model.config.sigma_range
    return Denoising(
        noisy=_picture(_denormalized(noisy[0], processor)),
        predicted_noise=_picture(prediction[0] / 6 + 0.5),
        denoised=_picture(_denormalized(restored[0], processor)),
        error=(prediction - noise).square().mean().item(),
        predicting_zero=noise.square().mean().item(),
        trained_sigma=(low, high),
    )


@lru_cache(maxsize=2)
def _segmenter(name: str) -> tuple[DDePForSemanticSegmentation, DDePImageProcessor]:
    model = load_model(name).to(DEVICE)
    return model, load_processor(name, model.config)


@lru_cache(maxsize=2)
def _denoiser(name: str) -> tuple[DDePForPreTraining, DDePImageProcessor]:
    model = load_denoiser(name).to(DEVICE)
    return model, load_processor(name, model.config)


def _denormalized(values: torch.Tensor, processor: DDePImageProcessor) -> torch.Tensor:
    """Normalised pixels (C, H, W) as values that are 0..1 in an image, in the model's order of channels."""
    if processor.do_normalize:
        mean, std = (torch.tensor(v, device=values.device) for v in (processor.image_mean, processor.image_std))
        if processor.channel_order and mean.ndim:
            mean, std = mean[processor.channel_order], std[processor.channel_order]
        values = values * std.reshape(-1, 1, 1) + mean.reshape(-1, 1, 1)
    return values / (255 * processor.rescale_factor) if processor.do_rescale else values / 255


def _picture(values: torch.Tensor) -> Image.Image:
    """Values (C, H, W), of which 0..1 are shown, as an RGB image: the first three channels, or one in grey."""
    values = to_three_channels(values)
    return Image.fromarray((values.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy())
