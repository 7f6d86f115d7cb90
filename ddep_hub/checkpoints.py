# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Loading and saving of weights: names, decoder-only folders, and mismatches.

Works on state dicts and knows no model; the models use it.
"""

import contextlib
import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers.utils import logging
from transformers.utils.hub import cached_file

from .configuration_ddep import DDePConfig
from .encoder_weights import WEIGHTS_NAME, StateDict, corrupt_file_message
from .encoders import unwrap_model


# Arguments of `from_pretrained` that locate files on the Hub or in the cache.
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
# What torch.compile, FSDP and activation checkpointing add to names; the parallel wrappers add `module`, as timm may.
WRAPPER_PARTS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")

logger = logging.get_logger(__name__)


class HubArguments(dict[str, Any]):
    """Where a model was loaded from, beside its name. A pickled model, which others may get, holds no token."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "HubArguments":
        return HubArguments(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return HubArguments, ({name: value for name, value in self.items() if name != "token"},)


def unwrapped_names(model: nn.Module) -> dict[str, str]:
    """Names of a model's weights, each without what compiled or parallel modules inside add to it."""
    wrappers = {path for path, module in model.named_modules() if unwrap_model(module) is not module}
    names = {}
    # Not from the state dict: under FSDP, all processes would have to request it together.
    for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)):
        parts = name.split(".")
        is_added = [part in WRAPPER_PARTS or ".".join(parts[:index]) in wrappers for index, part in enumerate(parts)]
        names[name] = ".".join(part for part, added in zip(parts, is_added, strict=True) if not added)
    return names


def rename_weights(state_dict: Mapping[str, torch.Tensor], names: Iterable[str]) -> StateDict:
    """Renames weights of a compiled or wrapped model (`_orig_mod.` or `module.` in any part of a name).

    `names` are the names to give, which may have such parts themselves. Raises a ValueError that names a weight of
    another model, or one of two weights that would get the same name.
    """
    names_by_stripped = {_strip_wrappers(name): name for name in names}
    renamed: StateDict = {}
    for name, tensor in state_dict.items():
        new_name = names_by_stripped.get(_strip_wrappers(name))
        if new_name is None or new_name in renamed:
            problem = (
                "is not a weight of this model" if new_name is None else f"and another weight are both {new_name}"
            )
            raise ValueError(f"state_dict: {name} {problem}. Pass the state dict of the model you are saving.")
        renamed[new_name] = tensor
    return renamed


def clone_shared_tensors(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Copies weights that have several names, as CoaT's do: safetensors stores no shared tensors."""
    seen = set[tuple[int, torch.Size]]()
    unshared: StateDict = {}
    for name, tensor in state_dict.items():
        storage = (tensor.data_ptr(), tensor.shape)
        unshared[name] = tensor.clone() if tensor.data_ptr() and storage in seen else tensor
        seen.add(storage)
    return unshared


def _strip_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPER_PARTS and part != "module")


def decoder_state_dict(
    state_dict: Mapping[str, torch.Tensor], encoder_prefix: str, *, half_precision: bool
) -> StateDict:
    """What a decoder-only file holds: everything but the encoder, whose names begin with `encoder_prefix`.

    `half_precision` makes convolution weights float16. Norms and their statistics stay in float32, and so does a
    weight that float16 cannot hold.
    """
    decoder_weights = {name: tensor for name, tensor in state_dict.items() if not name.startswith(encoder_prefix)}
    if half_precision:
        limit = torch.finfo(torch.float16).max
        for name, tensor in decoder_weights.items():
            if tensor.dtype == torch.float32 and tensor.ndim > 1 and tensor.abs().max() < limit:
                decoder_weights[name] = tensor.half()
    return decoder_weights


def read_decoder_weights(folder: str | Path, variant: str | None = None, **hub: Any) -> StateDict:
    """Reads the weights of a decoder-only folder or repository.

    `variant` is the one that `save_pretrained` was given, which is part of the file's name; for `hub` see
    `HUB_ARGUMENTS`. Raises an OSError if there are no weights, or the file is damaged.
    """
    stem, suffix = os.path.splitext(WEIGHTS_NAME)
    path = cached_file(str(folder), f"{stem}.{variant}{suffix}" if variant else WEIGHTS_NAME, **hub)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise OSError(corrupt_file_message(path, error)) from error


def check_decoder_arguments(folder: str, arguments: Mapping[str, Any]) -> None:
    """Raises a ValueError for arguments of `from_pretrained` that a decoder-only folder cannot use."""
    for name, is_given in (
        ("state_dict", arguments.get("state_dict") is not None),
        ("use_safetensors", arguments.get("use_safetensors") is False),
    ):
        if is_given:
            raise ValueError(
                f"{name}: {folder} holds only a decoder, which is read from its safetensors file. Leave `{name}` "
                "out, and load other weights with load_state_dict."
            )


