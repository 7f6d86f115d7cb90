# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Images and segmentation maps for DDeP models, on Pillow and NumPy.

What both backends share is here rather than beside the torchvision class, so that as remote code this file runs where
torchvision is missing.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, SegformerImageProcessorPil
from transformers.image_utils import ImageInput, PILImageResampling
from transformers.processing_utils import ImagesKwargs


IGNORE_INDEX = 255


class DDePImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """What the processors take beside transformers' own options.

    Attributes:
        do_reduce_labels: Whether id 0 of a map means "no class": 0 becomes 255 (ignored), every other id drops by one,
            255 stays. ADE20K's 150-class maps need it.
    """

    do_reduce_labels: bool


class DDePImageProcessorMixin:
    """The part of image processing that does not depend on the backend.

    Resizing, rescaling and normalising of images is transformers' own (SegFormer's processor, whose post-processing
    is used unchanged too). Maps are handled here: they take the size of their processed image by nearest neighbour,
    the same pixels in both backends, for ids of any integer type.
    """

    valid_kwargs = DDePImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    # What the ResNet-ViT hybrids' ImageNet-21k weights were trained with; other encoders bring their own values.
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    # A fixed size lets images of any size share a batch. The model itself needs none.
    do_resize = True
    size: ClassVar[dict[str, int]] = {"height": 512, "width": 512}
    do_convert_rgb = True
    do_reduce_labels = False

    def preprocess(
        self, images: ImageInput, segmentation_maps: Any = None, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Turns images, and the maps that belong to them, into the inputs of a model.

        Args:
            images: One image or several: PIL of any mode, array or tensor `(height, width)`, `(height, width,
                channels)` or `(channels, height, width)`, path or URL. Values are 0 to 255 unless `do_rescale=False`.
            segmentation_maps: One map or as many as there are images: PIL of one channel (a palette counts as its
                indices), array or tensor `(height, width)` of class ids. A three-dimensional one is a batch of maps.
            return_tensors: `"pt"` or `"np"` to stack the results; None for lists, whose items may differ in size.
            **kwargs: Options of this call instead of the processor's own, such as `do_resize=False` (native
                resolution) or `size={"shortest_edge": 512}` (pixels; keeps the aspect ratio).

        Returns:
            `pixel_values`, float32 `(batch, channels, height, width)`, and with maps `labels`, int64
            `(batch, height, width)`.

        Raises:
            ValueError: Maps that do not fit the images in number, channels or size; maps with fractional values;
                images of different sizes that should be stacked.
        """
        reduce_labels = kwargs.get("do_reduce_labels", self.do_reduce_labels)
        do_resize = kwargs.get("do_resize", self.do_resize)
        pixel_values = super().preprocess(_add_channel(images), None, return_tensors=None, **kwargs)[  # type: ignore[misc]
            "pixel_values"
        ]
        data = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            maps = _list_of_maps(segmentation_maps)
            if len(maps) != len(pixel_values):
                raise ValueError(
                    f"{len(pixel_values)} image(s) came with {len(maps)} segmentation map(s): pass one map an image, "
                    "each (height, width)."
                )
            labels = []
            for index, (item, pixels) in enumerate(zip(maps, pixel_values, strict=True)):
                class_ids = _to_class_ids(item, index)
                size = tuple(pixels.shape[-2:])
                if do_resize:
                    class_ids = _resize_nearest(class_ids, *size)
                elif class_ids.shape != size:
                    raise ValueError(
                        f"Segmentation map {index} is {class_ids.shape[0]}x{class_ids.shape[1]} (height x width), its "
                        f"image {size[0]}x{size[1]}. Without do_resize they have to agree."
                    )
                if reduce_labels:
                    class_ids = _reduce_labels(class_ids)
                # On the image's device, for a processor that runs on a GPU (`device="cuda"`).
                is_tensor = isinstance(pixels, torch.Tensor)
                labels.append(torch.from_numpy(class_ids).to(pixels.device) if is_tensor else class_ids)
            data["labels"] = labels
        sizes = {tuple(pixels.shape[-2:]) for pixels in pixel_values}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"Images of {len(sizes)} sizes cannot be stacked, among them {sorted(sizes)[:3]} (height, width). Set "
                'do_resize=True with size={"height": ..., "width": ...}, or pass the images one by one.'
            )
        return BatchFeature(data, tensor_type=return_tensors)

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> Any:
        """Turns one input into a `(channels, height, width)` tensor or array.

        Args:
            image: A PIL image, array or tensor.
            do_convert_rgb: Whether to make three channels of it.
            **kwargs: The backend's own arguments.

        Returns:
            The image, channels first, its values unchanged but for a 16-bit PIL image, which is scaled to 8 bits:
            Pillow's own conversion to RGB would clip it to white.
        """
        if isinstance(image, Image.Image) and image.mode.startswith("I"):
            values = np.asarray(image)
            if values.max() > 255:
                image = Image.fromarray(np.rint(values / 257.0).clip(0, 255).astype(np.uint8))
        image = super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)  # type: ignore[misc]
        # Before transformers 5.20 or so only PIL images were converted, not grey arrays.
        return image[[0, 0, 0]] if do_convert_rgb and image.shape[0] == 1 else image


class DDePImageProcessorPil(DDePImageProcessorMixin, SegformerImageProcessorPil):
    """Processes images and segmentation maps for DDeP models with Pillow.

    Resizes to 512x512 by default, as batches of any images need; for native resolution (the model takes any size)
    use `do_resize=False`, for a kept aspect ratio `size={"shortest_edge": 512}`.

    Example:
        >>> import numpy as np
        >>> image, mask = np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.uint8)
        >>> batch = DDePImageProcessorPil(do_resize=False)(image, mask, return_tensors="pt")
        >>> batch["pixel_values"].shape, batch["labels"].shape
        (torch.Size([1, 3, 300, 400]), torch.Size([1, 300, 400]))
    """


def _add_channel(images: Any) -> Any:
    """Gives grey arrays `(height, width)` the channel axis without which transformers does not take them."""
    if isinstance(images, (list, tuple)):
        return [_add_channel(image) for image in images]
    return images[None] if getattr(images, "ndim", None) == 2 else images


def _list_of_maps(maps: Any) -> list[Any]:
    """Lists the maps of an argument: a single map, a batch as one array, or a sequence."""
    if isinstance(maps, (list, tuple)):
        return list(maps)
    is_batch = not isinstance(maps, Image.Image) and getattr(maps, "ndim", 2) == 3
    return list(maps) if is_batch else [maps]


def _to_class_ids(segmentation_map: Any, index: int) -> np.ndarray:
    """Turns one map into int64 class ids `(height, width)`; `index` names it in errors."""
    if isinstance(segmentation_map, torch.Tensor):
        segmentation_map = segmentation_map.cpu().numpy()
    elif not isinstance(segmentation_map, (np.ndarray, Image.Image)):
        kind = type(segmentation_map).__name__
        raise ValueError(f"Segmentation map {index} is a {kind}: pass a PIL image, an array or a tensor.")
    array = np.asarray(segmentation_map)
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise ValueError(
            f"Segmentation map {index} has shape {array.shape}: it needs one class id a pixel, (height, width). Turn "
            "a colour-coded mask into ids first."
        )
    class_ids = array.astype(np.int64)
    if np.issubdtype(array.dtype, np.floating) and not np.array_equal(class_ids, array):
        raise ValueError(
            f"Segmentation map {index} holds fractions ({array.min():g} to {array.max():g}), not class ids: it looks "
            "rescaled or interpolated."
        )
    return class_ids


def _resize_nearest(class_ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes `(height, width)` ids by the nearest pixel centre, in whole numbers and so without rounding errors."""
    old_height, old_width = class_ids.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return class_ids[rows[:, None], columns]


def _reduce_labels(class_ids: np.ndarray) -> np.ndarray:
    """Drops class 0: it becomes 255, 255 stays, other ids go down by one."""
    return np.where((class_ids == 0) | (class_ids == IGNORE_INDEX), IGNORE_INDEX, class_ids - 1)


__all__ = ["DDePImageProcessorKwargs", "DDePImageProcessorPil"]
