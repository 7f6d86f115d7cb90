"""Inference on images of any size: whole or in sliding windows, at several scales, with flips."""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakSet

import torch
from torch import nn
from torch.nn import functional as F

from ddep_hub.segmentation import class_logits
from ddep_hub.utils.threads import shared_change


# Memory in GB above which a forward pass gives a warning, and the models that have been warned about.
MEMORY_WARNING_GB = 4
_warned: WeakSet[nn.Module] = WeakSet()


@dataclass(frozen=True)
class InferenceOptions:
    """How an image is predicted; by default whole, at its own scale, without flips.

    Args:
        window: Height and width of the sliding window, in pixels of the model's input; `None` for whole images. It is
            clipped to smaller images.
        stride: Vertical and horizontal stride of the window; half the window by default. The last window of a row or
            column ends at the image's edge. With `stride=window` the windows are tiles, such as the two 1024x1024
            halves of a Cityscapes image.
        blending: Weights of overlapping windows: `uniform`, or `hann`, which decreases from the window's centre to
            avoid seams.
        scales: Scale factors over which probabilities are averaged.
        flip: Whether to average with the probabilities of the flipped image, at every scale.
        window_batch: Windows per forward pass; by default 4 on a GPU, and 1 on a CPU, where more only take memory.

    Raises:
        ValueError: An option is out of range; names it.
    """

    window: tuple[int, int] | None = None
    stride: tuple[int, int] | None = None
    blending: Literal["uniform", "hann"] = "uniform"
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    window_batch: int | None = None

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
        if self.window_batch is not None and self.window_batch < 1:
            raise ValueError(f"window_batch is {self.window_batch}; set at least 1.")

    @property
    def steps(self) -> tuple[int, int]:
        """The stride, or half the window by default."""
        assert self.window is not None, "whole images have no steps"
        return self.stride or (max(1, self.window[0] // 2), max(1, self.window[1] // 2))


def input_device(model: nn.Module) -> torch.device:
    """Device on which a model expects its images; accelerate moves them for a model with offloaded weights."""
    device = next(model.parameters()).device
    return torch.device("cpu") if device.type == "meta" else device


@torch.no_grad()
def predict_probabilities(
    model: nn.Module, pixel_values: torch.Tensor, size: tuple[int, int], options: InferenceOptions
) -> torch.Tensor:
    """Predicts class probabilities, averaged over scales, flips and overlapping windows.

    Besides the result, this needs memory for one more tensor of probabilities at the scaled size, and for the logits
    of the whole image or of `window_batch` windows.

    Arguments are those of [`predict_ids`]. Returns a float32 tensor (batch, classes, *size) that sums to 1 over the
    classes; with a single class, these are background and the class.
    """
    total: torch.Tensor | None = None
    height, width = pixel_values.shape[-2:]
    for scale in options.scales:
        scaled = _resize(pixel_values, (max(1, round(scale * height)), max(1, round(scale * width))), antialias=True)
        for flipped in (False, True) if options.flip else (False,):
            images = scaled.flip(-1) if flipped else scaled
            if options.window is None:
                probabilities = _class_logits(model, images, size).softmax(1)
            else:
                probabilities = _resize(_blend_windows(model, images, options), size)
            probabilities = probabilities.flip(-1) if flipped else probabilities
            total = probabilities if total is None else total.add_(probabilities)
    assert total is not None, "there is at least one scale"
    return total.div_(len(options.scales) * (2 if options.flip else 1))


def window_positions(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Yields the top left corners of the windows that cover an image, row by row; none extends beyond its edge.

    `size` of the image, `window` (no larger than the image) and `stride` are each (height, width).
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
    # Without its two ends, which are 0: pixels at the image's edge are in only one window.
    row_weights, column_weights = (torch.hann_window(side + 2, periodic=False, device=device)[1:-1] for side in window)
    return row_weights[:, None] * column_weights


def _blend_windows(model: nn.Module, images: torch.Tensor, options: InferenceOptions) -> torch.Tensor:
    """Probabilities (batch, classes, h, w) of images, blended over windows."""
    total: torch.Tensor | None = None
    for top, band in _iter_bands(model, images, options):
        if total is None:
            total = band.new_empty(*band.shape[:2], *images.shape[-2:])
        total[:, :, top : top + band.shape[2]] = band
    assert total is not None, "every image has a window"
    return total


def _iter_bands(
    model: nn.Module, images: torch.Tensor, options: InferenceOptions
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yields the blended probabilities of a few rows at a time, from top to bottom, each with its first row.

    A row is complete when no further window covers it, so only one window height of rows is in memory at a time. A
    band (batch, classes, rows, w) is valid until the next one.
    """
    assert options.window is not None
    height, width = images.shape[-2:]
    window = min(options.window[0], height), min(options.window[1], width)
    weights = blending_weights(window, options.blending, images.device)
    batch = options.window_batch or (1 if images.device.type == "cpu" else 4)
    positions = list(window_positions((height, width), window, options.steps))
    tops, lefts = sorted({top for top, _ in positions}), sorted({left for _, left in positions})
    row_of_windows = [(index, left) for index in range(len(images)) for left in lefts]
    total: torch.Tensor | None = None
    weight = torch.zeros(window[0], width, device=images.device)
    for top, next_top in zip(tops, [*tops[1:], height], strict=True):
        for left in lefts:
            weight[:, left : left + window[1]] += weights
        for start in range(0, len(row_of_windows), batch):
            chunk = row_of_windows[start : start + batch]
            crops = [images[index, :, top : top + window[0], left : left + window[1]] for index, left in chunk]
            weighted = _class_logits(model, torch.stack(crops), window).softmax(1).mul_(weights)
            if total is None:
                total = weighted.new_zeros(len(images), weighted.shape[1], window[0], width)
            for (index, left), probabilities in zip(chunk, weighted, strict=True):
                total[index, :, :, left : left + window[1]] += probabilities
        assert total is not None, "every image has a window"
        num_rows = next_top - top
        yield top, total[:, :, :num_rows].div_(weight[:num_rows])
        # Move the remaining rows up.
        for rows in (total, weight):
            carried = rows[..., num_rows:, :].clone()
            rows[..., : window[0] - num_rows, :] = carried
            rows[..., window[0] - num_rows :, :] = 0


def _class_logits(model: nn.Module, images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return class_logits(_resize(model(pixel_values=images).logits.float(), size))


def _resize(images: torch.Tensor, size: tuple[int, int], *, antialias: bool = False) -> torch.Tensor:
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=antialias)


@torch.no_grad()
def predict_ids(
    model: nn.Module, pixel_values: torch.Tensor, size: tuple[int, int], options: InferenceOptions | None = None
) -> torch.Tensor:
    """Predicts class ids; warns, once for a model, if one pass takes much memory.

    Windows at the image's own scale need memory for the probabilities of one window height of rows, whatever the
    image's height.

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
        _warn_about_memory(model, pixel_values.shape, options)
    is_averaged = options.scales != (1.0,) or options.flip
    if options.window is None and not is_averaged:
        return _class_logits(model, pixel_values, size).argmax(1)
    if not is_averaged and tuple(pixel_values.shape[-2:]) == tuple(size):
        ids = torch.empty(len(pixel_values), *size, dtype=torch.int64, device=pixel_values.device)
        for top, band in _iter_bands(model, pixel_values, options):
            ids[:, top : top + band.shape[2]] = band.argmax(1)
        return ids
    return predict_probabilities(model, pixel_values, size, options).argmax(1)


def _warn_about_memory(model: nn.Module, shape: Sequence[int], options: InferenceOptions) -> None:
    count, _, height, width = shape
    gigabytes = bytes_per_pixel(model) * count * height * width * max(options.scales) ** 2 / 1e9
    if gigabytes <= MEMORY_WARNING_GB or model in _warned:
        return
    _warned.add(model)
    images = f"An image of {width}x{height} pixels takes" if count == 1 else f"{count} images of {width}x{height} take"
    warnings.warn(
        f"{images} about {gigabytes:.0f} GB of memory in one pass. `image_size=1024` scales images down first; in "
        "`predict` and `evaluate`, `window=1024` predicts them in sliding windows.",
        stacklevel=2,
    )


def bytes_per_pixel(model: nn.Module) -> float:
    """Estimated memory of a float32 forward pass per pixel of an image; 0 for networks without our decoder.

    The estimate is three times the input and output of the decoder's widest block, or the logits, because convolutions
    copy, and freed memory is kept. `ddep-hub predict` took 14.6 GB for 6000x4500 pixels; this estimates 15.6.
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
    """Puts a model into eval mode inside the block, and restores the mode of each module afterwards."""

    def change() -> Callable[[], None]:
        modes = [(module, module.training) for module in model.modules()]
        model.eval()

        def undo() -> None:
            # Set individually, because `.train()` of a partly frozen model does more.
            for module, training in modes:
                module.training = training

        return undo

    with shared_change(model, change):  # several threads may predict with it
        yield
