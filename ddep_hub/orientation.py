# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Reads an image's orientation from EXIF or XMP, and rotates the image upright."""

import re
import struct

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile


# EXIF orientation to (transposed, mirrored left-right, mirrored top-bottom): how the stored image differs from the
# upright one. To make it upright, it is transposed last.
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
# Where an orientation may be stored.
EXIF_KEYS = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def read_orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1..8. No other tag is read, so that damaged ones do not matter."""
    if image.format == "TIFF":
        return 1  # already rotated by Pillow
    exif = image.info.get("exif", b"")
    if "Raw profile type exif" in image.info:  # as ImageMagick writes it to PNG: three lines, then hexadecimal digits
        digits = "".join(str(image.info["Raw profile type exif"]).split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch("([0-9a-fA-F]{2})+", digits) else exif
    exif = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    byte_order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        ifd_offset, count = 0, 0
        if byte_order is not None:
            (ifd_offset,) = struct.unpack_from(f"{byte_order}I", exif, 4)
            (count,) = struct.unpack_from(f"{byte_order}H", exif, ifd_offset)
        for entry_offset in range(ifd_offset + 2, ifd_offset + 2 + 12 * count, 12):
            tag, field_type = struct.unpack_from(f"{byte_order}HH", exif, entry_offset)
            if tag == 0x0112 and field_type in (3, 4):
                (value,) = struct.unpack_from(f"{byte_order}{'H' if field_type == 3 else 'I'}", exif, entry_offset + 8)
                return value if value in ORIENTATIONS else 1
    except struct.error:
        pass  # truncated
    xmp = image.info.get("xmp", b"")
    match = re.search(rb'tiff:Orientation(?:="|>)([1-8])', xmp if isinstance(xmp, bytes) else str(xmp).encode())
    return int(match[1]) if match else 1


def apply_orientation(image: Image.Image) -> Image.Image:
    """Applies an image's orientation, see [`read_orientation`], and removes it from the metadata."""
    if isinstance(image, TiffImageFile):
        filename, image.filename = image.filename, ""  # else Pillow maps the file with the size of the rotated image
        image.load()
        image.filename = filename
    image.load()
    upright = turn_upright(image, read_orientation(image))
    if upright is not image:
        upright.info = {key: value for key, value in upright.info.items() if key not in EXIF_KEYS}
    return upright


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Rotates and mirrors an image according to an EXIF orientation, 1..8."""
    transposed, left_right, top_bottom = ORIENTATIONS[orientation]
    if left_right:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if top_bottom:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image.transpose(Image.Transpose.TRANSPOSE) if transposed else image


def make_upright(values: np.ndarray, axes: str, orientation: int) -> np.ndarray:
    """Rotates and mirrors an array with rows Y and columns X in `axes` according to an EXIF orientation."""
    if not ("Y" in axes and "X" in axes):
        return values
    rows, columns = axes.index("Y"), axes.index("X")
    is_transposed, left_right, top_bottom = ORIENTATIONS.get(orientation, ORIENTATIONS[1])
    values = np.flip(values, columns) if left_right else values
    values = np.flip(values, rows) if top_bottom else values
    return values.swapaxes(rows, columns) if is_transposed else values
