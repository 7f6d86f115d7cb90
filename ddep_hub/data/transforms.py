"""From a sample to uint8 tensors: geometry and colour on the CPU; normalisation and noise are left to the device."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from .augmentations import AUGMENTATIONS, STRONG, pixel_of_rare_class
from .image_io import decode_image, decode_reduced, jpeg_size
from .segmentation_datasets import Sample


Size = int | tuple[int, int]
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
        self.image_size = _checked_image_size(image_size)
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
        return cls(image_size=_processor_size(processor), resample=resample, **options)

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
        pixels = functional.pil_to_tensor(image.crop((left, top, left + width, top + height)))
        labels = torch.from_numpy(np.ascontiguousarray(annotation[top : top + height, left : left + width]))
        pixels = _resize(pixels, (crop_height, crop_width), self.resample)
        labels = functional.resize(
            labels[None], [crop_height, crop_width], interpolation=InterpolationMode.NEAREST_EXACT
        )[0]
        if torch.rand(()).item() < self.horizontal_flip:
            pixels, labels = pixels.flip(-1), labels.flip(-1)
        if self.augmentation is not None:
            pixels = self.augmentation.photometric(pixels)
        if (crop_height, crop_width) == self.crop_size:
            return self._turned(pixels, labels)
        inside = (slice(place_top, place_top + crop_height), slice(place_left, place_left + crop_width))
        mean = pixels.float().mean((1, 2)).round().to(torch.uint8)
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
    ) -> None:
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
        undecoded = not isinstance(image, Image.Image)
        size = jpeg_size(file) if undecoded else None
        if undecoded and size is None:
            image = decode_image(file)
        part = self.crop.make_params([image if size is None else torch.empty(3, *size, device="meta")])
        top, left, height, width = part["top"], part["left"], part["height"], part["width"]
        pixels = None if size is None else decode_reduced(file, (top, left, height, width), self.crop_size)
        if pixels is None:
            if size is not None:
                image = decode_image(file)
            pixels = functional.pil_to_tensor(image.crop((left, top, left + width, top + height)))
            pixels = _resize(pixels, self.crop_size)
        if torch.rand(()).item() < self.horizontal_flip:
            pixels = pixels.flip(-1)
        return {"pixel_values": pixels.contiguous()}


class EvalTransform:
    """The whole image, and the labels at their own size, so that scores are those of the data set's masks.

    Args:
        image_size: Shorter side of the image in pixels; the image's own by default.

    Attributes:
        image_size: Shorter side, (height, width), or `None` for images as they are.

    Raises:
        ValueError: `image_size` is below 1.
    """

    def __init__(self, *, image_size: int | None = None) -> None:
        self.image_size: Size | None = _checked_image_size(image_size)
        self.processor: Any = None

    @classmethod
    def from_processor(cls, processor: Any) -> Self:
        """A transform that resizes as an image processor does; with [`Normalize.from_processor`] its exact result.

        Args:
            processor: An image processor of transformers for semantic segmentation, such as [`DDePImageProcessor`].
        """
        transform = cls()
        transform.image_size = _processor_size(processor)
        transform.processor = processor
        return transform

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms one sample.

        Args:
            sample: With `image`, a PIL RGB image, and `annotation`, an integer array (H, W).

        Returns:
            `pixel_values`, uint8 (3, h, w) in 0..255, and `labels`, int64 (H, W).
        """
        image: Image.Image = sample["image"]
        if self.processor is not None:
            # The processor's own resizing, as its two backends round differently.
            plain = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
            pixels = self.processor(image, **plain)["pixel_values"][0]
        else:
            pixels = functional.pil_to_tensor(image)
            if isinstance(self.image_size, int):
                scale = self.image_size / min(image.size)
                pixels = _resize(pixels, (max(1, round(image.height * scale)), max(1, round(image.width * scale))))
        return {"pixel_values": pixels, "labels": torch.from_numpy(sample["annotation"].astype(np.int64))}


class Normalize:
    """uint8 images to normalised `pixel_values`, on the device they lie on.

    Args:
        mean: Mean of each channel, of rescaled pixels.
        std: Standard deviation of each channel.
        rescale_factor: What pixels are multiplied with first.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], rescale_factor: float = 1 / 255) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        self.rescale_factor = rescale_factor
        self._by_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def from_processor(cls, processor: Any) -> Self:
        """Rescales and normalises as an image processor does, as far as it does."""
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if processor.do_normalize:
            mean, std = (np.broadcast_to(values, 3).tolist() for values in (processor.image_mean, processor.image_std))
        return cls(mean, std, processor.rescale_factor if processor.do_rescale else 1.0)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps uint8 (batch, 3, H, W) in 0..255 to float32 of the same shape, channels last in memory."""
        images = images.float().contiguous(memory_format=torch.channels_last)
        if images.device not in self._by_device:  # once: such a copy waits for the device
            self._by_device[images.device] = (self.mean.to(images.device), self.std.to(images.device))
        mean, std = self._by_device[images.device]
        return (images * self.rescale_factor - mean) / std


def _processor_size(processor: Any) -> Size | None:
    if not processor.do_resize:
        return None
    size = {name: int(value) for name, value in dict(processor.size).items() if value is not None}
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    raise ValueError(f"size of the image processor is {size}. Set shortest_edge, or height and width.")


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


def _resize(
    pixels: torch.Tensor, size: tuple[int, int], resample: InterpolationMode = InterpolationMode.BILINEAR
) -> torch.Tensor:
    if pixels.shape[-2:] == size:
        return pixels
    resized: torch.Tensor = functional.resize(pixels, list(size), interpolation=resample, antialias=True)
    return resized


def _pair(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"crop_size is {size}; give pixels, one number or (height, width)")
    return height, width


def _checked_image_size(image_size: Size | None) -> Size | None:
    if image_size is not None and np.min(image_size) < 1:
        raise ValueError(
            f"image_size is {image_size}; give the shorter side in pixels, or None to keep the image's own"
        )
    return image_size


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
    """

    def __init__(self, geometry: SegmentationTrainTransform, *, strong: bool = False) -> None:
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
        image = sample["image"] if isinstance(sample["image"], Image.Image) else decode_image(sample["image"])
        border = self.geometry.ignore_index
        mask = np.full((image.height, image.width), 1 if border == 0 else 0, dtype=np.int32)
        example = self.geometry({"image": image, "annotation": mask})
        result = {"pixel_values": example["pixel_values"], "inside": example["labels"] != border}
        if self.strong:
            result["strong"] = STRONG(example["pixel_values"]).contiguous()
        return result
