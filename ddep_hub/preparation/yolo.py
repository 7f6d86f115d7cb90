"""Ultralytics' YOLO segmentation: one text file per image, a class and the corners of a polygon on each line.

The corners are fractions of the width and height of the upright image. Roboflow, CVAT and Label Studio export it, too.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ddep_hub.data.folders import canonical_split, is_mask_folder
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, format_list, iter_files

from .image_files import image_size, read_image_file
from .source import (
    Example,
    ObjectAnnotations,
    Shape,
    Source,
    example_name,
    folder_split,
    import_pycocotools,
    pluralize,
    shapes_mask,
)


_LABEL_DIR, _IMAGE_DIR = "labels", "images"
_BOX_LENGTH = 4  # centre, width and height: a line of object detection
_MAX_FRACTION = 2.0  # polygons may leave the image a little; pixels are far larger


def read_yolo(root: Path, *, is_named: bool = False) -> Source | None:
    """Reads polygons of `labels/*.txt`; images without a file are background, as in Ultralytics' training.

    Returns `None` if there are no such files or, unless the format `is_named`, if there are masks, too. Raises a
    ValueError if a line is malformed, or if none holds a polygon.
    """
    label_files = [root / name for name in iter_files(root, (".txt",)) if _LABEL_DIR in Path(name).parts[:-1]]
    if not label_files or not (is_named or _looks_like_yolo(root, label_files)):
        return None
    import_pycocotools()
    config_file, config = _read_config(root)
    collector = ObjectAnnotations(root)
    names = _class_names(root, config)
    for name in names.values():
        collector.class_id(name)
    splits = _listed_splits(root, config_file, config)
    unused, unlabelled, num_unlisted = set(label_files), list[str](), 0
    for relative in sorted(iter_files(root, IMAGE_EXTENSIONS)):
        image = root / relative
        if any(map(is_mask_folder, Path(relative).parts[:-1])):
            continue
        labels = _label_file(image, root)
        unused.discard(labels)
        split = folder_split(image, root) or splits.get(image.name.lower())
        if splits and split is None:
            num_unlisted += 1
            continue
        shapes = []
        if labels.is_file():
            shapes = list(_iter_shapes(labels, names, collector))
            collector.count(shapes)
        else:
            unlabelled.append(relative)
        mask = partial(_draw, image, shapes)
        collector.examples.append(Example(example_name(image, root), image, mask, split))
    if not collector.num_shapes and (num_boxes := collector.dropped["box"]):
        boxes = "1 box" if num_boxes == 1 else f"{num_boxes:,} boxes"
        raise ValueError(f"{root}: the labels are {boxes}, no polygon. Export them as YOLO segmentation.")
    if unused:
        first = min(unused).relative_to(root)
        collector.notes.append(f"{pluralize(len(unused), 'label file')} without an image, such as {first}: skipped")
    if unlabelled:
        collector.notes.append(
            f"{pluralize(len(unlabelled), 'image')} without a label file: all background. Take out those not "
            f"annotated yet: {format_list(unlabelled)}"
        )
    if num_unlisted:
        collector.notes.append(f"{pluralize(num_unlisted, 'image')} that no list of {config_file} names: skipped")
    return collector.build_source("YOLO segmentation")


def _looks_like_yolo(root: Path, label_files: list[Path]) -> bool:
    """Whether a label file starts with a class and numbers, and no folder holds masks."""
    has_masks = any(any(map(is_mask_folder, Path(name).parts[:-1])) for name in iter_files(root, IMAGE_EXTENSIONS))
    if has_masks:
        return False
    for path in label_files:
        words = path.read_text(encoding="utf-8-sig", errors="replace").split(maxsplit=_BOX_LENGTH + 1)
        if words:
            return len(words) > _BOX_LENGTH and all(_is_number(word) for word in words[: _BOX_LENGTH + 1])
    return False


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _label_file(image: Path, root: Path) -> Path:
    """The label file of an image: in `labels` in place of the last `images` of its path, or below its folder."""
    parts = list(image.relative_to(root).parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == _IMAGE_DIR]
    if places:
        parts[places[-1]] = _LABEL_DIR
        return root.joinpath(*parts).with_suffix(".txt")
    return image.parent / _LABEL_DIR / f"{image.stem}.txt"


def _read_config(root: Path) -> tuple[Path | None, dict[str, Any]]:
    """The YAML file that describes the data set, the one with `names`, and its content."""
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            # Plain texts: `no` is a name, not false.
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct it.") from error
        if isinstance(content, dict) and content.get("names"):
            return path, content
    return None, {}


def _class_names(root: Path, config: dict[str, Any]) -> dict[int, str]:
    """Class names by their numbers, from the YAML file or from `classes.txt`."""
    names = config.get("names")
    if names is None and (root / "classes.txt").is_file():  # Label Studio writes it
        names = (root / "classes.txt").read_text(encoding="utf-8-sig").splitlines()
    entries = names.items() if isinstance(names, dict) else enumerate(names or [])
    return {int(number): str(name) for number, name in entries if str(name).strip()}


def _listed_splits(root: Path, config_file: Path | None, config: dict[str, Any]) -> dict[str, str]:
    """The split of each image file name, from the text files that the YAML file names; empty if it names folders."""
    splits: dict[str, str] = {}
    for key, value in config.items():
        split = canonical_split(str(key))
        for entry in value if isinstance(value, list) else [value]:
            if split is None or config_file is None or not str(entry).endswith(".txt"):
                continue
            path = root / Path(str(entry)).name  # paths in the YAML file are often of another machine
            if not path.is_file():
                raise FileNotFoundError(f"{config_file}: {key} names {entry}, which is not in {root}. Put it there.")
            for line in path.read_text(encoding="utf-8-sig").splitlines():
                if line.strip():
                    splits[line.strip().replace("\\", "/").rsplit("/", 1)[-1].lower()] = split
    return splits


def _iter_shapes(path: Path, names: dict[int, str], collector: ObjectAnnotations) -> Iterator[Shape]:
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        place = f"{path}, line {number}"
        if not all(map(_is_number, words)):
            raise ValueError(f"{place}: not a class and the corners of a polygon. Export the labels again.")
        values = tuple(map(float, words))
        class_number, corners = int(values[0]), values[1:]
        if len(corners) == _BOX_LENGTH:
            collector.dropped["box"] += 1
            continue
        if class_number != values[0] or len(corners) < 6 or len(corners) % 2:
            raise ValueError(f"{place}: not a class and the corners of a polygon. Export the labels again.")
        if max(map(abs, corners)) > _MAX_FRACTION:
            raise ValueError(f"{place}: corners must be fractions of the image's width and height, from 0 to 1.")
        if names and class_number not in names:
            raise ValueError(f"{place}: the class {class_number} has no name in the YAML file or classes.txt. Add it.")
        yield Shape(collector.class_id(names.get(class_number, f"class_{class_number}")), (corners,))


def _draw(image: Path, shapes: list[Shape]) -> np.ndarray:
    rows, columns = image_size(read_image_file(image), None)
    scale = np.array([columns, rows])
    scaled = [
        replace(shape, polygons=tuple(tuple((np.reshape(part, (-1, 2)) * scale).ravel()) for part in shape.polygons))
        for shape in shapes
    ]
    return shapes_mask(image, scaled, None)
