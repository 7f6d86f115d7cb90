"""Mean and standard deviation of the channels of images."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from .image_io import decode_image
from .preprocessing import to_tensor
from .unlabelled import unlabelled_images


Statistics = tuple[list[float], list[float]]


def channel_statistics(images: Iterable[torch.Tensor]) -> Statistics:
    """Measures mean and standard deviation of each channel over all pixels.

    Args:
        images: Images `(C, H, W)` in 0..255, of any sizes.

    Returns:
        Mean and standard deviation of pixels in 0..1 (of float images, in their own units), as an image processor
        takes them.

    Raises:
        ValueError: There is no image, or a channel has one value alone.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for image in images:
        values = image.flatten(1).double() / 255
        # Chan's way to join two parts: sums of squares would lose digits where the mean is large.
        number, own = values.shape[1], values.mean(1)
        delta = own - mean
        squares = squares + ((values - own[:, None]) ** 2).sum(1) + delta**2 * (count * number / (count + number))
        mean = mean + delta * (number / (count + number))
        count += number
    if not count:
        raise ValueError("no image to measure mean and standard deviation on; check the path")
    std = (squares / count).sqrt()
    if not (std > 0).all():
        constant = [index for index, value in enumerate(std.tolist()) if value == 0]
        raise ValueError(f"channel {constant[0]} has one value in all images; leave it out")
    return [round(value, 6) for value in mean.tolist()], [float(f"{value:.6g}") for value in std.tolist()]


def folder_statistics(folders: Sequence[str | Path], num_channels: int = 3) -> tuple[Statistics, int]:
    """Measures the images of folders, see [`channel_statistics`].

    Args:
        folders: Folders of images, searched recursively, see [`unlabelled_images`].
        num_channels: Channels of the images.

    Returns:
        The statistics, and the number of images.

    Raises:
        FileNotFoundError: A folder does not exist.
        BadFileError: An image is broken, or has other channels.
    """
    paths = [Path(folder) / name for folder in folders for name in unlabelled_images(Path(folder))]
    return channel_statistics(to_tensor(decode_image(path, num_channels)) for path in paths), len(paths)
