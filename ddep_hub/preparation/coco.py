"""COCO's json of objects: one file, one for each split, or one in the folder of each split as Roboflow exports it."""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddep_hub.data.classes import BACKGROUND
from ddep_hub.data.folders import canonical_split
from ddep_hub.data.image_io import iter_files

from .source import (
    Example,
    ImageFinder,
    Shape,
    Source,
    coco_masks,
    name_of,
    object_classes,
    pluralize,
    shapes_mask,
)


def is_coco(content: Any) -> bool:
    """Whether the content of a json file is COCO's."""
    return isinstance(content, dict) and "images" in content and "annotations" in content and "categories" in content


def read_coco(root: Path, files: Mapping[Path, Any]) -> Source:
    """Reads objects; crowds count as objects, images without any as background.

    Args:
        root: Folder to look for the images in.
        files: Content of each json file.

    Raises:
        ImportError: pycocotools is not installed.
        ValueError: A file is not complete, all images are missing, or two files annotate an image; names it.
    """
    coco_masks()
    finder = ImageFinder(root)
    files, notes = _without_keypoints(files)
    categories = {path: _categories(content) for path, content in files.items()}
    names = _class_ids(files, categories)
    dropped, homeless, twice = 0, list[str](), list[str]()
    # Each image file is one example, however often it is listed; otherwise it might end up in both splits.
    listed: dict[Path, list[_Listed]] = {}
    for path, content in files.items():
        of_image: dict[str, list[Any]] = {image_id: [] for image_id in _image_ids(path, content)}
        for entry in content["annotations"]:
            image_id = _key(entry.get("image_id"))
            if image_id in of_image:
                of_image[image_id].append(entry)
            else:
                homeless.append(f"{image_id} in {path.name}")
        for entry in content["images"]:
            image = finder.find(str(entry["file_name"]), path.parent)
            if image is not None:
                size, shapes = (entry.get("width"), entry.get("height")), []
                for annotation in of_image[_key(entry["id"])]:
                    name = _category(path, categories[path], annotation)
                    shape = _shape(annotation, names.get(name, 0), size)
                    dropped += shape is None
                    shapes += [shape] if shape is not None else []
                whole = (int(size[0]), int(size[1])) if all(size) else None
                listed.setdefault(Path(os.path.normpath(image)), []).append(
                    _Listed(path, str(entry["file_name"]), whole, shapes)
                )
    if not listed:
        listed_images = pluralize(len(finder.missing), "listed image")
        raise ValueError(f"{root}: none of {listed_images} is there, such as {finder.missing[:1]}.")
    splits = {path: _split(path, root) if len(files) > 1 else None for path in files}
    examples = []
    for image, entries in listed.items():
        file, whole, all_shapes = _merge_entries(image, entries)
        twice += [image.name] * (len(entries) > 1)
        mask = partial(shapes_mask, image, all_shapes, whole)
        examples.append(Example(name_of(image, root), image, mask, splits[file]))
    notes = finder.notes() + notes
    if dropped:
        notes.append(f"{pluralize(dropped, 'object')} without a polygon or a mask: skipped")
    if homeless:
        notes.append(
            f"{pluralize(len(homeless), 'object')} with an image_id that `images` does not list, such as "
            f"{homeless[0]}: skipped"
        )
    if twice:
        notes.append(
            f"{pluralize(len(twice), 'image')} listed more than once, such as {twice[0]}: used once, with all objects"
        )
    return Source(f"COCO, {pluralize(len(files), 'file')}", object_classes(names), examples, notes)


def _class_ids(files: Mapping[Path, Any], categories: Mapping[Path, Mapping[str, str]]) -> dict[str, int]:
    names: dict[str, int] = {}
    # Roboflow adds a category of no object, which is the supercategory of the others.
    used = {
        _category(path, categories[path], entry) for path, content in files.items() for entry in content["annotations"]
    }
    for content in files.values():
        for category in sorted(content["categories"], key=lambda entry: entry["id"]):
            name = _name(category)
            is_heading = name not in used and any(c.get("supercategory") == name for c in content["categories"])
            if not is_heading and name.lower() != BACKGROUND:
                names.setdefault(name, len(names) + 1)
    return names


@dataclass(frozen=True)
class _Listed:
    """An image as a file lists it."""

    file: Path
    name: str
    size: tuple[int, int] | None
    shapes: list[Shape]


