"""Exports of annotation tools: LabelMe, CVAT for images, Label Studio.

Each is a small file of corners and names, for which no light library is kept up: labelme itself is a Qt application,
label-studio-sdk brings a web client, datumaro TensorFlow formats and OpenCV.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from ddep_hub.data.classes import BACKGROUND

from .coco import decode_runs
from .source import Example, ImageFinder, Shape, Source, coco_masks, name_of, object_classes, shapes_mask


class _Names(dict[str, int]):
    """Class ids by name, from 1 on, in the order of appearance; background is 0."""

    def __missing__(self, name: str) -> int:
        self[name] = 0 if name.lower() == BACKGROUND else 1 + sum(value > 0 for value in self.values())
        return self[name]


def _source(kind: str, root: Path, names: _Names, examples: list[Example], finder: ImageFinder) -> Source:
    if not examples:
        raise ValueError(f"{root}: none of the annotated images is there, such as {finder.missing[:1]}.")
    return Source(
        kind,
        object_classes(name for name, value in names.items() if value),
        examples,
        finder.notes(),
    )


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> tuple[float, ...]:
    return (x0, y0, x1, y0, x1, y1, x0, y1)


def _ellipse(x: float, y: float, rx: float, ry: float) -> tuple[float, ...]:
    angles = [2 * math.pi * step / 72 for step in range(72)]
    return tuple(value for angle in angles for value in (x + rx * math.cos(angle), y + ry * math.sin(angle)))


# --- LabelMe


def is_labelme(content: Any) -> bool:
    """Whether the content of a json file is LabelMe's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(root: Path, files: Mapping[Path, Any]) -> Source:
    """One json per image: polygons, rectangles, circles and masks; the image beside it, or in it."""
    coco_masks()
    finder, names, examples = ImageFinder(root, may_be_empty=True), _Names(), []
    for path, content in files.items():
        shapes = [_labelme_shape(shape, names, path) for shape in content["shapes"]]
        size = (content.get("imageWidth"), content.get("imageHeight"))
        found = finder.find(str(content["imagePath"]), path.parent)
        data = content.get("imageData")
        whole = (int(size[0]), int(size[1])) if all(size) else None
        kept = [shape for shape in shapes if shape is not None]
        if found is None and data:
            finder.missing.pop()
            examples.append(
                Example(name_of(path, root), partial(_embedded, data), partial(_embedded_mask, data, kept))
            )
        elif found is not None:
            examples.append(Example(name_of(found, root), found, partial(shapes_mask, found, kept, whole)))
    return _source("LabelMe", root, names, examples, finder)


