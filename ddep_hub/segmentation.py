# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The logits of a segmentation model: their meaning, the sizes of predicted maps, and the loss."""

import operator
from typing import Any

import torch
from torch.nn import functional as F


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
