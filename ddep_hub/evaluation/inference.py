"""Inference on images of any size: whole or in sliding windows, at several scales, with flips."""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ddep_hub.data.dataloading import init_worker, reading
from ddep_hub.data.dataset_registry import EvaluationProtocol
from ddep_hub.data.preprocessing import EvalTransform
from ddep_hub.data.segmentation_datasets import SegmentationDataset
from ddep_hub.data.statistics import ClassStatistics
from ddep_hub.segmentation import class_logits
from ddep_hub.utils.processes import sum_over_processes

from .metrics import BoundaryIoU, ConfusionMatrix


# Memory in GB above which a pass gives a warning, and the models that already had theirs.
GIGABYTES = 4
_warned: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class InferenceOptions:
    """How an image is predicted; by default whole, at its own scale, without flips.

    Args:
        window: Height and width of the sliding window, in pixels of the image that the model gets; `None` for whole
            images. It is cut to smaller images.
        stride: Steps of the window down and across; half the window by default. The last window of a row or column
            ends with the image. With `stride=window` the windows are tiles, such as the two 1024x1024 halves of an
            image of Cityscapes.
        blending: Weights of overlapping windows: `uniform`, or `hann`, which falls off from the window's centre, so
            that no seam shows.
        scales: Factors of the image's size whose probabilities are averaged.
        flip: Whether the probabilities of the mirrored image are averaged in, at every scale.
        window_batch: Windows per forward pass.

    Raises:
        ValueError: An option is out of range; names it.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    blending: Literal["uniform", "hann"] = "uniform"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window_batch: int = 4

    def __post_init__(self) -> None:
        if self.window is None and self.stride is not None:
            raise ValueError(f"stride is {self.stride}, but there is no window; set window as well.")
        if self.window is not None:
            if min(self.window) < 1:
                raise ValueError(f"window is {self.window}; set height and width in pixels.")
            if any(not 1 <= step <= side for step, side in zip(self.steps, self.window, strict=True)):
                raise ValueError(
                    f"stride is {self.stride}; set 1 to {self.window}: larger strides would leave gaps between "
                    "windows."
                )
        if self.blending not in ("uniform", "hann"):
            raise ValueError(f"blending is {self.blending!r}; choose uniform or hann.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales is {self.scales}; set at least one positive factor.")
        if self.window_batch < 1:
            raise ValueError(f"window_batch is {self.window_batch}; set at least 1.")

    @classmethod
    def from_protocol(cls, protocol: EvaluationProtocol) -> "InferenceOptions":
        """The options that a known data set is scored with."""
        return cls(window=protocol.tile, stride=protocol.tile, scales=protocol.scales, flip=protocol.flip)

    @property
    def steps(self) -> tuple[int, int]:
        """The stride, or half the window by default."""
        assert self.window is not None, "whole images have no steps"
        return self.stride or (max(1, self.window[0] // 2), max(1, self.window[1] // 2))

    @property
    def is_single_pass(self) -> bool:
        """Whether one forward pass of the whole image is enough."""
        return self.window is None and self.scales == (1.0,) and not self.flip


@torch.no_grad()
def predict_probabilities(
    model: nn.Module, pixel_values: torch.Tensor, size: tuple[int, int], options: InferenceOptions
) -> torch.Tensor:
    """Predicts class probabilities, averaged over scales, flips and overlapping windows.

    Beside the result, this needs memory for one more tensor of probabilities at the scaled size, and for the logits of
    the whole image or of `window_batch` windows.

    Args:
        model: A segmentation model in eval mode.
        pixel_values: Normalised images (batch, 3, h, w).
        size: Height and width of the result.
        options: How to predict.

    Returns:
        float32 tensor (batch, classes, *size), of sum 1 over the classes; those of a single class are background and
        the class.
    """
    total: torch.Tensor | None = None
    height, width = pixel_values.shape[-2:]
    for scale in options.scales:
        scaled = _resized(pixel_values, (max(1, round(scale * height)), max(1, round(scale * width))), antialias=True)
        for mirrored in (False, True) if options.flip else (False,):
            images = scaled.flip(-1) if mirrored else scaled
            if options.window is None:
                probabilities = _class_logits(model, images, size).softmax(1)
            else:
                probabilities = _resized(_blended(model, images, options), size)
            probabilities = probabilities.flip(-1) if mirrored else probabilities
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None, "there is at least one scale"
    return total.div_(len(options.scales) * (2 if options.flip else 1))


def window_places(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Yields the top left corners of the windows that cover an image, row by row; none reaches over its edge.

    Args:
        size: Height and width of the image.
        window: Height and width of a window, no larger than the image.
        stride: Steps down and across.
    """
    rows, columns = (
        [*range(0, length - side, step), length - side]
        for length, side, step in zip(size, window, stride, strict=True)
    )
    return ((top, left) for top in rows for left in columns)


