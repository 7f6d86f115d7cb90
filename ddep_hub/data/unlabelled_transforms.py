"""Random transforms of unlabelled images, which decode only the part needed for a crop.

JPEG files are decoded at a reduced scale where that is enough.
"""

import copy
import dataclasses
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from ddep_hub.orientation import ORIENTATIONS, read_orientation, turn_upright

from .image_io import File, Undecoded, decode_image, is_array, is_tiff, load_bytes, open_image
from .preprocessing import AnyImage, Size, resize, to_tensor
from .segmentation_datasets import Sample
from .transforms import STRONG, STRONG_INTENSITIES, SegmentationTrainTransform, is_rgb, size_pair


class PretrainTransform:
    """Random resized crop and horizontal flip.

    For an undecoded sample, the part is drawn first, and a JPEG is decoded at the coarsest of the scales 1/2, 1/4 and
    1/8 at which the part is no smaller than the crop: the part is the same, but its pixels are resampled differently.

    Args:
        crop_size: Size of the result in pixels, (height, width) or one number for both.
        scale: Range of the part's area, as a fraction of the image's.
        ratio: Range of the part's aspect ratio (width / height), drawn log-uniformly.
        horizontal_flip: Probability of a horizontal flip.
        num_channels: Channels of images that are decoded here.
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
        self.crop_size = size_pair(crop_size)
        self.crop = v2.RandomResizedCrop(self.crop_size, scale=scale, ratio=ratio)
        self.horizontal_flip = horizontal_flip

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms a sample whose `image` is decoded (PIL RGB or [`ChannelImage`]) or undecoded.

        Returns `pixel_values` of `crop_size`, uint8 or float32 (C, h, w) in 0..255.
        """
        file = image = sample["image"]
        undecoded = not isinstance(image, AnyImage)
        header = None
        if undecoded and self.num_channels == 3 and not is_array(file) and not is_tiff(file):
            file = load_bytes(file)
            header = read_jpeg_header(file)
        if undecoded and header is None:
            image = decode_image(file, self.num_channels)
        height, width = header.upright_size if header else (image.height, image.width)
        crop_params = self.crop.make_params([torch.empty(3, height, width, device="meta")])
        top, left, height, width = (crop_params[name] for name in ("top", "left", "height", "width"))
        box = (top, left, height, width)
        pixels = decode_jpeg_part(file, header, box, self.crop_size) if header else None
        if pixels is None:
            if header is not None:
                image = decode_image(file)
            pixels = to_tensor(image.crop((left, top, left + width, top + height)))
            pixels = resize(pixels, self.crop_size)
        if torch.rand(()).item() < self.horizontal_flip:
            pixels = pixels.flip(-1)
        return {"pixel_values": pixels.contiguous()}


class UnlabelledTransform:
    """Random scale, crop, flips and rotations as in `geometry`; with `strong`, also a strongly augmented view."""

    def __init__(self, geometry: SegmentationTrainTransform, *, strong: bool = False, num_channels: int = 3) -> None:
        self.num_channels = num_channels
        self.geometry = copy.copy(geometry)
        self.geometry.class_crops = 0.0
        if geometry.augmentation is not None:
            self.geometry.augmentation = dataclasses.replace(
                geometry.augmentation, photometric=torch.nn.Identity(), intensities=torch.nn.Identity()
            )
        self.strong = strong

    def __call__(self, sample: Sample) -> dict[str, torch.Tensor]:
        """Transforms a sample whose `image` is decoded (PIL RGB or [`ChannelImage`]) or undecoded.

        Returns `pixel_values`, uint8 or float32 (C, h, w); `inside`, bool (h, w), false on the border around a small
        image; and with `strong` also `strong`, the augmented `pixel_values` of the same crop.
        """
        image = sample["image"]
        if not isinstance(image, AnyImage):
            image = decode_image(image, self.num_channels)
        border = self.geometry.ignore_index
        # A broadcast constant, which takes no memory.
        mask = np.broadcast_to(np.int32(1 if border == 0 else 0), (image.height, image.width))
        example = self.geometry({"image": image, "annotation": mask})
        result = {"pixel_values": example["pixel_values"], "inside": example["labels"] != border}
        if self.strong:
            pixels = example["pixel_values"]
            result["strong"] = (STRONG if is_rgb(pixels) else STRONG_INTENSITIES)(pixels).contiguous()
        return result


class JpegHeader(NamedTuple):
    """The header of a JPEG: Pillow's mode, EXIF orientation, and (height, width) of the upright image."""

    mode: str
    orientation: int
    upright_size: tuple[int, int]


def read_jpeg_header(file: File) -> JpegHeader | None:
    """Reads the header of a JPEG; None for other formats."""
    with open_image(file) as image:
        if image.format != "JPEG":
            return None
        orientation = read_orientation(image)
        size = image.size if ORIENTATIONS[orientation][0] else (image.height, image.width)
        return JpegHeader(image.mode, orientation, size)


def decode_jpeg_part(
    file: Undecoded, header: JpegHeader, box: tuple[int, int, int, int], size: tuple[int, int]
) -> torch.Tensor | None:
    """Decodes a JPEG at the coarsest scale at which a part is no smaller than `size`, and resizes the part to it.

    `box` is (top, left, height, width) in pixels of the upright image at full scale, `size` is (height, width).
    Returns uint8 (3, *size) in 0..255, upright; None for a JPEG of an uncommon kind, which [`decode_image`] reads.
    """
    top, left, height, width = box
    factor = next((factor for factor in (8, 4, 2) if height >= factor * size[0] and width >= factor * size[1]), None)
    if factor is None:
        pixels = _decode_full(file, header)
        return None if pixels is None else resize(pixels[:, top : top + height, left : left + width], size)
    transposed, left_right, top_bottom = ORIENTATIONS[header.orientation]
    with open_image(file) as image:
        # The part is cropped from the stored image: if the side is not a multiple of the factor, the last reduced
        # pixel covers less than the others, and rotating the image would shift them all.
        x, y, crop_width, crop_height = (top, left, height, width) if transposed else (left, top, width, height)
        if left_right:
            x = image.width - x - crop_width
        if top_bottom:
            y = image.height - y - crop_height
        if image.draft(None, (image.width // factor, image.height // factor)) is None:
            return None  # the decoder cannot reduce this kind of JPEG
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        scaled = rgb.resize(
            size if transposed else size[::-1],
            Image.Resampling.BILINEAR,
            box=(x / factor, y / factor, (x + crop_width) / factor, (y + crop_height) / factor),
        )
    return functional.pil_to_tensor(turn_upright(scaled, header.orientation))


def _decode_full(file: Undecoded, header: JpegHeader) -> torch.Tensor | None:
    """Decodes a whole JPEG with torchvision, with Pillow's pixels in half the time; None for uncommon kinds."""
    # A truncated part would be read as grey, without an error.
    if header.mode != "RGB" or header.orientation != 1 or not file["bytes"].endswith(b"\xff\xd9"):
        return None
    try:
        from torchvision.io import decode_jpeg  # imported here, because releases after 0.29 will not have it
    except ImportError:
        return None
    try:
        return decode_jpeg(torch.frombuffer(bytearray(file["bytes"]), dtype=torch.uint8))
    except RuntimeError:
        return None
