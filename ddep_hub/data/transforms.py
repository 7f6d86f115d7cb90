"""Random transforms of labelled images, and the augmentations of each kind of image.

They map a sample to uint8 tensors; normalisation and noise are applied on the device. An augmentation defines which
rotations and flips preserve the meaning of an image, and how its colours or intensities vary.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .preprocessing import Size, processor_size, resize, to_tensor
from .segmentation_datasets import Sample


# Not every torchvision release supports Pillow's other resampling filters for tensors.
_INTERPOLATION = {
    Image.Resampling.NEAREST: InterpolationMode.NEAREST_EXACT,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS: InterpolationMode.BICUBIC,
}


@dataclass(frozen=True)
class Augmentation:
    """Random augmentation for one kind of image, in addition to scale, crop and horizontal flip.

    Args:
        turns: Whether images have no upright direction, so that vertical flips and 90-degree rotations are allowed.
        photometric: Changes colours: maps uint8 (3, h, w) to the same, and draws from torch's default generator.
        intensities: The same for images that are not RGB; default: `INTENSITIES`.
    """

    turns: bool
    photometric: v2.Transform | torch.nn.Module
    intensities: v2.Transform | torch.nn.Module | None = None


class RandomGamma(torch.nn.Module):
    """Raises intensities in 0..1 to a random power, as illumination and staining vary between microscopes.

    The power is drawn from 1 / `limit` to `limit`, uniformly in the logarithm.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 (3, h, w) to the same."""
        power = self.limit ** (2 * torch.rand(()).item() - 1)
        table = ((torch.arange(256) / 255) ** power * 255).round().to(torch.uint8)
        return table[image.long()]


class RandomIntensity(torch.nn.Module):
    """Raises each channel's intensities, between its smallest and largest, to a random power, and scales the contrast.

    The power is drawn from 1 / `power` to `power`, uniformly in the logarithm; the factor about the channel's mean is
    drawn from 1 - `contrast` to 1 + `contrast`.
    """

    def __init__(self, power: float, contrast: float) -> None:
        super().__init__()
        self.power, self.contrast = power, contrast

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 or float32 (C, h, w) to the same."""
        draws = 2 * torch.rand(2, len(image), 1, 1) - 1
        values = image.float()
        low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        span = (high - low).clamp(min=1e-6)
        values = low + span * ((values - low) / span) ** (self.power ** draws[0])
        mean = values.mean((1, 2), keepdim=True)
        values = mean + (values - mean) * (1 + self.contrast * draws[1])
        return values.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else values


class SensorNoise(torch.nn.Module):
    """Adds Gaussian noise, the same in all channels of a grey image.

    Its standard deviation, for pixels in 0..255, is drawn uniformly from 0 to `limit`.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 (3, h, w) to the same."""
        grey = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
        noise = torch.randn((1 if grey else 3, *image.shape[1:])) * (self.limit * torch.rand(()).item())
        return (image + noise).round().clamp(0, 255).to(torch.uint8)


class Blur(v2.GaussianBlur):
    """Blurs an image, unless it is too small for reflection padding."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps an image (C, h, w) to the same."""
        return image if min(image.shape[-2:]) <= self.kernel_size[0] // 2 else super().forward(image)


_COLOR_JITTER = v2.ColorJitter(0.3, 0.3, 0.3, 0.05)
AUGMENTATIONS = {
    "photo": Augmentation(turns=False, photometric=_COLOR_JITTER),
    "overhead": Augmentation(turns=True, photometric=_COLOR_JITTER),
    "microscopy": Augmentation(
        turns=True,
        photometric=v2.Compose(
            [
                v2.ColorJitter(0.2, 0.3, 0.2, 0.03),
                RandomGamma(1.5),
                v2.RandomApply([Blur(5, (0.3, 1.2))], p=0.3),
                v2.RandomApply([SensorNoise(8.0)], p=0.3),
            ]
        ),
    ),
}
# Strong augmentation of an unlabelled image for the student, whose labels the teacher predicts, as in FixMatch and
# UniMatch.
STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.15)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([Blur(7, (0.3, 2.0))], p=0.5),
    ]
)


# The same for images that are not RGB, as far as it applies to these.
INTENSITIES = v2.Compose([RandomIntensity(1.5, 0.3), v2.RandomApply([Blur(5, (0.3, 1.2))], p=0.3)])
STRONG_INTENSITIES = v2.Compose([RandomIntensity(2.0, 0.5), v2.RandomApply([Blur(7, (0.3, 2.0))], p=0.5)])


def sample_class_pixel(annotation: torch.Tensor, ignore_index: int) -> tuple[int, int] | None:
    """Draws one of the classes in a mask (H, W), all equally likely, and one of its pixels.

    Returns the pixel's row and column; `None` if no pixel is labelled.
    """
    if annotation.dtype == torch.uint8:  # counting is many times as fast as sorting
        present = torch.bincount(annotation.flatten()).nonzero()[:, 0].to(annotation.dtype)
    else:
        present = annotation.unique()
    present = present[present != ignore_index]
    if not len(present):
        return None
    pixel_indices = (annotation == present[torch.randint(len(present), ())]).flatten().nonzero()[:, 0]
    pixel_index = int(pixel_indices[torch.randint(len(pixel_indices), ())])
    return divmod(pixel_index, annotation.shape[1])


