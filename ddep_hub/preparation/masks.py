"""Converts masks with any values or colours to class ids, and reads stacks, Roboflow's masks and masks of objects."""

import csv
import dataclasses
import re
from collections.abc import Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddep_hub.data.classes import ClassTable, class_colors
from ddep_hub.data.folders import canonical_split, subfolders
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, BadFileError, iter_files
from ddep_hub.data.mask_inspection import IGNORED
from ddep_hub.data.name_matching import IMAGE_WORDS, MASK_WORDS
from ddep_hub.data.pairing import pair_files
from ddep_hub.utils.files import SYSTEM_FILES, format_list

from .image_files import count_pages, image_size, read_image_file
from .mask_values import IGNORED_COLOR, MaskReader, known_ids
from .source import Example, Source, example_name, object_classes, pluralize


# More unknown values than this are hardly forgotten classes.
_MANY_UNKNOWN = 8


def make_source(
    kind: str,
    files: Sequence[tuple[str | None, str, Path, Path]],
    table: ClassTable | None,
    notes: list[str],
    groups: Mapping[str, str] | None = None,
) -> Source:
    """Makes the source of masks whose values or colours become class ids; divides stacks into their pages.

    `files` are split, name, image and mask of each sample; `table` holds the classes, if they are known; `notes` is
    extended.
    """
    groups = groups or {}
    pages: list[tuple[str | None, str, Path, Path, int | None, str | None]] = []
    num_channel_stacks = 0
    for split, name, image, mask in files:
        num_mask_pages, num_image_pages = count_pages(mask), count_pages(image)
        if num_mask_pages not in (1, num_image_pages):
            raise ValueError(f"{image} has {num_image_pages} pages, but its mask {mask} has {num_mask_pages}.")
        num_channel_stacks += num_image_pages > num_mask_pages
        page_indices: list[int | None] = [None] if num_mask_pages == 1 else list(range(num_mask_pages))
        for page in page_indices:
            # Not the path: the choice of pages for validation would depend on where the folder lies.
            page_name, stack = (name, None) if page is None else (f"{name}-{page:04d}", f"{split}/{name}")
            pages.append((split, page_name, image, mask, page, groups.get(name, stack)))
    if num_channel_stacks:
        notes.append(
            f"{pluralize(num_channel_stacks, 'image')} with several pages and a mask of one: the pages are read as "
            "channels"
        )
    reader = MaskReader(table)
    survey = reader.survey([(mask, page) for *_, mask, page, _ in pages])
    nodata = _find_nodata(reader, survey.counts.keys(), table)
    mask_values, is_color = survey.counts.keys() - nodata, survey.has_colors
    if table is None and survey.number_objects:
        notes.append(
            "each mask numbers its objects, from 1 on, so all are read as one class. If the values are classes, name "
            "them with --classes"
        )
        mapping, classes = {value: int(value != 0) for value in mask_values}, object_classes(["object"])
    else:
        mapping, classes = _make_classes(mask_values, table, is_color, survey.are_smoothed)
        if table is None and not is_color and IGNORED in mask_values and len(mask_values) > 2:
            notes.append(
                f"{IGNORED} is read as pixels to ignore. If it is a class, name it with --classes and mask_values"
            )
    mapping |= dict.fromkeys([*nodata, IGNORED_COLOR], classes.ignore_index)
    if nodata:
        values = format_list(sorted(nodata))
        notes.append(f"{values} is read as pixels to ignore: the tag GDAL_NODATA of the masks says they hold no data")
    if any(page is not None for *_, page, _ in pages):
        kind = f"TIFF stacks of {kind}"
    examples = [
        Example(
            name,
            image if page is None else partial(read_image_file, image, page),
            partial(reader.read_ids, mask, page, mapping),
            split,
            group,
        )
        for split, name, image, mask, page, group in pages
    ]
    kind += f" with the {'colours' if is_color else 'values'} {format_list(sorted(mask_values), 8)}"
    return Source(kind, classes, examples, notes, has_values=not is_color)


def _find_nodata(reader: MaskReader, mask_values: Set[Any], table: ClassTable | None) -> set[int]:
    """Which values mean pixels without data: those that the masks state, unless they are a class."""
    found = {value for value in mask_values & reader.nodata if table is None or value not in known_ids(table)}
    # 255 is ignored anyway, unless it is the object of a binary mask.
    return found - {IGNORED} if table is None else found


