"""Overhead of the training loop over bare training steps.

    python benchmarks/training_loop.py --output benchmarks/training_loop.csv

Pretrains on rendered scenes as the quickstart does (EfficientNet-Lite0, crops of 64 pixels, batches of 16) by
`ddep_hub.training.pretraining.pretrain`, and takes the same number of bare steps (forward, backward, AdamW) with the
same model on one batch in memory. The rounds take turns, so that other load affects all. The CSV has
the median images per second of each, and its ratio to the bare steps.
"""

import argparse
import csv
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.data.synthetic import write_scenes
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.training.logging import read_metrics
from ddep_hub.training.pretraining import pretrain


BATCH, CROP, WARM_UP = 16, 64, 10
DECODER = {"decoder_hidden_sizes": [192, 96, 64, 32, 16], "decoder_bottleneck_size": 256}
LOOPS: dict[str, dict[str, object]] = {
    "loop": {},
    "loop, average of the weights": {"model_ema_decay": 0.999},
    "loop, 1 worker": {"dataloader_num_workers": 1},
}


def bare(steps: int) -> float:
    """Images per second of bare steps."""
    torch.manual_seed(0)
    model = DDePForPreTraining(DDePConfig(encoder_name="tf_efficientnet_lite0", image_skip=True, **DECODER))
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True)
    images = torch.randn(BATCH, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    for step in range(WARM_UP + steps):
        if step == WARM_UP:
            started = time.perf_counter()
        model(pixel_values=images).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return steps * BATCH / (time.perf_counter() - started)


def looped(steps: int, images: Path, **fields: object) -> float:
    """Images per second of a run, without its first steps."""
    with tempfile.TemporaryDirectory() as output:
        args = PretrainArguments(
            output_dir=output,
            images=[str(images)],
            batch_size=BATCH,
            crop_size=CROP,
            max_steps=WARM_UP + steps,
            logging_steps=WARM_UP,
            save_steps=0,
            encoder_weights="none",
            **DECODER,
            **fields,
        )
        pretrain(args)
        rows = read_metrics(Path(output) / "metrics.jsonl")[1:]
    return len(rows) / sum(1 / row["images_per_second"] for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    found: dict[str, list[float]] = {"bare steps": [], **{name: [] for name in LOOPS}}
    with tempfile.TemporaryDirectory() as folder:
        data = write_scenes(Path(folder) / "scenes", splits={}, unlabelled=100, size=(160, 160))
        for _ in range(args.rounds):
            found["bare steps"].append(bare(args.steps))
            for name, fields in LOOPS.items():
                found[name].append(looped(args.steps, data / "unlabelled", **fields))
    with args.output.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["what", "images_per_second", "ratio_to_bare_steps", "torch", "threads", "machine"])
        for name, values in found.items():
            ratios = [value / floor for value, floor in zip(values, found["bare steps"], strict=True)]
            median, ratio = round(statistics.median(values), 1), round(statistics.median(ratios), 3)
            machine = f"{platform.machine()}, {os.cpu_count()} cores"
            writer.writerow([name, median, ratio, torch.__version__, torch.get_num_threads(), machine])
            print(f"{name}: {median} images/s, {ratio} of the bare steps")


if __name__ == "__main__":
    main()
