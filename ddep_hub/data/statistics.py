"""Statistics of images: class frequencies, and mean and standard deviation of the channels."""

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch

from ddep_hub.utils.files import format_list

from .classes import ClassTable
from .image_io import decode_image
from .preprocessing import to_tensor
from .unlabelled import unlabelled_images


logger = logging.getLogger(__name__)


class ClassStatistics:
    """Counts in how many pixels and images each class occurs.

    Attributes:
        counts: int64 (4, n + 1): for each class, and for ignored pixels last, the pixels, the images in which it
            occurs, the labelled pixels of these images, and the images in which it occurs together with ignored
            pixels. The counts of several processes or parts of a data set can be added.
    """

    def __init__(self, names: Sequence[str], ignore_index: int) -> None:
        self.names = tuple(names)
        self.ignore_index = ignore_index
        self.counts = np.zeros((4, len(names) + 1), np.int64)

    def update(self, mask: np.ndarray) -> None:
        """Adds a mask (H, W) of class ids and `ignore_index`."""
        labelled = mask[mask != self.ignore_index]
        pixels = np.append(np.bincount(labelled, minlength=len(self.names)), mask.size - labelled.size)
        occurs = pixels > 0
        self.counts += np.stack([pixels, occurs, labelled.size * occurs, occurs & occurs[-1]])

    @property
    def pixels(self) -> np.ndarray:
        """Pixels of each class, int64 (n,)."""
        return self.counts[0, :-1]

    @property
    def images(self) -> np.ndarray:
        """Images in which each class occurs, int64 (n,)."""
        return self.counts[1, :-1]

    @property
    def pixels_around(self) -> np.ndarray:
        """Labelled pixels of the images in which each class occurs, int64 (n,)."""
        return self.counts[2, :-1]

    @property
    def num_ignored(self) -> int:
        """Ignored pixels."""
        return int(self.counts[0, -1])

    @property
    def absent_classes(self) -> list[str]:
        """Names of the classes without a pixel."""
        return [name for name, pixels in zip(self.names, self.pixels.tolist(), strict=True) if not pixels]

    @property
    def ignored_share(self) -> float:
        """Share of pixels that are ignored, 0..1."""
        return self.num_ignored / max(1, int(self.counts[0].sum()))

    def table(self) -> str:
        """One line per class, to print."""
        total = max(1, int(self.counts[0].sum()))
        width = max(map(len, [*self.names, "ignored"]))
        lines = [
            f"{name:{width}}  {pixels:>12,} pixels ({pixels / total:6.2%})  {images:>7,} images"
            for name, pixels, images in zip(self.names, self.pixels.tolist(), self.images.tolist(), strict=True)
        ]
        return "\n".join([*lines, f"{'ignored':{width}}  {self.num_ignored:>12,} pixels ({self.ignored_share:6.2%})"])


def warn_about_mixed_values(statistics: ClassStatistics, classes: ClassTable) -> None:
    """Warns if some masks of two classes seem to mark objects with 255, the ignore index, and others with 1.

    Does not warn if `classes` defines the mask values.
    """
    if classes.mask_values or classes.other_id is not None:
        return
    _, images, _, beside_ignored = statistics.counts
    if statistics.ignore_index == 255 and len(statistics.names) == 2 and images[1] and images[2]:
        if not beside_ignored[1]:
            logger.warning(
                "Masks with %r have no 255 (%d of them), and those with 255, which is ignored, have no %r (%d). If "
                '255 marks it, too, set "mask_values" in classes.json: [1, 255] for %r, [0] for the other class.',
                *(statistics.names[1], images[1], statistics.names[1], images[2], statistics.names[1]),
            )


def check_classes(statistics: ClassStatistics) -> None:
    """Raises a ValueError if a class has no pixel in the training labels, because it cannot be learned."""
    if not statistics.absent_classes:
        return
    names = format_list(list(map(repr, statistics.absent_classes)), 10)
    has_255 = statistics.ignore_index == 255 and statistics.num_ignored > 0
    if len(statistics.names) <= 2 and has_255:
        advice = (
            f'If the masks mark {statistics.absent_classes[-1]!r} with 255, the ignore index, set "mask_values": 255 '
            'for it in classes.json, and "mask_values" for the other class if it is listed there.'
        )
    else:
        advice = (
            "Correct the masks, label an image that shows it or choose such an image (split_file, split_seed), take "
            "it out of classes.json, or train without it with --allow_empty_classes."
        )
    raise ValueError(
        f"No pixel of the training labels belongs to {names}; {statistics.ignored_share:.1%} of the pixels are "
        f"ignored. {advice}"
    )


Statistics = tuple[list[float], list[float]]


def channel_statistics(images: Iterable[torch.Tensor]) -> Statistics:
    """Measures mean and standard deviation of each channel over all pixels of `images`, `(C, H, W)` in 0..255.

    Returns those of pixels in 0..1 (of float images, in their own units), as an image processor takes them. Raises a
    ValueError if there is no image, or a channel is constant or not finite.
    """
    count, mean, sum_squares = 0, torch.zeros(()), torch.zeros(())
    for image in images:
        values = image.flatten(1).double() / 255
        # Chan's parallel algorithm: sums of squares would lose precision if the mean is large.
        num_pixels, image_mean = values.shape[1], values.mean(1)
        delta = image_mean - mean
        sum_squares = (
            sum_squares
            + ((values - image_mean[:, None]) ** 2).sum(1)
            + delta**2 * (count * num_pixels / (count + num_pixels))
        )
        mean = mean + delta * (num_pixels / (count + num_pixels))
        count += num_pixels
    if not count:
        raise ValueError("no images to measure the mean and standard deviation on; check the path")
    std = (sum_squares / count).sqrt()
    for channel, (value, level) in enumerate(zip(std.tolist(), mean.tolist(), strict=True)):
        if value <= 1e-7 * max(abs(level), 1e-6):  # less than the resolution of float32
            raise ValueError(
                f"channel {channel} is constant in the images that were measured; set image_mean and image_std, or "
                "leave the channel out"
            )
        if not np.isfinite(value):
            raise ValueError(f"channel {channel} holds values that are not finite; replace them in the images")
    # Means of small values, such as reflectance in floats, need more digits than six.
    digits = [max(6, 6 - math.ceil(math.log10(value))) for value in std.tolist()]
    means = [round(value, number) for value, number in zip(mean.tolist(), digits, strict=True)]
    return means, [float(f"{value:.6g}") for value in std.tolist()]


def folder_statistics(folders: Sequence[str | Path], num_channels: int = 3) -> tuple[Statistics, int]:
    """The [`channel_statistics`] of the [`unlabelled_images`] of some folders, and the number of images."""
    paths = [Path(folder) / name for folder in folders for name in unlabelled_images(Path(folder))]
    return channel_statistics(to_tensor(decode_image(path, num_channels)) for path in paths), len(paths)
