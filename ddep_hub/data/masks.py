"""Reads mask files as class ids."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.image_conversion import warn_once

from .classes import Color
from .image_io import BadFileError, File, file_name, format_list
from .mask_files import DecodedMask, check_lossless, load_mask, mask_colors, palette_colors


COLOR_MODES = ("RGB", "RGBA")  # Pillow's modes of masks in colour
ColorMapping = Mapping[Color, int]
Palettes = dict[int, tuple[Color, str]]  # the colour of each index of palette masks, and the file that has it so


def decode_mask(
    path: File,
    *,
    num_classes: int,
    ignore_index: int,
    mapping: Mapping[int, int] | None = None,
    colors: ColorMapping | None = None,
    other_id: int | None = None,
    palettes: Palettes | None = None,
) -> np.ndarray:
    """Reads a mask of class ids: greyscale of any depth, bilevel, the indices of a palette, or colours of classes.

    Bilevel masks, GIF and MinIsWhite included, have the values 0 (black) and 1 (white; 255 where `mapping` has this
    value and not 1). A palette is read by its colours where these are of `colors` and of other classes than its
    indices, as when a program has saved an RGB mask of few colours. That of a GIF, whose order means nothing, is read
    by its grey levels, or by its colours. Transparent pixels of an RGBA mask are black. A grey mask that was saved in
    colour is read by its values, see [`are_grey_ids`], unless `other_id` is set. See [`load_mask`] for arrays.

    Args:
        path: Its path, or an undecoded file.
        num_classes: Class ids are 0..num_classes-1.
        ignore_index: The one other value allowed.
        mapping: Class id, or `ignore_index`, of every value that the file may hold. Without it the file's values are
            the ids.
        colors: Class id, or `ignore_index`, of every colour of a mask. Without it other masks in colour are refused.
        other_id: Class id, or `ignore_index`, of values that are neither, without `mapping`.
        palettes: Those of the data set's other masks, to which this one's is added. A warning tells if an index has
            another colour there: then the order of the palettes may mean nothing.

    Returns:
        Array (H, W): uint8, or int32 where the class ids or `ignore_index` do not fit 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is damaged, holds colours instead of ids, has several pages, is compressed with loss,
            holds another id, or a value that is not in `mapping`.
    """
    mask, path = load_mask(path), file_name(path)
    if mask.image.mode in COLOR_MODES and other_id is None:
        grey, *others = np.moveaxis(mask_colors(mask.image, path), -1, 0)
        is_grey = all(np.array_equal(grey, other) for other in others)
        known_ids = mapping or {index: index for index in (*range(num_classes), ignore_index)}
        found = [(value,) * 3 for value in count_values(grey)]
        if is_grey and are_grey_ids(found, colors or {}, known_ids, ignore_index):
            mask = mask._replace(image=Image.fromarray(grey))
    color_modes = COLOR_MODES if colors else ()
    pixels = read_pixels(mask, path, mapping, colors, ignore_index, palettes, color_modes=color_modes)
    counts = count_values(pixels)
    known: Mapping[Any, int] | None = colors if pixels.ndim == 3 else mapping
    ids = list(counts)
    if known is not None:
        unknown = [] if hasattr(known, "__missing__") else [value for value in counts if value not in known]
        if unknown and colors and pixels.ndim == 3:
            raise _unknown_color_error(path, unknown[0], counts[unknown[0]] / sum(counts.values()), colors)
        if unknown:
            raise BadFileError(
                f"{path} holds the values {format_list(unknown, 10)}, which are not among the {len(known)} of the "
                "mapping to class ids; add them to mask_values in classes.json; for a known data set, use the masks "
                "from its archive",
                path,
            )
        pixels = replace_values(pixels, {value: known[value] for value in counts})
        ids = sorted({int(known[value]) for value in counts})
    unknown_ids = [value for value in ids if not 0 <= value < num_classes and value != ignore_index]
    if unknown_ids and other_id is not None:
        pixels = replace_values(pixels, {value: other_id if value in unknown_ids else value for value in ids})
    elif unknown_ids:
        raise BadFileError(
            f"{path} holds the ids {format_list(unknown_ids, 10)}, but classes.json has the ids 0..{num_classes - 1} "
            f'and ignore_index {ignore_index}; add the classes to classes.json, give its classes "mask_values", or '
            "change these pixels to known ids",
            path,
        )
    return pixels.astype(np.uint8 if num_classes <= 256 and 0 <= ignore_index <= 255 else np.int32)


def are_grey_ids(
    found: Iterable[Color], colors: Mapping[Color, int], ids: Mapping[int, int], ignore_index: int
) -> bool:
    """Whether colours of masks are greys that stand for the classes of their values, as in a grey mask saved as RGB.

    Not if one is the colour of another class, or if all are colours of classes, besides the ignored value. `colors`
    and `ids` are the class id of each colour, and of each value.
    """
    found = list(found)
    if any(len(set(color)) > 1 or color[0] not in ids for color in found):
        return False
    if any(color in colors and colors[color] != ids[color[0]] for color in found):
        return False
    return not colors or any(color not in colors and color[0] != ignore_index for color in found)


def read_pixels(
    mask: DecodedMask,
    path: str | Path,
    mapping: Mapping[int, int] | None = None,
    colors: ColorMapping | None = None,
    ignore_index: int = 255,
    palettes: Palettes | None = None,
    *,
    color_modes: Collection[str] = (),
) -> np.ndarray:
    """The values (H, W) of a greyscale, bilevel or palette mask, or the colours (H, W, 3) of one in `color_modes`.

    For the other arguments see [`decode_mask`]. Raises a `BadFileError` for other modes, lossy compression, and a GIF
    of colours that belong to no class.
    """
    check_lossless(mask, path)
    image, file_format, white_level, _ = mask
    if image.mode in color_modes:
        return mask_colors(image, path)
    values = np.array(image)
    if image.mode == "F" and np.isfinite(values).all() and (values == np.rint(values)).all():
        values = values.astype(np.int32)  # labels of ImageJ, which has no integers of 32 bits
    elif image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        problem = {
            "F": "with fractions or NaN, which cannot be class ids; save whole numbers",
            "LA": "but masks hold class ids in a single channel; save it without transparency",
        }.get(
            image.mode,
            "but masks hold class ids in a single channel; convert the colours to the ids of classes.json and save "
            "them as 8-bit greyscale or palette PNG, or give each class in classes.json a colour of its own",
        )
        raise BadFileError(f"{path} has colour mode {image.mode}, {problem}", path)
    if image.mode == "P":
        palette, is_gif = palette_colors(image), file_format == "GIF"
        if colors and mapping is None:
            ids = _map_palette_colors(values, palette, colors, ignore_index, path, is_gif=is_gif)
            if ids is not None:
                return ids
        if is_gif:
            values = _to_grey_levels(values, palette, path)
        elif palettes is not None:
            _compare_palettes(palette, palettes, ignore_index, str(path))
    if white_level is not None:  # stretched, id 1 is 85 or 17
        values = np.rint(values * (white_level / (65535 if image.mode.startswith("I") else 255))).astype(values.dtype)
    if image.mode == "1" or (file_format == "GIF" and set(np.unique(values)) <= {0, 255}):
        known_values = mapping or {}
        is_class = known_values.get(255, ignore_index) != ignore_index
        values = (values != 0).astype(np.uint8) * np.uint8(255 if is_class and 1 not in known_values else 1)
    return values


def _compare_palettes(palette: Mapping[int, Color], palettes: Palettes, ignore_index: int, path: str) -> None:
    """Warns if an index of a palette has another colour in another mask, and adds those of this mask."""
    for index, color in palette.items():
        other, other_path = palettes.setdefault(index, (color, path))
        if other != color and index != ignore_index:
            warn_once(
                "palettes",
                path,
                f"The palettes of {other_path} and {path} differ: index {index} is {other} in one, {color} in the "
                "other. Masks are read by their indices. If their colours tell the classes, give each class in "
                'classes.json its "color".',
            )


def _map_palette_colors(
    values: np.ndarray,
    palette: Mapping[int, Color],
    colors: ColorMapping,
    ignore_index: int,
    path: str | Path,
    *,
    is_gif: bool,
) -> np.ndarray | None:
    """What the colours of a palette mean, as ids (H, W); `None` if its indices, or grey levels, are the values.

    `values` are the indices (H, W). The index `ignore_index` keeps its meaning, whatever its colour, except in a GIF,
    where the order of the palette means nothing.
    """
    palette = {index: color for index, color in palette.items() if index != ignore_index or is_gif}
    unknown = [index for index, color in palette.items() if color not in colors]
    mismatched = [index for index, color in palette.items() if colors.get(color, index) != index]
    # One colour of another class may be chance, if the others belong to no class.
    if len(mismatched) < 2 and (unknown or not (mismatched or is_gif)):
        return None
    if unknown and not hasattr(colors, "__missing__"):
        raise _unknown_color_error(path, palette[unknown[0]], float((values == unknown[0]).mean()), colors)
    table = np.arange(256, dtype=np.int32)
    table[list(palette)] = [colors[color] for color in palette.values()]
    return table[values]


def _to_grey_levels(values: np.ndarray, palette: Mapping[int, Color], path: str | Path) -> np.ndarray:
    """The grey levels of a GIF, from its indices (H, W) and their colours."""
    if any(len(set(color)) > 1 for color in palette.values()):
        raise BadFileError(
            f"{path} is a GIF, whose palette has no fixed order; save the mask as PNG, or give all classes in "
            'classes.json the "color" they have in the masks',
            path,
        )
    table = np.arange(256, dtype=np.uint8)
    table[list(palette)] = [color[0] for color in palette.values()]
    return table[values]


def count_values(pixels: np.ndarray) -> dict[Any, int]:
    """How often each value of pixels (H, W), or colour of pixels (H, W, 3), occurs; sorted."""
    if pixels.ndim == 3:
        unique, counts = np.unique(_pack_colors(pixels), return_counts=True)
        values: list[Any] = [(value >> 16, value >> 8 & 255, value & 255) for value in unique.tolist()]
    elif pixels.dtype == np.uint8:  # counting is some ten times faster than sorting
        counts = np.bincount(pixels.ravel())
        values = np.flatnonzero(counts).tolist()
        counts = counts[values]
    else:
        unique, counts = np.unique(pixels, return_counts=True)
        values = unique.tolist()
    return dict(zip(values, counts.tolist(), strict=True))


def replace_values(pixels: np.ndarray, ids: Mapping[Any, int]) -> np.ndarray:
    """Class ids, int32 (H, W), of values (H, W) or colours (H, W, 3); `ids` has all that occur, and no others."""
    values, keys, class_ids = pixels, np.array(list(ids)), np.array(list(ids.values()), dtype=np.int32)
    if pixels.ndim == 3:
        values, keys = _pack_colors(pixels), _pack_colors(keys)
    lowest, span = int(keys.min()), int(np.ptp(keys)) + 1
    if span > 2**24:  # too large a table
        order = np.argsort(keys)
        return class_ids[order][np.searchsorted(keys[order], values)]
    # Offset by the lowest value, so that a negative value does not index from the end.
    table = np.zeros(span, dtype=np.int32)
    table[keys - lowest] = class_ids
    return table[values - lowest]


def _pack_colors(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 0..255 as one number each, int32 (...)."""
    return colors.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)


def _unknown_color_error(path: str | Path, color: Color, fraction: float, colors: ColorMapping) -> BadFileError:
    nearest = min(colors, key=lambda known: sum((a - b) ** 2 for a, b in zip(known, color, strict=True)))
    return BadFileError(
        f"{path} holds the colour {color} in {100 * fraction:.3g}% of its pixels, which belongs to no class in "
        f"classes.json; the nearest is {nearest} of class {colors[nearest]}. Save the mask without smoothing, add "
        'the colour to classes.json, or set "other_values": "ignore" there',
        path,
    )
