"""CVAT's export "CVAT for images 1.1": `annotations.xml`.

No light library is kept up for it: datumaro brings TensorFlow formats and OpenCV.
"""

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from .shapes import Shape, ellipse, rectangle, rotate_polygon
from .source import ObjectAnnotations, Source


def read_cvat(root: Path, path: Path) -> Source:
    """Polygons, boxes, ellipses and masks."""
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
            shapes = [shape for item in entry if (shape := _parse_shape(item, collector)) is not None]
        except ValueError as error:
            raise ValueError(f"{path}, {entry.attrib['name']}: {error}. Export the task again.") from error
        size = (int(entry.attrib["width"]), int(entry.attrib["height"]))
        # Later ones lie over earlier ones in CVAT, by z_order; here the smaller ones do, as in all formats.
        collector.add(image, shapes, size, f"image {number} of {path}", split if has_splits else None)
    return collector.build_source("CVAT for images")


def _decode_runs(counts: Sequence[int], height: int, width: int) -> np.ndarray:
    """A bool (H, W) from the lengths of runs of background and object in turn, row by row."""
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    if flat.size != height * width:
        raise ValueError(f"a mask has {flat.size} pixels in an image of {width}x{height}")
    return flat.reshape(height, width)


def _parse_shape(item: ElementTree.Element, collector: ObjectAnnotations) -> Shape | None:
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
        return Shape(class_id, patch=(left, top, _decode_runs(runs, height, width)))
    if kind == "polygon":
        return Shape(class_id, (tuple(points),))
    degrees = float(values.get("rotation") or 0)  # about the centre
    if kind == "box":
        x0, y0, x1, y1 = (float(values[name]) for name in ("xtl", "ytl", "xbr", "ybr"))
        return Shape(class_id, (rotate_polygon(rectangle(x0, y0, x1, y1), degrees, (x0 + x1) / 2, (y0 + y1) / 2),))
    x, y, rx, ry = (float(values[name]) for name in ("cx", "cy", "rx", "ry"))
    return Shape(class_id, (rotate_polygon(ellipse(x, y, rx, ry), degrees, x, y),))
