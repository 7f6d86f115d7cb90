# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The U-Net decoder: TransUNet's cascaded upsampler, over any pyramid of features."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ddep import DDePConfig


DEFAULT_HIDDEN_SIZES = (256, 128, 64, 32, 16)


def decoder_channels(config: DDePConfig, encoder_stride: int) -> tuple[int, ...]:
    """Channels of the decoder's blocks after widening, coarsest first.

    Raises:
        ValueError: more blocks than doublings lead from `encoder_stride` to the image.
    """
    doublings = int(math.log2(encoder_stride))
    sizes = config.decoder_hidden_sizes
    if sizes is None:
        # TransUNet's 256-128-64-16 at stride 16; deeper encoders get one more block in front of the last.
        sizes = (*DEFAULT_HIDDEN_SIZES[: doublings - 1], DEFAULT_HIDDEN_SIZES[-1])
    if len(sizes) > doublings:
        raise ValueError(
            f"decoder_hidden_sizes has {len(sizes)} entries, but {config.encoder_name} has stride {encoder_stride}: "
            f"{doublings} doublings reach the image's resolution. Give at most {doublings} entries."
        )
    return tuple(max(1, round(size * config.decoder_width)) for size in sizes)


class DDePDecoderConv(nn.Conv2d):
    """3x3 convolution without bias, in front of a norm and a ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=False)


def conv_norm_act(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """3x3 convolution, norm and ReLU."""
    if norm == "batch":
        layer: nn.Module = nn.BatchNorm2d(out_channels)
    else:
        # At least 8 channels a group: with one channel a group the norm would erase each channel's mean, and on a
        # 1x1 map its whole signal.
        groups = math.gcd(32, max(1, out_channels // 8))
        while out_channels % groups:
            groups //= 2
        layer = nn.GroupNorm(groups, out_channels)
    return nn.Sequential(DDePDecoderConv(in_channels, out_channels), layer, nn.ReLU(inplace=True))


def fresh_weight_norm(weight: torch.Tensor) -> float:
    """Expected norm of a convolution's weights `(out, in, height, width)` under He initialisation."""
    fan_in = weight[0].numel()
    return (2 / fan_in * weight.numel()) ** 0.5


@torch.no_grad()
def restore_weight_norms(module: nn.Module) -> None:
    """Scales each convolution in front of a norm to the norm that He initialisation gives its weights.

    The function stays the same, as the norm divides the scale out again, but not the training that follows: a step of
    Adam has a fixed size, so weights that have grown in pretraining turn the more slowly, with the square of their
    norm. BatchNorm's running statistics are scaled along. `from_pretrained` leaves weights as they are stored:
    `examples/finetune.py` calls this before it fine-tunes a denoising decoder. Not in the paper.

    Args:
        module: a decoder or a part of one.
    """
    for layers in module.modules():
        if isinstance(layers, nn.Sequential) and len(layers) == 3 and isinstance(layers[0], DDePDecoderConv):
            weight, norm = layers[0].weight, layers[1]
            factor = fresh_weight_norm(weight) / weight.norm().clamp(min=1e-12)
            weight.mul_(factor)
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.mul_(factor)
                norm.running_var.mul_(factor**2)


class DDePDecoderBlock(GradientCheckpointingLayer):
    """Doubles the resolution, joins the encoder's feature of that resolution, and mixes by two 3x3 convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: str, interpolation: str) -> None:
        super().__init__()
        self.conv1 = conv_norm_act(in_channels + skip_channels, out_channels, norm)
        self.conv2 = conv_norm_act(out_channels, out_channels, norm)
        # Half-pixel centres, as timm and tiled inference assume: the result does not depend on where a tile ends.
        self.upsampling: dict[str, Any] = {"mode": interpolation}
        if interpolation == "bilinear":
            self.upsampling["align_corners"] = False

    def forward(self, hidden_state: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Maps `(batch, C, H, W)` and an optional skip `(batch, C', 2H, 2W)` to `(batch, out, 2H, 2W)`."""
        hidden_state = F.interpolate(hidden_state, scale_factor=2, **self.upsampling)
        if skip is not None:
            hidden_state = torch.cat([hidden_state, skip], dim=1)
        return self.conv2(self.conv1(hidden_state))


class DDePDecoder(nn.Module):
    """Bottleneck convolution, if there is one, then one [`DDePDecoderBlock`] per entry of `decoder_hidden_sizes`.

    Args:
        config: the model's configuration.
        channels: channels of the encoder's features, finest first.
        strides: their strides, powers of two, strictly increasing.
    """

    def __init__(self, config: DDePConfig, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        skips = dict(zip(strides[:-1], channels[:-1], strict=True))
        stride, width = strides[-1], config.decoder_bottleneck_size
        if width:
            self.bottleneck: nn.Module = conv_norm_act(channels[-1], width, config.decoder_norm)
        else:
            self.bottleneck, width = nn.Identity(), channels[-1]
        self.skip_strides: list[int | None] = []
        blocks = []
        for out_channels in decoder_channels(config, stride):
            stride //= 2
            self.skip_strides.append(stride if stride in skips else None)
            skip_channels = skips.get(stride, 0)
            blocks.append(
                DDePDecoderBlock(width, skip_channels, out_channels, config.decoder_norm, config.decoder_interpolation)
            )
            width = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.strides = tuple(strides)
        self.out_channels = width

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the decoder.

        Args:
            features: the encoder's features, finest first, each `(batch, C, H / stride, W / stride)`.

        Returns:
            Outputs of the bottleneck (without one, the deepest feature) and of each block, coarsest first; the last
            one is the decoder's result.
        """
        by_stride = dict(zip(self.strides, features, strict=True))
        hidden_states = [self.bottleneck(features[-1])]
        for block, stride in zip(self.blocks, self.skip_strides, strict=True):
            skip = by_stride[stride] if stride is not None else None
            hidden_states.append(block(hidden_states[-1], skip))
        return hidden_states
