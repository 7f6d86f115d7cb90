"""The loss of fine-tuning: cross-entropy, with class weights and Dice if asked for."""

import torch
from torch.nn import functional as F

from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.objectives import class_logits


class SegmentationLoss:
    """Cross-entropy over the pixels that are not ignored, and Dice over the images that have such pixels.

    Weighted, the cross-entropy is divided by the sum of its pixels' weights, as torch does; that of a single class is
    binary and divided by the number of pixels, as torch does that.

    Args:
        ignore_index: Label that does not count.
        class_weights: Weight of each class, `(num_labels,)`; 1 by default. Of a single class, that of its pixels
            against the background's (`pos_weight`).
        dice_weight: Factor on the Dice loss, 0 for none.
    """

    def __init__(
        self, ignore_index: int, *, class_weights: torch.Tensor | None = None, dice_weight: float = 0.0
    ) -> None:
        self.ignore_index = ignore_index
        self.single = class_weights is not None and len(class_weights) == 1
        if class_weights is not None and self.single:
            class_weights = torch.cat([torch.ones_like(class_weights), class_weights])
        self.class_weights = class_weights
        self.dice_weight = dice_weight

    def counts(self, labels: torch.Tensor) -> list[torch.Tensor]:
        """Counts the pixels that are not ignored, or adds up their weights; with Dice, also images that have any."""
        valid = labels != self.ignore_index
        pixels = valid.sum()
        weights = self._weights_on(labels.device)
        if weights is not None and not self.single:
            # Without indexing by `valid`, which would wait for the device.
            pixels = (weights[labels.long().where(valid, 0)] * valid).sum()
        return [pixels, valid.flatten(1).any(1).sum()] if self.dice_weight else [pixels]

    def sums(self, logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Sums the cross-entropy over those pixels, and Dice over those images."""
        logits, labels = logits.float(), labels.long()
        weights = self._weights_on(logits.device)
        entropy = F.cross_entropy(
            class_logits(logits), labels, weights, ignore_index=self.ignore_index, reduction="sum"
        )
        if not self.dice_weight:
            return [entropy]
        return [entropy, self.dice_weight * dice_losses(logits, labels, self.ignore_index).sum()]

    def _weights_on(self, device: torch.device) -> torch.Tensor | None:
        if self.class_weights is not None and self.class_weights.device != device:
            self.class_weights = self.class_weights.to(device)  # once: such a copy waits for the device
        return self.class_weights


def dice_losses(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Soft Dice loss of each image: 1 - the mean over its classes of `2 |P T| / (|P| + |T|)` (Milletari et al. 2016).

    The background of a single class does not count.

    Args:
        logits: `(batch, num_labels, H, W)`.
        labels: Class ids `(batch, H, W)`, int64; pixels of `ignore_index` do not count.
        ignore_index: Label that does not count.

    Returns:
        `(batch,)`, in [0, 1]; 0 for an image whose pixels are all ignored.
    """
    valid, labels_of_model = labels != ignore_index, logits.shape[1]
    logits = class_logits(logits)
    truth = F.one_hot(labels.where(valid, 0), logits.shape[1]).movedim(-1, 1)
    probabilities, truth = (x[:, -labels_of_model:] * valid[:, None] for x in (logits.softmax(1), truth))
    size = truth.sum((2, 3))
    overlap = 2 * (probabilities * truth).sum((2, 3))
    score = overlap / (probabilities.sum((2, 3)) + size).clamp(min=1e-6)
    present = size > 0  # a class that is not in the image has no overlap to gain
    return ((1 - score) * present).sum(1) / present.sum(1).clamp(min=1)


def median_frequency_weights(statistics: ClassStatistics) -> torch.Tensor:
    """Weights that make rare classes count: the median of the classes' frequencies over each one's own.

    As in SegNet (Badrinarayanan et al. 2017), a class's frequency is its pixels over those of the images it is in. A
    class that is in no image has the weight 0.

    Args:
        statistics: Of the training labels.

    Returns:
        `(num_classes,)`, float32; the background of a single class is one of them.

    Raises:
        ValueError: No pixel is labelled.
    """
    frequency = torch.from_numpy(statistics.pixels) / torch.from_numpy(statistics.pixels_around).clamp(min=1)
    present = frequency > 0
    if not present.any():
        raise ValueError("class_weights: the labelled images have no labelled pixel. Check the masks.")
    return torch.where(present, frequency[present].median() / frequency.clamp(min=1e-12), 0.0)
