# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Converts images of any mode and depth to upright 8-bit RGB, alike in training, prediction and image processors."""

import os
import warnings
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image

from .orientation import apply_orientation
from .tiff import (
    check_tiff,
    has_tifffile,
    is_inverted,
    is_reduced_by_pillow,
    looks_like_tiff,
    read_nodata,
    read_tiff,
)


_warned = set[tuple[str, str]]()  # kinds of warnings, and the folders that they were about
# A data set may have a folder for each image.
MAX_WARNED_FOLDERS = 10
MAX_COMPARED_FOLDERS = 1000
# The first image of integers that are not unsigned 8 or 16 bits in each folder, and what counts as white in it.
_white_levels: dict[str, tuple[str, float]] = {}


def to_8_bit(values: np.ndarray, name: str) -> np.ndarray:
    """Scales pixel values of any type to 0..255.

    Bilevel values become 0 and 255. 16-bit values are divided by 257; a warning names the first image that hardly
    uses more than a quarter of their range. Other integers are taken as 8 bits if none is above 255, else as 16 bits;
    a warning tells if that differs between the images of a folder.
    Floats are taken as 0..1 if none is above 1, else as 0..255; a warning names the first image whose values all are
    below 2.
    Raises a ValueError for values outside of their range; `name` is what errors call the image.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    values = values.astype(np.float32 if values.dtype == np.float16 else values.dtype)
    white = _white_level(values, name)
    if white == 65535.0:
        _warn_about_bit_depth(name, values)
        if values.dtype.kind == "u":  # rounded like the others, in a third of the time
            return ((values.astype(np.uint32) + np.uint32(128)) // np.uint32(257)).astype(np.uint8)
    return np.asarray(np.rint(values.astype(np.float64) * (255.0 / white)), dtype=np.uint8)


def _white_level(values: np.ndarray, name: str) -> float:
    """What counts as white, see [`to_8_bit`]."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        white = 1.0 if high <= 1.0 else 255.0
        if 1.0 < high < 2.0:
            warn_once(
                "overshoot",  # interpolation overshot values in 0..1
                name,
                f"{name} holds floats up to {high:g}. As some are above 1, they are read as 0..255 and are nearly "
                "black. If they should be in 0..1, clip them.",
            )
    else:
        is_16_bit = values.dtype.itemsize == 2 and values.dtype.kind == "u"
        white = 65535.0 if is_16_bit or high > 255.0 else 255.0
        if not is_16_bit and high > 0:
            _warn_about_mixed_depths(name, white)
    if not (low >= 0.0 and high <= white):
        raise ValueError(
            f"{name} holds values from {low:g} to {high:g}, outside 0..{white:g}; convert it to an 8-bit image"
        )
    return white


def _warn_about_mixed_depths(name: str, white: float) -> None:
    """Warns if images of wide integers in a folder are read as 8 bits here and as 16 bits there."""
    folder = _folder(name)
    if folder not in _white_levels and len(_white_levels) == MAX_COMPARED_FOLDERS:
        del _white_levels[next(iter(_white_levels))]  # the folder that was met first
    first_name, first_white = _white_levels.setdefault(folder, (name, white))
    if white != first_white and folder:
        bits = {255.0: 8, 65535.0: 16}
        warn_once(
            "depths",
            name,
            f"{name} is read as {bits[white]} bits and {first_name} as {bits[first_white]} bits: of signed and 32-bit "
            "integers, values above 255 tell the depth. If all have one depth, convert them to unsigned 8 or 16 bits.",
        )


def _warn_about_bit_depth(name: str, values: np.ndarray, bits: int = 16) -> None:
    """Warns if values of 16 bits use a quarter of their range at most, but for a few, such as defective pixels.

    `values` are the upper `bits` of them.
    """
    limit = 2 ** (bits - 2)
    few = min(8 + values.size / 100_000, values.size / 400)
    if _is_warned("few bits", name) or np.count_nonzero(values >= limit) > few:
        return
    high = (int(values[values < limit].max(initial=0)) + 1) * 2 ** (16 - bits) - 1
    hint = ", or, if they are grey, set num_channels=1 to keep their depth and measure mean and std"
    hint *= values.dtype in (np.uint8, np.uint16)  # other integers are only read as RGB
    warn_once(
        "few bits",
        name,
        f"{name} has 16 bits, but hardly a value above {high:.0f}, so it is nearly black: 65535 is white. For a "
        f"12-bit or 14-bit camera, scale the images to 16 bits{hint}.",
    )


def warn_about_dark_colors(image: Image.Image, name: str) -> None:
    """Warns once if colours of which Pillow kept the upper 8 of 16 bits use a quarter of their range at most."""
    if image.mode.startswith("RGB"):
        _warn_about_bit_depth(name, np.asarray(image)[..., :3], 8)


def _folder(name: str) -> str:
    return name if os.path.isdir(name) else os.path.dirname(name)


def _is_warned(kind: str, name: str) -> bool:
    return (kind, _folder(name)) in _warned or sum(kind == other for other, _ in _warned) >= MAX_WARNED_FOLDERS


