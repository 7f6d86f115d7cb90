"""A step of fine-tuning: against smp's U-Net, and on crops of 512 pixels transformers' UPerNet and SegFormer.

    python benchmarks/speed/finetuning_step.py [--device cuda]

Ours is what `ddep-hub finetune` does: channels last, freed memory kept, fused AdamW, the format that
`--mixed_precision auto` chooses and float32. The peers' steps are float32 and contiguous, as their examples have it;
their loss is the same cross-entropy at full resolution. UPerNet and SegFormer are other networks: what is compared is
their time per operation. On small crops EfficientNet-Lite0 is the encoder, as in the few-labels presets; there the
plain gradients of depthwise convolutions are measured too. All weights are random.
"""

import argparse
import contextlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from measuring import Round, Row, compare, formats, operations, rounds_of, set_up, write_rows
from torch import nn
from torch.nn import functional as F
from transformers import (
    ConvNextConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from ddep_hub import DDePConfig, DDePForSemanticSegmentation
from ddep_hub.utils.depthwise import FastDepthwise, has_slow_gradients
from ddep_hub.utils.processes import keep_freed_memory


CLASSES = 19
SMP = "smp's U-Net" if importlib.util.find_spec("segmentation_models_pytorch") else ""
PLAIN = "plain gradients of depthwise convolutions"
SIZES = [256, 128, 64, 32, 16]


@dataclass(frozen=True)
class Case:
    """An encoder, and the images of a step on a device."""

    title: str
    encoder_name: str
    side: int
    batch: dict[str, int]


LARGE = Case("ResNet-50", "resnet50", 512, {"cpu": 2, "cuda": 16})
SMALL = Case("EfficientNet-Lite0", "tf_efficientnet_lite0", 128, {"cpu": 4, "cuda": 64})


def ours(encoder_name: str) -> nn.Module:
    config = DDePConfig(
        encoder_name=encoder_name,
        decoder_bottleneck_size=0,
        decoder_interpolation="nearest",
        decoder_hidden_sizes=SIZES,
        num_labels=CLASSES,
    )
    return DDePForSemanticSegmentation(config)


def smp(encoder_name: str) -> nn.Module:
    import segmentation_models_pytorch

    return segmentation_models_pytorch.Unet(
        f"tu-{encoder_name}", encoder_weights=None, decoder_channels=SIZES, classes=CLASSES
    )


def upernet() -> nn.Module:
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = ConvNextConfig(hidden_sizes=[96, 192, 384, 768], depths=[3, 3, 9, 3], out_features=stages)
    return UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone, hidden_size=256, num_labels=CLASSES, auxiliary_in_channels=384)
    )


def segformer() -> nn.Module:  # B2
    sizes: dict[str, Any] = {"hidden_sizes": [64, 128, 320, 512], "depths": [3, 4, 6, 3], "decoder_hidden_size": 768}
    return SegformerForSemanticSegmentation(SegformerConfig(num_labels=CLASSES, **sizes))


@set_up
def step_of(
    build: Callable[[], nn.Module],
    case: Case,
    device: str,
    precision: str = "no",
    *,
    tuned: bool = False,
    fast_depthwise: bool = True,
) -> Round:
    """A training step; `tuned` as this package's trainer sets it up."""
    if tuned:
        keep_freed_memory()
    order = torch.channels_last if tuned else torch.contiguous_format
    network = build().train().to(device, memory_format=order)
    batch, side = case.batch.get(device, case.batch["cpu"]), case.side
    images = torch.randn(batch, 3, side, side, device=device).contiguous(memory_format=order)
    labels = torch.randint(0, CLASSES, (batch, side, side), device=device)
    slow = tuned and device == "cpu" and precision == "bf16" and has_slow_gradients(network)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True if tuned else None)

    def step() -> None:
        with FastDepthwise() if slow and fast_depthwise else contextlib.nullcontext():
            with torch.autocast(device, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext():
                output = network(images)
            logits = getattr(output, "logits", output).float()
            if logits.shape[-1] != side:
                logits = F.interpolate(logits, size=(side, side), mode="bilinear", align_corners=False)
            F.cross_entropy(logits, labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def large(device: str, rounds: int) -> list[Row]:
    """Crops of 512 pixels, against other networks too."""
    mine = {
        title: step_of(partial(ours, LARGE.encoder_name), LARGE, device, precision, tuned=True)
        for title, precision in formats(device).items()
    }
    peers = {"UPerNet, per operation": (upernet, 1.0), "SegFormer-B2, per operation": (segformer, 1.0)}
    if SMP:
        peers = {SMP: (partial(smp, LARGE.encoder_name), 1.15), **peers}
    ways = {peer: step_of(build, LARGE, device) for peer, (build, _) in peers.items()}
    times = rounds_of({**mine, **ways}, rounds, warm_up=1)
    builds = {"float32": partial(ours, LARGE.encoder_name), **{peer: build for peer, (build, _) in peers.items()}}
    # The meta device has operations, but does not compute them.
    flop = {name: operations(step_of(build, LARGE, "meta")) for name, build in builds.items()}
    rows = []
    for way in mine:
        # What a peer would take for our operations.
        found = {
            peer: (
                [one * flop["float32"] / flop[peer] for one in times[peer]]
                if peer.endswith("per operation")
                else times[peer],
                goal,
            )
            for peer, (_, goal) in peers.items()
        }
        rows += compare("fine-tuning step", setting(LARGE, device, way), times[way], found, "s")
    return rows


def small(device: str, rounds: int) -> list[Row]:
    """Crops of 128 pixels, as in the preset few-labels-microscopy."""
    build = partial(ours, SMALL.encoder_name)
    ways = {
        title: step_of(build, SMALL, device, precision, tuned=True) for title, precision in formats(device).items()
    }
    if SMP:
        ways[SMP] = step_of(partial(smp, SMALL.encoder_name), SMALL, device)
    if device == "cpu" and "bf16" in ways:
        ways[PLAIN] = step_of(build, SMALL, device, "bf16", tuned=True, fast_depthwise=False)
    times = rounds_of(ways, rounds, warm_up=1)
    rows = []
    for way in formats(device):
        found = {SMP: (times[SMP], 1.15)} if SMP else {}
        if way == "bf16" and PLAIN in times:
            found[PLAIN] = (times[PLAIN], 1.0)
        rows += compare("fine-tuning step", setting(SMALL, device, way), times[way], found, "s")
    return rows


def setting(case: Case, device: str, way: str) -> str:
    return f"{case.title}, {case.batch[device]} images of {case.side} px, {way}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = [*large(args.device, args.rounds), *small(args.device, 3 * args.rounds)]
    write_rows("finetuning_step" if args.device == "cpu" else "finetuning_step_gpu", rows)


if __name__ == "__main__":
    main()
