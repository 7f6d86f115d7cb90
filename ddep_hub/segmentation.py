# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""What logits mean: their loss."""

import torch
from torch.nn import functional as F


def segmentation_loss(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Mean cross-entropy over the pixels that are not ignored; 0, with gradients of 0, if all are.

    Args:
        logits: `(batch, num_labels, h, w)`; upsampled to the size of the labels.
        labels: Class ids `(batch, H, W)`, int64.
        ignore_index: Label that does not count.
    """
    logits = logits.float()
    if logits.shape[-2:] != labels.shape[-2:]:
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="sum")
    return total / (labels != ignore_index).sum().clamp(min=1)
