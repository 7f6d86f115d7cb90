"""Mask files as class ids."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .classes import Color
from .image_io import BadFileError, Loaded, Undecoded, file_name, first_few, load_upright


Colors = Mapping[Color, int]


def decode_mask(
    path: str | Path | Undecoded,
    *,
    num_classes: int,
    ignore_index: int,
    mapping: Mapping[int, int] | np.ndarray | None = None,
    colors: Colors | None = None,
) -> np.ndarray:
    """Reads a mask of class ids: greyscale of any depth, bilevel, the indices of a palette, or colours of classes.

    Bilevel masks, GIF and MinIsWhite included, have the values 0 (black) and 1 (white; 255 where `mapping` has this
    value and not 1). A palette is read by its colours where these are of `colors` and of other classes than its
    indices, as when a program has saved an RGB mask of few colours. That of a GIF, whose order means nothing, is read
    by its grey levels, or by its colours. Transparent pixels of an RGBA mask are black.

    Args:
        path: Its path, or an undecoded file.
        num_classes: Class ids are 0..num_classes-1.
        ignore_index: The one other value allowed.
        mapping: Class id, or `ignore_index`, of every value that the file may hold; an array has the id of value i
            at position i. Without it the file's values are the ids.
        colors: Class id, or `ignore_index`, of every colour of a mask. Without it masks in colour are refused.

    Returns:
        Array (H, W): uint8, or int32 where the class ids or `ignore_index` do not fit 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is damaged, holds colours instead of ids, has several pages, is a lossy JPEG, holds another
            id, or a value that is not in `mapping`.
    """
    mask, path = load_upright(path, "mask"), file_name(path)
    if mask.image.mode in ("RGB", "RGBA") and colors and mask.format != "JPEG":
        return _ids_of_colors(mask_colors(mask.image, path), colors, path, num_classes, ignore_index)
    values = values_of_mask(mask, path, mapping, colors, ignore_index)
    present = list(count_values(values))
    if mapping is not None:
        values = _map_values(values, present, mapping, path)
        present = sorted({int(mapping[value]) for value in present})
    unknown = [value for value in present if not 0 <= value < num_classes and value != ignore_index]
    if unknown:
        raise BadFileError(
            f"{path} holds the ids {first_few(unknown, 10)}, but classes.json has the ids 0..{num_classes - 1} and "
            f'ignore_index {ignore_index}; add the classes to classes.json, give its classes "mask_values", or '
            "change these pixels to known ids",
            path,
        )
    return values.astype(_id_type(num_classes, ignore_index))


def values_of_mask(
    mask: Loaded,
    path: str | Path,
    mapping: Mapping[int, int] | np.ndarray | None = None,
    colors: Colors | None = None,
    ignore_index: int = 255,
) -> np.ndarray:
    """The values (H, W) of a mask that is greyscale, bilevel or of a palette; for arguments see [`decode_mask`].

    Raises:
        BadFileError: It has other channels, or is a JPEG, or a GIF of colours that are of no class.
    """
    image, file_format, white = mask
    if file_format == "JPEG":
        raise BadFileError(f"{path} is a JPEG, whose compression changes class ids; save the mask as PNG", path)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadFileError(
            f"{path} has colour mode {image.mode}, but masks hold class ids in a single channel; "
            "convert the colours to the ids of classes.json and save them as 8-bit greyscale or palette PNG",
            path,
        )
    values = np.array(image)
    if image.mode == "P" and colors and mapping is None:
        ids = _by_color(values, palette_colors(image), colors, ignore_index, path, is_gif=file_format == "GIF")
        if ids is not None:
            return ids
    if image.mode == "P" and file_format == "GIF":
        values = _grey_levels(values, palette_colors(image), path)
    if white is not None:  # stretched, id 1 is 85 or 17
        values = np.rint(values * (white / (65535 if image.mode.startswith("I") else 255))).astype(values.dtype)
    if image.mode == "1" or (file_format == "GIF" and set(np.unique(values)) <= {0, 255}):
        known_values = mapping if isinstance(mapping, Mapping) else {}
        is_class = known_values.get(255, ignore_index) != ignore_index
        values = (values != 0).astype(np.uint8) * np.uint8(255 if is_class and 1 not in known_values else 1)
    return values


def palette_colors(image: Image.Image) -> dict[int, Color]:
    """The colours of the indices that occur in a palette image; indices beyond its palette have none."""
    palette = image.getpalette("RGB") or []
    present = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256)).tolist()
    colors = {index: palette[3 * index : 3 * index + 3] for index in present if 3 * index < len(palette)}
    return {index: (red, green, blue) for index, (red, green, blue) in colors.items()}


def _by_color(
    values: np.ndarray,
    shown: Mapping[int, Color],
    colors: Colors,
    ignore_index: int,
    path: str | Path,
    *,
    is_gif: bool,
) -> np.ndarray | None:
    """What the colours of a palette mean, as ids (H, W); `None` if its indices, or grey levels, are the values.

    Args:
        values: Indices (H, W).
        shown: Colours of the indices, see [`palette_colors`].
        colors: Class id of each colour.
        ignore_index: An index that keeps its meaning, whatever its colour.
        path: The file.
        is_gif: Whether the order of the palette means nothing.
    """
    shown = {index: color for index, color in shown.items() if index != ignore_index or is_gif}
    unknown = [index for index, color in shown.items() if color not in colors]
    others = [index for index, color in shown.items() if colors.get(color, index) != index]
    # One colour of another class may be chance, if the others belong to no class.
    if len(others) < 2 and (unknown or not (others or is_gif)):
        return None
    if unknown and not hasattr(colors, "__missing__"):
        raise _unknown_color(path, shown[unknown[0]], float((values == unknown[0]).mean()), colors)
    table = np.arange(256, dtype=np.int32)
    table[list(shown)] = [colors[color] for color in shown.values()]
    return table[values]


def _grey_levels(values: np.ndarray, shown: Mapping[int, Color], path: str | Path) -> np.ndarray:
    """The grey levels of a GIF, from its indices (H, W) and their colours."""
    if any(len(set(color)) > 1 for color in shown.values()):
        raise BadFileError(
            f"{path} is a GIF, whose palette has no fixed order; save the mask as PNG, or give all classes in "
            'classes.json the "color" they have in the masks',
            path,
        )
    table = np.arange(256, dtype=np.uint8)
    table[list(shown)] = [color[0] for color in shown.values()]
    return table[values]


def mask_colors(image: Image.Image, path: str | Path) -> np.ndarray:
    """The colours of a mask, uint8 (H, W, 3); fully transparent pixels are black.

    Raises:
        BadFileError: All pixels are transparent, but some have a colour.
    """
    if image.mode != "RGBA":
        return np.asarray(image.convert("RGB"))
    pixels = np.array(image)
    if not pixels[..., 3].any() and np.ptp(pixels[..., :3], axis=(0, 1)).any():
        raise BadFileError(f"{path} is fully transparent, but has colours; save it without transparency", path)
    pixels[pixels[..., 3] == 0] = 0
    return pixels[..., :3]


def count_values(pixels: np.ndarray) -> dict[Any, int]:
    """How often each value of pixels (H, W), or colour of pixels (H, W, 3), occurs; sorted."""
    if pixels.ndim == 3:
        found, counts = np.unique(_pack_colors(pixels), return_counts=True)
        present: list[Any] = [(value >> 16, value >> 8 & 255, value & 255) for value in found.tolist()]
    elif pixels.dtype == np.uint8:  # counting is some ten times faster than sorting
        counts = np.bincount(pixels.ravel())
        present = np.flatnonzero(counts).tolist()
        counts = counts[present]
    else:
        found, counts = np.unique(pixels, return_counts=True)
        present = found.tolist()
    return dict(zip(present, counts.tolist(), strict=True))


def replace_values(pixels: np.ndarray, ids: Mapping[Any, int]) -> np.ndarray:
    """Class ids, int32 (H, W), of values (H, W) or colours (H, W, 3); `ids` has all that occur, and no others."""
    values, keys, found = pixels, np.array(list(ids)), np.array(list(ids.values()), dtype=np.int32)
    if pixels.ndim == 3:
        values, keys = _pack_colors(pixels), _pack_colors(keys)
    low, span = int(keys.min()), int(np.ptp(keys)) + 1
    if span > 2**24:  # too large a table
        order = np.argsort(keys)
        return found[order][np.searchsorted(keys[order], values)]
    # Offset by the lowest value, so that a negative value does not index from the end.
    table = np.zeros(span, dtype=np.int32)
    table[keys - low] = found
    return table[values - low]


def _pack_colors(colors: np.ndarray) -> np.ndarray:
    """Colours (..., 3) in 0..255 as one number each, int32 (...)."""
    return colors.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)


def _id_type(num_classes: int, ignore_index: int) -> type[np.generic]:
    return np.uint8 if num_classes <= 256 and 0 <= ignore_index <= 255 else np.int32


def _unknown_color(path: str | Path, color: Color, share: float, colors: Colors) -> BadFileError:
    nearest = min(colors, key=lambda known: sum((a - b) ** 2 for a, b in zip(known, color, strict=True)))
    return BadFileError(
        f"{path} holds the colour {color} in {100 * share:.3g} % of its pixels, which belongs to no class in "
        f"classes.json; the nearest is {nearest} of class {colors[nearest]}. Save the mask without smoothing, add "
        'the colour to classes.json, or set "other_values": "ignore" there',
        path,
    )


def _ids_of_colors(pixels: np.ndarray, colors: Colors, path: str, num_classes: int, ignore_index: int) -> np.ndarray:
    """Class ids of a mask in colour, as `decode_mask` gives them."""
    counts = count_values(pixels)
    for color, count in counts.items():
        if color not in colors and not hasattr(colors, "__missing__"):
            raise _unknown_color(path, color, count / sum(counts.values()), colors)
    ids = replace_values(pixels, {color: colors[color] for color in counts})
    return ids.astype(_id_type(num_classes, ignore_index))


def _map_values(
    values: np.ndarray, present: list[int], mapping: Mapping[int, int] | np.ndarray, path: str
) -> np.ndarray:
    table = dict(enumerate(mapping.tolist())) if isinstance(mapping, np.ndarray) else mapping
    unknown = [] if hasattr(table, "__missing__") else [value for value in present if value not in table]
    if unknown:
        raise BadFileError(
            f"{path} holds the values {first_few(unknown, 10)}, which are not among the {len(table)} of the mapping "
            "to class ids; add them to mask_values in classes.json; for a known data set, use the masks from its "
            "archive",
            path,
        )
    return replace_values(values, {value: table[value] for value in present})


def classes_to_save(paths: Sequence[Path], *, limit: int = 100) -> str:
    """What to save as `classes.json`, from the values or colours that masks hold.

    Args:
        paths: The mask files.
        limit: How many of them to read, spread evenly.

    Returns:
        A sentence, the text of the file, and the share of each value.
    """
    chosen = paths[:: -(-len(paths) // limit)]
    counts = Counter[Any]()
    for path in chosen:
        mask = load_upright(path, "mask")
        in_colors = mask.image.mode in ("RGB", "RGBA")
        counts.update(count_values(mask_colors(mask.image, path) if in_colors else values_of_mask(mask, path)))
    values = sorted(counts, key=lambda value: value if isinstance(value, tuple) else (value,))
    kept = [value for value in values if value != 255 or set(values) == {0, 255}]
    classes: list[dict[str, Any]] = []
    for index, value in enumerate(kept[:256]):
        classes.append({"id": index, "name": f"class {index}"})
        if isinstance(value, tuple):
            classes[-1]["color"] = list(value)
        elif kept != list(range(len(kept))):
            classes[-1]["mask_values"] = value
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in classes)
    total = sum(counts.values())
    shares = ", ".join(f"{value}: {counts[value] / total:.1%}" for value in values[:20])
    ignored = " 255 is ignored." if len(kept) < len(values) else ""
    return (
        f"Save this there, with your own names; {len(chosen)} of {len(paths)} masks were "
        f'read.{ignored}\n{{"ignore_index": 255, "classes": [\n{lines}\n]}}\nShares of the values: {shares}'
    )
