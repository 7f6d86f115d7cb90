"""Whether two models are the same function: their outputs on rendered scenes."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from ddep_hub.data.synthetic import render_scene
from ddep_hub.data.transforms import Normalize


# Largest difference of an output as a share of the largest one, and the share of pixels whose class must be the same.
TOLERANCE, SAME_CLASS = 1e-4, 0.9999
Function = Callable[[torch.Tensor], torch.Tensor]


def compare(expected: Function, found: Function, batches: Iterable[torch.Tensor]) -> dict[str, float]:
    """Compares two models.

    Args:
        expected: maps normalised images `(batch, C, H, W)` to outputs `(batch, K, H, W)`.
        found: the same, by the other model.
        batches: the images.

    Returns:
        The largest `difference` of an output as a share of the largest one, and the smallest share of pixels with the
        `same_class`, the output that is the largest.

    Raises:
        ValueError: they differ by more than rounding; says by how much.
    """
    difference, same = 0.0, 1.0
    for images in batches:
        with torch.no_grad():
            one, other = expected(images), found(images)
        difference = max(difference, float((other - one).abs().max() / one.abs().max()))
        same = min(same, float((other.argmax(1) == one.argmax(1)).float().mean()))
    if not (difference <= TOLERANCE and same >= SAME_CLASS):
        raise ValueError(
            f"its outputs differ by {difference:.1e} of the largest one (at most {TOLERANCE:g}), and "
            f"{100 * same:.3f} % of the pixels have the same class (at least {100 * SAME_CLASS:g} %)"
        )
    return {"difference": difference, "same_class": same}


def scenes(
    size: tuple[int, int], number: int, channels: int, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Rendered scenes, normalised; of another number of channels than 3, the red one is repeated.

    Returns:
        float32 tensor `(number, channels, *size)`.
    """
    pixels = np.stack([render_scene(0, index, size)[0] for index in range(number)])
    images = Normalize(mean, std)(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    if channels != images.shape[1]:
        images = images[:, :1].expand(-1, channels, -1, -1)
    return images.contiguous()
