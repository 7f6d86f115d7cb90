# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""The pyramid of features that the decoder reads, from whatever features an encoder has.

Encoders with a pyramid of their own (ConvNeXt, ResNet, Swin, ...) pass through. A plain vision transformer has one
stride and no fine features: chosen blocks are projected and resampled to strides 4 to 32, as in DPT (arXiv
2103.13413), and a shallow convolution stem gives strides 1 and 2. All of this belongs to the decoder: it is pretrained
with it, and decoder-only checkpoints hold it.
"""

from collections.abc import Sequence

import torch
from torch import nn

from .configuration_ddep import DDePConfig
from .conv_norm import conv_norm_act
from .encoders import FeatureMaps
from .resampling import pad_to_multiple, padded_size, resample


# Channels of the levels that an encoder does not have itself, by stride. Those of the stem are its widths.
STEM_CHANNELS = {1: 16, 2: 32}
LEVEL_CHANNELS = {4: 64, 8: 128, 16: 256, 32: 512}


class DDePPyramid(nn.Module):
    """Brings an encoder's features to strides that are growing powers of two.

    - The features of an encoder with a pyramid are levels as they are. If its finest stride is above 4, the levels
      down to 4 are made from its finest feature.
    - Of other encoders, features are spread over the levels of stride 4 to 32, the earliest on the finest.
    - The stem gives strides 1 and 2 below a made level, and below all of an encoder that sees the images resampled.

    A made level is a 1x1 convolution with norm and ReLU, then bilinear resampling. Transposed convolutions, which DPT
    has instead, would tie the strides to the patch size: from 14 none leads to 4. Where they fit, they were half a
    point better (docs/results.md).

    Args:
        config: The model's configuration.
        maps: The encoder's features.

    Attributes:
        strides: The levels' strides, growing.
        channels: Their channels.
    """

    def __init__(self, config: DDePConfig, maps: FeatureMaps) -> None:
        super().__init__()
        own = dict(zip(maps.strides, range(len(maps.strides)), strict=True)) if maps.is_pyramid else {}
        finest = min(own, default=64)
        made = [stride for stride in LEVEL_CHANNELS if stride < finest] if finest > 4 else []
        # The feature that each level is made of; features are spread over the levels where there is no pyramid.
        number = len(maps.channels)
        sources = {
            stride: 0 if own else level * number // len(made) if number <= len(made) else level
            for level, stride in enumerate(made)
        }
        widths = {stride: min(LEVEL_CHANNELS[stride], maps.channels[source]) for stride, source in sources.items()}
        self.projections = nn.ModuleDict(
            {
                str(stride): conv_norm_act(maps.channels[source], widths[stride], config.decoder_norm, kernel_size=1)
                for stride, source in sources.items()
            }
        )
        stem = [stride for stride in STEM_CHANNELS if stride < finest] if made or maps.image_size is not None else []
        self.stem = nn.ModuleList()
        for stride in stem:
            channels = STEM_CHANNELS[stride // 2] if stride > 1 else config.num_channels
            self.stem.append(
                conv_norm_act(channels, STEM_CHANNELS[stride], config.decoder_norm, stride=min(2, stride))
            )
        self.sources = {**sources, **own}
        self.aligned = maps.is_pyramid and maps.image_size is None  # the encoder saw the image with the same padding
        self.strides = (*stem, *sorted(self.sources))
        widths |= {stride: maps.channels[source] for stride, source in own.items()}
        self.channels = tuple(STEM_CHANNELS[stride] if stride in stem else widths[stride] for stride in self.strides)

    def forward(
        self, features: Sequence[torch.Tensor], pixel_values: torch.Tensor, covered: tuple[int, int]
    ) -> list[torch.Tensor]:
        """Makes the levels.

        Args:
            features: The encoder's features, each `(batch, C, rows, columns)`.
            pixel_values: The images, `(batch, C, H, W)`.
            covered: Height and width in pixels of what the features cover: the image and its padding, if any.

        Returns:
            One tensor `(batch, channels, H' / stride, W' / stride)` for each of `strides`, where H' and W' are the
            sides padded to multiples of the deepest one.
        """
        levels: list[torch.Tensor] = []
        deepest = self.strides[-1]
        if len(self.stem):
            level = pad_to_multiple(pixel_values, deepest)
            for layers in self.stem:
                level = layers(level)
                levels.append(level)
        height, width = (padded_size(side, deepest) for side in pixel_values.shape[-2:])
        for stride in self.strides[len(levels) :]:
            level = features[self.sources[stride]]
            if str(stride) in self.projections:
                level = self.projections[str(stride)](level)
            size = (height // stride, width // stride)
            if not (self.aligned and level.shape[-2:] == size):
                level = resample(level, covered, stride, size)
            levels.append(level)
        return levels
