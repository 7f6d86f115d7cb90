"""How much of the noise an encoder's finest features carry: `python benchmarks/encoder_noise.py ENCODER ...`.

The noise of each pixel is read out of the features by least squares, over 5x5 neighbourhoods, on rendered scenes at
sigma 0.22, and the error is measured on other scenes. No decoder can predict what is not in the features;
it may predict what the linear read-out misses. The same read-out of the noisy image itself is given beside it.
Writes encoder_noise.csv beside this file.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ddep_hub import DDePForPreTraining
from ddep_hub.data.preprocessing import Normalize
from ddep_hub.data.synthetic import render_scene
from ddep_hub.denoising import corrupt
from ddep_hub.encoder_weights import encoder_file, encoder_source
from ddep_hub.encoders import extract_features, feature_maps
from ddep_hub.pretrained import processor_for_encoder


SIGMA = 0.22
SCENES = 120


def read_out_error(features: torch.Tensor, noise: torch.Tensor, kernel: int = 5) -> float:
    """Error of the noise from the best linear filter, fitted on one half of the images and measured on the other.

    Args:
        features: `(n, C, H / s, W / s)`.
        noise: `(n, 3, H, W)`.
        kernel: side of the filter, in positions of the features.
    """
    stride = noise.shape[-1] // features.shape[-1]
    rows = F.unfold(features, kernel, padding=kernel // 2).transpose(1, 2)
    targets = F.pixel_unshuffle(noise, stride).flatten(2).transpose(1, 2)
    half = len(rows) // 2

    def flat(part: torch.Tensor) -> torch.Tensor:
        return torch.cat([part.flatten(0, 1), torch.ones(part.shape[0] * part.shape[1], 1)], dim=1)

    fitted = torch.linalg.lstsq(flat(rows[:half]), targets[:half].flatten(0, 1)).solution
    return (flat(rows[half:]) @ fitted - targets[half:].flatten(0, 1)).square().mean().item()


@torch.no_grad()
def main() -> None:
    """Measures each encoder and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoders", nargs="*", default=["tf_efficientnet_lite0"], help="timm names")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="CSV file to write")
    args = parser.parse_args()
    scenes = np.stack([render_scene(0, index, (64, 64))[0] for index in range(SCENES)])
    images = torch.from_numpy(scenes).permute(0, 3, 1, 2)
    results = []
    for name in args.encoders:
        source = encoder_source(name, None)
        model = DDePForPreTraining.from_pretrained_encoder(name, encoder_weights=encoder_file(source)).eval()
        clean = Normalize.from_processor(processor_for_encoder(name))(images)
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
        noisy = corrupt(clean, noise, SIGMA, "scaled")
        finest = extract_features(model.ddep.encoder, noisy)[0][0]
        maps = feature_maps(model.ddep.encoder)
        channels, stride = maps.channels[0], maps.strides[0]
        errors = (read_out_error(finest, noise), read_out_error(F.pixel_unshuffle(noisy, stride), noise))
        results.append([name, channels, stride, *(f"{error:.4f}" for error in errors)])
        print(*results[-1])
    with args.output.open("w", newline="") as file:
        header = ["encoder", "channels", "stride", "error_from_features", "error_from_noisy_image"]
        csv.writer(file).writerows([header, *results])


if __name__ == "__main__":
    main()