def check_default_device() -> None:
    """Raises a RuntimeError if torch puts new tensors on the meta device, where an encoder would lose its weights.

    For whole folders, transformers raises it.
    """
    if torch.get_default_device().type == "meta":
        raise RuntimeError(
            'Weights cannot be loaded under torch.device("meta"). Leave it out, or build an empty model from its '
            "DDePConfig."
        )


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


def check_same_encoder(
    config: DDePConfig, weights: Mapping[str, torch.Tensor], origin: str, folder: str | Path
) -> None:
    """Warns if a decoder is put on other encoder weights than those it was trained on."""
    actual_hash = hash_weights(weights)
    expected_hash = config.encoder_weights_hash
    if expected_hash is not None and actual_hash != expected_hash:
        logger.warning(
            f"The decoder of {folder} was trained on `{config.encoder_name}` with weights {expected_hash[:12]}, but "
            f"is combined with {origin} with weights {actual_hash[:12]}. The features differ, so expect worse "
            "results, or pass the original file as `encoder_weights`."
        )


@contextlib.contextmanager
def hide_load_report() -> Iterator[None]:
    """Suppresses transformers' table of new or unused weights: `from_pretrained` names them itself."""
    report = logging.get_logger("transformers.modeling_utils")

    def is_other_record(record: Any) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    report.addFilter(is_other_record)
    try:
        yield
    finally:
        report.removeFilter(is_other_record)


# Parts of the model from input to output, and the configuration fields that determine their shapes.
SHAPE_FIELDS = {
    "encoder.": "encoder_name, encoder_kwargs and num_channels",
    "decoder.pyramid.": "encoder_name, encoder_out_indices and num_channels",
    "decoder.bottleneck.": "encoder_name and decoder_bottleneck_size",
    "decoder.": "encoder_name, decoder_hidden_sizes, decoder_width and decoder_bottleneck_size",
    "noise_head.": "corruption, num_channels and image_skip",
    "classifier.": "decoder_hidden_sizes and decoder_width",  # of its input
}
# The fields that decide which weights encoder and decoder have, and their shapes.
WEIGHT_FIELDS = (
    *("encoder_name", "encoder_kwargs", "encoder_out_indices", "num_channels", "decoder_hidden_sizes"),
    *("decoder_bottleneck_size", "decoder_width", "decoder_norm"),
)
HEAD_FIELDS = ("corruption", "image_skip")


def changed_fields(config: DDePConfig, stored: Mapping[str, Any], *, of_head: bool = False) -> str:
    """The fields of `WEIGHT_FIELDS` that differ from a folder's `config.json`, with the values they have there.

    With `of_head`, also those of the denoising head.
    """
    defaults = DDePConfig()

    def to_list(value: Any) -> Any:
        return list(value) if isinstance(value, tuple) else value

    values = {name: stored.get(name, getattr(defaults, name)) for name in (*WEIGHT_FIELDS, *HEAD_FIELDS * of_head)}
    changed = {name: value for name, value in values.items() if to_list(value) != to_list(getattr(config, name))}
    return ", ".join(f"{name}={value!r}" for name, value in changed.items())


def is_of_dropped_layer(name: str, modules: Collection[str]) -> bool:
    """Whether a decoder's weight is of a block, or of a level of the pyramid, that a decoder with fewer blocks lacks.

    `name` and the names of the `modules` that the model has begin with `decoder.`.
    """
    return name.startswith(("decoder.blocks.", "decoder.pyramid.")) and name.rpartition(".")[0] not in modules


def mismatch_message(source: str, mismatched: Iterable[tuple[str, Any, Any]], base_prefix: str, changed: str) -> str:
    """Says which weight does not fit, both shapes, and which fields of the configuration decide it.

    `mismatched` holds the name of each weight, its shape in the file and its shape in the model; `base_prefix` is what
    the names of encoder and decoder begin with; for `changed` see [`changed_fields`].
    """
    shape_fields = SHAPE_FIELDS | {"": "the fields that set its size"}  # layers of a user's own subclass
    parts = list(shape_fields)

    def part_of(name: str) -> str:
        return next(part for part in parts if name.removeprefix(base_prefix).startswith(part))

    # A change in one part changes the input of the next, so only the first one is the cause.
    name, stored_shape, model_shape = min(mismatched, key=lambda entry: (parts.index(part_of(entry[0])), entry[0]))
    if part_of(name) == "classifier." and stored_shape[0] != model_shape[0]:
        return (
            f"{source} was fine-tuned for {stored_shape[0]} labels, but num_labels is {model_shape[0]}: {name} is "
            f"{tuple(stored_shape)} in the file and {tuple(model_shape)} in the model. Pass "
            "`ignore_mismatched_sizes=True` for a new classifier, or leave `num_labels` out."
        )
    return (
        f"{source} does not fit the model: {name} is {tuple(stored_shape)} in the file and {tuple(model_shape)} in "
        f"the model. Set {changed or shape_fields[part_of(name)]} as in the configuration it was trained with."
    )
