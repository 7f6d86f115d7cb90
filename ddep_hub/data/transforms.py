"""Random transforms, from a sample to uint8 tensors: normalisation and noise are left to the device."""

import copy
import dataclasses
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .augmentations import AUGMENTATIONS, INTENSITIES, STRONG, STRONG_INTENSITIES, pixel_of_rare_class
from .image_io import decode_image, is_array, is_tiff, with_bytes
from .jpeg import decode_jpeg_part, jpeg_size
from .preprocessing import AnyImage, Size, checked_image_size, processor_size, resize, to_tensor
from .segmentation_datasets import Sample


# Tensors are not scaled in Pillow's other ways by every release of torchvision.
_INTERPOLATION = {
    Image.Resampling.NEAREST: InterpolationMode.NEAREST_EXACT,
    Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS: InterpolationMode.BICUBIC,
}


class SegmentationTrainTransform:
    """Random scale, crop, flips and turns of image and mask together, and random colour of the image.

    Where the scaled image is smaller than the crop, it is put at a random place of it. Around it the image is filled
    with its own mean colour, which makes the weakest edge and lies near zero after any encoder's normalisation; the
    labels are filled with `ignore_index`.

    Args:
        crop_size: Size of the result in pixels, (height, width) or one number for both.
        image_size: Size in pixels that a scale of 1 stands for: the shorter side, or (height, width), which need not
            keep the aspect ratio. The image's own by default.
        scale: Range of the random scale, drawn uniformly.
        horizontal_flip: Probability of mirroring.
        augmentation: Kind of image, a key of `AUGMENTATIONS`; by default images are only mirrored.
        class_crops: Probability that a crop is placed so that it holds a pixel of a class drawn among those of the
            mask, each as likely as the others.
        ignore_index: Label of the filled border.
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
        self.crop_size = _pair(crop_size)
        self.image_size = checked_image_size(image_size)
        self.scale = _checked_range(scale)
        self.horizontal_flip = _checked_probability(horizontal_flip)
        if augmentation is not None and augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation is {augmentation!r}; choose {', '.join(AUGMENTATIONS)}.")
        self.augmentation = None if augmentation is None else AUGMENTATIONS[augmentation]
        self.class_crops = _checked_probability(class_crops, "class_crops")
        self.ignore_index = ignore_index
        self.resample = resample

    @classmethod
    def from_processor(cls, processor: Any, **options: Any) -> Self:
        """A transform whose scale of 1 is the size that an image processor gives an image.

        Args:
            processor: As [`EvalTransform.from_processor`] takes it.
            **options: The other arguments.
        """
        resample = _INTERPOLATION.get(processor.resample, InterpolationMode.BILINEAR)
        return cls(image_size=processor_size(processor), resample=resample, **options)

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms one sample.

        Args:
            sample: With `image`, a PIL RGB image, and `annotation`, an integer array (H, W) of the same size.

        Returns:
            `pixel_values`, uint8 (3, h, w) in 0..255, and `labels`, (h, w) of the annotation's type, both of
            `crop_size`.
        """
        image, annotation = sample["image"], sample["annotation"]
        low, high = self.scale
        scale = low + (high - low) * torch.rand(()).item()
        if isinstance(self.image_size, tuple):
            scales = (scale * self.image_size[0] / image.height, scale * self.image_size[1] / image.width)
        else:
            scales = (scale * (self.image_size or min(image.size)) / min(image.size),) * 2
        # Only the part of the image that the crop will show is scaled.
        pixel = None
        if self.class_crops and torch.rand(()).item() < self.class_crops:
            pixel = pixel_of_rare_class(torch.from_numpy(annotation), self.ignore_index)
        row, column = pixel or (None, None)
        top, height, crop_height, place_top = _window(image.height, self.crop_size[0], scales[0], row)
        left, width, crop_width, place_left = _window(image.width, self.crop_size[1], scales[1], column)
        pixels = to_tensor(image.crop((left, top, left + width, top + height)))
        labels = torch.from_numpy(np.ascontiguousarray(annotation[top : top + height, left : left + width]))
        pixels = resize(pixels, (crop_height, crop_width), self.resample)
        labels = functional.resize(
            labels[None], [crop_height, crop_width], interpolation=InterpolationMode.NEAREST_EXACT
        )[0]
        if torch.rand(()).item() < self.horizontal_flip:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        if self.augmentation is not None:
            pixels = (self.augmentation.photometric if _is_rgb(pixels) else INTENSITIES)(pixels)
        if (crop_height, crop_width) == self.crop_size:
            return self._turned(pixels, labels)
        inside = (slice(place_top, place_top + crop_height), slice(place_left, place_left + crop_width))
        mean = pixels.float().mean((1, 2))
        mean = mean.round().to(torch.uint8) if pixels.dtype == torch.uint8 else mean
        pixel_values = mean[:, None, None].repeat(1, *self.crop_size)
        pixel_values[:, *inside] = pixels
        padded = torch.full(self.crop_size, self.ignore_index, dtype=labels.dtype)
        padded[inside] = labels
        return self._turned(pixel_values, padded)

    def _turned(self, pixels: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.augmentation is not None and self.augmentation.turns:
            if torch.rand(()).item() < 0.5:
                pixels, labels = pixels.flip(-2), labels.flip(-2)
            # With the flips, all eight ways to lay a square; of a rectangle, those that keep its sides.
            if pixels.shape[-1] == pixels.shape[-2] and torch.rand(()).item() < 0.5:
                pixels, labels = pixels.mT, labels.mT
        return {"pixel_values": pixels.contiguous(), "labels": labels.contiguous()}


class PretrainTransform:
    """A random part of the image, of random area and aspect ratio, scaled to one size and mirrored at random.

    From an undecoded sample the part is chosen first, and a JPEG is decoded at the coarsest of 1/2, 1/4 and 1/8 of its
    scale at which the part still has the crop's size: the part is the same, its pixels differ by the way of scaling.

    Args:
        crop_size: Size of the result in pixels, (height, width) or one number for both.
        scale: Range of the part's area, as a share of the image's.
        ratio: Range of the part's width divided by its height, drawn uniformly in the logarithm.
        horizontal_flip: Probability of mirroring.
        num_channels: Channels of the images.

    Raises:
        ValueError: An option is out of range; the message names it.
    """

    def __init__(
        self,
        *,
        crop_size: Size,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        horizontal_flip: float = 0.5,
        num_channels: int = 3,
    ) -> None:
        self.num_channels = num_channels
        self.crop_size = _pair(crop_size)
        self.crop = v2.RandomResizedCrop(self.crop_size, scale=_checked_range(scale), ratio=_checked_range(ratio))
        self.horizontal_flip = _checked_probability(horizontal_flip)

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms one sample.

        Args:
            sample: With `image`, a PIL RGB image or an undecoded file, `{"path": str, "bytes": bytes or None}`.

        Returns:
            `pixel_values`, uint8 (3, h, w) in 0..255, of `crop_size`.

        Raises:
            BadFileError: An undecoded file cannot be used.
        """
        file = image = sample["image"]
        undecoded = not isinstance(image, AnyImage)
        size = None
        if undecoded and self.num_channels == 3 and not is_array(file) and not is_tiff(file):
            file = with_bytes(file)
            size = jpeg_size(file)
        if undecoded and size is None:
            image = decode_image(file, self.num_channels)
        height, width = (image.height, image.width) if size is None else size
        part = self.crop.make_params([torch.empty(3, height, width, device="meta")])
        top, left, height, width = part["top"], part["left"], part["height"], part["width"]
        pixels = None if size is None else decode_jpeg_part(file, (top, left, height, width), self.crop_size)
        if pixels is None:
            if size is not None:
                image = decode_image(file)
            pixels = to_tensor(image.crop((left, top, left + width, top + height)))
            pixels = resize(pixels, self.crop_size)
        if torch.rand(()).item() < self.horizontal_flip:
            pixels = pixels.flip(-1)
        return {"pixel_values": pixels.contiguous()}


def _is_rgb(pixels: torch.Tensor) -> bool:
    """Whether colours may be changed: torchvision takes floats to lie in 0..1, and these do not."""
    return len(pixels) == 3 and pixels.dtype == torch.uint8


def _window(length: int, crop: int, scale: float, pixel: int | None = None) -> tuple[int, int, int, int]:
    """One axis of a random crop: start and length of the cut, its length once scaled, its place in the crop.

    The cut holds `pixel`, if one is given.
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
    place = int(torch.randint(crop - size + 1, ()))
    return start, part, size, place


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"crop_size is {size}; give pixels, one number or (height, width)")
    return height, width


