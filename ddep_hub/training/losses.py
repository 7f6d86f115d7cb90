"""Losses: cross-entropy and Dice on labelled images, denoising and consistency on unlabelled ones; and the noise."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ddep_hub.configuration_ddep import PREDICTED
from ddep_hub.data.preprocessing import Normalize
from ddep_hub.data.samplers import example_seed
from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.denoising import sample_sigma
from ddep_hub.evaluation.inference import eval_mode
from ddep_hub.modeling_ddep import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.segmentation import class_logits

from .arguments import FinetuneArguments
from .models import needs_image_skip
from .step import Batch


class SegmentationLoss:
    """Cross-entropy over the pixels that are not ignored, and Dice over the images that have such pixels.

    As in torch, a weighted cross-entropy is divided by the sum of the pixels' weights. With a single class, it is
    binary and divided by the number of pixels, again as in torch.

    Args:
        ignore_index: Label of the ignored pixels.
        class_weights: Weight of each class, `(num_labels,)`, on the device of the labels; 1 by default. With a single
            class, the weight of its pixels relative to the background's (torch's `pos_weight`).
        dice_weight: Weight of the Dice loss, 0 for none.
    """

    def __init__(
        self, ignore_index: int, *, class_weights: torch.Tensor | None = None, dice_weight: float = 0.0
    ) -> None:
        self.ignore_index = ignore_index
        self.has_single_class = class_weights is not None and len(class_weights) == 1
        if class_weights is not None and self.has_single_class:
            class_weights = torch.cat([torch.ones_like(class_weights), class_weights])
        self.class_weights = class_weights
        self.dice_weight = dice_weight

    def counts(self, labels: torch.Tensor) -> list[torch.Tensor]:
        """Counts the pixels that are not ignored, or adds up their weights; with Dice, also images that have any."""
        valid = labels != self.ignore_index
        pixels = valid.sum()
        if self.class_weights is not None and not self.has_single_class:
            # Without indexing by `valid`, which would synchronise the device.
            pixels = (self.class_weights[labels.long().where(valid, 0)] * valid).sum()
        return [pixels, valid.flatten(1).any(1).sum()] if self.dice_weight else [pixels]

    def sums(self, logits: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Sums the cross-entropy over those pixels, and Dice over those images."""
        logits, labels = logits.float(), labels.long()
        entropy = F.cross_entropy(
            class_logits(logits), labels, self.class_weights, ignore_index=self.ignore_index, reduction="sum"
        )
        if not self.dice_weight:
            return [entropy]
        return [entropy, self.dice_weight * dice_losses(logits, labels, self.ignore_index).sum()]


def dice_losses(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int) -> torch.Tensor:
    """Soft Dice loss of each image: 1 - the mean over its classes of `2 |P T| / (|P| + |T|)` (Milletari et al. 2016).

    `logits` are `(batch, num_labels, H, W)` and `labels` int64 class ids `(batch, H, W)`. Returns `(batch,)` in
    [0, 1], 0 for an image whose pixels are all ignored. With a single class, the background is excluded.
    """
    valid, num_labels = labels != ignore_index, logits.shape[1]
    logits = class_logits(logits)
    classes = torch.arange(logits.shape[1], device=logits.device)[-num_labels:, None, None]
    targets = (labels[:, None] == classes) & valid[:, None]
    probabilities = logits.softmax(1)[:, -num_labels:] * valid[:, None]
    target_size = targets.sum((2, 3))
    overlap = 2 * (probabilities * targets).sum((2, 3))
    score = overlap / (probabilities.sum((2, 3)) + target_size).clamp(min=1e-6)
    is_present = target_size > 0  # a class that is absent from the image cannot overlap
    return ((1 - score) * is_present).sum(1) / is_present.sum(1).clamp(min=1)


def median_frequency_weights(statistics: ClassStatistics) -> torch.Tensor:
    """Median frequency balancing: each class is weighted by the median class frequency divided by its own frequency.

    As in SegNet (Badrinarayanan et al. 2017), a class's frequency is its number of pixels divided by the number of
    pixels in the images where it occurs. A class that occurs in no image has weight 0. Returns float32
    `(num_classes,)`, which includes the background of a single class.
    """
    frequency = torch.from_numpy(statistics.pixels) / torch.from_numpy(statistics.pixels_around).clamp(min=1)
    is_present = frequency > 0
    return torch.where(is_present, frequency[is_present].median() / frequency.clamp(min=1e-12), 0.0)


