# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Configuration of the DDeP models."""

import difflib
import math
import numbers
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .shipped import resolve_name, suggest_shipped_models


__version__ = "0.1.0"

# Increased when an older ddep_hub could not read folders written by this version.
FORMAT_VERSION = 1

# Fields that together define the classes.
_LABEL_FIELDS = ("num_labels", "id2label", "label2id")

# Arguments of `timm.create_model` that the model sets itself.
RESERVED_ENCODER_KWARGS = ("pretrained", "num_classes", "in_chans", "features_only", "out_indices", "block_fn")

# Arguments of `from_pretrained`, transformers' and the models' own, that resemble a field.
_NON_FIELD_ARGUMENTS = ("code_revision", "encoder_weights")

# Prediction types of the corruptions without noise.
PREDICTED = {"masked": "sample", "downsampled": "features"}

# Written into configurations by transformers itself: `auto_map` with remote code, `use_cache` by its Trainer.
_TRANSFORMERS_FIELDS = ("auto_map", "use_cache")

logger = logging.get_logger(__name__)


def _to_name(name: Any) -> str:
    """A class's name; integers are names too, but become strings as JSON keys."""
    if not isinstance(name, str | numbers.Integral) or isinstance(name, bool):
        raise TypeError(f"{name!r} is not a name")
    return str(name)


