"""What fine-tuning minimises: cross-entropy, with class weights and Dice where asked for."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ddep_hub.data.classes import ClassTable
from ddep_hub.data.rows import Rows
from ddep_hub.data.transforms import Normalize

from .loop import Batch


class SegmentationObjective:
    """Cross-entropy over the pixels that are not ignored, and Dice over the images that have such.

    Weighted, the cross-entropy is divided by the sum of its pixels' weights, as torch does.

    Args:
        normalize: makes `pixel_values` of uint8 images.
        ignore_index: label that does not count.
        class_weights: weight of each class, `(num_labels,)`; 1 by default.
        dice_weight: factor on the Dice loss, 0 for none.
    """

    def __init__(
        self,
        normalize: Normalize,
        ignore_index: int,
        *,
        class_weights: torch.Tensor | None = None,
        dice_weight: float = 0.0,
    ) -> None:
        self.normalize = normalize
        self.ignore_index = ignore_index
        self.class_weights = class_weights
        self.dice_weight = dice_weight

    def counts(self, batch: Batch) -> list[float]:
        """Pixels that are not ignored, or their weights; with Dice, images that have such pixels."""
        labels = batch["labels"]
        valid = labels != self.ignore_index
        pixels = valid.sum() if self.class_weights is None else self.class_weights[labels[valid]].sum()
        images = [float(valid.flatten(1).any(1).sum())] if self.dice_weight else []
        return [float(pixels), *images]

    def loss_sums(self, model: nn.Module, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        """Cross-entropy summed over those pixels, and Dice over those images."""
        logits = model(pixel_values=self.normalize(batch["pixel_values"])).logits.float()
        labels = batch["labels"]
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        entropy = F.cross_entropy(logits, labels, weights, ignore_index=self.ignore_index, reduction="sum")
        if not self.dice_weight:
            return [entropy]
        return [entropy, self.dice_weight * dice_losses(logits, labels, self.ignore_index).sum()]


def dice_losses(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Soft Dice loss of each image: 1 - the mean over its classes of `2 |P T| / (|P| + |T|)` (Milletari et al. 2016).

    Args:
        logits: `(batch, num_labels, H, W)`.
        labels: class ids `(batch, H, W)`, int64; pixels of `ignore_index` do not count.
        ignore_index: see above.

    Returns:
        `(batch,)`, in [0, 1]; 0 for an image whose pixels are all ignored.
    """
    valid = labels != ignore_index
    probabilities = logits.softmax(1) * valid[:, None]
    truth = F.one_hot(labels.where(valid, 0), logits.shape[1]).movedim(-1, 1) * valid[:, None]
    size = truth.sum((2, 3))
    overlap = 2 * (probabilities * truth).sum((2, 3))
    score = overlap / (probabilities.sum((2, 3)) + size).clamp(min=1e-6)
    present = size > 0  # a class that is not in the image has no overlap to gain
    return ((1 - score) * present).sum(1) / present.sum(1).clamp(min=1)


def median_frequency_weights(rows: Rows, classes: ClassTable) -> torch.Tensor:
    """Weights that make rare classes count: the median of the classes' frequencies over each one's own.

    As SegNet does (Badrinarayanan et al. 2017): a class's frequency is its pixels over those of the images it is in.
    A class that is in no image has the weight 0.

    Args:
        rows: labelled images; the mask of each is read.
        classes: their classes.

    Returns:
        `(num_classes,)`, float32.
    """
    pixels = torch.zeros(classes.num_classes)
    around = torch.zeros(classes.num_classes)
    for index in range(len(rows)):
        labels = torch.from_numpy(rows[index]["annotation"]).long()
        counts = labels[labels != classes.ignore_index].bincount(minlength=classes.num_classes)
        pixels += counts
        around += counts.sum() * (counts > 0)
    frequency = pixels / around.clamp(min=1)
    present = frequency > 0
    if not present.any():
        raise ValueError("class_weights: the labelled images have no labelled pixel. Check the masks.")
    return torch.where(present, frequency[present].median() / frequency.clamp(min=1e-12), 0.0)
