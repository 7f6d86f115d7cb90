"""Rasterises annotated objects, polygons and bitmaps, to masks of class ids."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.data.image_io import is_tiff, open_image
from ddep_hub.orientation import make_upright, read_orientation

from .image_files import image_size, read_image_file


MAX_COORDINATE = 1e7  # far outside of any image; pycocotools crashes on some larger ones


@dataclass(frozen=True)
class Shape:
    """A drawn object.

    Args:
        class_id: Its class.
        polygons: Corners x0, y0, x1, y1, ... in pixels, three or more, one list per part.
        rle: Run-length code of pycocotools, in place of polygons; a bitmap of each of many objects would fill memory.
        patch: Left, top and pixels of a part of the image, bool (h, w), in place of polygons.
    """

    class_id: int
    polygons: tuple[tuple[float, ...], ...] = ()
    rle: Mapping[str, Any] | None = None
    patch: tuple[int, int, np.ndarray] | None = None


def rectangle(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
    """The corners of a rectangle, as those of a [`Shape`]'s polygon."""
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def ellipse(x: float, y: float, rx: float, ry: float) -> tuple[float, ...]:
    """72 points of an ellipse."""
    angles = [2 * math.pi * step / 72 for step in range(72)]
    return tuple(value for angle in angles for value in (x + rx * math.cos(angle), y + ry * math.sin(angle)))


def rotate_polygon(polygon: Sequence[float], degrees: float, x: float, y: float) -> tuple[float, ...]:
    """A polygon rotated about a point, clockwise as seen in the image."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = (np.reshape(polygon, (-1, 2)) - (x, y)) @ [[cos, sin], [-sin, cos]] + (x, y)
    return tuple(corners.ravel().tolist())


def shapes_mask(image: Path | Image.Image, shapes: Sequence[Shape], size: tuple[int, int] | None) -> np.ndarray:
    """Class ids of drawn objects over background, 0; smaller objects are drawn over larger ones.

    `image` is a file or an upright image. `size` is the (width, height) that the annotation gives, `None` if it does
    not; `shapes` are drawn on the upright image, or on the stored one if `size` fits that alone. Returns uint8 or
    int32 (H, W) of the upright image. Raises a ValueError if `size` fits neither.
    """
    orientation = 1
    picture = read_image_file(image) if isinstance(image, Path) else image
    rows, columns = image_size(picture, None if size is None else size[::-1])
    upright_size = stored_size = (columns, rows)
    if isinstance(image, Path) and isinstance(picture, Image.Image) and not is_tiff(image):  # none of these is turned
        with open_image(image) as stored_image:
            orientation, stored_size = read_orientation(stored_image), stored_image.size
    if size is not None and size not in (upright_size, stored_size):
        raise ValueError(
            f"{image} has {upright_size[0]}x{upright_size[1]} pixels, but its annotation is for {size[0]}x{size[1]}. "
            "Use the image that was annotated."
        )
    width, height = size or upright_size
    mask_utils = import_pycocotools()
    try:
        objects = [(_encode(shape, width, height), shape.class_id) for shape in shapes]
    except ValueError as error:
        raise ValueError(f"{image if isinstance(image, Path) else 'an embedded image'}: {error}") from error
    mask = np.zeros((height, width), np.int32)
    objects.sort(key=lambda item: -int(mask_utils.area(item[0])))
    # One bitmap for all of a class that follow each other: of thousands of objects, each would take its time.
    for class_id, group in itertools.groupby(objects, key=lambda item: item[1]):
        mask[mask_utils.decode(mask_utils.merge([code for code, _ in group])).astype(bool)] = class_id
    if size is not None and size != upright_size:
        mask = make_upright(mask, "YX", orientation)
    return mask.astype(np.uint8) if mask.min(initial=0) >= 0 and mask.max(initial=0) < 256 else mask


def encode_bitmap(pixels: np.ndarray) -> dict[str, Any]:
    """The run-length code of a bool (H, W)."""
    code: dict[str, Any] = import_pycocotools().encode(np.asfortranarray(pixels, dtype=np.uint8))
    return code


def _encode(shape: Shape, width: int, height: int) -> Mapping[str, Any]:
    if shape.rle is not None:
        if tuple(shape.rle["size"]) != (height, width):
            rows, columns = shape.rle["size"]
            raise ValueError(f"an object's mask has size {columns}x{rows}, the image {width}x{height}.")
        return shape.rle
    if shape.patch is not None:
        left, top, part = shape.patch
        mask = np.zeros((height, width), bool)
        visible = part[max(0, -top) : height - top, max(0, -left) : width - left]
        mask[max(0, top) : max(0, top) + visible.shape[0], max(0, left) : max(0, left) + visible.shape[1]] = visible
        return encode_bitmap(mask)
    polygons = [list(part) for part in shape.polygons]
    if any(not abs(value) < MAX_COORDINATE for part in polygons for value in part):  # or NaN
        raise ValueError("an object has a coordinate that is not a number, or far outside the image. Correct it.")
    mask_utils = import_pycocotools()
    code: dict[str, Any] = mask_utils.merge(mask_utils.frPyObjects(polygons, height, width))
    if mask_utils.area(code) == 0:  # smaller than a pixel, but an object
        mask = np.zeros((height, width), bool)
        corners = polygons[0][: len(polygons[0]) // 2 * 2]
        column, row = np.floor(np.reshape(corners, (-1, 2)).mean(0)).astype(int)
        if 0 <= row < height and 0 <= column < width:
            mask[row, column] = True
        return encode_bitmap(mask)
    return code


def import_pycocotools() -> Any:
    """The module `pycocotools.mask`, which draws polygons and reads run-length codes."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise ImportError('Drawn objects need pycocotools: pip install "ddep-hub[prepare]".') from error
    return mask
