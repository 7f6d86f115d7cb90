"""Exports of annotation tools: LabelMe, CVAT for images.

Each is a small file of corners and names, for which no light library is kept up: labelme itself is a Qt application,
label-studio-sdk brings a web client, datumaro TensorFlow formats and OpenCV.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from .shapes import Shape, ellipse, rectangle, rotate_polygon, shapes_mask
from .source import Example, ObjectAnnotations, Source, example_name, folder_split, pluralize, read_json


# --- LabelMe


def is_labelme(content: Any) -> bool:
    """Whether the content of a json file is LabelMe's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(root: Path, files: Mapping[Path, Any]) -> Source:
    """One json per image: polygons, rectangles, circles and masks; the image beside it, or in it."""
    collector = ObjectAnnotations(root, may_be_empty=True)
    renamed = []
    for path, content in files.items():
        name, split = str(content["imagePath"]), folder_split(path, root)
        shapes = [
            shape for entry in content["shapes"] if (shape := _parse_labelme_shape(entry, collector)) is not None
        ]
        size = (content.get("imageWidth"), content.get("imageHeight"))
        image = collector.finder.find(name, path.parent)
        if Path(name.replace("\\", "/")).stem.lower() != path.stem.lower():
            # Renaming or copying an image and its JSON leaves the old name inside.
            namesake = collector.finder.find_namesake(path, image)
            if namesake is not None:
                if image is None:
                    collector.finder.missing.pop()
                image = namesake
                renamed.append(f"{path.name}: {name}")
        if image is not None:
            collector.add(image, shapes, (int(size[0]), int(size[1])) if all(size) else None, str(path), split)
        elif content.get("imageData"):
            collector.finder.missing.pop()
            mask = partial(_embedded_mask, path, shapes)
            collector.count(shapes)
            picture = partial(_decode_embedded, path)
            collector.examples.append(Example(example_name(path, root), picture, mask, split))
    if renamed:
        name = "names" if len(renamed) == 1 else "name"
        collector.notes.append(
            f"{pluralize(len(renamed), 'JSON file')} {name} another image, such as {renamed[0]}; used the image with "
            "the name of the JSON file"
        )
    return collector.build_source("LabelMe")


def _decode(data: str, mode: str = "RGB") -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data))).convert(mode)


def _decode_embedded(path: Path) -> Image.Image:
    return _decode(read_json(path)["imageData"])


def _embedded_mask(path: Path, shapes: Sequence[Shape]) -> np.ndarray:
    return shapes_mask(_decode_embedded(path), shapes, None)


def _parse_labelme_shape(entry: Mapping[str, Any], collector: ObjectAnnotations) -> Shape | None:
    points = [(float(x), float(y)) for x, y in entry.get("points", [])]
    kind = entry.get("shape_type") or "polygon"
    # AnyLabeling gives rectangles four corners, turned ones too.
    is_quadrilateral = len(points) == 4 and kind in ("rectangle", "rotation", "oriented_rectangle", "quadrilateral")
    polygon = tuple(value for point in points for value in point)
    patch = None
    if kind == "rectangle" and len(points) == 2:
        polygon = rectangle(*polygon)
    elif kind == "circle" and len(points) == 2:
        radius = math.dist(*points)
        polygon = ellipse(*points[0], radius, radius)
    elif kind == "mask" and entry.get("mask") and points:
        patch = (round(points[0][0]), round(points[0][1]), np.asarray(_decode(entry["mask"], "L")) > 0)
    elif not is_quadrilateral and not (kind == "polygon" and len(points) >= 3):
        collector.dropped[kind] += 1  # points and lines have no area
        return None
    label = str(entry.get("label") or "")
    if not label.strip():
        collector.dropped["without a label"] += 1
        return None
    class_id = collector.class_id(label)
    return Shape(class_id, (polygon,)) if patch is None else Shape(class_id, patch=patch)


# --- CVAT


def read_cvat(root: Path, path: Path) -> Source:
    """Export "CVAT for images 1.1": polygons, boxes, ellipses and masks in `annotations.xml`."""
    collector = ObjectAnnotations(root)
    try:
        xml_root = ElementTree.parse(path).getroot()
    except ElementTree.ParseError as error:
        raise ValueError(f"{path} is not valid XML: {error}. Export the task again.") from error
    for label in xml_root.iterfind(".//labels/label/name"):
        collector.class_id(str(label.text))
    if xml_root.find("track") is not None:
        raise ValueError(f'{path} holds video tracks. Export the task as "CVAT for images 1.1", with its images.')
    entries = list(xml_root.iter("image"))
    subsets = [(entry.attrib.get("subset") or "").lower() or None for entry in entries]
    has_splits = len(set(subsets)) > 1
    for number, (entry, split) in enumerate(zip(entries, subsets, strict=True)):
        image = collector.finder.find(entry.attrib["name"], path.parent, split)
        if image is None:
            continue
        try:
            shapes = [shape for item in entry if (shape := _parse_cvat_shape(item, collector)) is not None]
        except ValueError as error:
            raise ValueError(f"{path}, {entry.attrib['name']}: {error}. Export the task again.") from error
        size = (int(entry.attrib["width"]), int(entry.attrib["height"]))
        # Later ones lie over earlier ones in CVAT, by z_order; here the smaller ones do, as in all formats.
        collector.add(image, shapes, size, f"image {number} of {path}", split if has_splits else None)
    return collector.build_source("CVAT for images")


def decode_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """A bool (H, W) from the lengths of runs of background and object in turn, row by row."""
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if flat.size != height * width:
        raise ValueError(f"a mask has {flat.size} pixels in an image of {width}x{height}")
    return flat.reshape(height, width)


def _parse_cvat_shape(item: ElementTree.Element, collector: ObjectAnnotations) -> Shape | None:
    values, kind = item.attrib, item.tag
    if kind == "tag":
        return None  # of the whole image
    points = [
        float(coordinate) for point in values.get("points", "").split(";") if point for coordinate in point.split(",")
    ]
    if kind not in ("polygon", "box", "ellipse", "mask") or (kind == "polygon" and len(points) < 6):
        collector.dropped[kind] += 1
        return None
    class_id = collector.class_id(values["label"])
    if kind == "mask":
        left, top, width, height = (int(float(values[name])) for name in ("left", "top", "width", "height"))
        runs = [int(count) for count in values["rle"].split(",")]
        return Shape(class_id, patch=(left, top, decode_runs(runs, height, width)))
    if kind == "polygon":
        return Shape(class_id, (tuple(points),))
    degrees = float(values.get("rotation") or 0)  # about the centre
    if kind == "box":
        x0, y0, x1, y1 = (float(values[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(class_id, (rotate_polygon(rectangle(x0, y0, x1, y1), degrees, (x0 + x1) / 2, (y0 + y1) / 2),))
    x, y, rx, ry = (float(values[name]) for name in ("cx", "cy", "rx", "ry"))
    return Shape(class_id, (rotate_polygon(ellipse(x, y, rx, ry), degrees, x, y),))
