"""Tiny DDeP models and their inputs for the common tests: a hybrid and two convolutional encoders."""

from typing import Any, ClassVar

import torch

from ddep_hub import DDePConfig


class DDePModelTester:
    """Makes a configuration and inputs; the tests read their expectations from the attributes."""

    batch_size = 3
    image_size = 64
    num_channels = 3
    num_labels = 3
    is_training = True
    # Of the transformer; the limit that the common tests check.
    num_hidden_layers = 2
    config_kwargs: ClassVar[dict[str, Any]] = {
        "encoder_name": "vit_tiny_r_s16_p8_224",
        "encoder_kwargs": {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 64},
        "decoder_hidden_sizes": [32, 24, 16, 16, 8],
        "decoder_bottleneck_size": 16,
        "decoder_norm": "batch",
    }
    # `(channels, height, width)` of the encoder's features, finest first, then the decoder's outputs.
    hidden_state_shapes: ClassVar[list[tuple[int, ...]]] = [
        *[(64, 32, 32), (64, 16, 16), (32, 2, 2)],
        *[(16, 2, 2), (32, 4, 4), (24, 8, 8), (16, 16, 16), (16, 32, 32), (8, 64, 64)],
    ]

    def get_config(self) -> DDePConfig:
        return DDePConfig(**self.config_kwargs, num_labels=self.num_labels)

    def prepare_config_and_inputs_for_common(self) -> tuple[DDePConfig, dict[str, torch.Tensor]]:
        return self.get_config(), {"pixel_values": self._randn()}

    def pretraining_inputs(self) -> dict[str, torch.Tensor]:
        """Fixed noise and levels: without them each forward of `DDePForPreTraining` draws its own."""
        return {"noise": self._randn(), "sigma": torch.linspace(0.2, 0.4, self.batch_size)}

    def _randn(self) -> torch.Tensor:
        return torch.randn(self.batch_size, self.num_channels, self.image_size, self.image_size)


class ConvNeXtTester(DDePModelTester):
    """No transformer, LayerNorm, layer scale, a finest feature of stride 4, fewer blocks than doublings."""

    config_kwargs: ClassVar[dict[str, Any]] = {
        "encoder_name": "convnext_atto",
        "encoder_kwargs": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]},
        "decoder_hidden_sizes": [24, 16, 16],
        "decoder_bottleneck_size": 16,
        "decoder_norm": "group",
    }
    hidden_state_shapes: ClassVar[list[tuple[int, ...]]] = [
        *[(8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)],
        *[(16, 2, 2), (24, 4, 4), (16, 8, 8), (16, 16, 16)],
    ]


class ResNetTester(DDePModelTester):
    """BatchNorm in the encoder: running statistics, which are buffers."""

    config_kwargs: ClassVar[dict[str, Any]] = {
        "encoder_name": "resnet10t",
        "encoder_kwargs": {"channels": [8, 16, 24, 32]},
        "decoder_hidden_sizes": None,
        "decoder_bottleneck_size": 16,
        "decoder_width": 0.25,
        "decoder_norm": "group",
    }
    hidden_state_shapes: ClassVar[list[tuple[int, ...]]] = [
        *[(64, 32, 32), (8, 16, 16), (16, 8, 8), (24, 4, 4), (32, 2, 2)],
        *[(16, 2, 2), (64, 4, 4), (32, 8, 8), (16, 16, 16), (8, 32, 32), (4, 64, 64)],
    ]
