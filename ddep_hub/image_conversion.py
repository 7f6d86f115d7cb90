# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Images of any mode and depth as upright 8-bit RGB: the same values in training, prediction and image processors."""

import struct

import numpy as np
from PIL import ExifTags, Image


TURN_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for an orientation.
EXIF_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation of an image; tags that cannot be read are ignored."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except (OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error):
        return image
    if orientation not in TURN_UPRIGHT:
        return image
    turned = image.transpose(TURN_UPRIGHT[orientation])
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


__all__ = ["eight_bits", "to_rgb", "upright"]
