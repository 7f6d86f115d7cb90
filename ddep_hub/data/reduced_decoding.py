"""Parts of JPEG files, decoded at a reduced scale where the full one would be scaled down again.

A JPEG is stored as frequencies of 8x8 blocks; the decoder can leave the higher ones out and give 4x4, 2x2 or 1x1
pixels a block, which costs a fraction of the time.
"""

from pathlib import Path

import torch
from PIL import ExifTags, Image
from torchvision.transforms.v2 import functional

from .decoding import Undecoded, opened_image


# EXIF orientation to (transposed, mirrored left-right, mirrored top-bottom): how the stored image differs from the
# upright one, whose transposition comes last when it is made upright.
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (False, True, True),
    4: (False, False, True),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


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
        transposed, _, _ = _orientation(image)
        return image.size if transposed else (image.height, image.width)


def decode_reduced(
    file: str | Path | Undecoded, part: tuple[int, int, int, int], size: tuple[int, int]
) -> torch.Tensor | None:
    """Decodes a JPEG at the coarsest scale at which a part of it is no smaller than `size`, and scales the part to it.

    Args:
        file: Its path, or an undecoded file.
        part: (top, left, height, width) of the part, in pixels of the upright image at full scale.
        size: (height, width) of the result.

    Returns:
        uint8 (3, *size) in 0..255, upright; None where the part is less than twice as large as `size`.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is empty, cut off, damaged or no image.
    """
    top, left, height, width = part
    factor = next((factor for factor in (8, 4, 2) if height >= factor * size[0] and width >= factor * size[1]), None)
    if factor is None:
        return None
    with opened_image(file) as image:
        transposed, left_right, top_bottom = _orientation(image)
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
    pixels: torch.Tensor = functional.pil_to_tensor(scaled)
    mirrored = [axis for axis, is_mirrored in ((-1, left_right), (-2, top_bottom)) if is_mirrored]
    pixels = pixels.flip(mirrored) if mirrored else pixels
    return pixels.transpose(-1, -2) if transposed else pixels


def _orientation(image: Image.Image) -> tuple[bool, bool, bool]:
    return ORIENTATIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1), ORIENTATIONS[1])
