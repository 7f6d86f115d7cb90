# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""timm models as encoders: an ordinary timm module in, its features out.

The encoder is the timm model itself, so its state dict has timm's own keys. Three kinds are supported: models whose
`feature_info` is a pyramid (ConvNeXt, ResNet, ResNetV2-BiT, EfficientNet, Swin, ...); the ResNet-ViT hybrids, whose
CNN provides the skip connections and whose transformer the deepest features; and single-stride models (ViT, DINOv2,
EVA, ...), of which the outputs of some blocks are used. [`DDePPyramid`] builds the decoder's pyramid from them.
"""

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.layers import HybridEmbed
from timm.models.eva import EvaBlock
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_ddep import DDePConfig
from .resampling import pad_to_multiple, resize


# Arguments that make a family accept any image size, by the timm module that defines its models.
_DYNAMIC_SIZE_KWARGS: dict[str, dict[str, Any]] = {
    "deit": {"dynamic_img_size": True},
    "eva": {"dynamic_img_size": True},
    "gemma4_vit": {"global_pool": "avg"},  # the soft pooling of its encoders needs multiples of 48
    "swin_transformer": {"strict_img_size": False},
    "swin_transformer_v2": {"strict_img_size": False},
    "swin_transformer_v2_cr": {"dynamic_img_size": True},
    "vision_transformer": {"dynamic_img_size": True},
    "vision_transformer_hybrid": {"dynamic_img_size": True},
    "vitamin": {"dynamic_img_size": True},
}
# Families, and one model, whose tables, windows or weights fix the image size. Images are resampled to it.
_FIXED_SIZE_MODELS = (
    "bat_resnext26ts", "beit", "byoanet", "cait", "coat", "convit", "crossvit", "efficientformer",
    "efficientformer_v2", "gcvit", "hiera", "levit", "maxxvit", "mlp_mixer", "nest", "pit", "tnt", "visformer",
    "vision_transformer_relpos", "volo",
)  # fmt: skip
# Classifier weights that remain after pruning.
_CLASSIFIER_ATTRIBUTES = {"efficientvim": ("weights", "weights_dist")}
# Number of decoder levels derived from blocks of a model without a pyramid.
_NUM_LEVELS = 4


@dataclass(frozen=True)
class FeatureMaps:
    """The features of an encoder that the decoder uses.

    Attributes:
        indices: Positions of the features in timm's `feature_info`.
        channels: Channels of each feature.
        strides: Stride of each feature in pixels, from timm.
        is_pyramid: Whether the strides are increasing powers of two.
        norm: Whether the encoder's final norm is applied to the features. It is for plain transformers, because a few
            channels of a block's output are far larger than the others.
        image_size: Height and width that images are resampled to, if the encoder accepts no other size.
        multiple: Sides are padded to multiples of this, if it accepts many sizes.
    """

    indices: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    is_pyramid: bool
    norm: bool
    image_size: tuple[int, int] | None
    multiple: int


class DDePEncoderBlock(GradientCheckpointingLayer, Block):
    """timm's transformer block with transformers' activation checkpointing; its parameters keep their names."""


class DDePEvaBlock(GradientCheckpointingLayer, EvaBlock):
    """The same for timm's block with rotary position embeddings (EVA-02, DINOv3, ...)."""