def _without_keypoints(files: Mapping[Path, Any]) -> tuple[dict[Path, Any], list[str]]:
    """The files, without those that COCO's archive has of people alone, beside its own of all objects."""
    kept, notes = {}, []
    for path, content in files.items():
        twin = path.with_name(path.name.replace("person_keypoints_", "instances_", 1))
        if twin != path and twin in files:
            notes.append(f"{path.name} repeats objects of {twin.name}: skipped")
        else:
            kept[path] = content
    return kept, notes


def _merge_entries(image: Path, entries: Sequence[_Listed]) -> tuple[Path, tuple[int, int] | None, list[Shape]]:
    """File, size and objects of an image that may be listed more than once.

    Raises:
        ValueError: Two files have objects of it, or the entries mean different images, one of which is missing.
    """
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
    drawn = [entry for entry in entries if entry.shapes] or list(entries[:1])
    other_files = [entry.file for entry in drawn if entry.file != drawn[0].file]
    if other_files:
        raise ValueError(
            f"{drawn[0].file} and {other_files[0]} both have objects of {image}. Keep one of the files, or merge them."
        )
    return drawn[0].file, first.size, [shape for entry in drawn for shape in entry.shapes]


def _image_ids(path: Path, content: Mapping[str, Any]) -> list[str]:
    names: dict[str, str] = {}
    for entry in content["images"]:
        name = str(entry["file_name"])
        other = names.setdefault(_key(entry["id"]), name)
        if other != name:
            raise ValueError(f"{path}: {other} and {name} both have the id {entry['id']}. Give each image its own.")
    return list(names)


def _categories(content: Mapping[str, Any]) -> dict[str, str]:
    return {_key(entry["id"]): _name(entry) for entry in content["categories"]}


def _name(category: Mapping[str, Any]) -> str:
    return str(category.get("name", _key(category["id"]))).strip()


def _category(path: Path, categories: Mapping[str, str], annotation: Mapping[str, Any]) -> str:
    category_id = annotation.get("category_id")
    if _key(category_id) not in categories:
        raise ValueError(f"{path}: an annotation has category_id {category_id}, which `categories` does not list.")
    return categories[_key(category_id)]


def _key(value: Any) -> str:
    """An id as text: some tools write it as text in one place and as a number in another, and pandas writes 1.0."""
    return str(int(value) if isinstance(value, float) and value.is_integer() else value)


def _shape(annotation: Mapping[str, Any], class_id: int, size: Sequence[Any]) -> Shape | None:
    drawn = annotation.get("segmentation")
    if isinstance(drawn, list):
        parts = [drawn] if drawn and isinstance(drawn[0], int | float) else drawn
        polygons = tuple(tuple(map(float, part)) for part in parts if len(part) >= 6)
        return Shape(class_id, polygons) if polygons else None
    if not isinstance(drawn, Mapping) or "counts" not in drawn:
        return None
    masks = coco_masks()
    code = dict(drawn)
    height, width = code.get("size") or (size[1], size[0])
    if isinstance(code["counts"], list):
        code = masks.frPyObjects({"counts": code["counts"], "size": [height, width]}, height, width)
    elif isinstance(code["counts"], str):
        code["counts"] = code["counts"].encode()
    return Shape(class_id, bitmap=masks.decode(code).astype(bool))


def _split(path: Path, root: Path) -> str:
    """The split of a file, from its folder or its name: `train/_annotations.coco.json`, `instances_val2017.json`."""
    words = [path.parent.name] if path.parent != root else []
    words += re.findall("[a-z]+", path.stem.lower())
    return next((found for word in words if (found := canonical_split(word))), path.stem)


def read_json(path: Path) -> Any:
    """The content of a json file, in UTF-8 or UTF-16, with or without a mark of the byte order.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(path.read_bytes())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Export the annotations again.") from error


def read_json_files(root: Path, tests: Sequence[Callable[[Any], bool]]) -> tuple[dict[Path, Any], list[str]]:
    """The json files below a folder that pass one of the tests, by path, and what is wrong with the unreadable ones.

    They are searched as images are: at any depth, without hidden files and folders. Others are not kept, as data sets
    like Cityscapes have gigabytes of them.
    """
    found, problems = {}, []
    for path in sorted(root / name for name in iter_files(root, (".json",))):
        if path.name == "classes.json":
            continue
        try:
            content = read_json(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        if any(test(content) for test in tests):
            found[path] = content
    return found, problems


def decode_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """A bool (H, W) from the lengths of runs of background and object in turn, row by row."""
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if flat.size != height * width:
        raise ValueError(f"a mask has {flat.size} pixels in an image of {width}x{height}")
    return flat.reshape(height, width)
