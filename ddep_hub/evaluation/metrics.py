"""Segmentation metrics from pixel counts: confusion matrix and boundary IoU."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from ddep_hub.utils.files import format_list


# The metrics of a segmentation model, and their titles in tables.
METRICS = {
    "mean_iou": "mIoU",
    "mean_accuracy": "mean accuracy",
    "overall_accuracy": "overall accuracy",
    "frequency_weighted_iou": "frequency-weighted IoU",
    "mean_boundary_iou": "boundary IoU",
}
BOUNDARY_RATIO = 0.02  # as in the paper of the boundary IoU


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels.

    Only the `num_classes ** 2` counts are kept, so memory does not grow with the number of images, and the counts of
    several processes or parts of a data set can be added.

    Args:
        num_classes: Number of classes.
        ignore_index: Label of the pixels that are not counted, whatever is predicted there.
        device: Device of the counts.

    Attributes:
        counts: int64 tensor (num_classes, num_classes); rows are true classes, columns predicted classes.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds the pixels of `prediction` and `labels`, integer tensors of one shape."""
        labels, prediction = labels.to(self.counts.device).flatten(), prediction.to(self.counts.device).flatten()
        bins = self.num_classes**2
        # Each pixel falls into the bin of its true and its predicted class; 32 bits are read twice as fast as 64.
        pairs = labels.to(torch.int32, copy=True).mul_(self.num_classes).add_(prediction.int())
        # Ignored pixels go to bins beyond those that are kept, so no pixel has to be selected.
        if not self.num_classes <= self.ignore_index <= 255:
            pairs.masked_fill_(labels == self.ignore_index, bins)
        self.counts += torch.bincount(pairs, minlength=bins)[:bins].reshape(self.num_classes, -1)

    def compute(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Computes the metrics, in [0, 1], of all pixels counted so far.

        A class that is neither in the labels nor in the predictions has no IoU (`None`) and is left out of the means.
        A class that is predicted but not in the labels counts as 0 in the mean IoU and is left out of the mean
        accuracy, where torchmetrics counts it as 0.

        Args:
            names: Names of the classes; their ids by default. If there are fewer names than classes, the metrics cover
                the last classes: a single class without its background.

        Returns:
            `mean_iou`; `mean_accuracy`, the mean recall of the classes; `overall_accuracy`, the fraction of correct
            pixels; `frequency_weighted_iou`, the IoU weighted by the classes' shares of the labelled pixels; `iou` and
            `accuracy` by class name; `num_classes` and `mean_iou_classes`, the number of classes and of those in
            `mean_iou`; and `absent_classes`, the names of classes without a labelled pixel. A mean over no class is 0.

        Raises:
            ValueError: No labelled pixel was counted.
        """
        counts = self.counts.cpu().double()  # MPS has no float64
        intersection, true, predicted = counts.diag(), counts.sum(1), counts.sum(0)
        if not true.any():
            raise ValueError("No labelled pixels: all have the ignore index. Check the masks.")
        overall_accuracy = (intersection.sum() / true.sum()).item()
        num_labels = self.num_classes if names is None else len(names)
        intersection, true, predicted = intersection[-num_labels:], true[-num_labels:], predicted[-num_labels:]
        union = true + predicted - intersection
        iou = torch.where(union > 0, intersection / union, torch.nan)
        accuracy = torch.where(true > 0, intersection / true, torch.nan)
        return {
            "mean_iou": iou.nanmean().nan_to_num().item(),
            "mean_accuracy": accuracy.nanmean().nan_to_num().item(),
            "overall_accuracy": overall_accuracy,
            "frequency_weighted_iou": ((true / true.sum().clamp(min=1)) * iou.nan_to_num()).sum().item(),
            "iou": _to_class_dict(names, iou),
            "accuracy": _to_class_dict(names, accuracy),
            "num_classes": num_labels,
            "mean_iou_classes": int((union > 0).sum()),
            "absent_classes": [name for name, pixels in _to_class_dict(names, true).items() if not pixels],
        }


def absent_message(absent: Sequence[str], num_classes: int, split: str) -> str:
    """The warning about classes that the evaluated labels lack."""
    names = format_list(list(map(repr, absent)), 10)
    return (
        f"No pixel of `{split}` belongs to {names}, {len(absent)} of {num_classes} classes. One that is predicted "
        "anywhere has an IoU of 0, which lowers the mean; otherwise it is left out."
    )


def _to_class_dict(names: Sequence[str] | None, values: torch.Tensor) -> dict[str, float | None]:
    names = names or [str(index) for index in range(len(values))]
    pairs = zip(names, values.tolist(), strict=True)
    return {name: None if math.isnan(value) else value for name, value in pairs}


class BoundaryIoU:
    """Boundary IoU: the IoU of the pixels near the outline of a class in the labels and in the predictions.

    Near the outline are the pixels of a class that an erosion by `d` pixels removes: those whose square of `2 * d + 1`
    pixels contains another class or extends beyond the image. `d` is `BOUNDARY_RATIO` of the image's diagonal, at
    least one pixel. As in the confusion matrix, pixels are summed over all images before the division.

    Ignored pixels are not counted, and do not count as another class for the pixels near them, in labels and
    predictions, so the border of an ignored area is not an outline.

    Arguments are those of [`ConfusionMatrix`].

    Attributes:
        counts: int64 tensor (3, num_classes): pixels near an outline in both, in the labels, in the predictions.
    """

    def __init__(self, num_classes: int, ignore_index: int = 255, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(3, num_classes, dtype=torch.int64, device=device)

    def update(self, prediction: torch.Tensor, labels: torch.Tensor) -> None:
        """Adds images of one size: class ids (batch, H, W), and labels of that shape, class ids or `ignore_index`."""
        prediction, labels = prediction.to(self.counts.device), labels.to(self.counts.device)
        distance = max(1, round(BOUNDARY_RATIO * math.hypot(*labels.shape[-2:])))
        valid = labels != self.ignore_index
        true = valid & boundary_mask(labels, valid, distance)
        predicted = valid & boundary_mask(prediction, valid, distance)
        both = true & predicted & (prediction == labels)
        for row, (ids, selected) in enumerate([(labels, both), (labels, true), (prediction, predicted)]):
            self.counts[row] += torch.bincount(ids[selected], minlength=self.num_classes)

    def compute(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Computes `mean_boundary_iou`, and `boundary_iou` by class name, in [0, 1].

        A class without an outline in labels and predictions is `None` and left out of the mean; one that is only
        predicted counts as 0. The mean is `None` if no label has an outline. For fewer names than classes, see
        [`ConfusionMatrix.compute`].
        """
        intersection, true, predicted = self.counts.cpu().double()[:, -len(names or range(self.num_classes)) :]
        union = true + predicted - intersection
        iou = torch.where(union > 0, intersection / union, torch.nan)
        mean = iou.nanmean().item() if true.any() else None
        return {"mean_boundary_iou": mean, "boundary_iou": _to_class_dict(names, iou)}


def boundary_mask(ids: torch.Tensor, valid: torch.Tensor, distance: int) -> torch.Tensor:
    """Finds the pixels whose square of `2 * distance + 1` pixels contains another id or extends beyond the image.

    One pass handles all classes: a square contains another id if its maximum or minimum differs from its centre.
    `ids`, `valid` and the bool result are (batch, H, W); the result is undefined where `valid` is false.
    """
    height, width = ids.shape[-2:]
    values = ids.float()  # exact up to 2 ** 24
    signed = torch.stack([values, -values], dim=1).masked_fill(~valid[:, None], -math.inf)
    # The maximum filter is separable, and two overlapping windows form a longer one, so the time grows only with the
    # logarithm of the distance, which is large in large images.
    maxima = F.pad(signed, [distance] * 4, value=-math.inf)
    for axis in (-1, -2):
        length = 1
        while length < 2 * distance + 1:
            shift = min(length, 2 * distance + 1 - length)
            size = maxima.shape[axis] - shift
            maxima = torch.maximum(maxima.narrow(axis, 0, size), maxima.narrow(axis, shift, size))
            length += shift
    boundary = (maxima[:, 0] != values) | (maxima[:, 1] != -values)
    rows, columns = torch.arange(height, device=ids.device), torch.arange(width, device=ids.device)
    boundary |= ((rows < distance) | (rows >= height - distance))[:, None]
    boundary |= (columns < distance) | (columns >= width - distance)
    return boundary


def confusion_csv(counts: torch.Tensor, names: Sequence[str]) -> str:
    """Formats the counts of a [`ConfusionMatrix`] as CSV: one row per true class, one column per predicted class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true / predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
    return text.getvalue()
