"""Decodes mask files: images, and arrays of NumPy."""

import os
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from ddep_hub.image_conversion import warn_once
from ddep_hub.orientation import apply_orientation
from ddep_hub.tiff import has_inverted_labels, is_reduced_by_pillow, num_pages

from .classes import Color
from .image_io import BadFileError, File, damaged_error, file_name, is_array, open_image


class DecodedMask(NamedTuple):
    """A decoded mask.

    Args:
        image: The mask, upright.
        format: Pillow's name of the file's format.
        white: What the file has for white, where Pillow stretches its greys to 255, or to 65535 in modes of integers.
        is_lossy: Whether its compression changes values: JPEG, also in a TIFF, or WebP with loss.
    """

    image: Image.Image
    format: str | None
    white: int | None = None
    is_lossy: bool = False


def load_mask(file: File) -> DecodedMask:
    """Decodes a mask: an image, or an array (.npy) of numbers (H, W) or of colours (H, W, 3).

    Raises a `BadFileError` for anything else, such as an image of several pages.
    """
    if is_array(file) and isinstance(file, str | Path):
        return _load_array(file)
    name = file_name(file)
    with open_image(file, "mask") as image:
        if (pages := num_pages(image)) > 1:
            raise BadFileError(f"{name} has {pages} pages; save each page as a separate mask, or merge them", name)
        packing = image.tile[0].args if image.tile else None
        mode, *values = packing if isinstance(packing, tuple) else (packing,)
        is_scaled = image.format == "PPM" and mode in ("L", "I") and values
        white_level = values[0] if is_scaled else {"L;2": 3, "L;4": 15}.get(mode or "")
        is_lossy = image.format == "JPEG" or image.info.get("compression") in ("jpeg", "tiff_jpeg")
        if image.format == "WEBP" and image.fp is not None:
            is_lossy = _is_lossy_webp(image.fp)
        is_reduced, upright = is_reduced_by_pillow(image), apply_orientation(image)
        if is_reduced and not np.asarray(upright).any():
            warn_once(
                "deep mask",
                name,
                f"{name} has colours of 16 bits, and the 8 bits that are read are all 0. If it holds ids, as masks of "
                "SYNTHIA do, save them with one number per pixel.",
            )
        if has_inverted_labels(image):
            upright = ImageOps.invert(upright)
        return DecodedMask(upright, image.format, white_level, is_lossy)


def _is_lossy_webp(file: IO[bytes]) -> bool:
    """Whether a WebP has a chunk of pixels that are compressed with loss."""
    file.seek(12)
    while len(header := file.read(8)) == 8:
        if header[:4] == b"VP8 ":
            return True
        size = int.from_bytes(header[4:], "little")
        file.seek(size + size % 2, os.SEEK_CUR)
    return False


def _load_array(file: str | Path) -> DecodedMask:
    try:
        values = np.load(file, allow_pickle=False)
    except (EOFError, ValueError, zipfile.BadZipFile) as error:
        if "pickle" not in str(error):
            raise damaged_error(file, error, "array") from error
        problem = "holds Python objects; save the mask in it as PNG, TIFF or an array of whole numbers"
        raise BadFileError(f"{file} {problem}", file) from error  # as Cellpose's `_seg.npy`
    if not isinstance(values, np.ndarray):
        raise BadFileError(f"{file} is an archive of arrays; save the mask in it as an array", file)
    shape = values.shape
    if values.ndim == 3 and 1 in (shape[0], shape[-1]):
        values = values[0] if shape[0] == 1 else values[..., 0]
    is_color = values.ndim == 3 and shape[-1] == 3 and values.dtype == np.uint8
    if not values.size or not (is_color or (values.ndim == 2 and values.dtype.kind in "buif")):
        raise BadFileError(
            f"{file} holds {values.dtype} of shape {shape}, but masks hold one class id per pixel; save it as an "
            "array (height, width) of whole numbers",
            file,
        )
    if values.dtype not in (bool, np.uint8):
        is_whole = values.dtype.kind != "f" or (np.isfinite(values).all() and (values == np.rint(values)).all())
        if is_whole and not -(2**31) <= values.min() <= values.max() < 2**31:
            raise BadFileError(f"{file} holds values beyond 32 bits, which cannot be class ids", file)
        values = values.astype(np.int32 if is_whole else np.float32)  # fractions are refused later
    return DecodedMask(Image.fromarray(values), "NPY")


def check_lossless(mask: DecodedMask, path: str | Path) -> None:
    """Raises a BadFileError for a mask whose compression changes values."""
    if mask.is_lossy:
        kind = "a JPEG" if mask.format == "JPEG" else f"a {mask.format} compressed with loss"
        raise BadFileError(f"{path} is {kind}, which changes class ids; save the mask as PNG", path)


def palette_colors(image: Image.Image) -> dict[int, Color]:
    """The colours of the indices that occur in a palette image; indices beyond its palette have none."""
    palette = image.getpalette("RGB") or []
    indices = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256)).tolist()
    colors = {index: palette[3 * index : 3 * index + 3] for index in indices if 3 * index < len(palette)}
    return {index: (red, green, blue) for index, (red, green, blue) in colors.items()}


def mask_colors(image: Image.Image, path: str | Path) -> np.ndarray:
    """The colours of a mask, uint8 (H, W, 3); fully transparent pixels are black.

    Raises a `BadFileError` if all pixels are transparent but have different colours.
    """
    if image.mode != "RGBA":
        return np.asarray(image.convert("RGB"))
    pixels = np.array(image)
    if not pixels[..., 3].any() and np.ptp(pixels[..., :3], axis=(0, 1)).any():
        raise BadFileError(f"{path} is fully transparent, but has colours; save it without transparency", path)
    pixels[pixels[..., 3] == 0] = 0
    return pixels[..., :3]
