# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Segmentation maps for an image processor: converts them to class ids of the required size."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from .orientation import apply_orientation


IGNORE_INDEX = 255  # of maps with `do_reduce_labels`


def flatten(items: Any) -> list[Any]:
    """Lists one item, or those of a (nested) sequence, as transformers does with images."""
    if not isinstance(items, (list, tuple)):
        return [items]
    return [item for entry in items for item in (entry if isinstance(entry, (list, tuple)) else [entry])]


def list_maps(maps: Any) -> list[Any]:
    """Lists the maps of an argument: a single map, a batch as one array, or a sequence, see [`flatten`]."""
    if isinstance(maps, (list, tuple)):
        return flatten(maps)
    is_batch = not isinstance(maps, Image.Image) and getattr(maps, "ndim", 2) == 3 and maps.shape[-1] != 1
    return list(maps) if is_batch else [maps]


def to_class_ids(segmentation_map: Any, index: int) -> np.ndarray:
    """Converts one map to int64 class ids `(height, width)`; `index` identifies it in errors."""
    if isinstance(segmentation_map, torch.Tensor):
        segmentation_map = segmentation_map.cpu().numpy()
    elif not isinstance(segmentation_map, (np.ndarray, Image.Image)):
        kind = type(segmentation_map).__name__
        raise ValueError(f"Segmentation map {index} is a {kind}: pass a PIL image, an array or a tensor.")
    array = np.asarray(
        apply_orientation(segmentation_map) if isinstance(segmentation_map, Image.Image) else segmentation_map
    )
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2:
        raise ValueError(
            f"Segmentation map {index} has shape {array.shape}: it needs one class id per pixel, (height, width). "
            "Convert colour-coded masks to ids first."
        )
    class_ids = array.astype(np.int64)
    if np.issubdtype(array.dtype, np.floating) and not np.array_equal(class_ids, array):
        raise ValueError(
            f"Segmentation map {index} has fractional values ({array.min():g} to {array.max():g}), not class ids. "
            "Pass it without rescaling or interpolation."
        )
    return class_ids


def resize_nearest(class_ids: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes `(height, width)` ids to the nearest pixel centre, in integers to avoid rounding errors."""
    old_height, old_width = class_ids.shape
    rows = (2 * np.arange(height) + 1) * old_height // (2 * height)
    columns = (2 * np.arange(width) + 1) * old_width // (2 * width)
    return class_ids[rows[:, None], columns]


def reduce_labels(class_ids: np.ndarray) -> np.ndarray:
    """Drops class 0: it becomes 255, 255 stays, and all other ids decrease by one."""
    if class_ids.max(initial=0) > IGNORE_INDEX:
        raise ValueError(
            f"do_reduce_labels ignores id {IGNORE_INDEX}, so ids must not exceed it. Reduce the maps yourself."
        )
    return np.where((class_ids == 0) | (class_ids == IGNORE_INDEX), IGNORE_INDEX, class_ids - 1)
