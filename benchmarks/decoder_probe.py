"""Looks inside decoders: what they take from each skip, how large their weights are, how many directions they use.

    python benchmarks/decoder_probe.py --images path/to/images --output probe.csv random runs/a/final runs/b/final

Each model is a folder of a DDeP-pretrained model, or `random` for a newly initialised decoder with the sizes of the
first folder. All see the same noisy crops. One row per block of the decoder, the bottleneck first:

- `skip_stride`: stride of the encoder's feature that joins there.
- `error_without_skip`: error of the predicted noise when that feature is replaced by its mean over all pixels and
  images, beside `error`, that of the whole model; the same for the noisy image that the head sees, in the row `head`.
- `weight_norm`: norm of the block's convolutions over the norm that He initialisation gives them, geometric mean.
- `activation_std`: standard deviation of the block's output.
- `gradient_norm`: norm of the gradient of the denoising error with respect to the block's convolutions.
- `effective_rank`: participation ratio of the output's principal components, `(sum of variances)^2 / sum of their
  squares`, of `channels` at most; BatchNorm uses the batch's statistics here, as in training.
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.data.dataloading import AugmentedDataset
from ddep_hub.data.image_datasets import ImageFolder
from ddep_hub.data.preprocessing import Normalize
from ddep_hub.data.unlabelled_transforms import PretrainTransform
from ddep_hub.decoder import expected_weight_norm
from ddep_hub.encoder_weights import encoder_file, encoder_source
from ddep_hub.evaluation.denoising import denoising_error
from ddep_hub.pretrained import load_processor


def load(name: str, like: str) -> DDePForPreTraining:
    """A pretrained model, or one with a newly initialised decoder of the sizes of another."""
    config = DDePConfig.from_pretrained(like if name == "random" else name)
    weights = encoder_file(encoder_source(config.encoder_name, None))
    if name == "random":
        torch.manual_seed(0)
        fields = ["decoder_hidden_sizes", "decoder_bottleneck_size", "decoder_norm", "image_skip", "sigma"]
        fields += ["decoder_width", "decoder_interpolation", "encoder_kwargs", "encoder_out_indices", "num_channels"]
        fields += ["corruption", "prediction_type", "mask_ratio", "mask_patch_size"]
        return DDePForPreTraining.from_pretrained_encoder(
            config.encoder_name, encoder_weights=weights, **{field: getattr(config, field) for field in fields}
        )
    return DDePForPreTraining.from_pretrained(name, encoder_weights=weights if config.decoder_only else None)


class Flattened:
    """While it is entered, a decoder sees the mean of one level of its pyramid."""

    def __init__(self, decoder: nn.Module, stride: int) -> None:
        self.decoder, self.index = decoder, decoder.strides.index(stride)

    def __enter__(self) -> None:
        self.hook = self.decoder.pyramid.register_forward_hook(self.flatten)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()

    def flatten(self, module: nn.Module, inputs: object, levels: list[torch.Tensor]) -> list[torch.Tensor]:
        """Replaces the level."""
        flat = levels[self.index].mean((0, 2, 3), keepdim=True).expand_as(levels[self.index])
        return [*levels[: self.index], flat, *levels[self.index + 1 :]]


def effective_rank(output: torch.Tensor) -> float:
    """Participation ratio of the principal components of the channels of `(batch, C, H, W)`."""
    values = output.transpose(0, 1).flatten(1).double()
    values = values - values.mean(1, keepdim=True)
    variances = torch.linalg.eigvalsh(values @ values.T / values.shape[1]).clamp(min=0)
    return (variances.sum() ** 2 / (variances**2).sum()).item()


def weight_norm(block: nn.Module) -> float:
    """Geometric mean over the convolutions of a block."""
    convs = [module.weight.detach() for module in block.modules() if isinstance(module, nn.Conv2d)]
    ratios = [weight.norm() / expected_weight_norm(weight) for weight in convs]
    return torch.stack(ratios).log().mean().exp().item()


def probe(name: str, model: DDePForPreTraining, images: torch.Tensor) -> list[dict[str, object]]:
    """Rows of one model, see above."""
    decoder = model.ddep.decoder
    error = denoising_error(model, images, batch_size=len(images))
    without = {}
    for stride in decoder.strides:
        with Flattened(decoder, stride):
            without[stride] = denoising_error(model, images, batch_size=len(images))
    model.train().zero_grad()
    output = model(images, generator=torch.Generator().manual_seed(0), output_hidden_states=True)
    output.loss.backward()
    blocks = [decoder.bottleneck, *decoder.blocks]
    states = output.hidden_states[-len(blocks) :]
    strides = [decoder.strides[-1], *decoder.skip_strides]
    rows: list[dict[str, object]] = []
    for index, (block, state, stride) in enumerate(zip(blocks, states, strides, strict=True)):
        gradients = [module.weight.grad for module in block.modules() if isinstance(module, nn.Conv2d)]
        rows.append(
            {
                "model": name,
                "block": "bottleneck" if index == 0 else f"block {index}",
                "channels": state.shape[1],
                "skip_stride": stride,
                "error": round(error, 4),
                "error_without_skip": round(without[stride], 4) if stride else None,
                "weight_norm": round(weight_norm(block), 2),
                "activation_std": round(state.std().item(), 3),
                "gradient_norm": float(f"{sum(g.norm() ** 2 for g in gradients) ** 0.5:.3g}"),
                "effective_rank": round(effective_rank(state.detach()), 1),
            }
        )
    if model.config.image_skip:
        with torch.no_grad():
            model.noise_head.weight[:, -model.config.num_channels :] = 0
        blind = denoising_error(model, images, batch_size=len(images))
        rows.append({**dict.fromkeys(rows[0]), "model": name, "block": "head", "error": round(error, 4)})
        rows[-1]["error_without_skip"] = round(blind, 4)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders, or `random`")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--number", type=int, default=32, help="images to look at")
    parser.add_argument("--crop_size", type=int, default=96)
    parser.add_argument("--output", type=Path, required=True, help="CSV file to write")
    args = parser.parse_args()
    folders = [name for name in args.models if name != "random"]
    if not folders:
        parser.error("name a folder: `random` takes its sizes from one")
    folder = ImageFolder(args.images)
    dataset = AugmentedDataset(folder, PretrainTransform(crop_size=args.crop_size, scale=(0.2, 1.0)), seed=0)
    chosen = range(0, len(folder), max(1, len(folder) // args.number))[: args.number]
    crops = torch.stack([dataset[0, index]["pixel_values"] for index in chosen])
    rows = []
    for name in args.models:
        model = load(name, folders[0])
        processor = load_processor(folders[0] if name == "random" else name, model.config)
        normalize = Normalize.from_processor(processor)
        found = probe(name, model, normalize(crops))
        print(*found, sep="\n")
        rows += found
    with args.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