@strict
class DDePConfig(PreTrainedConfig):
    r"""Configuration of [`DDePModel`], [`DDePForPreTraining`] and [`DDePForSemanticSegmentation`].

    Building a model from a configuration never touches the network and never loads weights.

    Args:
        encoder_name: timm name of the encoder, with or without the tag of its weights. The default is the encoder of
            the DDeP paper, TransUNet's R50+ViT-B/16 with ImageNet-21k weights.
        encoder_kwargs: further arguments of `timm.create_model`, such as `{"img_size": 384}`.
        encoder_out_indices: increasing indices into timm's `feature_info` of the features to use, negative ones
            counted from the end; at most four for a single-stride model (ViT). `None` uses all features of a pyramid
            (the last of each stride) and four evenly spaced blocks of a ViT.
        encoder_revision: commit of the timm repository on the Hub that the encoder's weights came from.
        encoder_weights_hash: SHA-256 of the encoder's weights that the decoder was trained with.
        num_channels: number of channels of the input images.
        decoder_hidden_sizes: channels of the decoder's blocks, coarsest first; each block doubles the resolution.
            `None` means `(256, 128, 64, 16)` for an encoder of stride 16 and `(256, 128, 64, 32, 16)` for stride 32.
            With fewer blocks than the stride allows, predictions are upsampled bilinearly to the image's size.
        decoder_bottleneck_size: channels of the 3x3 convolution before the first block; 0 removes it.
        decoder_width: multiplier of `decoder_hidden_sizes` (in the paper, we believe, 1x, 2x, 3x); the bottleneck is
            not scaled.
        decoder_norm: `"batch"` (as in TransUNet) or `"group"` (for batches of one, and for exact data parallelism).
        decoder_interpolation: `"bilinear"` or `"nearest"`, the upsampling in each block.
        freeze_encoder: `True` is DDeP (only the decoder is pretrained), `False` is DeP (everything is; the paper's DeP
            starts from random weights). Used only by [`DDePForPreTraining`].
        corruption: `"scaled"` keeps the variance, `sqrt(gamma) x + sqrt(1 - gamma) noise` with
            `gamma = 1 / (1 + sigma^2)`; `"simple"` is `x + sigma noise`. The other two are not in the DDeP paper:
            `"masked"` sets patches to 0 and predicts them (`prediction_type="sample"`); `"downsampled"` halves the
            image's resolution and predicts the encoder's features of the full-resolution image
            (`prediction_type="features"`).
        prediction_type: `"epsilon"` predicts the noise, `"sample"` the clean image, `"features"` its features.
        sigma: standard deviation of the noise in units of `pixel_values`, that is, after normalisation; or a range
            `(low, high)` from which the level of each example is drawn. Unused without noise.
        mask_ratio: fraction of the patches that `corruption="masked"` masks.
        mask_patch_size: side of these patches in pixels.
        image_skip: whether the denoising head also gets the noisy image, in units of the noise (not in the paper).
            This is for encoders whose finest features carry too little of the noise, such as EfficientNet-Lite0 with
            16 channels at stride 2. It is dropped together with the head.
        label_colors: RGB colour of each class, 0 to 255, in the order of the class ids, for overlays; `None` lets
            `ddep-hub predict` choose.
        image_scale_range: smallest and largest factor by which the image processor resized the fine-tuning images,
            used to warn about images that are resized by a different factor; `None` if unknown.
        semantic_loss_ignore_index: label that the segmentation loss ignores.
        initializer_range: standard deviation of the weights of a newly initialised classifier or denoising head.
        decoder_only: marks a folder whose weights file has no encoder. Set by
            `save_pretrained(..., decoder_only=True)`, not by hand.
        ddep_hub_version: version of the package that wrote the folder.
        format_version: version of the folder's format. A version newer than this package supports raises an error.

    Raises:
        ValueError: an undeclared name that is close to a declared field; a folder with a newer format.
        huggingface_hub.errors.StrictDataclassError: a field has the wrong type or is out of range.

    Example:

    ```python
    >>> from ddep_hub import DDePConfig, DDePForSemanticSegmentation

    >>> config = DDePConfig(encoder_name="tf_efficientnet_lite0", decoder_norm="group", num_labels=19)
    >>> model = DDePForSemanticSegmentation(config)
    ```
    """

    model_type = "ddep"

    encoder_name: str = "vit_base_r50_s16_224.orig_in21k"
    encoder_kwargs: dict[str, Any] | None = None
    encoder_out_indices: list[int] | tuple[int, ...] | None = None
    encoder_revision: str | None = None
    encoder_weights_hash: str | None = None
    num_channels: int = 3
    decoder_hidden_sizes: list[int] | tuple[int, ...] | None = None
    decoder_bottleneck_size: int = 512
    decoder_width: float | int = 1.0
    decoder_norm: Literal["batch", "group"] = "batch"
    decoder_interpolation: Literal["bilinear", "nearest"] = "bilinear"
    freeze_encoder: bool = True
    corruption: Literal["scaled", "simple", "masked", "downsampled"] = "scaled"
    prediction_type: Literal["epsilon", "sample", "features"] = "epsilon"
    sigma: float | int | list[float | int] | tuple[float | int, ...] = 0.22
    mask_ratio: float | int = 0.5
    mask_patch_size: int = 16
    image_skip: bool = False
    label_colors: list[list[int]] | None = None
    image_scale_range: list[float] | None = None
    semantic_loss_ignore_index: int = 255
    initializer_range: float | int = 0.02
    decoder_only: bool = False
    ddep_hub_version: str = __version__
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        self._check_format(self.format_version, self.ddep_hub_version)
        for name in self.find_undeclared_fields(kwargs):
            logger.warning(f"DDePConfig has no field `{name}`; it is kept as an attribute and does nothing.")
        self._match_labels(kwargs.get("num_labels"))
        super().__post_init__(**kwargs)

    def _match_labels(self, num_labels: Any) -> None:
        config: Any = self  # the fields are defined by transformers, where mypy does not see them
        is_integer = isinstance(num_labels, numbers.Integral) and not isinstance(num_labels, bool)  # NumPy's too
        if num_labels is not None and not (is_integer and num_labels > 0):
            raise ValueError(f"num_labels must be a whole number of at least 1, got {num_labels!r}.")
        try:
            if config.label2id is not None:
                config.label2id = {_to_name(name): int(label_id) for name, label_id in config.label2id.items()}
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"label2id must map names to ids, such as 'sky' to 0, got {config.label2id}.") from None
        if config.id2label is None:
            config.id2label = {index: f"LABEL_{index}" for index in range(2 if num_labels is None else num_labels)}
            if config.label2id is not None:
                config.id2label = {label_id: name for name, label_id in config.label2id.items()}
        try:  # JSON has no integer keys
            names = config.id2label = {int(label_id): _to_name(name) for label_id, name in config.id2label.items()}
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"id2label must map ids to names, such as 0 to 'sky', got {config.id2label}.") from None
        if not names:
            raise ValueError("id2label is empty. Name at least one class, or leave it out.")
        if num_labels is not None and num_labels != len(names):
            raise ValueError(
                f"num_labels is {num_labels}, but the label map has {len(names)} names. Pass only id2label."
            )
        if sorted(names) != list(range(len(names))):
            raise ValueError(f"id2label must name the ids 0 to {len(names) - 1}, each once; it names {sorted(names)}.")
        if config.label2id is None:
            config.label2id = {name: label_id for label_id, name in names.items()}
        mismatched = [name for name, label_id in config.label2id.items() if names.get(label_id) != name]
        if mismatched or set(config.label2id) != set(names.values()):
            raise ValueError(
                f"label2id does not match id2label: {config.label2id} against {names}. Pass only id2label; label2id "
                "follows from it."
            )

    @staticmethod
    def _check_format(format_version: Any, version: Any) -> None:
        if isinstance(format_version, int) and format_version > FORMAT_VERSION:
            raise ValueError(
                f"format_version is {format_version} (written by ddep_hub {version}), but ddep_hub {__version__} "
                f"reads formats up to {FORMAT_VERSION}. Upgrade with `pip install --upgrade ddep_hub`."
            )

    def validate_architecture(self) -> None:
        """Checks each field's range; runs at construction and before saving."""
        super().validate_architecture()
        if self.decoder_bottleneck_size < 0:
            raise ValueError(f"decoder_bottleneck_size must not be negative, got {self.decoder_bottleneck_size}.")
        for name in ("num_channels", "decoder_width", "initializer_range"):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"{name} must be positive, got {value}.")
        sizes = self.decoder_hidden_sizes
        if sizes is not None and (not sizes or min(sizes) < 1):
            raise ValueError(f"decoder_hidden_sizes needs one positive number per block, got {sizes}.")
        if any(len(color) != 3 or not 0 <= min(color) <= max(color) <= 255 for color in self.label_colors or ()):
            raise ValueError(
                f"label_colors needs red, green and blue of each class, 0 to 255, got {self.label_colors}."
            )
        reserved = sorted(set(self.encoder_kwargs or {}).intersection(RESERVED_ENCODER_KWARGS))
        if reserved:
            raise ValueError(f"encoder_kwargs must not hold {reserved}: the model sets them itself. Leave them out.")
        if (self.encoder_kwargs or {}).get("patch_drop_rate"):
            raise ValueError("encoder_kwargs: patch_drop_rate drops patches that the decoder needs. Leave it out.")
        _ = self.sigma_range  # raises an error if it is invalid
        if not 0 < self.mask_ratio < 1:
            raise ValueError(f"mask_ratio must be between 0 and 1, got {self.mask_ratio}.")
        if self.mask_patch_size < 1:
            raise ValueError(f"mask_patch_size must be positive, got {self.mask_patch_size}.")
        target = PREDICTED.get(self.corruption)
        if target is not None and (self.prediction_type != target or self.image_skip):
            raise ValueError(
                f'corruption="{self.corruption}" does not predict noise, and its head does not get the corrupted '
                f'image. Set prediction_type="{target}" and image_skip=False.'
            )
        if self.prediction_type == "features" and target != "features":
            raise ValueError('prediction_type="features" needs corruption="downsampled". Set both.')
        if self.corruption == "downsampled" and not self.freeze_encoder:
            raise ValueError(
                'corruption="downsampled" predicts features of the encoder, which must not change. Set '
                "freeze_encoder=True."
            )

    @property
    def sigma_range(self) -> tuple[float, float]:
        """`sigma` as `(low, high)`; both are equal if it is one number.

        Raises:
            ValueError: It is neither a positive number nor a range of them.
        """
        sigmas = [self.sigma] * 2 if isinstance(self.sigma, (int, float)) else self.sigma
        if len(sigmas) != 2:
            raise ValueError(f"sigma must be one number or a range (low, high), got {self.sigma}.")
        low, high = sigmas
        if not (0 < low <= high and math.isfinite(high)):
            raise ValueError(f"sigma must be positive, or a range (low, high) of positive numbers, got {self.sigma}.")
        return float(low), float(high)

    @classmethod
    def find_undeclared_fields(cls, names: Iterable[str]) -> list[str]:
        """Returns the names that are not fields or attributes.

        Raises:
            ValueError: A name is close to a declared field.
        """
        declared = [*cls.__dataclass_fields__, "num_labels"]
        unknown = [
            name
            for name in names
            if not (name.startswith("_") or hasattr(cls, name) or hasattr(cls, f"_{name}"))
            and name not in (*declared, *_TRANSFORMERS_FIELDS)
        ]
        for name in unknown:
            matches = difflib.get_close_matches(name, declared, n=1, cutoff=0.8)
            if matches and name not in _NON_FIELD_ARGUMENTS:
                raise ValueError(f"DDePConfig has no field `{name}`. Did you mean `{matches[0]}`?")
        return unknown

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """As in transformers; also takes the name of a shipped model."""
        with suggest_shipped_models(pretrained_model_name_or_path):
            return super().get_config_dict(resolve_name(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As in transformers; keyword arguments are checked as at construction, instead of being dropped."""
        cls._check_format(config_dict.get("format_version"), config_dict.get("ddep_hub_version"))
        config_dict = dict(config_dict)
        unknown = cls.find_undeclared_fields(kwargs)
        if not kwargs.get("return_unused_kwargs"):
            config_dict |= {name: kwargs.pop(name) for name in unknown}
        labels = {name: kwargs.pop(name) for name in _LABEL_FIELDS if kwargs.get(name) is not None}
        stored = config_dict.get("id2label")
        # A new label map replaces the stored one as a whole; with the same number of labels, the names are kept.
        if labels and (set(labels) != {"num_labels"} or stored is None or len(stored) != labels["num_labels"]):
            replaced_fields = (*_LABEL_FIELDS, "label_colors")  # other classes have other colours
            config_dict = {name: value for name, value in config_dict.items() if name not in replaced_fields} | labels
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """As in transformers; records this version, and drops references to code that the folder does not contain."""
        self.ddep_hub_version, self.format_version = __version__, FORMAT_VERSION
        config: Any = self
        # Either may have been set since; the other follows from it.
        has_default_names = config.id2label == {index: f"LABEL_{index}" for index in config.id2label}
        names = {label_id: name for name, label_id in (config.label2id or {}).items()}
        if has_default_names and names.keys() == config.id2label.keys():
            config.id2label = names
        config.label2id = None
        self._match_labels(None)
        # Left over from a folder that included code; entries with "--" point to a repository that still has it.
        auto_map = self.__dict__.pop("auto_map", {})
        valid_entries = {
            auto_class: code
            for auto_class, code in auto_map.items()
            if "--" in code or Path(save_directory, code.split(".")[0] + ".py").is_file()
        }
        if valid_entries:
            self.__dict__["auto_map"] = valid_entries
        super().save_pretrained(save_directory, **kwargs)


__all__ = ["DDePConfig"]
