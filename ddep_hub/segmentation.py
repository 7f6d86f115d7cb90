# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Segmentation: maps of class ids for an image processor, the meaning of a model's logits, and the loss."""

import operator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

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


def class_logits(logits: torch.Tensor) -> torch.Tensor:
    """Logits of all class ids in masks, for every softmax, argmax and loss.

    A model with one label separates it from the background, class 0, whose logit is 0. The softmax probability of the
    label, class 1, is then the sigmoid of its logit, the argmax is a threshold at 0.5, and cross-entropy is binary
    cross-entropy. Maps `(batch, num_labels, H, W)` to `(batch, max(2, num_labels), H, W)`.
    """
    return torch.cat([torch.zeros_like(logits), logits], dim=1) if logits.shape[1] == 1 else logits


def validate_target_sizes(sizes: Any, number: int) -> list[tuple[int, int]]:
    """(height, width) of each of `number` maps, from a list of pairs, or an array or tensor `(number, 2)`.

    Raises a ValueError for anything else.
    """
    sizes = sizes.tolist() if hasattr(sizes, "tolist") else sizes
    try:
        pairs = [(operator.index(height), operator.index(width)) for height, width in sizes]
    except (TypeError, ValueError):
        pairs = []
    if len(pairs) != number or any(min(pair) < 1 for pair in pairs):
        raise ValueError(
            f"target_sizes must be a list or array of (height, width) for each of {number} images, got {sizes}."
        )
    return pairs


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean cross-entropy over the pixels that are not ignored; 0, with zero gradients, if all are.

    `logits`, `(batch, num_labels, h, w)`, are upsampled to the size of `labels`, class ids `(batch, H, W)` of any
    integer type; with a single label, 0 is the background. Raises a ValueError for labels of another type or shape
    and, on a CPU, for ids that are not classes; on a GPU, torch itself fails.
    """
    logits = class_logits(logits.float())
    is_integer = isinstance(labels, torch.Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool)
    if not is_integer or labels.ndim != 3 or len(labels) != len(logits):
        description = (
            f"{labels.dtype} {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels).__name__
        )
        raise ValueError(
            f"labels: expected whole numbers ({len(logits)}, height, width), a class id per pixel, got {description}."
        )
    (height, width), labels = logits.shape[-2:], labels.long()
    if labels.shape[-2:] == (width, height) != (height, width):
        raise ValueError(f"labels: {width}x{height} for images of {height}x{width}: rows and columns are swapped.")
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    try:
        total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    except IndexError as error:
        raise ValueError(
            f"labels: {str(error).rstrip('.')}: class ids are 0 to {logits.shape[1] - 1}, and {ignore_index} "
            "(config.semantic_loss_ignore_index) is ignored."
        ) from error
    return total / (labels != ignore_index).sum().clamp(min=1)
