"""Ultralytics' YOLO segmentation: one text file per image, a class and the corners of a polygon on each line.

The corners are fractions of the width and height of the upright image. Roboflow, CVAT and Label Studio export it too.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ddep_hub.data.folders import canonical_split, is_in_mask_folder, subfolders
from ddep_hub.data.image_io import IMAGE_EXTENSIONS, iter_files
from ddep_hub.data.name_matching import separate_masks
from ddep_hub.utils.files import format_list

from .image_files import image_size, read_image_file
from .shapes import Shape, shapes_mask
from .source import Example, ObjectAnnotations, Source, count_common_parts, example_name, folder_split, pluralize


_LABEL_DIR, _IMAGE_DIR = "labels", "images"
_BOX_LENGTH = 4  # centre, width and height: a line of object detection
_MAX_FRACTION = 2.0  # polygons may leave the image a little; pixels are far larger


def read_yolo(root: Path, *, is_named: bool = False) -> Source | None:
    """Reads polygons of `labels/*.txt`; images without a file are background, as in Ultralytics' training.

    Returns `None` if there are no such files or, unless the format `is_named`, if there are masks too. Raises a
    ValueError if a line is malformed, or if none holds a polygon.
    """
    label_files = [root / name for name in iter_files(root, (".txt",)) if _LABEL_DIR in Path(name).parts[:-1]]
    names = _list_images(root)
    if not label_files or not (is_named or _looks_like_yolo(root, names, label_files)):
        return None
    inner = subfolders(root)
    is_described = (root / "classes.txt").is_file() or _find_config(root) is not None
    if len(inner) == 1 and inner[0] not in (_IMAGE_DIR, _LABEL_DIR) and not is_described:
        root /= inner[0]  # an archive unpacked into its own folder
        names = _list_images(root)
    config_file, config = _find_config(root) or (None, {})
    collector = ObjectAnnotations(root)
    class_names = _class_names(root, config_file, config)
    for class_name in class_names.values():
        collector.class_id(class_name)
    if not class_names:
        collector.notes.append("no YAML file and no classes.txt names the classes: they are named after their numbers")
    splits, has_lists = _config_splits(root, names, config_file, config)
    unused, unlabelled, num_unlisted = set(label_files), list[str](), 0
    for name in names:
        image = root / name
        labels = _label_file(image, root)
        unused.discard(labels)
        split = splits.get(name) or folder_split(image, root)
        if has_lists and split is None:
            num_unlisted += 1
            continue
        shapes = []
        if labels.is_file():
            shapes = list(_iter_shapes(labels, class_names, collector))
            collector.count(shapes)
        else:
            unlabelled.append(name)
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


def _list_images(root: Path) -> list[str]:
    """The images, by their paths: those in folders `images`, if there are any, and not what training has drawn."""
    names = [name for name in sorted(iter_files(root, IMAGE_EXTENSIONS)) if not is_in_mask_folder(name)]
    return [name for name in names if _IMAGE_DIR in Path(name).parts[:-1]] or names


def _looks_like_yolo(root: Path, images: list[str], label_files: list[Path]) -> bool:
    """Whether a label file starts with a class and numbers, and there are no masks in folders or beside the images."""
    has_mask_folders = any(is_in_mask_folder(name) for name in iter_files(root, IMAGE_EXTENSIONS))
    if has_mask_folders or separate_masks([Path(name).name for name in images]):
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


def _find_config(root: Path) -> tuple[Path, dict[str, Any]] | None:
    """The YAML file that describes the data set, the one with `names`, and its content."""
    invalid = None
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            # Plain texts: `no` is a name, not false.
            content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            invalid = f"{path} is not valid YAML: {' '.join(str(error).split())}. Correct it."
            continue
        if isinstance(content, dict) and content.get("names"):
            return path, content
    if invalid:
        raise ValueError(invalid)
    return None


def _class_names(root: Path, config_file: Path | None, config: dict[str, Any]) -> dict[int, str]:
    """Class names by their numbers, from the YAML file or from `classes.txt`."""
    names = config.get("names")
    if names is None and (root / "classes.txt").is_file():  # Label Studio writes it
        names = (root / "classes.txt").read_text(encoding="utf-8-sig").splitlines()
    entries = names.items() if isinstance(names, dict) else enumerate(names or [])
    try:
        return {int(number): str(name) for number, name in entries if str(name).strip()}
    except ValueError:
        raise ValueError(f"{config_file}: names must be a list, or lines such as `0: cell`. Correct it.") from None


def _config_splits(
    root: Path, names: list[str], config_file: Path | None, config: dict[str, Any]
) -> tuple[dict[str, str], bool]:
    """The split of each image that the YAML file's folders and lists of images tell, and whether it has lists.

    Paths there are often of another machine, so the longest common part decides.
    """
    by_file: dict[str, list[str]] = {}
    for name in names:
        by_file.setdefault(Path(name).name, []).append(name)
    best: dict[str, tuple[int, str | None]] = {}

    def note(name: str, length: int, split: str) -> None:
        longest, other = best.get(name, (0, None))
        if length > longest or (length == longest and split != other):
            best[name] = (length, split if length > longest else None)

    has_lists = False
    for key, value in config.items():
        split = canonical_split(str(key))
        for entry in [] if split is None else value if isinstance(value, list) else [value]:
            if not str(entry).endswith(".txt"):
                folder = _parts(entry)
                for name in names:
                    parts = _parts(name)[:-1]
                    lengths = range(1, min(len(parts), len(folder)) + 1)
                    if length := max((n for n in lengths if parts[:n] == folder[-n:]), default=0):
                        note(name, length, str(split))
                continue
            has_lists = True
            paths = [root / config.get("path", "") / entry, root / entry, root / Path(entry).name]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                raise FileNotFoundError(f"{config_file}: {key} names {entry}, which is not in {root}. Put it there.")
            for line in filter(None, map(_parts, path.read_text(encoding="utf-8-sig").splitlines())):
                common = {name: count_common_parts(line, name.split("/")) for name in by_file.get(line[-1], [])}
                for name, length in common.items():
                    if length == max(common.values()):
                        note(name, length, str(split))
    return {name: split for name, (_, split) in best.items() if split}, has_lists


def _parts(path: str) -> list[str]:
    return [part for part in str(path).strip().replace("\\", "/").split("/") if part not in ("", ".", "..")]


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
