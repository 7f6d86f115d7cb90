"""Sources that have a mask for each image, or one for each object: folders, stacks, exports of masks."""

import csv
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddep_hub.data.classes import ClassTable, Color, class_colors, read_class_table
from ddep_hub.data.folders import canonical_split, find_split_folders, subfolders
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, BadFileError, format_list, is_array, iter_files
from ddep_hub.data.layouts import find_layout
from ddep_hub.data.pairing import IMAGE_WORDS, MASK_WORDS, PAIRS, Pairs, pair_files, read_pairs
from ddep_hub.data.segmentation_datasets import SegmentationFolder, available_splits

from .image_files import count_pages, image_size, read_image_file
from .mask_values import IGNORED, MaskReader, object_pixels
from .source import Example, Source, name_of, object_classes, pluralize


# Files that operating systems leave behind.
_SYSTEM_FILES = ("Thumbs.db", "desktop.ini")


# --- One mask for each image


def read_folder(root: Path, table: ClassTable | None) -> Source:
    """A folder that `--data` reads, with its `classes.json`, or with the values or colours found in its masks."""
    places = find_split_folders(root)
    layout = "folder" if places else find_layout(root)
    known = root / "classes.json"
    if table is None and (layout != "folder" or known.is_file()):
        if known.is_file():
            table = read_class_table(known)
        return _read_known(root, table)
    pairs: Mapping[str, Pairs] = {}
    if layout == "folder":
        listed = (root / PAIRS).is_file()
        pairs = (
            read_pairs(root).pairs
            if listed
            else {split: pair_files(place.images, place.masks) for split, place in places.items()}
        )
    files = [
        (split if len(pairs) > 1 else None, sample_id, image, found.masks[sample_id])
        for split, found in pairs.items()
        for sample_id, image in found.images.items()
        if sample_id in found.masks
    ]
    if not files:
        raise ValueError(f"{root}: no image has a mask with a matching name. List them in {PAIRS}.")
    without = sum(len(found.images) for found in pairs.values()) - len(files)
    notes = [f"{pluralize(without, 'image')} without a mask: skipped"] if without else []
    return _with_values("masks", files, table or _listed_classes(root), notes)


def _read_known(root: Path, table: ClassTable | None) -> Source:
    examples: list[Example] = []
    splits = available_splits(root)
    datasets = {split: SegmentationFolder(root, split) for split in splits}
    for split, dataset in datasets.items():
        examples += [
            Example(name, dataset.images[index], partial(dataset.mask, index), split if len(splits) > 1 else None)
            for index, name in enumerate(dataset.sample_ids)
        ]
    first = next(iter(datasets.values()))
    found = table or first.classes
    classes = ClassTable(found.names, found.colors, found.ignore_index, single=found.single)
    return Source(f"layout {first.layout}", classes, examples)


def _with_values(
    kind: str,
    files: Sequence[tuple[str | None, str, Path, Path]],
    table: ClassTable | None,
    notes: list[str],
) -> Source:
    """Masks whose values or colours become class ids; stacks are taken apart into their pages."""
    pages: list[tuple[str | None, str, Path, Path, int | None]] = []
    as_channels = 0
    for split, name, image, mask in files:
        count, of_image = count_pages(mask), count_pages(image)
        if count not in (1, of_image):
            raise ValueError(f"{image} has {of_image} pages, but its mask {mask} has {count}.")
        as_channels += of_image > count
        numbers: list[int | None] = [None] if count == 1 else list(range(count))
        pages += [(split, name if n is None else f"{name}-{n:04d}", image, mask, n) for n in numbers]
    if as_channels:
        notes.append(
            f"{pluralize(as_channels, 'image')} with several pages and a mask of one: the pages are read as channels"
        )
    read = MaskReader(as_colors=table is not None and len(set(table.colors)) == table.num_classes)
    found = read.found([(mask, page) for *_, mask, page in pages])
    in_colors = any(isinstance(value, tuple) for value in found)
    mapping, classes = _classes_of(found, table, in_colors)
    if any(page is not None for *_, page in pages):
        kind = f"TIFF stacks of {kind}"
    described = "colours" if in_colors else "values"
    examples = [
        Example(
            name,
            image if page is None else partial(read_image_file, image, page),
            partial(read.ids, mask, page, mapping),
            split,
            None if page is None else str(image),
        )
        for split, name, image, mask, page in pages
    ]
    return Source(f"{kind} with the {described} {format_list(sorted(found), 8)}", classes, examples, notes)


