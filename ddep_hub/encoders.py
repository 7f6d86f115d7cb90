# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""timm models as encoders: one plain timm module in, a pyramid of features out.

The encoder is the timm model itself, so its state dict has timm's own keys. Two kinds serve: models whose
`feature_info` is a pyramid (ConvNeXt, ResNet, ResNetV2-BiT, EfficientNet, Swin, ...), and the ResNet-ViT hybrids,
whose CNN part gives the skips and whose transformer gives the deepest feature.
"""

import difflib
import itertools
from typing import Any

import timm
import torch
from timm.layers import HybridEmbed
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ddep import DDePConfig


# Arguments that let a family take images of any size; by the timm module its models are defined in.
_ANY_SIZE = {
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
}


class DDePEncoderBlock(GradientCheckpointingLayer, Block):
    """timm's transformer block under transformers' activation checkpointing; its parameters keep their names."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Maps tokens `(batch, length, dim)` to the same shape."""
        return Block.forward(self, x, *args, **kwargs)


class DDePHybridEncoder(VisionTransformer):
    """timm's ResNet-ViT hybrid, whose forward returns a pyramid.

    A forward of its own, and not a function beside it: what places weights on devices hooks in there, and this module
    owns some itself (class token, position embeddings).
    """

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Runs CNN and transformer; see [`extract_features`]."""
        embed = self.patch_embed
        if isinstance(embed.backbone, ResNetV2):
            hidden_state, skips = embed.backbone.forward_intermediates(pixel_values)
        else:
            half = embed.backbone.norm(embed.backbone.conv(pixel_values))
            hidden_state = embed.backbone.pool(half)
            skips = [half, hidden_state]
        grid = embed.proj(hidden_state)
        height, width = grid.shape[-2:]
        # timm's own order of steps, class token included: the weights were trained with it.
        tokens = self.norm_pre(self._pos_embed(grid.permute(0, 2, 3, 1)))
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)[:, self.num_prefix_tokens :]
        grid = tokens.transpose(1, 2).unflatten(2, (height, width))
        return [*skips[: len(feature_info(self)) - 1], grid]


def encoder_arguments(config: DDePConfig) -> dict[str, Any]:
    """Arguments with which `timm.create_model(config.encoder_name, ...)` builds the encoder.

    Raises:
        ValueError: timm knows no such model.
    """
    name = config.encoder_name
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        raise ValueError(
            f"encoder_name: timm {timm.__version__} has no model `{name}`. Close to it: {close or 'none'}."
        )
    family = timm.models.model_entrypoint(architecture).__module__.rsplit(".", 1)[-1]
    defaults: dict[str, Any] = dict(_ANY_SIZE.get(family, {}))
    if family == "vision_transformer_hybrid":
        defaults = {"dynamic_img_size": True, "block_fn": DDePEncoderBlock}
    return {"num_classes": 0, "in_chans": config.num_channels, **defaults, **(config.encoder_kwargs or {})}


def build_encoder(config: DDePConfig) -> nn.Module:
    """Builds the encoder as timm initialises it, without the layers behind its last used feature.

    Raises:
        ValueError: timm does not know the name, refuses the arguments, or the model yields no pyramid.
    """
    return finish_encoder(create_timm_model(config))


def create_timm_model(config: DDePConfig) -> nn.Module:
    """Builds the whole timm model without a classifier; see [`build_encoder`]."""
    arguments = encoder_arguments(config)
    try:
        return timm.create_model(config.encoder_name, pretrained=False, **arguments)
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(
            f"encoder_kwargs: timm cannot build `{config.encoder_name}` with {arguments}: {error}"
        ) from error


def finish_encoder(encoder: nn.Module) -> nn.Module:
    """Turns a timm model into an encoder, in place.

    Layers behind the last used feature go: unused, they would get no gradient in fine-tuning.
    """
    if is_hybrid(encoder):
        encoder.__class__ = DDePHybridEncoder  # the same module, with another forward
    elif hasattr(encoder, "prune_intermediate_layers"):
        last = len(_timm_feature_info(encoder)) - 1
        encoder.prune_intermediate_layers([last], prune_norm=True, prune_head=True)
        if hasattr(getattr(encoder, "head", None), "norm"):
            encoder.head.norm = nn.Identity()  # older releases of timm leave it there
    feature_info(encoder)  # refuses models without a pyramid
    return encoder


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside what `torch.compile`, DataParallel and DistributedDataParallel put around it."""
    while True:
        if "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def is_hybrid(encoder: nn.Module) -> bool:
    """Whether the encoder is a vision transformer over a CNN's features."""
    encoder = unwrapped(encoder)
    return isinstance(encoder, VisionTransformer) and isinstance(encoder.patch_embed, HybridEmbed)


