# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Images and segmentation maps for DDeP models, on Pillow and NumPy.

The code that both backends share is here, so that this file also runs as remote code without torchvision.
"""

import contextlib
import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from transformers import BatchFeature, SegformerImageProcessorPil
from transformers.image_utils import (
    ChannelDimension,
    ImageInput,
    PILImageResampling,
    get_image_size,
    infer_channel_dimension_format,
    load_image,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.processing_utils import ImagesKwargs

from .image_conversion import (
    channels_first,
    extract_channels,
    read_channels,
    to_8_bit,
    to_rgb,
    validate_channel_order,
)
from .orientation import apply_orientation
from .segmentation import (
    class_logits,
    flatten,
    list_maps,
    reduce_labels,
    resize_nearest,
    to_class_ids,
    validate_target_sizes,
)
from .shipped import resolve_name, suggest_shipped_models
from .tiff import is_misread_by_pillow, num_pages


class DDePImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Options of the processors in addition to transformers' own.

    Attributes:
        do_reduce_labels: Whether id 0 of a map means "no class": 0 becomes 255 (ignored), every other id drops by one,
            255 stays. ADE20K's 150-class maps need it.
        channel_order: Order of the image's channels in `pixel_values`, counted from 0: `[2, 1, 0]` for BGR.
            `image_mean` and `image_std` are in the image's order.
    """

    do_reduce_labels: bool
    channel_order: list[int] | None


