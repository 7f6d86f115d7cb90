"""Conversion of checkpoints: U-Nets of segmentation_models.pytorch, and denoising checkpoints of decoder-denoising.

github.com/bwconrad/decoder-denoising pretrains U-Nets of SMP by denoising and keeps them as Lightning checkpoints: the
network's weights under `net.`, and the arguments as hyper-parameters. Its images are scaled to [-1, 1].
"""

import functools
import json
import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.checkpoints import hash_weights
from ddep_hub.decoder import decoder_channels
from ddep_hub.encoders import encoder_mean_std, is_hybrid
from ddep_hub.export_check import compare, scenes
from ddep_hub.utils.files import atomic_dir


Format = Literal["ddep", "smp", "decoder-denoising"]
CHECKPOINT = "checkpoint.ckpt"
_HALF = [0.5] * 3
# Arguments of `smp.Unet` that decoder-denoising leaves at their defaults.
_UNET_DEFAULTS = {"decoder_channels": [256, 128, 64, 32, 16], "decoder_interpolation": "nearest"}


def convert_to_ddep(source: str | Path, output: str | Path) -> dict[str, float]:
    """Writes a folder for `from_pretrained` from a foreign checkpoint.

    Args:
        source: folder or repository that `save_pretrained` of an `smp.Unet` wrote, which becomes a
            [`DDePForSemanticSegmentation`]; or a checkpoint file of decoder-denoising, which becomes a
            [`DDePForPreTraining`].
        output: folder to write, which must not hold anything.

    Returns:
        How far the outputs of both differ, see [`compare`].

    Raises:
        FileExistsError: `output` holds something.
        ImportError: segmentation_models.pytorch is not installed.
        OSError: the source cannot be read, or is no such checkpoint.
        ValueError: it has a part without a counterpart, or the converted model is another function.
    """
    check_empty(output)
    model: DDePForPreTraining | DDePForSemanticSegmentation
    if Path(source).is_file():
        unet, arguments, hyper_parameters = _read_checkpoint(Path(source))
        fields = {
            "freeze_encoder": hyper_parameters["mode"] == "decoder",
            "corruption": hyper_parameters["noise_type"],
            "sigma": hyper_parameters["noise_std"],
        }
        model = from_unet(DDePForPreTraining, unet, arguments, **fields)
        mean = std = _HALF
    else:
        unet, arguments = _read_unet(source)
        model = from_unet(DDePForSemanticSegmentation, unet, arguments, num_labels=arguments["classes"])
        mean, std = encoder_mean_std(model.config.encoder_name)
    found = _compared(model, unet, "converted model")
    with atomic_dir(output) as folder:
        model.save_pretrained(folder)
        DDePImageProcessor(image_mean=mean, image_std=std, do_resize=False).save_pretrained(folder)
    return found


def convert_from_ddep(
    model: DDePForPreTraining | DDePForSemanticSegmentation, output: str | Path, to: Format
) -> dict[str, float]:
    """Writes a model for `smp.from_pretrained`, or a denoiser as a checkpoint of decoder-denoising.

    Args:
        model: the model; it is put into eval mode.
        output: folder to write, which must not hold anything; decoder-denoising's file in it is `CHECKPOINT`.
        to: `smp` or `decoder-denoising`.

    Returns:
        How far the outputs of both differ, see [`compare`].

    Raises:
        FileExistsError: `output` holds something.
        ImportError: segmentation_models.pytorch is not installed.
        ValueError: the model has a part that the U-Net has not, or the format cannot say what it is.
    """
    check_empty(output)
    unet, arguments = to_unet(model.float().eval())
    if to == "decoder-denoising":
        hyper_parameters = _hyper_parameters(model, arguments)
    found = _compared(model, unet, "converted U-Net")
    with atomic_dir(output) as folder:
        if to == "smp":
            unet.save_pretrained(folder)
            (folder / "README.md").unlink(missing_ok=True)  # a card of placeholders
        else:
            state = {f"net.{name}": tensor for name, tensor in unet.state_dict().items()}
            # Lightning asks for its version, to migrate what older ones wrote.
            content = {"state_dict": state, "hyper_parameters": hyper_parameters, "pytorch-lightning_version": "2.0.0"}
            torch.save(content, folder / CHECKPOINT)
    return found


def check_empty(output: str | Path) -> None:
    """Raises a FileExistsError where there is something already."""
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} is there already. Choose another output_dir.")