def warn_once(kind: str, name: str, message: str) -> None:
    """Warns once in a process of each kind in each folder, as a folder of such images would give a warning each.

    `name` is a file, or a folder.
    """
    if not _is_warned(kind, name):
        _warned.add((kind, _folder(name)))
        warnings.warn(message, stacklevel=4)


def to_rgb(image: Image.Image, name: str = "The image") -> Image.Image:
    """Turns an upright image of any mode into RGB, as in training: see [`to_8_bit`]; transparent pixels turn white.

    `name` is what errors call the image. Raises a ValueError, see [`to_8_bit`] and [`check_tiff`].
    """
    check_tiff(image, name)
    is_tiff = image.format == "TIFF"
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image)
        if image.format == "PPM" and image.mode == "I":  # Pillow scales all values above 8 bits to 16
            values = values.astype(np.uint16)
        values = _fill_nodata(values, read_nodata(image), name)
        image = Image.fromarray(to_8_bit(~values if is_inverted(image) else values, name))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if is_tiff:
            _warn_about_alpha(name, image)
        background = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _warn_about_alpha(name: str, image: Image.Image) -> None:
    """Warns once if the opacity of most pixels is neither none nor full: GDAL marks any fourth channel as opacity."""
    counts = image.getchannel("A").histogram()
    if sum(counts[1:255]) > sum(counts) / 2:
        warn_once(
            "opacity",
            name,
            f"{name} marks its last channel as alpha, and most pixels are half transparent: they are composited over "
            "white. If it is another channel, such as near infrared, set num_channels=4.",
        )


