# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The U-Net decoder: TransUNet's cascaded upsampler, over the pyramid made of an encoder's features."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ddep import DDePConfig
from .conv_norm import conv_norm_act
from .encoders import FeatureMaps
from .pyramid import DDePPyramid


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
        conv, norm, act = self.conv1
        return self.conv2(act(norm(conv(hidden_state, skip))))


class DDePDecoder(nn.Module):
    """[`DDePPyramid`], bottleneck convolution if there is one, and a [`DDePDecoderBlock`] per entry of
    `decoder_hidden_sizes`.

    Args:
        config: the model's configuration.
        maps: the encoder's features.
    """

    def __init__(self, config: DDePConfig, maps: FeatureMaps) -> None:
        super().__init__()
        self.pyramid = DDePPyramid(config, maps)
        channels, strides = self.pyramid.channels, self.pyramid.strides
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
        self.strides = strides
        self.out_channels = width

    def forward(
        self, features: Sequence[torch.Tensor], pixel_values: torch.Tensor, covered: tuple[int, int]
    ) -> list[torch.Tensor]:
        """Runs the decoder; see [`DDePPyramid`] for its arguments.

        Returns:
            Outputs of the bottleneck (without one, the deepest level) and of each block, coarsest first; the last one
            is the decoder's result.
        """
        levels = self.pyramid(features, pixel_values, covered)
        by_stride = dict(zip(self.strides, levels, strict=True))
        hidden_states = [self.bottleneck(levels[-1])]
        for block, stride in zip(self.blocks, self.skip_strides, strict=True):
            skip = by_stride[stride] if stride is not None else None
            hidden_states.append(block(hidden_states[-1], skip))
        return hidden_states