def _embedded(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


def _embedded_mask(data: str, shapes: Sequence[Shape]) -> np.ndarray:
    return shapes_mask(_embedded(data), shapes, None)


def _labelme_shape(shape: Mapping[str, Any], names: _Names, path: Path) -> Shape | None:
    points = [(float(x), float(y)) for x, y in shape.get("points", [])]
    kind, class_id = shape.get("shape_type") or "polygon", names[str(shape.get("label"))]
    if kind == "rectangle" and len(points) == 2:
        return Shape(class_id, (_rectangle(*points[0], *points[1]),))
    if kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        return Shape(class_id, (_ellipse(*points[0], radius, radius),))
    if kind == "polygon" and len(points) >= 3:
        return Shape(class_id, (tuple(value for point in points for value in point),))
    if kind == "mask" and shape.get("mask") and points:
        return Shape(class_id, patch=(round(points[0][0]), round(points[0][1]), _png_mask(shape["mask"])))
    return None  # points and lines have no area


def _png_mask(data: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L")) > 0


# --- CVAT


def read_cvat(root: Path, path: Path) -> Source:
    """ "CVAT for images 1.1": polygons, boxes, ellipses and masks in `annotations.xml`.

    Raises:
        ValueError: It is no such file.
    """
    coco_masks()
    try:
        tree = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is no XML: {error}. Export the task again.") from error
    finder, names, examples = ImageFinder(root), _Names(), []
    for label in tree.iterfind(".//labels/label/name"):
        names[str(label.text)]
    if tree.find("track") is not None:
        raise ValueError(f'{path} holds tracks of a video. Export the task as "CVAT for images 1.1", with its images.')
    for entry in tree.iter("image"):
        image = finder.find(entry.attrib["name"], path.parent)
        if image is None:
            continue
        shapes = [shape for item in entry if (shape := _cvat_shape(item, names)) is not None]
        size = (int(entry.attrib["width"]), int(entry.attrib["height"]))
        # Later ones lie over earlier ones in CVAT, by z_order; here the smaller ones do, as in all formats.
        split = (entry.attrib.get("subset") or "").lower() or None
        examples.append(Example(name_of(image, root), image, partial(shapes_mask, image, shapes, size), split))
    splits = {example.split for example in examples}
    if len(splits) == 1:
        examples = [Example(e.name, e.image, e.mask) for e in examples]
    return _source("CVAT for images", root, names, examples, finder)


def _cvat_shape(item: ElementTree.Element, names: _Names) -> Shape | None:
    values = item.attrib
    if item.tag not in ("polygon", "box", "ellipse", "mask"):
        return None
    class_id = names[values["label"]]
    if item.tag == "polygon":
        return Shape(class_id, (tuple(float(v) for point in values["points"].split(";") for v in point.split(",")),))
    if item.tag == "box":
        return Shape(class_id, (_rectangle(*(float(values[name]) for name in ("xtl", "ytl", "xbr", "ybr"))),))
    if item.tag == "ellipse":
        return Shape(class_id, (_ellipse(*(float(values[name]) for name in ("cx", "cy", "rx", "ry"))),))
    left, top, width, height = (int(float(values[name])) for name in ("left", "top", "width", "height"))
    runs = [int(count) for count in values["rle"].split(",")]
    return Shape(class_id, patch=(left, top, decode_runs(runs, height, width)))


# --- Label Studio


def is_label_studio(content: Any) -> bool:
    """Whether the content of a json file is Label Studio's export."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and "data" in first and ("annotations" in first or "completions" in first)


def read_label_studio(root: Path, files: Mapping[Path, Any]) -> Source:
    """The export "JSON": polygons, rectangles, ellipses and brushes, in per cent of the image."""
    coco_masks()
    finder, names, examples = ImageFinder(root), _Names(), []
    for path, tasks in files.items():
        for task in tasks:
            texts = [value for value in task["data"].values() if isinstance(value, str)]
            address = next((text for text in texts if "." in text.rsplit("/", 1)[-1]), "")
            image = finder.find(task.get("file_upload") or address, path.parent) if address else None
            if image is None and address and task.get("file_upload"):
                finder.missing.pop()
                image = finder.find(address, path.parent)
            if image is None:
                continue
            done = [a for a in task.get("annotations", task.get("completions", [])) if not a.get("was_cancelled")]
            results = done[-1]["result"] if done else []
            shapes = [shape for result in results if (shape := _studio_shape(result, names)) is not None]
            sizes = {(r["original_width"], r["original_height"]) for r in results if "original_width" in r}
            size = next(iter(sizes)) if len(sizes) == 1 else None
            examples.append(Example(name_of(image, root), image, partial(shapes_mask, image, shapes, size)))
    return _source("Label Studio", root, names, examples, finder)


def _studio_shape(result: Mapping[str, Any], names: _Names) -> Shape | None:
    value, kind = result.get("value", {}), result.get("type", "")
    labels = value.get(kind)
    if kind not in ("polygonlabels", "rectanglelabels", "ellipselabels", "brushlabels") or not labels:
        return None
    class_id = names[str(labels[0])]
    width, height = result["original_width"], result["original_height"]
    if kind == "brushlabels":
        return Shape(class_id, bitmap=decode_brush(value["rle"]).reshape(height, width, 4)[..., 3] > 0)
    scale = np.array([width / 100, height / 100])
    if kind == "polygonlabels":
        corners = np.array(value["points"], float) * scale
    else:
        start = np.array([value["x"], value["y"]]) * scale
        if kind == "ellipselabels":
            flat = _ellipse(0, 0, value["radiusX"] * scale[0], value["radiusY"] * scale[1])
        else:
            flat = _rectangle(0, 0, value["width"] * scale[0], value["height"] * scale[1])
        # Clockwise about the first corner of a rectangle, the centre of an ellipse.
        angle = math.radians(value.get("rotation") or 0)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        corners = np.reshape(flat, (-1, 2)) @ turn + start
    return Shape(class_id, (tuple(corners.ravel().tolist()),))


def decode_brush(data: Sequence[int]) -> np.ndarray:
    """The bytes of Label Studio's brush, a run-length code of bits by thi.ng (`rle-pack`): RGBA values, flat.

    The code begins with the number of values (32 bits), the width of a value less 1 (5 bits) and the widths less 1 of
    four kinds of lengths (4 bits each). Then come runs: a bit that says whether one value is repeated, the kind of
    length (2 bits), the length less 1, and the value, or as many values.
    """
    bits = np.unpackbits(np.array(data, np.uint8))
    place = 0

    def read(width: int) -> int:
        nonlocal place
        place += width
        return int("".join(map(str, bits[place - width : place])) or "0", 2)

    number, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(number, np.uint8)
    done = 0
    while done < number:
        repeated = read(1)
        length = read(widths[read(2)]) + 1
        if repeated:
            values[done : done + length] = read(word)
        else:
            for index in range(done, min(done + length, number)):
                values[index] = read(word)
        done += length
    return values


def read_annotation_json(path: Path) -> Any:
    """The content of a json file.

    Raises:
        ValueError: It is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}. Export the annotations again.") from error
