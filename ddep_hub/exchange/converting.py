"""Conversion of checkpoints: U-Nets of segmentation_models.pytorch, and denoising checkpoints of decoder-denoising.

github.com/bwconrad/decoder-denoising pretrains U-Nets of SMP by denoising and keeps them as Lightning checkpoints: the
network's weights under `net.`, and the arguments as hyper-parameters. Its images are scaled to [-1, 1].
"""

import functools
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import nn

from ddep_hub import DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.encoders import encoder_mean_std
from ddep_hub.training.run_folder import whole_folder

from .comparing import compare, scenes
from .smp import from_unet, import_smp, prediction, timm_name, to_unet


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
    with whole_folder(output) as folder:
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
    with whole_folder(output) as folder:
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
