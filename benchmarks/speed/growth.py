"""How time and memory grow: with image size, batch, decoder width, classes, images evaluated or labelled, processes.

    python benchmarks/speed/growth.py

Each point is a process of its own; its memory is the peak above what the process had after it was set up. Lite0 with
the shipped decoder's sizes where nothing else is said, random weights, float32. Steps on several processes are those
of a whole `ddep-hub pretrain`, with one thread each and the same batch in all; the memory is that of the larger
process. Writes growth.csv with an exponent for each axis: the slope of the logarithms between the two largest
values, 1 for linear growth.
"""

import argparse
import contextlib
import csv
import io
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ddep_step import ours
from measuring import LITE0, Make, Round, machine, results_dir, set_up, time_and_memory
from torch.nn import functional as F

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.evaluation.inference import predict_ids
from ddep_hub.evaluation.metrics import ConfusionMatrix
from ddep_hub.training.arguments import FinetuneArguments
from ddep_hub.training.finetuning import finetune
from ddep_hub.training.logging import read_metrics
from ddep_hub.utils.processes import keep_freed_memory


QUIET: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
VIT = {"encoder_name": "vit_small_patch14_dinov2"}


def pretraining(side: int = 128, batch: int = 8, width: float = 1.0) -> Make:
    return ours({**LITE0, "decoder_width": width}, batch, side, "cpu", "no")


@set_up
def prediction(side: int = 512, classes: int = 19, config: dict[str, Any] = LITE0) -> Round:
    keep_freed_memory()
    model = DDePForSemanticSegmentation(DDePConfig(num_labels=classes, **config)).eval()
    model.to(memory_format=torch.channels_last)
    images = torch.randn(1, 3, side, side).contiguous(memory_format=torch.channels_last)
    return lambda: predict_ids(model, images, (side, side))


@set_up
def evaluation(images: int, classes: int = 150) -> Round:
    """Counts of so many images of two megapixels."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, classes, 16, 32, generator=generator)
    labels = F.interpolate(coarse, size=(1024, 2048)).argmax(1)

    def run() -> None:
        matrix = ConfusionMatrix(classes)
        for _ in range(images):
            matrix.update(labels, labels)

    return run


@set_up
def finetuning_run(images: int) -> Round:
    """A run of 30 steps on so many labelled images of 160x160, from the folder to the saved model."""
    root = Path(tempfile.mkdtemp())
    scenes = write_scenes(root / "scenes", splits={"train": images, "val": 4})
    args = FinetuneArguments(
        data=str(scenes),
        output_dir=str(root / "run"),
        max_steps=30,
        batch_size=4,
        save_steps=0,
        encoder_weights="none",
        mixed_precision="no",
        overwrite=True,
    )

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            finetune(args)

    return run


def on_processes(number: int) -> tuple[float, float]:
    """Seconds of a step of 16 crops of 128 pixels on so many processes, and MiB of the largest of them."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
        free.close()
        command = [sys.executable, "-m", "ddep_hub", "pretrain", "--output_dir", folder, "--mixed_precision", "no"]
        command += "--max_steps 20 --batch_size 16 --crop_size 128 --save_steps 0 --encoder_weights none".split()
        command += [
            "--decoder_hidden_sizes",
            *map(str, LITE0["decoder_hidden_sizes"]),
            "--decoder_bottleneck_size",
            "192",
        ]
        shared = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "MASTER_ADDR": "127.0.0.1"}
        shared |= {"MASTER_PORT": port, "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number)}
        started = []
        for rank in map(str, range(number)):
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            started.append(subprocess.Popen(command, env=environment, **QUIET))
        ends = [os.wait4(process.pid, 0) for process in started]
        if any(status for _, status, _ in ends):
            raise SystemExit(f"{' '.join(command)} has failed on {number} process(es).")
        speeds = [row["images_per_second"] for row in read_metrics(Path(folder) / "metrics.jsonl")[1:]]
    return statistics.mean(16 / speed for speed in speeds), max(usage.ru_maxrss for _, _, usage in ends) / 1024


AXES: dict[str, tuple[str, Callable[[Any], Make], list[Any]]] = {
    "DDeP step by side of the crop": ("pixels", lambda x: pretraining(side=x), [64, 128, 256]),
    "DDeP step by batch": ("images", lambda x: pretraining(batch=x), [4, 8, 16]),
    "DDeP step by width of the decoder": ("times", lambda x: pretraining(width=x), [1, 2]),
    "prediction by side of the image": ("pixels", lambda x: prediction(side=x), [256, 512, 1024]),
    "prediction with ViT-S/14 by side of the image": ("pixels", lambda x: prediction(x, config=VIT), [224, 518, 742]),
    "prediction by classes": ("classes", lambda x: prediction(classes=x), [2, 19, 150]),
    "counting 150 classes by images of 2 MP": ("images", evaluation, [20, 200, 2000]),
    "fine-tuning run by labelled images": ("images", finetuning_run, [10, 100, 1000]),
}


# Timed once, without a round before: they repeat their steps themselves.
LONG = ("counting 150 classes by images of 2 MP", "fine-tuning run by labelled images")


def rows_of(axis: str, unit: str, points: list[tuple[int, float, float]]) -> list[dict[str, Any]]:
    """Rows of the table from values, seconds and MiB."""
    (small, time_small, memory_small), (large, time_large, memory_large) = points[-2:]
    step = math.log(large / small)
    growth = math.log(time_large / time_small) / step
    memory_growth = math.log(max(memory_large, 1) / max(memory_small, 1)) / step
    print(f"{axis}: time grows with the power {growth:.2f}, memory {memory_growth:.2f}", flush=True)
    for value, time, memory in points:
        print(f"  {value} {unit}: {time:.3f} s, {memory:.0f} MiB", flush=True)
    return [
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    rounds = parser.parse_args().rounds
    rows: list[dict[str, Any]] = []
    for axis, (unit, way, values) in AXES.items():
        points = []
        for value in values:
            repeat = 1 if axis in LONG else rounds
            points.append((value, *time_and_memory(way(value), repeat, warm_up=min(1, repeat - 1))))
        rows += rows_of(axis, unit, points)
    rows += rows_of("DDeP step by processes", "processes", [(number, *on_processes(number)) for number in (1, 2)])
    with (results_dir() / "growth.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
