"""Inspects masks with unknown classes: instance numbers, palettes, smoothed borders."""

import itertools
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .classes import Color
from .image_io import is_array, open_image
from .mask_files import palette_colors
from .masks import count_values


# The ignored value, as in most data sets.
IGNORED = 255
# Up to the first number of colours, masks are never considered smoothed; above the second, they are not classes.
_MAX_HARD_COLORS, _MAX_COLORS = 16, 256
# Tolerance per channel for colours changed by rounding or compression, or mixed from two.
_NEAR, _ROUNDING = 8, 2


@dataclass
class MaskSurvey:
    """Statistics of masks: values or colours and borders, and what they imply.

    Attributes:
        counts: Number of pixels of each value or colour.
    """

    counts: Counter[Any] = field(default_factory=Counter)
    _num_objects: list[int | None] = field(default_factory=list)
    _areas: set[Any] = field(default_factory=set)
    # Number of pixels between black and white, and how many of these have a darker and a lighter neighbour.
    _num_between: int = 0
    _num_ramps: int = 0

    def add(self, pixels: np.ndarray, *, nodata: Collection[int] = (), is_ignored: np.ndarray | None = None) -> None:
        """Adds a mask of values (H, W) or colours (H, W, 3).

        `nodata` are values that are not object numbers; pixels with `is_ignored` (H, W) are not counted.
        """
        counts = count_values(pixels)
        self._add_borders(pixels, counts)
        self._num_objects.append(_count_objects(pixels, counts.keys() - nodata))
        self.counts.update(counts if is_ignored is None else count_values(pixels[~is_ignored][None]))

    def _add_borders(self, pixels: np.ndarray, values: Collection[Any]) -> None:
        if pixels.ndim == 2 and (pixels.dtype != np.uint8 or max(values, default=0) < 128 or set(values) <= {0, 255}):
            return  # no soft borders
        self._areas |= find_areas(pixels)
        if pixels.ndim == 2:
            padded = np.pad(pixels, 1, mode="edge")
            neighbours = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
            is_between = (pixels > 0) & (pixels < 255)
            is_ramp = (np.minimum.reduce(neighbours) < pixels) & (np.maximum.reduce(neighbours) > pixels)
            self._num_between += int(np.count_nonzero(is_between))
            self._num_ramps += int(np.count_nonzero(is_between & is_ramp))

    @property
    def has_colors(self) -> bool:
        """Whether any mask is in colour."""
        return any(isinstance(value, tuple) for value in self.counts)

    @property
    def number_objects(self) -> bool:
        """Whether these are instance masks, as from Cellpose, StarDist and ImageJ.

        The highest value must vary more between masks than it would if a few classes were missing.
        """
        if None in self._num_objects or self.are_smoothed:
            return False
        positive = [count for count in self._num_objects if count]
        return bool(positive) and max(positive) > 10 and max(positive) >= 1.5 * min(positive)

    @property
    def are_smoothed(self) -> bool:
        """Whether the masks may have few classes with smoothed borders, see [`colors_look_smoothed`].

        There are then either most of the 256 values, including both ends; or a few, as in masks downsampled by 2 or 4:
        values between 0 and 255, up to light greys, which fill no area, and most of whose pixels lie between a darker
        and a lighter one.
        """
        if self.has_colors:
            return colors_look_smoothed([color for color in self.counts if isinstance(color, tuple)], self._areas)
        values = set(self.counts)
        if not {0, 255} <= values or max(values) > 255:
            return False
        between = values - {0, 255}
        is_thin = len(between) >= 2 and min(between) > 0 and max(between) >= 128 and between.isdisjoint(self._areas)
        is_ramp = is_thin and self._num_ramps > self._num_between / 2
        return is_ramp or (len(values) > 32 and any(250 <= value < 255 for value in values))


def _count_objects(pixels: np.ndarray, values: Collection[Any]) -> int | None:
    """The highest value of a mask (H, W) that may be an instance mask, numbered from 1; otherwise `None`.

    Nearly all values up to the highest must occur, and most neighbouring pixels must be equal, unlike in a photo.
    """
    ids = [value for value in values if value != 0] if pixels.ndim == 2 else [-1]
    changes = np.count_nonzero(pixels[:, 1:] != pixels[:, :-1])
    if ids and (min(ids) < 0 or len(ids) < 0.9 * max(ids) or changes > 0.25 * pixels.size):
        return None
    return int(max(ids, default=0))


def find_areas(pixels: np.ndarray) -> set[Any]:
    """The values of a mask (H, W), or colours (H, W, 3), that fill a square of 3x3 pixels somewhere."""
    if min(pixels.shape[:2]) < 3:
        return set()
    center = pixels[1:-1, 1:-1]
    rows, columns = center.shape[:2]
    is_filled = np.ones((rows, columns), bool)
    for top, left in itertools.product(range(3), range(3)):
        is_same = pixels[top : top + rows, left : left + columns] == center
        is_filled &= is_same.all(axis=-1) if pixels.ndim == 3 else is_same
    return set(count_values(center[is_filled][None]))


def colors_look_smoothed(colors: Collection[Color], areas: Collection[Any]) -> bool:
    """Whether up to 256 colours may be few classes with smoothed borders; `areas` are those from [`find_areas`].

    Border colours fill no area and are close to a colour that does, or lie, several in a row, between two of these.
    Class colours may lie like this too, like every second one of Pascal VOC, but few of them fill no area.
    """
    others = np.array(sorted(set(colors) - set(areas)), np.float64)
    filled = sorted(set(colors) & set(areas))
    if not (_MAX_HARD_COLORS < len(colors) <= _MAX_COLORS and len(others) > len(colors) / 3 and filled):
        return False
    mains = np.array(filled, np.float64)
    mixed = (np.abs(others[:, None] - mains).max(-1) <= _NEAR).any(1)
    for first, second in itertools.combinations(mains, 2):
        direction = second - first
        share = np.clip((others - first) @ direction / (direction @ direction), 0, 1)
        between = np.abs(first + share[:, None] * direction - others).max(1) <= _ROUNDING
        if len(np.unique(share[between].round(2))) >= 3:
            mixed |= between
    return bool(np.count_nonzero(mixed) > len(colors) / 3)


def palettes_differ(paths: Sequence[Path]) -> bool:
    """Whether an index has different colours in different masks, because a program has renumbered them.

    This applies to every GIF that is not grey, because GIFs store only the colours that occur.
    """
    known_colors: dict[int, Color] = {}
    for path in paths:
        if is_array(path):
            continue
        with open_image(path, "mask") as picture:
            if picture.mode != "P":
                continue
            colors = palette_colors(picture)
        colors.pop(IGNORED, None)
        if picture.format == "GIF":
            if any(len(set(color)) > 1 for color in colors.values()):
                return True
        elif any(known_colors.setdefault(index, color) != color for index, color in colors.items()):
            return True
    return False