class ChannelImage:
    """An image of any number of channels, with as much of Pillow's interface as transforms use.

    Args:
        pixels: uint8 or float32 `(channels, height, width)`, see [`channels_first`].
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[1:]
        self.size = (self.width, self.height)

    def crop(self, box: tuple[int, int, int, int]) -> "ChannelImage":
        """Cuts out (left, top, right, bottom)."""
        left, top, right, bottom = box
        return ChannelImage(self.pixels[:, top:bottom, left:right])

    def to_rgb(self) -> Image.Image:
        """A picture of the first three channels, each stretched from its 1st to its 99th percentile.

        One channel is shown in grey, two as red and green.
        """
        channels = self.pixels[[0, 0, 0]] if len(self.pixels) == 1 else self.pixels[:3]
        low, high = (np.percentile(channels, percentile, axis=(1, 2), keepdims=True) for percentile in (1, 99))
        picture = np.zeros((3, self.height, self.width), dtype=np.uint8)
        picture[: len(channels)] = np.clip((channels - low) / np.maximum(high - low, 1e-6), 0, 1) * 255
        return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def validate_channel_order(order: Sequence[int], channels: int) -> list[int]:
    """Returns the order of channels of an image processor, which must name each channel once."""
    if sorted(order) != list(range(channels)):
        raise ValueError(f"channel_order is {list(order)}, which must name each of {channels} channels once, from 0.")
    return list(order)


def channels_first(
    values: np.ndarray, channels: int, name: str, axis: int | None = None, *, rescaled: bool = True
) -> np.ndarray:
    """Brings an array of an image to the shape and the values that models of its number of channels see.

    8-bit values stay. 16-bit ones are divided by 257, to the same range 0..255, and not rounded. Floats are multiplied
    by 255: an image processor, which divides by 255, then normalises integers as shares of their range and floats in
    their own units. Three channels are RGB, whose floats lie in 0..1 or 0..255, see [`to_8_bit`]; a grey image is
    repeated for them.

    `values` are `(height, width)`, `(channels, height, width)` or `(height, width, channels)`; `axis` is that of the
    channels, 0 or -1, by default the one that has as many. `rescaled` says whether values are divided by 255 later; if
    not, floats are not changed. `name` is what errors call the image. Returns uint8 or float32 `(channels, height,
    width)`. Raises a ValueError if the image has another number of channels, both axes may be the channels, the type
    of the values is none of these, or some are not finite, too large to be multiplied or, of RGB, out of range.
    """
    if values.ndim == 2:
        values, axis = values[None], 0
    if values.ndim != 3:
        raise ValueError(f"{name} has {values.ndim} axes, of shape {values.shape}; an image has two or three")
    if axis is None:
        is_first, is_last = values.shape[0] == channels, values.shape[-1] == channels
        if is_first and is_last:
            raise ValueError(
                f"{name} has shape {values.shape}, in which more than one axis may be the {channels} channels"
            )
        axis = 0 if is_first or (not is_last and values.shape[0] <= values.shape[-1]) else -1
    if channels == 3 and values.shape[axis] == 1:  # grey
        values = values.repeat(3, axis)
    if values.shape[axis] != channels:
        is_stack = axis == 0 and values.shape[0] > 1 and looks_like_tiff(name)
        hint = ", save pages that are images of their own as files, as `ddep-hub prepare` does" if is_stack else ""
        if is_stack and values.shape[-1] == channels:
            hint = ", or save it with the channels first, as the file calls its first axis pages"
        raise ValueError(
            f"{name} has {values.shape[axis]} channel{'s' * (values.shape[axis] != 1)} (shape {values.shape}), but "
            f"the model takes {channels}; set num_channels{hint}, or convert the image"
        )
    values = np.moveaxis(values, axis, 0)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8) * np.uint8(255)
    elif values.dtype == np.uint16:
        if channels == 3:
            _warn_about_bit_depth(name, values)
        values = values.astype(np.float32) / np.float32(257)
    elif values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
            if rescaled and channels != 3:
                values = values * np.float32(255)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{name} holds values that are not finite, or too large; replace them, or mark them in the tag "
                "GDAL_NODATA of a TIFF"
            )
        if rescaled and channels == 3:
            values = values * np.float32(255 / _white_level(values, name))
    elif values.dtype != np.uint8:
        raise ValueError(f"{name} holds {values.dtype} values; convert them to unsigned 8 or 16 bits, or floats")
    return np.ascontiguousarray(values)


def _fill_nodata(values: np.ndarray, nodata: float | None, name: str, axis: int | None = None) -> np.ndarray:
    """Replaces the pixels without data by the mean of the others of their channel, or 0 where there are none.

    A warning names the first image that has any. Integers stay, as 0 and 255 are also colours. `values` are `(height,
    width)`, or have their channels on `axis`, 0 or -1.
    """
    if nodata is None or values.dtype.kind != "f":
        return values
    with np.errstate(over="ignore"):
        value = values.dtype.type(nodata)
    has_data = ~np.isnan(values) if np.isnan(value) else values != value
    if np.isinf(value):  # GDAL and QGIS write the largest double with 15 digits, which is beyond it
        has_data &= values != np.copysign(np.finfo(values.dtype).max, value)
    if has_data.all():
        return values
    warn_once(
        "no data",
        name,
        f"{name} has pixels without data, of the value {nodata:g} in its tag GDAL_NODATA. In all such images they are "
        "read as the mean of the other pixels of their channel; label them as ignored to keep them out of training.",
    )
    rows_and_columns = (0, 1) if axis == -1 else (-2, -1)
    counts = has_data.sum(rows_and_columns, keepdims=True)
    sums = values.sum(rows_and_columns, keepdims=True, where=has_data, dtype=np.float64)
    return np.where(has_data, values, sums / np.maximum(counts, 1)).astype(values.dtype)


def read_channels(file: str | os.PathLike[str] | BinaryIO, channels: int, name: str) -> np.ndarray:
    """Reads an image with exactly this number of channels; see [`channels_first`] for its values.

    TIFF files are read by `tifffile` if it is installed, with any number of channels, or of pages, each of which is a
    channel. Otherwise they are read by Pillow, like all other files except arrays (.npy). `name` is what errors call
    the image; its ending says what kind of file it is, as do the first bytes of a file that was opened. Raises an
    OSError or ValueError if it cannot be read.
    """
    if name.lower().endswith(".npy"):
        return channels_first(np.load(file, allow_pickle=False), channels, name)
    content = b""
    if not isinstance(file, str | os.PathLike):
        content = file.read(4)
        file.seek(0)
    is_tiff = looks_like_tiff(name, content)
    if is_tiff and has_tifffile():
        values, axis, nodata = read_tiff(file, name)
        values = _fill_nodata(values, nodata, name, axis)
        if channels == 3 and values.ndim == 2:  # grey
            values, axis = np.stack([to_8_bit(values, name)] * 3), 0
        return channels_first(values, channels, name, axis)
    with Image.open(file) as image:
        if is_tiff and getattr(image, "n_frames", 1) > 1:
            raise ValueError(f'{name} has several pages; pip install "ddep-hub[tiff]" to read it')
        return extract_channels(image, channels, name)


def extract_channels(image: Image.Image, channels: int, name: str, *, rescaled: bool = True) -> np.ndarray:
    """The pixels of a PIL image with exactly this number of channels; see [`channels_first`] for its values.

    The image is turned upright, and a palette is replaced by its colours. `rescaled` says whether values are divided
    by 255 later. Raises a ValueError if Pillow drops bits or channels, see [`is_reduced_by_pillow`].
    """
    check_tiff(image, name, channels)
    if is_reduced_by_pillow(image):
        advice = "save it as TIFF or .npy"
        if image.format == "TIFF":
            advice = 'pip install "ddep-hub[tiff]" and pass its path'
        raise ValueError(f"{name} has colours of 16 bits, of which Pillow keeps 8; {advice}")
    nodata = read_nodata(image)
    file_format, image = image.format, apply_orientation(image)
    if image.mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = np.array(image)  # its own memory, which torch may write to
    if values.dtype == np.int32 and file_format not in (None, "TIFF") and 0 <= values.min() and values.max() <= 65535:
        values = values.astype(np.uint16)  # how some releases of Pillow hold 16 bits
    return channels_first(_fill_nodata(values, nodata, name), channels, name, -1, rescaled=rescaled)
