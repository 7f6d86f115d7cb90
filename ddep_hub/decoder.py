# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The decoder: a pyramid built from an encoder's features, and TransUNet's cascaded upsampler, as in a U-Net.

Pyramids of hierarchical encoders (ConvNeXt, ResNet, Swin, ...) are passed through. A plain vision transformer has one
stride and no fine features: the outputs of selected blocks are projected and resampled to strides 4 to 32, as in DPT
(arXiv 2103.13413), and a shallow convolutional stem adds strides 1 and 2. All of this belongs to the decoder: it is
pretrained with it, and saved in decoder-only checkpoints.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ddep import DDePConfig
from .encoders import FeatureMaps
from .resampling import pad_to_multiple, padded_size, resample


DEFAULT_HIDDEN_SIZES = (256, 128, 64, 32, 16)
# Channels of the added levels, by stride; for the stem, its widths.
STEM_CHANNELS = {1: 16, 2: 32}
LEVEL_CHANNELS = {4: 64, 8: 128, 16: 256, 32: 512}


class DDePDecoderConv(nn.Conv2d):
    """Convolution without bias, in front of a norm and a ReLU; pads so that stride 1 keeps the size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1) -> None:
        padding = kernel_size // 2
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=False)

    def forward(self, hidden_state: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Convolves `hidden_state`, or its concatenation with `skip` along the channels.

        Instead of concatenating, the two parts are convolved separately and added. That saves memory and, with a
        frozen encoder, the gradient with respect to `skip`.
        """
        if skip is None:
            return super().forward(hidden_state)
        if torch.compiler.is_exporting():  # a sum would compare the sizes, which may be symbolic
            return super().forward(torch.cat([hidden_state, skip], dim=1))
        hidden_weight, skip_weight = self.weight.split([hidden_state.shape[1], skip.shape[1]], dim=1)
        output = F.conv2d(hidden_state, hidden_weight, self.bias, self.stride, self.padding)
        return output + F.conv2d(skip, skip_weight, None, self.stride, self.padding)


