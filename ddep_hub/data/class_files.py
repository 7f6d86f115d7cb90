"""Reads, writes and suggests the classes of a data set: `classes.json`."""

import difflib
import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .classes import BACKGROUND, BACKGROUND_COLOR, ClassTable, Color, class_colors
from .mask_files import load_mask
from .mask_inspection import IGNORED, MaskSurvey, palettes_differ
from .masks import COLOR_MODES, read_pixels


def read_class_table(path: str | Path) -> ClassTable:
    """Reads a `classes.json`.

    Accepted are `{"classes": [{"id": 0, "name": "sky", "color": [70, 130, 180]}, ...], "ignore_index": 255}` with
    `color` and `ignore_index` optional, that list alone, a list of names, `{"0": "sky", ...}` and `{"sky": 0, ...}`.

    If masks do not hold the ids, each class has `"mask_values"`, a value or a list of them. All other values are an
    error, unless `"other_values"` beside `classes` is `"ignore"`, or the name of the class that they belong to. If all
    classes have a `color`, colour masks are read by these, and `other_values` applies to other colours.

    A single class is segmented against the background: masks hold 0 and 1, or 0 and its `mask_values`, or black and
    its colour. Classes without a colour get one that no other class has.

    Raises a FileNotFoundError if there is no such file, and a ValueError that names the file and the key if the
    content has none of these forms.
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


def _parse_table(content: Any) -> ClassTable:
    """Builds the table from a file's content, an object or a list; a ValueError names the key."""
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


def _parse_mask_values(value: Any) -> tuple[int, ...]:
    return tuple(_parse_int(number, "mask_values") for number in (value if isinstance(value, list) else [value]))


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Rejects duplicate keys in a JSON object, of which the first value would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return content


def _check_keys(entry: Mapping[str, Any], known: Sequence[str], prefix: str) -> None:
    """Rejects misspelt keys, which would have no effect; other unknown keys may belong to other programs."""
    for key in entry:
        matches = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        matches += ["ignore_index"] if key.startswith("ignore") and "ignore_index" in known else []
        if key not in known and matches and matches[0] not in entry:
            raise ValueError(f"{prefix}{key} is not a known key; did you mean {matches[0]}?")


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


def suggest_classes(paths: Sequence[Path]) -> str:
    """Suggests the content of `classes.json`, from the values or colours in at most 100 of the masks."""
    sampled_paths = paths[:: -(-len(paths) // 100)]
    survey = _survey_masks(sampled_paths)
    if set(survey.counts) == {0, 1, 255}:  # the 1 may come only from 1-bit masks, whose white is 255 beside 8-bit ones
        white_survey = _survey_masks(sampled_paths, {0: 0, 255: 1})
        survey = white_survey if set(white_survey.counts) == {0, 255} else survey
    counts = survey.counts
    if survey.number_objects:
        ignore = '"ignore_index": -1, ' if 255 in counts else ""  # 255 is an object
        return (
            "These are instance masks, whose objects are numbered from 1. To make one class of them, save this there, "
            f'with your own name:\n{{{ignore}"classes": [{{"id": 0, "name": "object"}}], "other_values": "object"}}'
        )
    values = sorted(counts, key=lambda value: value if isinstance(value, tuple) else (value,))
    if survey.are_smoothed:
        if survey.has_colors:
            return (
                f"The masks hold {len(values)} colours, and most look like smoothed borders. Save the masks without "
                'smoothing, or name the colours of the classes there and set "other_values": "ignore".'
            )
        return (
            f"The masks hold {len(values)} values from 0 to 255. If their borders are smoothed, save them again with "
            "only 0 and 255; if each object has its own id, set `other_values` to the name of their class."
        )
    class_values = [value for value in values if value != 255 or set(values) == {0, 255}]
    if len(class_values) > 255:  # too many for ids beside the ignore index 255
        return (
            f"The masks hold {len(values)} values. If each object has its own id, set `other_values` to the "
            "name of their class; if colours are smoothed, save the masks without smoothing; if they are classes, "
            'name them there and set "ignore_index": -1.'
        )
    classes: list[dict[str, Any]] = []
    for index, value in enumerate(class_values):
        classes.append({"id": index, "name": f"class {index}"})
        if isinstance(value, tuple):
            classes[-1]["color"] = list(value)
        elif class_values != list(range(len(class_values))):
            classes[-1]["mask_values"] = value
    lines = ",\n".join(f"  {json.dumps(entry)}" for entry in classes)
    total = sum(counts.values())
    shares = ", ".join(f"{value}: {counts[value] / total:.1%}" for value in values[:20])
    ignored = " 255 is ignored." if len(class_values) < len(values) else ""
    return (
        f"Save this there, with your own names; {len(sampled_paths)} of {len(paths)} masks were "
        f'read.{ignored}\n{{"ignore_index": 255, "classes": [\n{lines}\n]}}\nShares of the values: {shares}'
    )


def _survey_masks(paths: Sequence[Path], mapping: Mapping[int, int] | None = None) -> MaskSurvey:
    """Reads masks as [`decode_mask`] does: with `mapping` if given, otherwise with any values and colours."""
    survey = MaskSurvey()
    color_modes = (*COLOR_MODES, "P") if palettes_differ(paths) else COLOR_MODES
    for path in paths:
        mask = load_mask(path)
        pixels = read_pixels(mask, path, mapping, color_modes=color_modes)
        # An index keeps its meaning whatever its colour, except in a GIF, whose palette has no reliable order.
        keeps_ignored = mask.image.mode == "P" and pixels.ndim == 3 and mask.format != "GIF"
        survey.add(pixels, is_ignored=np.asarray(mask.image) == IGNORED if keeps_ignored else None)
    return survey
