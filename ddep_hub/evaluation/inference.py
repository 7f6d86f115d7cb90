"""Inference on images of any size, and its evaluation."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ddep_hub.data.rows import LabelledRows
from ddep_hub.data.transforms import EvalTransform
from ddep_hub.data.workers import ignore_signals, reading

from .boundary import BoundaryCounts
from .metrics import ConfusionMatrix
from .windows import InferenceOptions, predict_probabilities


@torch.no_grad()
def predict(
    model: nn.Module, pixel_values: torch.Tensor, size: tuple[int, int], options: InferenceOptions | None = None
) -> torch.Tensor:
    """Class ids of images, at another size than the model sees.

    Args:
        model: a segmentation model in eval mode.
        pixel_values: normalised images `(batch, 3, h, w)`.
        size: height and width of the result; logits are upsampled to it before the argmax.
        options: how to predict; the whole image in one pass by default.

    Returns:
        int64 tensor `(batch, *size)`.
    """
    if options is not None and not options.is_single_pass:
        return predict_probabilities(model, pixel_values, size, options).argmax(1)
    logits = model(pixel_values=pixel_values).logits
    if logits.shape[-2:] != size:
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
    return logits.argmax(1)


@torch.no_grad()
def count_pixels(
    model: nn.Module,
    rows: LabelledRows,
    transform: EvalTransform,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    options: InferenceOptions | None = None,
    boundary: BoundaryCounts | None = None,
    on_prediction: Callable[[int, torch.Tensor], None] | None = None,
) -> ConfusionMatrix:
    """Counts true and predicted classes over labelled images, at the size of their masks.

    Args:
        model: a segmentation model; it is put into eval mode.
        rows: the labelled images.
        transform: prepares a row.
        normalize: makes `pixel_values` of uint8 images.
        batch_size: images a forward pass, where they follow each other with the same size.
        num_workers: processes that read images; 0 does it in this one.
        accelerator: shares the images out over its processes; the counts are summed, so they do not depend on how
            many there are.
        options: how to predict; whole images in one pass by default.
        boundary: fresh counts on the model's device, which are filled with those of all processes.
        on_prediction: called with the number of a row and its predicted class ids `(H, W)`, in the process that
            predicted it.
    """
    model.eval()
    device = next(model.parameters()).device
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    matrix = ConfusionMatrix(rows.classes.num_classes, rows.classes.ignore_index, device)
    examples = DataLoader(
        _Examples(rows, transform),
        sampler=range(rank, len(rows), world_size),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
    )
    numbers = iter(range(rank, len(rows), world_size))
    with reading(examples) as read:
        for pixels, labels in _batches(read, batch_size):
            predicted = predict(model, normalize(pixels.to(device)), tuple(labels.shape[-2:]), options)
            labels = labels.to(device)
            matrix.update(predicted, labels)
            if boundary is not None:
                boundary.update(predicted, labels)
            if on_prediction is not None:
                for image in predicted:
                    on_prediction(next(numbers), image)
    if accelerator is not None:
        matrix.counts = accelerator.reduce(matrix.counts, "sum")
        if boundary is not None:
            boundary.counts = accelerator.reduce(boundary.counts, "sum")
    return matrix


def evaluate_segmentation(
    model: nn.Module,
    rows: LabelledRows,
    transform: EvalTransform,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    options: InferenceOptions | None = None,
    boundary: BoundaryCounts | None = None,
) -> dict[str, Any]:
    """The figures of [`ConfusionMatrix`], and of `boundary` where it is given, for the counts of [`count_pixels`].

    Takes the same arguments.
    """
    matrix = count_pixels(
        model,
        rows,
        transform,
        normalize,
        batch_size=batch_size,
        num_workers=num_workers,
        accelerator=accelerator,
        options=options,
        boundary=boundary,
    )
    names = list(rows.classes.names)
    return matrix.figures(names) | ({} if boundary is None else boundary.figures(names))


class _Examples(Dataset[dict[str, torch.Tensor]]):
    """Rows under a transform."""

    def __init__(self, rows: LabelledRows, transform: EvalTransform) -> None:
        self.rows, self.transform = rows, transform

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.transform(self.rows[index])


def _batches(
    examples: Iterable[dict[str, torch.Tensor]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Stacks examples that follow each other with the same sizes."""
    waiting: list[dict[str, torch.Tensor]] = []

    def stacked() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.stack([row["pixel_values"] for row in waiting]), torch.stack([row["labels"] for row in waiting])

    for row in examples:
        fits = not waiting or all(row[name].shape == waiting[0][name].shape for name in row)
        if waiting and (len(waiting) == batch_size or not fits):
            yield stacked()
            waiting = []
        waiting.append(row)
    if waiting:
        yield stacked()
