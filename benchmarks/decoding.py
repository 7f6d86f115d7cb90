"""Time to crop a JPEG, decoded in full and at a reduced scale: `python benchmarks/decoding.py`.

The JPEGs are generated: sums of waves with some noise, saved at quality 90. Both ways get the same random crops and
are timed in turns on one thread, so that other load on the machine affects both. Writes decoding.csv beside this file.
"""

import argparse
import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import Image, features

from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.transforms import PretrainTransform


SIZES = ((500, 375), (1024, 768), (1920, 1080), (4000, 3000))
CROP = 224
IMAGES = 8


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """An image with the smooth parts and the fine grain of a photograph."""
    generator = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width] / height
    pixels = generator.normal(0, 4, (height, width, 3))
    for frequency in (2, 5, 11, 23, 47):
        angle, phase = generator.uniform(0, 2 * np.pi, 2)
        wave = np.sin(frequency * (np.cos(angle) * columns + np.sin(angle) * rows) + phase)
        pixels += wave[..., None] * generator.uniform(0, 120 / frequency**0.5, 3)
    return Image.fromarray(np.clip(127 + pixels, 0, 255).astype(np.uint8))


def seconds(dataset: ImageFolder, transform: PretrainTransform, seed: int) -> float:
    """Time to read, decode and crop all images once."""
    torch.manual_seed(seed)
    before = time.perf_counter()
    for index in range(len(dataset)):
        transform(dataset[index])
    return time.perf_counter() - before


def main() -> None:
    """Measures each size and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="CSV file to write")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transform = PretrainTransform(crop_size=CROP)
    results = []
    for width, height in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(IMAGES):
                photograph(width, height, number).save(Path(folder) / f"{number}.jpg", quality=90)
            full, reduced = ImageFolder(folder), ImageFolder(folder, decode=False)
            times = [
                (seconds(full, transform, turn), seconds(reduced, transform, turn)) for turn in range(args.rounds + 1)
            ]
        medians = np.median(times[1:], axis=0) / IMAGES * 1000
        results.append(
            {
                "image_size": f"{width}x{height}",
                "crop_size": CROP,
                "full_ms": f"{medians[0]:.2f}",
                "reduced_ms": f"{medians[1]:.2f}",
                "speed_up": f"{medians[0] / medians[1]:.2f}",
                "pillow": PIL.__version__,
                "libjpeg_turbo": features.version("libjpeg_turbo") or "none",
            }
        )
        print(results[-1])
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, results[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)


if __name__ == "__main__":
    main()