class DDePHybridEncoder(VisionTransformer):
    """timm's ResNet-ViT hybrid, whose forward returns a pyramid.

    This overrides forward instead of being a separate function, because device placement hooks into forward, and this
    module has weights of its own (class token, position embeddings).
    """

    def forward(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Runs CNN and transformer; see [`extract_features`]."""
        embed = self.patch_embed
        if isinstance(embed.backbone, ResNetV2):
            hidden_state, skips = embed.backbone.forward_intermediates(pixel_values)
        else:
            stem = embed.backbone.norm(embed.backbone.conv(pixel_values))
            hidden_state = embed.backbone.pool(stem)
            skips = [stem, hidden_state]
        grid = embed.proj(hidden_state)
        height, width = grid.shape[-2:]
        # The same steps as in timm, including the class token: the weights were trained with it.
        tokens = self.norm_pre(self._pos_embed(grid.permute(0, 2, 3, 1)))
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)[:, self.num_prefix_tokens :]
        grid = tokens.transpose(1, 2).unflatten(2, (height, width))
        return [*skips[: len(_hybrid_features(self)) - 1], grid]


def encoder_arguments(config: DDePConfig) -> dict[str, Any]:
    """Arguments with which `timm.create_model(config.encoder_name, ...)` builds the encoder.

    Raises a ValueError if timm does not know the model.
    """
    name = config.encoder_name
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        own_name = re.sub("^(hf[-_]hub:)?(timm/)?", "", name)  # without timm's address on the Hub
        matches = difflib.get_close_matches(own_name.split(".")[0], timm.list_models(), n=3)
        matches = [own_name] if own_name != name and timm.is_model(own_name.split(".")[0]) else matches
        raise ValueError(
            f"encoder_name: timm {timm.__version__} has no model `{name}`. Similar names: {matches or 'none'}."
        )
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = timm.list_pretrained(f"{architecture}.*")
        raise ValueError(
            f"encoder_name: timm {timm.__version__} has no weights `{name}`. Available: {', '.join(tags) or 'none'}."
        ) from error
    defaults: dict[str, Any] = _DYNAMIC_SIZE_KWARGS.get(_family(name), {})
    return {"num_classes": 0, "in_chans": config.num_channels, **defaults, **(config.encoder_kwargs or {})}


def _family(encoder_name: str) -> str:
    """The timm module that an architecture is defined in."""
    return timm.models.model_entrypoint(encoder_name.split(".")[0]).__module__.rsplit(".", 1)[-1]


def build_encoder(config: DDePConfig) -> nn.Module:
    """Builds the encoder as initialised by timm, without the layers after the last feature used."""
    return finish_encoder(create_timm_model(config), config)


def create_timm_model(config: DDePConfig) -> nn.Module:
    """Builds the whole timm model without a classifier; see [`build_encoder`]."""
    arguments = encoder_arguments(config)
    if _family(config.encoder_name) == "csatv2" and config.num_channels != 3:  # its stem is a transform of RGB
        raise ValueError(f"num_channels: {config.encoder_name} takes only RGB images. Choose another encoder.")
    try:
        return timm.create_model(config.encoder_name, pretrained=False, **arguments)
    except (TypeError, RuntimeError, AssertionError) as error:
        hint = ". Leave img_size (encoder_img_size of a run) out" * ("img_size" in arguments)
        raise ValueError(
            f"encoder_kwargs: timm cannot build `{config.encoder_name}` with {arguments}: {error}{hint}"
        ) from error


def finish_encoder(encoder: nn.Module, config: DDePConfig) -> nn.Module:
    """Turns a timm model into an encoder, in place.

    Layers after the last feature used are removed, because they would get no gradient in fine-tuning.
    """
    maps = _feature_maps(encoder, config)
    if is_hybrid(encoder):
        encoder.__class__ = DDePHybridEncoder  # the same module, with another forward
    elif hasattr(encoder, "prune_intermediate_layers"):
        encoder.prune_intermediate_layers(list(maps.indices), prune_norm=not maps.norm, prune_head=True)
        if not maps.norm and hasattr(getattr(encoder, "head", None), "norm"):
            encoder.head.norm = nn.Identity()  # not removed by older releases of timm
    for name in _CLASSIFIER_ATTRIBUTES.get(_family(config.encoder_name), ()):
        setattr(encoder, name, None)
    for module in encoder.modules():
        for block in (DDePEncoderBlock, DDePEvaBlock):
            if type(module) is block.__bases__[1]:
                module.__class__ = block
    encoder._ddep_feature_maps = maps
    return encoder


def unwrap_model(module: nn.Module) -> nn.Module:
    """The module inside the wrappers of `torch.compile`, DataParallel and DistributedDataParallel."""
    while True:
        if "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]
        elif isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        else:
            return module


def is_hybrid(encoder: nn.Module) -> bool:
    """Whether the encoder is a vision transformer on top of a CNN whose stages are features too."""
    encoder = unwrap_model(encoder)
    if not (isinstance(encoder, VisionTransformer) and isinstance(encoder.patch_embed, HybridEmbed)):
        return False
    backbone = encoder.patch_embed.backbone
    # The second is only the stem of a ResNetV2: vit_tiny_r.
    return isinstance(backbone, ResNetV2) or (hasattr(backbone, "conv") and hasattr(backbone, "pool"))


def feature_maps(encoder: nn.Module) -> FeatureMaps:
    """The features that [`extract_features`] returns for an encoder from [`build_encoder`]."""
    maps: FeatureMaps = unwrap_model(encoder)._ddep_feature_maps
    return maps


def _feature_maps(encoder: nn.Module, config: DDePConfig) -> FeatureMaps:
    name = config.encoder_name
    info: Any = (getattr(encoder, "feature_info", None) if hasattr(encoder, "forward_intermediates") else None) or ()
    features = [(entry["num_chs"], entry["reduction"]) for entry in info]
    if is_hybrid(encoder):
        features = _hybrid_features(encoder)
    if not features:
        raise ValueError(
            f"encoder_name: `{name}` of timm {timm.__version__} has no intermediate features. Choose another, such "
            "as `convnext_tiny` or `vit_small_patch14_reg4_dinov2`."
        )
    indices = _out_indices(config, [stride for _, stride in features], is_hybrid(encoder))
    channels, strides = zip(*(features[index] for index in indices), strict=True)
    is_pyramid = _is_pyramid(strides)
    # A single level is not a pyramid, but gets no norm either. SAM's norm is a convolution to other channels.
    norm = not (is_pyramid or _is_pyramid([stride for _, stride in features])) and all(
        entry.get("num_chs_norm", entry["num_chs"]) == entry["num_chs"] for entry in info
    )
    multiple = strides[-1] if is_pyramid else max(strides)
    return FeatureMaps(indices, channels, strides, is_pyramid, norm, fixed_image_size(config), multiple)


def _out_indices(config: DDePConfig, strides: list[int], hybrid: bool) -> tuple[int, ...]:
    """Positions of the features to use: the last of each stride, or four evenly spaced if all have the same stride."""
    num_features = len(strides)
    if config.encoder_out_indices is not None:
        indices = tuple(
            index % num_features for index in config.encoder_out_indices if -num_features <= index < num_features
        )
        chosen_strides = [strides[index] for index in indices]
        if (
            hybrid
            or not indices
            or len(indices) != len(config.encoder_out_indices)
            or any(first >= second for first, second in itertools.pairwise(indices))
            or not (_is_pyramid(chosen_strides) or len(chosen_strides) <= _NUM_LEVELS)
        ):
            raise ValueError(
                f"encoder_out_indices: {config.encoder_name} has {num_features} features with strides {strides}. Set "
                f"increasing indices from 0 to {num_features - 1}, at most {_NUM_LEVELS} of one stride"
                + (", and none for a ResNet-ViT hybrid." if hybrid else ".")
            )
        return indices
    last_indices = tuple(
        index for index in range(num_features) if index + 1 == num_features or strides[index + 1] != strides[index]
    )
    if hybrid or _is_pyramid([strides[index] for index in last_indices]):
        return last_indices
    return tuple(sorted({max(0, num_features * level // _NUM_LEVELS - 1) for level in range(1, _NUM_LEVELS + 1)}))


def _is_pyramid(strides: Sequence[int]) -> bool:
    is_increasing = all(fine < coarse for fine, coarse in itertools.pairwise(strides))
    return len(strides) > 1 and is_increasing and not any(stride & (stride - 1) for stride in strides)


def fixed_image_size(config: DDePConfig) -> tuple[int, int] | None:
    """The only image size that an encoder accepts; `None` if it accepts others."""
    name = config.encoder_name
    if not {name.split(".")[0], _family(name)} & set(_FIXED_SIZE_MODELS):
        return None
    cfg = timm.get_pretrained_cfg(name)
    size = (config.encoder_kwargs or {}).get("img_size") or (cfg.input_size[1:] if cfg else 224)
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def _hybrid_features(encoder: nn.Module) -> list[tuple[int, int]]:
    backbone = encoder.patch_embed.backbone
    stride = encoder.patch_embed.feat_ratio()
    if isinstance(backbone, ResNetV2):
        skips = [(feature["num_chs"], feature["reduction"]) for feature in backbone.feature_info]
    else:
        skips = [(backbone.conv.out_channels, 2), (backbone.conv.out_channels, 4)]
    return [*(skip for skip in skips if skip[1] < stride), (encoder.embed_dim, stride)]


def extract_features(encoder: nn.Module, pixel_values: torch.Tensor) -> tuple[list[torch.Tensor], tuple[int, int]]:
    """Runs the encoder.

    `pixel_values`, `(batch, C, H, W)`, are padded by repeating the last row and column or, for encoders with a fixed
    image size, resampled to it. Returns one tensor `(batch, channels, rows, columns)` for each entry of
    [`feature_maps`], and the height and width in pixels that they cover: those of the image with its padding.
    """
    maps = feature_maps(encoder)
    if maps.image_size is None:
        pixel_values = pad_to_multiple(pixel_values, maps.multiple)
        covered_size = pixel_values.shape[-2:]
    else:
        covered_size = pixel_values.shape[-2:]
        pixel_values = resize(pixel_values, maps.image_size)
    if is_hybrid(encoder):
        return encoder(pixel_values), (covered_size[0], covered_size[1])
    model = unwrap_model(encoder)
    # accelerate's hooks move weights and inputs when a module is called. `forward_intermediates` bypasses them, and
    # timm also reads weights of layers that it does not call (EVA, BEiT, Swin V2), so all weights are loaded first.
    hooks = {}
    # Replicas of nn.DataParallel have no parameters.
    if "_hf_hook" in vars(model) or next(model.parameters(), pixel_values).device.type == "meta":
        hooks = {module: vars(module)["_hf_hook"] for module in model.modules() if "_hf_hook" in vars(module)}
    model_hook = hooks.pop(model, None)
    if model_hook is not None:
        (pixel_values,), _ = model_hook.pre_forward(model, pixel_values)
    for module, hook in hooks.items():
        hook.pre_forward(module)
    try:
        features = model.forward_intermediates(
            pixel_values, indices=list(maps.indices), norm=maps.norm, output_fmt="NCHW", intermediates_only=True
        )
    except RuntimeError as error:
        if "Kernel size can't be greater" not in str(error):
            raise
        raise ValueError(
            f"Images of {covered_size[0]}x{covered_size[1]} pixels are too small for "
            f"{type(model).__name__}, which does not pad. Use larger images or crops, or another encoder."
        ) from error
    for module, hook in hooks.items():
        hook.post_forward(module, None)
    if model_hook is not None:
        features = model_hook.post_forward(model, features)
    return list(features), (covered_size[0], covered_size[1])


def encoder_mean_std(encoder_name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of pixels in [0, 1] that the encoder's weights were trained with, from timm."""
    cfg = timm.get_pretrained_cfg(encoder_name)
    if cfg is None:
        raise ValueError(
            f"encoder_name: timm {timm.__version__} has no weights for `{encoder_name}`, so their mean and std "
            "are unknown. Pass image_mean and image_std."
        )
    return list(cfg.mean), list(cfg.std)


def has_batch_norm_in_training(module: nn.Module) -> bool:
    """Whether a BatchNorm in `module` would use the statistics of the current batch."""
    return any(isinstance(child, nn.modules.batchnorm._BatchNorm) and child.training for child in module.modules())
