"""A step of decoder denoising pretraining: against the same network of segmentation_models.pytorch and a plain loop.

    python benchmarks/speed/ddep_step.py [--device cuda]

Ours is what `ddep-hub pretrain` does: channels last, the frozen encoder without gradient and with its BatchNorms
folded, freed memory kept, the format that `--mixed_precision auto` chooses, and once more in float32. The peer's step
is the usual one: float32, contiguous, the encoder's parameters without gradient, AdamW. All weights are random.
"""

import argparse
import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from measuring import (
    MATRIX_FLOP,
    Round,
    compare,
    formats,
    matrix_rate,
    operations,
    peak_memory,
    rounds_of,
    set_up,
    write_rows,
)
from torch import nn
from torch.nn import functional as F

from ddep_hub import DDePConfig, DDePForPreTraining
from ddep_hub.utils.processes import keep_freed_memory


SIZES = [256, 128, 64, 32, 16]
# The network that segmentation_models.pytorch has, as `ddep-hub convert` makes it; batch and side of a step.
PEER = {"decoder_bottleneck_size": 0, "decoder_interpolation": "nearest", "decoder_hidden_sizes": SIZES}
MODELS: dict[str, tuple[dict[str, Any], dict[str, int], int]] = {
    "ResNet-50": ({"encoder_name": "resnet50", **PEER}, {"cpu": 4, "cuda": 128}, 224),
    "EfficientNet-Lite0": ({"encoder_name": "tf_efficientnet_lite0", **PEER}, {"cpu": 16, "cuda": 256}, 128),
    "TransUNet": ({"encoder_name": "vit_base_r50_s16_224"}, {"cpu": 2, "cuda": 64}, 224),
}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
GOALS = {"cpu": (1.3, 1.2, 1.3), "cuda": (3.0, 1.5, 3.0)}
SHARES = {"ResNet-50": 0.65, "EfficientNet-Lite0": 0.5}


@set_up
def ours(config: dict[str, Any], batch: int, side: int, device: str, precision: str, freeze: bool = True) -> Round:
    """This package's step, in float32 or with autocast."""
    keep_freed_memory()
    model = DDePForPreTraining(DDePConfig(freeze_encoder=freeze, **config)).train()
    model.to(device, memory_format=torch.channels_last)
    if freeze:
        model.ddep.fold_encoder()
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = model(pixel_values=images).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@set_up
def plain(build: Callable[[], tuple[nn.Module, nn.Module]], batch: int, side: int, device: str, order: Any) -> Round:
    """The usual step of a network that predicts noise: `build` returns it and its encoder."""
    network, encoder = build()
    network = network.train().to(device, memory_format=order)
    encoder.requires_grad_(False)
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=order)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], 1e-4)

    def step() -> None:
        noise = torch.randn_like(images)
        loss = F.mse_loss(network(images + 0.22 * noise), noise)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def smp(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    import segmentation_models_pytorch

    network = segmentation_models_pytorch.Unet(
        f"tu-{config['encoder_name']}", encoder_weights=None, decoder_channels=SIZES, classes=3
    )
    return network, network.encoder


def own_network(config: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """Our network as a plain one: the encoder under autograd, its BatchNorms in training mode."""
    model = DDePForPreTraining(DDePConfig(freeze_encoder=False, **config))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> Any:
            hidden_state = model.ddep(images).last_hidden_state
            return model.ddep.to_image_size(model.noise_head(hidden_state), *images.shape[-2:])

    return Network(), model.ddep.encoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    device = args.device
    goals, titles, rows = GOALS[device], formats(device), []
    contiguous, last = torch.contiguous_format, torch.channels_last
    for name in args.models:
        config, batches, side = MODELS[name]
        batch = batches[device]
        setting = f"{name}, {batch} images of {side} px"
        ways = {title: ours(config, batch, side, device, precision) for title, precision in titles.items()}
        peers = {
            "a plain loop of the same network": (
                plain(functools.partial(own_network, config), batch, side, device, contiguous),
                goals[2],
            )
        }
        if name != "TransUNet" and importlib.util.find_spec("segmentation_models_pytorch"):
            for peer, order, goal in (("smp", contiguous, goals[0]), ("smp in channels_last", last, goals[1])):
                peers[peer] = plain(functools.partial(smp, config), batch, side, device, order), goal
        products = {f"product, {way}": matrix_rate(DTYPES[way], device) for way in ways}
        times = rounds_of({**ways, **{peer: make for peer, (make, _) in peers.items()}, **products}, args.rounds, 1)
        counted = operations(ours(config, batch, side, "cpu", "no"))
        memory = peak_memory(ways["float32"]), peak_memory(ours(config, batch, side, device, "no", freeze=False))
        for way in ways:
            found = {peer: (times[peer], goal) for peer, (_, goal) in peers.items()}
            rows += compare("DDeP step", f"{setting}, {way}", times[way], found, "s")
            # The time that the step's operations take as products of large matrices.
            floor = [seconds * counted / MATRIX_FLOP[device] for seconds in times[f"product, {way}"]]
            share = {"the matrix rate": (floor, SHARES.get(name))}
            rows += compare("share of the matrix rate, DDeP step", f"{setting}, {way}", times[way], share, "s")
        rows += compare(
            "memory of a DDeP step", setting, memory[0], {"DeP (encoder trained too)": (memory[1], 1 / 0.15)}, "MiB"
        )
    write_rows("ddep_step" if device == "cpu" else "ddep_step_gpu", rows)


if __name__ == "__main__":
    main()