def sample_noise(
    images: torch.Tensor, sigma_range: tuple[float, float], seed: int, step: int, positions: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws noise and its level for each image; both depend only on the seed, the step and the image's position.

    `step` is counted from 0; `positions` are the images' indices in the global batch. Returns standard normal noise of
    the shape of `images`, `(batch, C, H, W)`, and sigma within `sigma_range`, `(batch,)`.
    """
    noise = torch.empty(images.shape, device=images.device)
    sigma = torch.empty(len(images), device=images.device)
    for index, position in enumerate(positions):
        generator = torch.Generator(images.device).manual_seed(example_seed(seed, step, position))
        noise[index].normal_(generator=generator)
        sigma[index] = sample_sigma(sigma_range, 1, generator=generator, device=images.device)[0]
    return noise, sigma


# Confidence threshold of the teacher's predictions, as in FixMatch (arXiv 2001.07685) and UniMatch (arXiv 2208.09910),
# and the range of the CutMix box's area as a fraction of the image; a box is pasted into half of the images.
CONFIDENCE = 0.95
BOX_PROBABILITY = 0.5
BOX_AREA = (0.02, 0.4)
IGNORE_INDEX = -100


class UnlabelledLoss:
    """Denoising (DenoiSeg, arXiv 2005.02987) and consistency (UniMatch's simplest form) on unlabelled images.

    These images do not update BatchNorm's statistics: those of noisy or strongly augmented images would not match the
    images that the model is evaluated on. With `denoising_weight`, a `noise_head` is added to the model and trained
    with it; `teacher` returns the EMA model in eval mode.
    """

    def __init__(
        self,
        model: DDePForSemanticSegmentation,
        args: FinetuneArguments,
        normalize: Normalize,
        teacher: Callable[[], nn.Module],
    ) -> None:
        self.model, self.args, self.normalize, self.teacher = model, args, normalize, teacher
        self.denoiser: DDePForPreTraining | None = None
        if args.denoising_weight:
            self.denoiser = build_denoiser(model)

    def counts(self, batch: Batch) -> list[torch.Tensor]:
        """Numbers of values and of pixels by which the two sums are divided."""
        images, counts = batch["unlabelled"], []
        if self.args.denoising_weight:
            counts.append(torch.full((), float(images.numel()), device=images.device))
        if self.args.consistency_weight:
            counts.append(batch["inside"].sum())
        return counts

    def sums(self, batch: Batch, step: int, positions: Sequence[int]) -> list[torch.Tensor]:
        """Sums the squared error over values, and the cross-entropy over confident pixels, times their weights."""
        sums = []
        with freeze_batch_norm_statistics(self.model):
            if self.denoiser is not None:
                sums.append(self.args.denoising_weight * self._denoising_loss(self.denoiser, batch, step, positions))
            if self.args.consistency_weight:
                sums.append(self.args.consistency_weight * self._consistency_loss(batch, step, positions))
        return sums

    def _denoising_loss(
        self, denoiser: DDePForPreTraining, batch: Batch, step: int, positions: Sequence[int]
    ) -> torch.Tensor:
        images = self.normalize(batch["unlabelled"])
        noise, sigma = sample_noise(images, denoiser.config.sigma_range, self.args.seed, step, positions)
        with eval_mode(self.model.ddep.encoder):  # as in pretraining
            loss: torch.Tensor = denoiser(pixel_values=images, noise=noise, sigma=sigma).loss
        return loss * images.numel()

    def _consistency_loss(self, batch: Batch, step: int, positions: Sequence[int]) -> torch.Tensor:
        with torch.no_grad():
            logits = self.teacher()(pixel_values=self.normalize(batch["unlabelled"])).logits
            confidence, labels = class_logits(logits.float()).softmax(1).max(1)
            labels = labels.where((confidence >= CONFIDENCE) & batch["inside"], IGNORE_INDEX)
        images = self.normalize(batch["strong"])
        boxes = torch.stack(
            [random_box(labels.shape[-2:], example_seed(self.args.seed, step, position)) for position in positions]
        ).to(images.device)
        # From the neighbour in the micro-batch, so the source of the box depends on the number of processes and
        # micro-batches.
        images = images.roll(1, 0).where(boxes[:, None], images)
        labels = labels.roll(1, 0).where(boxes, labels)
        logits = self.model(pixel_values=images).logits
        return F.cross_entropy(class_logits(logits.float()), labels, ignore_index=IGNORE_INDEX, reduction="sum")


def build_denoiser(model: DDePForSemanticSegmentation) -> DDePForPreTraining:
    """Builds a denoiser that shares encoder and decoder with a segmentation model, and adds its `noise_head` there.

    Corruption and target are those of pretraining, which the model's configuration records.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    config.freeze_encoder = True
    if config.corruption not in PREDICTED:
        config.image_skip = config.image_skip or needs_image_skip(config.encoder_name)
    denoiser = DDePForPreTraining(config, model.ddep.encoder)
    denoiser.ddep = model.ddep
    model.noise_head = denoiser.noise_head
    return denoiser.train()


def random_box(size: Sequence[int], seed: int) -> torch.Tensor:
    """Draws the box of CutMix: a bool mask of `size`, all false in half of the draws."""
    mask = torch.zeros(*size, dtype=torch.bool)
    draws = torch.rand(5, generator=torch.Generator().manual_seed(seed)).tolist()
    if draws[0] >= BOX_PROBABILITY:
        return mask
    area = BOX_AREA[0] + draws[1] * (BOX_AREA[1] - BOX_AREA[0])
    ratio = 0.3 ** (2 * draws[2] - 1)
    height, width = size
    box_height = max(1, min(height, round(height * (area * ratio) ** 0.5)))
    box_width = max(1, min(width, round(width * (area / ratio) ** 0.5)))
    top, left = int(draws[3] * (height - box_height + 1)), int(draws[4] * (width - box_width + 1))
    mask[top : top + box_height, left : left + box_width] = True
    return mask


@contextlib.contextmanager
def freeze_batch_norm_statistics(model: nn.Module) -> Iterator[None]:
    """Freezes BatchNorm's running statistics; in training mode it still normalises with the batch's."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._NormBase)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
