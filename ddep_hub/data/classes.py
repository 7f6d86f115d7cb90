"""The classes of a data set: names, display colours and the value that marks unlabelled pixels."""

import colorsys
import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np


Color = tuple[int, int, int]
BACKGROUND, BACKGROUND_COLOR = "background", (64, 64, 64)
Value = TypeVar("Value")


class _DefaultDict(dict[Value, int]):
    """A mapping in which all other values or colours have the same id."""

    def __init__(self, known: Mapping[Value, int], default: int) -> None:
        super().__init__(known)
        self.default = default

    def __missing__(self, value: Value) -> int:
        return self.default


@dataclass(frozen=True)
class ClassTable:
    """Names and colours of the classes 0..n-1, and the mask value that belongs to none of them.

    A table of one class gets `background` in front, in black: masks hold 0 and 1. The model has one label for it.

    Args:
        names: One name per class; position is the class id. No name occurs twice.
        colors: One RGB colour in 0..255 per class.
        ignore_index: Mask value of unlabelled pixels; not one of the class ids.
        mask_values: The values of each class, if masks do not hold the ids; otherwise empty.
        other_values: How to treat values and colours of no class: `"error"`, `"ignore"`, or the name of the class that
            they belong to, for example if each object has its own id.
        read_colors: Whether colour masks hold `colors`.
        single: Whether there is one class, and the first entry is its background; set by giving one name.

    Raises:
        ValueError: The lengths differ, a name repeats, a mask value belongs to two classes, a colour is out of range,
            `ignore_index` is a class id, or `other_values` names no class.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]
    ignore_index: int = 255
    mask_values: tuple[tuple[int, ...], ...] = ()
    other_values: str = "error"
    read_colors: bool = dataclasses.field(default=False, compare=False)
    single: bool = False

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("names is empty; a class table needs at least one class")
        if len(self.names) == 1:
            self._add_background()
        if len(self.colors) != len(self.names):
            raise ValueError(f"colors has {len(self.colors)} entries for {len(self.names)} names; give one per class")
        duplicates = sorted({name for name in self.names if self.names.count(name) > 1})
        if duplicates:
            raise ValueError(f"names holds {duplicates} more than once; give every class its own name")
        for name, color in zip(self.names, self.colors, strict=True):
            if len(color) != 3 or not all(0 <= channel <= 255 for channel in color):
                raise ValueError(f"color of {name!r} is {color}; give three numbers in 0..255")
        if 0 <= self.ignore_index < len(self.names):
            owner = f"class {self.names[self.ignore_index]!r}"
            if self.single and self.ignore_index == 0:
                owner = f"the background of {self.names[1]!r}"
            raise ValueError(
                f"ignore_index {self.ignore_index} is the id of {owner}; "
                f"choose a value outside 0..{len(self.names) - 1}"
            )

        if self.other_values not in ("error", "ignore", *self.names):
            raise ValueError(f'other_values is {self.other_values!r}; set "error", "ignore" or the name of a class')
        if self.mask_values and len(self.mask_values) != len(self.names):
            raise ValueError("mask_values is given for some classes only; give it for each of them")
        values = [value for group in self.mask_values for value in group]
        duplicate_values = sorted(value for value, count in Counter(values).items() if count > 1)
        if duplicate_values:
            raise ValueError(f"mask_values {duplicate_values} belong to more than one class; give each value to one")

    def _add_background(self) -> None:
        if self.names[0] == "background":
            raise ValueError("the only class is 'background'; name the class to segment against it")
        values = self.mask_values and ((() if 0 in self.mask_values[0] else (0,)), *self.mask_values)
        fields = {"names": ("background", *self.names), "colors": ((0, 0, 0), *self.colors), "mask_values": values}
        for field, value in (fields | {"single": True}).items():
            object.__setattr__(self, field, value)  # the class is frozen

    @property
    def mask_mapping(self) -> Mapping[int, int] | None:
        """Class id of every mask value; `None` if the values are the ids."""
        if not self.mask_values:
            return None
        mapping = {value: index for index, group in enumerate(self.mask_values) for value in group}
        mapping.setdefault(self.ignore_index, self.ignore_index)
        return mapping if self.other_id is None else _DefaultDict(mapping, self.other_id)

    @property
    def mask_colors(self) -> Mapping[Color, int] | None:
        """Class id of every mask colour; `None` if masks hold no colours."""
        if not self.read_colors or len(set(self.colors)) < len(self.colors):
            return None
        mapping = {color: index for index, color in enumerate(self.colors)}
        return mapping if self.other_id is None else _DefaultDict(mapping, self.other_id)

    @property
    def other_id(self) -> int | None:
        """Class id of the values and colours that belong to no class; `None` if they are an error."""
        ids = {"error": None, "ignore": self.ignore_index}
        return ids[self.other_values] if self.other_values in ids else self.names.index(self.other_values)

    def without_mask_values(self) -> "ClassTable":
        """The same classes, for masks whose values are their ids."""
        return ClassTable(self.names, self.colors, self.ignore_index, single=self.single)

    @property
    def fingerprint(self) -> tuple[Any, ...]:
        """Identifies these labels: the names and the meaning of the mask values."""
        other_values = None if self.other_values == "error" else self.other_values
        return (self.names, self.ignore_index, *filter(None, (self.mask_values, other_values)))

    @property
    def num_classes(self) -> int:
        """Number of class ids in masks."""
        return len(self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the model's labels, for which metrics are computed: all but the background of a single class."""
        return self.names[1:] if self.single else self.names

    @property
    def id2label(self) -> dict[int, str]:
        """Label to name, as in a model's config."""
        return dict(enumerate(self.labels))