def _make_classes(
    mask_values: set[Any], table: ClassTable | None, is_color: bool, are_smoothed: bool
) -> tuple[dict[Any, int], ClassTable]:
    if table is not None:
        if is_color:
            known_values: Mapping[Any, int] = table.mask_colors or {
                color: index for index, color in enumerate(table.colors)
            }
        else:
            known_values = known_ids(table)
        unknown = sorted(mask_values - known_values.keys())
        if unknown and table.other_id is None:
            hint = ', with a "color" for each' if is_color and table.mask_colors is None else ""
            if len(unknown) > _MANY_UNKNOWN:
                hint += ', or set "other_values": "ignore" there if the edges are smoothed'
            raise ValueError(
                f"The masks hold {format_list(unknown, 8)}, which belongs to no class. Add it to the classes{hint}."
            )
        mapping = dict.fromkeys(unknown, table.other_id) | {
            value: known_values[value] for value in mask_values.difference(unknown)
        }
        return mapping, table.without_mask_values()
    values = sorted(mask_values)
    if not is_color and IGNORED in values and values != [0, IGNORED]:
        values.remove(IGNORED)  # as everywhere, unless it is the object of a binary mask
    if values == [IGNORED] or not values:
        raise ValueError(f"All masks hold only {IGNORED}, which means no class. Use masks that show the objects.")
    if values in ([0], [(0, 0, 0)]):
        raise ValueError("All masks hold only 0: they show no object. Use masks that show the objects.")
    if len(values) > 256 or are_smoothed:
        raise ValueError(
            f"The masks hold {len(values)} different {'colours' if is_color else 'values'}: they are smoothed, or "
            'not masks. Name the right ones with --classes; "other_values": "ignore" there ignores the others.'
        )
    names = ["_".join(map(str, ("color", *value))) if is_color else f"value_{value}" for value in values]
    mapping = {} if is_color else {IGNORED: IGNORED}
    mapping |= {value: index for index, value in enumerate(values)}
    if values == [0, IGNORED]:
        return mapping, object_classes(["object"])
    if len(values) == 1:  # of the only class, and the rest is unlabelled
        return {**mapping, values[0]: 1}, object_classes(["object"])
    return mapping, ClassTable(tuple(names), tuple(values) if is_color else class_colors(len(values)))


# --- Stacks with any names


def pair_stacks(root: Path) -> list[tuple[Path, Path]]:
    """TIFFs side by side, such as `train-volume.tif` and `train-labels.tif`: image and mask of each pair."""
    stacks = sorted(path for path in root.iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for path in stacks:
        words = _words(path)
        core = tuple(word for word in words if word not in MASK_WORDS | IMAGE_WORDS | {"volume", "stack"})
        (masks if set(words) & MASK_WORDS else images)[core] = path
    return [(path, masks[core]) for core, path in images.items() if core in masks]


def read_stacks(root: Path, table: ClassTable | None) -> Source | None:
    """The pairs of [`pair_stacks`], page by page; `None` if there are no pairs of several pages."""
    pairs = pair_stacks(root)
    if not any(count_pages(image) > 1 for image, _ in pairs):
        return None
    splits = [next((split for word in _words(image) if (split := canonical_split(word))), None) for image, _ in pairs]
    if None in splits or len(set(splits)) == 1:
        splits = [None] * len(pairs)
    files = [(split, image.stem, image, mask) for split, (image, mask) in zip(splits, pairs, strict=True)]
    return make_source("masks", files, table, [])


def _words(path: Path) -> list[str]:
    return re.findall("[a-z]+|[0-9]+", path.stem.lower())


# --- Roboflow's masks


def read_roboflow_masks(tables: Sequence[Path]) -> Source:
    """Roboflow's "semantic segmentation masks": `a.jpg`, `a_mask.png`, and `_classes.csv` in each split's folder."""
    names: dict[int, str] = {}
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2 and row[0].strip().isdigit()]
        names |= {int(row[0]): row[1].strip() for row in rows}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{tables[0]}: pixel values {sorted(names)} are not 0, 1, 2, ... Export the data set again.")
    table = ClassTable(tuple(names[index] for index in range(len(names))), class_colors(len(names)))
    files = [
        (
            path.parent.name if len(tables) > 1 else None,
            example_name(image, path.parent),
            image,
            pairs.masks[sample_id],
        )
        for path in tables
        for pairs in [pair_files(path.parent, path.parent)]
        for sample_id, image in pairs.images.items()
        if sample_id in pairs.masks
    ]
    if not files:
        raise ValueError(f"{tables[0].parent} holds no image with a matching mask. Export the data set again.")
    return make_source("Roboflow's masks", files, table, [])