def _classes_of(found: set[Any], table: ClassTable | None, in_colors: bool) -> tuple[dict[Any, int], ClassTable]:
    if table is not None:
        if in_colors:
            known: dict[Any, int] = {color: index for index, color in enumerate(table.colors)}
        else:
            known = dict(table.mask_mapping or {index: index for index in range(table.num_classes)})
            known.setdefault(table.ignore_index, table.ignore_index)
        unknown = sorted(found - known.keys())
        if unknown and in_colors:
            known |= dict.fromkeys(unknown, IGNORED) if table.ignore_other_values else {}
            unknown = [] if table.ignore_other_values else unknown
        if unknown:
            raise ValueError(
                f"The masks hold {format_list(unknown, 8)}, which belongs to no class. Add it to the classes."
            )
        return known, ClassTable(table.names, table.colors, table.ignore_index, single=table.single)
    values = sorted(found)
    if not in_colors and IGNORED in values and values != [0, IGNORED]:
        values.remove(IGNORED)  # as everywhere, unless it is the object of a binary mask
    if values == [IGNORED] or not values:
        raise ValueError(f"All masks hold only {IGNORED}, which means no class. Use masks that show the objects.")
    if len(values) > 256:
        raise ValueError(
            f"The masks hold {len(values)} different {'colours' if in_colors else 'values'}: they are smoothed, or "
            "not masks. Name the right ones with --classes."
        )
    names = ["_".join(map(str, ("color", *v))) if in_colors else f"value_{v}" for v in values]
    mapping = {} if in_colors else {IGNORED: IGNORED}
    mapping |= {value: index for index, value in enumerate(values)}
    if values == [0, IGNORED]:
        return mapping, object_classes(["object"])
    return mapping, ClassTable(tuple(names), tuple(values) if in_colors else class_colors(len(values)))


def _listed_classes(root: Path) -> ClassTable | None:
    """Names and colours from `labelmap.txt` (CVAT), `label_colors.txt` (CamVid) or `class_dict.csv` in the folder."""
    for name in ("labelmap.txt", "label_colors.txt", "class_dict.csv"):
        path = root / name
        if not path.is_file():
            continue
        found: dict[str, Color] = {}
        for line in path.read_text(encoding="utf-8-sig").splitlines():
            numbers = re.findall(r"\d+", line)
            label = line.split(":")[0] if ":" in line else re.sub(r"[\d\s,]+", " ", line).strip()
            if label and len(numbers) >= 3 and not line.startswith("#"):
                r, g, b = map(int, numbers[:3] if ":" not in line else re.findall(r"\d+", line.split(":")[1])[:3])
                found[label] = (r, g, b)
        if found:
            return ClassTable(tuple(found), tuple(found.values()))
    return None


# --- Stacks with any names


def read_stacks(root: Path, table: ClassTable | None) -> Source | None:
    """TIFFs that lie side by side, such as `train-volume.tif` and `train-labels.tif`; `None` if there are no pairs."""
    stacks = sorted(path for path in root.iterdir() if path.suffix.lower() in (".tif", ".tiff"))
    images: dict[tuple[str, ...], Path] = {}
    masks: dict[tuple[str, ...], Path] = {}
    for path in stacks:
        words = re.findall("[a-z]+|[0-9]+", path.stem.lower())
        core = tuple(word for word in words if word not in MASK_WORDS | IMAGE_WORDS | {"volume", "stack"})
        (masks if set(words) & MASK_WORDS else images)[core] = path
    pairs = {core: path for core, path in images.items() if core in masks}
    if not pairs or not any(count_pages(path) > 1 for path in pairs.values()):
        return None
    return _with_values("masks", [(None, path.stem, path, masks[core]) for core, path in pairs.items()], table, [])


# --- One mask for each object


