# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""TIFF files: reads values with tifffile, and detects what Pillow silently misreads."""

import importlib.util
import itertools
import os
import struct
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, TiffImagePlugin

from .orientation import make_upright


# Of the tag NewSubfileType: 1 is a reduced copy, 4 a mask of valid pixels. Such pages are not images of their own.
COPY_OR_MASK = 5
# Colour spaces, by the tag PhotometricInterpretation.
_WHITE_IS_ZERO, _PALETTE, _YCBCR = 0, 3, 6
_SIGNED = 2  # of the tag SampleFormat
GDAL_NODATA = 42113  # a tag: a number, as text
_COLOUR_CHANNELS = {2: 3, 5: 4, 6: 3, 8: 3}  # RGB, CMYK, YCbCr and CIE Lab; the others have one
_UNSUPPORTED_COLOURS = {
    3: "palette",
    6: "YCbCr",
    8: "CIE Lab",
    9: "ICC Lab",
    10: "ITU Lab",
    32844: "LogL",
    32845: "LogLuv",
}


def looks_like_tiff(name: str, content: bytes = b"") -> bool:
    """Whether a file is a TIFF, by its name or its first four bytes; images in a data set may have no name."""
    return name.lower().endswith((".tif", ".tiff")) or content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def has_tifffile() -> bool:
    """Whether `tifffile` is installed."""
    return importlib.util.find_spec("tifffile") is not None


def _get_tag(image: Image.Image, name: str, default: Any) -> Any:
    return getattr(image, "tag_v2", {}).get(getattr(TiffImagePlugin, name), default)


def num_pages(image: Image.Image) -> int:
    """Pages or frames of a file, without the reduced copies and validity masks that a TIFF may hold."""
    return len(page_indices(image))


def page_indices(image: Image.Image) -> list[int]:
    """Indices of the pages or frames among all in the file, see [`num_pages`]; the first always counts."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return list(range(getattr(image, "n_frames", 1)))
    indices = [0]
    for index in itertools.count(1):
        try:
            image.seek(index)
        except EOFError:
            break
        except SyntaxError:
            pass  # Pillow has read the tags, but has no mode for the pixels, for example of a mask
        if not image.tag_v2.get(254, 0) & COPY_OR_MASK:
            indices.append(index)
    image.seek(0)
    return indices


def is_misread_by_pillow(image: Image.Image) -> bool:
    """Whether Pillow reads wrong pixels from a TIFF without an error."""
    if image.format != "TIFF" or _get_tag(image, "COMPRESSION", 1) != 1:  # libtiff decodes compressed files
        return False
    is_planar, bits = _get_tag(image, "PLANAR_CONFIGURATION", 1) == 2, _get_tag(image, "BITSPERSAMPLE", (1,))
    return (is_planar and max(bits) > 8) or _get_tag(image, "PHOTOMETRIC_INTERPRETATION", None) == _YCBCR


def is_reduced_by_pillow(image: Image.Image) -> bool:
    """Whether Pillow keeps only 8 of the 16 bits of a colour TIFF or PNG; a PNG must not be loaded yet."""
    if len(image.getbands()) == 1:
        return False
    is_deep_png = image.format == "PNG" and any(str(tile[3]).endswith(";16B") for tile in getattr(image, "tile", ()))
    return is_deep_png or max(_get_tag(image, "BITSPERSAMPLE", (1,))) > 8


def check_tiff(image: Image.Image, name: str, channels: int = 3) -> None:
    """Raises a ValueError for a TIFF of which Pillow reads wrong pixels, or not all channels; other images pass.

    An alpha channel is allowed. `channels` is the number that the model takes, for the message.
    """
    if image.format != "TIFF":
        return
    if is_misread_by_pillow(image):
        raise ValueError(
            f"{name} is an uncompressed TIFF with YCbCr or deep planes, which Pillow reads incorrectly; convert it "
            'to RGB with interleaved channels, or pip install "ddep-hub[tiff]" and pass its path'
        )
    if _get_tag(image, "SAMPLEFORMAT", (1,))[0] == _SIGNED and image.mode == "L":
        raise ValueError(f"{name} has signed 8-bit values; convert it to unsigned 8 or 16 bits")
    samples, extra_samples = _get_tag(image, "SAMPLESPERPIXEL", 1), tuple(_get_tag(image, "EXTRASAMPLES", ()))
    colours = _COLOUR_CHANNELS.get(_get_tag(image, "PHOTOMETRIC_INTERPRETATION", 1), 1)
    if samples == colours or (
        samples == colours + 1 and extra_samples in ((1,), (2,))
    ):  # associated or unassociated alpha
        return
    if samples == channels:
        raise ValueError(f'{name} has {samples} channels; pip install "ddep-hub[tiff]" and pass its path')
    raise ValueError(
        f"{name} has {samples} channels, but the model takes {channels}; set num_channels, or convert the image"
    )


def has_inverted_labels(image: Image.Image) -> bool:
    """Whether Pillow inverts the labels of a TIFF, one of 1 or 8 bits whose 0 is white (MinIsWhite).

    tifffile writes every bool array that way, and so does ImageJ with masks that it displays with an inverted palette.
    In both, the stored values are meant; in files of other programs, the displayed ones.
    """
    if image.mode not in ("1", "L") or _get_tag(image, "PHOTOMETRIC_INTERPRETATION", 1) != _WHITE_IS_ZERO:
        return False
    software, description = (str(_get_tag(image, name, "")) for name in ("SOFTWARE", "IMAGEDESCRIPTION"))
    return software.startswith("tifffile") or description.startswith("ImageJ=")


def is_inverted(image: Image.Image) -> bool:
    """Whether Pillow does not invert a TIFF whose 0 is white: it inverts 8 bits, but not 16."""
    return image.mode.startswith("I;16") and _get_tag(image, "PHOTOMETRIC_INTERPRETATION", 1) == _WHITE_IS_ZERO


def read_tags(path: str | os.PathLike[str]) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Reads the tags of a TIFF's first page, even if Pillow has no mode for its pixels.

    Raises an OSError, SyntaxError, ValueError or struct.error if it is damaged.
    """
    with open(path, "rb") as file:
        header = file.read(8)
        header += file.read(8) if header[2:3] == b"+" or header[3:4] == b"+" else b""  # BigTIFF
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
    return tags