def ordered_names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the classes 0..n-1 of a model, from its configuration's `id2label`."""
    return tuple(id2label[index] for index in range(len(id2label)))


def colorize(mask: np.ndarray, table: ClassTable) -> np.ndarray:
    """Colours a mask, integers (H, W), by class: uint8 (H, W, 3), black where pixels are ignored.

    Raises a ValueError for another array, or a value that is neither a class id nor the ignore value.
    """
    if mask.ndim != 2 or not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"mask must be integers of shape (H, W), not {mask.dtype} of shape {mask.shape}")
    ignored = mask == table.ignore_index
    unknown = ~ignored & ((mask < 0) | (mask >= table.num_classes))
    if unknown.any():
        unknown_ids = np.unique(mask[unknown]).tolist()
        raise ValueError(f"mask holds {unknown_ids[:10]}, outside the class ids 0..{table.num_classes - 1}")
    palette = np.array([*table.colors, (0, 0, 0)], dtype=np.uint8)
    return palette[np.where(ignored, table.num_classes, mask)]


# Minimum difference, in at least one channel, between a new colour and a given one; smaller in long tables.
MIN_COLOR_DIFFERENCE, MAX_COLOR_STEPS = 48, 500


def class_colors(number: int, avoid: Collection[Color] = ()) -> tuple[Color, ...]:
    """`number` colours, different from each other, from `avoid`, and from black, which stands for ignored pixels."""

    def is_close(color: Color) -> bool:
        differences = (max(abs(a - b) for a, b in zip(color, other, strict=True)) for other in avoid)
        return step < MAX_COLOR_STEPS and any(difference < MIN_COLOR_DIFFERENCE for difference in differences)

    colors: list[Color] = []
    step = 0
    while len(colors) < number:
        # Golden-ratio steps around the colour wheel avoid earlier hues for long; brightness and saturation change with
        # other periods, which also keeps the colours of long palettes distinct.
        hue = step * 0.618033988749895 % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[step % 3], (0.95, 0.75, 0.55, 0.85)[step % 4])
        color = (round(255 * red), round(255 * green), round(255 * blue))
        if color not in avoid and color not in colors and not is_close(color):
            colors.append(color)
        step += 1
    return tuple(colors)