def _compared(model: DDePForPreTraining | DDePForSemanticSegmentation, unet: nn.Module, what: str) -> dict[str, float]:
    config = model.config
    mean, std = encoder_mean_std(config.encoder_name)
    size = (2 * model.ddep.stride, 3 * model.ddep.stride)  # of others, SMP pads nothing, and resizes skips instead
    try:
        return compare(unet, functools.partial(prediction, model), [scenes(size, 2, config.num_channels, mean, std)])
    except (AssertionError, ValueError) as error:  # timm asserts that an image has the only size a model takes
        raise ValueError(f"The {what} is another function: {error}. Nothing was written.") from error


def _read_unet(source: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The U-Net of a folder or repository, in eval mode, and the arguments it was built with."""
    smp = import_smp()
    config = Path(source) / "config.json"
    if Path(source).is_dir():
        kind = json.loads(config.read_text(encoding="utf-8")).get("_model_class") if config.is_file() else None
        if kind != "Unet":
            raise OSError(
                f"{source} holds {kind or 'nothing'} of segmentation_models.pytorch, and no Unet. Name a folder that "
                "`save_pretrained` of an `smp.Unet` wrote, or a checkpoint file of decoder-denoising."
            )
    try:
        # The folder holds the weights: those it was built with need not be fetched.
        unet = smp.from_pretrained(str(source), encoder_weights=None).eval()
    except (SafetensorError, pickle.UnpicklingError, KeyError, RuntimeError, TypeError) as error:
        raise OSError(f"{source} cannot be read as a U-Net of segmentation_models.pytorch: {error}") from error
    if type(unet) is not smp.Unet:
        raise ValueError(f"{source} is {type(unet).__name__} and no Unet: only that has the decoder of DDeP models.")
    return unet, {name: value for name, value in unet.config.items() if not name.startswith("_")}


def _read_checkpoint(path: Path) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """The network of a checkpoint of decoder-denoising, its arguments, and the checkpoint's hyper-parameters."""
    smp = import_smp()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise OSError(
            f"{path} is damaged, or holds more than tensors and plain values, which is not read from a pickle: {error}"
        ) from error
    found = content.get("hyper_parameters") if isinstance(content, dict) else None
    needed = ("arch", "encoder", "in_channels", "mode", "noise_type", "noise_std")
    if not found or any(name not in found for name in needed):
        raise OSError(
            f"{path} is no checkpoint of decoder-denoising: it lacks the hyper-parameters {', '.join(needed)}. "
            "Weights alone do not say what model they are of: save an `smp.Unet` by its save_pretrained, and name the "
            "folder."
        )
    if found["arch"].lower() != "unet":
        raise ValueError(f"{path} is of `{found['arch']}`: only `unet` has the decoder of DDeP models.")
    arguments = {
        "encoder_name": found["encoder"],
        "in_channels": found["in_channels"],
        "classes": found["in_channels"],
        **_UNET_DEFAULTS,
    }
    timm_name(found["encoder"])  # before SMP builds another one
    unet = smp.Unet(**arguments, encoder_weights=None).eval()
    state = content["state_dict"]
    try:
        unet.load_state_dict({name.removeprefix("net."): state[name] for name in state if name.startswith("net.")})
    except RuntimeError as error:
        raise OSError(f"{path} does not hold the weights that its hyper-parameters speak of: {error}") from error
    return unet, arguments, dict(found)


def _hyper_parameters(
    model: DDePForPreTraining | DDePForSemanticSegmentation, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """What decoder-denoising builds a model from."""
    config = model.config
    wanted: dict[str, tuple[Any, Any]] = {
        "decoder_hidden_sizes": (list(arguments["decoder_channels"]), _UNET_DEFAULTS["decoder_channels"]),
        "decoder_interpolation": (config.decoder_interpolation, "nearest"),
        "prediction_type": (config.prediction_type, "epsilon"),
        "sigma": (len(set(config.sigma_range)), 1),
        "head": (isinstance(model, DDePForPreTraining), True),
    }
    for name, (value, needed) in wanted.items():
        if value != needed:
            raise ValueError(
                f"{name} is {value}, and would have to be {needed}: a checkpoint of decoder-denoising holds a "
                "denoiser of one noise level that predicts the noise, with SMP's default decoder. Convert to smp."
            )
    return {
        "arch": "unet",
        "encoder": arguments["encoder_name"],
        "in_channels": config.num_channels,
        "mode": "decoder" if config.freeze_encoder else "encoder+decoder",
        "noise_type": config.corruption,
        "noise_std": config.sigma_range[0],
        "loss_type": "l2",
    }


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
