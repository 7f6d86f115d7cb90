"""U-Nets of segmentation_models.pytorch (SMP) as DDeP models and back, where both are the same function.

SMP's U-Net has no bottleneck, and its encoders are timm's, or have the same layers as a model of timm. Decoder blocks
and heads coincide. Weights are matched by name, whatever the names' separators, and the outputs are then compared: an
encoder of the same names and shapes may still be another function.
"""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import timm
import torch
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.checkpoints import hash_weights
from ddep_hub.decoder import decoder_channels
from ddep_hub.encoders import is_hybrid


Model = TypeVar("Model", DDePForPreTraining, DDePForSemanticSegmentation)

# Arguments of `smp.Unet` and what they must be; those that are not named here set something DDeP models have too.
_FIXED: dict[str, tuple[Any, ...]] = {
    "encoder_depth": (5,),
    "decoder_use_norm": ("batchnorm", True, {"type": "batchnorm"}),
    "decoder_attention_type": (None,),
    "decoder_interpolation": ("nearest", "bilinear"),
    "activation": (None, "identity"),
    "aux_params": (None,),
}
_SET = ("encoder_name", "encoder_weights", "decoder_channels", "in_channels", "classes")
_HEADS = {DDePForPreTraining: "noise_head.", DDePForSemanticSegmentation: "classifier."}


def import_smp() -> Any:
    """The package.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ImportError(
            "Converting needs segmentation_models.pytorch. Install it with `pip install ddep-hub[convert]`."
        ) from error
    return smp


def from_unet(cls: type[Model], unet: nn.Module, arguments: Mapping[str, Any], **fields: Any) -> Model:
    """A DDeP model with the weights of a U-Net of SMP, not yet compared with it.

    Args:
        cls: the model's class, whose head takes the place of the U-Net's.
        unet: an `smp.Unet`.
        arguments: those it was built with.
        **fields: further fields of the configuration.

    Raises:
        ValueError: it has a part that DDeP models have not, or an encoder that timm has not.
    """
    for name, value in arguments.items():
        allowed = _FIXED.get(name, (None,))
        if name not in _SET and value not in allowed:
            known = " or ".join(map(repr, allowed))
            raise ValueError(f"{name}={value!r} of this U-Net has no counterpart here, which knows {known}.")
    name = timm_name(arguments["encoder_name"])
    config = DDePConfig(
        encoder_name=name,
        num_channels=arguments["in_channels"],
        decoder_hidden_sizes=list(arguments["decoder_channels"]),
        decoder_bottleneck_size=0,
        decoder_interpolation=arguments["decoder_interpolation"],
        **fields,
    )
    model = cls(config).eval()
    state = unet.state_dict()
    try:
        model.load_state_dict(_matched(model.state_dict(), _named_as_ddep(cls, state)))
    except RuntimeError as error:
        raise ValueError(f"{arguments['encoder_name']} of SMP is not {name} of timm: {error}") from error
    config.encoder_weights_hash = hash_weights(model.ddep.encoder.state_dict())
    return model


def to_unet(model: Model) -> tuple[nn.Module, dict[str, Any]]:
    """A U-Net of SMP with a DDeP model's weights, not yet compared with it, and the arguments it was built with.

    Raises:
        ImportError: SMP is not installed.
        ValueError: the model has a part that the U-Net has not.
    """
    config = model.config
    stride = model.ddep.stride
    wanted = {
        "decoder_bottleneck_size": (config.decoder_bottleneck_size, 0),
        "decoder_norm": (config.decoder_norm, "batch"),
        "image_skip": (config.image_skip and isinstance(model, DDePForPreTraining), False),
        "blocks of the decoder": (len(model.ddep.decoder.blocks), 5),
        "stride of the encoder": (stride, 32),
        "hybrid encoder": (is_hybrid(model.ddep.encoder), False),
    }
    for name, (value, needed) in wanted.items():
        if value != needed:
            raise ValueError(
                f"{name}: {value} has no counterpart in a U-Net of segmentation_models.pytorch, which needs {needed}. "
                "Only a model that was pretrained or fine-tuned that way can be converted."
            )
    arguments = {
        "encoder_name": f"tu-{config.encoder_name}",
        "encoder_weights": None,
        "decoder_channels": list(decoder_channels(config, stride)),
        "decoder_interpolation": config.decoder_interpolation,
        "in_channels": config.num_channels,
        "classes": getattr(model, _HEADS[type(model)][:-1]).out_channels,
    }
    unet = import_smp().Unet(**arguments, **(config.encoder_kwargs or {})).eval()
    state = unet.state_dict()
    renamed = _named_as_ddep(type(model), state)
    # The model's own names by SMP's.
    names = dict(zip(renamed, state, strict=True))
    found = _matched(renamed, model.state_dict())
    unet.load_state_dict({names[name]: tensor for name, tensor in found.items()})
    return unet, arguments


def timm_name(encoder_name: str) -> str:
    """timm's name of an encoder of SMP.

    Raises:
        ValueError: timm has none of that name.
    """
    name = encoder_name.removeprefix("tu-").removeprefix("timm-")
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"encoder_name: {encoder_name} of segmentation_models.pytorch is no model of timm, as the encoders here "
            "are. Those that start with `tu-` are, and the ResNets, ResNeXts and some that start with `timm-`."
        )
    return name


def prediction(model: DDePForPreTraining | DDePForSemanticSegmentation, images: torch.Tensor) -> torch.Tensor:
    """Output of the head for images as they are: a denoiser gets no noise added."""
    head = getattr(model, _HEADS[type(model)][:-1])
    hidden_state = model.ddep(images, return_dict=True).last_hidden_state
    return model.ddep.to_image_size(head(hidden_state), *images.shape[-2:])


def _named_as_ddep(cls: type[nn.Module], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A U-Net's weights, in their order, under the prefixes of a DDeP model."""
    prefixes = {
        "encoder.model.": "ddep.encoder.",  # of timm's own models
        "encoder.": "ddep.encoder.",
        "decoder.": "ddep.decoder.",
        "segmentation_head.0.": _HEADS[cls],
    }
    renamed = {}
    for name, tensor in state.items():
        old = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(old, "") + name.removeprefix(old)] = tensor
    return renamed


def _matched(wanted: Iterable[str], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of `state` under the names `wanted`; timm joins parts of a name with `_` in its feature extractors.

    Raises:
        RuntimeError: a name has no tensor; names the first ones.
    """
    by_plain_name = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    names = {name: name.replace(".", "_") for name in wanted}
    missing = [name for name, plain in names.items() if plain not in by_plain_name]
    if missing:
        raise RuntimeError(f"there are no weights for {', '.join(missing[:3])}{', ...' if missing[3:] else ''}")
    return {name: by_plain_name[plain] for name, plain in names.items()}
