# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Grids over an image: padding to a stride, and resampling from one stride to another.

All functions can be exported with symbolic sizes.
"""

import torch
from torch.nn import functional as F


def padded_size(side: int, multiple: int) -> int:
    """`side`, rounded up to a multiple."""
    return (side + multiple - 1) // multiple * multiple


def pad_to_multiple(pixel_values: torch.Tensor, multiple: int) -> torch.Tensor:
    """Repeats the last row and column until both sides of `(batch, C, H, W)` are multiples of `multiple`."""
    height, width = pixel_values.shape[-2:]
    if torch.compiler.is_exporting():
        # By indexing: padding would check whether there is something to pad, and sides may be symbolic.
        rows, columns = (
            torch.arange(padded_size(side, multiple), device=pixel_values.device).clamp(max=side - 1)
            for side in (height, width)
        )
        return pixel_values[:, :, rows][..., columns]
    bottom, right = -height % multiple, -width % multiple
    return F.pad(pixel_values, (0, right, 0, bottom), mode="replicate") if bottom or right else pixel_values


def resample(
    feature: torch.Tensor, covered_size: tuple[int, int], stride: float, size: tuple[int, int]
) -> torch.Tensor:
    """Resamples a feature map bilinearly to a grid of another stride; both start at the image's upper left corner.

    `torch.nn.functional.interpolate` stretches one grid onto the other, but they need not cover the same area: with
    patches of 14 pixels, an image is padded to a different size than with a stride of 32.

    Args:
        feature: Shape `(batch, C, rows, columns)`.
        covered_size: Height and width in pixels of the area that the feature map covers.
        stride: Stride of the new grid in pixels.
        size: Rows and columns of the new grid; beyond the feature map, it repeats the border.

    Returns:
        Tensor of shape `(batch, C, *size)`; the feature map itself if the grids are the same.
    """
    # Symbolic in an export with dynamic sizes.
    is_static = all(isinstance(side, int) for side in (*size, *covered_size))
    if is_static and feature.shape[-2:] == size and covered_size == (size[0] * stride, size[1] * stride):
        return feature
    rows = _interpolation(feature.shape[-2], covered_size[0], size[0], stride, feature)
    columns = _interpolation(feature.shape[-1], covered_size[1], size[1], stride, feature)
    return rows @ feature @ columns.mT


def resize(pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resizes images `(batch, C, H, W)` bilinearly with antialiasing.

    Like `torch.nn.functional.interpolate` with `antialias=True`, for which ONNX has no operator.
    """
    height, width = pixel_values.shape[-2:]
    if isinstance(height, int) and isinstance(width, int) and (height, width) == size:
        return pixel_values
    rows = _interpolation(height, height, size[0], height / size[0], pixel_values)
    columns = _interpolation(width, width, size[1], width / size[1], pixel_values)
    return rows @ pixel_values @ columns.mT


def _interpolation(
    num_cells: int, covered_length: int, size: int, stride: float, reference: torch.Tensor
) -> torch.Tensor:
    """Weights `(size, cells)` that average the cells of one grid to those of another.

    A triangle filter about each new cell's centre, with a radius of one cell of the coarser grid: bilinear
    interpolation when upsampling, antialiased when downsampling.
    """
    old_stride = covered_length / num_cells
    old_centers = (torch.arange(num_cells, device=reference.device, dtype=torch.float32) + 0.5) * old_stride
    new_centers = (torch.arange(size, device=reference.device, dtype=torch.float32) + 0.5) * stride
    new_centers = new_centers.clamp(max=covered_length - 0.5 * old_stride)  # repeats the last cell
    support = torch.full_like(new_centers, old_stride).clamp(min=stride)
    weights = (1 - (new_centers[:, None] - old_centers).abs() / support[:, None]).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).to(reference.dtype)
