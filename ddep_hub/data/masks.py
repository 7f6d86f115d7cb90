"""Mask files as class ids, and how often each class occurs in them."""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .classes import ClassTable
from .image_io import BadFileError, Undecoded, file_name, load_upright


def decode_mask(
    path: str | Path | Undecoded,
    *,
    num_classes: int,
    ignore_index: int,
    mapping: Mapping[int, int] | np.ndarray | None = None,
    colors: Mapping[tuple[int, int, int], int] | None = None,
) -> np.ndarray:
    """Reads a mask of class ids: greyscale of any depth, bilevel, the indices of a palette, or colours of classes.

    Bilevel masks, GIF and MinIsWhite included, have the values 0 (black) and 1 (white).

    Args:
        path: Its path, or an undecoded file.
        num_classes: Class ids are 0..num_classes-1.
        ignore_index: The one other value allowed.
        mapping: Class id, or `ignore_index`, of every value that the file may hold; an array has the id of value i
            at position i. Without it the file's values are the ids.
        colors: Class id, or `ignore_index`, of every colour of an RGB mask. Without it masks in colour are refused.

    Returns:
        Array (H, W): uint8, or int32 where the class ids or `ignore_index` do not fit 0..255.

    Raises:
        FileNotFoundError: There is no such file.
        BadFileError: It is damaged, holds colours instead of ids, is a lossy JPEG, holds another id, or a value that
            is not in `mapping`.
    """
    image, file_format, packing = load_upright(path, "mask")
    path = file_name(path)
    if file_format == "JPEG":
        raise BadFileError(f"{path} is a JPEG, whose compression changes class ids; save the mask as PNG", path)
    if image.mode in ("RGB", "RGBA") and colors:
        return _ids_of_colors(np.asarray(image.convert("RGB")), colors, path, num_classes, ignore_index)
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise BadFileError(
            f"{path} has colour mode {image.mode}, but masks hold class ids in a single channel; "
            "convert the colours to the ids of classes.json and save them as 8-bit greyscale or palette PNG",
            path,
        )
    values = np.array(image)
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if file_format == "GIF" and image.mode == "L" and set(np.unique(values)) <= {0, 255}:
        values = values // 255  # a palette of black and white, which Pillow reads as greyscale
    # Pillow stretches 2- and 4-bit greyscale to 0..255, which turns id 1 into 85 or 17.
    values = values // {"L;2": 85, "L;4": 17}.get(packing or "", 1)
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


def _id_type(num_classes: int, ignore_index: int) -> type[np.generic]:
    return np.uint8 if num_classes <= 256 and 0 <= ignore_index <= 255 else np.int32


def _ids_of_colors(
    pixels: np.ndarray, colors: Mapping[tuple[int, int, int], int], path: str, num_classes: int, ignore_index: int
) -> np.ndarray:
    """Class ids of an RGB mask, as `decode_mask` gives them."""
    packed = pixels.astype(np.int32) @ np.array([65536, 256, 1], dtype=np.int32)
    present, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    ids = []
    for value, count in zip(present.tolist(), counts.tolist(), strict=True):
        color = (value >> 16, value >> 8 & 255, value & 255)
        if color not in colors and not hasattr(colors, "__missing__"):
            nearest = min(colors, key=lambda known: sum((a - b) ** 2 for a, b in zip(known, color, strict=True)))
            raise BadFileError(
                f"{path} holds the colour {color} in {100 * count / packed.size:.3g} % of its pixels, which no class "
                f"of classes.json has; the nearest is {nearest} of class {colors[nearest]}. Save the mask without "
                'smoothing, add the colour to classes.json, or set "other_values": "ignore" there',
                path,
            )
        ids.append(colors[color])
    table = np.array(ids, dtype=_id_type(num_classes, ignore_index))
    return table[inverse.reshape(packed.shape)]


