"""Tiny samples with masks: two halves, noise, letters."""

import numpy as np
from PIL import Image


def row(height=40, width=60, dtype=np.uint8):
    """An image whose left half is red and right half blue, and a mask that says the same."""
    mask = np.zeros((height, width), dtype=dtype)
    mask[:, width // 2 :] = 1
    pixels = np.array([(250, 10, 20), (10, 20, 250)], dtype=np.uint8)[mask]
    return {"image": Image.fromarray(pixels), "annotation": mask}


def noisy_row(height=24, width=36):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"image": Image.fromarray(pixels), "annotation": (pixels[..., 0] % 7).astype(np.uint8)}


def lettered(size=(48, 48)):
    """An image whose pixels say their label, so that image and mask can be compared after any geometry."""
    mask = np.arange(size[0] * size[1]).reshape(size) % 250
    image = Image.fromarray(np.repeat(mask.astype(np.uint8)[:, :, None], 3, 2))
    return {"image": image, "annotation": mask.astype(np.uint8)}
