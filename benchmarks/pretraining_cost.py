"""Operations of one pretraining image of the paper's TransUNets, and the hours that a budget takes at a given speed.

    python benchmarks/pretraining_cost.py --csv benchmarks/pretraining_cost.csv

Counted by torch on the model itself, on the meta device: convolutions, matrix products and attention, a multiplication
and an addition each. The frozen encoder only runs forward, the decoder forward and backward.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.training.arguments import PretrainArguments
from ddep_hub.utils.arguments import parse_arguments


WIDTHS = (1, 2, 3)
IMAGENET_21K_STEPS = 2_800_000  # 100 epochs, as the presets' heads say


def operations(config: DDePConfig, size: int) -> tuple[int, int]:
    """Operations of one image of `size` x `size` pixels: of the encoder, and of the whole training step."""
    with torch.device("meta"):
        model = DDePForPreTraining(config).train()
        # Two images: BatchNorm has nothing to go by in one of a single pixel.
        images, sigma = torch.empty(2, config.num_channels, size, size), torch.empty(2)
        with FlopCounterMode(display=False) as counter:
            model(pixel_values=images, noise=torch.empty_like(images), sigma=sigma).loss.backward()
    counts = counter.get_flop_counts()
    encoder = next(sum(found.values()) for name, found in counts.items() if name.endswith(".encoder"))
    return encoder // 2, counter.get_total_flops() // 2


def main() -> None:
    """Prints one row per width, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=100.0, help="Speed that is assumed, in 1e12 operations/s.")
    parser.add_argument("--csv", type=Path, help="File of the rows.")
    given = parser.parse_args()
    rows = []
    for width in WIDTHS:
        args = parse_arguments(PretrainArguments, ["--preset", f"transunet-{width}x"])
        config = DDePConfig(
            encoder_name=args.encoder_name,
            decoder_width=args.decoder_width,
            decoder_bottleneck_size=args.decoder_bottleneck_size,
        )
        encoder, step = operations(config, args.crop_size)
        row: dict[str, float | str] = {
            "decoder_width": f"{width}x",
            "encoder_gflop_per_image": round(encoder / 1e9, 1),
            "gflop_per_image": round(step / 1e9, 1),
        }
        for steps in (args.max_steps, IMAGENET_21K_STEPS):
            total = step * args.batch_size * steps
            row[f"exaflop_{steps}_steps"] = round(total / 1e18, 1)
            row[f"hours_{steps}_steps_at_{given.tflops:g}_tflops"] = round(total / (given.tflops * 1e12) / 3600)
        rows.append(row)
        print(", ".join(f"{name} {value}" for name, value in row.items()))
    if given.csv:
        with given.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
