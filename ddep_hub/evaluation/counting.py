"""Counts a model's predictions over a labelled data set."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ddep_hub.data.classes import ClassTable
from ddep_hub.data.dataloading import init_worker, iterate_batches, share_tensors
from ddep_hub.data.preprocessing import AnyImage, EvalTransform
from ddep_hub.data.segmentation_datasets import HubSegmentation, Sample, SegmentationDataset, SegmentationFolder
from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.utils.files import format_list
from ddep_hub.utils.processes import sum_over_processes

from .inference import InferenceOptions, eval_mode, input_device, predict_ids
from .metrics import BoundaryIoU, ConfusionMatrix


@torch.no_grad()
def count_pixels(
    model: nn.Module,
    dataset: SegmentationDataset,
    transform: EvalTransform,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    accelerator: Accelerator | None = None,
    options: InferenceOptions | None = None,
    boundary: BoundaryIoU | None = None,
    statistics: ClassStatistics | None = None,
    on_prediction: Callable[[int, torch.Tensor], None] | None = None,
) -> ConfusionMatrix:
    """Counts true and predicted classes over a labelled dataset, at the size of its masks.

    Args:
        model: A segmentation model; it is put into eval mode during evaluation.
        dataset: The labelled images.
        transform: Prepares a sample; see [`EvalTransform`].
        normalize: Maps uint8 images to `pixel_values`; see [`Normalize.from_processor`].
        batch_size: Images per forward pass, if consecutive ones have the same size.
        num_workers: Worker processes that read images; 0 uses this process.
        accelerator: Splits the images over its processes; the counts are summed, so they do not depend on the number
            of processes.
        options: How to predict; whole images in one pass by default.
        boundary: Counts of the pixels near outlines to update as well.
        statistics: Counts of the labels to update as well.
        on_prediction: Called with the index of a sample and its predicted class ids (H, W), in the process that
            predicted it.
    """
    device = input_device(model)
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    matrix = ConfusionMatrix(dataset.classes.num_classes, dataset.classes.ignore_index, device)
    indices = range(rank, len(dataset), world_size)
    loader = DataLoader(
        _TransformedDataset(dataset, transform),
        sampler=indices,
        batch_size=None,
        collate_fn=share_tensors,
        num_workers=num_workers,
        worker_init_fn=init_worker,
    )
    remaining = iter(indices)
    with eval_mode(model), iterate_batches(loader) as samples:
        for pixels, labels in _iter_batches(samples, batch_size):
            if statistics is not None:
                for mask in labels.numpy():
                    statistics.update(mask)
            predicted = predict_ids(model, normalize(pixels.to(device)), tuple(labels.shape[-2:]), options)
            labels = labels.to(device)
            matrix.update(predicted, labels)
            if boundary is not None:
                boundary.update(predicted, labels)
            if on_prediction is not None:
                for image in predicted:
                    on_prediction(next(remaining), image)
    if accelerator is not None and world_size > 1:
        matrix.counts = accelerator.reduce(matrix.counts, "sum")
        if boundary is not None:
            boundary.counts = accelerator.reduce(boundary.counts, "sum")
        if statistics is not None:
            statistics.counts = sum_over_processes(accelerator, statistics.counts)
    return matrix


def evaluate_segmentation(
    model: nn.Module,
    dataset: SegmentationDataset,
    transform: EvalTransform,
    normalize: Callable[[torch.Tensor], torch.Tensor],
    **kwargs: Any,
) -> dict[str, Any]:
    """Computes the metrics of [`ConfusionMatrix`]; arguments of [`count_pixels`]."""
    return count_pixels(model, dataset, transform, normalize, **kwargs).compute(dataset.classes.labels)


def _check_sample(sample: Sample, classes: ClassTable, name: str) -> None:
    """Checks a sample of a user's own dataset: `annotation` must be an array of class ids of the image's size."""
    if not isinstance(sample, Mapping) or not {"image", "annotation"} <= sample.keys():
        keys = f"has the keys {format_list([*sample])}" if isinstance(sample, Mapping) else None
        held = keys or f"is a {type(sample).__name__}"
        raise TypeError(f"data: the item of {name} {held}. It must be a dictionary with `image` and `annotation`.")
    image, mask = sample["image"], sample["annotation"]
    if not isinstance(image, AnyImage):
        raise TypeError(f"data: `image` of {name} must be a PIL image, got {type(image).__name__}.")
    if not isinstance(mask, np.ndarray):
        raise TypeError(f"data: `annotation` of {name} must be an array (height, width), got {type(mask).__name__}.")
    if mask.shape != (image.height, image.width):
        raise ValueError(
            f"data: `annotation` of {name} has shape {mask.shape}, but its image {image.height}x{image.width}."
        )
    valid_ids = {*range(classes.num_classes), classes.ignore_index}
    unknown = sorted(set(np.unique(mask).tolist()) - valid_ids)
    if unknown:
        raise ValueError(
            f"data: `annotation` of {name} holds {format_list(unknown)}: class ids are 0 to {classes.num_classes - 1},"
            f" and {classes.ignore_index} is ignored."
        )


class _TransformedDataset(Dataset[dict[str, torch.Tensor]]):
    """The samples of a dataset under a transform."""

    def __init__(self, dataset: SegmentationDataset, transform: EvalTransform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if isinstance(self.dataset, SegmentationFolder | HubSegmentation):  # whose errors name the file
            return self.transform(self.dataset[index])
        name = self.dataset.sample_ids[index]
        try:
            sample = self.dataset[index]
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"data: the item of {name} cannot be read ({reason}).") from error
        _check_sample(sample, self.dataset.classes, name)
        return self.transform(sample)


def _iter_batches(
    samples: Iterable[dict[str, torch.Tensor]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Stacks consecutive samples of the same sizes."""
    pending: list[dict[str, torch.Tensor]] = []

    def stack_pending() -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = ([sample[name] for sample in pending] for name in ("pixel_values", "labels"))
        return torch.stack(pixels), torch.stack(labels)

    for sample in samples:
        same_shapes = not pending or all(sample[name].shape == pending[0][name].shape for name in sample)
        if pending and (len(pending) == batch_size or not same_shapes):
            yield stack_pending()
            pending = []
        pending.append(sample)
    if pending:
        yield stack_pending()
