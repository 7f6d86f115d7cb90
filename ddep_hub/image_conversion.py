# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Images of any mode and depth as upright 8-bit RGB: the same values in training, prediction and image processors."""

import re
import struct

import numpy as np
from PIL import Image


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
# Where an orientation may stand.
EXIF_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1..8. No other tag is read, so that none that is damaged matters."""
    if image.format == "TIFF":
        return 1  # Pillow has turned it
    block = image.info.get("exif", b"")
    if "Raw profile type exif" in image.info:  # how ImageMagick writes it into a PNG: three lines, then hexadecimals
        digits = "".join(str(image.info["Raw profile type exif"]).split("\n")[3:])
        block = bytes.fromhex(digits) if re.fullmatch("([0-9a-fA-F]{2})+", digits) else block
    block = block[6:] if block.startswith(b"Exif\0\0") else block
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    try:
        first, count = 0, 0
        if order is not None:
            (first,) = struct.unpack_from(f"{order}I", block, 4)
            (count,) = struct.unpack_from(f"{order}H", block, first)
        for place in range(first + 2, first + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", block, place)
            if tag == 0x0112 and kind in (3, 4):
                (value,) = struct.unpack_from(f"{order}{'H' if kind == 3 else 'I'}", block, place + 8)
                return value if value in ORIENTATIONS else 1
    except struct.error:
        pass  # the block ends too early
    xmp = image.info.get("xmp", b"")
    found = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp if isinstance(xmp, bytes) else str(xmp).encode())
    return int(found[1]) if found else 1


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its orientation says, see [`orientation`]; the result says none."""
    image.load()
    transposed, left_right, top_bottom = ORIENTATIONS[orientation(image)]
    turned = image
    if left_right:
        turned = turned.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if top_bottom:
        turned = turned.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if transposed:
        turned = turned.transpose(Image.Transpose.TRANSPOSE)
    if turned is not image:
        turned.info = {key: value for key, value in turned.info.items() if key not in EXIF_KEYS}
    return turned


def eight_bits(values: np.ndarray, name: str) -> np.ndarray:
    """Scales pixel values of any type to 0..255.

    Bilevel values become 0 and 255. 16-bit values are divided by 257. Wider integers are taken as 8 bits if none is
    above 255, else as 16 bits. Floats are taken as 0..1 if none is above 1, else as 0..255.

    Args:
        values: Array of any shape.
        name: What errors call the image.

    Raises:
        ValueError: Values are outside of their range.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    values = values.astype(np.float32 if values.dtype == np.float16 else values.dtype)
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        limit = 1.0 if high <= 1.0 else 255.0
    else:
        limit = 65535.0 if (values.dtype.itemsize == 2 and values.dtype.kind == "u") or high > 255.0 else 255.0
    if not (low >= 0.0 and high <= limit):
        raise ValueError(
            f"{name} holds values from {low:g} to {high:g}, outside 0..{limit:g}; convert it to an 8-bit image"
        )
    return np.asarray(np.rint(values.astype(np.float64) * (255.0 / limit)), dtype=np.uint8)


def to_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """Turns an image of any mode into RGB, as in training: see [`eight_bits`]; transparent pixels turn white.

    Args:
        image: An upright PIL image.
        name: What errors call the image.

    Raises:
        ValueError: See [`eight_bits`].
    """
    if image.mode.startswith("I") or image.mode == "F":
        image = Image.fromarray(eight_bits(np.asarray(image), name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


__all__ = ["ORIENTATIONS", "eight_bits", "orientation", "to_rgb", "upright"]
