"""The classes of a data set: names, display colours and the value that marks unlabelled pixels."""

import colorsys
import dataclasses
import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np


Color = tuple[int, int, int]
BACKGROUND, BACKGROUND_COLOR = "background", (64, 64, 64)
Value = TypeVar("Value")


class _DefaultDict(dict[Value, int]):
    """A mapping that gives all other values or colours one id."""

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
        mask_values: For masks whose values are not the ids: the values of each class. Empty where they are.
        other_values: What values and colours are that no class has: an `"error"`, to `"ignore"`, or of the class of
            this name, as where each object has an id of its own.
        read_colors: Whether masks in colour hold `colors`.
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
        """Identifies these labels: the names, and what the values of the masks mean."""
        other_values = None if self.other_values == "error" else self.other_values
        return (self.names, self.ignore_index, *filter(None, (self.mask_values, other_values)))

    @property
    def num_classes(self) -> int:
        """Number of class ids that masks hold."""
        return len(self.names)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the model's labels, which metrics are computed for: all but the background of a single class."""
        return self.names[1:] if self.single else self.names

    @property
    def id2label(self) -> dict[int, str]:
        """Label to name, as a model's config wants it."""
        return dict(enumerate(self.labels))


def ordered_names(id2label: Mapping[int, str]) -> tuple[str, ...]:
    """Names of the classes 0..n-1 of a model, from its configuration's `id2label`."""
    return tuple(id2label[index] for index in range(len(id2label)))


def read_class_table(path: str | Path) -> ClassTable:
    """Reads a `classes.json`.

    Accepted are `{"classes": [{"id": 0, "name": "sky", "color": [70, 130, 180]}, ...], "ignore_index": 255}` with
    `color` and `ignore_index` optional, that list alone, a list of names, `{"0": "sky", ...}` and `{"sky": 0, ...}`.

    Where masks do not hold the ids, each class has `"mask_values"`, a value or a list of them; with
    `"other_values": "ignore"` beside `classes` all further values are ignored, with the name of a class they belong to
    it, otherwise they are an error. Where all classes have a `color`, masks in colour are read by these, and
    `other_values` is about further colours.

    A single class is told from background: masks hold 0 and 1, or 0 and its `mask_values`, or black and its colour.
    Classes without a colour get one that no other class has.

    Raises a FileNotFoundError if there is no such file, and a ValueError that names the file and the key if the
    content is not one of these shapes.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except FileNotFoundError:
        raise FileNotFoundError(
            f'{path} is missing; write the class names there, for example {{"classes": [{{"id": 0, "name": "sky"}}]}},'
            " or convert the export of an annotation tool with `ddep-hub prepare`"
        ) from None
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); correct the file") from error
    if not isinstance(content, dict | list):
        raise ValueError(
            f"{path} holds {_describe_type(content)}; it must be an object with key 'classes' or a list of names"
        )
    if not content or (isinstance(content, dict) and content.get("classes") == []):
        raise ValueError(f"{path} lists no classes; add at least one under key 'classes'")
    try:
        return _parse_table(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _parse_table(content: Any) -> ClassTable:
    """The table that a file with this content, an object or a list, describes; a ValueError names the key."""
    ignore_index, other_values, entries = 255, "error", content
    if isinstance(content, dict) and "classes" in content:
        ignore_index = _parse_int(content.get("ignore_index", 255), "ignore_index")
        other_values, entries = content.get("other_values", "error"), content["classes"]
        _check_keys(content, ("classes", "ignore_index", "other_values"), "")
        if not isinstance(entries, list):
            raise ValueError(f"key 'classes' must be a list of {{id, name, color}}, not {_describe_type(entries)}")
    elif isinstance(content, dict) and all(type(value) is int for value in content.values()):
        entries = [{"id": index, "name": name} for name, index in content.items()]
    elif isinstance(content, dict):
        entries = [{"id": _parse_class_id(key), "name": name} for key, name in content.items()]
    elif not all(isinstance(entry, dict) for entry in content):
        entries = [{"id": index, "name": name} for index, name in enumerate(content)]
    names, colors = _parse_entries(entries)
    ordered = sorted(entries, key=lambda entry: entry["id"])
    return ClassTable(
        names=names,
        colors=colors,
        ignore_index=ignore_index,
        mask_values=tuple(_parse_mask_values(entry["mask_values"]) for entry in ordered if "mask_values" in entry),
        other_values=other_values,
        read_colors=all(entry.get("color") is not None for entry in entries),
    )


def write_class_table(table: ClassTable, path: str | Path) -> None:
    """Writes a class table as the JSON file that `read_class_table` reads."""
    classes: list[dict[str, Any]] = [
        {"id": index, "name": name, "color": list(color)}
        for index, (name, color) in enumerate(zip(table.names, table.colors, strict=True))
    ]
    for entry, values in zip(classes, table.mask_values, strict=False):
        entry["mask_values"] = list(values)
    if table.single:
        classes = [{**classes[1], "id": 0}]
    content: dict[str, Any] = {"ignore_index": table.ignore_index}
    if table.other_values != "error":
        content["other_values"] = table.other_values
    text = json.dumps({**content, "classes": classes}, indent=1, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")


def _parse_mask_values(value: Any) -> tuple[int, ...]:
    return tuple(_parse_int(number, "mask_values") for number in (value if isinstance(value, list) else [value]))


def colorize(mask: np.ndarray, table: ClassTable) -> np.ndarray:
    """Paints a mask, integers (H, W), in the classes' colours: uint8 (H, W, 3), black where pixels are ignored.

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