def _object_folders(root: Path) -> dict[Path, list[Path]]:
    """Folders of one image with the masks of its objects, and their images, at most two levels down.

    These are `<id>/images/*` and `<id>/masks/*`; none if most of such folders hold several images.
    """
    found: dict[Path, list[Path]] = {}
    for parent in (root, *(root / name for name in subfolders(root))):
        for name in subfolders(parent):
            folder = parent / name
            if {"images", "masks"} <= set(subfolders(folder)) and not canonical_split(name):
                found[folder] = _pictures(folder / "images")
    single = sum(len(images) == 1 for images in found.values())
    return found if 2 * single > len(found) else {}


def read_object_folders(root: Path, table: ClassTable | None) -> Source | None:
    """One mask file for each object, as in the Data Science Bowl 2018: their union is the class; `None` without any.

    Raises:
        ValueError: A folder holds several images, or masks that are no pictures; names it.
    """
    folders = _object_folders(root)
    if not folders:
        return None
    parents = {folder.parent for folder in folders}
    examples, notes, empty, without = [], list[str](), 0, list[str]()
    for folder, images in folders.items():
        if len(images) > 1:
            raise ValueError(f"{folder / 'images'} holds {len(images)} images, {images[0].name} among them. Keep one.")
        if not images:
            without.append(folder.name)
            continue
        masks = _pictures(folder / "masks")
        files = sorted(iter_files(folder / "masks"))
        others = [path.name for path in map(Path, files) if path.name not in _SYSTEM_FILES]
        arrays = [path.name for path in masks if is_array(path)]
        if arrays or (others and not masks):
            raise ValueError(f"{folder / 'masks'} holds {format_list(arrays or others, 1)}: save the masks as PNG.")
        empty += not masks
        split = folder.parent.name if len(parents) > 1 else None
        examples.append(Example(folder.name, images[0], partial(_union, images[0], masks), split))
    if empty:
        notes.append(f"{pluralize(empty, 'image')} without an object")
    if without:
        notes.append(f"{pluralize(len(without), 'folder')} with masks but no image, such as {without[0]}: skipped")
    classes = table or object_classes(["object"])
    if classes.num_classes != 2:
        raise ValueError(f"Object masks have two classes, background and object, not {classes.num_classes}.")
    return Source("one mask for each object", classes, examples, notes)


def _pictures(folder: Path) -> list[Path]:
    return sorted(folder / name for name in iter_files(folder, IMAGE_EXTENSIONS))


def _union(image: Path, masks: Sequence[Path]) -> np.ndarray:
    union: np.ndarray | None = None
    for path in masks:
        count = count_pages(path)
        for page in range(count):
            pixels = object_pixels(path, page if count > 1 else None)
            union = pixels if union is None else union
            if pixels.shape != union.shape:
                raise BadFileError(f"{path} differs in size from other masks of its image {image}", str(path))
            union = union | pixels
    if union is None:
        union = np.zeros(image_size(read_image_file(image), None), bool)
    return union.astype(np.uint8)


# --- Roboflow's masks


def read_roboflow_masks(root: Path, tables: Sequence[Path]) -> Source:
    """Roboflow's "semantic segmentation masks": `a.jpg`, `a_mask.png`, and `_classes.csv` in each split's folder."""
    names: dict[int, str] = {}
    for path in tables:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2 and row[0].strip().isdigit()]
        names |= {int(row[0]): row[1].strip() for row in rows}
    if sorted(names) != list(range(len(names))):
        raise ValueError(f"{tables[0]}: pixel values {sorted(names)} are not 0, 1, 2, ... Export the data set again.")
    table = ClassTable(tuple(names[i] for i in range(len(names))), class_colors(len(names)))
    files = [
        (path.parent.name if len(tables) > 1 else None, name_of(image, path.parent), image, found.masks[sample_id])
        for path in tables
        for found in [pair_files(path.parent, path.parent)]
        for sample_id, image in found.images.items()
        if sample_id in found.masks
    ]
    if not files:
        raise ValueError(f"{tables[0].parent} holds no image with a matching mask. Export the data set again.")
    return _with_values("Roboflow's masks", files, table, [])
