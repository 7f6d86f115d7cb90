"""Label Studio's export "JSON": tasks, each with an image and the annotations of one or several people.

It is read without label-studio-sdk, which brings a web client.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddep_hub.data.image_io import IMAGE_EXTENSIONS

from .shapes import Shape, ellipse, encode_bitmap, rectangle, rotate_polygon
from .source import ObjectAnnotations, Source, file_splits, pluralize


# A region's kind is one of these, alone or before "labels".
_SHAPE_TYPES = ("polygon", "rectangle", "ellipse", "brush")
# Fields of which a region has at least one.
_GEOMETRY_FIELDS = {"x", "points", "rle", "vertices", "imageDataURL", "sequence"}


def is_label_studio(content: Any) -> bool:
    """Whether the content of a json file is Label Studio's export."""
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and "data" in first and ("annotations" in first or "completions" in first)


def read_label_studio(root: Path, files: Mapping[Path, Any]) -> Source:
    """The export "JSON": polygons, rectangles, ellipses and brushes, in per cent of the image.

    Tasks that nobody has finished are left out: their images would be background. Of several annotations the last one
    with a region counts.
    """
    collector = ObjectAnnotations(root)
    num_unannotated, num_multiple = 0, 0
    splits = file_splits(files, root)
    for path, tasks in files.items():
        for number, task in enumerate(tasks):
            annotations = task.get("annotations", task.get("completions", []))
            completed = [entry for entry in annotations if not entry.get("was_cancelled")]
            if not completed:
                num_unannotated += 1
                continue
            image = _find_image(task, path, collector, splits[path])
            if image is None:
                continue
            annotated_regions = [regions for entry in completed if (regions := _group_regions(entry["result"]))]
            num_multiple += len(annotated_regions) > 1
            regions = annotated_regions[-1] if annotated_regions else []
            shapes = [shape for region in regions if (shape := _parse_shape(region, collector)) is not None]
            sizes = {(item["original_width"], item["original_height"]) for region in regions for item in region}
            size = next(iter(sizes)) if len(sizes) == 1 else None
            collector.add(image, shapes, size, f"task {task.get('id', number)} of {path}", splits[path])
    if num_unannotated:
        collector.notes.append(
            f"{pluralize(num_unannotated, 'task')} without an annotation, or with only cancelled ones: skipped"
        )
    if num_multiple:
        collector.notes.append(
            f"{pluralize(num_multiple, 'task')} with several annotations: used the last with a region"
        )
    return collector.build_source("Label Studio")


def _find_image(task: Mapping[str, Any], path: Path, collector: ObjectAnnotations, split: str | None) -> Path | None:
    texts = [value for value in task["data"].values() if isinstance(value, str)]
    names = [text for text in texts if "." in text.rsplit("/", 1)[-1]]
    url = next((text for text in names if text.lower().split("?")[0].endswith(IMAGE_EXTENSIONS)), (*names, "")[0])
    if not url:
        collector.finder.missing.append(f"that of task {task.get('id', '')} of {path}")
        return None
    image = collector.finder.find(task.get("file_upload") or url, path.parent, split)
    if image is None and task.get("file_upload"):
        collector.finder.missing.pop()
        image = collector.finder.find(url, path.parent, split)
    return image


def _group_regions(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The results that belong together: a region, its labels and its attributes share an id, each with its geometry.

    Labels of the whole image, such as a choice, have no region and are skipped.
    """
    regions: dict[Any, list[Mapping[str, Any]]] = {}
    for number, result in enumerate(results):
        if _GEOMETRY_FIELDS & set(result.get("value", {})):
            regions.setdefault(result.get("id", number), []).append(result)
    return list(regions.values())


def _parse_shape(region: Sequence[Mapping[str, Any]], collector: ObjectAnnotations) -> Shape | None:
    kinds = [result.get("type", "").removesuffix("labels") for result in region]
    index = next((number for number, kind in enumerate(kinds) if kind in _SHAPE_TYPES), None)
    if index is None:
        collector.dropped[next(filter(None, kinds), "labels")] += 1
        return None
    # The labels are in the result of the shape, or in one of their own: <Polygon> beside <Labels>.
    label_lists = [
        result["value"].get(result["type"]) for result in region if result.get("type", "").endswith("labels")
    ]
    labels = next(filter(None, label_lists), None)
    if labels is None:
        collector.dropped[f"{kinds[index]} without a label"] += 1
        return None
    kind, value = kinds[index], region[index]["value"]
    width, height = region[index]["original_width"], region[index]["original_height"]
    if kind == "polygon" and len(value["points"]) < 3:
        collector.dropped["polygon of fewer than 3 points"] += 1
        return None
    class_id = collector.class_id(str(labels[0]))
    if kind == "brush":
        return Shape(class_id, rle=encode_bitmap(decode_brush(value["rle"]).reshape(height, width, 4)[..., 3] > 0))
    scale = np.array([width / 100, height / 100])
    if kind == "polygon":
        return Shape(class_id, (tuple((np.array(value["points"], float) * scale).ravel().tolist()),))
    x, y = value["x"] * scale[0], value["y"] * scale[1]
    if kind == "ellipse":
        polygon = ellipse(x, y, value["radiusX"] * scale[0], value["radiusY"] * scale[1])
    else:
        polygon = rectangle(x, y, x + value["width"] * scale[0], y + value["height"] * scale[1])
    # About the first corner of a rectangle, the centre of an ellipse.
    return Shape(class_id, (rotate_polygon(polygon, value.get("rotation") or 0, x, y),))


def decode_brush(data: Sequence[int]) -> np.ndarray:
    """The bytes of Label Studio's brush, a run-length code of bits by thi.ng (`rle-pack`): RGBA values, flat.

    The code begins with the number of values (32 bits), the width of a value less 1 (5 bits) and the widths less 1 of
    four kinds of lengths (4 bits each). Then come runs: a bit that says whether one value is repeated, the kind of
    length (2 bits), the length less 1, and the value, or as many values.
    """
    bits = np.unpackbits(np.array(data, np.uint8))
    index = 0

    def read(width: int) -> int:
        nonlocal index
        index += width
        return int("".join(map(str, bits[index - width : index])) or "0", 2)

    number, word = read(32), read(5) + 1
    widths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(number, np.uint8)
    position = 0
    while position < number:
        is_run = read(1)
        length = read(widths[read(2)]) + 1
        if is_run:
            values[position : position + length] = read(word)
        else:
            for target in range(position, min(position + length, number)):
                values[target] = read(word)
        position += length
    return values