def _parse_entries(entries: Any) -> tuple[tuple[str, ...], tuple[Color, ...]]:
    names: dict[int, str] = {}
    colors_by_id: dict[int, Color] = {}
    for position, entry in enumerate(entries):
        key = f"classes[{position}]"
        if not isinstance(entry, dict):
            raise ValueError(f"{key} is {_describe_type(entry)}; it must be an object with keys id and name")
        for field in ("id", "name"):
            if field not in entry:
                raise ValueError(f"{key} has no key {field!r}; add it")
        _check_keys(entry, ("id", "name", "color", "mask_values"), f"{key}.")
        index = _parse_int(entry["id"], f"{key}.id")
        if index in names:
            raise ValueError(f"{key}.id is {index}, the id of an earlier class; ids must not repeat")
        name = entry["name"]
        if not isinstance(name, str) or not name:
            raise ValueError(f"{key}.name must be a non-empty string, not {name!r}")
        if any(unicodedata.category(character) == "Cc" for character in name):  # they break tables and files of names
            raise ValueError(f"{key}.name is {name!r}; leave out line breaks and other control characters")
        names[index] = name
        if entry.get("color") is not None:
            colors_by_id[index] = _parse_color(entry["color"], f"{key}.color")
    if list(names) == [1]:  # the value of a single class in masks
        names, colors_by_id = {0: names[1]}, ({0: colors_by_id[1]} if colors_by_id else {})
    if sorted(names) != list(range(len(names))):
        missing = sorted(set(range(len(names))) - set(names))
        invalid_id = next(index for index in names if not 0 <= index < len(names))
        raise ValueError(
            f"ids must be 0..{len(names) - 1} without gaps; key 'id' is missing {missing[:10]}. If the masks "
            f'hold other values, give them to the classes: {{"id": {missing[0]}, "mask_values": {invalid_id}, ...}}'
        )
    for index, name in names.items():
        if name.lower() == BACKGROUND and index not in colors_by_id and BACKGROUND_COLOR not in colors_by_id.values():
            colors_by_id[index] = BACKGROUND_COLOR
    spare_colors = iter(class_colors(len(names), avoid=colors_by_id.values()))
    colors = tuple(colors_by_id[index] if index in colors_by_id else next(spare_colors) for index in range(len(names)))
    return tuple(names[index] for index in range(len(names))), colors


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON file; refuses a key that occurs twice, whose first value would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return content


def _check_keys(entry: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    """Refuses misspelt keys, which would have no effect; other unknown keys belong to other programs."""
    for key in entry:
        matches = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        matches += ["ignore_index"] if key.startswith("ignore") and "ignore_index" in known else []
        if key not in known and matches and matches[0] not in entry:
            raise ValueError(f"{prefix}{key} is not a known key; did you mean {matches[0]}?")


# In one channel at least, between a new colour and one that is given; in long tables, some are closer.
MIN_COLOR_DIFFERENCE, MAX_COLOR_STEPS = 48, 500


def class_colors(number: int, avoid: Collection[Color] = ()) -> tuple[Color, ...]:
    """`number` colours, different from each other, from `avoid`, and from black, which stands for ignored pixels."""

    def is_close(color: Color) -> bool:
        differences = (max(abs(a - b) for a, b in zip(color, other, strict=True)) for other in avoid)
        return step < MAX_COLOR_STEPS and any(difference < MIN_COLOR_DIFFERENCE for difference in differences)

    colors: list[Color] = []
    step = 0
    while len(colors) < number:
        # Golden-ratio steps around the colour wheel stay away from earlier hues for long; brightness and saturation
        # change with other periods, which keeps the colours of long palettes distinct too.
        hue = step * 0.618033988749895 % 1.0
        red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.55, 0.7)[step % 3], (0.95, 0.75, 0.55, 0.85)[step % 4])
        color = (round(255 * red), round(255 * green), round(255 * blue))
        if color not in avoid and color not in colors and not is_close(color):
            colors.append(color)
        step += 1
    return tuple(colors)


def _parse_color(value: Any, key: str) -> Color:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError(f"{key} is {value!r}; give three numbers in 0..255")
    red, green, blue = (_parse_int(channel, key) for channel in value)
    return red, green, blue


def _parse_int(value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{key} must be a whole number, not {value!r}")
    return value


def _parse_class_id(key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        raise ValueError(f"key {key!r} is neither 'classes' nor a class id; see docs/data.md for what it may hold")
    return int(key)


def _describe_type(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "a text", type(None): "null"}
    return kinds.get(type(value), f"the value {value!r}")
