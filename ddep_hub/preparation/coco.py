"""COCO's json of objects: one file, one for each split, or one in the folder of each split as Roboflow exports it."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ddep_hub.data.classes import BACKGROUND
from ddep_hub.data.folders import common_split

from .source import Example, ImageFinder, Shape, Source, coco_masks, name_of, object_classes, shapes_mask


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
        ValueError: A file is not complete, or all images are missing; names it.
    """
    coco_masks()
    finder = ImageFinder(root)
    names: dict[str, int] = {}
    # Roboflow adds a category of no object, which is the supercategory of the others.
    used = {
        _category(path, content, entry.get("category_id"))
        for path, content in files.items()
        for entry in content["annotations"]
    }
    for content in files.values():
        for category in sorted(content["categories"], key=lambda entry: entry["id"]):
            name = str(category.get("name", category["id"])).strip()
            is_heading = name not in used and any(c.get("supercategory") == name for c in content["categories"])
            if not is_heading and name.lower() != BACKGROUND:
                names.setdefault(name, len(names) + 1)
    examples, dropped = [], 0
    splits = {path: _split(path, root) if len(files) > 1 else None for path in files}
    for path, content in files.items():
        of_image: dict[Any, list[Any]] = {}
        for entry in content["annotations"]:
            of_image.setdefault(entry.get("image_id"), []).append(entry)
        for entry in content["images"]:
            image = finder.find(str(entry["file_name"]), path.parent)
            if image is None:
                continue
            shapes, size = [], (entry.get("width"), entry.get("height"))
            for annotation in of_image.get(entry["id"], []):
                shape = _shape(annotation, names.get(_category(path, content, annotation.get("category_id")), 0), size)
                dropped += shape is None
                shapes += [shape] if shape is not None else []
            whole = (int(size[0]), int(size[1])) if all(size) else None
            mask = partial(shapes_mask, image, shapes, whole)
            examples.append(Example(name_of(image, root), image, mask, splits[path]))
    if not examples:
        raise ValueError(f"{root}: none of the {len(finder.missing)} images is there, such as {finder.missing[:1]}.")
    notes = finder.notes()
    if dropped:
        notes.append(f"{dropped} objects have no polygon and no mask: left out")
    return Source(f"COCO, {len(files)} file{'s' * (len(files) > 1)}", object_classes(names), examples, notes)


def _category(path: Path, content: Mapping[str, Any], category_id: Any) -> str:
    for category in content["categories"]:
        if category["id"] == category_id:
            return str(category.get("name", category_id)).strip()
    raise ValueError(f"{path}: an annotation has category_id {category_id}, which `categories` does not list.")


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
    return next((found for word in words if (found := common_split(word))), path.stem)


def read_json_files(root: Path) -> dict[Path, Any]:
    """The json files at most two folders down, by path; those that cannot be read are left out."""
    found = {}
    for path in sorted([*root.glob("*.json"), *root.glob("*/*.json"), *root.glob("*/*/*.json")]):
        if path.name.startswith(".") or path.name == "classes.json":
            continue
        try:
            found[path] = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError):
            continue
    return found


def decode_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """A bool (H, W) from the lengths of runs of background and object in turn, row by row."""
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if flat.size != height * width:
        raise ValueError(f"a mask has {flat.size} pixels in an image of {width}x{height}")
    return flat.reshape(height, width)