def read_nodata_tag(path: str | os.PathLike[str]) -> float | None:
    """Like [`read_nodata`], for a file, which need not be a TIFF."""
    if not looks_like_tiff(str(path)):
        return None
    try:
        return _parse_nodata(read_tags(path).get(GDAL_NODATA))
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):  # a damaged tag
        return None


def read_nodata(image: Image.Image) -> float | None:
    """The nodata value of a TIFF that Pillow opened; `None` if the file has none."""
    return _parse_nodata(getattr(image, "tag_v2", {}).get(GDAL_NODATA))


def _parse_nodata(text: Any) -> float | None:
    try:
        return float(str(text).strip(" \0"))
    except ValueError:  # also without such a tag
        return None


# Generic series of pages, of which the first is the image.
_PLAIN_SERIES = {"generic", "ome", "shaped", "uniform"}


def read_tiff(
    file: str | os.PathLike[str] | BinaryIO, name: str, page: int | None = None
) -> tuple[np.ndarray, int | None, float | None]:
    """Reads the first image of a TIFF with all its channels or pages, or one page, upright, at the file's bit depth.

    `page` is the index of a page among all in the file. Returns the values, 0 being black, without axes of length 1
    other than rows and columns; the axis of the channels, 0 or -1, if it is known; and the nodata value, if the file
    has one. Raises an OSError if the file is not a TIFF or damaged, and a ValueError if its values are neither RGB nor
    grey, or need another package.
    """
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        # Each OME-TIFF file of a set describes all of them: the first series may be in other files.
        if page is None and tiff.is_ome and any(part is None or part.parent is not tiff for part in tiff.series[0]):
            tiff = tifffile.TiffFile(tiff.filehandle, is_ome=False)
        if page is None and len(tiff.series) > 1 and {part.kind for part in tiff.series} <= _PLAIN_SERIES:
            first, *others = tiff.series
            if any(len(part) > 1 for part in tiff.series) and first.size <= max(part.size for part in others):
                raise ValueError(f"{name} has {len(tiff.series)} images (series); save each as a separate file")
            # Programs that write page by page create a series per page; pages of the same shape belong together.
            tiff = tifffile.TiffFile(tiff.filehandle, is_ome=False, is_shaped=False)
            parts = [part.keyframe for part in tiff.series if not int(part.keyframe.subfiletype) & COPY_OR_MASK]
            first_size, *other_sizes = [part.imagelength * part.imagewidth for part in parts] or [0]
            if max(other_sizes, default=0) >= first_size > 0:  # smaller ones are copies that do not say so
                raise ValueError(f"{name} has images of several sizes or kinds; save each as a separate file")
        image = tiff.series[0] if page is None else tiff.pages[page].aspage()
        if page is None and int(image.keyframe.subfiletype) & COPY_OR_MASK and len(tiff.pages) > 1:
            raise ValueError(f"{name} starts with a reduced copy or a mask of its image; save only the image")
        photometric = int(image.keyframe.photometric)
        # ImageJ's palette only determines how intensities are displayed.
        if photometric in _UNSUPPORTED_COLOURS and not (photometric == _PALETTE and tiff.is_imagej):
            raise ValueError(f"{name} has {_UNSUPPORTED_COLOURS[photometric]} colours; convert it to RGB or grey")
        # Damaged tags may request gigabytes. Without compression, a byte holds at most eight pixels.
        if image.nbytes > (8 if image.keyframe.compression == 1 else 10_000) * tiff.filehandle.size:
            raise OSError(f"the size of {'x'.join(map(str, image.shape))} does not fit the file")
        try:
            values = image.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise ValueError(f"{name} is compressed: {error}; pip install imagecodecs") from error
        tags = image.keyframe.tags
        values = make_upright(values, image.axes, int(tags.valueof(274, 1)))
        nodata = _parse_nodata(tags.valueof(GDAL_NODATA))
    # An image may have only one row or column.
    dropped = [index for index, axis in enumerate(image.axes) if axis not in "YX" and values.shape[index] == 1]
    axes = [axis for index, axis in enumerate(image.axes) if index not in dropped]
    values = values.squeeze(tuple(dropped))
    if photometric == _WHITE_IS_ZERO and values.dtype.kind in "bu":
        values = ~values
    # Rows and columns are Y and X; the third axis, of samples, channels or pages, comes before or after them.
    return values, None if len(axes) != 3 else (-1 if axes[0] == "Y" else 0), nodata
