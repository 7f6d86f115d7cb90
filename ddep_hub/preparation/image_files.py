"""Image files with their own depth and channels: reading, cropping, writing and previews."""

import contextlib
import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.data.image_io import (
    DECODING_ERRORS,
    BadFileError,
    damaged_error,
    disallow_truncated_images,
    is_array,
    is_tiff,
    open_image,
)
from ddep_hub.evaluation.inference import window_positions
from ddep_hub.image_conversion import ChannelImage, to_rgb
from ddep_hub.orientation import apply_orientation
from ddep_hub.tiff import (
    COPY_OR_MASK,
    GDAL_NODATA,
    has_inverted_labels,
    has_tifffile,
    is_inverted,
    is_misread_by_pillow,
    num_pages,
    page_indices,
    read_tiff,
)


# An array is (H, W), (H, W, channels) or (channels, H, W).
RawImage = Image.Image | np.ndarray
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")


def read_image_file(path: Path, page: int | None = None, *, are_labels: bool = False) -> RawImage:
    """An upright image as its file holds it; an array if it is one, or a TIFF that Pillow would only read in part.

    `page` is the page of a TIFF; by default, all pages are read, as channels. Raises a BadFileError if the file is
    damaged, not an image, or needs `tifffile`.
    """
    if is_array(path):
        try:
            values = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise damaged_error(path, error, "array") from error
        return _validate_array(values, path)
    if not is_tiff(path):
        with open_image(path) as opened:
            image = apply_orientation(opened)
        return _to_16_bit(image) if image.mode.startswith("I") else image
    index = page
    try:
        if page is not None:
            index, picture = _read_page(path, page, are_labels)
        else:
            with open_image(path) as opened:
                picture = _read_by_pillow(opened, is_inverted(opened)) if num_pages(opened) == 1 else None
        if picture is not None:
            return picture
    except BadFileError:
        if not has_tifffile():
            raise
        index = None if page is None else _read_page_indices(path, path.stat().st_mtime_ns)[page]
    if not has_tifffile():
        raise BadFileError(
            f'{path} has several pages, 16-bit colours or YCbCr; pip install "ddep-hub[tiff]" to read it', path
        )
    import tifffile

    try:
        values = _validate_array(read_tiff(path, str(path), index)[0], path)
    except (OSError, ValueError, IndexError, tifffile.TiffFileError) as error:
        raise damaged_error(path, error) from error
    fits_pillow = values.dtype == np.uint8 and (values.ndim == 2 or values.shape[-1] == 3)
    return Image.fromarray(values) if fits_pillow or (values.dtype == np.uint16 and values.ndim == 2) else values


def _read_by_pillow(opened: Image.Image, inverted: bool) -> Image.Image | None:
    """The current page of an opened TIFF; `None` if Pillow reduces its colours to 8 bits or drops channels."""
    tags, bands = getattr(opened, "tag_v2", {}), len(opened.getbands())
    is_complete = tags.get(277, bands) == bands and (max(tags.get(258, (1,))) <= 8 or opened.mode[0] in "IF")
    if not is_complete or is_misread_by_pillow(opened):
        return None
    image = apply_orientation(opened).copy()
    image = _to_16_bit(image) if image.mode.startswith("I;16") else image
    return Image.fromarray(~np.asarray(image)) if inverted else image


def _read_page(path: Path, page: int, are_labels: bool) -> tuple[int, Image.Image | None]:
    """Position of a page in the file, and what [`_read_by_pillow`] returns."""
    opened, indices = _open_stack(path, path.stat().st_mtime_ns)
    try:
        with disallow_truncated_images():
            opened.seek(0 if are_labels else indices[page])  # the first page alone names the program that wrote it
            inverted = has_inverted_labels(opened) if are_labels else is_inverted(opened)
            opened.seek(indices[page])
            return indices[page], _read_by_pillow(opened, inverted)
    except DECODING_ERRORS as error:
        raise BadFileError(f"{path} is damaged or cut off ({error}); replace or remove it", path) from error


@functools.lru_cache(maxsize=2)  # a stack and its masks
def _open_stack(path: Path, changed: int) -> tuple[Image.Image, list[int]]:
    """Opens a TIFF once for all its pages: to find one, those before it are read."""
    with open_image(path) as opened:  # for its errors
        indices = page_indices(opened)
    return Image.open(path), indices  # closed where it is dropped


@contextlib.contextmanager
def close_stacks() -> Iterator[None]:
    """Drops at its end what was opened for its pages."""
    try:
        yield
    finally:
        _open_stack.cache_clear()
        _read_page_indices.cache_clear()


def count_pages(path: Path) -> int:
    """How many pages a TIFF has, without reduced copies and validity masks; 1 for other files."""
    if not is_tiff(path):
        return 1
    try:
        with open_image(path) as image:
            return num_pages(image)
    except BadFileError:
        if not has_tifffile():
            raise
    return len(_read_page_indices(path, path.stat().st_mtime_ns))


