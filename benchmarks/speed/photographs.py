"""Generated images with the smooth parts and the fine grain of photographs."""

from pathlib import Path

import numpy as np
from PIL import Image


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Sums of waves with some noise."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / height
    pixels = generator.normal(0, 4, (height, width, 3))
    for frequency in (2, 5, 11, 23, 47):
        angle, phase = generator.uniform(0, 2 * np.pi, 2)
        wave = np.sin(frequency * (np.cos(angle) * columns + np.sin(angle) * rows) + phase)
        pixels += wave[..., None] * generator.uniform(0, 120 / frequency**0.5, 3)
    return Image.fromarray(np.clip(127 + pixels, 0, 255).astype(np.uint8))


def write_photographs(folder: Path, number: int, width: int, height: int) -> Path:
    """Writes so many JPEGs of quality 90; every eighth is new, the others are its copies."""
    folder.mkdir(parents=True)
    contents: list[bytes] = []
    for index in range(number):
        path = folder / f"{index:04d}.jpg"
        if index < 8:
            photograph(width, height, index).save(path, quality=90)
            contents.append(path.read_bytes())
        else:
            path.write_bytes(contents[index % 8])
    return folder
