"""Segmentation metrics from counts, so that memory does not grow with the number of images."""

from typing import Any

import torch


class ConfusionMatrix:
    """Counts of (true class, predicted class) over pixels; figures are computed from the sums.

    Args:
        num_classes: number of classes.
        ignore_index: label that is not counted.
        device: where the counts lie.
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
        """Mean IoU, mean accuracy, overall accuracy, and the IoU of each class, in [0, 1].

        A class that is neither in the labels nor in the predictions has no IoU (`None`) and is left out of the means,
        as is usual in the field. One that is predicted but not in the labels counts as 0 in the mean IoU, and is left
        out of the mean accuracy.

        Raises:
            ValueError: nothing was counted.
        """
        counts = self.counts.double().cpu()
        hit, true, predicted = counts.diag(), counts.sum(1), counts.sum(0)
        union = true + predicted - hit
        iou = torch.where(union > 0, hit / union, torch.nan)
        accuracy = torch.where(true > 0, hit / true, torch.nan)
        names = names or [str(index) for index in range(self.num_classes)]
        per_class = {name: None if value.isnan() else value.item() for name, value in zip(names, iou, strict=True)}
        if not true.any():
            raise ValueError("No labelled pixel was counted: every one is the ignore index. Check the masks.")
        return {
            "mean_iou": iou.nanmean().item(),
            "mean_accuracy": accuracy.nanmean().item(),
            "overall_accuracy": (hit.sum() / true.sum()).item(),
            "iou": per_class,
        }
