"""The steps of an image processor as transforms: resizing on the CPU, the rest on the device."""

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from ddep_hub.image_conversion import ChannelImage, validate_channel_order, warn_once

from .segmentation_datasets import Sample


MAX_SCALE_RATIO = 2.0  # crops of training are scaled by up to this factor
MAX_NORMALISED = 5.0  # mean or standard deviation of normalised pixels that is implausible for training images
Size = int | tuple[int, int]
AnyImage = Image.Image | ChannelImage


class EvalTransform:
    """The whole image, and the labels at their own size, so that scores are those of the data set's masks.

    The image is resized like by a transformers image processor for semantic segmentation. With
    [`Normalize.from_processor`], the result is exactly the processor's.
    """

    def __init__(self, processor: Any) -> None:
        self.processor, self.image_size = processor, processor_size(processor)

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms a sample of an `image` and its `annotation`, an integer array (H, W).

        Returns `pixel_values`, uint8 or float32 (C, h, w) in 0..255, and `labels`, int64 (H, W).
        """
        return {
            "pixel_values": resize_with_processor(self.processor, sample["image"]),
            "labels": torch.from_numpy(sample["annotation"].astype(np.int64)),
        }


def resize_with_processor(processor: Any, image: AnyImage, **options: Any) -> torch.Tensor:
    """The pixels of an image, uint8 or float32 (C, h, w), resized by an image processor.

    The processor's own code is used because its two backends round differently. The channels keep the image's order;
    [`Normalize`] changes it. `options` override the processor's, such as `do_resize=False`.
    """
    # Both would shift the image against its labels, and the model pads by itself.
    options |= {name: False for name in ("do_center_crop", "do_pad") if getattr(processor, name, False)}
    options |= {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
    if getattr(processor, "channel_order", None):
        options["channel_order"] = None
    source: Any = image
    if isinstance(image, ChannelImage):
        source = image.pixels
        options |= {"input_data_format": "channels_first", "do_convert_rgb": False}
    pixels: torch.Tensor = processor(source, **options)["pixel_values"][0]
    return pixels


def to_tensor(image: AnyImage) -> torch.Tensor:
    """The pixels of an image, uint8 or float32 (C, H, W)."""
    if isinstance(image, ChannelImage):
        return torch.from_numpy(np.ascontiguousarray(image.pixels))
    pixels: torch.Tensor = functional.pil_to_tensor(image)
    return pixels


class Normalize:
    """Converts images to normalised `pixel_values`, on their device.

    `mean` and `std` are per channel, after the pixels are multiplied by `rescale_factor`. `channel_order` is the
    image's channel for each channel of the result; unchanged by default.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        rescale_factor: float = 1 / 255,
        channel_order: Sequence[int] | None = None,
    ) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.std = torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1)
        self.rescale_factor, self.channel_order = rescale_factor, channel_order
        self._by_device: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}

    @classmethod
    def from_processor(cls, processor: Any) -> Self:
        """Rescales and normalises like an image processor, if the processor does."""
        return cls(*get_normalization(processor), getattr(processor, "channel_order", None))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Maps (batch, C, H, W) in 0..255 to float32 of the same shape, channels last in memory."""
        if images.device not in self._by_device:  # copied once, because the copy synchronises the device
            self._by_device[images.device] = (self.mean.to(images.device), self.std.to(images.device))
        mean, std = self._by_device[images.device]
        # In contiguous memory format, in which per-channel means are fast, and in place.
        values = images.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        values.mul_(self.rescale_factor).sub_(mean).div_(std)
        if self.channel_order:
            values = values[:, validate_channel_order(self.channel_order, values.shape[1])]
        return values.contiguous(memory_format=torch.channels_last)


def get_normalization(processor: Any) -> tuple[list[float], list[float], float]:
    """Mean, standard deviation and rescale factor of an image processor; 0, 1 and 1 for disabled steps."""
    mean, std = [0.0], [1.0]
    if processor.do_normalize:
        mean, std = (np.atleast_1d(values).tolist() for values in (processor.image_mean, processor.image_std))
    return mean, std, processor.rescale_factor if processor.do_rescale else 1.0


def warn_about_units(pixel_values: torch.Tensor, name: str) -> None:
    """Warns once if normalised images `(batch, C, H, W)` are far from mean 0 and standard deviation 1.

    RGB images are not checked, because their range is known; others may differ in units and exposure from training.
    """
    if pixel_values.shape[1] == 3:
        return
    means, stds = pixel_values.mean((0, 2, 3)), pixel_values.std((0, 2, 3), correction=0)
    for channel, (mean, std) in enumerate(zip(means.tolist(), stds.tolist(), strict=True)):
        if abs(mean) > MAX_NORMALISED or std > MAX_NORMALISED:
            warn_once(
                "units",
                name,
                f"{name}: after normalisation, channel {channel} has mean {mean:.1f} and standard deviation "
                f"{std:.1f}, far from 0 and 1. Bit depth, units or exposure may differ from those of the training "
                "images. Convert the images or, to train on such images, set image_mean and image_std.",
            )
            return


def resize_factor(processor: Any, height: int, width: int) -> float:
    """Factor by which an image processor resizes an image; the geometric mean if height and width differ in it."""
    size = processor_size(processor)
    if isinstance(size, tuple):
        return math.sqrt(size[0] * size[1] / (height * width))
    return 1.0 if size is None else size / min(height, width)


def warn_about_scale(processor: Any, scale_range: Sequence[float] | None, height: int, width: int, name: str) -> None:
    """Warns once if an image is resized to a different scale than in fine-tuning, see `config.image_scale_range`.

    `name` is its file.
    """
    scale = resize_factor(processor, height, width)
    if scale_range is None or scale_range[0] / MAX_SCALE_RATIO <= scale <= scale_range[1] * MAX_SCALE_RATIO:
        return
    low, high = scale_range
    image_size = round(math.sqrt(low * high) * min(height, width))
    trained = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    warn_once(
        "scale",
        name,
        f"An image of {width}x{height} pixels is resized by a factor of {scale:.2f}, training images by {trained}. "
        f"If its objects have as many pixels as in training, set image_size={image_size}, and `window` for a large "
        "image; if it shows the same view at another resolution, nothing needs to change.",
    )


def processor_size(processor: Any) -> Size | None:
    """Size to which an image processor resizes: shorter side, (height, width), or `None` if it does not resize."""
    if not processor.do_resize:
        return None
    size = {name: int(value) for name, value in dict(processor.size).items() if value is not None}
    if set(size) == {"shortest_edge"}:
        return size["shortest_edge"]
    if set(size) == {"height", "width"}:
        return size["height"], size["width"]
    raise ValueError(f"size of the image processor is {size}. Set shortest_edge, or height and width.")


def resize(
    pixels: torch.Tensor, size: tuple[int, int], resample: InterpolationMode = InterpolationMode.BILINEAR
) -> torch.Tensor:
    """Scales an image tensor to a size, with antialiasing."""
    if pixels.shape[-2:] == size:
        return pixels
    resized: torch.Tensor = functional.resize(pixels, list(size), interpolation=resample, antialias=True)
    return resized