@functools.lru_cache(maxsize=2)  # as for [`_open_stack`]: it reads the tags of all pages
def _read_page_indices(path: Path, changed: int) -> list[int]:
    """As [`page_indices`], of a TIFF that Pillow does not open."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            kinds = [int(page.aspage().subfiletype) for page in tiff.pages]
    except (OSError, ValueError, tifffile.TiffFileError) as error:
        raise damaged_error(path, error) from error
    if not kinds:
        raise BadFileError(f"{path} is damaged (it holds no page); replace or remove it", path)
    return [index for index, kind in enumerate(kinds) if index == 0 or not kind & COPY_OR_MASK]


def image_size(image: RawImage, expected: tuple[int, ...] | None) -> tuple[int, int]:
    """Height and width; `expected`, such as those of the mask, decides which axis of an array holds the channels."""
    if isinstance(image, Image.Image):
        return image.height, image.width
    channels_last_size, channels_first_size = image.shape[:2], image.shape[-2:]
    if expected in (channels_last_size, channels_first_size):
        height, width = expected
    else:  # the axis that differs from two equal ones, or the shorter end
        first, middle, last = image.shape[0], image.shape[1], image.shape[-1]
        is_first = image.ndim == 3 and (middle == last if middle in (first, last) else first < last)
        height, width = channels_first_size if is_first else channels_last_size
    return int(height), int(width)


def crop(image: RawImage, size: tuple[int, ...], top: int, left: int, height: int, width: int) -> RawImage:
    """The part of an image that begins at `top` and `left`."""
    if isinstance(image, Image.Image):
        return image.crop((left, top, left + width, top + height))
    rows, columns = slice(top, top + height), slice(left, left + width)
    return image[rows, columns] if image.shape[:2] == size else image[..., rows, columns]


def iter_tiles(
    size: tuple[int, int], tile: int, overlap: int, rows: tuple[float, float] = (0.0, 1.0)
) -> Iterator[tuple[int, int, int, int]]:
    """Top, left, height and width of the tiles that cover an image of `size` (height, width), all inside it.

    `tile` is the side of the tiles and `overlap` the minimum overlap of neighbours, in pixels; `rows` says where the
    part to cover begins and ends, from 0.0 to 1.0. Raises a ValueError if that is less than a row.
    """
    first_row, end = (round(size[0] * share) for share in rows)
    if first_row == end:
        raise ValueError(f"val_fraction leaves no row of an image of {size[0]} rows for one of the splits. Change it.")
    height, width = min(tile, end - first_row), min(tile, size[1])
    strides = max(1, height - overlap), max(1, width - overlap)
    for top, left in window_positions((end - first_row, size[1]), (height, width), strides):
        yield first_row + top, left, height, width


def write_image_file(
    target: Path, image: RawImage, size: tuple[int, ...], *, as_array: bool, nodata: float | None = None
) -> Path:
    """Writes an image with its depth and channels: as PNG if that can hold them, else as TIFF.

    `target` is the path without suffix, `size` the image's (height, width); `as_array` writes arrays as .npy, and a
    TIFF states `nodata`, the value of pixels without data. Returns the file.
    """
    if isinstance(image, Image.Image):
        is_png = image.mode in _PNG_MODES
        path = target.with_name(target.name + (".png" if is_png else ".tif"))
        options: dict[str, Any] = {} if is_png or nodata is None else {"tiffinfo": {GDAL_NODATA: f"{nodata:.17g}"}}
        image.save(path, **options)
        return path
    if as_array:
        path = target.with_name(f"{target.name}.npy")
        np.save(path, image)
        return path
    import tifffile

    path = target.with_name(f"{target.name}.tif")
    is_channels_last = image.ndim == 3 and image.shape[:2] == size
    planarconfig = None if image.ndim == 2 else "contig" if is_channels_last else "separate"
    photometric = "rgb" if is_channels_last and image.shape[-1] in (3, 4) else "minisblack"
    # A fourth channel is no transparency.
    extrasamples = ["unspecified"] if photometric == "rgb" and image.shape[-1] == 4 else None
    tifffile.imwrite(
        path,
        np.ascontiguousarray(image),
        photometric=photometric,
        planarconfig=planarconfig,
        extrasamples=extrasamples,
        metadata=None,
        extratags=[] if nodata is None else [(GDAL_NODATA, "s", 0, f"{nodata:.17g}", True)],
    )
    return path


def load_preview(path: Path, size: tuple[int, ...], name: str) -> Image.Image:
    """An image file, which warnings call `name`, in RGB; values without a range of their own are stretched."""
    image = read_image_file(path)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image, name)
        except ValueError:  # floats of any range
            image = np.asarray(image)
    values = np.nan_to_num(image.astype(np.float32), posinf=0, neginf=0)
    if values.ndim == 2:
        values = values[None]
    elif values.shape[:2] == size:
        values = np.moveaxis(values, -1, 0)
    return ChannelImage(values).to_rgb()


def _validate_array(values: np.ndarray, path: Path) -> np.ndarray:
    if not isinstance(values, np.ndarray):
        raise BadFileError(f"{path} is an archive of arrays; save the array in it", path)
    if values.ndim not in (2, 3) or values.dtype.kind not in "buif":
        raise BadFileError(
            f"{path} holds {values.dtype} values of shape {values.shape}; save an array of height, width and channels",
            path,
        )
    return values


def _to_16_bit(image: Image.Image) -> Image.Image:
    """One mode for all that have 16 bits: releases of Pillow, and orders of bytes, have others."""
    values = np.asarray(image)
    return Image.fromarray(values.astype(np.uint16)) if values.min() >= 0 and values.max() <= 65535 else image