def _checked_range(limits: tuple[float, float]) -> tuple[float, float]:
    low, high = limits
    if not 0 < low <= high:
        raise ValueError(f"range ({low}, {high}) of scale or ratio must be positive and in order")
    return low, high


def _checked_probability(probability: float, name: str = "horizontal_flip") -> float:
    if not 0 <= probability <= 1:
        raise ValueError(f"{name} is {probability}; give a probability in 0..1")
    return probability


class UnlabelledTransform:
    """Random scale, crop and flips of an unlabelled image, and a second, strongly changed version of the same crop.

    Args:
        geometry: The transform of labelled images, of which scale, crop, flips and turns are taken.
        strong: Whether to make the second version.
        num_channels: Channels of the images.
    """

    def __init__(self, geometry: SegmentationTrainTransform, *, strong: bool = False, num_channels: int = 3) -> None:
        self.num_channels = num_channels
        self.geometry = copy.copy(geometry)
        self.geometry.class_crops = 0.0
        if geometry.augmentation is not None:
            self.geometry.augmentation = dataclasses.replace(geometry.augmentation, photometric=torch.nn.Identity())
        self.strong = strong

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms one sample.

        Args:
            sample: With `image`, a PIL RGB image or an undecoded file.

        Returns:
            `pixel_values`, uint8 (3, h, w), `inside`, bool (h, w), false on the border around a small image, and
            `strong`, uint8 (3, h, w), where it is made.

        Raises:
            BadFileError: An undecoded file cannot be used.
        """
        image = sample["image"]
        if not isinstance(image, AnyImage):
            image = decode_image(image, self.num_channels)
        border = self.geometry.ignore_index
        mask = np.full((image.height, image.width), 1 if border == 0 else 0, dtype=np.int32)
        example = self.geometry({"image": image, "annotation": mask})
        result = {"pixel_values": example["pixel_values"], "inside": example["labels"] != border}
        if self.strong:
            pixels = example["pixel_values"]
            result["strong"] = (STRONG if _is_rgb(pixels) else STRONG_INTENSITIES)(pixels).contiguous()
        return result