class SegmentationTrainTransform:
    """Random scale, crop, flips and rotations of image and mask together, and random colour changes of the image.

    If the scaled image is smaller than the crop, it is placed at a random position in it. The border is filled with
    the image's mean colour, which makes the weakest edge and is close to zero after any encoder's normalisation; the
    labels are filled with `ignore_index`.

    Args:
        crop_size: Size of the result in pixels, (height, width) or one number for both.
        image_size: Size in pixels at scale 1: the shorter side, or (height, width), which need not keep the aspect
            ratio. By default the image's own size.
        scale: Range of the random scale, drawn uniformly.
        horizontal_flip: Probability of mirroring.
        augmentation: Kind of image, a key of `AUGMENTATIONS`; by default images are only mirrored.
        class_crops: Probability that a crop is placed to contain a pixel of a class drawn uniformly from those in the
            mask.
        ignore_index: Label of the border.
        resample: How the image is scaled.

    Raises:
        ValueError: An option is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        crop_size: Size,
        image_size: Size | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        horizontal_flip: float = 0.5,
        augmentation: str | None = None,
        class_crops: float = 0.0,
        ignore_index: int = 255,
        resample: InterpolationMode = InterpolationMode.BILINEAR,
    ) -> None:
        self.crop_size = size_pair(crop_size)
        self.image_size = image_size
        if not 0 < scale[0] <= scale[1]:
            raise ValueError(f"range {scale} of scale or ratio must be positive and increasing")
        self.scale = scale
        self.horizontal_flip = horizontal_flip
        if augmentation is not None and augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation is {augmentation!r}; choose {', '.join(AUGMENTATIONS)}.")
        self.augmentation = None if augmentation is None else AUGMENTATIONS[augmentation]
        self.class_crops = class_crops
        self.ignore_index = ignore_index
        self.resample = resample

    @classmethod
    def from_processor(cls, processor: Any, **options: Any) -> Self:
        """A transform whose scale of 1 is the size to which `processor` resizes; `options` are the other arguments."""
        resample = _INTERPOLATION.get(processor.resample, InterpolationMode.BILINEAR)
        return cls(image_size=processor_size(processor), resample=resample, **options)

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms a sample of an `image` and its `annotation`, an integer array (H, W).

        Returns `pixel_values`, uint8 or float32 (C, h, w) in 0..255, and `labels`, (h, w) of the annotation's dtype,
        both of `crop_size`.
        """
        image, annotation = sample["image"], sample["annotation"]
        low, high = self.scale
        scale = low + (high - low) * torch.rand(()).item()
        if isinstance(self.image_size, tuple):
            scales = (scale * self.image_size[0] / image.height, scale * self.image_size[1] / image.width)
        else:
            scales = (scale * (self.image_size or min(image.size)) / min(image.size),) * 2
        # Only the part of the image inside the crop is scaled.
        pixel = None
        if self.class_crops and torch.rand(()).item() < self.class_crops:
            pixel = sample_class_pixel(torch.from_numpy(annotation), self.ignore_index)
        row, column = pixel or (None, None)
        top, height, crop_height, offset_top = _random_window(image.height, self.crop_size[0], scales[0], row)
        left, width, crop_width, offset_left = _random_window(image.width, self.crop_size[1], scales[1], column)
        pixels = to_tensor(image.crop((left, top, left + width, top + height)))
        labels = torch.from_numpy(np.ascontiguousarray(annotation[top : top + height, left : left + width]))
        pixels = resize(pixels, (crop_height, crop_width), self.resample)
        labels = functional.resize(
            labels[None], [crop_height, crop_width], interpolation=InterpolationMode.NEAREST_EXACT
        )[0]
        if torch.rand(()).item() < self.horizontal_flip:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        if self.augmentation is not None:
            intensities = self.augmentation.intensities or INTENSITIES
            pixels = (self.augmentation.photometric if is_rgb(pixels) else intensities)(pixels)
        if (crop_height, crop_width) != self.crop_size:
            right, bottom = self.crop_size[1] - offset_left - crop_width, self.crop_size[0] - offset_top - crop_height
            mean = pixels.float().mean((1, 2))
            mean = mean.round() if pixels.dtype == torch.uint8 else mean
            padding = [offset_left, offset_top, right, bottom]
            pixels = functional.pad(pixels, padding, fill=mean.tolist())
            labels = functional.pad(labels[None], padding, fill=self.ignore_index)[0]
        if self.augmentation is not None and self.augmentation.turns:
            if torch.rand(()).item() < 0.5:
                pixels, labels = pixels.flip(-2), labels.flip(-2)
            # With the flips, all eight symmetries of a square; for a rectangle, those that preserve its shape.
            if pixels.shape[-1] == pixels.shape[-2] and torch.rand(()).item() < 0.5:
                pixels, labels = pixels.mT, labels.mT
        return {"pixel_values": pixels.contiguous(), "labels": labels.contiguous()}


def is_rgb(pixels: torch.Tensor) -> bool:
    """Whether colour augmentation applies: torchvision assumes floats in 0..1, but these are not."""
    return len(pixels) == 3 and pixels.dtype == torch.uint8


def _random_window(length: int, crop: int, scale: float, pixel: int | None = None) -> tuple[int, int, int, int]:
    """One axis of a random crop: start and length of the source interval, its scaled length, its offset in the crop.

    The interval contains `pixel`, if one is given.
    """
    scaled = max(1, round(length * scale))
    if scaled > crop:
        part, size = min(length, max(1, round(crop / scale))), crop
    else:
        part, size = length, scaled
    first, last = 0, length - part
    if pixel is not None:
        first, last = max(first, pixel - part + 1), min(last, pixel)
    start = first + int(torch.randint(last - first + 1, ()))
    offset = int(torch.randint(crop - size + 1, ()))
    return start, part, size, offset


def size_pair(size: Size) -> tuple[int, int]:
    """(height, width) of a size that may be one number for both."""
    return (size, size) if isinstance(size, int) else size
