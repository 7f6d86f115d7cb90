"""COCO's object annotations: one JSON file, one per split, or one in each split's folder, as Roboflow exports them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddep_hub.data.classes import BACKGROUND

from .shapes import Shape, import_pycocotools, shapes_mask
from .source import (
    Example,
    ImageFinder,
    Source,
    empty_images_note,
    example_name,
    file_splits,
    object_classes,
    pluralize,
)


def is_coco(content: Any) -> bool:
    """Whether the content of a json file is COCO's."""
    return isinstance(content, dict) and "images" in content and "annotations" in content and "categories" in content


def read_coco(root: Path, files: Mapping[Path, Any]) -> Source:
    """Reads objects; crowds count as objects, images without objects as background.

    `root` is the folder to look for the images in, `files` the content of each JSON file. Raises a ValueError if a
    file is incomplete, all images are missing, or two files annotate the same image.
    """
    import_pycocotools()
    finder = ImageFinder(root)
    files, notes = _drop_other_files(files)
    if not files:
        raise ValueError(f"{root} holds only panoptic annotations of COCO. Pass a folder with instances_*.json.")
    categories = {
        path: {_normalize_id(entry["id"]): _category_name(entry) for entry in content["categories"]}
        for path, content in files.items()
    }
    names = _class_ids(files, categories)
    num_dropped, orphaned, duplicated = 0, list[str](), list[str]()
    # Each image file is one example, however often it is listed; otherwise it might end up in both splits.
    entries_by_image = defaultdict[Path, list[_ImageEntry]](list)
    splits = file_splits(files, root)
    for path, content in files.items():
        annotations_by_image: dict[str, list[Any]] = {image_id: [] for image_id in _image_ids(path, content)}
        for entry in content["annotations"]:
            image_id = _normalize_id(entry.get("image_id"))
            if image_id in annotations_by_image:
                annotations_by_image[image_id].append(entry)
            else:
                orphaned.append(f"{image_id} in {path.name}")
        for entry in content["images"]:
            image = finder.find(str(entry["file_name"]), path.parent, splits[path])
            if image is None:
                continue
            size, shapes = (entry.get("width"), entry.get("height")), list[Shape]()
            for annotation in annotations_by_image[_normalize_id(entry["id"])]:
                name = _find_category(path, categories[path], annotation)
                try:
                    shape = _parse_shape(annotation, names.get(name, 0), size)
                except (ValueError, OverflowError) as error:
                    raise ValueError(
                        f"{path}, annotation {annotation.get('id')} of {entry['file_name']}: {error}. Export the "
                        "annotations again, or correct the file."
                    ) from error
                num_dropped += shape is None
                shapes += [] if shape is None else [shape]
            image_size = (int(size[0]), int(size[1])) if all(size) else None
            entries_by_image[image].append(_ImageEntry(path, str(entry["file_name"]), image_size, shapes))
    if not entries_by_image:
        listed_images = pluralize(len(finder.missing), "listed image")
        raise ValueError(f"{root}: none of {listed_images} is there, such as {finder.missing[:1]}.")
    examples = []
    for image, entries in entries_by_image.items():
        entry = _merge_entries(image, entries)
        duplicated += [image.name] * (len(entries) > 1)
        mask = partial(shapes_mask, image, entry.shapes, entry.size)
        examples.append(Example(example_name(image, root), image, mask, splits[entry.file]))
    notes = finder.notes() + notes
    if not any(entry.shapes for entries in entries_by_image.values() for entry in entries):
        raise ValueError(
            f"{root}: none of {pluralize(num_dropped, 'object')} has a polygon or a mask. Export these, not boxes."
        )
    num_empty = sum(not any(entry.shapes for entry in entries) for entries in entries_by_image.values())
    if num_empty:
        notes.append(empty_images_note(num_empty))
    if num_dropped:
        notes.append(f"{pluralize(num_dropped, 'object')} without a polygon or a mask: skipped")
    if orphaned:
        notes.append(
            f"{pluralize(len(orphaned), 'object')} with an image_id that `images` does not list, such as "
            f"{orphaned[0]}: skipped"
        )
    if duplicated:
        notes.append(
            f"{pluralize(len(duplicated), 'image')} listed more than once, such as {duplicated[0]}: used once, with "
            "all objects"
        )
    return Source(f"COCO, {pluralize(len(files), 'file')}", object_classes(names), examples, notes)


def _class_ids(files: Mapping[Path, Any], categories: Mapping[Path, Mapping[str, str]]) -> dict[str, int]:
    names: dict[str, int] = {}
    # Roboflow adds a category of no object, which is the supercategory of the others.
    used_names = {
        _find_category(path, categories[path], entry)
        for path, content in files.items()
        for entry in content["annotations"]
    }
    for content in files.values():
        for category in sorted(content["categories"], key=lambda entry: entry["id"]):
            name = _category_name(category)
            is_supercategory = name not in used_names and any(
                other.get("supercategory") == name and other is not category for other in content["categories"]
            )
            if not is_supercategory and name.lower() != BACKGROUND:
                names.setdefault(name, len(names) + 1)
    return names


@dataclass(frozen=True)
class _ImageEntry:
    """An image as a file lists it."""

    file: Path
    name: str
    size: tuple[int, int] | None
    shapes: list[Shape]


