"""Augmentations by kind of image: which turns keep its meaning, and how its colours or intensities vary."""

from dataclasses import dataclass

import torch
from torchvision.transforms import v2


@dataclass(frozen=True)
class Augmentation:
    """How images of one kind are changed at random, beside scale, crop and horizontal flip.

    Args:
        turns: Whether up means nothing, so that images may be flipped vertically and turned by right angles.
        photometric: Changes colours: maps uint8 (3, h, w) to the same, and draws from torch's default generator.
    """

    turns: bool
    photometric: v2.Transform | torch.nn.Module


class RandomGamma(torch.nn.Module):
    """Raises intensities in 0..1 to a random power, as illumination and staining vary between microscopes.

    Args:
        limit: The power is drawn from 1 / limit to limit, uniformly in the logarithm.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 (3, h, w) to the same."""
        power = self.limit ** (2 * torch.rand(()).item() - 1)
        table = ((torch.arange(256) / 255) ** power * 255).round().to(torch.uint8)
        return table[image.long()]


class RandomIntensity(torch.nn.Module):
    """Raises each channel's intensities, between its smallest and largest, to a random power, and scales the contrast.

    Args:
        power: The power is drawn from 1 / power to power, uniformly in the logarithm.
        contrast: The factor about the channel's mean is drawn from 1 - contrast to 1 + contrast.
    """

    def __init__(self, power: float, contrast: float) -> None:
        super().__init__()
        self.power, self.contrast = power, contrast

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 or float32 (C, h, w) to the same."""
        draws = 2 * torch.rand(2, len(image), 1, 1) - 1
        values = image.float()
        low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
        span = (high - low).clamp(min=1e-6)
        values = low + span * ((values - low) / span) ** (self.power ** draws[0])
        mean = values.mean((1, 2), keepdim=True)
        values = mean + (values - mean) * (1 + self.contrast * draws[1])
        return values.round().clamp(0, 255).to(torch.uint8) if image.dtype == torch.uint8 else values


class SensorNoise(torch.nn.Module):
    """Adds Gaussian noise, the same in all channels of a grey image.

    Args:
        limit: The largest standard deviation, in 0..255; it is drawn uniformly.
    """

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Maps uint8 (3, h, w) to the same."""
        grey = bool((image[0] == image[1]).all() and (image[1] == image[2]).all())
        noise = torch.randn((1 if grey else 3, *image.shape[1:])) * (self.limit * torch.rand(()).item())
        return (image + noise).round().clamp(0, 255).to(torch.uint8)


_COLORS = v2.ColorJitter(0.3, 0.3, 0.3, 0.05)
AUGMENTATIONS = {
    "photo": Augmentation(turns=False, photometric=_COLORS),
    "overhead": Augmentation(turns=True, photometric=_COLORS),
    "microscopy": Augmentation(
        turns=True,
        photometric=v2.Compose(
            [
                v2.ColorJitter(0.2, 0.3, 0.2, 0.03),
                RandomGamma(1.5),
                v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.2))], p=0.3),
                v2.RandomApply([SensorNoise(8.0)], p=0.3),
            ]
        ),
    ),
}
# What a student sees of an unlabelled image whose labels a teacher predicts: stronger, as in FixMatch and UniMatch.
STRONG = v2.Compose(
    [
        v2.RandomApply([v2.ColorJitter(0.5, 0.5, 0.5, 0.15)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(7, (0.3, 2.0))], p=0.5),
    ]
)


# The same two for images that are not RGB: what they share with these.
INTENSITIES = v2.Compose([RandomIntensity(1.5, 0.3), v2.RandomApply([v2.GaussianBlur(5, (0.3, 1.2))], p=0.3)])
STRONG_INTENSITIES = v2.Compose([RandomIntensity(2.0, 0.5), v2.RandomApply([v2.GaussianBlur(7, (0.3, 2.0))], p=0.5)])


def pixel_of_rare_class(annotation: torch.Tensor, ignore_index: int) -> tuple[int, int] | None:
    """Draws a class among those of a mask, each as likely as the others, and one of its pixels.

    Args:
        annotation: Class ids (H, W).
        ignore_index: Label that does not count.

    Returns:
        Row and column; `None` if no pixel is labelled.
    """
    present = annotation.unique()
    present = present[present != ignore_index]
    if not len(present):
        return None
    places = (annotation == present[torch.randint(len(present), ())]).flatten().nonzero()[:, 0]
    place = int(places[torch.randint(len(places), ())])
    return divmod(place, annotation.shape[1])
