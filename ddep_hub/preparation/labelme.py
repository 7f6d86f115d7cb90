"""LabelMe's annotations: one JSON file per image, beside it or with the image inside.

No light library is kept up for them: labelme itself is a Qt application.
"""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddep_hub.utils.files import read_json

from .shapes import Shape, ellipse, rectangle, shapes_mask
from .source import Example, ObjectAnnotations, Source, example_name, folder_split, pluralize


def is_labelme(content: Any) -> bool:
    """Whether the content of a json file is LabelMe's."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def read_labelme(root: Path, files: Mapping[Path, Any]) -> Source:
    """One json per image: polygons, rectangles, circles and masks; the image beside it, or in it."""
    collector = ObjectAnnotations(root, may_be_empty=True)
    renamed = []
    for path, content in files.items():
        name, split = str(content["imagePath"]), folder_split(path, root)
        shapes = [shape for entry in content["shapes"] if (shape := _parse_shape(entry, collector)) is not None]
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


def _parse_shape(entry: Mapping[str, Any], collector: ObjectAnnotations) -> Shape | None:
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