def _mapped(values: np.ndarray, present: list[int], mapping: Mapping[int, int] | np.ndarray, path: str) -> np.ndarray:
    table = dict(enumerate(mapping.tolist())) if isinstance(mapping, np.ndarray) else mapping
    unknown = [] if hasattr(table, "__missing__") else [value for value in present if value not in table]
    if unknown:
        raise BadFileError(
            f"{path} holds the values {_first_ten(unknown)}, which are not among the {len(table)} of the mapping to "
            "class ids; if the file is a mask of this data set, take it from the original archive again",
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
            pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
            found, numbers = np.unique(pixels, axis=0, return_counts=True)
            counts.update(dict(zip(map(tuple, found.tolist()), numbers.tolist(), strict=True)))
        else:
            found, numbers = np.unique(np.asarray(image).astype(np.int64), return_counts=True)
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


class LabelledDataset(Protocol):
    """What has classes and masks, such as `SegmentationFolder`."""

    classes: ClassTable

    def __len__(self) -> int: ...

    def mask(self, index: int, /) -> np.ndarray:
        """Class ids (H, W) of one sample."""
        ...


class ClassStatistics:
    """Counts in how many pixels and images each class occurs.

    Args:
        names: Names of the classes 0..n-1.
        ignore_index: Label of the pixels that belong to none.

    Attributes:
        counts: int64 (3, n + 1): for each class, and ignored pixels last, the pixels, the images in which it occurs,
            and the labelled pixels of these images. Those of several processes or parts of a data set add up.
    """

    def __init__(self, names: Sequence[str], ignore_index: int) -> None:
        self.names = tuple(names)
        self.ignore_index = ignore_index
        self.counts = np.zeros((3, len(names) + 1), np.int64)

    def update(self, mask: np.ndarray) -> None:
        """Adds a mask (H, W) of class ids and `ignore_index`."""
        labelled = mask[mask != self.ignore_index]
        pixels = np.append(np.bincount(labelled, minlength=len(self.names)), mask.size - labelled.size)
        self.counts += np.stack([pixels, pixels > 0, labelled.size * (pixels > 0)])

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class, int64 (n,)."""
        return self.counts[0, :-1]

    @property
    def images(self) -> np.ndarray:
        """Images in which each class occurs, int64 (n,)."""
        return self.counts[1, :-1]

    @property
    def pixels_around(self) -> np.ndarray:
        """Labelled pixels of the images in which each class occurs, int64 (n,)."""
        return self.counts[2, :-1]

    @property
    def num_ignored(self) -> int:
        """Ignored pixels."""
        return int(self.counts[0, -1])

    @property
    def absent(self) -> list[str]:
        """Names of the classes without a pixel."""
        return [name for name, pixels in zip(self.names, self.pixels.tolist(), strict=True) if not pixels]

    @property
    def ignored_share(self) -> float:
        """Share of pixels that are ignored, 0..1."""
        return self.num_ignored / max(1, int(self.counts[0].sum()))

    def table(self) -> str:
        """One line per class, to print."""
        total = max(1, int(self.counts[0].sum()))
        width = max(map(len, [*self.names, "ignored"]))
        lines = [
            f"{name:{width}}  {pixels:>12,} pixels ({pixels / total:6.2%})  {images:>7,} images"
            for name, pixels, images in zip(self.names, self.pixels.tolist(), self.images.tolist(), strict=True)
        ]
        return "\n".join([*lines, f"{'ignored':{width}}  {self.num_ignored:>12,} pixels ({self.ignored_share:6.2%})"])


def class_statistics(dataset: LabelledDataset) -> ClassStatistics:
    """The statistics of a split; reads every mask once.

    Raises:
        BadFileError: A mask cannot be used.
    """
    statistics = ClassStatistics(dataset.classes.names, dataset.classes.ignore_index)
    for index in range(len(dataset)):
        statistics.update(dataset.mask(index))
    return statistics


def check_classes(statistics: ClassStatistics, mask_values: Collection[int] | None = None) -> None:
    """Refuses training labels in which a class has no pixel: it cannot be learnt, and its score means nothing.

    Args:
        statistics: Of the training labels.
        mask_values: Values that the mask files hold, where they are known and are the class ids themselves.

    Raises:
        ValueError: A class has no pixel; names it and what to do.
    """
    if not statistics.absent:
        return
    if mask_values is None:
        mask_values = {index for index, pixels in enumerate(statistics.pixels.tolist()) if pixels}
        mask_values |= {statistics.ignore_index} if statistics.num_ignored else set()
    names = ", ".join(map(repr, statistics.absent[:10])) + (", ..." if len(statistics.absent) > 10 else "")
    if len(statistics.names) <= 2 and statistics.ignore_index == 255 and set(mask_values) in ({0, 255}, {255}):
        advice = (
            "The masks hold the values 0 and 255, and 255 is the ignore index, so that no object is seen: set "
            f'"mask_values": 255 for {statistics.names[-1]!r} in classes.json, and "mask_values": 0 for '
            f"{statistics.names[0]!r} if it is listed there."
        )
    else:
        advice = (
            "Correct the masks, label an image that shows it, take it out of classes.json, or train without it with "
            "--allow_empty_classes."
        )
    raise ValueError(
        f"No pixel of the training labels belongs to {names}; {statistics.ignored_share:.1%} of the pixels are "
        f"ignored. {advice}"
    )