class DDePImageProcessorMixin:
    """The part of image processing that does not depend on the backend.

    Images are resized, rescaled and normalised by transformers (SegFormer's processor). Maps are handled here: they
    are resized to the processed image's size with nearest neighbour, identically in both backends, for ids of any
    integer type.
    """

    valid_kwargs = DDePImageProcessorKwargs
    resample = PILImageResampling.BILINEAR
    # The values of the ResNet-ViT hybrids' ImageNet-21k weights; other encoders have their own.
    image_mean = (0.5, 0.5, 0.5)
    image_std = (0.5, 0.5, 0.5)
    # A fixed size lets images of any size share a batch. The model itself does not need one.
    do_resize = True
    size: ClassVar[dict[str, int]] = {"height": 512, "width": 512}
    do_convert_rgb = True
    do_reduce_labels = False
    channel_order: list[int] | None = None

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers; also takes the name of a shipped model."""
        with suggest_shipped_models(pretrained_model_name_or_path):
            return super().get_image_processor_dict(resolve_name(pretrained_model_name_or_path), **kwargs)  # type: ignore[misc]

    def preprocess(
        self, images: ImageInput, segmentation_maps: Any = None, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Converts images, and their segmentation maps, to model inputs.

        16-bit and 32-bit images, floats, palettes and transparency are read as in training, see [`to_rgb`].
        transformers itself clips 16-bit images and drops transparency when it reads a URL and, in a pipeline, PIL
        images too: pass `to_rgb(image)` there. If the processor's `image_mean` does not have 3 channels, images must
        have as many channels as it has, see [`channels_first`]; for a single channel, with `do_convert_rgb=False`.

        Args:
            images: One image or several: PIL of any mode, array or tensor `(height, width)`, `(height, width,
                channels)` or `(channels, height, width)`, path or URL. The EXIF orientation of PIL images and files is
                applied.
            segmentation_maps: One map per image, of the image's size: PIL with one channel (palette images are read as
                indices), array or tensor `(height, width)` of class ids. A three-dimensional array is a batch of maps.
            return_tensors: `"pt"` or `"np"` to stack the results; None for lists, whose items may differ in size.
            **kwargs: Options for this call instead of the processor's own, such as `do_resize=False` (native
                resolution) or `size={"shortest_edge": 512}` (pixels; keeps the aspect ratio). With `do_rescale=False`,
                float arrays are not changed.

        Returns:
            `pixel_values` of shape `(batch, channels, height, width)`, float32 unless images are neither rescaled nor
            normalised; with maps also `labels`, int64 of shape `(batch, height, width)`.

        Raises:
            TypeError: The input is not an image.
            ValueError: Values are out of range; `channel_order` does not fit the channels; maps do not match the
                images in number, channels or size, or have fractional values; images to be stacked differ in size.
        """
        if isinstance(images, (list, tuple)) and not images:
            raise ValueError("images: got an empty list. Give at least one image.")
        options = {name: kwargs.get(name, getattr(self, name)) for name in ("do_rescale", "do_convert_rgb")}
        mean, layout = kwargs.get("image_mean", self.image_mean), kwargs.get("input_data_format")
        channels = len(mean) if isinstance(mean, (list, tuple)) else 3
        if channels == 3 or (channels == 1 and options["do_convert_rgb"]):
            if channels == 1:  # a single mean, which transformers' Pillow backend does not accept
                values = {name: kwargs.get(name, getattr(self, name)) for name in ("image_mean", "image_std")}
                kwargs |= {name: 3 * [*value] for name, value in values.items() if np.shape(value) == (1,)}
            images = _decode(images, channels, layout, **options)
        else:
            rescaled = bool(options["do_rescale"])
            images, layout = _to_channels(images, channels, layout, rescaled=rescaled), "channels_first"
            kwargs |= {"do_convert_rgb": False, "input_data_format": layout}
        pixel_values = super().preprocess(images, None, return_tensors=None, **kwargs)["pixel_values"]  # type: ignore[misc]
        order = kwargs.get("channel_order", self.channel_order)
        if order:
            pixel_values = [pixels[validate_channel_order(order, len(pixels))] for pixels in pixel_values]
        data = {"pixel_values": pixel_values}
        if segmentation_maps is not None:
            data["labels"] = self._process_labels(segmentation_maps, images, pixel_values, layout, **kwargs)
        sizes = {tuple(pixels.shape[-2:]) for pixels in pixel_values}
        if return_tensors is not None and len(sizes) > 1:
            raise ValueError(
                f"Images of {len(sizes)} sizes cannot be stacked, among them {sorted(sizes)[:3]} (height, width). Set "
                'do_resize=True with size={"height": ..., "width": ...}, or pass the images one by one.'
            )
        return BatchFeature(data, tensor_type=return_tensors)

    def _process_labels(self, maps: Any, images: Any, pixel_values: Any, layout: Any, **kwargs: Any) -> list[Any]:
        """Checks maps against their images, and resizes them to the processed images."""
        maps, images = list_maps(maps), flatten(images)
        if len(maps) != len(pixel_values):
            raise ValueError(
                f"{len(pixel_values)} image(s) came with {len(maps)} segmentation map(s): pass one map per image, "
                "each (height, width)."
            )
        labels = []
        for index, (segmentation_map, image, pixels) in enumerate(zip(maps, images, pixel_values, strict=True)):
            class_ids, size = to_class_ids(segmentation_map, index), _image_size(image, layout)
            if class_ids.shape != size:
                raise ValueError(
                    f"Segmentation map {index} is {class_ids.shape[0]}x{class_ids.shape[1]} (height x width), but its "
                    f"image is {size[0]}x{size[1]}. The sizes must match."
                )
            if kwargs.get("do_resize", self.do_resize):
                class_ids = resize_nearest(class_ids, *pixels.shape[-2:])
            if kwargs.get("do_reduce_labels", self.do_reduce_labels):
                class_ids = reduce_labels(class_ids)
            # On the image's device, for a processor that runs on a GPU (`device="cuda"`).
            is_tensor = isinstance(pixels, torch.Tensor)
            labels.append(torch.from_numpy(class_ids).to(pixels.device) if is_tensor else class_ids)
        return labels

    def post_process_semantic_segmentation(self, outputs: Any, target_sizes: Any = None, **kwargs: Any) -> list[Any]:
        """Converts logits to segmentation maps.

        Args:
            outputs: A model's output, with `logits` (batch, num_labels, h, w).
            target_sizes: Height and width of each map, a list of pairs or an array or tensor `(batch, 2)`; by default
                those of the logits.
            **kwargs: Passed on to transformers.

        Returns:
            Class ids (height, width), int64, one map per image. With a single label they are 0 (background) and 1.

        Raises:
            ValueError: `target_sizes` has the wrong form; or a pipeline requests the semantic maps of a single label,
                which it would name incorrectly.
        """
        if outputs.logits.shape[1] == 1 and hasattr(outputs, "target_size"):
            raise ValueError('subtask: "semantic" has no name for the background of a single label. Leave it out.')
        outputs = SemanticSegmenterOutput(logits=class_logits(outputs.logits))
        if target_sizes is not None:
            target_sizes = validate_target_sizes(target_sizes, len(outputs.logits))
        return super().post_process_semantic_segmentation(outputs, target_sizes, **kwargs)  # type: ignore[misc]

    def post_process_panoptic_segmentation(
        self, outputs: Any, target_sizes: Any = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Converts logits to maps whose segments name their label, as `pipeline("image-segmentation")` needs them.

        Every class in an image is one segment; the background of a single label is not a segment.

        Args:
            outputs: A model's output, with `logits` (batch, num_labels, h, w).
            target_sizes: Height and width of each map; by default those of the logits.
            **kwargs: Thresholds of other models, ignored.

        Returns:
            For each image its `segmentation`, class ids (height, width), and `segments_info`, a list of `id`,
            `label_id` and `score` (always `None`).
        """
        logits = class_logits(outputs.logits)
        background = logits.shape[1] - outputs.logits.shape[1]
        maps = self.post_process_semantic_segmentation(SemanticSegmenterOutput(logits=logits), target_sizes)
        return [
            {
                "segmentation": ids,
                "segments_info": [
                    {"id": index, "label_id": index - background, "score": None}
                    for index in ids.unique().tolist()
                    if index >= background
                ],
            }
            for ids in maps
        ]

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> Any:
        """Converts one input to a `(channels, height, width)` tensor or array; greyscale ones get three channels."""
        image = super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)  # type: ignore[misc]
        # Before about transformers 5.20, only PIL images were converted, not grey arrays.
        return image[[0, 0, 0]] if do_convert_rgb and image.shape[0] == 1 else image


class DDePImageProcessorPil(DDePImageProcessorMixin, SegformerImageProcessorPil):
    """Processes images and segmentation maps for DDeP models with Pillow.

    Resizes to 512x512 by default, so that any images can be batched. For native resolution (the model takes any size)
    use `do_resize=False`; to keep the aspect ratio, `size={"shortest_edge": 512}`.

    Example:
        >>> import numpy as np
        >>> image, mask = np.zeros((300, 400, 3), np.uint8), np.zeros((300, 400), np.uint8)
        >>> batch = DDePImageProcessorPil(do_resize=False)(image, mask, return_tensors="pt")
        >>> batch["pixel_values"].shape, batch["labels"].shape
        (torch.Size([1, 3, 300, 400]), torch.Size([1, 300, 400]))
    """

    def resize(self, image: np.ndarray, size: Any, resample: Any = None, **kwargs: Any) -> np.ndarray:
        """As in transformers, which handles only 8 bits and 1 or 3 channels; others are resized per channel."""
        if image.dtype == np.uint8 and len(image) in (1, 3):
            return super().resize(image, size, resample, **kwargs)
        height, width = super().resize(np.zeros((1, *image.shape[1:]), np.uint8), size, resample, **kwargs).shape[1:]
        channels = [
            Image.fromarray(channel.astype(np.float32)).resize((width, height), resample or self.resample)
            for channel in image
        ]
        resized = np.stack([np.asarray(channel) for channel in channels])
        return np.rint(resized).clip(0, 255).astype(np.uint8) if image.dtype == np.uint8 else resized


def _check_image(image: Any) -> None:
    """Raises an error for anything but a PIL image, path, URL, array or tensor."""
    if not isinstance(image, (np.ndarray, torch.Tensor)):
        raise TypeError(
            f"images: got {type(image).__name__}. Pass PIL images, arrays, tensors, paths or URLs, one or a list."
        )


def _decode(images: Any, channels: int, layout: Any, *, do_rescale: bool | None, do_convert_rgb: bool | None) -> Any:
    """Converts any kind of image to 8-bit RGB images or arrays; lists stay lists.

    Without `do_rescale`, float arrays are not changed; without `do_convert_rgb`, no arrays are. `layout` is the order
    of an array's axes, if known.
    """
    options = {"do_rescale": do_rescale, "do_convert_rgb": do_convert_rgb}
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        return [_decode(image, channels, layout, **options) for image in images]
    image = images
    if isinstance(image, (str, Path)):
        if not os.path.isfile(image):
            return load_image(str(image))  # a URL or base64
        with contextlib.suppress(UnidentifiedImageError), Image.open(image) as file:
            if file.format != "TIFF" or not (num_pages(file) > 1 or is_misread_by_pillow(file)):
                return _decode(file, channels, layout, **options)
        # As in training: an array, or a TIFF that Pillow cannot read, or reads incorrectly.
        pixels = read_channels(image, 3, str(image))
        return np.moveaxis(pixels, 0, -1) if layout == ChannelDimension.LAST else pixels
    if isinstance(image, Image.Image):
        image = apply_orientation(image)
        if do_convert_rgb:
            return to_rgb(image)
        is_high_depth = image.mode.startswith("I") or image.mode == "F"
        return Image.fromarray(to_8_bit(np.asarray(image), "The image")) if is_high_depth else image
    _check_image(image)
    if isinstance(image, torch.Tensor):
        if image.dtype == torch.uint8 and image.ndim == 3 and 3 in (image.shape[0], image.shape[-1]):
            return image  # stays on its device
        values = _to_numpy(image)
        return torch.from_numpy(_decode(values, channels, layout, **options)).to(image.device)
    if image.ndim == 2:
        image = image[..., None] if layout == ChannelDimension.LAST else image[None]
        layout = layout or ChannelDimension.FIRST
    if do_convert_rgb and (do_rescale or image.dtype.kind != "f"):
        image = to_8_bit(image, "The image")
        axis = 0 if _infer_layout(image, layout) == ChannelDimension.FIRST else -1
        if image.shape[axis] in (2, 4) and image.shape[axis] != channels:
            # Pillow guesses the mode, LA or RGBA, from the number of channels.
            rgb = np.array(to_rgb(Image.fromarray(np.ascontiguousarray(np.moveaxis(image, axis, -1)))))
            image = np.moveaxis(rgb, -1, axis)
    return np.ascontiguousarray(image)  # torch does not support negative strides, as in `bgr[..., ::-1]`


def _to_channels(images: Any, channels: int, layout: Any, *, rescaled: bool) -> Any:
    """Converts images that are not RGB to arrays or tensors `(channels, height, width)`; lists stay lists."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", None) == 4:
        return [_to_channels(image, channels, layout, rescaled=rescaled) for image in images]
    if isinstance(images, (str, Path)):
        if "://" in str(images):
            raise ValueError(f"{images}: transformers reads URLs as RGB. Pass the opened image.")
        return read_channels(images, channels, str(images))
    if isinstance(images, Image.Image):
        return extract_channels(images, channels, "The image", rescaled=rescaled)
    _check_image(images)
    is_tensor = isinstance(images, torch.Tensor)
    values = _to_numpy(images) if is_tensor else images
    axis = None if layout is None else (0 if layout == ChannelDimension.FIRST else -1)
    values = channels_first(values, channels, "The image", axis, rescaled=rescaled)
    return torch.from_numpy(values).to(images.device) if is_tensor else values


def _to_numpy(image: torch.Tensor) -> np.ndarray:
    image = image.detach()
    return (image.float() if image.dtype == torch.bfloat16 else image).cpu().numpy()  # NumPy has no bfloat16


def _infer_layout(image: Any, layout: Any) -> Any:
    return layout or infer_channel_dimension_format(image, num_channels=(1, 2, 3, 4))


def _image_size(image: Any, layout: Any) -> tuple[int, int]:
    """Height and width of an image from [`_decode`]."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    return get_image_size(image, channel_dim=_infer_layout(image, layout))


__all__ = ["DDePImageProcessorKwargs", "DDePImageProcessorPil"]
