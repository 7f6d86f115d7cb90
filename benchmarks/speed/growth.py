"""How time and memory grow: with image size, batch, decoder width, classes, images evaluated, labelled images.

    python benchmarks/speed/growth.py

Each point is a process of its own; its memory is the peak above what the process had after it was set up. Lite0 with
the shipped decoder's sizes where nothing else is said, random weights, float32. Writes results/growth.csv with an
exponent for each axis: the slope of the logarithms between the two largest values, 1 for linear growth.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Callable
from typing import Any

import torch
from ddep_step import ours
from measuring import RESULTS, Make, machine, peak_memory, rounds_of
from torch.nn import functional as F

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.evaluation.inference import predict
from ddep_hub.evaluation.metrics import ConfusionMatrix
from ddep_hub.utils.device import keep_freed_memory


LITE0 = {
    "encoder_name": "tf_efficientnet_lite0",
    "image_skip": True,
    "decoder_hidden_sizes": [192, 96, 64, 32, 16],
    "decoder_bottleneck_size": 192,
}


def pretraining(side: int = 128, batch: int = 8, width: float = 1.0) -> Make:
    return ours({**LITE0, "decoder_width": width}, batch, side, "cpu", "no")


VIT = {"encoder_name": "vit_small_patch14_dinov2"}


def prediction(side: int = 512, classes: int = 19, model: dict[str, Any] = LITE0) -> Make:
    config = {name: value for name, value in model.items() if name != "image_skip"}

    def make() -> Callable[[], Any]:
        keep_freed_memory()
        model = DDePForSemanticSegmentation(DDePConfig(num_labels=classes, **config)).eval()
        model.to(memory_format=torch.channels_last)
        images = torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last)
        return lambda: predict(model, images, (side, side))

    return make


def evaluation(images: int, classes: int = 150) -> Make:
    """Counts of so many images of two megapixels."""

    def make() -> Callable[[], Any]:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(1, classes, 16, 32, generator=generator)
        labels = F.interpolate(coarse, size=(1024, 2048)).argmax(1)

        def run() -> None:
            matrix = ConfusionMatrix(classes)
            for _ in range(images):
                matrix.update(labels, labels)

        return run

    return make


AXES: dict[str, tuple[str, Callable[[Any], Make], list[Any]]] = {
    "DDeP step by side of the crop": ("pixels", lambda x: pretraining(side=x), [64, 128, 256, 384]),
    "DDeP step by batch": ("images", lambda x: pretraining(batch=x), [4, 8, 16, 32]),
    "DDeP step by width of the decoder": ("times", lambda x: pretraining(width=x), [1, 2, 3]),
    "prediction by side of the image": ("pixels", lambda x: prediction(side=x), [256, 512, 1024]),
    "prediction with ViT-S/14 by side of the image": ("pixels", lambda x: prediction(x, model=VIT), [224, 518, 1036]),
    "prediction by classes": ("classes", lambda x: prediction(classes=x), [2, 19, 150]),
    "counting 150 classes by images of 2 MP": ("images", evaluation, [20, 200, 2000]),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, Any]] = []
    for axis, (unit, way, values) in AXES.items():
        points = []
        for value in values:
            repeat = rounds if value != 2000 else 1
            (times,) = rounds_of({axis: way(value)}, repeat, warm_up=min(1, repeat - 1)).values()
            points.append((value, statistics.median(times), max(0.0, peak_memory(way(value), calls=1))))
        (small, time_small, memory_small), (large, time_large, memory_large) = points[-2:]
        step = math.log(large / small)
        growth = math.log(time_large / time_small) / step
        memory_growth = math.log(max(memory_large, 1) / max(memory_small, 1)) / step
        rows += [
            {
                "axis": axis,
                "unit": unit,
                "value": value,
                "seconds": f"{time:.4g}",
                "memory_mib": f"{memory:.0f}",
                "time_exponent": f"{growth:.2f}",
                "memory_exponent": f"{memory_growth:.2f}",
                **machine(),
            }
            for value, time, memory in points
        ]
        print(f"{axis}: time grows with the power {growth:.2f}, memory {memory_growth:.2f}", flush=True)
        for value, time, memory in points:
            print(f"  {value} {unit}: {time:.3f} s, {memory:.0f} MiB", flush=True)
    with (RESULTS / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