def blending_weights(window: tuple[int, int], blending: str, device: torch.device | str = "cpu") -> torch.Tensor:
    """Weights (height, width) of a window's pixels: ones, or a Hann window that is above 0 everywhere."""
    if blending == "uniform":
        return torch.ones(window, device=device)
    # Without its two ends, which are 0: pixels at the image's edge lie in one window only.
    down, across = (torch.hann_window(side + 2, periodic=False, device=device)[1:-1] for side in window)
    return down[:, None] * across


def _blended(model: nn.Module, images: torch.Tensor, options: InferenceOptions) -> torch.Tensor:
    """Probabilities (batch, classes, h, w) of images, blended from their windows."""
    assert options.window is not None
    height, width = images.shape[-2:]
    window = min(options.window[0], height), min(options.window[1], width)
    weights = blending_weights(window, options.blending, images.device)
    places = [
        (row, *place) for row in range(len(images)) for place in window_places((height, width), window, options.steps)
    ]
    total: torch.Tensor | None = None
    weight = torch.zeros(len(images), 1, height, width, device=images.device)
    for start in range(0, len(places), options.window_batch):
        part = places[start : start + options.window_batch]
        cut = [images[row, :, top : top + window[0], left : left + window[1]] for row, top, left in part]
        weighted = _class_logits(model, torch.stack(cut), window).softmax(1).mul_(weights)
        if total is None:
            total = weighted.new_zeros(len(images), weighted.shape[1], height, width)
        for (row, top, left), probabilities in zip(part, weighted, strict=True):
            inside = (row, slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
            total[inside] += probabilities
            weight[inside] += weights
    assert total is not None, "every image has a window"
    return total.div_(weight)


def _class_logits(model: nn.Module, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return class_logits(_resized(model(pixel_values=images).logits.float(), size))


def _resized(images: torch.Tensor, size: tuple[int, int], *, antialias: bool = False) -> torch.Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


@torch.no_grad()
def predict(
    model: nn.Module, pixel_values: torch.Tensor, size: tuple[int, int], options: InferenceOptions | None = None
) -> torch.Tensor:
    """Predicts class ids; warns, once for a model, if one pass takes much memory.

    Args:
        model: A segmentation model in eval mode.
        pixel_values: Normalised images (batch, 3, h, w).
        size: Height and width of the result; logits are upsampled to it before the argmax.
        options: How to predict; the whole image in one pass by default.

    Returns:
        int64 tensor (batch, *size).
    """
    options = options or InferenceOptions()
    if options.window is None:
        _warn_of_size(model, pixel_values.shape, options)
    if not options.is_single_pass:
        return predict_probabilities(model, pixel_values, size, options).argmax(1)
    return _class_logits(model, pixel_values, size).argmax(1)


def _warn_of_size(model: nn.Module, shape: Sequence[int], options: InferenceOptions) -> None:
    count, _, height, width = shape
    gigabytes = bytes_per_pixel(model) * count * height * width * max(options.scales) ** 2 / 1e9
    if gigabytes <= GIGABYTES or model in _warned:
        return
    _warned.add(model)
    images = f"An image of {width}x{height} pixels takes" if count == 1 else f"{count} images of {width}x{height} take"
    warnings.warn(
        f"{images} about {gigabytes:.0f} GB of memory in one pass. `image_size=1024` scales images down first; in "
        "`predict` and `evaluate`, `window=1024` predicts them in parts.",
        stacklevel=2,
    )


def bytes_per_pixel(model: nn.Module) -> float:
    """About the memory that a pass takes for each pixel of an image, in float32; 0 for networks without our decoder.

    That is what the widest block of the decoder reads and writes, or the logits, three times: convolutions copy, and
    freed memory is kept. `ddep-hub predict` took 14.6 GB for 6000x4500 pixels, of which this gives 15.6.
    """
    decoder = getattr(getattr(model, "ddep", None), "decoder", None)
    if decoder is None:
        return 0.0
    stride, widest = decoder.strides[-1], float(model.config.num_labels)
    for block in decoder.blocks:
        stride //= 2
        widest = max(widest, (block.conv1[0].in_channels + block.conv1[0].out_channels) / stride**2)
    return 12 * widest


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts a model into eval mode; afterwards each of its modules has the mode that it had."""
    # Set one by one, because `.train()` of a partly frozen model does more.
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


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
        model: A segmentation model; it is in eval mode meanwhile.
        dataset: The labelled images.
        transform: Prepares a sample; see [`EvalTransform.from_processor`].
        normalize: Maps uint8 images to `pixel_values`; see [`Normalize.from_processor`].
        batch_size: Images per forward pass, if consecutive ones have the same size.
        num_workers: Processes that read images; 0 does it in this one.
        accelerator: Splits the images over its processes; the counts are summed, so they do not depend on the number
            of processes.
        options: How to predict; whole images in one pass by default.
        boundary: New counts on the model's device, to fill as well.
        statistics: New counts of the labels, to fill as well.
        on_prediction: Called with the index of a sample and its predicted class ids (H, W), in the process that
            predicted it.
    """
    device = next(model.parameters()).device
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    matrix = ConfusionMatrix(dataset.classes.num_classes, dataset.classes.ignore_index, device)
    indices = range(rank, len(dataset), world_size)
    loader = DataLoader(
        _Transformed(dataset, transform),
        sampler=indices,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=init_worker,
    )
    remaining = iter(indices)
    with eval_mode(model), reading(loader) as samples:
        for pixels, labels in _batches(samples, batch_size):
            if statistics is not None:
                for mask in labels.numpy():
                    statistics.update(mask)
            predicted = predict(model, normalize(pixels.to(device)), tuple(labels.shape[-2:]), options)
            labels = labels.to(device)
            matrix.update(predicted, labels)
            if boundary is not None:
                boundary.update(predicted, labels)
            if on_prediction is not None:
                for image in predicted:
                    on_prediction(next(remaining), image)
    if accelerator is not None:
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
    """Computes the metrics of [`ConfusionMatrix`], and of `boundary` if it is given; arguments of [`count_pixels`]."""
    matrix = count_pixels(model, dataset, transform, normalize, **kwargs)
    boundary: BoundaryIoU | None = kwargs.get("boundary")
    labels = dataset.classes.labels
    return matrix.compute(labels) | (boundary.compute(labels) if boundary else {})


class _Transformed(Dataset[dict[str, torch.Tensor]]):
    """The samples of a dataset under a transform."""

    def __init__(self, dataset: SegmentationDataset, transform: EvalTransform) -> None:
        self.dataset, self.transform = dataset, transform

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.transform(self.dataset[index])


def _batches(
    samples: Iterable[dict[str, torch.Tensor]], batch_size: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Stacks consecutive samples of the same sizes."""
    waiting: list[dict[str, torch.Tensor]] = []

    def stacked() -> tuple[torch.Tensor, torch.Tensor]:
        pixels, labels = ([sample[name] for sample in waiting] for name in ("pixel_values", "labels"))
        return torch.stack(pixels), torch.stack(labels)

    for sample in samples:
        fits = not waiting or all(sample[name].shape == waiting[0][name].shape for name in sample)
        if waiting and (len(waiting) == batch_size or not fits):
            yield stacked()
            waiting = []
        waiting.append(sample)
    if waiting:
        yield stacked()
