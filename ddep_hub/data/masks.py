"""Mask files as class ids."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .classes import Color
from .image_io import BadFileError, Undecoded, file_name, load_upright


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
    values = _read(path, mapping, colors, ignore_index)
    path = file_name(path)
    if values.ndim == 3:
        return _ids_of_colors(values, colors or {}, path, num_classes, ignore_index)
    # Counting is some ten times faster than sorting.
    found = np.flatnonzero(np.bincount(values.ravel())) if values.dtype == np.uint8 else np.unique(values)
    present = [int(value) for value in found]
    if mapping is not None:
        values = _mapped(values, present, mapping, path)
        present = sorted({int(mapping[value]) for value in present})
    unknown = [value for value in present if not 0 <= value < num_classes and value != ignore_index]
    if unknown:
        raise BadFileError(
            f"{path} holds the ids {_first_ten(unknown)}, but classes.json has the ids 0..{num_classes - 1} and "
            f'ignore_index {ignore_index}; add the classes to classes.json, give its classes "mask_values", or change '
            "these pixels to ids it has",
            path,
        )
    return values.astype(_id_type(num_classes, ignore_index))


def _read(
    file: str | Path | Undecoded,
    mapping: Mapping[int, int] | np.ndarray | None = None,
    colors: Colors | None = None,
    ignore_index: int = 255,
) -> np.ndarray:
    """The values (H, W) of a mask; its colours (H, W, 3) where these are what it holds and `colors` is given."""
    image, file_format, packing = load_upright(file, "mask")
    path = file_name(file)
    if file_format == "JPEG":
        raise BadFileError(f"{path} is a JPEG, whose compression changes class ids; save the mask as PNG", path)
    if image.mode in ("RGB", "RGBA") and colors:
        return mask_colors(image, path)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadFileError(
            f"{path} has colour mode {image.mode}, but masks hold class ids in a single channel; "
            "convert the colours to the ids of classes.json and save them as 8-bit greyscale or palette PNG",
            path,
        )
    values = np.array(image)
    if image.mode == "P" and (file_format == "GIF" or (colors and mapping is None)):
        shown = palette_colors(image)
        if colors and mapping is None:
            ids = _by_color(values, shown, colors, ignore_index, path, is_gif=file_format == "GIF")
            if ids is not None:
                return ids
        if file_format == "GIF":
            if any(len(set(color)) > 1 for color in shown.values()):
                raise BadFileError(
                    f"{path} is a GIF, whose palette has no fixed order; save the mask as PNG, or give all classes of "
                    'classes.json the "color" that they have in the masks',
                    path,
                )
            table = np.arange(256, dtype=np.uint8)
            table[list(shown)] = [color[0] for color in shown.values()]
            values = table[values]
    # Pillow stretches greyscale of less than 8 bits to 0..255, which turns id 1 into 85 or 17.
    # So it does with other depths of PGM, to 255 or 65535.
    if isinstance(packing, str) and packing.startswith("max;"):
        values = np.rint(values * (int(packing[4:]) / (65535 if image.mode.startswith("I") else 255))).astype(np.int32)
    else:
        values = values // {"L;2": 85, "L;4": 17}.get(packing or "", 1)
    if image.mode == "1" or (file_format == "GIF" and set(np.unique(values)) <= {0, 255}):
        known_values = mapping if isinstance(mapping, Mapping) else {}
        is_class = known_values.get(255, ignore_index) != ignore_index
        white = 255 if is_class and 1 not in known_values else 1
        values = (values != 0).astype(np.uint8) * np.uint8(white)
    return values


def palette_colors(image: Image.Image) -> dict[int, Color]:
    """The colours of the indices that occur in a palette image; indices beyond its palette have none."""
    palette = image.getpalette("RGB") or []
    present = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256)).tolist()
    colors = {index: palette[3 * index : 3 * index + 3] for index in present if 3 * index < len(palette)}
    return {index: (red, green, blue) for index, (red, green, blue) in colors.items()}


def _by_color(
    values: np.ndarray, shown: Mapping[int, Color], colors: Colors, ignore_index: int, path: str, *, is_gif: bool
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
    # One colour of another class may be chance, if the rest is of none.
    if len(others) < 2 and (unknown or not (others or is_gif)):
        return None
    if unknown and not hasattr(colors, "__missing__"):
        raise _unknown_color(path, shown[unknown[0]], float((values == unknown[0]).mean()), colors)
    table = np.arange(256, dtype=np.int32)
    table[list(shown)] = [colors[color] for color in shown.values()]
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
        raise BadFileError(f"{path} is transparent everywhere, but has colours; save it without transparency", path)
    pixels[pixels[..., 3] == 0] = 0
    return pixels[..., :3]


def _id_type(num_classes: int, ignore_index: int) -> type[np.generic]:
    return np.uint8 if num_classes <= 256 and 0 <= ignore_index <= 255 else np.int32


def _unknown_color(path: str, color: Color, share: float, colors: Colors) -> BadFileError:
    nearest = min(colors, key=lambda known: sum((a - b) ** 2 for a, b in zip(known, color, strict=True)))
    return BadFileError(
        f"{path} holds the colour {color} in {100 * share:.3g} % of its pixels, which no class of classes.json has; "
        f"the nearest is {nearest} of class {colors[nearest]}. Save the mask without smoothing, add the colour to "
        'classes.json, or set "other_values": "ignore" there',
        path,
    )


def _ids_of_colors(pixels: np.ndarray, colors: Colors, path: str, num_classes: int, ignore_index: int) -> np.ndarray:
    """Class ids of a mask in colour, as `decode_mask` gives them."""
    packed = pixels.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    present, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    ids = []
    for value, count in zip(present.tolist(), counts.tolist(), strict=True):
        color = (value >> 16, value >> 8 & 255, value & 255)
        if color not in colors and not hasattr(colors, "__missing__"):
            raise _unknown_color(path, color, count / packed.size, colors)
        ids.append(colors[color])
    table = np.array(ids, dtype=_id_type(num_classes, ignore_index))
    return table[inverse.reshape(packed.shape)]


def _mapped(values: np.ndarray, present: list[int], mapping: Mapping[int, int] | np.ndarray, path: str) -> np.ndarray:
    table = dict(enumerate(mapping.tolist())) if isinstance(mapping, np.ndarray) else mapping
    unknown = [] if hasattr(table, "__missing__") else [value for value in present if value not in table]
    if unknown:
        raise BadFileError(
            f"{path} holds the values {_first_ten(unknown)}, which are not among the {len(table)} of the mapping to "
            "class ids; add them to mask_values in classes.json, or take masks of a known data set from the archive",
            path,
        )
    # Shifted, so that a negative value is no position from the end.
    lookup = np.zeros(present[-1] - present[0] + 1, dtype=np.int32)
    for value in present:
        lookup[value - present[0]] = table[value]
    return lookup[values - present[0]]


def _first_ten(values: list[int]) -> str:
    return ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")


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
        image = load_upright(path, "mask")[0]
        if image.mode in ("RGB", "RGBA"):
            found, numbers = np.unique(mask_colors(image, path).reshape(-1, 3), axis=0, return_counts=True)
            counts.update(dict(zip(map(tuple, found.tolist()), numbers.tolist(), strict=True)))
        else:
            found, numbers = np.unique(_read(path).astype(np.int64), return_counts=True)
            counts.update(dict(zip(found.tolist(), numbers.tolist(), strict=True)))
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
        f"Save this there, with names of your own; {len(chosen)} of {len(paths)} masks were read.{ignored}\n"
        f'{{"ignore_index": 255, "classes": [\n{lines}\n]}}\nShares of the values: {shares}'
    )