def read_object_folders(root: Path, table: ClassTable | None) -> Source | None:
    """One mask file per object, as in the Data Science Bowl 2018: their union is the class; `None` without any.

    Raises a ValueError if a folder holds several images, or other files in place of masks.
    """
    folders = _object_folders(root)
    if not folders:
        return None
    parents = {folder.parent for folder in folders}
    examples, notes, num_empty, without_image = [], list[str](), 0, list[str]()
    for folder, images in folders.items():
        if len(images) > 1:
            raise ValueError(f"{folder / 'images'} holds {len(images)} images, {images[0].name} among them. Keep one.")
        if not images:
            without_image.append(folder.name)
            continue
        masks = _list_mask_images(folder / "masks")
        files = sorted(iter_files(folder / "masks"))
        other_files = [path.name for path in map(Path, files) if path.name not in SYSTEM_FILES]
        if other_files and not masks:
            raise ValueError(f"{folder / 'masks'} holds {format_list(other_files, 1)}: save the masks as PNG.")
        num_empty += not masks
        split = folder.parent.name if len(parents) > 1 else None
        examples.append(Example(folder.name, images[0], partial(_merge_object_masks, images[0], masks), split))
    if num_empty:
        notes.append(f"{pluralize(num_empty, 'image')} without an object")
    if without_image:
        notes.append(
            f"{pluralize(len(without_image), 'folder')} with masks but no image, such as {without_image[0]}: skipped"
        )
    classes = table or object_classes(["object"])
    if classes.num_classes != 2:
        raise ValueError(f"Object masks have two classes, background and object, not {classes.num_classes}.")
    return Source("one mask for each object", classes.without_mask_values(), examples, notes, has_values=True)


def _object_folders(root: Path) -> dict[Path, list[Path]]:
    """Folders of one image with the masks of its objects, and their images, at most two levels down.

    These are `<id>/images/*` and `<id>/masks/*`; none if most of such folders hold several images.
    """
    folders: dict[Path, list[Path]] = {}
    for parent in (root, *(root / name for name in subfolders(root))):
        for name in subfolders(parent):
            folder = parent / name
            if {"images", "masks"} <= set(subfolders(folder)) and not canonical_split(name):
                folders[folder] = _list_mask_images(folder / "images")
    num_single = sum(len(images) == 1 for images in folders.values())
    return folders if 2 * num_single > len(folders) else {}


def _list_mask_images(folder: Path) -> list[Path]:
    return sorted(folder / name for name in iter_files(folder, IMAGE_EXTENSIONS))


def _merge_object_masks(image: Path, masks: Sequence[Path]) -> np.ndarray:
    union: np.ndarray | None = None
    for path in masks:
        count = count_pages(path)
        for page in range(count):
            pixels = _object_pixels(path, page if count > 1 else None)
            union = pixels if union is None else union
            if pixels.shape != union.shape:
                raise BadFileError(f"{path} differs in size from other masks of its image {image}", str(path))
            union = union | pixels
    if union is None:
        union = np.zeros(image_size(read_image_file(image), None), bool)
    return union.astype(np.uint8)


def _object_pixels(path: Path, page: int | None) -> np.ndarray:
    """Where a mask of one object is not black, or its alpha channel shows it: bool (H, W)."""
    reader = MaskReader(as_colors=True, palettes_as_colors=True)
    values = reader.read(path, page)
    if not values.any():
        alpha = dataclasses.replace(reader, in_alpha=True).read(path, page)
        values = values if alpha.all() else alpha
    return np.asarray(values.any(axis=-1) if values.ndim == 3 else values != 0)
