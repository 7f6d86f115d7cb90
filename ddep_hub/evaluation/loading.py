"""Trained models by folder or repository, and the geometry that they were measured with."""

import warnings
from pathlib import Path

from ddep_hub import DDePConfig, DDePForPreTraining, DDePForSemanticSegmentation, DDePImageProcessor
from ddep_hub.encoder_weights import encoder_file, encoder_source

from .arguments import InferenceArguments


def load_model(name: str, encoder_weights: str | None) -> DDePForSemanticSegmentation:
    """The fine-tuned model, in eval mode.

    Args:
        name: folder or repository.
        encoder_weights: source of the encoder of a decoder-only folder, see [`encoder_source`].

    Raises:
        OSError: there is none at that place.
        ValueError: it is not fine-tuned, so that its classifier would be random.
    """
    if DDePForSemanticSegmentation.__name__ not in trained_as(name):
        raise ValueError(f"model_name_or_path: {name} is not a fine-tuned segmentation model. Fine-tune it first.")
    weights = _encoder_of(name, encoder_weights)
    return DDePForSemanticSegmentation.from_pretrained(name, encoder_weights=weights).eval()


def load_denoiser(name: str, encoder_weights: str | None) -> DDePForPreTraining:
    """The pretrained model with its denoising head, in eval mode.

    Args:
        name: folder or repository.
        encoder_weights: source of the encoder of a decoder-only folder, see [`encoder_source`].

    Raises:
        OSError: there is none at that place.
        ValueError: it has no denoising head, so that its noise would be random.
    """
    if DDePForPreTraining.__name__ not in trained_as(name):
        raise ValueError(f"{name} is not a model pretrained by denoising. Name the `final` of a pretraining run.")
    return DDePForPreTraining.from_pretrained(name, encoder_weights=_encoder_of(name, encoder_weights)).eval()


def trained_as(name: str) -> list[str]:
    """The classes that a folder says it holds."""
    stored, _ = DDePConfig.get_config_dict(name)
    return stored.get("architectures") or []


def _encoder_of(name: str, encoder_weights: str | None) -> Path | None:
    """The file of a decoder-only folder's encoder; `None` for the Hub, and for a whole folder, which holds it."""
    stored, _ = DDePConfig.get_config_dict(name)
    if not stored.get("decoder_only"):
        return None
    return encoder_file(encoder_source(stored["encoder_name"], encoder_weights))


def image_size(args: InferenceArguments) -> int | None:
    """The shorter side that images are resized to: the argument, or what the image processor beside the model says.

    `None` for images as they are, also where there is no image processor.
    """
    if args.image_size is not None:
        return args.image_size
    try:
        processor = DDePImageProcessor.from_pretrained(args.model_name_or_path)
    except OSError:
        return None
    side = processor.size.get("shortest_edge") if processor.do_resize else None
    window = args.options().window
    if side is not None and window is not None and side <= min(window):
        warnings.warn(
            f"The model's image processor resizes images to a shorter side of {side} pixels, which the window of "
            f"{window[0]}x{window[1]} covers: windows then are whole images, or nearly so. Give image_size.",
            stacklevel=2,
        )
    return None if side is None else int(side)