def feature_info(encoder: nn.Module) -> list[tuple[int, int]]:
    """`(channels, stride)` of each feature that [`extract_features`] returns, finest first.

    Raises:
        ValueError: the model has no features whose strides are growing powers of two.
    """
    name = type(encoder).__name__
    info = _hybrid_feature_info(encoder) if is_hybrid(encoder) else _timm_feature_info(encoder)
    strides = [stride for _, stride in info]
    growing = all(fine < coarse for fine, coarse in itertools.pairwise(strides))
    if len(info) < 2 or not growing or any(stride & (stride - 1) for stride in strides):
        raise ValueError(
            f"encoder_name: the timm model ({name}) has features of strides {strides}, no pyramid for a U-Net. Use a "
            "ResNet-ViT hybrid (vit_base_r50_s16_224, ...) or a hierarchical model (ConvNeXt, ResNet, Swin, ...)."
        )
    return info


def _timm_feature_info(encoder: nn.Module) -> list[tuple[int, int]]:
    encoder = unwrapped(encoder)
    info = getattr(encoder, "feature_info", None)
    if not info or not hasattr(encoder, "forward_intermediates"):
        return []
    return [(feature["num_chs"], feature["reduction"]) for feature in info]


def _hybrid_feature_info(encoder: nn.Module) -> list[tuple[int, int]]:
    backbone = encoder.patch_embed.backbone
    stride = encoder.patch_embed.feat_ratio()
    if isinstance(backbone, ResNetV2):
        skips = [(feature["num_chs"], feature["reduction"]) for feature in backbone.feature_info]
    elif hasattr(backbone, "conv") and hasattr(backbone, "pool"):  # the ResNetV2 stem alone: vit_tiny_r
        skips = [(backbone.conv.out_channels, 2), (backbone.conv.out_channels, 4)]
    else:
        skips = []
    return [*(skip for skip in skips if skip[1] < stride), (encoder.embed_dim, stride)]


def extract_features(encoder: nn.Module, pixel_values: torch.Tensor) -> list[torch.Tensor]:
    """Runs the encoder.

    Args:
        encoder: a model of [`build_encoder`].
        pixel_values: images of shape `(batch, C, H, W)`, H and W multiples of the deepest stride.

    Returns:
        One tensor `(batch, channels, H / stride, W / stride)` for each entry of [`feature_info`].

    Raises:
        ValueError: a convolution without padding makes a feature smaller than its stride says.
    """
    if is_hybrid(encoder):
        return encoder(pixel_values)
    features = unwrapped(encoder).forward_intermediates(pixel_values, output_fmt="NCHW", intermediates_only=True)
    height, width = pixel_values.shape[-2:]
    for feature, (_, stride) in zip(features, feature_info(encoder), strict=True):
        if feature.shape[-2:] != (height // stride, width // stride):
            raise ValueError(
                f"encoder_name: the timm model ({type(encoder).__name__}) turns a {height}x{width} image into a "
                f"feature of {tuple(feature.shape[-2:])}, not to stride {stride}. Use an encoder that pads."
            )
    return list(features)


def encoder_mean_std(encoder_name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, of pixels in [0, 1], that the encoder's weights were trained with (timm's)."""
    cfg = timm.get_pretrained_cfg(encoder_name)
    if cfg is None:
        raise ValueError(f"encoder_name: timm {timm.__version__} has no weights' description for `{encoder_name}`.")
    return list(cfg.mean), list(cfg.std)


def has_batch_norm_in_training(module: nn.Module) -> bool:
    """Whether a BatchNorm below `module` would use the statistics of the batch at hand."""
    return any(isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training for child in module.modules())


def padding_to_multiple(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Rows and columns to append so that both sides are multiples of `multiple`."""
    return -height % multiple, -width % multiple
