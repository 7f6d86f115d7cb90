"""Known data sets: their classes, the values of their official masks, their folders and evaluation protocols."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, cast

from PIL import ImageColor

from .classes import ClassTable, Color


@dataclass(frozen=True)
class OfficialSplit:
    """Where the images and masks of a split are, relative to the folder of the data set.

    Args:
        name: The name that users pass; `*` stands for each subfolder that `images` has in this place.
        images: Folder of the images.
        masks: Folder of the masks.
        list: File that lists the images of the split; without one, all images of the folder are in it.
        needs_masks: Whether the split exists only if the folder of the masks does.
    """

    name: str
    images: str
    masks: str
    list: str | None = None
    needs_masks: bool = False


@dataclass(frozen=True)
class OfficialLayout:
    """The folders of a data set as published.

    Args:
        requires: What such a folder must hold, for messages.
        splits: Its splits; of two with the same name, the later one that exists counts.
        evidence: Patterns of files, any of which tells that a folder is this data set. A pattern that starts with a
            name in `folders` is for a folder of that name. Without patterns, any split does.
        unless: Another data set, whose evidence tells that the folder is not this one.
        generic_names: Whether the user's own data may have such folders: beside a class table, which describes them,
            the official splits must exist.
        folders: Folders that hold the data set, if not the folder that the user passes.
        image_suffix: Ending of image names after the sample id.
        mask_suffix: The same for masks.
        redundant: Splits without labelled pixels, or with images of other splits.
        make_masks: What to do if there are no masks; `{folder}` stands for the folder of the data set.
    """

    requires: str
    splits: tuple[OfficialSplit, ...]
    evidence: tuple[str, ...] = ()
    unless: str | None = None
    generic_names: bool = False
    folders: tuple[str, ...] = ()
    image_suffix: str = ""
    mask_suffix: str = ""
    redundant: tuple[str, ...] = ()
    make_masks: str | None = None


@dataclass(frozen=True)
class DatasetInfo:
    """Information about a published data set.

    Args:
        name: Its name here, such as `cityscapes`.
        terms: Its terms of use in a few words; the home page has the binding ones.
        mapping: Class id, or the ignore value, for every value in the official masks.
        layout: Its folders, by which it is recognised.
        evaluation: Arguments of `InferenceOptions` for the evaluation on the data set.
        image_names: Regular expression of its image names without suffix, to tell it from other data in such folders.
        id459: Only for Pascal Context: the value of each class in the original annotations with 459 categories.
    """

    name: str
    title: str
    home_page: str
    terms: str
    classes: ClassTable
    mapping: Mapping[int, int]
    layout: OfficialLayout
    evaluation: Mapping[str, Any]
    image_names: str = ".*"
    id459: tuple[int, ...] = ()


@cache
def get_dataset_info(name: str) -> DatasetInfo:
    """Looks up a data set by its name, one of `list_datasets()`; every call returns the same object."""
    entries = _load_registry()
    if name not in entries:
        raise ValueError(f"data set {name!r} is unknown; choose one of {', '.join(entries)}")
    entry = entries[name]
    classes = ClassTable(
        names=tuple(class_name for class_name, _ in entry["classes"]),
        colors=tuple(cast(Color, ImageColor.getrgb(text)) for _, text in entry["classes"]),
        ignore_index=entry["ignore_index"],
    )
    splits = [OfficialSplit(**split) for split in entry["layout"]["splits"]]
    return DatasetInfo(
        name=name,
        title=entry["title"],
        home_page=entry["home_page"],
        terms=entry["terms"],
        classes=classes,
        mapping=_make_mapping(entry["raw_values"], classes),
        layout=OfficialLayout(**_with_tuples(entry["layout"] | {"splits": splits})),
        evaluation=_with_tuples(entry["evaluation"]),
        image_names=entry.get("image_names", ".*"),
        id459=tuple(entry.get("id459", ())),
    )


def list_datasets() -> list[str]:
    """The names that `get_dataset_info` takes."""
    return list(_load_registry())


def find_dataset_by_classes(names: Sequence[str]) -> DatasetInfo | None:
    """The known data set with exactly these classes, in this order."""
    return next((info for info in map(get_dataset_info, list_datasets()) if info.classes.names == tuple(names)), None)


@cache
def _load_registry() -> dict[str, Any]:
    entries: dict[str, Any] = json.loads(
        (resources.files(__package__) / "dataset_registry.json").read_text(encoding="utf-8")
    )
    return entries


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _make_mapping(raw_values: dict[str, Any], classes: ClassTable) -> dict[int, int]:
    """Either a table of class ids by raw value, or `raw value = class id + offset` besides the ignored raw values."""
    if "table" in raw_values:
        return dict(enumerate(raw_values["table"]))
    ids = {index + raw_values["offset"]: index for index in range(classes.num_classes)}
    return ids | dict.fromkeys(raw_values["ignored"], classes.ignore_index)
