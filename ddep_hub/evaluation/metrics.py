"""Metrics from counts of pixels: confusion matrix and boundary IoU."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels; figures are computed from the sums.

    Only the `num_classes ** 2` counts are kept, on their device, so memory does not grow with the number of images,
    and the counts of several processes or parts of a data set add up.

    Pixels whose label is `ignore_index` are not counted, whatever is predicted there.

    Args:
        num_classes: number of classes.
        ignore_index: label that is not counted.
        device: where the counts lie.

    Attributes:
        counts: int64 tensor `(num_classes, num_classes)`; rows are true classes, columns predicted ones.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds the pixels of `prediction` and `labels`, integer tensors of one shape."""
        valid = labels != self.ignore_index
        pairs = labels[valid].to(self.counts.device) * self.num_classes + prediction[valid].to(self.counts.device)
        self.counts += torch.bincount(pairs, minlength=self.num_classes**2).reshape(self.num_classes, -1)

    def compute(self, names: list[str] | None = None) -> dict[str, Any]:
        """The usual figures, in [0, 1], of all pixels counted so far.

        A class that is neither in the labels nor in the predictions has no IoU (`None`) and is left out of the means,
        as is usual in the field. One that is predicted but not in the labels counts as 0 in the mean IoU, and is left
        out of the mean accuracy: it has no pixel that could have been right. (torchmetrics agrees on the IoU, and
        counts such a class as 0 in its macro accuracy.)

        Args:
            names: names of the classes; their numbers by default.

        Returns:
            `mean_iou`; `mean_accuracy`, the mean over classes of the share of their pixels that is found;
            `overall_accuracy`, that share over all pixels; `frequency_weighted_iou`, the IoU of the classes weighted
            by their share of the labelled pixels; and by class `iou` and `accuracy`.

        Raises:
            ValueError: nothing was counted.
        """
        counts = self.counts.double().cpu()
        hit, true, predicted = counts.diag(), counts.sum(1), counts.sum(0)
        if not true.any():
            raise ValueError("No labelled pixel was counted: every one is the ignore index. Check the masks.")
        union = true + predicted - hit
        iou = torch.where(union > 0, hit / union, torch.nan)
        accuracy = torch.where(true > 0, hit / true, torch.nan)
        names = names or [str(index) for index in range(self.num_classes)]
        return {
            "mean_iou": iou.nanmean().item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "overall_accuracy": (hit.sum() / true.sum()).item(),
            "frequency_weighted_iou": ((true / true.sum()) * iou.nan_to_num()).sum().item(),
            "iou": by_class(names, iou),
            "accuracy": by_class(names, accuracy),
        }


def by_class(names: list[str], values: torch.Tensor) -> dict[str, float | None]:
    """One value a class by its name; `None` where it is not a number."""
    pairs = zip(names, values.tolist(), strict=True)
    return {name: None if math.isnan(value) else value for name, value in pairs}


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

    def compute(self, names: list[str] | None = None) -> dict[str, Any]:
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


def confusion_csv(counts: torch.Tensor, names: Sequence[str]) -> str:
    """The pixel counts as CSV: one row a true class, one column a predicted class.

    Args:
        counts: integer tensor `(classes, classes)`, of [`ConfusionMatrix`].
        names: names of the classes.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true / predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()
