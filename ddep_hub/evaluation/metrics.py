"""Segmentation metrics from counts, so that memory does not grow with the number of images."""

import math
from typing import Any

import torch


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

    def figures(self, names: list[str] | None = None) -> dict[str, Any]:
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