class DDePConvNormAct(nn.Sequential):
    """Convolution, norm and activation, with an optional skip connection."""

    def forward(self, hidden_state: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Maps `(batch, C, H, W)` and an optional skip `(batch, C', H, W)` to `(batch, out, H, W)`."""
        conv, norm, act = self
        output: torch.Tensor = act(norm(conv(hidden_state, skip)))
        return output


def conv_norm_act(
    in_channels: int, out_channels: int, norm: str, kernel_size: int = 3, stride: int = 1
) -> DDePConvNormAct:
    """Convolution, norm (`"batch"` or `"group"`) and ReLU."""
    if norm == "batch":
        layer: nn.Module = nn.BatchNorm2d(out_channels)
    else:
        # At least 8 channels per group: with one channel per group, the norm would remove each channel's mean, and on
        # a 1x1 map the whole signal.
        groups = math.gcd(32, max(1, out_channels // 8), out_channels)
        layer = nn.GroupNorm(groups, out_channels)
    return DDePConvNormAct(
        DDePDecoderConv(in_channels, out_channels, kernel_size, stride), layer, nn.ReLU(inplace=True)
    )


def expected_weight_norm(weight: torch.Tensor) -> float:
    """Expected norm of a convolution's weights `(out, in, height, width)` under He initialisation."""
    fan_in = weight[0].numel()
    return (2 / fan_in * weight.numel()) ** 0.5


@torch.no_grad()
def restore_weight_norms(module: nn.Module) -> None:
    """Rescales the weights of each convolution in front of a normalisation layer to their norm at He initialisation.

    The output does not change, because the normalisation layer cancels the scale, but the training that follows does:
    the step size of Adam is fixed, so weights that have grown in pretraining rotate more slowly, by the square of
    their norm. BatchNorm's running statistics are rescaled to match. `from_pretrained` does not do this; fine-tuning
    calls it before it starts from a pretrained decoder. Not in the paper.
    """
    for layers in module.modules():
        if isinstance(layers, DDePConvNormAct):
            weight, norm = layers[0].weight, layers[1]
            factor = expected_weight_norm(weight) / weight.norm().clamp(min=1e-12)
            weight.mul_(factor)
            if isinstance(norm, nn.BatchNorm2d):
                norm.running_mean.mul_(factor)
                norm.running_var.mul_(factor**2)


class DDePPyramid(nn.Module):
    """Builds a feature pyramid, whose strides are increasing powers of two, from an encoder's features.

    - If the encoder has a pyramid, its features are used unchanged. If its finest stride is above 4, levels down to
      stride 4 are derived from its finest feature map.
    - Otherwise, the features are assigned to levels of stride 4 to 32, the earliest block to the finest level.
    - The stem adds strides 1 and 2, as far as the encoder lacks them, if levels are derived or the encoder resamples
      its input.

    A derived level is a 1x1 convolution with norm and ReLU, followed by bilinear resampling. The transposed
    convolutions of DPT would tie the strides to the patch size: from 14, none leads to 4. Where they fit, they were
    half a point better (docs/results.md).

    Attributes:
        strides: The levels' strides, in increasing order.
        channels: Their channels.
    """

    def __init__(self, config: DDePConfig, maps: FeatureMaps) -> None:
        super().__init__()
        encoder_levels = dict(zip(maps.strides, range(len(maps.strides)), strict=True)) if maps.is_pyramid else {}
        finest = min(encoder_levels, default=64)
        new_strides = [stride for stride in LEVEL_CHANNELS if stride < finest] if finest > 4 else []
        # The feature map that each level is derived from; without a pyramid, they are distributed over the levels.
        sources = {
            stride: 0 if encoder_levels else level * len(maps.channels) // len(new_strides)
            for level, stride in enumerate(new_strides)
        }
        # Levels finer than the last block uses would be computed and saved for nothing.
        deepest = max((*new_strides, *encoder_levels))
        last = 1 if config.decoder_hidden_sizes is None else deepest // 2 ** len(config.decoder_hidden_sizes)
        sources = {stride: source for stride, source in sources.items() if stride >= last}
        widths = {stride: min(LEVEL_CHANNELS[stride], maps.channels[source]) for stride, source in sources.items()}
        self.projections = nn.ModuleDict(
            {
                str(stride): conv_norm_act(maps.channels[source], widths[stride], config.decoder_norm, kernel_size=1)
                for stride, source in sources.items()
            }
        )
        stem = (
            [stride for stride in STEM_CHANNELS if stride < finest]
            if new_strides or maps.image_size is not None
            else []
        )
        stem = stem if stem and stem[-1] >= last else []
        self.stem = nn.ModuleList()
        for stride in stem:
            channels = STEM_CHANNELS[stride // 2] if stride > 1 else config.num_channels
            self.stem.append(
                conv_norm_act(channels, STEM_CHANNELS[stride], config.decoder_norm, stride=min(2, stride))
            )
        self.sources = {**sources, **encoder_levels}
        self.aligned = maps.is_pyramid and maps.image_size is None  # the encoder saw the image with the same padding
        self.strides = (*stem, *sorted(self.sources))
        widths |= {stride: maps.channels[source] for stride, source in encoder_levels.items()}
        self.channels = tuple(STEM_CHANNELS[stride] if stride in stem else widths[stride] for stride in self.strides)

    def forward(
        self, features: Sequence[torch.Tensor], pixel_values: torch.Tensor, covered_size: tuple[int, int]
    ) -> list[torch.Tensor]:
        """Computes the levels.

        Args:
            features: The encoder's features, each `(batch, C, rows, columns)`.
            pixel_values: The images, `(batch, C, H, W)`.
            covered_size: Height and width in pixels of the area that the features cover: the image with its padding.

        Returns:
            One tensor `(batch, channels, H' / stride, W' / stride)` for each of `strides`, where H' and W' are the
            sides padded to multiples of the deepest one.
        """
        levels: list[torch.Tensor] = []
        max_stride = self.strides[-1]
        if len(self.stem):
            level = pad_to_multiple(pixel_values, max_stride)
            for layers in self.stem:
                level = layers(level)
                levels.append(level)
        height, width = (padded_size(side, max_stride) for side in pixel_values.shape[-2:])
        for stride in self.strides[len(levels) :]:
            level = features[self.sources[stride]]
            if str(stride) in self.projections:
                level = self.projections[str(stride)](level)
            size = (height // stride, width // stride)
            if not (self.aligned and level.shape[-2:] == size):
                level = resample(level, covered_size, stride, size)
            levels.append(level)
        return levels


def decoder_channels(config: DDePConfig, encoder_stride: int) -> tuple[int, ...]:
    """Channels of the decoder's blocks, scaled by `decoder_width`, coarsest first."""
    doublings = int(math.log2(encoder_stride))
    sizes = config.decoder_hidden_sizes
    if sizes is None:
        # TransUNet's 256-128-64-16 at stride 16; deeper encoders get one more block before the last.
        sizes = (*DEFAULT_HIDDEN_SIZES[: doublings - 1], DEFAULT_HIDDEN_SIZES[-1])
    if len(sizes) > doublings:
        raise ValueError(
            f"decoder_hidden_sizes has {len(sizes)} entries, but {config.encoder_name} has stride {encoder_stride}: "
            f"{doublings} doublings reach the image's resolution. Use at most {doublings} entries."
        )
    return tuple(max(1, round(size * config.decoder_width)) for size in sizes)


class DDePDecoderBlock(GradientCheckpointingLayer):
    """Upsamples by 2, concatenates the encoder's features of that resolution, and applies two convolutions."""

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int, norm: str, interpolation: str) -> None:
        super().__init__()
        self.conv1 = conv_norm_act(in_channels + skip_channels, out_channels, norm)
        self.conv2 = conv_norm_act(out_channels, out_channels, norm)
        self.interpolation = interpolation

    def forward(self, hidden_state: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """Maps `(batch, C, H, W)` and an optional skip `(batch, C', 2H, 2W)` to `(batch, out, 2H, 2W)`."""
        # With half-pixel centres, so that the result does not depend on where a tile ends.
        hidden_state = F.interpolate(hidden_state, scale_factor=2, mode=self.interpolation)
        output: torch.Tensor = self.conv2(self.conv1(hidden_state, skip))
        return output


class DDePDecoder(nn.Module):
    """Pyramid, optional bottleneck convolution, and a [`DDePDecoderBlock`] per entry of `decoder_hidden_sizes`."""

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
        norm, interpolation, blocks = config.decoder_norm, config.decoder_interpolation, []
        self.skip_strides: list[int | None] = []
        for out_channels in decoder_channels(config, stride):
            stride //= 2
            self.skip_strides.append(stride if stride in skips else None)
            blocks.append(DDePDecoderBlock(width, skips.get(stride, 0), out_channels, norm, interpolation))
            width = out_channels
        self.blocks = nn.ModuleList(blocks)
        self.strides = strides
        self.out_channels = width

    def forward(
        self, features: Sequence[torch.Tensor], pixel_values: torch.Tensor, covered_size: tuple[int, int]
    ) -> list[torch.Tensor]:
        """Runs the decoder; see [`DDePPyramid`] for its arguments.

        Returns:
            Outputs of the bottleneck (without one, the deepest level) and of each block, coarsest first; the last is
            the decoder's output.
        """
        levels = self.pyramid(features, pixel_values, covered_size)
        by_stride = dict(zip(self.strides, levels, strict=True))
        hidden_states = [self.bottleneck(levels[-1])]
        for block, stride in zip(self.blocks, self.skip_strides, strict=True):
            skip = by_stride[stride] if stride is not None else None
            hidden_states.append(block(hidden_states[-1], skip))
        return hidden_states
