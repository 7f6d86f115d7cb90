"""Conversion of U-Nets from segmentation_models.pytorch (SMP) to DDeP segmentation models, and back."""

import functools
import logging
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from torch import nn

from ddep_hub.configuration_ddep import DDePConfig
from ddep_hub.data.preprocessing import Normalize
from ddep_hub.decoder import decoder_channels
from ddep_hub.encoders import is_hybrid
from ddep_hub.evaluation.predict import get_processor
from ddep_hub.export import compare_outputs, render_images
from ddep_hub.modeling_ddep import DDePForPreTraining, DDePForSemanticSegmentation
from ddep_hub.pretrained import PREPROCESSOR, load_processor, processor_for_encoder
from ddep_hub.utils.files import atomic_dir, check_output_dir, format_list, read_json


logger = logging.getLogger(__name__)

Model = DDePForPreTraining | DDePForSemanticSegmentation
HEADS = {DDePForPreTraining: "noise_head", DDePForSemanticSegmentation: "classifier"}
# Arguments of `smp.Unet` that DDeP models share, and the allowed values of the others (`None` if they are not listed).
SHARED_ARGUMENTS = ("encoder_name", "encoder_weights", "decoder_channels", "in_channels", "classes")
ALLOWED_VALUES: dict[str, tuple[Any, ...]] = {
    "encoder_depth": (5,),
    "decoder_use_norm": ("batchnorm", True, {"type": "batchnorm"}),
    "decoder_interpolation": ("nearest", "bilinear"),
    "activation": (None, "identity"),
}


def convert_to_ddep(source: str | Path, output: str | Path) -> dict[str, float]:
    """Converts a folder or Hub id that `save_pretrained` of an `smp.Unet` wrote to a [`DDePForSemanticSegmentation`].

    `output` is the output folder, which must be empty. Returns the difference between the outputs of both, see
    [`compare_outputs`]. Raises a ValueError if a part has no counterpart, or the outputs differ by more than rounding.
    """
    check_output_dir(output)
    unet, arguments = _read_unet(source)
    for name, value in arguments.items():
        allowed = ALLOWED_VALUES.get(name, (None,))
        if name not in SHARED_ARGUMENTS and value not in allowed:
            supported = " or ".join(map(repr, allowed))
            raise ValueError(f"{name}={value!r} is not supported. Convert a U-Net with {name}={supported}.")
    encoder_name = timm_name(arguments["encoder_name"])
    config = DDePConfig(
        encoder_name=encoder_name,
        num_channels=arguments["in_channels"],
        num_labels=arguments["classes"],
        decoder_hidden_sizes=list(arguments["decoder_channels"]),
        decoder_bottleneck_size=0,
        decoder_interpolation=arguments["decoder_interpolation"],
    )
    model = DDePForSemanticSegmentation(config).eval()
    try:
        model.load_state_dict(_match_names(model.state_dict(), _rename_to_ddep(model, unet.state_dict())))
    except RuntimeError as error:
        first_problem = next(filter(None, map(str.strip, str(error).splitlines()[1:])), str(error))
        raise ValueError(
            f"{arguments['encoder_name']} of SMP is not {encoder_name} of timm: {first_problem}"
        ) from error
    comparison = _compare_with_smp(model, unet, "converted model")
    with atomic_dir(output) as folder:
        model.save_pretrained(folder)
        if (Path(source) / PREPROCESSOR).is_file():  # written by `convert_from_ddep`
            load_processor(str(source), config).save_pretrained(folder)
        else:
            logger.warning(
                f"{source} does not record mean, std and size: the converted model normalises images as timm does for "
                f"{encoder_name}, and does not resize them. If the U-Net was trained differently, edit {PREPROCESSOR}."
            )
            processor_for_encoder(encoder_name, num_channels=config.num_channels).save_pretrained(folder)
    return comparison


def convert_from_ddep(model: Model, output: str | Path) -> dict[str, float]:
    """Writes a model as an `smp.Unet`, for `smp.from_pretrained`; the model is put into eval mode.

    `output` is the output folder, which must be empty; the model's image processor is saved there too. Returns the
    difference between the outputs of both, see [`compare_outputs`]. Raises a ValueError if a part of the model has no
    counterpart in the U-Net.
    """
    check_output_dir(output)
    processor = get_processor(model)
    model = model.float().eval()
    config, stride = model.config, model.ddep.stride
    requirements = {
        "decoder_bottleneck_size": (config.decoder_bottleneck_size, 0),
        "decoder_norm": (config.decoder_norm, "batch"),
        "image_skip": (config.image_skip and isinstance(model, DDePForPreTraining), False),
        "blocks of the decoder": (len(model.ddep.decoder.blocks), 5),
        "stride of the encoder": (stride, 32),
        "hybrid encoder": (is_hybrid(model.ddep.encoder), False),
        "levels that the decoder makes of the encoder's": (len(model.ddep.decoder.pyramid.stem) > 0, False),
    }
    for name, (value, required) in requirements.items():
        if value != required:
            raise ValueError(
                f"{name}: {value} has no counterpart in a U-Net of segmentation_models.pytorch, which needs "
                f"{required}. Only a model that was pretrained or fine-tuned that way can be converted."
            )
    unet = _import_smp().Unet(
        encoder_name=f"tu-{config.encoder_name}",
        encoder_weights=None,
        decoder_channels=list(decoder_channels(config, stride)),
        decoder_interpolation=config.decoder_interpolation,
        in_channels=config.num_channels,
        classes=getattr(model, HEADS[type(model)]).out_channels,
        **(config.encoder_kwargs or {}),
    )
    state = unet.eval().state_dict()
    try:
        renamed = _rename_to_ddep(model, state)
        smp_names = dict(zip(renamed, state, strict=True))
        tensors = _match_names(renamed, model.state_dict())
        unet.load_state_dict({smp_names[name]: tensor for name, tensor in tensors.items()})
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            "The model has no counterpart in a U-Net of segmentation_models.pytorch (encoder_out_indices: "
            f"{config.encoder_out_indices}): {' '.join(str(error).split())}"
        ) from error
    comparison = _compare_with_smp(model, unet, "converted U-Net")
    with atomic_dir(output) as folder:
        unet.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)  # a card of placeholders
        processor.save_pretrained(folder)  # not part of an SMP model
    return comparison


