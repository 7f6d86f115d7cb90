"""JPEG files, of which only what a crop needs is decoded: at a reduced scale where that is enough."""

from pathlib import Path

import torch
from PIL import Image
from torchvision.io import decode_jpeg
from torchvision.transforms.v2 import functional

from ddep_hub.image_conversion import ORIENTATIONS, orientation

from .image_io import Undecoded, opened_image
from .preprocessing import resize


def jpeg_size(file: str | Path | Undecoded) -> tuple[int, int] | None:
    """The size of an upright JPEG, from its header.

    Args:
        file: Its path, or an undecoded file.

    Returns:
        (height, width) in pixels, with the EXIF orientation applied; None for any other kind of image.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is empty, damaged or no image.
    """
    with opened_image(file) as image:
        if image.format != "JPEG":
            return None
        transposed, _, _ = ORIENTATIONS[orientation(image)]
        return image.size if transposed else (image.height, image.width)


def decode_jpeg_part(file: Undecoded, part: tuple[int, int, int, int], size: tuple[int, int]) -> torch.Tensor | None:
    """Decodes a JPEG at the coarsest scale at which a part of it is no smaller than `size`, and scales the part to it.

    Args:
        file: A file with its bytes, see [`with_bytes`].
        part: (top, left, height, width) of the part, in pixels of the upright image at full scale.
        size: (height, width) of the result.

    Returns:
        uint8 (3, *size) in 0..255, upright; None for a JPEG of an uncommon kind, which [`decode_image`] reads.

    Raises:
        BadFileError: It is empty, cut off, damaged or no image.
    """
    top, left, height, width = part
    factor = next((factor for factor in (8, 4, 2) if height >= factor * size[0] and width >= factor * size[1]), None)
    if factor is None:
        pixels = _decode_whole(file)
        return None if pixels is None else resize(pixels[:, top : top + height, left : left + width], size)
    with opened_image(file) as image:
        transposed, left_right, top_bottom = ORIENTATIONS[orientation(image)]
        # The part is cut out of the stored image: where its side is no multiple of the factor, the last reduced pixel
        # stands for less than the others, and turning the image would shift them all.
        x, y, across, down = (top, left, height, width) if transposed else (left, top, width, height)
        if left_right:
            x = image.width - x - across
        if top_bottom:
            y = image.height - y - down
        if image.draft(None, (image.width // factor, image.height // factor)) is None:
            return None  # stored in a way that the decoder cannot reduce
        image.load()
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        scaled = rgb.resize(
            size if transposed else size[::-1],
            Image.Resampling.BILINEAR,
            box=(x / factor, y / factor, (x + across) / factor, (y + down) / factor),
        )
    pixels = functional.pil_to_tensor(scaled)
    mirrored = [axis for axis, is_mirrored in ((-1, left_right), (-2, top_bottom)) if is_mirrored]
    pixels = pixels.flip(mirrored) if mirrored else pixels
    return pixels.transpose(-1, -2) if transposed else pixels


def _decode_whole(file: Undecoded) -> torch.Tensor | None:
    """A whole JPEG by torchvision, which gives the same pixels as Pillow in half the time; None for uncommon kinds."""
    with opened_image(file) as image:
        common = image.format == "JPEG" and image.mode == "RGB" and orientation(image) == 1
    # What is cut off would come back grey, without an error.
    if not common or not file["bytes"].endswith(b"\xff\xd9"):
        return None
    try:
        return decode_jpeg(torch.frombuffer(bytearray(file["bytes"]), dtype=torch.uint8))
    except RuntimeError:
        return None
