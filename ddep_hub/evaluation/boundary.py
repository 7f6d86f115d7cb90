"""Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562) from counts: how well the outlines fit."""

import math
from typing import Any

import torch
from torch.nn import functional as F

from .metrics import by_class


class BoundaryCounts:
    """Counts of the pixels that lie near the outline of a class, in the labels, in the predictions and in both.

    Near the outline is a pixel of a class that an erosion of the class by `d` pixels would take away: one whose square
    of `2 * d + 1` pixels holds another class, or reaches over the edge of the image. `d` is a share of the image's
    diagonal, at least one pixel. As in the confusion matrix, a class's pixels are summed over all images before the
    division; only the `3 * num_classes` sums are kept.

    Pixels whose label is `ignore_index` are not counted, and are neutral: they are no other class to the pixels near
    them, in the labels as in the predictions, so the rim of an unlabelled area is no outline.

    Args:
        num_classes: number of classes.
        ignore_index: label that is not counted.
        device: where the counts lie.
        ratio: `d` as a share of the diagonal, above 0; 0.02 is the paper's.

    Attributes:
        counts: int64 tensor `(3, num_classes)`: pixels near an outline in both, in the labels, in the predictions.

    Raises:
        ValueError: `ratio` is not positive.
    """

    def __init__(
        self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu", *, ratio: float = 0.02
    ) -> None:
        if not ratio > 0:
            raise ValueError(f"ratio is {ratio}; give a share of the image's diagonal above 0, such as 0.02.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.ratio = ratio
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds images of one size.

        Args:
            prediction: class ids `(batch, H, W)`.
            labels: class ids or `ignore_index`, of the same shape.
        """
        prediction, labels = prediction.to(self.counts.device), labels.to(self.counts.device)
        distance = max(1, round(self.ratio * math.hypot(*labels.shape[-2:])))
        counted = labels != self.ignore_index
        true = counted & near_outline(labels, counted, distance)
        found = counted & near_outline(prediction, counted, distance)
        both = true & found & (prediction == labels)
        for row, (ids, chosen) in enumerate([(labels, both), (labels, true), (prediction, found)]):
            self.counts[row] += torch.bincount(ids[chosen], minlength=self.num_classes)

    def figures(self, names: list[str] | None = None) -> dict[str, Any]:
        """`mean_boundary_iou`, and `boundary_iou` by class, in [0, 1].

        A class without an outline in labels and predictions has none (`None`) and is left out of the mean; one that
        is only predicted counts as 0. The mean is `None` where no label has an outline, as where each is one class
        inside ignored pixels.
        """
        both, true, found = self.counts.double().cpu()
        union = true + found - both
        iou = torch.where(union > 0, both / union, torch.nan)
        names = names or [str(index) for index in range(self.num_classes)]
        mean = iou.nanmean().item() if true.any() else None
        return {"mean_boundary_iou": mean, "boundary_iou": by_class(names, iou)}


def near_outline(ids: torch.Tensor, counted: torch.Tensor, distance: int) -> torch.Tensor:
    """Pixels whose square of `2 * distance + 1` pixels holds another id, or reaches over the edge of the image.

    One pass does all classes: a square holds another id than its middle's where its largest or its smallest differs.

    Args:
        ids: integer tensor `(batch, H, W)`.
        counted: bool tensor of the same shape; other pixels are not looked at.
        distance: in pixels.

    Returns:
        bool tensor of the same shape; what it says of pixels that are not counted means nothing.
    """
    height, width = ids.shape[-2:]
    values = ids.float()  # exact up to 2 ** 24
    both = torch.stack([values, -values], dim=1).masked_fill(~counted[:, None], -math.inf)
    side = 2 * distance + 1
    # A square's maximum is that of its rows' maxima; the padding is minus infinity.
    largest = F.max_pool2d(both, (1, side), stride=1, padding=(0, distance))
    largest = F.max_pool2d(largest, (side, 1), stride=1, padding=(distance, 0))
    near = (largest[:, 0] != values) | (largest[:, 1] != -values)
    rows, columns = torch.arange(height, device=ids.device), torch.arange(width, device=ids.device)
    near |= ((rows < distance) | (rows >= height - distance))[:, None]
    near |= (columns < distance) | (columns >= width - distance)
    return near