def _import_smp() -> Any:
    try:
        import segmentation_models_pytorch as smp
    except ImportError as error:
        raise ImportError(
            'Converting needs segmentation_models.pytorch. Install it with `pip install "ddep-hub[convert]"`.'
        ) from error
    return smp


def _read_unet(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Loads the U-Net of a folder or Hub id, in eval mode, and the arguments it was built with."""
    smp = _import_smp()
    if Path(source).exists():
        config = Path(source) / "config.json"
        kind = read_json(config).get("_model_class") if config.is_file() else None
        if kind is not None and kind != "Unet":
            raise OSError(f"{source} contains a {kind}. Only a Unet can be converted.")
        if kind is None:
            raise OSError(
                f"{source} is not a folder that `save_pretrained` of an `smp.Unet` wrote. Load a .pth or .ckpt file "
                "into an `smp.Unet` with the arguments it was trained with, and call its `save_pretrained`."
            )
    try:
        # The folder has the weights, so pretrained ones need not be downloaded.
        unet = smp.from_pretrained(str(source), encoder_weights=None).eval()
    except (SafetensorError, pickle.UnpicklingError, KeyError, RuntimeError, TypeError) as error:
        raise OSError(f"{source} cannot be read as a U-Net of segmentation_models.pytorch: {error}") from error
    except LocalEntryNotFoundError as error:
        raise OSError(f"{source} is not a folder, and cannot be loaded from the Hub: {error}") from error
    if type(unet) is not smp.Unet:
        raise ValueError(f"{source} is a {type(unet).__name__}. Only a Unet can be converted.")
    return unet, {name: value for name, value in unet.config.items() if not name.startswith("_")}


def _compare_with_smp(model: Model, unet: nn.Module, description: str) -> dict[str, float]:
    config = model.config
    processor = processor_for_encoder(config.encoder_name, num_channels=config.num_channels)
    normalize = Normalize.from_processor(processor)
    # At other sizes, SMP resizes the skip connections instead of padding the image.
    images = render_images((2 * model.ddep.stride, 3 * model.ddep.stride), 2, model.config.num_channels, normalize)
    try:
        return compare_outputs(unet, functools.partial(prediction, model), [images])
    except (AssertionError, ValueError) as error:  # timm asserts that images have a model's fixed size
        raise ValueError(f"The {description} gives different outputs: {error}. Nothing was written.") from error


def timm_name(encoder_name: str) -> str:
    """timm's name of an encoder of SMP; raises a ValueError if timm has none of that name."""
    name = encoder_name.removeprefix("tu-").removeprefix("timm-")
    if not timm.is_model(name.split(".")[0]):
        raise ValueError(
            f"encoder_name: {encoder_name} of segmentation_models.pytorch is not a timm model, as encoders must be "
            "here. Supported are those that start with `tu-`, ResNets, ResNeXts and some that start with `timm-`."
        )
    return name


def prediction(model: Model, images: torch.Tensor) -> torch.Tensor:
    """Output of the head for uncorrupted images: no noise is added for a denoiser."""
    head = getattr(model, HEADS[type(model)])
    hidden_state = model.ddep(images, return_dict=True).last_hidden_state
    return model.ddep.to_image_size(head(hidden_state), *images.shape[-2:])


def _rename_to_ddep(model: Model, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Renames a U-Net's weights to the prefixes of a DDeP model, in their order."""
    prefixes = {
        "encoder.model.": "ddep.encoder.",  # of timm's own models
        "encoder.": "ddep.encoder.",
        "decoder.": "ddep.decoder.",
        "segmentation_head.0.": f"{HEADS[type(model)]}.",
    }
    renamed = {}
    for name, tensor in state.items():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), "")
        renamed[prefixes.get(prefix, "") + name.removeprefix(prefix)] = tensor
    return renamed


def _match_names(expected_names: Iterable[str], state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of `state` under `expected_names`; timm joins parts of a name with `_` in its feature extractors."""
    by_plain_name = {name.replace(".", "_"): tensor for name, tensor in state.items()}
    names = {name: name.replace(".", "_") for name in expected_names}
    missing = [name for name, flat_name in names.items() if flat_name not in by_plain_name]
    if missing:
        raise RuntimeError(f"there are no weights for {format_list(missing, 3)}")
    return {name: by_plain_name[flat_name] for name, flat_name in names.items()}