def _drop_other_files(files: Mapping[Path, Any]) -> tuple[dict[Path, Any], list[str]]:
    """The files, without those that COCO's archive has of people alone, beside its own of all objects."""
    kept_files, notes = {}, []
    for path, content in files.items():
        instances_path = path.with_name(path.name.replace("person_keypoints_", "instances_", 1))
        if any("segments_info" in annotation for annotation in content["annotations"][:1]):
            notes.append(f"{path.name} holds panoptic annotations: skipped")
        elif instances_path != path and instances_path in files:
            notes.append(f"{path.name} repeats objects of {instances_path.name}: skipped")
        else:
            kept_files[path] = content
    return kept_files, notes


def _merge_entries(image: Path, entries: Sequence[_ImageEntry]) -> _ImageEntry:
    """One entry of an image that may be listed more than once, with all its objects."""
    first = entries[0]
    for other in entries[1:]:
        ends = sorted((f"/{entry.name}".replace("\\", "/").replace("/./", "/") for entry in (first, other)), key=len)
        if not ends[1].endswith(ends[0]):
            raise ValueError(
                f"{first.name} of {first.file} and {other.name} of {other.file} both fit {image}. Add the missing "
                "image, or correct the names."
            )
        if other.size != first.size and None not in (other.size, first.size):
            raise ValueError(f"{other.file} and {first.file} list {image} with different sizes. Remove the wrong one.")
    annotated = [entry for entry in entries if entry.shapes] or list(entries[:1])
    other_files = [entry.file for entry in annotated if entry.file != annotated[0].file]
    if other_files:
        raise ValueError(
            f"{annotated[0].file} and {other_files[0]} both have objects of {image}. Keep one of the files, or merge "
            "them."
        )
    shapes = [shape for entry in annotated for shape in entry.shapes]
    return replace(first, file=annotated[0].file, shapes=shapes)


def _image_ids(path: Path, content: Mapping[str, Any]) -> list[str]:
    names: dict[str, str] = {}
    for entry in content["images"]:
        name = str(entry["file_name"])
        other = names.setdefault(_normalize_id(entry["id"]), name)
        if other != name:
            raise ValueError(f"{path}: {other} and {name} both have the id {entry['id']}. Give each image its own.")
    return list(names)


def _category_name(category: Mapping[str, Any]) -> str:
    name = category.get("name")
    return ("" if name is None else " ".join(str(name).split())) or _normalize_id(category["id"])


def _find_category(path: Path, categories: Mapping[str, str], annotation: Mapping[str, Any]) -> str:
    category_id = annotation.get("category_id")
    if _normalize_id(category_id) not in categories:
        raise ValueError(f"{path}: an annotation has category_id {category_id}, which `categories` does not list.")
    return categories[_normalize_id(category_id)]


def _normalize_id(value: Any) -> str:
    """An id as text: some tools write it as text in one place and as a number in another, and pandas writes 1.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _parse_shape(annotation: Mapping[str, Any], class_id: int, size: Sequence[Any]) -> Shape | None:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, list):
        parts = [segmentation] if segmentation and isinstance(segmentation[0], int | float) else segmentation
        polygons = tuple(tuple(map(float, part)) for part in parts if len(part) >= 6)
        return Shape(class_id, polygons) if polygons else None
    if not isinstance(segmentation, Mapping) or "counts" not in segmentation:
        return None
    counts = segmentation["counts"]
    height, width = (int(side) for side in segmentation.get("size") or (size[1], size[0]))
    runs = _decode_counts(counts) if isinstance(counts, str) else np.asarray(counts, np.int64)
    if not isinstance(counts, str) and runs.tolist() != list(counts):
        raise ValueError("its run lengths are not whole numbers")
    missing = height * width - int(runs.sum())
    # pycocotools would read past the end of the last run.
    if missing < 0 or runs.min(initial=0) < 0 or (missing and isinstance(counts, str)):
        raise ValueError(f"its run lengths do not add up to {width}x{height} pixels")
    runs = np.append(runs, [missing] if len(runs) % 2 == 0 else [0, missing])  # the last background may be left out
    rle = import_pycocotools().frPyObjects({"counts": runs.tolist(), "size": [height, width]}, height, width)
    return Shape(class_id, rle={**rle, "size": [height, width]})


def _decode_counts(text: str) -> np.ndarray:
    """Decodes COCO's compressed run lengths.

    Each is a number of 5-bit digits, lowest first; from the fourth run on, it is the difference from the previous run
    of the same kind.
    """
    values = np.frombuffer(text.encode(), np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(values & 32 == 0)  # in the other digits, this bit says that more follow
    if not len(values) or values.min() < 0 or values.max() > 63 or ends[-1:].tolist() != [len(values) - 1]:
        raise ValueError("its run lengths are not COCO's code")
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(len(values)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 9:  # too many digits for a number of pixels
        raise ValueError("its run lengths are not COCO's code")
    runs = np.add.reduceat((values & 31) << 5 * places, starts)
    runs = np.where(values[ends] & 16, runs - (1 << 5 * (places[ends] + 1)), runs)  # two's complement
    runs[1::2], runs[2::2] = np.cumsum(runs[1::2]), np.cumsum(runs[2::2])
    return runs
