"""A step of fine-tuning on crops of 512 pixels: against smp's U-Net, and transformers' UPerNet and SegFormer.

    python benchmarks/speed/finetuning_step.py [--device cuda]

Ours is what `ddep-hub finetune` does: channels last, freed memory kept, fused AdamW, the format that
`--mixed_precision auto` chooses and float32. The peers' steps are float32 and contiguous, as their examples have it;
their loss is the same cross-entropy at full resolution. UPerNet and SegFormer are other networks: what is compared is
their time per operation. All weights are random.
"""

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from measuring import Make, compare, formats, operations, rounds_of, write_rows
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
from ddep_hub.utils.device import keep_freed_memory


SIDE, CLASSES = 512, 19
SIZES = [256, 128, 64, 32, 16]
BATCH = {"cpu": 2, "cuda": 16}


def ours() -> nn.Module:
    config = DDePConfig(
        encoder_name="resnet50",
        decoder_bottleneck_size=0,
        decoder_interpolation="nearest",
        decoder_hidden_sizes=SIZES,
        num_labels=CLASSES,
    )
    return DDePForSemanticSegmentation(config)


def smp() -> nn.Module:
    import segmentation_models_pytorch

    return segmentation_models_pytorch.Unet(
        "tu-resnet50", encoder_weights=None, decoder_channels=SIZES, classes=CLASSES
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


def step_of(build: Callable[[], nn.Module], device: str, precision: str = "no", tuned: bool = False) -> Make:
    """A training step; `tuned` as this package's trainer sets it up."""

    def make() -> Callable[[], Any]:
        if tuned:
            keep_freed_memory()
        order = torch.channels_last if tuned else torch.contiguous_format
        network = build().train().to(device, memory_format=order)
        batch = BATCH[device]
        images = torch.randn(batch, 3, SIDE, SIDE, device=device).contiguous(memory_format=order)
        labels = torch.randint(0, CLASSES, (batch, SIDE, SIDE), device=device)
        optimizer = torch.optim.AdamW(network.parameters(), 1e-4, fused=True if tuned else None)

        def step() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                output = network(images)
            logits = getattr(output, "logits", output).float()
            if logits.shape[-1] != SIDE:
                logits = F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    mine = {
        title: step_of(ours, args.device, precision, tuned=True) for title, precision in formats(args.device).items()
    }
    peers = {"UPerNet, per operation": (upernet, 1.0), "SegFormer-B2, per operation": (segformer, 1.0)}
    if importlib.util.find_spec("segmentation_models_pytorch"):
        peers = {"smp's U-Net": (smp, 1.15), **peers}
    ways = {peer: step_of(build, args.device) for peer, (build, _) in peers.items()}
    times = rounds_of({**mine, **ways}, args.rounds, warm_up=1)
    flop = {name: operations(make) for name, make in {**mine, **ways}.items() if name != "bf16"}
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
        setting = f"ResNet-50, {BATCH[args.device]} images of {SIDE} px, {way}"
        rows += compare("fine-tuning step", setting, times[way], found, "s")
    write_rows("finetuning_step" if args.device == "cpu" else "finetuning_step_gpu", rows)


if __name__ == "__main__":
    main()
